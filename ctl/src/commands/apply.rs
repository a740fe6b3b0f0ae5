//! `rugctl apply`: create and change appliances so that they match the files.
//!
//! All documents are validated here, then by the server in a dry run, and only then sent: a document that is refused
//! means that nothing is changed. Calls run concurrently, so that the server commits several in one transaction.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use clap::Args;
use common::driver::{DriverCapabilities, DriverName, DriverOffers, HostBoundDrivers};
use futures::{StreamExt, TryStreamExt, stream};
use proto::admin::v1;

use crate::client::{AdminClient, by_id, request_id};
use crate::commands::filter::parse_label;
use crate::commands::{CommandContext, Extent, Wait, confirm, delete};
use crate::document::{self, Document, view};
use crate::error::{Exit, Failure};
use crate::output::{Tone, count, foreign_escaped, view::Applied};
use crate::wait::{Goal, Tracker, settle};

/// Calls in flight. Half of what saturates a server on two cores, so that one client leaves capacity for others.
const IN_FLIGHT: usize = 32;

/// Appliances that are to be deleted, and warnings of the server, that are shown one by one.
const MAX_SHOWN: usize = 20;

/// Arguments.
#[derive(Args, Debug)]
pub(crate) struct ApplyArgs {
    /// YAML file with one or more documents, or a folder of them; - reads standard input; may be repeated
    #[arg(short, long = "file", value_name = "FILE", required = true, value_hint = clap::ValueHint::AnyPath)]
    files: Vec<String>,
    /// Delete what has the labels of --label and is in none of the files, in the tenants that the files name
    #[arg(long, requires = "labels")]
    prune: bool,
    #[command(flatten)]
    labels: PruneLabels,
    /// Do not ask for confirmation
    #[arg(short, long)]
    yes: bool,
    /// Validate everything, here and on the server, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Also change appliances that a source manages, which may change them back
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    wait: Wait,
}

/// Labels by which `--prune` finds what is left of earlier files.
#[derive(Args, Debug)]
struct PruneLabels {
    /// Label of all these documents, as KEY=VALUE; may be repeated
    #[arg(short, long = "label", value_name = "KEY=VALUE", value_parser = parse_label, requires = "prune")]
    labels: Vec<(String, String)>,
}

/// Runs the command.
pub(crate) async fn run(context: &CommandContext, args: &ApplyArgs) -> Result<(), Failure> {
    let (files, home) = (args.files.clone(), context.ui.tenant.clone());
    let documents = tokio::task::spawn_blocking(move || document::read(&files, home.as_ref()))
        .await
        .map_err(|e| Failure::failed(format!("read documents: {e}")))??;
    let (cluster, context) = &context.identified().await?;
    document::check_cluster(&documents, cluster, |meant| cluster.is(meant))?;
    let (checked, refused) = send(&context.client, &documents, args.force, true).await;
    if !refused.is_empty() {
        return Err(combine_failures(refused, "nothing was changed"));
    }
    let host_bound = host_bound(&context.client, &documents).await?;
    let clashes = port_clashes(&documents, &checked, &host_bound);
    if !clashes.is_empty() {
        return Err(combine_failures(clashes, "nothing was changed"));
    }
    let surprising = surprising(context, &documents, &checked).await?;
    let pruned = if args.prune { left_over(&context.client, &documents, &checked, args).await? } else { Vec::new() };
    let mut warnings = surprising.clone();
    if !pruned.is_empty() {
        warnings.push(format!("{} in none of the files: to be deleted", delete::described(&context.ui, &pruned)));
        warnings.extend(pruned.iter().take(MAX_SHOWN).map(|a| format!("  {}", context.ui.label(a))));
    }
    let (ignored, doubts) = (without_effect(&documents), doubts(&documents, &checked));
    warnings.iter().chain(&ignored).chain(&doubts).for_each(|warning| context.ui.note(warning));
    if args.dry_run {
        return show(context, &documents, &checked, true);
    }
    if !warnings.is_empty() {
        let extent = if pruned.is_empty() { Extent::Named } else { Extent::Found };
        confirm(&format!("apply this to {cluster}?"), extent, args.yes).await?;
    }
    let (sent, refused) = send(&context.client, &documents, args.force, false).await;
    show(context, &documents, &sent, false)?;
    if !refused.is_empty() {
        let done = sent.iter().flatten().count() as u64;
        return Err(combine_failures(refused, &format!("{} applied before that", count(done, "document"))));
    }
    let limit = (!args.wait.no_wait).then(|| context.wait());
    delete::prune(context, pruned, args.force, limit).await?;
    if args.wait.no_wait {
        return Ok(());
    }
    let appliances = sent.iter().flatten().filter_map(|answer| answer.appliance.as_ref());
    let targets = appliances.map(|a| (a, Goal::Configured { generation: a.generation }));
    settle(&context.client, &context.ui, Tracker::new(&context.ui, targets), context.wait()).await
}

