//! Witnesses of the ends of workers.
//!
//! A worker of which it is certain that its process has ended need not be waited for (docs/protocol.md, Witnessed deaths). The leader
//! watches those that run beside it itself. Of one that nobody can watch its lease tells, as ever.

use common::{Life, ProcessIdentity, WorkerId};
use coordinator_core::machine::Event;
use tracing::info;

use super::Leader;
use crate::metrics;

impl Leader<'_> {
    /// Watches the processes of the workers that there are now.
    pub(super) fn watch_processes(&mut self) {
        let machine = &self.machine;
        self.processes.set(machine.processes());
    }

    /// A process has ended, and with it its lives: of this worker only where the witness knows no more. `by` is who saw it, for people.
    pub(super) fn witnessed(&mut self, process: ProcessIdentity, worker: Option<&WorkerId>, by: &str) {
        let meant = |life: &&Life| worker.is_none_or(|worker| life.worker == *worker);
        let lives: Vec<Life> = self.machine.lives_of(process).filter(meant).cloned().collect();
        for life in lives {
            if self.machine.would_hear_witness(&life) {
                let Life { worker, incarnation } = &life;
                info!(%worker, %incarnation, pid = process.pid, "its process has ended, as {by} saw: its lease is not waited for");
                metrics::witnessed();
            }
            self.step(Event::Witnessed(life));
        }
    }
}
