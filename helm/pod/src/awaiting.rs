//! Waiting for coordinators of one revision.
//!
//! Workers of a release start once every coordinator is of that release: a newer coordinator knows what an older worker says, and not the
//! other way round. All coordinators are found by one name in DNS, that of their headless service; each answers `/readyz` with the
//! revision that its pod was given. What DNS still has of one that is gone does not answer, and is asked again.

use std::collections::BTreeSet;
use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use serde::Deserialize;
use tokio::time::Instant;

/// Where a coordinator says which it is (`runtime::meter::probe`).
const PATH: &str = "/readyz";

/// Pause between two rounds.
const EVERY: Duration = Duration::from_secs(1);

/// How long an answer may take.
const ANSWER: Duration = Duration::from_secs(3);

/// They were not of that revision in time.
#[derive(Debug, thiserror::Error)]
#[error("after {} {missing}", humantime::format_duration(*.after))]
pub struct TimedOut {
    after: Duration,
    missing: Missing,
}

/// What is waited for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Missing {
    /// There is no coordinator.
    NoAddress(String),
    /// One of them does not answer.
    NoAnswer(SocketAddr, String),
    /// One is of another revision.
    OtherRevision(SocketAddr, String),
    /// One answers no calls.
    NotReady(SocketAddr),
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoAddress(problem) => write!(f, "there is no coordinator: {problem}"),
            Self::NoAnswer(at, problem) => write!(f, "the coordinator at {at} does not answer: {problem}"),
            Self::OtherRevision(at, found) => write!(f, "the coordinator at {at} is of revision `{found}`"),
            Self::NotReady(at) => write!(f, "the coordinator at {at} answers no calls"),
        }
    }
}

/// What a coordinator says of itself.
#[derive(Debug, Deserialize)]
struct Answer {
    ready: bool,
    #[serde(default)]
    revision: String,
}

/// Waits until every coordinator at `address` is of that revision and ready. Says on stderr what it waits for, as that changes.
///
/// # Errors
/// [`TimedOut`].
pub async fn coordinators(address: &str, revision: &str, timeout: Duration) -> Result<(), TimedOut> {
    let deadline = Instant::now() + timeout;
    let client = reqwest::Client::builder().timeout(ANSWER).no_proxy().build().unwrap_or_default();
    let mut shown = None;
    loop {
        match look(&client, address, revision).await {
            Ok(count) => {
                eprintln!("all coordinators ({count}) are ready, of revision {revision}");
                return Ok(());
            }
            Err(missing) if Instant::now() >= deadline => return Err(TimedOut { after: timeout, missing }),
            Err(missing) => {
                if shown.as_ref() != Some(&missing) {
                    eprintln!("waiting: {missing}");
                }
                shown = Some(missing);
            }
        }
        tokio::time::sleep_until(deadline.min(Instant::now() + EVERY)).await;
    }
}

/// How many there are, once all of them are as they should be.
async fn look(client: &reqwest::Client, address: &str, revision: &str) -> Result<usize, Missing> {
    let resolved = tokio::time::timeout(ANSWER, tokio::net::lookup_host(address)).await;
    let found: BTreeSet<SocketAddr> = match resolved {
        Ok(Ok(found)) => found.collect(),
        Ok(Err(error)) => return Err(Missing::NoAddress(error.to_string())),
        Err(_) => return Err(Missing::NoAddress("DNS does not answer".to_owned())),
    };
    if found.is_empty() {
        return Err(Missing::NoAddress(format!("{address} has no address")));
    }
    for at in &found {
        let failed = |error: reqwest::Error| Missing::NoAnswer(*at, runtime::tls::chain(&error));
        // Also a coordinator that is not ready answers, with 503.
        let response = client.get(format!("http://{at}{PATH}")).send().await.map_err(failed)?;
        let answer: Answer = response.json().await.map_err(failed)?;
        if answer.revision != revision {
            return Err(Missing::OtherRevision(*at, answer.revision));
        }
        if !answer.ready {
            return Err(Missing::NotReady(*at));
        }
    }
    Ok(found.len())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    /// Gives one answer after the other, and the last one again and again.
    async fn answering(answers: Vec<&'static str>) -> (SocketAddr, Arc<AtomicUsize>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let asked = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&asked);
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.expect("accepted");
                let at = count.fetch_add(1, Ordering::SeqCst).min(answers.len() - 1);
                let mut request = [0; 1024];
                let _ = stream.read(&mut request).await;
                let body = answers[at];
                let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
                let _ = stream.write_all(format!("{head}{body}").as_bytes()).await;
            }
        });
        (address, asked)
    }

    #[tokio::test]
    async fn a_worker_waits_for_the_revision_and_for_readiness() {
        let older = r#"{"ready": true, "revision": "1"}"#;
        let starting = r#"{"ready": false, "revision": "2"}"#;
        let (address, asked) = answering(vec![older, starting, r#"{"ready": true, "revision": "2"}"#]).await;
        coordinators(&address.to_string(), "2", Duration::from_secs(60)).await.expect("ready in the end");
        assert_eq!(asked.load(Ordering::SeqCst), 3);
    }

    #[tokio::test]
    async fn a_worker_that_waits_in_vain_says_what_for() {
        let (address, _) = answering(vec![r#"{"ready": true, "revision": "1"}"#]).await;
        let error = coordinators(&address.to_string(), "2", Duration::ZERO).await.expect_err("another revision");
        assert_eq!(error.to_string(), format!("after 0s the coordinator at {address} is of revision `1`"));
        let error = coordinators("127.0.0.1:1", "2", Duration::ZERO).await.expect_err("nobody");
        assert!(error.to_string().contains("does not answer"), "{error}");
    }
}
