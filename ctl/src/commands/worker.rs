//! `rugctl worker`: list, show, watch and evict workers, and what operators order about them.

use std::fmt::Write as _;
use std::time::{Duration, SystemTime};

use clap::Subcommand;
use proto::admin::v1;
use tokio::time::{Instant, sleep};
use tonic::Code;

use crate::commands::orders::{DrainArgs, OrderArgs, WeightArgs};
use crate::commands::{CommandContext, Extent, confirm, orders, watch, why};
use crate::complete;
use crate::document::view;
use crate::error::Failure;
use crate::output::{OutputFormat, TextTable, Tone, Ui, age, count, moment, view as shown};
use crate::text::one_line;

/// How long `forget` waits for the end of a lease (`--timeout`), and how often it looks.
const LEASE_WAIT: Duration = Duration::from_secs(10);
const LEASE_LOOK: Duration = Duration::from_millis(200);
/// How long a worker that has just ended may still look as if it ran.
const NOTICED: Duration = Duration::from_secs(1);

/// Commands.
#[derive(Debug, Subcommand)]
pub(crate) enum WorkerCommand {
    /// List all workers
    List {
        /// Print each change, one line each, until interrupted
        #[arg(short, long)]
        watch: bool,
    },
    /// Show one worker
    Get {
        /// Name of the worker
        #[arg(add = complete::workers())]
        name: String,
    },
    /// Explain why a worker has what it has, and what it gets and gives up next
    Explain {
        /// Name of the worker
        #[arg(add = complete::workers())]
        name: String,
    },
    /// Watch workers join, change and leave
    Watch,
    /// End a worker's lease: its appliances are given to others, and it rejoins with a new incarnation
    Evict {
        /// Name of the worker
        #[arg(add = complete::workers())]
        name: String,
        /// Reason, for the audit trail
        #[arg(long, default_value = "", hide_default_value = true)]
        reason: String,
        /// Do not ask for confirmation
        #[arg(short, long)]
        yes: bool,
    },
    /// Keep a worker from being given anything new; it keeps what it has, until `uncordon`
    Cordon(OrderArgs),
    /// Take a `cordon` back
    Uncordon(OrderArgs),
    /// Move everything away from a worker, until `undrain`; it stays a member, and stays drained over restarts
    Drain(DrainArgs),
    /// Take a `drain` back
    Undrain(OrderArgs),
    /// Give a worker another weight than it publishes
    Weight(WeightArgs),
    /// Stop listing and waiting for a worker that is lost or has left and does not come back
    Forget {
        /// Name of the worker
        #[arg(add = complete::workers())]
        name: String,
        /// Reason, for the audit trail
        #[arg(long, default_value = "", hide_default_value = true)]
        reason: String,
        /// Do not ask for confirmation
        #[arg(short, long)]
        yes: bool,
    },
}

/// Runs the command.
pub(crate) async fn run(context: &CommandContext, command: &WorkerCommand) -> Result<(), Failure> {
    match command {
        WorkerCommand::List { watch: true } => watch::workers(context).await,
        WorkerCommand::List { watch: false } => list(context).await,
        WorkerCommand::Get { name } => get(context, name).await,
        WorkerCommand::Explain { name } => why::worker(context, name).await,
        WorkerCommand::Watch => watch::workers(context).await,
        WorkerCommand::Forget { name, reason, yes } => forget(context, name, reason, *yes).await,
        WorkerCommand::Evict { name, reason, yes } => evict(context, name, reason, *yes).await,
        WorkerCommand::Cordon(args) => orders::cordon(context, args, true).await,
        WorkerCommand::Uncordon(args) => orders::cordon(context, args, false).await,
        WorkerCommand::Drain(args) => orders::drain(context, args).await,
        WorkerCommand::Undrain(args) => orders::undrain(context, args).await,
        WorkerCommand::Weight(args) => orders::weight(context, args).await,
    }
}

async fn evict(context: &CommandContext, name: &str, reason: &str, yes: bool) -> Result<(), Failure> {
    let (cluster, context) = &context.identified().await?;
    // Evicts the current incarnation only: a retried call must not evict the one that replaced it.
    let before = context.worker(name).await?;
    let question = format!("evict {} of {cluster}, which owns {}?", before.id, count(before.appliances, "appliance"));
    confirm(&question, Extent::Named, yes).await?;
    let request = v1::EvictWorkerRequest {
        id: before.id.clone(),
        reason: reason.to_owned(),
        incarnation: before.incarnation.clone(),
    };
    let after = context.client.evict(request).await?;
    if context.ui.format.is_structured() {
        return context.ui.print_value(&shown::Worker::from(&after));
    }
    let held = count(before.appliances, "appliance");
    context.ui.print(&format!("{} evicted; it owned {held}, which others take over once its lease has ended", after.id))
}

