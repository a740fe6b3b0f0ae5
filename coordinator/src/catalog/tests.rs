//! Changes as tables: what is prepared, refused, shown, and what two changes in flight may do to each other.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use common::appliance::{Name, Spec};
use common::change::{ApplianceDraft, AppliancePatch, ApplianceUpdate, FixedFields, SpecPatch};
use common::driver::DriverName;
use common::kind::{Custom, KindSpec, Probe};
use common::status::Phase;
use common::{Generation, Term, Token};
use uuid::Uuid;

use super::*;
use crate::commands::{Change, ChangeOutcome, Changed, CommandError, Mutation, RequestKey};
use crate::record::Record;

const NOW: SystemTime = UNIX_EPOCH;

fn name(text: &str) -> Name {
    Name::new(text).expect("a valid name")
}

fn id(n: u128) -> ApplianceId {
    ApplianceId::from_u128(n)
}

fn spec(port: Option<u16>) -> Spec {
    let custom = Custom { command: "sleep".into(), args: vec![], env: BTreeMap::new(), port, probe: Probe::Tcp };
    Spec { replicas: 1, probe_interval: None, image: None, kind: KindSpec::Custom(custom) }
}

fn draft(text: &str, port: Option<u16>) -> ApplianceDraft {
    ApplianceDraft {
        id: None,
        name: name(text),
        tenant: name("default"),
        driver: DriverName::process(),
        placement_key: None,
        labels: BTreeMap::new(),
        spec: spec(port),
    }
}

fn catalog() -> Arc<Catalog> {
    Arc::new(Catalog::new(Config { max_appliances: 5, ..Config::default() }))
}

fn mutation(change: Change) -> Mutation {
    Mutation { change, validate_only: false, request: None, actor: "test".into() }
}

fn create(n: u128, draft: ApplianceDraft) -> Mutation {
    mutation(Change::Create { fresh: id(n), draft: Box::new(draft) })
}

fn patch(target: ApplianceTarget, patch: AppliancePatch) -> Mutation {
    let update = ApplianceUpdate { target, patch, expected: None, create: None };
    mutation(Change::Update { fresh: id(99), update: Box::new(update) })
}

fn delete(target: ApplianceTarget) -> Mutation {
    mutation(Change::Delete { target, expected: None, allow_missing: false })
}

fn rebuild(target: ApplianceTarget) -> Mutation {
    mutation(Change::Rebuild { target, image: None })
}

fn prepare(catalog: &Arc<Catalog>, mutation: &Mutation) -> Write {
    match catalog.prepare(mutation, NOW).expect("in order") {
        Prepared::Write(write) => write,
        Prepared::Done(done) => panic!("nothing to write: {done:?}"),
    }
}

fn run(catalog: &Arc<Catalog>, mutation: &Mutation) -> Result<Changed, CommandError> {
    Ok(match catalog.prepare(mutation, NOW)? {
        Prepared::Write(write) => write.commit(),
        Prepared::Done(done) => done,
    })
}

fn made(catalog: &Arc<Catalog>, n: u128, text: &str, port: Option<u16>) -> ApplianceTarget {
    run(catalog, &create(n, draft(text, port))).expect("in order");
    ApplianceTarget::Id(id(n))
}

fn refused(catalog: &Arc<Catalog>, mutation: &Mutation) -> CommandError {
    catalog.prepare(mutation, NOW).map(|_| ()).expect_err("must be refused")
}

fn violation(error: CommandError) -> (String, String) {
    let CommandError::Invalid(mut violations) = error else { panic!("another error: {error:?}") };
    let first = violations.remove(0);
    (first.field, first.description)
}

