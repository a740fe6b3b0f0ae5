//! `rug-pod`: what the chart has done in pods beside the programs themselves. Images have no shell, so each of these is a command.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use pod::{awaiting, certificates, folder};

/// Helper of the Helm chart, for init containers and jobs.
#[derive(Debug, Parser)]
#[command(name = "rug-pod", version)]
struct Args {
    #[command(subcommand)]
    command: PodCommand,
}

#[derive(Debug, Subcommand)]
enum PodCommand {
    /// Make a folder for this user alone, below the root of a volume that others may write to.
    Folder {
        /// The folder; what is above it has to be there.
        path: PathBuf,
    },
    /// Wait until every coordinator is of one revision and answers calls.
    Await {
        /// HOST:PORT of `/readyz`; HOST stands for all of them in DNS.
        #[arg(long)]
        address: String,
        /// What they have to have as RUG_REVISION.
        #[arg(long)]
        revision: String,
        /// How long to wait.
        #[arg(long, default_value = "10m", value_parser = humantime::parse_duration)]
        timeout: Duration,
    },
    /// Make and renew certificates in secrets.
    Certificates {
        /// Which there are to be (JSON).
        #[arg(long)]
        plan: PathBuf,
    },
}

fn main() -> ExitCode {
    runtime::tls::install_provider();
    match run(Args::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("rug-pod: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: PodCommand) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    match command {
        PodCommand::Folder { path } => Ok(folder::make(&path)?),
        PodCommand::Await { address, revision, timeout } => {
            Ok(runtime.block_on(awaiting::coordinators(&address, &revision, timeout))?)
        }
        PodCommand::Certificates { plan } => runtime.block_on(certificates::keep(&plan)),
    }
}
