//! The session against a coordinator that says what each test wants, over a real stream.

mod draining;
mod fence_delays;
mod inquiries;
mod lives;
mod runs;

use std::pin::Pin;

use common::appliance::{Name, Spec, Timing};
use common::driver::{DriverCapabilities, DriverName};
use common::kind::{Custom, KindSpec, Probe};
use common::secret::LifeSecret;
use common::session::{
    Ack, Carryover, Confirm, Declined, Delta, DeltaEntry, Desired, Envelope, GrantRef, Hello, Refused, RefusedReason,
    Report, ToCoordinator, ToWorker, Welcome,
};
use common::status::Progress;
use common::{Edition, Generation, Incarnation, Mode, Timestamp};
use coordination::embedded::EmbeddedGroup;
use proto::convert::{down, up};
use proto::worker::v1::session_server::{Session as Service, SessionServer};
use proto::worker::v1::{CoordinatorMessage, WorkerMessage};
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status, Streaming};
use worker_core::session::Incoming;

use super::*;

const DEADLINE: Duration = Duration::from_secs(20);
const LIFE: Incarnation = Incarnation::new(7);
const A: ApplianceId = ApplianceId::from_u128(0xa);

/// One stream of the worker, as the coordinator has it.
struct Conn {
    inbound: Streaming<WorkerMessage>,
    out: mpsc::Sender<Result<CoordinatorMessage, Status>>,
    envelope: Envelope,
}

impl Conn {
    async fn send(&self, message: ToWorker) {
        for part in down::down_to_wire(&self.envelope, message, "") {
            self.out.send(Ok(part)).await.expect("the worker reads");
        }
    }

    /// Answers `Hello` in the name of the leader of `term`.
    async fn welcome(&mut self, term: u64, keep: &[GrantRef]) {
        self.envelope.term = Term::new(term);
        self.envelope.incarnation = Some(LIFE);
        let lease = Duration::from_secs(2);
        self.send(ToWorker::Welcome(Welcome { keep: keep.to_vec(), lease })).await;
    }

    /// The next message that is more than a sign of life; `None` when the worker ended the stream.
    async fn receive(&mut self) -> Option<ToCoordinator> {
        loop {
            let message = tokio::time::timeout(DEADLINE, self.inbound.message()).await.expect("in time");
            match up::up_from_wire(message.ok()??).expect("readable").message {
                ToCoordinator::Beat(_) => {}
                ToCoordinator::Report(report) if report.statuses.is_empty() => {}
                said => return Some(said),
            }
        }
    }

    /// What it says it holds, once it has applied `version`.
    async fn holdings(&mut self, version: u64) -> common::Digest {
        loop {
            let message = tokio::time::timeout(DEADLINE, self.inbound.message()).await.expect("in time");
            let message = message.expect("the stream stands").expect("it goes on");
            if let ToCoordinator::Report(Report { owned: Some(held), .. }) =
                up::up_from_wire(message).expect("readable").message
                && held.applied == version
            {
                return held.digest;
            }
        }
    }

    async fn ack(&mut self) -> Ack {
        loop {
            if let ToCoordinator::Ack(ack) = self.receive().await.expect("the stream goes on") {
                return ack;
            }
        }
    }

    /// Waits until the worker has ended the stream.
    async fn ended(&mut self) {
        while self.receive().await.is_some() {}
    }
}

struct FakeCoordinator(mpsc::Sender<Conn>);

#[tonic::async_trait]
impl Service for FakeCoordinator {
    type OpenStream = Pin<Box<dyn Stream<Item = Result<CoordinatorMessage, Status>> + Send>>;

    async fn open(&self, request: Request<Streaming<WorkerMessage>>) -> Result<Response<Self::OpenStream>, Status> {
        let (out, messages) = mpsc::channel(16);
        let envelope = Envelope { term: Term::new(0), incarnation: None, stream: common::StreamNumber::new(0) };
        let conn = Conn { inbound: request.into_inner(), out, envelope };
        self.0.send(conn).await.map_err(|_| Status::unavailable("the test is over"))?;
        Ok(Response::new(Box::pin(ReceiverStream::new(messages))))
    }
}

/// A coordinator that listens.
struct Listening {
    address: String,
    conns: mpsc::Receiver<Conn>,
}

