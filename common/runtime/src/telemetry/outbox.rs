//! Spans and log records on their way out: for each of the two a bounded queue, and a thread that exports them.
//!
//! Whoever ends a span or logs never waits: what finds the queue full is dropped and counted. The thread has a runtime of its own, so
//! that neither a busy program holds exports up nor a collector that hangs the program. An export that fails is lost and counted; the
//! next batch is tried all the same, so that a collector that is back is used at once.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use opentelemetry::Context;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::{OTelSdkError, OTelSdkResult};
use opentelemetry_sdk::trace::{Span, SpanData, SpanExporter, SpanProcessor};
use tokio::sync::{mpsc, oneshot};

use super::export;

/// Why a span was kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeptReason {
    /// Every one of its name is.
    Always,
    /// Its caller asked for the trace.
    Asked,
    /// By ratio.
    Ratio,
    /// It has failed, or another one of its trace in this process has.
    Failed,
    /// The outermost span of its trace in this process took longer than the threshold.
    Slow,
    /// It was asked for after its end.
    Later,
}

impl KeptReason {
    /// All of them.
    pub const ALL: [Self; 6] = [Self::Always, Self::Asked, Self::Ratio, Self::Failed, Self::Slow, Self::Later];

    /// Its name as a label.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Always => "always",
            Self::Asked => "asked",
            Self::Ratio => "ratio",
            Self::Failed => "failed",
            Self::Slow => "slow",
            Self::Later => "later",
        }
    }
}

/// What became of what was to be exported.
#[derive(Debug, Default)]
pub(super) struct QueueCounts {
    exported: AtomicU64,
    full: AtomicU64,
    failed: AtomicU64,
}

/// [`QueueCounts`] at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueTally {
    /// Taken by the collector.
    pub exported: u64,
    /// Dropped because the queue was full.
    pub dropped: u64,
    /// Lost with an export that failed.
    pub failed: u64,
}

impl QueueCounts {
    /// The counts now.
    pub(super) fn tally(&self) -> QueueTally {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        QueueTally { exported: read(&self.exported), dropped: read(&self.full), failed: read(&self.failed) }
    }
}

/// What became of spans since the start.
#[derive(Debug, Default)]
pub struct SpanCounts {
    pub(super) queue: Arc<QueueCounts>,
    unsampled: AtomicU64,
    undecided: AtomicU64,
    kept: [AtomicU64; KeptReason::ALL.len()],
}

/// [`SpanCounts`] at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SpanTally {
    /// Taken by the collector.
    pub exported: u64,
    /// Dropped because the queue was full.
    pub dropped: u64,
    /// Lost with an export that failed.
    pub failed: u64,
    /// Not kept.
    pub unsampled: u64,
    /// Dropped because there was no room to wait until it was known whether they are kept.
    pub undecided: u64,
    /// Kept, in the order of [`KeptReason::ALL`]; what became of them is counted above.
    pub kept: [u64; KeptReason::ALL.len()],
}

impl SpanCounts {
    /// The counts now.
    #[must_use]
    pub fn tally(&self) -> SpanTally {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let QueueTally { exported, dropped, failed } = self.queue.tally();
        SpanTally {
            exported,
            dropped,
            failed,
            unsampled: read(&self.unsampled),
            undecided: read(&self.undecided),
            kept: std::array::from_fn(|at| read(&self.kept[at])),
        }
    }

    /// So many spans were kept.
    pub(super) fn kept(&self, reason: KeptReason, spans: usize) {
        self.kept[reason as usize].fetch_add(spans as u64, Ordering::Relaxed);
    }

    /// So many were not.
    pub(super) fn unsampled(&self, spans: usize) {
        self.unsampled.fetch_add(spans as u64, Ordering::Relaxed);
    }

    /// So many had no room to wait.
    pub(super) fn undecided(&self, spans: usize) {
        self.undecided.fetch_add(spans as u64, Ordering::Relaxed);
    }
}

