//! The endpoint file of a cluster on this machine.
//!
//! It is looked for in the working directory and above, where strangers may have put theirs: nothing is believed that this
//! user or root has not put there ([`Folder::read_existing`]).

use std::fmt;
use std::io;
use std::path::Path;

use common::cluster::ClusterRef;
use runtime::folder::{self, Error, Folder};
use runtime::socket;

use crate::error::Failure;

/// Most bytes of an endpoint file. Paths have at most 4096, those of sockets about a hundred.
const MAX_ENDPOINT: u64 = 4 << 10;

/// Begin of the line that says which cluster it is.
const CLUSTER: &str = "cluster ";

/// What an endpoint file says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Endpoint {
    /// Address of the server, always one of a Unix socket.
    pub(crate) address: String,
    /// The cluster that serves there. Missing in files of earlier versions.
    pub(crate) cluster: Option<ClusterRef>,
}

impl Endpoint {
    /// The lines of a file.
    fn parse(text: &str) -> Option<Self> {
        let mut lines = text.lines().map(str::trim);
        let address = lines.next().filter(|address| address.starts_with(socket::SCHEME))?.to_owned();
        let cluster = match lines.next() {
            None => None,
            Some(line) => Some(line.strip_prefix(CLUSTER)?.parse().ok()?),
        };
        lines.next().is_none().then_some(Self { address, cluster })
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.address)?;
        self.cluster.iter().try_for_each(|cluster| writeln!(f, "{CLUSTER}{cluster}"))
    }
}

/// What the endpoint file of a `.rug` folder says; `None` when there is none.
///
/// # Errors
/// Another user has, or can have, put it there, or it is not what `rugctl up` writes.
pub(crate) fn read_endpoint(folder: &Path) -> Result<Option<Endpoint>, Failure> {
    let path = folder.join("endpoint");
    let bytes = match Folder::read_existing(&path, MAX_ENDPOINT) {
        Ok(None) => return Ok(None),
        Ok(Some(bytes)) => bytes,
        Err(Error::Foreign { path, owner, .. }) => return Err(refused(&path, &format!("belongs to {owner}"))),
        Err(Error::Link(path)) => return Err(refused(&path, "is a symbolic link")),
        Err(Error::Io { path, source }) if source.kind() == io::ErrorKind::InvalidData => {
            return Err(refused(&path, NO_ADDRESS));
        }
        Err(error @ Error::Io { .. }) => return Err(Failure::failed(error.to_string())),
        Err(error) => return Err(Failure::usage(format!("{error}; {NAME_IT}"))),
    };
    match std::str::from_utf8(&bytes).map(str::trim) {
        Ok("") => Ok(None),
        // Versions before sockets wrote http://, where anybody may listen by now.
        text => text.ok().and_then(Endpoint::parse).map(Some).ok_or_else(|| refused(&path, NO_ADDRESS)),
    }
}

/// Refuses a folder of a socket that others have, or can have, put there: it may lead to another cluster.
pub(super) fn judge_folder(socket: &Path) -> Result<(), Failure> {
    let Some(folder) = socket.parent() else { return Ok(()) };
    match Folder::existing(folder) {
        Ok(_) => Ok(()),
        Err(Error::Foreign { path, owner, .. }) => Err(refused(&path, &format!("belongs to {owner}"))),
        Err(Error::Link(path)) => Err(refused(&path, "is a symbolic link")),
        // Its own user's is closed to others.
        Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::PermissionDenied => Ok(()),
        Err(error) => Err(Failure::usage(format!("{error}; {NAME_IT}"))),
    }
}

/// Refuses what neither this user nor root has put there.
pub(super) fn judge_owner(path: &Path, owner: u32) -> Result<(), Failure> {
    if folder::is_own_or_root(owner) {
        return Ok(());
    }
    Err(refused(path, &format!("belongs to {}", folder::user_name(owner))))
}

const NO_ADDRESS: &str = "does not hold the address of a Unix socket";
/// What helps whoever means the server that is refused.
const NAME_IT: &str = "name the server with --server or RUG_SERVER if you trust it";

fn refused(path: &Path, why: &str) -> Failure {
    Failure::usage(format!("{} {why}: {NAME_IT}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::fs::{File, Permissions, set_permissions, write};
    use std::os::unix::fs::{PermissionsExt as _, chown, symlink};
    use std::path::PathBuf;

    use rustix::fs::{FileType, Mode};

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
        let mut endpoint = Endpoint { address: "unix:/x/s".to_owned(), cluster: None };
        assert_eq!(read_endpoint(&rug).expect("ours").as_ref(), Some(&endpoint));
        endpoint.cluster = "6f1c9a52-0f5e-4f0a-9a3e-0d2b6a1c7e11".parse().ok();
        write(&file, endpoint.to_string()).expect("a file");
        assert_eq!(read_endpoint(&rug).expect("ours").as_ref(), Some(&endpoint));
        for odd in ["unix:/x/s\nelsewhere\n", "unix:/x/s\ncluster No Name\n", "unix:/x/s\ncluster a\nb\n"] {
            write(&file, odd).expect("a file");
            assert!(read_endpoint(&rug).is_err(), "{odd:?}");
        }
        write(&file, "unix:/x/s\n").expect("a file");
        let link = top.path().join("link");
        symlink(&rug, &link).expect("a link");
        assert!(refusal(&link).contains("symbolic link"));
        set_permissions(&file, Permissions::from_mode(0o666)).expect("ours");
        assert!(refusal(&rug).contains("can be changed by other users"));
        set_permissions(&rug, Permissions::from_mode(0o777)).expect("ours");
        assert!(refusal(&rug).starts_with("every user can write to"));
    }

    #[test]
    fn a_folder_of_a_socket_that_is_a_link_or_that_others_can_change_is_refused() {
        let (top, folder) = rug();
        let socket = |folder: &Path| folder.join("coordinator.sock");
        assert!(judge_folder(&socket(&folder)).is_ok() && judge_folder(&socket(&top.path().join("none"))).is_ok());
        let link = top.path().join("link");
        symlink(&folder, &link).expect("a link");
        let failure = judge_folder(&socket(&link)).expect_err("it may lead to another cluster");
        assert!(failure.to_string().contains("symbolic link"), "{failure}");
        set_permissions(&folder, Permissions::from_mode(0o777)).expect("ours");
        assert!(judge_folder(&socket(&folder)).is_err());
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
