//! Network ports that change: plugged into running instances where the driver can, by new instances elsewhere.

use common::network_port::NetworkPort;

use super::*;

pub(in super::super) fn port(name: &str, network: &str) -> NetworkPort {
    let name = Name::new(name).expect("a valid name");
    NetworkPort { name, network: network.into(), addresses: vec![], mac: None }
}

/// What shall be: an appliance with these ports, all in one network.
fn with_ports(generation: u64, replicas: u16, ports: &[&str]) -> Arc<Desired> {
    desired(generation, replicas, |d| d.spec.ports = ports.iter().map(|name| port(name, "net-1")).collect())
}

fn replug(ordinal: u16, generation: u64) -> Option<LifecycleStep> {
    Some(LifecycleStep::Replug { ordinal, generation: Generation::new(generation) })
}

fn replugged(ordinal: u16, attempt: u32, desired: &Desired) -> LifecycleEvent {
    ended(StepOutcome::Replugged(instance(ordinal, attempt, desired)))
}

impl LifecycleBench {
    /// Goes on until a step other than a probe begins. Gives back that step.
    fn next_step(&mut self) -> Option<LifecycleStep> {
        for _ in 0..100 {
            match self.last.action {
                Some(LifecycleStep::Probe { .. }) => self.feed(ended(StepOutcome::Answered(Details::default()))),
                Some(step) => return Some(step),
                None => {
                    self.wake();
                    self.feed(LifecycleEvent::Tick)
                }
            };
        }
        None
    }
}

#[test]
fn changed_ports_are_plugged_one_instance_after_the_other_and_configured_again() {
    let (old, new) = (with_ports(1, 2, &["a"]), with_ports(2, 2, &["a", "b"]));
    let mut bench = LifecycleBench::configured(&old);
    bench.play(vec![
        (LifecycleEvent::Change(Arc::clone(&new)), replug(0, 2), Phase::Replugging),
        (replugged(0, 1, &new), configure(0, 2), Phase::Replugging),
        (ended(StepOutcome::Configured), replug(1, 2), Phase::Replugging),
        (replugged(1, 1, &new), configure(1, 2), Phase::Up),
        (ended(StepOutcome::Configured), None, Phase::Configured),
    ]);
    let ports: Vec<_> = bench.life.status().instances[1].ports.iter().map(ToString::to_string).collect();
    assert_eq!(ports, ["a", "b"]);
}

#[test]
fn where_the_driver_cannot_plug_changed_ports_need_a_new_instance() {
    let (old, new) = (with_ports(1, 1, &["a"]), with_ports(2, 1, &["b"]));
    let made = |attempt, desired: &Desired| Instance {
        boot_digest: crate::desired::boot_digest(desired, false),
        ports: PluggedPorts::default(),
        ..instance(0, attempt, desired)
    };
    let mut bench = LifecycleBench::new(&old);
    bench.life.goal = Goal::new(Arc::clone(&old), false);
    bench.play(vec![
        (LifecycleEvent::Tick, OBSERVE, Phase::Down),
        (found(&[made(1, &old)]), probe(0), Phase::Down),
        (ended(StepOutcome::Answered(Details::default())), configure(0, 1), Phase::Down),
        (ended(StepOutcome::Configured), None, Phase::Configured),
        (LifecycleEvent::Change(Arc::clone(&new)), destroy(0, 1), Phase::Restarting),
        (ended(StepOutcome::Destroyed), boot(0, 2), Phase::Restarting),
        (ended(StepOutcome::Booted(made(2, &new))), None, Phase::Restarting),
    ]);
}

#[test]
fn a_new_instance_has_its_ports_from_the_start() {
    let d = with_ports(1, 1, &["a", "b"]);
    let mut bench = LifecycleBench::new(&d);
    bench.play(vec![
        (LifecycleEvent::Tick, OBSERVE, Phase::Down),
        (found(&[]), boot(0, 1), Phase::Booting),
        (ended(StepOutcome::Booted(instance(0, 1, &d))), None, Phase::Booting),
    ]);
    assert_eq!(bench.next_step(), configure(0, 1), "nothing is left to be plugged");
}

