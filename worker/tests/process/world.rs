//! A state directory, drivers that share it, and what they are asked for.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use common::appliance::{Name, Spec, Timing};
use common::driver::DriverName;
use common::kind::{Custom, KindSpec, Probe};
use common::{ApplianceId, Edition, Generation, Term, Token, WorkerId};
use runtime::clock;
use tempfile::TempDir;
use tokio::time::Instant;
use worker::drivers::process::{Config, ProcessDriver, fence::FenceJournalEntry};
use worker::drivers::{Error, Wanted};
use worker::gate::{Permit, SharedGate};
use worker_core::desired::Desired;

pub(crate) const APPLIANCE: &str = env!("CARGO_BIN_EXE_rug-appliance");

/// Of another package of the workspace, so that cargo does not say where it is: beside the reference appliance, once the
/// workspace was built.
pub(crate) fn shim_binary() -> PathBuf {
    let path = Path::new(APPLIANCE).with_file_name("rug-shim");
    assert!(path.is_file(), "{} is missing: `cargo build -p shim`, or `make test`", path.display());
    path
}

pub(crate) const A: ApplianceId = ApplianceId::from_u128(0xa);
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

/// A state directory; whatever still runs in it at the end is killed.
pub(crate) struct DriverWorld {
    pub(crate) folder: TempDir,
}

impl DriverWorld {
    pub(crate) fn new() -> Self {
        Self { folder: tempfile::tempdir().expect("a temporary folder") }
    }

    pub(crate) fn config(&self) -> Config {
        Config {
            state_dir: self.folder.path().to_owned(),
            appliance_binary: APPLIANCE.into(),
            shim_binary: shim_binary(),
            // Where tests run as root, so do their instances.
            allow_root: true,
            stop_grace: Duration::from_secs(5),
            ..Config::default()
        }
    }

    pub(crate) fn driver(&self, worker: &str) -> ProcessDriver {
        open(worker, self.config())
    }

    pub(crate) fn instance_folder(&self) -> PathBuf {
        self.folder.path().join("instances").join(A.to_string()).join("0")
    }

    /// Processes that say they belong to this state directory.
    pub(crate) fn processes(&self) -> Vec<u32> {
        let mark = format!("RUG_STATE_DIR={}", self.folder.path().canonicalize().expect("it is there").display());
        let pids = std::fs::read_dir("/proc").expect("readable").flatten();
        pids.filter_map(|e| e.file_name().to_str()?.parse::<u32>().ok())
            .filter(|pid| {
                let environ = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
                let has = |start: &[u8]| environ.split(|b| *b == 0).any(|entry| entry.starts_with(start));
                has(mark.as_bytes()) && !has(b"RUG_SHIM=") && runs(*pid)
            })
            .collect()
    }
}

pub(crate) fn open(worker: &str, config: Config) -> ProcessDriver {
    ProcessDriver::new(config, WorkerId::new(worker).expect("a name")).expect("a writable folder")
}

impl Drop for DriverWorld {
    fn drop(&mut self) {
        for pid in self.processes() {
            kill(pid);
        }
    }
}

pub(crate) fn kill(pid: u32) {
    Command::new("kill").args(["-9", &pid.to_string()]).stderr(Stdio::null()).status().expect("kill is part of Debian");
}

pub(crate) fn runs(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

pub(crate) fn permit(sequence: u64) -> Permit {
    permit_with_gate(sequence).0
}

pub(crate) fn permit_with_gate(sequence: u64) -> (Permit, Arc<SharedGate>) {
    let (gate, token) = (SharedGate::new(), Token::new(Term::new(1), sequence));
    gate.extend(clock::now() + Duration::from_secs(600));
    gate.admit(A, token, Duration::ZERO);
    (gate.pass(A, token).expect("the gate is open"), gate)
}

pub(crate) fn desired(kind: KindSpec) -> Desired {
    let name = Name::new("web").expect("a name");
    Desired {
        name: name.clone(),
        tenant: name,
        driver: DriverName::process(),
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

pub(crate) fn custom(command: &str, args: &[&str], port: Option<u16>) -> Desired {
    desired(KindSpec::Custom(Custom {
        command: command.into(),
        args: args.iter().map(|arg| (*arg).to_owned()).collect(),
        env: BTreeMap::from([("GREETING".to_owned(), "{name} {ordinal} {id}".to_owned())]),
        port,
        probe: Probe::Tcp,
        ..Custom::default()
    }))
}

pub(crate) fn shell(script: &str) -> Desired {
    custom("sh", &["-c", script], None)
}

pub(crate) const fn first(desired: &Desired) -> Wanted<'_> {
    Wanted { ordinal: 0, attempt: 1, desired, boot_digest: "d", beside: None }
}

pub(crate) fn journal(driver: &ProcessDriver) -> Vec<FenceJournalEntry> {
    let text = std::fs::read_to_string(driver.journal(A)).unwrap_or_default();
    text.lines().map(|line| serde_json::from_str(line).expect("whole lines")).collect()
}

pub(crate) fn spawned(driver: &ProcessDriver) -> usize {
    journal(driver).iter().filter(|e| e.action == "spawn" && e.outcome == "done").count()
}

pub(crate) async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + DEADLINE;
    while !holds() {
        assert!(Instant::now() < end, "waited in vain until {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

pub(crate) fn refusal<T: std::fmt::Debug>(result: Result<T, Error>) -> String {
    match result {
        Err(Error::Refused(text)) => text,
        other => panic!("expected a refusal, got {other:?}"),
    }
}
