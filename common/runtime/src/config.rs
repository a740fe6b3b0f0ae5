//! Loads a configuration: defaults, then a TOML file, then environment variables, then flags.
//!
//! Every binary has one `Config` that is made of its parts' own config structs. Unknown fields are errors that name the
//! field and where it came from; checks beyond types are each struct's `validate()`.

use std::path::{Path, PathBuf};

use figment::Figment;
use figment::providers::{Env, Format, Serialized, Toml};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file named on the command line does not exist or cannot be read.
    #[error("read configuration file {}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A value has the wrong type, or a field is unknown.
    #[error("configuration: {0}")]
    Field(Box<figment::Error>),
    /// A value is out of its range.
    #[error("configuration: {0}")]
    Invalid(String),
}

/// Loads `T` from its defaults, `file`, variables that start with `env_prefix` (`__` separates levels), and `flags`.
///
/// # Errors
/// [`Error::File`] when `file` cannot be read, [`Error::Field`] when a layer does not fit `T`.
pub fn load<T>(file: Option<&Path>, env_prefix: &str, flags: impl Serialize) -> Result<T, Error>
where
    T: DeserializeOwned + Serialize + Default,
{
    let mut figment = Figment::from(Serialized::defaults(T::default()));
    if let Some(path) = file {
        let text = std::fs::read_to_string(path).map_err(|source| Error::File { path: path.to_owned(), source })?;
        figment = figment.merge(Toml::string(&text));
    }
    figment
        .merge(Env::prefixed(env_prefix).split("__"))
        .merge(Serialized::defaults(flags))
        .extract()
        .map_err(|e| Error::Field(Box::new(e)))
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Default, Serialize, Deserialize, PartialEq)]
    #[serde(default, deny_unknown_fields)]
    struct Config {
        name: String,
        limit: u32,
    }

    #[derive(Serialize)]
    struct Flags {
        #[serde(skip_serializing_if = "Option::is_none")]
        limit: Option<u32>,
    }

    #[test]
    fn flags_win_over_defaults_and_absent_flags_leave_them() {
        let set: Config = load(None, "RUG_TEST_NOTHING_", Flags { limit: Some(7) }).expect("fits");
        assert_eq!(set.limit, 7);
        let unset: Config = load(None, "RUG_TEST_NOTHING_", Flags { limit: None }).expect("fits");
        assert_eq!(unset, Config::default());
    }

    #[test]
    fn an_unknown_field_is_named() {
        let flags = std::collections::BTreeMap::from([("limits", 3)]);
        let error = load::<Config>(None, "RUG_TEST_NOTHING_", flags).expect_err("unknown field");
        assert!(error.to_string().contains("limits"), "{error}");
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = load::<Config>(Some(Path::new("/nowhere/rug.toml")), "RUG_TEST_NOTHING_", Flags { limit: None })
            .expect_err("no such file");
        assert!(error.to_string().contains("/nowhere/rug.toml"), "{error}");
    }
}
