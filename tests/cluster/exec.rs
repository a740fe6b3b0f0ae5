//! Commands in instances, run through coordinator and worker.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use proto::admin::v1;
use proto::admin::v1::exec_end::How;
use proto::admin::v1::exec_request::Part as Asked;
use proto::admin::v1::exec_response::Part as Said;
use rustix::process::Signal;
use tests::cluster::wait::until;
use tests::cluster::{Cluster, Options, PATIENCE, api, specs};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

/// A command that runs, and its input.
struct Running {
    _input: mpsc::Sender<v1::ExecRequest>,
    answers: Streaming<v1::ExecResponse>,
}

impl Running {
    async fn begin(cluster: &Cluster, id: &str, script: &str) -> Result<Self> {
        let command = ["sh", "-c", script].map(str::to_owned).to_vec();
        let start = v1::ExecStart { appliance: Some(api::reference(id)), command, ..v1::ExecStart::default() };
        let (input, requests) = mpsc::channel(8);
        input.send(v1::ExecRequest { part: Some(Asked::Start(start)) }).await?;
        let answers = cluster.api.appliances().exec(ReceiverStream::new(requests)).await?.into_inner();
        Ok(Self { _input: input, answers })
    }

    /// Its end, and what it printed before.
    async fn end(&mut self) -> Result<(How, Vec<u8>)> {
        let mut printed = Vec::new();
        loop {
            let answer = tokio::time::timeout(PATIENCE, self.answers.message()).await.context("nothing comes")??;
            match answer.context("the call ended")?.part.context("an answer")? {
                Said::Begun(_) => {}
                Said::Stdout(data) | Said::Stderr(data) => printed.extend(data),
                Said::Ended(end) => return Ok((end.how.context("how")?, printed)),
            }
        }
    }
}

/// A script that writes down its process and that of a child which leaves its session, and goes on for ever.
fn lasting(file: &Path) -> String {
    let file = file.display();
    format!(
        "setsid sleep 86400 & echo $! $$ > {file}.part; mv {file}.part {file}; trap '' TERM HUP; while :; do sleep 1; done"
    )
}

/// The processes that such a script wrote down, once it runs.
async fn processes(file: &Path) -> Result<Vec<u32>> {
    until(PATIENCE, "the command runs", async || Ok(fs::metadata(file).map(drop)?)).await?;
    fs::read_to_string(file)?.split_whitespace().map(|pid| Ok(pid.parse()?)).collect()
}

