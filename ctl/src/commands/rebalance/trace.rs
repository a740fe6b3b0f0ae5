//! `rugctl rebalance trace`: the waterfall of one rebalance, drawn from the history; no backend for traces is needed.

pub(super) mod otlp;

use std::collections::HashMap;
use std::fmt::Write as _;
use std::time::{Duration, SystemTime};

use proto::admin::v1;

use crate::client::by_id;
use crate::commands::CommandContext;
use crate::error::Failure;
use crate::output::{OutputFormat, TextTable, Tone, Ui, columns_of, view as shown, width};
use crate::text::one_line;

/// Columns where stdout is no terminal.
const COLUMNS: usize = 100;
/// Fewest columns of a bar.
const FEWEST: usize = 20;
/// Most columns of a label.
const LABEL: usize = 44;

/// What an appliance goes through on its way, and how it is drawn.
const STAGES: [(&str, char, Tone, &str); 4] = [
    ("release", '░', Tone::Dim, "its old owner ends what it does"),
    ("commit", '▒', Tone::Busy, "its new owner is stored"),
    ("take", '▓', Tone::Good, "its new owner is told, and says that it has it"),
    ("adopt", '█', Tone::Plain, "its new owner looks how it is, up to the first probe"),
];

/// A move with the moments that are known of it.
struct Waterfall<'a> {
    moved: &'a v1::Move,
    /// Begins of the stages, in order, and the end of the last one. Stages that were not seen have no length.
    at: [SystemTime; 5],
}

impl<'a> Waterfall<'a> {
    fn new(moved: &'a v1::Move) -> Option<Self> {
        let time = |t: Option<prost_types::Timestamp>| t.and_then(|t| SystemTime::try_from(t).ok());
        let stages = moved.stages.unwrap_or_default();
        let ended = time(moved.time)?;
        let done = moved.state == "done";
        let began = time(stages.began).unwrap_or(ended);
        let released = time(stages.released).unwrap_or(began).max(began);
        let granted = time(stages.granted).unwrap_or(released).max(released);
        let owned = if done { ended.max(granted) } else { granted };
        let adopted = time(stages.adopted).unwrap_or(owned).max(owned);
        Some(Self { moved, at: [began, released, granted, owned, adopted] })
    }

    /// How long a stage took; none where it was not seen, as of an owner that was gone.
    fn stage(&self, stage: usize) -> Option<Duration> {
        self.at[stage + 1].duration_since(self.at[stage]).ok().filter(|took| !took.is_zero())
    }

    fn whole(&self) -> Duration {
        self.at[4].duration_since(self.at[0]).unwrap_or_default()
    }
}

/// A length of time in three digits.
fn short(time: Duration) -> String {
    let seconds = time.as_secs_f64();
    match seconds {
        s if s >= 100.0 => format!("{s:.0} s"),
        s if s >= 1.0 => format!("{s:.2} s"),
        s if s >= 0.1 => format!("{:.0} ms", s * 1e3),
        s if s >= 0.001 => format!("{:.1} ms", s * 1e3),
        s => format!("{:.0} us", s * 1e6),
    }
}

/// The value below which a share of the sorted values lies (nearest rank); zero for none.
fn percentile(sorted: &[Duration], share: f64) -> Duration {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss, reason = "a rank")]
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.clamp(1, sorted.len().max(1)) - 1).copied().unwrap_or_default()
}

/// The scale of the bars.
struct Scale {
    start: SystemTime,
    whole: Duration,
    columns: usize,
}

impl Scale {
    fn column(&self, at: SystemTime) -> usize {
        let share =
            at.duration_since(self.start).unwrap_or_default().as_secs_f64() / self.whole.as_secs_f64().max(1e-9);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "columns"
        )]
        let column = (share * self.columns as f64).floor() as usize;
        column.min(self.columns - 1)
    }

    /// The bar of one move: each stage from its column on, the first stage of a column shown.
    fn bar(&self, ui: &Ui, of: &Waterfall<'_>) -> String {
        let (first, last) = (self.column(of.at[0]), self.column(of.at[4]));
        let mut bar = " ".repeat(first);
        let mut run: (Option<usize>, String) = (None, String::new());
        let flush = |bar: &mut String, (stage, text): &mut (Option<usize>, String)| {
            if let Some(stage) = stage.take() {
                bar.push_str(&ui.paint(STAGES[stage].2, &std::mem::take(text)));
            }
        };
        for column in first..=last {
            // The stage that lasts longest in this column.
            let stage = (0..STAGES.len()).rev().find(|stage| self.column(of.at[*stage]) <= column).unwrap_or(0);
            if run.0 != Some(stage) {
                flush(&mut bar, &mut run);
                run.0 = Some(stage);
            }
            run.1.push(STAGES[stage].1);
        }
        flush(&mut bar, &mut run);
        bar.push_str(&" ".repeat(self.columns - 1 - last));
        bar
    }
}

