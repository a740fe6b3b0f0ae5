//! Nothing outlives a test, also when the test is killed.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use servers::netns::Network;
use servers::postgres::{Options, Postgres};
use servers::wait::until;
use servers::zookeeper::{self, Standalone};

/// Set in the process that is killed: the file it writes what it started to.
const VICTIM: &str = "RUG_SERVERS_VICTIM";
const SOON: Duration = Duration::from_secs(60);

/// Not a test of its own: what the test below runs in another process and kills.
#[tokio::test]
async fn victim() -> Result<()> {
    let Some(file) = std::env::var_os(VICTIM) else { return Ok(()) };
    let zookeeper = Standalone::start(zookeeper::Options::default()).await?;
    let mut postgres = Postgres::start(Options { fsync: false, ..Options::default() }).await?;
    // Stopped processes have to go as well.
    postgres.pause()?;
    let network = Network::available().and_then(|()| Network::new(&["a", "b"]).map_err(|problem| problem.to_string()));
    let bridge = network.as_ref().map_or_else(|_| "lo".to_owned(), |network| network.bridge().to_owned());
    let home = zookeeper.data().parent().and_then(Path::parent).context("it has a folder")?.to_owned();
    let text = format!("{}\n{}\n{}\n{bridge}\n", home.display(), zookeeper.address(), postgres.port());
    let unfinished = Path::new(&file).with_extension("unfinished");
    std::fs::write(&unfinished, text)?;
    std::fs::rename(&unfinished, &file)?;
    std::future::pending().await
}

#[tokio::test]
async fn servers_and_networks_of_a_killed_test_go_away() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("started");
    let mut victim = Command::new(std::env::current_exe()?)
        .args(["--exact", "guard::victim", "--nocapture"])
        .env(VICTIM, &file)
        .stdout(Stdio::null())
        .spawn()?;
    let text = until(SOON, "the victim has started its servers", async || Ok(std::fs::read_to_string(&file)?)).await;
    victim.kill()?;
    victim.wait()?;
    let text = text?;
    let [home, zookeeper, postgres, bridge] = text.lines().collect::<Vec<_>>()[..] else {
        anyhow::bail!("the victim wrote `{text}`")
    };
    until(SOON, "everything is gone", async || {
        ensure!(!Path::new(home).exists(), "{home} exists");
        ensure!(std::net::TcpStream::connect(zookeeper).is_err(), "{zookeeper} listens");
        ensure!(std::net::TcpStream::connect(format!("127.0.0.1:{postgres}")).is_err(), "{postgres} listens");
        let interface = Path::new("/sys/class/net").join(bridge);
        ensure!(bridge == "lo" || !interface.exists(), "{bridge} is there");
        Ok(())
    })
    .await
}
