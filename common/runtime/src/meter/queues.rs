//! How full queues are, looked at when somebody reads it: nothing is counted as they are used.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use opentelemetry::KeyValue;
use opentelemetry::metrics::Meter;
use tokio::sync::mpsc::Sender;

use super::catalogue::Metric;

/// How full a queue is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueLevels {
    /// What waits in it.
    pub depth: u64,
    /// What may.
    pub capacity: u64,
}

type Look = Arc<dyn Fn() -> Option<QueueLevels> + Send + Sync>;

/// The queues of a process, by name. Keeps none of them open.
#[derive(Default)]
pub struct QueueWatch(Arc<Mutex<Vec<(&'static str, Look)>>>);

impl fmt::Debug for QueueWatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QueueWatch").finish_non_exhaustive()
    }
}

impl QueueWatch {
    /// Makes the instruments: gauges with the label `queue`.
    pub fn start(&self, meter: &Meter, depth: &Metric, capacity: &Metric) {
        for (metric, value) in
            [(depth, (|levels| levels.depth) as fn(QueueLevels) -> u64), (capacity, |levels| levels.capacity)]
        {
            let queues = Arc::clone(&self.0);
            metric.look(meter, move |to| {
                let queues = queues.lock().unwrap_or_else(PoisonError::into_inner).clone();
                for (name, look) in queues {
                    if let Some(levels) = look() {
                        to.observe(value(levels), &[KeyValue::new("queue", name)]);
                    }
                }
            });
        }
    }

    /// Shows a channel, in the place of an earlier one of this name, until all its senders are gone.
    pub fn add<T: Send + 'static>(&self, name: &'static str, sender: &Sender<T>) {
        let sender = sender.downgrade();
        let look = move || {
            let sender = sender.upgrade()?;
            let (free, capacity) = (sender.capacity() as u64, sender.max_capacity() as u64);
            Some(QueueLevels { depth: capacity - free.min(capacity), capacity })
        };
        let mut queues = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        queues.retain(|(other, _)| *other != name);
        queues.push((name, Arc::new(look)));
    }
}
