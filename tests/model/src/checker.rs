//! The model as `stateright` sees it: what can happen in a state, and what comes of it.

use std::time::Duration;

use common::ApplianceId;
use common::Life;
use common::mutant;
use common::session::ToCoordinator;
use coordinator_core::machine::{Event, StreamId};
use stateright::{Model, Property};

use crate::leader::{CommitOutcome, ModelLeader};
use crate::promises;
use crate::setup::{Fault, Setup};
use crate::state::ModelState;
use crate::stranger::StrangerWords;
use crate::stream::UpMessage;

/// How long a witnessed death is held back.
const GATHER: Duration = Duration::from_millis(100);

/// Something that happens. Workers are named by their index, leaders by the order of their terms.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModelAction {
    /// A step of time passes.
    Pass,
    /// A leader hears of the next change of the nodes, or reads all of them.
    Told(usize),
    /// The oldest write of a leader is made, or refused to it for ever.
    Write(usize),
    /// A leader hears what became of its oldest write.
    Answer(usize),
    /// A commit that was given up takes place, if the chain lets it.
    CommitLate(usize),
    /// The oldest message of a stream reaches the leader.
    Up(StreamId),
    /// The oldest message of a stream reaches the worker.
    Down(StreamId),
    /// A worker opens a stream to a leader.
    Connect(usize, usize),
    /// A worker leaves the stream to a leader whose successor it knows.
    Move(usize),
    /// A worker makes its nodes.
    Join(usize),
    /// A worker learns that its nodes are gone.
    Notice(usize),
    /// The session of a life that nobody keeps is over.
    Expire(Life),
    /// A killed worker is started anew.
    Restart(usize),
    /// A worker reaches the service again.
    Heal(usize),
    /// A call starts.
    Begin(usize, ApplianceId),
    /// A call takes effect and ends.
    End(usize, ApplianceId),
    /// A call that nobody waits for takes effect.
    Effect(usize),
    /// A leader learns that it leads no more.
    StepDown(usize),
    /// A coordinator begins to lead because nobody does.
    Campaign,
    /// An operator sets or clears a debug mode at a leader.
    Order(usize),
    /// Fault: a worker is killed.
    Crash(usize),
    /// Fault: the session of a worker that lives is over.
    LeaseEnd(usize),
    /// Fault: somebody deletes the member node of a worker.
    DeleteMember(usize),
    /// Fault: a stream breaks, and what was on it may still arrive.
    Break(StreamId),
    /// Fault: a stream breaks at the leader's end first.
    Lose(StreamId),
    /// Fault: a worker does not reach the service any more.
    Cut(usize),
    /// Fault: a leader has to connect to the service anew.
    CutLeader(usize),
    /// Fault: the outcome of the oldest write of a leader is not known to it.
    Unknown(usize, CommitOutcome),
    /// Fault: another coordinator begins to lead, after so many writes of the present leader were made.
    Depose(usize),
    /// Fault: a worker waits for a call no longer.
    GiveUp(usize, ApplianceId),
    /// Fault: somebody says this to a leader in the name of a worker.
    Stranger(usize, usize, StrangerWords),
    /// A leader hears of a witness that the process of a life has ended.
    Witness(usize, Life),
}

/// A model to be checked.
#[derive(Clone, Debug)]
pub struct Hypothesis {
    pub(crate) setup: Setup,
}

impl Hypothesis {
    /// The model of this setup.
    #[must_use]
    pub const fn new(setup: Setup) -> Self {
        Self { setup }
    }

