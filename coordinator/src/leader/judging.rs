//! Changes of specifications that where instances run is asked about before they are admitted.
//!
//! Judging comes before admission, and reserves nothing: an API server that is slow holds up the change that it is asked about, and no
//! other one, not even of the same appliance. That is sound because a judgement gives no right. What is admitted is checked as ever, against
//! everything that is stored or being written at that moment (generations, names, ports); and where what would be written is then
//! another specification than the one that was judged, because another change came between, that one is judged first.
//!
//! | answer | what becomes of the change |
//! |---|---|
//! | accepted | it is admitted |
//! | refused | refused, as every field that cannot be as it is |
//! | unclear | admitted, with a warning: the first boot shows what is wrong, if it still is then |
//! | none: no worker, no room, no time, the API server cannot be reached | admitted, with a warning |

use std::time::SystemTime;

use common::change::ApplianceTarget;
use common::inquiry::{Finding, Verdict};
use runtime::log_limited;

use super::inquiries::{ChangeCall, Ended, JudgedKey, Judging};
use super::{Leader, convert};
use crate::commands::CommandError;
use crate::record::Record;

impl Leader<'_> {
    /// Carries out a change, after it was judged if it has to be.
    pub(super) fn change(&mut self, call: ChangeCall) {
        if call.reply.is_closed() {
            return;
        }
        let Some(record) = self.to_be_judged(&call) else { return self.admit(call, None) };
        let key = JudgedKey::of(&record);
        if let Some(warning) = self.inquiries.known(key) {
            return self.admit(call, warning);
        }
        let owner = self.catalog.get(&ApplianceTarget::Id(record.id));
        let owner = owner.and_then(|entry| entry.assignment.worker.clone());
        let judging = Judging { call, key, appliance: record.id, driver: record.driver.clone() };
        match self.inquiries.obstacle(&judging.driver) {
            None => self.inquiries.judge(judging, convert::desired(&record), owner),
            Some(why) => {
                let finding = Finding::Unanswered(why.to_owned());
                self.judged(Ended { judging, finding });
            }
        }
    }

    /// The appliance as a change would have it, if that is to be judged.
    fn to_be_judged(&self, call: &ChangeCall) -> Option<Record> {
        // Changes of fleets without such a driver are not looked at twice.
        if !self.connections.judges_any() {
            return None;
        }
        let (record, previous) = self.admission.preview(&call.mutation, SystemTime::now())?;
        let is_scaled = previous.is_some_and(|previous| {
            let scaled = common::appliance::Spec { replicas: previous.spec.replicas, ..record.spec.clone() };
            scaled == previous.spec
        });
        (!is_scaled && self.connections.judges(&record.driver)).then_some(record)
    }

    /// Goes on with a change that was judged, or could not be.
    pub(super) fn judged(&mut self, ended: Ended) {
        let Ended { judging: Judging { call, key, appliance, driver }, finding } = ended;
        let warning = match finding {
            Finding::Judgement(Verdict::Refused(violation)) => {
                let refused = CommandError::Invalid(vec![violation.within("appliance")]);
                return drop(call.reply.send(Err(refused)));
            }
            Finding::Judgement(Verdict::Accepted) => None,
            Finding::Judgement(Verdict::Unclear(why)) => Some(format!("no instance could be made now: {why}")),
            // What answers another question says nothing about a specification.
            finding @ (Finding::Log(_) | Finding::Reloaded(_) | Finding::Exec(_) | Finding::Unanswered(_)) => {
                let why =
                    if let Finding::Unanswered(why) = finding { why } else { "the answer is to something else".into() };
                let warning = format!("accepted without the judgement of driver {driver}: {why}");
                log_limited!(info, %appliance, "{warning}");
                return self.admit(call, Some(warning));
            }
        };
        if let Some(warning) = &warning {
            log_limited!(info, %appliance, %driver, "accepted with a warning: {warning}");
        }
        self.inquiries.learn(key, warning);
        // What is to be written may be something else by now.
        self.change(call);
    }

    /// Puts inquiries that wait to workers, and goes on with those that are over.
    pub(super) fn put_inquiries(&mut self) {
        for stream in self.connections.take_ended() {
            self.inquiries.stream_ended(stream);
            self.direct.stream_ended(stream);
        }
        self.direct.end_late();
        for ended in self.inquiries.late() {
            self.judged(ended);
        }
        for ended in self.inquiries.put(&self.connections) {
            self.judged(ended);
        }
    }

    /// Everyone who waits for an answer is told why there is none. Nothing was changed.
    pub(super) fn end_inquiries(&mut self, why: &CommandError) {
        self.direct.end_all(why);
        for call in self.inquiries.end_all() {
            let _ = call.reply.send(Err(why.clone()));
        }
    }
}
