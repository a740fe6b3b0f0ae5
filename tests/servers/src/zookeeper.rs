//! ZooKeeper as Debian packages it: one server, or an ensemble.
//!
//! Servers keep their ports and their data over `kill` and `start_again`. A server is ready when it answers the
//! four-letter word `srvr` with its mode, not when it accepts connections: it does that before it serves.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::folder::ServerFolder;
use crate::netns::Host;
use crate::ports::Port;
use crate::server::ServerProcess;
use crate::wait::until;
use crate::{PATIENCE, ServerTlsFiles};

const ZOOKEEPER_JAR: &str = "/usr/share/java/zookeeper.jar";
/// Only makes the server log; without it, it runs silently.
const LOGGER_JAR: &str = "/usr/share/java/slf4j-simple.jar";
/// What Netty, and so TLS, needs beyond the class path that the package declares.
const NETTY_JARS: &str = "/usr/share/java/netty-codec.jar:/usr/share/java/netty-resolver.jar\
    :/usr/share/java/netty-transport-native-unix-common.jar";
/// How often a whole start is tried again when a foreign program took one of the ports.
const STARTS: usize = 3;
/// How long a four-letter word may take; a paused server never answers.
const WORD_LIMIT: Duration = Duration::from_secs(2);

/// How servers are set up.
#[derive(Clone, Debug)]
pub struct Options {
    /// The unit of all of ZooKeeper's times. Lower: dead peers and sessions are noticed sooner, at more traffic.
    pub tick_time: Duration,
    /// The shortest session a client can have. By default two ticks, as ZooKeeper has it.
    pub min_session_timeout: Option<Duration>,
    /// The longest session a client can have.
    pub max_session_timeout: Duration,
    /// Ticks a server has to find its leader and to catch up with it.
    pub init_limit: u32,
    /// Ticks after which a server that does not answer its leader is dropped.
    pub sync_limit: u32,
    /// Whether writes wait for the disk. A killed process loses nothing either way, only a crashed machine does.
    pub fsync: bool,
    /// Opens a second port with TLS on every server.
    pub tls: Option<ServerTlsFiles>,
    /// Whether clients must show a certificate at that port.
    pub client_certificates: bool,
    /// Further lines of `zoo.cfg`.
    pub settings: Vec<(String, String)>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            tick_time: Duration::from_millis(500),
            min_session_timeout: None,
            max_session_timeout: Duration::from_secs(60),
            init_limit: 10,
            sync_limit: 5,
            fsync: false,
            tls: None,
            client_certificates: false,
            settings: Vec::new(),
        }
    }
}

/// Some servers that share their data; or one that serves alone.
///
/// Servers are named by their index from 0.
#[derive(Debug)]
pub struct Ensemble {
    nodes: Vec<ServerNode>,
    _folder: ServerFolder,
}

#[derive(Debug)]
struct ServerNode {
    server: ServerProcess,
    address: IpAddr,
    client: Port,
    secure: Option<Port>,
    quorum: Port,
    election: Port,
    host: Option<Host>,
}

impl Ensemble {
    /// Starts `count` servers at the loopback address and waits until all serve.
    ///
    /// # Errors
    /// When ZooKeeper is not installed, or a server does not serve within [`PATIENCE`].
    pub async fn start(count: usize, options: Options) -> Result<Self> {
        Self::start_at(vec![None; count], options).await
    }

    /// Starts one server on each host of a network.
    ///
    /// # Errors
    /// As [`Ensemble::start`].
    pub async fn start_on(hosts: &[&Host], options: Options) -> Result<Self> {
        Self::start_at(hosts.iter().map(|host| Some((*host).clone())).collect(), options).await
    }

    async fn start_at(hosts: Vec<Option<Host>>, options: Options) -> Result<Self> {
        ensure!(!hosts.is_empty(), "an ensemble needs a server");
        for _ in 1..STARTS {
            let mut ensemble = Self::prepare(hosts.clone(), &options)?;
            match ensemble.start_all().await {
                Err(_) if ensemble.nodes.iter().any(|node| node.server.port_was_taken()) => {}
                result => return result.map(|()| ensemble),
            }
        }
        let mut ensemble = Self::prepare(hosts, &options)?;
        ensemble.start_all().await?;
        Ok(ensemble)
    }

