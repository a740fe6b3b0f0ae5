//! What is logged and sampled, changed while the process runs.
//!
//! Only modules of ours can be more detailed than `info` so: what libraries print then are headers, statements and handshakes, and whoever may
//! change a filter may not read secrets.
//!
//! The filter of the log can be changed, that of spans cannot: what is traced must not depend on what somebody looks at in the log. An
//! order replaces the one before; one that lasts for a while goes back by itself, whether the one who gave it is still there or not.

use std::sync::{Mutex, OnceLock, PoisonError};

use common::telemetry::{LogOrder, SamplingOrder, TelemetryOrder};
use tokio::runtime::Handle;
use tokio::task::AbortHandle;
use tokio::time::Instant;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

use super::sampling::Sampling;

/// Longest filter that is taken, in bytes.
pub const MAX_FILTER: usize = 1_000;

/// What is in force without orders, and how it is changed.
pub(super) struct Control {
    /// What is configured, which may be read again.
    pub(super) configured: Mutex<Configured>,
    /// Puts a filter into force.
    pub(super) reload: Box<dyn Fn(EnvFilter) -> Result<(), String> + Send + Sync>,
}

/// What is in force without orders.
#[derive(Clone, Debug)]
pub(super) struct Configured {
    /// The filter of the log.
    pub(super) filter: String,
    /// Which traces are kept.
    pub(super) sampling: Sampling,
}

static CONTROL: OnceLock<Control> = OnceLock::new();
/// What is in force. Held while it is changed, so that two changes never mix.
static IN_FORCE: Mutex<InForce> = Mutex::new(InForce::nothing());

/// The order in force, and when its parts end.
struct InForce {
    order: TelemetryOrder,
    log_ends: Option<Instant>,
    sampling_ends: Option<Instant>,
    /// Ends the part that ends first.
    timer: Option<AbortHandle>,
}

impl InForce {
    const fn nothing() -> Self {
        let order = TelemetryOrder { log: None, sampling: None };
        Self { order, log_ends: None, sampling_ends: None, timer: None }
    }

    /// Puts an order into force in place of the one before.
    fn replace(&mut self, control: &Control, order: TelemetryOrder) {
        let before = std::mem::replace(&mut self.order, order);
        let filter = |order: &TelemetryOrder| order.log.as_ref().map(|log| log.filter.clone());
        if filter(&before) != filter(&self.order) {
            control.log(self.order.log.as_ref());
        }
        let sampling = |order: &TelemetryOrder| order.sampling.map(|sampling| (sampling.ratio, sampling.slow));
        if sampling(&before) != sampling(&self.order) {
            control.sample(self.order.sampling);
        }
    }

    /// Has the part end in time that ends first.
    fn arm(&mut self) {
        if let Some(timer) = self.timer.take() {
            timer.abort();
        }
        let next = self.log_ends.into_iter().chain(self.sampling_ends).min();
        if let (Some(at), Ok(runtime)) = (next, Handle::try_current()) {
            let timer = runtime.spawn(async move {
                tokio::time::sleep_until(at).await;
                end_due();
            });
            self.timer = Some(timer.abort_handle());
        }
    }
}

/// Whose orders are followed from now on.
pub(super) fn install(control: Control) {
    let _ = CONTROL.set(control);
}

/// Puts another configuration into force. The order that is in force goes on.
pub(super) fn configure(filter: String, sampling: Sampling) {
    let Some(control) = CONTROL.get() else { return };
    let in_force = IN_FORCE.lock().unwrap_or_else(PoisonError::into_inner);
    let mut configured = control.configured.lock().unwrap_or_else(PoisonError::into_inner);
    let before = std::mem::replace(&mut *configured, Configured { filter, sampling });
    let (log, sampled) = (before.filter != configured.filter, before.sampling != configured.sampling);
    drop(configured);
    if log {
        control.log(in_force.order.log.as_ref());
    }
    if sampled {
        control.sample(in_force.order.sampling);
    }
}

