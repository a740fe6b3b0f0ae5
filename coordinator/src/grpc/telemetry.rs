//! The service `Telemetry`: what processes log and sample, changed while they run.

use std::time::Duration;

use common::appliance::FieldViolation;
use common::telemetry::{LogOrder, TelemetryOrder};
use common::text;
use proto::admin::v1 as wire;
use proto::convert::telemetry::{log_from_wire, orders_to_wire, sampling_from_wire};
use runtime::telemetry::{self, SLOW, SLOW_RULE};
use tonic::{Request, Response, Status};

use super::call::{Caller, context, reason};
use super::status;
use crate::commands::CommandError;
use crate::tuning::{LONGEST, TuningChange};

/// How long an order about the log lasts unless its giver says otherwise.
const DEFAULT: Duration = Duration::from_secs(600);
/// Longest name of a process, in bytes.
const MAX_PROCESS: usize = 255;

pub(super) struct TelemetryService {
    caller: Caller,
}

impl TelemetryService {
    pub(super) const fn new(caller: Caller) -> Self {
        Self { caller }
    }
}

fn invalid(field: &str, problem: impl Into<String>) -> Status {
    status::invalid(&[FieldViolation::new(field, problem.into())])
}

/// What is in force now.
fn state(done: Result<Vec<(String, TelemetryOrder)>, CommandError>) -> Result<Response<wire::TelemetryState>, Status> {
    done.map(|orders| Response::new(orders_to_wire(orders))).map_err(|error| status::from_command(&error))
}

fn check_process(process: &str) -> Result<(), Status> {
    text::check(process, MAX_PROCESS).map_err(|problem| invalid("process", problem.to_string()))
}

fn check_time(field: &str, lasts: Option<Duration>) -> Result<(), Status> {
    match lasts {
        Some(lasts) if lasts.is_zero() || lasts > LONGEST => {
            Err(invalid(field, "must be longer than 0s and at most 24h"))
        }
        _ => Ok(()),
    }
}

#[tonic::async_trait]
impl wire::telemetry_server::Telemetry for TelemetryService {
    async fn get(&self, request: Request<wire::GetTelemetryRequest>) -> Result<Response<wire::TelemetryState>, Status> {
        state(self.caller.commands.tuning(&context(&request)?).await)
    }

    async fn set_log_filter(
        &self,
        request: Request<wire::SetLogFilterRequest>,
    ) -> Result<Response<wire::TelemetryState>, Status> {
        let context = context(&request)?;
        let wire::SetLogFilterRequest { process, log, reason: why } = request.into_inner();
        let reason = reason(why)?;
        check_process(&process)?;
        let log = log.filter(|log| !log.filter.is_empty());
        let log = log.map(log_from_wire).transpose().map_err(|problem| invalid("log", problem))?;
        let log = log.map(|log| LogOrder { lasts: log.lasts.or(Some(DEFAULT)), ..log });
        if let Some(LogOrder { filter, lasts }) = &log {
            text::check(filter, telemetry::MAX_FILTER).map_err(|problem| invalid("log.filter", problem.to_string()))?;
            telemetry::check_filter(filter).map_err(|problem| invalid("log.filter", problem))?;
            check_time("log.lasts", *lasts)?;
        }
        state(self.caller.commands.tune(&context, process, TuningChange::Log(log), reason).await)
    }

    async fn set_sampling(
        &self,
        request: Request<wire::SetSamplingRequest>,
    ) -> Result<Response<wire::TelemetryState>, Status> {
        let context = context(&request)?;
        let wire::SetSamplingRequest { process, sampling, reason: why } = request.into_inner();
        let reason = reason(why)?;
        check_process(&process)?;
        let sampling = sampling.filter(|sampling| sampling.ratio.is_some() || sampling.slow.is_some());
        let sampling = sampling.map(sampling_from_wire).transpose().map_err(|problem| invalid("sampling", problem))?;
        if let Some(sampling) = &sampling {
            check_time("sampling.lasts", sampling.lasts)?;
            if sampling.slow.is_some_and(|slow| !SLOW.contains(&slow)) {
                return Err(invalid("sampling.slow", SLOW_RULE));
            }
        }
        state(self.caller.commands.tune(&context, process, TuningChange::Sampling(sampling), reason).await)
    }
}
