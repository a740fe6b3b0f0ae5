//! Tests that need files of another user give some away, and do nothing when not run by root.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};

use tempfile::TempDir;

use super::*;

const NOBODY: u32 = 65_534;

fn top() -> TempDir {
    tempfile::tempdir().expect("a folder")
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).expect("there").permissions().mode() & 0o7777
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("ours");
}

/// Whether it was possible.
fn give_away(path: &Path) -> bool {
    chown(path, Some(NOBODY), None).is_ok()
}

fn refused(result: Result<Folder, Error>) -> String {
    result.expect_err("refused").to_string()
}

#[test]
fn what_is_made_is_for_its_user_alone() {
    let top = top();
    let folder = Folder::private(&top.path().join("a/b"), &[]).expect("made");
    let sub = folder.subfolder("c/d").expect("made");
    sub.open("new", Access::New).expect("made");
    sub.open("log", Access::Append).expect("made");
    sub.write_atomic("record", b"one").expect("written");
    folder.write_atomic("c/d/record", b"two").expect("written");
    let _lock = folder.lock("lock").expect("free");
    for dir in ["a", "a/b", "a/b/c", "a/b/c/d"] {
        assert_eq!(mode(&top.path().join(dir)), 0o700, "{dir}");
    }
    for file in ["c/d/new", "c/d/log", "c/d/record", "lock"] {
        assert_eq!(mode(&folder.path().join(file)), 0o600, "{file}");
    }
    assert_eq!(sub.read("record", 3).expect("readable"), b"two");
    assert_eq!(sub.read("record", 2).expect_err("longer").kind(), io::ErrorKind::InvalidData);
    assert_eq!(folder.tightened(), None);
    folder.remove("c/d/record").expect("removed");
    folder.remove("c/d/record").expect("already");
    assert_eq!(sub.read("record", 9).expect_err("gone").kind(), io::ErrorKind::NotFound);
}

#[test]
fn a_folder_of_an_earlier_version_is_tightened_and_any_other_left_alone() {
    let top = top();
    let path = top.path().join("state");
    fs::create_dir(&path).expect("made");
    set_mode(&path, 0o755);
    assert_eq!(Folder::private(&path, &["lock"]).expect("empty").tightened(), Some(0o755));
    assert_eq!(mode(&path), 0o700);
    fs::write(path.join("letters"), "").expect("ours");
    set_mode(&path, 0o755);
    let words = refused(Folder::private(&path, &["lock"]));
    assert!(words.contains("(mode 0755) and holds other things"), "{words}");
    assert_eq!(mode(&path), 0o755);
    fs::write(path.join("lock"), "").expect("ours");
    set_mode(&path.join("lock"), 0o644);
    let folder = Folder::private(&path, &["lock"]).expect("one of ours");
    let _lock = folder.lock("lock").expect("free");
    assert_eq!((mode(&path), mode(&path.join("lock"))), (0o700, 0o600));
    let sub = path.join("sub");
    fs::create_dir(&sub).expect("made");
    set_mode(&sub, 0o755);
    folder.subfolder("sub").expect("ours");
    assert_eq!(mode(&sub), 0o700);
}

#[test]
fn a_folder_that_others_can_change_is_refused() {
    let top = top();
    let path = top.path().join("state");
    fs::create_dir(&path).expect("made");
    set_mode(&path, 0o777);
    let words = refused(Folder::private(&path, &[]));
    assert!(words.starts_with("every user can write to ") && words.contains("chmod go-rwx"), "{words}");
    set_mode(&path, 0o1777);
    assert!(refused(Folder::private(&path, &[])).starts_with("every user can write to "), "as /tmp itself");
    Folder::private(&path.join("mine"), &[]).expect("the sticky bit protects it");
    Folder::trusted(&path).expect("and what else is in it");
    assert!(refused(Folder::exclusive(&path)).starts_with("every user can write to "), "but anything may be beside it");
    set_mode(&path, 0o777);
    let words = refused(Folder::private(&path.join("mine"), &[]));
    assert!(words.contains("and so replace") && words.contains("chmod go-w"), "{words}");
}

#[test]
fn what_belongs_to_another_user_is_refused() {
    let top = top();
    let path = top.path().join("state");
    fs::create_dir(&path).expect("made");
    if !give_away(&path) {
        return;
    }
    let words = refused(Folder::private(&path, &[]));
    assert!(words.contains(" belongs to ") && words.contains("name another directory"), "{words}");
    let words = refused(Folder::private(&path.join("mine"), &[]));
    assert!(words.contains("who could replace "), "{words}");
    let folder = Folder::private(&top.path().join("own"), &[]).expect("made");
    fs::write(folder.path().join("planted"), "").expect("writable");
    assert!(give_away(&folder.path().join("planted")));
    assert!(matches!(folder.open("planted", Access::Append), Err(Error::Foreign { .. })));
    assert!(matches!(folder.lock("planted"), Err(LockError::Unusable(Error::Foreign { .. }))));
    fs::create_dir(folder.path().join("sub")).expect("made");
    assert!(give_away(&folder.path().join("sub")));
    assert!(matches!(folder.subfolder("sub"), Err(Error::Foreign { .. })));
}

