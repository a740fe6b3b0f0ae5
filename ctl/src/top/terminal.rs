//! The terminal: taken over for the time of the program and given back whatever ends it, and written to by way of crossterm.
//!
//! A [`TerminalGuard`] gives it back when it is dropped, a hook does before the message of a panic is printed, and a signal ends the
//! program in order.

use std::io::{self, BufWriter, IsTerminal, Stdout, Write};
use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering};

use crossterm::style::{Attribute, Color as TerminalColor, Print, SetAttribute, SetForegroundColor};
use crossterm::{cursor, queue, terminal};
use ratatui_core::backend::{Backend, ClearType, WindowSize};
use ratatui_core::buffer::Cell;
use ratatui_core::layout::{Position, Size};
use ratatui_core::style::{Color, Modifier};

use crate::error::Failure;

/// Reports clicks and the wheel with coordinates of any size. Not the movements of the mouse, which crossterm's own command would add.
const MOUSE_ON: &str = "\x1b[?1000h\x1b[?1006h";
const MOUSE_OFF: &str = "\x1b[?1006l\x1b[?1000l";

/// Whether the terminal is taken over and has to be given back.
static TAKEN: AtomicBool = AtomicBool::new(false);

/// The terminal, while it is taken over.
#[derive(Debug)]
pub(crate) struct TerminalGuard(());

impl TerminalGuard {
    /// Takes the terminal over.
    ///
    /// # Errors
    /// There is none, or it can do nothing.
    pub(crate) fn take() -> Result<Self, Failure> {
        let is_dumb = std::env::var("TERM").is_ok_and(|term| term == "dumb");
        if !io::stdin().is_terminal() || !io::stdout().is_terminal() || is_dumb {
            return Err(Failure::usage(
                "`rugctl top` needs a terminal that it can draw on; `rugctl cluster watch`, `rugctl worker watch` and `rugctl watch` \
                 print lines",
            ));
        }
        static HOOK: Once = Once::new();
        HOOK.call_once(|| {
            let before = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |panic| {
                give_back();
                before(panic);
            }));
        });
        let guard = Self(());
        enter().map_err(|e| Failure::failed(format!("take over the terminal: {e}")))?;
        Ok(guard)
    }

    /// Stops the process as Ctrl-Z does elsewhere, with the terminal given back for as long.
    pub(crate) fn suspend(&self) -> Result<(), Failure> {
        give_back();
        let stopped = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::TSTP);
        // Here again once the shell has it continue.
        enter().map_err(|e| Failure::failed(format!("take over the terminal: {e}")))?;
        stopped.map_err(|e| Failure::failed(format!("suspend: {e}")))
    }
}

impl Drop for TerminalGuard {
    fn drop(&mut self) {
        give_back();
    }
}

fn enter() -> io::Result<()> {
    TAKEN.store(true, Ordering::SeqCst);
    terminal::enable_raw_mode()?;
    let mut out = io::stdout();
    queue!(out, terminal::EnterAlternateScreen, cursor::Hide, Print(MOUSE_ON))?;
    out.flush()
}

fn give_back() {
    if TAKEN.swap(false, Ordering::SeqCst) {
        let mut out = io::stdout();
        // Nothing can be done about errors: the terminal may be gone.
        let _ =
            queue!(out, Print(MOUSE_OFF), SetAttribute(Attribute::Reset), cursor::Show, terminal::LeaveAlternateScreen);
        let _ = out.flush();
        let _ = terminal::disable_raw_mode();
    }
}

/// What ratatui draws on. The attributes are those of [`draw`](super::draw): bold, reverse, and a few colours of the text.
#[derive(Debug)]
pub(crate) struct Ansi(BufWriter<Stdout>);

impl Ansi {
    pub(crate) fn stdout() -> Self {
        Self(BufWriter::with_capacity(64 << 10, io::stdout()))
    }
}

fn colour(colour: Color) -> TerminalColor {
    match colour {
        Color::Green => TerminalColor::DarkGreen,
        Color::Yellow => TerminalColor::DarkYellow,
        Color::Red => TerminalColor::DarkRed,
        Color::DarkGray => TerminalColor::DarkGrey,
        _ => TerminalColor::Reset,
    }
}

impl Backend for Ansi {
    type Error = io::Error;

    fn draw<'a, I>(&mut self, content: I) -> io::Result<()>
    where
        I: Iterator<Item = (u16, u16, &'a Cell)>,
    {
        let mut style = (Color::Reset, Modifier::empty());
        let mut next = None;
        for (x, y, cell) in content {
            if next != Some((x, y)) {
                queue!(self.0, cursor::MoveTo(x, y))?;
            }
            next = Some((x + 1, y));
            if style != (cell.fg, cell.modifier) {
                style = (cell.fg, cell.modifier);
                queue!(self.0, SetAttribute(Attribute::Reset))?;
                if cell.modifier.contains(Modifier::BOLD) {
                    queue!(self.0, SetAttribute(Attribute::Bold))?;
                }
                if cell.modifier.contains(Modifier::REVERSED) {
                    queue!(self.0, SetAttribute(Attribute::Reverse))?;
                }
                if cell.fg != Color::Reset {
                    queue!(self.0, SetForegroundColor(colour(cell.fg)))?;
                }
            }
            queue!(self.0, Print(cell.symbol()))?;
        }
        queue!(self.0, SetAttribute(Attribute::Reset))
    }

    fn hide_cursor(&mut self) -> io::Result<()> {
        queue!(self.0, cursor::Hide)
    }

    fn show_cursor(&mut self) -> io::Result<()> {
        queue!(self.0, cursor::Show)
    }

    fn get_cursor_position(&mut self) -> io::Result<Position> {
        // Asking the terminal would take an answer out of the keys.
        Ok(Position::ORIGIN)
    }

    fn set_cursor_position<P: Into<Position>>(&mut self, position: P) -> io::Result<()> {
        let Position { x, y } = position.into();
        queue!(self.0, cursor::MoveTo(x, y))
    }

    fn clear(&mut self) -> io::Result<()> {
        self.clear_region(ClearType::All)
    }

    fn clear_region(&mut self, clear_type: ClearType) -> io::Result<()> {
        let kind = match clear_type {
            ClearType::All => terminal::ClearType::All,
            ClearType::AfterCursor => terminal::ClearType::FromCursorDown,
            ClearType::BeforeCursor => terminal::ClearType::FromCursorUp,
            ClearType::CurrentLine => terminal::ClearType::CurrentLine,
            ClearType::UntilNewLine => terminal::ClearType::UntilNewLine,
        };
        queue!(self.0, terminal::Clear(kind))
    }

    fn size(&self) -> io::Result<Size> {
        let (width, height) = terminal::size()?;
        Ok(Size { width, height })
    }

    fn window_size(&mut self) -> io::Result<WindowSize> {
        // Pixels are of no use here.
        Ok(WindowSize { columns_rows: self.size()?, pixels: Size::default() })
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}
