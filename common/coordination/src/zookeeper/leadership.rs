//! The elected leader's part: terms, evictions, and knowing in time that it may lead no more.
//!
//! Terms and evictions are written in one transaction with a check of the own lock node, so that nobody who lost the
//! lock changes anything. The leadership counts as lost with its session, with its lock node, or as soon as its own
//! heartbeats have not committed for a lease: whichever is noticed first.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures::future::BoxFuture;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use zookeeper_client::{CheckWriteError, CheckWriter, CreateMode, Error as ZkError};

use super::candidate::ParkedContender;
use super::config::Config;
use super::connection::{ZkFailed, ZkSession};
use super::layout::{self, LeaseData};
use super::lock::Contender;
use super::member::ContenderNode;
use super::roster;
use crate::{Error, Leadership, Raised, RosterEvent};
use common::backoff::Backoff;
use common::election::{LostReason, WRITE_TRIES};
use common::{CoordinatorId, Incarnation, Term, Timestamp, WorkerId};
use runtime::retry::Retries;

/// Delays between them.
const RETRY: Backoff = Backoff { base: Duration::from_millis(5), cap: Duration::from_millis(250) };

/// Workers whose next change is likely to be an eviction: the roster reads their nodes at once.
pub(super) type Suspects = Arc<Mutex<BTreeSet<WorkerId>>>;

/// An elected coordinator.
pub(super) struct ZooKeeperLeadership {
    config: Arc<Config>,
    id: CoordinatorId,
    member: Arc<ContenderNode>,
    contender: Option<Arc<Contender>>,
    watching: Option<JoinHandle<()>>,
    parked: ParkedContender,
    suspects: Suspects,
    lost: CancellationToken,
    /// Cancelled when it ends only because of doubt.
    doubted: CancellationToken,
}

impl fmt::Debug for ZooKeeperLeadership {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ZooKeeperLeadership")
            .field("id", &self.id)
            .field("lock", &self.contender.as_ref().map(|contender| contender.path()))
            .field("lost", &self.lost.is_cancelled())
            .finish_non_exhaustive()
    }
}

impl ZooKeeperLeadership {
    /// The leadership of `contender`, which stands first. Needs a Tokio runtime.
    pub(super) fn new(
        config: Arc<Config>,
        id: CoordinatorId,
        member: Arc<ContenderNode>,
        contender: Contender,
        parked: ParkedContender,
    ) -> Self {
        let (lost, doubted) = (CancellationToken::new(), CancellationToken::new());
        let contender = Arc::new(contender);
        let watching = watch_over(Arc::clone(&member), Arc::clone(&contender), lost.clone(), doubted.clone());
        let watching = Some(tokio::spawn(watching));
        let suspects = Suspects::default();
        Self { config, id, member, contender: Some(contender), watching, parked, suspects, lost, doubted }
    }

    fn fence(&self) -> Fence {
        Fence { session: self.member.session.clone(), lock: self.contender.as_ref().map(|lock| lock.path()) }
    }

    /// Takes the contender out of everybody's hands.
    async fn reclaim(mut self) -> Option<Contender> {
        self.lost.cancel();
        // It lets go of the contender as soon as it sees that the leadership is lost.
        if let Some(watching) = self.watching.take() {
            _ = watching.await;
        }
        Arc::into_inner(self.contender.take()?)
    }
}

/// Waits for the end of a leadership and says so.
async fn watch_over(
    member: Arc<ContenderNode>,
    contender: Arc<Contender>,
    lost: CancellationToken,
    doubted: CancellationToken,
) {
    let why = tokio::select! {
        () = lost.cancelled() => return,
        () = member.over.cancelled() => "the session is over",
        why = contender.lost(&member) => match why {
            LostReason::LockGone => "the lock is gone",
            LostReason::Doubt => {
                doubted.cancel();
                "heartbeats have not committed for a lease"
            }
        },
    };
    drop(contender);
    tracing::warn!(why, "the leadership is lost");
    lost.cancel();
}

impl Drop for ZooKeeperLeadership {
    fn drop(&mut self) {
        self.lost.cancel();
        let Some(contender) = self.contender.take() else { return };
        if self.doubted.is_cancelled()
            && !self.member.over.is_cancelled()
            && tokio::runtime::Handle::try_current().is_ok()
            && let Some(contender) = Arc::into_inner(contender)
        {
            self.parked.put(contender);
        }
    }
}

/// Writes that count only while the lock is held.
struct Fence {
    session: ZkSession,
    lock: Option<String>,
}

/// What a fenced write came to.
enum WriteOutcome {
    /// It committed.
    Done,
    /// Somebody else wrote first.
    Raced,
}

