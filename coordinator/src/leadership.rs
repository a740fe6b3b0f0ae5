//! One coordinator's terms: it stands by and campaigns, leads, and stands by again.
//!
//! Everything only a leader may do hangs off the [`Leader`] of a term, and is stopped and awaited before the next
//! campaign. With embedded coordination the first campaign is won at once and a lost store ends the process, whose
//! supervisor starts it anew; in a cluster of coordinators the lock is given up, so that another one can try.

use std::sync::Arc;
use std::time::Duration;

use common::Term;
use common::session::{Refused, RefusedReason};
use coordination::{Candidate, Leadership};
use coordinator_core::machine;
use proto::convert::down;
use runtime::retry::Backoff;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::api::{Command, CommandError};
use crate::app::Failure;
use crate::catalog::Catalog;
use crate::grpc::ServingRole;
use crate::leader::{BeginError, Ended, Identity, Inputs, Leader};
use crate::metrics::Metrics;
use crate::opening::Opening;
use crate::sessions::Input;
use crate::store::Store;

/// How often a term is begun anew after a higher one was met, before giving up.
const TERM_TRIES: u32 = 10;

/// How long a term has to last for the count of those tries to start over.
const LASTING: Duration = Duration::from_secs(60);

/// Delays before the next campaign after one that came to nothing: the first lets others have the lock.
const CAMPAIGN: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(15));

/// How long giving the lock up may take; after that it goes with the session.
const RESIGN: Duration = Duration::from_secs(3);

/// What a coordinator leads with.
#[derive(Debug)]
pub struct Terms {
    /// Settings of the machine.
    pub machine: machine::Config,
    /// The store. Nobody campaigns before it is open.
    pub store: Opening,
    /// What readers see.
    pub catalog: Arc<Catalog>,
    /// Who this coordinator is.
    pub identity: Identity,
    /// How it is elected.
    pub candidate: Arc<dyn Candidate>,
    /// What is measured.
    pub metrics: Arc<Metrics>,
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

impl Terms {
    /// Campaigns and leads until `stop`.
    ///
    /// # Errors
    /// [`Failure`] when going on makes no sense.
    pub async fn run(self, inputs: &mut Inputs, stop: CancellationToken) -> Result<(), Failure> {
        let mut backoff = Backoff::new(CAMPAIGN.0, CAMPAIGN.1);
        let mut pause = Duration::ZERO;
        loop {
            let Some((leadership, store)) = self.campaign(inputs, &stop, pause).await? else { break };
            let next = self.lead(leadership.as_ref(), &store, inputs, &stop).await;
            self.leading.send_replace(false);
            // Whoever watches asks again, and reaches the next leader.
            self.catalog.close_watches();
            match next {
                Ok(Next::Stop) => {
                    resign(leadership).await;
                    break;
                }
                Ok(Next::Campaign { failed: false } | Next::Above(_)) => {
                    backoff.reset();
                    pause = Duration::ZERO;
                    // In doubt only, the lock may still be ours: it is left to the candidate.
                    drop(leadership);
                }
                Ok(Next::Campaign { failed: true }) => {
                    resign(leadership).await;
                    pause = backoff.next_delay();
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
            let store = self.store.wait().await.map_err(|e| Failure::State(e.to_string()))?;
            let leadership = self.candidate.campaign().await.map_err(|error| match error {
                coordination::Error::NameTaken { .. } => Failure::NameTaken(error),
                error => Failure::Coordination(error),
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
    ) -> Result<Next, Failure> {
        let mut highest_seen = Term::default();
        let mut tries = 0;
        while tries < TERM_TRIES {
            let began = tokio::time::Instant::now();
            match self.one_term(leadership, store, inputs, stop, highest_seen).await? {
                Next::Above(seen) => {
                    warn!(%seen, "a higher term than this one was met; beginning a new one above it");
                    highest_seen = seen;
                }
                next => return Ok(next),
            }
            tries = if began.elapsed() > LASTING { 0 } else { tries + 1 };
        }
        Err(Failure::Other(format!("{TERM_TRIES} terms in a row met a higher one")))
    }

    async fn one_term(
        &self,
        leadership: &dyn Leadership,
        store: &Store,
        inputs: &mut Inputs,
        stop: &CancellationToken,
        highest_seen: Term,
    ) -> Result<Next, Failure> {
        let config = self.machine.clone();
        let (store, catalog) = (store.clone(), Arc::clone(&self.catalog));
        let metrics = Arc::clone(&self.metrics);
        let begin = Leader::begin(config, leadership, store, catalog, self.identity.clone(), metrics, highest_seen);
        let begun = tokio::select! {
            biased;
            () = stop.cancelled() => return Ok(Next::Stop),
            begun = begin => begun,
        };
        let leader = match begun {
            Ok(leader) => leader,
            Err(BeginError::Store(error)) if self.embedded => {
                return Err(Failure::State(format!("begin a term: {error}")));
            }
            Err(error) => {
                warn!("elected, but {error}; leaving it to another coordinator for a while");
                return Ok(Next::Campaign { failed: true });
            }
        };
        self.leading.send_replace(true);
        let lost = leadership.lost();
        let run = leader.run(inputs, stop.clone());
        tokio::pin!(run);
        let ended = tokio::select! {
            ended = &mut run => ended,
            () = lost.cancelled() => {
                // Ending the term may take seconds; what is answered from memory meanwhile may be old already.
                self.leading.send_replace(false);
                self.catalog.close_watches();
                run.await
            }
        };
        Ok(match ended {
            Ended::Stopped => Next::Stop,
            Ended::HigherTerm(seen) => Next::Above(seen),
            Ended::StoreLost(error) if self.embedded => return Err(Failure::StoreLost(error)),
            Ended::StoreLost(error) => {
                warn!("stepping down: {error}");
                Next::Campaign { failed: true }
            }
            Ended::LeadershipLost => {
                info!("stepping down: the leadership is lost or in doubt");
                Next::Campaign { failed: false }
            }
        })
    }

    fn leader_elsewhere(&self) -> Option<coordination::Leader> {
        self.candidate.leader().borrow().clone().filter(|leader| leader.id != self.identity.coordinator)
    }

    /// A worker that comes to a standby is told so; it knows where to look for the leader.
    fn turn_away(&self, input: Input) {
        if let Input::Hello { envelope, out, .. } = input {
            let detail = match self.leader_elsewhere() {
                Some(leader) => format!("{} leads", leader.id),
                None => "this coordinator does not lead, and knows nobody who does".to_owned(),
            };
            let refused = Refused { reason: RefusedReason::NotLeading, detail, retry_after: None };
            let _ = out.send(down::refused_to_wire(&envelope, refused));
        }
    }

    /// Calls are passed on before they come here; this one was on its way when the leadership ended.
    fn refuse(&self, command: Command) {
        let error = || CommandError::NotLeading(self.leader_elsewhere().map(|leader| leader.id));
        match command {
            Command::Change { reply, .. } => drop(reply.send(Err(error()))),
            Command::Explain { reply, .. } => drop(reply.send(Err(error()))),
            Command::Check { reply, .. }
            | Command::Evict { reply, .. }
            | Command::Pause { reply, .. }
            | Command::Resume { reply, .. } => drop(reply.send(Err(error()))),
        }
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
