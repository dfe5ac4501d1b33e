//! A memory budget for one thread, so that a hostile chat template cannot exhaust the machine.
//!
//! minijinja bounds instructions (fuel) but not bytes: doubling a string forty times takes a few
//! hundred instructions. An allocator may neither unwind nor, without an abort, fail; but it may
//! stop. So a thread that overdraws its budget raises a flag and parks for good, and
//! whoever waits for it reports the error. What leaks is bounded by the budget.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicBool, Ordering};

const UNLIMITED: isize = isize::MIN;

thread_local! {
    static REMAINING_BYTES: Cell<isize> = const { Cell::new(UNLIMITED) };
    static OVERDRAWN: Cell<Option<&'static AtomicBool>> = const { Cell::new(None) };
}

/// Limits what the current thread may hold from now on; `overdrawn` is raised beyond it.
pub fn limit_this_thread(bytes: isize, overdrawn: &'static AtomicBool) {
    OVERDRAWN.with(|flag| flag.set(Some(overdrawn)));
    REMAINING_BYTES.with(|remaining| remaining.set(bytes));
}

/// Lifts the limit again.
pub fn unlimit_this_thread() {
    REMAINING_BYTES.with(|remaining| remaining.set(UNLIMITED));
}

fn charge(bytes: isize) {
    // A thread that is going away has no counters any more, and nothing to limit.
    let over = REMAINING_BYTES.try_with(|remaining| {
        let left = remaining.get();
        if left == UNLIMITED {
            return false;
        }
        remaining.set(left.saturating_sub(bytes).max(UNLIMITED + 1));
        bytes > 0 && left < bytes
    });
    if over == Ok(true) {
        if let Ok(Some(flag)) = OVERDRAWN.try_with(Cell::get) {
            flag.store(true, Ordering::Release);
        }
        loop {
            std::thread::park();
        }
    }
}

pub struct BudgetAllocator;

// SAFETY: every request goes to the system allocator unchanged, or never returns.
unsafe impl GlobalAlloc for BudgetAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        charge(layout.size() as isize);
        System.alloc(layout)
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        charge(layout.size() as isize);
        System.alloc_zeroed(layout)
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        charge(-(layout.size() as isize));
        System.dealloc(pointer, layout)
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        charge(new_size as isize - layout.size() as isize);
        System.realloc(pointer, layout, new_size)
    }
}
