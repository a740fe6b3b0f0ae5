//! Conversion between domain values and rows. Rows are checked as strictly as user input: one that breaks a rule is
//! [`Error::Corrupt`] with its key, never a partially parsed value.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use common::appliance::{Name, Spec};
use common::driver::{DriverCapabilities, DriverName, PreviousOffers};
use common::kind::KindName;
use common::manager::Manager;
use common::mode::{ModeRule, ModeScope};
use common::secret::LifeSeal;
use common::status::{InstanceStatus, Phase, Progress, Status};
use common::{ApplianceId, Generation, Incarnation, ModeId, RebalanceId, Term, WorkerId, text};
use coordinator_core::budget::{Budget, BudgetGroup, BudgetScope, MaxUnavailable};
use coordinator_core::grants::{Profile, StoredMember};
use coordinator_core::orders::{OrderOp, Pin};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::codec::{self, Odd, Packer, ROW_BYTES, Unpacker};
use super::entities::{
    appliances, budgets, debug_modes, events, members, moves, pauses, pins, progress, rebalance_members, rebalances,
    requests, statuses, worker_orders, workers,
};
use super::error::Error;
use crate::record::{
    AdoptionRecord, AuditEvent, MemberThen, MoveRecord, MoveTimes, NumberedEvent, OrderNote, OrderRecord, PauseRecord,
    RebalanceOutcome, RebalanceRecord, Record, RequestRecord,
};

/// Format of a row of moves.
const MOVES: u8 = 2;
/// The one of the version before, which knew no stages.
const MOVES_ONLY: u8 = 1;
const MOVE: u8 = 1;
const STAGED_MOVE: u8 = 2;
const ADOPTION: u8 = 3;

/// Nanoseconds since the Unix epoch; the ends of the range (the years 1677 and 2262) stand for anything beyond.
pub(super) fn nanos(time: SystemTime) -> i64 {
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => i64::try_from(after.as_nanos()).unwrap_or(i64::MAX),
        Err(before) => i64::try_from(before.duration().as_nanos()).map_or(i64::MIN, |n| -n),
    }
}

pub(super) fn time(nanos: i64) -> SystemTime {
    let distance = Duration::from_nanos(nanos.unsigned_abs());
    if nanos < 0 { UNIX_EPOCH - distance } else { UNIX_EPOCH + distance }
}

pub(super) fn json<T: Serialize>(value: &T) -> String {
    serde_json::to_string(value).expect("plain data with text keys always has a JSON form")
}

/// Most bytes of a free text in a row of the history or of a status.
const MAX_FREE_TEXT: usize = 64 * 1024;

/// Free text in a form that every database accepts.
pub(super) fn plain(free: &str) -> String {
    text::storable(free, MAX_FREE_TEXT)
}

/// Names the row in errors.
pub(super) struct RowName<'a> {
    pub(super) what: &'static str,
    pub(super) key: &'a dyn std::fmt::Display,
}

impl RowName<'_> {
    pub(super) fn corrupt(&self, reason: impl std::fmt::Display) -> Error {
        Error::Corrupt { what: self.what, key: self.key.to_string(), reason: reason.to_string() }
    }

    fn parse<T: FromStr<Err: std::fmt::Display>>(&self, column: &str, text: &str) -> Result<T, Error> {
        text.parse().map_err(|e: T::Err| self.corrupt(format_args!("{column}: {e}")))
    }

    fn json<T: DeserializeOwned>(&self, column: &str, text: &str) -> Result<T, Error> {
        serde_json::from_str(text).map_err(|e| self.corrupt(format_args!("{column}: {e}")))
    }
}

pub(super) fn from_record(record: &Record) -> appliances::Model {
    appliances::Model {
        id: record.id.uuid(),
        tenant: record.tenant.as_str().to_owned(),
        name: record.name.as_str().to_owned(),
        driver: record.driver.as_str().to_owned(),
        placement_key: record.placement_key.clone(),
        labels: json(&record.labels),
        spec: json(&record.spec),
        generation: record.generation.get().cast_signed(),
        written_term: record.written.get().cast_signed(),
        revision: record.revision.cast_signed(),
        deleting: record.deleting,
        managed_by: record.managed_by.as_ref().map_or_else(String::new, ToString::to_string),
        created_ns: nanos(record.created),
        updated_ns: nanos(record.updated),
    }
}

