//! `rugctl up`: a whole cluster on this machine, as child processes.
//!
//! One coordinator and some workers, the same binaries as in production, with their state under one folder. This module
//! defines the order: lock the folder, stop leftovers of a crash, check binaries and port, start coordinator and
//! workers, watch, stop. [`supervisor`] keeps the processes running, [`folder`] owns the files, [`loss`] says what was deleted of them, [`status`](crate::status) the status
//! line; [`inherited`] refuses settings of another cluster.
//!
//! Stopping Rug never stops appliances: their instances are detached processes, which the next `up` adopts. `up --down`
//! removes them through the admin API.

use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Args;
use common::cluster::ClusterRef;
use common::driver::DriverName;
use futures::StreamExt;
use proto::admin::v1;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::sleep;

use crate::client::{AdminClient, Endpoint, read_endpoint};
use crate::commands::{CommandContext, Extent, confirm, delete};
use crate::document::view;
use crate::error::{Exit, Failure};
use crate::output::{Ui, count};
use crate::processes;
use crate::status::{self, StatusLine};

use runtime::folder::FileLock;

use self::folder::{LastStart, Parts, StateFolder, Whereabouts};
use self::loss::{Loss, last_words};
use self::supervisor::{ChildEvent, ChildProgram, Policy, Supervisor};

mod folder;
mod inherited;
mod loss;
mod supervisor;
#[cfg(test)]
mod tests;

/// Deadline for the cluster to be ready. An idle machine needs about a second; one that is compiling needs more.
const START_LIMIT: Duration = Duration::from_secs(30);
/// Interval of readiness checks.
const START_LOOK: Duration = Duration::from_millis(50);
/// Timeout of one readiness check.
const LOOK_LIMIT: Duration = Duration::from_secs(1);
/// How often it is looked whether the state folder is still there.
const FOLDER_LOOK: Duration = Duration::from_secs(2);
/// How long `--down` waits for an `up` that is starting or stopping; more than either may take.
const CHANGE_LIMIT: Duration = Duration::from_secs(40);
/// Default time that `--down` waits for the last appliance (`--timeout`).
const DOWN_LIMIT: Duration = Duration::from_secs(120);

/// Arguments.
#[derive(Args, Clone, Debug)]
pub(crate) struct UpArgs {
    /// Number of workers
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=64))]
    workers: u16,
    /// Folder for state and logs
    #[arg(long, default_value = ".rug", value_name = "DIR")]
    state_dir: PathBuf,
    /// Driver that the workers offer; may be repeated [default: process]
    #[arg(long = "driver", value_name = "DRIVER")]
    drivers: Vec<DriverName>,
    /// Serve at this loopback address as well; every local user can then command the cluster
    #[arg(long, value_name = "ADDRESS", requires = "insecure")]
    listen: Option<SocketAddr>,
    /// Allow --listen, which needs no certificate
    #[arg(long)]
    insecure: bool,
    /// Started by root: run commands that name no user as root, not as nobody
    #[arg(long)]
    allow_root: bool,
    /// Remove every appliance of the state folder, then stop
    #[arg(long)]
    down: bool,
    /// Do not ask for confirmation of --down
    #[arg(short, long, requires = "down")]
    yes: bool,
    /// Binary of the coordinator
    #[arg(long, hide = true)]
    coordinator_binary: Option<PathBuf>,
    /// Binary of the workers
    #[arg(long, hide = true)]
    worker_binary: Option<PathBuf>,
}

/// Runs the command. Ends with Ctrl-C or SIGTERM.
pub(crate) async fn run(ui: &Ui, args: &UpArgs, timeout: Option<Duration>) -> Result<(), Failure> {
    if let Some(listen) = args.listen.filter(|listen| !listen.ip().is_loopback()) {
        return Err(Failure::usage(format!("--listen {listen}: an embedded cluster listens on loopback only")));
    }
    inherited::refuse(std::env::vars_os().map(|(name, _)| name))?;
    let folder: Vec<_> = processes::real_path(&args.state_dir).into_iter().collect();
    if let Some(lost) = processes::lost_cluster(&folder) {
        // A second cluster beside it would start the same appliances again.
        return Err(lost.failure(Exit::Conflict));
    }
    if args.down { down(ui, args, timeout).await } else { stay_up(ui, args).await }
}

