//! The pod of an instance: what its kind asks for, the settings of the driver, and the template of its specification.

use std::collections::BTreeMap;

use common::kind::{Execution, LaunchRecipe, Listen, ProbeSpec, Program};
use common::pod::{MAIN_CONTAINER, PodTemplate};
use common::{ApplianceId, Token};
use serde_json::{Map, Value, json};
use worker_core::desired::Desired;

use super::config::Config;
use super::names::{CONFIGURED, GATE, PodKey, annotation, label, label_value, write_token};
use super::template;
use crate::drivers::{Error, Wanted};

/// Where a load balancer has its files.
const STATE: &str = "/run/rug/state";
/// Where its secret is mounted.
const SECRET: &str = "/run/rug/secret";
/// Key of the secret, and name of its file.
pub(super) const SECRET_KEY: &str = "secret";
/// Group of the files of a load balancer's volumes.
const GROUP: u32 = 65_532;

/// A pod that is to be made.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct PodPlan {
    pub(super) key: PodKey,
    pub(super) namespace: String,
    pub(super) pod: Value,
    /// It has a Secret of its own and a Service.
    pub(super) has_management: bool,
}

impl PodPlan {
    /// Plans the pod of an instance.
    ///
    /// # Errors
    /// [`Error::Refused`] with what a pod cannot have.
    pub(super) fn new(
        config: &Config,
        default_namespace: &str,
        appliance: ApplianceId,
        token: Token,
        wanted: &Wanted<'_>,
    ) -> Result<Self, Error> {
        let desired = wanted.desired;
        if !desired.spec.ports.is_empty() {
            return Err(Error::Refused("pods are in the network of their cluster, and `ports` must be empty".into()));
        }
        let template = desired.spec.pod.as_ref().map(PodTemplate::value);
        if let Some(violation) = template.as_ref().and_then(|kept| PodTemplate::new(kept).err()?.into_iter().next()) {
            return Err(Error::Refused(violation.to_string()));
        }
        if let Some(refusal) = template.as_ref().and_then(|asked| template::refusal(asked, &config.template_allow)) {
            return Err(Error::Refused(refusal));
        }
        // Each pod has an address of its own, and the port of the first instance there.
        let recipe = desired.spec.kind.launch(0).map_err(|overflow| Error::Refused(overflow.to_string()))?;
        let key = PodKey { appliance, ordinal: wanted.ordinal, attempt: wanted.attempt };
        let namespace = config.namespace_of(&desired.tenant, default_namespace)?;
        let port = port(&recipe, config);
        let fill = Fill { key, name: desired.name.as_str(), port };
        let has_management = recipe.program.has_management();
        if has_management
            && let Some((port, field)) =
                desired.spec.kind.ports().into_iter().find(|(port, _)| *port == config.management_port)
        {
            return Err(Error::Refused(format!(
                "{field}: port {port} is that of the REST contract, the worker's setting kubernetes.management_port"
            )));
        }
        let mut container = container(config, desired, &recipe, &fill)?;
        let mut annotations = config.annotations.clone();
        let mut note = |name: &str, text: String| annotations.insert(name.to_owned(), text);
        if let ProbeSpec::Exec { command } = desired.spec.kind.probe() {
            let command: Vec<_> = command.iter().map(|word| fill.text(word)).collect();
            note(annotation::EXEC_PROBE, exec_probe(&command));
            container["readinessProbe"] = readiness(desired, &command);
        }
        note(annotation::TOKEN, write_token(token));
        note(annotation::BOOT_DIGEST, wanted.boot_digest.to_owned());
        note(annotation::NAME, desired.name.to_string());
        if let Some(port) = port {
            note(annotation::PORT, port.to_string());
        }
        if has_management {
            note(annotation::MANAGEMENT_PORT, config.management_port.to_string());
        }
        let mut pod = json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": key.name(),
                "namespace": namespace,
                "labels": config.labels,
                "annotations": annotations,
            },
            "spec": {
                "restartPolicy": "Never",
                "schedulingGates": [{"name": GATE}],
                "automountServiceAccountToken": false,
                "enableServiceLinks": false,
                "terminationGracePeriodSeconds": grace(config, desired.spec.kind.stop().timeout),
                "securityContext": config.pod_security_context,
                "containers": [container],
            },
        });
        let spec = &mut pod["spec"];
        if !config.service_account_name.is_empty() {
            spec["serviceAccountName"] = config.service_account_name.clone().into();
        }
        if !config.image_pull_secrets.is_empty() {
            let secrets: Vec<_> = config.image_pull_secrets.iter().map(|name| json!({"name": name})).collect();
            spec["imagePullSecrets"] = secrets.into();
        }
        if !config.node_selector.is_empty() {
            spec["nodeSelector"] = json!(config.node_selector);
        }
        if !config.tolerations.is_empty() {
            spec["tolerations"] = config.tolerations.clone().into();
        }
        if has_management {
            // So that the file of the secret is readable whichever user the image runs as.
            if spec["securityContext"].get("fsGroup").is_none() {
                spec["securityContext"]["fsGroup"] = GROUP.into();
            }
            spec["volumes"] = json!([
                {"name": "rug-state", "emptyDir": {}},
                {"name": "rug-secret", "secret": {"secretName": key.name(), "defaultMode": 0o440}},
            ]);
        }
        if let Some(template) = &template {
            merge_template(&mut pod, template);
        }
        if has_management {
            // A Service sends no connection to one that would refuse it because it has no configuration yet.
            let gate = [json!({"conditionType": CONFIGURED})];
            add_missing(&mut pod["spec"]["readinessGates"], &gate, "conditionType");
        }
        // Last, so that nothing takes their place.
        let own = [
            (label::MANAGED_BY, "rug".to_owned()),
            (label::NAME, label_value(desired.name.as_str())),
            (label::APPLIANCE, appliance.to_string()),
            (label::TENANT, label_value(desired.tenant.as_str())),
            (label::KIND, desired.spec.kind.name().to_owned()),
            (label::ORDINAL, wanted.ordinal.to_string()),
            (label::ATTEMPT, wanted.attempt.to_string()),
            (label::ANCHORS, default_namespace.to_owned()),
        ];
        for (name, text) in own {
            pod["metadata"]["labels"][name] = text.into();
        }
        Ok(Self { key, namespace, pod, has_management })
    }
}

