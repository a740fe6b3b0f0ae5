//! The `process` driver: an instance is a detached local process, and everything that it starts.
//!
//! Beside each instance runs a shim ([`shim`]), which is its parent, adopts what it leaves behind, keeps its log and notes how it
//! ended ([decision 42](../../../docs/decisions/0042-a-shim-beside-every-instance.md)). Both outlive the worker. An instance is
//! known by pid and start time of its main process, so that any worker on the host can adopt it. What it is started for is on disk before it is started, and its environment names
//! it, so that a worker that dies between the two loses nothing: [`Driver::observe`] and [`Driver::list`] find the
//! process by its name. Each ordinal has one folder and therefore at most one instance.
//!
//! Calls are fenced by token files (see [`fence`]): the lock spans every side effect, permit and token are checked
//! right before it. Starting runs off the async threads as a whole and goes on when its caller is cancelled; it then
//! either takes effect under the lock or meets a shut gate.

use std::collections::BTreeSet;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use common::inquiry::{LogPart, LogQuery};
use common::kind::KindName;
use common::kind::StopRecipe;
use common::site::{STATE_DIR_RULE, is_state_dir};
use common::status::InstanceEnd;
use common::{ApplianceId, SiteId, Term, WorkerId};
use futures::future::join_all;
use runtime::folder::Folder as StateFolder;
use tokio::time::Instant;
use worker_core::desired::Desired;
use worker_core::instance::{Instance, Observation};

use self::cgroups::Cgroups;
pub use self::cgroups::Setting as CgroupSetting;
pub use self::config::Config;
use self::ending::Ending;
use self::ends::EndWatch;
use self::fence::{Fences, HeldLock};
pub(crate) use self::finding::running_from;
use self::launch::{Launch, Order};
use self::record::{Folder, FolderKey, InstanceRecord, Management, RecordedInstance};
use self::starting::Started;
use self::system::POLL;
use crate::drivers::execution::Execution;
use crate::drivers::{Driver, DriverFencing, EndSender, EndedInstance, Error, Wanted};
use crate::gate::Permit;

mod cgroups;
mod config;
mod ending;
mod ends;
mod executing;
pub mod fence;
mod finding;
mod launch;
mod logs;
mod record;
mod removal;
mod shared_look;
mod shims;
pub(crate) mod site;
mod starting;
mod system;
mod users;
mod variables;

/// Name of the driver.
pub const NAME: &str = "process";

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
    /// Its id.
    site: SiteId,
    /// Folders of instances.
    instances: StateFolder,
    fences: Arc<Fences>,
    /// Control groups, where instances get some.
    cgroups: Option<Cgroups>,
    /// Reports ends; set up when it is first needed, and `None` where the system refuses it.
    ends: OnceLock<Option<EndWatch>>,
}

impl ProcessDriver {
    /// Opens the state directory, which is made when missing.
    ///
    /// # Errors
    /// [`Error::Refused`] when the directory cannot be written, its path cannot be published, or the shim or the reference appliance is missing;
    /// the text names the path.
    pub fn new(config: Config, worker: WorkerId) -> Result<Self, Error> {
        if let Some(violation) = config.validate().first() {
            return Err(Error::Refused(violation.to_string()));
        }
        let refused = |path: &Path, error: &io::Error| {
            Error::Refused(format!("state directory {} cannot be used: {error}", path.display()))
        };
        let open = || -> io::Result<(StateFolder, StateFolder, Fences)> {
            let folder = open_state_dir(&config.state_dir)?;
            let instances = folder.subfolder("instances")?;
            let fences = Fences::open(folder.subfolder("fences")?, worker, config.lock_wait)?;
            let probe = format!(".writable.{}", std::process::id());
            folder.write_atomic(&probe, b"")?;
            folder.remove(&probe)?;
            // Without symbolic links, because instances are recognised by this path in their environment.
            Ok((folder, instances, fences))
        };
        let (folder, instances, fences) = open().map_err(|error| refused(&config.state_dir, &error))?;
        let state_dir = folder.path().to_owned();
        let Some(published) = state_dir.to_str().filter(|path| is_state_dir(path)).map(str::to_owned) else {
            let text = format!("state directory {state_dir:?} cannot be used: its path {STATE_DIR_RULE}, in UTF-8");
            return Err(Error::Refused(text));
        };
        let site = site::of(&folder, &site::Whereabouts::of(&folder))?;
        let program = |path: &Path| {
            path.canonicalize().map_err(|error| Error::Refused(format!("{} cannot be used: {error}", path.display())))
        };
        let (appliance_binary, shim_binary) = (program(&config.appliance_binary)?, program(&config.shim_binary)?);
        let config = Config { state_dir, appliance_binary, shim_binary, ..config };
        let (state_dir, fences) = (published, Arc::new(fences));
        let cgroups = Cgroups::open(&config.cgroup)
            .map_err(|error| Error::Refused(format!("the control group of the settings cannot be used: {error}")))?;
        let ends = OnceLock::new();
        Ok(Self { inner: Arc::new(Inner { config, state_dir, site, instances, fences, cgroups, ends }) })
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
    async fn settle(&self, order: &Order, mut instance: Instance) -> Result<Instance, Error> {
        let folder = self.inner.folder_of(order.appliance, order.ordinal, order.attempt);
        let runs = || system::process_of(&instance.handle).is_some_and(|id| id.is_alive());
        let has_management = order.recipe.program.has_management();
        let wait = if has_management { self.inner.config.management_wait } else { self.inner.config.settle };
        let deadline = Instant::now() + wait;
        loop {
            if has_management && let Management { address: Some(address), secret, hands_over } = folder.management() {
                instance.addresses.management = Some(address);
                instance.secret = secret;
                instance.hands_over = hands_over;
                return Ok(instance);
            }
            if !runs() {
                let end = self.ended(order.appliance, &instance).await;
                let unknown = || Error::Failed(format!("instance {} and its shim ended at once", order.ordinal));
                return Err(end.map_or_else(unknown, |end| Error::Ended(Box::new(end))));
            }
            if Instant::now() >= deadline {
                return if has_management {
                    Err(Error::Failed(format!("instance {} did not open its management address", order.ordinal)))
                } else {
                    Ok(instance)
                };
            }
            tokio::time::sleep_until(deadline.min(Instant::now() + POLL)).await;
        }
    }
}

#[async_trait]
impl Driver for ProcessDriver {
    /// All but routers: an instance has no interfaces of its own in other networks.
    fn kinds(&self) -> BTreeSet<KindName> {
        KindName::ALL.iter().copied().filter(|kind| *kind != KindName::Router).collect()
    }

