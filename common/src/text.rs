//! The one rule for text that is stored, shown or logged.
//!
//! A character is *plain* when it means itself wherever it is printed. Not plain are control characters (which move a
//! terminal's cursor or end a line of a log), marks that turn the direction of the text around them, and characters that
//! are not seen at all: with them a name can look like another one. A combining mark is plain after a character that it can
//! stand on, at most [`MAX_MARKS`] in a row: at the start of a text it would stand on what is printed before it, and a pile of
//! them covers other lines.
//!
//! - Text that somebody chooses to be known by (names, keys, labels, reasons, hosts, networks) is refused when it has any
//!   other character or is too long: [`check`].
//! - Text that may hold anything (errors of appliances and drivers, arguments and environment of a command) is kept as it
//!   is, bounded, and escaped where it reaches a terminal or a log: [`escaped`], [`write_escaped`].
//!
//! NUL is never stored: PostgreSQL cannot.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use unicode_width::UnicodeWidthChar;

/// Why a text is refused. Says where, and never what the text is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TextProblem {
    /// It has no character.
    #[error("must not be empty")]
    Empty,
    /// It is too long.
    #[error("has {has} bytes, at most {most} are allowed")]
    TooLong {
        /// Its length in bytes.
        has: usize,
        /// Most bytes.
        most: usize,
    },
    /// It has a character that is not plain.
    #[error(
        "has the character U+{:04X} as number {}: control characters, marks of direction, invisible characters, and \
         combining marks without a character before them or more than {MAX_MARKS} in a row are not allowed",
        u32::from(*.character), .index + 1
    )]
    Character {
        /// The first such character.
        character: char,
        /// How many characters precede it.
        index: usize,
    },
}

/// Combining marks on one character: what writing systems need, with vowels, tones and accents of recitation.
pub const MAX_MARKS: usize = 4;

/// Whether the whole text is plain.
#[must_use]
pub fn is_plain(text: &str) -> bool {
    judged(text).all(|(_, plain)| plain)
}

/// Every character of a text, with whether it is plain where it stands.
pub fn judged(text: &str) -> impl Iterator<Item = (char, bool)> + '_ {
    let mut marks = MAX_MARKS;
    text.chars().map(move |c| {
        if c.is_ascii() {
            marks = if c.is_ascii_graphic() { 0 } else { MAX_MARKS };
            return (c, !c.is_ascii_control());
        }
        let (own, is_mark) = (is_plain_itself(c), c.width() == Some(0));
        let plain = own && !(is_mark && marks >= MAX_MARKS);
        marks = match (own, is_mark) {
            (true, true) => (marks + 1).min(MAX_MARKS),
            (true, false) if !c.is_whitespace() => 0,
            _ => MAX_MARKS,
        };
        (c, plain)
    })
}

/// Whether a character means itself, other than a combining mark.
fn is_plain_itself(c: char) -> bool {
    !(c.is_control()
        || matches!(
            c,
            '\u{ad}' // soft hyphen
            | '\u{34f}' // grapheme joiner
            | '\u{61c}' | '\u{200e}' | '\u{200f}' // marks of direction
            | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}' | '\u{3164}' | '\u{ffa0}' // fillers
            | '\u{180b}'..='\u{180f}'
            | '\u{200b}'..='\u{200d}' // zero width
            | '\u{2028}'..='\u{202e}' // line and paragraph separators, embeddings and overrides
            | '\u{2060}'..='\u{206f}' // joiners, isolates, deprecated formats
            | '\u{fe00}'..='\u{fe0f}' // variation selectors
            | '\u{feff}'
            | '\u{fff0}'..='\u{fffb}' // unassigned, annotations
            | '\u{1bca0}'..='\u{1bca3}'
            | '\u{1d173}'..='\u{1d17a}'
            | '\u{e0000}'..='\u{e0fff}' // tags
        ))
}

