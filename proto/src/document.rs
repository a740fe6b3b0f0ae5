//! Documents: appliances as people write them, for `rugctl apply` and in custom resources.
//!
//! There is one reader. Whoever has a text, YAML or JSON, makes a [`tree`] of it; [`appliance`] reads that into the API's
//! message and collects every problem with its field. Errors that only the server can find name fields of the API;
//! [`document_field`] maps those back.

mod read;
mod router;
pub mod tree;

use common::appliance::SpecTime;
use common::kind::KindName;

pub use read::{DocumentDefaults, SIZE_UNITS, appliance};

/// The field path of a document for a field path of the API.
#[must_use]
pub fn document_field(api_field: &str) -> String {
    let field = api_field.strip_prefix("appliance.").unwrap_or(api_field);
    for kind in KindName::ALL {
        if let Some(rest) = field.strip_prefix("spec.").and_then(|f| f.strip_prefix(kind.as_str())) {
            match rest.as_bytes().first() {
                None => return "spec".to_owned(),
                Some(b'.') => return format!("spec{rest}"),
                Some(_) => {}
            }
        }
    }
    match field.strip_prefix("spec.") {
        Some(rest)
            if matches!(rest, "replicas" | "image" | "kind" | "ports")
                || SpecTime::ALL.iter().any(|time| time.name() == rest)
                || rest.starts_with("ports[")
                || rest == "pod"
                || rest.starts_with("pod.") =>
        {
            rest.to_owned()
        }
        _ => field.to_owned(),
    }
}
