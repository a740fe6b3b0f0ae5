//! `rugctl`: the command line of Rug.
//!
//! Commands that call a server are in [`commands`]; `up` runs a whole cluster on this machine. Every run ends in one
//! exit code ([`error::Exit`]) and, on failure, in a message on stderr.

use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};
use clap_complete::Shell;
use common::cluster::ClusterRef;
use runtime::tls::{self, ClientTls};

use crate::commands::{
    CommandContext, appliance, apply, audit, cluster, delete, doctor, placement, rebalance, ring, watch, worker,
};
use crate::error::{Exit, Failure};
use crate::output::{OutputFormat, Ui};

mod client;
mod commands;
mod document;
mod error;
mod help;
mod names;
mod output;
mod status;
mod text;
mod up;
mod wait;

const AFTER_HELP: &str = "\
Exit codes: 0 done, 1 failed, 2 bad usage or input, 3 server unreachable, 4 not found, 5 conflict, 130 interrupted.

The server is the one of --server or RUG_SERVER, else that of a cluster `rugctl up` runs in this folder or one above \
(.rug/endpoint), else that of `rug-coordinator run` there (rug-coordinator-state/coordinator.sock). There is no other \
default. With --cluster or RUG_CLUSTER a command is refused by every cluster but that one.";

/// Command line of Rug, which keeps fleets of appliances alive
#[derive(Debug, Parser)]
#[command(name = "rugctl", version, after_help = AFTER_HELP, propagate_version = false)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: RugctlCommand,
}

/// Flags of every command.
#[derive(Args, Debug)]
#[command(next_help_heading = "Options of every command")]
struct Global {
    /// Address of a coordinator; separate several with commas
    #[arg(long, global = true, env = "RUG_SERVER", hide_env_values = true, value_name = "ADDRESS")]
    server: Option<String>,
    /// The cluster that is meant, by name or id: any other one refuses the command
    #[arg(long, global = true, env = "RUG_CLUSTER", hide_env_values = true, value_name = "CLUSTER")]
    cluster: Option<ClusterRef>,
    #[command(flatten)]
    tls: TlsFlags,
    /// File with a bearer token, in place of a certificate
    #[arg(long, global = true, env = "RUG_TOKEN_FILE", hide_env_values = true, value_name = "FILE")]
    token_file: Option<OsString>,
    /// Output format
    #[arg(short, long, global = true, value_enum, default_value_t)]
    output: OutputFormat,
    /// Timeout of each call (default 10s) and of waiting (default 60s; 2m for `up --down`)
    #[arg(long, global = true, value_name = "DURATION", value_parser = parse_timeout)]
    timeout: Option<Duration>,
    /// No colour and no progress bar, as with NO_COLOR
    #[arg(long, global = true)]
    no_color: bool,
}

/// Certificates for a server at `https://`.
#[derive(Args, Debug)]
#[command(next_help_heading = "Options of every command")]
struct TlsFlags {
    /// PEM file with the CAs that the server's certificate must be issued by
    #[arg(long = "tls-ca", global = true, env = "RUG_TLS_CA", hide_env_values = true, value_name = "FILE")]
    ca: Option<OsString>,
    /// PEM file with the certificate to show to the server
    #[arg(long = "tls-cert", global = true, env = "RUG_TLS_CERT", hide_env_values = true, value_name = "FILE")]
    cert: Option<OsString>,
    /// PEM file with the key of the certificate
    // The id differs from the default because `ring locate` has an argument `key`.
    #[arg(
        long = "tls-key",
        id = "tls-key",
        global = true,
        env = "RUG_TLS_KEY",
        hide_env_values = true,
        value_name = "FILE"
    )]
    key: Option<OsString>,
    /// Name the server's certificate must have, instead of the host in its address
    #[arg(
        long = "tls-server-name",
        global = true,
        env = "RUG_TLS_SERVER_NAME",
        hide_env_values = true,
        value_name = "NAME"
    )]
    server_name: Option<String>,
    /// PEM file with certificates that are revoked
    #[arg(long = "tls-crl", global = true, env = "RUG_TLS_CRL", hide_env_values = true, value_name = "FILE")]
    crl: Option<OsString>,
    /// Names that make a server a coordinator, comma separated [default: rug://coordinator/*]
    #[arg(
        long = "tls-servers",
        global = true,
        env = "RUG_TLS_SERVERS",
        hide_env_values = true,
        value_name = "NAMES",
        value_delimiter = ','
    )]
    servers: Vec<String>,
}

impl TlsFlags {
    /// `has_token`: the caller authenticates by a token, and needs no certificate.
    fn load(&self, has_token: bool) -> Result<Option<ClientTls>, Failure> {
        // A variable that is set to an empty text counts as not set.
        let path = |file: &Option<OsString>| file.clone().map(PathBuf::from).unwrap_or_default();
        let default = tls::Config::default();
        let servers: Vec<_> = self.servers.iter().filter(|name| !name.is_empty()).cloned().collect();
        let config = tls::Config {
            ca: path(&self.ca),
            cert: path(&self.cert),
            key: path(&self.key),
            server_name: self.server_name.clone().unwrap_or_default(),
            crl: path(&self.crl),
            servers: if servers.is_empty() { default.servers.clone() } else { servers },
            own_optional: has_token,
            ..default
        };
        if let Some(violation) = config.validate().first() {
            let flag = violation.field.replace('_', "-");
            return Err(Failure::usage(format!("--tls-{flag}: {}", violation.description)));
        }
        ClientTls::load(&config).map_err(|e| Failure::usage(format!("--tls-{e}")))
    }
}

