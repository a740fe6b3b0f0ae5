//! Scenarios of the whole machine with an obedient store and hand-written workers. What chance may do to it is the
//! simulator's part.

mod audited;
mod external;
mod held;
mod offers;
mod passing;
mod regressions;
mod strangers;

use crate::grants::GrantOp;
use crate::membership::ObservedLease;
use crate::rebalance::RebalanceEvent;
use common::driver::{DriverCapabilities, DriverName, DriverOffers};
use common::kind::KindName;
use common::secret::LifeSecret;
use common::session::{
    Ack, AnnouncedStep, Declined, Delta, DeltaEntry, Envelope, GrantRef, Hello, OwnedDigest, OwnedGrant, Release,
    Report, StatusReport, ToCoordinator,
};
use common::status::Progress;
use common::{ApplianceId, Edition, Generation, Incarnation, StreamNumber};
use std::collections::BTreeMap;

use super::*;
use crate::checks;
use crate::planner::{Assumptions, Needs, PlanRefused};

pub(super) const L: Duration = Duration::from_secs(2);

pub(super) fn id(n: u128) -> ApplianceId {
    ApplianceId::from_u128(n)
}

pub(super) fn worker(name: &str) -> WorkerId {
    WorkerId::new(name).expect("valid")
}

/// The secret of the lives of this worker.
pub(super) fn secret(name: &str) -> LifeSecret {
    let mut bytes = [0; 32];
    bytes.iter_mut().zip(name.bytes()).for_each(|(byte, of)| *byte = of);
    LifeSecret::new(bytes)
}

pub(super) fn profile() -> Profile {
    Profile {
        weight: 1,
        zone: String::new(),
        host: "h1".into(),
        drivers: DriverOffers::from([
            (DriverName::process(), DriverCapabilities::of_all_kinds(Some(""))),
            (DriverName::simulated(), DriverCapabilities::of_all_kinds(None)),
        ]),
        version: "0".into(),
        pid: 1,
        lease: L,
    }
}

/// The n-th generation, as the first term wrote it.
pub(super) fn edition(n: u64) -> Edition {
    Edition::new(Generation::new(n), Term::new(1))
}

pub(super) fn seed(n: u128) -> Seed {
    Seed {
        id: id(n),
        placement_key: id(n).to_string(),
        needs: Needs { driver: DriverName::simulated(), kind: KindName::Custom, site: None },
        edition: edition(1),
        size: 100,
        deleting: false,
    }
}

/// A worker of the test: takes every offer, gives up what it is asked for.
#[derive(Debug, Default, Clone)]
pub(super) struct Puppet {
    pub(super) conn: StreamId,
    pub(super) incarnation: Option<Incarnation>,
    pub(super) stream: StreamNumber,
    pub(super) version: u64,
    pub(super) held: BTreeMap<ApplianceId, Token>,
    pub(super) beats: u64,
}

/// A worker without a life, on its first stream.
pub(super) fn newcomer() -> Puppet {
    Puppet { stream: StreamNumber::new(1), ..Puppet::default() }
}

pub(super) struct World {
    pub(super) machine: Machine,
    pub(super) now: Timestamp,
    pub(super) puppets: BTreeMap<WorkerId, Puppet>,
    /// Commits are answered at once unless this holds them back.
    pub(super) hold_commits: bool,
    pub(super) commits: Vec<(BatchId, Commit)>,
    pub(super) sent: Vec<(StreamId, ToWorker<()>)>,
    pub(super) closed: Vec<(StreamId, Refusal)>,
    pub(super) events: Vec<RebalanceEvent>,
    pub(super) removed: Vec<ApplianceId>,
    pub(super) unbound: Vec<Result<Option<common::Site>, UnbindRefused>>,
    pub(super) raised: Option<Term>,
    pub(super) violations: Vec<String>,
    pub(super) quarantined: Vec<(ApplianceId, u32)>,
    pub(super) evicted: Vec<Life>,
    pub(super) gone: Vec<(Life, Timestamp)>,
    pub(super) regained: Vec<Duration>,
    pub(super) reports: Vec<StatusReport>,
    /// Every commit that was made, whether it was held back or not.
    pub(super) stored: Vec<Commit>,
    pub(super) next_conn: StreamId,
    pub(super) term: Term,
}

