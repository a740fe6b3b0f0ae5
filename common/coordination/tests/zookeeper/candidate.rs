//! The coordinator's part: elections and terms.

use anyhow::ensure;
use common::Term;
use coordination::{Error, Leader};
use zookeeper_client::{Acls, CreateMode};

use crate::support::{PATIENCE, TestRoot, contenders, elected, eventually, own, shared, within};

const CONTENDERS: &str = "/tooz/g.coordinators/leader";

#[tokio::test(flavor = "multi_thread")]
async fn leadership_passes_on_when_the_leader_resigns_or_goes() {
    let place = TestRoot::new(shared().await, "handover", 4.0);
    let client = place.client().await;
    let (a, b) = (place.candidate("a"), place.candidate("b"));
    let first = elected(&a).await;
    let mut seen = b.leader();
    let is = |id: &'static str| move |leader: &Option<Leader>| leader.as_ref().is_some_and(|l| l.id.as_str() == id);
    let leader = within("the leader is known", seen.wait_for(is("a"))).await.expect("it goes on").clone();
    assert_eq!(leader.expect("somebody leads").address, "https://a:1");

    let waiting = tokio::spawn(async move {
        let leadership = elected(&b).await;
        (b, leadership)
    });
    contenders(&client, 2).await;
    assert!(!waiting.is_finished(), "one leads at a time");
    assert!(!first.lost().is_cancelled());
    within("it has resigned", first.resign()).await;
    let (b, second) = within("the next leads", waiting).await.expect("it does not panic");
    let (data, _) = client.get_data("/tooz/g.coordinators/a").await.expect("who resigned stays a member");
    assert_eq!(data, b"\x81\xa7address\xabhttps://a:1");

    // Dropping gives it up as well, in the background.
    let waiting = tokio::spawn(async move {
        let leadership = elected(&a).await;
        (a, leadership)
    });
    contenders(&client, 2).await;
    drop(second);
    let (a, third) = within("the next leads", waiting).await.expect("it does not panic");
    let mut seen = b.leader();
    within("it is known", seen.wait_for(is("a"))).await.expect("it goes on");
    drop((a, third));
    within("nobody leads", seen.wait_for(Option::is_none)).await.expect("it goes on");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_campaign_that_is_dropped_stops_contending() {
    let place = TestRoot::new(shared().await, "dropped", 4.0);
    let client = place.client().await;
    let (a, b) = (place.candidate("a"), place.candidate("b"));
    let leadership = elected(&a).await;
    let campaign = tokio::spawn({
        let b = std::sync::Arc::clone(&b);
        async move { b.campaign().await.map(drop) }
    });
    contenders(&client, 2).await;
    campaign.abort();
    contenders(&client, 1).await;
    assert!(!leadership.lost().is_cancelled());
    within("it has left", b.leave()).await;
    let error = within("it says so", b.campaign()).await.expect_err("it left");
    assert!(matches!(error, Error::Refused(_)), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_whose_member_node_is_deleted_joins_anew_so_that_it_can_be_found() {
    let place = TestRoot::new(shared().await, "expelled", 4.0);
    let client = place.client().await;
    let a = place.candidate("a");
    let first = elected(&a).await;
    let mut seen = a.leader();
    let found = |leader: &Option<Leader>| leader.as_ref().is_some_and(|l| l.address == "https://a:1");
    within("it can be found", seen.wait_for(found)).await.expect("it goes on");
    let (_, made) = client.get_data("/tooz/g.coordinators/a").await.expect("it is a member");
    client.delete("/tooz/g.coordinators/a", None).await.expect("it is there");
    within("it has no leadership any more", first.lost().cancelled()).await;
    drop(first);
    let _second = elected(&a).await;
    within("it can be found again", seen.wait_for(found)).await.expect("it goes on");
    let (_, stat) = client.get_data("/tooz/g.coordinators/a").await.expect("it is a member again");
    assert_ne!(stat.ephemeral_owner, made.ephemeral_owner, "in another session");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_python_contender_excludes_and_is_named_without_an_address() {
    let place = TestRoot::new(shared().await, "python", 4.0);
    let client = place.client().await;
    let (a, persistent) = (place.candidate("a"), CreateMode::Persistent.with_acls(Acls::anyone_all()));
    client.mkdir(CONTENDERS, &persistent).await.expect("anyone may");
    let path = format!("{CONTENDERS}/00000000000000000000000000000000__lock__");
    let sequential = CreateMode::EphemeralSequential.with_acls(Acls::anyone_all());
    let (_, sequence) = client.create(&path, b"py-1", &sequential).await.expect("anyone may");
    let mut seen = a.leader();
    let campaign = tokio::spawn(async move { (elected(&a).await, a) });
    contenders(&client, 2).await;
    let leader = within("it is known", seen.wait_for(Option::is_some)).await.expect("it goes on").clone();
    let leader = leader.expect("somebody leads");
    assert_eq!((leader.id.as_str(), leader.address.as_str()), ("py-1", ""));
    assert!(!campaign.is_finished());
    client.delete(&format!("{path}{sequence}"), None).await.expect("it is there");
    within("it stands down", campaign).await.expect("it does not panic");
}

#[tokio::test(flavor = "multi_thread")]
async fn terms_only_grow_and_only_the_lock_raises_them() {
    let place = TestRoot::new(shared().await, "terms", 4.0);
    let client = place.client().await;
    let a = place.candidate("a");
    let leadership = elected(&a).await;
    let raised = leadership.raise_term(Term::new(0)).await.expect("it leads");
    assert_eq!((raised.term, raised.found), (Term::new(1), None));
    let raised = leadership.raise_term(Term::new(0)).await.expect("it leads");
    assert_eq!((raised.term, raised.found), (Term::new(2), Some(Term::new(1))));
    let raised = leadership.raise_term(Term::new(41)).await.expect("it leads");
    assert_eq!((raised.term, raised.found), (Term::new(42), Some(Term::new(2))));
    assert_eq!(client.get_data("/rug/g/term").await.expect("it is there").0, b"42");

    let lock = contenders(&client, 1).await.remove(0);
    let lost = leadership.lost();
    client.delete(&format!("{CONTENDERS}/{lock}"), None).await.expect("it is there");
    let error = leadership.raise_term(Term::new(0)).await.expect_err("the lock is gone");
    assert!(matches!(error, Error::Lost(_)), "{error}");
    assert_eq!(client.get_data("/rug/g/term").await.expect("it is there").0, b"42");
    within("it is noticed", lost.cancelled()).await;
    drop(leadership);
    // It queues up again, and does not overwrite what it cannot read.
    let leadership = elected(&a).await;
    client.set_data("/rug/g/term", b"soon", None).await.expect("anyone may");
    let error = leadership.raise_term(Term::new(0)).await.expect_err("that is no term");
    assert!(matches!(error, Error::Refused(_)), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn doubt_ends_a_leadership_and_the_same_lock_leads_again() {
    let mut server = own().await;
    let place = TestRoot::new(&server, "doubt", 20.0);
    let client = place.client().await;
    let a = place.candidate("a");
    let leadership = elected(&a).await;
    let lock = contenders(&client, 1).await;
    let lost = leadership.lost();
    // A paused server expires nobody when it goes on, and the client keeps the session for 7/5 of its timeout.
    server.pause().expect("it runs");
    within("heartbeats are missed", lost.cancelled()).await;
    server.resume().expect("it is paused");
    drop(leadership);
    let leadership = elected(&a).await;
    assert_eq!(contenders(&client, 1).await, lock);
    let raised = leadership.raise_term(Term::new(0)).await.expect("it leads");
    assert_eq!(raised.term, Term::new(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wiped_server_has_no_term_and_everybody_comes_back() {
    let mut server = own().await;
    let place = TestRoot::new(&server, "wiped", 2.0);
    let (a, b) = (place.candidate("a"), place.candidate("b"));
    let leadership = elected(&a).await;
    leadership.raise_term(Term::new(9)).await.expect("it leads");
    server.kill().expect("it runs");
    within("it is lost", leadership.lost().cancelled()).await;
    drop(leadership);
    server.wipe().expect("it is down");
    server.start_again().await.expect("it starts");
    let leadership = elected(&a).await;
    let raised = leadership.raise_term(Term::new(10)).await.expect("it leads");
    assert_eq!(raised.found, None);
    assert!(raised.term > Term::new(11), "nobody knows what was begun since, {}", raised.term);
    let client = place.client().await;
    eventually("both are members again", async || {
        ensure!(client.check_stat("/tooz/g.coordinators/a").await?.is_some());
        ensure!(client.check_stat("/tooz/g.coordinators/b").await?.is_some());
        Ok(())
    })
    .await;
    drop(b);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_coordinator_whose_name_is_taken_is_told() {
    let mut place = TestRoot::new(shared().await, "coordinator", 2.0);
    place.config.join_timeout = std::time::Duration::from_millis(100);
    let (first, second) = (place.candidate("a"), place.candidate("a"));
    // Either may come first; one of them has the name.
    let (one, other) = tokio::join!(
        tokio::time::timeout(PATIENCE, first.campaign()),
        tokio::time::timeout(PATIENCE, second.campaign())
    );
    let (one, other) = (one.expect("it is decided"), other.expect("it is decided"));
    let refused = match (one, other) {
        (Ok(_leads), Err(refused)) | (Err(refused), Ok(_leads)) => refused,
        both => panic!("{both:?}"),
    };
    assert!(matches!(&refused, Error::NameTaken { name, .. } if name == "a"), "{refused}");
}
