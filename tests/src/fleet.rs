//! A distributed cluster of real processes for tests: ZooKeeper, a database, coordinators, workers, their appliances; on
//! the loopback address, or each ZooKeeper server and worker on a host of its own in network namespaces.
//!
//! As [`crate::cluster`], with which it shares sandbox, daemons, API and checks: everything is below one temporary
//! directory, nothing outlives the test, and a test ends with [`Fleet::finish`].

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use proto::admin::v1;
use servers::mariadb::{self, MariaDb};
use servers::netns::{Host, Network};
use servers::ports::Port;
use servers::postgres::{self, Postgres};
use servers::proxy::Proxy;
use servers::zookeeper::{self, Ensemble};

use crate::cluster::api::{self, Api};
use crate::cluster::daemon::Daemon;
use crate::cluster::processes::ProcessIdentity;
use crate::cluster::wait::until;
use crate::cluster::{PATIENCE, Sandbox, binaries, checks, processes, rugctl};

/// Which database the coordinators share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DatabaseChoice {
    /// PostgreSQL.
    Postgres,
    /// MariaDB.
    MariaDb,
}

/// Which parts of a fleet are on hosts of their own, in network namespaces; needs root. What is on none stays together on
/// [`Network::here`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Hosts {
    /// None: everything is on the loopback address.
    #[default]
    None,
    /// ZooKeeper servers, `zk1` and so on.
    ZooKeepers,
    /// ZooKeeper servers and workers, `w1` and so on. An instance answers only on the host of the worker that started it.
    All,
    /// As [`Hosts::All`], and coordinators, `c1` and so on, so that only the database and the test are left here.
    Each,
}

/// Forwarders that can delay what passes; see [`Options::proxies`]. In the order of the servers behind them.
#[derive(Debug, Default)]
pub struct Proxies {
    /// In front of each ZooKeeper server, on its host.
    pub zookeepers: Vec<Proxy>,
    /// In front of each coordinator, on its host: what workers and other coordinators say passes here.
    pub coordinators: Vec<Proxy>,
    /// Between each coordinator and the database.
    pub databases: Vec<Proxy>,
}

/// What a fleet is made of.
#[derive(Clone, Debug)]
pub struct Options {
    /// ZooKeeper servers: one alone, or an ensemble.
    pub zookeepers: usize,
    /// How ZooKeeper is set up.
    pub zookeeper: zookeeper::Options,
    /// The database.
    pub store: DatabaseChoice,
    /// Coordinators, named `c1` and so on.
    pub coordinators: u16,
    /// Workers, named `w1` and so on.
    pub workers: u16,
    /// Drivers each of them offers.
    pub drivers: Vec<&'static str>,
    /// Session timeout of coordinators and workers.
    pub session: Duration,
    /// Each worker knows one ZooKeeper server only, `w1` the first, `w2` the second, and so on in turns: it shares what
    /// becomes of that server.
    pub pinned: bool,
    /// What is on hosts of its own.
    pub hosts: Hosts,
    /// Whether [`Proxies`] stand between the parts; needs [`Hosts::Each`].
    pub proxies: bool,
    /// Further environment of each coordinator, such as `RUG_COORDINATOR_MACHINE__DEBOUNCE`.
    pub coordinator_env: Vec<(&'static str, String)>,
    /// Further environment of each worker.
    pub worker_env: Vec<(&'static str, String)>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            zookeepers: 1,
            zookeeper: zookeeper::Options::default(),
            store: DatabaseChoice::Postgres,
            coordinators: 2,
            workers: 3,
            drivers: vec!["process"],
            session: Duration::from_secs(4),
            pinned: false,
            hosts: Hosts::None,
            proxies: false,
            coordinator_env: Vec::new(),
            worker_env: Vec::new(),
        }
    }
}