type UpdateResponses = Vec<Option<v1::UpdateApplianceResponse>>;

/// Sends all documents. Returns the responses in the order of the documents, and the failures.
async fn send(
    client: &AdminClient,
    documents: &[Document],
    force: bool,
    validate_only: bool,
) -> (UpdateResponses, Vec<Failure>) {
    let calls = documents.iter().map(|document| async move {
        let request = v1::UpdateApplianceRequest {
            appliance: Some(document.appliance.clone()),
            allow_missing: true,
            request_id: if validate_only { String::new() } else { request_id() },
            validate_only,
            force,
            ..v1::UpdateApplianceRequest::default()
        };
        client.update(request).await.map_err(|failure| located(document, failure))
    });
    let results: Vec<_> = stream::iter(calls).buffered(IN_FLIGHT).collect().await;
    let mut refused = Vec::new();
    let answers = results.into_iter().map(|result| result.map_err(|f| refused.push(f)).ok()).collect();
    (answers, refused)
}

/// What is more than a change of fields: another name for the same appliance, or another kind, by which all its instances
/// are replaced.
async fn surprising(
    context: &CommandContext,
    documents: &[Document],
    checked: &UpdateResponses,
) -> Result<Vec<String>, Failure> {
    let changed = documents.iter().zip(checked).filter_map(|(document, answer)| {
        let answer = answer.as_ref().filter(|answer| answer.outcome() == v1::Outcome::Changed)?;
        Some((document, answer.appliance.as_ref()?))
    });
    let calls = changed.map(|(document, after)| async move {
        let before = context.client.get(by_id(&after.id)).await?;
        let (was, is) = (context.ui.label(&before), context.ui.label(&document.appliance));
        let what =
            match (before.name != document.appliance.name, view::kind(&before) != view::kind(&document.appliance)) {
                (false, false) => return Ok(None),
                (true, false) => "is renamed, and keeps its instances",
                (false, true) => "is of another kind: all its instances are replaced",
                (true, true) => "is renamed and of another kind: all its instances are replaced",
            };
        Ok::<_, Failure>(Some(format!("{}: {was} becomes {is}: it {what}", document.place())))
    });
    let found: Vec<_> = stream::iter(calls).buffered(IN_FLIGHT).try_collect().await?;
    Ok(found.into_iter().flatten().collect())
}

/// What the server says about documents that it accepts, of the first of them.
fn doubts(documents: &[Document], checked: &UpdateResponses) -> Vec<String> {
    let of = |(document, answer): (&Document, &Option<v1::UpdateApplianceResponse>)| {
        let told = answer.iter().flat_map(|answer| &answer.warnings);
        let text =
            |warning: &String| format!("{}: {}: {}", document.place(), document.label(), foreign_escaped(warning));
        told.map(text).collect::<Vec<_>>()
    };
    let mut told: Vec<_> = documents.iter().zip(checked).flat_map(of).collect();
    let more = told.len().saturating_sub(MAX_SHOWN);
    told.truncate(MAX_SHOWN);
    told.extend((more > 0).then(|| format!("and {more} more warnings of the server")));
    told
}

/// What documents say and no driver acts on. `simulated` takes images for what it simulates.
fn without_effect(documents: &[Document]) -> Vec<String> {
    let has_image = |document: &&Document| document.appliance.spec.as_ref().is_some_and(|spec| !spec.image.is_empty());
    let ignored = documents.iter().filter(has_image).filter(|document| document.driver() == DriverName::process());
    let text = |document: &Document| {
        let at = document.locate("spec.image");
        format!("{at}: the driver process has no images; all that a change of it does is replace the instances")
    };
    ignored.map(text).collect()
}

/// What has the labels and is in none of the documents, within their tenants.
async fn left_over(
    client: &AdminClient,
    documents: &[Document],
    checked: &UpdateResponses,
    args: &ApplyArgs,
) -> Result<Vec<v1::Appliance>, Failure> {
    let labels: HashMap<_, _> = args.labels.labels.iter().cloned().collect();
    let lacking = documents.iter().filter_map(|document| {
        let (key, value) = labels.iter().find(|(key, value)| document.appliance.labels.get(*key) != Some(value))?;
        let at = document.locate("labels");
        Some(Failure::usage(format!(
            "{at}: lacks {key}={value}, by which --prune would find this document's appliance"
        )))
    });
    let lacking: Vec<_> = lacking.collect();
    if !lacking.is_empty() {
        return Err(combine_failures(lacking, "nothing was changed"));
    }
    let kept: BTreeSet<_> =
        checked.iter().flatten().filter_map(|answer| answer.appliance.as_ref()).map(|a| a.id.as_str()).collect();
    let tenants: BTreeSet<_> = documents.iter().map(|document| document.appliance.tenant.clone()).collect();
    let mut found = Vec::new();
    for tenant in tenants {
        let filter = v1::ApplianceFilter { tenant, labels: labels.clone(), ..v1::ApplianceFilter::default() };
        found.extend(client.list(filter).await?);
    }
    // What a source manages is not of these files, whatever its labels.
    found.retain(|a| !kept.contains(a.id.as_str()) && !a.deleting && a.managed_by.is_empty());
    Ok(found)
}

