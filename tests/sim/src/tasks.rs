//! What a worker does with what it holds, after `worker::runner`: one step at a time for each appliance, each a call
//! through the gate that is answered, or given up after a while; and giving up, once the running step has ended.

use std::time::Duration;

use common::driver::DriverName;
use common::mutant::{self, Mutant};
use common::session::{Carryover, GrantRef, StatusReport};
use common::status::{Phase, Progress, Status};
use common::{ApplianceId, Edition, Mode, Timestamp, Token};
use worker_core::gate::{self, Shut};

use super::backend::BackendCall;
use super::net::SimDesired;
use super::worker::WorkerTimer;
use super::world::{SimEvent, SimWorld};

/// How a call was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CallReply {
    Done,
    /// Refused: a newer token is known there.
    Newer(Token),
}

/// One appliance that is worked on.
#[derive(Debug)]
pub(super) struct SimTask {
    pub(super) token: Token,
    pub(super) edition: Edition,
    driver: DriverName,
    deleting: bool,
    destroyed: bool,
    pub(super) releasing: bool,
    progress: Progress,
    /// The call under way.
    running: Option<(u64, bool)>,
    /// Until when calls may still take effect that nobody has an answer to, by this host's clock.
    fence_delay_until: Timestamp,
    /// Whether hands are off, and whether it is yet to be said that nothing runs.
    pub(super) mode: Mode,
    pub(super) owes_quiet: bool,
}

impl SimTask {
    /// Whether it is to be said now that hands are off.
    pub(super) const fn is_quiet(&self) -> bool {
        self.owes_quiet && self.mode.hands_off && self.running.is_none()
    }

    pub(super) const fn fence_delay_until(&self) -> Timestamp {
        self.fence_delay_until
    }
}

impl SimWorld {
    pub(super) fn take_grant(&mut self, place: usize, grant: GrantRef, desired: &SimDesired, carryover: Carryover) {
        let GrantRef { appliance: id, token } = grant;
        self.check_taken(place, id, token);
        if self.places[place].profile.site(&desired.driver).is_some() {
            self.journals.entry(id).or_default().is_bound = true;
        }
        let now = self.places[place].clock.local(self.now);
        let Some(process) = self.process(place) else { return };
        let task = SimTask {
            token,
            edition: desired.edition,
            driver: desired.driver.clone(),
            deleting: desired.deleting,
            destroyed: false,
            releasing: false,
            progress: carryover.progress,
            running: None,
            fence_delay_until: gate::fence_delay_end(now, carryover.fence_delay),
            mode: Mode::default(),
            owes_quiet: false,
        };
        process.gate.admit(now, id, token, carryover.fence_delay);
        if process.tasks.insert(id, task).is_some() {
            self.fail(format!("task: w{} takes {id} while it still has a task for it", place + 1));
        }
        self.check_held(place, id);
        let delay = self.rng.millis(0, 300);
        self.timer(place, delay, WorkerTimer::Act(id, token));
    }

    pub(super) fn update_task(&mut self, place: usize, grant: GrantRef, desired: &SimDesired) {
        let GrantRef { appliance: id, token } = grant;
        let Some(task) = self.task(place, id, token) else { return };
        task.edition = desired.edition;
        if desired.deleting && !std::mem::replace(&mut task.deleting, true) {
            let delay = self.rng.millis(1, 300);
            self.timer(place, delay, WorkerTimer::Act(id, token));
        }
    }

    pub(super) fn begin_release(&mut self, place: usize, grant: GrantRef) {
        let GrantRef { appliance: id, token } = grant;
        let Some(task) = self.process(place).and_then(|p| p.tasks.get_mut(&id)).filter(|t| t.token == token) else {
            return self.fail(format!("task: w{} has none for {id} under {token}", place + 1));
        };
        let again = std::mem::replace(&mut task.releasing, true);
        let running = task.running.is_some();
        if mutant::is(Mutant::EarlyRelease) {
            self.say_released(place, id, token);
        }
        if !running && !again {
            self.release_soon(place, id, token);
        }
    }

    fn release_soon(&mut self, place: usize, id: ApplianceId, token: Token) {
        let takes = if self.rng.chance(10) { self.rng.millis(200, 3_000) } else { self.rng.millis(0, 100) };
        self.timer(place, takes, WorkerTimer::ReleaseDone(id, token));
    }

