//! What `rugctl top` knows and what it is doing: inputs in, orders out, without terminal, network or clock.
//!
//! The model keeps what the server's streams say, one page of the list of appliances, and what the user is at: the pane, the row, the
//! filter, a question. [`view`](super::view) shows it.

mod keys;
#[cfg(test)]
pub(crate) mod tests;

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, SystemTime};

use proto::admin::v1;

use super::band::{self, WorkerBand};
use super::input::{Change, Feed, Input, Order, Subject};
use super::pages::Pages;
use super::screen::Target;
use super::troubles::{self, Trouble};
use crate::output::debug::scope_text;
use crate::output::{Tone, count};
use crate::text::one_line;

/// Events and rebalances that are kept, the newest.
const KEPT: usize = 200;
/// How often what the streams do not say is asked for: while something is wrong, and otherwise.
const LOOK: Duration = Duration::from_secs(5);
const LOOK_CALM: Duration = Duration::from_secs(30);
/// How often rollouts and budgets are looked at while there are any.
const LOOK_ROLLOUT: Duration = Duration::from_secs(2);
/// How long a message stays.
const MESSAGE: Duration = Duration::from_secs(8);

/// A list of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Pane {
    Workers,
    Appliances,
    Rebalances,
    Troubles,
    Events,
}

impl Pane {
    /// Every one, in the order of the keys 1 to 5.
    pub(crate) const ALL: [Self; 5] = [Self::Workers, Self::Appliances, Self::Rebalances, Self::Troubles, Self::Events];

    pub(crate) const fn title(self) -> &'static str {
        match self {
            Self::Workers => "Workers",
            Self::Appliances => "Appliances",
            Self::Rebalances => "Rebalances",
            Self::Troubles => "Troubles",
            Self::Events => "Events",
        }
    }

    fn step(self, by: usize) -> Self {
        let at = Self::ALL.iter().position(|pane| *pane == self).unwrap_or(0);
        Self::ALL[(at + by) % Self::ALL.len()]
    }
}

/// Order of the list of workers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum WorkerOrder {
    #[default]
    Name,
    /// Most appliances first.
    Load,
    /// Those that are not well first.
    Health,
}

impl WorkerOrder {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Name => "name",
            Self::Load => "load",
            Self::Health => "health",
        }
    }

    const fn next(self) -> Self {
        match self {
            Self::Name => Self::Load,
            Self::Load => Self::Health,
            Self::Health => Self::Name,
        }
    }
}

/// What keeps the cluster, or a part of it, from doing what it otherwise would.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RestraintKind {
    /// Too many workers vanished at once.
    Frozen,
    /// An operator paused placement.
    Paused,
    /// The leader places nothing yet.
    Waiting,
    /// Workers release what they own.
    Draining,
    /// Workers are given nothing new.
    Cordoned,
    /// Hands are off appliances.
    Debug,
}

/// A restraint and what is known of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Restraint {
    pub(crate) kind: RestraintKind,
    pub(crate) text: String,
}

impl RestraintKind {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Frozen => "FROZEN",
            Self::Paused => "PAUSED",
            Self::Waiting => "WAITING",
            Self::Draining => "DRAINING",
            Self::Cordoned => "CORDONED",
            Self::Debug => "DEBUG",
        }
    }

    pub(crate) const fn tone(self) -> Tone {
        match self {
            Self::Frozen => Tone::Bad,
            Self::Paused | Self::Waiting | Self::Draining | Self::Cordoned | Self::Debug => Tone::Busy,
        }
    }
}

/// How it is with a stream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum FeedState {
    /// Not open yet.
    #[default]
    Opening,
    Open,
    /// Being opened again.
    Interrupted(String),
    /// Not to be had, such as for lack of a role.
    Refused(String),
}

/// What covers the panes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Overlay {
    Help,
    /// Text, of which lines from `from` on are shown.
    Text {
        title: String,
        lines: Vec<String>,
        from: usize,
    },
}

/// What the last line asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Prompt {
    /// A filter is typed.
    Filter(String),
    /// A change has to be confirmed.
    Confirm { question: String, change: Change },
}

