//! Label selectors: which appliances are meant, by their labels, in the notation of Kubernetes.
//!
//! `env=prod,tier!=db,zone in (a,b),zone notin (c),canary,!legacy`: conditions that all must hold.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Most conditions of one selector.
pub const MAX_CONDITIONS: usize = 32;

/// Longest selector as text, in bytes.
pub const MAX_SELECTOR_BYTES: usize = 4096;

/// What a label has to be.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LabelTest {
    /// One of these.
    In(BTreeSet<String>),
    /// None of these; an absent label passes.
    NotIn(BTreeSet<String>),
    /// There, whatever it is.
    Present,
    /// Not there.
    Absent,
}

impl LabelTest {
    /// Whether a label with this value passes, or one that is not there.
    #[must_use]
    pub fn passes(&self, value: Option<&String>) -> bool {
        match self {
            Self::In(values) => value.is_some_and(|value| values.contains(value)),
            Self::NotIn(values) => value.is_none_or(|value| !values.contains(value)),
            Self::Present => value.is_some(),
            Self::Absent => value.is_none(),
        }
    }
}

/// One condition: a label, and what it has to be.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LabelCondition {
    /// Key of the label.
    pub key: String,
    /// What it has to be.
    pub test: LabelTest,
}

/// Conditions that all must hold. Without any it selects nothing, so that an empty one is never taken for everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LabelSelector(Vec<LabelCondition>);

impl LabelSelector {
    /// A selector of these conditions.
    #[must_use]
    pub const fn new(conditions: Vec<LabelCondition>) -> Self {
        Self(conditions)
    }

    /// Its conditions.
    #[must_use]
    pub fn conditions(&self) -> &[LabelCondition] {
        &self.0
    }

    /// Whether there is no condition: it selects nothing.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether something with these labels is selected.
    #[must_use]
    pub fn selects(&self, labels: &BTreeMap<String, String>) -> bool {
        !self.0.is_empty() && self.0.iter().all(|LabelCondition { key, test }| test.passes(labels.get(key)))
    }
}

/// What is wrong with the text of a selector.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSelector {
    /// It has more bytes than allowed.
    #[error("has {0} bytes, at most {MAX_SELECTOR_BYTES} are allowed")]
    TooLong(usize),
    /// It has more conditions than allowed.
    #[error("has more than {MAX_CONDITIONS} conditions")]
    TooMany,
    /// A part that is no condition.
    #[error("`{0}` is no condition; write key=value, key!=value, key in (a,b), key notin (a,b), key or !key")]
    Condition(String),
    /// A label's key, or a value that is compared with, that no label can have.
    #[error("`{0}` is no key or value of a label: letters, digits and `-._/`")]
    Word(String),
}

impl FromStr for LabelSelector {
    type Err = InvalidSelector;

    fn from_str(text: &str) -> Result<Self, InvalidSelector> {
        if text.len() > MAX_SELECTOR_BYTES {
            return Err(InvalidSelector::TooLong(text.len()));
        }
        let mut conditions = Vec::new();
        for part in split(text) {
            if conditions.len() == MAX_CONDITIONS {
                return Err(InvalidSelector::TooMany);
            }
            conditions.push(condition(part.trim())?);
        }
        Ok(Self(conditions))
    }
}

