//! How much is held at once, of each peer and of all: bytes of what workers say, or watches.
//!
//! Whoever can open a stream can send as fast as the network goes. What is read of a stream is charged to its peer while
//! it is held here, and given back when it is dropped, whatever the reason: the stream ended, the leader has taken it in,
//! or nobody leads.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

/// Whom something is charged to: a certificate's name, a user of this host, or an address.
pub type PeerKey = Arc<str>;

/// What may be held at once.
#[derive(Debug)]
pub struct Budget {
    total: usize,
    per_peer: usize,
    used: Mutex<Used>,
    returned: Notify,
}

#[derive(Debug, Default)]
struct Used {
    total: usize,
    peers: HashMap<PeerKey, usize>,
}

/// The bound is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Exhausted {
    /// By this peer alone.
    #[error("this peer has too much under way")]
    ByPeer,
    /// By all peers together.
    #[error("too much of all peers is under way")]
    ByAll,
}

impl Budget {
    /// At most `total` units, and at most `per_peer` of one peer.
    #[must_use]
    pub fn new(total: usize, per_peer: usize) -> Arc<Self> {
        Arc::new(Self { total, per_peer, used: Mutex::default(), returned: Notify::new() })
    }

    /// Nothing yet, on behalf of `peer`.
    #[must_use]
    pub fn hold(self: &Arc<Self>, peer: PeerKey) -> HeldShare {
        HeldShare { budget: Arc::clone(self), peer, units: 0 }
    }

    fn take(&self, peer: &PeerKey, units: usize) -> Result<(), Exhausted> {
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        let of_peer = used.peers.get(peer).copied().unwrap_or_default();
        if of_peer.saturating_add(units) > self.per_peer {
            return Err(Exhausted::ByPeer);
        }
        if used.total.saturating_add(units) > self.total {
            return Err(Exhausted::ByAll);
        }
        used.total += units;
        *used.peers.entry(Arc::clone(peer)).or_default() += units;
        Ok(())
    }

    fn give_back(&self, peer: &PeerKey, units: usize) {
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        used.total = used.total.saturating_sub(units);
        if let Some(of_peer) = used.peers.get_mut(peer) {
            *of_peer = of_peer.saturating_sub(units);
            if *of_peer == 0 {
                used.peers.remove(peer);
            }
        }
        drop(used);
        self.returned.notify_waiters();
    }
}

/// Units that are held on behalf of a peer; given back when this is dropped.
#[derive(Debug)]
pub struct HeldShare {
    budget: Arc<Budget>,
    peer: PeerKey,
    units: usize,
}

impl HeldShare {
    /// Holds so many more.
    ///
    /// # Errors
    /// [`Exhausted`]; nothing more is held then.
    pub fn grow(&mut self, units: usize) -> Result<(), Exhausted> {
        self.budget.take(&self.peer, units)?;
        self.units += units;
        Ok(())
    }

    /// Holds so many more as soon as others gave back enough.
    ///
    /// # Errors
    /// [`Exhausted`] when they did not within `limit`.
    pub async fn grow_within(&mut self, units: usize, limit: Duration) -> Result<(), Exhausted> {
        let deadline = tokio::time::Instant::now() + limit;
        let budget = Arc::clone(&self.budget);
        loop {
            // Before the look, so that what is given back after it is not missed.
            let returned = budget.returned.notified();
            let Err(exhausted) = self.grow(units) else { return Ok(()) };
            if tokio::time::timeout_at(deadline, returned).await.is_err() {
                return Err(exhausted);
            }
        }
    }
}

impl Drop for HeldShare {
    fn drop(&mut self) {
        self.budget.give_back(&self.peer, self.units);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_peer_does_not_use_up_what_is_for_all_and_everything_is_given_back() {
        let budget = Budget::new(100, 60);
        let (a, b): (PeerKey, PeerKey) = ("a".into(), "b".into());
        let mut one = budget.hold(Arc::clone(&a));
        let mut two = budget.hold(Arc::clone(&a));
        assert_eq!((one.grow(40), two.grow(20), two.grow(1)), (Ok(()), Ok(()), Err(Exhausted::ByPeer)));
        let mut other = budget.hold(b);
        assert_eq!((other.grow(41), other.grow(40)), (Err(Exhausted::ByAll), Ok(())));
        assert_eq!(one.grow(usize::MAX), Err(Exhausted::ByPeer));
        drop((one, two));
        assert_eq!(budget.hold(a).grow(60), Ok(()));
        drop(other);
        let used = budget.used.lock().expect("not poisoned");
        assert_eq!((used.total, used.peers.len()), (0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_goes_on_when_enough_is_given_back() {
        let budget = Budget::new(10, 10);
        let mut first = budget.hold("a".into());
        first.grow(10).expect("nothing else is held");
        let mut second = budget.hold("a".into());
        let limit = Duration::from_secs(5);
        assert_eq!(second.grow_within(1, limit).await, Err(Exhausted::ByPeer));
        let waits = tokio::spawn(async move { second.grow_within(10, limit).await });
        tokio::time::sleep(Duration::from_secs(1)).await;
        drop(first);
        assert_eq!(waits.await.expect("no panic"), Ok(()));
    }
}
