//! What certificates there are to be, and what is to be done to have them.
//!
//! The secret of the CA holds `tls.crt` and `tls.key`, which sign; `ca.crt`, all that is trusted; and while CAs are exchanged `next.crt` and
//! `next.key`. An exchange takes two runs, a [`SETTLE`] or more apart: the first has the next CA trusted everywhere, the second has it
//! sign. What the one before has signed counts until its end, as it stays trusted that long.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls::pki_types::CertificateDer;
use serde::Deserialize;

use super::issue::{Authority, IssueError, Pair, Seen};

/// Content of a secret.
pub type SecretData = BTreeMap<String, Vec<u8>>;

const DAY: Duration = Duration::from_secs(24 * 3600);

/// How long a new CA is trusted before it signs: longer than nodes and programs take to read what has changed.
const SETTLE: Duration = Duration::from_secs(12 * 3600);

/// What the chart asks for.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// Secret of the CA.
    pub ca: String,
    /// Its common name.
    pub ca_name: String,
    /// Life of a CA.
    pub ca_days: u32,
    /// Life of certificates.
    pub days: u32,
    /// They are renewed so long before their end.
    pub renew_before_days: u32,
    /// The certificates.
    pub certificates: Vec<PlannedCertificate>,
}

/// One certificate.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlannedCertificate {
    /// Its secret.
    pub secret: String,
    /// Common name.
    pub common_name: String,
    /// Host names.
    pub dns: Vec<String>,
    /// IP addresses.
    pub ips: Vec<String>,
    /// What makes it somebody's.
    pub uris: Vec<String>,
}

/// A secret that is to be changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// Its name.
    pub secret: String,
    /// Why, for people.
    pub why: &'static str,
    /// What is written; `None` is taken out.
    pub data: BTreeMap<String, Option<Vec<u8>>>,
}

/// The CA as it is to be.
struct TrustedCa {
    pair: Pair,
    bundle: String,
    step: Option<Step>,
}

impl PlannedCertificate {
    fn names(&self) -> impl Iterator<Item = &String> {
        self.dns.iter().chain(&self.ips).chain(&self.uris)
    }
}

impl Plan {
    /// Every secret.
    pub fn secrets(&self) -> impl Iterator<Item = &str> {
        std::iter::once(self.ca.as_str()).chain(self.certificates.iter().map(|planned| planned.secret.as_str()))
    }

    /// What is to be written, in this order.
    ///
    /// # Errors
    /// A certificate could not be made.
    pub fn steps(&self, found: &BTreeMap<String, SecretData>, now: SystemTime) -> Result<Vec<Step>, IssueError> {
        let none = SecretData::new();
        let of = |name: &str| found.get(name).unwrap_or(&none);
        let ca = self.authority(of(&self.ca), now)?;
        let Some(authority) = Authority::open(&ca.pair) else { return Err(IssueError::Name(self.ca_name.clone())) };
        let trusted: BTreeSet<Vec<u8>> =
            Seen::all(ca.bundle.as_bytes()).into_iter().filter_map(|(seen, _)| seen.key_id).collect();
        let mut steps: Vec<Step> = ca.step.into_iter().collect();
        for planned in &self.certificates {
            let held = of(&planned.secret);
            let why = self.renewal(planned, held, &trusted, now);
            let mut data = BTreeMap::new();
            if why.is_some() {
                let issued = authority.issue(&planned.common_name, planned.names(), now, DAY * self.days)?;
                data.insert("tls.crt".to_owned(), Some(issued.cert.into_bytes()));
                data.insert("tls.key".to_owned(), Some(issued.key.into_bytes()));
            }
            if why.is_some() || held.get("ca.crt").map(Vec::as_slice) != Some(ca.bundle.as_bytes()) {
                data.insert("ca.crt".to_owned(), Some(ca.bundle.clone().into_bytes()));
                let why = why.unwrap_or("what is trusted has changed");
                steps.push(Step { secret: planned.secret.clone(), why, data });
            }
        }
        Ok(steps)
    }

