//! A document as a tree that remembers lines, and typed access to it that collects every problem.
//!
//! Deserialising into serde types would stop at the first problem and could not name the path of a field; and the type
//! of `spec` depends on `kind`, which may come after it. So whoever has the text builds a [`Node`] tree, from which
//! the parent module takes field by field. Fields that are left over are unknown and reported.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::RangeInclusive;
use std::time::Duration;

/// One value and the line it starts in, counted from 1.
#[derive(Clone, Debug)]
pub struct Node {
    /// Where it starts; 0 where there are no lines.
    pub line: u64,
    /// The value.
    pub value: Value,
}

/// What a value is.
#[derive(Clone, Debug)]
pub enum Value {
    /// Nothing.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A whole number.
    Int(i128),
    /// Another number; no field takes one.
    Float,
    /// A text.
    Text(String),
    /// A list.
    List(Vec<Node>),
    /// A mapping: each key with its line.
    Map(Vec<(String, u64, Node)>),
}

impl Value {
    /// Name of the value in messages, which never quote it: it may be a password that is missing its quotes.
    const fn describe(&self) -> &'static str {
        match self {
            Self::Null => "empty",
            Self::Bool(_) => "a boolean",
            Self::Int(_) | Self::Float => "a number",
            Self::Text(_) => "a text",
            Self::List(_) => "a list",
            Self::Map(_) => "a mapping",
        }
    }
}

impl Node {
    fn json(&self, path: &str, report: &mut ReadReport) -> Option<serde_json::Value> {
        report.lines.insert(path.to_owned(), self.line);
        Some(match &self.value {
            Value::Null => serde_json::Value::Null,
            Value::Bool(value) => (*value).into(),
            Value::Text(text) => text.as_str().into(),
            Value::Int(value) => match i64::try_from(*value) {
                Ok(value) => value.into(),
                Err(_) => {
                    report.problem(self.line, path, "is too large a number");
                    return None;
                }
            },
            Value::Float => {
                report.problem(self.line, path, "must be a whole number or text (put it in quotes)");
                return None;
            }
            Value::List(nodes) => {
                let items = nodes.iter().enumerate().map(|(i, node)| node.json(&format!("{path}[{i}]"), report));
                items.collect::<Option<Vec<_>>>()?.into()
            }
            Value::Map(entries) => {
                let fields = entries
                    .iter()
                    .map(|(key, _, node)| Some((key.clone(), node.json(&format!("{path}.{key}"), report)?)));
                serde_json::Value::Object(fields.collect::<Option<_>>()?)
            }
        })
    }
}

/// One problem and its position.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Line of the field.
    pub line: u64,
    /// Path of the field in the document; empty for the document as a whole.
    pub field: String,
    /// What is wrong with it.
    pub message: String,
}

/// Collects the results of reading one document: the problems, and the line of each field, with which errors of the
/// server are located later.
#[derive(Debug, Default)]
pub struct ReadReport {
    /// What is wrong.
    pub problems: Vec<Problem>,
    /// The line of each field that was read.
    pub lines: BTreeMap<String, u64>,
}

impl ReadReport {
    /// Adds a problem.
    pub fn problem(&mut self, line: u64, field: &str, message: impl Into<String>) {
        self.problems.push(Problem { line, field: field.to_owned(), message: message.into() });
    }

    fn wrong_type(&mut self, at: &Field, wanted: &str) {
        self.problem(at.line(), &at.path, format!("must be {wanted}, is {}", at.node.value.describe()));
    }
}

/// A value with its path.
#[derive(Debug)]
pub struct Field {
    /// Its path in the document.
    pub path: String,
    /// Its value.
    pub node: Node,
}

impl Field {
    /// The line the value starts in.
    pub fn line(&self) -> u64 {
        self.node.line
    }

    /// Text. A number is refused rather than converted: `1.10` would become `1.1`.
    pub fn text(&self, report: &mut ReadReport) -> Option<String> {
        match &self.node.value {
            Value::Text(text) => Some(text.clone()),
            Value::Int(_) | Value::Float | Value::Bool(_) => {
                report.wrong_type(self, "text (put it in quotes)");
                None
            }
            _ => {
                report.wrong_type(self, "text");
                None
            }
        }
    }

