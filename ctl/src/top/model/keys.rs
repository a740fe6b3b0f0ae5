//! What keys, clicks and the wheel do.

use super::{Model, Overlay, Pane, Prompt, pane_of};
use crate::output::{Tone, count};
use crate::top::input::{Change, Key, Order, Subject};
use crate::top::screen::Target;

impl Model {
    pub(super) fn key(&mut self, key: Key) -> Vec<Order> {
        if let Some(prompt) = self.prompt.take() {
            return self.answer(prompt, key);
        }
        if let Some(overlay) = self.overlay.take() {
            self.read(overlay, key);
            return Vec::new();
        }
        match key {
            Key::Char('q') => return vec![Order::Quit],
            Key::Char('?') => self.overlay = Some(Overlay::Help),
            Key::Tab => return self.show(self.pane.step(1)),
            Key::BackTab => return self.show(self.pane.step(Pane::ALL.len() - 1)),
            Key::Char(digit @ '1'..='5') => return self.show(Pane::ALL[digit as usize - '1' as usize]),
            Key::Up | Key::Char('k') => return self.go(-1),
            Key::Down | Key::Char('j') => return self.go(1),
            Key::PageUp => return self.go(-self.page()),
            Key::PageDown => return self.go(self.page()),
            Key::Home | Key::Char('g') => {
                self.select(self.pane, 0);
                return if self.pane == Pane::Appliances { self.pages.rewind().into_iter().collect() } else { vec![] };
            }
            Key::End | Key::Char('G') => {
                self.select(self.pane, self.keys(self.pane).len().saturating_sub(1));
            }
            Key::Enter => return self.inspect(),
            Key::Char('e') => return self.explain(),
            Key::Char('r') => self.ask_rebuild(),
            Key::Char('E') => self.ask_evict(),
            Key::Char('d') => self.ask_drain(),
            Key::Char('h') => self.ask_hands_off(),
            Key::Char('p') => self.ask_pause(),
            Key::Char('s') if self.pane == Pane::Workers => self.order = self.order.next(),
            Key::Char('a') => return self.show_appliances_of_worker(),
            Key::Char('/') => self.start_filter(),
            Key::Escape => return self.clear(),
            Key::Char(_) | Key::Backspace => {}
        }
        Vec::new()
    }

    pub(super) fn click(&mut self, target: Target) -> Vec<Order> {
        self.overlay = None;
        let pane = pane_of(target);
        let orders = if pane == self.pane { Vec::new() } else { self.show(pane) };
        if let Target::Row(pane, row) = target {
            // A second click on a row looks at it.
            if orders.is_empty() && self.selected.contains_key(&pane) && self.selected_row(pane) == row {
                return self.inspect();
            }
            self.select(pane, row);
        }
        orders
    }

    pub(super) fn wheel(&mut self, target: Option<Target>, by: isize) -> Vec<Order> {
        if let Some(Overlay::Text { lines, from, .. }) = &mut self.overlay {
            *from = from.saturating_add_signed(by).min(lines.len().saturating_sub(1));
            return Vec::new();
        }
        if let Some(pane) = target.map(pane_of).filter(|pane| *pane != self.pane) {
            return self.show(pane);
        }
        self.go(by)
    }

    fn page(&self) -> isize {
        isize::try_from(self.visible.saturating_sub(1).max(1)).unwrap_or(1)
    }

    fn show(&mut self, pane: Pane) -> Vec<Order> {
        self.pane = pane;
        match pane {
            Pane::Appliances => self.pages.look(self.now).into_iter().collect(),
            _ => Vec::new(),
        }
    }

    /// Moves the selection; past either end of a page of appliances is the next page.
    fn go(&mut self, by: isize) -> Vec<Order> {
        let rows = self.keys(self.pane).len();
        let row = self.selected_row(self.pane);
        let last = rows.saturating_sub(1);
        if self.pane == Pane::Appliances {
            let turned = if by < 0 && row == 0 {
                self.pages.back()
            } else if by > 0 && row == last {
                self.pages.forward()
            } else {
                None
            };
            if turned.is_some() {
                return turned.into_iter().collect();
            }
        }
        self.select(self.pane, row.saturating_add_signed(by).min(last));
        Vec::new()
    }

    fn inspect(&mut self) -> Vec<Order> {
        match self.subject() {
            Some(subject) => vec![Order::Inspect(subject)],
            None => self.refuse("nothing is selected that can be looked at"),
        }
    }

    fn explain(&mut self) -> Vec<Order> {
        match self.subject() {
            Some(Subject::Appliance { id, label }) => vec![Order::Explain { id, label }],
            _ => self.refuse("e explains where an appliance is: select one"),
        }
    }

    fn refuse(&mut self, why: &str) -> Vec<Order> {
        self.say(Tone::Busy, why);
        Vec::new()
    }

    fn ask(&mut self, question: String, change: Change) {
        self.prompt = Some(Prompt::Confirm { question, change });
    }

    fn ask_rebuild(&mut self) {
        match self.subject() {
            Some(Subject::Appliance { id, label }) => {
                self.ask(format!("replace every instance of {label}?"), Change::Rebuild { id, label });
            }
            _ => self.say(Tone::Busy, "r rebuilds an appliance: select one"),
        }
    }

