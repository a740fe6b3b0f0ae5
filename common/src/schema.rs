//! Schemas of settings whose form is not that of their Rust type, for what is generated from the structs. Compiled for tests alone: no
//! program has a schema in it.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

use crate::driver::DriverName;
use crate::telemetry::Ratio;

/// A duration as `humantime` reads it: `5s`, `1m 30s`, `250ms`.
#[derive(Debug)]
pub struct DurationText;

impl JsonSchema for DurationText {
    fn schema_name() -> Cow<'static, str> {
        "Duration".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        // Units that settings have a use for; humantime knows weeks, months and years as well.
        json_schema!({
            "type": "string",
            "pattern": r"^(\d+ *(nsec|ns|usec|us|millis|msec|ms|seconds|second|secs|sec|s|minutes|minute|mins|min|m|hours|hour|hrs|hr|h|days|day|d) *)+$",
        })
    }
}

impl JsonSchema for DriverName {
    fn schema_name() -> Cow<'static, str> {
        "DriverName".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "string", "maxLength": 63, "pattern": "^[a-z]([a-z0-9.-]*[a-z0-9])?$"})
    }
}

impl JsonSchema for Ratio {
    fn schema_name() -> Cow<'static, str> {
        "Ratio".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "number", "minimum": 0, "maximum": 1})
    }
}
