//! Loads a configuration: defaults, then a TOML file, then environment variables, then flags.
//!
//! Every binary has one `Config` that is made of its parts' own config structs. Unknown fields are errors that name the
//! field and where it came from; checks beyond types are each struct's `validate()`, which lists every violation.
//!
//! No error quotes a value: a password may stand where a number was expected, or in a line that is no TOML.

#[cfg(any(test, feature = "testing"))]
pub mod documented;

use std::path::{Path, PathBuf};

use common::appliance::FieldViolation;
use common::text;
use figment::Figment;
use figment::error::Kind;
use figment::providers::{Env, Format, Serialized, Toml};
use figment::value::{Dict, Value};
use serde::Serialize;
use serde::de::DeserializeOwned;
use toml_edit::ImDocument;

use crate::{file, telemetry};

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
    /// The file is no TOML.
    #[error("configuration file {}: line {line}, column {column}: is not valid TOML", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Where the first mistake is, from 1.
        line: usize,
        /// Character of that line, from 1.
        column: usize,
    },
    /// A value has the wrong type, or a field is unknown. Each says where it was set.
    #[error("configuration: {}", .0.join("\n  "))]
    Field(Vec<String>),
    /// A setting has both its old and its new name, or the old one has no number.
    #[error("configuration: {0}")]
    Renamed(String),
    /// Values that are out of their range or do not go together; at least one.
    #[error("configuration: {}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n  "))]
    Invalid(Vec<FieldViolation>),
}

/// Everything that can be set of one program.
pub trait Settings: DeserializeOwned + Serialize + Default {
    /// What the environment variables of these settings begin with.
    const ENV_PREFIX: &'static str;

    /// Settings whose old names are still read.
    const RENAMED: &'static [RenamedDuration] = &[];

    /// Sets what was left empty and follows from other settings.
    fn complete(&mut self);

    /// Every rule the settings break, with the field that breaks it. Asked after [`Settings::complete`].
    fn validate(&self) -> Vec<FieldViolation>;

    /// Name of this process among those of its program.
    fn instance(&self) -> &str;

    /// Settings of logs.
    fn log(&self) -> &telemetry::Config;

    /// Settings of what is exported.
    fn telemetry(&self) -> &telemetry::ExportConfig;
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
    /// What is wrong with the mode of its file, if that holds a password.
    pub exposed: Option<String>,
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

/// A configuration file that was parsed, to tell where something was set.
struct ParsedFile<'a> {
    path: &'a Path,
    text: &'a str,
    document: ImDocument<&'a str>,
}

impl<'a> ParsedFile<'a> {
    /// Parses it. The parser's own words quote the line, so only the place of the first mistake is kept.
    fn new(path: &'a Path, text: &'a str) -> Result<Self, Error> {
        let document = ImDocument::parse(text).map_err(|error| {
            let start = text.floor_char_boundary(error.span().map_or(text.len(), |span| span.start));
            let before = &text[..start];
            let column = before.rsplit('\n').next().map_or(0, |part| part.chars().count()) + 1;
            Error::Syntax { path: path.to_owned(), line: line_of(text, start), column }
        })?;
        Ok(Self { path, text, document })
    }

    /// The file, and the line in it where a setting is, or as much of its path as there is.
    fn place_of(&self, setting: &[String]) -> String {
        let mut item = self.document.as_item();
        let mut span = None;
        for part in setting {
            let found = match part.parse::<usize>() {
                Ok(index) => item.get(index),
                Err(_) => item.get(part.as_str()),
            };
            let key = item.as_table_like().and_then(|table| table.get_key_value(part)).and_then(|(key, _)| key.span());
            let Some(found) = found else { break };
            span = key.or_else(|| found.span()).or(span);
            item = found;
        }
        match span {
            Some(span) => format!("{}, line {}", self.path.display(), line_of(self.text, span.start)),
            None => self.path.display().to_string(),
        }
    }
}

/// The line, from 1, that this byte of a text is in.
fn line_of(text: &str, byte: usize) -> usize {
    text.as_bytes()[..byte.min(text.len())].iter().filter(|byte| **byte == b'\n').count() + 1
}

