//! `rugctl plan replay`: the past once more, under other policies.
//!
//! Each rebalance of the history is planned again, from the owners that the policy itself had come to by then, with the members that were
//! there. What really happened is counted in the same way beside it. Owners at the begin are found backwards, from those at the end
//! through the moves that were made. Appliances are those of the file: what was removed since is in the account of what happened,
//! and in no other.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use clap::Args;
use common::driver::DriverOffers;
use common::{ApplianceId, WorkerId};
use coordinator_core::planner::{Assumptions, Config, PlannerMember, Spread, Strategy};
use coordinator_core::slot::Slot;
use serde::Serialize;

use crate::commands::{CommandContext, parse_duration};
use crate::dump::{Dump, DumpedAppliance, DumpedMember};
use crate::error::Failure;
use crate::output::{TextTable, Tone, count};

/// What a hand-off is taken to cost where none was measured.
const HAND_OFF: f64 = 10.0;

/// Arguments of `plan replay`.
#[derive(Args, Debug)]
pub(crate) struct ReplayArgs {
    /// A file of `rugctl cluster dump`; the server is asked when absent
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    from: Option<PathBuf>,
    /// Only what ended within this time
    #[arg(long, value_parser = parse_duration)]
    since: Option<Duration>,
    /// A width of the band to try; repeat for several
    #[arg(long)]
    band: Vec<f64>,
    /// Something else to be spread over zones; repeat for several
    #[arg(long, value_parser = ["none", "tenant"])]
    spread: Vec<String>,
    /// Also try the strategy `ring`
    #[arg(long)]
    ring: bool,
}

/// What the past comes to under a policy.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Account {
    policy: String,
    rebalances: u64,
    /// From one owner to another.
    hand_offs: u64,
    /// To what had lost its owner.
    orphans: u64,
    /// Most that any worker ever held of its fair share, after a rebalance.
    worst_load: f64,
    /// The mean of that over rebalances.
    mean_load: f64,
    /// Tenants of which one zone had at least two appliances more than another, after the last rebalance.
    uneven_tenants: u64,
    /// Time for which appliances had no owner, summed up.
    unowned_seconds: f64,
}

/// What was measured of hand-offs, and of what had lost its owner: milliseconds without an owner.
#[derive(Clone, Copy, Debug)]
struct Costs {
    hand_off: f64,
    orphan: f64,
}

/// Runs the command.
pub(crate) async fn run(context: &CommandContext, args: &ReplayArgs) -> Result<(), Failure> {
    let since = args.since.map(|since| SystemTime::now().checked_sub(since).unwrap_or(SystemTime::UNIX_EPOCH));
    let mut dump = match &args.from {
        Some(path) => Dump::read(path)?,
        None => Dump::take(&context.client, since).await?,
    };
    if let Some(since) = since.and_then(|since| since.duration_since(SystemTime::UNIX_EPOCH).ok()) {
        dump.rebalances.retain(|rebalance| u128::from(rebalance.end_ms) >= since.as_millis());
    }
    let started = std::time::Instant::now();
    let mut policies = vec![("as configured".to_owned(), dump.policy(None, None, None)?)];
    for band in &args.band {
        policies.push((format!("band {band}"), dump.policy(Some("bounded"), Some(*band), None)?));
    }
    for spread in &args.spread {
        policies.push((format!("spread {spread}"), dump.policy(Some("bounded"), None, Some(spread))?));
    }
    if args.ring {
        policies.push(("ring".to_owned(), dump.policy(Some("ring"), None, None)?));
    }
    let accounts = replay(&dump, &policies)?;
    if context.ui.format.is_structured() {
        return context.ui.print_value(&accounts);
    }
    let unknown = dump.rebalances.iter().filter(|rebalance| rebalance.members.is_empty()).count() as u64;
    if unknown > 0 {
        context.ui.note(&format!(
            "of {} it is not known who was there: they are in what happened alone",
            count(unknown, "rebalance")
        ));
    }
    context.ui.print_table(&table(&accounts))?;
    context.ui.note(&format!(
        "{} of {}, replayed in {:.1} s",
        count(dump.rebalances.len() as u64, "rebalance"),
        count(dump.appliances.len() as u64, "appliance"),
        started.elapsed().as_secs_f64()
    ));
    Ok(())
}

