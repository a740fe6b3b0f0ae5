//! The members, their ring, and short numbers for worker names.
//!
//! A *handle* stands for a worker's name as long as it is a member or some appliance names it as owner or last owner; a
//! *rank* is the place of a member in the order of names. Decisions use ranks only, since handles depend on who came
//! first.

use std::collections::HashMap;
use std::sync::Arc;

use common::WorkerId;
use common::ring::{self, Ring, RingArc};

use super::{CandidateRefusal, Needs, PlannerMember, Strategy};

/// The handle of no worker. Leaves the top bit of a packed holder free.
pub(super) const NOBODY: u32 = u32::MAX >> 1;

#[derive(Clone, Debug)]
struct WorkerHandle {
    references: u32,
    rank: Option<u32>,
}

/// The members as they are now.
#[derive(Clone, Debug)]
pub(super) struct MemberRoster {
    /// In the order of their names, which is the order of ranks.
    pub(super) members: Vec<PlannerMember>,
    pub(super) ring: Ring,
    pub(super) version: u64,
    /// Rank of each member of the ring, by its index there.
    ring_ranks: Vec<u32>,
    /// Handle of each member, by rank.
    handles: Vec<u32>,
    in_use: Vec<Option<WorkerHandle>>,
    /// The name of each handle. Plans share it, so that a move needs no name of its own; what a plan has is left as it is
    /// when a handle gets another name.
    names: Arc<Vec<WorkerId>>,
    by_name: HashMap<WorkerId, u32>,
    free: Vec<u32>,
    pub(super) limited: RingLimited,
}

/// What was done to keep the work of each change of the members bounded. Empty when nothing had to be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RingLimited {
    /// Members that are not considered at all, because there are more than [`ring::MAX_RING_MEMBERS`].
    pub ignored: Vec<WorkerId>,
    /// By what the weights were divided on the ring; 0 or 1 when they were not. Fair shares follow the weights as they are.
    pub divisor: u32,
    /// Members that are not on the ring, because weights together exceed [`ring::MAX_RING_WEIGHT`]. Other readers of the
    /// group do not leave them out.
    pub left_out: Vec<WorkerId>,
}

impl MemberRoster {
    pub(super) fn new() -> Self {
        Self {
            members: Vec::new(),
            ring: Ring::default(),
            version: 0,
            ring_ranks: Vec::new(),
            handles: Vec::new(),
            in_use: Vec::new(),
            names: Arc::default(),
            by_name: HashMap::new(),
            free: Vec::new(),
            limited: RingLimited::default(),
        }
    }

    /// Takes over a new set of members and says which keys changed hands on the ring.
    pub(super) fn replace(&mut self, mut members: Vec<PlannerMember>, strategy: Strategy) -> Vec<RingArc> {
        members.sort_by(|a, b| a.id.cmp(&b.id));
        // Of two with one name the last counts.
        members.dedup_by(|later, kept| {
            later.id == kept.id && {
                std::mem::swap(later, kept);
                true
            }
        });
        let mut limited = RingLimited { ignored: self.ignore_beyond_limit(&mut members), ..RingLimited::default() };
        for handle in std::mem::take(&mut self.handles) {
            self.in_use[handle as usize].as_mut().expect("members keep their names").rank = None;
            self.release(handle);
        }
        self.members = members;
        for rank in 0..self.members.len() {
            let id = self.members[rank].id.clone();
            let handle = self.acquire(Some(&id));
            self.in_use[handle as usize].as_mut().expect("just acquired").rank = Some(narrow(rank));
            self.handles.push(handle);
        }
        // Under `ring` a draining member is one that leaves the group, also for the Python services that share it.
        let on_ring = |m: &PlannerMember| strategy == Strategy::Bounded || !m.gives_up();
        // tooz gives a member of weight 0 no points. Where the ring only states a preference, one that takes a share has to
        // be met on it all the same.
        let weight = |m: &PlannerMember| match strategy {
            Strategy::Bounded if !m.drivers.is_empty() => m.weight.max(1),
            _ => m.weight,
        };
        let mut wanted: Vec<(WorkerId, u32)> =
            self.members.iter().filter(|m| on_ring(m)).map(|m| (m.id.clone(), weight(m))).collect();
        match strategy {
            Strategy::Bounded => {
                limited.divisor = ring::divisor(wanted.iter().map(|(_, weight)| *weight));
                wanted.iter_mut().for_each(|(_, weight)| {
                    *weight = (*weight).min(ring::MAX_WEIGHT).div_ceil(limited.divisor);
                });
            }
            Strategy::Ring => (wanted, limited.left_out) = ring::cut(wanted),
        }
        let ring = self.ring.with_members(wanted);
        let rank_of = |id: &WorkerId| self.find(id).and_then(|handle| self.rank(handle)).expect("all are members");
        self.ring_ranks = ring.members().map(|(id, _)| rank_of(id)).collect();
        self.limited = limited;
        let changed = if strategy == Strategy::Ring { Ring::diff(&self.ring, &ring) } else { Vec::new() };
        self.ring = ring;
        self.version += 1;
        changed
    }

    /// Takes away members beyond the limit, those to which no appliance refers first, then those that take no share, and
    /// says which.
    fn ignore_beyond_limit(&self, members: &mut Vec<PlannerMember>) -> Vec<WorkerId> {
        if members.len() <= ring::MAX_RING_MEMBERS {
            return Vec::new();
        }
        let has = |m: &PlannerMember| {
            // A member that is there already has one reference for that.
            let others = |handle| {
                let name = self.in_use[handle as usize].as_ref().expect("handles in use have a name");
                name.references - u32::from(name.rank.is_some())
            };
            self.find(&m.id).is_some_and(|handle| others(handle) > 0)
        };
        members.sort_by_cached_key(|m| (!has(m), m.drivers.is_empty(), m.id.clone()));
        let ignored = members.split_off(ring::MAX_RING_MEMBERS).into_iter().map(|m| m.id).collect();
        members.sort_by(|a, b| a.id.cmp(&b.id));
        ignored
    }

