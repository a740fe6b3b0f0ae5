//! The `openstack` driver: an instance is a server of Nova, with ports of Neutron.
//!
//! A server is known by its name (appliance, ordinal, attempt) and by metadata that name this installation; ports by name and description. So a
//! new owner finds what a former one made without a journal, and what was not answered is looked for instead of being made again.
//!
//! Nobody there checks tokens. Each call that changes something asks the gate when its connection is there, and a new owner waits until calls of
//! the former one have taken effect: the longest request, and what the backend may go on with one whose caller is gone
//! ([`Config::fence_delay`]). A delete or a plug that comes late names ids, of a server or port that the new owner then sees gone; a
//! create that comes late makes a server whose name is taken, of which the older one is kept.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use common::ApplianceId;
use common::appliance::Name;
use common::kind::StopRecipe;
use common::network_port::NetworkPort;
use openstack::{Client, ErrorKind};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use worker_core::desired::Desired;
use worker_core::instance::{Instance, Observation};

pub use self::config::{AntiAffinity, Config, TenantConfig};
use self::inventory::{Inventory, Known};
use self::names::{InstanceKey, OwnPort, metadata};
use self::places::Places;
use self::view::{ServerView, server_of};
use crate::drivers::{Driver, DriverFencing, EndSender, EndedInstance, Error, Standing, Wanted};
use crate::gate::Permit;

mod boot;
mod config;
mod inventory;
mod names;
pub mod orphans;
mod places;
mod plan;
mod plugging;
mod removal;
mod spares;
mod view;
mod virtual_address;

/// Name of the driver.
pub const NAME: &str = "openstack";

/// Looks for the instances of appliances that may be under way before everything is listed at once for all that follow.
const SINGLE_LOOKS: usize = 4;

/// The driver. Clones share everything.
#[derive(Clone, Debug)]
pub struct OpenStackDriver {
    inner: Arc<Inner>,
}

struct Inner {
    config: Config,
    client: Client,
    inventory: Arc<Inventory>,
    places: Places,
    /// Boots that may begin.
    boots: Semaphore,
    /// Looks that are under way.
    looks: AtomicUsize,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OpenStackDriver").field("client", &self.client).finish_non_exhaustive()
    }
}

impl OpenStackDriver {
    /// Sets the driver up, and polls servers until `stop`. Makes no call itself: a cloud that cannot be reached now is tried again for as long
    /// as the driver lives.
    ///
    /// # Errors
    /// [`Error::Refused`] when the settings are wrong, or say of no cloud.
    pub fn new(config: Config, stop: &CancellationToken) -> Result<Self, Error> {
        if let Some(violation) = config.validate().first() {
            return Err(Error::Refused(violation.to_string()));
        }
        if config.management_network.is_empty() {
            return Err(Error::Refused("management_network: must be named".into()));
        }
        let client = Client::new(&config.client).map_err(|error| Error::Refused(error.to_string()))?;
        let cloud = client.cloud();
        tracing::info!(
            cloud = cloud.name,
            identity = cloud.auth_url,
            cluster = config.cluster,
            "servers are made in this cloud"
        );
        let inventory = Arc::new(Inventory::new(client.clone(), config.cluster.clone(), config.poll_interval));
        tokio::spawn(Arc::clone(&inventory).run(stop.clone()));
        let (places, looks) = (Places::default(), AtomicUsize::new(0));
        let boots = Semaphore::new(config.boots.get() as usize);
        Ok(Self { inner: Arc::new(Inner { config, client, inventory, places, boots, looks }) })
    }
}

/// Whether an installation of Rug has made a port, this one or another.
pub(crate) fn is_port_of_rug(port: &openstack::Port) -> bool {
    names::is_of_rug(port)
}

