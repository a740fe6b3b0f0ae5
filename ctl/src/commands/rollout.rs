//! `rugctl rollout`: one command over many appliances, a few at a time.

use std::fmt::Write as _;
use std::time::{Duration, SystemTime};

use clap::{Args, Subcommand, ValueEnum};
use proto::admin::v1;
use proto::convert::scalar::duration_to_wire;
use serde::Serialize;
use tokio::time::{Instant, sleep};

use crate::client::request_id;
use crate::commands::filter::FilterArgs;
use crate::commands::{CommandContext, Extent, confirm, parse_duration, parse_id, short_id, watch};
use crate::complete;
use crate::error::{Exit, Failure};
use crate::output::{TextTable, Tone, age, count};
use crate::text::one_line;

/// How often progress is looked at.
const LOOK: Duration = Duration::from_millis(500);

/// Commands.
#[derive(Debug, Subcommand)]
pub(crate) enum RolloutCommand {
    /// Rebuild, check or delete appliances, or change their image, a few at a time
    ///
    /// The rollout goes on when this command ends, and under the next leader.
    Start(Box<StartArgs>),
    /// List rollouts
    List {
        /// Print each change, one line each, until interrupted
        #[arg(short, long)]
        watch: bool,
    },
    /// Show how far a rollout is
    Get(NamedArgs),
    /// Wait until a rollout has ended or stopped
    Wait(NamedArgs),
    /// Begin nothing more for now
    Pause(OrderArgs),
    /// Go on after a pause, or after too many failures, which are then counted anew
    Resume(OrderArgs),
    /// Begin nothing more, ever
    Abort(OrderArgs),
    /// Give appliances back the images that they had before
    Rollback(OrderArgs),
}

/// What is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ActionArg {
    /// Replace every instance
    Rebuild,
    /// Change the image to --image, which replaces every instance
    SetImage,
    /// Probe every instance
    Check,
    /// Remove
    Delete,
}

/// Arguments of `start`.
#[derive(Args, Debug)]
pub(crate) struct StartArgs {
    /// What is done to each appliance
    action: ActionArg,
    #[command(flatten)]
    filter: FilterArgs,
    /// All appliances, where nothing else selects some
    #[arg(long)]
    all: bool,
    /// The new image, for set-image
    #[arg(long, required_if_eq("action", "set-image"))]
    image: Option<String>,
    /// Begin another appliance while fewer than so many of the selection are unavailable
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    max_unavailable: u32,
    /// Stop once so many have failed; 0 is never
    #[arg(long, value_name = "N", default_value_t = 1)]
    max_failures: u32,
    /// Appliances that go first, alone; one of them that fails stops it, and images go back
    #[arg(long, value_name = "N", default_value_t = 0)]
    canary: u32,
    /// Waves after the canary, by where each ends in percent, such as 10,50,100
    #[arg(long, value_name = "PERCENT", value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..=100))]
    waves: Vec<u32>,
    /// How long an appliance may take
    #[arg(long, value_name = "DURATION", default_value = "10m", value_parser = parse_duration)]
    item_timeout: Duration,
    /// Leave images as they are where the canary fails
    #[arg(long)]
    keep_failed_canary: bool,
    /// Also what a source manages
    #[arg(long)]
    force: bool,
    /// Reason, shown to other operators
    #[arg(long, default_value = "", hide_default_value = true)]
    reason: String,
    /// UUID of the rollout; a command that is repeated with the same one starts no second rollout
    #[arg(long, value_parser = parse_id)]
    id: Option<String>,
    /// Return as soon as the rollout is stored
    #[arg(long)]
    no_wait: bool,
    /// Do not ask for confirmation
    #[arg(short, long)]
    yes: bool,
}

/// Arguments of commands about one rollout.
#[derive(Args, Debug)]
pub(crate) struct NamedArgs {
    /// Id, or how it begins
    #[arg(add = complete::rollouts())]
    id: String,
}

/// Arguments of commands that change one rollout.
#[derive(Args, Debug)]
pub(crate) struct OrderArgs {
    #[command(flatten)]
    named: NamedArgs,
    /// Reason, for the audit trail
    #[arg(long, default_value = "", hide_default_value = true)]
    reason: String,
}

