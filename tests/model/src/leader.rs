//! A coordinator process around the machine, after `coordinator::leader` and `coordinator::leadership`: what it hears goes
//! in one by one, what comes out is carried out in order, writes go through the store one after the other.

use std::collections::VecDeque;
use std::sync::Arc;

use common::canon::{Canon, Canonical};
use common::session::{Delta, DeltaEntry, Envelope, ToWorker};
use common::{ApplianceId, Edition, Generation, Term, Token};
use coordinator_core::grants::GrantOp;
use coordinator_core::machine::{Action, BatchId, Commit, Event, HandsOff, Machine, StreamId};
use coordinator_core::modes::StoredMode;

use crate::promises::{Promise, Wrong};
use crate::service::NodeFeed;
use crate::setup::Setup;
use crate::state::{ModelState, Part};
use crate::store::Floating;
use crate::stream::{DownMessage, UpMessage};

/// What becomes of a commit whose outcome its writer does not know at first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CommitOutcome {
    /// It was made.
    Made,
    /// It was not.
    Lost,
    /// It was not when the writer looked, and may be yet.
    Late,
}

/// A coordinator that believes it leads.
#[derive(Clone, Debug)]
pub(crate) struct ModelLeader {
    pub(crate) term: Term,
    pub(crate) machine: Arc<Part<Machine>>,
    pub(crate) feed: NodeFeed,
    /// Number of its newest batch in the store, as far as it knows.
    pub(crate) written: u64,
    /// What is to be written.
    pub(crate) writes: VecDeque<(BatchId, Arc<Commit>)>,
    /// Writes that were made or lost, of which it has not heard yet.
    pub(crate) answers: VecDeque<(BatchId, Arc<Commit>, bool)>,
}

impl ModelLeader {
    /// Whether a change of the rules is being written.
    pub(crate) fn writes_rules(&self) -> bool {
        let answers = self.answers.iter().map(|(_, commit, _)| commit);
        self.writes.iter().map(|(_, commit)| commit).chain(answers).any(|commit| !commit.modes.is_empty())
    }
}

impl Canonical for ModelLeader {
    fn canon(&self, to: &mut Canon) {
        let Self { term, machine, feed, written, writes, answers } = self;
        to.put(term);
        to.put(&**machine);
        to.put(feed);
        to.place(*written);
        to.put(&(writes.len(), answers.len()));
        for (batch, commit) in writes {
            to.batch(*batch);
            to.put(&**commit);
        }
        for (batch, commit, durable) in answers {
            to.batch(*batch);
            to.put(&**commit);
            to.put(durable);
        }
    }
}

impl ModelState {
    /// A coordinator begins to lead: it raises the term, reads the store, and has yet to read the nodes.
    pub(crate) fn campaign(&mut self, setup: &Setup) {
        let (term, restored) = Part::edit(&mut self.store).begin(setup);
        let mut machine = Machine::new(setup.machine(), term, self.now, restored);
        let actions = machine.step(self.now, Event::Tick).actions;
        self.leaders.push(ModelLeader {
            term,
            machine: Part::new(machine),
            feed: NodeFeed::unread(),
            written: 0,
            writes: VecDeque::new(),
            answers: VecDeque::new(),
        });
        actions.into_iter().for_each(|action| self.carry_out(term, action, &[]));
    }

    /// Another coordinator begins to lead while the present leader lives; of what that one has submitted, the first
    /// `made` writes were made before.
    pub(crate) fn depose(&mut self, setup: &Setup, made: usize) {
        for _ in 0..made {
            let Some(leader) = self.leaders.last_mut() else { return };
            let Some((batch, commit)) = leader.writes.pop_front() else { break };
            leader.written += 1;
            leader.answers.push_back((batch, Arc::clone(&commit), true));
            let (term, number) = (leader.term, leader.written);
            let applied = Part::edit(&mut self.store).apply(term, number, &commit);
            self.note(applied);
        }
        self.campaign(setup);
    }

    /// A leader learns that it leads no more.
    pub(crate) fn step_down(&mut self, l: usize) {
        let term = self.leaders.remove(l).term;
        self.streams.iter_mut().filter(|stream| stream.term == term && stream.heard).for_each(|s| s.close(None));
    }

    /// The oldest write of a leader reaches the store, which answers.
    pub(crate) fn write(&mut self, l: usize) {
        let leader = &mut self.leaders[l];
        let Some((batch, commit)) = leader.writes.pop_front() else { return };
        let (term, number) = (leader.term, leader.written + 1);
        if !self.store.value.takes(term, number) {
            return self.step_down(l);
        }
        leader.written = number;
        let applied = Part::edit(&mut self.store).apply(term, number, &commit);
        self.note(applied);
        self.answered(l, batch, &commit, true);
    }

