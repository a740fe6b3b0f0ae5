//! How a worker ends: its running steps, its stream, its membership, in this order. Nothing turns it back.

use std::time::Duration;

use super::{Control, ControlAction, ControlEvent, ControlPhase, Notice, Outcome};
use crate::session::departure::LeaveReason;

/// How long running steps may take to end when a worker stops.
pub(super) const END_WORK: Duration = Duration::from_secs(2);

/// How long the coordinator may take to read a `Leave` and end the stream.
pub(super) const SAY_LEAVE: Duration = Duration::from_secs(1);

/// How long the coordination service may take to remove a member. Nodes that are left then go when the session expires.
pub(super) const LEAVE_GROUP: Duration = Duration::from_secs(2);

impl Control {
    pub(super) fn leave(&mut self, why: LeaveReason) {
        self.note(Notice::Leaving(why));
        let say_leave = self.is_streaming() && why != LeaveReason::RunnerEnded;
        if !say_leave {
            self.disconnect();
        }
        self.end_work(say_leave, Outcome::Left);
    }

    pub(super) fn end_work(&mut self, say_leave: bool, outcome: Outcome) {
        self.phase = ControlPhase::EndingWork { say_leave, outcome };
        self.act(ControlAction::EndWork(END_WORK));
    }

    pub(super) fn continue_ending(&mut self, event: &ControlEvent) {
        match (&self.phase, event) {
            (ControlPhase::EndingWork { say_leave, outcome }, ControlEvent::WorkEnded { in_time }) => {
                let (say_leave, outcome) = (*say_leave, *outcome);
                if !in_time {
                    self.note(Notice::WorkGoesOn);
                }
                if say_leave {
                    self.phase = ControlPhase::SayingLeave;
                    self.act(ControlAction::SayLeave(SAY_LEAVE));
                } else {
                    self.leave_group(outcome);
                }
            }
            (ControlPhase::SayingLeave, ControlEvent::LeaveSaid) => self.leave_group(Outcome::Left),
            (ControlPhase::LeavingGroup { outcome }, ControlEvent::LeftGroup { in_time }) => {
                let outcome = *outcome;
                if !in_time {
                    self.note(Notice::GroupNotLeft);
                }
                self.end(outcome);
            }
            _ => {}
        }
    }

    fn leave_group(&mut self, outcome: Outcome) {
        match self.life.take() {
            Some(_) => {
                self.phase = ControlPhase::LeavingGroup { outcome };
                self.act(ControlAction::LeaveGroup(LEAVE_GROUP));
            }
            None => self.end(outcome),
        }
    }

    fn end(&mut self, outcome: Outcome) {
        self.phase = ControlPhase::Ended;
        self.act(ControlAction::End(outcome));
    }
}