impl Fence {
    async fn write(
        &self,
        add: impl FnOnce(&mut CheckWriter<'_>) -> Result<(), ZkError>,
    ) -> Result<WriteOutcome, Error> {
        let lost = || Error::Lost("the lock is not held any more".to_owned());
        let lock = self.lock.as_ref().ok_or_else(lost)?;
        let mut writer =
            self.session.client().new_check_writer(lock, None).map_err(|e| Error::from(ZkFailed::from(e)))?;
        add(&mut writer).map_err(|e| Error::from(ZkFailed::from(e)))?;
        let answer = tokio::time::timeout(self.session.timeout(), writer.commit()).await;
        match answer {
            Ok(Ok(_)) => Ok(WriteOutcome::Done),
            Ok(Err(CheckWriteError::CheckFailed { source: ZkError::NoNode | ZkError::BadVersion })) => Err(lost()),
            Ok(Err(CheckWriteError::OperationFailed {
                source: ZkError::BadVersion | ZkError::NodeExists | ZkError::NoNode,
                ..
            })) => Ok(WriteOutcome::Raced),
            Ok(Err(error)) => Err(ZkFailed::from(ZkError::from(error)).into()),
            Err(_) => Err(Error::Unavailable("zookeeper: no answer within the session timeout".to_owned())),
        }
    }

    async fn raise(&self, layout: &layout::Layout, above: Term) -> Result<Raised, Error> {
        let path = layout.term();
        let mut retries = Retries::new(RETRY);
        for _ in 0..WRITE_TRIES {
            self.session.ensure(layout.own()).await?;
            let read = self.session.read(&path).await?;
            let found = read.as_ref().map(|(data, _)| parse_term(&path, data)).transpose()?;
            let term = Term::following(found, above)
                .ok_or_else(|| Error::Refused(format!("there is no term above {above}")))?;
            let text = term.get().to_string();
            let acls = self.session.acls();
            let wrote = self
                .write(|writer| match &read {
                    Some((_, stat)) => writer.add_set_data(&path, text.as_bytes(), Some(stat.version)),
                    None => writer.add_create(&path, text.as_bytes(), &CreateMode::Persistent.with_acls(acls)),
                })
                .await?;
            if let WriteOutcome::Done = wrote {
                return Ok(Raised { term, found });
            }
            // What was read may have been an older state of a server that lags.
            self.session.call(self.session.client().sync(&path)).await?;
            tokio::time::sleep(retries.next_delay()).await;
        }
        Err(Error::Unavailable(format!("others keep writing to {path}")))
    }

    /// An eviction of one term may commit in the next, when the same lock goes on: it ends a life that comes back as
    /// another, and the roster finds a mark that it was not told to expect when nothing follows it.
    async fn evict(
        &self,
        by: &CoordinatorId,
        path: &str,
        worker: &WorkerId,
        incarnation: Incarnation,
    ) -> Result<(), Error> {
        let mut retries = Retries::new(RETRY);
        for _ in 0..WRITE_TRIES {
            let Some((data, stat)) = self.session.read(path).await? else { return Ok(()) };
            let read = LeaseData::read(&data);
            if layout::incarnation(&stat) != incarnation || read.evicted {
                return Ok(());
            }
            let mark = layout::eviction(by, read.lease);
            match self.write(|writer| writer.add_set_data(path, &mark, Some(stat.version))).await? {
                WriteOutcome::Done => {
                    tracing::info!(%worker, %incarnation, "evicted");
                    return Ok(());
                }
                WriteOutcome::Raced => tokio::time::sleep(retries.next_delay()).await,
            }
        }
        Err(Error::Unavailable(format!("{worker} beats faster than it can be evicted")))
    }
}

fn parse_term(path: &str, data: &[u8]) -> Result<Term, Error> {
    let text = std::str::from_utf8(data).ok().map(str::trim);
    let unreadable = || Error::Refused(format!("{path} does not hold a term"));
    text.and_then(|text| text.parse().ok()).map(Term::new).ok_or_else(unreadable)
}

#[async_trait]
impl Leadership for ZooKeeperLeadership {
    async fn raise_term(&self, above: Term) -> Result<Raised, Error> {
        if self.lost.is_cancelled() {
            return Err(Error::Lost("the leadership is lost".to_owned()));
        }
        self.fence().raise(&self.config.layout, above).await
    }

    fn lost(&self) -> CancellationToken {
        self.lost.clone()
    }

    fn roster(&self) -> Option<mpsc::Receiver<(Timestamp, RosterEvent)>> {
        let (member, suspects) = (Arc::clone(&self.member), Arc::clone(&self.suspects));
        Some(roster::spawn(Arc::clone(&self.config), member, suspects, self.lost.clone()))
    }

    fn evict(&self, worker: WorkerId, incarnation: Incarnation) -> BoxFuture<'static, Result<(), Error>> {
        let (fence, by, path) = (self.fence(), self.id.clone(), self.config.layout.worker(&worker).lease());
        let suspects = Arc::clone(&self.suspects);
        Box::pin(async move {
            // Before the write, so that the roster knows when it hears of the change.
            suspects.lock().unwrap_or_else(PoisonError::into_inner).insert(worker.clone());
            fence.evict(&by, &path, &worker, incarnation).await
        })
    }

    async fn resign(self: Box<Self>) {
        if let Some(contender) = self.reclaim().await {
            contender.leave().await;
        }
    }
}
