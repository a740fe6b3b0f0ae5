//! Becomes the command: gives the process it is in everything the command shall have and nothing that its worker happened to
//! have, then executes it.
//!
//! A process of its own until then, so that all of this is done by plain calls between `fork` and `exec` of nobody else.
//! Standard input is the order, standard output the pipe that says what went wrong (its end, without a word: nothing), and standard
//! error the log. A command that an operator runs has pipes for its input and output, whose numbers are arguments, and one as standard error.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, ExitCode};

use nix::sys::signal::SigSet;
use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};
use rustix::fs::Mode;
use rustix::process::{Resource, Rlimit, setpriority_process, setrlimit, setsid, umask};

use shim::order::{self, Order, User};

use crate::signals::default_dispositions;

/// What a shell answers for a command that cannot be run.
const CANNOT_RUN: u8 = 127;

pub(crate) fn run() -> ExitCode {
    let mut report = match rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdout(), 3) {
        Ok(report) => File::from(report),
        Err(_) => return ExitCode::from(CANNOT_RUN),
    };
    // Returns only when it failed.
    let problem = crate::read_order().and_then(|order| become_command(&order));
    let text = problem.err().unwrap_or_default();
    let _ = report.write_all(text.as_bytes());
    ExitCode::from(CANNOT_RUN)
}

fn become_command(order: &Order) -> Result<(), String> {
    let command = &order.command;
    let failed = |what: &str, error: &dyn std::fmt::Display| format!("{what}: {error}");
    let streams = std::env::args().nth(2).zip(std::env::args().nth(3));
    let set = match &streams {
        Some((input, output)) => streams_by_number(input, output),
        None => standard_streams(),
    };
    set.map_err(|error| failed("set up its standard streams", &error))?;
    set_up(command)?;
    let run = |program: &Path| {
        let mut program = Command::new(program);
        program.args(&command.args).env_clear().envs(command.env.iter().map(|(name, value)| (name, value))).exec()
    };
    // Each returns only when it failed.
    let error = run(&command.program);
    let mut refused = error.kind() == io::ErrorKind::PermissionDenied;
    for program in &command.fallbacks {
        if !refused {
            break;
        }
        refused = run(program).kind() == io::ErrorKind::PermissionDenied;
    }
    let user = command.user.as_ref().map(|user| format!(" as user {}", user.uid)).unwrap_or_default();
    Err(failed(&format!("run {}{user}", command.program.display()), &error))
}

/// Nothing to read, and both outputs to the log.
fn standard_streams() -> io::Result<()> {
    rustix::stdio::dup2_stdin(File::open("/dev/null")?)?;
    Ok(rustix::stdio::dup2_stdout(rustix::stdio::stderr())?)
}

/// The descriptors that these numbers are of. Opened anew, so that they are closed with all others that were inherited.
fn streams_by_number(input: &str, output: &str) -> io::Result<()> {
    let path = |number: &str| format!("/proc/self/fd/{number}");
    rustix::stdio::dup2_stdin(File::open(path(input))?)?;
    rustix::stdio::dup2_stdout(OpenOptions::new().write(true).open(path(output))?)?;
    for number in [input, output] {
        // Those that are open by these numbers are ours: the parent of this process has made them for it.
        let number = number.parse().map_err(|_| io::ErrorKind::InvalidInput)?;
        nix::unistd::close::<std::os::fd::RawFd>(number)?;
    }
    Ok(())
}

fn set_up(command: &order::Command) -> Result<(), String> {
    let failed = |what: &str, error: &dyn std::fmt::Display| format!("{what}: {error}");
    setsid().map_err(|error| failed("make a session", &error))?;
    default_dispositions();
    SigSet::empty().thread_set_mask().map_err(|error| failed("unblock signals", &error))?;
    umask(Mode::WGRP | Mode::WOTH);
    // A worker may be spared when memory is short; what it starts is not, and may not be able to say so.
    let _ = OpenOptions::new().write(true).open("/proc/self/oom_score_adj").and_then(|mut file| file.write_all(b"0"));
    match command.nice {
        Some(nice) => setpriority_process(None, nice).map_err(|error| failed("set its nice value", &error))?,
        // Getting it back to 0 may take a right that the worker does not have.
        None => drop(setpriority_process(None, 0)),
    }
    if let Some((soft, hard)) = command.nofile {
        let limit = Rlimit { current: Some(soft), maximum: Some(hard) };
        setrlimit(Resource::Nofile, limit).map_err(|error| failed("limit its descriptors", &error))?;
    }
    for (resource, what, limit) in
        [(Resource::Nproc, "processes", command.nproc), (Resource::Core, "core dumps", command.core)]
    {
        if let Some(limit) = limit {
            let limit = Rlimit { current: Some(limit), maximum: Some(limit) };
            setrlimit(resource, limit).map_err(|error| failed(&format!("limit its {what}"), &error))?;
        }
    }
    // Before it is another user, who may not be allowed to pass the folders above.
    std::env::set_current_dir(&command.directory)
        .map_err(|error| failed(&format!("enter {}", command.directory.display()), &error))?;
    if let Some(user) = &command.user {
        become_user(user).map_err(|error| failed(&format!("become user {}", user.uid), &error))?;
    }
    if let Some(directory) = &command.working_dir {
        std::env::set_current_dir(directory)
            .map_err(|error| failed(&format!("enter {}", directory.display()), &error))?;
    }
    if command.no_new_privileges {
        rustix::thread::set_no_new_privs(true).map_err(|error| failed("give up new privileges", &error))?;
    }
    Ok(())
}

fn become_user(user: &User) -> nix::Result<()> {
    let groups: Vec<Gid> = user.groups.iter().copied().map(Gid::from_raw).collect();
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    // These stand for "as it is", which would be root.
    if [user.uid, user.gid].contains(&u32::MAX) {
        return Err(nix::Error::EINVAL);
    }
    // So that it can open its output by a name, such as /dev/stdout. Where that fails it can still write to it.
    let owner = Some(rustix::fs::Uid::from_raw(user.uid));
    let _ = rustix::fs::fchown(rustix::stdio::stderr(), owner, None);
    let _ = rustix::fs::fchown(rustix::stdio::stdout(), owner, None);
    setgroups(&groups)?;
    setresgid(gid, gid, gid)?;
    setresuid(uid, uid, uid)
}
