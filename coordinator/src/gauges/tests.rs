use std::time::SystemTime;

use coordinator_core::violation::ViolationKind;
use runtime::meter::{Meters, QueueWatch, reference};
use runtime::telemetry::{ExportConfig, Program};

use coordinator_core::audit::AuditCounts;
use coordinator_core::machine::Counters;
use coordinator_core::unowned::{Regained, UnownedCause};
use tokio::sync::mpsc;
use tonic::Code;

use super::*;
use crate::catalog;
use crate::metrics::{CODES, Counted, Instruments, method, reference as groups, start_looks};
use crate::store::{OutageCause, StoreProblem};
use crate::views::{ClusterView, PlacementView, UnownedAppliance, UnownedView};

fn cluster() -> ClusterView {
    let oldest = UnownedAppliance {
        id: common::ApplianceId::from_u128(7),
        tenant: "demo".parse().expect("a valid name"),
        name: "web".parse().expect("a valid name"),
        since: SystemTime::now() - Duration::from_secs(90),
        state: "orphaned",
        reason: "waits for the next plan".into(),
    };
    ClusterView {
        placement: PlacementView { moves_in_flight: 3, stalled_moves: 1, ..PlacementView::default() },
        unowned: UnownedView { appliances: 2, oldest: vec![oldest] },
        suspects: 5,
        quarantined: 1,
        store_problem: Some(StoreProblem { cause: OutageCause::Full, since: SystemTime::now() }),
        ..ClusterView::of_term(4)
    }
}

fn meters() -> Arc<Meters> {
    let program = Program { name: "rug-coordinator", instance: "c1" };
    Arc::new(Meters::new(program, &ExportConfig::default()).expect("builds"))
}

/// What a coordinator shows of this cluster, as a leader or not.
fn shown(leading: bool, per_worker: bool) -> String {
    let catalog = Arc::new(Catalog::new(catalog::Config::default()));
    catalog.set_cluster(cluster());
    let (_tell, leading) = watch::channel(leading);
    let meters = meters();
    let _instruments = Instruments::new(&meters.meter());
    let queues = QueueWatch::default();
    start_looks(&meters.meter(), &queues);
    let (sender, _receiver) = mpsc::channel::<()>(4);
    ["commands", "sessions", "store"].into_iter().for_each(|name| queues.add(name, &sender));
    start(&meters.meter(), &View::new(catalog, leading), per_worker);
    meters.text().expect("shows")
}

/// The value of a line that begins with this, less its labels' order.
fn value(text: &str, begins: &str) -> f64 {
    let line = text.lines().find(|l| l.starts_with(begins)).unwrap_or_else(|| panic!("no {begins} in\n{text}"));
    line.rsplit(' ').next().and_then(|v| v.parse().ok()).expect("a number")
}

#[test]
fn what_the_leader_knows_is_shown_under_the_names_alerts_are_made_of() {
    let text = shown(true, false);
    for (name, expected) in [
        ("rug_leader ", 1.0),
        ("rug_term ", 4.0),
        ("rug_unowned_appliances ", 2.0),
        ("rug_appliances_suspect ", 5.0),
        ("rug_appliances_saturated ", 0.0),
        ("rug_appliances_quarantined ", 1.0),
        ("rug_moves_in_flight ", 3.0),
        ("rug_moves_stalled ", 1.0),
        ("rug_frozen ", 0.0),
        ("rug_paused ", 0.0),
        ("rug_store_available ", 0.0),
        ("rug_store_problem{cause=\"full\"}", 1.0),
        ("rug_store_problem{cause=\"locked\"}", 0.0),
        ("rug_workers{health=\"dead\"}", 0.0),
        ("rug_ownership_violations_total{kind=\"digest_differs\"}", 0.0),
        ("rug_ownership_audits_total{outcome=\"agreed\"}", 0.0),
        ("rug_plans_total ", 0.0),
        ("rug_messages_stale_total ", 0.0),
    ] {
        assert_eq!(value(&text, name), expected, "{name}");
    }
    assert!(value(&text, "rug_log_lines_skipped_total ") >= 0.0, "other tests of this process count, too");
    let oldest = value(&text, "rug_unowned_oldest_seconds ");
    assert!((90.0..600.0).contains(&oldest), "{oldest}");
    assert!(text.contains("# TYPE rug_unowned_appliances gauge"), "{text}");
    assert!(text.contains("service_instance_id=\"c1\""), "{text}");
}

