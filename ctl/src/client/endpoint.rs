//! The endpoint file of a cluster on this machine.
//!
//! It is looked for in the working directory and above, where strangers may have put theirs: nothing is read before it is
//! known whose it is, no link is followed, and a pipe keeps nobody waiting.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use runtime::socket;
use rustix::fs::{FileType, Mode, OFlags, fstat, open, openat};
use rustix::io::Errno;

use crate::error::Failure;

/// Most bytes of an endpoint file. Paths have at most 4096, those of sockets about a hundred.
const MAX_ENDPOINT: u64 = 4 << 10;

/// The address in the endpoint file of a `.rug` folder, always one of a Unix socket; `None` when there is none.
///
/// # Errors
/// Another user has, or can have, put it there, or it is not what `rugctl up` writes.
pub(crate) fn read_endpoint(folder: &Path) -> Result<Option<String>, Failure> {
    let path = folder.join("endpoint");
    let failed = |at: &Path, error: Errno| Failure::failed(format!("{}: {error}", at.display()));
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
    let handle = match open(folder, flags | OFlags::DIRECTORY, Mode::empty()) {
        Ok(handle) => handle,
        Err(Errno::LOOP | Errno::NOTDIR) if folder.is_symlink() => return Err(refused(folder, "is a symbolic link")),
        Err(Errno::NOENT | Errno::ACCESS | Errno::NOTDIR) => return Ok(None),
        Err(error) => return Err(failed(folder, error)),
    };
    let file = match openat(&handle, "endpoint", flags, Mode::empty()) {
        Ok(file) => file,
        Err(Errno::NOENT | Errno::ACCESS) => return Ok(None),
        Err(Errno::LOOP) => return Err(refused(&path, "is a symbolic link")),
        Err(Errno::NXIO) => return Err(refused(&path, "is not a plain file")),
        Err(error) => return Err(failed(&path, error)),
    };
    let stat = fstat(&handle).map_err(|e| failed(folder, e))?;
    judge_owner(folder, stat.st_uid)?;
    if stat.st_mode & 0o022 != 0 {
        return Err(refused(folder, "can be changed by other users"));
    }
    let stat = fstat(&file).map_err(|e| failed(&path, e))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(refused(&path, "is not a plain file"));
    }
    judge_owner(&path, stat.st_uid)?;
    if stat.st_nlink != 1 {
        return Err(refused(&path, "has another name elsewhere (a hard link)"));
    }
    let mut bytes = Vec::new();
    let read = File::from(file).take(MAX_ENDPOINT + 1).read_to_end(&mut bytes);
    read.map_err(|e| Failure::failed(format!("{}: {e}", path.display())))?;
    match std::str::from_utf8(&bytes).map(str::trim) {
        Ok("") => Ok(None),
        Ok(address) if bytes.len() as u64 <= MAX_ENDPOINT && address.starts_with(socket::SCHEME) => {
            Ok(Some(address.to_owned()))
        }
        // Versions before sockets wrote http://, where anybody may listen by now.
        _ => Err(refused(&path, "does not hold the address of a Unix socket")),
    }
}

/// Refuses what neither this user nor root has put there.
pub(super) fn judge_owner(path: &Path, owner: u32) -> Result<(), Failure> {
    if owner == rustix::process::geteuid().as_raw() || owner == 0 {
        return Ok(());
    }
    Err(refused(path, &format!("belongs to {}", runtime::folder::user_name(owner))))
}

fn refused(path: &Path, why: &str) -> Failure {
    Failure::usage(format!("{} {why}: name the server with --server or RUG_SERVER if you trust it", path.display()))
}

#[cfg(test)]
mod tests {
    use std::fs::{Permissions, set_permissions, write};
    use std::os::unix::fs::{PermissionsExt as _, chown, symlink};
    use std::path::PathBuf;

    use super::*;
    use crate::error::Exit;

    fn rug() -> (tempfile::TempDir, PathBuf) {
        let top = tempfile::tempdir().expect("a folder");
        let rug = top.path().join(".rug");
        std::fs::create_dir(&rug).expect("a folder");
        set_permissions(&rug, Permissions::from_mode(0o755)).expect("ours");
        (top, rug)
    }

    fn refusal(rug: &Path) -> String {
        let failure = read_endpoint(rug).expect_err("refused");
        assert!(failure.exit == Exit::Usage && failure.to_string().contains("--server"), "{failure}");
        failure.to_string()
    }

    #[test]
    fn only_a_plain_file_that_rugctl_wrote_is_read() {
        let (top, rug) = rug();
        let file = rug.join("endpoint");
        assert_eq!(read_endpoint(&rug).expect("none"), None);
        assert_eq!(read_endpoint(&top.path().join("none")).expect("none"), None);

        let other = top.path().join("other");
        write(&other, "unix:/x/s\n").expect("a file");
        symlink(&other, &file).expect("a link");
        assert!(refusal(&rug).contains("symbolic link"));
        std::fs::remove_file(&file).expect("removed");

        std::fs::hard_link(&other, &file).expect("a link");
        assert!(refusal(&rug).contains("hard link"));
        std::fs::remove_file(&file).expect("removed");

        rustix::fs::mknodat(rustix::fs::CWD, &file, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).expect("a pipe");
        assert!(refusal(&rug).contains("not a plain file"));
        std::fs::remove_file(&file).expect("removed");

        for text in [format!("unix:/{}", "x".repeat(8192)), "http://127.0.0.1:7470\n".to_owned()] {
            write(&file, text).expect("a file");
            assert!(refusal(&rug).contains("address of a Unix socket"));
        }
        File::create(&file).and_then(|file| file.set_len(1 << 40)).expect("a file with a hole");
        assert!(refusal(&rug).contains("address of a Unix socket"));

        write(&file, "unix:/x/s\n").expect("a file");
        assert_eq!(read_endpoint(&rug).expect("ours").as_deref(), Some("unix:/x/s"));
        let link = top.path().join("link");
        symlink(&rug, &link).expect("a link");
        assert!(refusal(&link).contains("symbolic link"));
        set_permissions(&rug, Permissions::from_mode(0o777)).expect("ours");
        assert!(refusal(&rug).contains("changed by other users"));
    }

    #[test]
    fn a_file_or_a_folder_of_another_user_is_refused() {
        let (_top, rug) = rug();
        write(rug.join("endpoint"), "unix:/x/s\n").expect("a file");
        // Only root can give things away.
        if chown(rug.join("endpoint"), Some(65_534), None).is_err() {
            return;
        }
        assert!(refusal(&rug).contains("endpoint belongs to"));
        chown(rug.join("endpoint"), Some(0), None).expect("given back");
        chown(&rug, Some(65_534), None).expect("given away");
        assert!(refusal(&rug).contains(".rug belongs to"));
    }
}
