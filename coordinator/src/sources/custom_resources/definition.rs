//! The definition of the custom resource, made from these structs into a file of the chart. Only tests need them: what is read
//! is read by the one reader of documents, and a test holds the two together.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use common::kind::KindName;
use proto::document::tree::{Field, ReadReport};
use proto::document::{DocumentDefaults, appliance};
use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde_json::{Value, json};

use super::resource::{GROUP, KIND, PLURAL, VERSION, tree};
use super::status::ResourceStatus;

/// The file, from the folder of the repository.
const FILE: &str = "helm/rug/crds/appliances.rug.dev.yaml";

const HEADER: &str = "\
# The custom resource `Appliance`, see docs/kubernetes-resources.md.
# Made from coordinator/src/sources/custom_resources/definition.rs: a test fails while it is out of date, and renews it when it
# is run with RUG_WRITE_REFERENCE=1.
";

/// An appliance, in the form of a document of `rugctl apply`.
#[derive(JsonSchema)]
#[allow(dead_code, reason = "only its schema is used")]
#[schemars(extend("x-kubernetes-validations" = [
    {
        "rule": "has(self.tenant) == has(oldSelf.tenant) && (!has(self.tenant) || self.tenant == oldSelf.tenant)",
        "message": "tenant cannot change; delete the resource and create another one",
    },
    {
        "rule": "(has(self.driver) ? self.driver : 'process') == (has(oldSelf.driver) ? oldSelf.driver : 'process')",
        "message": "driver cannot change; delete the resource and create another one",
    },
    {
        "rule": "!has(self.placement_key) || (has(oldSelf.placement_key) && self.placement_key == oldSelf.placement_key)",
        "message": "placement_key cannot change; delete the resource and create another one",
    },
    {
        "rule": "has(self.cluster) == has(oldSelf.cluster) && (!has(self.cluster) || self.cluster == oldSelf.cluster)",
        "message": "cluster cannot change; delete the resource and create another one",
    },
    {"rule": "self.kind != 'loadbalancer' || has(self.spec.listeners)", "message": "kind loadbalancer needs spec.listeners"},
    {"rule": "self.kind != 'custom' || has(self.spec.command)", "message": "kind custom needs spec.command"},
]))]
struct ApplianceSpec {
    /// Name of the appliance within its tenant; that of this resource when left away.
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z0-9]([a-z0-9._-]*[a-z0-9])?$"))]
    name: Option<String>,
    /// Tenant of the appliance; the namespace when left away. Another one only where kubernetes.any_tenant is set. Cannot change.
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z0-9]([a-z0-9._-]*[a-z0-9])?$"))]
    tenant: Option<String>,
    /// Id or name of the cluster of Rug that this is for. Others leave the resource alone. Cannot change.
    #[schemars(length(min = 1, max = 63))]
    cluster: Option<String>,
    /// Id of the appliance; chosen by Rug when left away.
    #[schemars(regex(pattern = r"^[0-9a-fA-F]{8}-?([0-9a-fA-F]{4}-?){3}[0-9a-fA-F]{12}$"))]
    id: Option<String>,
    /// What the appliance does.
    #[schemars(extend("enum" = KindName::ALL.iter().map(|kind| kind.as_str()).collect::<Vec<_>>()))]
    kind: String,
    /// Where instances run; `process` when left away. Cannot change.
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z]([a-z0-9.-]*[a-z0-9])?$"))]
    driver: Option<String>,
    /// What the ring hashes; the id when left away. Cannot change.
    #[schemars(length(max = 256))]
    placement_key: Option<String>,
    /// Labels of the appliance in Rug, for filters. Those of this resource are not taken.
    #[schemars(extend("maxProperties" = 64))]
    labels: Option<BTreeMap<String, ShortText>>,
    /// Instances.
    #[schemars(range(min = 1, max = 16), extend("default" = 1))]
    replicas: Option<i32>,
    /// Time between two probes, such as 5s.
    #[schemars(length(max = 64), regex(pattern = r"^(0|([0-9]+ *[a-zA-Z]+ *)+)$"))]
    probe_interval: Option<String>,
    /// Time for one probe.
    #[schemars(length(max = 64), regex(pattern = r"^(0|([0-9]+ *[a-zA-Z]+ *)+)$"))]
    probe_timeout: Option<String>,
    /// Time from the start of an instance to its first answered probe.
    #[schemars(length(max = 64), regex(pattern = r"^(0|([0-9]+ *[a-zA-Z]+ *)+)$"))]
    boot_timeout: Option<String>,
    /// Time from the start of an instance until an answered probe counts.
    #[schemars(length(max = 64), regex(pattern = r"^(0|([0-9]+ *[a-zA-Z]+ *)+)$"))]
    settle_time: Option<String>,
    /// Image to boot, where the driver has images.
    #[schemars(length(max = 4096))]
    image: Option<String>,
    /// Network ports of every instance, where the driver plugs ports.
    #[schemars(length(max = 64))]
    ports: Option<Vec<NetworkPort>>,
    /// Template of pods, where the driver makes pods: metadata and spec, as in a PodTemplateSpec. Checked by Rug.
    pod: Option<AnyMapping>,
    /// What the kind needs: `listeners` of a loadbalancer, `networks` and what goes with them of a router, the rest of a custom appliance.
    spec: KindFields,
}

