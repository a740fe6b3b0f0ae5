//! The `process` driver: an instance is a detached local process.
//!
//! It lives in a session of its own, so that it outlives the worker, and is known by pid and start time, so that any
//! worker on the host can adopt it. What it is started for is on disk before it is started, and its environment names
//! it, so that a worker that dies between the two loses nothing: [`Driver::observe`] and [`Driver::list`] find the
//! process by its name. Each ordinal has one folder and therefore at most one instance.
//!
//! Calls are fenced by token files (see [`fence`]): the lock spans every side effect, permit and token are checked
//! right before it. Starting runs off the async threads as a whole and goes on when its caller is cancelled; it then
//! either takes effect under the lock or meets a shut gate.

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use common::appliance::FieldViolation;
use common::site::{STATE_DIR_RULE, is_state_dir};
use common::{ApplianceId, Term, WorkerId};
use runtime::folder::Folder as StateFolder;
use rustix::process::Signal;
use serde::{Deserialize, Serialize};
use tokio::process::Child;
use tokio::sync::oneshot;
use tokio::time::Instant;
use worker_core::instance::Instance;

use self::fence::{Fences, HeldLock};
use self::launch::{Launch, Order};
use self::record::{Folder, InstanceRecord, Management, RecordState, RecordedInstance};
use self::system::{Marked, POLL, ProcessStamp, SignalTarget};
use crate::drivers::{Driver, DriverFencing, Error, Wanted};
use crate::gate::Permit;

pub mod fence;
mod launch;
mod record;
mod system;

/// How long an instance that somebody else started may take to open its management address before it is shown without.
const ADOPTED_MANAGEMENT_WAIT: Duration = Duration::from_secs(1);

/// Name of the driver.
pub const NAME: &str = "process";

/// Settings of the driver.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where instances, their logs and the token files live. Workers on one host share it to adopt from each other.
    pub state_dir: PathBuf,
    /// The reference appliance, which also launches commands; by default beside the worker's own executable.
    pub appliance_binary: PathBuf,
    /// How long a process may take to end after SIGTERM before it is killed. More lets long transfers finish; deletion
    /// takes that much longer.
    #[serde(with = "humantime_serde")]
    pub stop_grace: Duration,
    /// How long a killed process may take to be gone.
    #[serde(with = "humantime_serde")]
    pub kill_wait: Duration,
    /// How long a new process is watched for an early end, which is then reported with its log. Lower makes boots
    /// quicker to report, higher catches slower failures.
    #[serde(with = "humantime_serde")]
    pub settle: Duration,
    /// How long the reference appliance may take to open its management address.
    #[serde(with = "humantime_serde")]
    pub management_wait: Duration,
    /// How long a call waits for another one on the same appliance.
    #[serde(with = "humantime_serde")]
    pub lock_wait: Duration,
    /// Size in bytes from which a log is put aside when its instance starts again.
    pub log_limit: u64,
}

impl Default for Config {
    fn default() -> Self {
        let beside = std::env::current_exe().ok().and_then(|exe| Some(exe.parent()?.join("rug-appliance")));
        Self {
            state_dir: PathBuf::from(".rug"),
            appliance_binary: beside.unwrap_or_else(|| PathBuf::from("rug-appliance")),
            stop_grace: Duration::from_secs(10),
            kill_wait: Duration::from_secs(5),
            settle: Duration::from_millis(100),
            management_wait: Duration::from_secs(10),
            lock_wait: Duration::from_secs(5),
            log_limit: 10 * 1024 * 1024,
        }
    }
}

impl Config {
    /// Every setting that cannot work, by name.
    #[must_use]
    pub fn validate(&self) -> Vec<FieldViolation> {
        let mut found = Vec::new();
        let mut check = |field: &str, value: Duration, most: Duration| {
            if value > most {
                found.push(FieldViolation::new(field, format!("must be at most {}s", most.as_secs())));
            }
        };
        let hour = Duration::from_secs(3600);
        check("stop_grace", self.stop_grace, hour);
        check("kill_wait", self.kill_wait, hour);
        check("management_wait", self.management_wait, hour);
        check("lock_wait", self.lock_wait, hour);
        check("settle", self.settle, Duration::from_secs(60));
        if self.state_dir.as_os_str().is_empty() {
            found.push(FieldViolation::new("state_dir", "must not be empty"));
        }
        if self.log_limit == 0 {
            found.push(FieldViolation::new("log_limit", "must be at least 1"));
        }
        found
    }
}

