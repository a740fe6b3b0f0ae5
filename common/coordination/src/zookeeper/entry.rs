//! Entering: carries out what [`GroupEntry`] decides, in a session of ZooKeeper.
//!
//! Both nodes are made in one transaction, so that they carry the same session and the same `czxid`: that pair is the
//! life. Which nodes are deleted, waited for or refused, and what an answer means, is decided there.

use std::time::Duration;

use common::Timestamp;
use common::backoff::Backoff;
use common::membership::{
    CallFailure, EntryAction, EntryEvent, EntryFailure, FIRST_BEAT, FoundNodes, GroupEntry, NodeOwner, OwnNode,
    OwnNodeState,
};
use common::secret::LifeSeal;
use humantime::format_rfc3339_seconds;
use runtime::clock;
use runtime::retry::Retries;
use zookeeper_client::{CreateMode, Stat};

use super::connection::ZkFailed;
use super::layout::{self, NodePlace};
use super::life::{Claim, Entered};
use super::{MAX_LEASE, until};
use crate::Error;

/// Delays between tries whose outcome is not known, or that met a change under way.
const RETRY: Backoff = Backoff { base: Duration::from_millis(20), cap: Duration::from_millis(500) };

/// Makes the nodes of `place`, publishing `capabilities` and what the life is sealed with. Waits for other sessions' nodes to go, at most for the session
/// timeout and `patience`.
///
/// # Errors
/// [`Error::NameTaken`], [`Error::Refused`], [`Error::Lost`] when the session ended meanwhile, [`Error::Unavailable`].
pub(super) async fn enter(
    claim: Claim,
    place: NodePlace,
    capabilities: &[u8],
    seal: Option<LifeSeal>,
    patience: Duration,
) -> Result<Entered, Error> {
    let deadline = clock::now() + claim.session.timeout() + patience;
    let lease = (claim.session.timeout() * super::LEASE_PERCENT / 100).min(MAX_LEASE);
    let (mut entry, mut action) = GroupEntry::new(deadline);
    let mut calls = EntryCalls { claim: &claim, place: &place, capabilities, lease, seal, owner: None, failure: None };
    let mut retries = Retries::new(RETRY);
    let mut waits = 0_u32;
    let (incarnation, sent) = loop {
        let event = match action {
            EntryAction::Look => {
                let found = calls.look().await;
                EntryEvent::Found(calls.outcome(found))
            }
            EntryAction::Make { delete } => {
                let made = calls.make(&delete).await;
                EntryEvent::Made(calls.outcome(made))
            }
            EntryAction::WaitFor(node) => {
                waits += 1;
                if waits == 1 {
                    tracing::info!(name = place.name, by = calls.owner, "waiting for the name to become free");
                }
                let changed = calls.wait(node, deadline).await;
                EntryEvent::Changed(calls.outcome(changed))
            }
            EntryAction::Pause => {
                tokio::time::sleep(retries.next_delay()).await;
                EntryEvent::Tick
            }
            EntryAction::Joined { incarnation, sent } => break (incarnation, sent),
            EntryAction::Fail(failure) => return Err(calls.error(failure)),
        };
        action = entry.step(clock::now(), event).expect("the event answers the action before it");
    };
    Ok(Entered { claim, place, incarnation, sent, lease, seal })
}

/// The calls of one attempt.
struct EntryCalls<'a> {
    claim: &'a Claim,
    place: &'a NodePlace,
    capabilities: &'a [u8],
    lease: Duration,
    seal: Option<LifeSeal>,
    /// Who owns the node in the way, as the last look found it.
    owner: Option<String>,
    /// The last failure as the client reported it.
    failure: Option<ZkFailed>,
}

