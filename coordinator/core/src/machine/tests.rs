//! Scenarios of the whole machine with an obedient store and hand-written workers. What chance may do to it is the
//! simulator's part.

mod audited;
mod budgets;
mod conflicting;
mod departed;
mod external;
mod grants;
mod held;
mod leases;
mod modes;
mod moves;
mod offers;
mod ordered;
mod passing;
mod planned;
mod quarantined;
mod regressions;
mod strangers;
mod terms;

use crate::grants::GrantOp;
use crate::membership::ObservedLease;
use crate::rebalance::{RebalanceCause, RebalanceEnd, RebalanceEvent, UnfinishedRebalance};
use common::driver::{DriverCapabilities, DriverName, DriverOffers};
use common::kind::KindName;
use common::mode::Quiet;
use common::secret::LifeSecret;
use common::session::{
    Ack, AnnouncedStep, Declined, Delta, DeltaEntry, Envelope, GrantRef, Hello, OwnedDigest, OwnedGrant, Release,
    Report, StatusReport, ToCoordinator,
};
use common::status::Progress;
use common::{ApplianceId, Edition, Generation, Incarnation, Mode, ModeSubject, RebalanceId, StreamNumber};
use std::collections::BTreeMap;

use super::*;
use crate::checks;
use crate::modes::StoredMode;
use crate::planner::{Assumptions, Needs, PlanRefused};
use crate::unowned::Regained;

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
        process: None,
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
        subject: subject("red"),
    }
}

/// Of a tenant that is like all others, with this color.
pub(super) fn subject(color: &str) -> ModeSubject {
    let tenant = common::appliance::Name::new("t").expect("valid");
    ModeSubject { tenant, labels: [("color".to_owned(), color.to_owned())].into() }
}

/// A worker of the test: takes every offer, gives up what it is asked for.
#[derive(Debug, Default, Clone)]
pub(super) struct Puppet {
    pub(super) conn: StreamId,
    pub(super) incarnation: Option<Incarnation>,
    pub(super) stream: StreamNumber,
    pub(super) version: u64,
    pub(super) held: BTreeMap<ApplianceId, Token>,
    /// What it was told of modes.
    pub(super) modes: BTreeMap<ApplianceId, Mode>,
    /// A step runs, so that it acknowledges no mode.
    pub(super) busy: bool,
    /// It is of a version before modes.
    pub(super) knows_no_modes: bool,
    pub(super) beats: u64,
}

impl Puppet {
    /// Takes in a mode, and acknowledges it unless a step runs.
    fn obey(&mut self, appliance: ApplianceId, token: Token, mode: Mode) -> Option<Quiet> {
        if self.knows_no_modes {
            return None;
        }
        self.modes.insert(appliance, mode);
        let quiet = Quiet { appliance, token, edition: mode.edition, fence_delay: Duration::ZERO };
        (mode.hands_off && !self.busy).then_some(quiet)
    }
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
    /// Nothing is compared after each step: with many appliances that takes longer than all else.
    pub(super) unchecked: bool,
    pub(super) commits: Vec<(BatchId, Commit)>,
    pub(super) sent: Vec<(StreamId, ToWorker<()>)>,
    pub(super) closed: Vec<(StreamId, Refusal)>,
    pub(super) events: Vec<RebalanceEvent>,
    pub(super) removed: Vec<ApplianceId>,
    pub(super) outcomes: Vec<(ModeNumber, ModeOutcome)>,
    pub(super) unbound: Vec<Result<Option<common::Site>, UnbindRefused>>,
    pub(super) raised: Option<Term>,
    pub(super) violations: Vec<String>,
    pub(super) quarantined: Vec<(ApplianceId, u32)>,
    pub(super) evicted: Vec<Life>,
    pub(super) gone: Vec<(Life, Timestamp)>,
    pub(super) regained: Vec<Regained>,
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
            unchecked: false,
            commits: vec![],
            sent: vec![],
            closed: vec![],
            events: vec![],
            removed: vec![],
            outcomes: vec![],
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
        if !self.unchecked {
            assert_eq!(checks::machine(&self.machine), Vec::<String>::new());
        }
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
                Action::RaiseTerm(claim) => self.raised = Some(claim.met),
                Action::Violation(text) => self.violations.push(text),
                Action::Quarantined(id, strikes) => self.quarantined.push((id, strikes)),
                Action::Evict(life) => self.evicted.push(life),
                Action::Gone(life, at) => self.gone.push((life, at)),
                Action::Mode(number, outcome) => self.outcomes.push((number, outcome)),
                Action::Assigned(_) | Action::WorkerChanged(_) | Action::Met(_) | Action::ModesChanged => {}
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
                puppet.modes.retain(|id, _| puppet.held.contains_key(id));
            }
            ToWorker::Delta(Delta { base, target, entries, .. }) => {
                assert_eq!(base, puppet.version, "deltas chain");
                puppet.version = target;
                let mut answers = Ack { applied: target, ..Ack::default() };
                for entry in entries {
                    match entry {
                        DeltaEntry::Grant { appliance, token, mode, .. } => {
                            assert!(puppet.held.insert(appliance, token).is_none(), "granted twice");
                            answers.granted.push(GrantRef::new(appliance, token));
                            answers.quiet.extend(puppet.obey(appliance, token, mode));
                        }
                        DeltaEntry::Mode { appliance, token, mode } => {
                            assert_eq!(puppet.held.get(&appliance), Some(&token), "of a grant that it has");
                            answers.quiet.extend(puppet.obey(appliance, token, mode));
                        }
                        DeltaEntry::Release(GrantRef { appliance, token }) => {
                            assert_eq!(puppet.held.remove(&appliance), Some(token));
                            puppet.modes.remove(&appliance);
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
                .map(|(id, token)| {
                    let mode = puppet.modes.get(id).copied().unwrap_or_default();
                    OwnedGrant { appliance: *id, token: *token, edition: edition(1), mode }
                })
                .collect(),
            released: vec![],
            removed: vec![],
            highest_term: Term::new(0),
            secret: Some(secret(name)),
            knows_modes: !puppet.knows_no_modes,
        }
    }

    /// What the next leader reads from the store.
    pub(super) fn stored(&self) -> Restored {
        let appliances = self.machine.table().iter().map(|(_, entry)| {
            let stored = StoredGrant { granted: entry.state.grant().cloned(), ..StoredGrant::default() };
            (seed(u128::from_be_bytes(*entry.id.as_bytes())), stored)
        });
        let membership = self.machine.membership();
        let members = membership.members().map(|m| StoredMember {
            worker: m.worker.clone(),
            incarnation: m.incarnation,
            profile: m.profile.clone(),
            departed: false,
            seal: membership.seal_of(&m.life()),
        });
        let rules = self.machine.mode_rules().cloned();
        let modes = rules.map(|rule| StoredMode { rule, expires_in: None }).collect();
        let orders = self.machine.orders().clone();
        Restored { appliances: appliances.collect(), members: members.collect(), modes, orders, ..Restored::default() }
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
    let config = Config { gap_target: Duration::ZERO, ..Config::default() };
    let mut w = World::with(config, Term::new(1), Restored::default());
    w.connect("w1");
    w.connect("w2");
    w.pass(Duration::from_secs(1));
    w.create(1..=10);
    w.pass(Duration::from_millis(200));
    assert_eq!(w.loads(), [5, 5]);
    w
}
