//! `rugctl exec`: a command in an instance. What it prints goes out as it is, as of a command that is run here, and its exit status is that of
//! `rugctl`.

use std::io::Read as _;
use std::time::Duration;

use clap::Args;
use proto::admin::v1;
use proto::convert::scalar::duration_to_wire;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use v1::exec_end::How;
use v1::exec_request::Part as Asked;
use v1::exec_response::Part as Said;

use crate::client::by_id;
use crate::commands::CommandContext;
use crate::commands::appliance::One;
use crate::error::{Exit, Failure};

/// Bytes of input in one message.
const PIECE: usize = 16 << 10;
/// What a shell adds to the number of the signal that ended a command.
const BY_SIGNAL: i32 = 128;

/// Arguments.
#[derive(Args, Debug)]
pub(crate) struct ExecArgs {
    #[command(flatten)]
    one: One,
    /// Which instance, counted from 0
    #[arg(long, value_name = "N", default_value_t = 0)]
    instance: u32,
    /// Pass standard input on
    #[arg(short = 'i', long)]
    stdin: bool,
    /// Reason, for the audit trail, in which the command stands
    #[arg(long, default_value = "", hide_default_value = true)]
    reason: String,
    /// Program and arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<String>,
}

/// Runs the command. `--timeout` is how long it may take, an hour without.
pub(crate) async fn run(context: &CommandContext, args: &ExecArgs) -> Result<(), Failure> {
    // Asked first, so that a server that answers is found: a call that runs something is not repeated with another one.
    let named = args.one.find(context).await?;
    let start = v1::ExecStart {
        appliance: Some(by_id(&named.id)),
        instance: args.instance,
        command: args.command.clone(),
        timeout: context.timeout.map(duration_to_wire),
        reason: args.reason.clone(),
    };
    let (requests, stream) = mpsc::channel(2);
    let _ = requests.send(request(Asked::Start(start))).await;
    if args.stdin {
        tokio::task::spawn_blocking(move || pass_input(&requests));
    } else {
        let _ = requests.send(request(Asked::StdinEnds(true))).await;
    }
    let mut answers = context.client.exec(ReceiverStream::new(stream)).await?;
    loop {
        let part = answers.message().await.map_err(Failure::from)?.and_then(|answer| answer.part);
        match part {
            Some(Said::Begun(_)) => {}
            Some(Said::Stdout(data)) => write(&mut std::io::stdout().lock(), &data)?,
            Some(Said::Stderr(data)) => write(&mut std::io::stderr().lock(), &data)?,
            Some(Said::Ended(v1::ExecEnd { how })) => return ended(how, context.timeout),
            None => return Err(Failure::failed("the server ended the call before the command had ended")),
        }
    }
}

fn request(part: Asked) -> v1::ExecRequest {
    v1::ExecRequest { part: Some(part) }
}

/// Passes standard input on, to its end. Blocks; a read that waits is left alone when the process ends.
fn pass_input(requests: &mpsc::Sender<v1::ExecRequest>) {
    let mut input = std::io::stdin().lock();
    loop {
        let mut piece = vec![0; PIECE];
        let length = match input.read(&mut piece) {
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            // What cannot be read any more has ended.
            read => read.unwrap_or(0),
        };
        piece.truncate(length);
        let part = if length == 0 { Asked::StdinEnds(true) } else { Asked::Stdin(piece) };
        if requests.blocking_send(request(part)).is_err() || length == 0 {
            return;
        }
    }
}

fn write(out: &mut impl std::io::Write, data: &[u8]) -> Result<(), Failure> {
    Ok(out.write_all(data).and_then(|()| out.flush())?)
}

fn ended(how: Option<How>, limit: Option<Duration>) -> Result<(), Failure> {
    match how {
        Some(How::Status(0)) => Ok(()),
        Some(How::Status(status)) => Err(Failure::with_status(status, "")),
        Some(How::Signal(number)) => {
            Err(Failure::with_status(BY_SIGNAL + number, format!("the command was ended by signal {number}")))
        }
        Some(How::TimedOut(_)) => {
            let limit = limit.map_or_else(|| "1h".to_owned(), |limit| format!("{limit:?}"));
            Err(Failure::failed(format!(
                "the command did not end within {limit}, and was killed; --timeout allows more"
            )))
        }
        Some(How::Stopped(why)) => Err(Failure::failed(format!("the command was killed: {why}"))),
        Some(How::NotRun(why)) => Err(Failure::failed(format!("the command cannot be run: {why}"))),
        None => Err(Failure::new(Exit::Failed, "the command has ended in a way that this version does not know")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exit_status_is_that_of_the_command() {
        let status = |how| ended(Some(how), None).map_or_else(|failure| failure.status(), |()| 0);
        assert_eq!(status(How::Status(0)), 0);
        assert_eq!(status(How::Status(7)), 7);
        assert_eq!(status(How::Signal(9)), 137);
        assert_eq!(status(How::TimedOut(true)), 1);
        assert_eq!(status(How::Stopped("the lease has run out".into())), 1);
    }
}
