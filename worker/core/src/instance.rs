//! One running thing behind an appliance, as its driver describes it.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::ops::RangeInclusive;

use common::appliance::Name;
use common::network_port::MacAddress;
use common::status::Details;
use common::{ApplianceId, Timestamp};

use crate::ports::PluggedPorts;

/// Longest handle, in bytes.
pub const MAX_HANDLE: usize = 512;
/// Length of a [`ManagementSecret`] in bytes: the shortest that cannot be guessed, and the longest that fits a header.
const SECRET_LENGTH: RangeInclusive<usize> = 32..=256;

/// A running instance.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Instance {
    /// Position among the replicas, from 0.
    pub ordinal: u16,
    /// Which attempt at this ordinal started it, from 1.
    pub attempt: u32,
    /// [`crate::desired::boot_digest`] it was started with.
    pub boot_digest: String,
    /// How its driver finds it again.
    pub handle: Handle,
    /// Start time as the driver tells it, in milliseconds since the Unix epoch.
    pub started_at_unix_ms: u64,
    /// How far its boot has come.
    pub boot: BootState,
    /// Where it can be reached.
    pub addresses: Addresses,
    /// What callers of its REST contract prove themselves with. `None` for instances without one, and for those that a version
    /// started that gave them none.
    pub secret: Option<ManagementSecret>,
    /// Whether another instance that is started beside it can take its service over, so that it need not be ended first.
    pub hands_over: bool,
    /// Whether it has an address of its own: then every instance of an appliance uses the ports of the first one, and its driver knows
    /// where its service is.
    pub has_own_address: bool,
    /// It waits to be taken by another appliance: it is not configured, and that it is gone one day is no failure of it.
    pub is_spare: bool,
    /// Network ports that are plugged, as far as its driver plugs ports.
    pub ports: PluggedPorts,
    /// Hardware addresses of its network ports by their names, as far as its driver knows them: by these an instance that serves the
    /// REST contract says which of its interfaces is on which network.
    pub macs: BTreeMap<Name, MacAddress>,
    /// What its driver knows of it, for people.
    pub details: Details,
}

impl Instance {
    /// Name of the instance: derived from appliance, ordinal and attempt, so that a takeover without a journal finds
    /// what its predecessor made.
    #[must_use]
    pub fn name(appliance: ApplianceId, ordinal: u16, attempt: u32) -> String {
        format!("{appliance}-{ordinal}-{attempt}")
    }
}

/// How far the boot of an instance has come. Its driver keeps this beside the instance, so that every owner goes on with the
/// boot that another one began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BootState {
    /// Its driver cannot tell. What the former owner handed over decides; after a lost owner it counts as over.
    #[default]
    Unknown,
    /// No owner has noted an answer yet.
    UnderWay {
        /// When it was started, on the clock of this host that goes on during a suspend. One that is ahead counts as now.
        since: Timestamp,
    },
    /// An owner has noted that it answered a probe.
    Over,
}

/// What a driver finds of one appliance.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observation {
    /// Every instance that runs.
    pub running: Vec<Instance>,
    /// The newest attempt at each ordinal that the driver has a trace of, whether it runs or not. The numbers of a lost owner are
    /// known from here only.
    pub attempts: Vec<(u16, u32)>,
}

impl From<Vec<Instance>> for Observation {
    /// Without traces of what does not run.
    fn from(running: Vec<Instance>) -> Self {
        Self { running, attempts: Vec::new() }
    }
}

/// Addresses of an instance, by purpose.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Addresses {
    /// Where its REST contract is served, for kinds that have one.
    pub management: Option<SocketAddr>,
    /// Where its service is, if it has one.
    pub service: Option<SocketAddr>,
}

/// How a driver finds an instance again, in a form that only this driver understands: pid and start time, the id of a
/// server. At most [`MAX_HANDLE`] bytes. It is kept for as long as the instance is owned, and handed to no other worker.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Handle(Box<str>);

/// A driver's text is too long for a [`Handle`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a handle of {0} bytes, at most {MAX_HANDLE} are allowed")]
pub struct HandleTooLong(usize);

impl Handle {
    /// Wraps what the driver wrote.
    ///
    /// # Errors
    /// [`HandleTooLong`].
    pub fn new(text: impl Into<Box<str>>) -> Result<Self, HandleTooLong> {
        let text = text.into();
        if text.len() > MAX_HANDLE { Err(HandleTooLong(text.len())) } else { Ok(Self(text)) }
    }

    /// What the driver wrote; empty for an instance that its name is enough to find.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// What callers of an instance's REST contract prove themselves with: random, made by the driver for each attempt, known to the
/// instance and to the owners of its appliance. Tokens order owners; this tells an owner from anybody else. 32 to 256
/// printable characters of ASCII without space; never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct ManagementSecret(Box<str>);

/// A text that cannot be a [`ManagementSecret`]. Does not quote it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a secret has {} to {} printable characters of ASCII without space", SECRET_LENGTH.start(), SECRET_LENGTH.end())]
pub struct InvalidSecret;

impl ManagementSecret {
    /// Takes the text of a secret.
    ///
    /// # Errors
    /// [`InvalidSecret`].
    pub fn new(text: impl Into<Box<str>>) -> Result<Self, InvalidSecret> {
        let text = text.into();
        let valid = SECRET_LENGTH.contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic());
        if valid { Ok(Self(text)) } else { Err(InvalidSecret) }
    }

    /// The text, for the header of a call and the file of an instance. It must not get into a log or a message.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for ManagementSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ManagementSecret(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_long_fits_a_header_and_is_not_shown() {
        let secret = ManagementSecret::new("0123456789abcdef0123456789abcdef").expect("long enough");
        assert_eq!(format!("{:?}", Instance { secret: Some(secret), ..Instance::default() }).find("0123"), None);
        for text in ["short", &"x".repeat(257), &"a b".repeat(20), &"\r\n".repeat(20), &"\u{e9}".repeat(20)] {
            assert_eq!(ManagementSecret::new(text), Err(InvalidSecret), "{text:?}");
        }
    }

    #[test]
    fn a_handle_is_bounded() {
        assert_eq!(Handle::new("x".repeat(MAX_HANDLE)).map(|h| h.as_str().len()), Ok(MAX_HANDLE));
        let error = Handle::new("x".repeat(MAX_HANDLE + 1)).expect_err("too long");
        assert_eq!(error.to_string(), "a handle of 513 bytes, at most 512 are allowed");
    }
}
