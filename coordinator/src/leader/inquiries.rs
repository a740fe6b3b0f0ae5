//! What workers are asked beside the protocol of ownership ([`common::inquiry`]), and who waits for the answers.
//!
//! An inquiry waits here until a worker that offers what is asked has room for it, and then for the answer. Nothing else waits for either:
//! a change that is to be judged has reserved nothing yet. An inquiry whose stream ends is put to another worker. One that is not answered
//! before its deadline is over, and what comes then is dropped, as is what comes twice, or on another stream.
//!
//! What was judged is known for a while, so that a document that was validated is not judged again when it is applied.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use common::driver::DriverName;
use common::inquiry::{Answer, Finding, Inquiry, MAX_INQUIRY_BYTES, MAX_OPEN_INQUIRIES, Question};
use common::session::Desired;
use common::{ApplianceId, WorkerId};
use coordinator_core::machine::StreamId;
use proto::convert::inquiry::inquiry_to_wire;
use runtime::telemetry;
use tokio::time::Instant;
use tracing::{Span, field, info_span};
use uuid::Uuid;

use super::connections::Connections;
use crate::commands::{Changed, Mutation, Reply};
use crate::metrics;
use crate::record::Record;

/// How long a change waits to be judged; half of what its caller has left if that is less, so that the rest of the change has time.
const JUDGED_WITHIN: Duration = Duration::from_secs(5);

/// Inquiries that are open in all, those that wait for room at a worker among them.
const MOST_OPEN: usize = 1_024;

/// Workers that one inquiry is put to, one after the other, while their streams end: what ends the workers that judge it must not end all.
const MOST_ASKED: u32 = 2;

/// Judgements that are known. The oldest is forgotten for the next.
const KNOWN: usize = 10_000;

/// For how long. Policies of a cluster change; and a document is applied soon after it was validated, or is validated again.
const KNOWN_FOR: Duration = Duration::from_secs(60);

/// Inquiries in a row without an answer after which a driver is not asked about for a while ([`PAUSE`]): where what it asks hangs, callers with many
/// changes are not to wait for each.
const MISSES: u32 = 8;

/// For how long.
const PAUSE: Duration = Duration::from_secs(10);

/// A call that changes an appliance.
#[derive(Debug)]
pub(super) struct ChangeCall {
    pub(super) mutation: Arc<Mutation>,
    pub(super) caller: Span,
    /// When the caller waits no more.
    pub(super) deadline: Instant,
    pub(super) reply: Reply<Changed>,
}

/// What a judgement is about: the specification, and by whom and under which name it is kept. How many replicas there are is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct JudgedKey([u8; 16]);

impl JudgedKey {
    pub(super) fn of(record: &Record) -> Self {
        let spec = common::appliance::Spec { replicas: 1, ..record.spec.clone() };
        let content = (record.driver.as_str(), record.tenant.as_str(), record.name.as_str(), spec);
        // A specification that cannot be written is refused by its size before.
        let content = serde_json::to_vec(&content).unwrap_or_default();
        Self(*Uuid::new_v5(&Uuid::NAMESPACE_OID, &content).as_bytes())
    }
}

/// A change that waits to be judged.
#[derive(Debug)]
pub(super) struct Judging {
    pub(super) call: ChangeCall,
    pub(super) key: JudgedKey,
    pub(super) appliance: ApplianceId,
    pub(super) driver: DriverName,
}

/// An inquiry that is over.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) judging: Judging,
    /// What was answered, or why nothing was.
    pub(super) finding: Finding,
}

#[derive(Debug)]
struct Open {
    judging: Judging,
    desired: Box<Desired>,
    /// Rather this one.
    owner: Option<WorkerId>,
    deadline: Instant,
    /// To whom it was put, while that has not answered.
    asked: Option<Asked>,
    /// How often it was put to somebody.
    times_asked: u32,
}

/// To whom an inquiry was put.
#[derive(Debug)]
struct Asked {
    stream: StreamId,
    since: Instant,
    span: Span,
}

impl Asked {
    /// It has ended with this.
    fn end(&self, finding: &Finding) {
        let outcome = outcome(finding);
        self.span.record("outcome", outcome);
        if let Finding::Unanswered(problem) = finding {
            telemetry::fail(&self.span, problem);
        }
        metrics::inquired(outcome, self.since.elapsed());
    }
}

/// Whom an inquiry can be put to.
enum Place {
    /// No worker that is connected.
    None,
    /// None before another one is answered.
    Full,
    /// This one.
    At(StreamId, WorkerId),
}

/// The inquiries of one term.
#[derive(Debug, Default)]
pub(super) struct Inquiries {
    last: u64,
    open: HashMap<u64, Open>,
    deadlines: BTreeSet<(Instant, u64)>,
    /// Those that wait for a worker with room, in order.
    waiting: VecDeque<u64>,
    /// How many each worker has not answered.
    of_stream: HashMap<StreamId, usize>,
    known: KnownJudgements,
    /// Inquiries in a row that were not answered, by driver, and when the last one was not.
    misses: HashMap<DriverName, (u32, Instant)>,
}

