//! How much of everything there is, kept up to date with each change so that asking costs nothing.

use std::collections::{BTreeMap, HashMap};

use common::WorkerId;
use common::driver::DriverName;
use common::kind::KindName;
use common::status::Phase;

use crate::views::CatalogEntry;

/// Appliances by phase.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PhaseCounts([u64; Phase::ALL.len()]);

impl PhaseCounts {
    /// Appliances in all phases.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }

    /// Phases that appliances are in, and how many.
    pub fn iter(&self) -> impl Iterator<Item = (Phase, u64)> + '_ {
        Phase::ALL.into_iter().zip(self.0).filter(|(_, n)| *n > 0)
    }

    /// Appliances in one phase.
    #[must_use]
    pub const fn get(&self, phase: Phase) -> u64 {
        self.0[phase as usize]
    }

    fn slot(&mut self, phase: Phase) -> &mut u64 {
        // `Phase::ALL` is in the order of the declaration.
        &mut self.0[phase as usize]
    }
}

/// Appliances by phase, by driver and kind, by state of the hand-off machine, and by worker.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    phases: PhaseCounts,
    sorts: BTreeMap<DriverName, BTreeMap<KindName, PhaseCounts>>,
    saturated: u64,
    states: BTreeMap<&'static str, u64>,
    workers: HashMap<WorkerId, PhaseCounts>,
}

impl Counts {
    /// By phase.
    #[must_use]
    pub const fn phases(&self) -> &PhaseCounts {
        &self.phases
    }

    /// Each driver and kind that there is an appliance of, and those by phase.
    pub fn sorts(&self) -> impl Iterator<Item = (&DriverName, KindName, &PhaseCounts)> {
        self.sorts.iter().flat_map(|(driver, kinds)| kinds.iter().map(move |(kind, phases)| (driver, *kind, phases)))
    }

    /// Those with an instance that has all the connections it may have.
    #[must_use]
    pub const fn saturated(&self) -> u64 {
        self.saturated
    }

    /// By state of the hand-off machine.
    #[must_use]
    pub const fn states(&self) -> &BTreeMap<&'static str, u64> {
        &self.states
    }

    /// What a worker holds, by phase.
    #[must_use]
    pub fn of(&self, worker: &WorkerId) -> PhaseCounts {
        self.workers.get(worker).copied().unwrap_or_default()
    }

    pub(super) fn add(&mut self, entry: &CatalogEntry) {
        let phase = entry.phase();
        *self.phases.slot(phase) += 1;
        let (driver, kind) = sort(entry);
        match self.sorts.get_mut(driver) {
            Some(kinds) => *kinds.entry(kind).or_default().slot(phase) += 1,
            None => *self.sorts.entry(driver.clone()).or_default().entry(kind).or_default().slot(phase) += 1,
        }
        self.saturated += u64::from(entry.is_saturated());
        *self.states.entry(entry.assignment.state).or_default() += 1;
        if let Some(worker) = &entry.assignment.worker {
            match self.workers.get_mut(worker) {
                Some(counts) => *counts.slot(phase) += 1,
                None => *self.workers.entry(worker.clone()).or_default().slot(phase) += 1,
            }
        }
    }

    pub(super) fn take(&mut self, entry: &CatalogEntry) {
        let phase = entry.phase();
        *self.phases.slot(phase) -= 1;
        let (driver, kind) = sort(entry);
        if let Some(kinds) = self.sorts.get_mut(driver)
            && let Some(phases) = kinds.get_mut(&kind)
        {
            *phases.slot(phase) -= 1;
            if phases.total() == 0 {
                kinds.remove(&kind);
            }
            if kinds.is_empty() {
                self.sorts.remove(driver);
            }
        }
        self.saturated -= u64::from(entry.is_saturated());
        if let Some(count) = self.states.get_mut(entry.assignment.state) {
            *count -= 1;
            if *count == 0 {
                self.states.remove(entry.assignment.state);
            }
        }
        if let Some(worker) = &entry.assignment.worker
            && let Some(counts) = self.workers.get_mut(worker)
        {
            *counts.slot(phase) -= 1;
            if counts.total() == 0 {
                self.workers.remove(worker);
            }
        }
    }
}

/// What runs it, and what it is.
fn sort(entry: &CatalogEntry) -> (&DriverName, KindName) {
    (&entry.record.driver, entry.record.spec.kind.kind_name())
}
