//! Takeovers of what runs already, and repairs of what died.

use common::status::{EndCause, InstanceEnd, MANAGEMENT_DETAIL};

use super::*;

#[test]
fn a_takeover_adopts_without_a_restart_and_without_noise() {
    let d = desired(3, 2, |_| {});
    let mut bench = LifecycleBench::new(&d);
    let mut news = 0;
    for event in [
        LifecycleEvent::Tick,
        found(&[instance(0, 4, &d), instance(1, 2, &d)]),
        ended(StepOutcome::Answered(Details::default())),
        ended(StepOutcome::Answered(Details::default())),
        ended(StepOutcome::Configured),
        ended(StepOutcome::Configured),
    ] {
        news += u32::from(bench.feed(event).status_changed);
        if let Some(step) = bench.last.action {
            assert!(
                !matches!(step, LifecycleStep::Boot { .. } | LifecycleStep::Destroy { .. }),
                "{step} during an adoption"
            );
        }
    }
    assert_eq!((bench.life.status().phase, news), (Phase::Configured, 1));
    assert_eq!(bench.life.progress(bench.now).attempts, [4, 2]);
}

#[test]
fn an_adopted_instance_that_does_not_answer_is_replaced_like_any_other() {
    let d = desired(1, 1, |_| {});
    let mut bench = LifecycleBench::new(&d);
    bench.feed(LifecycleEvent::Tick);
    bench.feed(found(&[instance(0, 3, &d)]));
    for _ in 0..2 {
        assert_eq!(bench.last.action, probe(0));
        bench.feed(ended(StepOutcome::Silent("connection refused".into())));
        assert_eq!(bench.wake(), Duration::from_secs(1));
        bench.feed(LifecycleEvent::Tick);
    }
    bench.play(vec![
        (ended(StepOutcome::Silent("connection refused".into())), destroy(0, 3), Phase::Down),
        (ended(StepOutcome::Destroyed), boot(0, 4), Phase::Booting),
    ]);
    let status = bench.life.status();
    assert_eq!(status.failed_boots, 0, "it had been started long before");
    assert_eq!(status.last_error.as_deref(), Some("instance 0 left 3 probes unanswered: connection refused"));

    let mut bench = LifecycleBench::new(&d);
    bench.play(vec![
        (LifecycleEvent::Tick, OBSERVE, Phase::Down),
        (found(&[instance(0, 3, &d)]), probe(0), Phase::Down),
        (ended(StepOutcome::Vanished("connection refused".into(), None)), boot(0, 4), Phase::Booting),
    ]);
    assert_eq!(bench.life.status().failed_boots, 0);
}

#[test]
fn a_boot_that_was_handed_over_keeps_the_patience_of_a_boot() {
    let d = desired(1, 2, |_| {});
    let mut bench = LifecycleBench::new(&d);
    bench.feed(LifecycleEvent::Tick);
    bench.feed(found(&[instance(1, 1, &d)]));
    bench.feed(ended(StepOutcome::Booted(instance(0, 1, &d))));
    bench.feed(LifecycleEvent::Release);
    let Some(LifecycleEnd::Released(progress)) = bench.last.end.clone() else { panic!("a probe is dropped") };
    assert_eq!(progress.journal.len(), 1, "what was adopted is not being started: {:?}", progress.journal);

    let mut next = LifecycleBench::with(&d, progress);
    next.feed(LifecycleEvent::Tick);
    next.feed(found(&[instance(0, 1, &d), instance(1, 1, &d)]));
    let lives: Vec<_> = next.life.fleet.slots.iter().map(InstanceSlot::is_rising).collect();
    assert_eq!(lives, [true, false]);
    for _ in 0..20 {
        while let Some(step) = next.last.action {
            let answers = step.ordinal() == Some(1);
            next.feed(ended(match step {
                LifecycleStep::Configure { .. } => StepOutcome::Configured,
                _ if answers => StepOutcome::Answered(Details::default()),
                _ => StepOutcome::Silent("refused".into()),
            }));
        }
        next.wake();
        next.feed(LifecycleEvent::Tick);
    }
    assert!(next.life.fleet.slot(0).is_some_and(InstanceSlot::is_rising), "it is still waited for");
}