    fn fencing(&self) -> DriverFencing {
        DriverFencing::Token
    }

    fn state_dir(&self) -> Option<&str> {
        Some(&self.inner.state_dir)
    }

    fn site(&self) -> Option<SiteId> {
        Some(self.inner.site)
    }

    fn keeps_logs(&self) -> bool {
        true
    }

    async fn read_log(&self, query: &LogQuery) -> Result<LogPart, Error> {
        let (inner, query) = (Arc::clone(&self.inner), query.clone());
        off_thread(move || inner.read_log(&query)).await
    }

    async fn claim(&self, permit: &Permit) -> Result<(), Error> {
        self.inner.check_in_place()?;
        self.inner.fences.claim(permit).await
    }

    async fn observe(&self, appliance: ApplianceId) -> Result<Observation, Error> {
        let inner = Arc::clone(&self.inner);
        off_thread(move || inner.observe(appliance)).await
    }

    async fn note_answer(&self, appliance: ApplianceId, instance: &Instance) -> Result<(), Error> {
        let folder = self.inner.folder_of(appliance, instance.ordinal, instance.attempt);
        let attempt = instance.attempt;
        off_thread(move || Ok(folder.note_answer(attempt)?)).await
    }

    /// Goes by pid and start time alone, so that nothing of the instance has to be read before a probe, and whoever has its
    /// pid now is not taken for it.
    async fn is_alive(&self, _: ApplianceId, instance: &Instance) -> Option<bool> {
        Some(system::process_of(&instance.handle)?.is_alive())
    }

    fn watch(&self, appliance: ApplianceId, instance: &Instance, ends: &EndSender) {
        let start = || {
            EndWatch::start()
                .inspect_err(|error| tracing::warn!(%error, "ends of instances are noticed by probes only"))
                .ok()
        };
        if let (Some(process), Some(watch)) = (system::process_of(&instance.handle), self.inner.ends.get_or_init(start))
        {
            let (ordinal, attempt) = (instance.ordinal, instance.attempt);
            watch.watch(process, EndedInstance { appliance, ordinal, attempt }, ends);
        }
    }

    async fn ended(&self, appliance: ApplianceId, instance: &Instance) -> Option<InstanceEnd> {
        let (inner, ordinal, attempt) = (Arc::clone(&self.inner), instance.ordinal, instance.attempt);
        let end = tokio::task::spawn_blocking(move || inner.end_of(appliance, ordinal, attempt)).await;
        end.ok().flatten()
    }

    async fn ensure(&self, permit: &Permit, wanted: Wanted<'_>) -> Result<Instance, Error> {
        let order = Order::new(permit.appliance(), &wanted)?;
        let held = self.inner.lock(permit).await?;
        let (inner, task) = (Arc::clone(&self.inner), order.clone());
        match off_thread(move || inner.start(&held, &task)).await? {
            Started::Found(instance) => Ok(instance),
            Started::Made(instance) => self.settle(&order, instance).await,
        }
    }