    fn prepare(hosts: Vec<Option<Host>>, options: &Options) -> Result<Self> {
        let folder = ServerFolder::new("zookeeper")?;
        let mut nodes = Vec::new();
        for (i, host) in hosts.into_iter().enumerate() {
            let home = folder.path().join(format!("server-{}", i + 1));
            fs::create_dir_all(&home)?;
            nodes.push(ServerNode {
                server: ServerProcess::new(format!("ZooKeeper server {i}"), home),
                address: host.as_ref().map_or(IpAddr::from([127, 0, 0, 1]), Host::address),
                client: Port::free()?,
                secure: options.tls.is_some().then(Port::free).transpose()?,
                quorum: Port::free()?,
                election: Port::free()?,
                host,
            });
        }
        let ensemble = Self { nodes, _folder: folder };
        for i in 0..ensemble.nodes.len() {
            ensemble.configure(i, options)?;
        }
        Ok(ensemble)
    }

    fn configure(&self, i: usize, options: &Options) -> Result<()> {
        let node = &self.nodes[i];
        let home = node.server.home();
        let tick = options.tick_time.as_millis();
        let mut lines = vec![
            format!("tickTime={tick}"),
            format!("initLimit={}", options.init_limit),
            format!("syncLimit={}", options.sync_limit),
            format!("dataDir={}", self.data(i).display()),
            format!("clientPort={}", node.client.number()),
            format!("clientPortAddress={}", node.address),
            format!("minSessionTimeout={}", options.min_session_timeout.map_or(2 * tick, |least| least.as_millis())),
            format!("maxSessionTimeout={}", options.max_session_timeout.as_millis()),
            "4lw.commands.whitelist=*".to_owned(),
            "admin.enableServer=false".to_owned(),
            "maxClientCnxns=0".to_owned(),
            // KB; the default of 64 MB per log file is slow to fill with zeros.
            "preAllocSize=1024".to_owned(),
            format!("forceSync={}", if options.fsync { "yes" } else { "no" }),
        ];
        if let (Some(tls), Some(port)) = (&options.tls, &node.secure) {
            let keys = home.join("server.pem");
            fs::write(&keys, format!("{}\n{}", tls.key, tls.certificates))?;
            let authorities = home.join("authorities.pem");
            fs::write(&authorities, &tls.authorities)?;
            lines.extend([
                format!("secureClientPort={}", port.number()),
                format!("secureClientPortAddress={}", node.address),
                "serverCnxnFactory=org.apache.zookeeper.server.NettyServerCnxnFactory".to_owned(),
                format!("ssl.keyStore.location={}", keys.display()),
                "ssl.keyStore.type=PEM".to_owned(),
                format!("ssl.trustStore.location={}", authorities.display()),
                "ssl.trustStore.type=PEM".to_owned(),
                // Of clients; they are known by their certificate, not by where they come from.
                "ssl.clientHostnameVerification=false".to_owned(),
                "ssl.hostnameVerification=false".to_owned(),
                format!("ssl.clientAuth={}", if options.client_certificates { "need" } else { "none" }),
            ]);
        }
        if self.nodes.len() > 1 {
            for (i, node) in self.nodes.iter().enumerate() {
                let (quorum, election) = (node.quorum.number(), node.election.number());
                lines.push(format!("server.{}={}:{quorum}:{election}", i + 1, node.address));
            }
        }
        lines.extend(options.settings.iter().map(|(name, value)| format!("{name}={value}")));
        fs::write(home.join("zoo.cfg"), lines.join("\n") + "\n")?;
        self.lay_out(i)
    }

    /// The data folder as a new server has it.
    fn lay_out(&self, i: usize) -> Result<()> {
        let data = self.data(i);
        fs::create_dir_all(&data)?;
        if self.nodes.len() > 1 {
            fs::write(data.join("myid"), format!("{}\n", i + 1))?;
        }
        Ok(())
    }

    async fn start_all(&mut self) -> Result<()> {
        for node in &mut self.nodes {
            node.launch()?;
        }
        for node in &mut self.nodes {
            node.serves().await?;
        }
        Ok(())
    }

    /// How many servers there are, whether they run or not.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Never; there is at least one server.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// `host:port` of one server.
    ///
    /// # Panics
    /// As every method with an index: when there is no such server.
    #[must_use]
    pub fn address(&self, i: usize) -> String {
        format!("{}:{}", self.nodes[i].address, self.nodes[i].client.number())
    }

    /// `host:port` of one server where it speaks TLS.
    #[must_use]
    pub fn tls_address(&self, i: usize) -> Option<String> {
        let node = &self.nodes[i];
        node.secure.as_ref().map(|port| format!("{}:{}", node.address, port.number()))
    }

    /// Addresses of all servers, separated by commas.
    #[must_use]
    pub fn connect_string(&self) -> String {
        (0..self.len()).map(|i| self.address(i)).collect::<Vec<_>>().join(",")
    }

    /// Addresses where all servers speak TLS, separated by commas; empty without [`Options::tls`].
    #[must_use]
    pub fn tls_connect_string(&self) -> String {
        (0..self.len()).filter_map(|i| self.tls_address(i)).collect::<Vec<_>>().join(",")
    }

