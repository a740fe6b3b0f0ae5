//! A worker process around its conversation and its gate: one stream at a time, one life after the other, and calls that
//! start when the gate lets them and take effect when they like. When to connect and to join is for the checker to choose,
//! so that the machine which decides that in the product is not run here.

use std::collections::BTreeMap;
use std::time::Duration;

use common::canon::{Canon, Canonical};
use common::mutant::{self, Mutant};
use common::session::{Carryover, Envelope, GrantRef, ToCoordinator};
use common::{ApplianceId, Incarnation, Life, Mode, ModeEdition, Term, Timestamp, Token, WorkerId};
use coordinator_core::machine::StreamId;
use worker_core::gate::{Gate, fence_delay_end, fence_delay_left};
use worker_core::session::{ControlEvent, Conversation, ConversationAction, Incoming, StreamEnd};

use crate::promises::{Promise, Wrong};
use crate::setup::{FENCE_DELAY, FencingMode, LEASE_SEEN, Setup};
use crate::state::{ModelState, Part, PendingCall};
use crate::stream::{DownMessage, ModelStream, UpMessage};

/// A call that may take effect at any time.
pub(crate) const FOREVER: Timestamp = Timestamp::from_nanos(u64::MAX);

/// What a worker does about one appliance.
#[derive(Clone, Debug)]
pub(crate) struct ModelTask {
    pub(crate) token: Token,
    /// A call runs, and has ended at this moment at the latest.
    pub(crate) running: Option<Timestamp>,
    /// It is to be given up when no call runs.
    pub(crate) releasing: bool,
    /// A call that timed out has taken effect by then.
    pub(crate) late: Option<Timestamp>,
    /// It was given up, and only a mutant goes on with it.
    pub(crate) over: bool,
    /// Hands are off by this edition, and it has to be said once no call runs.
    pub(crate) owes: Option<ModeEdition>,
}

/// A worker: what belongs to its name, and the process while there is one.
#[derive(Clone, Debug)]
pub(crate) struct ModelWorker {
    pub(crate) name: WorkerId,
    /// The process exists.
    pub(crate) runs: bool,
    /// The service is not reached.
    pub(crate) cut: bool,
    /// Its life in the service, and the one before.
    pub(crate) incarnation: Option<Incarnation>,
    pub(crate) former: Option<Incarnation>,
    /// Term of the newest leader the service has shown it; it connects to no older one.
    pub(crate) knows: Term,
    pub(crate) conversation: Conversation,
    pub(crate) gate: Gate,
    /// The stream it is at the end of.
    pub(crate) link: Option<StreamId>,
    pub(crate) tasks: BTreeMap<ApplianceId, ModelTask>,
    /// Highest token taken under this name, by appliance (I3).
    newest: BTreeMap<ApplianceId, Token>,
    /// Highest term whose messages this process applied (I5).
    term: Term,
}

impl ModelWorker {
    pub(crate) fn new(number: usize) -> Self {
        Self {
            name: Setup::worker(number),
            runs: true,
            cut: false,
            incarnation: None,
            former: None,
            knows: Term::default(),
            conversation: Conversation::default(),
            gate: Gate::with_margin(Duration::ZERO),
            link: None,
            tasks: BTreeMap::new(),
            newest: BTreeMap::new(),
            term: Term::default(),
        }
    }

    /// The life of the process, if there is one.
    pub(crate) fn life(&self) -> Option<Life> {
        self.incarnation.filter(|_| self.runs).map(|incarnation| Life::new(self.name.clone(), incarnation))
    }

    /// Whether a call of this task may start.
    pub(crate) fn may_begin(&self, now: Timestamp, id: ApplianceId, fencing: FencingMode) -> bool {
        self.tasks.get(&id).is_some_and(|task| {
            let gate = match fencing {
                FencingMode::Tokens => self.gate.pass(now, id, task.token),
                FencingMode::FenceDelay => self.gate.pass_unfenced(now, id, task.token),
            };
            self.runs && task.running.is_none() && !task.releasing && gate.is_ok()
        })
    }

    /// Whether this worker acts: calls may start, or one runs under a lease that stands.
    pub(crate) fn acts(&self, now: Timestamp, id: ApplianceId) -> bool {
        self.runs
            && self.tasks.get(&id).is_some_and(|task| {
                self.gate.pass(now, id, task.token).is_ok() || (task.running.is_some() && self.gate.lease_stands(now))
            })
    }

    /// What is left of the time in which calls may still take effect after this task is given up.
    fn fence_delay(&self, now: Timestamp, id: ApplianceId, token: Token) -> Duration {
        let served = self.gate.held().find(|(held, of, _)| (*held, *of) == (id, token)).map(|(_, _, until)| until);
        let late = self.tasks.get(&id).and_then(|task| task.late);
        served.into_iter().chain(late).map(|until| fence_delay_left(now, until)).max().unwrap_or_default()
    }