impl Listening {
    async fn new() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = format!("http://{}", listener.local_addr().expect("bound"));
        let (sender, conns) = mpsc::channel(4);
        let server = tonic::transport::Server::builder().add_service(SessionServer::new(FakeCoordinator(sender)));
        tokio::spawn(server.serve_with_incoming(TcpIncoming::from(listener)));
        Self { address, conns }
    }

    /// The next stream.
    async fn conn(&mut self) -> Conn {
        tokio::time::timeout(DEADLINE, self.conns.recv()).await.expect("in time").expect("it listens")
    }

    /// The next stream, and what the worker says first on it.
    async fn hello(&mut self) -> (Conn, Hello) {
        let mut conn = self.conn().await;
        let message = tokio::time::timeout(DEADLINE, conn.inbound.message()).await.expect("in time");
        let message = message.expect("the stream stands").expect("it says something");
        let hello = up::up_from_wire(message).expect("readable");
        conn.envelope = hello.envelope;
        match hello.message {
            ToCoordinator::Hello(hello) => (conn, *hello),
            other => panic!("not a hello: {other:?}"),
        }
    }
}

/// A session with everything around it.
struct SessionBench {
    coordinator: Listening,
    commands: mpsc::Receiver<RunnerCommand>,
    events: mpsc::Sender<RunnerEvent>,
    stop: StopHandle,
    task: tokio::task::JoinHandle<Result<(), coordination::Error>>,
}

impl SessionBench {
    async fn new() -> Self {
        Self::with(Config { connect_timeout: DEADLINE, ..Config::default() }, Conversation::default()).await
    }

    /// Embedded, with `holdings` of before.
    async fn with(config: Config, conversation: Conversation) -> Self {
        let coordinator = Listening::new().await;
        let group = Arc::new(EmbeddedGroup::new(vec![coordinator.address.clone()], Duration::from_secs(10)));
        Self::with_group(config, group, coordinator, conversation)
    }

    fn with_group(config: Config, group: Arc<dyn Group>, coordinator: Listening, conversation: Conversation) -> Self {
        let (runner, commands) = Handle::detached();
        let (events, inlet) = mpsc::channel(16);
        let name = WorkerId::new("w1").expect("a valid name");
        let profile = profile(
            1,
            String::new(),
            "h".into(),
            [(DriverName::simulated(), DriverCapabilities::of_all_kinds(None))].into(),
            config.lease,
        );
        let mut session = Session::new(config, group, name, profile, runner, inlet, watch::Sender::new(Term::new(0)));
        session = session.with_drivers(inquiries::drivers());
        session.conversation = conversation;
        let stop = StopHandle::new();
        let task = tokio::spawn(session.run(stop.clone()));
        Self { coordinator, commands, events, stop, task }
    }

    /// The next stream, and what the worker says first on it.
    async fn hello(&mut self) -> (Conn, Hello) {
        self.coordinator.hello().await
    }

    /// Stops the worker and waits until it has.
    async fn finish(self) {
        self.stop.leave();
        self.ended().await.expect("it was asked to");
    }

    /// Waits until the session has ended, as a runner does that has nothing to end.
    async fn ended(mut self) -> Result<(), coordination::Error> {
        let task = async {
            while self.commands.recv().await.is_some() {}
            drop(self.events);
            self.task.await.expect("no panic")
        };
        tokio::time::timeout(DEADLINE, task).await.expect("in time")
    }

    /// Grants A on a stream that was welcomed.
    async fn grant_a(&mut self, conn: &mut Conn) {
        let delta = change(0, 1, vec![grant(A, token(1, 1))]);
        conn.send(delta).await;
        assert_eq!(conn.ack().await.granted, [GrantRef::new(A, token(1, 1))]);
        assert!(matches!(self.command().await, RunnerCommand::Take { .. }));
    }

    /// Gives A back, as a runner does.
    async fn release_a(&self) {
        let (progress, fence_delay) = (Progress::default(), Duration::ZERO);
        self.event(RunnerEvent::Released { appliance: A, token: token(1, 1), progress, fence_delay }).await;
    }

    /// Waits for the gate of the life that begins.
    async fn begun(&mut self) -> Arc<SharedGate> {
        loop {
            if let RunnerCommand::Begin { gate } = self.next_command().await {
                return gate;
            }
        }
    }

    async fn event(&self, event: RunnerEvent) {
        let sent = tokio::time::timeout(DEADLINE, self.events.send(event)).await.expect("in time");
        sent.expect("the session runs");
    }

    /// Waits until the worker has taken a welcome in, which it tells the runner.
    async fn welcomed(&mut self) {
        while !matches!(self.next_command().await, RunnerCommand::Restate) {}
    }

