//! The default without any set-up, and another user of the same host who wants in.
//!
//! The other user is `nobody`, so that these tests do something only when root runs them.

use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;
use std::{fs, io};

use anyhow::{Context, Result, ensure};
use proto::admin::v1;
use rustix::process::Signal;
use tests::cluster::api::Api;
use tests::cluster::daemon::Daemon;
use tests::cluster::processes::ROOT_VARIABLE;
use tests::cluster::wait::until;
use tests::cluster::{PATIENCE, Sandbox, binaries, specs};
use tokio::process::Command;

/// User and group `nobody`.
const NOBODY: u32 = 65_534;
/// What no other user may learn.
const SECRET: &str = "hush-4711";

/// The other user, with the programs and a folder of its own.
struct OtherUser<'a> {
    sandbox: &'a Sandbox,
    programs: PathBuf,
    home: PathBuf,
}

impl<'a> OtherUser<'a> {
    /// `None` where this test may not act as another user.
    fn new(sandbox: &'a Sandbox) -> Result<Option<Self>> {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: only root can act as another user");
            return Ok(None);
        }
        // Folders of tests are closed; what is in them has to stand for itself here.
        fs::set_permissions(sandbox.root(), fs::Permissions::from_mode(0o755))?;
        let programs = sandbox.path("programs");
        fs::create_dir(&programs)?;
        fs::set_permissions(&programs, fs::Permissions::from_mode(0o755))?;
        for name in ["rugctl", "rug-worker", "rug-coordinator", "rug-appliance", "rug-shim"] {
            let (from, to) = (binaries::path(name)?, programs.join(name));
            fs::hard_link(&from, &to).or_else(|_| fs::copy(&from, &to).map(drop))?;
        }
        let home = sandbox.path("home");
        fs::create_dir(&home)?;
        chown(&home, Some(NOBODY), Some(NOBODY))?;
        Ok(Some(Self { sandbox, programs, home }))
    }

    fn program(&self, name: &str) -> PathBuf {
        self.programs.join(name)
    }

    /// A command of that user, in its home.
    fn command(&self, program: &Path, args: &[&str]) -> Command {
        let mut command = quiet(program, self.sandbox, &self.home);
        command.args(args).uid(NOBODY).gid(NOBODY);
        command
    }

    /// A program of that user that goes on beside the test; what it says is in `log`.
    fn spawn(&self, name: &str, args: &[&str], log: &Path) -> Result<tokio::process::Child> {
        let mut command = self.command(&self.program(name), args);
        command.stdout(Stdio::null()).stderr(fs::File::create(log)?);
        command.spawn().with_context(|| format!("start {name}"))
    }

    /// Runs a program as that user; one that does not end is killed after `limit`.
    async fn run(&self, program: &Path, args: &[&str], limit: Duration) -> Result<Output> {
        let child = self
            .command(program, args)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("start {}", program.display()))?;
        let pid = child.id().and_then(|pid| rustix::process::Pid::from_raw(pid.cast_signed()));
        let mut output = std::pin::pin!(child.wait_with_output());
        if let Ok(output) = tokio::time::timeout(limit, &mut output).await {
            return Ok(output?);
        }
        if let Some(pid) = pid {
            rustix::process::kill_process(pid, Signal::KILL)?;
        }
        Ok(output.await?)
    }

    /// A shell command fails, and tells no secret.
    async fn fails(&self, command: &str) -> Result<()> {
        let output = self.run(Path::new("/bin/sh"), &["-c", command], PATIENCE).await?;
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        ensure!(!output.status.success(), "`{command}` was possible: {out}{err}");
        ensure!(!out.contains(SECRET), "`{command}` told: {out}");
        Ok(())
    }
}

/// A command in this folder, without input, that ends with the test and knows of no server.
fn quiet(program: &Path, sandbox: &Sandbox, folder: &Path) -> Command {
    let mut command = Command::new(program);
    command.env(ROOT_VARIABLE, sandbox.root()).env("XDG_CONFIG_HOME", sandbox.path("config"));
    command.env_remove("RUG_SERVER").current_dir(folder);
    command.stdin(Stdio::null()).kill_on_drop(true);
    command
}

