//! Builds every part of the worker and states the order in which they start and stop.
//!
//! Start: drivers (which check their directories), runner, session. Stop: what is held is given back, if so configured; the
//! gate is shut for good, running steps end or are given up, the coordinator and the coordination service are told, the
//! process ends. Instances go on running.

use std::process::ExitCode;

use common::appliance::Driver as Name;
use common::{ApplianceId, Profile, Term, WorkerId};
use runtime::shutdown::Signals;
use runtime::tls::ClientTls;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use worker_core::instance::Instance;

use crate::config::Config;
use crate::drivers::process::ProcessDriver;
use crate::drivers::{self, Driver as _};
use crate::offer;
use crate::runner::Runner;
use crate::session::{OnStop, Session, StopHandle, profile};

/// Why the process ends, with its documented exit code.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// 3: a driver cannot use its directory.
    #[error("driver {0}: {1}")]
    Driver(Name, drivers::Error),
    /// 4: another worker has the name; 2: the coordination service cannot be used as it is configured.
    #[error("coordination: {0}")]
    Coordination(coordination::Error),
    /// 1: anything else.
    #[error("{0}")]
    Other(String),
}

impl Failure {
    /// The exit code of the process.
    #[must_use]
    pub fn exit_code(&self) -> ExitCode {
        ExitCode::from(match self {
            Self::Other(_) | Self::Coordination(coordination::Error::Unavailable(_) | coordination::Error::Lost(_)) => {
                1
            }
            Self::Coordination(coordination::Error::Refused(_)) => 2,
            Self::Driver(..) => 3,
            Self::Coordination(coordination::Error::NameTaken { .. }) => 4,
        })
    }
}

fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    runtime::threads().map_err(|e| Failure::Other(format!("start the runtime: {e}")))
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
    let driver = ProcessDriver::new(config.process, name).map_err(failed)?;
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
    let seat = config.coordination.seat(&name, config.session.coordinators.clone()).map_err(Failure::Coordination)?;
    // Ends what goes on beside the session.
    let beside = CancellationToken::new();
    let _ended_with_this = beside.clone().drop_guard();
    let (terms, newest_term) = watch::channel(Term::default());
    let drivers = offer::build(&config, &name, &newest_term, &beside)
        .map_err(|(driver, error)| Failure::Driver(driver, error))?;
    let (zone, host) = (config.zone.clone(), config.host.clone());
    let profile = profile(config.weight, zone, host, config.drivers.clone(), config.session.lease);
    let profile = Profile { holds: drivers.holds(), state_dir: drivers.state_dir(), ..profile };
    let coordination = config.coordination.shown();
    info!(worker = %name, host = config.host, coordination, coordinators = ?config.session.coordinators, "starting");
    let (runner, events) = Runner::start(config.runner.clone(), drivers);
    let session = Session::new(config.session.clone(), seat, name, profile, runner, events, terms).with_tls(tls);
    let stop = StopHandle::new();
    let session = tokio::spawn(session.run(stop.clone()));
    supervise(session, &mut signals, &stop, config.session.on_stop).await
}

/// Waits until the session ends, and asks it to with every signal more urgently.
async fn supervise(
    mut session: JoinHandle<Result<(), coordination::Error>>,
    signals: &mut Signals,
    stop: &StopHandle,
    on_stop: OnStop,
) -> Result<(), Failure> {
    let mut asked = 0;
    loop {
        tokio::select! {
            ended = &mut session => return match ended {
                Ok(Ok(())) if asked > 0 => Ok(()),
                Ok(Ok(())) => Err(Failure::Other("the session ended by itself".to_owned())),
                Ok(Err(failure)) => Err(Failure::Coordination(failure)),
                Err(panic) => Err(Failure::Other(format!("the session failed: {panic}"))),
            },
            signal = signals.next() => {
                asked += 1;
                match (asked, on_stop) {
                    (1, OnStop::Drain | OnStop::HandBack) => {
                        info!("{signal}: giving back what is held, then stopping; instances go on running");
                        stop.drain();
                    }
                    (1, OnStop::Leave) => {
                        info!("{signal}: stopping; instances go on running");
                        stop.leave();
                    }
                    (2, OnStop::Drain | OnStop::HandBack) => {
                        info!("{signal} again: stopping without giving back the rest");
                        stop.leave();
                    }
                    _ => {
                        warn!("{signal} again: ending at once");
                        return Ok(());
                    }
                }
            }
        }
    }
}
