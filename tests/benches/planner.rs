//! The planner at the size of its bounds, beside python-tooz with a full recompute in the same run.
//!
//! `cargo bench -p tests --bench planner -- [--appliances N] [--workers N] [--rounds N] [--tenants N] [--zones N] [--without-python]`
//! Times are wall clock, medians over the rounds; each round has another worker join or leave.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use common::appliance::Name;
use common::driver::{DriverCapabilities, DriverName};
use common::kind::KindName;
use common::{ApplianceId, Term, WorkerId};
use coordinator_core::planner::{Assumptions, Config, Needs, Plan, Planner, PlannerMember, Spread, Strategy};
use coordinator_core::slot::Slot;
use serde_json::Value;
use servers::python::Python;
use uuid::Uuid;

struct Options {
    appliances: u32,
    workers: usize,
    rounds: usize,
    tenants: u32,
    zones: usize,
    python: bool,
}

fn options() -> Result<Options> {
    let mut options =
        Options { appliances: 1_000_000, workers: 100, rounds: 21, tenants: 10_000, zones: 3, python: true };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut number = || -> Result<u32> {
            let value = arguments.next().with_context(|| format!("{argument} needs a number"))?;
            let number = value.parse().with_context(|| format!("{argument} {value}"))?;
            ensure!(number > 0, "{argument} must be at least 1");
            Ok(number)
        };
        match argument.as_str() {
            "--appliances" => options.appliances = number()?,
            "--workers" => options.workers = number()? as usize,
            "--rounds" => options.rounds = number()? as usize,
            "--tenants" => options.tenants = number()?,
            "--zones" => options.zones = number()? as usize,
            "--without-python" => options.python = false,
            // What `cargo bench` adds.
            "--bench" => {}
            other => bail!("unknown argument {other}"),
        }
    }
    Ok(options)
}

fn main() -> Result<()> {
    let options = options()?;
    let Options { appliances, workers, rounds, tenants, zones, .. } = options;
    println!("{appliances} appliances of {tenants} tenants, {workers} workers in {zones} zones, {rounds} rounds");
    let mut join = Vec::new();
    let policies =
        [(Strategy::Ring, Spread::None), (Strategy::Bounded, Spread::None), (Strategy::Bounded, Spread::Tenant)];
    for (strategy, spread) in policies {
        join.push((strategy, spread, measure(&options, Config { strategy, spread, ..Config::default() })?));
    }
    if options.python {
        let (seconds, moved) = recompute_by_tooz(&options)?;
        println!("\npython-tooz, full recompute of a join: {seconds:.2} s, {moved} keys moved");
        for (strategy, spread, median) in join {
            println!("  {strategy:?}, spread {}: {:.0} times as fast", spread.name(), seconds / median.as_secs_f64());
        }
    }
    Ok(())
}

fn fleet(options: &Options, workers: impl Iterator<Item = usize>) -> Vec<PlannerMember> {
    let member = |n| PlannerMember {
        id: WorkerId::new(&format!("rug-host-{n:04}.example")).expect("a valid name"),
        weight: 1,
        published_weight: 1,
        zone: format!("zone-{}", n % options.zones),
        host: format!("host-{n}"),
        drivers: [(DriverName::simulated(), DriverCapabilities::of_all_kinds(None))].into(),
        connected: true,
        draining: false,
        drained: false,
        cordoned: false,
    };
    workers.map(member).collect()
}

fn key(slot: u32) -> String {
    Uuid::from_u128(slot.into()).as_hyphenated().to_string()
}

fn create(planner: &mut Planner, slot: u32, needs: &Needs, tenants: &[Name]) {
    planner.insert(Slot(slot), ApplianceId::from_u128(slot.into()), &key(slot), needs.clone(), None, None);
    planner.set_tenant(Slot(slot), Some(&tenants[slot as usize % tenants.len()]));
}

/// The plan for the members as they are, as the leader makes it.
fn propose(planner: &mut Planner) -> Result<Plan> {
    let plan = planner.propose(&Assumptions::default());
    planner.adopt(&plan)?;
    Ok(plan)
}

fn carry_out(planner: &mut Planner, plan: &Plan) {
    for m in plan.moves() {
        let slot = Slot(m.appliance.uuid().as_u128() as u32);
        planner.set_owner(slot, Some(m.to), None);
    }
}

