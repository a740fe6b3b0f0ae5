//! One stream to a coordinator, from `Hello` to its end.
//!
//! Embedded, the heartbeats ride on it, and `Welcome` and their answers extend the lease. A life that keeps itself alive
//! ([`Life::beats_on_stream`](coordination::Life::beats_on_stream)) is extended by nothing that is said here.

use std::sync::Arc;
use std::time::Duration;

use common::Timestamp;
use common::session::{Desired, GrantRef, ToCoordinator, ToWorker};
use proto::convert::up;
use runtime::clock;
use tokio::time::MissedTickBehavior;
use tracing::{debug, info, warn};

use super::beat::{self, Beat};
use super::config::OnStop;
use super::interrupts::{Interrupt, Interrupts};
use super::{Ended, Queued, Session, link, take_command};
use crate::runner::Command;

/// How often the leader is told what is held, for it to compare, when there is nothing else to tell. It bounds for how long
/// a grant that one side lost stays unnoticed, and costs a message of 50 bytes.
const AUDIT: Duration = Duration::from_secs(5);

/// How long the coordinator may take to hear a goodbye out.
const GOODBYE: Duration = Duration::from_secs(1);

impl Session {
    /// Talks on one stream until it ends.
    pub(super) async fn converse(&mut self, mut link: link::Link, interrupts: &mut Interrupts<'_>) -> Ended {
        let (envelope, hello) = self.assignments.hello(&self.name, &self.profile);
        self.outgoing.begin_stream();
        self.commands.retain(|queued| matches!(queued, Queued::Command(_)));
        let sent = clock::now();
        info!(worker = %self.name, stream = %envelope.stream, owned = hello.owned.len(), "sending hello");
        let parts = up::hello_to_wire(&envelope, hello);
        let said = tokio::select! {
            interrupt = interrupts.next() => return self.on_interrupt(interrupt),
            said = link.out.send(parts, self.config.connect_timeout) => said,
            () = self.pump() => return Ended::Stopping,
        };
        if let Err(problem) = said {
            warn!("hello could not be said: {problem}");
            return Ended::Again(Duration::ZERO);
        }
        let limit = self.config.connect_timeout;
        match tokio::time::timeout(limit, self.await_welcome(&mut link, interrupts)).await {
            Ok(Ok(lease)) => self.exchange(link, interrupts, sent, lease).await,
            Ok(Err(ended)) => ended,
            Err(_) => {
                warn!("the coordinator did not answer hello in time");
                Ended::Again(Duration::ZERO)
            }
        }
    }

    /// The lease that the leader grants; it means something only if heartbeats ride on the stream.
    async fn await_welcome(
        &mut self,
        link: &mut link::Link,
        interrupts: &mut Interrupts<'_>,
    ) -> Result<Duration, Ended> {
        let mut keep = Vec::new();
        loop {
            let message = tokio::select! {
                interrupt = interrupts.next() => return Err(self.on_interrupt(interrupt)),
                message = link.inlet.receive() => message,
                () = self.pump() => return Err(Ended::Stopping),
            };
            let received = message.map_err(|problem| {
                debug!("stream ended before the welcome: {problem}");
                Ended::Again(Duration::ZERO)
            })?;
            let from = received.envelope;
            match received.message {
                ToWorker::Welcome(part) => {
                    keep.extend(part.keep);
                    if received.more {
                        continue;
                    }
                    match self.assignments.welcome::<Arc<Desired>>(from, &keep) {
                        Ok(effects) => {
                            info!(term = %from.term, incarnation = ?from.incarnation, kept = keep.len(), "welcomed");
                            self.terms.send_replace(from.term);
                            self.apply(effects, "");
                            // Nobody confirms statuses: those on a stream that broke, and those a leader had not stored
                            // when it died, are lost, and an appliance that is well has no news for a long time.
                            self.command(Command::Restate);
                            return Ok(part.lease.min(self.profile.lease));
                        }
                        Err(refused) => {
                            warn!(term = %from.term, incarnation = ?from.incarnation, "welcome dropped: {refused}");
                            return Err(Ended::Again(Duration::from_millis(500)));
                        }
                    }
                }
                ToWorker::Refused(refused) => return Err(self.on_refused(&refused)),
                // Nothing applies between `Hello` and `Welcome`.
                _ => {}
            }
        }
    }

