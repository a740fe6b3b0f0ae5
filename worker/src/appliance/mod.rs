//! The reference appliance: the REST contract, and a TCP load balancer that really forwards.
//!
//! It is a process of its own (`rug-appliance`) that knows nothing of Rug but the contract: it is started without a
//! configuration, says in a file where it serves the contract, takes a configuration as a whole or not at all, and
//! refuses callers whose token is older than the newest it has seen. At SIGTERM it stops listening, lets its
//! connections end within a grace, and exits.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use runtime::file::write_atomic;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use self::balancer::Balancer;

pub mod api;
pub mod balancer;
mod counters;
mod health;
mod interfaces;
mod listener;
mod rest;

/// File in the state directory that holds the management address once it is served.
pub const MANAGEMENT_FILE: &str = "management";

/// How one appliance is run.
#[derive(Clone, Debug)]
pub struct Config {
    /// Which instance this is; calls that are meant for another are refused.
    pub name: Option<String>,
    /// Where its files are; made when missing.
    pub state_dir: PathBuf,
    /// Where the REST contract is served; port 0 picks one.
    pub management: SocketAddr,
    /// Serve it beyond loopback, although nothing checks who calls.
    pub insecure: bool,
    /// Connections forwarded at a time, over all listeners. More wait to be accepted. Each takes two sockets and some
    /// 20 KiB.
    pub max_connections: usize,
    /// How long connections may go on after SIGTERM.
    pub drain_grace: Duration,
}

/// Runs the appliance until SIGTERM or SIGINT.
///
/// # Errors
/// When it cannot start: the address cannot be served or the state directory cannot be written.
pub async fn run(config: Config) -> anyhow::Result<()> {
    if !config.management.ip().is_loopback() && !config.insecure {
        bail!("{} is not a loopback address: anybody could configure this; --insecure allows it", config.management);
    }
    std::fs::create_dir_all(&config.state_dir)
        .with_context(|| format!("cannot make the state directory {}", config.state_dir.display()))?;
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
    let management = TcpListener::bind(config.management)
        .await
        .with_context(|| format!("cannot listen on {}", config.management))?;
    let address = management.local_addr().context("the management address is gone")?;
    let balancer = Arc::new(Balancer::new(config.max_connections));
    let router = rest::router(rest::RestState::open(&config.state_dir, config.name, Arc::clone(&balancer))?);
    let file = config.state_dir.join(MANAGEMENT_FILE);
    write_atomic(&file, format!("{address}\n").as_bytes())
        .with_context(|| format!("cannot write {}", file.display()))?;
    tracing::info!(%address, "serving the management address");
    tokio::select! {
        served = axum::serve(management, router) => served.context("the management address is gone")?,
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!(open = balancer.open(), "draining");
    let left = balancer.drain(config.drain_grace).await;
    tracing::info!(left, "ended");
    Ok(())
}