pub(super) fn to_record(row: appliances::Model) -> Result<Record, Error> {
    let at = RowName { what: "appliance", key: &row.id };
    let spec: Spec = at.json("spec", &row.spec)?;
    if let Some(violation) = spec.validate().first() {
        return Err(at.corrupt(violation));
    }
    Ok(Record {
        id: ApplianceId::new(row.id),
        tenant: at.parse::<Name>("tenant", &row.tenant)?,
        name: at.parse::<Name>("name", &row.name)?,
        driver: at.parse::<DriverName>("driver", &row.driver)?,
        labels: at.json::<BTreeMap<String, String>>("labels", &row.labels)?,
        spec,
        generation: Generation::new(row.generation.cast_unsigned()),
        written: Term::new(row.written_term.cast_unsigned()),
        revision: row.revision.cast_unsigned(),
        deleting: row.deleting,
        managed_by: match row.managed_by.as_str() {
            "" => None,
            source => Some(at.parse::<Manager>("managed_by", source)?),
        },
        created: time(row.created_ns),
        updated: time(row.updated_ns),
        placement_key: row.placement_key,
    })
}

pub(super) fn from_status(appliance: ApplianceId, status: &Status, seen: SystemTime) -> statuses::Model {
    statuses::Model {
        appliance: appliance.uuid(),
        phase: status.phase.name().to_owned(),
        observed_generation: status.observed_generation.get().cast_signed(),
        failed_boots: i64::from(status.failed_boots),
        instances: json(&status.instances),
        last_error: status.last_error.as_deref().map(plain),
        last_end: status.last_end.as_ref().map(json),
        time_ns: nanos(seen),
    }
}

pub(super) fn to_status(row: statuses::Model) -> Result<(ApplianceId, Status, SystemTime), Error> {
    let at = RowName { what: "status", key: &row.appliance };
    let phase = Phase::ALL.into_iter().find(|p| p.name() == row.phase);
    let status = Status {
        phase: phase.ok_or_else(|| at.corrupt(format_args!("phase `{}` is not known", row.phase)))?,
        observed_generation: Generation::new(row.observed_generation.cast_unsigned()),
        instances: at.json::<Vec<InstanceStatus>>("instances", &row.instances)?,
        failed_boots: u32::try_from(row.failed_boots).map_err(|e| at.corrupt(format_args!("failed_boots: {e}")))?,
        last_error: row.last_error,
        last_end: row.last_end.as_deref().map(|end| at.json("last_end", end)).transpose()?,
    };
    Ok((ApplianceId::new(row.appliance), status, time(row.time_ns)))
}

pub(super) fn from_progress(appliance: ApplianceId, progress: &Progress, fence_delay: Duration) -> progress::Model {
    progress::Model {
        appliance: appliance.uuid(),
        progress: json(progress),
        hold_ns: i64::try_from(fence_delay.as_nanos()).unwrap_or(i64::MAX),
    }
}

pub(super) fn to_progress(row: &progress::Model) -> Result<(ApplianceId, Progress, Duration), Error> {
    let at = RowName { what: "progress", key: &row.appliance };
    let fence_delay = u64::try_from(row.hold_ns).map_err(|e| at.corrupt(format_args!("hold_ns: {e}")))?;
    Ok((ApplianceId::new(row.appliance), at.json("progress", &row.progress)?, Duration::from_nanos(fence_delay)))
}

/// Stored form of a [`Profile`], and whether the member is only remembered. `state_dir`, `drivers` and `holds` are what a
/// coordinator of the version before reads, and cannot do without.
#[derive(Serialize, Deserialize)]
struct ProfileRow {
    weight: u32,
    zone: String,
    host: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    state_dir: String,
    drivers: BTreeSet<DriverName>,
    /// Absent in rows of the version before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    offers: Option<BTreeMap<DriverName, OfferRow>>,
    version: String,
    pid: u32,
    /// Absent in rows of the version before. What cannot be read is no process that anybody can watch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    process: Option<String>,
    lease: Duration,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    holds: BTreeMap<DriverName, Duration>,
    #[serde(default)]
    departed: bool,
    /// What the life is sealed with. Absent in rows of the version before, and of workers of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    seal: Option<String>,
}

