//! Client of the admin API: finds coordinators, makes calls and retries them.
//!
//! Every call has a deadline. When a server is unavailable the next one is tried; after a round in which none answered,
//! all are tried again with growing, jittered pauses, until the deadline. Retrying is safe for every call made here:
//! those that change something carry a request id, which the server remembers, or state the desired result.

mod endpoint;
mod servers;
mod token;

use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use common::TraceContext;
use common::cluster::ClusterRef;
use futures::Stream;
use proto::admin::v1;
use proto::admin::v1::appliances_client::AppliancesClient;
use proto::admin::v1::audit_client::AuditClient;
use proto::admin::v1::budgets_client::BudgetsClient;
use proto::admin::v1::cluster_client::ClusterClient;
use proto::admin::v1::debug_client::DebugClient;
use proto::admin::v1::placement_client::PlacementClient;
use proto::admin::v1::rebalances_client::RebalancesClient;
use proto::admin::v1::rollouts_client::RolloutsClient;
use proto::admin::v1::runs_client::RunsClient;
use proto::admin::v1::telemetry_client::TelemetryClient;
use proto::admin::v1::workers_client::WorkersClient;
use runtime::socket::TrustedServer;
use runtime::tls::{self, ClientTls};
use tokio::time::{Instant, sleep, timeout_at};
use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status, Streaming};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::error::Failure;

pub(crate) use endpoint::{Endpoint, read_endpoint};
use servers::Servers;
pub(crate) use servers::{ServerAddresses, local_servers, named_servers, no_local_server};
pub(crate) use token::TokenFile;

/// Socket of a coordinator that was started in the same folder without any set-up.
pub(crate) const DEFAULT_SOCKET: &str = "rug-coordinator-state/coordinator.sock";
/// Default timeout of one call, retries included (`--timeout`).
pub(crate) const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// Metadata: the cluster that a call is meant for.
const CLUSTER: &str = "rug-cluster";
/// Entries per page. Far below the server's maximum of 1,000, so that pages of large specs stay small messages.
const PAGE: i32 = 500;
/// Largest response that is accepted: a page of the largest specs (256 KiB each) with room to spare.
const MAX_ANSWER: usize = 192 << 20;

/// Pauses between attempts: doubling up to a second, each between half and all of it.
#[derive(Debug)]
pub(crate) struct Backoff(Duration);

impl Backoff {
    /// The first pause is at most 50 ms: the usual reason is a server that is just starting.
    pub(crate) fn new() -> Self {
        Self(Duration::from_millis(50))
    }

    /// The next pause.
    pub(crate) fn next(&mut self) -> Duration {
        let pause = self.0.mul_f64(rand::random_range(0.5..=1.0));
        self.0 = (self.0 * 2).min(Duration::from_secs(1));
        pause
    }
}

/// Client of the coordinators of a cluster. Cheap to clone; clones share the connections.
#[derive(Clone, Debug)]
pub(crate) struct AdminClient {
    servers: Arc<Servers>,
    timeout: Duration,
    repeats: bool,
    /// Sent with each call.
    token: Option<TokenFile>,
    /// The cluster that calls are meant for; servers of any other refuse them.
    meant: Option<ClusterRef>,
    /// Trace context that each call carries; empty when there is none.
    trace: TraceContext,
}

/// What an operator asks of a rollout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RolloutOrder {
    /// Begin nothing more for now.
    Pause,
    /// Go on.
    Resume,
    /// Begin nothing more, ever.
    Abort,
    /// Give the former images back.
    Rollback,
}

/// Reference to an appliance that the server returned.
pub(crate) fn by_id(id: &str) -> v1::ApplianceRef {
    v1::ApplianceRef { by: Some(v1::appliance_ref::By::Id(id.to_owned())) }
}

/// A fresh request id.
pub(crate) fn request_id() -> String {
    uuid::Uuid::new_v4().to_string()
}

/// Whether the server is unreachable or temporarily unable to answer, reported by the server or, under various codes,
/// by the transport.
fn is_lost(status: &Status) -> bool {
    status.code() == Code::Unavailable || std::error::Error::source(status).is_some()
}

impl AdminClient {
    /// A client of the server at this address, one of this user or root, without TLS. Connects with the first call.
    ///
    /// # Errors
    /// The address is not one.
    pub(crate) fn new(address: &str, timeout: Duration) -> Result<Self, Failure> {
        Self::of(&[address], timeout, None, TrustedServer::OwnOrRoot)
    }

