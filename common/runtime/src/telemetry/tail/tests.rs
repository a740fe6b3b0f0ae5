//! Which spans arrive at the exporter.

use std::sync::mpsc;

use opentelemetry::trace::{SpanBuilder, TraceContextExt, TraceFlags, TraceState, Tracer, TracerProvider};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider, SpanExporter};

use super::super::outbox::{Gathering, SpanTally};
use common::telemetry::Ratio;

use super::super::sampling::{HeadSampler, Sampling, TraceBudget};
use super::*;

const DEADLINE: Duration = Duration::from_secs(20);

#[derive(Debug)]
struct TestExporter(mpsc::Sender<SpanData>);

impl SpanExporter for TestExporter {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        batch.into_iter().for_each(|span| drop(self.0.send(span)));
        Ok(())
    }
}

/// A process whose spans are sampled.
struct Process {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
    tail: Arc<TailSampler>,
    exported: mpsc::Receiver<SpanData>,
}

impl Process {
    fn new(ratio: f64, limit: usize) -> Self {
        let ratio = Ratio::try_from(ratio).expect("a ratio");
        let budget = TraceBudget::new(1_000, Instant::now());
        let rules = Arc::new(SamplingRules::new(Sampling { ratio, slow: Duration::from_secs(5) }, budget));
        let (sender, exported) = mpsc::channel();
        let gathering =
            Gathering { queue: 10_000, batch: 100, delay: Duration::from_secs(3600), timeout: Duration::from_secs(60) };
        let (resource, counts) = (Resource::builder_empty().build(), Arc::<SpanCounts>::default());
        let outbox = Outbox::start(gathering, resource, Arc::clone(&counts.queue), || Ok(TestExporter(sender)));
        let tail = Arc::new(TailSampler::new(Arc::clone(&rules), outbox.expect("it starts"), counts, limit));
        let provider = SdkTracerProvider::builder()
            .with_sampler(HeadSampler { rules, follows_parent: true })
            .with_span_processor(SharedTail(Arc::clone(&tail)))
            .build();
        Self { tracer: provider.tracer("test"), provider, tail, exported }
    }

    /// Begins a span.
    fn begin(&self, name: &'static str, parent: &Context) -> Context {
        parent.with_span(self.tracer.build_with_context(SpanBuilder::from_name(name), parent))
    }

    /// Names of what was exported so far, sorted.
    fn exported(&self) -> Vec<String> {
        self.provider.force_flush().expect("in time");
        let mut names: Vec<_> = self
            .exported
            .try_iter()
            .map(|span| {
                assert!(span.span_context.is_sampled(), "{span:?}");
                span.name.into_owned()
            })
            .collect();
        names.sort();
        names
    }

    fn tally(&self) -> SpanTally {
        self.tail.counts.tally()
    }
}

/// A span of another process.
fn caller(span: u64, sampled: bool) -> Context {
    let flags = TraceFlags::default().with_sampled(sampled);
    let state = super::super::sampling::undecided(&TraceState::default());
    Context::new().with_remote_span_context(SpanContext::new(u128::MAX.into(), span.into(), flags, true, state))
}

fn end(context: &Context) {
    context.span().end();
}

#[test]
fn one_that_fails_keeps_what_belongs_to_it_and_no_other() {
    let process = Process::new(0.0, 100);
    let dull = process.begin("dull", &Context::new());
    end(&dull);
    let root = process.begin("root", &Context::new());
    let middle = process.begin("middle", &root);
    let failed = process.begin("failed", &middle);
    failed.span().set_status(Status::error("no"));
    end(&failed);
    end(&middle);
    end(&process.begin("beside", &root));
    assert_eq!(process.exported(), <[&str; 0]>::default(), "nothing is known yet");
    end(&root);
    assert_eq!(process.exported(), ["beside", "failed", "middle", "root"]);
    assert_eq!(process.tally().kept, [0, 0, 0, 4, 0, 0]);
}

#[test]
fn what_was_slow_or_asked_for_is_kept() {
    let process = Process::new(0.0, 100);
    let slow = process.begin("slow", &Context::new());
    slow.span().end_with_timestamp(std::time::SystemTime::now() + Duration::from_secs(6));
    assert_eq!(process.exported(), ["slow"]);
    let asked = process.begin("asked", &caller(1, true));
    end(&process.begin("below", &asked));
    assert_eq!(process.exported(), ["below"], "that is known from the beginning");
    end(&asked);
    end(&process.begin("unasked", &caller(1, false)));
    assert_eq!(process.exported(), ["asked"]);
    end(&process.begin("rebalance", &Context::new()));
    assert_eq!(process.exported(), ["rebalance"]);
    assert_eq!(process.tally().kept, [1, 2, 0, 0, 1, 0]);
}