#[test]
fn a_takeover_destroys_duplicates_and_extras_and_keeps_the_lowest_attempt() {
    let d = desired(1, 1, |_| {});
    let mut bench = LifecycleBench::new(&d);
    bench.play(vec![
        (LifecycleEvent::Tick, OBSERVE, Phase::Down),
        (found(&[instance(1, 1, &d), instance(0, 5, &d), instance(0, 2, &d)]), destroy(0, 5), Phase::Booting),
        (ended(StepOutcome::Destroyed), destroy(1, 1), Phase::Booting),
        (ended(StepOutcome::Destroyed), probe(0), Phase::Booting),
        (ended(StepOutcome::Answered(Details::default())), configure(0, 1), Phase::Up),
        (ended(StepOutcome::Configured), None, Phase::Configured),
    ]);
    assert!(bench.life.status().instances[0].name.ends_with("-0-2"));
}

#[test]
fn the_dead_are_replaced_and_configured_again() {
    let d = desired(1, 1, |_| {});
    let mut bench = LifecycleBench::configured(&d);
    bench.wake();
    bench.play(vec![
        (LifecycleEvent::Tick, probe(0), Phase::Configured),
        (ended(StepOutcome::Vanished("connection refused".into(), None)), boot(0, 2), Phase::Booting),
        (ended(StepOutcome::Booted(instance(0, 2, &d))), None, Phase::Booting),
    ]);
    assert_eq!(bench.life.status().last_error.as_deref(), Some("instance 0 is gone: connection refused"));
    bench.wake();
    bench.play(vec![
        (LifecycleEvent::Tick, probe(0), Phase::Booting),
        (ended(StepOutcome::Answered(Details::default())), configure(0, 1), Phase::Up),
        (ended(StepOutcome::Configured), None, Phase::Configured),
    ]);
    assert_eq!(bench.life.status().last_error, None);
}

#[test]
fn an_instance_that_has_ended_is_probed_at_once() {
    let d = desired(1, 2, |_| {});
    let exited = |attempt| LifecycleEvent::Exited { ordinal: 1, attempt };
    let mut bench = LifecycleBench::configured(&d);
    bench.play(vec![
        (exited(7), None, Phase::Configured),
        (exited(1), probe(1), Phase::Configured),
        // Said again while it is probed, and then once more after an answer that came before its end.
        (exited(1), None, Phase::Configured),
        (ended(StepOutcome::Answered(Details::default())), probe(1), Phase::Configured),
        (ended(StepOutcome::Answered(Details::default())), None, Phase::Configured),
        (exited(1), probe(1), Phase::Configured),
        (ended(StepOutcome::Vanished("exit status 3".into(), None)), boot(1, 2), Phase::Degraded),
        (exited(1), None, Phase::Degraded),
    ]);
    assert_eq!(bench.life.status().last_error.as_deref(), Some("instance 1 is gone: exit status 3"));
}

#[test]
fn how_an_instance_ended_is_shown_and_travels_to_the_next_owner() {
    let d = desired(1, 1, |_| {});
    let end = |status| {
        let lines = vec!["no such table".to_owned()];
        let cause = EndCause::Exit(status);
        let end = InstanceEnd { instance: "a".into(), at_unix_ms: 7, cause, out_of_memory: false, last_lines: lines };
        Some(Box::new(end))
    };
    let mut bench = LifecycleBench::configured(&d);
    bench.play(vec![
        (LifecycleEvent::Exited { ordinal: 0, attempt: 1 }, probe(0), Phase::Configured),
        (ended(StepOutcome::Vanished("exit status 3".into(), end(3))), boot(0, 2), Phase::Booting),
        (ended(StepOutcome::Vanished("exit status 4".into(), end(4))), OBSERVE, Phase::Down),
    ]);
    let status = bench.life.status();
    assert_eq!(status.last_error.as_deref(), Some("boot of instance 0: ended at once: exit status 4"));
    assert_eq!((status.failed_boots, &status.last_end), (1, &end(4)));
    // It is not forgotten when all is well, nor by the next owner.
    bench.play(vec![
        (found(&[instance(0, 2, &d)]), probe(0), Phase::Booting),
        (ended(StepOutcome::Answered(Details::default())), configure(0, 1), Phase::Up),
        (ended(StepOutcome::Configured), None, Phase::Configured),
        (LifecycleEvent::Release, None, Phase::Configured),
    ]);
    assert_eq!((bench.life.status().last_error, bench.life.status().last_end), (None, end(4)));
    let Some(LifecycleEnd::Released(progress)) = bench.last.end.clone() else { panic!("nothing runs") };
    assert_eq!(LifecycleBench::with(&d, progress).life.status().last_end, end(4));
}

