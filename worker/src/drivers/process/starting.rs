//! Starts instances, or finds them running.

use tokio::process::Child;
use worker_core::instance::Instance;

use super::Inner;
use super::cgroups;
use super::fence::{self, HeldLock};
use super::finding::running;
use super::launch::{Launch, Order};
use super::record::{self, Folder, FolderKey, InstanceRecord, Management, RecordState, RecordedInstance};
use super::shims::{self, StartFailure, StartedShim};
use super::system::ProcessStamp;
use crate::drivers::Error;

/// What [`Inner::start`] came to.
pub(super) enum Started {
    /// An instance of that name was running already.
    Found(Instance),
    /// It was started.
    Made(Instance),
}

impl Inner {
    /// Starts an instance under the lock, or finds it. Blocks.
    pub(super) fn start(&self, held: &HeldLock, order: &Order) -> Result<Started, Error> {
        held.check()?;
        self.check_in_place()?;
        let folder = self.folder(order.appliance, FolderKey { ordinal: order.ordinal, aside: None });
        let mut former = folder.read()?;
        if let Some(record) = &former {
            match self.resolve(order.appliance, record)? {
                Some(_) if order.beside == Some(record.instance.attempt) => {
                    let aside = FolderKey { ordinal: order.ordinal, aside: order.beside };
                    folder.put_aside(&self.folder(order.appliance, aside))?;
                    former = None;
                }
                Some(identity) => return self.adopt(held, order, &folder, record, identity).map(Started::Found),
                // What the former one left behind would keep the port of its successor.
                None => {
                    let ended = (record.instance.ordinal, record.instance.attempt);
                    self.end_by_force(held, order.appliance, ended, "sweep")?;
                }
            }
        }
        let predecessor = self.predecessor(held, order, &folder)?;
        let kept_port = former.and_then(|record| record.picked_port);
        let launch = Launch::plan(order, &folder, &self.config, kept_port, predecessor.as_ref())?;
        let cgroup = self.cgroup_for(order)?;
        folder.prepare(launch.user().map(|user| (user.uid, user.gid)))?;
        if let Some(predecessor) = &predecessor {
            folder.inherit_token(predecessor)?;
        }
        if order.recipe.program.has_management() {
            folder.make_secret()?;
        }
        let mut record = InstanceRecord {
            state: RecordState::Starting,
            instance: RecordedInstance {
                ordinal: order.ordinal,
                attempt: order.attempt,
                boot_digest: order.boot_digest.clone(),
                started_at_unix_ms: fence::unix_ms(),
                address: launch.address,
            },
            picked_port: launch.picked_port,
            serves_management: order.recipe.program.has_management(),
            notes_answers: true,
        };
        folder.write(&record)?;
        let wanted = shim::order::Order { cgroup, ..launch.order(order, &folder, &self.config) };
        match self.spawn(held, order, &folder, &wanted) {
            Ok(identity) => {
                record.state = RecordState::Running(identity.clone());
                folder.write(&record)?;
                tracing::info!(appliance = %order.appliance, instance = order.instance(), pid = identity.pid, "instance started");
                Ok(Started::Made(record.running_as(&folder, &identity, Management::default())))
            }
            Err(StartFailure::NotStarted(error)) => {
                // No process was made: the record must not send everybody looking for one.
                folder.write(&InstanceRecord { state: RecordState::Ended, ..record })?;
                Err(error)
            }
            Err(StartFailure::Unknown(text)) => Err(Error::Failed(text)),
        }
    }

    /// The folder of the instance whose service is taken over. Any other one that was put aside at the ordinal has ended, or has to:
    /// nobody knows of it any more.
    fn predecessor(&self, held: &HeldLock, order: &Order, place: &Folder) -> Result<Option<Folder>, Error> {
        let mut predecessor = None;
        for key in record::folders(self.instances.path(), order.appliance)? {
            let Some(attempt) = key.aside.filter(|_| key.ordinal == order.ordinal) else { continue };
            let folder = self.folder(order.appliance, key);
            if order.beside == Some(attempt) {
                predecessor = Some(folder);
                continue;
            }
            self.end_by_force(held, order.appliance, (order.ordinal, attempt), "sweep")?;
            folder.remove_aside(place)?;
        }
        Ok(predecessor)
    }

    /// The control group that its shim is to make.
    fn cgroup_for(&self, order: &Order) -> Result<Option<shim::order::Cgroup>, Error> {
        let limits = &order.recipe.execution.limits;
        match &self.cgroups {
            Some(cgroups) => cgroups.order(&order.instance(), limits).map(Some),
            None => cgroups::without(limits).map(|()| None),
        }
    }

    fn spawn(
        &self,
        held: &HeldLock,
        order: &Order,
        folder: &Folder,
        wanted: &shim::order::Order,
    ) -> Result<ProcessStamp, StartFailure> {
        let note = |pid, outcome: &str| held.note("spawn", order.ordinal, order.attempt, pid, outcome);
        held.check().map_err(StartFailure::NotStarted)?;
        note(None, "begun");
        match shims::start(&self.config.shim_binary, folder, &self.config.state_dir, wanted) {
            Ok(StartedShim { child, main }) => {
                note(Some(main.pid), "done");
                reap(child);
                Ok(main)
            }
            Err(failure) => {
                note(None, &failure.text());
                Err(failure)
            }
        }
    }

    /// Takes over what runs at the ordinal, if it is what is wanted.
    fn adopt(
        &self,
        held: &HeldLock,
        order: &Order,
        folder: &Folder,
        record: &InstanceRecord,
        identity: ProcessStamp,
    ) -> Result<Instance, Error> {
        if record.instance.attempt != order.attempt {
            // Ending it is a decision of its own, and not the driver's.
            return Err(Error::Failed(format!(
                "attempt {} still runs at ordinal {} (pid {})",
                record.instance.attempt, order.ordinal, identity.pid
            )));
        }
        let instance = running(folder, record, &identity);
        if record.state == RecordState::Starting {
            let pid = identity.pid;
            folder.write(&InstanceRecord { state: RecordState::Running(identity), ..record.clone() })?;
            held.note("adopt", order.ordinal, order.attempt, Some(pid), "done");
        }
        Ok(instance)
    }
}

/// Waits for a shim in the background, so that it does not stay as a zombie.
fn reap(mut child: Child) {
    // Ends with the shim; nothing waits for it, and when the runtime stops the shim simply goes on.
    tokio::spawn(async move { child.wait().await.map(drop) });
}
