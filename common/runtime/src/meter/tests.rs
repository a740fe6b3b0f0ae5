//! A scraper over HTTP.

use super::*;

pub(super) fn meters() -> Arc<Meters> {
    let program = Program { name: "rug-test", instance: "test-1" };
    Arc::new(Meters::new(program, &ExportConfig::default()).expect("builds"))
}

#[test]
fn the_catalogue_of_every_process_is_what_is_shown_and_documented() {
    let groups = [reference::of_every_process()];
    assert_eq!(reference::lint(&groups), Vec::<String>::new());
    let repository = std::path::Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."));
    reference::check(repository, "every process", &groups).unwrap_or_else(|problem| panic!("{problem}"));
}

#[tokio::test]
async fn a_process_shows_all_that_it_measures_of_itself() {
    let text = meters().text().expect("shows");
    let shown: String = text.lines().filter(|line| !line.contains("test_")).map(|line| format!("{line}\n")).collect();
    assert_eq!(reference::differences(&shown, &[reference::of_every_process()], &[]), Vec::<String>::new(), "{text}");
}

#[test]
fn queues_show_how_full_they_are() {
    static DEPTH: catalogue::Metric =
        catalogue::Metric::gauge("test.depth", catalogue::Unit::Things("{item}"), "Items that wait.")
            .by(&[catalogue::Label::fixed("queue", &["a"])]);
    static CAPACITY: catalogue::Metric =
        catalogue::Metric::gauge("test.capacity", catalogue::Unit::Things("{item}"), "Items that may wait.")
            .by(&[catalogue::Label::fixed("queue", &["a"])]);
    let (meters, watch) = (meters(), QueueWatch::default());
    watch.start(&meters.meter(), &DEPTH, &CAPACITY);
    let (sender, mut receiver) = tokio::sync::mpsc::channel(8);
    watch.add("a", &sender);
    sender.try_send(1).expect("room");
    sender.try_send(2).expect("room");
    let text = meters.text().expect("shows");
    assert!(text.contains("test_depth{queue=\"a\"} 2\n") && text.contains("test_capacity{queue=\"a\"} 8\n"), "{text}");
    drop(sender);
    assert_eq!((receiver.try_recv(), receiver.try_recv()), (Ok(1), Ok(2)));
    assert!(receiver.is_closed() || receiver.try_recv().is_err(), "who watches keeps no queue open");
    assert!(!meters.text().expect("shows").contains("test_depth{"), "it is gone");
}

#[tokio::test]
async fn silent_connections_keep_no_scraper_out_for_long() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let metrics = meters();
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    let closing = CancellationToken::new();
    let server = tokio::spawn(serve(listener, metrics, Probe::new("rug-test", || true), closing.clone()));
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
    let server = tokio::spawn(serve(listener, metrics, Probe::new("rug-test", || true), closing.clone()));
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
    let answer = ask("/metrics HTTP/1.1\r\nAccept: application/openmetrics-text;version=1.0.0,text/plain\r\nX: ").await;
    assert!(answer.contains("content-type: application/openmetrics-text; version=1.0.0; charset=utf-8"), "{answer}");
    assert!(answer.contains("\n# TYPE rug_log_lines_skipped counter\n") && answer.contains("# EOF\n"), "{answer}");
    // One that never says what it wants does not hold the stop up.
    let idle = tokio::net::TcpStream::connect(address).await.expect("it listens");
    closing.cancel();
    tokio::time::timeout(Duration::from_secs(20), server).await.expect("it stops").expect("in order");
    drop(idle);
}

#[tokio::test]
async fn probes_tell_a_process_that_lives_from_one_that_works() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    static READY: std::sync::atomic::AtomicBool = std::sync::atomic::AtomicBool::new(false);
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    let closing = CancellationToken::new();
    let probe = Probe::new("rug-test", || READY.load(std::sync::atomic::Ordering::SeqCst));
    let server = tokio::spawn(serve(listener, meters(), probe, closing.clone()));
    let ask = async |path: &str| {
        let mut stream = tokio::net::TcpStream::connect(address).await.expect("it listens");
        let request = format!("GET {path} HTTP/1.1\r\nHost: rug\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.expect("it reads");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("it answers");
        answer
    };
    assert!(ask("/livez").await.starts_with("HTTP/1.1 200"));
    let waiting = ask("/readyz").await;
    assert!(
        waiting.starts_with("HTTP/1.1 503") && waiting.contains(r#""ready":false,"program":"rug-test""#),
        "{waiting}"
    );
    READY.store(true, std::sync::atomic::Ordering::SeqCst);
    assert!(ask("/readyz").await.starts_with("HTTP/1.1 200"));
    closing.cancel();
    server.await.expect("it ends");
}
