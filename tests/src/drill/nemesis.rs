//! Carries storms out: breaks what a plan says when it says so, mends it again, and writes down what it did.
//!
//! Also the supervisor of the daemons, as systemd is elsewhere: what ends by itself is started again, and unless it says
//! by its exit code that its name was still taken, that is a violation.

use std::collections::BTreeSet;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use runtime::clock;
use rustix::process::Signal;
use serde::Serialize;
use servers::netns::Host;

use super::checker::{ProcessExit, Violation};
use super::plan::{DrillFault, FaultTarget, ForwardedLink, Planned, Shape, Storm, everybody};
use crate::cluster::daemon::Daemon;
use crate::cluster::processes;
use crate::fleet::{Fleet, FleetDatabase};

/// How often it looks whether something is due or has ended.
const LOOK: Duration = Duration::from_millis(20);
/// How long a daemon may take to end after SIGTERM, before that is a violation.
const STOP: Duration = Duration::from_secs(45);
/// How long it is asked who leads.
const WHO: Duration = Duration::from_secs(2);
/// Exit codes that say that the daemon's own name was still taken.
const NAME_TAKEN: [i32; 2] = [4, 6];

/// Something that was done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DrillEvent {
    /// When, in milliseconds since the drill began.
    pub at_ms: u64,
    /// What kind of fault.
    pub kind: String,
    /// To what exactly.
    pub target: String,
    /// How long it was to last, in milliseconds.
    pub lasts_ms: u64,
}

/// How to mend what was broken.
#[derive(Clone, Debug)]
enum Mend {
    Start(FaultTarget),
    Resume(FaultTarget),
    /// Started again once it has ended; since when it has been asked to.
    AwaitEnd(FaultTarget, Instant),
    Heal(Vec<(Host, Host)>),
    Undelay(ForwardedLink),
}

/// Breaks a fleet.
pub struct Nemesis {
    shape: Shape,
    rng: StdRng,
    begun: Instant,
    /// What has to be mended, and when.
    broken: Vec<(Instant, Mend)>,
    /// Daemons that are down on purpose.
    down: BTreeSet<String>,
    /// What was done.
    pub events: Vec<DrillEvent>,
    /// Ends of processes.
    pub exits: Vec<ProcessExit>,
    /// Daemons that found their name taken and were started again.
    pub names_taken: u64,
    /// Daemons that ended otherwise.
    pub violations: Vec<Violation>,
    /// Whether every step is said on standard error.
    talks: bool,
}

impl Nemesis {
    /// One that has done nothing yet.
    #[must_use]
    pub fn new(seed: u64, shape: Shape, talks: bool) -> Self {
        Self {
            shape,
            rng: StdRng::seed_from_u64(seed.wrapping_add(1)),
            begun: Instant::now(),
            broken: Vec::new(),
            down: BTreeSet::new(),
            events: Vec::new(),
            exits: Vec::new(),
            names_taken: 0,
            violations: Vec::new(),
            talks,
        }
    }

