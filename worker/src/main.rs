//! `rug-worker`: flags, configuration, exit code.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use runtime::program;
use serde::Serialize;
use worker::OnStop;
use worker::app;

const NAME: &str = "rug-worker";

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
    /// List pods of the driver `kubernetes` that no anchor names, and remove those that do not run if so asked.
    Orphans {
        #[command(flatten)]
        orphans: OrphanFlags,
        #[command(flatten)]
        flags: Flags,
    },
    /// Show the id of the process driver's state directory, or correct it after the directory was moved or copied.
    Site {
        #[command(flatten)]
        correction: CorrectionFlags,
        #[command(flatten)]
        flags: Flags,
    },
}

/// What became of a state directory that is not where its id was made.
#[derive(Debug, clap::Args)]
struct CorrectionFlags {
    /// It was moved here, and nothing of it runs where it was: it keeps its id, and its appliances come with it.
    #[arg(long, conflicts_with = "copied")]
    moved: bool,
    /// It is a copy: it gets an id of its own, and no appliance is bound to it.
    #[arg(long)]
    copied: bool,
}

/// Which pods that no anchor names.
#[derive(Debug, clap::Args)]
struct OrphanFlags {
    /// Remove those that do not run. Without it they are only listed.
    #[arg(long)]
    delete: bool,
    /// Age from which on they count.
    #[arg(long, value_name = "DURATION", default_value = "1h", value_parser = humantime::parse_duration)]
    older_than: std::time::Duration,
    /// Of the driver `openstack`: file with the ids of all appliances there are, one in a line, as `rugctl list -A -o custom-columns=ID:.id`
    /// prints them. Servers and ports of others are orphans.
    #[arg(long, value_name = "FILE")]
    wanted: Option<PathBuf>,
}

impl CorrectionFlags {
    fn correction(&self) -> Option<app::Correction> {
        match (self.moved, self.copied) {
            (true, _) => Some(app::Correction::Moved),
            (_, true) => Some(app::Correction::Copied),
            _ => None,
        }
    }
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
    #[command(flatten)]
    session: SessionFlags,
    #[command(flatten)]
    process: ProcessFlags,
}

/// Flags of the section `process`.
#[derive(Debug, clap::Args, Serialize)]
struct ProcessFlags {
    /// Let commands run as root: whoever may change appliances is root on this host then.
    #[arg(long)]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    allow_root: bool,
    /// User of commands that name none, where this runs as root.
    #[arg(long, value_name = "USER")]
    #[serde(skip_serializing_if = "Option::is_none")]
    default_user: Option<String>,
}

/// Flags of the section `session`.
#[derive(Debug, clap::Args, Serialize)]
struct SessionFlags {
    /// Address of a coordinator, https://HOST:PORT, http://HOST:PORT or unix:PATH; may be given more than once.
    #[arg(long = "coordinator", value_name = "URL")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    coordinators: Vec<String>,
    /// What to do about what is held on SIGTERM.
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    on_stop: Option<OnStop>,
}

fn main() -> ExitCode {
    runtime::tls::install_provider();
    match Args::parse().command {
        WorkerSubcommand::Run(flags) => program::serve(NAME, flags.config.as_deref(), &flags, app::run_blocking),
        WorkerSubcommand::Instances(flags) => {
            program::once(NAME, flags.config.as_deref(), &flags, app::print_instances)
        }
        WorkerSubcommand::Orphans { orphans, flags } => {
            let sweep = |config| match &orphans.wanted {
                Some(wanted) => app::sweep_servers(config, orphans.older_than, wanted, orphans.delete),
                None => app::sweep_orphans(config, orphans.older_than, orphans.delete),
            };
            program::once(NAME, flags.config.as_deref(), &flags, sweep)
        }
        WorkerSubcommand::Site { correction, flags } => {
            let site = |config| app::print_site(config, correction.correction());
            program::once(NAME, flags.config.as_deref(), &flags, site)
        }
    }
}
