//! The API of a cluster, with the calls tests make most in one line each.

use std::time::Duration;

use anyhow::{Context, Result};
use proto::admin::v1::{
    self, appliance_ref::By, appliances_client::AppliancesClient, cluster_client::ClusterClient,
    placement_client::PlacementClient, rebalances_client::RebalancesClient, workers_client::WorkersClient,
};
use tonic::Status;
use tonic::transport::{Channel, Endpoint};
use tonic_types::StatusExt;

/// How long one call may take.
const LIMIT: Duration = Duration::from_secs(15);

/// A client; clones share one connection, which is opened again when it breaks.
#[derive(Clone, Debug)]
pub struct Api {
    address: String,
    channel: Channel,
}

impl Api {
    /// A client of the coordinator at `address`, which does not have to run yet.
    ///
    /// # Errors
    /// When the address cannot be read.
    pub fn new(address: &str) -> Result<Self> {
        let endpoint =
            Endpoint::from_shared(address.to_owned())?.timeout(LIMIT).connect_timeout(Duration::from_secs(2));
        Ok(Self { address: address.to_owned(), channel: endpoint.connect_lazy() })
    }

    /// A client over a connection that was made otherwise, such as with TLS.
    #[must_use]
    pub fn over(address: &str, channel: Channel) -> Self {
        Self { address: address.to_owned(), channel }
    }

    /// Address of the coordinator.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The connection, for services without a method here.
    #[must_use]
    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// The service itself.
    #[must_use]
    pub fn appliances(&self) -> AppliancesClient<Channel> {
        AppliancesClient::new(self.channel())
    }

    /// The service itself.
    #[must_use]
    pub fn placement(&self) -> PlacementClient<Channel> {
        PlacementClient::new(self.channel())
    }

    /// Creates an appliance.
    ///
    /// # Errors
    /// The server's answer.
    pub async fn create(&self, appliance: v1::Appliance) -> Result<v1::Appliance, Status> {
        let request = v1::CreateApplianceRequest { appliance: Some(appliance), ..Default::default() };
        Ok(self.appliances().create(request).await?.into_inner())
    }

    /// Changes what differs, or creates.
    ///
    /// # Errors
    /// The server's answer.
    pub async fn apply(&self, appliance: v1::Appliance) -> Result<v1::UpdateApplianceResponse, Status> {
        let request =
            v1::UpdateApplianceRequest { appliance: Some(appliance), allow_missing: true, ..Default::default() };
        Ok(self.appliances().update(request).await?.into_inner())
    }

    /// An appliance by its name or id.
    ///
    /// # Errors
    /// The server's answer.
    pub async fn get(&self, name: &str) -> Result<v1::Appliance, Status> {
        let request = v1::GetApplianceRequest { appliance: Some(reference(name)) };
        Ok(self.appliances().get(request).await?.into_inner())
    }

    /// Asks for the deletion of an appliance.
    ///
    /// # Errors
    /// The server's answer.
    pub async fn delete(&self, name: &str) -> Result<v1::Appliance, Status> {
        let request = v1::DeleteApplianceRequest { appliance: Some(reference(name)), ..Default::default() };
        Ok(self.appliances().delete(request).await?.into_inner())
    }

    /// Every appliance, by tenant and name.
    ///
    /// # Errors
    /// The server's answer.
    pub async fn list(&self) -> Result<Vec<v1::Appliance>, Status> {
        let mut found = Vec::new();
        let mut request = v1::ListAppliancesRequest { page_size: 1_000, ..Default::default() };
        loop {
            let page = self.appliances().list(request.clone()).await?.into_inner();
            found.extend(page.appliances);
            if page.next_page_token.is_empty() {
                return Ok(found);
            }
            request.page_token = page.next_page_token;
        }
    }

