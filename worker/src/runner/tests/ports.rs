//! Network ports: which calls a driver gets when they change, and what becomes of calls that fail, hang or are not answered.

use super::*;
use crate::drivers::simulated::{self, Simulated};

fn with_ports(generation: u64, ports: &[(&str, &str)]) -> Arc<Desired> {
    let port = |(name, network): &(&str, &str)| NetworkPort {
        name: Name::new(name).expect("a valid name"),
        network: (*network).to_owned(),
        addresses: vec![],
        mac: None,
    };
    desired(generation, |d| d.spec.ports = ports.iter().map(port).collect())
}

impl RunnerBench {
    /// A world that plugs like that, with an appliance that is `Configured` and has no ports yet.
    async fn plugging(plugs: Plugs) -> Self {
        let mut bench = Self::new().await;
        *bench.world.plugs.lock().expect("no panic") = plugs;
        bench.take(1, 1, desired(1, |_| {})).await;
        bench.phase(Phase::Configured).await;
        bench.world.calls.lock().expect("no panic").clear();
        bench
    }

    /// The simulated driver with these settings, and an appliance that is `Configured` and has no ports yet.
    async fn simulated(config: simulated::Config) -> Self {
        let driver = Arc::new(Simulated::new(config).expect("valid settings"));
        let offer = Offer { driver: Arc::clone(&driver) as _, protocol: driver };
        let mut bench = Self::with(RunnerWorld::new(), offer).await;
        bench.open();
        bench.take(1, 1, desired(1, |_| {})).await;
        bench.phase(Phase::Configured).await;
        bench
    }

    /// Asks for other ports, and waits until they are there. Gives back the attempt that has them.
    async fn replugged(&mut self, wanted: &Arc<Desired>) -> String {
        self.update(1, 1, Arc::clone(wanted)).await;
        let generation = wanted.edition.generation;
        let done = |s: &Status| s.observed_generation == generation && s.phase == Phase::Configured;
        let status = self.status(done).await;
        let mut names: Vec<_> = wanted.spec.ports.iter().map(|port| port.name.clone()).collect();
        names.sort();
        assert_eq!(status.instances[0].ports, names);
        let (_, attempt) = status.instances[0].name.rsplit_once('-').expect("a name of an instance");
        attempt.to_owned()
    }
}

#[tokio::test(start_paused = true)]
async fn only_ports_that_changed_are_detached_and_attached() {
    let mut bench = RunnerBench::plugging(Plugs::AsTold).await;
    bench.replugged(&with_ports(2, &[("a", "n1"), ("b", "n1")])).await;
    bench.replugged(&with_ports(3, &[("b", "n2"), ("a", "n1"), ("c", "n1")])).await;
    bench.replugged(&with_ports(4, &[("c", "n1")])).await;
    let calls = [
        "attach 0/1 a",
        "attach 0/1 b",
        "configure 0/1 g2",
        "detach 0/1 b",
        "attach 0/1 b",
        "attach 0/1 c",
        "configure 0/1 g3",
        "detach 0/1 a",
        "detach 0/1 b",
        "configure 0/1 g4",
    ];
    assert_eq!(bench.world.calls(), calls);
}

#[tokio::test(start_paused = true)]
async fn an_instance_is_booted_with_its_ports() {
    let mut bench = RunnerBench::new().await;
    *bench.world.plugs.lock().expect("no panic") = Plugs::AsTold;
    bench.take(1, 1, with_ports(1, &[("a", "n1")])).await;
    bench.phase(Phase::Configured).await;
    assert_eq!(bench.world.calls(), ["boot 0/1", "configure 0/1 g1"]);
}

#[tokio::test(start_paused = true)]
async fn a_driver_that_plugs_no_ports_gets_a_new_instance_instead() {
    let mut bench = RunnerBench::plugging(Plugs::Never).await;
    assert_eq!(bench.replugged(&with_ports(2, &[("a", "n1")])).await, "2");
    assert_eq!(bench.world.calls(), ["destroy 0/1", "boot 0/2", "configure 0/2 g2"]);
}

