//! Removes what an instance left in its folders, whatever that is.
//!
//! An instance may leave folders as deep as it likes, and without rights. So nothing here recurses or holds more than two
//! folders open: what a folder has inside is first moved up into the folder that is being emptied, under a name of its own,
//! which makes it shallow. No link is followed.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, chmod, openat, renameat, statat, unlinkat};
use rustix::io::Errno;

const FOLDER: OFlags = OFlags::DIRECTORY.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Removes a folder with everything in it. One that is not there is removed already.
///
/// # Errors
/// What the system said, as when something is mounted inside; the rest is removed by the next try.
pub(super) fn remove_tree(path: &Path) -> io::Result<()> {
    let top = match open(CWD, path) {
        Ok(top) => top,
        Err(Errno::NOENT) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    let mut moved = 0_u64;
    loop {
        let mut folders = Vec::new();
        for (name, is_folder) in entries(&top)? {
            if is_folder { folders.push(name) } else { unlink(&top, &name, AtFlags::empty())? }
        }
        if folders.is_empty() {
            break;
        }
        for name in folders {
            flatten(&top, &name, &mut moved)?;
        }
    }
    unlinkat(CWD, path, AtFlags::REMOVEDIR).or_else(gone)?;
    Ok(())
}

/// Removes a folder in `top`, and moves the folders inside up into `top`.
fn flatten(top: &OwnedFd, name: &CStr, moved: &mut u64) -> io::Result<()> {
    let folder = match open(top.as_fd(), name) {
        Ok(folder) => folder,
        Err(Errno::NOENT) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    for (inner, is_folder) in entries(&folder)? {
        if !is_folder {
            unlink(&folder, &inner, AtFlags::empty())?;
            continue;
        }
        // Moving a folder changes its entry `..`, which needs the right to write to it.
        drop(open(folder.as_fd(), inner.as_c_str())?);
        loop {
            *moved += 1;
            let free = CString::new(format!(".removed-{moved}"))?;
            match statat(top, &free, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(_) => {}
                Err(Errno::NOENT) => {
                    renameat(&folder, &inner, top, &free)?;
                    break;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
    drop(folder);
    unlink(top, name, AtFlags::REMOVEDIR)
}

/// Opens a folder, which gets the rights that emptying it needs.
fn open(at: BorrowedFd<'_>, name: impl rustix::path::Arg + Copy) -> rustix::io::Result<OwnedFd> {
    // By a handle that needs no rights, so that what is changed is the folder and nothing that takes its place.
    let handle = openat(at, name, FOLDER | OFlags::PATH, Mode::empty())?;
    chmod(format!("/proc/self/fd/{}", handle.as_raw_fd()), Mode::RWXU)?;
    openat(&handle, ".", FOLDER | OFlags::RDONLY, Mode::empty())
}

/// What is in a folder, with whether it is a folder.
fn entries(folder: &OwnedFd) -> io::Result<Vec<(CString, bool)>> {
    let mut found = Vec::new();
    for entry in Dir::read_from(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        let is_folder = match entry.file_type() {
            FileType::Unknown => {
                let stat = statat(folder, name, AtFlags::SYMLINK_NOFOLLOW)?;
                FileType::from_raw_mode(stat.st_mode) == FileType::Directory
            }
            kind => kind == FileType::Directory,
        };
        found.push((name.to_owned(), is_folder));
    }
    Ok(found)
}

fn unlink(folder: &OwnedFd, name: &CStr, flags: AtFlags) -> io::Result<()> {
    unlinkat(folder, name, flags).or_else(gone)?;
    Ok(())
}

fn gone(error: Errno) -> rustix::io::Result<()> {
    if error == Errno::NOENT { Ok(()) } else { Err(error) }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn what_is_deep_without_rights_or_a_link_is_removed_and_nothing_beside_it() {
        let dir = tempfile::tempdir().expect("a folder");
        let (tree, beside) = (dir.path().join("tree"), dir.path().join("beside"));
        fs::create_dir_all(tree.join("x/y")).expect("made");
        fs::create_dir(&beside).expect("made");
        fs::write(beside.join("kept"), "").expect("written");
        fs::write(tree.join("x/y/f"), "").expect("written");
        fs::write(tree.join("x/.removed-1"), "").expect("written");
        fs::create_dir(tree.join(".removed-1")).expect("made");
        symlink(&beside, tree.join("x/link")).expect("made");
        for closed in ["x/y", "x"] {
            fs::set_permissions(tree.join(closed), fs::Permissions::from_mode(0o000)).expect("ours");
        }
        // Deeper than a path can be long, or a stack has room for.
        let mut at = openat(CWD, &tree, FOLDER | OFlags::RDONLY, Mode::empty()).expect("opened");
        for _ in 0..20_000 {
            rustix::fs::mkdirat(&at, "d", Mode::RWXU).expect("made");
            at = openat(&at, "d", FOLDER | OFlags::RDONLY, Mode::empty()).expect("opened");
        }
        drop(at);
        remove_tree(&tree).expect("removed");
        assert!(!tree.exists() && beside.join("kept").exists());
        remove_tree(&tree).expect("it is not there");
    }
}
