use serde_json::json;
use tokio::sync::mpsc;

use super::*;

const STALE: Duration = Duration::from_secs(100);

fn key() -> PodKey {
    PodKey { appliance: ApplianceId::from_u128(7), ordinal: 0, attempt: 1 }
}

/// A pod as the API has it; `gated`: it was not released yet.
fn pod(namespace: &str, uid: &str, version: u64, gated: bool) -> PodView {
    let gates = if gated { json!([{"name": "rug.dev/owner"}]) } else { json!([]) };
    let pod = json!({
        "metadata": {
            "name": key().name(), "namespace": namespace, "uid": uid, "resourceVersion": version.to_string(),
            "labels": {"rug.dev/appliance": key().appliance.to_string()},
        },
        "spec": {"containers": [], "schedulingGates": gates},
    });
    PodView::of(&serde_json::from_value(pod).expect("a pod")).expect("an instance")
}

fn cache(namespaces: &[Option<&str>]) -> PodCache {
    PodCache::new(STALE, namespaces.iter().map(|namespace| namespace.map(str::to_owned)))
}

fn version(cache: &PodCache, namespace: &str, uid: &str) -> Option<String> {
    match cache.get(key(), namespace, uid) {
        Known::There(view) => Some(view.version),
        _ => None,
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_is_newer_than_a_list_stays_and_what_is_older_is_unknown() {
    let cache = cache(&[None]);
    cache.replace(None, "90", vec![pod("n", "u", 80, true)]);
    // The list of version 100 is on its way, page by page, while the pod is released.
    cache.put(pod("n", "u", 105, false));
    cache.replace(None, "100", vec![pod("n", "u", 95, true)]);
    let Known::There(view) = cache.get(key(), "n", "u") else { panic!("it is known") };
    assert_eq!((view.version.as_str(), view.gated), ("105", false));
    cache.replace(None, "104", vec![]);
    assert_eq!(version(&cache, "n", "u").as_deref(), Some("105"), "it was made after the list");
    cache.replace(None, "110", vec![]);
    assert_eq!(cache.get(key(), "n", "u"), Known::Unknown, "an answer has to say that it is gone");
}

#[tokio::test(start_paused = true)]
async fn an_api_server_whose_data_were_put_back_is_believed() {
    let cache = cache(&[None]);
    cache.replace(None, "100", vec![pod("n", "u", 95, false)]);
    cache.bury(key(), "n", "u", None);
    cache.heard(None, "200");
    cache.replace(None, "50", vec![pod("n", "u", 40, false)]);
    assert_eq!(version(&cache, "n", "u").as_deref(), Some("40"), "it is there again");
    cache.put(pod("n", "u", 51, false));
    assert_eq!(version(&cache, "n", "u").as_deref(), Some("51"));
    cache.heard(None, "60");
    cache.bury(key(), "n", "u", None);
    cache.replace(None, "70", vec![pod("n", "u", 51, false)]);
    assert!(matches!(cache.get(key(), "n", "u"), Known::Gone(_)), "a list that is no older brings nothing back");
}

#[tokio::test(start_paused = true)]
async fn two_pods_of_one_name_in_two_namespaces_are_two_and_each_watch_stands_for_its_own() {
    let cache = cache(&[Some("a"), Some("b")]);
    cache.replace(Some("a"), "10", vec![pod("a", "ua", 5, false)]);
    assert_eq!(cache.get(key(), "b", "ub"), Known::Unknown, "not listed yet");
    assert!(cache.trouble().is_some_and(|text| text.contains("namespace b")));
    cache.replace(Some("b"), "20", vec![pod("b", "ub", 15, false)]);
    assert_eq!(version(&cache, "a", "ua").as_deref(), Some("5"));
    assert_eq!(version(&cache, "b", "ub").as_deref(), Some("15"));
    assert_eq!((cache.all().len(), cache.of_appliance(key().appliance).len(), cache.trouble()), (2, 2, None));
    cache.broken(Some("b"), "forbidden".to_owned());
    assert_eq!(cache.get(key(), "b", "ub"), Known::Unknown);
    assert_eq!(version(&cache, "a", "ua").as_deref(), Some("5"), "nothing is wrong with this one");
    assert_eq!((cache.all().len(), cache.doubt("a")), (1, None));
    // What an answer says of a namespace that nobody watches is not believed later.
    cache.put(pod("c", "uc", 30, false));
    assert_eq!(cache.get(key(), "c", "uc"), Known::Unknown);
    assert!(cache.doubt("c").is_some_and(|text| text.contains("namespace c")));
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_left_the_watch_is_unknown_until_it_is_back() {
    let cache = cache(&[None]);
    cache.replace(None, "10", vec![pod("n", "u", 5, false)]);
    let (sender, mut ends) = mpsc::channel(1);
    cache.report(key(), "n", "u", EndedInstance { appliance: key().appliance, ordinal: 0, attempt: 1 }, &sender);
    cache.leave(&pod("n", "u", 11, false));
    assert_eq!(cache.get(key(), "n", "u"), Known::Unknown);
    assert!(ends.try_recv().is_err(), "it has not ended");
    cache.put(pod("n", "u", 9, false));
    assert_eq!(cache.get(key(), "n", "u"), Known::Unknown, "an answer of before");
    let mut unlabelled = pod("n", "u", 11, false);
    (unlabelled.labelled, unlabelled.version) = (false, "12".to_owned());
    cache.put(unlabelled);
    assert_eq!(cache.get(key(), "n", "u"), Known::Unknown, "the watch does not speak of it");
    assert!(cache.all().is_empty() && cache.of_appliance(key().appliance).len() == 1);
    cache.put(pod("n", "u", 13, false));
    assert_eq!(version(&cache, "n", "u").as_deref(), Some("13"));
    cache.bury(key(), "n", "u", None);
    assert!(ends.try_recv().is_ok());
}

#[tokio::test(start_paused = true)]
async fn only_what_is_new_wakes_those_who_wait_and_silence_makes_nothing_known() {
    let cache = cache(&[None]);
    cache.replace(None, "10", vec![pod("n", "u", 5, false)]);
    let mut changes = cache.changes();
    changes.mark_unchanged();
    cache.put(pod("n", "u", 5, false));
    cache.put(pod("n", "u", 4, false));
    assert!(!changes.has_changed().expect("it lives"));
    cache.put(pod("n", "u", 6, false));
    assert!(changes.has_changed().expect("it lives"));
    tokio::time::advance(STALE + Duration::from_secs(1)).await;
    assert_eq!(cache.get(key(), "n", "u"), Known::Unknown);
    cache.heard(None, "11");
    assert_eq!(version(&cache, "n", "u").as_deref(), Some("6"));
}
