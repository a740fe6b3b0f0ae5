//! Commands about existing appliances: get, list, describe, explain, rebuild, check.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::SystemTime;

use clap::{Args, ValueEnum};
use common::appliance::SpecTime;
use futures::{StreamExt, stream};
use proto::admin::v1;

use crate::client::{by_id, request_id};
use crate::commands::delete::described;
use crate::commands::filter::{FilterArgs, Targets};
use crate::commands::orders::describe_pin;
use crate::commands::{CommandContext, Extent, Wait, confirm, debug, runs, watch};
use crate::complete;
use crate::document::view::{self, Secrets};
use crate::error::Failure;
use crate::names::{ApplianceName, Tenant};
use crate::output::view::Explanation;
use crate::output::{OutputFormat, TextTable, Tone, age, count, moment, placement};
use crate::text::one_line;
use crate::wait::{Goal, Tracker, settle};

/// Arguments of commands about one appliance.
#[derive(Args, Debug)]
pub(crate) struct One {
    /// Name or id
    #[arg(add = complete::appliances())]
    name: String,
    #[command(flatten)]
    tenant: Tenant,
}

impl One {
    pub(crate) async fn find(&self, context: &CommandContext) -> Result<v1::Appliance, Failure> {
        context.find(&self.name, self.tenant.tenant.as_ref()).await
    }
}

/// Arguments of `scale`.
#[derive(Args, Debug)]
pub(crate) struct ScaleArgs {
    #[command(flatten)]
    one: One,
    /// Instances wanted
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=i64::from(common::appliance::MAX_REPLICAS)))]
    replicas: u16,
    /// Also if a source manages it, which may change it back
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    wait: Wait,
}

/// Arguments of `get` and `describe`.
#[derive(Args, Debug)]
pub(crate) struct GetArgs {
    /// Names or ids
    #[arg(required = true, value_name = "NAME", add = complete::appliances())]
    names: Vec<String>,
    #[command(flatten)]
    tenant: Tenant,
}

/// Arguments of `get`.
#[derive(Args, Debug)]
pub(crate) struct GetOrWatchArgs {
    #[command(flatten)]
    get: GetArgs,
    /// Print each change, one line each, until interrupted or the appliance is gone; of one appliance
    #[arg(short, long)]
    watch: bool,
}

impl GetOrWatchArgs {
    /// Whether changes are printed, and no table.
    pub(crate) const fn watches(&self) -> bool {
        self.watch
    }
}

impl GetArgs {
    /// All names, before any of them is looked up.
    fn parsed(&self, context: &CommandContext) -> Result<Vec<ApplianceName>, Failure> {
        self.names.iter().map(|name| context.name(name, self.tenant.tenant.as_ref())).collect()
    }
}

/// Order of a list.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum ListOrder {
    /// Tenant and name
    #[default]
    Name,
    /// Phase in lifecycle order, then name
    Phase,
    /// Worker, then name
    Worker,
    /// Youngest first
    Age,
}

/// Arguments of `list`.
#[derive(Args, Debug)]
pub(crate) struct ListArgs {
    #[command(flatten)]
    filter: FilterArgs,
    /// Go on and print each change, as `watch` does
    #[arg(short, long, conflicts_with = "sort")]
    watch: bool,
    /// Show the values of environment variables in documents, with `-o yaml` or `-o json`
    #[arg(long, conflicts_with = "watch")]
    show_secrets: bool,
    /// Sort order
    #[arg(long, visible_alias = "sort-by", value_enum, default_value_t)]
    sort: ListOrder,
}

impl ListArgs {
    /// Whether it goes on as `watch` does.
    pub(crate) const fn watches(&self) -> bool {
        self.watch
    }
}

/// Probes that are under way at once.
const CHECKS: usize = 16;

/// Arguments of `check`.
#[derive(Args, Debug)]
pub(crate) struct CheckArgs {
    #[command(flatten)]
    targets: Targets,
}

