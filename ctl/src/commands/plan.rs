//! `rugctl plan`: what would move, before it moves; and having exactly that done.
//!
//! The server keeps no plans. What one was made of is kept here, in a file under the cache folder of the user, so that
//! `plan apply ID` can say it again.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Subcommand};
use proto::admin::v1;
use proto::admin::v1::plan_assumptions::{AssumedPin, Joiner};
use serde::{Deserialize, Serialize};

use crate::client::by_id;
use crate::commands::offline;
use crate::commands::placement::undo_reason;
use crate::commands::replay::{self, ReplayArgs};
use crate::commands::{CommandContext, Extent, confirm};
use crate::complete;
use crate::dump::Dump;
use crate::error::{Exit, Failure};
use crate::names::Tenant;
use crate::output::{TextTable, Tone, count};
use crate::text::one_line;

/// Moves that are listed, unless more are asked for.
const SHOWN: u64 = 20;
/// Moves of one page.
const PAGE: i32 = 1_000;
/// How often a plan that undoes is made anew because the table has changed.
const UNDO_TRIES: u32 = 5;
/// Plans that are kept; the oldest go first.
const KEPT: usize = 100;

/// Arguments of `plan`.
#[derive(Args, Debug)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct PlanArgs {
    #[command(subcommand)]
    command: Option<PlanCommand>,
    #[command(flatten)]
    assumed: AssumedArgs,
    /// List every move
    #[arg(long)]
    all: bool,
    /// Plan over a file of `rugctl cluster dump`, without a server
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath, conflicts_with = "undo")]
    from: Option<PathBuf>,
}

/// Commands.
#[derive(Debug, Subcommand)]
enum PlanCommand {
    /// Have done exactly what a plan shows, if nothing has changed since
    Apply(ApplyPlanArgs),
    /// Run the history of rebalances again under other policies, beside what happened
    Replay(ReplayArgs),
}

/// Arguments of `plan apply`.
#[derive(Args, Debug)]
struct ApplyPlanArgs {
    /// Id of the plan, as it was shown
    id: String,
    /// Also drain workers of which no other can take some appliance
    #[arg(long)]
    force: bool,
    /// Reason, shown to other operators
    #[arg(long, default_value = "", hide_default_value = true)]
    reason: String,
    /// Do not ask for confirmation
    #[arg(short, long)]
    yes: bool,
}

/// What a plan assumes.
#[derive(Args, Debug)]
struct AssumedArgs {
    /// A worker drains
    #[arg(long, value_name = "WORKER", add = complete::workers())]
    drain: Vec<String>,
    /// A worker is not drained by order any more
    #[arg(long, value_name = "WORKER", add = complete::workers())]
    undrain: Vec<String>,
    /// A worker is cordoned
    #[arg(long, value_name = "WORKER", add = complete::workers())]
    cordon: Vec<String>,
    /// A worker is not cordoned any more
    #[arg(long, value_name = "WORKER", add = complete::workers())]
    uncordon: Vec<String>,
    /// A worker has another weight; `published` for the one it publishes
    #[arg(long, value_name = "WORKER=N", value_parser = pair)]
    weight: Vec<(String, String)>,
    /// An appliance is pinned to a worker, with `!` at the end to it alone
    #[arg(long, value_name = "APPLIANCE=WORKER", value_parser = pair)]
    pin: Vec<(String, String)>,
    /// An appliance is not pinned any more
    #[arg(long, value_name = "APPLIANCE", add = complete::appliances())]
    unpin: Vec<String>,
    /// A worker joins: `w9`, or `w9,weight=2,zone=b,host=h9,driver=process`
    #[arg(long, value_name = "WORKER[,KEY=VALUE]", value_parser = joiner)]
    join: Vec<Joiner>,
    /// A worker is gone, without having handed over
    #[arg(long, value_name = "WORKER", add = complete::workers())]
    leave: Vec<String>,
    /// All workers of a failure zone are gone
    #[arg(long, value_name = "ZONE")]
    lose_zone: Vec<String>,
    /// What a rebalance moved goes back, and is pinned there
    #[arg(long, value_name = "REBALANCE", add = complete::rebalances())]
    undo: Option<String>,
    /// Another placement strategy
    #[arg(long, value_parser = ["bounded", "ring"])]
    strategy: Option<String>,
    /// Another width of the band
    #[arg(long)]
    band: Option<f64>,
    /// Something else is spread over zones
    #[arg(long, value_parser = ["none", "tenant"])]
    spread: Option<String>,
    #[command(flatten)]
    tenant: Tenant,
}

