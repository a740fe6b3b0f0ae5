//! Coordination inside the one coordinator: it always leads, is the authority on leases, and gives lives at `Hello`.
//!
//! That it is alone is kept by the exclusive lock on its state directory, not here. Beside that lock stands the highest
//! term, in the file `term`: with a database that is put back to an older copy, what was begun since would be begun again.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::future::BoxFuture;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::{Candidate, Error, Group, Guard, Leader, Leadership, MemberSession, MembershipEnd, Raised, RosterEvent};
use common::secret::LifeSeal;
use common::{CoordinatorId, Incarnation, Profile, Term, Timestamp, WorkerId};
use runtime::file::write_atomic;

/// A worker that is told its coordinators' addresses.
#[derive(Debug)]
pub struct EmbeddedGroup {
    coordinators: watch::Sender<Vec<String>>,
    name_timeout: Duration,
}

impl EmbeddedGroup {
    /// A group with these addresses, tried in turn, in which a name that is taken is waited for that long.
    #[must_use]
    pub fn new(coordinators: Vec<String>, name_timeout: Duration) -> Self {
        Self { coordinators: watch::Sender::new(coordinators), name_timeout }
    }
}

#[async_trait]
impl Group for EmbeddedGroup {
    async fn join(
        &self,
        profile: &Profile,
        _: LifeSeal,
        guard: Arc<dyn Guard>,
    ) -> Result<Box<dyn MemberSession>, Error> {
        Ok(Box::new(EmbeddedSession { lease: profile.lease, guard }))
    }

    fn coordinators(&self) -> watch::Receiver<Vec<String>> {
        self.coordinators.subscribe()
    }

    fn name_timeout(&self) -> Duration {
        self.name_timeout
    }
}

struct EmbeddedSession {
    lease: Duration,
    guard: Arc<dyn Guard>,
}

impl std::fmt::Debug for EmbeddedSession {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EmbeddedSession").field("lease", &self.lease).finish_non_exhaustive()
    }
}

impl Drop for EmbeddedSession {
    fn drop(&mut self) {
        self.guard.shut();
    }
}

#[async_trait]
impl MemberSession for EmbeddedSession {
    fn incarnation(&self) -> Option<Incarnation> {
        None
    }

    fn lease(&self) -> Duration {
        self.lease
    }

    async fn ended(&self) -> MembershipEnd {
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
    terms: PathBuf,
}

impl EmbeddedCandidate {
    /// The coordinator `id`, reached at `address`, which keeps its highest term in `state_dir`.
    #[must_use]
    pub fn new(id: CoordinatorId, address: String, state_dir: &Path) -> Self {
        let itself = Leader { id, address };
        Self {
            leader: watch::Sender::new(Some(itself.clone())),
            all: watch::Sender::new(vec![itself]),
            terms: state_dir.join("term"),
        }
    }
}

#[async_trait]
impl Candidate for EmbeddedCandidate {
    async fn campaign(&self) -> Result<Box<dyn Leadership>, Error> {
        Ok(Box::new(EmbeddedLeadership { terms: self.terms.clone(), lost: CancellationToken::new() }))
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
struct EmbeddedLeadership {
    terms: PathBuf,
    lost: CancellationToken,
}

/// Raises the term in `file`.
fn raise(file: &Path, above: Term) -> Result<Raised, Error> {
    let refused = |what: &str| Error::Refused(format!("{}: {what}", file.display()));
    let found = match std::fs::read_to_string(file) {
        Ok(text) => Some(Term::new(text.trim().parse().map_err(|_| {
            refused("does not hold a term; without the file, terms go on far above those of the database")
        })?)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(refused(&error.to_string())),
    };
    let term = Term::following(found, above).ok_or_else(|| refused(&format!("there is no term above {above}")))?;
    write_atomic(file, format!("{}\n", term.get()).as_bytes()).map_err(|error| refused(&error.to_string()))?;
    Ok(Raised { term, found })
}

#[async_trait]
impl Leadership for EmbeddedLeadership {
    async fn raise_term(&self, above: Term) -> Result<Raised, Error> {
        let file = self.terms.clone();
        let raised = tokio::task::spawn_blocking(move || raise(&file, above)).await;
        raised.unwrap_or_else(|error| Err(Error::Refused(error.to_string())))
    }

    fn lost(&self) -> CancellationToken {
        self.lost.clone()
    }

    fn roster(&self) -> Option<mpsc::Receiver<(Timestamp, RosterEvent)>> {
        None
    }

    fn evict(&self, worker: WorkerId, _: Incarnation) -> BoxFuture<'static, Result<(), Error>> {
        // Without a stream there are no heartbeats, so its lease ends by itself.
        Box::pin(async move { Err(Error::Refused(format!("the lease of {worker} ends by itself"))) })
    }

    async fn resign(self: Box<Self>) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_term_is_begun_once_whatever_becomes_of_the_database() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("term");
        let raise =
            |above| raise(&file, Term::new(above)).map(|raised| (raised.term.get(), raised.found.map(Term::get)));
        assert_eq!(raise(0), Ok((1, None)));
        assert_eq!(raise(1), Ok((2, Some(1))));
        assert_eq!(raise(7), Ok((8, Some(2))), "a worker had met a later one");
        assert_eq!(raise(1), Ok((9, Some(8))), "the database was put back");
        std::fs::write(&file, "soon").expect("it is a file");
        assert!(raise(9).is_err_and(|error| matches!(error, Error::Refused(_))));
        std::fs::remove_file(&file).expect("it is a file");
        assert!(raise(1).is_ok_and(|(term, found)| term > 100 && found.is_none()), "nobody knows what was begun since");
    }
}
