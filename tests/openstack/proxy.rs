//! A proxy before a service of OpenStack that loses answers, holds calls back, answers in its place, and notes every call.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::sleep;

/// Largest call that is passed on.
const MAX_CALL: usize = 1024 * 1024;

/// What is done to a call.
#[derive(Clone, Debug)]
pub(crate) enum Deed {
    /// It is passed on, and its answer is not.
    LoseAnswer,
    /// It is passed on after this, whether its caller is still there or not.
    Hold(Duration),
    /// It is not passed on, and answered so.
    Answer(u16, &'static str),
}

#[derive(Clone, Debug)]
struct Rule {
    method: &'static str,
    /// How its path begins.
    path: &'static str,
    deed: Deed,
    times: usize,
}

#[derive(Default)]
struct Shared {
    rules: Mutex<Vec<Rule>>,
    calls: Mutex<Vec<String>>,
}

/// A running proxy; ends when dropped. Calls that it holds back are passed on all the same.
pub(crate) struct HttpProxy {
    pub(crate) port: u16,
    shared: Arc<Shared>,
    accepting: JoinHandle<()>,
}

impl HttpProxy {
    pub(crate) async fn before(upstream: u16) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.context("no port")?;
        let port = listener.local_addr()?.port();
        let shared = Arc::new(Shared::default());
        let served = Arc::clone(&shared);
        let accepting = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let shared = Arc::clone(&served);
                tokio::spawn(async move { drop(serve(stream, upstream, &shared).await) });
            }
        });
        Ok(Self { port, shared, accepting })
    }

    /// Does this to the next calls of that method and path.
    pub(crate) fn next(&self, times: usize, method: &'static str, path: &'static str, deed: Deed) {
        let rule = Rule { method, path, deed, times };
        self.shared.rules.lock().unwrap_or_else(PoisonError::into_inner).push(rule);
    }

    /// Calls that came, as `POST /v2.1/servers`.
    pub(crate) fn calls(&self, method_and_path: &str) -> usize {
        let calls = self.shared.calls.lock().unwrap_or_else(PoisonError::into_inner);
        calls.iter().filter(|call| call.split('?').next() == Some(method_and_path)).count()
    }

    /// How many calls came.
    pub(crate) fn all_calls(&self) -> usize {
        self.shared.calls.lock().unwrap_or_else(PoisonError::into_inner).len()
    }
}

impl Drop for HttpProxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl Shared {
    fn deed(&self, method: &str, path: &str) -> Option<Deed> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner).push(format!("{method} {path}"));
        let mut rules = self.rules.lock().unwrap_or_else(PoisonError::into_inner);
        let rule =
            rules.iter_mut().find(|rule| rule.times > 0 && rule.method == method && path.starts_with(rule.path))?;
        rule.times -= 1;
        Some(rule.deed.clone())
    }
}

/// One call over one connection, in both directions.
async fn serve(mut client: TcpStream, upstream: u16, shared: &Shared) -> Result<()> {
    let mut call = Vec::new();
    let head = loop {
        let mut piece = [0; 16 * 1024];
        let read = client.read(&mut piece).await?;
        anyhow::ensure!(read > 0 && call.len() < MAX_CALL, "no whole call");
        call.extend_from_slice(&piece[..read]);
        if let Some(end) = call.windows(4).position(|four| four == b"\r\n\r\n") {
            break end + 4;
        }
    };
    let text = String::from_utf8_lossy(&call[..head]).into_owned();
    let mut first = text.split_whitespace();
    let (method, path) = (first.next().context("no method")?, first.next().context("no path")?);
    let length = text.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
    });
    let whole = head + length.unwrap_or_default();
    while call.len() < whole {
        let mut piece = [0; 16 * 1024];
        let read = client.read(&mut piece).await?;
        anyhow::ensure!(read > 0 && call.len() < MAX_CALL, "no whole call");
        call.extend_from_slice(&piece[..read]);
    }
    let deed = shared.deed(method, path);
    match &deed {
        Some(Deed::Hold(wait)) => sleep(*wait).await,
        Some(Deed::Answer(status, body)) => {
            let answer = format!(
                "HTTP/1.1 {status} X\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
                body.len()
            );
            return Ok(client.write_all(answer.as_bytes()).await?);
        }
        Some(Deed::LoseAnswer) | None => {}
    }
    let mut server = TcpStream::connect(("127.0.0.1", upstream)).await?;
    // One call for each connection, so that the end of the answer is the end of the connection.
    let line_end = text.find("\r\n").context("no line")? + 2;
    server.write_all(&call[..line_end]).await?;
    server.write_all(b"connection: close\r\n").await?;
    server.write_all(&call[line_end..]).await?;
    let mut answer = Vec::new();
    server.read_to_end(&mut answer).await?;
    if matches!(deed, Some(Deed::LoseAnswer)) {
        return Ok(());
    }
    Ok(client.write_all(&answer).await?)
}
