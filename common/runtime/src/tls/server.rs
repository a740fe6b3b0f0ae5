//! The server's side: one handshake at a time, with the files as they were when last looked at.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::NoServerSessionStorage;
use rustls::sign::SingleCertAndKey;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::files::{Files, Material};
use super::verify::{Noting, PeerRule, SeenCertificates};
use super::words::{Side, TlsPeer};
use super::{Config, Error, Identity, provider};

/// How HTTP/2 begins when it is spoken without TLS.
const PREFACE: &[u8] = b"PRI * HTTP/2.0";

/// Bytes that are still read from a client that was refused.
const LEAVE_TAKING: u64 = 64 << 10;

/// What a server shows and whom it lets in. Cheap to clone; clones share it.
#[derive(Clone)]
pub struct ServerTls {
    files: Arc<Files>,
    rule: PeerRule,
}

impl fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerTls").field("cert", &self.files.config.cert).finish_non_exhaustive()
    }
}

/// The server's end of a protected connection.
pub type ServerStream = TlsStream<TcpStream>;

/// Certificates that a client has shown, its own first; none when it has shown none.
#[derive(Clone, Debug)]
pub struct CertificateChain(Vec<CertificateDer<'static>>);

/// A connection whose client has shown a certificate of a trusted CA, or none where that is allowed.
#[derive(Debug)]
pub struct Accepted {
    /// The connection.
    pub stream: ServerStream,
    /// Who is at its other end; `None` without a certificate.
    pub peer: Option<Arc<Identity>>,
}

impl Accepted {
    /// The certificates that the client showed, its own first; to be checked again with
    /// [`ServerTls::still_trusts`].
    #[must_use]
    pub fn chain(&self) -> CertificateChain {
        let chain = self.stream.get_ref().1.peer_certificates().unwrap_or_default();
        CertificateChain(chain.iter().map(|certificate| certificate.clone().into_owned()).collect())
    }
}

/// A connection that came to nothing.
#[derive(Debug, thiserror::Error)]
#[error("{error}")]
pub struct HandshakeRefused {
    /// Why, in words.
    pub error: io::Error,
    stream: Option<TcpStream>,
    said_nothing: bool,
}

impl HandshakeRefused {
    fn new(error: io::Error, stream: Option<TcpStream>) -> Self {
        Self { error, stream, said_nothing: false }
    }

    /// Whether the client hung up before it said anything, as those do that only look whether somebody listens.
    #[must_use]
    pub const fn said_nothing(&self) -> bool {
        self.said_nothing
    }

    /// Lets the client hear why: closing a connection with unread bytes in it would throw away what was last sent. Waits
    /// for the client to hang up; bound it.
    pub async fn take_leave(self) {
        if let Some(mut stream) = self.stream
            && stream.shutdown().await.is_ok()
        {
            let _ = tokio::io::copy(&mut stream.take(LEAVE_TAKING), &mut tokio::io::sink()).await;
        }
    }
}

impl ServerTls {
    /// Reads the files. `None` when the configuration names none.
    ///
    /// # Errors
    /// Which of them cannot be used, and why.
    pub fn load(config: &Config) -> Result<Option<Self>, Error> {
        if config.is_off() {
            return Ok(None);
        }
        let files = Files::open(config)?;
        files.announce();
        Ok(Some(Self { files: Arc::new(files), rule: PeerRule::Certificate }))
    }

    /// The same server, which also lets in clients without a certificate: they show a token with each call. A certificate
    /// that is shown is checked all the same.
    #[must_use]
    pub fn accept_without_certificate(self) -> Self {
        Self { rule: PeerRule::OptionalCertificate, ..self }
    }

    /// Whether a client with these certificates would be let in now, by the files as they were when last looked at.
    #[must_use]
    pub fn still_trusts(&self, chain: &CertificateChain) -> bool {
        let Some((own, issuers)) = chain.0.split_first() else { return true };
        self.files.current().clients.verify_client_cert(own, issuers, UnixTime::now()).is_ok()
    }

    /// How often [`refresh`](Self::refresh) wants to be called.
    #[must_use]
    pub fn reload_interval(&self) -> Duration {
        self.files.config.reload_interval
    }

    /// Looks at the files and takes over what changed; returns whether something has. What is broken is logged once and
    /// changes nothing.
    pub async fn refresh(&self) -> bool {
        let files = Arc::clone(&self.files);
        let before = files.current();
        // Fails only when the runtime ends.
        let now = tokio::task::spawn_blocking(move || files.look()).await;
        now.is_ok_and(|now| !Arc::ptr_eq(&before, &now))
    }

    /// Shakes hands with a client. Waits for the client for as long as it likes; bound it.
    ///
    /// # Errors
    /// Why the client is not let in, and the connection to tell it on.
    pub async fn accept(&self, mut stream: TcpStream) -> Result<Accepted, HandshakeRefused> {
        match first_byte(&stream).await {
            Ok(Some(first)) if first != PREFACE[0] => {}
            Ok(None) => {
                let error = io::ErrorKind::UnexpectedEof.into();
                return Err(HandshakeRefused { error, stream: None, said_nothing: true });
            }
            Ok(Some(_)) => {
                let _ = stream.write_all(&go_away()).await;
                let error = io::Error::other("the client speaks HTTP/2 without TLS; it has to use https://");
                return Err(HandshakeRefused::new(error, Some(stream)));
            }
            Err(error) => return Err(HandshakeRefused::new(error, None)),
        }
        let material = self.files.current();
        let side = Side::new(TlsPeer::Client, &self.files, &material);
        let (config, seen) = match config(&material, self.rule.clone()) {
            Ok(made) => made,
            Err(error) => return Err(HandshakeRefused::new(io::Error::other(error), None)),
        };
        match TlsAcceptor::from(Arc::new(config)).accept(stream).into_fallible().await {
            Ok(stream) => match (seen.get(), stream.get_ref().1.peer_certificates()) {
                (Some(peer), Some(_)) => Ok(Accepted { peer: Some(Arc::new(peer.clone())), stream }),
                (None, None) if matches!(self.rule, PeerRule::OptionalCertificate) => {
                    Ok(Accepted { peer: None, stream })
                }
                // The verifier is asked in every handshake, but who a peer is must not hang on that.
                _ => Err(HandshakeRefused::new(io::Error::other("the client's certificate was not seen"), None)),
            },
            Err((error, stream)) => Err(HandshakeRefused::new(side.explain(error, seen.get()), Some(stream))),
        }
    }
}

fn config(material: &Material, rule: PeerRule) -> Result<(ServerConfig, SeenCertificates), rustls::Error> {
    let own = material.own.as_ref().ok_or_else(|| rustls::Error::General("there is no own certificate".to_owned()))?;
    let (verifier, seen) = Noting::new(Arc::clone(&material.clients), rule);
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(Arc::clone(&own.key))));
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok((config, seen))
}

/// What the client begins with; `None` when it hung up. One byte tells TLS from HTTP/2, because no record of TLS begins
/// with a letter.
async fn first_byte(stream: &TcpStream) -> io::Result<Option<u8>> {
    let mut first = [0; 1];
    let read = stream.peek(&mut first).await?;
    Ok((read == 1).then_some(first[0]))
}

/// An answer that clients of HTTP/2 show to people: empty settings, and a goodbye with a reason.
fn go_away() -> Vec<u8> {
    const SETTINGS: [u8; 9] = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    const INADEQUATE_SECURITY: [u8; 4] = [0, 0, 0, 0xc];
    let reason = b"TLS: this address wants TLS with a client certificate; use https://";
    let mut frames = SETTINGS.to_vec();
    let length = u8::try_from(8 + reason.len()).unwrap_or(u8::MAX);
    frames.extend([0, 0, length, 7, 0, 0, 0, 0, 0]);
    frames.extend([0, 0, 0, 0]);
    frames.extend(INADEQUATE_SECURITY);
    frames.extend(reason);
    frames
}
