//! Every race as a row: what the object says, what the leader knows, what is done.

use std::time::Duration;

use common::change::ApplianceTarget;

use super::super::decide::{Own, Step, decide};
use super::super::resource::Wanted;
use super::super::status::{ACCEPTED, Acceptance, READY, RefusedBecause, SYNCED, status};
use super::*;
use crate::commands::Change;

/// What a step is, in a word.
fn word(step: &Step) -> String {
    match step {
        Step::Hold => "hold".into(),
        Step::LetGo => "let go".into(),
        Step::Leave => "leave".into(),
        Step::Show(Acceptance::Accepted) => "show accepted".into(),
        Step::Show(Acceptance::Deleting) => "show deleting".into(),
        Step::Show(Acceptance::Refused(because, _)) => format!("refuse {}", because.name()),
        Step::Change(Change::Update { update, .. }) => {
            let by = if matches!(update.target, ApplianceTarget::Id(_)) { "id" } else { "name" };
            format!("update by {by}{}", if update.create.is_some() { "" } else { ", not made" })
        }
        Step::Change(Change::Delete { target, allow_missing, .. }) => {
            assert!(*allow_missing, "it may be gone meanwhile");
            format!("delete by {}", if matches!(target, ApplianceTarget::Id(_)) { "id" } else { "name" })
        }
        Step::Change(Change::Release { .. }) => "release".into(),
        Step::Change(other) => format!("{other:?}"),
    }
}

#[test]
fn what_is_done_about_an_object_follows_from_it_and_from_what_the_leader_knows() {
    let by = Some("kubernetes/shop/web");
    let held = json!({"finalizers": ["other/x", "rug.dev/appliance"]});
    let with = |more: Value| {
        let mut metadata = held.clone();
        for (name, value) in more.as_object().into_iter().flatten() {
            metadata[name] = value.clone();
        }
        metadata
    };
    let going = with(json!({"deletionTimestamp": "2026-01-01T00:00:00Z"}));
    let kept = with(json!({
        "deletionTimestamp": "2026-01-01T00:00:00Z", "annotations": {"rug.dev/deletion-policy": "retain"},
    }));
    let foreign = json!({"deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": ["other/x"]});
    let same = entry(record(1, "sleep", by), None);
    let other = entry(record(1, "true", by), None);
    let mut deleting = record(1, "sleep", by);
    deleting.deleting = true;
    let deleting = entry(deleting, None);
    let renamed = Record { name: "old".parse().expect("a name"), ..record(1, "sleep", by) };
    let renamed = entry(renamed, None);
    let broken = json!({"kind": "custom", "replicas": 99, "spec": {"command": "sleep"}});
    let elsewhere = json!({"kind": "custom", "cluster": "blue", "spec": {"command": "sleep"}});
    let mut other_id = custom("sleep");
    other_id["id"] = json!("00000000-0000-0000-0000-000000000009");
    let none = json!({});
    for (what, spec, metadata, own, step) in [
        ("new", custom("sleep"), &none, Own::NotSeen, "hold"),
        ("held", custom("sleep"), &held, Own::NotSeen, "update by name"),
        ("as asked for", custom("sleep"), &held, Own::There(&same), "show accepted"),
        ("as asked for, finalizer stripped", custom("sleep"), &none, Own::There(&same), "hold"),
        ("edited here or there", custom("sleep"), &held, Own::There(&other), "update by id"),
        ("renamed there", custom("sleep"), &held, Own::There(&renamed), "update by id"),
        ("gone by another's hand", custom("sleep"), &held, Own::None, "update by name"),
        ("deleted by another's hand", custom("sleep"), &held, Own::There(&deleting), "refuse BeingDeleted"),
        ("another identity", other_id, &held, Own::There(&same), "refuse Invalid"),
        ("wrong and new", broken.clone(), &none, Own::NotSeen, "refuse Invalid"),
        ("wrong after it was right", broken.clone(), &held, Own::There(&same), "refuse Invalid"),
        ("of another cluster", elsewhere.clone(), &none, Own::NotSeen, "leave"),
        ("of another cluster, which holds it", elsewhere, &going, Own::NotSeen, "leave"),
        ("deleted", custom("sleep"), &going, Own::There(&same), "delete by id"),
        ("deleted, edited before", custom("sleep"), &going, Own::There(&other), "delete by id"),
        ("deleted, going", custom("sleep"), &going, Own::There(&deleting), "show deleting"),
        ("deleted while it was made", custom("sleep"), &going, Own::NotSeen, "delete by name"),
        ("deleted, gone", custom("sleep"), &going, Own::None, "let go"),
        ("deleted, wrong, never made", broken.clone(), &going, Own::NotSeen, "let go"),
        ("deleted, wrong, made before", broken, &going, Own::There(&same), "delete by id"),
        ("deleted, not held", custom("sleep"), &foreign, Own::There(&same), "leave"),
        ("deleted, kept", custom("sleep"), &kept, Own::There(&same), "release"),
        ("deleted, kept, released", custom("sleep"), &kept, Own::None, "let go"),
        ("deleted, kept, going", custom("sleep"), &kept, Own::There(&deleting), "release"),
    ] {
        let resource = object(spec, metadata.clone());
        let wanted = resource.wanted(&cluster(), false);
        assert_eq!(word(&decide(&resource, &wanted, own)), step, "{what}: {wanted:?}");
    }
}

