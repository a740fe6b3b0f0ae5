//! What was measured of ZooKeeper, asked of its model.

use std::time::Duration;

use super::connection::{ZkCall, ZkReply};
use super::ensemble::ServerRole;
use super::tree::{Data, Dir, TERM, TxnOp, ZkFailure};
use super::*;

const SECOND: SimTime = 1_000_000_000;

/// A service alone, whose clients are led by hand.
struct ServiceBench {
    service: ZooKeeper,
    queue: BTreeMap<(SimTime, u64), ServiceTask>,
    sequence: u64,
    client_events: Vec<(SimTime, usize, ClientEvent)>,
}

impl ServiceBench {
    fn new(servers: usize) -> Self {
        let mut service = ZooKeeper::new(1, 0, false);
        service.servers = (0..servers).map(|_| ZkServer::new()).collect();
        service.peers = (0..servers * servers).map(|_| Lane::default()).collect();
        service.tick = SECOND / 5;
        let mut this = Self { service, queue: BTreeMap::new(), sequence: 0, client_events: Vec::new() };
        this.service.start_ensemble();
        this
    }

    fn run(&mut self, time: SimTime) {
        let end = self.service.now + time;
        loop {
            for (at, event) in std::mem::take(&mut self.service.out) {
                self.sequence += 1;
                self.queue.insert((at.max(self.service.now), self.sequence), event);
            }
            let now = self.service.now;
            self.client_events.extend(
                std::mem::take(&mut self.service.client_events).into_iter().map(|(client, event)| (now, client, event)),
            );
            match self.queue.first_entry() {
                Some(first) if first.key().0 <= end => {
                    let ((at, _), event) = first.remove_entry();
                    self.service.now = at;
                    self.service.take(event);
                }
                _ => break,
            }
        }
        self.service.now = end;
    }

    fn leader(&self) -> usize {
        let leads = |server: &ZkServer| matches!(server.role, ServerRole::Leading(_));
        self.service.servers.iter().position(leads).expect("one leads")
    }

    /// A client that is connected to this server.
    fn client_at(&mut self, server: usize, timeout: SimTime) -> usize {
        let number = self.service.clients.len();
        let client = self.service.open_client(Who::Worker(number), timeout);
        for _ in 0..100 {
            self.run(SECOND / 20);
            let at = self.service.clients[client].connection.map(|c| self.service.connections[c].server);
            if at == Some(server) && self.service.clients[client].connected {
                return client;
            }
            if at.is_some() && self.service.clients[client].connected {
                self.service.disconnect(client);
            }
        }
        panic!("it does not get to server {server}");
    }

    /// Asks, and waits for the answer.
    fn ask(&mut self, client: usize, call: ZkCall) -> Result<ZkReply, ZkFailure> {
        let id = self.service.call(client, call);
        for _ in 0..200 {
            self.run(SECOND / 100);
            let answer = |(_, of, event): &(SimTime, usize, ClientEvent)| {
                *of == client && matches!(event, ClientEvent::Answer(n, _) if *n == id)
            };
            if let Some(at) = self.client_events.iter().position(answer)
                && let (_, _, ClientEvent::Answer(_, answer)) = self.client_events.remove(at)
            {
                return answer;
            }
        }
        panic!("no answer");
    }

    fn write(&mut self, client: usize, ops: Vec<TxnOp>) -> Result<(), ZkFailure> {
        self.ask(client, ZkCall::Write(ops)).and_then(ZkReply::wrote).map(drop)
    }

    fn term(&mut self, client: usize) -> Option<Term> {
        match self.ask(client, ZkCall::Read(TERM)).ok()?.node()?.data {
            Data::Term(term) => Some(term),
            _ => None,
        }
    }

    fn cut(&mut self, server: usize, until: SimTime) {
        for other in (0..self.service.servers.len()).filter(|other| *other != server) {
            self.service.cuts.insert(NetworkPath::Servers(server, other), until);
            self.service.cuts.insert(NetworkPath::Servers(other, server), until);
        }
    }
}

fn term(n: u64, version: Option<u32>) -> TxnOp {
    match version {
        None => TxnOp::Create { path: TERM, data: Data::Term(Term::new(n)), ephemeral: false },
        version => TxnOp::Set { path: TERM, data: Data::Term(Term::new(n)), version },
    }
}