    /// A client of the coordinators at these addresses, with TLS for those that begin with `https://`, and with sockets only
    /// of whom is `trusted`.
    ///
    /// # Errors
    /// An address is not one, or does not fit `tls`.
    pub(crate) fn of<A: AsRef<str>>(
        addresses: &[A],
        timeout: Duration,
        tls: Option<&ClientTls>,
        trusted: TrustedServer,
    ) -> Result<Self, Failure> {
        let servers = Arc::new(Servers::new(addresses, tls, trusted)?);
        Ok(Self { servers, timeout, repeats: true, token: None, meant: None, trace: TraceContext::default() })
    }

    /// The same connections with a token for each call.
    ///
    /// # Errors
    /// Others could read the token on its way.
    pub(crate) fn with_token(self, token: TokenFile) -> Result<Self, Failure> {
        match self.servers.unprotected() {
            None => Ok(Self { token: Some(token), ..self }),
            Some(address) => Err(Failure::usage(format!(
                "{address}: a token is given (--token-file or RUG_TOKEN_FILE), and others could read it on its way; write https://"
            ))),
        }
    }

    /// The same connections, for this cluster and no other.
    pub(crate) fn meant_for(&self, meant: Option<ClusterRef>) -> Self {
        Self { meant, ..self.clone() }
    }

    /// The same connections, with calls that belong to a trace.
    pub(crate) fn traced(self, trace: TraceContext) -> Self {
        Self { trace, ..self }
    }

    /// The cluster that calls are meant for, if the user has said so.
    pub(crate) fn meant(&self) -> Option<&ClusterRef> {
        self.meant.as_ref()
    }

    /// The same connections with another timeout for each call.
    pub(crate) fn with_timeout(&self, timeout: Duration) -> Self {
        Self { timeout, ..self.clone() }
    }

    /// The same connections without retries: a server that is unavailable is asked once.
    pub(crate) fn once(&self, timeout: Duration) -> Self {
        Self { timeout, repeats: false, ..self.clone() }
    }

    /// One client for each server, in the order in which they were named.
    pub(crate) fn each(&self) -> Vec<Self> {
        self.servers.each().map(|one| Self { servers: Arc::new(one), ..self.clone() }).collect()
    }

    /// Address of the server that is asked first.
    pub(crate) fn address(&self) -> &str {
        self.servers.address(self.servers.turn())
    }

    /// A request, with what each carries.
    fn request<Q>(&self, message: Q) -> Result<Request<Q>, Failure> {
        let mut request = Request::new(message);
        if let Some(token) = &self.token {
            request.metadata_mut().insert("authorization", token.header()?);
        }
        if let Some(Ok(meant)) = self.meant.as_ref().map(|meant| meant.to_string().parse()) {
            request.metadata_mut().insert(CLUSTER, meant);
        }
        for (name, part) in [("traceparent", &self.trace.traceparent), ("tracestate", &self.trace.tracestate)] {
            if let Some(value) = part.parse().ok().filter(|_| !part.is_empty()) {
                request.metadata_mut().insert(name, value);
            }
        }
        Ok(request)
    }

    /// Makes a call and retries it while the server is unavailable.
    async fn call<Q, R, F>(
        &self,
        message: Q,
        streaming: bool,
        send: impl Fn(Channel, Request<Q>) -> F,
    ) -> Result<R, Failure>
    where
        Q: Clone,
        F: Future<Output = Result<Response<R>, Status>>,
    {
        let deadline = Instant::now() + self.timeout;
        let mut backoff = Backoff::new();
        // Error of each server in this round.
        let mut told = Vec::new();
        loop {
            let turn = self.servers.turn();
            let mut request = self.request(message.clone())?;
            // A timeout on the request would also end the stream, not only its opening.
            if !streaming {
                request.set_timeout(deadline.saturating_duration_since(Instant::now()));
            }
            let status = match timeout_at(deadline, send(self.servers.channel(turn), request)).await {
                Ok(Ok(response)) => return Ok(response.into_inner()),
                Ok(Err(status)) => status,
                Err(_) => Status::deadline_exceeded("no answer in time"),
            };
            let over = Instant::now() >= deadline;
            match status.code() {
                Code::DeadlineExceeded => return Err(self.servers.unreachable(&[(turn, status)])),
                // tonic reports a deadline of its own as CANCELLED.
                Code::Cancelled if over => return Err(self.servers.unreachable(&[(turn, status)])),
                _ if is_lost(&status) => {}
                _ => return Err(Failure::from(status)),
            }
            self.servers.pass(turn);
            told.push((turn, status));
            if told.len() < self.servers.count() && !over {
                continue;
            }
            // The same certificates would be rejected again, so this is not retried.
            let hopeless = told.iter().all(|(_, status)| tls::refusal(status).is_some());
            let pause = backoff.next();
            if hopeless || !self.repeats || Instant::now() + pause >= deadline {
                return Err(self.servers.unreachable(&told));
            }
            sleep(pause).await;
            told.clear();
        }
    }

