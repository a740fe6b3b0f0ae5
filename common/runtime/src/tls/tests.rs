//! Both sides over loopback, with certificates made for each test.

use rcgen::ExtendedKeyUsagePurpose;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::testing::{Authority, Issued};
use super::*;

const DEADLINE: Duration = Duration::from_secs(20);

struct TlsEnd {
    dir: TempDir,
    config: Config,
}

fn end(ca: &Authority, issued: &Issued) -> TlsEnd {
    let dir = tempfile::tempdir().expect("a folder");
    let config = issued.write(dir.path(), ca);
    TlsEnd { config, dir }
}

/// What a handshake came to: at the server, and at the client that then asks for a byte.
struct Handshake {
    server: Result<Identity, String>,
    client: Result<(), String>,
}

async fn meet(server: &ServerTls, client: &Config) -> Handshake {
    let client = ClientTls::load(client).expect("good files").expect("files are named");
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let uri = format!("http://localhost:{}", listener.local_addr().expect("bound").port()).parse().expect("a uri");
    let serve = async {
        let (stream, _) = listener.accept().await.expect("somebody comes");
        match server.accept(stream).await {
            Ok(mut accepted) => {
                accepted.stream.write_all(b"!").await.expect("the client reads");
                accepted.stream.flush().await.expect("the client reads");
                Ok((*accepted.peer).clone())
            }
            Err(refused) => {
                let words = refused.error.to_string();
                refused.take_leave().await;
                Err(words)
            }
        }
    };
    let ask = async {
        let mut stream = client.dial(&uri).await.map_err(|e| e.to_string())?;
        stream.read_exact(&mut [0; 1]).await.map(drop).map_err(|e| e.to_string())
    };
    let both = async { tokio::join!(serve, ask) };
    let (server, client) = tokio::time::timeout(DEADLINE, both).await.expect("in time");
    Handshake { server, client }
}

fn server(config: &Config) -> ServerTls {
    ServerTls::load(config).expect("good files").expect("files are named")
}

#[tokio::test]
async fn both_sides_know_who_the_other_is() {
    let ca = Authority::new("ca");
    let at_server = end(&ca, &ca.issue("coordinator-1", &["localhost", "127.0.0.1"]));
    let at_client = end(&ca, &ca.issue("worker-1", &["worker-1.rug", "10.0.0.7"]));
    let met = meet(&server(&at_server.config), &at_client.config).await;
    assert_eq!(met.client, Ok(()));
    let peer = met.server.expect("let in");
    assert_eq!(peer.common_name.as_deref(), Some("worker-1"));
    assert_eq!(peer.names, ["worker-1.rug", "10.0.0.7"]);
    assert!(peer.to_string().starts_with("`worker-1` for worker-1.rug, 10.0.0.7, valid until "), "{peer}");
}

#[tokio::test]
async fn a_client_of_another_ca_is_refused_and_both_sides_say_why() {
    let (ca, other) = (Authority::new("ca"), Authority::new("other"));
    let at_server = end(&ca, &ca.issue("coordinator-1", &["localhost"]));
    let at_client = end(&ca, &other.issue("stranger", &[]));
    let met = meet(&server(&at_server.config), &at_client.config).await;
    let at_server = met.server.expect_err("refused");
    assert!(at_server.contains("the client's certificate `stranger`, valid until"), "{at_server}");
    assert!(at_server.contains("not issued by a CA in"), "{at_server}");
    let words = met.client.expect_err("refused");
    let file = at_client.dir.path().join("cert.pem");
    assert!(words.contains("the server refuses this side's certificate"), "{words}");
    assert!(words.contains(&*file.to_string_lossy()) && words.contains("`stranger`"), "{words}");
    assert!(words.contains("does not trust the CA"), "{words}");
}

#[tokio::test]
async fn a_ca_of_the_same_name_with_another_key_is_another_ca() {
    let (ca, other) = (Authority::new("ca"), Authority::new("ca"));
    let at_server = end(&ca, &ca.issue("coordinator-1", &["localhost"]));
    let at_client = end(&ca, &other.issue("stranger", &[]));
    let met = meet(&server(&at_server.config), &at_client.config).await;
    let words = met.server.expect_err("refused");
    assert!(words.contains("not issued by a CA in"), "{words}");
    let words = met.client.expect_err("refused");
    assert!(words.contains("does not trust the CA"), "{words}");
}

