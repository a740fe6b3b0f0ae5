//! One call: of which service, with which method, path and body.

use http::Method;
use serde::Serialize;
use serde_json::Value;

use crate::config::Service;
use crate::id::ResourceId;

/// One call.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) service: Service,
    pub(crate) method: Method,
    /// Path with `{}` in place of ids, for spans.
    pub(crate) template: &'static str,
    /// Path below that of the service's endpoint.
    pub(crate) path: String,
    /// What follows `?`, encoded; may be empty.
    pub(crate) query: String,
    /// As JSON.
    pub(crate) body: Option<Vec<u8>>,
    /// Of compute: `OpenStack-API-Version`.
    pub(crate) version: Option<String>,
    /// The path is not below that of the endpoint, but below the root of the service: for its versions.
    pub(crate) at_root: bool,
}

impl Call {
    /// A call whose path is `template` with the ids put in.
    pub(crate) fn new(service: Service, method: Method, template: &'static str, ids: &[&ResourceId]) -> Self {
        let mut path = String::with_capacity(template.len() + 40 * ids.len());
        let mut ids = ids.iter();
        for (i, part) in template.split("{}").enumerate() {
            if i > 0 {
                // Ids have no character that means something in a path.
                path.push_str(ids.next().map_or("", |id| id.as_str()));
            }
            path.push_str(part);
        }
        Self { service, method, template, path, query: String::new(), body: None, version: None, at_root: false }
    }

    pub(crate) fn get(service: Service, template: &'static str, ids: &[&ResourceId]) -> Self {
        Self::new(service, Method::GET, template, ids)
    }

    pub(crate) fn delete(service: Service, template: &'static str, ids: &[&ResourceId]) -> Self {
        Self::new(service, Method::DELETE, template, ids)
    }

    /// With a body, as JSON.
    pub(crate) fn with(mut self, body: &Value) -> Self {
        self.body = Some(body.to_string().into_bytes());
        self
    }

    /// With what follows `?`.
    pub(crate) fn filtered<N: AsRef<str>, V: AsRef<str>>(mut self, pairs: impl IntoIterator<Item = (N, V)>) -> Self {
        self.query = url::form_urlencoded::Serializer::new(self.query).extend_pairs(pairs).finish();
        self
    }

    /// Whether repeating it changes nothing.
    pub(crate) fn only_reads(&self) -> bool {
        self.method == Method::GET
    }
}

/// A body of one object under its name: `{"server": {..}}`.
pub(crate) fn wrapped(name: &str, object: &impl Serialize) -> Value {
    serde_json::json!({ name: object })
}
