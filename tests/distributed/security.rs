//! A whole cluster over mutual TLS: with each other, with ZooKeeper, where it also has credentials, and with PostgreSQL.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use proto::admin::v1;
use proto::admin::v1::appliances_client::AppliancesClient;
use runtime::channel::Target;
use runtime::tls;
use servers::ServerTlsFiles;
use servers::ports::Port;
use servers::postgres::{self, Postgres};
use servers::zookeeper::{self, Ensemble};
use tests::cluster::api::{self, Api};
use tests::cluster::certificates::Certificates;
use tests::cluster::daemon::Daemon;
use tests::cluster::wait::until;
use tests::cluster::{PATIENCE, Sandbox, binaries, checks, processes, rugctl, specs};
use tokio::process::Command;
use zookeeper_client::{Acls, Client, CreateMode, Error};

/// Where the cluster is in ZooKeeper, and as whom.
const CHROOT: &str = "/prod/rug";
const CREDENTIALS: &str = "rug:s3cret";

/// A certificate as servers of others take it.
fn server_files(certificates: &Certificates, name: &str) -> Result<ServerTlsFiles> {
    let read = |file| std::fs::read_to_string(certificates.file(name, file)).context("read a certificate");
    Ok(ServerTlsFiles { certificates: read("cert.pem")?, key: read("key.pem")?, authorities: read("ca.pem")? })
}

/// The cluster. Only the test's own walk through ZooKeeper does without TLS.
struct Secured {
    certificates: Certificates,
    zookeeper: Ensemble,
    postgres: Postgres,
    coordinators: Vec<Daemon>,
    workers: Vec<Daemon>,
    addresses: Vec<String>,
    apis: Vec<Api>,
    sandbox: Sandbox,
    _ports: Vec<Port>,
}

fn set(daemon: &mut Daemon, variables: &[(String, String)]) {
    for (name, value) in variables {
        daemon.environment(&[(name, value.clone())]);
    }
}

impl Secured {
    async fn start() -> Result<Self> {
        tls::install_provider();
        let sandbox = Sandbox::new()?;
        let names = [
            "zookeeper",
            "postgres",
            "coordinator:c1",
            "coordinator:c2",
            "worker:w1",
            "worker:w2",
            "admin:operator",
            "viewer:watcher",
        ];
        let certificates = Certificates::make(sandbox.path("pki"), &names).await?;
        certificates.revoke(&[]).await?;
        let zookeeper = zookeeper::Options {
            tls: Some(server_files(&certificates, "zookeeper")?),
            client_certificates: true,
            ..zookeeper::Options::default()
        };
        let zookeeper = Ensemble::start(1, zookeeper).await?;
        let tls = Some(server_files(&certificates, "postgres")?);
        let postgres = Postgres::start(postgres::Options { tls, fsync: false, ..postgres::Options::default() }).await?;
        let store = postgres.create_database("rug").await?;
        let coordination = |name: &str| {
            let [ca, cert, key] = ["ca.pem", "cert.pem", "key.pem"].map(|file| certificates.shown(name, file));
            let servers = zookeeper.tls_connect_string();
            format!(
                "zookeeper://{CREDENTIALS}@{servers}{CHROOT}?timeout=4&use_ssl=true&ca={ca}&certfile={cert}&keyfile={key}"
            )
        };
        let (mut coordinators, mut workers, mut addresses, mut apis) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let mut ports = Vec::new();
        for name in ["c1", "c2"] {
            let port = Port::free()?;
            let listen = format!("127.0.0.1:{}", port.number());
            let mut args: Vec<_> = ["run", "--name", name, "--listen", &listen, "--state-dir"].map(Into::into).to_vec();
            args.push(sandbox.path(name).into_os_string());
            let mut daemon = Daemon::new(name, binaries::path("rug-coordinator")?, args, &sandbox);
            set(&mut daemon, &certificates.variables("RUG_COORDINATOR", name));
            let store = format!("{store}?sslmode=verify-full&sslrootcert={}", certificates.shown(name, "ca.pem"));
            daemon.environment(&[
                ("RUG_COORDINATOR_TLS__RELOAD_INTERVAL", "200ms".to_owned()),
                ("RUG_COORDINATOR_TLS__CRL", certificates.list().display().to_string()),
                ("RUG_COORDINATOR_COORDINATION__URL", coordination(name)),
                ("RUG_COORDINATOR_STORE__URL", store),
            ]);
            coordinators.push(daemon);
            let address = format!("https://{listen}");
            let client = certificates.client("operator")?;
            let channel = Target::new(&address, Some(&client))?.connect_lazy();
            apis.push(Api::over(&address, channel));
            addresses.push(address);
            ports.push(port);
        }
        for name in ["w1", "w2"] {
            let mut args: Vec<_> =
                ["run", "--name", name, "--host", "test-host", "--state-dir"].map(Into::into).to_vec();
            args.push(sandbox.path("workers").into_os_string());
            args.extend(["--driver", "process"].map(Into::into));
            let mut daemon = Daemon::new(name, binaries::path("rug-worker")?, args, &sandbox);
            set(&mut daemon, &certificates.variables("RUG_WORKER", name));
            daemon.environment(&[("RUG_WORKER_COORDINATION__URL", coordination(name))]);
            workers.push(daemon);
        }
        let mut cluster =
            Self { certificates, zookeeper, postgres, coordinators, workers, addresses, apis, sandbox, _ports: ports };
        for daemon in cluster.coordinators.iter_mut().chain(&mut cluster.workers) {
            daemon.start()?;
        }
        cluster.healthy().await?;
        Ok(cluster)
    }

