//! Where instances of a host-bound driver are kept: state directories, which have an identity, and the hosts they are on.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use crate::text;

/// What [`is_host`] asks for, for messages.
pub const HOST_RULE: &str = "must have 1 to 255 bytes, no `/` and no control characters";

/// What [`is_state_dir`] asks for, for messages.
pub const STATE_DIR_RULE: &str = "must be an absolute path of at most 1024 bytes without control characters";

/// What [`SiteId`] asks for, for messages.
pub const SITE_RULE: &str = "must be 32 hexadecimal digits in lower case";

/// Identity of a state directory: 128 random bits that are made once and kept in it. A renamed host keeps it, and two hosts, or
/// containers, that happen to have one name differ by it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SiteId(u128);

/// The text is not a [`SiteId`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{SITE_RULE}")]
pub struct InvalidSiteId;

impl SiteId {
    /// Wraps random bits.
    #[must_use]
    pub const fn from_u128(bits: u128) -> Self {
        Self(bits)
    }
}

impl fmt::Display for SiteId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for SiteId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for SiteId {
    type Err = InvalidSiteId;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let valid = text.len() == 32 && text.bytes().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f'));
        let bits = u128::from_str_radix(text, 16).ok().filter(|_| valid);
        bits.map(Self).ok_or(InvalidSiteId)
    }
}

/// Where instances of a host-bound driver are kept: a state directory, by its id, with the host and the path by which people
/// know it. Only a worker of that very site can tell what runs there, so that an appliance stays on the site where it was first
/// placed. Workers of versions before ids publish host and path only, which stand for the site then.
///
/// As text it is `/id/host:/directory`, before ids `host:/directory` or the host alone.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Site(Arc<str>);

impl Site {
    /// The site with this id, on a host, in a directory.
    #[must_use]
    pub fn identified(id: SiteId, host: &str, state_dir: &str) -> Self {
        format!("/{id}/{}", Self::new(host, state_dir).as_str()).into()
    }

    /// A site that has no id: of a state directory, given as an absolute path, or empty for none.
    #[must_use]
    pub fn new(host: &str, state_dir: &str) -> Self {
        if state_dir.is_empty() { host.into() } else { format!("{host}:{state_dir}").into() }
    }

    /// Its id, if it has one.
    #[must_use]
    pub fn id(&self) -> Option<SiteId> {
        self.split().0
    }

    /// Host and directory, without the id.
    #[must_use]
    pub fn place(&self) -> Self {
        self.split().1.into()
    }

    /// Whether both are the same one: by their ids, or by host and directory where one of the two has no id.
    #[must_use]
    pub fn is(&self, other: &Self) -> bool {
        let ((id, place), (other_id, other_place)) = (self.split(), other.split());
        match id.zip(other_id) {
            Some((id, other)) => id == other,
            None => place == other_place,
        }
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
        let place = self.split().1;
        match place.find(":/") {
            Some(at) => (&place[..at], &place[at + 1..]),
            None => (place, ""),
        }
    }

    /// The id, and the rest.
    fn split(&self) -> (Option<SiteId>, &str) {
        let parts = self.0.strip_prefix('/').and_then(|text| text.split_once('/'));
        match parts.and_then(|(id, place)| Some((id.parse().ok()?, place))) {
            Some((id, place)) => (Some(id), place),
            None => (None, &self.0),
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

/// For people: `host:/directory (site id)`.
impl fmt::Display for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.split() {
            (Some(id), place) => write!(f, "{place} (site {id})"),
            (None, place) => f.pad(place),
        }
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
    fn a_site_is_known_by_its_id_and_by_its_place_where_one_has_none() {
        let (a, b) = (SiteId::from_u128(0xa), SiteId::from_u128(0xb));
        let site = Site::identified(a, "h1:7", "/var/lib/rug");
        assert_eq!(site.as_str(), "/0000000000000000000000000000000a/h1:7:/var/lib/rug");
        assert_eq!((site.id(), site.host(), site.state_dir()), (Some(a), "h1:7", "/var/lib/rug"));
        assert_eq!(Site::from(site.as_str()), site);
        assert_eq!(site.to_string(), "h1:7:/var/lib/rug (site 0000000000000000000000000000000a)");
        assert_eq!(site.place(), Site::new("h1:7", "/var/lib/rug"));
        let is = |other: Site| (site.is(&other), other.is(&site));
        assert_eq!(is(Site::identified(a, "renamed", "/moved")), (true, true));
        assert_eq!(is(Site::identified(b, "h1:7", "/var/lib/rug")), (false, false), "two hosts of one name");
        assert_eq!(is(Site::new("h1:7", "/var/lib/rug")), (true, true), "as the version before knew it");
        assert_eq!(is(Site::new("h2", "/var/lib/rug")), (false, false));
        assert_eq!(Site::identified(a, "h", "").state_dir(), "");
        let strange = Site::from("/not-an-id/h:/d");
        assert!(strange.id().is_none() && !strange.is(&Site::new("h", "/d")) && !is_host(strange.host()));
    }

    #[test]
    fn an_id_is_32_digits() {
        let text = "0123456789abcdef0123456789abcdef";
        assert_eq!(text.parse::<SiteId>().map(|id| id.to_string()), Ok(text.to_owned()));
        for text in ["", "0", &text.to_uppercase(), &format!("+{}", &text[1..]), &format!("{text}0"), &" ".repeat(32)] {
            assert_eq!(text.parse::<SiteId>(), Err(InvalidSiteId), "{text:?}");
        }
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
