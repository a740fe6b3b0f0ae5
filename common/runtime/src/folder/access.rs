//! Who can change a folder or a file.

use std::fmt;
use std::fs;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::Path;
use std::sync::LazyLock;

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

/// Whether what belongs to `uid` belongs to the user of this process. Where several users look alike it does not.
pub(super) fn is_own(uid: u32) -> bool {
    uid == geteuid().as_raw() && !is_unmapped(uid)
}

/// Whether it belongs to the user of this process or to root, who could do everything that this process can.
#[must_use]
pub fn is_own_or_root(uid: u32) -> bool {
    uid == 0 || is_own(uid)
}

/// Whether a user id stands for every user that the user namespace of this process does not map, this one perhaps among them.
fn is_unmapped(uid: u32) -> bool {
    static OVERFLOW: LazyLock<Option<u32>> = LazyLock::new(|| {
        let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
        let overflow = fs::read_to_string("/proc/sys/kernel/overflowuid").unwrap_or_default();
        unmapped(&map, &overflow)
    });
    *OVERFLOW == Some(uid)
}

/// The user id that stands for all users that a namespace does not map; `None` when it maps all, as the first one does.
fn unmapped(map: &str, overflow: &str) -> Option<u32> {
    let lengths = map.lines().filter_map(|line| line.split_ascii_whitespace().nth(2)?.parse::<u64>().ok());
    // All but 2^32 - 1, which is no user. Without /proc there is nothing to go by, and no namespace to expect.
    let maps_all = map.is_empty() || lengths.sum::<u64>() >= u64::from(u32::MAX);
    (!maps_all).then(|| overflow.trim().parse().unwrap_or(65_534))
}

/// The name of a user, or the number when it has none.
#[must_use]
pub fn user_name(uid: u32) -> String {
    if is_unmapped(uid) {
        return format!("a user that this user namespace does not map ({uid})");
    }
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

/// Whether only this process's user is in a group: the group of the same name and without other members that many
/// distributions give each user, with a umask of 002; or, in a container, a group of this process that has no name.
fn is_private_group(gid: u32) -> bool {
    match Group::from_gid(Gid::from_raw(gid)) {
        Ok(Some(group)) => {
            let own = User::from_uid(Uid::from_raw(geteuid().as_raw())).ok().flatten();
            let has_others = |own: &User| {
                // Without the list of users it cannot be told.
                fs::read_to_string("/etc/passwd").map_or(true, |users| is_primary_of_others(&users, gid, &own.name))
            };
            own.is_some_and(|own| {
                group.name == own.name && group.mem.iter().all(|member| *member == own.name) && !has_others(&own)
            })
        }
        Ok(None) => {
            gid == getegid().as_raw()
                || rustix::process::getgroups().is_ok_and(|own| own.iter().any(|g| g.as_raw() == gid))
        }
        Err(_) => false,
    }
}

/// Whether a group is the primary one of another user than `own`, by a list of users in the form of `/etc/passwd`: the list
/// of groups does not name those. Users of directory services stand in neither, so their groups are for administrators to keep.
fn is_primary_of_others(users: &str, gid: u32, own: &str) -> bool {
    users.lines().any(|line| {
        let mut fields = line.split(':');
        let (name, group) = (fields.next(), fields.nth(2));
        name != Some(own) && group.and_then(|group| group.parse().ok()) == Some(gid)
    })
}

/// Refuses what belongs to another user.
pub(super) fn judge_owner(path: &Path, owner: u32) -> Result<(), Error> {
    if is_own(owner) {
        return Ok(());
    }
    Err(foreign(path, owner))
}

/// Refuses what belongs neither to this user nor to root.
pub(super) fn judge_trusted(path: &Path, owner: u32) -> Result<(), Error> {
    if is_own_or_root(owner) { Ok(()) } else { Err(foreign(path, owner)) }
}

fn foreign(path: &Path, owner: u32) -> Error {
    Error::Foreign { path: path.to_owned(), owner: user_name(owner), own: user_name(geteuid().as_raw()) }
}

/// Refuses a file that is to be believed and that others have, or can have, written. Changes nothing about it.
pub(super) fn judge_readable(path: &Path, file: impl AsFd) -> Result<(), Error> {
    let stat = stat_of(path, &file)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(Error::WrongType { path: path.to_owned(), wanted: "plain file" });
    }
    judge_trusted(path, stat.st_uid)?;
    if stat.st_nlink != 1 {
        return Err(Error::Linked(path.to_owned()));
    }
    match Writers::of(file.as_fd(), &stat) {
        Some(_) => Err(Error::Changeable { path: path.to_owned(), mode: stat.st_mode & 0o7777 }),
        None => Ok(()),
    }
}

/// Refuses a folder in which other users could replace what belongs to this one: it has to belong to this user or root,
/// and only they may write to it, unless its sticky bit leaves entries to their owners.
pub(super) fn judge_above(path: &Path, above: &Path, handle: impl AsFd, stat: &Stat) -> Result<(), Error> {
    if !is_own_or_root(stat.st_uid) {
        let (owner, own) = (user_name(stat.st_uid), user_name(geteuid().as_raw()));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_is_not_private_when_it_is_the_primary_one_of_another_user() {
        let users = "root:x:0:0:root:/root:/bin/sh\nrug:x:1000:1000::/home/rug:/bin/sh\nbob:x:1001:1000::/:/bin/sh\n";
        assert!(is_primary_of_others(users, 1_000, "rug"));
        assert!(!is_primary_of_others(users, 0, "root"));
        assert!(is_primary_of_others(users, 0, "rug"));
        for broken in ["", ":", "x", "x:y:z:w", "rug:x:1000:1000", "\0\0:::1000a"] {
            assert!(!is_primary_of_others(broken, 1_000, "rug"), "{broken:?}");
        }
    }

    #[test]
    fn users_that_a_namespace_does_not_map_are_taken_for_strangers() {
        assert_eq!(unmapped("         0          0 4294967295\n", "65534\n"), None);
        assert_eq!(unmapped("0 1000 1\n", "65534\n"), Some(65_534));
        assert_eq!(unmapped("0 100000 65536\n65536 1 1\n", "65533"), Some(65_533));
        assert_eq!(unmapped("0 0 1\n1 1 4294967294\n", ""), None);
        assert_eq!(unmapped("0 0 1", "no number"), Some(65_534));
        assert_eq!(unmapped("", ""), None);
    }
}
