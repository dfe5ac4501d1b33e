//! Chat templates, rendered as transformers renders them with Jinja2.

use std::collections::BTreeMap;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{channel, Receiver, RecvTimeoutError};
use std::sync::Arc;
use std::time::{Duration, Instant};

use minijinja::{AutoEscape, Environment, Error, ErrorKind, Value};
use minijinja_contrib::globals::{cycler, joiner};
use minijinja_contrib::pycompat::unknown_method_callback;

use crate::abi::panic_message;
use crate::budget;
use crate::python;

const NAME: &str = "chat template";
/// Instructions of one rendering. A message takes a few hundred.
const FUEL: u64 = 5_000_000;
/// Nested values are dropped recursively, and fuel bounds the nesting; pages are used on demand.
const STACK_BYTES: usize = 1 << 30;
const BASE_MEMORY_BYTES: usize = 256 << 20;
/// Parsed messages and a few rendered copies of them, per byte of JSON.
const MEMORY_PER_INPUT_BYTE: usize = 64;
const TIME_LIMIT: Duration = Duration::from_secs(60);

pub struct ChatTemplate {
    environment: Arc<Environment<'static>>,
}

impl ChatTemplate {
    pub fn new(source: &str) -> Result<Self, String> {
        let mut environment = Environment::new();
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        environment.set_fuel(Some(FUEL));
        environment.set_unknown_method_callback(unknown_method_callback);
        environment.set_formatter(python::write_str);
        environment.add_filter("tojson", python::to_json);
        environment.add_filter("string", python::to_str);
        environment.add_filter("trim", python::trim);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", strftime_now);
        environment.add_function("cycler", cycler);
        environment.add_function("joiner", joiner);
        environment
            .add_template_owned(NAME, plain_generation_blocks(source))
            .map_err(describe)?;
        Ok(Self { environment: Arc::new(environment) })
    }

    /// Renders with the variables of one JSON object, within bounds of instructions, memory, time.
    pub fn render(&self, variables: &str) -> Result<String, String> {
        let memory_bytes = BASE_MEMORY_BYTES + MEMORY_PER_INPUT_BYTE * variables.len();
        let variables = variables.to_string();
        let environment = Arc::clone(&self.environment);
        // Leaked only when the thread is abandoned, since that thread may still raise it.
        let overdrawn: *mut AtomicBool = Box::into_raw(Box::new(AtomicBool::new(false)));
        // SAFETY: freed below, and only after the thread has sent its last word.
        let flag: &'static AtomicBool = unsafe { &*overdrawn };
        let (sender, receiver) = channel();
        let worker = move || {
            budget::limit_this_thread(memory_bytes as isize, flag);
            let outcome = catch_unwind(AssertUnwindSafe(|| render(&environment, &variables)));
            drop((environment, variables));
            budget::unlimit_this_thread();
            let _ = sender.send(outcome.unwrap_or_else(|p| Err(panic_message(p))));
        };
        let builder = std::thread::Builder::new().stack_size(STACK_BYTES);
        builder.spawn(worker).map_err(|e| format!("no thread for the template: {e}"))?;
        let outcome = wait(&receiver, flag, memory_bytes)?;
        // SAFETY: the limit was lifted before the result was sent.
        drop(unsafe { Box::from_raw(overdrawn) });
        outcome
    }
}

/// The worker's result, or an error when it was abandoned.
fn wait(
    receiver: &Receiver<Result<String, String>>,
    overdrawn: &AtomicBool,
    memory_bytes: usize,
) -> Result<Result<String, String>, String> {
    let start = Instant::now();
    loop {
        match receiver.recv_timeout(Duration::from_millis(20)) {
            Ok(outcome) => return Ok(outcome),
            Err(RecvTimeoutError::Disconnected) => return Err("rendering stopped early".into()),
            Err(RecvTimeoutError::Timeout) => {}
        }
        if overdrawn.load(Ordering::Acquire) {
            return Err(format!("it needs more than {} MiB of memory", memory_bytes >> 20));
        }
        if start.elapsed() > TIME_LIMIT {
            return Err(format!("it runs for more than {} s", TIME_LIMIT.as_secs()));
        }
    }
}

fn render(environment: &Environment<'static>, variables: &str) -> Result<String, String> {
    let variables: serde_json::Value =
        serde_json::from_str(variables).map_err(|e| format!("variables: {e}"))?;
    let variables: BTreeMap<String, Value> = match variables {
        serde_json::Value::Object(map) => {
            map.into_iter().map(|(name, value)| (name, Value::from_serialize(value))).collect()
        }
        _ => return Err("the variables are not a JSON object".into()),
    };
    let template = environment.get_template(NAME).map_err(describe)?;
    template.render(variables).map_err(describe)
}

/// Message, line and causes of a template error, in one line.
fn describe(error: Error) -> String {
    if error.kind() == ErrorKind::OutOfFuel {
        return format!("it does not end within {FUEL} instructions");
    }
    let mut text = match error.detail() {
        Some(detail) if error.name().is_none() => detail.to_string(),
        Some(detail) => format!("line {}: {detail}", error.line().unwrap_or(0)),
        None => format!("line {}: {}", error.line().unwrap_or(0), error.kind()),
    };
    let mut cause = std::error::Error::source(&error);
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
}

fn raise_exception(message: String) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message))
}

/// `datetime.now().strftime(format)`.
fn strftime_now(format: String) -> Result<String, Error> {
    let failed = |what: &str| Error::new(ErrorKind::InvalidOperation, what.to_string());
    let format = std::ffi::CString::new(format).map_err(|_| failed("strftime_now: NUL byte"))?;
    let mut buffer = vec![0u8; 4096];
    // SAFETY: plain C calls on buffers that outlive them; `broken_down` is filled before its use.
    let length = unsafe {
        let now = libc::time(std::ptr::null_mut());
        let mut broken_down: libc::tm = std::mem::zeroed();
        if libc::localtime_r(&now, &mut broken_down).is_null() {
            return Err(failed("strftime_now: no local time"));
        }
        libc::strftime(buffer.as_mut_ptr().cast(), buffer.len(), format.as_ptr(), &broken_down)
    };
    buffer.truncate(length);
    String::from_utf8(buffer).map_err(|_| failed("strftime_now: not UTF-8"))
}

/// `{% generation %}` marks the assistant's tokens for training. Rendering needs only its scope,
/// which `{% with %}` has too; the dashes stay, so that white space is trimmed the same.
fn plain_generation_blocks(source: &str) -> String {
    let mut result = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let (before, tag) = rest.split_at(start + 2);
        result.push_str(before);
        let Some(end) = tag.find("%}") else {
            rest = tag;
            continue;
        };
        let inner = &tag[..end];
        let word = inner.trim_matches(|c: char| c == '-' || c == '+' || c.is_whitespace());
        match word {
            "generation" => result.push_str(&inner.replacen("generation", "with", 1)),
            "endgeneration" => result.push_str(&inner.replacen("endgeneration", "endwith", 1)),
            _ => {
                rest = tag;
                continue;
            }
        }
        rest = &tag[end..];
    }
    result.push_str(rest);
    result
}