/// The driver. Clones share everything.
#[derive(Clone, Debug)]
pub struct ProcessDriver {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    config: Config,
    /// The state directory as text.
    state_dir: String,
    /// Folders of instances.
    instances: StateFolder,
    fences: Arc<Fences>,
}

/// What [`Inner::start`] came to.
enum Started {
    /// An instance of that name was running already.
    Found(Instance),
    /// A process was made.
    Made(Instance, Child),
}

impl ProcessDriver {
    /// Opens the state directory, which is made when missing.
    ///
    /// # Errors
    /// [`Error::Refused`] when the directory cannot be written, its path cannot be published, or the launcher is missing;
    /// the text names the path.
    pub fn new(config: Config, worker: WorkerId) -> Result<Self, Error> {
        if let Some(violation) = config.validate().first() {
            return Err(Error::Refused(violation.to_string()));
        }
        let refused = |path: &Path, error: &io::Error| {
            Error::Refused(format!("state directory {} cannot be used: {error}", path.display()))
        };
        let open = || -> io::Result<(PathBuf, StateFolder, Fences)> {
            let folder = StateFolder::private(&config.state_dir, &["instances", "fences"])?;
            let instances = folder.subfolder("instances")?;
            let fences = Fences::open(folder.subfolder("fences")?, worker, config.lock_wait)?;
            let probe = format!(".writable.{}", std::process::id());
            folder.write_atomic(&probe, b"")?;
            folder.remove(&probe)?;
            // Without symbolic links, because instances are recognised by this path in their environment.
            Ok((folder.path().to_owned(), instances, fences))
        };
        let (state_dir, instances, fences) = open().map_err(|error| refused(&config.state_dir, &error))?;
        let Some(published) = state_dir.to_str().filter(|path| is_state_dir(path)).map(str::to_owned) else {
            let text = format!("state directory {state_dir:?} cannot be used: its path {STATE_DIR_RULE}, in UTF-8");
            return Err(Error::Refused(text));
        };
        let appliance_binary = config.appliance_binary.canonicalize().map_err(|error| {
            Error::Refused(format!("{} cannot be used: {error}", config.appliance_binary.display()))
        })?;
        let config = Config { state_dir, appliance_binary, ..config };
        let (state_dir, fences) = (published, Arc::new(fences));
        Ok(Self { inner: Arc::new(Inner { config, state_dir, instances, fences }) })
    }

    /// Removes token files of appliances that were deleted more than seven days and two terms ago. Returns how many.
    ///
    /// # Errors
    /// [`Error::Failed`] when the folder cannot be read.
    pub async fn cleanup(&self, current: Term) -> Result<usize, Error> {
        let inner = Arc::clone(&self.inner);
        off_thread(move || inner.fences.cleanup(current, SystemTime::now()).map_err(Error::from)).await
    }

    /// Where the journal of one appliance is kept: one [`fence::FenceJournalEntry`] per line.
    #[must_use]
    pub fn journal(&self, appliance: ApplianceId) -> PathBuf {
        self.inner.fences.journal_path(appliance)
    }

    /// Watches a new process for an early end, and for its management address where it has one.
    async fn settle(&self, order: &Order, mut instance: Instance, child: Child) -> Result<Instance, Error> {
        let folder = self.inner.folder(order.appliance, order.ordinal);
        let mut exit = reap(child);
        let has_management = order.recipe.program.has_management();
        let wait = if has_management { self.inner.config.management_wait } else { self.inner.config.settle };
        let deadline = Instant::now() + wait;
        loop {
            if has_management && let Management { address: Some(address), secret } = folder.management() {
                instance.addresses.management = Some(address);
                instance.secret = secret;
                return Ok(instance);
            }
            let pause = if has_management { deadline.min(Instant::now() + POLL) } else { deadline };
            if let Ok(status) = tokio::time::timeout_at(pause, &mut exit).await {
                let status = status.map_or_else(|_| "unknown status".to_owned(), |status| status.to_string());
                let log = folder.tail(5);
                let log =
                    if log.is_empty() { "its log is empty".to_owned() } else { format!("last in its log: {log}") };
                return Err(Error::Failed(format!("instance {} ended at once ({status}); {log}", order.ordinal)));
            }
            if Instant::now() >= deadline {
                return if has_management {
                    Err(Error::Failed(format!("instance {} did not open its management address", order.ordinal)))
                } else {
                    Ok(instance)
                };
            }
        }
    }

