//! Rollouts: one command over many appliances, a few at a time, which goes on under the next leader.
//!
//! What is begun when is decided by [`coordinator_core::rollout`]; here it is carried out as the calls of clients are, with the
//! same admission. That one is begun is stored before its call is made. Each call has an id that follows from those of rollout and
//! appliance, so that one whose outcome was not stored before a leader ended is made again, and answered as it was, within the
//! 24 h for which ids are remembered. What came of the calls is stored about twice a second, and at once when a rollout
//! stops or ends; orders of operators and new rollouts are stored before they count.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use common::change::ApplianceTarget;
use common::status::Phase;
use common::{ApplianceId, Generation};
use coordinator_core::budget::BudgetSpent;
use coordinator_core::machine::Event;
use coordinator_core::rollout::{
    Condition, Forgiven, ItemState, MAX_ACTIVE, MAX_IMAGES, Rollout, RolloutAction, RolloutItem, RolloutOrder,
    RolloutState,
};
use futures::StreamExt;
use futures::future::{BoxFuture, FutureExt};
use futures::stream::FuturesUnordered;
use runtime::log_limited;
use tokio::sync::oneshot;
use tokio::time::Instant;
use tracing::{Span, info};
use uuid::Uuid;

use super::Leader;
use super::commands::audit_event;
use super::inquiries::ChangeCall;
use super::writes::{RolloutChange, RolloutProgress};
use crate::access::Scope;
use crate::catalog::Catalog;
use crate::commands::{Change, ChangeOrigin, Changed, CommandError, Mutation, NewRollout, Operator, Reply, RequestKey};
use crate::record::{RolloutFailure, RolloutRecord, StoredRollout};
use crate::store::ROLLOUT_PART;
use crate::views::{CatalogEntry, RolloutItemView, RolloutView};

/// How often rollouts are looked after, and how much longer that is for each thousand appliances of those that go on.
const LOOK: Duration = Duration::from_millis(200);
const LOOK_PER_THOUSAND: Duration = Duration::from_millis(10);

/// How often progress is stored.
const STORE: Duration = Duration::from_millis(500);

/// How long the call for one appliance may take; it is made again after that.
const CALL: Duration = Duration::from_secs(30);

/// How long after a call that could not be carried out it is made again.
const AGAIN: Duration = Duration::from_secs(2);

/// Calls that are under way for one rollout. Each is a write to the store.
const MOST_CALLS: usize = 256;

/// Appliances that one look goes through, at least those of one rollout.
const MOST_LOOKED_AT: usize = 100_000;

/// Rollouts that have ended and are kept, and the appliances of all that are.
const MOST_ENDED: usize = 50;
const MOST_KEPT_ITEMS: usize = 500_000;

/// Appliances of one sort that a view names.
const NAMED: usize = 20;

/// Rollouts, and the calls that are under way for them.
#[derive(Default)]
pub(super) struct Rollouts {
    known: BTreeMap<Uuid, Kept>,
    /// Those that are being stored for the first time.
    starting: BTreeSet<Uuid>,
    /// Those that are being removed from the store.
    leaving: BTreeSet<Uuid>,
    calls: FuturesUnordered<BoxFuture<'static, CallEnded>>,
    look_at: Option<Instant>,
    /// No look before this, whatever happens: a look goes through all appliances.
    not_before: Option<Instant>,
    /// The last one that was looked after.
    last: Option<Uuid>,
}

impl std::fmt::Debug for Rollouts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Rollouts")
            .field("known", &self.known.len())
            .field("calls", &self.calls.len())
            .finish_non_exhaustive()
    }
}

/// A call for one appliance has ended.
#[derive(Debug)]
struct CallEnded {
    rollout: Uuid,
    item: usize,
    back: bool,
    result: Result<CallResult, CommandError>,
}

#[derive(Debug)]
enum CallResult {
    Changed(Box<Changed>),
    Checked,
}