/// Stored form of [`DriverCapabilities`].
#[derive(Serialize, Deserialize)]
struct OfferRow {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    state_dir: Option<String>,
    /// Absent in rows of the version before, and of workers of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    site: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    fence_delay: Option<Duration>,
    #[serde(default)]
    plugs_ports: bool,
    /// Absent in rows of the version before, and of drivers that do not.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    judges: bool,
    /// The same.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    logs: bool,
    /// As text: a newer version may have written kinds that this one does not know.
    kinds: Vec<String>,
}

fn from_offer((name, capabilities): (&DriverName, &DriverCapabilities)) -> (DriverName, OfferRow) {
    // What the configuration says of its hosts is asked anew with each `Hello`.
    let DriverCapabilities { state_dir, site, keeps_host: _, fence_delay, plugs_ports, judges, logs, kinds } =
        capabilities.clone();
    let kinds = kinds.iter().map(|kind| kind.as_str().to_owned()).collect();
    let site = site.map(|id| id.to_string());
    (name.clone(), OfferRow { state_dir, site, fence_delay, plugs_ports, judges, logs, kinds })
}

fn to_offer((name, row): (DriverName, OfferRow)) -> (DriverName, DriverCapabilities) {
    let OfferRow { state_dir, site, fence_delay, plugs_ports, judges, logs, kinds } = row;
    let kinds = kinds.iter().filter_map(|kind| KindName::find(kind)).collect();
    let site = site.and_then(|id| id.parse().ok());
    (name, DriverCapabilities { state_dir, site, keeps_host: false, fence_delay, plugs_ports, judges, logs, kinds })
}

/// Stored form of an [`Incarnation`].
pub(super) fn incarnation_text(incarnation: Incarnation) -> String {
    format!("{:032x}", incarnation.get())
}

pub(super) fn from_member(member: &StoredMember) -> members::Model {
    let Profile { weight, zone, host, drivers: offers, version, pid, process, lease } = member.profile.clone();
    let PreviousOffers { drivers, fence_delays: holds, state_dir } = PreviousOffers::of(&offers);
    let (offers, departed) = (Some(offers.iter().map(from_offer).collect()), member.departed);
    let seal = member.seal.map(|seal| seal.to_string());
    let process = process.map(|process| process.to_string());
    let row = ProfileRow {
        weight,
        zone,
        host,
        state_dir,
        drivers,
        offers,
        version,
        pid,
        process,
        lease,
        holds,
        departed,
        seal,
    };
    members::Model {
        worker: member.worker.as_str().to_owned(),
        incarnation: incarnation_text(member.incarnation),
        profile: json(&row),
    }
}

pub(super) fn to_member(row: &members::Model) -> Result<StoredMember, Error> {
    let at = RowName { what: "member", key: &row.worker };
    let ProfileRow {
        weight,
        zone,
        host,
        state_dir,
        drivers,
        offers,
        version,
        pid,
        process,
        lease,
        holds,
        departed,
        seal,
    } = at.json("profile", &row.profile)?;
    let process = process.and_then(|text| text.parse().ok());
    let drivers = match offers {
        Some(offers) => offers.into_iter().map(to_offer).collect(),
        None => PreviousOffers { drivers, fence_delays: holds, state_dir }.read(),
    };
    let incarnation = u128::from_str_radix(&row.incarnation, 16).map_err(|e| at.corrupt(e))?;
    Ok(StoredMember {
        worker: at.parse("worker", &row.worker)?,
        incarnation: Incarnation::new(incarnation),
        profile: Profile { weight, zone, host, drivers, version, pid, process, lease },
        departed,
        seal: seal.map(|text| LifeSeal::from_hex(&text).ok_or_else(|| at.corrupt("is no seal"))).transpose()?,
    })
}

pub(super) fn from_seen(worker: &WorkerId, seen: SystemTime) -> workers::Model {
    workers::Model { worker: worker.as_str().to_owned(), seen_ns: nanos(seen) }
}

pub(super) fn from_rebalance(record: &RebalanceRecord) -> rebalances::Model {
    rebalances::Model {
        term: record.id.term.get().cast_signed(),
        number: record.id.number.cast_signed(),
        cause: plain(&record.cause),
        trace_id: plain(&record.trace_id),
        started_ns: nanos(record.started),
        ended_ns: record.ended.map(nanos),
        outcome: record.outcome.name().to_owned(),
        moves: record.moves.cast_signed(),
        done: record.done.cast_signed(),
    }
}

