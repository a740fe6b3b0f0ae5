//! The machine as tables: after each event, the step that is begun and the phase that is shown.

use std::collections::BTreeMap;
use std::time::Duration;

use common::appliance::{Name, Spec, Timing};
use common::driver::DriverName;
use common::kind::{Custom, HealthCheck, KindSpec, Limits, Listener, LoadBalancer, Probe};
use common::status::Details;
use common::{Edition, Generation, Term, Token};

use super::fleet::InstanceSlot;
use super::*;
use crate::instance::Addresses;

mod hands_off;
pub(super) mod ports;
mod repairs;
mod successions;
mod takeovers;

pub(super) fn desired(generation: u64, replicas: u16, change: impl FnOnce(&mut Desired)) -> Arc<Desired> {
    let name = |text| Name::new(text).expect("a valid name");
    let mut desired = Desired {
        name: name("web"),
        tenant: name("default"),
        driver: DriverName::simulated(),
        edition: Edition::new(Generation::new(generation), Term::new(1)),
        revision: 0,
        deleting: false,
        spec: Spec {
            replicas,
            probe_interval: None,
            timing: Timing::default(),
            image: None,
            pod: None,
            ports: vec![],
            kind: KindSpec::Custom(Custom {
                command: "serve".into(),
                args: vec![],
                env: BTreeMap::new(),
                port: None,
                probe: Probe::Tcp,
                ..Custom::default()
            }),
        },
    };
    change(&mut desired);
    Arc::new(desired)
}

pub(super) fn instance(ordinal: u16, attempt: u32, desired: &Desired) -> Instance {
    Instance {
        ordinal,
        attempt,
        boot_digest: crate::desired::boot_digest(desired, true),
        started_at_unix_ms: 1,
        ports: desired.spec.ports.iter().collect(),
        details: [("node", format!("n{ordinal}"))].into_iter().collect(),
        ..Instance::default()
    }
}

struct LifecycleBench {
    life: Lifecycle,
    now: Timestamp,
    config: Config,
    last: LifecycleOutput,
}

/// One row: an event, the step it begins, the phase shown after it.
type Row = (LifecycleEvent, Option<LifecycleStep>, Phase);

impl LifecycleBench {
    fn new(desired: &Arc<Desired>) -> Self {
        Self::with(desired, Progress::default())
    }

    fn with(desired: &Arc<Desired>, progress: Progress) -> Self {
        let config = Config::default();
        let now = Timestamp::from_millis(1_000);
        let life = Lifecycle::new(ApplianceId::from_u128(1), Arc::clone(desired), true, progress, now, &config);
        Self { life, now, config, last: LifecycleOutput::default() }
    }

    fn feed(&mut self, event: LifecycleEvent) -> &LifecycleOutput {
        self.last = self.life.step(self.now, event, 1.0, &self.config);
        &self.last
    }

    fn play(&mut self, rows: Vec<Row>) -> &mut Self {
        for (n, (event, step, phase)) in rows.into_iter().enumerate() {
            let said = format!("row {n}: {event:?}");
            self.feed(event);
            assert_eq!((self.last.action, self.life.status().phase), (step, phase), "{said}");
        }
        self
    }

    /// Goes to the moment that was asked for.
    fn wake(&mut self) -> Duration {
        let at = self.last.wake_at.expect("a wake-up was asked for");
        let waited = at.since(self.now);
        assert!(!waited.is_zero(), "a wake-up must be ahead");
        self.now = at;
        waited
    }

    /// From nothing to `Configured`.
    fn configured(desired: &Arc<Desired>) -> Self {
        let mut bench = Self::new(desired);
        let found: Vec<_> = (0..desired.spec.replicas).map(|n| instance(n, 1, desired)).collect();
        bench.feed(LifecycleEvent::Tick);
        bench.feed(ended(StepOutcome::Observed(found.into())));
        while let Some(step) = bench.last.action {
            bench.feed(ended(match step {
                LifecycleStep::Probe { .. } => StepOutcome::Answered(Details::default()),
                LifecycleStep::Configure { .. } => StepOutcome::Configured,
                other => panic!("an adopted appliance needs no {other}"),
            }));
        }
        assert_eq!(bench.life.status().phase, Phase::Configured);
        bench
    }
}

fn ended(outcome: StepOutcome) -> LifecycleEvent {
    LifecycleEvent::Ended(Box::new(outcome))
}

fn found(instances: &[Instance]) -> LifecycleEvent {
    ended(StepOutcome::Observed(instances.to_vec().into()))
}

fn boot(ordinal: u16, attempt: u32) -> Option<LifecycleStep> {
    Some(LifecycleStep::Boot { ordinal, attempt, beside: None })
}

