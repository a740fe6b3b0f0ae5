//! Entering: how a member takes its name.
//!
//! Both nodes are made in one transaction, so that they carry the same session and the same `czxid`: that pair is the
//! life. Nodes of another session under the name are waited for within a bound, because a session that died may keep its
//! nodes for up to a session timeout, and longer after an election of servers. Nodes that an earlier session of this
//! process left are removed in the same transaction, its guard being shut.

use std::time::Duration;

use humantime::format_rfc3339_seconds;
use tokio::time::Instant;
use zookeeper_client::{CreateMode, Error as ZkError, Stat};

use super::connection::Failure;
use super::layout::{self, Place};
use super::life::{Claim, Entered};
use super::{MAX_LEASE, until_instant};
use crate::Error;
use common::{Incarnation, Timestamp};
use runtime::clock;
use runtime::retry::Backoff;

/// Delays between tries whose outcome is not known, or that met a change under way.
const RETRY: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(500));

/// Who keeps us out.
struct Holder {
    /// The node that is in the way.
    path: String,
    /// What it tells.
    by: String,
}

/// What a look at the nodes came to.
enum Found {
    /// Both are ours, of one transaction.
    Ours(Incarnation),
    /// Nobody else's are there; these of ours have to go first.
    Free(Vec<(String, i32)>),
    /// Somebody has the name.
    Held(Holder),
}

/// Makes the nodes of `place`, publishing `capabilities`. Waits for other sessions' nodes to go, at most for the session
/// timeout and `patience`.
///
/// # Errors
/// [`Error::NameTaken`], [`Error::Refused`], [`Error::Lost`] when the session ended meanwhile, [`Error::Unavailable`].
pub(super) async fn enter(
    claim: Claim,
    place: Place,
    capabilities: &[u8],
    patience: Duration,
) -> Result<Entered, Error> {
    let deadline = Instant::now() + claim.session.timeout() + patience;
    let lease = (claim.session.timeout() * super::LEASE_PERCENT / 100).min(MAX_LEASE);
    let mut entry = Entry { claim: &claim, place: &place, capabilities, lease, sent: None };
    let mut backoff = Backoff::new(RETRY.0, RETRY.1);
    let mut told = false;
    let (incarnation, sent) = loop {
        let failure = match entry.look().await {
            Ok(Found::Ours(incarnation)) => {
                // Made by an attempt of this call, the first of which is on record.
                if let Some(sent) = entry.sent {
                    break (incarnation, sent);
                }
                return Err(Error::Refused(format!("this session already has the name {}", place.name)));
            }
            Ok(Found::Free(former)) => entry.make(&former).await.err(),
            Ok(Found::Held(holder)) => {
                if Instant::now() >= deadline {
                    return Err(Error::NameTaken { name: place.name.clone(), by: holder.by });
                }
                if !told {
                    told = true;
                    tracing::info!(name = place.name, by = holder.by, "waiting for the name to become free");
                }
                entry.wait(&holder, deadline).await.err()
            }
            Err(failure) => Some(failure),
        };
        match failure {
            None => {}
            Some(failure @ Failure::Unknown(_)) => {
                if Instant::now() >= deadline {
                    return Err(failure.into());
                }
                tokio::time::sleep(backoff.next_delay()).await;
            }
            // Somebody came, went or wrote between the look and the write.
            Some(Failure::Said(ZkError::NodeExists | ZkError::NoNode | ZkError::BadVersion))
                if Instant::now() < deadline =>
            {
                tokio::time::sleep(backoff.next_delay()).await;
            }
            Some(failure) => return Err(failure.into()),
        }
    };
    Ok(Entered { claim, place, incarnation, sent, lease })
}

struct Entry<'a> {
    claim: &'a Claim,
    place: &'a Place,
    capabilities: &'a [u8],
    lease: Duration,
    /// A moment before the nodes were made, if this call made them.
    sent: Option<Timestamp>,
}

/// A moment before nodes of ours that are found from now on were made: `sent` is that of the last transaction, and
/// `known` the same for those before it. `None` when none of them can have made any.
fn not_later(known: Option<Timestamp>, sent: Timestamp, failure: Option<&Failure>) -> Option<Timestamp> {
    match failure {
        // Its nodes are there, or some that were made after them.
        None => Some(sent),
        // It made nothing itself; but the reason may be an earlier one whose outcome was not known, and which a look in
        // between did not show yet.
        Some(Failure::Said(_)) => known,
        Some(Failure::Unknown(_) | Failure::Over(_)) => known.or(Some(sent)),
    }
}

impl Entry<'_> {
    async fn look(&self) -> Result<Found, Failure> {
        let session = &self.claim.session;
        session.ensure(&self.place.group).await?;
        session.ensure(&self.place.leases).await?;
        let (member_path, lease_path) = (self.place.member(), self.place.lease());
        let member = session.read(&member_path).await?;
        let lease = session.read(&lease_path).await?;
        if let (Some((_, m)), Some((_, l))) = (&member, &lease)
            && m.ephemeral_owner == session.id()
            && layout::incarnation(m) == layout::incarnation(l)
        {
            return Ok(Found::Ours(layout::incarnation(m)));
        }
        let mut ours = Vec::new();
        for (path, found) in [(member_path, &member), (lease_path, &lease)] {
            let Some((_, stat)) = found else { continue };
            let owner = stat.ephemeral_owner;
            if owner == session.id() || self.claim.former.contains(owner) {
                ours.push((path, stat.version));
            } else {
                let capabilities = member.as_ref().map_or(&[][..], |(data, _)| data);
                return Ok(Found::Held(Holder { path, by: describe(capabilities, stat) }));
            }
        }
        Ok(Found::Free(ours))
    }

    async fn make(&mut self, former: &[(String, i32)]) -> Result<(), Failure> {
        let session = &self.claim.session;
        let options = CreateMode::Ephemeral.with_acls(session.acls());
        let mut writer = session.client().new_multi_writer();
        for (path, version) in former {
            writer.add_delete(path, Some(*version))?;
        }
        writer.add_create(&self.place.member(), self.capabilities, &options)?;
        let first = layout::heartbeat(layout::FIRST_BEAT, self.lease, session.id());
        writer.add_create(&self.place.lease(), &first, &options)?;
        let sent = clock::now();
        let made = session.call(writer.commit()).await;
        self.sent = not_later(self.sent, sent, made.as_ref().err());
        // The answer of a transaction has no usable stat before ZooKeeper 3.8.2: the next look reads it.
        made.map(drop)
    }

    /// Waits until the node in the way changes.
    async fn wait(&self, holder: &Holder, deadline: Instant) -> Result<(), Failure> {
        let session = &self.claim.session;
        let (found, watcher) = session.call(session.client().check_and_watch_stat(&holder.path)).await?;
        if found.is_some() {
            tokio::select! {
                _ = watcher.changed() => {}
                () = until_instant(deadline) => {}
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_of_a_transaction_whose_answer_got_lost_count_from_when_it_was_sent() {
        let at = Timestamp::from_millis;
        let exists = Failure::Said(ZkError::NodeExists);
        let lost = Failure::Unknown("the connection broke".to_owned());
        assert_eq!(not_later(None, at(1), Some(&exists)), None, "another call's nodes are not ours");
        let first = not_later(None, at(1), Some(&lost));
        assert_eq!(first, Some(at(1)));
        // The first commits late, after a look that did not see it, and makes the second fail.
        assert_eq!(not_later(first, at(2), Some(&exists)), first);
        assert_eq!(not_later(first, at(2), Some(&lost)), first);
        assert_eq!(not_later(first, at(3), None), Some(at(3)));
    }
}
