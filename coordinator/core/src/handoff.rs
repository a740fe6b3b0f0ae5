//! The hand-off of one appliance: a state, an event, the next state. One `match` over the states for each event.
//!
//! | state     | Assign   | Take      | Durable  | Undone   | Ack   | Declined | Released | Deleted  | Gone     | Owns                | OwnsNothing  | Unbound |
//! |-----------|----------|-----------|----------|----------|-------|----------|----------|----------|----------|---------------------|--------------|---------|
//! | Unowned   | Granting | .         | .        | .        | .     | .        | confirm  | confirm  | .        | conflict            | .            | Unowned |
//! | Granting  | .        | .         | Offered  | Unowned  | .     | .        | confirm  | confirm  | Orphaned | conflict            | .            | .       |
//! | Offered   | .        | Releasing | .        | .        | Owned | Unowned  | Freeing  | Removing | Orphaned | Owned, Releasing    | Unowned      | .       |
//! | Owned     | .        | Releasing | .        | .        | .     | .        | Freeing  | Removing | Orphaned | Owned, Releasing    | Unowned      | .       |
//! | Releasing | .        | .         | .        | .        | .     | Unowned  | Freeing  | Removing | Orphaned | Releasing           | Unowned      | .       |
//! | Freeing   | Passing  | .         | Unowned  | retry    | .     | .        | .        | .        | .        | conflict            | .            | .       |
//! | Passing   | .        | .         | Offered  | Freeing  | .     | .        | confirm  | confirm  | Freeing  | conflict            | .            | .       |
//! | Orphaned  | Granting | .         | .        | .        | .     | .        | confirm  | confirm  | .        | conflict            | .            | Unowned |
//! | Removing  | .        | .         | removed  | retry    | .     | .        | .        | .        | .        | conflict            | .            | .       |
//!
//! `.` is refused without any change. Answers of workers count only if worker, incarnation and token all equal the
//! state's; everything else is treated as sent by a worker that is not the owner (docs/protocol.md, Tokens and grants).
//! Nothing here is ever ended by time: an offer and a release end by the worker's answer or by the end of its lease.
//!
//! `Passing` is `Freeing` and `Granting` in one: the carryover and the next grant are made durable by one write, so
//! that the appliance is unattended for one commit instead of two. Answers of the next owner are
//! those of `Granting`, answers of the former one those of `Freeing`.

use std::time::Duration;

use common::mutant::{self, Mutant};
use common::session::Carryover;
use common::{Life, Token, WorkerId};

use crate::grants::Granted;

/// Where the ownership of one appliance stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HandoffState {
    /// No worker may act. The store may still have a grant that is void: the next one overwrites it.
    Unowned,
    /// A grant is being made durable; no worker knows of it yet (I4).
    Granting(Granted),
    /// The grant is durable and on its way, once.
    Offered(Granted),
    /// The worker took it.
    Owned(Granted),
    /// The worker was asked to give it up. Only its word or the end of its lease leads on.
    Releasing(Granted),
    /// Given up; the owner's carryover is being made durable.
    Freeing(Granted),
    /// Given up, and the owner's carryover is being made durable together with the next grant, which no worker knows of yet.
    Passing {
        /// The owner that gave it up, and waits for the confirmation.
        from: Granted,
        /// The next one.
        to: Granted,
    },
    /// Its owner is gone: no worker acts, and the store still names the former owner.
    Orphaned(Granted),
    /// Its owner removed every trace; its rows are being removed.
    Removing(Granted),
}