    fn appliances(channel: Channel) -> AppliancesClient<Channel> {
        AppliancesClient::new(channel).max_decoding_message_size(MAX_ANSWER)
    }

    /// One appliance.
    pub(crate) async fn get(&self, appliance: v1::ApplianceRef) -> Result<v1::Appliance, Failure> {
        let request = v1::GetApplianceRequest { appliance: Some(appliance) };
        self.call(request, false, |c, r| async move { Self::appliances(c).get(r).await }).await
    }

    /// All appliances that match, from all pages.
    pub(crate) async fn list(&self, filter: v1::ApplianceFilter) -> Result<Vec<v1::Appliance>, Failure> {
        let mut all = Vec::new();
        let mut page_token = String::new();
        loop {
            let filter = Some(filter.clone());
            let request = v1::ListAppliancesRequest { page_size: PAGE, page_token, filter };
            let page = self.call(request, false, |c, r| async move { Self::appliances(c).list(r).await }).await?;
            all.extend(page.appliances);
            page_token = page.next_page_token;
            if page_token.is_empty() {
                return Ok(all);
            }
        }
    }

    /// The first appliances that match, at most `limit`.
    pub(crate) async fn list_some(
        &self,
        filter: v1::ApplianceFilter,
        limit: usize,
    ) -> Result<Vec<v1::Appliance>, Failure> {
        let page_size = i32::try_from(limit).unwrap_or(PAGE).min(PAGE);
        let request = v1::ListAppliancesRequest { page_size, filter: Some(filter), ..Default::default() };
        let page = self.call(request, false, |c, r| async move { Self::appliances(c).list(r).await }).await?;
        Ok(page.appliances)
    }

    /// One page of those that match, at most of `size`, from `token` on.
    pub(crate) async fn page(
        &self,
        filter: v1::ApplianceFilter,
        size: usize,
        token: String,
    ) -> Result<v1::ListAppliancesResponse, Failure> {
        let page_size = i32::try_from(size).unwrap_or(PAGE).min(PAGE);
        let request = v1::ListAppliancesRequest { page_size, page_token: token, filter: Some(filter) };
        self.call(request, false, |c, r| async move { Self::appliances(c).list(r).await }).await
    }

    /// Creates or changes an appliance.
    pub(crate) async fn update(
        &self,
        request: v1::UpdateApplianceRequest,
    ) -> Result<v1::UpdateApplianceResponse, Failure> {
        self.call(request, false, |c, r| async move { Self::appliances(c).update(r).await }).await
    }

    /// Asks for the deletion of an appliance.
    pub(crate) async fn delete(&self, request: v1::DeleteApplianceRequest) -> Result<v1::Appliance, Failure> {
        self.call(request, false, |c, r| async move { Self::appliances(c).delete(r).await }).await
    }

    /// Asks for new instances.
    pub(crate) async fn rebuild(&self, request: v1::RebuildApplianceRequest) -> Result<v1::Appliance, Failure> {
        self.call(request, false, |c, r| async move { Self::appliances(c).rebuild(r).await }).await
    }

    /// Asks for a probe of every instance.
    pub(crate) async fn check(&self, appliance: v1::ApplianceRef) -> Result<v1::Appliance, Failure> {
        let request = v1::CheckApplianceRequest { appliance: Some(appliance) };
        self.call(request, false, |c, r| async move { Self::appliances(c).check(r).await }).await
    }

    /// Why an appliance is on its worker, or on none.
    pub(crate) async fn explain(&self, appliance: v1::ApplianceRef) -> Result<v1::ExplainApplianceResponse, Failure> {
        let request = v1::ExplainApplianceRequest { appliance: Some(appliance) };
        self.call(request, false, |c, r| async move { Self::appliances(c).explain(r).await }).await
    }

    /// The appliances that match, then their changes.
    pub(crate) async fn watch(&self, filter: v1::ApplianceFilter) -> Result<Streaming<v1::ApplianceEvent>, Failure> {
        let request = v1::WatchAppliancesRequest { filter: Some(filter) };
        self.call(request, true, |c, r| async move { Self::appliances(c).watch(r).await }).await
    }

    /// All workers, from all pages.
    pub(crate) async fn workers(&self) -> Result<Vec<v1::Worker>, Failure> {
        let mut all = Vec::new();
        let mut page_token = String::new();
        loop {
            let request = v1::ListWorkersRequest { page_size: PAGE, page_token };
            let page = self.call(request, false, |c, r| async move { WorkersClient::new(c).list(r).await }).await?;
            all.extend(page.workers);
            page_token = page.next_page_token;
            if page_token.is_empty() {
                return Ok(all);
            }
        }
    }

    /// One worker.
    pub(crate) async fn worker(&self, id: &str) -> Result<v1::Worker, Failure> {
        let request = v1::GetWorkerRequest { id: id.to_owned() };
        self.call(request, false, |c, r| async move { WorkersClient::new(c).get(r).await }).await
    }