fn destroy(ordinal: u16, attempt: u32) -> Option<LifecycleStep> {
    Some(LifecycleStep::Destroy { ordinal, attempt })
}

fn probe(ordinal: u16) -> Option<LifecycleStep> {
    Some(LifecycleStep::Probe { ordinal })
}

fn configure(ordinal: u16, generation: u64) -> Option<LifecycleStep> {
    Some(LifecycleStep::Configure {
        ordinal,
        generation: Generation::new(generation),
        peers: crate::peers::PeerDigest::default(),
    })
}

fn failed(text: &str) -> LifecycleEvent {
    ended(StepOutcome::Failed(text.into()))
}

const OBSERVE: Option<LifecycleStep> = Some(LifecycleStep::Observe);

#[test]
fn a_new_appliance_is_looked_for_booted_polled_and_configured() {
    let d = desired(1, 1, |_| {});
    let mut bench = LifecycleBench::new(&d);
    bench.play(vec![
        (LifecycleEvent::Tick, OBSERVE, Phase::Down),
        (found(&[]), boot(0, 1), Phase::Booting),
        (ended(StepOutcome::Booted(instance(0, 1, &d))), None, Phase::Booting),
    ]);
    assert_eq!(bench.wake(), Duration::from_millis(100));
    bench.play(vec![
        (LifecycleEvent::Tick, probe(0), Phase::Booting),
        (ended(StepOutcome::Silent("refused".into())), None, Phase::Booting),
    ]);
    assert_eq!(bench.wake(), Duration::from_millis(200));
    bench.play(vec![
        (LifecycleEvent::Tick, probe(0), Phase::Booting),
        (ended(StepOutcome::Answered(Details::default())), configure(0, 1), Phase::Up),
        (ended(StepOutcome::Configured), None, Phase::Configured),
    ]);
    let status = bench.life.status();
    assert_eq!(status.instances[0].configured, Some(Generation::new(1)));
    assert_eq!((status.instances[0].alive, status.failed_boots, status.last_error), (Some(true), 0, None));
    assert!(bench.wake() <= Duration::from_secs(60), "the next probe is due within its interval");
    bench.play(vec![
        (LifecycleEvent::Tick, probe(0), Phase::Configured),
        (ended(StepOutcome::Answered(Details::default())), None, Phase::Configured),
    ]);
    assert!(!bench.last.status_changed, "an answered probe is no news");
    assert_eq!(bench.wake(), Duration::from_secs(60));
}

/// Lets boots fail until the machine cools down; gives back the waits between them.
fn fail_boots(bench: &mut LifecycleBench) -> Vec<u64> {
    let mut waits = vec![];
    bench.feed(LifecycleEvent::Tick);
    loop {
        bench.feed(found(&[]));
        if bench.last.action.is_none() {
            waits.push(bench.wake().as_secs());
            if bench.life.status().phase == Phase::Error {
                return waits;
            }
            bench.feed(LifecycleEvent::Tick);
        }
        assert!(matches!(bench.last.action, Some(LifecycleStep::Boot { .. })), "{:?}", bench.last.action);
        bench.feed(failed("no"));
        assert_eq!(bench.last.action, OBSERVE, "after a failed boot it looks before it boots again");
    }
}

#[test]
fn boots_fail_with_back_off_and_end_in_error_until_the_cooldown_is_over() {
    let mut bench = LifecycleBench::new(&desired(1, 1, |_| {}));
    assert_eq!(fail_boots(&mut bench), [1, 2, 4, 8, 30]);
    assert_eq!(bench.life.status().failed_boots, 5);
    bench.play(vec![(LifecycleEvent::Tick, boot(0, 6), Phase::Booting)]);
    assert_eq!(bench.life.status().failed_boots, 0, "a new round begins");
}

#[test]
fn only_commands_that_change_something_lead_out_of_error() {
    for (event, step, phase) in [
        (LifecycleEvent::Change(desired(2, 1, |_| {})), boot(0, 6), Phase::Booting),
        (LifecycleEvent::Change(desired(2, 1, |d| d.revision = 1)), boot(0, 6), Phase::Booting),
        (LifecycleEvent::Change(desired(2, 1, |d| d.deleting = true)), Some(LifecycleStep::Forget), Phase::Deleting),
        (LifecycleEvent::Change(desired(1, 1, |_| {})), None, Phase::Error),
        (LifecycleEvent::Check(7), OBSERVE, Phase::Error),
    ] {
        let mut bench = LifecycleBench::new(&desired(1, 1, |_| {}));
        fail_boots(&mut bench);
        bench.now = Timestamp::from_nanos(bench.now.as_nanos() - 1);
        bench.play(vec![(event, step, phase)]);
    }
}

