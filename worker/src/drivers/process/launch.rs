//! What is run for an instance: program, arguments, environment and ports, checked before anything is started so that
//! a mistake in a spec gets an answer that names it.

use std::collections::{BTreeMap, VecDeque};
use std::env;
use std::ffi::OsString;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use common::ApplianceId;
use common::kind::{LaunchRecipe, Listen, Program, StopRecipe};
use rustix::process::Signal;
use shim::order::{LogBounds, Stop};
use worker_core::instance::Instance;

use super::config::Config;
use super::record::Folder;
use super::system::{self, INSTANCE_VARIABLE, STATE_VARIABLE};
use super::users::Identity;
use super::variables;
use crate::drivers::{Error, Wanted};

/// Variables that, beside [`INSTANCE_VARIABLE`] and [`STATE_VARIABLE`], let an instance be adopted without its record.
pub(super) const DIGEST_VARIABLE: &str = "RUG_BOOT_DIGEST";
pub(super) const ADDRESS_VARIABLE: &str = "RUG_ADDRESS";

/// Ports picked lately, so that instances started at the same time do not get the same one before they listen on it.
static PICKED: Mutex<VecDeque<u16>> = Mutex::new(VecDeque::new());
/// How many picked ports are remembered: more than any host starts at a time.
const PICKED_REMEMBERED: usize = 1024;

/// Everything an instance is started from; an owned copy, because starting goes on when its caller is cancelled.
#[derive(Clone, Debug)]
pub(super) struct Order {
    pub(super) appliance: ApplianceId,
    pub(super) ordinal: u16,
    pub(super) attempt: u32,
    pub(super) name: String,
    pub(super) boot_digest: String,
    /// Attempt whose service it takes over.
    pub(super) beside: Option<u32>,
    pub(super) recipe: LaunchRecipe,
    pub(super) stop: StopRecipe,
}

impl Order {
    pub(super) fn new(appliance: ApplianceId, wanted: &Wanted<'_>) -> Result<Self, Error> {
        if !wanted.desired.spec.ports.is_empty() {
            let text =
                "the process driver has no networks: its instances use those of the host, and `ports` must be empty";
            return Err(Error::Refused(text.into()));
        }
        if wanted.desired.spec.pod.is_some() {
            return Err(Error::Refused("the process driver makes no pods, and `pod` must be absent".into()));
        }
        let recipe = wanted.desired.spec.kind.launch(wanted.ordinal);
        Ok(Self {
            appliance,
            ordinal: wanted.ordinal,
            attempt: wanted.attempt,
            name: wanted.desired.name.to_string(),
            boot_digest: wanted.boot_digest.to_owned(),
            beside: wanted.beside,
            recipe: recipe.map_err(|overflow| Error::Refused(overflow.to_string()))?,
            stop: wanted.desired.spec.kind.stop(),
        })
    }

    /// Name of the instance.
    pub(super) fn instance(&self) -> String {
        Instance::name(self.appliance, self.ordinal, self.attempt)
    }
}

/// How an instance is asked to end, and how long it may take.
pub(super) fn stop(recipe: StopRecipe, config: &Config) -> Stop {
    let signal = recipe.signal.and_then(Signal::from_named_raw).unwrap_or(Signal::TERM);
    Stop { signal, timeout: recipe.timeout.unwrap_or(config.stop_grace) }
}

/// An order that can be carried out.
pub(super) struct Launch {
    /// The program, and others of that name further on in `PATH`.
    programs: Vec<PathBuf>,
    args: Vec<OsString>,
    variables: BTreeMap<String, String>,
    /// Variables out of files, which the ones above win over.
    from_files: Vec<(String, String)>,
    /// Who it runs as.
    identity: Identity,
    /// Where its service will be.
    pub(super) address: Option<SocketAddr>,
    /// Port that was picked for it.
    pub(super) picked_port: Option<u16>,
}