/// Prints one policy; the answer is the median of a join.
fn measure(options: &Options, config: Config) -> Result<Duration> {
    let Config { strategy, spread, .. } = config;
    let tenants: Vec<Name> =
        (0..options.tenants).map(|n| Name::new(&format!("tenant-{n}"))).collect::<Result<_, _>>()?;
    let needs = Needs { driver: DriverName::simulated(), kind: KindName::Custom, site: None };
    let mut planner = Planner::new(config, Term::new(1));
    planner.set_members(fleet(options, 0..options.workers));
    let started = Instant::now();
    for slot in 0..options.appliances {
        create(&mut planner, slot, &needs, &tenants);
    }
    let inserted = started.elapsed();
    let plan = propose(&mut planner)?;
    let planned = started.elapsed() - inserted;
    carry_out(&mut planner, &plan);
    ensure!(propose(&mut planner)?.is_empty(), "placing everything takes more than one plan");
    println!("\n{strategy:?}, spread {}: insert all {inserted:.2?}, first plan {planned:.2?}", spread.name());

    let workers = options.workers;
    let joins = |round: usize| fleet(options, (0..workers).chain([workers + round]));
    let median = rounds(options, &mut planner, "join", strategy, joins)?;
    let leaves = |round: usize| fleet(options, (0..workers).filter(move |n| *n != round % workers));
    rounds(options, &mut planner, "leave", strategy, leaves)?;

    let created = 3_000;
    let started = Instant::now();
    for slot in options.appliances..options.appliances + created {
        create(&mut planner, slot, &needs, &tenants);
        let plan = propose(&mut planner)?;
        carry_out(&mut planner, &plan);
    }
    println!("  create one by one, each with a plan of its own: {:.1?} each", started.elapsed() / created);
    Ok(median)
}

/// Changes the members, plans, and goes back without having moved anything, once per round.
fn rounds(
    options: &Options,
    planner: &mut Planner,
    what: &str,
    strategy: Strategy,
    members: impl Fn(usize) -> Vec<PlannerMember>,
) -> Result<Duration> {
    let (mut times, mut moves) = (Vec::new(), Vec::new());
    for round in 0..options.rounds {
        let new = members(round);
        let started = Instant::now();
        planner.set_members(new);
        let told = started.elapsed();
        let plan = propose(planner)?;
        times.push((started.elapsed(), told));
        let least = match strategy {
            Strategy::Bounded => least_in_band(options, planner, Config::default().band),
            // Comparing a million owners takes a while; one round of it tells.
            Strategy::Ring if round == 0 => least_on_ring(options, planner, &fleet(options, 0..options.workers)),
            Strategy::Ring => plan.moves().len() as u64,
        };
        ensure!(plan.moves().len() as u64 == least, "{what}: {} moves where {least} are enough", plan.moves().len());
        ensure!(plan.unplaced.is_empty() && plan.relaxed.is_empty(), "{what}: not everything has its place");
        moves.push(plan.moves().len());
        planner.set_members(fleet(options, 0..options.workers));
        ensure!(propose(planner)?.is_empty(), "{what}: going back moves something");
    }
    times.sort_unstable();
    moves.sort_unstable();
    let (median, told) = times[times.len() / 2];
    println!(
        "  {what}: median {median:.2?}, {told:.2?} of it for the new ring (fastest {:.2?}, slowest {:.2?}); {} moves (median), the least possible in every round",
        times[0].0,
        times[times.len() - 1].0,
        moves[moves.len() / 2],
    );
    Ok(median)
}

/// `orphans + max(sum of excess over the band, sum of deficit under it - orphans)`.
fn least_in_band(options: &Options, planner: &Planner, band: f64) -> u64 {
    let loads: Vec<u64> = planner.members().iter().map(|m| planner.load(&m.id)).collect();
    let orphans = u64::from(options.appliances) - loads.iter().sum::<u64>();
    let fair = f64::from(options.appliances) / loads.len() as f64;
    let (floor, ceiling) = ((fair / band).floor() as u64, (fair * band).ceil() as u64);
    let excess: u64 = loads.iter().map(|load| load.saturating_sub(ceiling)).sum();
    let deficit: u64 = loads.iter().map(|load| floor.saturating_sub(*load)).sum();
    orphans + excess.max(deficit.saturating_sub(orphans))
}

/// Keys with another owner on the ring than before.
fn least_on_ring(options: &Options, planner: &Planner, before: &[PlannerMember]) -> u64 {
    let old = common::ring::Ring::build(before.iter().map(|m| (m.id.clone(), m.weight)));
    let moved = |slot: &u32| old.owner(&key(*slot)) != planner.ring().owner(&key(*slot));
    (0..options.appliances).filter(moved).count() as u64
}

fn recompute_by_tooz(options: &Options) -> Result<(f64, u64)> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let answer = runtime.block_on(async {
        let python = Python::prepare(env!("CARGO_TARGET_TMPDIR"));
        let python = python.await.context("--without-python leaves the comparison out")?;
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/full_recompute.py");
        let arguments = [script, &options.appliances.to_string(), &options.workers.to_string()];
        python.run(&arguments, "", Duration::from_secs(1800)).await
    })?;
    let answer: Value = serde_json::from_str(&answer)?;
    let seconds = answer["seconds"].as_f64().context("seconds")?;
    Ok((seconds, answer["moved"].as_u64().context("moved")?))
}
