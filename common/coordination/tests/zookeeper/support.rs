//! What the tests share: servers, settings, a guard that records, and a plain client beside the one under test.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use common::driver::{DriverCapabilities, DriverName};
use common::secret::{LifeSeal, LifeSecret};
use common::{CoordinatorId, Profile, Timestamp, WorkerId};
use coordination::url::Config;
use coordination::{Candidate, Group, Guard, Leadership, MemberSession};
use runtime::clock;
use servers::wait::until;
use servers::zookeeper::{Options, Standalone};
use tokio::sync::OnceCell;
use zookeeper_client::{Acls, Client, CreateMode};

/// How long a condition may take on a machine that is busy with other tests.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

static SHARED: OnceCell<Standalone> = OnceCell::const_new();

/// The server of tests that leave it alone.
pub(crate) async fn shared() -> &'static Standalone {
    SHARED.get_or_init(async || own().await).await
}

/// A server of the test's own.
pub(crate) async fn own() -> Standalone {
    Standalone::start(Options::default()).await.expect("ZooKeeper starts")
}

/// One test's place on a server.
#[derive(Clone, Debug)]
pub(crate) struct TestRoot {
    pub(crate) address: String,
    pub(crate) chroot: String,
    pub(crate) config: Config,
}

impl TestRoot {
    /// A place of its own under `name`, with sessions of `seconds`.
    pub(crate) fn new(server: &Standalone, name: &str, seconds: f64) -> Self {
        Self::at(&server.address(), name, seconds)
    }

    /// The same on servers at `address`.
    pub(crate) fn at(address: &str, name: &str, seconds: f64) -> Self {
        let (address, chroot) = (address.to_owned(), format!("/{name}"));
        let config = Config {
            url: format!("zookeeper://{address}{chroot}?timeout={seconds}"),
            group: "g".to_owned(),
            join_timeout: Duration::from_secs(30),
        };
        Self { address, chroot, config }
    }

    pub(crate) fn group(&self, name: &str) -> Arc<dyn Group> {
        self.config.worker_group(&worker(name), Vec::new()).expect("the settings are valid")
    }

    pub(crate) fn candidate(&self, name: &str) -> Arc<dyn Candidate> {
        let id = CoordinatorId::new(name).expect("valid");
        self.config
            .candidate(&id, format!("https://{name}:1"), std::path::Path::new("."))
            .expect("the settings are valid")
    }

    /// A plain client that sees the place as its root.
    pub(crate) async fn client(&self) -> Client {
        let client = Client::connector().with_session_timeout(Duration::from_secs(30)).connect(&self.address).await;
        let client = client.expect("ZooKeeper is up");
        let persistent = CreateMode::Persistent.with_acls(Acls::anyone_all());
        client.mkdir(&self.chroot, &persistent).await.expect("the chroot can be made");
        client.chroot(self.chroot.clone()).expect("a valid chroot")
    }
}

pub(crate) fn worker(name: &str) -> WorkerId {
    WorkerId::new(name).expect("valid")
}

/// The data of a lease node after the heartbeat `beat` (below 128) of `session`, with a lease of 1.2 s.
pub(crate) fn heartbeat(beat: u8, session: i64) -> Vec<u8> {
    let number = [&[0xd3][..], &session.to_be_bytes()].concat();
    [&b"\x83\xa4beat"[..], &[beat], b"\xa8lease_ms\xcd\x04\xb0\xa7session", &number].concat()
}

/// What the lives of the tests are sealed with.
pub(crate) fn seal() -> LifeSeal {
    LifeSecret::new([1; 32]).seal()
}

pub(crate) fn profile() -> Profile {
    Profile {
        weight: 2,
        zone: "a".to_owned(),
        host: "h1".to_owned(),
        drivers: [(DriverName::process(), DriverCapabilities::of_all_kinds(Some("/var/lib/rug")))].into(),
        version: "1.0".to_owned(),
        pid: 4711,
        process: None,
        lease: Duration::ZERO,
    }
}

/// A guard that records.
#[derive(Debug, Default)]
pub(crate) struct TestProxyGate {
    until: AtomicU64,
    extended: AtomicU64,
    shut: AtomicBool,
}

impl Guard for TestProxyGate {
    fn extend(&self, until: Timestamp) {
        self.until.fetch_max(until.as_nanos(), Ordering::SeqCst);
        self.extended.fetch_add(1, Ordering::SeqCst);
    }

    fn shut(&self) {
        self.shut.store(true, Ordering::SeqCst);
    }
}

impl TestProxyGate {
    pub(crate) fn is_shut(&self) -> bool {
        self.shut.load(Ordering::SeqCst)
    }

    pub(crate) fn extended(&self) -> u64 {
        self.extended.load(Ordering::SeqCst)
    }

    pub(crate) fn until(&self) -> Timestamp {
        Timestamp::from_nanos(self.until.load(Ordering::SeqCst))
    }

    pub(crate) fn is_open(&self) -> bool {
        !self.is_shut() && clock::now() < self.until()
    }

    /// Waits until it was extended twice more: whatever was under way before has been answered by then.
    pub(crate) async fn beats(&self) {
        let before = self.extended.load(Ordering::SeqCst);
        eventually("heartbeats commit", async || {
            ensure!(self.extended.load(Ordering::SeqCst) >= before + 2);
            Ok(())
        })
        .await;
    }
}

pub(crate) async fn join(group: &Arc<dyn Group>) -> (Box<dyn MemberSession>, Arc<TestProxyGate>) {
    let gate = Arc::new(TestProxyGate::default());
    let life = group.join(&profile(), seal(), Arc::<TestProxyGate>::clone(&gate)).await.expect("the name is free");
    (life, gate)
}

pub(crate) async fn elected(candidate: &Arc<dyn Candidate>) -> Box<dyn Leadership> {
    within("it is elected", candidate.campaign()).await.expect("nothing is refused")
}

/// Waits for something that is sure to come.
pub(crate) async fn within<T>(what: &str, waiting: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, waiting).await {
        Ok(done) => done,
        Err(_) => panic!("waited {PATIENCE:?} until {what}"),
    }
}

pub(crate) async fn eventually<T>(what: &str, look: impl AsyncFnMut() -> Result<T>) -> T {
    until(PATIENCE, what, look).await.expect("it comes true")
}

/// Waits until the contenders for the leadership number `count`, and gives their nodes in order.
pub(crate) async fn contenders(client: &Client, count: usize) -> Vec<String> {
    eventually("contenders are as many as expected", async || {
        let mut names = client.list_children("/tooz/g.coordinators/leader").await.context("list")?;
        names.sort_unstable_by_key(|name| name.rsplit_once("__lock__").map(|(_, at)| at.to_owned()));
        ensure!(names.len() == count, "{names:?}");
        Ok(names)
    })
    .await
}
