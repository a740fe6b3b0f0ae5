//! Which moves belong together: one rebalance per cause, open until its last move has ended.

#[cfg(feature = "canon")]
mod canon;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use common::{ApplianceId, RebalanceId, Term, Timestamp, WorkerId};

use crate::planner::Reason;

/// What set a rebalance off.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RebalanceCause {
    /// A new leader found appliances without an owner.
    Start,
    /// Workers joined.
    Joined(Vec<WorkerId>),
    /// Workers are gone.
    Gone(Vec<WorkerId>),
    /// Both at once.
    Changed {
        /// Who joined.
        joined: Vec<WorkerId>,
        /// Who is gone.
        gone: Vec<WorkerId>,
    },
    /// Workers are about to stop, or were taken out of the ring.
    Draining(Vec<WorkerId>),
    /// The table drifted out of the band, as after many deletions.
    Drift,
}

impl RebalanceCause {
    /// Every name, for metrics.
    pub const NAMES: [&'static str; 6] = ["start", "joined", "gone", "changed", "draining", "drift"];

    /// The name in metrics.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Joined(_) => "joined",
            Self::Gone(_) => "gone",
            Self::Changed { .. } => "changed",
            Self::Draining(_) => "draining",
            Self::Drift => "drift",
        }
    }

    /// The [name](Self::name) of the cause that prints as this.
    #[must_use]
    pub fn name_in(text: &str) -> Option<&'static str> {
        let of = |start: &str| text.starts_with(start);
        match text {
            "new leader" => Some("start"),
            "out of the band" => Some("drift"),
            _ if of("gone: ") && text.contains("; joined: ") => Some("changed"),
            _ if of("gone: ") => Some("gone"),
            _ if of("joined: ") => Some("joined"),
            _ if of("draining: ") => Some("draining"),
            _ => None,
        }
    }
}

fn names(list: &[WorkerId]) -> String {
    const SHOWN: usize = 5;
    let mut text = list.iter().take(SHOWN).map(WorkerId::as_str).collect::<Vec<_>>().join(", ");
    if list.len() > SHOWN {
        text.push_str(&format!(" and {} more", list.len() - SHOWN));
    }
    text
}

impl fmt::Display for RebalanceCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Start => f.write_str("new leader"),
            Self::Joined(j) => write!(f, "joined: {}", names(j)),
            Self::Gone(g) => write!(f, "gone: {}", names(g)),
            Self::Changed { joined, gone } => write!(f, "gone: {}; joined: {}", names(gone), names(joined)),
            Self::Draining(d) => write!(f, "draining: {}", names(d)),
            Self::Drift => f.write_str("out of the band"),
        }
    }
}

/// How a rebalance ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RebalanceEnd {
    /// All of its moves were made, or were not needed any more.
    Completed,
    /// A newer plan took over what was left.
    Superseded,
    /// An operator had it end with the moves that were under way.
    Aborted,
}

impl RebalanceEnd {
    /// Every name, for metrics.
    pub const NAMES: [&'static str; 3] = ["completed", "superseded", "aborted"];

    /// The word for it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Completed => "completed",
            Self::Superseded => "superseded",
            Self::Aborted => "aborted",
        }
    }
}

/// Event of a rebalance, for history and traces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RebalanceEvent {
    /// It began.
    Opened {
        /// Identity.
        id: RebalanceId,
        /// What set it off.
        cause: RebalanceCause,
        /// Moves planned.
        moves: u64,
        /// When what set it off was noticed.
        since: Timestamp,
    },
    /// A new leader goes on with what its predecessor began and did not end.
    Resumed {
        /// Identity, with the term it was opened in.
        id: RebalanceId,
        /// What made the new leader plan.
        cause: RebalanceCause,
        /// Moves that were made and that are planned now.
        moves: u64,
    },
    /// A later plan moves more for it, or less.
    Planned {
        /// Identity.
        id: RebalanceId,
        /// Moves that were begun and that are planned now.
        moves: u64,
    },
    /// One of its moves ended.
    Moved {
        /// Identity.
        id: RebalanceId,
        /// What moved.
        appliance: ApplianceId,
        /// Who held it before.
        from: Option<WorkerId>,
        /// Who holds it now.
        to: WorkerId,
        /// Why.
        reason: Reason,
    },
    /// All of its moves ended.
    Closed {
        /// Identity.
        id: RebalanceId,
        /// Moves begun.
        moves: u64,
        /// Moves made; at most as many.
        done: u64,
        /// How it ended.
        end: RebalanceEnd,
    },
}

