//! One call: its deadline, its caller, and the canonical content that its request id stands for.

use std::sync::Arc;
use std::time::Duration;

use common::appliance::FieldViolation;
use common::change::ApplianceTarget;
use prost::Message;
use proto::admin::v1 as wire;
use proto::convert::admin::target_from_wire;
use proto::convert::take_maps;
use tokio::time::Instant;
use tonic::metadata::MetadataMap;
use tonic::{Request, Status};
use uuid::Uuid;

use super::deadline::{DEFAULT, LONGEST, parse_timeout};
use super::{Access, access_of, status};
use crate::catalog::Catalog;
use crate::commands::{CommandContext, Commands, Reason, RequestKey};
use crate::history::History;
use crate::views::CatalogEntry;

/// Largest part of a caller's deadline that is reserved for the response.
const MARGIN: Duration = Duration::from_millis(250);
/// Bytes of a page, about: what clients with default settings accept, and little enough to be kept until it is read.
pub(super) const MAX_PAGE_BYTES: usize = 1 << 20;

/// What the services share.
#[derive(Clone)]
pub(super) struct Caller {
    pub(super) catalog: Arc<Catalog>,
    pub(super) commands: Commands,
    pub(super) history: Arc<dyn History>,
    /// How addresses of traces are made; empty when nobody said.
    pub(super) trace_url: Arc<str>,
}

impl Caller {
    /// The appliance a request refers to. One that the caller may not see is one that does not exist; a tenant that the
    /// caller names and may not use is refused.
    pub(super) fn find(
        &self,
        access: &Access,
        reference: Option<wire::ApplianceRef>,
    ) -> Result<Arc<CatalogEntry>, Status> {
        let target = target(reference)?;
        self.reach(access, &target)?.ok_or_else(|| status::not_found("appliance", &target.to_string()))
    }

    /// The same, for changes: the appliance may be missing, or may just be made, which is for the leader to say.
    pub(super) fn check_target(&self, access: &Access, target: &ApplianceTarget) -> Result<(), Status> {
        match self.reach(access, target)? {
            None if self.catalog.get(target).is_some() => Err(status::not_found("appliance", &target.to_string())),
            _ => Ok(()),
        }
    }

    /// The appliance, if there is one within the call's scope.
    fn reach(&self, access: &Access, target: &ApplianceTarget) -> Result<Option<Arc<CatalogEntry>>, Status> {
        if let ApplianceTarget::Name(tenant, _) = target {
            access.check_tenant(tenant)?;
        }
        Ok(self.catalog.get(target).filter(|entry| access.scope().contains(&entry.record.tenant)))
    }
}

/// Who makes a call, and what it may be about.
pub(super) fn access<T>(request: &Request<T>) -> Result<Access, Status> {
    access_of(request.extensions()).cloned()
}

/// Who makes a call, and until when it waits.
pub(super) fn context<T>(request: &Request<T>) -> Result<CommandContext, Status> {
    let actor = access_of(request.extensions())?.actor().to_owned();
    Ok(CommandContext { deadline: Instant::now() + allowed(request.metadata()), actor })
}

/// Parses the reference to an appliance.
pub(super) fn target(reference: Option<wire::ApplianceRef>) -> Result<ApplianceTarget, Status> {
    target_from_wire(reference, "appliance").map_err(|v| status::invalid(&v))
}

/// Parses an operator's reason.
pub(super) fn reason(text: String) -> Result<Reason, Status> {
    Reason::new(text).map_err(|violation| status::invalid(&[violation]))
}

/// How long a call may wait for the leader. A little less than its caller allows: at the deadline the transport would
/// answer `CANCELLED`, and DEADLINE_EXCEEDED is more informative.
fn allowed(metadata: &MetadataMap) -> Duration {
    let given = metadata.get("grpc-timeout").and_then(|v| v.to_str().ok()).and_then(parse_timeout);
    given.map_or(DEFAULT, |d| (d - (d / 10).min(MARGIN)).min(LONGEST))
}

/// Parses a request id and computes the digest of the call's content. `content` is only called when there is an id.
pub(super) fn request_key(
    id: &str,
    access: &Access,
    content: impl FnOnce() -> Vec<u8>,
) -> Result<Option<RequestKey>, Status> {
    if id.is_empty() {
        return Ok(None);
    }
    let id = Uuid::parse_str(id)
        .map_err(|e| status::invalid(&[FieldViolation::new("request_id", format!("is not a UUID: {e}"))]))?;
    Ok(Some(RequestKey::new(id, access.scope(), &content())))
}

/// Canonical encoding of a message, whose digest is stored: maps have no order on the wire, so they are taken out of the appliance and
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
    use crate::access::Scope;

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

    #[test]
    fn the_digest_of_a_call_is_the_one_that_earlier_versions_stored() {
        let labels = [("b", "2"), ("a", "1")].map(|(k, v)| (k.to_owned(), v.to_owned()));
        let appliance = wire::Appliance { name: "web".into(), labels: labels.into(), ..Default::default() };
        let message = wire::CreateApplianceRequest { appliance: Some(appliance), ..Default::default() };
        let content = canonical("Create", message, |m| m.appliance.as_mut());
        let key = RequestKey::new(Uuid::from_u128(7), &Scope::All, &content);
        assert_eq!(Uuid::from_bytes(key.digest).to_string(), "104d5dd7-0406-58f4-9ef0-e723e1fa6388");
    }
}