#[test]
fn the_mute_are_replaced_only_after_several_probes() {
    let d = desired(1, 1, |_| {});
    let mut bench = LifecycleBench::configured(&d);
    for n in 0..3 {
        bench.wake();
        bench.feed(LifecycleEvent::Tick);
        assert_eq!(bench.last.action, probe(0));
        bench.feed(ended(StepOutcome::TimedOut));
        if n < 2 {
            assert_eq!((bench.last.action, bench.life.status().phase), (None, Phase::Configured));
            assert_eq!(bench.life.status().instances[0].alive, Some(false));
            assert_eq!(bench.last.wake_at, Some(bench.now + Duration::from_secs(1)), "suspects are asked sooner");
        }
    }
    assert_eq!(bench.last.action, destroy(0, 1));
    bench.play(vec![(ended(StepOutcome::Destroyed), boot(0, 2), Phase::Booting)]);
}

/// The kept instance dies; gives back the wait before its successor is booted. Ends with that one `Configured`.
fn die(bench: &mut LifecycleBench, d: &Arc<Desired>) -> Duration {
    let attempt = bench.life.fleet.slot(0).expect("it lives").instance.attempt + 1;
    bench.feed(LifecycleEvent::Check(1));
    bench.feed(found(&[]));
    let waited = if bench.last.action.is_none() { bench.wake() } else { Duration::ZERO };
    if !waited.is_zero() {
        bench.feed(LifecycleEvent::Tick);
    }
    assert_eq!(bench.last.action, boot(0, attempt));
    bench.feed(ended(StepOutcome::Booted(instance(0, attempt, d))));
    bench.wake();
    bench.feed(LifecycleEvent::Tick);
    bench.play(vec![
        (ended(StepOutcome::Answered(Details::default())), configure(0, 1), Phase::Up),
        (ended(StepOutcome::Configured), None, Phase::Configured),
    ]);
    waited
}

#[test]
fn what_ends_again_and_again_is_booted_ever_more_rarely_until_it_was_well_for_long() {
    let d = desired(1, 1, |_| {});
    let mut bench = LifecycleBench::configured(&d);
    let waits: Vec<_> = (0..9).map(|_| die(&mut bench, &d).as_secs()).collect();
    assert_eq!(waits, [0, 1, 2, 4, 8, 16, 32, 60, 60], "and it is never given up");
    assert_eq!((bench.life.status().failed_boots, bench.life.status().phase), (8, Phase::Configured));

    let moved = bench.life.progress(bench.now);
    assert_eq!((moved.failed_boots, moved.ends), (0, 9));
    let mut next = LifecycleBench::with(&d, moved);
    next.feed(LifecycleEvent::Tick);
    next.feed(found(&[instance(0, 10, &d)]));
    next.feed(ended(StepOutcome::Answered(Details::default())));
    next.feed(ended(StepOutcome::Configured));
    assert_eq!(next.life.status().failed_boots, 8, "a move does not make it better");
    assert_eq!(die(&mut next, &d), Duration::from_secs(60));

    let since = bench.now;
    while bench.life.status().failed_boots > 0 {
        bench.wake();
        bench.feed(LifecycleEvent::Tick);
        while bench.last.action.is_some() {
            bench.feed(ended(StepOutcome::Answered(Details::default())));
        }
    }
    assert_eq!(bench.now.since(since), Duration::from_secs(60));
    assert!(bench.last.status_changed);
    assert_eq!(die(&mut bench, &d), Duration::ZERO);
}

