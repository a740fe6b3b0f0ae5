//! The gate's decision: whether a call that changes the world may start now.
//!
//! Asked per *grant* (appliance, token), never per worker: a worker that lost one appliance must not act on it because it
//! still holds another. It opens only while the lease of this life stands, the grant is held, and nothing of a former
//! owner can take effect any more (its *fence delay* is over), and nobody asked for *hands off*. One gate belongs to one
//! life; shutting it is final.
//!
//! A fence delay is a remaining time, counted here from the moment of [`Gate::admit`] and a little longer than stated: clocks of
//! different hosts may differ in their rate, see [`SLACK`]. Pure: the shell brings clock and locks.

#[cfg(feature = "canon")]
mod canon;

use std::collections::BTreeMap;
use std::time::Duration;

use common::mutant::{self, Mutant};
use common::{ApplianceId, Timestamp, Token};

/// How long before the end of the lease calls without token stop to start, if nothing else is set. Covers the time a
/// thread may sleep between its last check and its send; several times what a scheduler under load takes, and short
/// beside the usual lease of seconds.
pub const ACT_MARGIN: Duration = Duration::from_millis(500);

/// A fence delay is waited out this part longer, in hundredths. It was named in time of the backend and of whoever called it, and
/// is waited for by another clock; rates may differ by 5 % each way, as with leases. What is left of one is handed on
/// without this part ([`fence_delay_left`]), so that it does not grow from owner to owner.
pub const SLACK: u64 = 15;

/// After how long a mutant ends a mode.
const MODE_OF_MUTANT: Duration = Duration::from_secs(1);

/// Why the gate is shut for a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Shut {
    /// The lease has run out, or is about to for a call without token, or the life has ended.
    #[error("the lease has run out")]
    Fenced,
    /// The grant is not owned (any more).
    #[error("the grant is not owned any more")]
    NotOwned,
    /// Calls of a former owner may still take effect, for this long.
    #[error("calls of the former owner may still take effect")]
    FenceDelay(Duration),
    /// An operator asked for hands off.
    #[error("hands are off")]
    HandsOff,
}

impl Shut {
    /// The name in metrics.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Fenced => "lease",
            Self::NotOwned => "not_owned",
            Self::FenceDelay(_) => "fence_delay",
            Self::HandsOff => "hands_off",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Grant {
    token: Token,
    fence_delay_until: Timestamp,
    /// Hands are off since then.
    hands_off: Option<Timestamp>,
}

impl Grant {
    /// Whether hands are off. How long they are has no part in it, but for a mutant.
    fn is_hands_off(&self, now: Timestamp) -> bool {
        let ended = |since| mutant::is(Mutant::ModeEndedByWorker) && now.since(since) >= MODE_OF_MUTANT;
        self.hands_off.is_some_and(|since| !ended(since))
    }
}

/// The gate of one life.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Gate {
    /// Until when the lease stands.
    deadline: Timestamp,
    /// The life has ended; nothing opens the gate after that.
    ended: bool,
    margin: Duration,
    grants: BTreeMap<ApplianceId, Grant>,
}

impl Default for Gate {
    fn default() -> Self {
        Self::with_margin(ACT_MARGIN)
    }
}

impl Gate {
    /// A gate that is shut until [`Gate::extend`]. `margin` is how long before the end of the lease calls without token
    /// stop to start.
    #[must_use]
    pub const fn with_margin(margin: Duration) -> Self {
        Self { deadline: Timestamp::ZERO, ended: false, margin, grants: BTreeMap::new() }
    }

    /// Lets the lease stand until `deadline`. An earlier one than the present changes nothing, and neither does any after
    /// [`Gate::shut`].
    pub fn extend(&mut self, deadline: Timestamp) {
        self.deadline = self.deadline.max(deadline);
    }

    /// Ends the life: nothing passes any more, for ever.
    pub const fn shut(&mut self) {
        self.ended = true;
    }

    /// Whether the life has ended.
    #[must_use]
    pub const fn is_shut(&self) -> bool {
        self.ended
    }

    /// Until when the lease stands, unless the life has ended.
    #[must_use]
    pub const fn deadline(&self) -> Timestamp {
        self.deadline
    }

    /// Whether the lease stands at `now`.
    #[must_use]
    pub fn lease_stands(&self, now: Timestamp) -> bool {
        !self.ended && (now < self.deadline || mutant::is(Mutant::NoLease))
    }

    /// Notes at `now` that a grant is held, of which calls may start once `fence_delay` is over. Hands are on.
    pub fn admit(&mut self, now: Timestamp, appliance: ApplianceId, token: Token, fence_delay: Duration) {
        let fence_delay_until = fence_delay_end(now, fence_delay);
        self.grants.insert(appliance, Grant { token, fence_delay_until, hands_off: None });
    }

    /// Shuts the gate for this grant at `now`, or opens it again. A newer grant of the same appliance stays as it is.
    pub fn set_hands_off(&mut self, now: Timestamp, appliance: ApplianceId, token: Token, hands_off: bool) {
        if let Some(grant) = self.grants.get_mut(&appliance).filter(|grant| grant.token == token) {
            grant.hands_off = hands_off.then(|| grant.hands_off.unwrap_or(now));
        }
    }

