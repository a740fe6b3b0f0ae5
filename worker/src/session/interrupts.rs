//! What ends whatever a session is doing, on a stream or without one: that it is to leave, that the life is over, that
//! somebody else leads.

use std::fmt;

use coordination::{Ended, Life};
use futures::future::BoxFuture;
use tokio::sync::watch;

use super::departure::{Departure, Due, Why};

/// Something that came in between.
#[derive(Debug)]
pub(super) enum Interrupt {
    /// Draining begins. Only said while there is a stream.
    Drain,
    /// It is time to leave.
    Leave(Why),
    /// The life is over; the guard is shut.
    Over(Ended),
    /// Another leader is known than the one that is spoken to.
    Moved,
}

/// The interrupts of one life.
pub(super) struct Interrupts<'a> {
    /// Kept over calls: a new one for each message would cost an allocation each.
    over: BoxFuture<'a, Ended>,
    departure: &'a mut Departure,
    coordinators: watch::Receiver<Vec<String>>,
    /// The leader's address as it was last seen.
    leader: Option<String>,
    /// Who is spoken to, or tried.
    towards: Option<String>,
    /// One that was taken and not handled.
    pending: Option<Interrupt>,
}

impl fmt::Debug for Interrupts<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Interrupts")
            .field("departure", &self.departure)
            .field("leader", &self.leader)
            .finish_non_exhaustive()
    }
}

impl<'a> Interrupts<'a> {
    pub(super) fn new(
        life: &'a dyn Life,
        departure: &'a mut Departure,
        coordinators: watch::Receiver<Vec<String>>,
    ) -> Self {
        Self { over: life.ended(), departure, coordinators, leader: None, towards: None, pending: None }
    }

    /// Chooses the `n`th of the addresses that are known now, the leader's being the first; `None` when there is none.
    pub(super) fn aim(&mut self, n: usize) -> Option<String> {
        let known = self.coordinators.borrow_and_update();
        let known: Vec<_> = known.iter().filter(|address| !address.is_empty()).collect();
        self.leader = known.first().map(|&address| address.clone());
        self.towards = (!known.is_empty()).then(|| known[n % known.len()].clone());
        self.towards.clone()
    }

    /// Nobody is spoken to: news of any other leader come in between.
    pub(super) fn aim_nowhere(&mut self) {
        self.towards = None;
    }

    pub(super) const fn departure(&mut self) -> &mut Departure {
        self.departure
    }

    /// Waits for the next one. Cancel-safe. After [`Interrupt::Over`] there are no others.
    pub(super) async fn next(&mut self) -> Interrupt {
        if let Some(pending) = self.pending.take() {
            return pending;
        }
        tokio::select! {
            biased;
            due = self.departure.due() => match due {
                Due::Drain => Interrupt::Drain,
                Due::Leave(why) => Interrupt::Leave(why),
            },
            ended = &mut self.over => {
                self.over = Box::pin(std::future::pending());
                Interrupt::Over(ended)
            }
            () = moved(&mut self.coordinators, &mut self.leader, self.towards.as_ref()) => Interrupt::Moved,
        }
    }

    /// Puts one back, which is then the next.
    pub(super) fn put_back(&mut self, interrupt: Interrupt) {
        self.pending = Some(interrupt);
    }
}

/// Waits until another leader is known than before, and than the one that is spoken to.
async fn moved(coordinators: &mut watch::Receiver<Vec<String>>, leader: &mut Option<String>, towards: Option<&String>) {
    loop {
        if coordinators.changed().await.is_err() {
            // The seat is gone, and with it all news.
            return std::future::pending().await;
        }
        let first = coordinators.borrow_and_update().iter().find(|address| !address.is_empty()).cloned();
        if first.is_some() && first != *leader {
            *leader = first;
            if leader.as_ref() != towards {
                return;
            }
        }
    }
}
