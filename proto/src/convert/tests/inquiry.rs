//! Inquiries and answers: round trips, and that nothing in them ends a stream.

use common::TraceContext;
use common::inquiry::{
    Answer, Finding, Inquiry, MAX_ANSWER_TEXT, MAX_INQUIRY_BYTES, MAX_INQUIRY_TIME, Question, Verdict,
};

use common::execution::{Bytes, ExecAnswer, ExecCommand, ExecEnd, ExecStep};
use common::reload::Reloaded;

use super::super::inquiry::{answer_to_wire, inquiry_to_wire};
use super::*;

fn first_envelope() -> Envelope {
    Envelope { term: Term::new(1), incarnation: Some(Incarnation::new(2)), stream: StreamNumber::new(3) }
}

fn finding() -> impl Strategy<Value = Finding> {
    prop_oneof![
        Just(Finding::Judgement(Verdict::Accepted)),
        ("spec(\\.[a-z]{1,9})?", "[ -~]{0,40}")
            .prop_map(|(field, reason)| { Finding::Judgement(Verdict::Refused(FieldViolation::new(field, reason))) }),
        "[ -~]{0,40}".prop_map(|reason| Finding::Judgement(Verdict::Unclear(reason))),
        "[ -~]{0,40}".prop_map(Finding::Unanswered),
        exec_answer().prop_map(Finding::Exec),
        "[ -~]{1,40}".prop_map(|problem| Finding::Reloaded(Err(problem))),
        prop::collection::vec("[a-z_.]{1,20}", 0..4)
            .prop_map(|applied| { Finding::Reloaded(Ok(Reloaded { needs_restart: applied.clone(), applied })) }),
    ]
}

fn piece() -> impl Strategy<Value = Bytes> {
    prop::collection::vec(any::<u8>(), 0..40).prop_map(Bytes)
}

fn exec_answer() -> impl Strategy<Value = ExecAnswer> {
    let end = prop_oneof![
        any::<i32>().prop_map(|status| ExecEnd::Command(EndCause::Exit(status))),
        any::<i32>().prop_map(|number| ExecEnd::Command(EndCause::Signal(number))),
        Just(ExecEnd::TimedOut),
        "[ -~]{0,40}".prop_map(ExecEnd::Stopped),
        "[ -~]{0,40}".prop_map(ExecEnd::NotRun),
    ];
    prop_oneof![
        Just(ExecAnswer::Begun),
        Just(ExecAnswer::Nothing),
        "[ -~]{0,40}".prop_map(ExecAnswer::Refused),
        any::<bool>().prop_map(ExecAnswer::Taken),
        piece().prop_map(ExecAnswer::Stdout),
        piece().prop_map(ExecAnswer::Stderr),
        end.prop_map(ExecAnswer::Ended),
    ]
}

