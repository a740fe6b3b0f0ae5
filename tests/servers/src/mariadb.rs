//! A MariaDB server of its own. Its user `rug` with password `rug` may do everything.

use std::ffi::OsStr;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;

use crate::folder::ServerFolder;
use crate::ports::Port;
use crate::server::ServerProcess;
use crate::{PATIENCE, ServerTlsFiles, client};

/// Name and password of the user.
const USER: &str = "rug";
/// How often a whole start is tried again when a foreign program took the port.
const STARTS: usize = 3;
/// Run by the server at each start, before it listens.
const USERS: &str = "\
CREATE USER IF NOT EXISTS 'rug'@'%' IDENTIFIED BY 'rug';
GRANT ALL PRIVILEGES ON *.* TO 'rug'@'%' WITH GRANT OPTION;
";

/// How the server is set up.
#[derive(Clone, Debug)]
pub struct Options {
    /// Whether a commit waits for the disk. A killed server loses nothing either way, only a crashed machine does.
    pub fsync: bool,
    /// Makes it accept TLS as well.
    pub tls: Option<ServerTlsFiles>,
    /// Further settings, as in `my.cnf`.
    pub settings: Vec<(String, String)>,
}

impl Default for Options {
    fn default() -> Self {
        Self { fsync: true, tls: None, settings: Vec::new() }
    }
}

/// A running, stopped or killed server.
#[derive(Debug)]
pub struct MariaDb {
    server: ServerProcess,
    port: Port,
    arguments: Vec<String>,
    _folder: ServerFolder,
}

impl MariaDb {
    /// Makes an empty server, starts it and waits until it answers.
    ///
    /// # Errors
    /// When MariaDB is not installed, or does not answer within [`PATIENCE`].
    pub async fn start(options: Options) -> Result<Self> {
        for _ in 1..STARTS {
            let mut mariadb = Self::prepare(&options).await?;
            match mariadb.start_again().await {
                Err(_) if mariadb.server.port_was_taken() => {}
                result => return result.map(|()| mariadb),
            }
        }
        let mut mariadb = Self::prepare(&options).await?;
        mariadb.start_again().await?;
        Ok(mariadb)
    }

    async fn prepare(options: &Options) -> Result<Self> {
        let folder = ServerFolder::new("mariadb")?;
        let home = folder.path();
        let port = Port::free()?;
        fs::write(home.join("users.sql"), USERS)?;
        let path = |name: &str| home.join(name).display().to_string();
        let mut arguments = vec![
            format!("--datadir={}", path("data")),
            format!("--socket={}", path("socket")),
            format!("--pid-file={}", path("pid")),
            format!("--init-file={}", path("users.sql")),
            format!("--tmpdir={}", home.display()),
            format!("--port={}", port.number()),
            "--bind-address=127.0.0.1".to_owned(),
            "--skip-name-resolve".to_owned(),
            "--innodb-buffer-pool-size=32M".to_owned(),
            "--innodb-log-file-size=16M".to_owned(),
            "--character-set-server=utf8mb4".to_owned(),
        ];
        if !options.fsync {
            arguments.extend(["--innodb-flush-log-at-trx-commit=2".to_owned(), "--debug-no-sync".to_owned()]);
        }
        if let Some(tls) = &options.tls {
            for (name, text, option) in [
                ("server.pem", &tls.certificates, "ssl-cert"),
                ("server.key", &tls.key, "ssl-key"),
                ("authorities.pem", &tls.authorities, "ssl-ca"),
            ] {
                fs::write(home.join(name), text)?;
                arguments.push(format!("--{option}={}", path(name)));
            }
        }
        arguments.extend(options.settings.iter().map(|(name, value)| format!("--{name}={value}")));
        if rustix::process::geteuid().is_root() {
            // Otherwise it refuses.
            arguments.push("--user=root".to_owned());
        }
        let mut install = program("mariadb-install-db")?;
        install
            .args(["--no-defaults", "--auth-root-authentication-method=normal", "--skip-test-db"])
            .arg(format!("--datadir={}", path("data")))
            // A server that starts removes what others have in its folder for temporary tables.
            .env("TMPDIR", home)
            .args(arguments.iter().filter(|argument| argument.starts_with("--user=")))
            .current_dir(home);
        client::run(install.into(), "", PATIENCE).await.context("make a MariaDB data folder")?;
        Ok(Self { server: ServerProcess::new("MariaDB", home.to_owned()), port, arguments, _folder: folder })
    }

