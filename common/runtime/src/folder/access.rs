//! Who can change a folder or a file.

use std::fmt;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::Path;

use nix::unistd::{Gid, Group, Uid, User};
use rustix::fs::{FileType, Stat, fchmod};
use rustix::process::{getegid, geteuid};

use super::{Error, FILE, OTHERS, stat_of};

/// Users beside the owner who can write to a folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Writers {
    /// Every user.
    Everybody,
    /// The members of this group, by name or number.
    Group(String),
}

impl fmt::Display for Writers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Everybody => f.write_str("every user"),
            Self::Group(group) => write!(f, "members of group {group}"),
        }
    }
}

impl Writers {
    /// Who beside its owner can write to a folder. What an access list allows at most shows as its group's rights.
    pub(super) fn of(handle: BorrowedFd<'_>, stat: &Stat) -> Option<Self> {
        if stat.st_mode & 0o002 != 0 {
            return Some(Self::Everybody);
        }
        let shared = stat.st_mode & 0o020 != 0 && (has_access_list(handle) || !is_private_group(stat.st_gid));
        shared.then(|| Self::Group(group_name(stat.st_gid)))
    }
}

/// The name of a user, or the number when it has none.
#[must_use]
pub fn user_name(uid: u32) -> String {
    User::from_uid(Uid::from_raw(uid)).ok().flatten().map_or_else(|| format!("user {uid}"), |user| user.name)
}

fn group_name(gid: u32) -> String {
    Group::from_gid(Gid::from_raw(gid)).ok().flatten().map_or_else(|| gid.to_string(), |group| group.name)
}

/// Whether a folder names further users or groups.
fn has_access_list(handle: BorrowedFd<'_>) -> bool {
    // By way of /proc, because the handle may have been opened as a path only.
    let path = format!("/proc/self/fd/{}", handle.as_raw_fd());
    rustix::fs::getxattr_query(path, c"system.posix_acl_access").is_ok_and(|length| length > 0)
}

/// Whether nobody but this process's user is in a group: the group of the same name and without other members that many
/// distributions give each user, with a umask of 002; or, in a container, a group of this process that has no name.
fn is_private_group(gid: u32) -> bool {
    match Group::from_gid(Gid::from_raw(gid)) {
        Ok(Some(group)) => {
            let own = User::from_uid(Uid::from_raw(geteuid().as_raw())).ok().flatten();
            own.is_some_and(|own| group.name == own.name && group.mem.iter().all(|member| *member == own.name))
        }
        Ok(None) => {
            gid == getegid().as_raw()
                || rustix::process::getgroups().is_ok_and(|own| own.iter().any(|g| g.as_raw() == gid))
        }
        Err(_) => false,
    }
}

/// Refuses what belongs to another user.
pub(super) fn judge_owner(path: &Path, owner: u32) -> Result<(), Error> {
    let own = geteuid().as_raw();
    if owner == own {
        return Ok(());
    }
    Err(Error::Foreign { path: path.to_owned(), owner: user_name(owner), own: user_name(own) })
}

/// Refuses a folder in which other users could replace what belongs to this one: it has to belong to this user or root,
/// and only they may write to it, unless its sticky bit leaves entries to their owners.
pub(super) fn judge_above(path: &Path, above: &Path, handle: impl AsFd, stat: &Stat) -> Result<(), Error> {
    let own = geteuid().as_raw();
    if stat.st_uid != own && stat.st_uid != 0 {
        let (owner, own) = (user_name(stat.st_uid), user_name(own));
        return Err(Error::ForeignAbove { path: path.to_owned(), above: above.to_owned(), owner, own });
    }
    let sticky = stat.st_mode & 0o1000 != 0;
    match Writers::of(handle.as_fd(), stat) {
        Some(writers) if !sticky => Err(Error::WritableAbove {
            path: path.to_owned(),
            above: above.to_owned(),
            mode: stat.st_mode & 0o7777,
            writers,
        }),
        _ => Ok(()),
    }
}

/// Refuses what is not a plain file of this user with one name, and takes every right of others away.
pub(super) fn own_file(path: &Path, file: impl AsFd) -> Result<(), Error> {
    let stat = stat_of(path, &file)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(Error::WrongType { path: path.to_owned(), wanted: "plain file" });
    }
    judge_owner(path, stat.st_uid)?;
    if stat.st_nlink > 1 {
        return Err(Error::Linked(path.to_owned()));
    }
    if stat.st_mode & OTHERS != 0 || stat.st_mode & 0o600 != 0o600 {
        fchmod(file, FILE).map_err(|e| Error::io(path, e))?;
    }
    Ok(())
}
