//! The load balancer beside HAProxy, with a release binary: small requests over connections that are kept open, and over a new
//! connection each.
//!
//! `cargo bench -p tests --bench balancer -- [--connections N] [--rounds N] [--millis N]`
//!
//! Both forward to the same server, with one thread and TCP mode. They are measured in turns, because absolute numbers shift from
//! machine to machine and from minute to minute. Server and clients are processes of their own with one thread each. A run
//! without a load balancer shows what the rest of the set-up can do.
//!
//! Two numbers are printed, and one of them is the comparison:
//! - Requests per second, which is what a client sees. It is the comparison where each of the three processes has a processor for itself. Where
//!   they share processors it says as much about when the kernel lets them run, and shifts by a tenth from run to run.
//! - Processor time for each request of the load balancer's process, user and system, as the kernel accounts it. It says how many
//!   requests one thread can forward that has a processor for itself, and is the comparison where there are fewer processors.
//!
//! What is compared is the median of the ratios of all rounds: both are measured within seconds of each other there.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream as StdStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use tests::cluster::{binaries, ports};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// Bytes of a request and of its answer: about those of a small call over HTTP.
const REQUEST: usize = 128;
const ANSWER: usize = 256;
/// First byte of a request after whose answer the server closes the connection.
const CLOSE: u8 = b'c';
/// Those that work at a time: clients, a load balancer, the server.
const PROCESSES: usize = 3;
/// How long a process may take to start.
const START: Duration = Duration::from_secs(60);

#[derive(Clone, Copy)]
struct BalancerLoad {
    connections: usize,
    rounds: usize,
    millis: usize,
}

fn load(arguments: &[String]) -> Result<BalancerLoad> {
    let mut load = BalancerLoad { connections: 30, rounds: 15, millis: 1_000 };
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        let field = match argument.as_str() {
            // What cargo passes to every bench.
            "--bench" => continue,
            "--connections" => &mut load.connections,
            "--rounds" => &mut load.rounds,
            "--millis" => &mut load.millis,
            other => bail!("unknown argument {other}; known are --connections, --rounds, --millis"),
        };
        *field = arguments.next().context("a number is missing")?.parse().with_context(|| argument.clone())?;
        ensure!(*field > 0, "{argument} must be at least 1");
    }
    Ok(load)
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["--serve"] => runtime.block_on(serve()),
        ["--ask", mode, connections, millis, port] => {
            let keep = mode == "keep";
            let (connections, millis) = (connections.parse()?, millis.parse()?);
            println!("{}", runtime.block_on(ask(keep, connections, millis, port.parse()?))?);
            Ok(())
        }
        _ => run(load(&arguments)?),
    }
}

/// The server behind both. Says where it listens, and ends with its standard input.
async fn serve() -> Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    println!("{}", listener.local_addr()?.port());
    let over = tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut Vec::new()));
    let serving = async {
        loop {
            let (mut stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            tokio::spawn(async move {
                let (mut request, answer) = ([0; REQUEST], [b'a'; ANSWER]);
                while stream.read_exact(&mut request).await.is_ok() {
                    if stream.write_all(&answer).await.is_err() || request[0] == CLOSE {
                        return;
                    }
                }
            });
        }
    };
    tokio::select! {
        result = serving => result,
        _ = over => Ok(()),
    }
}

/// Requests per second of so many clients, each of which asks again once it was answered.
async fn ask(keep: bool, connections: usize, millis: u64, port: u16) -> Result<u64> {
    let (start, time) = (Instant::now(), Duration::from_millis(millis));
    let mut clients = JoinSet::new();
    for _ in 0..connections {
        clients.spawn(async move {
            let mut count = 0_u64;
            let mut kept = None;
            while start.elapsed() < time {
                let mut stream = match kept.take() {
                    Some(stream) => stream,
                    None => {
                        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?;
                        stream.set_nodelay(true)?;
                        stream
                    }
                };
                let mut request = [b'r'; REQUEST];
                if !keep {
                    request[0] = CLOSE;
                }
                stream.write_all(&request).await?;
                let mut answer = [0; ANSWER];
                stream.read_exact(&mut answer).await?;
                if keep {
                    kept = Some(stream);
                } else {
                    ensure!(stream.read(&mut answer).await? == 0, "the end was lost");
                }
                count += 1;
            }
            anyhow::Ok(count)
        });
    }
    let mut count = 0;
    while let Some(client) = clients.join_next().await {
        count += client??;
    }
    Ok((count as f64 / start.elapsed().as_secs_f64()) as u64)
}

/// A process that ends with this value.
struct Ending(Child);

