//! Which spans are kept: what is known when one begins, and the rules that can be changed while the process runs.
//!
//! | span | when it begins |
//! |---|---|
//! | `rebalance`, `plan`, `delta` | kept |
//! | `hand-off`, and `release`, `adopt`, `commit` that belong to one | kept by ratio of the id of the hand-off, so that all processes decide alike |
//! | with a parent of this process | as the parent |
//! | whose caller has set the flag `sampled` | kept: it was asked for |
//! | whose caller has not | not recorded, unless the caller is one of ours that has not decided yet |
//! | without a caller | kept by ratio of the trace id, as far as the [budget](TraceBudget) goes |
//! | without a caller, when far more traces begin than are kept | recorded in *outline*: its outermost span of this process, and nothing below it |
//!
//! What is not kept by then is recorded all the same, and [decided](super::tail) when it is known how it ended. Between processes such a
//! context has the flag `sampled` off, and `rug=tail` in its `tracestate`.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use common::telemetry::Ratio;
use opentelemetry::trace::{Link, SpanId, SpanKind, TraceContextExt, TraceId, TraceState};
use opentelemetry::{Context, KeyValue};
use opentelemetry_sdk::trace::{SamplingDecision, SamplingResult, ShouldSample};

/// Ids below this are kept; that of `TraceIdRatioBased` in SDKs of OpenTelemetry, so that all keep the same traces.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
fn bound(ratio: Ratio) -> u64 {
    (ratio.get() * (1_u64 << 63) as f64) as u64
}

/// Which spans are kept beside those that always are. Can be changed while the process runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sampling {
    /// Share of traces, and of hand-offs of a rebalance, that are kept whatever happens in them.
    pub ratio: Ratio,
    /// What takes longer is kept.
    pub slow: Duration,
}

/// For how many seconds of its rate a [`TraceBudget`] can be saved up.
const BURST: f64 = 2.0;
/// How many traces are recorded whole for each that the budget lets be kept, and how many at least in a second: among them are those that
/// turn out to fail or to be slow.
const RECORDED: (f64, f64) = (3.0, 300.0);

/// How many traces of calls and lifecycles the ratio may keep in a second: a token bucket. Rebalances and their hand-offs are not
/// among them, nor is what failed, was slow or was asked for. So exporting costs little however much is asked of this process.
#[derive(Debug)]
pub(super) struct TraceBudget {
    kept: TokenBucket,
    /// Of those that are recorded whole.
    recorded: TokenBucket,
}

impl TraceBudget {
    pub(super) fn new(per_second: u32, now: Instant) -> Self {
        let per_second = f64::from(per_second);
        let recorded = (per_second * RECORDED.0).max(RECORDED.1);
        Self { kept: TokenBucket::new(per_second, now), recorded: TokenBucket::new(recorded, now) }
    }
}

#[derive(Debug)]
struct TokenBucket {
    per_second: f64,
    /// What is left, and when that was.
    left: Mutex<(f64, Instant)>,
}

impl TokenBucket {
    fn new(per_second: f64, now: Instant) -> Self {
        Self { per_second, left: Mutex::new((per_second * BURST, now)) }
    }

    /// Whether there is room for one more, which it then has.
    fn take(&self, now: Instant) -> bool {
        let mut left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        let (tokens, at) = *left;
        let gained = now.saturating_duration_since(at).as_secs_f64() * self.per_second;
        let tokens = (tokens + gained).min(self.per_second * BURST);
        let taken = tokens >= 1.0;
        *left = (if taken { tokens - 1.0 } else { tokens }, now.max(at));
        taken
    }
}

/// [`Sampling`] as all threads read it, and the budget.
#[derive(Debug)]
pub(super) struct SamplingRules {
    ratio: AtomicU64,
    slow: AtomicU64,
    budget: Mutex<Arc<TraceBudget>>,
}

impl SamplingRules {
    pub(super) fn new(sampling: Sampling, budget: TraceBudget) -> Self {
        let rules = Self { ratio: AtomicU64::new(0), slow: AtomicU64::new(0), budget: Mutex::new(Arc::new(budget)) };
        rules.set(sampling);
        rules
    }

