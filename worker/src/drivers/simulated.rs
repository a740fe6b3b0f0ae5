//! The `simulated` driver and its protocol: instances in memory, with latencies and failures from the settings. For benchmarks
//! and soak runs only.
//!
//! Workers are separate processes, while a simulated instance is supposed to exist "in the world". There are two
//! worlds to choose from:
//!
//! - private (the default): the world is this process. Nothing is written, some 170 bytes per instance are kept, and
//!   another worker that takes an appliance over sees no instance and boots it again;
//! - shared (`world` names a directory): each worker appends what it changes to a file of its own there and reads the
//!   files of the others before it looks for an instance. Instances then survive moves and worker deaths, as real ones
//!   do; every worker of the world may end up knowing all of it.
//!
//! A token older than the newest one seen for the appliance is refused, in a shared world across workers: as far as
//! their files have been read, which is good enough for something that is not real. With `fencing = "delay"` it stands for
//! a backend that knows no tokens: a call asks the gate before it starts, and then takes effect whoever owns the appliance
//! by the time it does.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use common::appliance::{FieldViolation, Name};
use common::kind::StopRecipe;
use common::network_port::NetworkPort;
use common::{ApplianceId, Timestamp, Token};
use serde::{Deserialize, Serialize};
use worker_core::desired::Desired;
use worker_core::instance::{BootState, Instance, Observation};
use worker_core::peers::Peer;
use worker_core::ports::{PluggedPort, PluggedPorts};

use crate::drivers::{Driver, DriverFencing, Error, Wanted};
use crate::gate::Permit;
use crate::kinds::{ProbeAnswer, Protocol};
use runtime::clock;
use runtime::folder::{Access, Folder};
use runtime::log_limited;

/// How calls are kept from taking effect once their caller is no longer the owner.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum FencedBy {
    /// Older tokens are refused.
    #[default]
    Token,
    /// By nothing: the next owner waits for `fence_delay`.
    #[serde(alias = "hold")]
    Delay,
}

/// Name of the driver.
pub const NAME: &str = "simulated";

/// How images begin that never boot, to try what happens then.
const BROKEN: &str = "broken";

/// Settings of the driver.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// How long starting and ending an instance takes.
    #[serde(with = "humantime_serde")]
    #[cfg_attr(test, schemars(with = "common::schema::DurationText"))]
    pub boot_latency: Duration,
    /// How long putting a configuration in place takes.
    #[serde(with = "humantime_serde")]
    #[cfg_attr(test, schemars(with = "common::schema::DurationText"))]
    pub configure_latency: Duration,
    /// How long a probe takes.
    #[serde(with = "humantime_serde")]
    #[cfg_attr(test, schemars(with = "common::schema::DurationText"))]
    pub probe_latency: Duration,
    /// Share of boots, configurations and probes that fail, 0 to 1.
    pub failure_rate: f64,
    /// Whether network ports are plugged into running instances; without it a change of ports replaces them.
    pub hot_plug: bool,
    /// How long plugging a network port in or out takes.
    #[serde(with = "humantime_serde")]
    #[cfg_attr(test, schemars(with = "common::schema::DurationText"))]
    pub plug_latency: Duration,
    /// Share of ports plugged in or out that fails without an effect, 0 to 1.
    pub plug_failure_rate: f64,
    /// Share of ports plugged in or out that takes effect and is reported as failed, 0 to 1.
    pub plug_lost_rate: f64,
    /// Seed of the failures: the same calls in the same order fail again.
    pub seed: u64,
    /// Directory of a world shared by workers of one host; a private one when absent.
    pub world: Option<PathBuf>,
    /// What fences its calls.
    pub fencing: FencedBy,
    /// With `fencing = "delay"`: how long after they were sent calls may take effect. At least as long as the longest of
    /// the latencies; longer keeps the next owner of an appliance waiting longer.
    #[serde(with = "humantime_serde", alias = "hold")]
    #[cfg_attr(test, schemars(with = "common::schema::DurationText"))]
    pub fence_delay: Duration,
}