/// A short text.
#[derive(JsonSchema)]
#[allow(dead_code, reason = "only its schema is used")]
struct ShortText(#[schemars(length(max = 256))] String);

/// A text.
#[derive(JsonSchema)]
#[allow(dead_code, reason = "only its schema is used")]
struct Text(#[schemars(length(max = 4096))] String);

/// One network port.
#[derive(JsonSchema)]
#[allow(dead_code, reason = "only its schema is used")]
struct NetworkPort {
    /// Name within the appliance.
    #[schemars(length(min = 1, max = 63))]
    name: String,
    /// Network that it is in.
    #[schemars(length(min = 1, max = 4096))]
    network: String,
    /// Addresses, such as 10.0.0.3/24.
    #[schemars(length(max = 256))]
    addresses: Option<Vec<ShortText>>,
    /// Hardware address.
    #[schemars(regex(pattern = r"^([0-9a-fA-F]{2}[:-]){5}[0-9a-fA-F]{2}$"))]
    mac: Option<String>,
}

/// Fields of all kinds.
#[derive(JsonSchema)]
#[allow(dead_code, reason = "only its schema is used")]
struct KindFields {
    /// Of a loadbalancer: where it listens, and where it forwards to.
    #[schemars(length(max = 256))]
    listeners: Option<Vec<Listener>>,
    /// Of a custom appliance: what is run, a path or a name in the worker's PATH; empty where the image says it.
    #[schemars(length(max = 4096))]
    command: Option<String>,
    /// Arguments; {port}, {ordinal}, {name} and {id} are replaced.
    #[schemars(length(max = 256))]
    args: Option<Vec<Text>>,
    /// Environment variables. Secrets do not belong here: whoever may read this resource reads them.
    #[schemars(extend("maxProperties" = 256))]
    env: Option<BTreeMap<String, Text>>,
    /// TCP port of the first instance.
    #[schemars(range(min = 1, max = 65535))]
    port: Option<i32>,
    /// How instances are probed: tcp, http, process, none, or one of these and exec with their fields, such as {http: {path: /}}.
    probe: Option<Anything>,
    /// Files on the worker with further variables.
    #[schemars(length(max = 256))]
    env_from: Option<Vec<Text>>,
    /// User that instances run as.
    #[schemars(length(max = 4096))]
    user: Option<String>,
    /// Group that instances run as.
    #[schemars(length(max = 4096))]
    group: Option<String>,
    /// Folder that instances start in.
    #[schemars(length(max = 4096))]
    working_dir: Option<String>,
    /// What instances may use.
    limits: Option<ProcessLimits>,
    /// Nice value.
    #[schemars(range(min = -20, max = 19))]
    nice: Option<i32>,
    /// No program that instances run may gain rights.
    no_new_privileges: Option<bool>,
    /// Signal that asks instances to end, such as TERM.
    #[schemars(length(max = 32))]
    stop_signal: Option<String>,
    /// How long instances may take to end.
    #[schemars(length(max = 64), regex(pattern = r"^(0|([0-9]+ *[a-zA-Z]+ *)+)$"))]
    stop_timeout: Option<String>,
    /// Of a router: what it calls itself.
    #[schemars(length(max = 253))]
    hostname: Option<String>,
    /// Of a router: the networks that it connects. Checked by Rug.
    #[schemars(length(max = 64))]
    networks: Option<Vec<AnyMapping>>,
    /// Of a router: static routes, each with destination and next_hop.
    #[schemars(length(max = 256))]
    routes: Option<Vec<AnyMapping>>,
    /// Of a router: addresses of the external network that stand for others, each with floating and fixed.
    #[schemars(length(max = 256))]
    floating_ips: Option<Vec<AnyMapping>>,
    /// Of a router: whether connections of internal networks leave with its own address.
    snat: Option<bool>,
    /// Of a router: destinations whose traffic is counted, each with name and networks.
    #[schemars(length(max = 16))]
    labels: Option<Vec<AnyMapping>>,
}

/// A text, or a mapping.
#[derive(JsonSchema)]
#[allow(dead_code, reason = "only its schema is used")]
#[schemars(transparent, extend("x-kubernetes-preserve-unknown-fields" = true))]
struct Anything(Value);

/// A mapping that is looked at elsewhere.
#[derive(JsonSchema)]
#[allow(dead_code, reason = "only its schema is used")]
#[schemars(transparent, extend("type" = "object", "x-kubernetes-preserve-unknown-fields" = true))]
struct AnyMapping(Value);

/// Where a load balancer listens.
#[derive(JsonSchema)]
#[allow(dead_code, reason = "only its schema is used")]
struct Listener {
    /// Name of the listener.
    #[schemars(length(max = 4096))]
    name: Option<String>,
    /// Address; 127.0.0.1 when left away.
    #[schemars(length(max = 64))]
    address: Option<String>,
    /// TCP port.
    #[schemars(range(min = 1, max = 65535))]
    port: i32,
    /// Where connections are forwarded to.
    #[schemars(length(max = 256))]
    members: Option<Vec<Member>>,
    /// How members are checked.
    health_check: Option<HealthCheck>,
    /// Limits of connections.
    limits: Option<ConnectionLimits>,
    /// How a member is chosen.
    #[schemars(extend("enum" = common::kind::Algorithm::ALL.map(common::kind::Algorithm::name)))]
    algorithm: Option<String>,
    /// What connections to members begin with.
    #[schemars(extend("enum" = common::kind::ProxyProtocol::ALL.map(common::kind::ProxyProtocol::name)))]
    proxy_protocol: Option<String>,
    /// Networks that may say where connections come from.
    #[schemars(length(max = 256))]
    trust_proxy_from: Option<Vec<ShortText>>,
}

/// Where connections are forwarded to.
#[derive(JsonSchema)]
#[allow(dead_code, reason = "only its schema is used")]
struct Member {
    /// Address; 127.0.0.1 when left away.
    #[schemars(length(max = 64))]
    address: Option<String>,
    /// TCP port.
    #[schemars(range(min = 1, max = 65535))]
    port: i32,
}

/// How members are checked.
#[derive(JsonSchema)]
#[allow(dead_code, reason = "only its schema is used")]
struct HealthCheck {
    /// Time between two checks.
    #[schemars(length(max = 64), regex(pattern = r"^(0|([0-9]+ *[a-zA-Z]+ *)+)$"))]
    interval: Option<String>,
    /// Time for one check.
    #[schemars(length(max = 64), regex(pattern = r"^(0|([0-9]+ *[a-zA-Z]+ *)+)$"))]
    timeout: Option<String>,
    /// Failed checks in a row that take a member out.
    #[schemars(range(min = 1, max = 100))]
    fall: Option<i32>,
    /// Checks in a row that bring it back.
    #[schemars(range(min = 1, max = 100))]
    rise: Option<i32>,
}

/// Limits of connections.
#[derive(JsonSchema)]
#[allow(dead_code, reason = "only its schema is used")]
struct ConnectionLimits {
    /// Connections at once.
    #[schemars(range(min = 1, max = 4294967295_i64))]
    max_connections: Option<i64>,
    /// A connection without a byte is closed after it.
    #[schemars(length(max = 64), regex(pattern = r"^(0|([0-9]+ *[a-zA-Z]+ *)+)$"))]
    idle_timeout: Option<String>,
    /// A connection of which one side is closed is closed after it.
    #[schemars(length(max = 64), regex(pattern = r"^(0|([0-9]+ *[a-zA-Z]+ *)+)$"))]
    half_close_timeout: Option<String>,
    /// What connections have left when the load balancer ends.
    #[schemars(length(max = 64), regex(pattern = r"^(0|([0-9]+ *[a-zA-Z]+ *)+)$"))]
    drain_timeout: Option<String>,
}

/// What the process of an instance may use.
#[derive(JsonSchema)]
#[allow(dead_code, reason = "only its schema is used")]
struct ProcessLimits {
    /// Open files.
    #[schemars(range(min = 0, max = 4294967295_i64))]
    nofile: Option<i64>,
    /// Processes of its user.
    #[schemars(range(min = 0, max = 4294967295_i64))]
    nproc: Option<i64>,
    /// Bytes of a core dump.
    #[schemars(range(min = 0))]
    core: Option<i64>,
    /// Memory, such as 512MiB.
    #[schemars(length(max = 32))]
    memory: Option<String>,
    /// Share of one CPU, such as 150%.
    #[schemars(length(max = 32))]
    cpu: Option<String>,
}

/// The schema of a type, in the form that the API server takes.
fn schema<T: JsonSchema>() -> Value {
    let generator = SchemaSettings::openapi3().with(|settings| settings.inline_subschemas = true).into_generator();
    let mut schema = generator.into_root_schema_for::<T>().to_value();
    structural(&mut schema);
    schema
}

/// Leaves away what the API server does not take in a schema, or what says nothing.
fn structural(schema: &mut Value) {
    let Value::Object(fields) = schema else { return };
    for name in ["$schema", "title", "nullable"] {
        fields.remove(name);
    }
    // Those of Rust, which would be written into every object.
    if !fields.get("default").is_some_and(Value::is_number) {
        fields.remove("default");
    }
    let odd = |format: &Value| !matches!(format.as_str(), Some("int32" | "int64" | "date-time"));
    if fields.get("format").is_some_and(odd) {
        fields.remove("format");
    }
    if let Some(Value::Array(values)) = fields.get_mut("enum") {
        values.retain(|value| !value.is_null());
    }
    for (name, inner) in fields.iter_mut() {
        match (name.as_str(), inner) {
            ("properties", Value::Object(properties)) => properties.values_mut().for_each(structural),
            ("items" | "additionalProperties", inner) => structural(inner),
            _ => {}
        }
    }
}

/// The definition as the API server takes it.
fn definition() -> Value {
    let column = |name: &str, kind: &str, path: &str, about: &str| json!({"name": name, "type": kind, "jsonPath": path, "description": about});
    let condition = |name: &str| format!(".status.conditions[?(@.type==\"{name}\")].status");
    let mut wide =
        column("Reason", "string", ".status.conditions[?(@.type==\"Ready\")].reason", "Why it is ready, or is not.");
    wide["priority"] = json!(1);
    json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": format!("{PLURAL}.{GROUP}")},
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": KIND, "listKind": format!("{KIND}List"), "plural": PLURAL, "singular": "appliance",
                "shortNames": ["rapp"], "categories": ["rug"],
            },
            "versions": [{
                "name": VERSION,
                "served": true,
                "storage": true,
                "subresources": {
                    "status": {},
                    "scale": {"specReplicasPath": ".spec.replicas", "statusReplicasPath": ".status.replicas"},
                },
                "additionalPrinterColumns": [
                    column("Tenant", "string", ".spec.tenant", "Tenant, where it is not the namespace."),
                    column("Kind", "string", ".spec.kind", "What the appliance does."),
                    column("Phase", "string", ".status.phase", "How the appliance is."),
                    column("Ready", "string", &condition("Ready"), "Whether it is as asked for, and serves."),
                    column("Worker", "string", ".status.worker", "Worker that has the appliance."),
                    column("Age", "date", ".metadata.creationTimestamp", "Age of this resource."),
                    wide,
                ],
                "schema": {"openAPIV3Schema": {
                    "description": "An appliance that Rug keeps alive.",
                    "type": "object",
                    "required": ["spec"],
                    "properties": {"spec": schema::<ApplianceSpec>(), "status": schema::<ResourceStatus>()},
                    "x-kubernetes-validations": [{
                        "rule": "self.metadata.name.size() <= 63",
                        "message": "the name has at most 63 characters, as those of appliances",
                    }],
                }},
            }],
        },
    })
}

