//! Lives that keep themselves alive, as with ZooKeeper: played by each test.

use common::secret::LifeSeal;
use coordination::{Error, Guard, MembershipEnd};
use tokio::sync::oneshot;

use super::*;

const LEASE: Duration = Duration::from_secs(3_600);

/// A call of [`Group::join`], to be answered by the test.
struct Join {
    guard: Arc<dyn Guard>,
    answer: oneshot::Sender<Result<PlayedSession, Error>>,
}

#[derive(Debug)]
struct PlayedGroup {
    joins: mpsc::Sender<Join>,
    coordinators: watch::Sender<Vec<String>>,
}

#[tonic::async_trait]
impl Group for PlayedGroup {
    async fn join(&self, _: &Profile, _: LifeSeal, guard: Arc<dyn Guard>) -> Result<Box<dyn MemberSession>, Error> {
        let (answer, answered) = oneshot::channel();
        self.joins.send(Join { guard, answer }).await.expect("the test goes on");
        answered.await.expect("answered").map(|life| Box::new(life) as Box<dyn MemberSession>)
    }

    fn coordinators(&self) -> watch::Receiver<Vec<String>> {
        self.coordinators.subscribe()
    }
}

struct PlayedSession {
    incarnation: Incarnation,
    guard: Arc<dyn Guard>,
    over: watch::Receiver<Option<MembershipEnd>>,
    left: mpsc::Sender<()>,
}

impl std::fmt::Debug for PlayedSession {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PlayedSession").field("incarnation", &self.incarnation).finish_non_exhaustive()
    }
}

impl Drop for PlayedSession {
    fn drop(&mut self) {
        self.guard.shut();
    }
}

#[tonic::async_trait]
impl MemberSession for PlayedSession {
    fn incarnation(&self) -> Option<Incarnation> {
        Some(self.incarnation)
    }

    fn lease(&self) -> Duration {
        LEASE
    }

    async fn ended(&self) -> MembershipEnd {
        let mut over = self.over.clone();
        let ended = over.wait_for(Option::is_some).await.ok().and_then(|ended| ended.clone());
        match ended {
            Some(ended) => ended,
            None => std::future::pending().await,
        }
    }

    async fn leave(self: Box<Self>) {
        self.guard.shut();
        self.left.send(()).await.expect("the test goes on");
    }
}

/// The coordination service, as the test plays it.
struct Service {
    joins: mpsc::Receiver<Join>,
    group: Arc<PlayedGroup>,
    over: watch::Sender<Option<MembershipEnd>>,
    left: (mpsc::Sender<()>, mpsc::Receiver<()>),
}

impl Service {
    fn new(coordinators: Vec<String>) -> Self {
        let (sender, joins) = mpsc::channel(1);
        let group = Arc::new(PlayedGroup { joins: sender, coordinators: watch::Sender::new(coordinators) });
        Self { joins, group, over: watch::Sender::new(None), left: mpsc::channel(1) }
    }

    async fn join(&mut self) -> Join {
        tokio::time::timeout(DEADLINE, self.joins.recv()).await.expect("in time").expect("the session runs")
    }

    /// Lets the worker join with this incarnation.
    async fn admit(&mut self, incarnation: Incarnation) -> Arc<dyn Guard> {
        let Join { guard, answer } = self.join().await;
        self.over = watch::Sender::new(None);
        let life = PlayedSession {
            incarnation,
            guard: Arc::clone(&guard),
            over: self.over.subscribe(),
            left: self.left.0.clone(),
        };
        assert!(answer.send(Ok(life)).is_ok(), "it waits");
        guard
    }

    async fn refuse(&mut self, error: Error) {
        assert!(self.join().await.answer.send(Err(error)).is_ok(), "it waits");
    }

    fn end_life(&self) {
        self.over.send_replace(Some(MembershipEnd::Evicted));
    }
}

fn config() -> Config {
    Config { connect_timeout: DEADLINE, lease: Duration::from_millis(200), ..Config::default() }
}

async fn bench() -> (SessionBench, Service) {
    let coordinator = Listening::new().await;
    let service = Service::new(vec![coordinator.address.clone()]);
    let group = Arc::clone(&service.group);
    (SessionBench::with_group(config(), group, coordinator, Conversation::default()), service)
}

