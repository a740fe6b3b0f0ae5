//! Commands that operators run in instances: by a shim of their own, as the instance is run.
//!
//! The shim ends a command at the end of the lease by itself, of which it is told as the lease is extended. Whatever else ends the right to run it is
//! looked at here: the grant, and the instance.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdStream;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use common::execution::{ExecEnd, MAX_PIECE};
use shim::channel::{Frames, FromShim, ToShim, WINDOW};
use shim::order::{self, Order, Verdict};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::process::Child;
use tokio::time::{Interval, MissedTickBehavior, interval};
use worker_core::desired::Desired;
use worker_core::instance::Instance;

use super::launch::{self, Launch};
use super::record::Folder;
use super::shims::{self, end_cause};
use super::{Inner, off_thread, system};
use crate::drivers::execution::{ExecInput, ExecOutput, Execution, ExecutionEnds};
use crate::drivers::{Error, Wanted};
use crate::gate::Permit;

/// How often it is looked whether the command may still run.
const LOOK: Duration = Duration::from_millis(100);
/// How long a shim may take to end what it has started.
const END_WAIT: Duration = Duration::from_secs(5);

impl Inner {
    /// The order for a command in an instance, and the folder of that.
    fn order_within(
        &self,
        permit: &Permit,
        instance: &Instance,
        desired: &Desired,
        command: &[String],
        limit: Duration,
    ) -> Result<(Folder, Order), Error> {
        let (ordinal, attempt, boot_digest) = (instance.ordinal, instance.attempt, instance.boot_digest.as_str());
        let wanted = Wanted { ordinal, attempt, desired, boot_digest, beside: None };
        let order = launch::Order::new(permit.appliance(), &wanted)?;
        let folder = self.folder_of(permit.appliance(), ordinal, attempt);
        let launch = Launch::within(&order, &self.config, instance.addresses.service, command)?;
        let mut told = launch.order_beside(&order, &folder, &self.config, limit);
        let group = folder.shim_state(&order.instance()).and_then(|state| state.cgroup);
        told.cgroup = group.map(|path| order::Cgroup { path, memory: None, cpu_percent: None });
        Ok((folder, told))
    }
}

/// Runs a command in an instance.
pub(super) async fn execute(
    inner: &Arc<Inner>,
    permit: &Permit,
    instance: &Instance,
    desired: &Desired,
    command: &[String],
    limit: Duration,
) -> Result<Execution, Error> {
    let (folder, order) = {
        let (inner, permit, instance) = (Arc::clone(inner), permit.clone(), instance.clone());
        let (desired, command) = (desired.clone(), command.to_vec());
        off_thread(move || inner.order_within(&permit, &instance, &desired, &command, limit)).await?
    };
    let binary = &inner.config.shim_binary;
    let failed = |error: io::Error| Error::Failed(format!("cannot start {}: {error}", binary.display()));
    let (own, its) = StdStream::pair().map_err(failed)?;
    own.set_nonblocking(true).map_err(failed)?;
    let (read, write) = UnixStream::from_std(own).map_err(failed)?.into_split();
    let mut shim = Command::new(binary);
    shim.arg("exec").arg(&order.instance).current_dir(folder.path()).env_clear();
    shim.stdin(shims::orders(&order).map_err(failed)?).stdout(OwnedFd::from(its)).stderr(Stdio::null());
    // As the last thing before anything runs. From here on the shim knows the lease by itself.
    permit.check()?;
    let child = tokio::process::Command::from(shim).spawn().map_err(failed)?;
    let (execution, ends) = Execution::new();
    let mut look = interval(LOOK);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let running = Running {
        permit: permit.clone(),
        instance: instance.clone(),
        child,
        ends,
        read,
        write,
        frames: Frames::default(),
        look,
        lease: 0,
        on_their_way: 0,
        input_ended: false,
    };
    // Ends with the execution that is handed over, or with the command.
    tokio::spawn(running.run());
    Ok(execution)
}

/// A command that runs, and its shim.
struct Running {
    permit: Permit,
    instance: Instance,
    child: Child,
    ends: ExecutionEnds,
    read: OwnedReadHalf,
    write: OwnedWriteHalf,
    frames: Frames,
    look: Interval,
    /// Until when the shim knows the lease to stand.
    lease: u64,
    /// Bytes of input that the command has not taken.
    on_their_way: usize,
    input_ended: bool,
}

impl Running {
    async fn run(mut self) {
        let end = self.follow().await;
        let Self { child, ends, read, write, .. } = self;
        // Without these the shim ends the command.
        drop((read, write));
        reap(child).await;
        let _ = ends.output.send(ExecOutput::Ended(end)).await;
    }

