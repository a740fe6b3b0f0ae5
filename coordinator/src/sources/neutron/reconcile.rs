//! Looks at one router: reads it, compares it with its appliance, and changes what differs.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ::neutron::state::Snapshot;
use ::neutron::translate::{Options, Selection, TranslateError, Translated, appliance_id, translate};
use common::ApplianceId;
use common::change::{ApplianceDraft, AppliancePatch, ApplianceTarget, ApplianceUpdate, FixedFields};
use common::manager::Manager;
use openstack::{Client, ResourceId};
use tokio::time::Instant;
use tracing::{Instrument as _, info, info_span};
use uuid::Uuid;

use super::SOURCE;
use super::read::read_router;
use crate::catalog::Catalog;
use crate::commands::{Change, ChangeOrigin, CommandContext, CommandError, Commands, RequestKey, Scope};
use crate::metrics;
use crate::record::Record;
use crate::views::CatalogEntry;

/// What objects of this source are called in `managed_by`.
const ROUTER: &str = "router";
/// How long one change may take.
const CHANGE: Duration = Duration::from_secs(30);
/// How often a change is made anew that was made before, and whose appliance is gone since.
const LIVES: usize = 3;

/// What a look works with.
#[derive(Clone, Debug)]
pub(super) struct Reconciler {
    pub(super) client: Client,
    pub(super) commands: Commands,
    pub(super) catalog: Arc<Catalog>,
    pub(super) options: Arc<Options>,
    pub(super) selection: Arc<Selection>,
}

/// A router to be looked at.
#[derive(Clone, Debug)]
pub(super) struct Work {
    pub(super) router: ResourceId,
    /// What a listing has of it; it is read otherwise.
    pub(super) listed: Option<Arc<Snapshot>>,
    /// Neutron told that it is gone, or a listing lacked it: then its appliance goes when it is not found.
    pub(super) may_go: bool,
}

/// What a look came to.
#[derive(Debug)]
pub(super) struct Looked {
    /// What was read, if it is there and ours; to be remembered.
    pub(super) state: Option<Arc<Snapshot>>,
    pub(super) outcome: Outcome,
}

/// How it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The appliance is as it shall be, or there is none and shall be none. What people should know besides, if anything.
    Settled(Option<String>),
    /// It is not found, and nobody said that it is gone.
    Absent,
    /// It cannot be done, and trying again at once would come to the same.
    Refused(String),
    /// It may be done later.
    Failed(String),
}

/// Who manages the appliance of a router.
pub(super) fn manager(router: &ResourceId) -> Option<Manager> {
    Manager::object(SOURCE, ROUTER, &router.as_str().to_ascii_lowercase()).ok()
}

/// The router whose appliance this is, if it is one.
pub(super) fn managed(record: &Record) -> Option<ResourceId> {
    let (object, id) = record.managed_by.as_ref()?.object_of(SOURCE)?;
    (object == ROUTER).then(|| id.parse().ok()).flatten()
}

impl Reconciler {
    /// Looks at a router.
    pub(super) async fn look(self, work: Work) -> Looked {
        let began = Instant::now();
        let span = info_span!("router", otel.name = "neutron router", neutron.router = %work.router);
        let looked = self.look_at(&work).instrument(span).await;
        let outcome = match &looked.outcome {
            Outcome::Settled(_) => "settled",
            Outcome::Absent => "absent",
            Outcome::Refused(_) => "refused",
            Outcome::Failed(_) => "failed",
        };
        metrics::router_looked(outcome, began.elapsed());
        looked
    }

    async fn look_at(&self, work: &Work) -> Looked {
        let read = match &work.listed {
            Some(listed) => Ok(Some(Arc::clone(listed))),
            None => {
                let read = read_router(&self.client, &work.router, self.options.allocations).await;
                read.map(|read| read.map(Arc::new))
            }
        };
        let snapshot = match read {
            Ok(snapshot) => snapshot,
            Err(error) => return Looked { state: None, outcome: Outcome::Failed(format!("reading it: {error}")) },
        };
        let found = snapshot.as_ref().and_then(|s| s.routers().find(|router| router.id == work.router));
        let wanted = match found {
            Some(router) if self.selection.includes(router) => {
                let state = snapshot.as_ref().map(|snapshot| snapshot.of(router));
                state.map(|state| translate(&state, &self.options))
            }
            Some(_) => None,
            None if work.may_go => None,
            None => {
                let outcome = if self.own(&work.router).is_some() { Outcome::Absent } else { Outcome::Settled(None) };
                return Looked { state: None, outcome };
            }
        };
        match wanted {
            Some(Ok(translated)) => Looked { outcome: self.keep(&work.router, translated).await, state: snapshot },
            Some(Err(error @ TranslateError::Incomplete(_))) => {
                Looked { outcome: Outcome::Failed(error.to_string()), state: snapshot }
            }
            Some(Err(error)) => Looked { outcome: Outcome::Refused(error.to_string()), state: snapshot },
            None => Looked { state: None, outcome: self.remove(&work.router).await },
        }
    }