    /// Where one server keeps its data.
    #[must_use]
    pub fn data(&self, i: usize) -> PathBuf {
        self.nodes[i].server.home().join("data")
    }

    /// What one server has logged so far.
    #[must_use]
    pub fn log_text(&self, i: usize) -> String {
        self.nodes[i].server.log_text()
    }

    /// Process id of one server while it runs.
    #[must_use]
    pub fn pid(&self, i: usize) -> Option<u32> {
        self.nodes[i].server.pid()
    }

    /// `kill -9`.
    ///
    /// # Errors
    /// When it does not run.
    pub fn kill(&mut self, i: usize) -> Result<()> {
        self.nodes[i].server.kill()
    }

    /// Starts a killed server with its data and ports. Waits until it serves, where enough servers run for that.
    ///
    /// # Errors
    /// When it runs, or does not serve within [`PATIENCE`].
    pub async fn start_again(&mut self, i: usize) -> Result<()> {
        self.nodes[i].launch()?;
        let awake = self.nodes.iter().filter(|node| node.server.is_awake()).count();
        if 2 * awake > self.len() {
            self.nodes[i].serves().await?;
        }
        Ok(())
    }

    /// Starts a killed server with its data and ports, and does not wait until it serves.
    ///
    /// # Errors
    /// When it runs.
    pub fn launch(&mut self, i: usize) -> Result<()> {
        self.nodes[i].launch()
    }

    /// SIGSTOP; has stopped on return.
    ///
    /// # Errors
    /// When it does not run.
    pub fn pause(&mut self, i: usize) -> Result<()> {
        self.nodes[i].server.pause()
    }

    /// SIGCONT.
    ///
    /// # Errors
    /// When it does not run.
    pub fn resume(&mut self, i: usize) -> Result<()> {
        self.nodes[i].server.resume()
    }

    /// Removes the data of a killed server.
    ///
    /// # Errors
    /// When it runs.
    pub fn wipe(&mut self, i: usize) -> Result<()> {
        ensure!(!self.nodes[i].server.runs(), "ZooKeeper server {i} runs");
        fs::remove_dir_all(self.data(i))?;
        self.lay_out(i)
    }

    /// Copies the data of a killed server to a folder that does not exist yet, for [`Ensemble::restore`].
    ///
    /// # Errors
    /// When it runs, or a file cannot be copied.
    pub fn save(&self, i: usize, to: &Path) -> Result<()> {
        ensure!(!self.nodes[i].server.runs(), "ZooKeeper server {i} runs");
        copy(&self.data(i), to)
    }

    /// Gives a killed server data that was saved before.
    ///
    /// # Errors
    /// When it runs, or a file cannot be copied.
    pub fn restore(&mut self, i: usize, from: &Path) -> Result<()> {
        self.wipe(i)?;
        fs::remove_dir_all(self.data(i))?;
        copy(from, &self.data(i))
    }

    /// Asks one server a four-letter word, such as `mntr`.
    ///
    /// # Errors
    /// When it does not answer in time.
    pub async fn four_letter(&self, i: usize, word: &str) -> Result<String> {
        ask(&self.address(i), word).await
    }

    /// What one server is now: `leader`, `follower` or `standalone`.
    ///
    /// # Errors
    /// When it does not serve.
    pub async fn mode(&self, i: usize) -> Result<String> {
        mode(&self.address(i)).await
    }

    /// Index of the leading server; waits until there is one.
    ///
    /// # Errors
    /// When there is none within [`PATIENCE`].
    pub async fn leader(&self) -> Result<usize> {
        until(PATIENCE, "a ZooKeeper server leads", async || {
            for (i, _) in self.nodes.iter().enumerate().filter(|(_, node)| node.server.is_awake()) {
                if matches!(self.mode(i).await.as_deref(), Ok("leader" | "standalone")) {
                    return Ok(i);
                }
            }
            bail!("none of them does")
        })
        .await
    }

    /// Waits until one server serves, after others that it needs were started.
    ///
    /// # Errors
    /// When it does not run, or does not serve within [`PATIENCE`].
    pub async fn serves(&mut self, i: usize) -> Result<()> {
        self.nodes[i].serves().await
    }
}

impl ServerNode {
    fn launch(&mut self) -> Result<()> {
        ensure!(Path::new(ZOOKEEPER_JAR).exists(), "{ZOOKEEPER_JAR} is missing (Debian package zookeeper)");
        let home = self.server.home().to_owned();
        let mut command = self.host.as_ref().map_or_else(|| Command::new("java"), |host| host.command("java"));
        command
            // Small and quick to start, not fast.
            .args(["-Xms32m", "-Xmx128m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xshare:auto"])
            .arg("-Dzookeeper.admin.enableServer=false")
            .args(["-cp", &format!("{}:{ZOOKEEPER_JAR}:{LOGGER_JAR}:{NETTY_JARS}", home.display())])
            .arg("org.apache.zookeeper.server.quorum.QuorumPeerMain")
            .arg(home.join("zoo.cfg"));
        self.server.start(command).context("a Java runtime is needed (Debian package default-jre-headless)")
    }

