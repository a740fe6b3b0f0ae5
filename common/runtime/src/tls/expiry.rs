//! When the certificates expire that this process shows to others.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

/// Expiry of the own certificates that are in use, by their files.
static EXPIRY: Mutex<BTreeMap<PathBuf, SystemTime>> = Mutex::new(BTreeMap::new());

/// Notes what a file holds from now on.
pub(super) fn note(cert: &Path, not_after: Option<SystemTime>) {
    let mut known = EXPIRY.lock().unwrap_or_else(PoisonError::into_inner);
    match not_after {
        Some(at) => known.insert(cert.to_owned(), at),
        None => known.remove(cert),
    };
}

/// When the first of the certificates expires that this process shows to others, as far as it shows any.
#[must_use]
pub fn certificate_expiry() -> Option<SystemTime> {
    EXPIRY.lock().unwrap_or_else(PoisonError::into_inner).values().min().copied()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_first_one_counts_until_it_is_replaced() {
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        // Other tests of this process note certificates that are valid now.
        note(Path::new("/expiry/a"), Some(at(20)));
        note(Path::new("/expiry/b"), Some(at(10)));
        assert_eq!(certificate_expiry(), Some(at(10)));
        note(Path::new("/expiry/b"), Some(at(30)));
        assert_eq!(certificate_expiry(), Some(at(20)));
        note(Path::new("/expiry/a"), None);
        assert_ne!(certificate_expiry(), Some(at(20)));
        note(Path::new("/expiry/b"), None);
    }
}
