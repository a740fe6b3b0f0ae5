//! Whom inquiries are put to, which answers count, and what is bounded.

use std::collections::BTreeMap;

use common::appliance::{FieldViolation, Name, Spec, Timing};
use common::change::ApplianceDraft;
use common::inquiry::Verdict;
use common::kind::{Custom, KindSpec};
use common::session::Envelope;
use common::{Edition, Incarnation, StreamNumber, Term};
use proto::convert::down::down_from_wire;
use proto::worker::v1::CoordinatorMessage;
use tokio::sync::{mpsc, oneshot};
use tonic::Status;

use super::*;
use crate::access::Scope;
use crate::budget::Budget;
use crate::commands::{Change, ChangeOrigin, CommandError};
use crate::sessions::Out;
use crate::tuning::Tuning;

const A: ApplianceId = ApplianceId::from_u128(0xa);

fn driver() -> DriverName {
    DriverName::new("kubernetes").expect("a name")
}

fn name(text: &str) -> Name {
    Name::new(text).expect("a name")
}

fn spec() -> Spec {
    Spec {
        replicas: 1,
        probe_interval: None,
        timing: Timing::default(),
        image: None,
        ports: vec![],
        pod: None,
        kind: KindSpec::Custom(Custom { command: "serve".into(), ..Custom::default() }),
    }
}

fn desired() -> Desired {
    let (name, tenant, driver) = (name("web"), name("t1"), driver());
    Desired { name, tenant, driver, edition: Edition::default(), revision: 0, deleting: false, spec: spec() }
}

type Answered = oneshot::Receiver<Result<Changed, CommandError>>;

/// A change that waits for its judgement, with its caller.
fn judging() -> (Judging, Answered) {
    let draft = ApplianceDraft {
        id: None,
        name: name("web"),
        tenant: name("t1"),
        driver: driver(),
        placement_key: None,
        labels: BTreeMap::new(),
        spec: spec(),
    };
    let origin = ChangeOrigin::Client { force: false, scope: Scope::All };
    let change = Change::create(draft);
    let mutation = Mutation { change, validate_only: false, request: None, actor: "test".into(), origin };
    let (reply, answered) = oneshot::channel();
    let deadline = Instant::now() + Duration::from_secs(30);
    let call = ChangeCall { mutation: Arc::new(mutation), caller: Span::none(), deadline, reply };
    (Judging { call, key: JudgedKey([0; 16]), appliance: A, driver: driver() }, answered)
}

struct Bench {
    connections: Connections,
    inquiries: Inquiries,
    streams: HashMap<StreamId, mpsc::Receiver<Result<CoordinatorMessage, Status>>>,
    /// Callers, so that they are still there.
    callers: Vec<Answered>,
}

impl Bench {
    /// With so many workers, w1 on stream 1 and so on, that all judge.
    fn new(workers: u64) -> Self {
        let connections = Connections::new(String::new(), Arc::new(Tuning::new("coordinator-1")));
        let (inquiries, streams, callers) = (Inquiries::default(), HashMap::new(), Vec::new());
        let mut bench = Self { connections, inquiries, streams, callers };
        (1..=workers).for_each(|stream| bench.connect(stream));
        bench
    }

    fn connect(&mut self, stream: StreamId) {
        let (out, messages) = Out::with_queue(1_000);
        let (term, incarnation) = (Term::new(1), Some(Incarnation::new(stream.into())));
        let envelope = Envelope { term, incarnation, stream: StreamNumber::new(1) };
        let worker = WorkerId::new(&format!("w{stream}")).expect("a name");
        let held = Budget::new(1 << 20, 1 << 20).hold("test".into());
        self.connections.add(stream, worker, envelope, out, held);
        self.connections.set_judges(stream, vec![driver()]);
        self.streams.insert(stream, messages);
    }

