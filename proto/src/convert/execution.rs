//! Commands in instances, as part of inquiries and answers.

use common::execution::{
    Bytes, ExecAnswer, ExecCommand, ExecEnd, ExecStep, MAX_COMMAND_BYTES, MAX_COMMAND_WORDS, MAX_EXECUTION_TIME,
    MAX_PIECE,
};
use common::inquiry::{Finding, MAX_ANSWER_TEXT};
use common::status::EndCause;

use super::scalar::{clip, duration_from_wire, duration_to_wire};
use super::worker::{At, Reader, WireError, desired_to_wire, id_to_wire, token_to_wire};
use crate::worker::v1 as wire;

pub(super) fn step_to_wire(step: ExecStep) -> wire::Exec {
    use wire::exec::Step;
    let step = match step {
        ExecStep::Begin(ExecCommand { appliance, token, desired, ordinal, command, limit }) => {
            Step::Begin(wire::ExecBegin {
                appliance: id_to_wire(appliance),
                token: Some(token_to_wire(token)),
                desired: Some(desired_to_wire(&desired)),
                ordinal: ordinal.into(),
                command,
                limit: Some(duration_to_wire(limit)),
            })
        }
        ExecStep::Input { execution, data: Bytes(data), ends } => {
            Step::Input(wire::ExecInput { execution, data, ends })
        }
        ExecStep::Output { execution } => Step::Output(execution),
        ExecStep::End { execution } => Step::End(execution),
    };
    wire::Exec { step: Some(step) }
}

pub(super) fn step_from_wire(reader: Reader, step: wire::Exec) -> Result<ExecStep, WireError> {
    use wire::exec::Step;
    Ok(match step.step {
        Some(Step::Begin(begin)) => ExecStep::Begin(read_command(reader, begin)?),
        Some(Step::Input(wire::ExecInput { execution, data, ends })) if data.len() <= MAX_PIECE => {
            ExecStep::Input { execution, data: Bytes(data), ends }
        }
        Some(Step::Input(_)) => return Err(reader.error("exec.input.data", "is too long")),
        Some(Step::Output(execution)) => ExecStep::Output { execution },
        Some(Step::End(execution)) => ExecStep::End { execution },
        None => return Err(reader.error("exec.step", "is not known to this version")),
    })
}

fn read_command(reader: Reader, begin: wire::ExecBegin) -> Result<ExecCommand, WireError> {
    let at = At("exec", 0);
    let wire::ExecBegin { appliance, token, desired, ordinal, command, limit } = begin;
    let bytes: usize = command.iter().map(String::len).sum();
    if command.is_empty() || command.len() > MAX_COMMAND_WORDS || bytes > MAX_COMMAND_BYTES {
        return Err(reader.error(at.field("command"), "has no word, or too many, or too long ones"));
    }
    let limit = limit.and_then(|limit| duration_from_wire(&limit).ok());
    Ok(ExecCommand {
        appliance: reader.appliance(&at, &appliance)?,
        token: reader.token(&at, token)?,
        desired: Box::new(reader.desired(&at, desired)?),
        ordinal: u16::try_from(ordinal).map_err(|e| reader.error(at.field("ordinal"), e))?,
        command,
        limit: limit.ok_or_else(|| reader.error(at.field("limit"), "is missing"))?.min(MAX_EXECUTION_TIME),
    })
}

pub(super) fn answer_to_wire(answer: ExecAnswer) -> wire::ExecAnswer {
    use wire::exec_answer::Answer;
    let answer = match answer {
        ExecAnswer::Begun => Answer::Begun(true),
        ExecAnswer::Refused(why) => Answer::Refused(clip(&why, MAX_ANSWER_TEXT)),
        ExecAnswer::Taken(taken) => Answer::Taken(taken),
        ExecAnswer::Stdout(Bytes(data)) => Answer::Stdout(data),
        ExecAnswer::Stderr(Bytes(data)) => Answer::Stderr(data),
        ExecAnswer::Nothing => Answer::Nothing(true),
        ExecAnswer::Ended(end) => Answer::Ended(end_to_wire(end)),
    };
    wire::ExecAnswer { answer: Some(answer) }
}

fn end_to_wire(end: ExecEnd) -> wire::ExecEnd {
    use wire::exec_end::How;
    let how = match end {
        ExecEnd::Command(EndCause::Exit(status)) => How::Exit(status),
        ExecEnd::Command(EndCause::Signal(number)) => How::Signal(number),
        ExecEnd::TimedOut => How::TimedOut(true),
        ExecEnd::Stopped(why) => How::Stopped(clip(&why, MAX_ANSWER_TEXT)),
        ExecEnd::NotRun(why) => How::NotRun(clip(&why, MAX_ANSWER_TEXT)),
    };
    wire::ExecEnd { how: Some(how) }
}

pub(super) fn answer_from_wire(answer: wire::ExecAnswer) -> Finding {
    use wire::exec_answer::Answer;
    Finding::Exec(match answer.answer {
        Some(Answer::Begun(_)) => ExecAnswer::Begun,
        Some(Answer::Refused(why)) => ExecAnswer::Refused(clip(&why, MAX_ANSWER_TEXT)),
        Some(Answer::Taken(taken)) => ExecAnswer::Taken(taken),
        Some(Answer::Stdout(data)) if data.len() <= MAX_PIECE => ExecAnswer::Stdout(Bytes(data)),
        Some(Answer::Stderr(data)) if data.len() <= MAX_PIECE => ExecAnswer::Stderr(Bytes(data)),
        Some(Answer::Stdout(_) | Answer::Stderr(_)) => {
            return Finding::Unanswered("a piece of output is too long".to_owned());
        }
        Some(Answer::Nothing(_)) => ExecAnswer::Nothing,
        Some(Answer::Ended(wire::ExecEnd { how: Some(how) })) => ExecAnswer::Ended(read_end(how)),
        Some(Answer::Ended(wire::ExecEnd { how: None })) | None => {
            return Finding::Unanswered("this version does not know the answer".to_owned());
        }
    })
}

fn read_end(how: wire::exec_end::How) -> ExecEnd {
    use wire::exec_end::How;
    match how {
        How::Exit(status) => ExecEnd::Command(EndCause::Exit(status)),
        How::Signal(number) => ExecEnd::Command(EndCause::Signal(number)),
        How::TimedOut(_) => ExecEnd::TimedOut,
        How::Stopped(why) => ExecEnd::Stopped(clip(&why, MAX_ANSWER_TEXT)),
        How::NotRun(why) => ExecEnd::NotRun(clip(&why, MAX_ANSWER_TEXT)),
    }
}
