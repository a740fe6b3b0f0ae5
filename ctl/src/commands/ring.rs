//! `rugctl ring`: the ring and which worker a key belongs to.

use std::fmt::Write as _;

use clap::{Args, Subcommand};
use proto::admin::v1;

use crate::client::by_id;
use crate::commands::CommandContext;
use crate::complete;
use crate::error::{Exit, Failure};
use crate::names::Tenant;
use crate::output::{TextTable, Tone, view as shown};

/// Commands.
#[derive(Debug, Subcommand)]
pub(crate) enum RingCommand {
    /// Show the owner of an appliance or a key, and the next candidates
    Locate(LocateArgs),
    /// Show the members of the ring and their shares
    Show {
        /// Also list every point of the ring
        #[arg(long)]
        points: bool,
    },
}

/// Arguments of `ring locate`.
#[derive(Args, Debug)]
pub(crate) struct LocateArgs {
    /// Name or id of an appliance; any other text is used as a key
    #[arg(add = complete::appliances())]
    what: String,
    /// Use it as a key even if an appliance has that name
    #[arg(long)]
    key: bool,
    /// Number of members to show
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    count: u32,
    #[command(flatten)]
    tenant: Tenant,
}

/// Runs the command.
pub(crate) async fn run(context: &CommandContext, command: &RingCommand) -> Result<(), Failure> {
    match command {
        RingCommand::Locate(args) => locate(context, args).await,
        RingCommand::Show { points } => show(context, *points).await,
    }
}

async fn locate(context: &CommandContext, args: &LocateArgs) -> Result<(), Failure> {
    use v1::locate_request::What;

    let count = args.count;
    let request = |what| v1::LocateRequest { what: Some(what), count };
    let key = || request(What::Key(args.what.clone()));
    // A text that cannot be a name of an appliance is a key.
    let named = context.name(&args.what, args.tenant.tenant.as_ref()).ok().filter(|_| !args.key);
    let located = match named {
        None => context.client.locate(key()).await?,
        Some(named) => match named.find(&context.client).await {
            Ok(appliance) => context.client.locate(request(What::Appliance(by_id(&appliance.id)))).await?,
            Err(failure) if failure.exit == Exit::NotFound => {
                context.ui.note(&format!("no appliance `{}`; taking it as a key", args.what));
                context.client.locate(key()).await?
            }
            Err(failure) => return Err(failure),
        },
    };
    if context.ui.format.is_structured() {
        return context.ui.print_value(&shown::Location::from(&located));
    }
    let mut text = String::new();
    let _ = writeln!(text, "{:<16}{}", "Key", located.key);
    let _ = writeln!(text, "{:<16}{}", "Position", located.position);
    let _ = writeln!(text, "{:<16}{}", "Preference", located.preference.join(" "));
    if let Some(assignment) = &located.assignment {
        let worker = if assignment.worker.is_empty() { "-" } else { &assignment.worker };
        let _ = writeln!(text, "{:<16}{worker}", "Held by");
        let _ = writeln!(text, "{:<16}{} {}", "Assignment", assignment.state, assignment.token);
        let _ = writeln!(text, "{:<16}{}", "Reason", assignment.reason);
    }
    context.ui.print(&text)
}

async fn show(context: &CommandContext, points: bool) -> Result<(), Failure> {
    let ring = context.client.ring(points).await?;
    if context.ui.format.is_structured() {
        return context.ui.print_value(&shown::RingView::from(&ring));
    }
    let spread = if ring.spread.is_empty() { "none" } else { &ring.spread };
    let policy = format!("strategy {}, band {:.2}, spread {spread}", ring.strategy, ring.band);
    let mut text = format!("version {}, {policy}\n\n", ring.version);
    let mut table = TextTable::new(&["MEMBER", "WEIGHT", "SHARE", "APPLIANCES"]);
    for member in &ring.members {
        let share = format!("{:.1} %", member.share * 100.0);
        let cells = [member.id.clone(), member.weight.to_string(), share, member.appliances.to_string()];
        table.row(cells.map(|cell| (cell, Tone::Plain)));
    }
    text += &context.ui.table_text(&table, 0);
    if points {
        let mut table = TextTable::new(&["POSITION", "MEMBER"]);
        for point in &ring.points {
            table.row([point.position.as_str(), point.member.as_str()].map(|cell| (cell, Tone::Plain)));
        }
        let _ = write!(text, "\n\n{}", context.ui.table_text(&table, 0));
    }
    context.ui.print(&text)
}
