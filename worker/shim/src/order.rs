//! What a shim is to start, and how the worker hears whether that worked.
//!
//! An order is a sequence of entries `name=value`, each ended by a NUL byte: neither paths, arguments nor variables can hold
//! one. It comes through a pipe from a worker of the same version, and is read as strictly as if it did not.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::time::Duration;

use rustix::process::Signal;

use crate::processes::ProcessId;
use crate::state::EndCause;

/// Longest order in bytes. A specification has at most a quarter of it.
pub const MAX_ORDER: usize = 4 * 1024 * 1024;

/// Longest answer of a shim to its worker in bytes.
pub const MAX_ANSWER: usize = 4096;

/// One instance to be started and kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Order {
    /// Name of the instance.
    pub instance: String,
    /// What is run, and as what.
    pub command: Command,
    /// How its processes are ended once the main process has ended.
    pub stop: Stop,
    /// Bounds of its log.
    pub log: LogBounds,
    /// Control group to be made for it, as a path below a mounted hierarchy of version 2; none where none may be made.
    pub cgroup: Option<Cgroup>,
}

/// A command and everything it is started with.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Command {
    /// Absolute path of the program.
    pub program: PathBuf,
    /// Programs to run instead, in this order, where its user may not run the ones before.
    pub fallbacks: Vec<PathBuf>,
    /// Its arguments, without the program itself.
    pub args: Vec<OsString>,
    /// Its whole environment.
    pub env: Vec<(OsString, OsString)>,
    /// Its working directory.
    pub directory: PathBuf,
    /// The user it runs as; the shim's own when absent.
    pub user: Option<User>,
    /// Directory that it starts in instead; entered only once it is that user, who has to be allowed to.
    pub working_dir: Option<PathBuf>,
    /// Soft and hard limit of open descriptors; unchanged when absent.
    pub nofile: Option<(u64, u64)>,
    /// Most processes of its user; unchanged when absent.
    pub nproc: Option<u64>,
    /// Most bytes of a core dump; unchanged when absent.
    pub core: Option<u64>,
    /// Nice value; 0, as far as that is permitted, when absent.
    pub nice: Option<i32>,
    /// Whether no program that it runs may gain rights.
    pub no_new_privileges: bool,
}

impl std::fmt::Debug for Command {
    /// Without arguments and environment: both may hold secrets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Command").field("program", &self.program).field("user", &self.user).finish_non_exhaustive()
    }
}

/// A user by numbers; names were looked up by the worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
}

/// How what is left is ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stop {
    /// What it is sent first.
    pub signal: Signal,
    /// How long it may then take before it is killed.
    pub timeout: Duration,
}

/// Bounds of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogBounds {
    /// Size in bytes at which the log is put aside and a new one begun.
    pub size: u64,
    /// How many that were put aside are kept.
    pub kept: u32,
    /// Folder whose logs share `quota`: that of all instances.
    pub folder: PathBuf,
    /// Most bytes of all logs in `folder`.
    pub quota: u64,
}

/// A control group for the instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cgroup {
    /// Its path, which does not exist yet.
    pub path: PathBuf,
    /// Most bytes of memory it may use; without a limit when absent.
    pub memory: Option<u64>,
    /// Most CPU time in percent of one CPU; without a limit when absent.
    pub cpu_percent: Option<u32>,
}

/// What is wrong with an order. Quotes no value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidOrder(&'static str);

impl std::fmt::Display for InvalidOrder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the order to start it cannot be read: {}", self.0)
    }
}

impl std::error::Error for InvalidOrder {}

