//! Tables of (state, message) -> (state, actions), and the order of what is sent.

use common::secret::LifeSecret;
use common::session::{Ack, Confirm, Declined, DeltaEntry, Report};
use common::{ApplianceId, Edition, Generation, StreamNumber, Term};

use super::*;

const LIFE: Incarnation = Incarnation::new(7);
const LEASE: Duration = Duration::from_secs(3);

type TestAction = ConversationAction<Edition>;

fn at(millis: u64) -> Timestamp {
    Timestamp::from_millis(millis)
}

fn grant(n: u128, sequence: u64) -> GrantRef {
    GrantRef::new(ApplianceId::from_u128(n), Token::new(Term::new(1), sequence))
}

fn offer(grant: GrantRef) -> DeltaEntry<Edition> {
    let GrantRef { appliance, token } = grant;
    let desired = Edition::new(Generation::new(1), Term::new(1));
    let (carryover, mode) = (Carryover::default(), Mode::default());
    DeltaEntry::Grant { appliance, token, desired, carryover, suspect: false, mode }
}

fn mode(number: u64, hands_off: bool) -> Mode {
    Mode::new(ModeEdition::new(Term::new(1), number), hands_off)
}

fn word(GrantRef { appliance, token }: GrantRef, mode: Mode) -> DeltaEntry<Edition> {
    DeltaEntry::Mode { appliance, token, mode }
}

fn delta(base: u64, entries: Vec<DeltaEntry<Edition>>) -> ToWorker<Edition> {
    ToWorker::Delta(Delta { base, target: base + 1, rebalance: None, entries })
}

fn refused(reason: RefusedReason) -> ToWorker<Edition> {
    ToWorker::Refused(Refused { reason, detail: String::new(), retry_after: None })
}

fn ended(end: StreamEnd) -> TestAction {
    ConversationAction::Control(ControlEvent::StreamEnded(end))
}

/// A conversation with the leader of term 1.
struct Talk {
    conversation: Conversation,
    from: Envelope,
}

impl Talk {
    fn greeting() -> Self {
        let mut talk = Self {
            conversation: Conversation::default(),
            from: Envelope { term: Term::new(1), incarnation: Some(LIFE), stream: StreamNumber::default() },
        };
        talk.hello();
        talk
    }

    fn open() -> Self {
        let mut talk = Self::greeting();
        talk.receive(ToWorker::Welcome(Welcome { keep: vec![], lease: LEASE }));
        talk.flush();
        talk
    }

    fn hello(&mut self) -> Hello {
        let name = WorkerId::new("w1").expect("a valid name");
        let (envelope, hello) = self.conversation.hello(at(0), &name, &Profile::default(), &LifeSecret::new([1; 32]));
        self.from.stream = envelope.stream;
        hello
    }

    fn receive(&mut self, message: ToWorker<Edition>) -> Vec<TestAction> {
        self.conversation.receive(Incoming::whole(self.from, message), false, |_| None)
    }

    /// What is sent, without the digest.
    fn flush(&mut self) -> Vec<ToCoordinator> {
        let mut sent = Vec::new();
        while let Some((_, message)) = self.conversation.next_message() {
            if !matches!(message, ToCoordinator::Report(Report { ref statuses, .. }) if statuses.is_empty()) {
                sent.push(message);
            }
        }
        sent
    }
}

#[test]
fn nothing_but_the_answer_counts_between_hello_and_welcome() {
    let mut talk = Talk::greeting();
    let others = [
        ToWorker::BeatAck(1),
        delta(0, vec![offer(grant(1, 1))]),
        ToWorker::Confirm(Confirm::default()),
        ToWorker::Drained,
    ];
    for message in others {
        assert_eq!(talk.receive(message.clone()), [], "{message:?}");
    }
    assert_eq!(talk.conversation.envelope(), None);
    assert_eq!(talk.flush(), []);
    let welcome = ToWorker::Welcome(Welcome { keep: vec![], lease: LEASE });
    let begun = [
        ConversationAction::Welcomed(talk.from, 0),
        ConversationAction::Restate,
        ConversationAction::Control(ControlEvent::Welcomed(LEASE)),
    ];
    assert_eq!(talk.receive(welcome.clone()), begun);
    assert_eq!(talk.conversation.envelope(), Some(talk.from));
    assert_eq!(talk.receive(welcome), [], "a second one is dropped");
}

