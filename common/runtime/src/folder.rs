//! Folders and files that no other user can read or change, whatever the umask.
//!
//! Every state folder, lock, log and socket of every program is made and opened here. A [`Folder`] is held open, names in
//! it are looked up from that handle and no symbolic link is followed, so that what was judged is what is used. Folders
//! are made with mode 0700, files with 0600; what an earlier version left readable is tightened and said in the log. What
//! belongs to another user, or what others could change, is refused with the reason, because its content cannot be
//! trusted: `flock` and SQLite's shared memory need no more than the right to open a file.

mod access;
mod lock;
mod resolve;

#[cfg(test)]
mod tests;

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{AtFlags, Mode, OFlags, fchmod, fstat, fsync, openat, renameat, unlinkat};
use rustix::io::Errno;
use tracing::info;

pub use access::{Writers, is_own_or_root, user_name};
pub use lock::{FileLock, LockError};

use resolve::Resolved;

/// Mode of folders.
const FOLDER: Mode = Mode::RWXU;
/// Mode of files.
const FILE: Mode = Mode::from_raw_mode(0o600);
/// How every file is opened. A pipe in its place must not keep this process waiting for its other end.
const OPEN: OFlags = OFlags::CLOEXEC.union(OFlags::NOFOLLOW).union(OFlags::NONBLOCK).union(OFlags::NOCTTY);
/// What nobody but the owner may have.
const OTHERS: u32 = 0o077;

/// Why a folder or a file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It belongs to another user, who could read and change it.
    #[error(
        "{} belongs to {owner}, who could read and change what is kept there, and this process runs as {own}: run as \
         {owner}, or name another directory; what another user keeps there would be carried out as {own}", path.display()
    )]
    Foreign {
        /// The folder or file.
        path: PathBuf,
        /// Its owner, by name or number.
        owner: String,
        /// The user of this process.
        own: String,
    },
    /// A folder above belongs to another user, who could put something else in place of what is below it.
    #[error(
        "{} belongs to {owner}, who could replace {}, and this process runs as {own}: name a directory that only {own} \
         and root can replace", above.display(), path.display()
    )]
    ForeignAbove {
        /// What was to be used.
        path: PathBuf,
        /// The folder above it.
        above: PathBuf,
        /// Owner of that one.
        owner: String,
        /// The user of this process.
        own: String,
    },
    /// Other users can write to it.
    #[error(
        "{writers} can write to {} (mode {mode:04o}), so that nothing in it can be trusted: name another directory, or see \
         that nobody has put anything there and `chmod go-rwx {}`", path.display(), path.display()
    )]
    Writable {
        /// The folder.
        path: PathBuf,
        /// Its mode.
        mode: u32,
        /// Who can write.
        writers: Writers,
    },
    /// Other users can write to a folder above, and so put something else in place of what is below it.
    #[error(
        "{writers} can write to {} (mode {mode:04o}) and so replace {}: `chmod go-w {}`, or name another directory",
        above.display(), path.display(), above.display()
    )]
    WritableAbove {
        /// What was to be used.
        path: PathBuf,
        /// The folder above it.
        above: PathBuf,
        /// Mode of that one.
        mode: u32,
        /// Who can write.
        writers: Writers,
    },
    /// Other users can read it, and it holds things that are not of this program, whose mode is not changed unasked.
    #[error(
        "{} can be read by other users (mode {mode:04o}) and holds other things: name a directory for this program \
         alone, or `chmod go-rwx {}`", path.display(), path.display()
    )]
    Exposed {
        /// The folder.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// A symbolic link where there must be none.
    #[error("{} is a symbolic link, which is not followed: put the thing itself there", .0.display())]
    Link(PathBuf),
    /// Neither a folder where there must be one, nor a plain file where there must be one.
    #[error("{} is not a {wanted}", path.display())]
    WrongType {
        /// What it is not.
        path: PathBuf,
        /// What it should be.
        wanted: &'static str,
    },
    /// Other users can write to a file, so that what it says cannot be believed.
    #[error("{} can be changed by other users (mode {mode:04o}): see what is in it, then `chmod go-w {}`", path.display(), path.display())]
    Changeable {
        /// The file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// A file that has a second name, by which others may reach it.
    #[error("{} has another name elsewhere (a hard link): copy it, and put the copy in its place", .0.display())]
    Linked(PathBuf),
    /// The system refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// The folder or file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl Error {
    fn io(path: &Path, source: impl Into<io::Error>) -> Self {
        Self::Io { path: path.to_owned(), source: source.into() }
    }

    /// What kind of error of the system it is. Refusals count as [`PermissionDenied`](io::ErrorKind::PermissionDenied).
    #[must_use]
    pub fn kind(&self) -> io::ErrorKind {
        match self {
            Self::Io { source, .. } => source.kind(),
            _ => io::ErrorKind::PermissionDenied,
        }
    }
}

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        Self::new(error.kind(), error)
    }
}

