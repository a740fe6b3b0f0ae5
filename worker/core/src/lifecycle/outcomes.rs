//! What the outcomes of steps mean for what is known: instances that answer, hang, end, and boots that fail.

use std::time::Duration;

use common::backoff::Retry;
use common::kind::ProbeSpec;
use common::status::Details;
use common::{Generation, Timestamp};

use super::fleet::{InstanceLife, InstanceSlot, Plugging};
use super::{AfterEvent, Bar, Lifecycle, LifecycleStep, Occasion, StepOutcome, plan};
use crate::instance::{BootState, Instance, Observation};
use crate::peers::PeerDigest;

/// After how long a start without an answer is told, if the probe interval is not shorter: a usual one has answered by then.
const SILENT_START: Duration = Duration::from_secs(2);
/// Of so many probes of a start one may tell another reason than what is told already. They are a second apart by then at least,
/// and what is answered may differ each time.
const TELL_AGAIN: u32 = 10;
/// How what is told of such a start goes on after the name of the instance.
const SILENT: &str = "does not answer yet";

impl Lifecycle {
    /// Takes in how the running step ended.
    pub(super) fn step_ended(
        &mut self,
        step: LifecycleStep,
        leaving: bool,
        outcome: StepOutcome,
        at: Occasion<'_>,
    ) -> AfterEvent {
        use {LifecycleStep as L, StepOutcome as O};
        if matches!(step, L::Probe { .. }) {
            self.troubles.in_doubt = matches!(outcome, O::Unclear(_));
        }
        match (step, outcome) {
            (L::Observe, O::Observed(found)) => self.observed(found, at),
            (L::Boot { ordinal, attempt, .. }, O::Booted(instance))
                if (instance.ordinal, instance.attempt) == (ordinal, attempt) =>
            {
                let next_probe = at.now + plan::poll_delay(0);
                self.fleet.keep(InstanceSlot::started(instance, true, at.now, next_probe));
            }
            (L::Boot { ordinal, .. }, O::Refused(text) | O::Failed(text)) => {
                self.fleet.known = false;
                self.failed_boot(ordinal, &text, at);
            }
            (L::Boot { ordinal, .. }, O::TimedOut) => {
                self.fleet.known = false;
                self.failed_boot(ordinal, "starting it took too long", at);
            }
            (L::Probe { ordinal }, O::Answered(conditions)) => self.answered(ordinal, conditions, at),
            (L::Probe { ordinal }, O::Silent(text) | O::Failed(text) | O::Refused(text)) => {
                self.silent(ordinal, &text, at);
            }
            (L::Probe { ordinal }, O::Unclear(text)) => self.unclear(ordinal, &text, at),
            (L::Probe { ordinal }, O::TimedOut) => self.silent(ordinal, "no answer in time", at),
            (L::Boot { ordinal, .. }, O::Vanished(text, end)) => {
                self.fleet.known = false;
                self.troubles.saw_end(end);
                self.failed_boot(ordinal, &format!("ended at once: {text}"), at);
            }
            (L::Probe { ordinal }, O::Vanished(text, end)) => {
                self.troubles.saw_end(end);
                self.vanished(ordinal, &text, at);
            }
            (L::Probe { ordinal } | L::Configure { ordinal, .. } | L::Replug { ordinal, .. }, O::Taken) => {
                drop(self.fleet.remove(ordinal));
            }
            (L::Configure { ordinal, generation, peers }, O::Configured) => {
                self.configured(ordinal, generation, peers, at.now);
            }
            (L::Configure { ordinal, .. }, O::Refused(text)) if self.fleet.predecessor(ordinal).is_some() => {
                self.fleet.condemn(ordinal);
                self.failed_boot(ordinal, &format!("cannot be configured: {text}"), at);
            }
            (L::Configure { ordinal, .. }, O::Vanished(text, end)) if self.fleet.predecessor(ordinal).is_some() => {
                self.troubles.saw_end(end);
                self.vanished(ordinal, &text, at);
            }
            (L::Replug { ordinal, generation }, O::Replugged(instance)) if instance.ordinal == ordinal => {
                self.replugged(instance, generation, at);
            }
            (L::Destroy { ordinal, attempt }, O::Destroyed) => {
                self.fleet.doomed.retain(|doomed| (doomed.ordinal, doomed.attempt) != (ordinal, attempt));
                self.waits.removals = Retry::default();
            }
            (L::Forget, O::Forgotten) if !leaving => return AfterEvent::Gone,
            // The next owner forgets again, which changes nothing, and reports it under its own token.
            (L::Forget, O::Forgotten) => return AfterEvent::Release,
            // The gate was shut or the place was taken: nothing failed, but others may have acted since.
            (_, outcome @ (O::Fenced { .. } | O::Busy(_) | O::Superseded(_))) => self.kept_out(step, &outcome, at),
            // Failures of the other steps, and outcomes that do not belong to the step that ran.
            (_, outcome) => self.failed(step, &outcome, at),
        }
        AfterEvent::Plan
    }