/// Runs a program of this user in a folder, and waits for its end.
async fn own(name: &str, args: &[&str], sandbox: &Sandbox, folder: &Path) -> Result<Output> {
    let output = quiet(&binaries::path(name)?, sandbox, folder).args(args).output();
    Ok(tokio::time::timeout(PATIENCE, output).await.context("it does not end")??)
}

/// An embedded cluster of one worker whose programs were told their folders and nothing else, with a umask that leaves
/// everything open.
struct DefaultCluster {
    state: PathBuf,
    workers: PathBuf,
    coordinator: Daemon,
    worker: Daemon,
    api: Api,
}

impl DefaultCluster {
    async fn start(sandbox: &Sandbox) -> Result<Self> {
        let (state, workers) = (sandbox.path("coordinator"), sandbox.path("workers"));
        let open = |name: &str, program: &str, flags: &[&str]| -> Result<Daemon> {
            let program = binaries::path(program)?.to_string_lossy().into_owned();
            let words =
                ["-c", "umask 000; exec \"$0\" \"$@\"", &program, "run"].into_iter().chain(flags.iter().copied());
            Ok(Daemon::new(name, "/bin/sh".into(), words.map(Into::into).collect(), sandbox))
        };
        let socket = format!("unix:{}/coordinator.sock", state.display());
        let (state_dir, workers_dir) = (state.to_string_lossy(), workers.to_string_lossy());
        let mut coordinator = open("coordinator-1", "rug-coordinator", &["--state-dir", &state_dir])?;
        let flags =
            ["--state-dir", &workers_dir, "--coordinator", &socket, "--host", "test-host", "--on-stop", "leave"];
        let mut worker = open("worker-1", "rug-worker", &flags)?;
        let api = Api::new(&socket)?;
        coordinator.start()?;
        worker.start()?;
        until(PATIENCE, "the worker is healthy", async || {
            let workers = api.workers().await?;
            ensure!(workers.iter().any(|w| w.health() == v1::Health::Healthy), "{workers:?}");
            Ok(())
        })
        .await?;
        Ok(Self { state, workers, coordinator, worker, api })
    }

    async fn stop(mut self) -> Result<()> {
        self.worker.stop(PATIENCE).await?;
        let status = self.coordinator.stop(PATIENCE).await?;
        ensure!(status.success(), "it ended with {status}");
        ensure!(!self.state.join("coordinator.sock").exists(), "its socket is left");
        Ok(())
    }
}

/// Everything in a folder that other users have any right to.
fn open_to_others(folder: &Path) -> io::Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let meta = path.symlink_metadata()?;
        if meta.mode() & 0o077 != 0 {
            found.push(format!("{} {:04o}", path.display(), meta.mode() & 0o7777));
        }
        if meta.is_dir() {
            found.extend(open_to_others(&path)?);
        }
    }
    Ok(found)
}

#[tokio::test]
async fn another_user_gets_nothing_from_a_cluster_without_set_up() -> Result<()> {
    let sandbox = Sandbox::new()?;
    let Some(other) = OtherUser::new(&sandbox)? else { return sandbox.finish(&[]) };
    let cluster = DefaultCluster::start(&sandbox).await?;
    let mut secretive = specs::sleeper("secretive");
    specs::custom(&mut secretive).env.insert("PASSWORD".to_owned(), SECRET.to_owned());
    let id = cluster.api.create(secretive).await?.id;
    until(PATIENCE, "it is configured", async || {
        let appliance = cluster.api.get(&id).await?;
        ensure!(tests::cluster::api::is_configured(&appliance), "{}", tests::cluster::api::describe(&appliance));
        Ok(())
    })
    .await?;

    for folder in [&cluster.state, &cluster.workers] {
        ensure!(fs::metadata(folder)?.mode() & 0o7777 == 0o700, "{} is open", folder.display());
        let open = open_to_others(folder)?;
        ensure!(open.is_empty(), "open to others: {open:?}");
    }

    let (state, workers) = (cluster.state.display().to_string(), cluster.workers.display().to_string());
    for command in [
        format!("ls {state}"),
        format!("ls {workers}"),
        format!("cat {state}/rug.db"),
        format!("cat {workers}/instances/{id}/0/instance.json"),
        format!("flock -n {state}/lock true"),
        format!("flock -n {state}/rug.db-shm true"),
        format!("flock -n {workers}/fences/{id}.lock true"),
        format!("ln -s /etc/passwd {state}/planted"),
        format!("rm {state}/coordinator.sock"),
        // In brackets, so that the command does not find itself.
        "cat /proc/[0-9]*/environ | grep -q '[h]ush-4711'".to_owned(),
        "cat /proc/[0-9]*/cmdline | grep -q '[h]ush-4711'".to_owned(),
    ] {
        other.fails(&command).await?;
    }
    attempts(&other, &cluster).await?;

    // The modes are one fence, who connects is the other.
    fs::set_permissions(&cluster.state, fs::Permissions::from_mode(0o711))?;
    fs::set_permissions(cluster.state.join("coordinator.sock"), fs::Permissions::from_mode(0o666))?;
    attempts(&other, &cluster).await?;
    let log = cluster.coordinator.log_text();
    ensure!(log.contains("refused: only the user of this coordinator") && log.contains("local user 65534"), "{log}");
    let names: Vec<_> = cluster.api.workers().await?.into_iter().map(|w| w.id).collect();
    ensure!(names == ["worker-1"], "{names:?}");
    ensure!(cluster.api.get(&id).await?.status.is_some(), "it is gone");
    cluster.stop().await?;
    sandbox.finish(&[])
}

