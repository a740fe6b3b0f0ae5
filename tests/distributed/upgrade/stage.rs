//! One coordinator with its database, and workers, of whichever version the binaries are.

use std::collections::BTreeMap;
use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::SystemTime;

use anyhow::{Context, Result, ensure};
use proto::admin::v1;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use servers::mariadb::{self, MariaDb};
use servers::postgres::{self, Postgres};
use tests::cluster::api::Api;
use tests::cluster::daemon::Daemon;
use tests::cluster::processes::{self, ProcessIdentity};
use tests::cluster::{Sandbox, binaries, ports, rugctl};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

/// Where clusters are recorded, and where their instances are adopted: the path of the state directory is part of what is
/// stored.
pub(super) const HOME: &str = "/tmp/rug-recorded";
/// Stands for the path of `rug-appliance` in recorded arguments.
pub(super) const APPLIANCE: &str = "{appliance}";
/// Name of the only database.
const DATABASE: &str = "rug";
/// Long enough for everything that was recorded to be looked at before the leases in it are over.
pub(super) const LEASE: &str = "20s";

/// A file, or with an empty `extension` a folder, of what was recorded.
pub(super) fn data(name: &str, extension: &str) -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/data/previous")).join(name).with_extension(extension)
}

/// What was shown of a cluster before it was stopped.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Recorded {
    /// The term that was led.
    pub(super) term: u64,
    /// `rugctl list`.
    pub(super) appliances: Vec<Value>,
    /// `rugctl worker list`.
    pub(super) workers: Vec<Value>,
    /// `rugctl rebalance get` of each.
    pub(super) rebalances: Vec<Value>,
    /// A call that was made under a request id.
    pub(super) request: StageRequest,
}

/// See [`requested`].
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct StageRequest {
    /// Its id.
    pub(super) id: String,
    /// The appliance it made.
    pub(super) appliance: String,
}

/// A call under a request id.
pub(super) fn requested(id: &str) -> v1::CreateApplianceRequest {
    let custom = v1::Custom { command: "simulated".into(), ..v1::Custom::default() };
    let spec = v1::Spec { kind: Some(v1::spec::Kind::Custom(custom)), ..v1::Spec::default() };
    let appliance =
        v1::Appliance { name: "requested".into(), driver: "simulated".into(), spec: Some(spec), ..Default::default() };
    v1::CreateApplianceRequest { appliance: Some(appliance), request_id: id.to_owned(), ..Default::default() }
}

/// A process of an instance, as it was started.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct StageProcess {
    /// Name of the instance.
    pub(super) instance: String,
    /// Program and arguments.
    pub(super) arguments: Vec<String>,
    /// Its own variables.
    pub(super) variables: BTreeMap<String, String>,
    /// Its working directory.
    pub(super) directory: PathBuf,
}

impl StageProcess {
    fn folder(&self, workers: &Path) -> Result<PathBuf> {
        let variable = |name: &str| self.variables.get(name).with_context(|| format!("no {name}"));
        Ok(workers.join("instances").join(variable("RUG_APPLIANCE")?).join(variable("RUG_ORDINAL")?))
    }

    /// What the driver keeps about it.
    pub(super) fn record(&self, workers: &Path) -> Result<PathBuf> {
        Ok(self.folder(workers)?.join("instance.json"))
    }

    /// Fails unless it serves: its contract, if it has one, and its port otherwise.
    pub(super) fn serves(&self, workers: &Path) -> Result<()> {
        let address = if self.arguments.iter().any(|argument| argument == "--management") {
            fs::read_to_string(self.folder(workers)?.join("management"))?
        } else {
            self.variables.get("RUG_ADDRESS").context("no address")?.clone()
        };
        TcpStream::connect(address.trim().parse::<SocketAddr>()?).with_context(|| self.instance.clone())?;
        Ok(())
    }
}

/// Sort of database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StageProcessKind {
    Sqlite,
    Postgres,
    MariaDb,
}

impl StageProcessKind {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Sqlite => "sqlite",
            Self::Postgres => "postgres",
            Self::MariaDb => "mariadb",
        }
    }
}

/// A database that can be written to SQL and made from it.
#[derive(Debug)]
pub(super) enum StageDatabase {
    Sqlite(PathBuf),
    Postgres(Box<Postgres>),
    MariaDb(Box<MariaDb>),
}

impl StageDatabase {
    async fn start(kind: StageProcessKind, file: PathBuf) -> Result<Self> {
        Ok(match kind {
            StageProcessKind::Sqlite => Self::Sqlite(file),
            StageProcessKind::Postgres => {
                let server = Postgres::start(postgres::Options { fsync: false, ..Default::default() }).await?;
                server.create_database(DATABASE).await?;
                Self::Postgres(Box::new(server))
            }
            StageProcessKind::MariaDb => {
                let server = MariaDb::start(mariadb::Options { fsync: false, ..Default::default() }).await?;
                server.create_database(DATABASE).await?;
                Self::MariaDb(Box::new(server))
            }
        })
    }