async fn stay_up(ui: &Ui, args: &UpArgs) -> Result<(), Failure> {
    let mut signals = StopSignals::new()?;
    let folder = StateFolder::open(&args.state_dir)?;
    let _lock = folder.lock()?;
    let drivers = if args.drivers.is_empty() { vec![DriverName::process()] } else { args.drivers.clone() };
    let last = folder.last_start();
    folder.remember(&LastStart { drivers: drivers.iter().map(ToString::to_string).collect(), ..last })?;
    let mut cluster = LocalCluster::new(folder, args, args.listen, &drivers)?;
    if let Some(text) = cluster.folder.tightened() {
        ui.note(&text);
    }
    ui.note(&format!("state and logs in {}", cluster.folder.root().display()));
    if rustix::process::geteuid().is_root() && !args.allow_root {
        ui.note(&format!(
            "started by root: commands that name no `user` run as {ROOTLESS_USER}, and none as root unless --allow-root is given"
        ));
    }
    let tell = |text: &str| ui.note(text);
    let started = tokio::select! {
        result = cluster.start(&tell) => result,
        () = signals.next() => Err(Failure::new(Exit::Interrupted, "interrupted while starting")),
    };
    if let Err(failure) = started {
        cluster.stop(signals.next()).await;
        return Err(failure);
    }
    ui.note("ready; Ctrl-C stops Rug and leaves the appliances running");
    let ended = cluster.watch(ui, &mut signals).await;
    let running = cluster.client.once(LOOK_LIMIT).status().await.ok().map(|s| status::running(&s));
    let (loss, workers) = (cluster.loss(), cluster.folder.path("workers"));
    ui.note("stopping Rug; Ctrl-C again kills it");
    cluster.stop(signals.next()).await;
    ui.note(&last_words(running, &loss, &workers));
    ended
}

async fn down(ui: &Ui, args: &UpArgs, timeout: Option<Duration>) -> Result<(), Failure> {
    if !StateFolder::has_cluster(&args.state_dir) {
        ui.note(&format!("nothing to remove: {} holds no cluster", args.state_dir.display()));
        return Ok(());
    }
    let limit = timeout.unwrap_or(DOWN_LIMIT);
    let folder = StateFolder::open(&args.state_dir)?;
    let _lock = match lock_or_endpoint(&folder).await? {
        Ok(lock) => lock,
        Err((holder, endpoint)) => {
            let client = AdminClient::new(&endpoint.address, crate::client::CALL_TIMEOUT)?;
            let removed = remove_all(&client.meant_for(endpoint.cluster), ui, args, limit).await?;
            let who = holder.map_or_else(String::new, |pid| format!(" (pid {pid})"));
            ui.note(&format!("removed {}; `rugctl up`{who} goes on", count(removed, "appliance")));
            return Ok(());
        }
    };
    let mut signals = StopSignals::new()?;
    let mut drivers = args.drivers.clone();
    drivers.extend(folder.last_start().drivers.iter().filter_map(|d| d.parse::<DriverName>().ok()));
    drivers.push(DriverName::process());
    drivers.sort();
    drivers.dedup();
    let mut cluster = LocalCluster::new(folder, args, None, &drivers)?;
    let known = cluster.folder.last_start().cluster;
    let work = async {
        cluster.start(&|_| {}).await?;
        let found = cluster.client.meant().map(ToString::to_string).unwrap_or_default();
        if !known.is_empty() && known != found {
            let root = cluster.folder.root().display();
            return Err(Failure::failed(format!(
                "the store in {root} is of cluster {found}, and what runs here was started by cluster {known}: nothing was removed"
            )));
        }
        remove_all(&cluster.client, ui, args, limit).await
    };
    let result = tokio::select! {
        result = work => result,
        () = signals.next() => Err(Failure::new(Exit::Interrupted, "interrupted; some appliances may be left")),
    };
    cluster.stop(signals.next()).await;
    ui.note(&format!("removed {}", count(result?, "appliance")));
    Ok(())
}