/// Packages whose lines are ours, and the target of the audit trail.
const OURS: [&str; 13] = [
    "audit",
    "common",
    "coordination",
    "coordinator",
    "coordinator_core",
    "proto",
    "rug_appliance",
    "rug_coordinator",
    "rug_worker",
    "runtime",
    "shim",
    "worker",
    "worker_core",
];

/// Checks a filter of the log, in the syntax of `RUST_LOG` without spans and fields.
///
/// # Errors
/// What is wrong with it.
pub fn check_filter(filter: &str) -> Result<(), String> {
    if filter.len() > MAX_FILTER {
        return Err(format!("has {} bytes, at most {MAX_FILTER} are allowed", filter.len()));
    }
    expanded(filter).and_then(|filter| parse(&filter)).map(drop)
}

/// The filter with a level for everything as one for each of our packages, where it is more detailed than `info`.
fn expanded(filter: &str) -> Result<String, String> {
    let mut directives = Vec::new();
    for part in filter.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        if part.contains(['[', '{', '/']) {
            return Err("spans and fields cannot be named".to_owned());
        }
        let (target, level) = match part.split_once('=') {
            Some((target, level)) => (Some(target), level.parse()),
            None => match part.parse::<LevelFilter>() {
                Ok(level) => (None, Ok(level)),
                Err(_) => (Some(part), Ok(LevelFilter::TRACE)),
            },
        };
        let level: LevelFilter = level.map_err(|_| format!("`{part}` has no level of a log"))?;
        let package = target.map(|target| target.split("::").next().unwrap_or_default());
        match package {
            None if level > LevelFilter::INFO => directives.extend(OURS.map(|package| format!("{package}={level}"))),
            Some(package) if level > LevelFilter::INFO && !OURS.contains(&package) => {
                return Err(format!(
                    "{package}: only modules of Rug can be more detailed than info, because libraries print secrets"
                ));
            }
            _ => directives.push(part.to_owned()),
        }
    }
    Ok(directives.join(","))
}

fn parse(filter: &str) -> Result<EnvFilter, String> {
    EnvFilter::builder().with_regex(false).parse(filter).map_err(|error| error.to_string())
}

/// Does what an order says, in place of the one before. Within a Tokio runtime, where something is to go back by itself.
pub fn obey(order: TelemetryOrder) {
    let Some(control) = CONTROL.get() else { return };
    let now = Instant::now();
    let mut in_force = IN_FORCE.lock().unwrap_or_else(PoisonError::into_inner);
    // Also where it is the same as before: it may last longer now.
    in_force.log_ends = order.log.as_ref().and_then(|log| log.lasts).map(|lasts| now + lasts);
    in_force.sampling_ends = order.sampling.and_then(|sampling| sampling.lasts).map(|lasts| now + lasts);
    in_force.replace(control, order);
    in_force.arm();
}

/// Ends the parts of the order in force whose time is over.
fn end_due() {
    let Some(control) = CONTROL.get() else { return };
    let now = Instant::now();
    let mut in_force = IN_FORCE.lock().unwrap_or_else(PoisonError::into_inner);
    let mut order = in_force.order.clone();
    if in_force.log_ends.take_if(|at| *at <= now).is_some() {
        order.log = None;
    }
    if in_force.sampling_ends.take_if(|at| *at <= now).is_some() {
        order.sampling = None;
    }
    in_force.replace(control, order);
    in_force.arm();
}