impl World {
    pub(super) fn new(restored: Restored) -> Self {
        Self::in_term(Term::new(1), restored)
    }

    pub(super) fn in_term(term: Term, restored: Restored) -> Self {
        Self::with(Config::default(), term, restored)
    }

    pub(super) fn with(config: Config, term: Term, restored: Restored) -> Self {
        let now = Timestamp::from_millis(1_000_000);
        Self {
            machine: Machine::new(config, term, now, restored),
            now,
            puppets: BTreeMap::new(),
            hold_commits: false,
            commits: vec![],
            sent: vec![],
            closed: vec![],
            events: vec![],
            removed: vec![],
            unbound: vec![],
            raised: None,
            violations: vec![],
            quarantined: vec![],
            evicted: vec![],
            gone: vec![],
            regained: vec![],
            reports: vec![],
            stored: vec![],
            next_conn: 1,
            term,
        }
    }

    pub(super) fn step(&mut self, event: Event) {
        let output = self.machine.step(self.now, event);
        let wrong = checks::machine(&self.machine);
        assert_eq!(wrong, Vec::<String>::new());
        self.regained.extend(output.regained);
        for action in output.actions {
            match action {
                Action::Commit(batch, commit) if self.hold_commits => self.commits.push((batch, commit)),
                Action::Commit(batch, commit) => {
                    self.stored.push(commit);
                    self.step(Event::Durable(batch));
                }
                Action::Send(conn, from, message) => self.deliver(conn, from, message),
                Action::Reports(statuses) => self.reports.extend(statuses),
                Action::Close(conn, refusal) => self.closed.push((conn, refusal)),
                Action::Rebalance(events) => self.events.push(events),
                Action::Removed(id) => self.removed.push(id),
                Action::Unbind(_, answer) => self.unbound.push(answer),
                Action::RaiseTerm(term) => self.raised = Some(term),
                Action::Violation(text) => self.violations.push(text),
                Action::Quarantined(id, strikes) => self.quarantined.push((id, strikes)),
                Action::Evict(life) => self.evicted.push(life),
                Action::Gone(life, at) => self.gone.push((life, at)),
                Action::Assigned(_) | Action::WorkerChanged(_) | Action::Met(_) => {}
            }
        }
    }

    /// A worker hears something and does as it is told.
    pub(super) fn deliver(&mut self, conn: StreamId, from: Envelope, message: ToWorker<()>) {
        self.sent.push((conn, message.clone()));
        let Some(puppet) = self.puppets.values_mut().find(|p| p.conn == conn) else { return };
        match message {
            ToWorker::Welcome(welcome) => {
                puppet.incarnation = from.incarnation;
                puppet.version = 0;
                puppet.held.retain(|id, token| welcome.keep.contains(&GrantRef::new(*id, *token)));
            }
            ToWorker::Delta(Delta { base, target, entries, .. }) => {
                assert_eq!(base, puppet.version, "deltas chain");
                puppet.version = target;
                let mut answers = Ack { applied: target, ..Ack::default() };
                for entry in entries {
                    match entry {
                        DeltaEntry::Grant { appliance, token, .. } => {
                            assert!(puppet.held.insert(appliance, token).is_none(), "granted twice");
                            answers.granted.push(GrantRef::new(appliance, token));
                        }
                        DeltaEntry::Release(GrantRef { appliance, token }) => {
                            assert_eq!(puppet.held.remove(&appliance), Some(token));
                            answers.released.push(Release { appliance, token, carryover: Carryover::default() });
                        }
                        DeltaEntry::Update { .. } | DeltaEntry::Check { .. } => {}
                    }
                }
                let envelope = self.envelope(conn);
                self.step(Event::Received(conn, envelope, ToCoordinator::Ack(answers)));
            }
            ToWorker::BeatAck(_) | ToWorker::Confirm(_) | ToWorker::Refused(_) | ToWorker::Drained => {}
        }
    }

    pub(super) fn envelope(&self, conn: StreamId) -> Envelope {
        let puppet = self.puppets.values().find(|p| p.conn == conn).expect("a puppet has this stream");
        Envelope { term: self.term, incarnation: puppet.incarnation, stream: puppet.stream }
    }

