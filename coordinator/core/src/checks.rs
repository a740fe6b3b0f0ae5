//! Independent checks of a machine, shared by tests, the simulator and debug builds. They recompute from the table what
//! the machine keeps incrementally, and know nothing of how it got there.

use std::collections::{BTreeMap, BTreeSet};

use crate::handoff::HandoffState;
use crate::machine::Machine;
use crate::unowned::has_owner;

/// Everything that is wrong, one sentence each; empty when all is well.
#[must_use]
pub fn machine(machine: &Machine) -> Vec<String> {
    let mut wrong = Vec::new();
    check_rows(machine, &mut wrong);
    check_conflicts(machine, &mut wrong);
    check_tallies(machine, &mut wrong);
    check_budgets(machine, &mut wrong);
    wrong
}

/// Checks each row of the table against what is kept beside it.
fn check_rows(machine: &Machine, wrong: &mut Vec<String>) {
    let mut tokens = BTreeSet::new();
    for (slot, entry) in machine.table().iter() {
        let (id, state) = (entry.id, entry.state.name());
        if let Some(g) = entry.state.grant() {
            if !tokens.insert(g.token) {
                wrong.push(format!("token {} stands for two appliances, one is {id}", g.token));
            }
            if g.token.term > machine.term()
                || (g.token.term == machine.term() && g.token.sequence >= machine.next_sequence())
            {
                wrong.push(format!("{id} has token {}, which was never given", g.token));
            }
        }
        if entry.mode.hands_off != machine.is_covered(slot) {
            wrong.push(format!("{id} is in {:?}, which is not what the rules say", entry.mode));
        }
        if machine.unowned().since(slot).is_some() == has_owner(&entry.state) {
            wrong.push(format!("{id} is {state}, which is not what the list of unowned ones says"));
        }
        if let Some(life) = entry.state.granted_to() {
            if !machine.membership().lives().any(|l| *l == life) {
                wrong.push(format!("{id} is {state} to {}, which is gone", life.worker));
            }
            if machine.is_quarantined(id) {
                wrong.push(format!("{id} is {state} although it is quarantined"));
            }
        }
        if matches!(entry.state, HandoffState::Orphaned(_)) && entry.fence_delay() < entry.fence_delay_if_lost {
            wrong.push(format!("{id} lost its owner without the fence delay of {:?}", entry.fence_delay_if_lost));
        }
        if machine.table().slot(id) != Some(slot) {
            wrong.push(format!("{id} is not found under its id"));
        }
    }
}

/// No appliance is kept from being moved by a claim that is known to be false.
fn check_conflicts(machine: &Machine, wrong: &mut Vec<String>) {
    for (slot, by) in machine.conflicting_owners() {
        for (life, token) in by {
            if machine.is_given_elsewhere(*slot, life, *token) {
                wrong.push(format!("{} bars slot {} under {token}, which was given elsewhere", life.worker, slot.0));
            }
        }
    }
}

/// Counts anew how many are unavailable.
fn check_budgets(machine: &Machine, wrong: &mut Vec<String>) {
    if !machine.budget_ledger().is_idle() && machine.budget_ledger().counts() != machine.counted_anew().counts() {
        let (kept, anew) = (machine.budget_ledger().counts(), machine.counted_anew().counts());
        wrong.push(format!("budgets count {kept:?}, which is {anew:?}"));
    }
}

/// Counts anew what the machine counts with every change.
fn check_tallies(machine: &Machine, wrong: &mut Vec<String>) {
    let mut granted: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
    let mut states: BTreeMap<&'static str, u64> = BTreeMap::new();
    let mut held: BTreeMap<_, u64> = BTreeMap::new();
    for (slot, entry) in machine.table().iter() {
        *states.entry(entry.state.name()).or_default() += 1;
        if let Some(g) = entry.state.holder() {
            *held.entry(g.life()).or_default() += 1;
        }
        if let Some(life) = entry.state.granted_to() {
            granted.entry(life).or_default().insert(slot);
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
}
