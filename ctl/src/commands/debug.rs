//! `rugctl debug`: keeps everybody's hands off some appliances, and shows what would have been done to them.

use std::time::{Duration, SystemTime};

use clap::{Args, Subcommand};
use common::appliance::Name;
use common::selector::LabelSelector;
use proto::admin::v1;
use proto::admin::v1::debug_scope::What;
use tokio::time::{Instant, sleep};

use crate::client::{by_id, request_id};
use crate::commands::{CommandContext, Extent, confirm, parse_duration, parse_id, short_id, watch};
use crate::complete;
use crate::error::{Exit, Failure};
use crate::names::{ApplianceName, Tenant};
use crate::output::debug::{Mode, Step, names, scope_text};
use crate::output::{TextTable, Tone, age, count, short};
use crate::text::one_line;

/// How long the call waits for a mode to take hold; after that it is looked how far it is.
const ROUND: Duration = Duration::from_secs(2);

/// How often that is looked at.
const LOOK: Duration = Duration::from_millis(300);

/// Commands.
#[derive(Debug, Subcommand)]
pub(crate) enum DebugCommand {
    /// Keep hands off: nothing is changed about what is covered until the mode is cleared
    ///
    /// Owners go on probing, and note what they would have done. Returns when no call that changes anything starts any more
    /// for what is covered.
    Set(SetArgs),
    /// Clear debug modes: owners go on where they are not covered by others
    Clear(ClearArgs),
    /// List debug modes
    List {
        /// Print each change, one line each, until interrupted
        #[arg(short, long)]
        watch: bool,
    },
    /// Show what would have been done to an appliance meanwhile
    WouldHave(WouldHaveArgs),
}

/// What a mode covers; a tenant where none of these is given.
#[derive(Args, Debug)]
#[group(multiple = false)]
pub(crate) struct ScopeArgs {
    /// Everything
    #[arg(long)]
    global: bool,
    /// What this worker owns
    #[arg(long, value_name = "WORKER", value_parser = clap::builder::NonEmptyStringValueParser::new(), add = complete::workers())]
    worker: Option<String>,
    /// One appliance, by name or id
    #[arg(long, value_name = "NAME", add = complete::appliances())]
    appliance: Option<String>,
    /// What has these labels: key=value, key!=value, key in (a,b), key notin (a,b), key, !key
    #[arg(short = 'l', long, value_parser = parse_selector)]
    selector: Option<LabelSelector>,
}

/// Arguments of `set`.
#[derive(Args, Debug)]
pub(crate) struct SetArgs {
    #[command(flatten)]
    scope: ScopeArgs,
    /// What belongs to this tenant; with --appliance, the tenant of the name
    #[arg(short, long, value_parser = Name::new, conflicts_with_all = ["global", "worker", "selector"], add = complete::tenants())]
    tenant: Option<Name>,
    /// Reason, shown to other operators
    #[arg(long, default_value = "", hide_default_value = true)]
    reason: String,
    /// How long; until it is cleared when absent
    #[arg(long = "for", value_name = "DURATION", value_parser = parse_duration)]
    lasts: Option<Duration>,
    /// UUID of the mode; a command that is repeated with the same one sets no second mode
    #[arg(long, value_parser = parse_id)]
    id: Option<String>,
    /// Return as soon as the mode is stored
    #[arg(long)]
    no_wait: bool,
}

/// Arguments of `clear`.
#[derive(Args, Debug)]
pub(crate) struct ClearArgs {
    /// Ids, or how they begin
    #[arg(required_unless_present = "all", conflicts_with = "all", add = complete::debug_modes())]
    ids: Vec<String>,
    /// All of them
    #[arg(long)]
    all: bool,
    /// Reason, for the audit trail
    #[arg(long, default_value = "", hide_default_value = true)]
    reason: String,
    /// Do not ask for confirmation
    #[arg(short, long)]
    yes: bool,
}

/// Arguments of `would-have`.
#[derive(Args, Debug)]
pub(crate) struct WouldHaveArgs {
    /// Name or id
    #[arg(add = complete::appliances())]
    name: String,
    #[command(flatten)]
    tenant: Tenant,
}

fn parse_selector(text: &str) -> Result<LabelSelector, String> {
    match text.parse::<LabelSelector>() {
        Ok(selector) if selector.is_empty() => Err("has no condition".to_owned()),
        Ok(selector) => Ok(selector),
        Err(problem) => Err(problem.to_string()),
    }
}

