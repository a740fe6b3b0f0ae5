//! Text of others, made fit for a line of ours.

use common::text;

/// Text on one line, with everything escaped that is not plain in the sense of [`common::text`]; white space other than
/// spaces becomes spaces.
pub(crate) fn one_line(words: &str) -> String {
    let spaced: String = words.trim().chars().map(|c| if matches!(c, '\n' | '\r' | '\t') { ' ' } else { c }).collect();
    text::escaped(&spaced).into_owned()
}
