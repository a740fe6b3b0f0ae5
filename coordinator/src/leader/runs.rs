//! What workers did about appliances ([`common::run`]), on its way to the store.
//!
//! The leader keeps nothing of it in memory: a batch is written, with whatever else waits for the store, and then confirmed. A worker has one batch
//! under way, so that a fleet that is rebuilt costs the leader one batch for each worker, however many appliances there are.

use std::time::SystemTime;

use common::change::ApplianceTarget;
use common::run::RunBatch;
use common::session::Envelope;
use coordinator_core::machine::StreamId;
use tracing::debug;

use super::Leader;
use crate::record::RunRecord;

impl Leader<'_> {
    /// A worker tells of runs that are over. Of another conversation than that of its stream, they are dropped.
    pub(super) fn on_runs(&mut self, conn: StreamId, envelope: Envelope, batch: RunBatch) {
        let worker = self.connections.worker(conn).cloned();
        let Some(worker) = worker.filter(|_| self.connections.envelope(conn) == Some(envelope)) else {
            return debug!(conn, "runs of another conversation were dropped");
        };
        let (now, RunBatch { number, runs }) = (SystemTime::now(), batch);
        let record = |run: common::run::Run| {
            let (mut tenant, mut name) = (run.tenant, run.name);
            // Who may read a run goes by its tenant, which is not for a worker to say where it is known.
            if let Some(entry) = self.catalog.get(&ApplianceTarget::Id(run.appliance)) {
                (tenant, name) = (entry.record.tenant.clone(), entry.record.name.clone());
            }
            let ended = now.checked_sub(run.ago).unwrap_or(now);
            RunRecord {
                id: run.id,
                appliance: run.appliance,
                tenant,
                name,
                generation: run.generation,
                worker: worker.clone(),
                cause: run.cause,
                outcome: run.outcome,
                error: run.error,
                began: ended.checked_sub(run.took).unwrap_or(ended),
                ended,
                steps: run.steps,
                changes: run.changes,
            }
        };
        let records: Vec<RunRecord> = runs.into_iter().map(record).collect();
        if records.is_empty() {
            return self.connections.runs_stored(conn, number);
        }
        self.writes.runs(conn, number, records);
    }
}