    pub(super) fn hello_of(&self, name: &str, puppet: &Puppet) -> Hello {
        Hello {
            worker: worker(name),
            profile: profile(),
            owned: puppet
                .held
                .iter()
                .map(|(id, token)| OwnedGrant { appliance: *id, token: *token, edition: edition(1) })
                .collect(),
            released: vec![],
            removed: vec![],
            highest_term: Term::new(0),
            secret: Some(secret(name)),
        }
    }

    /// A worker says this on a stream it opened.
    pub(super) fn say_hello(&mut self, conn: StreamId, puppet: &Puppet, hello: Hello) {
        let envelope = Envelope { term: hello.highest_term, incarnation: puppet.incarnation, stream: puppet.stream };
        self.step(Event::Received(conn, envelope, ToCoordinator::Hello(Box::new(hello))));
    }

    /// A worker opens a stream, as a new process or as the one it was.
    pub(super) fn connect(&mut self, name: &str) -> StreamId {
        let conn = self.next_conn;
        self.next_conn += 1;
        let puppet = self.puppets.entry(worker(name)).or_default();
        puppet.conn = conn;
        puppet.stream = puppet.stream.next();
        let puppet = self.puppets[&worker(name)].clone();
        self.say_hello(conn, &puppet, self.hello_of(name, &puppet));
        conn
    }

    pub(super) fn kill(&mut self, name: &str) {
        let puppet = self.puppets.remove(&worker(name)).expect("lives");
        self.step(Event::Closed(puppet.conn));
    }

    /// Lets time pass in small steps, with heartbeats of everybody who lives.
    pub(super) fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.now = end.min(self.now + Duration::from_millis(100));
            for name in self.puppets.keys().cloned().collect::<Vec<_>>() {
                let Some(puppet) = self.puppets.get_mut(&name) else { continue };
                puppet.beats += 1;
                let (conn, beats) = (puppet.conn, puppet.beats);
                if let (false, Some(incarnation)) = (self.machine.membership().is_embedded(), puppet.incarnation) {
                    self.step(Event::Observed(
                        Life::new(name, incarnation),
                        ObservedLease { lease: L, evicted: false, seal: None },
                    ));
                } else if puppet.incarnation.is_some() {
                    let envelope = self.envelope(conn);
                    self.step(Event::Received(conn, envelope, ToCoordinator::Beat(beats)));
                }
            }
            self.step(Event::Tick);
        }
    }

    pub(super) fn create(&mut self, ids: impl IntoIterator<Item = u128>) {
        for n in ids {
            self.step(Event::Created(seed(n)));
        }
        self.step(Event::Tick);
    }

    pub(super) fn holder(&self, n: u128) -> Option<&str> {
        let table = self.machine.table();
        let entry = table.get(table.slot(id(n))?)?;
        match &entry.state {
            HandoffState::Owned(g) => Some(g.worker.as_str()),
            _ => None,
        }
    }

    pub(super) fn loads(&self) -> Vec<usize> {
        self.puppets.values().map(|p| p.held.len()).collect()
    }

    pub(super) fn moved(&self) -> usize {
        self.events.iter().filter(|n| matches!(n, RebalanceEvent::Moved { .. })).count()
    }

    /// What set off the rebalances that were told of.
    pub(super) fn causes(&self) -> Vec<String> {
        let opened = self.events.iter().filter_map(|n| match n {
            RebalanceEvent::Opened { cause, .. } => Some(cause.to_string()),
            _ => None,
        });
        opened.collect()
    }
}

/// A report that says only what is owned.
pub(super) fn digest_report(owned: OwnedDigest) -> ToCoordinator {
    ToCoordinator::Report(Report { statuses: vec![], owned: Some(owned) })
}

/// Two workers with ten appliances between them.
pub(super) fn two() -> World {
    // So many at once that a plan is carried out in one step.
    let config = Config { moves_at_once: 128, ..Config::default() };
    let mut w = World::with(config, Term::new(1), Restored::default());
    w.connect("w1");
    w.connect("w2");
    w.pass(Duration::from_secs(1));
    w.create(1..=10);
    w.pass(Duration::from_millis(200));
    assert_eq!(w.loads(), [5, 5]);
    w
}

