//! Hands off: what rules come to for each appliance, who is told, and what whoever set a rule is answered
//! (docs/protocol.md, Hands off).
//!
//! Two things are kept with each row: the *mode* that is in force for the appliance, of which the newest edition is told to
//! its holder, and the *quiet* word of the holder that it keeps to an edition. Whether a rule has taken hold is computed
//! from these and from the hand-off's state, and nothing about it is remembered: a leader that was asked a moment ago
//! and one that begins say the same.

use std::fmt;
use std::time::Duration;

use common::mode::{ModeRule, Quiet};
use common::mutant::{self, Mutant};
use common::session::OwnedGrant;
use common::{ApplianceId, Life, Mode, ModeId, Timestamp, WorkerId};

use super::{Action, Machine, WRITE_RETRY};
use crate::grants::Granted;
use crate::health::SessionState;
use crate::modes::{ModeOp, RuleStage, StoredMode};
use crate::outbox::OutboxEntry;
use crate::slot::Slot;
use crate::table::TableRow;

/// Names one request about a rule, so that its answer finds the caller.
pub type ModeNumber = u64;

/// What became of a request about a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModeOutcome {
    /// The store has the rule. How far it has taken hold is asked by [`Machine::mode_progress`].
    InForce,
    /// The store does not have the rule any more.
    Cleared,
    /// There is no such rule: it was cleared, or is over.
    Unknown,
    /// There is another rule of this name.
    OtherRule,
    /// There are as many rules as there may be.
    TooMany,
    /// A request about the same rule is being stored: another try makes sense soon.
    BeingStored,
    /// The store cannot be written now; nothing was changed.
    NotStored,
}

/// Why a rule has not taken hold of an appliance yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModeWait {
    /// Its owner was told, and has not said yet that its gate is shut and its running step has ended.
    Owner(WorkerId),
    /// Its owner cannot be reached, and may act for so long if no heartbeat of it is seen.
    Unreachable(WorkerId, Option<Duration>),
    /// The version of its owner does not know debug modes: it acts until it is drained, or evicted.
    Version(WorkerId),
    /// This worker acts on it against the table.
    Conflict(WorkerId),
    /// The lease of this worker is over, and the store does not have that yet: the next leader could let its life go on.
    NotStored(WorkerId),
    /// A new leader does not know yet what these workers own, or (none) which there are.
    Awaited(Vec<WorkerId>),
}

impl fmt::Display for ModeWait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Owner(worker) => write!(f, "{worker} has not said yet that it keeps its hands off; a step may run"),
            Self::Unreachable(worker, None) => write!(f, "{worker} cannot be reached and has a lease"),
            Self::Unreachable(worker, Some(left)) => {
                write!(
                    f,
                    "{worker} cannot be reached; its lease ends in {:.1} s if no heartbeat comes",
                    left.as_secs_f64()
                )
            }
            Self::Version(worker) => write!(f, "{worker} owns it, and its version cannot keep hands off: drain it"),
            Self::Conflict(worker) => write!(f, "{worker} acts on it against the table"),
            Self::NotStored(worker) => write!(f, "that the lease of {worker} is over is being stored"),
            Self::Awaited(workers) if workers.is_empty() => f.write_str("a new leader is reading which workers live"),
            Self::Awaited(workers) => {
                let names: Vec<&str> = workers.iter().take(5).map(WorkerId::as_str).collect();
                write!(f, "a new leader waits for {} to say what they own", names.join(", "))
            }
        }
    }
}

/// How an appliance stands to the rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HandsOff {
    /// No rule covers it.
    On,
    /// One does, and may not have taken hold yet.
    Waits(ModeWait),
    /// No call that changes the world starts for it any more. One that had started, and that no token fences, may take
    /// effect for so long from now, at most.
    Off(Duration),
}

/// How far a rule has taken hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ModeProgress {
    /// Appliances that it covers.
    pub covered: usize,
    /// Those about which nothing is changed any more although calls from before may still take effect, and for how long.
    pub late: Vec<(ApplianceId, Duration)>,
    /// Those of which that cannot be said yet, and why. With none of them whoever set the rule is answered.
    pub waiting: Vec<(ApplianceId, ModeWait)>,
}

impl Machine {
    /// An operator sets a rule. The same one again changes nothing.
    pub(super) fn set_mode(&mut self, now: Timestamp, mode: StoredMode, number: ModeNumber) {
        let id = mode.rule.id;
        let outcome = match self.modes.get(id) {
            None if self.modes.is_full() => ModeOutcome::TooMany,
            None => {
                self.writes.mode(ModeOp::Set(mode.rule.clone()), Some(number));
                return self.modes.add(now, mode, RuleStage::Setting);
            }
            Some(standing) if standing.rule.scope != mode.rule.scope => ModeOutcome::OtherRule,
            Some(standing) if standing.stage == RuleStage::InForce => ModeOutcome::InForce,
            Some(_) => ModeOutcome::BeingStored,
        };
        self.out.push(Action::Mode(number, outcome));
    }