    /// Notes that a grant is not held any more. A newer grant of the same appliance stays.
    pub fn dismiss(&mut self, appliance: ApplianceId, token: Token) {
        if self.grants.get(&appliance).is_some_and(|grant| grant.token == token) {
            self.grants.remove(&appliance);
        }
    }

    /// Whether a call for this grant may start at `now`, for calls whose far side refuses older tokens.
    ///
    /// # Errors
    /// [`Shut`] says why not.
    pub fn pass(&self, now: Timestamp, appliance: ApplianceId, token: Token) -> Result<(), Shut> {
        self.pass_to_fence(now, appliance, token)?;
        let hands_off = self.grants.get(&appliance).is_some_and(|grant| grant.is_hands_off(now));
        if hands_off && !mutant::is(Mutant::GateIgnoresMode) { Err(Shut::HandsOff) } else { Ok(()) }
    }

    /// Whether this grant may raise its token at the far side at `now`, and nothing else: that changes nothing there but who
    /// may, so that it starts also while hands are off.
    ///
    /// # Errors
    /// [`Shut`] says why not.
    pub fn pass_to_fence(&self, now: Timestamp, appliance: ApplianceId, token: Token) -> Result<(), Shut> {
        if !self.lease_stands(now) {
            return Err(Shut::Fenced);
        }
        match self.grants.get(&appliance) {
            Some(grant) if grant.token == token => {
                let left = grant.fence_delay_until.since(now);
                if left.is_zero() { Ok(()) } else { Err(Shut::FenceDelay(left)) }
            }
            _ if mutant::is(Mutant::GatePerWorker) => Ok(()),
            _ => Err(Shut::NotOwned),
        }
    }

    /// Whether a call for this grant may start at `now` whose far side looks at no token. The lease has to stand for the
    /// margin longer, because the call is sent only after the question was answered.
    ///
    /// # Errors
    /// [`Shut`] says why not.
    pub fn pass_unfenced(&self, now: Timestamp, appliance: ApplianceId, token: Token) -> Result<(), Shut> {
        self.pass(now, appliance, token)?;
        if self.lease_stands(now + self.margin) { Ok(()) } else { Err(Shut::Fenced) }
    }

    /// Whether this grant is held, whatever the lease and its fence delay say.
    #[must_use]
    pub fn is_held(&self, appliance: ApplianceId, token: Token) -> bool {
        self.grants.get(&appliance).is_some_and(|grant| grant.token == token)
    }

    /// Everything that is held, with the token and the moment from which calls may start, by appliance.
    pub fn held(&self) -> impl Iterator<Item = (ApplianceId, Token, Timestamp)> {
        self.grants.iter().map(|(appliance, grant)| (*appliance, grant.token, grant.fence_delay_until))
    }
}

