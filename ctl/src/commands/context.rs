//! `rugctl context`: named clusters, and which one is used.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use clap::Subcommand;
use common::appliance::Name;
use common::cluster::ClusterRef;
use runtime::socket;
use serde::Serialize;

use crate::client::local_servers;
use crate::commands::{CommandContext, TargetCluster};
use crate::complete;
use crate::contexts::{Contexts, LOCAL, NamedContext, TlsFiles};
use crate::error::Failure;
use crate::output::{TextTable, Tone, Ui};
use crate::text::one_line;

/// Commands.
#[derive(Debug, Subcommand)]
pub(crate) enum ContextCommand {
    /// List contexts; the one in use is marked
    List,
    /// Use a context where a command names neither a server nor a context
    Use {
        /// Name of the context; `local` is the cluster of the working directory
        #[arg(value_parser = Name::new, add = Contexts::completer())]
        name: Name,
    },
    /// Show a context, by default the one in use
    Show {
        /// Name of the context
        #[arg(value_parser = Name::new, add = Contexts::completer())]
        name: Option<Name>,
    },
    /// Give a name to the cluster that the other flags lead to, and pin its id
    Save {
        /// Name of the context
        #[arg(value_parser = Name::new)]
        name: Name,
        /// Tenant that is meant where none is given
        #[arg(short, long, value_parser = Name::new, add = complete::tenants())]
        tenant: Option<Name>,
    },
}

impl ContextCommand {
    /// Whether it asks a server.
    pub(crate) fn asks_server(&self) -> bool {
        matches!(self, Self::Save { .. })
    }
}

/// A context as JSON and YAML.
#[derive(Debug, Serialize)]
struct ContextView {
    name: String,
    in_use: bool,
    #[serde(flatten)]
    settings: BTreeMap<&'static str, String>,
}

impl ContextView {
    fn new(name: &str, in_use: bool, context: Option<&NamedContext>) -> Self {
        let settings = context.map(NamedContext::settings).unwrap_or_default().into_iter().collect();
        Self { name: name.to_owned(), in_use, settings }
    }
}

/// Runs the commands that ask no server. `folder` is the working directory.
pub(crate) fn run(ui: &Ui, contexts: &Contexts, command: &ContextCommand, folder: &Path) -> Result<(), Failure> {
    match command {
        ContextCommand::List => list(ui, contexts, folder),
        ContextCommand::Use { name } => {
            contexts.set_in_use(name)?;
            ui.print(&format!("{name} is in use"))
        }
        ContextCommand::Show { name } => show(ui, contexts, name.as_ref(), folder),
        ContextCommand::Save { .. } => Ok(()),
    }
}

/// The cluster of the working directory as a context.
fn local(folder: &Path) -> Option<NamedContext> {
    let found = local_servers(folder).ok()??;
    Some(NamedContext { server: found.addresses.join(","), cluster: found.cluster, ..NamedContext::default() })
}

fn list(ui: &Ui, contexts: &Contexts, folder: &Path) -> Result<(), Failure> {
    let in_use = contexts.in_use()?.map_or_else(|| LOCAL.to_owned(), |name| name.to_string());
    let named = contexts.all()?.into_iter().map(|(name, context)| (name.to_string(), Some(context)));
    let all: Vec<_> = std::iter::once((LOCAL.to_owned(), local(folder))).chain(named).collect();
    if ui.format.is_structured() {
        let view = |(name, context): &(String, Option<NamedContext>)| {
            ContextView::new(name, *name == in_use, context.as_ref())
        };
        return ui.print_value(&all.iter().map(view).collect::<Vec<_>>());
    }
    let mut table = TextTable::new(&["IN USE", "NAME", "SERVER", "CLUSTER", "TENANT"]);
    for (name, context) in &all {
        let (used, tone) = if *name == in_use { ("yes", Tone::Good) } else { ("no", Tone::Plain) };
        let NamedContext { server, cluster, tenant, .. } = context.clone().unwrap_or_default();
        let text = |value: Option<String>| (value.unwrap_or_default(), Tone::Plain);
        table.row([
            (used.to_owned(), tone),
            (name.clone(), Tone::Plain),
            (server, Tone::Plain),
            text(cluster.map(|cluster| cluster.to_string())),
            text(tenant.map(|tenant| tenant.to_string())),
        ]);
    }
    ui.print_table(&table)
}

