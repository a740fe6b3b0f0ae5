//! Runs that are over reach the leader once it is there, and are told until it has them.

use common::run::{MAX_RUNS, RunBatch};
use common::status::Phase;
use proto::convert::down::runs_stored_to_wire;
use proto::convert::up::up_from_wire;
use worker_core::lifecycle::{Transition, TransitionCause};

use super::*;
use crate::runner::EndedRun;

impl Conn {
    /// The next batch of runs.
    async fn runs(&mut self) -> RunBatch {
        loop {
            let message = tokio::time::timeout(DEADLINE, self.inbound.message()).await.expect("in time");
            let message = message.expect("the stream stands").expect("the stream stands");
            if let Some(batch) = up_from_wire(message).expect("readable").runs {
                return batch;
            }
        }
    }
}

#[tokio::test]
async fn runs_are_told_in_batches_until_the_leader_has_them() {
    let mut bench = SessionBench::new().await;
    for n in 0..MAX_RUNS + 1 {
        let change = Transition { from: Phase::Up, to: Phase::Down, cause: TransitionCause::Time };
        bench.event(RunnerEvent::Run(EndedRun::of_change(ApplianceId::from_u128(n as u128), &desired(), change))).await;
    }
    let (mut conn, _) = bench.hello().await;
    conn.welcome(1, &[]).await;
    let first = conn.runs().await;
    assert_eq!(first.runs.len(), MAX_RUNS);

    // Not confirmed: told again on the next stream, as the same runs.
    drop(conn);
    let (mut conn, _) = bench.hello().await;
    conn.welcome(1, &[]).await;
    let again = conn.runs().await;
    let ids = |batch: &RunBatch| batch.runs.iter().map(|run| run.id).collect::<Vec<_>>();
    assert_eq!(ids(&again), ids(&first));

    // A confirmation of another batch is none.
    let confirm = |number| Ok(runs_stored_to_wire(&conn.envelope, number));
    let (stale, good) = (confirm(again.number - 1), confirm(again.number));
    conn.out.send(stale).await.expect("the stream stands");
    conn.out.send(good).await.expect("the stream stands");
    let rest = conn.runs().await;
    assert_eq!(
        rest.runs.iter().map(|run| run.appliance).collect::<Vec<_>>(),
        [ApplianceId::from_u128(MAX_RUNS as u128)]
    );
    bench.finish().await;
}
