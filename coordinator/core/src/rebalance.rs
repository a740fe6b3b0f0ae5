//! Which moves belong together: one rebalance per cause, open until its last move has ended.

#[cfg(feature = "canon")]
mod canon;

use std::collections::BTreeMap;
use std::fmt;

use common::{ApplianceId, RebalanceId, Term, WorkerId};

use crate::planner::Reason;

/// What set a rebalance off.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cause {
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

fn names(list: &[WorkerId]) -> String {
    const SHOWN: usize = 5;
    let mut text = list.iter().take(SHOWN).map(WorkerId::as_str).collect::<Vec<_>>().join(", ");
    if list.len() > SHOWN {
        text.push_str(&format!(" and {} more", list.len() - SHOWN));
    }
    text
}

impl fmt::Display for Cause {
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

/// News of a rebalance, for history and traces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    /// It began.
    Opened {
        /// Identity.
        id: RebalanceId,
        /// What set it off.
        cause: Cause,
        /// Moves planned.
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
    /// All of its moves ended; `superseded` when a newer plan took over what was left.
    Closed {
        /// Identity.
        id: RebalanceId,
        /// Moves made.
        done: u64,
        /// A newer plan took over what was left.
        superseded: bool,
    },
}

#[derive(Clone, Debug)]
struct Open {
    under_way: u64,
    done: u64,
    superseded: bool,
}

/// The rebalances under way.
#[derive(Clone, Debug)]
pub struct Rebalances {
    term: Term,
    last: u64,
    open: BTreeMap<RebalanceId, Open>,
    current: Option<RebalanceId>,
}

impl Rebalances {
    /// None yet in `term`.
    #[must_use]
    pub const fn new(term: Term) -> Self {
        Self { term, last: 0, open: BTreeMap::new(), current: None }
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

    /// Opens one; the former current one is superseded.
    pub fn open(&mut self, cause: Cause, moves: u64, news: &mut Vec<News>) -> RebalanceId {
        if let Some(former) = self.current.take()
            && let Some(open) = self.open.get_mut(&former)
        {
            open.superseded = true;
            self.close_if_done(former, news);
        }
        self.last += 1;
        let id = RebalanceId { term: self.term, number: self.last };
        self.open.insert(id, Open { under_way: 0, done: 0, superseded: false });
        self.current = Some(id);
        news.push(News::Opened { id, cause, moves });
        id
    }

    /// A move of `id` begins.
    pub fn begin(&mut self, id: RebalanceId) {
        if let Some(open) = self.open.get_mut(&id) {
            open.under_way += 1;
        }
    }

    /// A move of `id` ended, made or not.
    pub fn end(&mut self, id: RebalanceId, made: bool, news: &mut Vec<News>) {
        if let Some(open) = self.open.get_mut(&id) {
            open.under_way = open.under_way.saturating_sub(1);
            open.done += u64::from(made);
        }
        if self.current != Some(id) {
            self.close_if_done(id, news);
        }
    }

    /// The plan has nothing left to do: the current rebalance ends with its last move.
    pub fn nothing_left(&mut self, news: &mut Vec<News>) {
        if let Some(id) = self.current
            && self.open.get(&id).is_none_or(|o| o.under_way == 0)
        {
            self.current = None;
            self.close_if_done(id, news);
        }
    }

    fn close_if_done(&mut self, id: RebalanceId, news: &mut Vec<News>) {
        if self.open.get(&id).is_some_and(|o| o.under_way == 0)
            && let Some(open) = self.open.remove(&id)
        {
            news.push(News::Closed { id, done: open.done, superseded: open.superseded });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_superseded_rebalance_ends_with_its_last_move() {
        let mut r = Rebalances::new(Term::new(1));
        let mut news = vec![];
        let first = r.open(Cause::Start, 2, &mut news);
        r.begin(first);
        let second = r.open(Cause::Drift, 1, &mut news);
        assert_eq!(news.len(), 2, "the first still has a move under way");
        r.end(first, true, &mut news);
        assert_eq!(news[2], News::Closed { id: first, done: 1, superseded: true });
        r.nothing_left(&mut news);
        assert_eq!(news[3], News::Closed { id: second, done: 0, superseded: false });
        assert_eq!(r.open_count(), 0);
    }
}