    /// All workers, then their changes.
    pub(crate) async fn watch_workers(&self) -> Result<Streaming<v1::WorkerEvent>, Failure> {
        let request = v1::WatchWorkersRequest {};
        self.call(request, true, |c, r| async move { WorkersClient::new(c).watch(r).await }).await
    }

    /// Ends the lease of this incarnation of a worker.
    pub(crate) async fn evict(&self, request: v1::EvictWorkerRequest) -> Result<v1::Worker, Failure> {
        self.call(request, false, |c, r| async move { WorkersClient::new(c).evict(r).await }).await
    }

    /// Has a worker that is gone forgotten.
    pub(crate) async fn forget(&self, id: &str, reason: &str) -> Result<(), Failure> {
        let request = v1::ForgetWorkerRequest { id: id.to_owned(), reason: reason.to_owned() };
        self.call(request, false, |c, r| async move { WorkersClient::new(c).forget(r).await }).await.map(drop)
    }

    /// Has a worker be given nothing new.
    pub(crate) async fn cordon(&self, request: v1::CordonWorkerRequest) -> Result<v1::Worker, Failure> {
        self.call(request, false, |c, r| async move { WorkersClient::new(c).cordon(r).await }).await
    }

    /// Takes that back.
    pub(crate) async fn uncordon(&self, request: v1::UncordonWorkerRequest) -> Result<v1::Worker, Failure> {
        self.call(request, false, |c, r| async move { WorkersClient::new(c).uncordon(r).await }).await
    }

    /// Has a worker give up what it has.
    pub(crate) async fn drain(&self, request: v1::DrainWorkerRequest) -> Result<v1::Worker, Failure> {
        self.call(request, false, |c, r| async move { WorkersClient::new(c).drain(r).await }).await
    }

    /// Takes that back.
    pub(crate) async fn undrain(&self, request: v1::UndrainWorkerRequest) -> Result<v1::Worker, Failure> {
        self.call(request, false, |c, r| async move { WorkersClient::new(c).undrain(r).await }).await
    }

    /// Gives a worker another weight than it publishes.
    pub(crate) async fn set_weight(&self, request: v1::SetWorkerWeightRequest) -> Result<v1::Worker, Failure> {
        self.call(request, false, |c, r| async move { WorkersClient::new(c).set_weight(r).await }).await
    }

    /// What would move under assumptions.
    pub(crate) async fn plan(&self, request: v1::PlanRequest) -> Result<v1::PlacementPlan, Failure> {
        self.call(request, false, |c, r| async move {
            PlacementClient::new(c).max_decoding_message_size(MAX_ANSWER).plan(r).await
        })
        .await
    }

    /// Has done what a plan shows.
    pub(crate) async fn apply_plan(&self, request: v1::ApplyPlanRequest) -> Result<(), Failure> {
        self.call(request, false, |c, r| async move { PlacementClient::new(c).apply(r).await }).await.map(drop)
    }

    /// Has an appliance be with one worker.
    pub(crate) async fn pin(&self, request: v1::PinRequest) -> Result<v1::Appliance, Failure> {
        self.call(request, false, |c, r| async move { PlacementClient::new(c).pin(r).await }).await
    }

    /// Takes that back.
    pub(crate) async fn unpin(&self, request: v1::UnpinRequest) -> Result<v1::Appliance, Failure> {
        self.call(request, false, |c, r| async move { PlacementClient::new(c).unpin(r).await }).await
    }

    /// Sets a budget of disruption.
    pub(crate) async fn set_budget(&self, request: v1::SetBudgetRequest) -> Result<v1::Budget, Failure> {
        self.call(request, false, |c, r| async move { BudgetsClient::new(c).set(r).await }).await
    }

    /// Takes a budget back.
    pub(crate) async fn clear_budget(&self, name: &str, reason: &str) -> Result<(), Failure> {
        let request = v1::ClearBudgetRequest { name: name.to_owned(), reason: reason.to_owned() };
        self.call(request, false, |c, r| async move { BudgetsClient::new(c).clear(r).await }).await.map(drop)
    }

    /// All budgets of disruption.
    pub(crate) async fn budgets(&self) -> Result<Vec<v1::Budget>, Failure> {
        let request = v1::ListBudgetsRequest {};
        let list = self.call(request, false, |c, r| async move { BudgetsClient::new(c).list(r).await }).await?;
        Ok(list.budgets)
    }

    /// Has a rebalance end with the moves that are under way; the one that runs when `id` is empty.
    pub(crate) async fn abort_rebalance(&self, id: &str, reason: &str) -> Result<v1::Rebalance, Failure> {
        let request = v1::AbortRebalanceRequest { id: id.to_owned(), reason: reason.to_owned() };
        self.call(request, false, |c, r| async move { RebalancesClient::new(c).abort(r).await }).await
    }

