//! How a server comes to be: its ports, its group, itself, each found by name before it is made.
//!
//! Nobody at Nova and Neutron checks tokens. What keeps this from doing twice what a former owner still has under way is the fence delay: its
//! calls have taken effect, and are found by name, before the new owner's begin. What was not answered is looked for before anything else.

use std::collections::BTreeMap;
use std::time::Duration;

use openstack::{Client, NewPort, NewServer, Policy, ResourceId};
use tokio::time::{Instant, sleep, timeout};
use worker_core::instance::Instance;

use super::config::AntiAffinity;
use super::names::{self, OwnPort, Role};
use super::plan::{InstancePlan, ManagementAddress, NetworkInterface};
use super::view::ServerView;
use super::{Inner, failed, unread};
use crate::drivers::{Error, Wanted};
use crate::gate::Permit;

/// How often, and how long after one another, a server is looked for whose creation was not answered.
pub(super) const LOOKS: [Duration; 4] =
    [Duration::ZERO, Duration::from_secs(1), Duration::from_secs(2), Duration::from_secs(4)];

/// How long a boot waits for its turn. Less than the lifecycle waits for it, so that one that has not begun is known to have had no effect.
const TURN: Duration = Duration::from_secs(15);

impl Inner {
    pub(super) async fn ensure(&self, permit: &Permit, wanted: &Wanted<'_>) -> Result<Instance, Error> {
        if wanted.beside.is_some() {
            return Err(Error::Refused("servers of Nova do not hand their service over".into()));
        }
        let plan = InstancePlan::new(&self.config, permit.appliance(), permit.token(), wanted)?;
        let Ok(Ok(_turn)) = timeout(TURN, self.boots.acquire()).await else {
            return Err(Error::FenceBusy("other instances are being started (openstack.boots)".into()));
        };
        let client = self.guarded(permit);
        let inventory = &self.inventory;
        let servers = inventory.servers_of(permit.appliance()).await.map_err(|error| unread("list servers", &error))?;
        let place = self.clear_place(permit, &client, &plan, &servers).await?;
        // Once what was there has ended: its ports are free then.
        let ports = inventory.ports_of(permit.appliance()).await.map_err(|error| unread("list ports", &error))?;
        let taken = match place {
            Some(_) => None,
            None => self.go_on_taking(permit, &client, &plan, &ports).await?,
        };
        self.remove_leftovers(permit, &client, &servers, &ports, &plan).await;
        if let Some(found) = place {
            return Ok(found.instance(&ports));
        }
        if let Some(taken) = taken {
            return Ok(taken);
        }
        let image = self.places.image(&self.client, &plan.image).await?;
        let flavor = self.places.flavor(&self.client, &plan.flavor).await?;
        if let Some(taken) = self.take_spare(permit, &client, &plan, &servers, (&image, &flavor)).await? {
            return Ok(taken);
        }
        let (management, management_port) = self.management_port(permit, &client, &plan, &ports).await?;
        let mut plugs = vec![management_port];
        let mut interfaces = Vec::new();
        let mut plugged = Vec::new();
        let mut macs = BTreeMap::new();
        for (port, asked) in InstancePlan::network_ports(wanted) {
            let made = self.network_port(permit, &client, &plan, &port, asked, &ports).await?;
            interfaces.push(NetworkInterface {
                name: port.name.to_string(),
                network: made.network_id.to_string(),
                mac: made.mac_address.clone(),
            });
            macs.extend(made.mac_address.parse().ok().map(|mac| (port.name.clone(), mac)));
            plugs.push(made.id);
            plugged.push(port);
        }
        let group = self.group(permit, &client, &plan, &servers).await?;
        let new = NewServer {
            name: plan.server_name(),
            metadata: plan.metadata(&management, group.as_ref(), (&image, &flavor)),
            image,
            flavor,
            ports: plugs,
            zone: plan.zone.clone(),
            user_data: plan.user_data(&self.config, &management, &interfaces),
            config_drive: self.config.config_drive,
            key_name: Some(self.config.key_name.clone()).filter(|name| !name.is_empty()),
            group,
        };
        let view = self.create(permit, &client, &plan, &new).await?;
        // What Nova was asked for, it plugs; whether it has is seen with the next look.
        Ok(Instance { macs, ..view.instance_with(plugged.into_iter().collect()) })
    }