/// The database of a fleet.
#[derive(Debug)]
pub enum FleetDatabase {
    /// PostgreSQL.
    Postgres(Box<Postgres>),
    /// MariaDB.
    MariaDb(Box<MariaDb>),
}

impl FleetDatabase {
    async fn start(store: DatabaseChoice) -> Result<(Self, String)> {
        Ok(match store {
            DatabaseChoice::Postgres => {
                let server =
                    Postgres::start(postgres::Options { fsync: false, ..postgres::Options::default() }).await?;
                let url = server.create_database("rug").await?;
                (Self::Postgres(Box::new(server)), url)
            }
            DatabaseChoice::MariaDb => {
                let server = MariaDb::start(mariadb::Options { fsync: false, ..mariadb::Options::default() }).await?;
                let url = server.create_database("rug").await?;
                (Self::MariaDb(Box::new(server)), url)
            }
        })
    }

    /// Where it listens, `ip:port`.
    #[must_use]
    pub fn address(&self) -> String {
        let port = match self {
            Self::Postgres(server) => server.port(),
            Self::MariaDb(server) => server.port(),
        };
        format!("127.0.0.1:{port}")
    }

    /// `kill -9`.
    ///
    /// # Errors
    /// When it does not run.
    pub fn kill(&mut self) -> Result<()> {
        match self {
            Self::Postgres(server) => server.kill(),
            Self::MariaDb(server) => server.kill(),
        }
    }

    /// Starts it again, with its data.
    ///
    /// # Errors
    /// When it does not serve in time.
    pub async fn start_again(&mut self) -> Result<()> {
        match self {
            Self::Postgres(server) => server.start_again().await,
            Self::MariaDb(server) => server.start_again().await,
        }
    }
}

/// A running fleet.
#[derive(Debug)]
pub struct Fleet {
    /// The API at each coordinator, in the order of their names. Any answers any call.
    pub apis: Vec<Api>,
    /// The coordinators.
    pub coordinators: Vec<Daemon>,
    /// The workers.
    pub workers: Vec<Daemon>,
    /// ZooKeeper.
    pub zookeeper: Ensemble,
    /// The database.
    pub database: FleetDatabase,
    /// What stands between the parts, if anything does.
    pub proxies: Proxies,
    /// Hosts, when there are any.
    pub network: Option<Network>,
    /// Coordination URL of the fleet.
    pub coordination: String,
    /// URL of its store, without a proxy.
    pub store: String,
    sandbox: Sandbox,
    tolerated: Vec<String>,
    _ports: Vec<Port>,
}