/// When a fence delay that was learned at `now` is over, by whatever clock `now` is of.
#[must_use]
pub fn fence_delay_end(now: Timestamp, fence_delay: Duration) -> Timestamp {
    let nanos = fence_delay.as_nanos().saturating_mul(u128::from(100 + SLACK)).div_ceil(100);
    now + Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

/// What is left at `now` of a fence delay that is over at `until` here: what the next owner has to wait.
#[must_use]
pub fn fence_delay_left(now: Timestamp, until: Timestamp) -> Duration {
    let nanos = (until.since(now).as_nanos() * 100).div_ceil(u128::from(100 + SLACK));
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use common::Term;

    use super::*;

    const LIFE: Timestamp = Timestamp::from_millis(60_000);

    fn a(n: u128) -> ApplianceId {
        ApplianceId::from_u128(n)
    }

    fn token(n: u64) -> Token {
        Token::new(Term::new(1), n)
    }

    fn at(millis: u64) -> Timestamp {
        Timestamp::from_millis(millis)
    }

    fn open() -> Gate {
        let mut gate = Gate::with_margin(Duration::from_millis(500));
        gate.extend(LIFE);
        gate
    }

    #[test]
    fn opens_only_for_the_grant_that_is_held() {
        let mut gate = open();
        gate.admit(at(0), a(1), token(1), Duration::ZERO);
        assert_eq!(gate.pass(at(0), a(1), token(1)), Ok(()));
        assert_eq!(gate.pass(at(0), a(1), token(2)), Err(Shut::NotOwned));
        assert_eq!(gate.pass(at(0), a(2), token(1)), Err(Shut::NotOwned));
        gate.admit(at(0), a(1), token(2), Duration::ZERO);
        assert_eq!(gate.pass(at(0), a(1), token(1)), Err(Shut::NotOwned), "an older grant must not pass");
        gate.dismiss(a(1), token(1));
        assert_eq!(gate.pass(at(0), a(1), token(2)), Ok(()), "dismissing the old grant leaves the new one");
        gate.dismiss(a(1), token(2));
        assert_eq!(gate.pass(at(0), a(1), token(2)), Err(Shut::NotOwned));
    }

    #[test]
    fn opens_only_while_the_lease_stands_and_shutting_is_final() {
        let mut gate = Gate::default();
        gate.admit(at(0), a(1), token(1), Duration::ZERO);
        assert_eq!(gate.pass(at(0), a(1), token(1)), Err(Shut::Fenced), "nothing was extended yet");
        gate.extend(at(1_000));
        gate.extend(at(900));
        assert_eq!(gate.deadline(), at(1_000), "an earlier deadline changes nothing");
        assert_eq!(gate.pass(at(999), a(1), token(1)), Ok(()));
        assert_eq!(gate.pass(at(1_000), a(1), token(1)), Err(Shut::Fenced));
        gate.extend(at(2_000));
        assert_eq!(gate.pass(at(1_000), a(1), token(1)), Ok(()), "grants of the same life stand again");
        gate.shut();
        gate.extend(at(3_000));
        assert_eq!(gate.pass(at(1_000), a(1), token(1)), Err(Shut::Fenced));
    }

    #[test]
    fn a_call_without_token_needs_the_lease_for_the_margin_longer() {
        let mut gate = open();
        gate.admit(at(0), a(1), token(1), Duration::ZERO);
        assert_eq!(gate.pass_unfenced(at(59_499), a(1), token(1)), Ok(()));
        assert_eq!(gate.pass_unfenced(at(59_500), a(1), token(1)), Err(Shut::Fenced));
        assert_eq!(gate.pass(at(59_500), a(1), token(1)), Ok(()), "with a token the far side decides");
        assert_eq!(gate.pass_unfenced(at(0), a(2), token(1)), Err(Shut::NotOwned));
    }

    #[test]
    fn a_fence_delay_is_waited_out_with_slack_and_begins_anew_with_a_new_grant() {
        let mut gate = open();
        gate.admit(at(0), a(1), token(1), Duration::from_secs(10));
        assert_eq!(gate.pass(at(1_500), a(1), token(1)), Err(Shut::FenceDelay(Duration::from_secs(10))));
        assert_eq!(gate.pass(at(11_499), a(1), token(1)), Err(Shut::FenceDelay(Duration::from_millis(1))));
        assert_eq!(gate.pass(at(11_500), a(1), token(1)), Ok(()));
        assert_eq!(gate.pass_unfenced(at(11_499), a(1), token(1)), Err(Shut::FenceDelay(Duration::from_millis(1))));
        gate.admit(at(12_000), a(1), token(2), Duration::from_secs(1));
        assert_eq!(gate.pass(at(12_000), a(1), token(2)), Err(Shut::FenceDelay(Duration::from_millis(1_150))));
        assert_eq!(gate.held().collect::<Vec<_>>(), [(a(1), token(2), at(13_150))]);
    }

    #[test]
    fn what_is_left_of_a_fence_delay_does_not_grow_from_owner_to_owner() {
        let mut fence_delay = Duration::from_secs(10);
        for _ in 0..100 {
            fence_delay = fence_delay_left(at(5), fence_delay_end(at(5), fence_delay));
        }
        assert_eq!(fence_delay, Duration::from_secs(10), "nobody waited");
        let until = fence_delay_end(at(0), fence_delay);
        assert!(fence_delay_left(at(5_000), until) > Duration::from_secs(5), "a clock may be fast");
        assert_eq!(fence_delay_left(until, until), Duration::ZERO);
    }

    #[test]
    fn hands_off_shuts_the_gate_of_one_grant_for_all_but_fencing() {
        let mut gate = open();
        gate.admit(at(0), a(1), token(1), Duration::ZERO);
        gate.admit(at(0), a(2), token(2), Duration::ZERO);
        gate.set_hands_off(at(0), a(1), token(1), true);
        gate.set_hands_off(at(0), a(2), token(1), true);
        assert_eq!(gate.pass(at(0), a(1), token(1)), Err(Shut::HandsOff));
        assert_eq!(gate.pass_unfenced(at(0), a(1), token(1)), Err(Shut::HandsOff));
        assert_eq!(gate.pass_to_fence(at(0), a(1), token(1)), Ok(()));
        assert_eq!(gate.pass(at(0), a(2), token(2)), Ok(()), "another appliance, and an older grant of it");
        assert_eq!(gate.pass(at(59_000), a(1), token(1)), Err(Shut::HandsOff), "no time ends it");
        gate.set_hands_off(at(1), a(1), token(1), false);
        assert_eq!(gate.pass(at(1), a(1), token(1)), Ok(()));
        gate.set_hands_off(at(2), a(1), token(1), true);
        gate.admit(at(3), a(1), token(3), Duration::ZERO);
        assert_eq!(gate.pass(at(3), a(1), token(3)), Ok(()), "a new grant says for itself whether hands are off");
    }

    #[test]
    fn a_fence_delay_without_end_does_not_wrap() {
        assert_eq!(fence_delay_end(at(1), Duration::MAX), Timestamp::from_nanos(u64::MAX));
    }
}
