//! Why an appliance is where it is: every member in the order of ring preference, and what speaks against it.

use common::WorkerId;
use common::ring;

use super::book::{Book, BookEntry, Group};
use super::classes::{Band, Class};
use super::roster::{MemberRoster, narrow};
use super::{CandidateRefusal, Config, PlacementCandidate, Slot, Strategy};

/// Every member, in the order in which the ring prefers them for this appliance.
pub(super) fn explain(
    roster: &MemberRoster,
    book: &Book,
    classes: &[Class],
    config: &Config,
    slot: Slot,
) -> Vec<PlacementCandidate> {
    let Some(entry) = book.entry(slot) else { return Vec::new() };
    let class = classes.iter().find(|class| class.groups.contains(&entry.group)).expect("every group has a class");
    let groups: Vec<&Group> = class.groups.iter().map(|&g| book.group(g)).collect();
    let homeless: u64 = groups.iter().map(|g| homeless(roster, class, g)).sum();
    let band = Band::new(roster, &groups, class, homeless, config);
    let is_bounded = config.strategy == Strategy::Bounded;
    let is_owner = |rank: u32| roster.rank(entry.owner) == Some(rank);
    let local_has_room = |local: Option<usize>| local.is_none_or(|local| band.load[local] < band.ceiling[local]);
    let candidate = |rank: u32| {
        let local = class.local(rank).map(|local| local as usize);
        let held = |group: &&Group| group.held.get(&roster.handle(rank)).map_or(0, super::book::Held::count);
        PlacementCandidate {
            member: roster.member(rank).id.clone(),
            refusal: refusal(roster, book, config, slot, entry, rank).or_else(|| {
                (is_bounded && !is_owner(rank) && !local_has_room(local)).then_some(CandidateRefusal::AtCeiling)
            }),
            is_owner: is_owner(rank),
            load: groups.iter().map(held).sum(),
            floor: local.map_or(0, |local| band.floor[local]),
            ceiling: local.map_or(0, |local| band.ceiling[local]),
        }
    };
    preference(roster, entry.position).into_iter().map(candidate).collect()
}

/// Members by ring preference, those without points at the end.
fn preference(roster: &MemberRoster, position: u64) -> Vec<u32> {
    // Lookups in the planner go by the upper half, so the whole lower half belongs to the same point.
    let at = (u128::from(position) << 64) | u128::from(u64::MAX);
    debug_assert_eq!(ring::top(at), position);
    let rank_of = |id: &WorkerId| roster.find(id).and_then(|handle| roster.rank(handle));
    let mut order: Vec<u32> = roster.ring.preference_at(at).filter_map(rank_of).collect();
    let mut listed = vec![false; roster.members.len()];
    order.iter().for_each(|&rank| listed[rank as usize] = true);
    order.extend((0..narrow(listed.len())).filter(|&rank| !listed[rank as usize]));
    order
}

/// What speaks against a member, the band aside.
fn refusal(
    roster: &MemberRoster,
    book: &Book,
    config: &Config,
    slot: Slot,
    entry: &BookEntry,
    rank: u32,
) -> Option<CandidateRefusal> {
    let member = roster.member(rank);
    let needs = &book.group(entry.group).needs;
    let Some(offered) = member.drivers.get(&needs.driver) else { return Some(CandidateRefusal::NoDriver) };
    if !offered.kinds.contains(&needs.kind) {
        Some(CandidateRefusal::NoKind)
    } else if !roster.is_able(rank, needs) {
        Some(CandidateRefusal::OtherSite)
    } else if !member.connected {
        Some(CandidateRefusal::NotConnected)
    } else if member.draining {
        Some(CandidateRefusal::Draining)
    } else if book.is_excluded(slot.0, &member.id) {
        Some(CandidateRefusal::Declined)
    } else if config.strategy == Strategy::Ring && roster.ring_owner(entry.position) != Some(rank) {
        Some(CandidateRefusal::NotRingOwner)
    } else {
        None
    }
}

/// Appliances of a class that a plan would place.
fn homeless(roster: &MemberRoster, class: &Class, group: &Group) -> u64 {
    let is_homeless = |handle: u32| match roster.rank(handle) {
        None => true,
        Some(rank) => class.local(rank).is_none() && roster.member(rank).connected,
    };
    group.held.iter().filter(|(handle, _)| is_homeless(**handle)).map(|(_, held)| held.movable.len() as u64).sum()
}
