//! Changes as tables: what is admitted, refused, shown, and what two changes under way may do to each other.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use common::Generation;
use common::appliance::{Name, Spec, Timing};
use common::change::{ApplianceDraft, AppliancePatch, ApplianceUpdate, FixedFields, SpecPatch};
use common::driver::{DriverCapabilities, DriverName, DriverOffers};
use common::kind::{Custom, KindSpec};
use common::manager::Manager;
use uuid::Uuid;

use super::*;
use crate::access::Scope;
use crate::catalog::{Config, Fact};
use crate::commands::{ChangeOrigin, RequestKey};

const NOW: SystemTime = UNIX_EPOCH;

fn name(text: &str) -> Name {
    Name::new(text).expect("a valid name")
}

fn id(n: u128) -> ApplianceId {
    ApplianceId::from_u128(n)
}

fn spec(port: Option<u16>) -> Spec {
    let custom = Custom { command: "sleep".into(), port, ..Custom::default() };
    Spec {
        replicas: 1,
        probe_interval: None,
        timing: Timing::default(),
        image: None,
        pod: None,
        ports: vec![],
        kind: KindSpec::Custom(custom),
    }
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

fn admission() -> Admission {
    let catalog = Catalog::new(Config { max_appliances: 5, ..Config::default() });
    Admission::new(Arc::new(catalog), Term::new(1), &[], Arc::default())
}

fn mutation(change: Change) -> Mutation {
    let origin = ChangeOrigin::Client { force: false, scope: Scope::All };
    Mutation { change, validate_only: false, request: None, actor: "test".into(), origin }
}

fn create(n: u128, draft: ApplianceDraft) -> Mutation {
    mutation(Change::Create { fresh: id(n), draft: Box::new(draft) })
}

fn patch(target: ApplianceTarget, patch: AppliancePatch) -> Mutation {
    let update = ApplianceUpdate { target, patch, expected: None, create: None };
    mutation(Change::Update { fresh: id(99), update: Box::new(update) })
}

fn delete(target: ApplianceTarget) -> Mutation {
    mutation(Change::Delete { target, expected: None, allow_missing: false, at_once: false })
}

fn rebuild(target: ApplianceTarget) -> Mutation {
    mutation(Change::Rebuild { target, image: None, force: false })
}

fn admit(admission: &mut Admission, mutation: &Mutation) -> AdmittedChange {
    match admission.admit(mutation, NOW).expect("in order") {
        Admitted::Write(change) => change,
        Admitted::Done(done) => panic!("nothing to write: {done:?}"),
    }
}

fn run(admission: &mut Admission, mutation: &Mutation) -> Result<Changed, CommandError> {
    Ok(match admission.admit(mutation, NOW)? {
        Admitted::Write(change) => admission.commit(change),
        Admitted::Done(done) => done,
    })
}

fn made(admission: &mut Admission, n: u128, text: &str, port: Option<u16>) -> ApplianceTarget {
    run(admission, &create(n, draft(text, port))).expect("in order");
    ApplianceTarget::Id(id(n))
}

fn refused(admission: &mut Admission, mutation: &Mutation) -> CommandError {
    match admission.admit(mutation, NOW) {
        Err(error) => error,
        Ok(admitted) => panic!("must be refused: {admitted:?}"),
    }
}

/// Nothing is left of an appliance, as the leader tells the two in turn.
fn remove(admission: &mut Admission, n: u128) {
    admission.removed(id(n));
    admission.catalog.apply([Fact::Removed(id(n))]);
}

fn violation(error: CommandError) -> (String, String) {
    let CommandError::Invalid(mut violations) = error else { panic!("another error: {error:?}") };
    let first = violations.remove(0);
    (first.field, first.description)
}

fn record(admission: &Admission, target: &ApplianceTarget) -> Arc<Record> {
    Arc::clone(&admission.catalog.get(target).expect("it exists").record)
}

#[test]
fn a_created_appliance_is_seen_once_it_is_committed() {
    let mut admission = admission();
    let write = admit(&mut admission, &create(1, draft("web", Some(80))));
    assert_eq!(write.outcome(), ChangeOutcome::Created);
    assert_eq!(write.audit().map(|audit| audit.action.as_str()), Some("create"));
    assert!(admission.catalog.get(&ApplianceTarget::Id(id(1))).is_none(), "the store does not have it yet");
    let entry = admission.commit(write).entry.expect("a new appliance");
    assert_eq!((entry.record.generation, entry.record.placement_key.clone()), (Generation::new(1), id(1).to_string()));
    let by_name = admission.catalog.get(&ApplianceTarget::Name(name("default"), name("web"))).expect("committed");
    assert_eq!(by_name, entry);
}

#[test]
fn what_is_taken_is_refused_with_its_holder() {
    let mut admission = admission();
    made(&mut admission, 1, "web", Some(80));
    let taken = refused(&mut admission, &create(2, draft("web", None)));
    assert!(matches!(taken, CommandError::NameTaken { by, deleting: false, .. } if by == id(1)), "{taken:?}");
    let same_id = ApplianceDraft { id: Some(id(1)), ..draft("other", None) };
    assert_eq!(refused(&mut admission, &create(2, same_id)), CommandError::IdTaken(id(1)));
    let (field, description) = violation(refused(&mut admission, &create(2, draft("other", Some(80)))));
    assert_eq!(field, "appliance.spec.custom.port");
    assert!(description.contains("default/web"), "{description}");
    let simulated = ApplianceDraft { driver: DriverName::simulated(), ..draft("sim", Some(80)) };
    run(&mut admission, &create(3, simulated)).expect("a simulated appliance takes no port of the host");
}

/// A worker that offers a driver of this test, bound to its host or not.
fn offers(state_dir: Option<&str>) -> [DriverOffers; 1] {
    [[(other_driver(), DriverCapabilities::of_all_kinds(state_dir))].into()]
}

fn other_driver() -> DriverName {
    DriverName::new("other").expect("a name")
}

fn on_other(text: &str) -> ApplianceDraft {
    ApplianceDraft { driver: other_driver(), ..draft(text, Some(80)) }
}

#[test]
fn ports_count_for_a_driver_until_a_worker_says_that_they_need_not() {
    let mut admission = admission();
    run(&mut admission, &create(1, on_other("a"))).expect("the port is free");
    let (field, description) = violation(refused(&mut admission, &create(2, on_other("b"))));
    assert_eq!(field, "appliance.spec.custom.port");
    assert!(description.contains("no worker has said yet whether instances of driver `other` share"), "{description}");
    made(&mut admission, 3, "web", Some(81));

    admission.learn_drivers(&offers(None));
    run(&mut admission, &create(2, on_other("b"))).expect("each instance has an address of its own");
    made(&mut admission, 4, "web-80", Some(80));

    admission.learn_drivers(&offers(Some("/d")));
    let (_, description) = violation(refused(&mut admission, &create(5, on_other("c"))));
    assert!(!description.contains("no worker has said"), "{description}");
    admission.learn_drivers(&[]);
    refused(&mut admission, &create(5, on_other("c")));

    for n in [1, 2, 4] {
        remove(&mut admission, n);
    }
    run(&mut admission, &create(5, on_other("c"))).expect("whatever was claimed is free again");
    refused(&mut admission, &create(6, draft("other-81", Some(81))));
}

#[test]
fn what_is_learned_of_a_driver_while_an_appliance_is_written_counts_for_it() {
    for bound in [true, false] {
        let mut admission = admission();
        admission.learn_drivers(&offers((!bound).then_some("/d")));
        let write = admit(&mut admission, &create(1, on_other("a")));
        admission.learn_drivers(&offers(bound.then_some("/d")));
        let _ = admission.commit(write);
        match admission.admit(&create(2, draft("b", Some(80))), NOW) {
            Ok(_) => assert!(!bound, "the port is claimed"),
            Err(error) => assert!(bound, "{error}"),
        }
    }
}

#[test]
fn ports_of_different_hosts_do_not_meet_and_those_of_directories_do() {
    let mut admission = admission();
    for (n, text, port, site) in [(1, "a", 80, "h1:/a"), (2, "b", 81, "h2:/a"), (3, "c", 82, "h1:/b")] {
        made(&mut admission, n, text, Some(port));
        let assignment = AssignmentView { site: Some(site.into()), ..AssignmentView::default() };
        admission.catalog.apply([Fact::Assignment(id(n), assignment)]);
    }
    let port = |port| AppliancePatch { spec: Some(spec(Some(port))), ..AppliancePatch::default() };
    let (_, description) = violation(refused(&mut admission, &patch(ApplianceTarget::Id(id(3)), port(80))));
    assert!(description.contains("default/a"), "{description}");
    run(&mut admission, &patch(ApplianceTarget::Id(id(2)), port(80))).expect("they run on different hosts");
    let met = admission.check_unbind(id(1)).expect_err("unbound, it could come to h2");
    assert!(matches!(&met, CommandError::PortTaken { problem, .. } if problem.contains("default/b")), "{met:?}");
    assert_eq!(admission.check_unbind(id(3)), Ok(()));
    let _change = admit(&mut admission, &rebuild(ApplianceTarget::Id(id(3))));
    assert_eq!(admission.check_unbind(id(3)), Err(CommandError::Contended));
    assert!(matches!(admission.check_unbind(id(9)), Err(CommandError::NotFound(_))));
}

#[test]
fn what_a_source_manages_is_changed_by_that_source_or_by_force() {
    let mut admission = admission();
    let by = |origin: ChangeOrigin, mutation: Mutation| Mutation { origin, ..mutation };
    let manager = |text: &str| text.parse::<Manager>().expect("a manager");
    let source = |text: &str, adopt| ChangeOrigin::Source { name: manager(text), adopt };
    let neutron = || source("neutron", false);
    let force = || ChangeOrigin::Client { force: true, scope: Scope::All };
    let relabel = |n: u128, label: &str| {
        let labels = BTreeMap::from([("tier".to_owned(), label.to_owned())]);
        patch(ApplianceTarget::Id(id(n)), AppliancePatch { labels: Some(labels), ..AppliancePatch::default() })
    };
    let web = ApplianceTarget::Id(id(1));
    run(&mut admission, &by(neutron(), create(1, draft("web", None)))).expect("a source creates");
    assert_eq!(record(&admission, &web).managed_by, Some(manager("neutron")));
    let managed = CommandError::Managed { appliance: id(1), by: manager("neutron") };
    assert_eq!(
        managed.to_string(),
        format!("appliance {} is managed by `neutron`; change it there, or use --force", id(1))
    );
    assert_eq!(refused(&mut admission, &relabel(1, "a")), managed);
    assert_eq!(refused(&mut admission, &delete(web.clone())), managed);
    run(&mut admission, &rebuild(web.clone())).expect("what is wanted stays");
    let other = by(source("kubernetes/a/web", true), relabel(1, "b"));
    let not_managed = |source: &str, n| CommandError::NotManaged { appliance: id(n), source_name: manager(source) };
    assert_eq!(refused(&mut admission, &other), not_managed("kubernetes/a/web", 1));
    run(&mut admission, &by(neutron(), relabel(1, "c"))).expect("it manages it");
    run(&mut admission, &relabel(1, "c")).expect("nothing changes");
    run(&mut admission, &by(force(), relabel(1, "d"))).expect("forced");
    assert_eq!(record(&admission, &web).managed_by, Some(manager("neutron")), "that does not change who manages it");

    let own = made(&mut admission, 2, "own", None);
    assert_eq!(refused(&mut admission, &by(neutron(), relabel(2, "e"))), not_managed("neutron", 2));
    assert_eq!(refused(&mut admission, &by(neutron(), delete(own.clone()))), not_managed("neutron", 2));
    assert_eq!(record(&admission, &own).managed_by, None);

    let adopting = || source("kubernetes/a/own", true);
    let generation = record(&admission, &own).generation;
    run(&mut admission, &by(adopting(), relabel(2, "f"))).expect("nobody manages it");
    assert_eq!(record(&admission, &own).managed_by, Some(manager("kubernetes/a/own")));
    assert_eq!(record(&admission, &own).generation, generation, "its owner does not know who manages it");
    let release = || mutation(Change::Release { target: own.clone() });
    assert_eq!(
        refused(&mut admission, &by(source("kubernetes/b/own", true), release())),
        not_managed("kubernetes/b/own", 2)
    );
    assert!(matches!(refused(&mut admission, &release()), CommandError::Managed { .. }));
    run(&mut admission, &by(adopting(), release())).expect("it manages it");
    assert_eq!(record(&admission, &own).managed_by, None);
    run(&mut admission, &relabel(2, "g")).expect("clients do again");
    run(&mut admission, &by(force(), delete(web))).expect("forced");
}

#[test]
fn a_cluster_holds_no_more_than_its_limit_also_in_flight() {
    let mut admission = admission();
    let writes: Vec<_> = (1..=5).map(|n| admit(&mut admission, &create(n, draft(&format!("a{n}"), None)))).collect();
    assert_eq!(refused(&mut admission, &create(9, draft("z", None))), CommandError::Full(5));
    writes.into_iter().for_each(|change| admission.withdraw(change));
    let _created = admit(&mut admission, &create(9, draft("z", None)));
}

#[test]
fn changes_in_flight_keep_others_out_until_they_settle() {
    let mut admission = admission();
    let first = admit(&mut admission, &create(1, draft("web", Some(80))));
    for second in [
        create(2, draft("web", None)),
        create(2, ApplianceDraft { id: Some(id(1)), ..draft("other", None) }),
        create(2, draft("other", Some(80))),
        delete(ApplianceTarget::Name(name("default"), name("web"))),
        delete(ApplianceTarget::Id(id(1))),
    ] {
        assert_eq!(refused(&mut admission, &second), CommandError::Contended, "{second:?}");
    }
    admission.withdraw(first);
    made(&mut admission, 2, "web", Some(80));
    let rename = AppliancePatch { name: Some(name("shop")), ..AppliancePatch::default() };
    let renamed = admit(&mut admission, &patch(ApplianceTarget::Id(id(2)), rename));
    assert_eq!(refused(&mut admission, &create(3, draft("shop", None))), CommandError::Contended);
    assert_eq!(refused(&mut admission, &rebuild(ApplianceTarget::Id(id(2)))), CommandError::Contended);
    admission.commit(renamed);
    assert_eq!(record(&admission, &ApplianceTarget::Id(id(2))).name, name("shop"));
    made(&mut admission, 3, "web", None);
}

#[test]
fn a_write_that_failed_leaves_nothing_behind() {
    let mut admission = admission();
    made(&mut admission, 1, "web", Some(80));
    let moved = AppliancePatch { spec: Some(spec(Some(81))), ..AppliancePatch::default() };
    let change = admit(&mut admission, &patch(ApplianceTarget::Id(id(1)), moved.clone()));
    admission.withdraw(change);
    assert_eq!(record(&admission, &ApplianceTarget::Id(id(1))).generation, Generation::new(1));
    made(&mut admission, 2, "other", Some(81));
    assert!(violation(refused(&mut admission, &patch(ApplianceTarget::Id(id(1)), moved))).1.contains("default/other"));
}

#[test]
fn ports_that_an_update_gives_up_are_free_again() {
    let mut admission = admission();
    let web = made(&mut admission, 1, "web", Some(80));
    run(&mut admission, &patch(web, AppliancePatch { spec: Some(spec(Some(81))), ..AppliancePatch::default() }))
        .expect("in order");
    made(&mut admission, 2, "other", Some(80));
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
        let mut admission = admission();
        let web = made(&mut admission, 1, "web", Some(80));
        let done = run(&mut admission, &patch(web.clone(), change)).expect("in order");
        assert_eq!((done.outcome, record(&admission, &web).generation.get()), (outcome, generation), "{what}");
    }
}

