//! What processes of the cluster log and sample by order of an operator, instead of what they are configured to.
//!
//! The leader keeps the orders in memory. It sends workers theirs over their sessions, at once and after each welcome; the other
//! coordinators ask for all of them every few seconds, so that whichever leads next goes on with them. Orders about the log end by
//! themselves, and none survives the end of all coordinators: they are for looking into something, and settings are for what shall
//! stay.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use common::telemetry::{LogOrder, SamplingOrder, TelemetryOrder};
use runtime::telemetry;

/// Longest time of an order.
pub const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);

/// What changes for one process, or for all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TuningChange {
    /// What is logged beside what is configured; nothing when absent.
    Log(Option<LogOrder>),
    /// What is sampled; what is configured when absent.
    Sampling(Option<SamplingOrder>),
}

/// The orders in force. An order for one process counts there before one for all.
#[derive(Debug)]
pub struct Tuning {
    /// This process.
    own: String,
    state: Mutex<TuningState>,
}

#[derive(Debug, Default)]
struct TuningState {
    /// By process; the empty name stands for all.
    orders: BTreeMap<String, TimedOrder>,
}

/// An order, and when its parts end.
#[derive(Clone, Debug, Default)]
struct TimedOrder {
    order: TelemetryOrder,
    log_until: Option<Instant>,
    sampling_until: Option<Instant>,
}

impl TimedOrder {
    fn set_log(&mut self, now: Instant, log: Option<LogOrder>) {
        self.log_until = log.as_ref().and_then(|log| log.lasts).map(|lasts| now + lasts.min(LONGEST));
        self.order.log = log;
    }

    fn set_sampling(&mut self, now: Instant, sampling: Option<SamplingOrder>) {
        self.sampling_until = sampling.and_then(|sampling| sampling.lasts).map(|lasts| now + lasts.min(LONGEST));
        self.order.sampling = sampling;
    }

    /// What is in force of it, with the time that is left.
    fn left(&self, now: Instant) -> TelemetryOrder {
        let over = |until: Option<Instant>| until.is_some_and(|until| until <= now);
        let lasts = |until: Option<Instant>| until.map(|until| until.saturating_duration_since(now));
        let log = self.order.log.clone().filter(|_| !over(self.log_until));
        let sampling = self.order.sampling.filter(|_| !over(self.sampling_until));
        TelemetryOrder {
            log: log.map(|log| LogOrder { lasts: lasts(self.log_until), ..log }),
            sampling: sampling.map(|sampling| SamplingOrder { lasts: lasts(self.sampling_until), ..sampling }),
        }
    }
}

impl Tuning {
    /// No orders, in the process of this name.
    #[must_use]
    pub fn new(own: &str) -> Self {
        Self { own: own.to_owned(), state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, TuningState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the order for a process; for all of them when `process` is empty, in place of what any of them had.
    pub fn change(&self, process: &str, change: TuningChange) {
        let now = Instant::now();
        {
            let mut state = self.state();
            let for_all = process.is_empty();
            for order in state.orders.values_mut().filter(|_| for_all) {
                match &change {
                    TuningChange::Log(_) => order.set_log(now, None),
                    TuningChange::Sampling(_) => order.set_sampling(now, None),
                }
            }
            let order = state.orders.entry(process.to_owned()).or_default();
            match change {
                TuningChange::Log(log) => order.set_log(now, log),
                TuningChange::Sampling(sampling) => order.set_sampling(now, sampling),
            }
            state.orders.retain(|_, order| order.left(now) != TelemetryOrder::default());
        }
        self.obey();
    }

    /// Takes over the orders that the leader has.
    pub fn take_over(&self, orders: Vec<(String, TelemetryOrder)>) {
        let now = Instant::now();
        {
            let mut state = self.state();
            if orders.is_empty() && state.orders.is_empty() {
                return;
            }
            let timed = |(process, order): (String, TelemetryOrder)| {
                let mut timed = TimedOrder::default();
                timed.set_log(now, order.log);
                timed.set_sampling(now, order.sampling);
                (process, timed)
            };
            state.orders = orders.into_iter().map(timed).collect();
        }
        self.obey();
    }

    /// The orders in force, by process; the empty name stands for all.
    #[must_use]
    pub fn orders(&self) -> Vec<(String, TelemetryOrder)> {
        let now = Instant::now();
        let state = self.state();
        let left = state.orders.iter().map(|(process, order)| (process.clone(), order.left(now)));
        left.filter(|(_, order)| *order != TelemetryOrder::default()).collect()
    }

    /// What a process shall follow. Said to every worker, also where it is nothing: an order of a coordinator that is gone may still be
    /// in force there.
    #[must_use]
    pub fn order_for(&self, process: &str) -> TelemetryOrder {
        let now = Instant::now();
        let state = self.state();
        let left = |process: &str| state.orders.get(process).map(|order| order.left(now)).unwrap_or_default();
        let (own, all) = (left(process), left(""));
        TelemetryOrder { log: own.log.or(all.log), sampling: own.sampling.or(all.sampling) }
    }

    fn obey(&self) {
        telemetry::obey(self.order_for(&self.own));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(filter: &str) -> TuningChange {
        let lasts = Some(Duration::from_secs(60));
        TuningChange::Log(Some(LogOrder { filter: filter.to_owned(), lasts }))
    }

    fn filter_of(tuning: &Tuning, process: &str) -> Option<String> {
        tuning.order_for(process).log.map(|log| log.filter)
    }

    #[test]
    fn an_order_for_one_counts_before_one_for_all_until_that_is_given_anew() {
        let tuning = Tuning::new("coordinator-1");
        assert_eq!(tuning.order_for("worker-1"), TelemetryOrder::default(), "nobody ever asked for anything");
        tuning.change("worker-1", log("debug"));
        assert_eq!(filter_of(&tuning, "worker-1").as_deref(), Some("debug"));
        assert_eq!(tuning.order_for("worker-2"), TelemetryOrder::default());
        let sampling = SamplingOrder { ratio: 0.5.try_into().ok(), ..SamplingOrder::default() };
        tuning.change("", TuningChange::Sampling(Some(sampling)));
        assert_eq!(tuning.order_for("worker-1").sampling, Some(sampling));
        assert_eq!(filter_of(&tuning, "worker-1").as_deref(), Some("debug"), "that is another matter");
        tuning.change("", log("trace"));
        assert_eq!(filter_of(&tuning, "worker-1").as_deref(), Some("trace"));
        tuning.change("", TuningChange::Log(None));
        assert_eq!(filter_of(&tuning, "worker-1"), None);
        assert_eq!(tuning.orders().len(), 1);
    }

    #[test]
    fn another_coordinator_goes_on_with_what_is_left() {
        let (leader, next) = (Tuning::new("coordinator-1"), Tuning::new("coordinator-2"));
        leader.change("", log("debug"));
        leader.change(
            "worker-1",
            TuningChange::Log(Some(LogOrder { filter: "x=info".into(), lasts: Some(Duration::ZERO) })),
        );
        next.take_over(leader.orders());
        let [(process, order)] = next.orders().try_into().expect("the other one is over");
        let log = order.log.expect("it is in force");
        assert_eq!((process.as_str(), log.filter.as_str()), ("", "debug"));
        assert!(log.lasts.is_some_and(|lasts| lasts <= Duration::from_secs(60)), "{log:?}");
        next.take_over(Vec::new());
        assert_eq!(next.order_for("worker-1"), TelemetryOrder::default(), "workers hear that it is over");
    }
}