#[derive(Debug)]
struct Kept {
    record: RolloutRecord,
    rollout: Rollout,
    /// Items that are under way.
    open: BTreeSet<usize>,
    /// Those of them whose call has not been answered.
    calls: BTreeSet<usize>,
    /// Those of them whose begin is not in the store yet: their calls are made once it is. With the way back or not.
    unstored: BTreeMap<usize, bool>,
    /// When each was begun here: a new leader counts their time anew.
    since: HashMap<usize, Instant>,
    /// Calls were not carried out: nothing is begun before this, and what was not answered is asked again then.
    again_at: Option<Instant>,
    /// Parts of the items that the store does not have as they are.
    dirty: BTreeSet<usize>,
    /// The store does not have the rest as it is.
    changed: bool,
    stored: Option<Instant>,
    /// An order of an operator is being stored: nothing else changes meanwhile.
    is_ordering: bool,
    /// What it waits for, for people.
    waits: String,
}

impl Kept {
    fn new(StoredRollout { record, rollout }: StoredRollout) -> Self {
        let is_open = |item: &RolloutItem| matches!(item.state, ItemState::Begun(_) | ItemState::Returning(_));
        let open: BTreeSet<usize> = (0..rollout.items.len()).filter(|at| is_open(&rollout.items[*at])).collect();
        let now = Instant::now();
        Self {
            record,
            rollout,
            calls: BTreeSet::new(),
            unstored: BTreeMap::new(),
            since: open.iter().map(|at| (*at, now)).collect(),
            open,
            again_at: None,
            dirty: BTreeSet::new(),
            changed: false,
            stored: None,
            is_ordering: false,
            waits: String::new(),
        }
    }

    fn set(&mut self, at: usize, state: ItemState) {
        self.rollout.items[at].state = state;
        self.dirty.insert(at / ROLLOUT_PART);
        self.changed = true;
        if matches!(state, ItemState::Begun(_) | ItemState::Returning(_)) {
            self.open.insert(at);
            self.since.entry(at).or_insert_with(Instant::now);
        } else {
            self.open.remove(&at);
            self.since.remove(&at);
        }
    }

    fn fail(&mut self, at: usize, name: String, why: String) {
        let appliance = self.rollout.items[at].appliance;
        info!(rollout = %self.record.id, %appliance, name, "failed in a rollout: {why}");
        if self.record.failures.len() >= RolloutRecord::MAX_FAILURES {
            self.record.failures.remove(0);
        }
        self.record.failures.push(RolloutFailure { appliance, name, why });
        let back = matches!(self.rollout.items[at].state, ItemState::Returning(_));
        self.set(at, if back { ItemState::NotReturned } else { ItemState::Failed });
    }

    fn enter(&mut self, state: RolloutState, note: String) {
        self.rollout.state = state;
        self.record.note = note;
        self.record.ended = state.has_ended().then(SystemTime::now);
        self.changed = true;
        self.stored = None;
    }

    /// What is told of it, as it is now.
    fn record(&self) -> RolloutRecord {
        let Rollout { state, images, forgiven, .. } = &self.rollout;
        RolloutRecord { state: *state, images: images.clone(), forgiven: *forgiven, ..self.record.clone() }
    }

    fn part(&self, part: usize) -> (usize, Vec<RolloutItem>) {
        let from = part * ROLLOUT_PART;
        let to = (from + ROLLOUT_PART).min(self.rollout.items.len());
        (part, self.rollout.items[from..to].to_vec())
    }

    /// Takes in how those that are under way are.
    fn follow(&mut self, catalog: &Catalog) {
        let timeout = self.rollout.policy.item_timeout;
        let open: Vec<usize> = self.answered().collect();
        for at in open {
            let item = self.rollout.items[at];
            let (generation, back) = match item.state {
                ItemState::Begun(generation) => (generation, false),
                ItemState::Returning(generation) => (generation, true),
                _ => continue,
            };
            let done = if back { ItemState::Returned } else { ItemState::Done };
            let deletes = self.rollout.action == RolloutAction::Delete;
            let Some(entry) = catalog.get(&ApplianceTarget::Id(item.appliance)) else {
                self.set(at, if deletes { ItemState::Done } else { ItemState::Skipped });
                continue;
            };
            if deletes == entry.record.deleting && generation != Generation::default() {
                match verdict(&entry, generation) {
                    Some(Ok(())) if !deletes => self.set(at, done),
                    Some(Err(why)) if !deletes => self.fail(at, named(&entry), why),
                    _ => {}
                }
            } else if entry.record.deleting && !deletes {
                // Somebody removes it; nobody is to blame.
                self.set(at, ItemState::Skipped);
            }
            if entry.assignment.hands_off {
                // Its time begins when hands are on it again.
                self.since.insert(at, Instant::now());
            }
            let is_late = self.since.get(&at).is_some_and(|since| since.elapsed() >= timeout);
            if self.open.contains(&at) && is_late {
                let last = entry.status.as_ref().and_then(|(status, _)| status.last_error.clone());
                let last = last.map(|error| format!(": {error}")).unwrap_or_default();
                self.fail(at, named(&entry), format!("not done within {timeout:?}{last}"));
            }
        }
    }

