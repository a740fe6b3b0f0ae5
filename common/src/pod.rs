//! A template of pods in a specification: what the driver `kubernetes` merges into the pods that it makes.
//!
//! Kept as JSON in one form (keys in order, no space), so that equal templates are equal texts and have equal digests. What is in it
//! the API server judges; here only its size is bounded, and what Rug sets itself is refused.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value};

use crate::limits::FieldViolation;

/// Largest template, in bytes of its JSON.
pub const MAX_POD_TEMPLATE: usize = 32 * 1024;
/// Deepest nesting of a template.
const MAX_DEPTH: usize = 24;
/// Name of the container that is the appliance itself.
pub const MAIN_CONTAINER: &str = "appliance";
/// Start of the names of labels and annotations that are Rug's own.
pub const OWN_PREFIX: &str = "rug.dev/";
/// Labels of Rug's own with another name.
pub const OWN_LABELS: [&str; 2] = ["app.kubernetes.io/managed-by", "app.kubernetes.io/name"];

/// Fields of the pod's `spec` that Rug sets, and where what they say is said instead.
const OWN_FIELDS: [(&str, &str); 7] = [
    ("restartPolicy", "Rug starts instances anew itself"),
    ("schedulingGates", "Rug uses them to fence former owners"),
    ("hostname", "pods are named by Rug"),
    ("subdomain", "pods are named by Rug"),
    ("nodeName", "use nodeSelector or affinity"),
    ("terminationGracePeriodSeconds", "use spec.custom.stop_timeout"),
    ("ephemeralContainers", "they are no part of a new pod"),
];
/// Fields of the main container that Rug sets, and where what they say is said instead.
const OWN_CONTAINER_FIELDS: [(&str, &str); 4] = [
    ("image", "use spec.image"),
    ("command", "use spec.custom.command"),
    ("args", "use spec.custom.args"),
    ("readinessProbe", "use spec.custom.probe"),
];

/// A template of pods: an object with `metadata` (`labels`, `annotations`) and `spec`, as in a Kubernetes `PodTemplateSpec`. Cheap to
/// clone.
#[derive(Clone, PartialEq, Eq)]
pub struct PodTemplate(Arc<str>);

impl PodTemplate {
    /// Takes a template into its one form.
    ///
    /// # Errors
    /// Every rule that it breaks, with paths below `spec.pod`.
    pub fn new(value: &Value) -> Result<Self, Vec<FieldViolation>> {
        let mut found = Vec::new();
        check(value, &mut found);
        Self::bounded(value, found)
    }

    /// Takes a value in that breaks no rule, of those that were found, and none of size.
    fn bounded(value: &Value, mut found: Vec<FieldViolation>) -> Result<Self, Vec<FieldViolation>> {
        let mut text = String::new();
        if found.is_empty() {
            write(value, &mut text);
        }
        if text.len() > MAX_POD_TEMPLATE {
            let problem = format!("has {} bytes of JSON, at most {MAX_POD_TEMPLATE} are allowed", text.len());
            found.push(FieldViolation::new(ROOT, problem));
        }
        if found.is_empty() { Ok(Self(text.into())) } else { Err(found) }
    }

    /// Its JSON.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Its content.
    #[must_use]
    pub fn value(&self) -> Value {
        serde_json::from_str(&self.0).unwrap_or_default()
    }
}

impl fmt::Debug for PodTemplate {
    /// Without values, which may be secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PodTemplate({} bytes)", self.0.len())
    }
}

impl Serialize for PodTemplate {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.value().serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for PodTemplate {
    /// Of what is kept: only size and depth are looked at, since it may be older than a rule. [`PodTemplate::new`] reads what comes in.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(deserializer)?;
        let mut found = Vec::new();
        check_depth(&value, &mut found);
        Self::bounded(&value, found).map_err(|found| {
            let first = found.first().map(ToString::to_string).unwrap_or_default();
            serde::de::Error::custom(first)
        })
    }
}

/// Path of the template.
const ROOT: &str = "spec.pod";

/// Answers whether it is not too deep.
fn check_depth(value: &Value, found: &mut Vec<FieldViolation>) -> bool {
    let is_fine = depth(value, 0) <= MAX_DEPTH;
    if !is_fine {
        found.push(FieldViolation::new(ROOT, format!("is nested more than {MAX_DEPTH} deep")));
    }
    is_fine
}

