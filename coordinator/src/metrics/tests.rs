use std::time::SystemTime;

use coordinator_core::violation::ViolationKind;

use super::*;
use crate::catalog;
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

/// Metrics of a leader, which stops to lead when the sender is dropped or says so.
fn leader() -> (Arc<Metrics>, watch::Sender<bool>) {
    let catalog = Arc::new(Catalog::new(catalog::Config::default()));
    catalog.set_cluster(cluster());
    let (tell, leading) = watch::channel(true);
    (Metrics::new("c1", &ExportConfig::default(), catalog, leading).expect("builds"), tell)
}

/// The value of a line that begins with this, less its labels' order.
fn value(text: &str, begins: &str) -> f64 {
    let line = text.lines().find(|l| l.starts_with(begins)).unwrap_or_else(|| panic!("no {begins} in\n{text}"));
    line.rsplit(' ').next().and_then(|v| v.parse().ok()).expect("a number")
}

#[test]
fn what_the_leader_knows_is_shown_under_the_names_alerts_are_made_of() {
    let (metrics, _tell) = leader();
    let text = metrics.meters.text().expect("shows");
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
    let catalog = Arc::new(Catalog::new(catalog::Config::default()));
    catalog.set_cluster(cluster());
    let (_tell, leading) = watch::channel(false);
    let text =
        Metrics::new("c2", &ExportConfig::default(), catalog, leading).expect("builds").meters.text().expect("shows");
    assert_eq!(value(&text, "rug_leader "), 0.0);
    assert!(!text.contains("rug_term") && !text.contains("rug_unowned_appliances"), "{text}");
}

#[test]
fn counts_go_on_over_terms() {
    let (metrics, _tell) = leader();
    for _ in 0..2 {
        metrics.begin_term();
        let mut counters = Counters::default();
        for plans in 1..=3 {
            counters.kinds.add(ViolationKind::DigestDiffers);
            counters.plans = plans;
            metrics.count(&counters, &AuditCounts { agreed: plans * 10, ..AuditCounts::default() });
            metrics.count(&counters, &AuditCounts { agreed: plans * 10, ..AuditCounts::default() });
        }
    }
    let text = metrics.meters.text().expect("shows");
    assert_eq!(value(&text, "rug_ownership_violations_total{kind=\"digest_differs\"}"), 6.0);
    assert_eq!(value(&text, "rug_ownership_violations_total{kind=\"grant_lost\"}"), 0.0);
    assert_eq!(value(&text, "rug_ownership_audits_total{outcome=\"agreed\"}"), 60.0);
    assert_eq!(value(&text, "rug_plans_total "), 6.0);
}

#[test]
fn times_without_an_owner_fall_into_buckets_that_tell_a_hand_off_from_an_outage() {
    let (metrics, _tell) = leader();
    metrics.regained(&[Duration::from_micros(400), Duration::from_millis(7), Duration::from_secs(4)]);
    let text = metrics.meters.text().expect("shows");
    assert_eq!(value(&text, "rug_unowned_seconds_bucket{le=\"0.001\"}"), 1.0);
    assert_eq!(value(&text, "rug_unowned_seconds_bucket{le=\"0.01\"}"), 2.0);
    assert_eq!(value(&text, "rug_unowned_seconds_bucket{le=\"5\"}"), 3.0);
    assert_eq!(value(&text, "rug_unowned_seconds_count "), 3.0);
}
