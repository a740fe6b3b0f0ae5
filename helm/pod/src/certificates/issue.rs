//! Makes certificates, and reads what those that are there say.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType,
};
use runtime::tls::{AlternativeName, Identity};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::ParsedExtension;
use x509_parser::prelude::FromDer;

/// How far clocks of nodes may be behind.
const SKEW: Duration = Duration::from_secs(3600);

/// A certificate with its key, both PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Pair {
    pub(super) cert: String,
    pub(super) key: String,
}

/// What a certificate says.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    pub(super) identity: Identity,
    /// Id of its key; only CAs have one.
    pub(super) key_id: Option<Vec<u8>>,
    /// Id of the key that signed it.
    pub(super) signed_by: Option<Vec<u8>>,
}

impl Seen {
    /// All certificates in a PEM file, each with its own text; nothing of one that does not make sense.
    pub(super) fn all(pem: &[u8]) -> Vec<(Self, CertificateDer<'static>)> {
        let read = CertificateDer::pem_slice_iter(pem).filter_map(Result::ok);
        read.filter_map(|der| Some((Self::of(&der)?, der))).collect()
    }

    /// The first one.
    pub(super) fn first(pem: &[u8]) -> Option<Self> {
        Self::all(pem).into_iter().next().map(|(seen, _)| seen)
    }

    fn of(der: &CertificateDer<'_>) -> Option<Self> {
        let identity = Identity::of(der).ok()?;
        let (_, parsed) = X509Certificate::from_der(der).ok()?;
        let (mut key_id, mut signed_by) = (None, None);
        for extension in parsed.extensions() {
            match extension.parsed_extension() {
                ParsedExtension::SubjectKeyIdentifier(id) => key_id = Some(id.0.to_vec()),
                ParsedExtension::AuthorityKeyIdentifier(id) => {
                    signed_by = id.key_identifier.as_ref().map(|id| id.0.to_vec());
                }
                _ => {}
            }
        }
        Some(Self { identity, key_id, signed_by })
    }

    /// Since when it counts, without what is taken off for clocks that are behind.
    pub(super) fn made(&self) -> SystemTime {
        self.identity.not_before + SKEW
    }

    /// How long it still counts.
    pub(super) fn left(&self, now: SystemTime) -> Duration {
        self.identity.not_after.duration_since(now).unwrap_or_default()
    }

    /// All names, as they stand in plans.
    pub(super) fn names(&self) -> BTreeSet<String> {
        let alternative = self.identity.names.iter().map(|name| match name {
            AlternativeName::Dns(name) => name.to_ascii_lowercase(),
            AlternativeName::Uri(name) => name.clone(),
            AlternativeName::Address(address) => address.to_string(),
        });
        alternative.collect()
    }
}

/// Certificates could not be made: a name is none, or there is no randomness.
#[derive(Debug, thiserror::Error)]
pub enum IssueError {
    /// A name that cannot stand in a certificate.
    #[error("`{0}` cannot stand in a certificate")]
    Name(String),
    /// The library refused.
    #[error("make a certificate: {0}")]
    Library(#[from] rcgen::Error),
}

/// A CA that signs.
pub(super) struct Authority {
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// The CA with this certificate and key; `None` when they do not make sense together.
    pub(super) fn open(pair: &Pair) -> Option<Self> {
        let seen = Seen::first(pair.cert.as_bytes())?;
        let key = KeyPair::from_pem(&pair.key).ok()?;
        let mut params = params(&seen.identity.common_name?, [].iter()).ok()?;
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        // Its id is made of the key, so that it tells whether the key is that of the certificate.
        (Some(params.key_identifier(&key)) == seen.key_id).then(|| Self { issuer: Issuer::new(params, key) })
    }

    /// A new one.
    pub(super) fn make(name: &str, now: SystemTime, life: Duration) -> Result<Pair, IssueError> {
        let mut params = params(name, [].iter())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.extended_key_usages = Vec::new();
        set_life(&mut params, now, life);
        let key = KeyPair::generate()?;
        Ok(Pair { cert: params.self_signed(&key)?.pem(), key: key.serialize_pem() })
    }

    /// A certificate for servers and clients of these names.
    pub(super) fn issue<'a>(
        &self,
        common_name: &str,
        names: impl Iterator<Item = &'a String>,
        now: SystemTime,
        life: Duration,
    ) -> Result<Pair, IssueError> {
        let mut params = params(common_name, names)?;
        params.use_authority_key_identifier_extension = true;
        set_life(&mut params, now, life);
        let key = KeyPair::generate()?;
        Ok(Pair { cert: params.signed_by(&key, &self.issuer)?.pem(), key: key.serialize_pem() })
    }
}

fn params<'a>(common_name: &str, names: impl Iterator<Item = &'a String>) -> Result<CertificateParams, IssueError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    for name in names {
        let text = name.as_str().try_into().map_err(|_| IssueError::Name(name.clone()));
        params.subject_alt_names.push(match name.parse() {
            Ok(address) => SanType::IpAddress(address),
            Err(_) if name.contains("://") => SanType::URI(text?),
            Err(_) => SanType::DnsName(text?),
        });
    }
    Ok(params)
}

fn set_life(params: &mut CertificateParams, now: SystemTime, life: Duration) {
    let moment = |time: SystemTime| {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        // Certificates know whole seconds.
        rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(since.as_secs())
    };
    params.not_before = moment(now - SKEW);
    params.not_after = moment(now + life);
}
