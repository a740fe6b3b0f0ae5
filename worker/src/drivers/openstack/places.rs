//! What settings name by name, found in the cloud: networks, images and flavors. Kept for a while, because each boot needs them.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use openstack::{Client, ErrorKind, ResourceId};
use tokio::time::Instant;

use super::{refused_read, unread};
use crate::drivers::Error;

/// How long what was found is believed.
const KEEP: Duration = Duration::from_secs(300);
/// Most names that are kept.
const MAX_KEPT: usize = 1_024;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Sort {
    Network,
    Image,
    Flavor,
    Prefix,
    Subnets,
}

/// What was found.
#[derive(Debug, Default)]
pub(super) struct Places(Mutex<HashMap<(Sort, String), (Instant, String)>>);

impl Places {
    fn kept(&self, sort: Sort, name: &str) -> Option<String> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (at, found) = known.get(&(sort, name.to_owned()))?;
        (at.elapsed() < KEEP).then(|| found.clone())
    }

    fn keep(&self, sort: Sort, name: &str, found: &str) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= MAX_KEPT {
            known.clear();
        }
        known.insert((sort, name.to_owned()), (Instant::now(), found.to_owned()));
    }

    /// Forgets what was found: something of it was not there any more.
    pub(super) fn forget(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// The id of a network.
    pub(super) async fn network(&self, client: &Client, name: &str) -> Result<String, Error> {
        if let Some(id) = self.kept(Sort::Network, name) {
            return Ok(id);
        }
        let network = client.network();
        let by_name =
            network.networks(&[("name", name)]).await.map_err(|error| unread("look for a network", &error))?;
        let id = match by_name.as_slice() {
            [one] => one.id.to_string(),
            [] => {
                let missing = || Error::Refused(format!("there is no network {name}"));
                let id: ResourceId = name.parse().map_err(|_| missing())?;
                let found = network.network(&id).await.map_err(|error| unread("look for a network", &error))?;
                found.ok_or_else(missing)?.id.to_string()
            }
            several => {
                return Err(Error::Refused(format!(
                    "{} networks have the name {name}: name one by its id",
                    several.len()
                )));
            }
        };
        self.keep(Sort::Network, name, &id);
        Ok(id)
    }

    /// The id of an image.
    pub(super) async fn image(&self, client: &Client, name: &str) -> Result<String, Error> {
        if let Some(id) = self.kept(Sort::Image, name) {
            return Ok(id);
        }
        let image = client.image().find(name).await.map_err(|error| match error.kind {
            ErrorKind::NotFound | ErrorKind::Invalid => refused_read("image", &error),
            _ => unread("look for an image", &error),
        })?;
        self.keep(Sort::Image, name, image.id.as_str());
        Ok(image.id.to_string())
    }

    /// The id of a flavor.
    pub(super) async fn flavor(&self, client: &Client, name: &str) -> Result<String, Error> {
        if let Some(id) = self.kept(Sort::Flavor, name) {
            return Ok(id);
        }
        let all = client.compute().flavors().await.map_err(|error| unread("list flavors", &error))?;
        for flavor in all.iter().take(MAX_KEPT / 2) {
            self.keep(Sort::Flavor, &flavor.name, &flavor.id);
        }
        let found =
            all.iter().find(|flavor| flavor.name == name).or_else(|| all.iter().find(|flavor| flavor.id == name));
        let found = found.ok_or_else(|| Error::Refused(format!("there is no flavor {name}")))?;
        Ok(found.id.clone())
    }

    /// The subnets of a network, with their addresses.
    pub(super) async fn subnets(&self, client: &Client, network: &str) -> Result<Vec<(ResourceId, String)>, Error> {
        let kept = self.kept(Sort::Subnets, network);
        let kept = kept.and_then(|text| serde_json::from_str::<Vec<(ResourceId, String)>>(&text).ok());
        if let Some(known) = kept {
            return Ok(known);
        }
        let found = client.network().subnets(&[("network_id", network)]).await;
        let found = found.map_err(|error| unread("list subnets", &error))?;
        let found: Vec<_> = found.into_iter().map(|subnet| (subnet.id, subnet.cidr)).collect();
        if let Ok(text) = serde_json::to_string(&found) {
            self.keep(Sort::Subnets, network, &text);
        }
        Ok(found)
    }

    /// Length of the prefix of a subnet.
    pub(super) async fn prefix(&self, client: &Client, subnet: &ResourceId) -> Option<u8> {
        if let Some(prefix) = self.kept(Sort::Prefix, subnet.as_str()) {
            return prefix.parse().ok();
        }
        let found = client.network().subnet(subnet).await.ok()??;
        let (_, prefix) = found.cidr.rsplit_once('/')?;
        self.keep(Sort::Prefix, subnet.as_str(), prefix);
        prefix.parse().ok()
    }
}
