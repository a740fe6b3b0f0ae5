//! What instances print, read through coordinator and worker.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use proto::admin::v1;
use proto::admin::v1::appliances_client::AppliancesClient;
use tests::cluster::wait::until;
use tests::cluster::{Cluster, Options, PATIENCE, api, specs};
use tonic::Code;

/// A program that prints this and goes on.
fn printer(name: &str, script: &str) -> v1::Appliance {
    let mut printer = specs::sleeper(name);
    let custom = specs::custom(&mut printer);
    custom.command = "sh".into();
    custom.args = vec!["-c".into(), script.into()];
    printer
}

/// Prints `n1`, `n2` and so on, ten a second.
const COUNT: &str = "i=0; while :; do i=$((i+1)); echo n$i; sleep 0.1; done";

async fn follow(cluster: &Cluster, id: &str) -> Result<tonic::Streaming<v1::LogChunk>> {
    let request = v1::LogsRequest { appliance: Some(api::reference(id)), follow: true, ..v1::LogsRequest::default() };
    Ok(AppliancesClient::new(cluster.api.channel()).logs(request).await?.into_inner())
}

/// Reads lines until `enough` of them are there; notes stand among them in brackets.
async fn lines(stream: &mut tonic::Streaming<v1::LogChunk>, text: &mut String, enough: usize) -> Result<Vec<String>> {
    loop {
        let found: Vec<_> = text.lines().map(str::to_owned).collect();
        if found.iter().filter(|line| line.starts_with('n')).count() >= enough {
            return Ok(found);
        }
        let chunk = tokio::time::timeout(PATIENCE, stream.message()).await.context("nothing comes")??;
        let chunk = chunk.context("the stream ended")?;
        if !chunk.note.is_empty() {
            text.push_str(&format!("[{}]\n", chunk.note));
        }
        text.push_str(&String::from_utf8(chunk.data)?);
    }
}

#[tokio::test]
async fn what_an_instance_printed_is_read_from_wherever_it_runs() -> Result<()> {
    let options = Options { drivers: vec!["process", "simulated"], ..Options::default() };
    let cluster = Cluster::start(options).await?;
    let script = "for i in 1 2 3; do echo line $i; done; printf end; exec sleep 86400";
    let mut several = printer("several", "echo of {ordinal}; exec sleep 86400");
    specs::spec(&mut several).replicas = Some(2);
    cluster.fleet(vec![printer("one", script), several, specs::simulated("none")]).await?;
    let printed = async |args: &[&str]| {
        let args: Vec<&str> = ["logs"].iter().chain(args).copied().collect();
        Ok::<_, anyhow::Error>(cluster.rugctl(&args, "").await?.success()?.stdout)
    };
    ensure!(printed(&["one"]).await? == "line 1\nline 2\nline 3\nend\n", "{}", printed(&["one"]).await?);
    ensure!(printed(&["one", "--tail", "2"]).await? == "line 3\nend\n");
    let both = printed(&["several"]).await?;
    ensure!(both.contains("several/0  of ") && both.contains("several/1  of "), "{both}");
    ensure!(printed(&["several", "--instance", "1"]).await?.starts_with("of "));
    let json = printed(&["one", "--tail", "1", "-o", "json"]).await?;
    ensure!(json.contains(r#""line":"end""#), "{json}");
    cluster.rugctl(&["logs", "none"], "").await?.refused(1, &["`simulated` keeps no output"])?;
    cluster.rugctl(&["logs", "one", "--instance", "1"], "").await?.refused(2, &["instance"])?;
    ensure!(printed(&["one", "--since", "1h"]).await?.ends_with("line 3\nend\n"));
    cluster.finish().await
}

#[tokio::test]
async fn who_follows_a_log_goes_on_with_the_next_owner_and_misses_nothing() -> Result<()> {
    let mut cluster = Cluster::start(Options { workers: 2, ..Options::default() }).await?;
    let counting = cluster.fleet(vec![printer("counting", COUNT)]).await?.remove(0);
    let (mut stream, mut text) = (follow(&cluster, &counting.id).await?, String::new());
    lines(&mut stream, &mut text, 5).await?;
    let owner = counting.assignment.clone().unwrap_or_default().worker;
    cluster.worker(&owner)?.kill()?;
    until(PATIENCE, "another worker has it", async || {
        let now = cluster.api.get(&counting.id).await?;
        let worker = now.assignment.clone().unwrap_or_default().worker;
        ensure!(!worker.is_empty() && worker != owner && api::is_configured(&now), "{}", api::describe(&now));
        Ok(())
    })
    .await?;
    let count = text.lines().count() + 40;
    let found = lines(&mut stream, &mut text, count).await?;
    let numbers: Vec<_> = found.iter().filter(|line| line.starts_with('n')).collect();
    let expected: Vec<_> = (1..=numbers.len()).map(|n| format!("n{n}")).collect();
    ensure!(numbers.iter().zip(&expected).all(|(found, expected)| **found == *expected), "{found:?}");
    ensure!(found.iter().any(|line| line.contains("has the appliance now")), "{found:?}");

    // It ends with the appliance.
    cluster.rugctl(&["delete", "counting", "--yes"], "").await?.success()?;
    let ended = async {
        loop {
            match stream.message().await {
                Ok(Some(chunk)) => text.push_str(&chunk.note),
                Ok(None) => return Ok(()),
                Err(status) => ensure!(status.code() == Code::NotFound, "{status}"),
            }
        }
    };
    tokio::time::timeout(PATIENCE, ended).await.context("it does not end")??;
    ensure!(text.contains("the appliance is gone"), "{text}");
    cluster.finish().await
}

#[tokio::test]
async fn a_reader_that_stops_reading_holds_nothing_up() -> Result<()> {
    let cluster = Cluster::start(Options { workers: 1, ..Options::default() }).await?;
    let loud = "while :; do head -c 65536 /dev/zero | tr '\\0' x; echo; sleep 0.01; done";
    let loud = cluster.fleet(vec![printer("loud", loud)]).await?.remove(0);
    let mut idle = Vec::new();
    for _ in 0..8 {
        idle.push(follow(&cluster, &loud.id).await?);
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    // Others are served: changes, and another reader.
    cluster.rugctl(&["scale", "loud", "--replicas", "2"], "").await?.success()?;
    ensure!(cluster.rugctl(&["logs", "loud", "--instance", "1", "--tail", "1"], "").await?.code == 0);
    drop(idle);
    cluster.finish().await
}
