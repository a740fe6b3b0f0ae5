//! What is kept of runs.

use common::run::{Run, RunOutcome};

use super::*;

impl RunnerBench {
    /// The next run that is over, of those with steps.
    async fn run(&mut self) -> Run {
        loop {
            if let RunnerEvent::Run(run) = self.event().await {
                let run = run.told(Timestamp::from_millis(u64::MAX / 2_000_000));
                if run.outcome != RunOutcome::Observed {
                    return run;
                }
            }
        }
    }
}

fn steps(run: &Run) -> Vec<&str> {
    run.steps.iter().map(|step| step.step.as_str()).collect()
}

#[tokio::test(start_paused = true)]
async fn every_run_is_told_once_with_its_cause_and_its_outcome() {
    let mut bench = RunnerBench::new().await;
    bench.world.boots.fail.store(true, Ordering::Relaxed);
    bench.take(1, 1, desired(1, |_| {})).await;
    let run = bench.run().await;
    assert_eq!((run.outcome, run.cause.as_str(), steps(&run)[0]), (RunOutcome::Failed, "taken", "boot 0"));
    assert!(!run.error.is_empty() && run.steps.iter().any(|step| step.outcome == "refused"), "{run:?}");
    bench.world.boots.fail.store(false, Ordering::Relaxed);
    let first = run.id;
    let run = bench.run().await;
    assert_eq!((run.outcome, run.cause.as_str()), (RunOutcome::Completed, "retry"), "{run:?}");
    assert_ne!(run.id, first);
    assert_eq!(run.changes.last().map(|change| change.to), Some(Phase::Configured), "{run:?}");

    bench.update(1, 1, desired(2, |d| d.revision = 1)).await;
    let run = bench.run().await;
    assert_eq!((run.outcome, run.cause.as_str(), run.generation.get()), (RunOutcome::Completed, "rebuild", 2));
    assert!(steps(&run).contains(&"destroy 0") && run.error.is_empty(), "{run:?}");
    bench.update(1, 1, desired(3, |d| d.deleting = true)).await;
    let run = bench.run().await;
    assert_eq!((run.outcome, run.cause.as_str(), *steps(&run).last().expect("a step")), {
        (RunOutcome::Removed, "delete", "forget")
    });
}

#[tokio::test(start_paused = true)]
async fn a_run_whose_life_ends_is_told_in_the_next_one() {
    let mut bench = RunnerBench::new().await;
    *bench.world.boots.takes.lock().expect("no panic") = HOUR;
    bench.take(1, 1, desired(1, |_| {})).await;
    bench.phase(Phase::Booting).await;
    bench.handle.send(RunnerCommand::Begin { gate: SharedGate::new() }).await.expect("it runs");
    let run = bench.run().await;
    assert_eq!((run.outcome, run.cause.as_str()), (RunOutcome::Interrupted, "taken"));
}