impl Launch {
    /// Looks everything up and checks it. `kept_port` is the port the ordinal had before, `predecessor` the folder of the instance
    /// that hands its service over.
    ///
    /// # Errors
    /// [`Error::Refused`] with what is wrong with the recipe, or with the host.
    pub(super) fn plan(
        order: &Order,
        folder: &Folder,
        config: &Config,
        kept_port: Option<u16>,
        predecessor: Option<&Folder>,
    ) -> Result<Self, Error> {
        let recipe = &order.recipe;
        let (programs, mut args, identity) = match &recipe.program {
            Program::Command(command) => {
                let identity = Identity::of(&recipe.execution, config)?;
                (find_program(command, env::var_os("PATH").as_deref())?, Vec::new(), identity)
            }
            // Our own program, which runs nothing that a specification names.
            Program::Appliance => {
                let identity = Identity::default();
                let args = appliance_args(order, folder, predecessor, config.appliance_metrics);
                (vec![config.appliance_binary.clone()], args, identity)
            }
        };
        let other_user = identity.user.is_some();
        let from_files = variables::read(&recipe.execution.env_from, &config.env_folders, other_user)?;
        // Checked here even where the instance binds them only once it is configured: a port that is taken is better
        // reported before a process is started for it.
        let (address, picked_port) = match &recipe.listen {
            Listen::At(addresses) => {
                // Those that its predecessor listens at it gets from that.
                if predecessor.is_none() {
                    addresses.iter().try_for_each(|address| check_free(*address))?;
                }
                (addresses.first().copied(), None)
            }
            Listen::Nowhere => (None, None),
            Listen::AnyPort => {
                let loopback = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
                let kept = kept_port.map(loopback).filter(|address| check_free(*address).is_ok());
                let address = kept.map_or_else(|| pick_port().map(loopback), Ok)?;
                (Some(address), Some(address.port()))
            }
        };
        let fill = |text: &str| substitute(text, order, address.map(|address| address.port()));
        args.extend(recipe.args.iter().map(|arg| OsString::from(fill(arg))));
        let variables = recipe.env.iter().map(|(name, value)| (name.clone(), fill(value))).collect();
        Ok(Self { programs, args, variables, from_files, identity, address, picked_port })
    }

    /// A command that is run beside an instance which serves at `address`: as the same user, with the same variables.
    ///
    /// # Errors
    /// As with [`Launch::plan`].
    pub(super) fn beside(
        order: &Order,
        config: &Config,
        address: Option<SocketAddr>,
        command: &[String],
    ) -> Result<Self, Error> {
        let execution = &order.recipe.execution;
        let identity = Identity::of(execution, config)?;
        let from_files = variables::read(&execution.env_from, &config.env_folders, identity.user.is_some())?;
        let fill = |text: &str| substitute(text, order, address.map(|address| address.port()));
        let mut words = command.iter().map(|word| fill(word));
        let programs = find_program(&words.next().unwrap_or_default(), env::var_os("PATH").as_deref())?;
        let args = words.map(OsString::from).collect();
        let variables = order.recipe.env.iter().map(|(name, value)| (name.clone(), fill(value))).collect();
        Ok(Self { programs, args, variables, from_files, identity, address, picked_port: None })
    }

    /// A command that an operator runs in an instance which serves at `address`: its words are taken as they are.
    ///
    /// # Errors
    /// As with [`Launch::plan`].
    pub(super) fn within(
        order: &Order,
        config: &Config,
        address: Option<SocketAddr>,
        command: &[String],
    ) -> Result<Self, Error> {
        let Some((program, words)) = command.split_first() else {
            return Err(Error::Refused("there is no command".into()));
        };
        let launch = Self::beside(order, config, address, std::slice::from_ref(program))?;
        // The reference appliance is the worker's own program and runs as the worker does. What somebody names runs so only where that may be so.
        if matches!(order.recipe.program, Program::Appliance) && launch.user().is_some() {
            let text = "its instances run as the worker's user, which `process.default_user` keeps commands from";
            return Err(Error::Refused(text.into()));
        }
        Ok(Self { args: words.iter().map(OsString::from).collect(), ..launch })
    }

    /// The user it runs as, if that is not the worker's.
    pub(super) const fn user(&self) -> Option<&shim::order::User> {
        self.identity.user.as_ref()
    }

