//! Entries of deltas that wait to be sent to one worker: in order, in bounded messages, under flow control.
//!
//! Each delta names the version it applies to and the one it leads to; the stream is at most [`WINDOW`] messages ahead of
//! the worker's acknowledgements. Entries wait here without a bound of their own because each stands for an appliance of
//! the table: an appliance has at most one entry of each sort at a time.

#[cfg(feature = "canon")]
mod canon;

use std::collections::{BTreeMap, VecDeque};

use common::{RebalanceId, Token};

use crate::slot::Slot;

/// Most entries of one message (docs/protocol.md, Streams and Hello).
pub const MAX_ENTRIES: usize = 1_000;
/// Most bytes of one message, by the size of the specs in it (docs/protocol.md, Streams and Hello).
pub const MAX_BYTES: usize = 1 << 20;
/// Messages that may be under way without an acknowledgement. Enough to keep a stream busy over a slow link, few enough
/// that a worker which stops reading holds at most 8 MiB of ours.
pub const WINDOW: u64 = 8;

/// One entry about one appliance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum OutboxEntry {
    /// It is granted under this token.
    Grant(Token),
    /// It shall be given up.
    Release(Token),
    /// It shall be something else.
    Update(Token),
    /// It shall be probed now, as this check.
    Check(Token, u64),
    /// Hands are off, or on again.
    Mode(Token),
}

/// The next delta to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NextDelta {
    /// Version it applies to.
    pub base: u64,
    /// Version it leads to.
    pub target: u64,
    /// Rebalance the entries belong to.
    pub rebalance: Option<RebalanceId>,
    /// Its entries, in order.
    pub entries: Vec<(Slot, OutboxEntry)>,
}

/// What waits for one appliance and is replaced by what comes after it.
#[derive(Clone, Copy, Debug, Default)]
struct Replaceable {
    update: Option<Token>,
    check: Option<(Token, u64)>,
    mode: Option<Token>,
}

impl Replaceable {
    const fn is_empty(self) -> bool {
        self.update.is_none() && self.check.is_none() && self.mode.is_none()
    }
}

/// The outbox of one stream.
#[derive(Clone, Debug, Default)]
pub struct Outbox {
    waiting: VecDeque<(Slot, OutboxEntry, Option<RebalanceId>, usize)>,
    /// Updates and checks that wait, so that further ones of the same appliance replace them.
    replaceable: BTreeMap<Slot, Replaceable>,
    sent: u64,
    acknowledged: u64,
}

impl Outbox {
    /// Queues an entry of about `bytes` on the wire.
    pub fn push(&mut self, slot: Slot, entry: OutboxEntry, rebalance: Option<RebalanceId>, bytes: usize) {
        let replaceable = self.replaceable.entry(slot).or_default();
        match entry {
            OutboxEntry::Update(token) => {
                // The content is read when the message is made, so one waiting update carries all changes so far.
                if replaceable.update.replace(token).is_some() {
                    return;
                }
            }
            OutboxEntry::Check(token, number) => {
                if replaceable.check.replace((token, number)).is_some() {
                    return;
                }
            }
            OutboxEntry::Mode(token) => {
                if replaceable.mode.replace(token).is_some() {
                    return;
                }
            }
            OutboxEntry::Grant(_) | OutboxEntry::Release(_) => {}
        }
        if replaceable.is_empty() {
            self.replaceable.remove(&slot);
        }
        self.waiting.push_back((slot, entry, rebalance, bytes));
    }

    /// A message without entries, ahead of all others: base and target of it. For a new stream, to be acknowledged.
    pub const fn empty(&mut self) -> (u64, u64) {
        self.sent += 1;
        (self.sent - 1, self.sent)
    }

    /// The next message, if there is one and the window allows it.
    pub fn next_delta(&mut self) -> Option<NextDelta> {
        if self.sent - self.acknowledged >= WINDOW {
            return None;
        }
        let rebalance = self.waiting.front()?.2;
        let mut entries = Vec::new();
        let mut size = 0;
        while let Some((_, _, r, bytes)) = self.waiting.front() {
            // One entry always fits: a spec is far smaller than a message.
            if *r != rebalance || entries.len() == MAX_ENTRIES || (size + bytes > MAX_BYTES && !entries.is_empty()) {
                break;
            }
            size += bytes;
            let Some((slot, entry, _, _)) = self.waiting.pop_front() else { break };
            entries.push((slot, self.take_latest(slot, entry)));
        }
        let base = self.sent;
        self.sent += 1;
        Some(NextDelta { base, target: self.sent, rebalance, entries })
    }