/// Arguments of `rebuild`.
#[derive(Args, Debug)]
pub(crate) struct RebuildArgs {
    #[command(flatten)]
    targets: Targets,
    /// New image
    #[arg(long)]
    image: Option<String>,
    /// Also where a budget of disruption has no room
    #[arg(long)]
    force: bool,
    /// Do not ask for confirmation
    #[arg(short, long)]
    yes: bool,
    #[command(flatten)]
    wait: Wait,
}

/// Runs `get`.
pub(crate) async fn get(context: &CommandContext, args: &GetOrWatchArgs) -> Result<(), Failure> {
    let GetOrWatchArgs { get: args, watch } = args;
    if *watch {
        let [name] = args
            .parsed(context)?
            .try_into()
            .map_err(|_| Failure::usage("--watch is for one appliance; `watch` and `list --watch` are for several"))?;
        return watch::one(context, name.find(&context.client).await?).await;
    }
    let mut found = Vec::new();
    for name in args.parsed(context)? {
        found.push(name.find(&context.client).await?);
    }
    match (found.as_slice(), context.ui.format) {
        ([one], OutputFormat::Json | OutputFormat::JsonPath(_)) => {
            context.ui.print_value(&view::Appliance::full(one, Secrets::Shown))
        }
        ([one], OutputFormat::Yaml) => context.ui.print_value(&view::Appliance::document(one, Secrets::Shown)),
        _ => show(context, &found, Secrets::Shown),
    }
}

/// Runs `list`.
pub(crate) async fn list(context: &CommandContext, args: &ListArgs) -> Result<(), Failure> {
    if args.show_secrets && !context.ui.format.is_structured() {
        return Err(Failure::usage("--show-secrets is about documents, and a table has none: add -o yaml or -o json"));
    }
    if args.watch {
        return watch::matching(context, &args.filter).await;
    }
    let filter = args.filter.filter(context.ui.tenant.as_ref())?;
    let mut found = context.client.list(filter).await?;
    args.filter.retain(&mut found);
    sort(&mut found, args.sort);
    if found.is_empty() && !context.ui.format.is_structured() {
        context.ui.note(if args.filter.is_empty() && context.ui.tenant.is_none() {
            "no appliances"
        } else {
            "no appliance matches"
        });
        return Ok(());
    }
    show(context, &found, if args.show_secrets { Secrets::Shown } else { Secrets::Hidden })
}

fn sort(appliances: &mut [v1::Appliance], by: ListOrder) {
    appliances.sort_by(|a, b| (&a.tenant, &a.name).cmp(&(&b.tenant, &b.name)));
    let worker = |a: &v1::Appliance| a.assignment.as_ref().map(|x| x.worker.clone()).unwrap_or_default();
    let created = |a: &v1::Appliance| a.create_time.map(|t| (t.seconds, t.nanos));
    match by {
        ListOrder::Name => {}
        ListOrder::Phase => appliances.sort_by_key(|a| a.status.as_ref().map_or(0, |s| s.phase)),
        ListOrder::Worker => appliances.sort_by_key(worker),
        ListOrder::Age => appliances.sort_by_key(|a| std::cmp::Reverse(created(a))),
    }
}

fn show(context: &CommandContext, appliances: &[v1::Appliance], secrets: Secrets) -> Result<(), Failure> {
    let all = |view: fn(&v1::Appliance, Secrets) -> view::Appliance| -> Vec<_> {
        appliances.iter().map(|appliance| view(appliance, secrets)).collect()
    };
    match context.ui.format {
        OutputFormat::Json | OutputFormat::JsonPath(_) => context.ui.print_value(&all(view::Appliance::full)),
        OutputFormat::Yaml => context.ui.print_value(&all(view::Appliance::document)),
        OutputFormat::Columns(columns) => {
            let rows: Vec<_> = appliances.iter().map(|one| view::Appliance::full(one, Secrets::Hidden)).collect();
            context.ui.print_table(&columns.table(&rows)?)
        }
        format => context.ui.print_table(&table(appliances, format == OutputFormat::Wide, SystemTime::now())),
    }
}

