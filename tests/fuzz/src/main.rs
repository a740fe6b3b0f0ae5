//! `fuzz`: runs every target, or some, for a time or a number of inputs, and reports.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use fuzz::run::{Limits, Report, STACK, search};
use fuzz::targets::TARGETS;
use fuzz::{Target, corpus};

/// Feeds every decoder of Rug with mutated inputs. Inputs that break something are kept in the corpus.
#[derive(Debug, Parser)]
struct Flags {
    /// Inputs in all, spread evenly over the targets.
    #[arg(long)]
    inputs: Option<u64>,
    /// Minutes in all, spread evenly over the targets.
    #[arg(long)]
    minutes: Option<f64>,
    /// What the inputs follow from; a random number when absent.
    #[arg(long)]
    seed: Option<u64>,
    /// Threads; as many as there are processors when absent.
    #[arg(long)]
    threads: Option<usize>,
    /// Only these targets.
    targets: Vec<String>,
}

fn main() -> anyhow::Result<ExitCode> {
    let flags = Flags::parse();
    let targets: Vec<&Target> = TARGETS
        .iter()
        .filter(|t| flags.targets.is_empty() || flags.targets.iter().any(|name| name == t.name))
        .collect();
    anyhow::ensure!(!targets.is_empty(), "no such target; there are {}", TARGETS.map(|t| t.name).join(", "));
    let threads = flags.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from)).max(1);
    let clock = || std::time::SystemTime::UNIX_EPOCH.elapsed().map_or(0, |age| age.as_nanos() as u64);
    let seed = flags.seed.unwrap_or_else(clock);
    let minutes = flags.minutes.unwrap_or(if flags.inputs.is_some() { 1e6 } else { 1.0 });
    let limits = Limits {
        inputs: flags.inputs.unwrap_or(u64::MAX).div_ceil((targets.len() * threads) as u64),
        time: Duration::from_secs_f64(minutes.clamp(0.001, 1e6) * 60.0 / targets.len() as f64),
    };
    // What goes wrong is reported once, with its input.
    std::panic::set_hook(Box::new(|_| {}));
    println!("seed {seed}, {threads} threads");
    println!(
        "{:<22} {:>12} {:>9} {:>9} {:>16} {:>10}",
        "target", "inputs", "per s", "outcomes", "peak bytes", "slowest"
    );
    let begun = Instant::now();
    let (mut inputs, mut peak, mut failures) = (0, 0, 0);
    for target in targets {
        let begun = Instant::now();
        let report = run(target, seed, threads, limits)?;
        let rate = report.inputs as f64 / begun.elapsed().as_secs_f64().max(1e-9);
        println!(
            "{:<22} {:>12} {:>9.0} {:>9} {:>8} of {:<5} {:>8}us",
            target.name,
            report.inputs,
            rate,
            report.outcomes,
            report.peak.0,
            report.peak.1,
            report.slowest.as_micros()
        );
        for failure in &report.failures {
            println!("  FAILED: {}: {}", corpus::keep(target, &failure.input)?.display(), failure.what);
        }
        (inputs, peak, failures) = (inputs + report.inputs, peak.max(report.peak.0), failures + report.failures.len());
    }
    println!(
        "{inputs} inputs in {:.0} s, at most {peak} bytes for one, {failures} failures",
        begun.elapsed().as_secs_f64()
    );
    Ok(if failures == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn run(target: &Target, seed: u64, threads: usize, limits: Limits) -> anyhow::Result<Report> {
    std::thread::scope(|scope| {
        let all: Vec<_> = (0..threads as u64)
            .map(|n| {
                let seed = seed.wrapping_add(n.wrapping_mul(0x5851_f42d_4c95_7f2d));
                let thread = std::thread::Builder::new().stack_size(STACK);
                thread.spawn_scoped(scope, move || search(target, seed, limits))
            })
            .collect::<std::io::Result<_>>()?;
        let mut whole = Report::default();
        for one in all {
            whole.add(one.join().map_err(|_| anyhow::anyhow!("a thread of {} panicked", target.name))??);
        }
        Ok(whole)
    })
}