    /// A whole number within `range`.
    pub fn whole<T: TryFrom<i128> + PartialOrd + fmt::Display>(
        &self,
        range: RangeInclusive<T>,
        report: &mut ReadReport,
    ) -> Option<T> {
        if let Value::Int(value) = self.node.value
            && let Ok(value) = T::try_from(value)
            && range.contains(&value)
        {
            return Some(value);
        }
        report.wrong_type(self, &format!("a whole number from {} to {}", range.start(), range.end()));
        None
    }

    /// `true` or `false`.
    pub fn flag(&self, report: &mut ReadReport) -> Option<bool> {
        if let Value::Bool(value) = self.node.value {
            return Some(value);
        }
        report.wrong_type(self, "true or false");
        None
    }

    /// An object of JSON, whatever is in it. A number with a fraction is refused: text keeps its digits.
    pub fn object(&self, report: &mut ReadReport) -> Option<serde_json::Value> {
        if !matches!(self.node.value, Value::Map(_)) {
            report.wrong_type(self, "a mapping");
            return None;
        }
        self.node.json(&self.path, report)
    }

    /// A length of time such as `1m 30s`.
    pub fn duration(&self, report: &mut ReadReport) -> Option<Duration> {
        if let Value::Text(text) = &self.node.value
            && let Ok(duration) = humantime::parse_duration(text)
        {
            return Some(duration);
        }
        report.wrong_type(self, "a duration with its unit, such as 5s or 500ms");
        None
    }

    /// The entries of a list; none when it is empty.
    pub fn list(self, report: &mut ReadReport) -> Vec<Self> {
        match self.node.value {
            Value::List(nodes) => {
                let path = self.path;
                let entry = |(i, node): (usize, Node)| {
                    let path = format!("{path}[{i}]");
                    report.lines.insert(path.clone(), node.line);
                    Self { path, node }
                };
                nodes.into_iter().enumerate().map(entry).collect()
            }
            Value::Null => Vec::new(),
            _ => {
                report.wrong_type(&self, "a list");
                Vec::new()
            }
        }
    }

    /// A mapping from names to texts.
    pub fn texts(self, report: &mut ReadReport) -> BTreeMap<String, String> {
        match self.node.value {
            Value::Map(entries) => {
                let mut texts = BTreeMap::new();
                for (key, line, node) in entries {
                    let field = Self { path: format!("{}.{key}", self.path), node };
                    report.lines.insert(field.path.clone(), line);
                    if let Some(text) = field.text(report) {
                        texts.insert(key, text);
                    }
                }
                texts
            }
            Value::Null => BTreeMap::new(),
            _ => {
                report.wrong_type(&self, "a mapping of names to texts");
                BTreeMap::new()
            }
        }
    }

    /// The fields of a mapping.
    pub fn fields(self, report: &mut ReadReport) -> Option<Fields> {
        let line = self.line();
        match self.node.value {
            Value::Map(entries) => Some(Fields { path: self.path, line, entries, known: vec![] }),
            _ => {
                report.wrong_type(&self, "a mapping");
                None
            }
        }
    }
}

/// A mapping whose fields are taken one by one. [`Fields::finish`] reports those that are left over.
#[derive(Debug)]
pub struct Fields {
    path: String,
    line: u64,
    entries: Vec<(String, u64, Node)>,
    known: Vec<&'static str>,
}

impl Fields {
    /// The path of one field.
    pub fn path_of(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) }
    }

    /// Takes a field; `None` when it is absent or empty.
    pub fn take(&mut self, name: &'static str, report: &mut ReadReport) -> Option<Field> {
        self.known.push(name);
        let index = self.entries.iter().position(|(key, ..)| key == name)?;
        let (_, line, node) = self.entries.swap_remove(index);
        let path = self.path_of(name);
        report.lines.insert(path.clone(), line);
        (!matches!(node.value, Value::Null)).then_some(Field { path, node })
    }

    /// Takes a field and adds a problem when it is absent or empty.
    pub fn require(&mut self, name: &'static str, report: &mut ReadReport) -> Option<Field> {
        let field = self.take(name, report);
        if field.is_none() {
            let path = self.path_of(name);
            let line = report.lines.get(&path).copied().unwrap_or(self.line);
            report.problem(line, &path, "is required");
        }
        field
    }

    /// Adds a problem for each field that was not taken.
    pub fn finish(mut self, report: &mut ReadReport) {
        self.entries.sort_by_key(|(_, line, _)| *line);
        for (key, line, _) in &self.entries {
            report.problem(*line, &self.path_of(key), format!("unknown field; known are {}", self.known.join(", ")));
        }
    }
}
