//! `rugctl logs`: what instances have printed.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::time::Duration;

use clap::Args;
use proto::admin::v1;
use proto::convert::scalar::duration_to_wire;
use serde::Serialize;

use crate::client::by_id;
use crate::commands::appliance::One;
use crate::commands::{CommandContext, watch};
use crate::error::Failure;
use crate::output::Tone;

/// Longest line that is kept until its end is there, in bytes; a longer one is printed in pieces.
const MAX_LINE: usize = 64 << 10;

/// Arguments.
#[derive(Args, Debug)]
pub(crate) struct LogsArgs {
    #[command(flatten)]
    one: One,
    /// Go on with what is printed from now on
    #[arg(short, long)]
    follow: bool,
    /// Begin with so many last lines of each instance [default: everything]
    #[arg(long, value_name = "LINES", value_parser = clap::value_parser!(u32).range(1..))]
    tail: Option<u32>,
    /// Only this instance, counted from 0
    #[arg(long, value_name = "N")]
    instance: Option<u32>,
    /// Begin with what was printed so long ago; driver `process` keeps no times, and begins earlier
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    since: Option<Duration>,
    /// Begin before the instance that runs, as far as that is kept
    #[arg(long)]
    previous: bool,
}

/// A line, for programs.
#[derive(Serialize)]
struct Line<'a> {
    instance: u32,
    worker: &'a str,
    line: &'a str,
}

/// What was read and not printed yet.
#[derive(Debug, Default)]
struct Lines {
    /// The begin of a line, by instance.
    open: BTreeMap<u32, Vec<u8>>,
    places: BTreeMap<u32, String>,
}

impl Lines {
    /// Takes in a chunk; the lines that are whole.
    fn take(&mut self, instance: u32, data: &[u8]) -> Vec<String> {
        let open = self.open.entry(instance).or_default();
        let mut lines = Vec::new();
        for piece in data.split_inclusive(|byte| *byte == b'\n') {
            open.extend_from_slice(piece);
            if open.ends_with(b"\n") || open.len() >= MAX_LINE {
                let line = String::from_utf8_lossy(open).trim_end_matches(['\n', '\r']).to_owned();
                lines.push(line);
                open.clear();
            }
        }
        lines
    }

    /// What is left of lines that have not ended.
    fn rest(&mut self) -> Vec<(u32, String)> {
        let rest = std::mem::take(&mut self.open).into_iter().filter(|(_, open)| !open.is_empty());
        rest.map(|(instance, open)| (instance, String::from_utf8_lossy(&open).into_owned())).collect()
    }
}

/// Runs the command.
pub(crate) async fn run(context: &CommandContext, args: &LogsArgs) -> Result<(), Failure> {
    let named = args.one.find(context).await?;
    let replicas = named.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
    let label = (replicas > 1 && args.instance.is_none()).then(|| named.name.clone());
    let read = RefCell::new(Lines::default());
    // A stream that breaks is opened again at the places where it broke.
    let open = async || {
        let place = |(instance, place): (&u32, &String)| v1::LogPlace { instance: *instance, place: place.clone() };
        let places = read.borrow().places.iter().map(place).collect();
        let request = v1::LogsRequest {
            appliance: Some(by_id(&named.id)),
            instance: args.instance,
            follow: args.follow,
            tail: args.tail.unwrap_or_default(),
            since: args.since.map(duration_to_wire),
            previous: args.previous,
            places,
        };
        context.client.logs(request).await
    };
    watch::until_end(context, open, |chunk: v1::LogChunk| {
        if !chunk.note.is_empty() {
            context.ui.note(&chunk.note);
        }
        let lines = read.borrow_mut().take(chunk.instance, &chunk.data);
        for line in lines {
            print(context, label.as_deref(), chunk.instance, &chunk.worker, &line)?;
        }
        if !chunk.place.is_empty() {
            read.borrow_mut().places.insert(chunk.instance, chunk.place);
        }
        Ok(ControlFlow::Continue(()))
    })
    .await?;
    let rest = read.borrow_mut().rest();
    for (instance, line) in rest {
        print(context, label.as_deref(), instance, "", &line)?;
    }
    Ok(())
}

fn print(
    context: &CommandContext,
    label: Option<&str>,
    instance: u32,
    worker: &str,
    line: &str,
) -> Result<(), Failure> {
    if context.ui.format.is_structured() {
        return context.ui.print_event(&Line { instance, worker, line });
    }
    match label {
        Some(name) => {
            let begin = context.ui.paint(Tone::Dim, &format!("{name}/{instance}"));
            context.ui.print(&format!("{begin}  {line}"))
        }
        None => context.ui.print(line),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_printed_whole_and_by_instance() {
        let mut lines = Lines::default();
        assert_eq!(lines.take(0, b"one\ntw"), ["one"]);
        assert_eq!(lines.take(1, b"other\r\n"), ["other"]);
        assert_eq!(lines.take(0, b"o\n\nthree"), ["two", ""]);
        assert_eq!(lines.rest(), [(0, "three".to_owned())]);
        let long = vec![b'x'; MAX_LINE + 1];
        assert_eq!(lines.take(0, &long)[0].len(), MAX_LINE + 1, "printed before it ends");
    }
}
