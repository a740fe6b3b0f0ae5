//! One task that decides which router is looked at when: those that notifications are about, a little later, so that what belongs together
//! is done once; and all of them from a listing.
//!
//! | input | what follows |
//! |---|---|
//! | notification | its routers are queued, within `gather`; it is acknowledged once each of them was looked at with success, or cannot be helped |
//! | subscription stands | a listing: what was sent before may be lost |
//! | `resync_interval` is over | a listing |
//! | listing | every router of it is queued with what was listed, unless a notification about it has come since; so is, to be looked for, every appliance whose router it lacks, unless too many are missing |
//! | look failed | the router is queued again, later and later |

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use ::neutron::index::{Concern, RouterIndex};
use ::neutron::notification::Notification;
use ::neutron::state::Snapshot;
use ::neutron::translate::{Options, Selection};
use common::backoff::Backoff;
use common::driver::DriverName;
use openstack::{Client, Error, ResourceId};
use rand::Rng;
use runtime::retry::Retries;
use tokio::sync::mpsc;
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};
use tracing::{error, info, warn};

use super::config::Config;
use super::feed::{FeedEvent, Receipt, feed};
use super::read::read_all;
use super::reconcile::{Looked, Outcome, Reconciler, Work, managed};
use super::{NeutronRouters, SOURCE};
use crate::catalog::{Catalog, Filter};
use crate::metrics;
use crate::sources::queue::WorkQueue;

/// Routers that are looked at at once: enough to keep Neutron busy, not enough to burden it.
const AT_ONCE: usize = 8;
/// What the feed has told and was not taken in yet. A full queue makes it wait, and with it RabbitMQ.
const TOLD: usize = 256;
/// A router, the receipts of what was told of it, and what came of looking at it.
type LookedAt = (ResourceId, Vec<Receipt>, Looked);

/// Delays after failures in a row.
const RETRY: Backoff = Backoff { base: Duration::from_millis(500), cap: Duration::from_secs(60) };
/// Delays between listings that fail.
const LISTING: Backoff = Backoff { base: Duration::from_secs(1), cap: Duration::from_secs(60) };
/// Smallest part of a delay.
const LEAST: f64 = 0.1;
/// How long what was refused is left alone, unless a notification comes.
const REFUSED_AGAIN: Duration = Duration::from_secs(60);
/// How long the first listing waits for a subscription, so that there are not two of them.
const FIRST_LISTING: Duration = Duration::from_secs(3);
/// So many appliances may be missing from a listing, however large a part of all that is.
const ALWAYS_MISSING: usize = 3;
/// Most routers that a note names.
const NAMED: usize = 3;
/// How often notes are renewed.
const COUNT: Duration = Duration::from_secs(1);
/// Names of ports that belong to appliances begin so.
const OWN_PORTS: &str = "RUG:";

/// See the module.
pub(super) struct Controller {
    config: Config,
    name: String,
    with: Reconciler,
    catalog: Arc<Catalog>,
    index: RouterIndex,
    queue: WorkQueue<ResourceId>,
    /// What is to be known of a router when it is looked at.
    waiting: HashMap<ResourceId, Waiting>,
    looks: JoinSet<LookedAt>,
    /// What a task that has panicked was about.
    tasks: HashMap<tokio::task::Id, ResourceId>,
    acks: JoinSet<()>,
    listing: JoinSet<Result<Snapshot, Error>>,
    /// Routers that notifications were about since the listing under way began.
    touched: HashSet<ResourceId>,
    /// When everything is listed next.
    list_at: Instant,
    listings: Retries,
    notes: Notes,
    shown: Vec<String>,
}

/// What waits with a router.
#[derive(Debug, Default)]
struct Waiting {
    receipts: Vec<Receipt>,
    listed: Option<Arc<Snapshot>>,
    may_go: bool,
}

/// What people are told.
#[derive(Debug, Default)]
struct Notes {
    feed: Option<String>,
    listing: Option<String>,
    missing: Option<String>,
    routers: BTreeMap<ResourceId, String>,
}

