//! `rugctl placement`: pause and resume placement.

use std::fmt::Write as _;
use std::time::SystemTime;

use clap::Subcommand;
use proto::admin::v1;

use crate::commands::CommandContext;
use crate::error::Failure;
use crate::output::{age, one_line, view as shown};

/// Commands.
#[derive(Debug, Subcommand)]
pub(crate) enum PlacementCommand {
    /// Pause placement: nothing is placed, moved or released until `resume`
    Pause {
        /// Reason, shown to other operators
        #[arg(long, default_value = "", hide_default_value = true)]
        reason: String,
    },
    /// Resume placement, after `pause` or after too many workers vanished at once
    Resume,
}

/// Runs the command.
pub(crate) async fn run(context: &CommandContext, command: &PlacementCommand) -> Result<(), Failure> {
    let state = match command {
        PlacementCommand::Pause { reason } => context.client.pause(reason).await?,
        PlacementCommand::Resume => context.client.resume().await?,
    };
    if context.ui.format.is_structured() {
        return context.ui.print_value(&shown::Placement::from(state));
    }
    context.ui.print(&describe(&state, SystemTime::now()))
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
    format!("{reason} (by {}, {} ago)", one_line(&paused.by), age(paused.since.as_ref(), now))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

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
        let paused = v1::Paused { reason: String::new(), since, by: "10.0.0.1:5".into() };
        let state = v1::PlacementState { frozen: Some(frozen), paused: Some(paused) };
        assert_eq!(
            describe(&state, now),
            "frozen: 3 of 4 workers vanished within 2s (1m ago); missing: w1, w2 and 1 more\n\
             paused: no reason given (by 10.0.0.1:5, 1m ago)\n"
        );
    }
}
