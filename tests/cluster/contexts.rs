//! Named contexts, and what a shell is told that asks how a line goes on.

use anyhow::{Context, Result, ensure};
use tests::cluster::{Cluster, Options, ports, rugctl, specs};

/// Documents without a tenant.
const TWO: &str = "name: one\nkind: custom\nspec: {command: sleep, args: ['1000'], probe: process}\n---\n\
                   name: two\nkind: custom\ntenant: default\nspec: {command: sleep, args: ['1000'], probe: process}\n";

#[tokio::test]
async fn a_context_leads_to_its_cluster_and_to_no_other() -> Result<()> {
    let cluster = Cluster::start(Options { workers: 1, ..Options::default() }).await?;
    let saved = cluster.rugctl(&["context", "save", "here", "--tenant", "demo"], "").await?.success()?;
    let id = cluster.rugctl(&["cluster", "status", "-o", "json"], "").await?.json()?;
    let id = id["cluster_id"].as_str().context("its id")?.to_owned();
    ensure!(saved.stdout.contains(&id), "{} does not name {id}", saved.stdout);
    let run = async |args: &[&str], input: &str| rugctl::run(cluster.root(), args, input).await;

    // Its tenant is that of everything that names none, and what is printed is read again.
    let applied = run(&["apply", "--context", "here", "-f", "-"], TWO).await?.success()?;
    ensure!(applied.stdout.contains("\ndefault/custom/two created\n"), "{}", applied.stdout);
    ensure!(applied.stdout.starts_with("custom/one created\n"), "{}", applied.stdout);
    let listed = run(&["list", "--context", "here", "-o", "json"], "").await?.json()?;
    let names: Vec<_> = listed.as_array().context("a list")?.iter().map(|a| &a["name"]).collect();
    ensure!(names == ["one"], "{listed}");
    run(&["get", "--context", "here", "custom/one", "default/custom/two"], "").await?.success()?;
    run(&["get", "--context", "here", "two"], "").await?.refused(4, &["demo/two"])?;

    // Nothing is used unless it was said, and then it is.
    run(&["list"], "").await?.refused(2, &["no cluster runs in"])?;
    run(&["context", "use", "here"], "").await?.success()?;
    run(&["list"], "").await?.success()?;
    let contexts = run(&["context", "list", "-o", "json"], "").await?.json()?;
    ensure!(contexts[1]["name"] == "here" && contexts[1]["in_use"] == true, "{contexts}");
    run(&["context", "use", "nowhere"], "").await?.refused(4, &["nowhere", "known are here, local"])?;

    // Whatever answers at the address, it has to be this cluster.
    let file = cluster.root().join("config/rug/contexts.toml");
    let other = std::fs::read_to_string(&file)?.replace(&id, &uuid::Uuid::new_v4().to_string());
    std::fs::write(&file, other)?;
    run(&["delete", "--all", "--yes"], "").await?.refused(1, &[&id])?;
    ensure!(cluster.api.list().await?.len() == 2, "something was deleted");
    cluster.finish().await
}

/// What a shell is told that asks how these words go on, of which the last one is being typed.
async fn completed(cluster: &Cluster, words: &[&str]) -> Result<Vec<String>> {
    let index = (words.len() - 1).to_string();
    let environment = [("RUG_COMPLETE", "bash"), ("_CLAP_COMPLETE_INDEX", &index), ("_CLAP_IFS", "\n")];
    let args: Vec<_> = ["--"].iter().chain(words).copied().collect();
    let told = rugctl::run_with(cluster.root(), &args, "", &environment).await?.success()?;
    ensure!(told.stderr.is_empty(), "{}", told.stderr);
    Ok(told.stdout.lines().map(str::to_owned).collect())
}

#[tokio::test]
async fn a_shell_is_told_the_names_that_the_server_knows() -> Result<()> {
    let cluster = Cluster::start(Options { workers: 1, ..Options::default() }).await?;
    for (tenant, name) in [("default", "web-1"), ("default", "web-2"), ("default", "db"), ("demo", "web-3")] {
        let mut appliance = specs::web(name);
        appliance.tenant = tenant.to_owned();
        cluster.api.create(appliance).await?;
    }
    let server = cluster.api.address().to_owned();
    let line = async |words: &[&str]| completed(&cluster, &[&["rugctl", "--server", &server], words].concat()).await;
    for (words, expected) in [
        (&["get", "we"][..], &["web-1", "web-2"][..]),
        (&["delete", "web-1", "d"], &["db"]),
        (&["describe", "-t", "demo", ""], &["web-3"]),
        (&["get", "demo/c"], &["demo/custom/web-3"]),
        (&["list", "--tenant", "d"], &["default", "demo"]),
        (&["list", "--worker", ""], &["worker-1"]),
        (&["worker", "evict", "w"], &["worker-1"]),
        (&["--context", "l"], &["local"]),
        (&["work"], &["worker"]),
        (&["get", "x"], &[]),
    ] {
        let told = line(words).await.with_context(|| format!("{words:?}"))?;
        // Flags are offered for an empty word, too.
        let names: Vec<_> = told.into_iter().filter(|name| !name.starts_with('-')).collect();
        ensure!(names == expected, "{words:?}: {names:?}");
    }
    // Where no server is, nothing is offered, and nothing is said.
    let nobody = format!("http://127.0.0.1:{}", ports::free());
    ensure!(completed(&cluster, &["rugctl", "--server", &nobody, "get", "w"]).await?.is_empty());
    ensure!(completed(&cluster, &["rugctl", "get", "w"]).await?.is_empty());
    cluster.finish().await
}
