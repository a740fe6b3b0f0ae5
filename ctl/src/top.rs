//! `rugctl top`: the cluster on the screen, as it is and as it changes.
//!
//! Three parts that know nothing of each other's matters: [`model`] takes inputs and gives orders, [`view`] makes a [`screen`] of it, and
//! this module has the terminal and the server. The screen is made again when something has come, at most four times a second unless a
//! key was pressed, and written only where it differs.

mod band;
mod draw;
mod feeds;
pub(crate) mod input;
pub(crate) mod model;
mod pages;
pub(crate) mod screen;
mod terminal;
mod troubles;
pub(crate) mod view;

use std::ops::ControlFlow;
use std::time::{Duration, Instant, SystemTime};

use clap::Args;
use crossterm::event::{
    Event, EventStream, KeyCode, KeyEvent, KeyEventKind, KeyModifiers, MouseButton, MouseEventKind,
};
use futures::StreamExt;
use ratatui_core::terminal::Terminal;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep_until};

use self::input::{Input, Key, Order};
use self::model::Model;
use self::screen::{Glyphs, Screen};
use self::terminal::{Ansi, TerminalGuard};
use crate::commands::CommandContext;
use crate::error::{Exit, Failure};
use crate::output::{OutputFormat, Ui};

/// Inputs that wait for the screen. A stream that has more waits with them.
const WAITING: usize = 256;
/// Shortest time between two screens that no key asked for.
const PACE: Duration = Duration::from_millis(250);
/// The same after a key: as often as keys repeat.
const KEY_PACE: Duration = Duration::from_millis(30);
/// Lines that one turn of the wheel moves.
const WHEEL: isize = 3;
/// Orders that are carried out at once; a page of help is pressed no faster.
const ORDERS: usize = 16;

/// Arguments of `top`.
#[derive(Args, Debug)]
pub(crate) struct TopArgs {
    /// Draw with ASCII characters only, as where the locale is not UTF-8
    #[arg(long)]
    ascii: bool,
}

/// Runs `top` until the user quits.
///
/// # Errors
/// There is no terminal, or it is lost.
pub(crate) async fn run(context: &CommandContext, args: &TopArgs) -> Result<(), Failure> {
    if context.ui.format != OutputFormat::Table {
        return Err(Failure::usage("`rugctl top` draws on a terminal; -o is for commands that print"));
    }
    let guard = TerminalGuard::take()?;
    // All that is shown and done is about the cluster that is found now.
    let (_, context) = context.identified().await?;
    let glyphs = if args.ascii { Glyphs::ASCII } else { Glyphs::of_locale(|name| std::env::var(name).ok()) };
    Top::new(context, glyphs)?.run(&guard).await
}

/// When to draw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct DrawPace {
    last: Instant,
    due: Option<Instant>,
}

impl DrawPace {
    /// Something has changed: it is drawn when the time is right.
    fn note(&mut self, now: Instant, by_key: bool) {
        let at = (self.last + if by_key { KEY_PACE } else { PACE }).max(now);
        self.due = Some(self.due.map_or(at, |due| due.min(at)));
    }

    fn drawn(&mut self, now: Instant) {
        *self = Self { last: now, due: None };
    }
}

/// The program: the model between server and terminal.
struct Top {
    context: CommandContext,
    glyphs: Glyphs,
    /// Whether anything is drawn in colour.
    colour: bool,
    model: Model,
    terminal: Terminal<Ansi>,
    shown: Screen,
    pace: DrawPace,
    orders: JoinSet<ControlFlow<(), Input>>,
}

impl Top {
    fn new(context: CommandContext, glyphs: Glyphs) -> Result<Self, Failure> {
        let home = context.ui.tenant.as_ref().map(ToString::to_string);
        let colour = context.ui.colour;
        // What commands would paint is shown as text.
        let context = CommandContext { ui: Ui { colour: false, progress: false, ..context.ui }, ..context };
        let now = Instant::now();
        Ok(Self {
            context,
            glyphs,
            colour,
            model: Model::new(SystemTime::now(), home),
            terminal: Terminal::new(Ansi::stdout()).map_err(lost)?,
            shown: Screen::default(),
            pace: DrawPace { last: now, due: Some(now) },
            orders: JoinSet::new(),
        })
    }