fn show(ui: &Ui, contexts: &Contexts, name: Option<&Name>, folder: &Path) -> Result<(), Failure> {
    let in_use = contexts.in_use()?;
    let is_local = |name: &Name| name.as_str() == LOCAL;
    let shown = name.or(in_use.as_ref()).filter(|name| !is_local(name));
    let (label, context) = match shown {
        Some(name) => (name.to_string(), Some(contexts.get(name)?)),
        None => (LOCAL.to_owned(), local(folder)),
    };
    let used = in_use.map_or(label == LOCAL, |name| name.as_str() == label);
    if ui.format.is_structured() {
        return ui.print_value(&ContextView::new(&label, used, context.as_ref()));
    }
    let mut text = String::new();
    let mut line = |name: &str, value: &str| {
        let _ = writeln!(text, "{name:<16}{}", one_line(value));
    };
    line("name", &label);
    line("in use", if used { "yes" } else { "no" });
    match context {
        Some(context) => context.settings().iter().for_each(|(name, value)| line(name, value)),
        None => line("server", "none: no cluster runs in this folder or above it"),
    }
    ui.print(&text)
}

/// Saves the way by which a server was reached, `reached`, once it has said which cluster it is of.
pub(crate) async fn save(
    context: &CommandContext,
    contexts: &Contexts,
    command: &ContextCommand,
    reached: NamedContext,
) -> Result<(), Failure> {
    let ContextCommand::Save { name, tenant } = command else { return Ok(()) };
    let (cluster, _) = context.identified().await?;
    let id = match &cluster {
        TargetCluster::Known(identity) => Some(ClusterRef::Id(identity.id)),
        TargetCluster::Unnamed(_) => None,
    };
    let tenant = tenant.clone().or(reached.tenant.clone());
    let tls = reached.tls.clone().absolute()?;
    let token_file = reached.token_file.as_deref().map(absolute).transpose()?;
    let server = reached.server.split(',').map(absolute_address).collect::<Result<Vec<_>, _>>()?.join(",");
    contexts.add(name, &NamedContext { server, cluster: id, tenant, tls, token_file })?;
    context.ui.print(&format!("{name} is {cluster}; `rugctl context use {name}` has it used"))
}

impl TlsFiles {
    /// The same files, wherever a command is called.
    fn absolute(self) -> Result<Self, Failure> {
        let file = |path: Option<PathBuf>| path.as_deref().map(absolute).transpose();
        Ok(Self { ca: file(self.ca)?, cert: file(self.cert)?, key: file(self.key)?, crl: file(self.crl)?, ..self })
    }
}

/// The same server, wherever a command is called.
fn absolute_address(address: &str) -> Result<String, Failure> {
    match socket::path_of(address) {
        Some(path) => Ok(format!("{}{}", socket::SCHEME, absolute(path)?.display())),
        None => Ok(address.to_owned()),
    }
}

fn absolute(path: &Path) -> Result<PathBuf, Failure> {
    std::path::absolute(path).map_err(|e| Failure::failed(format!("{}: {e}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_saved_is_the_same_wherever_it_is_used() {
        let here = std::env::current_dir().expect("a folder");
        let socket = format!("unix:{}", here.join(".rug/s").display());
        for address in ["unix:.rug/s", "unix:./.rug/s"] {
            assert_eq!(absolute_address(address).expect("a path"), socket);
        }
        assert_eq!(absolute_address(&socket).expect("a path"), socket);
        assert_eq!(absolute_address("https://h:1").expect("an address"), "https://h:1");
        let files = TlsFiles { ca: Some("ca.pem".into()), ..TlsFiles::default() };
        assert_eq!(files.absolute().expect("a path").ca, Some(here.join("ca.pem")));
    }
}