/// Loads `T` from its defaults, `file`, environment variables (`__` separates levels), and `flags`, and checks it.
///
/// # Errors
/// [`Error::File`] when `file` cannot be read, [`Error::Field`] when a layer does not fit `T`, [`Error::Renamed`] when a
/// setting has both its old and its new name, [`Error::Invalid`] when `T` finds violations.
pub fn load<T: Settings>(file: Option<&Path>, flags: impl Serialize) -> Result<Loaded<T>, Error> {
    let mut figment = Figment::new();
    let mut exposed = None;
    let read = |path: &Path| file::read_settings(path).map_err(|source| Error::File { path: path.to_owned(), source });
    let text = file.map(read).transpose()?.unwrap_or_default();
    let parsed = file.map(|path| ParsedFile::new(path, &text)).transpose()?;
    if let Some(path) = file {
        exposed = has_password(&text).then(|| file::exposure(path)).flatten();
        figment = figment.merge(Toml::string(&text));
    }
    let parsed = parsed.as_ref();
    let set = figment.merge(Env::prefixed(T::ENV_PREFIX).split("__")).merge(Serialized::defaults(flags));
    let (set, deprecated) = with_new_names::<T>(set, parsed)?;
    let mut config: T = Figment::from(Serialized::defaults(T::default()))
        .merge(set)
        .extract()
        .map_err(|e| fields_error::<T>(parsed, e))?;
    config.complete();
    let found = config.validate();
    if found.is_empty() { Ok(Loaded { config, deprecated, exposed }) } else { Err(Error::Invalid(found)) }
}

/// Whether a URL in a text has a password.
fn has_password(text: &str) -> bool {
    text.split("://").skip(1).any(|rest| {
        let end = rest.find(|c: char| c == '/' || c == '"' || c == '\'' || c.is_whitespace()).unwrap_or(rest.len());
        rest[..end].rsplit_once('@').is_some_and(|(user, _)| user.contains(':'))
    })
}

/// The same settings without old names, and the old names there were. Settings without any keep the place they are from,
/// which error messages show.
fn with_new_names<T: Settings>(
    set: Figment,
    file: Option<&ParsedFile<'_>>,
) -> Result<(Figment, Vec<RenamedDuration>), Error> {
    let find = |section: &str, name: &str| set.find_value(&format!("{section}.{name}")).ok();
    let found: Vec<_> = T::RENAMED.iter().copied().filter(|r| find(r.section, r.old).is_some()).collect();
    if found.is_empty() {
        return Ok((set, found));
    }
    let mut values: Dict = set.extract().map_err(|e| fields_error::<T>(file, e))?;
    for RenamedDuration { section, old, new } in &found {
        let Some(Value::Dict(_, fields)) = values.get_mut(*section) else { continue };
        let Some(millis) = fields.remove(*old) else { continue };
        // A file has signed numbers, the environment unsigned ones.
        let millis = millis
            .to_u128()
            .or_else(|| millis.to_i128().and_then(|signed| u128::try_from(signed).ok()))
            .ok_or_else(|| Error::Renamed(format!("{section}.{old}: must be a whole number of milliseconds")))?;
        if fields.insert((*new).to_owned(), Value::from(format!("{millis}ms"))).is_some() {
            return Err(Error::Renamed(format!(
                "{section}.{old} is the old name of {section}.{new}: set only the new one"
            )));
        }
    }
    Ok((Figment::from(Serialized::defaults(values)), found))
}

/// What does not fit: which field, where it was set, and what was expected; never what stood there.
fn fields_error<T: Settings>(file: Option<&ParsedFile<'_>>, errors: figment::Error) -> Error {
    let describe = |error: figment::Error| {
        // Of an unknown setting the place holds the name, too.
        let parts: Vec<_> = error.path.iter().map(|part| if is_word(part) { part.as_str() } else { "..." }).collect();
        let path = parts.join(".");
        let from = error.metadata.as_ref().map_or("", |metadata| &metadata.name);
        let place = match file {
            _ if from.contains("environment") => {
                let name = format!("{}{}", T::ENV_PREFIX, parts.join("__").to_uppercase());
                format!("environment variable {name}")
            }
            Some(file) if from.contains("TOML") => format!("{path} in {}", file.place_of(&error.path)),
            _ if path.is_empty() => "the settings".to_owned(),
            _ => path,
        };
        format!("{}: {}", text::escaped(text::clip(&place, MAX_PLACE)), expectation(&error.kind))
    };
    Error::Field(errors.into_iter().map(describe).collect())
}

/// Longest place that is named.
const MAX_PLACE: usize = 500;

