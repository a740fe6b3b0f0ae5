//! A YAML text as the tree that documents are read from.

use std::fmt;

use proto::document::tree::{Node, Value};
use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::Spanned;

/// A value as the parser hands it over.
#[derive(Debug)]
pub(super) struct YamlNode(pub(super) Node);

#[derive(Debug)]
struct YamlValue(Value);

impl<'de> Deserialize<'de> for YamlNode {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<YamlValue>::deserialize(deserializer)?;
        Ok(Self(Node { line: spanned.referenced.line(), value: spanned.value.0 }))
    }
}

impl<'de> Deserialize<'de> for YamlValue {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;

        impl<'de> Visitor<'de> for Any {
            type Value = YamlValue;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a YAML value")
            }

            fn visit_unit<E>(self) -> Result<YamlValue, E> {
                Ok(YamlValue(Value::Null))
            }

            fn visit_none<E>(self) -> Result<YamlValue, E> {
                Ok(YamlValue(Value::Null))
            }

            fn visit_bool<E>(self, value: bool) -> Result<YamlValue, E> {
                Ok(YamlValue(Value::Bool(value)))
            }

            fn visit_i64<E>(self, value: i64) -> Result<YamlValue, E> {
                Ok(YamlValue(Value::Int(i128::from(value))))
            }

            fn visit_u64<E>(self, value: u64) -> Result<YamlValue, E> {
                Ok(YamlValue(Value::Int(i128::from(value))))
            }

            fn visit_i128<E>(self, value: i128) -> Result<YamlValue, E> {
                Ok(YamlValue(Value::Int(value)))
            }

            fn visit_f64<E>(self, _: f64) -> Result<YamlValue, E> {
                Ok(YamlValue(Value::Float))
            }

            fn visit_str<E>(self, value: &str) -> Result<YamlValue, E> {
                Ok(YamlValue(Value::Text(value.to_owned())))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<YamlValue, A::Error> {
                let mut list = Vec::new();
                while let Some(YamlNode(node)) = access.next_element()? {
                    list.push(node);
                }
                Ok(YamlValue(Value::List(list)))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<YamlValue, A::Error> {
                let mut map = Vec::new();
                while let Some(key) = access.next_key::<Spanned<String>>()? {
                    let YamlNode(node) = access.next_value()?;
                    map.push((key.value, key.referenced.line(), node));
                }
                Ok(YamlValue(Value::Map(map)))
            }
        }

        deserializer.deserialize_any(Any)
    }
}
