//! How servers end, and what is left of an appliance goes.

use futures::future::join_all;
use openstack::{Client, ResourceId};
use worker_core::instance::Instance;

use super::names::{self, InstanceKey};
use super::spares;
use super::view::server_of;
use super::{Inner, failed, unread};
use crate::drivers::Error;
use crate::gate::Permit;

impl Inner {
    /// Ends an instance, and begins to end others of its appliance.
    pub(super) async fn destroy(&self, permit: &Permit, instance: &Instance, others: &[Instance]) -> Result<(), Error> {
        let client = self.guarded(permit);
        // What becomes of the others is told by their own calls.
        let rest = join_all(others.iter().map(|other| self.begin_end(permit, &client, other)));
        let (servers, _) = tokio::join!(self.begin_end(permit, &client, instance), rest);
        let key = InstanceKey::of(permit.appliance(), instance);
        for server in servers? {
            self.await_end(&server, key).await?;
        }
        let ports = self.inventory.ports_of(permit.appliance()).await.map_err(|error| unread("list ports", &error))?;
        for own in ports.iter().filter(|own| own.key() == Some(key)) {
            self.delete_port(permit, &client, &own.port.id).await?;
        }
        Ok(())
    }

    /// Asks for the end of every server of an instance: of one whose creation was repeated there may be two.
    async fn begin_end(&self, permit: &Permit, client: &Client, instance: &Instance) -> Result<Vec<ResourceId>, Error> {
        let key = InstanceKey::of(permit.appliance(), instance);
        let found =
            self.inventory.servers_of(permit.appliance()).await.map_err(|error| unread("list servers", &error))?;
        let known = server_of(instance);
        let mut ids = Vec::new();
        for view in found.iter().filter(|view| view.key == key) {
            if !view.is_leaving() {
                if !self.withdraw(client, view).await.map_err(|error| failed("withdraw a spare", &error, permit))? {
                    // It is another appliance's now, and its end is not ours to ask for.
                    continue;
                }
                client
                    .compute()
                    .delete_server(&view.id)
                    .await
                    .map_err(|error| failed("delete server", &error, permit))?;
            }
            ids.push(view.id.clone());
        }
        // One that is not listed is gone; what is known of it is to say so.
        if let Some(known) = known.filter(|known| !ids.contains(known) && !instance.is_spare) {
            ids.push(known);
        }
        Ok(ids)
    }

    /// Waits until a server is gone: its ports are free then, and its addresses.
    pub(super) async fn await_end(&self, server: &ResourceId, key: InstanceKey) -> Result<(), Error> {
        let limit = self.config.delete_wait;
        match self.inventory.until_gone(server, limit).await.map_err(|error| unread("look at a server", &error))? {
            None => Ok(()),
            // It was a spare, and has been taken.
            Some(other) if other.key != key => Ok(()),
            Some(left) => {
                let why = left.problem().unwrap_or_else(|| "it runs".to_owned());
                // It was asked to end, and answered that: it is only waited for.
                Err(Error::FenceBusy(format!("server {server} has not ended within {limit:?}: {why}")))
            }
        }
    }

    pub(super) async fn delete_port(&self, permit: &Permit, client: &Client, port: &ResourceId) -> Result<(), Error> {
        client.network().delete_port(port).await.map_err(|error| failed("delete port", &error, permit))
    }

    /// Removes what is left of an appliance: servers that do not run, ports, and groups.
    pub(super) async fn forget(&self, permit: &Permit) -> Result<(), Error> {
        let client = self.guarded(permit);
        let appliance = permit.appliance();
        let servers = self.inventory.servers_of(appliance).await.map_err(|error| unread("list servers", &error))?;
        if let Some(running) = servers.iter().find(|view| view.runs()) {
            // A call whose answer was lost made it. It is found with the next look, and ended.
            return Err(Error::FenceBusy(format!("instance {} still runs", running.key.ordinal)));
        }
        for view in servers.iter().filter(|view| !view.is_leaving()) {
            if !self.withdraw(&client, view).await.map_err(|error| failed("withdraw a spare", &error, permit))? {
                continue;
            }
            client.compute().delete_server(&view.id).await.map_err(|error| failed("delete server", &error, permit))?;
        }
        for view in &servers {
            self.await_end(&view.id, view.key).await?;
        }
        let ports = self.inventory.ports_of(appliance).await.map_err(|error| unread("list ports", &error))?;
        // What was claimed and not given its name: nobody else has it, and the pool fills up again.
        for (key, server) in spares::claims(&ports) {
            client.compute().delete_server(&server).await.map_err(|error| failed("delete server", &error, permit))?;
            self.await_end(&server, key).await?;
        }
        for own in &ports {
            self.delete_port(permit, &client, &own.port.id).await?;
        }
        let name = names::group(appliance);
        let groups =
            self.client.compute().server_groups().await.map_err(|error| unread("list server groups", &error))?;
        for group in groups.iter().filter(|group| group.name == name) {
            client
                .compute()
                .delete_server_group(&group.id)
                .await
                .map_err(|error| failed("delete server group", &error, permit))?;
        }
        Ok(())
    }
}
