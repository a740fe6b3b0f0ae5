//! The hand-off of one appliance: one `match` over every pair of state and event.
//!
//! | state     | Assign   | Take      | Durable  | Undone   | Ack   | Declined | Released | Deleted  | Gone     | Holds               | HoldsNothing |
//! |-----------|----------|-----------|----------|----------|-------|----------|----------|----------|----------|---------------------|--------------|
//! | Unowned   | Granting | .         | .        | .        | .     | .        | confirm  | confirm  | .        | conflict            | .            |
//! | Granting  | .        | .         | Offered  | Unowned  | .     | .        | confirm  | confirm  | Orphaned | conflict            | .            |
//! | Offered   | .        | Releasing | .        | .        | Owned | Unowned  | Freeing  | Removing | Orphaned | Owned, Releasing    | Unowned      |
//! | Owned     | .        | Releasing | .        | .        | .     | .        | Freeing  | Removing | Orphaned | Owned, Releasing    | Unowned      |
//! | Releasing | .        | .         | .        | .        | .     | Unowned  | Freeing  | Removing | Orphaned | Releasing           | Unowned      |
//! | Freeing   | Passing  | .         | Unowned  | retry    | .     | .        | .        | .        | .        | conflict            | .            |
//! | Passing   | .        | .         | Offered  | Freeing  | .     | .        | confirm  | confirm  | Freeing  | conflict            | .            |
//! | Orphaned  | Granting | .         | .        | .        | .     | .        | confirm  | confirm  | .        | conflict            | .            |
//! | Removing  | .        | .         | removed  | retry    | .     | .        | .        | .        | .        | conflict            | .            |
//!
//! `.` is refused without any change. Answers of workers count only if worker, incarnation and token all equal the
//! state's; everything else is treated as sent by a worker that is not the owner (docs/protocol.md, Tokens and grants).
//! Nothing here is ever ended by time: an offer and a release end by the worker's word or by the end of its lease.
//!
//! `Passing` is `Freeing` and `Granting` in one: what was handed in and the next grant are made durable by one write, so
//! that nobody looks after the appliance for as long as one commit takes, and not two. Answers of the next owner are
//! those of `Granting`, answers of the former one those of `Freeing`.

use std::time::Duration;

use common::mutant::{self, Mutant};
use common::session::Carryover;
use common::{Life, Token, WorkerId};

use crate::grants::Granted;

/// Where the ownership of one appliance stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// Nobody may act. The store may still have a grant that is void: the next one overwrites it.
    Unowned,
    /// A grant is being made durable; nobody was told (I4).
    Granting(Granted),
    /// The grant is durable and on its way, once.
    Offered(Granted),
    /// The worker took it.
    Owned(Granted),
    /// The worker was asked to give it up. Only its word or the end of its lease leads on.
    Releasing(Granted),
    /// Given up; what the owner handed in is being made durable.
    Freeing(Granted),
    /// Given up, and what the owner handed in is being made durable together with the next grant; nobody was told.
    Passing {
        /// The owner that gave it up, and waits for the confirmation.
        from: Granted,
        /// The next one.
        to: Granted,
    },
    /// Its owner is gone: nobody acts, and the store still names the former owner.
    Orphaned(Granted),
    /// Its owner removed every trace; its rows are being removed.
    Removing(Granted),
}

impl State {
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
pub enum Event {
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
    Holds(Granted),
    /// A worker's `Hello` does not list it.
    HoldsNothing(Life),
}

/// What has to be done because of a transition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Make the grant durable.
    PersistGrant,
    /// Make what was handed in and the grant durable, in one write.
    PersistPass,
    /// Tell the worker, once.
    Offer,
    /// Ask the worker to give it up.
    AskRelease,
    /// Make what was handed in durable, and the appliance free.
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
    /// Its owner is gone; the hold starts in full.
    StartHold,
    /// A worker acts on it against the table: no other worker may be granted it until that ended.
    Conflict(Granted),
    /// It has gone for ever.
    Removed,
}

/// The event changes nothing in this state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused;