    /// Ends what a process of this name did. Calls that run go on without it.
    fn end(&mut self, calls: &mut Vec<PendingCall>) {
        for (id, task) in std::mem::take(&mut self.tasks) {
            calls.extend(task.running.map(|over| PendingCall { appliance: id, token: task.token, over }));
        }
        self.link = None;
    }
}

impl ModelState {
    pub(crate) fn worker(&mut self, w: usize) -> &mut ModelWorker {
        Part::edit(&mut self.workers[w])
    }

    /// A process without a life makes its nodes; those of its former life go.
    pub(crate) fn join(&mut self, w: usize) {
        self.next_life += 1;
        let incarnation = Incarnation::new(self.next_life);
        let now = self.now;
        let worker = self.worker(w);
        let (name, former) = (worker.name.clone(), worker.former.replace(incarnation));
        worker.incarnation = Some(incarnation);
        worker.conversation.begin_life(Some(incarnation));
        worker.gate = Gate::with_margin(Duration::ZERO);
        worker.gate.extend(now + LEASE_SEEN);
        if let Some(former) = former {
            self.delete_nodes(&Life::new(name.clone(), former));
        }
        self.make_nodes(w, &Life::new(name, incarnation));
    }

    /// A life is over for its process: nothing of it acts any more.
    pub(crate) fn end_life(&mut self, w: usize) {
        self.leave_stream(w, false);
        let mut calls = std::mem::take(&mut self.calls);
        let worker = self.worker(w);
        worker.gate.shut();
        worker.end(&mut calls);
        worker.conversation.end_life();
        worker.incarnation = None;
        self.calls = calls;
    }

    /// A process is killed.
    pub(crate) fn crash(&mut self, w: usize) {
        self.leave_stream(w, false);
        let mut calls = std::mem::take(&mut self.calls);
        let worker = self.worker(w);
        worker.gate = Gate::with_margin(Duration::ZERO);
        worker.end(&mut calls);
        worker.runs = false;
        worker.cut = false;
        worker.conversation = Conversation::default();
        worker.incarnation = None;
        worker.former = None;
        worker.knows = Term::default();
        worker.term = Term::default();
        self.calls = calls;
    }

    /// The process is started anew.
    pub(crate) fn restart(&mut self, w: usize) {
        self.worker(w).runs = true;
    }

    /// A worker opens a stream to a leader and says what it holds.
    pub(crate) fn connect(&mut self, setup: &Setup, w: usize, l: usize) {
        self.next_conn += 1;
        let (conn, now) = (self.next_conn, self.now);
        let worker = self.worker(w);
        let (from, hello) = worker.conversation.hello(now, &worker.name, &setup.profile(w), &Setup::secret(w));
        worker.link = Some(conn);
        self.streams.push(ModelStream {
            conn,
            worker: w,
            term: self.leaders[l].term,
            envelope: None,
            read: true,
            heard: true,
            up: [UpMessage::Message(from, ToCoordinator::Hello(Box::new(hello)))].into(),
            down: [].into(),
        });
    }

    /// A worker leaves its stream, or with `late` it breaks and what was on it may still arrive.
    pub(crate) fn leave_stream(&mut self, w: usize, late: bool) {
        let worker = self.worker(w);
        worker.conversation.close();
        if let Some(conn) = worker.link.take()
            && let Some(stream) = self.streams.iter_mut().find(|s| s.conn == conn)
        {
            stream.leave(late);
        }
    }

    /// A worker hears of the newest leader, and leaves the one before.
    pub(crate) fn turn(&mut self, w: usize) {
        let newest = self.store.value.term;
        self.worker(w).knows = newest;
        self.leave_stream(w, false);
    }

    /// The oldest message of a stream reaches the worker.
    pub(crate) fn deliver_down(&mut self, conn: StreamId) {
        let Some(stream) = self.streams.iter_mut().find(|s| s.conn == conn) else { return };
        let w = stream.worker;
        let Some(DownMessage { from, message }) = stream.down.pop_front() else { return };
        let worker = self.worker(w);
        let late = worker.link != Some(conn);
        if !worker.runs || worker.incarnation.is_none() {
            return;
        }
        let actions = worker.conversation.receive(Incoming::whole(from, message), false, |_| None);
        for action in actions {
            match action {
                ConversationAction::Welcomed(..) | ConversationAction::Confirmed(_) => self.applied(w, from),
                ConversationAction::Take { grant, carryover, mode, .. } => {
                    self.take(w, grant, carryover.fence_delay);
                    self.obey(w, grant, mode);
                }
                ConversationAction::Mode(grant, mode) => self.obey(w, grant, mode),
                ConversationAction::Fence(grant) => {
                    self.worker(w).gate.dismiss(grant.appliance, grant.token);
                    self.begin_release(w, grant);
                }
                ConversationAction::Release(grant) => self.begin_release(w, grant),
                ConversationAction::Applied(version) => {
                    self.worker(w).conversation.applied(version);
                    self.applied(w, from);
                }
                // What is late ends nothing but itself.
                ConversationAction::Control(ControlEvent::StreamEnded(end)) if !late => {
                    self.leave_stream(w, false);
                    if matches!(end, StreamEnd::LifeOver(_)) {
                        self.end_life(w);
                    }
                }
                ConversationAction::Control(_)
                | ConversationAction::Update(..)
                | ConversationAction::Check(..)
                | ConversationAction::Restate
                | ConversationAction::Note(_) => {}
            }
        }
        self.flush(w);
    }