/// Longest `fence_delay`.
const MAX_FENCE_DELAY: Duration = Duration::from_secs(3600);

impl Default for Config {
    fn default() -> Self {
        Self {
            boot_latency: Duration::ZERO,
            configure_latency: Duration::ZERO,
            probe_latency: Duration::ZERO,
            failure_rate: 0.0,
            hot_plug: true,
            plug_latency: Duration::ZERO,
            plug_failure_rate: 0.0,
            plug_lost_rate: 0.0,
            seed: 0,
            world: None,
            fencing: FencedBy::Token,
            fence_delay: Duration::ZERO,
        }
    }
}

impl Config {
    /// Every setting that cannot work, by name.
    #[must_use]
    pub fn validate(&self) -> Vec<FieldViolation> {
        let mut found = Vec::new();
        for (field, rate) in [
            ("failure_rate", self.failure_rate),
            ("plug_failure_rate", self.plug_failure_rate),
            ("plug_lost_rate", self.plug_lost_rate),
        ] {
            if !(0.0..=1.0).contains(&rate) {
                found.push(FieldViolation::new(field, format!("must be 0 to 1, is {rate}")));
            }
        }
        let longest = self.boot_latency.max(self.configure_latency).max(self.plug_latency);
        let longest = longest.max(Duration::from_millis(1));
        if self.fencing == FencedBy::Delay && !(longest..=MAX_FENCE_DELAY).contains(&self.fence_delay) {
            let problem = format!("must be {longest:?} to 1h, is {:?}", self.fence_delay);
            found.push(FieldViolation::new("fence_delay", problem));
        }
        found
    }

    /// How its calls are fenced.
    #[must_use]
    pub const fn fencing(&self) -> DriverFencing {
        match self.fencing {
            FencedBy::Token => DriverFencing::Token,
            FencedBy::Delay => DriverFencing::Delay(self.fence_delay),
        }
    }
}

/// The driver, and the protocol of its instances.
#[derive(Debug)]
pub struct Simulated {
    config: Config,
    /// State of the failure generator; each draw advances it.
    draws: AtomicU64,
    world: Mutex<SimulatedWorld>,
}

#[derive(Debug, Default)]
struct SimulatedWorld {
    appliances: HashMap<ApplianceId, SimulatedAppliance>,
    shared: Option<SharedFiles>,
}

#[derive(Debug, Default)]
struct SimulatedAppliance {
    token: Token,
    instances: Vec<SimulatedSlot>,
}

/// What is at one ordinal. An ended instance stays in a shared world, where an older line about it may yet be read.
#[derive(Clone, Debug)]
struct SimulatedSlot {
    ordinal: u16,
    attempt: u32,
    started_at_unix_ms: u64,
    /// Of the change, on the clock all processes of the host share.
    at_boot_ns: u64,
    boot: BootState,
    /// `None` once it was ended.
    boot_digest: Option<Box<str>>,
    ports: PluggedPorts,
}

/// The files of a shared world.
#[derive(Debug)]
struct SharedFiles {
    folder: Folder,
    own: String,
    file: File,
    /// How far each file of the others has been read.
    read: HashMap<OsString, u64>,
}

/// One line of a world file.
#[derive(Debug, Serialize, Deserialize)]
struct Line {
    appliance: ApplianceId,
    token: Token,
    ordinal: u16,
    attempt: u32,
    started_at_unix_ms: u64,
    at_boot_ns: u64,
    /// When it was started; lines of the version before do not say it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    boot_since_ns: Option<u64>,
    /// It has answered a probe.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    answered: bool,
    boot_digest: Option<Box<str>>,
    /// Name and digest of each network port.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    ports: Vec<(Name, String)>,
}