    /// Signals a whole family and waits for its end. Returns what still runs at the end of `wait`.
    async fn signal(
        &self,
        held: &HeldLock,
        instance: &Instance,
        family: Vec<ProcessStamp>,
        (signal, action): (Signal, &str),
        wait: Duration,
    ) -> Result<Vec<ProcessStamp>, Error> {
        held.check()?;
        let note = |pid, outcome: &str| held.note(action, instance.ordinal, instance.attempt, pid, outcome);
        let leader = system::process_of(&instance.handle).map(|(pid, _)| pid);
        note(leader, "begun");
        let mut targets = Vec::new();
        for identity in family {
            match SignalTarget::open(&identity).and_then(|target| match target {
                Some(target) => target.signal(signal).map(|()| Some(target)),
                None => Ok(None),
            }) {
                Ok(Some(target)) => targets.push((identity, target)),
                Ok(None) => {}
                Err(error) => {
                    note(Some(identity.pid), &error.to_string());
                    return Err(Error::Failed(format!("cannot signal process {}: {error}", identity.pid)));
                }
            }
        }
        let deadline = Instant::now() + wait;
        let mut left = Vec::new();
        for (identity, target) in targets {
            if !target.ended(deadline).await {
                left.push(identity);
            }
        }
        note(leader, if left.is_empty() { "done" } else { "still running" });
        Ok(left)
    }
}

#[async_trait]
impl Driver for ProcessDriver {
    fn fencing(&self) -> DriverFencing {
        DriverFencing::Token
    }

    fn state_dir(&self) -> Option<&str> {
        Some(&self.inner.state_dir)
    }

    async fn claim(&self, permit: &Permit) -> Result<(), Error> {
        self.inner.fences.claim(permit).await
    }

    async fn observe(&self, appliance: ApplianceId) -> Result<Vec<Instance>, Error> {
        let inner = Arc::clone(&self.inner);
        off_thread(move || inner.observe(appliance)).await
    }

    /// Goes by pid and start time alone, so that nothing of the instance has to be read before a probe, and whoever has its
    /// pid now is not taken for it.
    async fn is_alive(&self, _: ApplianceId, instance: &Instance) -> Option<bool> {
        let (pid, start_ticks) = system::process_of(&instance.handle)?;
        Some(system::runs(pid, start_ticks))
    }

    async fn ensure(&self, permit: &Permit, wanted: Wanted<'_>) -> Result<Instance, Error> {
        let order = Order::new(permit.appliance(), &wanted)?;
        let held = self.inner.fences.acquire(permit).await?;
        let (inner, task) = (Arc::clone(&self.inner), order.clone());
        match off_thread(move || inner.start(&held, &task)).await? {
            Started::Found(instance) => Ok(instance),
            Started::Made(instance, child) => self.settle(&order, instance, child).await,
        }
    }

    async fn destroy(&self, permit: &Permit, instance: &Instance) -> Result<(), Error> {
        let appliance = permit.appliance();
        let held = self.inner.fences.acquire(permit).await?;
        let name = Instance::name(appliance, instance.ordinal, instance.attempt);
        let find = |name: String| {
            let (inner, instance) = (Arc::clone(&self.inner), instance.clone());
            off_thread(move || inner.family(appliance, &instance, &name))
        };
        let (leader, family) = find(name.clone()).await?;
        let handle = leader.as_ref().map(ProcessStamp::handle).unwrap_or_default();
        let instance = Instance { handle, ..instance.clone() };
        if !family.is_empty() {
            let term = (Signal::TERM, "terminate");
            self.signal(&held, &instance, family, term, self.inner.config.stop_grace).await?;
            // Looked up again: what ended is gone from it, and what was started meanwhile is in it. Three rounds outrun
            // anything that does not fork for ever.
            for _ in 0..3 {
                let (_, left) = find(name.clone()).await?;
                if left.is_empty() {
                    break;
                }
                self.signal(&held, &instance, left, (Signal::KILL, "kill"), self.inner.config.kill_wait).await?;
            }
            let (_, left) = find(name).await?;
            if let Some(first) = left.first() {
                return Err(Error::Failed(format!("process {} cannot be ended", first.pid)));
            }
        }
        held.check()?;
        let folder = self.inner.folder(appliance, instance.ordinal);
        off_thread(move || {
            if let Some(record) = folder.read()?.filter(|record| record.instance.attempt == instance.attempt) {
                folder.write(&InstanceRecord { state: RecordState::Ended, ..record })?;
            }
            drop(held);
            Ok(())
        })
        .await
    }

