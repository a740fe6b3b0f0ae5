//! A folder for one user on a volume.
//!
//! The root of a volume belongs to root; on some nodes (`hostPath`, NFS) every user can write to it. Coordinators refuse a state folder
//! that others could replace, so the chart mounts this one by itself (`subPath`): in the container nothing that others can write to is
//! above it.

use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, fchmod, fstat, mkdir, open};
use rustix::io::Errno;

/// Why the folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The system refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// The folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It is there already and belongs to somebody else.
    #[error(
        "{} belongs to user {owner}, and this process runs as {own}: the volume was used with another `runAsUser`, or holds what is not \
         of this program", path.display()
    )]
    Foreign {
        /// The folder.
        path: PathBuf,
        /// Its owner.
        owner: u32,
        /// The user of this process.
        own: u32,
    },
}

/// Makes the folder with mode 0700, or sets the mode of one that is there.
///
/// # Errors
/// It cannot be made, is a link or no folder, or belongs to another user.
pub fn make(path: &Path) -> Result<(), Error> {
    let failed = |source: Errno| Error::Io { path: path.to_owned(), source: source.into() };
    match mkdir(path, Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(error) => return Err(failed(error)),
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let folder = open(path, flags, Mode::empty()).map_err(failed)?;
    let own = rustix::process::geteuid().as_raw();
    let owner = fstat(&folder).map_err(failed)?.st_uid;
    if owner != own {
        return Err(Error::Foreign { path: path.to_owned(), owner, own });
    }
    // With `fsGroup` the node gives the group rights on everything when the volume is first mounted.
    fchmod(&folder, Mode::RWXU).map_err(failed)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).expect("there").permissions().mode() & 0o7777
    }

    #[test]
    fn the_folder_is_for_one_user_also_where_the_node_had_opened_it() {
        let volume = tempfile::tempdir().expect("a folder");
        fs::set_permissions(volume.path(), fs::Permissions::from_mode(0o777)).expect("set");
        let state = volume.path().join("state");
        make(&state).expect("made");
        assert_eq!(mode(&state), 0o700);
        fs::set_permissions(&state, fs::Permissions::from_mode(0o2770)).expect("set");
        fs::write(state.join("rug.db"), "kept").expect("written");
        make(&state).expect("there");
        assert_eq!(mode(&state) & 0o777, 0o700);
        assert_eq!(fs::read_to_string(state.join("rug.db")).expect("read"), "kept");
    }

    #[test]
    fn a_link_in_its_place_is_refused() {
        let volume = tempfile::tempdir().expect("a folder");
        std::os::unix::fs::symlink("/tmp", volume.path().join("state")).expect("made");
        assert!(matches!(make(&volume.path().join("state")), Err(Error::Io { .. })));
    }
}
