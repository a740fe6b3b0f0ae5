//! What readers see: lists, counts, watches.

use std::time::{Duration, UNIX_EPOCH};

use common::appliance::{Name, Spec, Timing};
use common::driver::DriverName;
use common::kind::{Custom, KindSpec};
use common::status::{InstanceStatus, Phase};
use common::{Generation, Term, Token};

use super::*;

const NOW: SystemTime = UNIX_EPOCH;

fn name(text: &str) -> Name {
    Name::new(text).expect("a valid name")
}

fn id(n: u128) -> ApplianceId {
    ApplianceId::from_u128(n)
}

fn record(n: u128, text: &str) -> Record {
    let custom = Custom { command: "sleep".into(), ..Custom::default() };
    Record {
        id: id(n),
        tenant: name("default"),
        name: name(text),
        driver: DriverName::process(),
        placement_key: n.to_string(),
        labels: BTreeMap::new(),
        spec: Spec {
            replicas: 1,
            probe_interval: None,
            timing: Timing::default(),
            image: None,
            pod: None,
            ports: vec![],
            kind: KindSpec::Custom(custom),
        },
        generation: Generation::new(1),
        written: Term::new(1),
        revision: 0,
        deleting: false,
        managed_by: None,
        created: NOW,
        updated: NOW,
    }
}

fn catalog() -> Catalog {
    Catalog::new(Config::default())
}

fn names(catalog: &Catalog, filter: &Filter) -> Vec<String> {
    let mut found = Vec::new();
    let mut from = None;
    loop {
        from = catalog.scan(filter, from.as_ref(), |e| {
            found.push(format!("{}/{}", e.record.tenant, e.record.name));
            true
        });
        if from.is_none() {
            return found;
        }
    }
}

#[test]
fn what_crashes_in_a_loop_or_hangs_while_it_starts_is_named() {
    let catalog = catalog();
    let instance = |ordinal, alive, configured: Option<u64>| InstanceStatus {
        ordinal,
        name: format!("i-{ordinal}"),
        alive,
        details: common::status::Details::default(),
        started_at_unix_ms: 1_000 * u64::from(ordinal),
        address: None,
        configured: configured.map(Generation::new),
        ports: vec![],
    };
    let now = NOW + Duration::from_secs(62);
    let put = |n, failed_boots, instances| {
        catalog.put_record(&Arc::new(record(n, &format!("a{n:02}"))));
        let status = Arc::new(Status { failed_boots, instances, ..Status::default() });
        catalog.apply([Fact::Status(id(n), status, NOW)]);
    };
    put(1, 2, vec![instance(0, Some(true), None), instance(0, None, None), instance(1, Some(false), Some(1))]);
    assert_eq!((catalog.troubles(now).crash_loops, catalog.troubles(now).hanging), (0, 0));
    put(2, 3, vec![]);
    put(3, 7, vec![instance(2, Some(false), None), instance(3, Some(false), None)]);
    put(4, 0, vec![instance(1, Some(false), None)]);
    let found = catalog.troubles(now);
    let worst: Vec<_> = found.worst.iter().map(|entry| entry.record.id).collect();
    assert_eq!((found.crash_loops, worst), (2, vec![id(3), id(2)]));
    let oldest: Vec<_> = found.oldest.iter().map(|(instance, entry)| (entry.record.id, instance.ordinal)).collect();
    assert_eq!((found.hanging, oldest), (2, vec![(id(4), 1), (id(3), 2)]));
    // Until all is well again, or it is gone.
    put(3, 0, vec![instance(2, Some(true), Some(1))]);
    catalog.apply([Fact::Removed(id(2)), Fact::Removed(id(4))]);
    assert_eq!((catalog.troubles(now).crash_loops, catalog.troubles(now).hanging), (0, 0));
    for n in 10..30 {
        put(n, 3, vec![]);
    }
    assert_eq!((catalog.troubles(now).crash_loops, catalog.troubles(now).worst.len()), (20, 10));
}

