//! Builds every part of the worker and states the order in which they start and stop.
//!
//! Start: drivers (which check their directories), metadata proxy, runner, session. Stop: what is held is given back, if so configured; the
//! gate is shut for good, running steps end or are given up, the coordinator and the coordination service are told, the
//! process ends. Instances go on running.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use common::driver::DriverName as Name;
use common::status::PID_DETAIL;
use common::{ApplianceId, Profile, Term, WorkerId};
use runtime::folder::Folder;
use runtime::meter::probe::Probe;
use runtime::meter::{self, Meters};
use runtime::program::{self, Failure};
use runtime::reload;
use runtime::shutdown::Signals;
use runtime::socket;
use runtime::telemetry::Program;
use runtime::tls::ClientTls;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use worker_core::instance::Instance;

use crate::config::Config;
use crate::drivers::kubernetes::{self, KubernetesDriver};
use crate::drivers::openstack::{self, OpenStackDriver};
pub use crate::drivers::process::site::Correction;
use crate::drivers::process::{self, ProcessDriver, site};
use crate::drivers::{self, Driver as _};
use crate::held::HeldInstances;
use crate::metadata_proxy::MetadataProxy;
use crate::metrics;
use crate::orphans;
use crate::runner::Runner;
use crate::session::{OnStop, Session, StopHandle, profile};
use crate::setup;

/// Exit codes of `rug-worker` beside those of every program ([`program`]). Its help and docs/configuration.md document them.
mod exit_code {
    /// A driver cannot use its directory.
    pub(super) const DRIVER: u8 = 3;
    /// Another worker has the name.
    pub(super) const NAME_TAKEN: u8 = 4;
}

fn driver_failure(name: &Name, error: &drivers::Error) -> Failure {
    Failure::new(exit_code::DRIVER, format!("driver {name}: {error}"))
}

fn coordination_failure(error: &coordination::Error) -> Failure {
    let code = match error {
        coordination::Error::Unavailable(_) | coordination::Error::Lost(_) => program::FAILED,
        coordination::Error::Refused(_) => program::USAGE,
        coordination::Error::NameTaken { .. } => exit_code::NAME_TAKEN,
    };
    Failure::new(code, format!("coordination: {error}"))
}

/// Refuses a socket that is looked up from the working directory, as the default is, in a folder that others have, or can
/// have, put there: it may lead to another cluster of the same user.
fn judge_sockets(working: &Path, coordinators: &[String]) -> Result<(), Failure> {
    for path in coordinators.iter().filter_map(|address| socket::path_of(address)) {
        let Some(folder) = path.parent().filter(|folder| folder.is_relative()) else { continue };
        let folder = if folder == Path::new("") { working.to_owned() } else { working.join(folder) };
        if let Err(error) = Folder::existing(&folder) {
            let problem =
                format!("session.coordinators: {error}; name the socket by an absolute path to use it all the same");
            return Err(Failure::new(program::USAGE, problem));
        }
    }
    Ok(())
}

/// [`run`] on a runtime of its own. Not left to `main`, where the whole worker would be compiled a second time.
///
/// # Errors
/// As [`run`].
pub fn run_blocking(config: Config) -> Result<(), Failure> {
    let runtime = program::runtime()?;
    let result = runtime.block_on(run(config));
    // Steps that still run are fenced; nothing here may hold up the end of the process.
    runtime.shutdown_background();
    result
}

/// Where the process driver's state directory may be, for commands that only look at it: as configured, or else where `rugctl up` makes
/// it, in the working directory or above.
fn state_dirs(config: &Config) -> Vec<PathBuf> {
    let configured = std::path::absolute(&config.process.state_dir).into_iter();
    let is_default = config.process.state_dir == Config::default().state_dir;
    let here = std::env::current_dir().ok().filter(|_| is_default);
    let embedded = here.iter().flat_map(|here| here.ancestors().map(|folder| folder.join(".rug/workers")));
    configured.chain(embedded).collect()
}

/// The first of them that is there. None is made.
fn existing_state_dir(config: &Config) -> Option<PathBuf> {
    state_dirs(config).into_iter().find(|folder| folder.is_dir())
}