#[test]
fn delete_overtakes_everything() {
    let d = desired(1, 2, |_| {});
    let delete = || LifecycleEvent::Change(desired(5, 2, |d| d.deleting = true));
    let mut bench = LifecycleBench::configured(&d);
    bench.wake();
    bench.feed(LifecycleEvent::Tick);
    assert!(matches!(bench.last.action, Some(LifecycleStep::Probe { .. })));
    bench.play(vec![(delete(), destroy(1, 1), Phase::Deleting)]);
    assert!(bench.last.cancel, "a probe is dropped for it");
    bench.play(vec![
        (LifecycleEvent::Change(desired(6, 2, |_| {})), None, Phase::Deleting),
        (ended(StepOutcome::Destroyed), destroy(0, 1), Phase::Deleting),
        (failed("busy"), None, Phase::Deleting),
    ]);
    bench.wake();
    bench.play(vec![
        (LifecycleEvent::Tick, OBSERVE, Phase::Deleting),
        (found(&[instance(0, 1, &d)]), destroy(0, 1), Phase::Deleting),
        (ended(StepOutcome::Destroyed), Some(LifecycleStep::Forget), Phase::Deleting),
        (ended(StepOutcome::Forgotten), None, Phase::Gone),
    ]);
    assert_eq!(bench.last.end, Some(LifecycleEnd::Gone));
    bench.play(vec![(LifecycleEvent::Tick, None, Phase::Gone), (LifecycleEvent::Release, None, Phase::Gone)]);
}

#[test]
fn a_boot_under_way_is_undone_by_a_delete() {
    let d = desired(1, 1, |_| {});
    let mut bench = LifecycleBench::new(&d);
    bench.play(vec![
        (LifecycleEvent::Tick, OBSERVE, Phase::Down),
        (found(&[]), boot(0, 1), Phase::Booting),
        (LifecycleEvent::Change(desired(2, 1, |d| d.deleting = true)), None, Phase::Deleting),
        (ended(StepOutcome::Booted(instance(0, 1, &d))), destroy(0, 1), Phase::Deleting),
    ]);
}

#[test]
fn a_change_that_needs_no_restart_is_configured_in_place() {
    let d = desired(1, 2, |_| {});
    let mut bench = LifecycleBench::configured(&d);
    bench.play(vec![
        (LifecycleEvent::Change(desired(2, 2, |_| {})), configure(0, 2), Phase::Up),
        (LifecycleEvent::Change(desired(3, 2, |_| {})), None, Phase::Up),
        (ended(StepOutcome::Configured), configure(0, 3), Phase::Up),
        (ended(StepOutcome::Configured), configure(1, 3), Phase::Up),
        (failed("422"), None, Phase::Up),
    ]);
    assert!(bench.life.status().last_error.expect("it is shown").contains("configure 1: 422"));
    assert_eq!(bench.wake(), Duration::from_secs(1));
    bench.feed(LifecycleEvent::Tick);
    while matches!(bench.last.action, Some(LifecycleStep::Probe { .. })) {
        bench.feed(ended(StepOutcome::Answered(Details::default())));
    }
    assert_eq!(bench.last.action, configure(1, 3));
    bench.play(vec![(ended(StepOutcome::Configured), None, Phase::Configured)]);
    assert_eq!(bench.life.status().observed_generation, Generation::new(3));
}

/// A load balancer that listens on `port` of the loopback address.
fn balancer(generation: u64, port: u16) -> Arc<Desired> {
    let listener = Listener {
        name: "http".into(),
        address: [127, 0, 0, 1].into(),
        port,
        members: vec![],
        health_check: HealthCheck::default(),
        limits: Limits::default(),
        algorithm: Default::default(),
        proxy_protocol: None,
        trust_proxy_from: vec![],
    };
    desired(generation, 2, |d| d.spec.kind = KindSpec::Loadbalancer(LoadBalancer { listeners: vec![listener] }))
}

