use std::sync::Arc;

use common::appliance::{Name, Spec, Timing};
use common::driver::DriverName;
use common::kind::{Custom, KindSpec, Probe, StopRecipe};
use common::{Edition, Generation, Term};

use super::*;
use crate::gate::{SharedGate, Shut};

fn permit(appliance: ApplianceId, sequence: u64) -> Permit {
    let gate = SharedGate::new();
    let token = Token::new(Term::new(1), sequence);
    gate.extend(clock::now() + Duration::from_secs(60));
    gate.admit(appliance, token, Duration::ZERO);
    Arc::clone(&gate).pass(appliance, token).expect("the gate is open")
}

fn desired() -> Desired {
    let name = Name::new("a").expect("a name");
    let kind = KindSpec::Custom(Custom {
        command: "x".into(),
        args: vec![],
        env: std::collections::BTreeMap::new(),
        port: None,
        probe: Probe::Tcp,
        ..Custom::default()
    });
    Desired {
        name: name.clone(),
        tenant: name,
        driver: DriverName::simulated(),
        edition: Edition::new(Generation::new(1), Term::new(1)),
        revision: 0,
        deleting: false,
        spec: Spec {
            replicas: 1,
            probe_interval: None,
            timing: Timing::default(),
            image: None,
            pod: None,
            ports: vec![],
            kind,
        },
    }
}

fn wanted(desired: &Desired, attempt: u32) -> Wanted<'_> {
    Wanted { ordinal: 0, attempt, desired, boot_digest: "d", beside: None }
}

#[tokio::test]
async fn an_instance_of_a_shared_world_is_seen_and_ended_by_another_worker() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let config = Config { world: Some(folder.path().to_owned()), ..Config::default() };
    let (first, second) =
        (Simulated::new(config.clone()).expect("a world"), Simulated::new(config).expect("the same world"));
    let (a, spec) = (ApplianceId::from_u128(1), desired());
    let made = first.ensure(&permit(a, 1), wanted(&spec, 1)).await.expect("boots");
    assert_eq!(second.observe(a).await.expect("readable").running, std::slice::from_ref(&made));
    second.claim(&permit(a, 2)).await.expect("the newer token");
    second.destroy(&permit(a, 2), &made, StopRecipe::default()).await.expect("ends");
    assert_eq!(first.observe(a).await.expect("readable").running, []);
    let late = first.ensure(&permit(a, 1), wanted(&spec, 2)).await;
    assert!(matches!(late, Err(Error::Superseded(_))), "{late:?}");
}

#[tokio::test]
async fn a_private_world_is_lost_to_others_and_keeps_nothing_of_what_is_forgotten() {
    let (first, second) = (
        Simulated::new(Config::default()).expect("no failures"),
        Simulated::new(Config::default()).expect("no failures"),
    );
    let (a, spec) = (ApplianceId::from_u128(1), desired());
    let made = first.ensure(&permit(a, 1), wanted(&spec, 1)).await.expect("boots");
    assert_eq!(first.ensure(&permit(a, 1), wanted(&spec, 1)).await.expect("found"), made);
    assert_eq!(second.observe(a).await.expect("readable").running, []);
    assert!(first.forget(&permit(a, 1)).await.is_err(), "an instance runs");
    first.destroy(&permit(a, 1), &made, StopRecipe::default()).await.expect("ends");
    first.destroy(&permit(a, 1), &made, StopRecipe::default()).await.expect("ending it again is fine");
    first.forget(&permit(a, 1)).await.expect("nothing runs");
    assert!(first.world().appliances.is_empty());
}

#[tokio::test]
async fn ports_of_a_shared_world_are_seen_and_plugged_once() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let config = Config { world: Some(folder.path().to_owned()), ..Config::default() };
    let (first, second) =
        (Simulated::new(config.clone()).expect("a world"), Simulated::new(config).expect("the same world"));
    let (a, mut spec) = (ApplianceId::from_u128(1), desired());
    let port = |name: &str| NetworkPort {
        name: Name::new(name).expect("a name"),
        network: "n1".into(),
        addresses: vec![],
        mac: None,
    };
    spec.spec.ports = vec![port("a")];
    let made = first.ensure(&permit(a, 1), wanted(&spec, 1)).await.expect("boots");
    assert_eq!(made.ports, spec.spec.ports.iter().collect(), "booted with its ports");
    let plugged = first.attach(&permit(a, 1), &made, &port("b")).await.expect("it runs");
    assert_eq!(plugged.ports, [port("a"), port("b")].iter().collect());
    assert_eq!(second.observe(a).await.expect("readable").running, std::slice::from_ref(&plugged));
    let lines = || {
        let files = fs::read_dir(folder.path()).expect("readable").map(|file| file.expect("readable").path());
        files.map(|file| fs::read_to_string(file).expect("text").lines().count()).sum::<usize>()
    };
    let before = lines();
    assert_eq!(second.attach(&permit(a, 2), &made, &port("b")).await.expect("it is there"), plugged);
    assert_eq!(lines(), before, "nothing was plugged again");
    let less = second.detach(&permit(a, 2), &plugged, &port("a").name).await.expect("it runs");
    assert_eq!(second.detach(&permit(a, 2), &less, &port("a").name).await.expect("it is gone already"), less);
    assert_eq!(first.observe(a).await.expect("readable").running, std::slice::from_ref(&less));
    let late = first.attach(&permit(a, 1), &less, &port("c")).await;
    assert!(matches!(late, Err(Error::Superseded(_))), "{late:?}");
    second.destroy(&permit(a, 2), &less, StopRecipe::default()).await.expect("ends");
    assert!(matches!(second.attach(&permit(a, 2), &less, &port("c")).await, Err(Error::Failed(_))), "it is gone");
}