impl Inquiries {
    /// What is known of a judgement: it was accepted, perhaps with a warning.
    pub(super) fn known(&self, key: JudgedKey) -> Option<Option<String>> {
        self.known.get(key)
    }

    /// Keeps that something was accepted, perhaps with a warning.
    pub(super) fn learn(&mut self, key: JudgedKey, warning: Option<String>) {
        self.known.add(key, warning);
    }

    /// Why it is of no use now to ask about a driver.
    pub(super) fn obstacle(&self, driver: &DriverName) -> Option<&'static str> {
        if self.open.len() >= MOST_OPEN {
            return Some("too many changes wait for that");
        }
        let (misses, last) = self.misses.get(driver)?;
        (*misses >= MISSES && last.elapsed() < PAUSE).then_some("the last ones were not answered")
    }

    /// The number of an inquiry that is kept elsewhere.
    pub(super) const fn next_number(&mut self) -> u64 {
        self.last += 1;
        self.last
    }

    /// Has a change judged, soonest by [`Self::put`]; there is no [`Self::obstacle`] to that.
    pub(super) fn judge(&mut self, judging: Judging, desired: Desired, owner: Option<WorkerId>) {
        let now = Instant::now();
        self.last += 1;
        let left = judging.call.deadline.saturating_duration_since(now);
        let deadline = now + JUDGED_WITHIN.min(left / 2);
        self.deadlines.insert((deadline, self.last));
        self.waiting.push_back(self.last);
        self.open.insert(
            self.last,
            Open { judging, desired: Box::new(desired), owner, deadline, asked: None, times_asked: 0 },
        );
    }

    /// Puts what waits to workers with room. Answers what no worker can be asked.
    pub(super) fn put(&mut self, connections: &Connections) -> Vec<Ended> {
        let (mut ended, mut full) = (Vec::new(), BTreeSet::new());
        for number in std::mem::take(&mut self.waiting) {
            let Some(open) = self.open.get(&number) else { continue };
            if open.judging.call.reply.is_closed() {
                self.remove(number);
                continue;
            }
            let driver = open.judging.driver.clone();
            if full.contains(&driver) {
                self.waiting.push_back(number);
                continue;
            }
            match self.place(connections, open) {
                Place::None => ended.extend(self.end(number, "no worker that could be asked is connected")),
                Place::Full => {
                    full.insert(driver);
                    self.waiting.push_back(number);
                }
                Place::At(..) if open.times_asked >= MOST_ASKED => {
                    ended.extend(self.end(number, "the workers that were asked have gone away"));
                }
                Place::At(stream, worker) => {
                    if !self.ask(connections, number, stream, &worker) {
                        ended.extend(self.end(number, "the specification is too long to be asked about"));
                    }
                }
            }
        }
        ended
    }

    /// Whom to put an inquiry to: the owner, or else who has the fewest to answer.
    fn place(&self, connections: &Connections, open: &Open) -> Place {
        let mut able = connections.judging(&open.judging.driver).peekable();
        if able.peek().is_none() {
            return Place::None;
        }
        let load = |stream: &StreamId| self.of_stream.get(stream).copied().unwrap_or_default();
        let with_room = able.filter(|(stream, _)| load(stream) < MAX_OPEN_INQUIRIES);
        let best = with_room.min_by_key(|(stream, worker)| (open.owner.as_ref() != Some(*worker), load(stream)));
        best.map_or(Place::Full, |(stream, worker)| Place::At(stream, worker.clone()))
    }

    /// Puts an inquiry to a worker. `false` when it is too long for that.
    fn ask(&mut self, connections: &Connections, number: u64, stream: StreamId, worker: &WorkerId) -> bool {
        let (Some(open), Some(envelope)) = (self.open.get_mut(&number), connections.envelope(stream)) else {
            return true;
        };
        let question = Question::Judge { appliance: open.judging.appliance, desired: open.desired.clone() };
        let span = span(&open.judging.call.caller, worker, question.name());
        let within = open.deadline.saturating_duration_since(Instant::now());
        let inquiry = Inquiry { number, within, call: telemetry::trace_context(&span), question };
        let message = inquiry_to_wire(&envelope, inquiry);
        if prost::Message::encoded_len(&message) > MAX_INQUIRY_BYTES {
            return false;
        }
        // A worker that does not read is found by the next message of the protocol; this one is then put to another.
        let _ = connections.send_beside(stream, message);
        open.times_asked += 1;
        open.asked = Some(Asked { stream, since: Instant::now(), span });
        *self.of_stream.entry(stream).or_default() += 1;
        true
    }

    /// A worker has answered on this stream. `None` when nobody waits for that.
    pub(super) fn answered(&mut self, stream: StreamId, answer: Answer) -> Option<Ended> {
        let Answer { number, finding } = answer;
        let is_asked = |open: &Open| open.asked.as_ref().is_some_and(|asked| asked.stream == stream);
        self.open.get(&number).filter(|open| is_asked(open))?;
        let Open { judging, asked, .. } = self.remove(number)?;
        asked.iter().for_each(|asked| asked.end(&finding));
        match finding {
            Finding::Judgement(_) => drop(self.misses.remove(&judging.driver)),
            Finding::Log(_) | Finding::Reloaded(_) | Finding::Exec(_) | Finding::Unanswered(_) => {
                self.missed(&judging.driver);
            }
        }
        Some(Ended { judging, finding })
    }

    /// A stream has ended: what was put to its worker waits for another one.
    pub(super) fn stream_ended(&mut self, stream: StreamId) {
        if self.of_stream.remove(&stream).is_none() {
            return;
        }
        let mut put_back = Vec::new();
        for (number, open) in &mut self.open {
            if let Some(asked) = open.asked.take_if(|asked| asked.stream == stream) {
                asked.end(&Finding::Unanswered("the stream ended".to_owned()));
                put_back.push(*number);
            }
        }
        put_back.sort_unstable();
        self.waiting.extend(put_back);
    }

    /// When the next inquiry is over that is not answered.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.deadlines.first().map(|(deadline, _)| *deadline)
    }

    /// Those whose time is over.
    pub(super) fn late(&mut self) -> Vec<Ended> {
        let (mut ended, now) = (Vec::new(), Instant::now());
        while let Some((deadline, number)) = self.deadlines.first().copied()
            && deadline <= now
        {
            ended.extend(self.end(number, "no answer in time"));
        }
        ended
    }

    /// Everyone who waits: the term is over.
    pub(super) fn end_all(&mut self) -> impl Iterator<Item = ChangeCall> + use<> {
        self.deadlines.clear();
        self.waiting.clear();
        self.of_stream.clear();
        std::mem::take(&mut self.open).into_values().map(|open| open.judging.call)
    }

    /// Ends an inquiry without an answer.
    fn end(&mut self, number: u64, why: &str) -> Option<Ended> {
        let Open { judging, asked, .. } = self.remove(number)?;
        let finding = Finding::Unanswered(why.to_owned());
        if let Some(asked) = asked {
            asked.end(&finding);
            self.missed(&judging.driver);
        }
        Some(Ended { judging, finding })
    }

    fn missed(&mut self, driver: &DriverName) {
        let (misses, last) = self.misses.entry(driver.clone()).or_insert((0, Instant::now()));
        *misses = misses.saturating_add(1);
        *last = Instant::now();
    }

    fn remove(&mut self, number: u64) -> Option<Open> {
        let open = self.open.remove(&number)?;
        self.deadlines.remove(&(open.deadline, number));
        if let Some(asked) = &open.asked
            && let Some(count) = self.of_stream.get_mut(&asked.stream)
        {
            *count -= 1;
        }
        Some(open)
    }
}

