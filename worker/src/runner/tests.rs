//! The runner in a made-up world, under paused time.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use async_trait::async_trait;
use common::appliance::{Name, Spec, Timing};
use common::driver::DriverName;
use common::kind::{Custom, KindSpec, Probe, StopRecipe};
use common::network_port::NetworkPort;
use common::status::{Phase, Status};
use common::{Edition, Generation, Mode, ModeEdition, Term};
use tokio::time::Instant;
use worker_core::instance::{Addresses, Instance, Observation};
use worker_core::ports::PluggedPorts;

use super::*;
use crate::drivers::{Driver, DriverFencing, EndSender, EndedInstance, Error, Standing, Wanted, openstack};
use crate::gate::Permit;
use crate::held::NotHeld;
use crate::kinds::{ProbeAnswer, Protocol};
use crate::offer::Offer;

mod claims;
mod ports;
mod runs;
mod suspects;

const HOUR: Duration = Duration::from_secs(3_600);

fn id(n: u128) -> ApplianceId {
    ApplianceId::from_u128(n)
}

fn token(n: u64) -> Token {
    Token::new(Term::new(1), n)
}

fn desired(generation: u64, change: impl FnOnce(&mut Desired)) -> Arc<Desired> {
    let name = |text| Name::new(text).expect("a valid name");
    let mut desired = Desired {
        name: name("web"),
        tenant: name("default"),
        driver: DriverName::simulated(),
        edition: Edition::new(Generation::new(generation), Term::new(1)),
        revision: 0,
        deleting: false,
        spec: Spec {
            replicas: 1,
            probe_interval: None,
            timing: Timing::default(),
            image: None,
            pod: None,
            ports: vec![],
            kind: KindSpec::Custom(Custom {
                command: "serve".into(),
                args: vec![],
                env: BTreeMap::new(),
                port: None,
                probe: Probe::Tcp,
                ..Custom::default()
            }),
        },
    };
    change(&mut desired);
    Arc::new(desired)
}

/// How calls that plug ports end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Plugs {
    /// The driver does not plug ports.
    Never,
    AsTold,
    /// With an error, after they took effect.
    Unanswered,
    /// With an error, and without effect.
    NotAtAll,
    /// After so long.
    After(Duration),
}

/// How boots go.
#[derive(Default)]
struct Boots {
    takes: Mutex<Duration>,
    fail: AtomicBool,
    panic: AtomicBool,
}

/// Where instances live; driver and kind at once.
struct RunnerWorld {
    start: Instant,
    instances: Mutex<BTreeMap<ApplianceId, Vec<Instance>>>,
    /// Calls that changed it, in order.
    calls: Mutex<Vec<String>>,
    /// When which appliance was probed.
    probes: Mutex<Vec<(Duration, ApplianceId)>>,
    /// Appliances on which something that changes the world is under way.
    busy: Mutex<BTreeSet<ApplianceId>>,
    /// Two things acted on one appliance at once, which must never be.
    overlaps: AtomicBool,
    boots: Boots,
    /// A newer token than ours, with which boots are refused.
    newer: Mutex<Option<Token>>,
    probes_hang: AtomicBool,
    /// Probes leave it to the driver whether an instance runs.
    left_to_driver: AtomicBool,
    /// Claims that were made.
    claims: AtomicUsize,
    claims_hang: AtomicBool,
    plugs: Mutex<Plugs>,
    /// What the driver says of every instance.
    standing: Mutex<Option<Standing>>,
    /// Somebody else answers where an instance did.
    foreign: AtomicBool,
    /// Instances whose ends are to be reported, and where.
    watched: Mutex<Vec<(EndedInstance, EndSender)>>,
}

impl RunnerWorld {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            start: Instant::now(),
            instances: Mutex::default(),
            calls: Mutex::default(),
            probes: Mutex::default(),
            busy: Mutex::default(),
            overlaps: AtomicBool::new(false),
            boots: Boots::default(),
            newer: Mutex::default(),
            probes_hang: AtomicBool::new(false),
            left_to_driver: AtomicBool::new(false),
            claims: AtomicUsize::new(0),
            claims_hang: AtomicBool::new(false),
            plugs: Mutex::new(Plugs::Never),
            standing: Mutex::default(),
            foreign: AtomicBool::new(false),
            watched: Mutex::default(),
        })
    }

    fn find(&self, appliance: ApplianceId) -> Vec<Instance> {
        self.instances.lock().expect("no panic").get(&appliance).cloned().unwrap_or_default()
    }

    fn calls(&self) -> Vec<String> {
        self.calls.lock().expect("no panic").clone()
    }

    fn note(&self, text: String) {
        self.calls.lock().expect("no panic").push(text);
    }

    /// Marks the appliance as being acted on.
    fn act(&self, permit: &Permit) -> Result<Acting<'_>, Error> {
        permit.check()?;
        let appliance = permit.appliance();
        if !self.busy.lock().expect("no panic").insert(appliance) {
            self.overlaps.store(true, Ordering::Relaxed);
        }
        Ok(Acting { world: self, appliance })
    }

    /// Carries out a call that plugs a port.
    async fn plug(
        &self,
        permit: &Permit,
        instance: &Instance,
        text: String,
        change: impl FnOnce(&PluggedPorts) -> PluggedPorts + Send,
    ) -> Result<Instance, Error> {
        let _acting = self.act(permit)?;
        self.note(text);
        let how = *self.plugs.lock().expect("no panic");
        if let Plugs::After(time) = how {
            tokio::time::sleep(time).await;
        } else if how == Plugs::NotAtAll {
            return Err(Error::Failed("no slot left".into()));
        }
        let mut instances = self.instances.lock().expect("no panic");
        let same = |known: &&mut Instance| (known.ordinal, known.attempt) == (instance.ordinal, instance.attempt);
        let known = instances.entry(permit.appliance()).or_default().iter_mut().find(same);
        let known = known.ok_or_else(|| Error::Failed("no such instance".into()))?;
        known.ports = change(&known.ports);
        if how == Plugs::Unanswered { Err(Error::Failed("connection reset".into())) } else { Ok(known.clone()) }
    }

    fn put(&self, appliance: ApplianceId, ordinal: u16, attempt: u32, desired: &Desired) -> Instance {
        let instance = Instance {
            ordinal,
            attempt,
            boot_digest: worker_core::desired::boot_digest(desired, self.plugs_ports()),
            ports: desired.spec.ports.iter().collect(),
            details: [("pid", attempt.to_string())].into_iter().collect(),
            ..Instance::default()
        };
        self.instances.lock().expect("no panic").entry(appliance).or_default().push(instance.clone());
        instance
    }
}

