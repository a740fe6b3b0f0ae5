//! A scraper over HTTP.

use super::*;

fn meters() -> Arc<Meters> {
    let program = Program { name: "rug-test", instance: "test-1" };
    Arc::new(Meters::new(program, &ExportConfig::default()).expect("builds"))
}

#[tokio::test]
async fn silent_connections_keep_no_scraper_out_for_long() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let metrics = meters();
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    let closing = CancellationToken::new();
    let server = tokio::spawn(serve(listener, metrics, closing.clone()));
    let mut silent = Vec::new();
    for _ in 0..100 {
        silent.push(tokio::net::TcpStream::connect(address).await.expect("connected"));
    }
    drop(silent.split_off(50));
    let mut stream = tokio::net::TcpStream::connect(address).await.expect("connected");
    stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n").await.expect("sent");
    let mut start = [0; 15];
    tokio::time::timeout(Duration::from_secs(30), stream.read_exact(&mut start)).await.expect("in time").expect("read");
    assert_eq!(&start, b"HTTP/1.1 200 OK");
    closing.cancel();
    server.await.expect("it ends");
}

#[tokio::test]
async fn prometheus_reads_it_over_http_until_the_program_stops() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let metrics = meters();
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    let closing = CancellationToken::new();
    let server = tokio::spawn(serve(listener, metrics, closing.clone()));
    let ask = async |path: &str| {
        let mut stream = tokio::net::TcpStream::connect(address).await.expect("it listens");
        let request = format!("GET {path} HTTP/1.1\r\nHost: rug\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.expect("it reads");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("it answers");
        answer
    };
    let answer = ask("/metrics").await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("text/plain; version=0.0.4"), "{answer}");
    assert!(answer.contains("\nrug_build_info{"), "{answer}");
    assert!(ask("/").await.starts_with("HTTP/1.1 404"));
    // One that never says what it wants does not hold the stop up.
    let idle = tokio::net::TcpStream::connect(address).await.expect("it listens");
    closing.cancel();
    tokio::time::timeout(Duration::from_secs(20), server).await.expect("it stops").expect("in order");
    drop(idle);
}
