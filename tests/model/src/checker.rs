//! The model as `stateright` sees it: what can happen in a state, and what comes of it.

use common::ApplianceId;
use common::Life;
use common::mutant;
use common::session::ToCoordinator;
use coordinator_core::machine::StreamId;
use stateright::{Model, Property};

use crate::leader::Outcome;
use crate::promises;
use crate::setup::{Fault, Setup};
use crate::state::State;
use crate::stream::Up;

/// Something that happens. Workers and leaders are told by their place, leaders by the order of their terms.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// A step of time passes.
    Pass,
    /// A leader is told the next change of the nodes, or reads all of them.
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
    Unknown(usize, Outcome),
    /// Fault: another coordinator begins to lead, after so many writes of the present leader were made.
    Depose(usize),
    /// Fault: a worker waits for a call no longer.
    GiveUp(usize, ApplianceId),
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
    fn course(&self, state: &State, to: &mut Vec<Action>) {
        let newest = state.store.value.term;
        for (l, leader) in state.leaders.iter().enumerate() {
            if leader.feed.unread || !leader.feed.news.is_empty() {
                to.push(Action::Told(l));
            }
            if !leader.answers.is_empty() {
                to.push(Action::Answer(l));
            } else if !leader.writes.is_empty() {
                to.push(Action::Write(l));
            }
            if leader.term < newest {
                to.push(Action::StepDown(l));
            }
        }
        if state.leader().is_none() {
            to.push(Action::Campaign);
        }
        to.extend((0..state.store.value.floating.len()).map(Action::CommitLate));
        for stream in &state.streams {
            if stream.heard && !stream.up.is_empty() {
                to.push(Action::Up(stream.conn));
            }
            if !stream.down.is_empty() {
                to.push(Action::Down(stream.conn));
            }
        }
        for (w, worker) in state.workers.iter().enumerate() {
            let worker = &worker.value;
            if !worker.runs {
                if self.setup.restart {
                    to.push(Action::Restart(w));
                }
                continue;
            }
            if worker.cut {
                to.push(Action::Heal(w));
            }
            match worker.life() {
                None => {
                    let in_the_way = state
                        .nodes
                        .keys()
                        .any(|life| life.worker == worker.name && Some(life.incarnation) != worker.former);
                    if !worker.cut && !in_the_way {
                        to.push(Action::Join(w));
                    }
                }
                Some(life) => {
                    if !worker.cut && !state.nodes.contains_key(&life) {
                        to.push(Action::Notice(w));
                    }
                    match worker.link {
                        None => {
                            let known = state.leaders.iter().enumerate().filter(|(_, l)| l.term >= worker.knows);
                            to.extend(known.map(|(l, _)| Action::Connect(w, l)));
                        }
                        Some(conn) => {
                            let term = state.streams.iter().find(|s| s.conn == conn).map(|s| s.term);
                            if term.is_some_and(|term| term < newest) && state.leader().is_some() {
                                to.push(Action::Move(w));
                            }
                        }
                    }
                }
            }
            for (id, task) in &worker.tasks {
                if task.running.is_some() {
                    to.push(Action::End(w, *id));
                }
            }
        }
        for (life, nodes) in &state.nodes {
            if state.workers[nodes.worker].value.life().as_ref() != Some(life) {
                to.push(Action::Expire(life.clone()));
            }
        }
    }

    /// What may happen at any time and need not.
    fn calls(&self, state: &State, to: &mut Vec<Action>) {
        for (w, worker) in state.workers.iter().enumerate() {
            for id in worker.value.tasks.keys() {
                if worker.value.may_begin(state.now, *id, self.setup.fencing) {
                    to.push(Action::Begin(w, *id));
                }
            }
        }
        to.extend((0..state.calls.len()).map(Action::Effect));
    }

    fn faults(&self, state: &State, to: &mut Vec<Action>) {
        let allows = |fault| self.setup.allows(fault);
        for (w, worker) in state.workers.iter().enumerate().filter(|(_, worker)| worker.value.runs) {
            let worker = &worker.value;
            if allows(Fault::Crash) {
                to.push(Action::Crash(w));
            }
            let nodes = worker.life().and_then(|life| state.nodes.get(&life));
            if nodes.is_some() && allows(Fault::LeaseEnd) {
                to.push(Action::LeaseEnd(w));
            }
            if nodes.is_some_and(|nodes| nodes.member) && allows(Fault::NodeDeleted) {
                to.push(Action::DeleteMember(w));
            }
            if !worker.cut && allows(Fault::Cut) {
                to.push(Action::Cut(w));
            }
            if allows(Fault::Late) {
                let running = worker.tasks.iter().filter(|(_, task)| task.running.is_some());
                to.extend(running.map(|(id, _)| Action::GiveUp(w, *id)));
            }
        }
        for stream in state.streams.iter().filter(|s| s.read && s.heard && allows(Fault::Break)) {
            // A stream that breaks before anything arrived is one that was never opened, unless its first word is late.
            to.push(Action::Break(stream.conn));
            if !matches!(stream.up.front(), Some(Up::Message(_, ToCoordinator::Hello(_)))) {
                to.push(Action::Lose(stream.conn));
            }
        }
        for (l, leader) in state.leaders.iter().enumerate() {
            if allows(Fault::LeaderCut) && !leader.feed.unread {
                to.push(Action::CutLeader(l));
            }
            if allows(Fault::Unknown) && !leader.writes.is_empty() && leader.answers.is_empty() {
                to.extend([Outcome::Made, Outcome::Lost, Outcome::Late].map(|outcome| Action::Unknown(l, outcome)));
            }
        }
        if allows(Fault::Deposed)
            && state.leaders.len() == 1
            && let Some(leader) = state.leader()
        {
            let writes = if leader.answers.is_empty() { leader.writes.len() } else { 0 };
            to.extend((0..=writes).map(Action::Depose));
        }
    }

    fn carry_out(&self, state: &mut State, action: &Action) {
        let setup = &self.setup;
        match action {
            Action::Pass => state.pass(setup),
            Action::Told(l) => state.tell(setup, *l),
            Action::Write(l) => state.write(*l),
            Action::Answer(l) => state.hear_answer(*l),
            Action::CommitLate(index) => state.commit_late(*index),
            Action::Up(conn) => state.deliver_up(*conn),
            Action::Down(conn) => state.deliver_down(*conn),
            Action::Connect(w, l) => state.connect(setup, *w, *l),
            Action::Move(w) => state.turn(*w),
            Action::Join(w) => state.join(*w),
            Action::Notice(w) => state.end_life(*w),
            Action::Expire(life) => state.delete_nodes(life),
            Action::Restart(w) => state.restart(*w),
            Action::Heal(w) => state.worker(*w).cut = false,
            Action::Begin(w, id) => state.begin_call(setup, *w, *id),
            Action::End(w, id) => state.end_call(setup, *w, *id),
            Action::Effect(index) => state.late_effect(setup, *index),
            Action::StepDown(l) => state.step_down(*l),
            Action::Campaign => state.campaign(setup),
            Action::Crash(w) => state.crash(*w),
            Action::LeaseEnd(w) => {
                if let Some(life) = state.workers[*w].value.life() {
                    state.delete_nodes(&life);
                }
            }
            Action::DeleteMember(w) => {
                if let Some(life) = state.workers[*w].value.life() {
                    state.delete_member(&life);
                }
            }
            Action::Break(conn) => {
                if let Some(w) = state.streams.iter().find(|s| s.conn == *conn).map(|s| s.worker) {
                    state.leave_stream(w, true);
                }
            }
            Action::Lose(conn) => state.lose_stream(*conn),
            Action::Cut(w) => state.worker(*w).cut = true,
            Action::CutLeader(l) => state.cut_leader(*l),
            Action::Unknown(l, outcome) => state.lose_answer(*l, *outcome),
            Action::Depose(made) => state.depose(setup, *made),
            Action::GiveUp(w, id) => state.give_up_call(*w, *id),
        }
        state.tidy();
    }

    fn follow(&self, state: &State, action: &Action) -> State {
        let mut next = state.clone();
        if is_fault(action) {
            next.budget -= 1;
        }
        if *action == Action::Pass && state.is_busy() {
            next.delay -= 1;
        }
        self.carry_out(&mut next, action);
        if !next.is_busy() {
            next.delay = self.setup.delay;
        }
        next
    }

    /// Whether nothing but faults and calls can change this state any more, not even time.
    pub(crate) fn rests(&self, state: &State) -> bool {
        let mut course = Vec::new();
        self.course(state, &mut course);
        course.is_empty() && mutant::with(self.setup.mutant, || self.follow(state, &Action::Pass)) == *state
    }

    /// Lets everything go on without a fault until it comes to rest, or has broken a promise. What does neither is given
    /// back as it is after far more steps than it should take.
    pub(crate) fn rest_of(&self, mut state: State) -> State {
        const STEPS: usize = 1_000;
        for _ in 0..STEPS {
            let mut course = Vec::new();
            self.course(&state, &mut course);
            // Nothing is promised that depends on the order, so any order will do.
            let action = course.into_iter().next().unwrap_or(Action::Pass);
            if action == Action::Pass && self.rests(&state) {
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
    fn settled(&self) -> State {
        self.rest_of(State::new(&self.setup))
    }
}

const fn is_fault(action: &Action) -> bool {
    matches!(
        action,
        Action::Crash(_)
            | Action::LeaseEnd(_)
            | Action::DeleteMember(_)
            | Action::Break(_)
            | Action::Lose(_)
            | Action::Cut(_)
            | Action::CutLeader(_)
            | Action::Unknown(..)
            | Action::Depose(_)
            | Action::GiveUp(..)
    )
}

impl Model for Hypothesis {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        mutant::with(self.setup.mutant, || vec![self.settled()])
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        if state.wrong.is_some() {
            // What follows a broken promise tells nothing more.
            return;
        }
        mutant::with(self.setup.mutant, || {
            self.course(state, actions);
            if self.setup.calls {
                self.calls(state, actions);
            }
            if state.delay > 0 {
                actions.push(Action::Pass);
            }
            if state.budget > 0 {
                self.faults(state, actions);
            }
        });
    }

    fn next_state(&self, state: &State, action: Action) -> Option<State> {
        mutant::with(self.setup.mutant, || Some(self.follow(state, &action)))
    }

    fn properties(&self) -> Vec<Property<Self>> {
        promises::properties()
    }
}
