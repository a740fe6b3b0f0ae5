//! `rugctl openstack`: what of a cloud is reachable, permitted and configured. Asks the cloud and no coordinator.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use openstack::{CheckRequest, Client, ClientConfig, Finding};
use serde::Serialize;

use crate::error::Failure;
use crate::output::{TextTable, Tone, Ui};
use crate::text::one_line;

/// Commands.
#[derive(Debug, Subcommand)]
pub(crate) enum OpenStackCommand {
    /// Check that a cloud can be reached, that its user may do what the driver `openstack` does, and that what settings name is there
    Check(CheckArgs),
}

#[derive(Debug, Args)]
pub(crate) struct CheckArgs {
    /// Cloud of `clouds.yaml`; without it what OS_CLOUD or OS_AUTH_URL and the other variables say
    #[arg(long, value_name = "NAME")]
    cloud: Option<String>,
    /// The file `clouds.yaml`
    #[arg(long, value_name = "FILE")]
    clouds_file: Option<PathBuf>,
    /// The management network, by name or id
    #[arg(long, value_name = "NETWORK")]
    management_network: Option<String>,
    /// An image, by name or id; may be given more than once
    #[arg(long = "image", value_name = "IMAGE")]
    images: Vec<String>,
    /// A flavor, by name or id; may be given more than once
    #[arg(long = "flavor", value_name = "FLAVOR")]
    flavors: Vec<String>,
    /// Make a port without port security on the management network, and delete it
    #[arg(long, requires = "management_network")]
    try_port: bool,
}

/// A finding as JSON and YAML.
#[derive(Debug, Serialize)]
struct FindingView<'a> {
    what: &'a str,
    ok: bool,
    result: &'a str,
}

/// Runs a command.
pub(crate) async fn run(ui: &Ui, command: &OpenStackCommand) -> Result<(), Failure> {
    let OpenStackCommand::Check(args) = command;
    let config = ClientConfig {
        cloud: args.cloud.clone().unwrap_or_default(),
        clouds_file: args.clouds_file.clone().unwrap_or_default(),
        ..ClientConfig::default()
    };
    let client = Client::new(&config).map_err(|error| Failure::usage(error.to_string()))?;
    let request = CheckRequest {
        management_network: args.management_network.clone(),
        images: args.images.clone(),
        flavors: args.flavors.clone(),
        try_port: args.try_port,
    };
    let found = openstack::check(&client, &request).await;
    show(ui, &found)?;
    let wrong = found.iter().filter(|finding| finding.result.is_err()).count();
    if wrong == 0 { Ok(()) } else { Err(Failure::failed(format!("{wrong} of {} checks failed", found.len()))) }
}

fn text(finding: &Finding) -> &str {
    match &finding.result {
        Ok(text) | Err(text) => text,
    }
}

fn show(ui: &Ui, found: &[Finding]) -> Result<(), Failure> {
    let views: Vec<_> = found
        .iter()
        .map(|finding| FindingView { what: &finding.what, ok: finding.result.is_ok(), result: text(finding) })
        .collect();
    if ui.format.is_structured() {
        return ui.print_value(&views);
    }
    let mut table = TextTable::new(&["CHECK", "RESULT", "DETAIL"]);
    for view in &views {
        let (word, tone) = if view.ok { ("ok", Tone::Good) } else { ("failed", Tone::Bad) };
        let plain = |text: &str| (one_line(text), Tone::Plain);
        table.row([plain(view.what), (word.to_owned(), tone), plain(view.result)]);
    }
    ui.print_table(&table)
}
