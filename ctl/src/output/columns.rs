//! Columns that the user chooses: `-o custom-columns=NAME:.name,WORKER:.status.assignment.worker`.
//!
//! A path names a field of the document that `-o json` prints, by names after dots and by numbers in brackets. What is not there shows
//! as `-`.

use clap::ValueEnum;
use clap::builder::{EnumValueParser, PossibleValue, TypedValueParser};
use clap::error::ErrorKind;
use serde::Serialize;
use serde_json::Value;

use super::jsonpath::{self, JsonPath};
use super::{OutputFormat, TextTable, Tone};
use crate::error::Failure;

/// What the format begins with.
const PREFIX: &str = "custom-columns=";
/// Most columns.
const MOST: usize = 64;

/// A step of a path.
#[derive(Clone, Debug, PartialEq, Eq)]
enum PathStep {
    Field(String),
    Entry(usize),
}

/// A column: its header, and where its values are.
#[derive(Clone, Debug, PartialEq, Eq)]
struct CustomColumn {
    header: &'static str,
    path: Vec<PathStep>,
}

/// The columns of a table. There is one such set for each run of the program.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct CustomColumns(Vec<CustomColumn>);

impl CustomColumns {
    fn parse(text: &str) -> Result<Self, String> {
        let columns: Vec<_> = text.split(',').collect();
        if columns.len() > MOST {
            return Err(format!("at most {MOST} columns"));
        }
        columns.into_iter().map(column).collect::<Result<_, _>>().map(Self)
    }

    /// The table of these values.
    ///
    /// # Errors
    /// A value cannot be written as JSON.
    pub(crate) fn table(&self, rows: &[impl Serialize]) -> Result<TextTable, Failure> {
        let header: Vec<_> = self.0.iter().map(|column| column.header).collect();
        let mut table = TextTable::new(&header);
        for row in rows {
            let value = serde_json::to_value(row).map_err(|e| Failure::failed(format!("write JSON: {e}")))?;
            table.row(self.0.iter().map(|column| (text_at(&value, &column.path), Tone::Plain)));
        }
        Ok(table)
    }
}

fn column(text: &str) -> Result<CustomColumn, String> {
    let unclear = || format!("`{text}` is no column; write HEADER:.path, such as WORKER:.status.assignment.worker");
    let (header, path) = text.split_once(':').ok_or_else(unclear)?;
    let (header, mut rest) = (header.trim(), path.trim());
    if header.is_empty() || !rest.starts_with('.') {
        return Err(unclear());
    }
    let mut path = Vec::new();
    while !rest.is_empty() {
        if let Some(after) = rest.strip_prefix('.') {
            let end = after.find(['.', '[', ']']).unwrap_or(after.len());
            if end == 0 {
                return Err(unclear());
            }
            path.push(PathStep::Field(after[..end].to_owned()));
            rest = &after[end..];
        } else {
            let after = rest.strip_prefix('[').ok_or_else(unclear)?;
            let (number, after) = after.split_once(']').ok_or_else(unclear)?;
            path.push(PathStep::Entry(number.parse().map_err(|_| unclear())?));
            rest = after;
        }
    }
    // Headers live as long as the program, which has one command line.
    Ok(CustomColumn { header: Box::leak(header.to_owned().into_boxed_str()), path })
}

fn text_at(value: &Value, path: &[PathStep]) -> String {
    let found = path.iter().try_fold(value, |value, step| match step {
        PathStep::Field(name) => value.get(name),
        PathStep::Entry(n) => value.get(n),
    });
    match found {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
    }
}

/// Reads `-o`.
#[derive(Clone, Debug)]
pub(crate) struct FormatParser;

impl TypedValueParser for FormatParser {
    type Value = OutputFormat;

    fn parse_ref(
        &self,
        command: &clap::Command,
        arg: Option<&clap::Arg>,
        value: &std::ffi::OsStr,
    ) -> Result<OutputFormat, clap::Error> {
        if let Some(text) = value.to_str().and_then(|text| text.strip_prefix(jsonpath::PREFIX)) {
            return match JsonPath::parse(text) {
                Ok(path) => Ok(OutputFormat::JsonPath(Box::leak(Box::new(path)))),
                Err(why) => Err(command.clone().error(ErrorKind::ValueValidation, format!("-o jsonpath: {why}"))),
            };
        }
        let Some(columns) = value.to_str().and_then(|text| text.strip_prefix(PREFIX)) else {
            return EnumValueParser::<OutputFormat>::new().parse_ref(command, arg, value);
        };
        match CustomColumns::parse(columns) {
            Ok(columns) => Ok(OutputFormat::Columns(Box::leak(Box::new(columns)))),
            Err(why) => Err(command.clone().error(ErrorKind::ValueValidation, format!("-o custom-columns: {why}"))),
        }
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        Some(Box::new(OutputFormat::value_variants().iter().filter_map(ValueEnum::to_possible_value)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_fields_of_the_document() {
        let columns = CustomColumns::parse("NAME:.name,ARG:.spec.args[1],N:.replicas,NONE:.a.b").expect("valid");
        let one = serde_json::json!({"name": "web", "replicas": 2, "spec": {"args": ["-v", "-q"]}});
        let table = columns.table(&[one]).expect("plain data").render(false);
        assert_eq!(table, "NAME  ARG  N  NONE\nweb   -q   2  -");
        for wrong in ["", "NAME", "NAME:name", ":.name", "A:.", "A:.x[", "A:.x[b]", "A:.x,", "A:.x]"] {
            assert!(CustomColumns::parse(wrong).is_err(), "{wrong}");
        }
    }
}