fn span(caller: &Span, worker: &WorkerId, method: &'static str) -> Span {
    info_span!(
        parent: caller,
        "inquiry",
        otel.name = format_args!("rug.worker.v1.Session/{method}"),
        otel.kind = "client",
        rpc.system = "rug.session",
        rpc.service = "rug.worker.v1.Session",
        rpc.method = method,
        %worker,
        outcome = field::Empty,
    )
}

/// The name in traces.
fn outcome(finding: &Finding) -> &'static str {
    use common::inquiry::Verdict;
    match finding {
        Finding::Judgement(Verdict::Accepted) => "accepted",
        Finding::Judgement(Verdict::Refused(_)) => "refused",
        Finding::Judgement(Verdict::Unclear(_)) => "unclear",
        Finding::Log(_) => "read",
        Finding::Reloaded(_) => "reloaded",
        Finding::Exec(_) => "executed",
        Finding::Unanswered(_) => "unanswered",
    }
}

/// What was accepted lately, each with a warning if there was one.
#[derive(Debug, Default)]
struct KnownJudgements {
    of: HashMap<JudgedKey, (Instant, Option<String>)>,
    /// Oldest first.
    order: VecDeque<(Instant, JudgedKey)>,
}

impl KnownJudgements {
    fn add(&mut self, key: JudgedKey, warning: Option<String>) {
        let now = Instant::now();
        while self.order.len() >= KNOWN || self.order.front().is_some_and(|(since, _)| *since + KNOWN_FOR < now) {
            let Some((since, old)) = self.order.pop_front() else { break };
            if self.of.get(&old).is_some_and(|(newest, _)| *newest == since) {
                self.of.remove(&old);
            }
        }
        self.of.insert(key, (now, warning));
        self.order.push_back((now, key));
    }

    fn get(&self, key: JudgedKey) -> Option<Option<String>> {
        let (since, warning) = self.of.get(&key)?;
        (since.elapsed() <= KNOWN_FOR).then(|| warning.clone())
    }
}

#[cfg(test)]
mod tests;