    /// Those that are under way and whose call has been made, and answered.
    fn answered(&self) -> impl Iterator<Item = usize> {
        self.open.difference(&self.calls).copied().filter(|at| !self.unstored.contains_key(at))
    }

    /// Those whose call was never answered, by whoever led then, and that are to be asked for anew.
    fn unanswered(&self) -> Vec<(usize, bool)> {
        let asked = |at: usize| match self.rollout.items[at].state {
            ItemState::Begun(generation) if generation == Generation::default() => Some((at, false)),
            ItemState::Returning(generation) if generation == Generation::default() => Some((at, true)),
            _ => None,
        };
        self.answered().filter_map(asked).collect()
    }
}

/// Whether an appliance has become what it was to be in this generation; `None` while that goes on.
fn verdict(entry: &CatalogEntry, generation: Generation) -> Option<Result<(), String>> {
    let (status, _) = entry.status.as_ref().filter(|(status, _)| status.observed_generation >= generation)?;
    match status.phase {
        Phase::Configured => Some(Ok(())),
        Phase::Error => Some(Err(status.last_error.clone().unwrap_or_else(|| "it is in phase Error".to_owned()))),
        _ => None,
    }
}

fn named(entry: &CatalogEntry) -> String {
    format!("{}/{}", entry.record.tenant, entry.record.name)
}

impl Rollouts {
    /// As the store has them.
    pub(super) fn restore(stored: Vec<StoredRollout>) -> Self {
        let known = stored.into_iter().map(|rollout| (rollout.record.id, Kept::new(rollout))).collect();
        Self { known, look_at: Some(Instant::now()), ..Self::default() }
    }

    /// When to look after them next; `None` while there is nothing to do.
    pub(super) const fn next_look(&self) -> Option<Instant> {
        self.look_at
    }

    /// Whether calls are under way.
    pub(super) fn has_calls(&self) -> bool {
        !self.calls.is_empty()
    }

    /// Waits for the end of a call. To be asked only while there are some.
    pub(super) async fn call_ended(&mut self) -> RolloutCall {
        RolloutCall(self.calls.next().await)
    }

    fn is_active(kept: &Kept) -> bool {
        !kept.rollout.state.has_ended() || !kept.open.is_empty() || kept.changed
    }

    /// The ended ones that are kept no longer once another one with so many appliances comes.
    fn surplus(&self, coming: usize) -> Vec<Uuid> {
        let mut ended: Vec<_> = self.known.values().filter(|kept| !Self::is_active(kept)).collect();
        ended.sort_by_key(|kept| kept.record.ended);
        let mut items: usize = coming + self.known.values().map(|kept| kept.rollout.items.len()).sum::<usize>();
        let mut count = ended.len();
        let mut gone = Vec::new();
        for kept in ended {
            if count < MOST_ENDED && items <= MOST_KEPT_ITEMS {
                break;
            }
            count -= 1;
            items -= kept.rollout.items.len();
            gone.push(kept.record.id);
        }
        gone
    }
}

/// The end of a call that a rollout has made.
#[derive(Debug)]
pub(super) struct RolloutCall(Option<CallEnded>);