fn no_state_dir(config: &Config) -> Failure {
    let text =
        format!("{} is no state directory of workers: name one with --state-dir", config.process.state_dir.display());
    Failure::new(exit_code::DRIVER, text)
}

/// Prints every instance of the process driver that runs on this host, known to a coordinator or not.
///
/// # Errors
/// When the driver's directory cannot be used, or nobody reads what is printed.
pub fn print_instances(config: Config) -> Result<(), Failure> {
    let failed = |e| driver_failure(&Name::process(), &e);
    let name = WorkerId::new(&config.name).map_err(Failure::other)?;
    let found = match existing_state_dir(&config) {
        Some(state_dir) => {
            let driver = ProcessDriver::new(process::Config { state_dir, ..config.process }, name).map_err(failed)?;
            program::runtime()?.block_on(driver.list()).map_err(failed)?
        }
        // It was deleted perhaps, and what was started from it runs on.
        None => match state_dirs(&config).iter().flat_map(|lost| process::running_from(lost)).collect::<Vec<_>>() {
            found if found.is_empty() => return Err(no_state_dir(&config)),
            found => found,
        },
    };
    let mut out = std::io::stdout().lock();
    for (appliance, instance) in found {
        let name = Instance::name(appliance, instance.ordinal, instance.attempt);
        let pid = instance.details.get(PID_DETAIL).unwrap_or("-");
        let address = instance.addresses.service.map_or_else(|| "-".to_owned(), |address| address.to_string());
        writeln!(out, "{name}\t{pid}\t{address}").map_err(|e| Failure::other(format!("print instances: {e}")))?;
    }
    Ok(())
}

/// Prints pods of at least that age that no anchor names, and removes those that do not run if so asked.
///
/// # Errors
/// When the API server cannot be asked, or nobody reads what is printed.
pub fn sweep_orphans(config: Config, age: Duration, delete: bool) -> Result<(), Failure> {
    let failed = |e| driver_failure(&Name::new(kubernetes::NAME).expect("the name of a driver"), &e);
    let name = WorkerId::new(&config.name).map_err(Failure::other)?;
    let stop = CancellationToken::new();
    let _ended_with_this = stop.clone().drop_guard();
    let limit = config.kubernetes.client.request_timeout;
    program::runtime()?.block_on(async {
        let driver = KubernetesDriver::new(config.kubernetes, name, &stop).await.map_err(failed)?;
        driver.listed(limit).await.map_err(failed)?;
        for orphan in driver.orphans(age).await.map_err(failed)? {
            let what = match (orphan.runs, delete) {
                (true, _) => "may run, left alone".to_owned(),
                (false, false) => "can be removed".to_owned(),
                (false, true) => match driver.remove_orphan(&orphan).await {
                    Ok(()) => "removed".to_owned(),
                    Err(error) => format!("not removed: {error}"),
                },
            };
            let age = humantime::format_duration(Duration::from_secs(orphan.age.as_secs()));
            writeln!(std::io::stdout().lock(), "{}\t{}\t{age}\t{what}", orphan.namespace, orphan.name)
                .map_err(|e| Failure::other(format!("print orphans: {e}")))?;
        }
        Ok(())
    })
}

/// Prints servers and ports of OpenStack of at least that age whose appliance the file `wanted` does not name, and removes them if so asked.
///
/// # Errors
/// When the file cannot be read, the cloud cannot be asked, or nobody reads what is printed.
pub fn sweep_servers(config: Config, age: Duration, wanted: &Path, delete: bool) -> Result<(), Failure> {
    let failed = |e| driver_failure(&Name::new(openstack::NAME).expect("the name of a driver"), &e);
    let text = std::fs::read_to_string(wanted);
    let text = text.map_err(|e| Failure::other(format!("read {}: {e}", wanted.display())))?;
    let wanted = read_wanted(&text).map_err(|problem| Failure::other(format!("{}: {problem}", wanted.display())))?;
    let stop = CancellationToken::new();
    let _ended_with_this = stop.clone().drop_guard();
    program::runtime()?.block_on(async {
        let driver = OpenStackDriver::new(config.openstack, &stop).map_err(failed)?;
        for orphan in driver.orphans(&wanted, age).await.map_err(failed)? {
            let what = match delete {
                false => "can be removed".to_owned(),
                true => match driver.remove_orphan(&orphan).await {
                    Ok(()) => "removed".to_owned(),
                    Err(error) => format!("not removed: {error}"),
                },
            };
            let age = humantime::format_duration(Duration::from_secs(orphan.age.as_secs()));
            let sort = orphan.sort.as_str();
            writeln!(std::io::stdout().lock(), "{sort}\t{}\t{}\t{age}\t{what}", orphan.id, orphan.name)
                .map_err(|e| Failure::other(format!("print orphans: {e}")))?;
        }
        Ok(())
    })
}