fn check(value: &Value, found: &mut Vec<FieldViolation>) {
    if !check_depth(value, found) {
        return;
    }
    let Some(template) = object(value, ROOT, found) else { return };
    for (name, part) in template {
        let at = format!("{ROOT}.{name}");
        match name.as_str() {
            "metadata" => check_metadata(part, &at, found),
            "spec" => check_spec(part, &at, found),
            _ => found.push(FieldViolation::new(at, "is no part of a pod template, which has metadata and spec")),
        }
    }
}

fn check_metadata(value: &Value, at: &str, found: &mut Vec<FieldViolation>) {
    let Some(metadata) = object(value, at, found) else { return };
    for (name, part) in metadata {
        let at = format!("{at}.{name}");
        if !matches!(name.as_str(), "labels" | "annotations") {
            found.push(FieldViolation::new(at, "only labels and annotations can be given: pods are named by Rug"));
            continue;
        }
        for (key, text) in object(part, &at, found).into_iter().flatten() {
            let own = key.starts_with(OWN_PREFIX) || (name == "labels" && OWN_LABELS.contains(&key.as_str()));
            if own {
                found.push(FieldViolation::new(format!("{at}[{key}]"), "is set by Rug"));
            } else if !text.is_string() {
                found.push(FieldViolation::new(format!("{at}[{key}]"), "must be a text"));
            }
        }
    }
}

fn check_spec(value: &Value, at: &str, found: &mut Vec<FieldViolation>) {
    let Some(spec) = object(value, at, found) else { return };
    refuse(spec, &OWN_FIELDS, at, found);
    for list in ["containers", "initContainers"] {
        let Some(containers) = spec.get(list) else { continue };
        let at = format!("{at}.{list}");
        let Some(containers) = containers.as_array() else {
            found.push(FieldViolation::new(at, "must be a list"));
            continue;
        };
        let mut names = Vec::new();
        for (i, container) in containers.iter().enumerate() {
            let at = format!("{at}[{i}]");
            let Some(container) = object(container, &at, found) else { continue };
            let name = container.get("name").and_then(Value::as_str).unwrap_or_default();
            if name.is_empty() || names.contains(&name) {
                found.push(FieldViolation::new(format!("{at}.name"), "must be a name that no other has"));
            } else if list == "initContainers" && name == MAIN_CONTAINER {
                found.push(FieldViolation::new(format!("{at}.name"), "is the name of the appliance's own container"));
            }
            if list == "containers" && name == MAIN_CONTAINER {
                refuse(container, &OWN_CONTAINER_FIELDS, &at, found);
            }
            names.push(name);
        }
    }
}

fn refuse(object: &Map<String, Value>, own: &[(&str, &str)], at: &str, found: &mut Vec<FieldViolation>) {
    for (field, instead) in own.iter().filter(|(field, _)| object.contains_key(*field)) {
        found.push(FieldViolation::new(format!("{at}.{field}"), format!("is set by Rug: {instead}")));
    }
}

fn object<'a>(value: &'a Value, at: &str, found: &mut Vec<FieldViolation>) -> Option<&'a Map<String, Value>> {
    let object = value.as_object();
    if object.is_none() {
        found.push(FieldViolation::new(at, "must be an object"));
    }
    object
}

/// How deep a value is nested; no deeper than it matters.
fn depth(value: &Value, above: usize) -> usize {
    if above > MAX_DEPTH {
        return above;
    }
    match value {
        Value::Array(items) => items.iter().map(|item| depth(item, above + 1)).max().unwrap_or(above),
        Value::Object(fields) => fields.values().map(|field| depth(field, above + 1)).max().unwrap_or(above),
        _ => above,
    }
}

/// Writes a value with its keys in order. Numbers without a fraction are whole, whatever they were read from.
fn write(value: &Value, out: &mut String) {
    match value {
        Value::Array(items) => {
            out.push('[');
            for (i, item) in items.iter().enumerate() {
                if i > 0 {
                    out.push(',');
                }
                write(item, out);
            }
            out.push(']');
        }
        Value::Object(fields) => {
            let mut fields: Vec<_> = fields.iter().collect();
            fields.sort_by_key(|(name, _)| *name);
            out.push('{');
            for (i, (name, field)) in fields.into_iter().enumerate() {
                if i > 0 {
                    out.push(',');
                }
                out.push_str(&Value::from(name.as_str()).to_string());
                out.push(':');
                write(field, out);
            }
            out.push('}');
        }
        Value::Number(number) => out.push_str(&whole(number).map_or_else(|| number.to_string(), |n| n.to_string())),
        other => out.push_str(&other.to_string()),
    }
}

