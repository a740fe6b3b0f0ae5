//! What a certificate says about who holds it.

use std::fmt;
use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use common::access::SubjectName;
use common::text;
use rustls::pki_types::CertificateDer;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;
use x509_parser::time::ASN1Time;

/// Who a certificate is for, and how long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Common name of the subject.
    pub common_name: Option<String>,
    /// Alternative names of the subject.
    pub names: Vec<AlternativeName>,
    /// From when it counts.
    pub not_before: SystemTime,
    /// Until when it counts.
    pub not_after: SystemTime,
}

/// An alternative name of the subject. Names of other kinds are left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AlternativeName {
    /// A host name.
    Dns(String),
    /// A URI, such as `rug://worker/w1` or a SPIFFE id.
    Uri(String),
    /// An IP address.
    Address(IpAddr),
}

impl fmt::Display for AlternativeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dns(name) | Self::Uri(name) => f.write_str(&printable(name)),
            Self::Address(address) => address.fmt(f),
        }
    }
}

impl Identity {
    /// Reads a certificate.
    ///
    /// # Errors
    /// What is wrong with it, for people.
    pub fn of(certificate: &CertificateDer<'_>) -> Result<Self, String> {
        let (_, parsed) = X509Certificate::from_der(certificate).map_err(|e| format!("not a certificate: {e}"))?;
        let common_name = parsed.subject().iter_common_name().find_map(|name| name.as_str().ok().map(str::to_owned));
        let alternatives = parsed.subject_alternative_name().ok().flatten();
        let names = alternatives.iter().flat_map(|ext| &ext.value.general_names).filter_map(name).collect();
        let validity = parsed.validity();
        Ok(Self {
            common_name,
            names,
            not_before: moment(&validity.not_before),
            not_after: moment(&validity.not_after),
        })
    }

    /// The name to call it by: the common name, or else the first other. Without control characters, and cut off.
    #[must_use]
    pub fn name(&self) -> String {
        let common = self.common_name.as_deref().map(printable);
        common.or_else(|| self.names.first().map(ToString::to_string)).unwrap_or_else(|| "without a name".to_owned())
    }

    /// The names that rules about roles can match.
    pub fn certificate_names(&self) -> impl Iterator<Item = SubjectName<'_>> {
        let alternative = self.names.iter().filter_map(|name| match name {
            AlternativeName::Dns(name) => Some(SubjectName::Dns(name)),
            AlternativeName::Uri(name) => Some(SubjectName::Uri(name)),
            AlternativeName::Address(_) => None,
        });
        self.common_name.as_deref().map(SubjectName::Common).into_iter().chain(alternative)
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.name();
        write!(f, "`{name}`")?;
        let others: Vec<_> = self.names.iter().map(ToString::to_string).filter(|other| *other != name).collect();
        if !others.is_empty() {
            write!(f, " for {}", others.join(", "))?;
        }
        write!(f, ", valid until {}", humantime::format_rfc3339_seconds(self.not_after))
    }
}

/// The names of a stranger's certificate go to logs and terminals.
fn printable(name: &str) -> String {
    text::escaped(text::clip(name, 128)).into_owned()
}

fn name(name: &GeneralName<'_>) -> Option<AlternativeName> {
    match name {
        GeneralName::DNSName(name) => Some(AlternativeName::Dns((*name).to_owned())),
        GeneralName::URI(name) => Some(AlternativeName::Uri((*name).to_owned())),
        GeneralName::IPAddress(bytes) => {
            let four = <[u8; 4]>::try_from(*bytes).map(IpAddr::from);
            let address = four.or_else(|_| <[u8; 16]>::try_from(*bytes).map(IpAddr::from));
            address.ok().map(AlternativeName::Address)
        }
        _ => None,
    }
}

/// Bounded to what every clock and every formatter can take: years 1970 to 9999.
fn moment(time: &ASN1Time) -> SystemTime {
    let seconds = u64::try_from(time.timestamp()).unwrap_or(0).min(253_402_300_799);
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}
