//! The lines above the panes: who leads, how many of what, what moves, what is restrained.

use std::time::SystemTime;

use common::status::Phase;
use proto::admin::v1;

use crate::commands::budget;
use crate::output::{Tone, age, count, moment};
use crate::text::one_line;
use crate::top::input::Feed;
use crate::top::model::{FeedState, Model};
use crate::top::screen::{Glyphs, Piece, ScreenLine};

/// Rollouts that have a line; more run side by side rarely.
const ROLLOUTS: usize = 2;

/// Budgets that have a line: those that hold most up.
const BUDGETS: usize = 2;

/// Lines that are left for the title, the names of the panes, one pane with a few rows, and the keys.
const PANE_LINES: usize = 7;

/// The line at the top.
pub(super) fn title(model: &Model, width: usize, glyphs: &Glyphs) -> ScreenLine {
    let clock = moment(Some(prost_types::Timestamp::from(model.now)));
    let clock = clock.split_once('T').map_or(clock.as_str(), |(_, time)| time);
    let divider = format!(" {} ", glyphs.divider);
    let text = match &model.cluster {
        None => format!(" rug{divider}waiting for the cluster"),
        Some(status) => {
            let identity = status.identity.clone().unwrap_or_default();
            let name = if identity.name.is_empty() { identity.id } else { identity.name };
            let leader = format!("{} leads, term {}", status.coordinator, status.term);
            let parts = [
                "rug".to_owned(),
                name,
                leader,
                format!("up {}", age(status.start_time.as_ref(), model.now)),
                format!("version {}", status.version),
            ];
            format!(" {}", parts.join(&divider))
        }
    };
    let line = ScreenLine::of([Piece::reverse(text)]);
    let room = width.saturating_sub(clock.len() + 1);
    let mut line = line.fitted(room, glyphs.ellipsis);
    line.0.push(Piece::plain(format!("{clock} ")));
    line.reversed()
}

/// The lines between the title and the names of the panes; on a low screen fewer.
pub(super) fn lines(model: &Model, width: usize, height: usize, glyphs: &Glyphs) -> Vec<ScreenLine> {
    let mut lines = Vec::new();
    if let Some(status) = &model.cluster {
        lines.push(numbers(model, status));
        lines.push(phases(status));
        if height >= 20 {
            lines.push(phase_bar(status, width, glyphs));
        }
        lines.push(rebalance(model, width, glyphs));
        lines.extend(model.rollouts.iter().take(ROLLOUTS).map(|it| rollout(it, width, glyphs)));
        lines.extend(model.budgets.iter().take(BUDGETS).map(budget_line));
    }
    for restraint in model.restraints() {
        let tone = restraint.kind.tone();
        let name = Piece { tone, ..Piece::reverse(format!(" {} ", restraint.kind.name())) };
        lines.push(ScreenLine::of([name, Piece::new(tone, format!(" {}", restraint.text))]));
    }
    lines.extend(streams(model));
    // On a low screen the pane with the keys comes before the last of them.
    lines.truncate(height.saturating_sub(PANE_LINES));
    lines
}

fn named(name: &str) -> Piece {
    Piece::bold(format!(" {name:<12}"))
}

fn numbers(model: &Model, status: &v1::ClusterStatus) -> ScreenLine {
    let of = |health: &str| status.workers.get(health).copied().unwrap_or(0);
    let known: u64 = status.workers.iter().filter(|(health, _)| *health != "left").map(|(_, n)| n).sum();
    let mut pieces = vec![named("Workers"), Piece::plain(format!("{known}"))];
    for (health, tone) in [("healthy", Tone::Good), ("suspect", Tone::Busy), ("dead", Tone::Bad)] {
        if of(health) > 0 {
            pieces.push(Piece::new(tone, format!("  {} {health}", of(health))));
        }
    }
    let coordinators = status.coordinators.len().max(1) as u64;
    pieces.push(Piece::plain(format!("   {}", count(coordinators, "coordinator"))));
    if status.coordination_state() == v1::CoordinationState::InDoubt {
        pieces.push(Piece::new(Tone::Bad, "  coordination in doubt"));
    }
    if status.moves_in_flight > 0 {
        pieces.push(Piece::new(Tone::Busy, format!("   {} under way", count(status.moves_in_flight, "move"))));
    }
    if let Some(unowned) = status.unowned.as_ref().filter(|unowned| unowned.appliances > 0) {
        let oldest = unowned.oldest.first().map(|it| age(it.since.as_ref(), model.now)).unwrap_or_default();
        pieces.push(Piece::new(Tone::Busy, format!("   {} unowned, the oldest for {oldest}", unowned.appliances)));
    }
    ScreenLine(pieces)
}