    async fn next_command(&mut self) -> RunnerCommand {
        let command = tokio::time::timeout(DEADLINE, self.commands.recv()).await.expect("in time");
        command.expect("the session runs")
    }

    /// The next command but for those that come with every stream.
    async fn command(&mut self) -> RunnerCommand {
        loop {
            match self.next_command().await {
                RunnerCommand::Begin { .. } | RunnerCommand::Restate => {}
                command => return command,
            }
        }
    }
}

fn token(term: u64, sequence: u64) -> Token {
    Token::new(Term::new(term), sequence)
}

/// A change from version `base` to `target`.
fn change(base: u64, target: u64, entries: Vec<DeltaEntry>) -> ToWorker {
    ToWorker::Delta(Delta { base, target, rebalance: None, entries })
}

fn desired() -> Arc<Desired> {
    let probe = Probe::Tcp;
    let kind = KindSpec::Custom(Custom { command: "x".into(), probe, ..Custom::default() });
    Arc::new(Desired {
        name: Name::new("web").expect("a valid name"),
        tenant: Name::new("default").expect("a valid name"),
        driver: DriverName::simulated(),
        edition: Edition::new(Generation::new(1), Term::new(1)),
        revision: 0,
        deleting: false,
        spec: Spec {
            replicas: 1,
            probe_interval: None,
            timing: Timing::default(),
            image: None,
            pod: None,
            ports: vec![],
            kind,
        },
    })
}

fn grant(appliance: ApplianceId, token: Token) -> DeltaEntry {
    grant_after(appliance, token, Carryover::default())
}

/// A grant with what the former owner handed over.
fn grant_after(appliance: ApplianceId, token: Token, carryover: Carryover) -> DeltaEntry {
    DeltaEntry::Grant { appliance, token, desired: desired(), carryover, suspect: false, mode: Mode::default() }
}

/// So many grants that `Hello` does not fit into what a transport takes while nobody reads.
fn very_many() -> Conversation {
    let mut conversation = Conversation::default();
    let (name, secret) = (WorkerId::new("w1").expect("a valid name"), LifeSecret::new([1; 32]));
    let (hello, _) = conversation.hello(Timestamp::ZERO, &name, &Profile::default(), &secret);
    let from = Envelope { term: Term::new(1), incarnation: Some(LIFE), stream: hello.stream };
    let mut receive = |message| conversation.receive(Incoming::whole(from, message), false, |_: &Edition| None);
    receive(ToWorker::Welcome(Welcome::default()));
    let grants = (0..200_000).map(|n| DeltaEntry::Grant {
        appliance: ApplianceId::from_u128(n),
        token: token(1, 1),
        desired: Edition::new(Generation::new(1), Term::new(1)),
        carryover: Carryover::default(),
        suspect: false,
        mode: Mode::default(),
    });
    let delta = Delta { base: 0, target: 1, rebalance: None, entries: grants.collect() };
    receive(ToWorker::Delta(delta));
    conversation
}

#[tokio::test]
async fn a_stop_is_seen_while_nobody_reads_hello() {
    let config = Config { connect_timeout: Duration::from_secs(3_600), ..Config::default() };
    let mut bench = SessionBench::with(config, very_many()).await;
    // Events are still taken: the channel is far shorter than this.
    let _conn = bench.coordinator.conn().await;
    for _ in 0..1_000 {
        bench.event(RunnerEvent::Gone { appliance: A, token: token(2, 1) }).await;
    }
    bench.finish().await;
}

#[tokio::test]
async fn a_hello_that_nobody_reads_is_given_up() {
    let config = Config { connect_timeout: Duration::from_millis(500), ..Config::default() };
    let mut bench = SessionBench::with(config, very_many()).await;
    let mut conns = Vec::new();
    for _ in 0..2 {
        conns.push(bench.coordinator.conn().await);
    }
    bench.finish().await;
}

