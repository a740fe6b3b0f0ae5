//! Witnesses of the ends of workers.
//!
//! A worker of which it is certain that its process has ended need not be waited for (docs/protocol.md, Witnessed deaths). The leader
//! watches those that run beside it itself. Of one that nobody can watch its lease tells, as ever.

use std::collections::BTreeMap;
use std::time::Duration;

use common::{Life, ProcessIdentity, WorkerId};
use coordinator_core::machine::Event;
use tracing::info;

use super::Leader;
use crate::metrics;

/// Within this time the kernel tells of all processes that were killed together.
const KERNEL_GATHER: Duration = Duration::from_millis(100);
/// Within this time kubelets do, each by itself: they look at their containers about once a second.
const KUBELET_GATHER: Duration = Duration::from_secs(2);
/// Most that is kept of kubelets whose workers are still connected.
const MAX_HELD: usize = 1_024;

/// What kubelets said of workers whose streams stand. A container that has terminated has no sockets: nothing counts before they are closed.
pub(super) type HeldWitnesses = BTreeMap<(WorkerId, ProcessIdentity), String>;

impl Leader<'_> {
    /// Watches the processes of the workers that there are now.
    pub(super) fn watch_processes(&mut self) {
        let machine = &self.machine;
        self.processes.set(machine.processes());
    }

    /// The kernel of this machine says that a process has ended, and with it its lives.
    pub(super) fn process_ended(&mut self, process: ProcessIdentity) {
        let lives: Vec<Life> = self.machine.lives_of(process).cloned().collect();
        for life in lives {
            self.witnessed(life, process, KERNEL_GATHER, "the kernel of this machine");
        }
    }

    /// A kubelet says that the container of a worker has terminated, as `by` names it for people.
    pub(super) fn container_ended(&mut self, worker: WorkerId, process: ProcessIdentity, by: String) {
        if self.held_witnesses.len() < MAX_HELD {
            self.held_witnesses.insert((worker, process), by);
        }
        self.hear_held_witnesses();
    }

    /// Hears what is held of workers that are not connected any more.
    pub(super) fn hear_held_witnesses(&mut self) {
        if self.held_witnesses.is_empty() {
            return;
        }
        for ((worker, process), by) in std::mem::take(&mut self.held_witnesses) {
            let lives: Vec<Life> =
                self.machine.lives_of(process).filter(|life| life.worker == worker).cloned().collect();
            for life in lives {
                if self.machine.is_connected(&life) {
                    self.held_witnesses.insert((worker.clone(), process), by.clone());
                } else {
                    self.witnessed(life, process, KUBELET_GATHER, &by);
                }
            }
        }
    }

    fn witnessed(&mut self, life: Life, process: ProcessIdentity, gather: Duration, by: &str) {
        if self.machine.would_hear_witness(&life) {
            let Life { worker, incarnation } = &life;
            info!(%worker, %incarnation, pid = process.pid, "its process has ended, as {by} saw: its lease is not waited for");
            metrics::witnessed();
        }
        self.step(Event::Witnessed(life, gather));
    }
}