#[test]
fn a_grant_is_on_the_wire_only_after_it_is_durable() {
    let mut w = World::new(Restored::default());
    w.connect("w1");
    w.pass(Duration::from_secs(1));
    w.hold_commits = true;
    w.sent.clear();
    w.create([1]);
    assert_eq!(w.commits.len(), 1);
    assert!(!w.sent.iter().any(|(_, d)| matches!(d, ToWorker::Delta(_))), "told before it was stored");
    let (batch, _) = w.commits.remove(0);
    w.step(Event::Durable(batch));
    assert_eq!(w.holder(1), Some("w1"));
}

#[test]
fn a_grant_the_store_refused_burns_its_token() {
    let mut w = World::new(Restored::default());
    w.connect("w1");
    w.pass(Duration::from_secs(1));
    w.hold_commits = true;
    w.create([1]);
    let (batch, first) = w.commits.remove(0);
    w.step(Event::Undone(batch));
    w.step(Event::Tick);
    assert_eq!(w.commits, vec![], "asked again as fast as it refuses");
    w.pass(WRITE_RETRY);
    let (batch, second) = w.commits.remove(0);
    assert_ne!(first.grants, second.grants, "a token is offered once");
    w.step(Event::Durable(batch));
    assert_eq!(w.holder(1), Some("w1"));
}

#[test]
fn a_broken_stream_is_no_lost_lease() {
    let mut w = two();
    let before = w.puppets[&worker("w1")].clone();
    w.step(Event::Closed(before.conn));
    w.pass(Duration::from_millis(1000));
    w.connect("w1");
    w.pass(Duration::from_secs(3));
    assert_eq!(w.puppets[&worker("w1")].held, before.held, "the same grants under the same tokens");
    assert_eq!(w.moved(), 0);
}

#[test]
fn a_dead_worker_loses_its_appliances_after_its_lease_and_not_before() {
    let mut w = two();
    w.kill("w1");
    w.pass(Duration::from_millis(2200));
    assert_eq!(w.loads(), [5], "nobody may act on them yet");
    assert_eq!(w.gone, []);
    w.pass(Duration::from_millis(200));
    assert_eq!(w.loads(), [10]);
    assert!(matches!(&w.gone[..], [(life, _)] if life.worker == worker("w1")), "said once: {:?}", w.gone);
    assert_eq!(w.moved(), 5);
    assert!(
        matches!(w.events.last(), Some(RebalanceEvent::Closed { done: 5, superseded: false, .. })),
        "{:?}",
        w.events
    );
}

#[test]
fn a_worker_that_says_it_leaves_is_gone_at_once() {
    let mut w = two();
    let puppet = w.puppets.remove(&worker("w1")).expect("lives");
    let envelope = Envelope { term: w.term, incarnation: puppet.incarnation, stream: puppet.stream };
    w.step(Event::Received(puppet.conn, envelope, ToCoordinator::Leave));
    w.step(Event::Tick);
    assert_eq!(w.loads(), [10]);
}

#[test]
fn a_second_process_of_one_name_waits_until_the_first_cannot_act() {
    let mut w = two();
    w.kill("w1");
    let conn = w.connect("w1");
    assert!(matches!(w.closed.last(), Some((c, Refusal::NameTaken(wait))) if *c == conn && *wait <= L * 115 / 100));
    w.puppets.remove(&worker("w1"));
    w.pass(Duration::from_millis(2400));
    w.connect("w1");
    w.pass(Duration::from_secs(1));
    assert_eq!(w.loads(), [4, 6], "the least that fills the band: 5 is fair, 4 the floor");
}

#[test]
fn a_new_leader_moves_nothing_because_it_is_new() {
    let w = two();
    let mut restored = Restored::default();
    for (_, entry) in w.machine.table().iter() {
        let stored = StoredGrant { granted: entry.state.grant().cloned(), ..StoredGrant::default() };
        let n = u128::from_be_bytes(*entry.id.as_bytes());
        restored.appliances.push((seed(n), stored));
    }
    for m in w.machine.membership().members() {
        restored.members.push(StoredMember {
            worker: m.worker.clone(),
            incarnation: m.incarnation,
            profile: m.profile.clone(),
            departed: false,
            seal: w.machine.membership().seal_of(&m.life()),
        });
    }
    let mut next = World::in_term(Term::new(2), restored);
    next.now = next.now + Duration::from_millis(50);
    next.step(Event::Tick);
    assert!(next.machine.waiting(next.now).is_some());
    next.puppets = w.puppets.clone();
    for name in ["w1", "w2"] {
        next.connect(name);
    }
    next.pass(Duration::from_secs(4));
    assert_eq!(next.loads(), [5, 5]);
    assert_eq!(next.puppets, w.puppets_with_conns(&next));
    assert_eq!((next.moved(), next.violations.len()), (0, 0));
}