    /// Its port at 127.0.0.1.
    #[must_use]
    pub const fn port(&self) -> u16 {
        self.port.number()
    }

    /// `mysql://` URL of a database. The database `mysql` is always there.
    #[must_use]
    pub fn url(&self, database: &str) -> String {
        format!("mysql://{USER}:{USER}@127.0.0.1:{}/{database}", self.port())
    }

    /// What it has logged so far.
    #[must_use]
    pub fn log_text(&self) -> String {
        self.server.log_text()
    }

    /// Makes an empty database. Answers its URL.
    ///
    /// # Errors
    /// When the name is not made of lower-case letters, digits and `_`, or is taken.
    pub async fn create_database(&self, name: &str) -> Result<String> {
        ensure!(crate::is_plain(name), "`{name}` is no plain name");
        self.sql("mysql", &format!("CREATE DATABASE {name}")).await?;
        Ok(self.url(name))
    }

    /// Runs statements in a database with the server's own client. Answers the rows, tabs between columns.
    ///
    /// # Errors
    /// What the server says.
    pub async fn sql(&self, database: &str, statements: &str) -> Result<String> {
        let rows = client::run(self.client(database)?, statements, PATIENCE).await?;
        Ok(rows.trim_end().to_owned())
    }

    fn client(&self, database: &str) -> Result<tokio::process::Command> {
        let mut command = program("mariadb")?;
        command
            .args(["--no-defaults", "--batch", "--skip-column-names", "--protocol=tcp", "--host=127.0.0.1"])
            .args([format!("--port={}", self.port()), format!("--user={USER}"), format!("--password={USER}")])
            .arg(database);
        Ok(command.into())
    }

    /// Ends it in order.
    ///
    /// # Errors
    /// When it does not run, or does not end.
    pub async fn stop(&mut self) -> Result<()> {
        let status = self.server.stop(Signal::TERM, PATIENCE).await?;
        ensure!(status.success(), "MariaDB ended with {status}");
        Ok(())
    }

    /// `kill -9`.
    ///
    /// # Errors
    /// When it does not run.
    pub fn kill(&mut self) -> Result<()> {
        self.server.kill()
    }

    /// Starts it with its data and port, and waits until it answers.
    ///
    /// # Errors
    /// When it runs, or does not answer within [`PATIENCE`].
    pub async fn start_again(&mut self) -> Result<()> {
        let mut command = program("mariadbd")?;
        command.arg("--no-defaults").args(&self.arguments);
        self.server.start(command)?;
        let question = self.client("mysql")?;
        let arguments: Vec<_> = question.as_std().get_args().map(OsStr::to_owned).collect();
        let program = question.as_std().get_program().to_owned();
        self.server
            .ready(PATIENCE, async || {
                let mut question = tokio::process::Command::new(&program);
                question.args(&arguments);
                client::run(question, "SELECT 1", Duration::from_secs(10)).await.map(drop)
            })
            .await
    }

    /// SIGSTOP; has stopped on return.
    ///
    /// # Errors
    /// When it does not run.
    pub fn pause(&mut self) -> Result<()> {
        self.server.pause()
    }

    /// SIGCONT.
    ///
    /// # Errors
    /// When it does not run.
    pub fn resume(&mut self) -> Result<()> {
        self.server.resume()
    }
}

fn program(name: &str) -> Result<Command> {
    let path: Option<PathBuf> = client::find(name, &[]);
    path.map(Command::new).with_context(|| format!("there is no {name} (Debian package mariadb-server)"))
}
