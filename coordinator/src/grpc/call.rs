//! One call: its deadline, its caller, its request id, and sending its command to the leader.

use std::sync::Arc;
use std::time::Duration;

use common::ApplianceId;
use common::appliance::FieldViolation;
use common::change::ApplianceTarget;
use prost::Message;
use proto::admin::v1 as wire;
use proto::convert::admin::target_from_wire;
use proto::convert::take_maps;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout_at};
use tonic::metadata::MetadataMap;
use tonic::{Request, Status};
use uuid::Uuid;

use super::deadline::{DEFAULT, LONGEST, parse_timeout};
use super::{PeerInfo, forward, status};
use crate::catalog::Catalog;
use crate::commands::{Change, Changed, Command, CommandError, MAX_REASON, Mutation, Operator, Reply, RequestKey};
use crate::history::History;
use crate::views::CatalogEntry;

/// Largest part of a caller's deadline that is reserved for the response.
const MARGIN: Duration = Duration::from_millis(250);
/// Largest message that clients with default settings accept, less the overhead around a page.
pub(super) const MAX_PAGE_BYTES: usize = 3 * 1024 * 1024;

/// What the services share.
#[derive(Clone)]
pub(super) struct Caller {
    pub(super) catalog: Arc<Catalog>,
    commands: mpsc::Sender<Command>,
    pub(super) history: Arc<dyn History>,
}

/// Metadata of a call.
pub(super) struct CallContext {
    deadline: Instant,
    actor: String,
}

impl CallContext {
    pub(super) fn of<T>(request: &Request<T>) -> Self {
        let actor = forward::actor(request.extensions().get::<PeerInfo>(), request.metadata().as_ref());
        Self { deadline: Instant::now() + allowed(request.metadata()), actor }
    }
}

impl Caller {
    pub(super) fn new(catalog: Arc<Catalog>, commands: mpsc::Sender<Command>, history: Arc<dyn History>) -> Self {
        Self { catalog, commands, history }
    }

    /// Sends a command to the leader and waits for its result until the deadline.
    pub(super) async fn ask<T>(
        &self,
        context: &CallContext,
        command: impl FnOnce(Reply<T>) -> Command,
    ) -> Result<Result<T, CommandError>, Status> {
        let (reply, answer) = oneshot::channel();
        let asked = async {
            self.commands.send(command(reply)).await.map_err(|_| status::from_command(&CommandError::Stopping))?;
            answer.await.map_err(|_| status::unanswered())
        };
        timeout_at(context.deadline, asked).await.map_err(|_| status::deadline())?
    }

    /// Executes a change; it is retried after a concurrent change of the same appliance.
    pub(super) async fn change(
        &self,
        context: CallContext,
        change: Change,
        validate_only: bool,
        request: Option<RequestKey>,
    ) -> Result<Changed, Status> {
        let mutation = Arc::new(Mutation { change, validate_only, request, actor: context.actor.clone() });
        loop {
            // Subscribed before the command is sent, so that no change that ends in between is missed.
            let settled = self.catalog.settled();
            let mutation = Arc::clone(&mutation);
            match self.ask(&context, |reply| Command::Change { mutation, reply }).await? {
                Ok(changed) => return Ok(changed),
                Err(CommandError::Contended) => {
                    timeout_at(context.deadline, settled).await.map_err(|_| status::deadline())?;
                }
                Err(error) => return Err(status::from_command(&error)),
            }
        }
    }

    /// The appliance a request refers to.
    pub(super) fn find(&self, reference: Option<wire::ApplianceRef>) -> Result<Arc<CatalogEntry>, Status> {
        let target = target(reference)?;
        self.catalog.get(&target).ok_or_else(|| status::not_found("appliance", &target.to_string()))
    }
}

/// Parses the reference to an appliance.
pub(super) fn target(reference: Option<wire::ApplianceRef>) -> Result<ApplianceTarget, Status> {
    target_from_wire(reference, "appliance").map_err(|v| status::invalid(&v))
}

/// Parses an operator's reason; control characters would reach terminals and logs.
pub(super) fn operator(context: &CallContext, reason: String) -> Result<Operator, Status> {
    if reason.len() > MAX_REASON || reason.contains(char::is_control) {
        let problem = format!("has at most {MAX_REASON} bytes and no control characters");
        return Err(status::invalid(&[FieldViolation::new("reason", problem)]));
    }
    Ok(Operator { reason, actor: context.actor.clone() })
}

/// An id that no appliance has.
pub(super) fn fresh_id() -> ApplianceId {
    ApplianceId::new(Uuid::new_v4())
}

/// How long a call may wait for the leader. A little less than its caller allows: at the deadline the transport would
/// answer `CANCELLED`, and DEADLINE_EXCEEDED is more informative.
fn allowed(metadata: &MetadataMap) -> Duration {
    let given = metadata.get("grpc-timeout").and_then(|v| v.to_str().ok()).and_then(parse_timeout);
    given.map_or(DEFAULT, |d| (d - (d / 10).min(MARGIN)).min(LONGEST))
}

/// Parses a request id and computes the digest of the call's content. `content` is only called when there is an id.
pub(super) fn request_key(id: &str, content: impl FnOnce() -> Vec<u8>) -> Result<Option<RequestKey>, Status> {
    if id.is_empty() {
        return Ok(None);
    }
    let id = Uuid::parse_str(id)
        .map_err(|e| status::invalid(&[FieldViolation::new("request_id", format!("is not a UUID: {e}"))]))?;
    let digest = *Uuid::new_v5(&Uuid::NAMESPACE_OID, &content()).as_bytes();
    Ok(Some(RequestKey { id, digest }))
}

/// Canonical encoding of a message: maps have no order on the wire, so they are taken out of the appliance and
/// appended, sorted.
pub(super) fn canonical<M: Message>(
    method: &str,
    mut message: M,
    appliance: impl FnOnce(&mut M) -> Option<&mut wire::Appliance>,
) -> Vec<u8> {
    let mut maps = Vec::new();
    if let Some(appliance) = appliance(&mut message) {
        maps.push(std::mem::take(&mut appliance.labels));
        maps.extend(appliance.spec.as_mut().and_then(take_maps));
    }
    let mut bytes = method.as_bytes().to_vec();
    bytes.push(0);
    bytes.extend(message.encode_to_vec());
    for map in maps {
        let mut pairs: Vec<_> = map.into_iter().collect();
        pairs.sort_unstable();
        for text in pairs.iter().flat_map(|(k, v)| [k, v]) {
            bytes.extend((text.len() as u64).to_be_bytes());
            bytes.extend(text.as_bytes());
        }
        bytes.push(0);
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_digest_of_a_call_does_not_depend_on_the_order_of_maps() {
        let create = |labels: &[(&str, &str)]| {
            let labels = labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
            let appliance = wire::Appliance { name: "a".into(), labels, ..Default::default() };
            let message = wire::CreateApplianceRequest { appliance: Some(appliance), ..Default::default() };
            canonical("Create", message, |m| m.appliance.as_mut())
        };
        let pairs = [("a", "1"), ("b", "2"), ("c", "3"), ("d", "4")];
        let mut turned = pairs;
        turned.reverse();
        assert_eq!(create(&pairs), create(&turned));
        assert_ne!(create(&pairs), create(&pairs[1..]));
    }
}