fn pair(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("must be NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}

fn joiner(text: &str) -> Result<Joiner, String> {
    let mut parts = text.split(',');
    let mut joiner = Joiner { id: parts.next().unwrap_or_default().to_owned(), ..Joiner::default() };
    for part in parts {
        match part.split_once('=') {
            Some(("weight", weight)) => joiner.weight = weight.parse().map_err(|_| format!("{weight} is no weight"))?,
            Some(("zone", zone)) => zone.clone_into(&mut joiner.zone),
            Some(("host", host)) => host.clone_into(&mut joiner.host),
            Some(("driver", driver)) => joiner.drivers.push(driver.to_owned()),
            _ => return Err(format!("`{part}` is none of weight=, zone=, host=, driver=")),
        }
    }
    Ok(joiner)
}

/// What a plan was made of, as it is kept. Appliances are by id.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct KeptPlan {
    id: String,
    version: String,
    moves: u64,
    uncordon: Vec<String>,
    undrain: Vec<String>,
    weight_as_published: Vec<String>,
    unpin: Vec<String>,
    cordon: Vec<String>,
    drain: Vec<String>,
    weight: BTreeMap<String, u32>,
    pin: Vec<(String, String, bool)>,
    undo: String,
}

impl KeptPlan {
    fn of(plan: &v1::PlacementPlan, assumed: &v1::PlanAssumptions) -> Self {
        let id = |reference: &Option<v1::ApplianceRef>| match reference.as_ref().and_then(|r| r.by.as_ref()) {
            Some(v1::appliance_ref::By::Id(id)) => id.clone(),
            _ => String::new(),
        };
        let assumed = assumed.clone();
        Self {
            id: plan.id.clone(),
            version: plan.version.clone(),
            moves: plan.moves,
            uncordon: assumed.uncordon,
            undrain: assumed.undrain,
            weight_as_published: assumed.weight_as_published,
            unpin: assumed.unpin.into_iter().map(|reference| id(&Some(reference))).collect(),
            cordon: assumed.cordon,
            drain: assumed.drain,
            weight: assumed.weight.into_iter().collect(),
            pin: assumed.pin.into_iter().map(|pin| (id(&pin.appliance), pin.worker, pin.strict)).collect(),
            undo: assumed.undo,
        }
    }

    fn assumptions(&self) -> v1::PlanAssumptions {
        let pin = |(id, worker, strict): &(String, String, bool)| AssumedPin {
            appliance: Some(by_id(id)),
            worker: worker.clone(),
            strict: *strict,
        };
        v1::PlanAssumptions {
            uncordon: self.uncordon.clone(),
            undrain: self.undrain.clone(),
            weight_as_published: self.weight_as_published.clone(),
            unpin: self.unpin.iter().map(|id| by_id(id)).collect(),
            cordon: self.cordon.clone(),
            drain: self.drain.clone(),
            weight: self.weight.clone().into_iter().collect(),
            pin: self.pin.iter().map(pin).collect(),
            undo: self.undo.clone(),
            ..v1::PlanAssumptions::default()
        }
    }
}

/// The plans that are kept.
#[derive(Debug)]
struct PlanFolder(PathBuf);

impl PlanFolder {
    /// Below the cache folder of this user; `None` where the environment does not say which one that is.
    fn of_user() -> Option<Self> {
        let variable = |name| std::env::var_os(name);
        Self::of(variable("XDG_CACHE_HOME").as_deref(), variable("HOME").as_deref())
    }

    fn of(cache: Option<&OsStr>, home: Option<&OsStr>) -> Option<Self> {
        // Relative paths are to be ignored there, says the XDG base directory specification.
        let absolute = |path: &OsStr| Some(PathBuf::from(path)).filter(|path| path.is_absolute());
        let base = cache.and_then(absolute).or_else(|| Some(home.and_then(absolute)?.join(".cache")))?;
        Some(Self(base.join("rug").join("plans")))
    }

    /// The file of a plan; none where that is no id of one, and so no name of a file either.
    fn file(&self, id: &str) -> Option<PathBuf> {
        let is_id = id.len() == 17 && id.starts_with('p') && id[1..].bytes().all(|b| b.is_ascii_hexdigit());
        is_id.then(|| self.0.join(format!("{id}.json")))
    }

    fn keep(&self, plan: &KeptPlan) -> Result<(), Failure> {
        let failed = |e: std::io::Error| Failure::failed(format!("{}: {e}", self.0.display()));
        let path = self.file(&plan.id).ok_or_else(|| Failure::failed(format!("`{}` is no id of a plan", plan.id)))?;
        fs::create_dir_all(&self.0).map_err(failed)?;
        let text = serde_json::to_vec(plan).map_err(|e| Failure::failed(e.to_string()))?;
        let mut aside = tempfile::NamedTempFile::new_in(&self.0).map_err(failed)?;
        std::io::Write::write_all(&mut aside, &text).map_err(failed)?;
        aside.persist(&path).map_err(|e| failed(e.error))?;
        self.prune();
        Ok(())
    }

    /// Removes the oldest plans beyond those that are kept. Another command may do the same.
    fn prune(&self) {
        let Ok(entries) = fs::read_dir(&self.0) else { return };
        let age = |entry: fs::DirEntry| Some((entry.metadata().ok()?.modified().ok()?, entry.path()));
        let mut all: Vec<_> = entries.flatten().filter_map(age).collect();
        all.sort();
        for (_, path) in all.iter().take(all.len().saturating_sub(KEPT)) {
            let _ = fs::remove_file(path);
        }
    }

    fn find(&self, id: &str) -> Result<KeptPlan, Failure> {
        let missing = || {
            let text = format!("plan {id} was not made here, or long ago; `rugctl plan` makes it anew");
            Failure::new(Exit::NotFound, text)
        };
        let path = self.file(id).ok_or_else(missing)?;
        let text = read(&path)?.ok_or_else(missing)?;
        serde_json::from_str(&text).map_err(|e| Failure::failed(format!("{}: {e}", path.display())))
    }
}

fn read(path: &Path) -> Result<Option<String>, Failure> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Failure::failed(format!("{}: {e}", path.display()))),
    }
}

