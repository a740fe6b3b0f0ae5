//! Instances that hand their service over: the successor comes first, and costs nothing if it fails.

use super::*;

const OLD: u64 = 1;

fn rebuilt(generation: u64, replicas: u16, revision: u64) -> Arc<Desired> {
    desired(generation, replicas, |next| next.revision = revision)
}

fn serving(ordinal: u16, attempt: u32, desired: &Desired) -> Instance {
    Instance { hands_over: true, ..instance(ordinal, attempt, desired) }
}

fn beside(ordinal: u16, attempt: u32, predecessor: u32) -> Option<LifecycleStep> {
    Some(LifecycleStep::Boot { ordinal, attempt, beside: Some(predecessor) })
}

fn configure(ordinal: u16, generation: u64) -> Option<LifecycleStep> {
    Some(LifecycleStep::Configure {
        ordinal,
        generation: Generation::new(generation),
        peers: crate::peers::PeerDigest::default(),
    })
}

fn answered() -> LifecycleEvent {
    ended(StepOutcome::Answered(Details::default()))
}

/// All of its instances serve and can hand over, and a rebuild comes.
fn rebuilding(replicas: u16) -> (LifecycleBench, Arc<Desired>, Arc<Desired>) {
    let (old, new) = (rebuilt(OLD, replicas, 0), rebuilt(2, replicas, 1));
    let mut bench = LifecycleBench::new(&old);
    bench.feed(LifecycleEvent::Tick);
    bench.feed(found(&(0..replicas).map(|n| serving(n, 1, &old)).collect::<Vec<_>>()));
    (0..replicas).for_each(|_| drop(bench.feed(answered()).clone()));
    (0..replicas).for_each(|_| drop(bench.feed(ended(StepOutcome::Configured)).clone()));
    assert_eq!(bench.life.status().phase, Phase::Configured);
    bench.feed(LifecycleEvent::Change(Arc::clone(&new)));
    (bench, old, new)
}

/// The successor has been started and answers.
fn risen(bench: &mut LifecycleBench, attempt: u32, new: &Desired) {
    bench.feed(ended(StepOutcome::Booted(serving(0, attempt, new))));
    if bench.last.action == configure(1, 2) {
        // Meanwhile the other one is told of the newer generation.
        bench.feed(ended(StepOutcome::Configured));
    }
    bench.wake();
    bench.play(vec![
        (LifecycleEvent::Tick, probe(0), Phase::Restarting),
        (answered(), configure(0, 2), Phase::Restarting),
    ]);
}

#[test]
fn the_predecessor_is_ended_once_its_successor_serves_and_one_after_the_other() {
    let (mut bench, _, new) = rebuilding(2);
    assert_eq!(bench.last.action, beside(0, 2, 1));
    risen(&mut bench, 2, &new);
    bench.play(vec![
        (ended(StepOutcome::Configured), destroy(0, 1), Phase::Restarting),
        (ended(StepOutcome::Destroyed), beside(1, 2, 1), Phase::Restarting),
        (ended(StepOutcome::Booted(serving(1, 2, &new))), None, Phase::Restarting),
    ]);
    bench.wake();
    bench.play(vec![
        (LifecycleEvent::Tick, probe(1), Phase::Restarting),
        (answered(), configure(1, 2), Phase::Restarting),
        (ended(StepOutcome::Configured), destroy(1, 1), Phase::Configured),
        (ended(StepOutcome::Destroyed), None, Phase::Configured),
    ]);
}

/// A way to fail.
type Fail = fn(&mut LifecycleBench, &Desired);

