//! Text of others, made fit for a line of ours.

/// Text on one line and without control characters.
pub(crate) fn one_line(text: &str) -> String {
    text.trim().chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}