fn folder() -> Result<PlanFolder, Failure> {
    PlanFolder::of_user().ok_or_else(|| Failure::failed("neither XDG_CACHE_HOME nor HOME says where plans are kept"))
}

/// Runs the command.
pub(crate) async fn run(context: &CommandContext, args: &PlanArgs) -> Result<(), Failure> {
    match &args.command {
        Some(PlanCommand::Apply(args)) => apply(context, args).await,
        Some(PlanCommand::Replay(args)) => replay::run(context, args).await,
        None => plan(context, args).await,
    }
}

/// Workers whose weight is another one, and those whose weight is as published.
fn weights(args: &AssumedArgs) -> Result<(BTreeMap<String, u32>, Vec<String>), Failure> {
    let mut weight = BTreeMap::new();
    let mut weight_as_published = Vec::new();
    for (worker, value) in &args.weight {
        if value == "published" {
            weight_as_published.push(worker.clone());
        } else {
            let value = value.parse().map_err(|_| Failure::usage(format!("`{value}` is no weight of {worker}")))?;
            weight.insert(worker.clone(), value);
        }
    }
    Ok((weight, weight_as_published))
}

/// The same for a plan that is made here.
fn offline_assumptions(args: &AssumedArgs) -> Result<offline::Assumed, Failure> {
    let (weight, weight_as_published) = weights(args)?;
    // As names are given: a bare one is of the tenant that the flag names.
    let full = |name: &str| match &args.tenant.tenant {
        Some(tenant) if !name.contains('/') => format!("{tenant}/{name}"),
        _ => name.to_owned(),
    };
    let pin = |(name, worker): &(String, String)| {
        (full(name), worker.trim_end_matches('!').to_owned(), worker.ends_with('!'))
    };
    let others = v1::PlanAssumptions {
        leave: args.leave.clone(),
        lost_zones: args.lose_zone.clone(),
        join: args.join.clone(),
        uncordon: args.uncordon.clone(),
        undrain: args.undrain.clone(),
        weight_as_published,
        cordon: args.cordon.clone(),
        drain: args.drain.clone(),
        weight: weight.into_iter().collect(),
        strategy: args.strategy.clone().unwrap_or_default(),
        band: args.band,
        spread: args.spread.clone().unwrap_or_default(),
        ..v1::PlanAssumptions::default()
    };
    Ok(offline::Assumed {
        others,
        pin: args.pin.iter().map(pin).collect(),
        unpin: args.unpin.iter().map(|name| full(name)).collect(),
    })
}

