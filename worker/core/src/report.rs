//! Folds what changed into bounded reports.
//!
//! Keeps the newest status per appliance and nothing older: however long the coordinator is away, the queue never holds
//! more than one entry per appliance. Appliances leave in the order in which they first changed, so none waits behind
//! another that changes all the time.

use std::collections::hash_map::Entry as MapEntry;
use std::collections::{HashMap, VecDeque};

use common::ApplianceId;
use common::session::StatusReport;

/// News that were not handed on yet.
#[derive(Clone, Debug, Default)]
pub struct Reports {
    newest: HashMap<ApplianceId, StatusReport>,
    /// Appliances in order of their first change. Names of some that were removed stay behind until they come up, which
    /// spares a search; they are swept once they outnumber the rest.
    order: VecDeque<ApplianceId>,
}

impl Reports {
    /// Adds news. Those of an older token than the one queued are dropped; a check that was answered stays answered, and
    /// what was adopted stays so.
    pub fn push(&mut self, report: StatusReport) {
        match self.newest.entry(report.appliance) {
            MapEntry::Vacant(vacant) => {
                self.order.push_back(report.appliance);
                vacant.insert(report);
            }
            MapEntry::Occupied(mut queued) => {
                let queued = queued.get_mut();
                if report.token == queued.token {
                    queued.status = report.status;
                    queued.would_have = report.would_have;
                    queued.checked = queued.checked.max(report.checked);
                    queued.adopted |= report.adopted;
                } else if report.token > queued.token {
                    *queued = report;
                }
            }
        }
    }

    /// Takes up to `max` entries, oldest change first.
    pub fn take(&mut self, max: usize) -> Vec<StatusReport> {
        let mut taken = Vec::with_capacity(max.min(self.newest.len()));
        while taken.len() < max {
            let Some(appliance) = self.order.pop_front() else { break };
            taken.extend(self.newest.remove(&appliance));
        }
        taken
    }

    /// Puts entries back that could not be handed on; newer news of the same appliance win.
    pub fn restore(&mut self, entries: Vec<StatusReport>) {
        for old in entries.into_iter().rev() {
            match self.newest.entry(old.appliance) {
                MapEntry::Vacant(vacant) => {
                    self.order.push_front(old.appliance);
                    vacant.insert(old);
                }
                MapEntry::Occupied(mut queued) => {
                    let queued = queued.get_mut();
                    if queued.token == old.token {
                        queued.checked = queued.checked.max(old.checked);
                        queued.adopted |= old.adopted;
                    }
                }
            }
        }
    }

    /// Takes out what is queued for one appliance.
    pub fn remove(&mut self, appliance: ApplianceId) -> Option<StatusReport> {
        let entry = self.newest.remove(&appliance)?;
        if self.order.len() > 2 * self.newest.len() + 1_024 {
            self.order.retain(|queued| self.newest.contains_key(queued));
        }
        Some(entry)
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.newest.clear();
        self.order.clear();
    }

    /// Appliances with news.
    #[must_use]
    pub fn len(&self) -> usize {
        self.newest.len()
    }

    /// Whether there are no news.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.newest.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use common::status::{Phase, Status};
    use common::{Term, Token};

    use super::*;

    fn id(n: u128) -> ApplianceId {
        ApplianceId::from_u128(n)
    }

    fn token(n: u64) -> Token {
        Token::new(Term::new(1), n)
    }

    fn report(n: u128, number: u64, phase: Phase, checked: u64) -> StatusReport {
        let status = Status { phase, ..Status::default() };
        StatusReport { appliance: id(n), token: token(number), status, checked, adopted: false, would_have: vec![] }
    }

    #[test]
    fn news_of_one_appliance_are_folded_and_keep_its_place() {
        let mut reports = Reports::default();
        reports.push(report(1, 1, Phase::Booting, 7));
        reports.push(report(2, 1, Phase::Down, 0));
        reports.push(report(1, 1, Phase::Up, 0));
        let first = reports.take(1);
        assert_eq!(first.len(), 1);
        assert_eq!((first[0].appliance, first[0].status.phase, first[0].checked), (id(1), Phase::Up, 7));
        assert_eq!(reports.take(10).len(), 1);
        assert!(reports.is_empty());
    }

    #[test]
    fn what_was_adopted_stays_so_in_later_news_of_the_same_grant() {
        let mut reports = Reports::default();
        reports.push(StatusReport { adopted: true, ..report(1, 1, Phase::Up, 0) });
        reports.push(report(1, 1, Phase::Configured, 0));
        let taken = reports.take(1);
        assert!(taken[0].adopted);
        reports.push(report(1, 1, Phase::Degraded, 0));
        reports.restore(taken);
        assert!(reports.take(1)[0].adopted);
        reports.push(StatusReport { adopted: true, ..report(1, 1, Phase::Up, 0) });
        reports.push(report(1, 2, Phase::Up, 0));
        assert!(!reports.take(1)[0].adopted, "another grant");
    }

    #[test]
    fn news_of_an_older_token_are_dropped() {
        let mut reports = Reports::default();
        reports.push(report(1, 2, Phase::Up, 0));
        reports.push(report(1, 1, Phase::Down, 3));
        let entry = reports.remove(id(1)).expect("it was pushed");
        assert_eq!((entry.status.phase, entry.checked), (Phase::Up, 0));
        reports.push(report(1, 1, Phase::Up, 5));
        reports.push(report(1, 2, Phase::Down, 0));
        assert_eq!(reports.take(1)[0].checked, 0, "a check of another grant is not answered");
    }

    #[test]
    fn restored_entries_come_first_and_yield_to_newer_ones() {
        let mut reports = Reports::default();
        for n in 1..=3 {
            reports.push(report(n, 1, Phase::Booting, 1));
        }
        let taken = reports.take(2);
        reports.push(report(2, 1, Phase::Configured, 0));
        reports.restore(taken);
        let order: Vec<_> = reports.take(9).into_iter().map(|e| (e.appliance, e.status.phase, e.checked)).collect();
        assert_eq!(order, [(id(1), Phase::Booting, 1), (id(3), Phase::Booting, 1), (id(2), Phase::Configured, 1)]);
    }

    #[test]
    fn an_appliance_that_was_removed_and_changed_again_is_reported_once() {
        let mut reports = Reports::default();
        reports.push(report(1, 1, Phase::Up, 0));
        assert!(reports.remove(id(1)).is_some());
        reports.push(report(1, 1, Phase::Down, 0));
        assert_eq!(reports.len(), 1);
        assert_eq!(reports.take(9).len(), 1);
    }
}
