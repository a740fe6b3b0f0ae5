//! One coordinator's terms: it stands by and campaigns, leads, and stands by again.
//!
//! Everything only a leader may do is done by the [`Leader`] of a term or by one of its [`LeaderTasks`], and is stopped and
//! awaited before the next campaign. With embedded coordination the first campaign is won at once and a lost store ends the process, whose
//! supervisor starts it anew; in a cluster of coordinators the lock is given up, so that another one can try.

mod retention;

use std::sync::Arc;
use std::time::Duration;

use common::Term;
use common::backoff::Backoff;
use common::session::{Refused, RefusedReason};
use coordination::{Candidate, Leadership};
use runtime::program::Failure;
use runtime::retry::Retries;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::commands::{Command, CommandError};
use crate::exit_code;
use crate::grpc::ServingRole;
use crate::leader::{BeginError, FormerTerms, Inputs, Leader, LeaderSetup, TermEnd};
use crate::leader_tasks::{EarlyEnd, LeaderTasks};
use crate::opening::Opening;
use crate::sessions::Input;
use crate::store::Store;

/// How long a term lasts at least when the one before was ended by a worker that had met a higher one: the first such wait
/// and the longest. What a worker claims must not keep the others from being led: each new term interrupts all of them.
const RAISE_AFTER: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(600));

/// A term that lasted this long makes those waits start over.
const LASTING: Duration = Duration::from_secs(3_600);

/// Delays before the next campaign after one that came to nothing: the first lets others have the lock.
const CAMPAIGN: Backoff = Backoff { base: Duration::from_millis(500), cap: Duration::from_secs(15) };

/// How long giving the lock up may take; after that it goes with the session.
const RESIGN: Duration = Duration::from_secs(3);

/// What a coordinator leads with.
#[derive(Debug)]
pub struct Terms {
    /// What each term is led with.
    pub leader: LeaderSetup,
    /// The store. Nobody campaigns before it is open.
    pub store: Opening,
    /// How it is elected.
    pub candidate: Arc<dyn Candidate>,
    /// The coordinator itself is the authority, and the only one.
    pub embedded: bool,
    /// Whether calls are answered here, for [`tell_role`].
    pub leading: watch::Sender<bool>,
}

/// How a term came to its end, for what follows.
enum Next {
    Stop,
    /// Campaign again; with a delay when the term could not be begun.
    Campaign {
        failed: bool,
    },
    /// Begin another term above this one under the same leadership.
    Above(Term),
}

/// Paces the terms that are begun because workers claim to have met higher ones. The first is begun at once.
#[derive(Debug, Default)]
struct Raises {
    wait: Duration,
}

impl Raises {
    /// A claim ended a term that had lasted so long.
    fn raised(&mut self, lasted: Duration) {
        let (shortest, longest) = RAISE_AFTER;
        self.wait = if lasted >= LASTING { shortest } else { (self.wait * 2).clamp(shortest, longest) };
    }
}

impl Terms {
    /// Campaigns and leads until `stop`.
    ///
    /// # Errors
    /// [`Failure`] when going on makes no sense.
    pub async fn run(self, inputs: &mut Inputs, stop: CancellationToken) -> Result<(), Failure> {
        let mut retries = Retries::new(CAMPAIGN);
        let mut pause = Duration::ZERO;
        let mut raises = Raises::default();
        loop {
            let Some((leadership, store)) = self.campaign(inputs, &stop, pause).await? else { break };
            let next = self.lead(leadership.as_ref(), &store, inputs, &stop, &mut raises).await;
            self.leading.send_replace(false);
            // Whoever watches asks again, and reaches the next leader.
            self.leader.catalog.close_watches();
            match next {
                Ok(Next::Stop) => {
                    resign(leadership).await;
                    break;
                }
                Ok(Next::Campaign { failed: false } | Next::Above(_)) => {
                    retries.reset();
                    pause = Duration::ZERO;
                    // In doubt only, the lock may still be ours: it is left to the candidate.
                    drop(leadership);
                }
                Ok(Next::Campaign { failed: true }) => {
                    resign(leadership).await;
                    pause = retries.next_delay();
                }
                Err(failure) => {
                    resign(leadership).await;
                    return Err(failure);
                }
            }
        }
        Ok(())
    }