/// Asks, then removes every appliance.
async fn remove_all(client: &AdminClient, ui: &Ui, args: &UpArgs, limit: Duration) -> Result<u64, Failure> {
    let context = CommandContext { client: client.clone(), ui: ui.clone(), timeout: Some(limit) };
    let (cluster, context) = context.identified().await?;
    let all = context.client.list(v1::ApplianceFilter::default()).await?;
    if !all.is_empty() {
        let folder = args.state_dir.display();
        let question = format!("remove {} of {cluster}, whose state is in {folder}?", delete::described(ui, &all));
        confirm(&question, Extent::Named, args.yes).await?;
    }
    for mode in context.client.debug_modes().await? {
        // Nothing it covers would be removed.
        ui.note("clearing a debug mode");
        context.client.clear_debug_mode(&mode.id, "rugctl up --down").await?;
    }
    delete::delete_and_wait(&context.client, ui, all, limit).await
}

/// The lock, or pid and endpoint of the cluster that runs here. Waits for one that is starting or stopping.
async fn lock_or_endpoint(folder: &StateFolder) -> Result<Result<FileLock, (Option<u32>, Endpoint)>, Failure> {
    let deadline = Instant::now() + CHANGE_LIMIT;
    loop {
        let holder = match folder.try_lock()? {
            Ok(lock) => return Ok(Ok(lock)),
            Err(holder) => holder,
        };
        if let Some(endpoint) = read_endpoint(folder.root())? {
            return Ok(Err((holder, endpoint)));
        }
        if Instant::now() >= deadline {
            return Err(Failure::failed(format!("the cluster in {} neither runs nor stops", folder.root().display())));
        }
        sleep(START_LOOK).await;
    }
}

/// Requests to stop, from the terminal or from another process.
struct StopSignals([Signal; 3]);

impl StopSignals {
    fn new() -> Result<Self, Failure> {
        let listen = |kind| signal(kind).map_err(|e| Failure::failed(format!("listen to signals: {e}")));
        Ok(Self([
            listen(SignalKind::interrupt())?,
            listen(SignalKind::terminate())?,
            // SIGHUP: the terminal was closed.
            listen(SignalKind::hangup())?,
        ]))
    }

    /// The next request. Cancel safe.
    async fn next(&mut self) {
        let [interrupt, terminate, hangup] = &mut self.0;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    }
}

/// What a worker is told of whom commands may run as.
const fn rights(allow_root: bool, by_root: bool) -> &'static [&'static str] {
    match (allow_root, by_root) {
        (true, _) => &["--allow-root"],
        (false, true) => &["--default-user", ROOTLESS_USER],
        (false, false) => &[],
    }
}

/// The processes of an embedded cluster and a client of it.
struct LocalCluster {
    folder: StateFolder,
    supervisor: Supervisor,
    policy: Policy,
    client: AdminClient,
    /// TCP port beside the socket.
    listen: Option<SocketAddr>,
    coordinator: ChildProgram,
    workers: Vec<ChildProgram>,
    /// What the state folder has to keep; known once the cluster is ready.
    parts: Parts,
}

const COORDINATOR: &str = "coordinator-1";

/// User of commands that name none in a cluster that root has started: there is one of that name on every system.
const ROOTLESS_USER: &str = "nobody";

