//! Builds every part of the coordinator and states the order in which they start and stop.
//!
//! Start: state directory (embedded, its lock makes this the only leader) and store, candidacy, services, then terms, one
//! after the other; in a cluster of coordinators the store is opened before the first campaign, and waited for. A failure
//! at any point ends the process with a message and the exit code of [`Failure`]. Stop: health says so, the leader waits
//! for workers that leave and releases the lock, watches end, the group is left, the server closes, the store is flushed.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use common::{ApplianceId, CoordinatorId, RebalanceId};
use futures::future::BoxFuture;
use proto::worker::v1::session_server::SessionServer;
use runtime::shutdown::Signals;
use runtime::tls::{ClientTls, ServerTls};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tracing::{info, warn};

use crate::catalog::Catalog;
use crate::commands::COMMAND_QUEUE;
use crate::config::Config;
use crate::failure::Failure;
use crate::grpc::{self, AdminServices, ForwardLayer, ServingRole, TraceLayer};
use crate::history::{History, HistoryError};
use crate::leader::{Identity, Inputs};
use crate::leadership::{self, Terms};
use crate::metrics::{self, Metrics};
use crate::opening::Opening;
use crate::record::{MoveRecord, RebalanceRecord};
use crate::sessions::Sessions;
use crate::state_dir::StateDir;
use crate::store::{self, Store};

/// Messages of all workers that wait for the leader. It takes them in batches; a full queue makes the streams wait, and
/// with them the workers' reports, which coalesce.
const SESSION_QUEUE: usize = 4_096;

/// How long open calls may take to end when the server stops.
const CLOSE: Duration = Duration::from_secs(3);

/// How long leaving the coordinators' group may take.
const LEAVE: Duration = Duration::from_secs(3);

fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    runtime::threads().map_err(|e| Failure::Other(format!("start the runtime: {e}")))
}

/// [`run`] on a runtime of its own. Not left to `main`, where the whole server would be compiled a second time.
///
/// # Errors
/// As [`run`].
pub fn run_blocking(config: Config) -> Result<(), Failure> {
    runtime()?.block_on(run(config))
}

/// Prints what the store has, for people; the coordinator may run meanwhile.
///
/// # Errors
/// [`Failure::State`] when it cannot be read.
pub fn dump(config: &Config) -> Result<(), Failure> {
    runtime()?.block_on(Store::inspect(&config.store, std::io::stdout())).map_err(|e| Failure::State(e.to_string()))
}

