//! Unix sockets: a server that only this user and root can reach without any set-up, and its clients.
//!
//! An address is `unix:PATH`. The server's socket has mode 0600 in a folder that no other user can change; both sides ask
//! the kernel who the other one is (`SO_PEERCRED`), so that neither file modes nor who made the socket have to be trusted.
//! The kernel takes paths of at most 107 bytes; longer ones are reached by way of an open folder.

use std::fmt;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, chmodat, openat, statat};
use rustix::io::Errno;
use rustix::process::geteuid;
use tokio::net::{UnixListener, UnixStream};

use crate::folder::{self, FileLock, Folder, LockError};

/// What addresses of Unix sockets begin with.
pub const SCHEME: &str = "unix:";

/// Longest path the kernel takes, in bytes.
const MAX_PATH: usize = 107;

/// The path in an address such as `unix:/run/rug/coordinator.sock` or `unix:rug.sock`; `None` when it is another kind of
/// address, or names no path.
#[must_use]
pub fn path_of(address: &str) -> Option<&Path> {
    let path = address.strip_prefix(SCHEME)?;
    // As gRPC libraries write absolute paths: unix:///path.
    let path = path.strip_prefix("//").unwrap_or(path);
    (!path.is_empty() && !path.contains('\0')).then(|| Path::new(path))
}

/// A process on this host at the other end of a Unix socket, as the kernel knew it when it connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LocalUser {
    /// Its user.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// Its process; `None` when it is in another process namespace.
    pub pid: Option<i32>,
}

impl fmt::Display for LocalUser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "local user {}", self.uid)?;
        self.pid.map_or(Ok(()), |pid| write!(f, ", pid {pid}"))
    }
}

impl LocalUser {
    /// Who is at the other end.
    ///
    /// # Errors
    /// What the system said.
    pub fn of(stream: &UnixStream) -> io::Result<Self> {
        let peer = stream.peer_cred()?;
        Ok(Self { uid: peer.uid(), gid: peer.gid(), pid: peer.pid() })
    }

    /// Whether it is the user of this process, or root.
    #[must_use]
    pub fn is_own_or_root(&self) -> bool {
        folder::is_own_or_root(self.uid)
    }
}

/// Why a socket cannot be listened at.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Another process listens there.
    #[error("{} is in use by {}", path.display(), holder.map_or_else(|| "another process".to_owned(), |pid| format!("process {pid}")))]
    InUse {
        /// The socket.
        path: PathBuf,
        /// The process.
        holder: Option<u32>,
    },
    /// Something else has the name of the socket, and is left alone.
    #[error("{} is there already and is no socket", .0.display())]
    NoSocket(PathBuf),
    /// The address names no file.
    #[error("{} does not name a file", .0.display())]
    NoName(PathBuf),
    /// The folder cannot be used.
    #[error(transparent)]
    Folder(#[from] folder::Error),
    /// The system refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// A socket that is listened at. Its file goes when this is dropped.
#[derive(Debug)]
pub struct LocalListener {
    listener: UnixListener,
    folder: Folder,
    name: PathBuf,
    /// Keeps other processes from taking the file for a left-over.
    _lock: FileLock,
}

impl LocalListener {
    /// Listens at `path`, whose folder is made if need be. A socket that is there is a left-over of a process that died if
    /// nobody has the lock beside it, and is replaced. Needs a Tokio runtime.
    ///
    /// # Errors
    /// Another process listens there, others could replace the socket, or the system refused.
    pub fn bind(path: &Path) -> Result<Self, BindError> {
        let name = PathBuf::from(path.file_name().ok_or_else(|| BindError::NoName(path.to_owned()))?);
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let folder = Folder::trusted(parent)?;
        let path = folder.path().join(&name);
        let failed = |source: io::Error| BindError::Io { path: path.clone(), source };
        let mut lock_name = name.clone().into_os_string();
        lock_name.push(".lock");
        let lock = folder.lock(&lock_name).map_err(|error| match error {
            LockError::InUse(holder) => BindError::InUse { path: path.clone(), holder },
            LockError::Unusable(error) => error.into(),
        })?;
        match statat(folder.handle(), &name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => {}
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Socket => folder.remove(&name)?,
            Ok(_) => return Err(BindError::NoSocket(path)),
            Err(e) => return Err(failed(e.into())),
        }
        let listener = UnixListener::bind(reachable(&path, folder.handle().as_raw_fd(), &name)).map_err(failed)?;
        // Until here others could connect, if the folder lets them in, and are refused for who they are.
        chmodat(folder.handle(), &name, Mode::from_raw_mode(0o600), AtFlags::empty()).map_err(|e| failed(e.into()))?;
        Ok(Self { listener, folder, name, _lock: lock })
    }

    /// Where it listens, absolute.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.folder.path().join(&self.name)
    }

    /// The next connection. Cancel safe.
    ///
    /// # Errors
    /// What the system said; the next try may go well.
    pub async fn accept(&self) -> io::Result<UnixStream> {
        self.listener.accept().await.map(|(stream, _)| stream)
    }
}

impl Drop for LocalListener {
    fn drop(&mut self) {
        // Fails when somebody removed it already.
        let _ = self.folder.remove(&self.name);
    }
}

/// Whose server a client trusts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrustedServer {
    /// One of this user or root.
    OwnOrRoot,
    /// The same, and where this process is root's, whichever it was sent to: for a person who named it.
    Named,
}

/// Connects to the server at `path`.
///
/// # Errors
/// Why not, in words.
pub async fn connect(path: &Path, trusted: TrustedServer) -> io::Result<UnixStream> {
    let explained = |error: io::Error| {
        let why = match error.kind() {
            io::ErrorKind::NotFound => "there is no socket at",
            io::ErrorKind::ConnectionRefused => "no server listens at",
            io::ErrorKind::PermissionDenied => "only its owner may use",
            _ => "connect to",
        };
        io::Error::new(error.kind(), format!("{why} {} ({error})", path.display()))
    };
    let stream = dial(path).await.map_err(explained)?;
    let server = LocalUser::of(&stream)?;
    let own = geteuid().as_raw();
    let is_named = trusted == TrustedServer::Named && own == 0;
    if !is_named && !server.is_own_or_root() {
        let text = format!(
            "the server at {} belongs to {}, and is trusted with nothing of {}",
            path.display(),
            folder::user_name(server.uid),
            folder::user_name(own)
        );
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, text));
    }
    Ok(stream)
}

async fn dial(path: &Path) -> io::Result<UnixStream> {
    if path.as_os_str().len() <= MAX_PATH {
        return UnixStream::connect(path).await;
    }
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    let parent = path.parent().unwrap_or(Path::new("/"));
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let folder = openat(rustix::fs::CWD, parent, flags, Mode::empty())?;
    UnixStream::connect(reachable(path, folder.as_raw_fd(), Path::new(name))).await
}

/// A path to `name` in an open folder that the kernel takes: `path` if it is short enough.
fn reachable(path: &Path, folder: i32, name: &Path) -> PathBuf {
    if path.as_os_str().len() <= MAX_PATH {
        return path.to_owned();
    }
    Path::new("/proc/self/fd").join(folder.to_string()).join(name)
}

#[cfg(test)]
mod tests;