impl Drop for Ending {
    fn drop(&mut self) {
        // One that has ended already needs no end.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What one load balancer did in one round.
#[derive(Clone, Copy)]
struct RoundResult {
    /// Requests per second.
    rate: f64,
    /// Microseconds of processor time for each.
    cpu_us: f64,
}

/// Processor time that the main thread of a process has had.
fn cpu_time(process: &Ending) -> Result<Duration> {
    let file = format!("/proc/{}/schedstat", process.0.id());
    let text = std::fs::read_to_string(&file).with_context(|| format!("read {file}"))?;
    let nanos = text.split_whitespace().next().context("an empty schedstat")?;
    Ok(Duration::from_nanos(nanos.parse()?))
}

/// A process that connections go through, or to.
struct Measured {
    process: Ending,
    port: u16,
}

fn run(load: BalancerLoad) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let own = std::env::current_exe()?;
    let mut server = Command::new(&own).arg("--serve").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let mut line = String::new();
    BufReader::new(server.stdout.take().context("no output")?).read_line(&mut line)?;
    let direct = Measured { process: Ending(server), port: line.trim().parse()? };
    let (rug, haproxy) = (appliance(folder.path(), direct.port)?, haproxy(folder.path(), direct.port)?);
    let measured = [rug, haproxy, direct];
    let BalancerLoad { connections, rounds, millis } = load;
    let processors = std::thread::available_parallelism()?.get();
    let by_rate = processors >= PROCESSES;
    let compared = if by_rate { "requests per second" } else { "processor time" };
    println!("{connections} clients, {rounds} rounds of {millis} ms each");
    println!("compared is {compared}: {PROCESSES} processes have {processors} processors");
    for (mode, title) in [("keep", "connections kept open"), ("anew", "a new connection each")] {
        let measure = |of: &Measured| -> Result<RoundResult> {
            let arguments = ["--ask", mode, &connections.to_string(), &millis.to_string(), &of.port.to_string()];
            let before = cpu_time(&of.process)?;
            let output = Command::new(&own).args(arguments).stderr(Stdio::inherit()).output()?;
            ensure!(output.status.success(), "the clients failed");
            let used = cpu_time(&of.process)?.saturating_sub(before);
            let rate = String::from_utf8(output.stdout)?.trim().parse::<f64>()?;
            ensure!(rate > 0.0, "no request was answered");
            Ok(RoundResult { rate, cpu_us: used.as_secs_f64() * 1e6 / (rate * millis as f64 / 1e3) })
        };
        let mut seen = [Vec::new(), Vec::new(), Vec::new()];
        for round in 0..rounds {
            // Neither always comes first.
            let order = if round % 2 == 0 { [0, 1, 2] } else { [1, 0, 2] };
            for which in order {
                seen[which].push(measure(&measured[which])?);
            }
        }
        println!("{title}");
        compare("requests per second", &seen, |result| result.rate, by_rate.then_some(|ratio| ratio >= 1.0));
        compare("processor time each (us)", &seen, |result| result.cpu_us, (!by_rate).then_some(|ratio| ratio <= 1.0));
    }
    Ok(())
}

/// Prints the medians of one number, that of the ratio of a round, and whether it is what it should be if this is the comparison.
fn compare(
    title: &str,
    [rug, haproxy, direct]: &[Vec<RoundResult>; 3],
    number: impl Fn(&RoundResult) -> f64,
    reached: Option<fn(f64) -> bool>,
) {
    let ratio = median(rug.iter().zip(haproxy).map(|(rug, haproxy)| number(rug) / number(haproxy)).collect());
    let verdict =
        reached.map_or("", |reached| if reached(ratio) { ", bound 1.00: reached" } else { ", bound 1.00: missed" });
    let [rug, haproxy, direct] = [rug, haproxy, direct].map(|results| median(results.iter().map(&number).collect()));
    println!(
        "  {title:<24} rug {rug:>9.1}   haproxy {haproxy:>9.1}   direct {direct:>9.1}   \
         rug/haproxy {ratio:.3}{verdict}"
    );
}

fn median(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_unstable_by(f64::total_cmp);
    numbers[numbers.len() / 2]
}

/// The reference appliance, configured as its worker would.
fn appliance(folder: &Path, back: u16) -> Result<Measured> {
    let (state, front) = (folder.join("appliance"), ports::free());
    let log = std::fs::File::create(folder.join("appliance.log"))?;
    let mut command = Command::new(binaries::path("rug-appliance")?);
    command.args(["--insecure", "--state-dir"]).arg(&state).stdout(Stdio::null()).stderr(log);
    let running = Ending(command.spawn()?);
    let file = state.join("management");
    until("rug-appliance says where it listens", || file.is_file())?;
    let management: SocketAddr = std::fs::read_to_string(file)?.trim().parse()?;
    let body = format!(
        r#"{{"generation":1,"listeners":[{{"name":"a","address":"127.0.0.1","port":{front},"members":[{{"address":"127.0.0.1","port":{back}}}]}}]}}"#
    );
    let mut stream = StdStream::connect(management)?;
    write!(
        stream,
        "PUT /v1/system/config HTTP/1.1\r\nHost: x\r\nConnection: close\r\nRug-Token: 1/1\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    ensure!(answer.starts_with("HTTP/1.1 204"), "{answer}");
    Ok(Measured { process: running, port: front })
}

fn haproxy(folder: &Path, back: u16) -> Result<Measured> {
    let found = ["/usr/sbin/haproxy", "/usr/local/sbin/haproxy", "/usr/bin/haproxy"].map(PathBuf::from);
    let program = found.into_iter().find(|path| path.is_file());
    let program = program.context("haproxy is missing: scripts/install-deps build test bench")?;
    let (front, config) = (ports::free(), folder.join("haproxy.cfg"));
    std::fs::write(
        &config,
        format!(
            "global\n  nbthread 1\n  maxconn 4096\ndefaults\n  mode tcp\n  timeout connect 1s\n  timeout client 1h\n  \
             timeout server 1h\nlisten a\n  bind 127.0.0.1:{front}\n  server b 127.0.0.1:{back} check inter 2s\n"
        ),
    )?;
    let log = std::fs::File::create(folder.join("haproxy.log"))?;
    let running =
        Ending(Command::new(program).arg("-db").arg("-f").arg(&config).stdout(Stdio::null()).stderr(log).spawn()?);
    until("haproxy listens", || StdStream::connect((Ipv4Addr::LOCALHOST, front)).is_ok())?;
    Ok(Measured { process: running, port: front })
}

fn until(what: &str, holds: impl Fn() -> bool) -> Result<()> {
    let end = Instant::now() + START;
    while !holds() {
        ensure!(Instant::now() < end, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}
