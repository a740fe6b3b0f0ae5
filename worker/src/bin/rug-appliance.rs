//! `rug-appliance`: the reference appliance, and the launcher the process driver starts commands with.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::Duration;

use clap::{Parser, Subcommand};
use tracing_subscriber::EnvFilter;
use worker::appliance::{self, Config};

/// A TCP load balancer or a router with the REST contract of Rug.
#[derive(Debug, Parser)]
#[command(name = "rug-appliance", version, about, args_conflicts_with_subcommands = true)]
struct Flags {
    /// Directory for its files; it says in the file `management` there where the REST contract is served.
    #[arg(long, default_value = ".")]
    state_dir: PathBuf,
    /// Where the REST contract is served; port 0 picks one.
    #[arg(long, default_value = "127.0.0.1:0")]
    management: SocketAddr,
    /// File with the secret that callers of the REST contract have to send, as `Authorization: Bearer`.
    #[arg(long)]
    secret_file: Option<PathBuf>,
    /// Serve it without a secret, to anybody who reaches it, or beyond loopback, where the secret can be read on its way.
    #[arg(long)]
    insecure: bool,
    /// It has its files to itself, as in a container of its own: its state directory may be one that every user can write to, as volumes of
    /// pods are, and its secret a symbolic link.
    #[arg(long)]
    contained: bool,
    /// Where `/metrics` for Prometheus is served, over plain HTTP; port 0 picks one, which the file `metrics` of the state directory
    /// says. Nowhere when absent.
    #[arg(long)]
    metrics: Option<SocketAddr>,
    /// Connections forwarded at a time, over all listeners; fewer where it may not have that many files open.
    #[arg(long, default_value_t = 32_768)]
    max_connections: usize,
    /// Seconds connections may go on after SIGTERM.
    #[arg(long, default_value_t = 8)]
    drain_grace: u64,
    /// Folder of an instance whose service this one takes over with its first configuration.
    #[arg(long)]
    predecessor: Option<PathBuf>,
    /// Be a router: the configuration is that of one, and addresses, routes and rules are set in the network namespace that this runs in.
    /// Needs CAP_NET_ADMIN there.
    #[arg(long)]
    router: bool,
    /// Name of the instance: shown in process lists, and calls that are meant for another are refused.
    #[arg(long)]
    name: Option<String>,
    #[command(subcommand)]
    command: Option<Subcommands>,
}

#[derive(Debug, Subcommand)]
enum Subcommands {
    /// Run a command in a session of its own, in place of this process.
    #[command(hide = true)]
    Exec {
        /// The command and its arguments.
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<OsString>,
    },
}

fn main() -> ExitCode {
    let flags = Flags::parse();
    if let Some(Subcommands::Exec { command }) = flags.command {
        return exec(&command);
    }
    // Standard error is the log of the instance; the colours of a terminal do not belong there.
    let filter = EnvFilter::try_from_env("RUG_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).init();
    tracing::info!(name = flags.name.as_deref().unwrap_or_default(), "starting");
    let config = Config {
        name: flags.name,
        state_dir: flags.state_dir,
        management: flags.management,
        secret_file: flags.secret_file,
        insecure: flags.insecure,
        contained: flags.contained,
        metrics: flags.metrics,
        max_connections: flags.max_connections,
        drain_grace: Duration::from_secs(flags.drain_grace),
        predecessor: flags.predecessor,
        router: flags.router,
    };
    // One thread: it shares its host with its siblings, and waking up another one costs more than forwarding does.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    match runtime.map_err(anyhow::Error::from).and_then(|runtime| runtime.block_on(appliance::run(config))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Leaves the session of whoever called and becomes the command. Exits with 127 when it cannot be run, as a shell does.
fn exec(command: &[OsString]) -> ExitCode {
    // It fails only for the leader of a process group, which has detached itself already.
    if let Err(error) = rustix::process::setsid()
        && error != rustix::io::Errno::PERM
    {
        eprintln!("rug-appliance: cannot make a session: {error}");
        return ExitCode::FAILURE;
    }
    let Some((program, args)) = command.split_first() else { return ExitCode::FAILURE };
    let error = Command::new(program).args(args).exec();
    eprintln!("rug-appliance: cannot run {}: {error}", program.display());
    ExitCode::from(127)
}
