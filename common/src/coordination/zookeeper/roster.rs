//! What becomes of the workers' nodes, as the leader has to know it (ownership.md section 2).
//!
//! Two recursive watches, on the lease nodes and on the group, say *that* something happened to a name; what it is now is
//! read. A life is known only from the answer of a read, never from an event, and a deletion is believed only when a read
//! after it does not find that life: events of an earlier life may still be under way when a later one is read.
//! Heartbeats alone are told from events, with the moment the event reached this process. The event of an eviction looks
//! like theirs, but is the last one: a lease node that has fallen silent is read.
//!
//! When the connection breaks nothing more is said. On the new one both watches are set anew, then a heartbeat of this
//! coordinator has to commit, so that its server is as new as that, then everything is read, and that is told as
//! [`News::Read`]. Events that arrive during the read make their names be read once more.
//!
//! Invariants: one read per name at a time; every event after the sending of a read makes the name be read again, so
//! that the last state is always seen; a life that was told and is gone is told as ended, once.
//!
//! A member node that may not be read is no member. A lease node that may not be read stops everything, since taking it
//! for absent would be calling its owner gone.

mod known;
mod outbox;

use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use zookeeper_client::{
    AddWatchMode, Error as ZkError, EventType, PersistentWatcher, SessionState, Stat, WatchedEvent,
};

use self::known::{Kind, Known, Lease, Name};
use self::outbox::Outbox;
use super::candidate::Member;
use super::config::Config;
use super::connection::Failure;
use super::layout::{self, LEADER, LeaseData};
use super::leadership::Suspects;
use crate::coordination::{LeaseNode, MemberNode, News};
use crate::runtime::clock;
use crate::runtime::retry::Backoff;
use crate::{Incarnation, Timestamp, WorkerId};

/// Reads under way at once: enough to keep the connection busy, few enough not to hold up our own heartbeat.
const READS: usize = 64;

/// News on its way to the leader. When it is slower than that, beats are told once per life, however many there were.
const CHANNEL: usize = 64;

/// Names that cannot be workers and were complained about; beyond, they are dropped in silence.
const ODD_NAMES: usize = 256;

/// How often lease nodes that have fallen silent are looked for.
const SWEEP: Duration = Duration::from_millis(250);

/// Delays between tries to begin.
const RETRY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

/// Tells what becomes of the workers' nodes, until `done` is cancelled or the membership ends. Needs a Tokio runtime.
pub(super) fn spawn(
    config: Arc<Config>,
    member: Arc<Member>,
    suspects: Suspects,
    done: CancellationToken,
) -> mpsc::Receiver<(Timestamp, News)> {
    let (sender, receiver) = mpsc::channel(CHANNEL);
    let over = member.over.clone();
    let (outbox, odd) = (Outbox::default(), BTreeSet::new());
    let roster = Roster { config, member, suspects, sender, outbox, odd, refused: None };
    tokio::spawn(async move {
        tokio::select! {
            () = done.cancelled() => {}
            () = over.cancelled() => {}
            () = roster.run() => {}
        }
    });
    receiver
}

/// Why following ended.
enum Stop {
    /// The watches are gone, or a read failed: begin anew.
    Anew(String),
    /// Something may not be read that has to be: begin anew, but it takes a person to mend it.
    Refused(String),
    /// The session is over, or nobody listens.
    Over,
}

impl From<Failure> for Stop {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Over(_) => Self::Over,
            Failure::Unknown(why) => Self::Anew(why),
            Failure::Said(error @ ZkError::NoAuth) => Self::Refused(error.to_string()),
            Failure::Said(error) => Self::Anew(error.to_string()),
        }
    }
}

impl Stop {
    fn at(path: &str, failure: Failure) -> Self {
        match Self::from(failure) {
            Self::Refused(why) => Self::Refused(format!("{path}: {why}")),
            stop => stop,
        }
    }
}

/// What a read found.
type Found = Option<(Vec<u8>, Stat)>;

type Reads<'a> = FuturesUnordered<BoxFuture<'a, (Name, Result<Found, Failure>)>>;

struct Watches {
    members: PersistentWatcher,
    leases: PersistentWatcher,
}

