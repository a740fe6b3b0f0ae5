//! Kind `custom`: any command with a TCP or HTTP probe, or none but that its process runs. It has no configuration of its own: whatever changes its command
//! line makes a new instance.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Configuration, Kind, LaunchRecipe, Listen, PortOverflow, ProbeSpec, Program, shifted};
use crate::limits::{FieldViolation, MAX_TEXT, check_count, check_port, check_text};
use crate::text::Redacted;
use crate::version::Generation;

/// How long a process has to run before it counts as up when nothing else is asked of it, as with supervisord.
const PROCESS_SETTLE_TIME: Duration = Duration::from_secs(1);

/// Any command, kept running and probed.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
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
    /// Port the command listens on; instance `n` takes `port + n`. When absent, the worker picks free ones, or none for the
    /// probe `process`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// How to tell that an instance is alive.
    pub probe: Probe,
}

impl fmt::Debug for Custom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { command, args, env, port, probe } = self;
        f.debug_struct("Custom")
            .field("command", command)
            .field("args", args)
            .field("env", &Redacted(env))
            .field("port", port)
            .field("probe", probe)
            .finish()
    }
}

/// How an instance of kind `custom` is probed: on its own port at the loopback address, or by its process.
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
    /// Its process runs. For programs that listen nowhere: without a port in the specification none is picked.
    Process,
}

impl Custom {
    /// Whether an instance has no port, neither from the specification nor from the worker.
    fn listens_nowhere(&self) -> bool {
        self.port.is_none() && self.probe == Probe::Process
    }
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
        if self.listens_nowhere() {
            let args = self.args.iter().enumerate().map(|(i, arg)| (format!("spec.custom.args[{i}]"), arg));
            let env = self.env.iter().map(|(name, value)| (format!("spec.custom.env[{name}]"), value));
            for (field, _) in args.chain(env).filter(|(_, text)| text.contains("{port}")) {
                found.push(FieldViolation::new(
                    field,
                    "has {port}, but with the probe `process` only spec.custom.port gives one",
                ));
            }
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
        if self.listens_nowhere() {
            // Another probe needs the port that such an instance was not given.
            input("listen", "nowhere");
        }
    }

    fn launch(&self, ordinal: u16) -> Result<LaunchRecipe, PortOverflow> {
        let listen = match self.port {
            Some(port) => Listen::At(vec![SocketAddr::from((Ipv4Addr::LOCALHOST, shifted(port, ordinal)?))]),
            None if self.listens_nowhere() => Listen::Nowhere,
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
            Probe::Process => ProbeSpec::Process,
        }
    }

    /// Every process runs when it has just been started.
    fn settle_time(&self) -> Duration {
        match self.probe {
            Probe::Process => PROCESS_SETTLE_TIME,
            Probe::Tcp | Probe::Http { .. } => Duration::ZERO,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn custom(port: Option<u16>, probe: Probe) -> Custom {
        let env = BTreeMap::from([("AT".to_owned(), "{port}".to_owned())]);
        Custom { command: "sleep".into(), args: vec!["{port}".into()], env, port, probe }
    }

    fn fields(custom: &Custom) -> Vec<String> {
        let mut found = Vec::new();
        custom.validate(1, &mut found);
        found.into_iter().map(|violation| violation.field).collect()
    }

    #[test]
    fn values_of_the_environment_are_not_formatted() {
        let mut custom = custom(None, Probe::Tcp);
        custom.env.insert("PASSWORD".into(), "hush".into());
        let text = format!("{custom:?} {:?}", custom.launch(0).expect("in range"));
        assert!(text.contains("PASSWORD") && !text.contains("hush"), "{text}");
    }

    #[test]
    fn a_program_that_listens_nowhere_has_no_port_to_refer_to() {
        assert_eq!(fields(&custom(None, Probe::Process)), ["spec.custom.args[0]", "spec.custom.env[AT]"]);
        assert_eq!(fields(&custom(Some(80), Probe::Process)), Vec::<String>::new());
        assert_eq!(fields(&custom(None, Probe::Tcp)), Vec::<String>::new());
        let listen = |port, probe| custom(port, probe).launch(1).expect("in range").listen;
        assert_eq!(listen(None, Probe::Process), Listen::Nowhere);
        assert_eq!(listen(None, Probe::Tcp), Listen::AnyPort);
        assert_eq!(listen(Some(80), Probe::Process), Listen::At(vec![([127, 0, 0, 1], 81).into()]));
    }

    #[test]
    fn only_what_takes_or_gives_a_port_restarts_for_another_probe() {
        let inputs = |port, probe| {
            let mut inputs = Vec::new();
            custom(port, probe).restart_inputs(&mut |name, value| inputs.push(format!("{name}={value}")));
            inputs
        };
        assert_ne!(inputs(None, Probe::Process), inputs(None, Probe::Tcp));
        assert_eq!(inputs(Some(80), Probe::Process), inputs(Some(80), Probe::Tcp));
    }
}