    pub(super) fn set(&self, Sampling { ratio, slow }: Sampling) {
        self.ratio.store(ratio.get().to_bits(), Ordering::Relaxed);
        self.slow.store(u64::try_from(slow.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    pub(super) fn set_budget(&self, budget: TraceBudget) {
        *self.budget.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(budget);
    }

    pub(super) fn get(&self) -> Sampling {
        Sampling {
            ratio: f64::from_bits(self.ratio.load(Ordering::Relaxed)).try_into().unwrap_or(Ratio::ALL),
            slow: Duration::from_nanos(self.slow.load(Ordering::Relaxed)),
        }
    }

    /// Whether the ratio keeps what has these random bits.
    fn keeps(&self, bits: u64) -> bool {
        (bits >> 1) < bound(self.get().ratio)
    }

    /// Whether the ratio keeps this trace and the budget has room for it.
    pub(super) fn admits_trace(&self, trace: TraceId) -> bool {
        self.keeps_trace(trace) && self.budget().kept.take(Instant::now())
    }

    /// Whether there is room to record one more trace whole.
    fn records_whole(&self) -> bool {
        self.budget().recorded.take(Instant::now())
    }

    fn budget(&self) -> Arc<TraceBudget> {
        Arc::clone(&self.budget.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn keeps_trace(&self, trace: TraceId) -> bool {
        let [.., a, b, c, d, e, f, g, h] = trace.to_bytes();
        self.keeps(u64::from_be_bytes([a, b, c, d, e, f, g, h]))
    }

    pub(super) fn keeps_hand_off(&self, hand_off: SpanId) -> bool {
        self.keeps(u64::from_be_bytes(hand_off.to_bytes()))
    }
}

/// How a span is decided about, by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    /// Kept.
    Always,
    /// The hand-off of one appliance.
    HandOff,
    /// Belongs to the hand-off that is its parent.
    OfHandOff,
    /// By its trace.
    Other,
}

impl Family {
    pub(super) fn of(name: &str) -> Self {
        match name {
            "rebalance" | "plan" | "delta" => Self::Always,
            "hand-off" => Self::HandOff,
            "release" | "adopt" | "commit" => Self::OfHandOff,
            _ => Self::Other,
        }
    }
}

/// Key and value in the `tracestate` of a context that is not decided about.
const UNDECIDED: (&str, &str) = ("rug", "tail");

/// Value in place of the one above, of a span below which nothing is recorded.
const OUTLINE: &str = "outline";

/// Marks the context of a caller of ours: without the flag `sampled` it is not decided about.
pub(super) fn undecided(state: &TraceState) -> TraceState {
    state.insert(UNDECIDED.0, UNDECIDED.1).unwrap_or_else(|_| state.clone())
}

/// Whether the caller with this context is one of ours that has not decided.
pub(super) fn is_undecided(state: &TraceState) -> bool {
    state.get(UNDECIDED.0) == Some(UNDECIDED.1)
}

/// Decides when a span begins.
#[derive(Clone, Debug)]
pub(super) struct HeadSampler {
    pub(super) rules: Arc<SamplingRules>,
    /// Whether the flag `sampled` of a caller counts.
    pub(super) follows_parent: bool,
}

impl ShouldSample for HeadSampler {
    fn should_sample(
        &self,
        parent: Option<&Context>,
        trace: TraceId,
        name: &str,
        _: &SpanKind,
        _: &[KeyValue],
        _: &[Link],
    ) -> SamplingResult {
        let parent = parent.map(TraceContextExt::span);
        let context = parent.as_ref().map(|span| span.span_context()).filter(|context| context.is_valid());
        let state = context.map(|context| context.trace_state().clone()).unwrap_or_default();
        let family = Family::of(name);
        let is_local = context.is_some_and(|context| !context.is_remote());
        let refused = match context {
            Some(context) if family == Family::Other && !context.is_sampled() => match context.is_remote() {
                true => self.follows_parent && !is_undecided(&state),
                false => {
                    state.get(UNDECIDED.0) == Some(OUTLINE) || parent.as_ref().is_some_and(|span| !span.is_recording())
                }
            },
            _ => false,
        };
        let kept = || match (family, context) {
            (Family::Always, _) => true,
            // Its id is not known yet.
            (Family::HandOff, _) => self.rules.get().ratio == Ratio::ALL,
            (Family::OfHandOff, Some(context)) => self.rules.keeps_hand_off(context.span_id()),
            (_, Some(context)) if !context.is_remote() => context.is_sampled(),
            (_, Some(context)) if self.follows_parent && context.is_sampled() => true,
            _ => self.rules.admits_trace(trace),
        };
        let (decision, trace_state) = if refused {
            (SamplingDecision::Drop, state)
        } else if kept() {
            (SamplingDecision::RecordAndSample, state.delete(UNDECIDED.0).unwrap_or_default())
        } else if is_local || family != Family::Other || self.rules.records_whole() {
            (SamplingDecision::RecordOnly, undecided(&state))
        } else {
            let outline = state.insert(UNDECIDED.0, OUTLINE).unwrap_or_else(|_| state.clone());
            (SamplingDecision::RecordOnly, outline)
        };
        SamplingResult { decision, attributes: Vec::new(), trace_state }
    }
}

#[cfg(test)]
mod tests {
    use opentelemetry::trace::{SpanContext, TraceFlags};

    use super::*;

    fn sampler(ratio: f64, follows_parent: bool) -> HeadSampler {
        let sampling = Sampling { ratio: ratio.try_into().expect("a ratio"), slow: Duration::from_secs(5) };
        let budget = TraceBudget::new(1_000_000, Instant::now());
        HeadSampler { rules: Arc::new(SamplingRules::new(sampling, budget)), follows_parent }
    }

    #[test]
    fn calls_and_lifecycles_are_kept_as_far_as_the_budget_goes_and_hand_offs_beyond() {
        let sampler = sampler(1.0, true);
        sampler.rules.set_budget(TraceBudget { kept: bucket(2.0), recorded: bucket(1_000.0) });
        let of = |parent: Option<&Context>, name: &str| decided(&sampler, parent, 1, name).decision;
        assert_eq!(of(Some(&caller(1, 1, false, &[])), "rpc"), SamplingDecision::Drop, "which takes nothing of it");
        assert_eq!(of(None, "rpc"), SamplingDecision::RecordAndSample);
        assert_eq!(of(Some(&caller(1, 1, false, &[("rug", "tail")])), "lifecycle"), SamplingDecision::RecordAndSample);
        for name in ["rpc", "lifecycle"] {
            assert_eq!(of(None, name), SamplingDecision::RecordOnly, "{name} is decided about when it has ended");
        }
        assert_eq!(of(Some(&caller(1, 1, true, &[])), "rpc"), SamplingDecision::RecordAndSample, "it was asked for");
        for name in ["rebalance", "hand-off"] {
            assert_eq!(of(None, name), SamplingDecision::RecordAndSample, "{name}");
        }
    }

    #[test]
    fn a_budget_is_saved_up_for_some_seconds_and_no_longer() {
        let start = Instant::now();
        let budget = TokenBucket::new(10.0, start);
        let spent =
            |at: Duration| std::iter::repeat_with(|| budget.take(start + at)).take_while(|&taken| taken).count();
        assert_eq!(spent(Duration::ZERO), 20);
        assert_eq!(spent(Duration::from_millis(80)), 0);
        assert_eq!(spent(Duration::from_millis(100)), 1, "what was refused took nothing");
        assert_eq!(spent(Duration::from_millis(300)), 2);
        assert_eq!(spent(Duration::from_millis(200)), 0, "a thread that looked at the clock before");
        assert_eq!(spent(Duration::from_secs(3_600)), 20);
        assert!(!TokenBucket::new(0.0, start).take(start));
    }

    fn bucket(left: f64) -> TokenBucket {
        TokenBucket { per_second: 1.0, left: Mutex::new((left, Instant::now())) }
    }

    #[test]
    fn when_far_more_begin_than_are_kept_only_outermost_spans_are_recorded() {
        let sampler = sampler(0.0, true);
        sampler.rules.set_budget(TraceBudget { kept: bucket(0.0), recorded: bucket(1.0) });
        let whole = decided(&sampler, None, 1, "rpc");
        assert_eq!(whole.decision, SamplingDecision::RecordOnly);
        assert!(is_undecided(&whole.trace_state), "others record their part as well");
        let outline = decided(&sampler, None, 2, "rpc");
        assert_eq!(outline.decision, SamplingDecision::RecordOnly, "it may fail, or be slow");
        assert!(!is_undecided(&outline.trace_state), "others do not record theirs");
        let context = SpanContext::new(2.into(), 2.into(), TraceFlags::default(), false, outline.trace_state);
        let below = Context::new().with_remote_span_context(context);
        assert_eq!(decided(&sampler, Some(&below), 2, "db").decision, SamplingDecision::Drop);
        assert_eq!(decided(&sampler, Some(&below), 2, "hand-off").decision, SamplingDecision::RecordOnly);
    }

    /// A caller with this flag and state, in a trace with this number.
    fn caller(trace: u128, span: u64, sampled: bool, state: &[(&str, &str)]) -> Context {
        let state = TraceState::from_key_value(state.iter().copied()).expect("valid");
        let flags = TraceFlags::default().with_sampled(sampled);
        Context::new().with_remote_span_context(SpanContext::new(trace.into(), span.into(), flags, true, state))
    }

    fn decided(sampler: &HeadSampler, parent: Option<&Context>, trace: u128, name: &str) -> SamplingResult {
        sampler.should_sample(parent, trace.into(), name, &SpanKind::Internal, &[], &[])
    }

    /// Trace ids, or span ids, in the lower and in the upper half.
    const LOW: u64 = 1 << 62;
    const HIGH: u64 = 3 << 62;

    #[test]
    fn all_processes_decide_alike_by_the_hand_off_and_not_by_its_trace() {
        let half = sampler(0.5, true);
        for (hand_off, decision) in [(LOW, SamplingDecision::RecordAndSample), (HIGH, SamplingDecision::RecordOnly)] {
            for name in ["release", "adopt", "commit"] {
                for sampled in [true, false] {
                    let caller = caller(u128::from(LOW), hand_off, sampled, &[]);
                    assert_eq!(decided(&half, Some(&caller), u128::from(LOW), name).decision, decision, "{name}");
                }
            }
            assert_eq!(half.rules.keeps_hand_off(hand_off.into()), decision == SamplingDecision::RecordAndSample);
        }
        assert_eq!(decided(&half, None, u128::from(HIGH), "rebalance").decision, SamplingDecision::RecordAndSample);
    }

    #[test]
    fn a_caller_that_asks_is_answered_and_one_that_does_not_is_left_alone() {
        let none = sampler(0.0, true);
        let asks = caller(1, 1, true, &[("rug", "tail"), ("other", "kept")]);
        let answer = decided(&none, Some(&asks), 1, "rpc");
        assert_eq!(answer.decision, SamplingDecision::RecordAndSample);
        assert_eq!(answer.trace_state.header(), "other=kept");
        let all = sampler(1.0, true);
        assert_eq!(decided(&all, Some(&caller(1, 1, false, &[])), 1, "rpc").decision, SamplingDecision::Drop);
        let undecided = decided(&none, Some(&caller(1, 1, false, &[("rug", "tail")])), 1, "rpc");
        assert_eq!(undecided.decision, SamplingDecision::RecordOnly);
        assert_eq!(undecided.trace_state.header(), "rug=tail", "the next process has to know");
        let own_way = sampler(1.0, false);
        assert_eq!(
            decided(&own_way, Some(&caller(1, 1, false, &[])), 1, "rpc").decision,
            SamplingDecision::RecordAndSample
        );
    }

    #[test]
    fn the_rules_change_at_once() {
        let sampler = sampler(0.25, true);
        let kept = |sampler: &HeadSampler| {
            let step = u64::MAX / 1_000;
            (0..1_000_u64).filter(|n| sampler.rules.keeps_trace(u128::from(n * step).into())).count()
        };
        assert!((249..=251).contains(&kept(&sampler)), "{}", kept(&sampler));
        let slow = Duration::from_millis(1);
        sampler.rules.set(Sampling { ratio: Ratio::ALL, slow });
        assert_eq!((kept(&sampler), sampler.rules.get().slow), (1_000, slow));
        sampler.rules.set(Sampling { ratio: Ratio::NONE, slow });
        assert_eq!(kept(&sampler), 0);
    }
}