#[tokio::test(start_paused = true)]
async fn a_call_that_took_effect_without_an_answer_is_not_made_again() {
    let mut bench = RunnerBench::plugging(Plugs::Unanswered).await;
    assert_eq!(bench.replugged(&with_ports(2, &[("a", "n1")])).await, "1");
    bench.pass(HOUR / 4).await;
    assert_eq!(bench.world.calls(), ["attach 0/1 a", "configure 0/1 g2"]);
}

#[tokio::test(start_paused = true)]
async fn calls_that_hang_are_given_up_and_at_last_the_instance_too() {
    let mut bench = RunnerBench::plugging(Plugs::After(HOUR)).await;
    let asked = Instant::now();
    assert_eq!(bench.replugged(&with_ports(2, &[("a", "n1")])).await, "2");
    let calls = ["attach 0/1 a", "attach 0/1 a", "attach 0/1 a", "destroy 0/1", "boot 0/2", "configure 0/2 g2"];
    assert_eq!(bench.world.calls(), calls);
    // Three time-outs; between them the fence delay of a call that may still take effect.
    let took = asked.elapsed();
    assert!((Duration::from_secs(70)..Duration::from_secs(90)).contains(&took), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn an_instance_that_cannot_be_plugged_says_why_and_is_replaced() {
    let mut bench = RunnerBench::plugging(Plugs::NotAtAll).await;
    bench.update(1, 1, with_ports(2, &[("a", "n1")])).await;
    let status = bench.status(|status| status.last_error.is_some()).await;
    assert_eq!(
        (status.phase, status.last_error.as_deref()),
        (Phase::Replugging, Some("replug 0: attach port a: no slot left"),)
    );
    let status = bench.phase(Phase::Configured).await;
    assert_eq!(status.instances[0].details.pid(), Some(2));
}

#[tokio::test(start_paused = true)]
async fn a_release_waits_for_ports_that_are_being_plugged() {
    let mut bench = RunnerBench::plugging(Plugs::After(Duration::from_secs(4))).await;
    bench.update(1, 1, with_ports(2, &[("a", "n1")])).await;
    bench.phase(Phase::Replugging).await;
    let asked = Instant::now();
    bench.release(1, 1).await;
    bench.released().await;
    assert!(asked.elapsed() >= Duration::from_secs(3), "{:?}", asked.elapsed());
    assert_eq!(bench.world.find(id(1))[0].ports.iter().count(), 1);
    // The next owner finds the port and only configures.
    bench.take(1, 2, with_ports(2, &[("a", "n1")])).await;
    bench.phase(Phase::Configured).await;
    assert_eq!(bench.world.calls(), ["attach 0/1 a", "configure 0/1 g2"]);
}

#[tokio::test(start_paused = true)]
async fn simulated_ports_are_plugged_into_what_runs() {
    let mut bench = RunnerBench::simulated(simulated::Config::default()).await;
    assert_eq!(bench.replugged(&with_ports(2, &[("a", "n1"), ("b", "n2")])).await, "1");
    assert_eq!(bench.replugged(&with_ports(3, &[("b", "n2")])).await, "1");
    assert_eq!(bench.replugged(&with_ports(4, &[])).await, "1");
}

#[tokio::test(start_paused = true)]
async fn simulated_faults_of_plugging_end_in_the_wanted_ports() {
    let plain = simulated::Config::default();
    let slow = Duration::from_secs(30);
    for (config, attempt) in [
        (simulated::Config { hot_plug: false, ..plain.clone() }, "2"),
        (simulated::Config { plug_latency: Duration::from_secs(3), ..plain.clone() }, "1"),
        (simulated::Config { plug_latency: slow, ..plain.clone() }, "2"),
        (simulated::Config { plug_failure_rate: 1.0, ..plain.clone() }, "2"),
        (simulated::Config { plug_lost_rate: 1.0, ..plain.clone() }, "1"),
    ] {
        let mut bench = RunnerBench::simulated(config.clone()).await;
        assert_eq!(bench.replugged(&with_ports(2, &[("a", "n1"), ("b", "n2")])).await, attempt, "{config:?}");
    }
}