    /// What is at the ordinal: the instance that is wanted, if it runs. What does not run there is removed, with other servers of its name.
    async fn clear_place(
        &self,
        permit: &Permit,
        client: &Client,
        plan: &InstancePlan,
        servers: &[ServerView],
    ) -> Result<Option<ServerView>, Error> {
        let at_ordinal = || servers.iter().filter(|view| view.key.ordinal == plan.key.ordinal);
        // Of two of one name the older is kept: every owner chooses the same.
        let found = at_ordinal().find(|view| view.key == plan.key && view.runs());
        if let Some(other) = at_ordinal().find(|view| view.key != plan.key && view.runs()) {
            let text = format!("attempt {} still runs at ordinal {}", other.key.attempt, plan.key.ordinal);
            return Err(Error::FenceBusy(text));
        }
        let others = || at_ordinal().filter(|view| found.is_none_or(|found| found.id != view.id));
        for other in others().filter(|view| !view.is_leaving()) {
            tracing::info!(server = %other.id, name = other.key.server(), problem = other.problem(), "removing a server that is not wanted");
            if !self.withdraw(client, other).await.map_err(|error| failed("withdraw a spare", &error, permit))? {
                continue;
            }
            client.compute().delete_server(&other.id).await.map_err(|error| failed("delete server", &error, permit))?;
        }
        if let Some(found) = found {
            return Ok(Some(found.clone()));
        }
        for other in others() {
            self.await_end(&other.id, other.key).await?;
        }
        Ok(None)
    }

    /// Removes ports of instances that have no server, and second ones for the same. That they are there keeps nothing from being made, unless
    /// they have its addresses, which Neutron then says.
    async fn remove_leftovers(
        &self,
        permit: &Permit,
        client: &Client,
        servers: &[ServerView],
        ports: &[OwnPort],
        plan: &InstancePlan,
    ) {
        let mut kept: Vec<&Role> = Vec::new();
        for own in ports {
            let Some(key) = own.key() else { continue };
            // A spare that was claimed for another ordinal becomes its instance; one that a pool has claimed has ended.
            if matches!(own.role, Role::Claim(..)) && !plan.is_spare {
                continue;
            }
            // Of those at the ordinal none is left but the one that is wanted.
            let is_elsewhere = key.ordinal != plan.key.ordinal;
            let has_server = is_elsewhere && servers.iter().any(|view| view.key == key && !view.is_leaving());
            let is_needed = key == plan.key || has_server;
            let is_second = kept.contains(&&own.role);
            if is_needed && !is_second {
                kept.push(&own.role);
                continue;
            }
            // One that is plugged goes with its server.
            if own.is_free()
                && let Err(error) = client.network().delete_port(&own.port.id).await
            {
                let error = failed("delete port", &error, permit);
                tracing::info!(port = own.port.name, %error, "a port that is not needed any more is left");
            }
        }
    }

    async fn management_port(
        &self,
        permit: &Permit,
        client: &Client,
        plan: &InstancePlan,
        ports: &[OwnPort],
    ) -> Result<(ManagementAddress, ResourceId), Error> {
        let role = Role::Management(plan.key);
        let network = self.places.network(&self.client, &self.config.management_network).await?;
        let groups = &self.config.management_security_groups;
        let new = NewPort {
            network,
            name: plan.key.management_port(),
            description: names::description(&self.config.cluster, plan.key.appliance),
            device_owner: names::SECURED_OWNER.to_owned(),
            security_groups: (!groups.is_empty()).then(|| groups.clone()),
            ..NewPort::default()
        };
        let port = self.port(permit, client, &role, &new, ports).await?;
        let Some(first) = port.fixed_ips.first() else {
            return Err(Error::Refused("the management network gives no addresses: it has no subnet".into()));
        };
        let prefix = self.places.prefix(&self.client, &first.subnet_id).await;
        let address = ManagementAddress { address: first.ip_address, prefix, mac: port.mac_address };
        Ok((address, port.id))
    }

    /// The port of a network: one that is there already, or a new one.
    pub(super) async fn network_port(
        &self,
        permit: &Permit,
        client: &Client,
        plan: &impl PortOwner,
        plugged: &worker_core::ports::PluggedPort,
        asked: &common::network_port::NetworkPort,
        ports: &[OwnPort],
    ) -> Result<openstack::Port, Error> {
        let key = plan.key();
        let is_secured = plan.is_secured();
        let groups = &self.config.service_security_groups;
        let security_groups = match (is_secured, groups.is_empty()) {
            // What forwards cannot be checked for whose packets they are.
            (false, _) => Some(Vec::new()),
            (true, true) => None,
            (true, false) => Some(groups.clone()),
        };
        if asked.network.parse::<ResourceId>().is_err() {
            return Err(Error::Refused(format!("port {}: {} is not the id of a network", asked.name, asked.network)));
        }
        let new = NewPort {
            network: asked.network.clone(),
            name: key.network_port(plugged),
            description: names::description(&self.config.cluster, key.appliance),
            device_owner: if is_secured { names::SECURED_OWNER } else { names::FORWARDING_OWNER }.to_owned(),
            addresses: asked.addresses.iter().map(|address| (None, address.ip)).collect(),
            mac: asked.mac.map(|mac| mac.to_string()),
            port_security: (!is_secured).then_some(false),
            security_groups,
            ..NewPort::default()
        };
        self.port(permit, client, &Role::Network(key, plugged.clone()), &new, ports).await
    }