pub(crate) fn ready(appliance: &v1::Appliance) -> String {
    let wanted = appliance.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1);
    let alive = appliance.status.iter().flat_map(|s| &s.instances).filter(|i| i.alive == Some(true)).count();
    format!("{alive}/{wanted}")
}

/// The table of `list`.
pub(crate) fn table(appliances: &[v1::Appliance], wide: bool, now: SystemTime) -> TextTable {
    let mut header = vec!["TENANT", "NAME", "KIND", "DRIVER", "PHASE", "READY", "WORKER", "AGE"];
    if wide {
        header.extend(["ID", "GENERATION", "HOST", "ADDRESSES", "PIDS", "PLACEMENT", "LAST ERROR"]);
    }
    let mut table = TextTable::new(&header).with_prose(&["PLACEMENT", "LAST ERROR"]);
    for a in appliances {
        let phase = view::phase(a);
        let assignment = a.assignment.clone().unwrap_or_default();
        let plain = |text: &str| (text.to_owned(), Tone::Plain);
        let mut row = vec![
            plain(&a.tenant),
            plain(&a.name),
            plain(view::kind(a)),
            plain(&a.driver),
            (phase.to_owned(), Tone::of(phase)),
            plain(&ready(a)),
            plain(&assignment.worker),
            plain(&age(a.create_time.as_ref(), now)),
        ];
        if wide {
            let status = a.status.clone().unwrap_or_default();
            let joined = |each: Vec<String>| plain(&each.join(","));
            row.extend([
                plain(&a.id),
                plain(&format!("{}/{}", status.observed_generation, a.generation)),
                plain(&assignment.host),
                joined(status.instances.iter().map(|i| i.address.clone()).filter(|t| !t.is_empty()).collect()),
                joined(status.instances.iter().filter_map(|i| i.pid).map(|pid| pid.to_string()).collect()),
                plain(&placement(&assignment)),
                (status.last_error, Tone::Bad),
            ]);
        }
        table.row(row);
    }
    table
}

/// Runs `describe`.
pub(crate) async fn describe(context: &CommandContext, args: &GetArgs) -> Result<(), Failure> {
    let mut explained = Vec::new();
    for name in args.parsed(context)? {
        let named = name.find(&context.client).await?;
        explained.push(context.client.explain(by_id(&named.id)).await?);
    }
    let appliances: Vec<_> = explained.iter().map(|e| e.appliance.clone().unwrap_or_default()).collect();
    match appliances.as_slice() {
        [one] if context.ui.format.is_structured() => {
            return context.ui.print_value(&view::Appliance::full(one, Secrets::Hidden));
        }
        all if context.ui.format.is_structured() => {
            let full = |one| view::Appliance::full(one, Secrets::Hidden);
            return context.ui.print_value(&all.iter().map(full).collect::<Vec<_>>());
        }
        _ => {}
    }
    let now = SystemTime::now();
    let texts: Result<Vec<_>, _> =
        appliances.iter().zip(&explained).map(|(a, explained)| description(context, a, explained, now)).collect();
    context.ui.print(&texts?.join("\n\n"))
}

/// Runs `scale`.
pub(crate) async fn scale(context: &CommandContext, args: &ScaleArgs) -> Result<(), Failure> {
    let before = args.one.find(context).await?;
    let spec = v1::Spec { replicas: Some(i32::from(args.replicas)), ..v1::Spec::default() };
    let request = v1::UpdateApplianceRequest {
        appliance: Some(v1::Appliance { id: before.id.clone(), spec: Some(spec), ..v1::Appliance::default() }),
        update_mask: Some(prost_types::FieldMask { paths: vec!["spec.replicas".to_owned()] }),
        request_id: request_id(),
        force: args.force,
        ..v1::UpdateApplianceRequest::default()
    };
    let appliance = context.client.update(request).await?.appliance.unwrap_or_default();
    if !args.wait.no_wait {
        let goal = Goal::Configured { generation: appliance.generation };
        settle(&context.client, &context.ui, Tracker::new(&context.ui, [(&appliance, goal)]), context.wait()).await?;
    }
    if context.ui.format.is_structured() {
        let appliance = context.client.get(by_id(&appliance.id)).await?;
        return context.ui.print_value(&view::Appliance::full(&appliance, Secrets::Hidden));
    }
    context.ui.print(&format!("{} has {}", context.ui.label(&before), count(u64::from(args.replicas), "replica")))
}

