//! PostgreSQL and MariaDB, asked with their own command line clients.

use std::time::Duration;

use anyhow::Result;
use servers::mariadb::{self, MariaDb};
use servers::postgres::{self, Postgres};

const TABLE: &str = "CREATE TABLE words (word VARCHAR(20)); INSERT INTO words VALUES ('kept');";
const WORDS: &str = "SELECT word FROM words;";
/// Shorter than any answer takes that has to wait for another process.
const SOON: Duration = Duration::from_millis(500);

#[tokio::test]
async fn postgres_keeps_its_data_over_a_stop_and_a_kill() -> Result<()> {
    let mut server = Postgres::start(postgres::Options::default()).await?;
    assert_eq!(server.create_database("tried").await?, server.url("tried"));
    assert!(server.create_database("tried").await.is_err(), "it exists");
    assert!(server.create_database("a b").await.is_err(), "it is no plain name");
    server.sql("tried", TABLE).await?;
    assert_eq!(server.sql("postgres", "SHOW fsync").await?, "on");
    server.stop().await?;
    assert!(server.sql("tried", WORDS).await.is_err(), "it was stopped");
    server.start_again().await?;
    assert_eq!(server.sql("tried", WORDS).await?, "kept");
    server.kill()?;
    server.start_again().await?;
    assert_eq!(server.sql("tried", WORDS).await?, "kept");
    Ok(())
}

#[tokio::test]
async fn postgres_stands_still_while_it_is_paused() -> Result<()> {
    let settings = vec![("max_connections".to_owned(), "20".to_owned())];
    let mut server = Postgres::start(postgres::Options { fsync: false, settings, ..Default::default() }).await?;
    assert_eq!(server.sql("postgres", "SHOW fsync; SHOW max_connections").await?, "off\n20");
    server.pause()?;
    assert!(tokio::time::timeout(SOON, server.sql("postgres", "SELECT 1")).await.is_err(), "it is paused");
    server.resume()?;
    assert_eq!(server.sql("postgres", "SELECT 1").await?, "1");
    server.pause()?;
    server.kill()?;
    Ok(())
}

#[tokio::test]
async fn mariadb_keeps_its_data_over_a_stop_and_a_kill() -> Result<()> {
    let mut server = MariaDb::start(mariadb::Options::default()).await?;
    assert_eq!(server.create_database("tried").await?, server.url("tried"));
    assert!(server.create_database("tried").await.is_err(), "it exists");
    assert!(server.create_database("a b").await.is_err(), "it is no plain name");
    server.sql("tried", TABLE).await?;
    server.stop().await?;
    assert!(server.sql("tried", WORDS).await.is_err(), "it was stopped");
    server.start_again().await?;
    assert_eq!(server.sql("tried", WORDS).await?, "kept");
    server.kill()?;
    server.start_again().await?;
    assert_eq!(server.sql("tried", WORDS).await?, "kept");
    Ok(())
}

#[tokio::test]
async fn mariadb_stands_still_while_it_is_paused() -> Result<()> {
    let settings = vec![("max-connections".to_owned(), "21".to_owned())];
    let mut server = MariaDb::start(mariadb::Options { fsync: false, settings, ..Default::default() }).await?;
    assert_eq!(server.sql("mysql", "SELECT @@max_connections").await?, "21");
    server.pause()?;
    assert!(tokio::time::timeout(SOON, server.sql("mysql", "SELECT 1")).await.is_err(), "it is paused");
    server.resume()?;
    assert_eq!(server.sql("mysql", "SELECT 1").await?, "1");
    server.pause()?;
    server.kill()?;
    Ok(())
}

#[tokio::test]
async fn a_start_that_fails_says_what_the_log_says() {
    let settings = vec![("no_such_setting".to_owned(), "1".to_owned())];
    let postgres = Postgres::start(postgres::Options { settings: settings.clone(), ..Default::default() }).await;
    let problem = format!("{:#}", postgres.expect_err("it refuses the setting"));
    assert!(problem.contains("no_such_setting"), "{problem}");
    let mariadb = MariaDb::start(mariadb::Options { settings, ..Default::default() }).await;
    let problem = format!("{:#}", mariadb.expect_err("it refuses the setting"));
    assert!(problem.contains("no_such_setting"), "{problem}");
}
