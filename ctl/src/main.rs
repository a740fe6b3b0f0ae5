//! `rugctl`: the command line of Rug.
//!
//! Commands that call a server are in [`commands`]; `up` runs a whole cluster on this machine. Every run ends in one
//! exit code ([`error::Exit`]) and, on failure, in a message on stderr.

use std::io::Write;
use std::path::PathBuf;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use clap_complete::{CompleteEnv, Shell};
use runtime::telemetry::{CommandTrace, Program};
use runtime::tls;

use crate::commands::wait as wait_command;
use crate::commands::{
    CommandContext, appliance, apply, audit, budget, cluster, config, context, debug, delete, diff, doctor, edit, exec,
    logs, openstack, placement, plan, rebalance, ring, rollout, runs, ssh, telemetry, watch, worker,
};
use crate::contexts::{Contexts, NamedContext};
use crate::error::{Exit, Failure};
use crate::global::{Connection, Global};
use crate::output::{OutputFormat, Ui};

mod client;
mod commands;
mod complete;
mod contexts;
mod document;
mod dump;
mod error;
mod global;
mod help;
mod names;
mod output;
mod processes;
mod status;
mod suggest;
mod text;
mod top;
mod up;
mod wait;

/// Command line of Rug, which keeps fleets of appliances alive
#[derive(Debug, Parser)]
#[command(name = "rugctl", version, propagate_version = false)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: RugctlCommand,
}

