//! Appliances whose instances do not stay up, or do not come up, for whoever looks for what is wrong.
//!
//! Which appliances may be meant is kept up to date with each change, so that a look costs nothing in a cluster without trouble.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use common::ApplianceId;
use common::status::{InstanceStatus, Status};

use crate::views::CatalogEntry;

/// Boots in a row, failed or followed by an early end, from which on an appliance is said to crash in a loop.
const CRASH_LOOP: u32 = 3;
/// How long an instance is given before its start is said to hang.
const HANGING: Duration = Duration::from_secs(60);
/// Most appliances of each sort that are named.
const NAMED: usize = 10;

/// What is wrong with instances.
#[derive(Clone, Debug, Default)]
pub struct Troubles {
    /// Appliances that are started again and again.
    pub crash_loops: u64,
    /// Some of them, those with the most starts in a row first.
    pub worst: Vec<Arc<CatalogEntry>>,
    /// Instances that were started a while ago and have not answered yet.
    pub hanging: u64,
    /// Some of them with their appliance, longest first.
    pub oldest: Vec<(InstanceStatus, Arc<CatalogEntry>)>,
}

/// Appliances that may be in trouble.
#[derive(Debug, Default)]
pub(super) struct Candidates(BTreeSet<ApplianceId>);

impl Candidates {
    pub(super) fn note(&mut self, entry: &CatalogEntry) {
        let status = entry.status.as_ref().map(|(status, _)| status.as_ref());
        if status.is_some_and(|status| crashes(status) || status.instances.iter().any(is_rising)) {
            self.0.insert(entry.record.id);
        } else {
            self.forget(entry.record.id);
        }
    }

    pub(super) fn forget(&mut self, id: ApplianceId) {
        self.0.remove(&id);
    }

    /// What is wrong at `now`.
    pub(super) fn judge<'a>(
        &self,
        find: impl Fn(&ApplianceId) -> Option<&'a Arc<CatalogEntry>>,
        now: SystemTime,
    ) -> Troubles {
        let entries: Vec<_> = self.0.iter().filter_map(find).collect();
        let with_status = || entries.iter().filter_map(|entry| Some((*entry, entry.status.as_ref()?.0.as_ref())));
        let mut looping: Vec<_> = with_status().filter(|(_, status)| crashes(status)).collect();
        looping.sort_by_key(|(entry, status)| (std::cmp::Reverse(status.failed_boots), entry.key()));
        let since = |instance: &InstanceStatus| UNIX_EPOCH + Duration::from_millis(instance.started_at_unix_ms);
        let hangs = |instance: &&InstanceStatus| {
            is_rising(instance) && now.duration_since(since(instance)).is_ok_and(|age| age >= HANGING)
        };
        let mut hanging: Vec<_> = with_status()
            .flat_map(|(entry, status)| status.instances.iter().filter(hangs).map(move |instance| (instance, entry)))
            .collect();
        hanging.sort_by_key(|(instance, entry)| (instance.started_at_unix_ms, entry.key()));
        Troubles {
            crash_loops: looping.len() as u64,
            hanging: hanging.len() as u64,
            worst: looping.into_iter().take(NAMED).map(|(entry, _)| Arc::clone(entry)).collect(),
            oldest: hanging.into_iter().take(NAMED).map(|(i, entry)| (i.clone(), Arc::clone(entry))).collect(),
        }
    }
}

const fn crashes(status: &Status) -> bool {
    status.failed_boots >= CRASH_LOOP
}

/// Whether an instance has not answered a probe since it was started, as far as its owner knows.
fn is_rising(instance: &InstanceStatus) -> bool {
    instance.alive == Some(false) && instance.configured.is_none()
}
