//! Puts a screen into the cells of ratatui, which writes to the terminal what differs from the cells before.

use ratatui_core::buffer::Buffer;
use ratatui_core::style::{Color, Modifier, Style};
use ratatui_core::text::Span;

use super::screen::{Emphasis, Piece, Screen};
use crate::output::Tone;

#[cfg(test)]
mod tests;

/// Draws the screen from the top left corner on.
pub(crate) fn draw(screen: &Screen, colour: bool, buffer: &mut Buffer) {
    let area = buffer.area;
    for (line, y) in screen.lines.iter().zip(area.top()..area.bottom()) {
        let mut x = area.left();
        for piece in &line.0 {
            if x >= area.right() {
                break;
            }
            let span = Span::styled(piece.text.as_str(), style(piece, colour));
            (x, _) = buffer.set_span(x, y, &span, area.right() - x);
        }
    }
}

/// Without colour, what is bad is bold: what it is, its text says.
fn style(piece: &Piece, colour: bool) -> Style {
    let emphasised = match piece.emphasis {
        Emphasis::None => Style::new(),
        Emphasis::Bold => Style::new().add_modifier(Modifier::BOLD),
        Emphasis::Reverse => Style::new().add_modifier(Modifier::REVERSED),
    };
    match (piece.tone, colour) {
        (Tone::Bad, false) => emphasised.add_modifier(Modifier::BOLD),
        (Tone::Plain, _) | (_, false) => emphasised,
        (Tone::Good, true) => emphasised.fg(Color::Green),
        (Tone::Busy, true) => emphasised.fg(Color::Yellow),
        (Tone::Bad, true) => emphasised.fg(Color::Red),
        (Tone::Dim, true) => emphasised.fg(Color::DarkGray),
    }
}