fn number(status: &v1::ClusterStatus, phase: Phase) -> u64 {
    status.phases.iter().filter(|(name, _)| name.eq_ignore_ascii_case(phase.name())).map(|(_, n)| n).sum()
}

fn phases(status: &v1::ClusterStatus) -> ScreenLine {
    let mut pieces = vec![named("Appliances"), Piece::plain(status.appliances.to_string())];
    let mut each: Vec<_> = Phase::ALL.into_iter().map(|phase| (number(status, phase), phase)).collect();
    each.retain(|(n, _)| *n > 0);
    each.sort_by_key(|(n, phase)| (std::cmp::Reverse(*n), phase.name()));
    for (n, phase) in each {
        pieces.push(Piece::new(Tone::of(phase.name()), format!("  {n} {}", phase.name().to_lowercase())));
    }
    ScreenLine(pieces)
}

/// Shares of the phases; what is there at all takes a cell at least.
fn phase_bar(status: &v1::ClusterStatus, width: usize, glyphs: &Glyphs) -> ScreenLine {
    let name = named("");
    let room = width.saturating_sub(ScreenLine::of([name.clone()]).width() + 1);
    let sum = |phases: &[Phase]| phases.iter().map(|phase| number(status, *phase)).sum::<u64>();
    let well = sum(&[Phase::Configured]);
    let idle = sum(&[Phase::Down, Phase::Gone]);
    let bad = sum(&[Phase::Error]);
    let all: u64 = Phase::ALL.into_iter().map(|phase| number(status, phase)).sum();
    let busy = all - well - idle - bad;
    if all == 0 {
        return ScreenLine::of([name, Piece::new(Tone::Dim, glyphs.idle.to_string().repeat(room))]);
    }
    let cells = |n: u64| if n == 0 { 0 } else { ((n as f64 / all as f64 * room as f64).round() as usize).max(1) };
    let (busy_cells, idle_cells, bad_cells) = (cells(busy), cells(idle), cells(bad));
    let well_cells = if well == 0 { 0 } else { room.saturating_sub(busy_cells + idle_cells + bad_cells) };
    let part = |n: usize, c: char, tone| Piece::new(tone, c.to_string().repeat(n));
    ScreenLine::of([
        name,
        part(well_cells, glyphs.full, Tone::Good),
        part(busy_cells, glyphs.busy, Tone::Busy),
        part(idle_cells, glyphs.idle, Tone::Dim),
        part(bad_cells, '!', Tone::Bad),
    ])
}

fn rebalance(model: &Model, width: usize, glyphs: &Glyphs) -> ScreenLine {
    let Some(latest) = model.rebalances.first() else {
        return ScreenLine::of([named("Rebalance"), Piece::new(Tone::Dim, "none yet")]);
    };
    let ended = |it: &v1::Rebalance| it.end_time.is_some();
    let Some(running) = model.rebalances.iter().find(|it| !ended(it)) else {
        let since = age(latest.end_time.as_ref(), model.now);
        let text = format!("none runs; {}, {}, {since} ago", latest.id, one_line(&latest.cause));
        return ScreenLine::of([named("Rebalance"), Piece::new(Tone::Dim, text)]);
    };
    let mut pieces = vec![named("Rebalance")];
    pieces.extend(progress(running.moves_done, running.moves, width, glyphs));
    pieces.push(Piece::plain(format!(" {}/{} moves  ", running.moves_done, running.moves)));
    let text = format!("{}, {}, {}", running.id, one_line(&running.cause), since(running, model.now));
    pieces.push(Piece::plain(text));
    ScreenLine(pieces)
}