/// How batches are gathered.
#[derive(Clone, Copy, Debug)]
pub(super) struct Gathering {
    /// How many may wait.
    pub(super) queue: usize,
    /// How many go with one export.
    pub(super) batch: usize,
    /// How long one waits for others.
    pub(super) delay: Duration,
    /// How long one export may take.
    pub(super) timeout: Duration,
}

impl Gathering {
    pub(super) fn new(export::Gathering { queue, batch, delay }: export::Gathering, timeout: Duration) -> Self {
        Self { queue, batch, delay, timeout }
    }
}

/// What exports batches of one kind.
pub(super) trait BatchExporter<T>: 'static {
    /// What is exported, in the log.
    const WHAT: &'static str;

    fn export(&self, batch: Vec<T>) -> impl Future<Output = OTelSdkResult>;

    fn set_resource(&mut self, resource: &Resource);
}

impl<E: SpanExporter + 'static> BatchExporter<SpanData> for E {
    const WHAT: &'static str = "spans";

    fn export(&self, batch: Vec<SpanData>) -> impl Future<Output = OTelSdkResult> {
        SpanExporter::export(self, batch)
    }

    fn set_resource(&mut self, resource: &Resource) {
        SpanExporter::set_resource(self, resource);
    }
}

/// Takes what is to be exported.
pub(super) struct Outbox<T> {
    queue: mpsc::Sender<Box<T>>,
    orders: mpsc::Sender<Order>,
    counts: Arc<QueueCounts>,
    thread: Mutex<Option<std::thread::JoinHandle<()>>>,
}

enum Order {
    Flush(oneshot::Sender<()>),
    Stop(oneshot::Sender<()>),
}

impl<T> fmt::Debug for Outbox<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outbox").field("counts", &self.counts).finish_non_exhaustive()
    }
}

impl<T: Send + 'static> Outbox<T> {
    /// Starts the thread. `exporter` is built on it, within its runtime.
    pub(super) fn start<E: BatchExporter<T>>(
        gathering: Gathering,
        resource: Resource,
        counts: Arc<QueueCounts>,
        exporter: impl FnOnce() -> Result<E, String> + Send + 'static,
    ) -> Result<Self, String> {
        let (queue, arriving) = mpsc::channel(gathering.queue);
        // A flush and the end.
        let (orders, ordered) = mpsc::channel(2);
        let (built, result) = std::sync::mpsc::sync_channel(1);
        let of_thread = Arc::clone(&counts);
        let thread = std::thread::Builder::new().name("telemetry".to_owned()).spawn(move || {
            let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
                Ok(runtime) => runtime,
                Err(error) => {
                    let _ = built.send(Err(error.to_string()));
                    return;
                }
            };
            // What is logged about an export must not be exported: it would never end.
            let _quiet = Context::enter_telemetry_suppressed_scope();
            runtime.block_on(async move {
                let mut exporter = match exporter() {
                    Ok(exporter) => exporter,
                    Err(problem) => {
                        let _ = built.send(Err(problem));
                        return;
                    }
                };
                exporter.set_resource(&resource);
                let _ = built.send(Ok(()));
                let gatherer =
                    Gatherer { gathering, exporter, counts: of_thread, batch: Vec::new(), complained: false };
                gatherer.run(arriving, ordered).await;
            });
        });
        let thread = thread.map_err(|error| format!("start a thread: {error}"))?;
        result.recv().map_err(|_| "the thread ended at once".to_owned())??;
        Ok(Self { queue, orders, counts, thread: Mutex::new(Some(thread)) })
    }

    /// Puts one into the queue, or drops and counts it.
    pub(super) fn take(&self, one: T) {
        if self.queue.try_send(Box::new(one)).is_err() {
            self.counts.full.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Gives an order and waits, blocking, until it is carried out.
    fn order(&self, order: impl FnOnce(oneshot::Sender<()>) -> Order, timeout: Duration) -> OTelSdkResult {
        let (done, mut wait) = oneshot::channel();
        if self.orders.try_send(order(done)).is_err() {
            return Err(OTelSdkError::AlreadyShutdown);
        }
        let until = std::time::Instant::now() + timeout;
        // Not blocking_recv, which panics within a runtime and has no deadline.
        while std::time::Instant::now() < until {
            match wait.try_recv() {
                Ok(()) => return Ok(()),
                Err(oneshot::error::TryRecvError::Closed) => return Err(OTelSdkError::AlreadyShutdown),
                Err(oneshot::error::TryRecvError::Empty) => std::thread::sleep(Duration::from_millis(2)),
            }
        }
        Err(OTelSdkError::Timeout(timeout))
    }
}

impl<T: Send + 'static> Outbox<T> {
    /// Exports what is there.
    pub(super) fn flush(&self) -> OTelSdkResult {
        self.order(Order::Flush, FLUSH)
    }

    /// Exports what is there, and ends the thread.
    pub(super) fn stop(&self, timeout: Duration) -> OTelSdkResult {
        let ended = self.order(Order::Stop, timeout);
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if ended.is_ok()
            && let Some(thread) = thread
        {
            let _ = thread.join();
        }
        ended
    }
}