impl EntryCalls<'_> {
    fn path(&self, node: OwnNode) -> String {
        match node {
            OwnNode::Member => self.place.member(),
            OwnNode::Lease => self.place.lease(),
        }
    }

    fn outcome<T>(&mut self, result: Result<T, ZkFailed>) -> Result<T, CallFailure> {
        result.map_err(|failure| {
            let kind = CallFailure::from(&failure);
            self.failure = Some(failure);
            kind
        })
    }

    fn error(self, failure: EntryFailure) -> Error {
        let name = self.place.name.clone();
        match failure {
            EntryFailure::NameTaken(_) => Error::NameTaken { name, by: self.owner.unwrap_or_default() },
            EntryFailure::AlreadyMember => Error::Refused(format!("this session already has the name {name}")),
            EntryFailure::Call(_) => match self.failure {
                Some(failure) => failure.into(),
                None => Error::Unavailable("zookeeper: no answer".to_owned()),
            },
        }
    }

    async fn look(&mut self) -> Result<FoundNodes, ZkFailed> {
        let session = &self.claim.session;
        session.ensure(&self.place.group).await?;
        session.ensure(&self.place.leases).await?;
        let member = session.read(&self.place.member()).await?;
        let lease = session.read(&self.place.lease()).await?;
        let capabilities = member.as_ref().map_or(&[][..], |(data, _)| data);
        let state = |stat: &Stat| OwnNodeState {
            owner: self.claim.owner(stat.ephemeral_owner),
            incarnation: layout::incarnation(stat),
            version: stat.version,
        };
        let stats = [&member, &lease].map(|node| node.as_ref().map(|(_, stat)| stat));
        let other = stats.into_iter().flatten().find(|stat| state(stat).owner == NodeOwner::Other);
        let owner = other.map(|stat| describe(capabilities, stat));
        let [member, lease] = stats.map(|stat| stat.map(state));
        self.owner = owner;
        Ok(FoundNodes { member, lease })
    }

    async fn make(&self, delete: &[(OwnNode, i32)]) -> Result<(), ZkFailed> {
        let session = &self.claim.session;
        let options = CreateMode::Ephemeral.with_acls(session.acls());
        let mut writer = session.client().new_multi_writer();
        for (node, version) in delete {
            writer.add_delete(&self.path(*node), Some(*version))?;
        }
        writer.add_create(&self.place.member(), self.capabilities, &options)?;
        let first = layout::heartbeat(FIRST_BEAT, self.lease, session.id(), self.seal.as_ref());
        writer.add_create(&self.place.lease(), &first, &options)?;
        // The answer of a transaction has no usable stat before ZooKeeper 3.8.2: the next look reads it.
        session.call(writer.commit()).await.map(drop)
    }

    /// Waits until the node in the way changes.
    async fn wait(&self, node: OwnNode, deadline: Timestamp) -> Result<(), ZkFailed> {
        let session = &self.claim.session;
        let (found, watcher) = session.call(session.client().check_and_watch_stat(&self.path(node))).await?;
        if found.is_some() {
            tokio::select! {
                _ = watcher.changed() => {}
                () = until(deadline) => {}
            }
        }
        Ok(())
    }
}

/// What the nodes under a name tell about who has it.
fn describe(capabilities: &[u8], stat: &Stat) -> String {
    let profile = layout::profile(capabilities);
    let mut by = String::new();
    if !profile.host.is_empty() {
        by.push_str(&format!("host {}, ", profile.host.escape_debug()));
    }
    if profile.pid != 0 {
        by.push_str(&format!("process {}, ", profile.pid));
    }
    match stat.ephemeral_owner {
        0 => by.push_str("a node of no session, which somebody has to delete"),
        session => by.push_str(&format!("session {session:#x}")),
    }
    let since = std::time::UNIX_EPOCH.checked_add(Duration::from_millis(u64::try_from(stat.ctime).unwrap_or(0)));
    // Beyond the year 9999 it cannot be formatted, and the stat comes from outside.
    if let Some(since) = since.filter(|_| (0..253_402_300_799_000).contains(&stat.ctime)) {
        by.push_str(&format!(" since {}", format_rfc3339_seconds(since)));
    }
    by
}
