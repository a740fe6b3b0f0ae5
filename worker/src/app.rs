//! Builds every part of the worker and states the order in which they start and stop.
//!
//! Start: drivers (which check their directories), runner, session. Stop: the gate is shut for good, running steps end or
//! are given up, the coordinator is told, the process ends. Instances go on running.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use common::appliance::Driver as Name;
use common::runtime::shutdown::Signals;
use common::tls::ClientTls;
use common::{ApplianceId, Term, WorkerId};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use worker_core::instance::Instance;

use crate::config::Config;
use crate::drivers::process::Process;
use crate::drivers::simulated::Simulated;
use crate::drivers::{self, Driver};
use crate::kinds::{Kind, Kinds};
use crate::runner::{Drivers, Runner};
use crate::session::{Session, profile};

/// How often what deleted appliances left behind as tombstones is looked through.
const SWEEP: Duration = Duration::from_secs(3600);

/// Why the process ends, with its documented exit code.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// 3: a driver cannot use its directory.
    #[error("driver {0}: {1}")]
    Driver(Name, drivers::Error),
    /// 1: anything else.
    #[error("{0}")]
    Other(String),
}

impl Failure {
    /// The exit code of the process.
    #[must_use]
    pub fn exit_code(&self) -> ExitCode {
        ExitCode::from(match self {
            Self::Other(_) => 1,
            Self::Driver(..) => 3,
        })
    }
}

fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    common::runtime::threads().map_err(|e| Failure::Other(format!("start the runtime: {e}")))
}

/// [`run`] on a runtime of its own. Not left to `main`, where the whole worker would be compiled a second time.
///
/// # Errors
/// As [`run`].
pub fn run_blocking(config: Config) -> Result<(), Failure> {
    let runtime = runtime()?;
    let result = runtime.block_on(run(config));
    // Steps that still run are fenced; nothing here may hold up the end of the process.
    runtime.shutdown_background();
    result
}

/// Every instance of the process driver that runs on this host, known to a coordinator or not.
///
/// # Errors
/// [`Failure::Driver`] when the driver's directory cannot be used.
pub fn instances(config: Config) -> Result<Vec<(ApplianceId, Instance)>, Failure> {
    let failed = |e| Failure::Driver(Name::Process, e);
    let name = WorkerId::new(&config.name).map_err(|e| Failure::Other(e.to_string()))?;
    let driver = Process::new(config.process, name).map_err(failed)?;
    runtime()?.block_on(driver.list()).map_err(failed)
}

/// Runs a worker until a signal asks it to stop.
///
/// # Errors
/// [`Failure`] says why it ended otherwise.
pub async fn run(config: Config) -> Result<(), Failure> {
    let mut signals = Signals::catch().map_err(|e| Failure::Other(format!("catch signals: {e}")))?;
    let name = WorkerId::new(&config.name).map_err(|e| Failure::Other(e.to_string()))?;
    let tls = ClientTls::load(&config.tls).map_err(|e| Failure::Other(format!("tls.{e}")))?;
    if let Some(tls) = &tls {
        tls.announce();
    }
    let stop = CancellationToken::new();
    let (terms, newest_term) = watch::channel(Term::default());
    let drivers = build(&config, &name, &newest_term, &stop)?;
    let profile =
        profile(config.weight, config.zone.clone(), config.host.clone(), config.drivers.clone(), config.session.lease);
    info!(worker = %name, host = config.host, coordinators = ?config.session.coordinators, "starting");
    let (runner, events) = Runner::start(config.runner.clone(), drivers);
    let session = Session::new(config.session.clone(), name, profile, runner, events, terms).with_tls(tls);
    let mut session = tokio::spawn(session.run(stop.clone()));
    tokio::select! {
        ended = &mut session => {
            ended.map_err(|e| Failure::Other(format!("the session failed: {e}")))?;
            return Err(Failure::Other("the session ended by itself".to_owned()));
        }
        signal = signals.next() => info!("{signal}: stopping; instances go on running"),
    }
    stop.cancel();
    tokio::select! {
        ended = session => ended.map_err(|e| Failure::Other(format!("the session failed: {e}"))),
        signal = signals.next() => {
            warn!("{signal} again: leaving at once");
            Ok(())
        }
    }
}

fn build(
    config: &Config,
    name: &WorkerId,
    term: &watch::Receiver<Term>,
    stop: &CancellationToken,
) -> Result<Drivers, Failure> {
    let kinds = Kinds::new().map_err(|e| Failure::Other(format!("set up probes: {e}")))?;
    let mut offered: BTreeMap<Name, Arc<dyn Driver>> = BTreeMap::new();
    let mut simulated_kind: Option<Arc<dyn Kind>> = None;
    for driver in &config.drivers {
        let failed = |e| Failure::Driver(driver.clone(), e);
        match driver {
            Name::Process => {
                let process = Arc::new(Process::new(config.process.clone(), name.clone()).map_err(failed)?);
                tokio::spawn(sweep(Arc::clone(&process), term.clone(), stop.clone()));
                offered.insert(driver.clone(), process);
            }
            Name::Simulated => {
                let simulated = Arc::new(Simulated::new(config.simulated.clone()).map_err(failed)?);
                simulated_kind = Some(Arc::clone(&simulated) as Arc<dyn Kind>);
                offered.insert(driver.clone(), simulated);
            }
        }
    }
    Ok(Drivers::new(offered, move |desired| match (&desired.driver, &simulated_kind) {
        (Name::Simulated, Some(simulated)) => Arc::clone(simulated),
        _ => kinds.of(&desired.spec),
    }))
}

/// Removes tombstones of token files that nobody can need any more.
async fn sweep(process: Arc<Process>, term: watch::Receiver<Term>, stop: CancellationToken) {
    let mut timer = tokio::time::interval(SWEEP);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = timer.tick() => {}
        }
        let term = *term.borrow();
        match process.cleanup(term).await {
            Ok(0) => {}
            Ok(removed) => info!(removed, "removed tombstones of deleted appliances"),
            Err(problem) => warn!("look through tombstones: {problem}"),
        }
    }
}