    /// What happens without any fault, but for time and calls.
    fn course(&self, state: &ModelState, to: &mut Vec<ModelAction>) {
        let newest = state.store.value.term;
        for (l, leader) in state.leaders.iter().enumerate() {
            if leader.feed.unread || !leader.feed.news.is_empty() {
                to.push(ModelAction::Told(l));
            }
            if !leader.answers.is_empty() {
                to.push(ModelAction::Answer(l));
            } else if !leader.writes.is_empty() {
                to.push(ModelAction::Write(l));
            }
            if leader.term < newest {
                to.push(ModelAction::StepDown(l));
            }
        }
        if state.leader().is_none() {
            to.push(ModelAction::Campaign);
        }
        to.extend((0..state.store.value.floating.len()).map(ModelAction::CommitLate));
        for stream in &state.streams {
            if stream.heard && !stream.up.is_empty() {
                to.push(ModelAction::Up(stream.conn));
            }
            if !stream.down.is_empty() {
                to.push(ModelAction::Down(stream.conn));
            }
        }
        for (w, worker) in state.workers.iter().enumerate() {
            let worker = &worker.value;
            if !worker.runs {
                if self.setup.restart {
                    to.push(ModelAction::Restart(w));
                }
                continue;
            }
            if worker.cut {
                to.push(ModelAction::Heal(w));
            }
            match worker.life() {
                None => {
                    let in_the_way = state
                        .nodes
                        .keys()
                        .any(|life| life.worker == worker.name && Some(life.incarnation) != worker.former);
                    if !worker.cut && !in_the_way {
                        to.push(ModelAction::Join(w));
                    }
                }
                Some(life) => {
                    if !worker.cut && !state.nodes.contains_key(&life) {
                        to.push(ModelAction::Notice(w));
                    }
                    match worker.link {
                        None => {
                            let known = state.leaders.iter().enumerate().filter(|(_, l)| l.term >= worker.knows);
                            to.extend(known.map(|(l, _)| ModelAction::Connect(w, l)));
                        }
                        Some(conn) => {
                            let term = state.streams.iter().find(|s| s.conn == conn).map(|s| s.term);
                            if term.is_some_and(|term| term < newest) && state.leader().is_some() {
                                to.push(ModelAction::Move(w));
                            }
                        }
                    }
                }
            }
            for (id, task) in &worker.tasks {
                if task.running.is_some() {
                    to.push(ModelAction::End(w, *id));
                }
            }
        }
        for (life, nodes) in &state.nodes {
            if state.workers[nodes.worker].value.life().as_ref() != Some(life) {
                to.push(ModelAction::Expire(life.clone()));
            }
        }
    }

    /// Witnesses may tell of an end at any time, and more than one leader; they need not.
    fn witnesses(&self, state: &ModelState, to: &mut Vec<ModelAction>) {
        for life in &state.ended {
            let news = |(_, leader): &(usize, &ModelLeader)| leader.machine.value.would_hear_witness(life);
            let leaders = state.leaders.iter().enumerate().filter(news);
            to.extend(leaders.map(|(l, _)| ModelAction::Witness(l, life.clone())));
        }
    }

    /// What may happen at any time and need not.
    fn calls(&self, state: &ModelState, to: &mut Vec<ModelAction>) {
        for (w, worker) in state.workers.iter().enumerate() {
            for id in worker.value.tasks.keys() {
                if worker.value.may_begin(state.now, *id, self.setup.fencing) {
                    to.push(ModelAction::Begin(w, *id));
                }
            }
        }
        to.extend((0..state.calls.len()).map(ModelAction::Effect));
    }

