//! What waits to be told to the leader, in bounded messages: answers first, then the newest status of each appliance.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use common::session::{Ack, AnnouncedStep, Declined, GrantRef, OwnedDigest, Release, Report, ToCoordinator};
use common::status::Status;
use common::{ApplianceId, Timestamp, Token};
use proto::convert::MAX_ENTRIES_PER_MESSAGE;

/// Statuses in one message. Each carries its instances and perhaps a long error, so fewer than of small entries.
const REPORTS_PER_MESSAGE: usize = 200;

/// How often the digest of what is owned is sent when there is nothing else to report. It bounds for how long a grant that
/// one side lost stays unnoticed, and costs a message of 50 bytes.
const AUDIT: Duration = Duration::from_secs(5);

#[derive(Debug)]
enum GrantAnswer {
    Granted(GrantRef),
    Declined(Declined),
    Released(Release),
    Removed(GrantRef),
}

/// What waits to be told.
#[derive(Debug, Default)]
pub(super) struct PendingReports {
    /// That this worker is about to stop, and whether it hands back; said before everything else, so that nothing comes
    /// back that is given back.
    drain: Option<bool>,
    /// One per grant that came, ended or was refused, so bounded by what is held.
    answers: VecDeque<GrantAnswer>,
    /// Steps of suspects that are to begin, and announced ones that are over: the newest of each appliance, so bounded by
    /// what is held also while there is no stream.
    begins: BTreeMap<ApplianceId, AnnouncedStep>,
    done: BTreeMap<ApplianceId, AnnouncedStep>,
    /// Version after the newest delta whose commands the runner took.
    version: u64,
    /// `version` was not told yet.
    applied: bool,
    /// The digest of what is owned is to be sent, whether or not there is anything to report.
    digest: bool,
    /// When it is sent again.
    audit_at: Timestamp,
    reports: super::Waiting,
}

impl PendingReports {
    pub(super) fn granted(&mut self, appliance: ApplianceId, token: Token) {
        self.answers.push_back(GrantAnswer::Granted(GrantRef::new(appliance, token)));
    }

    pub(super) fn decline(&mut self, appliance: ApplianceId, token: Token, reason: String) {
        self.answers.push_back(GrantAnswer::Declined(Declined { appliance, token, reason }));
    }

    pub(super) fn released(&mut self, release: Release) {
        self.answers.push_back(GrantAnswer::Released(release));
    }

    pub(super) fn removed(&mut self, grant: GrantRef) {
        self.answers.push_back(GrantAnswer::Removed(grant));
    }

    pub(super) fn begins(&mut self, step: AnnouncedStep) {
        self.begins.insert(step.appliance, step);
    }

    pub(super) fn done(&mut self, step: AnnouncedStep) {
        if self.begins.get(&step.appliance).is_some_and(|begins| begins.number <= step.number) {
            self.begins.remove(&step.appliance);
        }
        self.done.insert(step.appliance, step);
    }

    pub(super) const fn drain(&mut self, hand_back: bool) {
        self.drain = Some(hand_back);
    }

    pub(super) const fn applied(&mut self, version: u64) {
        self.version = version;
        self.applied = true;
    }

    /// A new stream begins: `Hello` says all that the answers of the old one said.
    pub(super) fn begin_stream(&mut self, now: Timestamp) {
        self.answers.clear();
        self.drain = None;
        // What runs and what waits is announced anew after the welcome.
        self.begins.clear();
        self.done.clear();
        self.version = 0;
        self.applied = false;
        self.digest = true;
        self.audit_at = now + AUDIT;
    }

    /// When it is time to send the digest again.
    pub(super) const fn audit_at(&self) -> Timestamp {
        self.audit_at
    }

    pub(super) fn let_time_pass(&mut self, now: Timestamp) {
        if self.audit_at <= now {
            self.audit_at = now + AUDIT;
            self.digest = true;
        }
    }

    pub(super) fn report(&mut self, appliance: ApplianceId, token: Token, status: Status, checked: u64) {
        self.reports.push(appliance, token, status, checked);
    }

    /// Drops the status and the steps of an appliance that is not held any more.
    pub(super) fn forget(&mut self, appliance: ApplianceId) {
        self.begins.remove(&appliance);
        self.done.remove(&appliance);
        self.reports.remove(appliance);
    }

    pub(super) fn is_waiting(&self) -> bool {
        self.drain.is_some() || self.owes_an_answer() || self.digest || !self.reports.is_empty()
    }

    fn owes_an_answer(&self) -> bool {
        self.applied || !(self.answers.is_empty() && self.begins.is_empty() && self.done.is_empty())
    }

