//! Builds every part of the coordinator and states the order in which they start and stop.
//!
//! Start: state directory (embedded, its lock makes this the only leader) and store, candidacy, services, then terms, one
//! after the other; in a cluster of coordinators the store is opened before the first campaign, and waited for. A failure
//! at any point ends the process with a message and the exit code of its [`Failure`]. Stop: health says so, the leader waits
//! for workers that leave and releases the lock, watches end, the group is left, the server closes, the store is flushed.

use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use common::{ApplianceId, CoordinatorId, RebalanceId};
use coordination::Candidate;
use coordinator_core::machine;
use futures::future::BoxFuture;
use proto::worker::v1::session_server::SessionServer;
use runtime::meter::probe::Probe;
use runtime::meter::{self, Meters};
use runtime::program::{self, Failure};
use runtime::reload;
use runtime::shutdown::Signals;
use runtime::telemetry::Program;
use runtime::tls::{ClientTls, ServerTls};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::access::Policy;
use crate::access::tokens::Tokens;
use crate::catalog::Catalog;
use crate::commands;
use crate::config::Config;
use crate::exit_code;
use crate::gauges;
use crate::grpc::connections::{CountCalls, Places};
use crate::grpc::{
    self, AdminServices, Authorize, BoundWatches, ClusterPin, Forwarder, HealthService, Layers, ServingRole,
};
use crate::history::{History, HistoryError};
use crate::leader::{Identity, Inputs, LeaderSetup};
use crate::leadership::{self, TermSources, Terms};
use crate::listen::Listening;
use crate::metrics;
use crate::opening::Opening;
use crate::record::{
    AuditFilter, AuditPart, MemberThen, MoveRecord, NumberedEvent, NumberedRun, RebalanceRecord, RunFilter,
};
use crate::sessions::{MAX_MESSAGE, Sessions};
use crate::sources::custom_resources::CustomResources;
use crate::sources::neutron::NeutronRouters;
use crate::sources::worker_pods::WorkerPods;
use crate::state_dir::StateDir;
use crate::store::{self, Store};
use crate::tuning::Tuning;

/// Messages of all workers that wait for the leader. It takes them in batches; a full queue makes the streams wait, and
/// with them the workers' reports, which coalesce.
const SESSION_QUEUE: usize = 4_096;

/// How long the store may take to write what is left when the server stops.
const CLOSE: Duration = Duration::from_secs(3);

/// How long work in threads may take to end when everything else has.
const THREADS: Duration = Duration::from_secs(1);

/// How long leaving the coordinators' group may take.
const LEAVE: Duration = Duration::from_secs(3);

/// [`run`] on a runtime of its own. Not left to `main`, where the whole server would be compiled a second time.
///
/// # Errors
/// As [`run`].
pub fn run_blocking(config: Config) -> Result<(), Failure> {
    let runtime = program::runtime()?;
    let ended = runtime.block_on(run(config));
    runtime.shutdown_timeout(THREADS);
    ended
}

/// Prints what the store has, for people; the coordinator may run meanwhile.
///
/// # Errors
/// With exit code [`exit_code::STATE`] when it cannot be read.
pub fn dump(config: Config) -> Result<(), Failure> {
    let inspect = Store::inspect(&config.store, std::io::stdout());
    program::runtime()?.block_on(inspect).map_err(|e| Failure::new(exit_code::STATE, e))
}

/// Copies a store that is a file; the coordinator may run meanwhile.
///
/// # Errors
/// With exit code [`exit_code::STATE`] when it cannot be read or the copy not written.
pub fn backup(config: Config, to: &Path) -> Result<(), Failure> {
    let bytes = program::runtime()?.block_on(Store::backup(&config.store, to));
    let bytes = bytes.map_err(|e| Failure::new(exit_code::STATE, e))?;
    writeln!(std::io::stdout(), "{}: {bytes} bytes", to.display())
        .map_err(|e| Failure::other(format!("print the size: {e}")))
}

