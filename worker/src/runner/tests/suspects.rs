//! Steps of suspects: announced, and begun once the leader knows.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_step_of_a_suspect_begins_only_once_the_leader_knows() {
    let mut bench = RunnerBench::new().await;
    bench.take_suspect(1, 1, desired(1, |_| {})).await;
    let first = bench.begins().await;
    bench.clear(1, 9, first).await;
    bench.clear(1, 1, first + 1).await;
    assert_eq!(bench.done().await, first, "it waits for a bounded time");
    let boot = bench.begins().await;
    assert!(boot > first, "and tries again later");
    bench.clear(1, 1, first).await;
    bench.pass(Duration::from_millis(100)).await;
    assert_eq!(bench.world.calls(), [] as [&str; 0], "word of the one that was given up");
    bench.clear(1, 1, boot).await;
    assert_eq!(bench.done().await, boot);
    assert_eq!(bench.world.calls(), ["boot 0/1"]);
    let configure = bench.begins().await;
    bench.clear(1, 1, configure).await;
    assert_eq!(bench.done().await, configure);
    assert_eq!(bench.world.calls(), ["boot 0/1", "configure 0/1 g1"]);
    bench.phase(Phase::Configured).await;
}

#[tokio::test(start_paused = true)]
async fn a_suspect_without_a_leader_is_probed_and_nothing_else() {
    let mut bench = RunnerBench::new().await;
    let d = desired(1, |_| {});
    bench.world.put(id(1), 0, 7, &d);
    bench.take_suspect(1, 1, d).await;
    bench.pass(Duration::from_secs(300)).await;
    assert_eq!(bench.world.calls(), [] as [&str; 0]);
    assert!(bench.world.probes.lock().expect("no panic").len() >= 5, "probes go on");
    // A leader that is back hears what waits, and is answered when it is released.
    bench.handle.send(RunnerCommand::Restate).await.expect("it runs");
    bench.begins().await;
    bench.release(1, 1).await;
    bench.released().await;
}

#[tokio::test(start_paused = true)]
async fn a_running_step_of_a_suspect_is_announced_again_when_asked() {
    let mut bench = RunnerBench::new().await;
    *bench.world.boots.takes.lock().expect("no panic") = Duration::from_secs(30);
    bench.take_suspect(1, 1, desired(1, |_| {})).await;
    let boot = bench.begins().await;
    bench.clear(1, 1, boot).await;
    bench.pass(Duration::from_secs(5)).await;
    bench.handle.send(RunnerCommand::Restate).await.expect("it runs");
    assert_eq!(bench.begins().await, boot);
    bench.clear(1, 1, boot).await;
    assert_eq!(bench.done().await, boot);
    assert_eq!(bench.world.calls(), ["boot 0/1"], "it is not begun twice");
}
