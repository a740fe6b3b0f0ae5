//! What servers and ports there are: listed as a whole where many ask, one by one where few do, and polled while there are instances.
//!
//! Nova and Neutron have no watch. Whether an instance is alive is asked before every probe, and answered here from the last listing; a
//! server that is being made is looked at every [`LOOK`] by itself. No probe waits for Nova.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use common::ApplianceId;
use openstack::{Client, ResourceId};
use tokio::sync::{Mutex as TurnMutex, Notify};
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use super::names::{self, OwnPort};
use super::view::ServerView;
use crate::drivers::{EndSender, EndedInstance};

/// Between two looks at a server that is being made.
const LOOK: Duration = Duration::from_secs(2);
/// How long after a server is seen to be broken it is looked at again for the reason.
const FAULT: Duration = Duration::from_secs(1);
/// Looks at a time.
const LOOKS: usize = 8;
/// For how long after the last question servers are listed.
const INTEREST: Duration = Duration::from_secs(600);
/// Most servers and ports of which is kept what a look found.
const MAX_KNOWN: usize = 200_000;

/// Servers and ports, as of one moment.
#[derive(Debug)]
pub(super) struct Snapshot {
    /// When it was begun: everything that was answered before is in it.
    began: Instant,
    servers: HashMap<ApplianceId, Vec<ServerView>>,
    ports: HashMap<ApplianceId, Vec<OwnPort>>,
}

impl Snapshot {
    pub(super) fn servers(&self, appliance: ApplianceId) -> &[ServerView] {
        self.servers.get(&appliance).map(Vec::as_slice).unwrap_or_default()
    }

    pub(super) fn ports(&self, appliance: ApplianceId) -> &[OwnPort] {
        self.ports.get(&appliance).map(Vec::as_slice).unwrap_or_default()
    }

    pub(super) fn all_servers(&self) -> impl Iterator<Item = &ServerView> {
        self.servers.values().flatten()
    }

    pub(super) fn all_ports(&self) -> impl Iterator<Item = &OwnPort> {
        self.ports.values().flatten()
    }
}

/// What is known of a server.
#[derive(Clone, Debug)]
pub(super) enum Known {
    /// It is there.
    There(Box<ServerView>),
    /// It is not there any more.
    Gone,
    /// That cannot be said.
    Unknown,
}

#[derive(Debug)]
struct Seen {
    /// `None` once it was gone.
    view: Option<ServerView>,
    /// When the look began that found it so.
    at: Instant,
}

#[derive(Default)]
struct State {
    servers: HashMap<ResourceId, Seen>,
    /// When the newest listing of servers began.
    listed: Option<Instant>,
    /// Why the last one failed.
    problem: Option<String>,
    /// When somebody last asked about a server.
    asked: Option<Instant>,
    /// Servers to be looked at by themselves.
    due: HashSet<ResourceId>,
    ends: HashMap<ResourceId, Watcher>,
}

/// Who is to be told of the end of a server.
struct Watcher {
    ended: EndedInstance,
    to: EndSender,
    since: Instant,
}

/// What is known of servers and ports. One for each driver.
pub(super) struct Inventory {
    client: Client,
    cluster: String,
    poll_interval: Duration,
    state: Mutex<State>,
    wake: Notify,
    /// The newest whole listing, for those who look for what an appliance has.
    whole: RwLock<Option<Arc<Snapshot>>>,
    /// Whoever lists everything; the others wait for that.
    listing: TurnMutex<()>,
}

impl Inventory {
    pub(super) fn new(client: Client, cluster: String, poll_interval: Duration) -> Self {
        let (state, wake) = (Mutex::default(), Notify::new());
        Self { client, cluster, poll_interval, state, wake, whole: RwLock::default(), listing: TurnMutex::default() }
    }