impl Leader<'_> {
    /// Starts a rollout, once that is stored.
    pub(super) fn start_rollout(&mut self, new: NewRollout, request: &Operator, reply: Reply<RolloutView>) {
        if reply.is_closed() {
            // The caller's deadline has passed, as for changes.
            return;
        }
        if let Some(kept) = self.rollouts.known.get(&new.id) {
            let same = kept.rollout.action == new.action
                && kept.record.selection == new.selection
                && kept.rollout.policy == new.policy
                && kept.record.force == new.force;
            let answer = if same { Ok(self.rollout_view(kept)) } else { Err(CommandError::RolloutIdTaken(new.id)) };
            return drop(reply.send(answer));
        }
        if self.rollouts.starting.contains(&new.id) {
            return drop(reply.send(Err(CommandError::Contended)));
        }
        let active = self.rollouts.known.values().filter(|kept| !kept.rollout.state.has_ended()).count();
        if active + self.rollouts.starting.len() >= MAX_ACTIVE {
            return drop(reply.send(Err(CommandError::TooManyRollouts(MAX_ACTIVE))));
        }
        let NewRollout { id, action, policy, selection, force, items } = new;
        let rollout = Rollout::new(action.clone(), policy.clone(), items);
        let record = RolloutRecord {
            id,
            action,
            policy,
            state: RolloutState::Running,
            images: Vec::new(),
            forgiven: Forgiven::default(),
            items: rollout.items.len() as u64,
            selection,
            force,
            reason: request.reason.clone(),
            by: request.actor.clone(),
            note: String::new(),
            failures: Vec::new(),
            started: SystemTime::now(),
            ended: None,
        };
        let what = format!("{} of {} ({})", record.action.name(), record.items, record.selection);
        let detail = if request.reason.is_empty() { what } else { format!("{what}: {}", request.reason) };
        let request = Operator { reason: detail, actor: request.actor.clone() };
        let audit = audit_event("rollout-start", &id.to_string(), &request);
        let kept = Kept::new(StoredRollout { record, rollout });
        let parts = (0..kept.rollout.items.len().div_ceil(ROLLOUT_PART)).map(|part| kept.part(part)).collect();
        let removes = self.rollouts.surplus(kept.rollout.items.len());
        self.rollouts.starting.insert(id);
        self.rollouts.leaving.extend(&removes);
        let stored = StoredRollout { record: kept.record, rollout: kept.rollout };
        self.writes.rollout(RolloutChange { stored: Box::new(stored), parts, removes, audit, reply });
    }

    /// An operator holds a rollout, has it go on, or ends it.
    pub(super) fn order_rollout(
        &mut self,
        id: Uuid,
        order: RolloutOrder,
        request: &Operator,
        reply: Reply<RolloutView>,
    ) {
        if reply.is_closed() {
            return;
        }
        let leaves = self.rollouts.leaving.contains(&id);
        let Some(kept) = self.rollouts.known.get_mut(&id).filter(|_| !leaves) else {
            return drop(reply.send(Err(CommandError::NoRollout(id))));
        };
        if kept.is_ordering {
            return drop(reply.send(Err(CommandError::Contended)));
        }
        let mut ordered = Kept::new(StoredRollout { record: kept.record.clone(), rollout: kept.rollout.clone() });
        if let Err(refused) = ordered.rollout.order(order) {
            return drop(reply.send(Err(CommandError::RolloutRefused(id, refused))));
        }
        let by = &request.actor;
        let note = if request.reason.is_empty() { format!("by {by}") } else { format!("by {by}: {}", request.reason) };
        let state = ordered.rollout.state;
        ordered.enter(state, if state == RolloutState::Running { String::new() } else { note });
        kept.is_ordering = true;
        let audit = audit_event(&format!("rollout-{}", order.name()), &id.to_string(), request);
        let stored = StoredRollout { record: ordered.record(), rollout: ordered.rollout };
        let (parts, removes) = (Vec::new(), Vec::new());
        self.writes.rollout(RolloutChange { stored: Box::new(stored), parts, removes, audit, reply });
    }

    /// The store has a new rollout, or an operator's order about one: it counts.
    pub(super) fn rollout_changed(&mut self, change: RolloutChange) {
        let RolloutChange { stored, parts: _, removes, audit, reply } = change;
        audit.log();
        for id in removes {
            self.rollouts.known.remove(&id);
            self.rollouts.leaving.remove(&id);
        }
        let id = stored.record.id;
        self.rollouts.starting.remove(&id);
        let kept = match self.rollouts.known.remove(&id) {
            None => Kept::new(*stored),
            // What its appliances did meanwhile is not in what was stored.
            Some(mut kept) => {
                kept.rollout.state = stored.rollout.state;
                kept.rollout.forgiven = stored.rollout.forgiven;
                (kept.record.note, kept.record.ended) = (stored.record.note.clone(), stored.record.ended);
                (kept.is_ordering, kept.changed) = (false, true);
                kept
            }
        };
        let view = self.rollout_view(&kept);
        self.rollouts.known.insert(id, kept);
        self.rollouts.look_at = Some(Instant::now());
        self.admission.settle();
        let _ = reply.send(Ok(view));
    }

    /// It does not have it.
    pub(super) fn rollout_not_changed(&mut self, change: RolloutChange, error: &crate::store::Error) {
        let id = change.stored.record.id;
        self.rollouts.starting.remove(&id);
        for id in &change.removes {
            self.rollouts.leaving.remove(id);
        }
        if let Some(kept) = self.rollouts.known.get_mut(&id) {
            kept.is_ordering = false;
        }
        self.admission.settle();
        let _ = change.reply.send(Err(CommandError::Unavailable(error.to_string())));
    }

    /// The store has what was begun: the calls are made.
    pub(super) fn rollout_stored(&mut self, progress: &RolloutProgress) {
        let Some(mut kept) = self.rollouts.known.remove(&progress.id) else { return };
        for at in &progress.begun {
            let Some(back) = kept.unstored.remove(at) else { continue };
            let goes_on = if back { RolloutState::RollingBack } else { RolloutState::Running };
            if kept.rollout.state == goes_on {
                self.call(&mut kept, *at, back);
            } else {
                // An operator, or a failure, was faster: nothing was done to it.
                kept.set(*at, if back { ItemState::Done } else { ItemState::Waiting });
            }
        }
        self.rollouts.known.insert(progress.id, kept);
    }

    /// The store does not have how a rollout goes on: it is offered again.
    pub(super) fn rollout_not_stored(&mut self, progress: &RolloutProgress) {
        if let Some(kept) = self.rollouts.known.get_mut(&progress.id) {
            kept.dirty.extend(&progress.parts);
            kept.changed = true;
        }
    }

    /// Looks after the rollouts, when it is time.
    pub(super) fn drive_rollouts(&mut self) {
        let now = Instant::now();
        if self.end.is_some() || self.rollouts.look_at.is_none_or(|at| at > now) {
            return;
        }
        let mut active: Vec<Uuid> =
            self.rollouts.known.values().filter(|kept| Rollouts::is_active(kept)).map(|kept| kept.record.id).collect();
        // In turn, where there are too many for one look.
        let after = self.rollouts.last.map_or(0, |last| active.partition_point(|id| *id <= last));
        active.rotate_left(after);
        let mut items = 0;
        for id in &active {
            // Taken out, since the calls it makes go through the leader.
            let Some(mut kept) = self.rollouts.known.remove(id) else { continue };
            items += kept.rollout.items.len();
            if !kept.is_ordering {
                self.drive(&mut kept, now);
            }
            self.store_progress(&mut kept, now);
            self.rollouts.known.insert(*id, kept);
            self.rollouts.last = Some(*id);
            if items >= MOST_LOOKED_AT {
                break;
            }
        }
        let thousands = u32::try_from(items / 1_000).unwrap_or(u32::MAX);
        let pause = LOOK.saturating_add(LOOK_PER_THOUSAND.saturating_mul(thousands));
        let end = Instant::now();
        self.rollouts.not_before = Some(end + pause / 8);
        self.rollouts.look_at = (!active.is_empty()).then(|| end + pause);
    }

    fn drive(&mut self, kept: &mut Kept, now: Instant) {
        kept.follow(&self.catalog);
        let room = MOST_CALLS.saturating_sub(kept.calls.len() + kept.unstored.len());
        if kept.again_at.is_some_and(|at| at > now) {
            return;
        }
        kept.again_at = None;
        kept.waits = String::new();
        if !matches!(kept.rollout.state, RolloutState::Running | RolloutState::RollingBack) {
            return;
        }
        let unanswered = kept.unanswered();
        let disrupts = kept.rollout.action.disrupts();
        for (at, back) in unanswered.iter().take(room) {
            if disrupts {
                // Of one that a former leader began nobody has counted that yet.
                self.step(Event::Disrupt { id: kept.rollout.items[*at].appliance, begins: true });
            }
            self.call(kept, *at, *back);
        }
        if !unanswered.is_empty() {
            return;
        }
        let (mut conditions, mut unavailable, mut held, mut spent) =
            (Vec::with_capacity(kept.rollout.items.len()), 0, 0, None);
        let ids: Vec<ApplianceId> = kept.rollout.items.iter().map(|item| item.appliance).collect();
        let (_, wave_end) = kept.rollout.wave();
        for at in 0..kept.rollout.items.len() {
            let RolloutItem { appliance, state, .. } = kept.rollout.items[at];
            let entry = self.catalog.get(&ApplianceTarget::Id(appliance));
            if state == ItemState::Waiting && entry.as_ref().is_none_or(|entry| entry.record.deleting) {
                kept.set(at, ItemState::Skipped);
            }
            let down = entry.as_ref().is_some_and(|entry| entry.phase() != Phase::Configured);
            let is_held = entry.as_ref().is_some_and(|entry| entry.assignment.hands_off);
            unavailable += usize::from(down && !kept.open.contains(&at));
            held += usize::from(is_held && state == ItemState::Waiting && at < wave_end);
            conditions.push(Condition { down, held: is_held });
        }
        let admit = |at: usize| match self.machine.refuses_disruption(ids[at]) {
            Some(refused) => {
                spent = Some(refused);
                false
            }
            None => {
                self.step(Event::Disrupt { id: ids[at], begins: true });
                true
            }
        };
        let step = kept.rollout.next(|at| conditions[at], admit);
        if let Some(state) = step.state {
            let note = match state {
                RolloutState::Stopped | RolloutState::RollingBack => kept.rollout.why_stopped().unwrap_or_default(),
                _ => String::new(),
            };
            info!(rollout = %kept.record.id, state = state.name(), "a rollout goes on: {note}");
            kept.enter(state, note);
        }
        let idle = step.begin.is_empty() && step.give_back.is_empty();
        kept.waits = waits(kept, idle, unavailable, held, spent.as_ref());
        let begin = step.begin.into_iter().map(|at| (at, false));
        let all = begin.chain(step.give_back.into_iter().map(|at| (at, true)));
        // The call forward is answered before the one back is made.
        let mut room = room;
        for (at, back) in all.collect::<Vec<_>>() {
            if room > 0 && !kept.calls.contains(&at) {
                self.begin_item(kept, at, back);
                room -= 1;
            }
            if disrupts && !kept.unstored.contains_key(&at) {
                self.step(Event::Disrupt { id: ids[at], begins: false });
            }
        }
    }

    /// Begins one appliance: its call is made once the store has that.
    fn begin_item(&self, kept: &mut Kept, at: usize, back: bool) {
        let appliance = kept.rollout.items[at].appliance;
        if let RolloutAction::SetImage(image) = kept.rollout.action.clone() {
            let entry = self.catalog.get(&ApplianceTarget::Id(appliance));
            let name = entry.as_deref().map(named).unwrap_or_default();
            let former = entry.and_then(|entry| entry.record.spec.image.clone());
            match former {
                // One without an image has none to be changed, and what somebody has changed since is theirs.
                None => return kept.set(at, ItemState::Skipped),
                Some(former) if back && former != image => return kept.set(at, ItemState::Skipped),
                Some(former) if !back && former == image => return kept.set(at, ItemState::Done),
                Some(_) if back => {}
                Some(former) => match kept.rollout.remember_image(&former) {
                    Some(place) => kept.rollout.items[at].former_image = Some(place),
                    None => {
                        let why = format!("there are more than {MAX_IMAGES} different images to go back to");
                        return kept.fail(at, name, why);
                    }
                },
            }
        }
        let asked = Generation::default();
        kept.since.remove(&at);
        kept.set(at, if back { ItemState::Returning(asked) } else { ItemState::Begun(asked) });
        kept.unstored.insert(at, back);
        // At once, not in half a second.
        kept.stored = None;
    }

    /// Makes the call for one appliance, or makes it again.
    fn call(&mut self, kept: &mut Kept, at: usize, back: bool) {
        let RolloutItem { appliance, former_image, .. } = kept.rollout.items[at];
        let (id, target) = (kept.record.id, ApplianceTarget::Id(appliance));
        kept.calls.insert(at);
        let ended = move |result| CallEnded { rollout: id, item: at, back, result };
        let change = match &kept.rollout.action {
            RolloutAction::Check => {
                let (reply, answer) = oneshot::channel();
                self.check(appliance, reply);
                let answer = tokio::time::timeout(CALL, answer);
                self.rollouts.calls.push(Box::pin(async move {
                    let result = match answer.await {
                        Ok(Ok(result)) => result.map(|()| CallResult::Checked),
                        Ok(Err(_)) | Err(_) => Err(CommandError::DeadlineExceeded),
                    };
                    ended(result)
                }));
                return;
            }
            RolloutAction::Rebuild => Change::Rebuild { target, image: None, force: false },
            RolloutAction::SetImage(image) if !back => {
                Change::Rebuild { target, image: Some(image.clone()), force: false }
            }
            RolloutAction::SetImage(_) => {
                let former = former_image.and_then(|image| kept.rollout.images.get(usize::from(image)).cloned());
                Change::Rebuild { target, image: former, force: false }
            }
            RolloutAction::Delete => Change::Delete { target, expected: None, allow_missing: true, at_once: false },
        };
        let mutation = Mutation {
            request: Some(request_of(id, appliance, back)),
            change,
            validate_only: false,
            actor: format!("rollout {} by {}", id.simple(), kept.record.by),
            origin: ChangeOrigin::Client { force: kept.record.force, scope: Scope::All },
        };
        let (reply, answer) = oneshot::channel::<Result<Changed, CommandError>>();
        let deadline = Instant::now() + CALL;
        self.rollouts.calls.push(Box::pin(async move {
            let result = match tokio::time::timeout_at(deadline, answer).await {
                Ok(Ok(result)) => result.map(|changed| CallResult::Changed(Box::new(changed))),
                Ok(Err(_)) | Err(_) => Err(CommandError::DeadlineExceeded),
            };
            ended(result)
        }));
        self.change(ChangeCall { mutation: Arc::new(mutation), caller: Span::none(), deadline, reply });
    }

    /// A call that a rollout has made has ended. What else has ended is taken in as well.
    pub(super) fn rollout_called(&mut self, RolloutCall(first): RolloutCall) {
        let mut next = first;
        while let Some(ended) = next {
            self.call_ended(ended);
            next = self.rollouts.calls.next().now_or_never().flatten();
        }
        // What was freed is used at once.
        let soon = Instant::now() + Duration::from_millis(20);
        let soon = self.rollouts.not_before.map_or(soon, |earliest| soon.max(earliest));
        self.rollouts.look_at = Some(self.rollouts.look_at.map_or(soon, |at| at.min(soon)));
    }

    fn call_ended(&mut self, CallEnded { rollout, item: at, back, result }: CallEnded) {
        let Some(kept) = self.rollouts.known.get_mut(&rollout) else { return };
        kept.calls.remove(&at);
        let id = kept.rollout.items[at].appliance;
        let entry = self.catalog.get(&ApplianceTarget::Id(id));
        let name = entry.as_deref().map(named).unwrap_or_default();
        // What was changed shows by itself that it has not acted on it yet.
        let ended = !matches!(result, Err(CommandError::DeadlineExceeded | CommandError::Unanswered));
        match result {
            Ok(CallResult::Changed(changed)) => match changed.entry {
                None => kept.set(at, ItemState::Done),
                Some(entry) => {
                    let generation = entry.record.generation;
                    kept.set(at, if back { ItemState::Returning(generation) } else { ItemState::Begun(generation) });
                }
            },
            Ok(CallResult::Checked) => match entry.map(|entry| verdict(&entry, Generation::default())) {
                Some(Some(Ok(()))) => kept.set(at, ItemState::Done),
                Some(Some(Err(why))) => kept.fail(at, name, why),
                Some(None) => kept.fail(at, name, "it is not configured".to_owned()),
                None => kept.set(at, ItemState::Skipped),
            },
            Err(CommandError::NotFound(_) | CommandError::RequestedGone(_) | CommandError::Deleting(_)) => {
                kept.set(at, ItemState::Skipped);
            }
            // Nobody knows whether it was carried out: it is asked again, and answered as it was then.
            Err(error @ (CommandError::DeadlineExceeded | CommandError::Unanswered)) => {
                log_limited!(info, rollout = %rollout, "a call of a rollout is made again: {error}");
                kept.again_at.get_or_insert(Instant::now() + AGAIN);
            }
            Err(error) if is_passing(&error) => {
                log_limited!(info, rollout = %rollout, "a call of a rollout was not carried out: {error}");
                kept.again_at.get_or_insert(Instant::now() + AGAIN);
                kept.set(at, if back { ItemState::Done } else { ItemState::Waiting });
            }
            Err(error) => {
                if !back {
                    // It was not changed, so that there is nothing to go back from.
                    kept.rollout.items[at].former_image = None;
                }
                kept.fail(at, name, error.to_string());
            }
        }
        if ended {
            self.step(Event::Disrupt { id, begins: false });
        }
    }

    fn store_progress(&mut self, kept: &mut Kept, now: Instant) {
        if !kept.changed || kept.is_ordering || kept.stored.is_some_and(|at| now < at + STORE) {
            return;
        }
        (kept.changed, kept.stored) = (false, Some(now));
        let dirty = std::mem::take(&mut kept.dirty);
        let parts = dirty.iter().map(|part| kept.part(*part)).collect();
        let begun = kept.unstored.keys().copied().collect();
        self.writes.rollout_progress(kept.record(), parts, begun);
    }

    /// How far a rollout is.
    pub(super) fn rollout(&self, id: Uuid) -> Result<RolloutView, CommandError> {
        let kept = self.rollouts.known.get(&id).ok_or(CommandError::NoRollout(id))?;
        Ok(self.rollout_view(kept))
    }

    /// All rollouts that are kept, the newest first.
    pub(super) fn rollout_list(&self) -> Vec<RolloutView> {
        let mut views: Vec<_> = self.rollouts.known.values().map(|kept| self.rollout_view(kept)).collect();
        views.sort_by_key(|view| std::cmp::Reverse((view.record.started, view.record.id)));
        views
    }

    fn rollout_view(&self, kept: &Kept) -> RolloutView {
        let (wave, wave_end) = kept.rollout.wave();
        let open = kept.open.iter().take(NAMED).map(|at| {
            let appliance = kept.rollout.items[*at].appliance;
            let entry = self.catalog.get(&ApplianceTarget::Id(appliance));
            let phase = entry.as_ref().map(|entry| entry.phase());
            RolloutItemView { appliance, name: entry.as_deref().map(named).unwrap_or_default(), phase }
        });
        RolloutView {
            counts: kept.rollout.counts(),
            wave,
            waves: kept.rollout.wave_ends().len(),
            wave_end,
            under_way: open.collect(),
            waits: kept.waits.clone(),
            record: kept.record(),
        }
    }
}