    /// Since it began.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.begun.elapsed()
    }

    /// Says something on standard error, with the time.
    pub fn say(&self, text: &str) {
        if self.talks {
            eprintln!("[{:6.1} s] {text}", self.begun.elapsed().as_secs_f64());
        }
    }

    /// Carries a storm out, until all of it is mended; or breaks off at `deadline` and mends what is broken.
    ///
    /// # Errors
    /// When something cannot be broken or mended.
    pub async fn storm(&mut self, fleet: &mut Fleet, storm: &Storm, deadline: Instant) -> Result<()> {
        let begun = Instant::now();
        for planned in &storm.faults {
            let due = begun + planned.after;
            if due >= deadline {
                break;
            }
            self.wait(fleet, due).await?;
            self.strike(fleet, planned).await?;
        }
        let last = self.broken.iter().map(|(due, _)| *due).max().unwrap_or(begun);
        self.wait(fleet, last.min(deadline)).await?;
        self.mend_all(fleet).await
    }

    /// Lets time pass, mending what is due and starting what has ended.
    ///
    /// # Errors
    /// When something cannot be mended or started.
    pub async fn wait(&mut self, fleet: &mut Fleet, until: Instant) -> Result<()> {
        loop {
            self.mend_due(fleet).await?;
            self.supervise(fleet)?;
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            tokio::time::sleep(left.min(LOOK)).await;
        }
    }

    /// Mends everything now.
    ///
    /// # Errors
    /// When something cannot be mended.
    pub async fn mend_all(&mut self, fleet: &mut Fleet) -> Result<()> {
        let now = Instant::now();
        self.broken.iter_mut().for_each(|(due, _)| *due = now);
        while !self.broken.is_empty() {
            self.wait(fleet, Instant::now() + LOOK).await?;
        }
        Ok(())
    }

    async fn strike(&mut self, fleet: &mut Fleet, planned: &Planned) -> Result<()> {
        let Some((target, mend)) = self.break_it(fleet, planned.fault).await? else { return Ok(()) };
        let kind = planned.fault.kind();
        self.say(&format!("{kind}: {target}, {:.1} s", planned.lasts.as_secs_f64()));
        let at_ms = millis(self.begun.elapsed());
        self.events.push(DrillEvent { at_ms, kind, target, lasts_ms: millis(planned.lasts) });
        if let Some(mend) = mend {
            self.broken.push((Instant::now() + planned.lasts, mend));
        }
        Ok(())
    }

    /// Breaks something. Answers with what it was and how it is mended; `None` when it is not there to be broken.
    async fn break_it(&mut self, fleet: &mut Fleet, fault: DrillFault) -> Result<Option<(String, Option<Mend>)>> {
        Ok(match fault {
            DrillFault::Kill(part) => {
                let part = self.who(fleet, part).await;
                if !self.kill(fleet, part)? {
                    return Ok(None);
                }
                Some((part.to_string(), Some(Mend::Start(part))))
            }
            DrillFault::Pause(part) => {
                let part = self.who(fleet, part).await;
                if !pause(fleet, part)? {
                    return Ok(None);
                }
                Some((part.to_string(), Some(Mend::Resume(part))))
            }
            DrillFault::Stop(part) => {
                let part = self.who(fleet, part).await;
                let Some(daemon) = daemon(fleet, part) else { return Ok(None) };
                if !daemon.runs() {
                    return Ok(None);
                }
                self.down.insert(daemon.name().to_owned());
                self.exits.extend(exit(daemon));
                daemon.signal(Signal::TERM)?;
                Some((part.to_string(), Some(Mend::AwaitEnd(part, Instant::now()))))
            }
            DrillFault::Cut(one, other) => {
                let (one, other) = (self.who(fleet, one).await, self.who(fleet, other).await);
                let (a, b) = (host(fleet, one)?, host(fleet, other)?);
                cut(&[(a.clone(), b.clone()), (b.clone(), a.clone())])?;
                Some((format!("{one} - {other}"), Some(Mend::Heal(vec![(a.clone(), b.clone()), (b, a)]))))
            }
            DrillFault::CutOneWay(from, to) => {
                let (from, to) = (self.who(fleet, from).await, self.who(fleet, to).await);
                let links = vec![(host(fleet, from)?, host(fleet, to)?)];
                cut(&links)?;
                Some((format!("{from} > {to}"), Some(Mend::Heal(links))))
            }
            DrillFault::Isolate(part) => {
                let part = self.who(fleet, part).await;
                let own = host(fleet, part)?;
                let mut links = Vec::new();
                for other in everybody(self.shape).into_iter().filter(|other| *other != part) {
                    let other = host(fleet, other)?;
                    links.extend([(own.clone(), other.clone()), (other, own.clone())]);
                }
                cut(&links)?;
                Some((part.to_string(), Some(Mend::Heal(links))))
            }
            DrillFault::Delay(link, ms) => {
                delay(fleet, link, Some(Duration::from_millis(ms)))?;
                Some((format!("{link} by {ms} ms"), Some(Mend::Undelay(link))))
            }
            DrillFault::KillInstance => {
                let instances: Vec<_> = fleet.instances().into_iter().collect();
                if instances.is_empty() {
                    return Ok(None);
                }
                let (name, process) = &instances[self.rng.random_range(0..instances.len())];
                processes::signal(process.pid, Signal::KILL);
                Some((name.clone(), None))
            }
        })
    }

    /// Finds out who leads, where the plan leaves that open.
    async fn who(&self, fleet: &Fleet, part: FaultTarget) -> FaultTarget {
        match part {
            FaultTarget::Leader => FaultTarget::Coordinator(leader(fleet).await.unwrap_or(1)),
            FaultTarget::ZooKeeperLeader => {
                for n in 1..=self.shape.zookeepers {
                    if matches!(fleet.zookeeper.mode(usize::from(n) - 1).await.as_deref(), Ok("leader")) {
                        return FaultTarget::ZooKeeper(n);
                    }
                }
                FaultTarget::ZooKeeper(1)
            }
            known => known,
        }
    }

    /// `kill -9`; whether it ran.
    fn kill(&mut self, fleet: &mut Fleet, part: FaultTarget) -> Result<bool> {
        match part {
            FaultTarget::ZooKeeper(n) => fleet.zookeeper.kill(usize::from(n) - 1)?,
            FaultTarget::EveryZooKeeper => (0..fleet.zookeeper.len()).try_for_each(|i| fleet.zookeeper.kill(i))?,
            FaultTarget::Database => fleet.database.kill()?,
            part => {
                let Some(daemon) = daemon(fleet, part).filter(|daemon| daemon.runs()) else { return Ok(false) };
                self.down.insert(daemon.name().to_owned());
                self.exits.extend(exit(daemon));
                daemon.kill()?;
            }
        }
        Ok(true)
    }

    async fn mend_due(&mut self, fleet: &mut Fleet) -> Result<()> {
        let now = Instant::now();
        let (due, later) = std::mem::take(&mut self.broken).into_iter().partition(|(due, _)| *due <= now);
        self.broken = later;
        let due: Vec<(Instant, Mend)> = due;
        for (_, mend) in due {
            match mend {
                Mend::Start(part) => self.start(fleet, part).await?,
                Mend::Resume(part) => resume(fleet, part)?,
                Mend::AwaitEnd(part, since) => self.start_once_ended(fleet, part, since).await?,
                Mend::Heal(links) => {
                    for (from, to) in &links {
                        from.heal(to)?;
                    }
                }
                Mend::Undelay(link) => delay(fleet, link, None)?,
            }
        }
        Ok(())
    }

    async fn start(&mut self, fleet: &mut Fleet, part: FaultTarget) -> Result<()> {
        match part {
            // What waits for it, waits; there may be no majority for it yet.
            FaultTarget::ZooKeeper(n) => fleet.zookeeper.launch(usize::from(n) - 1)?,
            FaultTarget::EveryZooKeeper => (0..fleet.zookeeper.len()).try_for_each(|i| fleet.zookeeper.launch(i))?,
            FaultTarget::Database => fleet.database.start_again().await?,
            part => {
                let Some(daemon) = daemon(fleet, part) else { return Ok(()) };
                self.down.remove(daemon.name());
                daemon.start()?;
            }
        }
        Ok(())
    }

    async fn start_once_ended(&mut self, fleet: &mut Fleet, part: FaultTarget, since: Instant) -> Result<()> {
        let Some(daemon) = daemon(fleet, part) else { return Ok(()) };
        let name = daemon.name().to_owned();
        match daemon.ended_by_itself()? {
            Some(status) if !status.success() => {
                self.blame(format!("{name} was asked to stop and ended with {status}"));
            }
            Some(_) => {}
            None if since.elapsed() < STOP => {
                self.broken.push((Instant::now() + LOOK, Mend::AwaitEnd(part, since)));
                return Ok(());
            }
            None => {
                daemon.kill()?;
                self.blame(format!("{name} still ran {STOP:?} after it was asked to stop"));
            }
        }
        self.start(fleet, part).await
    }

    fn blame(&mut self, text: String) {
        self.say(&text);
        self.violations.push(Violation { rule: "daemons run", text });
    }

    /// Starts what has ended by itself.
    fn supervise(&mut self, fleet: &mut Fleet) -> Result<()> {
        let mut ended: Vec<(String, ExitStatus)> = Vec::new();
        for daemon in fleet.coordinators.iter_mut().chain(&mut fleet.workers) {
            if self.down.contains(daemon.name()) {
                continue;
            }
            let last_seen = exit(daemon);
            if let Some(status) = daemon.ended_by_itself()? {
                // Not when it ended, but when it is noticed: no more than a look later.
                self.exits.extend(last_seen);
                ended.push((daemon.name().to_owned(), status));
                daemon.start()?;
            }
        }
        for (name, status) in ended {
            if status.code().is_some_and(|code| NAME_TAKEN.contains(&code)) {
                self.names_taken += 1;
                self.say(&format!("{name} found its name taken and was started again"));
            } else {
                self.blame(format!("{name} ended by itself: {status}"));
            }
        }
        Ok(())
    }
}