#[test]
fn a_successor_that_fails_leaves_its_predecessor_in_place() {
    let fails: [(&str, Fail); 4] = [
        ("it is not started", |bench, _| drop(bench.feed(failed("no")).clone())),
        ("it ends before it answers", |bench, new| {
            bench.feed(ended(StepOutcome::Booted(serving(0, 2, new))));
            bench.wake();
            bench.feed(LifecycleEvent::Tick);
            bench.feed(ended(StepOutcome::Vanished("exit status 1".into(), None)));
        }),
        ("its configuration is refused", |bench, new| {
            risen(bench, 2, new);
            bench.play(vec![(ended(StepOutcome::Refused("no".into())), destroy(0, 2), Phase::Restarting)]);
            bench.feed(ended(StepOutcome::Destroyed));
        }),
        ("it ends while it is configured", |bench, new| {
            risen(bench, 2, new);
            bench.feed(ended(StepOutcome::Vanished("exit status 1".into(), None)));
        }),
    ];
    for (name, fail) in fails {
        let (mut bench, old, new) = rebuilding(1);
        fail(&mut bench, &new);
        for _ in 0..10 {
            match bench.last.action {
                Some(LifecycleStep::Observe) => drop(bench.feed(found(&[serving(0, 1, &old)])).clone()),
                Some(LifecycleStep::Probe { .. }) => drop(bench.feed(answered()).clone()),
                Some(LifecycleStep::Configure { .. }) => drop(bench.feed(ended(StepOutcome::Configured)).clone()),
                Some(LifecycleStep::Boot { .. }) => break,
                Some(other) => panic!("{name}: {other}"),
                None => {
                    assert_eq!(bench.life.status().instances[0].name, Instance::name(bench.life.appliance(), 0, 1));
                    assert_eq!(bench.life.status().instances[0].alive, Some(true), "{name}");
                    bench.wake();
                    bench.feed(LifecycleEvent::Tick);
                }
            }
        }
        let Some(LifecycleStep::Boot { beside, .. }) = bench.last.action else {
            panic!("{name}: it is not tried again: {:?}", bench.last)
        };
        assert_eq!(beside, Some(1), "{name}");
        assert!(bench.life.status().last_error.is_some(), "{name}");
    }
}

#[test]
fn a_predecessor_that_hands_nothing_over_is_ended_after_the_second_try() {
    let (mut bench, _, new) = rebuilding(1);
    risen(&mut bench, 2, &new);
    bench.play(vec![(failed("the instance before hands nothing over"), None, Phase::Restarting)]);
    while bench.last.action != configure(0, 2) {
        bench.wake();
        bench.feed(LifecycleEvent::Tick);
        if bench.last.action == probe(0) {
            bench.feed(answered());
        }
    }
    bench.play(vec![(ended(StepOutcome::TimedOut), destroy(0, 1), Phase::Restarting)]);
}

#[test]
fn a_new_owner_goes_on_where_the_former_was() {
    let (old, new) = (rebuilt(OLD, 1, 0), rebuilt(2, 1, 1));
    let mut bench = LifecycleBench::new(&new);
    bench.play(vec![
        (LifecycleEvent::Tick, OBSERVE, Phase::Down),
        (found(&[serving(0, 1, &old), serving(0, 2, &new)]), probe(0), Phase::Down),
        (answered(), configure(0, 2), Phase::Down),
        (ended(StepOutcome::Configured), destroy(0, 1), Phase::Configured),
    ]);
    // What cannot hand over is in the way of the other.
    let mut bench = LifecycleBench::new(&new);
    bench.feed(LifecycleEvent::Tick);
    bench.feed(found(&[instance(0, 1, &old), serving(0, 2, &new)]));
    assert_eq!(bench.last.action, destroy(0, 1));
}

#[test]
fn a_deletion_ends_both() {
    let (mut bench, old, new) = rebuilding(1);
    bench.feed(ended(StepOutcome::Booted(serving(0, 2, &new))));
    let gone = desired(3, 1, |next| (next.revision, next.deleting) = (1, true));
    bench.feed(LifecycleEvent::Change(gone));
    let mut left = vec![(0, 1), (0, 2)];
    while let Some(LifecycleStep::Destroy { ordinal, attempt }) = bench.last.action {
        left.retain(|instance| *instance != (ordinal, attempt));
        bench.feed(ended(StepOutcome::Destroyed));
    }
    assert_eq!((left, bench.last.action), (vec![], Some(LifecycleStep::Forget)), "{old:?}");
}

#[test]
fn one_that_does_not_answer_is_ended_first() {
    let (mut bench, old, _) = rebuilding(1);
    bench.feed(failed("no"));
    bench.feed(found(&[serving(0, 1, &old)]));
    // Its probes fail from now on.
    for _ in 0..100 {
        match bench.last.action {
            Some(LifecycleStep::Probe { .. }) => drop(bench.feed(ended(StepOutcome::Silent("no".into()))).clone()),
            Some(LifecycleStep::Configure { .. }) => drop(bench.feed(ended(StepOutcome::Configured)).clone()),
            Some(LifecycleStep::Boot { .. }) => drop(bench.feed(failed("no")).clone()),
            Some(LifecycleStep::Observe) => drop(bench.feed(found(&[serving(0, 1, &old)])).clone()),
            Some(LifecycleStep::Destroy { attempt, .. }) => return assert_eq!(attempt, 1),
            Some(other) => panic!("{other}"),
            None => {
                bench.wake();
                bench.feed(LifecycleEvent::Tick);
            }
        }
    }
    panic!("it is never ended");
}