/// Runs the command.
pub(crate) async fn run(context: &CommandContext, command: &RolloutCommand) -> Result<(), Failure> {
    use crate::client::RolloutOrder as Order;
    let (args, order) = match command {
        RolloutCommand::Start(args) => return start(context, args).await,
        RolloutCommand::List { watch: true } => return watch_list(context).await,
        RolloutCommand::List { watch: false } => return list(context).await,
        RolloutCommand::Get(args) => {
            let rollout = context.client.rollout(&find(context, &args.id).await?.id).await?;
            return show(context, &rollout);
        }
        RolloutCommand::Wait(args) => {
            let rollout = find(context, &args.id).await?;
            return follow(context, rollout).await;
        }
        RolloutCommand::Pause(args) => (args, Order::Pause),
        RolloutCommand::Resume(args) => (args, Order::Resume),
        RolloutCommand::Abort(args) => (args, Order::Abort),
        RolloutCommand::Rollback(args) => (args, Order::Rollback),
    };
    let found = find(context, &args.named.id).await?;
    let rollout = context.client.order_rollout(&found.id, order, &args.reason).await?;
    show(context, &rollout)
}

async fn start(context: &CommandContext, args: &StartArgs) -> Result<(), Failure> {
    let (cluster, context) = &context.identified().await?;
    let filter = args.filter.filter(context.ui.tenant.as_ref())?;
    let selected = context.client.count(filter.clone()).await?;
    let (what, action) = match args.action {
        ActionArg::Rebuild => ("rebuild", v1::RolloutAction::Rebuild),
        ActionArg::SetImage => ("change the image of", v1::RolloutAction::SetImage),
        ActionArg::Check => ("check", v1::RolloutAction::Check),
        ActionArg::Delete => ("delete", v1::RolloutAction::Delete),
    };
    if action != v1::RolloutAction::Check {
        let most = args.max_unavailable;
        let question = format!("{what} {} in {cluster}, {most} at a time?", count(selected, "appliance"));
        confirm(&question, Extent::Found, args.yes).await?;
    }
    let request = v1::StartRolloutRequest {
        id: args.id.clone().unwrap_or_else(request_id),
        action: action.into(),
        image: args.image.clone().unwrap_or_default(),
        filter: Some(filter),
        all: args.all,
        policy: Some(v1::RolloutPolicy {
            max_unavailable: args.max_unavailable,
            max_failures: Some(args.max_failures),
            canary: args.canary,
            waves: args.waves.clone(),
            item_timeout: Some(duration_to_wire(args.item_timeout)),
            keep_failed_canary: args.keep_failed_canary,
        }),
        force: args.force,
        reason: args.reason.clone(),
    };
    let rollout = context.client.start_rollout(request).await?;
    if args.no_wait {
        return show(context, &rollout);
    }
    context.ui.note(&format!("rollout {} is started; it goes on when this command ends", short_id(&rollout.id)));
    follow(context, rollout).await
}

/// Follows a rollout until it has ended or stopped.
async fn follow(context: &CommandContext, mut rollout: v1::Rollout) -> Result<(), Failure> {
    // A rollout takes as long as it takes; only who says so waits less.
    let deadline = context.timeout.map(|timeout| Instant::now() + timeout);
    let bar = context.ui.bar(rollout.total);
    while goes_on(&rollout) && deadline.is_none_or(|deadline| Instant::now() < deadline) {
        bar.set_position(ended(&rollout));
        bar.set_message(progress(&rollout));
        sleep(LOOK).await;
        rollout = context.client.rollout(&rollout.id).await?;
    }
    bar.finish_and_clear();
    show(context, &rollout)?;
    let id = short_id(&rollout.id);
    match rollout.state() {
        v1::RolloutState::Completed if rollout.failed == 0 => Ok(()),
        v1::RolloutState::Completed => Err(Failure::failed(format!("{} failed", count(rollout.failed, "appliance")))),
        _ if goes_on(&rollout) => {
            Err(Failure::failed(format!("rollout {id} goes on; wait with `rugctl rollout wait {id}`")))
        }
        state => Err(Failure::failed(format!("rollout {id} is {}", state_name(state)))),
    }
}

/// Whether something follows by itself.
fn goes_on(rollout: &v1::Rollout) -> bool {
    matches!(rollout.state(), v1::RolloutState::Running | v1::RolloutState::RollingBack)
}

fn ended(rollout: &v1::Rollout) -> u64 {
    rollout.done + rollout.failed + rollout.skipped + rollout.returned
}

fn progress(rollout: &v1::Rollout) -> String {
    let mut text = format!("{} under way", rollout.begun);
    if rollout.failed > 0 {
        let _ = write!(text, ", {} failed", rollout.failed);
    }
    if rollout.waves > 1 {
        let _ = write!(text, ", wave {} of {}", rollout.wave, rollout.waves);
    }
    if !rollout.waits.is_empty() {
        let _ = write!(text, "; waits: {}", one_line(&rollout.waits));
    }
    text
}