#[test]
fn a_hand_off_that_turns_out_to_matter_is_kept_in_all_processes() {
    let (leader, worker) = (Process::new(0.0, 100), Process::new(0.0, 100));
    let root = leader.begin("rebalance", &Context::new());
    let hand_offs = ["hand-off"; 2].map(|name| leader.begin(name, &root));
    let ids = hand_offs.each_ref().map(|context| context.span().span_context().span_id());
    for id in ids {
        let context = caller(u64::from_be_bytes(id.to_bytes()), true);
        end(&worker.begin("release", &context));
    }
    hand_offs[1].span().set_status(Status::error("stalled"));
    hand_offs.iter().for_each(end);
    assert_eq!(leader.exported(), ["hand-off"]);
    assert_eq!(worker.exported(), <[&str; 0]>::default(), "it cannot know");
    worker.tail.keep(ids[1]);
    assert_eq!(worker.exported(), ["release"]);
    // One that ends later belongs to it, too.
    let adopt = worker.begin("adopt", &caller(u64::from_be_bytes(ids[1].to_bytes()), false));
    end(&worker.begin("boot", &adopt));
    end(&adopt);
    assert_eq!(worker.exported(), ["adopt", "boot"]);
    end(&worker.begin("adopt", &caller(u64::from_be_bytes(ids[0].to_bytes()), false)));
    assert_eq!(worker.exported(), <[&str; 0]>::default());
    assert_eq!(worker.tally().kept, [0, 0, 0, 0, 0, 3]);
}

#[test]
fn processes_keep_the_same_hand_offs_by_ratio() {
    let (leader, worker) = (Process::new(0.5, 1_000), Process::new(0.5, 1_000));
    let root = leader.begin("rebalance", &Context::new());
    for _ in 0..200 {
        let hand_off = leader.begin("hand-off", &root);
        let id = hand_off.span().span_context().span_id();
        end(&worker.begin("adopt", &caller(u64::from_be_bytes(id.to_bytes()), true)));
        end(&hand_off);
    }
    let (of_leader, of_worker) = (leader.exported().len(), worker.exported().len());
    assert_eq!(of_leader, of_worker);
    assert!((50..=150).contains(&of_leader), "{of_leader} of 200 by ratio 0.5");
}

#[test]
fn what_waits_is_bounded_and_makes_parked_ones_go_first() {
    let process = Process::new(0.0, 10);
    (0..30).for_each(|_| end(&process.begin("dull", &Context::new())));
    assert_eq!(process.tally().unsampled, 20, "ten are parked");
    let root = process.begin("root", &Context::new());
    (0..30).for_each(|_| end(&process.begin("below", &root)));
    assert_eq!((process.tally().unsampled, process.tally().undecided), (30, 20));
    root.span().set_status(Status::error("no"));
    end(&root);
    assert_eq!(process.exported().len(), 11, "the bound, and the root itself");
    let state = process.tail.state();
    assert_eq!((state.open.len(), state.waiting, state.parked.spans), (0, 0, 0));
}

#[test]
fn parked_spans_are_counted_when_their_time_is_over() {
    let mut parking = Parking::default();
    let process = Process::new(0.0, 10);
    let now = Instant::now();
    end(&process.begin("dull", &Context::new()));
    let group = {
        let mut state = process.tail.state();
        let key = *state.parked.groups.keys().next().expect("it is parked");
        state.parked.take(key)
    };
    let key = SpanId::from(7);
    parking.park(now + PARKED, key, group);
    assert_eq!(parking.expire(now), 0);
    assert_eq!((parking.expire(now + PARKED), parking.spans, parking.groups.len()), (1, 0, 0));
    let mut awaited = Awaited::default();
    (0..=MAX_AWAITED as u64).for_each(|n| awaited.add(now, (n + 1).into()));
    assert_eq!(awaited.until.len(), MAX_AWAITED);
    assert!(!awaited.has(now, 1.into()) && awaited.has(now, 2.into()));
    assert!(!awaited.has(now + AWAITED, 2.into()));
    process.provider.shutdown_with_timeout(DEADLINE).expect("in time");
}
