//! Free ports. They are taken from below the range the kernel gives to outgoing connections, so that no connection of
//! another test can take one between the look and its use.

use std::collections::BTreeSet;
use std::net::TcpListener;
use std::sync::{Mutex, PoisonError};

use rand::Rng;

const RANGE: std::ops::Range<u16> = 10_000..30_000;

/// Where what is recorded of an earlier version listens (`tests/data/previous`): nobody else is given these, in this process or in
/// another one, because they have to be free whenever it is started.
pub const RECORDED: std::ops::Range<u16> = 17_800..17_900;

/// Ports given out by this process, so that tests that run at the same time do not get the same.
static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());

/// A port nobody listens at.
#[must_use]
pub fn free() -> u16 {
    free_run(1)
}

/// The first of `count` free ports in a row.
///
/// # Panics
/// When the machine has none left.
#[must_use]
pub fn free_run(count: u16) -> u16 {
    let mut given = GIVEN.lock().unwrap_or_else(PoisonError::into_inner);
    for _ in 0..10_000 {
        let first = rand::rng().random_range(RANGE);
        let is_given = |port: u16| given.contains(&port) || RECORDED.contains(&port);
        let is_free = |port: u16| !is_given(port) && TcpListener::bind(("127.0.0.1", port)).is_ok();
        if (first..first + count).all(is_free) {
            given.extend(first..first + count);
            return first;
        }
    }
    panic!("no {count} free ports in a row");
}
