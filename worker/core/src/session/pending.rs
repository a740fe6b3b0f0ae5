//! Messages that wait to be sent to the leader, in bounded pieces: answers first, then the newest status of each appliance.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use common::mode::Quiet;
use common::session::{
    Ack, AnnouncedStep, Declined, GrantRef, MAX_ENTRIES_PER_MESSAGE, OwnedDigest, Release, Report, StatusReport,
    ToCoordinator,
};
use common::{ApplianceId, Timestamp};

use crate::report::Reports;

/// Statuses in one message. Each carries its instances and perhaps a long error, so fewer than of small entries.
const REPORTS_PER_MESSAGE: usize = 200;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum GrantAnswer {
    Granted(GrantRef),
    Declined(Declined),
    Released(Release),
    Removed(GrantRef),
}

/// Messages that wait to be sent.
#[derive(Clone, Debug, Default)]
pub(super) struct PendingMessages {
    /// That this worker is about to stop, and whether it hands back; sent before everything else, so that no grant comes
    /// back that is given back.
    pub(super) drain: Option<bool>,
    /// One per grant that came, ended or was refused, so bounded by the number of grants.
    pub(super) answers: VecDeque<GrantAnswer>,
    /// Steps of suspects that are to begin, and announced ones that are over: the newest of each appliance, so bounded by
    /// the number of grants.
    pub(super) begins: BTreeMap<ApplianceId, AnnouncedStep>,
    pub(super) done: BTreeMap<ApplianceId, AnnouncedStep>,
    /// About which hands are off by now, bounded like these.
    pub(super) quiet: BTreeMap<ApplianceId, Quiet>,
    /// Version after the newest delta that was applied whole.
    pub(super) version: u64,
    /// `version` was not sent yet.
    pub(super) applied: bool,
    /// The digest of the grants is to be sent, whether or not there is anything to report.
    pub(super) digest: bool,
    /// When it is sent again.
    pub(super) audit_at: Timestamp,
    pub(super) reports: Reports,
}

impl PendingMessages {
    pub(super) fn granted(&mut self, grant: GrantRef) {
        self.answers.push_back(GrantAnswer::Granted(grant));
    }

    pub(super) fn decline(&mut self, grant: GrantRef, reason: String) {
        let GrantRef { appliance, token } = grant;
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

    pub(super) fn quiet(&mut self, quiet: Quiet) {
        self.quiet.insert(quiet.appliance, quiet);
    }

    pub(super) const fn drain(&mut self, hand_back: bool) {
        self.drain = Some(hand_back);
    }

    /// Everything of the delta that led to this version is carried out or on its way.
    pub(super) const fn applied(&mut self, version: u64) {
        self.version = version;
        self.applied = true;
    }

    /// A stream begins: `Hello` says all that the answers of the one before said. `audit` is the pause between digests.
    pub(super) fn begin_stream(&mut self, now: Timestamp, audit: Duration) {
        self.end_stream();
        self.digest = true;
        self.audit_at = now + audit;
    }

    /// A stream has ended: nothing that was to be sent on it is sent on another one. Statuses wait for the next.
    pub(super) fn end_stream(&mut self) {
        let reports = std::mem::take(&mut self.reports);
        *self = Self { reports, ..Self::default() };
    }

    /// When it is time to send the digest again.
    pub(super) const fn audit_at(&self) -> Timestamp {
        self.audit_at
    }

    pub(super) fn let_time_pass(&mut self, now: Timestamp, audit: Duration) {
        if self.audit_at <= now {
            self.audit_at = now + audit;
            self.digest = true;
        }
    }

    pub(super) fn report(&mut self, report: StatusReport) {
        self.reports.push(report);
    }

    /// Drops the status and the steps of an appliance that is not owned any more.
    pub(super) fn forget(&mut self, appliance: ApplianceId) {
        self.begins.remove(&appliance);
        self.done.remove(&appliance);
        self.quiet.remove(&appliance);
        self.reports.remove(appliance);
    }

    pub(super) fn is_waiting(&self) -> bool {
        self.drain.is_some() || self.owes_an_answer() || self.digest || !self.reports.is_empty()
    }

    pub(super) fn owes_an_answer(&self) -> bool {
        let steps = self.begins.is_empty() && self.done.is_empty();
        self.applied || !(self.answers.is_empty() && steps && self.quiet.is_empty())
    }

    /// The next message to send. The digest goes with statuses, which come after all answers, so that it means the same on
    /// the other side.
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
                room -= ack.begun.len();
            }
            ack.quiet = take(&mut self.quiet, room);
            return Some(ToCoordinator::Ack(ack));
        }
        let due = std::mem::take(&mut self.digest);
        let statuses = self.reports.take(REPORTS_PER_MESSAGE);
        let is_due = due || !statuses.is_empty();
        is_due.then_some(ToCoordinator::Report(Report { statuses, owned: Some(owned) }))
    }
}