    /// Every worker.
    ///
    /// # Errors
    /// The server's answer.
    pub async fn workers(&self) -> Result<Vec<v1::Worker>, Status> {
        let request = v1::ListWorkersRequest { page_size: 1_000, ..Default::default() };
        Ok(WorkersClient::new(self.channel()).list(request).await?.into_inner().workers)
    }

    /// Rebalances, newest first, at most 100.
    ///
    /// # Errors
    /// The server's answer.
    pub async fn rebalances(&self) -> Result<Vec<v1::Rebalance>, Status> {
        let request = v1::ListRebalancesRequest { page_size: 100, ..Default::default() };
        Ok(RebalancesClient::new(self.channel()).list(request).await?.into_inner().rebalances)
    }

    /// One rebalance with its moves.
    ///
    /// # Errors
    /// The server's answer.
    pub async fn rebalance(&self, id: &str) -> Result<v1::Rebalance, Status> {
        let request = v1::GetRebalanceRequest { id: id.to_owned(), ..v1::GetRebalanceRequest::default() };
        Ok(RebalancesClient::new(self.channel()).get(request).await?.into_inner())
    }

    /// State of the cluster.
    ///
    /// # Errors
    /// The server's answer.
    pub async fn status(&self) -> Result<v1::ClusterStatus, Status> {
        Ok(ClusterClient::new(self.channel()).status(v1::ClusterStatusRequest {}).await?.into_inner())
    }
}

/// Names an appliance by its id, if it is one, or by its name in the default tenant.
#[must_use]
pub fn reference(name: &str) -> v1::ApplianceRef {
    let by = match uuid::Uuid::parse_str(name) {
        Ok(_) => By::Id(name.to_owned()),
        Err(_) => By::Name(v1::TenantName { tenant: String::new(), name: name.to_owned() }),
    };
    v1::ApplianceRef { by: Some(by) }
}

/// Who holds an appliance; empty when nobody does.
#[must_use]
pub fn owner(appliance: &v1::Appliance) -> &str {
    appliance.assignment.as_ref().map_or("", |a| a.worker.as_str())
}

/// Whether the newest generation of an appliance is configured.
#[must_use]
pub fn is_configured(appliance: &v1::Appliance) -> bool {
    let configured = |status: &v1::Status| {
        status.phase() == v1::Phase::Configured && status.observed_generation == appliance.generation
    };
    appliance.status.as_ref().is_some_and(configured)
}

/// Pids of its instances, by ordinal, as its owner reported them.
#[must_use]
pub fn pids(appliance: &v1::Appliance) -> Vec<u32> {
    let mut instances: Vec<_> = appliance.status.iter().flat_map(|s| &s.instances).collect();
    instances.sort_by_key(|i| i.ordinal);
    instances.into_iter().filter_map(|i| i.pid).collect()
}

/// Port of its first instance.
///
/// # Errors
/// When it has none.
pub fn port(appliance: &v1::Appliance) -> Result<u16> {
    let instance = appliance.status.as_ref().and_then(|s| s.instances.first()).context("no instance")?;
    Ok(instance.address.rsplit_once(':').context("no address")?.1.parse()?)
}

/// State of an appliance in one line, for failure messages.
#[must_use]
pub fn describe(appliance: &v1::Appliance) -> String {
    let status = appliance.status.clone().unwrap_or_default();
    let assignment = appliance.assignment.clone().unwrap_or_default();
    format!(
        "{} is {} at generation {}/{}, {} by {:?} ({}), last error {:?}",
        appliance.name,
        status.phase().as_str_name(),
        status.observed_generation,
        appliance.generation,
        assignment.state,
        assignment.worker,
        assignment.reason,
        status.last_error
    )
}

/// Fields the server found at fault, as `field: description`.
#[must_use]
pub fn violations(status: &Status) -> Vec<String> {
    let details = status.get_details_bad_request().map(|d| d.field_violations).unwrap_or_default();
    details.into_iter().map(|v| format!("{}: {}", v.field, v.description)).collect()
}