async fn assumptions(context: &CommandContext, args: &AssumedArgs) -> Result<v1::PlanAssumptions, Failure> {
    let tenant = args.tenant.tenant.as_ref();
    let (weight, weight_as_published) = weights(args)?;
    let mut pin = Vec::new();
    for (name, worker) in &args.pin {
        let appliance = Some(by_id(&context.find(name, tenant).await?.id));
        let strict = worker.ends_with('!');
        pin.push(AssumedPin { appliance, worker: worker.trim_end_matches('!').to_owned(), strict });
    }
    let mut unpin = Vec::new();
    for name in &args.unpin {
        unpin.push(by_id(&context.find(name, tenant).await?.id));
    }
    Ok(v1::PlanAssumptions {
        leave: args.leave.clone(),
        lost_zones: args.lose_zone.clone(),
        join: args.join.clone(),
        uncordon: args.uncordon.clone(),
        undrain: args.undrain.clone(),
        weight_as_published,
        unpin,
        cordon: args.cordon.clone(),
        drain: args.drain.clone(),
        weight: weight.into_iter().collect(),
        pin,
        strategy: args.strategy.clone().unwrap_or_default(),
        band: args.band,
        spread: args.spread.clone().unwrap_or_default(),
        undo: args.undo.clone().unwrap_or_default(),
    })
}

async fn plan(context: &CommandContext, args: &PlanArgs) -> Result<(), Failure> {
    if let Some(path) = &args.from {
        let dump = Dump::read(path)?;
        let plan = offline::plan(&dump, &offline_assumptions(&args.assumed)?)?;
        return print(context, &plan, args.all || context.ui.format.is_structured());
    }
    let assumed = assumptions(context, &args.assumed).await?;
    show(context, assumed, args.all).await.map(drop)
}

/// What a rebalance moved goes back, once that is confirmed.
pub(crate) async fn undo(context: &CommandContext, id: &str, reason: &str, yes: bool) -> Result<(), Failure> {
    let reason = match reason {
        "" => undo_reason(id),
        reason => format!("{}: {reason}", undo_reason(id)),
    };
    let mut tries = 1;
    loop {
        let assumed = v1::PlanAssumptions { undo: id.to_owned(), ..v1::PlanAssumptions::default() };
        let plan = show(context, assumed, false).await?;
        if !plan.not_appliable.is_empty() {
            return Err(Failure::failed(format!("{id} cannot be undone: {}", one_line(&plan.not_appliable))));
        }
        match apply(context, &ApplyPlanArgs { id: plan.id, force: false, reason: reason.clone(), yes }).await {
            // Something moved in between. Whoever did not look at the plan takes the next one as well.
            Err(failure) if failure.exit == Exit::Conflict && yes && tries < UNDO_TRIES => tries += 1,
            Err(failure) => return Err(failure),
            Ok(()) => break,
        }
    }
    let paused = context.client.status().await?.paused.is_some();
    if paused {
        context.ui.note("moves are paused: what goes back does so after `rugctl placement resume`");
    }
    Ok(())
}

/// Shows what would change, and keeps it.
async fn show(context: &CommandContext, assumed: v1::PlanAssumptions, all: bool) -> Result<v1::PlacementPlan, Failure> {
    let everything = all || context.ui.format.is_structured();
    let mut request =
        v1::PlanRequest { assumptions: Some(assumed.clone()), page_size: PAGE, page_token: String::new() };
    let mut plan = context.client.plan(request.clone()).await?;
    while everything && !plan.next_page_token.is_empty() {
        request.page_token.clone_from(&plan.next_page_token);
        let more = context.client.plan(request.clone()).await?;
        plan.r#move.extend(more.r#move);
        plan.next_page_token = more.next_page_token;
    }
    if plan.not_appliable.is_empty() {
        folder()?.keep(&KeptPlan::of(&plan, &assumed))?;
    }
    print(context, &plan, everything)?;
    Ok(plan)
}