fn take<T>(waiting: &mut BTreeMap<ApplianceId, T>, most: usize) -> Vec<T> {
    std::iter::from_fn(|| waiting.pop_first()).take(most).map(|(_, one)| one).collect()
}

#[cfg(test)]
mod tests {
    use common::Term;

    use common::Token;

    use super::*;

    const AUDIT: Duration = Duration::from_secs(5);

    fn step(appliance: u128, number: u64) -> AnnouncedStep {
        AnnouncedStep { appliance: ApplianceId::from_u128(appliance), token: Token::new(Term::new(1), 1), number }
    }

    fn ack(pending: &mut PendingMessages) -> Ack {
        match pending.next(OwnedDigest::default()) {
            Some(ToCoordinator::Ack(ack)) => ack,
            other => panic!("steps are sent in an ack, not {other:?}"),
        }
    }

    #[test]
    fn of_each_appliance_only_the_newest_step_is_sent() {
        let mut pending = PendingMessages::default();
        for number in 1..=1_000 {
            pending.begins(step(1, number));
            pending.done(step(1, number));
        }
        pending.begins(step(1, 1_001));
        pending.begins(step(2, 5));
        let sent = ack(&mut pending);
        assert_eq!(sent.ended, [step(1, 1_000)]);
        assert_eq!(sent.begun, [step(1, 1_001), step(2, 5)]);
        assert!(!pending.is_waiting());
        pending.begins(step(2, 6));
        pending.forget(step(2, 6).appliance);
        assert!(!pending.is_waiting(), "it is not owned any more");
    }

    #[test]
    fn the_digest_is_sent_after_every_answer_and_also_when_nothing_is_new() {
        let held = OwnedDigest { applied: 7, ..OwnedDigest::default() };
        let mut pending = PendingMessages::default();
        pending.begin_stream(Timestamp::ZERO, AUDIT);
        pending.applied(7);
        assert!(matches!(pending.next(held), Some(ToCoordinator::Ack(Ack { applied: 7, .. }))));
        assert_eq!(
            pending.next(held),
            Some(ToCoordinator::Report(Report { statuses: vec![], owned: Some(held) })),
            "once on each stream"
        );
        assert!(!pending.is_waiting() && pending.next(held).is_none());
        pending.let_time_pass(Timestamp::ZERO + AUDIT, AUDIT);
        assert!(pending.is_waiting());
        assert_eq!(pending.next(held), Some(ToCoordinator::Report(Report { statuses: vec![], owned: Some(held) })));
    }

    #[test]
    fn a_message_stays_within_its_bound_and_ends_come_before_beginnings() {
        let mut pending = PendingMessages::default();
        for n in 0..1_500 {
            pending.done(step(n, 1));
            pending.begins(step(n, 2));
        }
        let (mut ended, mut begun) = (0, 0);
        while pending.is_waiting() {
            let sent = ack(&mut pending);
            assert!(sent.begun.len() + sent.ended.len() <= MAX_ENTRIES_PER_MESSAGE);
            assert!(sent.begun.is_empty() || ended + sent.ended.len() == 1_500, "a beginning overtook an end");
            ended += sent.ended.len();
            begun += sent.begun.len();
        }
        assert_eq!((ended, begun), (1_500, 1_500));
    }
}
