//! Holds on their way through the session: from the grant to the gate, and with the release back to the leader.

use super::*;
use crate::gate::Shut;

#[tokio::test]
async fn a_fence_delay_shuts_the_gate_and_what_is_left_of_it_travels_with_the_release() {
    let (delay, left) = (Duration::from_secs(3_600), Duration::from_secs(30));
    let mut bench = SessionBench::new().await;
    let (mut conn, hello) = bench.hello().await;
    assert_eq!(hello.profile.fence_delay(&DriverName::simulated()), Duration::ZERO);
    let gate = bench.begun().await;
    conn.welcome(1, &[]).await;
    let granted = grant_after(A, token(1, 1), Carryover { fence_delay: delay, ..Carryover::default() });
    conn.send(change(0, 1, vec![granted])).await;
    assert_eq!(conn.ack().await.granted, [GrantRef::new(A, token(1, 1))]);
    let RunnerCommand::Take { fence_delay, .. } = bench.command().await else { panic!("it is taken") };
    assert_eq!(fence_delay, delay);
    assert!(matches!(gate.pass(A, token(1, 1)), Err(Shut::FenceDelay(wait)) if wait > delay / 2), "{gate:?}");

    let progress = Progress::default();
    bench.event(RunnerEvent::Released { appliance: A, token: token(1, 1), progress, fence_delay: left }).await;
    let said = conn.ack().await.released;
    assert_eq!(said.iter().map(|r| (r.appliance, r.carryover.fence_delay)).collect::<Vec<_>>(), [(A, left)]);
    assert!(matches!(gate.pass(A, token(1, 1)), Err(Shut::NotOwned)));
    drop(conn);
    let (_conn, hello) = bench.hello().await;
    assert_eq!(hello.released, said, "said again until the store has it");
    bench.finish().await;
}

#[tokio::test]
async fn the_margin_of_calls_without_token_is_a_setting() {
    let margin = Duration::from_secs(30);
    let config = Config { act_margin: margin, connect_timeout: DEADLINE, ..Config::default() };
    let mut bench = SessionBench::with(config, Conversation::default()).await;
    let (mut conn, _) = bench.hello().await;
    let gate = bench.begun().await;
    conn.welcome(1, &[]).await;
    bench.grant_a(&mut conn).await;
    let permit = gate.pass(A, token(1, 1)).expect("the lease stands");
    assert_eq!(permit.check_unfenced(), Err(Shut::Fenced), "it ends within {margin:?}");
    gate.extend(clock::now() + 2 * margin);
    assert_eq!(permit.check_unfenced(), Ok(()));
    bench.finish().await;
}
