//! What waits to be told to the leader, in bounded messages: answers first, then the newest status of each appliance.

use std::collections::VecDeque;

use common::status::Status;
use common::{ApplianceId, Token, WorkerId};
use proto::convert::{Envelope, MAX_ENTRIES_PER_MESSAGE, Profile, up};
use proto::worker::v1::WorkerMessage;
use worker_core::holdings::{Handed, Hello};
use worker_core::report::Entry;

/// Statuses in one message. Each carries its instances and perhaps a long error, so fewer than of small entries.
const REPORTS_PER_MESSAGE: usize = 200;

#[derive(Debug)]
enum Answer {
    Granted(ApplianceId, Token),
    Declined(up::Declined),
    Released(up::Release),
    Gone(ApplianceId, Token),
}

/// What waits to be told.
#[derive(Debug, Default)]
pub(super) struct Outgoing {
    /// One per grant that came, ended or was refused, so bounded by what is held.
    answers: VecDeque<Answer>,
    /// Version after the newest delta whose commands the runner took.
    version: u64,
    /// `version` was not told yet.
    applied: bool,
    reports: super::Waiting,
}

impl Outgoing {
    pub(super) fn granted(&mut self, appliance: ApplianceId, token: Token) {
        self.answers.push_back(Answer::Granted(appliance, token));
    }

    pub(super) fn decline(&mut self, appliance: ApplianceId, token: Token, reason: String) {
        self.answers.push_back(Answer::Declined(up::Declined { appliance, token, reason }));
    }

    pub(super) fn released(&mut self, appliance: ApplianceId, token: Token, handed: Handed) {
        self.answers.push_back(Answer::Released(release(appliance, token, handed)));
    }

    pub(super) fn gone(&mut self, appliance: ApplianceId, token: Token) {
        self.answers.push_back(Answer::Gone(appliance, token));
    }

    pub(super) const fn applied(&mut self, version: u64) {
        self.version = version;
        self.applied = true;
    }

    /// A new stream begins: `Hello` says all that the answers of the old one said.
    pub(super) fn begin_stream(&mut self) {
        self.answers.clear();
        self.version = 0;
        self.applied = false;
    }

    pub(super) fn report(&mut self, appliance: ApplianceId, token: Token, status: Status, checked: u64) {
        self.reports.push(appliance, token, status, checked);
    }

    /// Drops the status of an appliance that is not held any more.
    pub(super) fn forget(&mut self, appliance: ApplianceId) {
        self.reports.remove(appliance);
    }

    pub(super) fn is_waiting(&self) -> bool {
        self.applied || !self.answers.is_empty() || !self.reports.is_empty()
    }

    /// The next message to say.
    pub(super) fn next(&mut self) -> Option<up::Up> {
        if self.applied || !self.answers.is_empty() {
            self.applied = false;
            let mut ack = up::Ack { applied: self.version, ..up::Ack::default() };
            for answer in self.answers.drain(..self.answers.len().min(MAX_ENTRIES_PER_MESSAGE)) {
                match answer {
                    Answer::Granted(appliance, token) => ack.granted.push((appliance, token)),
                    Answer::Declined(declined) => ack.declined.push(declined),
                    Answer::Released(release) => ack.released.push(release),
                    Answer::Gone(appliance, token) => ack.gone.push((appliance, token)),
                }
            }
            return Some(up::Up::Ack(ack));
        }
        let entries = self.reports.take(REPORTS_PER_MESSAGE);
        (!entries.is_empty()).then(|| {
            let report = |e: Entry| up::Report {
                appliance: e.appliance,
                token: e.token,
                status: e.status,
                checked: e.checked,
            };
            up::Up::Report(entries.into_iter().map(report).collect())
        })
    }
}

fn release(appliance: ApplianceId, token: Token, handed: Handed) -> up::Release {
    up::Release { appliance, token, progress: handed.progress, hold: handed.hold }
}

/// `Hello` in as many messages as its entries need.
pub(super) fn hello_parts(worker: &WorkerId, profile: &Profile, hello: Hello) -> Vec<WorkerMessage> {
    let envelope = Envelope { term: hello.highest_term, incarnation: hello.incarnation, stream: hello.stream };
    let part = || up::Hello {
        worker: worker.clone(),
        profile: profile.clone(),
        held: Vec::new(),
        released: Vec::new(),
        gone: Vec::new(),
        highest_term: hello.highest_term,
        more: true,
    };
    let mut parts = vec![part()];
    let mut entries = 0;
    let mut room = |parts: &mut Vec<up::Hello>| {
        if entries == MAX_ENTRIES_PER_MESSAGE {
            parts.push(part());
            entries = 0;
        }
        entries += 1;
        parts.len() - 1
    };
    for (appliance, h) in hello.held {
        let held = up::Held {
            appliance,
            token: h.token,
            generation: h.generation,
            releasing: h.releasing,
            hold: std::time::Duration::ZERO,
        };
        let at = room(&mut parts);
        parts[at].held.push(held);
    }
    for (appliance, token, handed) in hello.released {
        let at = room(&mut parts);
        parts[at].released.push(release(appliance, token, handed));
    }
    for gone in hello.gone {
        let at = room(&mut parts);
        parts[at].gone.push(gone);
    }
    if let Some(last) = parts.last_mut() {
        last.more = false;
    }
    parts.into_iter().map(|part| up::up_to_wire(&envelope, up::Up::Hello(Box::new(part)))).collect()
}