impl World {
    fn puppets_with_conns(&self, other: &Self) -> BTreeMap<WorkerId, Puppet> {
        let mut puppets = self.puppets.clone();
        for (name, puppet) in &mut puppets {
            let theirs = &other.puppets[name];
            puppet.conn = theirs.conn;
            puppet.stream = theirs.stream;
            puppet.beats = theirs.beats;
            puppet.version = theirs.version;
        }
        puppets
    }
}

impl PartialEq for Puppet {
    fn eq(&self, other: &Self) -> bool {
        self.held == other.held && self.incarnation == other.incarnation
    }
}

#[test]
fn a_new_leader_gives_up_on_silent_members_when_their_lease_is_over() {
    let w = two();
    let mut restored = Restored::default();
    for (_, entry) in w.machine.table().iter() {
        let stored = StoredGrant { granted: entry.state.grant().cloned(), ..StoredGrant::default() };
        restored.appliances.push((seed(u128::from_be_bytes(*entry.id.as_bytes())), stored));
    }
    for m in w.machine.membership().members() {
        restored.members.push(StoredMember {
            worker: m.worker.clone(),
            incarnation: m.incarnation,
            profile: m.profile.clone(),
            departed: false,
            seal: w.machine.membership().seal_of(&m.life()),
        });
    }
    let mut next = World::in_term(Term::new(2), restored);
    next.puppets = w.puppets.clone();
    next.puppets.remove(&worker("w1"));
    next.connect("w2");
    next.pass(Duration::from_millis(2200));
    assert_eq!(next.loads(), [5], "w1 may still act");
    next.pass(Duration::from_millis(200));
    assert_eq!(next.loads(), [10]);
}

#[test]
fn a_higher_term_is_never_acted_against() {
    let mut w = World::new(Restored::default());
    let hello = Hello { highest_term: Term::new(7), ..w.hello_of("w1", &newcomer()) };
    w.say_hello(1, &newcomer(), hello);
    assert_eq!(w.raised, Some(Term::new(7)));
}

#[test]
fn a_higher_term_is_begun_above_only_after_this_one_lasted() {
    let raise_after = Duration::from_secs(2);
    let mut w = World::new(Restored { raise_after, ..Restored::default() });
    w.connect("w1");
    let hello = Hello { highest_term: Term::new(7), ..w.hello_of("w2", &newcomer()) };
    w.say_hello(9, &newcomer(), hello.clone());
    assert_eq!((w.raised, w.closed.pop()), (None, Some((9, Refusal::TermAhead(Term::new(7), raise_after)))));
    w.pass(raise_after);
    assert_eq!(w.puppets[&worker("w1")].incarnation, Some(Incarnation::embedded(Term::new(1), 1)), "is led meanwhile");
    w.say_hello(10, &newcomer(), hello);
    assert_eq!(w.raised, Some(Term::new(7)));
}

#[test]
fn a_life_that_is_not_known_raises_no_term() {
    let mut w = World::new(Restored::default());
    let unknown = Puppet { incarnation: Some(Incarnation::new(77)), ..newcomer() };
    let hello = Hello { highest_term: Term::new(7), ..w.hello_of("w1", &unknown) };
    w.say_hello(1, &unknown, hello);
    assert_eq!((w.raised, w.closed), (None, vec![(1, Refusal::IncarnationOver)]));
}