    /// The connection breaks while the oldest write of a leader is committed; what was submitted behind it is refused.
    pub(crate) fn lose_answer(&mut self, l: usize, outcome: CommitOutcome) {
        let leader = &mut self.leaders[l];
        let Some((batch, commit)) = leader.writes.pop_front() else { return };
        let (term, number) = (leader.term, leader.written + 1);
        let made = outcome == CommitOutcome::Made;
        leader.answers.push_back((batch, Arc::clone(&commit), made));
        let behind = std::mem::take(&mut leader.writes);
        leader.answers.extend(behind.into_iter().map(|(batch, commit)| (batch, commit, false)));
        if !self.store.value.takes(term, number) {
            return self.step_down(l);
        }
        match outcome {
            CommitOutcome::Made => {
                self.leaders[l].written = number;
                let applied = Part::edit(&mut self.store).apply(term, number, &commit);
                self.note(applied);
            }
            CommitOutcome::Lost => {}
            CommitOutcome::Late => Part::edit(&mut self.store).floating.push(Floating { term, number, commit }),
        }
    }

    /// A commit that was given up takes place, if the chain lets it.
    pub(crate) fn commit_late(&mut self, index: usize) {
        let store = Part::edit(&mut self.store);
        let Floating { term, number, commit } = store.floating.remove(index);
        if store.takes(term, number) {
            let applied = store.apply(term, number, &commit);
            self.note(applied);
        }
    }

    /// A leader hears what became of its oldest write.
    pub(crate) fn hear_answer(&mut self, l: usize) {
        if let Some((batch, commit, durable)) = self.leaders[l].answers.pop_front() {
            self.answered(l, batch, &commit, durable);
        }
    }

    fn answered(&mut self, l: usize, batch: BatchId, commit: &Commit, durable: bool) {
        if !durable {
            return self.lead(l, Event::Undone(batch), &[]);
        }
        let granted = commit.grants.iter().filter_map(|op| match op {
            GrantOp::Grant { to, .. } => Some(to.token),
            GrantOp::Free { .. } | GrantOp::Unbind { .. } | GrantOp::Remove { .. } => None,
        });
        self.lead(l, Event::Durable(batch), &granted.collect::<Vec<_>>());
    }

    /// A leader takes in one thing and looks at the time. What it offers has to be in `durable`, the grants of which it
    /// has just heard that they are stored (I4): there are too few messages under way for an offer to wait for its turn.
    pub(crate) fn lead(&mut self, l: usize, event: Event, durable: &[Token]) {
        let leader = &mut self.leaders[l];
        let term = leader.term;
        let step = self.shared.step(&leader.machine, self.now, event);
        leader.machine = step.machine;
        if let Some(wrong) = step.wrong {
            self.note(Err(Wrong::new(Promise::Checks, wrong.to_string())));
        }
        for action in step.actions.iter() {
            self.carry_out(term, action.clone(), durable);
        }
        self.look_for_answers(term);
    }

    /// Whoever set the rule that is in force is answered for what this leader says it has taken hold of.
    fn look_for_answers(&mut self, term: Term) {
        let Some(leader) = self.leaders.iter().find(|leader| leader.term == term) else { return };
        let (machine, now, rule) = (&leader.machine.value, self.now, self.store.value.rule);
        // A leader that was deposed knows of others.
        let Some(rule) = rule.filter(|rule| machine.mode_rules().any(|known| known.id.get() == u128::from(*rule)))
        else {
            return;
        };
        let is_off = |id: &ApplianceId| matches!(machine.hands_off(now, *id), Some(HandsOff::Off(_)));
        let answered: Vec<_> = machine.table().iter().map(|(_, row)| row.id).filter(is_off).collect();
        self.answered.extend(answered.into_iter().map(|id| (rule.into(), id)));
    }

    /// An operator sets a rule at a leader that has none, or clears the one it has.
    pub(crate) fn order(&mut self, l: usize) {
        let Some(leader) = self.leaders.get(l) else { return };
        let event = match leader.machine.value.mode_rules().next() {
            None => Event::SetMode(StoredMode { rule: Setup::rule(self.orders), expires_in: None }, 0),
            Some(rule) => Event::ClearMode(rule.id, 0),
        };
        self.orders -= 1;
        self.lead(l, event, &[]);
    }

