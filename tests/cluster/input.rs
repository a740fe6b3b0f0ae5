//! Bad input: one clear message that names the field or line, nothing created, nobody else touched.

use anyhow::{Context, Result, ensure};
use proto::admin::v1;
use tests::cluster::wait::until;
use tests::cluster::{Cluster, Options, PATIENCE, api, ports, specs};
use tonic::{Code, Status};

/// The answer is a refusal with one of these codes, and one of its violations starts with `field`.
fn refused<T: std::fmt::Debug>(answer: Result<T, Status>, codes: &[Code], field: &str) -> Result<()> {
    let status = match answer {
        Ok(accepted) => anyhow::bail!("it was accepted: {accepted:?}"),
        Err(status) => status,
    };
    ensure!(codes.contains(&status.code()), "{status:?}");
    let violations = api::violations(&status);
    let named = field.is_empty() || violations.iter().any(|v| v.starts_with(&format!("{field}: ")));
    ensure!(named, "`{field}` is not in {violations:?}: {status:?}");
    ensure!(!status.message().is_empty(), "{status:?}");
    Ok(())
}

/// A cluster with one appliance on a fixed port, which nothing in a test may touch.
async fn cluster() -> Result<(Cluster, u16)> {
    let cluster = Cluster::start(Options { workers: 1, ..Options::default() }).await?;
    let port = ports::free();
    cluster.fleet(vec![specs::web_at("bystander", port)]).await?;
    Ok((cluster, port))
}

#[tokio::test]
async fn bad_input_over_the_api_is_refused_by_field_and_creates_nothing() -> Result<()> {
    let (cluster, port) = cluster().await?;
    let before = (cluster.api.list().await?, cluster.instances());
    let bystander = before.0.first().context("the bystander")?.clone();
    let api = &cluster.api;
    let changed = |change: fn(&mut v1::Appliance)| {
        let mut appliance = specs::web("bad");
        change(&mut appliance);
        appliance
    };
    let invalid = [Code::InvalidArgument];

    let no_kind = changed(|a| specs::spec(a).kind = None);
    refused(api.create(no_kind.clone()).await, &invalid, "appliance.spec.kind")?;
    refused(api.apply(no_kind).await, &invalid, "appliance.spec.kind")?;
    let bad_id = changed(|a| a.id = "12-34".into());
    refused(api.create(bad_id).await, &invalid, "appliance.id")?;
    let reference = v1::ApplianceRef { by: Some(v1::appliance_ref::By::Id("not-a-uuid".into())) };
    let get = v1::GetApplianceRequest { appliance: Some(reference.clone()) };
    refused(api.appliances().get(get).await, &invalid, "appliance.id")?;
    let delete = v1::DeleteApplianceRequest { appliance: Some(reference), ..Default::default() };
    refused(api.appliances().delete(delete).await, &invalid, "appliance.id")?;
    refused(api.create(specs::web_at("bad", port)).await, &invalid, "appliance.spec.custom.port")?;
    refused(
        api.create(specs::balancer("bad", port, &[])).await,
        &invalid,
        "appliance.spec.loadbalancer.listeners[0].port",
    )?;
    let negative = changed(|a| specs::spec(a).replicas = Some(-3));
    refused(api.create(negative).await, &invalid, "appliance.spec.replicas")?;
    let bad_driver = changed(|a| a.driver = "Not a driver".into());
    refused(api.create(bad_driver).await, &invalid, "appliance.driver")?;
    let bad_name = changed(|a| a.name = "No Name".into());
    refused(api.create(bad_name).await, &invalid, "appliance.name")?;
    let large = changed(|a| specs::custom(a).args = vec!["x".repeat(1 << 20)]);
    refused(api.create(large).await, &invalid, "appliance.spec")?;
    let huge = changed(|a| specs::custom(a).args = vec!["x".repeat(1 << 20); 10]);
    let too_large = [Code::InvalidArgument, Code::OutOfRange, Code::ResourceExhausted];
    refused(api.create(huge).await, &too_large, "")?;
    refused(api.create(specs::web("bystander")).await, &[Code::AlreadyExists], "")?;
    let stale = v1::UpdateApplianceRequest {
        appliance: Some(specs::web("bystander")),
        expected_generation: bystander.generation + 7,
        ..Default::default()
    };
    refused(api.appliances().update(stale).await, &[Code::Aborted], "")?;
    let missing = v1::UpdateApplianceRequest { appliance: Some(specs::web("nobody")), ..Default::default() };
    refused(api.appliances().update(missing).await, &[Code::NotFound], "")?;

    let names: Vec<_> = api.list().await?.into_iter().map(|a| (a.name, a.generation)).collect();
    ensure!(names == [("bystander".to_owned(), bystander.generation)], "{names:?}");
    ensure!(cluster.instances() == before.1, "the bystander was touched");
    cluster.finish().await
}

#[tokio::test]
async fn a_request_that_is_repeated_is_carried_out_once() -> Result<()> {
    let (cluster, _) = cluster().await?;
    let request = v1::CreateApplianceRequest {
        appliance: Some(specs::web("once")),
        request_id: uuid::Uuid::new_v4().to_string(),
        validate_only: false,
    };
    let first = cluster.api.appliances().create(request.clone()).await?.into_inner();
    let again = cluster.api.appliances().create(request.clone()).await?.into_inner();
    ensure!(first.id == again.id, "{first:?} and {again:?}");
    let other = v1::CreateApplianceRequest { appliance: Some(specs::web("other")), ..request };
    refused(cluster.api.appliances().create(other).await, &[Code::InvalidArgument], "request_id")?;
    ensure!(cluster.api.list().await?.len() == 2, "{:?}", cluster.api.list().await?);
    cluster.finish().await
}

