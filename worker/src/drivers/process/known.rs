//! Start times of the processes this driver has met, so that a probe can tell an instance from whoever has its pid now
//! without reading a file of the instance.
//!
//! Kept by pid, which bounds it by the processes a host can have: of two instances that were met under one pid the newer
//! takes the place of the older. Only what was alive when it was met comes in; what is not in here is simply not known.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use common::ApplianceId;
use worker_core::instance::Instance;

use super::system::{self, ProcessStamp};

/// Which instance a process is, and when it was started.
#[derive(Debug)]
struct Encounter {
    appliance: ApplianceId,
    ordinal: u16,
    attempt: u32,
    start_ticks: u64,
}

#[derive(Debug, Default)]
pub(super) struct KnownInstances {
    by_pid: Mutex<HashMap<u32, Encounter>>,
}

impl KnownInstances {
    /// Notes that `identity`, which runs, is this instance.
    pub(super) fn met(&self, appliance: ApplianceId, instance: &Instance, identity: &ProcessStamp) {
        let met = Encounter {
            appliance,
            ordinal: instance.ordinal,
            attempt: instance.attempt,
            start_ticks: identity.start_ticks,
        };
        self.lock().insert(identity.pid, met);
    }

    /// Whether the instance runs; `None` when it was never met.
    pub(super) fn is_alive(&self, appliance: ApplianceId, instance: &Instance) -> Option<bool> {
        let pid = instance.pid?;
        let start_ticks = {
            let by_pid = self.lock();
            let met = by_pid.get(&pid)?;
            let same = (met.appliance, met.ordinal, met.attempt) == (appliance, instance.ordinal, instance.attempt);
            same.then_some(met.start_ticks)?
        };
        Some(system::runs(pid, start_ticks))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u32, Encounter>> {
        // Every change is one insertion, so a panic elsewhere leaves the map whole.
        self.by_pid.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_very_process_that_was_met_is_alive() {
        let known = KnownInstances::default();
        let (id, other) = (ApplianceId::from_u128(1), ApplianceId::from_u128(2));
        let me = system::identify(std::process::id()).expect("this process runs");
        let instance = Instance {
            ordinal: 0,
            attempt: 3,
            boot_digest: String::new(),
            pid: Some(me.pid),
            started_at_unix_ms: 0,
            management: None,
            address: None,
        };
        assert_eq!(known.is_alive(id, &instance), None, "never met");
        known.met(id, &instance, &me);
        assert_eq!(known.is_alive(id, &instance), Some(true));
        assert_eq!(known.is_alive(other, &instance), None);
        assert_eq!(known.is_alive(id, &Instance { attempt: 2, ..instance.clone() }), None);
        assert_eq!(known.is_alive(id, &Instance { pid: None, ..instance.clone() }), None);
        // The pid was given to another process.
        known.met(id, &instance, &ProcessStamp { start_ticks: me.start_ticks - 1, ..me });
        assert_eq!(known.is_alive(id, &instance), Some(false));
    }
}
