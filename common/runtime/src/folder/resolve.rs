//! Opens a folder by a path that was configured, component by component, and judges every folder on the way.
//!
//! Symbolic links of this user and of root are followed, as administrators use them for disks that are mounted elsewhere;
//! those of other users are refused. Folders that are missing are made with mode 0700.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat, chmodat, mkdirat, openat, readlinkat, statat};
use rustix::io::Errno;

use super::access::{judge_above, judge_trusted};
use super::{Error, FOLDER, stat_of};

/// Symbolic links in one path, as in the kernel.
const MAX_LINKS: usize = 40;

/// A folder that was opened.
pub(super) struct Resolved {
    /// Absolute, without symbolic links.
    pub(super) path: PathBuf,
    /// Opened for reading.
    pub(super) handle: OwnedFd,
    pub(super) stat: Stat,
}

/// Opens the folder at `path`, making what is missing. Every folder above it is one in which only this user and root can
/// replace things.
pub(super) fn open(path: &Path) -> Result<Resolved, Error> {
    let wanted = std::path::absolute(path).map_err(|e| Error::io(path, e))?;
    let mut left: VecDeque<OsString> = components(&wanted);
    let mut links = 0;
    let mut here = PathBuf::from("/");
    let mut handle = openat(rustix::fs::CWD, c"/", READ, Mode::empty()).map_err(|e| Error::io(&here, e))?;
    while let Some(part) = left.pop_front() {
        if part == ".." {
            handle = openat(&handle, c"..", PASS, Mode::empty()).map_err(|e| Error::io(&here, e))?;
            here.pop();
            continue;
        }
        judge_above(&wanted, &here, &handle, &stat_of(&here, &handle)?)?;
        if let Some(target) = link(&here, &handle, &part)? {
            links += 1;
            if links > MAX_LINKS {
                return Err(Error::io(&wanted, Errno::LOOP));
            }
            if target.is_absolute() {
                here = PathBuf::from("/");
                handle = openat(rustix::fs::CWD, c"/", PASS, Mode::empty()).map_err(|e| Error::io(&here, e))?;
            }
            for part in components(&target).into_iter().rev() {
                left.push_front(part);
            }
            continue;
        }
        make(&here, &handle, &part)?;
        here.push(&part);
        handle = openat(&handle, &part, PASS, Mode::empty()).map_err(|e| not_a_folder(&here, e))?;
    }
    let handle = openat(&handle, c".", READ, Mode::empty()).map_err(|e| Error::io(&here, e))?;
    let stat = stat_of(&here, &handle)?;
    Ok(Resolved { path: here, handle, stat })
}

/// Opens the folder `part` of another one, making it if need be.
pub(super) fn enter(folder: &Path, handle: BorrowedFd<'_>, part: &OsStr) -> Result<Resolved, Error> {
    make(folder, handle, part)?;
    let path = folder.join(part);
    let handle = openat(handle, part, READ | OFlags::NOFOLLOW, Mode::empty()).map_err(|e| not_a_folder(&path, e))?;
    let stat = stat_of(&path, &handle)?;
    Ok(Resolved { path, handle, stat })
}

/// For folders that are passed on the way, which need not be readable.
const PASS: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
const READ: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

fn components(path: &Path) -> VecDeque<OsString> {
    let name = |part: Component<'_>| match part {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    };
    path.components().filter_map(name).collect()
}

/// Where a symbolic link leads to; `None` when `part` is none.
fn link(folder: &Path, handle: &OwnedFd, part: &OsStr) -> Result<Option<PathBuf>, Error> {
    let path = folder.join(part);
    let stat = match statat(handle, part, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => stat,
        Err(Errno::NOENT) => return Ok(None),
        Err(e) => return Err(Error::io(&path, e)),
    };
    if FileType::from_raw_mode(stat.st_mode) != FileType::Symlink {
        return Ok(None);
    }
    judge_trusted(&path, stat.st_uid)?;
    let target = readlinkat(handle, part, Vec::new()).map_err(|e| Error::io(&path, e))?;
    Ok(Some(PathBuf::from(OsString::from_vec(target.into_bytes()))))
}

/// Makes a folder unless it is there.
fn make(folder: &Path, handle: impl std::os::fd::AsFd, part: &OsStr) -> Result<(), Error> {
    let path = folder.join(part);
    match mkdirat(&handle, part, FOLDER) {
        // The umask may have taken rights of the owner.
        Ok(()) => chmodat(&handle, part, FOLDER, AtFlags::empty()).map_err(|e| Error::io(&path, e)),
        Err(Errno::EXIST) => Ok(()),
        // Nothing can be made in it, be it there or not; opening tells.
        Err(e) => match statat(&handle, part, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(_) => Ok(()),
            Err(_) => Err(Error::io(&path, e)),
        },
    }
}

fn not_a_folder(path: &Path, error: Errno) -> Error {
    if error != Errno::NOTDIR && error != Errno::LOOP {
        return Error::io(path, error);
    }
    match path.symlink_metadata() {
        Ok(meta) if meta.file_type().is_symlink() => Error::Link(path.to_owned()),
        Ok(_) => Error::WrongType { path: path.to_owned(), wanted: "directory" },
        Err(source) => Error::io(path, io::Error::other(source)),
    }
}
