//! Ends instances, every process of them.
//!
//! The stop signal goes to the shim, which passes it on to all processes of its instance, and ends what is left once the main process has
//! ended. Whatever is there after the stop time-out is killed from here, under the lock of the appliance. Nothing is called gone
//! before the shim is: it is the parent of every orphan, whoever that runs as.

use std::sync::Arc;

use common::ApplianceId;
use rustix::process::Signal;
use shim::order::Stop;
use shim::processes::{self, ProcessId};
use tokio::time::Instant;
use worker_core::instance::Instance;

use super::fence::HeldLock;
use super::record::{FolderKey, InstanceRecord, RecordState};
use super::system::{self, ProcessStamp, Tree};
use super::{Inner, cgroups, off_thread, poll_until};
use crate::drivers::Error;

/// Rounds of killing. Three outrun anything that does not fork for ever, and the shim has to go as well.
const KILL_ROUNDS: usize = 5;

/// One attempt at an ordinal that is to be ended, and the lock under which that happens.
pub(super) struct Ending {
    inner: Arc<Inner>,
    held: Arc<HeldLock>,
    appliance: ApplianceId,
    ordinal: u16,
    attempt: u32,
}

impl Ending {
    pub(super) fn new(inner: Arc<Inner>, held: Arc<HeldLock>, appliance: ApplianceId, instance: &Instance) -> Self {
        Self { inner, held, appliance, ordinal: instance.ordinal, attempt: instance.attempt }
    }

    /// Ends it, and records that. Nothing runs of it any more when this succeeds.
    pub(super) async fn end(self, stop: Stop) -> Result<(), Error> {
        let (ending, leader, tree) = off_thread(move || {
            let (leader, tree) = self.inner.tree(self.appliance, self.ordinal, self.attempt)?;
            Ok((self, leader, tree))
        })
        .await?;
        if !tree.is_empty() {
            ending.ask(leader.as_ref(), tree, stop).await?;
        }
        off_thread(move || {
            let Self { inner, held, appliance, ordinal, attempt } = &ending;
            inner.end_by_force(held, *appliance, (*ordinal, *attempt), "kill")?;
            held.check()?;
            let folder = inner.folder_of(*appliance, *ordinal, *attempt);
            let place = inner.folder(*appliance, FolderKey { ordinal: *ordinal, aside: None });
            if folder.path() != place.path() {
                return Ok(folder.remove_aside(&place)?);
            }
            if let Some(record) = folder.read()?.filter(|record| record.instance.attempt == *attempt) {
                folder.write(&InstanceRecord { state: RecordState::Ended, ..record })?;
            }
            Ok(())
        })
        .await
    }

    /// Sends the stop signal and waits until everything has ended, for as long as that may take.
    async fn ask(&self, leader: Option<&ProcessStamp>, tree: Tree, stop: Stop) -> Result<(), Error> {
        self.held.check()?;
        let pid = leader.map(|leader| leader.pid);
        let note = |outcome: &str| self.held.note("terminate", self.ordinal, self.attempt, pid, outcome);
        note("begun");
        // An instance of the version before has no shim, and neither has one whose shim was killed.
        let targets = tree.shim.map_or(tree.processes, |shim| vec![shim]);
        let refused = signal_all(&targets, stop.signal).err();
        let left = system::ended(targets, Instant::now() + stop.timeout).await;
        note(match (&refused, left.is_empty()) {
            (Some(text), false) => text,
            (_, false) => "still running",
            (_, true) => "done",
        });
        Ok(())
    }
}

impl Inner {
    /// Kills whatever still runs of one attempt at an ordinal, until nothing does. Blocks.
    pub(super) fn end_by_force(
        &self,
        held: &HeldLock,
        appliance: ApplianceId,
        (ordinal, attempt): (u16, u32),
        action: &str,
    ) -> Result<(), Error> {
        let mut refused = None;
        let name = Instance::name(appliance, ordinal, attempt);
        let group = self.folder_of(appliance, ordinal, attempt).shim_state(&name).and_then(|state| state.cgroup);
        for _ in 0..KILL_ROUNDS {
            let (leader, tree) = self.tree(appliance, ordinal, attempt)?;
            let targets = match tree.shim {
                // It ends by itself once it has no process left, unless it is stopped.
                Some(shim) if tree.processes.is_empty() => {
                    if poll_until(self.config.kill_wait, || !shim.is_alive()) {
                        continue;
                    }
                    vec![shim]
                }
                None if tree.processes.is_empty() => {
                    // Its shim does that, unless it was killed.
                    group.iter().for_each(|group| cgroups::remove(group));
                    return Ok(());
                }
                Some(_) | None => tree.processes,
            };
            held.check()?;
            let pid = leader.map(|leader| leader.pid);
            held.note(action, ordinal, attempt, pid, "begun");
            group.iter().for_each(|group| cgroups::kill(group));
            refused = signal_all(&targets, Signal::KILL).err();
            let ended = poll_until(self.config.kill_wait, || targets.iter().all(|id| !id.is_alive()));
            held.note(action, ordinal, attempt, pid, if ended { "done" } else { "still running" });
            if refused.is_some() {
                break;
            }
        }
        let (_, left) = self.tree(appliance, ordinal, attempt)?;
        match (refused, left.processes.first().copied().or(left.shim)) {
            (_, None) => Ok(()),
            (Some(text), Some(_)) => Err(Error::Failed(text)),
            (None, Some(first)) => Err(Error::Failed(format!("{} cannot be ended", system::describe(first)))),
        }
    }
}

/// Signals every process; says of the first that cannot be signalled which one that is, and why.
fn signal_all(targets: &[ProcessId], signal: Signal) -> Result<(), String> {
    let mut result = Ok(());
    for id in targets {
        if let Err(error) = processes::signal(*id, signal)
            && result.is_ok()
        {
            result = Err(format!("cannot signal {}: {error}", system::describe(*id)));
        }
    }
    result
}