impl HandoffState {
    /// Every name there is.
    pub const NAMES: [&'static str; 8] =
        ["unowned", "granting", "offered", "owned", "releasing", "freeing", "orphaned", "removing"];

    /// The grant this state is about.
    #[must_use]
    pub const fn grant(&self) -> Option<&Granted> {
        match self {
            Self::Unowned => None,
            Self::Granting(g)
            | Self::Offered(g)
            | Self::Owned(g)
            | Self::Releasing(g)
            | Self::Freeing(g)
            | Self::Passing { to: g, .. }
            | Self::Orphaned(g)
            | Self::Removing(g) => Some(g),
        }
    }

    /// The worker that may be acting on the appliance, as far as the leader knows.
    #[must_use]
    pub const fn holder(&self) -> Option<&Granted> {
        match self {
            Self::Offered(g) | Self::Owned(g) | Self::Releasing(g) => Some(g),
            Self::Unowned
            | Self::Granting(_)
            | Self::Freeing(_)
            | Self::Passing { .. }
            | Self::Orphaned(_)
            | Self::Removing(_) => None,
        }
    }

    /// The life that the appliance is granted to, from the moment the grant is being written.
    #[must_use]
    pub fn granted_to(&self) -> Option<Life> {
        match self {
            Self::Granting(g)
            | Self::Passing { to: g, .. }
            | Self::Offered(g)
            | Self::Owned(g)
            | Self::Releasing(g) => Some(g.life()),
            Self::Unowned | Self::Freeing(_) | Self::Orphaned(_) | Self::Removing(_) => None,
        }
    }

    /// Whether the planner may give the appliance to a worker.
    #[must_use]
    pub const fn wants_owner(&self) -> bool {
        matches!(self, Self::Unowned | Self::Freeing(_) | Self::Orphaned(_))
    }

    /// The name in tables and the API.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Unowned => "unowned",
            Self::Granting(_) | Self::Passing { .. } => "granting",
            Self::Offered(_) => "offered",
            Self::Owned(_) => "owned",
            Self::Releasing(_) => "releasing",
            Self::Freeing(_) => "freeing",
            Self::Orphaned(_) => "orphaned",
            Self::Removing(_) => "removing",
        }
    }
}

/// What happened to an appliance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HandoffEvent {
    /// The planner picked a worker.
    Assign(Granted),
    /// The planner wants it elsewhere.
    Take,
    /// The store has the write that was asked for under this token.
    Durable(Token),
    /// The store surely does not have it.
    Undone(Token),
    /// A worker took the offer.
    Ack(Granted),
    /// A worker refused the offer.
    Declined(Granted),
    /// A worker stopped acting.
    Released(Granted, Carryover),
    /// A worker removed the appliance to the last trace.
    Deleted(Granted),
    /// A life is gone (docs/protocol.md, Leases and lives).
    Gone(Life),
    /// A worker's `Hello` lists it.
    Owns(Granted),
    /// A worker's `Hello` does not list it.
    OwnsNothing(Life),
    /// The store has that it is bound to no site any more.
    Unbound,
}

/// What has to be done because of a transition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HandoffEffect {
    /// Make the grant durable.
    PersistGrant,
    /// Make the carryover and the grant durable, in one write.
    PersistPass,
    /// Tell the worker, once.
    Offer,
    /// Ask the worker to give it up.
    AskRelease,
    /// Make the carryover durable, and the appliance free.
    PersistFree(Carryover),
    /// Remove the appliance's rows.
    PersistRemoval,
    /// Try the last write again.
    Retry,
    /// Tell the worker that the store has its release or removal.
    Confirm(Granted),
    /// The grant came to its owner.
    Arrived,
    /// The worker that declined is left out for a while.
    LeaveOut(WorkerId),
    /// Its owner is gone; the fence delay starts in full.
    StartFenceDelay,
    /// A worker acts on it against the table: no other worker may be granted it until that ended.
    Conflict(Granted),
    /// It has gone for ever.
    Removed,
}

/// The event changes nothing in this state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HandoffRefused;

/// The next state and what has to be done.
pub type HandoffTransition = Result<(HandoffState, Vec<HandoffEffect>), HandoffRefused>;