    fn say_released(&mut self, place: usize, id: ApplianceId, token: Token) {
        let now = self.places[place].clock.local(self.now);
        let Some(process) = self.process(place) else { return };
        let Some(task) = process.tasks.get(&id) else { return };
        let fence_delay = gate::fence_delay_left(now, task.fence_delay_until);
        let carryover = Carryover { progress: task.progress.clone(), fence_delay };
        process.conversation.released(GrantRef::new(id, token), carryover);
    }

    pub(super) fn release_done(&mut self, place: usize, id: ApplianceId, token: Token) {
        if self.task(place, id, token).is_none() {
            return;
        }
        self.say_released(place, id, token);
        if let Some(process) = self.process(place) {
            process.gate.dismiss(id, token);
            process.tasks.remove(&id);
        }
        if self.faulty() && self.rng.chance(30) {
            // Something of it runs on and has not noticed: the gate has to hold it back.
            let delay = self.rng.millis(1, 1_500);
            self.timer(place, delay, WorkerTimer::Straggles(id, token));
        }
    }

    fn task(&mut self, place: usize, id: ApplianceId, token: Token) -> Option<&mut SimTask> {
        self.process(place)?.tasks.get_mut(&id).filter(|task| task.token == token)
    }

    fn fence_delay_of(&self, driver: &DriverName) -> Option<Duration> {
        self.settings.fence_delay.filter(|_| *driver == DriverName::simulated())
    }

    /// Begins a step, if the gate lets it.
    pub(super) fn act(&mut self, place: usize, id: ApplianceId, token: Token) {
        let now = self.places[place].clock.local(self.now);
        let Some(task) = self.task(place, id, token) else { return };
        if task.running.is_some() || task.destroyed || task.releasing {
            return;
        }
        let (driver, destroys, fence_delay_until) = (task.driver.clone(), task.deleting, task.fence_delay_until);
        let fence_delay = self.fence_delay_of(&driver);
        let Some(process) = self.process(place) else { return };
        let passed = match fence_delay {
            Some(_) if now < fence_delay_until => Err(Shut::FenceDelay(fence_delay_until.since(now))),
            Some(_) => process.gate.pass_unfenced(now, id, token),
            None => process.gate.pass(now, id, token),
        };
        if let Err(shut) = passed {
            let delay = match shut {
                Shut::FenceDelay(left) => (left.as_nanos() as u64).min(2_000_000_000) + self.rng.micros(10, 2_000),
                Shut::Fenced | Shut::NotOwned => self.rng.millis(20, 400),
                Shut::HandsOff => self.rng.millis(50, 1_500),
            };
            return self.timer(place, delay, WorkerTimer::Act(id, token));
        }
        let process = process.number;
        self.calls += 1;
        let number = self.calls;
        let call = BackendCall { number, place, process, id, token, destroys, fence_delay };
        if let Some(task) = self.task(place, id, token) {
            task.running = Some((number, destroys));
        }
        self.pass(call);
        let patience = match fence_delay {
            Some(fence_delay) => fence_delay.mul_f64(0.2 + 0.01 * self.rng.below(60) as f64),
            None => self.rng.duration(300, 3_000),
        };
        self.local_timer(place, patience, WorkerTimer::CallDue(id, token, number));
    }

    /// The gate has let a call pass, which leaves a little later.
    fn pass(&mut self, call: BackendCall) {
        self.check_passed(call.place, call.id, call.token);
        self.check_hands_off(call.place, call.id, call.token);
        if call.fence_delay.is_some() {
            // Whoever is paused here for longer than the margin breaks what was assumed.
            let margin = self.places[call.place].margin.as_nanos() as u64;
            let delay = self.rng.below(margin * 9 / 10);
            return self.after(delay, SimEvent::Starts(Box::new(call)));
        }
        let dozes = self.faulty() && self.rng.chance(3);
        let delay = if dozes { self.rng.millis(5, 2_500) } else { self.rng.micros(10, 2_000) };
        self.timer(call.place, delay, WorkerTimer::Send(Box::new(call)));
    }

