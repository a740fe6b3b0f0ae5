//! The schema of settings, made from the structs that read them.

use std::path::Path;
use std::sync::{Mutex, PoisonError};

use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value};

use super::WRITE;

/// Compares the definition `name` of a JSON schema with what the settings `T` are, or renews it. The rest of the schema is written by hand.
///
/// # Errors
/// What is wrong, and what to do about it.
pub fn check_definition<T: JsonSchema>(file: &Path, name: &str) -> Result<(), String> {
    /// Tests run at the same time, and renew parts of one file.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _one = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let shown = file.display();
    let text = std::fs::read_to_string(file).map_err(|e| format!("{shown}: {e}"))?;
    let mut schema: Value = serde_json::from_str(&text).map_err(|e| format!("{shown}: {e}"))?;
    let wanted = definition::<T>();
    let held = schema.get_mut("definitions").and_then(Value::as_object_mut);
    let held = held.ok_or_else(|| format!("{shown} has no definitions"))?;
    if held.get(name) == Some(&wanted) {
        return Ok(());
    }
    if std::env::var(WRITE).is_ok_and(|value| value == "1") {
        held.insert(name.to_owned(), wanted);
        let renewed = serde_json::to_string_pretty(&sorted(schema)).map_err(|e| e.to_string())?;
        return std::fs::write(file, renewed + "\n").map_err(|e| format!("{shown}: {e}"));
    }
    Err(format!("definition `{name}` of {shown} is out of date; run this test with {WRITE}=1 to renew it"))
}

/// In the draft that every version of Helm 3 and 4 knows, whole in itself.
fn definition<T: JsonSchema>() -> Value {
    let generator = SchemaSettings::draft07().with(|settings| settings.inline_subschemas = true).into_generator();
    let mut schema = generator.into_root_schema_for::<T>().to_value();
    if let Some(root) = schema.as_object_mut() {
        root.remove("$schema");
    }
    plain(&mut schema);
    schema
}

/// Without what does not belong into a file of values: defaults, some of which depend on the machine, names of Rust types, and marks of
/// rustdoc.
fn plain(schema: &mut Value) {
    match schema {
        Value::Object(keywords) => {
            for of_rust in ["default", "title", "format"] {
                keywords.remove(of_rust);
            }
            if let Some(Value::String(text)) = keywords.get_mut("description") {
                *text = prose(text);
            }
            for (keyword, value) in keywords {
                match value {
                    // Names of settings, which may be those of keywords.
                    Value::Object(settings) if keyword == "properties" => settings.values_mut().for_each(plain),
                    value => plain(value),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(plain),
        _ => {}
    }
}

/// A comment as one line, with links as their words.
fn prose(text: &str) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    line.replace("[`", "`").replace("`]", "`")
}

/// With its fields in the order of their names, whatever other packages have this library do.
fn sorted(value: Value) -> Value {
    match value {
        Value::Object(fields) => {
            let mut fields: Vec<_> = fields.into_iter().collect();
            fields.sort_by(|(a, _), (b, _)| a.cmp(b));
            Value::Object(fields.into_iter().map(|(name, value)| (name, sorted(value))).collect::<Map<_, _>>())
        }
        Value::Array(items) => Value::Array(items.into_iter().map(sorted).collect()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(serde::Deserialize, JsonSchema)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code, reason = "only its form counts")]
    struct Settings {
        /// How long.
        #[serde(with = "humantime_serde")]
        #[schemars(with = "common::schema::DurationText")]
        wait: std::time::Duration,
        /// Words with a [`Settings`].
        title: String,
    }

    #[test]
    fn a_definition_has_what_a_person_may_write() {
        let schema = definition::<Settings>();
        assert_eq!(schema["additionalProperties"], false);
        assert_eq!(schema["properties"]["title"]["description"], "Words with a `Settings`.");
        assert!(schema["properties"]["wait"]["pattern"].as_str().is_some_and(|pattern| pattern.contains("ms")));
        assert_eq!(schema.get("title"), None);
    }
}
