//! Mistakes the simulation found (`tests::sim`), each as the shortest story that shows it.

use common::driver::{DriverCapabilities, DriverName};
use common::kind::KindName;
use common::session::{Ack, Envelope, GrantRef, Hello, OwnedGrant, Release, ToCoordinator};
use common::{ApplianceId, Incarnation, Site, StreamNumber};

use super::super::*;
use super::{edition, subject};
use crate::planner::Needs;

const L: Duration = Duration::from_secs(2);

/// A machine, its clock, and the numbers of connections.
struct Bench {
    machine: Machine,
    now: Timestamp,
}

fn name(text: &str) -> WorkerId {
    WorkerId::new(text).expect("a valid name")
}

fn id(n: u128) -> ApplianceId {
    ApplianceId::from_u128(n)
}

fn hello(
    worker: &str,
    site: &str,
    incarnation: Option<Incarnation>,
    stream: u64,
    owned: Vec<OwnedGrant>,
) -> (Envelope, ToCoordinator) {
    let site = Site::from(site);
    let process = DriverCapabilities { site: site.id(), ..DriverCapabilities::of_all_kinds(Some(site.state_dir())) };
    let profile = Profile {
        weight: 1,
        host: site.host().into(),
        drivers: [(DriverName::process(), process)].into(),
        lease: L,
        ..Profile::default()
    };
    let highest_term = Term::new(1);
    let hello = Hello {
        worker: name(worker),
        profile,
        owned,
        released: vec![],
        removed: vec![],
        highest_term,
        secret: None,
        knows_modes: true,
    };
    let envelope = Envelope { term: highest_term, incarnation, stream: StreamNumber::new(stream) };
    (envelope, ToCoordinator::Hello(Box::new(hello)))
}

fn hello_event(conn: StreamId, (envelope, hello): (Envelope, ToCoordinator)) -> Event {
    Event::Received(conn, envelope, hello)
}

impl Bench {
    fn new() -> Self {
        let config = Config { debounce: Duration::ZERO, reconnect_grace: Duration::ZERO, ..Config::default() };
        let now = Timestamp::from_millis(1_000);
        Self { machine: Machine::new(config, Term::new(1), now, Restored::default()), now }
    }

    fn step(&mut self, event: Event) -> Vec<Action> {
        let actions = self.machine.step(self.now, event).actions;
        assert_eq!(crate::checks::machine(&self.machine), Vec::<String>::new());
        actions
    }

    /// Takes an event, then all that follows while the store works; returns what was sent.
    fn play(&mut self, event: Event) -> Vec<(StreamId, Envelope, ToWorker<()>)> {
        let mut sent = Vec::new();
        let mut events = vec![event];
        while let Some(event) = events.pop() {
            let quiet = event == Event::Tick;
            let actions = self.step(event);
            let before = events.len();
            for action in actions {
                match action {
                    Action::Commit(batch, _) => events.push(Event::Durable(batch)),
                    Action::Send(conn, from, message) => sent.push((conn, from, message)),
                    _ => {}
                }
            }
            let idle = quiet && events.len() == before;
            if !idle && !events.contains(&Event::Tick) {
                events.insert(0, Event::Tick);
            }
        }
        sent
    }

    fn join(&mut self, conn: StreamId, worker: &str) -> Envelope {
        self.join_at("h", conn, worker)
    }

    fn join_at(&mut self, site: &str, conn: StreamId, worker: &str) -> Envelope {
        let sent = self.play(hello_event(conn, hello(worker, site, None, 1, vec![])));
        let welcomed = sent.iter().find(|(_, _, message)| matches!(message, ToWorker::Welcome(_)));
        let from = welcomed.expect("a new worker is welcomed").1;
        self.answer(conn, from);
        from
    }

    /// The worker shows that its stream is alive.
    fn answer(&mut self, conn: StreamId, from: Envelope) -> Vec<(StreamId, Envelope, ToWorker<()>)> {
        self.play(Event::Received(conn, from, ToCoordinator::Ack(Ack { applied: 1, ..Ack::default() })))
    }

    fn create(&mut self, n: u128) -> Vec<(StreamId, Envelope, ToWorker<()>)> {
        let seed = Seed {
            id: id(n),
            placement_key: n.to_string(),
            needs: Needs { driver: DriverName::process(), kind: KindName::Custom, site: None },
            edition: edition(1),
            size: 100,
            deleting: false,
            subject: subject("red"),
        };
        self.play(Event::Created(seed))
    }

    fn state(&self, n: u128) -> &HandoffState {
        let slot = self.machine.table().slot(id(n)).expect("it exists");
        &self.machine.table().get(slot).expect("it exists").state
    }

    fn site(&self, n: u128) -> String {
        let slot = self.machine.table().slot(id(n)).expect("it exists");
        let site = self.machine.table().get(slot).expect("it exists").needs.site.clone();
        site.expect("it is bound").as_str().to_owned()
    }

    fn token(&self, n: u128) -> Token {
        self.state(n).grant().expect("it is granted").token
    }

