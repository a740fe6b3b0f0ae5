//! `rugctl wait`: wait until appliances are as a condition says.

use clap::Args;
use proto::admin::v1;

use crate::commands::CommandContext;
use crate::commands::filter::{Targets, parse_phase};
use crate::error::Failure;
use crate::output::count;
use crate::wait::{Goal, Tracker, settle};

/// Arguments.
#[derive(Args, Debug)]
pub(crate) struct WaitArgs {
    #[command(flatten)]
    targets: Targets,
    /// What to wait for: `configured`, which is phase Configured with the newest change acted on; `phase=PHASE`; `owned`, by a
    /// worker; or `deleted`
    #[arg(long = "for", value_name = "CONDITION", default_value = "configured", value_parser = parse_condition)]
    condition: Condition,
}

/// What is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Condition {
    Configured,
    Phase(v1::Phase),
    Owned,
    Deleted,
}

fn parse_condition(text: &str) -> Result<Condition, String> {
    match text.split_once('=') {
        Some(("phase", phase)) => parse_phase(phase).map(Condition::Phase),
        Some(("condition", name)) => parse_condition(&name.to_lowercase()),
        None if text == "configured" => Ok(Condition::Configured),
        None if text == "owned" => Ok(Condition::Owned),
        None if matches!(text, "deleted" | "delete") => Ok(Condition::Deleted),
        _ => Err("known are configured, phase=PHASE, owned and deleted".to_owned()),
    }
}

impl Condition {
    fn goal(self, appliance: &v1::Appliance) -> Goal {
        match self {
            Self::Configured => Goal::Becomes { phase: v1::Phase::Configured, generation: appliance.generation },
            Self::Phase(phase) => Goal::Becomes { phase, generation: 0 },
            Self::Owned => Goal::Owned,
            Self::Deleted => Goal::Gone,
        }
    }
}

/// Runs `wait`.
///
/// # Errors
/// Exit code 1 when the condition is not met in time or cannot be any more, 4 when what is named does not exist.
pub(crate) async fn run(context: &CommandContext, args: &WaitArgs) -> Result<(), Failure> {
    let (found, _) = args.targets.find(context, args.condition == Condition::Deleted).await?;
    let deleted = args.condition == Condition::Deleted;
    if found.is_empty() && !deleted {
        return Err(Failure::failed("no appliance matches"));
    }
    if !found.is_empty() {
        let tracker = Tracker::new(&context.ui, found.iter().map(|one| (one, args.condition.goal(one))));
        settle(&context.client, &context.ui, tracker, context.wait()).await?;
    }
    if context.ui.format.is_structured() {
        return Ok(());
    }
    context.ui.print(&match found.as_slice() {
        [] => "nothing is there any more".to_owned(),
        [one] => format!("{}: the condition is met", context.ui.label(one)),
        all => format!("{}: the condition is met", count(all.len() as u64, "appliance")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_are_read_as_they_are_written() {
        assert_eq!(parse_condition("configured"), Ok(Condition::Configured));
        assert_eq!(parse_condition("condition=Configured"), Ok(Condition::Configured));
        assert_eq!(parse_condition("phase=Up"), Ok(Condition::Phase(v1::Phase::Up)));
        assert_eq!(parse_condition("delete"), Ok(Condition::Deleted));
        assert!(parse_condition("phase=asleep").expect_err("no phase").contains("down, booting"));
        assert!(parse_condition("happy").is_err() && parse_condition("happy=yes").is_err());
    }
}
