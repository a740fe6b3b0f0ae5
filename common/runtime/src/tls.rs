//! Mutual TLS between coordinators, workers and `rugctl`, from PEM files that are read anew when they change.
//!
//! Three files make an identity: the CAs the other side must be issued by, the own certificate, its key; a fourth can
//! list revoked certificates. Servers look at them every [`Config::reload_interval`], clients at each new connection; what
//! is broken is logged once, and the identity of before goes on until the files make sense again.
//!
//! Both sides show a certificate, unless a server accepts tokens, too ([`ServerTls::accept_without_certificate`]). Clients
//! check that a server is a coordinator by its name ([`Config::servers`]). What clients may do is not decided here: whoever
//! has a certificate that the CA issued can connect. Sessions are never resumed, because resuming would skip the look at
//! the certificate.

mod client;
mod expiry;
mod files;
mod https;
mod identity;
mod server;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
mod verify;
mod words;

#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use common::access::NamePattern;
use common::appliance::FieldViolation;
use rustls::crypto::CryptoProvider;
use serde::{Deserialize, Serialize};

pub use client::ClientTls;
pub use expiry::certificate_expiry;
pub use files::read_revocation_lists;
pub use https::{WebClient, WebStream, web_client};
pub use identity::{AlternativeName, Identity};
pub use server::{Accepted, CertificateChain, HandshakeRefused, ServerStream, ServerTls};
pub use words::{chain, refusal, unresolved};

/// Settings of mutual TLS, the same for servers and clients. Without files there is no TLS.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// PEM file with the certificates of the CAs that the other side's certificate must be issued by.
    pub ca: PathBuf,
    /// PEM file with the own certificate, followed by those between it and the CA.
    pub cert: PathBuf,
    /// PEM file with the key of the own certificate.
    pub key: PathBuf,
    /// PEM file with revocation lists (CRLs). When it is named, every CA needs a list in it: a certificate whose CA has
    /// none is refused.
    #[serde(skip_serializing_if = "is_unnamed")]
    pub crl: PathBuf,
    /// Names that make a server a coordinator, beside the host name: URIs (or DNS names), each with one `*` at most. Any
    /// certificate for the host will do when the only entry is `*`.
    pub servers: Vec<String>,
    /// The own certificate may be left out, with its key, because this client authenticates by a token.
    #[serde(skip)]
    pub own_optional: bool,
    /// Name that a server's certificate must have instead of the host in its address. For clients that reach servers by
    /// addresses that are not in their certificates.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub server_name: String,
    /// How often a server looks whether the files have changed. Longer makes it accept what is no longer right for longer.
    #[serde(with = "humantime_serde")]
    #[cfg_attr(feature = "schema", schemars(with = "common::schema::DurationText"))]
    pub reload_interval: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            ca: PathBuf::new(),
            cert: PathBuf::new(),
            key: PathBuf::new(),
            crl: PathBuf::new(),
            servers: vec!["rug://coordinator/*".to_owned()],
            own_optional: false,
            server_name: String::new(),
            reload_interval: Duration::from_secs(10),
        }
    }
}

impl Config {
    /// Whether no file is named, so that connections are plain.
    #[must_use]
    pub fn is_off(&self) -> bool {
        [&self.ca, &self.cert, &self.key, &self.crl].iter().all(|path| path.as_os_str().is_empty())
    }

    /// Every rule the settings break, with the field that breaks it; also that the files are there, can be read and belong
    /// together.
    #[must_use]
    pub fn validate(&self) -> Vec<FieldViolation> {
        let mut found = Vec::new();
        if !(Duration::from_millis(100)..=Duration::from_secs(3600)).contains(&self.reload_interval) {
            let description = format!("must be 100ms to 1h, is {:?}", self.reload_interval);
            found.push(FieldViolation::new("reload_interval", description));
        }
        let name = self.server_name.as_str();
        if !name.is_empty() && rustls::pki_types::ServerName::try_from(name).is_err() {
            let description = format!("`{name}` is neither a host name nor an IP address");
            found.push(FieldViolation::new("server_name", description));
        }
        if let Err(problem) = self.server_names() {
            found.push(FieldViolation::new("servers", problem));
        }
        if !self.is_off()
            && let Err(error) = files::Files::open(self)
        {
            found.push(error.into());
        }
        found
    }

    /// What makes a server a coordinator; `None` when any certificate does.
    fn server_names(&self) -> Result<Option<Arc<[NamePattern]>>, String> {
        match self.servers.as_slice() {
            [] => Err("must name at least one; [\"*\"] stands for any certificate with the right host name".to_owned()),
            [any] if any == "*" => Ok(None),
            names => {
                let pattern = |name: &String| NamePattern::uri_or_dns(name).map_err(|e| format!("`{name}` {e}"));
                names.iter().map(pattern).collect::<Result<Arc<[_]>, _>>().map(Some)
            }
        }
    }
}

fn is_unnamed(path: &Path) -> bool {
    path.as_os_str().is_empty()
}

/// Why the files cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Some files are named and others are not.
    #[error("{0}: must be set, too: mutual TLS needs ca, cert and key")]
    Missing(&'static str),
    /// A URL, which may have a password, where a file must be named.
    #[error("{0}: is a URL, must be a file")]
    Url(&'static str),
    /// A file cannot be read or does not hold what it should.
    #[error("{field}: {}: {problem}", path.display())]
    File {
        /// Field that names the file.
        field: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
}

impl From<Error> for FieldViolation {
    fn from(error: Error) -> Self {
        match error {
            Error::Missing(field) => Self::new(field, "must be set, too: mutual TLS needs ca, cert and key"),
            Error::Url(field) => Self::new(field, "is a URL, must be a file"),
            Error::File { field, path, problem } => Self::new(field, format!("{}: {problem}", path.display())),
        }
    }
}

/// Makes aws-lc-rs what every part of the process uses for TLS. To be called first in each `main`: libraries that are
/// left to choose find more than one provider in some builds, and panic.
pub fn install_provider() {
    // Fails when one is installed already, which is what was wanted.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
}

fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    Arc::clone(PROVIDER.get_or_init(|| Arc::new(rustls::crypto::aws_lc_rs::default_provider())))
}