impl SpanProcessor for Outbox<SpanData> {
    fn on_start(&self, _: &mut Span, _: &Context) {}

    fn on_end(&self, span: SpanData) {
        self.take(span);
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.stop(timeout)
    }
}

/// How long a flush may take.
const FLUSH: Duration = Duration::from_secs(5);

/// Gathers batches and exports them.
struct Gatherer<T, E> {
    gathering: Gathering,
    exporter: E,
    counts: Arc<QueueCounts>,
    batch: Vec<T>,
    /// The last export failed, and that was said.
    complained: bool,
}

impl<T, E: BatchExporter<T>> Gatherer<T, E> {
    async fn run(mut self, mut arriving: mpsc::Receiver<Box<T>>, mut ordered: mpsc::Receiver<Order>) {
        let mut due = tokio::time::interval(self.gathering.delay);
        due.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        due.tick().await;
        loop {
            tokio::select! {
                order = ordered.recv() => {
                    // What was ended before the order belongs to it.
                    while let Ok(one) = arriving.try_recv() {
                        self.take(one).await;
                    }
                    self.export().await;
                    match order {
                        Some(Order::Flush(done)) => {
                            let _ = done.send(());
                        }
                        Some(Order::Stop(done)) => {
                            let _ = done.send(());
                            return;
                        }
                        None => return,
                    }
                }
                Some(one) = arriving.recv() => self.take(one).await,
                _ = due.tick() => self.export().await,
            }
        }
    }

    async fn take(&mut self, one: Box<T>) {
        self.batch.push(*one);
        if self.batch.len() >= self.gathering.batch {
            self.export().await;
        }
    }

    async fn export(&mut self) {
        if self.batch.is_empty() {
            return;
        }
        let batch = std::mem::take(&mut self.batch);
        let number = batch.len() as u64;
        let result = tokio::time::timeout(self.gathering.timeout, self.exporter.export(batch)).await;
        let problem = match result {
            Ok(Ok(())) => {
                self.counts.exported.fetch_add(number, Ordering::Relaxed);
                if std::mem::take(&mut self.complained) {
                    tracing::info!("the collector takes {} again", E::WHAT);
                }
                return;
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no answer within {:?}", self.gathering.timeout),
        };
        self.counts.failed.fetch_add(number, Ordering::Relaxed);
        // Once, and not for each batch: a collector may be away for days.
        if !std::mem::replace(&mut self.complained, true) {
            tracing::warn!("the collector takes no {}, they are lost until it does: {problem}", E::WHAT);
        }
    }
}

#[cfg(test)]
mod tests {
    use opentelemetry::trace::{Span as _, Tracer, TracerProvider};
    use opentelemetry_sdk::trace::SdkTracerProvider;

    use super::*;

    const DEADLINE: Duration = Duration::from_secs(20);