/// Commanding the cluster and joining it, with the programs as they are.
async fn attempts(other: &OtherUser<'_>, cluster: &DefaultCluster) -> Result<()> {
    let socket = format!("unix:{}/coordinator.sock", cluster.state.display());
    let flags = ["--server", &socket, "--timeout", "2s"];
    for words in [&["list"][..], &["delete", "--all", "--yes"], &["cluster", "status"]] {
        let args: Vec<_> = words.iter().chain(&flags).copied().collect();
        let output = other.run(&other.program("rugctl"), &args, PATIENCE).await?;
        ensure!(output.status.code() == Some(3) && output.stdout.is_empty(), "{words:?}: {output:?}");
    }
    let home = other.home.join("state").display().to_string();
    let args = ["run", "--name", "evil", "--coordinator", &socket, "--state-dir", &home, "--host", "test-host"];
    let output = other.run(&other.program("rug-worker"), &args, Duration::from_secs(3)).await?;
    ensure!(output.status.code().is_none(), "it ended by itself: {output:?}");
    Ok(())
}

#[tokio::test]
async fn folders_that_another_user_has_prepared_are_refused() -> Result<()> {
    let sandbox = Sandbox::new()?;
    let Some(other) = OtherUser::new(&sandbox)? else { return sandbox.finish(&[]) };
    let shared = sandbox.path("shared");
    fs::create_dir(&shared)?;
    fs::set_permissions(&shared, fs::Permissions::from_mode(0o1777))?;
    fs::create_dir(sandbox.path("victim"))?;
    let prepare = format!(
        "cd {} && mkdir -m 777 taken && mkdir -m 777 taken/deep && ln -s {} link",
        shared.display(),
        sandbox.path("victim").display()
    );
    let prepared = other.run(Path::new("/bin/sh"), &["-c", &prepare], PATIENCE).await?;
    ensure!(prepared.status.success(), "{prepared:?}");
    fs::create_dir(shared.join("open"))?;
    fs::set_permissions(shared.join("open"), fs::Permissions::from_mode(0o777))?;
    for (folder, reason) in [
        ("taken", "belongs to nobody"),
        ("taken/deep/state", "belongs to nobody, who could replace"),
        ("link/state", "belongs to nobody"),
        ("open", "every user can write to"),
        ("open/state", "every user can write to"),
    ] {
        let path = shared.join(folder).display().to_string();
        for (program, code) in [("rug-coordinator", 3), ("rug-worker", 3)] {
            let output = own(program, &["run", "--state-dir", &path], &sandbox, sandbox.root()).await?;
            let message = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
            ensure!(output.status.code() == Some(code) && message.contains(reason), "{folder}: {program}: {message}");
        }
        let args = ["up", "--state-dir", &path];
        tests::cluster::rugctl::run(sandbox.root(), &args, "").await?.refused(1, &[reason])?;
    }
    ensure!(fs::read_dir(sandbox.path("victim"))?.next().is_none(), "the link was followed");
    sandbox.finish(&["state directory".to_owned()])
}

