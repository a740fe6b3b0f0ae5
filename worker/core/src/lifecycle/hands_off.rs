//! Hands off: nothing is begun that changes the world; looks and probes go on, and what would have been done is noted
//! (docs/protocol.md, Hands off).
//!
//! The gate refuses such steps whatever happens here. This is so that none is tried again and again, so that nothing is
//! decided now that would be done later (an instance that is silent because somebody works on it is not given up), and so
//! that people see what waits. When hands are on again, what is to be done is decided as a new owner would: from what is
//! wanted then, and from what a new look finds.

use std::collections::VecDeque;
use std::time::Duration;

use common::Timestamp;
use common::mode::{MAX_WOULD_HAVE, WouldHave};

use super::plan::{Choice, Wake};
use super::{Boots, Lifecycle, LifecycleState, LifecycleStep, Waits};

/// How often it is looked at while hands are off: whoever works on it may start and end what they like.
const LOOK_EVERY: Duration = Duration::from_secs(60);

/// Longest reason that is kept, in bytes.
const MAX_REASON: usize = 256;

/// A step that was not begun.
#[derive(Clone, Debug)]
struct Withheld {
    step: Box<str>,
    reason: Box<str>,
    at: Timestamp,
    times: u32,
}

/// Whether hands are off, and what was not done for it. Nothing for most appliances, which are many.
#[derive(Clone, Debug, Default)]
pub(super) struct Hands(Option<Box<HandsNotes>>);

#[derive(Clone, Debug, Default)]
struct HandsNotes {
    off: bool,
    /// When everything is looked at again.
    look_at: Timestamp,
    /// The newest first. It stays when hands are on again, until the next time they are off.
    withheld: VecDeque<Withheld>,
}

impl Hands {
    /// Whether hands are off.
    pub(super) fn are_off(&self) -> bool {
        self.0.as_ref().is_some_and(|notes| notes.off)
    }

    /// Takes in that they are off or on. Returns whether they were off.
    fn set(&mut self, off: bool) -> bool {
        let was_off = self.are_off();
        match (&mut self.0, off) {
            (None, false) => {}
            (Some(notes), true) if notes.off => {}
            (notes, true) => *notes = Some(Box::new(HandsNotes { off, ..HandsNotes::default() })),
            (Some(notes), false) => notes.off = false,
        }
        was_off
    }

    /// Notes a step that is not begun. The same as the one before counts once more and is no news.
    fn withhold(&mut self, now: Timestamp, step: &str, reason: &str) {
        let Some(notes) = &mut self.0 else { return };
        let reason = clipped(reason);
        if let Some(newest) = notes.withheld.front_mut()
            && (&*newest.step, &*newest.reason) == (step, reason)
        {
            newest.at = now;
            newest.times = newest.times.saturating_add(1);
            return;
        }
        notes.withheld.truncate(MAX_WOULD_HAVE - 1);
        notes.withheld.push_front(Withheld { step: step.into(), reason: reason.into(), at: now, times: 1 });
    }

    /// What makes the report another one.
    pub(super) fn shown(&self) -> impl Iterator<Item = (bool, &str, &str)> {
        let notes = self.0.iter();
        notes.flat_map(|notes| {
            let withheld = notes.withheld.iter().map(|one| (notes.off, &*one.step, &*one.reason));
            std::iter::once((notes.off, "", "")).chain(withheld)
        })
    }
}

impl Lifecycle {
    /// Takes it on with hands off, before anything is begun.
    pub fn begin_hands_off(&mut self) {
        self.hands.set(true);
    }

    /// Whether hands are off.
    #[must_use]
    pub fn hands_are_off(&self) -> bool {
        self.hands.are_off()
    }

    /// What would have been done meanwhile, the newest first.
    #[must_use]
    pub fn would_have(&self, now: Timestamp) -> Vec<WouldHave> {
        let one = |withheld: &Withheld| WouldHave {
            step: withheld.step.to_string(),
            reason: withheld.reason.to_string(),
            ago: now.since(withheld.at),
            times: withheld.times,
        };
        self.hands.0.iter().flat_map(|notes| &notes.withheld).map(one).collect()
    }

    /// Takes in that hands are off or on.
    pub(super) fn set_hands_off(&mut self, off: bool) {
        if self.hands.set(off) && !off {
            // Somebody may have done anything meanwhile.
            self.look_anew();
        }
    }

    /// Forgets what was concluded from what was seen, as a new owner has not seen it.
    fn look_anew(&mut self) {
        self.fleet.known = false;
        self.fleet.doomed.clear();
        self.boots = Boots::NONE;
        let Waits { fenced_until, held_until, unanswered_until, .. } = self.waits;
        self.waits = Waits { fenced_until, held_until, unanswered_until, ..Waits::default() };
    }

    /// With hands off: the next look or probe. Notes what would be done instead.
    pub(super) fn next_look(&mut self, wake: &mut Wake, settled: bool) -> Option<Choice> {
        let mut free = Wake::at(wake.now);
        let wanted = if self.goal.desired.deleting {
            (self.fleet.known && settled).then(|| "remove".to_owned())
        } else {
            self.next_repair(&mut free, true).and_then(|choice| choice.change())
        };
        if let Some(step) = wanted {
            self.withhold(wake.now, &step);
        }
        let next = self.next_repair(wake, false);
        if let Some(notes) = &mut self.hands.0
            && next.is_none()
            && wake.due(notes.look_at)
        {
            notes.look_at = wake.now + LOOK_EVERY;
            return Some(Choice::Do(LifecycleStep::Observe));
        }
        next
    }

    /// Notes a step that hands off keep from being begun.
    fn withhold(&mut self, now: Timestamp, step: &str) {
        let trigger = self.reporting.trigger.name();
        let reason = match &self.troubles.last_error {
            Some(error) => error.to_string(),
            None if self.goal.desired.deleting => "it is to be removed".to_owned(),
            None => format!("asked for by: {trigger}"),
        };
        self.hands.withhold(now, step, &reason);
    }

    /// With hands off an instance that would be given up stays, and goes on to be probed.
    pub(super) fn spares(&mut self, now: Timestamp, ordinal: u16, why: &str) -> bool {
        if !self.hands.are_off() {
            return false;
        }
        self.hands.withhold(now, &format!("replace {ordinal}"), why);
        true
    }

    #[cfg(test)]
    pub(super) fn withhold_for_test(&mut self, now: Timestamp, number: u64) {
        self.hands.withhold(now, &format!("step {number}"), "test");
    }

    /// Whether a step runs that changes the world.
    #[must_use]
    pub fn is_changing(&self) -> bool {
        matches!(self.state, LifecycleState::Running { step, .. } if step.changes_the_world())
    }
}

impl Choice {
    /// What it would change, for people; `None` when it changes nothing.
    fn change(&self) -> Option<String> {
        match self {
            Self::Do(step) => step.changes_the_world().then(|| step.to_string()),
            Self::Boot(ordinal) => Some(format!("boot {ordinal}")),
            Self::Replace(ordinal) | Self::Succeed(ordinal) => Some(format!("replace {ordinal}")),
        }
    }
}

/// As much of a reason as is kept.
fn clipped(reason: &str) -> &str {
    let end = (0..=MAX_REASON.min(reason.len())).rev().find(|&end| reason.is_char_boundary(end)).unwrap_or_default();
    &reason[..end]
}
