//! The gate: every call that changes the world passes here first.
//!
//! A thin wrapper around [`worker_core::gate`], which decides: it brings the clock, a lock, and word of changes to those
//! who wait. Shutting it for an incarnation is final; a new incarnation gets a new gate. Tasks of the former one keep
//! their [`Permit`]s, which point at the old, shut gate, so nothing they still do can pass.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use common::{ApplianceId, Timestamp, Token};
use coordination::Guard;
use runtime::clock;
use tokio::sync::Notify;
use worker_core::gate as decision;
pub use worker_core::gate::{ACT_MARGIN, Shut};

use crate::metrics;

/// The gate of one incarnation.
#[derive(Debug, Default)]
pub struct SharedGate {
    decision: Mutex<decision::Gate>,
    /// Copies of what the decision has, for those who only want to know whether the lease stands. Written under its lock.
    deadline_ns: AtomicU64,
    ended: AtomicBool,
    /// Told of every [`SharedGate::extend`] and [`SharedGate::shut`].
    changed: Notify,
}

impl SharedGate {
    /// A gate that is shut until [`SharedGate::extend`], with the usual [`ACT_MARGIN`].
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::new(Self::default())
    }

    /// The same; calls without token stop to start `margin` before the end of the lease.
    #[must_use]
    pub fn with_margin(margin: Duration) -> Arc<Self> {
        Arc::new(Self { decision: Mutex::new(decision::Gate::with_margin(margin)), ..Self::default() })
    }

    /// Lets the lease stand until `deadline`. An earlier deadline than the present one changes nothing.
    pub fn extend(&self, deadline: Timestamp) {
        if self.lease_stands() {
            metrics::lease_renewed(self.deadline().since(clock::now()));
        }
        self.change(|decision| decision.extend(deadline));
    }

    /// Ends the incarnation: nothing passes any more, for ever.
    pub fn shut(&self) {
        self.change(decision::Gate::shut);
    }

    fn change(&self, change: impl FnOnce(&mut decision::Gate)) {
        let mut decision = self.lock();
        change(&mut decision);
        self.deadline_ns.store(decision.deadline().as_nanos(), Ordering::Release);
        self.ended.store(decision.is_shut(), Ordering::Release);
        drop(decision);
        self.changed.notify_one();
    }

    /// Whether the incarnation has ended.
    #[must_use]
    pub fn is_shut(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    /// Until when the lease stands.
    #[must_use]
    pub fn deadline(&self) -> Timestamp {
        Timestamp::from_nanos(self.deadline_ns.load(Ordering::Acquire))
    }

    /// Whether the lease stands now.
    #[must_use]
    pub fn lease_stands(&self) -> bool {
        !self.is_shut() && clock::now() < self.deadline()
    }

    /// Waits until the lease stands; for ever once the gate is shut. For one task at a time, as is [`SharedGate::lapses`].
    pub(crate) async fn opens(&self) {
        while !self.lease_stands() {
            self.changed.notified().await;
        }
    }

    /// Waits until the lease does not stand any more.
    pub(crate) async fn lapses(&self) {
        while self.lease_stands() {
            // The timers of the runtime stand still in a suspend, the lease does not: looked at again in any case.
            let left = self.deadline().since(clock::now());
            _ = tokio::time::timeout(left, self.changed.notified()).await;
        }
    }

    /// Notes that a grant is held from now on; calls may start once `fence_delay` is over.
    pub fn admit(&self, appliance: ApplianceId, token: Token, fence_delay: Duration) {
        let mut decision = self.lock();
        decision.admit(clock::now(), appliance, token, fence_delay);
    }

    /// Shuts the gate for a grant because hands are off, or opens it again.
    pub fn set_hands_off(&self, appliance: ApplianceId, token: Token, hands_off: bool) {
        self.lock().set_hands_off(clock::now(), appliance, token, hands_off);
    }

    /// Notes that a grant is not held any more. A newer grant of the same appliance stays.
    pub fn dismiss(&self, appliance: ApplianceId, token: Token) {
        self.lock().dismiss(appliance, token);
    }

    /// Asks for the right to act on `appliance` under `token`.
    ///
    /// # Errors
    /// [`Shut`] says why not.
    pub fn pass(self: &Arc<Self>, appliance: ApplianceId, token: Token) -> Result<Permit, Shut> {
        let permit = Permit { gate: Arc::clone(self), appliance, token, with_hands_off: false };
        permit.check()?;
        Ok(permit)
    }

    /// Asks for the right to raise the token at the far side, and to do nothing else: also while hands are off.
    ///
    /// # Errors
    /// [`Shut`] says why not.
    pub fn pass_to_fence(self: &Arc<Self>, appliance: ApplianceId, token: Token) -> Result<Permit, Shut> {
        let permit = Permit { gate: Arc::clone(self), appliance, token, with_hands_off: true };
        permit.check()?;
        Ok(permit)
    }

    /// Asks for the right to do what an operator asks for: also while hands are off, which keep Rug from acting and not its operators.
    ///
    /// # Errors
    /// [`Shut`] says why not.
    pub fn pass_for_operator(self: &Arc<Self>, appliance: ApplianceId, token: Token) -> Result<Permit, Shut> {
        self.pass_to_fence(appliance, token)
    }

    fn lock(&self) -> MutexGuard<'_, decision::Gate> {
        // Each change is one assignment, insertion or removal, so a panic elsewhere leaves the decision whole.
        self.decision.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Guard for SharedGate {
    fn extend(&self, until: Timestamp) {
        Self::extend(self, until);
    }

    fn shut(&self) {
        Self::shut(self);
    }
}

/// The right to act on one appliance, as of its last [`Permit::check`]. Drivers check again right before each call that
/// changes the world, and pass the token along where the far side refuses older ones.
#[derive(Clone, Debug)]
pub struct Permit {
    gate: Arc<SharedGate>,
    appliance: ApplianceId,
    token: Token,
    /// Also while hands are off: for raising the token, and for what an operator asks for.
    with_hands_off: bool,
}

impl Permit {
    /// The appliance it is for.
    #[must_use]
    pub const fn appliance(&self) -> ApplianceId {
        self.appliance
    }

    /// The token of the grant.
    #[must_use]
    pub const fn token(&self) -> Token {
        self.token
    }

    /// Until when the lease stands, as it is now.
    #[must_use]
    pub fn lease_until(&self) -> Timestamp {
        self.gate.deadline()
    }

    /// Asks the gate again: for a call whose far side refuses an older token.
    ///
    /// # Errors
    /// [`Shut`] says why the right is gone.
    pub fn check(&self) -> Result<(), Shut> {
        let decision = self.gate.lock();
        // Read behind the lock: waiting for it must not make the answer older.
        if self.with_hands_off {
            return decision.pass_to_fence(clock::now(), self.appliance, self.token);
        }
        decision.pass(clock::now(), self.appliance, self.token)
    }

    /// Asks the gate again: for a call that no token fences. To be asked once the connection is there, as the last thing
    /// before the request is sent: the lease has to stand for the margin longer than that.
    ///
    /// # Errors
    /// [`Shut`] says why the right is gone.
    pub fn check_unfenced(&self) -> Result<(), Shut> {
        let decision = self.gate.lock();
        decision.pass_unfenced(clock::now(), self.appliance, self.token)
    }
}

#[cfg(test)]
mod tests {
    use common::Term;

    use super::*;

    fn token(n: u64) -> Token {
        Token::new(Term::new(1), n)
    }

    #[test]
    fn opens_only_for_the_grant_that_is_held_and_only_while_the_lease_stands() {
        let gate = SharedGate::new();
        let a = ApplianceId::from_u128(1);
        gate.admit(a, token(1), Duration::ZERO);
        assert_eq!(gate.pass(a, token(1)).err(), Some(Shut::Fenced));
        gate.extend(clock::now() + Duration::from_secs(60));
        let permit = gate.pass(a, token(1)).expect("lease stands and grant is held");
        assert_eq!(gate.pass(a, token(2)).err(), Some(Shut::NotOwned));
        assert_eq!(gate.pass(ApplianceId::from_u128(2), token(1)).err(), Some(Shut::NotOwned));
        gate.admit(a, token(2), Duration::ZERO);
        assert_eq!(permit.check(), Err(Shut::NotOwned), "a permit of an older grant must not pass");
        gate.dismiss(a, token(1));
        assert!(gate.pass(a, token(2)).is_ok(), "dismissing the old grant must leave the new one");
        gate.shut();
        gate.extend(clock::now() + Duration::from_secs(120));
        assert_eq!(gate.pass(a, token(2)).err(), Some(Shut::Fenced), "shutting is final");
    }

    #[tokio::test]
    async fn a_lease_is_seen_to_run_out_and_to_stand_again() {
        let gate = SharedGate::new();
        gate.extend(clock::now() + Duration::from_millis(20));
        gate.lapses().await;
        assert!(!gate.lease_stands());
        tokio::join!(gate.opens(), async { gate.extend(clock::now() + Duration::from_secs(3_600)) });
        assert!(gate.lease_stands());
        tokio::join!(gate.lapses(), async { gate.shut() });
        assert!(gate.is_shut());
    }

    #[test]
    fn a_fence_delay_keeps_the_gate_shut_until_it_is_over() {
        let gate = SharedGate::new();
        let a = ApplianceId::from_u128(1);
        gate.extend(clock::now() + Duration::from_secs(60));
        gate.admit(a, token(1), Duration::from_secs(3_600));
        assert!(matches!(gate.pass(a, token(1)), Err(Shut::FenceDelay(left)) if left > Duration::from_secs(1_800)));
    }

    #[test]
    fn a_call_without_token_is_refused_within_the_margin() {
        let gate = SharedGate::with_margin(Duration::from_secs(3_600));
        let a = ApplianceId::from_u128(1);
        gate.admit(a, token(1), Duration::ZERO);
        gate.extend(clock::now() + Duration::from_secs(1_800));
        let permit = gate.pass(a, token(1)).expect("with a token there is time enough");
        assert_eq!(permit.check_unfenced(), Err(Shut::Fenced));
        gate.extend(clock::now() + Duration::from_secs(7_200));
        assert_eq!(permit.check_unfenced(), Ok(()));
    }
}
