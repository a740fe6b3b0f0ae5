//! What the leader hears of the workers' nodes.

use std::collections::BTreeMap;

use common::{Incarnation, Timestamp, WorkerId};
use coordination::{LeaseNode, MemberNode, MembershipEnd, RosterEvent};
use tokio::sync::mpsc::Receiver;
use zookeeper_client::{Acls, Client, CreateMode};

use crate::support::{TestRoot, elected, heartbeat, join, own, shared, within, worker};

/// The leader's view, made of news alone.
#[derive(Debug)]
pub(crate) struct ObservedRoster {
    news: Receiver<(Timestamp, RosterEvent)>,
    pub(crate) reads: usize,
    pub(crate) members: BTreeMap<WorkerId, MemberNode>,
    pub(crate) leases: BTreeMap<WorkerId, LeaseNode>,
    pub(crate) beats: usize,
    pub(crate) ended: Vec<(WorkerId, Incarnation)>,
}

impl ObservedRoster {
    pub(crate) fn new(news: Receiver<(Timestamp, RosterEvent)>) -> Self {
        Self { news, reads: 0, members: BTreeMap::new(), leases: BTreeMap::new(), beats: 0, ended: Vec::new() }
    }

    pub(crate) async fn take(&mut self) {
        let (_, news) = within("there is news", self.news.recv()).await.expect("the leader is not lost");
        match news {
            RosterEvent::Read { members, leases } => {
                self.reads += 1;
                self.members = members.into_iter().map(|m| (m.worker.clone(), m)).collect();
                self.leases = leases.into_iter().map(|l| (l.worker.clone(), l)).collect();
            }
            RosterEvent::Members(members) => {
                self.members = members.into_iter().map(|m| (m.worker.clone(), m)).collect()
            }
            RosterEvent::Beat(node) => {
                assert!(self.reads > 0, "it begins with a read");
                assert!(!self.ended.contains(&(node.worker.clone(), node.incarnation)), "no beat after the end");
                self.beats += 1;
                self.leases.insert(node.worker.clone(), node);
            }
            RosterEvent::Ended(worker, life) => {
                assert!(!self.ended.contains(&(worker.clone(), life)), "an end is told once");
                self.ended.push((worker, life));
            }
        }
    }

