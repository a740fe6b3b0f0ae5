//! What a certificate says about who holds it.

use std::fmt;
use std::net::IpAddr;
use std::time::{Duration, SystemTime};

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
    /// Alternative names of the subject: host names, IP addresses, URIs.
    pub names: Vec<String>,
    /// From when it counts.
    pub not_before: SystemTime,
    /// Until when it counts.
    pub not_after: SystemTime,
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

    /// The name to call it by: the common name, or else the first other.
    #[must_use]
    pub fn name(&self) -> &str {
        self.common_name.as_deref().or(self.names.first().map(String::as_str)).unwrap_or("without a name")
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}`", printable(self.name()))?;
        let others: Vec<_> = self.names.iter().filter(|n| *n != self.name()).map(|n| printable(n)).collect();
        if !others.is_empty() {
            write!(f, " for {}", others.join(", "))?;
        }
        write!(f, ", valid until {}", humantime::format_rfc3339_seconds(self.not_after))
    }
}

/// The names of a stranger's certificate go to logs and terminals.
fn printable(name: &str) -> String {
    name.chars().take(128).map(|c| if c.is_control() { '?' } else { c }).collect()
}

fn name(name: &GeneralName<'_>) -> Option<String> {
    match name {
        GeneralName::DNSName(name) | GeneralName::URI(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(bytes) => {
            let four = <[u8; 4]>::try_from(*bytes).map(IpAddr::from);
            four.or_else(|_| <[u8; 16]>::try_from(*bytes).map(IpAddr::from)).ok().map(|ip| ip.to_string())
        }
        _ => None,
    }
}

/// Bounded to what every clock and every formatter can take: years 1970 to 9999.
fn moment(time: &ASN1Time) -> SystemTime {
    let seconds = u64::try_from(time.timestamp()).unwrap_or(0).min(253_402_300_799);
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}