/// Prints a plan, with all moves that it has or the first of them.
fn print(context: &CommandContext, plan: &v1::PlacementPlan, everything: bool) -> Result<(), Failure> {
    if context.ui.format.is_structured() {
        return context.ui.print_value(&PlanValue::from(plan));
    }
    let mut text = describe(plan);
    for note in &plan.notes {
        let _ = writeln!(text, "{:<14}{}", "Note", one_line(note));
    }
    let moves = moves(plan, if everything { u64::MAX } else { SHOWN });
    if plan.moves > 0 {
        let _ = writeln!(text, "\n{}", context.ui.table_text(&moves, 0));
        let rest = plan.moves.saturating_sub(SHOWN);
        if !everything && rest > 0 {
            let _ = writeln!(text, "and {}: --all lists them", count(rest, "move"));
        }
    }
    let loads = loads(plan);
    if !plan.loads.is_empty() {
        let _ = writeln!(text, "\n{}", context.ui.table_text(&loads, 0));
    }
    context.ui.print(&text)
}

async fn apply(context: &CommandContext, args: &ApplyPlanArgs) -> Result<(), Failure> {
    let kept = folder()?.find(&args.id)?;
    let (cluster, context) = &context.identified().await?;
    confirm(
        &format!("apply plan {} to {cluster}, with {}?", kept.id, count(kept.moves, "move")),
        Extent::Named,
        args.yes,
    )
    .await?;
    let request = v1::ApplyPlanRequest {
        assumptions: Some(kept.assumptions()),
        id: kept.id.clone(),
        version: kept.version.clone(),
        force: args.force,
        reason: args.reason.clone(),
    };
    context.client.apply_plan(request).await?;
    context.ui.print(&format!(
        "plan {} is applied: its orders are in force, {}",
        kept.id,
        count(kept.moves, "move follows")
    ))
}

/// What a plan comes to, in lines.
fn describe(plan: &v1::PlacementPlan) -> String {
    let mut text = String::new();
    let duration = |d: &Option<prost_types::Duration>| {
        d.as_ref()
            .and_then(|d| Duration::try_from(*d).ok())
            .map(|d| format!("{:.1}s", d.as_secs_f64()))
            .unwrap_or_default()
    };
    let mut line = |name: &str, value: &str| {
        let _ = writeln!(text, "{name:<14}{value}");
    };
    line("Plan", &format!("{} of table version {}", plan.id, plan.version));
    line("Moves", &format!("{}, {} of them from one owner to another", plan.moves, plan.hand_offs));
    if plan.moves > 0 {
        let basis = match plan.measured {
            0 => format!("a hand-off is taken to last {}", seconds(plan.hand_off.as_ref())),
            n => format!("the last {} took {} each", count(n, "hand-off"), seconds(plan.hand_off.as_ref())),
        };
        line("Takes", &format!("about {} ({basis})", duration(&plan.duration)));
        let mut tenants: Vec<_> = plan.tenants.iter().collect();
        tenants.sort_by(|a, b| b.1.cmp(a.1).then(a.0.cmp(b.0)));
        let named: Vec<_> = tenants.iter().take(10).map(|(name, n)| format!("{} {n}", one_line(name))).collect();
        let more = tenants.len().saturating_sub(named.len());
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        line("Tenants", &(named.join(", ") + &more));
    }
    if plan.uneven_before + plan.uneven_after > 0 {
        let value =
            format!("{} not even over them, {} afterwards", count(plan.uneven_before, "tenant"), plan.uneven_after);
        line("Zones", &value);
    }
    let already = plan.unplaced.iter().filter(|unplaced| unplaced.already).count() as u64;
    if plan.unplaced_count > 0 {
        let known = if already > 0 { format!(", {already} of them already") } else { String::new() };
        line("Unplaced", &format!("{} that no worker can take{known}", count(plan.unplaced_count, "appliance")));
        for unplaced in plan.unplaced.iter().filter(|unplaced| !unplaced.already).take(10) {
            line("", &format!("{}/{}: {}", unplaced.tenant, unplaced.name, one_line(&unplaced.reason)));
        }
    }
    match plan.not_appliable.as_str() {
        "" => line("Apply", &format!("rugctl plan apply {}", plan.id)),
        why => line("Apply", &format!("not possible: {}", one_line(why))),
    }
    text
}

