//! What operators order about workers: `rugctl worker cordon`, `drain`, `weight`, and that they take it back.

use std::time::{Duration, SystemTime};

use clap::Args;
use proto::admin::v1;
use tokio::time::{Instant, sleep};

use crate::client::AdminClient;
use crate::commands::{CommandContext, Extent, confirm};
use crate::complete;
use crate::error::Failure;
use crate::output::{age, count, view as shown};
use crate::text::one_line;

/// How long `drain --wait` waits without `--timeout`: appliances give their owners up between two steps, and a step may take minutes.
const DRAIN_WAIT: Duration = Duration::from_secs(3600);
/// How often it looks.
const DRAIN_LOOK: Duration = Duration::from_millis(500);
/// Appliances that stay which are named.
const MAX_NAMED: usize = 10;

/// Arguments of an order about a worker.
#[derive(Args, Debug)]
pub(crate) struct OrderArgs {
    /// Name of the worker
    #[arg(add = complete::workers())]
    name: String,
    /// Reason, shown to other operators
    #[arg(long, default_value = "", hide_default_value = true)]
    reason: String,
}

/// Arguments of `drain`.
#[derive(Args, Debug)]
pub(crate) struct DrainArgs {
    #[command(flatten)]
    order: OrderArgs,
    /// Also if no other worker can take some of its appliances, which then stay with it
    #[arg(long)]
    force: bool,
    /// Wait until it has given up what others can take
    #[arg(long)]
    wait: bool,
    /// Do not ask for confirmation
    #[arg(short, long)]
    yes: bool,
}

/// Arguments of `weight`.
#[derive(Args, Debug)]
pub(crate) struct WeightArgs {
    #[command(flatten)]
    order: OrderArgs,
    /// Share of the appliances relative to others
    #[arg(value_parser = clap::value_parser!(u32).range(1..=1024), required_unless_present = "as_published")]
    weight: Option<u32>,
    /// Take the order back: the weight that it publishes counts again
    #[arg(long, conflicts_with = "weight")]
    as_published: bool,
}

/// Runs `cordon` and `uncordon`.
pub(crate) async fn cordon(context: &CommandContext, args: &OrderArgs, set: bool) -> Result<(), Failure> {
    let (id, reason) = (args.name.clone(), args.reason.clone());
    let after = if set {
        context.client.cordon(v1::CordonWorkerRequest { id, reason }).await?
    } else {
        context.client.uncordon(v1::UncordonWorkerRequest { id, reason }).await?
    };
    let held = count(after.appliances, "appliance");
    let text = if set {
        format!("{} is cordoned: it keeps {held} and is given nothing new", after.id)
    } else {
        format!("{} is not cordoned", after.id)
    };
    show(context, &after, &text)
}

/// Runs `undrain`.
pub(crate) async fn undrain(context: &CommandContext, args: &OrderArgs) -> Result<(), Failure> {
    let request = v1::UndrainWorkerRequest { id: args.name.clone(), reason: args.reason.clone() };
    let after = context.client.undrain(request).await?;
    let still = if after.draining { ", but drains by itself: it is about to stop" } else { "" };
    show(context, &after, &format!("{} is not drained by order any more{still}", after.id))
}

/// Runs `weight`.
pub(crate) async fn weight(context: &CommandContext, args: &WeightArgs) -> Result<(), Failure> {
    let OrderArgs { name, reason } = &args.order;
    let request = v1::SetWorkerWeightRequest { id: name.clone(), weight: args.weight, reason: reason.clone() };
    let after = context.client.set_weight(request).await?;
    let text = match args.weight {
        Some(weight) => format!("{} has weight {weight}; it publishes {}", after.id, after.published_weight),
        None => format!("{} has weight {}, as it publishes", after.id, after.published_weight),
    };
    show(context, &after, &text)
}

/// Runs `drain`.
pub(crate) async fn drain(context: &CommandContext, args: &DrainArgs) -> Result<(), Failure> {
    let (cluster, context) = &context.identified().await?;
    let OrderArgs { name, reason } = &args.order;
    let before = context.worker(name).await?;
    let held = count(before.appliances, "appliance");
    confirm(&format!("drain {} of {cluster}, which owns {held}?", before.id), Extent::Named, args.yes).await?;
    let request = v1::DrainWorkerRequest { id: before.id.clone(), reason: reason.clone(), force: args.force };
    let mut after = context.client.drain(request).await?;
    if args.wait {
        after = wait_drained(context, &after).await?;
    }
    let text = match (args.wait, after.appliances) {
        (_, 0) => format!("{} is drained: it owns nothing", after.id),
        (false, _) => format!("{} drains; it owns {held}, which others take over", after.id),
        (true, stay) => {
            let stay = count(stay, "appliance");
            let which = which_stay(&context.client, &after.id).await?;
            format!("{} is drained but for {stay} that no other worker can take: {which}", after.id)
        }
    };
    show(context, &after, &text)?;
    // Whoever goes on to switch it off has to know.
    let is_left = args.wait && after.appliances > 0 && !args.force;
    if is_left {
        Err(Failure::failed(format!("{} still owns what no other worker can take", after.id)))
    } else {
        Ok(())
    }
}

