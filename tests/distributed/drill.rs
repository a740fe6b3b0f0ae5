//! One drill: a seed of three minutes, where hosts can be made. `RUG_DRILL_SECONDS` makes it shorter, `RUG_DRILL_SEED`
//! another one. Longer ones, and many: `make drill SEED=7 MINUTES=60`.

use std::time::Duration;

use anyhow::{Result, ensure};
use servers::netns::Network;
use tests::drill::{self, Config};

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_keeps_its_promises_while_everything_around_it_breaks() -> Result<()> {
    if let Err(problem) = Network::available() {
        println!("skipped: {problem}");
        return Ok(());
    }
    let number = |name: &str, default: u64| std::env::var(name).ok().map_or(Ok(default), |n| n.parse::<u64>());
    let (seed, seconds) = (number("RUG_DRILL_SEED", 1)?, number("RUG_DRILL_SECONDS", 180)?);
    let report = drill::run(&Config::new(seed, Duration::from_secs(seconds))).await?;
    println!("{report}");
    ensure!(report.is_clean(), "{} violations", report.violations.len());
    Ok(())
}
