//! The clock of one node: it runs at its own rate, from its own origin.

use common::Timestamp;

use super::SimTime;
use super::rng::Rng;

/// Largest error of a clock's rate, in parts per million: two clocks differ by what docs/safety.md assumes at most, and
/// by both together in the worst pair.
const MAX_ERROR_PPM: u64 = 50_000;

/// The clock of one node.
#[derive(Clone, Debug)]
pub(super) struct DriftingClock {
    rate_ppm: u64,
    origin: u64,
    /// Spans of world time during which it stood still: only for the mutant that uses such a clock.
    stops: Vec<(SimTime, SimTime)>,
}

impl DriftingClock {
    pub(super) fn new(rng: &mut Rng) -> Self {
        // The extremes are where mistakes show, so half of the clocks are there.
        let rate_ppm = match rng.below(4) {
            0 => 1_000_000 - MAX_ERROR_PPM,
            1 => 1_000_000 + MAX_ERROR_PPM,
            _ => 1_000_000 - MAX_ERROR_PPM + rng.below(2 * MAX_ERROR_PPM),
        };
        Self { rate_ppm, origin: rng.millis(1_000, 1_000_000), stops: Vec::new() }
    }

    pub(super) fn stop(&mut self, from: SimTime, to: SimTime) {
        self.stops.push((from, to));
    }

    /// What it shows at a moment of the world.
    pub(super) fn local(&self, at: SimTime) -> Timestamp {
        let stood: SimTime = self.stops.iter().map(|&(from, to)| at.clamp(from, to) - from).sum();
        Timestamp::from_nanos(self.origin + at.saturating_sub(stood) / 1_000 * self.rate_ppm / 1_000)
    }

    /// The first moment, not before `now`, at which it shows `local` or later.
    pub(super) fn world(&self, now: SimTime, local: Timestamp) -> SimTime {
        let missing = local.as_nanos().saturating_sub(self.local(now).as_nanos());
        // Two microseconds more than exact: `local` cuts off twice.
        now + if missing == 0 { 0 } else { (missing * 1_000_000).div_ceil(self.rate_ppm) + 2_000 }
    }
}
