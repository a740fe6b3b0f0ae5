//! Requests that are no messages are the client's mistake, also where a standby forwards them.

use http::{HeaderValue, Request};
use tonic::body::Body;
use tonic::{Code, Status};
use tonic_types::StatusExt;
use tower::{Service, ServiceExt};

use super::forward::TestCoordinator;
use crate::grpc::ServingRole;

/// The status of a call with this body, and these headers instead of the usual ones.
async fn call(to: &TestCoordinator, path: &str, body: &[u8], headers: &[(&'static str, &'static str)]) -> Status {
    let body = axum::body::Body::from(body.to_vec());
    let mut request = Request::post(path).body(Body::new(body)).expect("a request");
    request.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
    for (name, value) in headers {
        request.headers_mut().insert(*name, HeaderValue::from_static(value));
    }
    let mut channel = to.channel.clone();
    let answer = channel.ready().await.expect("connected").call(request).await.expect("answered");
    Status::from_header_map(answer.headers()).expect("the call fails at once")
}

const CREATE: &str = "/rug.admin.v1.Appliances/Create";

#[tokio::test]
async fn what_cannot_be_read_is_an_invalid_argument() {
    let leader = TestCoordinator::start("c1", ServingRole::Leading, false).await;
    let standby = TestCoordinator::start("c2", ServingRole::Standby(Some(leader.leader())), false).await;
    let garbage = [0, 0, 0, 0, 3, 0xff, 0xff, 0xff];
    let not_utf8 = [0, 0, 0, 0, 6, 0x0a, 4, 0x12, 2, 0xc3, 0x28];
    let compressed = [1, 0, 0, 0, 3, 1, 2, 3];
    let unknown_flag = [7, 0, 0, 0, 0];
    let too_large = [0, 0xff, 0xff, 0xff, 0xff];
    for server in [&leader, &standby] {
        for (body, headers, code) in [
            (&garbage[..], &[][..], Code::InvalidArgument),
            (&not_utf8, &[], Code::InvalidArgument),
            (&compressed, &[], Code::InvalidArgument),
            (&unknown_flag, &[], Code::InvalidArgument),
            (&[], &[], Code::InvalidArgument),
            (&too_large, &[], Code::ResourceExhausted),
            (&compressed, &[("grpc-encoding", "zip")], Code::Unimplemented),
            (&[0; 5], &[("grpc-timeout", "soon")], Code::InvalidArgument),
            (&[0; 5], &[("grpc-timeout", "123456789S")], Code::InvalidArgument),
        ] {
            let status = call(server, CREATE, body, headers).await;
            assert_eq!(status.code(), code, "{body:?} {headers:?}: {status:?}");
            if code != Code::Unimplemented {
                let details = status.get_details_error_info().expect("explained");
                assert_eq!(details.domain, crate::grpc::status::DOMAIN);
            }
        }
        for path in ["/rug.admin.v1.Appliances/Explode", "/rug.admin.v1.Nothing/Create", "/"] {
            assert_eq!(call(server, path, &[0; 5], &[]).await.code(), Code::Unimplemented, "{path}");
        }
    }
}