fn exec_step() -> impl Strategy<Value = ExecStep> {
    let command =
        (any::<u128>(), any::<u16>(), prop::collection::vec("[ -~]{0,9}", 1..4), duration(1..=60_000), desired());
    let begin = command.prop_map(|(id, ordinal, command, limit, desired)| {
        let (appliance, token) = (ApplianceId::from_u128(id), Token::new(Term::new(3), 4));
        ExecStep::Begin(ExecCommand { appliance, token, desired: Box::new(desired), ordinal, command, limit })
    });
    prop_oneof![
        begin,
        (any::<u64>(), piece(), any::<bool>()).prop_map(|(execution, data, ends)| ExecStep::Input {
            execution,
            data,
            ends
        }),
        any::<u64>().prop_map(|execution| ExecStep::Output { execution }),
        any::<u64>().prop_map(|execution| ExecStep::End { execution }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn an_inquiry_survives_the_wire_and_stays_within_its_bound(
        envelope in envelope(), number in any::<u64>(), within in duration(0..=60_000), id in any::<u128>(), desired in desired()
    ) {
        prop_assume!(desired.spec.validate().is_empty());
        let call = TraceContext { traceparent: TRACEPARENT.into(), baggage: "user=alice".into(), ..TraceContext::default() };
        let question = Question::Judge { appliance: ApplianceId::from_u128(id), desired: Box::new(desired) };
        let inquiry = Inquiry { number, within, call, question };
        let message = inquiry_to_wire(&envelope, inquiry.clone());
        prop_assert!(message.encoded_len() <= MAX_INQUIRY_BYTES);
        let read = down_from_wire(message).expect("just written");
        prop_assert_eq!((read.envelope, read.inquiry), (envelope, Some(inquiry)));
        prop_assert_eq!(read.message, ToWorker::Confirm(Confirm::default()));
    }

    #[test]
    fn a_step_of_a_command_survives_the_wire(envelope in envelope(), number in any::<u64>(), step in exec_step()) {
        if let ExecStep::Begin(command) = &step {
            prop_assume!(command.desired.spec.validate().is_empty());
        }
        let (within, call) = (Duration::from_secs(1), TraceContext::default());
        let inquiry = Inquiry { number, within, call, question: Question::Exec(Box::new(step)) };
        let read = down_from_wire(inquiry_to_wire(&envelope, inquiry.clone())).expect("just written");
        prop_assert_eq!(read.inquiry, Some(inquiry));
    }

    #[test]
    fn an_answer_survives_the_wire(envelope in envelope(), number in any::<u64>(), finding in finding()) {
        let answer = Answer { number, finding };
        let read = up_from_wire(answer_to_wire(&envelope, answer.clone())).expect("just written");
        prop_assert_eq!((read.envelope, read.answer), (envelope, Some(answer)));
        prop_assert_eq!(read.message, ToCoordinator::Report(Report::default()));
    }
}

fn asked(inquiry: worker_wire::Inquiry) -> Inquiry {
    let mut message = inquiry_to_wire(
        &first_envelope(),
        Inquiry {
            number: 0,
            within: Duration::ZERO,
            call: TraceContext::default(),
            question: Question::Unreadable(String::new()),
        },
    );
    message.body = Some(worker_wire::coordinator_message::Body::Inquiry(inquiry));
    down_from_wire(message).expect("no reason to end a session").inquiry.expect("it is one")
}

#[test]
fn what_cannot_be_read_of_an_inquiry_ends_no_stream() {
    let unknown = asked(worker_wire::Inquiry { number: 7, ..Default::default() });
    assert_eq!((unknown.number, unknown.within), (7, Duration::ZERO));
    assert!(matches!(unknown.question, Question::Unreadable(why) if why.contains("does not know")));
    let judge = worker_wire::Judge { appliance: vec![1; 16], desired: None };
    let day = Some(prost_types::Duration { seconds: 86_400, nanos: 0 });
    let question = Some(worker_wire::inquiry::Question::Judge(judge));
    let odd = asked(worker_wire::Inquiry { number: 8, within: day, question, ..Default::default() });
    assert_eq!(odd.within, MAX_INQUIRY_TIME);
    assert!(matches!(odd.question, Question::Unreadable(why) if why.contains("judge[0].desired: is missing")));
}

fn said(finding: Option<worker_wire::answer::Finding>) -> Finding {
    let mut message =
        answer_to_wire(&first_envelope(), Answer { number: 1, finding: Finding::Unanswered(String::new()) });
    message.body = Some(worker_wire::worker_message::Body::Answer(worker_wire::Answer { number: 1, finding }));
    up_from_wire(message).expect("no reason to end a session").answer.expect("it is one").finding
}

#[test]
fn what_cannot_be_read_of_an_answer_says_nothing_and_texts_are_bounded() {
    use worker_wire::answer::Finding as Wire;
    assert!(matches!(said(None), Finding::Unanswered(_)));
    let judgement = |verdict, field: &str, reason: String| {
        said(Some(Wire::Judgement(worker_wire::Judgement { verdict, field: field.into(), reason })))
    };
    assert!(matches!(judgement(9, "", String::new()), Finding::Unanswered(_)), "of a newer worker");
    let refused = worker_wire::judgement::Verdict::Refused.into();
    for field in ["", "name", "specs", "spec.\u{1b}[0m", &format!("spec.{}", "x".repeat(300))] {
        let read = judgement(refused, field, "é".repeat(MAX_ANSWER_TEXT));
        let Finding::Judgement(Verdict::Refused(violation)) = read else { panic!("{read:?}") };
        assert_eq!((violation.field.as_str(), violation.description.len()), ("spec", MAX_ANSWER_TEXT));
    }
}
