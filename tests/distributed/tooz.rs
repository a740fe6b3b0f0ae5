//! A Python process that takes part through tooz, commanded by a test.

use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use serde_json::{Value, json};
use servers::python::{Python, Script};
use tests::fleet::Fleet;

/// How long one answer may take; the longest is that for 10,000 owners on a busy machine.
const LIMIT: Duration = Duration::from_secs(60);

/// The process. It is killed when this is dropped.
#[derive(Debug)]
pub(crate) struct Tooz(Script);

impl Tooz {
    /// Starts it under the member id `name`; it is connected once it answers.
    pub(crate) async fn start(fleet: &Fleet, name: &str) -> Result<Self> {
        let python = python().await?;
        Ok(Self(python.spawn(include_str!("tooz.py"), &[&fleet.coordination, "rug", name])?))
    }

    /// Has it do something.
    pub(crate) async fn ask(&mut self, command: Value) -> Result<Value> {
        self.0.say(&command.to_string()).await?;
        let line = self.0.line(LIMIT).await?;
        let mut answer: Value = serde_json::from_str(&line).with_context(|| format!("odd answer {line:?}"))?;
        match answer.get("error").and_then(Value::as_str) {
            None => Ok(answer["ok"].take()),
            Some(error) => Err(anyhow!("tooz: {error}")),
        }
    }

    /// Names of a group's members.
    pub(crate) async fn members(&mut self, group: &str) -> Result<Vec<String>> {
        let members = self.ask(json!({ "do": "members", "group": group })).await?;
        Ok(serde_json::from_value(members)?)
    }

    /// Who leads the group of coordinators.
    pub(crate) async fn leader(&mut self) -> Result<Option<String>> {
        let leader = self.ask(json!({ "do": "leader", "group": "coordinators" })).await?;
        Ok(serde_json::from_value(leader)?)
    }

    /// Owners of these keys, one each.
    pub(crate) async fn owners(&mut self, keys: &[&String]) -> Result<Vec<String>> {
        let owners = self.ask(json!({ "do": "owners", "keys": keys })).await?;
        Ok(serde_json::from_value(owners)?)
    }

    /// Runs the watchers once; the answer is everything they have seen, such as `["joined", "w1"]`.
    pub(crate) async fn seen(&mut self) -> Result<Vec<(String, String)>> {
        let polled = self.ask(json!({ "do": "poll" })).await?;
        Ok(serde_json::from_value(polled["seen"].clone())?)
    }

    /// Runs the watchers once; the answer is how often it was elected so far.
    pub(crate) async fn elected(&mut self) -> Result<u64> {
        let polled = self.ask(json!({ "do": "poll" })).await?;
        polled["elected"].as_u64().context("a count")
    }

    /// `kill -9`.
    pub(crate) async fn kill(mut self) -> Result<()> {
        self.0.kill().await
    }
}

/// Python with tooz; made once for all tests.
pub(crate) async fn python() -> Result<Python> {
    match Python::prepare(env!("CARGO_TARGET_TMPDIR")).await {
        Ok(python) => Ok(python),
        Err(problem) => bail!("{problem:#} (RUG_SKIP_PEER=1 skips what needs python-tooz)"),
    }
}