    /// What its shim is told.
    pub(super) fn order(&self, order: &Order, folder: &Folder, config: &Config) -> shim::order::Order {
        let execution = &order.recipe.execution;
        let limits = execution.limits;
        // What the worker may execute another user perhaps may not.
        let mut programs = self.programs.iter().take(if self.user().is_some() { usize::MAX } else { 1 }).cloned();
        shim::order::Order {
            instance: order.instance(),
            command: shim::order::Command {
                program: programs.next().unwrap_or_default(),
                fallbacks: programs.collect(),
                args: self.args.clone(),
                env: self.environment(order, &config.state_dir),
                directory: folder.work(),
                working_dir: execution.working_dir.as_ref().map(PathBuf::from),
                user: self.identity.user.clone(),
                nofile: limits.nofile.map(|most| (most, most)).or_else(inherited_descriptor_limit),
                nproc: limits.nproc,
                core: limits.core,
                nice: execution.nice.map(i32::from),
                no_new_privileges: execution.no_new_privileges,
            },
            stop: stop(order.stop, config),
            log: LogBounds {
                size: config.log_limit,
                kept: config.log_files,
                folder: folder.all_instances().to_owned(),
                quota: config.log_quota,
            },
            cgroup: None,
        }
    }

    /// What the shim is told that runs it beside an instance. Without the variables by which instances are found: it is none.
    pub(super) fn order_beside(
        &self,
        order: &Order,
        folder: &Folder,
        config: &Config,
        limit: Duration,
    ) -> shim::order::Order {
        let mut told = self.order(order, folder, config);
        told.command.env.retain(|(name, _)| name != INSTANCE_VARIABLE && name != STATE_VARIABLE);
        told.stop.timeout = limit;
        told
    }

    fn environment(&self, order: &Order, state_dir: &Path) -> Vec<(OsString, OsString)> {
        let inherited = ["PATH", "HOME", "LANG"].into_iter();
        let mut all: BTreeMap<OsString, OsString> =
            inherited.filter_map(|name| Some((name.into(), env::var_os(name)?))).collect();
        if let Some(home) = &self.identity.home {
            all.insert("HOME".into(), home.into());
        }
        if let Some(name) = &self.identity.name {
            all.extend([("USER".into(), name.into()), ("LOGNAME".into(), name.into())]);
        }
        let given = self.from_files.iter().map(|(name, value)| (name, value)).chain(&self.variables);
        all.extend(given.map(|(name, value)| (name.into(), value.into())));
        let mut set = |name: &str, value: &str| all.insert(name.into(), value.into());
        set(INSTANCE_VARIABLE, &order.instance());
        set(DIGEST_VARIABLE, &order.boot_digest);
        set("RUG_APPLIANCE", &order.appliance.to_string());
        set("RUG_NAME", &order.name);
        set("RUG_ORDINAL", &order.ordinal.to_string());
        if let Some(address) = self.address {
            set(ADDRESS_VARIABLE, &address.to_string());
            set("RUG_PORT", &address.port().to_string());
        }
        all.insert(STATE_VARIABLE.into(), state_dir.into());
        all.into_iter().collect()
    }
}

/// The limit of descriptors that the worker was started with: it has raised its own.
fn inherited_descriptor_limit() -> Option<(u64, u64)> {
    let limit = runtime::program::inherited_descriptor_limit();
    Some((limit.current?, limit.maximum.unwrap_or(u64::MAX)))
}

/// What the reference appliance is told about itself.
fn appliance_args(order: &Order, folder: &Folder, predecessor: Option<&Folder>, has_metrics: bool) -> Vec<OsString> {
    let (path, secret, name) = (folder.path().into(), folder.secret_file().into(), order.instance().into());
    let management = ["--management".into(), "127.0.0.1:0".into(), "--secret-file".into(), secret];
    let predecessor = predecessor.map(|predecessor| ["--predecessor".into(), predecessor.path().into()]);
    let own = ["--state-dir".into(), path].into_iter().chain(management).chain(["--name".into(), name]);
    let metrics = has_metrics.then(|| ["--metrics".into(), "127.0.0.1:0".into()]);
    own.chain(metrics.into_iter().flatten()).chain(predecessor.into_iter().flatten()).collect()
}

fn substitute(text: &str, order: &Order, port: Option<u16>) -> String {
    // None of the values can hold a brace, so one replacement never makes another.
    let text = port.map_or_else(|| text.to_owned(), |port| text.replace("{port}", &port.to_string()));
    text.replace("{ordinal}", &order.ordinal.to_string())
        .replace("{name}", &order.name)
        .replace("{id}", &order.appliance.to_string())
}

