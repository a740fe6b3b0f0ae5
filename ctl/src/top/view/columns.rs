//! Columns of a list, as wide as what is in them.

use unicode_width::UnicodeWidthStr;

use crate::output::Tone;
use crate::top::screen::{Glyphs, Piece, ScreenLine, clipped};

/// How a column gives way when there is too little room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Give {
    /// It does not.
    Keep,
    /// It is cut.
    Cut,
    /// It is left out, the rightmost first.
    Drop,
}

/// A column: its name, and how it gives way.
pub(super) type Column = (&'static str, Give);

/// A cell.
pub(super) type Cell = (String, Tone);

/// Narrowest that a column is cut to.
const NARROWEST: usize = 8;

/// A head and its rows.
#[derive(Debug, Default)]
pub(super) struct ColumnList {
    pub(super) head: ScreenLine,
    pub(super) rows: Vec<ScreenLine>,
}

/// Lays out rows in `width` columns, with one space in front and two between.
pub(super) fn lay_out(columns: &[Column], rows: Vec<Vec<Cell>>, width: usize, glyphs: &Glyphs) -> ColumnList {
    let shown: Vec<Vec<Cell>> =
        rows.into_iter().map(|row| row.into_iter().map(|(text, tone)| (glyphs.shown(&text), tone)).collect()).collect();
    let cells = |n: usize| shown.iter().filter_map(move |row| row.get(n)).map(|(text, _)| text.width());
    let mut widths: Vec<_> = (0..columns.len()).map(|n| cells(n).chain([columns[n].0.width()]).max()).collect();
    // Nothing in it at all.
    for (n, (_, give)) in columns.iter().enumerate() {
        if *give == Give::Drop && cells(n).all(|width| width == 0) {
            widths[n] = None;
        }
    }
    // One space in front of the first, and two in front of every other one.
    let total =
        |widths: &[Option<usize>]| widths.iter().flatten().map(|width| width + 2).sum::<usize>().saturating_sub(1);
    while total(&widths) > width {
        let cut = |n: &usize| columns[*n].1 == Give::Cut && widths[*n].is_some_and(|w| w > NARROWEST);
        if let Some(n) = (0..columns.len()).filter(cut).max_by_key(|n| widths[*n]) {
            widths[n] = widths[n].map(|own| own - 1);
        } else if let Some(n) = (0..columns.len()).rev().find(|n| columns[*n].1 == Give::Drop && widths[*n].is_some()) {
            widths[n] = None;
        } else {
            break;
        }
    }
    let line = |cells: Vec<Piece>| {
        let mut pieces = Vec::new();
        for (cell, width) in cells.into_iter().zip(&widths) {
            let Some(width) = width else { continue };
            let text = clipped(&cell.text, *width, glyphs.ellipsis);
            let padding = " ".repeat(width.saturating_sub(text.width()));
            pieces.push(Piece::plain(if pieces.is_empty() { " " } else { "  " }));
            pieces.push(Piece { text, ..cell });
            pieces.push(Piece::plain(padding));
        }
        ScreenLine(pieces)
    };
    ColumnList {
        head: line(columns.iter().map(|(name, _)| Piece::bold(*name)).collect()),
        rows: shown
            .into_iter()
            .map(|row| line(row.into_iter().map(|(text, tone)| Piece::new(tone, text)).collect()))
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(width: usize) -> Vec<String> {
        let columns = [("NAME", Give::Keep), ("WHY", Give::Cut), ("ZONE", Give::Drop), ("NONE", Give::Drop)];
        let cell = |text: &str| (text.to_owned(), Tone::Plain);
        let rows = vec![vec![cell("worker-1"), cell("it does not answer"), cell("z1"), cell("")]];
        let list = lay_out(&columns, rows, width, &Glyphs::ASCII);
        let text = |line: &ScreenLine| line.0.iter().map(|piece| piece.text.as_str()).collect::<String>();
        std::iter::once(&list.head).chain(&list.rows).map(|line| text(line).trim_end().to_owned()).collect()
    }

    #[test]
    fn prose_is_cut_and_what_can_be_spared_is_left_out() {
        assert_eq!(texts(60), [" NAME      WHY                 ZONE", " worker-1  it does not answer  z1"]);
        assert_eq!(texts(30), [" NAME      WHY            ZONE", " worker-1  it does not ~  z1"]);
        assert_eq!(texts(20), [" NAME      WHY", " worker-1  it does~"]);
    }
}