/// Runs a coordinator until a signal asks it to stop.
///
/// # Errors
/// [`Failure`] says why it ended otherwise.
pub async fn run(mut config: Config) -> Result<(), Failure> {
    let mut signals = Signals::catch().map_err(|e| Failure::other(format!("catch signals: {e}")))?;
    reload::follow_signals().map_err(|e| Failure::other(format!("catch SIGHUP: {e}")))?;
    let program = Program { name: "rug-coordinator", instance: &config.name };
    let meters = Meters::start(program, &config.telemetry).map_err(Failure::other)?;
    metrics::start();
    let started = SystemTime::now();
    let parts = AppParts::open(&mut config).await?;
    let identity = Identity {
        coordinator: parts.coordinator.clone(),
        cluster_name: config.cluster_name().map_err(Failure::other)?,
        started,
        store: store::shown_url(&config.store.url),
        coordination: config.coordination.shown(),
        address: config.advertise.clone(),
        coordinators: parts.candidate.coordinators(),
    };
    let (store, candidate) = (parts.store.clone(), Arc::clone(&parts.candidate));
    let (server, mut inputs, terms) = Server::start(&config, parts, identity, &meters).await?;
    let stop = CancellationToken::new();
    let mut leading = Box::pin(terms.run(&mut inputs, stop.clone()));
    let ended = tokio::select! {
        ended = &mut leading => ended,
        signal = signals.next() => {
            info!("{signal}: stopping");
            server.announce_stop();
            stop.cancel();
            leading.as_mut().await
        }
    };
    drop(leading);
    server.announce_stop();
    server.catalog.close_watches();
    server.closing.cancel();
    if tokio::time::timeout(LEAVE, candidate.leave()).await.is_err() {
        warn!("the group could not be left in time; the member goes with its session");
    }
    server.close().await;
    if let Some(store) = store.get()
        && tokio::time::timeout(CLOSE, store.close()).await.is_err()
    {
        warn!("the store did not take what was left in time");
    }
    meters.end().await;
    ended
}

/// What is opened before anything is served. A failure here ends the process, and nobody has noticed it.
struct AppParts {
    /// Embedded, its lock is what makes the leader the only one.
    state_dir: Option<StateDir>,
    coordinator: CoordinatorId,
    tls: Option<ServerTls>,
    tokens: Option<Tokens>,
    client_tls: Option<ClientTls>,
    listening: Listening,
    metrics_listener: Option<TcpListener>,
    store: Opening,
    candidate: Arc<dyn Candidate>,
}

impl AppParts {
    async fn open(config: &mut Config) -> Result<Self, Failure> {
        let embedded = config.coordination.is_embedded();
        let state = |e: &dyn std::fmt::Display| Failure::new(exit_code::STATE, e);
        let listen = |at, e: std::io::Error| Failure::new(exit_code::LISTEN, format!("listen at {at}: {e}"));
        let state_dir = match embedded {
            true => Some(StateDir::take(&config.state_dir)),
            // Nothing else is kept in it.
            false => config.listen.has_socket().then(|| StateDir::open(&config.state_dir)),
        };
        let state_dir = state_dir.transpose().map_err(|e| state(&e))?;
        let tls = ServerTls::load(&config.tls).map_err(|e| Failure::other(format!("tls.{e}")))?;
        let tokens = Tokens::start(&config.authorization.tokens);
        let tokens = tokens.map_err(|e| Failure::other(format!("authorization.tokens.jwks: {e}")))?;
        let tls = if tokens.is_some() { tls.map(ServerTls::accept_without_certificate) } else { tls };
        let client_tls = ClientTls::load(&config.tls).map_err(|e| Failure::other(format!("tls.{e}")))?;
        let listening = config.listen.open().await?;
        let metrics_listener = match config.metrics.listen {
            None => None,
            Some(at) => Some(TcpListener::bind(at).await.map_err(|e| listen(at, e))?),
        };
        let store = if embedded {
            Opening::now(&config.store).await.map_err(|e| state(&e))?
        } else {
            Opening::later(config.store.clone())
        };
        let coordinator = CoordinatorId::new(&config.name).map_err(Failure::other)?;
        config.advertise = config.advertised(&listening);
        let candidate = config
            .coordination
            .candidate(&coordinator, config.advertise.clone(), &config.state_dir)
            .map_err(|e| Failure::other(format!("coordination: {e}")))?;
        Ok(Self { state_dir, coordinator, tls, tokens, client_tls, listening, metrics_listener, store, candidate })
    }
}