/// The next state and what has to be done.
///
/// # Errors
/// [`Refused`] when the event does not count in this state; the state is unchanged then.
pub fn step(state: &State, event: Event) -> Result<(State, Vec<Effect>), Refused> {
    use Event as E;
    use State as S;
    let next = |state: State| Ok((state, vec![]));
    match (state, event) {
        // --- the planner
        (S::Unowned | S::Orphaned(_), E::Assign(to)) if mutant::is(Mutant::GrantNotPersisted) => {
            Ok((S::Offered(to), vec![Effect::PersistGrant, Effect::Offer]))
        }
        (S::Unowned | S::Orphaned(_), E::Assign(to)) => Ok((S::Granting(to), vec![Effect::PersistGrant])),
        (S::Freeing(from), E::Assign(to)) => Ok((S::Passing { from: from.clone(), to }, vec![Effect::PersistPass])),
        (
            S::Granting(_) | S::Offered(_) | S::Owned(_) | S::Releasing(_) | S::Passing { .. } | S::Removing(_),
            E::Assign(_),
        ) => Err(Refused),
        (S::Owned(g) | S::Offered(g), E::Take) => Ok((S::Releasing(g.clone()), vec![Effect::AskRelease])),
        (
            S::Unowned
            | S::Granting(_)
            | S::Releasing(_)
            | S::Freeing(_)
            | S::Passing { .. }
            | S::Orphaned(_)
            | S::Removing(_),
            E::Take,
        ) => Err(Refused),

        // --- the store
        (S::Granting(g), E::Durable(t)) if g.token == t => Ok((S::Offered(g.clone()), vec![Effect::Offer])),
        (S::Freeing(g), E::Durable(t)) if g.token == t => Ok((S::Unowned, vec![Effect::Confirm(g.clone())])),
        (S::Removing(g), E::Durable(t)) if g.token == t => {
            Ok((S::Unowned, vec![Effect::Confirm(g.clone()), Effect::Removed]))
        }
        (S::Passing { from, to }, E::Durable(t)) if to.token == t => {
            Ok((S::Offered(to.clone()), vec![Effect::Confirm(from.clone()), Effect::Offer]))
        }
        // What was handed in is in the store by a write of its own; the grant is not yet.
        (S::Passing { from, to }, E::Durable(t)) if from.token == t => {
            Ok((S::Granting(to.clone()), vec![Effect::Confirm(from.clone())]))
        }
        (S::Passing { from, to }, E::Undone(t)) if to.token == t => Ok((S::Freeing(from.clone()), vec![Effect::Retry])),
        // The token is burnt: the sequence never goes back.
        (S::Granting(g), E::Undone(t)) if g.token == t => next(S::Unowned),
        (S::Freeing(g) | S::Removing(g), E::Undone(t)) if g.token == t => Ok((state.clone(), vec![Effect::Retry])),
        (_, E::Durable(_) | E::Undone(_)) => Err(Refused),

        // --- the worker that holds it
        (S::Offered(g), E::Ack(by)) if *g == by => Ok((S::Owned(by), vec![Effect::Arrived])),
        (_, E::Ack(_)) => Err(Refused),
        // A worker also declines what it was asked to release before it took it.
        (S::Offered(g) | S::Releasing(g), E::Declined(by)) if *g == by => {
            Ok((S::Unowned, vec![Effect::LeaveOut(by.worker)]))
        }
        (_, E::Declined(_)) => Err(Refused),
        (S::Offered(g) | S::Owned(g) | S::Releasing(g), E::Released(by, handed)) if *g == by => {
            let lost = mutant::is(Mutant::HoldLostOnRelease);
            let handed = if lost { Carryover { fence_delay: Duration::ZERO, ..handed } } else { handed };
            Ok((S::Freeing(by), vec![Effect::PersistFree(handed)]))
        }
        (S::Offered(g) | S::Owned(g) | S::Releasing(g), E::Deleted(by)) if *g == by => {
            Ok((S::Removing(by), vec![Effect::PersistRemoval]))
        }
        // Being made durable: the confirmation follows.
        (S::Freeing(g) | S::Passing { from: g, .. }, E::Released(by, _)) | (S::Removing(g), E::Deleted(by))
            if *g == by =>
        {
            Err(Refused)
        }
        // Said again by somebody who holds nothing any more: it need not be said a third time.
        (_, E::Released(by, _) | E::Deleted(by)) => Ok((state.clone(), vec![Effect::Confirm(by)])),

        // --- the end of a lease
        (S::Granting(g) | S::Offered(g) | S::Owned(g) | S::Releasing(g), E::Gone(life)) if g.is_of(&life) => {
            Ok((S::Orphaned(g.clone()), vec![Effect::StartHold]))
        }
        // The grant is void, and what was handed in must not be lost with it.
        (S::Passing { from, to }, E::Gone(life)) if to.is_of(&life) => {
            Ok((S::Freeing(from.clone()), vec![Effect::Retry]))
        }
        // Both end in a write that is under way and that nobody but the leader can undo.
        (S::Freeing(_) | S::Removing(_), E::Gone(..)) => Err(Refused),
        (_, E::Gone(..)) => Err(Refused),

        // --- what a worker says it holds when it comes back
        (S::Offered(g) | S::Owned(g), E::Holds(by)) if *g == by => Ok((S::Owned(by), vec![Effect::Arrived])),
        (S::Releasing(g), E::Holds(by)) if *g == by => Ok((S::Releasing(by), vec![Effect::AskRelease])),
        // The same worker under another token: what it holds has to end before it gets a new one.
        (S::Offered(g) | S::Owned(g) | S::Releasing(g), E::Holds(by)) if g.is_of(&by.life()) => {
            Ok((S::Releasing(by), vec![Effect::AskRelease]))
        }
        (_, E::Holds(by)) => Ok((state.clone(), vec![Effect::Conflict(by)])),
        (S::Offered(g), E::HoldsNothing(life)) if mutant::is(Mutant::TokenOfferedTwice) && g.is_of(&life) => {
            Ok((state.clone(), vec![Effect::Offer]))
        }
        // The offer went down with its stream. It is void: the next one gets a new token.
        (S::Offered(g) | S::Owned(g) | S::Releasing(g), E::HoldsNothing(life)) if g.is_of(&life) => next(S::Unowned),
        // Not told yet, so it cannot hold it; the offer will go out on the new stream.
        (S::Granting(_), E::HoldsNothing(..)) => Err(Refused),
        (_, E::HoldsNothing(..)) => Err(Refused),
    }
}

#[cfg(test)]
mod tests;