/// Grace period of a pod in whole seconds. Not 0, which would take the pod out of the API before it has ended.
pub(super) fn grace(config: &Config, asked: Option<std::time::Duration>) -> i64 {
    let grace = asked.unwrap_or(config.stop_grace);
    let seconds = grace.as_secs() + u64::from(grace.subsec_nanos() > 0);
    i64::try_from(seconds).unwrap_or(i64::MAX).max(1)
}

/// A command as the annotation has it that says what a pod's readiness depends on.
pub(super) fn exec_probe(command: &[String]) -> String {
    serde_json::to_string(command).unwrap_or_default()
}

/// The values of `{port}` and the like.
pub(super) struct Fill<'a> {
    pub(super) key: PodKey,
    pub(super) name: &'a str,
    pub(super) port: Option<u16>,
}

impl Fill<'_> {
    /// None of the values can hold a brace, so one replacement never makes another.
    pub(super) fn text(&self, text: &str) -> String {
        let text = self.port.map_or_else(|| text.to_owned(), |port| text.replace("{port}", &port.to_string()));
        text.replace("{ordinal}", &self.key.ordinal.to_string())
            .replace("{name}", self.name)
            .replace("{id}", &self.key.appliance.to_string())
    }

    /// The same for a text in which the API would replace `$(NAME)` as well: that stays as it is.
    fn literal(&self, text: &str) -> String {
        self.text(text).replace("$(", "$$(")
    }
}

/// Port of the service of an instance.
pub(super) fn port(recipe: &LaunchRecipe, config: &Config) -> Option<u16> {
    match &recipe.listen {
        Listen::Nowhere => None,
        Listen::AnyPort => Some(config.default_port),
        Listen::At(addresses) => addresses.first().map(std::net::SocketAddr::port),
    }
}

