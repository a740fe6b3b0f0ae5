//! Python with the packages that tests compare with.

use std::time::Duration;

use anyhow::{Context, Result};
use servers::python::{Python, is_skipped};
use servers::zookeeper::{Options, Standalone};

const SOON: Duration = Duration::from_secs(60);

async fn python() -> Result<Option<Python>> {
    if is_skipped() {
        return Ok(None);
    }
    Python::prepare(env!("CARGO_TARGET_TMPDIR")).await.map(Some).context("RUG_SKIP_PEER=1 skips what needs Python")
}

#[tokio::test]
async fn two_that_ask_at_once_get_the_same_environment() -> Result<()> {
    let (one, other) = tokio::join!(python(), python());
    assert_eq!(one?.map(|one| one.program().to_owned()), other?.map(|other| other.program().to_owned()));
    Ok(())
}

#[tokio::test]
async fn tooz_joins_a_group_in_zookeeper() -> Result<()> {
    const CODE: &str = "
import sys
from tooz import coordination
member = coordination.get_coordinator('zookeeper://' + sys.argv[1], sys.argv[2].encode())
member.start(start_heart=True)
member.join_group_create(b'workers')
print('joined')
for line in sys.stdin:
    print(sorted(m.decode() for m in member.get_members(b'workers').get()))
";
    let Some(python) = python().await? else { return Ok(()) };
    let server = Standalone::start(Options::default()).await?;
    let mut members = Vec::new();
    for name in ["one", "two"] {
        let mut member = python.spawn(CODE, &[&server.connect_string(), name])?;
        assert_eq!(member.line(SOON).await?, "joined");
        members.push(member);
    }
    members[0].say("who is there?").await?;
    assert_eq!(members[0].line(SOON).await?, "['one', 'two']");
    members[1].pause()?;
    members[1].resume()?;
    members[1].kill().await?;
    assert!(members[1].line(SOON).await.is_err(), "it was killed");
    Ok(())
}

#[tokio::test]
async fn a_script_ends_with_what_it_says_or_why_it_failed() -> Result<()> {
    let Some(python) = python().await? else { return Ok(()) };
    let said = python.script("import sys\nprint(sys.argv[1])\nprint('two')", &["one"], SOON).await?;
    assert_eq!(said, "one\ntwo\n");
    let failed = python.script("raise SystemExit('no luck')", &[], SOON).await;
    assert!(format!("{:#}", failed.expect_err("it fails")).contains("no luck"));
    let slow = python.script("import time\ntime.sleep(600)", &[], Duration::from_millis(300)).await;
    assert!(format!("{:#}", slow.expect_err("it takes too long")).contains("took over"));
    Ok(())
}