#[test]
fn the_address_of_a_load_balancer_follows_the_listeners_in_force() {
    let old = balancer(1, 8_000);
    let started = |n: u16| Instance {
        addresses: Addresses {
            management: Some(([127, 0, 0, 1], 9_000 + n).into()),
            service: Some(([127, 0, 0, 1], 8_000 + n).into()),
        },
        ..instance(n, 1, &old)
    };
    let ports = |bench: &LifecycleBench| -> Vec<_> {
        bench.life.status().instances.iter().map(|i| i.address.map(|a| a.port())).collect()
    };
    let mut bench = LifecycleBench::new(&old);
    bench.feed(LifecycleEvent::Tick);
    bench.feed(found(&[started(0), started(1)]));
    while let Some(step) = bench.last.action {
        bench.feed(ended(if step.changes_the_world() {
            StepOutcome::Configured
        } else {
            StepOutcome::Answered(Details::default())
        }));
    }
    assert_eq!(ports(&bench), [Some(8_000), Some(8_001)]);
    bench.play(vec![
        (LifecycleEvent::Change(balancer(2, 8_500)), configure(0, 2), Phase::Up),
        (ended(StepOutcome::Configured), configure(1, 2), Phase::Up),
    ]);
    assert_eq!(ports(&bench), [Some(8_500), Some(8_001)], "the second one still serves where it did");
    // While it is told, something newer is wanted: what it serves then is not in force for long.
    bench.feed(LifecycleEvent::Change(balancer(3, 8_600)));
    bench.feed(ended(StepOutcome::Configured));
    assert_eq!(ports(&bench), [Some(8_500), Some(8_001)]);
    bench.feed(ended(StepOutcome::Configured));
    bench.play(vec![(ended(StepOutcome::Configured), None, Phase::Configured)]);
    assert_eq!(ports(&bench), [Some(8_600), Some(8_601)]);
    assert!(bench.last.status_changed);
    // Drivers go on to say what it was started with.
    bench.play(vec![(LifecycleEvent::Check(1), OBSERVE, Phase::Configured)]);
    bench.feed(found(&[started(0), started(1)]));
    assert_eq!(ports(&bench), [Some(8_600), Some(8_601)]);
}

#[test]
fn a_rebuild_replaces_one_instance_at_a_time() {
    let old = desired(1, 2, |_| {});
    let new = desired(2, 2, |d| d.revision = 1);
    let mut bench = LifecycleBench::configured(&old);
    bench.play(vec![
        (LifecycleEvent::Change(Arc::clone(&new)), destroy(0, 1), Phase::Restarting),
        (ended(StepOutcome::Destroyed), boot(0, 2), Phase::Restarting),
        // The other one serves on with the new configuration meanwhile.
        (ended(StepOutcome::Booted(instance(0, 2, &new))), configure(1, 2), Phase::Restarting),
        (ended(StepOutcome::Configured), None, Phase::Restarting),
    ]);
    bench.wake();
    bench.play(vec![
        (LifecycleEvent::Tick, probe(0), Phase::Restarting),
        (ended(StepOutcome::Answered(Details::default())), configure(0, 2), Phase::Restarting),
        (ended(StepOutcome::Configured), destroy(1, 1), Phase::Restarting),
        (ended(StepOutcome::Destroyed), boot(1, 2), Phase::Restarting),
        (ended(StepOutcome::Booted(instance(1, 2, &new))), None, Phase::Restarting),
    ]);
    bench.wake();
    bench.play(vec![
        (LifecycleEvent::Tick, probe(1), Phase::Restarting),
        (ended(StepOutcome::Answered(Details::default())), configure(1, 2), Phase::Restarting),
        (ended(StepOutcome::Configured), None, Phase::Configured),
    ]);
}

#[test]
fn a_bad_command_costs_one_replica_only() {
    let old = desired(1, 2, |_| {});
    let new = desired(2, 2, |d| d.revision = 1);
    let mut bench = LifecycleBench::configured(&old);
    bench.play(vec![
        (LifecycleEvent::Change(new), destroy(0, 1), Phase::Restarting),
        (ended(StepOutcome::Destroyed), boot(0, 2), Phase::Restarting),
        (ended(StepOutcome::Refused("command `x` not found".into())), OBSERVE, Phase::Restarting),
        (found(&[instance(1, 1, &old)]), configure(1, 2), Phase::Restarting),
        (ended(StepOutcome::Configured), None, Phase::Restarting),
    ]);
    let shown: Vec<_> = bench.life.status().instances.iter().map(|i| (i.ordinal, i.configured)).collect();
    assert_eq!(
        shown,
        [(1, Some(Generation::new(1)))],
        "it runs the old command, whatever it was configured with since"
    );
}

#[test]
fn fewer_replicas_end_the_highest_and_more_boot_what_is_missing() {
    let d = desired(1, 3, |_| {});
    let mut bench = LifecycleBench::configured(&d);
    bench.play(vec![
        (LifecycleEvent::Change(desired(2, 1, |_| {})), destroy(2, 1), Phase::Up),
        (ended(StepOutcome::Destroyed), destroy(1, 1), Phase::Up),
        (ended(StepOutcome::Destroyed), configure(0, 2), Phase::Up),
        (ended(StepOutcome::Configured), None, Phase::Configured),
        (LifecycleEvent::Change(desired(3, 2, |_| {})), boot(1, 2), Phase::Booting),
    ]);
}

