//! One coordinator's terms: it stands by and campaigns, leads, and stands by again.
//!
//! Everything only a leader may do is done by the [`Leader`] of a term or by one of its [`LeaderTasks`], and is stopped and
//! awaited before the next campaign. With embedded coordination the first campaign is won at once and a lost store ends the process, whose
//! supervisor starts it anew; in a cluster of coordinators the lock is given up, so that another one can try.

mod retention;

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use common::CoordinatorId;
use common::backoff::Backoff;
use common::session::{Refused, RefusedReason};
use coordination::{Candidate, Leadership};
use coordinator_core::machine::TermClaim;
use runtime::program::Failure;
use runtime::retry::Retries;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::commands::{Command, CommandError};
use crate::exit_code;
use crate::grpc::ServingRole;
use crate::leader::{BeginError, EndedTerm, FormerTerms, Inputs, Leader, LeaderSetup, TermEnd, Violations};
use crate::leader_tasks::{EarlyEnd, LeaderTasks};
use crate::metrics;
use crate::opening::Opening;
use crate::sessions::Input;
use crate::sources::custom_resources::CustomResources;
use crate::sources::neutron::NeutronRouters;
use crate::sources::worker_pods::WorkerPods;
use crate::store::Store;

/// How long a term lasts at least when the one before was ended by a worker that had met a higher one: the first such wait
/// and the longest. What a worker claims must not keep the others from being led: each new term interrupts all of them.
const RAISE_AFTER: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(600));

/// A term that lasted this long makes those waits start over.
const LASTING: Duration = Duration::from_secs(3_600);

/// Delays before the next campaign after one that came to nothing: the first lets others have the lock.
const CAMPAIGN: Backoff = Backoff { base: Duration::from_millis(500), cap: Duration::from_secs(15) };

/// When it is first said that the begin of a term takes long; then each time after twice as long.
const SLOW_BEGIN: Duration = Duration::from_secs(10);

/// How long giving the lock up may take; after that it goes with the session.
const RESIGN: Duration = Duration::from_secs(3);

/// What a coordinator leads with.
#[derive(Debug)]
pub struct Terms {
    /// What each term is led with.
    pub leader: LeaderSetup,
    /// The store. Nobody campaigns before it is open.
    pub store: Opening,
    /// What learns from other systems during a term.
    pub sources: TermSources,
    /// How it is elected.
    pub candidate: Arc<dyn Candidate>,
    /// The coordinator itself is the authority, and the only one.
    pub embedded: bool,
    /// Whether calls are answered here, for [`tell_role`].
    pub leading: watch::Sender<bool>,
    /// Why this coordinator, though elected, leads no term, for [`tell_role`].
    pub trouble: watch::Sender<Option<ElectionTrouble>>,
}

/// What learns from other systems during a term.
#[derive(Clone, Debug, Default)]
pub struct TermSources {
    /// What makes appliances of custom resources, if anything does.
    pub custom_resources: Option<CustomResources>,
    /// What makes appliances of the routers of Neutron, if anything does.
    pub neutron_routers: Option<NeutronRouters>,
    /// The pods that workers run in, if they do.
    pub worker_pods: Option<WorkerPods>,
}

/// Elections that led to no term, since the last one that did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ElectionTrouble {
    /// When the first of them was won.
    since: SystemTime,
    /// How many have failed.
    failed: u32,
    /// What the last one failed by, or what the present one waits for.
    why: String,
}

impl fmt::Display for ElectionTrouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let since = prost_types::Timestamp { nanos: 0, ..self.since.into() };
        write!(f, "no term has begun here since it was elected at {since}")?;
        if self.failed > 0 {
            write!(f, ", {} failed", if self.failed == 1 { "one try" } else { "several tries" })?;
        }
        write!(f, ": {}", self.why)
    }
}

/// How a term came to its end, for what follows.
enum Next {
    Stop,
    /// Campaign again; with a delay when the term could not be begun.
    Campaign {
        failed: bool,
    },
    /// Begin another term above this one under the same leadership.
    Above(TermClaim),
}