pub(super) fn from_members(id: RebalanceId, members: &[MemberThen]) -> rebalance_members::Model {
    rebalance_members::Model {
        term: id.term.get().cast_signed(),
        number: id.number.cast_signed(),
        members: json(&members),
    }
}

pub(super) fn to_members(row: &rebalance_members::Model) -> Result<Vec<MemberThen>, Error> {
    let id = rebalance_id(row.term, row.number);
    RowName { what: "members of rebalance", key: &id }.json("members", &row.members)
}

/// The id made of two columns.
pub(super) fn rebalance_id(term: i64, number: i64) -> RebalanceId {
    RebalanceId { term: Term::new(term.cast_unsigned()), number: number.cast_unsigned() }
}

pub(super) fn to_rebalance(row: rebalances::Model) -> Result<RebalanceRecord, Error> {
    let id = rebalance_id(row.term, row.number);
    let outcome = RebalanceOutcome::ALL.into_iter().find(|outcome| outcome.name() == row.outcome);
    let at = RowName { what: "rebalance", key: &id };
    Ok(RebalanceRecord {
        id,
        outcome: outcome.ok_or_else(|| at.corrupt(format_args!("outcome `{}` is not known", row.outcome)))?,
        cause: row.cause,
        trace_id: row.trace_id,
        started: time(row.started_ns),
        ended: row.ended_ns.map(time),
        moves: row.moves.cast_unsigned(),
        done: row.done.cast_unsigned(),
    })
}

/// Rows of moves while they are packed, one or more per rebalance.
#[derive(Default)]
struct MovePacker {
    open: BTreeMap<RebalanceId, Packer>,
    rows: Vec<(RebalanceId, Vec<u8>)>,
}

impl MovePacker {
    fn add(&mut self, rebalance: RebalanceId, entry: impl FnOnce(&mut Packer)) {
        let packer = self.open.entry(rebalance).or_default();
        entry(packer);
        if packer.len() >= ROW_BYTES {
            self.rows.push((rebalance, std::mem::take(packer).seal(MOVES, &[])));
        }
    }

    fn finish(mut self) -> Vec<(RebalanceId, Vec<u8>)> {
        let rest = self.open.into_iter().filter(|(_, packer)| !packer.is_empty());
        self.rows.extend(rest.map(|(id, packer)| (id, packer.seal(MOVES, &[]))));
        self.rows
    }
}

/// Packs moves, and then adoptions, in order.
pub(super) fn from_moves<'a>(
    moves: impl IntoIterator<Item = &'a MoveRecord>,
    adoptions: impl IntoIterator<Item = &'a AdoptionRecord>,
) -> Vec<(RebalanceId, Vec<u8>)> {
    let mut rows = MovePacker::default();
    for it in moves {
        // 0 is a stage that was not reached, or not seen.
        let stage = |at: Option<SystemTime>| at.map_or(0, nanos).cast_unsigned();
        let MoveTimes { began, released, granted, adopted: _ } = it.times;
        rows.add(it.rebalance, |packer| {
            packer
                .entry(STAGED_MOVE)
                .bytes(it.appliance.as_bytes())
                .optional_name(it.from.as_ref().map(|w| w.as_str().as_bytes()))
                .name(it.to.as_str().as_bytes())
                .name(it.reason.as_bytes())
                .number(u64::from(it.done))
                .number(nanos(it.time).cast_unsigned())
                .number(stage(began))
                .number(stage(released))
                .number(stage(granted));
        });
    }
    for it in adoptions {
        let at = nanos(it.time).cast_unsigned();
        rows.add(it.rebalance, |packer| {
            packer.entry(ADOPTION).bytes(it.appliance.as_bytes()).number(at);
        });
    }
    rows.finish()
}