    /// The handle of a name, counted once more.
    pub(super) fn acquire(&mut self, id: Option<&WorkerId>) -> u32 {
        let Some(id) = id else { return NOBODY };
        let handle = match self.by_name.get(id) {
            Some(&handle) => handle,
            None => {
                let fresh = Some(WorkerHandle { references: 0, rank: None });
                let names = Arc::make_mut(&mut self.names);
                let handle = if let Some(handle) = self.free.pop() {
                    self.in_use[handle as usize] = fresh;
                    names[handle as usize] = id.clone();
                    handle
                } else {
                    self.in_use.push(fresh);
                    names.push(id.clone());
                    narrow(names.len() - 1)
                };
                self.by_name.insert(id.clone(), handle);
                handle
            }
        };
        self.in_use[handle as usize].as_mut().expect("handles in use have a name").references += 1;
        handle
    }

    /// Gives back what [`MemberRoster::acquire`] counted; the last one frees the handle.
    pub(super) fn release(&mut self, handle: u32) {
        if handle == NOBODY {
            return;
        }
        let counted = self.in_use[handle as usize].as_mut().expect("handles in use have a name");
        counted.references -= 1;
        if counted.references == 0 {
            self.by_name.remove(&self.names[handle as usize]);
            self.in_use[handle as usize] = None;
            self.free.push(handle);
        }
    }

    pub(super) fn find(&self, id: &WorkerId) -> Option<u32> {
        self.by_name.get(id).copied()
    }

    /// The name behind a handle in use; `None` for [`NOBODY`].
    #[cfg(feature = "canon")]
    pub(super) fn name(&self, handle: u32) -> Option<&WorkerId> {
        self.names.get(handle as usize)
    }

    /// The names of all handles in use, by handle.
    pub(super) fn names(&self) -> &Arc<Vec<WorkerId>> {
        &self.names
    }

    /// Its rank, if it is a member.
    pub(super) fn rank(&self, handle: u32) -> Option<u32> {
        self.in_use.get(handle as usize).and_then(|n| n.as_ref()).and_then(|n| n.rank)
    }

    pub(super) fn handle(&self, rank: u32) -> u32 {
        self.handles[rank as usize]
    }

    pub(super) fn member(&self, rank: u32) -> &PlannerMember {
        &self.members[rank as usize]
    }

    /// Its weight for a fair share, which is never nothing; cut as the ring cuts it, since what is published may be
    /// anything.
    pub(super) fn weight(&self, rank: u32) -> u64 {
        u64::from(self.member(rank).weight.clamp(1, ring::MAX_WEIGHT))
    }

    pub(super) fn handle_count(&self) -> usize {
        self.in_use.len()
    }

    /// Rank of the member with this index on the ring.
    pub(super) fn ring_rank(&self, ring_member: u32) -> u32 {
        self.ring_ranks[ring_member as usize]
    }

    /// Index of the first point after `position`, which is the number of points when that is the first one.
    pub(super) fn successor(&self, position: u64) -> usize {
        self.ring.points().partition_point(|p| ring::top(p.position) <= position)
    }

    /// Rank of the owner the ring names.
    pub(super) fn ring_owner(&self, position: u64) -> Option<u32> {
        let points = self.ring.points();
        points.get(self.successor(position)).or(points.first()).map(|p| self.ring_rank(p.member))
    }

    /// Whether the member has what the appliance needs, whatever its state.
    pub(super) fn is_able(&self, rank: u32, needs: &Needs) -> bool {
        let member = self.member(rank);
        let offered = member.drivers.get(&needs.driver);
        offered.is_some_and(|offered| offered.can_run(&member.host, needs.kind, needs.site.as_ref()))
    }

    /// What the member lacks that the appliance needs, whatever its state.
    pub(super) fn lack(&self, rank: u32, needs: &Needs) -> Option<CandidateRefusal> {
        let Some(offered) = self.member(rank).drivers.get(&needs.driver) else {
            return Some(CandidateRefusal::NoDriver);
        };
        if !offered.kinds.contains(&needs.kind) {
            Some(CandidateRefusal::NoKind)
        } else if !self.is_able(rank, needs) {
            Some(CandidateRefusal::OtherSite)
        } else {
            None
        }
    }

    /// Whether the member can be given such an appliance now, if it is not cordoned.
    pub(super) fn can_take(&self, rank: u32, needs: &Needs) -> bool {
        let member = self.member(rank);
        member.connected && !member.gives_up() && self.is_able(rank, needs)
    }

    /// Whether an operator's order, and nothing else, keeps the member from being given such an appliance.
    pub(super) fn is_held_off(&self, rank: u32, needs: &Needs) -> bool {
        let member = self.member(rank);
        member.connected && !member.draining && (member.drained || member.cordoned) && self.is_able(rank, needs)
    }

    /// Whether the member is cordoned and keeps such an appliance, outside of any balance.
    pub(super) fn keeps(&self, rank: u32, needs: &Needs) -> bool {
        let member = self.member(rank);
        member.cordoned && !member.gives_up() && self.is_able(rank, needs)
    }
}

pub(super) fn narrow(index: usize) -> u32 {
    u32::try_from(index).expect("fewer than 2^31 names and slots")
}
