//! `rugctl delete`: remove appliances and wait until they are gone.

use std::collections::BTreeMap;
use std::time::Duration;

use clap::Args;
use futures::{StreamExt, TryStreamExt, stream};
use proto::admin::v1;

use crate::client::{AdminClient, by_id, reference, request_id};
use crate::commands::{CommandContext, Wait, confirm};
use crate::document::{self, view};
use crate::error::{Exit, Failure};
use crate::output::{Ui, count};
use crate::wait::{Goal, Tracker, settle};

/// Calls in flight, as in `apply`.
const IN_FLIGHT: usize = 32;

/// Arguments.
#[derive(Args, Debug)]
pub(crate) struct DeleteArgs {
    /// Names or ids
    #[arg(value_name = "NAME", required_unless_present_any = ["all", "files"], conflicts_with = "all")]
    names: Vec<String>,
    /// The appliances of a YAML file; - reads standard input
    #[arg(short, long = "file", value_name = "FILE", conflicts_with = "all")]
    files: Vec<String>,
    /// Every appliance, of the given tenant or of all tenants
    #[arg(long)]
    all: bool,
    /// Do not ask for confirmation
    #[arg(short, long)]
    yes: bool,
    /// Tenant of the names [default: default]
    #[arg(short, long)]
    tenant: Option<String>,
    /// Also delete appliances that a source manages, which may create them again
    #[arg(long)]
    force: bool,
    /// Ignore names that do not exist
    #[arg(long)]
    ignore_missing: bool,
    #[command(flatten)]
    wait: Wait,
}

/// Runs the command.
pub(crate) async fn run(context: &CommandContext, args: &DeleteArgs) -> Result<(), Failure> {
    let client = &context.client;
    let appliances = if args.all {
        let tenant = args.tenant.clone().unwrap_or_default();
        let all = client.list(v1::ApplianceFilter { tenant, ..v1::ApplianceFilter::default() }).await?;
        if !all.is_empty() && !args.yes {
            confirm(&format!("delete {}?", count(all.len() as u64, "appliance"))).await?;
        }
        all
    } else {
        named(context, args).await?
    };
    let deleted = delete(client, appliances, args.force).await?;
    if !args.wait.no_wait {
        settle(client, &context.ui, gone(&deleted), context.wait()).await?;
    }
    let done = if args.wait.no_wait { "deleting" } else { "deleted" };
    if context.ui.format.is_structured() {
        return context.ui.print_value(&deleted.iter().map(view::Appliance::full).collect::<Vec<_>>());
    }
    let lines: Vec<_> = deleted.iter().map(|a| format!("{} {done}", view::label(a))).collect();
    if lines.is_empty() { Ok(()) } else { context.ui.print(&lines.join("\n")) }
}

/// Looks up every name before anything is deleted: when one does not exist, nothing is deleted.
async fn named(context: &CommandContext, args: &DeleteArgs) -> Result<Vec<v1::Appliance>, Failure> {
    let tenant = args.tenant.as_deref().unwrap_or("default");
    let mut references = Vec::new();
    for name in &args.names {
        references.push((name.clone(), reference(tenant, name)?));
    }
    if !args.files.is_empty() {
        let files = args.files.clone();
        let documents = tokio::task::spawn_blocking(move || document::read(&files))
            .await
            .map_err(|e| Failure::failed(format!("read documents: {e}")))??;
        for document in documents {
            let v1::Appliance { tenant, name, .. } = &document.appliance;
            references.push((document.label(), reference(tenant, name)?));
        }
    }
    let mut found = BTreeMap::new();
    for (name, reference) in references {
        match context.client.get(reference).await {
            Ok(appliance) => {
                found.insert(appliance.id.clone(), appliance);
            }
            Err(failure) if failure.exit == Exit::NotFound && args.ignore_missing => {}
            Err(failure) if failure.exit == Exit::NotFound => return Err(failure.during(&name)),
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
) -> Result<Vec<v1::Appliance>, Failure> {
    let calls = appliances.into_iter().map(|appliance| async move {
        let request = v1::DeleteApplianceRequest {
            appliance: Some(by_id(&appliance.id)),
            allow_missing: true,
            request_id: request_id(),
            force,
            ..v1::DeleteApplianceRequest::default()
        };
        match client.delete(request).await {
            Ok(_) => Ok(appliance),
            Err(failure) => Err(failure.during(&view::label(&appliance))),
        }
    });
    stream::iter(calls).buffered(IN_FLIGHT).try_collect().await
}

fn gone(appliances: &[v1::Appliance]) -> Tracker {
    Tracker::new(appliances.iter().map(|a| (a, Goal::Gone)))
}

/// Deletes every appliance of the server and waits until all are gone. Returns their number.
pub(crate) async fn delete_everything(client: &AdminClient, ui: &Ui, limit: Duration) -> Result<u64, Failure> {
    let deleted = delete(client, client.list(v1::ApplianceFilter::default()).await?, true).await?;
    settle(client, ui, gone(&deleted), limit).await?;
    Ok(deleted.len() as u64)
}