/// Runs the command.
pub(super) async fn run(context: &CommandContext, id: &str, limit: usize) -> Result<(), Failure> {
    let rebalance = context.client.whole_rebalance(id).await?;
    match context.ui.format {
        OutputFormat::Otlp => return context.ui.print(&otlp::render(&rebalance)?),
        OutputFormat::Json | OutputFormat::Yaml | OutputFormat::JsonPath(_) => {
            return context.ui.print_value(&shown::Rebalance::from(&rebalance));
        }
        OutputFormat::Table | OutputFormat::Wide | OutputFormat::Columns(_) => {}
    }
    let moves: Vec<Waterfall<'_>> = rebalance.r#move.iter().filter_map(Waterfall::new).collect();
    let mut slowest: Vec<&Waterfall<'_>> = moves.iter().collect();
    slowest.sort_by_key(|it| std::cmp::Reverse(it.whole()));
    slowest.truncate(limit);
    let names = names(context, &slowest).await;
    context.ui.print(&draw(&context.ui, &rebalance, &moves, slowest, &names, width().unwrap_or(COLUMNS)))
}

/// Names of the appliances that are still there.
async fn names(context: &CommandContext, moves: &[&Waterfall<'_>]) -> HashMap<String, String> {
    let mut names = HashMap::new();
    for it in moves {
        // Those that are gone are shown by their id.
        if let Ok(appliance) = context.client.get(by_id(&it.moved.appliance)).await {
            names.insert(it.moved.appliance.clone(), context.ui.label(&appliance));
        }
    }
    names
}

fn draw(
    ui: &Ui,
    rebalance: &v1::Rebalance,
    moves: &[Waterfall<'_>],
    mut shown: Vec<&Waterfall<'_>>,
    names: &HashMap<String, String>,
    width: usize,
) -> String {
    let time = |t: Option<prost_types::Timestamp>| t.and_then(|t| SystemTime::try_from(t).ok());
    let last = moves.iter().map(|it| it.at[4]).max();
    let start = time(rebalance.start_time).unwrap_or(SystemTime::UNIX_EPOCH);
    let end = time(rebalance.end_time).or(last).unwrap_or(start).max(start);
    let whole = end.duration_since(start).unwrap_or_default();
    let mut text = String::new();
    let outcome = ui.paint(Tone::of(&rebalance.outcome), &rebalance.outcome);
    let cause = one_line(&rebalance.cause);
    let _ =
        writeln!(text, "{}  {cause}: {} of {} moves, {outcome}", rebalance.id, rebalance.moves_done, rebalance.moves);
    for (name, value) in [("trace", &rebalance.trace_id), ("link", &rebalance.trace_url)] {
        if !value.is_empty() {
            let _ = writeln!(text, "{name:<6} {}", one_line(value));
        }
    }
    if moves.is_empty() {
        let _ = writeln!(text, "\nThe history has no moves of it.");
        return text;
    }
    let label = |it: &Waterfall<'_>| {
        let name = names.get(&it.moved.appliance).unwrap_or(&it.moved.appliance);
        let from = if it.moved.from.is_empty() { "-" } else { &it.moved.from };
        crate::output::clipped(&one_line(&format!("{name}  {from} → {}", it.moved.to)), LABEL)
    };
    let labels = shown.iter().map(|it| columns_of(&label(it))).max().unwrap_or(0).max("rebalance".len());
    // Label, bar and duration, with two spaces between.
    let columns = width.saturating_sub(labels + 2 + 2 + 8).max(FEWEST);
    let scale = Scale { start, whole, columns };
    let pad = |text: &str| format!("{text}{}", " ".repeat(labels.saturating_sub(columns_of(text))));
    let total = short(whole);
    let _ = writeln!(text, "\n{}  0{total:>right$}", pad(""), right = columns - 1);
    let _ = writeln!(text, "{}  ├{}┤  {total:>8}", pad("rebalance"), "─".repeat(columns - 2));
    let hidden = moves.len() - shown.len();
    shown.sort_by_key(|it| it.at[0]);
    for it in shown {
        let took = short(it.whole());
        let _ = writeln!(text, "{}  {}  {took:>8}", pad(&label(it)), scale.bar(ui, it));
    }
    if hidden > 0 {
        let _ = writeln!(text, "and {hidden} quicker ones (--limit shows more)");
    }
    let mut table = TextTable::new(&["", "STAGE", "MEDIAN", "P99", "LONGEST", "MEANS"]).with_prose(&["MEANS"]);
    let mut stage = |sign: &str, name: &str, times: &mut dyn Iterator<Item = Duration>, means: &str| {
        let mut times: Vec<Duration> = times.collect();
        times.sort_unstable();
        // Nothing was seen of this stage: the old owner was gone, say.
        let of = |share| (if times.is_empty() { String::new() } else { short(percentile(&times, share)) }, Tone::Plain);
        let plain = |text: &str| (text.to_owned(), Tone::Plain);
        table.row([plain(sign), plain(name), of(0.5), of(0.99), of(1.0), plain(means)]);
    };
    for (n, (name, sign, _, means)) in STAGES.iter().enumerate() {
        stage(&sign.to_string(), name, &mut moves.iter().filter_map(|it| it.stage(n)), means);
    }
    stage(" ", "hand-off", &mut moves.iter().map(Waterfall::whole), "all of it, for one appliance");
    let _ = write!(text, "\n{}", ui.table_text(&table, 0));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: i32) -> Option<prost_types::Timestamp> {
        Some(prost_types::Timestamp { seconds: 10, nanos: millis * 1_000_000 })
    }

    pub(super) fn rebalance() -> v1::Rebalance {
        let moved = |n: u32, from: &str, at: [Option<prost_types::Timestamp>; 5]| {
            let [began, released, granted, time, adopted] = at;
            v1::Move {
                appliance: format!("00000000-0000-0000-0000-00000000000{n}"),
                from: from.into(),
                to: "worker-3".into(),
                state: "done".into(),
                time,
                stages: Some(v1::MoveStages { began, released, granted, adopted }),
                ..v1::Move::default()
            }
        };
        v1::Rebalance {
            id: "r1-2".into(),
            cause: "joined: worker-3".into(),
            trace_id: "0af7651916cd43dd8448eb211c80319c".into(),
            trace_url: "https://tempo.example/trace/0af7651916cd43dd8448eb211c80319c".into(),
            start_time: at(0),
            end_time: at(100),
            outcome: "completed".into(),
            moves: 2,
            moves_done: 2,
            r#move: vec![
                moved(1, "worker-1", [at(20), at(40), at(60), at(80), at(100)]),
                moved(2, "", [at(50), None, at(60), at(61), None]),
            ],
            ..v1::Rebalance::default()
        }
    }

    #[test]
    fn a_rebalance_is_drawn_to_scale_with_its_stages() {
        let rebalance = rebalance();
        let moves: Vec<_> = rebalance.r#move.iter().filter_map(Waterfall::new).collect();
        let names = HashMap::from([(rebalance.r#move[0].appliance.clone(), "web-1".to_owned())]);
        let ui = Ui::plain(OutputFormat::Table);
        let shown = vec![&moves[0]];
        let text = draw(&ui, &rebalance, &moves, shown, &names, 59);
        let expected = "\
r1-2  joined: worker-3: 2 of 2 moves, completed
trace  0af7651916cd43dd8448eb211c80319c
link   https://tempo.example/trace/0af7651916cd43dd8448eb211c80319c

                            0              100 ms
rebalance                   ├───────────────────┤    100 ms
web-1  worker-1 → worker-3      ░░░░▒▒▒▒▓▓▓▓█████   80.0 ms
and 1 quicker ones (--limit shows more)

   STAGE     MEDIAN   P99      LONGEST  MEANS
░  release   20.0 ms  20.0 ms  20.0 ms  its old owner ends what it does
▒  commit    10.0 ms  20.0 ms  20.0 ms  its new owner is stored
▓  take      1.0 ms   20.0 ms  20.0 ms  its new owner is told, and says that it has it
█  adopt     20.0 ms  20.0 ms  20.0 ms  its new owner looks how it is, up to the first probe
-  hand-off  11.0 ms  80.0 ms  80.0 ms  all of it, for one appliance";
        assert_eq!(text, expected);
    }

    #[test]
    fn percentiles_are_of_the_nearest_rank() {
        let values: Vec<_> = (1..=100).map(Duration::from_millis).collect();
        assert_eq!(percentile(&values, 0.5), Duration::from_millis(50));
        assert_eq!(percentile(&values, 0.99), Duration::from_millis(99));
        assert_eq!(percentile(&values[..1], 0.5), Duration::from_millis(1));
        assert_eq!(percentile(&[], 0.99), Duration::ZERO);
    }

    #[test]
    fn spans_for_import_are_one_tree_with_the_ids_that_were_exported() {
        let text = otlp::render(&rebalance()).expect("plain data");
        let read: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        let resources = read["resourceSpans"].as_array().expect("a list");
        let spans: Vec<_> = resources
            .iter()
            .flat_map(|resource| resource["scopeSpans"][0]["spans"].as_array().expect("a list"))
            .collect();
        let named = |name: &str| spans.iter().filter(|span| span["name"] == name).count();
        assert_eq!(["rebalance", "hand-off", "commit", "release", "adopt"].map(named), [1, 2, 2, 1, 1]);
        let ids: Vec<_> = spans.iter().map(|span| &span["spanId"]).collect();
        for span in &spans {
            assert_eq!(span["traceId"], "0af7651916cd43dd8448eb211c80319c");
            assert!(span["name"] == "rebalance" || ids.contains(&&span["parentSpanId"]), "{span}");
        }
    }
}