fn table(accounts: &[Account]) -> TextTable {
    let header = ["POLICY", "REBALANCES", "HAND-OFFS", "ORPHANS", "WORST LOAD", "MEAN LOAD", "UNEVEN", "UNOWNED"];
    let mut table = TextTable::new(&header);
    for account in accounts {
        let cells = [
            account.policy.clone(),
            account.rebalances.to_string(),
            account.hand_offs.to_string(),
            account.orphans.to_string(),
            format!("{:.2}", account.worst_load),
            format!("{:.2}", account.mean_load),
            account.uneven_tenants.to_string(),
            format!("{:.1}s", account.unowned_seconds),
        ];
        table.row(cells.map(|cell| (cell, Tone::Plain)));
    }
    table
}

/// What happened, and what would have under each policy.
fn replay(dump: &Dump, policies: &[(String, Config)]) -> Result<Vec<Account>, Failure> {
    let owners = at_the_begin(dump);
    let (mut happened, costs) = happened(dump, &owners);
    happened.uneven_tenants = uneven_at_the_end(dump)?;
    let mut accounts = vec![happened];
    for (name, policy) in policies {
        accounts.push(under(dump, &owners, name, *policy, costs)?);
    }
    Ok(accounts)
}

/// Tenants that were not even over the zones of those that were there in the last rebalance.
fn uneven_at_the_end(dump: &Dump) -> Result<u64, Failure> {
    let (mut planner, _) = dump.planner(dump.policy(None, None, None)?, DumpedAppliance::owner)?;
    let known = dump.rebalances.iter().rfind(|rebalance| !rebalance.members.is_empty());
    let Some(last) = known else { return Ok(0) };
    planner.set_members(members(dump, &last.members)?);
    Ok(planner.uneven_tenants())
}

/// Who had what before the first rebalance.
fn at_the_begin(dump: &Dump) -> HashMap<&str, WorkerId> {
    let mut owners: HashMap<&str, WorkerId> =
        dump.appliances.iter().filter_map(|it| Some((it.id.as_str(), it.owner()?))).collect();
    for made in dump.rebalances.iter().rev().flat_map(|rebalance| rebalance.moves.iter().rev()) {
        if let Ok(from) = WorkerId::new(&made.from) {
            owners.insert(made.appliance.as_str(), from);
        }
    }
    owners
}

/// How much of its fair share the fullest member holds.
fn fullest(members: &[DumpedMember], loads: &BTreeMap<&WorkerId, u64>) -> f64 {
    let takers: Vec<&DumpedMember> = members.iter().filter(|member| member.takes).collect();
    let weights: f64 = takers.iter().map(|member| f64::from(member.weight.max(1))).sum();
    let all: u64 = takers.iter().filter_map(|member| loads.get(&member.id)).sum();
    let share = |member: &&DumpedMember| {
        #[expect(clippy::cast_precision_loss, reason = "for people")]
        let (held, all) = (loads.get(&member.id).copied().unwrap_or_default() as f64, all as f64);
        held / (all * f64::from(member.weight.max(1)) / weights)
    };
    if all == 0 { 0.0 } else { takers.iter().map(share).fold(0.0, f64::max) }
}

fn loads<'a>(owners: impl Iterator<Item = &'a WorkerId>) -> BTreeMap<&'a WorkerId, u64> {
    let mut loads = BTreeMap::new();
    owners.for_each(|owner| *loads.entry(owner).or_default() += 1);
    loads
}

