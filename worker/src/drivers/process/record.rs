//! What is kept on disk about the instance at one ordinal, in folders and files of this user alone: a record says which process to
//! signal, a log and an environment may hold secrets.
//!
//! ```text
//! <state_dir>/instances/<appliance>/<ordinal>/instance.json   the record
//!                                             shim            what its shim knows, written by that
//!                                             log, log.1      its output, and older output; written by the shim
//!                                             work/           its working directory
//!                                             management      where its REST contract is served, written by itself
//!                                             metrics         where its metrics are served, written by itself
//!                                             secret          what callers of that contract prove themselves with
//!                                             answered        the attempt that has answered a probe
//!                                             handover        socket at which its successor asks for its service
//!                                 <ordinal>.<attempt>/        the same, of an instance that has or had a successor beside it
//! ```

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::num::ParseIntError;
use std::os::unix::fs::{MetadataExt as _, lchown};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use common::ApplianceId;
use common::status::PID_DETAIL;
use runtime::folder::{Access, Folder as StateFolder};
use rustix::fs::{RenameFlags, fsync, renameat, renameat_with};
use rustix::process::{getegid, geteuid};
use serde::{Deserialize, Serialize};
use shim::STATE_FILE;
use shim::state::{MAX_STATE, ShimState};
use worker_core::instance::{Addresses, BootState, Instance, ManagementSecret};

use super::removal::remove_tree;
use super::system::{self, ProcessStamp};
use crate::appliance::{MANAGEMENT_FILE, TOKEN_FILE, handover};

/// How far the start or the end of an instance got.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum RecordState {
    /// Written before the process is made: it may exist or not, a scan of the processes tells.
    Starting,
    /// The process was made; whether it still runs, the kernel knows.
    Running(ProcessStamp),
    /// It was ended on purpose or never came to be. The record stays for its port.
    Ended,
}

/// The record of one ordinal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct InstanceRecord {
    /// How far it got.
    pub(super) state: RecordState,
    /// What it was started as.
    pub(super) instance: RecordedInstance,
    /// Port that was picked because the spec names none; kept over restarts.
    pub(super) picked_port: Option<u16>,
    /// Whether it says where it serves its REST contract once it is up.
    pub(super) serves_management: bool,
    /// Whether its first answer is noted beside it. The version before did not.
    #[serde(default)]
    pub(super) notes_answers: bool,
}

impl InstanceRecord {
    /// The instance as the process `identity`, with what its folder has of it.
    pub(super) fn running_as(&self, folder: &Folder, identity: &ProcessStamp, management: Management) -> Instance {
        let boot = match (folder.answered(), self.notes_answers) {
            (Some(attempt), _) if attempt == self.instance.attempt => BootState::Over,
            (_, true) => BootState::UnderWay { since: identity.started() },
            (_, false) => BootState::Unknown,
        };
        self.instance.running_as(identity, boot, management)
    }
}

/// What is recorded of an instance. This form is read by workers of other versions on the same host: it never changes but by
/// fields with a default.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct RecordedInstance {
    pub(super) ordinal: u16,
    /// 0 in a record that is damaged.
    pub(super) attempt: u32,
    pub(super) boot_digest: String,
    pub(super) started_at_unix_ms: u64,
    /// Where its service is, if it has a port.
    pub(super) address: Option<SocketAddr>,
}

impl RecordedInstance {
    /// The instance as the process `identity`.
    pub(super) fn running_as(&self, identity: &ProcessStamp, boot: BootState, management: Management) -> Instance {
        Instance {
            ordinal: self.ordinal,
            attempt: self.attempt,
            boot_digest: self.boot_digest.clone(),
            handle: identity.handle(),
            started_at_unix_ms: self.started_at_unix_ms,
            boot,
            addresses: Addresses { management: management.address, service: self.address },
            secret: management.secret,
            details: [(PID_DETAIL, identity.pid.to_string())].into_iter().collect(),
            ..Instance::default()
        }
    }
}

/// How an instance is spoken to.
#[derive(Clone, Debug, Default)]
pub(super) struct Management {
    /// Where it serves its REST contract, once it has said so.
    pub(super) address: Option<SocketAddr>,
    /// What it wants callers to prove themselves with. The version before gave instances none.
    pub(super) secret: Option<ManagementSecret>,
    /// Whether it hands its service over to another one that asks for that.
    pub(super) hands_over: bool,
}

/// The folder of one ordinal.
#[derive(Clone, Debug)]
pub(super) struct Folder {
    /// The folder of all instances, by whose handle everything in it is opened.
    instances: StateFolder,
    /// Where this one is in it.
    name: PathBuf,
}

/// Longest record that is read, in bytes; one has some hundred.
const MOST_RECORD: u64 = 64 * 1024;
/// File that names the attempt which has answered a probe.
const ANSWERED: &str = "answered";
/// Longest of the small files that is read, in bytes: an address, a secret.
const MOST_LINE: u64 = 1024;

