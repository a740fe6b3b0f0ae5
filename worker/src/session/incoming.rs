//! Carries out what [`Conversation`](worker_core::session::Conversation) makes of messages of the leader, and hands it the
//! events of the runner.

use std::sync::Arc;

use common::ApplianceId;
use common::driver::DriverOffers;
use common::session::{AnnouncedStep, Carryover, Desired, GrantRef, Refused, RefusedReason};
use proto::convert::down::FromCoordinator;
use runtime::clock;
use runtime::telemetry::{self, RebalanceTrace, SpanName};
use tracing::{debug, error, field, info, info_span, warn};
use worker_core::session::{ConversationAction, ConversationNotice, Incoming};

use super::{Queued, Session};
use crate::metrics;
use crate::runner::{RunnerCommand, RunnerEvent};

impl Session {
    /// Takes in a message of the leader.
    pub(super) fn on_message(&mut self, received: FromCoordinator) {
        let FromCoordinator {
            envelope: from,
            message,
            more,
            unreadable,
            traceparent,
            causes,
            telemetry: order,
            inquiry,
            keep_hand_offs,
            runs_stored,
        } = received;
        if let Some(order) = order {
            telemetry::obey(order);
        }
        telemetry::keep_hand_offs(&keep_hand_offs);
        if let Some(batch) = runs_stored.filter(|_| self.conversation.envelope() == Some(from)) {
            self.runs.stored(batch);
        }
        if let Some(inquiry) = inquiry {
            // One of another stream, or of before the welcome, is nobody's any more.
            if self.conversation.envelope() == Some(from) {
                self.inquiries.begin(&self.setup.name, &self.gate, from, inquiry);
            }
            return;
        }
        self.causes = causes.into_iter().collect();
        let unreadable = unreadable.into_iter().map(|entry| (entry.grant, entry.problem)).collect();
        let draining = self.control.is_draining();
        let offered = &self.profile.drivers;
        let refuse = |desired: &Arc<Desired>| unwanted(offered, desired);
        let actions = self.conversation.receive(Incoming { from, message, more, unreadable }, draining, refuse);
        self.carry_out_all(actions, &traceparent);
        metrics::hold(self.owned());
    }

    fn carry_out_all(&mut self, actions: Vec<ConversationAction<Arc<Desired>>>, traceparent: &str) {
        for action in actions {
            self.carry_out_message(action, traceparent);
        }
    }

    fn carry_out_message(&mut self, action: ConversationAction<Arc<Desired>>, traceparent: &str) {
        match action {
            ConversationAction::Welcomed(from, kept) => {
                info!(term = %from.term, incarnation = ?from.incarnation, kept, "welcomed");
                self.setup.terms.send_replace(from.term);
                metrics::welcomed(true);
                self.failure = None;
            }
            ConversationAction::Take { grant: GrantRef { appliance, token }, desired, carryover, suspect, mode } => {
                let parent = hand_off(traceparent, appliance);
                let adopting = parent.as_deref().map(|parent| {
                    let span = info_span!(
                        "adopt", %appliance, worker = %self.setup.name, %token, outcome = field::Empty,
                        otel.status_code = field::Empty
                    );
                    telemetry::set_parent(&span, parent);
                    span
                });
                self.gate.admit(appliance, token, carryover.fence_delay);
                // Nobody asks for this grant before the runner has it.
                self.gate.set_hands_off(appliance, token, mode.hands_off);
                let cause = self.causes.remove(&appliance).map(Box::new);
                self.command(RunnerCommand::Take {
                    appliance,
                    token,
                    desired,
                    progress: carryover.progress,
                    fence_delay: carryover.fence_delay,
                    suspect,
                    mode,
                    traceparent: parent.unwrap_or_default(),
                    adopting,
                    cause,
                });
                metrics::grant("taken");
                debug!(%appliance, %token, "taken");
            }
            ConversationAction::Mode(GrantRef { appliance, token }, mode) => {
                // The gate first: what the runner says follows from that.
                self.gate.set_hands_off(appliance, token, mode.hands_off);
                debug!(%appliance, %token, edition = %mode.edition, hands_off = mode.hands_off, "mode");
                self.command(RunnerCommand::Mode { appliance, token, mode });
            }
            ConversationAction::Fence(GrantRef { appliance, token }) => {
                warn!(%appliance, %token, "held, but not kept by the leader: the gate is shut for it");
                metrics::grant("fenced");
                self.gate.dismiss(appliance, token);
                self.command(RunnerCommand::Release { appliance, token });
            }
            ConversationAction::Release(GrantRef { appliance, token }) => {
                if let Some(parent) = hand_off(traceparent, appliance) {
                    let span = info_span!("release", %appliance, worker = %self.setup.name, %token);
                    telemetry::set_parent(&span, &parent);
                    self.runner.releasing.insert((appliance, token), span);
                }
                self.command(RunnerCommand::Release { appliance, token });
            }
            ConversationAction::Update(GrantRef { appliance, token }, desired) => {
                let cause = self.causes.remove(&appliance).map(Box::new);
                self.command(RunnerCommand::Update { appliance, token, desired, cause });
            }
            ConversationAction::Check(GrantRef { appliance, token }, number) => {
                self.command(RunnerCommand::Check { appliance, token, number });
            }
            ConversationAction::Restate => self.command(RunnerCommand::Restate),
            ConversationAction::Applied(version) => self.runner.commands.push_back(Queued::Applied(version)),
            ConversationAction::Confirmed(begin) => {
                for AnnouncedStep { appliance, token, number } in begin {
                    self.command(RunnerCommand::Clear { appliance, token, number });
                }
            }
            ConversationAction::Control(event) => self.step(event),
            ConversationAction::Note(notice) => self.log_message(&notice),
        }
    }

