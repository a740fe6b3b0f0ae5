//! Python with tooz, kazoo and gRPC in a virtual environment of its own, for comparisons with the real thing.
//!
//! The environment is made once, in the folder that `RUG_VENV` names or in one that all tests share, and used again
//! after that, also by tests of other processes: making it is guarded by a lock, and a marker says that it is complete
//! and of which packages. Where there is no package index, `RUG_SKIP_PEER=1` skips what needs it ([`is_skipped`]). Scripts have a deadline and end with the test, however that ends.

use std::ffi::OsString;
use std::fs::{self, File, TryLockError};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use crate::client;
use crate::folder::ServerFolder;
use crate::wait::until;

/// The releases whose behaviour is compared with. tooz is also the one whose owners the committed vectors hold.
const PACKAGES: [&str; 4] = ["tooz==9.1.0", "kazoo==2.11.0", "msgpack==1.2.4", "grpcio==1.85.3"];
/// Installing fetches some twenty packages; longer than this the network is the problem.
const INSTALL_WITHIN: Duration = Duration::from_secs(300);
/// How long a look at an environment may take on a busy machine.
const LOOK_WITHIN: Duration = Duration::from_secs(60);
/// Fails unless the packages named by the arguments are there in these releases.
const CHECK: &str = "\
import importlib.metadata, sys
for wanted in sys.argv[1:]:
    name, release = wanted.split('==')
    assert importlib.metadata.version(name) == release, name
import tooz.coordination, tooz.hashring, kazoo.client, msgpack, grpc
";

/// Whether `RUG_SKIP_PEER=1` asks to leave out what needs Python; says so.
#[must_use]
pub fn is_skipped() -> bool {
    let skipped = std::env::var_os("RUG_SKIP_PEER").is_some_and(|value| value == "1");
    if skipped {
        println!("skipped: RUG_SKIP_PEER=1");
    }
    skipped
}

/// A Python that can import tooz, kazoo, msgpack and grpc.
#[derive(Clone, Debug)]
pub struct Python {
    program: PathBuf,
}

impl Python {
    /// Finds or makes the environment, in the folder that `RUG_VENV` names, otherwise in one below `shared`, which all
    /// tests share: `env!("CARGO_TARGET_TMPDIR")`, which Cargo gives to integration tests and benchmarks.
    ///
    /// # Errors
    /// When there is no Python 3 with its module `venv`, or a package cannot be installed.
    pub async fn prepare(shared: impl AsRef<Path>) -> Result<Self> {
        let folder = std::env::var_os("RUG_VENV").map_or_else(|| shared.as_ref().join("python"), PathBuf::from);
        // Scripts run elsewhere.
        let folder = std::path::absolute(folder)?;
        let python = Self { program: folder.join("bin/python") };
        if python.is_complete(&folder).await {
            return Ok(python);
        }
        let _lock = lock(&folder).await?;
        // Another test may have made it while this one waited.
        if python.is_complete(&folder).await {
            return Ok(python);
        }
        if python.has_packages().await.is_err() {
            python.make(&folder).await?;
        }
        fs::write(marker(&folder), PACKAGES.join("\n"))?;
        Ok(python)
    }

    async fn is_complete(&self, folder: &Path) -> bool {
        // The interpreter it was made with may be gone.
        fs::read_to_string(marker(folder)).is_ok_and(|text| text == PACKAGES.join("\n"))
            && self.run(&["-c", "pass"], "", LOOK_WITHIN).await.is_ok()
    }

    async fn has_packages(&self) -> Result<()> {
        let arguments = [&["-c", CHECK], PACKAGES.as_slice()].concat();
        self.run(&arguments, "", LOOK_WITHIN).await.map(drop)
    }

    async fn make(&self, folder: &Path) -> Result<()> {
        let mut make = Command::new("python3");
        make.args(["-m", "venv", "--clear"]).arg(folder);
        client::run(make, "", INSTALL_WITHIN)
            .await
            .context("make a virtual environment (needs python3 with its venv module: python3-venv on Debian)")?;
        let install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check"];
        self.run(&[&install, PACKAGES.as_slice()].concat(), "", INSTALL_WITHIN)
            .await
            .with_context(|| format!("install {}", PACKAGES.join(", ")))?;
        self.has_packages().await.context("what was installed is not what was asked for")
    }

    /// The interpreter.
    #[must_use]
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// Runs it with arguments and input; the answer is what it prints.
    ///
    /// # Errors
    /// When it cannot be started, fails (with what it wrote to standard error), or takes too long.
    pub async fn run(&self, arguments: &[&str], input: &str, within: Duration) -> Result<String> {
        let mut command = Command::new(&self.program);
        command.args(arguments);
        client::run(command, input, within).await
    }

