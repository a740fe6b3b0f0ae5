//! One call: its deadline, its caller, its request id, and the way to the runner and back.

use std::sync::Arc;
use std::time::Duration;

use common::ApplianceId;
use common::appliance::FieldViolation;
use prost::Message;
use proto::admin::v1 as wire;
use proto::convert::admin::{Target, target_from_wire};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout_at};
use tonic::metadata::MetadataMap;
use tonic::{Request, Status};
use uuid::Uuid;

use super::{PeerInfo, forward, status};
use crate::api::{Change, Changed, Command, CommandError, History, MAX_REASON, Mutation, Operator, Reply, RequestKey};
use crate::catalog::{Catalog, Entry};

/// How long a call waits for the runner when its caller sets no deadline.
pub(super) const DEFAULT: Duration = Duration::from_secs(30);
/// Longest wait for the runner, whatever the caller allows.
pub(super) const LONGEST: Duration = Duration::from_secs(600);
/// Most that is kept of a caller's deadline for the way back.
const MARGIN: Duration = Duration::from_millis(250);
/// Largest message a client of the other side's default settings takes, less room for what surrounds a page.
pub(super) const MAX_PAGE_BYTES: usize = 3 * 1024 * 1024;

/// What the services share.
#[derive(Clone)]
pub(super) struct Caller {
    pub(super) catalog: Arc<Catalog>,
    commands: mpsc::Sender<Command>,
    pub(super) history: Arc<dyn History>,
}

/// What is known of a call besides its message.
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

    /// Asks the runner and waits for its answer, at most until the deadline.
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

    /// Has a change made, waiting its turn behind another one of the same appliance.
    pub(super) async fn change(
        &self,
        context: CallContext,
        change: Change,
        validate_only: bool,
        request: Option<RequestKey>,
    ) -> Result<Changed, Status> {
        let mutation = Arc::new(Mutation { change, validate_only, request, actor: context.actor.clone() });
        loop {
            // Made before the command is sent, so that no change that settles in between is missed.
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

    /// The appliance a request means.
    pub(super) fn find(&self, reference: Option<wire::ApplianceRef>) -> Result<Arc<Entry>, Status> {
        let target = target(reference)?;
        self.catalog.get(&target).ok_or_else(|| status::not_found("appliance", &target.to_string()))
    }
}

/// Reads which appliance a request means.
pub(super) fn target(reference: Option<wire::ApplianceRef>) -> Result<Target, Status> {
    target_from_wire(reference, "appliance").map_err(|v| status::invalid(&v))
}

/// Reads an operator's reason; control characters would reach terminals and logs.
pub(super) fn operator(context: &CallContext, reason: String) -> Result<Operator, Status> {
    if reason.len() > MAX_REASON || reason.contains(char::is_control) {
        let problem = format!("has at most {MAX_REASON} bytes and no control characters");
        return Err(status::invalid(&[FieldViolation::new("reason", problem)]));
    }
    Ok(Operator { reason, actor: context.actor.clone() })
}

/// An identity nobody has.
pub(super) fn fresh_id() -> ApplianceId {
    ApplianceId::new(Uuid::new_v4())
}

/// How long a call may wait for the runner. A little less than its caller allows: the transport would answer
/// `CANCELLED` at that very moment, and DEADLINE_EXCEEDED tells the caller more.
fn allowed(metadata: &MetadataMap) -> Duration {
    let given = metadata.get("grpc-timeout").and_then(|v| v.to_str().ok()).and_then(parse_timeout);
    given.map_or(DEFAULT, |d| (d - (d / 10).min(MARGIN)).min(LONGEST))
}

/// Reads `grpc-timeout`: up to 8 digits and a unit.
pub(super) fn parse_timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let n: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(n * 3600),
        "M" => Duration::from_secs(n * 60),
        "S" => Duration::from_secs(n),
        "m" => Duration::from_millis(n),
        "u" => Duration::from_micros(n),
        "n" => Duration::from_nanos(n),
        _ => return None,
    })
}

/// Reads a request id and makes the digest of the call's content. `content` is asked only when there is an id.
pub(super) fn request_key(id: &str, content: impl FnOnce() -> Vec<u8>) -> Result<Option<RequestKey>, Status> {
    if id.is_empty() {
        return Ok(None);
    }
    let id = Uuid::parse_str(id)
        .map_err(|e| status::invalid(&[FieldViolation::new("request_id", format!("is not a UUID: {e}"))]))?;
    let digest = *Uuid::new_v5(&Uuid::NAMESPACE_OID, &content()).as_bytes();
    Ok(Some(RequestKey { id, digest }))
}

/// Bytes that are equal for equal messages: maps are encoded in no order, so that they are taken out of the appliance
/// and put behind the rest, sorted.
pub(super) fn canonical<M: Message>(
    method: &str,
    mut message: M,
    appliance: impl FnOnce(&mut M) -> Option<&mut wire::Appliance>,
) -> Vec<u8> {
    let mut maps = Vec::new();
    if let Some(appliance) = appliance(&mut message) {
        maps.push(std::mem::take(&mut appliance.labels));
        if let Some(wire::spec::Kind::Custom(custom)) = appliance.spec.as_mut().and_then(|s| s.kind.as_mut()) {
            maps.push(std::mem::take(&mut custom.env));
        }
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
    fn timeouts_are_read_as_grpc_writes_them() {
        for (text, timeout) in [
            ("5S", Some(Duration::from_secs(5))),
            ("100m", Some(Duration::from_millis(100))),
            ("1H", Some(Duration::from_secs(3600))),
            ("", None),
            ("S", None),
            ("123456789S", None),
            ("-1S", None),
            ("5ä", None),
        ] {
            assert_eq!(parse_timeout(text), timeout, "{text:?}");
        }
    }

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