/// Which drivers of the documents are host-bound, as far as any worker has said.
async fn host_bound(client: &AdminClient, documents: &[Document]) -> Result<HostBoundDrivers, Failure> {
    let mut known = HostBoundDrivers::default();
    if documents.iter().any(|document| known.get(&document.driver()).is_none()) {
        let offer = |offer: &v1::DriverOffer| {
            let state_dir = offer.state_dir.clone();
            Some((offer.name.parse().ok()?, DriverCapabilities { state_dir, ..DriverCapabilities::default() }))
        };
        let offers = |worker: v1::Worker| worker.offers.iter().filter_map(offer).collect::<DriverOffers>();
        let offers: Vec<_> = client.workers().await?.into_iter().map(offers).collect();
        known.learn(&offers);
    }
    Ok(known)
}

/// Ports claimed by two of the documents. The server validates one document at a time and would refuse the second one
/// after it created the first. As on the server, only appliances bound to different hosts may share a port. What no worker
/// has said about a driver is left to the server.
fn port_clashes(documents: &[Document], answers: &UpdateResponses, host_bound: &HostBoundDrivers) -> Vec<Failure> {
    let mut claims: BTreeMap<u32, Vec<(&Document, &str)>> = BTreeMap::new();
    let mut clashes = Vec::new();
    for (document, answer) in documents.iter().zip(answers) {
        if host_bound.get(&document.driver()) != Some(true) {
            continue;
        }
        let assignment = answer.as_ref().and_then(|a| a.appliance.as_ref()).and_then(|a| a.assignment.as_ref());
        let host = assignment.map_or("", |a| a.host.as_str());
        for (port, field) in document.claimed_ports() {
            let others = claims.entry(port).or_default();
            let apart = |theirs: &str| !host.is_empty() && !theirs.is_empty() && host != theirs;
            if let Some((other, _)) =
                others.iter().find(|(other, theirs)| other.label() != document.label() && !apart(theirs))
            {
                let at = document.locate(&field);
                let text = format!("{at}: port {port} is also claimed by {} at {}", other.label(), other.place());
                clashes.push(Failure::usage(text));
            }
            others.push((document, host));
        }
    }
    clashes
}

/// The server's error in terms of the file.
fn located(document: &Document, failure: Failure) -> Failure {
    if failure.exit == Exit::Unreachable {
        return failure;
    }
    if failure.fields.is_empty() {
        return failure.during(&format!("{}: {}", document.place(), document.label()));
    }
    let lines: Vec<_> =
        failure.fields.iter().map(|v| format!("{}: {}", document.locate(&v.field), v.description)).collect();
    Failure::new(failure.exit, lines.join("\n"))
}

/// All failures as one, with the exit code of the first.
fn combine_failures(mut refused: Vec<Failure>, outcome: &str) -> Failure {
    let exit = refused[0].exit;
    // A server that became unavailable yields the same message for every document.
    refused.dedup_by(|a, b| a.message == b.message);
    let more = refused.len().saturating_sub(20);
    let mut lines: Vec<_> = refused.iter().take(20).map(ToString::to_string).collect();
    if more > 0 {
        lines.push(format!("and {more} more"));
    }
    lines.push(outcome.to_owned());
    Failure::new(exit, lines.join("\n"))
}

fn show(
    context: &CommandContext,
    documents: &[Document],
    answers: &UpdateResponses,
    dry_run: bool,
) -> Result<(), Failure> {
    let answered = documents.iter().zip(answers).filter_map(|(d, answer)| answer.as_ref().map(|a| (d, a)));
    let applied: Vec<_> =
        answered.map(|(document, answer)| (document.label(), applied(document, answer, dry_run))).collect();
    if context.ui.format.is_structured() {
        return context.ui.print_value(&applied.into_iter().map(|(_, a)| a).collect::<Vec<_>>());
    }
    let suffix = if dry_run { " (dry run)" } else { "" };
    let lines: Vec<_> = applied
        .iter()
        .map(|(label, a)| format!("{label} {}{suffix}", context.ui.paint(Tone::of(a.outcome), a.outcome)))
        .collect();
    if lines.is_empty() { Ok(()) } else { context.ui.print(&lines.join("\n")) }
}

