//! Traffic counters.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::api::Label;

/// Counters of a listener or of a member. They only grow, except `open`.
#[derive(Debug, Default)]
pub(super) struct TrafficCounters {
    connections: AtomicU64,
    open: AtomicU64,
    failed: AtomicU64,
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
}

impl TrafficCounters {
    /// Counts a connection; it is open for as long as the guard lives.
    pub(super) fn open(self: &Arc<Self>) -> OpenConnection {
        self.connections.fetch_add(1, Ordering::Relaxed);
        self.open.fetch_add(1, Ordering::Relaxed);
        OpenConnection(Arc::clone(self))
    }

    /// Counts a failure.
    pub(super) fn fail(&self) {
        self.failed.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts bytes from the client, or to it.
    pub(super) fn add(&self, from_client: bool, bytes: u64) {
        let counter = if from_client { &self.bytes_in } else { &self.bytes_out };
        counter.fetch_add(bytes, Ordering::Relaxed);
    }

    /// The counters under a name.
    pub(super) fn label(&self, name: String) -> Label {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Label {
            name,
            connections: get(&self.connections),
            open: get(&self.open),
            failed: get(&self.failed),
            bytes_in: get(&self.bytes_in),
            bytes_out: get(&self.bytes_out),
            ..Label::default()
        }
    }
}

/// An open connection, as far as counters are concerned.
#[derive(Debug)]
pub(super) struct OpenConnection(Arc<TrafficCounters>);

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}
