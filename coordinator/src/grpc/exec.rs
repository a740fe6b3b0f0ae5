//! `Appliances.Exec`: a command in an instance, from its first message to its end.
//!
//! Input and output go piece by piece: a message of the request is read once the command has taken the one before, and the owner is asked for output once
//! the client has taken the last. When the client goes away, or this coordinator leads no more, the response is dropped, and the worker told to end the
//! command. Where it cannot be told, its stream has ended, and with that the command.

use std::time::Duration;

use common::ApplianceId;
use common::appliance::FieldViolation;
use common::execution::{
    Bytes, ExecAnswer, ExecEnd, ExecStep, MAX_COMMAND_BYTES, MAX_COMMAND_WORDS, MAX_EXECUTION_TIME, MAX_PIECE,
};
use common::status::EndCause;
use common::text;
use futures::stream::{BoxStream, StreamExt};
use proto::admin::v1 as wire;
use proto::convert::scalar::duration_from_wire;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};
use wire::exec_request::Part as Asked;
use wire::exec_response::Part as Said;

use super::call::{Caller, reason};
use super::{Access, status};
use crate::commands::{CommandContext, CommandError, Commands, ExecRequest, ExecutionRef};

/// How long the first message may take.
const FIRST: Duration = Duration::from_secs(10);
/// How long one step may take.
const STEP: Duration = Duration::from_secs(15);
/// How long a command may take whose caller does not say.
const DEFAULT: Duration = Duration::from_secs(3_600);
/// Longest part of a command that is kept in the audit trail, in bytes.
const MAX_SHOWN: usize = 2_000;

type Answer = Result<wire::ExecResponse, Status>;

/// Answers a call.
pub(super) async fn serve(
    caller: &Caller,
    access: &Access,
    mut requests: Streaming<wire::ExecRequest>,
) -> Result<BoxStream<'static, Answer>, Status> {
    let first = timeout(FIRST, requests.message()).await.map_err(|_| status::not_arrived(FIRST))??;
    let Some(wire::ExecRequest { part: Some(Asked::Start(start)) }) = first else {
        return Err(status::invalid(&[FieldViolation::new("start", "has to be the first message")]));
    };
    let entry = caller.find(access, start.appliance.clone())?;
    let (asked, why) = read(entry.record.id, start)?;
    if u32::from(asked.ordinal) >= u32::from(entry.record.spec.replicas) {
        let replicas = entry.record.spec.replicas;
        return Err(invalid("start.instance", &format!("there are {replicas}, counted from 0")));
    }
    let (commands, actor) = (caller.commands.clone(), access.actor().to_owned());
    let asker = Asker { commands, actor, appliance: asked.appliance };
    let begun = asker.commands.execute(&asker.context(), asked, why).await;
    let begun = begun.map_err(|error| status::from_command(&error))?;
    if let ExecAnswer::Refused(why) = begun.answer {
        let error = CommandError::NotExecuted { appliance: asker.appliance, why };
        return Err(status::from_command(&error));
    }
    let worker = begun.execution.worker.to_string();
    let running = RunningCommand { asker, execution: begun.execution };
    let (answers, stream) = mpsc::channel(1);
    // Ends when the client has gone away, which drops the other end, or with the command.
    tokio::spawn(async move {
        let end = tokio::select! {
            end = running.exchange(worker, &answers, requests) => end,
            () = answers.closed() => Some(Err(Status::cancelled("the client has gone away"))),
        };
        running.end().await;
        if let Some(last) = end {
            let _ = answers.send(last).await;
        }
    });
    Ok(ReceiverStream::new(stream).boxed())
}

fn invalid(field: &str, problem: &str) -> Status {
    status::invalid(&[FieldViolation::new(field, problem)])
}

/// What is asked for, and what the audit trail says of it.
fn read(appliance: ApplianceId, start: wire::ExecStart) -> Result<(ExecRequest, String), Status> {
    let wire::ExecStart { appliance: _, instance, command, timeout, reason: why } = start;
    reason(why.clone())?;
    let bytes: usize = command.iter().map(String::len).sum();
    let problem = if command.first().is_none_or(String::is_empty) {
        Some("names no program")
    } else if command.len() > MAX_COMMAND_WORDS || bytes > MAX_COMMAND_BYTES {
        Some("has at most 1024 words and 64 KiB")
    } else if command.iter().any(|word| word.contains('\0')) {
        Some("cannot hold NUL")
    } else {
        None
    };
    if let Some(problem) = problem {
        return Err(invalid("start.command", problem));
    }
    let limit = match timeout.map(|timeout| duration_from_wire(&timeout)).transpose() {
        Ok(limit) => limit.unwrap_or(DEFAULT),
        Err(problem) => return Err(invalid("start.timeout", &problem.to_string())),
    };
    if limit.is_zero() || limit > MAX_EXECUTION_TIME {
        return Err(invalid("start.timeout", "must be longer than 0s and at most 24h"));
    }
    let ordinal = u16::try_from(instance).map_err(|_| invalid("start.instance", "there is none of this number"))?;
    let shown = shown(&command);
    let detail = if why.is_empty() {
        format!("instance {ordinal}: {shown}")
    } else {
        format!("instance {ordinal}: {shown}: {why}")
    };
    Ok((ExecRequest { appliance, ordinal, command, limit }, detail))
}

/// A command for people, on one line.
fn shown(command: &[String]) -> String {
    let quote = |word: &String| {
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,@%+".contains(c);
        if !word.is_empty() && word.chars().all(is_plain) {
            word.clone()
        } else {
            format!("'{}'", text::escaped(&word.replace('\'', "'\\''")))
        }
    };
    let mut shown = command.iter().map(quote).collect::<Vec<_>>().join(" ");
    if shown.len() > MAX_SHOWN {
        shown.truncate(shown.floor_char_boundary(MAX_SHOWN));
        shown.push_str(" ...");
    }
    shown
}