impl Order {
    /// The order as bytes. Values with a NUL byte, which the kernel could not take either, are cut there.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        let mut put = |name: &str, value: &OsStr| {
            let value = value.as_bytes().split(|byte| *byte == 0).next().unwrap_or_default();
            out.extend_from_slice(name.as_bytes());
            out.push(b'=');
            out.extend_from_slice(value);
            out.push(0);
        };
        let command = &self.command;
        put("instance", self.instance.as_ref());
        put("program", command.program.as_os_str());
        command.fallbacks.iter().for_each(|program| put("fallback", program.as_os_str()));
        command.args.iter().for_each(|arg| put("arg", arg));
        for (name, value) in &command.env {
            let mut both = name.clone();
            both.push("=");
            both.push(value);
            put("env", &both);
        }
        put("directory", command.directory.as_os_str());
        if let Some(User { uid, gid, groups }) = &command.user {
            let ids: Vec<String> = [uid, gid].into_iter().chain(groups).map(u32::to_string).collect();
            put("user", ids.join(" ").as_ref());
        }
        if let Some(directory) = &command.working_dir {
            put("working_dir", directory.as_os_str());
        }
        if let Some((soft, hard)) = command.nofile {
            put("nofile", format!("{soft} {hard}").as_ref());
        }
        for (name, limit) in [("nproc", command.nproc), ("core", command.core)] {
            if let Some(limit) = limit {
                put(name, limit.to_string().as_ref());
            }
        }
        if let Some(nice) = command.nice {
            put("nice", nice.to_string().as_ref());
        }
        if command.no_new_privileges {
            put("no_new_privileges", "1".as_ref());
        }
        put("stop_signal", self.stop.signal.as_raw().to_string().as_ref());
        put("stop_timeout", millis(self.stop.timeout).to_string().as_ref());
        put("log_size", self.log.size.to_string().as_ref());
        put("log_kept", self.log.kept.to_string().as_ref());
        put("log_folder", self.log.folder.as_os_str());
        put("log_quota", self.log.quota.to_string().as_ref());
        if let Some(cgroup) = &self.cgroup {
            put("cgroup", cgroup.path.as_os_str());
            if let Some(memory) = cgroup.memory {
                put("cgroup_memory", memory.to_string().as_ref());
            }
            if let Some(percent) = cgroup.cpu_percent {
                put("cgroup_cpu", percent.to_string().as_ref());
            }
        }
        put("end", "".as_ref());
        out
    }

    /// Reads what [`Order::encode`] wrote.
    ///
    /// # Errors
    /// [`InvalidOrder`] when an entry is missing, unknown, or cannot be read.
    pub fn decode(bytes: &[u8]) -> Result<Self, InvalidOrder> {
        let mut order = Self::empty();
        let (mut memory, mut cpu, mut ended) = (None, None, false);
        for entry in bytes.split_inclusive(|byte| *byte == 0) {
            let entry = entry.strip_suffix(&[0]).ok_or(InvalidOrder("it was cut off"))?;
            if ended {
                return Err(InvalidOrder("something follows its end"));
            }
            let at = entry.iter().position(|byte| *byte == b'=').ok_or(InvalidOrder("an entry has no name"))?;
            let (name, value) = (&entry[..at], &entry[at + 1..]);
            match name {
                b"cgroup_memory" => memory = Some(number(value)?),
                b"cgroup_cpu" => cpu = Some(number(value)?),
                b"end" => ended = true,
                _ => order.take(name, value)?,
            }
        }
        if let Some(cgroup) = &mut order.cgroup {
            (cgroup.memory, cgroup.cpu_percent) = (memory, cpu);
        }
        let complete = ended && !order.instance.is_empty() && order.command.program.is_absolute();
        if complete { Ok(order) } else { Err(InvalidOrder("it is not complete")) }
    }

    fn empty() -> Self {
        Self {
            instance: String::new(),
            command: Command::default(),
            stop: Stop { signal: Signal::TERM, timeout: Duration::ZERO },
            log: LogBounds { size: u64::MAX, kept: 0, folder: PathBuf::new(), quota: u64::MAX },
            cgroup: None,
        }
    }

    fn take(&mut self, name: &[u8], value: &[u8]) -> Result<(), InvalidOrder> {
        let os = || OsString::from_vec(value.to_vec());
        let command = &mut self.command;
        match name {
            b"instance" => self.instance = text(value)?.to_owned(),
            b"program" => command.program = os().into(),
            b"fallback" => command.fallbacks.push(os().into()),
            b"arg" => command.args.push(os()),
            b"env" => {
                let at = value.iter().position(|byte| *byte == b'=').ok_or(InvalidOrder("a variable has no name"))?;
                let part = |bytes: &[u8]| OsString::from_vec(bytes.to_vec());
                command.env.push((part(&value[..at]), part(&value[at + 1..])));
            }
            b"directory" => command.directory = os().into(),
            b"working_dir" => command.working_dir = Some(os().into()),
            b"user" => command.user = Some(user(value)?),
            b"nofile" => {
                let (soft, hard) = text(value)?.split_once(' ').ok_or(InvalidOrder("a limit is no pair"))?;
                command.nofile = Some((number(soft.as_bytes())?, number(hard.as_bytes())?));
            }
            b"nproc" => command.nproc = Some(number(value)?),
            b"core" => command.core = Some(number(value)?),
            b"nice" => command.nice = Some(number(value)?),
            b"no_new_privileges" => command.no_new_privileges = true,
            b"stop_signal" => self.stop.signal = signal(number(value)?)?,
            b"stop_timeout" => self.stop.timeout = Duration::from_millis(number(value)?),
            b"log_size" => self.log.size = number(value)?,
            b"log_kept" => self.log.kept = number(value)?,
            b"log_folder" => self.log.folder = os().into(),
            b"log_quota" => self.log.quota = number(value)?,
            b"cgroup" => self.cgroup = Some(Cgroup { path: os().into(), memory: None, cpu_percent: None }),
            _ => return Err(InvalidOrder("it has an entry that is not known")),
        }
        Ok(())
    }
}