fn container(config: &Config, desired: &Desired, recipe: &LaunchRecipe, fill: &Fill<'_>) -> Result<Value, Error> {
    let default = if recipe.program.has_management() { &config.appliance_image } else { &config.image };
    let image = desired.spec.image.as_deref().unwrap_or(default);
    if image.is_empty() {
        let setting = if recipe.program.has_management() { "appliance_image" } else { "image" };
        let text = format!("spec.image is not given, and neither is the worker's setting kubernetes.{setting}");
        return Err(Error::Refused(text));
    }
    let mut env = variables(recipe, desired, fill);
    env.sort_by(|(one, _), (other, _)| one.cmp(other));
    let env: Vec<_> = env.into_iter().map(|(name, value)| json!({"name": name, "value": value})).collect();
    let mut container = json!({
        "name": MAIN_CONTAINER,
        "image": image,
        "env": env,
        "securityContext": config.security_context,
        "terminationMessagePolicy": "FallbackToLogsOnError",
    });
    if config.resources.as_object().is_some_and(|resources| !resources.is_empty()) {
        container["resources"] = config.resources.clone();
    }
    if let Some(port) = fill.port {
        container["ports"] = json!([{"containerPort": port, "protocol": "TCP"}]);
    }
    match &recipe.program {
        Program::Command(command) => {
            if !command.is_empty() {
                container["command"] = json!([fill.literal(command)]);
            }
            let args: Vec<_> = recipe.args.iter().map(|arg| fill.literal(arg)).collect();
            if !args.is_empty() {
                container["args"] = args.into();
            }
            execution(&mut container, &recipe.execution)?;
        }
        Program::Appliance => {
            let management = format!("0.0.0.0:{}", config.management_port);
            let secret = format!("{SECRET}/{SECRET_KEY}");
            container["command"] = json!(["rug-appliance"]);
            container["args"] = json!([
                "--contained",
                "--insecure",
                "--state-dir",
                STATE,
                "--management",
                management,
                "--secret-file",
                secret,
                "--name",
                fill.key.name(),
            ]);
            container["ports"] =
                json!([{"name": "management", "containerPort": config.management_port, "protocol": "TCP"}]);
            container["volumeMounts"] = json!([
                {"name": "rug-state", "mountPath": STATE},
                {"name": "rug-secret", "mountPath": SECRET, "readOnly": true},
            ]);
        }
    }
    Ok(container)
}

/// Variables of the container: those of the specification, and what tells it who it is.
fn variables(recipe: &LaunchRecipe, desired: &Desired, fill: &Fill<'_>) -> Vec<(String, String)> {
    let given = recipe.env.iter().map(|(name, value)| (name.clone(), fill.literal(value)));
    let own = [
        ("RUG_INSTANCE", Some(fill.key.name())),
        ("RUG_APPLIANCE", Some(fill.key.appliance.to_string())),
        ("RUG_NAME", Some(desired.name.to_string())),
        ("RUG_ORDINAL", Some(fill.key.ordinal.to_string())),
        ("RUG_PORT", fill.port.map(|port| port.to_string())),
    ];
    let mut all: BTreeMap<String, String> = given.collect();
    all.extend(own.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))));
    all.into_iter().collect()
}

/// What a process is given, as far as a container can be given it.
fn execution(container: &mut Value, execution: &Execution) -> Result<(), Error> {
    let Execution { env_from, user, group, working_dir, limits, nice, no_new_privileges } = execution;
    let cannot = [
        ("env_from", !env_from.is_empty(), "use envFrom of the container `appliance` in spec.pod"),
        ("limits.nofile", limits.nofile.is_some(), "nodes set it"),
        ("limits.nproc", limits.nproc.is_some(), "nodes set it"),
        ("limits.core", limits.core.is_some(), "nodes set it"),
        ("nice", nice.is_some(), "use resources of the container `appliance` in spec.pod"),
    ];
    if let Some((field, _, instead)) = cannot.into_iter().find(|(_, given, _)| *given) {
        return Err(Error::Refused(format!("spec.custom.{field} cannot be had by the driver kubernetes: {instead}")));
    }
    for (field, id, name) in [("runAsUser", user, "user"), ("runAsGroup", group, "group")] {
        let Some(id) = id else { continue };
        let id: i64 = id.parse().map_err(|_| {
            Error::Refused(format!("spec.custom.{name} has to be a number with the driver kubernetes, is {id:?}"))
        })?;
        container["securityContext"][field] = id.into();
    }
    if *no_new_privileges {
        container["securityContext"]["allowPrivilegeEscalation"] = false.into();
    }
    if let Some(folder) = working_dir {
        container["workingDir"] = folder.clone().into();
    }
    if let Some(memory) = limits.memory {
        container["resources"]["limits"]["memory"] = memory.to_string().into();
    }
    if let Some(percent) = limits.cpu_percent {
        container["resources"]["limits"]["cpu"] = format!("{}m", u64::from(percent) * 10).into();
    }
    Ok(())
}

