//! Durations, moments, addresses: small values that several messages share.

use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Longest duration the wire can carry, in seconds: what `google.protobuf.Duration` allows, about 10,000 years.
const MAX_SECONDS: i64 = 315_576_000_000;
const NANOS: i32 = 1_000_000_000;

/// Why a small value cannot be used. Prints as the second half of a sentence that names the field.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A duration below zero.
    #[error("must not be negative")]
    Negative,
    /// A duration whose parts are outside what its type allows.
    #[error("is out of range")]
    OutOfRange,
    /// Not an IP address; carries the start of the text.
    #[error("`{0}` is not an IP address")]
    Address(String),
    /// Not a port number.
    #[error("must be 1 to 65535, is {0}")]
    Port(u32),
}

/// Reads a duration.
///
/// # Errors
/// [`Error::Negative`], [`Error::OutOfRange`].
pub fn duration_from_wire(wire: &prost_types::Duration) -> Result<Duration, Error> {
    if wire.seconds < 0 || wire.nanos < 0 {
        return Err(Error::Negative);
    }
    if wire.seconds > MAX_SECONDS || wire.nanos >= NANOS {
        return Err(Error::OutOfRange);
    }
    Ok(Duration::new(wire.seconds.unsigned_abs(), wire.nanos.unsigned_abs()))
}

/// Writes a duration; one beyond the wire's range becomes the longest it can carry.
#[must_use]
pub fn duration_to_wire(duration: Duration) -> prost_types::Duration {
    match i64::try_from(duration.as_secs()) {
        Ok(seconds) if seconds <= MAX_SECONDS => {
            prost_types::Duration { seconds, nanos: duration.subsec_nanos().cast_signed() }
        }
        _ => prost_types::Duration { seconds: MAX_SECONDS, nanos: 0 },
    }
}

/// Writes a moment; one before 1970 becomes 1970.
#[must_use]
pub fn time_to_wire(time: SystemTime) -> prost_types::Timestamp {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    prost_types::Timestamp {
        seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
        nanos: since.subsec_nanos().cast_signed(),
    }
}

/// Writes a moment given in milliseconds since 1970.
#[must_use]
pub fn unix_ms_to_wire(ms: u64) -> prost_types::Timestamp {
    prost_types::Timestamp {
        seconds: i64::try_from(ms / 1000).unwrap_or(i64::MAX),
        nanos: i32::try_from(ms % 1000 * 1_000_000).unwrap_or(0),
    }
}

/// Reads a moment as milliseconds since 1970.
///
/// # Errors
/// [`Error::Negative`] before 1970, [`Error::OutOfRange`].
pub fn unix_ms_from_wire(wire: &prost_types::Timestamp) -> Result<u64, Error> {
    if wire.seconds < 0 || wire.nanos < 0 {
        return Err(Error::Negative);
    }
    if wire.seconds > MAX_SECONDS || wire.nanos >= NANOS {
        return Err(Error::OutOfRange);
    }
    Ok(wire.seconds.unsigned_abs() * 1000 + u64::from(wire.nanos.unsigned_abs()) / 1_000_000)
}

/// Reads an address; empty is the loopback address.
///
/// # Errors
/// [`Error::Address`].
pub fn address_from_wire(text: &str) -> Result<IpAddr, Error> {
    if text.is_empty() {
        return Ok(IpAddr::V4(Ipv4Addr::LOCALHOST));
    }
    text.parse().map_err(|_| Error::Address(clip(text, 64)))
}

/// Reads a port, 1 to 65535.
///
/// # Errors
/// [`Error::Port`].
pub fn port_from_wire(port: u32) -> Result<u16, Error> {
    u16::try_from(port).ok().filter(|p| *p > 0).ok_or(Error::Port(port))
}

/// The first `most` bytes of `text`, less what would cut a character in two.
#[must_use]
pub fn clip(text: &str, most: usize) -> String {
    let mut end = text.len().min(most);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}