/// The parts between commas outside of brackets; none of an empty text.
fn split(text: &str) -> Vec<&str> {
    if text.trim().is_empty() {
        return Vec::new();
    }
    let (mut depth, mut from, mut parts) = (0_usize, 0, Vec::new());
    for (at, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            ',' if depth == 0 => {
                parts.push(&text[from..at]);
                from = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[from..]);
    parts
}

fn condition(part: &str) -> Result<LabelCondition, InvalidSelector> {
    let made = |key: &str, test| Ok(LabelCondition { key: word(key)?, test });
    let one = |value: &str| Ok(BTreeSet::from([value_word(value)?]));
    if let Some(key) = part.strip_prefix('!') {
        return made(key, LabelTest::Absent);
    }
    if let Some((key, value)) = part.split_once("!=") {
        return made(key, LabelTest::NotIn(one(value)?));
    }
    if let Some((key, value)) = part.split_once("==").or_else(|| part.split_once('=')) {
        return made(key, LabelTest::In(one(value)?));
    }
    if let Some((head, list)) = part.split_once('(') {
        let unclear = || InvalidSelector::Condition(part.to_owned());
        let list = list.trim_end().strip_suffix(')').ok_or_else(unclear)?;
        let (key, operator) = head.trim_end().rsplit_once(char::is_whitespace).ok_or_else(unclear)?;
        let values = list.split(',').map(value_word).collect::<Result<_, _>>()?;
        return match operator {
            "in" => made(key, LabelTest::In(values)),
            "notin" => made(key, LabelTest::NotIn(values)),
            _ => Err(unclear()),
        };
    }
    if part.is_empty() || part.contains(char::is_whitespace) {
        return Err(InvalidSelector::Condition(part.to_owned()));
    }
    made(part, LabelTest::Present)
}

/// A key.
fn word(text: &str) -> Result<String, InvalidSelector> {
    let text = text.trim();
    if text.is_empty() { Err(InvalidSelector::Word(text.to_owned())) } else { value_word(text) }
}

/// A value, which may be empty.
fn value_word(text: &str) -> Result<String, InvalidSelector> {
    let text = text.trim();
    let is_plain = |c: char| c.is_alphanumeric() || "-._/:@+".contains(c);
    if text.chars().all(is_plain) { Ok(text.to_owned()) } else { Err(InvalidSelector::Word(text.to_owned())) }
}

impl fmt::Display for LabelSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, LabelCondition { key, test }) in self.0.iter().enumerate() {
            f.write_str(if n > 0 { "," } else { "" })?;
            let list = |values: &BTreeSet<String>| values.iter().map(String::as_str).collect::<Vec<_>>().join(",");
            let only = |values: &BTreeSet<String>| values.first().filter(|_| values.len() == 1).cloned();
            match test {
                LabelTest::In(values) => match only(values) {
                    Some(value) => write!(f, "{key}={value}")?,
                    None => write!(f, "{key} in ({})", list(values))?,
                },
                LabelTest::NotIn(values) => match only(values) {
                    Some(value) => write!(f, "{key}!={value}")?,
                    None => write!(f, "{key} notin ({})", list(values))?,
                },
                LabelTest::Present => f.write_str(key)?,
                LabelTest::Absent => write!(f, "!{key}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(of: &[(&str, &str)]) -> BTreeMap<String, String> {
        of.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    fn selects(selector: &str, of: &[(&str, &str)]) -> bool {
        selector.parse::<LabelSelector>().expect(selector).selects(&labels(of))
    }

    #[test]
    fn every_condition_has_to_hold_and_no_condition_selects_nothing() {
        let web = [("env", "prod"), ("tier", "web")];
        for (selector, expected) in [
            ("env=prod", true),
            ("env == prod , tier=web", true),
            ("env=prod,tier=db", false),
            ("env!=test,zone!=a", true),
            ("env in (prod, test),tier notin (db)", true),
            ("env notin (prod,test)", false),
            ("env,!zone", true),
            ("!env", false),
            ("zone", false),
            ("env!=a,env!=prod", false),
            ("", false),
            ("  ", false),
        ] {
            assert_eq!(selects(selector, &web), expected, "{selector}");
        }
        assert!(selects("note=", &[("note", "")]));
    }

    #[test]
    fn what_is_no_selector_says_so() {
        for wrong in [
            "=a",
            "a=b,",
            ",",
            "a in b",
            "a in (b",
            "a of (b)",
            "a b",
            "!",
            "a=b c",
            "a=\u{202e}b",
            "a>b",
            "a!",
            "a=b=c",
        ] {
            assert!(wrong.parse::<LabelSelector>().is_err(), "{wrong}");
        }
        assert_eq!("x".repeat(5_000).parse::<LabelSelector>(), Err(InvalidSelector::TooLong(5_000)));
        assert_eq!(["a"; 33].join(",").parse::<LabelSelector>(), Err(InvalidSelector::TooMany));
    }

    #[test]
    fn a_selector_is_written_as_it_is_read() {
        let text = "env=prod,tier!=db,zone in (a,b),rack notin (x,y),canary,!legacy";
        let selector: LabelSelector = text.parse().expect("in order");
        assert_eq!(selector.to_string(), text);
        let stored = serde_json::to_string(&selector).expect("plain data");
        assert_eq!(serde_json::from_str::<LabelSelector>(&stored).expect("round trip"), selector);
    }
}