/// A line about what was done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) text: String,
    pub(crate) tone: Tone,
    until: SystemTime,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Model {
    pub(crate) now: SystemTime,
    /// The tenant that names are within, where the context has one.
    home: Option<String>,
    pub(crate) cluster: Option<v1::ClusterStatus>,
    pub(crate) troubles: Option<v1::Troubles>,
    ring: Option<v1::Ring>,
    /// Debug modes, the newest first.
    modes: Vec<v1::DebugMode>,
    /// Rollouts that have not ended, the newest first.
    pub(crate) rollouts: Vec<v1::Rollout>,
    /// Budgets of disruption, those that are spent first.
    pub(crate) budgets: Vec<v1::Budget>,
    workers: BTreeMap<String, v1::Worker>,
    /// Workers that the stream has not named since it was opened.
    unseen: BTreeSet<String>,
    /// Newest first.
    pub(crate) rebalances: Vec<v1::Rebalance>,
    /// Newest first.
    pub(crate) events: VecDeque<v1::AuditEvent>,
    feeds: [FeedState; Feed::ALL.len()],
    pub(crate) pages: Pages,
    pub(crate) pane: Pane,
    /// Key of the selected row of each pane.
    selected: BTreeMap<Pane, String>,
    pub(crate) order: WorkerOrder,
    /// What names of workers have in them.
    pub(crate) worker_filter: String,
    pub(crate) overlay: Option<Overlay>,
    pub(crate) prompt: Option<Prompt>,
    pub(crate) message: Option<Message>,
    /// When the troubles are asked for next, and whether they are being.
    troubles_due: SystemTime,
    ring_due: SystemTime,
    modes_due: SystemTime,
    rollouts_due: SystemTime,
    budgets_due: SystemTime,
    /// Rows of a pane that are visible, for moving by pages.
    pub(crate) visible: usize,
}

impl Model {
    /// A model that knows nothing yet.
    pub(crate) fn new(now: SystemTime, home: Option<String>) -> Self {
        Self {
            now,
            home,
            cluster: None,
            troubles: None,
            ring: None,
            modes: Vec::new(),
            rollouts: Vec::new(),
            budgets: Vec::new(),
            workers: BTreeMap::new(),
            unseen: BTreeSet::new(),
            rebalances: Vec::new(),
            events: VecDeque::new(),
            feeds: Default::default(),
            pages: Pages::default(),
            pane: Pane::Workers,
            selected: BTreeMap::new(),
            order: WorkerOrder::default(),
            worker_filter: String::new(),
            overlay: None,
            prompt: None,
            message: None,
            troubles_due: now,
            ring_due: now,
            modes_due: now,
            rollouts_due: now,
            budgets_due: now,
            visible: 10,
        }
    }

    /// Takes an input; what is to be done about it is returned.
    pub(crate) fn update(&mut self, input: Input) -> Vec<Order> {
        match input {
            Input::Opened(feed) => {
                self.feeds[feed as usize] = FeedState::Open;
                if feed == Feed::Workers {
                    self.unseen = self.workers.keys().cloned().collect();
                }
            }
            Input::Interrupted(feed, why) => self.feeds[feed as usize] = FeedState::Interrupted(why),
            Input::Refused(feed, why) => self.feeds[feed as usize] = FeedState::Refused(why),
            Input::Cluster(status) => {
                self.pages.note_change();
                if troubles::may_be(&status) && self.troubles_due > self.now + LOOK {
                    self.troubles_due = self.now + LOOK;
                }
                self.cluster = Some(*status);
            }
            Input::Worker(event) => self.note_worker(*event),
            Input::Rebalance(rebalance) => self.note_rebalance(*rebalance),
            Input::Audit(event) => {
                if self.events.front().is_none_or(|newest| newest.number < event.number) {
                    // Of debug modes, rollouts and budgets there is no stream, but who sets or starts one is heard of.
                    if event.action.starts_with("debug") {
                        self.modes_due = self.now;
                    }
                    if event.action.starts_with("rollout") {
                        self.rollouts_due = self.now;
                    }
                    if event.action.starts_with("budget") {
                        self.budgets_due = self.now;
                    }
                    self.events.push_front(*event);
                    self.events.truncate(KEPT);
                }
            }
            Input::Troubles(troubles) => {
                self.troubles = troubles.map(|troubles| *troubles).or(self.troubles.take());
                let is_calm = self.cluster.as_ref().is_none_or(|status| !troubles::may_be(status));
                self.troubles_due = self.now + if is_calm { LOOK_CALM } else { LOOK };
            }
            Input::Modes(Some(mut modes)) => {
                modes.sort_by_key(|mode| std::cmp::Reverse(mode.since.map(|t| (t.seconds, t.nanos))));
                self.modes = modes;
            }
            Input::Modes(None) | Input::Rollouts(None) | Input::Budgets(None) => {}
            Input::Budgets(Some(mut budgets)) => {
                budgets.sort_by_key(|budget| std::cmp::Reverse((budget.held, budget.spent, budget.down)));
                self.budgets_due = self.now + if budgets.is_empty() { LOOK_CALM } else { LOOK_ROLLOUT };
                self.budgets = budgets;
            }
            Input::Rollouts(Some(mut rollouts)) => {
                use v1::RolloutState::{Aborted, Completed, RolledBack};
                rollouts.retain(|rollout| !matches!(rollout.state(), Completed | Aborted | RolledBack));
                self.rollouts_due = self.now + if rollouts.is_empty() { LOOK_CALM } else { LOOK_ROLLOUT };
                self.rollouts = rollouts;
            }
            Input::Ring(ring) => self.ring = ring.map(|ring| *ring).or(self.ring.take()),
            Input::Page(number, page) => {
                if let Some(row) = self.pages.take(number, page, self.now) {
                    self.selected.insert(Pane::Appliances, row);
                }
            }
            Input::Text(Ok((title, text))) => {
                let lines = text.lines().map(str::to_owned).collect();
                self.overlay = Some(Overlay::Text { title, lines, from: 0 });
                self.message = None;
            }
            Input::Changed(Ok(done)) => self.say(Tone::Good, done),
            Input::Text(Err(why)) | Input::Changed(Err(why)) => self.say(Tone::Bad, why),
            Input::Key(key) => return self.key(key),
            Input::Click(target) => return self.click(target),
            Input::Wheel(target, by) => return self.wheel(target, by),
            Input::Tick(now) => return self.tick(now),
        }
        Vec::new()
    }