    fn take_latest(&mut self, slot: Slot, entry: OutboxEntry) -> OutboxEntry {
        let Some(replaceable) = self.replaceable.get_mut(&slot) else { return entry };
        let latest = match entry {
            OutboxEntry::Update(token) => OutboxEntry::Update(replaceable.update.take().unwrap_or(token)),
            OutboxEntry::Check(token, number) => {
                let (token, number) = replaceable.check.take().unwrap_or((token, number));
                OutboxEntry::Check(token, number)
            }
            OutboxEntry::Mode(token) => OutboxEntry::Mode(replaceable.mode.take().unwrap_or(token)),
            OutboxEntry::Grant(_) | OutboxEntry::Release(_) => entry,
        };
        if replaceable.is_empty() {
            self.replaceable.remove(&slot);
        }
        latest
    }

    /// Notes that the worker applied everything up to `version`. Returns `false` for a version that was never sent.
    pub fn acknowledge(&mut self, version: u64) -> bool {
        if version > self.sent {
            return false;
        }
        self.acknowledged = self.acknowledged.max(version);
        true
    }

    /// The version everything that was sent leads to; `None` while more waits to be sent.
    #[must_use]
    pub fn level(&self) -> Option<u64> {
        self.waiting.is_empty().then_some(self.sent)
    }

    /// Entries that wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Whether nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use common::Term;

    use super::*;

    fn token(n: u64) -> Token {
        Token::new(Term::new(1), n)
    }

    #[test]
    fn versions_chain_and_the_window_holds_back_what_is_not_acknowledged() {
        let mut outbox = Outbox::default();
        for n in 0..(WINDOW as u32 + 1) * MAX_ENTRIES as u32 {
            outbox.push(Slot(n), OutboxEntry::Grant(token(u64::from(n))), None, 100);
        }
        let mut version = 0;
        for _ in 0..WINDOW {
            let delta = outbox.next_delta().expect("inside the window");
            assert_eq!((delta.base, delta.target, delta.entries.len()), (version, version + 1, MAX_ENTRIES));
            version = delta.target;
        }
        assert_eq!(outbox.next_delta(), None);
        assert!(!outbox.acknowledge(version + 1), "a version that was never sent");
        assert!(outbox.acknowledge(1));
        assert_eq!(outbox.next_delta().expect("the window moved").base, version);
        assert!(outbox.is_empty());
    }

    #[test]
    fn messages_stay_below_their_size_and_hold_one_rebalance() {
        let mut outbox = Outbox::default();
        let r = Some(RebalanceId { term: Term::new(1), number: 1 });
        outbox.push(Slot(1), OutboxEntry::Grant(token(1)), None, MAX_BYTES - 10);
        outbox.push(Slot(2), OutboxEntry::Grant(token(2)), None, 11);
        outbox.push(Slot(3), OutboxEntry::Grant(token(3)), r, 11);
        let sizes: Vec<_> =
            std::iter::from_fn(|| outbox.next_delta()).map(|d| (d.entries.len(), d.rebalance)).collect();
        assert_eq!(sizes, [(1, None), (1, None), (1, r)]);
    }

    #[test]
    fn waiting_updates_and_checks_of_one_appliance_become_one() {
        let mut outbox = Outbox::default();
        outbox.push(Slot(1), OutboxEntry::Update(token(1)), None, 10);
        outbox.push(Slot(1), OutboxEntry::Update(token(1)), None, 10);
        outbox.push(Slot(1), OutboxEntry::Check(token(1), 1), None, 10);
        outbox.push(Slot(1), OutboxEntry::Check(token(1), 2), None, 10);
        let delta = outbox.next_delta().expect("something waits");
        assert_eq!(
            delta.entries,
            [(Slot(1), OutboxEntry::Update(token(1))), (Slot(1), OutboxEntry::Check(token(1), 2))]
        );
        outbox.push(Slot(1), OutboxEntry::Update(token(1)), None, 10);
        assert_eq!(outbox.len(), 1, "what was sent does not swallow what comes after it");
    }
}
