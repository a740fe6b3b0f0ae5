//! Whatever happens in whatever order: one step at a time, no boot while deleting, nothing after the end, at most one
//! instance per ordinal in the end, and `Configured` once the world behaves.

use std::collections::BTreeMap;
use std::time::Duration;

use common::status::Details;
use common::{Term, Token};
use proptest::prelude::*;

use super::tests::ports::port;
use super::tests::{desired, instance};
use super::*;

#[derive(Clone, Debug)]
enum GeneratedOp {
    /// Time passes, and the wake-up comes if it is due.
    Pass(u32),
    Change {
        replicas: u16,
        ports: u16,
        rebuild: bool,
        delete: bool,
    },
    Stale,
    /// An instance loses a port.
    Unplug(u16),
    Check,
    Release,
    HandsOff(bool),
    /// The running step ends: as it should, or in one of the other ways.
    End(u8),
    /// An instance dies, or one that nobody knows of turns up.
    Kill(u16),
    Stray(u16, u32),
    /// The driver says that an instance has ended, be it true or not.
    Exit(u16, u32),
}

fn op(with_release: bool) -> impl Strategy<Value = GeneratedOp> {
    prop_oneof![
        4 => (0_u32..90_000).prop_map(GeneratedOp::Pass),
        2 => (1_u16..4, 0_u16..3, any::<bool>(), 0_u8..40).prop_map(|(replicas, ports, rebuild, delete)| {
            GeneratedOp::Change { replicas, ports, rebuild, delete: delete == 0 }
        }),
        1 => Just(GeneratedOp::Stale),
        1 => (0_u16..4).prop_map(GeneratedOp::Unplug),
        1 => Just(GeneratedOp::Check),
        1 => Just(if with_release { GeneratedOp::Release } else { GeneratedOp::Check }),
        1 => any::<bool>().prop_map(GeneratedOp::HandsOff),
        16 => (0_u8..14).prop_map(GeneratedOp::End),
        2 => (0_u16..4).prop_map(GeneratedOp::Kill),
        1 => (0_u16..5, 1_u32..9).prop_map(|(ordinal, attempt)| GeneratedOp::Stray(ordinal, attempt)),
        1 => (0_u16..5, 1_u32..9).prop_map(|(ordinal, attempt)| GeneratedOp::Exit(ordinal, attempt)),
    ]
}

/// The machine in a world of its own.
struct PropertyWorld {
    life: Lifecycle,
    plugs_ports: bool,
    /// Whether its instances hand their service over.
    hands_over: bool,
    config: Config,
    now: Timestamp,
    wake_at: Option<Timestamp>,
    running: Option<LifecycleStep>,
    over: bool,
    desired: Arc<Desired>,
    instances: BTreeMap<(u16, u32), Instance>,
}

impl PropertyWorld {
    fn new(plugs_ports: bool, hands_over: bool) -> Self {
        let config = Config::default();
        let desired = desired(1, 2, |_| {});
        let now = Timestamp::from_millis(5);
        let (id, progress) = (ApplianceId::from_u128(9), Progress::default());
        let life = Lifecycle::new(id, Arc::clone(&desired), plugs_ports, progress, now, &config);
        let instances = BTreeMap::new();
        let mut world = Self {
            life,
            plugs_ports,
            hands_over,
            config,
            now,
            wake_at: None,
            running: None,
            over: false,
            desired,
            instances,
        };
        world.feed(LifecycleEvent::Tick);
        world
    }

    fn feed(&mut self, event: LifecycleEvent) {
        if matches!(event, LifecycleEvent::Ended(_)) {
            self.running = None;
        }
        let output = self.life.step(self.now, event.clone(), 0.5, &self.config);
        if self.over {
            assert_eq!((output.action, output.wake_at, output.end), (None, None, None), "it acts after its end");
            return;
        }
        if output.cancel {
            let dropped = self.running.take().expect("only a running step can be dropped");
            assert!(!dropped.changes_the_world(), "{dropped} was dropped half-way");
        }
        if let Some(step) = output.action {
            assert!(!(self.life.hands_are_off() && step.changes_the_world()), "{step} with hands off, after {event:?}");
            assert_eq!(self.running, None, "{step} begins while another step runs, after {event:?}");
            assert!(!(self.desired.deleting && matches!(step, LifecycleStep::Boot { .. })), "a boot while deleting");
            self.running = Some(step);
        }
        assert_eq!(self.life.running(), self.running);
        self.over = output.end.is_some();
        self.wake_at = output.wake_at;
        assert!(self.wake_at.is_none_or(|at| at > self.now), "a wake-up that is not ahead");
        let asleep = self.running.is_none() && !self.over;
        assert!(!asleep || self.wake_at.is_some(), "it sleeps for ever after {event:?}");
    }

