//! Rollouts: one command over many appliances, a few at a time.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use proto::admin::v1;
use proto::admin::v1::rollouts_client::RolloutsClient;
use tests::cluster::wait::until;
use tests::cluster::{Cluster, Options, PATIENCE, api, specs};
use tonic::Code;

/// Appliances of a fleet. They exist in the memory of workers.
const FLEET: usize = 40;

async fn start(cluster: &Cluster, request: v1::StartRolloutRequest) -> Result<v1::Rollout> {
    Ok(RolloutsClient::new(cluster.api.channel()).start(request).await?.into_inner())
}

async fn get(cluster: &Cluster, id: &str) -> Result<v1::Rollout> {
    let request = v1::GetRolloutRequest { id: id.to_owned() };
    Ok(RolloutsClient::new(cluster.api.channel()).get(request).await?.into_inner())
}

/// Waits until a rollout is in this state.
async fn in_state(cluster: &Cluster, id: &str, state: v1::RolloutState) -> Result<v1::Rollout> {
    until(PATIENCE, "the rollout gets there", async || {
        let rollout = get(cluster, id).await?;
        ensure!(rollout.state() == state, "{rollout:?}");
        Ok(rollout)
    })
    .await
}

fn labelled(role: &str) -> Option<v1::ApplianceFilter> {
    let labels = [("role".to_owned(), role.to_owned())].into();
    Some(v1::ApplianceFilter { labels, ..v1::ApplianceFilter::default() })
}

/// An appliance with this image, in the memory of workers.
fn with_image(name: &str, role: &str, image: &str) -> v1::Appliance {
    let mut appliance = specs::simulated(name);
    appliance.labels.insert("role".into(), role.into());
    specs::spec(&mut appliance).image = image.into();
    appliance
}

#[tokio::test]
async fn a_rollout_rebuilds_in_waves_and_goes_on_under_the_next_leader() -> Result<()> {
    let mut cluster = Cluster::start(Options { drivers: vec!["simulated"], ..Options::default() }).await?;
    let fleet = (0..FLEET).map(|n| {
        let mut appliance = specs::simulated(&format!("sim-{n:02}"));
        appliance.labels.insert("role".into(), if n < 30 { "many" } else { "few" }.into());
        appliance
    });
    let before = cluster.fleet(fleet.collect()).await?;
    let request = v1::StartRolloutRequest {
        id: "0c0ffee0-0000-4000-8000-00000000000a".into(),
        action: v1::RolloutAction::Rebuild.into(),
        filter: labelled("many"),
        policy: Some(v1::RolloutPolicy {
            max_unavailable: 4,
            canary: 1,
            waves: vec![50, 100],
            ..v1::RolloutPolicy::default()
        }),
        reason: "new kernel".into(),
        ..v1::StartRolloutRequest::default()
    };
    let rollout = start(&cluster, request.clone()).await?;
    ensure!((rollout.total, rollout.waves) == (30, 3), "{rollout:?}");
    let again = start(&cluster, request.clone()).await?;
    ensure!(again.start_time == rollout.start_time, "it is the same one: {again:?}");
    let other = v1::StartRolloutRequest { filter: labelled("few"), ..request.clone() };
    let taken = start(&cluster, other).await.expect_err("the id is taken");
    ensure!(taken.downcast_ref::<tonic::Status>().map(tonic::Status::code) == Some(Code::AlreadyExists), "{taken:?}");

    // The leader is killed in the middle of it, more than once.
    for done in [1, 10, 20] {
        until(PATIENCE, "some are done", async || {
            let rollout = get(&cluster, &rollout.id).await?;
            ensure!(rollout.done >= done, "{rollout:?}");
            Ok(())
        })
        .await?;
        cluster.coordinator.kill()?;
        cluster.coordinator.start()?;
        until(PATIENCE, "there is a leader again", async || {
            cluster.api.status().await?;
            Ok(())
        })
        .await?;
    }
    let ended = in_state(&cluster, &rollout.id, v1::RolloutState::Completed).await?;
    ensure!((ended.done, ended.failed, ended.skipped) == (30, 0, 0), "{ended:?}");
    let after = cluster.api.list().await?;
    for appliance in &before {
        let now = after.iter().find(|a| a.id == appliance.id).context("it is there")?;
        let rebuilt = u64::from(appliance.labels["role"] == "many");
        ensure!(now.generation == appliance.generation + rebuilt, "each once: {}", api::describe(now));
    }
    let audit = cluster.rugctl(&["audit", "-o", "json"], "").await?.success()?;
    ensure!(audit.stdout.contains("rollout-start") && audit.stdout.contains("new kernel"), "{audit:?}");
    cluster.finish().await
}