    /// The step was not begun. It is tried again later, after another look.
    fn kept_out(&mut self, step: LifecycleStep, outcome: &StepOutcome, at: Occasion<'_>) {
        if let LifecycleStep::Boot { ordinal, attempt, .. } = step {
            self.fleet.untake_attempt(ordinal, attempt);
        }
        let mut wait = at.config.fence_retry.mul_f64(0.5 + at.jitter.clamp(0.0, 1.0));
        match outcome {
            StepOutcome::Fenced { retry_after } => wait = retry_after.unwrap_or(wait),
            StepOutcome::Superseded(newer) => {
                self.troubles.last_error = Some(format!("fenced by a newer token {newer}").into());
            }
            other => self.troubles.last_error = Some(other.text().into()),
        }
        let until = at.now + wait;
        self.waits.fenced_until = until;
        self.fleet.known = false;
        self.waits.looks.at = self.waits.looks.at.max(until);
    }

    fn observed(&mut self, found: Observation, at: Occasion<'_>) {
        let first = self.fleet.slots.is_empty() && self.reporting.quiet;
        let replicas = self.goal.replicas();
        let findings = self.fleet.observe(found, &self.goal.digest, replicas, at.now);
        self.waits.looks = Retry::default();
        for slot in self.fleet.slots.iter_mut().filter(|slot| !self.goal.needs_plugging(&slot.instance)) {
            slot.plugging = Plugging::default();
        }
        for slot in findings.lost.into_iter().filter(|slot| !slot.instance.is_spare) {
            let text = format!("instance {} ended by itself", slot.instance.ordinal);
            self.ended(&slot, text, at);
        }
        for ordinal in findings.failed_boots {
            self.failed_boot(ordinal, "ended before it was up", at);
        }
        if first && !self.fleet.slots.is_empty() && self.fleet.missing(replicas).is_some() {
            self.troubles.lost = true;
        }
    }

    fn failed_boot(&mut self, ordinal: u16, text: &str, at: Occasion<'_>) {
        let Occasion { now, jitter, config } = at;
        self.boots.failed = self.boots.failed.saturating_add(1);
        self.troubles.last_error = Some(format!("boot of instance {ordinal}: {text}").into());
        self.boots.bar = if self.boots.failed >= config.boot_attempts {
            Bar::Cooldown(now + config.error_cooldown)
        } else {
            Bar::Backoff(now + config.boot_backoff.delay(self.boots.failed, jitter))
        };
    }

    /// An instance that had answered has ended, or has to.
    fn ended(&mut self, slot: &InstanceSlot, text: String, at: Occasion<'_>) {
        self.troubles.lost = true;
        self.count_end(slot, text, at);
    }

    /// The first time an instance ends it is replaced at once; again without `stable_after` of health between, that waits
    /// longer each time, so that what cannot live does not keep a host busy.
    fn count_end(&mut self, slot: &InstanceSlot, text: String, at: Occasion<'_>) {
        let Occasion { now, jitter, config } = at;
        if slot.is_proven(now, config.stable_after) {
            self.boots.ends = self.boots.ends.max(1);
            self.troubles.last_error = Some(text.into());
            return;
        }
        self.boots.ends = self.boots.ends.saturating_add(1);
        let again = self.boots.ends - 1;
        if again == 0 {
            self.troubles.last_error = Some(text.into());
            return;
        }
        let (ends, stable) = (self.boots.ends, config.stable_after);
        self.troubles.last_error = Some(format!("{text} ({ends} ends without {stable:?} of health)").into());
        if !matches!(self.boots.bar, Bar::Cooldown(_)) {
            self.boots.bar = Bar::Backoff(now + config.boot_backoff.delay(again, jitter));
        }
    }

