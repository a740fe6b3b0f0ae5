//! Decides about spans when it is known what happened, between the SDK and the [queue](super::outbox) of what is exported.
//!
//! A span that [was kept](super::sampling) when it began goes on at once. Others wait for their *local root*: the outermost span of
//! their trace in this process. When that ends, all of them are kept if one has failed, if the root took longer than the threshold, or
//! if somebody asks for them; for a hand-off also if the ratio keeps its id, which is known by then. What is not kept is parked for some seconds,
//! because another process may find that the hand-off it belongs to failed or was slow ([`keep`](TailSampler::keep)).
//!
//! | outcome | counted as |
//! |---|---|
//! | kept | by [`KeptReason`] |
//! | not kept | `unsampled`, once it is not parked any more |
//! | no room to wait, and nothing parked to make room | `undecided` |
//!
//! The bound is one for all that wait and all that is parked. Parked ones make room for those that wait.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use opentelemetry::Context;
use opentelemetry::trace::{Span as _, SpanContext, SpanId, Status};
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{Span, SpanData, SpanProcessor};

use super::outbox::{KeptReason, Outbox, SpanCounts};
use super::sampling::{Family, SamplingRules};

/// How long spans that are not kept can still be asked for: longer than the 30 s for which the leader waits at most until it knows how a
/// hand-off went.
const PARKED: Duration = Duration::from_secs(60);
/// How long it is remembered that something was asked for whose spans have not ended.
const AWAITED: Duration = Duration::from_secs(120);
/// Ids that are remembered so; the oldest is forgotten.
const MAX_AWAITED: usize = 16_384;

/// The stage.
#[derive(Debug)]
pub(super) struct TailSampler {
    rules: Arc<SamplingRules>,
    outbox: Outbox<SpanData>,
    counts: Arc<SpanCounts>,
    /// Spans that may wait or be parked.
    limit: usize,
    state: Mutex<TailState>,
}

#[derive(Debug, Default)]
struct TailState {
    /// Spans that have begun and are not decided about, with what ended below them.
    open: HashMap<SpanId, Vec<SpanData>>,
    /// Spans in `open` that have ended.
    waiting: usize,
    parked: Parking,
    awaited: Awaited,
}

/// What is parked, under the id it can be asked for by.
#[derive(Debug, Default)]
struct Parking {
    groups: HashMap<SpanId, VecDeque<Vec<SpanData>>>,
    /// Oldest first. One whose group is gone counts for nothing.
    order: VecDeque<(Instant, SpanId)>,
    spans: usize,
}

impl Parking {
    fn park(&mut self, until: Instant, key: SpanId, group: Vec<SpanData>) {
        self.spans += group.len();
        self.order.push_back((until, key));
        self.groups.entry(key).or_default().push_back(group);
    }

    /// Everything with this id.
    fn take(&mut self, key: SpanId) -> Vec<SpanData> {
        let spans: Vec<_> = self.groups.remove(&key).into_iter().flatten().flatten().collect();
        self.spans -= spans.len();
        spans
    }

    /// Forgets the oldest group; the number of its spans, `None` when nothing is parked.
    fn forget(&mut self) -> Option<usize> {
        let (_, key) = self.order.pop_front()?;
        let Some(groups) = self.groups.get_mut(&key) else { return Some(0) };
        let forgotten = groups.pop_front().map_or(0, |group| group.len());
        if groups.is_empty() {
            self.groups.remove(&key);
        }
        self.spans -= forgotten;
        Some(forgotten)
    }

    /// Forgets what is parked no longer; the number of its spans.
    fn expire(&mut self, now: Instant) -> usize {
        let mut forgotten = 0;
        while self.order.front().is_some_and(|(until, _)| *until <= now) {
            forgotten += self.forget().unwrap_or_default();
        }
        forgotten
    }
}

/// Ids that were asked for before what belongs to them had ended.
#[derive(Debug, Default)]
struct Awaited {
    until: HashMap<SpanId, Instant>,
    order: VecDeque<(Instant, SpanId)>,
}