/// Waits until a worker owns nothing but what stays with it.
async fn wait_drained(context: &CommandContext, worker: &v1::Worker) -> Result<v1::Worker, Failure> {
    let deadline = Instant::now() + context.timeout.unwrap_or(DRAIN_WAIT);
    let most = worker.appliances;
    let bar = context.ui.bar(most);
    let (mut left, mut held_up) = (None, String::new());
    loop {
        let now = context.client.worker(&worker.id).await?;
        if !now.drained {
            return Err(Failure::failed(format!("{} was undrained by somebody", now.id)));
        }
        bar.set_position(most.saturating_sub(now.appliances));
        if !context.ui.progress && left.replace(now.appliances) != Some(now.appliances) {
            context.ui.note(&format!("{} owns {}", now.id, count(now.appliances, "appliance")));
        }
        if now.appliances <= now.immovable {
            bar.finish_and_clear();
            return Ok(now);
        }
        let waiting = one_line(&context.client.status().await?.waiting);
        if waiting != held_up {
            if !waiting.is_empty() {
                bar.suspend(|| context.ui.note(&format!("nothing moves: {waiting}")));
            }
            held_up = waiting;
        }
        if Instant::now() >= deadline {
            bar.finish_and_clear();
            let left = count(now.appliances, "appliance");
            return Err(Failure::failed(format!("{} still owns {left}; it goes on being drained", now.id)));
        }
        sleep(DRAIN_LOOK).await;
    }
}

/// Names of appliances that are with a worker.
async fn which_stay(client: &AdminClient, worker: &str) -> Result<String, Failure> {
    let filter = v1::ApplianceFilter { worker: worker.to_owned(), ..v1::ApplianceFilter::default() };
    let all = client.list(filter).await?;
    let names: Vec<_> = all.iter().take(MAX_NAMED).map(|a| format!("{}/{}", a.tenant, a.name)).collect();
    let more = all.len().saturating_sub(names.len());
    Ok(names.join(", ") + &if more > 0 { format!(" and {more} more") } else { String::new() })
}

fn show(context: &CommandContext, worker: &v1::Worker, text: &str) -> Result<(), Failure> {
    if context.ui.format.is_structured() {
        return context.ui.print_value(&shown::Worker::from(worker));
    }
    context.ui.print(text)
}

/// An order, with who gave it, when and why.
pub(crate) fn describe(order: &v1::WorkerOrder, now: SystemTime) -> String {
    use v1::worker_order::What;
    let what = match order.what() {
        What::Cordon => "cordoned".to_owned(),
        What::Drain => "drained".to_owned(),
        What::Weight => format!("weight {}", order.weight),
        What::Unspecified => "an order of a newer version".to_owned(),
    };
    format!("{what}: {}", why(&order.reason, &order.by, order.since.as_ref(), now))
}

/// Where an appliance is pinned, by whom and why.
pub(crate) fn describe_pin(pin: &v1::Pin, now: SystemTime) -> String {
    let alone = if pin.strict { " alone" } else { "" };
    format!("to {}{alone}: {}", one_line(&pin.worker), why(&pin.reason, &pin.by, pin.since.as_ref(), now))
}

fn why(reason: &str, by: &str, since: Option<&prost_types::Timestamp>, now: SystemTime) -> String {
    let reason = one_line(reason);
    let reason = if reason.is_empty() { "no reason given".to_owned() } else { reason };
    format!("{reason} (by {}, {} ago)", one_line(by), age(since, now))
}

/// All orders in force, one line for each worker.
pub(crate) fn summary(orders: &v1::Orders, now: SystemTime) -> Vec<String> {
    let mut lines: Vec<_> = orders
        .workers
        .iter()
        .map(|worker| {
            let orders: Vec<_> = worker.orders.iter().map(|order| describe(order, now)).collect();
            format!("{} {}", one_line(&worker.id), orders.join("; "))
        })
        .collect();
    let more = orders.worker_count.saturating_sub(orders.workers.len() as u64);
    if more > 0 {
        lines.push(format!("and {}", count(more, "worker")));
    }
    if orders.pins > 0 {
        lines.push(format!("{} pinned", count(orders.pins, "appliance")));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_are_shown_with_who_gave_them() {
        use v1::worker_order::What;
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(70);
        let since = Some(prost_types::Timestamp { seconds: 10, nanos: 0 });
        let order = |what: What, reason: &str| v1::WorkerOrder {
            what: what.into(),
            weight: 3,
            reason: reason.into(),
            since,
            by: "me".into(),
        };
        let workers = vec![v1::OrderedWorker {
            id: "w1".into(),
            orders: vec![order(What::Drain, "new disks"), order(What::Weight, "")],
        }];
        let orders = v1::Orders { workers, worker_count: 3, pins: 1 };
        assert_eq!(
            summary(&orders, now),
            [
                "w1 drained: new disks (by me, 1m ago); weight 3: no reason given (by me, 1m ago)",
                "and 2 workers",
                "1 appliance pinned"
            ]
        );
        let pin = v1::Pin { worker: "w1".into(), strict: true, reason: "licence".into(), since, by: "me".into() };
        assert_eq!(describe_pin(&pin, now), "to w1 alone: licence (by me, 1m ago)");
    }
}