/// Whether a name may be quoted. Anything but a word may be a value that went to the wrong place.
fn is_word(name: &str) -> bool {
    name.len() <= 64 && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'))
}

/// What a library expected, in words that need no knowledge of its language.
fn own_words(expected: &str) -> String {
    let unsigned = |most: u64| format!("a whole number from 0 to {most}");
    match expected {
        "u8" => unsigned(u8::MAX.into()),
        "u16" => unsigned(u16::MAX.into()),
        "u32" => unsigned(u32::MAX.into()),
        "u64" | "usize" | "u128" => "a whole number, 0 or more".to_owned(),
        "i8" | "i16" | "i32" | "i64" | "isize" | "i128" => "a whole number".to_owned(),
        "f32" | "f64" | "float" => "a number".to_owned(),
        "a boolean" | "bool" => "true or false".to_owned(),
        "a string" | "string" | "str" => "a text in quotes".to_owned(),
        "a sequence" | "array" => "a list".to_owned(),
        "a map" | "map" => "a section with settings of its own".to_owned(),
        "path string" => "a path in quotes".to_owned(),
        "a duration" => "a duration in quotes, such as \"500ms\" or \"5s\"".to_owned(),
        other if other.starts_with("struct ") => "a section with settings of its own".to_owned(),
        other if other.starts_with("a nonzero ") => "a whole number above 0".to_owned(),
        other if other.contains("::") || other.contains("enum ") || other.contains("variant") => {
            "another one; docs/configuration.md says what it takes".to_owned()
        }
        other => text::escaped(text::clip(other, 200)).into_owned(),
    }
}