/// Everything about one appliance, in sections.
pub(crate) fn description(
    context: &CommandContext,
    a: &v1::Appliance,
    explained: &v1::ExplainApplianceResponse,
    now: SystemTime,
) -> Result<String, Failure> {
    let status = a.status.clone().unwrap_or_default();
    let assignment = a.assignment.clone().unwrap_or_default();
    let phase = view::phase(a);
    let mut text = String::new();
    let mut line = |name: &str, value: &str| {
        if !value.is_empty() {
            let _ = writeln!(text, "{name:<16}{value}");
        }
    };
    line("Name", &a.name);
    line("Tenant", &a.tenant);
    line("Id", &a.id);
    line("Kind", view::kind(a));
    line("Driver", &a.driver);
    let mut labels: Vec<_> = a.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    labels.sort();
    line("Labels", &labels.join(" "));
    line("Placement key", &a.placement_key);
    line("Managed by", &a.managed_by);
    let created = age(a.create_time.as_ref(), now);
    line("Created", &a.create_time.map(|t| format!("{} ({created} ago)", moment(Some(t)))).unwrap_or_default());
    line("Updated", &moment(a.update_time));
    line("", "");
    line("Phase", &context.ui.paint(Tone::of(phase), phase));
    line("Deleting", if a.deleting { "yes" } else { "" });
    line("Generation", &format!("{} (acted on: {})", a.generation, status.observed_generation));
    line("Last error", &context.ui.paint(Tone::Bad, &one_line(&status.last_error)));
    line("Failed boots", &if status.failed_boots > 0 { status.failed_boots.to_string() } else { String::new() });
    last_end(status.last_end.as_ref(), now).iter().for_each(|(name, value)| line(name, value));
    // Not of every probe: without saying so, the age of a healthy one looks like that of a lost one.
    let reported = ago(status.report_time.as_ref(), now);
    line("Reported", &if reported.is_empty() { reported } else { format!("{reported}, the last change") });
    line("Worker", &assignment.worker);
    line("Assignment", [placement(&assignment), assignment.token.clone()].join(" ").trim());
    line("Host", &assignment.host);
    line("State dir", &assignment.state_dir);
    line("Site", &one_line(&assignment.site));
    line("Why there", &one_line(&explained.summary));
    debug::lines_about(explained, now).iter().for_each(|text| line("Debug mode", text));
    line("Pinned", &assignment.pin.as_ref().map(|pin| describe_pin(pin, now)).unwrap_or_default());

    let _ = writeln!(text, "\nSpec");
    let spec = crate::output::render(OutputFormat::Yaml, &view::Appliance::document(a, Secrets::Hidden))?;
    // Name, tenant and the other identifying fields are printed above.
    let shown = ["replicas", "image", "ports", "pod", "spec"].into_iter().chain(SpecTime::ALL.map(SpecTime::name));
    let shown: Vec<_> = shown.collect();
    let body = spec.lines().skip_while(|l| !l.split_once(':').is_some_and(|(field, _)| shown.contains(&field)));
    body.for_each(|l| {
        let _ = writeln!(text, "  {l}");
    });

    let _ = writeln!(text, "\nInstances");
    if status.instances.is_empty() {
        let _ = writeln!(text, "  none");
    } else {
        indent(&mut text, &context.ui.table_text(&instances(&status.instances, now), INDENT));
        indent(&mut text, &details(&status.instances));
    }
    if !explained.moves.is_empty() {
        let _ = writeln!(text, "\nMoves");
        indent(&mut text, &context.ui.table_text(&moves(&explained.moves, false), INDENT));
    }
    Ok(text)
}

