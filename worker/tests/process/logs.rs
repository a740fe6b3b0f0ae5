//! The log of an instance is bounded while it is written, alone and with all others of its host.

use std::fs;

use common::inquiry::{LogPart, LogQuery, MAX_LOG_PART};

use super::*;

/// Sizes of the logs of the instance, by name.
fn sizes(folder: &Path) -> Vec<(String, u64)> {
    let mut found: Vec<_> = fs::read_dir(folder)
        .expect("readable")
        .flatten()
        .map(|entry| (entry.file_name().to_string_lossy().into_owned(), entry.metadata().map_or(0, |meta| meta.len())))
        .filter(|(name, _)| name.starts_with("log"))
        .collect();
    found.sort();
    found
}

const KIB: u64 = 1024;

#[tokio::test]
async fn a_log_is_rotated_while_its_instance_runs() {
    let world = DriverWorld::new();
    let driver = open("w1", Config { log_limit: 64 * KIB, log_files: 2, log_quota: 1024 * KIB, ..world.config() });
    let spec = shell("head -c 1000000 /dev/zero | tr '\\0' 'x'; echo; echo end; exec sleep 1000");
    let made = driver.ensure(&permit(1), first(&spec)).await.expect("starts");
    let folder = world.instance_folder();
    let log = folder.join("log");
    until("all was written", || fs::read_to_string(&log).is_ok_and(|text| text.ends_with("end\n"))).await;
    let sizes = sizes(&folder);
    let names: Vec<&str> = sizes.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["log", "log.1", "log.2"]);
    assert!(sizes.iter().all(|(_, size)| *size <= 64 * KIB), "{sizes:?}");
    assert_eq!(open_to_others(world.folder.path()), [] as [String; 0]);
    assert!(made.details.pid().is_some_and(runs), "its output holds it up as little as the end of a log");
    driver.destroy(&permit(1), &made, StopRecipe::default()).await.expect("ends");
}

#[tokio::test]
async fn all_logs_of_a_host_have_one_bound() {
    let world = DriverWorld::new();
    let quota = 300 * KIB;
    let driver = open("w1", Config { log_limit: 100 * KIB, log_files: 10, log_quota: quota, ..world.config() });
    // What another appliance has put aside goes first.
    let other = world.folder.path().join("instances").join(common::ApplianceId::from_u128(0xb).to_string()).join("0");
    fs::create_dir_all(&other).expect("writable");
    for name in ["log", "log.1"] {
        fs::write(other.join(name), vec![b'o'; 200 * 1024]).expect("writable");
    }
    let spec = shell("head -c 2000000 /dev/zero | tr '\\0' 'x'; echo done >&2; exec sleep 1000");
    let made = driver.ensure(&permit(1), first(&spec)).await.expect("starts");
    let shim = world.instance_folder().join("shim");
    until("output was dropped, and counted", || {
        fs::metadata(other.join("log.1")).is_err()
            && fs::read_to_string(&shim).is_ok_and(|state| state.contains("dropped="))
    })
    .await;
    let sum: u64 =
        [&other, &world.instance_folder()].iter().flat_map(|folder| sizes(folder)).map(|(_, size)| size).sum();
    // Each instance may have 64 KiB whatever the others have.
    assert!(sum <= quota + 64 * KIB, "{sum} bytes");
    assert!(other.join("log").exists() && made.details.pid().is_some_and(runs));
    driver.destroy(&permit(1), &made, StopRecipe::default()).await.expect("ends");
}

fn query(place: &str) -> LogQuery {
    LogQuery { appliance: A, driver: None, ordinal: 0, place: place.into(), tail: None, since: None, previous: false }
}

/// Reads from a place on until there is no more.
async fn read(driver: &ProcessDriver, query: &LogQuery) -> (String, LogPart) {
    let (mut text, mut query) = (String::new(), query.clone());
    loop {
        let part = driver.read_log(&query).await.expect("readable");
        assert!(part.data.len() <= MAX_LOG_PART);
        text.push_str(std::str::from_utf8(&part.data).expect("text"));
        query.place.clone_from(&part.place);
        if !part.more {
            return (text, part);
        }
    }
}

#[tokio::test]
async fn a_log_is_read_in_parts_over_its_rotations() {
    let world = DriverWorld::new();
    let driver = open("w1", Config { log_limit: 64 * KIB, log_files: 8, log_quota: 1024 * KIB, ..world.config() });
    let (go, log) = (world.folder.path().join("go"), world.instance_folder().join("log"));
    let spec = shell(&format!(
        "echo begin; while ! [ -e {0} ]; do sleep 0.05; done; seq 1 40000; echo end; exec sleep 1000",
        go.display()
    ));
    let empty = driver.read_log(&query("")).await.expect("there is none yet");
    assert_eq!((empty.data.len(), empty.place.as_str(), empty.more), (0, "", false));
    let made = driver.ensure(&permit(1), first(&spec)).await.expect("starts");
    until("it prints", || fs::read_to_string(&log).is_ok_and(|text| text == "begin\n")).await;
    let (text, begin) = read(&driver, &query("")).await;
    assert_eq!((text.as_str(), begin.lost), ("begin\n", false));

    // What is put aside while nobody reads is read all the same, each line once.
    fs::write(&go, "").expect("writable");
    until("all was written", || fs::read_to_string(&log).is_ok_and(|text| text.ends_with("end\n"))).await;
    assert!(world.instance_folder().join("log.2").exists(), "there were rotations");
    let (text, last) = read(&driver, &query(&begin.place)).await;
    let expected: String = (1..=40_000).map(|n| format!("{n}\n")).collect();
    assert_eq!(text, format!("{expected}end\n"));
    assert_eq!(read(&driver, &query(&last.place)).await.0, "", "there is no more");
    assert_eq!(read(&driver, &LogQuery { tail: Some(2), ..query("") }).await.0, "40000\nend\n");
    assert!(read(&driver, &LogQuery { previous: true, ..query("") }).await.0.starts_with("begin\n1\n"));

    // What is not kept any more is missing, and that is said.
    let lost = driver.read_log(&query("1:0")).await.expect("readable");
    assert!(lost.lost && !lost.data.is_empty());
    let since = |time| LogQuery { since: Some(time), ..query("") };
    assert!(read(&driver, &since(Duration::from_secs(3_600))).await.0.starts_with("begin\n1\n"));
    assert_eq!(read(&driver, &since(Duration::ZERO)).await.0, "");
    driver.destroy(&permit(1), &made, StopRecipe::default()).await.expect("ends");
}