    fn tick(&mut self, now: SystemTime) -> Vec<Order> {
        self.now = now;
        let mut orders = Vec::new();
        self.message.take_if(|message| message.until <= now);
        if self.feed(Feed::Cluster) == &FeedState::Open {
            // The answer brings it forward; until then it is not asked for again, and a lost answer does not end it.
            if self.troubles_due <= now {
                self.troubles_due = now + LOOK_CALM;
                orders.push(Order::Troubles);
            }
            if self.ring_due <= now {
                self.ring_due = now + Duration::from_secs(3600);
                orders.push(Order::Ring);
            }
            if self.modes_due <= now {
                self.modes_due = now + LOOK_CALM;
                orders.push(Order::Modes);
            }
            if self.rollouts_due <= now {
                self.rollouts_due = now + LOOK_CALM;
                orders.push(Order::Rollouts);
            }
            if self.budgets_due <= now {
                self.budgets_due = now + LOOK_CALM;
                orders.push(Order::Budgets);
            }
            if self.pane == Pane::Appliances {
                orders.extend(self.pages.look(now));
            }
        }
        orders
    }

    fn note_worker(&mut self, event: v1::WorkerEvent) {
        use v1::worker_event::Type;

        let kind = event.r#type();
        if kind == Type::Synced {
            for id in std::mem::take(&mut self.unseen) {
                self.workers.remove(&id);
            }
            return;
        }
        let Some(worker) = event.worker else { return };
        self.unseen.remove(&worker.id);
        let share = |worker: &v1::Worker| (worker.member, worker.draining, worker.weight);
        let before = self.workers.get(&worker.id).map(share);
        if kind == Type::Gone {
            self.workers.remove(&worker.id);
        } else if before != Some(share(&worker)) {
            // Soon, because workers come in groups.
            self.ring_due = self.ring_due.min(self.now + Duration::from_secs(1));
            self.workers.insert(worker.id.clone(), worker);
        } else {
            self.workers.insert(worker.id.clone(), worker);
        }
    }