    /// A step that was asked to stop tries once more.
    pub(super) fn straggles(&mut self, place: usize, id: ApplianceId, token: Token) {
        let now = self.places[place].clock.local(self.now);
        let Some(process) = self.process(place).filter(|p| !p.gate.is_held(id, token)) else { return };
        if process.gate.pass(now, id, token).is_ok() {
            let process = process.number;
            self.calls += 1;
            let number = self.calls;
            self.pass(BackendCall { number, place, process, id, token, destroys: false, fence_delay: None });
        }
    }

    /// A call was answered.
    pub(super) fn called(&mut self, place: usize, of: (ApplianceId, Token, u64), how: CallReply) {
        let (id, token, number) = of;
        let Some(task) = self.task(place, id, token) else { return };
        let Some((_, destroys)) = task.running.take_if(|(running, _)| *running == number) else { return };
        match how {
            CallReply::Done => {
                task.destroyed = destroys;
                if task.progress.attempts.is_empty() {
                    task.progress.attempts.push(1);
                }
            }
            CallReply::Newer(newer) => {
                let now = self.places[place].clock.local(self.now);
                let Some(process) = self.process(place) else { return };
                let actions = process.conversation.refused_token(now, GrantRef::new(id, token), newer);
                actions.into_iter().for_each(|action| self.carry_out_message(place, action));
            }
        }
        self.step_ended(place, id, token);
    }

    /// A call was not answered in time.
    pub(super) fn call_due(&mut self, place: usize, id: ApplianceId, token: Token, number: u64) {
        let now = self.places[place].clock.local(self.now);
        let Some(task) = self.task(place, id, token) else { return };
        if task.running.take_if(|(running, _)| *running == number).is_none() {
            return;
        }
        let driver = task.driver.clone();
        if let Some(fence_delay) = self.fence_delay_of(&driver)
            && let Some(task) = self.task(place, id, token)
        {
            task.fence_delay_until = task.fence_delay_until.max(gate::fence_delay_end(now, fence_delay));
        }
        self.step_ended(place, id, token);
    }

    /// The owner of an appliance says how it is: mostly well.
    fn tell_status(&mut self, place: usize, id: ApplianceId, token: Token) {
        let well = !self.faulty() || self.rng.chance(85);
        let Some(edition) = self.task(place, id, token).map(|task| task.edition) else { return };
        let phase = if well { Phase::Configured } else { Phase::Booting };
        let status = Status { phase, observed_generation: edition.generation, ..Status::default() };
        let report = StatusReport { appliance: id, token, status, checked: 0, adopted: false, would_have: Vec::new() };
        if let Some(process) = self.process(place) {
            process.conversation.report(report);
        }
    }

    /// The same of everything that a worker has, after it was welcomed.
    pub(super) fn tell_statuses(&mut self, place: usize) {
        let Some(process) = self.process(place) else { return };
        let all: Vec<(ApplianceId, Token)> = process.tasks.iter().map(|(id, task)| (*id, task.token)).collect();
        all.into_iter().for_each(|(id, token)| self.tell_status(place, id, token));
    }

    fn step_ended(&mut self, place: usize, id: ApplianceId, token: Token) {
        self.fall_quiet(place, id, token);
        // Not after each: what was said stands.
        if !self.faulty() || self.rng.chance(40) {
            self.tell_status(place, id, token);
        }
        let Some(task) = self.task(place, id, token) else { return };
        if task.releasing {
            return self.release_soon(place, id, token);
        }
        if task.destroyed {
            let delay = self.rng.millis(0, 100);
            return self.timer(place, delay, WorkerTimer::DestroyDone(id, token));
        }
        let (deleting, quiet) = (task.deleting, !self.faulty());
        let delay = match (deleting, quiet) {
            (true, _) => self.rng.millis(1, 100),
            (false, true) => self.rng.millis(200, 2_000),
            (false, false) => self.rng.millis(20, 1_000),
        };
        self.timer(place, delay, WorkerTimer::Act(id, token));
    }

    pub(super) fn destroy_done(&mut self, place: usize, id: ApplianceId, token: Token) {
        if self.task(place, id, token).is_none_or(|task| !task.destroyed || task.releasing) {
            return;
        }
        let Some(process) = self.process(place) else { return };
        process.gate.dismiss(id, token);
        process.tasks.remove(&id);
        process.conversation.removed(GrantRef::new(id, token));
    }
}