#[tokio::test]
async fn a_rollout_stops_at_too_many_failures_and_resumes_and_a_bad_canary_goes_back() -> Result<()> {
    let mut cluster = Cluster::start(Options {
        workers: 2,
        drivers: vec!["simulated"],
        worker_env: vec![("RUG_WORKER_RUNNER__LIFECYCLE__BOOT_ATTEMPTS", "2".into())],
        ..Options::default()
    })
    .await?;
    cluster.tolerate("boot");
    let mut fleet: Vec<_> = (0..6).map(|n| with_image(&format!("web-{n}"), "web", "v1")).collect();
    fleet.push(with_image("other", "other", "v1"));
    cluster.fleet(fleet).await?;

    let said = cluster
        .rugctl(
            &[
                "rollout",
                "start",
                "set-image",
                "--image",
                "broken",
                "-l",
                "role=web",
                "--canary",
                "1",
                "--max-failures",
                "3",
                "--item-timeout",
                "60s",
                "--yes",
                "--timeout",
                "100s",
            ],
            "",
        )
        .await?;
    ensure!(said.code == 1, "{said:?}");
    let listed = cluster.rugctl(&["rollout", "list", "-o", "json"], "").await?.success()?.json()?;
    ensure!(listed[0]["state"] == "rolled back" && listed[0]["returned"] == 1, "{listed}");
    ensure!(listed[0]["waiting"] == 5 && listed[0]["note"] == "", "{listed}");
    until(PATIENCE, "all run with the image that they had", async || {
        for appliance in cluster.api.list().await? {
            let image = appliance.spec.as_ref().map(|spec| spec.image.clone());
            ensure!(api::is_configured(&appliance) && image.as_deref() == Some("v1"), "{}", api::describe(&appliance));
        }
        Ok(())
    })
    .await?;

    // Without a canary one is begun after the other. What is down already counts: the first failure leaves no room for a second.
    let request = v1::StartRolloutRequest {
        action: v1::RolloutAction::SetImage.into(),
        image: "broken".into(),
        filter: labelled("web"),
        policy: Some(v1::RolloutPolicy { max_failures: Some(2), ..v1::RolloutPolicy::default() }),
        ..v1::StartRolloutRequest::default()
    };
    let rollout = start(&cluster, request.clone()).await?;
    until(PATIENCE, "it waits", async || {
        let rollout = get(&cluster, &rollout.id).await?;
        ensure!((rollout.failed, rollout.begun) == (1, 0), "{rollout:?}");
        ensure!(rollout.waits == "1 more unavailable, of 1 that may be", "{rollout:?}");
        Ok(())
    })
    .await?;
    let back = cluster.rugctl(&["rollout", "rollback", &rollout.id, "--reason", "bad image"], "").await?.success()?;
    ensure!(back.stdout.contains("rolling back"), "{back:?}");
    let back = in_state(&cluster, &rollout.id, v1::RolloutState::RolledBack).await?;
    ensure!(back.returned == 1, "{back:?}");
    let refused = cluster.rugctl(&["rollout", "resume", &rollout.id], "").await?;
    ensure!(refused.code == 1 && refused.stderr.contains("it is rolled-back"), "{refused:?}");
    until(PATIENCE, "all are well again", async || {
        for appliance in cluster.api.list().await? {
            ensure!(api::is_configured(&appliance), "{}", api::describe(&appliance));
        }
        Ok(())
    })
    .await?;
    // With more room it stops at the failure that is one too many.
    let policy = Some(v1::RolloutPolicy { max_failures: Some(2), max_unavailable: 2, ..v1::RolloutPolicy::default() });
    let rollout = start(&cluster, v1::StartRolloutRequest { policy, ..request }).await?;
    let stopped = in_state(&cluster, &rollout.id, v1::RolloutState::Stopped).await?;
    ensure!((stopped.failed, stopped.waiting) == (2, 4) && stopped.failures.len() == 2, "{stopped:?}");
    ensure!(stopped.note == "2 failed, and 2 are too many", "{stopped:?}");
    ensure!(stopped.failures[0].detail.contains("the image does not boot"), "{stopped:?}");
    cluster.rugctl(&["rollout", "abort", &rollout.id], "").await?.success()?;
    cluster.rugctl(&["rollout", "start", "check", "-l", "role=other", "-o", "json"], "").await?.success()?;
    cluster.finish().await
}

#[tokio::test]
async fn what_a_debug_mode_covers_is_left_for_later_and_deletion_takes_what_is_selected() -> Result<()> {
    let cluster = Cluster::start(Options { drivers: vec!["simulated"], ..Options::default() }).await?;
    let fleet = (0..6).map(|n| {
        let mut appliance = specs::simulated(&format!("sim-{n}"));
        appliance.labels.insert("role".into(), if n < 4 { "old" } else { "new" }.into());
        appliance
    });
    cluster.fleet(fleet.collect()).await?;
    cluster.rugctl(&["debug", "set", "--appliance", "sim-1"], "").await?.success()?;
    let request = v1::StartRolloutRequest {
        action: v1::RolloutAction::Delete.into(),
        filter: labelled("old"),
        policy: Some(v1::RolloutPolicy {
            max_unavailable: 2,
            item_timeout: Some(specs::duration(Duration::from_secs(30))),
            ..v1::RolloutPolicy::default()
        }),
        ..v1::StartRolloutRequest::default()
    };
    let rollout = start(&cluster, request).await?;
    let waits = until(PATIENCE, "only what is covered is left", async || {
        let rollout = get(&cluster, &rollout.id).await?;
        ensure!(rollout.done == 3 && !rollout.waits.is_empty(), "{rollout:?}");
        Ok(rollout.waits)
    })
    .await?;
    ensure!(waits == "1 under a debug mode", "{waits}");
    cluster.rugctl(&["debug", "clear", "--all", "--yes"], "").await?.success()?;
    let ended = in_state(&cluster, &rollout.id, v1::RolloutState::Completed).await?;
    ensure!(ended.done == 4, "{ended:?}");
    let left: Vec<_> = cluster.api.list().await?.into_iter().map(|a| a.name).collect();
    ensure!(left == ["sim-4", "sim-5"], "{left:?}");
    let everything = v1::StartRolloutRequest { action: v1::RolloutAction::Delete.into(), ..Default::default() };
    let refused = start(&cluster, everything).await.expect_err("a forgotten filter is not everything");
    ensure!(refused.to_string().contains("selects everything"), "{refused:?}");
    cluster.finish().await
}