/// How a file is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// To be read; it has to be there.
    Read,
    /// To be read and written; made when it is not there, and not emptied.
    Write,
    /// To be read, and written at its end; made when it is not there.
    Append,
    /// To be read and written; it must not be there.
    New,
}

impl Access {
    fn flags(self) -> OFlags {
        match self {
            Self::Read => OFlags::RDONLY,
            Self::Write => OFlags::RDWR | OFlags::CREATE,
            Self::Append => OFlags::RDWR | OFlags::APPEND | OFlags::CREATE,
            Self::New => OFlags::RDWR | OFlags::CREATE | OFlags::EXCL,
        }
    }
}

/// An open folder. Clones share the handle.
///
/// Names are relative to it, of one or more components (`web/instance.json`) without `.` and `..`.
#[derive(Clone, Debug)]
pub struct Folder(Arc<OpenFolder>);

#[derive(Debug)]
struct OpenFolder {
    path: PathBuf,
    handle: OwnedFd,
    tightened: Option<u32>,
}

impl Folder {
    /// A folder of this process's user alone; it and what is missing above it is made.
    ///
    /// An existing one that others can read is tightened if it is empty or holds one of the `known` names, as the folder
    /// of an earlier version does: a home directory that was named by mistake keeps its mode.
    ///
    /// # Errors
    /// It cannot be made, belongs to another user, or others could change it or replace it.
    pub fn private(path: &Path, known: &[&str]) -> Result<Self, Error> {
        Self::own(resolve::open(path)?, Some(known))
    }

    /// A folder in which no other user can replace what this one puts there, though others may read it or add to it, such
    /// as `/run` or `/tmp`; what is missing is made with mode 0700.
    ///
    /// # Errors
    /// It cannot be made, or another user could replace what is in it.
    pub fn trusted(path: &Path) -> Result<Self, Error> {
        let Resolved { path, handle, stat } = resolve::open(path)?;
        access::judge_above(&path, &path, &handle, &stat)?;
        Ok(Self(Arc::new(OpenFolder { path, handle, tightened: None })))
    }

    /// The same for files beside which nobody may put anything, such as a database with its journals: no other user can
    /// write to the folder at all.
    ///
    /// # Errors
    /// As [`trusted`](Self::trusted), and another user can write to it.
    pub fn exclusive(path: &Path) -> Result<Self, Error> {
        let folder = Self::trusted(path)?;
        let stat = stat_of(folder.path(), folder.handle())?;
        match Writers::of(folder.handle(), &stat) {
            Some(writers) => {
                Err(Error::Writable { path: folder.path().to_owned(), mode: stat.st_mode & 0o7777, writers })
            }
            None => Ok(folder),
        }
    }

    /// A folder whose writers are not judged, for a process that has its files to itself, as in a container of its own. It and what is
    /// missing above it is made.
    ///
    /// # Errors
    /// It cannot be made or opened.
    pub fn unjudged(path: &Path) -> Result<Self, Error> {
        let path = std::path::absolute(path).map_err(|e| Error::io(path, e))?;
        std::fs::create_dir_all(&path).map_err(|e| Error::io(&path, e))?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let handle = openat(rustix::fs::CWD, &path, flags, Mode::empty()).map_err(|e| Error::io(&path, e))?;
        Ok(Self(Arc::new(OpenFolder { path, handle, tightened: None })))
    }

