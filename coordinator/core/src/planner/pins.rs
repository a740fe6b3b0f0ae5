//! Pins as a plan goes by them: an appliance that is pinned goes to its member as soon as that can take it, whatever band and ring
//! say, and is not moved from there for balance. With a strict pin it goes nowhere else; it is never taken from an owner
//! that it has, though, before its member can take it. What is being deleted is pinned no longer: it has to be removed, by
//! whoever can.

use std::collections::{BTreeMap, BTreeSet};

use common::WorkerId;

use super::Slot;
use super::book::Book;
use super::classes::Class;
use super::roster::MemberRoster;

/// Where one appliance is to be.
#[derive(Clone, Copy, Debug)]
pub(super) struct SlotPin<'a> {
    pub(super) worker: &'a WorkerId,
    /// Rank of the worker, if it is a member.
    pub(super) rank: Option<u32>,
    pub(super) strict: bool,
}

/// By slot.
pub(super) type SlotPins<'a> = BTreeMap<u32, SlotPin<'a>>;

impl SlotPin<'_> {
    /// The taker of this class that the appliance goes to; `None` while its member cannot take it.
    pub(super) fn target(&self, roster: &MemberRoster, book: &Book, class: &Class, slot: u32) -> Option<u32> {
        let local = class.local(self.rank?)?;
        let declined = book.is_excluded(slot, &roster.member(class.takers[local as usize]).id);
        (!declined).then_some(local)
    }
}

/// The pins of each class, in its order; nothing when nothing is pinned.
pub(super) fn by_class<'a>(book: &Book, classes: &[Class], pins: &SlotPins<'a>) -> Vec<SlotPins<'a>> {
    if pins.is_empty() {
        return Vec::new();
    }
    let class_of: BTreeMap<u32, usize> =
        classes.iter().enumerate().flat_map(|(at, class)| class.groups.iter().map(move |group| (*group, at))).collect();
    let mut sorted = vec![BTreeMap::new(); classes.len()];
    for (&slot, pin) in pins {
        let class = book.entry(Slot(slot)).and_then(|entry| class_of.get(&entry.group));
        if let Some(&at) = class.filter(|at| !classes[**at].deleting) {
            sorted[at].insert(slot, *pin);
        }
    }
    sorted
}

/// Appliances of a class that stay where they are, if only with nobody: what they are pinned to cannot take them.
pub(super) fn held_back(roster: &MemberRoster, book: &Book, class: &Class, pins: &SlotPins<'_>) -> BTreeSet<u32> {
    let held = |(slot, pin): &(&u32, &SlotPin<'_>)| pin.strict && pin.target(roster, book, class, **slot).is_none();
    pins.iter().filter(held).map(|(slot, _)| *slot).collect()
}
