//! Stopping: what is given back, in which order, and what ends the wait for it.

use super::*;

const B: ApplianceId = ApplianceId::from_u128(0xb);

impl SessionBench {
    /// One that holds A on a stream.
    async fn holding(config: Config) -> (Self, Conn) {
        let mut bench = Self::with(config, Conversation::default()).await;
        let (mut conn, _) = bench.hello().await;
        conn.welcome(1, &[]).await;
        bench.grant_a(&mut conn).await;
        (bench, conn)
    }
}

fn config(on_stop: OnStop) -> Config {
    let hour = Duration::from_secs(3_600);
    Config { connect_timeout: DEADLINE, on_stop, drain_timeout: hour, ..Config::default() }
}

async fn confirm_a(conn: &Conn) {
    conn.send(ToWorker::Confirm(Confirm { released: vec![GrantRef::new(A, token(1, 1))], begin: vec![] })).await;
}

#[tokio::test]
async fn a_draining_worker_goes_on_until_everything_was_taken_over() {
    let (mut bench, mut conn) = SessionBench::holding(config(OnStop::Drain)).await;
    bench.stop.drain();
    assert_eq!(conn.receive().await, Some(ToCoordinator::Drain { hand_back: false }));

    // What was offered before the leader heard of it.
    let delta = change(1, 2, vec![grant(B, token(1, 2))]);
    conn.send(delta).await;
    let declined = conn.ack().await.declined;
    assert_eq!((declined.len(), declined[0].appliance), (1, B));

    // What it keeps is kept alive as ever.
    let check = DeltaEntry::Check { appliance: A, token: token(1, 1), number: 5 };
    let delta = change(2, 3, vec![check]);
    conn.send(delta).await;
    assert!(matches!(bench.command().await, RunnerCommand::Check { number: 5, .. }));

    let delta = change(3, 4, vec![DeltaEntry::Release(GrantRef::new(A, token(1, 1)))]);
    conn.send(delta).await;
    assert!(matches!(bench.command().await, RunnerCommand::Release { .. }));
    bench.release_a().await;
    while conn.ack().await.released.is_empty() {}
    confirm_a(&conn).await;
    let (last, ended) = tokio::join!(conn.receive(), bench.ended());
    assert_eq!((last, ended), (Some(ToCoordinator::Leave), Ok(())));
}

#[tokio::test]
async fn handing_back_a_worker_releases_by_itself_and_says_drain_first() {
    let (mut bench, mut conn) = SessionBench::holding(config(OnStop::HandBack)).await;
    bench.stop.drain();
    assert!(matches!(bench.command().await, RunnerCommand::Release { appliance: A, .. }));
    bench.release_a().await;
    assert_eq!(conn.receive().await, Some(ToCoordinator::Drain { hand_back: true }));
    assert_eq!(conn.ack().await.released.len(), 1);

    // The leader went away before it had stored that: said again, the drain as well.
    drop(conn);
    let (mut conn, hello) = bench.hello().await;
    assert_eq!((hello.owned.len(), hello.released.len()), (0, 1));
    conn.welcome(1, &[]).await;
    assert_eq!(conn.receive().await, Some(ToCoordinator::Drain { hand_back: true }));
    confirm_a(&conn).await;
    let (last, ended) = tokio::join!(conn.receive(), bench.ended());
    assert_eq!((last, ended), (Some(ToCoordinator::Leave), Ok(())));
}

#[tokio::test]
async fn draining_ends_with_its_timeout() {
    let config = Config { drain_timeout: Duration::from_millis(300), ..config(OnStop::Drain) };
    let (bench, mut conn) = SessionBench::holding(config).await;
    bench.stop.drain();
    assert_eq!(conn.receive().await, Some(ToCoordinator::Drain { hand_back: false }));
    let (last, ended) = tokio::join!(conn.receive(), bench.ended());
    assert_eq!((last, ended), (Some(ToCoordinator::Leave), Ok(())));
}

#[tokio::test]
async fn a_second_request_ends_draining() {
    let (bench, mut conn) = SessionBench::holding(config(OnStop::Drain)).await;
    bench.stop.drain();
    assert_eq!(conn.receive().await, Some(ToCoordinator::Drain { hand_back: false }));
    bench.stop.leave();
    let (last, ended) = tokio::join!(conn.receive(), bench.ended());
    assert_eq!((last, ended), (Some(ToCoordinator::Leave), Ok(())));
}

#[tokio::test]
async fn a_coordinator_that_stops_as_well_is_not_waited_for() {
    let (bench, mut conn) = SessionBench::holding(config(OnStop::Drain)).await;
    bench.stop.drain();
    assert_eq!(conn.receive().await, Some(ToCoordinator::Drain { hand_back: false }));
    let (reason, detail) = (RefusedReason::Stopping, String::new());
    conn.send(ToWorker::Refused(Refused { reason, detail, retry_after: None })).await;
    bench.ended().await.expect("it was asked to");
}

#[tokio::test]
async fn without_a_coordinator_a_draining_worker_leaves_soon() {
    let config = Config { retry_cap: Duration::from_secs(3_600), ..config(OnStop::Drain) };
    let (mut bench, conn) = SessionBench::holding(config).await;
    bench.coordinator.conns.close();
    drop(conn);
    bench.stop.drain();
    bench.ended().await.expect("it was asked to");
}
