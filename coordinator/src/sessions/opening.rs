//! How many streams of a peer may wait for their `Hello` at once.
//!
//! A worker says `Hello` as soon as its stream is open; whoever opens many and says nothing only takes memory.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::budget::PeerKey;

/// Streams of one peer that may wait for `Hello`.
pub const OF_PEER: usize = 16;
/// The same of a peer of this host, where fleets are tried out.
pub const OF_THIS_HOST: usize = 512;

/// Counts streams without `Hello`, by peer.
#[derive(Debug, Default)]
pub struct Openings(Mutex<HashMap<PeerKey, usize>>);

/// A peer has this many streams without `Hello`, which is all it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this peer has {0} sessions without `Hello`, which is all it may have")]
pub struct TooMany(usize);

impl Openings {
    /// Counts one more, until what is returned is dropped.
    ///
    /// # Errors
    /// The peer has `most` already.
    pub fn begin(self: &Arc<Self>, peer: PeerKey, most: usize) -> Result<Opening, TooMany> {
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let of_peer = waiting.get(&peer).copied().unwrap_or_default();
        if of_peer >= most {
            return Err(TooMany(of_peer));
        }
        waiting.insert(Arc::clone(&peer), of_peer + 1);
        Ok(Opening { all: Arc::clone(self), peer })
    }
}

/// A stream without `Hello`.
#[derive(Debug)]
pub struct Opening {
    all: Arc<Openings>,
    peer: PeerKey,
}

impl Drop for Opening {
    fn drop(&mut self) {
        let mut waiting = self.all.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(of_peer) = waiting.get_mut(&self.peer) {
            *of_peer = of_peer.saturating_sub(1);
            if *of_peer == 0 {
                waiting.remove(&self.peer);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_without_hello_are_bounded_for_each_peer() {
        let all = Arc::new(Openings::default());
        let begin = |peer: &str| all.begin(peer.into(), OF_PEER);
        let mut open: Vec<_> = (0..OF_PEER).map(|_| begin("a").expect("free")).collect();
        let refused = begin("a").expect_err("all");
        assert!(refused.to_string().contains("16 sessions without `Hello`"), "{refused}");
        let other = begin("b").expect("of another peer");
        open.pop();
        open.push(begin("a").expect("one came back"));
        drop((open, other));
        assert!(all.0.lock().expect("no panic").is_empty());
    }
}