/// How the last instance ended, with what it had to say: lines of a description.
fn last_end(end: Option<&v1::InstanceEnd>, now: SystemTime) -> Vec<(&'static str, String)> {
    let Some(end) = end else { return Vec::new() };
    let (name, when) = (one_line(&end.instance), age(end.time.as_ref(), now));
    let first = ("Last end", format!("{name}, {when} ago: {}", view::end_cause(end)));
    let output = end.last_lines.iter().map(|output| ("", format!("| {}", one_line(output))));
    std::iter::once(first).chain(output).collect()
}

/// What instances say beside that they are well, a line each.
fn details(instances: &[v1::Instance]) -> String {
    let mut text = String::new();
    for instance in instances {
        let sorted: BTreeMap<_, _> = instance.details.iter().collect();
        for (name, detail) in sorted {
            let _ = writeln!(text, "{}: {}: {}", instance.ordinal, one_line(name), one_line(detail));
        }
    }
    text
}

/// How far sections are indented.
const INDENT: usize = 2;

fn indent(text: &mut String, block: &str) {
    block.lines().for_each(|l| {
        let _ = writeln!(text, "{:INDENT$}{l}", "");
    });
}

fn ago(time: Option<&prost_types::Timestamp>, now: SystemTime) -> String {
    match age(time, now) {
        text if text.is_empty() => text,
        text => format!("{text} ago"),
    }
}

fn instances(instances: &[v1::Instance], now: SystemTime) -> TextTable {
    let mut table = TextTable::new(&["ORDINAL", "NAME", "ALIVE", "PID", "ADDRESS", "CONFIGURED", "AGE"]);
    for i in instances {
        let (alive, tone) = match i.alive {
            Some(true) => ("yes", Tone::Good),
            Some(false) => ("no", Tone::Bad),
            None => ("not probed", Tone::Busy),
        };
        let configured = if i.configured_generation == 0 { String::new() } else { i.configured_generation.to_string() };
        table.row([
            (i.ordinal.to_string(), Tone::Plain),
            (i.name.clone(), Tone::Plain),
            (alive.to_owned(), tone),
            (i.pid.map(|p| p.to_string()).unwrap_or_default(), Tone::Plain),
            (i.address.clone(), Tone::Plain),
            (configured, Tone::Plain),
            (age(i.start_time.as_ref(), now), Tone::Plain),
        ]);
    }
    table
}

/// Moves; the appliance is a column unless all moves are of one appliance.
pub(crate) fn moves(moves: &[v1::Move], appliance: bool) -> TextTable {
    let mut header = vec!["TIME", "FROM", "TO", "STATE", "REBALANCE", "REASON"];
    if appliance {
        header.insert(1, "APPLIANCE");
    }
    let mut table = TextTable::new(&header).with_prose(&["REASON"]);
    for m in moves {
        let plain = |text: &str| (text.to_owned(), Tone::Plain);
        let mut row = vec![
            plain(&moment(m.time)),
            plain(&m.from),
            plain(&m.to),
            (m.state.clone(), Tone::of(&m.state)),
            plain(&m.rebalance),
            plain(&m.reason),
        ];
        if appliance {
            row.insert(1, plain(&m.appliance));
        }
        table.row(row);
    }
    table
}

/// Runs `explain`.
pub(crate) async fn explain(context: &CommandContext, args: &One) -> Result<(), Failure> {
    let named = args.find(context).await?;
    let explained = context.client.explain(by_id(&named.id)).await?;
    let runs = runs::last_of(context, &named.id).await;
    if context.ui.format.is_structured() {
        return context.ui.print_value(&Explanation::from(&explained).with_runs(&runs));
    }
    let mut text = explanation(context, &explained);
    if !runs.is_empty() {
        let _ = writeln!(text, "\n{}", context.ui.table_text(&runs::transitions(&runs), 0));
    }
    context.ui.print(&text)
}