/// Unpacks a row of moves, in order, and the adoptions in it.
pub(super) fn to_moves(row: &moves::Model) -> Result<(Vec<MoveRecord>, Vec<AdoptionRecord>), Error> {
    let rebalance = rebalance_id(row.term, row.number);
    let read = || -> Result<(Vec<MoveRecord>, Vec<AdoptionRecord>), Odd> {
        let (_, [], mut it) = Unpacker::open(&row.data, &[MOVES_ONLY, MOVES])?;
        let (mut found, mut adoptions) = (Vec::new(), Vec::new());
        let worker =
            |it: &Unpacker<'_>, at: usize| WorkerId::new(codec::text(it.names()[at])?).map_err(|e| Odd(e.to_string()));
        while let Some(tag) = it.next_entry()? {
            if ![MOVE, STAGED_MOVE, ADOPTION].contains(&tag) {
                return Err(Odd(format!("entry of unknown kind {tag}")));
            }
            let appliance = ApplianceId::from_bytes(it.array()?);
            if tag == ADOPTION {
                adoptions.push(AdoptionRecord { rebalance, appliance, time: time(it.number()?.cast_signed()) });
                continue;
            }
            let from = it.optional_name_index()?.map(|at| worker(&it, at)).transpose()?;
            let to = it.name_index()?;
            let to = worker(&it, to)?;
            let reason = it.name_index()?;
            let reason = codec::text(it.names()[reason])?.to_owned();
            let done = it.number()? != 0;
            let ended = time(it.number()?.cast_signed());
            let mut times = MoveTimes::default();
            if tag == STAGED_MOVE {
                for stage in [&mut times.began, &mut times.released, &mut times.granted] {
                    *stage = Some(it.number()?.cast_signed()).filter(|nanos| *nanos != 0).map(time);
                }
            }
            found.push(MoveRecord { rebalance, appliance, from, to, reason, done, times, time: ended });
        }
        Ok((found, adoptions))
    };
    read().map_err(|e| RowName { what: "moves", key: &format_args!("{} of {rebalance}", row.id) }.corrupt(e.0))
}

/// Notes in moves when their new owners had seen what came to them. An appliance moves at most once in a rebalance.
pub(super) fn with_adoptions(moves: &mut [MoveRecord], adoptions: &[AdoptionRecord]) {
    let at: HashMap<_, _> = adoptions.iter().map(|it| ((it.rebalance, it.appliance), it.time)).collect();
    for it in moves {
        it.times.adopted = at.get(&(it.rebalance, it.appliance)).copied();
    }
}

pub(super) fn from_event(event: &AuditEvent) -> events::ActiveModel {
    use sea_orm::ActiveValue::{NotSet, Set};
    events::ActiveModel {
        id: NotSet,
        time_ns: Set(nanos(event.time)),
        actor: Set(plain(&event.actor)),
        action: Set(plain(&event.action)),
        subject: Set(plain(&event.subject)),
        detail: Set(plain(&event.detail)),
    }
}

pub(super) fn to_event(row: events::Model) -> NumberedEvent {
    let events::Model { id, time_ns, actor, action, subject, detail } = row;
    let event = AuditEvent { time: time(time_ns), actor, action, subject, detail };
    NumberedEvent { number: id.cast_unsigned(), event }
}

pub(super) fn from_pause(pause: &PauseRecord) -> pauses::Model {
    let PauseRecord { reason, by, since, moves_only, aborts } = pause;
    pauses::Model {
        id: pauses::ROW,
        reason: plain(reason),
        actor: plain(by),
        since_ns: nanos(*since),
        moves_only: *moves_only,
        aborts: aborts.map(|id| id.to_string()).unwrap_or_default(),
    }
}

pub(super) fn to_pause(row: pauses::Model) -> PauseRecord {
    let pauses::Model { id: _, reason, actor, since_ns, moves_only, aborts } = row;
    // An id that cannot be read is that of no rebalance that runs.
    let aborts = aborts.parse().ok();
    PauseRecord { reason: plain(&reason), by: plain(&actor), since: time(since_ns), moves_only, aborts }
}

pub(super) fn from_mode(rule: &ModeRule) -> debug_modes::Model {
    let rule = ModeRule { reason: plain(&rule.reason), by: plain(&rule.by), ..rule.clone() };
    debug_modes::Model { id: rule.id.to_string(), rule: json(&rule) }
}

