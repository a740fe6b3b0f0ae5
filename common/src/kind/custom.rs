//! Kind `custom`: any command, probed over TCP or HTTP, by another command, or only by that its process runs. It has no configuration
//! of its own: whatever it is started with makes a new instance. How it is stopped does not.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Configuration, Kind, LaunchRecipe, Listen, PortOverflow, ProbeSpec, Program, StopRecipe, shifted};
use crate::limits::{FieldViolation, MAX_TEXT, check_count, check_port, check_text};
use crate::text::Redacted;
use crate::version::Generation;

use self::stored::StoredCustom;

mod process;
mod stored;

pub use self::process::{InvalidStopSignal, ProcessLimits, ProcessOptions, StopSignal};

/// How long a process has to run before it counts as up when nothing else is asked of it, as with supervisord.
const PROCESS_SETTLE_TIME: Duration = Duration::from_secs(1);

/// Any command, kept running and probed.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "StoredCustom", into = "StoredCustom")]
pub struct Custom {
    /// Program to run: an absolute path, or a name looked up in the worker's `PATH`. Empty for what the image runs by itself.
    pub command: String,
    /// Arguments; `{port}`, `{ordinal}`, `{name}` and `{id}` are replaced.
    pub args: Vec<String>,
    /// Environment on top of a minimal one (`PATH`, `HOME`, `LANG`); values are replaced as in `args`.
    pub env: BTreeMap<String, String>,
    /// Port the command listens on; instance `n` takes `port + n`. When absent, the worker picks free ones, or none for a
    /// probe that needs none.
    pub port: Option<u16>,
    /// How to tell that an instance is alive.
    pub probe: Probe,
    /// What its process is given besides and how it is stopped; made by [`ProcessOptions::boxed`], so that it is absent where nothing of
    /// it is asked for, and takes no memory.
    pub process: Option<Box<ProcessOptions>>,
}

impl fmt::Debug for Custom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { command, args, env, port, probe, process } = self;
        f.debug_struct("Custom")
            .field("command", command)
            .field("args", args)
            .field("env", &Redacted(env))
            .field("port", port)
            .field("probe", probe)
            .field("process", process)
            .finish()
    }
}

/// How an instance of kind `custom` is probed: on its own port at the loopback address, by a command, or by its process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Probe {
    /// A connection can be opened.
    #[default]
    Tcp,
    /// `GET` of this path answers with a status below 400.
    Http {
        /// Path and query, starting with `/`.
        path: String,
    },
    /// Its process runs, and has done so for a moment. For programs that listen nowhere: without a port in the specification none
    /// is picked.
    Process,
    /// Nothing is asked of it: it counts as up as soon as it was started, until it ends. As for its port like [`Probe::Process`].
    None,
    /// A command that is run beside it, as the same user and with the same variables, ends with exit status 0.
    Exec {
        /// Program and arguments; `{port}`, `{ordinal}`, `{name}` and `{id}` are replaced.
        command: Vec<String>,
    },
}

impl Probe {
    /// Whether it needs no port.
    const fn needs_no_port(&self) -> bool {
        match self {
            Self::Process | Self::None | Self::Exec { .. } => true,
            Self::Tcp | Self::Http { .. } => false,
        }
    }

    fn validate(&self, found: &mut Vec<FieldViolation>) {
        match self {
            Self::Tcp | Self::Process | Self::None => {}
            Self::Http { path } => {
                let field = "spec.custom.probe.http.path";
                check_text(found, field, path, 1);
                if !path.starts_with('/') || path.contains(char::is_whitespace) {
                    found.push(FieldViolation::new(field, "must start with / and hold no white space"));
                }
            }
            Self::Exec { command } => {
                let field = "spec.custom.probe.exec.command";
                check_count(found, field, command.len());
                if command.is_empty() {
                    found.push(FieldViolation::new(field, "must not be empty"));
                }
                for (i, word) in command.iter().enumerate() {
                    check_text(found, &format!("{field}[{i}]"), word, usize::from(i == 0));
                }
            }
        }
    }
}

impl Custom {
    /// Whether an instance has no port, neither from the specification nor from the worker.
    fn listens_nowhere(&self) -> bool {
        self.port.is_none() && self.probe.needs_no_port()
    }

    /// What its process is given, and how it is stopped.
    #[must_use]
    pub fn options(&self) -> &ProcessOptions {
        static NONE: ProcessOptions = ProcessOptions::NONE;
        self.process.as_deref().unwrap_or(&NONE)
    }
}

