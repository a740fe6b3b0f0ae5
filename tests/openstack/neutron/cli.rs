//! The cloud as a user has it: the `openstack` command, and the laboratory's own program.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

/// The cloud.
pub(crate) struct Lab {
    dir: Option<PathBuf>,
    pub(crate) amqp: String,
    /// What the names of this run begin with.
    pub(crate) prefix: String,
}

impl Lab {
    pub(crate) fn find() -> Option<Self> {
        let amqp = std::env::var("OSL_AMQP_URL").ok()?;
        std::env::var("OS_AUTH_URL").ok()?;
        let dir = std::env::var_os("RUG_OPENSTACK_LAB").map(PathBuf::from);
        Some(Self { dir, amqp, prefix: format!("t{}", std::process::id()) })
    }

    pub(crate) fn name(&self, name: &str) -> String {
        format!("{}-{name}", self.prefix)
    }

    /// Runs the client, and answers what it prints as JSON.
    pub(crate) fn client(&self, args: &[&str], format: bool) -> Result<Value> {
        let mut command = Command::new("openstack");
        command.args(args).env_remove("PYENV_VERSION");
        if format {
            command.args(["-f", "json"]);
        }
        let done = command.output().context("run openstack")?;
        let (out, err) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
        ensure!(done.status.success(), "openstack {args:?}: {err}");
        if format { Ok(serde_json::from_str(&out)?) } else { Ok(Value::Null) }
    }

    /// Makes an object, and answers its id.
    pub(crate) fn make(&self, args: &[&str]) -> Result<String> {
        let made = self.client(args, true)?;
        Ok(made["id"].as_str().context("it has an id")?.to_owned())
    }

    pub(crate) fn run(&self, args: &[&str]) -> Result<()> {
        self.client(args, false).map(drop)
    }

    /// Runs many orders with one client: each process of it takes seconds to start.
    pub(crate) fn batch(&self, orders: &str) -> Result<()> {
        let mut child = Command::new("openstack")
            .env_remove("PYENV_VERSION")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("run openstack")?;
        child.stdin.take().context("piped")?.write_all(orders.as_bytes())?;
        let done = child.wait_with_output()?;
        let said = String::from_utf8_lossy(&done.stderr);
        ensure!(done.status.success() && said.trim().is_empty(), "{said}");
        Ok(())
    }

    /// The laboratory's own program with this order; `None` where its folder is not known.
    pub(crate) fn order(&self, order: &str) -> Option<Command> {
        let dir = self.dir.as_ref()?;
        let program = concat!(env!("CARGO_MANIFEST_DIR"), "/openstack/lab/openstack-lab");
        let mut command = Command::new(program);
        command.arg(order).arg(dir);
        Some(command)
    }

    /// Kills RabbitMQ, with everything it has started.
    pub(crate) fn kill_rabbitmq(&self) -> Result<bool> {
        let Some(mut status) = self.order("status") else { return Ok(false) };
        let text = String::from_utf8_lossy(&status.output()?.stdout).into_owned();
        let line = text.lines().find(|line| line.starts_with("rabbitmq")).context("it runs")?;
        let pid = line.split_whitespace().nth(1).context("it has a process")?;
        let killed = Command::new("kill").args(["-9", "--", &format!("-{pid}")]).status()?;
        ensure!(killed.success(), "kill {pid}");
        Ok(true)
    }

    /// Brings back what is missing.
    pub(crate) fn up(&self) -> Result<()> {
        let Some(mut up) = self.order("up") else { bail!("the folder of the laboratory is not known") };
        ensure!(up.output()?.status.success(), "openstack-lab up");
        Ok(())
    }

    /// Removes what an earlier run has left, and what this one has made.
    pub(crate) fn clean(&self) {
        // A gateway stays while a floating IP needs it.
        if let Ok(Value::Array(all)) = self.client(&["floating", "ip", "list"], true) {
            for floating in all.iter().filter_map(|floating| floating["ID"].as_str()) {
                let _ = self.run(&["floating", "ip", "delete", floating]);
            }
        }
        let Ok(Value::Array(routers)) = self.client(&["router", "list"], true) else { return };
        for router in routers.iter().filter_map(|router| router["ID"].as_str()) {
            let _ = self.run(&["router", "unset", "--external-gateway", router]);
            let Ok(shown) = self.client(&["router", "show", router], true) else { continue };
            for interface in shown["interfaces_info"].as_array().into_iter().flatten() {
                if let Some(port) = interface["port_id"].as_str() {
                    let _ = self.run(&["router", "set", "--no-route", router]);
                    let _ = self.run(&["router", "remove", "port", router, port]);
                }
            }
            let _ = self.run(&["router", "delete", router]);
        }
    }
}