impl Simulated {
    /// A driver with these settings.
    ///
    /// # Errors
    /// [`Error::Refused`] for a failure rate outside 0 to 1, or a world directory that cannot be written.
    pub fn new(config: Config) -> Result<Self, Error> {
        if let Some(violation) = config.validate().first() {
            return Err(Error::Refused(violation.to_string()));
        }
        let shared = config.world.as_deref().map(SharedFiles::open).transpose().map_err(|error| {
            let folder = config.world.clone().unwrap_or_default();
            Error::Refused(format!("world directory {} cannot be used: {error}", folder.display()))
        })?;
        let world = Mutex::new(SimulatedWorld { appliances: HashMap::new(), shared });
        Ok(Self { draws: AtomicU64::new(config.seed), config, world })
    }

    fn world(&self) -> MutexGuard<'_, SimulatedWorld> {
        // Every change is one insertion or one assignment, so a panic elsewhere leaves the world whole.
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A call is sent: the last moment at which one without token can be kept from happening.
    fn send(&self, permit: &Permit) -> Result<(), Error> {
        match self.config.fencing {
            FencedBy::Token => Ok(()),
            FencedBy::Delay => Ok(permit.check_unfenced()?),
        }
    }

    /// A call takes effect, unless its token is refused.
    fn arrive(&self, world: &mut SimulatedWorld, permit: &Permit) -> Result<(), Error> {
        match self.config.fencing {
            FencedBy::Token => world.raise(permit),
            FencedBy::Delay => Ok(()),
        }
    }

    /// Takes the time of a call and draws whether it fails.
    async fn take(&self, latency: Duration, what: &str) -> Result<(), Error> {
        wait(latency).await;
        if self.fails(self.config.failure_rate) {
            return Err(Error::Failed(format!("simulated failure of a {what}")));
        }
        Ok(())
    }

    /// Draws whether one of the calls of which this share fails is such a call.
    fn fails(&self, rate: f64) -> bool {
        rate > 0.0 && self.draw() < rate
    }

    /// Changes the ports of an instance that runs.
    async fn plug(
        &self,
        permit: &Permit,
        instance: &Instance,
        change: impl FnOnce(&PluggedPorts) -> PluggedPorts + Send,
    ) -> Result<Instance, Error> {
        self.send(permit)?;
        wait(self.config.plug_latency).await;
        if self.fails(self.config.plug_failure_rate) {
            return Err(Error::Failed("simulated failure to plug a port".into()));
        }
        let lost = self.fails(self.config.plug_lost_rate);
        let mut world = self.world();
        world.refresh()?;
        self.arrive(&mut world, permit)?;
        let appliance = permit.appliance();
        let same = |slot: &&SimulatedSlot| (slot.ordinal, slot.attempt) == (instance.ordinal, instance.attempt);
        let slots = world.appliances.get(&appliance).map(|entry| entry.instances.as_slice()).unwrap_or_default();
        let Some(slot) = slots.iter().find(same).filter(|slot| slot.boot_digest.is_some()) else {
            return Err(Error::Failed("the instance does not run".into()));
        };
        let ports = change(&slot.ports);
        let running = if ports == slot.ports {
            slot.instance()
        } else {
            let changed = SimulatedSlot { ports, at_boot_ns: clock::now().as_nanos(), ..slot.clone() };
            let running = changed.instance();
            world.change(appliance, permit.token(), changed)?;
            running
        };
        if lost {
            return Err(Error::Failed("simulated loss of an answer".into()));
        }
        running.ok_or_else(|| Error::Failed("the instance does not run".into()))
    }

    /// Next number in `[0, 1)`: splitmix64, which needs no lock.
    fn draw(&self) -> f64 {
        const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
        let mut z = self.draws.fetch_add(STEP, Ordering::Relaxed).wrapping_add(STEP);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        #[expect(clippy::cast_precision_loss, reason = "53 bits fit")]
        let fraction = (z >> 11) as f64 / (1_u64 << 53) as f64;
        fraction
    }
}

#[async_trait]
impl Driver for Simulated {
    fn fencing(&self) -> DriverFencing {
        self.config.fencing()
    }