#[test]
fn what_cannot_change_is_refused_by_name() {
    let mut admission = admission();
    let web = made(&mut admission, 1, "web", None);
    let cases = [
        ("appliance.tenant", FixedFields { tenant: Some(name("other")), ..FixedFields::default() }),
        ("appliance.driver", FixedFields { driver: Some(DriverName::simulated()), ..FixedFields::default() }),
        ("appliance.placement_key", FixedFields { placement_key: Some("k".into()), ..FixedFields::default() }),
    ];
    for (field, fixed) in cases {
        let change = patch(web.clone(), AppliancePatch { fixed, ..AppliancePatch::default() });
        assert_eq!(violation(refused(&mut admission, &change)).0, field);
    }
}

#[test]
fn a_stale_generation_is_refused_and_the_current_one_named() {
    let mut admission = admission();
    let web = made(&mut admission, 1, "web", None);
    let (expected, current) = (Generation::new(7), Generation::new(1));
    let stale = CommandError::Stale { appliance: id(1), expected, current };
    let update = ApplianceUpdate {
        target: web.clone(),
        patch: AppliancePatch::default(),
        expected: Some(expected),
        create: None,
    };
    let update = Change::Update { fresh: id(9), update: Box::new(update) };
    assert_eq!(refused(&mut admission, &mutation(update)), stale);
    let delete = Change::Delete { target: web, expected: Some(expected), allow_missing: true, at_once: false };
    assert_eq!(refused(&mut admission, &mutation(delete)), stale);
}