    fn ask_evict(&mut self) {
        let found = match self.subject() {
            Some(Subject::Worker(id)) => self.eviction(&id),
            _ => None,
        };
        match found {
            Some((question, change)) => self.ask(question, change),
            None => self.say(Tone::Busy, "E evicts a worker: select one"),
        }
    }

    fn ask_drain(&mut self) {
        let worker = match self.subject() {
            Some(Subject::Worker(id)) => self.workers.get(&id),
            _ => None,
        };
        let Some(worker) = worker else {
            return self.say(Tone::Busy, "d drains a worker: select one");
        };
        let id = worker.id.clone();
        if worker.drained {
            self.ask(format!("give {id} appliances again?"), Change::Undrain { worker: id });
        } else {
            let question = format!("drain {id}: move {} to other workers?", count(worker.appliances, "appliance"));
            self.ask(question, Change::Drain { worker: id });
        }
    }

    /// Sets a debug mode on what is selected, or clears those that are set on just that.
    fn ask_hands_off(&mut self) {
        let (subject, label) = match self.subject() {
            Some(subject @ (Subject::Worker(_) | Subject::Appliance { .. })) => {
                let label = match &subject {
                    Subject::Worker(id) | Subject::Rebalance(id) => id.clone(),
                    Subject::Appliance { label, .. } => label.clone(),
                };
                (subject, label)
            }
            _ => return self.say(Tone::Busy, "h takes hands off an appliance or a worker: select one"),
        };
        let modes = self.modes_on(&subject);
        if modes.is_empty() {
            let question = format!("hands off {label}: only look at it until that is taken back?");
            self.ask(question, Change::HandsOff(subject));
        } else {
            self.ask(format!("act on {label} again?"), Change::HandsOn { label, modes });
        }
    }

    fn ask_pause(&mut self) {
        let Some(status) = &self.cluster else { return };
        if status.paused.is_some() || status.frozen.is_some() {
            self.ask("resume placement?".to_owned(), Change::Resume);
        } else {
            self.ask("pause placement: nothing is placed or moved until it is resumed?".to_owned(), Change::Pause);
        }
    }

    fn show_appliances_of_worker(&mut self) -> Vec<Order> {
        match self.subject() {
            Some(Subject::Worker(id)) => {
                self.pane = Pane::Appliances;
                self.search(&format!("worker={id}"))
            }
            _ => self.refuse("a lists the appliances of a worker: select one"),
        }
    }

    fn search(&mut self, text: &str) -> Vec<Order> {
        match self.pages.search(text, self.home.as_deref()) {
            Ok(order) => vec![order],
            Err(why) => {
                self.say(Tone::Bad, why);
                Vec::new()
            }
        }
    }

    fn start_filter(&mut self) {
        let text = match self.pane {
            Pane::Workers => self.worker_filter.clone(),
            Pane::Appliances => self.pages.typed.clone(),
            _ => return self.say(Tone::Busy, "/ filters workers and appliances"),
        };
        self.prompt = Some(Prompt::Filter(text));
    }

    /// Ends a message, then a filter.
    fn clear(&mut self) -> Vec<Order> {
        if self.message.take().is_some() {
            return Vec::new();
        }
        match self.pane {
            Pane::Workers => self.worker_filter.clear(),
            Pane::Appliances if !self.pages.typed.is_empty() => return self.search(""),
            _ => {}
        }
        Vec::new()
    }

    fn answer(&mut self, prompt: Prompt, key: Key) -> Vec<Order> {
        match (prompt, key) {
            (Prompt::Confirm { change, .. }, Key::Char('y' | 'Y')) => return vec![Order::Change(change)],
            (Prompt::Confirm { .. }, _) => self.say(Tone::Dim, "nothing was changed"),
            (Prompt::Filter(_), Key::Escape) => {}
            (Prompt::Filter(text), Key::Enter) if self.pane == Pane::Appliances => return self.search(&text),
            (Prompt::Filter(text), Key::Enter) => text.trim().clone_into(&mut self.worker_filter),
            (Prompt::Filter(mut text), key) => {
                match key {
                    // Longer than any name with a worker and a phase beside it.
                    Key::Char(c) if text.len() < 300 => text.push(c),
                    Key::Backspace => {
                        text.pop();
                    }
                    _ => {}
                }
                self.prompt = Some(Prompt::Filter(text));
            }
        }
        Vec::new()
    }

    /// A key while text covers the panes.
    fn read(&mut self, overlay: Overlay, key: Key) {
        let page = self.page();
        let Overlay::Text { title, lines, from } = overlay else { return };
        let last = lines.len().saturating_sub(1);
        let to = match key {
            Key::Up | Key::Char('k') => from.saturating_sub(1),
            Key::Down | Key::Char('j') => from + 1,
            Key::PageUp => from.saturating_add_signed(-page),
            Key::PageDown | Key::Char(' ') => from.saturating_add_signed(page),
            Key::Home | Key::Char('g') => 0,
            Key::End | Key::Char('G') => last,
            _ => return,
        };
        self.overlay = Some(Overlay::Text { title, lines, from: to.min(last) });
    }
}