    fn plugs_ports(&self) -> bool {
        self.config.hot_plug
    }

    async fn claim(&self, permit: &Permit) -> Result<(), Error> {
        self.send(permit)?;
        let mut world = self.world();
        world.refresh()?;
        self.arrive(&mut world, permit)
    }

    async fn observe(&self, appliance: ApplianceId) -> Result<Observation, Error> {
        let mut world = self.world();
        world.refresh()?;
        let observe = |entry: &SimulatedAppliance| Observation {
            running: entry.running(),
            attempts: entry.instances.iter().map(|slot| (slot.ordinal, slot.attempt)).collect(),
        };
        Ok(world.appliances.get(&appliance).map(observe).unwrap_or_default())
    }

    async fn note_answer(&self, appliance: ApplianceId, instance: &Instance) -> Result<(), Error> {
        let mut world = self.world();
        world.refresh()?;
        let Some(entry) = world.appliances.get(&appliance) else { return Ok(()) };
        let same = |slot: &&SimulatedSlot| (slot.ordinal, slot.attempt) == (instance.ordinal, instance.attempt);
        let Some(slot) = entry.instances.iter().find(same).filter(|slot| slot.boot_digest.is_some()) else {
            return Ok(());
        };
        // As old as what it is about, so that it never replaces what others have changed since.
        let (token, slot) = (entry.token, SimulatedSlot { boot: BootState::Over, ..slot.clone() });
        world.change(appliance, token, slot)
    }

    async fn ensure(&self, permit: &Permit, wanted: Wanted<'_>) -> Result<Instance, Error> {
        self.send(permit)?;
        self.take(self.config.boot_latency, "boot").await?;
        if wanted.desired.spec.image.as_deref().is_some_and(|image| image.starts_with(BROKEN)) {
            return Err(Error::Failed("the image does not boot".into()));
        }
        let mut world = self.world();
        world.refresh()?;
        self.arrive(&mut world, permit)?;
        let running = world.appliances.get(&permit.appliance()).map(SimulatedAppliance::running).unwrap_or_default();
        if let Some(instance) = running.into_iter().find(|i| i.ordinal == wanted.ordinal) {
            return if instance.attempt == wanted.attempt {
                Ok(instance)
            } else {
                Err(Error::Failed(format!("attempt {} still runs at ordinal {}", instance.attempt, wanted.ordinal)))
            };
        }
        let now = clock::now();
        let slot = SimulatedSlot {
            ordinal: wanted.ordinal,
            attempt: wanted.attempt,
            started_at_unix_ms: unix_ms(),
            at_boot_ns: now.as_nanos(),
            boot: BootState::UnderWay { since: now },
            boot_digest: Some(wanted.boot_digest.into()),
            ports: wanted.desired.spec.ports.iter().collect(),
        };
        let instance = slot.instance().ok_or_else(|| Error::Failed("an instance without digest".into()))?;
        world.change(permit.appliance(), permit.token(), slot)?;
        Ok(instance)
    }

    async fn attach(&self, permit: &Permit, instance: &Instance, port: &NetworkPort) -> Result<Instance, Error> {
        self.plug(permit, instance, |ports| ports.with(port.into())).await
    }

    async fn detach(&self, permit: &Permit, instance: &Instance, port: &Name) -> Result<Instance, Error> {
        self.plug(permit, instance, |ports| ports.without(port)).await
    }

    async fn destroy(&self, permit: &Permit, instance: &Instance, _: StopRecipe) -> Result<(), Error> {
        self.send(permit)?;
        self.take(self.config.boot_latency, "removal").await?;
        let mut world = self.world();
        world.refresh()?;
        self.arrive(&mut world, permit)?;
        let known = world.appliances.get(&permit.appliance()).map(SimulatedAppliance::running).unwrap_or_default();
        if !known.iter().any(|i| (i.ordinal, i.attempt) == (instance.ordinal, instance.attempt)) {
            return Ok(());
        }
        let slot = SimulatedSlot {
            ordinal: instance.ordinal,
            attempt: instance.attempt,
            started_at_unix_ms: instance.started_at_unix_ms,
            at_boot_ns: clock::now().as_nanos(),
            boot: instance.boot,
            boot_digest: None,
            ports: PluggedPorts::default(),
        };
        world.change(permit.appliance(), permit.token(), slot)
    }

