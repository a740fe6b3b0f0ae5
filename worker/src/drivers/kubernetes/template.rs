//! What the template of a specification may not ask for unless the settings of the worker allow it.
//!
//! Whoever may write specifications is not meant to have the rights of a node, or those of a service account. Checked where a pod is
//! planned and not where a template is read: what is kept may be older than a rule, and rules differ between workers.

use std::collections::BTreeSet;

use common::pod::MAIN_CONTAINER;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Something that templates may ask for only where it is allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum TemplateRight {
    /// Another service account than the one that the settings of the worker name.
    ServiceAccount,
    /// A token of the service account in the pod, mounted or projected, or a certificate in its name.
    ServiceAccountToken,
    /// The network, processes or IPC of the node, and its ports.
    HostNamespaces,
    /// Folders of the node.
    HostPath,
    /// Privileged containers, capabilities, and an unmasked `/proc`.
    Privileged,
    /// A priority, by which other pods are evicted.
    PriorityClass,
}

impl TemplateRight {
    /// As it is written in settings.
    const fn name(self) -> &'static str {
        match self {
            Self::ServiceAccount => "service_account",
            Self::ServiceAccountToken => "service_account_token",
            Self::HostNamespaces => "host_namespaces",
            Self::HostPath => "host_path",
            Self::Privileged => "privileged",
            Self::PriorityClass => "priority_class",
        }
    }
}

/// Fields of a pod's specification, by what they take.
const POD_FIELDS: [(&str, TemplateRight); 8] = [
    ("serviceAccountName", TemplateRight::ServiceAccount),
    ("serviceAccount", TemplateRight::ServiceAccount),
    ("automountServiceAccountToken", TemplateRight::ServiceAccountToken),
    ("hostNetwork", TemplateRight::HostNamespaces),
    ("hostPID", TemplateRight::HostNamespaces),
    ("hostIPC", TemplateRight::HostNamespaces),
    ("priorityClassName", TemplateRight::PriorityClass),
    ("priority", TemplateRight::PriorityClass),
];
/// Sources of a projected volume that prove who the pod is.
const IDENTITIES: [&str; 2] = ["serviceAccountToken", "podCertificate"];
/// Fields of the container `appliance` by which it would be started anew in its place.
const RESTARTS: [&str; 2] = ["restartPolicy", "restartPolicyRules"];

/// Why a template is refused; `None` when it is not.
pub(super) fn refusal(template: &Value, allowed: &BTreeSet<TemplateRight>) -> Option<String> {
    let spec = &template["spec"];
    if let Some(field) = restarts(spec) {
        return Some(format!(
            "{field} of the container `{MAIN_CONTAINER}` in spec.pod is set by Rug: it starts instances anew itself"
        ));
    }
    let (field, right) = asked(spec).into_iter().find(|(_, right)| !allowed.contains(right))?;
    Some(format!(
        "spec.pod: {field} is not allowed by the worker's setting kubernetes.template_allow (`{}`)",
        right.name()
    ))
}

fn restarts(spec: &Value) -> Option<&'static str> {
    let main = items(&spec["containers"]).find(|container| container["name"] == MAIN_CONTAINER)?;
    RESTARTS.into_iter().find(|field| !main[*field].is_null())
}