    /// Hands batches to the test, once it is let; fails as long as the test says so.
    #[derive(Debug)]
    struct TestExporter {
        batches: std::sync::mpsc::Sender<usize>,
        answers: tokio::sync::Mutex<mpsc::Receiver<OTelSdkResult>>,
    }

    impl SpanExporter for TestExporter {
        async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
            let answer = self.answers.lock().await.recv().await.unwrap_or(Ok(()));
            let _ = self.batches.send(batch.len());
            answer
        }
    }

    /// A provider whose exports end as the test says, and the sizes of those that ended.
    fn provider(
        gathering: Gathering,
    ) -> (SdkTracerProvider, Arc<SpanCounts>, mpsc::Sender<OTelSdkResult>, std::sync::mpsc::Receiver<usize>) {
        let (answers, answered) = mpsc::channel(64);
        let (batches, seen) = std::sync::mpsc::channel();
        let counts = Arc::<SpanCounts>::default();
        let exporter = TestExporter { batches, answers: tokio::sync::Mutex::new(answered) };
        let outbox =
            Outbox::start(gathering, Resource::builder_empty().build(), Arc::clone(&counts.queue), || Ok(exporter));
        let provider = SdkTracerProvider::builder().with_span_processor(outbox.expect("it starts")).build();
        (provider, counts, answers, seen)
    }

    fn spans(provider: &SdkTracerProvider, number: usize) {
        let tracer = provider.tracer("test");
        (0..number).for_each(|_| tracer.start("span").end());
    }

    const GATHERING: Gathering =
        Gathering { queue: 8, batch: 4, delay: Duration::from_secs(3600), timeout: Duration::from_secs(60) };

    #[test]
    fn spans_are_exported_in_batches_and_the_rest_at_the_end() {
        let (provider, counts, answers, seen) = provider(GATHERING);
        drop(answers);
        spans(&provider, 5);
        assert_eq!(seen.recv_timeout(DEADLINE), Ok(4), "a batch is full");
        provider.shutdown_with_timeout(DEADLINE).expect("in time");
        assert_eq!(seen.recv_timeout(DEADLINE), Ok(1));
        assert_eq!(counts.tally(), SpanTally { exported: 5, ..SpanTally::default() });
    }

    #[test]
    fn a_collector_that_hangs_costs_spans_and_no_time() {
        let (provider, counts, answers, seen) = provider(GATHERING);
        // One batch is under way, as many wait as may.
        let began = std::time::Instant::now();
        spans(&provider, 1_000);
        assert!(began.elapsed() < DEADLINE, "nobody waits");
        let lost = counts.tally().dropped;
        assert!((1_000 - 8 - 8..=1_000 - 8).contains(&usize::try_from(lost).expect("few")), "{lost}");
        drop(answers);
        provider.force_flush().expect("it is back");
        let exported: usize = std::iter::from_fn(|| seen.try_recv().ok()).sum();
        assert_eq!(u64::try_from(exported).expect("few") + lost, 1_000, "each is exported or counted");
    }

    #[test]
    fn an_export_that_fails_is_counted_and_the_next_one_tried() {
        let (provider, counts, answers, seen) = provider(GATHERING);
        answers.try_send(Err(OTelSdkError::InternalFailure("refused".into()))).expect("room");
        spans(&provider, 4);
        assert_eq!(seen.recv_timeout(DEADLINE), Ok(4));
        answers.try_send(Ok(())).expect("room");
        spans(&provider, 4);
        assert_eq!(seen.recv_timeout(DEADLINE), Ok(4));
        provider.force_flush().expect("in time");
        assert_eq!(counts.tally(), SpanTally { exported: 4, failed: 4, ..SpanTally::default() });
    }

    #[test]
    fn the_end_does_not_wait_for_a_collector_that_hangs() {
        let (provider, _, _answers, _seen) = provider(GATHERING);
        spans(&provider, 4);
        let began = std::time::Instant::now();
        let ended = provider.shutdown_with_timeout(Duration::from_millis(50));
        assert!(ended.is_err() && began.elapsed() < DEADLINE, "{ended:?}");
    }
}