/// A number that was read as a floating-point one, as Protobuf has them all, and has no fraction.
fn whole(number: &serde_json::Number) -> Option<i64> {
    /// Up to here every whole number is one of floating point.
    const EXACT: f64 = 9_007_199_254_740_992.0;
    let value = number.as_f64().filter(|value| number.is_f64() && value.fract() == 0.0 && value.abs() <= EXACT)?;
    #[expect(clippy::cast_possible_truncation, reason = "whole, and in range")]
    Some(value as i64)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn violations(value: &Value) -> Vec<String> {
        PodTemplate::new(value).expect_err("refused").into_iter().map(|violation| violation.field).collect()
    }

    #[test]
    fn equal_templates_are_equal_texts() {
        let one = json!({"spec": {"b": 1.0, "a": [true, null, "x"]}, "metadata": {"labels": {"k": "v"}}});
        let other = json!({"metadata": {"labels": {"k": "v"}}, "spec": {"a": [true, null, "x"], "b": 1}});
        let (one, other) = (PodTemplate::new(&one).expect("valid"), PodTemplate::new(&other).expect("valid"));
        assert_eq!(one, other);
        assert_eq!(one.as_str(), r#"{"metadata":{"labels":{"k":"v"}},"spec":{"a":[true,null,"x"],"b":1}}"#);
        let stored = serde_json::to_string(&one).expect("plain data");
        assert_eq!(serde_json::from_str::<PodTemplate>(&stored).expect("round trip"), one);
        assert!(!format!("{one:?}").contains("labels"));
    }

    #[test]
    fn numbers_are_kept_as_they_were_read() {
        // A reader that is off by the last bit for one number in some hundred gives another text, and another digest, each time.
        for i in 1..20_000_u64 {
            let written = format!("{}.{}e{}", i % 7, i.wrapping_mul(6_364_136_223_846_793_005), i % 40);
            let value = serde_json::from_str(&format!(r#"{{"spec":{{"x":{written}}}}}"#)).expect("JSON");
            let template = PodTemplate::new(&value).expect("valid");
            assert_eq!(PodTemplate::new(&template.value()).expect("valid"), template, "{written}");
        }
    }

    #[test]
    fn what_rug_sets_itself_is_refused_by_its_path() {
        let template = json!({
            "metadata": {"name": "x", "labels": {"rug.dev/x": "y", "app.kubernetes.io/name": "z", "ok": 1}},
            "spec": {
                "restartPolicy": "Always",
                "schedulingGates": [],
                "containers": [{"name": "appliance", "image": "x", "command": ["y"]}, {"name": "side", "image": "x"}, {}],
                "initContainers": [{"name": "appliance"}],
            },
            "status": {},
        });
        let mut found = violations(&template);
        found.sort();
        let mut expected = [
            "spec.pod.metadata.name",
            "spec.pod.metadata.labels[rug.dev/x]",
            "spec.pod.metadata.labels[app.kubernetes.io/name]",
            "spec.pod.metadata.labels[ok]",
            "spec.pod.spec.restartPolicy",
            "spec.pod.spec.schedulingGates",
            "spec.pod.spec.containers[0].image",
            "spec.pod.spec.containers[0].command",
            "spec.pod.spec.containers[2].name",
            "spec.pod.spec.initContainers[0].name",
            "spec.pod.status",
        ];
        expected.sort_unstable();
        assert_eq!(found, expected);
    }

    #[test]
    fn size_and_depth_are_bounded() {
        let long = json!({"spec": {"x": "y".repeat(MAX_POD_TEMPLATE)}});
        assert_eq!(violations(&long), ["spec.pod"]);
        let deep = (0..100).fold(json!(1), |inner, _| json!({"x": inner}));
        assert_eq!(violations(&json!({"spec": &deep})), ["spec.pod"]);
        assert_eq!(violations(&json!([])), ["spec.pod"]);
        for stored in [long, json!({"spec": deep})] {
            assert!(serde_json::from_value::<PodTemplate>(stored).is_err());
        }
    }

    #[test]
    fn what_is_kept_is_read_whatever_the_rules_are_by_now() {
        let stored = json!({"spec": {"restartPolicy": "Always"}});
        assert_eq!(violations(&stored), ["spec.pod.spec.restartPolicy"]);
        let kept: PodTemplate = serde_json::from_value(stored.clone()).expect("it is read");
        assert_eq!(kept.value(), stored);
    }
}
