use std::collections::HashMap;

use super::*;
use crate::output::OutputFormat;

const NOW: u64 = 1_000_000;

fn ago(seconds: u64) -> Option<prost_types::Timestamp> {
    Some(prost_types::Timestamp { seconds: (NOW - seconds) as i64, nanos: 0 })
}

fn worker(id: &str, health: v1::Health) -> v1::Worker {
    v1::Worker {
        id: id.into(),
        health: health.into(),
        member: true,
        last_seen: ago(1),
        version: env!("CARGO_PKG_VERSION").into(),
        ..v1::Worker::default()
    }
}

/// A healthy cluster: two coordinators, two workers, ten appliances.
fn status() -> v1::ClusterStatus {
    let coordinator = |id: &str, leading| v1::Coordinator { id: id.into(), address: format!("http://{id}"), leading };
    v1::ClusterStatus {
        coordinator: "c1".into(),
        term: 7,
        leading: true,
        version: env!("CARGO_PKG_VERSION").into(),
        appliances: 10,
        phases: HashMap::from([("Configured".to_owned(), 10)]),
        store: "postgres://db/rug".into(),
        coordination: "zookeeper://zk1,zk2,zk3/rug".into(),
        coordination_state: v1::CoordinationState::Connected.into(),
        coordinators: vec![coordinator("c1", true), coordinator("c2", false)],
        unowned: Some(v1::Unowned::default()),
        troubles: Some(v1::Troubles::default()),
        time: ago(0),
        ..v1::ClusterStatus::default()
    }
}

fn server(address: &str, leads: bool, status: v1::ClusterStatus) -> CoordinatorReply {
    CoordinatorReply { address: address.into(), answer: Ok(LeadAndStatus { leads, status: Ok(status) }) }
}

fn seen(status: v1::ClusterStatus) -> Inspection {
    Inspection {
        servers: vec![server("http://c1", true, status.clone()), server("http://c2", false, status)],
        workers: Ok(vec![worker("w1", v1::Health::Healthy), worker("w2", v1::Health::Healthy)]),
        now: SystemTime::UNIX_EPOCH + Duration::from_secs(NOW),
    }
}

/// The checks that are not ok.
fn findings(seen: &Inspection) -> Vec<Finding> {
    let calm = checks::judge(&self::seen(status()));
    checks::judge(seen).into_iter().filter(|check| !calm.contains(check)).collect()
}

/// The only check that is not ok, as its name, severity and summary.
fn finding(seen: &Inspection) -> (&'static str, Severity, String) {
    let mut all = findings(seen);
    assert_eq!(all.len(), 1, "{all:#?}");
    let check = all.remove(0);
    assert!(check.state == Severity::Ok || !check.advice.is_empty() || check.check == "notes", "no advice: {check:#?}");
    (check.check, check.state, check.summary)
}

fn unowned(number: u64, seconds: u64) -> v1::Unowned {
    let one = |n: u64| v1::UnownedAppliance {
        id: "id".into(),
        tenant: "demo".into(),
        name: format!("web-{n}"),
        since: ago(seconds - n.min(seconds)),
        state: "unowned".into(),
        reason: "no worker offers driver openstack".into(),
    };
    v1::Unowned { appliances: number, oldest: (0..number.min(10)).map(one).collect() }
}

#[test]
fn what_crashes_in_a_loop_and_what_hangs_is_named_with_the_reason() {
    let end = v1::InstanceEnd {
        time: ago(5),
        cause: Some(v1::instance_end::Cause::ExitStatus(3)),
        last_lines: vec!["first".into(), "no such table".into()],
        ..v1::InstanceEnd::default()
    };
    let (tenant, last_error) = ("demo".to_owned(), "port 80 is in use".to_owned());
    let looping = |name: &str, last_end| v1::CrashLoop {
        tenant: tenant.clone(),
        name: name.into(),
        failed_boots: 7,
        last_error: last_error.clone(),
        last_end,
        ..v1::CrashLoop::default()
    };
    let hanging = v1::HangingBoot {
        tenant: tenant.clone(),
        name: "slow".into(),
        instance: "id-0-1".into(),
        start_time: ago(180),
        last_error: "instance 0 does not answer yet: connection refused".into(),
        ..v1::HangingBoot::default()
    };
    let troubles = v1::Troubles {
        crash_loops: 2,
        worst: vec![looping("web", Some(end)), looping("api", None)],
        hanging: 1,
        oldest: vec![hanging],
    };
    let seen = seen(v1::ClusterStatus { troubles: Some(troubles), ..status() });
    let (name, state, summary) = finding(&seen);
    let told = "2 appliances crash in a loop, 1 instance hangs while it starts";
    assert_eq!((name, state, summary.as_str()), ("instances", Severity::Warning, told));
    let found = findings(&seen).remove(0);
    assert_eq!(
        found.details,
        [
            "demo/web: 7 starts in a row failed; the last one ended 5s ago with exit status 3: no such table",
            "demo/api: 7 starts in a row failed: port 80 is in use",
            "demo/slow: id-0-1 was started 3m ago: instance 0 does not answer yet: connection refused",
        ]
    );
    assert_eq!(found.advice, ["rugctl describe --tenant demo web"]);
}

