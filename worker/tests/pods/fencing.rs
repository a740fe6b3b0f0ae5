//! Two workers for one appliance: the former owner's calls, held up on their way, arrive after the new owner has claimed it.

use worker::drivers::{Driver as _, Error, Wanted};
use worker_core::instance::Instance;

use crate::api_server::Fault;
use crate::world::{A, World, anchor, boot, custom, destroy, permit, pod};

/// Whether a call was refused because a newer token is in force, or because what it was about has changed.
fn is_fenced<T: std::fmt::Debug>(result: Result<T, Error>) {
    assert!(matches!(result, Err(Error::Superseded(_) | Error::Failed(_))), "{result:?}");
}

#[tokio::test]
async fn a_former_owner_can_raise_no_token_again() {
    let world = World::new().await;
    let (old, new) = (world.driver("old").await, world.driver("new").await);
    old.claim(&permit(1)).await.expect("the first");
    new.claim(&permit(2)).await.expect("a newer token");
    assert!(matches!(old.claim(&permit(1)).await, Ok(())), "what it knows is out of date; its writes are refused");
    let fresh = world.driver("old").await;
    assert!(matches!(fresh.claim(&permit(1)).await, Err(Error::Superseded(_))));
    is_fenced(boot(&old, &permit(1), &custom(), 1).await);
    assert!(world.api.running().is_empty());
}

#[tokio::test]
async fn a_pod_that_a_former_owner_makes_late_never_runs() {
    let world = World::new().await;
    let (old, new) = (world.driver("old").await, world.driver("new").await);
    let (former, lease) = crate::world::permit_with_gate(1);
    old.claim(&former).await.expect("the first");
    let gate = world.api.hold("old", "create", "pods");
    let late = tokio::spawn(async move { boot(&old, &former, &custom(), 1).await });
    world.api.held(1).await;
    // Its lease is over, so that it does not even remove what it made.
    lease.shut();
    new.claim(&permit(2)).await.expect("a newer token");
    assert!(new.observe(A).await.expect("observed").running.is_empty());
    gate.notify_one();
    assert!(matches!(late.await.expect("no panic"), Err(Error::Shut(_))));
    assert!(world.api.running().is_empty(), "it is there, with its gate");
    assert_eq!(world.api.all("pods").len(), 1);
    // The new owner begins with the same number, and gets the place.
    let instance = boot(&new, &permit(2), &custom(), 1).await.expect("booted");
    assert_eq!((instance.attempt, world.api.running()), (1, vec![pod(1)]));
    assert_eq!(world.api.all("pods").len(), 1);
}

#[tokio::test]
async fn a_former_owner_cannot_write_into_the_anchor_late() {
    let world = World::new().await;
    let (old, new) = (world.driver("old").await, world.driver("new").await);
    old.claim(&permit(1)).await.expect("the first");
    let gate = world.api.hold("old", "update", "leases");
    let late = tokio::spawn(async move { boot(&old, &permit(1), &custom(), 1).await });
    world.api.held(1).await;
    new.claim(&permit(2)).await.expect("a newer token");
    gate.notify_one();
    is_fenced(late.await.expect("no panic"));
    assert!(world.api.running().is_empty());
    assert!(new.observe(A).await.expect("observed").running.is_empty());
}

#[tokio::test]
async fn a_former_owner_cannot_release_a_pod_late() {
    let world = World::new().await;
    let (old, new) = (world.driver("old").await, world.driver("new").await);
    old.claim(&permit(1)).await.expect("the first");
    let gate = world.api.hold("old", "patch", "pods");
    let late = tokio::spawn(async move { boot(&old, &permit(1), &custom(), 1).await });
    world.api.held(1).await;
    new.claim(&permit(2)).await.expect("a newer token");
    let found = new.observe(A).await.expect("observed");
    assert_eq!((found.running.len(), found.attempts), (0, vec![(0, 1)]), "its number is taken");
    gate.notify_one();
    is_fenced(late.await.expect("no panic"));
    assert!(world.api.running().is_empty());
    boot(&new, &permit(2), &custom(), 2).await.expect("booted");
    assert_eq!(world.api.running(), [pod(2)]);
    assert_eq!(world.api.all("pods").len(), 1, "what never ran was removed");
}

async fn late_deletion(careless: bool) -> (World, Result<(), Error>) {
    let world = World::new().await;
    let (old, new) = (world.driver("old").await, world.driver("new").await);
    let instance = boot(&old, &permit(1), &custom(), 1).await.expect("booted");
    let gate = world.api.hold("old", "delete", "pods");
    let late = tokio::spawn(async move { destroy(&old, &permit(1), &instance).await });
    world.api.held(1).await;
    new.claim(&permit(2)).await.expect("a newer token");
    let running = new.observe(A).await.expect("observed").running;
    assert_eq!(running.len(), 1);
    if careless {
        world.api.be_careless();
    }
    gate.notify_one();
    let result = late.await.expect("no panic");
    (world, result)
}

