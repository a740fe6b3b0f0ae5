//! Servers and ports of appliances that do not exist: what a call left that took effect after its appliance was removed.
//!
//! A worker does not know which appliances there are, so that nothing is removed by itself. Whoever sweeps says which there are, as the
//! coordinator lists them; what is younger than the age that is given is left alone, because its appliance may be newer than that list.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use common::ApplianceId;
use openstack::ResourceId;

use super::OpenStackDriver;
use super::view::ServerView;
use crate::drivers::Error;

/// What an orphan is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OrphanSort {
    /// A server.
    Server,
    /// A port that is plugged into nothing, or into a server that is an orphan as well.
    Port,
}

impl OrphanSort {
    /// The word for it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Server => "server",
            Self::Port => "port",
        }
    }
}

/// A server or port of an appliance that does not exist.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Orphan {
    /// What it is.
    pub sort: OrphanSort,
    /// Its id.
    pub id: ResourceId,
    /// Its name.
    pub name: String,
    /// The appliance.
    pub appliance: ApplianceId,
    /// Since when it has been there.
    pub age: Duration,
}

impl OpenStackDriver {
    /// Servers and ports of at least that age whose appliance is not among `wanted`; servers first.
    ///
    /// # Errors
    /// [`Error::Failed`] when they cannot be listed.
    pub async fn orphans(&self, wanted: &BTreeSet<ApplianceId>, age: Duration) -> Result<Vec<Orphan>, Error> {
        let all = self.inner.inventory.whole().await.map_err(|error| Error::Failed(error.to_string()))?;
        let now = SystemTime::now();
        let of = |created: SystemTime| now.duration_since(created).unwrap_or_default();
        let mut found: Vec<Orphan> = all
            .all_servers()
            .filter(|view| !wanted.contains(&view.key.appliance) && !view.is_leaving())
            .map(|view| Orphan {
                sort: OrphanSort::Server,
                id: view.id.clone(),
                name: if view.is_spare { view.key.spare() } else { view.key.server() },
                appliance: view.key.appliance,
                age: of(view.created),
            })
            .collect();
        let ports = all.all_ports().filter(|own| !wanted.contains(&own.appliance));
        found.extend(ports.map(|own| Orphan {
            sort: OrphanSort::Port,
            id: own.port.id.clone(),
            name: own.port.name.clone(),
            appliance: own.appliance,
            // One whose age Neutron does not tell is as old as one can be seen to be: it is left alone.
            age: humantime::parse_rfc3339_weak(&own.port.created_at).map(of).unwrap_or_default(),
        }));
        found.retain(|orphan| orphan.age >= age);
        found.sort_by(|one, other| {
            (one.sort as u8, one.appliance, &one.name, &one.id).cmp(&(
                other.sort as u8,
                other.appliance,
                &other.name,
                &other.id,
            ))
        });
        Ok(found)
    }

    /// Removes one. A server is waited for, so that its ports are free.
    ///
    /// # Errors
    /// [`Error::Failed`].
    pub async fn remove_orphan(&self, orphan: &Orphan) -> Result<(), Error> {
        let inner = &self.inner;
        let failed = |error: openstack::Error| Error::Failed(error.to_string());
        match orphan.sort {
            OrphanSort::Server => {
                let found = inner.client.compute().server(&orphan.id).await.map_err(failed)?;
                let view = found.and_then(|server| ServerView::of(&inner.config.cluster, server));
                // One that has been taken since belongs to somebody.
                let Some(view) = view.filter(|view| view.key.appliance == orphan.appliance) else { return Ok(()) };
                if inner.withdraw(&inner.client, &view).await.map_err(failed)? {
                    inner.client.compute().delete_server(&orphan.id).await.map_err(failed)?;
                    inner.await_end(&orphan.id, view.key).await?;
                }
                Ok(())
            }
            OrphanSort::Port => inner.client.network().delete_port(&orphan.id).await.map_err(failed),
        }
    }
}