impl Fleet {
    /// Builds the binaries if need be, starts everything and waits until every worker is healthy.
    ///
    /// # Errors
    /// When that does not happen within [`PATIENCE`], with the logs on standard error.
    pub async fn start(options: Options) -> Result<Self> {
        let sandbox = Sandbox::new()?;
        let network = network(&options)?;
        let zookeeper = match &network {
            None => Ensemble::start(options.zookeepers, options.zookeeper.clone()).await?,
            Some(network) => {
                let names: Vec<String> = (1..=options.zookeepers).map(|n| format!("zk{n}")).collect();
                let hosts = names.iter().map(|name| network.host(name)).collect::<Result<Vec<&Host>>>()?;
                Ensemble::start_on(&hosts, options.zookeeper.clone()).await?
            }
        };
        let (database, store) = FleetDatabase::start(options.store).await?;
        let mut proxies = Proxies::default();
        if options.proxies {
            let network = network.as_ref().context("proxies need hosts")?;
            for n in 0..options.zookeepers {
                let proxy = Proxy::start_on(network.host(&format!("zk{}", n + 1))?, &zookeeper.address(n))?;
                proxies.zookeepers.push(proxy);
            }
        }
        let url = |servers: &str| format!("zookeeper://{servers}/?timeout={}", options.session.as_secs_f64());
        let zookeepers: Vec<String> = (0..options.zookeepers)
            .map(|n| proxies.zookeepers.get(n).map_or_else(|| zookeeper.address(n), Proxy::address))
            .collect();
        let coordination = url(&zookeepers.join(","));
        let mut ports = Vec::new();
        let (mut apis, mut coordinators, mut workers) = (Vec::new(), Vec::new(), Vec::new());
        for n in 1..=options.coordinators {
            let port = Port::free()?;
            let name = format!("c{n}");
            let host = network.as_ref().filter(|_| options.hosts == Hosts::Each);
            let host = host.map(|network| network.host(&name)).transpose()?;
            let ip = host.or(network.as_ref().map(Network::here)).map_or(IpAddr::from([127, 0, 0, 1]), Host::address);
            let listen = format!("{ip}:{}", port.number());
            let mut args = words(["run", "--name", &name, "--listen", &listen, "--insecure", "--state-dir"]);
            args.push(sandbox.path(&name).into_os_string());
            let mut coordinator = daemon_on(host, &name, binaries::path("rug-coordinator")?, args, &sandbox);
            let mut store_url = store.clone();
            if options.proxies {
                let (network, host) = (network.as_ref().context("hosts")?, host.context("coordinators on hosts")?);
                let to_database = Proxy::start_at(network.here().address(), &database.address()).await?;
                store_url = store_url.replace(&database.address(), &to_database.address());
                let before = Proxy::start_on(host, &listen)?;
                coordinator.environment(&[("RUG_COORDINATOR_ADVERTISE", format!("http://{}", before.address()))]);
                proxies.databases.push(to_database);
                proxies.coordinators.push(before);
            }
            coordinator.environment(&[
                ("RUG_COORDINATOR_COORDINATION__URL", coordination.clone()),
                ("RUG_COORDINATOR_STORE__URL", store_url),
            ]);
            coordinator.environment(&options.coordinator_env);
            coordinators.push(coordinator);
            apis.push(Api::new(&format!("http://{listen}"))?);
            ports.push(port);
        }
        for n in 1..=options.workers {
            let name = format!("w{n}");
            let host = network.as_ref().filter(|_| matches!(options.hosts, Hosts::All | Hosts::Each));
            let host = host.map(|network| network.host(&name)).transpose()?;
            let mut args = words(["run", "--name", &name, "--host", "test-host", "--state-dir"]);
            args.push(sandbox.path("workers").into_os_string());
            for driver in &options.drivers {
                args.extend(words(["--driver", driver]));
            }
            let mut worker = daemon_on(host, &name, binaries::path("rug-worker")?, args, &sandbox);
            let one = url(&zookeepers[usize::from(n - 1) % zookeepers.len()]);
            let known = if options.pinned { one } else { coordination.clone() };
            worker.environment(&[("RUG_WORKER_COORDINATION__URL", known)]);
            worker.environment(&options.worker_env);
            workers.push(worker);
        }
        let mut fleet = Self {
            apis,
            coordinators,
            workers,
            zookeeper,
            database,
            proxies,
            network,
            coordination,
            store,
            sandbox,
            tolerated: Vec::new(),
            _ports: ports,
        };
        fleet.start_all().await?;
        Ok(fleet)
    }

