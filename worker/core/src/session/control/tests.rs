//! Tables of (state, event) -> (state, actions).

use super::ending::{END_WORK, LEAVE_GROUP, SAY_LEAVE};
use super::*;

const CONNECT: Duration = Duration::from_secs(5);
const CAP: Duration = Duration::from_secs(2);
const DRAIN: Duration = Duration::from_secs(30);
const NAME: Duration = Duration::from_secs(10);
const LEASE: Duration = Duration::from_millis(800);

fn at(millis: u64) -> Timestamp {
    Timestamp::from_millis(millis)
}

/// A worker under test, at a moment.
struct ControlledWorker {
    control: Control,
    now: Timestamp,
    settled: bool,
}

impl ControlledWorker {
    fn new() -> Self {
        let settings = Settings { connect_timeout: CONNECT, retry_cap: CAP, drain_timeout: DRAIN, name_timeout: NAME };
        let (control, actions) = Control::new(settings, at(0));
        assert_eq!(actions, [ControlAction::Join]);
        Self { control, now: at(0), settled: true }
    }

    fn step(&mut self, event: ControlEvent) -> Vec<ControlAction> {
        self.control.step(self.now, event, 1.0, self.settled)
    }

    fn after(&mut self, millis: u64, event: ControlEvent) -> Vec<ControlAction> {
        self.now = self.now + Duration::from_millis(millis);
        self.step(event)
    }

    /// Steps at the moment the machine asked for.
    fn wake(&mut self) -> Vec<ControlAction> {
        self.now = self.control.wake_at().expect("something is due");
        self.step(ControlEvent::Tick)
    }

    /// One in a life, with these coordinators, that connects to the first.
    fn joined(coordinators: &[&str], beats_on_stream: bool) -> Self {
        let mut worker = Self::new();
        worker.step(ControlEvent::Coordinators(addresses(coordinators)));
        let membership = Membership { lease: LEASE, beats_on_stream };
        let connect = connect(coordinators[0]);
        assert_eq!(worker.step(ControlEvent::Joined(membership)), [connect]);
        worker
    }

    /// One whose stream was welcomed.
    fn streaming(beats_on_stream: bool) -> Self {
        let mut worker = Self::joined(&["a", "b"], beats_on_stream);
        assert_eq!(worker.step(ControlEvent::Connected), [ControlAction::SayHello]);
        let actions = worker.step(ControlEvent::Welcomed(2 * LEASE));
        if beats_on_stream {
            assert_eq!(actions, [ControlAction::Extend(worker.now + LEASE), ControlAction::Beat(1)]);
        } else {
            assert_eq!(actions, []);
        }
        assert!(worker.control.is_streaming());
        worker
    }
}

