//! The client's side: channels whose connections are made with the files as they are then.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::client::Resumption;
use rustls::pki_types::ServerName;
use rustls::sign::SingleCertAndKey;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::codegen::http::Uri;

use super::files::{Files, Material};
use super::verify::{Noting, PeerRule, SeenCertificates};
use super::words::{Side, TlsPeer, marked};
use super::{Config, Error, provider};

/// What a client shows and whom it trusts. Cheap to clone; clones share it.
#[derive(Clone)]
pub struct ClientTls(Arc<Files>);

impl fmt::Debug for ClientTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientTls").field("cert", &self.0.config.cert).finish_non_exhaustive()
    }
}

impl ClientTls {
    /// Reads the files. `None` when the configuration names none.
    ///
    /// # Errors
    /// Which of them cannot be used, and why.
    pub fn load(config: &Config) -> Result<Option<Self>, Error> {
        if config.is_off() {
            return Ok(None);
        }
        let files = Files::open(config)?;
        Ok(Some(Self(Arc::new(files))))
    }

    /// Says in the log as whom, and until when. For processes that stay.
    pub fn announce(&self) {
        self.0.announce();
    }

    /// What is wrong with the mode of the key's file, for those who have no log.
    #[must_use]
    pub fn exposed_key(&self) -> Option<String> {
        crate::file::exposure(&self.0.config.key)
    }

    pub(super) async fn material(&self) -> Arc<Material> {
        let files = Arc::clone(&self.0);
        tokio::task::spawn_blocking(move || files.look()).await.unwrap_or_else(|_| self.0.current())
    }

    /// What makes the connections of a channel.
    pub(crate) fn connector(&self) -> Connector {
        Connector(self.clone())
    }

    /// Connects and shakes hands.
    pub(super) async fn dial(&self, uri: &Uri) -> io::Result<ClientStream> {
        let refused = |text: String| io::Error::new(io::ErrorKind::InvalidInput, marked(&text));
        let host = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']').to_owned();
        let wanted = &self.0.config.server_name;
        let name = if wanted.is_empty() { host.clone() } else { wanted.clone() };
        let name = ServerName::try_from(name).map_err(|_| refused(format!("`{host}` is not a host name")))?;
        let material = self.material().await;
        let side = Side::new(TlsPeer::Server, &self.0, &material);
        let names = self.0.config.server_names().map_err(refused)?;
        let rule = names.map_or(PeerRule::Certificate, PeerRule::Named);
        let (config, seen) = config(&material, rule).map_err(|e| refused(e.to_string()))?;
        let tcp = TcpStream::connect((host.as_str(), uri.port_u16().unwrap_or(443))).await?;
        tcp.set_nodelay(true)?;
        match TlsConnector::from(Arc::new(config)).connect(name, tcp).await {
            Ok(stream) if stream.get_ref().1.alpn_protocol() == Some(b"h2") => Ok(ClientStream { stream, side }),
            Ok(_) => Err(refused("the server does not speak HTTP/2".to_owned())),
            Err(error) => Err(side.explain(error, seen.get())),
        }
    }
}

fn config(material: &Material, rule: PeerRule) -> Result<(ClientConfig, SeenCertificates), rustls::Error> {
    let (verifier, seen) = Noting::new(Arc::clone(&material.servers), rule);
    let config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let mut config = match &material.own {
        Some(own) => config.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(Arc::clone(&own.key)))),
        None => config.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.resumption = Resumption::disabled();
    Ok((config, seen))
}

/// Makes the connections of a channel.
pub(crate) struct Connector(ClientTls);

impl tower::Service<Uri> for Connector {
    type Response = TokioIo<ClientStream>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let tls = self.0.clone();
        Box::pin(async move { tls.dial(&uri).await.map(TokioIo::new) })
    }
}

/// A connection whose errors are in words: with TLS 1.3 a client learns only when it first reads that its certificate was
/// refused.
pub(crate) struct ClientStream {
    stream: TlsStream<TcpStream>,
    side: Side,
}

impl ClientStream {
    fn explained<T>(&self, result: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        result.map_err(|error| match error.kind() {
            // A server that stops does not always say goodbye; that has nothing to do with TLS.
            io::ErrorKind::UnexpectedEof => error,
            _ => self.side.explain(error, None),
        })
    }
}

impl AsyncRead for ClientStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.stream).poll_read(cx, buf);
        self.explained(result)
    }
}

impl AsyncWrite for ClientStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.explained(result)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.stream).poll_flush(cx);
        self.explained(result)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.explained(result)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
