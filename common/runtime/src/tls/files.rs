//! The three files, what they held when they last made sense, and noticing that they changed.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use rustls::{InconsistentKeys, RootCertStore};
use tracing::{error, info, warn};

use super::{Config, Error, Identity, provider};

/// Largest file that is read; a whole system's bundle of CAs is a quarter of it.
const MAX_FILE: u64 = 1 << 20;

/// How long to wait before files that do not make sense are read once more: whoever replaces them one by one is done
/// within this time.
const SETTLE: Duration = Duration::from_millis(100);

/// What the files held at one moment.
#[derive(Debug)]
pub(super) struct Material {
    /// The CAs the other side must be issued by.
    pub(super) roots: Arc<RootCertStore>,
    /// The own certificate, with its key.
    pub(super) own: Arc<CertifiedKey>,
    /// Who the own certificate is for.
    pub(super) identity: Identity,
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
struct Raw([Vec<u8>; 3]);

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
        info!(cert = %self.config.cert.display(), "TLS as {}", material.identity);
        if let Some(problem) = material.identity.untimely() {
            error!(cert = %self.config.cert.display(), "the own certificate {problem}; others will refuse it");
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
                    warn!("tls.{problem}; going on with what was there before: {}", state.material.identity);
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
        let files = config.files();
        let read = |index: usize| -> Result<Vec<u8>, Error> {
            let (field, path): (_, &Path) = files[index];
            if path.as_os_str().is_empty() {
                return Err(Error::Missing(field));
            }
            let failed = |problem| Error::File { field, path: path.to_owned(), problem };
            let size = std::fs::metadata(path).map_err(|e| failed(e.to_string()))?.len();
            if size > MAX_FILE {
                return Err(failed(format!("{size} bytes are too many for a PEM file")));
            }
            std::fs::read(path).map_err(|e| failed(e.to_string()))
        };
        Ok(Self([read(0)?, read(1)?, read(2)?]))
    }

    fn parse(&self, config: &Config) -> Result<Material, Error> {
        let [ca, cert, key] = &self.0;
        let [in_ca, in_cert, in_key] = config
            .files()
            .map(|(field, path)| move |problem: String| Error::File { field, path: path.to_owned(), problem });
        let mut roots = RootCertStore::empty();
        for certificate in certificates(ca).map_err(&in_ca)? {
            roots.add(certificate).map_err(|e| in_ca(format!("cannot be used as a CA: {e}")))?;
        }
        let chain = certificates(cert).map_err(&in_cert)?;
        let identity = chain.first().map(Identity::of).unwrap_or(Err(NO_CERTIFICATE.to_owned())).map_err(&in_cert)?;
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|e| in_key(format!("no private key in it: {e}")))?;
        let own = CertifiedKey::from_der(chain, key, &provider()).map_err(|e| match e {
            rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => {
                in_key(format!("does not belong to the certificate in {}", config.cert.display()))
            }
            other => in_key(other.to_string()),
        })?;
        Ok(Material { roots: Arc::new(roots), own: Arc::new(own), identity })
    }
}

const NO_CERTIFICATE: &str = "no certificate in it";

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match found {
        Ok(found) if found.is_empty() => Err(NO_CERTIFICATE.to_owned()),
        Ok(found) => Ok(found),
        Err(e) => Err(format!("not a PEM file: {e}")),
    }
}
