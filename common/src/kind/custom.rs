//! Kind `custom`: any command with a TCP or HTTP probe. It has no configuration of its own: whatever changes its command
//! line makes a new instance.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};

use serde::{Deserialize, Serialize};

use super::{Configuration, Kind, LaunchRecipe, Listen, PortOverflow, ProbeSpec, Program, shifted};
use crate::limits::{FieldViolation, MAX_TEXT, check_count, check_port, check_text};
use crate::version::Generation;

/// Any command, kept running and probed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Custom {
    /// Program to run: an absolute path, or a name looked up in the worker's `PATH`.
    pub command: String,
    /// Arguments; `{port}`, `{ordinal}`, `{name}` and `{id}` are replaced.
    #[serde(default)]
    pub args: Vec<String>,
    /// Environment on top of a minimal one (`PATH`, `HOME`, `LANG`); values are replaced as in `args`.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Port the command listens on; instance `n` takes `port + n`. The worker picks free ones when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// How to tell that an instance is alive.
    pub probe: Probe,
}

/// How an instance of kind `custom` is probed, on its own port at the loopback address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Probe {
    /// A connection can be opened.
    Tcp,
    /// `GET` of this path answers with a status below 400.
    Http {
        /// Path and query, starting with `/`.
        path: String,
    },
}

impl Kind for Custom {
    fn validate(&self, replicas: u16, found: &mut Vec<FieldViolation>) {
        check_text(found, "spec.custom.command", &self.command, 1);
        check_count(found, "spec.custom.args", self.args.len());
        for (i, arg) in self.args.iter().enumerate() {
            check_text(found, &format!("spec.custom.args[{i}]"), arg, 0);
        }
        check_count(found, "spec.custom.env", self.env.len());
        for (name, value) in &self.env {
            if name.is_empty() || name.len() > MAX_TEXT || name.contains(['=', '\0']) {
                found.push(FieldViolation::new("spec.custom.env", format!("{name:?} cannot be a variable's name")));
            }
            check_text(found, &format!("spec.custom.env[{name}]"), value, 0);
        }
        if let Some(port) = self.port {
            check_port(found, "spec.custom.port", port, replicas);
        }
        if let Probe::Http { path } = &self.probe {
            check_text(found, "spec.custom.probe.http.path", path, 1);
            if !path.starts_with('/') || path.contains(char::is_whitespace) {
                found.push(FieldViolation::new(
                    "spec.custom.probe.http.path",
                    "must start with / and hold no white space",
                ));
            }
        }
    }

    fn ports(&self) -> Vec<(u16, String)> {
        self.port.map(|port| (port, "spec.custom.port".to_owned())).into_iter().collect()
    }

    fn restart_inputs(&self, input: &mut dyn FnMut(&str, &str)) {
        input("command", &self.command);
        self.args.iter().for_each(|arg| input("arg", arg));
        self.env.iter().for_each(|(name, value)| {
            input("variable", name);
            input("value", value);
        });
        input("port", &self.port.map(|port| port.to_string()).unwrap_or_default());
    }

    fn launch(&self, ordinal: u16) -> Result<LaunchRecipe, PortOverflow> {
        let listen = match self.port {
            Some(port) => Listen::At(vec![SocketAddr::from((Ipv4Addr::LOCALHOST, shifted(port, ordinal)?))]),
            None => Listen::AnyPort,
        };
        let program = Program::Command(self.command.clone());
        Ok(LaunchRecipe { program, args: self.args.clone(), env: self.env.clone(), listen })
    }

    /// Its address is settled when it is launched.
    fn service_address(&self, _ordinal: u16) -> Option<SocketAddr> {
        None
    }

    fn configuration(&self, _: Generation, _ordinal: u16) -> Result<Configuration, PortOverflow> {
        Ok(Configuration::None)
    }

    fn probe(&self) -> ProbeSpec {
        match &self.probe {
            Probe::Tcp => ProbeSpec::Tcp,
            Probe::Http { path } => ProbeSpec::Http { path: path.clone() },
        }
    }
}