/// The coordinator that leads, counted from 1.
async fn leader(fleet: &Fleet) -> Option<u16> {
    for (n, api) in (1..).zip(&fleet.apis) {
        if let Ok(Ok(status)) = tokio::time::timeout(WHO, api.status()).await {
            let found = fleet.coordinators.iter().position(|c| c.name() == status.coordinator);
            return found.and_then(|index| u16::try_from(index + 1).ok()).or(Some(n));
        }
    }
    None
}

fn daemon(fleet: &mut Fleet, part: FaultTarget) -> Option<&mut Daemon> {
    match part {
        FaultTarget::Worker(n) => fleet.workers.get_mut(usize::from(n) - 1),
        FaultTarget::Coordinator(n) => fleet.coordinators.get_mut(usize::from(n) - 1),
        _ => None,
    }
}

fn exit(daemon: &Daemon) -> Option<ProcessExit> {
    Some(ProcessExit { name: daemon.name().to_owned(), pid: daemon.pid()?, at_ns: clock::now().as_nanos() })
}

/// SIGSTOP; whether it ran.
fn pause(fleet: &mut Fleet, part: FaultTarget) -> Result<bool> {
    match part {
        FaultTarget::ZooKeeper(n) => fleet.zookeeper.pause(usize::from(n) - 1)?,
        FaultTarget::EveryZooKeeper => (0..fleet.zookeeper.len()).try_for_each(|i| fleet.zookeeper.pause(i))?,
        FaultTarget::Database => match &mut fleet.database {
            FleetDatabase::Postgres(server) => server.pause()?,
            FleetDatabase::MariaDb(_) => bail!("drills run on PostgreSQL"),
        },
        part => match daemon(fleet, part).filter(|daemon| daemon.runs()) {
            Some(daemon) => daemon.signal(Signal::STOP)?,
            None => return Ok(false),
        },
    }
    Ok(true)
}