#[test]
fn upserts_create_what_is_missing_and_change_what_is_there() {
    let mut admission = admission();
    let upsert = |port| {
        let update = ApplianceUpdate {
            target: ApplianceTarget::Name(name("default"), name("web")),
            patch: AppliancePatch { spec: Some(spec(port)), ..AppliancePatch::default() },
            expected: None,
            create: Some(draft("web", port)),
        };
        mutation(Change::Update { fresh: id(1), update: Box::new(update) })
    };
    let outcomes =
        [Some(80), Some(80), Some(81)].map(|port| run(&mut admission, &upsert(port)).expect("in order").outcome);
    assert_eq!(outcomes, [ChangeOutcome::Created, ChangeOutcome::Unchanged, ChangeOutcome::Changed]);
    let missing = ApplianceTarget::Name(name("default"), name("nobody"));
    assert_eq!(
        refused(&mut admission, &patch(missing.clone(), AppliancePatch::default())),
        CommandError::NotFound(missing)
    );
}

#[test]
fn a_deleted_appliance_refuses_changes_and_keeps_its_name_until_it_is_gone() {
    let mut admission = admission();
    let web = made(&mut admission, 1, "web", Some(80));
    let done = run(&mut admission, &delete(web.clone())).expect("in order");
    assert!(done.entry.expect("still there").record.deleting);
    assert_eq!(record(&admission, &web).generation, Generation::new(2));
    assert_eq!(run(&mut admission, &delete(web.clone())).expect("again is fine").outcome, ChangeOutcome::Unchanged);
    let lies_still = AssignmentView { quarantined: true, ..AssignmentView::default() };
    admission.catalog.apply([Fact::Assignment(id(1), lies_still)]);
    assert_eq!(run(&mut admission, &delete(web.clone())).expect("to try again").outcome, ChangeOutcome::Changed);
    assert_eq!(record(&admission, &web).generation, Generation::new(3));
    admission.catalog.apply([Fact::Assignment(id(1), AssignmentView::default())]);
    assert_eq!(refused(&mut admission, &patch(web.clone(), AppliancePatch::default())), CommandError::Deleting(id(1)));
    assert_eq!(refused(&mut admission, &rebuild(web.clone())), CommandError::Deleting(id(1)));
    let taken = refused(&mut admission, &create(2, draft("web", None)));
    assert!(matches!(taken, CommandError::NameTaken { deleting: true, .. }), "{taken:?}");
    remove(&mut admission, 1);
    assert!(matches!(refused(&mut admission, &delete(web.clone())), CommandError::NotFound(_)));
    let lenient = mutation(Change::Delete { target: web, expected: None, allow_missing: true, at_once: false });
    assert!(run(&mut admission, &lenient).expect("no error").entry.is_none());
    made(&mut admission, 2, "web", Some(80));
}

