//! What a call of the API is: verb, resource, and its path without names, for spans and metrics.

use http::{Method, Uri};

/// Resources that metrics tell apart.
pub(crate) const RESOURCES: [&str; 9] =
    ["pods", "leases", "services", "secrets", "nodes", "events", "namespaces", "appliances", "other"];

/// Verbs, as the API has them.
pub(crate) const VERBS: [&str; 9] =
    ["get", "list", "watch", "create", "update", "patch", "delete", "deletecollection", "other"];

/// One call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ApiCall {
    /// One of [`VERBS`].
    pub(crate) verb: &'static str,
    /// One of [`RESOURCES`].
    pub(crate) resource: &'static str,
    /// Path with `{namespace}` and `{name}` in place of those.
    pub(crate) template: String,
    /// A watch, or a list in pages: of a whole resource, by which its caller knows everything else.
    pub(crate) is_long: bool,
}

impl ApiCall {
    /// Reads `/api/v1/namespaces/a/pods/b/status?watch=true` and the like.
    pub(crate) fn of(method: &Method, uri: &Uri) -> Self {
        let mut parts = uri.path().split('/').filter(|part| !part.is_empty()).peekable();
        let mut template = String::new();
        let mut add = |part: &str| {
            template.push('/');
            template.push_str(part);
        };
        let group = parts.next().unwrap_or_default();
        add(group);
        // `api` has a version, `apis` a group and a version.
        let versions = match group {
            "api" => 1,
            "apis" => 2,
            _ => 0,
        };
        parts.by_ref().take(versions).for_each(&mut add);
        let mut resource = parts.next().unwrap_or_default();
        let mut name = parts.next();
        if resource == "namespaces" && parts.peek().is_some() {
            add("namespaces");
            add("{namespace}");
            resource = parts.next().unwrap_or_default();
            name = parts.next();
        }
        if !resource.is_empty() {
            add(resource);
        }
        if name.is_some() {
            add("{name}");
        }
        parts.for_each(&mut add);
        let watches =
            uri.query().is_some_and(|query| query.split('&').any(|pair| pair == "watch=true" || pair == "watch=1"));
        let verb = match (method.as_str(), name) {
            ("GET", _) if watches => "watch",
            ("GET", Some(_)) => "get",
            ("GET", None) => "list",
            ("POST", _) => "create",
            ("PUT", _) => "update",
            ("PATCH", _) => "patch",
            ("DELETE", Some(_)) => "delete",
            ("DELETE", None) => "deletecollection",
            _ => "other",
        };
        let resource = RESOURCES.into_iter().find(|known| *known == resource).unwrap_or("other");
        let by_pages = uri.query().is_some_and(|query| query.split('&').any(|pair| pair.starts_with("limit=")));
        let is_long = verb == "watch" || verb == "list" && by_pages;
        Self { verb, resource, template, is_long }
    }

    /// Whether repeating it changes nothing.
    pub(crate) fn only_reads(&self) -> bool {
        matches!(self.verb, "get" | "list" | "watch")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_left_out_of_what_is_shown() {
        for (method, path, verb, resource, template) in [
            (Method::GET, "/api/v1/namespaces/a/pods/b", "get", "pods", "/api/v1/namespaces/{namespace}/pods/{name}"),
            (Method::GET, "/api/v1/pods?watch=true&x=1", "watch", "pods", "/api/v1/pods"),
            (Method::GET, "/api/v1/namespaces/a/pods?limit=5", "list", "pods", "/api/v1/namespaces/{namespace}/pods"),
            (Method::GET, "/api/v1/namespaces/a", "get", "namespaces", "/api/v1/namespaces/{name}"),
            (Method::GET, "/api/v1/nodes/n", "get", "nodes", "/api/v1/nodes/{name}"),
            (
                Method::PATCH,
                "/apis/rug.dev/v1alpha1/namespaces/a/appliances/b/status?x",
                "patch",
                "appliances",
                "/apis/rug.dev/v1alpha1/namespaces/{namespace}/appliances/{name}/status",
            ),
            (
                Method::PUT,
                "/apis/coordination.k8s.io/v1/namespaces/a/leases/b",
                "update",
                "leases",
                "/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases/{name}",
            ),
            (Method::GET, "/version", "list", "other", "/version"),
        ] {
            let call = ApiCall::of(&method, &path.parse().expect("a path"));
            assert_eq!((call.verb, call.resource, call.template.as_str()), (verb, resource, template), "{path}");
        }
    }
}
