//! Loads a configuration: defaults, then a TOML file, then environment variables, then flags.
//!
//! Every binary has one `Config` that is made of its parts' own config structs. Unknown fields are errors that name the
//! field and where it came from; checks beyond types are each struct's `validate()`.

use std::path::{Path, PathBuf};

use figment::Figment;
use figment::providers::{Env, Format, Serialized, Toml};
use figment::value::{Dict, Value};
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

/// A duration that was set in milliseconds under another name by the version before. Read for one version more.
#[derive(Clone, Copy, Debug)]
pub struct RenamedDuration {
    /// The section both names are in.
    pub section: &'static str,
    /// The old name, whose value is a whole number of milliseconds.
    pub old: &'static str,
    /// The new one, whose value is a duration with its unit.
    pub new: &'static str,
}

/// What was loaded.
#[derive(Debug)]
pub struct Loaded<T> {
    /// The configuration.
    pub config: T,
    /// Old names it was set by, for the log that starts only after loading.
    pub deprecated: Vec<RenamedDuration>,
}

/// Logs each old name together with the new one. Call it once the log has started.
pub fn warn_deprecated(deprecated: &[RenamedDuration]) {
    for RenamedDuration { section, old, new } in deprecated {
        tracing::warn!(
            setting = format!("{section}.{old}"),
            replacement = format!("{section}.{new}"),
            "deprecated setting: the next version refuses it; the replacement takes a duration such as 500ms or 5s"
        );
    }
}

/// Loads `T` from its defaults, `file`, variables that start with `env_prefix` (`__` separates levels), and `flags`.
///
/// # Errors
/// [`Error::File`] when `file` cannot be read, [`Error::Field`] when a layer does not fit `T`, [`Error::Invalid`] when a
/// setting has both its old and its new name.
pub fn load<T>(
    file: Option<&Path>,
    env_prefix: &str,
    flags: impl Serialize,
    renamed: &[RenamedDuration],
) -> Result<Loaded<T>, Error>
where
    T: DeserializeOwned + Serialize + Default,
{
    let mut figment = Figment::new();
    if let Some(path) = file {
        let text = std::fs::read_to_string(path).map_err(|source| Error::File { path: path.to_owned(), source })?;
        figment = figment.merge(Toml::string(&text));
    }
    let set = figment.merge(Env::prefixed(env_prefix).split("__")).merge(Serialized::defaults(flags));
    let (set, deprecated) = with_new_names(set, renamed)?;
    let config = Figment::from(Serialized::defaults(T::default()))
        .merge(set)
        .extract()
        .map_err(|e| Error::Field(Box::new(e)))?;
    Ok(Loaded { config, deprecated })
}

/// The same settings without old names, and the old names there were. Settings without any keep the place they are from,
/// which error messages show.
fn with_new_names(set: Figment, renamed: &[RenamedDuration]) -> Result<(Figment, Vec<RenamedDuration>), Error> {
    let find = |section: &str, name: &str| set.find_value(&format!("{section}.{name}")).ok();
    let found: Vec<_> = renamed.iter().copied().filter(|r| find(r.section, r.old).is_some()).collect();
    if found.is_empty() {
        return Ok((set, found));
    }
    let mut values: Dict = set.extract().map_err(|e| Error::Field(Box::new(e)))?;
    for RenamedDuration { section, old, new } in &found {
        let Some(Value::Dict(_, fields)) = values.get_mut(*section) else { continue };
        let Some(millis) = fields.remove(*old) else { continue };
        // A file has signed numbers, the environment unsigned ones.
        let millis = millis
            .to_u128()
            .or_else(|| millis.to_i128().and_then(|signed| u128::try_from(signed).ok()))
            .ok_or_else(|| Error::Invalid(format!("{section}.{old}: must be a whole number of milliseconds")))?;
        if fields.insert((*new).to_owned(), Value::from(format!("{millis}ms"))).is_some() {
            return Err(Error::Invalid(format!(
                "{section}.{old} is the old name of {section}.{new}: set only the new one"
            )));
        }
    }
    Ok((Figment::from(Serialized::defaults(values)), found))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

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
        let set = load::<Config>(None, "RUG_TEST_NOTHING_", Flags { limit: Some(7) }, &[]).expect("fits");
        assert_eq!(set.config.limit, 7);
        let unset = load::<Config>(None, "RUG_TEST_NOTHING_", Flags { limit: None }, &[]).expect("fits");
        assert_eq!(unset.config, Config::default());
    }

    #[test]
    fn an_unknown_field_is_named() {
        let flags = std::collections::BTreeMap::from([("limits", 3)]);
        let error = load::<Config>(None, "RUG_TEST_NOTHING_", flags, &[]).expect_err("unknown field");
        assert!(error.to_string().contains("limits"), "{error}");
    }

    #[test]
    fn a_missing_file_is_named() {
        let error =
            load::<Config>(Some(Path::new("/nowhere/rug.toml")), "RUG_TEST_NOTHING_", Flags { limit: None }, &[])
                .expect_err("no such file");
        assert!(error.to_string().contains("/nowhere/rug.toml"), "{error}");
    }

    #[derive(Debug, Default, Serialize, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    struct Sections {
        machine: Times,
    }

    #[derive(Debug, Default, Serialize, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    struct Times {
        #[serde(with = "humantime_serde")]
        debounce: Duration,
        #[serde(with = "humantime_serde")]
        window: Duration,
    }

    const RENAMED: [RenamedDuration; 2] = [
        RenamedDuration { section: "machine", old: "debounce_ms", new: "debounce" },
        RenamedDuration { section: "machine", old: "window_ms", new: "window" },
    ];

    fn read(toml: &str) -> Result<Loaded<Sections>, Error> {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("rug.toml");
        std::fs::write(&path, toml).expect("a file");
        load(Some(&path), "RUG_TEST_NOTHING_", Flags { limit: None }, &RENAMED)
    }

    #[test]
    fn an_old_name_in_milliseconds_is_read_and_reported() {
        let old = read("[machine]\ndebounce_ms = 250\nwindow = \"3s\"").expect("read");
        assert_eq!(old.config.machine.debounce, Duration::from_millis(250));
        assert_eq!(old.config.machine.window, Duration::from_secs(3));
        assert_eq!(old.deprecated.iter().map(|r| r.new).collect::<Vec<_>>(), ["debounce"]);
        assert!(read("[machine]\ndebounce = \"250ms\"").expect("read").deprecated.is_empty());
    }

    #[test]
    fn an_old_name_beside_the_new_one_or_without_a_number_is_refused() {
        let both = read("[machine]\ndebounce_ms = 250\ndebounce = \"1s\"").expect_err("refused").to_string();
        assert!(both.contains("machine.debounce_ms") && both.contains("machine.debounce:"), "{both}");
        let text = read("[machine]\ndebounce_ms = \"soon\"").expect_err("refused").to_string();
        assert!(text.contains("machine.debounce_ms"), "{text}");
    }
}