    async fn follow(&mut self) -> ExecEnd {
        loop {
            match self.step().await {
                Ok(None) => {}
                Ok(Some(end)) => return end,
                Err(_) => return ExecEnd::Stopped("its shim has ended before it".to_owned()),
            }
        }
    }

    /// Waits for one thing that happens, and does what follows. The end, if it was that.
    async fn step(&mut self) -> io::Result<Option<ExecEnd>> {
        while let Some(said) = self.next_frame()? {
            let output = match said {
                FromShim::Stdout(data) => ExecOutput::Stdout(data),
                FromShim::Stderr(data) => ExecOutput::Stderr(data),
                FromShim::Taken(bytes) => {
                    self.on_their_way = self.on_their_way.saturating_sub(bytes as usize);
                    continue;
                }
                FromShim::Ended(verdict, text) => return Ok(Some(end_of(verdict, text))),
                FromShim::LeaseOver => return Ok(Some(ExecEnd::Stopped("the lease of its worker is over".to_owned()))),
            };
            if let Some(end) = self.pass_on(output).await? {
                return Ok(Some(end));
            }
        }
        let takes_input = !self.input_ended && self.on_their_way + MAX_PIECE <= WINDOW;
        let mut chunk = [0; 16 << 10];
        tokio::select! {
            length = self.read.read(&mut chunk) => match length? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                length => self.frames.add(&chunk[..length]),
            },
            input = self.ends.input.recv(), if takes_input => match input {
                Some(ExecInput::Data(data)) => {
                    self.on_their_way += data.len();
                    self.tell(&ToShim::Input(data)).await;
                }
                Some(ExecInput::Ends) | None => {
                    self.input_ended = true;
                    self.tell(&ToShim::InputEnds).await;
                }
            },
            _ = self.look.tick() => return self.look().await,
            () = self.ends.output.closed() => return Ok(Some(ExecEnd::Stopped("nobody waits for it".to_owned()))),
        }
        Ok(None)
    }

    /// Hands output over, however long that takes: meanwhile only the right to run it is looked at.
    async fn pass_on(&mut self, output: ExecOutput) -> io::Result<Option<ExecEnd>> {
        let room = loop {
            let sender = self.ends.output.clone();
            tokio::select! {
                room = sender.reserve_owned() => match room {
                    Ok(room) => break room,
                    Err(_) => return Ok(Some(ExecEnd::Stopped("nobody waits for it".to_owned()))),
                },
                _ = self.look.tick() => if let Some(end) = self.look().await? {
                    return Ok(Some(end));
                },
            }
        };
        room.send(output);
        Ok(None)
    }

    fn next_frame(&mut self) -> io::Result<Option<FromShim>> {
        self.frames.next_from_shim().map_err(|_| io::ErrorKind::InvalidData.into())
    }

    /// Whether it may still run; tells the shim for how long.
    async fn look(&mut self) -> io::Result<Option<ExecEnd>> {
        if let Err(shut) = self.permit.check() {
            return Ok(Some(ExecEnd::Stopped(shut.to_string())));
        }
        let runs = system::process_of(&self.instance.handle).is_some_and(|id| id.is_alive());
        if !runs {
            return Ok(Some(ExecEnd::Stopped("its instance has ended".to_owned())));
        }
        let lease = self.permit.lease_until().as_nanos();
        if lease > self.lease {
            self.lease = lease;
            self.tell(&ToShim::Lease(lease)).await;
        }
        Ok(None)
    }

    /// A shim that hears nothing any more has ended. What it said before that is still to be read, and tells how.
    async fn tell(&mut self, message: &ToShim) {
        if self.write.write_all(&message.encode()).await.is_err() {
            self.input_ended = true;
        }
    }
}

fn end_of(verdict: Verdict, text: String) -> ExecEnd {
    match verdict {
        Verdict::Ended(cause) => ExecEnd::Command(end_cause(cause)),
        Verdict::TimedOut => ExecEnd::TimedOut,
        Verdict::NotRun => ExecEnd::NotRun(text),
    }
}

/// Waits for a shim that is to end, and ends one that does not with all that it has started.
async fn reap(mut child: Child) {
    let pid = child.id();
    if tokio::time::timeout(END_WAIT, child.wait()).await.is_err() {
        let _ = tokio::task::spawn_blocking(move || shims::give_up(pid, "its shim does not end")).await;
        let _ = child.wait().await;
    }
}