struct Acting<'a> {
    world: &'a RunnerWorld,
    appliance: ApplianceId,
}

impl Drop for Acting<'_> {
    fn drop(&mut self) {
        if let Ok(mut busy) = self.world.busy.lock() {
            busy.remove(&self.appliance);
        }
    }
}

#[async_trait]
impl Driver for RunnerWorld {
    fn fencing(&self) -> DriverFencing {
        DriverFencing::Delay(Duration::from_secs(20))
    }

    fn plugs_ports(&self) -> bool {
        *self.plugs.lock().expect("no panic") != Plugs::Never
    }

    async fn claim(&self, permit: &Permit) -> Result<(), Error> {
        self.claims.fetch_add(1, Ordering::Relaxed);
        if self.claims_hang.load(Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
        Ok(permit.check()?)
    }

    async fn observe(&self, appliance: ApplianceId) -> Result<Observation, Error> {
        Ok(self.find(appliance).into())
    }

    async fn attach(&self, permit: &Permit, instance: &Instance, port: &NetworkPort) -> Result<Instance, Error> {
        let text = format!("attach {}/{} {}", instance.ordinal, instance.attempt, port.name);
        self.plug(permit, instance, text, |ports| ports.with(port.into())).await
    }

    async fn detach(&self, permit: &Permit, instance: &Instance, port: &Name) -> Result<Instance, Error> {
        let text = format!("detach {}/{} {port}", instance.ordinal, instance.attempt);
        self.plug(permit, instance, text, |ports| ports.without(port)).await
    }

    async fn is_alive(&self, appliance: ApplianceId, instance: &Instance) -> Option<bool> {
        self.foreign.load(Ordering::Relaxed).then(|| self.find(appliance).contains(instance))
    }

    async fn standing(&self, _: ApplianceId, _: &Instance) -> Option<Standing> {
        self.standing.lock().expect("no panic").clone()
    }

    async fn expose(&self, permit: &Permit, instance: &Instance, _: &Desired) -> Result<(), Error> {
        if self.standing.lock().expect("no panic").is_some() {
            let _acting = self.act(permit)?;
            self.note(format!("expose {}/{}", instance.ordinal, instance.attempt));
        }
        Ok(())
    }

    fn watch(&self, appliance: ApplianceId, instance: &Instance, ends: &EndSender) {
        let ended = EndedInstance { appliance, ordinal: instance.ordinal, attempt: instance.attempt };
        self.watched.lock().expect("no panic").push((ended, ends.clone()));
    }

    async fn ensure(&self, permit: &Permit, wanted: Wanted<'_>) -> Result<Instance, Error> {
        let _acting = self.act(permit)?;
        if let Some(newer) = *self.newer.lock().expect("no panic") {
            return Err(Error::Superseded(newer));
        }
        let (appliance, ordinal, attempt) = (permit.appliance(), wanted.ordinal, wanted.attempt);
        self.note(format!("boot {ordinal}/{attempt}"));
        assert!(!self.boots.panic.load(Ordering::Relaxed), "this boot was told to panic");
        let takes = *self.boots.takes.lock().expect("no panic");
        tokio::time::sleep(takes).await;
        if self.boots.fail.load(Ordering::Relaxed) {
            return Err(Error::Refused("command `serve` not found".into()));
        }
        let same = self.find(appliance).into_iter().find(|i| (i.ordinal, i.attempt) == (ordinal, attempt));
        Ok(same.unwrap_or_else(|| self.put(appliance, ordinal, attempt, wanted.desired)))
    }

    async fn destroy(&self, permit: &Permit, instance: &Instance, _: StopRecipe) -> Result<(), Error> {
        let _acting = self.act(permit)?;
        self.note(format!("destroy {}/{}", instance.ordinal, instance.attempt));
        if let Some(list) = self.instances.lock().expect("no panic").get_mut(&permit.appliance()) {
            list.retain(|i| (i.ordinal, i.attempt) != (instance.ordinal, instance.attempt));
        }
        Ok(())
    }

    async fn list(&self) -> Result<Vec<(ApplianceId, Instance)>, Error> {
        Ok(vec![])
    }

    async fn forget(&self, permit: &Permit) -> Result<(), Error> {
        let _acting = self.act(permit)?;
        self.note("forget".into());
        self.instances.lock().expect("no panic").remove(&permit.appliance());
        Ok(())
    }
}

struct Speaker(Arc<RunnerWorld>);

#[async_trait]
impl Protocol for Speaker {
    async fn configure(
        &self,
        permit: &Permit,
        instance: &Instance,
        desired: &Desired,
        _: &[worker_core::peers::Peer],
    ) -> Result<(), Error> {
        let _acting = self.0.act(permit)?;
        self.0.note(format!("configure {}/{} {}", instance.ordinal, instance.attempt, desired.edition.generation));
        Ok(())
    }

