//! Calls that are meant for one cluster and no other: metadata `rug-cluster` names it, by id or by name.
//!
//! The leader checks it with each call. What a client was told when it started may not be true of the coordinator that
//! answers later: addresses are given to other machines, and a name in DNS is pointed elsewhere.

use std::sync::Arc;

use common::appliance::FieldViolation;
use common::cluster::{ClusterRef, InvalidClusterRef};
use http::{HeaderMap, Request};
use tonic::Status;
use tonic::body::Body;

use super::layer::{Answer, Around, Calls, Next, at_once};
use super::status;
use crate::catalog::Catalog;

/// Metadata: the cluster that a call is meant for.
const HEADER: &str = "rug-cluster";
/// What the paths of admin calls begin with. Health is each coordinator's own, of whichever cluster it is.
const ADMIN: &str = "/rug.admin.v1.";

/// Refuses admin calls that are meant for another cluster. Goes inside of [`Forwarder`](super::Forwarder): the leader checks.
#[derive(Debug)]
pub struct ClusterPin(Arc<Catalog>);

impl ClusterPin {
    /// For the cluster in this catalog.
    #[must_use]
    pub fn new(catalog: Arc<Catalog>) -> Self {
        Self(catalog)
    }

    fn check(&self, headers: &HeaderMap) -> Result<(), Status> {
        let Some(meant) = headers.get(HEADER) else { return Ok(()) };
        let invalid = |problem: &str| status::invalid(&[FieldViolation::new(HEADER, problem)]);
        let meant = meant.to_str().map_err(|_| invalid("is no text"))?;
        let meant: ClusterRef = meant.parse().map_err(|e: InvalidClusterRef| invalid(&e.to_string()))?;
        let (cluster, ..) = self.0.cluster().ok_or_else(status::starting)?;
        if !cluster.identity.is(&meant) {
            return Err(status::other_cluster(&meant, &cluster.identity));
        }
        Ok(())
    }
}

impl Around for ClusterPin {
    fn around<S: Calls>(self: &Arc<Self>, request: Request<Body>, next: Next<S>) -> Answer {
        let checked = if request.uri().path().starts_with(ADMIN) { self.check(request.headers()) } else { Ok(()) };
        match checked {
            Ok(()) => next.call(request),
            Err(status) => at_once(&status),
        }
    }
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;
    use crate::views::ClusterView;

    #[test]
    fn calls_for_another_cluster_are_refused() {
        let catalog = Arc::new(Catalog::new(crate::catalog::Config::default()));
        let pin = ClusterPin::new(Arc::clone(&catalog));
        let call = |meant: Option<&str>| {
            let meant = meant.map(|meant| (HEADER.parse().expect("a name"), meant.parse().expect("ASCII")));
            pin.check(&meant.into_iter().collect()).map_err(|status| status.code())
        };
        assert_eq!(call(None), Ok(()));
        assert_eq!(call(Some("test")), Err(Code::Unavailable), "it is not known yet which one this is");
        let view = ClusterView::of_term(1);
        let id = view.identity.id.to_string();
        catalog.set_cluster(view);
        assert_eq!((call(None), call(Some("test")), call(Some(&id))), (Ok(()), Ok(()), Ok(())));
        assert_eq!(call(Some("prod")), Err(Code::FailedPrecondition));
        assert_eq!(call(Some("No Name")), Err(Code::InvalidArgument));
    }
}