/// What a template asks for, and where.
fn asked(spec: &Value) -> Vec<(String, TemplateRight)> {
    let mut found = Vec::new();
    for (field, right) in POD_FIELDS {
        if is_given(&spec[field]) {
            found.push((field.to_owned(), right));
        }
    }
    for volume in items(&spec["volumes"]) {
        if is_given(&volume["hostPath"]) {
            found.push(("volumes[].hostPath".to_owned(), TemplateRight::HostPath));
        }
        for source in items(&volume["projected"]["sources"]) {
            for identity in IDENTITIES.into_iter().filter(|identity| is_given(&source[*identity])) {
                let field = format!("volumes[].projected.sources[].{identity}");
                found.push((field, TemplateRight::ServiceAccountToken));
            }
        }
    }
    if is_given(&spec["securityContext"]["windowsOptions"]["hostProcess"]) {
        found.push(("securityContext.windowsOptions.hostProcess".to_owned(), TemplateRight::Privileged));
    }
    for list in ["initContainers", "containers"] {
        for container in items(&spec[list]) {
            let context = &container["securityContext"];
            let privileges = [
                ("privileged", &context["privileged"]),
                ("capabilities.add", &context["capabilities"]["add"]),
                ("procMount", &context["procMount"]),
                ("windowsOptions.hostProcess", &context["windowsOptions"]["hostProcess"]),
            ];
            for (field, _) in privileges.into_iter().filter(|(_, value)| is_given(value)) {
                found.push((format!("{list}[].securityContext.{field}"), TemplateRight::Privileged));
            }
            if items(&container["ports"]).any(|port| is_given(&port["hostPort"])) {
                found.push((format!("{list}[].ports[].hostPort"), TemplateRight::HostNamespaces));
            }
        }
    }
    found
}

fn items(list: &Value) -> impl Iterator<Item = &Value> {
    list.as_array().into_iter().flatten()
}

/// Whether a field asks for something: nothing does that says no.
fn is_given(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => false,
        Value::Array(items) => !items.is_empty(),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_template_takes_no_rights_that_the_settings_do_not_give() {
        use TemplateRight as R;
        let main = |fields: Value| {
            let mut container = json!({"name": "appliance"});
            let all = container.as_object_mut().expect("an object");
            all.extend(fields.as_object().expect("an object").clone());
            json!({"containers": [container]})
        };
        let projected = |source: Value| json!({"volumes": [{"name": "v", "projected": {"sources": [source]}}]});
        for (spec, right) in [
            (json!({"serviceAccountName": "rug-worker"}), R::ServiceAccount),
            (json!({"serviceAccount": "rug-worker"}), R::ServiceAccount),
            (json!({"automountServiceAccountToken": true}), R::ServiceAccountToken),
            (projected(json!({"serviceAccountToken": {"path": "token"}})), R::ServiceAccountToken),
            (json!({"hostNetwork": true}), R::HostNamespaces),
            (json!({"hostPID": true}), R::HostNamespaces),
            (json!({"hostIPC": true}), R::HostNamespaces),
            (main(json!({"ports": [{"containerPort": 80, "hostPort": 80}]})), R::HostNamespaces),
            (json!({"volumes": [{"name": "v", "hostPath": {"path": "/"}}]}), R::HostPath),
            (main(json!({"securityContext": {"privileged": true}})), R::Privileged),
            (main(json!({"securityContext": {"capabilities": {"add": ["SYS_ADMIN"]}}})), R::Privileged),
            (json!({"initContainers": [{"name": "i", "securityContext": {"privileged": true}}]}), R::Privileged),
            (json!({"priorityClassName": "system-node-critical"}), R::PriorityClass),
        ] {
            let template = json!({"spec": spec});
            let refused = refusal(&template, &BTreeSet::new()).unwrap_or_else(|| panic!("{template} is refused"));
            assert!(refused.contains(&format!("`{}`", right.name())), "{refused}");
            assert_eq!(refusal(&template, &BTreeSet::from([right])), None, "{template}");
            let written = serde_json::to_value(right).expect("a text");
            assert_eq!(written, right.name());
        }
        let plain = json!({
            "automountServiceAccountToken": false,
            "hostNetwork": false,
            "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}, {"name": "p", "projected": {"sources": [{"configMap": {"name": "m"}}]}}],
            "containers": [{"name": "appliance", "securityContext": {"privileged": false, "runAsUser": 5}}, {"name": "sidecar", "restartPolicy": "Always"}],
        });
        assert_eq!(refusal(&json!({"spec": plain}), &BTreeSet::new()), None);
        for field in ["restartPolicy", "restartPolicyRules"] {
            let template = json!({"spec": main(json!({field: "Always"}))});
            assert!(refusal(&template, &BTreeSet::new()).expect("refused").starts_with(field));
        }
    }
}
