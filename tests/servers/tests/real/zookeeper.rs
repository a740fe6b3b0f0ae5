//! ZooKeeper, asked with the client that Rug uses.

use std::time::Duration;

use anyhow::{Context, Result};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, SanType};
use servers::ServerTlsFiles;
use servers::zookeeper::{Ensemble, Options, Standalone};
use zookeeper_client::{Acls, Client, CreateMode, TlsOptions};

const DATA: &[u8] = b"kept";

async fn connect(cluster: &str) -> Result<Client> {
    let client = Client::connector().with_session_timeout(Duration::from_secs(10)).connect(cluster).await;
    client.with_context(|| format!("connect to {cluster}"))
}

async fn write(cluster: &str) -> Result<()> {
    let client = connect(cluster).await?;
    client.create("/node", DATA, &CreateMode::Persistent.with_acls(Acls::anyone_all())).await?;
    Ok(())
}

async fn read(cluster: &str) -> Result<Vec<u8>> {
    Ok(connect(cluster).await?.get_data("/node").await?.0)
}

#[tokio::test]
async fn a_server_keeps_its_data_when_killed_and_loses_it_when_wiped() -> Result<()> {
    let mut server = Standalone::start(Options::default()).await?;
    let address = server.connect_string();
    write(&address).await?;
    server.kill()?;
    assert!(server.four_letter("srvr").await.is_err(), "it was killed");
    let saved = tempfile::tempdir()?.path().join("saved");
    server.save(&saved)?;
    server.start_again().await?;
    assert_eq!(read(&address).await?, DATA);
    assert!(server.wipe().is_err(), "it runs");
    server.kill()?;
    server.wipe()?;
    server.start_again().await?;
    assert!(read(&address).await.is_err(), "its data was removed");
    server.kill()?;
    server.restore(&saved)?;
    server.start_again().await?;
    assert_eq!(read(&address).await?, DATA);
    Ok(())
}

#[tokio::test]
async fn a_paused_server_answers_once_it_goes_on() -> Result<()> {
    let mut server = Standalone::start(Options::default()).await?;
    server.pause()?;
    assert!(server.four_letter("srvr").await.is_err(), "it is paused");
    server.resume()?;
    assert!(server.four_letter("mntr").await?.contains("zk_server_state\tstandalone"));
    Ok(())
}

#[tokio::test]
async fn an_ensemble_elects_another_leader_and_takes_the_former_one_back() -> Result<()> {
    let mut ensemble = Ensemble::start(3, Options::default()).await?;
    write(&ensemble.connect_string()).await?;
    let first = ensemble.leader().await?;
    ensemble.kill(first)?;
    let second = ensemble.leader().await?;
    assert_ne!(first, second);
    let third = 3 - first - second;
    assert_eq!(read(&ensemble.address(third)).await?, DATA);
    ensemble.wipe(first)?;
    ensemble.start_again(first).await?;
    assert_eq!(ensemble.mode(first).await?, "follower");
    assert_eq!(read(&ensemble.address(first)).await?, DATA);
    // One of three does not serve; it starts all the same, and serves once the second is there.
    (0..3).try_for_each(|i| ensemble.kill(i))?;
    ensemble.start_again(0).await?;
    assert!(ensemble.mode(0).await.is_err(), "it is alone");
    ensemble.start_again(1).await?;
    ensemble.serves(0).await?;
    assert_eq!(read(&ensemble.connect_string()).await?, DATA);
    Ok(())
}

struct TestAuthority(CertifiedIssuer<'static, KeyPair>);

impl TestAuthority {
    fn new() -> Result<Self> {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "test authority");
        Ok(Self(CertifiedIssuer::self_signed(params, KeyPair::generate()?)?))
    }

    /// A certificate and its key.
    fn issue(&self, name: &str) -> Result<(String, String)> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.subject_alt_names = vec![SanType::IpAddress([127, 0, 0, 1].into())];
        Ok((params.signed_by(&key, &self.0)?.pem(), key.serialize_pem()))
    }
}

#[tokio::test]
async fn a_server_speaks_tls_and_refuses_whom_it_does_not_know() -> Result<()> {
    let (ours, theirs) = (TestAuthority::new()?, TestAuthority::new()?);
    let (certificates, key) = ours.issue("server")?;
    let tls = ServerTlsFiles { certificates, key, authorities: ours.0.pem() };
    for client_certificates in [false, true] {
        let options = Options { tls: Some(tls.clone()), client_certificates, ..Options::default() };
        let server = Standalone::start(options).await?;
        let tls_address = server.tls_connect_string();
        let connector = |authority: &TestAuthority, identity: Option<&TestAuthority>| -> Result<_> {
            let mut options = TlsOptions::new().with_pem_ca(&authority.0.pem())?;
            if let Some(authority) = identity {
                let (certificate, key) = authority.issue("client")?;
                options = options.with_pem_identity(&certificate, &key)?;
            }
            Ok(Client::connector().with_tls(options))
        };
        let client = connector(&ours, Some(&ours))?.secure_connect(&tls_address).await?;
        client.create("/node", DATA, &CreateMode::Persistent.with_acls(Acls::anyone_all())).await?;
        // Whoever is refused gives up at once; whoever is not may need a second attempt on a busy machine.
        let strict = connector(&theirs, Some(&ours))?.with_fail_eagerly().secure_connect(&tls_address).await;
        assert!(strict.is_err(), "the client checks the server");
        for identity in [None, Some(&theirs)] {
            let stranger = connector(&ours, identity)?;
            if client_certificates {
                let refused = stranger.with_fail_eagerly().secure_connect(&tls_address).await;
                assert!(refused.is_err(), "the server checks the client");
            } else {
                stranger.secure_connect(&tls_address).await.context("the server checks nobody")?;
            }
        }
        assert_eq!(read(&server.connect_string()).await?, DATA, "the other port is without TLS");
    }
    Ok(())
}