/// The problems of a specification.
fn problems(spec: Value) -> Vec<String> {
    match object(spec, json!({})).wanted(&cluster(), false) {
        Wanted::Refused(violations) => violations.iter().map(ToString::to_string).collect(),
        wanted => panic!("{wanted:?}"),
    }
}

#[test]
fn an_object_asks_for_what_the_same_document_would() {
    let mut spec = custom("sleep");
    spec["labels"] = json!({"tier": "front"});
    spec["cluster"] = json!("test");
    let Wanted::Appliance(wanted) = object(spec.clone(), json!({})).wanted(&cluster(), false) else {
        panic!("refused")
    };
    let draft = wanted.update.create.as_ref().expect("it may be made");
    assert_eq!((draft.tenant.as_str(), draft.name.as_str(), draft.driver.as_str()), ("shop", "web", "simulated"));
    assert_eq!(draft.labels["tier"], "front");
    assert_eq!(draft.spec, record(1, "sleep", None).spec);
    spec["tenant"] = json!("shop");
    spec["name"] = json!("other");
    let Wanted::Appliance(wanted) = object(spec.clone(), json!({})).wanted(&cluster(), false) else {
        panic!("refused")
    };
    assert_eq!(wanted.update.target.to_string(), "shop/other");
    spec["tenant"] = json!("bank");
    let refused = problems(spec.clone());
    assert!(refused[0].starts_with("spec.tenant: must be the namespace, `shop`"), "{refused:?}");
    let Wanted::Appliance(wanted) = object(spec, json!({})).wanted(&cluster(), true) else { panic!("refused") };
    assert_eq!(wanted.update.target.to_string(), "bank/other");
}

#[test]
fn problems_name_the_fields_of_the_object() {
    let mut hidden = custom("sleep");
    hidden["spec"]["env"] = json!({"PASSWORD": "<hidden>"});
    let listeners = json!([{"port": 80}, {"port": 80}]);
    for (spec, problem) in [
        (json!(null), "spec: must be a mapping, is empty"),
        (json!({"kind": "custom", "spec": {}}), "spec.spec.command: is required"),
        (json!({"kind": "firewall", "spec": {}}), "spec.kind: unknown kind `firewall`"),
        (json!({"kind": "custom", "spec": {"command": "a"}, "replica": 1}), "spec.replica: unknown field"),
        (json!({"kind": "custom", "spec": {"command": "a"}, "probe_interval": "5"}), "spec.probe_interval: must be"),
        (
            json!({"kind": "custom", "spec": {"command": "a"}, "probe_interval": "1ms"}),
            "spec.probe_interval: must be 100ms",
        ),
        (json!({"kind": "loadbalancer", "spec": {"listeners": listeners}}), "spec.spec.listeners[1]."),
        (hidden, "spec.spec.env.PASSWORD: stands for a value that was hidden"),
    ] {
        let found = problems(spec.clone());
        assert!(found.iter().any(|found| found.starts_with(problem)), "{spec}: {found:?}");
    }
    let long = object(custom("sleep"), json!({"name": "a".repeat(64)})).wanted(&cluster(), false);
    assert!(matches!(&long, Wanted::Refused(v) if v[0].field == "metadata.name"), "{long:?}");
}