#[test]
fn a_replica_that_was_booted_while_it_was_withdrawn_is_ended() {
    let d = desired(1, 2, |_| {});
    let mut bench = LifecycleBench::new(&d);
    bench.play(vec![
        (LifecycleEvent::Tick, OBSERVE, Phase::Down),
        (found(&[instance(0, 1, &d)]), boot(1, 1), Phase::Booting),
        (LifecycleEvent::Change(desired(2, 1, |_| {})), None, Phase::Booting),
        (ended(StepOutcome::Booted(instance(1, 1, &d))), destroy(1, 1), Phase::Booting),
    ]);
}

#[test]
fn a_shut_gate_is_no_failure() {
    let mut bench = LifecycleBench::new(&desired(1, 1, |_| {}));
    bench.feed(LifecycleEvent::Tick);
    bench.feed(found(&[]));
    for _ in 0..20 {
        assert_eq!(bench.last.action, boot(0, 1), "an attempt that was not made is not counted");
        bench.feed(ended(StepOutcome::Fenced { retry_after: None }));
        assert_eq!(bench.wake(), Duration::from_millis(1_500));
        bench.play(vec![(LifecycleEvent::Tick, OBSERVE, Phase::Down), (found(&[]), boot(0, 1), Phase::Booting)]);
    }
    bench.feed(ended(StepOutcome::Fenced { retry_after: Some(Duration::from_secs(40)) }));
    assert_eq!(bench.wake(), Duration::from_secs(40), "a fence delay is waited for, not asked about");
    assert_eq!(bench.life.status().failed_boots, 0);
}

#[test]
fn what_is_seen_during_a_fence_delay_is_looked_at_again_before_anything_is_done_about_it() {
    let d = desired(1, 1, |_| {});
    let mut bench = LifecycleBench::new(&d);
    bench.life.await_fence_delay(bench.now + Duration::from_secs(40));
    bench.play(vec![(LifecycleEvent::Tick, OBSERVE, Phase::Down), (found(&[]), None, Phase::Down)]);
    assert_eq!(bench.wake(), Duration::from_secs(40), "it is missing, and nothing is done about that");
    bench.play(vec![
        (LifecycleEvent::Tick, OBSERVE, Phase::Down),
        // The former owner's boot took effect meanwhile.
        (found(&[instance(0, 1, &d)]), probe(0), Phase::Booting),
    ]);
}

#[test]
fn an_appliance_that_is_well_during_a_fence_delay_is_looked_at_again_all_the_same() {
    let d = desired(1, 1, |_| {});
    let mut bench = LifecycleBench::new(&d);
    bench.life.await_fence_delay(bench.now + Duration::from_secs(1));
    bench.play(vec![
        (LifecycleEvent::Tick, OBSERVE, Phase::Down),
        (found(&[instance(0, 1, &d)]), probe(0), Phase::Down),
        (ended(StepOutcome::Answered(Details::default())), None, Phase::Up),
    ]);
    assert_eq!(bench.wake(), Duration::from_secs(1), "a configuration waits");
    let double = found(&[instance(0, 1, &d), instance(0, 2, &d)]);
    bench.play(vec![(LifecycleEvent::Tick, OBSERVE, Phase::Up), (double, destroy(0, 2), Phase::Up)]);
}

#[test]
fn a_deletion_waits_for_the_end_of_a_fence_delay() {
    let d = desired(1, 1, |d| d.deleting = true);
    let mut bench = LifecycleBench::new(&d);
    bench.life.await_fence_delay(bench.now + Duration::from_secs(5));
    bench.play(vec![(LifecycleEvent::Tick, OBSERVE, Phase::Deleting), (found(&[]), None, Phase::Deleting)]);
    assert_eq!(bench.wake(), Duration::from_secs(5));
    let late = found(&[instance(0, 1, &d)]);
    bench.play(vec![(LifecycleEvent::Tick, OBSERVE, Phase::Deleting), (late, destroy(0, 1), Phase::Deleting)]);
}

/// What a boot made after nobody looked any more stayed for ever.
#[test]
fn a_deletion_ends_after_calls_that_nobody_answered() {
    let d = desired(2, 1, |d| d.deleting = true);
    let mut bench = LifecycleBench::new(&desired(1, 1, |_| {}));
    bench.play(vec![(LifecycleEvent::Tick, OBSERVE, Phase::Down), (found(&[]), boot(0, 1), Phase::Booting)]);
    bench.life.unanswered(bench.now + Duration::from_secs(20));
    bench.feed(ended(StepOutcome::TimedOut));
    bench.play(vec![(LifecycleEvent::Change(d.clone()), None, Phase::Deleting), (found(&[]), None, Phase::Deleting)]);
    assert_eq!(bench.wake(), Duration::from_secs(20));
    bench.play(vec![
        (LifecycleEvent::Tick, OBSERVE, Phase::Deleting),
        (found(&[instance(0, 1, &d)]), destroy(0, 1), Phase::Deleting),
        (ended(StepOutcome::Destroyed), Some(LifecycleStep::Forget), Phase::Deleting),
    ]);
}

