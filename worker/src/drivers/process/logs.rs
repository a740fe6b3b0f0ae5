//! What instances have printed, as their shims have kept it: the current log, and those that were put aside before it.
//!
//! A place in it is the number of a file (its inode, which it keeps when it is put aside) and an offset. A file that is not there any more was
//! removed, by age or for room, before it was read: reading goes on with the oldest that is, and says so.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::time::{Duration, SystemTime};

use common::inquiry::{LogPart, LogQuery, MAX_LOG_PART};

use super::Inner;
use super::record::{Folder, FolderKey};
use crate::drivers::Error;

/// How far back the last lines are looked for.
const MAX_TAIL: u64 = 1024 * 1024;

/// One log of an instance.
struct LogFile {
    file: File,
    inode: u64,
    length: u64,
    /// When it was last written to.
    written: SystemTime,
}

impl Inner {
    /// Part of what an instance has printed.
    pub(super) fn read_log(&self, query: &LogQuery) -> Result<LogPart, Error> {
        let key = FolderKey { ordinal: query.ordinal, aside: None };
        let folder = Folder::new(&self.instances, query.appliance, key);
        let files = open_logs(&folder, self.config.log_files)?;
        let Some(oldest) = files.len().checked_sub(1) else { return Ok(LogPart::default()) };
        let (at, offset, lost) = match place(&query.place) {
            Some((inode, offset)) => match files.iter().position(|log| log.inode == inode && offset <= log.length) {
                Some(at) => (at, offset, false),
                None => (oldest, 0, true),
            },
            None if query.previous => (oldest, 0, false),
            None => match (query.since, query.tail) {
                (Some(since), _) => written_since(&files, since),
                (None, Some(lines)) => (0, last_lines(&files[0], lines)?, false),
                (None, None) => (0, 0, false),
            },
        };
        read_from(&files, at, offset, lost)
    }
}

/// The logs that there are, newest first: the current one, and those of so many that were put aside.
fn open_logs(folder: &Folder, kept: u32) -> Result<Vec<LogFile>, Error> {
    let (mut files, mut seen) = (Vec::new(), BTreeSet::new());
    for n in 0..=kept {
        let file = match folder.read_log_file(n) {
            Ok(file) => file,
            // Numbers may have gaps: the oldest go for room.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error.into()),
        };
        let meta = file.metadata()?;
        // One that is put aside at this moment is met twice.
        if seen.insert(meta.ino()) {
            files.push(LogFile { inode: meta.ino(), length: meta.len(), written: meta.modified()?, file });
        }
    }
    Ok(files)
}

fn place(text: &str) -> Option<(u64, u64)> {
    let (inode, offset) = text.split_once(':')?;
    Some((inode.parse().ok()?, offset.parse().ok()?))
}

/// The begin of the oldest log that was written to within this time, or the end of all. Lines have no times, so that this begins early.
fn written_since(files: &[LogFile], since: Duration) -> (usize, u64, bool) {
    let from = SystemTime::now().checked_sub(since).unwrap_or(SystemTime::UNIX_EPOCH);
    match files.iter().rposition(|log| log.written >= from) {
        Some(at) => (at, 0, false),
        None => (0, files[0].length, false),
    }
}

/// Where the last lines of a log begin.
fn last_lines(log: &LogFile, lines: u32) -> Result<u64, Error> {
    let from = log.length.saturating_sub(MAX_TAIL);
    let mut data = vec![0; usize::try_from(log.length - from).unwrap_or(0)];
    log.file.read_exact_at(&mut data, from)?;
    // The end of the last line is none that another line follows.
    let ends = data.iter().enumerate().rev().skip(1).filter(|(_, byte)| **byte == b'\n');
    let begin = ends.map(|(at, _)| at + 1).nth(lines.saturating_sub(1) as usize);
    Ok(begin.map_or(if from == 0 { 0 } else { log.length.min(from) }, |at| from + at as u64))
}

fn read_from(files: &[LogFile], mut at: usize, mut offset: u64, lost: bool) -> Result<LogPart, Error> {
    let mut data = Vec::new();
    loop {
        let log = &files[at];
        let left = usize::try_from(log.length.saturating_sub(offset)).unwrap_or(usize::MAX);
        let begin = data.len();
        data.resize(begin + left.min(MAX_LOG_PART - begin), 0);
        log.file.read_exact_at(&mut data[begin..], offset)?;
        offset += (data.len() - begin) as u64;
        if offset < log.length || at == 0 {
            break;
        }
        (at, offset) = (at - 1, 0);
    }
    let log = &files[at];
    let more = at > 0 || offset < log.length;
    Ok(LogPart { data, place: format!("{}:{offset}", log.inode), more, lost })
}
