//! How long a call may take: the bounds of this server, and the deadline that the caller sends.

use std::time::Duration;

/// Default time that a call without a deadline waits for the leader.
pub(super) const DEFAULT: Duration = Duration::from_secs(30);
/// Longest wait for the leader, whatever the caller allows.
pub(super) const LONGEST: Duration = Duration::from_secs(600);

/// Parses `grpc-timeout`: up to 8 digits and a unit.
pub(super) fn parse_timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let n: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(n * 3600),
        "M" => Duration::from_secs(n * 60),
        "S" => Duration::from_secs(n),
        "m" => Duration::from_millis(n),
        "u" => Duration::from_micros(n),
        "n" => Duration::from_nanos(n),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grpc_timeouts_are_parsed() {
        for (text, timeout) in [
            ("5S", Some(Duration::from_secs(5))),
            ("100m", Some(Duration::from_millis(100))),
            ("1H", Some(Duration::from_secs(3600))),
            ("", None),
            ("S", None),
            ("123456789S", None),
            ("-1S", None),
            ("5ä", None),
        ] {
            assert_eq!(parse_timeout(text), timeout, "{text:?}");
        }
    }
}
