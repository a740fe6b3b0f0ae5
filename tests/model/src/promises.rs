//! What must hold in every state.

use std::fmt;

use common::Timestamp;
use common::mutant;
use coordinator_core::handoff::HandoffState as Ownership;
use coordinator_core::machine::HandsOff;
use stateright::Property;

use crate::checker::Hypothesis;
use crate::setup::Setup;
use crate::state::ModelState;

/// A promise of docs/protocol.md, or what follows from them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Promise {
    /// At most one worker acts on an appliance.
    I1,
    /// Nothing of a former owner takes effect once its successor has started a call.
    LateEffect,
    /// What comes to rest has owners.
    I2,
    /// Tokens only grow.
    I3,
    /// A grant is in the store before it is on the wire.
    I4,
    /// Nothing of a term follows anything of a later one, and a leader's own writes keep their order.
    I5,
    /// No call starts for what a debug mode was answered for.
    I6,
    /// The machine agrees with itself.
    Checks,
    /// No leader meets what contradicts its table, as long as the store keeps what it has.
    Contradiction,
    /// Nobody but a life itself makes a leader believe anything of it.
    Stranger,
}

impl Promise {
    /// What the checker calls it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::I1 => "I1: one worker acts",
            Self::LateEffect => "I1: no late effect of a former owner",
            Self::I2 => "I2: what comes to rest has owners",
            Self::I3 => "I3: tokens grow",
            Self::I4 => "I4: stored before offered",
            Self::I5 => "I5: terms and writes in order",
            Self::I6 => "I6: hands stay off",
            Self::Checks => "the machine agrees with itself",
            Self::Contradiction => "nothing contradicts the table",
            Self::Stranger => "a stranger is not believed",
        }
    }
}

/// A promise that was broken, and how.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Wrong {
    pub(crate) promise: Promise,
    text: Box<str>,
}

impl Wrong {
    pub(crate) fn new(promise: Promise, text: String) -> Self {
        Self { promise, text: text.into_boxed_str() }
    }
}

impl fmt::Debug for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.promise.name(), self.text)
    }
}

fn kept(state: &ModelState, promise: Promise) -> bool {
    state.wrong.as_ref().is_none_or(|wrong| wrong.promise != promise)
}

/// Whether at most one worker acts on each appliance.
fn one_acts(model: &Hypothesis, state: &ModelState) -> bool {
    mutant::with(model.setup.mutant, || {
        model.setup.ids().all(|id| state.workers.iter().filter(|w| w.value.acts(state.now, id)).count() <= 1)
    })
}

/// Whether no call may start for what the rule in force was answered for.
fn hands_stay_off(model: &Hypothesis, state: &ModelState) -> bool {
    let rule = state.store.value.rule.map(u32::from);
    mutant::with(model.setup.mutant, || {
        state.answered.iter().filter(|(of, _)| Some(*of) == rule).all(|(_, id)| {
            !state.workers.iter().any(|worker| worker.value.may_begin(state.now, *id, model.setup.fencing))
        })
    })
}

/// Whether a state that is left to itself comes to rest in good order. Asked of some states only.
fn left_to_itself(model: &Hypothesis, state: &ModelState) -> bool {
    state.wrong.is_some()
        || !state.is_sampled(model.setup.sample)
        || mutant::with(model.setup.mutant, || {
            let rest = model.rest_of(state.clone());
            // Other promises are looked at where the checker comes by.
            rest.wrong.is_some() || (model.rests(&rest) && unsettled(model, &rest).is_none())
        })
}

/// What a state that came to rest lacks, if anything.
pub(crate) fn unsettled(model: &Hypothesis, state: &ModelState) -> Option<String> {
    let now: Timestamp = state.now;
    if !state.workers.iter().any(|worker| worker.value.runs) {
        return None;
    }
    let Some(leader) = state.leader() else { return Some("nobody leads".to_owned()) };
    let machine = &leader.machine.value;
    for (_, entry) in machine.table().iter() {
        let Ownership::Owned(granted) = &entry.state else {
            return Some(format!("{} is {:?}", entry.id, entry.state));
        };
        if state.store.value.grants.get(&entry.id).and_then(|row| row.granted.as_ref()) != Some(granted) {
            return Some(format!("{} is held under {}, but not in the store", entry.id, granted.token));
        }
        let owner = state.workers.iter().find(|worker| worker.value.name == granted.worker);
        let acts = owner.is_some_and(|w| w.value.may_begin(now, entry.id, model.setup.fencing));
        let hands_off = machine.hands_off(now, entry.id);
        // A commit of a rule may have taken place that its leader took for lost: the next write tells it, and a new term begins.
        let knows = machine.mode_rules().next().is_some() == state.store.value.rule.is_some();
        match state.store.value.rule {
            _ if !knows && leader.written < state.store.value.batch => {}
            None if !acts => return Some(format!("{} may not act on {}", granted.worker, entry.id)),
            // Whether the gate keeps to it is asked of every state (I6).
            Some(_) if !matches!(hands_off, Some(HandsOff::Off(_))) => {
                return Some(format!("{} is in {hands_off:?} with {}, may act: {acts}", entry.id, granted.worker));
            }
            None | Some(_) => {}
        }
    }
    let unsaid = state.workers.iter().find(|w| {
        !w.value
            .conversation
            .assignments()
            .clone()
            .hello(&w.value.name, &common::Profile::default(), &Setup::secret(0))
            .1
            .released
            .is_empty()
    });
    unsaid.map(|worker| format!("{} still repeats a release", worker.value.name))
}

/// Every promise as a property for the checker, and what shows that the model is not empty.
pub(crate) fn properties() -> Vec<Property<Hypothesis>> {
    vec![
        Property::always(Promise::I1.name(), |model, state| kept(state, Promise::I1) && one_acts(model, state)),
        Property::always(Promise::LateEffect.name(), |_, state| kept(state, Promise::LateEffect)),
        Property::always(Promise::I2.name(), |model, state| !model.rests(state) || unsettled(model, state).is_none()),
        Property::always("I2: left to itself, everything gets an owner", left_to_itself),
        Property::always(Promise::I3.name(), |_, state| kept(state, Promise::I3)),
        Property::always(Promise::I4.name(), |_, state| kept(state, Promise::I4)),
        Property::always(Promise::I5.name(), |_, state| kept(state, Promise::I5)),
        Property::always(Promise::I6.name(), hands_stay_off),
        Property::always(Promise::Checks.name(), |_, state| kept(state, Promise::Checks)),
        Property::always(Promise::Contradiction.name(), |_, state| kept(state, Promise::Contradiction)),
        Property::always(Promise::Stranger.name(), |_, state| kept(state, Promise::Stranger)),
    ]
}