/// Runs the command.
pub(crate) async fn run(context: &CommandContext, command: &DebugCommand) -> Result<(), Failure> {
    match command {
        DebugCommand::Set(args) => set(context, args).await,
        DebugCommand::Clear(args) => clear(context, args).await,
        DebugCommand::List { watch: true } => watch_list(context).await,
        DebugCommand::List { watch: false } => list(context).await,
        DebugCommand::WouldHave(args) => would_have(context, args).await,
    }
}

async fn set(context: &CommandContext, args: &SetArgs) -> Result<(), Failure> {
    let request = v1::SetDebugModeRequest {
        id: args.id.clone().unwrap_or_else(request_id),
        scope: Some(scope(context, args).await?),
        reason: args.reason.clone(),
        expires_in: args.lasts.map(proto::convert::scalar::duration_to_wire),
        wait: Some(proto::convert::scalar::duration_to_wire(ROUND)),
    };
    let deadline = Instant::now() + context.wait();
    let mut mode = context.client.set_debug_mode(request).await?;
    let id = short_id(&mode.id).to_owned();
    let spinner = context.ui.spinner();
    let mut said = String::new();
    while mode.waiting_count > 0 && !args.no_wait && Instant::now() < deadline {
        let waits = waits(&mode);
        if waits != said {
            spinner.set_message(format!("debug mode {id} is set; {waits}"));
            said = waits;
        }
        sleep(LOOK).await;
        // Not set again: somebody may have cleared it meanwhile.
        mode = match context.client.debug_mode(&mode.id).await {
            Err(failure) if failure.exit == Exit::NotFound => {
                spinner.finish_and_clear();
                return Err(Failure::failed(format!(
                    "debug mode {id} was cleared, or is over, before it had taken hold everywhere"
                )));
            }
            answer => answer?,
        };
    }
    spinner.finish_and_clear();
    if context.ui.format.is_structured() {
        context.ui.print_value(&Mode::from(&mode))?;
    } else {
        context.ui.print(&described(&mode))?;
    }
    if mode.waiting_count > 0 && !args.no_wait {
        return Err(Failure::failed(format!(
            "debug mode {id} is set and has not taken hold everywhere: {}",
            waits(&mode)
        )));
    }
    Ok(())
}

async fn scope(context: &CommandContext, args: &SetArgs) -> Result<v1::DebugScope, Failure> {
    let ScopeArgs { global, worker, appliance, selector } = &args.scope;
    let what = match (worker, appliance, selector, &args.tenant) {
        (Some(worker), ..) => What::Worker(worker.clone()),
        (_, Some(name), _, tenant) => What::Appliance(by_id(&context.find(name, tenant.as_ref()).await?.id)),
        (_, _, Some(selector), _) => What::Selector(selector.to_string()),
        (.., Some(tenant)) => What::Tenant(tenant.to_string()),
        _ if *global => What::Global(true),
        _ => {
            return Err(Failure::usage("give what to keep hands off: --appliance, --tenant, --worker, -l or --global"));
        }
    };
    Ok(v1::DebugScope { what: Some(what) })
}

async fn clear(context: &CommandContext, args: &ClearArgs) -> Result<(), Failure> {
    let (_, context) = &context.identified().await?;
    let modes = context.client.debug_modes().await?;
    let chosen = if args.all { modes } else { named(&modes, &args.ids)? };
    if args.all && !chosen.is_empty() {
        let question = format!("{} are cleared and owners act again. Go on?", count(chosen.len() as u64, "debug mode"));
        confirm(&question, Extent::Found, args.yes).await?;
    }
    for mode in &chosen {
        match context.client.clear_debug_mode(&mode.id, &args.reason).await {
            // Another one has cleared it, or a repeated call had done so before.
            Err(failure) if failure.exit == Exit::NotFound => {}
            answer => answer?,
        }
        if !context.ui.format.is_structured() {
            context.ui.print(&format!("debug mode {} on {} cleared", short_id(&mode.id), scope_text(mode)))?;
        }
    }
    if context.ui.format.is_structured() {
        return context.ui.print_value(&chosen.iter().map(|mode| mode.id.clone()).collect::<Vec<_>>());
    }
    if chosen.is_empty() { context.ui.print("there are no debug modes") } else { Ok(()) }
}

