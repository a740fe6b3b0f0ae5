//! The identity of a state directory, in a file of it.
//!
//! ```text
//! <state_dir>/site   id=<32 hexadecimal digits>
//!                    path=<where the directory is>
//!                    machine=<the machine it is on, where that is known>
//! ```
//!
//! Made once by the first worker that uses the directory. Path and machine are there to notice a copy: two directories with one
//! id would be taken for one, and what runs in the one be started again in the other. One that is not where it was made is
//! refused until a person says whether it was moved or copied. Unknown lines are ignored; the file never changes but by further ones.

use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use common::SiteId;
use common::site::is_state_dir;
use runtime::folder::{FileLock, Folder, LockError};

use super::poll_until;
use crate::drivers::Error;

/// Name of the file.
pub(super) const FILE: &str = "site";
/// Lock of those who are about to write it.
const LOCK: &str = "site.lock";
/// How long that may be waited for: its holder writes one small file.
const LOCK_WAIT: Duration = Duration::from_secs(5);
/// Longest file that is read, in bytes.
const MOST: u64 = 4096;
/// Names the machine on systems with systemd, and on most others.
const MACHINE_FILE: &str = "/etc/machine-id";

/// Where a state directory is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Whereabouts {
    /// Its path, without symbolic links: instances carry it in their environment and are found by it.
    pub(crate) path: String,
    /// The machine. `None` where it has no name, as in most containers.
    pub(crate) machine: Option<String>,
}

impl Whereabouts {
    /// Where it is now.
    pub(crate) fn of(folder: &Folder) -> Self {
        let machine = fs::read_to_string(MACHINE_FILE).ok().map(|text| text.trim().to_owned());
        // `uninitialized` is no name either.
        let machine = machine.filter(|name| is_machine(name));
        Self { path: folder.path().to_string_lossy().into_owned(), machine }
    }

    /// Whether a directory that was made `there` can be the one that is here.
    fn is(&self, there: &Self) -> bool {
        let other_machine =
            self.machine.as_ref().zip(there.machine.as_ref()).is_some_and(|(here, there)| here != there);
        self.path == there.path && !other_machine
    }
}

/// Whether this can be the id of a machine.
fn is_machine(name: &str) -> bool {
    name.len() == 32 && name.bytes().all(|c| c.is_ascii_hexdigit())
}

/// What a person says of a directory that is not where it was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Correction {
    /// It was moved here and keeps its id.
    Moved,
    /// It is a copy and gets an id of its own.
    Copied,
}

/// Content of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SiteFile {
    /// The id.
    pub(crate) id: SiteId,
    /// Where the directory was when that was written.
    pub(crate) made: Whereabouts,
}

impl SiteFile {
    fn encode(&self) -> String {
        let Self { id, made: Whereabouts { path, machine } } = self;
        let machine = machine.as_ref().map(|name| format!("machine={name}\n")).unwrap_or_default();
        format!("id={id}\npath={path}\n{machine}")
    }

    fn decode(text: &str) -> Option<Self> {
        let line = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        let path = line("path").filter(|path| is_state_dir(path))?.to_owned();
        let made = match line("machine") {
            None => Whereabouts { path, machine: None },
            Some(name) => Whereabouts { path, machine: is_machine(name).then(|| Some(name.to_owned()))? },
        };
        Some(Self { id: line("id")?.parse().ok()?, made })
    }
}

/// What a file says, written again.
///
/// # Errors
/// That it is damaged.
pub(crate) fn rewrite(text: &str) -> Result<String, String> {
    SiteFile::decode(text).map(|file| file.encode()).ok_or_else(|| "damaged".to_owned())
}

/// The id of a state directory that is `here`; made when it has none.
///
/// # Errors
/// [`Error::Refused`] when the directory is not where it was made, or its file cannot be read or written.
pub(crate) fn of(folder: &Folder, here: &Whereabouts) -> Result<SiteId, Error> {
    let known = match read(folder)? {
        Some(known) => known,
        None => {
            let _lock = lock(folder)?;
            // Another worker may have been faster.
            match read(folder)? {
                Some(known) => known,
                None => write(folder, SiteFile { id: SiteId::from_u128(rand::random()), made: here.clone() })?,
            }
        }
    };
    if here.is(&known.made) {
        return Ok(known.id);
    }
    let there =
        if here.path == known.made.path { "on another machine".to_owned() } else { format!("in {}", known.made.path) };
    let command = format!("rug-worker site --state-dir {}", here.path);
    Err(Error::Refused(format!(
        "state directory {} cannot be used: it has the id {}, which was made {there}. If it was moved here and nothing of it runs where \
         it was, run `{command} --moved`; if it is a copy, run `{command} --copied`, which gives it an id of its own",
        here.path, known.id
    )))
}

/// What the file of a state directory says; `None` when there is none yet.
///
/// # Errors
/// [`Error::Refused`] when it cannot be read, or says something else.
pub(crate) fn read(folder: &Folder) -> Result<Option<SiteFile>, Error> {
    let bytes = match folder.read(FILE, MOST) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(refused(folder.path(), &error.to_string())),
    };
    let file = std::str::from_utf8(&bytes).ok().and_then(SiteFile::decode);
    let damaged = || {
        let text = "the file `site` in it is damaged. Restore it, with the id that `rugctl describe` shows for its appliances, or remove \
                    it: a new id is made then, and its appliances have to be unbound";
        refused(folder.path(), text)
    };
    file.map(Some).ok_or_else(damaged)
}

