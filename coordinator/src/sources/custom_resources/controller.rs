//! One task that owns what is known of all objects and of the appliances that they manage, and decides which is looked at when.

use std::cmp::Ordering;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use common::backoff::Backoff;
use common::change::ApplianceTarget;
use kubernetes::kube::Client;
use rand::Rng;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::mpsc;
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};
use tracing::{error, info, warn};

use super::api::Resources;
use super::reconcile::{Looked, Next, Reconciler, Refusal, Work};
use super::resource::{Resource, ResourceKey};
use super::status::{ACCEPTED, READY};
use super::watch::{Told, watch};
use super::{CustomResources, SOURCE};
use crate::catalog::{ApplianceChange, Catalog, Filter};
use crate::metrics::{self, ResourceCounts};
use crate::sources::queue::WorkQueue;
use crate::views::CatalogEntry;

/// Objects that are looked at at once: enough to keep the API server busy, not enough to burden it.
const AT_ONCE: usize = 16;

/// What watches have told and was not taken in yet. A full queue makes them wait, and with them the API server.
const TOLD: usize = 256;

/// How long changes of an appliance are gathered before they are shown: a boot has several within a second.
const GATHER: Duration = Duration::from_millis(250);

/// How often what there is of everything is counted, when something changed.
const COUNT: Duration = Duration::from_secs(1);

/// Delays after failures in a row. The shortest is for conflicts, which the watch resolves.
const RETRY: Backoff = Backoff { base: Duration::from_millis(500), cap: Duration::from_secs(60) };

/// Smallest part of a delay.
const LEAST: f64 = 0.1;

/// For how long a trouble is told after it was last met: longer than from one try to the next. That a watch goes on is only seen when
/// something happens.
const TROUBLED: Duration = Duration::from_secs(90);

/// Most objects that a note names.
const NAMED: usize = 3;

/// See the module.
pub(super) struct Controller {
    with: Reconciler,
    namespaces: Vec<String>,
    catalog: Arc<Catalog>,
    objects: HashMap<ResourceKey, Known>,
    /// Appliances that objects manage, or did.
    own: HashMap<ResourceKey, Arc<CatalogEntry>>,
    queue: WorkQueue<ResourceKey>,
    running: JoinSet<(ResourceKey, Looked)>,
    /// Which object a task that has panicked was about.
    tasks: HashMap<tokio::task::Id, ResourceKey>,
    scopes: Vec<Scope>,
    counted: Option<Notes>,
    changed: bool,
}

/// An object, and what was refused about it.
struct Known {
    object: Arc<Resource>,
    refusal: Option<Refusal>,
}

/// What one watch has told of all.
#[derive(Debug, Default)]
struct Scope {
    namespace: Option<String>,
    /// Objects of the list that is under way.
    listing: Option<BTreeSet<ResourceKey>>,
    /// It was complete once.
    listed: bool,
    /// What kept it from telling more, and when last.
    trouble: Option<(String, Instant)>,
}

/// What people are told.
#[derive(Debug, Default, PartialEq, Eq)]
struct Notes {
    orphans: Vec<ResourceKey>,
    troubles: Vec<String>,
}

impl Controller {
    pub(super) fn new(setup: CustomResources, client: Client) -> Self {
        let CustomResources { config, commands, catalog, coordinator } = setup;
        let scopes = match config.namespaces.as_slice() {
            [] => vec![Scope::default()],
            names => names.iter().map(|name| Scope { namespace: Some(name.clone()), ..Scope::default() }).collect(),
        };
        let api = Resources::new(client, coordinator);
        Self {
            with: Reconciler { commands, catalog: Arc::clone(&catalog), api, any_tenant: config.any_tenant },
            namespaces: config.namespaces,
            catalog,
            objects: HashMap::new(),
            own: HashMap::new(),
            queue: WorkQueue::default(),
            running: JoinSet::new(),
            tasks: HashMap::new(),
            scopes,
            counted: None,
            changed: true,
        }
    }