    /// Pauses placement, or moves alone.
    pub(crate) async fn pause(&self, reason: &str, moves_only: bool) -> Result<v1::PlacementState, Failure> {
        let request = v1::PausePlacementRequest { reason: reason.to_owned(), moves_only };
        self.call(request, false, |c, r| async move { PlacementClient::new(c).pause(r).await }).await
    }

    /// What processes log and sample by order.
    pub(crate) async fn telemetry(&self) -> Result<v1::TelemetryState, Failure> {
        let request = v1::GetTelemetryRequest {};
        self.call(request, false, |c, r| async move { TelemetryClient::new(c).get(r).await }).await
    }

    /// Changes what processes log.
    pub(crate) async fn set_log_filter(&self, request: v1::SetLogFilterRequest) -> Result<v1::TelemetryState, Failure> {
        self.call(request, false, |c, r| async move { TelemetryClient::new(c).set_log_filter(r).await }).await
    }

    /// Changes what processes sample.
    pub(crate) async fn set_sampling(&self, request: v1::SetSamplingRequest) -> Result<v1::TelemetryState, Failure> {
        self.call(request, false, |c, r| async move { TelemetryClient::new(c).set_sampling(r).await }).await
    }

    /// Has processes read their configuration again.
    pub(crate) async fn reload_config(
        &self,
        request: v1::ReloadConfigRequest,
    ) -> Result<v1::ReloadConfigResponse, Failure> {
        self.call(request, false, |c, r| async move { ClusterClient::new(c).reload_config(r).await }).await
    }

    /// Resumes placement after a pause or a freeze.
    pub(crate) async fn resume(&self) -> Result<v1::PlacementState, Failure> {
        let request = v1::ResumePlacementRequest {};
        self.call(request, false, |c, r| async move { PlacementClient::new(c).resume(r).await }).await
    }

    /// Frees an appliance from its host.
    pub(crate) async fn unbind(&self, request: v1::UnbindRequest) -> Result<v1::UnbindResponse, Failure> {
        self.call(request, false, |c, r| async move { PlacementClient::new(c).unbind(r).await }).await
    }

    /// How far a debug mode has taken hold.
    pub(crate) async fn debug_mode(&self, id: &str) -> Result<v1::DebugMode, Failure> {
        let request = v1::GetDebugModeRequest { id: id.to_owned() };
        self.call(request, false, |c, r| async move { DebugClient::new(c).get(r).await }).await
    }

    /// Sets a debug mode, or waits on for one that is set.
    pub(crate) async fn set_debug_mode(&self, request: v1::SetDebugModeRequest) -> Result<v1::DebugMode, Failure> {
        self.call(request, false, |c, r| async move { DebugClient::new(c).set(r).await }).await
    }

    /// Clears a debug mode.
    pub(crate) async fn clear_debug_mode(&self, id: &str, reason: &str) -> Result<(), Failure> {
        let request = v1::ClearDebugModeRequest { id: id.to_owned(), reason: reason.to_owned() };
        self.call(request, false, |c, r| async move { DebugClient::new(c).clear(r).await }).await.map(drop)
    }

    /// All debug modes.
    pub(crate) async fn debug_modes(&self) -> Result<Vec<v1::DebugMode>, Failure> {
        let mut all = Vec::new();
        let mut page_token = String::new();
        loop {
            let request = v1::ListDebugModesRequest { page_size: 0, page_token };
            let page = self.call(request, false, |c, r| async move { DebugClient::new(c).list(r).await }).await?;
            all.extend(page.modes);
            page_token = page.next_page_token;
            if page_token.is_empty() {
                return Ok(all);
            }
        }
    }

    /// What would have been done to an appliance.
    pub(crate) async fn would_have(&self, appliance: v1::ApplianceRef) -> Result<Vec<v1::WithheldStep>, Failure> {
        let request = v1::WouldHaveRequest { appliance: Some(appliance) };
        let answer = self.call(request, false, |c, r| async move { DebugClient::new(c).would_have(r).await }).await?;
        Ok(answer.steps)
    }

    /// Number of appliances that match.
    pub(crate) async fn count(&self, filter: v1::ApplianceFilter) -> Result<u64, Failure> {
        let request = v1::ListAppliancesRequest { page_size: 1, page_token: String::new(), filter: Some(filter) };
        let page = self.call(request, false, |c, r| async move { AppliancesClient::new(c).list(r).await }).await?;
        Ok(page.total_size)
    }

    /// Starts a rollout.
    pub(crate) async fn start_rollout(&self, request: v1::StartRolloutRequest) -> Result<v1::Rollout, Failure> {
        self.call(request, false, |c, r| async move { RolloutsClient::new(c).start(r).await }).await
    }