#[tokio::test]
async fn bad_documents_are_refused_by_line_and_create_nothing() -> Result<()> {
    let (cluster, port) = cluster().await?;
    let running = cluster.instances();
    let custom = |more: &str| format!("name: bad\nkind: custom\n{more}\nspec:\n  command: sleep\n");
    let two = "name: twin\nkind: custom\nspec: {command: sleep}\n";
    let rows = [
        ("unknown kind", "name: a\nkind: routr\nspec: {}\n".to_owned(), vec!["standard input:2: kind", "routr"]),
        ("malformed UUID", custom("id: 12-34"), vec!["standard input:3: id", "12-34"]),
        ("negative replicas", custom("replicas: -2"), vec!["standard input:3: replicas", "whole number"]),
        ("unknown field", custom("replica: 2"), vec!["standard input:3: replica", "unknown field"]),
        ("two with one name", format!("{two}---\n{two}"), vec!["standard input:5: name", "twin"]),
        ("not YAML", "name: [\n".to_owned(), vec!["standard input:"]),
        (
            "port of another appliance",
            format!("name: bad\nkind: custom\nspec:\n  command: sleep\n  port: {port}\n"),
            vec!["standard input:5: spec.port", "bystander"],
        ),
        ("10 MiB", format!("{}  args: ['{}']\n", custom(""), "x".repeat(10 << 20)), vec!["standard input", "4 MiB"]),
        ("1 MiB in one argument", format!("{}  args: ['{}']\n", custom(""), "x".repeat(1 << 20)), vec!["spec"]),
    ];
    for (what, text, texts) in rows {
        // A good document beside a bad one must not be created either.
        let text = format!("{text}---\nname: innocent\nkind: custom\nspec: {{command: sleep}}\n");
        let outcome = cluster.rugctl(&["apply", "-f", "-"], &text).await?;
        outcome.refused(2, &texts).with_context(|| what.to_owned())?;
        let left = cluster.api.list().await?;
        ensure!(left.len() == 1, "{what}: {:?}", left.iter().map(|a| &a.name).collect::<Vec<_>>());
    }
    cluster.rugctl(&["get", "nobody"], "").await?.refused(4, &["nobody"])?;
    cluster.rugctl(&["delete", "nobody"], "").await?.refused(4, &["nobody"])?;
    cluster.rugctl(&["list", "--phase", "asleep"], "").await?.refused(2, &["asleep"])?;
    ensure!(cluster.instances() == running, "the bystander was touched");
    cluster.finish().await
}

#[tokio::test]
async fn what_only_the_worker_can_know_shows_in_the_status_and_is_mended_by_an_update() -> Result<()> {
    let (cluster, _) = cluster().await?;
    let running = cluster.instances();
    let foreign = std::net::TcpListener::bind("127.0.0.1:0")?;
    let taken = foreign.local_addr()?.port();
    let mut missing = specs::web("missing");
    specs::custom(&mut missing).command = "no-such-command-anywhere".into();
    let port = taken.to_string();
    let rows = [
        (specs::web_at("taken", taken), vec![port.as_str()]),
        (specs::balancer("taken-too", taken, &[]), vec![]),
        (missing, vec!["no-such-command-anywhere", "not found"]),
    ];
    for (appliance, texts) in rows {
        let name = appliance.name.clone();
        let created = cluster.api.create(appliance).await;
        let created = match created {
            Ok(created) => created,
            // Another appliance has claimed the port first; said at once, which is as good.
            Err(status) if name == "taken-too" => {
                refused::<()>(Err(status), &[Code::InvalidArgument], "appliance.spec.loadbalancer.listeners[0].port")?;
                continue;
            }
            Err(status) => return Err(status.into()),
        };
        let folder = cluster.state_dir().join("instances").join(&created.id);
        until(PATIENCE, "the status says why", async || {
            let now = cluster.api.get(&name).await?;
            let status = now.status.clone().unwrap_or_default();
            ensure!(status.failed_boots > 0, "{}", api::describe(&now));
            for text in &texts {
                ensure!(status.last_error.contains(text), "{}", api::describe(&now));
            }
            Ok(())
        })
        .await
        .with_context(|| name.clone())?;
        ensure!(!cluster.instances().keys().any(|i| i.starts_with(&created.id)), "{name} runs");
        let shown = cluster.rugctl(&["describe", &name], "").await?.success()?;
        for text in &texts {
            ensure!(shown.stdout.contains(text), "{}", shown.stdout);
        }
        // What was wrong is put right by an update, whatever phase it is in.
        let mut mended = specs::web(&name);
        specs::custom(&mut mended).port = None;
        cluster.api.apply(mended).await?;
        until(PATIENCE, "it runs after it was mended", async || {
            let now = cluster.api.get(&name).await?;
            ensure!(api::is_configured(&now), "{}", api::describe(&now));
            Ok(())
        })
        .await?;
        cluster.rugctl(&["delete", &name], "").await?.success()?;
        ensure!(!folder.exists(), "{} is left", folder.display());
    }
    ensure!(cluster.instances() == running, "the bystander was touched");
    drop(foreign);
    cluster.finish().await
}