#[tokio::test]
async fn a_server_that_is_not_who_it_should_be_is_refused_by_name_and_date() {
    let (ca, other) = (Authority::new("ca"), Authority::new("other"));
    let cases = [
        (ca.issue("coordinator-1", &["elsewhere"]), "it is not for `localhost`"),
        (ca.issue_expired("coordinator-1", &["localhost"]), "it expired at 2020-02-01T00:00:00Z"),
        (other.issue("coordinator-1", &["localhost"]), "it was not issued by a CA in"),
        (
            ca.issue_with("coordinator-1", &["localhost"], |params| {
                params.not_before = rcgen::date_time_ymd(2999, 1, 1);
                params.not_after = rcgen::date_time_ymd(3000, 1, 1);
            }),
            "it is not valid before 2999-01-01T00:00:00Z; are the clocks right?",
        ),
        (
            ca.issue_with("coordinator-1", &["localhost"], |params| {
                params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
            }),
            "its extended key usage does not let it be used by a server",
        ),
    ];
    let at_client = end(&ca, &ca.issue("worker-1", &[]));
    for (issued, expected) in cases {
        let at_server = end(&ca, &issued);
        let met = meet(&server(&at_server.config), &at_client.config).await;
        let words = met.client.expect_err("refused");
        assert!(words.contains("the server's certificate `coordinator-1`"), "{words}");
        assert!(words.contains(expected), "{words}");
        let words = met.server.expect_err("refused");
        assert!(words.contains("the client refuses this side's certificate"), "{words}");
    }
}

#[tokio::test]
async fn another_name_may_be_asked_for() {
    let ca = Authority::new("ca");
    let at_server = end(&ca, &ca.issue("coordinator-1", &["rug.internal"]));
    let at_client = end(&ca, &ca.issue("worker-1", &[]));
    let config = Config { server_name: "rug.internal".into(), ..at_client.config.clone() };
    assert_eq!(meet(&server(&at_server.config), &config).await.client, Ok(()));
}

#[tokio::test]
async fn an_expired_client_is_told_which_file_to_renew() {
    let ca = Authority::new("ca");
    let at_server = end(&ca, &ca.issue("coordinator-1", &["localhost"]));
    let at_client = end(&ca, &ca.issue_expired("worker-1", &[]));
    let met = meet(&server(&at_server.config), &at_client.config).await;
    assert!(met.server.expect_err("refused").contains("it expired at 2020-02-01T00:00:00Z"));
    let words = met.client.expect_err("refused");
    assert!(words.contains("cert.pem (`worker-1`, valid until 2020-02-01T00:00:00Z): it is expired"), "{words}");
}

#[tokio::test]
async fn files_that_change_are_taken_over_and_broken_ones_are_not() {
    let (ca, next) = (Authority::new("ca"), Authority::new("next"));
    let at_server = end(&ca, &ca.issue("coordinator-1", &["localhost"]));
    let tls = server(&at_server.config);
    let old = end(&ca, &ca.issue("worker-1", &[]));
    assert!(meet(&tls, &old.config).await.server.is_ok());

    std::fs::write(at_server.dir.path().join("cert.pem"), "half a").expect("written");
    tls.refresh().await;
    assert!(meet(&tls, &old.config).await.server.is_ok(), "the old identity goes on");

    let _ = next.issue("coordinator-1", &["localhost"]).write(at_server.dir.path(), &next);
    tls.refresh().await;
    let new = end(&next, &next.issue("worker-1", &[]));
    assert!(meet(&tls, &new.config).await.server.is_ok());
    assert!(meet(&tls, &old.config).await.client.expect_err("refused").contains("not issued by a CA in"));
}