/// A short time: seconds, or milliseconds where that is less than one.
fn seconds(duration: Option<&prost_types::Duration>) -> String {
    let duration = duration.and_then(|d| Duration::try_from(*d).ok()).unwrap_or_default();
    if duration < Duration::from_secs(1) {
        format!("{}ms", duration.as_millis())
    } else {
        format!("{:.1}s", duration.as_secs_f64())
    }
}

fn moves(plan: &v1::PlacementPlan, most: u64) -> TextTable {
    let mut table = TextTable::new(&["APPLIANCE", "FROM", "TO", "WHY"]).with_prose(&["WHY"]);
    for planned in plan.r#move.iter().take(usize::try_from(most).unwrap_or(usize::MAX)) {
        let name = format!("{}/{}", planned.tenant, planned.name);
        let name = if planned.name.is_empty() { planned.appliance.clone() } else { name };
        table.row(
            [name, planned.from.clone(), planned.to.clone(), planned.reason.clone()].map(|text| (text, Tone::Plain)),
        );
    }
    table
}

fn loads(plan: &v1::PlacementPlan) -> TextTable {
    let mut table = TextTable::new(&["WORKER", "BEFORE", "AFTER"]);
    for load in &plan.loads {
        let tone = if load.before == load.after { Tone::Plain } else { Tone::Busy };
        table.row([
            (load.worker.clone(), Tone::Plain),
            (load.before.to_string(), Tone::Plain),
            (load.after.to_string(), tone),
        ]);
    }
    table
}

/// A plan as JSON or YAML.
#[derive(Debug, Serialize)]
struct PlanValue {
    id: String,
    version: String,
    moves: u64,
    hand_offs: u64,
    seconds: f64,
    hand_off_seconds: f64,
    measured: u64,
    tenants: BTreeMap<String, u64>,
    loads: BTreeMap<String, LoadValue>,
    uneven_tenants: LoadValue,
    unplaced_count: u64,
    unplaced: Vec<UnplacedValue>,
    #[serde(skip_serializing_if = "String::is_empty")]
    not_appliable: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    notes: Vec<String>,
    r#move: Vec<MoveValue>,
}

#[derive(Debug, Serialize)]
struct LoadValue {
    before: u64,
    after: u64,
}

#[derive(Debug, Serialize)]
struct UnplacedValue {
    appliance: String,
    tenant: String,
    name: String,
    reason: String,
    already: bool,
}

#[derive(Debug, Serialize)]
struct MoveValue {
    appliance: String,
    tenant: String,
    name: String,
    from: String,
    to: String,
    reason: String,
}