    /// Why a certificate has to be made anew.
    fn renewal(
        &self,
        planned: &PlannedCertificate,
        held: &SecretData,
        trusted: &BTreeSet<Vec<u8>>,
        now: SystemTime,
    ) -> Option<&'static str> {
        let Some(seen) = held.get("tls.crt").and_then(|pem| Seen::first(pem)) else { return Some("made") };
        let wanted: BTreeSet<String> = planned
            .names()
            .map(|name| if name.contains("://") { name.clone() } else { name.to_ascii_lowercase() })
            .collect();
        if !held.contains_key("tls.key") {
            Some("made, as its key was missing")
        } else if seen.left(now) <= DAY * self.renew_before_days {
            Some("renewed, as it would have ended soon")
        } else if seen.names() != wanted || seen.identity.common_name.as_deref() != Some(&planned.common_name) {
            Some("made anew, as its names have changed")
        } else if !seen.signed_by.is_some_and(|by| trusted.contains(&by)) {
            Some("made anew, as its CA is gone")
        } else {
            None
        }
    }

    /// The CA that signs, and all that are trusted.
    fn authority(&self, held: &SecretData, now: SystemTime) -> Result<TrustedCa, IssueError> {
        let life = DAY * self.ca_days;
        let current = pair(held, "tls").filter(|pair| left(pair, now) > Duration::ZERO);
        let next = pair(held, "next").filter(|pair| left(pair, now) > Duration::ZERO);
        // What it signs must not outlive it.
        let needed = DAY * (self.days + self.renew_before_days);
        let Some(current) = current else {
            let made = Authority::make(&self.ca_name, now, life)?;
            return Ok(self.trusting("made", made, None, held, now));
        };
        if left(&current, now) > needed {
            return Ok(self.trusting("what is trusted has changed", current, next, held, now));
        }
        let Some(next) = next else {
            let made = Authority::make(&self.ca_name, now, life)?;
            return Ok(self.trusting("the next CA is trusted from now on", current, Some(made), held, now));
        };
        let settled = Seen::first(next.cert.as_bytes()).is_some_and(|seen| seen.made() + SETTLE <= now);
        if settled {
            return Ok(self.trusting("the next CA signs from now on", next, None, held, now));
        }
        Ok(self.trusting("what is trusted has changed", current, Some(next), held, now))
    }

    /// With everything that was trusted before and has not ended, and a step when that is not what the secret holds.
    fn trusting(
        &self,
        why: &'static str,
        pair: Pair,
        next: Option<Pair>,
        held: &SecretData,
        now: SystemTime,
    ) -> TrustedCa {
        let mut certificates: Vec<CertificateDer<'static>> = Vec::new();
        let before = held.get("ca.crt").map(Vec::as_slice).unwrap_or_default();
        let own = [Some(&pair), next.as_ref()].into_iter().flatten().flat_map(|pair| Seen::all(pair.cert.as_bytes()));
        for (seen, der) in own.chain(Seen::all(before)) {
            if seen.left(now) > Duration::ZERO && !certificates.contains(&der) {
                certificates.push(der);
            }
        }
        let bundle: String = certificates.iter().map(to_pem).collect();
        let text = |text: &str| Some(text.as_bytes().to_vec());
        let mut data = BTreeMap::from([
            ("tls.crt".to_owned(), text(&pair.cert)),
            ("tls.key".to_owned(), text(&pair.key)),
            ("ca.crt".to_owned(), text(&bundle)),
        ]);
        if next.is_some() || held.contains_key("next.crt") || held.contains_key("next.key") {
            data.insert("next.crt".to_owned(), next.as_ref().and_then(|next| text(&next.cert)));
            data.insert("next.key".to_owned(), next.as_ref().and_then(|next| text(&next.key)));
        }
        data.retain(|key, value| held.get(key) != value.as_ref());
        let step = (!data.is_empty()).then(|| Step { secret: self.ca.clone(), why, data });
        TrustedCa { pair, bundle, step }
    }
}

/// A CA with its key, if both are there and belong together.
fn pair(held: &SecretData, name: &str) -> Option<Pair> {
    let text = |key: &str| String::from_utf8(held.get(&format!("{name}.{key}"))?.clone()).ok();
    let pair = Pair { cert: text("crt")?, key: text("key")? };
    Authority::open(&pair).is_some().then_some(pair)
}

fn left(pair: &Pair, now: SystemTime) -> Duration {
    Seen::first(pair.cert.as_bytes()).map_or(Duration::ZERO, |seen| seen.left(now))
}

fn to_pem(der: &CertificateDer<'_>) -> String {
    let text = STANDARD.encode(der);
    let lines: Vec<_> = text.as_bytes().chunks(64).map(String::from_utf8_lossy).collect();
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
}

#[cfg(test)]
mod tests;