/// Who asks, about which appliance.
struct Asker {
    commands: Commands,
    actor: String,
    appliance: ApplianceId,
}

impl Asker {
    fn context(&self) -> CommandContext {
        CommandContext { deadline: Instant::now() + STEP, actor: self.actor.clone() }
    }
}

/// A command that was begun.
struct RunningCommand {
    asker: Asker,
    execution: ExecutionRef,
}

impl RunningCommand {
    async fn ask(&self, step: ExecStep) -> Result<ExecAnswer, Status> {
        let Asker { commands, appliance, .. } = &self.asker;
        let asked = commands.go_on_executing(&self.asker.context(), *appliance, self.execution.clone(), step).await;
        asked.map(|answered| answered.answer).map_err(|error| status::from_command(&error))
    }

    /// Hands input and output on until the command is over; its end, or why that is not known. `None` where the client is gone.
    async fn exchange(
        &self,
        worker: String,
        answers: &mpsc::Sender<Answer>,
        requests: Streaming<wire::ExecRequest>,
    ) -> Option<Answer> {
        answers.send(Ok(response(Said::Begun(worker)))).await.ok()?;
        tokio::select! {
            end = self.take_output(answers) => end,
            status = self.give_input(requests) => Some(Err(status)),
        }
    }

    async fn take_output(&self, answers: &mpsc::Sender<Answer>) -> Option<Answer> {
        let execution = self.execution.number;
        loop {
            let said = match self.ask(ExecStep::Output { execution }).await {
                Ok(ExecAnswer::Stdout(Bytes(data))) => Said::Stdout(data),
                Ok(ExecAnswer::Stderr(Bytes(data))) => Said::Stderr(data),
                Ok(ExecAnswer::Ended(end)) => return Some(Ok(response(Said::Ended(end_to_wire(end))))),
                Ok(_) => continue,
                Err(status) => return Some(Err(status)),
            };
            answers.send(Ok(response(said))).await.ok()?;
        }
    }

    /// Gives input for as long as there is some, and then waits for ever. Returns when something is wrong with it.
    async fn give_input(&self, mut requests: Streaming<wire::ExecRequest>) -> Status {
        loop {
            let (data, ends) = match requests.message().await {
                Ok(Some(wire::ExecRequest { part: Some(Asked::Stdin(data)) })) if data.len() <= MAX_PIECE => {
                    (data, false)
                }
                Ok(Some(wire::ExecRequest { part: Some(Asked::StdinEnds(_)) }) | None) => (Vec::new(), true),
                Ok(Some(_)) => return invalid("stdin", "is a piece of at most 32 KiB, after one `start`"),
                Err(status) => return status,
            };
            if let Err(status) = self.give(Bytes(data), ends).await {
                return status;
            }
            if ends {
                // Dropping the rest of the request would end the call.
                return std::future::pending().await;
            }
        }
    }

    async fn give(&self, data: Bytes, ends: bool) -> Result<(), Status> {
        let execution = self.execution.number;
        while let ExecAnswer::Taken(false) = self.ask(ExecStep::Input { execution, data: data.clone(), ends }).await? {}
        Ok(())
    }

    /// Nobody waits for it any more. What is over already is no matter.
    async fn end(&self) {
        let _ = self.ask(ExecStep::End { execution: self.execution.number }).await;
    }
}

fn response(part: Said) -> wire::ExecResponse {
    wire::ExecResponse { part: Some(part) }
}

fn end_to_wire(end: ExecEnd) -> wire::ExecEnd {
    use wire::exec_end::How;
    let how = match end {
        ExecEnd::Command(EndCause::Exit(status)) => How::Status(status),
        ExecEnd::Command(EndCause::Signal(number)) => How::Signal(number),
        ExecEnd::TimedOut => How::TimedOut(true),
        ExecEnd::Stopped(why) => How::Stopped(why),
        ExecEnd::NotRun(why) => How::NotRun(why),
    };
    wire::ExecEnd { how: Some(how) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start(command: &[&str]) -> wire::ExecStart {
        wire::ExecStart {
            command: command.iter().map(|word| (*word).to_owned()).collect(),
            ..wire::ExecStart::default()
        }
    }

    #[test]
    fn a_command_is_shown_as_a_shell_would_take_it_and_what_cannot_be_run_is_refused() {
        let id = ApplianceId::from_u128(1);
        let (asked, detail) = read(id, start(&["sh", "-c", "echo it's; id"])).expect("a command");
        assert_eq!((asked.limit, detail.as_str()), (DEFAULT, r"instance 0: sh -c 'echo it'\''s; id'"));
        let why = wire::ExecStart { reason: "looking".into(), instance: 2, ..start(&["id"]) };
        assert_eq!(read(id, why).expect("a command").1, "instance 2: id: looking");
        let long = "x".repeat(MAX_COMMAND_BYTES);
        assert!(read(id, start(&["echo", &long[4..]])).expect("a command").1.len() < MAX_SHOWN + 40);
        for bad in [&[][..], &[""], &["echo", &long], &["a\0b"], &["x"; MAX_COMMAND_WORDS + 1]] {
            assert!(read(id, start(bad)).is_err(), "{}", bad.len());
        }
        let slow = prost_types::Duration { seconds: 100_000, nanos: 0 };
        assert!(read(id, wire::ExecStart { timeout: Some(slow), ..start(&["id"]) }).is_err());
    }
}
