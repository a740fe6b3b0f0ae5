//! The reference appliance: the REST contract, and a TCP load balancer or a router that really forwards.
//!
//! It is a process of its own (`rug-appliance`) that knows nothing of Rug but the contract: it is started without a
//! configuration, says in a file where it serves the contract, takes a configuration as a whole or not at all, answers
//! only callers that have the secret it was started with, and refuses those among them whose token is older than the
//! newest it has seen. At SIGTERM it stops listening, lets its connections end within a grace, and exits. Another instance that is
//! started beside it can take its service over before that, with all its connections.

use std::io::Read as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use runtime::folder::Folder;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use worker_core::instance::ManagementSecret;

use self::balancer::Balancer;
use self::handover::HandoverSocket;
use self::routing::Routing;

pub mod api;
pub mod balancer;
mod channel;
mod counters;
mod dial;
pub mod handover;
mod health;
mod interfaces;
mod listener;
mod members;
mod metadata;
pub mod metrics;
pub(crate) mod proxy;
mod relay;
mod rest;
mod routing;
mod server;
mod slots;
mod socket;

/// File in the state directory that holds the management address once it is served.
pub const MANAGEMENT_FILE: &str = "management";

/// File in the state directory that holds the newest token.
pub const TOKEN_FILE: &str = "token";

/// How one appliance is run.
#[derive(Clone, Debug)]
pub struct Config {
    /// Which instance this is; calls that are meant for another are refused.
    pub name: Option<String>,
    /// Where its files are; made when missing.
    pub state_dir: PathBuf,
    /// Where the REST contract is served; port 0 picks one.
    pub management: SocketAddr,
    /// File with the secret that callers have to send.
    pub secret_file: Option<PathBuf>,
    /// Serve it without a secret, or beyond loopback, where the secret can be read on its way.
    pub insecure: bool,
    /// It has its files to itself, as in a container of its own: who could have put them there is not asked.
    pub contained: bool,
    /// Where `/metrics` is served; nowhere when absent. Port 0 picks one.
    pub metrics: Option<SocketAddr>,
    /// Connections forwarded at a time, over all listeners; fewer where the process may not have that many files open. Each takes
    /// two sockets and some 20 KiB.
    pub max_connections: usize,
    /// How long connections may go on after SIGTERM, and those that could not be handed over after another instance took over.
    pub drain_grace: Duration,
    /// Folder of an instance that this one takes over from with its first configuration.
    pub predecessor: Option<PathBuf>,
    /// It is a router: its configuration is put in force in the network namespace that it runs in.
    pub router: bool,
}

/// How many connections the limit of open files allows, with all that is allowed asked for: two sockets each, beside those of
/// listeners, health checks and the management server.
fn allowed_connections() -> usize {
    const OTHERS: u64 = 64 + 256 + server::MOST_CONNECTIONS as u64 + health::MOST_CHECKS as u64;
    let limit = getrlimit(Resource::Nofile);
    // What cannot be raised stays as it is.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
    match getrlimit(Resource::Nofile).current {
        Some(files) => usize::try_from(files.saturating_sub(OTHERS) / 2).unwrap_or(usize::MAX).max(1),
        None => usize::MAX,
    }
}

/// Most bytes of a file that is read.
const MAX_FILE: u64 = 4 << 10;

/// Reads the secret; what is in the file is not quoted. Only this user and root may have put it there, because whoever knows
/// it can configure this appliance.
fn read_secret(file: &Path) -> anyhow::Result<ManagementSecret> {
    let bytes = Folder::read_existing(file, MAX_FILE)
        .with_context(|| format!("cannot read {}", file.display()))?
        .with_context(|| format!("{} does not exist, or this user may not read it", file.display()))?;
    let no_secret = || format!("{} holds no secret", file.display());
    let text = std::str::from_utf8(&bytes).with_context(no_secret)?;
    ManagementSecret::new(text.trim()).with_context(no_secret)
}

/// The secret in a file that nobody else can have put there.
fn read_contained_secret(file: &Path) -> anyhow::Result<ManagementSecret> {
    let mut text = String::new();
    let opened = std::fs::File::open(file).with_context(|| format!("cannot read {}", file.display()))?;
    opened.take(MAX_FILE).read_to_string(&mut text).with_context(|| format!("cannot read {}", file.display()))?;
    ManagementSecret::new(text.trim()).with_context(|| format!("{} holds no secret", file.display()))
}

/// Runs the appliance until SIGTERM or SIGINT.
///
/// # Errors
/// When it cannot start: the address cannot be served or the state directory cannot be written.
pub async fn run(config: Config) -> anyhow::Result<()> {
    let secret = config.secret_file.as_deref();
    let secret = secret.map(if config.contained { read_contained_secret } else { read_secret }).transpose()?;
    if secret.is_none() && !config.insecure {
        bail!("--secret-file is missing: every user of this host could configure this; --insecure allows it");
    }
    if !config.management.ip().is_loopback() && !config.insecure {
        bail!(
            "{} is not a loopback address: its secret could be read on its way; --insecure allows it",
            config.management
        );
    }
    // Exclusive, because what is read there is believed: in a folder such as /tmp others could have put it.
    let open = if config.contained { Folder::unjudged } else { Folder::exclusive };
    let folder = open(&config.state_dir)
        .with_context(|| format!("cannot use the state directory {}", config.state_dir.display()))?;
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
    let management = TcpListener::bind(config.management)
        .await
        .with_context(|| format!("cannot listen on {}", config.management))?;
    let address = management.local_addr().context("the management address is gone")?;
    let most = config.max_connections.min(allowed_connections());
    tracing::info!(connections = most, "connections it can have");
    let balancer = Arc::new(Balancer::new(most));
    let closed = secret.is_some();
    let closing = CancellationToken::new();
    let _ended_with_this = closing.clone().drop_guard();
    if let Some(address) = config.metrics {
        let name = config.name.as_deref().unwrap_or("appliance");
        metrics::serve(address, config.insecure, name, &balancer, &folder, closing).await?;
    }
    let routing = config.router.then(Routing::default);
    let served = rest::Served { balancer: Arc::clone(&balancer), routing };
    let state = rest::RestState::open(folder.clone(), config.name, closed, served, config.predecessor)?;
    let router = rest::router(Arc::clone(&state), secret);
    // Before it says where it listens: whoever knows it can rely on that.
    // An instance in a container of its own has no successor beside it.
    let handover = if config.contained || config.router { None } else { Some(HandoverSocket::open(&folder)?) };
    let successor = async {
        match &handover {
            Some(handover) => handover.successor(&state, &balancer).await,
            None => std::future::pending().await,
        }
    };
    folder.write_atomic(MANAGEMENT_FILE, format!("{address}\n").as_bytes()).context("cannot say where it listens")?;
    tracing::info!(%address, "serving the management address");
    let successor = tokio::select! {
        () = server::serve(management, router, closed) => None,
        _ = terminate.recv() => None,
        _ = interrupt.recv() => None,
        successor = successor => Some(successor),
    };
    tracing::info!(open = balancer.open(), handed_over = successor.is_some(), "draining");
    let left = match successor {
        Some(successor) => successor.hand_over(&balancer, config.drain_grace).await,
        None => balancer.drain(config.drain_grace).await,
    };
    tracing::info!(left, "ended");
    Ok(())
}