fn runs(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

async fn gone(pids: &[u32]) -> Result<()> {
    until(PATIENCE, "nothing of the command is left", async || {
        let left: Vec<_> = pids.iter().filter(|pid| runs(**pid)).collect();
        ensure!(left.is_empty(), "{left:?}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_command_runs_as_its_instance_does_and_its_streams_and_status_are_its_own() -> Result<()> {
    let cluster = Cluster::start(Options { drivers: vec!["process", "simulated"], ..Options::default() }).await?;
    let mut one = specs::sleeper("one");
    specs::custom(&mut one).env.insert("GREETING".into(), "hello there".into());
    let fleet = cluster.fleet(vec![one, specs::simulated("none")]).await?;
    let exec = async |args: &[&str], input: &str| {
        let args: Vec<&str> = ["exec", "one"].iter().chain(args).copied().collect();
        cluster.rugctl(&args, input).await
    };
    let script = "echo out $GREETING $RUG_NAME; echo err >&2; exit 7";
    let done = exec(&["--", "sh", "-c", script], "").await?;
    ensure!((done.code, done.stdout.as_str()) == (7, "out hello there one\n"), "{} {}", done.code, done.stdout);
    ensure!(done.stderr == "err\n", "{}", done.stderr);
    // Where the instance is, and as who.
    let pid = *api::pids(&fleet[0]).first().context("it runs")?;
    let folder = fs::read_link(format!("/proc/{pid}/cwd"))?;
    let done = exec(&["--", "pwd", "-P"], "").await?.success()?;
    ensure!(Path::new(done.stdout.trim()) == folder, "{} is not {}", done.stdout, folder.display());
    let done =
        exec(&["--", "grep", "-E", "^(Uid|Gid|Groups|NoNewPrivs|CapEff)", "/proc/self/status"], "").await?.success()?;
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    ensure!(
        done.stdout.lines().count() == 5 && done.stdout.lines().all(|line| status.contains(line)),
        "{}",
        done.stdout
    );
    let done = exec(&["--", "cat", "/proc/self/limits"], "").await?.success()?;
    ensure!(done.stdout == fs::read_to_string(format!("/proc/{pid}/limits"))?, "{}", done.stdout);
    // Its words are taken as they are, and it is taken for no instance.
    let done = exec(&["--", "echo", "{name}", "a  b"], "").await?.success()?;
    ensure!(done.stdout == "{name} a  b\n", "{}", done.stdout);
    ensure!(!exec(&["--", "env"], "").await?.success()?.stdout.contains("RUG_INSTANCE="));
    // Input is passed on when that is asked for, however much there is, and has an end.
    let much = "0123456789abcde\n".repeat(40_000);
    let done = exec(&["-i", "--", "cat"], &much).await?.success()?;
    ensure!(done.stdout == much, "{} bytes of {}", done.stdout.len(), much.len());
    ensure!(exec(&["--", "cat"], "unread").await?.success()?.stdout.is_empty());
    // What does not read its input ends nevertheless.
    ensure!(exec(&["-i", "--", "echo", "done"], &much).await?.success()?.stdout == "done\n");
    ensure!(exec(&["--", "sh", "-c", "kill -9 $$"], "").await?.code == 137);
    exec(&["--", "no-such-program"], "").await?.refused(1, &["no-such-program", "not found"])?;
    exec(&["--instance", "1", "--", "id"], "").await?.refused(2, &["instance"])?;
    exec(&["--timeout", "1s", "--", "sleep", "86400"], "").await?.refused(1, &["did not end within 1s"])?;
    cluster.rugctl(&["exec", "none", "--", "id"], "").await?.refused(1, &["cannot run commands in instances"])?;
    cluster.rugctl(&["ssh", "one"], "").await?.refused(1, &["`process`", "rugctl exec one"])?;
    let audited = cluster.rugctl(&["audit", "one", "--action", "exec"], "").await?.success()?.stdout;
    ensure!(audited.contains("sleep 86400"), "{audited}");
    // Nothing that is left keeps a command from ending, or goes on after it.
    let file = cluster.root().join("left");
    let script = format!("setsid sleep 86400 & echo $! > {}; echo on its way", file.display());
    ensure!(exec(&["--", "sh", "-c", &script], "").await?.success()?.stdout == "on its way\n");
    gone(&processes(&file).await?).await?;
    cluster.finish().await
}

#[tokio::test]
async fn a_command_ends_with_its_caller_its_instance_and_its_grant() -> Result<()> {
    let mut cluster = Cluster::start(Options { workers: 2, ..Options::default() }).await?;
    let one = cluster.fleet(vec![specs::sleeper("one")]).await?.remove(0);
    let file = |name: &str| cluster.root().join(name);
    // Its caller goes away.
    let caller = file("caller");
    let running = Running::begin(&cluster, &one.id, &lasting(&caller)).await?;
    let pids = processes(&caller).await?;
    drop(running);
    gone(&pids).await?;
    // Hands off keeps Rug from acting, and not its operators.
    cluster.rugctl(&["debug", "set", "--appliance", "one", "--reason", "looking"], "").await?.success()?;
    let done = cluster.rugctl(&["exec", "one", "--", "echo", "looked"], "").await?.success()?;
    ensure!(done.stdout == "looked\n");
    cluster.rugctl(&["debug", "clear", "--all", "--yes"], "").await?.success()?;
    // Its instance ends.
    let instance = file("instance");
    let mut running = Running::begin(&cluster, &one.id, &lasting(&instance)).await?;
    let pids = processes(&instance).await?;
    let pid = *api::pids(&one).first().context("it runs")?;
    rustix::process::kill_process(rustix::process::Pid::from_raw(pid.try_into()?).context("a pid")?, Signal::KILL)?;
    let (how, _) = running.end().await?;
    ensure!(matches!(&how, How::Stopped(why) if why.contains("instance has ended")), "{how:?}");
    gone(&pids).await?;
    until(PATIENCE, "it is repaired", async || {
        let now = cluster.api.get(&one.id).await?;
        ensure!(api::is_configured(&now) && api::pids(&now) != [pid], "{}", api::describe(&now));
        Ok(())
    })
    .await?;
    // Another worker gets the appliance.
    let grant = file("grant");
    let mut running = Running::begin(&cluster, &one.id, &lasting(&grant)).await?;
    let pids = processes(&grant).await?;
    let owner = api::owner(&cluster.api.get(&one.id).await?).to_owned();
    cluster.rugctl(&["worker", "drain", &owner, "--wait", "--yes"], "").await?.success()?;
    let (how, _) = running.end().await?;
    ensure!(matches!(&how, How::Stopped(why) if why.contains("not owned")), "{how:?}");
    gone(&pids).await?;
    // Its worker stands still for longer than its lease: the command does not wait for it to wake up.
    let lease = file("lease");
    let _running = Running::begin(&cluster, &one.id, &lasting(&lease)).await?;
    let pids = processes(&lease).await?;
    let owner = api::owner(&cluster.api.get(&one.id).await?).to_owned();
    cluster.worker(&owner)?.signal(Signal::STOP)?;
    gone(&pids).await?;
    cluster.worker(&owner)?.signal(Signal::CONT)?;
    cluster.healthy().await?;
    cluster.finish().await
}

#[tokio::test]
async fn one_that_nobody_reads_holds_nothing_up_and_a_worker_runs_so_many_at_a_time() -> Result<()> {
    let mut cluster = Cluster::start(Options { workers: 1, ..Options::default() }).await?;
    let one = cluster.fleet(vec![specs::sleeper("one")]).await?.remove(0);
    let (mut unread, mut pids) = (Vec::new(), Vec::new());
    for n in 0..16 {
        let file = cluster.root().join(format!("unread-{n}"));
        let script = format!("echo $$ > {0}.part; mv {0}.part {0}; exec cat /dev/zero", file.display());
        unread.push(Running::begin(&cluster, &one.id, &script).await?);
        pids.extend(processes(&file).await?);
    }
    let refused = cluster.rugctl(&["exec", "one", "--", "true"], "").await?;
    refused.refused(1, &["16 commands run on this worker already"])?;
    // Others are served, and those that were unread are so when they are read.
    cluster.rugctl(&["scale", "one", "--replicas", "2"], "").await?.success()?;
    let mut first = unread.remove(0);
    for _ in 0..64 {
        let answer = tokio::time::timeout(PATIENCE, first.answers.message()).await??;
        ensure!(answer.is_some());
    }
    drop((first, unread));
    gone(&pids).await?;
    until(PATIENCE, "there is room again", async || {
        cluster.rugctl(&["exec", "one", "--", "true"], "").await?.success().map(drop)
    })
    .await?;
    // The leader goes away, and with it what was run through it.
    let file = cluster.root().join("leader");
    let _running = Running::begin(&cluster, &one.id, &lasting(&file)).await?;
    let pids = processes(&file).await?;
    cluster.coordinator.kill()?;
    gone(&pids).await?;
    cluster.coordinator.start()?;
    cluster.healthy().await?;
    cluster.finish().await
}
