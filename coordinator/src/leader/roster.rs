//! What the coordination service tells the leader of its workers: their nodes, heartbeats and ends.

use std::collections::BTreeMap;

use common::{Life, Timestamp, WorkerId};
use coordination::{LeaseNode, MemberNode, RosterEvent};
use coordinator_core::machine::Event;
use coordinator_core::membership::{ObservedLease, ObservedMember};
use tokio::sync::mpsc;
use tracing::debug;

use super::{Leader, TermEnd};

/// Events of the workers' nodes, each with the moment it reached this process.
pub(super) type RosterEvents = mpsc::Receiver<(Timestamp, RosterEvent)>;

/// The next event of the roster; never when this coordinator itself is the authority.
pub(super) async fn next(roster: &mut Option<RosterEvents>) -> Option<(Timestamp, RosterEvent)> {
    match roster {
        Some(roster) => roster.recv().await,
        None => std::future::pending().await,
    }
}

fn nodes(members: Vec<MemberNode>) -> BTreeMap<WorkerId, ObservedMember> {
    let node = |m: MemberNode| (m.worker, ObservedMember { incarnation: m.incarnation, profile: m.profile });
    members.into_iter().map(node).collect()
}

fn lease(node: LeaseNode) -> (Life, ObservedLease) {
    let LeaseNode { worker, incarnation, lease, evicted, seal } = node;
    (Life::new(worker, incarnation), ObservedLease { lease, evicted, seal })
}

impl Leader<'_> {
    /// Takes in an event of the workers' nodes. Only their order counts: the end of a life arrives after each of its
    /// heartbeats.
    pub(super) fn on_roster_event(&mut self, event: Option<(Timestamp, RosterEvent)>) {
        let event = match event {
            None => {
                debug!("the coordination service sends no more events");
                self.roster = None;
                self.end = Some(TermEnd::LeadershipLost);
                return;
            }
            Some((_, RosterEvent::Read { members, leases })) => {
                debug!(members = members.len(), leases = leases.len(), "nodes were read");
                Event::Read { members: nodes(members), leases: leases.into_iter().map(lease).collect() }
            }
            Some((_, RosterEvent::Members(members))) => Event::Members(nodes(members)),
            Some((_, RosterEvent::Beat(node))) => {
                let (life, node) = lease(node);
                Event::Observed(life, node)
            }
            Some((_, RosterEvent::Ended(worker, incarnation))) => Event::Over(Life::new(worker, incarnation)),
        };
        self.step(event);
    }
}
