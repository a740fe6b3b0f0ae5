//! Steps of suspects that wait for the leader's word before they begin: an appliance whose former owner died may be what
//! killed it, and the leader has to know what was begun when the next one dies.
//!
//! Each waits for [`PATIENCE`] and is then given up as if the gate had been shut, so that probes go on and nothing waits
//! for a leader that is away. They take the room of running steps, so that they can run as soon as they may.

use std::collections::BTreeSet;
use std::time::Duration;

use common::{ApplianceId, Timestamp};

/// How long an announced step waits. An answer takes a round trip; longer would keep the probes of the appliance waiting.
pub(super) const PATIENCE: Duration = Duration::from_secs(1);

/// An announced step: until when it waits, its number, its appliance.
pub(super) type AnnouncedDeadline = (Timestamp, u64, ApplianceId);

#[derive(Debug, Default)]
pub(super) struct Announced(BTreeSet<AnnouncedDeadline>);

impl Announced {
    pub(super) fn insert(&mut self, waiting: AnnouncedDeadline) {
        self.0.insert(waiting);
    }

    pub(super) fn remove(&mut self, waiting: &AnnouncedDeadline) {
        self.0.remove(waiting);
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// When the first one is to be given up.
    pub(super) fn next(&self) -> Option<Timestamp> {
        self.0.first().map(|(until, ..)| *until)
    }

    /// Takes out one that has waited for long enough.
    pub(super) fn pop_due(&mut self, now: Timestamp) -> Option<AnnouncedDeadline> {
        (self.next()? <= now).then(|| self.0.pop_first()).flatten()
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}