    fn configured(&mut self, ordinal: u16, generation: Generation, peers: PeerDigest, now: Timestamp) {
        // What the configuration of an older generation said is not known any more; the newer one follows at once.
        let address = self.goal.desired.spec.kind.service_address(ordinal);
        let address = address.filter(|_| generation == self.goal.generation());
        let goal = &self.goal;
        let Some(slot) = self.fleet.slot_mut(ordinal) else { return };
        (slot.configured, slot.peers) = (Some(generation), peers);
        if !goal.is_stale(&slot.instance) {
            slot.runs = Some(generation);
        }
        slot.serves_since.get_or_insert(now);
        slot.retry = Retry::default();
        // What serves no REST contract was not told where to serve either.
        if address.is_some() && slot.instance.addresses.management.is_some() && !slot.instance.has_own_address {
            slot.instance.addresses.service = address;
        }
    }

    /// The driver says that the instance has the ports of `generation`.
    fn replugged(&mut self, instance: Instance, generation: Generation, at: Occasion<'_>) {
        let ordinal = instance.ordinal;
        let lacks = generation == self.goal.generation() && self.goal.needs_plugging(&instance);
        let Some(slot) = self.fleet.slot_mut(ordinal) else { return };
        let same = slot.instance.attempt == instance.attempt;
        if same {
            slot.see(instance);
        }
        if lacks || !same {
            let text = "its driver reports other ports than it was asked for";
            self.troubles.last_error = Some(format!("replug {ordinal}: {text}").into());
            self.plugging_failed(ordinal, true, at);
        } else {
            slot.plugging = Plugging::default();
        }
    }

    /// The ports of an instance could not be plugged. After `replug_attempts` failures in a row that count, it is replaced:
    /// another instance may get them.
    fn plugging_failed(&mut self, ordinal: u16, counts: bool, at: Occasion<'_>) {
        let Occasion { now, jitter, config } = at;
        let Some(slot) = self.fleet.slot_mut(ordinal) else { return };
        // It may be dead, which a probe finds out.
        slot.next_probe = slot.next_probe.min(now + config.probe_retry);
        slot.plugging.retry.fail(now, &config.step_backoff, jitter);
        slot.plugging.failed = slot.plugging.failed.saturating_add(u32::from(counts));
        if slot.plugging.failed < config.replug_attempts || slot.plugging.given_up {
            return;
        }
        slot.plugging.given_up = true;
        let (slot, failed) = (slot.clone(), slot.plugging.failed);
        let error = self.troubles.last_error.take().unwrap_or_default();
        self.count_end(&slot, format!("ports of instance {ordinal} could not be plugged {failed} times: {error}"), at);
    }

    fn answered(&mut self, ordinal: u16, conditions: Details, at: Occasion<'_>) {
        let next_probe = self.next_probe(ordinal, at.now, at.config);
        let settle_time = self.goal.desired.spec.settle_time();
        if let Some(slot) = self.fleet.slot_mut(ordinal) {
            if let InstanceLife::Rising { since, .. } = slot.life
                && at.now < since + settle_time
            {
                // It may yet end at once, and what is up for a moment only is not up.
                slot.next_probe = since + settle_time;
                return;
            }
            slot.life = InstanceLife::Alive;
            // Whoever carried the probe out has told the driver.
            if matches!(slot.instance.boot, BootState::UnderWay { .. }) {
                slot.instance.boot = BootState::Over;
            }
            slot.conditions = conditions;
            slot.failed_probes = 0;
            slot.next_probe = next_probe;
        }
    }