/// A rule. One that cannot be read, as that of a newer version may be, is taken to cover everything: it can be seen and
/// cleared, and nobody acts against it meanwhile.
pub(super) fn to_mode(row: &debug_modes::Model) -> Result<ModeRule, Error> {
    let at = RowName { what: "debug mode", key: &row.id };
    let id: ModeId = at.parse("id", &row.id)?;
    let read = at
        .json::<ModeRule>("rule", &row.rule)
        .and_then(|rule| if rule.id == id { Ok(rule) } else { Err(at.corrupt("rule: it is that of another id")) });
    Ok(read.unwrap_or_else(|error| {
        tracing::error!("a debug mode is taken to cover everything until it is cleared: {error}");
        let reason =
            "it is stored and cannot be read, so that it is taken to cover everything until it is cleared".to_owned();
        ModeRule { id, scope: ModeScope::Global, reason, by: String::new(), since_unix_ms: 0, expires_unix_ms: None }
    }))
}

/// A row about an order, by its key; none where it is taken back.
#[derive(Clone, Debug)]
pub(super) enum OrderRow {
    Worker((String, String), Option<worker_orders::Model>),
    Pin(uuid::Uuid, Option<pins::Model>),
    Budget(String, Option<budgets::Model>),
}

const CORDON: &str = "cordon";
const DRAIN: &str = "drain";
const WEIGHT: &str = "weight";

pub(super) fn from_order(record: &OrderRecord) -> OrderRow {
    let OrderRecord { order, note: OrderNote { reason, by, since } } = record;
    let (reason, actor, since_ns) = (plain(reason), plain(by), nanos(*since));
    let (worker, what, weight) = match order {
        OrderOp::Pin { appliance, pin } => {
            let appliance = appliance.uuid();
            let row = pin.as_ref().map(|Pin { worker, strict }| pins::Model {
                appliance,
                worker: worker.as_str().to_owned(),
                strict: *strict,
                reason,
                actor,
                since_ns,
            });
            return OrderRow::Pin(appliance, row);
        }
        OrderOp::Budget { name, budget } => {
            let name = name.as_str().to_owned();
            let row = budget.as_ref().map(|rule| budgets::Model {
                name: name.clone(),
                rule: json(rule),
                reason,
                actor,
                since_ns,
            });
            return OrderRow::Budget(name, row);
        }
        OrderOp::Cordon { worker, .. } => (worker, CORDON, 0),
        OrderOp::Drain { worker, .. } => (worker, DRAIN, 0),
        OrderOp::Weight { worker, weight } => (worker, WEIGHT, weight.unwrap_or_default()),
    };
    let (worker, what) = (worker.as_str().to_owned(), what.to_owned());
    let row = worker_orders::Model {
        worker: worker.clone(),
        what: what.clone(),
        weight: weight.into(),
        reason,
        actor,
        since_ns,
    };
    OrderRow::Worker((worker, what), order.is_set().then_some(row))
}

pub(super) fn to_worker_order(row: worker_orders::Model) -> Result<OrderRecord, Error> {
    let worker_orders::Model { worker, what, weight, reason, actor, since_ns } = row;
    let at = RowName { what: "order", key: &worker };
    let worker = at.parse("worker", &worker)?;
    let order = match what.as_str() {
        CORDON => OrderOp::Cordon { worker, set: true },
        DRAIN => OrderOp::Drain { worker, set: true },
        WEIGHT => {
            let weight = u32::try_from(weight).map_err(|_| at.corrupt(format_args!("{weight} is no weight")))?;
            OrderOp::Weight { worker, weight: Some(weight) }
        }
        other => return Err(at.corrupt(format_args!("there is no order `{other}`"))),
    };
    Ok(OrderRecord { order, note: OrderNote { reason: plain(&reason), by: plain(&actor), since: time(since_ns) } })
}

pub(super) fn to_pin(row: pins::Model) -> Result<OrderRecord, Error> {
    let pins::Model { appliance, worker, strict, reason, actor, since_ns } = row;
    let at = RowName { what: "pin", key: &appliance };
    let pin = Some(Pin { worker: at.parse("worker", &worker)?, strict });
    let order = OrderOp::Pin { appliance: ApplianceId::new(appliance), pin };
    Ok(OrderRecord { order, note: OrderNote { reason: plain(&reason), by: plain(&actor), since: time(since_ns) } })
}