    fn take(&mut self, conn: StreamId, from: Envelope, applied: u64, n: u128) {
        let granted = vec![GrantRef::new(id(n), self.token(n))];
        // The empty delta of the welcome was the first.
        self.play(Event::Received(
            conn,
            from,
            ToCoordinator::Ack(Ack { applied: applied + 1, granted, ..Ack::default() }),
        ));
    }

    fn after(&mut self, duration: Duration) {
        // In small steps, as a process that runs has it.
        let end = self.now + duration;
        while self.now < end {
            self.now = (self.now + TICK).min(end);
            self.play(Event::Tick);
        }
    }
}

/// Taken for news, it would void what the worker was granted since, and a second worker would be given the same.
#[test]
fn a_hello_that_was_overtaken_is_refused_even_after_the_newer_stream_ended() {
    let mut b = Bench::new();
    let from = b.join(1, "w1");
    b.step(Event::Closed(1));
    // Stream 2 is stuck in the network; stream 3 overtakes it, gets a grant, and ends.
    b.play(hello_event(3, hello("w1", "h", from.incarnation, 3, vec![])));
    b.answer(3, Envelope { stream: StreamNumber::new(3), ..from });
    b.create(1);
    b.take(3, Envelope { stream: StreamNumber::new(3), ..from }, 1, 1);
    assert!(matches!(b.state(1), HandoffState::Owned(_)));
    b.step(Event::Closed(3));
    let actions = b.step(hello_event(2, hello("w1", "h", from.incarnation, 2, vec![])));
    assert!(actions.contains(&Action::Close(2, Refusal::Superseded)), "{actions:?}");
    assert!(matches!(b.state(1), HandoffState::Owned(_)));
}

/// Without it, a leader that came after would welcome the life again whose appliances others have got meanwhile.
#[test]
fn a_life_that_is_gone_is_ended_with_every_write_until_one_of_them_is_durable() {
    let mut b = Bench::new();
    let first = b.join(1, "w1");
    b.create(1);
    b.take(1, first, 1, 1);
    let second = b.join(2, "w2");
    let mut commits = Vec::new();
    for beat in 0..12 {
        b.now = b.now + Duration::from_millis(250);
        for event in [Event::Received(2, second, ToCoordinator::Beat(beat)), Event::Tick] {
            commits.extend(b.step(event).into_iter().filter_map(|a| match a {
                Action::Commit(batch, commit) => Some((batch, commit)),
                _ => None,
            }));
        }
    }
    let gone = Life::new(name("w1"), first.incarnation.expect("welcomed"));
    let (batch, commit) = commits.pop().expect("the end of a life is written");
    // Its name is missed for a while; the row says that it may not act.
    let ended = |commit: &Commit| {
        let departed = commit.put_members.iter().filter(|m| m.departed).map(|m| m.life());
        departed.collect::<Vec<_>>()
    };
    assert_eq!((commits.len(), ended(&commit)), (0, vec![gone.clone()]));
    assert!(!commit.grants.is_empty(), "its appliance goes to the other one in the same step");
    // While that write is under way, and after it failed, the next ones say it too.
    b.step(Event::Undone(batch));
    b.now = b.now + WRITE_RETRY;
    let again = b.step(Event::Tick);
    let Some(Action::Commit(batch, commit)) = again.iter().find(|a| matches!(a, Action::Commit(..))) else {
        panic!("the grant is made anew: {again:?}");
    };
    assert_eq!((commit.grants.len(), ended(commit)), (1, vec![gone]));
    b.play(Event::Durable(*batch));
    b.after(Duration::from_millis(600));
    assert_eq!(b.machine.backlog()[1], ("writes to be tried again", 0));
}

/// What is on its way cannot be picked, so a plan made meanwhile may have had to leave it where it is.
#[test]
fn a_plan_is_due_when_a_grant_has_come_to_its_owner() {
    let mut b = Bench::new();
    let from = b.join(1, "w1");
    b.create(1);
    let granted = vec![GrantRef::new(id(1), b.token(1))];
    let now = b.now;
    let output = b
        .machine
        .step(now, Event::Received(1, from, ToCoordinator::Ack(Ack { applied: 1, granted, ..Ack::default() })));
    assert_eq!(output.wake_at, Some(now));
}

/// With `max_moves_in_flight = 1` nothing else moved ever again.
#[test]
fn a_move_that_ends_with_nobody_is_not_counted_as_under_way() {
    let mut b = Bench::new();
    let first = b.join(1, "w1");
    for n in 1..=4 {
        b.create(n);
        b.take(1, first, n as u64, n);
    }
    let second = b.join(2, "w2");
    let moving =
        (1..=4).find(|n| matches!(b.state(*n), HandoffState::Releasing(_))).expect("the newcomer gets a share");
    assert_eq!(b.machine.moves_in_flight(), 1);
    // Both may go before it arrives; its instances are bound to their host.
    let release = Release { appliance: id(moving), token: b.token(moving), carryover: Carryover::default() };
    b.step(Event::Received(2, second, ToCoordinator::Leave));
    let answers = Ack { applied: 5, released: vec![release], ..Ack::default() };
    let actions = b.step(Event::Received(1, first, ToCoordinator::Ack(answers)));
    b.step(Event::Received(1, first, ToCoordinator::Leave));
    for action in actions {
        if let Action::Commit(batch, _) = action {
            b.play(Event::Durable(batch));
        }
    }
    b.play(Event::Tick);
    assert_eq!((b.state(moving).name(), b.machine.moves_in_flight()), ("unowned", 0));
}