    async fn run(mut self, guard: &TerminalGuard) -> Result<(), Failure> {
        let (inputs, mut arriving) = mpsc::channel(WAITING);
        let mut streams = feeds::follow(&self.context.client, &inputs);
        let mut events = EventStream::new();
        let mut ticks = interval(Duration::from_secs(1));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut terminate, mut hang_up) = (listen(SignalKind::terminate())?, listen(SignalKind::hangup())?);
        loop {
            let due = self.pace.due.map(tokio::time::Instant::from_std);
            let (input, by_key) = tokio::select! {
                Some(input) = arriving.recv() => (Some(input), false),
                event = events.next() => match event {
                    Some(Ok(event)) => match self.read(event, guard)? {
                        Some(ControlFlow::Break(())) => return Ok(()),
                        Some(ControlFlow::Continue(input)) => (Some(input), true),
                        None => (None, true),
                    },
                    Some(Err(error)) => return Err(lost(error)),
                    None => return Err(Failure::failed("the terminal is gone")),
                },
                Some(done) = self.orders.join_next() => match done {
                    Ok(ControlFlow::Continue(input)) => (Some(input), true),
                    Ok(ControlFlow::Break(())) => return Ok(()),
                    Err(error) => return Err(Failure::failed(format!("an order failed: {error}"))),
                },
                Some(Err(error)) = streams.join_next() => return Err(Failure::failed(format!("a stream failed: {error}"))),
                _ = ticks.tick() => (Some(Input::Tick(SystemTime::now())), false),
                () = sleep_until(due.unwrap_or_else(tokio::time::Instant::now)), if due.is_some() => {
                    self.draw()?;
                    continue;
                }
                _ = terminate.recv() => return Err(Failure::new(Exit::Interrupted, "terminated")),
                _ = hang_up.recv() => return Err(Failure::new(Exit::Interrupted, "the terminal hung up")),
            };
            // What has come together is drawn together.
            let further = std::iter::from_fn(|| arriving.try_recv().ok()).take(WAITING);
            for input in input.into_iter().chain(further) {
                if self.take(input) {
                    return Ok(());
                }
            }
            self.pace.note(Instant::now(), by_key);
        }
    }

    /// Hands an input to the model and begins what it wants; `true` at the end.
    fn take(&mut self, input: Input) -> bool {
        for order in self.model.update(input) {
            if order == Order::Quit {
                return true;
            }
            if self.orders.len() < ORDERS {
                self.orders.spawn(feeds::carry_out(self.context.clone(), order));
            }
        }
        false
    }

    /// What an event of the terminal is to the model; `Break` to quit.
    fn read(&mut self, event: Event, guard: &TerminalGuard) -> Result<Option<ControlFlow<(), Input>>, Failure> {
        let wheel = |screen: &Screen, column, row, by| Some(Input::Wheel(screen.target(column, row), by));
        let input = match event {
            Event::Key(KeyEvent { kind: KeyEventKind::Release, .. }) => None,
            Event::Key(KeyEvent { code: KeyCode::Char(c), modifiers, .. })
                if modifiers.contains(KeyModifiers::CONTROL) =>
            {
                match c {
                    'c' => return Ok(Some(ControlFlow::Break(()))),
                    'z' => {
                        guard.suspend()?;
                        self.terminal.clear().map_err(lost)?;
                        self.shown = Screen::default();
                        None
                    }
                    'l' => {
                        self.terminal.clear().map_err(lost)?;
                        self.shown = Screen::default();
                        None
                    }
                    _ => None,
                }
            }
            Event::Key(KeyEvent { code, .. }) => key(code).map(Input::Key),
            Event::Mouse(mouse) => match mouse.kind {
                MouseEventKind::Down(MouseButton::Left) => self.shown.target(mouse.column, mouse.row).map(Input::Click),
                MouseEventKind::ScrollDown => wheel(&self.shown, mouse.column, mouse.row, WHEEL),
                MouseEventKind::ScrollUp => wheel(&self.shown, mouse.column, mouse.row, -WHEEL),
                _ => None,
            },
            // Drawing finds out the new size.
            _ => None,
        };
        Ok(input.map(ControlFlow::Continue))
    }

    fn draw(&mut self) -> Result<(), Failure> {
        self.pace.drawn(Instant::now());
        self.terminal.autoresize().map_err(lost)?;
        let size = self.terminal.get_frame().area();
        let size = (size.width, size.height);
        self.model.visible = view::visible_rows(&self.model, size);
        let screen = view::screen(&self.model, size, &self.glyphs);
        if screen == self.shown {
            return Ok(());
        }
        let colour = self.colour;
        let drawn = self.terminal.draw(|frame| {
            draw::draw(&screen, colour, frame.buffer_mut());
            if let Some(cursor) = screen.cursor {
                frame.set_cursor_position(cursor);
            }
        });
        drawn.map_err(lost)?;
        self.shown = screen;
        Ok(())
    }
}

fn listen(kind: SignalKind) -> Result<tokio::signal::unix::Signal, Failure> {
    signal(kind).map_err(|e| Failure::failed(format!("listen for signals: {e}")))
}

fn lost(error: std::io::Error) -> Failure {
    Failure::failed(format!("the terminal: {error}"))
}

fn key(code: KeyCode) -> Option<Key> {
    Some(match code {
        KeyCode::Char(c) => Key::Char(c),
        KeyCode::Up => Key::Up,
        KeyCode::Down => Key::Down,
        KeyCode::PageUp => Key::PageUp,
        KeyCode::PageDown => Key::PageDown,
        KeyCode::Home => Key::Home,
        KeyCode::End => Key::End,
        KeyCode::Enter => Key::Enter,
        KeyCode::Esc => Key::Escape,
        KeyCode::Tab => Key::Tab,
        KeyCode::BackTab => Key::BackTab,
        KeyCode::Backspace => Key::Backspace,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_by_itself_is_drawn_four_times_a_second_and_keys_at_once() {
        let start = Instant::now();
        let after = |ms| start + Duration::from_millis(ms);
        let mut pace = DrawPace { last: start, due: None };
        pace.note(after(10), false);
        pace.note(after(20), false);
        assert_eq!(pace.due, Some(after(250)));
        pace.note(after(40), true);
        assert_eq!(pace.due, Some(after(40)));
        pace.drawn(after(40));
        pace.note(after(41), true);
        assert_eq!(pace.due, Some(after(70)));
        pace.drawn(after(70));
        pace.note(after(900), false);
        assert_eq!(pace.due, Some(after(900)));
    }
}
