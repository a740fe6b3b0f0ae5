//! The trace of one command of a client: asked for, so that all processes it reaches keep what they do for it.

use std::sync::Arc;

use common::TraceContext;
use opentelemetry::Context;
use opentelemetry::trace::{SpanBuilder, SpanKind, Status, TraceContextExt, Tracer, TracerProvider};
use opentelemetry_sdk::trace::{Sampler, SdkTracerProvider};

use super::{ExportConfig, FLUSH, Program, exports, outbox, pipeline};

/// The trace of one command. Its own span is exported where the standard variables name a collector.
#[derive(Debug)]
pub struct CommandTrace {
    provider: SdkTracerProvider,
    context: Context,
}

impl CommandTrace {
    /// Begins the trace of the command `name`.
    ///
    /// # Errors
    /// What is wrong with the variables, for people.
    pub fn start(program: Program<'_>, name: String) -> Result<Self, String> {
        let exports = exports(&ExportConfig::default()).map_err(|problem| problem.to_string())?;
        let resource = pipeline::resource(program, &exports);
        // Asked for, whatever the variables say about other traces.
        let mut builder = SdkTracerProvider::builder().with_resource(resource.clone()).with_sampler(Sampler::AlwaysOn);
        if let Some(target) = exports.traces {
            let gathering = outbox::Gathering::new(exports.spans, target.timeout.min(FLUSH));
            let build = move || pipeline::spans(&target);
            builder = builder.with_span_processor(outbox::Outbox::start(gathering, resource, Arc::default(), build)?);
        }
        let provider = builder.build();
        let span = SpanBuilder::from_name(name).with_kind(SpanKind::Client);
        let span = provider.tracer(program.name).build_with_context(span, &Context::new());
        Ok(Self { provider, context: Context::new().with_span(span) })
    }

    /// What each call of the command carries.
    #[must_use]
    pub fn context(&self) -> TraceContext {
        super::context::written(&self.context)
    }

    /// Its id, 32 hexadecimal digits.
    #[must_use]
    pub fn id(&self) -> String {
        self.context.span().span_context().trace_id().to_string()
    }

    /// The command has ended, with this problem if it has failed. Waits a little for its span to be exported.
    pub fn end(self, problem: Option<&str>) {
        let span = self.context.span();
        if let Some(problem) = problem {
            span.set_status(Status::error(problem.to_owned()));
        }
        span.end();
        let _ = self.provider.shutdown_with_timeout(FLUSH);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_asks_for_its_trace() {
        let trace =
            CommandTrace::start(Program { name: "rugctl", instance: "" }, "rugctl list".into()).expect("it begins");
        let TraceContext { traceparent, .. } = trace.context();
        assert!(
            traceparent.starts_with(&format!("00-{}-", trace.id())) && traceparent.ends_with("-01"),
            "{traceparent}"
        );
        trace.end(Some("it failed"));
    }
}