#[derive(Clone, Debug)]
struct OpenRebalance {
    /// Moves that were begun and that are planned.
    planned: u64,
    begun: u64,
    under_way: u64,
    done: u64,
    /// What it has moved.
    moved: BTreeSet<ApplianceId>,
    end: RebalanceEnd,
}

/// A rebalance that a former leader began and did not end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnfinishedRebalance {
    /// Identity.
    pub id: RebalanceId,
    /// What it has moved.
    pub moved: BTreeSet<ApplianceId>,
}

/// The rebalances under way.
#[derive(Clone, Debug)]
pub struct Rebalances {
    term: Term,
    last: u64,
    open: BTreeMap<RebalanceId, OpenRebalance>,
    current: Option<RebalanceId>,
    /// The current one is of a former leader, and nothing was planned for it yet.
    inherited: bool,
}

impl Rebalances {
    /// None yet in `term`, but for what a former leader left unfinished.
    #[must_use]
    pub fn new(term: Term, unfinished: Option<UnfinishedRebalance>) -> Self {
        let current = unfinished.as_ref().map(|unfinished| unfinished.id);
        let open = unfinished.into_iter().map(|UnfinishedRebalance { id, moved }| {
            let made = moved.len() as u64;
            (
                id,
                OpenRebalance {
                    planned: made,
                    begun: made,
                    under_way: 0,
                    done: made,
                    moved,
                    end: RebalanceEnd::Completed,
                },
            )
        });
        Self { term, last: 0, open: open.collect(), current, inherited: current.is_some() }
    }

    /// Whether the current one is of a former leader and nothing was planned for it yet.
    #[must_use]
    pub const fn is_inherited(&self) -> bool {
        self.inherited
    }

    /// Whether the current one was opened by a former leader.
    #[must_use]
    pub fn is_of_former_leader(&self) -> bool {
        self.current.is_some_and(|id| id.term != self.term)
    }

    /// Goes on with the inherited one: so many moves are planned for it.
    pub fn resume(&mut self, cause: RebalanceCause, more: u64, events: &mut Vec<RebalanceEvent>) {
        let Some(id) = self.current.filter(|_| std::mem::take(&mut self.inherited)) else { return };
        let Some(open) = self.open.get_mut(&id) else { return };
        open.planned = open.begun + more;
        events.push(RebalanceEvent::Resumed { id, cause, moves: open.planned });
    }

    /// The rebalance that moves planned now belong to.
    #[must_use]
    pub const fn current(&self) -> Option<RebalanceId> {
        self.current
    }

    /// Number of rebalances that have not ended.
    #[must_use]
    pub fn open_count(&self) -> usize {
        self.open.len()
    }

    /// Opens one for what was noticed at `since`; the former current one is superseded.
    pub fn open(
        &mut self,
        cause: RebalanceCause,
        moves: u64,
        since: Timestamp,
        events: &mut Vec<RebalanceEvent>,
    ) -> RebalanceId {
        self.inherited = false;
        let former = self.current.take();
        self.last += 1;
        let id = RebalanceId { term: self.term, number: self.last };
        let open = OpenRebalance {
            planned: moves,
            begun: 0,
            under_way: 0,
            done: 0,
            moved: BTreeSet::new(),
            end: RebalanceEnd::Completed,
        };
        self.open.insert(id, open);
        self.current = Some(id);
        events.push(RebalanceEvent::Opened { id, cause, moves, since });
        // After the one that takes over from it, to which it can be linked.
        if let Some(former) = former
            && let Some(open) = self.open.get_mut(&former)
        {
            open.end = RebalanceEnd::Superseded;
            self.close_if_done(former, events);
        }
        id
    }