#[test]
fn a_deletion_is_hurried_once_also_while_it_is_under_way() {
    let mut admission = admission();
    let web = ApplianceTarget::Id(id(1));
    made(&mut admission, 1, "web", None);
    let deletion =
        |at_once| mutation(Change::Delete { target: web.clone(), expected: None, allow_missing: false, at_once });
    run(&mut admission, &deletion(false)).expect("in order");
    let before = record(&admission, &web);
    assert_eq!(before.spec.kind.stop().timeout, None);
    for outcome in [ChangeOutcome::Changed, ChangeOutcome::Unchanged] {
        assert_eq!(run(&mut admission, &deletion(true)).expect("in order").outcome, outcome);
        let after = record(&admission, &web);
        assert!(after.deleting && after.generation > before.generation);
        assert_eq!(after.spec.kind.stop().timeout, Some(std::time::Duration::ZERO));
    }
}

#[test]
fn a_delete_that_found_nothing_is_remembered() {
    let mut admission = admission();
    let target = ApplianceTarget::Name(name("default"), name("web"));
    let key = RequestKey::new(Uuid::from_u128(5), &Scope::All, b"delete web");
    let change = Change::Delete { target: target.clone(), expected: None, allow_missing: true, at_once: false };
    let lenient = Mutation { request: Some(key), ..mutation(change) };
    let written = admit(&mut admission, &lenient);
    assert!(written.record().is_none() && written.audit().is_none());
    assert_eq!(refused(&mut admission, &lenient), CommandError::Contended, "while it is being stored");
    let stored = written.request().cloned().expect("it is remembered");
    let done = admission.commit(written);
    assert!(done.entry.is_none() && done.outcome == ChangeOutcome::Unchanged);
    made(&mut admission, 1, "web", None);
    let again = run(&mut admission, &lenient).expect("a repeat");
    assert!(again.entry.is_none(), "what was made since is not touched");
    assert!(!record(&admission, &ApplianceTarget::Id(id(1))).deleting);
    // The next leader knows it, too.
    let mut next = Admission::new(Arc::clone(&admission.catalog), Term::new(2), &[stored], Arc::default());
    assert!(run(&mut next, &lenient).expect("a repeat").entry.is_none());
    assert!(!record(&next, &ApplianceTarget::Id(id(1))).deleting);
}