    fn judge(&mut self, owner: Option<&str>) -> Result<(), &'static str> {
        let (judging, answered) = judging();
        if let Some(why) = self.inquiries.obstacle(&judging.driver) {
            return Err(why);
        }
        self.callers.push(answered);
        self.inquiries.judge(judging, desired(), owner.map(|owner| WorkerId::new(owner).expect("a name")));
        Ok(())
    }

    fn put(&mut self) -> Vec<Ended> {
        for stream in self.connections.take_ended() {
            self.inquiries.stream_ended(stream);
        }
        self.inquiries.put(&self.connections)
    }

    /// Numbers of what a worker was asked since the last time.
    fn asked(&mut self, stream: StreamId) -> Vec<u64> {
        let messages = self.streams.get_mut(&stream).expect("it is connected");
        let read = |message: Result<CoordinatorMessage, Status>| {
            let read = down_from_wire(message.expect("a message")).expect("readable");
            let inquiry = read.inquiry.expect("an inquiry");
            assert!(matches!(inquiry.question, Question::Judge { appliance: A, .. }), "{inquiry:?}");
            inquiry.number
        };
        std::iter::from_fn(|| messages.try_recv().ok()).map(read).collect()
    }
}

fn accepted(number: u64) -> Answer {
    Answer { number, finding: Finding::Judgement(Verdict::Accepted) }
}

#[tokio::test(start_paused = true)]
async fn an_answer_counts_once_on_the_stream_of_its_inquiry_and_in_time() {
    let mut bench = Bench::new(2);
    bench.judge(Some("w2")).expect("there is room");
    assert!(bench.put().is_empty());
    let [number] = bench.asked(2)[..] else { panic!("the owner is asked") };
    assert!(bench.inquiries.answered(1, accepted(number)).is_none(), "another stream");
    assert!(bench.inquiries.answered(2, accepted(number + 1)).is_none(), "another number");
    let refused = Finding::Judgement(Verdict::Refused(FieldViolation::new("spec.pod", "no")));
    let ended = bench.inquiries.answered(2, Answer { number, finding: refused.clone() }).expect("it waits");
    assert_eq!(ended.finding, refused);
    assert!(bench.inquiries.answered(2, accepted(number)).is_none(), "twice");

    bench.judge(None).expect("there is room");
    bench.put();
    let asked = [bench.asked(1), bench.asked(2)].concat();
    assert!(bench.inquiries.late().is_empty());
    tokio::time::advance(JUDGED_WITHIN).await;
    let [late] = &bench.inquiries.late()[..] else { panic!("its time is over") };
    assert!(matches!(&late.finding, Finding::Unanswered(why) if why == "no answer in time"));
    assert!(bench.inquiries.answered(1, accepted(asked[0])).is_none() && bench.inquiries.next_deadline().is_none());
    assert!(bench.inquiries.of_stream.values().all(|open| *open == 0), "{:?}", bench.inquiries.of_stream);
}

#[tokio::test(start_paused = true)]
async fn a_caller_with_little_time_keeps_half_of_it_for_the_change_itself() {
    let mut bench = Bench::new(1);
    let (mut judging, _caller) = judging();
    judging.call.deadline = Instant::now() + Duration::from_secs(2);
    bench.inquiries.judge(judging, desired(), None);
    assert_eq!(bench.inquiries.next_deadline(), Some(Instant::now() + Duration::from_secs(1)));
}

#[tokio::test(start_paused = true)]
async fn what_was_put_to_a_worker_that_left_is_put_to_another_one_or_to_none() {
    let mut bench = Bench::new(2);
    bench.judge(Some("w1")).expect("there is room");
    bench.put();
    let asked = bench.asked(1);
    assert!(bench.connections.remove(1, "ended") && bench.put().is_empty());
    assert_eq!((asked.len(), bench.asked(2)), (1, asked.clone()));
    bench.connections.remove(2, "ended");
    let [ended] = &bench.put()[..] else { panic!("nobody is left") };
    assert!(matches!(&ended.finding, Finding::Unanswered(why) if why.contains("no worker")));
    assert!(!bench.connections.judges_any() && bench.inquiries.open.is_empty());
}

