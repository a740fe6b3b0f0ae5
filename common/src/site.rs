//! Where instances of a host-bound driver are kept: hosts, and state directories on them.

use std::fmt;
use std::sync::Arc;

use crate::text;

/// What [`is_host`] asks for, for messages.
pub const HOST_RULE: &str = "must have 1 to 255 bytes, no `/` and no control characters";

/// What [`is_state_dir`] asks for, for messages.
pub const STATE_DIR_RULE: &str = "must be an absolute path of at most 1024 bytes without control characters";

/// Where instances of a host-bound driver are kept: a host, and a state directory on it. Only a worker of that very site
/// can tell what runs there, so that an appliance stays on the site where it was first placed.
///
/// As text it is `host:/directory`, or the host alone.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Site(Arc<str>);

impl Site {
    /// The site of a state directory, given as an absolute path, or empty for none.
    #[must_use]
    pub fn new(host: &str, state_dir: &str) -> Self {
        if state_dir.is_empty() { host.into() } else { format!("{host}:{state_dir}").into() }
    }

    /// The host.
    #[must_use]
    pub fn host(&self) -> &str {
        self.parts().0
    }

    /// The directory; empty when there is none.
    #[must_use]
    pub fn state_dir(&self) -> &str {
        self.parts().1
    }

    /// Its text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Host names hold no `/`; see [`is_host`].
    fn parts(&self) -> (&str, &str) {
        match self.0.find(":/") {
            Some(at) => (&self.0[..at], &self.0[at + 1..]),
            None => (&self.0, ""),
        }
    }
}

impl From<String> for Site {
    fn from(text: String) -> Self {
        Self(text.into())
    }
}

impl From<&str> for Site {
    fn from(text: &str) -> Self {
        Self(text.into())
    }
}

impl fmt::Display for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// Whether this can be the name of a host: not empty, and nothing that could be taken for a path in a [`Site`].
#[must_use]
pub fn is_host(name: &str) -> bool {
    !name.is_empty() && !name.contains('/') && text::check(name, 255).is_ok()
}

/// Whether this can be the path of a state directory.
#[must_use]
pub fn is_state_dir(path: &str) -> bool {
    path.starts_with('/') && text::check(path, 1024).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sites_read_back_and_differ_by_host_and_directory() {
        for (host, dir, text) in [
            ("h1", "/var/lib/rug", "h1:/var/lib/rug"),
            ("rug-host-1:4711", "/a:/b", "rug-host-1:4711:/a:/b"),
            ("fe80::1", "", "fe80::1"),
            ("", "", ""),
        ] {
            let site = Site::new(host, dir);
            assert_eq!((site.host(), site.state_dir(), site.as_str()), (host, dir, text));
            assert_eq!(Site::from(text), site);
        }
        assert_ne!(Site::new("h", "/a"), Site::new("h", "/b"));
        assert_ne!(Site::new("h", "/a"), Site::new("h", ""));
    }

    #[test]
    fn a_host_is_no_path() {
        assert!(is_host("rug-host-1:4711"));
        for name in ["", "a/b", "h:/x", "a\nb", &"h".repeat(256)] {
            assert!(!is_host(name), "{name:?}");
        }
    }

    #[test]
    fn a_state_directory_is_an_absolute_path() {
        assert!(is_state_dir("/var/lib/rug"));
        for path in ["", "rug", "/a\nb", &format!("/{}", "d".repeat(1024))] {
            assert!(!is_state_dir(path), "{path:?}");
        }
    }
}