    fn applied(&mut self, w: usize, from: Envelope) {
        let worker = self.worker(w);
        let highest = std::mem::replace(&mut worker.term, from.term);
        if from.term < highest {
            let text = format!("{} applies a message of {} after one of {highest}", worker.name, from.term);
            self.note(Err(Wrong::new(Promise::I5, text)));
        }
    }

    /// Sends the answers that wait. What the leader does not read any more is lost.
    fn flush(&mut self, w: usize) {
        if !self.workers[w].value.conversation.owes_an_answer() {
            return;
        }
        let worker = self.worker(w);
        let (link, mut sent) = (worker.link, Vec::new());
        while worker.conversation.owes_an_answer() {
            let Some((from, message)) = worker.conversation.next_message() else { break };
            sent.push(UpMessage::Message(from, message));
        }
        if let Some(stream) = self.streams.iter_mut().find(|s| Some(s.conn) == link && s.heard) {
            stream.up.extend(sent);
        }
    }

    fn take(&mut self, w: usize, grant: GrantRef, fence_delay: Duration) {
        let GrantRef { appliance: id, token } = grant;
        let now = self.now;
        let worker = self.worker(w);
        let newest = worker.newest.insert(id, token);
        let task = ModelTask { token, running: None, releasing: false, late: None, over: false, owes: None };
        let former = worker.tasks.insert(id, task);
        worker.gate.admit(now, id, token, fence_delay);
        let name = worker.name.clone();
        if let Some(newest) = newest
            && newest >= token
        {
            self.note(Err(Wrong::new(Promise::I3, format!("{name} takes {id} under {token} after {newest}"))));
        }
        if former.is_some_and(|task| !task.over) {
            let text = format!("{name} takes {id} under {token} while it acts on it");
            self.note(Err(Wrong::new(Promise::I1, text)));
        }
    }

    /// Shuts the gate or opens it, and says that hands are off once no call runs.
    fn obey(&mut self, w: usize, grant: GrantRef, mode: Mode) {
        let GrantRef { appliance: id, token } = grant;
        let now = self.now;
        let worker = self.worker(w);
        // A mutant shuts it later, when a call ends.
        let late = mutant::is(Mutant::ModeAcknowledgedEarly) && mode.hands_off;
        if !late {
            worker.gate.set_hands_off(now, id, token, mode.hands_off);
        }
        let Some(task) = worker.tasks.get_mut(&id).filter(|task| task.token == token) else { return };
        task.owes = mode.hands_off.then_some(mode.edition);
        if late {
            worker.conversation.quiet(grant, mode.edition, Duration::ZERO);
        } else {
            self.fall_quiet(w, id);
        }
    }

    /// Says that hands are off one appliance, if they are, no call runs, and it was not said.
    fn fall_quiet(&mut self, w: usize, id: ApplianceId) {
        let now = self.now;
        let Some(task) = self.workers[w].value.tasks.get(&id) else { return };
        let (token, Some(edition), None) = (task.token, task.owes, task.running) else { return };
        let worker = self.worker(w);
        if mutant::is(Mutant::ModeAcknowledgedEarly) {
            return worker.gate.set_hands_off(now, id, token, true);
        }
        let fence_delay = worker.fence_delay(now, id, token);
        if let Some(task) = worker.tasks.get_mut(&id) {
            task.owes = None;
        }
        worker.conversation.quiet(GrantRef::new(id, token), edition, fence_delay);
        self.flush(w);
    }

    fn begin_release(&mut self, w: usize, grant: GrantRef) {
        let tasks = &mut self.worker(w).tasks;
        let Some(task) = tasks.get_mut(&grant.appliance).filter(|task| task.token == grant.token) else { return };
        task.releasing = true;
        if task.running.is_none() || mutant::is(Mutant::EarlyRelease) {
            self.release(w, grant);
        }
    }