#[tokio::test]
async fn two_workers_for_one_appliance_and_the_old_one_stopped_and_woken_is_refused() {
    let (world, result) = late_deletion(false).await;
    assert!(matches!(result, Err(Error::Superseded(_))), "{result:?}");
    assert_eq!(world.api.running(), [pod(1)]);
}

#[tokio::test]
async fn without_preconditions_the_old_worker_ends_what_is_no_longer_its_own() {
    let (world, result) = late_deletion(true).await;
    assert!(result.is_ok(), "{result:?}");
    assert!(world.api.running().is_empty(), "this is what preconditions are for");
}

#[tokio::test]
async fn a_former_owner_cannot_forget_late() {
    let world = World::new().await;
    let (old, new) = (world.driver("old").await, world.driver("new").await);
    old.claim(&permit(1)).await.expect("the first");
    let gate = world.api.hold("old", "delete", "leases");
    let late = tokio::spawn(async move { old.forget(&permit(1)).await });
    world.api.held(1).await;
    new.claim(&permit(2)).await.expect("a newer token");
    boot(&new, &permit(2), &custom(), 1).await.expect("booted");
    gate.notify_one();
    let result = late.await.expect("no panic");
    assert!(matches!(result, Err(Error::Superseded(_))), "{result:?}");
    assert_eq!(world.api.all("leases").len(), 1);
    assert_eq!(world.api.running(), [pod(1)]);
}

#[tokio::test]
async fn nothing_is_done_once_the_gate_of_the_worker_is_shut() {
    let world = World::new().await;
    let driver = world.driver("w").await;
    let (permit, gate) = crate::world::permit_with_gate(1);
    driver.claim(&permit).await.expect("the first");
    let held = world.api.hold("w", "create", "pods");
    let late = tokio::spawn(async move { boot(&driver, &permit, &custom(), 1).await });
    world.api.held(1).await;
    gate.shut();
    world.api.take_calls();
    held.notify_one();
    assert!(matches!(late.await.expect("no panic"), Err(Error::Shut(_))));
    assert_eq!(world.api.take_calls(), Vec::<String>::new(), "it was asked again before the next write");
    assert!(world.api.running().is_empty());
}

#[tokio::test]
async fn a_takeover_adopts_what_runs_and_costs_three_calls() {
    let world = World::new().await;
    let (old, new) = (world.driver("old").await, world.driver("new").await);
    world.api.take_calls();
    let booted = boot(&old, &permit(1), &custom(), 1).await.expect("booted");
    let calls = world.api.take_calls();
    assert_eq!(calls, ["get leases", "create leases", "create pods", "update leases", "patch pods"]);
    let known = async || new.is_alive(A, &booted).await.filter(|alive| *alive);
    crate::world::eventually("the other worker hears of it", known).await;
    // A pod that just began changes on; the claim goes by what the watch said last.
    crate::world::eventually("it runs", async || {
        let standing = new.standing(A, &booted).await?;
        standing.problem.is_none().then_some(())
    })
    .await;
    world.api.take_calls();
    new.claim(&permit(2)).await.expect("a newer token");
    let found = new.observe(A).await.expect("observed");
    assert_eq!(world.api.take_calls(), ["get leases", "update leases", "patch pods"]);
    let Instance { attempt, boot_digest, .. } = found.running.first().expect("it runs");
    assert_eq!((*attempt, boot_digest.as_str()), (1, "d"));
    assert!(found.running[0].addresses.service.is_some());
    destroy(&new, &permit(2), &found.running[0]).await.expect("ended");
    assert_eq!(world.api.take_calls(), ["delete pods"]);
    new.forget(&permit(2)).await.expect("nothing is left");
    assert_eq!(world.api.take_calls(), ["delete leases"]);
    assert!(world.api.all("pods").is_empty() && world.api.all("leases").is_empty());
}

#[tokio::test]
async fn an_anchor_that_somebody_deleted_is_made_anew_of_what_runs() {
    let world = World::new().await;
    let (old, new) = (world.driver("old").await, world.driver("new").await);
    let booted = boot(&old, &permit(1), &custom(), 3).await.expect("booted");
    crate::world::eventually("the other worker hears of it", async || {
        new.is_alive(A, &booted).await.filter(|alive| *alive)
    })
    .await;
    world.api.remove("leases", &anchor());
    new.claim(&permit(2)).await.expect("a newer token");
    let found = new.observe(A).await.expect("observed");
    assert_eq!((found.running.len(), found.attempts), (1, vec![(0, 3)]));
    assert_eq!(world.api.all("pods")[0]["metadata"]["annotations"]["rug.dev/token"], "1/2");
    is_fenced(destroy(&old, &permit(1), &booted).await);
    assert_eq!(world.api.running(), [pod(3)]);
}

