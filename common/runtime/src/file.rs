//! Files that a crash leaves with the old content or the new one.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

/// Writes a file beside its place, flushes it, and moves it there. Only its owner can read it, whatever the umask.
///
/// # Errors
/// What the system said; the file has its old content then, unless only the last flush of the folder failed.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let name = path.file_name().and_then(|n| n.to_str()).unwrap_or("file");
    // The pid keeps two processes that write the same file from tearing each other's temporary one.
    let beside = folder.join(format!(".{name}.{}", std::process::id()));
    // A process of the same pid may have left it. Made anew, it is nobody else's file and no link to one.
    match fs::remove_file(&beside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = File::options().write(true).create_new(true).mode(0o600).open(&beside)?;
    let written = file.write_all(bytes).and_then(|()| file.sync_all()).and_then(|()| fs::rename(&beside, path));
    if written.is_err() {
        let _ = fs::remove_file(&beside);
        return written;
    }
    File::open(folder)?.sync_all()
}
