//! Every input in every stage, and the servers that lag behind.

use super::*;

fn at(ms: u64) -> Timestamp {
    Timestamp::from_millis(ms)
}

fn worker(name: &str) -> WorkerId {
    WorkerId::new(name).expect("valid")
}

fn lease(name: &str, life: u128) -> LeaseNode {
    let lease = Duration::from_secs(1);
    LeaseNode { worker: worker(name), incarnation: Incarnation::new(life), lease, evicted: false, seal: None }
}

fn member(name: &str, life: u128) -> MemberNode {
    let profile = Profile { weight: 1, ..Profile::default() };
    MemberNode { worker: worker(name), incarnation: Incarnation::new(life), profile }
}

/// A server with nodes, which answers as they are now.
#[derive(Clone, Default)]
struct Nodes {
    members: Vec<MemberNode>,
    leases: Vec<LeaseNode>,
}

impl Nodes {
    fn new(lives: &[(&str, u128)]) -> Self {
        Self {
            members: lives.iter().map(|(name, life)| member(name, *life)).collect(),
            leases: lives.iter().map(|(name, life)| lease(name, *life)).collect(),
        }
    }

    fn answer(&self, what: &What) -> RosterAnswer {
        match what {
            What::Write => RosterAnswer::Written,
            What::List(NodeKind::Member) => {
                RosterAnswer::Listed(self.members.iter().map(|m| m.worker.clone()).collect())
            }
            What::List(NodeKind::Lease) => RosterAnswer::Listed(self.leases.iter().map(|l| l.worker.clone()).collect()),
            What::Read((NodeKind::Member, name)) => {
                RosterAnswer::Found(self.members.iter().find(|m| m.worker == *name).cloned().map(RosterNode::Member))
            }
            What::Read((NodeKind::Lease, name)) => {
                RosterAnswer::Found(self.leases.iter().find(|l| l.worker == *name).cloned().map(RosterNode::Lease))
            }
        }
    }
}

fn answer_all(roster: &mut Roster, now: Timestamp, nodes: &Nodes) {
    while let Some(ask) = roster.next_ask() {
        let answer = nodes.answer(&ask.what);
        roster.answered(now, ask, answer);
    }
}

fn told(roster: &mut Roster, now: Timestamp) -> Vec<RosterEvent> {
    std::iter::from_fn(|| roster.next_news(now)).map(|(_, news)| news).collect()
}

/// One that has read these nodes and told them.
fn following(nodes: &Nodes) -> Roster {
    let mut roster = Roster::new();
    roster.connected();
    answer_all(&mut roster, at(0), nodes);
    assert_eq!(told(&mut roster, at(0)), [everything(nodes)]);
    roster
}

fn everything(nodes: &Nodes) -> RosterEvent {
    RosterEvent::Read { members: nodes.members.clone(), leases: nodes.leases.clone() }
}

fn whats(roster: &mut Roster) -> Vec<What> {
    std::iter::from_fn(|| roster.next_ask()).map(|ask| ask.what).collect()
}

const CHANGES: [NodeChange; 3] = [NodeChange::Created, NodeChange::Changed, NodeChange::Deleted];

#[test]
fn nothing_is_asked_or_told_without_a_connection() {
    let mut roster = Roster::new();
    for change in CHANGES {
        roster.event(at(1), (NodeKind::Lease, worker("w")), change);
    }
    roster.tick(at(1));
    roster.broken();
    assert!(!roster.is_following() && !roster.has_news(at(1)));
    assert_eq!(whats(&mut roster), []);
}

#[test]
fn a_write_of_its_own_comes_before_everything_is_read() {
    let mut roster = Roster::new();
    roster.connected();
    let write = roster.next_ask().expect("a write");
    assert_eq!(write.what, What::Write);
    for change in CHANGES {
        roster.event(at(1), (NodeKind::Lease, worker("w")), change);
    }
    roster.tick(at(1));
    assert_eq!(whats(&mut roster), [], "what was heard by then waits for that write");
    // No answer to the question.
    roster.answered(at(1), write.clone(), RosterAnswer::Listed(vec![]));
    assert_eq!(whats(&mut roster), []);
    roster.answered(at(1), write.clone(), RosterAnswer::Written);
    roster.answered(at(1), write, RosterAnswer::Written);
    assert_eq!(whats(&mut roster), [What::List(NodeKind::Lease), What::List(NodeKind::Member)], "once");
}