#[test]
fn joins_are_gathered_and_move_the_least_possible() {
    let mut w = two();
    w.connect("w3");
    w.pass(Duration::from_millis(300));
    w.connect("w4");
    w.pass(Duration::from_millis(100));
    assert_eq!(w.moved(), 0, "still gathering");
    w.pass(Duration::from_secs(1));
    // Ten over four: fair is 2.5, so the floor is 2 and the ceiling 3.
    assert_eq!(w.moved(), 4);
    assert_eq!(w.loads(), [3, 3, 2, 2]);
    let opened: Vec<_> = w.events.iter().filter(|n| matches!(n, RebalanceEvent::Opened { .. })).collect();
    assert_eq!(opened.len(), 1, "{opened:?}");
}

#[test]
fn a_plan_of_another_table_or_of_assumed_members_is_not_carried_out() {
    let mut w = two();
    let stale = w.machine.propose(&Assumptions::default());
    let assumed = Assumptions { drain: [worker("w1")].into(), ..Assumptions::default() };
    let drained = w.machine.propose(&assumed);
    assert_eq!(drained.moves().len(), 5, "all of one worker");
    assert!(
        drained.moves().all(|m| m.from == Some(&worker("w1")) && w.holder(m.appliance.uuid().as_u128()) == Some("w1"))
    );
    w.create([11]);
    let current = w.machine.planner().version();
    let before = format!("{:?}", w.machine);
    let refused = PlanRefused::Stale { planned: stale.version, current };
    assert_eq!(w.machine.apply(w.now, &stale, None), Err(refused));
    let drained = w.machine.propose(&assumed);
    let id = drained.id;
    assert_eq!(w.machine.apply(w.now, &drained, None), Err(PlanRefused::Assumed(id)));
    assert_eq!(format!("{:?}", w.machine), before);
}

#[test]
fn a_conflicting_owner_keeps_an_appliance_from_all_others_until_it_has_ended() {
    let mut w = World::new(Restored::default());
    w.connect("w1");
    w.pass(Duration::from_secs(1));
    // Known to nobody's table: as after a store was put back to an older state.
    let conflicting = Token::new(Term::new(0), 9);
    w.hold_commits = true;
    w.create([1]);
    let (batch, _) = w.commits.remove(0);
    w.step(Event::Undone(batch));
    w.puppets.get_mut(&worker("w1")).expect("lives").held.insert(id(1), conflicting);
    w.hold_commits = false;
    let conn = w.connect("w1");
    assert_eq!(w.violations.len(), 1);
    w.pass(Duration::from_secs(1));
    assert_eq!(w.holder(1), None, "granted although somebody acts on it");
    let envelope = w.envelope(conn);
    let release = Release {
        appliance: id(1),
        token: conflicting,
        carryover: Carryover {
            progress: Progress { failed_boots: 3, ..Progress::default() },
            fence_delay: Duration::ZERO,
        },
    };
    let applied = w.puppets[&worker("w1")].version;
    w.step(Event::Received(
        conn,
        envelope,
        ToCoordinator::Ack(Ack { applied, released: vec![release], ..Ack::default() }),
    ));
    w.pass(Duration::from_secs(1));
    assert_eq!(w.holder(1), Some("w1"));
}

#[test]
fn a_worker_that_declines_is_left_out_for_a_while() {
    let mut w = World::new(Restored::default());
    let conn = w.connect("w1");
    w.pass(Duration::from_secs(1));
    w.hold_commits = true;
    w.create([1]);
    let (batch, commit) = w.commits.remove(0);
    let Some(GrantOp::Grant { to, .. }) = commit.grants.first() else { panic!("a grant is written") };
    let token = to.token;
    // The puppet would take it; this worker refuses.
    let puppet = w.puppets.remove(&worker("w1")).expect("lives");
    w.step(Event::Durable(batch));
    w.puppets.insert(worker("w1"), Puppet { version: 2, ..puppet });
    w.hold_commits = false;
    let envelope = w.envelope(conn);
    w.step(Event::Received(
        conn,
        envelope,
        ToCoordinator::Ack(Ack {
            applied: 2,
            declined: vec![Declined { appliance: id(1), token, reason: String::new() }],
            ..Ack::default()
        }),
    ));
    w.pass(Duration::from_secs(1));
    assert_eq!(w.holder(1), None);
    let table = w.machine.table();
    let entry = table.get(table.slot(id(1)).expect("known")).expect("known");
    assert_eq!(reason(entry), "the workers that could take it declined it recently");
    w.pass(Duration::from_secs(5));
    assert_eq!(w.holder(1), Some("w1"));
}

