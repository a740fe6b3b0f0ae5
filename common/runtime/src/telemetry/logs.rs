//! Log records on their way to a collector, with the ids of the trace they belong to.

use std::time::Duration;

use opentelemetry::InstrumentationScope;
use opentelemetry_otlp::LogExporter;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::logs::{LogBatch, LogExporter as _, LogProcessor, SdkLogRecord};

use super::outbox::{BatchExporter, Outbox};

/// A record, and where in the program it comes from.
pub(super) type ScopedRecord = (SdkLogRecord, InstrumentationScope);

/// Puts records into a queue of their own.
#[derive(Debug)]
pub(super) struct LogQueue(pub(super) Outbox<ScopedRecord>);

impl LogProcessor for LogQueue {
    fn emit(&self, record: &mut SdkLogRecord, scope: &InstrumentationScope) {
        self.0.take((record.clone(), scope.clone()));
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.0.flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.0.stop(timeout)
    }
}

/// Exports records.
pub(super) struct LogBatches(pub(super) LogExporter);

impl BatchExporter<ScopedRecord> for LogBatches {
    const WHAT: &'static str = "log records";

    async fn export(&self, batch: Vec<ScopedRecord>) -> OTelSdkResult {
        let batch: Vec<_> = batch.iter().map(|(record, scope)| (record, scope)).collect();
        self.0.export(LogBatch::new(&batch)).await
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.0.set_resource(resource);
    }
}