/// The rollout with this id, or the only one whose id begins so.
async fn find(context: &CommandContext, id: &str) -> Result<v1::Rollout, Failure> {
    // With or without hyphens, as the audit trail has it.
    let plain = |id: &str| id.replace('-', "").to_lowercase();
    let wanted = plain(id);
    let all = context.client.rollouts().await?;
    let mut found: Vec<_> = all.into_iter().filter(|rollout| plain(&rollout.id).starts_with(&wanted)).collect();
    match (found.pop(), found.len()) {
        (None, _) => Err(Failure::new(Exit::NotFound, format!("there is no rollout {}", one_line(id)))),
        (Some(rollout), 0) => Ok(rollout),
        (Some(_), others) => {
            Err(Failure::usage(format!("{} rollouts have ids that begin with {}", others + 1, one_line(id))))
        }
    }
}

async fn list(context: &CommandContext) -> Result<(), Failure> {
    let rollouts = context.client.rollouts().await?;
    if context.ui.format.is_structured() {
        return context.ui.print_value(&rollouts.iter().map(Rollout::from).collect::<Vec<_>>());
    }
    if rollouts.is_empty() {
        return context.ui.print("there are no rollouts");
    }
    context.ui.print_table(&table(&rollouts, SystemTime::now()))
}

/// Prints each rollout, and each change of one.
async fn watch_list(context: &CommandContext) -> Result<(), Failure> {
    watch::looks(context, async || {
        let line = |rollout: &v1::Rollout| {
            let (action, state) = (action_text(rollout), state_name(rollout.state()));
            let done = format!("{}/{} done", rollout.done + rollout.returned, rollout.total);
            let note = if rollout.note.is_empty() { &rollout.waits } else { &rollout.note };
            let line = format!(
                "{}  {action}  {state}  {done}, {} failed  {}",
                short_id(&rollout.id),
                rollout.failed,
                one_line(note)
            );
            line.trim_end().to_owned()
        };
        let found = context.client.rollouts().await?;
        Ok(found.iter().map(|rollout| (rollout.id.clone(), line(rollout), Rollout::from(rollout))).collect())
    })
    .await
}

fn table(rollouts: &[v1::Rollout], now: SystemTime) -> TextTable {
    let mut table =
        TextTable::new(&["ID", "ACTION", "SELECTION", "STATE", "DONE", "FAILED", "AGE", "NOTE"]).with_prose(&["NOTE"]);
    for rollout in rollouts {
        let state = state_name(rollout.state());
        let note = if rollout.note.is_empty() { &rollout.waits } else { &rollout.note };
        table.row([
            (short_id(&rollout.id).to_owned(), Tone::Plain),
            (action_text(rollout), Tone::Plain),
            (one_line(&rollout.selection), Tone::Plain),
            (state.to_owned(), tone(rollout)),
            (format!("{}/{}", rollout.done + rollout.returned, rollout.total), Tone::Plain),
            (rollout.failed.to_string(), if rollout.failed > 0 { Tone::Bad } else { Tone::Plain }),
            (age(rollout.start_time.as_ref(), now), Tone::Plain),
            (one_line(note), Tone::Plain),
        ]);
    }
    table
}

fn tone(rollout: &v1::Rollout) -> Tone {
    match rollout.state() {
        v1::RolloutState::Completed => Tone::Good,
        v1::RolloutState::Stopped | v1::RolloutState::RollingBack | v1::RolloutState::RolledBack => Tone::Bad,
        v1::RolloutState::Running | v1::RolloutState::Paused => Tone::Busy,
        v1::RolloutState::Aborted | v1::RolloutState::Unspecified => Tone::Plain,
    }
}

fn show(context: &CommandContext, rollout: &v1::Rollout) -> Result<(), Failure> {
    if context.ui.format.is_structured() {
        return context.ui.print_value(&Rollout::from(rollout));
    }
    let state = context.ui.paint(tone(rollout), state_name(rollout.state()));
    context.ui.print(&described(rollout, &state))
}

