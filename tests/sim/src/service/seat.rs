//! A worker's seat, after `coordination::zookeeper`'s `seat`: one session per life ([`Life`]).

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use common::{Incarnation, Profile};

use super::client::Told;
use super::connection::Call;
use super::life::{Life, LifeNews};
use super::tree::{Dir, SessionId};
use super::{News, Service, Who};
use crate::Time;

/// The lease as a part of the session timeout, as in `coordination::zookeeper`.
const LEASE_PERCENT: u64 = 60;

/// What a worker asks of its seat.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Ask {
    /// A life; what an earlier one of this very process left is removed.
    Join,
    /// A heartbeat, unless one is under way.
    Beat,
    /// The life is over, and the session closed.
    Close,
}

/// What it is told.
#[derive(Clone, Debug)]
pub(crate) enum Answer {
    /// A life begins; its first heartbeat was sent then.
    Joined(Incarnation, Time),
    /// A heartbeat sent then has committed.
    Committed(Time),
    /// The life is over.
    Over,
}

/// The seat of one process.
#[derive(Debug)]
pub(super) struct Seat {
    process: u64,
    former: BTreeSet<SessionId>,
    session: Option<Session>,
}

#[derive(Debug)]
struct Session {
    client: usize,
    life: Life,
    /// The call of the life that is under way.
    call: u64,
}

/// The session timeout that goes with a lease.
pub(super) fn timeout(lease: Duration) -> Time {
    u64::try_from(lease.as_nanos()).unwrap_or(Time::MAX / 100) * 100 / LEASE_PERCENT
}

impl Service {
    /// A worker's process asks something.
    pub(super) fn seat_asked(&mut self, place: usize, process: u64, ask: Ask, profile: &Profile) {
        if self.seats.get(&place).is_none_or(|seat| seat.process != process) {
            self.seat_dies(place);
            self.seats.insert(place, Seat { process, former: BTreeSet::new(), session: None });
        }
        match ask {
            Ask::Join => self.seat_joins(place, profile),
            Ask::Beat => {
                let now = self.now;
                if let Some(session) = self.seats.get_mut(&place).and_then(|seat| seat.session.as_mut())
                    && let Some(id) = self.clients[session.client].session
                {
                    let wanted = !session.life.is_busy();
                    let step = session.life.beat(now, id, wanted);
                    self.seat_goes_on(place, step);
                }
            }
            Ask::Close => {
                if let Some(client) = self.seat_ends(place) {
                    self.close_client(client);
                }
            }
        }
    }

    /// The process of a worker is gone.
    pub(super) fn seat_dies(&mut self, place: usize) {
        if let Some(session) = self.seats.remove(&place).and_then(|seat| seat.session) {
            self.kill_client(session.client);
        }
    }

    /// The client that a worker uses now.
    pub(super) fn seat_client(&self, place: usize) -> Option<usize> {
        self.seats.get(&place)?.session.as_ref().map(|session| session.client)
    }

    fn seat_joins(&mut self, place: usize, profile: &Profile) {
        let Some(seat) = self.seats.get_mut(&place) else { return };
        if let Some(session) = &mut seat.session {
            if !session.life.has_begun() {
                if self.clients[session.client].connected
                    && let Some(call) = session.life.enter(self.now)
                {
                    self.seat_calls(place, call);
                }
                return;
            }
            // It began, but the worker is done with it.
            if let Some(client) = self.seat_ends(place) {
                self.kill_client(client);
            }
        }
        let lease = profile.lease;
        let number = place as u64;
        let profile = Arc::new(profile.clone());
        let timeout = timeout(lease).max(self.tick * 2);
        let life = Life::new((Dir::Members, number), (Dir::Leases, number), profile, lease, timeout);
        let client = self.open_client(Who::Worker(place), timeout);
        if let Some(seat) = self.seats.get_mut(&place) {
            seat.session = Some(Session { client, life, call: 0 });
        }
    }

    /// The guard of a life is shut: what its session left may be removed by the next.
    fn seat_ends(&mut self, place: usize) -> Option<usize> {
        let seat = self.seats.get_mut(&place)?;
        let client = seat.session.take()?.client;
        seat.former.extend(self.clients[client].session);
        Some(client)
    }

    fn seat_calls(&mut self, place: usize, call: Call) {
        let Some(client) = self.seat_client(place) else { return };
        let id = self.call(client, call);
        if let Some(session) = self.seats.get_mut(&place).and_then(|seat| seat.session.as_mut()) {
            session.call = id;
        }
    }

    fn seat_goes_on(&mut self, place: usize, (call, news): (Option<Call>, Option<LifeNews>)) {
        if let Some(call) = call {
            self.seat_calls(place, call);
        }
        let Some((process, news)) = self.seats.get(&place).map(|seat| seat.process).zip(news) else { return };
        let answer = match news {
            LifeNews::Joined(incarnation, sent) => Answer::Joined(incarnation, sent),
            LifeNews::Committed(sent) => Answer::Committed(sent),
            LifeNews::Over => Answer::Over,
        };
        self.news.push_back(News::Worker { place, process, answer });
    }

    pub(super) fn seat_told(&mut self, place: usize, client: usize, told: Told) {
        let now = self.now;
        let Some(seat) = self.seats.get_mut(&place) else { return };
        let process = seat.process;
        let Some(session) = seat.session.as_mut().filter(|session| session.client == client) else { return };
        match told {
            Told::Connected => {
                if let Some(call) = session.life.enter(now) {
                    self.seat_calls(place, call);
                }
            }
            Told::Answer(id, answer) if id == session.call => {
                let own = self.clients[client].session.unwrap_or_default();
                let step = session.life.answered(now, own, &seat.former, answer);
                self.seat_goes_on(place, step);
            }
            Told::Over => {
                let had_begun = session.life.has_begun();
                self.seat_ends(place);
                if had_begun {
                    self.news.push_back(News::Worker { place, process, answer: Answer::Over });
                }
            }
            Told::Answer(..) | Told::Event(..) | Told::Disconnected => {}
        }
    }
}
