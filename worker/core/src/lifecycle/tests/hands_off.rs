//! Hands off: what is begun, what is noted, and what follows when hands are on again.

use common::mode::MAX_WOULD_HAVE;

use super::*;

const OFF: LifecycleEvent = LifecycleEvent::HandsOff(true);
const ON: LifecycleEvent = LifecycleEvent::HandsOff(false);

/// What would have been done, and how often in a row.
fn would_have(bench: &LifecycleBench) -> Vec<(String, u32)> {
    bench.life.would_have(bench.now).into_iter().map(|one| (one.step, one.times)).collect()
}

fn answered() -> LifecycleEvent {
    ended(StepOutcome::Answered(Details::default()))
}

/// Carries out what is begun as long as there is anything, with every instance answering and these found.
fn go_on(bench: &mut LifecycleBench, running: &[Instance]) -> Vec<LifecycleStep> {
    let mut begun = vec![];
    while let Some(step) = bench.last.action {
        begun.push(step);
        bench.feed(ended(match step {
            LifecycleStep::Observe => StepOutcome::Observed(running.to_vec().into()),
            LifecycleStep::Probe { .. } => StepOutcome::Answered(Details::default()),
            LifecycleStep::Configure { .. } => StepOutcome::Configured,
            LifecycleStep::Destroy { .. } => StepOutcome::Destroyed,
            other => panic!("{other} is not expected"),
        }));
    }
    begun
}

#[test]
fn probes_go_on_and_nothing_else_is_begun() {
    let d = desired(1, 1, |_| {});
    let mut bench = LifecycleBench::configured(&d);
    bench.feed(OFF);
    go_on(&mut bench, &[instance(0, 1, &d)]);
    bench.feed(LifecycleEvent::Change(desired(2, 1, |_| {})));
    go_on(&mut bench, &[instance(0, 1, &d)]);
    assert_eq!(would_have(&bench)[0].0, "configure 0");
    for _ in 0..10 {
        bench.wake();
        bench.feed(LifecycleEvent::Tick);
        let begun = go_on(&mut bench, &[instance(0, 1, &d)]);
        assert!(begun.iter().all(|step| !step.changes_the_world()), "{begun:?}");
        assert!(!begun.is_empty(), "a probe, or a look");
    }
    assert_eq!(would_have(&bench).len(), 1, "the same again is one entry");
    bench.feed(ON);
    assert_eq!(bench.last.action, OBSERVE);
    assert_eq!(go_on(&mut bench, &[instance(0, 1, &d)]).last().copied(), configure(0, 2), "and now it is done");
}

#[test]
fn a_step_that_runs_ends_and_none_follows_it() {
    let d = desired(1, 1, |_| {});
    let mut bench = LifecycleBench::new(&d);
    bench.play(vec![
        (LifecycleEvent::Tick, OBSERVE, Phase::Down),
        (found(&[]), boot(0, 1), Phase::Booting),
        (OFF, None, Phase::Booting),
    ]);
    assert!(bench.life.is_changing());
    bench.feed(ended(StepOutcome::Booted(instance(0, 1, &d))));
    assert!(!bench.life.is_changing());
    go_on(&mut bench, &[instance(0, 1, &d)]);
    bench.wake();
    bench.feed(LifecycleEvent::Tick);
    assert!(go_on(&mut bench, &[instance(0, 1, &d)]).iter().all(|step| !step.changes_the_world()));
    assert_eq!(would_have(&bench)[0].0, "configure 0");
}

#[test]
fn what_is_taken_on_with_hands_off_is_only_looked_at() {
    let d = desired(1, 1, |_| {});
    let mut bench = LifecycleBench::new(&d);
    bench.life.begin_hands_off();
    bench.feed(LifecycleEvent::Tick);
    assert_eq!(go_on(&mut bench, &[]).first(), Some(&LifecycleStep::Observe));
    assert_eq!(would_have(&bench)[0].0, "boot 0");
    assert!(bench.last.wake_at.is_some(), "it is looked at again");
    bench.play(vec![(ON, OBSERVE, Phase::Down), (found(&[]), boot(0, 1), Phase::Booting)]);
}

