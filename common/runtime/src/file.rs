//! Files that a crash leaves with the old content or the new one.

use std::ffi::OsStr;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use rustix::fs::{Mode, OFlags, openat};

/// Writes a file beside its place, flushes it, and moves it there. It is for this user alone, with mode 0600. In a folder
/// that is open already, [`Folder::write_atomic`](crate::folder::Folder::write_atomic) does the same.
///
/// # Errors
/// What the system said; the file has its old content then, unless only the last flush of the folder failed.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let folder = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let name = path.file_name().unwrap_or(OsStr::new("file"));
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let folder = openat(rustix::fs::CWD, folder, flags, Mode::empty())?;
    crate::folder::replace(folder.as_fd(), name, bytes)
}
