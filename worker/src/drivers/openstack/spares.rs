//! The warm pool: servers that were booted before anybody needs them.
//!
//! Spares are the instances of appliances of a tenant in `spare_tenants`, so that the pool has an owner, is kept at its size, repaired and
//! rotated as everything else is. They are named as spares, run without ports of networks, and are not configured.
//!
//! Whoever wants a spare, to take it or to end it, claims it first: makes a port in the management network whose hardware address follows from
//! the id of the server. Neutron keeps those unique in its database, so that of all who try one succeeds, whoever their workers are and
//! whatever became of their leases. (That a port is changed only while it has a certain revision, `If-Match`, is not enough: Neutron repeats a
//! change that met another one within its own database, and forgets the condition then.) With the claim the server is looked at again, since
//! somebody may have taken it before. What was a spare then gets the port for management, the metadata, and last the name of the instance, and
//! the claim is removed. Whoever dies on the way leaves the claim, which says whose it is: the next owner goes on.

use std::collections::BTreeMap;

use openstack::{Client, ErrorKind, NewPort, PortChange, ResourceId, Server, ServerStatus};
use rand::seq::SliceRandom as _;
use tokio::time::{Instant, sleep};
use worker_core::instance::Instance;

use super::boot::LOOKS;
use super::config::AntiAffinity;
use super::names::{self, InstanceKey, OwnPort, Role, metadata};
use super::plan::InstancePlan;
use super::view::ServerView;
use super::{Inner, failed, unread};
use crate::drivers::Error;
use crate::gate::Permit;

/// Spares that are tried before a server is booted instead.
const TRIES: usize = 8;

impl Inner {
    /// Takes a spare for an instance, if there is one that will do; `None` when there is none. `made_of`: image and flavor, by id.
    pub(super) async fn take_spare(
        &self,
        permit: &Permit,
        client: &Client,
        plan: &InstancePlan,
        servers: &[ServerView],
        made_of: (&str, &str),
    ) -> Result<Option<Instance>, Error> {
        if self.config.spare_tenants.is_empty() || plan.is_spare {
            return Ok(None);
        }
        let spares = match self.inventory.spares().await {
            Ok(spares) => spares,
            Err(error) => {
                tracing::info!(%error, "spares cannot be listed: a server is booted");
                return Ok(None);
            }
        };
        for spare in self.candidates(plan, servers, made_of, spares) {
            match self.claim(client, plan.key, &spare.id).await {
                Ok(true) => {}
                Ok(false) => continue,
                Err(error) if error.is_without_effect() => {
                    tracing::info!(server = %spare.id, %error, "a spare cannot be claimed: a server is booted");
                    return Ok(None);
                }
                Err(error) => return Err(failed("claim a spare", &error, permit)),
            }
            if let Some(taken) = self.take_claimed(permit, client, plan, &spare.id).await? {
                return Ok(Some(taken));
            }
        }
        Ok(None)
    }

    /// Spares that will do, in the order in which they are tried: those on other hosts than the instances beside first, and by chance, so that
    /// many who come at once do not all try the same.
    fn candidates(
        &self,
        plan: &InstancePlan,
        servers: &[ServerView],
        made_of: (&str, &str),
        mut spares: Vec<ServerView>,
    ) -> Vec<ServerView> {
        let apart = plan.is_pair && self.config.anti_affinity != AntiAffinity::Off;
        let beside: Vec<_> =
            servers.iter().filter(|view| view.key.ordinal != plan.key.ordinal).map(|view| &view.host_key).collect();
        let is_apart = |view: &ServerView| view.host_key.is_some() && !beside.contains(&&view.host_key);
        spares.retain(|view| {
            let has = view.made_of.as_ref().map(|(image, flavor)| (image.as_str(), flavor.as_str()));
            view.status == ServerStatus::Active
                && view.problem().is_none()
                && view.answered
                && view.kind.as_deref() == Some(plan.kind.as_str())
                && has == Some(made_of)
                && view.management_port == plan.management_port
                && plan.zone.as_ref().is_none_or(|zone| view.zone.as_ref() == Some(zone))
        });
        spares.shuffle(&mut rand::rng());
        if apart {
            if self.config.anti_affinity == AntiAffinity::Hard {
                spares.retain(is_apart);
            }
            spares.sort_by_key(|view| !is_apart(view));
        }
        spares.truncate(TRIES);
        spares
    }

    /// Claims a spare for an instance; `false` when somebody else has it. A claim of an appliance by an earlier attempt is its own.
    async fn claim(&self, client: &Client, key: InstanceKey, server: &ResourceId) -> Result<bool, openstack::Error> {
        let network = self.places.network(&self.client, &self.config.management_network).await;
        let network = network.map_err(|error| openstack::Error {
            kind: ErrorKind::Invalid,
            message: error.to_string(),
            request_id: None,
        })?;
        let new = NewPort {
            network,
            name: key.claim(server),
            description: names::description(&self.config.cluster, key.appliance),
            device_owner: names::SECURED_OWNER.to_owned(),
            mac: Some(names::claim_address(server)),
            without_address: true,
            ..NewPort::default()
        };
        let error = match client.network().create_port(&new).await {
            Ok(_) => return Ok(true),
            Err(error) => error,
        };
        if error.is_without_effect() && error.kind != ErrorKind::Conflict {
            return Err(error);
        }
        // It is somebody's, or it is not known whether it is ours.
        for wait in LOOKS {
            sleep(wait).await;
            let found = self.client.network().ports(&[("mac_address", names::claim_address(server).as_str())]).await?;
            let mut found = found.into_iter().filter_map(|port| OwnPort::of(&self.config.cluster, port));
            match found.find(|own| matches!(&own.role, Role::Claim(_, of) if of == server)) {
                Some(own) => return Ok(own.appliance == key.appliance),
                None if error.kind == ErrorKind::Conflict => return Ok(false),
                None => {}
            }
        }
        Err(error)
    }

