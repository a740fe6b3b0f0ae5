//! The gate: every call that changes the world passes here first.
//!
//! Asked per *grant* (appliance, token, incarnation), never per worker: a worker that lost one appliance must not act on
//! it because it still holds another. It opens only while this incarnation's lease stands, the grant is held and its hold
//! is over. Shutting it for an incarnation is final; a new incarnation gets a new gate.
//!
//! The gate owns the lease deadline. Tasks of the former incarnation keep their [`Permit`]s, which point at the old,
//! shut gate, so nothing they still do can pass.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use common::coordination::Guard;
use common::runtime::clock;
use common::{ApplianceId, Timestamp, Token};
use tokio::sync::Notify;

/// Why the gate is shut for a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Shut {
    /// The lease has run out, or the incarnation has ended.
    #[error("the lease has run out")]
    Fenced,
    /// The grant is not held (any more).
    #[error("the grant is not held any more")]
    NotHeld,
    /// Calls of the former owner may still take effect.
    #[error("calls of the former owner may still take effect")]
    Held,
}

#[derive(Debug)]
struct Grant {
    token: Token,
    hold_until: Timestamp,
}

/// The gate of one incarnation.
#[derive(Debug, Default)]
pub struct Gate {
    /// Nanoseconds of the boot-time clock until which the lease stands; 0 is shut. Only [`Gate::shut`] and
    /// [`Gate::extend`] write it.
    deadline: AtomicU64,
    /// Set once; nothing opens the gate after it.
    ended: std::sync::atomic::AtomicBool,
    grants: Mutex<HashMap<ApplianceId, Grant>>,
    /// Told of every [`Gate::extend`] and [`Gate::shut`].
    changed: Notify,
}

impl Gate {
    /// A gate that is shut until [`Gate::extend`].
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::new(Self::default())
    }

    /// Lets the lease stand until `deadline`. An earlier deadline than the present one changes nothing.
    pub fn extend(&self, deadline: Timestamp) {
        self.deadline.fetch_max(deadline.as_nanos(), Ordering::AcqRel);
        self.changed.notify_one();
    }

    /// Ends the incarnation: nothing passes any more, for ever.
    pub fn shut(&self) {
        self.ended.store(true, Ordering::Release);
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
        Timestamp::from_nanos(self.deadline.load(Ordering::Acquire))
    }

    /// Whether the lease stands now.
    #[must_use]
    pub fn lease_stands(&self) -> bool {
        !self.is_shut() && clock::now() < self.deadline()
    }

    /// Waits until the lease stands; for ever once the gate is shut. For one task at a time, as is [`Gate::lapses`].
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

    /// Notes that a grant is held from now on; calls may start after `hold_until`.
    pub fn admit(&self, appliance: ApplianceId, token: Token, hold_until: Timestamp) {
        self.lock().insert(appliance, Grant { token, hold_until });
    }

    /// Notes that a grant is not held any more. A newer grant of the same appliance stays.
    pub fn dismiss(&self, appliance: ApplianceId, token: Token) {
        let mut grants = self.lock();
        if grants.get(&appliance).is_some_and(|g| g.token == token) {
            grants.remove(&appliance);
        }
    }

    /// Asks for the right to act on `appliance` under `token`.
    ///
    /// # Errors
    /// [`Shut`] says why not.
    pub fn pass(self: &Arc<Self>, appliance: ApplianceId, token: Token) -> Result<Permit, Shut> {
        let permit = Permit { gate: Arc::clone(self), appliance, token };
        permit.check()?;
        Ok(permit)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<ApplianceId, Grant>> {
        // The map is only ever changed by single insertions and removals, so a panic elsewhere leaves it whole.
        self.grants.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Guard for Gate {
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
    gate: Arc<Gate>,
    appliance: ApplianceId,
    token: Token,
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

    /// Asks the gate again.
    ///
    /// # Errors
    /// [`Shut`] says why the right is gone.
    pub fn check(&self) -> Result<(), Shut> {
        if !self.gate.lease_stands() {
            return Err(Shut::Fenced);
        }
        match self.gate.lock().get(&self.appliance) {
            Some(grant) if grant.token == self.token => {
                if clock::now() < grant.hold_until {
                    Err(Shut::Held)
                } else {
                    Ok(())
                }
            }
            _ => Err(Shut::NotHeld),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use common::Term;

    use super::*;

    fn token(n: u64) -> Token {
        Token::new(Term::new(1), n)
    }

    #[test]
    fn opens_only_for_the_grant_that_is_held_and_only_while_the_lease_stands() {
        let gate = Gate::new();
        let a = ApplianceId::from_u128(1);
        gate.admit(a, token(1), Timestamp::ZERO);
        assert_eq!(gate.pass(a, token(1)).err(), Some(Shut::Fenced));
        gate.extend(clock::now() + Duration::from_secs(60));
        let permit = gate.pass(a, token(1)).expect("lease stands and grant is held");
        assert_eq!(gate.pass(a, token(2)).err(), Some(Shut::NotHeld));
        assert_eq!(gate.pass(ApplianceId::from_u128(2), token(1)).err(), Some(Shut::NotHeld));
        gate.admit(a, token(2), Timestamp::ZERO);
        assert_eq!(permit.check(), Err(Shut::NotHeld), "a permit of an older grant must not pass");
        gate.dismiss(a, token(1));
        assert!(gate.pass(a, token(2)).is_ok(), "dismissing the old grant must leave the new one");
        gate.shut();
        gate.extend(clock::now() + Duration::from_secs(120));
        assert_eq!(gate.pass(a, token(2)).err(), Some(Shut::Fenced), "shutting is final");
    }

    #[tokio::test]
    async fn a_lease_is_seen_to_run_out_and_to_stand_again() {
        let gate = Gate::new();
        gate.extend(clock::now() + Duration::from_millis(20));
        gate.lapses().await;
        assert!(!gate.lease_stands());
        tokio::join!(gate.opens(), async { gate.extend(clock::now() + Duration::from_secs(3_600)) });
        assert!(gate.lease_stands());
        tokio::join!(gate.lapses(), async { gate.shut() });
        assert!(gate.is_shut());
    }

    #[test]
    fn a_hold_keeps_the_gate_shut_until_it_is_over() {
        let gate = Gate::new();
        let a = ApplianceId::from_u128(1);
        gate.extend(clock::now() + Duration::from_secs(60));
        gate.admit(a, token(1), clock::now() + Duration::from_secs(30));
        assert_eq!(gate.pass(a, token(1)).err(), Some(Shut::Held));
    }
}