    /// An operator clears a rule.
    pub(super) fn clear_mode(&mut self, id: ModeId, number: ModeNumber) {
        let outcome = match self.modes.get(id).map(|standing| standing.stage) {
            None => ModeOutcome::Unknown,
            Some(RuleStage::InForce) => return self.end_mode(id, Some(number)),
            Some(RuleStage::Setting | RuleStage::Clearing) => ModeOutcome::BeingStored,
        };
        self.out.push(Action::Mode(number, outcome));
    }

    fn end_mode(&mut self, id: ModeId, number: Option<ModeNumber>) {
        self.modes.set_stage(id, RuleStage::Clearing);
        self.writes.mode(ModeOp::Clear(id), number);
    }

    /// Clears rules whose time is over.
    pub(super) fn expire_modes(&mut self, now: Timestamp) {
        for id in self.modes.expired(now) {
            self.end_mode(id, None);
        }
    }

    /// The store has a change of the rules, or surely does not.
    pub(super) fn mode_written(&mut self, now: Timestamp, id: ModeId, number: Option<ModeNumber>, durable: bool) {
        let Some(stage) = self.modes.get(id).map(|standing| standing.stage) else { return };
        let outcome = match (stage, durable) {
            (RuleStage::Setting, true) => {
                self.modes.set_stage(id, RuleStage::InForce);
                ModeOutcome::InForce
            }
            (RuleStage::Clearing, true) => {
                self.modes.remove(id);
                ModeOutcome::Cleared
            }
            (RuleStage::Setting, false) => {
                self.modes.remove(id);
                ModeOutcome::NotStored
            }
            (RuleStage::Clearing, false) => {
                self.modes.not_cleared(id, now + WRITE_RETRY);
                ModeOutcome::NotStored
            }
            (RuleStage::InForce, _) => return,
        };
        if durable {
            let slots: Vec<Slot> = self.table.iter().map(|(slot, _)| slot).collect();
            slots.into_iter().for_each(|slot| self.refresh_mode(slot));
            if !self.sessions.without_modes().is_empty() {
                self.exclude_versions();
            }
            self.out.push(Action::ModesChanged);
        }
        if let Some(number) = number {
            self.out.push(Action::Mode(number, outcome));
        }
    }

    /// Looks whether hands are off an appliance, after its owner, its labels or the rules changed. Only a change of that
    /// makes another edition, of which its holder is told.
    pub(super) fn refresh_mode(&mut self, slot: Slot) {
        let Some(row) = self.table.get(slot) else { return };
        let owner = row.state.granted_to();
        let hands_off = self.modes.cover(row.id, &row.subject, owner.as_ref().map(|life| &life.worker));
        if row.mode.hands_off != hands_off {
            self.change_mode(slot, hands_off);
        }
    }

    /// Whether rules cover an appliance, asked of them all.
    pub(crate) fn is_covered(&self, slot: Slot) -> bool {
        let Some(row) = self.table.get(slot) else { return false };
        let owner = row.state.granted_to().map(|life| life.worker);
        self.modes.cover(row.id, &row.subject, owner.as_ref())
    }

    /// Gives an appliance another edition of its mode.
    fn change_mode(&mut self, slot: Slot, hands_off: bool) {
        let edition = self.modes.next_edition();
        let Some(row) = self.table.get_mut(slot) else { return };
        row.mode = Mode::new(edition, hands_off);
        let (id, holder) = (row.id, row.state.holder().cloned());
        if let Some(holder) = holder {
            self.tell_mode(slot, &holder);
        }
        self.out.push(Action::Assigned(id));
    }

    fn tell_mode(&mut self, slot: Slot, holder: &Granted) {
        self.tell(&holder.life(), slot, OutboxEntry::Mode(holder.token), None);
    }

    /// A life says in its `Hello` in which mode it has a grant that stands. Where that is not so any more, or was not
    /// acknowledged in this term, it is told again.
    pub(super) fn compare_mode(&mut self, slot: Slot, held: &OwnedGrant) {
        let Some(row) = self.table.get(slot) else { return };
        let Some(holder) = row.state.holder().cloned() else { return };
        let mode = row.mode;
        if held.mode.edition > mode.edition && held.mode != Mode::default() {
            // Of a store that was put back to an older copy. What is told has to be above it.
            self.modes.skip_past(held.mode.edition);
            return self.change_mode(slot, mode.hands_off);
        }
        let (differs, is_quiet) = (held.mode.hands_off != mode.hands_off, row.kept_quiet().is_some());
        if differs && let Some(row) = self.table.get_mut(slot) {
            // What it said before is not true of now.
            row.quiet = None;
        }
        if differs || (mode.hands_off && !is_quiet) {
            self.tell_mode(slot, &holder);
        }
    }

    /// A life says that it keeps its hands off one of its grants.
    pub(super) fn mode_quiet(&mut self, life: &Life, quiet: Quiet) {
        let granted = self.granted_to(life, quiet.token);
        let Some(slot) = self.table.slot(quiet.appliance) else { return };
        let fence_delay = self.most_fence_delay(slot, life);
        let Some(row) = self.table.get_mut(slot).filter(|row| row.state.holder() == Some(&granted)) else { return };
        let is_newer =
            row.quiet.as_deref().is_none_or(|known| (known.token, known.edition) <= (quiet.token, quiet.edition));
        if self.modes.has_given(quiet.edition) && is_newer {
            row.quiet = Some(Box::new(Quiet { fence_delay: quiet.fence_delay.min(fence_delay), ..quiet }));
            self.out.push(Action::ModesChanged);
        }
    }