    async fn run_beside(
        &self,
        appliance: ApplianceId,
        instance: &Instance,
        desired: &Desired,
        command: &[String],
        limit: Duration,
    ) -> Result<(), Error> {
        let (ordinal, attempt, boot_digest) = (instance.ordinal, instance.attempt, instance.boot_digest.as_str());
        let order = Order::new(appliance, &Wanted { ordinal, attempt, desired, boot_digest, beside: None })?;
        let (inner, address, command) = (Arc::clone(&self.inner), instance.addresses.service, command.to_vec());
        let (folder, order) = off_thread(move || {
            let folder = inner.folder_of(appliance, ordinal, order.attempt);
            let launch = Launch::beside(&order, &inner.config, address, &command)?;
            let order = launch.order_beside(&order, &folder, &inner.config, limit);
            Ok((folder, order))
        })
        .await?;
        shims::run_beside(&self.inner.config.shim_binary, &folder, &order, limit).await
    }

    async fn execute(
        &self,
        permit: &Permit,
        instance: &Instance,
        desired: &Desired,
        command: &[String],
        limit: Duration,
    ) -> Result<Execution, Error> {
        executing::execute(&self.inner, permit, instance, desired, command, limit).await
    }

    async fn destroy(&self, permit: &Permit, instance: &Instance, stop: StopRecipe) -> Result<(), Error> {
        self.destroy_first(permit, instance, &[], stop).await
    }

    async fn destroy_first(
        &self,
        permit: &Permit,
        instance: &Instance,
        others: &[Instance],
        stop: StopRecipe,
    ) -> Result<(), Error> {
        let held = Arc::new(self.inner.lock(permit).await?);
        let stop = launch::stop(stop, &self.inner.config);
        let end = |instance: &Instance| {
            Ending::new(Arc::clone(&self.inner), Arc::clone(&held), permit.appliance(), instance).end(stop)
        };
        let (told, _) = tokio::join!(end(instance), join_all(others.iter().map(end)));
        told
    }

    async fn list(&self) -> Result<Vec<(ApplianceId, Instance)>, Error> {
        let inner = Arc::clone(&self.inner);
        off_thread(move || inner.list()).await
    }

    async fn forget(&self, permit: &Permit) -> Result<(), Error> {
        let held = self.inner.lock(permit).await?;
        let (inner, appliance) = (Arc::clone(&self.inner), permit.appliance());
        off_thread(move || {
            if let Some(left) = inner.observe(appliance)?.running.first() {
                return Err(Error::Failed(format!("instance {} still runs", left.ordinal)));
            }
            for key in record::folders(inner.instances.path(), appliance)? {
                // What ended by itself may have left something that is not through yet.
                if let Some(record) = inner.folder(appliance, key).read()? {
                    inner.end_by_force(&held, appliance, (key.ordinal, record.instance.attempt), "sweep")?;
                }
            }
            held.check()?;
            held.note("forget", 0, 0, None, "begun");
            let folder = inner.instances.path().join(appliance.to_string());
            removal::remove_tree(&folder)
                .map_err(|error| Error::Failed(format!("remove {}: {error}", folder.display())))?;
            held.entomb()?;
            held.note("forget", 0, 0, None, "done");
            Ok(())
        })
        .await
    }
}

/// Opens the state directory, which is made when missing.
pub(crate) fn open_state_dir(path: &Path) -> io::Result<StateFolder> {
    Ok(StateFolder::private(path, &["instances", "fences", site::FILE])?)
}

impl Inner {
    fn folder(&self, appliance: ApplianceId, key: FolderKey) -> Folder {
        Folder::new(&self.instances, appliance, key)
    }

    /// Raises the token and takes the lock that spans side effects.
    async fn lock(&self, permit: &Permit) -> Result<HeldLock, Error> {
        self.check_in_place()?;
        self.fences.acquire(permit).await
    }

    /// Refuses to go by a state directory that was deleted or replaced: what runs would look as if it did not.
    fn check_in_place(&self) -> Result<(), Error> {
        let path = self.instances.path();
        let same = rustix::fs::fstat(self.instances.handle()).ok().zip(path.symlink_metadata().ok());
        if same.is_some_and(|(open, named)| (open.st_dev, open.st_ino) == (named.dev(), named.ino())) {
            return Ok(());
        }
        Err(Error::Failed(format!(
            "the state directory was deleted, moved or replaced under the worker ({} is not what it was); put it back, or start \
             the worker again",
            path.display()
        )))
    }

    /// The folder of one attempt, whether or not it was put aside for its successor.
    fn folder_of(&self, appliance: ApplianceId, ordinal: u16, attempt: u32) -> Folder {
        let aside = self.folder(appliance, FolderKey { ordinal, aside: Some(attempt) });
        if aside.exists() { aside } else { self.folder(appliance, FolderKey { ordinal, aside: None }) }
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

/// Runs blocking work where it may block. It goes on to its end when the caller is cancelled.
async fn off_thread<T: Send + 'static>(work: impl FnOnce() -> Result<T, Error> + Send + 'static) -> Result<T, Error> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(Error::Failed(format!("a driver call broke off: {error}"))),
    }
}
