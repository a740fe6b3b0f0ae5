//! A shell that types what a page says.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use super::blocks::{Block, Step};
use super::shape;
use crate::cluster::binaries;
use crate::cluster::processes::ROOT_VARIABLE;

/// How long a command of a page may take.
const LIMIT: Duration = Duration::from_secs(90);
/// How long one is watched that goes on until it is interrupted, in seconds.
const WATCHED: u32 = 3;
/// What a comment says of such a command.
const GOES_ON: &str = "# Ctrl-C ends it";
/// Begins the line that the shell prints after each command; no program prints it.
const DONE: char = '\u{1}';

/// Words of pages, and what they are where a page is tried.
pub type Words = Vec<(String, String)>;

/// A shell, and where it works.
#[derive(Debug)]
pub struct Shell {
    _child: Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
    words: Words,
}

impl Shell {
    /// A shell in this folder, with the programs of Rug on the path. `words` of the page become others, in the commands and in what the
    /// page shows of their output.
    ///
    /// # Errors
    /// When it cannot be started.
    pub async fn start(root: &Path, environment: &[(&str, String)], words: Words) -> Result<Self> {
        let programs = binaries::path("rugctl")?.parent().context("it is in a folder")?.to_owned();
        let path = format!("{}:{}", programs.display(), std::env::var("PATH").unwrap_or_default());
        let mut command = Command::new("bash");
        command.args(["--noprofile", "--norc"]).current_dir(root).stdin(Stdio::piped()).stdout(Stdio::piped());
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("RUG_")) {
            command.env_remove(name);
        }
        command.env(ROOT_VARIABLE, root).env("PATH", path).env("NO_COLOR", "1").env("HOME", root);
        command.envs(environment.iter().map(|(name, value)| (*name, value))).kill_on_drop(true);
        let mut child = command.spawn().context("start bash")?;
        let input = child.stdin.take().context("it has an input")?;
        let output = BufReader::new(child.stdout.take().context("it has an output")?).lines();
        let mut shell = Self { _child: child, input, output, words };
        shell.input.write_all(b"exec 2>&1\n").await?;
        Ok(shell)
    }

    /// Gives a word another meaning from now on.
    pub fn word(&mut self, of_the_page: &str, here: &str) {
        self.words.retain(|(known, _)| known != of_the_page);
        self.words.push((of_the_page.to_owned(), here.to_owned()));
    }

    fn here(&self, text: &str) -> String {
        self.words.iter().fold(text.to_owned(), |text, (page, here)| text.replace(page.as_str(), here))
    }

    /// Types a command; what it printed, and the status it ended with.
    ///
    /// # Errors
    /// When it does not end in time.
    pub async fn run(&mut self, command: &str) -> Result<(Vec<String>, i32)> {
        let typed = format!("{{\n{command}\n}} </dev/null\nprintf '\\n{DONE}%s\\n' $?\n");
        self.input.write_all(typed.as_bytes()).await?;
        let mut printed = Vec::new();
        let read = async {
            while let Some(line) = self.output.next_line().await? {
                if let Some(code) = line.strip_prefix(DONE) {
                    return Ok(code.parse::<i32>()?);
                }
                printed.push(line);
            }
            anyhow::bail!("the shell ended")
        };
        let code = tokio::time::timeout(LIMIT, read).await;
        let code = code
            .with_context(|| format!("{command}: not done within {LIMIT:?}"))?
            .with_context(|| command.to_owned())?;
        Ok((printed, code))
    }

    /// Types a command of a page; what is wrong with what it printed.
    async fn step(&mut self, step: &Step, varies: bool) -> Result<Vec<String>> {
        // What needs an administrator has been done for the test, with servers of its own.
        if step.command.starts_with("sudo ") {
            return Ok(Vec::new());
        }
        let goes_on = step.command.contains(GOES_ON);
        let command = self.here(&step.command);
        let command = if goes_on { format!("timeout --signal INT {WATCHED} {command}") } else { command };
        let (printed, code) = self.run(&command).await?;
        let shown: Vec<String> = step.output.iter().map(|line| self.here(line)).collect();
        let mut wrong = if shown.is_empty() { Vec::new() } else { shape::differences(&shown, &printed, varies) };
        self.learn(&shown, &printed);
        // A command that shows a problem says so by its code as well.
        let tells = |line: &String| {
            line.starts_with("problem") || line.starts_with("rugctl: ") || line.ends_with("would be changed")
        };
        let is_problem = shown.iter().any(tells);
        if code != 0 && !goes_on && !is_problem {
            wrong.push(format!("it ended with {code}"));
        }
        if wrong.is_empty() {
            return Ok(wrong);
        }
        wrong.insert(0, format!("{}: $ {command}", step.place));
        wrong.extend(printed.into_iter().map(|line| format!("    {line}")));
        Ok(wrong)
    }

    /// Remembers ids that were printed in place of those of the page, for the commands below.
    fn learn(&mut self, shown: &[String], printed: &[String]) {
        for line in shown {
            let Some(other) = printed.iter().find(|other| shape::shape(other) == shape::shape(line)) else { continue };
            let words = |line: &str| -> Vec<String> {
                line.split_whitespace().map(|word| word.trim_end_matches([':', ',', ')']).to_owned()).collect()
            };
            for (page, here) in words(line).iter().zip(&words(other)) {
                if page != here && shape::shape(page) == "<id>" {
                    self.word(page, here);
                }
            }
        }
    }

    /// Types the commands of a block.
    ///
    /// # Errors
    /// What was not as the page shows it.
    pub async fn block(&mut self, block: &Block) -> Result<()> {
        let mut wrong = Vec::new();
        for step in &block.steps {
            wrong.extend(self.step(step, block.varies).await?);
        }
        ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
        Ok(())
    }
}
