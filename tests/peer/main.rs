//! Comparisons with real peers: whoever shares a group with Rug must come to the same owners.
//!
//! Needs Python 3 and a package index. Where these are missing, `RUG_SKIP_PEER=1` skips the comparisons, and the
//! committed vectors in `tests/vectors` still hold.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use common::WorkerId;
use common::ring::{Ring, position};
use servers::python::{Python, is_skipped};
use uuid::Uuid;

const KEYS: usize = 100_000;

/// Key `i`, as `owners.py` makes it.
fn key(i: usize) -> String {
    Uuid::from_u128(position(&format!("rug-peer-{i}"))).as_hyphenated().to_string()
}

fn hosts(count: usize, weight: impl Fn(usize) -> u32) -> Vec<(String, u32)> {
    (0..count).map(|i| (format!("rug-host-{i:04}.example"), weight(i))).collect()
}

#[tokio::test]
async fn a_hundred_thousand_keys_have_the_owners_that_tooz_names() -> Result<()> {
    if is_skipped() {
        return Ok(());
    }
    let sets = [
        hosts(1, |_| 1),
        hosts(10, |_| 1),
        hosts(37, |i| 1 + i as u32 % 4),
        hosts(100, |_| 1),
        vec![("rug-a:4711".into(), 1), ("rug-b:4711".into(), 2), ("rug-c:4711".into(), 16)],
        // Members whose points meet: in the order of names, the later one has them.
        vec![("w".into(), 1), ("ww".into(), 1), ("www".into(), 2), ("x".into(), 1)],
    ];
    let python = Python::prepare(env!("CARGO_TARGET_TMPDIR"))
        .await
        .context("RUG_SKIP_PEER=1 skips the comparison with python-tooz")?;
    let task = serde_json::json!({ "keys": KEYS, "sets": sets }).to_string();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/peer/owners.py");
    let answer = python.run(&[script], &task, Duration::from_secs(300)).await?;
    let keys: Vec<String> = (0..KEYS).map(key).collect();
    let mut lines = answer.lines();
    for (number, set) in sets.iter().enumerate() {
        let names: Vec<WorkerId> = set.iter().map(|(name, _)| WorkerId::new(name)).collect::<Result<_, _>>()?;
        let ring = Ring::build(names.iter().cloned().zip(set.iter().map(|(_, weight)| *weight)));
        let owners: Vec<usize> = lines
            .next()
            .with_context(|| format!("tooz answered for {number} sets only"))?
            .split(' ')
            .map(str::parse)
            .collect::<Result<_, _>>()?;
        ensure!(owners.len() == KEYS, "tooz answered for {} keys of set {number}", owners.len());
        for (key, owner) in keys.iter().zip(owners) {
            assert_eq!(ring.owner(key), Some(&names[owner]), "set {number}, key {key}");
            assert_eq!(ring.owner_at(position(key)), Some(&names[owner]), "set {number}, key {key}");
        }
    }
    Ok(())
}