/// Whether a call was surely not carried out, and may be later.
const fn is_passing(error: &CommandError) -> bool {
    matches!(
        error,
        CommandError::Contended
            | CommandError::Unavailable(_)
            | CommandError::NotLeading(_)
            | CommandError::Stopping
            | CommandError::NoOwner { .. }
            | CommandError::BudgetSpent { .. }
    )
}

/// What a rollout waits for, one clause; empty while it begins something, or has nothing to begin.
fn waits(kept: &Kept, idle: bool, unavailable: usize, held: usize, spent: Option<&BudgetSpent>) -> String {
    let Rollout { state, policy, action, .. } = &kept.rollout;
    let goes_on = matches!(state, RolloutState::Running | RolloutState::RollingBack);
    if !idle || !goes_on {
        return String::new();
    }
    let open = kept.open.len();
    let down = if action.disrupts() { unavailable } else { 0 };
    let mut parts = Vec::new();
    parts.extend((open > 0).then(|| format!("{open} under way")));
    let most = policy.max_unavailable as usize;
    let full = down > 0 && open + down >= most;
    parts.extend(full.then(|| format!("{down} more unavailable, of {most} that may be")));
    parts.extend((held > 0).then(|| format!("{held} under a debug mode")));
    parts.extend(spent.map(ToString::to_string));
    parts.join("; ")
}

/// The key of the call for one appliance; another one for its way back.
fn request_of(rollout: Uuid, appliance: ApplianceId, back: bool) -> RequestKey {
    let mut name = appliance.as_bytes().to_vec();
    name.push(u8::from(back));
    RequestKey::new(Uuid::new_v5(&rollout, &name), &Scope::All, &name)
}
