//! The files, what they held when they last made sense, and noticing that they changed.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::sign::CertifiedKey;
use rustls::{InconsistentKeys, RootCertStore};
use tracing::{error, info, warn};
use x509_parser::prelude::FromDer;
use x509_parser::revocation_list::CertificateRevocationList;

use super::{Config, Error, Identity, expiry, provider};

/// Largest file that is read; a whole system's bundle of CAs is a quarter of it.
pub(super) const MAX_FILE: u64 = 1 << 20;

/// Largest revocation list that is read: some 400,000 revoked certificates.
const MAX_CRL: u64 = 16 << 20;

/// How long to wait before files that do not make sense are read once more: whoever replaces them one by one is done
/// within this time.
const SETTLE: Duration = Duration::from_millis(100);

/// What the files held at one moment.
#[derive(Debug)]
pub(super) struct Material {
    /// Checks clients: issued by a trusted CA, and not revoked.
    pub(super) clients: Arc<dyn ClientCertVerifier>,
    /// Checks servers in the same way.
    pub(super) servers: Arc<dyn ServerCertVerifier>,
    /// The own certificate.
    pub(super) own: Option<Own>,
    /// When each of the revocation lists should have been replaced; `None` where one does not say.
    crl_updates: Vec<Option<SystemTime>>,
}

/// The own certificate.
#[derive(Clone, Debug)]
pub(super) struct Own {
    /// The certificate with its key.
    pub(super) key: Arc<CertifiedKey>,
    /// Who it is for.
    pub(super) identity: Identity,
}

impl Material {
    /// Who this side is, for people.
    pub(super) fn shown(&self) -> String {
        self.own.as_ref().map_or_else(|| "no certificate".to_owned(), |own| own.identity.to_string())
    }
}

/// The files, and what they held when they last made sense.
#[derive(Debug)]
pub(super) struct Files {
    pub(super) config: Config,
    state: Mutex<FilesState>,
}

#[derive(Debug)]
struct FilesState {
    raw: Raw,
    material: Arc<Material>,
    /// What was last complained about, so that it is done once.
    complained: Option<String>,
}

/// The files as they are. Compared by content: it costs little, and neither times nor inodes tell a copy from a change.
#[derive(PartialEq, Eq)]
struct Raw {
    ca: Vec<u8>,
    /// The own certificate and its key.
    own: Option<(Vec<u8>, Vec<u8>)>,
    crl: Option<Vec<u8>>,
}

impl std::fmt::Debug for Raw {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Raw(..)")
    }
}

impl Files {
    /// Reads the files for the first time. Blocks for as long as the file system takes.
    pub(super) fn open(config: &Config) -> Result<Self, Error> {
        let raw = Raw::read(config)?;
        let material = Arc::new(raw.parse(config)?);
        let state = Mutex::new(FilesState { raw, material, complained: None });
        Ok(Self { config: config.clone(), state })
    }

    /// Says which identity is used and whether it is of use.
    pub(super) fn announce(&self) {
        let material = self.current();
        expiry::note(&self.config.cert, material.own.as_ref().map(|own| own.identity.not_after));
        let cert = self.config.cert.display();
        info!(%cert, "TLS as {}", material.shown());
        if let Some(exposed) = crate::file::exposure(&self.config.key) {
            warn!("tls.key: {exposed}");
        }
        if let Some(problem) = material.own.as_ref().and_then(|own| own.identity.untimely()) {
            error!(%cert, "the own certificate {problem}; others will refuse it");
        }
        let now = SystemTime::now();
        if let Some(due) = material.crl_updates.iter().flatten().filter(|due| **due < now).min() {
            let due = humantime::format_rfc3339_seconds(*due);
            warn!(crl = %self.config.crl.display(), "a revocation list should have been replaced by {due}; it still counts");
        }
    }

    /// What the files held when they last made sense.
    pub(super) fn current(&self) -> Arc<Material> {
        Arc::clone(&self.state.lock().unwrap_or_else(PoisonError::into_inner).material)
    }

    /// Reads the files again and takes over what changed. Blocks for as long as the file system takes.
    pub(super) fn look(&self) -> Arc<Material> {
        let found = self.changed().or_else(|_| {
            std::thread::sleep(SETTLE);
            self.changed()
        });
        if self.take_over(found) {
            self.announce();
        }
        self.current()
    }

    /// Whether there is something new.
    fn take_over(&self, found: Result<Option<(Raw, Material)>, Error>) -> bool {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match found {
            Ok(None) => {
                if state.complained.take().is_some() {
                    info!("the TLS files are what they were before");
                }
                false
            }
            Ok(Some((raw, material))) => {
                *state = FilesState { raw, material: Arc::new(material), complained: None };
                true
            }
            Err(problem) => {
                let problem = problem.to_string();
                if state.complained.as_ref() != Some(&problem) {
                    warn!("tls.{problem}; going on with what was there before: {}", state.material.shown());
                    state.complained = Some(problem);
                }
                false
            }
        }
    }

    /// What the files hold, if that is something else than before.
    fn changed(&self) -> Result<Option<(Raw, Material)>, Error> {
        let raw = Raw::read(&self.config)?;
        if raw == self.state.lock().unwrap_or_else(PoisonError::into_inner).raw {
            return Ok(None);
        }
        let material = raw.parse(&self.config)?;
        Ok(Some((raw, material)))
    }
}

impl Identity {
    /// Why the certificate does not count now.
    fn untimely(&self) -> Option<String> {
        let now = SystemTime::now();
        if now > self.not_after {
            return Some("has expired".to_owned());
        }
        (now < self.not_before)
            .then(|| format!("is not valid before {}", humantime::format_rfc3339_seconds(self.not_before)))
    }
}