    /// What happens when the running step does what it says.
    fn succeed(&mut self, step: LifecycleStep) -> StepOutcome {
        match step {
            LifecycleStep::Observe => {
                StepOutcome::Observed(self.instances.values().cloned().collect::<Vec<_>>().into())
            }
            LifecycleStep::Boot { ordinal, attempt, beside } => {
                assert!(beside.is_none_or(|_| self.hands_over), "beside what has to end first");
                let made = self.made(ordinal, attempt);
                StepOutcome::Booted(self.instances.entry((ordinal, attempt)).or_insert(made).clone())
            }
            LifecycleStep::Replug { ordinal, .. } => {
                assert!(self.plugs_ports, "this driver cannot plug");
                let ports = PluggedPorts::from_iter(&self.desired.spec.ports);
                let kept = self.life.instance(ordinal, None).map(|kept| kept.attempt);
                match kept.and_then(|attempt| self.instances.get_mut(&(ordinal, attempt))) {
                    Some(instance) => {
                        instance.ports = ports;
                        StepOutcome::Replugged(instance.clone())
                    }
                    None => StepOutcome::Failed("no such instance".into()),
                }
            }
            LifecycleStep::Configure { ordinal, .. } if self.lives(ordinal) => StepOutcome::Configured,
            LifecycleStep::Configure { .. } => StepOutcome::Failed("connection refused".into()),
            LifecycleStep::Probe { ordinal } if self.lives(ordinal) => StepOutcome::Answered(Details::default()),
            LifecycleStep::Probe { .. } => StepOutcome::Vanished("connection refused".into(), None),
            LifecycleStep::Destroy { ordinal, attempt } => {
                self.instances.remove(&(ordinal, attempt));
                StepOutcome::Destroyed
            }
            LifecycleStep::Forget => StepOutcome::Forgotten,
        }
    }

    /// An instance as the driver starts it now.
    fn made(&self, ordinal: u16, attempt: u32) -> Instance {
        let boot_digest = crate::desired::boot_digest(&self.desired, self.plugs_ports);
        Instance { boot_digest, hands_over: self.hands_over, ..instance(ordinal, attempt, &self.desired) }
    }

    fn lives(&self, ordinal: u16) -> bool {
        let kept = self.life.instance(ordinal, None);
        kept.is_some_and(|kept| self.instances.contains_key(&(ordinal, kept.attempt)))
    }

    fn end(&mut self, how: u8) {
        let Some(step) = self.running else { return };
        let outcome = match how {
            0 => StepOutcome::Fenced { retry_after: None },
            1 => StepOutcome::Busy("locked".into()),
            2 => StepOutcome::Failed("no".into()),
            3 => StepOutcome::Refused("never".into()),
            4 => StepOutcome::TimedOut,
            5 => {
                // The worst case: it took effect, and nobody knows.
                self.succeed(step);
                StepOutcome::TimedOut
            }
            6 if matches!(step, LifecycleStep::Probe { .. }) => StepOutcome::Silent("mute".into()),
            7 => StepOutcome::Answered(Details::default()),
            8 => StepOutcome::Superseded(Token::new(Term::new(9), 3)),
            _ => self.succeed(step),
        };
        self.feed(LifecycleEvent::Ended(Box::new(outcome)));
    }

