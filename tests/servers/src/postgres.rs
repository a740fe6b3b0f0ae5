//! A PostgreSQL server of its own. Its superuser is `rug` with password `rug`.
//!
//! PostgreSQL refuses to run as root; a test that does lets it run as `postgres`, or as `nobody` where there is none.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;

use crate::folder::ServerFolder;
use crate::ports::Port;
use crate::server::ServerProcess;
use crate::{PATIENCE, ServerTlsFiles, client};

/// Name and password of the superuser.
const USER: &str = "rug";
/// How often a whole start is tried again when a foreign program took the port.
const STARTS: usize = 3;
/// The longest path the kernel takes for a socket, less what PostgreSQL calls it.
const SOCKET_FOLDER_LIMIT: usize = 80;

/// How the server is set up.
#[derive(Clone, Debug)]
pub struct Options {
    /// Whether a commit waits for the disk. A killed server loses nothing either way, only a crashed machine does.
    pub fsync: bool,
    /// Makes it accept TLS as well.
    pub tls: Option<ServerTlsFiles>,
    /// Further settings, as in `postgresql.conf`.
    pub settings: Vec<(String, String)>,
}

impl Default for Options {
    fn default() -> Self {
        Self { fsync: true, tls: None, settings: Vec::new() }
    }
}

/// A running, stopped or killed server.
#[derive(Debug)]
pub struct Postgres {
    server: ServerProcess,
    programs: Programs,
    account: Option<Account>,
    port: Port,
    settings: Vec<(String, String)>,
    _folder: ServerFolder,
}

impl Postgres {
    /// Makes an empty cluster, starts it and waits until it answers.
    ///
    /// # Errors
    /// When PostgreSQL is not installed, or does not answer within [`PATIENCE`].
    pub async fn start(options: Options) -> Result<Self> {
        for _ in 1..STARTS {
            let mut postgres = Self::prepare(&options).await?;
            match postgres.start_again().await {
                Err(_) if postgres.server.port_was_taken() => {}
                result => return result.map(|()| postgres),
            }
        }
        let mut postgres = Self::prepare(&options).await?;
        postgres.start_again().await?;
        Ok(postgres)
    }

    async fn prepare(options: &Options) -> Result<Self> {
        let programs = Programs::find()?;
        let account = Account::unprivileged()?;
        let folder = ServerFolder::new("postgres")?;
        let home = folder.path().to_owned();
        let file = |name: &str, text: &str| -> Result<()> {
            let path = home.join(name);
            fs::write(&path, text)?;
            // PostgreSQL refuses keys that others could read.
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
            account.as_ref().map_or(Ok(()), |account| account.own(&path))
        };
        file("password", USER)?;
        if let Some(tls) = &options.tls {
            file("server.pem", &tls.certificates)?;
            file("server.key", &tls.key)?;
            file("authorities.pem", &tls.authorities)?;
        }
        if let Some(account) = &account {
            account.own(&home)?;
        }
        let mut postgres = Self {
            server: ServerProcess::new("PostgreSQL", home),
            programs,
            account,
            port: Port::free()?,
            settings: Vec::new(),
            _folder: folder,
        };
        postgres.settings = postgres.settings(options);
        let mut init = postgres.command("initdb");
        init.args(["--pgdata", "data", "--username", USER, "--pwfile", "password", "--auth-host", "scram-sha-256"])
            .args(["--auth-local", "trust", "--encoding", "UTF8", "--locale", "C", "--no-sync"])
            .current_dir(postgres.server.home());
        client::run(init.into(), "", PATIENCE).await.context("make a PostgreSQL cluster")?;
        Ok(postgres)
    }

