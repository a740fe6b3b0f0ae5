//! How many connections a listener may have, and how often it has had them all.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::api::{Config, DEFAULT_MAX_CONNECTIONS};
use super::balancer::Invalid;

/// For how long after it had its last free slot again a listener is still shown as saturated. As long as the usual time
/// between two probes, so that one of them sees it.
const SHOWN: Duration = Duration::from_secs(60);

/// The slots of one listener.
#[derive(Debug)]
pub(super) struct Slots {
    start: Instant,
    most: AtomicUsize,
    open: AtomicUsize,
    /// Times the last free one was taken.
    filled: AtomicU64,
    /// Milliseconds from `start` to when all were taken last, and 1; 0 when they never were.
    full_ms: AtomicU64,
    freed: Notify,
}

/// A slot that is taken; given back when dropped.
#[derive(Debug)]
pub(super) struct Slot(Arc<Slots>);

impl Slots {
    pub(super) fn new(most: u32) -> Self {
        Self {
            start: Instant::now(),
            most: AtomicUsize::new(most as usize),
            open: AtomicUsize::new(0),
            filled: AtomicU64::new(0),
            full_ms: AtomicU64::new(0),
            freed: Notify::new(),
        }
    }

    /// Allows another number from now on. Connections beyond it go on.
    pub(super) fn resize(&self, most: u32) {
        self.most.store(most as usize, Ordering::Relaxed);
        self.freed.notify_one();
    }

    pub(super) fn most(&self) -> usize {
        self.most.load(Ordering::Relaxed)
    }

    /// How often all were taken.
    pub(super) fn filled(&self) -> u64 {
        self.filled.load(Ordering::Relaxed)
    }

    fn is_full(&self) -> bool {
        self.open.load(Ordering::Relaxed) >= self.most()
    }

    /// Whether all are taken, or were a moment ago.
    pub(super) fn is_saturated(&self) -> bool {
        let last = self.full_ms.load(Ordering::Relaxed).checked_sub(1).map(Duration::from_millis);
        self.is_full() || last.is_some_and(|last| self.start.elapsed() < last + SHOWN)
    }

    /// Waits until one is free. For one task, the one that then calls [`Slots::take`].
    pub(super) async fn free(&self) {
        while self.is_full() {
            self.freed.notified().await;
        }
    }

    /// Takes one.
    pub(super) fn take(self: &Arc<Self>) -> Slot {
        let open = self.open.fetch_add(1, Ordering::Relaxed) + 1;
        if open == self.most() {
            self.filled.fetch_add(1, Ordering::Relaxed);
        }
        self.note_full(open);
        Slot(Arc::clone(self))
    }

    fn note_full(&self, open: usize) {
        if open >= self.most() {
            let ms = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX - 1);
            self.full_ms.store(ms.saturating_add(1), Ordering::Relaxed);
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let open = self.0.open.fetch_sub(1, Ordering::Relaxed);
        self.0.note_full(open);
        self.0.freed.notify_one();
    }
}

/// How many connections each listener of a configuration may have, of `capacity` in all: as many as it asks for, and where it
/// does not, the usual number or an equal share of what the others leave.
///
/// # Errors
/// [`Invalid`] names the first listener that asks for more than there is left, so that no listener takes another one's.
pub(super) fn shares(config: &Config, capacity: u32) -> Result<Vec<u32>, Invalid> {
    let limits = || config.listeners.iter().map(|listener| listener.limits.max_connections);
    // One for each that does not ask for any.
    let silent = u32::try_from(limits().filter(Option::is_none).count()).unwrap_or(u32::MAX);
    let Some(mut left) = capacity.checked_sub(silent) else {
        let description = format!("{silent} are more than the {capacity} connections that this appliance can have");
        return Err(Invalid { field: "listeners".into(), description });
    };
    for (index, asked) in limits().enumerate() {
        let asked = asked.unwrap_or(0);
        left = left.checked_sub(asked).ok_or_else(|| Invalid {
            field: format!("listeners[{index}].limits.max_connections"),
            description: format!(
                "{asked} are more than the {left} that are left of the {capacity} connections that this appliance can have"
            ),
        })?;
    }
    let share = (left / silent.max(1)).saturating_add(1).min(DEFAULT_MAX_CONNECTIONS);
    Ok(limits().map(|asked| asked.unwrap_or(share)).collect())
}

#[cfg(test)]
mod tests {
    use super::super::api::{Limits, Listener};
    use super::*;

    fn config(limits: &[Option<u32>]) -> Config {
        let listener = |(n, limit): (usize, &Option<u32>)| Listener {
            name: n.to_string(),
            address: [127, 0, 0, 1].into(),
            port: 80,
            members: vec![],
            health_check: Default::default(),
            limits: Limits { max_connections: *limit, ..Limits::default() },
            algorithm: Default::default(),
            proxy_protocol: None,
            trust_proxy_from: vec![],
        };
        Config { listeners: limits.iter().enumerate().map(listener).collect(), ..Config::default() }
    }

    #[test]
    fn listeners_never_share_slots() {
        assert_eq!(shares(&config(&[]), 10), Ok(vec![]));
        assert_eq!(shares(&config(&[None]), 100_000), Ok(vec![4096]));
        assert_eq!(shares(&config(&[None, None]), 10), Ok(vec![5, 5]));
        assert_eq!(shares(&config(&[Some(7), None]), 10), Ok(vec![7, 3]));
        assert_eq!(shares(&config(&[Some(6), Some(4)]), 10), Ok(vec![6, 4]));
        let field =
            |limits: &[Option<u32>], capacity| shares(&config(limits), capacity).map_err(|invalid| invalid.field);
        assert_eq!(field(&[Some(6), Some(5)], 10), Err("listeners[1].limits.max_connections".into()));
        assert_eq!(field(&[Some(10), None], 10), Err("listeners[0].limits.max_connections".into()));
        assert_eq!(field(&[None, None], 1), Err("listeners".into()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_listener_is_saturated_while_it_is_full_and_a_minute_more() {
        let slots = Arc::new(Slots::new(2));
        let first = slots.take();
        assert_eq!((slots.is_saturated(), slots.filled()), (false, 0));
        let second = slots.take();
        assert_eq!((slots.is_saturated(), slots.filled()), (true, 1));
        tokio::time::advance(SHOWN * 2).await;
        assert!(slots.is_saturated());
        drop(second);
        tokio::time::advance(SHOWN / 2).await;
        assert!(slots.is_saturated(), "it was full a moment ago");
        tokio::time::advance(SHOWN).await;
        assert!(!slots.is_saturated());
        slots.resize(1);
        assert!(slots.is_saturated());
        drop(first);
        slots.free().await;
    }
}
