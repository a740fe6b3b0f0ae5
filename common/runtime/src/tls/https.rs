//! Connections to web servers, which are not part of a cluster: checked by their host name.

use std::path::Path;
use std::sync::Arc;

use rustls::ClientConfig;
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{PrivateKeyDer, ServerName};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::files::{MAX_FILE, certificates, file};
use super::provider;

/// A protected connection to a web server, for HTTP/1.1.
pub type WebStream = TlsStream<TcpStream>;

/// Connects to web servers.
#[derive(Clone, Debug)]
pub struct WebClient(Arc<ClientConfig>);

/// A client that checks web servers against the CAs in the PEM file `ca`, and shows them the certificate and key of `own`.
///
/// # Errors
/// A file cannot be used, for people.
pub fn web_client(ca: &Path, own: Option<(&Path, &Path)>) -> Result<WebClient, String> {
    let pem = file("ca", ca, MAX_FILE).map_err(|e| e.to_string())?.ok_or("no CA is named")?;
    let mut roots = RootCertStore::empty();
    // A system's bundle may have some that are of no use here.
    roots.add_parsable_certificates(certificates(&pem)?);
    let builder = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?
        .with_root_certificates(roots);
    let mut config = match own {
        None => builder.with_no_client_auth(),
        Some((cert, key)) => {
            let pem = file("cert", cert, MAX_FILE).map_err(|e| e.to_string())?.ok_or("no certificate is named")?;
            let secret = PrivateKeyDer::from_pem_file(key).map_err(|_| format!("{} is not a key", key.display()))?;
            builder.with_client_auth_cert(certificates(&pem)?, secret).map_err(|e| e.to_string())?
        }
    };
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(WebClient(Arc::new(config)))
}

impl WebClient {
    /// Connects. Waits for as long as the server likes; bound it.
    ///
    /// # Errors
    /// What went wrong, for people.
    pub async fn connect(&self, host: &str, port: u16) -> Result<WebStream, String> {
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let name = ServerName::try_from(bare.to_owned()).map_err(|_| format!("`{host}` is not a host name"))?;
        let tcp = TcpStream::connect((bare, port)).await.map_err(|e| format!("connect to {host}: {e}"))?;
        TlsConnector::from(Arc::clone(&self.0)).connect(name, tcp).await.map_err(|e| format!("TLS with {host}: {e}"))
    }
}
