//! How long the boots of one appliance take: from the begin of one to the first probe that is answered, or to its end.

use std::time::Duration;

use common::Timestamp;
use worker_core::lifecycle::{LifecycleStep, StepOutcome};

#[derive(Debug)]
struct Boot {
    ordinal: u16,
    attempt: u32,
    began: Timestamp,
}

/// Boots whose instance has not answered yet, at most one per ordinal.
#[derive(Debug, Default)]
pub(super) struct Boots(Vec<Boot>);

/// A boot that is over, for metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct EndedBoot {
    pub(super) outcome: &'static str,
    pub(super) took: Duration,
}

impl Boots {
    fn end(&mut self, now: Timestamp, ordinal: u16, outcome: &'static str) -> Option<EndedBoot> {
        let at = self.0.iter().position(|boot| boot.ordinal == ordinal)?;
        let boot = self.0.swap_remove(at);
        Some(EndedBoot { outcome, took: now.since(boot.began) })
    }

    /// A step begins. Answers with a boot that is given up with it.
    pub(super) fn begins(&mut self, now: Timestamp, step: LifecycleStep) -> Option<EndedBoot> {
        match step {
            LifecycleStep::Boot { ordinal, attempt, .. } => {
                let given_up = self.end(now, ordinal, "replaced");
                self.0.push(Boot { ordinal, attempt, began: now });
                given_up
            }
            LifecycleStep::Destroy { ordinal, attempt } => {
                let is_it = self.0.iter().any(|boot| (boot.ordinal, boot.attempt) == (ordinal, attempt));
                is_it.then(|| self.end(now, ordinal, "replaced")).flatten()
            }
            _ => None,
        }
    }

    /// A step has ended. Answers with a boot that is over with it.
    pub(super) fn ended(&mut self, now: Timestamp, step: LifecycleStep, outcome: &StepOutcome) -> Option<EndedBoot> {
        use StepOutcome::{Answered, Booted, Busy, Failed, Fenced, Refused, Superseded, TimedOut, Vanished};
        match (step, outcome) {
            (LifecycleStep::Boot { .. }, Booted(_)) => None,
            (LifecycleStep::Boot { ordinal, .. } | LifecycleStep::Probe { ordinal }, Vanished(..)) => {
                self.end(now, ordinal, "ended")
            }
            (LifecycleStep::Boot { ordinal, .. }, Failed(_) | Refused(_) | TimedOut) => {
                self.end(now, ordinal, "failed")
            }
            // Nothing was done.
            (LifecycleStep::Boot { ordinal, .. }, Busy(_) | Superseded(_) | Fenced { .. }) => {
                self.end(now, ordinal, "");
                None
            }
            (LifecycleStep::Probe { ordinal }, Answered(_)) => self.end(now, ordinal, "answered"),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use common::status::Details;

    use super::*;

    const fn at(ms: u64) -> Timestamp {
        Timestamp::from_millis(ms)
    }

    const fn boot(attempt: u32) -> LifecycleStep {
        LifecycleStep::Boot { ordinal: 0, attempt, beside: None }
    }

    const PROBE: LifecycleStep = LifecycleStep::Probe { ordinal: 0 };

    fn over(outcome: &'static str, ms: u64) -> Option<EndedBoot> {
        Some(EndedBoot { outcome, took: Duration::from_millis(ms) })
    }

    #[test]
    fn a_boot_lasts_until_the_first_answer() {
        let mut boots = Boots::default();
        let answered = StepOutcome::Answered(Details::default());
        assert_eq!(boots.begins(at(100), boot(1)), None);
        assert_eq!(boots.ended(at(200), PROBE, &StepOutcome::Silent("not yet".into())), None);
        assert_eq!(boots.ended(at(300), LifecycleStep::Probe { ordinal: 1 }, &answered), None, "another instance");
        assert_eq!(boots.ended(at(350), PROBE, &answered), over("answered", 250));
        assert_eq!(boots.ended(at(400), PROBE, &answered), None, "it counts once");
    }

    #[test]
    fn a_boot_without_an_answer_says_what_it_came_to() {
        let mut boots = Boots::default();
        boots.begins(at(0), boot(1));
        assert_eq!(boots.ended(at(5), boot(1), &StepOutcome::Failed("no".into())), over("failed", 5));
        boots.begins(at(10), boot(2));
        assert_eq!(boots.ended(at(30), PROBE, &StepOutcome::Vanished("gone".into(), None)), over("ended", 20));
        boots.begins(at(40), boot(3));
        assert_eq!(boots.begins(at(45), LifecycleStep::Destroy { ordinal: 0, attempt: 2 }), None, "its predecessor");
        assert_eq!(boots.begins(at(50), LifecycleStep::Destroy { ordinal: 0, attempt: 3 }), over("replaced", 10));
        boots.begins(at(60), boot(4));
        assert_eq!(boots.ended(at(61), boot(4), &StepOutcome::Fenced { retry_after: None }), None);
        assert_eq!(boots.begins(at(70), boot(5)), None, "nothing was done before");
    }
}