    async fn exchange(
        &mut self,
        mut link: link::Link,
        interrupts: &mut Interrupts<'_>,
        sent: Timestamp,
        lease: Duration,
    ) -> Ended {
        let mut beat = self.beats_on_stream.then(|| Beat::new(lease));
        if beat.is_some() {
            self.gate.extend(sent + lease);
        }
        interrupts.departure().accompanied();
        if interrupts.departure().is_draining() {
            self.begin_drain();
        }
        let mut audit = tokio::time::interval(AUDIT);
        audit.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let waiting = self.outgoing.is_waiting();
            if self.draining && !waiting && (self.drained || self.assignments.is_settled()) {
                info!(held = self.assignments.len(), "given back what anybody takes");
                self.say_goodbye(link).await;
                return Ended::Stopping;
            }
            tokio::select! {
                biased;
                interrupt = interrupts.next() => match interrupt {
                    Interrupt::Drain => self.begin_drain(),
                    interrupt => {
                        let ended = self.on_interrupt(interrupt);
                        if matches!(ended, Ended::Stopping) {
                            self.say_goodbye(link).await;
                        }
                        return ended;
                    }
                },
                taken = take_command(self.runner.as_ref(), &self.commands) => {
                    if !self.hand_over(taken) {
                        return Ended::Stopping;
                    }
                }
                () = beat::due(beat.as_mut()) => {
                    if let Some(ended) = self.say_beat(&link.out, beat.as_mut(), interrupts, lease).await {
                        return ended;
                    }
                }
                _ = audit.tick() => self.outgoing.digest_due(),
                message = link.inlet.receive() => match message {
                    Ok(received) => {
                        if let Some(ended) = self.on_message(received, beat.as_mut()) {
                            return ended;
                        }
                    }
                    Err(problem) => {
                        info!("session ended: {problem}");
                        return Ended::Again(Duration::ZERO);
                    }
                },
                event = self.events.recv() => match event {
                    Some(event) => {
                        if let Some(ended) = self.on_event(event) {
                            return ended;
                        }
                    }
                    None => return Ended::Stopping,
                },
                room = link.out.room(), if waiting => match room {
                    Ok(room) => {
                        let owned = self.assignments.digest();
                        if let (Some(envelope), Some(next)) = (self.assignments.envelope(), self.outgoing.next(owned)) {
                            room.send(up::up_to_wire(&envelope, next));
                        }
                    }
                    Err(_) => return Ended::Again(Duration::ZERO),
                },
            }
        }
    }

    /// Sends a heartbeat that is due. `Some` when the stream is of no use any more.
    async fn say_beat(
        &self,
        out: &link::Outlet,
        beat: Option<&mut Beat>,
        interrupts: &mut Interrupts<'_>,
        lease: Duration,
    ) -> Option<Ended> {
        let again = Some(Ended::Again(Duration::ZERO));
        let (Some(envelope), Some(beat)) = (self.assignments.envelope(), beat) else { return again };
        let Some(number) = beat.next() else {
            warn!("heartbeats are not answered; opening another stream");
            return again;
        };
        let message = up::up_to_wire(&envelope, ToCoordinator::Beat(number));
        let said = tokio::select! {
            interrupt = interrupts.next() => {
                // Seen again by the caller, where a goodbye is said.
                interrupts.put_back(interrupt);
                return None;
            }
            said = out.send([message], lease) => said,
        };
        said.err().and_then(|problem| {
            warn!("a heartbeat could not be sent; opening another stream: {problem}");
            again
        })
    }

    /// Tells the leader that this worker is about to stop; handing back, it gives up what it holds by itself.
    fn begin_drain(&mut self) {
        let hand_back = self.config.on_stop == OnStop::HandBack;
        info!(worker = %self.name, held = self.assignments.len(), hand_back, "draining");
        self.draining = true;
        self.drained = false;
        self.outgoing.drain(hand_back);
        if hand_back {
            for GrantRef { appliance, token } in self.assignments.give_back() {
                self.command(Command::Release { appliance, token });
            }
        }
    }

    async fn say_goodbye(&mut self, link: link::Link) {
        self.end_work().await;
        let Some(envelope) = self.assignments.envelope() else { return };
        let leave = up::up_to_wire(&envelope, ToCoordinator::Leave);
        if tokio::time::timeout(GOODBYE, link.finish(leave, GOODBYE)).await.is_err() {
            debug!("the coordinator did not end the stream in time; it will wait for the lease to end");
        }
    }
}