#[test]
fn a_rebuild_raises_the_revision_and_takes_the_image() {
    let mut admission = admission();
    let web = made(&mut admission, 1, "web", None);
    let image = mutation(Change::Rebuild { target: web.clone(), image: Some("v2".into()), force: false });
    run(&mut admission, &image).expect("in order");
    let record = record(&admission, &web);
    assert_eq!((record.revision, record.generation.get(), record.spec.image.as_deref()), (1, 2, Some("v2")));
    let too_long = mutation(Change::Rebuild { target: web, image: Some("x".repeat(5000)), force: false });
    assert_eq!(violation(refused(&mut admission, &too_long)).0, "image");
}

#[test]
fn a_spec_whose_stored_form_is_too_large_is_refused() {
    let mut large = draft("web", None);
    let KindSpec::Custom(custom) = &mut large.spec.kind else { unreachable!("made above") };
    custom.args = vec!["\u{1}".repeat(4000); 100];
    let (field, description) = violation(refused(&mut admission(), &create(1, large)));
    assert_eq!(field, "appliance.spec");
    assert!(description.contains("at most 262144"), "{description}");
}

#[test]
fn checking_only_changes_and_reserves_nothing() {
    let mut admission = admission();
    let check = Mutation { validate_only: true, ..create(1, draft("web", Some(80))) };
    for _ in 0..2 {
        let done = run(&mut admission, &check).expect("in order");
        assert_eq!((done.outcome, done.entry.is_some()), (ChangeOutcome::Created, true));
    }
    assert_eq!(admission.catalog.len(), 0);
    made(&mut admission, 2, "web", Some(80));
}

