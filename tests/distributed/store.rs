//! What becomes of a cluster when its database or ZooKeeper's data go away, or come back older than they were.

mod outage;
mod standby;

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use proto::admin::v1;
use tests::cluster::wait::until;
use tests::cluster::{PATIENCE, api, specs};
use tests::fleet::{Fleet, FleetDatabase, Options};
use tokio::process::Command;

use crate::observed;

/// A small cluster with appliances `web-1` and so on, all configured.
async fn small(options: Options, appliances: u16) -> Result<Fleet> {
    let fleet = Fleet::start(options).await?;
    fleet.create((1..=appliances).map(|n| specs::web(&format!("web-{n}"))).collect()).await?;
    Ok(fleet)
}

/// Waits until a term higher than `former` is led and all workers have come to it.
async fn led_above(fleet: &mut Fleet, former: u64) -> Result<u64> {
    let term = until(PATIENCE, "a higher term is led", async || {
        let status = fleet.api().status().await?;
        ensure!(
            status.leading && status.term > former,
            "term {} (was {former}), leading {}",
            status.term,
            status.leading
        );
        Ok(status.term)
    })
    .await?;
    fleet.healthy().await?;
    Ok(term)
}

/// What `rugctl cluster status` prints once every one of `texts` stands in it.
async fn shown(fleet: &Fleet, texts: &[&str]) -> Result<String> {
    until(PATIENCE, "rugctl says what differs", async || {
        let shown = fleet.rugctl(&["cluster", "status"], "").await?.success()?.stdout;
        for text in texts {
            ensure!(shown.contains(text), "{text:?} is not in it:\n{shown}");
        }
        Ok(shown)
    })
    .await
}

/// Waits until this appliance is configured at its newest generation.
async fn configured(fleet: &Fleet, name: &str) -> Result<v1::Appliance> {
    until(PATIENCE, "it is configured", async || {
        let appliance = fleet.api().get(name).await?;
        ensure!(api::is_configured(&appliance), "{}", api::describe(&appliance));
        Ok(appliance)
    })
    .await
}