#[derive(Debug, Subcommand)]
enum RugctlCommand {
    /// Run a cluster on this machine
    Up(up::UpArgs),
    /// Create or change appliances from YAML files
    Apply(apply::ApplyArgs),
    /// Show appliances by name; `-o yaml` prints the form that `apply` reads
    Get(appliance::GetArgs),
    /// List appliances
    #[command(visible_alias = "ls")]
    List(appliance::ListArgs),
    /// Show everything about appliances
    Describe(appliance::GetArgs),
    /// Explain why an appliance is on its worker, or on none
    Explain(appliance::One),
    /// Watch appliances change
    Watch(watch::WatchArgs),
    /// Remove appliances
    Delete(delete::DeleteArgs),
    /// Replace every instance of an appliance
    #[command(visible_alias = "restart")]
    Rebuild(appliance::RebuildArgs),
    /// Change the number of instances of an appliance
    Scale(appliance::ScaleArgs),
    /// Probe every instance of an appliance now
    Check(appliance::One),
    /// Show, watch and evict workers
    #[command(subcommand)]
    Worker(worker::WorkerCommand),
    /// Show the ring and which worker a key belongs to
    #[command(subcommand)]
    Ring(ring::RingCommand),
    /// Pause and resume placement, and free appliances from a lost host
    #[command(subcommand)]
    Placement(placement::PlacementCommand),
    /// Show the history of rebalances: moves and their causes
    #[command(visible_alias = "history")]
    Rebalance(rebalance::RebalanceArgs),
    /// Show who did what: changes of appliances and measures of operators
    Audit(audit::AuditArgs),
    /// Diagnose the cluster: what is wrong and what to do about it
    ///
    /// Asks every coordinator of --server. The exit code is 1 when there is a problem.
    Doctor,
    /// Show the state of the cluster
    #[command(subcommand)]
    Cluster(cluster::ClusterCommand),
    /// Print a completion script for a shell
    Completion {
        /// The shell
        shell: Shell,
    },
    /// Write the pages of the manual, one for each command
    Man {
        /// Folder for them, such as /usr/local/share/man/man1
        #[arg(value_name = "DIR", value_hint = clap::ValueHint::DirPath)]
        folder: PathBuf,
    },
    /// Show the versions of this program and of the server
    Version {
        /// Do not ask the server
        #[arg(long)]
        client: bool,
    },
}

fn parse_timeout(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(limit) if limit > Duration::ZERO => Ok(limit),
        _ => Err("must be a duration above zero with its unit, such as 30s".to_owned()),
    }
}

/// Stack of each thread: that of a main thread.
const STACK: usize = 8 << 20;

fn main() {
    tls::install_provider();
    // Usage errors end here with exit code 2, help and version with 0.
    let matches = help::with_examples(Cli::command()).get_matches();
    let cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    // Documents are read on a thread of the runtime, and one that is nested as deeply as it may be takes some MiB of stack.
    let runtime = runtime.worker_threads(2).thread_stack_size(STACK).enable_all().build();
    let exit = match runtime {
        Ok(runtime) => runtime.block_on(run(cli)),
        Err(error) => report(&Failure::failed(format!("start the async runtime: {error}"))),
    };
    // `exit` rather than a return from `main`: a thread blocked on standard input must not keep the process alive.
    std::process::exit(exit as i32);
}

async fn run(cli: Cli) -> Exit {
    let ui = Ui::new(cli.global.output, cli.global.no_color);
    let result = match &cli.command {
        // `up` handles signals itself.
        RugctlCommand::Up(args) => up::run(&ui, args, cli.global.timeout).await,
        RugctlCommand::Completion { shell } => completion(&ui, *shell),
        RugctlCommand::Man { folder } => help::write_manual(&ui, help::with_examples(Cli::command()), folder),
        command => tokio::select! {
            result = call(ui, &cli.global, command) => result,
            _ = tokio::signal::ctrl_c() => Err(Failure::new(Exit::Interrupted, "interrupted")),
        },
    };
    result.map_or_else(|failure| report(&failure), |()| Exit::Ok)
}

fn report(failure: &Failure) -> Exit {
    if !failure.message.is_empty() {
        // Not eprintln, which panics when stderr is closed.
        let _ = writeln!(std::io::stderr(), "rugctl: {}", output::lines_escaped(&failure.to_string()));
    }
    failure.exit
}

