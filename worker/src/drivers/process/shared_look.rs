//! One look at something for everybody who asks for it meanwhile.
//!
//! A look at all processes costs the same for one instance as for a hundred, and a hundred are ended at a time. Whoever asks gets
//! what was seen by a look that began after the question: as fresh as one of its own.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// Shares looks that yield a `T`.
#[derive(Debug)]
pub(super) struct SharedLook<T> {
    state: Mutex<LookState<T>>,
    ended: Condvar,
}

#[derive(Debug)]
struct LookState<T> {
    /// Looks that were begun.
    begun: u64,
    /// The number of the last look that ended, and what it saw.
    seen: (u64, Option<Arc<T>>),
    /// Somebody looks.
    looking: bool,
}

impl<T> SharedLook<T> {
    pub(super) const fn new() -> Self {
        let state = LookState { begun: 0, seen: (0, None), looking: false };
        Self { state: Mutex::new(state), ended: Condvar::new() }
    }

    /// What a look saw that began after this call. Blocks while another one goes on; then one of those who wait looks for all of them.
    pub(super) fn get(&self, look: impl FnOnce() -> T) -> Arc<T> {
        let mut state = self.lock();
        let needed = state.begun + 1;
        loop {
            if state.seen.0 >= needed
                && let Some(seen) = &state.seen.1
            {
                return Arc::clone(seen);
            }
            if !state.looking {
                break;
            }
            state = self.ended.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.begun += 1;
        state.looking = true;
        let number = state.begun;
        drop(state);
        let looker = Looker(self);
        let seen = Arc::new(look());
        self.lock().seen = (number, Some(Arc::clone(&seen)));
        drop(looker);
        seen
    }

    fn lock(&self) -> MutexGuard<'_, LookState<T>> {
        // Each change is an assignment, so a panic elsewhere leaves the state whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whoever looks: however that ends, others may look then.
struct Looker<'a, T>(&'a SharedLook<T>);

impl<T> Drop for Looker<'_, T> {
    fn drop(&mut self) {
        self.0.lock().looking = false;
        self.0.ended.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    #[test]
    fn who_asks_during_a_look_shares_the_next_one() {
        let (shared, looks) = (SharedLook::new(), AtomicU64::new(0));
        let (go, wait) = mpsc::channel::<()>();
        let (begun, first) = mpsc::channel();
        std::thread::scope(|scope| {
            let (shared, looks) = (&shared, &looks);
            let look = move || looks.fetch_add(1, Ordering::SeqCst) + 1;
            let slow = scope.spawn(move || {
                shared.get(|| {
                    let number = look();
                    begun.send(()).expect("the test goes on");
                    wait.recv_timeout(Duration::from_secs(30)).expect("the test goes on");
                    number
                })
            });
            first.recv_timeout(Duration::from_secs(30)).expect("it looks");
            let others: Vec<_> = (0..8).map(|_| scope.spawn(move || shared.get(look))).collect();
            // However late they ask, none of them gets what the first one saw.
            go.send(()).expect("it waits");
            assert_eq!(*slow.join().expect("no panic"), 1);
            let seen: Vec<u64> = others.into_iter().map(|other| *other.join().expect("no panic")).collect();
            assert!(seen.iter().all(|number| *number > 1), "{seen:?}");
        });
        assert_eq!(*shared.get(|| 100), 100, "nobody looks: a look of its own");
    }

    #[test]
    fn everybody_gets_what_was_seen_after_the_question() {
        let (shared, clock) = (SharedLook::new(), AtomicU64::new(0));
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        let asked = clock.fetch_add(1, Ordering::SeqCst);
                        let began = *shared.get(|| {
                            let began = clock.fetch_add(1, Ordering::SeqCst);
                            std::thread::yield_now();
                            began
                        });
                        assert!(began > asked, "a look that began at {began} answers a question of {asked}");
                    }
                });
            }
        });
    }

    #[test]
    fn a_look_that_panics_keeps_nobody_waiting() {
        let shared = SharedLook::new();
        let failed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| shared.get(|| panic!("on purpose"))));
        assert!(failed.is_err());
        assert_eq!(*shared.get(|| 7), 7);
    }
}
