//! The worker's part.

use std::time::Duration;

use anyhow::{Context, ensure};
use coordination::{Error, MembershipEnd};
use runtime::clock;
use zookeeper_client::{Acls, Client, CreateMode};

use crate::support::{
    TestProxyGate, TestRoot, elected, eventually, heartbeat, join, own, profile, seal, shared, within,
};

const MEMBER: &str = "/tooz/g.workers/w1";
const LEASE: &str = "/rug/g/leases/w1";

#[tokio::test(flavor = "multi_thread")]
async fn a_life_is_two_nodes_of_one_transaction_and_leaves_nothing() {
    let place = TestRoot::new(shared().await, "life", 4.0);
    let (group, client) = (place.group("w1"), place.client().await);
    let (life, gate) = join(&group).await;
    assert!(gate.is_open(), "the transaction counts as the first heartbeat");

    let (data, member) = client.get_data(MEMBER).await.expect("the member node is there");
    let (_, lease) = client.get_data(LEASE).await.expect("the lease node is there");
    let expected =
        b"\x88\xa6weight\x02\xa4zone\xa1a\xa7drivers\x91\xa7process\xa4host\xa2h1\xa9state_dir\xac/var/lib/rug\
        \xa7version\xa31.0\xa3pid\xcd\x12\x67\xa6offers\x81\xa7process\x83\xa9state_dir\xac/var/lib/rug\
        \xabplugs_ports\xc2\xa5kinds\x93\xacloadbalancer\xa6custom\xa6router";
    assert_eq!(data, expected);
    assert_eq!((member.czxid, member.ephemeral_owner), (lease.czxid, lease.ephemeral_owner));
    let id = (u128::from(member.ephemeral_owner.cast_unsigned()) << 64) | u128::from(member.czxid.cast_unsigned());
    assert_eq!(life.incarnation().expect("it is known").get(), id);
    assert_eq!(life.lease(), Duration::from_millis(2400));

    gate.beats().await;
    assert!(gate.until() <= clock::now() + life.lease(), "a heartbeat counts from when it was sent");
    within("it has left", life.leave()).await;
    assert!(gate.is_shut());
    for path in [MEMBER, LEASE] {
        assert_eq!(client.check_stat(path).await.expect("ZooKeeper is up"), None, "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_lives_elsewhere_is_refused_with_who_has_it() {
    let mut place = TestRoot::new(shared().await, "taken", 2.0);
    place.config.join_timeout = Duration::from_millis(100);
    let (first, second) = (place.group("w1"), place.group("w1"));
    let (life, gate) = join(&first).await;
    let other = std::sync::Arc::new(TestProxyGate::default());
    let taken = within("it gives up", second.join(&profile(), seal(), other)).await.expect_err("the name is taken");
    let Error::NameTaken { name, by } = taken else { panic!("{taken}") };
    assert_eq!(name, "w1");
    let session = life.incarnation().expect("it is known").get() >> 64;
    for told in ["host h1", "process 4711", &format!("session {session:#x}"), "since 20"] {
        assert!(by.contains(told), "{told} is not in {by}");
    }
    assert!(gate.is_open());
    drop(life);
    assert!(gate.is_shut());
    // It goes in the background.
    let (_life, gate) = join(&second).await;
    assert!(gate.is_open());
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_of_a_session_that_died_are_waited_for() {
    let place = TestRoot::new(shared().await, "died", 2.0);
    let client = place.client().await;
    let (life, _) = join(&place.group("w0")).await;
    let connector = Client::connector().with_session_timeout(Duration::from_secs(2)).with_detached();
    let dead = connector.connect(&place.address).await.expect("ZooKeeper is up");
    let ephemeral = CreateMode::Ephemeral.with_acls(Acls::anyone_all());
    dead.create(&format!("{}{MEMBER}", place.chroot), b"\x80", &ephemeral).await.expect("the group is there");
    let owner = dead.session_id().0;
    // As of a process that was killed: nobody closes the session.
    drop(dead);
    let (_life, gate) = join(&place.group("w1")).await;
    assert!(gate.is_open());
    let (_, stat) = client.get_data(MEMBER).await.expect("it joined");
    assert_ne!(stat.ephemeral_owner, owner);
    drop(life);
}

#[tokio::test(flavor = "multi_thread")]
async fn writing_over_the_lease_ends_the_life_and_the_same_seat_joins_again() {
    let place = TestRoot::new(shared().await, "evicted", 4.0);
    let (group, client) = (place.group("w1"), place.client().await);
    for (data, expected) in [
        (&b"evicted"[..], MembershipEnd::Evicted),
        (b"\x81\xa7evicted\xc3", MembershipEnd::Evicted),
        (b"anything", MembershipEnd::LeaseTaken("it was written over".to_owned())),
    ] {
        let (life, gate) = join(&group).await;
        client.set_data(LEASE, data, None).await.expect("anyone may write");
        assert_eq!(within("it notices", life.ended()).await, expected);
        assert!(gate.is_shut());
        // The former life is still held: its nodes are removed by the next one.
        let (next, open) = join(&group).await;
        assert!(open.is_open());
        assert_ne!(next.incarnation(), life.incarnation());
        within("it has left", next.leave()).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_heartbeat_of_another_session_is_not_taken_for_the_own() {
    let place = TestRoot::new(shared().await, "former", 8.0);
    let (group, client) = (place.group("w1"), place.client().await);
    let (life, gate) = join(&group).await;
    // Where the next heartbeat was to go: equal in number, and the version has moved on as if it had committed.
    eventually("nobody writes in between", async || {
        let (data, stat) = client.get_data(LEASE).await.context("read")?;
        ensure!(data.starts_with(b"\x84\xa4beat"), "{data:x?}");
        client.set_data(LEASE, &heartbeat(data[6] + 1, 1), Some(stat.version)).await.context("write")?;
        Ok(())
    })
    .await;
    assert_eq!(within("it notices", life.ended()).await, MembershipEnd::LeaseTaken("it was written over".to_owned()));
    assert!(gate.is_shut());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_lease_node_ends_the_life_and_a_deleted_member_node_does_not() {
    let place = TestRoot::new(shared().await, "deleted", 4.0);
    let (group, client) = (place.group("w1"), place.client().await);
    let (life, gate) = join(&group).await;
    client.delete(MEMBER, None).await.expect("it is there");
    gate.beats().await;
    assert!(gate.is_open());
    client.delete(LEASE, None).await.expect("it is there");
    let expected = MembershipEnd::LeaseTaken("it was deleted".to_owned());
    assert_eq!(within("it notices", life.ended()).await, expected);
    assert!(gate.is_shut());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_node_of_another_life_is_not_beaten_into() {
    let place = TestRoot::new(shared().await, "remade", 4.0);
    let (group, client) = (place.group("w1"), place.client().await);
    let (life, gate) = join(&group).await;
    gate.beats().await;
    // Made anew between two heartbeats, by somebody else.
    let mut writer = client.new_multi_writer();
    writer.add_delete(LEASE, None).expect("a valid path");
    writer.add_create(LEASE, b"", &CreateMode::Ephemeral.with_acls(Acls::anyone_all())).expect("a valid path");
    writer.commit().await.expect("both happen");
    let how = within("it notices", life.ended()).await;
    assert!(matches!(how, MembershipEnd::LeaseTaken(_)), "{how}");
    assert!(gate.is_shut());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_short_outage_is_survived_in_the_same_life() {
    let mut server = own().await;
    let place = TestRoot::new(&server, "short", 20.0);
    let (life, gate) = join(&place.group("w1")).await;
    gate.beats().await;
    server.kill().expect("it runs");
    server.start_again().await.expect("it starts");
    gate.beats().await;
    assert!(gate.is_open());
    let client = place.client().await;
    let (_, stat) = client.get_data(LEASE).await.expect("it was never deleted");
    assert_eq!(
        life.incarnation().expect("it is known").get() & u128::from(u64::MAX),
        stat.czxid.cast_unsigned().into()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_server_fences_the_worker_then_ends_its_life_and_it_joins_again() {
    let mut server = own().await;
    let place = TestRoot::new(&server, "paused", 2.0);
    let group = place.group("w1");
    let (life, gate) = join(&group).await;
    gate.beats().await;
    server.pause().expect("it runs");
    eventually("the lease runs out", async || {
        ensure!(!gate.is_open());
        Ok(())
    })
    .await;
    let how = within("the life ends", life.ended()).await;
    assert!(matches!(how, MembershipEnd::SessionOver(_)), "{how}");
    assert!(gate.is_shut());
    server.resume().expect("it is paused");
    let (next, gate) = join(&group).await;
    assert_ne!(next.incarnation(), life.incarnation());
    assert!(gate.is_open());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_not_there_is_unavailable() {
    let place = TestRoot::new(shared().await, "absent", 0.5);
    let mut config = place.config;
    // The discard port: nobody listens there.
    config.url = "zookeeper://127.0.0.1:9?timeout=0.5".to_owned();
    let group = config.worker_group(&crate::support::worker("w1"), Vec::new()).expect("valid settings");
    let error =
        within("it gives up", group.join(&profile(), seal(), std::sync::Arc::new(TestProxyGate::default()))).await;
    assert!(matches!(error, Err(Error::Unavailable(_))), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn addresses_of_coordinators_are_known_without_joining_the_leaders_first() {
    let place = TestRoot::new(shared().await, "addresses", 4.0);
    let group = place.group("w1");
    let mut known = group.coordinators();
    let (b, a) = (place.candidate("b"), place.candidate("a"));
    let leadership = elected(&b).await;
    let expected = ["https://b:1", "https://a:1"];
    within("both are known", known.wait_for(|known| *known == expected)).await.expect("it goes on");
    let next = tokio::spawn(async move {
        let leadership = elected(&a).await;
        (a, leadership)
    });
    within("it has resigned", leadership.resign()).await;
    let (a, _leadership) = within("the next leads", next).await.expect("it does not panic");
    let expected = ["https://a:1", "https://b:1"];
    within("the order is turned", known.wait_for(|known| *known == expected)).await.expect("it goes on");
    within("it has left", b.leave()).await;
    within("one is gone", known.wait_for(|known| *known == ["https://a:1"])).await.expect("it goes on");
    drop(a);
}
