//! `rugctl placement`: pause and resume placement, pin appliances to workers, and free them from a lost host.

use std::fmt::Write as _;
use std::time::SystemTime;

use clap::{Args, Subcommand};
use proto::admin::v1;
use serde::Serialize;

use crate::client::by_id;
use crate::commands::{CommandContext, Extent, TargetCluster, confirm, why};
use crate::complete;
use crate::document::view::{Appliance, Secrets};
use crate::error::{Exit, Failure};
use crate::names::Tenant;
use crate::output::{age, count, view as shown};
use crate::text::one_line;

/// Commands.
#[derive(Debug, Subcommand)]
pub(crate) enum PlacementCommand {
    /// Pause placement: nothing is placed, moved or released until `resume`
    Pause {
        /// Pause moves alone: what has no owner still gets one
        #[arg(long)]
        moves_only: bool,
        /// Reason, shown to other operators
        #[arg(long, default_value = "", hide_default_value = true)]
        reason: String,
    },
    /// Explain what moves, or why nothing does
    Explain,
    /// Resume placement, after `pause` or after too many workers vanished at once
    Resume,
    /// Free an appliance from a host that is lost for good, so that it is started anew elsewhere
    Unbind(UnbindArgs),
    /// Have an appliance be with one worker, whatever its load, until `unpin`
    Pin(PinArgs),
    /// Take a `pin` back
    Unpin(UnpinArgs),
}

/// Arguments of `pin`.
#[derive(Args, Debug)]
pub(crate) struct PinArgs {
    /// Name or id
    #[arg(add = complete::appliances())]
    name: String,
    /// Name of the worker
    #[arg(add = complete::workers())]
    worker: String,
    /// Give it to no other worker: while this one is away it has no owner
    #[arg(long)]
    strict: bool,
    #[command(flatten)]
    tenant: Tenant,
    /// Reason, shown to other operators
    #[arg(long, default_value = "", hide_default_value = true)]
    reason: String,
}

/// Arguments of `unpin`.
#[derive(Args, Debug)]
pub(crate) struct UnpinArgs {
    /// Name or id
    #[arg(required_unless_present_any = ["undo_of", "all"], conflicts_with_all = ["undo_of", "all"], add = complete::appliances())]
    name: Option<String>,
    /// Every appliance that is pinned because this rebalance was undone
    #[arg(long, value_name = "REBALANCE", conflicts_with = "all", add = complete::rebalances())]
    undo_of: Option<String>,
    /// Every appliance that is pinned
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    tenant: Tenant,
    /// Reason, for the audit trail
    #[arg(long, default_value = "", hide_default_value = true)]
    reason: String,
    /// Do not ask for confirmation
    #[arg(short, long)]
    yes: bool,
}

/// Arguments of `unbind`.
#[derive(Args, Debug)]
pub(crate) struct UnbindArgs {
    /// Name or id
    #[arg(add = complete::appliances())]
    name: String,
    #[command(flatten)]
    tenant: Tenant,
    /// Reason, for the audit trail
    #[arg(long, default_value = "", hide_default_value = true)]
    reason: String,
    /// Do not ask for confirmation
    #[arg(short, long)]
    yes: bool,
}

/// What an appliance was freed from; empty when it was bound to nothing.
#[derive(Debug, Serialize)]
struct UnboundSite {
    host: String,
    state_dir: String,
    site: String,
}

/// Runs the command.
pub(crate) async fn run(context: &CommandContext, command: &PlacementCommand) -> Result<(), Failure> {
    let state = match command {
        PlacementCommand::Pause { moves_only, reason } => context.client.pause(reason, *moves_only).await?,
        PlacementCommand::Explain => return why::placement(context).await,
        PlacementCommand::Resume => context.client.resume().await?,
        PlacementCommand::Unbind(args) => return unbind(context, args).await,
        PlacementCommand::Pin(args) => return pin(context, args).await,
        PlacementCommand::Unpin(args) => return unpin(context, args).await,
    };
    if context.ui.format.is_structured() {
        return context.ui.print_value(&shown::Placement::from(state));
    }
    context.ui.print(&describe(&state, SystemTime::now()))
}