fn text(value: &[u8]) -> Result<&str, InvalidOrder> {
    std::str::from_utf8(value).map_err(|_| InvalidOrder("a text is not UTF-8"))
}

fn number<T: std::str::FromStr>(value: &[u8]) -> Result<T, InvalidOrder> {
    text(value)?.parse().map_err(|_| InvalidOrder("a number cannot be read"))
}

fn user(value: &[u8]) -> Result<User, InvalidOrder> {
    let mut ids = text(value)?.split(' ').map(|id| number(id.as_bytes()));
    let mut next = || ids.next().unwrap_or(Err(InvalidOrder("a user has no group")));
    let (uid, gid) = (next()?, next()?);
    Ok(User { uid, gid, groups: ids.collect::<Result<_, _>>()? })
}

fn signal(number: i32) -> Result<Signal, InvalidOrder> {
    Signal::from_named_raw(number).ok_or(InvalidOrder("a signal is not known"))
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// How a command that is run beside an instance came out, as `rug-shim probe` says: one line, and after that the end of its output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It ended like that.
    Ended(EndCause),
    /// It took too long and was killed.
    TimedOut,
    /// It could not be run; why follows.
    NotRun,
}

impl Verdict {
    /// The verdict as one line.
    #[must_use]
    pub fn encode(self) -> String {
        match self {
            Self::Ended(EndCause::Exit(status)) => format!("exit {status}\n"),
            Self::Ended(EndCause::Signal(number)) => format!("signal {number}\n"),
            Self::TimedOut => "timed out\n".to_owned(),
            Self::NotRun => "not run\n".to_owned(),
        }
    }

    /// Reads what a shim wrote: the verdict, and the output. `None` for anything else.
    #[must_use]
    pub fn decode(answer: &[u8]) -> Option<(Self, &[u8])> {
        let end = answer.iter().position(|byte| *byte == b'\n')?;
        let (line, output) = (std::str::from_utf8(&answer[..end]).ok()?, &answer[end + 1..]);
        let verdict = match line.split_once(' ')? {
            ("timed", "out") => Self::TimedOut,
            ("not", "run") => Self::NotRun,
            ("exit", status) => Self::Ended(EndCause::Exit(status.parse().ok()?)),
            ("signal", number) => Self::Ended(EndCause::Signal(number.parse().ok()?)),
            _ => return None,
        };
        Some((verdict, output))
    }
}

/// What a shim answers its worker, once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The main process runs, or has run.
    Started {
        /// The main process.
        main: ProcessId,
        /// The shim.
        shim: ProcessId,
    },
    /// Nothing was started, and why.
    Failed(String),
}

