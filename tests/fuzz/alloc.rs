//! An allocator that counts what a thread has, so that a parse that takes memory by an attacker's number is found.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

/// More than this at once is not even tried: the process ends, and says for which input.
const FAR_TOO_MUCH: usize = 1 << 30;

#[global_allocator]
static COUNTING: Counting = Counting;

struct Counting;

thread_local! {
    /// Bytes that this thread has taken and not given back since `measure` began; none outside of it.
    static NOW: Cell<Option<isize>> = const { Cell::new(None) };
    static MOST: Cell<isize> = const { Cell::new(0) };
}

fn count(change: isize) {
    // A thread that ends has no counter any more.
    let _ = NOW.try_with(|now| {
        if let Some(before) = now.get() {
            let after = before.saturating_add(change);
            now.set(Some(after));
            MOST.with(|most| most.set(most.get().max(after)));
        }
    });
}

fn check(size: usize) {
    if size > FAR_TOO_MUCH && NOW.try_with(|now| now.take().is_some()).unwrap_or(false) {
        super::engine::give_up(&format!("asks for {size} bytes at once"));
    }
}

fn signed(size: usize) -> isize {
    isize::try_from(size).unwrap_or(isize::MAX)
}

#[expect(unsafe_code, reason = "a global allocator is unsafe to write")]
// SAFETY: every call is handed to the system's allocator as it came; counting takes no memory.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        check(layout.size());
        count(signed(layout.size()));
        // SAFETY: the caller's promises are those that are asked for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        count(-signed(layout.size()));
        // SAFETY: the caller's promises are those that are asked for.
        unsafe { System.dealloc(place, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        check(layout.size());
        count(signed(layout.size()));
        // SAFETY: the caller's promises are those that are asked for.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, place: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        check(size);
        count(signed(size) - signed(layout.size()));
        // SAFETY: the caller's promises are those that are asked for.
        unsafe { System.realloc(place, layout, size) }
    }
}

/// Runs `act` and tells the most bytes that it had at any time.
pub(crate) fn measure<T>(act: impl FnOnce() -> T) -> (T, usize) {
    MOST.with(|most| most.set(0));
    NOW.with(|now| now.set(Some(0)));
    let result = act();
    NOW.with(|now| now.set(None));
    (result, usize::try_from(MOST.with(Cell::get)).unwrap_or(0))
}

#[test]
fn what_is_taken_is_counted_and_what_is_given_back_is_not() {
    let ((), most) = measure(|| drop(vec![0_u8; 100_000]));
    assert!((100_000..101_000).contains(&most), "{most}");
    let ((), most) = measure(|| (0..100).for_each(|_| drop(vec![1_u8; 1000])));
    assert!((1000..3000).contains(&most), "{most}");
}
