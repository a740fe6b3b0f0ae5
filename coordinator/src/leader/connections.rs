//! Streams of workers: which are open, what is sent on them, and with which reason one is closed.

use std::collections::HashMap;

use common::WorkerId;
use common::session::{Envelope, Refused, RefusedReason, ToWorker};
use coordinator_core::machine::{Refusal, StreamId};
use proto::convert::down;
use runtime::log_limited;

use crate::sessions::Out;

#[derive(Debug)]
struct Connection {
    out: Out,
    /// What was last sent to the worker belongs to it.
    envelope: Envelope,
    worker: WorkerId,
}

/// The open streams on which a worker said `Hello`.
#[derive(Debug)]
pub(super) struct Connections {
    open: HashMap<StreamId, Connection>,
    /// How the cluster is coordinated; part of a refusal's text.
    coordination: String,
}

impl Connections {
    pub(super) fn new(coordination: String) -> Self {
        Self { open: HashMap::new(), coordination }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    pub(super) fn add(&mut self, stream: StreamId, worker: WorkerId, envelope: Envelope, out: Out) {
        self.open.insert(stream, Connection { out, envelope, worker });
    }

    /// Forgets a stream, which ends it; `false` when it was forgotten before.
    pub(super) fn remove(&mut self, stream: StreamId) -> bool {
        self.open.remove(&stream).is_some()
    }

    /// The worker at the other end of a stream.
    pub(super) fn worker(&self, stream: StreamId) -> Option<&WorkerId> {
        self.open.get(&stream).map(|connection| &connection.worker)
    }

    /// Sends a message on a stream, if it is open. `false` when the worker does not read: the stream is closed then.
    #[must_use]
    pub(super) fn send(&mut self, stream: StreamId, envelope: Envelope, message: ToWorker, traceparent: &str) -> bool {
        let Some(connection) = self.open.get_mut(&stream) else { return true };
        connection.envelope = envelope;
        let messages = down::down_to_wire(&envelope, message, traceparent);
        let sent = messages.into_iter().all(|message| connection.out.send(message));
        if !sent {
            log_limited!(warn, conn = stream, worker = %connection.worker, "the worker does not read its stream; closing it");
            self.open.remove(&stream);
        }
        sent
    }

    /// Closes a stream and tells the worker why.
    pub(super) fn close(&mut self, stream: StreamId, refusal: &Refusal) {
        let Some(Connection { out, envelope, worker }) = self.open.remove(&stream) else { return };
        let refused = self.refused(refusal, &worker);
        log_limited!(info, conn = stream, %worker, reason = ?refused.reason, "closing the session: {}", refused.detail);
        out.refuse(&envelope, refused);
    }

    /// Closes every stream: the workers look for the leader.
    pub(super) fn close_all(&mut self) {
        for (_, Connection { out, envelope, .. }) in self.open.drain() {
            let detail = "this coordinator does not lead any more".to_owned();
            out.refuse(&envelope, Refused { reason: RefusedReason::NotLeading, detail, retry_after: None });
        }
    }

    /// What a worker is told.
    fn refused(&self, refusal: &Refusal, worker: &WorkerId) -> Refused {
        let detail = match refusal {
            Refusal::IncarnationOver => "its lease is over".to_owned(),
            Refusal::NameTaken(wait) => format!("another process named {worker} may act for up to {wait:?} more"),
            Refusal::ImplausibleTerm(term) => format!("no cluster reaches {term}, which it claims to have met"),
            Refusal::TermAhead(met, wait) => {
                format!("no term above {met}, which it has met, is begun within {wait:?}")
            }
            Refusal::Superseded => "a newer stream took over".to_owned(),
            Refusal::StoreUnavailable => "the store takes no changes".to_owned(),
            Refusal::NoLife => format!("this cluster is coordinated by {}; the worker is not", self.coordination),
            Refusal::UnknownLife => "no lease node of this life was seen".to_owned(),
            Refusal::Differs => "what it holds differs from the table".to_owned(),
            Refusal::NotMember => "its member node was taken away, and it is drained".to_owned(),
        };
        Refused { reason: refusal.reason(), detail, retry_after: refusal.retry_after() }
    }
}