    /// How far a rollout is.
    pub(crate) async fn rollout(&self, id: &str) -> Result<v1::Rollout, Failure> {
        let request = v1::GetRolloutRequest { id: id.to_owned() };
        self.call(request, false, |c, r| async move { RolloutsClient::new(c).get(r).await }).await
    }

    /// All rollouts, newest first.
    pub(crate) async fn rollouts(&self) -> Result<Vec<v1::Rollout>, Failure> {
        let request = v1::ListRolloutsRequest {};
        let answer = self.call(request, false, |c, r| async move { RolloutsClient::new(c).list(r).await }).await?;
        Ok(answer.rollouts)
    }

    /// Holds a rollout, has it go on, or ends it.
    pub(crate) async fn order_rollout(
        &self,
        id: &str,
        order: RolloutOrder,
        reason: &str,
    ) -> Result<v1::Rollout, Failure> {
        let request = v1::OrderRolloutRequest { id: id.to_owned(), reason: reason.to_owned() };
        self.call(request, false, move |c, r| async move {
            let mut client = RolloutsClient::new(c);
            match order {
                RolloutOrder::Pause => client.pause(r).await,
                RolloutOrder::Resume => client.resume(r).await,
                RolloutOrder::Abort => client.abort(r).await,
                RolloutOrder::Rollback => client.rollback(r).await,
            }
        })
        .await
    }

    /// Which worker a key or an appliance belongs to.
    pub(crate) async fn locate(&self, request: v1::LocateRequest) -> Result<v1::LocateResponse, Failure> {
        self.call(request, false, |c, r| async move { PlacementClient::new(c).locate(r).await }).await
    }

    /// The ring.
    pub(crate) async fn ring(&self, points: bool) -> Result<v1::Ring, Failure> {
        let request = v1::GetRingRequest { points };
        self.call(request, false, |c, r| async move {
            PlacementClient::new(c).max_decoding_message_size(MAX_ANSWER).get_ring(r).await
        })
        .await
    }

    /// The newest rebalances, newest first.
    pub(crate) async fn rebalances(&self, limit: usize) -> Result<Vec<v1::Rebalance>, Failure> {
        let mut all = Vec::new();
        let mut page_token = String::new();
        loop {
            let page_size = i32::try_from(limit.saturating_sub(all.len())).unwrap_or(PAGE).min(PAGE);
            let request = v1::ListRebalancesRequest { page_size, page_token };
            let page = self.call(request, false, |c, r| async move { RebalancesClient::new(c).list(r).await }).await?;
            all.extend(page.rebalances);
            page_token = page.next_page_token;
            if page_token.is_empty() || all.len() >= limit {
                all.truncate(limit);
                return Ok(all);
            }
        }
    }

    /// One rebalance with all its moves.
    pub(crate) async fn whole_rebalance(&self, id: &str) -> Result<v1::Rebalance, Failure> {
        let mut whole = self.rebalance(id).await?;
        while !whole.next_page_token.is_empty() {
            let page_token = std::mem::take(&mut whole.next_page_token);
            let request = v1::GetRebalanceRequest { id: id.to_owned(), page_size: 0, page_token };
            let page = self.call(request, false, |c, r| async move { RebalancesClient::new(c).get(r).await }).await?;
            whole.r#move.extend(page.r#move);
            whole.next_page_token = page.next_page_token;
        }
        Ok(whole)
    }

    /// One rebalance with its moves, of many the first.
    pub(crate) async fn rebalance(&self, id: &str) -> Result<v1::Rebalance, Failure> {
        let request = v1::GetRebalanceRequest { id: id.to_owned(), ..v1::GetRebalanceRequest::default() };
        self.call(request, false, |c, r| async move { RebalancesClient::new(c).get(r).await }).await
    }

    /// Rebalances as they begin, go on and end; with `summary` without their moves.
    pub(crate) async fn watch_rebalances(&self, summary: bool) -> Result<Streaming<v1::Rebalance>, Failure> {
        let request = v1::WatchRebalancesRequest { summary };
        self.call(request, true, |c, r| async move { RebalancesClient::new(c).watch(r).await }).await
    }

    /// The newest events of the audit trail that match, newest first.
    pub(crate) async fn audit(&self, filter: &v1::AuditFilter, limit: usize) -> Result<Vec<v1::AuditEvent>, Failure> {
        let mut all = Vec::new();
        let mut page_token = String::new();
        loop {
            let page_size = i32::try_from(limit.saturating_sub(all.len())).unwrap_or(PAGE).min(PAGE);
            let request = v1::ListAuditRequest { page_size, page_token, filter: Some(filter.clone()) };
            let page = self.call(request, false, |c, r| async move { AuditClient::new(c).list(r).await }).await?;
            all.extend(page.events);
            page_token = page.next_page_token;
            if page_token.is_empty() || all.len() >= limit {
                all.truncate(limit);
                return Ok(all);
            }
        }
    }

