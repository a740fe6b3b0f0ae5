//! The heartbeat that keeps an embedded lease: when to send it, and what an answer proves.

use std::time::Duration;

use common::Timestamp;
use runtime::clock;

/// The heartbeat of an embedded lease: one at a time, four in a lease.
#[derive(Debug)]
pub(super) struct Beat {
    lease: Duration,
    number: u64,
    /// When the beat under way was handed to the stream.
    sent: Option<Timestamp>,
    timer: tokio::time::Interval,
}

impl Beat {
    pub(super) fn new(lease: Duration) -> Self {
        let mut timer = tokio::time::interval(lease / 4);
        timer.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        Self { lease, number: 0, sent: None, timer }
    }

    /// Waits until there is a beat to send, or one that was not answered for as long as the lease.
    pub(super) async fn due(&mut self) {
        loop {
            self.timer.tick().await;
            // While one is under way the next waits, until the stream must be taken for dead.
            if self.sent.is_none_or(|sent| clock::now().since(sent) >= self.lease) {
                return;
            }
        }
    }

    /// Number of the beat to send; `None` when the last one was never answered.
    pub(super) fn next(&mut self) -> Option<u64> {
        if self.sent.is_some() {
            return None;
        }
        self.number += 1;
        self.sent = Some(clock::now());
        Some(self.number)
    }

    /// The lease that an answer proves: counted from when the beat was sent.
    pub(super) fn answered(&mut self, number: u64) -> Option<Timestamp> {
        if number != self.number {
            return None;
        }
        self.sent.take().map(|sent| sent + self.lease)
    }
}

/// [`Beat::due`]; for ever when heartbeats do not ride on the stream.
pub(super) async fn due(beat: Option<&mut Beat>) {
    match beat {
        Some(beat) => beat.due().await,
        None => std::future::pending().await,
    }
}