/// Names of the instances of one appliance that run.
fn running(fleet: &Fleet, id: &str) -> Vec<String> {
    fleet.instances().into_keys().filter(|name| name.starts_with(id)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn zookeeper_that_lost_its_data_is_led_by_a_higher_term_and_nothing_restarts() -> Result<()> {
    let mut fleet = small(Options { session: Duration::from_secs(3), ..Options::default() }, 6).await?;
    let (before, owners) = (fleet.instances(), fleet.owners().await?);
    let term = fleet.api().status().await?.term;
    fleet.zookeeper.kill(0)?;
    fleet.zookeeper.wipe(0)?;
    fleet.zookeeper.start_again(0).await?;
    let next = led_above(&mut fleet, term).await?;
    let after = fleet.settled(PATIENCE, |_| true).await?;
    assert_eq!(fleet.instances(), before, "an appliance was restarted");
    let moved = owners.iter().filter(|(id, worker)| after.get(*id) != Some(worker)).count();
    println!("ZooKeeper's data lost: term {term} -> {next}, {moved} of {} appliances moved", owners.len());
    shown(&fleet, &["is new, or was wiped"]).await?;
    fleet.create(vec![specs::web("web-7")]).await?;
    fleet.finish().await
}

/// Saves a database of a PostgreSQL server to a file, as an operator does.
async fn dump(url: &str, to: &Path) -> Result<()> {
    let output = Command::new("pg_dump").args(["--dbname", url, "--file"]).arg(to).output().await?;
    ensure!(output.status.success(), "pg_dump: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_restored_from_an_old_copy_is_led_by_a_higher_term_and_ends_no_appliance() -> Result<()> {
    let mut fleet = small(Options { session: Duration::from_secs(3), ..Options::default() }, 5).await?;
    let (changed, deleted) = (fleet.api().get("web-1").await?.id, fleet.api().get("web-2").await?.id);
    let copy = fleet.root().join("copy.sql");
    let FleetDatabase::Postgres(server) = &fleet.database else { anyhow::bail!("it is PostgreSQL") };
    dump(&server.url("rug"), &copy).await?;

    // What happens after the copy was made: changes, newcomers, a removal, other leaders, moves.
    let change = |word: &str| {
        let mut appliance = specs::web("web-1");
        specs::custom(&mut appliance).env.insert("RUG_TEST_WORD".into(), word.to_owned());
        appliance
    };
    for word in ["one", "two"] {
        fleet.api().apply(change(word)).await?;
    }
    assert_eq!(configured(&fleet, "web-1").await?.generation, 3);
    fleet.create(vec![specs::web("new-1"), specs::web("new-2")]).await?;
    let (new, other) = (fleet.api().get("new-1").await?.id, fleet.api().get("new-2").await?.id);
    fleet.api().delete("web-2").await?;
    until(PATIENCE, "it is gone", async || {
        ensure!(running(&fleet, &deleted).is_empty() && fleet.api().get(&deleted).await.is_err(), "it is not");
        Ok(())
    })
    .await?;
    fleet.worker("w3")?.kill()?;
    fleet.settled(PATIENCE, |worker| worker != "w3").await?;
    let leader = fleet.leader().await?;
    let term = fleet.api().status().await?.term;
    fleet.coordinators[leader].stop(PATIENCE).await?;
    led_above(&mut fleet, term).await?;
    fleet.start_all().await?;
    // Not in the middle of a move: what nobody holds when the copy comes, no worker can tell the next leader of.
    observed::balanced(&fleet, PATIENCE).await?;
    let term = fleet.api().status().await?.term;
    let before = fleet.instances();

    // As docs/operations.md says: restored beside, then swapped, under the feet of the coordinators.
    let FleetDatabase::Postgres(server) = &fleet.database else { anyhow::bail!("it is PostgreSQL") };
    server.create_database("rug_restored").await?;
    server.sql("rug_restored", &std::fs::read_to_string(&copy)?).await?;
    server.sql("postgres", "DROP DATABASE rug WITH (FORCE);\nALTER DATABASE rug_restored RENAME TO rug;").await?;

    let next = led_above(&mut fleet, term).await?;
    println!("database restored: term {term} -> {next}");
    let notes = shown(&fleet, &["older copy", &new, &other]).await?;
    println!("{notes}");
    fleet.settled(PATIENCE, |_| true).await?;
    // What was deleted since is there again.
    let revived = configured(&fleet, "web-2").await?;
    assert_eq!(revived.id, deleted);
    until(PATIENCE, "it is booted again", async || {
        // The status it had is in the copy, too.
        ensure!(running(&fleet, &deleted).len() == 1, "it does not run");
        Ok(())
    })
    .await?;
    // What was changed since is as it was, and the next change is one.
    let ahead: Vec<&String> = before.keys().filter(|name| name.starts_with(&changed)).collect();
    let undone = until(PATIENCE, "it runs as it did", async || {
        let now = running(&fleet, &changed);
        ensure!(now.len() == 1 && !ahead.contains(&&now[0]), "{now:?} runs");
        Ok(now)
    })
    .await?;
    assert_eq!(configured(&fleet, "web-1").await?.generation, 1);
    assert_eq!(fleet.api().apply(change("two")).await?.appliance.context("it answers with it")?.generation, 2);
    configured(&fleet, "web-1").await?;
    assert_ne!(running(&fleet, &changed), undone, "a change after the restore does something");
    // What was created since runs on unattended, until it is created again under its id.
    let after = fleet.instances();
    for (name, process) in before.iter().filter(|(name, _)| !name.starts_with(&changed)) {
        assert_eq!(after.get(name), Some(process), "{name} was ended or restarted");
    }
    for (id, name) in [(&new, "new-1"), (&other, "new-2")] {
        assert!(fleet.api().get(id).await.is_err());
        fleet.create(vec![v1::Appliance { id: id.clone(), ..specs::web(name) }]).await?;
        configured(&fleet, id).await?;
    }
    for (name, process) in
        fleet.instances().iter().filter(|(name, _)| name.starts_with(&new) || name.starts_with(&other))
    {
        assert_eq!(before.get(name), Some(process), "{name} was not adopted");
    }
    // The next leader finds nothing that contradicts its table.
    let leader = fleet.leader().await?;
    fleet.coordinators[leader].stop(PATIENCE).await?;
    led_above(&mut fleet, next).await?;
    fleet.settled(PATIENCE, |_| true).await?;
    fleet.finish().await
}