/// What is served, by this coordinator whether it leads or not, until the process ends.
struct Server {
    catalog: Arc<Catalog>,
    calls: JoinHandle<()>,
    metrics: Option<JoinHandle<()>>,
    /// Cancelled when open calls are to end.
    closing: CancellationToken,
    /// Cancelled when no role is to be told any more.
    roles: CancellationToken,
    /// Tells sessions that the process stops.
    stopping: watch::Sender<bool>,
    /// Held until the process ends.
    _state_dir: Option<StateDir>,
}

impl Server {
    /// Serves, and returns what the terms need that are to follow.
    async fn start(
        config: &Config,
        parts: AppParts,
        identity: Identity,
        meters: &Arc<Meters>,
    ) -> Result<(Self, Inputs, Terms), Failure> {
        let catalog = Arc::new(Catalog::new(config.catalog.clone()));
        let (commands_in, commands) = commands::channel();
        let (sessions_in, sessions) = mpsc::channel(SESSION_QUEUE);
        let (stopping, stop_seen) = watch::channel(false);
        let (leading_in, leading) = watch::channel(false);
        let (trouble_in, trouble) = watch::channel(None);
        let (role_in, role) = watch::channel(ServingRole::Standby(None));
        let (closing, roles) = (CancellationToken::new(), CancellationToken::new());

        gauges::show(Arc::clone(&catalog), leading.clone(), config.metrics.per_worker);
        commands_in.show_queue();
        let custom_resources = CustomResources::new(
            &config.kubernetes,
            commands_in.clone(),
            Arc::clone(&catalog),
            parts.coordinator.clone(),
        );
        let neutron_routers = NeutronRouters::new(
            &config.sources.neutron,
            commands_in.clone(),
            Arc::clone(&catalog),
            parts.coordinator.clone(),
        );
        let kubernetes = &config.kubernetes;
        let worker_pods = WorkerPods::new(&kubernetes.workers, &kubernetes.client, commands_in.clone());
        metrics::watch_queue("sessions", &sessions_in);
        let history: Arc<dyn History> = Arc::new(StoreHistory(parts.store.clone()));
        let services =
            AdminServices::new(Arc::clone(&catalog), commands_in, history).linking_traces(&config.telemetry.trace_url);
        let health = services.health();
        // Registers the services, too: whoever asks before they serve is told so, and not that they do not exist.
        health.set_serving(false).await;
        let sessions_service =
            SessionServer::new(Sessions::new(sessions_in, stop_seen)).max_decoding_message_size(MAX_MESSAGE);
        let routes = services.routes().map_err(|e| Failure::other(format!("build the services: {e}")))?;
        let address = parts.listening.shown();
        let places = Places::new(&config.connections, program::raise_descriptor_limit());
        let policy = Policy::new(&config.authorization);
        let accepts_tokens = parts.tokens.is_some();
        let layers = Layers {
            count: CountCalls { places: places.clone(), policy: policy.clone(), accepts_tokens },
            authorize: Authorize::new(policy, parts.tokens),
            watches: BoundWatches::new(config.watches.clone()),
            forward: Forwarder::new(parts.coordinator.clone(), role.clone(), parts.client_tls.clone()),
            pin: ClusterPin::new(Arc::clone(&catalog)),
        };
        let services = layers.around(routes.add_service(sessions_service));
        let incoming = grpc::incoming_within(parts.listening.listeners, parts.tls, &places);
        let calls = tokio::spawn(grpc::serve(incoming, services, closing.clone(), config.connections.drain_timeout));
        let served = parts.metrics_listener.map(|listener| serve_metrics(listener, meters, &health, &closing));
        let coordinator = parts.coordinator;
        let tuning = Arc::new(Tuning::new(coordinator.as_str()));
        let following = (Arc::clone(&tuning), coordinator.clone(), role.clone(), parts.client_tls);
        let (orders, name, roles_seen, tls) = following;
        tokio::spawn(grpc::follow_orders(orders, name, roles_seen, tls, roles.clone()));
        let (candidate, own) = (Arc::clone(&parts.candidate), coordinator.clone());
        tokio::spawn(leadership::tell_role(candidate, leading, trouble, own, role_in, roles.clone()));
        tokio::spawn(async move { health.follow(&coordinator, role).await });
        log_serving(config, &address, &identity);

        let leader = LeaderSetup {
            machine: machine::Config { limits: config.workers.clone(), ..config.machine.clone() },
            catalog: Arc::clone(&catalog),
            settled: commands.settled(),
            identity,
            tuning,
        };
        let embedded = config.coordination.is_embedded();
        let (store, candidate) = (parts.store, parts.candidate);
        let (leading, trouble) = (leading_in, trouble_in);
        let sources = TermSources { custom_resources, neutron_routers, worker_pods };
        let terms = Terms { leader, store, sources, candidate, embedded, leading, trouble };
        let _state_dir = parts.state_dir;
        let server = Self { catalog, calls, metrics: served, closing, roles, stopping, _state_dir };
        Ok((server, Inputs { commands, sessions }, terms))
    }