/// The account of what happened, as the history has it.
fn happened<'a>(dump: &'a Dump, begin: &HashMap<&'a str, WorkerId>) -> (Account, Costs) {
    let mut owners = begin.clone();
    let known: std::collections::HashSet<&str> = dump.appliances.iter().map(|it| it.id.as_str()).collect();
    let (mut hand_offs, mut orphans, mut unowned) = (0, 0, 0);
    let (mut hand_off_ms, mut orphan_ms) = (0, 0);
    let mut fullness = Fullness::default();
    for rebalance in &dump.rebalances {
        for made in &rebalance.moves {
            unowned += made.unowned_ms;
            if made.orphan {
                orphans += 1;
                orphan_ms += made.unowned_ms;
            } else {
                hand_offs += 1;
                hand_off_ms += made.unowned_ms;
            }
            owners.insert(made.appliance.as_str(), made.to.clone());
        }
        if !rebalance.members.is_empty() {
            let held = owners.iter().filter(|(id, _)| known.contains(**id)).map(|(_, owner)| owner);
            fullness.add(fullest(&rebalance.members, &loads(held)));
        }
    }
    #[expect(clippy::cast_precision_loss, reason = "for people")]
    let mean = |sum: u64, count: u64, none: f64| if count == 0 { none } else { sum as f64 / count as f64 };
    let hand_off = mean(hand_off_ms, hand_offs, HAND_OFF);
    let costs = Costs { hand_off, orphan: mean(orphan_ms, orphans, hand_off) };
    #[expect(clippy::cast_precision_loss, reason = "for people")]
    let unowned_seconds = unowned as f64 / 1_000.0;
    let (worst_load, mean_load) = fullness.take();
    let rebalances = dump.rebalances.len() as u64;
    let policy = "what happened".to_owned();
    (
        Account { policy, rebalances, hand_offs, orphans, worst_load, mean_load, uneven_tenants: 0, unowned_seconds },
        costs,
    )
}

/// How full the fullest member was, over rebalances.
#[derive(Debug, Default)]
struct Fullness {
    worst: f64,
    sum: f64,
    count: u32,
}

impl Fullness {
    fn add(&mut self, fullest: f64) {
        self.worst = self.worst.max(fullest);
        self.sum += fullest;
        self.count += 1;
    }

    fn take(&self) -> (f64, f64) {
        (self.worst, if self.count == 0 { 0.0 } else { self.sum / f64::from(self.count) })
    }
}

/// The account under a policy.
fn under<'a>(
    dump: &'a Dump,
    begin: &HashMap<&'a str, WorkerId>,
    name: &str,
    policy: Config,
    costs: Costs,
) -> Result<Account, Failure> {
    let (mut planner, places) = dump.planner(policy, |it| begin.get(it.id.as_str()).cloned())?;
    let mut owners: BTreeMap<ApplianceId, WorkerId> =
        places.iter().filter_map(|(id, (_, it))| Some((*id, begin.get(it.id.as_str())?.clone()))).collect();
    let (mut rebalances, mut hand_offs, mut orphans) = (0, 0, 0);
    let mut fullness = Fullness::default();
    for rebalance in dump.rebalances.iter().filter(|rebalance| !rebalance.members.is_empty()) {
        rebalances += 1;
        planner.set_members(members(dump, &rebalance.members)?);
        let there = |worker: &WorkerId| rebalance.members.iter().any(|member| member.id == *worker);
        // What a worker had that is gone has no owner.
        for (id, owner) in owners.iter().filter(|(_, owner)| !there(owner)) {
            planner.set_owner(places[id].0, None, Some(owner));
        }
        let plan = planner.propose(&Assumptions::default());
        let moves: Vec<(ApplianceId, bool, WorkerId)> =
            plan.moves().map(|planned| (planned.appliance, planned.from.is_some(), planned.to.clone())).collect();
        for (id, owned, to) in moves {
            let slot: Slot = places[&id].0;
            if owned && owners.get(&id).is_some_and(there) {
                hand_offs += 1;
            } else {
                orphans += 1;
            }
            planner.set_owner(slot, Some(&to), None);
            owners.insert(id, to);
        }
        // Under `ring` the load is whatever the ring makes it.
        fullness.add(fullest(&rebalance.members, &loads(owners.values())));
    }
    #[expect(clippy::cast_precision_loss, reason = "for people")]
    let unowned_seconds = (hand_offs as f64 * costs.hand_off + orphans as f64 * costs.orphan) / 1_000.0;
    let (worst_load, mean_load) = fullness.take();
    let shown = match policy.strategy {
        Strategy::Bounded if name == "as configured" && policy.spread != Spread::None => {
            format!("{name} (band {}, spread {})", policy.band, policy.spread.name())
        }
        Strategy::Bounded if name == "as configured" => format!("{name} (band {})", policy.band),
        Strategy::Ring if name == "as configured" => format!("{name} (ring)"),
        _ => name.to_owned(),
    };
    let uneven_tenants = if rebalances == 0 { 0 } else { planner.uneven_tenants() };
    Ok(Account {
        policy: shown,
        rebalances,
        hand_offs,
        orphans,
        worst_load,
        mean_load,
        uneven_tenants,
        unowned_seconds,
    })
}