    /// The next message to say. What is held now goes with statuses, which come after all answers, so that it means the
    /// same on the other side.
    pub(super) fn next(&mut self, owned: OwnedDigest) -> Option<ToCoordinator> {
        if let Some(hand_back) = self.drain.take() {
            return Some(ToCoordinator::Drain { hand_back });
        }
        if self.owes_an_answer() {
            self.applied = false;
            let mut ack = Ack { applied: self.version, ..Ack::default() };
            let answers = self.answers.len().min(MAX_ENTRIES_PER_MESSAGE);
            let mut room = MAX_ENTRIES_PER_MESSAGE - answers;
            for answer in self.answers.drain(..answers) {
                match answer {
                    GrantAnswer::Granted(grant) => ack.granted.push(grant),
                    GrantAnswer::Declined(declined) => ack.declined.push(declined),
                    GrantAnswer::Released(release) => ack.released.push(release),
                    GrantAnswer::Removed(grant) => ack.removed.push(grant),
                }
            }
            // What is over goes first, so that one message never names a later step before an earlier one is done.
            ack.ended = take(&mut self.done, room);
            room -= ack.ended.len();
            if self.done.is_empty() {
                ack.begun = take(&mut self.begins, room);
            }
            return Some(ToCoordinator::Ack(ack));
        }
        let due = std::mem::take(&mut self.digest);
        let statuses = self.reports.take(REPORTS_PER_MESSAGE);
        let is_due = due || !statuses.is_empty();
        is_due.then_some(ToCoordinator::Report(Report { statuses, owned: Some(owned) }))
    }
}

fn take(steps: &mut BTreeMap<ApplianceId, AnnouncedStep>, most: usize) -> Vec<AnnouncedStep> {
    std::iter::from_fn(|| steps.pop_first()).take(most).map(|(_, step)| step).collect()
}

#[cfg(test)]
mod tests {
    use common::Term;

    use super::*;

    fn step(appliance: u128, number: u64) -> AnnouncedStep {
        AnnouncedStep { appliance: ApplianceId::from_u128(appliance), token: Token::new(Term::new(1), 1), number }
    }

    fn ack(outgoing: &mut PendingReports) -> Ack {
        match outgoing.next(OwnedDigest::default()) {
            Some(ToCoordinator::Ack(ack)) => ack,
            other => panic!("steps are said in an ack, not {other:?}"),
        }
    }

    #[test]
    fn of_each_appliance_only_the_newest_step_is_said() {
        let mut outgoing = PendingReports::default();
        for number in 1..=1_000 {
            outgoing.begins(step(1, number));
            outgoing.done(step(1, number));
        }
        outgoing.begins(step(1, 1_001));
        outgoing.begins(step(2, 5));
        let said = ack(&mut outgoing);
        assert_eq!(said.ended, [step(1, 1_000)]);
        assert_eq!(said.begun, [step(1, 1_001), step(2, 5)]);
        assert!(!outgoing.is_waiting());
        outgoing.begins(step(2, 6));
        outgoing.forget(step(2, 6).appliance);
        assert!(!outgoing.is_waiting(), "it is not held any more");
    }

    #[test]
    fn what_is_held_is_said_after_every_answer_and_also_when_nothing_is_new() {
        let held = OwnedDigest { applied: 7, ..OwnedDigest::default() };
        let mut outgoing = PendingReports::default();
        outgoing.begin_stream(Timestamp::ZERO);
        outgoing.applied(7);
        assert!(matches!(outgoing.next(held), Some(ToCoordinator::Ack(Ack { applied: 7, .. }))));
        assert_eq!(
            outgoing.next(held),
            Some(ToCoordinator::Report(Report { statuses: vec![], owned: Some(held) })),
            "once on each stream"
        );
        assert!(!outgoing.is_waiting() && outgoing.next(held).is_none());
        outgoing.let_time_pass(Timestamp::ZERO + AUDIT);
        assert!(outgoing.is_waiting());
        assert_eq!(outgoing.next(held), Some(ToCoordinator::Report(Report { statuses: vec![], owned: Some(held) })));
    }

    #[test]
    fn a_message_stays_within_its_bound_and_ends_come_before_beginnings() {
        let mut outgoing = PendingReports::default();
        for n in 0..1_500 {
            outgoing.done(step(n, 1));
            outgoing.begins(step(n, 2));
        }
        let (mut ended, mut begun) = (0, 0);
        while outgoing.is_waiting() {
            let said = ack(&mut outgoing);
            assert!(said.begun.len() + said.ended.len() <= MAX_ENTRIES_PER_MESSAGE);
            assert!(said.begun.is_empty() || ended + said.ended.len() == 1_500, "a beginning overtook an end");
            ended += said.ended.len();
            begun += said.begun.len();
        }
        assert_eq!((ended, begun), (1_500, 1_500));
    }
}