/// The next state and what has to be done; one function for each column of the table above.
///
/// # Errors
/// [`HandoffRefused`] when the event does not count in this state; the state is unchanged then.
pub fn step(state: &HandoffState, event: HandoffEvent) -> HandoffTransition {
    use HandoffEvent as E;
    match event {
        E::Assign(to) => assign(state, to),
        E::Take => take(state),
        E::Durable(token) => durable(state, token),
        E::Undone(token) => undone(state, token),
        E::Ack(by) => acknowledged(state, by),
        E::Declined(by) => declined(state, by),
        E::Released(by, carryover) => released(state, by, carryover),
        E::Deleted(by) => deleted(state, by),
        E::Gone(life) => gone(state, &life),
        E::Owns(by) => owns(state, by),
        E::OwnsNothing(life) => owns_nothing(state, &life),
        E::Unbound => unbound(state),
    }
}

fn assign(state: &HandoffState, to: Granted) -> HandoffTransition {
    use HandoffState as S;
    match state {
        S::Unowned | S::Orphaned(_) if mutant::is(Mutant::GrantNotPersisted) => {
            Ok((S::Offered(to), vec![HandoffEffect::PersistGrant, HandoffEffect::Offer]))
        }
        S::Unowned | S::Orphaned(_) => Ok((S::Granting(to), vec![HandoffEffect::PersistGrant])),
        S::Freeing(from) => Ok((S::Passing { from: from.clone(), to }, vec![HandoffEffect::PersistPass])),
        S::Granting(_) | S::Offered(_) | S::Owned(_) | S::Releasing(_) | S::Passing { .. } | S::Removing(_) => {
            Err(HandoffRefused)
        }
    }
}

fn take(state: &HandoffState) -> HandoffTransition {
    use HandoffState as S;
    match state {
        S::Owned(g) | S::Offered(g) => Ok((S::Releasing(g.clone()), vec![HandoffEffect::AskRelease])),
        S::Unowned
        | S::Granting(_)
        | S::Releasing(_)
        | S::Freeing(_)
        | S::Passing { .. }
        | S::Orphaned(_)
        | S::Removing(_) => Err(HandoffRefused),
    }
}

fn durable(state: &HandoffState, token: Token) -> HandoffTransition {
    use HandoffState as S;
    match state {
        S::Granting(g) if g.token == token => Ok((S::Offered(g.clone()), vec![HandoffEffect::Offer])),
        S::Freeing(g) if g.token == token => Ok((S::Unowned, vec![HandoffEffect::Confirm(g.clone())])),
        S::Removing(g) if g.token == token => {
            Ok((S::Unowned, vec![HandoffEffect::Confirm(g.clone()), HandoffEffect::Removed]))
        }
        S::Passing { from, to } if to.token == token => {
            Ok((S::Offered(to.clone()), vec![HandoffEffect::Confirm(from.clone()), HandoffEffect::Offer]))
        }
        // The release is in the store by a write of its own; the grant is not yet.
        S::Passing { from, to } if from.token == token => {
            Ok((S::Granting(to.clone()), vec![HandoffEffect::Confirm(from.clone())]))
        }
        _ => Err(HandoffRefused),
    }
}

fn undone(state: &HandoffState, token: Token) -> HandoffTransition {
    use HandoffState as S;
    match state {
        S::Passing { from, to } if to.token == token => Ok((S::Freeing(from.clone()), vec![HandoffEffect::Retry])),
        // The token is used up: the sequence never goes back.
        S::Granting(g) if g.token == token => Ok((S::Unowned, vec![])),
        S::Freeing(g) | S::Removing(g) if g.token == token => Ok((state.clone(), vec![HandoffEffect::Retry])),
        _ => Err(HandoffRefused),
    }
}

fn acknowledged(state: &HandoffState, by: Granted) -> HandoffTransition {
    match state {
        HandoffState::Offered(g) if *g == by => Ok((HandoffState::Owned(by), vec![HandoffEffect::Arrived])),
        _ => Err(HandoffRefused),
    }
}

fn declined(state: &HandoffState, by: Granted) -> HandoffTransition {
    use HandoffState as S;
    match state {
        // A worker also declines what it was asked to release before it took it.
        S::Offered(g) | S::Releasing(g) if *g == by => Ok((S::Unowned, vec![HandoffEffect::LeaveOut(by.worker)])),
        _ => Err(HandoffRefused),
    }
}