    async fn probe(&self, instance: &Instance, desired: &Desired) -> Result<ProbeAnswer, Error> {
        if self.0.probes_hang.load(Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
        // The name carries the id, because a probe is not told it.
        let n: u128 = desired.name.as_str().trim_start_matches("web").parse().unwrap_or(1);
        self.0.probes.lock().expect("no panic").push((self.0.start.elapsed(), id(n)));
        if self.0.left_to_driver.load(Ordering::Relaxed) {
            return Ok(ProbeAnswer::LeftToDriver);
        }
        if self.0.foreign.load(Ordering::Relaxed) || self.0.find(id(n)).contains(instance) {
            Ok(ProbeAnswer::Answered(common::status::Details::default()))
        } else {
            Err(Error::Failed("connection refused".into()))
        }
    }
}

struct RunnerBench {
    world: Arc<RunnerWorld>,
    gate: Arc<SharedGate>,
    handle: Handle,
    events: mpsc::Receiver<RunnerEvent>,
    held: HeldInstances,
    _no_overlaps: NoOverlaps,
}

/// Looks at the end of a test whether the world saw what must never be.
struct NoOverlaps(Arc<RunnerWorld>);

impl Drop for NoOverlaps {
    fn drop(&mut self) {
        let overlapped = self.0.overlaps.load(Ordering::Relaxed);
        assert!(std::thread::panicking() || !overlapped, "two steps acted on one appliance at once");
    }
}

impl RunnerBench {
    async fn new() -> Self {
        let bench = Self::fenced().await;
        bench.open();
        bench
    }

    /// With a lease that never stood.
    async fn fenced() -> Self {
        let world = RunnerWorld::new();
        let driver: Arc<dyn Driver> = Arc::clone(&world) as _;
        let offer = Offer { driver, protocol: Arc::new(Speaker(Arc::clone(&world))) };
        Self::with(world, offer).await
    }

    /// With another driver than the world, and a lease that never stood.
    async fn with(world: Arc<RunnerWorld>, offer: Offer) -> Self {
        let openstack = DriverName::new(openstack::NAME).expect("a name");
        let drivers = BTreeMap::from([(DriverName::simulated(), offer.clone()), (openstack, offer)]);
        let (drivers, held) = (Drivers::from(drivers), HeldInstances::default());
        let start = Instant::now();
        let clock = move || Timestamp::from_millis(1_000_000) + start.elapsed();
        let (handle, events) = Runner::start_at(Config::default(), drivers, Some(held.clone()), Arc::new(clock));
        let gate = SharedGate::new();
        handle.send(RunnerCommand::Begin { gate: Arc::clone(&gate) }).await.expect("it runs");
        Self { _no_overlaps: NoOverlaps(Arc::clone(&world)), world, gate, handle, events, held }
    }

    /// Lets the lease stand. The gate reads the real clock, which paused time does not move.
    fn open(&self) {
        self.gate.extend(runtime::clock::now() + HOUR);
    }

    async fn take(&self, n: u128, sequence: u64, desired: Arc<Desired>) {
        self.take_with(n, sequence, desired, Progress::default()).await;
    }

    async fn take_with(&self, n: u128, sequence: u64, desired: Arc<Desired>, progress: Progress) {
        let (appliance, token) = (id(n), token(sequence));
        self.gate.admit(appliance, token, Duration::ZERO);
        self.handle.send(Self::grant(appliance, token, desired, progress)).await.expect("it runs");
    }

    fn grant(appliance: ApplianceId, token: Token, desired: Arc<Desired>, progress: Progress) -> RunnerCommand {
        let (fence_delay, traceparent) = (Duration::ZERO, String::new());
        RunnerCommand::Take {
            appliance,
            token,
            desired,
            progress,
            fence_delay,
            suspect: false,
            mode: Mode::default(),
            traceparent,
            adopting: None,
            cause: None,
        }
    }

    /// Takes an appliance of whose former owner calls may still take effect. Only the runner waits for them here: the gate
    /// goes by the real clock.
    async fn take_held(&self, n: u128, sequence: u64, held: Duration) {
        let (appliance, token) = (id(n), token(sequence));
        self.gate.admit(appliance, token, Duration::ZERO);
        let mut take = Self::grant(appliance, token, desired(1, |_| {}), Progress::default());
        if let RunnerCommand::Take { fence_delay, .. } = &mut take {
            *fence_delay = held;
        }
        self.handle.send(take).await.expect("it runs");
    }