/// The appliances that a list names, one in a line, with or without a heading. An empty list is refused: everything would be an orphan.
fn read_wanted(text: &str) -> Result<BTreeSet<ApplianceId>, String> {
    let lines = text.lines().enumerate().map(|(i, line)| (i + 1, line.trim()));
    let is_heading = |number: usize, line: &str| number == 1 && line.eq_ignore_ascii_case("id");
    let lines = lines.filter(|(number, line)| !(line.is_empty() || is_heading(*number, line)));
    let id = |(number, line): (usize, &str)| {
        line.parse().map_err(|_| format!("line {number} is not the id of an appliance"))
    };
    let wanted: BTreeSet<ApplianceId> = lines.map(id).collect::<Result<_, _>>()?;
    if wanted.is_empty() { Err("it names no appliance".to_owned()) } else { Ok(wanted) }
}

/// Prints the id of the process driver's state directory and where it was made, after correcting it if so asked.
///
/// # Errors
/// When the directory cannot be used or has no id yet, or nobody reads what is printed.
pub fn print_site(config: Config, correction: Option<Correction>) -> Result<(), Failure> {
    let failed = |e| driver_failure(&Name::process(), &e);
    let state_dir = existing_state_dir(&config).ok_or_else(|| no_state_dir(&config))?;
    let folder = process::open_state_dir(&state_dir).map_err(|e| failed(e.into()))?;
    let here = site::Whereabouts::of(&folder);
    let known = match correction {
        Some(correction) => site::correct(&folder, here, correction).map(Some),
        None => site::read(&folder),
    };
    let Some(known) = known.map_err(failed)? else {
        return Err(failed(drivers::Error::Refused("its state directory has no id yet".to_owned())));
    };
    let mut out = std::io::stdout().lock();
    let text = format!("id\t{}\npath\t{}\nhost\t{}\n", known.id, known.made.path, config.host);
    write!(out, "{text}").map_err(|e| Failure::other(format!("print the site: {e}")))
}

/// Runs a worker until a signal asks it to stop.
///
/// # Errors
/// [`Failure`] says why it ended otherwise.
pub async fn run(config: Config) -> Result<(), Failure> {
    let mut signals = Signals::catch().map_err(|e| Failure::other(format!("catch signals: {e}")))?;
    reload::follow_signals().map_err(|e| Failure::other(format!("catch SIGHUP: {e}")))?;
    let name = WorkerId::new(&config.name).map_err(Failure::other)?;
    let meters = Meters::start(Program { name: "rug-worker", instance: &config.name }, &config.telemetry);
    let meters = meters.map_err(Failure::other)?;
    metrics::start();
    judge_sockets(Path::new("."), &config.session.coordinators)?;
    let tls = ClientTls::load(&config.tls).map_err(|e| Failure::other(format!("tls.{e}")))?;
    if let Some(tls) = &tls {
        tls.announce();
    }
    let group = config
        .coordination
        .worker_group(&name, config.session.coordinators.clone())
        .map_err(|e| coordination_failure(&e))?;
    // Ends what goes on beside the session.
    let beside = CancellationToken::new();
    let _ended_with_this = beside.clone().drop_guard();
    tokio::spawn(orphans::reap(beside.clone()));
    let (terms, newest_term) = watch::channel(Term::default());
    let drivers = setup::drivers(&config, &name, &newest_term, &beside)
        .await
        .map_err(|(driver, error)| driver_failure(&driver, &error))?;
    let (zone, host) = (config.zone.clone(), config.host.clone());
    let profile = profile(config.weight, zone, host, drivers.capabilities(), config.session.lease);
    name_process(&config.termination_log, &profile);
    let coordination = config.coordination.shown();
    info!(worker = %name, host = config.host, coordination, coordinators = ?config.session.coordinators, "starting");
    if let Some(address) = config.metrics.listen {
        let listener = TcpListener::bind(address).await;
        let listener = listener.map_err(|e| Failure::other(format!("metrics.listen: {address}: {e}")))?;
        info!(%address, "metrics at /metrics");
        let probe = Probe::new("rug-worker", metrics::is_welcomed);
        tokio::spawn(meter::serve(listener, Arc::clone(&meters), probe, beside.clone()));
    }
    let held = match config.metadata_proxy.listen {
        Some(address) => Some(serve_metadata(address, &config, &beside).await?),
        None => None,
    };
    let (runner, events) = Runner::start(config.runner.clone(), drivers.clone(), held);
    let session = Session::new(config.session.clone(), group, name, profile, runner, events, terms);
    let session = session.with_tls(tls).with_drivers(drivers);
    let stop = StopHandle::new();
    let session = tokio::spawn(session.run(stop.clone()));
    let ended = supervise(session, &mut signals, &stop, config.session.on_stop).await;
    meters.end().await;
    ended
}