    fn url(&self) -> String {
        match self {
            Self::Sqlite(file) => format!("sqlite:{}", file.display()),
            Self::Postgres(server) => server.url(DATABASE),
            Self::MariaDb(server) => server.url(DATABASE),
        }
    }

    /// All of it, as its own tool writes it; without what only that version of the tool understands.
    pub(super) async fn dump(&self) -> Result<String> {
        let text = match self {
            Self::Sqlite(file) => {
                let code = "import sqlite3, sys\nfor line in sqlite3.connect(sys.argv[1]).iterdump(): print(line)";
                run(Command::new("python3").args(["-c", code]).arg(file), "").await?
            }
            Self::Postgres(_) => {
                let options = ["--inserts", "--no-owner", "--no-privileges", "--dbname"];
                run(Command::new("pg_dump").args(options).arg(self.url()), "").await?
            }
            Self::MariaDb(server) => dump_mariadb(server).await?,
        };
        let kept = text.lines().filter(|line| {
            // Commands of psql that older ones do not know.
            !line.starts_with('\\') && !line.starts_with("--") && !line.is_empty()
        });
        Ok(kept.flat_map(|line| [line, "\n"]).collect())
    }

    /// Makes it what a dump says, with requests as if they were made now: they are forgotten after a day.
    pub(super) async fn load(&self, sql: &str) -> Result<()> {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_nanos();
        // A dump of PostgreSQL leaves no schema to look in.
        let table = if matches!(self, Self::Postgres(_)) { "public.requests" } else { "requests" };
        let sql = &format!("{sql}\nUPDATE {table} SET time_ns = {now};\n");
        match self {
            Self::Sqlite(file) => {
                let code = "import sqlite3, sys\nsqlite3.connect(sys.argv[1]).executescript(sys.stdin.read())";
                run(Command::new("python3").args(["-c", code]).arg(file), sql).await?;
            }
            Self::Postgres(server) => _ = server.sql(DATABASE, sql).await?,
            Self::MariaDb(server) => _ = server.sql(DATABASE, sql).await?,
        }
        Ok(())
    }
}

/// MariaDB's client comes without its own tool for this.
async fn dump_mariadb(server: &MariaDb) -> Result<String> {
    let rows = async |statement: &str| -> Result<Vec<String>> {
        let rows = server.sql(DATABASE, statement).await?;
        // As the client escapes it; a backslash of the text itself comes as two.
        let plain =
            |row: &str| row.replace("\\\\", "\u{0}").replace("\\n", "\n").replace("\\t", "\t").replace('\u{0}', "\\");
        Ok(rows.lines().map(plain).collect())
    };
    let mut text = String::new();
    for table in rows("SHOW TABLES").await? {
        let made = rows(&format!("SHOW CREATE TABLE `{table}`")).await?.concat();
        let (_, statement) = made.split_once('\t').context("name and statement")?;
        text.push_str(&format!("{statement};\n"));
        let columns = rows(&format!(
            "SELECT column_name, data_type FROM information_schema.columns \
             WHERE table_schema = '{DATABASE}' AND table_name = '{table}' ORDER BY ordinal_position"
        ))
        .await?;
        let literal = |column: &String| match column.split_once('\t') {
            Some((name, kind)) if kind.ends_with("blob") || kind.ends_with("binary") => {
                format!("CONCAT('x''', HEX(`{name}`), '''')")
            }
            Some((name, _)) => format!("QUOTE(`{name}`)"),
            None => column.clone(),
        };
        let columns: Vec<String> = columns.iter().map(literal).collect();
        let select = format!("SELECT CONCAT_WS(',', {}) FROM `{table}`", columns.join(", "));
        for row in rows(&select).await? {
            text.push_str(&format!("INSERT INTO `{table}` VALUES ({row});\n"));
        }
    }
    Ok(text)
}

async fn run(command: &mut Command, input: &str) -> Result<String> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("start {:?}", command.as_std().get_program()))?;
    let mut stdin = child.stdin.take().context("it has no standard input")?;
    let feed = async {
        _ = stdin.write_all(input.as_bytes()).await;
        drop(stdin);
    };
    let output = async { tokio::join!(feed, child.wait_with_output()).1 }.await?;
    ensure!(output.status.success(), "{:?}: {}", command.as_std(), String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

/// Copies a folder with everything in it.
pub(super) fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from).with_context(|| from.display().to_string())? {
        let entry = entry?;
        let to = to.join(entry.file_name());
        if entry.file_type()?.is_dir() { copy(&entry.path(), &to)? } else { _ = fs::copy(entry.path(), to)? }
    }
    Ok(())
}