#[test]
fn every_check_of_a_healthy_cluster_is_ok() {
    let checks = checks::judge(&seen(status()));
    assert!(checks.iter().all(|check| check.state == Severity::Ok && check.advice.is_empty()), "{checks:#?}");
    assert_eq!(checks[0].summary, "c1 leads in term 7; 1 standby");
}

#[test]
fn missing_disagreeing_and_single_coordinators_are_distinguished() {
    let away = |address: &str| CoordinatorReply { address: address.into(), answer: Err("connection refused".into()) };
    let nobody = Inspection { servers: vec![away("http://c1")], workers: Err("away".into()), ..seen(status()) };
    let checks = checks::judge(&nobody);
    assert_eq!((checks.len(), checks[0].state), (1, Severity::Problem));
    assert_eq!(checks[0].details, ["http://c1: connection refused"]);

    let mut one_away = seen(status());
    one_away.servers[1] = away("http://c2");
    let (_, state, summary) = finding(&one_away);
    assert_eq!((state, summary.as_str()), (Severity::Warning, "c1 leads in term 7; 1 of 2 does not answer"));

    let mut two = seen(status());
    two.servers[1] = server("http://c2", true, v1::ClusterStatus { coordinator: "c2".into(), term: 8, ..status() });
    assert_eq!(finding(&two).1, Severity::Problem, "both lead");

    let mut apart = seen(status());
    apart.servers[1] = server("http://c2", false, v1::ClusterStatus { coordinator: "c3".into(), term: 8, ..status() });
    assert_eq!(finding(&apart), ("coordinators", Severity::Warning, "they report different leaders".into()));

    let mut leaderless = seen(status());
    for server in &mut leaderless.servers {
        server.answer = Ok(LeadAndStatus { leads: false, status: Err("no leader".into()) });
    }
    let checks = checks::judge(&leaderless);
    assert_eq!((checks.len(), checks[0].state), (1, Severity::Problem));
    assert!(checks[0].summary.starts_with("there is no leader"), "{checks:#?}");

    let mut alone = status();
    alone.coordinators.truncate(1);
    let mut alone_seen = seen(alone.clone());
    alone_seen.servers.truncate(1);
    assert_eq!(finding(&alone_seen).1, Severity::Warning);
    alone.coordination = "embedded".into();
    let mut embedded = seen(alone);
    embedded.servers.truncate(1);
    assert!(
        findings(&embedded).iter().all(|check| check.state == Severity::Ok),
        "an embedded cluster has one coordinator"
    );
}

#[test]
fn severity_of_unowned_appliances_grows_with_time() {
    let lasting = |seconds| seen(v1::ClusterStatus { unowned: Some(unowned(1, seconds)), ..status() });
    assert_eq!(finding(&lasting(2)).1, Severity::Ok, "handed off");
    assert_eq!(
        finding(&lasting(20)),
        ("unowned", Severity::Warning, "1 appliance has no owner, the oldest for 20s".into())
    );
    assert_eq!(finding(&lasting(90)).1, Severity::Problem);
    let many = findings(&seen(v1::ClusterStatus { unowned: Some(unowned(25, 90)), ..status() }));
    assert_eq!(many[0].details.len(), 11);
    assert_eq!(many[0].details[0], "demo/web-0 for 1m30s: no worker offers driver openstack");
    assert_eq!(many[0].details[10], "and 15 more, for a shorter time");
    assert_eq!(many[0].advice, ["rugctl explain --tenant demo web-0"]);
}

#[test]
fn dead_unhealthy_and_non_member_workers_are_listed() {
    let mut ill = seen(status());
    let dead = v1::Worker { last_seen: ago(250), host: "h3".into(), ..worker("w3", v1::Health::Dead) };
    let suspect = v1::Worker { reason: "no session".into(), ..worker("w4", v1::Health::Suspect) };
    let outside = v1::Worker { member: false, ..worker("w5", v1::Health::Healthy) };
    ill.workers.as_mut().expect("listed").extend([dead, suspect, outside]);
    let (_, state, summary) = finding(&ill);
    assert_eq!((state, summary.as_str()), (Severity::Warning, "3 healthy, 1 suspect, 1 dead"));
    let found = &findings(&ill)[0];
    assert_eq!(found.details[0], "w3 is dead, last seen 4m10s ago, on h3");
    assert!(found.details[1].ends_with("no session") && found.details[2].contains("not in the ring"), "{found:#?}");
    assert!(found.advice.contains(&"rugctl worker get w3".to_owned()));

    let none = Inspection { workers: Ok(vec![]), ..seen(status()) };
    assert_eq!(finding(&none), ("workers", Severity::Problem, "none is healthy, for 10 appliances".into()));
    let draining = v1::Worker { draining: true, member: false, ..worker("w1", v1::Health::Healthy) };
    let leaving = Inspection { workers: Ok(vec![draining, worker("w2", v1::Health::Healthy)]), ..seen(status()) };
    assert_eq!(finding(&leaving), ("workers", Severity::Ok, "2 healthy, 1 of them draining".into()));
}

