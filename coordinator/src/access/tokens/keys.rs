//! The keys of the issuer: where they come from, and keeping them fresh.
//!
//! One task fetches them. A fetch that fails leaves the keys of before and is tried again with growing, jittered pauses; one
//! that brings no usable key counts as failed. A token with an unknown key asks for a fetch, which happens at most once in
//! [`NUDGE`], so that tokens with made-up keys cost the issuer nothing.

use std::future::poll_fn;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, Weak};
use std::time::Duration;

use common::backoff::Backoff;
use http::Uri;
use http::uri::{Authority, PathAndQuery};
use http_body::Body as _;
use hyper_util::rt::TokioIo;
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, JwkSet, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey};
use runtime::retry::Retries;
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};
use tonic::body::Body;
use tracing::{info, warn};

use super::{Config, TokenProblem};

/// Largest set of keys that is read.
const MAX_SET: usize = 1 << 20;
/// Most keys that are kept.
const MAX_KEYS: usize = 1_000;
/// Deadline of one fetch, from connecting to the last byte.
const FETCH: Duration = Duration::from_secs(10);
/// Shortest time between two fetches because of unknown keys.
const NUDGE: Duration = Duration::from_secs(10);
/// Longest pause after a fetch that failed.
const MAX_PAUSE: Duration = Duration::from_secs(60);

/// Where the keys are.
#[derive(Clone, Debug)]
pub(super) enum Location {
    File(PathBuf),
    Web { address: Uri, ca: PathBuf },
}

impl Location {
    /// Reads the settings.
    pub(super) fn of(config: &Config) -> Result<Self, String> {
        let text = config.jwks.as_str();
        match text.split_once("://") {
            None => Ok(Self::File(PathBuf::from(text))),
            Some(("https", _)) => {
                let address: Uri = text.parse().map_err(|e| format!("is not an address: {e}"))?;
                if address.authority().is_some_and(|authority| authority.as_str().contains('@')) {
                    return Err("must not have credentials in it".to_owned());
                }
                if config.ca.as_os_str().is_empty() {
                    let bundle = "/etc/ssl/certs/ca-certificates.crt";
                    return Err(format!("needs `ca`, the CAs that its server is checked against, such as {bundle}"));
                }
                Ok(Self::Web { address, ca: config.ca.clone() })
            }
            Some(_) => Err("must be a file, or an address that begins with https://".to_owned()),
        }
    }

    async fn fetch(&self) -> Result<Vec<IssuerKey>, KeyError> {
        let text = match self {
            Self::File(path) => read(path)?,
            Self::Web { address, ca } => download(address, ca).await?,
        };
        parse(&text)
    }
}

/// Why there are no keys.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The settings are not in order.
    #[error("jwks {0}")]
    Settings(String),
    /// A file cannot be read.
    #[error("read {}: {problem}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        problem: String,
    },
    /// The server did not answer as it should.
    #[error("fetch the keys of tokens: {0}")]
    Fetch(String),
    /// What was read is no set of keys.
    #[error("{0}")]
    Keys(String),
}

/// A key of the issuer.
#[derive(Clone, Debug)]
pub(super) struct IssuerKey {
    id: Option<String>,
    pub(super) key: DecodingKey,
    /// What it may be used with; never empty, and nothing without a public key.
    pub(super) algorithms: Vec<Algorithm>,
}

/// The keys as they were last fetched. Clones share them.
#[derive(Clone, Debug)]
pub(super) struct KeyStore(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    keys: RwLock<Vec<Arc<IssuerKey>>>,
    /// A token named a key that is not known.
    wanted: Notify,
    /// Fetches that came to nothing.
    failed: AtomicU64,
}

impl KeyStore {
    /// Reads a file at once; an address is asked in the background.
    pub(super) fn start(location: Location, refresh: Duration) -> Result<Self, KeyError> {
        let shared = Arc::new(Shared::default());
        if let Location::File(path) = &location {
            shared.replace(parse(&read(path)?)?);
        }
        tokio::spawn(keep_fresh(Arc::downgrade(&shared), location, refresh));
        Ok(Self(shared))
    }