/// Why an appliance is where it is, with every candidate.
pub(crate) fn explanation(context: &CommandContext, explained: &v1::ExplainApplianceResponse) -> String {
    let mut text = String::new();
    let _ = writeln!(text, "{}", one_line(&explained.summary));
    let error = explained.appliance.as_ref().and_then(|a| a.status.as_ref()).map(|status| one_line(&status.last_error));
    if let Some(error) = error.filter(|error| !error.is_empty()) {
        let _ = writeln!(text, "last error: {}", context.ui.paint(Tone::Bad, &error));
    }
    for line in debug::lines_about(explained, SystemTime::now()) {
        let _ = writeln!(text, "debug mode: {line}");
    }
    let _ = writeln!(text, "\nring position {}\n", explained.ring_position);
    let mut table =
        TextTable::new(&["PREFERENCE", "WORKER", "ELIGIBLE", "LOAD", "BAND", "REASON"]).with_prose(&["REASON"]);
    for (i, c) in explained.candidates.iter().enumerate() {
        let (eligible, tone) = if c.eligible { ("yes", Tone::Good) } else { ("no", Tone::Bad) };
        table.row([
            ((i + 1).to_string(), Tone::Plain),
            (c.worker.clone(), Tone::Plain),
            (eligible.to_owned(), tone),
            (c.load.to_string(), Tone::Plain),
            (format!("{}..{}", c.floor, c.ceiling), Tone::Plain),
            (c.reason.clone(), Tone::Plain),
        ]);
    }
    let _ = writeln!(text, "{}", context.ui.table_text(&table, 0));
    if !explained.moves.is_empty() {
        let _ = writeln!(text, "\n{}", context.ui.table_text(&moves(&explained.moves, false), 0));
    }
    text
}

/// Runs `rebuild`: of several appliances one after the other, so that the first that fails is the last that is touched.
pub(crate) async fn rebuild(context: &CommandContext, args: &RebuildArgs) -> Result<(), Failure> {
    let (cluster, context) = &context.identified().await?;
    let (found, extent) = args.targets.find(context, false).await?;
    if extent == Extent::Found {
        if found.is_empty() {
            context.ui.note(&format!("no appliance to rebuild in {cluster}"));
            return Ok(());
        }
        confirm(&format!("rebuild {} in {cluster}?", described(&context.ui, &found)), extent, args.yes).await?;
    }
    let mut rebuilt = Vec::new();
    for (n, named) in found.iter().enumerate() {
        match rebuild_one(context, args, named).await {
            Ok(appliance) => rebuilt.push(appliance),
            Err(failure) if found.len() == 1 => return Err(failure),
            Err(mut failure) => {
                let left = count((found.len() - n - 1) as u64, "appliance");
                failure.message = format!("{}: {}\n{left} not touched", context.ui.label(named), failure.message);
                return Err(failure);
            }
        }
    }
    match (context.ui.format.is_structured(), rebuilt.as_slice()) {
        (true, [one]) => context.ui.print_value(&view::Appliance::full(one, Secrets::Hidden)),
        (true, all) => {
            let full = |one| view::Appliance::full(one, Secrets::Hidden);
            context.ui.print_value(&all.iter().map(full).collect::<Vec<_>>())
        }
        (false, _) => Ok(()),
    }
}

async fn rebuild_one(
    context: &CommandContext,
    args: &RebuildArgs,
    named: &v1::Appliance,
) -> Result<v1::Appliance, Failure> {
    let request = v1::RebuildApplianceRequest {
        appliance: Some(by_id(&named.id)),
        image: args.image.clone().unwrap_or_default(),
        request_id: request_id(),
        force: args.force,
    };
    let appliance = context.client.rebuild(request).await?;
    if !args.wait.no_wait {
        let goal = Goal::Configured { generation: appliance.generation };
        settle(&context.client, &context.ui, Tracker::new(&context.ui, [(&appliance, goal)]), context.wait()).await?;
    }
    if context.ui.format.is_structured() {
        return context.client.get(by_id(&appliance.id)).await;
    }
    let done = if args.wait.no_wait { "rebuilding" } else { "rebuilt" };
    context.ui.print(&format!("{} {done}", context.ui.label(&appliance)))?;
    Ok(appliance)
}