/// What goes on from one term of this coordinator to the next.
#[derive(Debug, Default)]
struct AcrossTerms {
    raises: Raises,
    violations: Violations,
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
        let mut across = AcrossTerms::default();
        loop {
            let Some((leadership, store)) = self.campaign(inputs, &stop, pause).await? else { break };
            let next = self.lead(leadership.as_ref(), &store, inputs, &stop, &mut across).await;
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
        across: &mut AcrossTerms,
    ) -> Result<Next, Failure> {
        let mut claim = None;
        loop {
            let began = tokio::time::Instant::now();
            match self.one_term(leadership, store, inputs, stop, claim, across).await? {
                Next::Above(TermClaim { met, by }) => {
                    across.raises.raised(began.elapsed());
                    warn!(%met, worker = %by, "a worker has met a higher term than this one; beginning a new one above it");
                    claim = Some(TermClaim { met, by });
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
        claim: Option<TermClaim>,
        across: &mut AcrossTerms,
    ) -> Result<Next, Failure> {
        // Also between two terms under one leadership: until the next one has begun nobody notices here that it is lost.
        self.leading.send_replace(false);
        let (elected, began) = (SystemTime::now(), tokio::time::Instant::now());
        let violations = across.violations.clone();
        let former = FormerTerms { claim, violations, raise_after: across.raises.wait };
        let begin = Leader::begin(&self.leader, leadership, store.clone(), former);
        let begun = tokio::select! {
            biased;
            () = stop.cancelled() => return Ok(Next::Stop),
            begun = begin => begun,
            never = self.tell_slow_begin(elected) => match never {},
        };
        metrics::elected(begun.is_ok(), began.elapsed());
        let leader = match begun {
            Ok(leader) => {
                self.trouble.send_replace(None);
                leader
            }
            Err(BeginError::Store(error)) if self.embedded => {
                return Err(Failure::new(exit_code::STATE, format!("begin a term: {error}")));
            }
            Err(error) => {
                let (failed, since) = self.election_failed(elected, error.to_string());
                let seconds = since.elapsed().unwrap_or_default().as_secs();
                warn!(failed, seconds, "elected, but {error}; leaving it to another coordinator for a while");
                return Ok(Next::Campaign { failed: true });
            }
        };
        self.leading.send_replace(true);
        let mut tasks = self.start_tasks(leadership, store);
        let running = leader.run(inputs, stop.clone(), &mut tasks);
        let EndedTerm { end, violations } = metrics::busy(running).await;
        metrics::term_ended(end.name());
        tasks.stop().await;
        across.violations = violations;
        Ok(match end {
            TermEnd::Stopped => Next::Stop,
            TermEnd::HigherTerm(claim) => Next::Above(claim),
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

    /// Counts an election that led to no term; says how many there were since the last term, and since when.
    fn election_failed(&self, elected: SystemTime, why: String) -> (u32, SystemTime) {
        let (mut failed, mut since) = (1, elected);
        self.trouble.send_modify(|trouble| {
            if let Some(known) = trouble {
                (failed, since) = (known.failed + 1, known.since);
            }
            *trouble = Some(ElectionTrouble { since, failed, why });
        });
        (failed, since)
    }

    /// Says again and again that the term still has not begun.
    async fn tell_slow_begin(&self, elected: SystemTime) -> std::convert::Infallible {
        let mut pause = SLOW_BEGIN;
        loop {
            tokio::time::sleep(pause).await;
            pause *= 2;
            let why = "the database has not been read yet";
            self.trouble.send_modify(|trouble| {
                let known = trouble.take();
                let (since, failed) = known.map_or((elected, 0), |known| (known.since, known.failed));
                *trouble = Some(ElectionTrouble { since, failed, why: why.to_owned() });
            });
            let seconds = elected.elapsed().unwrap_or_default().as_secs();
            warn!(seconds, "elected, and the term has not begun: {why}");
        }
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
        let TermSources { custom_resources, neutron_routers, worker_pods } = self.sources.clone();
        if let Some(pods) = worker_pods {
            tasks.spawn("pods of workers", EarlyEnd::TermGoesOn, |over| pods.run(over));
        }
        if let Some(source) = custom_resources {
            tasks.spawn("custom resources", EarlyEnd::TermGoesOn, |over| source.run(over));
        }
        if let Some(source) = neutron_routers {
            tasks.spawn("routers of Neutron", EarlyEnd::TermGoesOn, |over| source.run(over));
        }
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
    mut trouble: watch::Receiver<Option<ElectionTrouble>>,
    own: CoordinatorId,
    role: watch::Sender<ServingRole>,
    stopping: CancellationToken,
) {
    let mut leader = candidate.leader();
    drop(candidate);
    loop {
        let is = *leading.borrow_and_update();
        let known = leader.borrow_and_update().clone();
        let why = trouble.borrow_and_update().as_ref().map(ToString::to_string);
        let others_lead = known.as_ref().is_some_and(|leader| leader.id != own);
        let now = match why {
            _ if is => ServingRole::Leading,
            Some(why) if !others_lead => ServingRole::Electing(why),
            _ => ServingRole::Standby(known),
        };
        role.send_if_modified(|role| {
            let changed = *role != now;
            *role = now;
            changed
        });
        let more = tokio::select! {
            () = stopping.cancelled() => false,
            changed = leading.changed() => changed.is_ok(),
            changed = leader.changed() => changed.is_ok(),
            changed = trouble.changed() => changed.is_ok(),
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
    fn elections_without_a_term_say_since_when_and_why() {
        let since = SystemTime::UNIX_EPOCH + Duration::from_millis(1_500);
        let mut trouble = ElectionTrouble { since, failed: 0, why: "the database has not been read yet".into() };
        let slow =
            "no term has begun here since it was elected at 1970-01-01T00:00:01Z: the database has not been read yet";
        assert_eq!(trouble.to_string(), slow);
        (trouble.failed, trouble.why) = (2, "begin a term: timed out".into());
        assert!(trouble.to_string().ends_with(", several tries failed: begin a term: timed out"), "{trouble}");
    }

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