    /// Lists servers now and then, and looks at those that are being made, until `stop`.
    pub(super) async fn run(self: Arc<Self>, stop: CancellationToken) {
        let mut next = Instant::now();
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.wake.notified() => {}
                () = sleep_until(next) => {}
            }
            if Instant::now() >= next {
                // Spread, so that the workers of a cluster do not list together.
                next = Instant::now() + self.poll_interval.mul_f64(0.8 + 0.4 * rand::random::<f64>());
                if self.is_of_interest() {
                    self.poll().await;
                }
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.look_at_due() => {}
            }
        }
    }

    fn is_of_interest(&self) -> bool {
        let state = self.lock();
        !state.ends.is_empty() || state.asked.is_some_and(|asked| asked.elapsed() < INTEREST)
    }

    async fn poll(&self) {
        let began = Instant::now();
        match self.list_servers().await {
            Ok(servers) => self.take_in(began, &servers),
            Err(error) => {
                let mut state = self.lock();
                if state.problem.is_none() {
                    tracing::info!(%error, "servers cannot be listed");
                }
                state.problem = Some(error.to_string());
            }
        }
    }

    /// Looks at the servers that somebody waits for, each by itself.
    async fn look_at_due(&self) {
        let many = {
            let mut state = self.lock();
            let many = state.due.len() > 2 * LOOKS;
            if many {
                state.due.clear();
            }
            many
        };
        if many {
            return self.poll().await;
        }
        let due: Vec<ResourceId> = {
            let mut state = self.lock();
            let due: Vec<_> = state.due.iter().take(LOOKS).cloned().collect();
            state.due.retain(|id| !due.contains(id));
            due
        };
        if due.is_empty() {
            return;
        }
        let looks = due.iter().map(async |id| {
            // Nova says that a server is broken before it says why.
            for wait in [Some(FAULT), None] {
                let at = Instant::now();
                let view = match self.client.compute().server(id).await {
                    Ok(server) => server.and_then(|server| ServerView::of(&self.cluster, server)),
                    Err(error) => return tracing::debug!(server = %id, %error, "a server could not be looked at"),
                };
                match wait {
                    Some(wait) if view.as_ref().is_some_and(ServerView::awaits_fault) => sleep(wait).await,
                    _ => return self.note(id, view, at),
                }
            }
        });
        futures::future::join_all(looks).await;
        if !self.lock().due.is_empty() {
            self.wake.notify_one();
        }
    }

    async fn list_servers(&self) -> Result<Vec<ServerView>, openstack::Error> {
        let found = self.client.compute().servers(&[("name", &names::all_servers())]).await?;
        Ok(found.into_iter().filter_map(|server| ServerView::of(&self.cluster, server)).collect())
    }

    /// Takes in a listing of all servers.
    fn take_in(&self, began: Instant, servers: &[ServerView]) {
        let mut state = self.lock();
        if state.listed.is_some_and(|listed| listed > began) {
            return;
        }
        state.listed = Some(began);
        state.problem = None;
        // What was looked at later than the listing began is newer than it.
        let mut known = HashMap::with_capacity(servers.len());
        for view in servers.iter().take(MAX_KNOWN) {
            known.insert(view.id.clone(), Seen { view: Some(view.clone()), at: began });
        }
        for (id, seen) in std::mem::take(&mut state.servers) {
            if seen.at >= began {
                known.insert(id, seen);
            } else if seen.view.is_some() {
                // It was there, and is not any more. That is remembered until the next listing.
                known.entry(id).or_insert(Seen { view: None, at: began });
            }
        }
        state.servers = known;
        report_ends(&mut state, began);
    }

    /// Notes what a look at one server found that began at `at`.
    pub(super) fn note(&self, id: &ResourceId, view: Option<ServerView>, at: Instant) {
        let mut state = self.lock();
        if state.servers.get(id).is_some_and(|seen| seen.at > at) {
            return;
        }
        let runs = |ended: &EndedInstance| view.as_ref().is_some_and(|view| view.runs() && is_of(view, ended));
        let is_over = state.ends.get(id).is_some_and(|watcher| !runs(&watcher.ended));
        if state.servers.len() < MAX_KNOWN || state.servers.contains_key(id) {
            state.servers.insert(id.clone(), Seen { view, at });
        }
        if is_over && let Some(watcher) = state.ends.remove(id) {
            watcher.tell();
        }
    }

    /// What is known of a server, without a call.
    pub(super) fn known(&self, id: &ResourceId) -> Known {
        let now = Instant::now();
        let mut state = self.lock();
        state.asked = Some(now);
        let stale = now.checked_sub(self.poll_interval * 4);
        let (known, is_due) = match state.servers.get(id) {
            Some(Seen { view: None, .. }) => (Known::Gone, false),
            Some(Seen { view: Some(view), at }) => {
                let is_unsettled = view.is_rising() || view.awaits_fault();
                let is_old = now.duration_since(*at) > if is_unsettled { LOOK } else { self.poll_interval * 2 };
                let fresh = stale.is_none_or(|stale| *at > stale);
                (if fresh { Known::There(Box::new(view.clone())) } else { Known::Unknown }, is_old)
            }
            // It was not in the last listing: it may be newer, or gone.
            None => (Known::Unknown, true),
        };
        if is_due && state.due.insert(id.clone()) {
            self.wake.notify_one();
        }
        known
    }

    /// Why what is known is out of date.
    pub(super) fn doubt(&self) -> Option<String> {
        let state = self.lock();
        let problem = state.problem.as_ref()?;
        Some(format!("Nova does not list servers: {problem}"))
    }

    /// Reports the end of a server.
    pub(super) fn watch(&self, id: &ResourceId, ended: EndedInstance, ends: &EndSender) {
        let is_over = {
            let mut state = self.lock();
            let runs = |view: &ServerView| view.runs() && is_of(view, &ended);
            let is_over = state.servers.get(id).is_some_and(|seen| !seen.view.as_ref().is_some_and(runs));
            if !is_over {
                let since = Instant::now();
                state.ends.insert(id.clone(), Watcher { ended, to: ends.clone(), since });
            }
            is_over
        };
        if is_over {
            _ = ends.try_send(ended);
        }
    }

    /// Everything there is, listed no earlier than now. Those who ask while a listing is under way share the next one.
    pub(super) async fn whole(&self) -> Result<Arc<Snapshot>, openstack::Error> {
        let asked = Instant::now();
        let _turn = self.listing.lock().await;
        let newest = self.whole.read().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(newest) = newest.filter(|newest| newest.began >= asked) {
            return Ok(newest);
        }
        let began = Instant::now();
        let project = self.client.identity().await?.project_id;
        let filters = [("project_id", project.as_str())];
        let network = self.client.network();
        let (servers, ports) = tokio::join!(self.list_servers(), network.ports(&filters));
        let servers = servers?;
        self.take_in(began, &servers);
        let mut snapshot = Snapshot { began, servers: HashMap::new(), ports: HashMap::new() };
        for view in servers {
            snapshot.servers.entry(view.key.appliance).or_default().push(view);
        }
        for port in ports?.into_iter().filter_map(|port| OwnPort::of(&self.cluster, port)) {
            snapshot.ports.entry(port.appliance).or_default().push(port);
        }
        for servers in snapshot.servers.values_mut() {
            sort(servers);
        }
        let snapshot = Arc::new(snapshot);
        *self.whole.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&snapshot));
        Ok(snapshot)
    }

    /// The servers of one appliance, of each instance the oldest first.
    pub(super) async fn servers_of(&self, appliance: ApplianceId) -> Result<Vec<ServerView>, openstack::Error> {
        let at = Instant::now();
        let found = self.client.compute().servers(&[("name", &names::servers_of(appliance))]).await?;
        let views = found.into_iter().filter_map(|server| ServerView::of(&self.cluster, server));
        let mut views: Vec<_> = views.filter(|view| view.key.appliance == appliance).collect();
        sort(&mut views);
        for view in &views {
            self.note(&view.id, Some(view.clone()), at);
        }
        Ok(views)
    }

    /// The servers that wait to be taken.
    pub(super) async fn spares(&self) -> Result<Vec<ServerView>, openstack::Error> {
        let found = self.client.compute().servers(&[("name", &names::all_spares())]).await?;
        Ok(found.into_iter().filter_map(|server| ServerView::of(&self.cluster, server)).collect())
    }

    /// The ports of one appliance.
    pub(super) async fn ports_of(&self, appliance: ApplianceId) -> Result<Vec<OwnPort>, openstack::Error> {
        let description = names::description(&self.cluster, appliance);
        let found = self.client.network().ports(&[("description", &description)]).await?;
        let mut ports: Vec<_> = found.into_iter().filter_map(|port| OwnPort::of(&self.cluster, port)).collect();
        // Plugged ones first, then the oldest: of two for the same, that one is kept.
        ports.sort_by(|one, other| {
            (one.is_free(), &one.port.created_at, &one.port.id).cmp(&(
                other.is_free(),
                &other.port.created_at,
                &other.port.id,
            ))
        });
        Ok(ports)
    }

    /// Waits until a server is gone. Answers what it is like when it is not, in time.
    pub(super) async fn until_gone(
        &self,
        id: &ResourceId,
        limit: Duration,
    ) -> Result<Option<ServerView>, openstack::Error> {
        let deadline = Instant::now() + limit;
        let mut wait = Duration::from_millis(300);
        loop {
            let at = Instant::now();
            let found = self.client.compute().server(id).await?;
            let view = found.and_then(|server| ServerView::of(&self.cluster, server));
            self.note(id, view.clone(), at);
            let Some(view) = view else { return Ok(None) };
            if Instant::now() + wait > deadline {
                return Ok(Some(view));
            }
            sleep(wait).await;
            wait = (wait * 2).min(LOOK);
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        // Each change is an insertion or a removal, so a panic elsewhere leaves the state whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a server is that instance: a spare that was taken is another one from then on.
fn is_of(view: &ServerView, instance: &EndedInstance) -> bool {
    let key = view.key;
    (key.appliance, key.ordinal, key.attempt) == (instance.appliance, instance.ordinal, instance.attempt)
}

impl Watcher {
    fn tell(&self) {
        if self.to.try_send(self.ended).is_err() {
            tracing::debug!("an end was not reported: the next probe finds it");
        }
    }
}

/// Tells those who watch of servers that do not run any more, by a listing that began at `listed`.
fn report_ends(state: &mut State, listed: Instant) {
    let State { servers, ends, .. } = state;
    ends.retain(|id, watcher| {
        let runs = match servers.get(id) {
            Some(Seen { view, .. }) => view.as_ref().is_some_and(|view| view.runs() && is_of(view, &watcher.ended)),
            // One that has been watched since before the listing would be in it.
            None => watcher.since >= listed,
        };
        if !runs {
            watcher.tell();
        }
        runs
    });
}

/// Of each instance the oldest first: of two of one name that one is kept.
fn sort(views: &mut [ServerView]) {
    views.sort_by(|one, other| (one.key, one.created, &one.id).cmp(&(other.key, other.created, &other.id)));
}
