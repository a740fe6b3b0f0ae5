//! Compares what workers say they hold with the table, and decides when one has to say it all again.
//!
//! A worker sends a digest of what it holds with every report, on the stream on which all its answers went before. It is
//! compared only when both sides mean the same moment: the worker has applied everything that was sent to it, and nothing
//! waits to be sent. Whatever it did by itself up to then it has sent before, in order, on the same stream. So there is no
//! race that could make honest sides differ for a moment, and one difference is enough: waiting for a second one would
//! only leave an appliance without an owner, or with one too many, for longer.
//!
//! Healing is what any new stream does anyway: the worker is made to say `Hello`, and the rules for that settle each
//! appliance. A worker whose digests go on to differ is not sent round in circles: see [`PAUSE`].

use std::collections::BTreeMap;
use std::time::Duration;

use common::session::OwnedDigest;
use common::{ApplianceId, Digest, Life, Timestamp};

use crate::handoff::HandoffState;

/// How long a life is not made to say `Hello` again because of its digest: this long after the first time, doubled with
/// each further one up to the second value. A new stream takes a few round trips and settles every difference there can
/// be; one that remains is a mistake in the program, for a person to look at.
pub const PAUSE: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(480));

/// What a comparison came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The worker holds what the table says.
    Agrees,
    /// Something is under way, so that the two do not mean the same moment.
    InFlight,
    /// They differ.
    Differs {
        /// What the table says.
        expected: Digest,
        /// The worker shall say `Hello` again; `false` while it was made to not long ago.
        heal: bool,
    },
}

/// How often what came of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AuditCounts {
    /// Digests that agreed.
    pub agreed: u64,
    /// Digests that could not be compared.
    pub in_flight: u64,
    /// Digests that differed.
    pub differed: u64,
}

#[derive(Clone, Copy, Debug)]
struct Healing {
    last: Timestamp,
    pause: Duration,
    /// The `Hello` that was asked for has not come yet.
    awaited: bool,
}

/// What each life should hold by the table, kept up to date, and which lives were made to say `Hello` again.
#[derive(Clone, Debug, Default)]
pub struct Audit {
    expected: BTreeMap<Life, Digest>,
    healing: BTreeMap<Life, Healing>,
    counts: AuditCounts,
}

impl Audit {
    /// Notes that an appliance went from one state to another.
    pub fn moved(&mut self, appliance: ApplianceId, from: &HandoffState, to: &HandoffState) {
        if from.holder() == to.holder() {
            return;
        }
        if let Some(g) = from.holder() {
            let life = g.life();
            if let Some(digest) = self.expected.get_mut(&life) {
                digest.remove(appliance, g.token);
                if digest.is_empty() {
                    self.expected.remove(&life);
                }
            }
        }
        if let Some(g) = to.holder() {
            self.expected.entry(g.life()).or_default().add(appliance, g.token);
        }
    }

    /// What a life should hold.
    #[must_use]
    pub fn expected(&self, life: &Life) -> Digest {
        self.expected.get(life).copied().unwrap_or_default()
    }

    /// Compares. `sent` is the version everything that was sent to the worker leads to; `None` while more waits.
    pub fn judge(&mut self, now: Timestamp, life: &Life, claim: OwnedDigest, sent: Option<u64>) -> Verdict {
        if sent != Some(claim.applied) {
            self.counts.in_flight += 1;
            return Verdict::InFlight;
        }
        let expected = self.expected(life);
        if claim.digest == expected {
            self.counts.agreed += 1;
            if self.healing.get(life).is_some_and(|h| now.since(h.last) >= PAUSE.1) {
                self.healing.remove(life);
            }
            return Verdict::Agrees;
        }
        self.counts.differed += 1;
        let heal = match self.healing.get_mut(life) {
            None => {
                self.healing.insert(life.clone(), Healing { last: now, pause: PAUSE.0, awaited: true });
                true
            }
            Some(healing) if now.since(healing.last) >= healing.pause => {
                *healing = Healing { last: now, pause: (healing.pause * 2).min(PAUSE.1), awaited: true };
                true
            }
            Some(_) => false,
        };
        Verdict::Differs { expected, heal }
    }

    /// A life says what it holds. Returns whether it was made to.
    pub fn greeted(&mut self, life: &Life) -> bool {
        self.healing.get_mut(life).is_some_and(|healing| std::mem::take(&mut healing.awaited))
    }

    /// A life is gone.
    pub fn forget(&mut self, life: &Life) {
        self.healing.remove(life);
    }

    /// How often what came of it.
    #[must_use]
    pub const fn counts(&self) -> AuditCounts {
        self.counts
    }
}

#[cfg(test)]
mod tests {
    use common::{Incarnation, Term, Token, WorkerId};

    use super::*;
    use crate::grants::Granted;

    fn granted(n: u64) -> Granted {
        let worker = WorkerId::new("w1").expect("valid");
        Granted { worker, incarnation: Incarnation::new(1), token: Token::new(Term::new(1), n) }
    }