#[tokio::test]
async fn a_client_reads_its_files_at_each_connection() {
    let (ca, next) = (Authority::new("ca"), Authority::new("next"));
    let old = end(&ca, &ca.issue("worker-1", &[]));
    let new = end(&next, &next.issue("worker-1b", &[]));
    // As Kubernetes does it: a symbolic link to a folder, replaced by another in one step.
    let dir = tempfile::tempdir().expect("a folder");
    let data = dir.path().join("..data");
    std::os::unix::fs::symlink(old.dir.path(), &data).expect("a link");
    let [ca, cert, key] = ["ca.pem", "cert.pem", "key.pem"].map(|file| data.join(file));
    let client = ClientTls::load(&Config { ca, cert, key, ..Config::default() }).expect("good files").expect("named");
    assert_eq!(client.material().await.identity.name(), "worker-1");
    let fresh = dir.path().join("..fresh");
    std::os::unix::fs::symlink(new.dir.path(), &fresh).expect("a link");
    std::fs::rename(&fresh, &data).expect("replaced");
    assert_eq!(client.material().await.identity.name(), "worker-1b");
    std::fs::remove_file(&data).expect("removed");
    assert_eq!(client.material().await.identity.name(), "worker-1b", "what was there goes on");
}

#[tokio::test]
async fn http_and_tls_that_meet_by_mistake_are_told_apart() {
    let ca = Authority::new("ca");
    let at_server = end(&ca, &ca.issue("coordinator-1", &["localhost"]));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    let tls = server(&at_server.config);
    let plain = async {
        let mut stream = TcpStream::connect(address).await.expect("it listens");
        stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.expect("sent");
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.expect("a goodbye");
        answer
    };
    let accept = async {
        let (stream, _) = listener.accept().await.expect("it comes");
        let refused = tls.accept(stream).await.expect_err("no TLS");
        let words = refused.error.to_string();
        refused.take_leave().await;
        words
    };
    let (answer, words) = tokio::time::timeout(DEADLINE, async { tokio::join!(plain, accept) }).await.expect("in time");
    assert!(words.contains("use https://"), "{words}");
    assert!(answer.ends_with(b"use https://"));

    let client = ClientTls::load(&at_server.config).expect("good files").expect("named");
    let uri = format!("http://localhost:{}", address.port()).parse().expect("a uri");
    let answer = async {
        let (mut stream, _) = listener.accept().await.expect("it comes");
        stream.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await.expect("sent");
        let _ = stream.read_to_end(&mut Vec::new()).await;
    };
    let met = async { tokio::join!(client.dial(&uri), answer) };
    let (dialled, ()) = tokio::time::timeout(DEADLINE, met).await.expect("in time");
    let words = dialled.err().expect("no TLS there").to_string();
    assert!(words.contains("the server does not speak TLS"), "{words}");
}

#[test]
fn settings_that_cannot_work_name_the_field() {
    let ca = Authority::new("ca");
    let one = end(&ca, &ca.issue("one", &[]));
    let two = end(&ca, &ca.issue("two", &[]));
    let good = one.config.clone();
    assert_eq!(good.validate(), []);
    assert_eq!(Config::default().validate(), []);
    assert!(Config::default().is_off() && !good.is_off());
    let empty = one.dir.path().join("empty");
    std::fs::write(&empty, "").expect("written");
    let cases = [
        (Config { key: PathBuf::new(), ..good.clone() }, "key: must be set, too"),
        (Config { ca: "/nowhere/ca.pem".into(), ..good.clone() }, "ca: /nowhere/ca.pem: No such file"),
        (Config { ca: empty.clone(), ..good.clone() }, "no certificate in it"),
        (Config { cert: good.key.clone(), ..good.clone() }, "cert: "),
        (Config { key: good.cert.clone(), ..good.clone() }, "key: "),
        (Config { key: two.config.key.clone(), ..good.clone() }, "does not belong to the certificate in"),
        (Config { server_name: "not a name".into(), ..good.clone() }, "server_name: "),
        (Config { reload_interval: Duration::ZERO, ..good.clone() }, "reload_interval: must be"),
    ];
    for (config, expected) in cases {
        let problem = config.validate().first().map(ToString::to_string).expect(expected);
        assert!(problem.contains(expected), "{problem}");
    }
}