#[test]
fn a_takeover_plugs_what_the_former_owner_did_not() {
    let (old, new) = (with_ports(1, 1, &["a"]), with_ports(2, 1, &["b"]));
    let mut bench = LifecycleBench::new(&new);
    bench.play(vec![
        (LifecycleEvent::Tick, OBSERVE, Phase::Down),
        (found(&[instance(0, 1, &old)]), probe(0), Phase::Down),
        (ended(StepOutcome::Answered(Details::default())), replug(0, 2), Phase::Replugging),
        (replugged(0, 1, &new), configure(0, 2), Phase::Up),
    ]);
}

#[test]
fn ports_that_were_plugged_without_an_answer_are_not_plugged_again() {
    let (old, new) = (with_ports(1, 1, &[]), with_ports(2, 1, &["a"]));
    for lost in [failed("connection reset"), ended(StepOutcome::TimedOut)] {
        let mut bench = LifecycleBench::configured(&old);
        bench.play(vec![
            (LifecycleEvent::Change(Arc::clone(&new)), replug(0, 2), Phase::Replugging),
            (lost, OBSERVE, Phase::Replugging),
        ]);
        bench.feed(found(&[instance(0, 1, &new)]));
        assert_eq!(bench.next_step(), configure(0, 2));
        bench.play(vec![(ended(StepOutcome::Configured), None, Phase::Configured)]);
    }
}

#[test]
fn a_time_out_is_followed_by_a_look_and_another_try() {
    let (old, new) = (with_ports(1, 1, &[]), with_ports(2, 1, &["a"]));
    let mut bench = LifecycleBench::configured(&old);
    bench.play(vec![
        (LifecycleEvent::Change(Arc::clone(&new)), replug(0, 2), Phase::Replugging),
        (ended(StepOutcome::TimedOut), OBSERVE, Phase::Replugging),
        (found(&[instance(0, 1, &old)]), None, Phase::Replugging),
    ]);
    assert_eq!(bench.life.status().last_error.as_deref(), Some("replug 0: took too long"));
    assert_eq!(bench.wake(), Duration::from_secs(1));
    bench.feed(LifecycleEvent::Tick);
    assert_eq!(bench.next_step(), replug(0, 2));
    bench.play(vec![
        (replugged(0, 1, &new), configure(0, 2), Phase::Up),
        (ended(StepOutcome::Configured), None, Phase::Configured),
    ]);
    assert_eq!(bench.life.status().last_error, None);
}

#[test]
fn a_try_waits_until_a_call_without_answer_can_no_longer_take_effect() {
    let (old, new) = (with_ports(1, 1, &[]), with_ports(2, 1, &["a"]));
    let mut bench = LifecycleBench::configured(&old);
    bench.feed(LifecycleEvent::Change(Arc::clone(&new)));
    bench.life.unanswered(bench.now + Duration::from_secs(40));
    let asked = bench.now;
    bench.feed(ended(StepOutcome::TimedOut));
    bench.feed(found(&[instance(0, 1, &old)]));
    assert_eq!(bench.next_step(), OBSERVE);
    assert_eq!(bench.now.since(asked), Duration::from_secs(40));
    bench.feed(found(&[instance(0, 1, &old)]));
    assert_eq!(bench.next_step(), replug(0, 2));
}

#[test]
fn ports_that_change_while_others_are_plugged_are_plugged_next() {
    let (old, new, newest) = (with_ports(1, 1, &[]), with_ports(2, 1, &["a"]), with_ports(3, 1, &["b"]));
    let mut bench = LifecycleBench::configured(&old);
    bench.play(vec![
        (LifecycleEvent::Change(Arc::clone(&new)), replug(0, 2), Phase::Replugging),
        (LifecycleEvent::Change(Arc::clone(&newest)), None, Phase::Replugging),
        (replugged(0, 1, &new), replug(0, 3), Phase::Replugging),
        (replugged(0, 1, &newest), configure(0, 3), Phase::Up),
    ]);
    assert_eq!(bench.life.status().last_error, None, "what was asked for before was no failure");
    // Also when the first wish returns before anything was done about the second.
    let mut bench = LifecycleBench::configured(&old);
    let back = with_ports(3, 1, &[]);
    bench.play(vec![
        (LifecycleEvent::Change(Arc::clone(&new)), replug(0, 2), Phase::Replugging),
        (LifecycleEvent::Change(Arc::clone(&back)), None, Phase::Up),
        (replugged(0, 1, &new), replug(0, 3), Phase::Replugging),
        (replugged(0, 1, &back), configure(0, 3), Phase::Up),
    ]);
}

