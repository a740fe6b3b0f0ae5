//! What an outbox's behaviour depends on.

use common::canon::{Canon, Canonical};

use super::{Outbox, OutboxEntry, Replaceable};

impl Canonical for Outbox {
    fn canon(&self, to: &mut Canon) {
        let Self { waiting, replaceable, sent, acknowledged } = self;
        to.list(waiting.iter().map(|(slot, entry, rebalance, bytes)| ((slot.0, entry), rebalance, bytes)));
        to.list(replaceable.iter().map(|(slot, Replaceable { update, check, mode })| (slot.0, (update, mode), check)));
        // Both are said to the worker, which compares them with its own count.
        to.put(&(sent, acknowledged));
    }
}

impl Canonical for OutboxEntry {
    fn canon(&self, to: &mut Canon) {
        match self {
            Self::Grant(token) => to.put(&(1_u32, token)),
            Self::Release(token) => to.put(&(2_u32, token)),
            Self::Update(token) => to.put(&(3_u32, token)),
            Self::Check(token, number) => to.put(&(4_u32, token, number)),
            Self::Mode(token) => to.put(&(5_u32, token)),
        }
    }
}