    /// Events of the audit trail that match, as they come.
    pub(crate) async fn watch_audit(&self, filter: v1::AuditFilter) -> Result<Streaming<v1::AuditEvent>, Failure> {
        let request = v1::WatchAuditRequest { filter: Some(filter) };
        self.call(request, true, |c, r| async move { AuditClient::new(c).watch(r).await }).await
    }

    /// What instances have printed.
    pub(crate) async fn logs(&self, request: v1::LogsRequest) -> Result<Streaming<v1::LogChunk>, Failure> {
        self.call(request, true, |c, r| async move { AppliancesClient::new(c).logs(r).await }).await
    }

    /// Runs a command in an instance. Called once, by the server that answered last: nobody knows of a call that broke off what became of it.
    pub(crate) async fn exec(
        &self,
        requests: impl Stream<Item = v1::ExecRequest> + Send + 'static,
    ) -> Result<Streaming<v1::ExecResponse>, Failure> {
        let turn = self.servers.turn();
        let request = self.request(requests)?;
        let mut client = AppliancesClient::new(self.servers.channel(turn));
        let answer = timeout_at(Instant::now() + CALL_TIMEOUT, client.exec(request)).await;
        let answer = answer.unwrap_or_else(|_| Err(Status::deadline_exceeded("no answer in time")));
        answer.map(Response::into_inner).map_err(Failure::from)
    }

    /// The newest runs of workers that match, newest first.
    pub(crate) async fn runs(&self, filter: &v1::RunFilter, limit: usize) -> Result<Vec<v1::Run>, Failure> {
        let mut all = Vec::new();
        let mut page_token = String::new();
        loop {
            let page_size = i32::try_from(limit.saturating_sub(all.len())).unwrap_or(PAGE).min(PAGE);
            let request = v1::ListRunsRequest { page_size, page_token, filter: Some(filter.clone()) };
            let page = self.call(request, false, |c, r| async move { RunsClient::new(c).list(r).await }).await?;
            all.extend(page.runs);
            page_token = page.next_page_token;
            if page_token.is_empty() || all.len() >= limit {
                all.truncate(limit);
                return Ok(all);
            }
        }
    }

    /// Runs of workers that match, as they end.
    pub(crate) async fn watch_runs(&self, filter: v1::RunFilter) -> Result<Streaming<v1::Run>, Failure> {
        let request = v1::WatchRunsRequest { filter: Some(filter) };
        self.call(request, true, |c, r| async move { RunsClient::new(c).watch(r).await }).await
    }

    /// Which cluster this is; `None` of a server of a version that cannot say it.
    ///
    /// # Errors
    /// The call failed, or it is not the one that is meant.
    pub(crate) async fn identify(&self) -> Result<Option<v1::ClusterIdentity>, Failure> {
        let request = v1::IdentifyRequest {};
        match self.call(request, false, |c, r| async move { ClusterClient::new(c).identify(r).await }).await {
            Ok(identity) => Ok(Some(identity)),
            Err(failure) if failure.code == Some(Code::Unimplemented) => match &self.meant {
                None => Ok(None),
                Some(meant) => Err(Failure::failed(format!(
                    "{} does not say which cluster it is of, and {meant} is meant: it is of an earlier version",
                    self.address()
                ))),
            },
            Err(failure) => Err(failure),
        }
    }

    /// State of the cluster.
    pub(crate) async fn status(&self) -> Result<v1::ClusterStatus, Failure> {
        self.call(v1::ClusterStatusRequest {}, false, |c, r| async move { ClusterClient::new(c).status(r).await }).await
    }

    /// State of the cluster, whenever it differs.
    pub(crate) async fn watch_cluster(&self) -> Result<Streaming<v1::ClusterStatus>, Failure> {
        let request = v1::WatchClusterRequest {};
        self.call(request, true, |c, r| async move { ClusterClient::new(c).watch(r).await }).await
    }

    /// Whether the server itself is the leader; this call is never forwarded.
    pub(crate) async fn leads(&self) -> Result<bool, Failure> {
        let request = tonic_health::pb::HealthCheckRequest { service: "rug.leader".to_owned() };
        let answer = self.call(request, false, |c, r| async move { HealthClient::new(c).check(r).await }).await?;
        Ok(answer.status() == ServingStatus::Serving)
    }

    /// Whether the server reports that it serves.
    pub(crate) async fn serves(&self) -> Result<bool, Failure> {
        let request = tonic_health::pb::HealthCheckRequest::default();
        let answer = self.call(request, false, |c, r| async move { HealthClient::new(c).check(r).await }).await?;
        Ok(answer.status() == ServingStatus::Serving)
    }
}