    async fn list(&self) -> Result<Vec<(ApplianceId, Instance)>, Error> {
        let inner = Arc::clone(&self.inner);
        off_thread(move || inner.list()).await
    }

    async fn forget(&self, permit: &Permit) -> Result<(), Error> {
        let held = self.inner.fences.acquire(permit).await?;
        let (inner, appliance) = (Arc::clone(&self.inner), permit.appliance());
        off_thread(move || {
            if let Some(left) = inner.observe(appliance)?.first() {
                return Err(Error::Failed(format!("instance {} still runs", left.ordinal)));
            }
            held.check()?;
            held.note("forget", 0, 0, None, "begun");
            match std::fs::remove_dir_all(inner.instances.path().join(appliance.to_string())) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
                _ => {}
            }
            held.entomb()?;
            held.note("forget", 0, 0, None, "done");
            Ok(())
        })
        .await
    }
}

impl Inner {
    fn folder(&self, appliance: ApplianceId, ordinal: u16) -> Folder {
        Folder::new(&self.instances, appliance, ordinal)
    }

    /// The process of a record, if it runs now. Scans only when the record does not know.
    fn resolve(&self, appliance: ApplianceId, record: &InstanceRecord) -> Option<ProcessStamp> {
        match &record.state {
            RecordState::Running(identity) => system::is_alive(identity).then(|| identity.clone()),
            RecordState::Ended => None,
            RecordState::Starting => self.scan(&name_of(appliance, &record.instance)).map(|found| found.identity),
        }
    }

    fn scan(&self, name: &str) -> Option<Marked> {
        let matches = |m: &Marked| m.variables.get(system::INSTANCE_VARIABLE).is_some_and(|v| v == name);
        system::marked(&self.config.state_dir).into_iter().find(matches)
    }

    fn observe(&self, appliance: ApplianceId) -> Result<Vec<Instance>, Error> {
        let mut found = Vec::new();
        for ordinal in record::ordinals(self.instances.path(), appliance)? {
            let folder = self.folder(appliance, ordinal);
            let Some(record) = folder.read()? else { continue };
            // A damaged record has attempt 0: whatever runs at its ordinal is meant.
            let record = if record.instance.attempt == 0 { self.recover(appliance, record) } else { record };
            if let Some(identity) = self.resolve(appliance, &record) {
                found.push(running(&folder, &record, &identity));
            }
        }
        Ok(found)
    }

    /// What a damaged record must have said, from the process itself.
    fn recover(&self, appliance: ApplianceId, record: InstanceRecord) -> InstanceRecord {
        let ordinal = record.instance.ordinal;
        let found = system::marked(&self.config.state_dir)
            .into_iter()
            .find_map(|marked| described(&marked).filter(|(id, i)| *id == appliance && i.ordinal == ordinal));
        match found {
            Some((_, instance)) => InstanceRecord { instance, ..record },
            None => record,
        }
    }

    fn list(&self) -> Result<Vec<(ApplianceId, Instance)>, Error> {
        let mut found = Vec::new();
        for appliance in record::appliances(self.instances.path())? {
            found.extend(self.observe(appliance)?.into_iter().map(|instance| (appliance, instance)));
        }
        // Processes without a record that says so: their folder was removed, or was never written.
        for marked in system::marked(&self.config.state_dir) {
            if let Some((appliance, instance)) = described(&marked)
                && !found.iter().any(|(id, known)| {
                    (*id, known.ordinal, known.attempt) == (appliance, instance.ordinal, instance.attempt)
                })
            {
                let management = self.folder(appliance, instance.ordinal).management();
                found.push((appliance, instance.running_as(&marked.identity, management)));
            }
        }
        Ok(found)
    }

