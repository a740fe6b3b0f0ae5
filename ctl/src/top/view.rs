//! Shows the model: the screen of a size, as a plain value.
//!
//! From top to bottom: a title, the numbers of the cluster, the rebalance that runs, what restrains the leader, the names of the panes,
//! the panes, and a line for keys, questions and messages. A wide screen has the list on the left and the rest beside it; a narrow one
//! has one pane at a time.

mod columns;
mod header;
mod panes;

use super::model::{Model, Overlay, Pane, Prompt};
use super::screen::{Glyphs, Piece, Region, Screen, ScreenLine, Target};
use crate::output::wrap;

/// From this size on there is room for panes beside each other.
const WIDE: (usize, usize) = (110, 30);
/// Smallest screen that anything is drawn on.
const SMALLEST: (usize, usize) = (40, 10);

/// A part of the screen that a pane fills.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct PaneArea {
    pane: Pane,
    column: usize,
    line: usize,
    width: usize,
    height: usize,
    /// Whether its first line is its title.
    titled: bool,
}

/// The screen for the model, in this many columns and lines.
pub(crate) fn screen(model: &Model, (width, height): (u16, u16), glyphs: &Glyphs) -> Screen {
    let (columns, rows) = (usize::from(width), usize::from(height));
    let mut screen = Screen::default();
    if columns < SMALLEST.0 || rows < SMALLEST.1 {
        let text = format!("too small: {}x{} is needed", SMALLEST.0, SMALLEST.1);
        screen.lines = vec![ScreenLine::of([Piece::plain(text)])];
    } else {
        screen.lines.push(header::title(model, columns, glyphs));
        let body = match &model.overlay {
            None => {
                screen.lines.extend(header::lines(model, columns, rows, glyphs));
                let line = screen.lines.len();
                screen.lines.push(tabs(model, line, &mut screen.regions, glyphs).fitted(columns, glyphs.rule));
                panes(model, columns, rows - 1 - screen.lines.len(), screen.lines.len(), &mut screen.regions, glyphs)
            }
            Some(overlay) => overlaid(overlay, columns, rows - 2, glyphs),
        };
        screen.lines.extend(body);
        screen.lines.resize(rows - 1, ScreenLine::default());
        let (last, cursor) = footer(model, columns);
        screen.lines.push(last);
        screen.cursor = cursor.map(|column| (narrow(column), height - 1));
    }
    screen.lines.resize(rows, ScreenLine::default());
    for line in &mut screen.lines {
        for piece in &mut line.0 {
            piece.text = glyphs.shown(&piece.text);
        }
        *line = std::mem::take(line).fitted(columns, glyphs.ellipsis);
    }
    screen
}

/// Rows of the pane that has the keys, on a screen of this size.
pub(crate) fn visible_rows(model: &Model, (width, height): (u16, u16)) -> usize {
    let (columns, rows) = (usize::from(width), usize::from(height));
    if columns < SMALLEST.0 || rows < SMALLEST.1 {
        return 1;
    }
    if model.overlay.is_some() {
        return rows.saturating_sub(3).max(1);
    }
    let above = 2 + header::lines(model, columns, rows, &Glyphs::ASCII).len();
    let areas = areas(model, columns, rows.saturating_sub(1 + above), above);
    let own = areas.into_iter().find(|area| area.pane == model.pane);
    own.map_or(1, |area| area.height.saturating_sub(1 + usize::from(area.titled)).max(1))
}

fn narrow(n: usize) -> u16 {
    u16::try_from(n).unwrap_or(u16::MAX)
}

/// The names of the panes, with the numbers that choose them.
fn tabs(model: &Model, line: usize, regions: &mut Vec<Region>, glyphs: &Glyphs) -> ScreenLine {
    let mut pieces = vec![Piece::plain(glyphs.rule.to_string())];
    let mut column = 1;
    for (n, pane) in Pane::ALL.into_iter().enumerate() {
        let text = format!(" {} {} ", n + 1, panes::title(model, pane));
        let width = ScreenLine::of([Piece::plain(&text)]).width();
        let target = Target::Pane(pane);
        regions.push(Region { columns: narrow(column)..narrow(column + width), line: narrow(line), target });
        column += width + 1;
        pieces.push(if pane == model.pane { Piece::reverse(text) } else { Piece::plain(text) });
        pieces.push(Piece::plain(glyphs.rule.to_string()));
    }
    pieces.push(Piece::plain(glyphs.rule.to_string().repeat(400)));
    ScreenLine(pieces)
}