impl Awaited {
    fn add(&mut self, now: Instant, id: SpanId) {
        while self.order.len() >= MAX_AWAITED || self.order.front().is_some_and(|(until, _)| *until <= now) {
            let Some((until, old)) = self.order.pop_front() else { break };
            if self.until.get(&old) == Some(&until) {
                self.until.remove(&old);
            }
        }
        let until = now + AWAITED;
        self.until.insert(id, until);
        self.order.push_back((until, id));
    }

    fn has(&self, now: Instant, id: SpanId) -> bool {
        self.until.get(&id).is_some_and(|until| *until > now)
    }
}

impl TailSampler {
    /// A stage before `outbox`, in which at most `limit` spans wait.
    pub(super) fn new(
        rules: Arc<SamplingRules>,
        outbox: Outbox<SpanData>,
        counts: Arc<SpanCounts>,
        limit: usize,
    ) -> Self {
        Self { rules, outbox, counts, limit, state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, TailState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Exports a span that has ended, whatever happened.
    pub(super) fn pass(&self, span: SpanData) {
        self.export(vec![span], KeptReason::Always);
    }

    /// Takes in spans of a hand-off that were made once it was over, itself last. Returns whether they are kept for what happened in it,
    /// so that other processes are to be asked for what they have of it.
    pub(super) fn handed_off(&self, group: Vec<SpanData>) -> bool {
        let Some(root) = group.last() else { return false };
        let (now, id) = (Instant::now(), root.span_context.span_id());
        let failed = group.iter().any(has_failed);
        let kept = {
            let mut state = self.state();
            let forgotten = state.parked.expire(now);
            self.counts.unsampled(forgotten);
            let kept = self.decide(now, &state, id, root, failed);
            if kept.is_none() {
                // Nobody but this process decides about it, so it is not asked for later.
                self.counts.unsampled(group.len());
                return false;
            }
            let parked = state.parked.take(id);
            (kept, parked)
        };
        let (Some(reason), parked) = kept else { return false };
        self.export(parked, reason);
        self.export(group, reason);
        matches!(reason, KeptReason::Failed | KeptReason::Slow)
    }

    /// Exports what is parked under this id, the one of a hand-off or of a local root, and what ends under it in the next minutes.
    pub(super) fn keep(&self, id: SpanId) {
        let now = Instant::now();
        let spans = {
            let mut state = self.state();
            state.awaited.add(now, id);
            state.parked.take(id)
        };
        self.export(spans, KeptReason::Later);
    }

    /// Counts what is parked no longer.
    pub(super) fn expire(&self) {
        let forgotten = self.state().parked.expire(Instant::now());
        self.counts.unsampled(forgotten);
    }

    fn export(&self, spans: Vec<SpanData>, reason: KeptReason) {
        self.counts.kept(reason, spans.len());
        for mut span in spans {
            if !span.span_context.is_sampled() {
                span.span_context = sampled(&span.span_context);
            }
            self.outbox.take(span);
        }
    }

    /// A span has ended that belongs to no span that is open: decides about it and what ended below it.
    fn decide(
        &self,
        now: Instant,
        state: &TailState,
        key: SpanId,
        root: &SpanData,
        failed: bool,
    ) -> Option<KeptReason> {
        let took = root.end_time.duration_since(root.start_time).unwrap_or_default();
        let by_ratio = match Family::of(&root.name) {
            Family::HandOff | Family::OfHandOff => self.rules.keeps_hand_off(key),
            Family::Always => true,
            Family::Other => self.rules.admits_trace(root.span_context.trace_id()),
        };
        if by_ratio {
            Some(KeptReason::Ratio)
        } else if failed {
            Some(KeptReason::Failed)
        } else if took > self.rules.get().slow {
            Some(KeptReason::Slow)
        } else if state.awaited.has(now, key) {
            Some(KeptReason::Later)
        } else {
            None
        }
    }

    /// Why a span that is kept already is: counted, no more.
    fn reason(&self, span: &SpanData) -> KeptReason {
        if Family::of(&span.name) == Family::Always {
            KeptReason::Always
        } else if self.rules.keeps_trace(span.span_context.trace_id()) {
            KeptReason::Ratio
        } else {
            KeptReason::Asked
        }
    }
}

/// What this span and what belongs to it can be asked for by.
fn key(span: &SpanData) -> SpanId {
    match Family::of(&span.name) {
        Family::OfHandOff if span.parent_span_id != SpanId::INVALID => span.parent_span_id,
        _ => span.span_context.span_id(),
    }
}

fn sampled(context: &SpanContext) -> SpanContext {
    let flags = context.trace_flags().with_sampled(true);
    let state = context.trace_state().clone();
    SpanContext::new(context.trace_id(), context.span_id(), flags, context.is_remote(), state)
}

fn has_failed(span: &SpanData) -> bool {
    matches!(span.status, Status::Error { .. })
}

impl SpanProcessor for TailSampler {
    fn on_start(&self, span: &mut Span, _: &Context) {
        let context = span.span_context();
        if context.is_sampled() {
            return;
        }
        let mut state = self.state();
        // Beyond the bound it is decided about by itself.
        if state.open.len() < self.limit {
            state.open.insert(context.span_id(), Vec::new());
        }
    }

    fn on_end(&self, span: SpanData) {
        let family = Family::of(&span.name);
        let is_sampled = span.span_context.is_sampled();
        if family == Family::Always || (family == Family::Other && is_sampled) {
            let reason = self.reason(&span);
            return self.export(vec![span], reason);
        }
        let now = Instant::now();
        let (mut group, kept) = {
            let mut state = self.state();
            let forgotten = state.parked.expire(now);
            self.counts.unsampled(forgotten);
            let mut group = state.open.remove(&span.span_context.span_id()).unwrap_or_default();
            state.waiting -= group.len();
            let within = family != Family::HandOff && !span.parent_span_is_remote;
            if within && state.open.contains_key(&span.parent_span_id) {
                let ended = group.len() + 1;
                if !self.make_room(&mut state, ended) {
                    drop(state);
                    return self.counts.undecided(ended);
                }
                state.waiting += ended;
                if let Some(below) = state.open.get_mut(&span.parent_span_id) {
                    // The longer list stays where it is.
                    if below.len() < group.len() {
                        std::mem::swap(below, &mut group);
                    }
                    below.append(&mut group);
                    below.push(span);
                }
                return;
            }
            let failed = has_failed(&span) || group.iter().any(has_failed);
            let key = key(&span);
            let kept = self.decide(now, &state, key, &span, failed);
            group.push(span);
            if kept.is_none() {
                let spans = group.len();
                if self.make_room(&mut state, spans) {
                    state.parked.park(now + PARKED, key, std::mem::take(&mut group));
                } else {
                    self.counts.unsampled(spans);
                }
            }
            (group, kept)
        };
        if let Some(reason) = kept {
            self.export(std::mem::take(&mut group), reason);
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.outbox.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.outbox.shutdown_with_timeout(timeout)
    }
}

impl TailSampler {
    /// Forgets parked spans until there is room for so many; `false` when there is none.
    fn make_room(&self, state: &mut TailState, spans: usize) -> bool {
        while state.waiting + state.parked.spans + spans > self.limit || state.parked.order.len() >= self.limit {
            let Some(forgotten) = state.parked.forget() else { return false };
            self.counts.unsampled(forgotten);
        }
        true
    }
}

/// The stage as the SDK owns it: others refer to it, too.
#[derive(Debug)]
pub(super) struct SharedTail(pub(super) Arc<TailSampler>);

impl SpanProcessor for SharedTail {
    fn on_start(&self, span: &mut Span, context: &Context) {
        self.0.on_start(span, context);
    }

    fn on_end(&self, span: SpanData) {
        self.0.on_end(span);
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.0.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.0.shutdown_with_timeout(timeout)
    }
}

#[cfg(test)]
mod tests;
