//! What is in each pane.

use proto::admin::v1;

use super::columns::{Cell, Give, lay_out};
use crate::commands::worker::phases;
use crate::document::view;
use crate::output::{Tone, age, moment};
use crate::text::one_line;
use crate::top::band::WorkerBand;
use crate::top::input::Feed;
use crate::top::model::{FeedState, Model, Pane, WorkerOrder};
use crate::top::screen::{Glyphs, Piece, ScreenLine};

/// Widest and narrowest bar of a worker.
const BAR: std::ops::RangeInclusive<usize> = 10..=48;

/// What a pane has to show.
#[derive(Debug, Default)]
pub(super) struct PaneContent {
    pub(super) head: ScreenLine,
    pub(super) rows: Vec<ScreenLine>,
    /// Shown where there are no rows.
    pub(super) empty: String,
}

/// The name of a pane, with what should be known while another one is shown.
pub(super) fn title(model: &Model, pane: Pane) -> String {
    match pane {
        Pane::Workers if !model.worker_filter.is_empty() => format!("Workers /{}", model.worker_filter),
        Pane::Workers if model.order != WorkerOrder::Name => format!("Workers by {}", model.order.name()),
        Pane::Appliances => {
            let pages = &model.pages;
            let filter = if pages.typed.is_empty() { String::new() } else { format!(" /{}", pages.typed) };
            let (first, last) = (pages.first() + 1, pages.first() + pages.rows.len());
            let place =
                if pages.rows.is_empty() { String::new() } else { format!(" {first}-{last} of {}", pages.total) };
            format!("Appliances{filter}{place}")
        }
        Pane::Troubles => match model.trouble_list().len() {
            0 => pane.title().to_owned(),
            n => format!("{} {n}", pane.title()),
        },
        _ => pane.title().to_owned(),
    }
}

pub(super) fn content(model: &Model, pane: Pane, width: usize, glyphs: &Glyphs) -> PaneContent {
    match pane {
        Pane::Workers => workers(model, width, glyphs),
        Pane::Appliances => appliances(model, width, glyphs),
        Pane::Rebalances => rebalances(model, width, glyphs),
        Pane::Troubles => troubles(model, width, glyphs),
        Pane::Events => events(model, width, glyphs),
    }
}

fn plain(text: impl Into<String>) -> Cell {
    (text.into(), Tone::Plain)
}

/// What an empty pane says: why it is, as far as that is known.
fn empty(model: &Model, feed: Feed, text: &str) -> String {
    match model.feed(feed) {
        FeedState::Open => text.to_owned(),
        FeedState::Opening => "waiting for the server".to_owned(),
        FeedState::Interrupted(why) | FeedState::Refused(why) => one_line(why),
    }
}