#[test]
fn everything_is_told_when_the_last_of_it_was_read_and_what_changed_meanwhile_is_read_again() {
    let nodes = Nodes::new(&[("a", 1), ("b", 2)]);
    let mut roster = Roster::new();
    roster.connected();
    let mut asked = Vec::new();
    while let Some(ask) = roster.next_ask() {
        if asked.len() == 3 {
            for change in CHANGES {
                roster.event(at(5), (NodeKind::Lease, worker("b")), change);
            }
            roster.event(at(5), (NodeKind::Member, worker("c")), NodeChange::Created);
        }
        assert_eq!(told(&mut roster, at(5)), []);
        let answer = nodes.answer(&ask.what);
        asked.push(ask.what.clone());
        roster.answered(at(6), ask, answer);
        if roster.is_following() {
            break;
        }
    }
    let read = |kind, name| What::Read((kind, worker(name)));
    let leases = [read(NodeKind::Lease, "a"), read(NodeKind::Lease, "b")];
    let members = [read(NodeKind::Member, "a"), read(NodeKind::Member, "b")];
    let lists = [What::List(NodeKind::Lease), What::List(NodeKind::Member)];
    assert_eq!(asked, [What::Write].into_iter().chain(lists).chain(leases).chain(members).collect::<Vec<_>>());
    assert_eq!(told(&mut roster, at(6)), [everything(&nodes)]);
    assert_eq!(whats(&mut roster), [read(NodeKind::Member, "c"), read(NodeKind::Lease, "b")]);
}

#[test]
fn an_empty_directory_is_everything_too() {
    let roster = following(&Nodes::default());
    assert!(roster.is_following());
}

#[test]
fn only_a_heartbeat_is_told_from_an_event() {
    let mut nodes = Nodes::new(&[("w", 1)]);
    for (kind, change) in [
        (NodeKind::Member, NodeChange::Created),
        (NodeKind::Member, NodeChange::Changed),
        (NodeKind::Member, NodeChange::Deleted),
        (NodeKind::Lease, NodeChange::Created),
        (NodeKind::Lease, NodeChange::Deleted),
    ] {
        let mut roster = following(&nodes);
        roster.event(at(1), (kind, worker("w")), change);
        assert_eq!(told(&mut roster, at(1)), [], "{kind:?} {change:?}");
        assert_eq!(whats(&mut roster), [What::Read((kind, worker("w")))], "{kind:?} {change:?}");
    }
    let mut roster = following(&nodes);
    roster.event(at(1), (NodeKind::Lease, worker("w")), NodeChange::Changed);
    assert_eq!(told(&mut roster, at(1)), [RosterEvent::Beat(lease("w", 1))]);
    assert_eq!(whats(&mut roster), []);
    // A name that nothing is known of is read, whatever happened to it.
    for change in CHANGES {
        let mut roster = following(&nodes);
        roster.event(at(1), (NodeKind::Lease, worker("x")), change);
        assert_eq!(told(&mut roster, at(1)), []);
        answer_all(&mut roster, at(1), &nodes);
        assert_eq!(told(&mut roster, at(1)), [], "there is none");
    }
    nodes.leases[0].evicted = true;
    let mut roster = following(&nodes);
    roster.event(at(1), (NodeKind::Lease, worker("w")), NodeChange::Changed);
    assert_eq!((told(&mut roster, at(1)), whats(&mut roster)), (vec![], vec![]), "nobody's heartbeat");
}

