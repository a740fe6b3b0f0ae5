//! Coordination in ZooKeeper, in the layout of python-tooz.
//!
//! A member is two ephemeral nodes made in one transaction: the member node in a tooz group, which says who takes part,
//! and the lease node beside it, which says who may act. Its owner writes a heartbeat into the lease node four times per
//! lease; whoever watches that node sees every heartbeat that can count (docs/protocol.md, Leases and lives, has the
//! rules and the reasons). The leader is whoever stands first in a lock of kazoo's recipe, and writes terms under the
//! protection of its own lock node (docs/protocol.md, Terms).
//!
//! - `config`: the URL. `layout`: names and bytes. `connection`: a session and what calls come to.
//! - `entry` and `life`: taking a name, and beating until the end. `group`: the worker's part.
//! - `finder`: who leads and where coordinators are. `member`, `lock`, `candidate` and `leadership`: the coordinator's part,
//!   which carries out what [`common::election`] decides. `roster`: what becomes of the workers' nodes.
//!
//! The client does not renew persistent watches when it reconnects (it sends none of them with `SetWatches2`), so every
//! user of one watches anew after each reconnection, and reads everything again anyway.

mod candidate;
mod config;
mod connection;
pub mod decoders;
mod entry;
mod finder;
mod group;
mod layout;
mod leadership;
mod life;
mod lock;
mod member;
mod roster;

use std::sync::Arc;
use std::time::Duration;

pub use config::Config;

use super::{Candidate, Group};
use common::{CoordinatorId, Timestamp, WorkerId};
use runtime::clock;

/// The lease as a part of the session timeout. Well below it, so that a member that is cut off has stopped long before
/// its nodes go, and its successor hardly ever waits.
const LEASE_PERCENT: u32 = 60;

/// Longest lease, and what is assumed where a node does not tell. The leader waits no longer than its own bound on
/// leases (120 s), so that ours have to stay below.
const MAX_LEASE: Duration = Duration::from_secs(60);

/// The group of workers, for one of them. Needs a Tokio runtime; it looks for coordinators from now on until it is dropped.
#[must_use]
pub fn worker_group(config: Config, name: &WorkerId) -> Arc<dyn Group> {
    Arc::new(group::ZooKeeperGroup::new(config, name.clone()))
}

/// A coordinator's candidacy, reached by others at `address`. Needs a Tokio runtime; it joins the group of coordinators
/// from now on until it is dropped or leaves.
#[must_use]
pub fn candidate(config: Config, id: &CoordinatorId, address: String) -> Arc<dyn Candidate> {
    Arc::new(candidate::ZooKeeperCandidate::new(config, id.clone(), address))
}

/// Waits until the boot-time clock shows `at`. Timers stand still while a machine is suspended, so that it looks at least
/// once a second.
async fn until(at: Timestamp) {
    loop {
        let left = at.since(clock::now());
        if left.is_zero() {
            return;
        }
        tokio::time::sleep(left.min(Duration::from_secs(1))).await;
    }
}