#[tokio::test]
async fn a_grant_that_cannot_be_read_is_declined_and_an_update_leaves_what_is_held() {
    const B: ApplianceId = ApplianceId::from_u128(0xb);
    let mut bench = SessionBench::new().await;
    let (mut conn, _) = bench.hello().await;
    conn.welcome(1, &[]).await;
    let delta = change(0, 1, vec![grant(A, token(1, 1))]);
    conn.send(delta).await;
    assert_eq!(conn.ack().await.granted, [GrantRef::new(A, token(1, 1))]);
    assert!(matches!(bench.command().await, RunnerCommand::Take { .. }));

    let update = DeltaEntry::Update { appliance: A, token: token(1, 1), desired: desired() };
    let delta = change(1, 2, vec![grant(B, token(1, 2)), update]);
    let mut message = down::down_to_wire(&conn.envelope, delta, "").remove(0);
    match &mut message.body {
        Some(proto::worker::v1::coordinator_message::Body::Delta(delta)) => {
            delta.grant[0].desired = None;
            delta.update[0].desired = None;
        }
        other => panic!("not a delta: {other:?}"),
    }
    conn.out.send(Ok(message)).await.expect("the worker reads");
    let mut declined = Vec::new();
    loop {
        let ack = conn.ack().await;
        declined.extend(ack.declined);
        if ack.applied == 2 {
            break;
        }
    }
    let reason = "Delta: grant[0].desired: is missing".to_owned();
    assert_eq!(declined, [Declined { appliance: B, token: token(1, 2), reason }]);

    // The stream goes on, and so does what is held.
    let check = DeltaEntry::Check { appliance: A, token: token(1, 1), number: 5 };
    let delta = change(2, 3, vec![check]);
    conn.send(delta).await;
    assert!(matches!(bench.command().await, RunnerCommand::Check { number: 5, .. }));
    drop(conn);
    bench.finish().await;
}

#[tokio::test]
async fn what_is_held_is_told_and_said_again_when_the_leader_finds_it_different() {
    let mut bench = SessionBench::new().await;
    let (mut conn, _) = bench.hello().await;
    conn.welcome(1, &[]).await;
    let delta = change(0, 1, vec![grant(A, token(1, 1))]);
    conn.send(delta).await;
    assert!(matches!(bench.command().await, RunnerCommand::Take { .. }));
    assert_eq!(conn.holdings(1).await, [(A, token(1, 1))].into_iter().collect());

    let (reason, detail) = (RefusedReason::AssignmentsDiffer, "1 and not 2".to_owned());
    conn.send(ToWorker::Refused(Refused { reason, detail, retry_after: None })).await;
    let (mut conn, hello) = bench.hello().await;
    assert_eq!((hello.owned.len(), hello.owned[0].token), (1, token(1, 1)));
    conn.welcome(1, &[]).await;
    assert!(matches!(bench.command().await, RunnerCommand::Release { .. }), "it was not kept");
    assert_eq!(conn.holdings(0).await, common::Digest::default(), "and is in no table any more");
    drop(conn);
    bench.finish().await;
}

#[tokio::test]
async fn a_token_of_a_later_term_reaches_the_leader_and_the_grant_is_renewed() {
    let mut bench = SessionBench::new().await;
    let (mut conn, hello) = bench.hello().await;
    assert_eq!(hello.highest_term, Term::new(0));
    conn.welcome(3, &[]).await;
    let delta = change(0, 1, vec![grant(A, token(3, 1))]);
    conn.send(delta).await;
    assert_eq!(conn.ack().await.granted, [GrantRef::new(A, token(3, 1))]);
    assert!(matches!(bench.command().await, RunnerCommand::Take { .. }));

    // Of the leader's own term: it has given that token, so there is nothing to tell it.
    bench.event(RunnerEvent::Refused { appliance: A, token: token(3, 1), newer: token(3, 2) }).await;
    let refused = || RunnerEvent::Refused { appliance: A, token: token(3, 1), newer: token(9, 3) };
    bench.event(refused()).await;
    conn.ended().await;
    let (mut conn, hello) = bench.hello().await;
    assert_eq!((hello.highest_term, hello.owned.len()), (Term::new(9), 1));
    conn.welcome(10, &[GrantRef::new(A, token(3, 1))]).await;
    bench.welcomed().await;

    // The leader can give a token that is accepted now, and does once the old grant is given back.
    bench.event(refused()).await;
    bench.event(refused()).await;
    let released = match bench.command().await {
        RunnerCommand::Release { appliance, token } => (appliance, token),
        other => panic!("not a release: {other:?}"),
    };
    assert_eq!(released, (A, token(3, 1)));
    let event = RunnerEvent::Released {
        appliance: A,
        token: token(3, 1),
        progress: Progress::default(),
        fence_delay: Duration::ZERO,
    };
    bench.event(event).await;
    assert_eq!(conn.ack().await.released.len(), 1);
    let delta = change(0, 1, vec![grant(A, token(10, 1))]);
    conn.send(delta).await;
    let taken = bench.command().await;
    assert!(matches!(taken, RunnerCommand::Take { token: t, .. } if t == token(10, 1)), "{taken:?}");
    drop(conn);
    bench.finish().await;
}