/// Starts the metadata proxy. It has to be told where instances are.
async fn serve_metadata(
    address: SocketAddr,
    config: &Config,
    stop: &CancellationToken,
) -> Result<HeldInstances, Failure> {
    let held = HeldInstances::default();
    let bound =
        MetadataProxy::bind(address, &config.metadata_proxy, &config.openstack.client, held.clone(), stop).await;
    let proxy = bound.map_err(|problem| Failure::other(format!("metadata_proxy: {problem}")))?;
    let (nova, advertised) = (&config.metadata_proxy.nova, config.metadata_proxy.advertised());
    info!(%address, ?advertised, nova, "requests for metadata are passed on");
    tokio::spawn(proxy.serve(stop.clone()));
    Ok(held)
}

/// Writes into `file` which process this is. Without it the end of the container is no witness, and nothing else is missing.
fn name_process(file: &Path, profile: &Profile) {
    if file.as_os_str().is_empty() {
        return;
    }
    let Some(process) = profile.process else {
        return warn!("termination_log: this process cannot find out which one it is: nothing is written");
    };
    // Not made: what is not there is no file that a kubelet looks at.
    let written = fs::OpenOptions::new().write(true).truncate(true).open(file);
    if let Err(error) = written.and_then(|mut file| file.write_all(process.to_string().as_bytes())) {
        warn!("termination_log: {}: {error}", file.display());
    }
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
                Ok(Ok(())) => Err(Failure::other("the session ended by itself")),
                Ok(Err(error)) => Err(coordination_failure(&error)),
                Err(panic) => Err(Failure::other(format!("the session failed: {panic}"))),
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

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_socket_below_a_link_is_used_only_where_it_is_named_in_full() {
        let dir = tempfile::tempdir().expect("a folder");
        std::os::unix::fs::symlink("/tmp", dir.path().join("link")).expect("made");
        let judge = |address: &str| judge_sockets(dir.path(), &[address.to_owned()]);
        assert_eq!(judge(&format!("unix:{}", dir.path().join("link/coordinator.sock").display())), Ok(()));
        assert_eq!(judge("unix:rug-coordinator-state/coordinator.sock"), Ok(()), "there is none");
        assert!(judge("unix://link/coordinator.sock").is_err(), "the other form of the same address");
        let refused = judge("unix:link/coordinator.sock");
        assert!(refused.is_err_and(|failure| failure.to_string().contains("symbolic link")));
        assert_eq!(judge("unix:coordinator.sock"), Ok(()), "the working folder is ours");
        let open = Permissions::from_mode(0o777);
        std::fs::set_permissions(dir.path(), open).expect("set");
        let refused = judge("unix:coordinator.sock");
        assert!(refused.is_err_and(|failure| failure.to_string().contains("write")), "others can put a socket there");
    }
}
