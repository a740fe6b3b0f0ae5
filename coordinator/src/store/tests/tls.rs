//! TLS to the database, by the parameters of its URL.

use runtime::tls::testing::Authority;

use super::servers::DatabaseServer;
use super::*;

async fn a_server_is_trusted_by_its_authority_alone(kind: DatabaseKind) {
    let (ca, other) = (Authority::new("ours"), Authority::new("another"));
    let issued = ca.issue("database", &["127.0.0.1", "localhost"]);
    let tls =
        ::servers::ServerTlsFiles { certificates: issued.cert, key: issued.key, authorities: ca.pem().to_owned() };
    let server = DatabaseServer::start_with(kind, Some(tls)).await;
    let url = server.create_database("rug").await;
    let dir = tempfile::tempdir().expect("a folder");
    let file = |name: &str, ca: &Authority| {
        let path = dir.path().join(name);
        std::fs::write(&path, ca.pem()).expect("a folder of its own");
        path.display().to_string()
    };
    let (ours, others) = (file("ours.pem", &ca), file("others.pem", &other));
    let with = |authority: &str| match kind {
        DatabaseKind::MariaDb => format!("{url}?ssl-mode=VERIFY_IDENTITY&ssl-ca={authority}"),
        _ => format!("{url}?sslmode=verify-full&sslrootcert={authority}"),
    };
    let trusted = Config { url: with(&ours), ..Config::default() };
    let store = Store::open(&trusted).await.expect("the authority is the server's");
    begin(&store).await.expect("alone");
    store.submit(vec![StoreWrite::Event(event(1))]).await.expect("stored");
    assert_eq!(store.events(10).await, Ok(vec![event(1)]));
    Store::inspect(&trusted, Vec::new()).await.expect("readable");
    store.close().await;

    let deceived = Config { url: with(&others), ..Config::default() };
    let refused = Store::open(&deceived).await.map(drop).expect_err("another authority signed nothing here");
    assert!(matches!(&refused, Error::Open { cause: OutageCause::Refused(_) | OutageCause::Lost(_), .. }), "{refused}");
    assert!(!refused.to_string().contains("rug:rug"), "{refused}");
}

#[tokio::test]
async fn postgres_is_trusted_by_its_authority_alone() {
    a_server_is_trusted_by_its_authority_alone(DatabaseKind::Postgres).await;
}

#[tokio::test]
async fn mariadb_is_trusted_by_its_authority_alone() {
    a_server_is_trusted_by_its_authority_alone(DatabaseKind::MariaDb).await;
}
