//! Idempotent calls of the last 24 h: what they were about, so that a repeat answers as the first did.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::{Duration, SystemTime};

use common::ApplianceId;
use uuid::Uuid;

use crate::commands::ChangeOutcome;
use crate::record::RequestRecord;

/// How long a call is remembered.
pub(super) const KEPT: Duration = Duration::from_secs(24 * 3600);

/// A call that was carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Known {
    pub(super) digest: [u8; 16],
    pub(super) appliance: ApplianceId,
    /// What it did; `None` for calls that were read back from the store, which does not keep this.
    pub(super) outcome: Option<ChangeOutcome>,
    time: SystemTime,
}

/// Calls carried out, oldest first, and calls under way.
#[derive(Debug)]
pub(super) struct Requests {
    most: usize,
    known: HashMap<Uuid, Known>,
    order: VecDeque<(SystemTime, Uuid)>,
    writing: HashSet<Uuid>,
}

impl Requests {
    pub(super) fn new(most: usize) -> Self {
        Self { most, known: HashMap::new(), order: VecDeque::new(), writing: HashSet::new() }
    }

    /// A call that was carried out less than 24 h before `now`.
    pub(super) fn get(&self, id: Uuid, now: SystemTime) -> Option<&Known> {
        self.known.get(&id).filter(|k| now.duration_since(k.time).unwrap_or_default() < KEPT)
    }

    pub(super) fn is_writing(&self, id: Uuid) -> bool {
        self.writing.contains(&id)
    }

    pub(super) fn begin(&mut self, id: Uuid) {
        self.writing.insert(id);
    }

    pub(super) fn end(&mut self, id: Uuid) {
        self.writing.remove(&id);
    }

    /// Remembers a call and forgets those that are too old or too many.
    pub(super) fn remember(&mut self, request: &RequestRecord, outcome: Option<ChangeOutcome>) {
        let RequestRecord { id, digest, appliance, time } = *request;
        self.known.insert(id, Known { digest, appliance, outcome, time });
        self.order.push_back((time, id));
        while let Some(&(oldest, id)) = self.order.front() {
            let old = time.duration_since(oldest).unwrap_or_default() >= KEPT;
            if !old && self.order.len() <= self.most {
                break;
            }
            self.order.pop_front();
            // The id may have been used again since.
            if self.known.get(&id).is_some_and(|k| k.time == oldest) {
                self.known.remove(&id);
            }
        }
    }
}