/// Corrects the file of a directory that is `here`.
///
/// # Errors
/// [`Error::Refused`] when there is none, or it cannot be written.
pub(crate) fn correct(folder: &Folder, here: Whereabouts, correction: Correction) -> Result<SiteFile, Error> {
    let _lock = lock(folder)?;
    let Some(known) = read(folder)? else { return Err(refused(folder.path(), "it has no id yet")) };
    let id = match correction {
        Correction::Moved => known.id,
        Correction::Copied => SiteId::from_u128(rand::random()),
    };
    write(folder, SiteFile { id, made: here })
}

fn write(folder: &Folder, file: SiteFile) -> Result<SiteFile, Error> {
    match folder.write_atomic(FILE, file.encode().as_bytes()) {
        Ok(()) => Ok(file),
        Err(error) => Err(refused(folder.path(), &error.to_string())),
    }
}

fn lock(folder: &Folder) -> Result<FileLock, Error> {
    let mut taken = Err(LockError::InUse(None));
    poll_until(LOCK_WAIT, || {
        taken = folder.lock(LOCK);
        !matches!(taken, Err(LockError::InUse(_)))
    });
    taken.map_err(|error| refused(folder.path(), &format!("{LOCK}: {error}")))
}

fn refused(path: &Path, problem: &str) -> Error {
    Error::Refused(format!("state directory {} cannot be used: {problem}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn folder(dir: &tempfile::TempDir) -> Folder {
        Folder::private(dir.path(), &[FILE]).expect("a folder of this user")
    }

    fn here(path: &str, machine: Option<&str>) -> Whereabouts {
        Whereabouts { path: path.to_owned(), machine: machine.map(|digit| digit.repeat(32)) }
    }

    fn refusal(result: Result<impl std::fmt::Debug, Error>) -> String {
        match result {
            Err(Error::Refused(text)) => text,
            other => panic!("expected a refusal, got {other:?}"),
        }
    }

    #[test]
    fn an_id_is_made_once_by_however_many_begin_at_a_time() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let folder = folder(&dir);
        let place = Whereabouts::of(&folder);
        let ids = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(|| of(&folder, &place).expect("an id"))).collect();
            threads.into_iter().map(|thread| thread.join().expect("no panic")).collect::<Vec<_>>()
        });
        assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
        let mode = fs::metadata(dir.path().join(FILE)).expect("it is there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(read(&folder).expect("readable"), Some(SiteFile { id: ids[0], made: place }));
    }

    #[test]
    fn a_copy_is_refused_until_a_person_says_what_it_is() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let folder = folder(&dir);
        let (old, machine) = (here("/var/lib/rug", Some("a")), here("/var/lib/rug", Some("b")));
        let id = of(&folder, &old).expect("made");
        assert_eq!(of(&folder, &old).expect("the same"), id);
        assert_eq!(of(&folder, &here("/var/lib/rug", None)).expect("not known to be another one"), id);
        let text = refusal(of(&folder, &machine));
        assert!(text.contains(&format!("the id {id}, which was made on another machine")), "{text}");
        let text = refusal(of(&folder, &here("/srv/rug", Some("a"))));
        assert!(text.contains("made in /var/lib/rug") && text.contains("--state-dir /srv/rug --copied"), "{text}");
        let moved = correct(&folder, machine.clone(), Correction::Moved).expect("written");
        assert_eq!((moved.id, of(&folder, &machine).expect("it is here now")), (id, id));
        assert!(of(&folder, &old).is_err(), "where it was it is not any more");
        let copied = correct(&folder, old.clone(), Correction::Copied).expect("written");
        assert_ne!(copied.id, id);
        assert_eq!(of(&folder, &old).expect("it is its own"), copied.id);
    }

    #[test]
    fn what_is_no_file_of_ours_is_refused_and_not_replaced() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let folder = folder(&dir);
        let place = Whereabouts::of(&folder);
        let file = dir.path().join(FILE);
        let text = refusal(correct(&folder, place.clone(), Correction::Copied));
        assert!(text.contains("no id yet"), "{text}");
        for damaged in ["", "id=1\npath=/d\n", "id=0123456789abcdef0123456789abcdef\npath=relative\n", "\u{0}"] {
            fs::write(&file, damaged).expect("writable");
            fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).expect("our file");
            let text = refusal(of(&folder, &place));
            assert!(text.contains("is damaged"), "{text}");
            assert_eq!(fs::read_to_string(&file).expect("readable"), damaged);
        }
        fs::remove_file(&file).expect("removable");
        let elsewhere = dir.path().join("elsewhere");
        fs::write(&elsewhere, "id=0123456789abcdef0123456789abcdef\npath=/d\n").expect("writable");
        symlink(&elsewhere, &file).expect("linked");
        assert!(of(&folder, &place).is_err(), "a link");
    }

    #[test]
    fn lines_of_later_versions_are_ignored() {
        let text = "id=0123456789abcdef0123456789abcdef\nfuture=1\npath=/d\n";
        let file = SiteFile::decode(text).expect("whole");
        assert_eq!(file.made, here("/d", None));
        assert_eq!(SiteFile::decode(&file.encode()), Some(file));
    }
}