fn workers(model: &Model, width: usize, glyphs: &Glyphs) -> PaneContent {
    let (workers, bands) = (model.workers(), model.bands());
    // One scale for all, so that bars can be compared.
    let scale = workers.iter().map(|w| w.appliances).chain(bands.values().map(|band| band.ceiling)).max().unwrap_or(0);
    let columns = [
        ("NAME", Give::Keep),
        ("HEALTH", Give::Keep),
        ("LOAD", Give::Keep),
        ("BAND", Give::Keep),
        ("PHASES", Give::Cut),
        ("ZONE", Give::Drop),
        ("SEEN", Give::Drop),
    ];
    let row = |worker: &&v1::Worker| -> Vec<Cell> {
        let state = worker_state(worker);
        let band = bands.get(&worker.id).copied();
        let share = |band: WorkerBand| format!("{}..{} {}", band.floor, band.ceiling, band.verdict(worker.appliances));
        // What is configured is the rule, and the rest is what there is to see.
        let others = worker.phases.iter().filter(|(phase, _)| *phase != "Configured");
        let others = others.map(|(phase, n)| (phase.clone(), *n)).collect();
        vec![
            plain(&worker.id),
            state,
            plain(worker.appliances.to_string()),
            (band.map(share).unwrap_or_default().trim_end().to_owned(), tone_of(band, worker.appliances)),
            (phases(&others), Tone::Busy),
            plain(one_line(&worker.zone)),
            plain(age(worker.last_seen.as_ref(), model.now)),
        ]
    };
    let cells: Vec<_> = workers.iter().map(row).collect();
    // Names and numbers first, most of what is left for the bar, and the rest for phases.
    let name = cells.iter().map(|row| row[0].0.len()).max().unwrap_or(4).max(4);
    let fixed = name + 40;
    let bar = (width.saturating_sub(fixed) * 3 / 4).clamp(*BAR.start(), *BAR.end());
    let rest = width.saturating_sub(bar + 2);
    let list = lay_out(&columns, cells, rest, glyphs);
    let with_bar = |mut line: ScreenLine, worker: &v1::Worker| {
        let mut pieces = vec![Piece::plain(" ")];
        pieces.extend(load_bar(worker.appliances, bands.get(&worker.id).copied(), scale, bar, glyphs));
        pieces.append(&mut line.0);
        ScreenLine(pieces)
    };
    let mut head = vec![Piece::plain(" "), Piece::bold(format!("{:<bar$}", "APPLIANCES"))];
    head.extend(list.head.0);
    PaneContent {
        head: ScreenLine(head),
        rows: list.rows.into_iter().zip(workers).map(|(line, worker)| with_bar(line, worker)).collect(),
        empty: match model.worker_count() {
            0 => empty(model, Feed::Workers, "no workers"),
            _ => "no worker matches".to_owned(),
        },
    }
}

/// How it is with a worker: its health, or what is more to the point while it is healthy.
fn worker_state(worker: &v1::Worker) -> Cell {
    let health = view::health(worker.health());
    let is_healthy = worker.health() == v1::Health::Healthy;
    let special = [
        (worker.drained, "drained"),
        (worker.cordoned, "cordoned"),
        (worker.draining, "draining"),
        (!worker.member, "not a member"),
    ];
    match special.into_iter().find(|(holds, _)| is_healthy && *holds) {
        Some((_, word)) => (word.to_owned(), Tone::Busy),
        None => (health.to_owned(), Tone::of(health)),
    }
}

fn tone_of(band: Option<WorkerBand>, appliances: u64) -> Tone {
    match band.map(|band| band.verdict(appliances)) {
        None | Some("") => Tone::Plain,
        Some(_) => Tone::Busy,
    }
}

/// The bar of a worker: its load, with marks at floor and ceiling.
fn load_bar(load: u64, band: Option<WorkerBand>, scale: u64, width: usize, glyphs: &Glyphs) -> Vec<Piece> {
    let place = |n: u64| match scale {
        0 => 0,
        all => (n as f64 / all as f64 * width as f64).round() as usize,
    };
    let filled = match load {
        0 => 0,
        load => place(load).max(1),
    };
    // The mark of a limit is in the last cell that it allows.
    let marks = band.map(|band| [place(band.floor).saturating_sub(1), place(band.ceiling).saturating_sub(1)]);
    let tone = match tone_of(band, load) {
        Tone::Plain => Tone::Good,
        other => other,
    };
    let mut pieces: Vec<Piece> = Vec::new();
    for cell in 0..width {
        let (c, tone) = match (marks.is_some_and(|marks| marks.contains(&cell)), cell < filled) {
            (true, _) => (glyphs.mark, Tone::Plain),
            (false, true) => (glyphs.full, tone),
            (false, false) => (glyphs.idle, Tone::Dim),
        };
        match pieces.last_mut().filter(|last| last.tone == tone) {
            Some(last) => last.text.push(c),
            None => pieces.push(Piece::new(tone, c.to_string())),
        }
    }
    pieces
}