/// What was expected of a field.
fn expectation(kind: &Kind) -> String {
    match kind {
        Kind::InvalidType(_, expected) | Kind::InvalidValue(_, expected) => {
            format!("its value must be {}", own_words(expected))
        }
        Kind::InvalidLength(has, expected) => format!("has {has} entries, must be {}", own_words(expected)),
        Kind::UnknownVariant(_, known) => format!("its value must be one of {}", known.join(", ")),
        Kind::UnknownField(name, known) => {
            let what = if is_word(name) {
                format!("there is no setting `{name}`")
            } else {
                "has an unknown setting".to_owned()
            };
            format!("{what}; known are {}", known.join(", "))
        }
        Kind::MissingField(name) => format!("`{name}` is missing"),
        Kind::DuplicateField(name) => format!("`{name}` is set twice"),
        Kind::ISizeOutOfRange(_) | Kind::USizeOutOfRange(_) => "its number is out of range".to_owned(),
        // These may quote what stood there.
        Kind::Message(_) | Kind::Unsupported(_) | Kind::UnsupportedKey(..) => {
            "its value cannot be used; docs/configuration.md says what it takes".to_owned()
        }
    }
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
        log: telemetry::Config,
        telemetry: telemetry::ExportConfig,
    }

    impl Settings for Config {
        const ENV_PREFIX: &'static str = "RUG_TEST_NOTHING_";

        fn complete(&mut self) {
            if self.name.is_empty() {
                self.name = format!("limit-{}", self.limit);
            }
        }

        fn validate(&self) -> Vec<FieldViolation> {
            let mut found = Vec::new();
            if self.limit > 100 {
                found.push(FieldViolation::new("limit", "must be 100 or less"));
            }
            if self.name.len() > 9 {
                found.push(FieldViolation::new("name", "must have 9 bytes or less"));
            }
            found
        }

        fn instance(&self) -> &str {
            "test"
        }

        fn telemetry(&self) -> &telemetry::ExportConfig {
            &self.telemetry
        }

        fn log(&self) -> &telemetry::Config {
            &self.log
        }
    }

    #[derive(Serialize)]
    struct Flags {
        #[serde(skip_serializing_if = "Option::is_none")]
        limit: Option<u32>,
    }

    #[test]
    fn flags_win_over_defaults_and_absent_flags_leave_them() {
        let set = load::<Config>(None, Flags { limit: Some(7) }).expect("fits");
        assert_eq!((set.config.limit, set.config.name.as_str()), (7, "limit-7"));
        let unset = load::<Config>(None, Flags { limit: None }).expect("fits");
        assert_eq!(unset.config, Config { name: "limit-0".to_owned(), ..Config::default() });
    }

    #[test]
    fn every_violation_is_reported_at_once() {
        let error = load::<Config>(None, Flags { limit: Some(1000) }).expect_err("two rules are broken");
        let expected = "configuration: limit: must be 100 or less\n  name: must have 9 bytes or less";
        assert_eq!(error.to_string(), expected);
    }

    #[test]
    fn an_unknown_field_is_named() {
        let flags = std::collections::BTreeMap::from([("limits", 3)]);
        let error = load::<Config>(None, flags).expect_err("unknown field");
        assert!(error.to_string().contains("limits"), "{error}");
    }

    #[test]
    fn a_password_in_a_file_that_others_can_read_is_reported() {
        assert_eq!(read("[machine]\nwindow = \"3s\"").expect("read").exposed, None);
        let exposed = read("# postgres://rug:hush@db/rug").expect("read").exposed.expect("it can be read by others");
        assert!(exposed.contains("rug.toml") && !exposed.contains("hush"), "{exposed}");
        assert!(!has_password("https://a:1/x@y") && !has_password("zookeeper://a@b") && has_password("x://a:b@c"));
    }

    #[test]
    fn a_missing_file_is_named() {
        let error =
            load::<Config>(Some(Path::new("/nowhere/rug.toml")), Flags { limit: None }).expect_err("no such file");
        assert!(error.to_string().contains("/nowhere/rug.toml"), "{error}");
    }

    #[derive(Debug, Default, Serialize, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    struct Sections {
        machine: Times,
        log: telemetry::Config,
        telemetry: telemetry::ExportConfig,
    }

    impl Settings for Sections {
        const ENV_PREFIX: &'static str = "RUG_TEST_NOTHING_";
        const RENAMED: &'static [RenamedDuration] = &[
            RenamedDuration { section: "machine", old: "debounce_ms", new: "debounce" },
            RenamedDuration { section: "machine", old: "window_ms", new: "window" },
        ];

        fn complete(&mut self) {}

        fn validate(&self) -> Vec<FieldViolation> {
            Vec::new()
        }

        fn instance(&self) -> &str {
            "test"
        }

        fn telemetry(&self) -> &telemetry::ExportConfig {
            &self.telemetry
        }

        fn log(&self) -> &telemetry::Config {
            &self.log
        }
    }

    #[derive(Debug, Default, Serialize, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    struct Times {
        #[serde(with = "humantime_serde")]
        debounce: Duration,
        #[serde(with = "humantime_serde")]
        window: Duration,
    }

    fn read(toml: &str) -> Result<Loaded<Sections>, Error> {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("rug.toml");
        std::fs::write(&path, toml).expect("a file");
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o644)).expect("ours");
        load(Some(&path), Flags { limit: None })
    }

    #[test]
    fn no_error_quotes_what_was_set() {
        for (toml, told) in [
            ("[machine]\ndebounce = \"hush 1s\"", "rug.toml, line 2: its value must be a duration"),
            ("[machine]\ndebounce = hush", "line 2, column 12: is not valid TOML"),
            ("[machine]\npassword \"hush\"", "line 2, column 10: is not valid TOML"),
            ("[machine]\nwindow = \"hush", "is not valid TOML"),
            ("machine = \"hush\"", "rug.toml, line 1: its value must be a section with settings of its own"),
            ("\n\nmachine.debounce = 3\n", "machine.debounce in "),
            ("machine = { debounce = \"1s\",\n", "is not valid TOML"),
            ("[log]\n\nfilter = 7\n", "rug.toml, line 3: its value must be a text in quotes"),
            ("[log]\nformat = \"hush\"", "its value must be one of text, json"),
            ("[log]\nformats = \"hush\"", "there is no setting `formats`; known are format, filter"),
            ("[log]\n\"postgres://rug:hush@db\" = 1", "has an unknown setting; known are format, filter"),
            ("log = [\"hush\"]", "log.0 in "),
        ] {
            let error = read(toml).expect_err(toml);
            let text = error.to_string();
            assert!(text.contains(told) && text.contains("rug.toml"), "{toml}: {text}");
            assert!(!text.contains("hush") && !format!("{error:?}").contains("hush"), "{toml}: {text}");
        }
    }

    #[test]
    fn a_value_in_the_wrong_variable_is_not_quoted() {
        let set = Figment::new().merge(Serialized::default("limit", "hush"));
        let error = set.extract::<Config>().expect_err("no number");
        let text = fields_error::<Config>(None, error).to_string();
        assert!(text.starts_with("configuration: limit: its value must be ") && !text.contains("hush"), "{text}");
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