#[test]
fn lists_are_ordered_and_filtered() {
    let catalog = catalog();
    for (n, tenant, text) in [(1, "b", "x"), (2, "a", "web-2"), (3, "a", "web-1"), (4, "a", "db")] {
        let labels = BTreeMap::from([("n".to_owned(), n.to_string())]);
        catalog.put_record(&Arc::new(Record { tenant: name(tenant), labels, ..record(n, text) }));
    }
    let worker = WorkerId::new("w1").expect("a valid name");
    let owned = AssignmentView { state: "owned", worker: Some(worker), ..AssignmentView::default() };
    let up = Arc::new(Status { phase: Phase::Up, ..Status::default() });
    catalog.apply([Fact::Assignment(id(3), owned), Fact::Status(id(3), up, NOW)]);
    let all = Filter::default();
    let cases = [
        (all.clone(), vec!["a/db", "a/web-1", "a/web-2", "b/x"]),
        (Filter { tenant: Some(name("a")), ..all.clone() }, vec!["a/db", "a/web-1", "a/web-2"]),
        (Filter { tenant: Some(name("a")), name_prefix: "web-".into(), ..all.clone() }, vec!["a/web-1", "a/web-2"]),
        (Filter { name_prefix: "x".into(), ..all.clone() }, vec!["b/x"]),
        (Filter { selector: "n notin (1,2)".parse().ok(), ..all.clone() }, vec!["a/db", "a/web-1"]),
        (Filter { selector: "!n".parse().ok(), ..all.clone() }, vec![]),
        (Filter { worker: Some("w1".into()), ..all.clone() }, vec!["a/web-1"]),
        (Filter { phases: vec![Phase::Up], ..all.clone() }, vec!["a/web-1"]),
        (Filter { labels: [("n".to_owned(), "4".to_owned())].into(), ..all.clone() }, vec!["a/db"]),
        (Filter { kind: Some("loadbalancer".into()), ..all.clone() }, vec![]),
        (Filter { driver: Some(DriverName::simulated()), ..all }, vec![]),
    ];
    for (filter, expected) in cases {
        assert_eq!(names(&catalog, &filter), expected, "{filter:?}");
    }
}

#[test]
fn counts_follow_every_change() {
    let catalog = catalog();
    catalog.put_record(&Arc::new(record(1, "web")));
    let worker = WorkerId::new("w1").expect("a valid name");
    let assignment = AssignmentView {
        state: "owned",
        worker: Some(worker.clone()),
        token: Some(Token::new(Term::new(1), 1)),
        ..AssignmentView::default()
    };
    let configured = Arc::new(Status { phase: Phase::Configured, ..Status::default() });
    catalog.apply([Fact::Status(id(1), configured, NOW), Fact::Assignment(id(1), assignment)]);
    catalog.put_record(&Arc::new(Record { revision: 1, ..record(1, "web") }));
    assert_eq!(catalog.held_by(&worker).iter().collect::<Vec<_>>(), [(Phase::Configured, 1)]);
    catalog.apply([Fact::Removed(id(1))]);
    assert_eq!(catalog.read().counts, Counts::default());
}

#[test]
fn a_watch_starts_with_what_is_there_and_misses_nothing() {
    let catalog = catalog();
    catalog.put_record(&Arc::new(record(1, "a")));
    let (current, mut changes) = catalog.watch(&Filter::default());
    assert_eq!(current.len(), 1);
    catalog.put_record(&Arc::new(record(2, "b")));
    catalog.apply([Fact::Removed(id(1))]);
    let created = changes.try_recv().expect("the creation");
    assert!(created.before.is_none() && created.after.is_some_and(|e| e.record.id == id(2)));
    let gone = changes.try_recv().expect("the removal");
    assert!(gone.after.is_none() && gone.before.is_some_and(|e| e.record.id == id(1)));
    catalog.close_watches();
    assert!(matches!(changes.try_recv(), Err(broadcast::error::TryRecvError::Closed)));
}

#[test]
fn facts_about_what_is_not_there_are_dropped() {
    let catalog = catalog();
    let status = Arc::new(Status::default());
    catalog.apply([Fact::Status(id(1), status, NOW), Fact::Removed(id(1))]);
    assert_eq!(catalog.len(), 0);
}

#[test]
fn a_renamed_appliance_is_found_by_its_new_name_only() {
    let catalog = catalog();
    catalog.put_record(&Arc::new(record(1, "web")));
    catalog.put_record(&Arc::new(record(1, "shop")));
    assert_eq!(names(&catalog, &Filter::default()), ["default/shop"]);
    assert_eq!(catalog.id_of(&(name("default"), name("web"))), None);
    catalog.apply([Fact::Removed(id(1))]);
    assert_eq!(catalog.id_of(&(name("default"), name("shop"))), None);
}