async fn pin(context: &CommandContext, args: &PinArgs) -> Result<(), Failure> {
    let appliance = context.find(&args.name, args.tenant.tenant.as_ref()).await?;
    let request = v1::PinRequest {
        appliance: Some(by_id(&appliance.id)),
        worker: args.worker.clone(),
        strict: args.strict,
        reason: args.reason.clone(),
    };
    let after = context.client.pin(request).await?;
    let owner = after.assignment.as_ref().map(|assignment| assignment.worker.as_str()).unwrap_or_default();
    let alone = if args.strict { " alone" } else { "" };
    let where_now = match owner {
        "" => "it has no owner now".to_owned(),
        owner if owner == args.worker => "it is there".to_owned(),
        owner => format!("it is with {} now", one_line(owner)),
    };
    let text = format!("{} is pinned to {}{alone}; {where_now}", context.ui.label(&after), args.worker);
    shown_pin(context, &after, &text)
}

async fn unpin(context: &CommandContext, args: &UnpinArgs) -> Result<(), Failure> {
    let request = |id: &str| v1::UnpinRequest { appliance: Some(by_id(id)), reason: args.reason.clone() };
    if let Some(name) = &args.name {
        let appliance = context.find(name, args.tenant.tenant.as_ref()).await?;
        let after = context.client.unpin(request(&appliance.id)).await?;
        return shown_pin(context, &after, &format!("{} is not pinned", context.ui.label(&after)));
    }
    let (cluster, context) = &context.identified().await?;
    let mark = args.undo_of.as_deref().map(undo_reason);
    let tenant = args.tenant.tenant.as_ref().map(ToString::to_string).unwrap_or_default();
    let all = context.client.list(v1::ApplianceFilter { tenant, ..v1::ApplianceFilter::default() }).await?;
    let is_meant = |appliance: &&v1::Appliance| {
        let pin = appliance.assignment.as_ref().and_then(|assignment| assignment.pin.as_ref());
        pin.is_some_and(|pin| mark.as_ref().is_none_or(|mark| pin.reason.starts_with(mark.as_str())))
    };
    let pinned: Vec<&v1::Appliance> = all.iter().filter(is_meant).collect();
    if !pinned.is_empty() {
        let question = format!("unpin {} in {cluster}?", count(pinned.len() as u64, "appliance"));
        confirm(&question, Extent::Found, args.yes).await?;
    }
    for appliance in &pinned {
        match context.client.unpin(request(&appliance.id)).await {
            // It was removed meanwhile, and its pin with it.
            Err(failure) if failure.exit == Exit::NotFound => {}
            answer => drop(answer?),
        }
    }
    if context.ui.format.is_structured() {
        return context.ui.print_value(&pinned.iter().map(|appliance| appliance.id.clone()).collect::<Vec<_>>());
    }
    context.ui.print(&format!("{} not pinned any more", count(pinned.len() as u64, "appliance")))
}

/// How the reason of pins begins that undo a rebalance, by which they are found again.
pub(crate) fn undo_reason(rebalance: &str) -> String {
    format!("undo of {rebalance}")
}

fn shown_pin(context: &CommandContext, appliance: &v1::Appliance, text: &str) -> Result<(), Failure> {
    if context.ui.format.is_structured() {
        return context.ui.print_value(&Appliance::full(appliance, Secrets::Hidden));
    }
    context.ui.print(text)
}

async fn unbind(context: &CommandContext, args: &UnbindArgs) -> Result<(), Failure> {
    let (cluster, context) = &context.identified().await?;
    let appliance = context.find(&args.name, args.tenant.tenant.as_ref()).await?;
    let label = context.ui.label(&appliance);
    let bound = appliance.assignment.clone().unwrap_or_default();
    let freed = if bound.host.is_empty() {
        v1::UnbindResponse::default()
    } else {
        confirm(&unbind_question(&label, &bound, cluster), Extent::Found, args.yes).await?;
        // Only from where it was seen to be: a call that is repeated must not free it from its next host.
        let request = v1::UnbindRequest {
            appliance: Some(by_id(&appliance.id)),
            host: bound.host,
            state_dir: bound.state_dir,
            site: bound.site,
            reason: args.reason.clone(),
        };
        context.client.unbind(request).await?
    };
    if context.ui.format.is_structured() {
        return context.ui.print_value(&UnboundSite { host: freed.host, state_dir: freed.state_dir, site: freed.site });
    }
    context.ui.print(&match freed.host.as_str() {
        "" => format!("{label} is bound to no host"),
        host => format!("{label} is not bound to {} any more", one_line(host)),
    })
}

