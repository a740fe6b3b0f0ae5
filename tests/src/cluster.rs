//! A cluster of real processes for tests: one coordinator, some workers, their appliances.
//!
//! Everything a cluster writes is below one temporary directory, which is removed at the end of a test that went well
//! and printed otherwise, with the ends of all logs. Nothing outlives a test: what runs is found by its environment and
//! ended when the [`Cluster`] is dropped, and by a guard process when the test itself was killed.
//!
//! A test ends with [`Cluster::finish`], which checks the final state ([`checks`]) and the logs ([`logs`]). One that
//! returns or panics before it counts as failed. Conditions are waited for with a deadline ([`wait::until`]), never with
//! a sleep.

pub mod api;
pub mod binaries;
pub mod certificates;
pub mod checks;
pub mod daemon;
pub mod http;
pub mod logs;
pub mod ports;
pub mod processes;
pub mod rugctl;
pub mod specs;
pub mod wait;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use proto::admin::v1;
use tempfile::TempDir;

use self::api::Api;
use self::daemon::Daemon;
use self::processes::ProcessIdentity;
use self::wait::until;

/// How long a cluster may take to start, to stop, or to settle, on a machine that is busy with other tests.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// What a cluster is made of.
#[derive(Clone, Debug)]
pub struct Options {
    /// Workers, named `worker-1` and so on.
    pub workers: u16,
    /// Drivers each of them offers.
    pub drivers: Vec<&'static str>,
    /// Further environment of the coordinator, such as `RUG_COORDINATOR_MACHINE__DEBOUNCE`.
    pub coordinator_env: Vec<(&'static str, String)>,
    /// Descriptors that the coordinator may have; as many as this process when absent.
    pub coordinator_files: Option<u64>,
    /// Further environment of each worker.
    pub worker_env: Vec<(&'static str, String)>,
    /// Zones, `zone-1` and so on, that workers publish in turn; none when 0.
    pub zones: u16,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            workers: 3,
            drivers: vec!["process"],
            coordinator_env: Vec::new(),
            coordinator_files: None,
            worker_env: Vec::new(),
            zones: 0,
        }
    }
}

/// A running cluster.
#[derive(Debug)]
pub struct Cluster {
    /// Its API.
    pub api: Api,
    /// Its coordinator.
    pub coordinator: Daemon,
    /// Its workers, in the order of their names.
    pub workers: Vec<Daemon>,
    sandbox: Sandbox,
    tolerated: Vec<String>,
}

impl Cluster {
    /// Builds the binaries if need be, starts everything and waits until every worker is healthy.
    ///
    /// # Errors
    /// When that does not happen within [`PATIENCE`], with the logs on standard error.
    pub async fn start(options: Options) -> Result<Self> {
        let sandbox = Sandbox::new()?;
        let port = ports::free();
        let address = format!("http://127.0.0.1:{port}");
        let mut coordinator = Daemon::new(
            "coordinator-1",
            binaries::path("rug-coordinator")?,
            ["run", "--name", "coordinator-1", "--listen", &format!("127.0.0.1:{port}"), "--insecure", "--state-dir"]
                .map(Into::into)
                .into_iter()
                .chain([sandbox.path("coordinator").into_os_string()])
                .collect(),
            &sandbox,
        );
        coordinator.environment(&options.coordinator_env);
        if let Some(most) = options.coordinator_files {
            coordinator.limit_files(most);
        }
        let mut workers = Vec::new();
        for n in 1..=options.workers {
            let name = format!("worker-{n}");
            let mut args = ["run", "--name", &name, "--coordinator", &address, "--host", "test-host", "--state-dir"]
                .map(Into::into)
                .to_vec();
            args.push(sandbox.path("workers").into_os_string());
            for driver in &options.drivers {
                args.extend(["--driver", driver].map(Into::into));
            }
            let mut worker = Daemon::new(&name, binaries::path("rug-worker")?, args, &sandbox);
            worker.environment(&options.worker_env);
            if options.zones > 0 {
                worker.environment(&[("RUG_WORKER_ZONE", format!("zone-{}", (n - 1) % options.zones + 1))]);
            }
            workers.push(worker);
        }
        let api = Api::new(&address)?;
        let mut cluster = Self { api, coordinator, workers, sandbox, tolerated: Vec::new() };
        cluster.start_all().await?;
        Ok(cluster)
    }

    /// Starts every daemon that does not run and waits until all workers are healthy.
    ///
    /// # Errors
    /// When that does not happen within [`PATIENCE`].
    pub async fn start_all(&mut self) -> Result<()> {
        self.coordinator.start()?;
        for worker in &mut self.workers {
            worker.start()?;
        }
        self.healthy().await
    }

    /// Waits until all workers that run are healthy.
    ///
    /// # Errors
    /// When that does not happen within [`PATIENCE`].
    pub async fn healthy(&mut self) -> Result<()> {
        let wanted: Vec<String> = self.workers.iter().filter(|w| w.runs()).map(|w| w.name().to_owned()).collect();
        until(PATIENCE, "all workers are healthy", async || {
            for daemon in std::iter::once(&mut self.coordinator).chain(&mut self.workers) {
                daemon.check()?;
            }
            let workers = self.api.workers().await?;
            let healthy = |name: &String| workers.iter().any(|w| w.id == *name && w.health() == v1::Health::Healthy);
            let missing: Vec<_> = wanted.iter().filter(|name| !healthy(name)).collect();
            ensure!(missing.is_empty(), "{missing:?} are not");
            Ok(())
        })
        .await
    }

