//! Carries out what is decided about one object.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use common::ApplianceId;
use common::change::ApplianceTarget;
use kubernetes::kube;
use runtime::log_limited;
use tokio::time::Instant;
use tracing::{Instrument, field, info_span};
use uuid::Uuid;

use super::api::Resources;
use super::decide::{Own, Step, decide};
use super::resource::{ADOPT, FINALIZER, Resource, Wanted, shown_fields};
use super::status::{ACCEPTED, Acceptance, RefusedBecause, status};
use crate::access::Scope;
use crate::catalog::Catalog;
use crate::commands::{Change, ChangeOrigin, CommandContext, CommandError, Commands, RequestKey};
use crate::metrics;
use crate::views::CatalogEntry;

/// Most steps that are taken at one go: hold, change, and what is then to be shown, with room for races.
const STEPS: usize = 8;

/// How long a change may take. Whether it was made is seen afterwards.
const CHANGE: Duration = Duration::from_secs(30);

/// When what was refused is asked for again, because of what other appliances have: ports, names, room.
const REFUSED_AGAIN: Duration = Duration::from_secs(30);

/// When it is asked again for what waits for an appliance to be gone.
const GOING_AGAIN: Duration = Duration::from_secs(2);

/// Appliances that one request is found to have made before, each gone since, before it is given up.
const LIVES: usize = 16;

/// What objects are looked at with.
#[derive(Clone)]
pub(super) struct Reconciler {
    pub(super) commands: Commands,
    pub(super) catalog: Arc<Catalog>,
    pub(super) api: Resources,
    /// Objects may name another tenant than their namespace.
    pub(super) any_tenant: bool,
}

/// One object to be looked at.
#[derive(Clone, Debug)]
pub(super) struct Work {
    pub(super) resource: Arc<Resource>,
    /// The appliance that it manages, as far as that was seen.
    pub(super) own: Option<Arc<CatalogEntry>>,
    /// What the leader refused before.
    pub(super) refusal: Option<Refusal>,
}

/// What the leader has refused, so that it is not asked for again before that may help.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    /// The object, as far as that matters.
    about: (String, i64, bool),
    /// The appliance it was to change.
    base: Base,
    acceptance: Acceptance,
    pub(super) until: Instant,
}

/// The appliance that a change was decided by: its identity, its generation, and when it was last changed.
type Base = Option<(ApplianceId, u64, SystemTime)>;

/// What came of looking at an object.
#[derive(Debug)]
pub(super) struct Looked {
    /// The object as it was written last.
    pub(super) resource: Option<Resource>,
    /// The appliance that it manages now.
    pub(super) own: Option<ApplianceId>,
    pub(super) refusal: Option<Refusal>,
    pub(super) next: Next,
}

/// When an object is to be looked at again, beside when something changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// No more.
    Settled,
    /// After this.
    Again(Duration),
    /// It failed; as the back-off says, and not before this.
    Failed(Duration),
}

/// How a step failed.
#[derive(Debug)]
enum Failure {
    /// The leader refuses; so it is to be shown.
    Refused(Acceptance, Duration),
    /// It may go better later.
    Passing(String, Duration),
}

impl From<kube::Error> for Failure {
    fn from(error: kube::Error) -> Self {
        let wait = match &error {
            kube::Error::Api(status) => status.details.as_ref().map_or(0, |details| details.retry_after_seconds),
            _ => 0,
        };
        Self::Passing(kubernetes::Error::from(&error).to_string(), Duration::from_secs(wait.into()))
    }
}

impl Reconciler {
    /// Looks at an object, and does what is to be done about it.
    pub(super) async fn look(self, work: Work) -> Looked {
        let began = Instant::now();
        let Some(cluster) = self.catalog.cluster().map(|(cluster, ..)| cluster) else {
            return Looked { resource: None, own: None, refusal: work.refusal, next: Next::Failed(Duration::ZERO) };
        };
        let wanted = work.resource.wanted(&cluster.identity, self.any_tenant);
        let own = work.own.as_deref().map_or(Own::NotSeen, Own::There);
        // Most objects are as they should be: nothing is traced then.
        let settled = match decide(&work.resource, &wanted, own) {
            Step::Leave => true,
            Step::Show(acceptance) => {
                let shown = status(&work.resource, &acceptance, work.own.as_deref(), SystemTime::now());
                shown == work.resource.status
            }
            _ => false,
        };
        if settled {
            metrics::reconciled("unchanged", began.elapsed());
            let own = work.own.map(|entry| entry.record.id);
            return Looked { resource: None, own, refusal: None, next: Next::Settled };
        }
        let key = work.resource.key.to_string();
        let span = info_span!(
            parent: None, "reconcile", otel.name = "reconcile custom resource", resource = key,
            generation = work.resource.generation, outcome = field::Empty
        );
        let object = (*work.resource).clone();
        let mut pass = Pass { with: &self, wanted, refusal: work.refusal, object, own: work.own, absent: false };
        let (outcome, next) = pass.run().instrument(span.clone()).await;
        span.record("outcome", outcome);
        metrics::reconciled(outcome, began.elapsed());
        Looked { own: pass.own.map(|entry| entry.record.id), refusal: pass.refusal, resource: Some(pass.object), next }
    }
}

