//! What processes shall log and sample, as the admin API tells it.

use common::telemetry::{LogOrder, SamplingOrder, TelemetryOrder};

use super::scalar::{duration_from_wire, duration_to_wire};
use crate::admin::v1 as wire;

/// The orders in force, by process.
#[must_use]
pub fn orders_to_wire(orders: Vec<(String, TelemetryOrder)>) -> wire::TelemetryState {
    let order = |(process, order): (String, TelemetryOrder)| wire::TelemetryOrder {
        process,
        log: order.log.map(|LogOrder { filter, lasts }| wire::LogOrder { filter, lasts: lasts.map(duration_to_wire) }),
        sampling: order.sampling.map(|SamplingOrder { ratio, slow, lasts }| wire::SamplingOrder {
            ratio: ratio.map(f64::from),
            slow: slow.map(duration_to_wire),
            lasts: lasts.map(duration_to_wire),
        }),
    };
    wire::TelemetryState { orders: orders.into_iter().map(order).collect() }
}

/// The orders in force, by process.
///
/// # Errors
/// What cannot be used.
pub fn orders_from_wire(state: wire::TelemetryState) -> Result<Vec<(String, TelemetryOrder)>, String> {
    let order = |wire::TelemetryOrder { process, log, sampling }| {
        let log = log.map(log_from_wire).transpose()?;
        let sampling = sampling.map(sampling_from_wire).transpose()?;
        Ok((process, TelemetryOrder { log, sampling }))
    };
    state.orders.into_iter().map(order).collect()
}

/// What is logged.
///
/// # Errors
/// What cannot be used.
pub fn log_from_wire(wire::LogOrder { filter, lasts }: wire::LogOrder) -> Result<LogOrder, String> {
    Ok(LogOrder { filter, lasts: time("lasts", lasts)? })
}

/// What is sampled.
///
/// # Errors
/// What cannot be used.
pub fn sampling_from_wire(order: wire::SamplingOrder) -> Result<SamplingOrder, String> {
    let wire::SamplingOrder { ratio, slow, lasts } = order;
    let ratio = ratio.map(TryInto::try_into).transpose();
    let ratio = ratio.map_err(|error: common::telemetry::NoRatio| format!("ratio: {error}"))?;
    Ok(SamplingOrder { ratio, slow: time("slow", slow)?, lasts: time("lasts", lasts)? })
}

fn time(field: &str, wire: Option<prost_types::Duration>) -> Result<Option<std::time::Duration>, String> {
    wire.map(|wire| duration_from_wire(&wire).map_err(|error| format!("{field}: {error}"))).transpose()
}
