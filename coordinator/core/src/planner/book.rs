//! The appliances: what each needs, where it lies on the ring, who holds it; in order of the ring, per holder.
//!
//! Appliances with the same needs form a *group* with an index and a list per holder of its own, so that reading what
//! concerns a few appliances never passes by all the others. An appliance that must not be picked is in no list; it
//! only counts.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use common::{ApplianceId, WorkerId};

use super::index::{Index, RingKey};
use super::roster::{NOBODY, narrow};
use super::{Needs, Slot};

/// Marks a packed holder whose appliance must not be picked.
const FIXED: u32 = 1 << 31;

/// One appliance.
#[derive(Clone, Copy, Debug)]
pub(super) struct BookEntry {
    /// Upper half of its position on the ring.
    pub(super) position: u64,
    pub(super) group: u32,
    /// Handle of who holds it, or [`NOBODY`].
    pub(super) owner: u32,
    /// Handle of who held it last, or [`NOBODY`].
    pub(super) former: u32,
    pub(super) movable: bool,
}

impl BookEntry {
    const fn holder(&self) -> u32 {
        if self.movable { self.owner } else { self.owner | FIXED }
    }
}

/// The holder of a key that may be picked.
pub(super) const fn pickable(key: &RingKey) -> Option<u32> {
    if key.holder & FIXED == 0 { Some(key.holder) } else { None }
}

/// The holder of any key.
pub(super) const fn holder(key: &RingKey) -> u32 {
    key.holder & !FIXED
}

/// What one worker, or none, owns of a group.
#[derive(Clone, Debug, Default)]
pub(super) struct Held {
    /// What may be picked, in the order of the ring.
    pub(super) movable: BTreeSet<(u64, u32)>,
    /// Number of the others.
    pub(super) fixed: u64,
}

impl Held {
    pub(super) fn count(&self) -> u64 {
        self.movable.len() as u64 + self.fixed
    }
}

/// Appliances with the same needs, those that are being deleted apart from the others.
#[derive(Clone, Debug)]
pub(super) struct Group {
    pub(super) needs: Needs,
    /// They are about to be gone: each needs an owner that removes it, and none counts for the balance.
    pub(super) deleting: bool,
    pub(super) index: Index,
    /// By handle; without those that hold nothing.
    pub(super) held: BTreeMap<u32, Held>,
}

/// All appliances.
#[derive(Clone, Debug, Default)]
pub(super) struct Book {
    entries: Vec<Option<BookEntry>>,
    /// By slot, beside the entries: planning reads those, and ids only to name what it moves. One without an entry is that
    /// of an appliance that was removed.
    ids: Vec<ApplianceId>,
    groups: Vec<Option<Group>>,
    /// By what they need; those that are being deleted are in the second one.
    by_needs: [HashMap<Needs, u32>; 2],
    /// Members that declined an appliance. Usually empty.
    pub(super) excluded: BTreeMap<Slot, BTreeSet<WorkerId>>,
}

impl Book {
    pub(super) fn entry(&self, slot: Slot) -> Option<&BookEntry> {
        self.entries.get(slot.0 as usize).and_then(Option::as_ref)
    }

    /// The id of an appliance that is in the book.
    pub(super) fn id(&self, slot: u32) -> ApplianceId {
        self.ids[slot as usize]
    }

    /// Every appliance by slot, with its id.
    pub(super) fn ids(&self) -> impl Iterator<Item = (u32, &ApplianceId)> {
        let present = (0..).zip(self.entries.iter().zip(&self.ids));
        present.filter_map(|(slot, (entry, id))| entry.as_ref().map(|_| (slot, id)))
    }

    pub(super) fn slot_limit(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn group(&self, group: u32) -> &Group {
        self.groups[group as usize].as_ref().expect("entries and classes name groups that exist")
    }

    pub(super) fn groups(&self) -> impl Iterator<Item = (u32, &Group)> {
        (0..).zip(&self.groups).filter_map(|(at, group)| group.as_ref().map(|group| (at, group)))
    }

    /// The group of these needs, made when missing; `true` when it was made.
    pub(super) fn group_of(&mut self, needs: &Needs, deleting: bool) -> (u32, bool) {
        let by_needs = &mut self.by_needs[usize::from(deleting)];
        if let Some(&group) = by_needs.get(needs) {
            return (group, false);
        }
        let made = Group { needs: needs.clone(), deleting, index: Index::default(), held: BTreeMap::new() };
        let at = if let Some(at) = self.groups.iter().position(Option::is_none) {
            self.groups[at] = Some(made);
            narrow(at)
        } else {
            self.groups.push(Some(made));
            narrow(self.groups.len() - 1)
        };
        by_needs.insert(needs.clone(), at);
        (at, true)
    }

    /// Drops groups without appliances. Not done as they empty: the one of new appliances empties all the time.
    pub(super) fn drop_empty_groups(&mut self) {
        for group in &mut self.groups {
            if let Some(empty) = group.take_if(|g| g.index.len() == 0) {
                self.by_needs[usize::from(empty.deleting)].remove(&empty.needs);
            }
        }
    }

    pub(super) fn insert(&mut self, slot: Slot, id: ApplianceId, entry: BookEntry) {
        let at = slot.0 as usize;
        if at >= self.entries.len() {
            self.entries.resize(at + 1, None);
            self.ids.resize(at + 1, id);
        }
        self.ids[at] = id;
        self.entries[at] = Some(entry);
        let group = self.group_mut(entry.group);
        group.index.insert(RingKey { position: entry.position, slot: slot.0, holder: entry.holder() });
        enlist(group, slot, &entry);
    }

    pub(super) fn remove(&mut self, slot: Slot) -> Option<BookEntry> {
        let entry = self.entries.get_mut(slot.0 as usize)?.take()?;
        let group = self.group_mut(entry.group);
        group.index.remove(entry.position, slot.0);
        strike(group, slot, &entry);
        Some(entry)
    }

    /// Changes who holds an appliance, who held it last, or whether it may be picked.
    pub(super) fn change(&mut self, slot: Slot, change: impl FnOnce(&mut BookEntry)) {
        let Some(Some(entry)) = self.entries.get_mut(slot.0 as usize) else { return };
        let before = *entry;
        change(entry);
        let after = *entry;
        if before.holder() != after.holder() {
            let group = self.group_mut(after.group);
            group.index.set_holder(after.position, slot.0, after.holder());
            strike(group, slot, &before);
            enlist(group, slot, &after);
        }
    }

    /// Whether this member declined the appliance.
    pub(super) fn is_excluded(&self, slot: u32, member: &WorkerId) -> bool {
        !self.excluded.is_empty() && self.excluded.get(&Slot(slot)).is_some_and(|members| members.contains(member))
    }

    fn group_mut(&mut self, group: u32) -> &mut Group {
        self.groups[group as usize].as_mut().expect("entries name groups that exist")
    }
}

fn enlist(group: &mut Group, slot: Slot, entry: &BookEntry) {
    let held = group.held.entry(entry.owner).or_default();
    if entry.movable {
        held.movable.insert((entry.position, slot.0));
    } else {
        held.fixed += 1;
    }
}

fn strike(group: &mut Group, slot: Slot, entry: &BookEntry) {
    let Some(held) = group.held.get_mut(&entry.owner) else { return };
    if entry.movable {
        held.movable.remove(&(entry.position, slot.0));
    } else {
        held.fixed -= 1;
    }
    if held.count() == 0 {
        group.held.remove(&entry.owner);
    }
}

const _: () = assert!(NOBODY & FIXED == 0);