    /// One port: as it is there already, or made. One whose creation was not answered is looked for.
    pub(super) async fn port(
        &self,
        permit: &Permit,
        client: &Client,
        role: &Role,
        new: &NewPort,
        ports: &[OwnPort],
    ) -> Result<openstack::Port, Error> {
        if let Some(found) = ports.iter().find(|own| own.role == *role && own.is_free()) {
            return Ok(found.port.clone());
        }
        let error = match client.network().create_port(new).await {
            Ok(port) => return Ok(port),
            Err(error) => error,
        };
        let what = format!("create port {}", new.name);
        if error.is_without_effect() {
            if error.is_not_found() {
                self.places.forget();
            }
            return Err(failed(&what, &error, permit));
        }
        for wait in LOOKS {
            sleep(wait).await;
            let found = self.inventory.ports_of(permit.appliance()).await;
            if let Some(found) = found.unwrap_or_default().into_iter().find(|own| own.role == *role && own.is_free()) {
                tracing::info!(port = new.name, %error, "a port whose creation was not answered is there");
                return Ok(found.port);
            }
        }
        Err(failed(&what, &error, permit))
    }

    /// The group that keeps the instances of an appliance apart.
    async fn group(
        &self,
        permit: &Permit,
        client: &Client,
        plan: &InstancePlan,
        servers: &[ServerView],
    ) -> Result<Option<ResourceId>, Error> {
        let policy = match self.config.anti_affinity {
            AntiAffinity::Off => return Ok(None),
            AntiAffinity::Soft => Policy::SoftAntiAffinity,
            AntiAffinity::Hard => Policy::AntiAffinity,
        };
        if !plan.is_pair {
            return Ok(None);
        }
        if let Some(group) = servers.iter().find_map(|view| view.group.clone()) {
            return Ok(Some(group));
        }
        if let Some(group) = self.find_group(permit).await? {
            return Ok(Some(group));
        }
        let made = client.compute().create_server_group(&names::group(plan.key.appliance), policy).await;
        match made {
            Ok(group) => Ok(Some(group.id)),
            // Of two the one with the least id is taken by everybody, and all of them are removed in the end.
            Err(error) => match self.find_group(permit).await? {
                Some(group) if !error.is_without_effect() => Ok(Some(group)),
                _ => Err(failed("create server group", &error, permit)),
            },
        }
    }

    async fn find_group(&self, permit: &Permit) -> Result<Option<ResourceId>, Error> {
        let name = names::group(permit.appliance());
        let groups =
            self.client.compute().server_groups().await.map_err(|error| unread("list server groups", &error))?;
        Ok(groups.into_iter().filter(|group| group.name == name).map(|group| group.id).min())
    }

    /// Makes the server. One whose creation was not answered is looked for.
    async fn create(
        &self,
        permit: &Permit,
        client: &Client,
        plan: &InstancePlan,
        new: &NewServer,
    ) -> Result<ServerView, Error> {
        let at = Instant::now();
        let error = match client.compute().create_server(new).await {
            Ok(id) => {
                // Right after that it is there, and one look tells what else it is.
                let found = self.client.compute().server(&id).await.ok().flatten();
                let view = found.and_then(|server| ServerView::of(&self.config.cluster, server));
                if let Some(view) = view {
                    self.inventory.note(&id, Some(view.clone()), at);
                    return Ok(view);
                }
                return self
                    .made(permit, plan, &LOOKS)
                    .await?
                    .ok_or_else(|| Error::Failed(format!("server {id} was made and is not to be seen")));
            }
            Err(error) => error,
        };
        if error.is_without_effect() {
            if matches!(error.kind, openstack::ErrorKind::NotFound | openstack::ErrorKind::Invalid) {
                // An image or a flavor may have gone.
                self.places.forget();
            }
            return Err(failed("create server", &error, permit));
        }
        match self.made(permit, plan, &LOOKS).await {
            Ok(Some(view)) => {
                tracing::info!(server = %view.id, name = new.name, %error, "a server whose creation was not answered is there");
                Ok(view)
            }
            _ => Err(failed("create server", &error, permit)),
        }
    }

    /// The server of a plan, looked for after these waits.
    async fn made(
        &self,
        permit: &Permit,
        plan: &InstancePlan,
        waits: &[Duration],
    ) -> Result<Option<ServerView>, Error> {
        let mut problem = None;
        for wait in waits {
            sleep(*wait).await;
            match self.inventory.servers_of(permit.appliance()).await {
                Ok(found) => {
                    problem = None;
                    if let Some(view) = found.into_iter().find(|view| view.key == plan.key && !view.is_leaving()) {
                        return Ok(Some(view));
                    }
                }
                Err(error) => problem = Some(unread("list servers", &error)),
            }
        }
        problem.map_or(Ok(None), Err)
    }
}

/// What a port of a network is for.
pub(super) trait PortOwner: Sync {
    /// The instance.
    fn key(&self) -> names::InstanceKey;
    /// Whether Neutron checks what it sends.
    fn is_secured(&self) -> bool;
}

impl PortOwner for InstancePlan {
    fn key(&self) -> names::InstanceKey {
        self.key
    }

    fn is_secured(&self) -> bool {
        self.is_secured
    }
}
