//! Which instances run: by their records, by what their shims have noted, and by the processes themselves.

use std::path::Path;
use std::time::Duration;

use common::ApplianceId;
use common::status::InstanceEnd;
use shim::processes::ProcessId;
use shim::state::End;
use tracing::warn;
use worker_core::instance::{BootState, Instance, Observation};

use super::record::{Folder, FolderKey, InstanceRecord, Management, RecordState, RecordedInstance};
use super::shims::end_cause;
use super::system::{self, Marked, ProcessStamp, Tree};
use super::{Inner, cgroups, launch, name_of, poll_until, record};
use crate::drivers::Error;

/// How long an instance that somebody else started may take to open its management address before it is shown without.
const ADOPTED_MANAGEMENT_WAIT: Duration = Duration::from_secs(1);
/// How long a shim that somebody else started may take to start its instance.
const ADOPTED_START_WAIT: Duration = Duration::from_secs(2);
/// How long a shim may take to note how its instance ended.
const END_WAIT: Duration = Duration::from_secs(1);

/// Instances that were started from this state directory, which need not be there any more: by their environment, or by that of
/// their shims where they run as other users.
pub(crate) fn running_from(state_dir: &Path) -> Vec<(ApplianceId, Instance)> {
    let marked = system::marked_or_shimmed(state_dir);
    let instance = |marked: &Marked| {
        let (appliance, instance) = described(marked)?;
        Some((appliance, instance.running_as(&marked.identity, BootState::Unknown, Management::default())))
    };
    marked.iter().filter_map(instance).collect()
}

impl Inner {
    /// The process of a record, if it runs now. Scans only when the record does not know.
    pub(super) fn resolve(
        &self,
        appliance: ApplianceId,
        record: &InstanceRecord,
    ) -> Result<Option<ProcessStamp>, Error> {
        match &record.state {
            RecordState::Running(identity) => Ok(system::is_alive(identity).then(|| identity.clone())),
            RecordState::Ended => Ok(None),
            RecordState::Starting => self.find_starting(appliance, &record.instance),
        }
    }

    /// The main process of an instance whose start nobody has recorded. A shim that is about to start it is waited for.
    fn find_starting(
        &self,
        appliance: ApplianceId,
        instance: &RecordedInstance,
    ) -> Result<Option<ProcessStamp>, Error> {
        let folder = self.folder_of(appliance, instance.ordinal, instance.attempt);
        let name = name_of(appliance, instance);
        let noted = || folder.shim_state(&name).map(|state| state.main);
        let main = || noted().or_else(|| self.scan(&name).and_then(|found| found.identity.id()));
        let alive = |id: Option<ProcessId>| Ok(id.filter(|id| id.is_alive()).map(ProcessStamp::of));
        if let Some(main) = main() {
            return alive(Some(main));
        }
        let Some(shim) = system::find_shim(&name, &self.config.state_dir) else { return alive(main()) };
        let decided = poll_until(ADOPTED_START_WAIT, || noted().is_some() || !shim.is_alive());
        if decided {
            alive(main())
        } else {
            Err(Error::Failed(format!("instance {} is being started", instance.ordinal)))
        }
    }

    pub(super) fn scan(&self, name: &str) -> Option<Marked> {
        let matches = |m: &Marked| m.variables.get(system::INSTANCE_VARIABLE).is_some_and(|v| v == name);
        system::marked(&self.config.state_dir).into_iter().find(matches)
    }

    pub(super) fn observe(&self, appliance: ApplianceId) -> Result<Observation, Error> {
        self.check_in_place()?;
        let mut found = Observation::default();
        for key in record::folders(self.instances.path(), appliance)? {
            let folder = self.folder(appliance, key);
            let Some(record) = folder.read()? else { continue };
            // A damaged record has attempt 0: whatever runs at its ordinal is meant.
            let record = if record.instance.attempt == 0 { self.recover(appliance, key, record) } else { record };
            found.attempts.push((record.instance.ordinal, record.instance.attempt));
            if let Some(identity) = self.resolve(appliance, &record)? {
                found.running.push(running(&folder, &record, &identity));
            }
        }
        Ok(found)
    }

    /// What a damaged record must have said, from the process itself.
    fn recover(&self, appliance: ApplianceId, key: FolderKey, record: InstanceRecord) -> InstanceRecord {
        let aside = |attempt| self.folder(appliance, FolderKey { aside: Some(attempt), ..key });
        let meant = |instance: &RecordedInstance| match key.aside {
            Some(attempt) => instance.attempt == attempt,
            None => !aside(instance.attempt).exists(),
        };
        let found = system::marked(&self.config.state_dir).into_iter().find_map(|marked| {
            described(&marked).filter(|(id, i)| *id == appliance && i.ordinal == key.ordinal && meant(i))
        });
        match found {
            Some((_, instance)) => InstanceRecord { instance, ..record },
            None => record,
        }
    }