#[test]
fn a_repeated_request_answers_as_the_first_did() {
    let mut admission = admission();
    let key = |digest| Some(RequestKey { id: Uuid::from_u128(7), digest: [digest; 16] });
    let call = |n, digest| Mutation { request: key(digest), ..create(n, draft("web", None)) };
    let first = admit(&mut admission, &call(1, 1));
    assert_eq!(first.request().expect("it has an id").appliance, id(1));
    assert_eq!(refused(&mut admission, &call(2, 1)), CommandError::Contended, "the first is being written");
    admission.commit(first);
    let again = run(&mut admission, &call(2, 1)).expect("a repeat");
    assert_eq!((again.outcome, again.entry.expect("the first one").record.id), (ChangeOutcome::Created, id(1)));
    assert_eq!(refused(&mut admission, &call(2, 2)), CommandError::RequestReused(Uuid::from_u128(7)));
    remove(&mut admission, 1);
    assert_eq!(refused(&mut admission, &call(2, 1)), CommandError::RequestedGone(id(1)));
    let later = NOW + Duration::from_secs(25 * 3600);
    assert!(admission.admit(&call(2, 1), later).is_ok(), "a day later it is a new call");
}

#[test]
fn requests_are_remembered_over_a_restart() {
    let mut admission = admission();
    let key = RequestKey { id: Uuid::from_u128(7), digest: [1; 16] };
    let call = Mutation { request: Some(key), ..create(1, draft("web", None)) };
    let write = admit(&mut admission, &call);
    let (request, record) = (write.request().cloned().expect("it has an id"), Arc::clone(write.record().expect("new")));
    let catalog = Arc::new(Catalog::new(Config::default()));
    catalog.load(vec![CatalogEntry { record, status: None, assignment: AssignmentView::default() }], vec![]);
    let mut restarted = Admission::new(catalog, Term::new(2), &[request], Arc::default());
    let again = run(&mut restarted, &call).expect("a repeat");
    assert_eq!((again.outcome, again.entry.expect("the first one").record.id), (ChangeOutcome::Created, id(1)));
}