#[test]
fn a_welcome_in_parts_counts_with_its_last_and_fences_before_it_extends_the_lease() {
    let mut talk = Talk::open();
    talk.receive(delta(0, vec![offer(grant(1, 1)), offer(grant(2, 2)), offer(grant(3, 3))]));
    talk.conversation.close();
    assert_eq!(talk.hello().owned.len(), 3);
    let part = |keep| ToWorker::Welcome(Welcome { keep, lease: LEASE });
    let first = Incoming { more: true, ..Incoming::whole(talk.from, part(vec![grant(1, 1)])) };
    assert_eq!(talk.conversation.receive(first, false, |_: &Edition| None), []);
    let last = [
        ConversationAction::Welcomed(talk.from, 2),
        ConversationAction::Fence(grant(2, 2)),
        ConversationAction::Restate,
        ConversationAction::Control(ControlEvent::Welcomed(LEASE)),
    ];
    assert_eq!(talk.receive(part(vec![grant(3, 3)])), last);
}

#[test]
fn a_welcome_that_answers_another_hello_ends_the_stream() {
    let mut talk = Talk::greeting();
    talk.from.incarnation = None;
    let stale = [
        ConversationAction::Note(ConversationNotice::StaleWelcome(talk.from)),
        ended(StreamEnd::Again(STALE_WELCOME_PAUSE)),
    ];
    assert_eq!(talk.receive(ToWorker::Welcome(Welcome::default())), stale);
}

#[test]
fn a_delta_is_acknowledged_with_its_answers_once_it_is_carried_out() {
    let mut talk = Talk::open();
    let offers = vec![offer(grant(1, 1)), offer(grant(2, 2)), DeltaEntry::Release(grant(9, 9))];
    let only_first = |_: &Edition| None;
    let incoming = Incoming::whole(talk.from, delta(0, offers));
    let actions = talk.conversation.receive(incoming, false, only_first);
    assert!(matches!(
        actions.as_slice(),
        [ConversationAction::Take { .. }, ConversationAction::Take { .. }, ConversationAction::Applied(1)]
    ));
    talk.conversation.applied(1);
    let declined = vec![Declined {
        appliance: grant(9, 9).appliance,
        token: grant(9, 9).token,
        reason: "this worker owns it under another token, or not at all".to_owned(),
    }];
    let granted = vec![grant(1, 1), grant(2, 2)];
    assert_eq!(talk.flush(), [ToCoordinator::Ack(Ack { applied: 1, granted, declined, ..Ack::default() })]);
}

#[test]
fn what_cannot_be_taken_is_declined_with_the_reason() {
    let mut talk = Talk::open();
    let reasons = |talk: &mut Talk| match talk.flush().as_slice() {
        [ToCoordinator::Ack(ack)] => ack.declined.iter().map(|declined| declined.reason.clone()).collect::<Vec<_>>(),
        sent => panic!("one ack is sent, not {sent:?}"),
    };
    let mut receive = |base, sequence, draining, reason: Option<&str>| {
        let incoming = Incoming::whole(talk.from, delta(base, vec![offer(grant(1, sequence))]));
        let actions = talk.conversation.receive(incoming, draining, |_| reason.map(str::to_owned));
        assert_eq!(actions, [ConversationAction::Applied(base + 1)]);
        reasons(&mut talk)
    };
    assert_eq!(receive(0, 1, false, Some("no such driver")), ["no such driver"]);
    assert_eq!(receive(1, 2, true, None), ["this worker is about to stop"]);
    let unreadable = vec![(grant(2, 3), "no spec".to_owned())];
    let incoming = Incoming { unreadable, ..Incoming::whole(talk.from, delta(2, vec![])) };
    let skipped = ConversationAction::Note(ConversationNotice::EntrySkipped(grant(2, 3), "no spec".to_owned()));
    let actions = talk.conversation.receive(incoming, false, |_: &Edition| None);
    assert_eq!(actions, [skipped, ConversationAction::Applied(3)]);
    assert_eq!(reasons(&mut talk), ["no spec"]);
}