/// One object, while it is looked at.
struct Pass<'a> {
    with: &'a Reconciler,
    wanted: Wanted,
    refusal: Option<Refusal>,
    object: Resource,
    own: Option<Arc<CatalogEntry>>,
    /// The leader says that there is no appliance.
    absent: bool,
}

impl Pass<'_> {
    async fn run(&mut self) -> (&'static str, Next) {
        for _ in 0..STEPS {
            let own = match &self.own {
                Some(entry) => Own::There(entry),
                None if self.absent => Own::None,
                None => Own::NotSeen,
            };
            let done = match decide(&self.object, &self.wanted, own) {
                Step::Leave => return ("unchanged", Next::Settled),
                Step::Hold => self.set_held(true).await,
                Step::LetGo => self.set_held(false).await,
                Step::Show(acceptance) => {
                    self.refusal = None;
                    return self.show(acceptance, Next::Settled).await;
                }
                Step::Change(change) => self.change(change).await,
            };
            match done {
                Ok(true) => {}
                Ok(false) => return ("gone", Next::Settled),
                Err(Failure::Passing(why, wait)) => return self.failed(&why, wait),
                Err(Failure::Refused(acceptance, again)) => return self.show(acceptance, Next::Again(again)).await,
            }
        }
        self.failed("it does not come to rest", Duration::ZERO)
    }

    fn failed(&self, why: &str, wait: Duration) -> (&'static str, Next) {
        log_limited!(warn, resource = %self.object.key, "custom resource: {why}; it is tried again");
        ("failed", Next::Failed(wait))
    }

    /// `false`: the object is gone.
    async fn set_held(&mut self, held: bool) -> Result<bool, Failure> {
        match self.with.api.set_held(&self.object, held).await? {
            // An object without its last finalizer is gone.
            Some(object) if held => {
                self.object = object;
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    async fn show(&mut self, acceptance: Acceptance, next: Next) -> (&'static str, Next) {
        let now = SystemTime::now();
        let shown = status(&self.object, &acceptance, self.own.as_deref(), now);
        let outcome = if matches!(acceptance, Acceptance::Refused(..)) { "refused" } else { "changed" };
        if shown == self.object.status {
            return (outcome, next);
        }
        let told = |status: &super::status::ResourceStatus| {
            status.condition(ACCEPTED).map(|c| (c.reason.clone(), c.message.clone(), c.observed_generation))
        };
        let is_news = told(&shown) != told(&self.object.status);
        match self.with.api.show(&self.object, &shown).await {
            Ok(Some(object)) => self.object = object,
            Ok(None) => return ("gone", Next::Settled),
            Err(error) => {
                let Failure::Passing(why, wait) = Failure::from(error) else { return (outcome, next) };
                return self.failed(&why, wait);
            }
        }
        if let Acceptance::Refused(because, message) = acceptance
            && is_news
        {
            // An event is not worth another try: the condition says the same.
            let sent = self.with.api.warn(&self.object, because.name(), &message, now).await;
            metrics::event_sent(sent.is_ok());
            if let Err(error) = sent {
                log_limited!(warn, resource = %self.object.key, "event: {}", kubernetes::Error::from(&error));
            }
        }
        (outcome, next)
    }

    /// Changes the appliance. The answer says what it is now.
    async fn change(&mut self, change: Change) -> Result<bool, Failure> {
        let manager = self.object.key.manager();
        let manager = manager.map_err(|error| Failure::Passing(error.to_string(), Duration::ZERO))?;
        let base: Base = self.own.as_ref().map(|entry| {
            let record = &entry.record;
            (record.id, record.generation.get(), record.updated)
        });
        let about = (self.object.uid.clone(), self.object.generation, self.object.adopt);
        if let Some(refusal) = &self.refusal
            && refusal.about == about
            && refusal.base == base
            && let Some(again) = refusal.until.checked_duration_since(Instant::now()).filter(|again| !again.is_zero())
        {
            return Err(Failure::Refused(refusal.acceptance.clone(), again));
        }
        // What the object has to do with no more.
        let parts = matches!(change, Change::Delete { .. } | Change::Release { .. });
        let origin = ChangeOrigin::Source { name: manager.clone(), adopt: self.object.adopt && !parts };
        let context = CommandContext { actor: manager.to_string(), deadline: Instant::now() + CHANGE };
        match self.ask(&context, &origin, &change, base).await {
            Ok(Some(entry)) if entry.record.managed_by.as_ref() == Some(&manager) => {
                (self.own, self.absent) = (Some(entry), false);
                Ok(true)
            }
            Ok(_) | Err(CommandError::NotManaged { .. } | CommandError::NotFound(_)) if parts => {
                (self.own, self.absent) = (None, true);
                Ok(true)
            }
            // It was so already, and is not ours.
            Ok(Some(entry)) => Err(self.refused(
                CommandError::NotManaged { appliance: entry.record.id, source_name: manager },
                about,
                base,
            )),
            Ok(None) => Err(Failure::Passing("the leader told of no appliance".to_owned(), Duration::ZERO)),
            Err(error) => Err(self.refused(error, about, base)),
        }
    }

    /// Asks the leader for a change. A change that makes or alters an appliance has an id made of the object, its generation and the
    /// appliance that it was decided by, so that whoever asks again for the same gets the same answer.
    async fn ask(
        &self,
        context: &CommandContext,
        origin: &ChangeOrigin,
        change: &Change,
        base: Base,
    ) -> Result<Option<Arc<CatalogEntry>>, CommandError> {
        let mut decided_by = base.map_or_else(String::new, |(id, generation, updated)| {
            let updated = updated.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_nanos();
            format!("{id} {generation} {updated}")
        });
        for _ in 0..LIVES {
            let request = matches!(change, Change::Update { .. }).then(|| request_key(&self.object, &decided_by));
            match self.with.commands.change(context, origin.clone(), change.clone(), false, request).await {
                // What this made is gone by another's hand: it is to be made again.
                Err(CommandError::RequestedGone(id)) => decided_by = format!("after {id}"),
                answer => return answer.map(|changed| changed.entry),
            }
        }
        self.with
            .commands
            .change(context, origin.clone(), change.clone(), false, None)
            .await
            .map(|changed| changed.entry)
    }

    /// What an error of the leader means for the object. A refusal is remembered.
    fn refused(&mut self, error: CommandError, about: (String, i64, bool), base: Base) -> Failure {
        let (because, message, again) = match error {
            CommandError::Invalid(violations) => {
                let acceptance = Acceptance::invalid(&shown_fields(violations));
                return self.remember(acceptance, REFUSED_AGAIN, about, base);
            }
            CommandError::NotManaged { appliance, .. } => {
                let entry = self.with.catalog.get(&ApplianceTarget::Id(appliance));
                let (because, message) = foreign(appliance, entry.as_deref());
                (because, message, REFUSED_AGAIN)
            }
            error @ (CommandError::NameTaken { .. } | CommandError::IdTaken(_)) => {
                (RefusedBecause::Conflict, error.to_string(), REFUSED_AGAIN)
            }
            error @ CommandError::Deleting(_) => (RefusedBecause::BeingDeleted, error.to_string(), GOING_AGAIN),
            error @ CommandError::Full(_) => (RefusedBecause::LimitReached, error.to_string(), REFUSED_AGAIN),
            error => return Failure::Passing(error.to_string(), Duration::ZERO),
        };
        self.remember(Acceptance::Refused(because, message), again, about, base)
    }

    fn remember(&mut self, acceptance: Acceptance, again: Duration, about: (String, i64, bool), base: Base) -> Failure {
        let until = Instant::now() + again;
        self.refusal = Some(Refusal { about, base, acceptance: acceptance.clone(), until });
        Failure::Refused(acceptance, again)
    }
}

/// Why an object does not get the appliance that has its name.
fn foreign(id: ApplianceId, entry: Option<&CatalogEntry>) -> (RefusedBecause, String) {
    match entry.and_then(|entry| entry.record.managed_by.as_ref()) {
        Some(by) => {
            (RefusedBecause::Conflict, format!("appliance {id} has this name already, and is managed by `{by}`"))
        }
        None => (
            RefusedBecause::NotAdopted,
            format!(
                "appliance {id} has this name already, and nobody manages it; to take it over, set the annotation {ADOPT}: \"true\""
            ),
        ),
    }
}

/// The id of a change, and what a repeat of it has to be about.
fn request_key(object: &Resource, decided_by: &str) -> RequestKey {
    let Resource { uid, generation, adopt, .. } = object;
    let content = format!("{FINALIZER}\n{uid}\n{generation}\n{adopt}\n{decided_by}");
    let id = Uuid::new_v5(&Uuid::NAMESPACE_OID, content.as_bytes());
    RequestKey::new(id, &Scope::All, content.as_bytes())
}
