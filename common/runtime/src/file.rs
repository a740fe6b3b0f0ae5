//! Files that a crash leaves with the old content or the new one, and files that hold secrets.

use std::ffi::OsStr;
use std::io::{self, Read as _};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt as _};
use std::path::Path;

use rustix::fs::{Mode, OFlags, openat};

use crate::folder;

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

/// Reads a file of settings, which say what is carried out as the user of this process: only that user and root may have
/// written it.
///
/// # Errors
/// It cannot be read, is no plain file, belongs to another user, or every user can change it.
pub fn read_settings(path: &Path) -> io::Result<String> {
    // A pipe must not keep this process waiting for its other end.
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    let mut file = std::fs::OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    let found = file.metadata()?;
    let refused = |problem: String| Err(io::Error::new(io::ErrorKind::PermissionDenied, problem));
    if !found.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "is not a plain file"));
    }
    if !folder::is_own_or_root(found.uid()) {
        let owner = folder::user_name(found.uid());
        return refused(format!("it belongs to {owner}, and what it says would be carried out as another user"));
    }
    if found.mode() & 0o002 != 0 {
        return refused(format!(
            "every user can change it (mode {:04o}); `chmod o-w` closes it",
            found.mode() & 0o7777
        ));
    }
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    Ok(text)
}

/// What is wrong with the mode of a file that an administrator made and that holds a secret; `None` when every user but its
/// owner and group is kept out, or it cannot be looked at. A group may read it, as is usual for keys of services.
#[must_use]
pub fn exposure(path: &Path) -> Option<String> {
    let mode = std::fs::metadata(path).ok()?.mode() & 0o7777;
    let (who, what) = match mode {
        mode if mode & 0o002 != 0 => ("every user", "change"),
        mode if mode & 0o004 != 0 => ("every user", "read"),
        mode if mode & 0o020 != 0 => ("its group", "change"),
        _ => return None,
    };
    Some(format!("{who} can {what} {} (mode {mode:04o}), which holds a secret; `chmod 600` closes it", path.display()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn settings_that_every_user_can_change_or_a_pipe_are_refused() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("rug.toml");
        std::fs::write(&path, "name = 'c1'").expect("written");
        assert_eq!(read_settings(&path).expect("ours"), "name = 'c1'");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666)).expect("ours");
        assert_eq!(read_settings(&path).expect_err("changeable").kind(), io::ErrorKind::PermissionDenied);
        let pipe = dir.path().join("pipe");
        rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, Mode::RUSR).expect("made");
        assert_eq!(read_settings(&pipe).expect_err("a pipe").to_string(), "is not a plain file");
    }

    #[test]
    fn a_file_with_a_secret_that_others_can_read_or_change_is_named() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("key.pem");
        std::fs::write(&path, "").expect("written");
        let with = |mode| {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("ours");
            exposure(&path).unwrap_or_default()
        };
        assert_eq!((with(0o600), with(0o640), with(0o400)), Default::default());
        assert!(with(0o644).starts_with("every user can read ") && with(0o606).starts_with("every user can change "));
        assert!(with(0o660).starts_with("its group can change "));
        assert_eq!(exposure(&dir.path().join("absent")), None);
    }
}