/// Which of the folders of an appliance one is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct FolderKey {
    pub(super) ordinal: u16,
    /// The attempt, of an instance that was put aside for its successor.
    pub(super) aside: Option<u32>,
}

impl FromStr for FolderKey {
    type Err = ParseIntError;

    fn from_str(name: &str) -> Result<Self, ParseIntError> {
        match name.split_once('.') {
            Some((ordinal, attempt)) => Ok(Self { ordinal: ordinal.parse()?, aside: Some(attempt.parse()?) }),
            None => Ok(Self { ordinal: name.parse()?, aside: None }),
        }
    }
}

impl Folder {
    pub(super) fn new(instances: &StateFolder, appliance: ApplianceId, key: FolderKey) -> Self {
        let FolderKey { ordinal, aside } = key;
        let name = aside.map_or_else(|| ordinal.to_string(), |attempt| format!("{ordinal}.{attempt}"));
        Self { instances: instances.clone(), name: Path::new(&appliance.to_string()).join(name) }
    }

    pub(super) fn exists(&self) -> bool {
        self.path().is_dir()
    }

    /// Gives this place to a successor: the folder is the one at `aside` from now on, for whoever has it open as well.
    pub(super) fn put_aside(&self, aside: &Self) -> io::Result<()> {
        let of_appliance = |folder: &Self| folder.name.parent().map(Path::to_owned).unwrap_or_default();
        let parent = self.instances.subfolder(of_appliance(self))?;
        let last = |folder: &Self| folder.name.file_name().map(OsStr::to_owned).unwrap_or_default();
        renameat(parent.handle(), last(self), parent.handle(), last(aside))?;
        Ok(fsync(parent.handle())?)
    }

