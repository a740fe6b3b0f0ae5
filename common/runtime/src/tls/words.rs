//! What went wrong with TLS, in words that name the side, the certificate and the file.
//!
//! A refusal reaches its reader through several libraries that keep only the text of an error. So it is put into words
//! where it happens, begins with [`MARK`], and [`refusal`] finds it again at the end of any chain of causes.

use std::error::Error;
use std::io;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use rustls::pki_types::UnixTime;
use rustls::{AlertDescription, CertificateError, InvalidMessage};

use super::Identity;
use super::files::{Files, Material};

/// What every text of this module begins with.
const MARK: &str = "TLS: ";

/// Who is at the other end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TlsPeer {
    Client,
    Server,
}

impl TlsPeer {
    const fn name(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Server => "server",
        }
    }
}

/// This side of a connection, as errors name it.
#[derive(Clone, Debug)]
pub(super) struct Side {
    peer: TlsPeer,
    ca: PathBuf,
    cert: PathBuf,
    crl: PathBuf,
    /// What makes a server a coordinator, as configured.
    servers: String,
    /// Who this side is.
    own: String,
}

impl Side {
    pub(super) fn new(peer: TlsPeer, files: &Files, material: &Material) -> Self {
        let config = &files.config;
        let (ca, cert, crl) = (config.ca.clone(), config.cert.clone(), config.crl.clone());
        Self { peer, ca, cert, crl, servers: config.servers.join(", "), own: material.shown() }
    }

    /// An error of the connection as people can read it. `seen` is whose certificate the other side showed.
    pub(super) fn explain(&self, error: io::Error, seen: Option<&Identity>) -> io::Error {
        match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
            Some(known) => io::Error::new(error.kind(), marked(&self.words(known, seen))),
            // Not marked: a server that is just stopping does this, too, and the next try may go well.
            None if error.kind() == io::ErrorKind::UnexpectedEof => {
                let text = format!("the {} hung up during the handshake; does it speak TLS?", self.peer.name());
                io::Error::new(error.kind(), text)
            }
            None => error,
        }
    }

    fn words(&self, error: &rustls::Error, seen: Option<&Identity>) -> String {
        let peer = self.peer.name();
        match error {
            rustls::Error::InvalidCertificate(problem) => {
                let whose = seen.map(|identity| format!(" {identity},")).unwrap_or_default();
                format!("the {peer}'s certificate{whose} is refused: {}", self.certificate(problem))
            }
            rustls::Error::AlertReceived(alert) => match alert_words(*alert) {
                Alert::OurCertificate(why) => {
                    let (cert, own) = (self.cert.display(), &self.own);
                    format!("the {peer} refuses this side's certificate {cert} ({own}): {why}")
                }
                Alert::Other(why) => format!("the {peer} ended the handshake: {why}"),
            },
            rustls::Error::NoCertificatesPresented => {
                format!("the {peer} shows no certificate; it needs one that a CA in {} issued", self.ca.display())
            }
            rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType) => match self.peer {
                TlsPeer::Server => "the server does not speak TLS; is its address http:// ?".to_owned(),
                TlsPeer::Client => "the client does not speak TLS; it has to use https://".to_owned(),
            },
            rustls::Error::NoApplicationProtocol => format!("the {peer} does not speak HTTP/2"),
            other => other.to_string(),
        }
    }

    fn certificate(&self, error: &CertificateError) -> String {
        match error {
            CertificateError::UnknownIssuer | CertificateError::BadSignature => {
                format!("it was not issued by a CA in {}", self.ca.display())
            }
            CertificateError::ExpiredContext { not_after, .. } => format!("it expired at {}", moment(*not_after)),
            CertificateError::NotValidYetContext { not_before, .. } => {
                format!("it is not valid before {}; are the clocks right?", moment(*not_before))
            }
            CertificateError::NotValidForNameContext { expected, .. } => {
                format!("it is not for `{}`", expected.to_str())
            }
            CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
                format!("its extended key usage does not let it be used by a {}", self.peer.name())
            }
            CertificateError::Revoked => format!("it is revoked by {}", self.crl.display()),
            CertificateError::UnknownRevocationStatus => {
                format!("no revocation list in {} is of the CA that issued it", self.crl.display())
            }
            CertificateError::ApplicationVerificationFailure => {
                format!("it is not a coordinator's: none of its names is {} (see tls.servers)", self.servers)
            }
            other => other.to_string(),
        }
    }
}

