//! `rug-coordinator`: flags, configuration, exit code.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use coordinator::app;
use coordinator::config::{Config, RENAMED};
use runtime::config::{Loaded, load, warn_deprecated};
use runtime::telemetry;
use serde::Serialize;

/// Keeps the table of who holds which appliance and tells workers what is theirs.
#[derive(Debug, Parser)]
#[command(name = "rug-coordinator", version, after_help = EXIT_CODES)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

const EXIT_CODES: &str = "Exit codes: 0 stopped by a signal, 1 failed, 2 bad usage or configuration, \
3 the state directory or store cannot be used, 4 the address cannot be listened at, \
5 the store was lost to another leader (starting again is safe), 6 another live coordinator has its name.";

#[derive(Debug, Subcommand)]
enum Command {
    /// Run until SIGTERM or SIGINT.
    Run(Flags),
    /// Look into the store.
    Store {
        #[command(subcommand)]
        command: StoreCommand,
    },
}

#[derive(Debug, Subcommand)]
enum StoreCommand {
    /// Print table counts and the log of grants. The coordinator may run meanwhile.
    Dump(Flags),
}

/// Flags win over the environment (`RUG_COORDINATOR_<SECTION>__<FIELD>`), which wins over the file.
#[derive(Debug, clap::Args, Serialize)]
struct Flags {
    /// Configuration file (TOML).
    #[arg(long, value_name = "FILE")]
    #[serde(skip)]
    config: Option<PathBuf>,
    /// Name of this coordinator, stable over restarts.
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    /// Address the APIs are served at.
    #[arg(long, value_name = "ADDRESS:PORT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    listen: Option<SocketAddr>,
    /// Directory of what this coordinator keeps.
    #[arg(long, value_name = "DIR")]
    #[serde(skip_serializing_if = "Option::is_none")]
    state_dir: Option<PathBuf>,
    /// Serve beyond loopback without TLS.
    #[arg(long)]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    insecure: bool,
}

impl Flags {
    fn load(self) -> Result<Loaded<Config>, String> {
        let file = self.config.clone();
        let loaded: Loaded<Config> =
            load(file.as_deref(), "RUG_COORDINATOR_", self, &RENAMED).map_err(|e| e.to_string())?;
        Ok(Loaded { config: loaded.config.complete()?, deprecated: loaded.deprecated })
    }
}

fn main() -> ExitCode {
    runtime::tls::install_provider();
    match Args::parse().command {
        Command::Run(flags) => start(flags, run),
        Command::Store { command: StoreCommand::Dump(flags) } => start(flags, dump),
    }
}

fn start(flags: Flags, main: impl FnOnce(Loaded<Config>) -> ExitCode) -> ExitCode {
    match flags.load() {
        Ok(loaded) => main(loaded),
        Err(problem) => {
            eprintln!("rug-coordinator: {problem}");
            ExitCode::from(2)
        }
    }
}

fn run(Loaded { config, deprecated }: Loaded<Config>) -> ExitCode {
    let _telemetry = match telemetry::init("rug-coordinator", &config.log) {
        Ok(telemetry) => telemetry,
        Err(problem) => {
            eprintln!("rug-coordinator: log: {problem}");
            return ExitCode::from(2);
        }
    };
    warn_deprecated(&deprecated);
    match app::run_blocking(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            tracing::error!("{failure}");
            failure.exit_code()
        }
    }
}

fn dump(Loaded { config, .. }: Loaded<Config>) -> ExitCode {
    match app::dump(&config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("rug-coordinator: {failure}");
            failure.exit_code()
        }
    }
}
