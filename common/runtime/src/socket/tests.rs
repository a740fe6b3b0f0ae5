use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use super::*;

#[test]
fn a_path_is_read_in_every_spelling() {
    let path = |address: &str| path_of(address).map(|path| path.display().to_string());
    assert_eq!(path("unix:/run/s").as_deref(), Some("/run/s"));
    assert_eq!(path("unix:///run/s").as_deref(), Some("/run/s"));
    assert_eq!(path("unix:a/s").as_deref(), Some("a/s"));
    for other in ["unix:", "unix://", "http://h", "/run/s", "unix:a\0b"] {
        assert_eq!(path(other), None, "{other}");
    }
}

#[tokio::test]
async fn a_socket_is_for_its_user_and_goes_with_its_listener() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("made/s");
    let listener = LocalListener::bind(&path).expect("bound");
    assert_eq!(fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o600);
    assert_eq!(fs::metadata(path.parent().expect("a folder")).expect("there").permissions().mode() & 0o777, 0o700);
    let (client, server) = tokio::join!(connect(&path, TrustedServer::OwnOrRoot), listener.accept());
    let client = client.expect("connected");
    let seen = LocalUser::of(&server.expect("accepted")).expect("known");
    assert_eq!((seen.uid, seen.pid), (geteuid().as_raw(), Some(std::process::id() as i32)));
    assert!(seen.is_own_or_root());
    assert_eq!(LocalUser::of(&client).expect("known").uid, seen.uid);
    drop(listener);
    let words = connect(&path, TrustedServer::OwnOrRoot).await.expect_err("gone").to_string();
    assert!(words.starts_with("there is no socket at ") && !path.exists(), "{words}");
}

#[tokio::test]
async fn a_left_over_is_replaced_and_a_socket_in_use_is_not() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("s");
    drop(std::os::unix::net::UnixListener::bind(&path).expect("bound"));
    let left_over = fs::metadata(&path).expect("it stays").ino();
    let words = connect(&path, TrustedServer::OwnOrRoot).await.expect_err("nobody listens").to_string();
    assert!(words.starts_with("no server listens at "), "{words}");
    let listener = LocalListener::bind(&path).expect("replaced");
    let inode = fs::metadata(&path).expect("there").ino();
    let second = LocalListener::bind(&path).expect_err("in use");
    assert!(second.to_string().ends_with(&format!("in use by process {}", std::process::id())), "{second}");
    assert_eq!(fs::metadata(&path).expect("there").ino(), inode);
    connect(&path, TrustedServer::OwnOrRoot).await.expect("still served");
    drop(listener);
    let _ = left_over;
    fs::write(&path, "mine").expect("writable");
    assert!(matches!(LocalListener::bind(&path), Err(BindError::NoSocket(_))));
    assert_eq!(fs::read_to_string(&path).expect("left alone"), "mine");
}

#[tokio::test]
async fn long_paths_work() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("a".repeat(100)).join("b".repeat(100)).join("s");
    let listener = LocalListener::bind(&path).expect("bound");
    let (client, server) = tokio::join!(connect(&path, TrustedServer::OwnOrRoot), listener.accept());
    client.expect("connected");
    server.expect("accepted");
    drop(listener);
    assert!(!path.exists());
}

#[tokio::test]
async fn a_folder_in_which_others_can_replace_the_socket_is_refused() {
    let dir = tempfile::tempdir().expect("a folder");
    let open = dir.path().join("open");
    fs::create_dir(&open).expect("made");
    fs::set_permissions(&open, fs::Permissions::from_mode(0o777)).expect("ours");
    let words = LocalListener::bind(&open.join("s")).expect_err("refused").to_string();
    assert!(words.contains("every user can write to") && words.contains("chmod go-w"), "{words}");
}

#[tokio::test]
async fn a_server_of_another_user_is_trusted_by_root_alone_and_only_if_it_was_named() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("s");
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).expect("ours");
    let at = path.clone();
    // Only this thread becomes another user.
    let bound = std::thread::spawn(move || {
        let nobody = rustix::fs::Uid::from_raw(65_534);
        rustix::thread::set_thread_res_uid(nobody, nobody, nobody).ok()?;
        std::os::unix::net::UnixListener::bind(at).ok()
    });
    // Not possible but for root.
    let Some(_listener) = bound.join().expect("no panic") else { return };
    let refused = connect(&path, TrustedServer::OwnOrRoot).await.expect_err("refused").to_string();
    assert!(refused.contains("belongs to nobody, and is trusted with nothing of"), "{refused}");
    connect(&path, TrustedServer::Named).await.expect("root was sent there");
}
