//! Independent checks of a machine, shared by tests, the simulator and debug builds. They recompute from the table what
//! the machine keeps incrementally, and know nothing of how it got there.

use std::collections::{BTreeMap, BTreeSet};

use crate::handoff::State;
use crate::machine::Machine;
use crate::unowned::has_owner;

/// Everything that is wrong, one sentence each; empty when all is well.
#[must_use]
pub fn machine(machine: &Machine) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut tokens = BTreeSet::new();
    let mut granted: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
    let mut states: BTreeMap<&'static str, u64> = BTreeMap::new();
    let mut held: BTreeMap<_, u64> = BTreeMap::new();
    for (slot, entry) in machine.table().iter() {
        *states.entry(entry.state.name()).or_default() += 1;
        if let Some(g) = entry.state.grant() {
            if !tokens.insert(g.token) {
                wrong.push(format!("token {} stands for two appliances, one is {}", g.token, entry.id));
            }
            if g.token.term > machine.term()
                || (g.token.term == machine.term() && g.token.sequence >= machine.next_sequence())
            {
                wrong.push(format!("{} has token {}, which was never given", entry.id, g.token));
            }
        }
        if machine.unowned().since(slot).is_some() == has_owner(&entry.state) {
            wrong.push(format!(
                "{} is {}, which is not what the list of unowned ones says",
                entry.id,
                entry.state.name()
            ));
        }
        if let Some(g) = entry.state.holder() {
            *held.entry(g.life()).or_default() += 1;
        }
        match &entry.state {
            State::Granting(g)
            | State::Passing { to: g, .. }
            | State::Offered(g)
            | State::Owned(g)
            | State::Releasing(g) => {
                let life = g.life();
                if !machine.membership().lives().any(|l| *l == life) {
                    wrong.push(format!("{} is {} to {}, which is gone", entry.id, entry.state.name(), g.worker));
                }
                granted.entry(life).or_default().insert(slot);
                if machine.is_quarantined(entry.id) {
                    wrong.push(format!("{} is {} although it is quarantined", entry.id, entry.state.name()));
                }
                if matches!(entry.state, State::Granting(_) | State::Passing { .. }) && machine.is_in_conflict(slot) {
                    wrong.push(format!("{} is being granted while a worker acts on it against the table", entry.id));
                }
            }
            State::Orphaned(_) if entry.hold() < entry.hold_if_lost => {
                wrong.push(format!("{} lost its owner without the hold of {:?}", entry.id, entry.hold_if_lost));
            }
            State::Unowned | State::Freeing(_) | State::Orphaned(_) | State::Removing(_) => {}
        }
        if machine.table().slot(entry.id) != Some(slot) {
            wrong.push(format!("{} is not found under its id", entry.id));
        }
    }
    if *machine.granted() != granted {
        wrong.push("the lists of what each life was granted differ from the table".to_owned());
    }
    // Only the numbers: hashing everything after every step would cost more than all other checks.
    for life in machine.membership().lives() {
        let (expected, held) = (machine.expected(life).count, held.get(life).copied().unwrap_or_default());
        if expected != held {
            wrong.push(format!("{} should hold {expected} by its digest, {held} by the table", life.worker));
        }
    }
    let counted: BTreeMap<_, _> = machine.states().collect();
    if counted != states {
        wrong.push(format!("counted states {counted:?} differ from the table's {states:?}"));
    }
    wrong
}
