//! `drill`: breaks a cluster of real processes on this machine, and proves that it kept its promises.
//!
//! Needs root for network namespaces, and ZooKeeper and PostgreSQL as the tests do. Progress goes to standard error, the
//! table to standard output, everything to a JSON file.
//!
//! | exit code | meaning |
//! |---|---|
//! | 0 | nothing was violated |
//! | 1 | something was, or the drill could not be run to its end |
//! | 2 | bad usage |
//! | 77 | it cannot run here; a line says why |

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use servers::netns::Network;
use tests::drill::{self, Config};

/// Skipped, as test suites say it.
const CANNOT_RUN: u8 = 77;

/// Breaks a cluster of real processes on this machine, and proves that it kept its promises.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// What everything is drawn from; a random one when absent.
    #[arg(long)]
    seed: Option<u64>,
    /// How long faults are injected.
    #[arg(long, default_value_t = 3.0, value_parser = minutes)]
    minutes: f64,
    /// Workers.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=50))]
    workers: u16,
    /// Coordinators.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=10))]
    coordinators: u16,
    /// Clients that change appliances.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=100))]
    clients: u16,
    /// Keep everything the cluster wrote; otherwise it is kept after a violation.
    #[arg(long)]
    keep: bool,
    /// Say nothing until the end.
    #[arg(long)]
    quiet: bool,
    /// Where the report goes as JSON.
    #[arg(long, default_value = "drill.json")]
    report: PathBuf,
}

fn minutes(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(minutes) if (0.1..=1440.0).contains(&minutes) => Ok(minutes),
        _ => Err("a number of minutes from 0.1 to 1440".to_owned()),
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::parse();
    if let Err(problem) = Network::available() {
        println!("skipped: {problem}");
        return ExitCode::from(CANNOT_RUN);
    }
    let seed = args.seed.unwrap_or_else(rand::random);
    let mut config = Config::new(seed, Duration::from_secs_f64(args.minutes * 60.0));
    (config.shape.workers, config.shape.coordinators) = (args.workers, args.coordinators);
    config.size.clients = args.clients.into();
    (config.keep, config.talks) = (args.keep, !args.quiet);
    let report = match drill::run(&config).await {
        Ok(report) => report,
        Err(problem) => {
            eprintln!("drill with seed {seed}: {problem:#}");
            return ExitCode::FAILURE;
        }
    };
    print!("{report}");
    if let Err(problem) = report.write(&args.report) {
        eprintln!("drill: {problem:#}");
        return ExitCode::FAILURE;
    }
    println!("all of it                   {}", args.report.display());
    if report.is_clean() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