    pub(crate) async fn until(&mut self, what: &str, done: impl Fn(&Self) -> bool) {
        within(what, async {
            while !done(self) {
                self.take().await;
            }
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn lives_come_beat_and_end() {
    let place = TestRoot::new(shared().await, "roster", 4.0);
    let (old, _gate) = join(&place.group("w0")).await;
    let candidate = place.candidate("c");
    let leadership = elected(&candidate).await;
    let mut view = ObservedRoster::new(leadership.roster().expect("it watches"));
    view.take().await;
    assert_eq!((view.reads, view.members.len(), view.leases.len()), (1, 1, 1));
    let node = &view.leases[&worker("w0")];
    assert_eq!(Some(node.incarnation), old.incarnation());
    assert_eq!((node.lease, node.evicted), (old.lease(), false));
    assert_eq!(Some(view.members[&worker("w0")].incarnation), old.incarnation());
    assert_eq!(view.members[&worker("w0")].profile.weight, 2);

    let group = place.group("w1");
    let (life, _gate) = join(&group).await;
    let incarnation = life.incarnation().expect("it is known");
    let w1 = worker("w1");
    view.until("it is known", |v| v.members.contains_key(&w1) && v.leases.contains_key(&w1)).await;
    assert_eq!(view.leases[&w1].incarnation, incarnation);
    let before = view.beats;
    view.until("it beats", |v| v.beats > before + 4).await;
    assert!(view.ended.is_empty());
    within("it has left", life.leave()).await;
    view.until("it is gone", |v| !v.members.contains_key(&w1) && v.ended.contains(&(w1.clone(), incarnation))).await;

    // The same name anew: another life.
    let (life, _gate) = join(&group).await;
    let next = life.incarnation().expect("it is known");
    view.until("it is back", |v| {
        v.members.get(&w1).is_some_and(|m| m.incarnation == next) && v.leases[&w1].incarnation == next
    })
    .await;
    assert_ne!(next, incarnation);
    assert_eq!((view.reads, view.ended.len()), (1, 1));
    drop(old);
    view.until("the other is gone", |v| v.ended.len() == 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_evicted_life_ends_and_only_that_one() {
    let place = TestRoot::new(shared().await, "evict", 4.0);
    let group = place.group("w1");
    let (life, gate) = join(&group).await;
    let candidate = place.candidate("c");
    let leadership = elected(&candidate).await;
    let mut view = ObservedRoster::new(leadership.roster().expect("it watches"));
    view.take().await;
    let (w1, incarnation) = (worker("w1"), life.incarnation().expect("it is known"));
    let other = Incarnation::new(incarnation.get() + 1);
    leadership.evict(w1.clone(), other).await.expect("another life's is fine");
    leadership.evict(worker("w2"), incarnation).await.expect("nobody's is fine");
    gate.beats().await;
    leadership.evict(w1.clone(), incarnation).await.expect("it leads");
    leadership.evict(w1.clone(), incarnation).await.expect("twice is fine");
    view.until("its end is told", |v| v.ended == [(w1.clone(), incarnation)]).await;
    assert_eq!(within("it notices", life.ended()).await, MembershipEnd::Evicted);
    assert!(gate.is_shut());
    let (next, _gate) = join(&group).await;
    let next = next.incarnation().expect("it is known");
    view.until("it comes back", |v| v.leases[&w1].incarnation == next).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn python_members_their_changes_and_odd_names() {
    let place = TestRoot::new(shared().await, "members", 4.0);
    let client = place.client().await;
    let candidate = place.candidate("c");
    let leadership = elected(&candidate).await;
    let mut view = ObservedRoster::new(leadership.roster().expect("it watches"));
    view.take().await;
    let ephemeral = CreateMode::Ephemeral.with_acls(Acls::anyone_all());
    let persistent = CreateMode::Persistent.with_acls(Acls::anyone_all());
    client.mkdir("/tooz/g.workers/leader/x", &persistent).await.expect("anyone may");
    client.create("/tooz/g.workers/\u{e4}", b"\x80", &ephemeral).await.expect("anyone may");
    client.create("/tooz/g.workers/py", b"\x81\xa6weight\x03", &ephemeral).await.expect("anyone may");
    let py = worker("py");
    let weight = |view: &ObservedRoster| view.members.get(&py).map(|member| member.profile.weight);
    view.until("it is a member", |v| weight(v) == Some(3)).await;
    assert_eq!(view.members.len(), 1, "neither `leader` nor a name that is not ASCII");
    assert!(view.members[&py].profile.drivers.is_empty());
    client.set_data("/tooz/g.workers/py", b"\x81\xa6weight\x05", None).await.expect("it is there");
    view.until("its weight changes", |v| weight(v) == Some(5)).await;
    let before = view.members[&py].incarnation;
    let mut writer = client.new_multi_writer();
    writer.add_delete("/tooz/g.workers/py", None).expect("a valid path");
    writer.add_create("/tooz/g.workers/py", b"\x81\xa6weight\x05", &ephemeral).expect("a valid path");
    writer.commit().await.expect("both happen");
    view.until("it is another", |v| v.members.get(&py).is_some_and(|m| m.incarnation != before)).await;
    assert_eq!(view.reads, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mark_by_another_hand_ends_a_life_whose_node_stays() {
    let place = TestRoot::new(shared().await, "mark", 4.0);
    let client = place.client().await;
    let candidate = place.candidate("c");
    let leadership = elected(&candidate).await;
    let mut view = ObservedRoster::new(leadership.roster().expect("it watches"));
    view.take().await;
    // One that does not notice, so that nothing follows the mark.
    let path = "/rug/g/leases/w9";
    let ephemeral = CreateMode::Ephemeral.with_acls(Acls::anyone_all());
    let alive = heartbeat(1, client.session_id().0);
    client.create(path, &alive, &ephemeral).await.expect("anyone may");
    let w9 = worker("w9");
    view.until("it is known", |v| v.leases.contains_key(&w9)).await;
    let life = view.leases[&w9].incarnation;
    client.set_data(path, b"evicted", None).await.expect("anyone may write");
    view.until("its end is told", |v| v.ended == [(w9.clone(), life)]).await;
    // What another session writes is no heartbeat of its owner.
    client.delete(path, None).await.expect("it is there");
    client.create(path, &alive, &ephemeral).await.expect("anyone may");
    view.until("it is back", |v| v.leases[&w9].incarnation != life).await;
    let life = view.leases[&w9].incarnation;
    client.set_data(path, &heartbeat(2, 1), None).await.expect("anyone may write");
    view.until("its end is told", |v| v.ended.last() == Some(&(w9.clone(), life))).await;
    client.check_stat(path).await.expect("ZooKeeper is up").expect("it is still there");
    assert_eq!((view.reads, view.ended.len()), (1, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_may_not_be_read_is_no_member_but_may_be_a_life() {
    let place = TestRoot::new(shared().await, "unreadable", 4.0);
    let (_life, gate) = join(&place.group("w1")).await;
    let stranger = Client::connector().with_auth("digest", b"someone:else").connect(&place.address).await;
    let stranger = stranger.expect("ZooKeeper is up").chroot(place.chroot.clone()).expect("a valid chroot");
    let closed = CreateMode::Ephemeral.with_acls(Acls::creator_all());
    stranger.create("/tooz/g.workers/p1", b"\x80", &closed).await.expect("anyone may");
    let candidate = place.candidate("c");
    let leadership = elected(&candidate).await;
    let mut view = ObservedRoster::new(leadership.roster().expect("it watches"));
    view.take().await;
    assert_eq!(view.members.keys().collect::<Vec<_>>(), [&worker("w1")]);
    stranger.create("/tooz/g.workers/p2", b"\x80", &closed).await.expect("anyone may");
    let (_other, _gate) = join(&place.group("w2")).await;
    let w2 = worker("w2");
    view.until("it goes on", |v| v.members.contains_key(&w2) && v.leases.contains_key(&w2)).await;
    assert_eq!((view.reads, view.members.len()), (1, 2));

    // Whether the owner of a lease node lives cannot be told: nothing is, until it is gone.
    stranger.create("/rug/g/leases/p1", b"", &closed).await.expect("anyone may");
    let mut news = leadership.roster().expect("it watches");
    gate.beats().await;
    assert!(news.try_recv().is_err());
    stranger.delete("/rug/g/leases/p1", None).await.expect("it is there");
    let mut view = ObservedRoster::new(news);
    view.take().await;
    assert_eq!((view.reads, view.members.len(), view.leases.len()), (1, 2, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_break_everything_is_read_anew_and_nobody_who_lives_ended() {
    let mut server = own().await;
    let place = TestRoot::new(&server, "anew", 30.0);
    let (life, gate) = join(&place.group("w1")).await;
    let (gone, _gate) = join(&place.group("w2")).await;
    let candidate = place.candidate("c");
    let leadership = elected(&candidate).await;
    let mut view = ObservedRoster::new(leadership.roster().expect("it watches"));
    view.take().await;
    for round in 2..4 {
        server.kill().expect("it runs");
        server.start_again().await.expect("it starts");
        view.until("it was read anew", |v| v.reads == round).await;
        assert_eq!(view.leases.len(), 2);
        // The watches are there again.
        let before = view.beats;
        view.until("heartbeats are seen", |v| v.beats > before + 1).await;
    }
    assert!(view.ended.is_empty());
    let incarnation = gone.incarnation().expect("it is known");
    within("it has left", gone.leave()).await;
    view.until("its end is told", |v| v.ended == [(worker("w2"), incarnation)]).await;
    gate.beats().await;
    assert_eq!(view.leases[&worker("w1")].incarnation, life.incarnation().expect("it is known"));
    assert!(!leadership.lost().is_cancelled());
}