impl Answer {
    /// The answer as one line.
    #[must_use]
    pub fn encode(&self) -> String {
        match self {
            Self::Started { main, shim } => format!("started {main} {shim}\n"),
            Self::Failed(text) => format!("failed {}\n", text.replace(['\n', '\r'], " ")),
        }
    }

    /// Reads what [`Answer::encode`] wrote. `None` for anything else, such as half a line of a shim that was killed.
    #[must_use]
    pub fn decode(line: &str) -> Option<Self> {
        let (word, rest) = line.strip_suffix('\n')?.split_once(' ')?;
        match word {
            "started" => {
                let (main, shim) = rest.split_once(' ')?;
                Some(Self::Started { main: main.parse().ok()?, shim: shim.parse().ok()? })
            }
            "failed" => Some(Self::Failed(rest.to_owned())),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order() -> Order {
        Order {
            instance: "a-0-1".into(),
            command: Command {
                program: "/bin/sh".into(),
                args: vec!["-c".into(), "a=b\nc".into(), "".into()],
                env: vec![("A".into(), "x=y".into()), ("B".into(), "".into())],
                directory: "/tmp".into(),
                user: Some(User { uid: 7, gid: 8, groups: vec![9, 10] }),
                working_dir: Some("/srv".into()),
                nofile: Some((1024, 4096)),
                fallbacks: vec!["/usr/bin/x".into()],
                nproc: Some(70),
                core: Some(0),
                nice: Some(-5),
                no_new_privileges: true,
            },
            stop: Stop { signal: Signal::INT, timeout: Duration::from_millis(1500) },
            log: LogBounds { size: 10, kept: 3, folder: "/x".into(), quota: 100 },
            cgroup: Some(Cgroup { path: "/sys/fs/cgroup/a".into(), memory: Some(1 << 20), cpu_percent: Some(150) }),
        }
    }

    #[test]
    fn an_order_is_read_as_it_was_written() {
        assert_eq!(Order::decode(&order().encode()), Ok(order()));
        let plain = Order { command: Command { program: "/x".into(), ..Command::default() }, cgroup: None, ..order() };
        assert_eq!(Order::decode(&plain.encode()), Ok(plain));
    }

    #[test]
    fn what_is_no_whole_order_starts_nothing() {
        let bytes = order().encode();
        for length in 0..bytes.len() {
            assert!(Order::decode(&bytes[..length]).is_err(), "{length}");
        }
        assert!(Order::decode(&[&bytes[..], b"arg=x\0"].concat()).is_err());
        assert!(Order::decode(&[b"unknown=1\0", &bytes[..]].concat()).is_err());
    }

    #[test]
    fn an_order_shows_neither_arguments_nor_environment() {
        let text = format!("{:?}", order());
        assert!(!text.contains("x=y") && !text.contains("a=b"), "{text}");
    }

    #[test]
    fn a_verdict_is_followed_by_output() {
        for verdict in
            [Verdict::Ended(EndCause::Exit(1)), Verdict::Ended(EndCause::Signal(9)), Verdict::TimedOut, Verdict::NotRun]
        {
            let answer = [verdict.encode().as_bytes(), b"exit 0\n\xff"].concat();
            assert_eq!(Verdict::decode(&answer), Some((verdict, &b"exit 0\n\xff"[..])));
        }
        for cut in [&b"exit 1"[..], b"exit x\n", b"\n", b"timed\n", b"\xff 1\n"] {
            assert_eq!(Verdict::decode(cut), None);
        }
    }

    #[test]
    fn an_answer_is_one_line() {
        let id = |pid| ProcessId { pid, start_ticks: 9 };
        let started = Answer::Started { main: id(5), shim: id(4) };
        assert_eq!(Answer::decode(&started.encode()), Some(started.clone()));
        assert_eq!(Answer::decode(started.encode().trim_end()), None, "half a line");
        let failed = Answer::Failed("two\nlines".into());
        assert_eq!(Answer::decode(&failed.encode()), Some(Answer::Failed("two lines".into())));
    }
}