    /// The API at the first coordinator that runs.
    fn api(&self) -> &Api {
        let running = self.coordinators.iter().position(Daemon::runs).expect("a coordinator runs");
        &self.apis[running]
    }

    async fn healthy(&mut self) -> Result<()> {
        until(PATIENCE, "both workers are healthy", async || {
            for daemon in self.coordinators.iter_mut().chain(&mut self.workers) {
                daemon.check()?;
            }
            let workers = self.api().workers().await?;
            let healthy = workers.iter().filter(|w| w.health() == v1::Health::Healthy).count();
            ensure!(healthy == 2, "{workers:?}");
            Ok(())
        })
        .await
    }

    async fn create(&self, names: &[&str]) -> Result<()> {
        for name in names {
            self.api().create(specs::web(name)).await?;
        }
        until(PATIENCE, "they are configured", async || {
            for name in names {
                let appliance = self.api().get(name).await?;
                ensure!(api::is_configured(&appliance), "{}", api::describe(&appliance));
            }
            Ok(())
        })
        .await
    }

    async fn rugctl(&self, flags: &[String]) -> Result<rugctl::CommandOutput> {
        let servers = self.addresses.join(",");
        let mut args = ["cluster", "status", "--server", &servers].map(ToOwned::to_owned).to_vec();
        args.extend_from_slice(flags);
        rugctl::run(self.sandbox.root(), &args, "").await
    }

