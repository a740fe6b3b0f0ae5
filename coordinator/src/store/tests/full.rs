//! Disks that are full, as real ones are: small file systems in memory, where this user may mount any.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use super::*;

/// A file system of 24 MiB in a folder, with a file that can be removed to make room.
struct SmallDisk(TempDir);

impl SmallDisk {
    /// `None`, with the reason on stderr, where this user may mount none.
    fn mount() -> Option<Self> {
        let dir = tempfile::tempdir().expect("a folder for temporary files");
        // A database server of another user looks into it.
        std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).expect("it is ours");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=24m", "tmpfs"]).arg(dir.path()).output();
        match mounted {
            Ok(output) if output.status.success() => {
                let disk = Self(dir);
                std::fs::write(disk.path().join("ballast"), vec![0; 12 << 20]).expect("there is room");
                Some(disk)
            }
            refused => {
                eprintln!("skipped: no file system can be mounted here: {refused:?}");
                None
            }
        }
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn make_room(&self) {
        std::fs::remove_file(self.path().join("ballast")).expect("it is there");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(self.path()).status();
    }
}

/// An appliance of 100 kB that does not compress.
fn large(n: u128) -> Record {
    let text: String = (0..100_000 / 32).map(|i| uuid::Uuid::from_u128(n << 64 | i).simple().to_string()).collect();
    let mut seed = n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mixed: String = text
        .chars()
        .map(|c| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            if c == '0' { char::from(b'a' + u8::try_from(seed >> 64 & 15).expect("small")) } else { c }
        })
        .collect();
    Record { labels: BTreeMap::from([("text".to_owned(), mixed)]), ..record(n, &format!("a{n}")) }
}

/// Fills the disk, looks at what is shown, makes room, and looks again.
async fn fills_up(home: &Home, disk: &SmallDisk) {
    let (store, _, _) = home.lead().await;
    assert_eq!(store.problem(), None);
    let mut accepted = 0;
    let refused = loop {
        assert!(accepted < 1_000, "nothing ever filled up");
        match store.submit(vec![StoreWrite::PutAppliance(large(accepted + 1).into())]).await {
            Ok(()) => accepted += 1,
            Err(error) => break error,
        }
    };
    assert_eq!(refused, Error::Unavailable(OutageCause::Full), "after {accepted}");
    let problem = store.problem().expect("it is shown");
    assert_eq!(problem.cause, OutageCause::Full);
    assert!(problem.to_string().starts_with("no space is left on its disk (since "), "{problem}");
    disk.make_room();
    until_async(async || store.submit(vec![StoreWrite::PutAppliance(large(5_000).into())]).await.is_ok()).await;
    assert_eq!(store.problem(), None, "a write succeeded");
    store.close().await;
    let (store, _, loaded) = home.lead().await;
    assert_eq!(loaded.records.len() as u128, accepted + 1, "what was accepted is there");
    store.close().await;
}

#[tokio::test]
async fn a_full_disk_below_a_file_is_told_until_a_write_succeeds() {
    let Some(disk) = SmallDisk::mount() else { return };
    let dir = tempfile::tempdir().expect("a folder for temporary files");
    let home = Home::at(dir, format!("sqlite:{}", disk.path().join("rug.db").display()));
    fills_up(&home, &disk).await;
}

#[tokio::test]
async fn a_full_disk_of_a_server_is_told_until_a_write_succeeds() {
    let Some(disk) = SmallDisk::mount() else { return };
    let url = servers::new_database(DatabaseKind::Postgres).await;
    let name = url.rsplit('/').next().expect("it ends with the name").to_owned();
    let space = disk.path().join("space");
    std::fs::create_dir(&space).expect("there is room");
    let owned = ["postgres", "nobody"]
        .iter()
        .any(|user| Command::new("chown").arg(user).arg(&space).status().is_ok_and(|status| status.success()));
    assert!(owned, "the server runs as one of these");
    let dir = tempfile::tempdir().expect("a folder for temporary files");
    let admin = Home::at(dir, url.replace(&format!("/{name}"), "/postgres"));
    admin.sql(&format!("CREATE TABLESPACE small_{name} LOCATION '{}'", space.display())).await;
    admin.sql(&format!("ALTER DATABASE {name} SET TABLESPACE small_{name}")).await;
    let home = Home::at(tempfile::tempdir().expect("a folder for temporary files"), url);
    fills_up(&home, &disk).await;
    // Before the file system goes away.
    until_async(async || {
        let db = admin.raw().await;
        let moved = db.execute_unprepared(&format!("DROP DATABASE {name} WITH (FORCE)")).await;
        db.close().await.expect("nothing is under way");
        moved.is_ok()
    })
    .await;
    admin.sql(&format!("DROP TABLESPACE small_{name}")).await;
}