async fn call(ui: Ui, global: &Global, command: &RugctlCommand) -> Result<(), Failure> {
    let token = global.token_file.as_deref().filter(|path| !path.is_empty());
    let tls = global.tls.load(token.is_some())?;
    let found = client::find_servers(global.server.as_deref(), tls.is_some(), &client::working_folder());
    let found = match (found, command) {
        (Err(_), RugctlCommand::Version { .. }) => return cluster::own_version(&ui),
        (found, _) => found?,
    };
    // Certificates in the environment belong to another cluster: the one on this machine uses no TLS.
    let tls = if found.local { None } else { tls };
    if let Some(exposed) = tls.as_ref().and_then(ClientTls::exposed_key) {
        ui.note(&format!("--tls-key: {exposed}"));
    }
    // `--timeout` as a whole applies to waiting; a single call keeps the default, so that one call cannot use up the
    // time of the others.
    let timeout = global.timeout.unwrap_or(client::CALL_TIMEOUT);
    let client = client::AdminClient::of(&found.addresses, timeout, tls.as_ref(), found.trusted())?;
    // As are tokens, which a cluster on this machine does not ask for.
    let client = match token.filter(|_| !found.local) {
        Some(path) => {
            if let Some(exposed) = runtime::file::exposure(path.as_ref()) {
                ui.note(&format!("--token-file: {exposed}"));
            }
            client.with_token(client::TokenFile::open(path.into())?)?
        }
        None => client,
    };
    let client = client.meant_for(global.cluster.clone().or(found.cluster));
    if global.cluster.is_some() {
        // A server of an earlier version would not know what it is asked to check with each call.
        client.identify().await?;
    }
    let context = CommandContext { client, ui, timeout: global.timeout };
    dispatch(&context, command).await
}

async fn dispatch(context: &CommandContext, command: &RugctlCommand) -> Result<(), Failure> {
    match command {
        RugctlCommand::Apply(args) => apply::run(context, args).await,
        RugctlCommand::Get(args) => appliance::get(context, args).await,
        RugctlCommand::List(args) => appliance::list(context, args).await,
        RugctlCommand::Describe(args) => appliance::describe(context, args).await,
        RugctlCommand::Explain(args) => appliance::explain(context, args).await,
        RugctlCommand::Watch(args) => watch::run(context, args).await,
        RugctlCommand::Delete(args) => delete::run(context, args).await,
        RugctlCommand::Rebuild(args) => appliance::rebuild(context, args).await,
        RugctlCommand::Scale(args) => appliance::scale(context, args).await,
        RugctlCommand::Check(args) => appliance::check(context, args).await,
        RugctlCommand::Worker(command) => worker::run(context, command).await,
        RugctlCommand::Ring(command) => ring::run(context, command).await,
        RugctlCommand::Placement(command) => placement::run(context, command).await,
        RugctlCommand::Rebalance(args) => rebalance::run(context, args).await,
        RugctlCommand::Audit(args) => audit::run(context, args).await,
        RugctlCommand::Doctor => doctor::run(context).await,
        RugctlCommand::Cluster(command) => cluster::run(context, command).await,
        RugctlCommand::Version { client } => cluster::version(context, *client).await,
        RugctlCommand::Up(_) | RugctlCommand::Completion { .. } | RugctlCommand::Man { .. } => {
            unreachable!("handled without a server")
        }
    }
}

fn completion(ui: &Ui, shell: Shell) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "rugctl", &mut script);
    ui.print(&String::from_utf8_lossy(&script))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn bad_usage_exits_with_2() {
        for line in [
            "rugctl",
            "rugctl frobnicate",
            "rugctl apply",
            "rugctl up --workers 0",
            "rugctl up --driver V.M",
            "rugctl up --listen 127.0.0.1:7470",
            "rugctl list --phase asleep",
            "rugctl list --label app",
            "rugctl delete",
            "rugctl delete web --all",
            "rugctl list --timeout 5",
            "rugctl list --cluster No/Name",
            "rugctl list --tenant=",
            "rugctl list --kind vm",
            "rugctl list --name-prefix=",
            "rugctl watch --tenant No",
            "rugctl delete --all --tenant=",
            "rugctl get",
        ] {
            let error = Cli::try_parse_from(line.split(' ')).expect_err(line);
            assert_eq!(error.exit_code(), Exit::Usage as i32, "{line}");
        }
    }

    #[test]
    fn global_flags_are_accepted_after_the_command() {
        let cli = Cli::try_parse_from("rugctl list -o json --server h:1 --timeout 1m".split(' ')).expect("valid");
        assert_eq!(cli.global.output, OutputFormat::Json);
        assert_eq!(cli.global.server.as_deref(), Some("h:1"));
        assert_eq!(cli.global.timeout, Some(Duration::from_secs(60)));
    }

    #[test]
    fn completion_knows_the_commands() {
        let mut script = Vec::new();
        clap_complete::generate(Shell::Bash, &mut Cli::command(), "rugctl", &mut script);
        let script = String::from_utf8(script).expect("text");
        assert!(script.contains("rebalance") && script.contains("--no-wait"));
    }

    #[tokio::test]
    async fn an_unreachable_server_exits_with_3() {
        let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("its address");
        let line = format!("rugctl list --server {free} --timeout 200ms");
        let cli = Cli::try_parse_from(line.split(' ')).expect("valid");
        assert_eq!(run(cli).await, Exit::Unreachable);
    }
}
