//! The exported functions: pointers in, status out, no panic across the boundary.

use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::Once;

use crate::chat::ChatTemplate;
use crate::tokenizer::TextTokenizer;

/// A buffer handed to the caller; give it back with `hf_bytes_free`.
#[repr(C)]
pub struct HfBytes {
    data: *mut u8,
    len: usize,
}

/// Token ids handed to the caller; give them back with `hf_ids_free`.
#[repr(C)]
pub struct HfIds {
    data: *mut u32,
    len: usize,
}

const OK: i32 = 0;
const FAILED: i32 = 1;

/// # Safety
/// `data` must point to `len` readable bytes, or be null with `len` 0.
unsafe fn bytes<'a>(data: *const u8, len: usize) -> &'a [u8] {
    if data.is_null() || len == 0 {
        return &[];
    }
    std::slice::from_raw_parts(data, len)
}

unsafe fn text<'a>(data: *const u8, len: usize) -> Result<&'a str, String> {
    std::str::from_utf8(bytes(data, len))
        .map_err(|e| format!("the text is not UTF-8 from byte {} on", e.valid_up_to()))
}

fn give_bytes(text: String, out: *mut HfBytes) {
    let boxed = text.into_bytes().into_boxed_slice();
    let len = boxed.len();
    let data = Box::into_raw(boxed) as *mut u8;
    // SAFETY: the caller passes a valid place for the result.
    unsafe { out.write(HfBytes { data, len }) };
}

pub fn panic_message(payload: Box<dyn std::any::Any + Send>) -> String {
    let text = payload
        .downcast_ref::<&str>()
        .map(|s| s.to_string())
        .or_else(|| payload.downcast_ref::<String>().cloned());
    format!("internal failure: {}", text.unwrap_or_else(|| "no message".into()))
}

/// Runs one call: a returned error or a panic becomes the message in `error`.
fn guarded(error: *mut HfBytes, call: impl FnOnce() -> Result<(), String>) -> i32 {
    static QUIET: Once = Once::new();
    // A library does not print; the panic's text reaches the caller as an error.
    QUIET.call_once(|| std::panic::set_hook(Box::new(|_| {})));
    let outcome = catch_unwind(AssertUnwindSafe(call)).unwrap_or_else(|p| Err(panic_message(p)));
    match outcome {
        Ok(()) => OK,
        Err(message) => {
            give_bytes(message, error);
            FAILED
        }
    }
}

/// # Safety
/// All pointers must be valid; `out` receives the tokenizer, to be freed by `hf_tokenizer_free`.
#[no_mangle]
pub unsafe extern "C" fn hf_tokenizer_new(
    json: *const u8,
    json_len: usize,
    added_tokens: *const u8,
    added_tokens_len: usize,
    out: *mut *mut TextTokenizer,
    error: *mut HfBytes,
) -> i32 {
    guarded(error, || {
        let made = TextTokenizer::new(bytes(json, json_len), bytes(added_tokens, added_tokens_len))?;
        out.write(Box::into_raw(Box::new(made)));
        Ok(())
    })
}

/// # Safety
/// `tokenizer` must come from `hf_tokenizer_new`; it may be shared between threads.
#[no_mangle]
pub unsafe extern "C" fn hf_tokenizer_encode(
    tokenizer: *const TextTokenizer,
    data: *const u8,
    len: usize,
    add_special_tokens: bool,
    out: *mut HfIds,
    error: *mut HfBytes,
) -> i32 {
    guarded(error, || {
        let ids = (*tokenizer).encode(text(data, len)?, add_special_tokens)?;
        let boxed = ids.into_boxed_slice();
        let len = boxed.len();
        out.write(HfIds { data: Box::into_raw(boxed) as *mut u32, len });
        Ok(())
    })
}

/// # Safety
/// As for `hf_tokenizer_encode`; `ids` points to `len` ids.
#[no_mangle]
pub unsafe extern "C" fn hf_tokenizer_decode(
    tokenizer: *const TextTokenizer,
    ids: *const u32,
    len: usize,
    skip_special_tokens: bool,
    out: *mut HfBytes,
    error: *mut HfBytes,
) -> i32 {
    guarded(error, || {
        let ids = if len == 0 { &[] } else { std::slice::from_raw_parts(ids, len) };
        give_bytes((*tokenizer).decode(ids, skip_special_tokens)?, out);
        Ok(())
    })
}

/// # Safety
/// As for `hf_tokenizer_encode`. `out` is -1 when the vocabulary has no such token.
#[no_mangle]
pub unsafe extern "C" fn hf_tokenizer_token_id(
    tokenizer: *const TextTokenizer,
    data: *const u8,
    len: usize,
    out: *mut i64,
    error: *mut HfBytes,
) -> i32 {
    guarded(error, || {
        out.write((*tokenizer).token_id(text(data, len)?).map_or(-1, i64::from));
        Ok(())
    })
}

/// # Safety
/// `out` receives the template, to be freed by `hf_chat_free`.
#[no_mangle]
pub unsafe extern "C" fn hf_chat_new(
    source: *const u8,
    len: usize,
    out: *mut *mut ChatTemplate,
    error: *mut HfBytes,
) -> i32 {
    guarded(error, || {
        let made = ChatTemplate::new(text(source, len)?)?;
        out.write(Box::into_raw(Box::new(made)));
        Ok(())
    })
}

/// # Safety
/// `chat` must come from `hf_chat_new`; `variables` is the JSON text of one object.
#[no_mangle]
pub unsafe extern "C" fn hf_chat_render(
    chat: *const ChatTemplate,
    variables: *const u8,
    len: usize,
    out: *mut HfBytes,
    error: *mut HfBytes,
) -> i32 {
    guarded(error, || {
        give_bytes((*chat).render(text(variables, len)?)?, out);
        Ok(())
    })
}

/// # Safety
/// Null, or from `hf_tokenizer_new` and not freed before.
#[no_mangle]
pub unsafe extern "C" fn hf_tokenizer_free(tokenizer: *mut TextTokenizer) {
    if !tokenizer.is_null() {
        let _ = catch_unwind(AssertUnwindSafe(|| drop(Box::from_raw(tokenizer))));
    }
}

/// # Safety
/// Null, or from `hf_chat_new` and not freed before.
#[no_mangle]
pub unsafe extern "C" fn hf_chat_free(chat: *mut ChatTemplate) {
    if !chat.is_null() {
        let _ = catch_unwind(AssertUnwindSafe(|| drop(Box::from_raw(chat))));
    }
}

/// # Safety
/// As filled in by this crate and not freed before.
#[no_mangle]
pub unsafe extern "C" fn hf_bytes_free(bytes: HfBytes) {
    if !bytes.data.is_null() {
        drop(Box::from_raw(std::ptr::slice_from_raw_parts_mut(bytes.data, bytes.len)));
    }
}

/// # Safety
/// As filled in by this crate and not freed before.
#[no_mangle]
pub unsafe extern "C" fn hf_ids_free(ids: HfIds) {
    if !ids.data.is_null() {
        drop(Box::from_raw(std::ptr::slice_from_raw_parts_mut(ids.data, ids.len)));
    }
}