    /// Works for as long as it is polled.
    pub(super) async fn run(mut self) {
        let (tell, mut told) = mpsc::channel(TOLD);
        // They end with this.
        let mut watches = JoinSet::new();
        for (number, scope) in self.scopes.iter().enumerate() {
            watches.spawn(watch(self.with.api.of(scope.namespace.as_deref()), number, tell.clone()));
        }
        let mut changes = self.see_all();
        let mut count = interval(COUNT);
        count.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            self.start_due();
            let due = self.queue.next().filter(|_| self.running.len() < AT_ONCE);
            tokio::select! {
                Some((scope, told)) = told.recv() => self.told(scope, told),
                change = changes.recv() => match change {
                    Ok(change) => self.appliance_changed(&change),
                    // The list that follows has what was missed.
                    Err(RecvError::Lagged(_)) => changes = self.see_all(),
                    // The term is about to end; were it not, a new list would tell.
                    Err(RecvError::Closed) => {
                        tokio::time::sleep(COUNT).await;
                        changes = self.see_all();
                    }
                },
                Some(ended) = self.running.join_next_with_id() => self.ended(ended),
                () = wait_until(due) => {}
                _ = count.tick() => self.count(),
            }
        }
    }

    /// Starts what is due, within bounds.
    fn start_due(&mut self) {
        while self.running.len() < AT_ONCE {
            let Some(key) = self.queue.take(Instant::now()) else { return };
            let Some(known) = self.objects.get(&key) else {
                self.queue.done(&key);
                continue;
            };
            let work = Work {
                resource: Arc::clone(&known.object),
                own: self.own.get(&key).cloned(),
                refusal: known.refusal.clone(),
            };
            let (with, about) = (self.with.clone(), key.clone());
            let task = self.running.spawn(async move { (about, with.look(work).await) });
            self.tasks.insert(task.id(), key);
        }
    }

    fn ended(&mut self, ended: Result<(tokio::task::Id, (ResourceKey, Looked)), JoinError>) {
        self.changed = true;
        let now = Instant::now();
        let retry = |failures: u32| RETRY.delay(failures, rand::rng().random_range(LEAST..=1.0));
        let (key, looked) = match ended {
            Ok((id, (key, looked))) => {
                self.tasks.remove(&id);
                (key, looked)
            }
            Err(failure) => {
                let Some(key) = self.tasks.remove(&failure.id()) else { return };
                error!(resource = %key, "looking at a custom resource failed: {failure}");
                let failures = self.queue.failed(&key);
                return self.queue.add(&key, now + retry(failures));
            }
        };
        let Looked { resource, own, refusal, next } = looked;
        if let Some(known) = self.objects.get_mut(&key) {
            // A watch may have told of a later one meanwhile.
            if let Some(object) = resource.filter(|object| object.order(&known.object) == Some(Ordering::Greater)) {
                known.object = Arc::new(object);
            }
            known.refusal = refusal;
        }
        // Not what the task saw: it may have changed since.
        let entry = own.and_then(|id| self.catalog.get(&ApplianceTarget::Id(id)));
        if let Some(entry) = entry {
            self.see(&entry);
        }
        match next {
            Next::Settled => self.queue.done(&key),
            Next::Again(after) => {
                self.queue.done(&key);
                self.queue.add(&key, now + after);
            }
            Next::Failed(least) => {
                let failures = self.queue.failed(&key);
                self.queue.add(&key, now + retry(failures).max(least));
            }
        }
    }

    /// Takes in what a watch tells.
    fn told(&mut self, number: usize, told: Told) {
        self.changed = true;
        let Some(scope) = self.scopes.get_mut(number) else { return };
        match told {
            Told::Listing => scope.listing = Some(BTreeSet::new()),
            Told::There(object) => {
                scope.trouble = None;
                let key = object.key.clone();
                match &mut scope.listing {
                    // Whatever its version: the API server may have been restored from a copy.
                    Some(listing) => drop(listing.insert(key.clone())),
                    // What was written here is known already.
                    None if self
                        .objects
                        .get(&key)
                        .is_some_and(|known| object.order(&known.object) == Some(Ordering::Less)) =>
                    {
                        return;
                    }
                    None => {}
                }
                let refusal = self.objects.remove(&key).and_then(|known| known.refusal);
                self.objects.insert(key.clone(), Known { object: Arc::new(*object), refusal });
                self.queue.add(&key, Instant::now());
            }
            Told::Gone(key) => {
                scope.trouble = None;
                self.objects.remove(&key);
            }
            Told::Listed => {
                scope.trouble = None;
                let listed = scope.listing.take().unwrap_or_default();
                let first = !std::mem::replace(&mut scope.listed, true);
                let namespace = scope.namespace.clone();
                let is_of = |key: &ResourceKey| namespace.as_ref().is_none_or(|namespace| *namespace == key.namespace);
                self.objects.retain(|key, _| !is_of(key) || listed.contains(key));
                if first {
                    info!(namespace, resources = listed.len(), "custom resources are listed");
                }
            }
            Told::Trouble(trouble) => scope.trouble = Some((trouble, Instant::now())),
        }
    }

    /// Looks at all appliances, and answers what changes from then on.
    fn see_all(&mut self) -> Receiver<ApplianceChange> {
        let (entries, changes) = self.catalog.watch(&Filter::default());
        let managed = entries
            .into_iter()
            .filter_map(|entry| Some((ResourceKey::managing(entry.record.managed_by.as_ref())?, entry)));
        let former = std::mem::replace(&mut self.own, managed.collect());
        let now = Instant::now();
        for key in former.keys().chain(self.own.keys()) {
            self.queue.add(key, now);
        }
        self.changed = true;
        changes
    }

    fn appliance_changed(&mut self, change: &ApplianceChange) {
        let before = change.before.as_ref().and_then(|b| ResourceKey::managing(b.record.managed_by.as_ref()));
        if let Some(entry) = &change.after {
            self.see(entry);
        }
        let after = change.after.as_ref().and_then(|a| ResourceKey::managing(a.record.managed_by.as_ref()));
        if let Some(former) = before.filter(|before| after.as_ref() != Some(before)) {
            // Gone, or released.
            let id = change.before.as_ref().map(|before| before.record.id);
            if self.own.get(&former).map(|entry| entry.record.id) == id {
                self.own.remove(&former);
            }
            self.look_at(&former);
        }
    }

    /// Takes in how an appliance is.
    fn see(&mut self, entry: &Arc<CatalogEntry>) {
        let Some(key) = ResourceKey::managing(entry.record.managed_by.as_ref()) else { return };
        if self.own.get(&key).is_some_and(|known| Arc::ptr_eq(known, entry)) {
            return;
        }
        self.look_at(&key);
        self.own.insert(key, Arc::clone(entry));
    }

    fn look_at(&mut self, key: &ResourceKey) {
        self.changed = true;
        if self.objects.contains_key(key) {
            self.queue.add(key, Instant::now() + GATHER);
        }
    }

    /// Counts what there is, and tells people what they should look at.
    fn count(&mut self) {
        metrics::resources_waiting(self.queue.len() + self.running.len());
        let is_over = |scope: &Scope| scope.trouble.as_ref().is_some_and(|(_, at)| at.elapsed() > TROUBLED);
        for scope in self.scopes.iter_mut().filter(|scope| is_over(scope)) {
            (scope.trouble, self.changed) = (None, true);
        }
        if !std::mem::take(&mut self.changed) {
            return;
        }
        let mut counts = ResourceCounts::default();
        for known in self.objects.values() {
            let status = &known.object.status;
            let state = if known.object.deleting {
                &mut counts.deleting
            } else if status.condition(ACCEPTED).is_none() {
                &mut counts.pending
            } else if !status.holds(ACCEPTED) {
                &mut counts.refused
            } else if status.holds(READY) {
                &mut counts.ready
            } else {
                &mut counts.not_ready
            };
            *state += 1;
        }
        let listed = self.scopes.iter().all(|scope| scope.listed);
        // Before everything is listed nobody knows.
        let mut orphans: Vec<_> =
            self.own.keys().filter(|key| listed && !self.objects.contains_key(*key)).cloned().collect();
        orphans.sort_unstable();
        counts.orphans = orphans.len() as u64;
        metrics::resources(&counts);
        let troubles =
            self.scopes.iter().filter_map(|scope| Some(scope.trouble.as_ref()?.0.clone())).collect::<BTreeSet<_>>();
        let notes = Notes { orphans, troubles: troubles.into_iter().collect() };
        if self.counted.as_ref() != Some(&notes) {
            self.tell(&notes);
            self.counted = Some(notes);
        }
    }

    fn tell(&self, notes: &Notes) {
        let mut told: Vec<_> =
            notes.troubles.iter().map(|trouble| format!("custom resources are not read: {trouble}")).collect();
        let orphans = &notes.orphans;
        let grew = self.counted.as_ref().map_or(0, |former| former.orphans.len()) < orphans.len();
        if !orphans.is_empty() {
            let named = orphans.iter().take(NAMED).map(ToString::to_string).collect::<Vec<_>>().join(", ");
            let more = if orphans.len() > NAMED { " and others" } else { "" };
            let watched = if self.namespaces.is_empty() { "" } else { " in the namespaces that are read" };
            let note = format!(
                "{} managed by custom resources that do not exist{watched}: {named}{more}; they go on as they are until \
                 the resource is there again, or until they are deleted with --force",
                if orphans.len() == 1 {
                    "1 appliance is".to_owned()
                } else {
                    format!("{} appliances are", orphans.len())
                }
            );
            if grew {
                warn!("{note}");
            }
            told.push(note);
        }
        self.catalog.set_source_notes(SOURCE, told);
    }
}

impl Drop for Controller {
    /// What another leader shows now is not shown here.
    fn drop(&mut self) {
        metrics::resources(&ResourceCounts::default());
        metrics::resources_waiting(0);
    }
}

async fn wait_until(due: Option<Instant>) {
    match due {
        Some(due) => sleep_until(due).await,
        None => std::future::pending().await,
    }
}