    fn log_message(&mut self, notice: &ConversationNotice) {
        match notice {
            ConversationNotice::StaleWelcome(from) => {
                metrics::stale("welcome");
                let problem = "it answers another hello, or comes from an older leader";
                warn!(term = %from.term, incarnation = ?from.incarnation, "welcome dropped: {problem}");
            }
            ConversationNotice::StaleDelta => {
                metrics::stale("delta");
                debug!("a delta of another conversation was dropped");
            }
            ConversationNotice::WrongBase(refused) => {
                metrics::stale("base");
                warn!("{refused}; sending hello again");
            }
            ConversationNotice::Refused(refused) => self.log_refused(refused),
            ConversationNotice::EntrySkipped(GrantRef { appliance, token }, problem) => {
                warn!(%appliance, %token, "skipping an entry of a delta that does not parse: {problem}");
            }
            ConversationNotice::TermMet { grant: GrantRef { appliance, token }, newer, at_once: true } => {
                warn!(
                    %appliance, %token, %newer,
                    "refused for a token of a later term than the leader's; saying hello again"
                );
            }
            ConversationNotice::TermMet { grant: GrantRef { appliance, token }, newer, at_once: false } => {
                debug!(%appliance, %token, %newer, "refused for a token of a later term; the next hello says so");
            }
            ConversationNotice::ImplausibleToken { grant: GrantRef { appliance, token }, newer } => {
                warn!(
                    %appliance, %token, %newer,
                    "refused for a token that no leader can have given; it is not followed, look at this appliance"
                );
            }
            ConversationNotice::GivenUp(GrantRef { appliance, token }, newer) => {
                info!(%appliance, %token, %newer, "given up: only a newer grant can be acted on");
            }
        }
    }

    fn log_refused(&mut self, refused: &Refused) {
        match refused.reason {
            // Logged with the end of the life.
            RefusedReason::IncarnationOver | RefusedReason::NotProven => {}
            RefusedReason::NameTaken => {
                // Said once until it is over, one way or the other.
                let taken = coordination::Error::NameTaken {
                    name: self.setup.name.to_string(),
                    by: "another worker of this name has a lease, and renews it".to_owned(),
                };
                if !matches!(self.failure, Some(coordination::Error::NameTaken { .. })) {
                    warn!(worker = %self.setup.name, "another worker of this name may still act: {}", refused.detail);
                }
                self.failure = Some(taken);
            }
            RefusedReason::AssignmentsDiffer => {
                let owned = self.owned();
                error!(owned, "the leader's table differs from what this worker owns: {}", refused.detail);
            }
            RefusedReason::Malformed => {
                error!("the coordinator cannot read a message of this worker: {}", refused.detail);
            }
            RefusedReason::NotLeading
            | RefusedReason::Superseded
            | RefusedReason::Stopping
            | RefusedReason::Unknown => {
                info!(reason = ?refused.reason, "the coordinator ended the session: {}", refused.detail);
            }
        }
    }

    /// Takes in an event of the runner.
    pub(super) fn on_event(&mut self, event: RunnerEvent) {
        match event {
            RunnerEvent::Refused { appliance, token, newer } => {
                let grant = GrantRef::new(appliance, token);
                let actions = self.conversation.refused_token(clock::now(), grant, newer);
                self.carry_out_all(actions, "");
            }
            RunnerEvent::Released { appliance, token, progress, fence_delay } => {
                // The gate first: once the leader may hear of it, nothing here must be able to act.
                self.gate.dismiss(appliance, token);
                // With `taken` of the next owner, this is how long nobody looked after it.
                metrics::grant("released");
                debug!(%appliance, %token, "released");
                self.runner.releasing.remove(&(appliance, token));
                let carryover = Carryover { progress, fence_delay };
                self.conversation.released(GrantRef::new(appliance, token), carryover);
            }
            RunnerEvent::Gone { appliance, token } => {
                metrics::grant("removed");
                self.gate.dismiss(appliance, token);
                self.runner.releasing.remove(&(appliance, token));
                self.conversation.removed(GrantRef::new(appliance, token));
            }
            RunnerEvent::Begins { appliance, token, number } => {
                self.conversation.step_begins(AnnouncedStep { appliance, token, number });
            }
            RunnerEvent::Done { appliance, token, number } => {
                self.conversation.step_ended(AnnouncedStep { appliance, token, number });
            }
            RunnerEvent::Quiet { appliance, token, edition, fence_delay } => {
                self.conversation.quiet(GrantRef::new(appliance, token), edition, fence_delay);
            }
            RunnerEvent::Status(report) => self.conversation.report(report),
            RunnerEvent::Run(run) => self.runs.push(run),
        }
    }
}

/// The `traceparent` of the hand-off that a delta with this `traceparent` has an entry of; none when it is of no rebalance.
fn hand_off(traceparent: &str, appliance: ApplianceId) -> Option<String> {
    let trace = RebalanceTrace::of_traceparent(traceparent)?;
    Some(trace.traceparent(SpanName::HandOff(appliance)))
}

/// Why an appliance cannot be taken by a worker with these drivers, if so.
fn unwanted(offered: &DriverOffers, desired: &Desired) -> Option<String> {
    let (driver, kind) = (&desired.driver, desired.spec.kind.kind_name());
    match offered.get(driver) {
        None => Some(format!("driver {driver} is not offered here")),
        // A leader of the version before asks no worker for its kinds.
        Some(offered) if !offered.kinds.contains(&kind) => Some(format!("driver {driver} does not run {kind} here")),
        Some(_) => None,
    }
}