#[test]
fn an_instance_that_is_silent_is_not_given_up_and_one_restarted_by_hand_is_kept() {
    let d = desired(1, 1, |_| {});
    let mut bench = LifecycleBench::configured(&d);
    bench.feed(OFF);
    go_on(&mut bench, &[instance(0, 1, &d)]);
    for _ in 0..20 {
        bench.wake();
        bench.feed(LifecycleEvent::Tick);
        while let Some(step) = bench.last.action {
            bench.feed(match step {
                LifecycleStep::Observe => found(&[instance(0, 1, &d)]),
                LifecycleStep::Probe { .. } => ended(StepOutcome::Silent("stopped by hand".into())),
                other => panic!("{other} with hands off"),
            });
        }
    }
    assert_eq!(would_have(&bench)[0].0, "replace 0");
    assert_eq!(bench.life.would_have(bench.now)[0].reason, "stopped by hand");
    bench.feed(ON);
    assert_eq!(bench.last.action, OBSERVE);
    bench.feed(found(&[instance(0, 1, &d)]));
    while bench.last.action.is_some_and(|step| !step.changes_the_world()) {
        bench.feed(answered());
    }
    assert_eq!((bench.last.action, bench.life.status().phase), (None, Phase::Configured), "it answers again");
}

#[test]
fn a_deletion_waits_and_is_probed_meanwhile() {
    let d = desired(1, 1, |_| {});
    let mut bench = LifecycleBench::configured(&d);
    bench.feed(OFF);
    go_on(&mut bench, &[instance(0, 1, &d)]);
    bench.feed(LifecycleEvent::Change(desired(2, 1, |d| d.deleting = true)));
    go_on(&mut bench, &[instance(0, 1, &d)]);
    assert_eq!((would_have(&bench)[0].0.as_str(), bench.life.status().phase), ("remove", Phase::Deleting));
    bench.wake();
    bench.feed(LifecycleEvent::Tick);
    assert!(!go_on(&mut bench, &[instance(0, 1, &d)]).is_empty());
    bench.play(vec![
        (ON, OBSERVE, Phase::Deleting),
        (found(&[instance(0, 1, &d)]), destroy(0, 1), Phase::Deleting),
        (ended(StepOutcome::Destroyed), Some(LifecycleStep::Forget), Phase::Deleting),
    ]);
}

#[test]
fn changes_made_meanwhile_fold_into_what_is_wanted_at_the_end() {
    let d = desired(1, 1, |_| {});
    let mut bench = LifecycleBench::configured(&d);
    bench.feed(OFF);
    go_on(&mut bench, &[instance(0, 1, &d)]);
    for (generation, replicas) in [(2, 3), (3, 2), (4, 1)] {
        bench.feed(LifecycleEvent::Change(desired(generation, replicas, |_| {})));
        go_on(&mut bench, &[instance(0, 1, &d)]);
    }
    bench.feed(ON);
    let steps = go_on(&mut bench, &[instance(0, 1, &d)]);
    let changes: Vec<_> = steps.into_iter().filter(|step| step.changes_the_world()).collect();
    assert_eq!(changes.into_iter().map(Some).collect::<Vec<_>>(), [configure(0, 4)]);
}

#[test]
fn it_is_released_at_once_with_hands_off() {
    let mut bench = LifecycleBench::configured(&desired(1, 1, |_| {}));
    bench.feed(OFF);
    bench.feed(LifecycleEvent::Release);
    assert!(matches!(bench.last.end, Some(LifecycleEnd::Released(_))));
}

#[test]
fn what_would_have_been_done_is_bounded_and_the_newest_comes_first() {
    let d = desired(1, 1, |_| {});
    let mut bench = LifecycleBench::configured(&d);
    bench.feed(OFF);
    go_on(&mut bench, &[instance(0, 1, &d)]);
    for n in 0..2 * MAX_WOULD_HAVE as u64 {
        bench.life.withhold_for_test(bench.now, n);
    }
    let all = would_have(&bench);
    assert_eq!((all.len(), all[0].0.as_str()), (MAX_WOULD_HAVE, "step 31"));
    bench.feed(ON);
    bench.feed(OFF);
    assert_eq!(would_have(&bench).into_iter().filter(|(step, _)| step.starts_with("step")).count(), 0, "of this time");
}
