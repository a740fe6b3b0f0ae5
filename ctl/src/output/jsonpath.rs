//! `-o jsonpath=EXPRESSION`: parts of the document that `-o json` prints.
//!
//! Expressions are those of RFC 9535, `$.status.phase`; the leading `$` may be missing, and braces around the whole, as in kubectl, are taken off. Each
//! part is printed on a line of its own: a text as it is, everything else as JSON.

use jsonpath_rust::parser::model::JpQuery;
use jsonpath_rust::parser::parse_json_path;
use jsonpath_rust::query::js_path_process;
use serde::Serialize;
use serde_json::Value;

use crate::error::Failure;

/// What the format begins with.
pub(super) const PREFIX: &str = "jsonpath=";
/// Longest expression, in bytes.
const MOST: usize = 1_000;

/// An expression. There is one for each run of the program.
#[derive(Debug)]
pub(crate) struct JsonPath {
    text: String,
    query: JpQuery,
}

impl PartialEq for JsonPath {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for JsonPath {}

impl JsonPath {
    /// Reads an expression.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        if text.is_empty() || text.len() > MOST {
            return Err(format!("must have 1 to {MOST} bytes"));
        }
        let bare = text.strip_prefix('{').and_then(|text| text.strip_suffix('}')).unwrap_or(text);
        let text = if bare.starts_with('$') { bare.to_owned() } else { format!("${bare}") };
        let query = parse_json_path(&text).map_err(|_| {
            format!("`{bare}` is no JSONPath; write one such as $.status.phase or $.spec.ports[*].name")
        })?;
        Ok(Self { text, query })
    }

    /// The parts of a document, a line for each.
    ///
    /// # Errors
    /// The document cannot be written as JSON.
    pub(crate) fn lines(&self, document: &impl Serialize) -> Result<String, Failure> {
        let document = serde_json::to_value(document).map_err(|e| Failure::failed(format!("write JSON: {e}")))?;
        let found = js_path_process(&self.query, &document);
        let found = found.map_err(|e| Failure::failed(format!("-o jsonpath={}: {e}", self.text)))?;
        let line = |value: &Value| match value {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        Ok(found.into_iter().map(|part| line(part.val())).collect::<Vec<_>>().join("\n"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_printed_on_lines_of_their_own() {
        let document = serde_json::json!({"name": "web", "ports": [{"n": 1}, {"n": 2}], "status": {"phase": "Up"}});
        let lines = |text: &str| JsonPath::parse(text).expect("valid").lines(&document).expect("plain data");
        assert_eq!(lines("$.status.phase"), "Up");
        assert_eq!(lines("{.ports[*].n}"), "1\n2");
        assert_eq!(lines(".ports[?@.n > 1]"), r#"{"n":2}"#);
        assert_eq!(lines(".nothing"), "");
        for wrong in ["", ".a[", "{.a", "a b", &"x".repeat(MOST + 1)] {
            assert!(JsonPath::parse(wrong).is_err(), "{wrong}");
        }
    }
}
