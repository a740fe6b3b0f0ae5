//! Calls whose effects have not been sent to a worker yet: what workers do because of them continues their traces.
//!
//! Kept in memory alone. What a leader that ends had kept is lost: the next one's messages then name no cause, and the worker begins a
//! trace of its own.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use common::session::DeltaEntry;
use common::{ApplianceId, TraceContext};
use tokio::time::Instant;

/// Calls that are kept. The oldest is forgotten for the next.
const MOST: usize = 10_000;
/// How long one is kept: what is placed later is hardly looked for in the trace of the call.
const KEPT: Duration = Duration::from_secs(600);

/// The newest call about each appliance.
#[derive(Debug, Default)]
pub(super) struct Causes {
    calls: HashMap<ApplianceId, (Instant, TraceContext)>,
    /// Oldest first. One that is not the newest of its appliance counts for nothing.
    order: VecDeque<(Instant, ApplianceId)>,
}

impl Causes {
    /// An appliance was changed by a call with this context.
    pub(super) fn add(&mut self, appliance: ApplianceId, call: TraceContext) {
        if call.is_empty() {
            // It would be taken for an effect of the call before.
            self.calls.remove(&appliance);
            return;
        }
        let now = Instant::now();
        while self.order.len() >= MOST || self.order.front().is_some_and(|(since, _)| now.duration_since(*since) > KEPT)
        {
            let Some((since, old)) = self.order.pop_front() else { break };
            if self.calls.get(&old).is_some_and(|(of, _)| *of == since) {
                self.calls.remove(&old);
            }
        }
        self.calls.insert(appliance, (now, call));
        self.order.push_back((now, appliance));
    }

    /// The calls that what is granted and updated by these entries follows from. Each is told once.
    pub(super) fn take<D>(&mut self, entries: &[DeltaEntry<D>]) -> Vec<(ApplianceId, TraceContext)> {
        if self.calls.is_empty() {
            return Vec::new();
        }
        let of = |entry: &DeltaEntry<D>| match entry {
            DeltaEntry::Grant { appliance, .. } | DeltaEntry::Update { appliance, .. } => Some(*appliance),
            DeltaEntry::Release(_) | DeltaEntry::Check { .. } | DeltaEntry::Mode { .. } => None,
        };
        let mut call = |appliance| {
            let (since, call) = self.calls.remove(&appliance)?;
            (since.elapsed() <= KEPT).then_some((appliance, call))
        };
        entries.iter().filter_map(of).filter_map(&mut call).collect()
    }
}

#[cfg(test)]
mod tests {
    use common::Token;
    use common::session::GrantRef;

    use super::*;

    fn id(n: u128) -> ApplianceId {
        ApplianceId::from_u128(n)
    }

    fn call(n: u128) -> TraceContext {
        TraceContext { traceparent: format!("00-{n:032x}-00000000000000a1-01"), ..TraceContext::default() }
    }

    fn update(n: u128) -> DeltaEntry<()> {
        DeltaEntry::Update { appliance: id(n), token: Token::default(), desired: () }
    }

    #[tokio::test(start_paused = true)]
    async fn each_call_is_told_once_and_not_when_it_is_long_over() {
        let mut causes = Causes::default();
        causes.add(id(1), call(1));
        causes.add(id(1), call(2));
        causes.add(id(2), TraceContext::default());
        let release: DeltaEntry<()> = DeltaEntry::Release(GrantRef::new(id(1), Token::default()));
        assert_eq!(causes.take(&[release]), []);
        assert_eq!(causes.take(&[update(1), update(2)]), [(id(1), call(2))]);
        assert_eq!(causes.take(&[update(1)]), []);
        causes.add(id(3), call(3));
        tokio::time::advance(KEPT * 2).await;
        assert_eq!(causes.take(&[update(3)]), []);
    }

    #[tokio::test(start_paused = true)]
    async fn the_oldest_calls_are_forgotten_first() {
        let mut causes = Causes::default();
        for n in 0..=MOST as u128 {
            causes.add(id(n), call(n + 1));
            tokio::time::advance(Duration::from_nanos(1)).await;
        }
        assert_eq!((causes.calls.len(), causes.order.len()), (MOST, MOST));
        assert_eq!(causes.take(&[update(0), update(1)]), [(id(1), call(2))]);
    }
}
