//! The status line of `rugctl up`: workers, appliances by phase, moves in flight.
//!
//! On a terminal it is one line that is updated; elsewhere a line is printed for each change.

use std::time::Duration;

use common::status::Phase;
use futures::stream::{self, Stream};
use indicatif::ProgressBar;
use proto::admin::v1;
use tokio::time::sleep;
use tonic::Streaming;

use crate::client::{AdminClient, Backoff};
use crate::error::Failure;
use crate::output::{Ui, count};
use crate::text::one_line;

/// Pause before a watch that could not be opened is retried.
const TRY_AGAIN: Duration = Duration::from_secs(1);

/// One-line summary of the cluster.
pub(crate) fn summary(status: &v1::ClusterStatus) -> String {
    let healthy = number(&status.workers, "healthy");
    // One that left in good order is missed by nobody.
    let known: u64 = status.workers.iter().filter(|(health, _)| *health != "left").map(|(_, n)| n).sum();
    let mut text =
        format!("{healthy} of {} healthy, {}", count(known, "worker"), count(status.appliances, "appliance"));
    let phases: Vec<_> = Phase::ALL
        .iter()
        .map(|phase| (phase.name().to_lowercase(), number(&status.phases, phase.name())))
        .filter(|(_, n)| *n > 0)
        .map(|(name, n)| format!("{n} {name}"))
        .collect();
    if !phases.is_empty() {
        text = format!("{text}: {}", phases.join(", "));
    }
    if status.moves_in_flight > 0 {
        text = format!("{text}, {} under way", count(status.moves_in_flight, "move"));
    }
    if let Some(frozen) = &status.frozen {
        text = format!("{text}, frozen: {}", one_line(&frozen.reason));
    } else if status.paused.is_some() {
        text = format!("{text}, paused");
    } else if !status.waiting.is_empty() {
        text = format!("{text}, waiting: {}", one_line(&status.waiting));
    }
    text
}

/// State of the cluster whenever it changes, or the error of the watch, at most once a second.
pub(crate) fn states(client: AdminClient) -> impl Stream<Item = Result<v1::ClusterStatus, Failure>> {
    let start = (client, None::<Streaming<v1::ClusterStatus>>, Backoff::new());
    stream::unfold(start, |(client, open, mut backoff)| async move {
        let mut open = match open {
            Some(open) => open,
            None => match client.watch_cluster().await {
                Ok(open) => open,
                Err(failure) => {
                    sleep(TRY_AGAIN).await;
                    return Some((Err(failure), (client, None, backoff)));
                }
            },
        };
        match open.message().await {
            Ok(Some(status)) => Some((Ok(status), (client, Some(open), Backoff::new()))),
            ended => {
                sleep(backoff.next()).await;
                let failure =
                    ended.err().map_or_else(|| Failure::failed("the watch of the cluster ended"), Failure::from);
                Some((Err(failure), (client, None, backoff)))
            }
        }
    })
}

/// Number of appliances that have running instances.
pub(crate) fn running(status: &v1::ClusterStatus) -> u64 {
    let idle: u64 = [Phase::Down, Phase::Error, Phase::Gone].iter().map(|p| number(&status.phases, p.name())).sum();
    let all: u64 = status.phases.values().sum();
    all.saturating_sub(idle)
}

fn number(map: &std::collections::HashMap<String, u64>, name: &str) -> u64 {
    map.iter().filter(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, n)| n).sum()
}

/// Displays the summary.
#[derive(Debug)]
pub(crate) struct StatusLine {
    ui: Ui,
    bar: ProgressBar,
    last: String,
}

impl StatusLine {
    /// An empty line.
    pub(crate) fn new(ui: &Ui) -> Self {
        Self { ui: ui.clone(), bar: ui.spinner(), last: String::new() }
    }

    /// Shows this text, if it differs from the current one.
    pub(crate) fn set(&mut self, text: String) {
        if text == self.last {
            return;
        }
        if self.ui.progress {
            self.bar.set_message(text.clone());
        } else {
            self.ui.note(&text);
        }
        self.last = text;
    }

    /// Prints a line that stays on the screen.
    pub(crate) fn print(&self, text: &str) {
        self.bar.suspend(|| self.ui.note(text));
    }
}

impl Drop for StatusLine {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status() -> v1::ClusterStatus {
        v1::ClusterStatus {
            workers: [("healthy".into(), 2), ("dead".into(), 1)].into(),
            appliances: 12,
            phases: [("Configured".into(), 9), ("Booting".into(), 2), ("Error".into(), 1)].into(),
            moves_in_flight: 1,
            ..v1::ClusterStatus::default()
        }
    }

    #[test]
    fn the_summary_shows_phases_in_lifecycle_order() {
        assert_eq!(
            summary(&status()),
            "2 of 3 workers healthy, 12 appliances: 2 booting, 9 configured, 1 error, 1 move under way"
        );
        let frozen = v1::Frozen { reason: "3 of 4 vanished".into(), ..v1::Frozen::default() };
        let still =
            v1::ClusterStatus { frozen: Some(frozen), waiting: "frozen".into(), ..v1::ClusterStatus::default() };
        assert_eq!(summary(&still), "0 of 0 workers healthy, 0 appliances, frozen: 3 of 4 vanished");
        let empty = v1::ClusterStatus { waiting: "no workers".into(), ..v1::ClusterStatus::default() };
        assert_eq!(summary(&empty), "0 of 0 workers healthy, 0 appliances, waiting: no workers");
    }

    #[test]
    fn failed_appliances_do_not_count_as_running() {
        assert_eq!(running(&status()), 11);
    }
}