/// The members as they were then.
fn members(dump: &Dump, then: &[DumpedMember]) -> Result<Vec<PlannerMember>, Failure> {
    let now: BTreeMap<WorkerId, PlannerMember> =
        dump.members()?.into_iter().map(|member| (member.id.clone(), member)).collect();
    let all: DriverOffers =
        now.values().flat_map(|member| member.drivers.iter().map(|(name, it)| (name.clone(), it.clone()))).collect();
    Ok(then.iter().map(|then| member(then, &now, &all)).collect())
}

/// A member as it was then; its drivers are those that it has now, or all there are where it is gone.
fn member(then: &DumpedMember, now: &BTreeMap<WorkerId, PlannerMember>, all: &DriverOffers) -> PlannerMember {
    let known = now.get(&then.id);
    PlannerMember {
        id: then.id.clone(),
        weight: then.weight,
        published_weight: then.weight,
        zone: then.zone.clone(),
        host: known.map_or_else(|| format!("(host of {})", then.id), |member| member.host.clone()),
        drivers: known.map_or_else(|| all.clone(), |member| member.drivers.clone()),
        connected: then.takes || then.gives_up,
        draining: then.gives_up,
        drained: false,
        cordoned: !then.takes && !then.gives_up,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two workers with 100 appliances between them, a third joins, and the first is lost.
    fn dump() -> Dump {
        let worker = |n: u32| {
            serde_json::json!({
                "id": format!("w{n}"), "weight": 1, "published_weight": 1, "connected": n != 1,
                "drivers": [{ "name": "simulated", "kinds": ["custom"] }],
            })
        };
        let id = |n: u32| format!("00000000-0000-4000-8000-{n:012x}");
        let owner = |n: u32| if n < 50 { "w3" } else { "w2" };
        let appliance = |n: u32| {
            serde_json::json!({
                "id": id(n), "tenant": "t", "name": format!("a{n}"), "key": id(n), "driver": "simulated",
                "kind": "custom", "owner": owner(n),
            })
        };
        let member = |n: u32| serde_json::json!({ "id": format!("w{n}"), "weight": 1, "takes": true });
        let made = |n: u32, from: &str, orphan: bool| {
            serde_json::json!({
                "appliance": id(n), "from": from, "to": owner(n), "orphan": orphan, "unowned_ms": if orphan { 400 } else { 10 },
            })
        };
        let joined: Vec<_> = (0..33).map(|n| made(n, "w1", false)).collect();
        let lost: Vec<_> = (33..50).map(|n| made(n, "w1", true)).collect();
        serde_json::from_value(serde_json::json!({
            "version": 1, "taken": "now", "strategy": "bounded", "band": 1.05,
            "workers": [worker(2), worker(3)],
            "appliances": (0..100).map(appliance).collect::<Vec<_>>(),
            "rebalances": [
                { "id": "r1-1", "cause": "joined: w3", "start_ms": 1000, "end_ms": 2000, "outcome": "completed",
                  "members": [member(1), member(2), member(3)], "moves": joined },
                { "id": "r1-2", "cause": "gone: w1", "start_ms": 5000, "end_ms": 5500, "outcome": "completed",
                  "members": [member(2), member(3)], "moves": lost },
            ],
        }))
        .expect("as it is written")
    }

    #[test]
    fn what_happened_is_accounted_for_as_the_history_has_it() {
        let dump = dump();
        let owners = at_the_begin(&dump);
        assert_eq!(owners.values().filter(|owner| owner.as_str() == "w1").count(), 50);
        let (happened, costs) = happened(&dump, &owners);
        assert_eq!((happened.rebalances, happened.hand_offs, happened.orphans), (2, 33, 17));
        assert!((happened.unowned_seconds - (33.0 * 0.01 + 17.0 * 0.4)).abs() < 1e-9, "{happened:?}");
        assert!((costs.hand_off - 10.0).abs() < 1e-9 && (costs.orphan - 400.0).abs() < 1e-9, "{costs:?}");
        assert!((happened.worst_load - 1.5).abs() < 1e-9, "the second kept all it had: {happened:?}");
    }

    #[test]
    fn other_policies_move_more_or_less_and_are_more_or_less_even() {
        let dump = dump();
        let policy = |strategy, band| dump.policy(Some(strategy), Some(band), None).expect("a policy");
        let policies = [
            ("tight".to_owned(), policy("bounded", 1.0)),
            ("wide".to_owned(), policy("bounded", 2.0)),
            ("ring".to_owned(), policy("ring", 1.05)),
        ];
        let accounts = replay(&dump, &policies).expect("it is replayed");
        let [happened, tight, wide, ring] = accounts.as_slice() else { panic!("{accounts:?}") };
        assert_eq!(happened.hand_offs, 33);
        assert!(tight.hand_offs > wide.hand_offs && tight.worst_load < wide.worst_load, "{tight:?} {wide:?}");
        assert!(tight.worst_load < 1.05, "{tight:?}");
        assert!(tight.orphans > 20 && ring.orphans > 0 && ring.rebalances == 2, "{tight:?} {ring:?}");
        assert!(dump.policy(Some("no"), None, None).is_err() && dump.policy(None, Some(0.5), None).is_err());
        assert!(dump.policy(None, None, Some("kind")).is_err());
    }

    #[test]
    fn a_spread_leaves_fewer_tenants_uneven_with_as_many_moves() {
        let mut dump = dump();
        for (n, appliance) in dump.appliances.iter_mut().enumerate() {
            appliance.tenant = format!("t{}", n % 20);
        }
        let zones = |id: &WorkerId| if id.as_str() == "w3" { "b" } else { "a" }.to_owned();
        for member in dump.rebalances.iter_mut().flat_map(|rebalance| &mut rebalance.members) {
            member.zone = zones(&member.id);
        }
        let policy = |spread| dump.policy(None, None, Some(spread)).expect("a policy");
        let policies = ["none", "tenant"].map(|spread| (spread.to_owned(), policy(spread)));
        let accounts = replay(&dump, &policies).expect("it is replayed");
        let [happened, none, tenant] = accounts.as_slice() else { panic!("{accounts:?}") };
        assert_eq!(happened.uneven_tenants, 0, "every second appliance of each was in each zone");
        assert!(tenant.uneven_tenants < none.uneven_tenants, "{tenant:?} {none:?}");
        assert_eq!(tenant.hand_offs, none.hand_offs);
    }
}
