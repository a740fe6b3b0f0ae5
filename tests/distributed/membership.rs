//! Who is there, and what becomes of it when that changes.

use std::time::Duration;

use anyhow::Result;
use tests::cluster::{PATIENCE, specs};
use tests::fleet::{Fleet, Options};

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_worker_loses_its_share_once_its_session_is_over_and_gets_it_back() -> Result<()> {
    let mut fleet = Fleet::start(Options::default()).await?;
    fleet.create((1..=9).map(|n| specs::web(&format!("web-{n}"))).collect()).await?;
    let before = fleet.instances();
    fleet.worker("w2")?.kill()?;
    fleet.settled(PATIENCE, |worker| worker != "w2").await?;
    assert_eq!(fleet.instances(), before, "no appliance is restarted");
    fleet.start_all().await?;
    fleet.settled(Duration::from_secs(20), |_| true).await?;
    assert_eq!(fleet.instances(), before);
    fleet.finish().await
}
