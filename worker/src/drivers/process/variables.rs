//! Files with variables for an instance: read when it is started, and kept nowhere. Nothing of their content is in an error.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, fstat, open};

use crate::drivers::Error;

/// Largest file, in bytes.
const MAX_FILE: u64 = 64 * 1024;

/// Reads files with a `NAME=VALUE` in each line, those of a later file last. Empty lines and those that start with `#` do not count; a
/// value is everything after the first `=`, as it is.
///
/// An instance that runs as another user than the worker gets only what lies in one of the `folders`: the worker may read more
/// than its instances should.
///
/// # Errors
/// [`Error::Refused`] with the file, and the number of the line.
pub(super) fn read(
    files: &[String],
    folders: &[PathBuf],
    as_another_user: bool,
) -> Result<Vec<(String, String)>, Error> {
    let mut all = Vec::new();
    for file in files {
        let refused = |problem: &str| Error::Refused(format!("env_from {file}: {problem}"));
        let folders = as_another_user.then_some(folders);
        let text = read_file(Path::new(file), folders).map_err(|problem| refused(&problem))?;
        for (n, line) in text.lines().enumerate() {
            let line = line.trim_start();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let (name, value) = line.split_once('=').unwrap_or_default();
            if name.is_empty() || name.contains(char::is_whitespace) || line.contains('\0') {
                return Err(refused(&format!("line {} is not NAME=VALUE", n + 1)));
            }
            all.push((name.to_owned(), value.to_owned()));
        }
    }
    Ok(all)
}

/// The text of a regular file that lies in one of the folders, if some are given.
fn read_file(path: &Path, folders: Option<&[PathBuf]>) -> Result<String, String> {
    const OUTSIDE: &str = "lies in no folder of `process.env_folders` in the settings of the worker";
    let real: Vec<_> = folders.into_iter().flatten().filter_map(|folder| folder.canonicalize().ok()).collect();
    // By its name at first, so that whoever asks does not learn what there is elsewhere.
    if let Some(folders) = folders
        && !folders.iter().chain(&real).any(|folder| path.starts_with(folder))
    {
        return Err(OUTSIDE.into());
    }
    // Only located by this: a device or a named pipe that is opened may block, or do something.
    let located = open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).map_err(|error| error.to_string())?;
    let entry = PathBuf::from(format!("/proc/self/fd/{}", located.as_raw_fd()));
    let is_inside = |found: PathBuf| real.iter().any(|folder| found.starts_with(folder));
    // Where it led to, whatever links are on the way.
    if folders.is_some() && !entry.read_link().is_ok_and(is_inside) {
        return Err(OUTSIDE.into());
    }
    let no_file = || "is no file of at most 64 KiB".to_owned();
    let stat = fstat(&located).map_err(|error| error.to_string())?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(no_file());
    }
    let mut bytes = Vec::new();
    let opened = reopen(&entry).map_err(|error| error.to_string())?;
    File::from(opened).take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(|error| error.to_string())?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(no_file());
    }
    String::from_utf8(bytes).map_err(|_| "is not UTF-8 text".to_owned())
}

/// Opens what was located, for reading.
fn reopen(entry: &Path) -> io::Result<OwnedFd> {
    Ok(open(entry, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())?)
}

#[cfg(test)]
mod tests {
    use rustix::fs::{CWD, mknodat};

    use super::*;

    fn refusal(result: Result<Vec<(String, String)>, Error>) -> String {
        match result {
            Err(Error::Refused(text)) => text,
            other => panic!("expected a refusal, got {other:?}"),
        }
    }

    #[test]
    fn lines_are_variables_and_what_is_in_them_is_in_no_error() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).expect("writable");
            path.to_string_lossy().into_owned()
        };
        let good = file("good", "# a comment\n\nA=b=c\n  PASSWORD= hush \nEMPTY=\n");
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let read = |files: &[String]| super::read(files, &[], false);
        assert_eq!(
            read(std::slice::from_ref(&good)).expect("valid"),
            [pair("A", "b=c"), pair("PASSWORD", " hush "), pair("EMPTY", "")]
        );
        for (name, text, problem) in [
            ("bare", "A=1\nhush\n", "line 2 is not NAME=VALUE"),
            ("blank", "A hush=1\n", "line 1 is not NAME=VALUE"),
            ("nameless", "=hush\n", "line 1 is not NAME=VALUE"),
            ("long", &format!("A={}", "hush".repeat(20_000)), "is no file of at most 64 KiB"),
        ] {
            let text = refusal(read(&[file(name, text)]));
            assert!(text.ends_with(problem) && !text.contains("hush"), "{text}");
        }
        assert!(refusal(read(&["/no/such/file".into()])).starts_with("env_from /no/such/file: No such file"));
        assert!(refusal(read(&[folder.path().to_string_lossy().into_owned()])).ends_with("64 KiB"));
    }

    #[test]
    fn an_instance_of_another_user_gets_what_lies_in_the_folders_alone() {
        let (inside, outside) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
        let link = inside.path().join("link");
        std::fs::write(outside.path().join("secret"), "A=1").expect("writable");
        std::fs::write(inside.path().join("own"), "A=1").expect("writable");
        std::os::unix::fs::symlink(outside.path().join("secret"), &link).expect("writable");
        let folders = [inside.path().to_owned()];
        let read = |path: PathBuf| super::read(&[path.to_string_lossy().into_owned()], &folders, true);
        assert!(read(inside.path().join("own")).is_ok());
        // Whether there is such a file is not said.
        let wrong = [outside.path().join("secret"), outside.path().join("none"), link];
        for path in wrong {
            assert!(refusal(read(path)).contains("process.env_folders"));
        }
        std::os::unix::fs::symlink(inside.path(), outside.path().join("back")).expect("writable");
        assert!(refusal(read(outside.path().join("back/own"))).contains("process.env_folders"));
        std::os::unix::fs::symlink("own", inside.path().join("alias")).expect("writable");
        assert!(read(inside.path().join("alias")).is_ok(), "it leads to a file inside");
        assert!(refusal(read(inside.path().join("none"))).contains("No such file"));
    }

    #[test]
    fn what_is_no_plain_file_is_not_waited_for() {
        let folder = tempfile::tempdir().expect("a folder");
        let pipe = folder.path().join("pipe");
        mknodat(CWD, &pipe, FileType::Fifo, Mode::RWXU, 0).expect("writable");
        for path in [pipe.as_path(), Path::new("/dev/zero"), folder.path()] {
            let text = refusal(read(&[path.to_string_lossy().into_owned()], &[], false));
            assert!(text.ends_with("is no file of at most 64 KiB"), "{text}");
        }
    }
}
