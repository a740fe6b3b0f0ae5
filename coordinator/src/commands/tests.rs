//! The handle against a leader that answers as it is told.

use std::time::Duration;

use common::appliance::Name;
use common::change::ApplianceTarget;
use uuid::Uuid;

use super::*;
use crate::access::Scope;

fn within(time: Duration) -> CommandContext {
    CommandContext { actor: "test".to_owned(), deadline: Instant::now() + time }
}

fn delete() -> Change {
    let name = |text| Name::new(text).expect("a valid name");
    Change::Delete {
        target: ApplianceTarget::Name(name("default"), name("web")),
        expected: None,
        allow_missing: true,
        at_once: false,
    }
}

async fn next_change(queue: &mut CommandQueue) -> (Arc<Mutation>, Reply<Changed>) {
    match queue.recv().await.expect("the handle is there") {
        Command::Change { mutation, reply, .. } => (mutation, reply),
        other => panic!("another command: {other:?}"),
    }
}

fn done() -> Changed {
    Changed { entry: None, outcome: ChangeOutcome::Unchanged, warning: None }
}

const CLIENT: ChangeOrigin = ChangeOrigin::Client { force: false, scope: Scope::All };

#[tokio::test(start_paused = true)]
async fn a_change_that_meets_another_one_is_made_again_once_that_has_settled() {
    let (commands, mut queue) = channel();
    let leader = tokio::spawn(async move {
        let (first, reply) = next_change(&mut queue).await;
        reply.send(Err(CommandError::Contended)).expect("the caller waits");
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(queue.try_recv().is_err(), "nothing has settled");
        queue.settled().notify_waiters();
        let (second, reply) = next_change(&mut queue).await;
        assert_eq!(first, second);
        reply.send(Ok(done())).expect("the caller waits");
    });
    let key = RequestKey::new(Uuid::from_u128(1), &Scope::All, b"content");
    let changed = commands.change(&within(Duration::from_secs(5)), CLIENT, delete(), false, Some(key)).await;
    assert_eq!(changed.map(|c| c.outcome), Ok(ChangeOutcome::Unchanged));
    leader.await.expect("no panic");
}

#[tokio::test(start_paused = true)]
async fn a_change_that_settles_before_the_answer_is_read_is_not_missed() {
    let (commands, mut queue) = channel();
    let leader = tokio::spawn(async move {
        let (_, reply) = next_change(&mut queue).await;
        queue.settled().notify_waiters();
        reply.send(Err(CommandError::Contended)).expect("the caller waits");
        let (_, reply) = next_change(&mut queue).await;
        reply.send(Ok(done())).expect("the caller waits");
    });
    commands
        .change(&within(Duration::from_secs(5)), CLIENT, delete(), false, None)
        .await
        .expect("made the second time");
    leader.await.expect("no panic");
}

#[tokio::test(start_paused = true)]
async fn waiting_ends_at_the_deadline() {
    let (commands, mut queue) = channel();
    let context = within(Duration::from_secs(2));
    let leader = tokio::spawn(async move {
        let (_, reply) = next_change(&mut queue).await;
        reply.send(Err(CommandError::Contended)).expect("the caller waits");
        queue.recv().await
    });
    let late = commands.change(&context, CLIENT, delete(), false, None).await;
    assert_eq!(late.map(|c| c.outcome), Err(CommandError::DeadlineExceeded), "nothing settles");
    assert_eq!(Instant::now(), context.deadline);
    drop(commands);
    assert!(leader.await.expect("no panic").is_none(), "it was not asked again");

    let (commands, _queue) = channel();
    let unread = commands.pause(&within(Duration::from_secs(2)), false, Reason::default()).await;
    assert_eq!(unread, Err(CommandError::DeadlineExceeded), "nobody answers");
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_ends_is_told_apart_from_one_that_never_took_the_call() {
    let (commands, mut queue) = channel();
    let leader = tokio::spawn(async move { drop(queue.recv().await) });
    let appliance = ApplianceId::from_u128(1);
    let context = within(Duration::from_secs(2));
    assert_eq!(commands.check(&context, appliance).await, Err(CommandError::Unanswered));
    leader.await.expect("no panic");
    assert_eq!(commands.check(&context, appliance).await, Err(CommandError::Stopping), "the queue is closed");
}

#[tokio::test(start_paused = true)]
async fn what_an_operator_asks_for_carries_who_and_why() {
    let (commands, mut queue) = channel();
    let leader = tokio::spawn(async move {
        let Some(Command::Evict { worker, incarnation, request, reply }) = queue.recv().await else {
            panic!("an eviction was asked for")
        };
        assert_eq!((worker.as_str(), incarnation), ("w1", Some(Incarnation::new(7))));
        assert_eq!(request, Operator { reason: "stuck".to_owned(), actor: "test".to_owned() });
        reply.send(Ok(())).expect("the caller waits");
    });
    let worker = WorkerId::new("w1").expect("a valid name");
    let reason = Reason::new("stuck".to_owned()).expect("short");
    let evicted = commands.evict(&within(Duration::from_secs(2)), worker, Some(Incarnation::new(7)), reason).await;
    assert_eq!(evicted, Ok(()));
    leader.await.expect("no panic");
    for odd in ["x".repeat(MAX_REASON + 1), "a\nb".to_owned()] {
        assert_eq!(Reason::new(odd).map_err(|violation| violation.field), Err("reason".to_owned()));
    }
}

#[test]
fn the_digest_of_a_request_is_the_one_that_earlier_versions_stored() {
    let key = RequestKey::new(Uuid::from_u128(7), &Scope::All, b"Delete\0\x0a\x04\x0a\x02id");
    assert_eq!(Uuid::from_bytes(key.digest).to_string(), "b8877088-66d8-5e1a-b7a9-1dc908ae4757");
}
