//! Values to store.

use common::SiteId;
use common::appliance::Timing;
use common::run::{PhaseChange, RunOutcome, RunStep};
use common::secret::LifeSecret;
use common::status::{EndCause, InstanceEnd};
use coordinator_core::budget::{Budget, BudgetGroup, BudgetScope, MaxUnavailable};

use super::*;

pub(super) fn at(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::new(1_700_000_000 + seconds, 123_456_789)
}

pub(super) fn worker(n: u32) -> WorkerId {
    WorkerId::new(&format!("w{n}")).expect("a name")
}

pub(super) fn id(n: u128) -> ApplianceId {
    ApplianceId::from_u128(n)
}

pub(super) fn record(n: u128, name: &str) -> Record {
    Record {
        id: id(n),
        tenant: Name::new("acme").expect("a name"),
        name: Name::new(name).expect("a name"),
        driver: DriverName::process(),
        placement_key: id(n).to_string(),
        labels: BTreeMap::from([("tier".to_owned(), "web \u{1f980}".to_owned())]),
        spec: Spec {
            replicas: 2,
            probe_interval: Some(Duration::from_millis(1500)),
            timing: Timing::default(),
            image: None,
            pod: None,
            ports: vec![],
            kind: KindSpec::Custom(Custom {
                command: "server".into(),
                args: vec!["--port".into(), "{port}".into()],
                env: BTreeMap::new(),
                port: Some(8080),
                probe: Probe::Tcp,
                ..Custom::default()
            }),
        },
        generation: Generation::new(3),
        written: Term::new(2),
        revision: 1,
        deleting: false,
        managed_by: Some("kubernetes/shop/web".parse().expect("a manager")),
        created: at(1),
        updated: at(2),
    }
}

/// A member as it was when a rebalance began.
pub(super) fn member_then() -> MemberThen {
    MemberThen { worker: worker(4), weight: 3, zone: "east".into(), takes: true, gives_up: false }
}

fn budget() -> Budget {
    Budget {
        scope: BudgetScope {
            tenant: Some(Name::new("acme").expect("a name")),
            kind: Some(common::kind::KindName::Custom),
            zone: Some("east".into()),
            labels: Some("tier in (web,db)".parse().expect("a selector")),
        },
        per: BudgetGroup::Zone,
        max_unavailable: MaxUnavailable::Percent(10),
    }
}

/// Every sort of order, or that they are taken back.
pub(super) fn orders(set: bool) -> Vec<OrderRecord> {
    let pin = |n, strict| OrderOp::Pin { appliance: id(n), pin: set.then(|| Pin { worker: worker(9), strict }) };
    let orders = [
        OrderOp::Cordon { worker: worker(1), set },
        OrderOp::Drain { worker: worker(1), set },
        OrderOp::Drain { worker: worker(2), set },
        OrderOp::Weight { worker: worker(2), weight: set.then_some(1024) },
        pin(1, true),
        pin(2, false),
        pin(3, true),
        OrderOp::Budget { name: Name::new("fleet").expect("a name"), budget: set.then(budget) },
    ];
    let note = OrderNote { reason: "new disks".into(), by: "rug://role/operator".into(), since: at(6) };
    orders.into_iter().map(|order| OrderRecord { order, note: note.clone() }).collect()
}

pub(super) fn granted(n: u32, sequence: u64) -> Granted {
    Granted {
        worker: worker(n),
        incarnation: Incarnation::new(u128::MAX - 7),
        token: Token::new(Term::new(1), sequence),
    }
}

pub(super) fn event(n: u64) -> AuditEvent {
    AuditEvent {
        time: at(n),
        actor: "127.0.0.1".into(),
        action: "create".into(),
        subject: id(u128::from(n)).to_string(),
        detail: String::new(),
    }
}

pub(super) fn rebalance(number: u64) -> RebalanceRecord {
    RebalanceRecord {
        id: RebalanceId { term: Term::new(1), number },
        cause: "w1 joined".into(),
        trace_id: "0".repeat(32),
        started: at(3),
        ended: None,
        outcome: RebalanceOutcome::Running,
        moves: 2,
        done: 0,
    }
}