    pub(super) fn list(&self) -> Result<Vec<(ApplianceId, Instance)>, Error> {
        let mut found = Vec::new();
        for appliance in record::appliances(self.instances.path())? {
            match self.observe(appliance) {
                Ok(observed) => {
                    found.extend(observed.running.into_iter().map(|instance| (appliance, instance)));
                }
                // It hides no other one; what runs of it is found below.
                Err(error) => warn!(%appliance, "its records cannot be read: {error}"),
            }
        }
        // Processes without a record that says so: their folder was removed, or was never written.
        for marked in system::marked(&self.config.state_dir) {
            if let Some((appliance, instance)) = described(&marked)
                && !found.iter().any(|(id, known)| {
                    (*id, known.ordinal, known.attempt) == (appliance, instance.ordinal, instance.attempt)
                })
            {
                let management = self.folder_of(appliance, instance.ordinal, instance.attempt).management();
                found.push((appliance, instance.running_as(&marked.identity, BootState::Unknown, management)));
            }
        }
        Ok(found)
    }

    /// The shim of an instance, if it runs: as it has noted itself, or else by its environment.
    pub(super) fn shim_of(&self, folder: &Folder, name: &str) -> Option<ProcessId> {
        match folder.shim_state(name) {
            Some(state) => Some(state.shim).filter(|shim| shim.is_alive()),
            None => system::find_shim(name, &self.config.state_dir),
        }
    }

    /// Everything that runs of one attempt at an ordinal, and its leader if that is known.
    pub(super) fn tree(
        &self,
        appliance: ApplianceId,
        ordinal: u16,
        attempt: u32,
    ) -> Result<(Option<ProcessStamp>, Tree), Error> {
        let folder = self.folder_of(appliance, ordinal, attempt);
        let name = Instance::name(appliance, ordinal, attempt);
        let recorded =
            folder.read()?.filter(|record| record.instance.attempt == attempt).and_then(|record| match record.state {
                RecordState::Running(identity) => Some(identity),
                RecordState::Starting | RecordState::Ended => None,
            });
        // Without a record only the instance itself tells; a pid that somebody remembers proves nothing.
        let noted = || folder.shim_state(&name).map(|state| ProcessStamp::of(state.main));
        let leader = recorded.or_else(noted).or_else(|| self.scan(&name).map(|marked| marked.identity));
        let mut tree = Tree::of(self.shim_of(&folder, &name), leader.as_ref(), &name, &self.config.state_dir);
        if let Some(group) = folder.shim_state(&name).and_then(|state| state.cgroup) {
            tree.add(cgroups::processes(&group));
        }
        Ok((leader, tree))
    }

    /// How an instance that does not run any more ended, if its shim has noted that. Waits a moment for it.
    pub(super) fn end_of(&self, appliance: ApplianceId, ordinal: u16, attempt: u32) -> Option<InstanceEnd> {
        let folder = self.folder_of(appliance, ordinal, attempt);
        let name = Instance::name(appliance, ordinal, attempt);
        let mut end = None;
        poll_until(END_WAIT, || {
            let Some(state) = folder.shim_state(&name) else { return true };
            // Looked at before the file is read once more: what it has noted last is in there then.
            let alive = state.shim.is_alive();
            end = folder.shim_state(&name).and_then(|state| state.end);
            end.is_some() || !alive
        });
        end.map(|end| instance_end(name, end))
    }
}

/// What a shim has noted, in the terms of everybody.
fn instance_end(instance: String, end: End) -> InstanceEnd {
    let End { cause, at_unix_ms, out_of_memory, last_lines } = end;
    InstanceEnd { instance, at_unix_ms, cause: end_cause(cause), out_of_memory, last_lines }.bounded()
}

/// The instance as it runs now. One that was made a moment ago by another worker gets the time to say where it serves
/// its REST contract.
pub(super) fn running(folder: &Folder, record: &InstanceRecord, identity: &ProcessStamp) -> Instance {
    let mut management = folder.management();
    if management.address.is_none() && record.serves_management {
        poll_until(ADOPTED_MANAGEMENT_WAIT, || {
            management = folder.management();
            management.address.is_some() || !system::is_alive(identity)
        });
    }
    let hands_over = record.serves_management && management.hands_over;
    Instance { hands_over, ..record.running_as(folder, identity, management) }
}

/// The instance a process says it is.
fn described(marked: &Marked) -> Option<(ApplianceId, RecordedInstance)> {
    let variable = |name: &str| marked.variables.get(name);
    let mut parts = variable(system::INSTANCE_VARIABLE)?.rsplitn(3, '-');
    let attempt = parts.next()?.parse().ok()?;
    let ordinal = parts.next()?.parse().ok()?;
    let appliance = parts.next()?.parse().ok()?;
    let instance = RecordedInstance {
        ordinal,
        attempt,
        boot_digest: variable(launch::DIGEST_VARIABLE).cloned().unwrap_or_default(),
        started_at_unix_ms: system::started_at_unix_ms(&marked.identity),
        address: variable(launch::ADDRESS_VARIABLE).and_then(|address| address.parse().ok()),
    };
    Some((appliance, instance))
}