/// A command as a probe of the kubelet, by which the pod is ready.
fn readiness(desired: &Desired, command: &[String]) -> Value {
    let seconds = |duration: std::time::Duration| duration.as_secs().max(1);
    let period = desired.spec.probe_interval.map_or(10, seconds);
    let limit = desired.spec.timing.probe_timeout.map_or(3, seconds);
    json!({"exec": {"command": command}, "periodSeconds": period, "timeoutSeconds": limit, "failureThreshold": 1})
}

/// Merges a template into a pod: objects field by field, containers by their names, other lists by adding what the template has.
fn merge_template(pod: &mut Value, template: &Value) {
    for part in ["labels", "annotations"] {
        merge(&mut pod["metadata"][part], &template["metadata"][part]);
    }
    let Some(spec) = template["spec"].as_object() else { return };
    for (field, value) in spec {
        let target = &mut pod["spec"][field.as_str()];
        match (field.as_str(), value.as_array()) {
            ("containers", Some(containers)) => containers.iter().for_each(|container| merge_named(target, container)),
            ("volumes" | "imagePullSecrets", Some(items)) => items.iter().for_each(|item| merge_named(target, item)),
            ("tolerations", Some(items)) => append(target, items),
            _ => merge(target, value),
        }
    }
}

/// Merges an item into the one of its name in a list, or adds it.
fn merge_named(list: &mut Value, item: &Value) {
    if !list.is_array() {
        *list = Value::Array(Vec::new());
    }
    let Some(items) = list.as_array_mut() else { return };
    let Some(known) = items.iter_mut().find(|known| known["name"] == item["name"]) else {
        items.push(item.clone());
        return;
    };
    let (Some(known), Some(fields)) = (known.as_object_mut(), item.as_object()) else { return };
    for (field, value) in fields {
        let target = known.entry(field.clone()).or_insert(Value::Null);
        match (field.as_str(), value.as_array()) {
            // What Rug sets wins: a variable of the specification, the port of the service.
            ("env", Some(new)) => add_missing(target, new, "name"),
            ("ports", Some(new)) => add_missing(target, new, "containerPort"),
            ("volumeMounts", Some(new)) => add_missing(target, new, "mountPath"),
            _ => merge(target, value),
        }
    }
}

/// Adds to a list what it has nothing with the same `key` as.
fn add_missing(list: &mut Value, new: &[Value], key: &str) {
    let known: Vec<Value> = list.as_array().into_iter().flatten().map(|item| item[key].clone()).collect();
    let missing: Vec<Value> = new.iter().filter(|item| !known.contains(&item[key])).cloned().collect();
    append(list, &missing);
}

fn append(list: &mut Value, items: &[Value]) {
    match list.as_array_mut() {
        Some(known) => known.extend_from_slice(items),
        None => *list = items.to_vec().into(),
    }
}

/// Merges one value into another: objects field by field, all else by taking its place.
fn merge(target: &mut Value, value: &Value) {
    match (target, value) {
        (_, Value::Null) => {}
        (Value::Object(known), Value::Object(fields)) => {
            for (field, value) in fields {
                merge(known.entry(field.clone()).or_insert(Value::Null), value);
            }
        }
        (target, Value::Object(fields)) => {
            let mut made = Value::Object(Map::new());
            fields.iter().for_each(|(field, value)| merge(&mut made[field.as_str()], value));
            *target = made;
        }
        (target, value) => *target = value.clone(),
    }
}

#[cfg(test)]
mod tests;