fn described(rollout: &v1::Rollout, state: &str) -> String {
    let mut text =
        format!("rollout {}: {} of {}", short_id(&rollout.id), action_text(rollout), one_line(&rollout.selection));
    let _ = write!(text, "\n{state}: {} of {} done", rollout.done + rollout.returned, rollout.total);
    for (number, what) in [
        (rollout.begun, "under way"),
        (rollout.waiting, "waiting"),
        (rollout.failed, "failed"),
        (rollout.skipped, "skipped"),
        (rollout.returned, "back at their former image"),
    ] {
        if number > 0 {
            let _ = write!(text, ", {number} {what}");
        }
    }
    if rollout.waves > 1 {
        let _ = write!(text, "\nwave {} of {}, up to number {}", rollout.wave, rollout.waves, rollout.wave_end);
    }
    for (name, value) in [("note", &rollout.note), ("waits", &rollout.waits), ("reason", &rollout.reason)] {
        if !value.is_empty() {
            let _ = write!(text, "\n{name}: {}", one_line(value));
        }
    }
    for item in &rollout.under_way {
        let _ = write!(text, "\n  {}: {}", one_line(&item.name), one_line(&item.detail));
    }
    for failure in rollout.failures.iter().rev() {
        let _ = write!(text, "\n  failed: {}: {}", one_line(&failure.name), one_line(&failure.detail));
    }
    text
}

fn action_text(rollout: &v1::Rollout) -> String {
    match rollout.action() {
        v1::RolloutAction::Rebuild => "rebuild".to_owned(),
        v1::RolloutAction::SetImage => format!("set-image {}", one_line(&rollout.image)),
        v1::RolloutAction::Check => "check".to_owned(),
        v1::RolloutAction::Delete => "delete".to_owned(),
        v1::RolloutAction::Unspecified => "?".to_owned(),
    }
}

fn state_name(state: v1::RolloutState) -> &'static str {
    match state {
        v1::RolloutState::Running => "running",
        v1::RolloutState::Paused => "paused",
        v1::RolloutState::Stopped => "stopped",
        v1::RolloutState::RollingBack => "rolling back",
        v1::RolloutState::Completed => "completed",
        v1::RolloutState::Aborted => "aborted",
        v1::RolloutState::RolledBack => "rolled back",
        v1::RolloutState::Unspecified => "?",
    }
}

/// A rollout, as it is printed.
#[derive(Debug, Serialize)]
struct Rollout {
    id: String,
    action: String,
    selection: String,
    state: &'static str,
    reason: String,
    by: String,
    start_time: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    end_time: Option<String>,
    note: String,
    waits: String,
    total: u64,
    waiting: u64,
    begun: u64,
    done: u64,
    failed: u64,
    skipped: u64,
    returned: u64,
    wave: u32,
    waves: u32,
    under_way: Vec<Item>,
    failures: Vec<Item>,
}

#[derive(Debug, Serialize)]
struct Item {
    appliance: String,
    name: String,
    detail: String,
}

impl From<&v1::Rollout> for Rollout {
    fn from(rollout: &v1::Rollout) -> Self {
        let items = |items: &[v1::RolloutAppliance]| {
            let item = |item: &v1::RolloutAppliance| Item {
                appliance: item.appliance.clone(),
                name: item.name.clone(),
                detail: item.detail.clone(),
            };
            items.iter().map(item).collect()
        };
        Self {
            id: rollout.id.clone(),
            action: action_text(rollout),
            selection: rollout.selection.clone(),
            state: state_name(rollout.state()),
            reason: rollout.reason.clone(),
            by: rollout.by.clone(),
            start_time: rollout.start_time.map(|at| at.to_string()),
            end_time: rollout.end_time.map(|at| at.to_string()),
            note: rollout.note.clone(),
            waits: rollout.waits.clone(),
            total: rollout.total,
            waiting: rollout.waiting,
            begun: rollout.begun,
            done: rollout.done,
            failed: rollout.failed,
            skipped: rollout.skipped,
            returned: rollout.returned,
            wave: rollout.wave,
            waves: rollout.waves,
            under_way: items(&rollout.under_way),
            failures: items(&rollout.failures),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rollout_is_described_with_what_keeps_it() {
        let failure = v1::RolloutAppliance {
            name: "demo/web-3".into(),
            detail: "exit status 1".into(),
            ..v1::RolloutAppliance::default()
        };
        let rollout = v1::Rollout {
            id: "6f1c9a52-0000-4000-8000-000000000000".into(),
            action: v1::RolloutAction::Rebuild.into(),
            state: v1::RolloutState::Stopped.into(),
            selection: "tenant demo".into(),
            note: "20 failed, and 20 are too many".into(),
            total: 100,
            done: 40,
            failed: 20,
            waiting: 40,
            wave: 2,
            waves: 3,
            wave_end: 60,
            failures: vec![failure],
            ..v1::Rollout::default()
        };
        assert_eq!(
            described(&rollout, "stopped"),
            "rollout 6f1c9a52: rebuild of tenant demo\nstopped: 40 of 100 done, 40 waiting, 20 failed\n\
             wave 2 of 3, up to number 60\nnote: 20 failed, and 20 are too many\n  failed: demo/web-3: exit status 1"
        );
        assert!(!goes_on(&rollout));
    }
}