/// Runs `check`.
///
/// # Errors
/// Exit code 1 when an instance is missing or does not answer.
pub(crate) async fn check(context: &CommandContext, args: &CheckArgs) -> Result<(), Failure> {
    let (found, _) = args.targets.find(context, false).await?;
    if found.is_empty() {
        context.ui.note("no appliance matches");
        return Ok(());
    }
    let probes = found.iter().map(|named| context.client.check(by_id(&named.id)));
    let checked: Vec<_> = stream::iter(probes).buffered(CHECKS).collect().await;
    let mut failures = Vec::new();
    let mut documents = Vec::new();
    for (named, checked) in found.iter().zip(checked) {
        let outcome = checked.and_then(|appliance| {
            let shown = show_check(context, &appliance);
            documents.push(view::Appliance::full(&appliance, Secrets::Hidden));
            shown.and_then(|()| verdict(&appliance))
        });
        if let Err(failure) = outcome {
            failures.push((context.ui.label(named), failure));
        }
    }
    if context.ui.format.is_structured() {
        match documents.as_slice() {
            [one] if found.len() == 1 => context.ui.print_value(one)?,
            all => context.ui.print_value(&all)?,
        }
    }
    let exit = failures.first().map(|(_, failure)| failure.exit);
    match (exit, found.len()) {
        (None, _) => Ok(()),
        (Some(_), 1) => Err(failures.remove(0).1),
        (Some(exit), _) => {
            let lines: Vec<_> = failures.iter().map(|(label, failure)| format!("{label}: {failure}")).collect();
            Err(Failure::new(exit, lines.join("\n")))
        }
    }
}

fn show_check(context: &CommandContext, appliance: &v1::Appliance) -> Result<(), Failure> {
    if context.ui.format.is_structured() {
        return Ok(());
    }
    let phase = view::phase(appliance);
    let mut text = format!("{} {}\n", context.ui.label(appliance), context.ui.paint(Tone::of(phase), phase));
    let instances_of = appliance.status.as_ref().map(|status| status.instances.as_slice()).unwrap_or_default();
    if !instances_of.is_empty() {
        text += &context.ui.table_text(&instances(instances_of, SystemTime::now()), 0);
    }
    context.ui.print(&text)
}