#[test]
fn what_a_read_finds_is_told_as_what_happened() {
    let before = Nodes::new(&[("w", 1)]);
    let ended = |life| RosterEvent::Ended(worker("w"), Incarnation::new(life));
    let evicted = |life| LeaseNode { evicted: true, ..lease("w", life) };
    let cases = [
        (None, vec![ended(1)]),
        (Some(lease("w", 1)), vec![]),
        (Some(lease("w", 2)), vec![ended(1), RosterEvent::Beat(lease("w", 2))]),
        (Some(evicted(1)), vec![ended(1)]),
        (Some(evicted(2)), vec![ended(1), RosterEvent::Beat(evicted(2)), ended(2)]),
    ];
    for (found, expected) in cases {
        let mut roster = following(&before);
        let after = Nodes { members: before.members.clone(), leases: found.clone().into_iter().collect() };
        for _ in 0..2 {
            roster.event(at(1), (NodeKind::Lease, worker("w")), NodeChange::Deleted);
            answer_all(&mut roster, at(1), &after);
        }
        assert_eq!(told(&mut roster, at(1)), expected, "{found:?}, and nothing of it twice");
    }
}

#[test]
fn members_are_told_once_none_of_them_is_being_read() {
    let mut roster = following(&Nodes::new(&[("a", 1)]));
    let after = Nodes::new(&[("a", 2), ("b", 3)]);
    roster.event(at(1), (NodeKind::Member, worker("a")), NodeChange::Deleted);
    roster.event(at(1), (NodeKind::Member, worker("b")), NodeChange::Created);
    let asks: Vec<RosterAsk> = std::iter::from_fn(|| roster.next_ask()).collect();
    for ask in asks {
        assert_eq!(told(&mut roster, at(1)), []);
        let answer = after.answer(&ask.what);
        roster.answered(at(1), ask, answer);
    }
    assert_eq!(told(&mut roster, at(1)), [RosterEvent::Members(after.members.clone())]);
    roster.event(at(2), (NodeKind::Member, worker("b")), NodeChange::Changed);
    answer_all(&mut roster, at(2), &after);
    assert_eq!(told(&mut roster, at(2)), [], "it is what it was");
}

#[test]
fn an_event_after_the_sending_of_a_read_makes_the_name_be_read_again() {
    let before = Nodes::new(&[("w", 1)]);
    let mut roster = following(&before);
    let name = (NodeKind::Lease, worker("w"));
    roster.event(at(1), name.clone(), NodeChange::Deleted);
    let ask = roster.next_ask().expect("a read");
    roster.event(at(2), name.clone(), NodeChange::Created);
    roster.event(at(2), name.clone(), NodeChange::Deleted);
    assert_eq!(whats(&mut roster), [], "one at a time");
    roster.answered(at(3), ask, before.answer(&What::Read(name.clone())));
    let again = roster.next_ask().expect("a read");
    assert_eq!(again.what, What::Read(name.clone()));
    roster.answered(at(4), again, RosterAnswer::Found(None));
    assert_eq!(told(&mut roster, at(4)), [RosterEvent::Ended(worker("w"), Incarnation::new(1))]);
    assert_eq!(whats(&mut roster), []);
}

#[test]
fn an_eviction_that_is_expected_is_read_at_once_and_any_other_when_nothing_follows() {
    let before = Nodes::new(&[("w", 1)]);
    let mut after = before.clone();
    after.leases[0].evicted = true;
    let ended = RosterEvent::Ended(worker("w"), Incarnation::new(1));
    let mut roster = following(&before);
    roster.suspect(worker("w"));
    roster.event(at(1), (NodeKind::Lease, worker("w")), NodeChange::Changed);
    answer_all(&mut roster, at(1), &after);
    assert_eq!(told(&mut roster, at(1)), [RosterEvent::Beat(lease("w", 1)), ended.clone()]);

    let mut roster = following(&before);
    roster.event(at(1), (NodeKind::Lease, worker("w")), NodeChange::Changed);
    roster.tick(at(1150));
    assert_eq!(whats(&mut roster), []);
    roster.tick(at(1151));
    answer_all(&mut roster, at(1151), &after);
    assert_eq!(told(&mut roster, at(1151)), [RosterEvent::Beat(lease("w", 1)), ended]);
}

