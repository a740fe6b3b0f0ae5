//! `rug-worker`: flags, configuration, exit code.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use runtime::telemetry;
use serde::Serialize;
use worker::OnStop;
use worker::app;
use worker::config::Config;
use worker_core::instance::Instance;

/// Keeps its share of the appliances alive.
#[derive(Debug, Parser)]
#[command(name = "rug-worker", version, after_help = EXIT_CODES)]
struct Args {
    #[command(subcommand)]
    command: WorkerSubcommand,
}

const EXIT_CODES: &str = "Exit codes: 0 stopped by a signal, 1 failed, 2 bad usage or configuration, \
3 a driver cannot use its directory, 4 another worker has the name. A coordinator that cannot be reached is no failure: the worker tries again, \
ever more slowly, until it is told to stop.";

#[derive(Debug, Subcommand)]
enum WorkerSubcommand {
    /// Run until SIGTERM or SIGINT. Instances go on running.
    Run(Flags),
    /// List every instance of the process driver that runs on this host, known to a coordinator or not.
    Instances(Flags),
}

/// Flags win over the environment (`RUG_WORKER_<SECTION>__<FIELD>`), which wins over the file.
#[derive(Debug, clap::Args, Serialize)]
struct Flags {
    /// Configuration file (TOML).
    #[arg(long, value_name = "FILE")]
    #[serde(skip)]
    config: Option<PathBuf>,
    /// Name of this worker, stable over restarts and unique in the cluster.
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    /// Address of a coordinator; may be given more than once.
    #[arg(long = "coordinator", value_name = "URL")]
    #[serde(skip)]
    coordinators: Vec<String>,
    /// Directory of what the drivers keep.
    #[arg(long, value_name = "DIR")]
    #[serde(skip_serializing_if = "Option::is_none")]
    state_dir: Option<PathBuf>,
    /// Host it runs on; the system's host name by default.
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    host: Option<String>,
    /// Driver to offer; may be given more than once.
    #[arg(long = "driver", value_name = "DRIVER")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    drivers: Vec<String>,
    /// Share of the appliances relative to other workers.
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    weight: Option<u32>,
    /// What to do about what is held on SIGTERM.
    #[arg(long)]
    #[serde(skip)]
    on_stop: Option<OnStop>,
}

impl Flags {
    fn load(self) -> Result<Config, String> {
        let file = self.config.clone();
        let coordinators = self.coordinators.clone();
        let on_stop = self.on_stop;
        let mut config: Config =
            runtime::config::load(file.as_deref(), "RUG_WORKER_", self, &[]).map_err(|e| e.to_string())?.config;
        if !coordinators.is_empty() {
            config.session.coordinators = coordinators;
        }
        config.session.on_stop = on_stop.unwrap_or(config.session.on_stop);
        config.complete()
    }
}

fn main() -> ExitCode {
    runtime::tls::install_provider();
    let (flags, main): (Flags, fn(Config) -> ExitCode) = match Args::parse().command {
        WorkerSubcommand::Run(flags) => (flags, run),
        WorkerSubcommand::Instances(flags) => (flags, instances),
    };
    match flags.load() {
        Ok(config) => main(config),
        Err(problem) => {
            eprintln!("rug-worker: {problem}");
            ExitCode::from(2)
        }
    }
}

fn run(config: Config) -> ExitCode {
    let _telemetry = match telemetry::init("rug-worker", &config.log) {
        Ok(telemetry) => telemetry,
        Err(problem) => {
            eprintln!("rug-worker: log: {problem}");
            return ExitCode::from(2);
        }
    };
    match app::run_blocking(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            tracing::error!("{failure}");
            failure.exit_code()
        }
    }
}

fn instances(config: Config) -> ExitCode {
    let found = match app::instances(config) {
        Ok(found) => found,
        Err(failure) => {
            eprintln!("rug-worker: {failure}");
            return failure.exit_code();
        }
    };
    for (appliance, instance) in found {
        let name = Instance::name(appliance, instance.ordinal, instance.attempt);
        let pid = instance.pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string());
        let address = instance.address.map_or_else(|| "-".to_owned(), |address| address.to_string());
        println!("{name}\t{pid}\t{address}");
    }
    ExitCode::SUCCESS
}