    /// Takes an appliance whose former owner died.
    async fn take_suspect(&self, n: u128, sequence: u64, desired: Arc<Desired>) {
        let (appliance, token) = (id(n), token(sequence));
        self.gate.admit(appliance, token, Duration::ZERO);
        let mut take = Self::grant(appliance, token, desired, Progress::default());
        if let RunnerCommand::Take { suspect, .. } = &mut take {
            *suspect = true;
        }
        self.handle.send(take).await.expect("it runs");
    }

    /// The number of the next step that is announced.
    async fn begins(&mut self) -> u64 {
        loop {
            if let RunnerEvent::Begins { number, .. } = self.event().await {
                return number;
            }
        }
    }

    async fn done(&mut self) -> u64 {
        loop {
            if let RunnerEvent::Done { number, .. } = self.event().await {
                return number;
            }
        }
    }

    async fn clear(&self, n: u128, sequence: u64, number: u64) {
        let clear = RunnerCommand::Clear { appliance: id(n), token: token(sequence), number };
        self.handle.send(clear).await.expect("it runs");
    }

    /// What the session does when hands are off, or on again.
    async fn hands(&self, n: u128, sequence: u64, number: u64, hands_off: bool) {
        let (appliance, token) = (id(n), token(sequence));
        self.gate.set_hands_off(appliance, token, hands_off);
        let mode = Mode::new(ModeEdition::new(Term::new(1), number), hands_off);
        self.handle.send(RunnerCommand::Mode { appliance, token, mode }).await.expect("it runs");
    }

    /// The number of the edition under which nothing runs any more.
    async fn quiet(&mut self) -> u64 {
        loop {
            if let RunnerEvent::Quiet { edition, .. } = self.event().await {
                return edition.sequence;
            }
        }
    }

    async fn release(&self, n: u128, sequence: u64) {
        self.handle.send(RunnerCommand::Release { appliance: id(n), token: token(sequence) }).await.expect("it runs");
    }

    async fn update(&self, n: u128, sequence: u64, desired: Arc<Desired>) {
        let update = RunnerCommand::Update { appliance: id(n), token: token(sequence), desired, cause: None };
        self.handle.send(update).await.expect("it runs");
    }

    async fn event(&mut self) -> RunnerEvent {
        tokio::time::timeout(HOUR, self.events.recv()).await.expect("an event in time").expect("the runner runs")
    }

    async fn status(&mut self, wanted: impl Fn(&Status) -> bool) -> Status {
        loop {
            if let RunnerEvent::Status(StatusReport { status, .. }) = self.event().await
                && wanted(&status)
            {
                return status;
            }
        }
    }

    async fn phase(&mut self, phase: Phase) -> Status {
        self.status(|status| status.phase == phase).await
    }

    async fn released(&mut self) -> (Progress, Duration) {
        loop {
            if let RunnerEvent::Released { progress, fence_delay, .. } = self.event().await {
                return (progress, fence_delay);
            }
        }
    }

