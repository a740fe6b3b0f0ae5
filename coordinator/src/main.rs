//! `rug-coordinator`: flags, configuration, exit code.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use coordinator::app;
use runtime::program;
use serde::Serialize;

const NAME: &str = "rug-coordinator";

/// A change of an appliance is many small allocations, most of them freed by another thread than made them, which costs
/// the allocator of glibc a sixth of the CPU of a create.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Keeps the table of who holds which appliance and tells workers what is theirs.
#[derive(Debug, Parser)]
#[command(name = "rug-coordinator", version, after_help = EXIT_CODES)]
struct Args {
    #[command(subcommand)]
    command: CoordinatorCommand,
}

const EXIT_CODES: &str = "Exit codes: 0 stopped by a signal, 1 failed, 2 bad usage or configuration, \
3 the state directory or store cannot be used, 4 the address cannot be listened at, \
5 the store was lost to another leader (starting again is safe), 6 another live coordinator has its name.";

#[derive(Debug, Subcommand)]
enum CoordinatorCommand {
    /// Run until SIGTERM or SIGINT.
    Run(Flags),
    /// Look into the store, or copy it.
    Store {
        #[command(subcommand)]
        command: StoreCommand,
    },
}

#[derive(Debug, Subcommand)]
enum StoreCommand {
    /// Print table counts and the log of grants. The coordinator may run meanwhile.
    Dump(Flags),
    /// Copy a store that is a file to another file, in one consistent state. The coordinator may run meanwhile.
    Backup {
        /// The copy; it must not exist.
        file: PathBuf,
        #[command(flatten)]
        flags: Flags,
    },
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
    /// Name of the cluster.
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    cluster: Option<String>,
    /// Address the APIs are served at, ADDRESS:PORT or unix:PATH; may be repeated.
    #[arg(long, value_name = "ADDRESS")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    listen: Vec<String>,
    /// Directory of what this coordinator keeps.
    #[arg(long, value_name = "DIR")]
    #[serde(skip_serializing_if = "Option::is_none")]
    state_dir: Option<PathBuf>,
    /// Serve at TCP ports without TLS: every process that reaches them commands the fleet.
    #[arg(long)]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    insecure: bool,
}

fn main() -> ExitCode {
    runtime::tls::install_provider();
    // For what libraries make. Workers leave the umask alone, because appliances inherit it.
    rustix::process::umask(rustix::fs::Mode::RWXG | rustix::fs::Mode::RWXO);
    match Args::parse().command {
        CoordinatorCommand::Run(flags) => program::serve(NAME, flags.config.as_deref(), &flags, app::run_blocking),
        CoordinatorCommand::Store { command: StoreCommand::Dump(flags) } => {
            program::once(NAME, flags.config.as_deref(), &flags, app::dump)
        }
        CoordinatorCommand::Store { command: StoreCommand::Backup { file, flags } } => {
            program::once(NAME, flags.config.as_deref(), &flags, move |config| app::backup(config, &file))
        }
    }
}
