//! The service `Audit`: who did what, from the store.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use common::appliance::FieldViolation;
use common::text;
use futures::stream::{self, BoxStream, StreamExt};
use proto::admin::v1 as wire;
use proto::convert::scalar::time_to_wire;
use tokio::sync::watch;
use tonic::{Request, Response, Status};
use uuid::Uuid;

use super::call::Caller;
use super::{page, status};
use crate::history::History;
use crate::record::{AuditEvent, AuditFilter, AuditPart, NumberedEvent};

/// Longest text of a condition, in bytes.
const MAX_CONDITION: usize = 500;
/// Shortest time between two looks of a watch at the store.
const PACE: Duration = Duration::from_secs(1);
/// Events that a watch reads at once.
const READ: u64 = 500;
/// The end of the year 9999, in seconds since 1970.
const LAST_SECOND: i64 = 253_402_300_799;

pub(super) struct AuditService {
    caller: Caller,
}

impl AuditService {
    pub(super) const fn new(caller: Caller) -> Self {
        Self { caller }
    }
}

#[tonic::async_trait]
impl wire::audit_server::Audit for AuditService {
    async fn list(
        &self,
        request: Request<wire::ListAuditRequest>,
    ) -> Result<Response<wire::ListAuditResponse>, Status> {
        let message = request.into_inner();
        let size = page::size(message.page_size)?;
        let filter = filter(message.filter)?;
        let made_for = digest(&filter);
        let before = match message.page_token.as_str() {
            "" => None,
            token => Some(page_start(token, &made_for)?),
        };
        let found = self.caller.history.audit(filter, AuditPart::Before(before), size as u64 + 1).await;
        let found = found.map_err(|e| status::from_history(&e))?;
        let last = found.get(size - 1).filter(|_| found.len() > size);
        Ok(Response::new(wire::ListAuditResponse {
            next_page_token: last.map(|e| page::seal(&format!("{made_for}/{}", e.number))).unwrap_or_default(),
            events: found.iter().take(size).map(to_wire).collect(),
        }))
    }

    type WatchStream = BoxStream<'static, Result<wire::AuditEvent, Status>>;

    async fn watch(&self, request: Request<wire::WatchAuditRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let filter = filter(request.into_inner().filter)?;
        let history = Arc::clone(&self.caller.history);
        let changes = self.caller.catalog.watch_cluster();
        let after = match filter.since {
            Some(_) => 0,
            None => newest(&*history).await?,
        };
        let watch = AuditWatch { history, filter, after, changes, read: VecDeque::new(), is_first: true };
        let events = stream::unfold(Some(watch), |watch| async {
            let mut watch = watch?;
            match watch.next().await {
                Ok(event) => Some((Ok(event), Some(watch))),
                Err(status) => Some((Err(status), None)),
            }
        });
        Ok(Response::new(events.boxed()))
    }
}

/// One watch. The store tells nobody of new rows, so it is asked again and again; the state of the cluster, which is shown
/// anew every second, sets the pace, and says when this coordinator leads no more.
struct AuditWatch {
    history: Arc<dyn History>,
    filter: AuditFilter,
    /// Number of the last event that was read.
    after: u64,
    changes: watch::Receiver<()>,
    read: VecDeque<NumberedEvent>,
    is_first: bool,
}

impl AuditWatch {
    async fn next(&mut self) -> Result<wire::AuditEvent, Status> {
        loop {
            if let Some(event) = self.read.pop_front() {
                return Ok(to_wire(&event));
            }
            if !std::mem::take(&mut self.is_first) {
                tokio::time::sleep(PACE).await;
                self.changes.changed().await.map_err(|_| status::watch_over())?;
            }
            let newest = newest(&*self.history).await?;
            if newest <= self.after {
                continue;
            }
            let found = self.history.audit(self.filter.clone(), AuditPart::After(self.after), READ).await;
            self.read = found.map_err(|e| status::from_history(&e))?.into();
            // What does not match is not gone through again.
            let all = (self.read.len() as u64) < READ;
            let last = self.read.back().map_or(0, |last| last.number);
            self.after = if all { newest.max(last) } else { last };
        }
    }
}

