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

use common::appliance::Name;
use common::cluster::ClusterRef;
use common::driver::DriverName;
use proto::admin::v1;
use proto::document::tree::{Field, Node, Problem, ReadReport, Value};
use proto::document::{DocumentDefaults, appliance, document_field};
use serde_saphyr::{budget, options};

use crate::error::Failure;

use self::yaml::YamlNode;

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
            Some(v1::spec::Kind::Router(_)) | None => Vec::new(),
        };
        let replicas = u32::try_from(spec.replicas.unwrap_or(1)).unwrap_or(1);
        first.into_iter().flat_map(|(port, field)| (port..port + replicas).map(move |p| (p, field.clone()))).collect()
    }

    /// Where the document starts, as `file:line`.
    pub(crate) fn place(&self) -> String {
        format!("{}:{}", self.source, self.line)
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
    let defaults = DocumentDefaults { name: None, tenant: home.map_or(view::DEFAULT_TENANT, Name::as_str) };
    let mut keep = |node: Node, path: &str| {
        let mut report = ReadReport::default();
        let line = node.line;
        let appliance = appliance(Field { path: path.to_owned(), node }, defaults, &mut report);
        match (appliance, report.problems.is_empty()) {
            (Some(appliance), true) => {
                let (appliance, cluster) = appliance;
                let (source, home) = (source.to_owned(), home.cloned());
                documents.push(Document { appliance, cluster, home, source, line, lines: report.lines });
            }
            _ => problems.extend(report.problems),
        }
    };
    for YamlNode(node) in nodes {
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

fn describe(source: &str, Problem { line, field, message }: &Problem) -> String {
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