#[test]
fn the_definition_in_the_chart_is_made_from_the_structs() {
    let yaml = serde_saphyr::to_string(&definition()).expect("plain data");
    let text = format!("{HEADER}{yaml}");
    let file = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/..")).join(FILE);
    if std::env::var(runtime::reference::WRITE).is_ok_and(|value| value == "1") {
        std::fs::create_dir_all(file.parent().expect("it has a folder")).expect("the folder of the chart");
        std::fs::write(&file, &text).expect("the definition");
    }
    let found = std::fs::read_to_string(&file).unwrap_or_default();
    let problem = format!("{FILE} is out of date; run this test with {}=1 to renew it", runtime::reference::WRITE);
    assert!(found == text, "{problem}");
    let read: Value = serde_saphyr::from_str(&found).expect("it is YAML");
    assert_eq!(read, definition(), "and says the same");
}

/// Every node says its type, but for those that take anything, and nothing refers to something else.
#[test]
fn the_schema_is_structural() {
    fn look(at: &str, schema: &Value) {
        let anything = schema["x-kubernetes-preserve-unknown-fields"] == true;
        assert!(anything || schema["type"].is_string(), "{at} has no type: {schema}");
        for banned in ["$ref", "anyOf", "oneOf", "allOf", "$defs", "definitions"] {
            assert!(schema.get(banned).is_none(), "{at} has {banned}");
        }
        assert!(schema["description"].is_string() || at.ends_with("[]") || at.ends_with("{}"), "{at} says nothing");
        for (name, inner) in schema["properties"].as_object().into_iter().flatten() {
            look(&format!("{at}.{name}"), inner);
        }
        for (field, sign) in [("items", "[]"), ("additionalProperties", "{}")] {
            if let Some(inner) = schema.get(field) {
                look(&format!("{at}{sign}"), inner);
            }
        }
    }
    look("spec", &schema::<ApplianceSpec>());
    look("status", &schema::<ResourceStatus>());
}

