//! How log lines are written: as one line each that moves no cursor, with the ids of the trace they belong to.

use std::fmt;
use std::io::{self, Write};

use common::text;
use opentelemetry::Context;
use opentelemetry::trace::TraceContextExt;
use tracing::{Event, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

/// Escapes lines on their way. The layer above writes each as a whole, with its end.
pub(super) struct EscapedLines<W>(pub(super) W);

impl<W: Write> Write for EscapedLines<W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(line);
        let (text, end) = text.strip_suffix('\n').map_or((&*text, ""), |text| (text, "\n"));
        self.0.write_all(format!("{}{end}", text::escaped(text)).as_bytes())?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// Adds the ids of the present span to each line: two members of the object, or at the end of a text the trace alone, which is what
/// people look for.
pub(super) struct WithTrace<F> {
    pub(super) format: F,
    pub(super) json: bool,
}

impl<S, N, F> FormatEvent<S, N> for WithTrace<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let current = Context::map_current(|current| current.span().span_context().clone());
        if !current.is_valid() {
            return self.format.format_event(context, writer, event);
        }
        let (trace, span) = (current.trace_id(), current.span_id());
        let mut line = String::new();
        self.format.format_event(context, Writer::new(&mut line), event)?;
        match line.trim_end().strip_suffix('}').filter(|_| self.json) {
            Some(object) => writeln!(writer, r#"{object},"trace_id":"{trace}","span_id":"{span}"}}"#),
            None => writeln!(writer, "{} trace_id={trace}", line.trim_end_matches('\n')),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use opentelemetry::trace::TracerProvider;
    use opentelemetry_sdk::trace::SdkTracerProvider;
    use tracing_subscriber::Layer;
    use tracing_subscriber::layer::SubscriberExt;

    use super::super::{Format, context, lines};
    use super::*;

    #[derive(Clone, Default)]
    struct Memory(Arc<Mutex<Vec<u8>>>);

    impl Write for Memory {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("no panic").write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_others_say_is_one_line_without_control_characters() {
        let mut lines = EscapedLines(Vec::new());
        lines.write_all("refused: \u{1b}[2Jcert\u{202e}drow\nERROR forged\n".as_bytes()).expect("memory");
        let written = String::from_utf8(lines.0).expect("text");
        assert_eq!(written, "refused: \\u{1b}[2Jcert\\u{202e}drow\\nERROR forged\n");
    }

    #[test]
    fn a_line_within_a_span_names_its_trace() {
        for format in [Format::Json, Format::Text] {
            let memory = Memory::default();
            let provider = SdkTracerProvider::builder().build();
            let writer = memory.clone();
            let subscriber = tracing_subscriber::registry()
                .with(tracing_opentelemetry::layer().with_tracer(provider.tracer("test")))
                .with(lines(format, move || writer.clone()).boxed());
            let trace = tracing::subscriber::with_default(subscriber, || {
                tracing::info!("outside");
                let span = tracing::info_span!("work", number = 7);
                span.in_scope(|| tracing::info!(field = "a}b", "inside"));
                context::trace_id(&span)
            });
            let written = String::from_utf8(memory.0.lock().expect("no panic").clone()).expect("text");
            let lines: Vec<_> = written.lines().collect();
            assert_eq!(lines.len(), 2, "{written}");
            assert!(!lines[0].contains("trace_id"), "{written}");
            match format {
                Format::Text => assert!(lines[1].ends_with(&format!(" trace_id={trace}")), "{written}"),
                Format::Json => {
                    assert!(lines[1].contains(r#"a}b"},"#), "{written}");
                    let ids = lines[1].split_once(&format!(r#","trace_id":"{trace}","span_id":""#)).expect("ids");
                    assert!(ids.1.len() == 18 && ids.1.ends_with("\"}"), "{written}");
                }
            }
        }
    }
}