async fn forget(context: &CommandContext, name: &str, reason: &str, yes: bool) -> Result<(), Failure> {
    let (cluster, context) = &context.identified().await?;
    confirm(&format!("forget {name} of {cluster}, which does not come back?"), Extent::Named, yes).await?;
    let began = Instant::now();
    let deadline = began + context.timeout.unwrap_or(LEASE_WAIT);
    let mut told = false;
    while let Err(refused) = context.client.forget(name, reason).await {
        // The lease of one that was lost or evicted ends by itself; that of one that runs does not.
        if refused.code != Some(Code::FailedPrecondition) || Instant::now() >= deadline {
            return Err(refused);
        }
        let runs = context.client.worker(name).await?.health() == v1::Health::Healthy;
        if runs && began.elapsed() >= NOTICED {
            return Err(refused);
        }
        if !runs && !std::mem::replace(&mut told, true) {
            context.ui.note(&format!("{name} has a lease still: waiting for its end"));
        }
        sleep(LEASE_LOOK).await;
    }
    context.ui.print(&format!("{name} is forgotten"))
}

async fn list(context: &CommandContext) -> Result<(), Failure> {
    let mut workers = context.client.workers().await?;
    workers.sort_by(|a, b| a.id.cmp(&b.id));
    if context.ui.format.is_structured() {
        return context.ui.print_value(&workers.iter().map(shown::Worker::from).collect::<Vec<_>>());
    }
    if workers.is_empty() {
        context.ui.note("no workers");
        return Ok(());
    }
    context.ui.print_table(&table(&workers, context.ui.format == OutputFormat::Wide, SystemTime::now()))
}

/// Phases by number, most common first: `12 configured, 1 booting`.
pub(crate) fn phases(phases: &std::collections::HashMap<String, u64>) -> String {
    let mut each: Vec<_> = phases.iter().filter(|(_, n)| **n > 0).collect();
    each.sort_by(|a, b| b.1.cmp(a.1).then(a.0.cmp(b.0)));
    each.iter().map(|(name, n)| format!("{n} {}", name.to_lowercase())).collect::<Vec<_>>().join(", ")
}

fn table(workers: &[v1::Worker], wide: bool, now: SystemTime) -> TextTable {
    let mut header = vec!["NAME", "HEALTH", "APPLIANCES", "PHASES", "DRIVERS", "SEEN"];
    if wide {
        header.extend(["HOST", "ZONE", "WEIGHT", "MEMBER", "PID", "VERSION", "INCARNATION", "REASON"]);
    }
    let mut table = TextTable::new(&header).with_prose(&["PHASES", "REASON"]);
    for w in workers {
        let health = view::health(w.health());
        let states = [("drained", w.drained), ("draining", w.draining && !w.drained), ("cordoned", w.cordoned)];
        let state = states.iter().filter(|(_, is)| *is).fold(health.to_owned(), |text, (state, _)| text + ", " + state);
        let plain = |text: &str| (text.to_owned(), Tone::Plain);
        let mut row = vec![
            plain(&w.id),
            (state, Tone::of(health)),
            plain(&w.appliances.to_string()),
            plain(&phases(&w.phases)),
            plain(&w.drivers.join(",")),
            plain(&age(w.last_seen.as_ref(), now)),
        ];
        if wide {
            row.extend([
                plain(&w.host),
                plain(&w.zone),
                plain(&weight_of(w)),
                plain(if w.member { "yes" } else { "no" }),
                plain(&if w.pid == 0 { String::new() } else { w.pid.to_string() }),
                plain(&w.version),
                plain(&w.incarnation),
                plain(&w.reason),
            ]);
        }
        table.row(row);
    }
    table
}

async fn get(context: &CommandContext, name: &str) -> Result<(), Failure> {
    let w = context.worker(name).await?;
    if context.ui.format.is_structured() {
        return context.ui.print_value(&shown::Worker::from(&w));
    }
    context.ui.print(&description(&context.ui, &w, SystemTime::now()))
}

