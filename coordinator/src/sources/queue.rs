//! Which object is looked at when: each at most once at a time, none forgotten, failures further and further apart.

use std::collections::{BTreeSet, HashMap};
use std::hash::Hash;

use tokio::time::Instant;

/// Objects that wait to be looked at, ordered by when they are due. Bounded by the number of objects.
#[derive(Debug)]
pub(in crate::sources) struct WorkQueue<K> {
    due: BTreeSet<(Instant, K)>,
    entries: HashMap<K, Entry>,
}

#[derive(Debug, Default)]
struct Entry {
    /// When it is due; while it is being looked at, when it is to be looked at again.
    at: Option<Instant>,
    running: bool,
    /// Failures in a row.
    failures: u32,
}

impl<K> Default for WorkQueue<K> {
    fn default() -> Self {
        Self { due: BTreeSet::new(), entries: HashMap::new() }
    }
}

impl<K: Clone + Eq + Hash + Ord> WorkQueue<K> {
    /// Has an object looked at, not later than `at`.
    pub(in crate::sources) fn add(&mut self, key: &K, at: Instant) {
        let entry = self.entries.entry(key.clone()).or_default();
        if entry.at.is_some_and(|due| due <= at) {
            return;
        }
        let former = entry.at.replace(at);
        if !entry.running {
            former.map(|due| self.due.remove(&(due, key.clone())));
            self.due.insert((at, key.clone()));
        }
    }

    /// The next object that is due. Whoever takes it calls [`done`](Self::done).
    pub(in crate::sources) fn take(&mut self, now: Instant) -> Option<K> {
        let (at, _) = self.due.first()?;
        if *at > now {
            return None;
        }
        let (_, key) = self.due.pop_first()?;
        let entry = self.entries.entry(key.clone()).or_default();
        (entry.at, entry.running) = (None, true);
        Some(key)
    }

    /// When the next object is due.
    pub(in crate::sources) fn next(&self) -> Option<Instant> {
        self.due.first().map(|(at, _)| *at)
    }

    /// An object was looked at, without a failure.
    pub(in crate::sources) fn done(&mut self, key: &K) {
        self.ended(key, 0);
    }

    /// Looking at an object failed, so many times in a row by now. The caller adds it again.
    pub(in crate::sources) fn failed(&mut self, key: &K) -> u32 {
        let failures = self.entries.get(key).map_or(0, |entry| entry.failures).saturating_add(1);
        self.ended(key, failures);
        failures
    }

    fn ended(&mut self, key: &K, failures: u32) {
        let Some(entry) = self.entries.get_mut(key) else { return };
        (entry.running, entry.failures) = (false, failures);
        match entry.at {
            Some(at) => drop(self.due.insert((at, key.clone()))),
            None if failures == 0 => drop(self.entries.remove(key)),
            None => {}
        }
    }

    /// Objects that wait.
    pub(in crate::sources) fn len(&self) -> usize {
        self.due.len()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn an_object_is_looked_at_once_at_a_time_and_again_if_it_changed_meanwhile() {
        let now = Instant::now();
        let later = now + Duration::from_secs(1);
        let mut queue = WorkQueue::default();
        queue.add(&"a", later);
        queue.add(&"b", now);
        queue.add(&"a", later + Duration::from_secs(1));
        assert_eq!((queue.len(), queue.next()), (2, Some(now)));
        assert_eq!(queue.take(now), Some("b"));
        assert_eq!(queue.take(now), None, "a is not due");
        queue.add(&"b", now);
        queue.add(&"b", later);
        assert_eq!(queue.take(now), None, "b is being looked at");
        queue.done(&"b");
        assert_eq!(queue.take(now), Some("b"), "it changed meanwhile");
        queue.done(&"b");
        queue.add(&"a", now);
        assert_eq!((queue.take(now), queue.take(later)), (Some("a"), None), "sooner than first asked for");
    }

    #[test]
    fn failures_in_a_row_are_counted_until_it_goes_well() {
        let now = Instant::now();
        let mut queue = WorkQueue::default();
        for failures in 1..4 {
            queue.add(&"a", now);
            assert_eq!(queue.take(now), Some("a"));
            assert_eq!(queue.failed(&"a"), failures);
        }
        queue.add(&"a", now);
        assert_eq!(queue.take(now), Some("a"));
        queue.done(&"a");
        queue.add(&"a", now);
        assert_eq!(queue.take(now), Some("a"));
        assert_eq!(queue.failed(&"a"), 1);
    }
}