    fn carry_out(&mut self, term: Term, action: Action, durable: &[Token]) {
        let Some(l) = self.leaders.iter().position(|leader| leader.term == term) else { return };
        match action {
            Action::Commit(batch, commit) => self.leaders[l].writes.push_back((batch, Arc::new(commit))),
            Action::Send(conn, from, message) => {
                if let ToWorker::Delta(delta) = &message {
                    for entry in &delta.entries {
                        if let DeltaEntry::Grant { token, .. } = entry
                            && !durable.contains(token)
                        {
                            let text = format!("{token} is offered, of which the store did not say that it has it");
                            self.note(Err(Wrong::new(Promise::I4, text)));
                        }
                    }
                }
                self.send(conn, from, message);
            }
            Action::Close(conn, why) => {
                if let Some(stream) = self.streams.iter_mut().find(|s| s.conn == conn && s.heard) {
                    stream.close(Some(why));
                }
            }
            Action::Violation(text) => self.note(Err(Wrong::new(Promise::Contradiction, text))),
            Action::RaiseTerm(_) => self.step_down(l),
            Action::Evict(life) => self.evict(&life),
            // For readers.
            Action::Reports(_)
            | Action::Assigned(_)
            | Action::Removed(_)
            | Action::Unbind(..)
            | Action::Mode(..)
            | Action::ModesChanged
            | Action::WorkerChanged(_)
            | Action::Gone(..)
            | Action::Met(_)
            | Action::Rebalance(_)
            | Action::Quarantined(..) => {}
        }
    }

    fn send(&mut self, conn: StreamId, from: Envelope, message: ToWorker<()>) {
        let Some(stream) = self.streams.iter_mut().find(|s| s.conn == conn && s.heard) else { return };
        if let ToWorker::Welcome(_) = &message {
            stream.envelope = Some(from);
        }
        // Before the welcome a worker takes nothing.
        if stream.envelope.is_none() || !stream.read {
            return;
        }
        let message = match message {
            ToWorker::Welcome(welcome) => ToWorker::Welcome(welcome),
            ToWorker::Delta(Delta { base, target, rebalance, entries }) => {
                let entries = entries.into_iter().filter_map(taken).collect();
                ToWorker::Delta(Delta { base, target, rebalance, entries })
            }
            ToWorker::Confirm(confirm) if !confirm.released.is_empty() => ToWorker::Confirm(confirm),
            // Steps are not announced here, beats are not on the stream, and no worker drains.
            ToWorker::BeatAck(_) | ToWorker::Confirm(_) | ToWorker::Refused(_) | ToWorker::Drained => return,
        };
        stream.down.push_back(DownMessage { from, message });
    }

    /// The oldest message of a stream reaches the leader.
    pub(crate) fn deliver_up(&mut self, conn: StreamId) {
        let Some(at) = self.streams.iter().position(|s| s.conn == conn) else { return };
        let stream = &mut self.streams[at];
        let term = stream.term;
        let event = match stream.up.pop_front() {
            Some(UpMessage::Message(from, message)) => Event::Received(conn, from, message),
            Some(UpMessage::End) => {
                stream.close(None);
                Event::Closed(conn)
            }
            None => return,
        };
        if let Some(l) = self.leaders.iter().position(|leader| leader.term == term) {
            self.lead(l, event, &[]);
        }
    }

    /// The leader's side of a stream breaks: what was on its way to it is lost.
    pub(crate) fn lose_stream(&mut self, conn: StreamId) {
        let Some(stream) = self.streams.iter_mut().find(|s| s.conn == conn) else { return };
        stream.close(None);
        let term = stream.term;
        if let Some(l) = self.leaders.iter().position(|leader| leader.term == term) {
            self.lead(l, Event::Closed(conn), &[]);
        }
    }
}

/// What a worker takes from one entry. Whether an appliance is suspect is not said: workers announce no steps here.
fn taken(entry: DeltaEntry<()>) -> Option<DeltaEntry<Edition>> {
    match entry {
        DeltaEntry::Grant { appliance, token, desired: (), carryover, suspect: _, mode } => {
            let desired = Edition::new(Generation::new(1), Term::new(1));
            Some(DeltaEntry::Grant { appliance, token, desired, carryover, suspect: false, mode })
        }
        DeltaEntry::Mode { appliance, token, mode } => Some(DeltaEntry::Mode { appliance, token, mode }),
        DeltaEntry::Release(grant) => Some(DeltaEntry::Release(grant)),
        // Nothing changes, and no client asks for a check.
        DeltaEntry::Update { .. } | DeltaEntry::Check { .. } => None,
    }
}