impl LocalCluster {
    /// A cluster of which no process runs yet.
    fn new(
        folder: StateFolder,
        args: &UpArgs,
        listen: Option<SocketAddr>,
        drivers: &[DriverName],
    ) -> Result<Self, Failure> {
        let coordinator_binary = binary(args.coordinator_binary.as_ref(), "rug-coordinator")?;
        let worker_binary = binary(args.worker_binary.as_ref(), "rug-worker")?;
        let address = folder.socket_address();
        let client = AdminClient::new(&address, crate::client::CALL_TIMEOUT)?;
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let text = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect::<Vec<_>>();
        let path = |name: &str| folder.path(name).to_string_lossy().into_owned();
        let program = |name: &str, binary: &PathBuf, args| ChildProgram {
            name: name.to_owned(),
            binary: binary.clone(),
            args,
            logs: folder.logs().clone(),
            run: folder.run().clone(),
        };
        let state = path("coordinator");
        let mut words = text(&["run", "--state-dir", &state, "--listen", &address, "--name", COORDINATOR]);
        if let Some(listen) = listen {
            words.extend(text(&["--listen", &listen.to_string(), "--insecure"]));
        }
        let coordinator = program(COORDINATOR, &coordinator_binary, words);
        let worker = |n: u16| {
            let name = format!("worker-{n}");
            let state = path("workers");
            let mut words =
                text(&["run", "--name", &name, "--coordinator", &address, "--state-dir", &state, "--host", &host]);
            // All workers stop together, so there is no other worker to hand appliances to.
            words.extend(text(&["--on-stop", "leave"]));
            words.extend(text(rights(args.allow_root, rustix::process::geteuid().is_root())));
            words.extend(drivers.iter().flat_map(|driver| text(&["--driver", driver.as_str()])));
            program(&name, &worker_binary, words)
        };
        let workers = (1..=args.workers).map(worker).collect();
        let policy = Policy::default();
        let parts = Parts::default();
        Ok(Self { folder, supervisor: Supervisor::new(policy), policy, client, listen, coordinator, workers, parts })
    }

    /// Starts everything and waits until it is ready.
    async fn start(&mut self, tell: &impl Fn(&str)) -> Result<(), Failure> {
        let began = Instant::now();
        self.stop_leftovers(tell).await;
        self.check_port()?;
        for program in std::iter::once(&self.coordinator).chain(&self.workers) {
            self.folder.rotate(&program.name);
        }
        let coordinator = self.coordinator.clone();
        self.supervisor.start(coordinator);
        let client = self.client.once(LOOK_LIMIT);
        self.ready(began, tell, async || match client.serves().await {
            Ok(true) => Vec::new(),
            _ => vec![(COORDINATOR.to_owned(), "does not serve yet".to_owned())],
        })
        .await?;
        let cluster = self.identify(tell).await?;
        let address = self.client.address().to_owned();
        tell(&format!("cluster {cluster}, coordinator serves at {address}"));
        self.folder.publish(&Endpoint { address, cluster: Some(cluster.clone()) })?;
        self.client = self.client.meant_for(Some(cluster));
        let client = self.client.once(LOOK_LIMIT);
        if let Some(listen) = self.listen {
            tell(&format!(
                "coordinator serves at http://{listen} as well, where every local user can command the cluster"
            ));
        }

        for worker in self.workers.clone() {
            self.supervisor.start(worker);
        }
        let names: Vec<_> = self.workers.iter().map(|w| w.name.clone()).collect();
        let look = async || {
            let missing = not_healthy(&names, &client.workers().await?);
            // Until then what is applied would be told that there is no worker for it.
            Ok::<_, Failure>(if missing.is_empty() { not_in_ring(&names, &client.ring(false).await?) } else { missing })
        };
        self.ready(began, tell, async || match look().await {
            Ok(missing) => missing,
            Err(failure) => vec![(COORDINATOR.to_owned(), failure.to_string())],
        })
        .await?;
        self.parts = self.folder.parts();
        let took = humantime::format_duration(Duration::from_millis(began.elapsed().as_millis() as u64)).to_string();
        tell(&format!("{} healthy, after {took}", count(names.len() as u64, "worker")));
        Ok(())
    }