#[tokio::test]
async fn an_anchor_that_somebody_deleted_is_not_made_anew_by_a_late_write() {
    let world = World::new().await;
    let (old, new) = (world.driver("old").await, world.driver("new").await);
    old.claim(&permit(1)).await.expect("the first");
    let gate = world.api.hold("old", "update", "leases");
    let late = tokio::spawn(async move { boot(&old, &permit(1), &custom(), 1).await });
    world.api.held(1).await;
    world.api.remove("leases", &anchor());
    gate.notify_one();
    is_fenced(late.await.expect("no panic"));
    assert!(world.api.all("leases").is_empty(), "an update that names a uid makes nothing");
    assert!(world.api.running().is_empty() && world.api.all("pods").is_empty(), "what was made for it is gone");
    new.claim(&permit(2)).await.expect("a newer token");
}

#[tokio::test]
async fn a_deleted_anchor_is_made_anew_of_every_pod_that_runs_and_of_none_that_could_be_released_late() {
    let world = World::new().await;
    let (old, new) = (world.driver("old").await, world.driver("new").await);
    boot(&old, &permit(1), &custom(), 1).await.expect("booted");
    // One that is about to be released, and a second one at the first one's ordinal.
    let gate = world.api.hold("old", "patch", "pods");
    let late = tokio::spawn(async move {
        let wanted = Wanted { ordinal: 1, attempt: 1, desired: &custom(), boot_digest: "d", beside: None };
        old.ensure(&permit(1), wanted).await
    });
    world.api.held(1).await;
    world.api.insert_pod(&pod(9), serde_json::json!({"rug.dev/appliance": A.to_string()}));
    world.api.copy_pod(&pod(1), &pod(2));
    // Watches show changes in their order.
    crate::world::eventually("the other worker hears of the last", async || {
        let listed = new.list().await.ok()?;
        listed.iter().any(|(_, instance)| instance.attempt == 2).then_some(())
    })
    .await;
    world.api.remove("leases", &anchor());
    new.claim(&permit(2)).await.expect("a newer token");
    let found = new.observe(A).await.expect("observed");
    let running: Vec<_> = found.running.iter().map(|instance| (instance.ordinal, instance.attempt)).collect();
    assert_eq!(running, [(0, 1), (0, 2)], "both, and nothing without a token");
    assert!(found.attempts.contains(&(1, 1)), "{:?}", found.attempts);
    gate.notify_one();
    is_fenced(late.await.expect("no panic"));
    assert_eq!(world.api.running(), [pod(1), pod(2), pod(9)], "it was not released");
}

#[tokio::test]
async fn a_claim_that_had_no_answer_is_made_anew_and_a_late_deletion_is_refused_after_it() {
    let world = World::new().await;
    let (old, new) = (world.patient_driver("old").await, world.driver("new").await);
    let instance = boot(&old, &permit(1), &custom(), 1).await.expect("booted");
    let gate = world.api.hold("old", "delete", "pods");
    let late = tokio::spawn(async move { destroy(&old, &permit(1), &instance).await });
    world.api.held(1).await;
    world.api.fault("new", "update", "leases", 1, Fault::Hold(Default::default()));
    let first = new.claim(&permit(2)).await;
    assert!(matches!(first, Err(Error::Failed(_))), "{first:?}");
    new.claim(&permit(2)).await.expect("the next one is answered");
    gate.notify_one();
    is_fenced(late.await.expect("no panic"));
    assert_eq!(world.api.running(), [pod(1)]);
}

#[tokio::test]
async fn a_pod_whose_gate_was_taken_away_is_refused_and_deleted() {
    let world = World::new().await;
    let driver = world.driver("w").await;
    world.api.strip_gates();
    let refused = boot(&driver, &permit(1), &custom(), 1).await;
    assert!(matches!(&refused, Err(Error::Refused(text)) if text.contains("scheduling gate")), "{refused:?}");
    crate::world::eventually("it is gone", async || world.api.all("pods").is_empty().then_some(())).await;
    // Also where the answer is lost, and the pod is found the next time.
    world.api.fault("w", "create", "pods", 1, Fault::LoseAnswer);
    let refused = boot(&driver, &permit(1), &custom(), 2).await;
    assert!(matches!(&refused, Err(Error::Refused(text)) if text.contains("scheduling gate")), "{refused:?}");
    crate::world::eventually("it is gone", async || world.api.all("pods").is_empty().then_some(())).await;
}

#[tokio::test]
async fn an_anchor_that_others_have_spoilt_is_refused_and_nothing_is_done() {
    let world = World::new().await;
    let driver = world.driver("w").await;
    boot(&driver, &permit(1), &custom(), 1).await.expect("booted");
    world.api.change("leases", &anchor(), |lease| lease["metadata"]["annotations"]["rug.dev/journal"] = "x".into());
    let other = world.driver("v").await;
    let refused = other.claim(&permit(2)).await;
    assert!(matches!(&refused, Err(Error::Refused(text)) if text.contains("cannot be read")), "{refused:?}");
    assert_eq!(world.api.running(), [pod(1)]);
}