/// What an error of a call that changes something means to the lifecycle. Whatever may have taken effect is a failure, after which the fence delay
/// is waited out before anything else is done.
fn failed(what: &str, error: &openstack::Error, permit: &Permit) -> Error {
    let text = format!("{what}: {error}");
    match error.kind {
        ErrorKind::Withheld => match permit.check_unfenced() {
            Err(shut) => Error::Shut(shut),
            Ok(()) => Error::FenceBusy(text),
        },
        // It was not begun.
        ErrorKind::Throttled | ErrorKind::NoConnection => Error::FenceBusy(text),
        _ if error.is_without_effect() => Error::Refused(text),
        _ => Error::Failed(text),
    }
}

/// What an error of a call that only reads means to a step that changes something: it was not begun.
fn unread(what: &str, error: &openstack::Error) -> Error {
    match error.kind {
        ErrorKind::Unauthenticated | ErrorKind::Forbidden | ErrorKind::NoService | ErrorKind::Invalid => {
            refused_read(what, error)
        }
        _ => Error::FenceBusy(format!("{what}: {error}")),
    }
}

fn refused_read(what: &str, error: &openstack::Error) -> Error {
    Error::Refused(format!("{what}: {error}"))
}

impl Inner {
    /// The client for calls that change something: each asks the gate when its connection is there.
    fn guarded(&self, permit: &Permit) -> Client {
        let permit = permit.clone();
        self.client.guarded(Arc::new(move || permit.check_unfenced().map_err(|shut| shut.to_string())))
    }

    async fn observe(&self, appliance: ApplianceId) -> Result<Observation, Error> {
        let failed = |error: openstack::Error| Error::Failed(error.to_string());
        // Dropped with the call, also when that is given up.
        let looks = Look::begin(&self.looks);
        if looks.number > SINGLE_LOOKS {
            let all = self.inventory.whole().await.map_err(failed)?;
            return Ok(observation(all.servers(appliance), all.ports(appliance)));
        }
        let (servers, ports) = tokio::join!(self.inventory.servers_of(appliance), self.inventory.ports_of(appliance));
        Ok(observation(&servers.map_err(failed)?, &ports.map_err(failed)?))
    }

    fn known(&self, appliance: ApplianceId, instance: &Instance) -> Known {
        match server_of(instance).map_or(Known::Unknown, |id| self.inventory.known(&id)) {
            // A spare that was taken is another instance from then on.
            Known::There(view) if view.key != InstanceKey::of(appliance, instance) => Known::Gone,
            known => known,
        }
    }
}

/// A look that is under way.
struct Look<'a> {
    all: &'a AtomicUsize,
    number: usize,
}

impl<'a> Look<'a> {
    fn begin(all: &'a AtomicUsize) -> Self {
        let number = all.fetch_add(1, Ordering::Relaxed) + 1;
        Self { all, number }
    }
}

