//! What the leader hears of the workers' nodes.

use std::collections::BTreeMap;

use common::coordination::{Ended, LeaseNode, MemberNode, News};
use common::{Incarnation, Timestamp, WorkerId};
use tokio::sync::mpsc::Receiver;
use zookeeper_client::{Acls, CreateMode};

use crate::support::{Place, elected, join, own, shared, within, worker};

/// The leader's view, made of news alone.
#[derive(Debug)]
pub(crate) struct View {
    news: Receiver<(Timestamp, News)>,
    pub(crate) reads: usize,
    pub(crate) members: BTreeMap<WorkerId, MemberNode>,
    pub(crate) leases: BTreeMap<WorkerId, LeaseNode>,
    pub(crate) beats: usize,
    pub(crate) ended: Vec<(WorkerId, Incarnation)>,
}

impl View {
    pub(crate) fn new(news: Receiver<(Timestamp, News)>) -> Self {
        Self { news, reads: 0, members: BTreeMap::new(), leases: BTreeMap::new(), beats: 0, ended: Vec::new() }
    }

    pub(crate) async fn take(&mut self) {
        let (_, news) = within("there is news", self.news.recv()).await.expect("the leader is not lost");
        match news {
            News::Read { members, leases } => {
                self.reads += 1;
                self.members = members.into_iter().map(|m| (m.worker.clone(), m)).collect();
                self.leases = leases.into_iter().map(|l| (l.worker.clone(), l)).collect();
            }
            News::Members(members) => self.members = members.into_iter().map(|m| (m.worker.clone(), m)).collect(),
            News::Beat(node) => {
                assert!(self.reads > 0, "it begins with a read");
                assert!(!self.ended.contains(&(node.worker.clone(), node.incarnation)), "no beat after the end");
                self.beats += 1;
                self.leases.insert(node.worker.clone(), node);
            }
            News::Ended(worker, life) => {
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
    let place = Place::new(shared().await, "roster", 4.0);
    let (old, _gate) = join(&place.seat("w0")).await;
    let candidate = place.candidate("c");
    let leadership = elected(&candidate).await;
    let mut view = View::new(leadership.roster().expect("it watches"));
    view.take().await;
    assert_eq!((view.reads, view.members.len(), view.leases.len()), (1, 1, 1));
    let node = &view.leases[&worker("w0")];
    assert_eq!(Some(node.incarnation), old.incarnation());
    assert_eq!((node.lease, node.evicted), (old.lease(), false));
    assert_eq!(Some(view.members[&worker("w0")].incarnation), old.incarnation());
    assert_eq!(view.members[&worker("w0")].profile.weight, 2);

    let seat = place.seat("w1");
    let (life, _gate) = join(&seat).await;
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
    let (life, _gate) = join(&seat).await;
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
    let place = Place::new(shared().await, "evict", 4.0);
    let seat = place.seat("w1");
    let (life, gate) = join(&seat).await;
    let candidate = place.candidate("c");
    let leadership = elected(&candidate).await;
    let mut view = View::new(leadership.roster().expect("it watches"));
    view.take().await;
    let (w1, incarnation) = (worker("w1"), life.incarnation().expect("it is known"));
    let other = Incarnation::new(incarnation.get() + 1);
    leadership.evict(w1.clone(), other).await.expect("another life's is fine");
    leadership.evict(worker("w2"), incarnation).await.expect("nobody's is fine");
    gate.beats().await;
    leadership.evict(w1.clone(), incarnation).await.expect("it leads");
    leadership.evict(w1.clone(), incarnation).await.expect("twice is fine");
    view.until("its end is told", |v| v.ended == [(w1.clone(), incarnation)]).await;
    assert_eq!(within("it notices", life.ended()).await, Ended::Evicted);
    assert!(gate.is_shut());
    let (next, _gate) = join(&seat).await;
    let next = next.incarnation().expect("it is known");
    view.until("it comes back", |v| v.leases[&w1].incarnation == next).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn python_members_their_changes_and_odd_names() {
    let place = Place::new(shared().await, "members", 4.0);
    let client = place.client().await;
    let candidate = place.candidate("c");
    let leadership = elected(&candidate).await;
    let mut view = View::new(leadership.roster().expect("it watches"));
    view.take().await;
    let ephemeral = CreateMode::Ephemeral.with_acls(Acls::anyone_all());
    let persistent = CreateMode::Persistent.with_acls(Acls::anyone_all());
    client.mkdir("/tooz/g.workers/leader/x", &persistent).await.expect("anyone may");
    client.create("/tooz/g.workers/\u{e4}", b"\x80", &ephemeral).await.expect("anyone may");
    client.create("/tooz/g.workers/py", b"\x81\xa6weight\x03", &ephemeral).await.expect("anyone may");
    let py = worker("py");
    let weight = |view: &View| view.members.get(&py).map(|member| member.profile.weight);
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
async fn after_a_break_everything_is_read_anew_and_nobody_who_lives_ended() {
    let mut server = own().await;
    let place = Place::new(&server, "anew", 30.0);
    let (life, gate) = join(&place.seat("w1")).await;
    let (gone, _gate) = join(&place.seat("w2")).await;
    let candidate = place.candidate("c");
    let leadership = elected(&candidate).await;
    let mut view = View::new(leadership.roster().expect("it watches"));
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