    fn silent(&mut self, ordinal: u16, text: &str, at: Occasion<'_>) {
        let Occasion { now, config, .. } = at;
        let interval = self.interval(config);
        let retry = now + config.probe_retry.min(interval);
        let boot_timeout = self.goal.desired.spec.timing.boot_timeout.unwrap_or(config.boot_timeout);
        let has_contract = matches!(self.goal.desired.spec.kind.probe(), ProbeSpec::Rest);
        let Some(slot) = self.fleet.slot_mut(ordinal) else { return };
        slot.failed_probes = slot.failed_probes.saturating_add(1);
        let is_over = match slot.life {
            InstanceLife::Rising { since, .. } => now.since(since) >= boot_timeout,
            InstanceLife::Alive | InstanceLife::Adopted => true,
        };
        if is_over && slot.failed_probes >= config.restart_probe_failures && self.spares(now, ordinal, text) {
            // Somebody may be at work on it.
            if let Some(slot) = self.fleet.slot_mut(ordinal) {
                slot.next_probe = retry;
            }
            return;
        }
        let Some(slot) = self.fleet.slot_mut(ordinal) else { return };
        match &mut slot.life {
            // Its time may have been over before this owner came, or have passed in a suspend: it is asked more than once all the same.
            InstanceLife::Rising { since, .. }
                if now.since(*since) >= boot_timeout && slot.failed_probes >= config.restart_probe_failures =>
            {
                self.fleet.condemn(ordinal);
                self.failed_boot(ordinal, &format!("gave no answer in time: {text}"), at);
            }
            InstanceLife::Rising { since, polls } => {
                *polls = polls.saturating_add(1);
                slot.next_probe = now + plan::poll_delay(*polls);
                // No failure of the boot, which has its own time: it only says why whoever waits is waiting.
                let is_told = self.troubles.last_error.as_ref().is_some_and(|error| error.contains(SILENT));
                let again = !is_told || polls.is_multiple_of(TELL_AGAIN);
                if now.since(*since) >= interval.min(SILENT_START) && again {
                    self.troubles.last_error = Some(format!("instance {ordinal} {SILENT}: {text}").into());
                }
                if has_contract && slot.instance.addresses.management.is_none() {
                    // One that was found before it said where its contract is served may have said so since.
                    self.fleet.known = false;
                }
            }
            InstanceLife::Alive | InstanceLife::Adopted if slot.failed_probes >= config.restart_probe_failures => {
                let times = slot.failed_probes;
                let condemned = slot.clone();
                self.fleet.condemn(ordinal);
                let text = format!("instance {ordinal} left {times} probes unanswered: {text}");
                self.ended(&condemned, text, at);
            }
            InstanceLife::Alive | InstanceLife::Adopted => slot.next_probe = retry,
        }
    }

    /// Nobody can say how an instance is. It is asked again soon, and nothing is counted against it: it may serve all the while.
    fn unclear(&mut self, ordinal: u16, text: &str, at: Occasion<'_>) {
        let retry = at.now + at.config.probe_retry.min(self.interval(at.config));
        if let Some(slot) = self.fleet.slot_mut(ordinal) {
            slot.next_probe = retry;
            self.troubles.last_error = Some(format!("instance {ordinal}: {text}").into());
        }
    }

    fn vanished(&mut self, ordinal: u16, text: &str, at: Occasion<'_>) {
        match self.fleet.remove(ordinal) {
            Some(slot) if !slot.is_rising() => {
                self.ended(&slot, format!("instance {ordinal} is gone: {text}"), at);
            }
            Some(_) => self.failed_boot(ordinal, &format!("ended before it was up: {text}"), at),
            None => {}
        }
    }

    fn failed(&mut self, step: LifecycleStep, outcome: &StepOutcome, at: Occasion<'_>) {
        let Occasion { now, jitter, config } = at;
        self.troubles.last_error = Some(format!("{step}: {}", outcome.text()).into());
        match step {
            LifecycleStep::Observe => self.waits.looks.fail(now, &config.step_backoff, jitter),
            LifecycleStep::Replug { ordinal, .. } => {
                // Some of its ports may have changed, and even the last call may have taken effect.
                self.fleet.known = false;
                let counts = matches!(outcome, StepOutcome::Failed(_) | StepOutcome::TimedOut);
                self.plugging_failed(ordinal, counts, at);
            }
            LifecycleStep::Configure { ordinal, .. } => {
                if let Some(slot) = self.fleet.slot_mut(ordinal) {
                    // Once is chance. Twice it may be its predecessor that hands nothing over, and has to be ended first.
                    let again = slot.retry.failures > 0;
                    slot.retry.fail(now, &config.step_backoff, jitter);
                    // It may be dead, which a probe finds out.
                    slot.next_probe = slot.next_probe.min(now + config.probe_retry);
                    if again {
                        self.fleet.condemn_predecessor(ordinal);
                    }
                }
            }
            LifecycleStep::Destroy { .. } | LifecycleStep::Forget => {
                self.fleet.known = false;
                self.waits.removals.fail(now, &config.step_backoff, jitter);
                self.waits.looks.at = self.waits.looks.at.max(self.waits.removals.at);
            }
            // Only an outcome that does not belong to it comes here: nobody knows what happened.
            LifecycleStep::Boot { ordinal, .. } => {
                self.fleet.known = false;
                self.failed_boot(ordinal, outcome.text(), at);
            }
            LifecycleStep::Probe { ordinal } => self.silent(ordinal, outcome.text(), at),
        }
    }
}