fn record(catalog: &Catalog, target: &ApplianceTarget) -> Arc<Record> {
    Arc::clone(&catalog.get(target).expect("it exists").record)
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
fn a_created_appliance_is_seen_once_it_is_committed() {
    let catalog = catalog();
    let write = prepare(&catalog, &create(1, draft("web", Some(80))));
    assert_eq!(write.outcome(), ChangeOutcome::Created);
    assert_eq!(write.audit().action, "create");
    assert!(catalog.get(&ApplianceTarget::Id(id(1))).is_none(), "the store does not have it yet");
    let entry = write.commit().entry.expect("a new appliance");
    assert_eq!((entry.record.generation, entry.record.placement_key.clone()), (Generation::new(1), id(1).to_string()));
    let by_name = catalog.get(&ApplianceTarget::Name(name("default"), name("web"))).expect("committed");
    assert_eq!(by_name, entry);
}

#[test]
fn what_is_taken_is_refused_with_its_holder() {
    let catalog = catalog();
    made(&catalog, 1, "web", Some(80));
    let taken = refused(&catalog, &create(2, draft("web", None)));
    assert!(matches!(taken, CommandError::NameTaken { by, deleting: false, .. } if by == id(1)), "{taken:?}");
    let same_id = ApplianceDraft { id: Some(id(1)), ..draft("other", None) };
    assert_eq!(refused(&catalog, &create(2, same_id)), CommandError::IdTaken(id(1)));
    let (field, description) = violation(refused(&catalog, &create(2, draft("other", Some(80)))));
    assert_eq!(field, "appliance.spec.custom.port");
    assert!(description.contains("default/web"), "{description}");
    let simulated = ApplianceDraft { driver: DriverName::simulated(), ..draft("sim", Some(80)) };
    run(&catalog, &create(3, simulated)).expect("a simulated appliance takes no port of the host");
}

#[test]
fn ports_of_different_hosts_do_not_meet_and_those_of_directories_do() {
    let catalog = catalog();
    for (n, text, port, site) in [(1, "a", 80, "h1:/a"), (2, "b", 81, "h2:/a"), (3, "c", 82, "h1:/b")] {
        made(&catalog, n, text, Some(port));
        let assignment = AssignmentView { site: Some(site.into()), ..AssignmentView::default() };
        catalog.apply([Fact::Assignment(id(n), assignment)]);
    }
    let port = |port| AppliancePatch { spec: Some(spec(Some(port))), ..AppliancePatch::default() };
    let (_, description) = violation(refused(&catalog, &patch(ApplianceTarget::Id(id(3)), port(80))));
    assert!(description.contains("default/a"), "{description}");
    run(&catalog, &patch(ApplianceTarget::Id(id(2)), port(80))).expect("they run on different hosts");
}

#[test]
fn a_cluster_holds_no_more_than_its_limit_also_in_flight() {
    let catalog = catalog();
    let writes: Vec<_> = (0..5).map(|n| prepare(&catalog, &create(n, draft(&format!("a{n}"), None)))).collect();
    assert_eq!(refused(&catalog, &create(9, draft("z", None))), CommandError::Full(5));
    drop(writes);
    prepare(&catalog, &create(9, draft("z", None)));
}

#[test]
fn changes_in_flight_keep_others_out_until_they_settle() {
    let catalog = catalog();
    let first = prepare(&catalog, &create(1, draft("web", Some(80))));
    for second in [
        create(2, draft("web", None)),
        create(2, ApplianceDraft { id: Some(id(1)), ..draft("other", None) }),
        create(2, draft("other", Some(80))),
        delete(ApplianceTarget::Name(name("default"), name("web"))),
        delete(ApplianceTarget::Id(id(1))),
    ] {
        assert_eq!(refused(&catalog, &second), CommandError::Contended, "{second:?}");
    }
    drop(first);
    made(&catalog, 2, "web", Some(80));
    let rename = AppliancePatch { name: Some(name("shop")), ..AppliancePatch::default() };
    let renamed = prepare(&catalog, &patch(ApplianceTarget::Id(id(2)), rename));
    assert_eq!(refused(&catalog, &create(3, draft("shop", None))), CommandError::Contended);
    assert_eq!(refused(&catalog, &rebuild(ApplianceTarget::Id(id(2)))), CommandError::Contended);
    renamed.commit();
    assert_eq!(names(&catalog, &Filter::default()), ["default/shop"]);
    made(&catalog, 3, "web", None);
}

#[test]
fn a_write_that_failed_leaves_nothing_behind() {
    let catalog = catalog();
    made(&catalog, 1, "web", Some(80));
    let moved = AppliancePatch { spec: Some(spec(Some(81))), ..AppliancePatch::default() };
    drop(prepare(&catalog, &patch(ApplianceTarget::Id(id(1)), moved.clone())));
    assert_eq!(record(&catalog, &ApplianceTarget::Id(id(1))).generation, Generation::new(1));
    made(&catalog, 2, "other", Some(81));
    assert!(violation(refused(&catalog, &patch(ApplianceTarget::Id(id(1)), moved))).1.contains("default/other"));
}

#[test]
fn ports_that_an_update_gives_up_are_free_again() {
    let catalog = catalog();
    let web = made(&catalog, 1, "web", Some(80));
    run(&catalog, &patch(web, AppliancePatch { spec: Some(spec(Some(81))), ..AppliancePatch::default() }))
        .expect("in order");
    made(&catalog, 2, "other", Some(80));
}

#[test]
fn updates_say_what_they_did() {
    let labels = BTreeMap::from([("app".to_owned(), "web".to_owned())]);
    let replicas = SpecPatch { replicas: Some(2), ..SpecPatch::default() };
    let cases = [
        ("nothing", AppliancePatch::default(), ChangeOutcome::Unchanged, 1),
        (
            "the same",
            AppliancePatch { spec: Some(spec(Some(80))), ..AppliancePatch::default() },
            ChangeOutcome::Unchanged,
            1,
        ),
        ("labels", AppliancePatch { labels: Some(labels), ..AppliancePatch::default() }, ChangeOutcome::Changed, 1),
        ("name", AppliancePatch { name: Some(name("shop")), ..AppliancePatch::default() }, ChangeOutcome::Changed, 2),
        ("spec", AppliancePatch { spec: Some(spec(Some(81))), ..AppliancePatch::default() }, ChangeOutcome::Changed, 2),
        ("a field", AppliancePatch { fields: replicas, ..AppliancePatch::default() }, ChangeOutcome::Changed, 2),
    ];
    for (what, change, outcome, generation) in cases {
        let catalog = catalog();
        let web = made(&catalog, 1, "web", Some(80));
        let done = run(&catalog, &patch(web.clone(), change)).expect("in order");
        assert_eq!((done.outcome, record(&catalog, &web).generation.get()), (outcome, generation), "{what}");
    }
}

#[test]
fn what_cannot_change_is_refused_by_name() {
    let catalog = catalog();
    let web = made(&catalog, 1, "web", None);
    let cases = [
        ("appliance.tenant", FixedFields { tenant: Some(name("other")), ..FixedFields::default() }),
        ("appliance.driver", FixedFields { driver: Some(DriverName::simulated()), ..FixedFields::default() }),
        ("appliance.placement_key", FixedFields { placement_key: Some("k".into()), ..FixedFields::default() }),
    ];
    for (field, fixed) in cases {
        let change = patch(web.clone(), AppliancePatch { fixed, ..AppliancePatch::default() });
        assert_eq!(violation(refused(&catalog, &change)).0, field);
    }
}

#[test]
fn a_stale_generation_is_refused_and_the_current_one_named() {
    let catalog = catalog();
    let web = made(&catalog, 1, "web", None);
    let (expected, current) = (Generation::new(7), Generation::new(1));
    let stale = CommandError::Stale { appliance: id(1), expected, current };
    let update = ApplianceUpdate {
        target: web.clone(),
        patch: AppliancePatch::default(),
        expected: Some(expected),
        create: None,
    };
    let update = Change::Update { fresh: id(9), update: Box::new(update) };
    assert_eq!(refused(&catalog, &mutation(update)), stale);
    let delete = Change::Delete { target: web, expected: Some(expected), allow_missing: true };
    assert_eq!(refused(&catalog, &mutation(delete)), stale);
}

#[test]
fn upserts_create_what_is_missing_and_change_what_is_there() {
    let catalog = catalog();
    let upsert = |port| {
        let update = ApplianceUpdate {
            target: ApplianceTarget::Name(name("default"), name("web")),
            patch: AppliancePatch { spec: Some(spec(port)), ..AppliancePatch::default() },
            expected: None,
            create: Some(draft("web", port)),
        };
        mutation(Change::Update { fresh: id(1), update: Box::new(update) })
    };
    let outcomes = [Some(80), Some(80), Some(81)].map(|port| run(&catalog, &upsert(port)).expect("in order").outcome);
    assert_eq!(outcomes, [ChangeOutcome::Created, ChangeOutcome::Unchanged, ChangeOutcome::Changed]);
    let missing = ApplianceTarget::Name(name("default"), name("nobody"));
    assert_eq!(refused(&catalog, &patch(missing.clone(), AppliancePatch::default())), CommandError::NotFound(missing));
}

#[test]
fn a_deleted_appliance_refuses_changes_and_keeps_its_name_until_it_is_gone() {
    let catalog = catalog();
    let web = made(&catalog, 1, "web", Some(80));
    let done = run(&catalog, &delete(web.clone())).expect("in order");
    assert!(done.entry.expect("still there").record.deleting);
    assert_eq!(record(&catalog, &web).generation, Generation::new(2));
    assert_eq!(run(&catalog, &delete(web.clone())).expect("again is fine").outcome, ChangeOutcome::Unchanged);
    assert_eq!(refused(&catalog, &patch(web.clone(), AppliancePatch::default())), CommandError::Deleting(id(1)));
    assert_eq!(refused(&catalog, &rebuild(web.clone())), CommandError::Deleting(id(1)));
    let taken = refused(&catalog, &create(2, draft("web", None)));
    assert!(matches!(taken, CommandError::NameTaken { deleting: true, .. }), "{taken:?}");
    catalog.apply([Fact::Removed(id(1))]);
    assert!(matches!(refused(&catalog, &delete(web.clone())), CommandError::NotFound(_)));
    let lenient = mutation(Change::Delete { target: web, expected: None, allow_missing: true });
    assert!(run(&catalog, &lenient).expect("no error").entry.is_none());
    made(&catalog, 2, "web", Some(80));
}

#[test]
fn a_rebuild_raises_the_revision_and_takes_the_image() {
    let catalog = catalog();
    let web = made(&catalog, 1, "web", None);
    let image = mutation(Change::Rebuild { target: web.clone(), image: Some("v2".into()) });
    run(&catalog, &image).expect("in order");
    let record = record(&catalog, &web);
    assert_eq!((record.revision, record.generation.get(), record.spec.image.as_deref()), (1, 2, Some("v2")));
    let too_long = mutation(Change::Rebuild { target: web, image: Some("x".repeat(5000)) });
    assert_eq!(violation(refused(&catalog, &too_long)).0, "image");
}

#[test]
fn a_spec_whose_stored_form_is_too_large_is_refused() {
    let mut large = draft("web", None);
    let KindSpec::Custom(custom) = &mut large.spec.kind else { unreachable!("made above") };
    custom.args = vec!["\u{1}".repeat(4000); 100];
    let (field, description) = violation(refused(&catalog(), &create(1, large)));
    assert_eq!(field, "appliance.spec");
    assert!(description.contains("at most 262144"), "{description}");
}

#[test]
fn checking_only_changes_and_reserves_nothing() {
    let catalog = catalog();
    let check = Mutation { validate_only: true, ..create(1, draft("web", Some(80))) };
    for _ in 0..2 {
        let done = run(&catalog, &check).expect("in order");
        assert_eq!((done.outcome, done.entry.is_some()), (ChangeOutcome::Created, true));
    }
    assert!(catalog.is_empty());
    made(&catalog, 2, "web", Some(80));
}

#[test]
fn a_repeated_request_answers_as_the_first_did() {
    let catalog = catalog();
    let key = |digest| Some(RequestKey { id: Uuid::from_u128(7), digest: [digest; 16] });
    let call = |n, digest| Mutation { request: key(digest), ..create(n, draft("web", None)) };
    let first = prepare(&catalog, &call(1, 1));
    assert_eq!(first.request().expect("it has an id").appliance, id(1));
    assert_eq!(refused(&catalog, &call(2, 1)), CommandError::Contended, "the first is being written");
    first.commit();
    let again = run(&catalog, &call(2, 1)).expect("a repeat");
    assert_eq!((again.outcome, again.entry.expect("the first one").record.id), (ChangeOutcome::Created, id(1)));
    assert_eq!(refused(&catalog, &call(2, 2)), CommandError::RequestReused(Uuid::from_u128(7)));
    catalog.apply([Fact::Removed(id(1))]);
    assert_eq!(refused(&catalog, &call(2, 1)), CommandError::RequestedGone(id(1)));
    let later = NOW + Duration::from_secs(25 * 3600);
    assert!(catalog.prepare(&call(2, 1), later).is_ok(), "a day later it is a new call");
}

#[test]
fn requests_are_remembered_over_a_restart() {
    let catalog = catalog();
    let key = RequestKey { id: Uuid::from_u128(7), digest: [1; 16] };
    let call = Mutation { request: Some(key), ..create(1, draft("web", None)) };
    let write = prepare(&catalog, &call);
    let (request, record) = (write.request().cloned().expect("it has an id"), Arc::clone(write.record().expect("new")));
    let restarted = self::catalog();
    let entry = CatalogEntry { record, status: None, assignment: AssignmentView::default() };
    restarted.load(Loaded { term: Term::new(2), entries: vec![entry], requests: vec![request], rebalances: vec![] });
    let again = run(&restarted, &call).expect("a repeat");
    assert_eq!((again.outcome, again.entry.expect("the first one").record.id), (ChangeOutcome::Created, id(1)));
}

#[test]
fn a_write_from_before_a_load_changes_nothing_after_it() {
    let catalog = catalog();
    let write = prepare(&catalog, &create(1, draft("web", None)));
    catalog.load(Loaded::default());
    write.commit();
    assert!(catalog.is_empty());
}

#[test]
fn lists_are_ordered_and_filtered() {
    let catalog = catalog();
    for (n, tenant, text) in [(1, "b", "x"), (2, "a", "web-2"), (3, "a", "web-1"), (4, "a", "db")] {
        let mut draft = draft(text, None);
        draft.tenant = name(tenant);
        draft.labels = BTreeMap::from([("n".to_owned(), n.to_string())]);
        run(&catalog, &create(n, draft)).expect("in order");
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
    let web = made(&catalog, 1, "web", None);
    let worker = WorkerId::new("w1").expect("a valid name");
    let assignment = AssignmentView {
        state: "owned",
        worker: Some(worker.clone()),
        token: Some(Token::new(Term::new(1), 1)),
        ..AssignmentView::default()
    };
    let configured = Arc::new(Status { phase: Phase::Configured, ..Status::default() });
    catalog.apply([Fact::Status(id(1), configured, NOW), Fact::Assignment(id(1), assignment)]);
    run(&catalog, &rebuild(web)).expect("in order");
    assert_eq!(catalog.held_by(&worker).iter().collect::<Vec<_>>(), [(Phase::Configured, 1)]);
    catalog.apply([Fact::Removed(id(1))]);
    assert_eq!(catalog.read().counts, Counts::default());
}

#[test]
fn a_watch_starts_with_what_is_there_and_misses_nothing() {
    let catalog = catalog();
    made(&catalog, 1, "a", None);
    let (current, mut changes) = catalog.watch(&Filter::default());
    assert_eq!(current.len(), 1);
    made(&catalog, 2, "b", None);
    catalog.apply([Fact::Removed(id(1))]);
    let created = changes.try_recv().expect("the creation");
    assert!(created.before.is_none() && created.after.is_some_and(|e| e.record.id == id(2)));
    let gone = changes.try_recv().expect("the removal");
    assert!(gone.after.is_none() && gone.before.is_some_and(|e| e.record.id == id(1)));
    catalog.close_watches();
    assert!(matches!(changes.try_recv(), Err(broadcast::error::TryRecvError::Closed)));
}

#[test]
fn news_of_what_is_not_there_is_dropped() {
    let catalog = catalog();
    let status = Arc::new(Status::default());
    catalog.apply([Fact::Status(id(1), status, NOW), Fact::Removed(id(1))]);
    assert!(catalog.is_empty());
}