fn addresses(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn connect(address: &str) -> ControlAction {
    ControlAction::Connect(address.to_owned())
}

fn note(notice: Notice) -> ControlAction {
    ControlAction::Note(notice)
}

fn stop(request: StopRequest) -> ControlEvent {
    ControlEvent::Stop(request)
}

fn again() -> ControlEvent {
    ControlEvent::StreamEnded(StreamEnd::Again(Duration::ZERO))
}

#[test]
fn a_failed_join_is_tried_again_with_growing_pauses() {
    let mut worker = ControlledWorker::new();
    for (failures, pause) in [(1, 100), (2, 200), (3, 400)] {
        let failed = ControlEvent::JoinFailed(JoinFailure::Transient, "no quorum".to_owned());
        assert_eq!(worker.step(failed), [note(Notice::JoinFailed(failures, "no quorum".to_owned()))]);
        assert_eq!(worker.control.wake_at(), Some(worker.now + Duration::from_millis(pause)));
        assert_eq!(worker.wake(), [ControlAction::Join]);
    }
}

#[test]
fn a_name_that_is_taken_ends_the_worker_and_other_permanent_failures_only_the_first_join() {
    let failed = |failure| ControlEvent::JoinFailed(failure, String::new());
    for failure in [JoinFailure::NameTaken, JoinFailure::Permanent] {
        let mut worker = ControlledWorker::new();
        assert_eq!(worker.step(failed(failure)), [ControlAction::EndWork(END_WORK)]);
        let ended = worker.step(ControlEvent::WorkEnded { in_time: true });
        assert_eq!(ended, [ControlAction::End(Outcome::CannotJoin)]);
    }
    let mut worker = ControlledWorker::joined(&["a"], false);
    worker.step(ControlEvent::LifeOver("evicted".to_owned()));
    assert_eq!(worker.wake(), [ControlAction::Join]);
    assert_eq!(worker.step(failed(JoinFailure::Permanent)), [note(Notice::JoinFailed(1, String::new()))]);
    assert_eq!(worker.wake(), [ControlAction::Join]);
    assert_eq!(worker.step(failed(JoinFailure::NameTaken)), [ControlAction::EndWork(END_WORK)]);
}

#[test]
fn a_name_that_another_worker_keeps_ends_the_worker_that_came_second() {
    let taken = || ControlEvent::StreamEnded(StreamEnd::NameTaken(LEASE));
    let mut worker = ControlledWorker::joined(&["a"], true);
    let first = worker.now;
    loop {
        worker.step(ControlEvent::Connected);
        let actions = worker.step(taken());
        if worker.control.is_ending() {
            assert_eq!(actions, [ControlAction::Disconnect, ControlAction::EndWork(END_WORK)]);
            break;
        }
        assert!(worker.now < first + LEASE + NAME);
        assert_eq!(worker.wake(), [connect("a")]);
    }
    assert!(worker.now >= first + LEASE + NAME, "whoever had it before gets time to end");
    assert_eq!(worker.step(ControlEvent::WorkEnded { in_time: true }), [ControlAction::LeaveGroup(LEAVE_GROUP)]);
    let ended = worker.step(ControlEvent::LeftGroup { in_time: true });
    assert_eq!(ended, [ControlAction::End(Outcome::CannotJoin)]);

    let mut worker = ControlledWorker::joined(&["a"], true);
    worker.step(ControlEvent::Connected);
    worker.step(taken());
    worker.wake();
    worker.step(ControlEvent::Connected);
    worker.step(ControlEvent::Welcomed(LEASE));
    worker.now = worker.now + 2 * NAME;
    worker.step(ControlEvent::StreamEnded(StreamEnd::LifeOver("late".to_owned())));
    worker.wake();
    worker.step(ControlEvent::Joined(Membership { lease: LEASE, beats_on_stream: true }));
    worker.step(ControlEvent::Connected);
    worker.step(taken());
    assert!(!worker.control.is_ending(), "it had the name since, and waits anew");
}

#[test]
fn coordinators_are_tried_in_turn_and_a_change_of_the_leader_starts_over() {
    let mut worker = ControlledWorker::joined(&["a", "b"], false);
    let failed = |n: &str, failures| [note(Notice::ConnectFailed(n.to_owned(), failures, "no route".to_owned()))];
    assert_eq!(worker.step(ControlEvent::ConnectFailed("no route".to_owned())), failed("a", 1));
    assert_eq!(worker.wake(), [connect("b")]);
    assert_eq!(worker.step(ControlEvent::ConnectFailed("no route".to_owned())), failed("b", 2));
    let changed = ControlEvent::Coordinators(addresses(&["c", "a"]));
    assert_eq!(worker.step(changed), [note(Notice::LeaderChanged), connect("c")]);
    let changed = ControlEvent::Coordinators(addresses(&["d"]));
    let abandoned = [note(Notice::LeaderChanged), ControlAction::Disconnect, connect("d")];
    assert_eq!(worker.step(changed), abandoned, "the try to connect is given up");
}

#[test]
fn without_a_coordinator_the_worker_waits_and_connects_to_the_first_that_is_known() {
    let mut worker = ControlledWorker::new();
    let joined = ControlEvent::Joined(Membership { lease: LEASE, beats_on_stream: false });
    assert_eq!(worker.step(joined), [note(Notice::NoCoordinator)]);
    assert_eq!(worker.wake(), [], "said once");
    let known = ControlEvent::Coordinators(addresses(&["a"]));
    assert_eq!(worker.step(known), [note(Notice::LeaderChanged), connect("a")]);
}

#[test]
fn a_hello_without_an_answer_ends_the_stream_and_the_next_coordinator_is_tried() {
    let mut worker = ControlledWorker::joined(&["a", "b"], true);
    worker.step(ControlEvent::Connected);
    assert_eq!(worker.after(4_000, ControlEvent::HelloSent), []);
    assert_eq!(worker.after(4_999, ControlEvent::Tick), [], "timed from when it was sent");
    assert_eq!(worker.wake(), [note(Notice::HelloUnanswered), ControlAction::Disconnect]);
    assert_eq!(worker.wake(), [connect("b")]);
}

#[test]
fn a_stream_that_was_welcomed_is_followed_by_another_to_the_same_coordinator_soon() {
    let mut worker = ControlledWorker::streaming(false);
    for _ in 0..3 {
        assert_eq!(worker.step(again()), [ControlAction::Disconnect]);
        assert_eq!(worker.control.wake_at(), Some(worker.now + FIRST_PAUSE));
        assert_eq!(worker.wake(), [connect("a")]);
        worker.step(ControlEvent::Connected);
        worker.step(ControlEvent::Welcomed(LEASE));
    }
    let later = Duration::from_secs(9);
    worker.step(ControlEvent::StreamEnded(StreamEnd::Again(later)));
    assert_eq!(worker.control.wake_at(), Some(worker.now + later), "the coordinator asked for it");
}

#[test]
fn heartbeats_on_the_stream_extend_the_lease_from_when_they_were_sent() {
    let mut worker = ControlledWorker::streaming(true);
    let sent = worker.now;
    let answered = worker.after(30, ControlEvent::BeatAnswered(1));
    assert_eq!(answered, [ControlAction::Extend(sent + LEASE)]);
    assert_eq!(worker.step(ControlEvent::BeatAnswered(1)), [], "an answer counts once");
    assert_eq!(worker.wake(), [ControlAction::Beat(2)]);
    let actions: Vec<_> = (0..4).flat_map(|_| worker.wake()).collect();
    assert_eq!(actions, [note(Notice::BeatsUnanswered), ControlAction::Disconnect]);
}

#[test]
fn a_life_that_keeps_itself_is_extended_by_nothing_on_the_stream() {
    let mut worker = ControlledWorker::streaming(false);
    assert_eq!(worker.step(ControlEvent::BeatAnswered(1)), []);
    assert_eq!(worker.control.wake_at(), None);
}

#[test]
fn the_end_of_a_life_is_followed_by_another_one() {
    let why = || "evicted".to_owned();
    let over = [ControlAction::Disconnect, ControlAction::EndLife(why())];
    for end in [ControlEvent::LifeOver(why()), ControlEvent::StreamEnded(StreamEnd::LifeOver(why()))] {
        let mut worker = ControlledWorker::streaming(false);
        assert_eq!(worker.step(end), over);
        assert_eq!(worker.wake(), [ControlAction::Join]);
        let joined = ControlEvent::Joined(Membership { lease: LEASE, beats_on_stream: false });
        assert_eq!(worker.step(joined), [connect("a")]);
    }
    let mut worker = ControlledWorker::joined(&["a"], false);
    assert_eq!(worker.step(ControlEvent::LifeOver(why())), over);
    assert_eq!(worker.step(ControlEvent::LifeOver(why())), [], "it is over already");
}

#[test]
fn a_drain_is_announced_on_each_stream_and_ends_when_everything_is_handed_over() {
    let mut worker = ControlledWorker::streaming(false);
    worker.settled = false;
    assert_eq!(worker.step(ControlEvent::HandedOver), [], "no drain was requested");
    assert_eq!(worker.step(stop(StopRequest::Drain)), [ControlAction::SayDrain]);
    assert_eq!(worker.step(stop(StopRequest::Drain)), []);
    worker.step(again());
    assert_eq!(worker.wake(), [connect("a")]);
    worker.step(ControlEvent::Connected);
    assert_eq!(worker.step(ControlEvent::Welcomed(LEASE)), [ControlAction::SayDrain]);
    let leaving = [note(Notice::Leaving(LeaveReason::Drained)), ControlAction::EndWork(END_WORK)];
    assert_eq!(worker.step(ControlEvent::HandedOver), leaving);
    let ended = worker.step(ControlEvent::WorkEnded { in_time: true });
    assert_eq!(ended, [ControlAction::SayLeave(SAY_LEAVE)]);
    assert_eq!(worker.step(ControlEvent::LeaveSaid), [ControlAction::LeaveGroup(LEAVE_GROUP)]);
    let left = worker.step(ControlEvent::LeftGroup { in_time: false });
    assert_eq!(left, [note(Notice::GroupNotLeft), ControlAction::End(Outcome::Left)]);
    assert!(worker.control.has_ended());
    assert_eq!(worker.step(stop(StopRequest::Leave)), []);
}

#[test]
fn a_drain_ends_with_its_timeout_or_a_second_request() {
    for (wait, event, why) in
        [(30_000, ControlEvent::Tick, LeaveReason::TimedOut), (10, stop(StopRequest::Leave), LeaveReason::Asked)]
    {
        let mut worker = ControlledWorker::streaming(false);
        worker.settled = false;
        worker.step(stop(StopRequest::Drain));
        let leaving = [note(Notice::Leaving(why)), ControlAction::EndWork(END_WORK)];
        assert_eq!(worker.after(wait, event), leaving);
    }
}

#[test]
fn a_drain_bears_no_stream_only_for_a_while_and_without_grants_not_at_all() {
    for (settled, wait, why) in [(false, 2_000, LeaveReason::NoCoordinator), (true, 0, LeaveReason::Asked)] {
        let mut worker = ControlledWorker::joined(&["a"], false);
        worker.settled = settled;
        worker.step(again());
        worker.step(ControlEvent::ConnectFailed(String::new()));
        let mut actions = worker.step(stop(StopRequest::Drain));
        let asked = worker.now;
        while actions.is_empty() || actions[0] == connect("a") {
            if worker.control.is_ending() {
                break;
            }
            let ticks = worker.wake();
            actions = ticks;
        }
        assert_eq!(actions[0], note(Notice::Leaving(why)));
        assert_eq!(worker.now, asked + Duration::from_millis(wait));
    }
}

#[test]
fn the_only_coordinator_is_not_waited_for_when_both_stop() {
    let stops = || ControlEvent::StreamEnded(StreamEnd::CoordinatorStops(Duration::ZERO));
    let mut worker = ControlledWorker::streaming(true);
    worker.settled = false;
    worker.step(stop(StopRequest::Drain));
    let leaving = note(Notice::Leaving(LeaveReason::CoordinatorStops));
    assert_eq!(worker.step(stops()), [ControlAction::Disconnect, leaving, ControlAction::EndWork(END_WORK)]);
    let mut worker = ControlledWorker::streaming(false);
    worker.settled = false;
    worker.step(stop(StopRequest::Drain));
    assert_eq!(worker.step(stops()), [ControlAction::Disconnect], "another one may lead");
}

#[test]
fn a_stop_while_joining_leaves_without_a_group() {
    for request in [StopRequest::Drain, StopRequest::Leave] {
        let mut worker = ControlledWorker::new();
        let leaving = [note(Notice::Leaving(LeaveReason::Asked)), ControlAction::EndWork(END_WORK)];
        assert_eq!(worker.step(stop(request)), leaving);
        let ended = worker.step(ControlEvent::WorkEnded { in_time: false });
        assert_eq!(ended, [note(Notice::WorkGoesOn), ControlAction::End(Outcome::Left)]);
    }
}

#[test]
fn events_of_what_was_given_up_change_nothing() {
    let stale = || {
        [
            ControlEvent::Joined(Membership { lease: LEASE, beats_on_stream: true }),
            ControlEvent::JoinFailed(JoinFailure::NameTaken, String::new()),
            ControlEvent::Connected,
            ControlEvent::ConnectFailed(String::new()),
            ControlEvent::WorkEnded { in_time: true },
            ControlEvent::LeaveSaid,
            ControlEvent::LeftGroup { in_time: true },
        ]
    };
    let mut worker = ControlledWorker::streaming(false);
    for event in stale() {
        let before = worker.control.clone();
        assert_eq!(worker.step(event), []);
        assert_eq!(worker.control, before);
    }
    let mut worker = ControlledWorker::joined(&["a"], false);
    for event in [again(), ControlEvent::Welcomed(LEASE), ControlEvent::HelloSent, ControlEvent::HandedOver] {
        let before = worker.control.clone();
        assert_eq!(worker.step(event), []);
        assert_eq!(worker.control, before);
    }
}
