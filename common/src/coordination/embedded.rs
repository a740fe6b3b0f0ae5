//! Coordination inside the one coordinator: it always leads, is the authority on leases, and gives lives at `Hello`.
//!
//! That it is alone is kept by the exclusive lock on its state directory, not here.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::future::BoxFuture;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::{Candidate, Ended, Error, Guard, Leader, Leadership, Life, News, Raised, Seat};
use crate::{CoordinatorId, Incarnation, Profile, Term, Timestamp, WorkerId};

/// A worker that is told its coordinators' addresses.
#[derive(Debug)]
pub struct EmbeddedSeat {
    coordinators: watch::Sender<Vec<String>>,
}

impl EmbeddedSeat {
    /// A seat with these addresses, tried in turn.
    #[must_use]
    pub fn new(coordinators: Vec<String>) -> Self {
        Self { coordinators: watch::Sender::new(coordinators) }
    }
}

#[async_trait]
impl Seat for EmbeddedSeat {
    async fn join(&self, profile: &Profile, guard: Arc<dyn Guard>) -> Result<Box<dyn Life>, Error> {
        Ok(Box::new(EmbeddedLife { lease: profile.lease, guard }))
    }

    fn coordinators(&self) -> watch::Receiver<Vec<String>> {
        self.coordinators.subscribe()
    }
}

struct EmbeddedLife {
    lease: Duration,
    guard: Arc<dyn Guard>,
}

impl std::fmt::Debug for EmbeddedLife {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EmbeddedLife").field("lease", &self.lease).finish_non_exhaustive()
    }
}

impl Drop for EmbeddedLife {
    fn drop(&mut self) {
        self.guard.shut();
    }
}

#[async_trait]
impl Life for EmbeddedLife {
    fn incarnation(&self) -> Option<Incarnation> {
        None
    }

    fn lease(&self) -> Duration {
        self.lease
    }

    async fn ended(&self) -> Ended {
        std::future::pending().await
    }

    async fn leave(self: Box<Self>) {
        self.guard.shut();
    }
}

/// The only coordinator.
#[derive(Debug)]
pub struct EmbeddedCandidate {
    leader: watch::Sender<Option<Leader>>,
    all: watch::Sender<Vec<Leader>>,
}

impl EmbeddedCandidate {
    /// The coordinator `id`, reached at `address`.
    #[must_use]
    pub fn new(id: CoordinatorId, address: String) -> Self {
        let itself = Leader { id, address };
        Self { leader: watch::Sender::new(Some(itself.clone())), all: watch::Sender::new(vec![itself]) }
    }
}

#[async_trait]
impl Candidate for EmbeddedCandidate {
    async fn campaign(&self) -> Result<Box<dyn Leadership>, Error> {
        Ok(Box::new(EmbeddedLeadership(CancellationToken::new())))
    }

    fn leader(&self) -> watch::Receiver<Option<Leader>> {
        self.leader.subscribe()
    }

    fn coordinators(&self) -> watch::Receiver<Vec<Leader>> {
        self.all.subscribe()
    }

    async fn leave(&self) {}
}

#[derive(Debug)]
struct EmbeddedLeadership(CancellationToken);

#[async_trait]
impl Leadership for EmbeddedLeadership {
    async fn raise_term(&self, above: Term) -> Result<Raised, Error> {
        match above.get().checked_add(1) {
            Some(term) => Ok(Raised { term: Term::new(term), found: None }),
            None => Err(Error::Refused(format!("there is no term above {above}"))),
        }
    }

    fn lost(&self) -> CancellationToken {
        self.0.clone()
    }

    fn roster(&self) -> Option<mpsc::Receiver<(Timestamp, News)>> {
        None
    }

    fn evict(&self, worker: WorkerId, _: Incarnation) -> BoxFuture<'static, Result<(), Error>> {
        // Without a stream there are no heartbeats, so its lease ends by itself.
        Box::pin(async move { Err(Error::Refused(format!("the lease of {worker} ends by itself"))) })
    }

    async fn resign(self: Box<Self>) {}
}