impl Watches {
    /// An event that has arrived already.
    fn waiting(&mut self) -> Option<(Kind, WatchedEvent)> {
        let lease = self.leases.changed().now_or_never().map(|event| (Kind::Lease, event));
        lease.or_else(|| self.members.changed().now_or_never().map(|event| (Kind::Member, event)))
    }
}

struct Roster {
    config: Arc<Config>,
    member: Arc<Member>,
    suspects: Suspects,
    sender: mpsc::Sender<(Timestamp, News)>,
    outbox: Outbox,
    odd: BTreeSet<String>,
    /// What may not be read and was complained about, until everything can be read again.
    refused: Option<String>,
}

impl Roster {
    async fn run(mut self) {
        let mut backoff = Backoff::new(RETRY.0, RETRY.1);
        loop {
            let member = Arc::clone(&self.member);
            match self.follow(&member, &mut backoff).await {
                Stop::Over => return,
                Stop::Anew(why) => tracing::info!(why, "the workers' nodes have to be read anew"),
                Stop::Refused(why) => self.refused(why),
            }
            self.outbox.silence();
            tokio::time::sleep(backoff.next_delay()).await;
        }
    }

    /// Reads everything and tells what happens from then on, until the connection breaks.
    async fn follow(&mut self, member: &Member, backoff: &mut Backoff) -> Stop {
        let mut watches = match self.watch(member).await {
            Ok(watches) => watches,
            Err(stop) => return stop,
        };
        let mut known = match self.begin(member, &mut watches).await {
            Ok(known) => known,
            Err(stop) => return stop,
        };
        backoff.reset();
        self.refused = None;
        let mut sweep = tokio::time::interval(SWEEP);
        sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut reads, sender) = (Reads::new(), self.sender.clone());
        loop {
            if known.changed && !known.reads_members() {
                known.changed = false;
                self.outbox.members(clock::now(), known.members.values().cloned().collect());
            }
            while reads.len() < READS
                && let Some(name) = known.next_read()
            {
                reads.push(self.read(member, name));
            }
            tokio::select! {
                // What the watches say comes first: they tell of what was read, and of the connection's end.
                biased;
                event = watches.leases.changed() => {
                    if let Err(stop) = self.on_event(clock::now(), Kind::Lease, &event, &mut known) {
                        return stop;
                    }
                }
                event = watches.members.changed() => {
                    if let Err(stop) = self.on_event(clock::now(), Kind::Member, &event, &mut known) {
                        return stop;
                    }
                }
                Some((name, found)) = reads.next() => {
                    if let Err(stop) = self.on_answer(&mut watches, name, found, &mut known) {
                        return stop;
                    }
                }
                _ = sweep.tick() => known.sweep(clock::now()),
                permit = sender.reserve(), if !self.outbox.is_empty() => match permit {
                    Ok(permit) => if let Some(news) = self.outbox.pop() { permit.send(news) },
                    Err(_) => return Stop::Over,
                },
            }
            if self.outbox.is_swollen() {
                return Stop::Anew("the leader does not listen".to_owned());
            }
        }
    }

    async fn watch(&self, member: &Member) -> Result<Watches, Stop> {
        let (session, layout) = (&member.session, &self.config.layout);
        session.ensure(&layout.leases()).await?;
        let mode = AddWatchMode::PersistentRecursive;
        let leases = session.call(session.client().watch(&layout.leases(), mode)).await?;
        let members = session.call(session.client().watch(layout.workers(), mode)).await?;
        Ok(Watches { members, leases })
    }

    /// The full read, with what happened during it still to be read again.
    async fn begin(&mut self, member: &Member, watches: &mut Watches) -> Result<Known, Stop> {
        let mut known = Known::default();
        let mut touched = BTreeSet::new();
        let read = {
            let reading = self.read_all(member);
            let mut reading = std::pin::pin!(reading);
            loop {
                let (kind, event) = tokio::select! {
                    biased;
                    event = watches.leases.changed() => (Kind::Lease, event),
                    event = watches.members.changed() => (Kind::Member, event),
                    read = &mut reading => break read?,
                };
                still_connected(&event)?;
                touched.extend(self.subject(kind, &event.path).map(|name| (kind, name.to_owned())));
            }
        };
        // The connection may have broken, and been made anew, while the last answers were taken.
        while let Some((kind, event)) = watches.waiting() {
            still_connected(&event)?;
            touched.extend(self.subject(kind, &event.path).map(|name| (kind, name.to_owned())));
        }
        let now = clock::now();
        for (kind, name, found) in read {
            let Some((data, stat)) = self.readable(kind, &name, found)? else { continue };
            let Some(worker) = self.worker(&name) else { continue };
            match kind {
                Kind::Member => _ = known.members.insert(worker.clone(), member_node(worker, &data, &stat)),
                Kind::Lease => {
                    if let Some(node) = lease_node(worker.clone(), &data, &stat) {
                        let ended = node.evicted;
                        known.leases.insert(worker, Lease::new(node, ended, now));
                    }
                }
            }
        }
        let members = known.members.values().cloned().collect();
        let leases = known.leases.values().map(|lease| lease.node.clone()).collect();
        self.outbox.read(now, members, leases);
        for (kind, name) in touched {
            if let Some(worker) = self.worker(&name) {
                known.read((kind, worker));
            }
        }
        Ok(known)
    }

    /// Reads every node, after a write of our own has committed on this connection.
    async fn read_all(&self, member: &Member) -> Result<Vec<(Kind, String, Result<Found, Failure>)>, Stop> {
        if !member.fresh().await {
            return Err(Stop::Over);
        }
        let session = &member.session;
        let mut names = Vec::new();
        for kind in [Kind::Lease, Kind::Member] {
            let dir = self.dir(kind);
            let children = session.children(&dir).await.map_err(|failure| Stop::at(&dir, failure))?;
            names.extend(children.into_iter().filter(|name| name != LEADER).map(|name| (kind, name)));
        }
        let read = futures::stream::iter(names).map(async |(kind, name)| {
            let read = session.read(&format!("{}/{name}", self.dir(kind))).await;
            (kind, name, read)
        });
        Ok(read.buffer_unordered(READS).collect().await)
    }

    /// Takes a member node that may not be read for none.
    fn readable(&mut self, kind: Kind, name: &str, read: Result<Found, Failure>) -> Result<Found, Stop> {
        match read {
            Err(Failure::Said(error @ ZkError::NoAuth)) if kind == Kind::Member => {
                self.left_out(name, &error);
                Ok(None)
            }
            read => read.map_err(|failure| Stop::at(&format!("{}/{name}", self.dir(kind)), failure)),
        }
    }

    fn read<'a>(&self, member: &'a Member, name: Name) -> BoxFuture<'a, (Name, Result<Found, Failure>)> {
        let path = format!("{}/{}", self.dir(name.0), name.1);
        Box::pin(async move {
            let found = member.session.read(&path).await;
            (name, found)
        })
    }

    /// A read was answered: perhaps by another connection, which the watches know by now.
    fn on_answer(
        &mut self,
        watches: &mut Watches,
        name: Name,
        found: Result<Found, Failure>,
        known: &mut Known,
    ) -> Result<(), Stop> {
        while let Some((kind, event)) = watches.waiting() {
            self.on_event(clock::now(), kind, &event, known)?;
        }
        let (kind, worker) = &name;
        let found = self.readable(*kind, worker.as_str(), found)?;
        self.on_read(clock::now(), name, found, known);
        Ok(())
    }

    fn on_event(&mut self, now: Timestamp, kind: Kind, event: &WatchedEvent, known: &mut Known) -> Result<(), Stop> {
        still_connected(event)?;
        let Some(name) = self.subject(kind, &event.path).map(str::to_owned) else { return Ok(()) };
        let Some(worker) = self.worker(&name) else { return Ok(()) };
        let beat = kind == Kind::Lease && event.event_type == EventType::NodeDataChanged;
        match known.leases.get_mut(&worker).filter(|_| beat) {
            Some(lease) if lease.ended => {}
            Some(lease) => {
                lease.changed(now);
                self.outbox.beat(now, lease.node.clone());
                // An eviction is a change like a heartbeat. Ours are looked at right away, others' when nothing follows.
                let suspect = self.suspects.lock().unwrap_or_else(PoisonError::into_inner).contains(&worker);
                if suspect || now.since(lease.read) >= lease.node.lease {
                    known.read((kind, worker));
                }
            }
            None => known.read((kind, worker)),
        }
        Ok(())
    }

    fn on_read(&mut self, now: Timestamp, name: Name, found: Found, known: &mut Known) {
        known.answered(&name);
        let (kind, worker) = name;
        match kind {
            Kind::Member => {
                let node = found.map(|(data, stat)| member_node(worker.clone(), &data, &stat));
                if known.members.get(&worker) != node.as_ref() {
                    known.changed = true;
                    match node {
                        Some(node) => known.members.insert(worker, node),
                        None => known.members.remove(&worker),
                    };
                }
            }
            Kind::Lease => {
                let node = found.and_then(|(data, stat)| lease_node(worker.clone(), &data, &stat));
                self.on_lease(now, worker, node, known);
            }
        }
    }

    fn on_lease(&mut self, now: Timestamp, worker: WorkerId, node: Option<LeaseNode>, known: &mut Known) {
        let life = node.as_ref().map(|node| node.incarnation);
        let former = known.leases.remove(&worker);
        let same = former.as_ref().is_some_and(|lease| Some(lease.node.incarnation) == life);
        if let Some(former) = former.as_ref().filter(|_| !same) {
            self.end(now, &worker, former.node.incarnation, former.ended);
        }
        let Some(node) = node else { return };
        let mut ended = same && former.as_ref().is_some_and(|lease| lease.ended);
        if !same {
            self.outbox.beat(now, node.clone());
        }
        if node.evicted {
            self.end(now, &worker, node.incarnation, ended);
            ended = true;
        }
        let mut lease = Lease::new(node, ended, now);
        if let Some(former) = former {
            // That may have been of this life already.
            lease.keep_unread(&former);
        }
        known.leases.insert(worker, lease);
    }

    fn end(&mut self, now: Timestamp, worker: &WorkerId, life: Incarnation, told: bool) {
        if !told {
            self.suspects.lock().unwrap_or_else(PoisonError::into_inner).remove(worker);
            self.outbox.ended(now, worker.clone(), life);
        }
    }

    fn dir(&self, kind: Kind) -> String {
        match kind {
            Kind::Member => self.config.layout.workers().to_owned(),
            Kind::Lease => self.config.layout.leases(),
        }
    }

    /// The member an event is about; `None` for the directory itself, and for contenders below it.
    fn subject<'a>(&self, kind: Kind, path: &'a str) -> Option<&'a str> {
        let name = path.strip_prefix(&self.dir(kind))?.strip_prefix('/')?;
        (name != LEADER && !name.contains('/')).then_some(name)
    }

    fn worker(&mut self, name: &str) -> Option<WorkerId> {
        WorkerId::new(name).map_err(|error| self.left_out(name, &error)).ok()
    }

    fn left_out(&mut self, name: &str, why: &dyn fmt::Display) {
        if self.odd.len() < ODD_NAMES && self.odd.insert(name.to_owned()) {
            tracing::warn!(name, %why, "a member is left out of the ring");
        }
    }

    fn refused(&mut self, why: String) {
        if self.refused.as_ref() != Some(&why) {
            tracing::error!(why, "no worker is known until this can be read");
            self.refused = Some(why);
        }
    }
}

/// Whether the watches still report everything.
fn still_connected(event: &WatchedEvent) -> Result<(), Stop> {
    match (event.event_type, event.session_state) {
        (EventType::Session, state) if state.is_terminated() => Err(Stop::Over),
        (EventType::Session, SessionState::Disconnected) => Err(Stop::Anew("the connection broke".to_owned())),
        (EventType::Session, _) => Err(Stop::Anew("the connection was made anew".to_owned())),
        _ => Ok(()),
    }
}

fn member_node(worker: WorkerId, data: &[u8], stat: &Stat) -> MemberNode {
    MemberNode { worker, incarnation: layout::incarnation(stat), profile: layout::profile(data) }
}

/// `None` for a node of no session, which somebody made by hand: it is nobody's life and would never end. Anything but a
/// heartbeat of the node's own session was written over one, and with the version that it expects.
fn lease_node(worker: WorkerId, data: &[u8], stat: &Stat) -> Option<LeaseNode> {
    let read = LeaseData::read(data);
    (stat.ephemeral_owner != 0).then(|| LeaseNode {
        worker,
        incarnation: layout::incarnation(stat),
        lease: read.lease,
        evicted: read.beat_of(stat.ephemeral_owner).is_none(),
    })
}
