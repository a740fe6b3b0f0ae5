//! Boots and ends, and an API server that refuses, loses answers, or is not there.

use std::time::Duration;

use common::inquiry::LogQuery;
use common::kind::{Custom, KindSpec, Probe};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use worker::drivers::kubernetes::KubernetesDriver;
use worker::drivers::{Driver as _, Error};
use worker_core::desired::Desired;
use worker_core::instance::Instance;

use crate::api_server::Fault;
use crate::world::{
    A, World, anchor, balancer, boot, custom, desired, destroy, eventually, permit, permit_with_gate, pod,
};

fn container(state: Value) -> Value {
    json!([{"name": "appliance", "image": "", "imageID": "", "ready": false, "restartCount": 0, "state": state}])
}

#[tokio::test]
async fn an_answer_that_is_lost_doubles_nothing() {
    for (verb, resource) in [("create", "pods"), ("update", "leases"), ("patch", "pods")] {
        let world = World::new().await;
        let driver = world.driver("w").await;
        driver.claim(&permit(1)).await.expect("the first");
        world.api.fault("w", verb, resource, 1, Fault::LoseAnswer);
        let mut attempt = 1;
        let mut last = boot(&driver, &permit(1), &custom(), attempt).await;
        for _ in 0..3 {
            if last.is_ok() {
                break;
            }
            // As the lifecycle does: it looks again, and begins with the next number what is not found running.
            let found = driver.observe(A).await.expect("observed");
            if let Some(instance) = found.running.into_iter().next() {
                last = Ok(instance);
                break;
            }
            attempt += 1;
            last = boot(&driver, &permit(1), &custom(), attempt).await;
        }
        let instance = last.unwrap_or_else(|error| panic!("{verb} {resource}: {error}"));
        assert_eq!(world.api.running(), [pod(instance.attempt)], "{verb} {resource}");
        let repeated = boot(&driver, &permit(1), &custom(), instance.attempt).await.expect("found");
        assert_eq!(repeated.handle, instance.handle);
    }
}