#[tokio::test(start_paused = true)]
async fn what_ends_the_workers_that_judge_it_does_not_end_all() {
    let mut bench = Bench::new(3);
    bench.judge(Some("w1")).expect("there is room");
    for (stream, worker) in [(1, "w1"), (2, "w2")] {
        assert!(bench.put().is_empty());
        assert_eq!(bench.asked(stream).len(), 1, "{worker} is asked");
        assert!(bench.connections.remove(stream, "ended"));
    }
    let [ended] = &bench.put()[..] else { panic!("it is over") };
    assert!(matches!(&ended.finding, Finding::Unanswered(why) if why.contains("gone away")));
    assert_eq!(bench.asked(3), Vec::<u64>::new());
}

#[tokio::test(start_paused = true)]
async fn a_worker_is_asked_so_much_at_once_and_the_rest_waits_and_is_bounded() {
    let mut bench = Bench::new(2);
    for _ in 0..MOST_OPEN {
        bench.judge(None).expect("there is room");
    }
    assert!(bench.judge(None).is_err(), "no more than that wait");
    assert!(bench.put().is_empty());
    let asked = [bench.asked(1), bench.asked(2)];
    assert_eq!(asked.each_ref().map(Vec::len), [MAX_OPEN_INQUIRIES; 2], "both carry their share");
    bench.inquiries.answered(1, accepted(asked[0][0])).expect("it waits");
    bench.put();
    assert_eq!((bench.asked(1).len(), bench.asked(2).len()), (1, 0));
    // Callers that are gone take no place.
    bench.callers.clear();
    let open: Vec<_> = asked.concat();
    bench.inquiries.answered(2, accepted(open[MAX_OPEN_INQUIRIES])).expect("it waits");
    bench.put();
    assert_eq!((bench.asked(2).len(), bench.inquiries.waiting.len()), (0, 0));
    assert_eq!(bench.inquiries.end_all().count(), 2 * MAX_OPEN_INQUIRIES - 1);
}

#[tokio::test(start_paused = true)]
async fn a_driver_of_which_nothing_is_heard_is_not_asked_about_for_a_while() {
    let mut bench = Bench::new(1);
    for round in 0..2 {
        for _ in 0..MISSES {
            bench.judge(None).expect("it is asked about");
        }
        bench.put();
        tokio::time::advance(JUDGED_WITHIN).await;
        assert_eq!(bench.inquiries.late().len(), MISSES as usize);
        let why = bench.judge(None).expect_err("nobody is to wait for that again");
        assert_eq!(why, "the last ones were not answered", "round {round}");
        tokio::time::advance(PAUSE).await;
    }
    // One answer is enough, whatever it is.
    bench.asked(1);
    bench.judge(None).expect("it is tried again");
    bench.put();
    let [number] = bench.asked(1)[..] else { panic!("it is asked") };
    bench.inquiries.answered(1, accepted(number)).expect("it waits");
    bench.judge(None).expect("it is asked about");
    assert!(bench.inquiries.misses.is_empty());
}

#[tokio::test(start_paused = true)]
async fn what_was_judged_is_known_for_a_while() {
    let mut known = KnownJudgements::default();
    let key = |n: usize| {
        let mut key = [0; 16];
        key[..8].copy_from_slice(&n.to_be_bytes());
        JudgedKey(key)
    };
    known.add(key(0), Some("quota".into()));
    assert_eq!((known.get(key(0)), known.get(key(1))), (Some(Some("quota".into())), None));
    for n in 1..=KNOWN {
        tokio::time::advance(Duration::from_nanos(1)).await;
        known.add(key(n), None);
    }
    assert_eq!((known.get(key(0)), known.of.len(), known.order.len()), (None, KNOWN, KNOWN));
    assert_eq!(known.get(key(1)), Some(None));
    tokio::time::advance(KNOWN_FOR * 2).await;
    assert_eq!(known.get(key(1)), None);
}
