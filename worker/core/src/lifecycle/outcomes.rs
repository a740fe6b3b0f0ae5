//! What the outcomes of steps mean for what is known: instances that answer, hang, end, and boots that fail.

use common::{Generation, Timestamp};

use super::fleet::{InstanceLife, InstanceSlot};
use super::{Bar, Config, Lifecycle, LifecycleStep, StepOutcome, plan};
use crate::instance::Instance;
use common::backoff::Retry;

impl Lifecycle {
    pub(super) fn observed(&mut self, found: Vec<Instance>, now: Timestamp, jitter: f64, config: &Config) {
        let first = self.fleet.slots.is_empty() && self.news.quiet;
        let replicas = self.desired.spec.replicas;
        let findings = self.fleet.observe(found, &self.digest, replicas, now);
        self.looks = Retry::default();
        for slot in findings.lost {
            let text = format!("instance {} ended by itself", slot.instance.ordinal);
            self.ended(&slot, text, now, jitter, config);
        }
        for ordinal in findings.failed_boots {
            self.failed_boot(ordinal, "ended before it answered", now, jitter, config);
        }
        if first && !self.fleet.slots.is_empty() && self.fleet.missing(replicas).is_some() {
            self.lost = true;
        }
    }

    pub(super) fn failed_boot(&mut self, ordinal: u16, text: &str, now: Timestamp, jitter: f64, config: &Config) {
        self.boots.failed = self.boots.failed.saturating_add(1);
        self.last_error = Some(format!("boot of instance {ordinal}: {text}").into());
        self.boots.bar = if self.boots.failed >= config.boot_attempts {
            Bar::Cooldown(now + config.error_cooldown)
        } else {
            Bar::Backoff(now + config.boot_backoff.delay(self.boots.failed, jitter))
        };
    }

    /// An instance that had answered has ended, or has to. The first time it is replaced at once; again without
    /// `stable_after` of health between, it waits longer each time, so that what cannot live does not keep a host busy.
    fn ended(&mut self, slot: &InstanceSlot, text: String, now: Timestamp, jitter: f64, config: &Config) {
        self.lost = true;
        if slot.is_proven(now, config.stable_after) {
            self.boots.ends = self.boots.ends.max(1);
            self.last_error = Some(text.into());
            return;
        }
        self.boots.ends = self.boots.ends.saturating_add(1);
        let again = self.boots.ends - 1;
        if again == 0 {
            self.last_error = Some(text.into());
            return;
        }
        let (ends, stable) = (self.boots.ends, config.stable_after);
        self.last_error = Some(format!("{text} ({ends} ends without {stable:?} of health)").into());
        if !matches!(self.boots.bar, Bar::Cooldown(_)) {
            self.boots.bar = Bar::Backoff(now + config.boot_backoff.delay(again, jitter));
        }
    }

    pub(super) fn configured(&mut self, ordinal: u16, generation: Generation, now: Timestamp) {
        // What the configuration of an older generation said is not known any more; the newer one follows at once.
        let address = self.desired.spec.kind.service_address(ordinal);
        let address = address.filter(|_| generation == self.desired.edition.generation);
        let Some(slot) = self.fleet.slot_mut(ordinal) else { return };
        slot.configured = Some(generation);
        slot.serves_since.get_or_insert(now);
        slot.retry = Retry::default();
        // What serves no REST contract was not told where to serve either.
        if address.is_some() && slot.instance.management.is_some() {
            slot.instance.address = address;
        }
    }

    pub(super) fn answered(&mut self, ordinal: u16, now: Timestamp, config: &Config) {
        let next_probe = self.next_probe(ordinal, now, config);
        if let Some(slot) = self.fleet.slot_mut(ordinal) {
            slot.life = InstanceLife::Alive;
            slot.failed_probes = 0;
            slot.next_probe = next_probe;
        }
    }

    pub(super) fn silent(&mut self, ordinal: u16, text: &str, now: Timestamp, jitter: f64, config: &Config) {
        let retry = now + config.probe_retry.min(self.interval(config));
        let Some(slot) = self.fleet.slot_mut(ordinal) else { return };
        slot.failed_probes = slot.failed_probes.saturating_add(1);
        match &mut slot.life {
            InstanceLife::Rising { since, .. } if now.since(*since) >= config.boot_timeout => {
                self.fleet.condemn(ordinal);
                self.failed_boot(ordinal, &format!("gave no answer in time: {text}"), now, jitter, config);
            }
            InstanceLife::Rising { polls, .. } => {
                *polls = polls.saturating_add(1);
                slot.next_probe = now + plan::poll_delay(*polls);
                // Long enough that a usual start shows no error, short enough that a hopeless one explains itself.
                if *polls == 20 {
                    self.last_error = Some(format!("instance {ordinal} does not answer yet: {text}").into());
                }
            }
            InstanceLife::Alive | InstanceLife::Adopted if slot.failed_probes >= config.restart_probe_failures => {
                let times = slot.failed_probes;
                let condemned = slot.clone();
                self.fleet.condemn(ordinal);
                let text = format!("instance {ordinal} left {times} probes unanswered: {text}");
                self.ended(&condemned, text, now, jitter, config);
            }
            InstanceLife::Alive | InstanceLife::Adopted => slot.next_probe = retry,
        }
    }

    pub(super) fn vanished(&mut self, ordinal: u16, text: &str, now: Timestamp, jitter: f64, config: &Config) {
        match self.fleet.remove(ordinal) {
            Some(slot) if !slot.is_rising() => {
                self.ended(&slot, format!("instance {ordinal} is gone: {text}"), now, jitter, config);
            }
            Some(_) => self.failed_boot(ordinal, &format!("ended before it answered: {text}"), now, jitter, config),
            None => {}
        }
    }

    pub(super) fn wait_outside(&mut self, until: Timestamp) {
        self.fenced_until = until;
        self.fleet.known = false;
        self.looks.at = self.looks.at.max(until);
    }

    pub(super) fn failed(
        &mut self,
        step: LifecycleStep,
        outcome: &StepOutcome,
        now: Timestamp,
        jitter: f64,
        config: &Config,
    ) {
        self.last_error = Some(format!("{step}: {}", outcome.text()).into());
        match step {
            LifecycleStep::Observe => self.looks.fail(now, &config.step_backoff, jitter),
            LifecycleStep::Configure { ordinal, .. } | LifecycleStep::Replug { ordinal } => {
                if let Some(slot) = self.fleet.slot_mut(ordinal) {
                    slot.retry.fail(now, &config.step_backoff, jitter);
                    // It may be dead, which a probe finds out.
                    slot.next_probe = slot.next_probe.min(now + config.probe_retry);
                }
            }
            LifecycleStep::Destroy { .. } | LifecycleStep::Forget => {
                self.fleet.known = false;
                self.removals.fail(now, &config.step_backoff, jitter);
                self.looks.at = self.looks.at.max(self.removals.at);
            }
            // Only an outcome that does not belong to it comes here: nobody knows what happened.
            LifecycleStep::Boot { ordinal, .. } => {
                self.fleet.known = false;
                self.failed_boot(ordinal, outcome.text(), now, jitter, config);
            }
            LifecycleStep::Probe { ordinal } => self.silent(ordinal, outcome.text(), now, jitter, config),
        }
    }
}
