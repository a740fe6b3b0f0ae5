//! Documents of `rugctl apply`: from YAML to the API's messages.
//!
//! All files are read and validated before anything is sent. Each problem names the file, the line and the field.
//! Errors that only the server can find (ports in use, limits of its version) name fields of the API, and
//! [`Document::locate`] maps those back to fields and lines of the file.
//!
//! [`view`] is the opposite direction.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use common::ApplianceId;
use common::appliance::{MAX_REPLICAS, Name, SpecTime};
use common::cluster::ClusterRef;
use common::driver::DriverName;
use common::kind::{Algorithm, KindName, Network, ProxyProtocol, StopSignal};
use common::network_port::{MacAddress, PortAddress};
use proto::admin::v1;
use proto::convert::{algorithm_to_wire, proxy_protocol_to_wire, struct_from_json};
use serde_saphyr::{budget, options};

use crate::error::Failure;

use self::yaml::{Field, Fields, ReadReport, Value, YamlNode, YamlProblem};

mod syntax;
#[cfg(test)]
mod tests;
pub(crate) mod view;
mod yaml;

/// Largest file that is read, in bytes. A fleet of 10,000 ordinary documents takes less than half of it.
pub(crate) const MAX_FILE: usize = 4 * 1024 * 1024;
/// Most problems that are printed; the others are counted.
const MAX_PROBLEMS: usize = 20;

/// One appliance as described by a file.
#[derive(Debug)]
pub(crate) struct Document {
    /// The message to send. Name, tenant and kind are set.
    pub(crate) appliance: v1::Appliance,
    /// The cluster that it is for, if it says so.
    cluster: Option<ClusterRef>,
    /// The tenant of documents that name none, unless it is the default one.
    home: Option<Name>,
    source: String,
    line: u64,
    lines: BTreeMap<String, u64>,
}

impl Document {
    /// `loadbalancer/web`, with the tenant in front unless it is the one that is meant where none is given.
    pub(crate) fn label(&self) -> String {
        view::label(&self.appliance, self.home.as_ref())
    }

    /// Position in the file of a field that the server rejected, as `file:line: field`.
    pub(crate) fn locate(&self, api_field: &str) -> String {
        let field = document_field(api_field);
        // An omitted field has no line of its own; use that of the nearest field around it.
        let mut around = field.as_str();
        let line = loop {
            if let Some(line) = self.lines.get(around) {
                break *line;
            }
            match around.rfind(['.', '[']) {
                Some(end) => around = &around[..end],
                None => break self.line,
            }
        };
        format!("{}:{line}: {field}", self.source)
    }

    /// The driver it asks for.
    pub(crate) fn driver(&self) -> DriverName {
        // An empty name stands for the driver that is used when none is given.
        self.appliance.driver.parse().unwrap_or_else(|_| DriverName::process())
    }

    /// Ports that its instances claim on their host if its driver is host-bound, with the API's name of the field they
    /// come from.
    pub(crate) fn claimed_ports(&self) -> Vec<(u32, String)> {
        let spec = self.appliance.spec.clone().unwrap_or_default();
        let first = match spec.kind {
            Some(v1::spec::Kind::Loadbalancer(lb)) => {
                let field = |i| format!("spec.loadbalancer.listeners[{i}].port");
                lb.listeners.iter().enumerate().map(|(i, l)| (l.port, field(i))).collect()
            }
            Some(v1::spec::Kind::Custom(custom)) => {
                custom.port.map(|port| (port, "spec.custom.port".to_owned())).into_iter().collect()
            }
            None => Vec::new(),
        };
        let replicas = u32::try_from(spec.replicas.unwrap_or(1)).unwrap_or(1);
        first.into_iter().flat_map(|(port, field)| (port..port + replicas).map(move |p| (p, field.clone()))).collect()
    }

    /// Where the document starts, as `file:line`.
    pub(crate) fn place(&self) -> String {
        format!("{}:{}", self.source, self.line)
    }
}