    fn settings(&self, options: &Options) -> Vec<(String, String)> {
        let home = self.server.home().display().to_string();
        let socket = if home.len() > SOCKET_FOLDER_LIMIT { "" } else { &home };
        let mut settings: Vec<(&str, &str)> = vec![
            ("listen_addresses", "127.0.0.1"),
            ("unix_socket_directories", socket),
            ("shared_buffers", "32MB"),
            ("max_connections", "100"),
            ("log_line_prefix", "%m [%p] "),
        ];
        if !options.fsync {
            settings.extend([("fsync", "off"), ("synchronous_commit", "off"), ("full_page_writes", "off")]);
        }
        let files = ["server.pem", "server.key", "authorities.pem"].map(|name| format!("{home}/{name}"));
        if options.tls.is_some() {
            let [certificates, key, authorities] = &files;
            settings.extend([("ssl", "on"), ("ssl_cert_file", certificates)]);
            settings.extend([("ssl_key_file", key.as_str()), ("ssl_ca_file", authorities)]);
        }
        let own = settings.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned()));
        own.chain(options.settings.iter().cloned()).collect()
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.programs.0.join(program));
        // Messages are read by people and by this module.
        command.env("LC_ALL", "C");
        if let Some(account) = &self.account {
            command.uid(account.uid).gid(account.gid);
        }
        command
    }

    /// Its port at 127.0.0.1.
    #[must_use]
    pub const fn port(&self) -> u16 {
        self.port.number()
    }

    /// `postgres://` URL of a database. The database `postgres` is always there.
    #[must_use]
    pub fn url(&self, database: &str) -> String {
        format!("postgres://{USER}:{USER}@127.0.0.1:{}/{database}", self.port())
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
        self.sql("postgres", &format!("CREATE DATABASE {name}")).await?;
        Ok(self.url(name))
    }

    /// Runs statements in a database with the server's own client, psql. Answers the rows, `|` between columns.
    ///
    /// # Errors
    /// What the server says.
    pub async fn sql(&self, database: &str, statements: &str) -> Result<String> {
        let mut command = Command::new(self.programs.0.join("psql"));
        command.args(["--no-psqlrc", "--quiet", "--no-align", "--tuples-only", "--set", "ON_ERROR_STOP=1"]).args([
            OsStr::new("--dbname"),
            self.url(database).as_ref(),
            "--file".as_ref(),
            "-".as_ref(),
        ]);
        client::run(command.into(), statements, PATIENCE).await.map(|rows| rows.trim_end().to_owned())
    }

    /// Ends it in order, without waiting for clients to leave.
    ///
    /// # Errors
    /// When it does not run, or does not end.
    pub async fn stop(&mut self) -> Result<()> {
        let status = self.server.stop(Signal::INT, PATIENCE).await?;
        ensure!(status.success(), "PostgreSQL ended with {status}");
        Ok(())
    }

    /// `kill -9` to all of its processes.
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
        let mut command = self.command("postgres");
        command.args(["-D", "data", "-p", &self.port().to_string()]);
        for (name, value) in &self.settings {
            command.args(["-c", &format!("{name}={value}")]);
        }
        self.server.start(command)?;
        let mut question = Command::new(self.programs.0.join("psql"));
        question.args(["--no-psqlrc", "--command", "SELECT 1", "--dbname", &self.url("postgres")]);
        let program = question.get_program().to_owned();
        let arguments: Vec<_> = question.get_args().map(OsStr::to_owned).collect();
        self.server
            .ready(PATIENCE, async || {
                let mut question = tokio::process::Command::new(&program);
                question.args(&arguments);
                client::run(question, "", Duration::from_secs(10)).await.map(drop)
            })
            .await
    }

    /// SIGSTOP to all of its processes; they have stopped on return.
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

/// The folder that has all of PostgreSQL's programs. Debian keeps the server's out of the search path.
#[derive(Clone, Debug)]
struct Programs(PathBuf);

impl Programs {
    fn find() -> Result<Self> {
        let mut versions: Vec<PathBuf> = fs::read_dir("/usr/lib/postgresql")
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path().join("bin"))
            .collect();
        // The newest first; versions are numbers.
        let number = |path: &PathBuf| -> Option<u32> { path.parent()?.file_name()?.to_str()?.parse().ok() };
        versions.sort_by_key(|path| std::cmp::Reverse(number(path)));
        let has_all = |folder: &Path| ["postgres", "initdb", "psql"].iter().all(|name| folder.join(name).exists());
        client::find("postgres", &versions)
            .and_then(|program| program.canonicalize().ok())
            .and_then(|program| Some(program.parent()?.to_owned()))
            .into_iter()
            .chain(versions)
            .find(|folder| has_all(folder))
            .map(Self)
            .context("there is no PostgreSQL server (Debian package postgresql)")
    }
}

/// Who a server runs as when the test is root.
#[derive(Clone, Debug)]
struct Account {
    uid: u32,
    gid: u32,
}

impl Account {
    /// `None` when the test is not root, so that the server runs as the test does.
    fn unprivileged() -> Result<Option<Self>> {
        if !rustix::process::geteuid().is_root() {
            return Ok(None);
        }
        let found = ["postgres", "nobody"].iter().find_map(|name| {
            let number = |which: &str| -> Option<u32> {
                let output = Command::new("id").args([which, name]).output().ok()?;
                String::from_utf8(output.stdout).ok()?.trim().parse().ok()
            };
            Some(Self { uid: number("-u")?, gid: number("-g")? })
        });
        found.map(Some).context("PostgreSQL refuses to run as root, and there is no user postgres or nobody")
    }

    fn own(&self, path: &Path) -> Result<()> {
        chown(path, Some(self.uid), Some(self.gid)).with_context(|| format!("give {} away", path.display()))
    }
}