    async fn list(&self) -> Result<Vec<(ApplianceId, Instance)>, Error> {
        let mut world = self.world();
        world.refresh()?;
        let mut found: Vec<_> = world
            .appliances
            .iter()
            .flat_map(|(appliance, entry)| entry.running().into_iter().map(|instance| (*appliance, instance)))
            .collect();
        found.sort_by_key(|(appliance, instance)| (*appliance, instance.ordinal));
        Ok(found)
    }

    async fn forget(&self, permit: &Permit) -> Result<(), Error> {
        self.send(permit)?;
        let mut world = self.world();
        world.refresh()?;
        self.arrive(&mut world, permit)?;
        if world.appliances.get(&permit.appliance()).is_some_and(|entry| !entry.running().is_empty()) {
            return Err(Error::Failed("an instance still runs".into()));
        }
        // The token goes with it: ids are never used twice, and a soak run must not grow for ever.
        world.appliances.remove(&permit.appliance());
        Ok(())
    }
}

#[async_trait]
impl Protocol for Simulated {
    async fn configure(&self, permit: &Permit, instance: &Instance, _: &Desired, _: &[Peer]) -> Result<(), Error> {
        self.send(permit)?;
        self.take(self.config.configure_latency, "configuration").await?;
        let mut world = self.world();
        self.arrive(&mut world, permit)?;
        let running = world.appliances.get(&permit.appliance()).map(SimulatedAppliance::running).unwrap_or_default();
        if running.iter().any(|i| (i.ordinal, i.attempt) == (instance.ordinal, instance.attempt)) {
            Ok(())
        } else {
            Err(Error::Failed("the instance does not run".into()))
        }
    }

    /// Fails at the failure rate only: simulated instances do not die by themselves, they end by `destroy`.
    async fn probe(&self, _: &Instance, _: &Desired) -> Result<ProbeAnswer, Error> {
        self.take(self.config.probe_latency, "probe").await?;
        Ok(ProbeAnswer::Answered(common::status::Details::default()))
    }
}

impl SimulatedAppliance {
    fn running(&self) -> Vec<Instance> {
        let mut running: Vec<_> = self.instances.iter().filter_map(SimulatedSlot::instance).collect();
        running.sort_by_key(|instance| instance.ordinal);
        running
    }

    /// Puts a slot in place unless something newer is there.
    fn put(&mut self, slot: SimulatedSlot) {
        match self.instances.iter_mut().find(|known| known.ordinal == slot.ordinal) {
            Some(known) if known.at_boot_ns <= slot.at_boot_ns => *known = slot,
            Some(_) => {}
            None => {
                self.instances.reserve_exact(1);
                self.instances.push(slot);
            }
        }
    }
}

impl SimulatedSlot {
    fn instance(&self) -> Option<Instance> {
        Some(Instance {
            ordinal: self.ordinal,
            attempt: self.attempt,
            boot_digest: self.boot_digest.as_deref()?.to_owned(),
            started_at_unix_ms: self.started_at_unix_ms,
            boot: self.boot,
            ports: self.ports.clone(),
            ..Instance::default()
        })
    }
}

impl SimulatedWorld {
    /// Refuses an older token and remembers a newer one.
    fn raise(&mut self, permit: &Permit) -> Result<(), Error> {
        permit.check()?;
        let entry = self.appliances.entry(permit.appliance()).or_default();
        if entry.token > permit.token() {
            return Err(Error::Superseded(entry.token));
        }
        entry.token = permit.token();
        Ok(())
    }

