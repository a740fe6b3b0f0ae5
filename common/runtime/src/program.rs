//! What a server program does between its flags and its exit code: load and check its configuration, start the log, run,
//! and say why it ended.

use std::fmt;
use std::path::Path;
use std::process::ExitCode;
use std::sync::OnceLock;

use rustix::process::{Resource, Rlimit};
use serde::Serialize;
use tokio::runtime::{Builder, Runtime};

use crate::config::{self, Loaded, Settings};
use crate::{log_limit, reload, telemetry};

/// Exit code of a failure that has no code of its own.
pub const FAILED: u8 = 1;

/// Exit code of bad usage or configuration; clap uses it, too.
pub const USAGE: u8 = 2;

/// Why a program ends without success. Scripts and supervisors read its exit code, which the help of the program documents.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{problem}")]
pub struct Failure {
    exit_code: u8,
    problem: String,
}

impl Failure {
    /// A failure with an exit code that the program documents.
    pub fn new(exit_code: u8, problem: impl fmt::Display) -> Self {
        Self { exit_code, problem: problem.to_string() }
    }

    /// A failure with exit code [`FAILED`].
    pub fn other(problem: impl fmt::Display) -> Self {
        Self::new(FAILED, problem)
    }

    /// The exit code of the process.
    #[must_use]
    pub const fn exit_code(&self) -> u8 {
        self.exit_code
    }
}

/// Serves until `run` ends: what it cannot do goes to the log.
pub fn serve<C: Settings + 'static>(
    name: &'static str,
    file: Option<&Path>,
    flags: impl Serialize,
    run: fn(C) -> Result<(), Failure>,
) -> ExitCode {
    let given = serde_json::to_value(&flags);
    let started = config::load::<C>(file, flags).map_err(|e| e.to_string()).and_then(|loaded| {
        let program = telemetry::Program { name, instance: loaded.config.instance() };
        let telemetry = telemetry::init(program, loaded.config.log(), loaded.config.telemetry())
            .map_err(|e| format!("configuration: {e}"))?;
        Ok((loaded, telemetry))
    });
    // Bound until the end: dropping it ends the log and tracing.
    let (Loaded { config, deprecated, exposed }, _telemetry) = match started {
        Ok(started) => started,
        Err(problem) => return refuse(name, &Failure::new(USAGE, problem)),
    };
    match given {
        Ok(given) => reload::install(file.map(Path::to_owned), given, &config),
        Err(problem) => tracing::warn!("the configuration cannot be read again: {problem}"),
    }
    config::warn_deprecated(&deprecated);
    if let Some(exposed) = exposed {
        tracing::warn!("configuration: {exposed}");
    }
    raise_descriptor_limit();
    let ended = run(config);
    // Some places may have had no further line to say it in.
    let skipped = log_limit::skipped();
    if skipped > 0 {
        tracing::info!(skipped, "log lines that were too many of their kind were left out");
    }
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            tracing::error!("{failure}");
            ExitCode::from(failure.exit_code)
        }
    }
}

/// Does one thing for the person who called, with the configuration of the server, and no log.
pub fn once<C: Settings>(
    name: &'static str,
    file: Option<&Path>,
    flags: impl Serialize,
    run: impl FnOnce(C) -> Result<(), Failure>,
) -> ExitCode {
    let loaded = config::load(file, flags).map_err(|e| Failure::new(USAGE, e));
    match loaded.and_then(|Loaded { config, .. }| run(config)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => refuse(name, &failure),
    }
}

fn refuse(name: &str, failure: &Failure) -> ExitCode {
    eprintln!("{name}: {failure}");
    ExitCode::from(failure.exit_code)
}

/// Raises the number of descriptors this process may have to the most it is allowed, and says how many that are. The soft
/// limit is low by tradition, for programs that use `select`.
pub fn raise_descriptor_limit() -> u64 {
    let limit = inherited_descriptor_limit();
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if limit.current != limit.maximum
        && let Err(error) = rustix::process::setrlimit(Resource::Nofile, raised)
    {
        tracing::warn!("the limit of descriptors stays at {:?}: {error}", limit.current);
        return limit.current.unwrap_or(u64::MAX);
    }
    limit.maximum.unwrap_or(u64::MAX)
}

/// The limit of descriptors that this process was started with, as long as only [`raise_descriptor_limit`] changes it: what
/// processes that it starts shall have.
pub fn inherited_descriptor_limit() -> Rlimit {
    static INHERITED: OnceLock<Rlimit> = OnceLock::new();
    *INHERITED.get_or_init(|| rustix::process::getrlimit(Resource::Nofile))
}

/// The runtime of a server: a thread per core, timers and sockets.
///
/// # Errors
/// [`Failure`] when the system gives no threads or no event queue.
pub fn runtime() -> Result<Runtime, Failure> {
    Builder::new_multi_thread().enable_all().build().map_err(|e| Failure::other(format!("start the runtime: {e}")))
}