/// See the head of this file. Workers `w1` and `w2` offer processes, `w3` simulates.
#[derive(Debug)]
pub(super) struct UpgradeStage {
    pub(super) api: Api,
    pub(super) database: StageDatabase,
    pub(super) coordinator: Daemon,
    pub(super) workers: Vec<Daemon>,
    sandbox: Sandbox,
}

impl UpgradeStage {
    /// Nothing runs yet but the database.
    pub(super) async fn prepare(kind: StageProcessKind, sandbox: Sandbox) -> Result<Self> {
        let state_dir = sandbox.path("coordinator");
        fs::create_dir_all(&state_dir)?;
        let database = StageDatabase::start(kind, state_dir.join("rug.db")).await?;
        let listen = format!("127.0.0.1:{}", ports::free());
        let address = format!("http://{listen}");
        let mut arguments: Vec<_> =
            ["run", "--name", "c1", "--listen", &listen, "--insecure", "--state-dir"].map(Into::into).to_vec();
        arguments.push(state_dir.into_os_string());
        let mut coordinator = Daemon::new("c1", binaries::path("rug-coordinator")?, arguments, &sandbox);
        coordinator.environment(&[("RUG_COORDINATOR_STORE__URL", database.url())]);
        let mut workers = Vec::new();
        for (name, driver, lease) in [("w1", "process", LEASE), ("w2", "process", LEASE), ("w3", "simulated", "2s")] {
            let named = ["run", "--name", name, "--coordinator", &address, "--host", "recorded", "--driver", driver];
            let mut arguments = named.map(Into::into).to_vec();
            arguments.extend(["--state-dir".into(), sandbox.path("workers").into_os_string()]);
            let mut worker = Daemon::new(name, binaries::path("rug-worker")?, arguments, &sandbox);
            worker.environment(&[("RUG_WORKER_SESSION__LEASE", lease.to_owned())]);
            workers.push(worker);
        }
        Ok(Self { api: Api::new(&address)?, database, coordinator, workers, sandbox })
    }

    /// State directory of the coordinator.
    pub(super) fn coordinator_dir(&self) -> PathBuf {
        self.sandbox.path("coordinator")
    }

    /// State directory of the workers.
    pub(super) fn workers_dir(&self) -> PathBuf {
        self.sandbox.path("workers")
    }

    /// The worker of this name.
    pub(super) fn worker(&mut self, name: &str) -> Result<&mut Daemon> {
        self.workers.iter_mut().find(|worker| worker.name() == name).with_context(|| format!("there is no {name}"))
    }

    /// Starts these workers.
    pub(super) fn start_workers(&mut self, names: &[&str]) -> Result<()> {
        names.iter().try_for_each(|name| self.worker(name)?.start())
    }

    /// Fails when something has ended by itself.
    pub(super) fn check(&mut self) -> Result<()> {
        std::iter::once(&mut self.coordinator).chain(&mut self.workers).try_for_each(Daemon::check)
    }

    /// Instances that run.
    pub(super) fn instances(&self) -> BTreeMap<String, ProcessIdentity> {
        processes::instances(self.sandbox.root())
    }

    /// What `rugctl` shows.
    pub(super) async fn rugctl(&self, arguments: &[&str]) -> Result<Value> {
        let server = ["-o", "json", "--server", self.api.address()];
        let arguments: Vec<&str> = arguments.iter().copied().chain(server).collect();
        rugctl::run(self.sandbox.root(), &arguments, "").await?.json()
    }

    /// Every appliance, with the values of its variables.
    pub(super) async fn appliances(&self) -> Result<Vec<Value>> {
        match self.rugctl_list(&["list", "--show-secrets"]).await {
            Ok(shown) => Ok(shown),
            // A version that does not know the flag shows them in any case.
            Err(_) => self.rugctl_list(&["list"]).await,
        }
    }

    /// What `rugctl` lists.
    pub(super) async fn rugctl_list(&self, arguments: &[&str]) -> Result<Vec<Value>> {
        Ok(serde_json::from_value(self.rugctl(arguments).await?)?)
    }

    /// Every rebalance with its moves.
    pub(super) async fn rebalances(&self) -> Result<Vec<Value>> {
        let mut all = Vec::new();
        for one in self.rugctl_list(&["rebalance", "list"]).await? {
            all.push(self.rugctl(&["rebalance", "get", one["id"].as_str().context("it has an id")?]).await?);
        }
        Ok(all)
    }

    /// Ends and removes everything.
    pub(super) async fn finish(mut self) -> Result<()> {
        self.check()?;
        self.sandbox.finish(&[])
    }
}

/// Ends and removes everything, whatever the logs say.
pub(super) fn dismantle(stage: UpgradeStage) -> Result<()> {
    stage.sandbox.dismantle(false)
}