/// The field path of a document for a field path of the API.
fn document_field(api_field: &str) -> String {
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

/// Reads and checks documents from files; `-` is standard input. Those that name no tenant are of `home`.
///
/// # Errors Exit code 2 with one line for each problem. Nothing is returned unless all documents are valid.
pub(crate) fn read(paths: &[String], home: Option<&Name>) -> Result<Vec<Document>, Failure> {
    let mut all = Vec::new();
    let mut problems = Vec::new();
    for path in &expanded(paths)? {
        let text = match path.as_str() {
            "-" => load("standard input", std::io::stdin().lock())?,
            _ => load(path, File::open(path).map_err(|e| Failure::usage(format!("{path}: {e}")))?)?,
        };
        let source = if path == "-" { "standard input" } else { path };
        match parse(source, &text, home) {
            Ok(documents) => all.extend(documents),
            Err(found) => problems.extend(found),
        }
    }
    find_duplicates(&all, &mut problems);
    if problems.is_empty() {
        return Ok(all);
    }
    Err(Failure::usage(shortened(problems).join("\n")))
}

/// The files of folders in place of these, in the order of their names. Folders in them are left out.
fn expanded(paths: &[String]) -> Result<Vec<String>, Failure> {
    let mut files = Vec::new();
    for path in paths {
        if path == "-" || !Path::new(path).is_dir() {
            files.push(path.clone());
            continue;
        }
        let failed = |e: std::io::Error| Failure::usage(format!("{path}: {e}"));
        let entries = std::fs::read_dir(path).map_err(failed)?;
        let entries = entries.map(|entry| entry.map(|entry| entry.path())).collect::<Result<Vec<_>, _>>();
        let is_document = |path: &PathBuf| {
            let named = path.extension().is_some_and(|e| ["yaml", "yml", "json"].iter().any(|known| e == *known));
            named && path.is_file()
        };
        let mut found: Vec<_> = entries.map_err(failed)?.into_iter().filter(is_document).collect();
        if found.is_empty() {
            return Err(Failure::usage(format!("{path}: holds no .yaml, .yml or .json file")));
        }
        found.sort();
        for file in found {
            let text =
                file.to_str().ok_or_else(|| Failure::usage(format!("{path}: holds a name that is not UTF-8")))?;
            files.push(text.to_owned());
        }
    }
    Ok(files)
}

fn load(source: &str, reader: impl Read) -> Result<String, Failure> {
    let mut bytes = Vec::new();
    let limit = MAX_FILE as u64 + 1;
    reader.take(limit).read_to_end(&mut bytes).map_err(|e| Failure::usage(format!("{source}: {e}")))?;
    if bytes.len() > MAX_FILE {
        return Err(Failure::usage(format!("{source}: is larger than {} MiB, the most that is read", MAX_FILE >> 20)));
    }
    String::from_utf8(bytes).map_err(|e| {
        let line = 1 + e.as_bytes()[..e.utf8_error().valid_up_to()].iter().filter(|b| **b == b'\n').count();
        Failure::usage(format!("{source}:{line}: is not UTF-8 text"))
    })
}

/// Every document of one file, or every problem in it as `file:line: field: message`.
pub(crate) fn parse(source: &str, text: &str, home: Option<&Name>) -> Result<Vec<Document>, Vec<String>> {
    // The size of the file bounds the work; the parser's default limits on counts would refuse large fleets.
    let options = options! {
        // `command: y` and `env: {DEBUG: on}` are texts, as in YAML 1.2.
        strict_booleans: true,
        // Documents are nested some ten levels deep, and reading them takes stack for each.
        budget: budget! { max_depth: 64, max_documents: 65_536, max_nodes: 4_000_000, max_events: 8_000_000 },
    };
    let nodes: Vec<YamlNode> = serde_saphyr::from_multiple_with_options(text, options).map_err(|error| {
        let reason = syntax::describe(&error);
        let place = error.location().map_or_else(|| source.to_owned(), |at| format!("{source}:{}", at.line()));
        vec![format!("{place}: {reason}")]
    })?;
    let mut documents = Vec::new();
    let mut problems = Vec::new();
    let mut keep = |node: YamlNode, path: &str| {
        let mut report = ReadReport::default();
        let line = node.line;
        let appliance = appliance(Field { path: path.to_owned(), node }, home, &mut report);
        match (appliance, report.problems.is_empty()) {
            (Some(appliance), true) => {
                let (appliance, cluster) = appliance;
                let (source, home) = (source.to_owned(), home.cloned());
                documents.push(Document { appliance, cluster, home, source, line, lines: report.lines });
            }
            _ => problems.extend(report.problems),
        }
    };
    for node in nodes {
        match node.value {
            // What `list -o json` and `list -o yaml` print.
            Value::List(entries) => entries.into_iter().for_each(|entry| keep(entry, "")),
            _ => keep(node, ""),
        }
    }
    if documents.is_empty() && problems.is_empty() {
        return Err(vec![format!("{source}: contains no document")]);
    }
    if problems.is_empty() {
        return Ok(documents);
    }
    Err(problems.iter().map(|problem| describe(source, problem)).collect())
}

fn describe(source: &str, YamlProblem { line, field, message }: &YamlProblem) -> String {
    let separator = if field.is_empty() { "" } else { ": " };
    format!("{source}:{line}: {field}{separator}{message}")
}

fn find_duplicates(documents: &[Document], problems: &mut Vec<String>) {
    let mut names = BTreeMap::new();
    let mut ids = BTreeMap::new();
    for document in documents {
        let v1::Appliance { tenant, name, id, .. } = &document.appliance;
        if let Some(other) = names.insert((tenant, name), document) {
            let at = document.locate("name");
            problems.push(format!("{at}: `{name}` of tenant `{tenant}` is already the document at {}", other.place()));
        }
        if !id.is_empty()
            && let Some(other) = ids.insert(id, document)
        {
            problems.push(format!("{}: is already the id of the document at {}", document.locate("id"), other.place()));
        }
    }
}

/// Refuses documents that are for another cluster than this one.
///
/// # Errors Exit code 2 with one line for each.
pub(crate) fn check_cluster(
    documents: &[Document],
    this: &impl std::fmt::Display,
    is_this: impl Fn(&ClusterRef) -> bool,
) -> Result<(), Failure> {
    let others = documents.iter().filter_map(|document| {
        let meant = document.cluster.as_ref().filter(|meant| !is_this(meant))?;
        Some(format!("{}: is for cluster {meant}, and this is {this}", document.locate("cluster")))
    });
    let others = shortened(others.collect());
    if others.is_empty() { Ok(()) } else { Err(Failure::usage(others.join("\n") + "\nnothing was changed")) }
}

/// The first problems, and how many more there are.
fn shortened(mut problems: Vec<String>) -> Vec<String> {
    let more = problems.len().saturating_sub(MAX_PROBLEMS);
    problems.truncate(MAX_PROBLEMS);
    if more > 0 {
        problems.push(format!("and {more} more"));
    }
    problems
}

fn appliance(
    field: Field,
    home: Option<&Name>,
    report: &mut ReadReport,
) -> Option<(v1::Appliance, Option<ClusterRef>)> {
    let mut fields = field.fields(report)?;
    let name = fields.require("name", report).and_then(|f| checked(&f, report, Name::new));
    let tenant = match fields.take("tenant", report) {
        Some(field) => checked(&field, report, Name::new)?.to_string(),
        None => home.map_or(view::DEFAULT_TENANT, Name::as_str).to_owned(),
    };
    let cluster = fields.take("cluster", report).and_then(|f| checked(&f, report, str::parse::<ClusterRef>));
    let id = fields.take("id", report).and_then(|f| checked(&f, report, str::parse::<ApplianceId>));
    let kind = fields.require("kind", report).and_then(|f| Some((f.text(report)?, f.line())));
    let driver = fields.take("driver", report).and_then(|f| checked(&f, report, str::parse::<DriverName>));
    let placement_key = fields.take("placement_key", report).and_then(|f| f.text(report));
    let labels = fields.take("labels", report).map(|f| f.texts(report)).unwrap_or_default();
    let replicas = fields.take("replicas", report).and_then(|f| f.whole(1..=u32::from(MAX_REPLICAS), report));
    let [probe_interval, probe_timeout, boot_timeout, settle_time] = SpecTime::ALL
        .map(|time| fields.take(time.name(), report).and_then(|f| f.duration(report)).and_then(wire_duration));
    let image = fields.take("image", report).and_then(|f| f.text(report));
    let ports = fields.take("ports", report).map(|f| f.list(report)).unwrap_or_default();
    let ports = ports.into_iter().filter_map(|field| network_port(field, report)).collect();
    let pod = fields.take("pod", report).and_then(|field| field.object(report)).as_ref().and_then(struct_from_json);
    let spec = match kind {
        Some((kind, line)) => spec(&kind, line, &mut fields, report),
        None => {
            fields.take("spec", report);
            None
        }
    };
    // Printed by `get`, ignored here.
    fields.take("managed_by", report);
    fields.take("status", report);
    fields.finish(report);
    let appliance = v1::Appliance {
        id: id.map(|id| id.to_string()).unwrap_or_default(),
        name: name?.to_string(),
        tenant,
        driver: driver.map(|d| d.to_string()).unwrap_or_default(),
        placement_key: placement_key.unwrap_or_default(),
        labels: labels.into_iter().collect(),
        spec: Some(v1::Spec {
            replicas: replicas.and_then(|r| i32::try_from(r).ok()),
            probe_interval,
            probe_timeout,
            boot_timeout,
            settle_time,
            image: image.unwrap_or_default(),
            ports,
            pod,
            kind: Some(spec?),
        }),
        ..v1::Appliance::default()
    };
    Some((appliance, cluster))
}

/// Text that is validated by a parser of the domain.
fn checked<T, E: std::fmt::Display>(
    field: &Field,
    report: &mut ReadReport,
    parse: impl FnOnce(&str) -> Result<T, E>,
) -> Option<T> {
    let text = field.text(report)?;
    parse(&text).map_err(|e| report.problem(field.line(), &field.path, e.to_string())).ok()
}

fn spec(kind: &str, line: u64, fields: &mut Fields, report: &mut ReadReport) -> Option<v1::spec::Kind> {
    match kind {
        "loadbalancer" => {
            let fields = fields.require("spec", report)?.fields(report)?;
            Some(v1::spec::Kind::Loadbalancer(load_balancer(fields, report)))
        }
        "custom" => {
            let fields = fields.require("spec", report)?.fields(report)?;
            custom(fields, report).map(v1::spec::Kind::Custom)
        }
        _ => {
            fields.take("spec", report);
            let kind: String = kind.chars().take(40).collect();
            let known = KindName::ALL.iter().map(|kind| kind.as_str()).collect::<Vec<_>>().join(", ");
            report.problem(line, "kind", format!("unknown kind `{kind}`; known are {known}"));
            None
        }
    }
}

fn network_port(field: Field, report: &mut ReadReport) -> Option<v1::NetworkPort> {
    let mut fields = field.fields(report)?;
    let name = fields.require("name", report).and_then(|f| checked(&f, report, Name::new));
    let network = fields.require("network", report).and_then(|f| f.text(report));
    let addresses = fields.take("addresses", report).map(|f| f.list(report)).unwrap_or_default();
    let addresses = addresses.iter().filter_map(|field| checked(field, report, str::parse::<PortAddress>));
    let addresses = addresses.map(|address| address.to_string()).collect();
    let mac = fields.take("mac", report).and_then(|f| checked(&f, report, str::parse::<MacAddress>));
    fields.finish(report);
    let mac = mac.map(|mac| mac.to_string()).unwrap_or_default();
    Some(v1::NetworkPort { name: name?.to_string(), network: network?, addresses, mac })
}

fn load_balancer(mut fields: Fields, report: &mut ReadReport) -> v1::LoadBalancer {
    let listeners = fields.require("listeners", report).map(|f| f.list(report)).unwrap_or_default();
    let listeners = listeners.into_iter().filter_map(|field| listener(field, report)).collect();
    fields.finish(report);
    v1::LoadBalancer { listeners }
}

fn listener(field: Field, report: &mut ReadReport) -> Option<v1::Listener> {
    let mut fields = field.fields(report)?;
    let name = fields.take("name", report).and_then(|f| f.text(report));
    let address = address(&mut fields, report);
    let port = port(fields.require("port", report), report);
    let members = fields.take("members", report).map(|f| f.list(report)).unwrap_or_default();
    let members = members.into_iter().filter_map(|field| member(field, report)).collect();
    let health_check = fields.take("health_check", report).and_then(|field| health_check(field, report));
    let limits = fields.take("limits", report).and_then(|field| limits(field, report));
    let algorithms = Algorithm::ALL.map(|algorithm| (algorithm.name(), algorithm));
    let algorithm = fields.take("algorithm", report).and_then(|f| one_of(&f, &algorithms, report));
    let versions = ProxyProtocol::ALL.map(|version| (version.name(), version));
    let proxy_protocol = fields.take("proxy_protocol", report).and_then(|f| one_of(&f, &versions, report));
    let trusted = fields.take("trust_proxy_from", report).map(|f| f.list(report)).unwrap_or_default();
    let trusted = trusted.iter().filter_map(|field| checked(field, report, str::parse::<Network>));
    let trust_proxy_from = trusted.map(|network| network.to_string()).collect();
    fields.finish(report);
    Some(v1::Listener {
        name: name.unwrap_or_default(),
        address,
        port: port?,
        members,
        health_check,
        limits,
        algorithm: algorithm_to_wire(algorithm.unwrap_or_default()),
        proxy_protocol: proxy_protocol_to_wire(proxy_protocol),
        trust_proxy_from,
    })
}

/// One of several words.
fn one_of<T: Copy>(field: &Field, known: &[(&str, T)], report: &mut ReadReport) -> Option<T> {
    checked(field, report, |text| {
        let found = known.iter().find(|(name, _)| *name == text);
        let names = || known.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
        found.map(|(_, value)| *value).ok_or_else(|| format!("must be one of {}", names()))
    })
}

fn limits(field: Field, report: &mut ReadReport) -> Option<v1::ConnectionLimits> {
    let mut fields = field.fields(report)?;
    let most = fields.take("max_connections", report).and_then(|f| f.whole(1..=u32::MAX, report));
    let idle = fields.take("idle_timeout", report).and_then(|f| f.duration(report)).and_then(wire_duration);
    let half = fields.take("half_close_timeout", report).and_then(|f| f.duration(report)).and_then(wire_duration);
    let drain = fields.take("drain_timeout", report).and_then(|f| f.duration(report)).and_then(wire_duration);
    fields.finish(report);
    Some(v1::ConnectionLimits {
        max_connections: most.unwrap_or_default(),
        idle_timeout: idle,
        half_close_timeout: half,
        drain_timeout: drain,
    })
}

fn member(field: Field, report: &mut ReadReport) -> Option<v1::Member> {
    let mut fields = field.fields(report)?;
    let address = address(&mut fields, report);
    let port = port(fields.require("port", report), report);
    fields.finish(report);
    Some(v1::Member { address, port: port? })
}

fn address(fields: &mut Fields, report: &mut ReadReport) -> String {
    let field = fields.take("address", report);
    let address = field.and_then(|f| {
        checked(&f, report, |text| {
            text.parse::<std::net::IpAddr>().map_err(|_| format!("`{text}` is not an IP address"))
        })
    });
    address.map(|a| a.to_string()).unwrap_or_default()
}

fn port(field: Option<Field>, report: &mut ReadReport) -> Option<u32> {
    field?.whole(1..=u32::from(u16::MAX), report)
}

fn health_check(field: Field, report: &mut ReadReport) -> Option<v1::HealthCheck> {
    let mut fields = field.fields(report)?;
    let interval = fields.take("interval", report).and_then(|f| f.duration(report)).and_then(wire_duration);
    let timeout = fields.take("timeout", report).and_then(|f| f.duration(report)).and_then(wire_duration);
    let fall = fields.take("fall", report).and_then(|f| f.whole(1..=100, report)).unwrap_or_default();
    let rise = fields.take("rise", report).and_then(|f| f.whole(1..=100, report)).unwrap_or_default();
    fields.finish(report);
    Some(v1::HealthCheck { interval, timeout, fall, rise })
}

fn custom(mut fields: Fields, report: &mut ReadReport) -> Option<v1::Custom> {
    let command = fields.require("command", report).and_then(|f| f.text(report));
    let args = fields.take("args", report).map(|f| f.list(report)).unwrap_or_default();
    let args = args.iter().filter_map(|field| field.text(report)).collect();
    let env = fields.take("env", report).map(|f| f.texts(report)).unwrap_or_default();
    let port = port(fields.take("port", report), report);
    let probe = fields.take("probe", report).and_then(|field| probe(field, report));
    let env_from = fields.take("env_from", report).map(|f| f.list(report)).unwrap_or_default();
    let env_from = env_from.iter().filter_map(|field| field.text(report)).collect();
    let [user, group, working_dir] = ["user", "group", "working_dir"]
        .map(|name| fields.take(name, report).and_then(|f| f.text(report)).unwrap_or_default());
    let limits = fields.take("limits", report).and_then(|field| process_limits(field, report));
    let nice = fields.take("nice", report).and_then(|f| f.whole(-20..=19, report));
    let no_new_privileges = fields.take("no_new_privileges", report).and_then(|f| f.flag(report));
    let stop_signal = fields.take("stop_signal", report).and_then(|f| checked(&f, report, str::parse::<StopSignal>));
    let stop_timeout = fields.take("stop_timeout", report).and_then(|f| f.duration(report));
    fields.finish(report);
    Some(v1::Custom {
        command: command?,
        args,
        env: env.into_iter().collect(),
        port,
        probe,
        env_from,
        user,
        group,
        working_dir,
        limits,
        nice,
        no_new_privileges: no_new_privileges.unwrap_or_default(),
        stop_signal: stop_signal.map(String::from).unwrap_or_default(),
        stop_timeout: stop_timeout.and_then(wire_duration),
    })
}

fn process_limits(field: Field, report: &mut ReadReport) -> Option<v1::ProcessLimits> {
    let mut fields = field.fields(report)?;
    let most = u64::from(u32::MAX);
    let [nofile, nproc, core] = [("nofile", most), ("nproc", most), ("core", i64::MAX.cast_unsigned())]
        .map(|(name, most)| fields.take(name, report).and_then(|f| f.whole(0..=most, report)));
    let memory = fields.take("memory", report).and_then(|f| checked(&f, report, view::parse_bytes));
    let cpu = fields.take("cpu", report).and_then(|f| checked(&f, report, view::parse_percent));
    fields.finish(report);
    Some(v1::ProcessLimits { nofile, nproc, core, memory, cpu_percent: cpu })
}

/// `tcp`, `http`, `process`, `none`, or one of these and `exec` with their fields, such as `{http: {path: /}}`.
fn probe(field: Field, report: &mut ReadReport) -> Option<v1::Probe> {
    let wire = |probe| Some(v1::Probe { probe: Some(probe) });
    let tcp = || wire(v1::probe::Probe::Tcp(v1::TcpProbe {}));
    let process = || wire(v1::probe::Probe::Process(v1::ProcessProbe {}));
    let none = || wire(v1::probe::Probe::None(v1::NoProbe {}));
    let http = |path: Option<String>| {
        wire(v1::probe::Probe::Http(v1::HttpProbe { path: path.unwrap_or_else(|| "/".to_owned()) }))
    };
    let (line, path) = (field.line(), field.path.clone());
    if let Value::Text(text) = &field.node.value {
        return match text.as_str() {
            "tcp" => tcp(),
            "http" => http(None),
            "process" => process(),
            "none" => none(),
            _ => {
                report.problem(
                    line,
                    &path,
                    format!("unknown probe `{text}`; known are tcp, http, process, none, and exec with a command"),
                );
                None
            }
        };
    }
    let mut fields = field.fields(report)?;
    let tcp_fields = fields.take("tcp", report);
    let http_fields = fields.take("http", report);
    let process_fields = fields.take("process", report);
    let none_fields = fields.take("none", report);
    let exec_fields = fields.take("exec", report);
    fields.finish(report);
    let plain = |field: Field, report: &mut ReadReport| field.fields(report).map(|fields| fields.finish(report));
    match (tcp_fields, http_fields, process_fields, none_fields, exec_fields) {
        (Some(field), None, None, None, None) => plain(field, report).and_then(|()| tcp()),
        (None, None, Some(field), None, None) => plain(field, report).and_then(|()| process()),
        (None, None, None, Some(field), None) => plain(field, report).and_then(|()| none()),
        (None, Some(field), None, None, None) => {
            let mut fields = field.fields(report)?;
            let path = fields.take("path", report).and_then(|f| f.text(report));
            fields.finish(report);
            http(path)
        }
        (None, None, None, None, Some(field)) => {
            let mut fields = field.fields(report)?;
            let command = fields.require("command", report).map(|f| f.list(report)).unwrap_or_default();
            let command = command.iter().filter_map(|field| field.text(report)).collect();
            fields.finish(report);
            wire(v1::probe::Probe::Exec(v1::ExecProbe { command }))
        }
        _ => {
            report.problem(line, &path, "must be tcp, http with a path, process, none, or exec with a command");
            None
        }
    }
}

fn wire_duration(duration: Duration) -> Option<prost_types::Duration> {
    prost_types::Duration::try_from(duration).ok()
}