/// A bar of how much is done.
fn progress(done: u64, all: u64, width: usize, glyphs: &Glyphs) -> [Piece; 2] {
    let bar = width.saturating_sub(60).clamp(10, 40);
    let cells = match all {
        0 => 0,
        all => (done.min(all) as f64 / all as f64 * bar as f64) as usize,
    };
    let part = |n: usize, c: char, tone| Piece::new(tone, c.to_string().repeat(n));
    [part(cells, glyphs.full, Tone::Good), part(bar - cells, glyphs.idle, Tone::Dim)]
}

fn rollout(it: &v1::Rollout, width: usize, glyphs: &Glyphs) -> ScreenLine {
    let lower = |name: &str| name.to_lowercase().replace('_', " ");
    let tone = match it.state() {
        v1::RolloutState::Running => Tone::Plain,
        v1::RolloutState::Stopped => Tone::Bad,
        _ => Tone::Busy,
    };
    let ended = it.done + it.failed + it.skipped;
    let mut pieces = vec![named("Rollout")];
    pieces.extend(progress(ended, it.total, width, glyphs));
    pieces.push(Piece::plain(format!(" {ended}/{}  ", it.total)));
    pieces.push(Piece::new(tone, lower(it.state().as_str_name())));
    if it.failed > 0 {
        pieces.push(Piece::new(Tone::Bad, format!("  {} failed", it.failed)));
    }
    let why = if it.waits.is_empty() { &it.note } else { &it.waits };
    let parts = [lower(it.action().as_str_name()), format!("wave {} of {}", it.wave, it.waves), one_line(why)];
    let parts: Vec<_> = parts.into_iter().filter(|part| !part.is_empty()).collect();
    pieces.push(Piece::plain(format!("  {}", parts.join(", "))));
    ScreenLine(pieces)
}

fn budget_line(it: &v1::Budget) -> ScreenLine {
    let limit = format!("{}, {} of {}", one_line(&it.name), budget::limit(it), budget::scope_text(it));
    let mut pieces =
        vec![named("Budget"), Piece::plain(limit), Piece::plain(format!("   {} of {} down", it.down, it.covered))];
    if it.spent > 0 {
        let groups =
            if it.per == "all" { "spent".to_owned() } else { format!("spent for {} of {}", it.spent, it.groups) };
        pieces.push(Piece::new(Tone::Busy, format!("   {groups}")));
    }
    if it.held > 0 {
        let wait = if it.held == 1 { "waits" } else { "wait" };
        pieces.push(Piece::new(Tone::Busy, format!("   {} {wait}", count(it.held, "move"))));
    }
    ScreenLine(pieces)
}

fn since(running: &v1::Rebalance, now: SystemTime) -> String {
    format!("for {}", age(running.start_time.as_ref(), now))
}

/// What the screen may be behind with.
fn streams(model: &Model) -> Option<ScreenLine> {
    let broken = Feed::ALL.into_iter().find_map(|feed| match model.feed(feed) {
        FeedState::Interrupted(why) => {
            Some((Tone::Bad, format!("connecting again to {}: {}", feed.name(), one_line(why))))
        }
        _ => None,
    });
    let refused = || {
        Feed::ALL.into_iter().find_map(|feed| match model.feed(feed) {
            FeedState::Refused(why) => Some((Tone::Dim, format!("{} is not shown: {}", feed.name(), one_line(why)))),
            _ => None,
        })
    };
    let (tone, text) = broken.or_else(refused)?;
    Some(ScreenLine::of([Piece { tone, ..Piece::bold(format!(" {text}")) }]))
}