    fn w1() -> Life {
        granted(1).life()
    }

    fn id(n: u128) -> ApplianceId {
        ApplianceId::from_u128(n)
    }

    fn digest(held: &[(u128, u64)]) -> Digest {
        held.iter().map(|(n, t)| (id(*n), granted(*t).token)).collect()
    }

    /// One life that owns appliances 1 and 2 under the tokens 1 and 2.
    fn two() -> Audit {
        let mut audit = Audit::default();
        for n in 1..=2 {
            audit.moved(id(n), &HandoffState::Unowned, &HandoffState::Granting(granted(n as u64)));
            assert_eq!(audit.expected(&w1()).count, n as u64 - 1, "nobody was told yet");
            audit.moved(id(n), &HandoffState::Granting(granted(n as u64)), &HandoffState::Offered(granted(n as u64)));
            audit.moved(id(n), &HandoffState::Offered(granted(n as u64)), &HandoffState::Owned(granted(n as u64)));
        }
        audit
    }

    const NOW: Timestamp = Timestamp::from_millis(1_000);

    #[test]
    fn what_a_life_should_hold_follows_the_states() {
        let mut audit = two();
        assert_eq!(audit.expected(&w1()), digest(&[(1, 1), (2, 2)]));
        audit.moved(id(1), &HandoffState::Owned(granted(1)), &HandoffState::Releasing(granted(9)));
        assert_eq!(audit.expected(&w1()), digest(&[(1, 9), (2, 2)]), "another token of the same worker");
        audit.moved(id(1), &HandoffState::Releasing(granted(9)), &HandoffState::Freeing(granted(9)));
        audit.moved(id(2), &HandoffState::Owned(granted(2)), &HandoffState::Orphaned(granted(2)));
        assert_eq!(audit.expected(&w1()), Digest::default());
        assert!(audit.expected.is_empty(), "nothing is kept of a life that holds nothing");
    }

    #[test]
    fn only_what_means_the_same_moment_is_compared() {
        let mut audit = two();
        let wrong = OwnedDigest { applied: 7, digest: Digest::default() };
        assert_eq!(audit.judge(NOW, &w1(), wrong, None), Verdict::InFlight, "more waits to be sent");
        assert_eq!(audit.judge(NOW, &w1(), wrong, Some(8)), Verdict::InFlight, "not everything was applied");
        assert_eq!(audit.judge(NOW, &w1(), wrong, Some(6)), Verdict::InFlight, "a version that was never sent");
        let right = OwnedDigest { applied: 7, digest: digest(&[(1, 1), (2, 2)]) };
        assert_eq!(audit.judge(NOW, &w1(), right, Some(7)), Verdict::Agrees);
        assert_eq!(audit.counts(), AuditCounts { agreed: 1, in_flight: 3, differed: 0 });
    }

    #[test]
    fn each_kind_of_difference_is_found() {
        let expected = digest(&[(1, 1), (2, 2)]);
        for held in [&[(1, 1)][..], &[(1, 1), (2, 2), (3, 3)], &[(1, 1), (2, 3)], &[(1, 2), (2, 1)], &[]] {
            let claim = OwnedDigest { applied: 1, digest: digest(held) };
            let verdict = two().judge(NOW, &w1(), claim, Some(1));
            assert_eq!(verdict, Verdict::Differs { expected, heal: true }, "{held:?}");
        }
    }

    #[test]
    fn one_that_goes_on_to_differ_is_healed_ever_more_rarely() {
        let mut audit = two();
        let claim = OwnedDigest { applied: 1, digest: Digest::default() };
        let mut healed = Vec::new();
        for second in 0..1_800 {
            let now = NOW + Duration::from_secs(second);
            if matches!(audit.judge(now, &w1(), claim, Some(1)), Verdict::Differs { heal: true, .. }) {
                healed.push(second);
                assert!(audit.greeted(&w1()) && !audit.greeted(&w1()), "asked for once each time");
            }
        }
        assert_eq!(healed, [0, 30, 90, 210, 450, 930, 1_410]);
        let right = OwnedDigest { applied: 1, digest: digest(&[(1, 1), (2, 2)]) };
        let now = NOW + Duration::from_secs(1_800);
        assert_eq!(audit.judge(now, &w1(), right, Some(1)), Verdict::Agrees);
        let heals = |audit: &mut Audit, now| audit.judge(now, &w1(), claim, Some(1));
        assert!(matches!(heals(&mut audit, now), Verdict::Differs { heal: false, .. }), "agreeing once proves little");
        let later = now + PAUSE.1;
        assert_eq!(audit.judge(later, &w1(), right, Some(1)), Verdict::Agrees);
        assert!(matches!(heals(&mut audit, later), Verdict::Differs { heal: true, .. }), "forgiven");
        audit.forget(&w1());
        assert!(!audit.greeted(&w1()));
    }
}
