//! Counts what a thread allocates. The allocator of every program of this package.

#![expect(unsafe_code, reason = "an allocator cannot be written without")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

/// The system's allocator, with an account for each thread.
#[derive(Debug)]
pub struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

thread_local! {
    static LIVE: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

/// Most bytes that an input of this length may have allocated at a time. The constant part is for what does not depend on it:
/// tables of parsers, messages of errors. An empty entry of a message takes 2 bytes on the wire and some 400 as a value.
#[must_use]
pub const fn allowed(length: usize) -> usize {
    256 * 1024 + 256 * length
}

/// Begins a new account for this thread.
pub fn start() {
    LIVE.set(0);
    PEAK.set(0);
}

/// Most bytes this thread had allocated at a time since [`start`].
#[must_use]
pub fn peak() -> usize {
    usize::try_from(PEAK.get()).unwrap_or(0)
}

fn account(bytes: isize) {
    // A thread that ends frees its own memory after this is gone.
    let _ = LIVE.try_with(|live| {
        let now = live.get().wrapping_add(bytes);
        live.set(now);
        let _ = PEAK.try_with(|peak| peak.set(peak.get().max(now)));
    });
}

const fn signed(bytes: usize) -> isize {
    bytes.cast_signed()
}

// SAFETY: every call goes to the system's allocator as it came; counting allocates nothing, because the cells are constants.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        account(signed(layout.size()));
        // SAFETY: as promised by the caller.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        account(signed(layout.size()));
        // SAFETY: as promised by the caller.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        account(-signed(layout.size()));
        // SAFETY: as promised by the caller.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        account(signed(size) - signed(layout.size()));
        // SAFETY: as promised by the caller.
        unsafe { System.realloc(pointer, layout, size) }
    }
}