    /// How an appliance stands to the rules; `None` for one that is not known.
    #[must_use]
    pub fn hands_off(&self, now: Timestamp, id: ApplianceId) -> Option<HandsOff> {
        let slot = self.table.slot(id)?;
        Some(self.hands_off_at(now, slot, self.table.get(slot)?))
    }

    pub(super) fn hands_off_at(&self, now: Timestamp, slot: Slot, row: &TableRow) -> HandsOff {
        if !row.mode.hands_off {
            return HandsOff::On;
        }
        if let Some(by) = self.conflicts.owner(slot) {
            return HandsOff::Waits(ModeWait::Conflict(by.worker.clone()));
        }
        let Some(holder) = row.state.holder() else {
            let awaited = self.pacing.due.awaited(now);
            if !self.members.has_read() || !awaited.is_empty() {
                return HandsOff::Waits(ModeWait::Awaited(awaited));
            }
            // The store may yet name one of these as the owner, with a gate that opens when its lease goes on.
            if let Some(ending) = self.writes.ending.keys().next() {
                return HandsOff::Waits(ModeWait::NotStored(ending.worker.clone()));
            }
            // What is being granted is told with the grant; one that would not understand is told in vain.
            let grantee = row.state.granted_to().filter(|life| !self.sessions.knows_modes(life));
            return match grantee {
                Some(life) => HandsOff::Waits(self.why_not_told(now, &life)),
                None => HandsOff::Off(row.fence_delay()),
            };
        };
        if let Some(late) = row.kept_quiet() {
            return HandsOff::Off(late);
        }
        let life = holder.life();
        if mutant::is(Mutant::ModeAnsweredUnreached) && self.sessions.state(&life) == SessionState::None {
            return HandsOff::Off(Duration::ZERO);
        }
        HandsOff::Waits(self.why_not_told(now, &life))
    }

    /// Why a life that was or is to be told has not said that it keeps to it.
    fn why_not_told(&self, now: Timestamp, life: &Life) -> ModeWait {
        let worker = life.worker.clone();
        match self.sessions.state(life) {
            SessionState::None => ModeWait::Unreachable(worker, self.membership.remaining(now, life)),
            SessionState::Settled if !self.sessions.knows_modes(life) => ModeWait::Version(worker),
            SessionState::Settled | SessionState::Unsettled => ModeWait::Owner(worker),
        }
    }

    /// Rules that the store has.
    pub fn mode_rules(&self) -> impl Iterator<Item = &ModeRule> {
        self.modes.in_force()
    }

    /// How far a rule has taken hold, as the table has it now; `None` for one that the store does not have.
    #[must_use]
    pub fn mode_progress(&self, now: Timestamp, id: ModeId) -> Option<ModeProgress> {
        let standing = self.modes.get(id).filter(|standing| standing.stage != RuleStage::Setting)?;
        let mut progress = ModeProgress::default();
        for (slot, row) in self.table.iter() {
            let owner = row.state.granted_to();
            if !standing.rule.scope.covers(row.id, &row.subject, owner.as_ref().map(|life| &life.worker)) {
                continue;
            }
            progress.covered += 1;
            match self.hands_off_at(now, slot, row) {
                HandsOff::Waits(why) => progress.waiting.push((row.id, why)),
                HandsOff::Off(late) if !late.is_zero() => progress.late.push((row.id, late)),
                HandsOff::Off(_) | HandsOff::On => {}
            }
        }
        Some(progress)
    }

    /// Whether a rule waits for this life, which has no stream.
    pub(super) fn a_mode_waits_on(life: &Life, row: &TableRow) -> bool {
        row.mode.hands_off && row.kept_quiet().is_none() && row.state.holder().is_some_and(|holder| holder.is_of(life))
    }

    /// Workers that know no debug modes, and that would own an appliance under a rule.
    pub(super) fn versions_excluded(&self, slot: Slot) -> impl Iterator<Item = &WorkerId> {
        let row = self.table.get(slot);
        let covers =
            move |worker: &&WorkerId| row.is_some_and(|row| self.modes.cover(row.id, &row.subject, Some(worker)));
        self.sessions.without_modes().iter().filter(covers)
    }

    /// Has the planner give no such worker what is covered, after rules or versions changed.
    pub(super) fn exclude_versions(&mut self) {
        let slots: Vec<Slot> = self.table.iter().map(|(slot, _)| slot).collect();
        slots.into_iter().for_each(|slot| self.tell_excluded(slot));
        // What was kept from them they may have now.
        self.pacing.due.drifted();
    }

    /// A life has answered its welcome, whose worker knows debug modes or does not.
    pub(super) fn note_version(&mut self, worker: &WorkerId, knows_modes: bool) {
        if self.sessions.note_version(worker, knows_modes) {
            self.exclude_versions();
        }
    }
}