/// Where which pane is.
fn areas(model: &Model, width: usize, height: usize, line: usize) -> Vec<PaneArea> {
    let whole = PaneArea { pane: model.pane, column: 0, line, width, height, titled: false };
    if width < WIDE.0 || height + line < WIDE.1 {
        return vec![whole];
    }
    let list = if model.pane == Pane::Appliances { Pane::Appliances } else { Pane::Workers };
    let right = (width * 2 / 5).clamp(48, 90);
    let left = width - right - 1;
    let side = [Pane::Troubles, Pane::Rebalances, Pane::Events];
    let mut areas = vec![PaneArea { pane: list, width: left, ..whole }];
    let each = height / side.len();
    for (n, pane) in side.into_iter().enumerate() {
        let height = if n + 1 == side.len() { height - n * each } else { each };
        areas.push(PaneArea { pane, column: left + 1, line: line + n * each, width: right, height, titled: true });
    }
    areas
}

/// The panes, side by side where there are several.
fn panes(
    model: &Model,
    width: usize,
    height: usize,
    line: usize,
    regions: &mut Vec<Region>,
    glyphs: &Glyphs,
) -> Vec<ScreenLine> {
    let areas = areas(model, width, height, line);
    let mut drawn = areas.iter().map(|area| pane(model, area, regions, glyphs));
    let mut left = drawn.next().unwrap_or_default();
    let right: Vec<_> = drawn.flatten().collect();
    if right.is_empty() {
        return left;
    }
    for (line, beside) in left.iter_mut().zip(right) {
        line.0.push(Piece::plain(glyphs.divider.to_string()));
        line.0.extend(beside.0);
    }
    left
}

/// One pane, in exactly the lines and columns of its area.
fn pane(model: &Model, area: &PaneArea, regions: &mut Vec<Region>, glyphs: &Glyphs) -> Vec<ScreenLine> {
    let mut lines = Vec::new();
    let mut click = |line: usize, target| {
        let columns = narrow(area.column)..narrow(area.column + area.width);
        regions.push(Region { columns, line: narrow(area.line + line), target });
    };
    if area.titled {
        let rule = Piece::plain(glyphs.rule.to_string().repeat(area.width));
        let text = format!("{}{} ", glyphs.rule, format_args!(" {}", panes::title(model, area.pane)));
        let title = if area.pane == model.pane { Piece::bold(text) } else { Piece::plain(text) };
        click(0, Target::Pane(area.pane));
        lines.push(ScreenLine::of([title, rule]).fitted(area.width, glyphs.rule));
    }
    let height = area.height.saturating_sub(lines.len());
    let content = panes::content(model, area.pane, area.width, glyphs);
    let rows = height.saturating_sub(1).max(1);
    let selected = model.selected_row(area.pane);
    // By whole screens, so that what is clicked stays where it is.
    let from = selected / rows * rows;
    lines.push(content.head);
    if content.rows.is_empty() {
        lines.push(ScreenLine::of([Piece::plain(format!(" {}", content.empty))]));
    }
    for (row, line) in content.rows.into_iter().enumerate().skip(from).take(rows) {
        click(lines.len(), Target::Row(area.pane, row));
        let line = line.fitted(area.width, glyphs.ellipsis);
        lines.push(if row == selected && area.pane == model.pane { line.reversed() } else { line });
    }
    lines.resize(area.height, ScreenLine::default());
    lines.into_iter().map(|line| line.fitted(area.width, glyphs.ellipsis)).collect()
}

const HELP: &[(&str, &str)] = &[
    ("1 to 5, Tab, Shift-Tab", "another pane"),
    ("Up, Down, k, j, PgUp, PgDn, g, G", "another row; past the last one the next page"),
    ("Enter", "inspect what the row is about"),
    ("e", "explain why the appliance is where it is"),
    ("a", "list the appliances of the worker"),
    ("r", "rebuild the appliance; asks first"),
    ("d", "drain the worker, or end that; asks first"),
    ("h", "hands off it (debug mode), or on; asks first"),
    ("E", "evict the worker; asks first"),
    ("p", "pause or resume placement; asks first"),
    ("/", "filter: workers by a part of their names; appliances by words"),
    ("", "such as: web phase=error worker=w1 tenant=demo app=shop"),
    ("s", "sort workers by name, load or health"),
    ("Escape", "close this, or end a filter"),
    ("q, Ctrl-C", "quit"),
    ("mouse", "click chooses, a second click inspects, the wheel moves"),
];