#[test]
fn an_end_in_a_crash_loop_says_so() {
    let d = desired(1, 1, |_| {});
    let mut bench = LifecycleBench::configured(&d);
    die(&mut bench, &d);
    bench.feed(LifecycleEvent::Check(1));
    bench.play(vec![(found(&[]), None, Phase::Down)]);
    let status = bench.life.status();
    let said = "instance 0 ended by itself (2 ends without 60s of health)";
    assert_eq!((status.failed_boots, status.last_error.as_deref()), (1, Some(said)));
    // A command is a new beginning.
    bench.play(vec![(LifecycleEvent::Change(desired(2, 1, |_| {})), boot(0, 3), Phase::Booting)]);
    assert_eq!(bench.life.status().failed_boots, 0);
}

#[test]
fn replicas_that_served_for_long_are_replaced_at_once_also_together() {
    let d = desired(1, 2, |_| {});
    let mut bench = LifecycleBench::configured(&d);
    bench.now = bench.now + Duration::from_secs(3_600);
    bench.play(vec![
        (LifecycleEvent::Check(1), OBSERVE, Phase::Configured),
        (found(&[]), boot(0, 2), Phase::Booting),
        (ended(StepOutcome::Booted(instance(0, 2, &d))), boot(1, 2), Phase::Booting),
    ]);
    assert_eq!(bench.life.status().failed_boots, 0);
}

#[test]
fn one_dead_of_several_degrades_while_the_others_serve() {
    let d = desired(1, 2, |_| {});
    let mut bench = LifecycleBench::configured(&d);
    bench.wake();
    bench.feed(LifecycleEvent::Tick);
    let Some(LifecycleStep::Probe { ordinal }) = bench.last.action else { panic!("a probe is due") };
    bench.play(vec![
        (ended(StepOutcome::Vanished("gone".into(), None)), boot(ordinal, 2), Phase::Degraded),
        (ended(StepOutcome::Refused("port 80 is in use".into())), OBSERVE, Phase::Degraded),
        (found(&[instance(1 - ordinal, 1, &d)]), None, Phase::Degraded),
    ]);
    let status = bench.life.status();
    assert_eq!((status.failed_boots, status.instances.len()), (1, 1));
    assert!(status.last_error.expect("it is shown").ends_with("port 80 is in use"));
    assert_eq!(bench.wake(), Duration::from_secs(1));
    bench.play(vec![(LifecycleEvent::Tick, boot(ordinal, 3), Phase::Degraded)]);
}

#[test]
fn doubt_about_an_instance_counts_nothing_against_it() {
    let d = desired(1, 1, |_| {});
    let mut bench = LifecycleBench::configured(&d);
    for _ in 0..10 {
        bench.wake();
        assert_eq!(bench.feed(LifecycleEvent::Tick).action, probe(0));
        bench.feed(ended(StepOutcome::Unclear("the API does not answer".into())));
        assert_eq!((bench.last.action, bench.life.status().phase), (None, Phase::Configured));
    }
    let status = bench.life.status();
    assert_eq!(status.last_error.as_deref(), Some("instance 0: the API does not answer"));
    bench.wake();
    bench.feed(LifecycleEvent::Tick);
    bench.feed(ended(StepOutcome::Answered(Details::default())));
    assert_eq!((bench.last.action, bench.life.status().phase), (None, Phase::Configured));
    assert_eq!(bench.life.status().last_error, None);
}