    /// The appliance of a router, if this source manages one.
    fn own(&self, router: &ResourceId) -> Option<Arc<CatalogEntry>> {
        let entry = self.catalog.get(&ApplianceTarget::Id(appliance_id(router)))?;
        (entry.record.managed_by == manager(router)).then_some(entry)
    }

    async fn keep(&self, router: &ResourceId, translated: Translated) -> Outcome {
        let Translated { draft, left_out } = translated;
        let note = (left_out > 0)
            .then(|| format!("{left_out} hosts of its networks are not told to it: it has too many of them"));
        let own = self.own(router);
        if let Some(entry) = &own {
            if entry.record.deleting {
                return Outcome::Failed(
                    "its former appliance is being deleted; the new one is made after that".to_owned(),
                );
            }
            if is_same(&draft, &entry.record) {
                return Outcome::Settled(note);
            }
            if entry.record.driver != draft.driver || entry.record.tenant != draft.tenant {
                return Outcome::Refused(format!(
                    "its appliance has driver `{}` and tenant `{}`, which cannot change to `{}` and `{}`; delete the appliance with \
                     --force, and it is made anew",
                    entry.record.driver, entry.record.tenant, draft.driver, draft.tenant
                ));
            }
        }
        let decided_by = own.as_ref().map_or_else(String::new, |entry| base(&entry.record));
        let content = format!("{router}\n{draft:?}");
        let change = Change::update(updated(draft));
        match self.change(router, change, &content, decided_by).await {
            Ok(()) => Outcome::Settled(note),
            Err(error) => refused(&error),
        }
    }

    async fn remove(&self, router: &ResourceId) -> Outcome {
        let Some(entry) = self.own(router).filter(|entry| !entry.record.deleting) else {
            return Outcome::Settled(None);
        };
        let target = ApplianceTarget::Id(entry.record.id);
        let change = Change::Delete { target, expected: None, allow_missing: true, at_once: false };
        info!(appliance = %entry.record.id, "the router is gone, or is not ours any more: deleting its appliance");
        match self.change(router, change, "", String::new()).await {
            Ok(()) | Err(CommandError::NotFound(_) | CommandError::NotManaged { .. }) => Outcome::Settled(None),
            Err(error) => refused(&error),
        }
    }

    /// Asks the leader for a change. An update has an id made of what is asked for and of what it was decided by, so that whoever asks for
    /// the same again, this leader or the next one, gets the same answer.
    async fn change(
        &self,
        router: &ResourceId,
        change: Change,
        content: &str,
        mut decided_by: String,
    ) -> Result<(), CommandError> {
        let Some(name) = manager(router) else { return Err(CommandError::Unanswered) };
        let context = CommandContext { actor: name.to_string(), deadline: Instant::now() + CHANGE };
        let origin = ChangeOrigin::Source { name, adopt: false };
        for _ in 0..LIVES {
            let request = matches!(change, Change::Update { .. }).then(|| request_key(content, &decided_by));
            match self.commands.change(&context, origin.clone(), change.clone(), false, request).await {
                // What this made is gone by another's hand: it is to be made again.
                Err(CommandError::RequestedGone(id)) => decided_by = format!("after {id}"),
                answer => return answer.map(|_| ()),
            }
        }
        self.commands.change(&context, origin, change, false, None).await.map(|_| ())
    }
}

/// What a change was decided by: an appliance as it was.
fn base(record: &Record) -> String {
    let updated = record.updated.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_nanos();
    format!("{} {} {updated}", record.id, record.generation)
}

fn request_key(content: &str, decided_by: &str) -> RequestKey {
    let content = format!("{content}\n{decided_by}");
    RequestKey::new(Uuid::new_v5(&Uuid::NAMESPACE_OID, content.as_bytes()), &Scope::All, content.as_bytes())
}

/// Whether an appliance is what is wanted.
fn is_same(draft: &ApplianceDraft, record: &Record) -> bool {
    draft.name == record.name
        && draft.tenant == record.tenant
        && draft.driver == record.driver
        && draft.labels == record.labels
        && draft.spec == record.spec
}

/// The change that makes the appliance if there is none, and has it be like this otherwise.
fn updated(draft: ApplianceDraft) -> ApplianceUpdate {
    let id = draft.id.unwrap_or_else(|| ApplianceId::from_u128(0));
    ApplianceUpdate {
        target: ApplianceTarget::Id(id),
        patch: AppliancePatch {
            name: Some(draft.name.clone()),
            labels: Some(draft.labels.clone()),
            spec: Some(draft.spec.clone()),
            fixed: FixedFields::default(),
            ..AppliancePatch::default()
        },
        expected: None,
        create: Some(draft),
    }
}

/// What an error of the leader means.
fn refused(error: &CommandError) -> Outcome {
    match error {
        CommandError::Invalid(violations) => {
            Outcome::Refused(violations.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))
        }
        CommandError::NotManaged { appliance, .. } => Outcome::Refused(format!(
            "appliance {appliance} has its id or name, and is not managed by it; delete that, or leave the router out of the selection"
        )),
        CommandError::NameTaken { .. } | CommandError::IdTaken(_) | CommandError::Full(_) => {
            Outcome::Refused(error.to_string())
        }
        error => Outcome::Failed(error.to_string()),
    }
}