    /// A later plan has so many moves for the current one that have not begun.
    pub fn planned(&mut self, more: u64, events: &mut Vec<RebalanceEvent>) {
        let Some(id) = self.current else { return };
        let Some(open) = self.open.get_mut(&id) else { return };
        let moves = open.begun + more;
        if open.planned != moves {
            open.planned = moves;
            events.push(RebalanceEvent::Planned { id, moves });
        }
    }

    /// Whether the current one has moved this appliance already.
    #[must_use]
    pub fn has_moved(&self, appliance: ApplianceId) -> bool {
        let open = self.current.and_then(|id| self.open.get(&id));
        open.is_some_and(|open| open.moved.contains(&appliance))
    }

    /// A move of `id` begins.
    pub fn begin(&mut self, id: RebalanceId) {
        if let Some(open) = self.open.get_mut(&id) {
            open.begun += 1;
            open.under_way += 1;
        }
    }

    /// A move of `id` ended: this appliance was moved, or (`None`) the move was given up.
    pub fn end(&mut self, id: RebalanceId, made: Option<ApplianceId>, events: &mut Vec<RebalanceEvent>) {
        if let Some(open) = self.open.get_mut(&id) {
            open.under_way = open.under_way.saturating_sub(1);
            open.done += u64::from(made.is_some());
            open.moved.extend(made);
        }
        if self.current != Some(id) {
            self.close_if_done(id, events);
        }
    }

    /// The plan has nothing left to do: the current rebalance ends with its last move.
    pub fn nothing_left(&mut self, events: &mut Vec<RebalanceEvent>) {
        if let Some(id) = self.current
            && self.open.get(&id).is_none_or(|o| o.under_way == 0)
        {
            self.current = None;
            self.inherited = false;
            self.close_if_done(id, events);
        }
    }

    /// An operator has one end with the moves that are under way: it makes no further ones. Returns whether it was open.
    pub fn abort(&mut self, id: RebalanceId, events: &mut Vec<RebalanceEvent>) -> bool {
        let Some(open) = self.open.get_mut(&id) else { return false };
        (open.end, open.planned) = (RebalanceEnd::Aborted, open.begun);
        if self.current == Some(id) {
            self.current = None;
            self.inherited = false;
        }
        self.close_if_done(id, events);
        true
    }

    /// Whether one has not ended.
    #[must_use]
    pub fn is_open(&self, id: RebalanceId) -> bool {
        self.open.contains_key(&id)
    }