#[tokio::test]
async fn failures_come_at_their_rate_and_again_with_the_same_seed() {
    let config = Config { failure_rate: 0.25, seed: 7, ..Config::default() };
    let run = |driver: Simulated| async move {
        let (spec, made) = (
            desired(),
            SimulatedSlot {
                ordinal: 0,
                attempt: 1,
                started_at_unix_ms: 0,
                at_boot_ns: 0,
                boot: BootState::Unknown,
                boot_digest: Some("d".into()),
                ports: PluggedPorts::default(),
            },
        );
        let instance = made.instance().expect("it runs");
        let mut failed = Vec::new();
        for n in 0..2000 {
            if driver.probe(&instance, &spec).await.is_err() {
                failed.push(n);
            }
        }
        failed
    };
    let first = run(Simulated::new(config.clone()).expect("valid")).await;
    assert!((400..600).contains(&first.len()), "{} of 2000 failed", first.len());
    assert_eq!(run(Simulated::new(config).expect("valid")).await, first);
    let odd = Simulated::new(Config { failure_rate: 1.5, ..Config::default() });
    assert!(matches!(odd, Err(Error::Refused(_))));
}

fn unfenced(latency: Duration) -> Simulated {
    let fence_delay = Duration::from_secs(2);
    Simulated::new(Config { fencing: FencedBy::Delay, fence_delay, boot_latency: latency, ..Config::default() })
        .expect("valid")
}

#[tokio::test(start_paused = true)]
async fn a_call_without_token_takes_effect_once_it_was_sent_whoever_owns_the_appliance_by_then() {
    let driver = unfenced(Duration::from_secs(1));
    assert_eq!(driver.fencing(), DriverFencing::Delay(Duration::from_secs(2)));
    let (a, spec) = (ApplianceId::from_u128(1), desired());
    driver.claim(&permit(a, 2)).await.expect("nobody there remembers it");
    let (gate, token) = (SharedGate::new(), Token::new(Term::new(1), 1));
    gate.extend(clock::now() + Duration::from_secs(60));
    gate.admit(a, token, Duration::ZERO);
    let permit = gate.pass(a, token).expect("the gate is open");
    let lost = async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        gate.shut();
    };
    let (made, ()) = tokio::join!(driver.ensure(&permit, wanted(&spec, 1)), lost);
    assert_eq!(driver.observe(a).await.expect("readable").running, [made.expect("it was sent in time")]);
    let late = driver.ensure(&permit, wanted(&spec, 1)).await;
    assert!(matches!(late, Err(Error::Shut(Shut::Fenced))), "{late:?}");
}

#[tokio::test]
async fn a_call_without_token_is_not_sent_shortly_before_the_lease_ends() {
    let driver = unfenced(Duration::ZERO);
    let (a, spec) = (ApplianceId::from_u128(1), desired());
    let (gate, token) = (SharedGate::with_margin(Duration::from_secs(3_600)), Token::new(Term::new(1), 1));
    gate.extend(clock::now() + Duration::from_secs(1_800));
    gate.admit(a, token, Duration::ZERO);
    let permit = gate.pass(a, token).expect("the lease stands");
    let refused = driver.ensure(&permit, wanted(&spec, 1)).await;
    assert!(matches!(refused, Err(Error::Shut(Shut::Fenced))), "{refused:?}");
    assert_eq!(driver.observe(a).await.expect("readable").running, []);
}

#[test]
fn a_fence_delay_covers_the_longest_call() {
    let config = |delay| Config {
        fencing: FencedBy::Delay,
        fence_delay: Duration::from_millis(delay),
        configure_latency: Duration::from_millis(500),
        ..Config::default()
    };
    assert_eq!(config(499).validate().first().map(|v| v.field.clone()), Some("fence_delay".to_owned()));
    assert_eq!(config(500).validate(), []);
    assert_eq!(Config { fencing: FencedBy::Token, ..config(0) }.validate(), []);
}

#[tokio::test]
async fn what_answered_is_known_to_the_next_owner_and_numbers_of_what_ended_as_well() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let config = Config { world: Some(folder.path().to_owned()), ..Config::default() };
    let (first, second) =
        (Simulated::new(config.clone()).expect("a world"), Simulated::new(config).expect("the same world"));
    let (a, spec) = (ApplianceId::from_u128(1), desired());
    let made = first.ensure(&permit(a, 1), wanted(&spec, 3)).await.expect("boots");
    let found = second.observe(a).await.expect("readable");
    assert!(matches!(made.boot, BootState::UnderWay { since } if since <= clock::now()), "{made:?}");
    assert_eq!((found.running[0].boot, found.attempts), (made.boot, vec![(0, 3)]));
    first.note_answer(a, &made).await.expect("it runs");
    let found = second.observe(a).await.expect("readable");
    assert_eq!(found.running[0].boot, BootState::Over);
    second.destroy(&permit(a, 2), &found.running[0], StopRecipe::default()).await.expect("ends");
    first.note_answer(a, &made).await.expect("it is gone, which is fine");
    let found = first.observe(a).await.expect("readable");
    assert_eq!((found.running.len(), found.attempts), (0, vec![(0, 3)]));
}