    /// Every process of one instance, and its leader if that one still runs.
    fn family(
        &self,
        appliance: ApplianceId,
        instance: &Instance,
        name: &str,
    ) -> Result<(Option<ProcessStamp>, Vec<ProcessStamp>), Error> {
        let record = self.folder(appliance, instance.ordinal).read()?;
        let recorded = record.filter(|r| r.instance.attempt == instance.attempt).and_then(|r| match r.state {
            RecordState::Running(identity) => Some(identity),
            RecordState::Starting | RecordState::Ended => None,
        });
        // Without a record only the environment tells; a pid that somebody remembers proves nothing.
        let Some(leader) = recorded.or_else(|| self.scan(name).map(|m| m.identity)) else {
            return Ok((None, Vec::new()));
        };
        let family = system::family(&leader, name, &self.config.state_dir);
        Ok((family.iter().find(|id| **id == leader).cloned(), family))
    }

    /// Starts an instance under the lock, or finds it. Blocks; never waits for another process.
    fn start(&self, held: &HeldLock, order: &Order) -> Result<Started, Error> {
        held.check()?;
        let folder = self.folder(order.appliance, order.ordinal);
        let former = folder.read()?;
        if let Some(record) = &former {
            if let Some(identity) = self.resolve(order.appliance, record) {
                return self.adopt(held, order, &folder, record, identity).map(Started::Found);
            }
            self.sweep(held, order.appliance, record)?;
        }
        let kept_port = former.and_then(|record| record.picked_port);
        let launch = Launch::plan(order, &folder, &self.config.appliance_binary, kept_port)?;
        folder.prepare(self.config.log_limit)?;
        if order.recipe.program.has_management() {
            folder.make_secret()?;
        }
        let mut record = InstanceRecord {
            state: RecordState::Starting,
            instance: RecordedInstance {
                ordinal: order.ordinal,
                attempt: order.attempt,
                boot_digest: order.boot_digest.clone(),
                started_at_unix_ms: fence::unix_ms(),
                address: launch.address,
            },
            picked_port: launch.picked_port,
            serves_management: order.recipe.program.has_management(),
        };
        folder.write(&record)?;
        match self.spawn(held, order, &folder, &launch) {
            Ok((identity, child)) => {
                record.state = RecordState::Running(identity.clone());
                folder.write(&record)?;
                tracing::info!(appliance = %order.appliance, instance = order.instance(), pid = identity.pid, "instance started");
                Ok(Started::Made(record.instance.running_as(&identity, Management::default()), child))
            }
            Err(error) => {
                // No process was made: the record must not send everybody looking for one.
                folder.write(&InstanceRecord { state: RecordState::Ended, ..record })?;
                Err(error)
            }
        }
    }

    fn spawn(
        &self,
        held: &HeldLock,
        order: &Order,
        folder: &Folder,
        launch: &Launch,
    ) -> Result<(ProcessStamp, Child), Error> {
        let binary = &self.config.appliance_binary;
        let command = launch.command(order, folder, &self.config.state_dir, binary)?;
        let note = |pid, outcome: &str| held.note("spawn", order.ordinal, order.attempt, pid, outcome);
        held.check()?;
        note(None, "begun");
        let child = match tokio::process::Command::from(command).spawn() {
            Ok(child) => child,
            Err(error) => {
                note(None, &error.to_string());
                return Err(Error::Failed(format!("cannot start {}: {error}", binary.display())));
            }
        };
        // Nobody has waited for the child yet, so it is still there, if only as a zombie.
        let identity = child.id().and_then(system::identify_child);
        note(child.id(), "done");
        identity.map(|identity| (identity, child)).ok_or_else(|| Error::Failed("a new process cannot be seen".into()))
    }

    /// Takes over what runs at the ordinal, if it is what is wanted.
    fn adopt(
        &self,
        held: &HeldLock,
        order: &Order,
        folder: &Folder,
        record: &InstanceRecord,
        identity: ProcessStamp,
    ) -> Result<Instance, Error> {
        if record.instance.attempt != order.attempt {
            // Ending it is a decision of its own, and not the driver's.
            return Err(Error::Failed(format!(
                "attempt {} still runs at ordinal {} (pid {})",
                record.instance.attempt, order.ordinal, identity.pid
            )));
        }
        let instance = running(folder, record, &identity);
        if record.state == RecordState::Starting {
            let pid = identity.pid;
            folder.write(&InstanceRecord { state: RecordState::Running(identity), ..record.clone() })?;
            held.note("adopt", order.ordinal, order.attempt, Some(pid), "done");
        }
        Ok(instance)
    }

