//! Streams of workers: which are open, what is sent on them, and with which reason one is closed.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use common::driver::DriverName;
use common::session::{Envelope, Refused, RefusedReason, ToWorker};
use common::{ApplianceId, TraceContext, WorkerId};
use coordinator_core::machine::{Refusal, StreamId};
use proto::convert::down;
use proto::worker::v1::CoordinatorMessage;
use runtime::log_limited;
use tokio::time::Instant;

use crate::budget::HeldShare;
use crate::metrics::{self, EntryCounts};
use crate::sessions::Out;
use crate::tuning::Tuning;

/// How long a worker may leave its welcome without an answer, which it gives at once when it is there. Until then its
/// whole `Hello` is kept. The store, which a newcomer waits for first, has answered long before.
const UNANSWERED: Duration = Duration::from_secs(60);

#[derive(Debug)]
struct Connection {
    out: Out,
    /// What was last sent to the worker belongs to it.
    envelope: Envelope,
    worker: WorkerId,
    /// Its worker was sent a welcome: nothing else is valid before.
    welcomed: bool,
    /// While its worker has not answered the welcome: what its `Hello` is charged with, and since when.
    unanswered: Option<(HeldShare, Instant)>,
    /// Drivers that its worker judges specifications for.
    judges: Vec<DriverName>,
    /// Drivers of which its worker reads what instances print.
    logs: Vec<DriverName>,
    /// Versions that deltas lead to, and when they were sent, while they are not acknowledged: at most a window of them.
    sent: VecDeque<(u64, Instant)>,
}

impl Connection {
    /// Tells the worker what to log and to sample.
    fn tune(&self, tuning: &Tuning) {
        let order = tuning.order_for(self.worker.as_str());
        let _ = self.out.send(down::order_to_wire(&self.envelope, order));
    }
}

/// The open streams on which a worker said `Hello`.
#[derive(Debug)]
pub(super) struct Connections {
    open: HashMap<StreamId, Connection>,
    /// The streams of workers that judge specifications, by driver.
    judging: HashMap<DriverName, BTreeSet<StreamId>>,
    /// Streams that have ended since they were last taken.
    ended: Vec<StreamId>,
    /// How the cluster is coordinated; part of a refusal's text.
    coordination: String,
    /// What workers log and sample by order.
    tuning: Arc<Tuning>,
}

impl Connections {
    pub(super) fn new(coordination: String, tuning: Arc<Tuning>) -> Self {
        let (open, judging, ended) = (HashMap::new(), HashMap::new(), Vec::new());
        Self { open, judging, ended, coordination, tuning }
    }

    /// Tells all workers what to log and to sample. One that does not read its stream is found by the next message.
    pub(super) fn tune(&self) {
        for connection in self.open.values().filter(|connection| connection.welcomed) {
            connection.tune(&self.tuning);
        }
    }