#[tokio::test]
async fn whoever_waits_for_a_change_is_woken_when_it_settles_or_the_term_ends() {
    let settled = Arc::new(Notify::new());
    let catalog = Arc::new(Catalog::new(Config::default()));
    let mut admission = Admission::new(catalog, Term::new(1), &[], Arc::clone(&settled));
    let waiting = settled.notified();
    let change = admit(&mut admission, &create(1, draft("web", None)));
    admission.commit(change);
    waiting.await;
    let waiting = settled.notified();
    drop(admission);
    waiting.await;
}

#[test]
fn an_appliance_that_cannot_be_read_keeps_its_id_and_its_name() {
    let mut admission = admission();
    admission.reserve_unreadable(id(1), Some((name("default"), name("web"))));
    let same_id = ApplianceDraft { id: Some(id(1)), ..draft("other", None) };
    assert_eq!(refused(&mut admission, &create(2, same_id)), CommandError::IdTaken(id(1)));
    let taken = refused(&mut admission, &create(2, draft("web", None)));
    assert!(matches!(taken, CommandError::NameTaken { by, deleting: false, .. } if by == id(1)), "{taken:?}");
}

#[test]
fn a_preview_says_what_specification_would_be_written_and_reserves_nothing() {
    let mut admission = admission();
    let key = RequestKey { id: Uuid::from_u128(7), digest: [1; 16] };
    let web = Mutation { request: Some(key), validate_only: true, ..create(1, draft("web", Some(80))) };
    let (record, previous) = admission.preview(&web, NOW).expect("it is in order");
    assert_eq!((record.id, &record.spec, previous), (id(1), &spec(Some(80)), None));
    let under_way = admit(&mut admission, &Mutation { validate_only: false, ..web.clone() });
    assert!(admission.preview(&create(2, draft("web", None)), NOW).is_none(), "admission says why not");
    admission.commit(under_way);
    assert!(admission.preview(&web, NOW).is_none(), "what was carried out is not carried out anew");
    let target = ApplianceTarget::Id(id(1));
    let labels = AppliancePatch { labels: Some(BTreeMap::new()), ..AppliancePatch::default() };
    let same = AppliancePatch { spec: Some(spec(Some(80))), name: Some(name("shop")), ..AppliancePatch::default() };
    for nothing in [patch(target.clone(), labels), patch(target.clone(), same), rebuild(target.clone())] {
        assert!(admission.preview(&nothing, NOW).is_none(), "{nothing:?}");
    }
    let moved = patch(target.clone(), AppliancePatch { spec: Some(spec(Some(81))), ..AppliancePatch::default() });
    let (record, previous) = admission.preview(&moved, NOW).expect("another specification");
    let was = previous.expect("it is there").spec.clone();
    assert_eq!((record.spec, was), (spec(Some(81)), spec(Some(80))));
    run(&mut admission, &delete(target)).expect("in order");
    assert!(admission.preview(&moved, NOW).is_none());
}
