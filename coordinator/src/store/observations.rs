//! Observations that wait to be written: only the latest of each appliance and worker, so that a flood of reports costs
//! as many rows as there are appliances. That also bounds this queue.

use std::collections::BTreeMap;
use std::time::SystemTime;

use common::status::Status;
use common::{ApplianceId, WorkerId};

/// Statuses by appliance.
pub(super) type Statuses = BTreeMap<ApplianceId, (Status, SystemTime)>;
/// Times by worker.
pub(super) type LastSeen = BTreeMap<WorkerId, SystemTime>;

/// The waiting observations.
#[derive(Debug, Default)]
pub(super) struct Observations {
    statuses: Statuses,
    seen: LastSeen,
    /// Key after which the next part starts: parts go round over all appliances, so that none is written repeatedly
    /// while others wait.
    next: Option<ApplianceId>,
}

impl Observations {
    pub(super) fn add_statuses(&mut self, some: impl IntoIterator<Item = (ApplianceId, Status, SystemTime)>) {
        self.statuses.extend(some.into_iter().map(|(id, status, time)| (id, (status, time))));
    }

    pub(super) fn add_seen(&mut self, worker: WorkerId, time: SystemTime) {
        self.seen.insert(worker, time);
    }

    /// Drops the waiting status of an appliance that is being removed.
    pub(super) fn forget(&mut self, appliance: ApplianceId) {
        self.statuses.remove(&appliance);
    }

    /// Takes up to `limit` statuses and all times.
    pub(super) fn take(&mut self, limit: usize) -> (Statuses, LastSeen) {
        let seen = std::mem::take(&mut self.seen);
        if self.statuses.len() <= limit {
            self.next = None;
            return (std::mem::take(&mut self.statuses), seen);
        }
        let from = self.next.filter(|id| self.statuses.range(id..).next().is_some());
        let keys: Vec<_> = match from {
            Some(from) => self.statuses.range(from..).take(limit + 1).map(|(id, _)| *id).collect(),
            None => self.statuses.keys().take(limit + 1).copied().collect(),
        };
        self.next = keys.get(limit).copied();
        let taken = keys.iter().take(limit).filter_map(|id| self.statuses.remove_entry(id)).collect();
        (taken, seen)
    }

    /// Puts back what could not be written, unless a newer value has arrived.
    pub(super) fn put_back(&mut self, statuses: Statuses, seen: LastSeen) {
        for (id, status) in statuses {
            self.statuses.entry(id).or_insert(status);
        }
        for (worker, time) in seen {
            self.seen.entry(worker).or_insert(time);
        }
    }

    pub(super) fn has_any(&self) -> bool {
        !self.statuses.is_empty() || !self.seen.is_empty()
    }

    /// Whether so many wait that the next part should be written at once.
    pub(super) fn has_any_of(&self, count: usize) -> bool {
        self.statuses.len() >= count
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(failed_boots: u32) -> Status {
        Status { failed_boots, ..Status::default() }
    }

    #[test]
    fn only_the_latest_status_of_each_appliance_waits() {
        let mut it = Observations::default();
        let id = ApplianceId::from_u128(1);
        it.add_statuses([(id, status(1), SystemTime::UNIX_EPOCH), (id, status(2), SystemTime::UNIX_EPOCH)]);
        let (old, seen) = it.take(10);
        assert_eq!(old[&id].0, status(2));
        it.add_statuses([(id, status(3), SystemTime::UNIX_EPOCH)]);
        it.put_back(old, seen);
        assert_eq!(it.take(10).0[&id].0, status(3), "what could not be written must not hide what is newer");
    }

    #[test]
    fn parts_are_taken_round_robin() {
        let mut it = Observations::default();
        let ids = |it: &Statuses| it.keys().map(|id| id.uuid().as_u128()).collect::<Vec<_>>();
        let all = |n| (ApplianceId::from_u128(n), status(0), SystemTime::UNIX_EPOCH);
        it.add_statuses((0..5).map(all));
        assert_eq!(ids(&it.take(2).0), [0, 1]);
        it.add_statuses((0..2).map(all));
        assert_eq!(ids(&it.take(2).0), [2, 3]);
        assert_eq!(ids(&it.take(2).0), [4]);
        assert_eq!(ids(&it.take(2).0), [0, 1]);
        assert!(!it.has_any());
    }
}