impl Drop for Look<'_> {
    fn drop(&mut self) {
        self.all.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What of an appliance runs. Of two servers of one name the older counts; the other is removed with the next boot or end of the instance.
fn observation(servers: &[ServerView], ports: &[OwnPort]) -> Observation {
    let mut running: Vec<Instance> = Vec::new();
    let mut last: Option<InstanceKey> = None;
    for view in servers.iter().filter(|view| view.runs()) {
        if last != Some(view.key) {
            running.push(view.instance(ports));
        }
        last = Some(view.key);
    }
    let mut attempts: Vec<(u16, u32)> = Vec::new();
    let keys = servers.iter().map(|view| view.key).chain(ports.iter().filter_map(OwnPort::key));
    for key in keys {
        match attempts.iter_mut().find(|(ordinal, _)| *ordinal == key.ordinal) {
            Some((_, newest)) => *newest = key.attempt.max(*newest),
            None => attempts.push((key.ordinal, key.attempt)),
        }
    }
    attempts.sort_unstable();
    Observation { running, attempts }
}

#[async_trait]
impl Driver for OpenStackDriver {
    fn fencing(&self) -> DriverFencing {
        DriverFencing::Delay(self.inner.config.fence_delay())
    }

    fn plugs_ports(&self) -> bool {
        true
    }

    async fn observe(&self, appliance: ApplianceId) -> Result<Observation, Error> {
        self.inner.observe(appliance).await
    }

    async fn note_answer(&self, _: ApplianceId, instance: &Instance) -> Result<(), Error> {
        let Some(server) = server_of(instance) else { return Ok(()) };
        let answered = [(metadata::ANSWERED.to_owned(), "true".to_owned())].into();
        match self.inner.client.compute().set_metadata(&server, &answered).await {
            Ok(()) => Ok(()),
            Err(error) if error.is_not_found() => Ok(()),
            Err(error) => Err(Error::Failed(format!("note the answer: {error}"))),
        }
    }

    async fn is_taken(&self, appliance: ApplianceId, instance: &Instance) -> Option<bool> {
        self.inner.is_taken(InstanceKey::of(appliance, instance), &server_of(instance)?).await
    }

    async fn is_alive(&self, appliance: ApplianceId, instance: &Instance) -> Option<bool> {
        match self.inner.known(appliance, instance) {
            Known::There(view) => Some(view.runs()),
            Known::Gone => Some(false),
            Known::Unknown => None,
        }
    }

    async fn standing(&self, appliance: ApplianceId, instance: &Instance) -> Option<Standing> {
        let addresses = instance.addresses;
        match self.inner.known(appliance, instance) {
            Known::There(view) => Some(Standing { addresses, problem: view.problem(), doubt: None }),
            Known::Gone => Some(Standing { addresses, problem: Some("its server is gone".to_owned()), doubt: None }),
            Known::Unknown => Some(Standing { addresses, problem: None, doubt: self.inner.inventory.doubt() }),
        }
    }

    fn watch(&self, appliance: ApplianceId, instance: &Instance, ends: &EndSender) {
        if let Some(server) = server_of(instance) {
            let ended = EndedInstance { appliance, ordinal: instance.ordinal, attempt: instance.attempt };
            self.inner.inventory.watch(&server, ended, ends);
        }
    }

    async fn ensure(&self, permit: &Permit, wanted: Wanted<'_>) -> Result<Instance, Error> {
        self.inner.ensure(permit, &wanted).await
    }

    async fn attach(&self, permit: &Permit, instance: &Instance, port: &NetworkPort) -> Result<Instance, Error> {
        self.inner.attach(permit, instance, port).await
    }

    async fn detach(&self, permit: &Permit, instance: &Instance, port: &Name) -> Result<Instance, Error> {
        self.inner.detach(permit, instance, port).await
    }

    async fn expose(&self, permit: &Permit, instance: &Instance, desired: &Desired) -> Result<(), Error> {
        self.inner.expose(permit, instance, desired).await
    }

    async fn destroy(&self, permit: &Permit, instance: &Instance, _: StopRecipe) -> Result<(), Error> {
        self.inner.destroy(permit, instance, &[]).await
    }

    async fn destroy_first(
        &self,
        permit: &Permit,
        instance: &Instance,
        others: &[Instance],
        _: StopRecipe,
    ) -> Result<(), Error> {
        self.inner.destroy(permit, instance, others).await
    }

    async fn list(&self) -> Result<Vec<(ApplianceId, Instance)>, Error> {
        let all = self.inner.inventory.whole().await.map_err(|error| Error::Failed(error.to_string()))?;
        let mut found: Vec<_> = all
            .all_servers()
            .filter(|view| view.runs())
            .map(|view| (view.key.appliance, view.instance(all.ports(view.key.appliance))))
            .collect();
        found.sort_by_key(|(appliance, instance)| (*appliance, instance.ordinal, instance.attempt));
        Ok(found)
    }

    async fn forget(&self, permit: &Permit) -> Result<(), Error> {
        self.inner.forget(permit).await
    }
}