fn appliances(model: &Model, width: usize, glyphs: &Glyphs) -> PaneContent {
    let pages = &model.pages;
    let columns = [
        ("TENANT", Give::Keep),
        ("NAME", Give::Keep),
        ("PHASE", Give::Keep),
        ("READY", Give::Keep),
        ("WORKER", Give::Keep),
        ("PROBLEM", Give::Cut),
        ("KIND", Give::Drop),
        ("AGE", Give::Drop),
    ];
    let row = |row: &crate::top::pages::ApplianceRow| -> Vec<Cell> {
        vec![
            plain(&row.tenant),
            plain(&row.name),
            (row.phase.to_owned(), Tone::of(row.phase)),
            plain(&row.ready),
            plain(if row.worker.is_empty() { "-" } else { &row.worker }),
            (one_line(&row.problem), Tone::Bad),
            plain(row.kind),
            plain(age(row.created.as_ref(), model.now)),
        ]
    };
    let list = lay_out(&columns, pages.rows.iter().map(row).collect(), width, glyphs);
    let empty = match (pages.failure.as_str(), model.feed(Feed::Cluster)) {
        ("", FeedState::Open) if pages.typed.is_empty() => "no appliances".to_owned(),
        ("", FeedState::Open) => "no appliance matches".to_owned(),
        ("", _) => "waiting for the server".to_owned(),
        (failure, _) => one_line(failure),
    };
    PaneContent { head: list.head, rows: list.rows, empty }
}

fn rebalances(model: &Model, width: usize, glyphs: &Glyphs) -> PaneContent {
    let columns =
        [("ID", Give::Keep), ("OUTCOME", Give::Keep), ("MOVES", Give::Keep), ("AGE", Give::Keep), ("CAUSE", Give::Cut)];
    let row = |it: &v1::Rebalance| -> Vec<Cell> {
        vec![
            plain(&it.id),
            (it.outcome.clone(), Tone::of(&it.outcome)),
            plain(format!("{}/{}", it.moves_done, it.moves)),
            plain(age(it.start_time.as_ref(), model.now)),
            plain(one_line(&it.cause)),
        ]
    };
    let list = lay_out(&columns, model.rebalances.iter().map(row).collect(), width, glyphs);
    PaneContent { head: list.head, rows: list.rows, empty: empty(model, Feed::Rebalances, "no rebalances") }
}

fn troubles(model: &Model, width: usize, glyphs: &Glyphs) -> PaneContent {
    let columns = [("TROUBLE", Give::Keep), ("WHOM", Give::Cut), ("DETAIL", Give::Cut)];
    let rows = model.trouble_list().into_iter();
    let cells = rows.map(|it| vec![(it.what.to_owned(), it.tone), plain(it.whom), plain(it.detail)]);
    let list = lay_out(&columns, cells.collect(), width, glyphs);
    PaneContent { head: list.head, rows: list.rows, empty: empty(model, Feed::Cluster, "nothing is wrong") }
}

fn events(model: &Model, width: usize, glyphs: &Glyphs) -> PaneContent {
    let columns = [("TIME", Give::Keep), ("ACTION", Give::Keep), ("SUBJECT", Give::Cut), ("ACTOR", Give::Cut)];
    let row = |event: &v1::AuditEvent| -> Vec<Cell> {
        let time = moment(event.time);
        let time = time.split_once('T').map_or(time.as_str(), |(_, time)| time).trim_end_matches('Z').to_owned();
        // The detail of a change of an appliance begins with its name; that of a measure is the reason.
        let subject = match (event.detail.split(' ').next(), event.detail.is_empty()) {
            (Some(name), false) if name.contains('/') => one_line(&event.detail),
            (_, false) => format!("{}: {}", event.subject, one_line(&event.detail)),
            _ => event.subject.clone(),
        };
        vec![plain(time), plain(one_line(&event.action)), plain(subject), plain(one_line(&event.actor))]
    };
    let list = lay_out(&columns, model.events.iter().map(row).collect(), width, glyphs);
    PaneContent { head: list.head, rows: list.rows, empty: empty(model, Feed::Audit, "nothing was done yet") }
}