#[tokio::test]
async fn two_users_run_up_on_one_host_without_meeting() -> Result<()> {
    let sandbox = Sandbox::new()?;
    let Some(other) = OtherUser::new(&sandbox)? else { return sandbox.finish(&[]) };
    let words = ["up", "--workers", "1"];
    let state = sandbox.path(".rug").into_os_string();
    let ours = words.iter().map(Into::into).chain(["--state-dir".into(), state]).collect();
    let mut up = Daemon::new("up", binaries::path("rugctl")?, ours, &sandbox);
    up.start()?;
    let program = other.program("rugctl");
    let their_log = sandbox.path("theirs");
    let mut theirs = other.spawn("rugctl", &words, &their_log)?;
    until(PATIENCE, "both are ready", async || {
        up.check()?;
        for log in [up.log_text(), fs::read_to_string(&their_log)?] {
            ensure!(log.contains("ready; Ctrl-C stops Rug"), "{log}");
        }
        let status = other.run(&program, &["cluster", "status", "--timeout", "1s"], PATIENCE).await?;
        let shown = String::from_utf8_lossy(&status.stdout).into_owned();
        ensure!(shown.contains("home/.rug/coordinator.sock"), "{shown}{}", String::from_utf8_lossy(&status.stderr));
        Ok(())
    })
    .await?;
    // Root, who could use it, is not sent there unasked by a file that it did not make.
    let endpoint = other.home.join(".rug/endpoint");
    ensure!(fs::metadata(&endpoint)?.mode() & 0o077 == 0, "{} is open", endpoint.display());
    let unasked = own("rugctl", &["list", "--timeout", "1s"], &sandbox, &other.home).await?;
    let message = String::from_utf8_lossy(&unasked.stderr);
    ensure!(unasked.status.code() == Some(2) && message.contains("belongs to nobody"), "{message}");
    let pid = theirs.id().and_then(|pid| rustix::process::Pid::from_raw(pid.cast_signed())).context("it runs")?;
    rustix::process::kill_process(pid, Signal::INT)?;
    ensure!(tokio::time::timeout(PATIENCE, theirs.wait()).await??.success(), "their `up` failed");
    up.signal(Signal::INT)?;
    up.ended(PATIENCE).await?;
    sandbox.finish(&[])
}

#[tokio::test]
async fn root_follows_no_link_to_a_server_of_another_user() -> Result<()> {
    let sandbox = Sandbox::new()?;
    let Some(other) = OtherUser::new(&sandbox)? else { return sandbox.finish(&[]) };
    let mut theirs = other.spawn("rug-coordinator", &["run"], &sandbox.path("theirs"))?;
    let socket = other.home.join("rug-coordinator-state/coordinator.sock");
    until(PATIENCE, "their coordinator serves", async || {
        ensure!(socket.exists(), "there is no socket");
        Ok(())
    })
    .await?;
    // Links of root at the default place, as a victim may be talked into, or has made for another purpose.
    let folder = sandbox.path("folder");
    fs::create_dir(&folder)?;
    let place = folder.join("rug-coordinator-state");
    for (to_folder, refusal) in [(true, "is a symbolic link"), (false, "belongs to nobody")] {
        if to_folder {
            std::os::unix::fs::symlink(other.home.join("rug-coordinator-state"), &place)?;
        } else {
            fs::remove_file(&place)?;
            fs::create_dir(&place)?;
            std::os::unix::fs::symlink(&socket, place.join("coordinator.sock"))?;
        }
        let list = ["list", "--timeout", "3s"];
        let found = own("rugctl", &list, &sandbox, &folder).await?;
        let message = String::from_utf8_lossy(&found.stderr).into_owned();
        ensure!(found.status.code().is_some_and(|code| code != 0) && message.contains(refusal), "{message}");
        // Root may well use it, if that is what it says.
        let named = format!("unix:{}", socket.display());
        let named = own("rugctl", &[&list[..], &["--server", &named]].concat(), &sandbox, &folder).await?;
        ensure!(named.status.success(), "{}", String::from_utf8_lossy(&named.stderr));
    }
    theirs.kill().await?;
    sandbox.finish(&[])
}