    /// Stands by until the store is open and this coordinator elected. `None` when it is to stop.
    async fn campaign(
        &self,
        inputs: &mut Inputs,
        stop: &CancellationToken,
        pause: Duration,
    ) -> Result<Option<(Box<dyn Leadership>, Store)>, Failure> {
        let campaign = async {
            tokio::time::sleep(pause).await;
            let store = self.store.wait().await.map_err(|e| Failure::new(exit_code::STATE, e))?;
            let leadership = self.candidate.campaign().await.map_err(|error| match error {
                coordination::Error::NameTaken { .. } => Failure::new(exit_code::NAME_TAKEN, error),
                error => Failure::other(format!("coordination: {error}")),
            })?;
            Ok(Some((leadership, store)))
        };
        tokio::pin!(campaign);
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(None),
                elected = &mut campaign => return elected,
                Some((_, input)) = inputs.sessions.recv() => self.turn_away(input),
                Some(command) = inputs.commands.recv() => self.refuse(command),
            }
        }
    }

    async fn lead(
        &self,
        leadership: &dyn Leadership,
        store: &Store,
        inputs: &mut Inputs,
        stop: &CancellationToken,
        raises: &mut Raises,
    ) -> Result<Next, Failure> {
        let mut highest_seen = Term::default();
        loop {
            let began = tokio::time::Instant::now();
            let former = FormerTerms { highest_seen, raise_after: raises.wait };
            match self.one_term(leadership, store, inputs, stop, former).await? {
                Next::Above(seen) => {
                    raises.raised(began.elapsed());
                    warn!(%seen, "a worker has met a higher term than this one; beginning a new one above it");
                    highest_seen = seen;
                }
                next => return Ok(next),
            }
        }
    }

    async fn one_term(
        &self,
        leadership: &dyn Leadership,
        store: &Store,
        inputs: &mut Inputs,
        stop: &CancellationToken,
        former: FormerTerms,
    ) -> Result<Next, Failure> {
        // Also between two terms under one leadership: until the next one has begun nobody notices here that it is lost.
        self.leading.send_replace(false);
        let begin = Leader::begin(&self.leader, leadership, store.clone(), former);
        let begun = tokio::select! {
            biased;
            () = stop.cancelled() => return Ok(Next::Stop),
            begun = begin => begun,
        };
        let leader = match begun {
            Ok(leader) => leader,
            Err(BeginError::Store(error)) if self.embedded => {
                return Err(Failure::new(exit_code::STATE, format!("begin a term: {error}")));
            }
            Err(error) => {
                warn!("elected, but {error}; leaving it to another coordinator for a while");
                return Ok(Next::Campaign { failed: true });
            }
        };
        self.leading.send_replace(true);
        let mut tasks = self.start_tasks(leadership, store);
        let ended = leader.run(inputs, stop.clone(), &mut tasks).await;
        tasks.stop().await;
        Ok(match ended {
            TermEnd::Stopped => Next::Stop,
            TermEnd::HigherTerm(seen) => Next::Above(seen),
            TermEnd::StoreLost(error) if self.embedded => {
                return Err(Failure::new(exit_code::STORE_LOST, format!("stepping down: {error}")));
            }
            TermEnd::StoreLost(error) => {
                warn!("stepping down: {error}");
                Next::Campaign { failed: true }
            }
            TermEnd::TaskEnded(task) => {
                error!(task, "stepping down: the term cannot go on without a task that has ended");
                Next::Campaign { failed: true }
            }
            TermEnd::LeadershipLost => {
                info!("stepping down: the leadership is lost or in doubt");
                Next::Campaign { failed: false }
            }
        })
    }

    /// Starts what runs beside the leader for as long as its term.
    fn start_tasks(&self, leadership: &dyn Leadership, store: &Store) -> LeaderTasks {
        let mut tasks = LeaderTasks::default();
        let (lost, leading, catalog) = (leadership.lost(), self.leading.clone(), Arc::clone(&self.leader.catalog));
        // Ending the term may take seconds; what is answered from memory meanwhile may be old already.
        tasks.spawn("stop answering", EarlyEnd::EndsTerm, |over| async move {
            let lost = over.run_until_cancelled(lost.cancelled()).await;
            if lost.is_some() {
                leading.send_replace(false);
                catalog.close_watches();
                over.cancelled().await;
            }
        });
        let store = store.clone();
        tasks.spawn("retention", EarlyEnd::TermGoesOn, |over| retention::run(store, over));
        tasks
    }

    fn leader_elsewhere(&self) -> Option<coordination::Leader> {
        self.candidate.leader().borrow().clone().filter(|leader| leader.id != self.leader.identity.coordinator)
    }

    /// A worker that comes to a standby is told so; it knows where to look for the leader.
    fn turn_away(&self, input: Input) {
        if let Input::Hello { envelope, out, .. } = input {
            let detail = match self.leader_elsewhere() {
                Some(leader) => format!("{} leads", leader.id),
                None => "this coordinator does not lead, and knows nobody who does".to_owned(),
            };
            out.refuse(&envelope, Refused { reason: RefusedReason::NotLeading, detail, retry_after: None });
        }
    }

    /// Calls are passed on before they come here; this one was on its way when the leadership ended.
    fn refuse(&self, command: Command) {
        command.fail(CommandError::NotLeading(self.leader_elsewhere().map(|leader| leader.id)));
    }
}

async fn resign(leadership: Box<dyn Leadership>) {
    if tokio::time::timeout(RESIGN, leadership.resign()).await.is_err() {
        warn!("the lock could not be given up in time; it goes with the session");
    }
}

/// Tells the services what this coordinator is, from whether it leads and from who is known to, until `stopping`.
pub async fn tell_role(
    candidate: Arc<dyn Candidate>,
    mut leading: watch::Receiver<bool>,
    role: watch::Sender<ServingRole>,
    stopping: CancellationToken,
) {
    let mut leader = candidate.leader();
    drop(candidate);
    loop {
        let is = *leading.borrow_and_update();
        let known = leader.borrow_and_update().clone();
        let now = if is { ServingRole::Leading } else { ServingRole::Standby(known) };
        role.send_if_modified(|role| {
            let changed = *role != now;
            *role = now;
            changed
        });
        let more = tokio::select! {
            () = stopping.cancelled() => false,
            changed = leading.changed() => changed.is_ok(),
            changed = leader.changed() => changed.is_ok(),
        };
        if !more {
            role.send_replace(ServingRole::Stopping);
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terms_that_workers_ask_for_become_rare_and_never_end_the_process() {
        let mut raises = Raises::default();
        let waits: Vec<_> = std::iter::repeat_with(|| {
            let wait = raises.wait;
            raises.raised(wait);
            wait.as_secs()
        })
        .take(12)
        .collect();
        assert_eq!(waits, [0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 600]);
        raises.raised(LASTING);
        assert_eq!(raises.wait, RAISE_AFTER.0);
    }
}