    /// Starts every daemon that does not run and waits until all workers are healthy.
    ///
    /// # Errors
    /// When that does not happen within [`PATIENCE`].
    pub async fn start_all(&mut self) -> Result<()> {
        for daemon in self.coordinators.iter_mut().chain(&mut self.workers) {
            daemon.start()?;
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
            for daemon in self.coordinators.iter_mut().chain(&mut self.workers) {
                daemon.check()?;
            }
            let workers = self.api().workers().await?;
            let healthy = |name: &String| workers.iter().any(|w| w.id == *name && w.health() == v1::Health::Healthy);
            let missing: Vec<_> = wanted.iter().filter(|name| !healthy(name)).collect();
            ensure!(missing.is_empty(), "{missing:?} are not: {workers:?}");
            Ok(())
        })
        .await
    }

    /// The API at the first coordinator that runs.
    ///
    /// # Panics
    /// When none runs.
    #[must_use]
    pub fn api(&self) -> &Api {
        let running = self.coordinators.iter().position(Daemon::runs).expect("a coordinator runs");
        &self.apis[running]
    }

    /// Index of the coordinator that leads, as the answering one says.
    ///
    /// # Errors
    /// When nobody says so.
    pub async fn leader(&self) -> Result<usize> {
        let name = self.api().status().await?.coordinator;
        self.coordinators.iter().position(|c| c.name() == name).with_context(|| format!("{name} is none of them"))
    }

    /// The worker with this name.
    ///
    /// # Errors
    /// When there is none.
    pub fn worker(&mut self, name: &str) -> Result<&mut Daemon> {
        self.workers.iter_mut().find(|w| w.name() == name).with_context(|| format!("there is no {name}"))
    }

    /// Directory of everything this fleet writes.
    #[must_use]
    pub fn root(&self) -> &Path {
        self.sandbox.root()
    }

    /// State directory the workers share.
    #[must_use]
    pub fn state_dir(&self) -> PathBuf {
        self.sandbox.path("workers")
    }

    /// Live instances by their name, as the kernel shows them.
    #[must_use]
    pub fn instances(&self) -> BTreeMap<String, ProcessIdentity> {
        processes::instances(self.root())
    }

    /// Says that log lines with this text are expected in this test.
    pub fn tolerate(&mut self, text: &str) {
        self.tolerated.push(text.to_owned());
    }

    /// Creates appliances, several at a time, and waits until all are configured. Answers with their ids, in no order.
    /// While nobody leads, as may happen on a machine that is busy with other tests, it asks again.
    ///
    /// # Errors
    /// When a call is refused, or they are not configured within twice [`PATIENCE`].
    pub async fn create(&self, appliances: Vec<v1::Appliance>) -> Result<Vec<String>> {
        const AT_ONCE: usize = 64;
        let wanted = appliances.len() as u64;
        let api = self.api().clone();
        let before = api.status().await?.appliances;
        let mut ids = Vec::with_capacity(appliances.len());
        let mut running: tokio::task::JoinSet<Result<v1::Appliance>> = tokio::task::JoinSet::new();
        for appliance in appliances {
            if running.len() >= AT_ONCE
                && let Some(created) = running.join_next().await
            {
                ids.push(created?.context("create")?.id);
            }
            let api = api.clone();
            running.spawn(async move { create_once(&api, appliance).await });
        }
        while let Some(created) = running.join_next().await {
            ids.push(created?.context("create")?.id);
        }
        until(PATIENCE * 2, "the fleet is configured", async || {
            let phases = api.status().await?.phases;
            let configured = phases.get("configured").or(phases.get("Configured")).copied().unwrap_or_default();
            ensure!(configured >= before + wanted, "{phases:?}");
            Ok(())
        })
        .await?;
        Ok(ids)
    }

    /// Owner of every appliance, by id; fails unless all are owned by somebody.
    ///
    /// # Errors
    /// The first that is not.
    pub async fn owners(&self) -> Result<BTreeMap<String, String>> {
        let mut owners = BTreeMap::new();
        for appliance in self.api().list().await? {
            let assignment = appliance.assignment.clone().unwrap_or_default();
            ensure!(assignment.state == "owned", "{}", api::describe(&appliance));
            owners.insert(appliance.id, assignment.worker);
        }
        Ok(owners)
    }

    /// Waits until every appliance is owned, by a worker that `allowed` accepts.
    ///
    /// # Errors
    /// When that does not happen within `limit`.
    pub async fn settled(&self, limit: Duration, allowed: impl Fn(&str) -> bool) -> Result<BTreeMap<String, String>> {
        until(limit, "every appliance is owned", async || {
            let owners = self.owners().await?;
            match owners.iter().find(|(_, worker)| !allowed(worker)) {
                None => Ok(owners),
                Some((id, worker)) => bail!("{id} is still {worker}'s"),
            }
        })
        .await
    }

    /// Runs a `rugctl` command against all coordinators; `input` is its standard input.
    ///
    /// # Errors
    /// When it cannot be run or does not end.
    pub async fn rugctl(&self, args: &[&str], input: &str) -> Result<rugctl::CommandOutput> {
        let servers: Vec<&str> = self.apis.iter().map(Api::address).collect();
        let servers = servers.join(",");
        let args: Vec<&str> = args.iter().copied().chain(["--server", &servers]).collect();
        rugctl::run(self.root(), &args, input).await
    }

    /// Ends and removes everything without any check: for those that have made their own. With `keep` its files stay.
    ///
    /// # Errors
    /// When a process cannot be ended.
    pub fn dismantle(self, keep: bool) -> Result<()> {
        self.sandbox.dismantle(keep)
    }

    /// Checks what must hold at the end of every test, and removes everything.
    ///
    /// # Errors
    /// What does not hold.
    pub async fn finish(mut self) -> Result<()> {
        checks::final_state(self.api(), self.root(), &self.state_dir()).await?;
        for daemon in self.coordinators.iter_mut().chain(&mut self.workers) {
            daemon.check()?;
        }
        self.sandbox.finish(&self.tolerated)
    }
}

