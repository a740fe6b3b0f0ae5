//! What the leader asks workers beside the protocol of ownership, and what they answer.
//!
//! What cannot be read of either is no reason to end a stream: the number can always be read, and the other side is told, or takes it for
//! an answer that says nothing.

use common::TraceContext;
use common::appliance::FieldViolation;
use common::inquiry::{
    Answer, Finding, Inquiry, LogPart, LogQuery, MAX_ANSWER_TEXT, MAX_INQUIRY_TIME, MAX_LOG_PART, MAX_LOG_PLACE,
    Question, Verdict,
};
use common::reload::{MAX_SETTING, MAX_SETTINGS, Reloaded};
use common::session::Envelope;
use common::text;

use super::execution;
use super::scalar::{clip, duration_from_wire, duration_to_wire};
use super::worker::{At, Reader, WireError, desired_to_wire, envelope_to_wire, id_to_wire};
use crate::worker::v1 as wire;

/// Longest name of a field in an answer, in bytes.
const MAX_FIELD: usize = 256;
/// The field of which more is not known.
const SPEC: &str = "spec";

/// Writes an inquiry.
#[must_use]
pub fn inquiry_to_wire(envelope: &Envelope, inquiry: Inquiry) -> wire::CoordinatorMessage {
    let Inquiry { number, within, call, question } = inquiry;
    let TraceContext { traceparent, tracestate, baggage } = call;
    let question = match question {
        Question::Judge { appliance, desired } => Some(wire::inquiry::Question::Judge(wire::Judge {
            appliance: id_to_wire(appliance),
            desired: Some(desired_to_wire(&desired)),
        })),
        Question::ReadLog(query) => Some(wire::inquiry::Question::ReadLog(query_to_wire(*query))),
        Question::Exec(step) => Some(wire::inquiry::Question::Exec(execution::step_to_wire(*step))),
        Question::ReloadConfig => Some(wire::inquiry::Question::ReloadConfig(wire::ReloadConfig {})),
        Question::Unreadable(_) => None,
    };
    let within = Some(duration_to_wire(within));
    let body = wire::Inquiry { number, within, traceparent, tracestate, baggage, question };
    wire::CoordinatorMessage {
        envelope: Some(envelope_to_wire(envelope)),
        body: Some(wire::coordinator_message::Body::Inquiry(body)),
        ..wire::CoordinatorMessage::default()
    }
}

pub(super) fn inquiry_from_wire(reader: Reader, inquiry: wire::Inquiry) -> Inquiry {
    let wire::Inquiry { number, within, traceparent, tracestate, baggage, question } = inquiry;
    let question = match question {
        Some(wire::inquiry::Question::Judge(judge)) => {
            read_judge(reader, judge).unwrap_or_else(|error| Question::Unreadable(clip(&error.to_string(), MAX_FIELD)))
        }
        Some(wire::inquiry::Question::ReadLog(query)) => {
            let read = read_query(reader, query).map(|query| Question::ReadLog(Box::new(query)));
            read.unwrap_or_else(|error| Question::Unreadable(clip(&error.to_string(), MAX_FIELD)))
        }
        Some(wire::inquiry::Question::Exec(step)) => {
            let read = execution::step_from_wire(reader, step).map(|step| Question::Exec(Box::new(step)));
            read.unwrap_or_else(|error| Question::Unreadable(clip(&error.to_string(), MAX_FIELD)))
        }
        Some(wire::inquiry::Question::ReloadConfig(wire::ReloadConfig {})) => Question::ReloadConfig,
        None => Question::Unreadable("this version does not know what is asked".to_owned()),
    };
    let within = within.and_then(|within| duration_from_wire(&within).ok()).unwrap_or_default().min(MAX_INQUIRY_TIME);
    Inquiry { number, within, call: TraceContext { traceparent, tracestate, baggage }.bounded(), question }
}

fn read_judge(reader: Reader, judge: wire::Judge) -> Result<Question, WireError> {
    let at = At("judge", 0);
    let appliance = reader.appliance(&at, &judge.appliance)?;
    Ok(Question::Judge { appliance, desired: Box::new(reader.desired(&at, judge.desired)?) })
}

fn query_to_wire(query: LogQuery) -> wire::ReadLog {
    let LogQuery { appliance, driver, ordinal, place, tail, since, previous } = query;
    wire::ReadLog {
        appliance: id_to_wire(appliance),
        driver: driver.map(|driver| driver.to_string()).unwrap_or_default(),
        ordinal: ordinal.into(),
        place,
        tail: tail.unwrap_or_default(),
        since: since.map(duration_to_wire),
        previous,
    }
}