    /// Takes over the newest token that the instance before has met: a call that it would refuse is refused here as well.
    pub(super) fn inherit_token(&self, predecessor: &Self) -> io::Result<()> {
        match self.instances.read(predecessor.name.join(TOKEN_FILE), MOST_LINE) {
            Ok(token) => Ok(self.instances.write_atomic(self.name.join(TOKEN_FILE), &token)?),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Removes the folder of an instance that was put aside. Its log becomes the one that its successor has put aside last, if that
    /// has none yet.
    pub(super) fn remove_aside(&self, successor: &Self) -> io::Result<()> {
        let moved = || {
            let (from, to) = (self.instances.subfolder(&self.name)?, self.instances.subfolder(&successor.name)?);
            renameat_with(from.handle(), "log", to.handle(), "log.1", RenameFlags::NOREPLACE)?;
            io::Result::Ok(())
        };
        // An old log is worth no failure.
        let _ = moved();
        remove_tree(&self.path())
    }

    pub(super) fn path(&self) -> PathBuf {
        self.instances.path().join(&self.name)
    }

    /// The log, to be written at its end.
    pub(super) fn open_log(&self) -> io::Result<File> {
        Ok(self.instances.open(self.name.join("log"), Access::Append)?)
    }

    /// The current log (0), or one that was put aside.
    pub(super) fn read_log_file(&self, number: u32) -> io::Result<File> {
        let name = if number == 0 { "log".to_owned() } else { format!("log.{number}") };
        Ok(self.instances.open(self.name.join(name), Access::Read)?)
    }

    pub(super) fn work(&self) -> PathBuf {
        self.path().join("work")
    }

    /// File with the secret of the instance. Beside the record and not in it: the instance reads it as well, and workers of the
    /// version before, which write records anew, leave it alone.
    pub(super) fn secret_file(&self) -> PathBuf {
        self.path().join("secret")
    }

    /// Makes the secret of the next instance.
    pub(super) fn make_secret(&self) -> io::Result<()> {
        let secret: [u8; 32] = rand::random();
        Ok(self.instances.write_atomic(self.name.join("secret"), hex(&secret).as_bytes())?)
    }

    /// How the instance is spoken to, as far as it is known yet.
    pub(super) fn management(&self) -> Management {
        let read = |file: &str| String::from_utf8(self.instances.read(self.name.join(file), MOST_LINE).ok()?).ok();
        Management {
            address: read(MANAGEMENT_FILE).and_then(|text| text.trim().parse().ok()),
            secret: read("secret").and_then(|text| ManagementSecret::new(text.trim()).ok()),
            hands_over: self.path().join(handover::SOCKET).exists(),
        }
    }

    /// The record; `None` when there is none. One that cannot be understood counts as "may be running": it is written
    /// atomically, so only a person or a failing disk can have changed it.
    pub(super) fn read(&self) -> io::Result<Option<InstanceRecord>> {
        let bytes = match self.instances.read(self.name.join("instance.json"), MOST_RECORD) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        match serde_json::from_slice(&bytes) {
            Ok(record) => Ok(Some(record)),
            Err(error) => {
                tracing::warn!(folder = %self.path().display(), %error, "the record of an instance is damaged");
                Ok(Some(InstanceRecord {
                    state: RecordState::Starting,
                    instance: RecordedInstance {
                        ordinal: (self.name.file_name())
                            .and_then(|name| name.to_str()?.parse().ok())
                            .map_or(0, |key: FolderKey| key.ordinal),
                        attempt: 0,
                        boot_digest: String::new(),
                        started_at_unix_ms: 0,
                        address: None,
                    },
                    picked_port: None,
                    serves_management: false,
                    notes_answers: false,
                }))
            }
        }
    }

    /// Notes that an attempt has answered. Not flushed: whatever takes the note, the machine's end, takes the instance as well.
    pub(super) fn note_answer(&self, attempt: u32) -> io::Result<()> {
        let text = attempt.to_string();
        let mut file = self.instances.open(self.name.join(ANSWERED), Access::Write)?;
        file.write_all(text.as_bytes())?;
        file.set_len(text.len() as u64)
    }

    /// The attempt that has answered.
    fn answered(&self) -> Option<u32> {
        let bytes = self.instances.read(self.name.join(ANSWERED), MOST_LINE).ok()?;
        std::str::from_utf8(&bytes).ok()?.parse().ok()
    }

    /// What the shim of the instance `name` has noted on this boot.
    pub(super) fn shim_state(&self, name: &str) -> Option<ShimState> {
        let bytes = self.instances.read(self.name.join(STATE_FILE), MAX_STATE).ok()?;
        let state = ShimState::decode(std::str::from_utf8(&bytes).ok()?)?;
        (state.instance == name && state.boot == system::boot_id()).then_some(state)
    }

    /// The folder that holds those of all instances.
    pub(super) fn all_instances(&self) -> &Path {
        self.instances.path()
    }

    /// Replaces the record, durably.
    pub(super) fn write(&self, record: &InstanceRecord) -> io::Result<()> {
        let bytes = serde_json::to_vec_pretty(record).map_err(io::Error::other)?;
        Ok(self.instances.write_atomic(self.name.join("instance.json"), &bytes)?)
    }

    /// Makes the folder, and removes what the former instance left in it. Its working directory belongs to `owner`, by user and group,
    /// or to the worker's user.
    pub(super) fn prepare(&self, owner: Option<(u32, u32)>) -> io::Result<()> {
        let folder = self.instances.subfolder(&self.name)?;
        // That of a former instance may belong to another user, whom it is taken from before anything else is done with it.
        let work = self.work();
        let (uid, gid) = (geteuid().as_raw(), getegid().as_raw());
        if work.symlink_metadata().is_ok_and(|meta| meta.is_dir() && meta.uid() != uid) {
            lchown(&work, Some(uid), Some(gid))?;
        }
        folder.subfolder("work")?;
        if let Some((uid, gid)) = owner {
            lchown(&work, Some(uid), Some(gid))?;
        }
        for file in [MANAGEMENT_FILE, "secret", STATE_FILE, ANSWERED, handover::SOCKET] {
            folder.remove(file)?;
        }
        Ok(())
    }
}

/// Folders of an appliance, by ordinal.
pub(super) fn folders(instances: &Path, appliance: ApplianceId) -> io::Result<Vec<FolderKey>> {
    let mut found: Vec<FolderKey> = entries(&instances.join(appliance.to_string()))?;
    found.sort_unstable();
    Ok(found)
}

/// Appliances that have a folder.
pub(super) fn appliances(instances: &Path) -> io::Result<Vec<ApplianceId>> {
    entries(instances)
}

fn entries<T: std::str::FromStr>(folder: &Path) -> io::Result<Vec<T>> {
    match fs::read_dir(folder) {
        Ok(entries) => {
            entries.filter_map(|e| e.map(|e| e.file_name().to_str().and_then(|n| n.parse().ok())).transpose()).collect()
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_of_the_version_before_is_read() {
        let stored = r#"{"state": {"running": {"pid": 7, "start_ticks": 9, "boot": "b"}}, "picked_port": 4000,
            "instance": {"ordinal": 1, "attempt": 2, "boot_digest": "d", "pid": null, "started_at_unix_ms": 5,
                         "management": null, "address": "127.0.0.1:4000"}, "serves_management": false}"#;
        let record: InstanceRecord = serde_json::from_str(stored).expect("it is complete");
        let RecordState::Running(identity) = &record.state else { panic!("it runs: {record:?}") };
        let instance = record.instance.running_as(identity, BootState::Unknown, Management::default());
        assert_eq!((instance.ordinal, instance.attempt, instance.details.pid()), (1, 2, Some(7)));
        assert_eq!(instance.addresses.service.map(|address| address.port()), Some(4000));
        let written = serde_json::to_value(&record).expect("plain data");
        let before: serde_json::Value = serde_json::from_str(stored).expect("JSON");
        // What was null before is left out, which is the same to its readers.
        for (field, value) in written["instance"].as_object().expect("an object") {
            assert_eq!(*value, before["instance"][field], "{field}");
        }
    }
}
