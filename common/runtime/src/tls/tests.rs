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
                Ok((*accepted.peer.expect("it has shown a certificate")).clone())
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
    let at_server = end(&ca, &ca.issue("coordinator-1", &["rug://coordinator/c1", "localhost", "127.0.0.1"]));
    let at_client = end(&ca, &ca.issue("worker-1", &["worker-1.rug", "10.0.0.7", "rug://worker/worker-1"]));
    let met = meet(&server(&at_server.config), &at_client.config).await;
    assert_eq!(met.client, Ok(()));
    let peer = met.server.expect("let in");
    assert_eq!(peer.common_name.as_deref(), Some("worker-1"));
    let address = AlternativeName::Address([10, 0, 0, 7].into());
    let uri = AlternativeName::Uri("rug://worker/worker-1".into());
    assert_eq!(peer.names, [AlternativeName::Dns("worker-1.rug".into()), address, uri]);
    let shown = "`worker-1` for worker-1.rug, 10.0.0.7, rug://worker/worker-1, valid until ";
    assert!(peer.to_string().starts_with(shown), "{peer}");
}

#[tokio::test]
async fn a_client_of_another_ca_is_refused_and_both_sides_say_why() {
    let (ca, other) = (Authority::new("ca"), Authority::new("other"));
    let at_server = end(&ca, &ca.issue("coordinator-1", &["rug://coordinator/c1", "localhost"]));
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
    let at_server = end(&ca, &ca.issue("coordinator-1", &["rug://coordinator/c1", "localhost"]));
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
        (ca.issue("coordinator-1", &["rug://coordinator/c1", "elsewhere"]), "it is not for `localhost`"),
        (
            ca.issue_expired("coordinator-1", &["rug://coordinator/c1", "localhost"]),
            "it expired at 2020-02-01T00:00:00Z",
        ),
        (other.issue("coordinator-1", &["rug://coordinator/c1", "localhost"]), "it was not issued by a CA in"),
        (
            ca.issue_with("coordinator-1", &["rug://coordinator/c1", "localhost"], |params| {
                params.not_before = rcgen::date_time_ymd(2999, 1, 1);
                params.not_after = rcgen::date_time_ymd(3000, 1, 1);
            }),
            "it is not valid before 2999-01-01T00:00:00Z; are the clocks right?",
        ),
        (
            ca.issue_with("coordinator-1", &["rug://coordinator/c1", "localhost"], |params| {
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
async fn a_server_that_is_no_coordinator_is_refused_unless_its_names_are_configured() {
    let ca = Authority::new("ca");
    let at_client = end(&ca, &ca.issue("worker-1", &[]));
    // Another worker, whose certificate is for the right host; the name as a DNS name does not count.
    for names in [vec!["localhost", "rug://worker/w2"], vec!["localhost"], vec!["localhost", "spiffe://rug/server/1"]] {
        let at_server = end(&ca, &ca.issue("worker-2", &names));
        let met = meet(&server(&at_server.config), &at_client.config).await;
        let words = met.client.expect_err("refused");
        assert!(words.contains("it is not a coordinator's: none of its names is rug://coordinator/*"), "{words}");
        let words = met.server.expect_err("refused");
        assert!(words.contains("the client refuses this side's certificate"), "{words}");
    }
    let at_server = end(&ca, &ca.issue("server", &["localhost", "spiffe://rug/server/1"]));
    for servers in ["spiffe://rug/server/*", "localhost", "*"] {
        let config = Config { servers: vec![servers.to_owned()], ..at_client.config.clone() };
        assert_eq!(meet(&server(&at_server.config), &config).await.client, Ok(()), "{servers}");
    }
}

#[tokio::test]
async fn revoked_certificates_are_refused_on_both_sides() {
    let ca = Authority::new("ca");
    let numbered = |name: &str, names: &[&str], serial: u64| {
        end(&ca, &ca.issue_with(name, names, |params| params.serial_number = Some(serial.into())))
    };
    let at_server = numbered("coordinator-1", &["rug://coordinator/c1", "localhost"], 1);
    let (good, bad) = (numbered("worker-1", &[], 2), numbered("worker-2", &[], 3));
    let crl = at_server.dir.path().join("crl.pem");
    std::fs::write(&crl, ca.revoke(&[])).expect("written");
    let tls = server(&Config { crl: crl.clone(), ..at_server.config.clone() });
    let accepted = meet(&tls, &bad.config).await;
    assert!(accepted.server.is_ok() && accepted.client.is_ok(), "not revoked yet");

    std::fs::write(&crl, ca.revoke(&[3])).expect("written");
    assert!(tls.refresh().await, "the list has changed");
    assert!(!tls.refresh().await, "nothing has changed");
    let met = meet(&tls, &bad.config).await;
    let words = met.server.expect_err("refused");
    assert!(words.contains("`worker-2`") && words.contains("it is revoked by"), "{words}");
    assert!(met.client.expect_err("refused").contains("it is revoked"));
    assert!(meet(&tls, &good.config).await.server.is_ok());

    // A client that knows that the server's certificate is revoked.
    std::fs::write(&crl, ca.revoke(&[1])).expect("written");
    let client = Config { crl: crl.clone(), ..good.config.clone() };
    let met = meet(&server(&at_server.config), &client).await;
    assert!(met.client.expect_err("refused").contains("it is revoked by"));

    // A list of another CA says nothing about this one.
    std::fs::write(&crl, Authority::new("other").revoke(&[])).expect("written");
    assert!(tls.refresh().await);
    let words = meet(&tls, &good.config).await.server.expect_err("refused");
    assert!(words.contains("no revocation list in"), "{words}");
    std::fs::write(&crl, "no list").expect("written");
    let problem = Config { crl, ..at_server.config.clone() }.validate();
    assert!(problem[0].to_string().starts_with("crl: ") && problem[0].to_string().contains("no revocation list"));
}

#[tokio::test]
async fn a_client_without_a_certificate_is_let_in_only_where_tokens_are_accepted() {
    let ca = Authority::new("ca");
    let at_server = end(&ca, &ca.issue("coordinator-1", &["rug://coordinator/c1", "localhost"]));
    let at_client = end(&ca, &ca.issue("worker-1", &[]));
    let none = PathBuf::new;
    let bare = Config { cert: none(), key: none(), ..at_client.config.clone() };
    assert!(ClientTls::load(&bare).is_err(), "not by oversight");
    let bare = Config { own_optional: true, ..bare };
    assert_eq!(bare.validate(), []);
    assert!(ClientTls::load(&Config { cert: at_client.config.cert.clone(), ..bare.clone() }).is_err(), "half of it");
    let client = ClientTls::load(&bare).expect("good files").expect("named");
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let uri = format!("http://localhost:{}", listener.local_addr().expect("bound").port()).parse().expect("a uri");
    let strict = server(&at_server.config);
    let open = server(&at_server.config).accept_without_certificate();
    for (tls, expected) in [(strict, None), (open, Some(None))] {
        let serve = async {
            let (stream, _) = listener.accept().await.expect("it comes");
            tls.accept(stream).await.ok().map(|accepted| accepted.peer)
        };
        let met = async { tokio::join!(client.dial(&uri), serve) };
        let (_, peer) = tokio::time::timeout(DEADLINE, met).await.expect("in time");
        assert_eq!(peer, expected);
    }
    // A certificate that is shown has to be in order all the same.
    let stranger = end(&ca, &Authority::new("other").issue("worker-1", &[]));
    let open = server(&at_server.config).accept_without_certificate();
    assert!(meet(&open, &stranger.config).await.server.is_err());
    assert!(meet(&open, &at_client.config).await.server.is_ok());
}

#[tokio::test]
async fn another_name_may_be_asked_for() {
    let ca = Authority::new("ca");
    let at_server = end(&ca, &ca.issue("coordinator-1", &["rug://coordinator/c1", "rug.internal"]));
    let at_client = end(&ca, &ca.issue("worker-1", &[]));
    let config = Config { server_name: "rug.internal".into(), ..at_client.config.clone() };
    assert_eq!(meet(&server(&at_server.config), &config).await.client, Ok(()));
}

#[tokio::test]
async fn an_expired_client_is_told_which_file_to_renew() {
    let ca = Authority::new("ca");
    let at_server = end(&ca, &ca.issue("coordinator-1", &["rug://coordinator/c1", "localhost"]));
    let at_client = end(&ca, &ca.issue_expired("worker-1", &[]));
    let met = meet(&server(&at_server.config), &at_client.config).await;
    assert!(met.server.expect_err("refused").contains("it expired at 2020-02-01T00:00:00Z"));
    let words = met.client.expect_err("refused");
    assert!(words.contains("cert.pem (`worker-1`, valid until 2020-02-01T00:00:00Z): it is expired"), "{words}");
}

#[tokio::test]
async fn files_that_change_are_taken_over_and_broken_ones_are_not() {
    let (ca, next) = (Authority::new("ca"), Authority::new("next"));
    let at_server = end(&ca, &ca.issue("coordinator-1", &["rug://coordinator/c1", "localhost"]));
    let tls = server(&at_server.config);
    let old = end(&ca, &ca.issue("worker-1", &[]));
    assert!(meet(&tls, &old.config).await.server.is_ok());

    std::fs::write(at_server.dir.path().join("cert.pem"), "half a").expect("written");
    tls.refresh().await;
    assert!(meet(&tls, &old.config).await.server.is_ok(), "the old identity goes on");

    let _ = next.issue("coordinator-1", &["rug://coordinator/c1", "localhost"]).write(at_server.dir.path(), &next);
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
    assert_eq!(own_name(&client).await, "worker-1");
    let fresh = dir.path().join("..fresh");
    std::os::unix::fs::symlink(new.dir.path(), &fresh).expect("a link");
    std::fs::rename(&fresh, &data).expect("replaced");
    assert_eq!(own_name(&client).await, "worker-1b");
    std::fs::remove_file(&data).expect("removed");
    assert_eq!(own_name(&client).await, "worker-1b", "what was there goes on");
}

async fn own_name(client: &ClientTls) -> String {
    client.material().await.own.as_ref().expect("it has one").identity.name()
}

#[tokio::test]
async fn http_and_tls_that_meet_by_mistake_are_told_apart() {
    let ca = Authority::new("ca");
    let at_server = end(&ca, &ca.issue("coordinator-1", &["rug://coordinator/c1", "localhost"]));
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
        (Config { servers: vec![], ..good.clone() }, "servers: must name at least one"),
        (Config { servers: vec!["rug://*".into()], ..good.clone() }, "servers: `rug://*` "),
        (Config { crl: "/nowhere/crl.pem".into(), ..good.clone() }, "crl: /nowhere/crl.pem: No such file"),
        (Config { reload_interval: Duration::ZERO, ..good.clone() }, "reload_interval: must be"),
    ];
    for (config, expected) in cases {
        let problem = config.validate().first().map(ToString::to_string).expect(expected);
        assert!(problem.contains(expected), "{problem}");
    }
}