#[test]
fn every_other_fault_is_reported_with_advice() {
    let since = ago(60);
    let frozen =
        v1::Frozen { reason: "3 of 4 workers vanished".into(), since, missing: vec!["w1".into()], missing_count: 1 };
    let paused = v1::Paused { reason: "network work".into(), since, by: "10.0.0.1:5".into(), ..v1::Paused::default() };
    let cases: [(v1::ClusterStatus, &str, Severity); 13] = [
        (v1::ClusterStatus { frozen: Some(frozen), ..status() }, "placement", Severity::Problem),
        (v1::ClusterStatus { paused: Some(paused), ..status() }, "placement", Severity::Warning),
        (v1::ClusterStatus { waiting: "a new leader reads".into(), ..status() }, "placement", Severity::Warning),
        (v1::ClusterStatus { store_problem: "refused".into(), ..status() }, "store", Severity::Problem),
        (v1::ClusterStatus { quarantined: 2, suspects: 5, ..status() }, "quarantine", Severity::Problem),
        (v1::ClusterStatus { suspects: 5, ..status() }, "quarantine", Severity::Ok),
        (v1::ClusterStatus { stalled_moves: 1, ..status() }, "moves", Severity::Warning),
        (v1::ClusterStatus { violations: 2, last_violation_time: ago(30), ..status() }, "ownership", Severity::Problem),
        (
            v1::ClusterStatus { violations: 2, last_violation_time: ago(900), ..status() },
            "ownership",
            Severity::Warning,
        ),
        (
            v1::ClusterStatus { phases: HashMap::from([("Error".to_owned(), 1)]), ..status() },
            "appliances",
            Severity::Warning,
        ),
        (v1::ClusterStatus { notes: vec!["restored".into()], ..status() }, "notes", Severity::Warning),
        (v1::ClusterStatus { time: ago(40), ..status() }, "clocks", Severity::Warning),
        (
            v1::ClusterStatus { coordination_state: v1::CoordinationState::InDoubt.into(), ..status() },
            "coordination",
            Severity::Problem,
        ),
    ];
    for (status, name, state) in cases {
        let (found, was, summary) = finding(&seen(status));
        assert_eq!((found, was), (name, state), "{summary}");
    }
    let notes = vec!["the database does not answer (refused): reads go on".to_owned()];
    let twice = v1::ClusterStatus { store_problem: "refused".into(), notes, ..status() };
    assert_eq!(finding(&seen(twice)).0, "store", "one fault is reported once");
    let mut old = seen(status());
    old.workers.as_mut().expect("listed")[0].version = "0.0.9".into();
    assert_eq!(finding(&old).0, "versions");
}

#[test]
fn an_older_coordinator_without_new_fields_causes_no_warning() {
    let old = v1::ClusterStatus { unowned: None, time: None, ..status() };
    assert!(checks::judge(&seen(old)).iter().all(|check| check.state == Severity::Ok));
}

#[test]
fn the_report_fits_the_terminal_and_ends_with_the_verdict() {
    let ui = Ui::plain(OutputFormat::Table);
    let status = v1::ClusterStatus { unowned: Some(unowned(3, 90)), stalled_moves: 1, ..status() };
    let checks = checks::judge(&seen(status));
    let report = DoctorReport { problems: 1, warnings: 1, checks };
    for width in [80, 120] {
        let text = render(&ui, &report, Some(width));
        assert!(text.lines().all(|line| line.chars().count() <= width && line.trim_end() == line), "{text}");
        assert!(text.ends_with("\n\n1 problem, 1 warning"), "{text}");
        assert!(text.contains("\nproblem  unowned       3 appliances have no owner, the oldest for 1m30s\n"), "{text}");
        assert!(text.contains("\n                       > rugctl explain --tenant demo web-0\n"), "{text}");
    }
    let unbroken = render(&ui, &report, None);
    assert_eq!(unbroken.lines().filter(|line| line.starts_with("warning")).count(), 1, "{unbroken}");
    let calm = DoctorReport { problems: 0, warnings: 0, checks: checks::judge(&seen(self::status())) };
    assert!(render(&ui, &calm, Some(80)).ends_with("\n\nnothing is wrong"));
}

#[tokio::test]
async fn no_answering_coordinator_is_a_problem_and_not_an_error() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("its address");
    let client =
        crate::client::AdminClient::new(&format!("http://{free}"), Duration::from_millis(300)).expect("an address");
    let ui = Ui::plain(OutputFormat::Json);
    let context = CommandContext { client, ui, timeout: Some(Duration::from_millis(300)) };
    let seen = look(&context).await;
    assert!(seen.servers[0].answer.as_ref().is_err_and(|why| why.starts_with("Connection refused")), "{seen:?}");
    let failure = run(&context).await.expect_err("a problem");
    assert_eq!((failure.exit, failure.message.as_str()), (Exit::Failed, ""));
}