    fn change(&mut self, appliance: ApplianceId, token: Token, slot: SimulatedSlot) -> Result<(), Error> {
        if let Some(shared) = &mut self.shared {
            let line = Line {
                appliance,
                token,
                ordinal: slot.ordinal,
                attempt: slot.attempt,
                started_at_unix_ms: slot.started_at_unix_ms,
                at_boot_ns: slot.at_boot_ns,
                boot_since_ns: match slot.boot {
                    BootState::UnderWay { since } => Some(since.as_nanos()),
                    BootState::Unknown | BootState::Over => None,
                },
                answered: slot.boot == BootState::Over,
                boot_digest: slot.boot_digest.clone(),
                ports: slot.ports.iter().map(|port| (port.name.clone(), port.digest.to_string())).collect(),
            };
            let mut bytes = serde_json::to_vec(&line).map_err(|error| Error::Failed(error.to_string()))?;
            bytes.push(b'\n');
            shared.file.write_all(&bytes)?;
        }
        let entry = self.appliances.entry(appliance).or_default();
        if slot.boot_digest.is_none() && self.shared.is_none() {
            entry.instances.retain(|known| known.ordinal != slot.ordinal);
        } else {
            entry.put(slot);
        }
        Ok(())
    }

    /// Reads what others have written since the last time.
    fn refresh(&mut self) -> Result<(), Error> {
        let Some(shared) = &mut self.shared else { return Ok(()) };
        for line in shared.news()? {
            let entry = self.appliances.entry(line.appliance).or_default();
            entry.token = entry.token.max(line.token);
            entry.put(SimulatedSlot {
                ordinal: line.ordinal,
                attempt: line.attempt,
                started_at_unix_ms: line.started_at_unix_ms,
                at_boot_ns: line.at_boot_ns,
                boot: match (line.answered, line.boot_since_ns) {
                    (true, _) => BootState::Over,
                    (false, Some(since)) => BootState::UnderWay { since: Timestamp::from_nanos(since) },
                    (false, None) => BootState::Unknown,
                },
                boot_digest: line.boot_digest,
                // A digest that cannot be read is that of no port: it is plugged again.
                ports: (line.ports.into_iter())
                    .filter_map(|(name, digest)| Some(PluggedPort { name, digest: digest.parse().ok()? }))
                    .collect(),
            });
        }
        Ok(())
    }
}

impl SharedFiles {
    fn open(folder: &Path) -> io::Result<Self> {
        let folder = Folder::trusted(folder)?;
        // A file of its own for every process that ever took part: nobody appends to a file somebody else writes.
        let own = format!("{}-{}.world", std::process::id(), clock::now().as_nanos());
        let file = folder.open(&own, Access::New)?;
        Ok(Self { folder, own, file, read: HashMap::new() })
    }

    fn news(&mut self) -> io::Result<Vec<Line>> {
        let mut news = Vec::new();
        for entry in fs::read_dir(self.folder.path())? {
            let name = entry?.file_name();
            if name == *self.own || Path::new(&name).extension().is_none_or(|e| e != "world") {
                continue;
            }
            let from = self.read.get(&name).copied().unwrap_or(0);
            let mut file = match self.folder.open(&name, Access::Read) {
                Ok(file) => file,
                Err(error) => {
                    log_limited!(warn, "a file of the shared world is left out: {error}");
                    continue;
                }
            };
            if file.metadata()?.len() <= from {
                continue;
            }
            file.seek(SeekFrom::Start(from))?;
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes)?;
            // A line that is being written is read the next time.
            let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
            news.extend(bytes[..whole].split(|byte| *byte == b'\n').filter_map(|l| serde_json::from_slice(l).ok()));
            self.read.insert(name, from + whole as u64);
        }
        Ok(news)
    }
}

async fn wait(latency: Duration) {
    if !latency.is_zero() {
        tokio::time::sleep(latency).await;
    }
}

fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests;