/// What an alert of the other side is about.
enum Alert {
    OurCertificate(&'static str),
    Other(String),
}

fn alert_words(alert: AlertDescription) -> Alert {
    Alert::OurCertificate(match alert {
        AlertDescription::UnknownCA | AlertDescription::DecryptError => "it does not trust the CA that issued it",
        AlertDescription::CertificateExpired => "it is expired, or not valid yet, by the clock there",
        AlertDescription::CertificateRevoked => "it is revoked",
        AlertDescription::UnsupportedCertificate => "it may not be used for this, see its extended key usage",
        AlertDescription::BadCertificate | AlertDescription::CertificateUnknown => "it does not accept it",
        AlertDescription::CertificateRequired => "it was not sent",
        AlertDescription::AccessDenied => "it is not allowed in",
        AlertDescription::NoApplicationProtocol => return Alert::Other("it does not speak HTTP/2".to_owned()),
        AlertDescription::ProtocolVersion => return Alert::Other("it speaks other versions of TLS".to_owned()),
        other => return Alert::Other(format!("{other:?}")),
    })
}

fn moment(time: UnixTime) -> String {
    let seconds = Duration::from_secs(time.as_secs().min(253_402_300_799));
    humantime::format_rfc3339_seconds(SystemTime::UNIX_EPOCH + seconds).to_string()
}

/// In our own words what the system says of a host whose name cannot be resolved; `None` of any other text. The standard
/// library has no kind of error for it.
#[must_use]
pub fn unresolved(text: &str) -> Option<&'static str> {
    let rest = text.split_once("failed to lookup address information")?.1;
    let passing = ["Temporary failure", "Try again"].iter().any(|words| rest.contains(words));
    Some(if passing {
        "the name of the host cannot be resolved now: the name server does not answer"
    } else {
        "there is no host of this name"
    })
}

/// An error with its causes, each said once and without those that only name a layer of the transport. Of a refusal of TLS, and of
/// a name that cannot be resolved, only that.
#[must_use]
pub fn chain(error: &(dyn Error + 'static)) -> String {
    if let Some(text) = refusal(error) {
        return text;
    }
    let mut said: Vec<String> = Vec::new();
    let mut next = Some(error);
    while let Some(cause) = next {
        let text = cause.to_string();
        if let Some(own) = unresolved(&text) {
            return own.to_owned();
        }
        if !names_a_layer(&text) && !said.iter().any(|before| before.contains(&text)) {
            said.push(text);
        }
        next = cause.source();
    }
    if said.is_empty() { "the connection broke".to_owned() } else { said.join(": ") }
}

/// Whether an error of the transport says no more than in which of its layers something happened.
fn names_a_layer(text: &str) -> bool {
    let layers =
        ["transport error", "tcp connect error", "error reading a body from connection", "client error (Connect)"];
    layers.contains(&text) || text.starts_with("h2 protocol error")
}

/// The words about TLS in an error or its causes. Trying again is of no use then until a person has done something.
#[must_use]
pub fn refusal(error: &(dyn Error + 'static)) -> Option<String> {
    let mut next = Some(error);
    let mut found = None;
    while let Some(cause) = next {
        let text = cause.to_string();
        if let Some(at) = text.find(MARK) {
            // Outer errors quote inner ones, with more behind; no text of this module has a quotation mark in it.
            found = text[at..].split('"').next().map(str::to_owned);
        }
        next = cause.source();
    }
    found
}

/// The text of a refusal that is made here.
pub(super) fn marked(text: &str) -> String {
    format!("{MARK}{text}")
}