#[derive(Debug, Subcommand)]
enum RugctlCommand {
    /// Run a cluster on this machine
    Up(up::UpArgs),
    /// Create or change appliances from YAML files
    Apply(apply::ApplyArgs),
    /// Show what `apply` would change, field by field
    Diff(diff::DiffArgs),
    /// Change an appliance in an editor
    Edit(edit::EditArgs),
    /// Show appliances by name; `-o yaml` prints the form that `apply` reads
    Get(appliance::GetOrWatchArgs),
    /// List appliances
    #[command(visible_alias = "ls")]
    List(appliance::ListArgs),
    /// Show everything about appliances
    Describe(appliance::GetArgs),
    /// Explain why an appliance is on its worker, or on none
    Explain(appliance::One),
    /// Wait until appliances are configured, in a phase, owned or deleted
    Wait(wait_command::WaitArgs),
    /// Watch appliances change
    Watch(watch::WatchArgs),
    /// Remove appliances
    Delete(delete::DeleteArgs),
    /// Replace every instance of appliances
    #[command(visible_alias = "restart")]
    Rebuild(appliance::RebuildArgs),
    /// Change the number of instances of an appliance
    Scale(appliance::ScaleArgs),
    /// Probe every instance of appliances now
    Check(appliance::CheckArgs),
    /// Show, watch and evict workers
    #[command(subcommand)]
    Worker(worker::WorkerCommand),
    /// Show the ring and which worker a key belongs to
    #[command(subcommand)]
    Ring(ring::RingCommand),
    /// Pause and resume placement, pin appliances, and free them from a lost host
    #[command(subcommand)]
    Placement(placement::PlacementCommand),
    /// Keep hands off appliances, and show what would have been done to them
    #[command(subcommand)]
    Debug(debug::DebugCommand),
    /// Limit how many appliances are made unavailable on purpose at a time
    #[command(subcommand)]
    Budget(budget::BudgetCommand),
    /// Rebuild, check or delete many appliances, or change their image, a few at a time
    #[command(subcommand)]
    Rollout(rollout::RolloutCommand),
    /// Show what would move if workers or orders were others, and have exactly that done
    Plan(Box<plan::PlanArgs>),
    /// Show the history of rebalances: moves and their causes
    #[command(visible_alias = "history")]
    Rebalance(rebalance::RebalanceArgs),
    /// Show what instances of an appliance have printed
    Logs(logs::LogsArgs),
    /// Run a command in an instance of an appliance
    Exec(exec::ExecArgs),
    /// Log in to an instance of an appliance at its management address, by the ssh of this machine
    Ssh(ssh::SshArgs),
    /// Show what workers did about appliances: boots, rebuilds, removals, with cause and outcome
    Runs(runs::RunsArgs),
    /// Show who did what: changes of appliances and measures of operators
    Audit(audit::AuditArgs),
    /// Show and change what coordinators and workers log, for a while
    LogLevel(telemetry::LogLevelArgs),
    /// Show and change which traces coordinators and workers keep
    Sampling(telemetry::SamplingArgs),
    /// Have coordinators and workers read their configuration again
    #[command(subcommand)]
    Config(config::ConfigCommand),
    /// Show the cluster live on the screen: workers, phases, rebalances, troubles, events
    Top(top::TopArgs),
    /// Diagnose the cluster: what is wrong and what to do about it
    ///
    /// Asks every coordinator of --server. The exit code is 1 when there is a problem.
    Doctor,
    /// Show the state of the cluster
    #[command(subcommand)]
    Cluster(cluster::ClusterCommand),
    /// Name clusters, and choose the one that is used
    #[command(subcommand)]
    Context(context::ContextCommand),
    /// Look at a cloud of OpenStack, for the driver `openstack`
    #[command(subcommand, name = "openstack")]
    OpenStack(openstack::OpenStackCommand),
    /// Print a completion script for a shell
    Completion {
        /// The shell
        shell: Shell,
    },
    /// Write the pages of the manual, one for each command
    Man {
        /// Folder for them, such as /usr/local/share/man/man1; made if it is not there
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

/// The command line, with examples.
fn command() -> clap::Command {
    help::with_examples(Cli::command())
}

impl RugctlCommand {
    /// Whether its table may have other columns.
    fn takes_columns(&self) -> bool {
        match self {
            Self::Get(args) => !args.watches(),
            Self::List(args) => !args.watches(),
            _ => false,
        }
    }

    /// Whether it can write spans.
    fn draws_trace(&self) -> bool {
        matches!(self, Self::Rebalance(args) if args.draws_trace())
    }
}

/// Stack of each thread: that of a main thread.
const STACK: usize = 8 << 20;

fn main() {
    tls::install_provider();
    // A shell that asks how a line goes on is answered here, and the process ends.
    CompleteEnv::with_factory(command).var(complete::VARIABLE).complete();
    // Usage errors end here with exit code 2, help and version with 0.
    let matches = command().get_matches();
    let mut cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    cli.global.note_typed(&matches);
    matches.subcommand_name().unwrap_or_default().clone_into(&mut cli.global.called);
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    // Documents are read on a thread of the runtime, and one that is nested as deeply as it may be takes some MiB of stack.
    let runtime = runtime.worker_threads(2).thread_stack_size(STACK).enable_all().build();
    let exit = match runtime {
        Ok(runtime) => runtime.block_on(run(cli)),
        Err(error) => report(&Failure::failed(format!("start the async runtime: {error}"))),
    };
    // `exit` rather than a return from `main`: a thread blocked on standard input must not keep the process alive.
    std::process::exit(exit);
}

/// Carries out a command; the exit status.
async fn run(cli: Cli) -> i32 {
    let ui = Ui::new(cli.global.output, cli.global.no_color);
    if cli.global.output == OutputFormat::Otlp && !cli.command.draws_trace() {
        return report(&Failure::usage("-o otlp is for `rebalance trace` alone"));
    }
    if matches!(cli.global.output, OutputFormat::Columns(_)) && !cli.command.takes_columns() {
        return report(&Failure::usage("-o custom-columns is for `list` and `get` alone"));
    }
    let result = match &cli.command {
        // `up` handles signals itself.
        RugctlCommand::Up(args) => up::run(&ui, args, cli.global.timeout).await,
        RugctlCommand::Completion { shell } => complete::script(&ui, *shell),
        RugctlCommand::Context(command) if !command.asks_server() => {
            contexts().and_then(|contexts| context::run(&ui, &contexts, command, &client::working_folder()))
        }
        RugctlCommand::OpenStack(command) => tokio::select! {
            result = openstack::run(&ui, command) => result,
            _ = tokio::signal::ctrl_c() => Err(Failure::new(Exit::Interrupted, "interrupted")),
        },
        RugctlCommand::Man { folder } => help::write_manual(&ui, command(), folder),
        command => tokio::select! {
            result = call(ui, &cli.global, command) => result,
            _ = tokio::signal::ctrl_c() => Err(Failure::new(Exit::Interrupted, "interrupted")),
        },
    };
    result.map_or_else(|failure| report(&failure), |()| Exit::Ok as i32)
}

fn report(failure: &Failure) -> i32 {
    if !failure.message.is_empty() {
        // Not eprintln, which panics when stderr is closed.
        let _ = writeln!(std::io::stderr(), "rugctl: {}", output::foreign_escaped(&failure.to_string()));
    }
    failure.status()
}

async fn call(ui: Ui, global: &Global, command: &RugctlCommand) -> Result<(), Failure> {
    let connection = match (global.connection(&client::working_folder(), Contexts::of_user().as_ref()), command) {
        (Err(_), RugctlCommand::Version { .. }) => return cluster::own_version(&ui),
        (connection, _) => connection?,
    };
    let Connection { client, reached, notes } = connection;
    notes.iter().for_each(|note| ui.note(note));
    let trace = global.trace.then(|| CommandTrace::start(PROGRAM, format!("rugctl {}", global.called)));
    let trace = trace.transpose().map_err(Failure::usage)?;
    let client = client.traced(trace.as_ref().map(CommandTrace::context).unwrap_or_default());
    let context = CommandContext { client, ui: ui.within(reached.tenant.clone()), timeout: global.timeout };
    let done = carry_out(&context, global, command, reached).await;
    if let Some(trace) = trace {
        let id = trace.id();
        trace.end(done.as_ref().err().map(|failure| failure.message.as_str()));
        context.ui.note(&format!("trace id: {id}"));
    }
    done
}

/// How traces name this program.
const PROGRAM: Program<'static> = Program { name: "rugctl", instance: "" };

async fn carry_out(
    context: &CommandContext,
    global: &Global,
    command: &RugctlCommand,
    reached: NamedContext,
) -> Result<(), Failure> {
    if let Some(meant) = &global.cluster {
        // A server of an earlier version would not know what it is asked to check with each call; and the endpoint file or the
        // context that led there may mean another cluster than the flag.
        let (found, _) = context.identified().await?;
        if !found.is(meant) {
            return Err(Failure::failed(format!("this is {found}, and --cluster or RUG_CLUSTER means {meant}")));
        }
    }
    match command {
        RugctlCommand::Context(command) => context::save(context, &contexts()?, command, reached).await,
        command => dispatch(context, command).await,
    }
}

fn contexts() -> Result<Contexts, Failure> {
    Contexts::of_user().ok_or_else(global::no_folder)
}

async fn dispatch(context: &CommandContext, command: &RugctlCommand) -> Result<(), Failure> {
    match command {
        RugctlCommand::Apply(args) => apply::run(context, args).await,
        RugctlCommand::Diff(args) => diff::run(context, args).await,
        RugctlCommand::Edit(args) => edit::run(context, args).await,
        RugctlCommand::Get(args) => appliance::get(context, args).await,
        RugctlCommand::List(args) => appliance::list(context, args).await,
        RugctlCommand::Describe(args) => appliance::describe(context, args).await,
        RugctlCommand::Explain(args) => appliance::explain(context, args).await,
        RugctlCommand::Wait(args) => wait_command::run(context, args).await,
        RugctlCommand::Watch(args) => watch::run(context, args).await,
        RugctlCommand::Delete(args) => delete::run(context, args).await,
        RugctlCommand::Rebuild(args) => appliance::rebuild(context, args).await,
        RugctlCommand::Scale(args) => appliance::scale(context, args).await,
        RugctlCommand::Check(args) => appliance::check(context, args).await,
        RugctlCommand::Worker(command) => worker::run(context, command).await,
        RugctlCommand::Ring(command) => ring::run(context, command).await,
        RugctlCommand::Placement(command) => placement::run(context, command).await,
        RugctlCommand::Debug(command) => debug::run(context, command).await,
        RugctlCommand::Budget(command) => budget::run(context, command).await,
        RugctlCommand::Rollout(command) => rollout::run(context, command).await,
        RugctlCommand::Plan(args) => plan::run(context, args).await,
        RugctlCommand::Rebalance(args) => rebalance::run(context, args).await,
        RugctlCommand::Logs(args) => logs::run(context, args).await,
        RugctlCommand::Exec(args) => exec::run(context, args).await,
        RugctlCommand::Ssh(args) => ssh::run(context, args).await,
        RugctlCommand::Runs(args) => runs::run(context, args).await,
        RugctlCommand::Audit(args) => audit::run(context, args).await,
        RugctlCommand::LogLevel(args) => telemetry::log_level(context, args).await,
        RugctlCommand::Sampling(args) => telemetry::sampling(context, args).await,
        RugctlCommand::Config(command) => config::run(context, command).await,
        RugctlCommand::Top(args) => top::run(context, args).await,
        RugctlCommand::Doctor => doctor::run(context).await,
        RugctlCommand::Cluster(command) => cluster::run(context, command).await,
        RugctlCommand::Version { client } => cluster::version(context, *client).await,
        RugctlCommand::Up(_)
        | RugctlCommand::Context(_)
        | RugctlCommand::OpenStack(_)
        | RugctlCommand::Completion { .. }
        | RugctlCommand::Man { .. } => unreachable!("handled before"),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

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
            "rugctl list --label =app",
            "rugctl list -A -t demo",
            "rugctl list -o custom-columns=NAME",
            "rugctl list -o xml",
            "rugctl rebuild web -l app",
            "rugctl wait",
            "rugctl wait web --for=happy",
            "rugctl delete",
            "rugctl delete web --all",
            "rugctl list --timeout 5",
            "rugctl list --cluster No/Name",
            "rugctl list --tenant=",
            "rugctl list --kind vm",
            "rugctl list --watch --show-secrets",
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
        assert_eq!(cli.global.server(), Some("h:1"));
        assert_eq!(cli.global.timeout, Some(Duration::from_secs(60)));
    }

    #[tokio::test]
    async fn an_unreachable_server_exits_with_3() {
        let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("its address");
        let line = format!("rugctl list --server {free} --timeout 200ms");
        let cli = Cli::try_parse_from(line.split(' ')).expect("valid");
        assert_eq!(run(cli).await, Exit::Unreachable as i32);
    }
}