#[test]
fn what_no_worker_ever_heard_of_is_deleted_without_one() {
    let mut w = World::new(Restored::default());
    w.create([1]);
    w.step(Event::Updated { id: id(1), edition: edition(2), kind: KindName::Custom, size: 10, deleting: true });
    assert_eq!(w.removed, [id(1)]);
    assert!(w.machine.table().is_empty());
}

#[test]
fn messages_of_other_streams_and_terms_are_dropped_and_counted() {
    let mut w = two();
    let conn = w.puppets[&worker("w1")].conn;
    let right = w.envelope(conn);
    for wrong in [
        Envelope { term: Term::new(9), ..right },
        Envelope { incarnation: Some(Incarnation::new(9)), ..right },
        Envelope { stream: StreamNumber::new(9), ..right },
    ] {
        let (appliance, token) =
            w.puppets[&worker("w1")].held.iter().map(|(a, t)| (*a, *t)).next().expect("holds some");
        let release = Release { appliance, token, carryover: Carryover::default() };
        w.step(Event::Received(conn, wrong, ToCoordinator::Ack(Ack { released: vec![release], ..Ack::default() })));
    }
    assert_eq!(w.machine.counters().stale_messages, 3);
    w.pass(Duration::from_secs(1));
    assert_eq!(w.loads(), [5, 5]);
}

#[test]
fn a_leader_that_slept_calls_nobody_gone_for_it() {
    let mut w = two();
    w.now = w.now + Duration::from_secs(30);
    w.step(Event::Tick);
    w.pass(Duration::from_secs(3));
    assert_eq!(w.loads(), [5, 5]);
    assert_eq!(w.closed, vec![]);
}

/// For tests in which one worker dies after the other.
fn unbraked() -> Config {
    Config { freeze_fraction: 1.0, ..Config::default() }
}

/// Which of the grants sent since the last call told their owner to announce its steps.
fn grants(w: &mut World) -> BTreeMap<ApplianceId, bool> {
    let tells = w.sent.drain(..).filter_map(|(_, down)| match down {
        ToWorker::Delta(delta) => Some(delta.entries),
        _ => None,
    });
    tells
        .flatten()
        .filter_map(|tell| match tell {
            DeltaEntry::Grant { appliance, suspect, .. } => Some((appliance, suspect)),
            _ => None,
        })
        .collect()
}

/// The worker announces a step of appliance `n`; gives back what it is told it may begin.
fn announce(w: &mut World, name: &str, n: u128) -> Vec<AnnouncedStep> {
    let puppet = w.puppets[&worker(name)].clone();
    let step = AnnouncedStep { appliance: id(n), token: puppet.held[&id(n)], number: 1 };
    let answers = Ack { applied: puppet.version, begun: vec![step], ..Ack::default() };
    w.sent.clear();
    w.step(Event::Received(puppet.conn, w.envelope(puppet.conn), ToCoordinator::Ack(answers)));
    let cleared = w.sent.drain(..).filter_map(|(conn, down)| match down {
        ToWorker::Confirm(confirm) if conn == puppet.conn => Some(confirm.begin),
        _ => None,
    });
    cleared.flatten().collect()
}

#[test]
fn what_kills_three_workers_is_given_to_no_fourth_until_it_is_changed() {
    let mut w = World::with(unbraked(), Term::new(1), Restored::default());
    w.connect("w1");
    w.pass(Duration::from_secs(1));
    w.create(1..=3);
    assert_eq!(grants(&mut w), (1..=3).map(|n| (id(n), false)).collect());
    w.kill("w1");
    for name in ["w2", "w3", "w4"] {
        w.connect(name);
        w.pass(Duration::from_secs(4));
        assert_eq!(grants(&mut w), (1..=3).map(|n| (id(n), true)).collect(), "{name}");
        assert_eq!(announce(&mut w, name, 1).len(), 1);
        assert_eq!(w.quarantined, []);
        w.kill(name);
    }
    w.connect("w5");
    w.pass(Duration::from_secs(4));
    assert_eq!(w.quarantined, [(id(1), 3)]);
    assert_eq!((w.holder(1), w.holder(2), w.holder(3)), (None, Some("w5"), Some("w5")));
    let summary = "quarantined: 3 workers died while a step of it ran; update or rebuild it to try again";
    assert_eq!(w.machine.explain(w.now, id(1)).expect("it is known").summary, summary);
    w.pass(Duration::from_secs(120));
    assert_eq!(w.holder(1), None, "time alone does not lift it");

    w.step(Event::Updated { id: id(1), edition: edition(2), kind: KindName::Custom, size: 10, deleting: false });
    w.pass(Duration::from_secs(1));
    assert_eq!(w.holder(1), Some("w5"));
    assert!(grants(&mut w)[&id(1)], "its owner is warned all the same");
}