/// Creates an appliance, asking again under the same request id until somebody who leads has answered.
async fn create_once(api: &Api, appliance: v1::Appliance) -> Result<v1::Appliance> {
    let request_id = uuid::Uuid::new_v4().to_string();
    let request = v1::CreateApplianceRequest { appliance: Some(appliance), request_id, ..Default::default() };
    let begun = Instant::now();
    // Not `until`: its closure cannot be sent to another task.
    loop {
        match api.appliances().create(request.clone()).await {
            Ok(created) => return Ok(created.into_inner()),
            Err(status) if status.code() == tonic::Code::Unavailable && begun.elapsed() < PATIENCE => {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            Err(status) => return Err(status.into()),
        }
    }
}

/// Waits for a condition that is looked at as often as it answers, and says how long it took.
///
/// # Errors
/// When it does not hold within `limit`.
pub async fn timed<T>(limit: Duration, what: &str, condition: impl AsyncFnMut() -> Result<T>) -> Result<(T, Duration)> {
    let begun = Instant::now();
    let value = until(limit, what, condition).await?;
    Ok((value, begun.elapsed()))
}

fn words<const N: usize>(words: [&str; N]) -> Vec<OsString> {
    words.map(Into::into).to_vec()
}

fn network(options: &Options) -> Result<Option<Network>> {
    let (coordinators, workers) = match options.hosts {
        Hosts::None => return Ok(None),
        Hosts::ZooKeepers => (0, 0),
        Hosts::All => (0, options.workers),
        Hosts::Each => (options.coordinators, options.workers),
    };
    let zookeepers = (1..=options.zookeepers).map(|n| format!("zk{n}"));
    let workers = (1..=workers).map(|n| format!("w{n}"));
    let names: Vec<String> = zookeepers.chain(workers).chain((1..=coordinators).map(|n| format!("c{n}"))).collect();
    Network::new(&names.iter().map(String::as_str).collect::<Vec<_>>()).map(Some)
}

/// A daemon that runs on a host, or here.
fn daemon_on(host: Option<&Host>, name: &str, program: PathBuf, args: Vec<OsString>, sandbox: &Sandbox) -> Daemon {
    let mut words = host.map(Host::prefix).unwrap_or_default();
    if words.is_empty() {
        return Daemon::new(name, program, args, sandbox);
    }
    let first = PathBuf::from(words.remove(0));
    words.push(program.into_os_string());
    words.extend(args);
    Daemon::new(name, first, words, sandbox)
}