    /// Lets time pass while nobody reads events.
    async fn pass(&self, time: Duration) {
        tokio::time::sleep(time).await;
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_driver_says_of_an_instance_explains_its_silence_and_says_where_it_is_probed() {
    let mut bench = RunnerBench::new().await;
    let at =
        |problem: Option<&str>, addresses| Standing { addresses, problem: problem.map(str::to_owned), doubt: None };
    let say = |world: &RunnerWorld, standing| *world.standing.lock().expect("no panic") = Some(standing);
    let service = Some(([10, 0, 0, 1], 80).into());
    let addresses = Addresses { service, ..Addresses::default() };
    // It is not found where it has no address yet, so that its probes are not answered.
    say(&bench.world, at(Some("Unschedulable: no node"), addresses));
    bench.take(1, 1, desired(1, |_| {})).await;
    let told = "instance 0 does not answer yet: Unschedulable: no node (connection refused)";
    bench.status(|status| status.last_error.as_deref() == Some(told)).await;
    if let Some(instance) = bench.world.instances.lock().expect("no panic").get_mut(&id(1)) {
        instance[0].addresses = addresses;
    }
    say(&bench.world, at(None, addresses));
    let status = bench.phase(Phase::Configured).await;
    assert_eq!(status.instances[0].address, service);
    assert_eq!(bench.world.calls(), ["boot 0/1", "expose 0/1", "configure 0/1 g1"]);
}

#[tokio::test(start_paused = true)]
async fn an_appliance_is_booted_configured_and_probed() {
    let mut bench = RunnerBench::new().await;
    bench.take(1, 1, desired(1, |_| {})).await;
    let status = bench.phase(Phase::Configured).await;
    assert_eq!(status.instances[0].configured, Some(Generation::new(1)));
    assert_eq!(bench.world.calls(), ["boot 0/1", "configure 0/1 g1"]);
    bench.pass(Duration::from_secs(600)).await;
    let probes = bench.world.probes.lock().expect("no panic").len();
    assert!((10..=12).contains(&probes), "{probes} probes in ten minutes");
}

#[tokio::test(start_paused = true)]
async fn a_running_instance_is_adopted_as_it_is() {
    let mut bench = RunnerBench::new().await;
    let d = desired(4, |_| {});
    bench.world.put(id(1), 0, 7, &d);
    bench.take(1, 1, d).await;
    let status = bench.phase(Phase::Configured).await;
    assert_eq!(status.instances[0].details.pid(), Some(7));
    assert_eq!(bench.world.calls(), ["configure 0/7 g4"]);
}

#[tokio::test(start_paused = true)]
async fn instances_are_listed_by_address_for_as_long_as_they_are_held() {
    let mut bench = RunnerBench::new().await;
    let of_openstack = |d: &mut Desired| d.driver = DriverName::new(openstack::NAME).expect("a name");
    let d = desired(1, of_openstack);
    bench.world.put(id(1), 0, 7, &d);
    let at = SocketAddr::from(([10, 0, 0, 9], 5_000));
    if let Some(instance) = bench.world.instances.lock().expect("no panic").get_mut(&id(1)) {
        instance[0].has_own_address = true;
        instance[0].addresses.management = Some(at);
    }
    let holder = |bench: &RunnerBench| bench.held.at(at.ip()).map(|held| held.appliance);
    bench.take(1, 1, Arc::clone(&d)).await;
    bench.phase(Phase::Configured).await;
    assert_eq!(holder(&bench), Ok(id(1)));
    bench.release(1, 1).await;
    bench.released().await;
    assert_eq!(holder(&bench), Err(NotHeld::Nobody), "it was given back");
    bench.take(1, 2, d).await;
    bench.phase(Phase::Configured).await;
    assert_eq!(holder(&bench), Ok(id(1)));
    bench.gate.shut();
    assert_eq!(holder(&bench), Err(NotHeld::NoLease), "also before the runner knows of it");
}

#[tokio::test(start_paused = true)]
async fn statuses_are_told_again_when_asked() {
    let mut bench = RunnerBench::new().await;
    for n in 1..=3 {
        bench.take(n, n as u64, desired(1, |_| {})).await;
    }
    bench.pass(Duration::from_secs(1)).await;
    while bench.events.try_recv().is_ok() {}
    bench.handle.send(RunnerCommand::Restate).await.expect("it runs");
    let mut told = BTreeSet::new();
    while told.len() < 3 {
        if let RunnerEvent::Status(StatusReport { appliance, token, status, checked, .. }) = bench.event().await {
            assert_eq!((status.phase, checked), (Phase::Configured, 0));
            assert_eq!(appliance, id(token.sequence.into()));
            told.insert(appliance);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_killed_instance_is_replaced_within_the_probe_interval() {
    let mut bench = RunnerBench::new().await;
    bench.take(1, 1, desired(1, |_| {})).await;
    bench.phase(Phase::Configured).await;
    bench.world.instances.lock().expect("no panic").clear();
    let killed = Instant::now();
    let status = bench.phase(Phase::Configured).await;
    assert_eq!(status.instances[0].details.pid(), Some(2));
    assert!(killed.elapsed() <= Duration::from_secs(63), "{:?}", killed.elapsed());
}

#[tokio::test(start_paused = true)]
async fn an_instance_whose_end_is_reported_is_replaced_at_once() {
    let mut bench = RunnerBench::new().await;
    bench.take(1, 1, desired(1, |_| {})).await;
    bench.phase(Phase::Configured).await;
    let report = |bench: &RunnerBench| {
        let watched = bench.world.watched.lock().expect("no panic");
        watched.iter().for_each(|(ended, ends)| ends.try_send(*ended).expect("there is room"));
    };
    // A report that is not true costs a probe.
    report(&bench);
    bench.pass(Duration::from_secs(1)).await;
    assert_eq!(bench.world.calls(), ["boot 0/1", "configure 0/1 g1"]);
    bench.world.instances.lock().expect("no panic").clear();
    let killed = Instant::now();
    report(&bench);
    let status = bench.phase(Phase::Configured).await;
    assert_eq!(status.instances[0].details.pid(), Some(2));
    assert!(killed.elapsed() <= Duration::from_secs(1), "{:?}", killed.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_stranger_that_answers_for_a_dead_instance_does_not_pass_for_it() {
    let mut bench = RunnerBench::new().await;
    bench.take(1, 1, desired(1, |_| {})).await;
    bench.phase(Phase::Configured).await;
    bench.world.foreign.store(true, Ordering::Relaxed);
    bench.world.instances.lock().expect("no panic").clear();
    let status = bench.status(|status| status.last_error.is_some()).await;
    assert_eq!(status.last_error.as_deref(), Some("instance 0 is gone: it does not run any more"));
    bench.phase(Phase::Configured).await;
    assert_eq!(bench.world.calls(), ["boot 0/1", "configure 0/1 g1", "boot 0/2", "configure 0/2 g1"]);
}

#[tokio::test(start_paused = true)]
async fn a_hanging_instance_is_replaced_after_several_probes() {
    let mut bench = RunnerBench::new().await;
    bench.take(1, 1, desired(1, |_| {})).await;
    bench.phase(Phase::Configured).await;
    bench.world.probes_hang.store(true, Ordering::Relaxed);
    let status = bench.status(|s| s.phase != Phase::Configured).await;
    assert!(status.last_error.expect("it says why").contains("left 3 probes unanswered: no answer within 3s"));
    bench.world.probes_hang.store(false, Ordering::Relaxed);
    bench.phase(Phase::Configured).await;
    assert_eq!(bench.world.calls()[2..], ["destroy 0/1", "boot 0/2", "configure 0/2 g1"]);
}

#[tokio::test(start_paused = true)]
async fn a_shut_gate_starts_nothing_and_counts_as_no_failure() {
    let mut bench = RunnerBench::fenced().await;
    bench.take(1, 1, desired(1, |_| {})).await;
    bench.pass(HOUR / 2).await;
    assert_eq!(bench.world.calls(), Vec::<String>::new());
    bench.open();
    let status = bench.phase(Phase::Configured).await;
    assert_eq!(bench.world.calls(), ["boot 0/1", "configure 0/1 g1"]);
    assert_eq!(status.failed_boots, 0);
}

#[tokio::test(start_paused = true)]
async fn a_refused_token_is_told_each_time_and_shown() {
    let mut bench = RunnerBench::new().await;
    let in_force = Token::new(Term::new(9), 3);
    *bench.world.newer.lock().expect("no panic") = Some(in_force);
    bench.take(1, 1, desired(1, |_| {})).await;
    let (mut told, mut shown) = (0, None);
    while told < 2 || shown.is_none() {
        match bench.event().await {
            RunnerEvent::Refused { appliance, token: held, newer } => {
                assert_eq!((appliance, held, newer), (id(1), token(1), in_force));
                told += 1;
            }
            RunnerEvent::Status(StatusReport { status, .. }) => shown = shown.or(status.last_error),
            RunnerEvent::Run(_) => {}
            other => panic!("nothing else happened: {other:?}"),
        }
    }
    assert_eq!(shown.as_deref(), Some("fenced by a newer token t9/3"));
    assert_eq!(bench.world.calls(), Vec::<String>::new());
    *bench.world.newer.lock().expect("no panic") = None;
    let status = bench.phase(Phase::Configured).await;
    assert_eq!((status.last_error, status.failed_boots), (None, 0));
}

#[tokio::test(start_paused = true)]
async fn a_release_carries_progress_and_ends_all_action() {
    let mut bench = RunnerBench::new().await;
    bench.world.boots.fail.store(true, Ordering::Relaxed);
    bench.take(1, 1, desired(1, |_| {})).await;
    let status = bench.phase(Phase::Error).await;
    assert!(status.last_error.expect("it says why").contains("command `serve` not found"));
    bench.release(1, 1).await;
    let (progress, fence_delay) = bench.released().await;
    assert_eq!((progress.failed_boots, progress.cooling, &progress.attempts[..]), (5, true, &[5][..]));
    assert!(progress.wait <= Duration::from_secs(30) && fence_delay.is_zero());
    let calls = bench.world.calls().len();
    bench.pass(HOUR).await;
    assert_eq!(bench.world.calls().len(), calls, "nothing acts after a release");

    bench.world.boots.fail.store(false, Ordering::Relaxed);
    let begun = Instant::now();
    bench.take_with(1, 2, desired(1, |_| {}), progress.clone()).await;
    bench.phase(Phase::Configured).await;
    assert!(begun.elapsed() >= progress.wait, "the cooldown goes on where it was");
    assert_eq!(bench.world.calls().last().map(String::as_str), Some("configure 0/6 g1"));
}

#[tokio::test(start_paused = true)]
async fn a_release_waits_for_a_boot_but_not_for_a_probe() {
    let mut bench = RunnerBench::new().await;
    *bench.world.boots.takes.lock().expect("no panic") = Duration::from_secs(30);
    bench.take(1, 1, desired(1, |_| {})).await;
    bench.phase(Phase::Booting).await;
    let asked = Instant::now();
    bench.release(1, 1).await;
    let (progress, _) = bench.released().await;
    assert!(asked.elapsed() >= Duration::from_secs(29), "the boot was let end");
    assert_eq!(progress.journal[0].step, "boot 0");
    assert_eq!(bench.world.find(id(1)).len(), 1);

    bench.world.probes_hang.store(true, Ordering::Relaxed);
    bench.take_with(1, 2, desired(1, |_| {}), progress).await;
    bench.pass(Duration::from_secs(1)).await;
    let asked = Instant::now();
    bench.release(1, 2).await;
    bench.released().await;
    assert!(asked.elapsed() < Duration::from_millis(10), "a hanging probe must not delay a hand-off");
}

#[tokio::test(start_paused = true)]
async fn a_call_that_timed_out_leaves_a_fence_delay_behind() {
    let mut bench = RunnerBench::new().await;
    *bench.world.boots.takes.lock().expect("no panic") = HOUR;
    bench.take(1, 1, desired(1, |_| {})).await;
    bench.status(|status| status.failed_boots == 1).await;
    bench.release(1, 1).await;
    let (_, fence_delay) = bench.released().await;
    assert!(fence_delay > Duration::from_secs(10), "{fence_delay:?}");
}

#[tokio::test(start_paused = true)]
async fn a_deletion_outlasts_a_call_that_timed_out() {
    let mut bench = RunnerBench::new().await;
    *bench.world.boots.takes.lock().expect("no panic") = HOUR;
    bench.take(1, 1, desired(1, |_| {})).await;
    bench.status(|status| status.failed_boots == 1).await;
    let asked = Instant::now();
    bench.update(1, 1, desired(2, |d| d.deleting = true)).await;
    while !matches!(bench.event().await, RunnerEvent::Gone { .. }) {}
    assert!(asked.elapsed() > Duration::from_secs(19), "it was gone after {:?}", asked.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_call_that_failed_leaves_a_fence_delay_behind_only_where_no_token_fences_it() {
    let mut bench = RunnerBench::new().await;
    bench.world.boots.panic.store(true, Ordering::Relaxed);
    bench.take(1, 1, desired(1, |_| {})).await;
    bench.status(|status| status.failed_boots == 1).await;
    bench.release(1, 1).await;
    let (_, fence_delay) = bench.released().await;
    assert!(fence_delay > Duration::from_secs(10), "{fence_delay:?}");

    bench.world.boots.panic.store(false, Ordering::Relaxed);
    bench.world.boots.fail.store(true, Ordering::Relaxed);
    bench.take(2, 2, desired(1, |_| {})).await;
    bench.status(|status| status.failed_boots == 1).await;
    bench.release(2, 2).await;
    assert_eq!(bench.released().await.1, Duration::ZERO, "it was refused, so it will not take effect");
}

#[tokio::test(start_paused = true)]
async fn a_fence_delay_is_waited_out_and_what_is_left_of_it_is_handed_on() {
    let mut bench = RunnerBench::new().await;
    bench.take_held(1, 1, Duration::from_secs(20)).await;
    bench.pass(Duration::from_secs(10)).await;
    bench.release(1, 1).await;
    let (_, left) = bench.released().await;
    assert!((Duration::from_secs(10)..Duration::from_secs(12)).contains(&left), "{left:?}");
    assert_eq!(bench.world.calls(), Vec::<String>::new(), "calls of the former owner may still take effect");

    let begun = Instant::now();
    bench.take_held(1, 2, left).await;
    bench.phase(Phase::Configured).await;
    assert!(begun.elapsed() >= left);
    bench.release(1, 2).await;
    assert_eq!(bench.released().await.1, Duration::ZERO, "served, and every call was answered");
}

#[tokio::test(start_paused = true)]
async fn a_deleted_appliance_is_gone_to_the_last_trace() {
    let mut bench = RunnerBench::new().await;
    bench.take(1, 1, desired(1, |_| {})).await;
    bench.phase(Phase::Configured).await;
    bench.update(1, 1, desired(2, |d| d.deleting = true)).await;
    loop {
        if let RunnerEvent::Gone { appliance, token: gone } = bench.event().await {
            assert_eq!((appliance, gone), (id(1), token(1)));
            break;
        }
    }
    assert_eq!(bench.world.calls()[2..], ["destroy 0/1", "forget"]);
    assert!(bench.gate.pass(id(1), token(1)).is_err(), "the grant is given up");
}

#[tokio::test(start_paused = true)]
async fn commands_of_an_old_token_change_nothing() {
    let mut bench = RunnerBench::new().await;
    bench.take(1, 5, desired(1, |_| {})).await;
    bench.phase(Phase::Configured).await;
    bench.release(1, 4).await;
    bench.update(1, 4, desired(9, |d| d.deleting = true)).await;
    let (appliance, old) = (id(1), token(4));
    let take = RunnerCommand::Take {
        appliance,
        token: old,
        desired: desired(9, |d| d.deleting = true),
        progress: Progress::default(),
        suspect: false,
        mode: Mode::default(),
        fence_delay: Duration::ZERO,
        traceparent: String::new(),
        cause: None,
        adopting: None,
    };
    bench.handle.send(take).await.expect("it runs");
    bench.update(1, 5, desired(2, |_| {})).await;
    let status = bench.status(|s| s.observed_generation == Generation::new(2) && s.phase == Phase::Configured).await;
    assert_eq!(status.instances[0].details.pid(), Some(1));
}

#[tokio::test(start_paused = true)]
async fn hands_off_is_said_once_the_running_step_has_ended_and_nothing_follows() {
    let mut bench = RunnerBench::new().await;
    *bench.world.boots.takes.lock().expect("no panic") = Duration::from_secs(30);
    bench.take(1, 1, desired(1, |_| {})).await;
    bench.phase(Phase::Booting).await;
    let asked = Instant::now();
    bench.hands(1, 1, 1, true).await;
    assert_eq!(bench.quiet().await, 1);
    assert!(asked.elapsed() > Duration::from_secs(20), "the boot runs to its end");
    let calls = bench.world.calls();
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!(bench.world.calls(), calls, "nothing else is begun");
    bench.hands(1, 1, 2, false).await;
    bench.phase(Phase::Configured).await;
}

#[tokio::test(start_paused = true)]
async fn an_announced_step_does_not_begin_once_hands_are_off() {
    let mut bench = RunnerBench::new().await;
    bench.take_suspect(1, 1, desired(1, |_| {})).await;
    let number = bench.begins().await;
    bench.hands(1, 1, 1, true).await;
    assert_eq!(bench.quiet().await, 1);
    bench.clear(1, 1, number).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(bench.world.calls(), Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn what_is_taken_with_hands_off_is_looked_at_and_said_to_be_quiet() {
    let mut bench = RunnerBench::new().await;
    let (appliance, token) = (id(1), token(1));
    bench.gate.admit(appliance, token, Duration::ZERO);
    bench.gate.set_hands_off(appliance, token, true);
    let mut take = RunnerBench::grant(appliance, token, desired(1, |_| {}), Progress::default());
    if let RunnerCommand::Take { mode, .. } = &mut take {
        *mode = Mode::new(ModeEdition::new(Term::new(1), 4), true);
    }
    bench.handle.send(take).await.expect("it runs");
    assert_eq!(bench.quiet().await, 4);
    let report = loop {
        if let RunnerEvent::Status(report) = bench.event().await
            && !report.would_have.is_empty()
        {
            break report;
        }
    };
    assert_eq!(report.would_have[0].step, "boot 0");
    assert_eq!(bench.world.calls(), Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn a_check_is_answered_after_a_look() {
    let mut bench = RunnerBench::new().await;
    bench.take(1, 1, desired(1, |_| {})).await;
    bench.phase(Phase::Configured).await;
    let check = RunnerCommand::Check { appliance: id(1), token: token(1), number: 42 };
    bench.handle.send(check).await.expect("it runs");
    let asked = Instant::now();
    loop {
        if let RunnerEvent::Status(StatusReport { checked: 42, status, .. }) = bench.event().await {
            assert_eq!(status.phase, Phase::Configured);
            break;
        }
    }
    assert!(asked.elapsed() < Duration::from_secs(1));
}

#[tokio::test(start_paused = true)]
async fn a_new_incarnation_waits_for_steps_of_the_former() {
    let mut bench = RunnerBench::new().await;
    *bench.world.boots.takes.lock().expect("no panic") = Duration::from_secs(30);
    bench.take(1, 1, desired(1, |_| {})).await;
    bench.phase(Phase::Booting).await;
    let old = Arc::clone(&bench.gate);
    bench.gate = SharedGate::new();
    bench.open();
    bench.handle.send(RunnerCommand::Begin { gate: Arc::clone(&bench.gate) }).await.expect("it runs");
    let begun = Instant::now();
    bench.take(1, 2, desired(1, |_| {})).await;
    let status = bench.phase(Phase::Configured).await;
    assert!(begun.elapsed() >= Duration::from_secs(29));
    assert_eq!(status.instances[0].details.pid(), Some(1), "what the former step started is adopted");
    assert!(!old.lease_stands());
}

#[tokio::test(start_paused = true)]
async fn a_panic_of_a_driver_is_a_failed_step() {
    let mut bench = RunnerBench::new().await;
    bench.world.boots.panic.store(true, Ordering::Relaxed);
    bench.take(1, 1, desired(1, |_| {})).await;
    let status = bench.status(|s| s.failed_boots == 1).await;
    assert!(status.last_error.expect("it says why").contains("panicked"));
    bench.world.boots.panic.store(false, Ordering::Relaxed);
    bench.phase(Phase::Configured).await;
}

#[tokio::test(start_paused = true)]
async fn probes_of_a_thousand_appliances_are_spread_over_the_interval() {
    let bench = RunnerBench::new().await;
    for n in 0..1_000 {
        let d = desired(1, |d| d.name = Name::new(&format!("web{n}")).expect("a valid name"));
        bench.world.put(id(n), 0, 1, &d);
        bench.take(n, 1, d).await;
    }
    bench.pass(Duration::from_secs(60)).await;
    bench.world.probes.lock().expect("no panic").clear();
    let from = bench.world.start.elapsed();
    bench.pass(Duration::from_secs(120)).await;
    let probes = bench.world.probes.lock().expect("no panic").clone();
    assert!((1_990..=2_010).contains(&probes.len()), "{} probes in two intervals", probes.len());
    let mut seconds = BTreeMap::new();
    for (at, _) in &probes {
        *seconds.entry((*at - from).as_secs()).or_insert(0) += 1;
    }
    let most = seconds.values().max().copied().unwrap_or(0);
    assert!(most <= 45, "{most} probes in one second, 17 would be even");
}

#[tokio::test(start_paused = true)]
async fn statuses_fold_while_nobody_reads_them() {
    let mut bench = RunnerBench::new().await;
    for n in 0..3_000 {
        bench.take(n, 1, desired(1, |d| d.name = Name::new(&format!("web{n}")).expect("a valid name"))).await;
    }
    bench.pass(Duration::from_secs(60)).await;
    drop(bench.handle);
    let mut newest = BTreeMap::new();
    let mut events = 0;
    while let Some(event) = bench.events.recv().await {
        if let RunnerEvent::Status(StatusReport { appliance, status, .. }) = event {
            newest.insert(appliance, status.phase);
            events += 1;
        }
    }
    assert!(events <= 2 * EVENTS, "{events} events");
    assert!(!newest.is_empty());
}

#[tokio::test(start_paused = true)]
async fn stopping_lets_a_running_step_end() {
    let mut bench = RunnerBench::new().await;
    *bench.world.boots.takes.lock().expect("no panic") = Duration::from_secs(5);
    bench.take(1, 1, desired(1, |_| {})).await;
    bench.phase(Phase::Booting).await;
    drop(bench.handle);
    while bench.events.recv().await.is_some() {}
    assert_eq!(bench.world.find(id(1)).len(), 1);
}