/// A budget. One that cannot be read, as that of a newer version may be, is taken to allow nothing: it can be seen and cleared, and
/// nothing is made unavailable on purpose meanwhile.
pub(super) fn to_budget(row: budgets::Model) -> Result<OrderRecord, Error> {
    let budgets::Model { name, rule, reason, actor, since_ns } = row;
    let at = RowName { what: "budget", key: &name };
    let (rule, reason) = match at.json::<Budget>("rule", &rule) {
        Ok(rule) => (rule, plain(&reason)),
        Err(error) => {
            tracing::error!("a budget is taken to allow nothing until it is cleared: {error}");
            let nothing = Budget {
                scope: BudgetScope::default(),
                per: BudgetGroup::All,
                max_unavailable: MaxUnavailable::Count(0),
            };
            (
                nothing,
                "it is stored and cannot be read, so that it is taken to allow nothing until it is cleared".to_owned(),
            )
        }
    };
    let order = OrderOp::Budget { name: at.parse::<Name>("name", &name)?, budget: Some(rule) };
    Ok(OrderRecord { order, note: OrderNote { reason, by: plain(&actor), since: time(since_ns) } })
}

pub(super) fn from_request(request: &RequestRecord) -> requests::Model {
    requests::Model {
        id: request.id,
        digest: request.digest.to_vec(),
        appliance: request.appliance.uuid(),
        time_ns: nanos(request.time),
    }
}

pub(super) fn to_request(row: requests::Model) -> Result<RequestRecord, Error> {
    let at = RowName { what: "request", key: &row.id };
    let digest = row.digest.try_into().map_err(|_| at.corrupt("digest: it has not sixteen bytes"))?;
    Ok(RequestRecord { id: row.id, digest, appliance: ApplianceId::new(row.appliance), time: time(row.time_ns) })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A member as the version before stored it.
    const PREVIOUS: &str = r#"{"weight": 2, "zone": "z", "host": "h", "state_dir": "/var/lib/rug",
        "drivers": ["process", "simulated"], "version": "0.1.0", "pid": 7, "lease": {"secs": 2, "nanos": 0},
        "holds": {"simulated": {"secs": 5, "nanos": 1}}, "departed": true}"#;

    fn row(profile: String) -> members::Model {
        let incarnation = incarnation_text(Incarnation::new(5));
        members::Model { worker: "w1".to_owned(), incarnation, profile }
    }

    #[test]
    fn a_member_of_the_version_before_is_read() {
        let member = to_member(&row(PREVIOUS.to_owned())).expect("readable");
        // The kinds that there were then.
        let of = |state_dir: Option<&str>| DriverCapabilities {
            kinds: KindName::PREVIOUS.into(),
            ..DriverCapabilities::of_all_kinds(state_dir)
        };
        let simulated = DriverCapabilities { fence_delay: Some(Duration::new(5, 1)), ..of(None) };
        let expected = [(DriverName::process(), of(Some("/var/lib/rug"))), (DriverName::simulated(), simulated)];
        assert_eq!(member.profile.drivers, expected.into());
        assert!(member.departed);
    }

    #[test]
    fn the_version_before_can_read_a_member_and_finds_the_drivers_it_knows() {
        let mut member = to_member(&row(PREVIOUS.to_owned())).expect("readable");
        let other = (DriverName::new("other").expect("a name"), DriverCapabilities::of_all_kinds(Some("/other")));
        let drivers = member.profile.drivers.iter().map(|(name, it)| (name.clone(), it.clone()));
        member.profile.drivers = drivers.chain([other]).collect();
        let stored: serde_json::Value = serde_json::from_str(&from_member(&member).profile).expect("JSON");
        let previous: serde_json::Value = serde_json::from_str(PREVIOUS).expect("JSON");
        for (field, value) in previous.as_object().expect("an object") {
            assert_eq!(stored[field], *value, "{field}");
        }
        assert_eq!(to_member(&from_member(&member)).expect("readable"), member);
    }

    #[test]
    fn kinds_that_a_newer_version_stored_are_left_out() {
        let member = to_member(&row(PREVIOUS.to_owned())).expect("readable");
        let mut stored: serde_json::Value = serde_json::from_str(&from_member(&member).profile).expect("JSON");
        stored["offers"]["process"]["kinds"].as_array_mut().expect("a list").push("hovercraft".into());
        assert_eq!(to_member(&row(stored.to_string())).expect("readable").profile, member.profile);
    }
}
