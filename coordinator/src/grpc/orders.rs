//! A coordinator that stands by follows the orders of the leader.

use std::sync::Arc;
use std::time::Duration;

use common::CoordinatorId;
use coordination::Leader;
use proto::admin::v1::GetTelemetryRequest;
use proto::admin::v1::telemetry_client::TelemetryClient;
use proto::convert::telemetry::orders_from_wire;
use runtime::channel::Target;
use runtime::tls::{self, ClientTls};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::Request;
use tonic::transport::Channel;
use tracing::debug;

use super::ServingRole;
use crate::tuning::Tuning;

/// Time between two questions: how late another coordinator follows.
const EVERY: Duration = Duration::from_secs(3);
/// How long an answer may take.
const ANSWER: Duration = Duration::from_secs(2);

/// Follows whoever leads, as the coordinator `own`, until `stopping`.
pub async fn follow_orders(
    tuning: Arc<Tuning>,
    own: CoordinatorId,
    role: watch::Receiver<ServingRole>,
    tls: Option<ClientTls>,
    stopping: CancellationToken,
) {
    let mut connection: Option<(String, Channel)> = None;
    while stopping.run_until_cancelled(tokio::time::sleep(EVERY)).await.is_some() {
        let ServingRole::Standby(Some(leader)) = role.borrow().clone() else { continue };
        if leader.id == own || leader.address.is_empty() {
            continue;
        }
        if connection.as_ref().is_none_or(|(address, _)| *address != leader.address) {
            connection = connect(&leader, tls.as_ref());
        }
        let Some((_, channel)) = &connection else { continue };
        let mut request = Request::new(GetTelemetryRequest {});
        request.set_timeout(ANSWER);
        let asked = TelemetryClient::new(channel.clone()).get(request).await;
        // One of an earlier version has no orders.
        let orders = asked.map_err(|status| status.message().to_owned());
        match orders.and_then(|state| orders_from_wire(state.into_inner())) {
            Ok(orders) => tuning.take_over(orders),
            Err(problem) => debug!(leader = %leader.id, "orders about logs and traces are not known: {problem}"),
        }
    }
}

fn connect(leader: &Leader, tls: Option<&ClientTls>) -> Option<(String, Channel)> {
    match Target::new(&leader.address, tls) {
        Ok(target) => {
            let channel = target.with(|endpoint| endpoint.connect_timeout(ANSWER)).connect_lazy();
            Some((leader.address.clone(), channel))
        }
        Err(error) => {
            debug!(leader = %leader.id, "orders about logs and traces are not known: {}", tls::chain(&error));
            None
        }
    }
}