    async fn finish(mut self) -> Result<()> {
        checks::final_state(self.api(), self.sandbox.root(), &self.sandbox.path("workers")).await?;
        for daemon in self.coordinators.iter_mut().chain(&mut self.workers) {
            daemon.check()?;
        }
        self.sandbox.finish(&[])
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_over_tls_lets_nobody_else_in_and_renews_its_certificates() -> Result<()> {
    let mut cluster = Secured::start().await?;
    cluster.create(&["web-1", "web-2", "web-3", "web-4"]).await?;
    let instances = processes::instances(cluster.sandbox.root());

    // Operators with a certificate of the cluster's CA are let in, through whichever coordinator; nobody else is.
    let operator = cluster.certificates.flags("operator");
    cluster.rugctl(&operator).await?.success()?;
    let foreign = Certificates::make(cluster.sandbox.path("foreign"), &["admin:operator"]).await?;
    for flags in [Vec::new(), foreign.flags("operator"), borrowed(&cluster.certificates, &foreign)] {
        let outcome = cluster.rugctl(&flags).await?;
        ensure!(outcome.code != 0 && !outcome.stdout.contains("Workers"), "{flags:?} got in: {outcome:?}");
        ensure!(outcome.stderr.contains("TLS") || outcome.stderr.contains("tls"), "it does not say why: {outcome:?}");
    }
    let plain = Api::new(&cluster.addresses[0].replace("https://", "http://"))?;
    ensure!(plain.status().await.is_err(), "the APIs answer without TLS");

    // Every connection to the database is encrypted.
    let connections = "SELECT count(*), count(*) FILTER (WHERE ssl) FROM pg_stat_activity JOIN pg_stat_ssl USING (pid) \
                       WHERE datname = 'rug'";
    let counted = cluster.postgres.sql("postgres", connections).await?;
    let (all, encrypted) = counted.split_once('|').context("two counts")?;
    ensure!(all == encrypted && all != "0", "{encrypted} of {all} connections are encrypted");

    nodes_are_closed(&cluster.zookeeper).await?;
    secrets_are_not_shown(&cluster).await?;

    // Renewal: new files, new connections, nothing restarted.
    let (old, pids) = (served(&cluster.addresses[0]).await?, pids(&cluster));
    Certificates::make(
        cluster.certificates.folder().to_owned(),
        &["coordinator:c1", "coordinator:c2", "worker:w1", "worker:w2", "admin:operator"],
    )
    .await?;
    until(PATIENCE, "the renewed certificates are served", async || {
        for (address, name) in cluster.addresses.iter().zip(["c1", "c2"]) {
            let (now, file) = (served(address).await?, in_file(&cluster.certificates.file(name, "cert.pem")).await?);
            ensure!(now == file && now != old, "{name} serves {now}, its file has {file}");
        }
        Ok(())
    })
    .await?;
    ensure!(self::pids(&cluster) == pids, "something was restarted");
    // With the leader gone everybody connects anew, with the renewed ones.
    let leader = usize::from(cluster.api().status().await?.coordinator == "c2");
    let status = cluster.coordinators[leader].stop(PATIENCE).await?;
    ensure!(status.success(), "it ended with {status}");
    cluster.healthy().await?;
    cluster.create(&["web-5"]).await?;
    cluster.coordinators[leader].start()?;
    cluster.healthy().await?;
    let after = processes::instances(cluster.sandbox.root());
    ensure!(instances.iter().all(|(name, process)| after.get(name) == Some(process)), "an appliance was restarted");
    cluster.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_certificate_ends_the_connections_that_stand_and_no_others() -> Result<()> {
    let cluster = Secured::start().await?;
    cluster.create(&["web-1", "web-2"]).await?;
    let watch = async |name: &str| {
        let target = Target::new(&cluster.addresses[0], Some(&cluster.certificates.client(name)?))?;
        let mut appliances = AppliancesClient::new(target.connect().await?);
        anyhow::Ok(appliances.watch(v1::WatchAppliancesRequest::default()).await?.into_inner())
    };
    let (mut stays, mut ends) = (watch("operator").await?, watch("watcher").await?);
    cluster.certificates.revoke(&["watcher", "w2"]).await?;
    let ended = async {
        loop {
            match ends.message().await {
                Ok(Some(_)) => {}
                ended => return ended,
            }
        }
    };
    let ended = tokio::time::timeout(PATIENCE, ended).await.context("the watch goes on")?;
    println!("the watch of the revoked one ended with {ended:?}");
    ensure!(watch("watcher").await.is_err(), "it is let in again");
    let said = "its certificate is no longer accepted: the connection ends";
    until(PATIENCE, "the worker's session has ended, too", async || {
        let logs: String = cluster.coordinators.iter().map(Daemon::log_text).collect();
        let ended = |name: &str| logs.lines().any(|line| line.contains(said) && line.contains(name));
        ensure!(ended("watcher") && ended("w2"), "{logs}");
        let workers = cluster.api().workers().await?;
        let health = |name: &str| workers.iter().find(|w| w.id == name).map(v1::Worker::health);
        ensure!(health("w1") == Some(v1::Health::Healthy) && health("w2") != Some(v1::Health::Healthy), "{workers:?}");
        Ok(())
    })
    .await?;
    // The other one goes on: it hears of what is made now.
    cluster.api().create(specs::web("web-3")).await?;
    let heard = async {
        while let Some(event) = stays.message().await? {
            if event.appliance.is_some_and(|appliance| appliance.name == "web-3") {
                return Ok(());
            }
        }
        anyhow::bail!("it has ended")
    };
    tokio::time::timeout(PATIENCE, heard).await.context("it hears nothing")??;
    cluster.sandbox.finish(&["w2".to_owned(), "certificate".to_owned()])
}

/// The cluster's CA to check servers with, and a certificate of somebody else.
fn borrowed(own: &Certificates, foreign: &Certificates) -> Vec<String> {
    let mut flags = foreign.flags("operator");
    flags[1] = own.shown("operator", "ca.pem");
    flags
}

fn pids(cluster: &Secured) -> Vec<Option<u32>> {
    cluster.coordinators.iter().chain(&cluster.workers).map(Daemon::pid).collect()
}

/// Nobody without the credentials reads or writes any node of the cluster.
async fn nodes_are_closed(zookeeper: &Ensemble) -> Result<()> {
    let connector = || Client::connector().with_session_timeout(Duration::from_secs(30));
    let owner = connector().with_auth("digest", CREDENTIALS.as_bytes()).connect(&zookeeper.address(0)).await?;
    let strangers = [
        connector().connect(&zookeeper.address(0)).await?,
        connector().with_auth("digest", b"rug:guess").connect(&zookeeper.address(0)).await?,
    ];
    let (mut paths, mut seen) = (vec!["/prod".to_owned()], Vec::new());
    while let Some(path) = paths.pop() {
        // Heartbeats and elections go on meanwhile: a node may be gone by now.
        let Ok(children) = owner.list_children(&path).await else { continue };
        paths.extend(children.iter().map(|child| format!("{path}/{child}")));
        let child = format!("{path}/intruder");
        let mode = CreateMode::Persistent.with_acls(Acls::anyone_all());
        for stranger in &strangers {
            let answers = [
                ("read", stranger.get_data(&path).await.err()),
                ("list", stranger.list_children(&path).await.err()),
                ("write", stranger.set_data(&path, b"x", None).await.err()),
                ("add to", stranger.create(&child, b"x", &mode).await.err()),
                ("delete", stranger.delete(&path, None).await.err()),
            ];
            for (what, error) in answers {
                // A delete of a node with children is refused for them before anybody asks who it was.
                let refused = matches!(error, Some(Error::NoAuth | Error::NoNode))
                    || (what == "delete" && matches!(error, Some(Error::NotEmpty)));
                ensure!(refused, "a stranger can {what} {path}: {error:?}");
            }
        }
        seen.push(path);
    }
    seen.sort();
    println!("{} nodes are closed to strangers", seen.len());
    ensure!(
        seen.iter().any(|path| path.starts_with(CHROOT) && path.ends_with("/leases/w1")),
        "the walk did not see the workers' leases: {seen:?}"
    );
    Ok(())
}

/// Neither credentials nor passwords appear where people look.
async fn secrets_are_not_shown(cluster: &Secured) -> Result<()> {
    let status = cluster.rugctl(&cluster.certificates.flags("operator")).await?.success()?.stdout;
    let logs: String = cluster.coordinators.iter().chain(&cluster.workers).map(Daemon::log_text).collect();
    for secret in ["s3cret", "rug:rug@"] {
        ensure!(!status.contains(secret) && !logs.contains(secret), "{secret:?} is shown");
    }
    ensure!(status.contains(CHROOT), "the chroot is not shown:\n{status}");
    Ok(())
}

/// Serial number of the certificate that is served at an address.
async fn served(address: &str) -> Result<String> {
    let address = address.trim_start_matches("https://");
    let line = format!("openssl s_client -connect {address} </dev/null 2>/dev/null | openssl x509 -noout -serial");
    openssl(&line).await
}

async fn in_file(path: &Path) -> Result<String> {
    openssl(&format!("openssl x509 -noout -serial -in {}", path.display())).await
}

async fn openssl(line: &str) -> Result<String> {
    let output = Command::new("sh").args(["-c", line]).output().await?;
    ensure!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}
