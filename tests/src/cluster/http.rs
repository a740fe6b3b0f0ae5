//! An HTTP client that is as simple as tests need it: one connection, answers with a length.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

/// How long one request may take.
const LIMIT: Duration = Duration::from_secs(5);

/// A connection that is kept open.
#[derive(Debug)]
pub struct HttpConnection(BufReader<TcpStream>);

impl HttpConnection {
    /// Connects.
    ///
    /// # Errors
    /// When nobody answers there.
    pub async fn open(port: u16) -> Result<Self> {
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let stream = tokio::time::timeout(LIMIT, TcpStream::connect(address)).await.context("connect: timed out")?;
        Ok(Self(BufReader::new(stream.with_context(|| format!("connect to {address}"))?)))
    }

    /// The body of `GET /`.
    ///
    /// # Errors
    /// When the connection ends, or the answer is not 200.
    pub async fn get(&mut self) -> Result<String> {
        self.get_page("/", "*/*").await
    }

    async fn get_page(&mut self, path: &str, accept: &str) -> Result<String> {
        tokio::time::timeout(LIMIT, self.exchange(path, accept)).await.context("no answer in time")?
    }

    async fn exchange(&mut self, path: &str, accept: &str) -> Result<String> {
        let request = format!("GET {path} HTTP/1.1\r\nhost: test\r\naccept: {accept}\r\n\r\n");
        self.0.write_all(request.as_bytes()).await?;
        let (mut line, mut length) = (String::new(), 0);
        self.0.read_line(&mut line).await?;
        ensure!(line.starts_with("HTTP/1.1 200"), "answered {:?}", line.trim());
        loop {
            line.clear();
            ensure!(self.0.read_line(&mut line).await? > 0, "the connection ended within an answer");
            match line.trim().split_once(':') {
                Some((name, value)) if name.eq_ignore_ascii_case("content-length") => length = value.trim().parse()?,
                Some(_) => {}
                None => break,
            }
        }
        let mut body = vec![0; length];
        self.0.read_exact(&mut body).await?;
        Ok(String::from_utf8(body)?)
    }
}

/// The body of another page, over a new connection.
///
/// # Errors
/// When nobody answers with 200 there.
pub async fn page(port: u16, path: &str) -> Result<String> {
    HttpConnection::open(port).await?.get_page(path, "*/*").await
}

/// The metrics of a process in the format that Prometheus asks for first.
///
/// # Errors
/// When nobody answers with 200 there.
pub async fn openmetrics(port: u16) -> Result<String> {
    let accept = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.2";
    HttpConnection::open(port).await?.get_page("/metrics", accept).await
}

/// The body of `GET /` over a new connection.
///
/// # Errors
/// When nobody answers with 200 there.
pub async fn get(port: u16) -> Result<String> {
    HttpConnection::open(port).await?.get().await
}