#[test]
fn a_delta_of_another_stream_is_dropped_and_one_on_another_base_ends_the_stream() {
    let mut talk = Talk::open();
    let late = Envelope { stream: StreamNumber::default(), ..talk.from };
    let actions = talk.conversation.receive(Incoming::whole(late, delta(0, vec![])), false, |_: &Edition| None);
    assert_eq!(actions, [ConversationAction::Note(ConversationNotice::StaleDelta)]);
    let wrong = DeltaRefused::Base { base: 5, have: 0 };
    let ends =
        [ConversationAction::Note(ConversationNotice::WrongBase(wrong)), ended(StreamEnd::Again(Duration::ZERO))];
    assert_eq!(talk.receive(delta(5, vec![])), ends);
}

#[test]
fn each_refusal_ends_the_stream_in_its_own_way() {
    let again = StreamEnd::Again(Duration::ZERO);
    let over = StreamEnd::LifeOver("the leader says so: ".to_owned());
    for (reason, end) in [
        (RefusedReason::IncarnationOver, over),
        (RefusedReason::Stopping, StreamEnd::CoordinatorStops(Duration::ZERO)),
        (RefusedReason::NameTaken, StreamEnd::NameTaken(Duration::ZERO)),
        (RefusedReason::AssignmentsDiffer, again.clone()),
        (RefusedReason::NotLeading, again.clone()),
        (RefusedReason::Superseded, again.clone()),
        (RefusedReason::Malformed, again.clone()),
        (RefusedReason::Unknown, again),
    ] {
        for mut talk in [Talk::greeting(), Talk::open()] {
            assert_eq!(talk.receive(refused(reason)).last(), Some(&ended(end.clone())), "{reason:?}");
        }
    }
    let mut closed = Talk::open();
    closed.conversation.close();
    assert_eq!(closed.receive(refused(RefusedReason::Superseded)), [], "the stream has ended");
    let later = Refused {
        reason: RefusedReason::NameTaken,
        detail: String::new(),
        retry_after: Some(Duration::from_secs(900)),
    };
    let actions = Talk::open().receive(ToWorker::Refused(later));
    assert_eq!(actions.last(), Some(&ended(StreamEnd::NameTaken(LONGEST_RETRY))), "however long the leader asks for");
}

#[test]
fn outcomes_wait_for_the_welcome_and_without_a_stream_the_next_hello_has_them() {
    let mut talk = Talk::open();
    talk.receive(delta(0, vec![offer(grant(1, 1)), offer(grant(2, 2)), offer(grant(3, 3))]));
    talk.flush();
    talk.conversation.close();
    assert!(talk.conversation.released(grant(1, 1), Carryover::default()));
    assert!(!talk.conversation.released(grant(1, 1), Carryover::default()), "once");
    let hello = talk.hello();
    assert_eq!((hello.owned.len(), hello.released.len()), (2, 1));
    assert!(talk.conversation.removed(grant(2, 2)));
    talk.receive(ToWorker::Welcome(Welcome { keep: vec![grant(3, 3)], lease: LEASE }));
    let removed = vec![grant(2, 2)];
    assert_eq!(talk.flush(), [ToCoordinator::Ack(Ack { removed, ..Ack::default() })]);
    let confirm = Confirm { released: vec![grant(1, 1), grant(2, 2)], begin: vec![] };
    assert_eq!(talk.receive(ToWorker::Confirm(confirm)), [ConversationAction::Confirmed(vec![])]);
    assert_eq!(talk.hello().released, []);
}

#[test]
fn a_drain_is_handed_over_when_nothing_is_owned_or_the_leader_takes_no_more() {
    let mut talk = Talk::open();
    assert!(talk.conversation.is_handed_over(), "nothing is owned");
    talk.receive(delta(0, vec![offer(grant(1, 1))]));
    talk.flush();
    assert_eq!(talk.conversation.drain(false), []);
    assert!(!talk.conversation.is_handed_over());
    assert_eq!(talk.flush(), [ToCoordinator::Drain { hand_back: false }]);
    assert_eq!(talk.receive(ToWorker::Drained), []);
    assert!(!talk.conversation.is_handed_over(), "it does not drain, so it was no answer");
    talk.conversation.receive(Incoming::whole(talk.from, ToWorker::Drained), true, |_: &Edition| None);
    assert!(talk.conversation.is_handed_over());
    assert_eq!(talk.conversation.drain(true), [grant(1, 1)], "handing back, it gives up by itself");
    assert!(!talk.conversation.is_handed_over());
}

