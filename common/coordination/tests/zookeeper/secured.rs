//! Credentials and TLS.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use coordination::Error;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SanType};
use servers::ServerTlsFiles;
use servers::zookeeper::{Options, Standalone};
use sha1::{Digest, Sha1};

use crate::support::{TestProxyGate, TestRoot, elected, join, profile, seal, shared, within};

#[tokio::test(flavor = "multi_thread")]
async fn with_credentials_everything_belongs_to_them_alone() {
    let open = TestRoot::new(shared().await, "digest", 4.0);
    let mut place = open.clone();
    place.config.url = place.config.url.replace("zookeeper://", "zookeeper://rug:s3cret@");
    let (group, candidate) = (place.group("w1"), place.candidate("c"));
    let (_life, gate) = join(&group).await;
    let leadership = elected(&candidate).await;
    leadership.raise_term(common::Term::new(0)).await.expect("it leads");
    gate.beats().await;

    let stranger = open.client().await;
    // As kazoo's `make_digest_acl("rug", "s3cret", all=True)`.
    let id = format!("rug:{}", STANDARD.encode(Sha1::digest("rug:s3cret")));
    for path in [
        "/tooz",
        "/tooz/g.workers",
        "/tooz/g.workers/w1",
        "/tooz/g.coordinators",
        "/tooz/g.coordinators/c",
        "/tooz/g.coordinators/leader",
        "/rug",
        "/rug/g/leases",
        "/rug/g/leases/w1",
        "/rug/g/coordinator-leases/c",
        "/rug/g/term",
    ] {
        let owner = zookeeper_client::Client::connector().with_auth("digest", b"rug:s3cret");
        let owner = owner.connect(&place.address).await.expect("ZooKeeper is up");
        let owner = owner.chroot(place.chroot.clone()).expect("a valid chroot");
        let (acls, _) = owner.get_acl(path).await.expect("it is there");
        assert_eq!(acls.len(), 1, "{path}");
        assert_eq!((acls[0].scheme(), acls[0].id()), ("digest", id.as_str()), "{path}");
        assert_eq!(acls[0].permission(), zookeeper_client::Permission::ALL, "{path}");
        assert_eq!(stranger.get_data(path).await.expect_err("it is not theirs"), zookeeper_client::Error::NoAuth);
    }
    let refused =
        within("it is decided", open.group("w2").join(&profile(), seal(), Arc::new(TestProxyGate::default()))).await;
    assert!(matches!(refused, Err(Error::Refused(_))), "{refused:?}");
    let refused = within("it is decided", open.candidate("d").campaign()).await;
    assert!(matches!(refused, Err(Error::Refused(_))), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_run_over_mutual_tls() {
    let key = KeyPair::generate().expect("a key");
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = params.self_signed(&key).expect("a certificate").pem();
    let issuer = Issuer::new(params, key);
    let issue = || {
        let (mut params, key) = (CertificateParams::default(), KeyPair::generate().expect("a key"));
        params.subject_alt_names = vec![SanType::IpAddress([127, 0, 0, 1].into())];
        (params.signed_by(&key, &issuer).expect("a certificate").pem(), key.serialize_pem())
    };
    let (certificates, key) = issue();
    let tls = Some(ServerTlsFiles { certificates, key, authorities: ca.clone() });
    let server = Standalone::start(Options { tls, client_certificates: true, ..Options::default() }).await;
    let server = server.expect("ZooKeeper starts");

    let folder = tempfile::tempdir().expect("a folder");
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).expect("the folder is ours");
        path.display().to_string()
    };
    let (certificate, key) = issue();
    let (ca, both) = (write("ca.pem", &ca), write("both.pem", &format!("{certificate}{key}")));
    let mut place = TestRoot::new(&server, "tls", 4.0);
    let hosts = server.tls_connect_string();
    place.config.url = format!("zookeeper://{hosts}/tls?timeout=4&use_ssl=true&ca={ca}&certfile={both}");
    let (life, gate) = join(&place.group("w1")).await;
    gate.beats().await;
    within("it has left", life.leave()).await;

    place.config.url = format!("zookeeper://{hosts}?timeout=0.5&use_ssl=true&ca={ca}");
    let stranger =
        within("it gives up", place.group("w1").join(&profile(), seal(), Arc::new(TestProxyGate::default()))).await;
    assert!(matches!(stranger, Err(Error::Unavailable(_))), "{stranger:?}");
    place.config.url = format!("zookeeper://{hosts}?use_ssl=true&ca={}", write("none.pem", "nothing"));
    let wrong =
        within("it is decided", place.group("w1").join(&profile(), seal(), Arc::new(TestProxyGate::default()))).await;
    assert!(matches!(wrong, Err(Error::Refused(_))), "{wrong:?}");
}