fn unbind_question(label: &str, bound: &v1::Assignment, cluster: &TargetCluster) -> String {
    let dir = match bound.state_dir.as_str() {
        "" => String::new(),
        dir => format!(" in {}", one_line(dir)),
    };
    let site = match bound.site.as_str() {
        "" => String::new(),
        id => format!(" (site {})", one_line(id)),
    };
    format!(
        "instances of {label} in {cluster} are kept on host {}{dir}{site}; if any still run there they are not stopped, and new ones are \
         started elsewhere. Unbind it?",
        one_line(&bound.host)
    )
}

fn describe(state: &v1::PlacementState, now: SystemTime) -> String {
    let mut text = String::new();
    if let Some(frozen) = &state.frozen {
        let _ = writeln!(text, "frozen: {}", why_frozen(frozen, now));
    }
    if let Some(paused) = &state.paused {
        let _ = writeln!(text, "paused: {}", why_paused(paused, now));
    }
    if text.is_empty() { "placement resumed".to_owned() } else { text }
}

/// Why placement is frozen, since when, and which workers are missing.
pub(crate) fn why_frozen(frozen: &v1::Frozen, now: SystemTime) -> String {
    let names = frozen.missing.iter().map(|name| one_line(name)).collect::<Vec<_>>().join(", ");
    let rest = frozen.missing_count.saturating_sub(frozen.missing.len() as u64);
    let rest = if rest > 0 { format!(" and {rest} more") } else { String::new() };
    let missing = if names.is_empty() { String::new() } else { format!("; missing: {names}{rest}") };
    format!("{} ({} ago){missing}", one_line(&frozen.reason), age(frozen.since.as_ref(), now))
}

/// Who paused placement, when and why.
pub(crate) fn why_paused(paused: &v1::Paused, now: SystemTime) -> String {
    let reason = one_line(&paused.reason);
    let reason = if reason.is_empty() { "no reason given".to_owned() } else { reason };
    let aborted = match paused.aborted.as_str() {
        "" => String::new(),
        id => format!("rebalance {} was aborted: ", one_line(id)),
    };
    let what = if paused.moves_only { "moves alone: " } else { "" };
    format!("{what}{aborted}{reason} (by {}, {} ago)", one_line(&paused.by), age(paused.since.as_ref(), now))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_question_before_unbinding_names_the_host_and_what_is_not_stopped() {
        let bound = v1::Assignment { host: "h1".into(), state_dir: "/var/lib/rug".into(), ..v1::Assignment::default() };
        assert_eq!(
            unbind_question("custom/web", &bound, &TargetCluster::Unnamed("unix:s".into())),
            "instances of custom/web in the cluster at unix:s are kept on host h1 in /var/lib/rug; if any still run there they are not stopped, \
             and new ones are started elsewhere. Unbind it?"
        );
        let bound = v1::Assignment { site: "0123456789abcdef0123456789abcdef".into(), ..bound };
        let text = unbind_question("custom/web", &bound, &TargetCluster::Unnamed("unix:s".into()));
        assert!(text.contains("on host h1 in /var/lib/rug (site 0123456789abcdef0123456789abcdef); if any"), "{text}");
    }

    #[test]
    fn reasons_for_a_halt_of_placement_are_shown() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(70);
        let since = Some(prost_types::Timestamp { seconds: 10, nanos: 0 });
        assert_eq!(describe(&v1::PlacementState::default(), now), "placement resumed");
        let frozen = v1::Frozen {
            reason: "3 of 4 workers vanished within 2s".into(),
            since,
            missing: vec!["w1".into(), "w2".into()],
            missing_count: 3,
        };
        let paused = v1::Paused { since, by: "10.0.0.1:5".into(), ..v1::Paused::default() };
        let state = v1::PlacementState { frozen: Some(frozen), paused: Some(paused) };
        assert_eq!(
            describe(&state, now),
            "frozen: 3 of 4 workers vanished within 2s (1m ago); missing: w1, w2 and 1 more\n\
             paused: no reason given (by 10.0.0.1:5, 1m ago)\n"
        );
    }
}
