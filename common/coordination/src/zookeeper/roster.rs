//! Carries out what [`common::roster`] decides: sets its watches, sends its reads, hands it events and answers.
//!
//! Two recursive watches, on the lease nodes and on the group. The client does not renew them when it reconnects, so that
//! following ends with the connection: a new one begins with new watches. "A write of the reader's own" is a heartbeat of
//! this coordinator.
//!
//! A member node that may not be read is no member. A lease node that may not be read stops everything, since taking it
//! for absent would be calling its owner gone.

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

use super::config::Config;
use super::connection::ZkFailed;
use super::layout::{self, LEADER, LeaseData};
use super::leadership::Suspects;
use super::member::ContenderNode;
use common::backoff::Backoff;
use common::roster::{
    LeaseNode, MemberNode, NodeChange, NodeKind, Roster, RosterAnswer, RosterAsk, RosterEvent, RosterNode, What,
};
use common::{Timestamp, WorkerId};
use runtime::clock;
use runtime::retry::Retries;

/// News on its way to the leader. When it is slower than that, beats are told once per life, however many there were.
const CHANNEL: usize = 64;

/// Names that cannot be workers and were complained about; beyond, they are dropped in silence.
const ODD_NAMES: usize = 256;

/// How often lease nodes that have fallen silent are looked for.
const SWEEP: Duration = Duration::from_millis(250);

/// Delays between tries to begin.
const RETRY: Backoff = Backoff { base: Duration::from_millis(50), cap: Duration::from_secs(2) };

/// Tells what becomes of the workers' nodes, until `done` is cancelled or the membership ends. Needs a Tokio runtime.
pub(super) fn spawn(
    config: Arc<Config>,
    member: Arc<ContenderNode>,
    suspects: Suspects,
    done: CancellationToken,
) -> mpsc::Receiver<(Timestamp, RosterEvent)> {
    let (sender, receiver) = mpsc::channel(CHANNEL);
    let over = member.over.clone();
    let (roster, odd) = (Roster::new(), BTreeSet::new());
    let shell = Shell { config, member, suspects, sender, roster, odd, refused: None };
    tokio::spawn(async move {
        tokio::select! {
            () = done.cancelled() => {}
            () = over.cancelled() => {}
            () = shell.run() => {}
        }
    });
    receiver
}

/// Why following ended.
enum RosterStop {
    /// The watches are gone, or a read failed: begin anew.
    Anew(String),
    /// Something may not be read that has to be: begin anew, but it takes a person to mend it.
    Refused(String),
    /// The session is over, or nobody listens.
    Over,
}

impl From<ZkFailed> for RosterStop {
    fn from(failure: ZkFailed) -> Self {
        match failure {
            ZkFailed::Over(_) => Self::Over,
            ZkFailed::Unknown(why) => Self::Anew(why),
            ZkFailed::Said(error @ ZkError::NoAuth) => Self::Refused(error.to_string()),
            ZkFailed::Said(error) => Self::Anew(error.to_string()),
        }
    }
}

impl RosterStop {
    fn at(path: &str, failure: ZkFailed) -> Self {
        match Self::from(failure) {
            Self::Refused(why) => Self::Refused(format!("{path}: {why}")),
            stop => stop,
        }
    }
}

/// What a read found.
type ReadNode = Option<(Vec<u8>, Stat)>;

/// What became of something that was asked.
enum Sent {
    /// The write: `false` when the membership ended first.
    Written(bool),
    Listed(Result<Vec<String>, ZkFailed>),
    Read(Result<ReadNode, ZkFailed>),
}

type Asks<'a> = FuturesUnordered<BoxFuture<'a, (RosterAsk, Sent)>>;

struct Watches {
    members: PersistentWatcher,
    leases: PersistentWatcher,
}

impl Watches {
    /// An event that has arrived already.
    fn waiting(&mut self) -> Option<(NodeKind, WatchedEvent)> {
        let lease = self.leases.changed().now_or_never().map(|event| (NodeKind::Lease, event));
        lease.or_else(|| self.members.changed().now_or_never().map(|event| (NodeKind::Member, event)))
    }
}

struct Shell {
    config: Arc<Config>,
    member: Arc<ContenderNode>,
    suspects: Suspects,
    sender: mpsc::Sender<(Timestamp, RosterEvent)>,
    roster: Roster,
    odd: BTreeSet<String>,
    /// What may not be read and was complained about, until everything can be read again.
    refused: Option<String>,
}

impl Shell {
    async fn run(mut self) {
        let mut retries = Retries::new(RETRY);
        loop {
            let member = Arc::clone(&self.member);
            match self.follow(&member, &mut retries).await {
                RosterStop::Over => return,
                RosterStop::Anew(why) => tracing::info!(why, "the workers' nodes have to be read anew"),
                RosterStop::Refused(why) => self.refused(why),
            }
            self.roster.broken();
            tokio::time::sleep(retries.next_delay()).await;
        }
    }

