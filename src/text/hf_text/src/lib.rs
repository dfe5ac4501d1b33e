//! C ABI over the Hugging Face `tokenizers` and `minijinja` crates.
//!
//! Rules of the boundary: every function catches panics; every failure is a message
//! in the `HfBytes` it was given; whatever is handed out is freed by this crate.
//! The matching declarations are in `src/text/hf_text.h`.

mod abi;
mod budget;
mod chat;
mod python;
mod tokenizer;

#[global_allocator]
static ALLOCATOR: budget::BudgetAllocator = budget::BudgetAllocator;