#[test]
fn a_release_and_a_deletion_wait_for_the_end_of_plugging() {
    let (old, new) = (with_ports(1, 1, &[]), with_ports(2, 1, &["a"]));
    let mut bench = LifecycleBench::configured(&old);
    bench.play(vec![
        (LifecycleEvent::Change(Arc::clone(&new)), replug(0, 2), Phase::Replugging),
        (LifecycleEvent::Release, None, Phase::Replugging),
    ]);
    assert_eq!((bench.last.end.clone(), bench.last.cancel), (None, false));
    bench.feed(replugged(0, 1, &new));
    assert!(matches!(bench.last.end, Some(LifecycleEnd::Released(_))));

    let mut bench = LifecycleBench::configured(&old);
    bench.play(vec![
        (LifecycleEvent::Change(Arc::clone(&new)), replug(0, 2), Phase::Replugging),
        (LifecycleEvent::Change(desired(3, 1, |d| d.deleting = true)), None, Phase::Deleting),
        (replugged(0, 1, &new), destroy(0, 1), Phase::Deleting),
    ]);
}

/// Fails to plug until something else than a look, a probe or another try is begun; gives back how often, and that step.
fn fail_to_plug(bench: &mut LifecycleBench, lacking: &[Instance], how: &StepOutcome) -> (u32, Option<LifecycleStep>) {
    let mut failures = 0;
    loop {
        match bench.next_step() {
            Some(LifecycleStep::Observe) => bench.feed(found(lacking)),
            Some(LifecycleStep::Replug { .. }) if failures < 20 => {
                failures += 1;
                bench.feed(ended(how.clone()))
            }
            step => return (failures, step),
        };
    }
}

#[test]
fn an_instance_that_cannot_get_its_ports_is_replaced_after_several_failures() {
    let (old, new) = (with_ports(1, 1, &[]), with_ports(2, 1, &["a"]));
    let how = StepOutcome::Failed("no slot left".into());
    let mut bench = LifecycleBench::configured(&old);
    bench.feed(LifecycleEvent::Change(Arc::clone(&new)));
    assert_eq!(fail_to_plug(&mut bench, &[instance(0, 1, &old)], &how), (3, destroy(0, 1)));
    let said = "ports of instance 0 could not be plugged 3 times: replug 0: no slot left";
    assert_eq!(bench.life.status().last_error.as_deref(), Some(said));
    bench.play(vec![
        (ended(StepOutcome::Destroyed), boot(0, 2), Phase::Restarting),
        (ended(StepOutcome::Booted(instance(0, 2, &new))), None, Phase::Restarting),
    ]);
    assert_eq!(bench.next_step(), configure(0, 2));
    bench.play(vec![(ended(StepOutcome::Configured), None, Phase::Configured)]);
}

#[test]
fn what_never_gets_its_ports_is_replaced_ever_more_rarely() {
    let (old, new) = (with_ports(1, 1, &[]), with_ports(2, 1, &["a"]));
    let how = StepOutcome::Failed("no slot left".into());
    let mut bench = LifecycleBench::configured(&old);
    bench.feed(LifecycleEvent::Change(Arc::clone(&new)));
    let mut waits = vec![];
    for attempt in 1..7 {
        let lacking = instance(0, attempt, &old);
        let (_, step) = fail_to_plug(&mut bench, std::slice::from_ref(&lacking), &how);
        assert_eq!(step, destroy(0, attempt));
        let since = bench.now;
        bench.feed(ended(StepOutcome::Destroyed));
        assert_eq!(bench.next_step(), boot(0, attempt + 1), "a successor is booted at once");
        assert_eq!(bench.now, since);
        bench.feed(ended(StepOutcome::Booted(Instance { attempt: attempt + 1, ..lacking })));
        waits.push(bench.life.boots.ends);
    }
    assert_eq!(waits, [1, 2, 3, 4, 5, 6], "each round counts as an early end and makes the next one wait longer");
    assert_eq!(bench.life.status().failed_boots, 5);
}

