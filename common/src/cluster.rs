//! Which cluster something is about.
//!
//! A cluster has an id, made with its database and kept there for good, and may have a name, which people choose and
//! which is not unique. Whoever means one cluster and no other says so by either ([`ClusterRef`]).

use std::fmt;
use std::str::FromStr;

use uuid::Uuid;

use crate::appliance::Name;

/// A cluster: its id, and its name if it was given one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterIdentity {
    /// Made with its database; copies of the database have the same.
    pub id: Uuid,
    /// What people call it.
    pub name: Option<Name>,
}

impl ClusterIdentity {
    /// Whether this is the cluster that is meant.
    #[must_use]
    pub fn is(&self, meant: &ClusterRef) -> bool {
        match meant {
            ClusterRef::Id(id) => self.id == *id,
            ClusterRef::Name(name) => self.name.as_ref() == Some(name),
        }
    }
}

impl fmt::Display for ClusterIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.name {
            Some(name) => write!(f, "{name} ({})", self.id),
            None => self.id.fmt(f),
        }
    }
}

/// The cluster that is meant, by id or by name. What has the form of a UUID is an id.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ClusterRef {
    /// The one with this id.
    Id(Uuid),
    /// One with this name.
    Name(Name),
}

/// The text is neither the id nor the name of a cluster.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "is neither the id of a cluster, a UUID, nor a name: 1 to 63 of a-z 0-9 - . _ that start and end with a letter or digit"
)]
pub struct InvalidClusterRef;

impl FromStr for ClusterRef {
    type Err = InvalidClusterRef;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match (Uuid::parse_str(text), Name::new(text)) {
            (Ok(id), _) => Ok(Self::Id(id)),
            (Err(_), Ok(name)) => Ok(Self::Name(name)),
            (Err(_), Err(_)) => Err(InvalidClusterRef),
        }
    }
}

impl fmt::Display for ClusterRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Id(id) => id.fmt(f),
            Self::Name(name) => name.fmt(f),
        }
    }
}

/// Checks the name of a cluster, which must not look like an id.
///
/// # Errors
/// What is wrong with it.
pub fn check_name(text: &str) -> Result<Name, String> {
    match text.parse() {
        Ok(ClusterRef::Name(name)) => Ok(name),
        Ok(ClusterRef::Id(_)) => Err("has the form of an id (UUID), so that nobody could tell it from one".to_owned()),
        Err(InvalidClusterRef) => Name::new(text).map_err(|e| e.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_is_meant_by_its_id_or_its_name() {
        let id = Uuid::from_u128(7);
        let prod = ClusterIdentity { id, name: Some("prod".parse().expect("a name")) };
        let nameless = ClusterIdentity { id, name: None };
        let means = |text: &str| text.parse::<ClusterRef>().expect("valid");
        assert!(prod.is(&means("prod")) && prod.is(&means(&id.to_string())) && !prod.is(&means("test")));
        assert!(nameless.is(&means(&id.to_string())) && !nameless.is(&means("prod")));
        assert!(!prod.is(&means(&Uuid::from_u128(8).to_string())));
        assert_eq!(prod.to_string(), format!("prod ({id})"));
        for odd in ["", "Prod", "a b", "prod/x"] {
            assert_eq!(odd.parse::<ClusterRef>(), Err(InvalidClusterRef), "{odd:?}");
        }
    }

    #[test]
    fn a_name_does_not_look_like_an_id() {
        assert!(check_name("prod").is_ok());
        assert!(check_name(&Uuid::from_u128(7).to_string()).expect_err("an id").contains("UUID"));
        assert!(check_name("").is_err());
    }
}
