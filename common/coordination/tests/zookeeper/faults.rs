//! Networks and ensembles that fail in part.

use std::time::Duration;

use anyhow::{Context, ensure};
use servers::proxy::Proxy;
use servers::zookeeper::{Ensemble, Options};

use crate::support::{TestRoot, elected, eventually, join, shared, within, worker};

const LEASE: &str = "/rug/g/leases/w1";

#[tokio::test(flavor = "multi_thread")]
async fn a_heartbeat_whose_answer_got_lost_is_found_by_its_data() {
    let place = TestRoot::new(shared().await, "lost", 10.0);
    let client = place.client().await;
    let proxy = Proxy::start(&place.address).await.expect("a port is free");
    let mut behind = place.clone();
    behind.config.url = behind.config.url.replace(&place.address, &proxy.address());
    let (life, gate) = join(&behind.group("w1")).await;
    for _ in 0..3 {
        gate.beats().await;
        proxy.cut_down();
        let (_, before) = client.get_data(LEASE).await.expect("it is there");
        let (until, extended) = (gate.until(), gate.extended());
        eventually("a heartbeat commits that nobody hears of", async || {
            let (_, stat) = client.get_data(LEASE).await.context("read")?;
            ensure!(stat.version > before.version);
            Ok(())
        })
        .await;
        // At most one answer was under way when the cut came.
        assert!(gate.extended() <= extended + 1);
        proxy.reset();
        proxy.heal();
        gate.beats().await;
        assert!(gate.until() > until && gate.is_open());
    }
    within("it has left", life.leave()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_of_an_ensemble_fail_one_by_one_and_nobody_ends() {
    let mut ensemble = Ensemble::start(3, Options::default()).await.expect("ZooKeeper starts");
    let mut place = TestRoot::at(&ensemble.connect_string(), "ensemble", 24.0);
    place.config.join_timeout = Duration::from_secs(30);
    let (life, gate) = join(&place.group("w1")).await;
    let candidate = place.candidate("c");
    let leadership = elected(&candidate).await;
    let mut view = crate::roster::ObservedRoster::new(leadership.roster().expect("it watches"));
    view.take().await;
    let leader = ensemble.leader().await.expect("one leads");
    for server in [leader, (leader + 1) % 3] {
        ensemble.kill(server).expect("it runs");
        gate.beats().await;
        ensemble.start_again(server).await.expect("it starts");
        ensemble.serves(server).await.expect("it serves");
    }
    let before = view.beats;
    view.until("heartbeats are seen", |v| v.beats > before + 1).await;
    assert!(view.ended.is_empty() && gate.is_open() && !leadership.lost().is_cancelled());
    assert_eq!(view.leases[&worker("w1")].incarnation, life.incarnation().expect("it is known"));
}