#[test]
fn who_stands_by_shows_that_and_nothing_it_does_not_know() {
    let text = shown(false, false);
    assert_eq!(value(&text, "rug_leader "), 0.0);
    for leaders in ["rug_term ", "rug_unowned_appliances", "rug_appliances{"] {
        assert!(!text.lines().any(|line| line.starts_with(leaders)), "{leaders} in\n{text}");
    }
}

#[test]
fn counts_go_on_over_terms() {
    let meters = meters();
    let instruments = Instruments::new(&meters.meter());
    for _ in 0..2 {
        let mut before = Counted::default();
        let mut counters = Counters::default();
        for plans in 1..=3 {
            counters.kinds.add(ViolationKind::DigestDiffers);
            counters.plans = plans;
            let now = Counted { counters, audits: AuditCounts { agreed: plans * 10, ..AuditCounts::default() } };
            instruments.count(&before, &now);
            before = now;
        }
    }
    let text = meters.text().expect("shows");
    assert_eq!(value(&text, "rug_ownership_violations_total{kind=\"digest_differs\"}"), 6.0);
    assert_eq!(value(&text, "rug_ownership_violations_total{kind=\"grant_lost\"}"), 0.0);
    assert_eq!(value(&text, "rug_ownership_audits_total{outcome=\"agreed\"}"), 60.0);
    assert_eq!(value(&text, "rug_plans_total "), 6.0);
}

#[test]
fn what_is_shown_is_what_is_documented() {
    assert_eq!(reference::lint(&[groups()[0], groups()[1], reference::of_every_process()]), Vec::<String>::new());
    let per_worker = [&metric::WORKER_APPLIANCES, &metric::WORKER_HEALTHY, &metric::WORKER_SILENT];
    // Of an empty cluster there are none.
    let later = [&[&metric::PHASES], &per_worker[..]].concat();
    let all = [groups()[0], groups()[1], reference::of_every_process()];
    // There is no runtime here.
    let text = shown(true, true);
    let differs: Vec<_> = (reference::differences(&text, &all, &later).into_iter())
        .filter(|problem| !problem.starts_with("rug_runtime_"))
        .collect();
    assert_eq!(differs, Vec::<String>::new(), "{text}");
    let repository = std::path::Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    reference::check(repository, "rug-coordinator", &groups()).unwrap_or_else(|problem| panic!("{problem}"));
}

#[test]
fn calls_have_a_name_each_and_codes_are_those_of_grpc() {
    assert_eq!(method("/rug.admin.v1.Appliances/Update"), "Appliances.Update");
    assert_eq!(method("/rug.worker.v1.Session/Open"), "Session.Open");
    assert_eq!(method("/grpc.health.v1.Health/Check"), OTHER);
    assert_eq!(method("/whatever a caller writes"), OTHER);
    for (code, shown) in CODES.iter().enumerate() {
        let name = format!("{:?}", Code::from(code as i32)).to_lowercase();
        assert_eq!(shown.replace('_', "").to_lowercase(), name);
    }
}

#[test]
fn times_without_an_owner_fall_into_buckets_that_tell_a_hand_off_from_an_outage() {
    let meters = meters();
    let instruments = Instruments::new(&meters.meter());
    for time in [Duration::from_micros(400), Duration::from_millis(7), Duration::from_secs(4)] {
        let regained = Regained { lasted: time, cause: UnownedCause::HandOff, rebalance: None };
        instruments.regained(&regained, None);
    }
    let lost = Regained { lasted: Duration::from_secs(1), cause: UnownedCause::Lost, rebalance: None };
    instruments.regained(&lost, None);
    let text = meters.text().expect("shows");
    assert_eq!(value(&text, "rug_handoff_gap_seconds_bucket{le=\"0.001\"}"), 1.0);
    assert_eq!(value(&text, "rug_handoff_gap_seconds_bucket{le=\"0.01\"}"), 2.0);
    assert_eq!(value(&text, "rug_handoff_gap_seconds_bucket{le=\"5\"}"), 3.0);
    assert_eq!(value(&text, "rug_handoff_gap_seconds_count "), 3.0);
    assert_eq!(value(&text, "rug_unowned_seconds_count{after=\"hand_off\"}"), 3.0);
    assert_eq!(value(&text, "rug_unowned_seconds_count{after=\"lost\"}"), 1.0);
}

#[test]
fn the_causes_of_outages_are_those_of_the_catalogue() {
    assert_eq!(metric::STORE_PROBLEM.labels[0].known(), Some(OutageCause::NAMES.to_vec()));
}
