//! Deliberate mistakes, to show that the checks of the ownership protocol (docs/protocol.md) can fail.
//!
//! Each stands for a rule: the code that keeps the rule asks [`is`] whether it shall be broken on this thread. Without the
//! feature `mutants`, which only the simulation and the model switch on, the answer is a constant `false` and nothing of
//! this is compiled in.

/// A rule to be broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Mutant {
    /// No term is checked: not by the worker in what it is told, not by the store in what it is given.
    NoTermCheck,
    /// A grant is offered before the store has it.
    GrantNotPersisted,
    /// A worker is called gone when its stream breaks.
    GoneWithStream,
    /// Workers act whether or not their lease stands.
    NoLease,
    /// An offer that is not answered for a while is taken back without asking.
    OfferEndedByTime,
    /// A worker says that it released while a step still runs.
    EarlyRelease,
    /// What an appliance runs on does not look at tokens.
    BackendIgnoresTokens,
    /// A worker takes tokens older than one it has met.
    OldTokens,
    /// A worker takes a grant of a stream that broke.
    LateGrant,
    /// One gate for all grants of a worker: what it released it can still act on while its lease stands.
    GatePerWorker,
    /// The token of a grant that was not taken is offered a second time.
    TokenOfferedTwice,
    /// An appliance that is offered anew is offered without its fence delay.
    FenceDelayLostOnOffer,
    /// A release does not say what is left of the fence delay.
    FenceDelayLostOnRelease,
    /// A worker is called gone when its member node is.
    GoneByMemberNode,
    /// Batches do not depend on the one before.
    UnchainedBatches,
    /// The leader goes on with the nodes it knew after its connection to the service broke.
    CachedMembers,
    /// Who came back under a name is taken for who was there before.
    NameWithoutSession,
    /// Nodes are taken from what events say, and not from a read that follows.
    MembersFromEvents,
    /// After a reconnect, or as a new leader, lives are judged by when they were heard of before.
    SeenNotReset,
    /// Workers use a clock that stands still while they are suspended.
    StandingClock,
    /// A `Hello` counts as a heartbeat before it is known whether its stream is the newest, and whose it is.
    RefusedHelloBeats,
    /// What proves that a stream belongs to a life is not asked for.
    ProofNotAsked,
    /// A term that somebody claims to have met is believed, whoever it is.
    ClaimOfAnybody,
    /// A worker is believed that it owns what another life was granted.
    ClaimsBelieved,
    /// A stream that broke is taken for a proof that the process has ended.
    BrokenStreamAsWitness,
    /// A witness of the end of one process is believed about whoever runs in its place now.
    WitnessByPlace,
    /// A worker says that it keeps its hands off before its gate is shut.
    ModeAcknowledgedEarly,
    /// Whoever set a mode is answered without the owners that cannot be reached.
    ModeAnsweredUnreached,
    /// A grant says that hands are on, whatever holds for its appliance.
    ModeLostOnGrant,
    /// A new leader knows nothing of the rules of the one before.
    ModeForgotten,
    /// A worker ends a mode when its own clock says that it lasted for long enough.
    ModeEndedByWorker,
    /// The gate does not ask whether hands are off.
    GateIgnoresMode,
    /// A budget does not count what is unavailable already.
    BudgetIgnoresDown,
    /// What moves still counts for its tenant where it was.
    SpreadCountsMovedTwice,
}

impl Mutant {
    /// All of them.
    pub const ALL: [Self; 34] = [
        Self::NoTermCheck,
        Self::GrantNotPersisted,
        Self::GoneWithStream,
        Self::NoLease,
        Self::OfferEndedByTime,
        Self::EarlyRelease,
        Self::BackendIgnoresTokens,
        Self::OldTokens,
        Self::LateGrant,
        Self::GatePerWorker,
        Self::TokenOfferedTwice,
        Self::FenceDelayLostOnOffer,
        Self::FenceDelayLostOnRelease,
        Self::GoneByMemberNode,
        Self::UnchainedBatches,
        Self::CachedMembers,
        Self::NameWithoutSession,
        Self::MembersFromEvents,
        Self::SeenNotReset,
        Self::StandingClock,
        Self::RefusedHelloBeats,
        Self::ProofNotAsked,
        Self::ClaimOfAnybody,
        Self::ClaimsBelieved,
        Self::BrokenStreamAsWitness,
        Self::WitnessByPlace,
        Self::ModeAcknowledgedEarly,
        Self::ModeAnsweredUnreached,
        Self::ModeLostOnGrant,
        Self::ModeForgotten,
        Self::ModeEndedByWorker,
        Self::GateIgnoresMode,
        Self::BudgetIgnoresDown,
        Self::SpreadCountsMovedTwice,
    ];
}

#[cfg(feature = "mutants")]
thread_local! {
    static BROKEN: std::cell::Cell<Option<Mutant>> = const { std::cell::Cell::new(None) };
}

/// Whether this rule is broken on this thread.
#[cfg(feature = "mutants")]
#[must_use]
pub fn is(mutant: Mutant) -> bool {
    BROKEN.get() == Some(mutant)
}

/// Whether this rule is broken on this thread: never.
#[cfg(not(feature = "mutants"))]
#[must_use]
#[inline(always)]
pub const fn is(_: Mutant) -> bool {
    false
}

/// Breaks a rule, or none, on this thread while `run` runs.
#[cfg(feature = "mutants")]
pub fn with<T>(mutant: Option<Mutant>, run: impl FnOnce() -> T) -> T {
    struct Mend(Option<Mutant>);
    impl Drop for Mend {
        fn drop(&mut self) {
            BROKEN.set(self.0);
        }
    }
    let _mend = Mend(BROKEN.replace(mutant));
    run()
}