/// Nothing ever ran on that host, and with it gone the appliance waited for it for ever.
#[test]
fn a_grant_that_was_never_durable_binds_to_no_host() {
    let mut b = Bench::new();
    let from = b.join(1, "w1");
    let seed = Seed {
        id: id(1),
        placement_key: "1".into(),
        needs: Needs { driver: DriverName::process(), kind: KindName::Custom, site: None },
        edition: edition(1),
        size: 100,
        deleting: false,
        subject: subject("red"),
    };
    b.step(Event::Created(seed));
    let actions = b.step(Event::Tick);
    let Some(Action::Commit(batch, _)) = actions.iter().find(|a| matches!(a, Action::Commit(..))) else {
        panic!("it is granted: {actions:?}");
    };
    b.step(Event::Undone(*batch));
    b.step(Event::Received(1, from, ToCoordinator::Leave));
    b.now = b.now + WRITE_RETRY;
    b.play(Event::Tick);
    let welcomed = b.play(hello_event(2, hello("w2", "elsewhere", None, 1, vec![])));
    let Some((_, envelope, ToWorker::Welcome(_))) = welcomed.first() else { panic!("{welcomed:?}") };
    let sent = b.answer(2, *envelope);
    assert!(sent.iter().any(|(_, _, down)| matches!(down, ToWorker::Delta(_))), "w2 is given it: {sent:?}");
}

/// A worker of the same host took over from one that used another state directory. It could not see the instance that
/// still ran, and started a second one.
#[test]
fn what_runs_in_one_state_directory_is_not_given_to_a_worker_of_another() {
    let mut b = Bench::new();
    let first = b.join_at("h:/a", 1, "w1");
    b.create(1);
    b.take(1, first, 1, 1);
    b.play(Event::Received(1, first, ToCoordinator::Leave));
    b.join_at("h:/b", 2, "w2");
    assert_eq!(b.state(1).name(), "orphaned");
    let explained = b.machine.explain(b.now, id(1)).expect("it exists");
    assert_eq!(explained.summary, "its instances are kept on host h in /a, which no worker uses");
    b.join_at("h:/a", 3, "w3");
    assert_eq!(b.state(1).grant().expect("it is granted").worker, name("w3"));
}

/// Two containers had one host name and one path: when one ended, the other started its appliances a second time. And a host
/// that was renamed lost all of its own.
#[test]
fn what_runs_on_a_site_is_given_to_whoever_has_its_id_and_to_no_namesake() {
    let a = "/0000000000000000000000000000000a/h:/a";
    let mut b = Bench::new();
    let first = b.join_at(a, 1, "w1");
    b.create(1);
    b.take(1, first, 1, 1);
    assert_eq!(b.site(1), a);
    b.play(Event::Received(1, first, ToCoordinator::Leave));
    b.join_at("/0000000000000000000000000000000b/h:/a", 2, "w2");
    assert_eq!(b.state(1).name(), "orphaned");
    let explained = b.machine.explain(b.now, id(1)).expect("it exists");
    let text = "its instances are kept on host h in /a (site 0000000000000000000000000000000a), which no worker uses";
    assert_eq!(explained.summary, text);
    let renamed = "/0000000000000000000000000000000a/renamed:/a";
    b.join_at(renamed, 3, "w3");
    assert_eq!(b.state(1).grant().expect("it is granted").worker, name("w3"));
    assert_eq!(b.site(1), renamed, "people find it under its new name");
}

#[test]
fn what_the_version_before_bound_to_host_and_path_comes_to_be_bound_to_the_id() {
    let known = "/0000000000000000000000000000000a/h:/a";
    let mut b = Bench::new();
    let before = b.join_at("h:/a", 1, "w1");
    b.create(1);
    b.take(1, before, 1, 1);
    assert_eq!(b.site(1), "h:/a");
    b.play(Event::Received(1, before, ToCoordinator::Leave));
    b.join_at("/0000000000000000000000000000000b/h:/b", 2, "w2");
    assert_eq!(b.state(1).name(), "orphaned", "another directory");
    let upgraded = b.join_at(known, 3, "w3");
    b.take(3, upgraded, 1, 1);
    assert_eq!(b.site(1), known);
    b.play(Event::Received(3, upgraded, ToCoordinator::Leave));
    b.join_at("/0000000000000000000000000000000b/h:/a", 4, "w4");
    assert_eq!(b.state(1).name(), "orphaned", "a namesake, which is told apart now");
    // While workers of the version before are left, those of this host and path can take it; the id is not forgotten.
    b.join_at("h:/a", 5, "w5");
    assert_eq!(b.state(1).grant().expect("it is granted").worker, name("w5"));
    assert_eq!(b.site(1), known);
}