    fn faults(&self, state: &ModelState, to: &mut Vec<ModelAction>) {
        let allows = |fault| self.setup.allows(fault);
        for (w, worker) in state.workers.iter().enumerate().filter(|(_, worker)| worker.value.runs) {
            let worker = &worker.value;
            if allows(Fault::Crash) {
                to.push(ModelAction::Crash(w));
            }
            let nodes = worker.life().and_then(|life| state.nodes.get(&life));
            if nodes.is_some() && allows(Fault::LeaseEnd) {
                to.push(ModelAction::LeaseEnd(w));
            }
            if nodes.is_some_and(|nodes| nodes.member) && allows(Fault::NodeDeleted) {
                to.push(ModelAction::DeleteMember(w));
            }
            if !worker.cut && allows(Fault::Cut) {
                to.push(ModelAction::Cut(w));
            }
            if allows(Fault::Late) {
                let running = worker.tasks.iter().filter(|(_, task)| task.running.is_some());
                to.extend(running.map(|(id, _)| ModelAction::GiveUp(w, *id)));
            }
        }
        for stream in state.streams.iter().filter(|s| s.read && s.heard && allows(Fault::Break)) {
            // A stream that breaks before anything arrived is one that was never opened, unless its first word is late.
            to.push(ModelAction::Break(stream.conn));
            if !matches!(stream.up.front(), Some(UpMessage::Message(_, ToCoordinator::Hello(_)))) {
                to.push(ModelAction::Lose(stream.conn));
            }
        }
        for (l, leader) in state.leaders.iter().enumerate() {
            if allows(Fault::LeaderCut) && !leader.feed.unread {
                to.push(ModelAction::CutLeader(l));
            }
            if allows(Fault::Unknown) && !leader.writes.is_empty() && leader.answers.is_empty() {
                to.extend(
                    [CommitOutcome::Made, CommitOutcome::Lost, CommitOutcome::Late]
                        .map(|outcome| ModelAction::Unknown(l, outcome)),
                );
            }
        }
        if allows(Fault::Stranger) {
            for (w, _) in state.workers.iter().enumerate().filter(|(_, worker)| worker.value.life().is_some()) {
                for l in 0..state.leaders.len() {
                    to.extend(StrangerWords::ALL.map(|words| ModelAction::Stranger(l, w, words)));
                }
            }
        }
        if allows(Fault::Deposed)
            && state.leaders.len() == 1
            && let Some(leader) = state.leader()
        {
            let writes = if leader.answers.is_empty() { leader.writes.len() } else { 0 };
            to.extend((0..=writes).map(ModelAction::Depose));
        }
    }

    fn carry_out(&self, state: &mut ModelState, action: &ModelAction) {
        let setup = &self.setup;
        match action {
            ModelAction::Pass => state.pass(setup),
            ModelAction::Told(l) => state.tell(setup, *l),
            ModelAction::Write(l) => state.write(*l),
            ModelAction::Answer(l) => state.hear_answer(*l),
            ModelAction::CommitLate(index) => state.commit_late(*index),
            ModelAction::Up(conn) => state.deliver_up(*conn),
            ModelAction::Down(conn) => state.deliver_down(*conn),
            ModelAction::Connect(w, l) => state.connect(setup, *w, *l),
            ModelAction::Move(w) => state.turn(*w),
            ModelAction::Join(w) => state.join(*w),
            ModelAction::Notice(w) => state.end_life(*w),
            ModelAction::Expire(life) => state.delete_nodes(life),
            ModelAction::Restart(w) => state.restart(*w),
            ModelAction::Heal(w) => state.worker(*w).cut = false,
            ModelAction::Begin(w, id) => state.begin_call(setup, *w, *id),
            ModelAction::End(w, id) => state.end_call(setup, *w, *id),
            ModelAction::Effect(index) => state.late_effect(setup, *index),
            ModelAction::StepDown(l) => state.step_down(*l),
            ModelAction::Campaign => state.campaign(setup),
            ModelAction::Crash(w) => {
                if setup.allows(Fault::Witness) {
                    state.ended.extend(state.workers[*w].value.life());
                }
                state.crash(*w);
            }
            ModelAction::Order(l) => state.order(*l),
            ModelAction::LeaseEnd(w) => {
                if let Some(life) = state.workers[*w].value.life() {
                    state.delete_nodes(&life);
                }
            }
            ModelAction::DeleteMember(w) => {
                if let Some(life) = state.workers[*w].value.life() {
                    state.delete_member(&life);
                }
            }
            ModelAction::Break(conn) => {
                if let Some(w) = state.streams.iter().find(|s| s.conn == *conn).map(|s| s.worker) {
                    state.leave_stream(w, true);
                }
            }
            ModelAction::Lose(conn) => state.lose_stream(*conn),
            ModelAction::Cut(w) => state.worker(*w).cut = true,
            ModelAction::CutLeader(l) => state.cut_leader(*l),
            ModelAction::Unknown(l, outcome) => state.lose_answer(*l, *outcome),
            ModelAction::Depose(made) => state.depose(setup, *made),
            ModelAction::GiveUp(w, id) => state.give_up_call(*w, *id),
            ModelAction::Stranger(l, w, words) => state.hear_stranger(setup, *l, *w, *words),
            ModelAction::Witness(l, life) => state.lead(*l, Event::Witnessed(life.clone(), GATHER), &[]),
        }
        state.tidy();
    }