#[test]
fn a_server_that_is_cut_off_answers_from_what_it_has_until_it_notices_and_its_clients_never_go_back() {
    let mut bench = ServiceBench::new(3);
    bench.run(SECOND);
    let (leader, cut, other) = (bench.leader(), (bench.leader() + 1) % 3, (bench.leader() + 2) % 3);
    let (behind, ahead) = (bench.client_at(cut, 10 * SECOND), bench.client_at(other, 10 * SECOND));
    assert_eq!(bench.write(ahead, vec![term(1, None)]), Ok(()));
    bench.run(SECOND / 10);
    let until = bench.service.now + 20 * SECOND;
    bench.cut(cut, until);
    assert_eq!(bench.write(ahead, vec![term(2, Some(0))]), Ok(()));
    assert_eq!((bench.term(behind), bench.term(ahead)), (Some(Term::new(1)), Some(Term::new(2))), "it lags");
    // Whoever has seen more is refused there.
    bench.service.clients[ahead].last_server = (cut + 2) % 3;
    bench.service.disconnect(ahead);
    bench.run(SECOND / 2);
    assert_ne!(bench.service.connections[bench.service.clients[ahead].connection.expect("it tries")].server, cut);
    bench.run(3 * SECOND);
    assert!(matches!(bench.service.servers[cut].role, ServerRole::Looking), "it has noticed");
    assert_eq!((bench.term(behind), bench.leader()), (Some(Term::new(2)), leader), "elsewhere it sees more");
}

#[test]
fn a_leader_that_lost_its_quorum_commits_nothing_and_what_it_took_may_be_lost() {
    let mut bench = ServiceBench::new(3);
    bench.run(SECOND);
    let old = bench.leader();
    let (with, other) = (bench.client_at(old, 20 * SECOND), bench.client_at((old + 1) % 3, 20 * SECOND));
    assert_eq!(bench.write(other, vec![term(1, None)]), Ok(()));
    let until = bench.service.now + 4 * SECOND;
    bench.cut(old, until);
    bench.service.call(with, ZkCall::Write(vec![term(7, Some(0))]));
    bench.run(3 * SECOND);
    assert_ne!(bench.leader(), old);
    assert_eq!(bench.write(other, vec![term(2, Some(0))]), Ok(()), "the other write is not there");
    let lost = bench
        .client_events
        .iter()
        .any(|(_, of, event)| *of == with && matches!(event, ClientEvent::Answer(_, Err(ZkFailure::Unknown))));
    assert!(lost, "nobody knows what became of it");
    bench.run(3 * SECOND);
    assert_eq!(bench.term(with), Some(Term::new(2)));
}

#[test]
fn what_a_session_made_goes_at_once_when_it_is_over_and_a_deleted_node_takes_no_write() {
    let mut bench = ServiceBench::new(3);
    bench.run(SECOND);
    let (dies, sees) = (bench.client_at(0, SECOND), bench.client_at(1, 10 * SECOND));
    let node = |dir| TxnOp::Create { path: (dir, 5), data: Data::Contender(5), ephemeral: true };
    assert_eq!(bench.write(dies, vec![node(Dir::Members), node(Dir::Leases)]), Ok(()));
    assert!(
        bench.ask(sees, ZkCall::Watch(Dir::Members)).is_ok() && bench.ask(sees, ZkCall::Watch(Dir::Leases)).is_ok()
    );
    bench.client_events.clear();
    bench.service.kill_client(dies);
    bench.run(3 * SECOND);
    let zxids = |bench: &ServiceBench| bench.service.servers[1].tree.nodes.len();
    assert_eq!(zxids(&bench), 0);
    let events: Vec<_> = bench
        .client_events
        .iter()
        .filter_map(|(_, of, event)| matches!(event, ClientEvent::Event(..)).then_some(*of))
        .collect();
    assert_eq!(events, [sees, sees]);
    let beat = TxnOp::Set { path: (Dir::Leases, 5), data: Data::Contender(5), version: Some(0) };
    assert_eq!(bench.write(sees, vec![beat]), Err(ZkFailure::NoNode));
}