    /// Health and sessions say from now on that the process stops.
    fn announce_stop(&self) {
        self.roles.cancel();
        let _ = self.stopping.send(true);
    }

    /// Waits until open calls have ended, which `closing` has asked them to.
    async fn close(self) {
        // Ends by itself after the drain time-out.
        if let Err(failure) = self.calls.await {
            warn!("the server of calls failed: {failure}");
        }
        if let Some(metrics) = self.metrics {
            // Ends by itself soon after `closing`.
            let _ = metrics.await;
        }
    }
}

/// Serves metrics until `closing` is cancelled.
fn serve_metrics(
    listener: TcpListener,
    meters: &Arc<Meters>,
    health: &HealthService,
    closing: &CancellationToken,
) -> JoinHandle<()> {
    let address = listener.local_addr().map(|a| a.to_string()).unwrap_or_default();
    info!(address, "metrics at /metrics");
    let health = health.clone();
    let probe = Probe::new("rug-coordinator", move || health.is_serving());
    tokio::spawn(meter::serve(listener, Arc::clone(meters), probe, closing.clone()))
}

/// Logs where calls are answered, and who may make them when nobody is asked.
fn log_serving(config: &Config, address: &str, identity: &Identity) {
    if config.tls.is_off() && config.listen.tcp().next().is_some() {
        warn!(
            address,
            "insecure = true: every process that reaches the TCP port commands the fleet, whichever user it belongs to"
        );
    }
    info!(address, advertise = config.advertise, coordination = identity.coordination, "serving");
}

/// The history as the admin services read it.
struct StoreHistory(Opening);

impl StoreHistory {
    fn store(&self) -> Result<Store, HistoryError> {
        self.0.get().ok_or_else(|| HistoryError("the store is not open yet".to_owned()))
    }
}

fn unreadable(error: store::Error) -> HistoryError {
    HistoryError(error.to_string())
}

impl History for StoreHistory {
    fn rebalances(
        &self,
        before: Option<RebalanceId>,
        limit: u64,
    ) -> BoxFuture<'_, Result<Vec<RebalanceRecord>, HistoryError>> {
        Box::pin(async move { self.store()?.rebalances(before, limit).await.map_err(unreadable) })
    }

    fn rebalance(
        &self,
        id: RebalanceId,
    ) -> BoxFuture<'_, Result<Option<(RebalanceRecord, Vec<MoveRecord>)>, HistoryError>> {
        Box::pin(async move { self.store()?.rebalance(id).await.map_err(unreadable) })
    }

    fn members_of(&self, id: RebalanceId) -> BoxFuture<'_, Result<Vec<MemberThen>, HistoryError>> {
        Box::pin(async move { self.store()?.members_of(id).await.map_err(unreadable) })
    }

    fn moves_of(&self, appliance: ApplianceId, limit: u64) -> BoxFuture<'_, Result<Vec<MoveRecord>, HistoryError>> {
        Box::pin(async move { self.store()?.moves_of(appliance, limit).await.map_err(unreadable) })
    }

    fn audit(
        &self,
        filter: AuditFilter,
        part: AuditPart,
        limit: u64,
    ) -> BoxFuture<'_, Result<Vec<NumberedEvent>, HistoryError>> {
        Box::pin(async move { self.store()?.audit(&filter, part, limit).await.map_err(unreadable) })
    }

    fn runs(
        &self,
        filter: RunFilter,
        part: AuditPart,
        limit: u64,
    ) -> BoxFuture<'_, Result<Vec<NumberedRun>, HistoryError>> {
        Box::pin(async move { self.store()?.runs(&filter, part, limit).await.map_err(unreadable) })
    }
}