    /// A folder that is there already, to be read: `None` when there is none, or this user may not look into it. It belongs to
    /// this user or root, and no other user can write to it. Nothing about it is changed; folders above are not judged, because
    /// what others put in its place is theirs.
    ///
    /// # Errors
    /// It belongs to another user, others can write to it, or it is a symbolic link.
    pub fn existing(path: &Path) -> Result<Option<Self>, Error> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let Some(handle) = found(path, openat(rustix::fs::CWD, path, flags, Mode::empty()))? else { return Ok(None) };
        let stat = stat_of(path, &handle)?;
        access::judge_trusted(path, stat.st_uid)?;
        if let Some(writers) = Writers::of(handle.as_fd(), &stat) {
            return Err(Error::Writable { path: path.to_owned(), mode: stat.st_mode & 0o7777, writers });
        }
        Ok(Some(Self(Arc::new(OpenFolder { path: path.to_owned(), handle, tightened: None }))))
    }

    /// The content of a file, of at most `limit` bytes, that this user or root has put there: `None` when there is none, or
    /// this user may not read it. Its folder is [`existing`](Self::existing), and nothing is changed.
    ///
    /// # Errors
    /// Others have, or can have, put it there; it is a symbolic link or no plain file, has a second name, or is too long.
    pub fn read_existing(path: &Path, limit: u64) -> Result<Option<Vec<u8>>, Error> {
        let name = path.file_name().ok_or_else(|| not_a_name(path, path))?;
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let Some(folder) = Self::existing(parent)? else { return Ok(None) };
        let Some(file) = found(path, openat(folder.handle(), name, OPEN | OFlags::RDONLY, Mode::empty()))? else {
            return Ok(None);
        };
        access::judge_readable(path, &file)?;
        content(path, File::from(file), limit).map(Some)
    }

    /// A folder in this one, made if need be, as [`private`](Self::private) as this one.
    ///
    /// # Errors
    /// As [`private`](Self::private).
    pub fn subfolder(&self, name: impl AsRef<Path>) -> Result<Self, Error> {
        let mut folder = self.clone();
        for part in parts(self.path(), name.as_ref())? {
            folder = Self::own(resolve::enter(folder.path(), folder.handle(), part)?, None)?;
        }
        Ok(folder)
    }

    fn own(resolved: Resolved, known: Option<&[&str]>) -> Result<Self, Error> {
        let Resolved { path, handle, stat } = resolved;
        access::judge_owner(&path, stat.st_uid)?;
        if let Some(writers) = Writers::of(handle.as_fd(), &stat) {
            return Err(Error::Writable { path, mode: stat.st_mode & 0o7777, writers });
        }
        let mode = stat.st_mode & 0o7777;
        let tightened = (mode & OTHERS != 0).then_some(mode);
        let folder = Self(Arc::new(OpenFolder { path, handle, tightened }));
        if tightened.is_some() {
            if let Some(known) = known
                && !folder.may_be_tightened(known)?
            {
                return Err(Error::Exposed { path: folder.path().to_owned(), mode });
            }
            fchmod(folder.handle(), FOLDER).map_err(|e| Error::io(folder.path(), e))?;
            info!(folder = %folder.path().display(), mode = format!("{mode:04o}"), "other users could read it; set its mode to 0700");
        }
        Ok(folder)
    }

    /// Whether it is empty or a folder of this program.
    fn may_be_tightened(&self, known: &[&str]) -> Result<bool, Error> {
        let entries = rustix::fs::Dir::read_from(self.handle()).map_err(|e| Error::io(self.path(), e))?;
        let mut empty = true;
        for entry in entries {
            let entry = entry.map_err(|e| Error::io(self.path(), e))?;
            match entry.file_name().to_bytes() {
                b"." | b".." => {}
                name if known.iter().any(|known| known.as_bytes() == name) => return Ok(true),
                _ => empty = false,
            }
        }
        Ok(empty)
    }

    /// Where it is, absolute and without symbolic links.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0.path
    }

    /// The mode it had when others could read it until now.
    #[must_use]
    pub fn tightened(&self) -> Option<u32> {
        self.0.tightened
    }

    /// Its handle.
    #[must_use]
    pub fn handle(&self) -> BorrowedFd<'_> {
        self.0.handle.as_fd()
    }

    /// Opens a plain file of this user alone, with mode 0600 from now on.
    ///
    /// # Errors
    /// It cannot be opened or made, or is a symbolic link, no plain file, another user's, or has a second name.
    pub fn open(&self, name: impl AsRef<Path>, access: Access) -> Result<File, Error> {
        let name = name.as_ref();
        let path = self.path().join(name);
        let (parent, last) = self.parent(name)?;
        let file = openat(&parent, last, OPEN | access.flags(), FILE).map_err(|e| link_or(&path, e))?;
        access::own_file(&path, &file)?;
        Ok(File::from(file))
    }

    /// The content of a file of at most `limit` bytes.
    ///
    /// # Errors
    /// As [`open`](Self::open), and [`InvalidData`](io::ErrorKind::InvalidData) when it is longer.
    pub fn read(&self, name: impl AsRef<Path>, limit: u64) -> Result<Vec<u8>, Error> {
        let name = name.as_ref();
        content(&self.path().join(name), self.open(name, Access::Read)?, limit)
    }

    /// Writes a file beside its place, flushes it, and moves it there: a crash leaves the old content or the new.
    ///
    /// # Errors
    /// As [`open`](Self::open); the file has its old content then, unless only the last flush of the folder failed.
    pub fn write_atomic(&self, name: impl AsRef<Path>, bytes: &[u8]) -> Result<(), Error> {
        let name = name.as_ref();
        let (parent, last) = self.parent(name)?;
        replace(parent.as_fd(), last, bytes).map_err(|e| Error::io(&self.path().join(name), e))
    }

    /// Removes a file; one that is not there is removed already.
    ///
    /// # Errors
    /// What the system said.
    pub fn remove(&self, name: impl AsRef<Path>) -> Result<(), Error> {
        let name = name.as_ref();
        let (parent, last) = self.parent(name)?;
        match unlinkat(&parent, last, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(e) => Err(Error::io(&self.path().join(name), e)),
        }
    }

    /// Takes an exclusive lock on a file, which names the process that has it.
    ///
    /// # Errors
    /// Another process has it, or the file cannot be used.
    pub fn lock(&self, name: impl AsRef<Path>) -> Result<FileLock, LockError> {
        FileLock::take(self, name.as_ref())
    }

    /// The folder that holds `name`, and the last component of that.
    fn parent<'a>(&self, name: &'a Path) -> Result<(OwnedFd, &'a OsStr), Error> {
        let mut parts = parts(self.path(), name)?;
        let last = parts.pop().ok_or_else(|| not_a_name(self.path(), name))?;
        let mut handle = self.0.handle.try_clone().map_err(|e| Error::io(self.path(), e))?;
        let mut path = self.path().to_owned();
        for part in parts {
            path.push(part);
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            handle = openat(&handle, part, flags, Mode::empty()).map_err(|e| link_or(&path, e))?;
        }
        // A handle that was opened as a path cannot be flushed.
        if path != self.path() {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            handle = openat(&handle, c".", flags, Mode::empty()).map_err(|e| Error::io(&path, e))?;
        }
        Ok((handle, last))
    }
}