/// Number of the last event; 0 when there is none.
async fn newest(history: &dyn History) -> Result<u64, Status> {
    let last = history.audit(AuditFilter::default(), AuditPart::Before(None), 1).await;
    Ok(last.map_err(|e| status::from_history(&e))?.first().map_or(0, |last| last.number))
}

fn to_wire(numbered: &NumberedEvent) -> wire::AuditEvent {
    let AuditEvent { time, actor, action, subject, detail } = numbered.event.clone();
    wire::AuditEvent { number: numbered.number, time: Some(time_to_wire(time)), actor, action, subject, detail }
}

/// Parses a filter; every invalid condition is an error, because ignoring one would return too much.
fn filter(wire: Option<wire::AuditFilter>) -> Result<AuditFilter, Status> {
    let wire::AuditFilter { since, until, actor, action, subject } = wire.unwrap_or_default();
    let mut wrong = Vec::new();
    let mut note = |field: &str, problem: String| wrong.push(FieldViolation::new(format!("filter.{field}"), problem));
    let mut time = |field, time: Option<prost_types::Timestamp>| {
        let found = time.and_then(moment);
        if time.is_some() && found.is_none() {
            note(field, "must be a time of the years 1970 to 9999".to_owned());
        }
        found
    };
    let (since, until) = (time("since", since), time("until", until));
    let mut condition = |field, condition: String| {
        if let Err(problem) = text::check(&condition, MAX_CONDITION) {
            note(field, problem.to_string());
        }
        (!condition.is_empty()).then_some(condition)
    };
    let (actor, action) = (condition("actor", actor), condition("action", action));
    let subject = condition("subject", subject);
    if wrong.is_empty() {
        Ok(AuditFilter { since, until, actor, action, subject })
    } else {
        Err(status::invalid(&wrong))
    }
}

/// A moment that a caller gives, unless it is none of those that can be stored.
pub(super) fn moment(time: prost_types::Timestamp) -> Option<SystemTime> {
    Some(time).filter(|t| (0..=LAST_SECOND).contains(&t.seconds)).and_then(|t| SystemTime::try_from(t).ok())
}

fn digest(filter: &AuditFilter) -> String {
    Uuid::new_v5(&Uuid::NAMESPACE_OID, format!("{filter:?}").as_bytes()).to_string()
}

/// The number that a page follows, of a list that was made for this.
pub(super) fn page_start(token: &str, made_for: &str) -> Result<u64, Status> {
    let text = page::open(token).ok_or_else(page::odd)?;
    let (filter, number) = text.split_once('/').ok_or_else(page::odd)?;
    let number = number.parse().map_err(|_| page::odd())?;
    if filter == made_for { Ok(number) } else { Err(page::other_filter()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invalid_conditions_and_tokens_of_other_lists_are_refused() {
        let odd = wire::AuditFilter { actor: "a\u{7}".into(), ..wire::AuditFilter::default() };
        assert!(filter(Some(odd)).is_err());
        let odd = prost_types::Timestamp { seconds: i64::MAX, nanos: -1 };
        assert!(filter(Some(wire::AuditFilter { since: Some(odd), ..wire::AuditFilter::default() })).is_err());
        let all = digest(&filter(None).expect("no condition"));
        let token = page::seal(&format!("{all}/17"));
        assert_eq!(page_start(&token, &all).expect("just made"), 17);
        let other = digest(&AuditFilter { actor: Some("ops".into()), ..AuditFilter::default() });
        assert!(
            page_start(&token, &other).is_err() && page_start("61", &all).is_err() && page_start("x", &all).is_err()
        );
    }
}
