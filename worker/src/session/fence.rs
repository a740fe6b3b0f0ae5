//! Says in the log when the lease has run out and when it stands again: once for each fence, however many steps are
//! refused meanwhile. The gate does the fencing; nothing here decides anything.

use std::sync::Arc;

use common::WorkerId;
use runtime::clock;
use tokio::task::AbortHandle;
use tracing::{info, warn};

use crate::gate::SharedGate;

/// A task that looks at one gate. Ends when this is dropped.
#[derive(Debug)]
pub(super) struct GateWatch(AbortHandle);

impl GateWatch {
    pub(super) fn start(worker: WorkerId, gate: Arc<SharedGate>) -> Self {
        Self(tokio::spawn(watch(worker, gate)).abort_handle())
    }
}

impl Drop for GateWatch {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn watch(worker: WorkerId, gate: Arc<SharedGate>) {
    gate.opens().await;
    loop {
        gate.lapses().await;
        if gate.is_shut() {
            return;
        }
        let since = gate.deadline();
        let deadline_ns = since.as_nanos();
        warn!(
            %worker,
            deadline_ns,
            "fenced: the lease has run out; nothing is changed until a heartbeat is answered, probes go on"
        );
        gate.opens().await;
        let fenced_ms = u64::try_from(clock::now().since(since).as_millis()).unwrap_or(u64::MAX);
        info!(%worker, fenced_ms, "the lease stands again; steps that were refused are tried again");
    }
}
