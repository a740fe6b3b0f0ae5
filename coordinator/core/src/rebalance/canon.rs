//! What of the rebalances decides anything: which one moves belong to now, and which have moves under way. Left out: how
//! many moves each made and whether it was superseded, which is history.

use common::canon::{Canon, Canonical};

use super::Rebalances;

impl Canonical for Rebalances {
    fn canon(&self, to: &mut Canon) {
        // `last` only makes the next identity a new one.
        let Self { term: _, last: _, open, current, inherited } = self;
        to.list(open.iter().map(|(id, open)| (id, open.under_way)));
        to.put(&(*current, *inherited));
        // What it has moved decides which rebalance further moves belong to.
        to.put(&current.and_then(|id| open.get(&id)).map(|open| &open.moved));
    }
}