#[test]
fn what_calls_that_nobody_answered_have_made_is_looked_for() {
    let d = desired(1, 1, |_| {});
    let mut bench = LifecycleBench::configured(&d);
    let (until, wait) = (bench.now + Duration::from_secs(40), Duration::from_secs(40));
    bench.life.unanswered(until);
    bench.feed(LifecycleEvent::Tick);
    let mut waited = Duration::ZERO;
    while bench.last.action != OBSERVE {
        match bench.last.action {
            Some(LifecycleStep::Probe { .. }) => bench.feed(ended(StepOutcome::Answered(Details::default()))),
            None => {
                waited += bench.wake();
                bench.feed(LifecycleEvent::Tick)
            }
            other => panic!("all is well: {other:?}"),
        };
    }
    assert_eq!(waited, wait);
    let double = found(&[instance(0, 1, &d), instance(0, 2, &d)]);
    bench.play(vec![(double, destroy(0, 2), Phase::Configured)]);
}

#[test]
fn a_newer_token_is_no_failed_boot_and_is_told() {
    let mut bench = LifecycleBench::new(&desired(1, 1, |_| {}));
    bench.feed(LifecycleEvent::Tick);
    bench.feed(found(&[]));
    assert_eq!(bench.last.action, boot(0, 1));
    bench.feed(ended(StepOutcome::Superseded(Token::new(Term::new(9), 3))));
    assert_eq!(bench.wake(), Duration::from_millis(1_500));
    let status = bench.life.status();
    assert_eq!((status.last_error.as_deref(), status.failed_boots), (Some("fenced by a newer token t9/3"), 0));
    bench.play(vec![(LifecycleEvent::Tick, OBSERVE, Phase::Down), (found(&[]), boot(0, 1), Phase::Booting)]);
}

#[test]
fn probes_go_on_while_the_gate_is_shut() {
    let d = desired(1, 1, |_| {});
    let mut bench = LifecycleBench::configured(&d);
    bench.feed(LifecycleEvent::Change(desired(2, 1, |_| {})));
    bench.feed(ended(StepOutcome::Fenced { retry_after: Some(Duration::from_secs(3_600)) }));
    for _ in 0..5 {
        assert!(bench.wake() <= Duration::from_secs(60));
        bench.play(vec![
            (LifecycleEvent::Tick, probe(0), Phase::Up),
            (ended(StepOutcome::Answered(Details::default())), None, Phase::Up),
        ]);
    }
}

#[test]
fn an_unknown_outcome_is_looked_at_before_anything_else() {
    let d = desired(1, 1, |_| {});
    let mut bench = LifecycleBench::new(&d);
    bench.play(vec![
        (LifecycleEvent::Tick, OBSERVE, Phase::Down),
        (found(&[]), boot(0, 1), Phase::Booting),
        (ended(StepOutcome::TimedOut), OBSERVE, Phase::Down),
        (found(&[instance(0, 1, &d)]), probe(0), Phase::Booting),
    ]);
    assert_eq!(bench.life.status().failed_boots, 1);
}

#[test]
fn an_instance_that_never_answers_is_a_failed_boot() {
    let d = desired(1, 1, |_| {});
    let mut bench = LifecycleBench::new(&d);
    bench.feed(LifecycleEvent::Tick);
    bench.feed(found(&[]));
    bench.feed(ended(StepOutcome::Booted(instance(0, 1, &d))));
    let booted = bench.now;
    while bench.last.action.is_none() {
        bench.wake();
        bench.feed(LifecycleEvent::Tick);
        assert_eq!(bench.last.action, probe(0));
        bench.feed(ended(StepOutcome::Silent("connection refused".into())));
    }
    assert_eq!(bench.last.action, destroy(0, 1));
    let took = bench.now.since(booted);
    assert!((Duration::from_secs(600)..Duration::from_secs(602)).contains(&took), "{took:?}");
    assert_eq!(bench.life.status().failed_boots, 1);
}

#[test]
fn a_start_that_hangs_is_told_after_its_first_probe() {
    for (interval, told) in [(None, 3), (Some(4), 3), (Some(1), 3)] {
        let d = desired(1, 1, |d| d.spec.probe_interval = interval.map(Duration::from_secs));
        let mut bench = LifecycleBench::new(&d);
        bench.feed(LifecycleEvent::Tick);
        bench.feed(found(&[]));
        bench.feed(ended(StepOutcome::Booted(instance(0, 1, &d))));
        let booted = bench.now;
        while bench.life.status().last_error.is_none() {
            bench.wake();
            bench.feed(LifecycleEvent::Tick);
            bench.now = bench.now + Duration::from_secs(3);
            bench.feed(ended(StepOutcome::Silent("no answer within 3s".into())));
        }
        let took = bench.now.since(booted).as_secs();
        assert_eq!(took, told, "for {interval:?}");
        let error = bench.life.status().last_error.clone();
        assert_eq!(error.as_deref(), Some("instance 0 does not answer yet: no answer within 3s"));
    }
}

