//! Templates of pods: JSON objects, which Protobuf has as `Struct`.

use common::appliance::{FieldViolation, Violations};
use common::pod::PodTemplate;
use prost_types::value::Kind;
use prost_types::{ListValue, Struct, Value as WireValue};
use serde_json::{Map, Value};

/// A JSON object of a `Struct`. Whole numbers stay whole; what is no number in JSON becomes null.
#[must_use]
pub fn json_from_struct(wire: Struct) -> Value {
    Value::Object(wire.fields.into_iter().map(|(name, value)| (name, json(value))).collect())
}

/// A `Struct` of a JSON object; `None` of anything else. Numbers are rounded to what floating point has.
#[must_use]
pub fn struct_from_json(value: &Value) -> Option<Struct> {
    let fields = value.as_object()?.iter().map(|(name, value)| (name.clone(), wire(value))).collect();
    Some(Struct { fields })
}

fn json(value: WireValue) -> Value {
    match value.kind {
        None | Some(Kind::NullValue(_)) => Value::Null,
        Some(Kind::BoolValue(value)) => Value::Bool(value),
        Some(Kind::NumberValue(value)) => number(value),
        Some(Kind::StringValue(text)) => Value::String(text),
        Some(Kind::ListValue(list)) => Value::Array(list.values.into_iter().map(json).collect()),
        Some(Kind::StructValue(object)) => json_from_struct(object),
    }
}

/// A number as it was before Protobuf made it one of floating point.
fn number(value: f64) -> Value {
    /// Up to here every whole number is one of floating point.
    const EXACT: f64 = 9_007_199_254_740_992.0;
    if value.fract() == 0.0 && value.abs() <= EXACT {
        #[expect(clippy::cast_possible_truncation, reason = "whole, and in range")]
        return (value as i64).into();
    }
    serde_json::Number::from_f64(value).map_or(Value::Null, Value::Number)
}

fn wire(value: &Value) -> WireValue {
    let object = |fields: &Map<String, Value>| {
        let fields = fields.iter().map(|(name, value)| (name.clone(), wire(value))).collect();
        Kind::StructValue(Struct { fields })
    };
    let kind = match value {
        Value::Null => Kind::NullValue(0),
        Value::Bool(value) => Kind::BoolValue(*value),
        Value::Number(number) => Kind::NumberValue(number.as_f64().unwrap_or_default()),
        Value::String(text) => Kind::StringValue(text.clone()),
        Value::Array(items) => Kind::ListValue(ListValue { values: items.iter().map(wire).collect() }),
        Value::Object(fields) => object(fields),
    };
    WireValue { kind: Some(kind) }
}

/// Reads a template; problems have paths below `at`.
pub(super) fn read_pod(wire: Option<Struct>, at: &str, found: &mut Violations) -> Option<PodTemplate> {
    match PodTemplate::new(&json_from_struct(wire?)) {
        Ok(template) => Some(template),
        Err(violations) => {
            for FieldViolation { field, description } in violations {
                let below = field.strip_prefix("spec").unwrap_or(&field);
                found.add(format!("{at}{below}"), description);
            }
            None
        }
    }
}

/// Writes a template.
pub(super) fn pod_to_wire(template: &PodTemplate) -> Option<Struct> {
    struct_from_json(&template.value())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_template_comes_back_as_it_went() {
        let value = json!({
            "metadata": {"labels": {"a": "b"}},
            "spec": {"priority": 5, "hostNetwork": false, "x": null, "volumes": [{"name": "v", "emptyDir": {}}], "y": 0.5},
        });
        assert_eq!(struct_from_json(&value).map(json_from_struct), Some(value.clone()), "whole numbers stay whole");
        let template = PodTemplate::new(&value).expect("valid");
        let mut found = Violations::default();
        assert_eq!(read_pod(pod_to_wire(&template), "spec", &mut found), Some(template));
        assert!(found.is_empty());
    }

    #[test]
    fn what_is_wrong_with_a_template_is_told_by_its_path() {
        let wire = struct_from_json(&json!({"spec": {"restartPolicy": "Always"}}));
        let mut found = Violations::default();
        assert_eq!(read_pod(wire, "appliance.spec", &mut found), None);
        assert_eq!(found.into_vec()[0].field, "appliance.spec.pod.spec.restartPolicy");
    }
}