    /// Asks workers for what they have of hand-offs that were slow or failed. One that is not there has nothing any more.
    pub(super) fn keep(&self, hand_offs: impl IntoIterator<Item = (WorkerId, u64)>) {
        let mut of: HashMap<WorkerId, Vec<u64>> = HashMap::new();
        for (worker, hand_off) in hand_offs {
            of.entry(worker).or_default().push(hand_off);
        }
        for connection in self.open.values().filter(|connection| connection.welcomed) {
            for some in of.get(&connection.worker).map_or(&[][..], Vec::as_slice).chunks(down::MAX_HAND_OFFS) {
                let _ = connection.out.send(down::kept_to_wire(&connection.envelope, some.to_vec()));
            }
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    pub(super) fn add(&mut self, stream: StreamId, worker: WorkerId, envelope: Envelope, out: Out, held: HeldShare) {
        let unanswered = Some((held, Instant::now()));
        let (judges, logs, sent) = (Vec::new(), Vec::new(), VecDeque::new());
        let connection = Connection { out, envelope, worker, welcomed: false, unanswered, judges, logs, sent };
        self.open.insert(stream, connection);
        metrics::streams_open(self.open.len());
    }

    /// Its worker has applied everything up to this version.
    pub(super) fn acknowledged(&mut self, stream: StreamId, version: u64) {
        let Some(connection) = self.open.get_mut(&stream) else { return };
        while let Some((_, at)) = connection.sent.pop_front_if(|(sent, _)| *sent <= version) {
            metrics::acknowledged(at.elapsed());
        }
    }

    /// Whether it is not known of this stream that its worker has answered the welcome.
    pub(super) fn is_unanswered(&self, stream: StreamId) -> bool {
        self.open.get(&stream).is_some_and(|connection| connection.unanswered.is_some())
    }

    /// The worker has answered: nothing of its `Hello` is kept any more.
    pub(super) fn answered(&mut self, stream: StreamId) {
        if let Some(connection) = self.open.get_mut(&stream) {
            connection.unanswered = None;
        }
    }

    /// Ends the streams on which the welcome was not answered in time, and names them.
    pub(super) fn end_unanswered(&mut self) -> Vec<StreamId> {
        let late = |connection: &Connection| {
            connection.unanswered.as_ref().is_some_and(|(_, since)| since.elapsed() >= UNANSWERED)
        };
        let late: Vec<StreamId> = self.open.iter().filter(|(_, c)| late(c)).map(|(stream, _)| *stream).collect();
        metrics::streams_closed("unanswered", late.len());
        for stream in &late {
            if let Some(Connection { out, envelope, worker, .. }) = self.forget(*stream) {
                log_limited!(info, conn = stream, %worker, "closing the session: no answer within {UNANSWERED:?}");
                let detail = "the welcome was not answered in time".to_owned();
                out.refuse(&envelope, Refused { reason: RefusedReason::NotLeading, detail, retry_after: None });
            }
        }
        metrics::streams_open(self.open.len());
        late
    }

    /// Forgets a stream, which ends it for this reason; `false` when it was forgotten before.
    pub(super) fn remove(&mut self, stream: StreamId, reason: &'static str) -> bool {
        self.take(stream, reason).is_some()
    }

    fn take(&mut self, stream: StreamId, reason: &'static str) -> Option<Connection> {
        let connection = self.forget(stream)?;
        metrics::streams_closed(reason, 1);
        metrics::streams_open(self.open.len());
        Some(connection)
    }

    fn forget(&mut self, stream: StreamId) -> Option<Connection> {
        let connection = self.open.remove(&stream)?;
        for driver in &connection.judges {
            if let Some(streams) = self.judging.get_mut(driver) {
                streams.remove(&stream);
                if streams.is_empty() {
                    self.judging.remove(driver);
                }
            }
        }
        self.ended.push(stream);
        Some(connection)
    }

    /// The streams that have ended since this was last asked.
    pub(super) fn take_ended(&mut self) -> Vec<StreamId> {
        std::mem::take(&mut self.ended)
    }

    /// The worker of a stream was welcomed, and judges specifications for these drivers.
    pub(super) fn set_judges(&mut self, stream: StreamId, drivers: Vec<DriverName>) {
        let Some(connection) = self.open.get_mut(&stream) else { return };
        for driver in &drivers {
            self.judging.entry(driver.clone()).or_default().insert(stream);
        }
        connection.judges = drivers;
    }

    /// The worker of a stream was welcomed, and reads what instances of these drivers print.
    pub(super) fn set_logs(&mut self, stream: StreamId, drivers: Vec<DriverName>) {
        if let Some(connection) = self.open.get_mut(&stream) {
            connection.logs = drivers;
        }
    }

    /// Whether the worker of a stream reads what instances of a driver print.
    pub(super) fn keeps_logs(&self, stream: StreamId, driver: &DriverName) -> bool {
        self.open.get(&stream).is_some_and(|connection| connection.logs.contains(driver))
    }

    /// The stream on which a worker was welcomed.
    pub(super) fn stream_of(&self, worker: &WorkerId) -> Option<StreamId> {
        let mut open = self.open.iter().filter(|(_, open)| open.welcomed && open.worker == *worker);
        open.next().map(|(stream, _)| *stream)
    }

    /// Whether some worker judges specifications for a driver.
    pub(super) fn judges(&self, driver: &DriverName) -> bool {
        self.judging.contains_key(driver)
    }

    /// Whether any worker judges specifications.
    pub(super) fn judges_any(&self) -> bool {
        !self.judging.is_empty()
    }

    /// The workers that judge specifications for a driver.
    pub(super) fn judging(&self, driver: &DriverName) -> impl Iterator<Item = (StreamId, &WorkerId)> {
        let streams = self.judging.get(driver).into_iter().flatten();
        streams.filter_map(move |stream| Some((*stream, self.worker(*stream)?)))
    }

    /// The conversation on a stream, as the leader names it.
    pub(super) fn envelope(&self, stream: StreamId) -> Option<Envelope> {
        self.open.get(&stream).map(|connection| connection.envelope)
    }

    /// Sends what the machine does not know of. `false` when the worker does not read.
    pub(super) fn send_beside(&self, stream: StreamId, message: CoordinatorMessage) -> bool {
        self.open.get(&stream).is_some_and(|connection| connection.out.send(message))
    }

    /// Tells a worker that a batch of runs is stored. One whose stream is another by now tells them again.
    pub(super) fn runs_stored(&self, stream: StreamId, batch: u64) {
        if let Some(connection) = self.open.get(&stream) {
            let _ = connection.out.send(down::runs_stored_to_wire(&connection.envelope, batch));
        }
    }

    /// The worker at the other end of a stream.
    pub(super) fn worker(&self, stream: StreamId) -> Option<&WorkerId> {
        self.open.get(&stream).map(|connection| &connection.worker)
    }

    /// Sends a message on a stream, if it is open. `false` when the worker does not read: the stream is closed then.
    /// With a delta go the trace context of its rebalance, and those of the calls that its entries follow from.
    #[must_use]
    pub(super) fn send(
        &mut self,
        stream: StreamId,
        envelope: Envelope,
        message: ToWorker,
        traceparent: &str,
        causes: Vec<(ApplianceId, TraceContext)>,
    ) -> bool {
        let Some(connection) = self.open.get_mut(&stream) else { return true };
        connection.envelope = envelope;
        let delta = match &message {
            ToWorker::Delta(delta) => Some((delta.target, EntryCounts::of(&delta.entries))),
            _ => None,
        };
        let is_welcome = matches!(message, ToWorker::Welcome(_));
        let mut messages = down::down_to_wire(&envelope, message, traceparent);
        if let [delta] = messages.as_mut_slice() {
            down::add_causes(delta, causes);
        }
        if let Some((target, entries)) = delta {
            entries.sent(messages.iter().map(prost::Message::encoded_len).sum());
            connection.sent.push_back((target, Instant::now()));
        }
        let sent = messages.into_iter().all(|message| connection.out.send(message));
        if is_welcome && sent {
            connection.welcomed = true;
            connection.tune(&self.tuning);
        }
        if !sent {
            log_limited!(warn, conn = stream, worker = %connection.worker, "the worker does not read its stream; closing it");
            self.take(stream, "not_read");
        }
        sent
    }

    /// Closes a stream and tells the worker why.
    pub(super) fn close(&mut self, stream: StreamId, refusal: &Refusal) {
        let Some(Connection { out, envelope, worker, .. }) = self.take(stream, "refused") else { return };
        let refused = self.refused(refusal, &worker);
        log_limited!(info, conn = stream, %worker, reason = ?refused.reason, "closing the session: {}", refused.detail);
        out.refuse(&envelope, refused);
    }

    /// Closes every stream: the workers look for the leader.
    pub(super) fn close_all(&mut self) {
        metrics::streams_closed("resigned", self.open.len());
        metrics::streams_open(0);
        self.judging.clear();
        for (_, Connection { out, envelope, .. }) in self.open.drain() {
            let detail = "this coordinator does not lead any more".to_owned();
            out.refuse(&envelope, Refused { reason: RefusedReason::NotLeading, detail, retry_after: None });
        }
    }

    /// What a worker is told.
    fn refused(&self, refusal: &Refusal, worker: &WorkerId) -> Refused {
        let detail = match refusal {
            Refusal::IncarnationOver => "its lease is over".to_owned(),
            Refusal::NameTaken(wait) => format!("another process named {worker} may act for up to {wait:.1?} more"),
            Refusal::NotProven => "its secret is not that of the life that it names".to_owned(),
            Refusal::ImplausibleStream(stream) => format!("no worker reaches {stream}, the number of its stream"),
            Refusal::Crowded(_) => "more workers ask for a life than are given one at once".to_owned(),
            Refusal::ImplausibleTerm(term) => {
                format!("{term}, which it claims to have met, is so far above this one that it is not followed")
            }
            Refusal::TermAhead(met, wait) => {
                format!("no term above {met}, which it has met, is begun within {wait:.1?}")
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
