//! Claims that are not answered, and drivers that do not know.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_claim_that_was_not_answered_is_made_again_before_anything_else() {
    let mut bench = RunnerBench::new().await;
    bench.world.claims_hang.store(true, Ordering::Relaxed);
    let d = desired(4, |_| {});
    bench.world.put(id(1), 0, 7, &d);
    bench.take(1, 1, d).await;
    bench.pass(Duration::from_secs(120)).await;
    let claims = bench.world.claims.load(Ordering::Relaxed);
    assert!(claims >= 2, "{claims} claims: each look makes one until one is answered");
    assert_eq!(bench.world.calls(), Vec::<String>::new());
    bench.world.claims_hang.store(false, Ordering::Relaxed);
    bench.phase(Phase::Configured).await;
    let claims = bench.world.claims.load(Ordering::Relaxed);
    bench.handle.send(RunnerCommand::Check { appliance: id(1), token: token(1), number: 42 }).await.expect("it runs");
    bench.pass(Duration::from_secs(60)).await;
    assert_eq!(bench.world.claims.load(Ordering::Relaxed), claims, "one that was answered is not made again");
}

#[tokio::test(start_paused = true)]
async fn what_a_driver_does_not_know_is_nothing_that_is_wrong_with_an_instance() {
    let mut bench = RunnerBench::new().await;
    bench.world.left_to_driver.store(true, Ordering::Relaxed);
    let doubt = Some("the watch is broken".to_owned());
    *bench.world.standing.lock().expect("no panic") = Some(Standing { doubt, ..Standing::default() });
    bench.take(1, 1, desired(1, |_| {})).await;
    bench.phase(Phase::Configured).await;
    bench.pass(Duration::from_secs(600)).await;
    assert!(bench.world.probes.lock().expect("no panic").len() >= 10);
    assert_eq!(bench.world.calls(), ["boot 0/1", "expose 0/1", "configure 0/1 g1"], "it was not replaced");
}