#[tokio::test]
async fn what_keeps_a_pod_from_running_is_told_and_its_address_is_known_once_it_has_one() {
    let world = World::without_kubelet().await;
    let driver = world.driver("w").await;
    let instance = boot(&driver, &permit(1), &custom(), 1).await.expect("made");
    assert_eq!(instance.addresses.service, None);
    let told = async |text: &str| {
        eventually(text, async || {
            let problem = driver.standing(A, &instance).await?.problem?;
            problem.contains(text).then_some(())
        })
        .await;
    };
    let set = |status: Value| world.api.change("pods", &pod(1), |pod| pod["status"] = status);
    set(json!({"phase": "Pending", "conditions": [
        {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes are available"},
    ]}));
    told("Unschedulable: 0/3 nodes are available").await;
    set(
        json!({"phase": "Pending", "containerStatuses": container(json!({"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}))}),
    );
    told("ImagePullBackOff: no such image").await;
    assert_eq!(driver.is_alive(A, &instance).await, Some(true));
    world.api.run(&pod(1));
    let address = eventually("an address", async || driver.standing(A, &instance).await?.addresses.service).await;
    assert_eq!(address, ([127, 0, 0, 1], 8000).into());
    set(
        json!({"phase": "Running", "podIP": "127.0.0.1", "reason": "NodeLost", "message": "Node n1 which was running pod"}),
    );
    told("NodeLost: Node n1").await;
    assert_eq!(driver.is_alive(A, &instance).await, Some(true), "until the API says that it cannot run any more");
    world.api.remove("pods", &pod(1));
    // Nobody had asked it to go: the watch alone does not say that it is gone.
    eventually("it is not known", async || driver.is_alive(A, &instance).await.is_none().then_some(())).await;
    assert!(driver.observe(A).await.expect("observed").running.is_empty());
    assert_eq!(driver.is_alive(A, &instance).await, Some(false));
}

#[tokio::test]
async fn an_instance_that_ended_says_how_and_its_successor_takes_its_place() {
    let mut world = World::new().await;
    let driver = world.driver("w").await;
    let instance = boot(&driver, &permit(1), &custom(), 1).await.expect("booted");
    let (ends, mut ended) = mpsc::channel(4);
    driver.watch(A, &instance, &ends);
    world.stop_kubelet();
    let oom = json!({"terminated": {"exitCode": 137, "reason": "OOMKilled", "message": "out of\nmemory\n"}});
    world
        .api
        .change("pods", &pod(1), |pod| pod["status"] = json!({"phase": "Failed", "containerStatuses": container(oom)}));
    let told = tokio::time::timeout(Duration::from_secs(20), ended.recv()).await.expect("in time").expect("told");
    assert_eq!((told.appliance, told.ordinal, told.attempt), (A, 0, 1));
    let end = driver.ended(A, &instance).await.expect("known");
    assert!(end.out_of_memory, "{end}");
    assert_eq!(
        driver.standing(A, &instance).await.and_then(|standing| standing.problem).as_deref(),
        Some("OOMKilled (exit 137)")
    );
    let found = driver.observe(A).await.expect("observed");
    assert_eq!((found.running.len(), found.attempts), (0, vec![(0, 1)]));
    boot(&driver, &permit(1), &custom(), 2).await.expect("booted");
    assert_eq!((world.api.running(), world.api.all("pods").len()), (vec![pod(2)], 1));
}

#[tokio::test]
async fn a_refusal_is_told_in_the_words_of_the_api_server_and_leaves_nothing() {
    let world = World::new().await;
    let driver = world.driver("w").await;
    let message = "pods \"x\" is forbidden: exceeded quota: q, requested: pods=1, used: pods=2, limited: pods=2";
    let refuse = |code, reason, message| Fault::Refuse { code, reason, message, retry_after: None };
    world.api.fault("w", "create", "pods", 1, refuse(403, "Forbidden", message));
    let refused = boot(&driver, &permit(1), &custom(), 1).await;
    assert!(matches!(&refused, Err(Error::Refused(text)) if text.contains("exceeded quota: q")), "{refused:?}");
    let message = "admission webhook \"policy\" denied the request: no";
    world.api.fault("w", "create", "pods", 1, refuse(400, "BadRequest", message));
    let refused = boot(&driver, &permit(1), &custom(), 2).await;
    assert!(matches!(&refused, Err(Error::Refused(text)) if text.contains("denied the request: no")), "{refused:?}");
    assert!(world.api.all("pods").is_empty());
    boot(&driver, &permit(1), &custom(), 3).await.expect("booted");
}

#[tokio::test]
async fn an_api_server_that_has_no_time_is_waited_for() {
    let world = World::new().await;
    let driver = world.driver("w").await;
    let busy = Fault::Refuse { code: 429, reason: "TooManyRequests", message: "busy", retry_after: Some(1) };
    for (verb, resource) in [("create", "pods"), ("update", "leases"), ("patch", "pods")] {
        world.api.fault("w", verb, resource, 1, busy.clone());
    }
    let began = std::time::Instant::now();
    boot(&driver, &permit(1), &custom(), 1).await.expect("booted");
    assert!(began.elapsed() >= Duration::from_secs(3), "{:?}", began.elapsed());
    assert_eq!(world.api.running(), [pod(1)]);
}

#[tokio::test]
async fn an_api_server_that_is_away_makes_nothing_known_and_costs_nothing() {
    let world = World::new().await;
    let driver = world.driver("w").await;
    let instance = boot(&driver, &permit(1), &custom(), 1).await.expect("booted");
    let lists = world.api.lists();
    world.api.set_watches_down(true);
    let away = Fault::Refuse { code: 500, reason: "InternalError", message: "away", retry_after: None };
    world.api.fault("w", "*", "*", usize::MAX, away);
    eventually("nothing is known", async || driver.is_alive(A, &instance).await.is_none().then_some(())).await;
    assert!(driver.observe(A).await.is_err(), "it cannot be asked");
    let standing = driver.standing(A, &instance).await.expect("something can be said");
    assert!(standing.problem.is_none() && standing.doubt.is_some_and(|doubt| doubt.contains("watch")), "why");
    world.api.clear_faults();
    world.api.set_watches_down(false);
    eventually("it is known again", async || driver.is_alive(A, &instance).await.filter(|alive| *alive)).await;
    assert_eq!(world.api.lists(), lists, "the watch went on where it was");
    assert_eq!(world.api.running(), [pod(1)]);
}

#[tokio::test]
async fn a_watch_that_is_broken_makes_nothing_wrong_with_what_the_api_says_is_well() {
    let world = World::new().await;
    let driver = world.driver("w").await;
    let probed = probed_by_command();
    let instance = boot(&driver, &permit(1), &probed, 1).await.expect("booted");
    eventually("it is ready", async || run_probe(&driver, &instance, &probed).await.ok()).await;
    world.api.set_watches_down(true);
    eventually("the watch is broken", async || driver.is_alive(A, &instance).await.is_none().then_some(())).await;
    for _ in 0..10 {
        let standing = driver.standing(A, &instance).await.expect("something can be said");
        assert_eq!(standing.problem, None);
        assert!(standing.doubt.is_some_and(|doubt| doubt.contains("watch")));
        run_probe(&driver, &instance, &probed).await.expect("the pod is asked for, and is ready");
        assert_eq!(driver.observe(A).await.expect("observed").running.len(), 1);
    }
}

fn probed_by_command() -> Desired {
    let probe = Probe::Exec { command: vec!["true".to_owned()] };
    desired(KindSpec::Custom(Custom { command: "serve".into(), probe, ..Custom::default() }))
}

async fn run_probe(driver: &KubernetesDriver, instance: &Instance, desired: &Desired) -> Result<(), Error> {
    driver.run_beside(A, instance, desired, &["true".to_owned()], Duration::from_secs(1)).await
}

#[tokio::test]
async fn a_pod_that_lost_its_label_runs_on_and_gets_it_back() {
    let world = World::new().await;
    let driver = world.driver("w").await;
    let instance = boot(&driver, &permit(1), &custom(), 1).await.expect("booted");
    eventually("it runs", async || driver.standing(A, &instance).await?.problem.is_none().then_some(())).await;
    let label = || world.api.all("pods")[0]["metadata"]["labels"]["rug.dev/appliance"].clone();
    for change in [Value::Null, "other".into()] {
        world.api.change("pods", &pod(1), |pod| {
            let labels = pod["metadata"]["labels"].as_object_mut().expect("labels");
            labels.insert("app.kubernetes.io/managed-by".to_owned(), "other".into());
            labels.remove("rug.dev/appliance");
            if !change.is_null() {
                labels.insert("rug.dev/appliance".to_owned(), change.clone());
            }
        });
        eventually("nothing is known of it", async || driver.is_alive(A, &instance).await.is_none().then_some(()))
            .await;
        let found = driver.observe(A).await.expect("observed");
        assert_eq!(found.running.len(), 1, "it is asked for");
        assert_eq!(label(), A.to_string());
        eventually("it is known again", async || driver.is_alive(A, &instance).await.filter(|alive| *alive)).await;
    }
    let repeated = boot(&driver, &permit(1), &custom(), 1).await.expect("found");
    assert_eq!((repeated.handle, world.api.running()), (instance.handle, vec![pod(1)]));
}

#[tokio::test]
async fn an_api_server_whose_data_were_put_back_is_listed_anew_and_believed() {
    let world = World::new().await;
    let driver = world.driver("w").await;
    let instance = boot(&driver, &permit(1), &custom(), 1).await.expect("booted");
    eventually("it runs", async || driver.standing(A, &instance).await?.problem.is_none().then_some(())).await;
    let lists = world.api.lists();
    world.api.put_back(3);
    eventually("it was listed anew", async || (world.api.lists() > lists).then_some(())).await;
    eventually("the watch counts", async || driver.listed(Duration::ZERO).await.ok()).await;
    // Its version is below the one that was known before.
    world.api.change("pods", &pod(1), |pod| pod["status"] = json!({"phase": "Failed"}));
    eventually("its end is known", async || driver.is_alive(A, &instance).await.filter(|alive| !alive)).await;
}

#[tokio::test]
async fn a_list_of_several_pages_is_no_newer_than_an_answer_that_comes_between() {
    let world = World::new().await;
    let driver = world.patient_driver("w").await;
    for n in 0..600_u128 {
        let other = common::ApplianceId::from_u128(0x1_0000 + n);
        let name = Instance::name(other, 0, 1);
        world.api.insert_pod(&name, json!({"rug.dev/appliance": other.to_string()}));
    }
    driver.claim(&permit(1)).await.expect("claimed");
    let released = world.api.hold("w", "patch", "pods");
    let booting = {
        let driver = driver.clone();
        tokio::spawn(async move { boot(&driver, &permit(1), &custom(), 1).await })
    };
    world.api.held(1).await;
    // The first page is of before the release, and the second comes after it.
    let first = world.api.hold("w", "list", "pods");
    world.api.compact_and_break();
    world.api.held(2).await;
    let second = world.api.hold("w", "list", "pods");
    first.notify_one();
    world.api.held(3).await;
    released.notify_one();
    let instance = booting.await.expect("no panic").expect("booted");
    let lists = world.api.lists();
    second.notify_one();
    eventually("it was listed", async || driver.listed(Duration::ZERO).await.ok()).await;
    assert_eq!(world.api.lists(), lists);
    assert_ne!(driver.is_alive(A, &instance).await, Some(false), "the list has it with its gate");
    assert_eq!(driver.observe(A).await.expect("observed").running.len(), 1);
}

#[tokio::test]
async fn the_end_of_a_pod_is_asked_for_now_and_then_while_the_watch_is_broken() {
    let mut world = World::new().await;
    let driver = world.driver("w").await;
    let instance = boot(&driver, &permit(1), &custom(), 1).await.expect("booted");
    eventually("it runs", async || driver.standing(A, &instance).await?.problem.is_none().then_some(())).await;
    world.stop_kubelet();
    world.api.set_watches_down(true);
    eventually("the watch is broken", async || driver.is_alive(A, &instance).await.is_none().then_some(())).await;
    world.api.take_calls();
    let ends = tokio::time::timeout(Duration::from_secs(2), destroy(&driver, &permit(1), &instance)).await;
    assert!(ends.is_err(), "it has not ended yet");
    let reads = world.api.take_calls().into_iter().filter(|call| call == "get pods").count();
    assert!(reads <= 3, "{reads} reads in two seconds");
}

#[tokio::test]
async fn a_boot_that_failed_leaves_no_pod_and_what_outlived_its_appliance_is_ended() {
    let world = World::new().await;
    let driver = world.driver("w").await;
    let no = Fault::Refuse { code: 403, reason: "Forbidden", message: "secrets is forbidden: no", retry_after: None };
    world.api.fault("w", "create", "secrets", 1, no);
    let refused = boot(&driver, &permit(1), &balancer(&[80]), 1).await;
    assert!(matches!(refused, Err(Error::Refused(_))), "{refused:?}");
    assert!(world.api.all("pods").is_empty());
    let instance = boot(&driver, &permit(1), &custom(), 2).await.expect("booted");
    eventually("it runs", async || driver.standing(A, &instance).await?.problem.is_none().then_some(())).await;
    let ended = json!({"terminated": {"exitCode": 0}});
    world.api.change("pods", &pod(2), |pod| {
        pod["status"] = json!({"phase": "Running", "containerStatuses": container(ended)})
    });
    eventually("its end is known", async || driver.is_alive(A, &instance).await.filter(|alive| !alive)).await;
    driver.claim(&permit(1)).await.expect("claimed");
    eventually("nothing of it is left", async || world.api.all("pods").is_empty().then_some(())).await;
}

#[tokio::test]
async fn a_watch_that_expired_begins_with_a_list_and_misses_nothing() {
    let world = World::new().await;
    let driver = world.driver("w").await;
    let instance = boot(&driver, &permit(1), &custom(), 1).await.expect("booted");
    let lists = world.api.lists();
    world.api.set_watches_down(true);
    eventually("the watch is broken", async || driver.is_alive(A, &instance).await.is_none().then_some(())).await;
    world.api.remove("pods", &pod(1));
    world.api.compact();
    world.api.set_watches_down(false);
    eventually("its end is known", async || {
        let found = driver.observe(A).await.ok()?;
        found.running.is_empty().then_some(())
    })
    .await;
    eventually("it was listed once more", async || (world.api.lists() > lists).then_some(())).await;
    eventually("the watch is there again", async || driver.listed(Duration::ZERO).await.ok()).await;
}

#[tokio::test]
async fn a_deletion_is_waited_for_and_repeated_it_costs_no_call() {
    let mut world = World::new().await;
    let driver = world.driver("w").await;
    let instance = boot(&driver, &permit(1), &custom(), 1).await.expect("booted");
    eventually("it runs", async || driver.standing(A, &instance).await?.problem.is_none().then_some(())).await;
    world.stop_kubelet();
    world.api.take_calls();
    let first = tokio::time::timeout(Duration::from_millis(300), destroy(&driver, &permit(1), &instance)).await;
    assert!(first.is_err(), "it has not ended yet");
    assert_eq!(driver.is_alive(A, &instance).await, Some(true));
    let again = tokio::time::timeout(Duration::from_millis(300), destroy(&driver, &permit(1), &instance)).await;
    assert!(again.is_err());
    assert_eq!(world.api.take_calls(), ["delete pods"]);
    let waiting = tokio::spawn(async move { destroy(&driver, &permit(1), &instance).await });
    world.api.remove("pods", &pod(1));
    waiting.await.expect("no panic").expect("ended");
}

#[tokio::test]
async fn a_load_balancer_has_a_secret_of_its_own_and_a_service_that_follows_its_listeners() {
    let world = World::new().await;
    let (driver, other) = (world.driver("w").await, world.driver("v").await);
    let instance = boot(&driver, &permit(1), &balancer(&[80]), 1).await.expect("booted");
    let secret = instance.secret.clone().expect("a secret");
    driver.expose(&permit(1), &instance, &balancer(&[80])).await.expect("exposed");
    let ports = || {
        world.api.all("services")[0]["spec"]["ports"]
            .as_array()
            .map(|ports| ports.iter().map(|port| port["port"].as_u64()).collect::<Vec<_>>())
    };
    assert_eq!(ports(), Some(vec![Some(80)]));
    world.api.take_calls();
    driver.expose(&permit(1), &instance, &balancer(&[80])).await.expect("exposed");
    assert_eq!(world.api.take_calls(), Vec::<String>::new());
    driver.expose(&permit(1), &instance, &balancer(&[80, 443])).await.expect("exposed");
    assert_eq!(ports(), Some(vec![Some(80), Some(443)]));
    // Its pod says where it listens first, for probes and people.
    driver.expose(&permit(1), &instance, &balancer(&[81, 443])).await.expect("exposed");
    let found = driver.observe(A).await.expect("observed").running;
    assert_eq!(found[0].addresses.service.map(|address| address.port()), Some(81));
    driver.expose(&permit(1), &instance, &balancer(&[80, 443])).await.expect("exposed");
    // Of another owner.
    other.claim(&permit(2)).await.expect("a newer token");
    let found = other.observe(A).await.expect("observed").running;
    assert_eq!(found[0].secret.as_ref(), Some(&secret));
    assert_eq!(found[0].addresses.management.map(|address| address.port()), Some(8079));
    other.expose(&permit(2), &found[0], &balancer(&[80, 443])).await.expect("exposed");
    assert_eq!(world.api.all("services")[0]["metadata"]["annotations"]["rug.dev/token"], "1/2");
    let late = driver.expose(&permit(1), &instance, &balancer(&[81])).await;
    assert!(matches!(late, Err(Error::Superseded(_))), "{late:?}");
    destroy(&other, &permit(2), &found[0]).await.expect("ended");
    other.forget(&permit(2)).await.expect("nothing is left");
    for resource in ["pods", "secrets", "services", "leases"] {
        assert!(world.api.all(resource).is_empty(), "{resource}");
    }
}

#[tokio::test]
async fn a_load_balancer_is_ready_only_once_it_was_configured_and_says_so_once() {
    let world = World::new().await;
    let (driver, other) = (world.driver("w").await, world.driver("v").await);
    let instance = boot(&driver, &permit(1), &balancer(&[80]), 1).await.expect("booted");
    eventually("it runs", async || world.api.all("pods")[0]["status"]["podIP"].as_str().map(drop)).await;
    assert_eq!(world.api.all("pods")[0]["spec"]["readinessGates"], json!([{"conditionType": "rug.dev/configured"}]));
    let conditions = || world.api.all("pods")[0]["status"]["conditions"].clone();
    assert_eq!(conditions(), json!([{"type": "Ready", "status": "True"}]), "as the stand-in kubelet has it");
    eventually("its driver knows", async || driver.standing(A, &instance).await?.addresses.management.map(drop)).await;
    world.api.take_calls();
    driver.note_configured(A, &instance).await.expect("noted");
    let both = json!([{"type": "Ready", "status": "True"}, {"type": "rug.dev/configured", "status": "True"}]);
    assert_eq!((conditions(), world.api.take_calls()), (both.clone(), vec!["patch pods/status".to_owned()]));
    driver.note_configured(A, &instance).await.expect("noted");
    assert_eq!(world.api.take_calls(), Vec::<String>::new());
    // Nor does its next owner say it again.
    other.claim(&permit(2)).await.expect("a newer token");
    let found = other.observe(A).await.expect("observed").running;
    world.api.take_calls();
    other.note_configured(A, &found[0]).await.expect("noted");
    assert_eq!((conditions(), world.api.take_calls()), (both, Vec::<String>::new()));
    // Another pod of that name is another one.
    world.api.change("pods", &pod(1), |pod| {
        pod["metadata"]["uid"] = "another".into();
        pod["status"]["conditions"] = json!([]);
    });
    eventually("it is seen", async || (driver.is_alive(A, &instance).await == Some(false)).then_some(())).await;
    driver.note_configured(A, &instance).await.expect("it is gone");
    assert_eq!(conditions(), json!([]));
    // A command is not configured.
    let command = World::new().await;
    let driver = command.driver("w").await;
    let instance = boot(&driver, &permit(1), &custom(), 1).await.expect("booted");
    assert!(command.api.all("pods")[0]["spec"]["readinessGates"].is_null());
    command.api.take_calls();
    driver.note_configured(A, &instance).await.expect("nothing to note");
    assert_eq!(command.api.take_calls(), Vec::<String>::new());
}

#[tokio::test]
async fn what_a_broken_off_boot_left_is_found_as_an_orphan_and_what_runs_is_not() {
    let world = World::new().await;
    let (old, new) = (world.driver("old").await, world.driver("new").await);
    let (former, lease) = permit_with_gate(1);
    old.claim(&former).await.expect("the first");
    let gate = world.api.hold("old", "create", "pods");
    let late = tokio::spawn(async move { boot(&old, &former, &custom(), 7).await });
    world.api.held(1).await;
    lease.shut();
    new.claim(&permit(2)).await.expect("a newer token");
    gate.notify_one();
    _ = late.await.expect("no panic");
    boot(&new, &permit(2), &custom(), 1).await.expect("booted");
    let orphans = eventually("the orphan is known", async || {
        let found = new.orphans(Duration::from_secs(60)).await.ok()?;
        (!found.is_empty()).then_some(found)
    })
    .await;
    assert_eq!(orphans.iter().map(|orphan| (orphan.name.clone(), orphan.runs)).collect::<Vec<_>>(), [(pod(7), false)]);
    // One of another installation is not looked at, whatever its anchor says.
    world.api.change("pods", &pod(7), |pod| pod["metadata"]["labels"]["rug.dev/anchors"] = "elsewhere".into());
    eventually("it is not ours", async || new.orphans(Duration::ZERO).await.ok()?.is_empty().then_some(())).await;
    world.api.change("pods", &pod(7), |pod| pod["metadata"]["labels"]["rug.dev/anchors"] = "rug".into());
    let orphans = eventually("it is known again", async || {
        let found = new.orphans(Duration::from_secs(60)).await.ok()?;
        (!found.is_empty()).then_some(found)
    })
    .await;
    new.remove_orphan(&orphans[0]).await.expect("removed");
    assert_eq!((world.api.running(), world.api.all("pods").len()), (vec![pod(1)], 1));
    assert!(!world.api.all("leases").is_empty(), "{} stays", anchor());
}

#[tokio::test]
async fn what_pods_print_is_read_in_parts_and_over_their_replacement() {
    let mut world = World::new().await;
    let driver = world.driver("w").await;
    let instance = boot(&driver, &permit(1), &custom(), 1).await.expect("booted");
    let (ends, mut ended) = mpsc::channel(4);
    driver.watch(A, &instance, &ends);
    let query = |place: &str, tail| LogQuery {
        appliance: A,
        driver: None,
        ordinal: 0,
        place: place.to_owned(),
        tail,
        since: None,
        previous: false,
    };
    let none = driver.read_log(&query("", None)).await.expect("it does not run yet");
    assert!(none.data.is_empty() && !none.more, "{none:?}");
    for line in ["10:00:00.1Z one", "10:00:00.2Z two", "10:00:00.2Z three"] {
        world.api.print(&pod(1), &format!("2026-12-01T{line}"));
    }
    let last = driver.read_log(&query("", Some(1))).await.expect("read");
    assert_eq!(String::from_utf8_lossy(&last.data), "three\n");
    let all = driver.read_log(&query("", None)).await.expect("read");
    assert_eq!(String::from_utf8_lossy(&all.data), "one\ntwo\nthree\n");
    world.api.print(&pod(1), "2026-12-01T10:00:00.2Z four");
    let next = driver.read_log(&query(&all.place, None)).await.expect("read");
    assert_eq!((String::from_utf8_lossy(&next.data).as_ref(), next.lost), ("four\n", false));
    // Its successor's output follows, and that something may be missing is told once the pod is gone.
    world.stop_kubelet();
    let exit = json!({"terminated": {"exitCode": 1}});
    let status = json!({"phase": "Failed", "containerStatuses": container(exit)});
    world.api.change("pods", &pod(1), |pod| pod["status"] = status);
    tokio::time::timeout(Duration::from_secs(20), ended.recv()).await.expect("in time").expect("told");
    boot(&driver, &permit(1), &custom(), 2).await.expect("booted");
    world.api.print(&pod(2), "2026-12-01T10:00:05Z five");
    let successor = driver.read_log(&query(&next.place, None)).await.expect("read");
    assert_eq!((String::from_utf8_lossy(&successor.data).as_ref(), successor.lost), ("five\n", true));
}