impl Controller {
    pub(super) fn new(setup: NeutronRouters, client: Client) -> Self {
        let NeutronRouters { config, commands, catalog, coordinator } = setup;
        let driver = config.driver.parse().unwrap_or_else(|_| DriverName::process());
        let options = Options {
            driver,
            image: (!config.image.is_empty()).then(|| config.image.clone()),
            allocations: config.allocations,
            own_ports: OWN_PORTS.to_owned(),
        };
        let select = config.select.clone();
        let selection =
            Selection { tenants: select.tenants, flavors: select.flavors, tags: select.tags, zones: select.zones };
        let wait = if config.amqp_url.is_empty() { Duration::ZERO } else { FIRST_LISTING };
        let (options, selection) = (Arc::new(options), Arc::new(selection));
        Self {
            with: Reconciler { client, commands, catalog: Arc::clone(&catalog), options, selection },
            name: format!("rug-coordinator {coordinator}"),
            config,
            catalog,
            index: RouterIndex::default(),
            queue: WorkQueue::default(),
            waiting: HashMap::new(),
            looks: JoinSet::new(),
            tasks: HashMap::new(),
            acks: JoinSet::new(),
            listing: JoinSet::new(),
            touched: HashSet::new(),
            list_at: Instant::now() + wait,
            listings: Retries::new(LISTING),
            notes: Notes::default(),
            shown: Vec::new(),
        }
    }