    fn close_if_done(&mut self, id: RebalanceId, events: &mut Vec<RebalanceEvent>) {
        if self.open.get(&id).is_some_and(|o| o.under_way == 0)
            && let Some(open) = self.open.remove(&id)
        {
            let OpenRebalance { begun: moves, done, end, .. } = open;
            events.push(RebalanceEvent::Closed { id, moves, done, end });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_millis(1_000);

    fn unfinished(moved: &[u128]) -> Option<UnfinishedRebalance> {
        let id = RebalanceId { term: Term::new(3), number: 5 };
        Some(UnfinishedRebalance { id, moved: moved.iter().map(|n| ApplianceId::from_u128(*n)).collect() })
    }

    #[test]
    fn the_name_of_a_cause_is_known_by_how_it_prints() {
        let of = |name: &str| vec![WorkerId::new(name).expect("valid")];
        let causes = [
            RebalanceCause::Start,
            RebalanceCause::Joined(of("w1")),
            RebalanceCause::Gone(of("w1")),
            RebalanceCause::Changed { joined: of("w1"), gone: of("w2") },
            RebalanceCause::Draining(of("w1")),
            RebalanceCause::Drift,
        ];
        for cause in causes {
            assert_eq!(RebalanceCause::name_in(&cause.to_string()), Some(cause.name()));
        }
        assert_eq!(RebalanceCause::name_in("something else"), None);
    }

    #[test]
    fn what_a_former_leader_began_goes_on_under_its_identity_and_counts() {
        let mut r = Rebalances::new(Term::new(4), unfinished(&[1, 2]));
        let mut events = vec![];
        let id = r.current().expect("inherited");
        assert!(r.is_inherited() && r.has_moved(ApplianceId::from_u128(1)));
        r.resume(RebalanceCause::Start, 1, &mut events);
        assert_eq!(events, [RebalanceEvent::Resumed { id, cause: RebalanceCause::Start, moves: 3 }]);
        r.resume(RebalanceCause::Start, 1, &mut events);
        assert_eq!(events.len(), 1, "once");
        r.begin(id);
        r.end(id, Some(ApplianceId::from_u128(3)), &mut events);
        r.nothing_left(&mut events);
        assert_eq!(events[1], RebalanceEvent::Closed { id, moves: 3, done: 3, end: RebalanceEnd::Completed });
    }

    #[test]
    fn what_a_former_leader_began_ends_with_another_cause_or_with_nothing_left() {
        let mut r = Rebalances::new(Term::new(4), unfinished(&[1]));
        let mut events = vec![];
        let former = r.current().expect("inherited");
        let next = r.open(RebalanceCause::Drift, 1, NOW, &mut events);
        assert_eq!(events[1], RebalanceEvent::Closed { id: former, moves: 1, done: 1, end: RebalanceEnd::Superseded });
        assert_eq!((next.term, r.is_inherited()), (Term::new(4), false));
        let mut r = Rebalances::new(Term::new(4), unfinished(&[]));
        r.nothing_left(&mut events);
        assert_eq!(events[2], RebalanceEvent::Closed { id: former, moves: 0, done: 0, end: RebalanceEnd::Completed });
        assert_eq!((r.current(), r.is_inherited()), (None, false));
    }

    #[test]
    fn a_superseded_rebalance_ends_with_its_last_move() {
        let mut r = Rebalances::new(Term::new(1), None);
        let mut events = vec![];
        let first = r.open(RebalanceCause::Start, 2, NOW, &mut events);
        r.begin(first);
        let second = r.open(RebalanceCause::Drift, 1, NOW, &mut events);
        assert_eq!(events.len(), 2, "the first still has a move under way");
        r.end(first, Some(ApplianceId::from_u128(1)), &mut events);
        assert_eq!(events[2], RebalanceEvent::Closed { id: first, moves: 1, done: 1, end: RebalanceEnd::Superseded });
        r.nothing_left(&mut events);
        assert_eq!(events[3], RebalanceEvent::Closed { id: second, moves: 0, done: 0, end: RebalanceEnd::Completed });
        assert_eq!(r.open_count(), 0);
    }

    #[test]
    fn one_that_is_aborted_ends_with_its_last_move() {
        let mut r = Rebalances::new(Term::new(1), None);
        let mut events = vec![];
        let id = r.open(RebalanceCause::Start, 9, NOW, &mut events);
        r.begin(id);
        assert!(r.abort(id, &mut events));
        assert_eq!((events.len(), r.current()), (1, None), "a move is under way");
        r.end(id, Some(ApplianceId::from_u128(1)), &mut events);
        assert_eq!(events[1], RebalanceEvent::Closed { id, moves: 1, done: 1, end: RebalanceEnd::Aborted });
        assert!(!r.abort(id, &mut events) && !r.is_open(id));
    }

    #[test]
    fn moves_that_later_plans_add_are_counted_and_what_was_moved_is_known() {
        let mut r = Rebalances::new(Term::new(1), None);
        let mut events = vec![];
        let id = r.open(RebalanceCause::Drift, 2, NOW, &mut events);
        r.begin(id);
        r.planned(1, &mut events);
        assert_eq!(events.len(), 1, "one begun and one to go are the two that were told");
        r.planned(5, &mut events);
        assert_eq!(events[1], RebalanceEvent::Planned { id, moves: 6 });
        let appliance = ApplianceId::from_u128(7);
        assert!(!r.has_moved(appliance));
        r.end(id, Some(appliance), &mut events);
        assert!(r.has_moved(appliance));
        r.begin(id);
        r.end(id, None, &mut events);
        r.nothing_left(&mut events);
        assert_eq!(events[2], RebalanceEvent::Closed { id, moves: 2, done: 1, end: RebalanceEnd::Completed });
        assert!(!r.has_moved(appliance));
    }
}