impl From<&v1::PlacementPlan> for PlanValue {
    fn from(plan: &v1::PlacementPlan) -> Self {
        let p = plan.clone();
        let seconds = |d: Option<prost_types::Duration>| {
            d.and_then(|d| Duration::try_from(d).ok()).unwrap_or_default().as_secs_f64()
        };
        let load = |l: v1::placement_plan::LoadChange| (l.worker, LoadValue { before: l.before, after: l.after });
        let unplaced = |u: v1::placement_plan::PlannedUnplaced| UnplacedValue {
            appliance: u.appliance,
            tenant: u.tenant,
            name: u.name,
            reason: u.reason,
            already: u.already,
        };
        let planned = |m: v1::placement_plan::PlannedMove| MoveValue {
            appliance: m.appliance,
            tenant: m.tenant,
            name: m.name,
            from: m.from,
            to: m.to,
            reason: m.reason,
        };
        Self {
            id: p.id,
            version: p.version,
            moves: p.moves,
            hand_offs: p.hand_offs,
            seconds: seconds(p.duration),
            hand_off_seconds: seconds(p.hand_off),
            measured: p.measured,
            tenants: p.tenants.into_iter().collect(),
            loads: p.loads.into_iter().map(load).collect(),
            uneven_tenants: LoadValue { before: p.uneven_before, after: p.uneven_after },
            unplaced_count: p.unplaced_count,
            unplaced: p.unplaced.into_iter().map(unplaced).collect(),
            not_appliable: p.not_appliable,
            notes: p.notes,
            r#move: p.r#move.into_iter().map(planned).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drained() -> (v1::PlacementPlan, v1::PlanAssumptions) {
        let pin = AssumedPin { appliance: Some(by_id("6f1c")), worker: "w2".into(), strict: true };
        let assumed = v1::PlanAssumptions {
            drain: vec!["w1".into()],
            weight: [("w3".to_owned(), 2)].into(),
            pin: vec![pin],
            unpin: vec![by_id("7f1c")],
            ..v1::PlanAssumptions::default()
        };
        let second = Some(prost_types::Duration { seconds: 1, nanos: 0 });
        let plan = v1::PlacementPlan {
            id: "p0123456789abcdef".into(),
            version: "t1/r9".into(),
            moves: 3,
            hand_offs: 2,
            tenants: [("demo".to_owned(), 3)].into(),
            duration: second,
            hand_off: Some(prost_types::Duration { seconds: 0, nanos: 12_000_000 }),
            measured: 40,
            ..v1::PlacementPlan::default()
        };
        (plan, assumed)
    }

    #[test]
    fn what_a_plan_was_made_of_is_kept_and_found() {
        let dir = tempfile::tempdir().expect("a folder");
        let folder = PlanFolder(dir.path().join("plans"));
        let (plan, assumed) = drained();
        folder.keep(&KeptPlan::of(&plan, &assumed)).expect("kept");
        let kept = folder.find(&plan.id).expect("found");
        assert_eq!((kept.version.as_str(), kept.moves), ("t1/r9", 3));
        assert_eq!(kept.assumptions(), assumed);
        for odd in ["p0123456789abcdee", "../p0123456789abcd", ""] {
            assert_eq!(folder.find(odd).expect_err("unknown").exit, Exit::NotFound, "{odd}");
        }
        for n in 0..KEPT {
            folder.keep(&KeptPlan { id: format!("p{n:016x}"), ..KeptPlan::default() }).expect("kept");
        }
        assert_eq!(fs::read_dir(&folder.0).expect("it is there").count(), KEPT);
    }

    #[test]
    fn plans_are_kept_in_the_cache_folder() {
        let of = |cache: Option<&str>, home: Option<&str>| {
            PlanFolder::of(cache.map(OsStr::new), home.map(OsStr::new)).map(|f| f.0)
        };
        assert_eq!(of(Some("/c"), Some("/h")), Some("/c/rug/plans".into()));
        assert_eq!(of(Some("c"), Some("/h")), Some("/h/.cache/rug/plans".into()));
        assert_eq!(of(None, None), None);
    }

    #[test]
    fn a_plan_is_described_with_how_long_it_takes_and_how_to_apply_it() {
        let (plan, _) = drained();
        assert_eq!(
            describe(&plan),
            "Plan          p0123456789abcdef of table version t1/r9\n\
             Moves         3, 2 of them from one owner to another\n\
             Takes         about 1.0s (the last 40 hand-offs took 12ms each)\n\
             Tenants       demo 3\n\
             Apply         rugctl plan apply p0123456789abcdef\n"
        );
        let joined = v1::PlacementPlan {
            not_appliable: "workers that join are no orders".into(),
            ..v1::PlacementPlan::default()
        };
        assert!(describe(&joined).ends_with("Apply         not possible: workers that join are no orders\n"));
    }

    #[test]
    fn workers_that_join_are_read() {
        let found = joiner("w9,weight=2,zone=b,driver=process,driver=simulated").expect("in order");
        assert_eq!((found.id.as_str(), found.weight, found.zone.as_str(), found.drivers.len()), ("w9", 2, "b", 2));
        assert!(joiner("w9,size=2").is_err() && joiner("w9,weight=x").is_err() && pair("w1").is_err());
    }
}