#[test]
fn a_break_ends_what_was_under_way_and_everything_is_read_anew() {
    let nodes = Nodes::new(&[("w", 1)]);
    let mut roster = following(&nodes);
    roster.event(at(1), (NodeKind::Lease, worker("w")), NodeChange::Deleted);
    let late = roster.next_ask().expect("a read");
    roster.broken();
    roster.answered(at(2), late.clone(), RosterAnswer::Found(None));
    roster.event(at(2), (NodeKind::Lease, worker("w")), NodeChange::Changed);
    roster.connected();
    let write = roster.next_ask().expect("a write");
    // An answer of the connection before says nothing, at any stage of the next.
    roster.answered(at(3), late.clone(), RosterAnswer::Found(None));
    roster.answered(at(3), write, RosterAnswer::Written);
    roster.answered(at(3), late.clone(), RosterAnswer::Found(None));
    answer_all(&mut roster, at(4), &nodes);
    roster.answered(at(5), late, RosterAnswer::Found(None));
    assert_eq!(told(&mut roster, at(5)), [everything(&nodes)]);
    // Also when it breaks on the way there.
    for stage in 0..4 {
        roster.connected();
        for _ in 0..stage {
            let ask = roster.next_ask().expect("there is more to ask");
            let answer = nodes.answer(&ask.what);
            roster.answered(at(6), ask, answer);
        }
        roster.broken();
        assert_eq!((told(&mut roster, at(6)), whats(&mut roster)), (vec![], vec![]), "stage {stage}");
    }
}

#[test]
fn the_reads_under_way_are_bounded() {
    let names: Vec<String> = (0..3 * READS).map(|n| format!("w{n}")).collect();
    let lives: Vec<(&str, u128)> = names.iter().map(|name| (name.as_str(), 1)).collect();
    let nodes = Nodes::new(&lives);
    let mut roster = Roster::new();
    roster.connected();
    let (mut under_way, mut reads) = (VecDeque::new(), 0);
    loop {
        under_way.extend(std::iter::from_fn(|| roster.next_ask()));
        let Some(ask) = under_way.pop_front() else { break };
        assert!(under_way.len() < READS + 2);
        reads += usize::from(matches!(ask.what, What::Read(_)));
        let answer = nodes.answer(&ask.what);
        roster.answered(at(1), ask, answer);
    }
    assert_eq!((reads, roster.is_following()), (6 * READS, true));
}

/// A server that was told of `fresh` last shows `stale` to whoever connects to it; its clients' own writes bring it up.
fn reconnect(roster: &mut Roster, stale: &Nodes, fresh: &Nodes) {
    roster.broken();
    roster.connected();
    let mut server = stale;
    while let Some(ask) = roster.next_ask() {
        if ask.what == What::Write {
            server = fresh;
        }
        let answer = server.answer(&ask.what);
        roster.answered(at(10), ask, answer);
    }
}

#[test]
fn a_newcomer_known_from_its_event_alone_is_not_read_as_absent_on_a_server_that_lags() {
    let (stale, fresh) = (Nodes::new(&[("a", 1)]), Nodes::new(&[("a", 1), ("b", 2)]));
    let mut roster = following(&stale);
    for kind in [NodeKind::Lease, NodeKind::Member] {
        roster.event(at(1), (kind, worker("b")), NodeChange::Created);
    }
    assert_eq!(told(&mut roster, at(1)), [], "an event makes nobody known");
    reconnect(&mut roster, &stale, &fresh);
    assert_eq!(told(&mut roster, at(10)), [everything(&fresh)]);
}

#[test]
fn a_life_that_others_told_the_leader_of_is_not_read_as_absent_on_a_server_that_lags() {
    // As a new leader knows it from the store: nothing was read before.
    let (stale, fresh) = (Nodes::default(), Nodes::new(&[("a", 1)]));
    let mut roster = Roster::new();
    reconnect(&mut roster, &stale, &fresh);
    assert_eq!(told(&mut roster, at(10)), [everything(&fresh)]);
}

#[test]
fn an_end_that_only_the_former_connection_saw_is_told_by_the_next_full_read() {
    let (before, after) = (Nodes::new(&[("a", 1), ("b", 2)]), Nodes::new(&[("a", 1)]));
    let mut roster = following(&before);
    roster.event(at(1), (NodeKind::Lease, worker("b")), NodeChange::Deleted);
    reconnect(&mut roster, &before, &after);
    assert_eq!(told(&mut roster, at(10)), [everything(&after)]);
}