fn overlaid(overlay: &Overlay, width: usize, height: usize, glyphs: &Glyphs) -> Vec<ScreenLine> {
    let rule = || Piece::plain(glyphs.rule.to_string().repeat(width));
    match overlay {
        Overlay::Help => {
            let keys = HELP.iter().map(|(keys, _)| keys.len()).max().unwrap_or(0).min(width / 2);
            let title = Piece::bold(format!("{} Keys ", glyphs.rule));
            let mut lines = vec![ScreenLine::of([title, rule()]).fitted(width, glyphs.rule)];
            for (key, what) in HELP {
                let room = width.saturating_sub(keys + 4);
                for (n, part) in wrap(what, room).into_iter().enumerate() {
                    let key = if n == 0 { key } else { "" };
                    lines.push(ScreenLine::of([Piece::bold(format!(" {key:<keys$}  ")), Piece::plain(part)]));
                }
            }
            lines.push(ScreenLine::default());
            let legend = [
                ("bar", format!("{} appliances, {} the floor and the ceiling of its share", glyphs.full, glyphs.mark)),
                (
                    "phases",
                    format!("{} configured, {} changing, {} down, ! in trouble", glyphs.full, glyphs.busy, glyphs.idle),
                ),
            ];
            for (name, what) in legend {
                lines.push(ScreenLine::of([Piece::bold(format!(" {name:<keys$}  ")), Piece::plain(what)]));
            }
            lines.truncate(height);
            lines
        }
        Overlay::Text { title, lines, from } => {
            let title = Piece::bold(format!("{} {title} ", glyphs.rule));
            let mut shown = vec![ScreenLine::of([title, rule()]).fitted(width, glyphs.rule)];
            let folded = lines.iter().skip(*from).flat_map(|line| fold(line, width.saturating_sub(2)));
            shown.extend(
                folded.take(height.saturating_sub(1)).map(|line| ScreenLine::of([Piece::plain(format!(" {line}"))])),
            );
            shown
        }
    }
}

/// A line in parts of at most `width` columns, with its indentation in front of each.
fn fold(line: &str, width: usize) -> Vec<String> {
    let text = line.trim_start();
    let indent = line.len() - text.len();
    if ScreenLine::of([Piece::plain(line)]).width() <= width || indent * 2 > width {
        return vec![line.to_owned()];
    }
    // Columns of a table and of a list of values stay where they are in the first part.
    let (mut head, mut rest) = (String::new(), text);
    while let Some(word) = rest.split_inclusive(' ').next().filter(|_| !rest.is_empty()) {
        let used = ScreenLine::of([Piece::plain(format!("{head}{word}"))]).width();
        if !head.is_empty() && indent + used > width {
            break;
        }
        head.push_str(word);
        rest = &rest[word.len()..];
    }
    let mut parts = vec![format!("{:indent$}{head}", "")];
    parts.extend(
        wrap(rest, width.saturating_sub(indent + 2)).into_iter().map(|part| format!("{:1$}{part}", "", indent + 2)),
    );
    parts
}

/// The last line, and the column of the cursor where text is typed.
fn footer(model: &Model, width: usize) -> (ScreenLine, Option<usize>) {
    match (&model.prompt, &model.message, &model.overlay) {
        (Some(Prompt::Filter(text)), _, _) => {
            let line = ScreenLine::of([Piece::bold("filter: "), Piece::plain(text)]);
            let column = line.width().min(width.saturating_sub(1));
            (line, Some(column))
        }
        (Some(Prompt::Confirm { question, .. }), _, _) => {
            let line = ScreenLine::of([Piece::reverse(format!(" {question} [y/N] "))]);
            let column = line.width().min(width.saturating_sub(1));
            (line, Some(column))
        }
        (None, Some(message), _) => {
            let piece = Piece { tone: message.tone, ..Piece::bold(crate::text::one_line(&message.text)) };
            (ScreenLine::of([piece]), None)
        }
        (None, None, Some(_)) => (hints(&[("Esc", "close"), ("j k", "scroll")]), None),
        (None, None, None) => {
            let mut keys = vec![("?", "help"), ("q", "quit"), ("Tab", "pane"), ("Enter", "inspect")];
            keys.extend(match model.pane {
                Pane::Workers => {
                    vec![("a", "appliances"), ("d", "drain"), ("h", "hands off"), ("s", "sort"), ("/", "filter")]
                }
                Pane::Appliances => vec![("e", "explain"), ("r", "rebuild"), ("h", "hands off"), ("/", "filter")],
                Pane::Rebalances => vec![],
                Pane::Troubles | Pane::Events => vec![("e", "explain"), ("r", "rebuild")],
            });
            let paused =
                model.cluster.as_ref().is_some_and(|status| status.paused.is_some() || status.frozen.is_some());
            keys.push(("p", if paused { "resume" } else { "pause" }));
            (hints(&keys), None)
        }
    }
}

fn hints(keys: &[(&str, &str)]) -> ScreenLine {
    ScreenLine(
        keys.iter()
            .flat_map(|(key, what)| [Piece::bold(format!(" {key}")), Piece::plain(format!(" {what} "))])
            .collect(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_lines_are_folded_with_their_indentation() {
        assert_eq!(fold("  short", 20), ["  short"]);
        assert_eq!(fold("  a    b  and much more than fits", 20), ["  a    b  and much ", "    more than fits"]);
    }
}