    /// Reads everything and tells what happens from then on, until the connection breaks.
    async fn follow(&mut self, member: &ContenderNode, retries: &mut Retries) -> RosterStop {
        let mut watches = match self.watch(member).await {
            Ok(watches) => watches,
            Err(stop) => return stop,
        };
        self.roster.connected();
        let mut sweep = tokio::time::interval(SWEEP);
        sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut asks, sender) = (Asks::new(), self.sender.clone());
        loop {
            if self.roster.is_following() {
                retries.reset();
                self.refused = None;
            }
            // Bounded by the roster.
            while let Some(ask) = self.roster.next_ask() {
                asks.push(self.send(member, ask));
            }
            let news = self.roster.has_news(clock::now());
            tokio::select! {
                // What the watches say comes first: they tell of what was read, and of the connection's end.
                biased;
                event = watches.leases.changed() => {
                    if let Err(stop) = self.on_event(clock::now(), NodeKind::Lease, &event) {
                        return stop;
                    }
                }
                event = watches.members.changed() => {
                    if let Err(stop) = self.on_event(clock::now(), NodeKind::Member, &event) {
                        return stop;
                    }
                }
                Some((ask, sent)) = asks.next() => {
                    if let Err(stop) = self.on_answer(&mut watches, ask, sent) {
                        return stop;
                    }
                }
                _ = sweep.tick() => self.roster.tick(clock::now()),
                permit = sender.reserve(), if news => match permit {
                    Ok(permit) => if let Some(news) = self.roster.next_news(clock::now()) { permit.send(news) },
                    Err(_) => return RosterStop::Over,
                },
            }
            if self.roster.is_swollen() {
                return RosterStop::Anew("the leader does not listen".to_owned());
            }
        }
    }

    async fn watch(&self, member: &ContenderNode) -> Result<Watches, RosterStop> {
        let (session, layout) = (&member.session, &self.config.layout);
        session.ensure(&layout.leases()).await?;
        let mode = AddWatchMode::PersistentRecursive;
        let leases = session.call(session.client().watch(&layout.leases(), mode)).await?;
        let members = session.call(session.client().watch(layout.workers(), mode)).await?;
        Ok(Watches { members, leases })
    }

    fn send<'a>(&self, member: &'a ContenderNode, ask: RosterAsk) -> BoxFuture<'a, (RosterAsk, Sent)> {
        let path = match &ask.what {
            What::Write => String::new(),
            What::List(kind) => self.dir(*kind),
            What::Read((kind, worker)) => format!("{}/{worker}", self.dir(*kind)),
        };
        Box::pin(async move {
            let sent = match &ask.what {
                What::Write => Sent::Written(member.fresh(clock::now()).await.is_some()),
                What::List(_) => Sent::Listed(member.session.children(&path).await),
                What::Read(_) => Sent::Read(member.session.read(&path).await),
            };
            (ask, sent)
        })
    }

    /// Something was answered: perhaps by another connection, which the watches know by now.
    fn on_answer(&mut self, watches: &mut Watches, ask: RosterAsk, sent: Sent) -> Result<(), RosterStop> {
        while let Some((kind, event)) = watches.waiting() {
            self.on_event(clock::now(), kind, &event)?;
        }
        let answer = match (&ask.what, sent) {
            (_, Sent::Written(true)) => RosterAnswer::Written,
            (What::List(kind), Sent::Listed(names)) => {
                let names = names.map_err(|failure| RosterStop::at(&self.dir(*kind), failure))?;
                let names = names.into_iter().filter(|name| name != LEADER);
                RosterAnswer::Listed(names.filter_map(|name| self.worker(&name)).collect())
            }
            (What::Read((kind, worker)), Sent::Read(read)) => RosterAnswer::Found(self.node(*kind, worker, read)?),
            // The membership ended.
            _ => return Err(RosterStop::Over),
        };
        self.roster.answered(clock::now(), ask, answer);
        Ok(())
    }

    /// Takes a member node that may not be read for none.
    fn node(
        &mut self,
        kind: NodeKind,
        worker: &WorkerId,
        read: Result<ReadNode, ZkFailed>,
    ) -> Result<Option<RosterNode>, RosterStop> {
        let found = match read {
            Err(ZkFailed::Said(error @ ZkError::NoAuth)) if kind == NodeKind::Member => {
                self.left_out(worker.as_str(), &error);
                None
            }
            read => read.map_err(|failure| RosterStop::at(&format!("{}/{worker}", self.dir(kind)), failure))?,
        };
        let worker = worker.clone();
        Ok(found.and_then(|(data, stat)| match kind {
            NodeKind::Member => Some(RosterNode::Member(member_node(worker, &data, &stat))),
            NodeKind::Lease => lease_node(worker, &data, &stat).map(RosterNode::Lease),
        }))
    }

    fn on_event(&mut self, now: Timestamp, kind: NodeKind, event: &WatchedEvent) -> Result<(), RosterStop> {
        still_connected(event)?;
        let change = match event.event_type {
            EventType::NodeCreated => NodeChange::Created,
            EventType::NodeDeleted => NodeChange::Deleted,
            _ => NodeChange::Changed,
        };
        let Some(name) = self.subject(kind, &event.path).map(str::to_owned) else { return Ok(()) };
        let Some(worker) = self.worker(&name) else { return Ok(()) };
        for suspect in std::mem::take(&mut *self.suspects.lock().unwrap_or_else(PoisonError::into_inner)) {
            self.roster.suspect(suspect);
        }
        self.roster.event(now, (kind, worker), change);
        Ok(())
    }

    fn dir(&self, kind: NodeKind) -> String {
        match kind {
            NodeKind::Member => self.config.layout.workers().to_owned(),
            NodeKind::Lease => self.config.layout.leases(),
        }
    }

    /// The member an event is about; `None` for the directory itself, and for contenders below it.
    fn subject<'a>(&self, kind: NodeKind, path: &'a str) -> Option<&'a str> {
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
fn still_connected(event: &WatchedEvent) -> Result<(), RosterStop> {
    match (event.event_type, event.session_state) {
        (EventType::Session, state) if state.is_terminated() => Err(RosterStop::Over),
        (EventType::Session, SessionState::Disconnected) => Err(RosterStop::Anew("the connection broke".to_owned())),
        (EventType::Session, _) => Err(RosterStop::Anew("the connection was made anew".to_owned())),
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
        seal: read.seal,
    })
}