#[test]
fn a_token_of_a_later_term_is_told_in_a_hello_but_not_again_and_again() {
    let mut talk = Talk::open();
    talk.receive(delta(0, vec![offer(grant(1, 1))]));
    let newer = Token::new(Term::new(4), 1);
    let mut meet = |millis| talk.conversation.refused_token::<Edition>(at(millis), grant(1, 1), newer);
    let note = |at_once| ConversationAction::Note(ConversationNotice::TermMet { grant: grant(1, 1), newer, at_once });
    assert_eq!(meet(0), [note(true), ended(StreamEnd::Again(Duration::ZERO))]);
    assert_eq!(meet(119_999), [note(false)]);
    assert_eq!(meet(120_000), [note(true), ended(StreamEnd::Again(Duration::ZERO))]);
    talk.conversation.close();
    assert_eq!(talk.hello().highest_term, Term::new(4));
    // The leader of the term above can make a newer grant.
    talk.from.term = Term::new(5);
    talk.receive(ToWorker::Welcome(Welcome { keep: vec![grant(1, 1)], lease: LEASE }));
    let given_up = [
        ConversationAction::Note(ConversationNotice::GivenUp(grant(1, 1), newer)),
        ConversationAction::Release(grant(1, 1)),
    ];
    assert_eq!(talk.conversation.refused_token::<Edition>(at(200_000), grant(1, 1), newer), given_up);
}

#[test]
fn a_mode_is_acknowledged_once_its_driver_says_that_nothing_runs() {
    let mut talk = Talk::open();
    talk.receive(delta(0, vec![offer(grant(1, 1))]));
    talk.flush();
    let actions = talk.receive(delta(1, vec![word(grant(1, 1), mode(2, true))]));
    assert_eq!(actions, [ConversationAction::Mode(grant(1, 1), mode(2, true)), ConversationAction::Applied(2)]);
    talk.conversation.applied(2);
    let acks = |talk: &mut Talk| {
        let acks = talk.flush().into_iter().flat_map(|message| match message {
            ToCoordinator::Ack(ack) => ack.quiet,
            other => panic!("nothing else is sent: {other:?}"),
        });
        acks.map(|quiet| quiet.edition.sequence).collect::<Vec<_>>()
    };
    assert_eq!(acks(&mut talk), [0; 0], "its gate may not be shut, and a step may run");
    talk.conversation.quiet(grant(1, 1), mode(1, true).edition, Duration::ZERO);
    talk.conversation.quiet(grant(1, 2), mode(2, true).edition, Duration::ZERO);
    assert_eq!(acks(&mut talk), [0; 0], "neither an older edition nor another grant");
    talk.conversation.quiet(grant(1, 1), mode(2, true).edition, Duration::ZERO);
    assert_eq!(acks(&mut talk), [2]);
    talk.receive(delta(2, vec![word(grant(1, 1), mode(3, false))]));
    talk.conversation.quiet(grant(1, 1), mode(2, true).edition, Duration::ZERO);
    talk.conversation.quiet(grant(1, 1), mode(3, false).edition, Duration::ZERO);
    assert_eq!(acks(&mut talk), [0; 0], "hands are on again");
}

#[test]
fn hello_says_which_mode_each_grant_is_in() {
    let mut talk = Talk::open();
    talk.receive(delta(0, vec![offer(grant(1, 1)), offer(grant(2, 2)), word(grant(2, 2), mode(4, true))]));
    talk.conversation.quiet(grant(2, 2), mode(4, true).edition, Duration::ZERO);
    talk.conversation.close();
    let hello = talk.hello();
    assert!(hello.knows_modes);
    assert_eq!(hello.owned.iter().map(|owned| owned.mode).collect::<Vec<_>>(), [Mode::default(), mode(4, true)]);
    talk.receive(ToWorker::Welcome(Welcome { keep: vec![grant(1, 1), grant(2, 2)], lease: LEASE }));
    assert_eq!(talk.flush(), [], "what was acknowledged on a stream that broke is asked for again");
}