impl Kind for Custom {
    fn validate(&self, replicas: u16, found: &mut Vec<FieldViolation>) {
        check_text(found, "spec.custom.command", &self.command, 0);
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
            let probe = match &self.probe {
                Probe::Exec { command } => command.as_slice(),
                _ => &[],
            };
            let probe = probe.iter().enumerate().map(|(i, arg)| (format!("spec.custom.probe.exec.command[{i}]"), arg));
            let env = self.env.iter().map(|(name, value)| (format!("spec.custom.env[{name}]"), value));
            for (field, _) in args.chain(env).chain(probe).filter(|(_, text)| text.contains("{port}")) {
                found.push(FieldViolation::new(
                    field,
                    "has {port}, but with this probe only spec.custom.port gives one",
                ));
            }
        }
        self.probe.validate(found);
        self.options().validate(found);
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
        self.options().restart_inputs(input);
    }

    fn launch(&self, ordinal: u16) -> Result<LaunchRecipe, PortOverflow> {
        let listen = match self.port {
            Some(port) => Listen::At(vec![SocketAddr::from((Ipv4Addr::LOCALHOST, shifted(port, ordinal)?))]),
            None if self.listens_nowhere() => Listen::Nowhere,
            None => Listen::AnyPort,
        };
        let program = Program::Command(self.command.clone());
        let execution = self.options().execution();
        Ok(LaunchRecipe { program, args: self.args.clone(), env: self.env.clone(), execution, listen })
    }

    fn needs_image(&self) -> bool {
        self.command.is_empty()
    }

    fn stop(&self) -> StopRecipe {
        self.options().stop()
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
            Probe::Process | Probe::None => ProbeSpec::Process,
            Probe::Exec { command } => ProbeSpec::Exec { command: command.clone() },
        }
    }

    /// Every process runs when it has just been started.
    fn settle_time(&self) -> Duration {
        match self.probe {
            Probe::Process => PROCESS_SETTLE_TIME,
            Probe::Tcp | Probe::Http { .. } | Probe::None | Probe::Exec { .. } => Duration::ZERO,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn custom(port: Option<u16>, probe: Probe) -> Custom {
        let env = BTreeMap::from([("AT".to_owned(), "{port}".to_owned())]);
        Custom { command: "sleep".into(), args: vec!["{port}".into()], env, port, probe, ..Custom::default() }
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
    fn every_field_that_is_wrong_is_named() {
        let exec = |command: &[&str]| Probe::Exec { command: command.iter().map(|word| (*word).to_owned()).collect() };
        let good = ProcessOptions {
            env_from: vec!["/etc/rug/env/db".into()],
            user: Some("www-data".into()),
            group: Some("33".into()),
            working_dir: Some("/srv".into()),
            limits: ProcessLimits { nofile: Some(1024), core: Some(0), memory: Some(1 << 30), ..Default::default() },
            nice: Some(-20),
            stop_signal: "QUIT".parse().ok(),
            stop_timeout: Some(Duration::ZERO),
            ..ProcessOptions::NONE
        };
        let probe = exec(&["curl", "http://127.0.0.1:{port}"]);
        let good = Custom { process: good.boxed(), ..custom(Some(80), probe) };
        assert_eq!(fields(&good), Vec::<String>::new());
        let stored = serde_json::to_string(&good).expect("plain data");
        assert_eq!(serde_json::from_str::<Custom>(&stored).expect("round trip"), good);
        let bad = ProcessOptions {
            env_from: vec!["db".into(), "/etc/../x".into()],
            user: Some("a b".into()),
            group: Some(String::new()),
            working_dir: Some("srv".into()),
            limits: ProcessLimits { nofile: Some(0), memory: Some(7), cpu_percent: Some(0), ..Default::default() },
            nice: Some(20),
            stop_timeout: Some(Duration::from_secs(3601)),
            ..ProcessOptions::NONE
        };
        let bad = Custom { process: bad.boxed(), ..custom(Some(80), exec(&[])) };
        let wrong = [
            "probe.exec.command",
            "env_from[0]",
            "env_from[1]",
            "user",
            "group",
            "working_dir",
            "limits.nofile",
            "limits.memory",
            "limits.cpu_percent",
            "nice",
            "stop_timeout",
        ];
        assert_eq!(fields(&bad), wrong.map(|field| format!("spec.custom.{field}")));
        assert_eq!("SIGKILL".parse::<StopSignal>(), Err(InvalidStopSignal));
        assert_eq!("SIGUSR1".parse::<StopSignal>().map(StopSignal::number), Ok(10));
        assert_eq!(
            fields(&custom(None, exec(&["x", "{port}"]))),
            ["spec.custom.args[0]", "spec.custom.env[AT]", "spec.custom.probe.exec.command[1]"]
        );
    }

    #[test]
    fn what_it_is_started_with_restarts_it_and_how_it_is_stopped_does_not() {
        let inputs = |change: fn(&mut ProcessOptions)| {
            let mut options = ProcessOptions::NONE;
            change(&mut options);
            let custom = Custom { process: options.boxed(), ..custom(Some(80), Probe::Tcp) };
            let mut inputs = Vec::new();
            custom.restart_inputs(&mut |name, value| inputs.push(format!("{name}={value}")));
            inputs
        };
        let plain = inputs(|_| {});
        let starts: [fn(&mut ProcessOptions); 7] = [
            |c| c.env_from = vec!["/x".into()],
            |c| c.user = Some("x".into()),
            |c| c.group = Some("x".into()),
            |c| c.working_dir = Some("/x".into()),
            |c| c.limits.cpu_percent = Some(50),
            |c| c.nice = Some(0),
            |c| c.no_new_privileges = true,
        ];
        let all: std::collections::BTreeSet<_> = starts.into_iter().map(inputs).collect();
        assert!(all.len() == starts.len() && !all.contains(&plain), "{all:?}");
        assert!(all.iter().all(|inputs| inputs.starts_with(&plain)), "what was there before is an input as before");
        let stops: [fn(&mut ProcessOptions); 2] =
            [|c| c.stop_signal = "INT".parse().ok(), |c| c.stop_timeout = Some(Duration::ZERO)];
        for stops in stops {
            assert_eq!(inputs(stops), plain);
        }
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