/// The working directory.
pub(crate) fn working_folder() -> PathBuf {
    std::env::current_dir().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use runtime::tls::testing::{self, Authority};

    use super::*;
    use crate::error::Exit;

    #[test]
    fn pauses_grow_to_a_second() {
        let mut backoff = Backoff::new();
        let pauses: Vec<_> = (0..20).map(|_| backoff.next()).collect();
        assert!(pauses[0] <= Duration::from_millis(50), "{pauses:?}");
        assert!(pauses[19] >= Duration::from_millis(500) && pauses[19] <= Duration::from_secs(1), "{pauses:?}");
    }

    #[tokio::test]
    async fn an_unreachable_server_is_reported_within_the_timeout() {
        let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("its address");
        let client = AdminClient::new(&format!("http://{free}"), Duration::from_secs(2)).expect("an address");
        let started = Instant::now();
        let failure = client.status().await.expect_err("nobody listens");
        assert_eq!(failure.exit, Exit::Unreachable);
        assert!(failure.to_string().contains("refused"), "{failure}");
        assert!(started.elapsed() < Duration::from_secs(20));
    }

    #[tokio::test]
    async fn a_server_that_never_answers_is_reported_within_the_timeout() {
        let mute = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = format!("http://{}", mute.local_addr().expect("its address"));
        let client = AdminClient::new(&address, Duration::from_millis(300)).expect("an address");
        assert_eq!(client.status().await.expect_err("no answer").exit, Exit::Unreachable);
    }

    /// A server with TLS that reports that it serves.
    async fn healthy(ca: &Authority) -> String {
        let (connections, address) =
            testing::serve(ca, &ca.issue("coordinator-1", &["127.0.0.1", "rug://coordinator/coordinator-1"])).await;
        let (reporter, health) = tonic_health::server::health_reporter();
        reporter.set_service_status("", tonic_health::ServingStatus::Serving).await;
        let server = tonic::transport::Server::builder().add_service(health);
        tokio::spawn(server.serve_with_incoming(tokio_stream::wrappers::ReceiverStream::new(connections)));
        address
    }

    #[tokio::test]
    async fn a_server_with_tls_accepts_valid_certificates() {
        let ca = Authority::new("ca");
        let address = healthy(&ca).await;
        let dir = tempfile::tempdir().expect("a folder");
        let tls = ClientTls::load(&ca.issue("operator", &[]).write(dir.path(), &ca)).expect("good files");
        let client =
            AdminClient::of(&[&address], CALL_TIMEOUT, tls.as_ref(), TrustedServer::OwnOrRoot).expect("an address");
        assert!(client.serves().await.expect("it answers"));
    }

    #[tokio::test]
    async fn a_rejected_certificate_is_reported_without_retries() {
        let (ca, other) = (Authority::new("ca"), Authority::new("other"));
        let address = healthy(&ca).await;
        let dir = tempfile::tempdir().expect("a folder");
        let tls = ClientTls::load(&other.issue("operator", &[]).write(dir.path(), &ca)).expect("good files");
        // Long enough that only a call without retries returns within the time of the test.
        let client = AdminClient::of(&[&address], Duration::from_secs(3600), tls.as_ref(), TrustedServer::OwnOrRoot)
            .expect("an address");
        let failure = tokio::time::timeout(Duration::from_secs(30), client.serves()).await.expect("at once");
        let failure = failure.expect_err("refused");
        assert_eq!(failure.exit, Exit::Unreachable);
        assert!(failure.to_string().contains("refuses this side's certificate"), "{failure}");
        assert!(failure.to_string().ends_with("does not trust the CA that issued it"), "{failure}");

        let plain = AdminClient::new(&address.replace("https", "http"), Duration::from_secs(3600)).expect("an address");
        let failure = tokio::time::timeout(Duration::from_secs(30), plain.serves()).await.expect("at once");
        assert!(failure.expect_err("refused").to_string().ends_with("use https://"));
    }

    #[test]
    fn address_and_certificates_must_match() {
        let ca = Authority::new("ca");
        let dir = tempfile::tempdir().expect("a folder");
        let tls = ClientTls::load(&ca.issue("operator", &[]).write(dir.path(), &ca)).expect("good files");
        let refused = |address, tls| {
            AdminClient::of(&[address], CALL_TIMEOUT, tls, TrustedServer::OwnOrRoot).expect_err("refused")
        };
        let failure = refused("https://h:1", None);
        assert!(failure.exit == Exit::Usage && failure.to_string().contains("RUG_TLS_CA"), "{failure}");
        let failure = refused("http://h:1", tls.as_ref());
        assert!(failure.exit == Exit::Usage && failure.to_string().contains("write https://"), "{failure}");
    }
}
