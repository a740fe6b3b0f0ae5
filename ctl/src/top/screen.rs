//! What is on the screen, as a plain value: lines of pieces with a tone, and which part of it a click means.
//!
//! A screen has no terminal: [`view`](super::view) makes it from the model, [`draw`](super::draw) puts it into cells, and two screens
//! that are equal need no drawing.

use std::ops::Range;

use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

use super::model::Pane;
use crate::output::Tone;

/// How strongly a piece of text stands out, without any colour.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Emphasis {
    #[default]
    None,
    Bold,
    Reverse,
}

/// A piece of text that looks the same throughout.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) text: String,
    pub(crate) tone: Tone,
    pub(crate) emphasis: Emphasis,
}

impl Piece {
    pub(crate) fn new(tone: Tone, text: impl Into<String>) -> Self {
        Self { text: text.into(), tone, emphasis: Emphasis::None }
    }

    pub(crate) fn plain(text: impl Into<String>) -> Self {
        Self::new(Tone::Plain, text)
    }

    pub(crate) fn bold(text: impl Into<String>) -> Self {
        Self { emphasis: Emphasis::Bold, ..Self::plain(text) }
    }

    pub(crate) fn reverse(text: impl Into<String>) -> Self {
        Self { emphasis: Emphasis::Reverse, ..Self::plain(text) }
    }
}

/// A line from left to right.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ScreenLine(pub(crate) Vec<Piece>);

impl ScreenLine {
    pub(crate) fn of(pieces: impl IntoIterator<Item = Piece>) -> Self {
        Self(pieces.into_iter().collect())
    }

    /// Columns it takes.
    pub(crate) fn width(&self) -> usize {
        self.0.iter().map(|piece| piece.text.width()).sum()
    }

    /// The same line in exactly `width` columns: filled with spaces, or cut with `ellipsis` at its end.
    pub(crate) fn fitted(mut self, width: usize, ellipsis: char) -> Self {
        let own = self.width();
        if own <= width {
            self.0.push(Piece::plain(" ".repeat(width - own)));
            return self;
        }
        let mut left = width;
        let mut pieces = Vec::new();
        for piece in self.0 {
            let columns = piece.text.width();
            if columns < left {
                left -= columns;
                pieces.push(piece);
                continue;
            }
            // Something is missing after this piece, or in it: its last column says so.
            let text = cut(&piece.text, left, ellipsis);
            pieces.push(Piece { text, ..piece });
            break;
        }
        Self(pieces)
    }

    /// The same line, all of it reversed: the one that is selected.
    pub(crate) fn reversed(mut self) -> Self {
        self.0.iter_mut().for_each(|piece| piece.emphasis = Emphasis::Reverse);
        self
    }
}

/// Text in exactly `width` columns of which the last one is `ellipsis`.
fn cut(text: &str, width: usize, ellipsis: char) -> String {
    let mut used = 0;
    let mut out = String::new();
    for c in text.chars() {
        let columns = c.width().unwrap_or(0);
        if used + columns >= width {
            break;
        }
        used += columns;
        out.push(c);
    }
    if used < width {
        out.push_str(&" ".repeat((width - used).saturating_sub(1)));
        out.push(ellipsis);
    }
    out
}

/// Text that takes at most `width` columns.
pub(crate) fn clipped(text: &str, width: usize, ellipsis: char) -> String {
    if text.width() <= width { text.to_owned() } else { cut(text, width, ellipsis) }
}

/// What a click on a part of the screen means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// A pane, by its name in the list of panes or by its title.
    Pane(Pane),
    /// A row of a pane, by its number.
    Row(Pane, usize),
}

/// A part of one line that can be clicked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Region {
    pub(crate) columns: Range<u16>,
    pub(crate) line: u16,
    pub(crate) target: Target,
}

/// All that is shown.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Screen {
    pub(crate) lines: Vec<ScreenLine>,
    /// Where text is typed, by column and line.
    pub(crate) cursor: Option<(u16, u16)>,
    pub(crate) regions: Vec<Region>,
}

impl Screen {
    /// What is at this column and line.
    pub(crate) fn target(&self, column: u16, line: u16) -> Option<Target> {
        let hit = |region: &&Region| region.line == line && region.columns.contains(&column);
        self.regions.iter().find(hit).map(|region| region.target)
    }
}

/// The characters that bars, borders and cuts are drawn with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Glyphs {
    pub(crate) full: char,
    pub(crate) busy: char,
    pub(crate) idle: char,
    pub(crate) mark: char,
    pub(crate) divider: char,
    pub(crate) rule: char,
    pub(crate) ellipsis: char,
    /// Whether the terminal shows characters beyond ASCII.
    pub(crate) unicode: bool,
}

impl Glyphs {
    /// For terminals that show Unicode.
    pub(crate) const UNICODE: Self =
        Self {
            full: '█', busy: '▒', idle: '·', mark: '│', divider: '│', rule: '─', ellipsis: '…', unicode: true
        };
    /// For all others.
    pub(crate) const ASCII: Self =
        Self { full: '#', busy: '+', idle: '.', mark: '|', divider: '|', rule: '-', ellipsis: '~', unicode: false };

    /// By the locale that the environment names: the first of these variables that is set and not empty counts.
    pub(crate) fn of_locale(variable: impl Fn(&str) -> Option<String>) -> Self {
        let names = ["LC_ALL", "LC_CTYPE", "LANG"];
        let locale = names.into_iter().filter_map(variable).find(|value| !value.is_empty()).unwrap_or_default();
        let charset = locale.to_ascii_lowercase();
        if charset.contains("utf-8") || charset.contains("utf8") { Self::UNICODE } else { Self::ASCII }
    }

    /// Text as the terminal can show it.
    pub(crate) fn shown(&self, text: &str) -> String {
        if self.unicode || text.is_ascii() {
            return text.to_owned();
        }
        text.chars().map(|c| if c.is_ascii() { c } else { '?' }).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_filled_or_cut_to_the_width() {
        let line = || ScreenLine::of([Piece::plain("abc"), Piece::bold("defg")]);
        let text = |line: ScreenLine| line.0.into_iter().map(|piece| piece.text).collect::<String>();
        assert_eq!(text(line().fitted(9, '~')), "abcdefg  ");
        assert_eq!(text(line().fitted(7, '~')), "abcdefg");
        assert_eq!(text(line().fitted(6, '~')), "abcde~");
        assert_eq!(text(line().fitted(3, '~')), "ab~");
        assert_eq!(text(line().fitted(0, '~')), "");
        let wide = ScreenLine::of([Piece::plain("日本語")]);
        assert_eq!(text(wide.fitted(4, '~')), "日 ~");
    }

    #[test]
    fn the_locale_says_which_characters_are_drawn() {
        let of = |set: &[(&str, &str)]| {
            let set: Vec<_> = set.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
            Glyphs::of_locale(|name| set.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone())).unicode
        };
        assert!(of(&[("LANG", "en_GB.UTF-8")]));
        assert!(of(&[("LC_ALL", ""), ("LC_CTYPE", "C.utf8"), ("LANG", "C")]));
        assert!(!of(&[("LC_ALL", "C"), ("LANG", "en_GB.UTF-8")]));
        assert!(!of(&[]));
        assert_eq!(Glyphs::ASCII.shown("caf\u{e9}"), "caf?");
    }
}
