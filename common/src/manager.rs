//! Who manages an appliance that clients do not.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use crate::name::Name;

/// Longest name of a manager, in bytes.
pub const MAX_MANAGER: usize = 128;

/// A source, or one object of it: 1 to 3 names with `/` between them, such as `neutron` or `kubernetes/shop/web`. The first
/// one is the source.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Manager(Arc<str>);

/// The text is not a [`Manager`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` names no source: 1 to 3 names with `/` between them, at most {MAX_MANAGER} bytes")]
pub struct InvalidManager(String);

impl Manager {
    /// Checks and wraps the name of a source, or of an object of one.
    ///
    /// # Errors
    /// [`InvalidManager`] with the start of the text.
    pub fn new(text: &str) -> Result<Self, InvalidManager> {
        let valid = text.len() <= MAX_MANAGER
            && text.split('/').count() <= 3
            && text.split('/').all(|name| Name::new(name).is_ok());
        if valid { Ok(Self(Arc::from(text))) } else { Err(InvalidManager(text.chars().take(160).collect())) }
    }

    /// One object of a source that keeps its objects in namespaces.
    ///
    /// # Errors
    /// [`InvalidManager`] if a part is none of our names, or all are too long.
    pub fn object(source: &str, namespace: &str, name: &str) -> Result<Self, InvalidManager> {
        Self::new(&format!("{source}/{namespace}/{name}"))
    }

    /// The whole name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Namespace and name of the object, if it is one of this source.
    #[must_use]
    pub fn object_of(&self, source: &str) -> Option<(&str, &str)> {
        self.0.strip_prefix(source)?.strip_prefix('/')?.split_once('/')
    }
}

impl fmt::Display for Manager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for Manager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl FromStr for Manager {
    type Err = InvalidManager;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::new(text)
    }
}

impl From<Name> for Manager {
    fn from(source: Name) -> Self {
        Self(Arc::from(source.as_str()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manager_is_a_source_or_an_object_of_one() {
        let web = Manager::object("kubernetes", "shop", "web").expect("fine");
        assert_eq!(web.to_string(), "kubernetes/shop/web");
        assert_eq!(web.object_of("kubernetes"), Some(("shop", "web")));
        assert_eq!(web.object_of("kube"), None);
        let neutron = Manager::new("neutron").expect("fine");
        assert_eq!(neutron, Manager::from(Name::new("neutron").expect("a name")));
        assert_eq!(neutron.object_of("neutron"), None);
    }

    #[test]
    fn what_is_no_name_or_too_much_is_refused() {
        for text in ["", "/", "a/", "/a", "a//b", "a/b/c/d", "A", "a/b c"] {
            assert!(Manager::new(text).is_err(), "{text:?}");
        }
        let (namespace, name) = ("n".repeat(63), "a".repeat(63));
        assert!(Manager::object("kubernetes", &namespace, &name).is_err(), "the store keeps {MAX_MANAGER} bytes");
        assert!(Manager::object("kubernetes", &namespace, &name[..53]).is_ok());
    }
}