    fn play(&mut self, op: GeneratedOp) {
        match op {
            GeneratedOp::Pass(ms) => {
                self.now = self.now + Duration::from_millis(u64::from(ms));
                if self.wake_at.is_some_and(|at| at <= self.now) {
                    self.feed(LifecycleEvent::Tick);
                }
            }
            GeneratedOp::Change { replicas, ports, rebuild, delete } => {
                let next = desired(self.desired.edition.generation.get() + 1, replicas, |next| {
                    next.revision = self.desired.revision + u64::from(rebuild);
                    next.deleting = delete || self.desired.deleting;
                    next.spec.ports = (0..ports).map(|n| port(&format!("p{n}"), "net")).collect();
                });
                self.desired = Arc::clone(&next);
                self.feed(LifecycleEvent::Change(next));
            }
            GeneratedOp::Stale => self.feed(LifecycleEvent::Change(desired(1, 3, |d| d.deleting = true))),
            GeneratedOp::Unplug(ordinal) => {
                let lost = self.instances.values_mut().filter(|instance| instance.ordinal == ordinal);
                lost.for_each(|instance| instance.ports = PluggedPorts::default());
            }
            GeneratedOp::Check => self.feed(LifecycleEvent::Check(1)),
            GeneratedOp::Release => self.feed(LifecycleEvent::Release),
            GeneratedOp::HandsOff(off) => self.feed(LifecycleEvent::HandsOff(off)),
            GeneratedOp::End(how) => self.end(how),
            GeneratedOp::Kill(ordinal) => self.instances.retain(|(n, _), _| *n != ordinal),
            GeneratedOp::Exit(ordinal, attempt) => self.feed(LifecycleEvent::Exited { ordinal, attempt }),
            GeneratedOp::Stray(ordinal, attempt) => {
                let made = self.made(ordinal, attempt);
                self.instances.entry((ordinal, attempt)).or_insert(made);
            }
        }
    }

    /// From now on everything works: it must come to rest where it was told to.
    fn settle(&mut self) {
        for _ in 0..2_000 {
            if self.over {
                return;
            }
            let phase = self.life.status().phase;
            let all_seen = (0..self.desired.spec.replicas).all(|ordinal| self.lives(ordinal));
            if phase == Phase::Configured && all_seen && !self.desired.deleting {
                return;
            }
            match self.running {
                Some(step) => {
                    let outcome = self.succeed(step);
                    self.feed(LifecycleEvent::Ended(Box::new(outcome)));
                }
                None => {
                    self.now = self.wake_at.expect("a machine at rest has a wake-up");
                    self.feed(LifecycleEvent::Tick);
                }
            }
        }
        panic!("it does not settle: {:?}", self.life);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_sequence_keeps_the_rules(plugs: bool, hands: bool, ops in proptest::collection::vec(op(true), 0..120)) {
        let mut world = PropertyWorld::new(plugs, hands);
        for op in ops {
            world.play(op);
        }
    }

    #[test]
    fn it_settles_once_the_world_behaves(plugs: bool, hands: bool, ops in proptest::collection::vec(op(false), 0..120)) {
        let mut world = PropertyWorld::new(plugs, hands);
        for op in ops {
            world.play(op);
        }
        world.feed(LifecycleEvent::HandsOff(false));
        world.settle();
        let status = world.life.status();
        if world.desired.deleting {
            prop_assert!(world.over);
            prop_assert_eq!(status.phase, Phase::Gone);
        } else {
            prop_assert_eq!(status.last_error, None);
            prop_assert_eq!(status.instances.len(), usize::from(world.desired.spec.replicas));
            // A look finds strays, once no wait of a failed one is left; after it nothing is left over.
            world.now = world.now + Duration::from_secs(120);
            world.feed(LifecycleEvent::Tick);
            world.settle();
            world.feed(LifecycleEvent::Check(2));
            world.settle();
            for _ in 0..200 {
                if let Some(step) = world.running {
                    let outcome = world.succeed(step);
                    world.feed(LifecycleEvent::Ended(Box::new(outcome)));
                }
            }
            prop_assert_eq!(world.instances.len(), usize::from(world.desired.spec.replicas));
            let wanted = PluggedPorts::from_iter(&world.desired.spec.ports);
            prop_assert!(!plugs || world.instances.values().all(|instance| instance.ports == wanted));
        }
    }
}