/// Checks a text that somebody chooses; it may be empty.
///
/// # Errors
/// [`TextProblem`].
pub fn check(text: &str, most: usize) -> Result<(), TextProblem> {
    if text.len() > most {
        return Err(TextProblem::TooLong { has: text.len(), most });
    }
    match judged(text).enumerate().find(|(_, (_, plain))| !plain) {
        Some((index, (character, _))) => Err(TextProblem::Character { character, index }),
        None => Ok(()),
    }
}

/// The start of a text, at most `most` bytes and no part of a character.
#[must_use]
pub fn clip(text: &str, most: usize) -> &str {
    &text[..text.floor_char_boundary(most)]
}

/// The text with everything that is not plain written as `\n`, `\t`, `\u{202e}` and the like.
#[must_use]
pub fn escaped(text: &str) -> Cow<'_, str> {
    if is_plain(text) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    // Writing to a string cannot fail.
    let _ = write_escaped(&mut out, text);
    Cow::Owned(out)
}

/// Writes a text as [`escaped`] gives it.
///
/// # Errors
/// Those of `out`.
pub fn write_escaped(out: &mut impl fmt::Write, text: &str) -> fmt::Result {
    for (c, plain) in judged(text) {
        match c {
            c if plain => out.write_char(c)?,
            '\n' | '\r' | '\t' => write!(out, "{}", c.escape_default())?,
            c => write!(out, "\\u{{{:x}}}", u32::from(c))?,
        }
    }
    Ok(())
}

/// Text that may hold anything, in a form that every database stores: NUL becomes the replacement character. Cut
/// to `most` bytes before that.
#[must_use]
pub fn storable(text: &str, most: usize) -> String {
    clip(text, most).replace('\0', "\u{fffd}")
}

/// Formats values that may be secrets, such as the environment of a command, without showing them: their names alone.
pub struct Redacted<'a>(pub &'a BTreeMap<String, String>);

impl fmt::Debug for Redacted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.0.keys().map(|name| (name, format_args!("...")))).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_of_every_language_is_plain_and_what_cheats_is_not() {
        for text in
            ["", "web-1", "größe", "gro\u{308}ße", "東京 2", "🚀", "ἀρχή", "שלום", "שָׁלוֹם", "हिन्दी", "ที่", "Việt", "각"]
        {
            assert_eq!(check(text, 100), Ok(()), "{text}");
            assert!(matches!(escaped(text), Cow::Borrowed(_)));
        }
        for (text, shown) in [
            ("k\0", r"k\u{0}"),
            ("a\nb", r"a\nb"),
            ("\u{1b}[31mred", r"\u{1b}[31mred"),
            ("\u{9b}31m", r"\u{9b}31m"),
            ("user\u{202e}nimda", r"user\u{202e}nimda"),
            ("ad\u{200b}min", r"ad\u{200b}min"),
            ("a\u{2028}b", r"a\u{2028}b"),
            ("x\u{e0041}", r"x\u{e0041}"),
            ("\u{feff}x", r"\u{feff}x"),
            ("\u{301}x", r"\u{301}x"),
            ("a \u{301}", r"a \u{301}"),
            ("a\u{301}\u{301}\u{301}\u{301}\u{301}\u{301}b", "a\u{301}\u{301}\u{301}\u{301}\\u{301}\\u{301}b"),
            ("\u{200b}\u{301}", r"\u{200b}\u{301}"),
            ("x\u{20dd}\u{489}\u{35f}\u{1dca}\u{fe20}", "x\u{20dd}\u{489}\u{35f}\u{1dca}\\u{fe20}"),
        ] {
            assert!(matches!(check(text, 100), Err(TextProblem::Character { .. })), "{text:?}");
            assert_eq!(escaped(text), shown);
        }
    }

    #[test]
    fn a_refusal_says_where_and_does_not_quote() {
        let problem = check("secret\u{7}", 100).expect_err("a bell").to_string();
        assert!(problem.starts_with("has the character U+0007 as number 7: "), "{problem}");
        assert!(!problem.contains("secret"), "{problem}");
        assert_eq!(check("äää", 5), Err(TextProblem::TooLong { has: 6, most: 5 }));
        assert_eq!(clip("äää", 5), "ää");
        assert_eq!(storable("a\0b", 2), "a\u{fffd}");
    }
}