    fn follow(&self, state: &ModelState, action: &ModelAction) -> ModelState {
        let mut next = state.clone();
        if is_fault(action) {
            next.budget -= 1;
        }
        if *action == ModelAction::Pass && state.is_busy() {
            next.delay -= 1;
        }
        self.carry_out(&mut next, action);
        if !next.is_busy() {
            next.delay = self.setup.delay;
        }
        next
    }

    /// Whether nothing but faults and calls can change this state any more, not even time.
    pub(crate) fn rests(&self, state: &ModelState) -> bool {
        let mut course = Vec::new();
        self.course(state, &mut course);
        course.is_empty() && mutant::with(self.setup.mutant, || self.follow(state, &ModelAction::Pass)) == *state
    }

    /// Lets everything go on without a fault until it comes to rest, or has broken a promise. What does neither is given
    /// back as it is after far more steps than it should take.
    pub(crate) fn rest_of(&self, mut state: ModelState) -> ModelState {
        const STEPS: usize = 1_000;
        for _ in 0..STEPS {
            let mut course = Vec::new();
            self.course(&state, &mut course);
            // Nothing is promised that depends on the order, so any order will do.
            let action = course.into_iter().next().unwrap_or(ModelAction::Pass);
            if action == ModelAction::Pass && self.rests(&state) {
                break;
            }
            self.carry_out(&mut state, &action);
            // Nothing is made to wait here.
            state.delay = self.setup.delay;
            if state.wrong.is_some() {
                break;
            }
        }
        state
    }

    /// The state in which a run begins: everybody has joined, and everything has an owner.
    fn settled(&self) -> ModelState {
        self.rest_of(ModelState::new(&self.setup))
    }
}

const fn is_fault(action: &ModelAction) -> bool {
    matches!(
        action,
        ModelAction::Crash(_)
            | ModelAction::LeaseEnd(_)
            | ModelAction::DeleteMember(_)
            | ModelAction::Break(_)
            | ModelAction::Lose(_)
            | ModelAction::Cut(_)
            | ModelAction::CutLeader(_)
            | ModelAction::Unknown(..)
            | ModelAction::Depose(_)
            | ModelAction::GiveUp(..)
            | ModelAction::Stranger(..)
    )
}

impl Model for Hypothesis {
    type State = ModelState;
    type Action = ModelAction;

    fn init_states(&self) -> Vec<ModelState> {
        mutant::with(self.setup.mutant, || vec![self.settled()])
    }

    fn actions(&self, state: &ModelState, actions: &mut Vec<ModelAction>) {
        if state.wrong.is_some() {
            // What follows a broken promise tells nothing more.
            return;
        }
        mutant::with(self.setup.mutant, || {
            self.course(state, actions);
            if self.setup.calls {
                self.calls(state, actions);
            }
            self.witnesses(state, actions);
            if state.orders > 0 {
                let ready = state.leaders.iter().enumerate().filter(|(_, leader)| !leader.writes_rules());
                actions.extend(ready.map(|(l, _)| ModelAction::Order(l)));
            }
            if state.delay > 0 {
                actions.push(ModelAction::Pass);
            }
            if state.budget > 0 {
                self.faults(state, actions);
            }
        });
    }

    fn next_state(&self, state: &ModelState, action: ModelAction) -> Option<ModelState> {
        mutant::with(self.setup.mutant, || Some(self.follow(state, &action)))
    }

    fn properties(&self) -> Vec<Property<Self>> {
        promises::properties()
    }
}