/// A place that takes connections and says nothing on them.
async fn silent() -> (tokio::net::TcpListener, String) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = format!("http://{}", listener.local_addr().expect("bound"));
    (listener, address)
}

async fn accept(listener: &tokio::net::TcpListener) -> tokio::net::TcpStream {
    tokio::time::timeout(DEADLINE, listener.accept()).await.expect("in time").expect("a connection").0
}

#[tokio::test]
async fn nothing_on_the_stream_keeps_a_life_that_keeps_itself() {
    let (mut bench, mut service) = bench().await;
    let guard = service.admit(LIFE).await;
    let gate = bench.begun().await;
    let (mut conn, hello) = bench.hello().await;
    assert_eq!((conn.envelope.incarnation, hello.profile.lease), (Some(LIFE), LEASE));
    conn.welcome(1, &[]).await;
    let delta = change(0, 1, vec![grant(A, token(1, 1))]);
    conn.send(delta).await;
    conn.send(ToWorker::BeatAck(1)).await;
    // The first heartbeat of a stream that carries them comes before anything else.
    let message = tokio::time::timeout(DEADLINE, conn.inbound.message()).await.expect("in time");
    let said = up::up_from_wire(message.expect("it stands").expect("it goes on")).expect("readable").message;
    assert!(matches!(said, ToCoordinator::Ack(_)), "{said:?}");
    let update = DeltaEntry::Update { appliance: A, token: token(1, 1), desired: desired() };
    let delta = change(1, 2, vec![update]);
    conn.send(delta).await;
    while conn.ack().await.applied < 2 {}
    assert_eq!(gate.deadline(), Timestamp::ZERO, "only the life extends it");
    guard.extend(Timestamp::from_nanos(u64::MAX));
    assert!(gate.lease_stands(), "the gate is what the life has");
    assert!(gate.pass(A, token(1, 1)).is_ok());

    bench.stop.leave();
    let (last, ended) = tokio::join!(conn.receive(), bench.ended());
    assert_eq!((last, ended), (Some(ToCoordinator::Leave), Ok(())));
    assert!(gate.is_shut());
    service.left.1.try_recv().expect("the life was left");
}

#[tokio::test]
async fn a_life_that_ends_while_connected_is_followed_by_another_that_holds_nothing() {
    let (mut bench, mut service) = bench().await;
    service.admit(LIFE).await.extend(Timestamp::from_nanos(u64::MAX));
    let gate = bench.begun().await;
    let (mut conn, _) = bench.hello().await;
    conn.welcome(1, &[]).await;
    bench.grant_a(&mut conn).await;
    service.end_life();
    conn.ended().await;
    assert!(gate.is_shut());

    let next = Incarnation::new(8);
    service.admit(next).await;
    let empty = bench.begun().await;
    let gate = bench.begun().await;
    assert!(!Arc::ptr_eq(&empty, &gate) && !gate.is_shut());
    let (mut conn, hello) = bench.hello().await;
    assert_eq!((conn.envelope.incarnation, hello.owned.len(), hello.highest_term), (Some(next), 0, Term::new(1)));

    // A welcome to the former life does not count.
    conn.welcome(1, &[]).await;
    let (_conn, hello) = bench.hello().await;
    assert_eq!(hello.highest_term, Term::new(1));
    bench.finish().await;
}

#[tokio::test]
async fn a_leader_that_says_so_ends_a_life() {
    let (mut bench, mut service) = bench().await;
    let guard = service.admit(LIFE).await;
    let gate = bench.begun().await;
    guard.extend(Timestamp::from_nanos(u64::MAX));
    let (conn, _) = bench.hello().await;
    let (reason, detail) = (RefusedReason::IncarnationOver, "evicted".to_owned());
    conn.send(ToWorker::Refused(Refused { reason, detail, retry_after: None })).await;
    service.admit(Incarnation::new(8)).await;
    assert!(gate.is_shut());
    bench.finish().await;
}