#[test]
fn why_a_start_does_not_answer_is_told_within_two_probe_intervals_and_then_rarely() {
    for interval in [1_u64, 60] {
        let d = desired(1, 1, |d| d.spec.probe_interval = Some(Duration::from_secs(interval)));
        let mut bench = LifecycleBench::new(&d);
        bench.feed(LifecycleEvent::Tick);
        bench.feed(found(&[]));
        bench.feed(ended(StepOutcome::Booted(instance(0, 1, &d))));
        let booted = bench.now;
        let (mut first, mut reports) = (None, 0);
        for answer in 0.. {
            bench.wake();
            if bench.now.since(booted) >= Duration::from_secs(60) {
                break;
            }
            bench.feed(LifecycleEvent::Tick);
            // What it says is another thing each time.
            bench.feed(ended(StepOutcome::Silent(format!("status 503, try {answer}"))));
            reports += u32::from(bench.last.status_changed);
            first = first.or_else(|| bench.life.status().last_error.map(|_| bench.now.since(booted)));
        }
        let first = first.expect("it is told");
        assert!(first <= Duration::from_secs(2 * interval.min(2)), "{first:?} for {interval} s");
        assert!((2..=8).contains(&reports), "{reports} reports in a minute");
        assert_eq!(bench.life.status().failed_boots, 0, "that is no failure");
    }
}

#[test]
fn an_instance_counts_as_up_once_it_has_run_for_its_settle_time() {
    let d = desired(1, 1, |d| d.spec.timing.settle_time = Some(Duration::from_secs(2)));
    let settling = || {
        let mut bench = LifecycleBench::new(&d);
        bench.play(vec![
            (LifecycleEvent::Tick, OBSERVE, Phase::Down),
            (found(&[]), boot(0, 1), Phase::Booting),
            (ended(StepOutcome::Booted(instance(0, 1, &d))), None, Phase::Booting),
        ]);
        bench.wake();
        bench.play(vec![
            (LifecycleEvent::Tick, probe(0), Phase::Booting),
            (ended(StepOutcome::Answered(Details::default())), None, Phase::Booting),
        ]);
        bench
    };
    let mut bench = settling();
    assert_eq!(bench.wake(), Duration::from_millis(1_900));
    bench.play(vec![
        (LifecycleEvent::Tick, probe(0), Phase::Booting),
        (ended(StepOutcome::Answered(Details::default())), configure(0, 1), Phase::Up),
    ]);
    // What ends before that has failed to boot, however soon it answered.
    let mut bench = settling();
    bench.play(vec![
        (LifecycleEvent::Exited { ordinal: 0, attempt: 1 }, probe(0), Phase::Booting),
        (ended(StepOutcome::Vanished("exit status 3".into(), None)), None, Phase::Down),
    ]);
    let status = bench.life.status();
    let error = "boot of instance 0: ended before it was up: exit status 3";
    assert_eq!((status.failed_boots, status.last_error.as_deref()), (1, Some(error)));
}

#[test]
fn a_boot_has_the_time_that_its_specification_gives_it() {
    let d = desired(1, 1, |d| d.spec.timing.boot_timeout = Some(Duration::from_secs(3)));
    let mut bench = LifecycleBench::new(&d);
    bench.feed(LifecycleEvent::Tick);
    bench.feed(found(&[]));
    bench.feed(ended(StepOutcome::Booted(instance(0, 1, &d))));
    let booted = bench.now;
    while bench.life.status().failed_boots == 0 {
        bench.wake();
        bench.feed(LifecycleEvent::Tick);
        bench.feed(ended(StepOutcome::Silent("refused".into())));
    }
    assert!((3..5).contains(&bench.now.since(booted).as_secs()), "{:?}", bench.now.since(booted));
}