#[test]
fn conditions_say_what_was_taken_and_how_the_appliance_is() {
    let by = Some("kubernetes/shop/web");
    let resource = object(custom("sleep"), json!({}));
    let refused = Acceptance::Refused(RefusedBecause::Conflict, "taken".into());
    let made = |status: Option<Status>| entry(record(1, "sleep", by), status);
    let generation = Generation::new(1);
    let mut changed = record(1, "sleep", by);
    changed.generation = Generation::new(2);
    let changed = entry(changed, Some(running(generation, Phase::Configured)));
    let rows = [
        ("refused", &refused, None, ["False Conflict", "False NotAccepted", "False NoAppliance"]),
        ("not placed", &Acceptance::Accepted, Some(made(None)), ["True Accepted", "False Unplaced", "False Unplaced"]),
        (
            "booting",
            &Acceptance::Accepted,
            Some(made(Some(running(generation, Phase::Booting)))),
            ["True Accepted", "True Observed", "False Booting"],
        ),
        (
            "serves",
            &Acceptance::Accepted,
            Some(made(Some(running(generation, Phase::Configured)))),
            ["True Accepted", "True Observed", "True Configured"],
        ),
        (
            "changed since",
            &Acceptance::Accepted,
            Some(changed.clone()),
            ["True Accepted", "False Pending", "False Pending"],
        ),
        ("serves as before", &refused, Some(changed), ["False Conflict", "False NotAccepted", "False NotAccepted"]),
        ("going", &Acceptance::Deleting, Some(made(None)), ["True Deleting", "False Deleting", "False Deleting"]),
    ];
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(100);
    for (what, acceptance, appliance, verdicts) in rows {
        let shown = status(&resource, acceptance, appliance.as_ref(), now);
        let said = [ACCEPTED, SYNCED, READY].map(|kind| {
            let condition = shown.condition(kind).expect("it is there");
            assert_eq!(condition.observed_generation, Some(3));
            format!("{} {}", condition.status, condition.reason)
        });
        assert_eq!(said, verdicts, "{what}");
    }
    let serves =
        status(&resource, &Acceptance::Accepted, Some(&made(Some(running(generation, Phase::Configured)))), now);
    assert_eq!((serves.replicas, serves.ready, serves.worker.as_deref()), (Some(1), Some(1), Some("w1")));
    assert_eq!(serves.condition(READY).expect("there").last_transition_time, "1970-01-01T00:01:40Z");
    // Later, with nothing changed, the same is shown: nothing is to be written.
    let shown = Resource { status: serves.clone(), ..resource };
    let later = now + Duration::from_secs(100);
    let again = made(Some(running(generation, Phase::Configured)));
    assert_eq!(status(&shown, &Acceptance::Accepted, Some(&again), later), serves);
    let down = status(&shown, &Acceptance::Accepted, Some(&made(Some(running(generation, Phase::Down)))), later);
    assert_eq!(down.condition(READY).expect("there").last_transition_time, "1970-01-01T00:03:20Z");
    assert_eq!(down.condition(SYNCED).expect("there").last_transition_time, "1970-01-01T00:01:40Z");
    // What is read back is what was written.
    let text = serde_json::to_value(&down).expect("plain data");
    assert_eq!(serde_json::from_value::<super::super::status::ResourceStatus>(text).expect("plain data"), down);
}