/// Whether every instance answered.
fn verdict(appliance: &v1::Appliance) -> Result<(), Failure> {
    let status = appliance.status.clone().unwrap_or_default();
    let dead = status.instances.iter().filter(|i| i.alive != Some(true)).count() as u64;
    let error = one_line(&status.last_error);
    match (dead, status.instances.is_empty()) {
        (0, false) => Ok(()),
        (_, true) => Err(Failure::failed(format!("no instance runs: {error}").trim_end_matches(": ").to_owned())),
        (n, _) => {
            let verb = if n == 1 { "does" } else { "do" };
            Err(Failure::failed(format!("{} {verb} not answer", count(n, "instance"))))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn appliance(name: &str, phase: v1::Phase, worker: &str, created: i64) -> v1::Appliance {
        let kind = v1::spec::Kind::Custom(v1::Custom { command: "sleep".into(), ..v1::Custom::default() });
        let instance = v1::Instance {
            name: format!("{name}-0-1"),
            alive: Some(true),
            pid: Some(4711),
            address: "127.0.0.1:8081".into(),
            configured_generation: 2,
            ..v1::Instance::default()
        };
        v1::Appliance {
            id: "6f1c9a52-0f5e-4f0a-9a3e-0d2b6a1c7e11".into(),
            name: name.into(),
            tenant: "demo".into(),
            driver: "process".into(),
            generation: 2,
            spec: Some(v1::Spec { replicas: Some(2), kind: Some(kind), ..v1::Spec::default() }),
            create_time: Some(prost_types::Timestamp { seconds: created, nanos: 0 }),
            status: Some(v1::Status {
                phase: phase.into(),
                observed_generation: 2,
                instances: vec![instance],
                last_error: "instance 1:\nport 8082 is in use".into(),
                last_end: Some(v1::InstanceEnd {
                    instance: format!("{name}-1-1"),
                    time: Some(prost_types::Timestamp { seconds: 990, nanos: 0 }),
                    cause: Some(v1::instance_end::Cause::Signal(9)),
                    out_of_memory: true,
                    last_lines: vec!["no such table".into()],
                }),
                ..v1::Status::default()
            }),
            assignment: Some(v1::Assignment {
                state: "owned".into(),
                worker: worker.into(),
                token: "t1/7".into(),
                reason: "ring preference".into(),
                ..v1::Assignment::default()
            }),
            ..v1::Appliance::default()
        }
    }

    fn now() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1000)
    }

    fn context() -> CommandContext {
        let ui = crate::output::Ui::plain(OutputFormat::Table);
        let client = crate::client::AdminClient::new("http://127.0.0.1:1", Duration::from_secs(1)).expect("an address");
        CommandContext { client, ui, timeout: None }
    }

    #[test]
    fn the_table_of_appliances_has_one_row_per_line() {
        let fleet =
            [appliance("web", v1::Phase::Configured, "worker-1", 900), appliance("w", v1::Phase::Error, "", 1000)];
        assert_eq!(
            table(&fleet, false, now()).render(false),
            "TENANT  NAME  KIND    DRIVER   PHASE       READY  WORKER    AGE\n\
             demo    web   custom  process  Configured  1/2    worker-1  1m40s\n\
             demo    w     custom  process  Error       1/2    -         0s"
        );
        let wide = table(&fleet[..1], true, now()).render(false);
        assert!(wide.ends_with(
            "6f1c9a52-0f5e-4f0a-9a3e-0d2b6a1c7e11  2/2         -     127.0.0.1:8081  4711  owned (ring preference)  \
             instance 1: port 8082 is in use"
        ));
    }

    #[tokio::test]
    async fn a_description_has_all_sections() {
        let explained = v1::ExplainApplianceResponse {
            summary: "worker-1 is the first in ring order with room".into(),
            moves: vec![v1::Move { from: "worker-2".into(), to: "worker-1".into(), ..v1::Move::default() }],
            ..v1::ExplainApplianceResponse::default()
        };
        let text =
            description(&context(), &appliance("web", v1::Phase::Configured, "worker-1", 900), &explained, now())
                .expect("plain data");
        assert_eq!(
            text,
            "Name            web\n\
             Tenant          demo\n\
             Id              6f1c9a52-0f5e-4f0a-9a3e-0d2b6a1c7e11\n\
             Kind            custom\n\
             Driver          process\n\
             Created         1970-01-01T00:15:00Z (1m40s ago)\n\
             Phase           Configured\n\
             Generation      2 (acted on: 2)\n\
             Last error      instance 1: port 8082 is in use\n\
             Last end        web-1-1, 10s ago: signal 9 (SIGKILL), out of memory\n\
             \x20               | no such table\n\
             Worker          worker-1\n\
             Assignment      owned (ring preference) t1/7\n\
             Why there       worker-1 is the first in ring order with room\n\
             \n\
             Spec\n\
             \x20 replicas: 2\n\
             \x20 spec:\n\
             \x20   command: sleep\n\
             \n\
             Instances\n\
             \x20 ORDINAL  NAME     ALIVE  PID   ADDRESS         CONFIGURED  AGE\n\
             \x20 0        web-0-1  yes    4711  127.0.0.1:8081  2           -\n\
             \n\
             Moves\n\
             \x20 TIME  FROM      TO        STATE  REBALANCE  REASON\n\
             \x20 -     worker-2  worker-1  -      -          -\n"
        );
    }

    #[test]
    fn lists_are_sorted_as_requested() {
        let mut fleet = vec![
            appliance("b", v1::Phase::Configured, "worker-1", 10),
            appliance("a", v1::Phase::Error, "worker-2", 20),
            appliance("c", v1::Phase::Booting, "worker-1", 30),
        ];
        let mut order = |by| {
            sort(&mut fleet, by);
            fleet.iter().map(|a| a.name.as_str()).collect::<String>()
        };
        assert_eq!(order(ListOrder::Name), "abc");
        assert_eq!(order(ListOrder::Phase), "cba");
        assert_eq!(order(ListOrder::Worker), "bca");
        assert_eq!(order(ListOrder::Age), "cab");
    }
}