#[test]
fn spares_that_are_taken_are_replaced_at_once_and_count_as_no_failures() {
    let d = desired(1, 1, |_| {});
    let spare =
        |attempt| Instance { is_spare: true, boot: crate::instance::BootState::Over, ..instance(0, attempt, &d) };
    let mut bench = LifecycleBench::new(&d);
    bench.feed(LifecycleEvent::Tick);
    bench.feed(found(&[spare(1)]));
    for attempt in 2..6 {
        assert_eq!(bench.last.action, probe(0));
        bench.feed(ended(StepOutcome::Taken));
        assert_eq!(bench.last.action, boot(0, attempt), "at once, however often");
        bench.feed(ended(StepOutcome::Booted(spare(attempt))));
        bench.wake();
        bench.feed(LifecycleEvent::Tick);
    }
    bench.feed(ended(StepOutcome::Answered(Details::default())));
    bench.feed(ended(StepOutcome::Configured));
    let status = bench.life.status();
    assert_eq!((status.phase, status.failed_boots, status.last_error), (Phase::Configured, 0, None));
    // One that a listing lacks was taken as well.
    bench.feed(LifecycleEvent::Check(1));
    assert_eq!(bench.last.action, OBSERVE);
    bench.feed(found(&[]));
    assert_eq!(bench.last.action, boot(0, 6), "at once");
}

#[test]
fn where_an_instance_is_now_is_what_its_driver_says() {
    let d = balancer(1, 8_000);
    let mut bench = LifecycleBench::new(&d);
    let pod = |ordinal| Instance { has_own_address: true, ..instance(ordinal, 1, &d) };
    bench.feed(LifecycleEvent::Tick);
    bench.feed(found(&[pod(0), pod(1)]));
    let at = |port| Some(([10, 0, 0, 1], port).into());
    let addresses = Addresses { management: at(8_079), service: at(80) };
    bench.life.found_at(0, 2, Addresses { management: at(1), service: None });
    bench.life.found_at(0, 1, addresses);
    while let Some(LifecycleStep::Probe { ordinal }) = bench.last.action {
        bench.life.found_at(ordinal, 1, addresses);
        // What it says of itself is not where operators log in.
        let said = [(MANAGEMENT_DETAIL, "192.0.2.1"), ("state", "fine")].into_iter().collect();
        bench.feed(ended(StepOutcome::Answered(said)));
    }
    assert_eq!(bench.last.action, configure(0, 1));
    bench.feed(ended(StepOutcome::Configured));
    let known = bench.life.instance(0, None).map(|instance| instance.addresses);
    assert_eq!(known, Some(addresses), "and not the address of its listener");
    let details = bench.life.status().instances[0].details.clone();
    let shown = (details.get(MANAGEMENT_DETAIL), details.get("state"));
    assert_eq!(shown, (Some("10.0.0.1"), Some("fine")));
}

#[test]
fn an_instance_is_told_of_the_others_again_when_they_change() {
    let d = desired(1, 2, |d| d.spec.kind = common::kind::KindSpec::Router(common::kind::Router::default()));
    let mut bench = LifecycleBench::configured(&d);
    let both = crate::peers::PeerDigest::of(&bench.life.peers(0));
    assert_ne!(both, crate::peers::PeerDigest::default(), "each knows of the other");
    // The second one ends; the first learns that it is alone, and then of the one that takes its place.
    let (mut told, mut ended_once) = (Vec::new(), false);
    while told.len() < 2 {
        let Some(step) = bench.last.action else {
            bench.wake();
            bench.feed(LifecycleEvent::Tick);
            continue;
        };
        let outcome = match step {
            LifecycleStep::Probe { ordinal: 1 } if !ended_once => {
                ended_once = true;
                StepOutcome::Vanished("killed".into(), None)
            }
            LifecycleStep::Probe { .. } => StepOutcome::Answered(Details::default()),
            LifecycleStep::Boot { ordinal, attempt, .. } => StepOutcome::Booted(instance(ordinal, attempt, &d)),
            LifecycleStep::Configure { ordinal, peers, .. } => {
                if ordinal == 0 {
                    told.push(peers);
                }
                StepOutcome::Configured
            }
            other => panic!("nobody asked for {other}"),
        };
        bench.feed(ended(outcome));
    }
    assert_eq!(told[0], crate::peers::PeerDigest::default(), "alone");
    assert!(told[1] != both && told[1] == crate::peers::PeerDigest::of(&bench.life.peers(0)), "another one");
}