fn read_query(reader: Reader, query: wire::ReadLog) -> Result<LogQuery, WireError> {
    let at = At("read_log", 0);
    let wire::ReadLog { appliance, driver, ordinal, place, tail, since, previous } = query;
    Ok(LogQuery {
        appliance: reader.appliance(&at, &appliance)?,
        driver: Some(driver.parse().map_err(|e| reader.error(at.field("driver"), e))?),
        ordinal: u16::try_from(ordinal).map_err(|e| reader.error(at.field("ordinal"), e))?,
        place: reader.text("place", place, MAX_LOG_PLACE)?,
        tail: (tail > 0).then_some(tail),
        since: since.and_then(|since| duration_from_wire(&since).ok()),
        previous,
    })
}

/// Writes an answer.
#[must_use]
pub fn answer_to_wire(envelope: &Envelope, answer: Answer) -> wire::WorkerMessage {
    use wire::answer::Finding as Wire;
    use wire::judgement::Verdict as Kind;
    let judgement = |verdict: Kind, field: String, reason: &str| {
        Wire::Judgement(wire::Judgement { verdict: verdict.into(), field, reason: clip(reason, MAX_ANSWER_TEXT) })
    };
    let finding = match answer.finding {
        Finding::Judgement(Verdict::Accepted) => judgement(Kind::Accepted, String::new(), ""),
        Finding::Judgement(Verdict::Refused(violation)) => {
            judgement(Kind::Refused, violation.field, &violation.description)
        }
        Finding::Judgement(Verdict::Unclear(reason)) => judgement(Kind::Unclear, String::new(), &reason),
        Finding::Log(LogPart { data, place, more, lost }) => Wire::Log(wire::LogPart { data, place, more, lost }),
        Finding::Exec(answer) => Wire::Exec(execution::answer_to_wire(answer)),
        Finding::Reloaded(Ok(Reloaded { applied, needs_restart })) => {
            Wire::Reloaded(wire::Reloaded { applied, needs_restart, problem: String::new() })
        }
        Finding::Reloaded(Err(problem)) => {
            Wire::Reloaded(wire::Reloaded { problem: clip(&problem, MAX_ANSWER_TEXT), ..wire::Reloaded::default() })
        }
        Finding::Unanswered(reason) => Wire::Unanswered(clip(&reason, MAX_ANSWER_TEXT)),
    };
    let answer = wire::Answer { number: answer.number, finding: Some(finding) };
    let body = Some(wire::worker_message::Body::Answer(answer));
    wire::WorkerMessage { envelope: Some(envelope_to_wire(envelope)), body }
}

pub(super) fn answer_from_wire(answer: wire::Answer) -> Answer {
    let wire::Answer { number, finding } = answer;
    let finding = match finding {
        Some(wire::answer::Finding::Judgement(judgement)) => read_judgement(&judgement),
        Some(wire::answer::Finding::Log(part)) => read_part(part),
        Some(wire::answer::Finding::Exec(answer)) => execution::answer_from_wire(answer),
        Some(wire::answer::Finding::Reloaded(reloaded)) => read_reloaded(reloaded),
        Some(wire::answer::Finding::Unanswered(reason)) => Finding::Unanswered(clip(&reason, MAX_ANSWER_TEXT)),
        None => Finding::Unanswered("this version does not know the answer".to_owned()),
    };
    Answer { number, finding }
}

fn read_reloaded(reloaded: wire::Reloaded) -> Finding {
    let wire::Reloaded { applied, needs_restart, problem } = reloaded;
    if !problem.is_empty() {
        return Finding::Reloaded(Err(clip(&problem, MAX_ANSWER_TEXT)));
    }
    let is_setting = |name: &String| text::check(name, MAX_SETTING).is_ok();
    if applied.len() + needs_restart.len() > MAX_SETTINGS || !applied.iter().chain(&needs_restart).all(is_setting) {
        return Finding::Unanswered("the names of settings are too long, or too many".to_owned());
    }
    Finding::Reloaded(Ok(Reloaded { applied, needs_restart }))
}

fn read_part(part: wire::LogPart) -> Finding {
    let wire::LogPart { data, place, more, lost } = part;
    if data.len() > MAX_LOG_PART || text::check(&place, MAX_LOG_PLACE).is_err() {
        return Finding::Unanswered("a part of a log is too long, or names no place".to_owned());
    }
    Finding::Log(LogPart { data, place, more, lost })
}

fn read_judgement(judgement: &wire::Judgement) -> Finding {
    use wire::judgement::Verdict as Kind;
    let reason = clip(&judgement.reason, MAX_ANSWER_TEXT);
    Finding::Judgement(match judgement.verdict() {
        Kind::Accepted => Verdict::Accepted,
        Kind::Refused => {
            // It is shown as the place in a document.
            let field = judgement.field.as_str();
            let is_field = field == SPEC || field.strip_prefix(SPEC).is_some_and(|below| below.starts_with('.'));
            let is_field = is_field && text::check(field, MAX_FIELD).is_ok();
            Verdict::Refused(FieldViolation::new(if is_field { field } else { SPEC }, reason))
        }
        Kind::Unclear => Verdict::Unclear(reason),
        Kind::Unspecified => return Finding::Unanswered("this version does not know the verdict".to_owned()),
    })
}