    async fn serves(&mut self) -> Result<()> {
        let address = format!("{}:{}", self.address, self.client.number());
        let secure = self.secure.as_ref().map(|port| (self.address, port.number()));
        self.server
            .ready(PATIENCE, async || {
                mode(&address).await?;
                // It opens that port last.
                if let Some(secure) = secure {
                    TcpStream::connect(secure).await?;
                }
                Ok(())
            })
            .await
    }
}

/// One server that serves alone.
#[derive(Debug)]
pub struct Standalone(Ensemble);

impl Standalone {
    /// Starts one at the loopback address and waits until it serves.
    ///
    /// # Errors
    /// When ZooKeeper is not installed, or does not serve within [`PATIENCE`].
    pub async fn start(options: Options) -> Result<Self> {
        Ensemble::start(1, options).await.map(Self)
    }

    /// Starts one on a host of a network.
    ///
    /// # Errors
    /// As [`Standalone::start`].
    pub async fn start_on(host: &Host, options: Options) -> Result<Self> {
        Ensemble::start_on(&[host], options).await.map(Self)
    }

    /// `host:port`.
    #[must_use]
    pub fn address(&self) -> String {
        self.0.address(0)
    }

    /// The same as [`Standalone::address`].
    #[must_use]
    pub fn connect_string(&self) -> String {
        self.0.connect_string()
    }

    /// `host:port` where it speaks TLS; empty without [`Options::tls`].
    #[must_use]
    pub fn tls_connect_string(&self) -> String {
        self.0.tls_connect_string()
    }

    /// Where it keeps its data.
    #[must_use]
    pub fn data(&self) -> PathBuf {
        self.0.data(0)
    }

    /// What it has logged so far.
    #[must_use]
    pub fn log_text(&self) -> String {
        self.0.log_text(0)
    }

    /// Its process id while it runs.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.0.pid(0)
    }

    /// `kill -9`.
    ///
    /// # Errors
    /// When it does not run.
    pub fn kill(&mut self) -> Result<()> {
        self.0.kill(0)
    }

    /// Starts it again with its data and port, and waits until it serves.
    ///
    /// # Errors
    /// When it runs, or does not serve within [`PATIENCE`].
    pub async fn start_again(&mut self) -> Result<()> {
        self.0.start_again(0).await
    }

    /// SIGSTOP; has stopped on return.
    ///
    /// # Errors
    /// When it does not run.
    pub fn pause(&mut self) -> Result<()> {
        self.0.pause(0)
    }

    /// SIGCONT.
    ///
    /// # Errors
    /// When it does not run.
    pub fn resume(&mut self) -> Result<()> {
        self.0.resume(0)
    }

    /// Removes its data once it was killed.
    ///
    /// # Errors
    /// When it runs.
    pub fn wipe(&mut self) -> Result<()> {
        self.0.wipe(0)
    }

    /// Copies its data once it was killed, for [`Standalone::restore`].
    ///
    /// # Errors
    /// When it runs, or a file cannot be copied.
    pub fn save(&self, to: &Path) -> Result<()> {
        self.0.save(0, to)
    }

    /// Gives it data that was saved before, once it was killed.
    ///
    /// # Errors
    /// When it runs, or a file cannot be copied.
    pub fn restore(&mut self, from: &Path) -> Result<()> {
        self.0.restore(0, from)
    }

    /// Asks it a four-letter word, such as `mntr`.
    ///
    /// # Errors
    /// When it does not answer in time.
    pub async fn four_letter(&self, word: &str) -> Result<String> {
        self.0.four_letter(0, word).await
    }
}

async fn ask(address: &str, word: &str) -> Result<String> {
    let talk = async {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(word.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok::<_, std::io::Error>(answer)
    };
    let answer = tokio::time::timeout(WORD_LIMIT, talk).await;
    answer.map_err(anyhow::Error::from).and_then(|talk| Ok(talk?)).with_context(|| format!("ask {address} for {word}"))
}

async fn mode(address: &str) -> Result<String> {
    let answer = ask(address, "srvr").await?;
    let mode = answer.lines().find_map(|line| line.strip_prefix("Mode: "));
    mode.map(str::to_owned).with_context(|| format!("{address} says `{}`", answer.trim_end()))
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), &target).with_context(|| format!("copy {}", entry.path().display()))?;
        }
    }
    Ok(())
}
