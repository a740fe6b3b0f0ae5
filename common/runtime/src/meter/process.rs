//! What every process measures of itself: the build, what was left out of logs and traces, the process as the kernel sees it, and
//! its Tokio runtime.

use std::time::{Duration, SystemTime};

use opentelemetry::KeyValue;
use opentelemetry::metrics::Meter;
use rustix::process::{Resource, getrlimit};
use rustix::time::{ClockId, clock_gettime};
use tokio::runtime::RuntimeMetrics;

use super::catalogue::{Label, Metric, Unit};
use crate::log_limit;
use crate::metric_group;
use crate::telemetry::{self, KeptReason, QueueTally, SpanTally};
use crate::tls;

metric_group! {
    GROUP = "Every process", "Shown by `rug-coordinator`, `rug-worker` and `rug-appliance`.";
    BUILD = Metric::gauge("rug.build.info", Unit::None, "1, with the version of the program.")
        .by(&[Label::open("version", "the version of the program")]);
    LINES_SKIPPED = Metric::counter(
        "rug.log.lines_skipped", Unit::Things("{line}"),
        "Log lines left out because peers or broken dependencies caused too many of their kind.");
    SPANS = Metric::counter(
        "rug.telemetry.spans", Unit::Things("{span}"),
        "What became of the spans of this process; none while nothing is exported.")
        .by(&[Label::fixed("outcome", &["exported", "dropped", "failed", "unsampled", "undecided"])]);
    SPANS_KEPT = Metric::counter(
        "rug.telemetry.spans_kept", Unit::Things("{span}"),
        "Spans of this process that were kept, by why; what became of them is in rug.telemetry.spans.")
        .by(&[Label::fixed("reason", &["always", "asked", "ratio", "failed", "slow", "later"])]);
    LOG_RECORDS = Metric::counter(
        "rug.telemetry.log_records", Unit::Things("{record}"),
        "What became of the log records of this process; none while nothing is exported.")
        .by(&[Label::fixed("outcome", &["exported", "dropped", "failed"])]);
    CERTIFICATE_EXPIRY = Metric::gauge(
        "rug.tls.certificate_expiry_timestamp", Unit::Seconds,
        "When the certificate expires that this process shows to others, since the Unix epoch; of several the first. 0 without TLS.");
    CPU = Metric::counter("process.cpu", Unit::Seconds, "User and system time of all threads.");
    RESIDENT = Metric::gauge("process.resident_memory", Unit::Bytes, "Memory that is in RAM.");
    VIRTUAL = Metric::gauge("process.virtual_memory", Unit::Bytes, "Address space in use.");
    OPEN_FDS = Metric::gauge("process.open_fds", Unit::Things("{descriptor}"), "Open file descriptors.");
    MAX_FDS = Metric::gauge("process.max_fds", Unit::Things("{descriptor}"), "File descriptors it may have open.");
    THREADS = Metric::gauge("process.threads", Unit::Things("{thread}"), "Threads.");
    START = Metric::gauge("process.start_time", Unit::Seconds, "When it was started, since the Unix epoch.");
    WORKERS = Metric::gauge("rug.runtime.workers", Unit::Things("{thread}"), "Worker threads of the Tokio runtime.");
    TASKS = Metric::gauge("rug.runtime.tasks", Unit::Things("{task}"), "Tasks that are alive.");
    QUEUE = Metric::gauge(
        "rug.runtime.queue_depth", Unit::Things("{task}"),
        "Tasks that wait in the global queue of the runtime. More than a few for long means that it is overloaded.");
    BUSY = Metric::counter(
        "rug.runtime.busy", Unit::Seconds,
        "Time in which worker threads were busy, all together. Its rate over the number of workers is the load.");
    PARKS = Metric::counter(
        "rug.runtime.parks", Unit::Things("{park}"), "How often a worker thread had nothing to do and went to sleep.");
}

/// Makes the instruments. Those of the runtime belong to the one that this is called in, if any.
pub(super) fn start(meter: &Meter) {
    BUILD.look(meter, |to| to.observe(1, &[KeyValue::new("version", env!("CARGO_PKG_VERSION"))]));
    LINES_SKIPPED.look(meter, |to| to.observe(log_limit::skipped(), &[]));
    SPANS.look(meter, |to| {
        let SpanTally { exported, dropped, failed, unsampled, undecided, kept: _ } = telemetry::span_tally();
        for (outcome, spans) in [
            ("exported", exported),
            ("dropped", dropped),
            ("failed", failed),
            ("unsampled", unsampled),
            ("undecided", undecided),
        ] {
            to.observe(spans, &[KeyValue::new("outcome", outcome)]);
        }
    });
    SPANS_KEPT.look(meter, |to| {
        for (reason, spans) in KeptReason::ALL.into_iter().zip(telemetry::span_tally().kept) {
            to.observe(spans, &[KeyValue::new("reason", reason.name())]);
        }
    });
    LOG_RECORDS.look(meter, |to| {
        let QueueTally { exported, dropped, failed } = telemetry::log_tally();
        for (outcome, records) in [("exported", exported), ("dropped", dropped), ("failed", failed)] {
            to.observe(records, &[KeyValue::new("outcome", outcome)]);
        }
    });
    CERTIFICATE_EXPIRY.look_f64(meter, |to| {
        let expiry = tls::certificate_expiry().and_then(|at| at.duration_since(SystemTime::UNIX_EPOCH).ok());
        to.observe(expiry.unwrap_or_default().as_secs_f64(), &[]);
    });
    of_process(meter);
    if let Ok(handle) = tokio::runtime::Handle::try_current() {
        of_runtime(meter, &handle.metrics());
    }
}

