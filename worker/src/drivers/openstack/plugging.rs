//! Ports that are plugged into servers that run.

use std::time::Duration;

use common::appliance::Name;
use common::network_port::NetworkPort;
use openstack::{ErrorKind, ResourceId};
use tokio::time::{Instant, sleep};
use worker_core::instance::Instance;
use worker_core::ports::PluggedPort;

use super::boot::PortOwner;
use super::names::{InstanceKey, OwnPort, Role};
use super::view::{ServerView, server_of};
use super::{Inner, failed, unread};
use crate::drivers::Error;
use crate::gate::Permit;

/// Between two looks whether a port is plugged, or is not any more.
const LOOK: Duration = Duration::from_millis(500);
/// How long that is waited for: longer than the lifecycle waits for all of it by default.
const WAIT: Duration = Duration::from_secs(30);

/// A port for an instance that runs.
struct Plugged {
    key: InstanceKey,
    is_secured: bool,
}

impl PortOwner for Plugged {
    fn key(&self) -> InstanceKey {
        self.key
    }

    fn is_secured(&self) -> bool {
        self.is_secured
    }
}

impl Inner {
    pub(super) async fn attach(
        &self,
        permit: &Permit,
        instance: &Instance,
        asked: &NetworkPort,
    ) -> Result<Instance, Error> {
        let client = self.guarded(permit);
        let server = known(instance)?;
        let (key, wanted) = (InstanceKey::of(permit.appliance(), instance), PluggedPort::from(asked));
        let role = Role::Network(key, wanted.clone());
        let ports = self.own_ports(permit).await?;
        // Which of its interfaces it is, is known by the address of the port.
        let done = |port: &openstack::Port| {
            let mut now = Instance { ports: instance.ports.with(wanted.clone()), ..instance.clone() };
            now.macs.extend(port.mac_address.parse().ok().map(|mac| (wanted.name.clone(), mac)));
            Ok(now)
        };
        if let Some(own) = ports.iter().find(|own| own.role == role && own.is_plugged_into(&server)) {
            return done(&own.port);
        }
        let view = self.look(&server).await?;
        if view.is_rising() {
            return Err(Error::FenceBusy("its server is in BUILD: ports are plugged once it runs".into()));
        }
        let is_secured = view.kind.as_ref().is_some_and(|kind| self.config.secured_kinds.contains(kind));
        let owner = Plugged { key, is_secured };
        let port = self.network_port(permit, &client, &owner, &wanted, asked, &ports).await?;
        let error = match client.compute().attach(&server, &port.id).await {
            Ok(()) => return done(&port),
            Err(error) => error,
        };
        if error.kind == ErrorKind::Conflict {
            // Its server is in another state, or somebody is at work on it.
            return Err(Error::FenceBusy(format!("plug port: {error}")));
        }
        if error.is_without_effect() {
            return Err(failed("plug port", &error, permit));
        }
        let deadline = Instant::now() + WAIT;
        while Instant::now() < deadline {
            if let Ok(Some(now)) = self.client.network().port(&port.id).await
                && now.device_id == server.as_str()
            {
                return done(&now);
            }
            sleep(LOOK).await;
        }
        Err(failed("plug port", &error, permit))
    }

    pub(super) async fn detach(&self, permit: &Permit, instance: &Instance, name: &Name) -> Result<Instance, Error> {
        let client = self.guarded(permit);
        let server = known(instance)?;
        let key = InstanceKey::of(permit.appliance(), instance);
        let ports = self.own_ports(permit).await?;
        let is_it =
            |own: &&OwnPort| matches!(&own.role, Role::Network(of, plugged) if *of == key && plugged.name == *name);
        for own in ports.iter().filter(is_it) {
            if own.is_plugged_into(&server) {
                match client.compute().detach(&server, &own.port.id).await {
                    Ok(()) => {}
                    Err(error) if error.kind == ErrorKind::Conflict => {
                        return Err(Error::FenceBusy(format!("unplug port: {error}")));
                    }
                    Err(error) => return Err(failed("unplug port", &error, permit)),
                }
                self.await_unplugged(&own.port.id, &server).await?;
            }
            self.delete_port(permit, &client, &own.port.id).await?;
        }
        let mut now = Instance { ports: instance.ports.without(name), ..instance.clone() };
        now.macs.remove(name);
        Ok(now)
    }

    /// Waits until a port is free. Nova answers before it is.
    async fn await_unplugged(&self, port: &ResourceId, server: &ResourceId) -> Result<(), Error> {
        let deadline = Instant::now() + WAIT;
        loop {
            let found = self.client.network().port(port).await.map_err(|error| unread("look at a port", &error))?;
            if found.is_none_or(|port| port.device_id != server.as_str()) {
                return Ok(());
            }
            if Instant::now() >= deadline {
                // That it was accepted is an answer; why it is not done, Nova does not say.
                return Err(Error::Failed(format!("port {port} is still plugged after {WAIT:?}")));
            }
            sleep(LOOK).await;
        }
    }

    async fn own_ports(&self, permit: &Permit) -> Result<Vec<OwnPort>, Error> {
        self.inventory.ports_of(permit.appliance()).await.map_err(|error| unread("list ports", &error))
    }

    async fn look(&self, server: &ResourceId) -> Result<ServerView, Error> {
        let found = self.client.compute().server(server).await.map_err(|error| unread("look at a server", &error))?;
        let view = found.and_then(|server| ServerView::of(&self.config.cluster, server));
        view.ok_or_else(|| Error::FenceBusy(format!("server {server} is gone")))
    }
}

fn known(instance: &Instance) -> Result<ResourceId, Error> {
    server_of(instance).ok_or_else(|| Error::Failed("the instance has no server".into()))
}
