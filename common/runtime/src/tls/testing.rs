//! Certificates made on the spot, for tests. Panics instead of returning errors.

use std::path::Path;

use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};

use tokio::net::TcpListener;
use tokio::sync::mpsc;

use super::{Accepted, Config, ServerStream, ServerTls};

/// A CA.
#[derive(Debug)]
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

/// A certificate with its key, both PEM.
#[derive(Clone, Debug)]
pub struct Issued {
    /// The certificate.
    pub cert: String,
    /// Its key.
    pub key: String,
}

impl Authority {
    /// A CA of this name.
    ///
    /// # Panics
    /// When there is no randomness.
    #[must_use]
    pub fn new(name: &str) -> Self {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).expect("a certificate").pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    /// The certificate of the CA, PEM.
    #[must_use]
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// A certificate for servers and clients, called `name`, for these host names and addresses.
    ///
    /// # Panics
    /// When a host is none.
    #[must_use]
    pub fn issue(&self, name: &str, hosts: &[&str]) -> Issued {
        self.issue_with(name, hosts, |_| {})
    }

    /// The same with something changed before it is signed.
    ///
    /// # Panics
    /// When a host is none, or what was changed makes no certificate.
    #[must_use]
    pub fn issue_with(&self, name: &str, hosts: &[&str], change: impl FnOnce(&mut CertificateParams)) -> Issued {
        let hosts: Vec<_> = hosts.iter().map(|&host| host.to_owned()).collect();
        let mut params = CertificateParams::new(hosts).expect("hosts");
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        change(&mut params);
        let key = KeyPair::generate().expect("a key");
        let cert = params.signed_by(&key, &self.issuer).expect("a certificate").pem();
        Issued { cert, key: key.serialize_pem() }
    }

    /// A certificate that expired long ago.
    ///
    /// # Panics
    /// As [`issue`](Self::issue).
    #[must_use]
    pub fn issue_expired(&self, name: &str, hosts: &[&str]) -> Issued {
        self.issue_with(name, hosts, |params| {
            params.not_before = rcgen::date_time_ymd(2020, 1, 1);
            params.not_after = rcgen::date_time_ymd(2020, 2, 1);
        })
    }
}

/// Serves as `issued` at a free port of 127.0.0.1, one handshake after the other; yields the connections and the address.
///
/// # Panics
/// When there is no free port, or no Tokio runtime.
pub async fn serve(ca: &Authority, issued: &Issued) -> (mpsc::Receiver<std::io::Result<ServerStream>>, String) {
    let dir = tempfile::tempdir().expect("a folder");
    let tls = ServerTls::load(&issued.write(dir.path(), ca)).expect("good files").expect("named");
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = format!("https://{}", listener.local_addr().expect("bound"));
    let (out, connections) = mpsc::channel(4);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            match tls.accept(stream).await {
                Ok(Accepted { stream, .. }) => {
                    if out.send(Ok(stream)).await.is_err() {
                        return;
                    }
                }
                Err(refused) => refused.take_leave().await,
            }
        }
    });
    (connections, address)
}

impl Issued {
    /// Writes the files `ca.pem`, `cert.pem` and `key.pem` into `dir`, one by one, over what is there.
    ///
    /// # Panics
    /// When the directory cannot be written.
    #[must_use]
    pub fn write(&self, dir: &Path, ca: &Authority) -> Config {
        let file = |name: &str, text: &str| {
            let path = dir.join(name);
            std::fs::write(&path, text).expect("the directory can be written");
            path
        };
        Config {
            ca: file("ca.pem", ca.pem()),
            cert: file("cert.pem", &self.cert),
            key: file("key.pem", &self.key),
            reload_interval: std::time::Duration::from_millis(100),
            ..Config::default()
        }
    }
}