/// Finds a program as a shell would: a path as it is, a bare name in the folders of `path`, from all of them.
fn find_program(command: &str, path: Option<&std::ffi::OsStr>) -> Result<Vec<PathBuf>, Error> {
    if command.is_empty() {
        let text = "spec.custom.command is empty: the driver process has no images, whose own program could be run";
        return Err(Error::Refused(text.into()));
    }
    let executable =
        |file: &Path| file.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0);
    if command.contains('/') {
        let file = Path::new(command);
        return if !file.is_absolute() {
            Err(Error::Refused(format!("command `{command}` must be an absolute path or a bare name")))
        } else if executable(file) {
            Ok(vec![file.to_owned()])
        } else if file.exists() {
            Err(Error::Refused(format!("command `{command}` is not executable")))
        } else {
            Err(Error::Refused(format!("command `{command}` not found")))
        };
    }
    let candidates: Vec<PathBuf> =
        env::split_paths(path.unwrap_or_default()).filter(|d| d.is_absolute()).map(|d| d.join(command)).collect();
    let found: Vec<PathBuf> = candidates.iter().filter(|file| executable(file)).cloned().collect();
    match found.first() {
        Some(_) => Ok(found),
        None if candidates.iter().any(|file| file.is_file()) => {
            Err(Error::Refused(format!("command `{command}` is not executable")))
        }
        None => Err(Error::Refused(format!("command `{command}` not found"))),
    }
}

/// Checks that nobody listens at an address.
fn check_free(address: SocketAddr) -> Result<(), Error> {
    let port = address.port();
    match TcpListener::bind(address) {
        Ok(_) => Ok(()),
        Err(error) => Err(Error::Refused(match error.kind() {
            io::ErrorKind::AddrInUse => match system::port_holder(port) {
                Some(holder) => format!("port {port} is in use by {holder}"),
                None => format!("port {port} is in use"),
            },
            io::ErrorKind::AddrNotAvailable => format!("address {} is not one of this host", address.ip()),
            io::ErrorKind::PermissionDenied => format!("the worker may not listen on port {port}"),
            _ => format!("cannot listen on {address}: {error}"),
        })),
    }
}

fn pick_port() -> Result<u16, Error> {
    let mut picked = PICKED.lock().unwrap_or_else(PoisonError::into_inner);
    // The kernel picks at random among thousands, so a few tries find one that was not given out lately.
    for _ in 0..64 {
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .and_then(|listener| listener.local_addr())
            .map_err(|error| Error::Failed(format!("no free port: {error}")))?
            .port();
        if !picked.contains(&port) {
            if picked.len() == PICKED_REMEMBERED {
                picked.pop_front();
            }
            picked.push_back(port);
            return Ok(port);
        }
    }
    Err(Error::Failed("no free port".into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(result: Result<Vec<PathBuf>, Error>) -> String {
        match result {
            Err(Error::Refused(text)) => text,
            other => panic!("expected a refusal, got {other:?}"),
        }
    }

    #[test]
    fn programs_are_looked_up_like_a_shell_does_and_mistakes_are_named() {
        let path = Some(std::ffi::OsStr::new("/nowhere:/bin:/usr/bin"));
        assert!(find_program("sleep", path).expect("part of every system")[0].ends_with("sleep"));
        assert_eq!(refusal(find_program("no-such-thing", path)), "command `no-such-thing` not found");
        assert_eq!(refusal(find_program("/no/such/thing", path)), "command `/no/such/thing` not found");
        assert_eq!(refusal(find_program("/etc/passwd", path)), "command `/etc/passwd` is not executable");
        assert_eq!(refusal(find_program("./x", path)), "command `./x` must be an absolute path or a bare name");
    }

    #[test]
    fn a_port_in_use_is_refused_with_its_holder() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("bound");
        let text = check_free(address).expect_err("taken").to_string();
        let start = format!("port {} is in use by pid {}", address.port(), std::process::id());
        assert!(text.starts_with(&start), "{text}");
        drop(listener);
        check_free(address).expect("free again");
    }

    #[test]
    fn picked_ports_differ() {
        let first = pick_port().expect("a free port");
        assert!((0..20).all(|_| pick_port().expect("a free port") != first));
    }
}