/// The modes whose ids begin so, each named once.
fn named(modes: &[v1::DebugMode], ids: &[String]) -> Result<Vec<v1::DebugMode>, Failure> {
    let mut chosen: Vec<v1::DebugMode> = Vec::new();
    for id in ids {
        let wanted = id.replace('-', "").to_lowercase();
        let found: Vec<_> = modes.iter().filter(|mode| mode.id.starts_with(&wanted)).collect();
        match found.as_slice() {
            [] => return Err(Failure::new(Exit::NotFound, format!("there is no debug mode {}", one_line(id)))),
            [one] if chosen.iter().any(|mode| mode.id == one.id) => {}
            [one] => chosen.push((*one).clone()),
            several => {
                let text = format!("{} debug modes have ids that begin with {}", several.len(), one_line(id));
                return Err(Failure::usage(text));
            }
        }
    }
    Ok(chosen)
}

async fn list(context: &CommandContext) -> Result<(), Failure> {
    let modes = context.client.debug_modes().await?;
    if context.ui.format.is_structured() {
        return context.ui.print_value(&modes.iter().map(Mode::from).collect::<Vec<_>>());
    }
    if modes.is_empty() {
        return context.ui.print("there are no debug modes");
    }
    context.ui.print_table(&table(&modes, SystemTime::now()))
}

/// Prints each debug mode, and each change of one.
async fn watch_list(context: &CommandContext) -> Result<(), Failure> {
    watch::looks(context, async || {
        let line = |mode: &v1::DebugMode| {
            let covered = mode.covered.map_or_else(|| "?".to_owned(), |covered| covered.to_string());
            let (scope, waiting) = (scope_text(mode), mode.waiting_count);
            let line = format!(
                "{}  {scope}  covers {covered}, {waiting} waited for  {}",
                short_id(&mode.id),
                one_line(&mode.reason)
            );
            line.trim_end().to_owned()
        };
        let found = context.client.debug_modes().await?;
        Ok(found.iter().map(|mode| (mode.id.clone(), line(mode), Mode::from(mode))).collect())
    })
    .await
}

fn table(modes: &[v1::DebugMode], now: SystemTime) -> TextTable {
    let mut table = TextTable::new(&["ID", "COVERS", "APPLIANCES", "WAITING", "AGE", "LEFT", "BY", "REASON"])
        .with_prose(&["REASON"]);
    for mode in modes {
        let covered = mode.covered.map_or_else(|| "?".to_owned(), |covered| covered.to_string());
        let waiting = match (mode.covered, mode.waiting_count) {
            (None, _) => ("?".to_owned(), Tone::Plain),
            (_, 0) => ("0".to_owned(), Tone::Plain),
            (_, waiting) => (waiting.to_string(), Tone::Busy),
        };
        table.row([
            (short_id(&mode.id).to_owned(), Tone::Plain),
            (scope_text(mode), Tone::Plain),
            (covered, Tone::Plain),
            waiting,
            (age(mode.since.as_ref(), now), Tone::Plain),
            (left(mode, now), Tone::Plain),
            (one_line(&mode.by), Tone::Plain),
            (one_line(&mode.reason), Tone::Plain),
        ]);
    }
    table
}

async fn would_have(context: &CommandContext, args: &WouldHaveArgs) -> Result<(), Failure> {
    let name: ApplianceName = context.name(&args.name, args.tenant.tenant.as_ref())?;
    let appliance = name.find(&context.client).await?;
    let steps = context.client.would_have(by_id(&appliance.id)).await?;
    if context.ui.format.is_structured() {
        return context.ui.print_value(&steps.iter().map(Step::from).collect::<Vec<_>>());
    }
    if steps.is_empty() {
        let label = context.ui.label(&appliance);
        let is_covered = appliance.assignment.is_some_and(|assignment| assignment.hands_off);
        return context.ui.print(&if is_covered {
            format!("nothing would have been done to {label} so far")
        } else {
            format!("no debug mode covers {label}")
        });
    }
    let now = SystemTime::now();
    let mut table = TextTable::new(&["AGO", "TIMES", "STEP", "REASON"]).with_prose(&["REASON"]);
    for step in &steps {
        let cells =
            [age(step.last_time.as_ref(), now), step.times.to_string(), one_line(&step.step), one_line(&step.reason)];
        table.row(cells.map(|cell| (cell, Tone::Plain)));
    }
    context.ui.print_table(&table)
}