fn resume(fleet: &mut Fleet, part: FaultTarget) -> Result<()> {
    match part {
        FaultTarget::ZooKeeper(n) => fleet.zookeeper.resume(usize::from(n) - 1),
        FaultTarget::EveryZooKeeper => (0..fleet.zookeeper.len()).try_for_each(|i| fleet.zookeeper.resume(i)),
        FaultTarget::Database => match &mut fleet.database {
            FleetDatabase::Postgres(server) => server.resume(),
            FleetDatabase::MariaDb(_) => bail!("drills run on PostgreSQL"),
        },
        part => daemon(fleet, part).filter(|daemon| daemon.runs()).map_or(Ok(()), |d| d.signal(Signal::CONT)),
    }
}

fn host(fleet: &Fleet, part: FaultTarget) -> Result<Host> {
    let network = fleet.network.as_ref().context("drills run on hosts")?;
    match part {
        FaultTarget::Database => Ok(network.here().clone()),
        part => network.host(&part.to_string()).cloned(),
    }
}

fn cut(links: &[(Host, Host)]) -> Result<()> {
    links.iter().try_for_each(|(from, to)| from.cut(to))
}

fn delay(fleet: &Fleet, link: ForwardedLink, by: Option<Duration>) -> Result<()> {
    let proxies = &fleet.proxies;
    let (proxies, n) = match link {
        ForwardedLink::ToCoordinator(n) => (&proxies.coordinators, n),
        ForwardedLink::ToDatabase(n) => (&proxies.databases, n),
        ForwardedLink::ToZooKeeper(n) => (&proxies.zookeepers, n),
    };
    let proxy = proxies.get(usize::from(n) - 1).with_context(|| format!("there is no proxy {link}"))?;
    match by {
        Some(by) => proxy.delay(by),
        None => proxy.heal(),
    }
    Ok(())
}

/// Whole milliseconds.
#[must_use]
pub fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
