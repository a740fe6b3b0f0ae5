//! Instances that another owner started: how patient the one that finds them is.

use super::*;
use crate::instance::{BootState, Observation};

/// An instance that was started then, and has not answered any owner.
fn under_way(since: Timestamp, desired: &Desired) -> Instance {
    Instance { boot: BootState::UnderWay { since }, ..instance(0, 1, desired) }
}

/// Another owner, which begins at `now` and finds this; the former one was lost with all it knew.
fn owner(desired: &Arc<Desired>, now: Timestamp, instance: Instance) -> LifecycleBench {
    let mut bench = LifecycleBench::new(desired);
    bench.now = now;
    bench.play(vec![(LifecycleEvent::Tick, OBSERVE, Phase::Down), (found(&[instance]), probe(0), Phase::Down)]);
    bench
}

/// Leaves so many probes unanswered; what is begun after the last one.
fn silent(bench: &mut LifecycleBench, probes: u32) -> Option<LifecycleStep> {
    for n in 0..probes {
        assert_eq!(bench.last.action, probe(0), "probe {n}");
        bench.feed(ended(StepOutcome::Silent("refused".into())));
        if n + 1 < probes {
            bench.wake();
            bench.feed(LifecycleEvent::Tick);
        }
    }
    bench.last.action
}

#[test]
fn a_boot_under_way_keeps_its_patience_over_any_number_of_owners() {
    let d = desired(1, 1, |_| {});
    let started = Timestamp::from_millis(5_000);
    let patience = Config::default().boot_timeout;
    for after in [0, 100, 200, 300, 400, 500] {
        let mut bench = owner(&d, started + Duration::from_secs(after), under_way(started, &d));
        assert_eq!(silent(&mut bench, 40), None, "{after} s after its start");
        assert_eq!(bench.life.status().phase, Phase::Booting);
        assert_eq!(bench.life.status().failed_boots, 0);
    }
    let mut bench = owner(&d, started + patience, under_way(started, &d));
    assert_eq!(silent(&mut bench, 3), destroy(0, 1), "its time is over for every owner");
    assert_eq!(bench.life.status().failed_boots, 1, "a boot that failed, not an instance that was lost");
}

#[test]
fn a_boot_under_way_ends_with_its_first_answer() {
    let d = desired(1, 1, |_| {});
    let mut bench = owner(&d, Timestamp::from_millis(60_000), under_way(Timestamp::from_millis(20_000), &d));
    assert_eq!(silent(&mut bench, 5), None);
    bench.wake();
    bench.play(vec![
        (LifecycleEvent::Tick, probe(0), Phase::Booting),
        (ended(StepOutcome::Answered(Details::default())), configure(0, 1), Phase::Up),
    ]);
    assert_eq!(bench.life.instance(0, None).map(|found| found.boot), Some(BootState::Over));
}

#[test]
fn one_that_has_answered_a_former_owner_has_a_few_probes() {
    let d = desired(1, 1, |_| {});
    let answered = Instance { boot: BootState::Over, ..instance(0, 1, &d) };
    // What was handed over says that it was still being started: the note of its answer is newer.
    let journal =
        vec![JournalEntry { step: "boot 0".into(), request_id: Instance::name(ApplianceId::from_u128(1), 0, 1) }];
    let mut bench = LifecycleBench::with(&d, Progress { journal, ..Progress::default() });
    bench.feed(LifecycleEvent::Tick);
    bench.feed(found(&[answered]));
    assert_eq!(silent(&mut bench, 3), destroy(0, 1));
    let status = bench.life.status();
    assert!(status.last_error.expect("it is shown").contains("left 3 probes unanswered"));
    assert_eq!(status.failed_boots, 0);
}

#[test]
fn a_start_on_another_clock_makes_a_boot_neither_endless_nor_dead_at_once() {
    let d = desired(1, 1, |_| {});
    let now = Timestamp::from_millis(50_000);
    let mut ahead = owner(&d, now, under_way(now + Duration::from_secs(1_000_000), &d));
    let mut probes = 0;
    while silent(&mut ahead, 1).is_none() {
        probes += 1;
        ahead.wake();
        ahead.feed(LifecycleEvent::Tick);
    }
    assert_eq!(ahead.last.action, destroy(0, 1));
    assert!(ahead.now.since(now) >= ahead.config.boot_timeout && probes > 100, "{probes} probes");
    let mut ancient = owner(&d, now, under_way(Timestamp::ZERO, &d));
    ancient.config.boot_timeout = Duration::from_secs(1);
    assert_eq!(silent(&mut ancient, 2), None);
}

#[test]
fn numbers_of_attempts_that_a_lost_owner_used_are_not_used_again() {
    let d = desired(1, 2, |_| {});
    let mut bench = LifecycleBench::new(&d);
    let traces = Observation { running: vec![], attempts: vec![(0, 4), (1, 0), (u16::MAX, 9)] };
    bench.play(vec![
        (LifecycleEvent::Tick, OBSERVE, Phase::Down),
        (ended(StepOutcome::Observed(traces)), boot(0, 5), Phase::Booting),
        (ended(StepOutcome::Booted(instance(0, 5, &d))), boot(1, 1), Phase::Booting),
    ]);
    assert_eq!(bench.life.progress(bench.now).attempts, [5, 1]);
}

#[test]
fn one_that_has_not_said_where_it_serves_is_looked_at_again() {
    let d = balancer(1, 8_000);
    let mut bench = LifecycleBench::new(&d);
    let starts = |ordinal| Instance { boot: BootState::UnderWay { since: bench.now }, ..instance(ordinal, 1, &d) };
    let (first, second) = (starts(0), starts(1));
    let management = Addresses { management: Some(([127, 0, 0, 1], 9_000).into()), service: None };
    let second = Instance { addresses: management, ..second };
    bench.feed(LifecycleEvent::Tick);
    bench.feed(found(&[first.clone(), second.clone()]));
    assert_eq!(bench.last.action, probe(0));
    bench.feed(ended(StepOutcome::Silent("it has no address".into())));
    assert_eq!(bench.last.action, OBSERVE);
    bench.feed(found(&[Instance { addresses: management, ..first }, second]));
    assert_eq!(bench.life.instance(0, None).map(|found| found.addresses), Some(management));
    assert_eq!(bench.last.action, probe(1));
    bench.feed(ended(StepOutcome::Silent("refused".into())));
    assert_ne!(bench.last.action, OBSERVE, "where this one serves is known");
}
