//! Streams between workers and coordinators: messages in order, and what is left of a stream that broke.

use std::collections::VecDeque;

use common::canon::{Canon, Canonical};
use common::{ApplianceId, Token};
use coordinator_core::machine::{self, Answers, Conn, Refusal};
use worker_core::holdings::{Envelope, Handed};

/// A message to a coordinator.
#[derive(Clone, Debug)]
pub(crate) enum Up {
    Hello(Box<machine::Hello>),
    Answers(machine::Envelope, Answers),
    /// The worker's side of the stream has ended.
    End,
}

/// One thing a worker is told of an appliance.
#[derive(Clone, Debug)]
pub(crate) enum Tell {
    Prepare(ApplianceId),
    Grant(ApplianceId, Token, Handed),
    Release(ApplianceId, Token),
}

/// A message to a worker.
#[derive(Clone, Debug)]
pub(crate) enum Down {
    Welcome(Envelope, Vec<(ApplianceId, Token)>),
    Delta(Envelope, u64, u64, Vec<Tell>),
    Confirm(Envelope, Vec<(ApplianceId, Token)>),
    /// The coordinator ends the stream, for a reason or because it leads no more.
    End(Option<Refusal>),
}

/// One stream.
#[derive(Clone, Debug)]
pub(crate) struct Stream {
    pub(crate) conn: Conn,
    /// Which worker opened it.
    pub(crate) worker: usize,
    /// Term of the leader it was opened to.
    pub(crate) term: common::Term,
    /// What the worker was welcomed with; what goes down is signed with it.
    pub(crate) envelope: Option<Envelope>,
    /// The worker is at its end. What is on it otherwise is late.
    pub(crate) read: bool,
    /// The leader is at its end.
    pub(crate) heard: bool,
    pub(crate) up: VecDeque<Up>,
    pub(crate) down: VecDeque<Down>,
}

impl Stream {
    /// Nothing can come of it any more.
    pub(crate) fn is_over(&self) -> bool {
        !self.heard && !self.read && self.down.is_empty()
    }

    /// The leader's side ends: what was on its way to it is lost, and the worker learns it after all that it was told.
    pub(crate) fn close(&mut self, why: Option<Refusal>) {
        self.heard = false;
        self.up.clear();
        if self.read {
            self.down.push_back(Down::End(why));
        }
    }

    /// The worker's side ends, and the leader learns it after all that it was told. With `late` what was on its way to the
    /// worker may arrive even so.
    pub(crate) fn leave(&mut self, late: bool) {
        self.read = false;
        if self.heard {
            self.up.push_back(Up::End);
        }
        if !late {
            self.down.clear();
        }
        // Whoever left learns nothing of the end.
        self.down.retain(|down| !matches!(down, Down::End(_)));
    }
}

impl Canonical for Stream {
    fn canon(&self, to: &mut Canon) {
        let Self { conn, worker, term, envelope, read, heard, up, down } = self;
        to.conn(*conn);
        to.put(&(worker, term, envelope));
        to.put(&(read, heard));
        to.put(up);
        to.put(down);
    }
}

impl Canonical for Up {
    fn canon(&self, to: &mut Canon) {
        match self {
            Self::Hello(hello) => to.put(&(0_u32, hello)),
            Self::Answers(from, answers) => {
                to.plain(1);
                put_answers(from, answers, to);
            }
            Self::End => to.plain(2),
        }
    }
}

pub(crate) fn put_answers(from: &machine::Envelope, answers: &Answers, to: &mut Canon) {
    to.put(&(from.term, from.incarnation));
    to.stream(Some(from.incarnation), from.stream);
    let Answers { applied, granted, declined, released, gone, begun, ended } = answers;
    to.put(&(applied, granted, declined));
    to.put(&(released, gone));
    to.put(&(begun, ended));
}

impl Canonical for Tell {
    fn canon(&self, to: &mut Canon) {
        match self {
            Self::Prepare(id) => to.put(&(0_u32, id)),
            Self::Grant(id, token, handed) => to.put(&((1_u32, id), token, handed)),
            Self::Release(id, token) => to.put(&(2_u32, id, token)),
        }
    }
}

impl Canonical for Down {
    fn canon(&self, to: &mut Canon) {
        match self {
            Self::Welcome(from, keep) => to.put(&(0_u32, from, keep)),
            Self::Delta(from, base, target, tells) => {
                to.put(&(1_u32, from));
                to.put(&(base, target, tells));
            }
            Self::Confirm(from, list) => to.put(&(2_u32, from, list)),
            // What a worker makes of a reason is one of two things.
            Self::End(why) => to.put(&(3_u32, ends_life(why.as_ref()))),
        }
    }
}

/// Whether a worker that is told so begins another life.
pub(crate) fn ends_life(why: Option<&Refusal>) -> bool {
    matches!(why, Some(Refusal::IncarnationOver | Refusal::NotMember))
}