#[test]
fn links_are_followed_on_the_way_only_if_this_user_or_root_made_them() {
    let top = top();
    fs::create_dir(top.path().join("disk")).expect("made");
    symlink("disk", top.path().join("link")).expect("made");
    let folder = Folder::private(&top.path().join("link/state"), &[]).expect("made");
    assert_eq!(folder.path(), top.path().canonicalize().expect("there").join("disk/state"));
    Folder::private(&top.path().join("link/../link/state"), &[]).expect("the same");
    symlink("loop", top.path().join("loop")).expect("made");
    assert!(matches!(Folder::private(&top.path().join("loop"), &[]), Err(Error::Io { .. })));
    if rustix::fs::chownat(
        rustix::fs::CWD,
        top.path().join("link"),
        Some(rustix::fs::Uid::from_raw(NOBODY)),
        None,
        AtFlags::SYMLINK_NOFOLLOW,
    )
    .is_ok()
    {
        assert!(matches!(Folder::private(&top.path().join("link/state"), &[]), Err(Error::Foreign { .. })));
    }
}

#[test]
fn links_and_other_things_in_place_of_a_file_are_refused() {
    let top = top();
    let folder = Folder::private(top.path(), &[]).expect("ours");
    let victim = top.path().join("victim");
    fs::write(&victim, "kept").expect("writable");
    symlink(&victim, top.path().join("link")).expect("made");
    fs::create_dir(top.path().join("dir")).expect("made");
    symlink("dir", top.path().join("dirlink")).expect("made");
    for access in [Access::Read, Access::Write, Access::Append] {
        assert!(matches!(folder.open("link", access), Err(Error::Link(_))), "{access:?}");
        assert!(matches!(folder.open("dirlink/file", access), Err(Error::Link(_))), "{access:?}");
    }
    assert!(matches!(folder.subfolder("dirlink"), Err(Error::Link(_))));
    folder.write_atomic("link", b"new").expect("in place of the link");
    assert_eq!(fs::read_to_string(&victim).expect("there"), "kept");
    fs::hard_link(&victim, top.path().join("second")).expect("made");
    assert!(matches!(folder.open("second", Access::Write), Err(Error::Linked(_))));
    let pipe = top.path().join("pipe");
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, FILE, 0).expect("made");
    assert!(matches!(folder.open("pipe", Access::Append), Err(Error::WrongType { .. })), "and does not wait");
    for name in ["", ".", "..", "../x", "/etc/passwd", "a/../b"] {
        assert_eq!(folder.open(name, Access::Read).expect_err("no name").kind(), io::ErrorKind::InvalidInput, "{name}");
    }
    fs::write(top.path().join("file"), "").expect("writable");
    assert!(matches!(Folder::private(&top.path().join("file"), &[]), Err(Error::WrongType { .. })));
}

#[test]
fn a_lock_names_its_holder() {
    let top = top();
    let folder = Folder::private(top.path(), &[]).expect("ours");
    let held = folder.lock("lock").expect("free");
    let error = folder.lock("lock").expect_err("held").to_string();
    assert_eq!(error, format!("in use by process {}", std::process::id()));
    drop(held);
    folder.lock("lock").expect("free again");
}

#[test]
fn replacing_a_file_leaves_no_temporary_one() {
    let top = top();
    let path = top.path().join("f");
    crate::file::write_atomic(&path, b"one").expect("written");
    crate::file::write_atomic(&path, b"two").expect("written");
    assert_eq!(fs::read(&path).expect("there"), b"two");
    assert_eq!((mode(&path), fs::metadata(&path).expect("there").nlink()), (0o600, 1));
    assert_eq!(fs::read_dir(top.path()).expect("there").count(), 1);
}

#[test]
fn a_file_is_believed_only_where_nobody_else_can_have_put_it() {
    let top = top();
    let folder = top.path().join("there");
    let file = folder.join("file");
    let read = || Folder::read_existing(&file, 9);
    assert!(matches!(read(), Ok(None)), "there is no folder");
    fs::create_dir(&folder).expect("made");
    set_mode(&folder, 0o755);
    assert!(matches!(read(), Ok(None)), "there is no file");
    fs::write(&file, "believed").expect("written");
    set_mode(&file, 0o444);
    assert_eq!(read().expect("ours").as_deref(), Some(b"believed".as_slice()));
    assert_eq!((mode(&folder), mode(&file)), (0o755, 0o444), "nothing is changed");
    set_mode(&file, 0o646);
    assert!(matches!(read(), Err(Error::Changeable { mode: 0o646, .. })));
    set_mode(&file, 0o644);
    fs::write(&file, "0123456789").expect("written");
    assert_eq!(read().expect_err("too long").kind(), io::ErrorKind::InvalidData);
    fs::hard_link(&file, folder.join("second")).expect("made");
    assert!(matches!(read(), Err(Error::Linked(_))));
    fs::remove_file(&file).expect("ours");
    symlink("second", &file).expect("made");
    assert!(matches!(read(), Err(Error::Link(_))));
    fs::remove_file(&file).expect("ours");
    rustix::fs::mknodat(rustix::fs::CWD, &file, rustix::fs::FileType::Fifo, FILE, 0).expect("made");
    assert!(matches!(read(), Err(Error::WrongType { .. })), "and does not wait");
    fs::remove_file(&file).expect("ours");
    fs::write(&file, "x").expect("written");
    set_mode(&folder, 0o1777);
    assert!(matches!(read(), Err(Error::Writable { .. })), "as /tmp");
    set_mode(&folder, 0o755);
    if give_away(&file) {
        assert!(matches!(read(), Err(Error::Foreign { .. })));
    }
}
