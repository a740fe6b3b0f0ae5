//! Channels to a server: over TCP, over TCP with mutual TLS, or over a Unix socket of this host.

use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::task::{Context, Poll};

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::codegen::http::Uri;
use tonic::transport::{Channel, Endpoint, Error};

use crate::socket::{self, TrustedServer};
use crate::tls::ClientTls;

/// What requests over a Unix socket name as their host.
const LOCAL: &str = "http://localhost";

/// Why an address cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// It is not an address. What it is instead is not quoted: it may be a password that was set in its place.
    #[error("not the address of a server, such as https://host:7470 or unix:/path/to/socket")]
    Malformed,
    /// It has a user name or a password.
    #[error("the address of a server has no user name and no password, so no `@`")]
    Credentials,
    /// `https://` without certificates.
    #[error("{0}: https:// needs TLS to be configured: ca, cert and key")]
    NoTls(String),
    /// `http://` with certificates.
    #[error("{0}: TLS is configured and would not be used with http://; write https://, or take the TLS settings away")]
    Plain(String),
}

/// A channel to be: a server's address and how to connect to it. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Target {
    endpoint: Endpoint,
    route: Route,
}

#[derive(Clone, Debug)]
enum Route {
    Tcp,
    Tls(ClientTls),
    Unix(UnixConnector),
}

impl Target {
    /// The server at `address`: `https://` with `tls`, `http://` without, or `unix:PATH`, where the kernel tells who is at
    /// the other end and `tls` is not used.
    ///
    /// # Errors
    /// The address is none, or does not fit `tls`.
    pub fn new(address: &str, tls: Option<&ClientTls>) -> Result<Self, AddressError> {
        let malformed = || AddressError::Malformed;
        if address.starts_with(socket::SCHEME) {
            let path = socket::path_of(address).ok_or_else(malformed)?;
            return Ok(Self {
                endpoint: Endpoint::from_static(LOCAL),
                route: Route::Unix(UnixConnector { path: path.to_owned(), trusted: TrustedServer::OwnOrRoot }),
            });
        }
        if address.contains('@') {
            return Err(AddressError::Credentials);
        }
        let uri: Uri = address.parse().map_err(|_| malformed())?;
        if uri.host().is_none_or(str::is_empty) || !has_valid_port(&uri) {
            return Err(malformed());
        }
        // Nothing is done with a path or a query; one that was meant for something has to be heard of.
        if !matches!(uri.path(), "" | "/") || uri.query().is_some() {
            return Err(malformed());
        }
        match (uri.scheme_str(), tls) {
            (Some("http"), None) => Ok(Self { endpoint: Endpoint::from(uri), route: Route::Tcp }),
            (Some("https"), Some(tls)) => {
                // tonic refuses https:// without its own TLS. It only reads this one; servers are told the origin.
                let mut parts = uri.clone().into_parts();
                parts.scheme = Some(tonic::codegen::http::uri::Scheme::HTTP);
                let plain = Uri::from_parts(parts).map_err(|_| malformed())?;
                Ok(Self { endpoint: Endpoint::from(plain).origin(uri), route: Route::Tls(tls.clone()) })
            }
            (Some("http"), Some(_)) => Err(AddressError::Plain(address.to_owned())),
            (Some("https"), None) => Err(AddressError::NoTls(address.to_owned())),
            _ => Err(malformed()),
        }
    }

    /// Whether `address` is one that [`new`](Self::new) takes, with TLS or without.
    ///
    /// # Errors
    /// [`AddressError::Malformed`] or [`AddressError::Credentials`].
    pub fn check(address: &str) -> Result<(), AddressError> {
        match Self::new(address, None) {
            Ok(_) | Err(AddressError::NoTls(_) | AddressError::Plain(_)) => Ok(()),
            Err(malformed) => Err(malformed),
        }
    }

    /// The same server, named by a person: root is not asked twice whether it trusts a socket of another user.
    #[must_use]
    pub fn named(mut self) -> Self {
        if let Route::Unix(connector) = &mut self.route {
            connector.trusted = TrustedServer::Named;
        }
        self
    }

    /// The same server with time-outs and windows set.
    #[must_use]
    pub fn with(self, set: impl FnOnce(Endpoint) -> Endpoint) -> Self {
        Self { endpoint: set(self.endpoint), ..self }
    }

    /// Connects.
    ///
    /// # Errors
    /// What the transport says; [`chain`](crate::tls::chain) has it in full.
    pub async fn connect(&self) -> Result<Channel, Error> {
        match &self.route {
            Route::Tcp => self.endpoint.connect().await,
            Route::Tls(tls) => self.endpoint.connect_with_connector(tls.connector()).await,
            Route::Unix(connector) => self.endpoint.connect_with_connector(connector.clone()).await,
        }
    }

    /// A channel that connects when it is first used, and again whenever the connection was lost.
    #[must_use]
    pub fn connect_lazy(&self) -> Channel {
        match &self.route {
            Route::Tcp => self.endpoint.connect_lazy(),
            Route::Tls(tls) => self.endpoint.connect_with_connector_lazy(tls.connector()),
            Route::Unix(connector) => self.endpoint.connect_with_connector_lazy(connector.clone()),
        }
    }
}

/// Whether the port, where there is a colon for one, is a number from 1 to 65535. The parser takes any digits, and a port that
/// does not fit counts as none for it, which would stand for the usual one of the scheme.
fn has_valid_port(uri: &Uri) -> bool {
    let Some(authority) = uri.authority() else { return false };
    let rest = &authority.as_str()[authority.host().len()..];
    rest.is_empty() || rest.strip_prefix(':').and_then(|port| port.parse::<u16>().ok()).is_some_and(|port| port > 0)
}

/// Makes the connections of a channel.
#[derive(Clone, Debug)]
struct UnixConnector {
    path: PathBuf,
    trusted: TrustedServer,
}

impl tower::Service<Uri> for UnixConnector {
    type Response = TokioIo<UnixStream>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let Self { path, trusted } = self.clone();
        Box::pin(async move { socket::connect(&path, trusted).await.map(TokioIo::new) })
    }
}

#[cfg(test)]
mod tests;