/// The fields that the reader of documents knows in the mapping in which `x_unknown` stands.
fn known(document: &Value) -> BTreeSet<String> {
    let mut report = ReadReport::default();
    let name = "a".parse().expect("a name");
    let defaults = DocumentDefaults { name: Some(&name), tenant: "t" };
    appliance(Field { path: "spec".into(), node: tree(document) }, defaults, &mut report);
    let problem = report.problems.iter().find(|p| p.field.ends_with("x_unknown")).expect("it is unknown");
    let (_, list) = problem.message.split_once("known are ").expect("it lists those that are known");
    list.split(", ").map(str::to_owned).collect()
}

#[test]
fn the_schema_has_every_field_that_is_read_and_no_other() {
    let schema = schema::<ApplianceSpec>();
    let of = |pointer: &str| -> BTreeSet<String> {
        let at = schema.pointer(pointer).unwrap_or_else(|| panic!("no {pointer}"));
        at["properties"].as_object().expect("a mapping").keys().cloned().collect()
    };
    let custom = |more: Value| json!({"kind": "custom", "spec": more});
    let listener = |more: Value| json!({"kind": "loadbalancer", "spec": {"listeners": [more]}});
    let mut top = known(&json!({"kind": "custom", "spec": {"command": "a"}, "x_unknown": 1}));
    // They are printed, and ignored; a resource has a status of its own.
    assert!(top.remove("managed_by") && top.remove("status"));
    assert_eq!(of(""), top);
    let mut kinds = known(&custom(json!({"x_unknown": 1})));
    kinds.extend(known(&json!({"kind": "loadbalancer", "spec": {"x_unknown": 1}})));
    kinds.extend(known(&json!({"kind": "router", "spec": {"x_unknown": 1}})));
    assert_eq!(of("/properties/spec"), kinds);
    let port = json!({"kind": "custom", "spec": {"command": "a"}, "ports": [{"x_unknown": 1}]});
    let at = "/properties/spec/properties";
    for (pointer, document) in [
        ("/properties/ports/items".to_owned(), port),
        (format!("{at}/limits"), custom(json!({"limits": {"x_unknown": 1}}))),
        (format!("{at}/listeners/items"), listener(json!({"x_unknown": 1}))),
        (format!("{at}/listeners/items/properties/members/items"), listener(json!({"members": [{"x_unknown": 1}]}))),
        (format!("{at}/listeners/items/properties/health_check"), listener(json!({"health_check": {"x_unknown": 1}}))),
        (format!("{at}/listeners/items/properties/limits"), listener(json!({"limits": {"x_unknown": 1}}))),
    ] {
        assert_eq!(of(&pointer), known(&document), "{pointer}");
    }
}