#[test]
fn a_fault_of_plugging_costs_one_replica_at_a_time() {
    let (old, new) = (with_ports(1, 2, &[]), with_ports(2, 2, &["a"]));
    let how = StepOutcome::Failed("backend down".into());
    let mut bench = LifecycleBench::configured(&old);
    bench.feed(LifecycleEvent::Change(Arc::clone(&new)));
    let lacking = [instance(0, 1, &old), instance(1, 1, &old)];
    let (_, step) = fail_to_plug(&mut bench, &lacking, &how);
    assert_eq!(step, destroy(0, 1));
    bench.feed(ended(StepOutcome::Destroyed));
    // The new one cannot be started either: the other one runs on, and is tried again.
    for _ in 0..20 {
        match bench.next_step() {
            Some(LifecycleStep::Boot { ordinal: 0, .. }) => {
                bench.feed(ended(StepOutcome::Refused("no network".into())))
            }
            Some(LifecycleStep::Observe) => bench.feed(found(&lacking[1..])),
            Some(LifecycleStep::Replug { ordinal: 1, .. }) => bench.feed(ended(how.clone())),
            other => panic!("the last instance is left alone: {other:?}"),
        };
    }
}

#[test]
fn a_refusal_to_plug_costs_no_instance() {
    let (old, new) = (with_ports(1, 1, &[]), with_ports(2, 1, &["a"]));
    let how = StepOutcome::Refused("no network `net-1`".into());
    let mut bench = LifecycleBench::configured(&old);
    bench.feed(LifecycleEvent::Change(Arc::clone(&new)));
    let lacking = [instance(0, 1, &old)];
    let begun = bench.now;
    assert_eq!(
        fail_to_plug(&mut bench, &lacking, &how),
        (20, replug(0, 2)),
        "a new instance would be refused the same"
    );
    assert!(bench.now.since(begun) > Duration::from_secs(600), "and it is tried ever more rarely");
    let status = bench.life.status();
    assert_eq!((status.phase, status.failed_boots), (Phase::Replugging, 0));
    assert_eq!(status.last_error.as_deref(), Some("replug 0: no network `net-1`"));
    // Another specification is tried at once.
    bench.feed(ended(how));
    bench.feed(found(&lacking));
    bench.play(vec![(LifecycleEvent::Change(with_ports(3, 1, &["b"])), replug(0, 3), Phase::Replugging)]);
}

#[test]
fn a_driver_that_plugs_something_else_counts_as_failing() {
    let (old, new) = (with_ports(1, 1, &[]), with_ports(2, 1, &["a"]));
    let how = StepOutcome::Replugged(instance(0, 1, &old));
    let mut bench = LifecycleBench::configured(&old);
    bench.feed(LifecycleEvent::Change(Arc::clone(&new)));
    assert_eq!(fail_to_plug(&mut bench, &[instance(0, 1, &old)], &how), (3, destroy(0, 1)));
}

#[test]
fn a_port_that_was_lost_is_plugged_again_once_it_is_found_missing() {
    let (d, bare) = (with_ports(1, 1, &["a"]), with_ports(1, 1, &[]));
    let mut bench = LifecycleBench::configured(&d);
    bench.play(vec![
        (LifecycleEvent::Check(1), OBSERVE, Phase::Configured),
        (found(&[instance(0, 1, &bare)]), probe(0), Phase::Replugging),
        (ended(StepOutcome::Answered(Details::default())), replug(0, 1), Phase::Replugging),
        (replugged(0, 1, &d), configure(0, 1), Phase::Up),
        (ended(StepOutcome::Configured), None, Phase::Configured),
    ]);
}

#[test]
fn a_dead_instance_is_not_plugged_but_replaced() {
    let (old, new) = (with_ports(1, 1, &[]), with_ports(2, 1, &["a"]));
    let mut bench = LifecycleBench::configured(&old);
    bench.play(vec![
        (LifecycleEvent::Change(Arc::clone(&new)), replug(0, 2), Phase::Replugging),
        (ended(StepOutcome::Vanished("it does not run any more".into(), None)), OBSERVE, Phase::Replugging),
        (found(&[]), boot(0, 2), Phase::Booting),
    ]);
}

#[test]
fn a_shut_gate_keeps_ports_from_being_plugged_and_is_no_failure() {
    let (old, new) = (with_ports(1, 1, &[]), with_ports(2, 1, &["a"]));
    let mut bench = LifecycleBench::configured(&old);
    bench.feed(LifecycleEvent::Change(Arc::clone(&new)));
    let (failures, step) =
        fail_to_plug(&mut bench, &[instance(0, 1, &old)], &StepOutcome::Fenced { retry_after: None });
    assert_eq!((failures, step), (20, replug(0, 2)));
    assert_eq!(bench.life.status().failed_boots, 0);
}