    /// Which cluster the coordinator made or found; remembered in the folder.
    async fn identify(&self, tell: &impl Fn(&str)) -> Result<ClusterRef, Failure> {
        let identity = self.client.identify().await?.unwrap_or_default();
        let cluster = identity.id.parse().map_err(|e| Failure::failed(format!("the id of the cluster {e}")))?;
        let last = self.folder.last_start();
        if last.cluster != identity.id {
            if !last.cluster.is_empty() {
                tell(&format!("this folder was of cluster {} before: its store is another one now", last.cluster));
            }
            self.folder.remember(&LastStart { cluster: identity.id, ..last })?;
        }
        Ok(cluster)
    }

    async fn stop_leftovers(&self, tell: &impl Fn(&str)) {
        let left = supervisor::leftovers(self.folder.run());
        if left.is_empty() {
            return;
        }
        let names: Vec<_> = left.iter().map(|(name, _)| name.as_str()).collect();
        tell(&format!("stopping what an earlier `rugctl up` left running: {}", names.join(", ")));
        let processes: Vec<_> = left.iter().map(|(_, process)| *process).collect();
        supervisor::stop_leftovers(&processes, self.policy.stop_grace).await;
    }

    /// Checked here because the coordinator could only report it in its log.
    fn check_port(&self) -> Result<(), Failure> {
        let Some((listen, Err(error))) = self.listen.map(|listen| (listen, TcpListener::bind(listen))) else {
            return Ok(());
        };
        Err(Failure::failed(format!("cannot listen on {listen}: {error}; choose another with --listen")))
    }

    /// Checks until nothing is missing any more.
    ///
    /// # Errors A process exited, or something is still missing at the deadline; with the ends of the logs.
    async fn ready(
        &mut self,
        began: Instant,
        tell: &impl Fn(&str),
        missing: impl AsyncFn() -> Vec<(String, String)>,
    ) -> Result<(), Failure> {
        let deadline = tokio::time::Instant::from_std(began + START_LIMIT);
        let mut last = Vec::new();
        let look = async {
            loop {
                last = missing().await;
                if last.is_empty() {
                    return;
                }
                sleep(START_LOOK).await;
            }
        };
        let died = async {
            loop {
                match self.supervisor.event().await {
                    ChildEvent::Started { name, pid } => tell(&format!("{name} runs with pid {pid}")),
                    ChildEvent::Died { name, how, .. } | ChildEvent::GivenUp { name, how } => return (name, how),
                }
            }
        };
        let failed = tokio::select! {
            () = look => return Ok(()),
            (name, how) = died => vec![(name, how)],
            () = tokio::time::sleep_until(deadline) => Vec::new(),
        };
        let mut text = String::new();
        if failed.is_empty() {
            text = format!("not ready after {}\n", humantime::format_duration(START_LIMIT));
        }
        let failed = if failed.is_empty() { last } else { failed };
        for (name, how) in failed {
            text +=
                &format!("{name} {how}; the end of {}:\n{}", self.folder.log(&name).display(), self.folder.tail(&name));
        }
        Err(Failure::failed(text.trim_end().to_owned()))
    }