    /// Nothing acts on it any more, which is said as soon as there is a stream.
    fn release(&mut self, w: usize, grant: GrantRef) {
        let GrantRef { appliance: id, token } = grant;
        let now = self.now;
        let worker = self.worker(w);
        let carryover = Carryover { fence_delay: worker.fence_delay(now, id, token), ..Carryover::default() };
        worker.gate.dismiss(id, token);
        match worker.tasks.get_mut(&id) {
            // What runs on although it was asked to stop: only the gate holds it back.
            Some(task) if mutant::is(Mutant::GatePerWorker) || task.running.is_some() => {
                (task.releasing, task.over) = (false, true);
            }
            _ => _ = worker.tasks.remove(&id),
        }
        worker.conversation.released(grant, carryover);
    }

    /// Gives up what is to be given up and has no call that runs.
    pub(crate) fn end_releases(&mut self) {
        for w in 0..self.workers.len() {
            let due = |task: &ModelTask| task.releasing && task.running.is_none();
            let tasks = &self.workers[w].value.tasks;
            let due: Vec<GrantRef> =
                tasks.iter().filter(|(_, task)| due(task)).map(|(id, task)| GrantRef::new(*id, task.token)).collect();
            due.into_iter().for_each(|grant| self.release(w, grant));
            self.flush(w);
        }
    }

    /// A call starts.
    pub(crate) fn begin_call(&mut self, setup: &Setup, w: usize, id: ApplianceId) {
        let over = match setup.fencing {
            FencingMode::Tokens => FOREVER,
            FencingMode::FenceDelay => fence_delay_end(self.now, FENCE_DELAY),
        };
        let Some(task) = self.worker(w).tasks.get_mut(&id) else { return };
        task.running = Some(over);
        let token = task.token;
        if setup.fencing == FencingMode::FenceDelay {
            // Nobody looks at the token but the check: from now on nothing of a former owner may take effect.
            let thing = self.things.entry(id).or_default();
            *thing = (*thing).max(token);
        }
    }

    /// A call takes effect and has ended.
    pub(crate) fn end_call(&mut self, setup: &Setup, w: usize, id: ApplianceId) {
        let Some(task) = self.worker(w).tasks.get_mut(&id) else { return };
        task.running = None;
        let token = task.token;
        if task.over && !mutant::is(Mutant::GatePerWorker) {
            self.worker(w).tasks.remove(&id);
        }
        self.effect(setup, id, token);
        self.fall_quiet(w, id);
        self.end_releases();
    }

    /// The worker waits for a call no longer. It has not taken effect.
    pub(crate) fn give_up_call(&mut self, w: usize, id: ApplianceId) {
        let Some(task) = self.worker(w).tasks.get_mut(&id) else { return };
        let Some(over) = task.running.take() else { return };
        task.late = (over != FOREVER).then_some(over).max(task.late);
        let token = task.token;
        self.calls.push(PendingCall { appliance: id, token, over });
        self.fall_quiet(w, id);
        self.end_releases();
    }

    /// A call takes effect that nobody waits for.
    pub(crate) fn late_effect(&mut self, setup: &Setup, index: usize) {
        let call = self.calls.remove(index);
        self.effect(setup, call.appliance, call.token);
    }

    fn effect(&mut self, setup: &Setup, id: ApplianceId, token: Token) {
        let thing = self.things.entry(id).or_default();
        let newest = *thing;
        match setup.fencing {
            // Refused.
            FencingMode::Tokens if token < newest && !mutant::is(Mutant::BackendIgnoresTokens) => {}
            FencingMode::Tokens => {
                *thing = newest.max(token);
                if token < newest {
                    let text = format!("a call under {token} takes effect on {id} after one under {newest}");
                    self.note(Err(Wrong::new(Promise::I3, text)));
                }
            }
            FencingMode::FenceDelay => {
                if token < newest {
                    let text = format!("a call under {token} takes effect on {id} after one under {newest} started");
                    self.note(Err(Wrong::new(Promise::LateEffect, text)));
                }
            }
        }
    }
}

/// Writes when a call is over, unless it never is.
pub(crate) fn put_over(over: Option<Timestamp>, to: &mut Canon) {
    to.put(&over.is_some());
    if let Some(over) = over.filter(|over| *over != FOREVER) {
        to.until(over);
    }
}

impl Canonical for ModelWorker {
    fn canon(&self, to: &mut Canon) {
        let Self { name, runs, cut, incarnation, former, knows, conversation, gate, link, tasks, newest, term } = self;
        to.put(&(name, runs, cut));
        to.put(&(incarnation, former, knows));
        to.put(conversation);
        to.put(gate);
        to.put(&link.is_some());
        if let Some(conn) = link {
            to.conn(*conn);
        }
        to.put(&tasks.len());
        for (id, ModelTask { token, running, releasing, late, over, owes }) in tasks {
            to.put(&(id, token));
            put_over(*running, to);
            put_over(*late, to);
            to.put(&(releasing, over, owes));
        }
        to.put(newest);
        to.put(term);
    }
}