    /// Ends what a dead instance left behind in its session: it would keep the port of its successor.
    fn sweep(&self, held: &HeldLock, appliance: ApplianceId, record: &InstanceRecord) -> Result<(), Error> {
        let RecordState::Running(leader) = &record.state else { return Ok(()) };
        for identity in system::family(leader, &name_of(appliance, &record.instance), &self.config.state_dir) {
            held.check()?;
            held.note("sweep", record.instance.ordinal, record.instance.attempt, Some(identity.pid), "begun");
            if let Some(target) = SignalTarget::open(&identity)? {
                target.signal(Signal::KILL)?;
            }
            if !poll_until(self.config.kill_wait, || !system::is_alive(&identity)) {
                return Err(Error::Failed(format!("process {} of a former attempt cannot be ended", identity.pid)));
            }
        }
        Ok(())
    }
}

impl From<io::Error> for Error {
    /// Disks fill up and are emptied again, so that another try makes sense.
    fn from(error: io::Error) -> Self {
        Self::Failed(error.to_string())
    }
}

/// Reads a record and writes it again. For the fuzz tests.
pub(crate) fn rewrite_record(bytes: &[u8]) -> Result<Vec<u8>, String> {
    let record: InstanceRecord = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    serde_json::to_vec_pretty(&record).map_err(|error| error.to_string())
}

fn name_of(appliance: ApplianceId, instance: &RecordedInstance) -> String {
    Instance::name(appliance, instance.ordinal, instance.attempt)
}

/// The instance as it runs now. One that was made a moment ago by another worker gets the time to say where it serves
/// its REST contract.
fn running(folder: &Folder, record: &InstanceRecord, identity: &ProcessStamp) -> Instance {
    let mut management = folder.management();
    if management.address.is_none() && record.serves_management {
        poll_until(ADOPTED_MANAGEMENT_WAIT, || {
            management = folder.management();
            management.address.is_some() || !system::is_alive(identity)
        });
    }
    record.instance.running_as(identity, management)
}

/// Waits, blocking, until a condition holds. Returns whether it came to hold within `wait`.
fn poll_until(wait: Duration, mut holds: impl FnMut() -> bool) -> bool {
    let deadline = std::time::Instant::now() + wait;
    loop {
        if holds() {
            return true;
        }
        if std::time::Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(POLL);
    }
}

/// The instance a process says it is.
fn described(marked: &Marked) -> Option<(ApplianceId, RecordedInstance)> {
    let variable = |name: &str| marked.variables.get(name);
    let mut parts = variable(system::INSTANCE_VARIABLE)?.rsplitn(3, '-');
    let attempt = parts.next()?.parse().ok()?;
    let ordinal = parts.next()?.parse().ok()?;
    let appliance = parts.next()?.parse().ok()?;
    let instance = RecordedInstance {
        ordinal,
        attempt,
        boot_digest: variable(launch::DIGEST_VARIABLE).cloned().unwrap_or_default(),
        started_at_unix_ms: system::started_at_unix_ms(&marked.identity),
        address: variable(launch::ADDRESS_VARIABLE).and_then(|address| address.parse().ok()),
    };
    Some((appliance, instance))
}

/// Waits for a child in the background, so that it does not stay as a zombie, and tells how it ended.
fn reap(mut child: Child) -> oneshot::Receiver<ExitStatus> {
    let (tell, told) = oneshot::channel();
    // Ends with the process; nothing waits for it, and when the runtime stops the child simply goes on.
    tokio::spawn(async move {
        if let Ok(status) = child.wait().await {
            let _ = tell.send(status);
        }
    });
    told
}

/// Runs blocking work where it may block. It goes on to its end when the caller is cancelled.
async fn off_thread<T: Send + 'static>(work: impl FnOnce() -> Result<T, Error> + Send + 'static) -> Result<T, Error> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(Error::Failed(format!("a driver call broke off: {error}"))),
    }
}