fn released(state: &HandoffState, by: Granted, carryover: Carryover) -> HandoffTransition {
    use HandoffState as S;
    match state {
        S::Offered(g) | S::Owned(g) | S::Releasing(g) if *g == by => {
            let lost = mutant::is(Mutant::FenceDelayLostOnRelease);
            let carryover = if lost { Carryover { fence_delay: Duration::ZERO, ..carryover } } else { carryover };
            Ok((S::Freeing(by), vec![HandoffEffect::PersistFree(carryover)]))
        }
        // Being made durable: the confirmation follows.
        S::Freeing(g) | S::Passing { from: g, .. } if *g == by => Err(HandoffRefused),
        // Repeated by a worker that no longer owns it: confirmed, so that it is not repeated again.
        _ => Ok((state.clone(), vec![HandoffEffect::Confirm(by)])),
    }
}

fn deleted(state: &HandoffState, by: Granted) -> HandoffTransition {
    use HandoffState as S;
    match state {
        S::Offered(g) | S::Owned(g) | S::Releasing(g) if *g == by => {
            Ok((S::Removing(by), vec![HandoffEffect::PersistRemoval]))
        }
        // Being made durable: the confirmation follows.
        S::Removing(g) if *g == by => Err(HandoffRefused),
        _ => Ok((state.clone(), vec![HandoffEffect::Confirm(by)])),
    }
}

fn gone(state: &HandoffState, life: &Life) -> HandoffTransition {
    use HandoffState as S;
    match state {
        S::Granting(g) | S::Offered(g) | S::Owned(g) | S::Releasing(g) if g.is_of(life) => {
            Ok((S::Orphaned(g.clone()), vec![HandoffEffect::StartFenceDelay]))
        }
        // The grant is void, and the release that is written with it must not be lost.
        S::Passing { from, to } if to.is_of(life) => Ok((S::Freeing(from.clone()), vec![HandoffEffect::Retry])),
        // `Freeing` and `Removing` end in a write that is under way and that only the leader can undo.
        _ => Err(HandoffRefused),
    }
}

fn owns(state: &HandoffState, by: Granted) -> HandoffTransition {
    use HandoffState as S;
    match state {
        S::Offered(g) | S::Owned(g) if *g == by => Ok((S::Owned(by), vec![HandoffEffect::Arrived])),
        // The same worker under another token as well: it has to release that before it gets a new one.
        S::Offered(g) | S::Owned(g) | S::Releasing(g) if g.is_of(&by.life()) => {
            Ok((S::Releasing(by), vec![HandoffEffect::AskRelease]))
        }
        _ => Ok((state.clone(), vec![HandoffEffect::Conflict(by)])),
    }
}

fn owns_nothing(state: &HandoffState, life: &Life) -> HandoffTransition {
    use HandoffState as S;
    match state {
        S::Offered(g) if mutant::is(Mutant::TokenOfferedTwice) && g.is_of(life) => {
            Ok((state.clone(), vec![HandoffEffect::Offer]))
        }
        // The offer was lost with its stream. It is void: the next one gets a new token.
        S::Offered(g) | S::Owned(g) | S::Releasing(g) if g.is_of(life) => Ok((S::Unowned, vec![])),
        // A grant that is being written was not offered yet; the offer goes out on the new stream.
        _ => Err(HandoffRefused),
    }
}

fn unbound(state: &HandoffState) -> HandoffTransition {
    use HandoffState as S;
    match state {
        S::Unowned | S::Orphaned(_) => Ok((S::Unowned, vec![])),
        S::Granting(_)
        | S::Offered(_)
        | S::Owned(_)
        | S::Releasing(_)
        | S::Freeing(_)
        | S::Passing { .. }
        | S::Removing(_) => Err(HandoffRefused),
    }
}

#[cfg(test)]
mod tests;
