//! Connections to web servers, which are not part of a cluster: checked by their host name, and shown no certificate.

use std::path::Path;
use std::sync::Arc;

use rustls::ClientConfig;
use rustls::RootCertStore;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::files::{MAX_FILE, certificates, file};
use super::provider;

/// A protected connection to a web server, for HTTP/1.1.
pub type WebStream = TlsStream<TcpStream>;

/// Connects to a web server and checks it against the CAs in the PEM file `ca`. Waits for as long as the server likes;
/// bound it.
///
/// # Errors
/// What went wrong, for people.
pub async fn connect_web(host: &str, port: u16, ca: &Path) -> Result<WebStream, String> {
    let pem = file("ca", ca, MAX_FILE).map_err(|e| e.to_string())?.ok_or("no CA is named")?;
    let mut roots = RootCertStore::empty();
    // A system's bundle may have some that are of no use here.
    roots.add_parsable_certificates(certificates(&pem)?);
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let name = ServerName::try_from(bare.to_owned()).map_err(|_| format!("`{host}` is not a host name"))?;
    let tcp = TcpStream::connect((bare, port)).await.map_err(|e| format!("connect to {host}: {e}"))?;
    TlsConnector::from(Arc::new(config)).connect(name, tcp).await.map_err(|e| format!("TLS with {host}: {e}"))
}