    /// Makes of a spare that was claimed what the instance is; `None` when it was taken before, or has ended: the claim is given back then.
    async fn take_claimed(
        &self,
        permit: &Permit,
        client: &Client,
        plan: &InstancePlan,
        id: &ResourceId,
    ) -> Result<Option<Instance>, Error> {
        let found = self.client.compute().server(id).await.map_err(|error| unread("look at a server", &error))?;
        let is_of_others = |server: &Server| {
            let waits = ServerView::of(&self.config.cluster, server.clone()).is_some_and(|view| view.is_spare);
            !waits && !is_noted_of(server, plan.key)
        };
        let port = match &found {
            Some(server) if server.status == ServerStatus::Active && server.task.is_none() && !is_of_others(server) => {
                let ports = self.client.network().ports(&[("device_id", id.as_str())]).await;
                let ports = ports.map_err(|error| unread("list ports", &error))?;
                let mut own = ports.into_iter().filter_map(|port| OwnPort::of(&self.config.cluster, port));
                own.find(|own| matches!(own.role, Role::Management(_))).map(|own| own.port)
            }
            _ => None,
        };
        let (Some(server), Some(port)) = (found, port) else {
            self.give_back(permit, client, plan.key, id).await?;
            return Ok(None);
        };
        let Some(first) = port.fixed_ips.first() else {
            return Err(Error::Failed(format!("port {} has no address", port.id)));
        };
        let change = PortChange {
            name: Some(plan.key.management_port()),
            description: Some(names::description(&self.config.cluster, plan.key.appliance)),
            ..PortChange::default()
        };
        client.network().change_port(&port.id, &change).await.map_err(|error| failed("take a port", &error, permit))?;
        let compute = client.compute();
        let metadata = plan.metadata_of_taken(first.ip_address, &server.metadata);
        compute
            .set_metadata(id, &metadata)
            .await
            .map_err(|error| failed("write metadata of a spare", &error, permit))?;
        compute.rename(id, &plan.key.server()).await.map_err(|error| failed("rename a spare", &error, permit))?;
        let at = Instant::now();
        let found = self.client.compute().server(id).await.map_err(|error| unread("look at a server", &error))?;
        let view = found.and_then(|server| ServerView::of(&self.config.cluster, server));
        let view = view.ok_or_else(|| Error::Failed(format!("server {id} was a spare, and is gone")))?;
        self.inventory.note(id, Some(view.clone()), at);
        tracing::info!(server = %id, name = plan.key.server(), was = server.name, "a spare was taken");
        self.give_back(permit, client, plan.key, id).await?;
        Ok(Some(view.instance(&[])))
    }

    /// Removes the claims of an appliance to a server.
    async fn give_back(
        &self,
        permit: &Permit,
        client: &Client,
        key: InstanceKey,
        server: &ResourceId,
    ) -> Result<(), Error> {
        let ports = self.inventory.ports_of(key.appliance).await.map_err(|error| unread("list ports", &error))?;
        for own in ports.iter().filter(|own| matches!(&own.role, Role::Claim(_, of) if of == server)) {
            self.delete_port(permit, client, &own.port.id).await?;
        }
        Ok(())
    }

    /// Goes on with a spare that was claimed for this instance before.
    pub(super) async fn go_on_taking(
        &self,
        permit: &Permit,
        client: &Client,
        plan: &InstancePlan,
        ports: &[OwnPort],
    ) -> Result<Option<Instance>, Error> {
        for (key, server) in claims(ports).filter(|_| !plan.is_spare) {
            if key.ordinal == plan.key.ordinal
                && let Some(taken) = self.take_claimed(permit, client, plan, &server).await?
            {
                return Ok(Some(taken));
            }
        }
        Ok(None)
    }

    /// Claims a spare before it is ended; `false` when another appliance has it, or is about to.
    pub(super) async fn withdraw(&self, client: &Client, view: &ServerView) -> Result<bool, openstack::Error> {
        if !view.is_spare {
            return Ok(true);
        }
        if !self.claim(client, view.key, &view.id).await? {
            return Ok(false);
        }
        // Somebody may have taken it between the look at it and the claim.
        let found = self.client.compute().server(&view.id).await?;
        Ok(found.is_none_or(|server| is_noted_of(&server, view.key)))
    }

    /// Whether the server of a spare belongs to another appliance now.
    pub(super) async fn is_taken(&self, key: InstanceKey, server: &ResourceId) -> Option<bool> {
        let found = self.client.compute().server(server).await.ok()?;
        Some(found.is_some_and(|server| !is_noted_of(&server, key)))
    }
}

/// Whether the metadata of a server say that it is of this appliance.
fn is_noted_of(server: &Server, key: InstanceKey) -> bool {
    let noted: &BTreeMap<String, String> = &server.metadata;
    noted.get(metadata::APPLIANCE).is_some_and(|text| *text == key.appliance.to_string())
}

/// The claims of an appliance to servers.
pub(super) fn claims(ports: &[OwnPort]) -> impl Iterator<Item = (InstanceKey, ResourceId)> {
    ports.iter().filter_map(|own| match &own.role {
        Role::Claim(key, server) => Some((*key, server.clone())),
        _ => None,
    })
}