#[test]
fn a_release_carries_attempts_back_off_and_journal_to_the_next_owner() {
    let d = desired(1, 1, |_| {});
    let mut bench = LifecycleBench::new(&d);
    bench.feed(LifecycleEvent::Tick);
    bench.feed(found(&[]));
    bench.feed(failed("no"));
    bench.feed(found(&[]));
    bench.feed(LifecycleEvent::Release);
    let Some(LifecycleEnd::Released(progress)) = bench.last.end.clone() else {
        panic!("nothing runs, so it is released at once")
    };
    assert_eq!((progress.failed_boots, &progress.attempts[..], progress.cooling), (1, &[1][..], false));
    assert_eq!(progress.wait, Duration::from_secs(1));

    let mut next = LifecycleBench::with(&d, progress);
    next.play(vec![(LifecycleEvent::Tick, OBSERVE, Phase::Down), (found(&[]), None, Phase::Down)]);
    assert_eq!(next.wake(), Duration::from_secs(1));
    next.play(vec![(LifecycleEvent::Tick, boot(0, 2), Phase::Booting)]);
    assert_eq!(next.life.status().failed_boots, 1);
    next.play(vec![(ended(StepOutcome::Booted(instance(0, 2, &d))), None, Phase::Booting)]);
    next.feed(LifecycleEvent::Release);
    let Some(LifecycleEnd::Released(progress)) = next.last.end.clone() else { panic!("polling is a safe point") };
    assert_eq!(progress.journal[0].step, "boot 0");
}

#[test]
fn a_cooldown_survives_a_move_and_is_never_longer_than_our_own() {
    let progress = Progress { failed_boots: 5, wait: Duration::from_secs(9_999), cooling: true, ..Progress::default() };
    let mut bench = LifecycleBench::with(&desired(1, 1, |_| {}), progress);
    bench.play(vec![(LifecycleEvent::Tick, OBSERVE, Phase::Down), (found(&[]), None, Phase::Error)]);
    assert_eq!(bench.wake(), Duration::from_secs(30));
    bench.play(vec![(LifecycleEvent::Tick, boot(0, 1), Phase::Booting)]);
}

#[test]
fn a_release_waits_for_what_changes_the_world_and_drops_what_does_not() {
    let d = desired(1, 1, |_| {});
    let mut bench = LifecycleBench::new(&d);
    bench.feed(LifecycleEvent::Tick);
    let mut looking = bench.life.clone();
    let output = looking.step(bench.now, LifecycleEvent::Release, 0.5, &bench.config);
    assert!(output.cancel && matches!(output.end, Some(LifecycleEnd::Released(_))), "{output:?}");

    bench.feed(found(&[]));
    bench.feed(LifecycleEvent::Release);
    assert_eq!((bench.last.end.clone(), bench.last.cancel), (None, false));
    bench.feed(ended(StepOutcome::Booted(instance(0, 1, &d))));
    assert!(matches!(bench.last.end, Some(LifecycleEnd::Released(_))));
    for event in [
        LifecycleEvent::Tick,
        LifecycleEvent::Release,
        LifecycleEvent::Check(1),
        LifecycleEvent::Change(desired(2, 1, |_| {})),
        failed("x"),
    ] {
        let output = bench.feed(event).clone();
        assert_eq!((output.action, output.end, output.wake_at), (None, None, None), "released is the end");
    }
}

#[test]
fn a_check_looks_probes_and_answers() {
    let mut bench = LifecycleBench::configured(&desired(1, 1, |_| {}));
    bench.play(vec![
        (LifecycleEvent::Check(3), OBSERVE, Phase::Configured),
        (LifecycleEvent::Check(4), None, Phase::Configured),
    ]);
    assert_eq!(bench.last.checked, None);
    bench.play(vec![
        (found(&[instance(0, 1, &desired(1, 1, |_| {}))]), probe(0), Phase::Configured),
        (ended(StepOutcome::Answered(Details::default())), None, Phase::Configured),
    ]);
    assert_eq!(bench.last.checked, Some(4));
    bench.play(vec![(LifecycleEvent::Check(5), OBSERVE, Phase::Configured), (found(&[]), boot(0, 2), Phase::Booting)]);
    assert_eq!(bench.last.checked, Some(5), "a check vanishes behind any other action");
}

#[test]
fn a_backlog_warns_once() {
    let mut bench = LifecycleBench::new(&desired(1, 1, |_| {}));
    bench.feed(LifecycleEvent::Tick);
    bench.feed(found(&[]));
    let warnings: Vec<_> =
        (0..150).filter_map(|n| bench.feed(LifecycleEvent::Change(desired(2 + n, 1, |_| {}))).backlog).collect();
    assert_eq!(warnings, [100]);
    assert_eq!(bench.life.desired().edition.generation, Generation::new(151), "the newest is what counts");
}

#[test]
fn an_idle_appliance_is_small() {
    let bench = LifecycleBench::configured(&desired(1, 1, |_| {}));
    let slots = bench.life.fleet.slots.capacity() * size_of::<InstanceSlot>();
    let texts = bench.life.goal.digest.len() * 2;
    let attempts = size_of_val(bench.life.fleet.attempts());
    let all = size_of::<Lifecycle>() + slots + texts + attempts + size_of::<Desired>();
    // Times and the last end included, which most appliances do not have.
    assert!(all <= 1_140, "{all} bytes without the spec's texts, {} of them the machine", size_of::<Lifecycle>());
}
