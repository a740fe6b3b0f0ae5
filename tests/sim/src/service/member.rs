//! A worker as a member of its group, after `coordination::zookeeper`'s `group`: one session per life ([`ServiceLife`]).

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use common::{Incarnation, Profile};

use super::client::ClientEvent;
use super::connection::ZkCall;
use super::life::{LifeEvent, ServiceLife};
use super::tree::{Dir, SessionId};
use super::{ServiceEvent, Who, ZooKeeper};
use crate::SimTime;

/// The lease as a part of the session timeout, as in `coordination::zookeeper`.
const LEASE_PERCENT: u64 = 60;

/// What a worker asks of the group.
#[derive(Clone, Copy, Debug)]
pub(crate) enum GroupRequest {
    /// A life; what an earlier one of this very process left is removed.
    Join,
    /// A heartbeat, unless one is under way.
    Beat,
    /// The life is over, and the session closed.
    Close,
}

/// What it is answered.
#[derive(Clone, Debug)]
pub(crate) enum GroupReply {
    /// A life begins; its first heartbeat was sent then.
    Joined(Incarnation, SimTime),
    /// A heartbeat sent then has committed.
    Committed(SimTime),
    /// The life is over.
    Over,
}

/// One process as a member.
#[derive(Debug)]
pub(super) struct GroupMember {
    process: u64,
    former: BTreeSet<SessionId>,
    session: Option<MemberSession>,
}

#[derive(Debug)]
struct MemberSession {
    client: usize,
    life: ServiceLife,
    /// The call of the life that is under way.
    call: u64,
}

/// The session timeout that goes with a lease.
pub(super) fn timeout(lease: Duration) -> SimTime {
    u64::try_from(lease.as_nanos()).unwrap_or(SimTime::MAX / 100) * 100 / LEASE_PERCENT
}

impl ZooKeeper {
    /// A worker's process asks something.
    pub(super) fn member_asks(&mut self, place: usize, process: u64, ask: GroupRequest, profile: &Profile) {
        if self.members.get(&place).is_none_or(|member| member.process != process) {
            self.member_dies(place);
            self.members.insert(place, GroupMember { process, former: BTreeSet::new(), session: None });
        }
        match ask {
            GroupRequest::Join => self.member_joins(place, profile),
            GroupRequest::Beat => {
                let now = self.now;
                if let Some(session) = self.members.get_mut(&place).and_then(|member| member.session.as_mut())
                    && let Some(id) = self.clients[session.client].session
                {
                    let wanted = !session.life.is_busy();
                    let step = session.life.beat(now, id, wanted);
                    self.member_goes_on(place, step);
                }
            }
            GroupRequest::Close => {
                if let Some(client) = self.member_ends(place) {
                    self.close_client(client);
                }
            }
        }
    }

    /// The process of a worker is gone.
    pub(super) fn member_dies(&mut self, place: usize) {
        if let Some(session) = self.members.remove(&place).and_then(|member| member.session) {
            self.kill_client(session.client);
        }
    }

    /// The client that a worker uses now.
    pub(super) fn member_client(&self, place: usize) -> Option<usize> {
        self.members.get(&place)?.session.as_ref().map(|session| session.client)
    }

    fn member_joins(&mut self, place: usize, profile: &Profile) {
        let Some(member) = self.members.get_mut(&place) else { return };
        if let Some(session) = &mut member.session {
            if !session.life.has_begun() {
                if self.clients[session.client].connected
                    && let Some(call) = session.life.enter(self.now)
                {
                    self.member_calls(place, call);
                }
                return;
            }
            // It began, but the worker is done with it.
            if let Some(client) = self.member_ends(place) {
                self.kill_client(client);
            }
        }
        let lease = profile.lease;
        let number = place as u64;
        let profile = Arc::new(profile.clone());
        let timeout = timeout(lease).max(self.tick * 2);
        let life = ServiceLife::new((Dir::Members, number), (Dir::Leases, number), profile, lease, timeout);
        let client = self.open_client(Who::Worker(place), timeout);
        if let Some(member) = self.members.get_mut(&place) {
            member.session = Some(MemberSession { client, life, call: 0 });
        }
    }

    /// The guard of a life is shut: what its session left may be removed by the next.
    fn member_ends(&mut self, place: usize) -> Option<usize> {
        let member = self.members.get_mut(&place)?;
        let client = member.session.take()?.client;
        member.former.extend(self.clients[client].session);
        Some(client)
    }

    fn member_calls(&mut self, place: usize, call: ZkCall) {
        let Some(client) = self.member_client(place) else { return };
        let id = self.call(client, call);
        if let Some(session) = self.members.get_mut(&place).and_then(|member| member.session.as_mut()) {
            session.call = id;
        }
    }

    fn member_goes_on(&mut self, place: usize, (call, news): (Option<ZkCall>, Option<LifeEvent>)) {
        if let Some(call) = call {
            self.member_calls(place, call);
        }
        let Some((process, news)) = self.members.get(&place).map(|member| member.process).zip(news) else { return };
        let answer = match news {
            LifeEvent::Joined(incarnation, sent) => GroupReply::Joined(incarnation, sent),
            LifeEvent::Committed(sent) => GroupReply::Committed(sent),
            LifeEvent::Over => GroupReply::Over,
        };
        self.news.push_back(ServiceEvent::Worker { place, process, answer });
    }

    pub(super) fn member_client_event(&mut self, place: usize, client: usize, event: ClientEvent) {
        let now = self.now;
        let Some(member) = self.members.get_mut(&place) else { return };
        let process = member.process;
        let Some(session) = member.session.as_mut().filter(|session| session.client == client) else { return };
        match event {
            ClientEvent::Connected => {
                if let Some(call) = session.life.enter(now) {
                    self.member_calls(place, call);
                }
            }
            ClientEvent::Answer(id, answer) if id == session.call => {
                let own = self.clients[client].session.unwrap_or_default();
                let step = session.life.answered(now, own, &member.former, answer);
                self.member_goes_on(place, step);
            }
            ClientEvent::Over => {
                let had_begun = session.life.has_begun();
                self.member_ends(place);
                if had_begun {
                    self.news.push_back(ServiceEvent::Worker { place, process, answer: GroupReply::Over });
                }
            }
            ClientEvent::Answer(..) | ClientEvent::Event(..) | ClientEvent::Disconnected => {}
        }
    }
}