/// Everything about one worker.
pub(crate) fn description(ui: &Ui, w: &v1::Worker, now: SystemTime) -> String {
    let health = view::health(w.health());
    let mut text = String::new();
    let mut line = |name: &str, value: &str| {
        if !value.is_empty() {
            let _ = writeln!(text, "{name:<16}{value}");
        }
    };
    line("Name", &w.id);
    line("Health", &ui.paint(Tone::of(health), health));
    line("Reason", &one_line(&w.reason));
    line("Appliances", &w.appliances.to_string());
    line("Phases", &phases(&w.phases));
    line("Drivers", &w.drivers.join(", "));
    for offer in &w.offers {
        line("Driver", &format!("{}: {}", offer.name, capabilities(offer)));
    }
    for limited in &w.limited {
        line("Limited", &one_line(limited));
    }
    line("Weight", &weight_of(w));
    line("Member", if w.member { "yes" } else { "no: it is not in the ring and is given no appliances" });
    line("Draining", if w.draining { "yes" } else { "" });
    if w.drained && w.immovable > 0 {
        line("Stays", &format!("{} that no other worker can take", count(w.immovable, "appliance")));
    }
    for order in &w.orders {
        line("Order", &orders::describe(order, SystemTime::now()));
    }
    line("Host", &w.host);
    line("State dir", &w.state_dir);
    line("Zone", &w.zone);
    line("Pid", &if w.pid == 0 { String::new() } else { w.pid.to_string() });
    line("Version", &w.version);
    line("Incarnation", &w.incarnation);
    line("Seen", &w.last_seen.map(|t| format!("{} ({} ago)", moment(Some(t)), age(Some(&t), now))).unwrap_or_default());
    text
}

/// The weight in force, and the one that is published where that is another.
fn weight_of(w: &v1::Worker) -> String {
    match w.published_weight {
        published if published == 0 || published == w.weight => w.weight.to_string(),
        published => format!("{} (publishes {published})", w.weight),
    }
}

/// What a worker says about a driver, in one line.
fn capabilities(offer: &v1::DriverOffer) -> String {
    let mut parts =
        vec![format!("kinds {}", if offer.kinds.is_empty() { "none".into() } else { offer.kinds.join(", ") })];
    match offer.state_dir.as_deref() {
        Some("") => parts.push("bound to the host".to_owned()),
        Some(dir) if offer.site.is_empty() => parts.push(format!("bound to the host and {dir}")),
        Some(dir) => parts.push(format!("bound to {dir} (site {})", offer.site)),
        None => {}
    }
    if let Some(delay) = &offer.fence_delay {
        parts.push(format!("fence delay {}", view::duration(delay)));
    }
    if offer.plugs_ports {
        parts.push("plugs ports".to_owned());
    }
    if offer.judges {
        parts.push("judges specifications".to_owned());
    }
    if offer.logs {
        parts.push("keeps output".to_owned());
    }
    one_line(&parts.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_of_a_driver_fit_a_line() {
        let offer = v1::DriverOffer {
            name: "process".into(),
            state_dir: Some("/var/lib/rug".into()),
            kinds: vec!["loadbalancer".into(), "custom".into()],
            ..v1::DriverOffer::default()
        };
        assert_eq!(capabilities(&offer), "kinds loadbalancer, custom; bound to the host and /var/lib/rug");
        let offer = v1::DriverOffer { site: "0123456789abcdef0123456789abcdef".into(), ..offer };
        let text = "kinds loadbalancer, custom; bound to /var/lib/rug (site 0123456789abcdef0123456789abcdef)";
        assert_eq!(capabilities(&offer), text);
        let delay = Some(prost_types::Duration { seconds: 20, nanos: 0 });
        let offer =
            v1::DriverOffer { fence_delay: delay, plugs_ports: true, judges: true, ..v1::DriverOffer::default() };
        assert_eq!(capabilities(&offer), "kinds none; fence delay 20s; plugs ports; judges specifications");
    }

    #[test]
    fn the_table_of_workers_shows_their_appliances() {
        let worker = v1::Worker {
            id: "worker-1".into(),
            health: v1::Health::Healthy.into(),
            appliances: 11,
            phases: [("Configured".into(), 10), ("Booting".into(), 1), ("Up".into(), 0)].into(),
            drivers: vec!["process".into(), "simulated".into()],
            last_seen: Some(prost_types::Timestamp { seconds: 10, nanos: 0 }),
            ..v1::Worker::default()
        };
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(11);
        assert_eq!(
            table(&[worker], false, now).render(false),
            "NAME      HEALTH   APPLIANCES  PHASES                   DRIVERS            SEEN\n\
             worker-1  healthy  11          10 configured, 1 booting  process,simulated  1s"
                .replace("PHASES                   ", "PHASES                    ")
        );
    }
}