    /// Shows the state of the cluster until a signal arrives.
    ///
    /// # Errors The coordinator cannot be kept running.
    async fn watch(&mut self, ui: &Ui, signals: &mut StopSignals) -> Result<(), Failure> {
        let mut line = StatusLine::new(ui);
        let mut looks = tokio::time::interval(FOLDER_LOOK);
        let mut known = Loss::Nothing;
        let mut states = std::pin::pin!(status::states(self.client.once(LOOK_LIMIT)));
        loop {
            tokio::select! {
                () = signals.next() => return Ok(()),
                event = self.supervisor.event() => self.tell(&line, event)?,
                _ = looks.tick() => {
                    let loss = self.loss();
                    if loss != known {
                        line.print(&loss.told(self.folder.root()));
                        known = loss;
                    }
                    self.publish_again();
                }
                Some(state) = states.next() => match state {
                    Ok(status) => line.set(status::summary(&status)),
                    Err(failure) => line.set(failure.message.lines().next().unwrap_or_default().to_owned()),
                },
            }
        }
    }

    /// What is not where it was when the cluster became ready.
    fn loss(&self) -> Loss {
        match self.folder.whereabouts() {
            Whereabouts::Deleted => Loss::Deleted,
            Whereabouts::Moved(to) => Loss::Moved(to),
            Whereabouts::InPlace => match self.folder.lost(&self.parts) {
                parts if parts.is_empty() => Loss::Nothing,
                parts => Loss::Parts(parts),
            },
        }
    }

    /// Writes the endpoint file again if somebody has deleted it.
    fn publish_again(&self) {
        let Some(cluster) = self.client.meant() else { return };
        if self.folder.whereabouts() == Whereabouts::InPlace && !self.folder.path("endpoint").exists() {
            let endpoint = Endpoint { address: self.client.address().to_owned(), cluster: Some(cluster.clone()) };
            // It is tried again at the next look.
            let _ = self.folder.publish(&endpoint);
        }
    }

    fn tell(&self, line: &StatusLine, event: ChildEvent) -> Result<(), Failure> {
        match event {
            ChildEvent::Started { name, pid } => line.print(&format!("{name} runs with pid {pid}")),
            ChildEvent::Died { name, how, pause } => {
                line.print(&format!("{name} {how}; starting it again in {}", humantime::format_duration(pause)));
            }
            ChildEvent::GivenUp { name, how } => {
                let log = self.folder.log(&name);
                let text = format!("{name} {how}, too often to start it again; the end of {}:", log.display());
                let text = format!("{text}\n{}", self.folder.tail(&name)).trim_end().to_owned();
                if name == COORDINATOR {
                    return Err(Failure::failed(text));
                }
                line.print(&text);
            }
        }
        Ok(())
    }

    /// Stops all processes; immediately when `hurry` completes.
    async fn stop(self, hurry: impl Future<Output = ()>) {
        self.folder.withdraw();
        self.supervisor.stop(hurry).await;
    }
}

/// Which of these workers are not healthy yet, and why, as far as known.
fn not_healthy(names: &[String], workers: &[v1::Worker]) -> Vec<(String, String)> {
    let state = |name: &String| match workers.iter().find(|w| w.id == *name) {
        None => Some((name.clone(), "has not joined yet".to_owned())),
        Some(w) if w.health() == v1::Health::Healthy => None,
        Some(w) => Some((name.clone(), format!("is {}: {}", view::health(w.health()), w.reason))),
    };
    names.iter().filter_map(state).collect()
}

/// Which of these workers are given no appliances yet.
fn not_in_ring(names: &[String], ring: &v1::Ring) -> Vec<(String, String)> {
    let is_missing = |name: &&String| !ring.members.iter().any(|member| member.id == **name);
    names.iter().filter(is_missing).map(|name| (name.clone(), "is not in the ring yet".to_owned())).collect()
}

/// A binary of the same build: in the directory of this one, unless given.
fn binary(named: Option<&PathBuf>, name: &str) -> Result<PathBuf, Failure> {
    let path = match named {
        Some(path) => path.clone(),
        None => {
            let own = std::env::current_exe().map_err(|e| Failure::failed(format!("find my own executable: {e}")))?;
            own.with_file_name(name)
        }
    };
    if path.is_file() {
        return Ok(path);
    }
    Err(Failure::failed(format!("{}: no such program; `make up` builds it", path.display())))
}