#[tokio::test]
async fn the_end_of_a_life_is_seen_while_connecting_and_without_a_coordinator() {
    let (listener, address) = silent().await;
    let mut service = Service::new(vec![address]);
    let config = Config { connect_timeout: LEASE, retry_cap: LEASE, ..config() };
    let group = Arc::clone(&service.group);
    let mut bench = SessionBench::with_group(config, group, Listening::new().await, Conversation::default());
    service.admit(LIFE).await;
    let gate = bench.begun().await;
    let _unanswered = accept(&listener).await;
    service.end_life();
    let join = service.join().await;
    assert!(gate.is_shut(), "before the next life begins");
    service.group.coordinators.send_replace(vec![]);
    assert!(join.answer.send(Err(Error::Unavailable("busy".to_owned()))).is_ok());
    service.admit(Incarnation::new(8)).await;
    let _empty = bench.begun().await;
    let gate = bench.begun().await;
    service.end_life();
    let _unanswered = service.join().await;
    assert!(gate.is_shut());
    bench.finish().await;
}

#[tokio::test]
async fn a_worker_follows_the_leader_with_what_it_holds() {
    let (mut bench, mut service) = bench().await;
    service.admit(LIFE).await;
    // Nobody leads here.
    let (conn, _) = bench.hello().await;
    let (reason, detail) = (RefusedReason::NotLeading, String::new());
    conn.send(ToWorker::Refused(Refused { reason, detail, retry_after: Some(LEASE) })).await;
    let first = std::mem::replace(&mut bench.coordinator, Listening::new().await);
    let addresses = vec![bench.coordinator.address.clone(), first.address.clone()];
    service.group.coordinators.send_replace(addresses);
    let (mut conn, _) = bench.hello().await;
    conn.welcome(1, &[]).await;
    bench.grant_a(&mut conn).await;

    // A stream that stands is given up for the new leader, one that is being opened as well.
    let (listener, dead) = silent().await;
    service.group.coordinators.send_replace(vec![dead]);
    conn.ended().await;
    let _unanswered = accept(&listener).await;
    service.group.coordinators.send_replace(vec![first.address.clone()]);
    bench.coordinator = first;
    let (mut conn, hello) = bench.hello().await;
    assert_eq!(hello.owned.len(), 1);
    conn.welcome(2, &[GrantRef::new(A, token(1, 1))]).await;

    // News of others, and of nobody, change nothing.
    let own = bench.coordinator.address.clone();
    service.group.coordinators.send_replace(vec![own.clone(), "http://127.0.0.1:1".to_owned()]);
    service.group.coordinators.send_replace(vec![]);
    service.group.coordinators.send_replace(vec![own]);
    bench.welcomed().await;
    let check = DeltaEntry::Check { appliance: A, token: token(1, 1), number: 5 };
    conn.send(change(0, 1, vec![check])).await;
    assert!(matches!(bench.command().await, RunnerCommand::Check { .. }));
    bench.finish().await;
}

#[tokio::test]
async fn a_standby_is_not_asked_twice_in_a_row() {
    let (mut bench, mut service) = bench().await;
    let mut other = Listening::new().await;
    let addresses = vec![bench.coordinator.address.clone(), other.address.clone()];
    service.group.coordinators.send_replace(addresses);
    service.admit(LIFE).await;
    let (conn, _) = bench.hello().await;
    let (reason, detail) = (RefusedReason::NotLeading, String::new());
    conn.send(ToWorker::Refused(Refused { reason, detail, retry_after: None })).await;
    let (mut conn, _) = other.hello().await;
    conn.welcome(1, &[]).await;
    bench.welcomed().await;
    bench.finish().await;
}

#[tokio::test]
async fn a_name_that_is_taken_ends_the_process_also_later_and_other_trouble_is_waited_out() {
    let taken = || Error::NameTaken { name: "w1".to_owned(), by: "pid 7 on h".to_owned() };
    let refused = || Error::Refused("no access".to_owned());
    let (bench, mut service) = self::bench().await;
    service.refuse(Error::Unavailable("no quorum".to_owned())).await;
    service.refuse(taken()).await;
    assert_eq!(bench.ended().await, Err(taken()));

    let (bench, mut service) = self::bench().await;
    service.refuse(refused()).await;
    assert_eq!(bench.ended().await, Err(refused()), "credentials are looked at by people");

    let (mut bench, mut service) = self::bench().await;
    service.admit(LIFE).await;
    bench.begun().await;
    service.end_life();
    service.refuse(refused()).await;
    service.refuse(taken()).await;
    assert_eq!(bench.ended().await, Err(taken()));
}

#[tokio::test]
async fn a_stop_is_seen_while_joining() {
    let (bench, mut service) = bench().await;
    let _unanswered = service.join().await;
    bench.stop.drain();
    bench.ended().await.expect("it was asked to");
}