#[test]
fn a_quarantined_appliance_that_is_deleted_is_granted_once_more() {
    let mut w = World::with(unbraked(), Term::new(1), Restored::default());
    for name in ["w1", "w2", "w3"] {
        w.connect(name);
        w.pass(Duration::from_secs(4));
        w.create((name == "w1").then_some(1));
        announce(&mut w, name, 1);
        w.kill(name);
    }
    w.connect("w5");
    w.pass(Duration::from_secs(4));
    assert_eq!(w.quarantined, [(id(1), 3)]);
    w.step(Event::Updated { id: id(1), edition: edition(2), kind: KindName::Custom, size: 10, deleting: true });
    w.pass(Duration::from_secs(1));
    assert_eq!(w.holder(1), Some("w5"));
    announce(&mut w, "w5", 1);
    w.kill("w5");
    w.connect("w6");
    w.pass(Duration::from_secs(4));
    assert_eq!(w.quarantined, [(id(1), 3), (id(1), 4)]);
}

#[test]
fn who_leaves_in_order_or_lives_on_makes_nothing_suspect() {
    let mut w = two();
    let conn = w.puppets[&worker("w1")].conn;
    let envelope = w.envelope(conn);
    w.sent.clear();
    w.step(Event::Received(conn, envelope, ToCoordinator::Leave));
    w.puppets.remove(&worker("w1"));
    w.pass(Duration::from_secs(1));
    let grants = grants(&mut w);
    assert_eq!((grants.len(), grants.values().any(|suspect| *suspect)), (5, false));
    // Nobody asked for it, but who announces is answered.
    assert_eq!(announce(&mut w, "w2", 1).len(), 1);
}

#[test]
fn a_term_that_no_cluster_reaches_is_refused() {
    let mut w = World::new(Restored::default());
    let hello = Hello { highest_term: Term::new(u64::MAX), ..w.hello_of("w1", &newcomer()) };
    w.say_hello(1, &newcomer(), hello);
    assert_eq!(w.raised, None);
    assert_eq!(w.closed, [(1, Refusal::ImplausibleTerm(Term::new(u64::MAX)))]);
}

#[test]
fn an_appliance_that_nobody_deleted_survives_a_worker_that_says_it_is_gone() {
    let mut w = two();
    let conn = w.puppets[&worker("w1")].conn;
    let (appliance, token) = w.puppets[&worker("w1")].held.iter().map(|(a, t)| (*a, *t)).next().expect("holds some");
    let envelope = w.envelope(conn);
    let puppet = w.puppets.get_mut(&worker("w1")).expect("lives");
    puppet.held.remove(&appliance);
    let applied = puppet.version;
    w.step(Event::Received(
        conn,
        envelope,
        ToCoordinator::Ack(Ack { applied, removed: vec![GrantRef::new(appliance, token)], ..Ack::default() }),
    ));
    w.pass(Duration::from_secs(1));
    assert_eq!((w.removed.len(), w.violations.len()), (0, 1));
    assert_eq!(w.loads(), [5, 5]);
}

#[test]
fn a_leader_that_fell_behind_waits_for_every_lease_anew() {
    let mut w = two();
    for _ in 0..9 {
        // Time is looked at often enough, but what workers said meanwhile is not read.
        w.now = w.now + Duration::from_millis(250);
        w.step(Event::FellBehind);
        w.step(Event::Tick);
    }
    w.pass(Duration::from_secs(3));
    assert_eq!((w.loads(), w.closed.len()), (vec![5, 5], 0));
}