    /// These keys for ever, for the fuzz tests.
    pub(super) fn fixed(set: &[u8]) -> Result<Self, KeyError> {
        let shared = Arc::new(Shared::default());
        shared.replace(parse(set)?);
        Ok(Self(shared))
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.0.keys.read().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Fetches that came to nothing so far.
    #[cfg(test)]
    pub(super) fn failed(&self) -> u64 {
        self.0.failed.load(Ordering::Relaxed)
    }

    /// The key with this id. Without an id the only one there is.
    pub(super) fn find(&self, id: Option<&str>) -> Result<Arc<IssuerKey>, TokenProblem> {
        let keys = self.0.keys.read().unwrap_or_else(PoisonError::into_inner);
        let found = match (id, keys.as_slice()) {
            (_, []) => return Err(TokenProblem::NoKeys),
            (None, [only]) => Some(only),
            (None, _) => None,
            (Some(id), keys) => keys.iter().find(|key| key.id.as_deref() == Some(id)),
        };
        match found {
            Some(key) => Ok(Arc::clone(key)),
            None => {
                self.0.wanted.notify_one();
                Err(TokenProblem::UnknownKey)
            }
        }
    }
}

impl Shared {
    fn replace(&self, keys: Vec<IssuerKey>) {
        *self.keys.write().unwrap_or_else(PoisonError::into_inner) = keys.into_iter().map(Arc::new).collect();
    }
}

async fn keep_fresh(shared: Weak<Shared>, location: Location, refresh: Duration) {
    let mut retries = Retries::new(Backoff { base: Duration::from_millis(500), cap: MAX_PAUSE });
    let mut failing = false;
    loop {
        let pause = match timeout(FETCH, location.fetch()).await.unwrap_or_else(|_| Err(no_answer())) {
            Ok(keys) => {
                let Some(shared) = shared.upgrade() else { return };
                if std::mem::take(&mut failing) {
                    info!(keys = keys.len(), "the keys of tokens could be fetched again");
                }
                shared.replace(keys);
                retries.reset();
                refresh
            }
            Err(error) => {
                let Some(shared) = shared.upgrade() else { return };
                shared.failed.fetch_add(1, Ordering::Relaxed);
                if !std::mem::replace(&mut failing, true) {
                    warn!("{error}; the keys of before stay in use");
                }
                retries.next_delay().min(refresh)
            }
        };
        sleep(pause.min(NUDGE)).await;
        let Some(wanted) = shared.upgrade() else { return };
        if pause > NUDGE {
            // Its end is noticed within a refresh.
            let _ = timeout(pause - NUDGE, wanted.wanted.notified()).await;
        }
    }
}

fn no_answer() -> KeyError {
    KeyError::Fetch(format!("no answer within {FETCH:?}"))
}

fn read(path: &PathBuf) -> Result<Vec<u8>, KeyError> {
    let failed = |problem: String| KeyError::File { path: path.clone(), problem };
    let size = std::fs::metadata(path).map_err(|e| failed(e.to_string()))?.len();
    if size > MAX_SET as u64 {
        return Err(failed(format!("{size} bytes are too many for a set of keys")));
    }
    std::fs::read(path).map_err(|e| failed(e.to_string()))
}

/// Asks the server, over TLS only, without following it elsewhere. Bounded by its caller.
async fn download(address: &Uri, ca: &Path) -> Result<Vec<u8>, KeyError> {
    let failed = |e: hyper::Error| KeyError::Fetch(runtime::tls::chain(&e));
    let host = address.host().unwrap_or_default();
    let tls = runtime::tls::web_client(ca, None).map_err(KeyError::Fetch)?;
    let stream = tls.connect(host, address.port_u16().unwrap_or(443)).await;
    let stream = TokioIo::new(stream.map_err(KeyError::Fetch)?);
    let (mut client, connection) = hyper::client::conn::http1::handshake(stream).await.map_err(failed)?;
    // Ends with the client, at the end of this function.
    tokio::spawn(connection);
    let authority = address.authority().map(Authority::as_str).unwrap_or_default();
    let request = http::Request::get(address.path_and_query().map_or("/", PathAndQuery::as_str))
        .header(http::header::HOST, authority)
        .header(http::header::ACCEPT, "application/json")
        .body(Body::empty())
        .map_err(|e| KeyError::Fetch(e.to_string()))?;
    let answer = client.send_request(request).await.map_err(failed)?;
    if answer.status() != http::StatusCode::OK {
        return Err(KeyError::Fetch(format!("the server answers {}", answer.status())));
    }
    let mut body = answer.into_body();
    let mut text = Vec::new();
    while let Some(frame) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
        let part = frame.map_err(failed)?.into_data().unwrap_or_default();
        if text.len() + part.len() > MAX_SET {
            return Err(KeyError::Fetch(format!("the answer has more than {MAX_SET} bytes")));
        }
        text.extend_from_slice(&part);
    }
    Ok(text)
}

/// The keys in a set that tokens can be checked with; others are left out.
fn parse(text: &[u8]) -> Result<Vec<IssuerKey>, KeyError> {
    let set: JwkSet =
        serde_json::from_slice(text).map_err(|e| KeyError::Keys(format!("the keys of tokens are no JWK set: {e}")))?;
    let keys: Vec<_> = set.keys.iter().take(MAX_KEYS).filter_map(usable).collect();
    if keys.is_empty() {
        let problem = "there is no key for signatures by RSA, ECDSA or Ed25519 in the JWK set";
        return Err(KeyError::Keys(problem.to_owned()));
    }
    Ok(keys)
}

fn usable(jwk: &Jwk) -> Option<IssuerKey> {
    use Algorithm as A;
    if !matches!(jwk.common.public_key_use, None | Some(PublicKeyUse::Signature)) {
        return None;
    }
    let possible: &[A] = match &jwk.algorithm {
        AlgorithmParameters::RSA(_) => &[A::RS256, A::RS384, A::RS512, A::PS256, A::PS384, A::PS512],
        AlgorithmParameters::EllipticCurve(key) => match key.curve {
            EllipticCurve::P256 => &[A::ES256],
            EllipticCurve::P384 => &[A::ES384],
            _ => return None,
        },
        AlgorithmParameters::OctetKeyPair(key) if key.curve == EllipticCurve::Ed25519 => &[A::EdDSA],
        // Symmetric keys: whoever can check with them could sign with them.
        _ => return None,
    };
    let algorithms: Vec<A> = match jwk.common.key_algorithm {
        None => possible.to_vec(),
        Some(named) => possible.iter().copied().filter(|a| A::try_from(named).is_ok_and(|n| n == *a)).collect(),
    };
    let key = DecodingKey::from_jwk(jwk).ok()?;
    (!algorithms.is_empty()).then(|| IssuerKey { id: jwk.common.key_id.clone(), key, algorithms })
}