fn of_process(meter: &Meter) {
    CPU.look_f64(meter, |to| {
        let used = clock_gettime(ClockId::ProcessCPUTime);
        to.observe(used.tv_sec as f64 + used.tv_nsec as f64 / 1e9, &[]);
    });
    let look = |metric: &Metric, value: fn(&ProcessStatus) -> u64| {
        metric.look(meter, move |to| {
            if let Some(status) = ProcessStatus::read() {
                to.observe(value(&status), &[]);
            }
        });
    };
    look(&RESIDENT, |status| status.resident);
    look(&VIRTUAL, |status| status.virtual_size);
    look(&THREADS, |status| status.threads);
    OPEN_FDS.look(meter, |to| {
        if let Ok(open) = std::fs::read_dir("/proc/self/fd") {
            // The one that reads is not counted.
            to.observe((open.count() as u64).saturating_sub(1), &[]);
        }
    });
    MAX_FDS.look(meter, |to| {
        if let Some(most) = getrlimit(Resource::Nofile).current {
            to.observe(most, &[]);
        }
    });
    // Read once: it does not change, whereas the boot time of the host does when its clock is set.
    let started = start_time();
    START.look_f64(meter, move |to| {
        if let Some(started) = started {
            to.observe(started, &[]);
        }
    });
}

fn of_runtime(meter: &Meter, runtime: &RuntimeMetrics) {
    let look = |metric: &Metric, value: fn(&RuntimeMetrics) -> u64| {
        let runtime = runtime.clone();
        metric.look(meter, move |to| to.observe(value(&runtime), &[]));
    };
    look(&WORKERS, |runtime| runtime.num_workers() as u64);
    look(&TASKS, |runtime| runtime.num_alive_tasks() as u64);
    look(&QUEUE, |runtime| runtime.global_queue_depth() as u64);
    look(&PARKS, |runtime| (0..runtime.num_workers()).map(|n| runtime.worker_park_count(n)).sum());
    let runtime = runtime.clone();
    BUSY.look_f64(meter, move |to| {
        let busy: Duration = (0..runtime.num_workers()).map(|n| runtime.worker_total_busy_duration(n)).sum();
        to.observe(busy.as_secs_f64(), &[]);
    });
}

/// What `/proc/self/status` says.
#[derive(Debug, PartialEq, Eq)]
struct ProcessStatus {
    resident: u64,
    virtual_size: u64,
    threads: u64,
}

impl ProcessStatus {
    fn read() -> Option<Self> {
        Self::parse(&std::fs::read_to_string("/proc/self/status").ok()?)
    }

    fn parse(text: &str) -> Option<Self> {
        let number = |name: &str| {
            let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
            rest.split_ascii_whitespace().next()?.parse::<u64>().ok()
        };
        let kib = |name| number(name).map(|size| size * 1024);
        Some(Self { resident: kib("VmRSS:")?, virtual_size: kib("VmSize:")?, threads: number("Threads:")? })
    }
}

/// When this process was started, in seconds since the Unix epoch.
fn start_time() -> Option<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    let host = std::fs::read_to_string("/proc/stat").ok()?;
    let boot: f64 = host.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()?;
    Some(boot + started_after_boot(&stat)?)
}

/// Seconds from the boot of the host to the start of a process, by its `/proc/<pid>/stat`.
fn started_after_boot(stat: &str) -> Option<f64> {
    /// In this file the kernel counts hundredths of a second, whatever its own tick is.
    const TICKS: f64 = 100.0;
    // The name of the program, in brackets, may hold anything. What follows it begins with number 3; this is number 22.
    let ticks: f64 = stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(22 - 3)?.parse().ok()?;
    Some(ticks / TICKS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_says_is_read_whatever_the_program_is_called() {
        let stat = "4711 (a) b (c) S 1 1 1 0 -1 4194560 100 0 0 0 250 50 0 0 20 0 9 0 12345 1048576 256 184467 1 1 0";
        assert_eq!(started_after_boot(stat), Some(123.45));
        assert_eq!(started_after_boot("nothing"), None);
        let status = "Name:\tVmSize: 7\nVmSize:\t    1024 kB\nVmRSS:\t     512 kB\nThreads:\t9\n";
        let expected = ProcessStatus { resident: 512 << 10, virtual_size: 1 << 20, threads: 9 };
        assert_eq!(ProcessStatus::parse(status), Some(expected));
        assert_eq!(ProcessStatus::parse("Threads:\t9\n"), None);
        assert!(ProcessStatus::read().is_some_and(|own| own.threads > 0 && own.resident > 0));
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_secs_f64();
        let started = start_time().expect("known");
        assert!(started <= now + 2.0 && now - started < 3_600.0, "{started} of {now}");
    }
}