    fn note_rebalance(&mut self, rebalance: v1::Rebalance) {
        // Moves are asked for with the rebalance that is looked at.
        let rebalance = v1::Rebalance { r#move: Vec::new(), ..rebalance };
        match self.rebalances.iter_mut().find(|known| known.id == rebalance.id) {
            Some(known) => *known = rebalance,
            None => self.rebalances.push(rebalance),
        }
        let began = |it: &v1::Rebalance| it.start_time.map(|t| (t.seconds, t.nanos));
        self.rebalances.sort_by_key(|it| std::cmp::Reverse(began(it)));
        self.rebalances.truncate(KEPT);
    }

    fn say(&mut self, tone: Tone, text: impl Into<String>) {
        self.message = Some(Message { text: text.into(), tone, until: self.now + MESSAGE });
    }

    /// How it is with a stream.
    pub(crate) fn feed(&self, feed: Feed) -> &FeedState {
        &self.feeds[feed as usize]
    }

    /// Workers as they are listed.
    pub(crate) fn workers(&self) -> Vec<&v1::Worker> {
        let mut found: Vec<_> = self.workers.values().filter(|w| w.id.contains(&self.worker_filter)).collect();
        let severity = |worker: &v1::Worker| match worker.health() {
            v1::Health::Dead => 0,
            v1::Health::Suspect | v1::Health::Unspecified => 1,
            v1::Health::Healthy if worker.draining || !worker.member => 2,
            v1::Health::Healthy => 3,
            v1::Health::Left => 4,
        };
        found.sort_by(|a, b| {
            let first = match self.order {
                WorkerOrder::Name => Ordering::Equal,
                WorkerOrder::Load => b.appliances.cmp(&a.appliances),
                WorkerOrder::Health => severity(a).cmp(&severity(b)),
            };
            first.then_with(|| natural(&a.id, &b.id))
        });
        found
    }

    /// Number of workers, whatever the filter.
    pub(crate) fn worker_count(&self) -> usize {
        self.workers.len()
    }

    /// The share that each worker should have.
    pub(crate) fn bands(&self) -> BTreeMap<String, WorkerBand> {
        let unowned = self.cluster.as_ref().and_then(|status| status.unowned.as_ref()).map_or(0, |it| it.appliances);
        self.ring.as_ref().map(|ring| band::bands(ring, self.workers.values(), unowned)).unwrap_or_default()
    }

    /// What is wrong, the worst first.
    pub(crate) fn trouble_list(&self) -> Vec<Trouble> {
        let workers = self.workers.values();
        troubles::list(self.cluster.as_ref(), self.troubles.as_ref(), workers, self.now)
    }

    /// What keeps the cluster from placing and moving appliances.
    pub(crate) fn restraints(&self) -> Vec<Restraint> {
        let mut found = Vec::new();
        let mut restrain = |kind, text: String| found.push(Restraint { kind, text });
        if let Some(status) = &self.cluster {
            if let Some(frozen) = &status.frozen {
                restrain(RestraintKind::Frozen, crate::commands::placement::why_frozen(frozen, self.now));
            }
            if let Some(paused) = &status.paused {
                restrain(RestraintKind::Paused, crate::commands::placement::why_paused(paused, self.now));
            }
            if status.frozen.is_none() && status.paused.is_none() && !status.waiting.is_empty() {
                restrain(RestraintKind::Waiting, one_line(&status.waiting));
            }
        }
        let mut workers: Vec<_> = self.workers.values().collect();
        workers.sort_by(|a, b| natural(&a.id, &b.id));
        let each =
            |of: fn(&v1::Worker) -> Option<String>| workers.iter().filter_map(|w| of(w)).collect::<Vec<_>>().join(", ");
        let leaving = |worker: &v1::Worker| {
            let left = || format!("{} ({} left)", worker.id, worker.appliances);
            (worker.draining || worker.drained).then(left)
        };
        let cordoned = |worker: &v1::Worker| (worker.cordoned && !worker.drained).then(|| worker.id.clone());
        for (kind, names) in [(RestraintKind::Draining, each(leaving)), (RestraintKind::Cordoned, each(cordoned))] {
            if !names.is_empty() {
                restrain(kind, names);
            }
        }
        if let Some((first, rest)) = self.modes.split_first() {
            let reason = if first.reason.is_empty() { String::new() } else { format!(": {}", one_line(&first.reason)) };
            let covered = first.covered.map(|n| format!(" ({})", count(n, "appliance"))).unwrap_or_default();
            let more = if rest.is_empty() { String::new() } else { format!(", and {} more", rest.len()) };
            restrain(RestraintKind::Debug, format!("hands off {}{covered}{reason}{more}", scope_text(first)));
        }
        found
    }

    /// Keys of the rows of a pane, from top to bottom.
    fn keys(&self, pane: Pane) -> Vec<String> {
        match pane {
            Pane::Workers => self.workers().into_iter().map(|worker| worker.id.clone()).collect(),
            Pane::Appliances => self.pages.rows.iter().map(|row| row.id.clone()).collect(),
            Pane::Rebalances => self.rebalances.iter().map(|rebalance| rebalance.id.clone()).collect(),
            Pane::Troubles => self.trouble_list().into_iter().map(|trouble| trouble.key()).collect(),
            Pane::Events => self.events.iter().map(|event| event.number.to_string()).collect(),
        }
    }

    /// Number of the selected row of a pane; the first one when the one that was selected is gone.
    pub(crate) fn selected_row(&self, pane: Pane) -> usize {
        let wanted = self.selected.get(&pane);
        wanted.and_then(|wanted| self.keys(pane).iter().position(|key| key == wanted)).unwrap_or(0)
    }

    fn select(&mut self, pane: Pane, row: usize) {
        if let Some(key) = self.keys(pane).into_iter().nth(row) {
            self.selected.insert(pane, key);
        }
    }

    /// What the selected row of the pane is about.
    fn subject(&self) -> Option<Subject> {
        let row = self.selected_row(self.pane);
        match self.pane {
            Pane::Workers => self.workers().get(row).map(|worker| Subject::Worker(worker.id.clone())),
            Pane::Appliances => {
                self.pages.rows.get(row).map(|row| Subject::Appliance { id: row.id.clone(), label: row.label.clone() })
            }
            Pane::Rebalances => self.rebalances.get(row).map(|rebalance| Subject::Rebalance(rebalance.id.clone())),
            Pane::Troubles => self.trouble_list().into_iter().nth(row).and_then(|trouble| trouble.subject),
            Pane::Events => self.events.get(row).and_then(|event| self.subject_of(event)),
        }
    }

    fn subject_of(&self, event: &v1::AuditEvent) -> Option<Subject> {
        let id = event.subject.clone();
        if self.workers.contains_key(&id) {
            return Some(Subject::Worker(id));
        }
        id.parse::<common::ApplianceId>().ok()?;
        let label = event.detail.split(' ').next().filter(|name| name.contains('/')).unwrap_or(&id).to_owned();
        Some(Subject::Appliance { id, label })
    }

    /// What stands for the worker in a question, with the life that it is in.
    /// The debug modes that are set on just this.
    fn modes_on(&self, subject: &Subject) -> Vec<String> {
        use v1::debug_scope::What;

        let is_on = |mode: &&v1::DebugMode| match (mode.scope.as_ref().and_then(|scope| scope.what.as_ref()), subject) {
            (Some(What::Worker(worker)), Subject::Worker(id)) => worker == id,
            (Some(What::Appliance(named)), Subject::Appliance { id, .. }) => {
                matches!(&named.by, Some(v1::appliance_ref::By::Id(named)) if named == id)
            }
            _ => false,
        };
        self.modes.iter().filter(is_on).map(|mode| mode.id.clone()).collect()
    }

    fn eviction(&self, id: &str) -> Option<(String, Change)> {
        let worker = self.workers.get(id)?;
        let question = format!("evict {id}, which owns {}?", count(worker.appliances, "appliance"));
        let change = Change::Evict { worker: id.to_owned(), incarnation: worker.incarnation.clone() };
        Some((question, change))
    }
}

/// Compares names with the numbers in them by their value: `w2` before `w10`.
fn natural(a: &str, b: &str) -> Ordering {
    let (mut a_rest, mut b_rest) = (a, b);
    loop {
        let (Some(x), Some(y)) = (a_rest.chars().next(), b_rest.chars().next()) else {
            return a_rest.len().cmp(&b_rest.len()).then_with(|| a.cmp(b));
        };
        if x.is_ascii_digit() && y.is_ascii_digit() {
            let digits = |text: &str| text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
            let (of_a, of_b) = (digits(a_rest), digits(b_rest));
            let (x, y) = (a_rest[..of_a].trim_start_matches('0'), b_rest[..of_b].trim_start_matches('0'));
            match x.len().cmp(&y.len()).then_with(|| x.cmp(y)) {
                Ordering::Equal => (a_rest, b_rest) = (&a_rest[of_a..], &b_rest[of_b..]),
                other => return other,
            }
        } else if x == y {
            (a_rest, b_rest) = (&a_rest[x.len_utf8()..], &b_rest[y.len_utf8()..]);
        } else {
            return x.cmp(&y);
        }
    }
}

/// What a click or the wheel is about.
const fn pane_of(target: Target) -> Pane {
    match target {
        Target::Pane(pane) | Target::Row(pane, _) => pane,
    }
}