fn applied(document: &Document, answer: &v1::UpdateApplianceResponse, dry_run: bool) -> Applied {
    let appliance = answer.appliance.clone().unwrap_or_default();
    Applied {
        kind: view::kind(&document.appliance),
        tenant: document.appliance.tenant.clone(),
        name: document.appliance.name.clone(),
        id: appliance.id,
        outcome: match answer.outcome() {
            v1::Outcome::Created => "created",
            v1::Outcome::Changed => "changed",
            v1::Outcome::Unchanged | v1::Outcome::Unspecified => "unchanged",
        },
        generation: appliance.generation,
        dry_run,
    }
}

#[cfg(test)]
mod tests {
    use common::appliance::FieldViolation;

    use super::*;

    #[test]
    fn an_error_of_the_server_names_file_line_and_field() {
        let text = "name: a\nkind: custom\nspec:\n  command: x\n  port: 8080\n";
        let documents = document::parse("f.yaml", text, None).expect("valid");
        let mut failure = Failure::usage("bad request");
        failure.fields = vec![
            FieldViolation::new("spec.custom.port", "8080 is taken by appliance `b`"),
            FieldViolation::new("spec.replicas", "must be 1 to 16, is 99"),
        ];
        assert_eq!(
            located(&documents[0], failure).to_string(),
            "f.yaml:5: spec.port: 8080 is taken by appliance `b`\nf.yaml:1: replicas: must be 1 to 16, is 99"
        );
        let failure = located(&documents[0], Failure::new(Exit::Conflict, "is being deleted"));
        assert_eq!(failure.to_string(), "f.yaml:1: custom/a: is being deleted");
        assert_eq!(failure.exit, Exit::Conflict);
    }

    #[test]
    fn two_documents_that_claim_one_port_are_refused_unless_their_hosts_differ() {
        let text = "name: a\nkind: custom\nreplicas: 2\nspec: {command: x, port: 8080}\n---\nname: lb\nkind: loadbalancer\n\
                    spec:\n  listeners:\n  - port: 80\n  - port: 8081\n---\nname: s\nkind: custom\ndriver: simulated\n\
                    spec: {command: x, port: 8080}\n";
        let documents = document::parse("f.yaml", text, None).expect("each is valid");
        let on = |host: &str| {
            let assignment = Some(v1::Assignment { host: host.into(), ..v1::Assignment::default() });
            let appliance = Some(v1::Appliance { assignment, ..v1::Appliance::default() });
            Some(v1::UpdateApplianceResponse { appliance, ..v1::UpdateApplianceResponse::default() })
        };
        let known = HostBoundDrivers::default();
        let clashes = port_clashes(&documents, &vec![on(""), on("h1"), None], &known);
        let clashes: Vec<_> = clashes.iter().map(ToString::to_string).collect();
        assert_eq!(clashes, ["f.yaml:11: spec.listeners[1].port: port 8081 is also claimed by custom/a at f.yaml:1"]);
        assert!(port_clashes(&documents, &vec![on("h2"), on("h1"), None], &known).is_empty());
    }

    #[test]
    fn warnings_of_the_server_are_told_with_their_documents_and_not_all_of_very_many() {
        let text = "name: a\nkind: custom\nspec: {command: x}\n---\nname: b\nkind: custom\nspec: {command: x}\n";
        let documents = document::parse("f.yaml", text, None).expect("each is valid");
        let warned = |warnings: Vec<String>| {
            Some(v1::UpdateApplianceResponse { warnings, ..v1::UpdateApplianceResponse::default() })
        };
        let told = doubts(&documents, &vec![warned(vec!["quota\u{1b}[31m".into()]), None]);
        assert_eq!(told, ["f.yaml:1: custom/a: quota\\u{1b}[31m"]);
        let told = doubts(&documents, &vec![None, warned(vec!["quota".into(); 50])]);
        assert_eq!((told.len(), told[MAX_SHOWN].as_str()), (MAX_SHOWN + 1, "and 30 more warnings of the server"));
    }

    #[test]
    fn an_image_that_no_driver_uses_is_told() {
        let text = "name: a\nkind: custom\nspec: {command: x}\nimage: debian\n---\nname: b\nkind: custom\ndriver: simulated\n\
                    image: debian\nspec: {command: x}\n---\nname: c\nkind: custom\nspec: {command: x}\n";
        let told = without_effect(&document::parse("f.yaml", text, None).expect("valid"));
        assert!(
            told.len() == 1 && told[0].starts_with("f.yaml:4: image: the driver process has no images"),
            "{told:?}"
        );
    }

    #[test]
    fn equal_errors_are_printed_once() {
        let refused = (0..30).map(|_| Failure::new(Exit::Unreachable, "no answer")).collect();
        let failure = combine_failures(refused, "nothing was changed");
        assert_eq!(failure.to_string(), "no answer\nnothing was changed");
        assert_eq!(failure.exit, Exit::Unreachable);
    }
}