#[test]
fn a_change_is_announced_before_any_answer_that_shows_it() {
    let mut bench = ServiceBench::new(3);
    bench.run(SECOND);
    let (writes, reads) = (bench.client_at(0, 10 * SECOND), bench.client_at(2, 10 * SECOND));
    assert_eq!(bench.write(writes, vec![term(1, None)]), Ok(()));
    assert!(bench.ask(reads, ZkCall::Watch(Dir::Own)).is_ok());
    for n in 0..20 {
        bench.client_events.clear();
        bench.service.call(writes, ZkCall::Write(vec![term(2, Some(n))]));
        for _ in 0..20 {
            bench.service.call(reads, ZkCall::Read(TERM));
            bench.run(SECOND / 1_000);
        }
        bench.run(SECOND);
        let mut seen = false;
        for (_, _, what) in bench.client_events.iter().filter(|(_, of, _)| *of == reads) {
            match what {
                ClientEvent::Event(..) => seen = true,
                ClientEvent::Answer(_, Ok(ZkReply::Read(Some(node)))) => assert!(node.version == n || seen),
                _ => {}
            }
        }
        assert!(seen);
    }
}

#[test]
fn a_write_through_a_follower_does_not_keep_its_session_alive() {
    let mut bench = ServiceBench::new(3);
    bench.run(SECOND);
    let leader = bench.leader();
    let follower = (leader + 1) % 3;
    let client = bench.client_at(follower, 2 * SECOND);
    let node = TxnOp::Create { path: (Dir::Leases, 5), data: Data::Contender(5), ephemeral: true };
    assert_eq!(bench.write(client, vec![node]), Ok(()));
    // The follower hears no ping, so that it passes nothing on, but what it sends arrives.
    let session = bench.service.clients[client].session.expect("it has one");
    let before = bench.service.now;
    for server in &mut bench.service.servers {
        if let Some(leading) = server.leading() {
            assert!(leading.sessions.contains_key(&session));
        }
    }
    bench.service.cuts.insert(NetworkPath::Servers(leader, follower), before + SECOND);
    bench.service.call(
        client,
        ZkCall::Write(vec![TxnOp::Set { path: (Dir::Leases, 5), data: Data::Contender(6), version: None }]),
    );
    bench.run(SECOND / 10);
    let tracked = bench.service.servers[leader].leading().and_then(|l| l.sessions.get(&session)).map(|t| t.touched);
    assert!(tracked.is_some_and(|touched| touched <= before), "a forwarded write touches nothing");
    assert_eq!(bench.service.servers[leader].tree.nodes[&(Dir::Leases, 5)].data, Data::Contender(6), "but commits");
}

#[test]
fn members_beat_and_leave_and_one_coordinator_after_the_other_leads() {
    let mut bench = ServiceBench::new(3);
    bench.run(SECOND);
    let profile = common::Profile {
        weight: 1,
        zone: String::new(),
        host: String::new(),
        drivers: Default::default(),
        version: String::new(),
        pid: 0,
        process: None,
        lease: Duration::from_secs(1),
    };
    let run = |bench: &mut ServiceBench, steps: u32| {
        for _ in 0..steps {
            bench.run(SECOND / 100);
            for (_, client, event) in std::mem::take(&mut bench.client_events) {
                match bench.service.clients[client].who {
                    Who::Worker(place) => bench.service.member_client_event(place, client, event),
                    Who::Coordinator(n) => bench.service.candidate_client_event(n, client, event),
                }
            }
        }
    };
    bench.service.candidate_starts(0);
    run(&mut bench, 300);
    bench.service.candidate_starts(1);
    bench.service.member_asks(0, 1, GroupRequest::Join, &profile);
    run(&mut bench, 300);
    let elected = |bench: &mut ServiceBench| {
        let news = std::mem::take(&mut bench.service.news);
        let elected = news.iter().filter_map(|news| match news {
            ServiceEvent::Coordinator(n, CandidateEvent::Elected) => Some(*n),
            _ => None,
        });
        elected.collect::<Vec<_>>()
    };
    assert!(
        bench
            .service
            .news
            .iter()
            .any(|news| matches!(news, ServiceEvent::Worker { answer: GroupReply::Joined(..), .. }))
    );
    assert_eq!(elected(&mut bench), [0]);
    bench.service.candidate_raises(0, Term::default());
    run(&mut bench, 100);
    let raised = |news: &ServiceEvent| matches!(news, ServiceEvent::Coordinator(0, CandidateEvent::Raised { term }) if *term == Term::new(1));
    assert!(bench.service.news.iter().any(raised));
    bench.service.candidate_ends(0, false);
    run(&mut bench, 800);
    assert_eq!(elected(&mut bench), [1]);
    assert_eq!(bench.service.look_who_leads(Who::Worker(0)), Some(1));
}