    /// Directory of everything this cluster writes.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.sandbox.root
    }

    /// State directory the workers share.
    #[must_use]
    pub fn state_dir(&self) -> PathBuf {
        self.sandbox.path("workers")
    }

    /// The worker with this name.
    ///
    /// # Errors
    /// When there is none.
    pub fn worker(&mut self, name: &str) -> Result<&mut Daemon> {
        self.workers.iter_mut().find(|w| w.name() == name).with_context(|| format!("there is no {name}"))
    }

    /// Live instances by their name (appliance, ordinal and attempt), as the kernel shows them.
    #[must_use]
    pub fn instances(&self) -> BTreeMap<String, ProcessIdentity> {
        processes::instances(&self.sandbox.root)
    }

    /// Says that log lines with this text are expected in this test.
    pub fn tolerate(&mut self, text: &str) {
        self.tolerated.push(text.to_owned());
    }

    /// Creates appliances and waits until all are configured. Answers in their order.
    ///
    /// # Errors
    /// When a call fails, or one is not configured within [`PATIENCE`].
    pub async fn fleet(&self, appliances: Vec<v1::Appliance>) -> Result<Vec<v1::Appliance>> {
        let mut created = Vec::new();
        for appliance in appliances {
            let name = appliance.name.clone();
            created.push(self.api.create(appliance).await.with_context(|| format!("create {name}"))?.id);
        }
        until(PATIENCE, "the fleet is configured", async || {
            let mut found = Vec::new();
            for id in &created {
                let appliance = self.api.get(id).await?;
                ensure!(api::is_configured(&appliance), "{}", api::describe(&appliance));
                found.push(appliance);
            }
            Ok(found)
        })
        .await
    }

    /// Checks what must hold at the end of every test, and removes everything.
    ///
    /// # Errors
    /// What does not hold.
    pub async fn finish(mut self) -> Result<()> {
        checks::final_state(&self.api, self.root(), &self.state_dir()).await?;
        for daemon in std::iter::once(&mut self.coordinator).chain(&mut self.workers) {
            daemon.check()?;
        }
        self.sandbox.finish(&self.tolerated)
    }
}

/// A temporary directory, and the promise that no process of it stays.
#[derive(Debug)]
pub struct Sandbox {
    root: PathBuf,
    dir: Option<TempDir>,
    /// Held by a sandbox at a fixed path, for as long as it is there.
    _lock: Option<File>,
    /// Ends everything when its standard input closes, however this process ends.
    guard: Child,
    finished: bool,
}

impl Sandbox {
    /// An empty one.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn new() -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("rug-test-").tempdir().context("make a temporary directory")?;
        Self::of(dir, None)
    }

    /// An empty one at this path, for data that were recorded at that path. Waits until no other test uses it, and removes
    /// what one that was killed left there.
    ///
    /// # Errors
    /// When it cannot be made, or stays in use for longer than [`PATIENCE`].
    pub async fn at(path: &Path) -> Result<Self> {
        let lock = File::create(path.with_extension("lock")).with_context(|| format!("lock {}", path.display()))?;
        until(PATIENCE, "the directory is free", async || Ok(lock.try_lock()?)).await?;
        processes::end_all(path)?;
        match fs::remove_dir_all(path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
        let parent = path.parent().context("it is below a directory")?;
        let name = path.file_name().context("it has a name")?;
        let dir = tempfile::Builder::new().prefix(name).rand_bytes(0).tempdir_in(parent)?;
        Self::of(dir, Some(lock))
    }

    fn of(dir: TempDir, lock: Option<File>) -> Result<Self> {
        // As the kernel will show it in the environment of processes.
        let root = dir.path().canonicalize()?;
        fs::create_dir_all(root.join("logs"))?;
        let guard = Command::new(binaries::path("rug-test-helper")?)
            .arg("guard")
            .arg(&root)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // It has to outlive a Ctrl-C that ends the test.
            .process_group(0)
            .spawn()
            .context("start the guard")?;
        Ok(Self { root, dir: Some(dir), _lock: lock, guard, finished: false })
    }

    /// A path inside.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// The directory itself, without symbolic links.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Ends everything. With `keep` its files stay, otherwise they are removed.
    ///
    /// # Errors
    /// A process that cannot be ended.
    pub fn dismantle(mut self, keep: bool) -> Result<()> {
        processes::end_all(&self.root)?;
        self.finished = true;
        if keep {
            let kept = self.dir.take().map(TempDir::keep).unwrap_or_default();
            eprintln!("its files are kept in {}", kept.display());
        }
        Ok(())
    }

    /// Checks the logs and ends everything. `tolerated` texts may stand in error lines.
    ///
    /// # Errors
    /// Unexpected lines, or a process that cannot be ended.
    pub fn finish(mut self, tolerated: &[String]) -> Result<()> {
        processes::end_all(&self.root)?;
        let unexpected = logs::unexpected(&self.root, tolerated);
        if !unexpected.is_empty() {
            bail!("unexpected log lines:\n{}", unexpected.join("\n"));
        }
        self.finished = true;
        Ok(())
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        let _ = processes::end_all(&self.root);
        let _ = self.guard.kill();
        let _ = self.guard.wait();
        if !self.finished {
            let kept = self.dir.take().map(TempDir::keep);
            eprintln!("the test failed; its files are kept in {}", kept.unwrap_or_default().display());
            eprintln!("{}", logs::tails(&self.root));
        }
    }
}
