//! Certificates made on the spot, for tests. Panics instead of returning errors.

use std::path::Path;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SanType, SerialNumber, date_time_ymd,
};

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
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let pem = params.self_signed(&key).expect("a certificate").pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    /// The certificate of the CA, PEM.
    #[must_use]
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// A certificate for servers and clients, called `name`, for these host names, addresses, and URIs.
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
        let (uris, hosts): (Vec<&str>, Vec<&str>) = hosts.iter().partition(|name| name.contains("://"));
        let hosts: Vec<_> = hosts.into_iter().map(str::to_owned).collect();
        let mut params = CertificateParams::new(hosts).expect("hosts");
        let uri = |uri: &str| SanType::URI(uri.try_into().expect("ASCII"));
        params.subject_alt_names.extend(uris.into_iter().map(uri));
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        change(&mut params);
        let key = KeyPair::generate().expect("a key");
        let cert = params.signed_by(&key, &self.issuer).expect("a certificate").pem();
        Issued { cert, key: key.serialize_pem() }
    }

    /// A list that revokes the certificates with these serial numbers, PEM.
    ///
    /// # Panics
    /// When it cannot be signed.
    #[must_use]
    pub fn revoke(&self, serials: &[u64]) -> String {
        let revoked = |serial: &u64| RevokedCertParams {
            serial_number: SerialNumber::from(*serial),
            revocation_time: date_time_ymd(2020, 1, 1),
            reason_code: None,
            invalidity_date: None,
        };
        let params = CertificateRevocationListParams {
            this_update: date_time_ymd(2020, 1, 1),
            next_update: date_time_ymd(3000, 1, 1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: serials.iter().map(revoked).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(&self.issuer).expect("a list").pem().expect("PEM")
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

/// Serves as `issued` at a free port of 127.0.0.1: one connection after the other, each for one request, which is answered
/// with the next of `answers`, in the end always with the last. Returns the port.
///
/// # Panics
/// When there is no free port, or no Tokio runtime.
pub async fn serve_web(issued: &Issued, answers: Vec<String>) -> u16 {
    use rustls::pki_types::pem::PemObject;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    let chain = rustls::pki_types::CertificateDer::pem_slice_iter(issued.cert.as_bytes());
    let chain: Vec<_> = chain.collect::<Result<_, _>>().expect("PEM");
    let key = rustls::pki_types::PrivateKeyDer::from_pem_slice(issued.key.as_bytes()).expect("PEM");
    let config = rustls::ServerConfig::builder_with_provider(super::provider())
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .expect("a certificate");
    let acceptor = tokio_rustls::TlsAcceptor::from(std::sync::Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let port = listener.local_addr().expect("bound").port();
    tokio::spawn(async move {
        let mut answers = answers.into_iter();
        let mut answer = String::new();
        while let Ok((stream, _)) = listener.accept().await {
            let Ok(mut stream) = acceptor.accept(stream).await else { continue };
            answer = answers.next().unwrap_or(answer);
            let _ = stream.read(&mut [0; 4096]).await;
            let _ = stream.write_all(answer.as_bytes()).await;
            let _ = stream.shutdown().await;
        }
    });
    port
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