/// Runs a coordinator until a signal asks it to stop.
///
/// # Errors
/// [`Failure`] says why it ended otherwise.
pub async fn run(mut config: Config) -> Result<(), Failure> {
    let mut signals = Signals::catch().map_err(|e| Failure::Other(format!("catch signals: {e}")))?;
    let started = SystemTime::now();
    let embedded = config.coordination.is_embedded();
    // Embedded, this lock is what makes the leader the only one.
    let _lock = embedded.then(|| StateDir::take(&config.state_dir)).transpose()?;
    let tls = ServerTls::load(&config.tls).map_err(|e| Failure::Other(format!("tls.{e}")))?;
    let client_tls = ClientTls::load(&config.tls).map_err(|e| Failure::Other(format!("tls.{e}")))?;
    let listener = TcpListener::bind(config.listen).await.map_err(|e| Failure::Listen(config.listen, e))?;
    let address = listener.local_addr().map_err(|e| Failure::Listen(config.listen, e))?;
    let metrics_listener = match config.metrics.listen {
        None => None,
        Some(at) => Some(TcpListener::bind(at).await.map_err(|e| Failure::Listen(at, e))?),
    };
    let store = if embedded {
        Opening::now(&config.store).await.map_err(|e| Failure::State(e.to_string()))?
    } else {
        Opening::later(config.store.clone())
    };
    let coordinator = CoordinatorId::new(&config.name).map_err(|e| Failure::Other(e.to_string()))?;
    config.advertise = config.advertised(address);
    let candidate = config
        .coordination
        .candidate(&coordinator, config.advertise.clone(), &config.state_dir)
        .map_err(|e| Failure::Other(format!("coordination: {e}")))?;
    let identity = Identity {
        coordinator: coordinator.clone(),
        started,
        store: store::shown_url(&config.store.url),
        coordination: config.coordination.shown(),
        address: config.advertise.clone(),
        coordinators: candidate.coordinators(),
    };

    let catalog = Arc::new(Catalog::new(config.catalog.clone()));
    let (commands_in, commands) = mpsc::channel(COMMAND_QUEUE);
    let (sessions_in, sessions) = mpsc::channel(SESSION_QUEUE);
    let mut inputs = Inputs { commands, sessions };
    let stop = CancellationToken::new();
    let (stopping_in, stopping) = watch::channel(false);
    let (leading_in, leading) = watch::channel(false);
    let (role_in, role) = watch::channel(ServingRole::Standby(None));

    let metrics =
        Metrics::new(&config.name, Arc::clone(&catalog), leading.clone()).map_err(|e| Failure::Other(e.to_string()))?;
    let history: Arc<dyn History> = Arc::new(StoreHistory(store.clone()));
    let services = AdminServices::new(Arc::clone(&catalog), commands_in, history);
    let health = services.health();
    // Registers the services, too: whoever asks before they serve is told so, and not that they do not exist.
    health.set_serving(false).await;
    let routes = services.routes().map_err(|e| Failure::Other(format!("build the services: {e}")))?;
    let closing = CancellationToken::new();
    let server = Server::builder()
        .http2_keepalive_interval(Some(Duration::from_secs(5)))
        .http2_keepalive_timeout(Some(Duration::from_secs(5)))
        .layer(TraceLayer)
        .layer(ForwardLayer::new(coordinator.clone(), role.clone(), client_tls))
        .add_routes(routes)
        .add_service(SessionServer::new(Sessions::new(sessions_in, stopping)))
        .serve_with_incoming_shutdown(grpc::incoming(listener, tls), closing.clone().cancelled_owned());
    let server = tokio::spawn(server);
    let scraped = metrics_listener.map(|listener| {
        let address = listener.local_addr().map(|a| a.to_string()).unwrap_or_default();
        info!(address, "metrics at /metrics");
        tokio::spawn(metrics::serve(listener, Arc::clone(&metrics), closing.clone()))
    });
    let no_more = CancellationToken::new();
    tokio::spawn(leadership::tell_role(Arc::clone(&candidate), leading, role_in, no_more.clone()));
    tokio::spawn(async move { health.follow(&coordinator, role).await });
    info!(%address, advertise = config.advertise, coordination = identity.coordination, "serving");

    let terms = Terms {
        machine: config.machine.clone(),
        store: store.clone(),
        catalog: Arc::clone(&catalog),
        identity,
        candidate: Arc::clone(&candidate),
        metrics,
        embedded,
        leading: leading_in,
    };
    let mut leading = Box::pin(terms.run(&mut inputs, stop.clone()));
    let ended = tokio::select! {
        ended = &mut leading => ended,
        signal = signals.next() => {
            info!("{signal}: stopping");
            no_more.cancel();
            let _ = stopping_in.send(true);
            stop.cancel();
            leading.as_mut().await
        }
    };
    drop(leading);
    no_more.cancel();
    let _ = stopping_in.send(true);
    catalog.close_watches();
    closing.cancel();
    if tokio::time::timeout(LEAVE, candidate.leave()).await.is_err() {
        warn!("the group could not be left in time; the member goes with its session");
    }
    if tokio::time::timeout(CLOSE, server).await.is_err() {
        warn!("open calls did not end in time and are cut off");
    }
    if let Some(scraped) = scraped {
        // Ends by itself soon after `closing`.
        let _ = scraped.await;
    }
    if let Some(store) = store.get()
        && tokio::time::timeout(CLOSE, store.close()).await.is_err()
    {
        warn!("the store did not take what was left in time");
    }
    ended
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

    fn moves_of(&self, appliance: ApplianceId, limit: u64) -> BoxFuture<'_, Result<Vec<MoveRecord>, HistoryError>> {
        Box::pin(async move { self.store()?.moves_of(appliance, limit).await.map_err(unreadable) })
    }
}
