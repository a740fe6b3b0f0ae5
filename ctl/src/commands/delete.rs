//! `rugctl delete`: remove appliances and wait until they are gone.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use clap::Args;
use common::appliance::Name;
use futures::{StreamExt, TryStreamExt, stream};
use proto::admin::v1;

use crate::client::{AdminClient, by_id, request_id};
use crate::commands::filter::{LabelArgs, LabelConditions};
use crate::commands::{CommandContext, Extent, TargetCluster, Wait, confirm};
use crate::complete;
use crate::document::{self, view};
use crate::error::{Exit, Failure};
use crate::names::ApplianceName;
use crate::output::{Ui, count};
use crate::wait::{Goal, Tracker, settle};

/// Calls in flight, as in `apply`.
const IN_FLIGHT: usize = 32;

/// Arguments.
#[derive(Args, Debug)]
pub(crate) struct DeleteArgs {
    /// Names or ids
    #[arg(value_name = "NAME", required_unless_present_any = ["all", "files", "labels"], conflicts_with_all = ["all", "labels"], add = complete::appliances())]
    names: Vec<String>,
    /// The appliances of a YAML file; - reads standard input
    #[arg(short, long = "file", value_name = "FILE", conflicts_with_all = ["all", "labels"])]
    files: Vec<String>,
    /// Every appliance, of the given tenant or of all tenants
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    labels: LabelArgs,
    /// Do not ask for confirmation
    #[arg(short, long)]
    yes: bool,
    /// Tenant of the names [default: that of the context, else default]; with --all and --label only its appliances
    #[arg(short, long, value_parser = Name::new, add = complete::tenants())]
    tenant: Option<Name>,
    /// With --all or --label: of all tenants, whatever the context says
    #[arg(short = 'A', long, conflicts_with_all = ["tenant", "names", "files"])]
    all_tenants: bool,
    /// Also delete appliances that a source manages, which may create them again
    #[arg(long)]
    force: bool,
    /// Give instances no time to end, also where a deletion waits for that
    #[arg(long)]
    now: bool,
    /// Ignore names that do not exist
    #[arg(long)]
    ignore_missing: bool,
    #[command(flatten)]
    wait: Wait,
}

/// Runs the command.
pub(crate) async fn run(context: &CommandContext, args: &DeleteArgs) -> Result<(), Failure> {
    let (cluster, context) = &context.identified().await?;
    let client = &context.client;
    let (appliances, extent) = if args.all || !args.labels.is_empty() {
        let home = context.ui.tenant.as_ref().filter(|_| !args.all_tenants);
        let tenant = args.tenant.as_ref().or(home);
        let tenant = tenant.map(ToString::to_string).unwrap_or_default();
        let LabelConditions { labels, selector } = args.labels.conditions()?;
        let filter = v1::ApplianceFilter { tenant, labels, selector, ..v1::ApplianceFilter::default() };
        let mut found = client.list(filter).await?;
        args.labels.retain(&mut found);
        (found, Extent::Found)
    } else {
        (named(context, cluster, args).await?, Extent::Named)
    };
    if appliances.is_empty() {
        context.ui.note(&format!("no appliance to delete in {cluster}"));
    } else {
        confirm(&format!("delete {} in {cluster}?", described(&context.ui, &appliances)), extent, args.yes).await?;
    }
    let deleted = delete(client, appliances, args.force, args.now).await?;
    if !args.wait.no_wait {
        settle(client, &context.ui, gone(&context.ui, &deleted), context.wait()).await?;
    }
    let done = if args.wait.no_wait { "deleting" } else { "deleted" };
    if context.ui.format.is_structured() {
        return context
            .ui
            .print_value(&deleted.iter().map(|a| view::Appliance::full(a, view::Secrets::Hidden)).collect::<Vec<_>>());
    }
    let lines: Vec<_> = deleted.iter().map(|a| format!("{} {done}", context.ui.label(a))).collect();
    if lines.is_empty() { Ok(()) } else { context.ui.print(&lines.join("\n")) }
}