/// What was set, and how far it is.
fn described(mode: &v1::DebugMode) -> String {
    let (id, scope) = (short_id(&mode.id), scope_text(mode));
    let covered = match mode.covered {
        Some(0) => "no appliance now".to_owned(),
        covered => count(covered.unwrap_or_default(), "appliance"),
    };
    let state = if mode.waiting_count > 0 { "is set" } else { "is in force" };
    let mut text = format!("debug mode {id} {state}: hands off {scope} ({covered})");
    for late in mode.late.iter().take(5) {
        let left =
            late.left.and_then(|left| proto::convert::scalar::duration_from_wire(&left).ok()).unwrap_or_default();
        let name = names(&late.tenant, &late.name, &late.appliance);
        text += &format!("\n  {name}: a call from before may still take effect for {:.0} s", left.as_secs_f64().ceil());
    }
    if mode.late_count > 5 {
        text += &format!("\n  and {} more", mode.late_count - 5);
    }
    text
}

/// What a mode waits for, one clause.
fn waits(mode: &v1::DebugMode) -> String {
    let mut text = format!("{} to go", count(mode.waiting_count, "appliance"));
    if let Some(first) = mode.waiting.first() {
        let name = names(&first.tenant, &first.name, &first.appliance);
        text += &format!(", such as {name}: {}", one_line(&first.reason));
    }
    text
}

fn left(mode: &v1::DebugMode, now: SystemTime) -> String {
    let at = mode.expire_time.and_then(|at| SystemTime::try_from(at).ok());
    at.map_or_else(|| "-".to_owned(), |at| short(at.duration_since(now).unwrap_or_default()))
}

/// What covers an appliance, and what would have been done to it, for `describe` and `explain`; nothing when nothing does.
pub(crate) fn lines_about(explained: &v1::ExplainApplianceResponse, now: SystemTime) -> Vec<String> {
    let mode = |mode: &v1::DebugMode| {
        let reason = if mode.reason.is_empty() { String::new() } else { format!(": {}", one_line(&mode.reason)) };
        let left = if mode.expire_time.is_some() { format!(", {} left", left(mode, now)) } else { String::new() };
        let by = one_line(&mode.by);
        let since = age(mode.since.as_ref(), now);
        format!("{} on {} by {by}, since {since}{left}{reason}", short_id(&mode.id), scope_text(mode))
    };
    let step = |step: &v1::WithheldStep| {
        let (ago, times) = (age(step.last_time.as_ref(), now), step.times);
        format!("would have, {ago} ago ({times} times): {} ({})", one_line(&step.step), one_line(&step.reason))
    };
    explained.debug_modes.iter().map(mode).chain(explained.would_have.iter().map(step)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(id: &str, what: What) -> v1::DebugMode {
        let scope = Some(v1::DebugScope { what: Some(what) });
        v1::DebugMode { id: id.to_owned(), scope, covered: Some(2), ..v1::DebugMode::default() }
    }

    #[test]
    fn modes_are_named_by_how_their_ids_begin() {
        let modes = [mode("aa11", What::Global(true)), mode("ab22", What::Tenant("red".into()))];
        let ids = |of: &[&str]| named(&modes, &of.iter().map(|id| (*id).to_owned()).collect::<Vec<_>>());
        assert_eq!(ids(&["AA", "aa11"]).expect("one").len(), 1);
        assert_eq!(ids(&["a"]).expect_err("two begin so").exit, Exit::Usage);
        assert_eq!(ids(&["c"]).expect_err("none begins so").exit, Exit::NotFound);
    }

    #[test]
    fn what_a_mode_waits_for_is_said() {
        let wait = v1::DebugWait {
            tenant: "red".into(),
            name: "web".into(),
            reason: "w1 has not said yet that it keeps its hands off".into(),
            ..v1::DebugWait::default()
        };
        let waiting =
            v1::DebugMode { waiting: vec![wait], waiting_count: 3, ..mode("aa11", What::Worker("w1".into())) };
        assert_eq!(
            waits(&waiting),
            "3 appliances to go, such as red/web: w1 has not said yet that it keeps its hands off"
        );
        assert_eq!(described(&waiting), "debug mode aa11 is set: hands off worker w1 (2 appliances)");
        let late = v1::DebugLate {
            tenant: "red".into(),
            name: "web".into(),
            left: Some(prost_types::Duration { seconds: 4, nanos: 200_000_000 }),
            ..v1::DebugLate::default()
        };
        let late = v1::DebugMode { late: vec![late], late_count: 7, ..mode("aa11", What::Global(true)) };
        assert_eq!(
            described(&late),
            "debug mode aa11 is in force: hands off everything (2 appliances)\n  red/web: a call from before may still take effect for 5 s\n  and 2 more"
        );
    }
}