impl Control {
    fn configured(&self) -> Configured {
        self.configured.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn log(&self, order: Option<&LogOrder>) {
        let configured = self.configured().filter;
        let filter = match order {
            // What comes later wins where both are about the same module.
            Some(order) => expanded(&order.filter).map(|added| format!("{configured},{added}")),
            None => Ok(configured),
        };
        let done = filter.and_then(|filter| parse(&filter)).and_then(|filter| (self.reload)(filter));
        match done {
            Ok(()) => tracing::info!(added = order.map(|order| order.filter.as_str()), "filter of the log changed"),
            Err(error) => tracing::warn!("the filter of the log stays as it is: {error}"),
        }
    }

    fn sample(&self, order: Option<SamplingOrder>) {
        let SamplingOrder { ratio, slow, lasts: _ } = order.unwrap_or_default();
        let configured = self.configured().sampling;
        let sampling = Sampling { ratio: ratio.unwrap_or(configured.ratio), slow: slow.unwrap_or(configured.slow) };
        super::set_sampling(sampling);
        tracing::info!(ratio = %sampling.ratio, slow = ?sampling.slow, "sampling of traces changed");
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use common::telemetry::Ratio;
    use tokio::time::advance;

    use super::*;

    #[test]
    fn a_filter_that_cannot_be_read_is_refused() {
        for good in ["debug", "worker::runner=trace,info", "info,h2=off", "coordinator", "warn"] {
            assert_eq!(check_filter(good), Ok(()), "{good}");
        }
        for bad in
            ["worker=loud", "a=b=c", "h2=debug", "sqlx::query", "worker[span]=debug", &"x".repeat(MAX_FILTER + 1)]
        {
            assert!(check_filter(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_level_for_everything_is_one_for_what_is_ours() {
        let filter = expanded("trace,worker::runner=info").expect("a filter");
        assert!(
            filter.starts_with("audit=trace,common=trace,") && filter.ends_with(",worker::runner=info"),
            "{filter}"
        );
        assert_eq!(expanded("warn").as_deref(), Ok("warn"));
    }

    #[tokio::test(start_paused = true)]
    async fn an_order_goes_back_by_itself_unless_another_one_was_given() {
        let filters = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&filters);
        let before = super::super::sampling();
        install(Control {
            configured: Mutex::new(Configured { filter: "info,h2=error".into(), sampling: before }),
            reload: Box::new(move |filter| {
                seen.lock().expect("no panic").push(filter.to_string());
                Ok(())
            }),
        });
        let newest = || filters.lock().expect("no panic").last().cloned().unwrap_or_default();
        let log =
            |filter: &str, seconds| Some(LogOrder { filter: filter.into(), lasts: Some(Duration::from_secs(seconds)) });
        obey(TelemetryOrder { log: log("worker=debug", 10), sampling: None });
        assert!(newest().contains("worker=debug") && newest().contains("h2=error"), "{}", newest());
        advance(Duration::from_secs(5)).await;
        let sampling = SamplingOrder { ratio: Some(Ratio::NONE), slow: None, lasts: Some(Duration::from_secs(60)) };
        obey(TelemetryOrder { log: log("worker=debug", 10), sampling: Some(sampling) });
        assert_eq!(super::super::sampling(), Sampling { ratio: Ratio::NONE, slow: before.slow });
        tokio::time::sleep(Duration::from_secs(9)).await;
        assert!(newest().contains("worker=debug"), "it lasts for ten seconds from the newest order on");
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert!(!newest().contains("worker"), "{}", newest());
        assert_eq!(super::super::sampling().ratio, Ratio::NONE);
        tokio::time::sleep(Duration::from_secs(48)).await;
        assert_eq!(super::super::sampling().ratio, Ratio::NONE, "its sixty seconds are not over");
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert_eq!(super::super::sampling(), before, "they did not begin again when the other part ended");
        obey(TelemetryOrder { log: log("h2=off", 10), sampling: None });
        obey(TelemetryOrder::default());
        assert!(newest().contains("h2=error"), "{}", newest());
        // Another configuration goes below the order that is in force, and is what is left of both.
        obey(TelemetryOrder { log: log("worker=debug", 10), sampling: None });
        configure("warn".into(), Sampling { ratio: Ratio::NONE, slow: before.slow });
        assert!(newest().contains("warn") && newest().contains("worker=debug"), "{}", newest());
        assert_eq!(super::super::sampling().ratio, Ratio::NONE);
        obey(TelemetryOrder::default());
        assert_eq!(newest(), "warn");
        configure("info".into(), before);
    }
}