/// The components of a relative name.
fn parts<'a>(folder: &Path, name: &'a Path) -> Result<Vec<&'a OsStr>, Error> {
    name.components()
        .map(|part| match part {
            Component::Normal(part) => Ok(part),
            _ => Err(not_a_name(folder, name)),
        })
        .collect()
}

fn not_a_name(folder: &Path, name: &Path) -> Error {
    let text = format!("`{}` does not name anything in it", name.display());
    Error::io(folder, io::Error::new(io::ErrorKind::InvalidInput, text))
}

/// All that is in a file, if that is not too long.
fn content(path: &Path, file: File, limit: u64) -> Result<Vec<u8>, Error> {
    let mut content = Vec::new();
    file.take(limit + 1).read_to_end(&mut content).map_err(|e| Error::io(path, e))?;
    if content.len() as u64 > limit {
        let long = io::Error::new(io::ErrorKind::InvalidData, format!("longer than {limit} bytes"));
        return Err(Error::io(path, long));
    }
    Ok(content)
}

/// What was opened to be read without following links; `None` when it is not there or not for this user.
fn found(path: &Path, opened: Result<OwnedFd, Errno>) -> Result<Option<OwnedFd>, Error> {
    match opened.map_err(|errno| (errno, link_or(path, errno))) {
        Ok(handle) => Ok(Some(handle)),
        Err((_, link @ Error::Link(_))) => Err(link),
        Err((Errno::NOENT | Errno::ACCESS | Errno::NOTDIR, _)) => Ok(None),
        // A socket.
        Err((Errno::NXIO, _)) => Err(Error::WrongType { path: path.to_owned(), wanted: "plain file" }),
        Err((_, error)) => Err(error),
    }
}

/// What opening without following links failed with.
fn link_or(path: &Path, error: Errno) -> Error {
    let is_link = matches!(error, Errno::LOOP | Errno::NOTDIR)
        && path.symlink_metadata().is_ok_and(|meta| meta.file_type().is_symlink());
    if is_link { Error::Link(path.to_owned()) } else { Error::io(path, error) }
}

/// Puts a new file of this user alone in the place of `name`.
pub(crate) fn replace(parent: BorrowedFd<'_>, name: &OsStr, bytes: &[u8]) -> io::Result<()> {
    // The pid keeps two processes that write the same file from tearing each other's temporary one.
    let beside = format!(".{}.{}", name.to_string_lossy(), std::process::id());
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let made = match openat(parent, &beside, flags, FILE) {
        // Of an earlier process with the same pid.
        Err(Errno::EXIST) => {
            unlinkat(parent, &beside, AtFlags::empty())?;
            openat(parent, &beside, flags, FILE)
        }
        made => made,
    };
    let mut file = File::from(made?);
    let written = (|| {
        fchmod(&file, FILE)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        renameat(parent, &beside, parent, name)?;
        Ok(())
    })();
    if written.is_err() {
        let _ = unlinkat(parent, &beside, AtFlags::empty());
        return written;
    }
    Ok(fsync(parent)?)
}

/// Metadata of an open file or folder.
fn stat_of(path: &Path, handle: impl AsFd) -> Result<rustix::fs::Stat, Error> {
    fstat(handle).map_err(|e| Error::io(path, e))
}