impl Raw {
    fn read(config: &Config) -> Result<Self, Error> {
        let (ca, cert) = (file("ca", &config.ca, MAX_FILE)?, file("cert", &config.cert, MAX_FILE)?);
        let (key, crl) = (file("key", &config.key, MAX_FILE)?, file("crl", &config.crl, MAX_CRL)?);
        let named = |field, content: Option<Vec<u8>>| content.ok_or(Error::Missing(field));
        let own = match (cert, key) {
            (None, None) if config.own_optional => None,
            (cert, key) => Some((named("cert", cert)?, named("key", key)?)),
        };
        Ok(Self { ca: named("ca", ca)?, own, crl })
    }

    fn parse(&self, config: &Config) -> Result<Material, Error> {
        let in_file = |field, path: &Path| {
            let path = path.to_owned();
            move |problem: String| Error::File { field, path: path.clone(), problem }
        };
        let (in_ca, in_crl) = (in_file("ca", &config.ca), in_file("crl", &config.crl));
        let mut roots = RootCertStore::empty();
        for certificate in certificates(&self.ca).map_err(&in_ca)? {
            roots.add(certificate).map_err(|e| in_ca(format!("cannot be used as a CA: {e}")))?;
        }
        let roots = Arc::new(roots);
        let crls = self.crl.as_deref().map(revocation_lists).transpose().map_err(&in_crl)?.unwrap_or_default();
        let clients = WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), provider())
            .with_crls(crls.clone())
            .build()
            .map_err(|e| in_crl(e.to_string()))?;
        let servers = WebPkiServerVerifier::builder_with_provider(roots, provider())
            .with_crls(crls.clone())
            .build()
            .map_err(|e| in_crl(e.to_string()))?;
        let own = self.own.as_ref().map(|(cert, key)| own(cert, key, config)).transpose()?;
        let crl_updates = crls.iter().map(|crl| next_update(crl)).collect();
        Ok(Material { clients, servers, own, crl_updates })
    }
}

/// The own certificate, with a key that belongs to it.
fn own(cert: &[u8], key: &[u8], config: &Config) -> Result<Own, Error> {
    let in_cert = |problem| Error::File { field: "cert", path: config.cert.clone(), problem };
    let in_key = |problem| Error::File { field: "key", path: config.key.clone(), problem };
    let chain = certificates(cert).map_err(in_cert)?;
    let identity = chain.first().map(Identity::of).unwrap_or(Err(NO_CERTIFICATE.to_owned())).map_err(in_cert)?;
    let key = PrivateKeyDer::from_pem_slice(key).map_err(|e| in_key(format!("no private key in it: {e}")))?;
    let key = CertifiedKey::from_der(chain, key, &provider()).map_err(|e| match e {
        rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => {
            in_key(format!("does not belong to the certificate in {}", config.cert.display()))
        }
        other => in_key(other.to_string()),
    })?;
    Ok(Own { key: Arc::new(key), identity })
}

/// What a file holds; `None` when none is named.
pub(super) fn file(field: &'static str, path: &Path, most: u64) -> Result<Option<Vec<u8>>, Error> {
    if path.as_os_str().is_empty() {
        return Ok(None);
    }
    if path.to_string_lossy().contains("://") {
        return Err(Error::Url(field));
    }
    let failed = |problem| Error::File { field, path: path.to_owned(), problem };
    let size = std::fs::metadata(path).map_err(|e| failed(e.to_string()))?.len();
    if size > most {
        return Err(failed(format!("{size} bytes are too many for such a PEM file")));
    }
    std::fs::read(path).map(Some).map_err(|e| failed(e.to_string()))
}

const NO_CERTIFICATE: &str = "no certificate in it";

pub(super) fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match found {
        Ok(found) if found.is_empty() => Err(NO_CERTIFICATE.to_owned()),
        Ok(found) => Ok(found),
        Err(e) => Err(format!("not a PEM file: {e}")),
    }
}

fn revocation_lists(pem: &[u8]) -> Result<Vec<CertificateRevocationListDer<'static>>, String> {
    let found: Result<Vec<_>, _> = CertificateRevocationListDer::pem_slice_iter(pem).collect();
    match found {
        Ok(found) if found.is_empty() => Err("no revocation list (X509 CRL) in it".to_owned()),
        Ok(found) => Ok(found),
        Err(e) => Err(format!("not a PEM file: {e}")),
    }
}

/// Reads revocation lists (PEM) as the files of a server are read, for the fuzz tests; answers how many there are and how many
/// say when they should be replaced. `authority` is a CA that is trusted.
///
/// # Errors
/// Why they cannot be used.
pub fn read_revocation_lists(pem: &[u8], authority: &CertificateDer<'_>) -> Result<(usize, usize), String> {
    let crls = revocation_lists(pem)?;
    let mut roots = RootCertStore::empty();
    roots.add(authority.clone().into_owned()).map_err(|e| e.to_string())?;
    let due = crls.iter().filter_map(|crl| next_update(crl)).count();
    let count = crls.len();
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider()).with_crls(crls).build();
    verifier.map(|_| (count, due)).map_err(|e| e.to_string())
}

/// When a list should be replaced.
fn next_update(crl: &[u8]) -> Option<SystemTime> {
    let (_, list) = CertificateRevocationList::from_der(crl).ok()?;
    let seconds = u64::try_from(list.next_update()?.timestamp()).ok()?.min(253_402_300_799);
    Some(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds))
}
