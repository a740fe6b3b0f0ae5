//! Calls that are meant for one cluster and no other: metadata `rug-cluster` names it, by id or by name.
//!
//! The leader checks it with each call. What a client was told when it started may not be true of the coordinator that
//! answers later: addresses are given to other machines, and a name in DNS is pointed elsewhere.

use std::sync::Arc;

use common::appliance::FieldViolation;
use common::cluster::ClusterRef;
use tonic::service::Interceptor;
use tonic::{Request, Status};

use super::status;
use crate::catalog::Catalog;

/// Metadata: the cluster that a call is meant for.
const HEADER: &str = "rug-cluster";

/// Refuses what is meant for another cluster.
#[derive(Clone, Debug)]
pub(super) struct ClusterPin(pub(super) Arc<Catalog>);

impl Interceptor for ClusterPin {
    fn call(&mut self, request: Request<()>) -> Result<Request<()>, Status> {
        let Some(meant) = request.metadata().get(HEADER) else { return Ok(request) };
        let invalid = |problem: &str| status::invalid(&[FieldViolation::new(HEADER, problem)]);
        let meant = meant.to_str().map_err(|_| invalid("is no text"))?;
        let meant: ClusterRef =
            meant.parse().map_err(|e: common::cluster::InvalidClusterRef| invalid(&e.to_string()))?;
        let (cluster, ..) = self.0.cluster().ok_or_else(status::starting)?;
        if !cluster.identity.is(&meant) {
            return Err(status::other_cluster(&meant, &cluster.identity));
        }
        Ok(request)
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
        let mut pin = ClusterPin(Arc::clone(&catalog));
        let mut call = |meant: Option<&str>| {
            let mut request = Request::new(());
            if let Some(meant) = meant {
                request.metadata_mut().insert(HEADER, meant.parse().expect("ASCII"));
            }
            pin.call(request).map(drop).map_err(|status| status.code())
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