    /// Runs a script, given as its text, to its end; the answer is what it prints.
    ///
    /// # Errors
    /// As [`Python::run`].
    pub async fn script(&self, code: &str, arguments: &[&str], within: Duration) -> Result<String> {
        let mut script = self.spawn(code, arguments)?;
        let answer = async {
            script.close_input();
            let mut text = String::new();
            while let Some(line) = script.lines.next_line().await? {
                text.push_str(&line);
                text.push('\n');
            }
            let status = script.child.wait().await?;
            ensure!(status.success(), "the script ended with {status}: {}", script.errors());
            Ok(text)
        };
        match tokio::time::timeout(within, answer).await {
            Ok(answer) => answer,
            Err(_) => bail!("the script took over {within:?}: {}", script.errors()),
        }
    }

    /// Starts a script, given as its text. It is killed when the answer is dropped.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn(&self, code: &str, arguments: &[&str]) -> Result<Script> {
        self.spawn_behind(&[], code, arguments)
    }

    /// As [`Python::spawn`], with a program in front of the interpreter, such as [`crate::netns::Host::prefix`].
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn_behind(&self, prefix: &[OsString], code: &str, arguments: &[&str]) -> Result<Script> {
        let folder = ServerFolder::new("python")?;
        let script = folder.path().join("script.py");
        fs::write(&script, code)?;
        let mut words = prefix.to_vec();
        // Unbuffered, so that each line is seen when it is printed.
        words.extend([self.program.clone().into_os_string(), "-u".into(), script.into_os_string()]);
        let mut command = std::process::Command::new(&words[0]);
        command.args(&words[1..]).args(arguments);
        command
            .current_dir(folder.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(File::create(folder.path().join("errors"))?)
            .process_group(0);
        let mut child = Command::from(command).kill_on_drop(true).spawn().context("start a Python script")?;
        let input = child.stdin.take();
        let lines = BufReader::new(child.stdout.take().context("the output is piped")?).lines();
        Ok(Script { child, input, lines, folder })
    }
}

/// A Python script that runs.
#[derive(Debug)]
pub struct Script {
    child: Child,
    input: Option<ChildStdin>,
    lines: Lines<BufReader<ChildStdout>>,
    folder: ServerFolder,
}

impl Script {
    /// The next line it prints, without its end. Keeps a line that has only begun for the next call when time is over.
    ///
    /// # Errors
    /// When there is none within `limit`, or it has ended; with what it wrote to standard error.
    pub async fn line(&mut self, limit: Duration) -> Result<String> {
        match tokio::time::timeout(limit, self.lines.next_line()).await {
            Ok(Ok(Some(line))) => Ok(line),
            Ok(Ok(None)) => bail!("the script has ended: {}", self.errors()),
            Ok(Err(problem)) => Err(problem).context("read from the script"),
            Err(_) => bail!("the script says nothing for {limit:?}: {}", self.errors()),
        }
    }

    /// Reads lines until one satisfies `wanted`; the answer is that one.
    ///
    /// # Errors
    /// As [`Script::line`], where `limit` is for all of them.
    pub async fn line_where(&mut self, limit: Duration, wanted: impl Fn(&str) -> bool) -> Result<String> {
        let deadline = tokio::time::Instant::now() + limit;
        loop {
            let line = self.line(deadline.saturating_duration_since(tokio::time::Instant::now())).await?;
            if wanted(&line) {
                return Ok(line);
            }
        }
    }

    /// Writes a line to its standard input.
    ///
    /// # Errors
    /// When it does not read any more.
    pub async fn say(&mut self, line: &str) -> Result<()> {
        let input = self.input.as_mut().context("the script's input is closed")?;
        input.write_all(format!("{line}\n").as_bytes()).await.with_context(|| format!("the script: {}", self.errors()))
    }

    /// Ends its standard input.
    pub fn close_input(&mut self) {
        self.input = None;
    }

    /// Its process id while it runs.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// `kill -9`.
    ///
    /// # Errors
    /// When it cannot be killed.
    pub async fn kill(&mut self) -> Result<()> {
        self.child.kill().await.context("kill the script")
    }

    /// SIGSTOP; has stopped on return.
    ///
    /// # Errors
    /// When it does not stop.
    pub fn pause(&self) -> Result<()> {
        crate::folder::stop_all(self.folder.path())
    }

    /// SIGCONT.
    ///
    /// # Errors
    /// When it does not go on.
    pub fn resume(&self) -> Result<()> {
        crate::folder::continue_all(self.folder.path())
    }

    /// What it has written to standard error.
    #[must_use]
    pub fn errors(&self) -> String {
        let bytes = fs::read(self.folder.path().join("errors")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).trim_end().to_owned()
    }
}

fn marker(folder: &Path) -> PathBuf {
    folder.join("complete")
}

/// Holds off all others that would make the environment. Beside its folder, because that is emptied.
async fn lock(folder: &Path) -> Result<File> {
    let path = folder.with_extension("lock");
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    let file = File::create(&path).with_context(|| format!("make {}", path.display()))?;
    until(INSTALL_WITHIN * 2, &format!("nobody else holds {}", path.display()), async || match file.try_lock() {
        Ok(()) => Ok(()),
        Err(TryLockError::WouldBlock) => bail!("somebody does"),
        Err(TryLockError::Error(problem)) => Err(problem.into()),
    })
    .await?;
    Ok(file)
}
