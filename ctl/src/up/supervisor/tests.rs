//! Supervision of small shell scripts.

use std::future::pending;

use super::*;

/// Far more than any step takes; only a failing test waits this long.
const PATIENCE: Duration = Duration::from_secs(30);

struct SupervisorTest {
    dir: tempfile::TempDir,
}

impl SupervisorTest {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().expect("a folder") }
    }

    fn folder(&self) -> Folder {
        Folder::private(self.dir.path(), &[]).expect("our own")
    }

    fn program(&self, name: &str, script: &str) -> ChildProgram {
        ChildProgram {
            name: name.to_owned(),
            binary: "/bin/sh".into(),
            args: vec!["-c".into(), script.into()],
            logs: self.folder(),
            run: self.folder(),
        }
    }

    fn log(&self, name: &str) -> String {
        fs::read_to_string(self.dir.path().join(format!("{name}.log"))).unwrap_or_default()
    }

    /// Waits until a child has written this.
    async fn written(&self, name: &str, text: &str) {
        let wait = async {
            while !self.log(name).contains(text) {
                sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, wait).await.expect("the child writes its log");
    }
}

fn quick() -> Policy {
    Policy {
        pause: Backoff { base: Duration::from_millis(10), cap: Duration::from_millis(40) },
        steady_after: PATIENCE,
        limit: 4,
        stop_grace: PATIENCE,
    }
}

async fn next(supervisor: &mut Supervisor) -> ChildEvent {
    tokio::time::timeout(PATIENCE, supervisor.event()).await.expect("something happens")
}

const OBEDIENT: &str = "trap 'echo bye; exit 0' TERM; echo ready; while :; do sleep 0.02; done";
const STUBBORN: &str = "trap '' TERM; echo ready; while :; do sleep 0.02; done";

#[tokio::test]
async fn a_failing_child_is_restarted_with_growing_pauses_and_then_given_up() {
    let bench = SupervisorTest::new();
    let mut supervisor = Supervisor::new(quick());
    supervisor.start(bench.program("w", "echo run; exit 3"));
    let mut pauses = Vec::new();
    let how = loop {
        match next(&mut supervisor).await {
            ChildEvent::Started { .. } => {}
            ChildEvent::Died { pause, .. } => pauses.push(pause.as_millis()),
            ChildEvent::GivenUp { how, .. } => break how,
        }
    };
    assert_eq!(pauses, [10, 20, 40]);
    assert_eq!(how, "exited with code 3");
    assert_eq!(bench.log("w").lines().count(), 4, "the log is appended to");
    supervisor.stop(pending()).await;
}

#[tokio::test]
async fn a_killed_child_gets_a_new_process() {
    let bench = SupervisorTest::new();
    let mut supervisor = Supervisor::new(quick());
    supervisor.start(bench.program("w", OBEDIENT));
    let ChildEvent::Started { pid, .. } = next(&mut supervisor).await else { panic!("not started") };
    signal(pid, Signal::KILL);
    let ChildEvent::Died { how, .. } = next(&mut supervisor).await else { panic!("not dead") };
    assert_eq!(how, "was killed by signal 9");
    let ChildEvent::Started { pid: second, .. } = next(&mut supervisor).await else { panic!("not started again") };
    assert_ne!(pid, second);
    supervisor.stop(pending()).await;
    assert_eq!(ProcessIdentity::of(second), None);
}

#[tokio::test]
async fn stopping_sends_sigterm_and_removes_the_pid_file() {
    let bench = SupervisorTest::new();
    let mut supervisor = Supervisor::new(quick());
    for name in ["a", "b"] {
        supervisor.start(bench.program(name, OBEDIENT));
    }
    for name in ["a", "b"] {
        bench.written(name, "ready").await;
        assert!(bench.dir.path().join(format!("{name}.pid")).exists());
    }
    supervisor.stop(pending()).await;
    for name in ["a", "b"] {
        assert_eq!(bench.log(name), "ready\nbye\n");
        assert!(!bench.dir.path().join(format!("{name}.pid")).exists());
    }
}

#[tokio::test]
async fn a_child_that_does_not_stop_in_time_is_killed() {
    let bench = SupervisorTest::new();
    let mut supervisor = Supervisor::new(Policy { stop_grace: Duration::from_millis(50), ..quick() });
    supervisor.start(bench.program("w", STUBBORN));
    bench.written("w", "ready").await;
    let ChildEvent::Started { pid, .. } = next(&mut supervisor).await else { panic!("not started") };
    tokio::time::timeout(PATIENCE, supervisor.stop(pending())).await.expect("bounded");
    assert_eq!(ProcessIdentity::of(pid), None);
}

#[tokio::test]
async fn a_second_request_to_stop_does_not_wait_for_the_grace() {
    let bench = SupervisorTest::new();
    let mut supervisor = Supervisor::new(quick());
    supervisor.start(bench.program("w", STUBBORN));
    bench.written("w", "ready").await;
    let hurry = sleep(Duration::from_millis(20));
    let started = Instant::now();
    supervisor.stop(hurry).await;
    assert!(started.elapsed() < PATIENCE / 2);
}

#[tokio::test]
async fn a_missing_binary_is_given_up() {
    let bench = SupervisorTest::new();
    let mut supervisor = Supervisor::new(Policy { limit: 1, ..quick() });
    supervisor.start(ChildProgram { binary: "/nonexistent/rug-worker".into(), ..bench.program("w", "") });
    let ChildEvent::GivenUp { how, .. } = next(&mut supervisor).await else { panic!("started") };
    assert!(how.starts_with("cannot be started: /nonexistent/rug-worker: "), "{how}");
    supervisor.stop(pending()).await;
}

#[tokio::test]
async fn leftovers_of_a_crash_are_found_and_stopped() {
    let bench = SupervisorTest::new();
    let folder = bench.folder().subfolder("run").expect("folder");
    let run = folder.path().to_owned();
    let log = bench.dir.path().join("old.log");
    let mut child = Command::new("/bin/sh")
        .args(["-c", OBEDIENT])
        .stdout(fs::File::create(&log).expect("log"))
        .process_group(0)
        .spawn()
        .expect("sh");
    bench.written("old", "ready").await;
    let process = ProcessIdentity::of(child.id().expect("runs")).expect("runs");
    fs::write(run.join("worker-1.pid"), process.to_line()).expect("file");
    // The same pid in an earlier life, and a file that was not written to the end.
    fs::write(run.join("worker-2.pid"), ProcessIdentity { start: process.start - 1, ..process }.to_line())
        .expect("file");
    fs::write(run.join("worker-3.pid"), "12").expect("file");

    let found = leftovers(&folder);
    assert_eq!(found, [("worker-1".to_owned(), process)]);
    assert!(!run.join("worker-2.pid").exists() && !run.join("worker-3.pid").exists());
    let reap = tokio::spawn(async move { child.wait().await });
    stop_leftovers(&[process], PATIENCE).await;
    assert_eq!(bench.log("old"), "ready\nbye\n");
    assert!(reap.await.expect("no panic").is_ok_and(|status| status.success()));
    assert!(leftovers(&folder).is_empty());
}