/// What these are, for a question.
pub(crate) fn described(ui: &Ui, appliances: &[v1::Appliance]) -> String {
    let tenants: BTreeSet<_> = appliances.iter().map(|a| a.tenant.as_str()).collect();
    let number = count(appliances.len() as u64, "appliance");
    match (appliances, tenants.len()) {
        ([one], _) => ui.label(one),
        (_, 1) => format!("{number} of tenant {}", tenants.first().copied().unwrap_or_default()),
        (_, several) => format!("{number} of {several} tenants"),
    }
}

/// Looks up every name before anything is deleted: when one does not exist, nothing is deleted.
async fn named(
    context: &CommandContext,
    cluster: &TargetCluster,
    args: &DeleteArgs,
) -> Result<Vec<v1::Appliance>, Failure> {
    let mut wanted = Vec::new();
    for name in &args.names {
        wanted.push((name.clone(), context.name(name, args.tenant.as_ref())?));
    }
    if !args.files.is_empty() {
        let (files, home) = (args.files.clone(), context.ui.tenant.clone());
        let documents = tokio::task::spawn_blocking(move || document::read(&files, home.as_ref()))
            .await
            .map_err(|e| Failure::failed(format!("read documents: {e}")))??;
        document::check_cluster(&documents, cluster, |meant| cluster.is(meant))?;
        for document in documents {
            wanted.push((document.label(), ApplianceName::of_document(&document.appliance)?));
        }
    }
    let mut found = BTreeMap::new();
    for (label, name) in wanted {
        match name.find(&context.client).await {
            Ok(appliance) => {
                found.insert(appliance.id.clone(), appliance);
            }
            Err(failure) if failure.exit == Exit::NotFound && args.ignore_missing => {}
            Err(failure) if failure.exit == Exit::NotFound => return Err(failure.during(&label)),
            Err(failure) => return Err(failure),
        }
    }
    Ok(found.into_values().collect())
}

/// Asks for the deletion of all of these.
async fn delete(
    client: &AdminClient,
    appliances: Vec<v1::Appliance>,
    force: bool,
    at_once: bool,
) -> Result<Vec<v1::Appliance>, Failure> {
    let calls = appliances.into_iter().map(|appliance| async move {
        let request = v1::DeleteApplianceRequest {
            appliance: Some(by_id(&appliance.id)),
            allow_missing: true,
            request_id: request_id(),
            force,
            at_once,
            ..v1::DeleteApplianceRequest::default()
        };
        match client.delete(request).await {
            Ok(_) => Ok(appliance),
            Err(failure) => Err(failure.during(&view::full_label(&appliance))),
        }
    });
    stream::iter(calls).buffered(IN_FLIGHT).try_collect().await
}

fn gone(ui: &Ui, appliances: &[v1::Appliance]) -> Tracker {
    Tracker::new(ui, appliances.iter().map(|a| (a, Goal::Gone)))
}

/// Deletes what `apply --prune` found, and waits for at most `limit` until it is gone; not at all without one.
pub(crate) async fn prune(
    context: &CommandContext,
    appliances: Vec<v1::Appliance>,
    force: bool,
    limit: Option<Duration>,
) -> Result<(), Failure> {
    if appliances.is_empty() {
        return Ok(());
    }
    let deleted = delete(&context.client, appliances, force, false).await?;
    if let Some(limit) = limit {
        settle(&context.client, &context.ui, gone(&context.ui, &deleted), limit).await?;
    }
    let done = if limit.is_some() { "deleted" } else { "deleting" };
    deleted.iter().for_each(|a| context.ui.note(&format!("{} {done}", context.ui.label(a))));
    Ok(())
}

/// Deletes all of these and waits until they are gone. Returns their number.
pub(crate) async fn delete_and_wait(
    client: &AdminClient,
    ui: &Ui,
    appliances: Vec<v1::Appliance>,
    limit: Duration,
) -> Result<u64, Failure> {
    let deleted = delete(client, appliances, true, false).await?;
    settle(client, ui, gone(ui, &deleted), limit).await?;
    Ok(deleted.len() as u64)
}