    /// Works for as long as it is polled.
    pub(super) async fn run(mut self) {
        let (tell, mut told) = mpsc::channel(TOLD);
        // It ends with this.
        let mut feeds = JoinSet::new();
        if self.config.amqp_url.is_empty() {
            info!("there is no amqp_url: changes of routers are seen at the next listing");
        } else {
            feeds.spawn(feed(self.config.clone(), self.name.clone(), tell.clone()));
        }
        let mut count = interval(COUNT);
        count.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            self.start_due();
            let due = self.queue.next().filter(|_| self.looks.len() < AT_ONCE);
            let list_at = Some(self.list_at).filter(|_| self.listing.is_empty());
            tokio::select! {
                Some(event) = told.recv() => self.told(event),
                Some(ended) = self.looks.join_next_with_id() => self.looked(ended),
                Some(listed) = self.listing.join_next() => self.listed(listed),
                Some(_) = self.acks.join_next() => {}
                () = wait_until(due) => {}
                () = wait_until(list_at) => self.list(),
                _ = count.tick() => self.count(),
            }
        }
    }

    /// Starts what is due, within bounds.
    fn start_due(&mut self) {
        while self.looks.len() < AT_ONCE {
            let Some(router) = self.queue.take(Instant::now()) else { return };
            let Waiting { receipts, listed, may_go } = self.waiting.remove(&router).unwrap_or_default();
            let work = Work { router: router.clone(), listed, may_go };
            let (with, about) = (self.with.clone(), router.clone());
            let task = self.looks.spawn(async move { (about, receipts, with.look(work).await) });
            self.tasks.insert(task.id(), router);
        }
    }

    fn told(&mut self, event: FeedEvent) {
        match event {
            FeedEvent::Subscribed => {
                self.notes.feed = None;
                self.list_at = Instant::now();
            }
            FeedEvent::Trouble(text) => {
                if self.notes.feed.as_ref() != Some(&text) {
                    warn!("notifications of Neutron are not read: {text}");
                }
                self.notes.feed = Some(text);
            }
            FeedEvent::Told(notification, receipt) => self.take_in(&notification, receipt),
        }
    }

    /// Queues the routers that a notification is about.
    fn take_in(&mut self, notification: &Notification, receipt: Receipt) {
        let at = Instant::now() + self.config.gather;
        let concerned = self.index.concerned(&notification.subjects);
        for (router, concern) in concerned {
            let waiting = self.waiting.entry(router.clone()).or_default();
            waiting.receipts.push(receipt.clone());
            // It has changed since it was listed.
            waiting.listed = None;
            waiting.may_go |= concern == Concern::Gone;
            self.touched.insert(router.clone());
            self.queue.add(&router, at);
        }
        self.acks.spawn(receipt.done());
    }

    fn looked(&mut self, ended: Result<(tokio::task::Id, LookedAt), JoinError>) {
        let now = Instant::now();
        let (router, receipts, looked) = match ended {
            Ok((id, looked)) => {
                self.tasks.remove(&id);
                looked
            }
            Err(failure) => {
                let Some(router) = self.tasks.remove(&failure.id()) else { return };
                error!(router = %router, "looking at a router failed: {failure}");
                // What it was about comes with the next listing; a message that kills whoever takes it is not asked for again.
                let failures = self.queue.failed(&router);
                return self.queue.add(&router, now + retry(failures));
            }
        };
        let Looked { state, outcome } = looked;
        match state.as_ref().and_then(|s| Some((s, s.routers().find(|found| found.id == router)?))) {
            Some((snapshot, found)) => self.index.remember(&snapshot.of(found)),
            None if matches!(outcome, Outcome::Settled(_)) => self.index.forget(&router),
            None => {}
        }
        let note = match outcome {
            Outcome::Settled(note) => {
                self.queue.done(&router);
                note
            }
            Outcome::Absent => {
                // Only a listing says whether it is gone, or these credentials do not see it any more.
                self.queue.done(&router);
                self.list_at = self.list_at.min(now + self.config.gather);
                None
            }
            Outcome::Refused(text) => {
                if self.notes.routers.get(&router) != Some(&text) {
                    warn!(router = %router, "the router has no appliance as it shall be: {text}");
                }
                self.queue.done(&router);
                self.queue.add(&router, now + REFUSED_AGAIN);
                Some(text)
            }
            Outcome::Failed(text) => {
                runtime::log_limited!(warn, router = %router, "looking at a router: {text}; it is tried again");
                let failures = self.queue.failed(&router);
                self.queue.add(&router, now + retry(failures));
                // Not done: they wait with it, and come again if this leader does not get that far.
                self.waiting.entry(router.clone()).or_default().receipts.extend(receipts);
                self.notes.routers.insert(router, text);
                return;
            }
        };
        match note {
            Some(note) => drop(self.notes.routers.insert(router, note)),
            None => drop(self.notes.routers.remove(&router)),
        }
        for receipt in receipts {
            self.acks.spawn(receipt.done());
        }
    }

    /// Begins to list everything.
    fn list(&mut self) {
        self.touched.clear();
        let (client, allocations) = (self.with.client.clone(), self.config.allocations);
        self.listing.spawn(async move { read_all(&client, allocations).await });
    }

    fn listed(&mut self, listed: Result<Result<Snapshot, Error>, JoinError>) {
        let now = Instant::now();
        let problem = match listed {
            Ok(Ok(snapshot)) => {
                self.listings.reset();
                self.list_at = now + self.config.resync_interval;
                self.notes.listing = None;
                metrics::routers_listed("ok");
                return self.compare(Arc::new(snapshot));
            }
            Ok(Err(error)) => error.to_string(),
            Err(failure) => failure.to_string(),
        };
        metrics::routers_listed("failed");
        let delay = self.listings.next_delay();
        self.list_at = now + delay;
        runtime::log_limited!(warn, "listing the routers of Neutron: {problem}; it is tried again");
        self.notes.listing = Some(problem);
    }

    /// Queues everything that was listed, and what is missing from it.
    fn compare(&mut self, snapshot: Arc<Snapshot>) {
        let now = Instant::now();
        let ours: Vec<_> = snapshot.routers().filter(|router| self.with.selection.includes(router)).collect();
        let (entries, _) = self.catalog.watch(&Filter::default());
        let mut managed: HashSet<_> = entries.iter().filter_map(|entry| managed(&entry.record)).collect();
        let known = managed.len();
        for router in &ours {
            managed.remove(&router.id);
            if self.touched.contains(&router.id) {
                continue;
            }
            self.waiting.entry(router.id.clone()).or_default().listed = Some(Arc::clone(&snapshot));
            self.queue.add(&router.id, now);
        }
        let most = (known * usize::from(self.config.max_missing_percent) / 100).max(ALWAYS_MISSING);
        let missing = managed.len();
        info!(routers = ours.len(), appliances = known, missing, "routers of Neutron are listed");
        if missing > most {
            let note = format!(
                "{missing} of {known} appliances of routers are missing from the listing, or not selected any more; none of them is deleted \
                 while more than {most} are (sources.neutron.max_missing_percent). Check the credentials and the selection"
            );
            if self.notes.missing.as_ref() != Some(&note) {
                warn!("{note}");
            }
            self.notes.missing = Some(note);
            return;
        }
        self.notes.missing = None;
        for router in managed {
            let waiting = self.waiting.entry(router.clone()).or_default();
            (waiting.listed, waiting.may_go) = (None, true);
            self.queue.add(&router, now);
        }
    }

    /// Counts what there is, and tells people what they should look at.
    fn count(&mut self) {
        metrics::routers(self.index.len(), self.queue.len() + self.looks.len());
        let Notes { feed, listing, missing, routers } = &self.notes;
        let mut told = Vec::new();
        told.extend(feed.iter().map(|text| format!("notifications of Neutron are not read: {text}")));
        told.extend(listing.iter().map(|text| format!("routers of Neutron are not listed: {text}")));
        told.extend(missing.clone());
        told.extend(routers.iter().take(NAMED).map(|(router, text)| format!("router {router} of Neutron: {text}")));
        if routers.len() > NAMED {
            told.push(format!("{} more routers of Neutron have problems", routers.len() - NAMED));
        }
        if told != self.shown {
            self.catalog.set_source_notes(SOURCE, told.clone());
            self.shown = told;
        }
    }
}

fn retry(failures: u32) -> Duration {
    RETRY.delay(failures, rand::rng().random_range(LEAST..=1.0))
}

async fn wait_until(due: Option<Instant>) {
    match due {
        Some(due) => sleep_until(due).await,
        None => std::future::pending().await,
    }
}