pub(super) fn moved(number: u64, n: u128, from: Option<u32>) -> MoveRecord {
    MoveRecord {
        times: MoveTimes { began: Some(at(3)), released: None, granted: Some(at(5)), adopted: None },
        rebalance: rebalance(number).id,
        appliance: id(n),
        from: from.map(worker),
        to: worker(9),
        reason: "UnderFloor".into(),
        done: true,
        time: at(number),
    }
}

/// A run that ended at this second, of one of two tenants.
pub(super) fn run(n: u64) -> RunRecord {
    RunRecord {
        id: n.into(),
        appliance: id(u128::from(n % 3)),
        tenant: Name::new(if n.is_multiple_of(2) { "even" } else { "odd" }).expect("a name"),
        name: Name::new("web").expect("a name"),
        generation: Generation::new(n),
        worker: worker(1),
        cause: "rebuild".into(),
        outcome: if n.is_multiple_of(5) { RunOutcome::Failed } else { RunOutcome::Completed },
        error: "it fell over \u{1f980}".into(),
        began: at(n) - Duration::from_secs(2),
        ended: at(n),
        steps: vec![RunStep { step: "boot 0".into(), outcome: "booted".into(), took: Duration::from_secs(1) }],
        changes: vec![PhaseChange {
            from: Phase::Down,
            to: Phase::Booting,
            cause: "rebuild".into(),
            after: Duration::from_millis(3),
        }],
    }
}

fn offers(delay: u64) -> DriverOffers {
    let other = DriverCapabilities {
        fence_delay: Some(Duration::from_secs(delay)),
        plugs_ports: true,
        judges: true,
        logs: true,
        kinds: [KindName::Custom].into(),
        ..DriverCapabilities::default()
    };
    DriverOffers::from([
        (
            DriverName::process(),
            DriverCapabilities {
                site: Some(SiteId::from_u128(7)),
                ..DriverCapabilities::of_all_kinds(Some("/var/lib/rug"))
            },
        ),
        (DriverName::new("other").expect("a name"), other),
    ])
}

pub(super) fn member(n: u32) -> StoredMember {
    StoredMember {
        worker: worker(n),
        incarnation: Incarnation::embedded(Term::new(1), u64::from(n)),
        profile: Profile {
            weight: 2,
            zone: "z".into(),
            host: "h".into(),
            drivers: offers(n.into()),
            version: "0.1".into(),
            pid: 7,
            process: Some("5f0c2a52-5b0a-4f2e-9d6c-0a1b2c3d4e5f/4026531836/7/123".parse().expect("a process")),
            lease: Duration::from_secs(2),
        },
        departed: n.is_multiple_of(2),
        seal: (!n.is_multiple_of(3)).then(|| LifeSecret::new([1; 32]).seal()),
    }
}

fn last_end() -> Option<Box<InstanceEnd>> {
    Some(Box::new(InstanceEnd {
        instance: "i-1-1".into(),
        at_unix_ms: 9,
        cause: EndCause::Signal(9),
        out_of_memory: true,
        last_lines: vec!["it fell".into(), "over".into()],
    }))
}

pub(super) fn status() -> Status {
    Status {
        phase: Phase::Degraded,
        observed_generation: Generation::new(3),
        instances: vec![InstanceStatus {
            ordinal: 1,
            name: "i".into(),
            alive: Some(false),
            details: [("pid", "1")].into_iter().collect(),
            started_at_unix_ms: 5,
            address: Some(([127, 0, 0, 1], 80).into()),
            configured: None,
            ports: vec![],
        }],
        last_error: Some("it fell over".into()),
        failed_boots: 2,
        last_end: last_end(),
    }
}

pub(super) fn progress() -> Progress {
    Progress {
        failed_boots: 1,
        ends: 2,
        attempts: vec![3, 1],
        wait: Duration::from_millis(2_500),
        cooling: true,
        journal: vec![JournalEntry { step: "boot 0".into(), request_id: "r".into() }],
        last_end: last_end(),
    }
}
