//! `Appliances.Logs`: what instances have printed, part by part.
//!
//! The reader sets the pace: the owner is asked for a part once the one before was taken. So a reader that does not read holds the places of its
//! instances and nothing else, and what the log has lost by the time it reads on is told as missing. A move changes who is asked, not the place.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use common::ApplianceId;
use common::WorkerId;
use common::appliance::FieldViolation;
use common::change::ApplianceTarget;
use common::inquiry::{LogPart, LogQuery, MAX_LOG_PLACE};
use common::text;
use futures::stream::{self, BoxStream, StreamExt};
use proto::admin::v1 as wire;
use proto::convert::scalar::duration_from_wire;
use tokio::time::Instant;
use tonic::Status;

use super::call::Caller;
use super::status;
use crate::catalog::Catalog;
use crate::commands::{CommandContext, CommandError, Commands, LogRead};
use crate::views::CatalogEntry;

/// Most instances that are read in one call.
const MAX_INSTANCES: usize = 64;
/// How long one part may take, with what goes before it.
const PART: Duration = Duration::from_secs(15);
/// Pause before instances that had nothing new are asked again.
const PACE: Duration = Duration::from_millis(500);
/// Pause while the owner cannot be asked.
const WAIT: Duration = Duration::from_secs(1);
/// How long a call waits for an owner that can be asked, if it does not follow.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long nothing may be printed before a call that follows ends.
const IDLE: Duration = Duration::from_secs(3_600);

/// One instance that is read.
#[derive(Debug)]
struct Instance {
    query: LogQuery,
    /// There may be more at once.
    more: bool,
}

/// One call.
pub(super) struct LogReader {
    commands: Commands,
    catalog: Arc<Catalog>,
    actor: String,
    appliance: ApplianceId,
    follow: bool,
    instances: VecDeque<Instance>,
    /// Instances that were asked in this round and had nothing.
    quiet: usize,
    worker: Option<WorkerId>,
    /// Since when the owner cannot be asked.
    away: Option<Instant>,
    /// When something was told last.
    told: Instant,
    over: bool,
}

impl LogReader {
    /// Reads the request; every part that cannot be used is an error.
    pub(super) fn new(
        caller: &Caller,
        entry: &CatalogEntry,
        actor: String,
        message: wire::LogsRequest,
    ) -> Result<Self, Status> {
        let wire::LogsRequest { appliance: _, instance, follow, tail, since, previous, places } = message;
        let mut wrong = Vec::new();
        let since = match since.map(|since| duration_from_wire(&since)).transpose() {
            Ok(since) => since,
            Err(problem) => {
                wrong.push(FieldViolation::new("since", problem.to_string()));
                None
            }
        };
        let replicas = u32::from(entry.record.spec.replicas);
        let all = match instance {
            Some(one) if one >= replicas => {
                wrong.push(FieldViolation::new("instance", format!("there are {replicas}, counted from 0")));
                one..one
            }
            Some(one) => one..one + 1,
            None => 0..replicas,
        };
        if all.len() > MAX_INSTANCES {
            wrong.push(FieldViolation::new("instance", format!("must name one: there are more than {MAX_INSTANCES}")));
        }
        if places.iter().any(|place| text::check(&place.place, MAX_LOG_PLACE).is_err()) {
            wrong.push(FieldViolation::new("places", "must be those of an earlier call"));
        }
        if !wrong.is_empty() {
            return Err(status::invalid(&wrong));
        }
        let query = |ordinal: u32| LogQuery {
            appliance: entry.record.id,
            driver: None,
            ordinal: u16::try_from(ordinal).unwrap_or(u16::MAX),
            place: places
                .iter()
                .rfind(|known| known.instance == ordinal)
                .map(|it| it.place.clone())
                .unwrap_or_default(),
            tail: (tail > 0).then_some(tail),
            since,
            previous,
        };
        Ok(Self {
            commands: caller.commands.clone(),
            catalog: Arc::clone(&caller.catalog),
            actor,
            appliance: entry.record.id,
            follow,
            instances: all.map(|ordinal| Instance { query: query(ordinal), more: true }).collect(),
            quiet: 0,
            worker: None,
            away: None,
            told: Instant::now(),
            over: false,
        })
    }

    /// The answer, once it is known that there is one.
    pub(super) async fn stream(mut self) -> Result<BoxStream<'static, Result<wire::LogChunk, Status>>, Status> {
        // A call that is refused is so before it is answered.
        let first = self.next().await.transpose()?;
        let rest = stream::unfold(Some(self), |reader| async {
            let mut reader = reader?;
            match reader.next().await? {
                Ok(chunk) => Some((Ok(chunk), Some(reader))),
                Err(status) => Some((Err(status), None)),
            }
        });
        Ok(stream::iter(first.map(Ok)).chain(rest).boxed())
    }

    async fn next(&mut self) -> Option<Result<wire::LogChunk, Status>> {
        while !self.over && !self.instances.is_empty() {
            if self.follow && self.told.elapsed() >= IDLE {
                self.over = true;
                return Some(Ok(note("nothing was printed for an hour")));
            }
            if self.quiet >= self.instances.len() {
                self.quiet = 0;
                tokio::time::sleep(PACE).await;
            }
            let instance = self.instances.front()?;
            let context = CommandContext { deadline: Instant::now() + PART, actor: self.actor.clone() };
            match self.commands.read_log(&context, instance.query.clone()).await {
                Ok(read) => {
                    self.away = None;
                    if let Some(chunk) = self.take(read) {
                        self.told = Instant::now();
                        return Some(Ok(chunk));
                    }
                }
                Err(error) => match self.unread(&error) {
                    Some(answer) => return Some(answer),
                    None => tokio::time::sleep(WAIT).await,
                },
            }
        }
        None
    }

    /// Takes in a part. `None` when there is nothing to tell.
    fn take(&mut self, read: LogRead) -> Option<wire::LogChunk> {
        let LogRead { worker, part: LogPart { data, place, more, lost } } = read;
        let mut instance = self.instances.pop_front()?;
        if !place.is_empty() {
            instance.query.place = place;
        }
        instance.more = more;
        let (ordinal, place) = (instance.query.ordinal, instance.query.place.clone());
        // What is at its end is not asked again, unless it is followed.
        if more || self.follow {
            self.instances.push_back(instance);
        }
        let is_moved = self.worker.as_ref().is_some_and(|before| *before != worker);
        self.worker = Some(worker.clone());
        self.quiet = if more || !data.is_empty() { 0 } else { self.quiet + 1 };
        let mut notes = Vec::new();
        if is_moved {
            notes.push(format!("worker {worker} has the appliance now"));
        }
        if lost {
            notes.push("what was printed before this is not kept any more".to_owned());
        }
        (!data.is_empty() || !notes.is_empty()).then(|| wire::LogChunk {
            instance: ordinal.into(),
            worker: worker.to_string(),
            data,
            place,
            note: notes.join("; "),
        })
    }

    /// A part could not be read. `None` to ask again.
    fn unread(&mut self, error: &CommandError) -> Option<Result<wire::LogChunk, Status>> {
        let is_gone = self.catalog.get(&ApplianceTarget::Id(self.appliance)).is_none();
        let is_away = matches!(error, CommandError::NoOwner { .. } | CommandError::NoLog { .. });
        if is_gone && self.worker.is_some() {
            self.over = true;
            return Some(Ok(note("the appliance is gone")));
        }
        let since = *self.away.get_or_insert_with(Instant::now);
        if is_gone || !is_away || (!self.follow && since.elapsed() >= PATIENCE) {
            self.over = true;
            return Some(Err(status::from_command(error)));
        }
        // Told once, when it does not mend by itself in a moment.
        let first = self.follow && since.elapsed() >= PATIENCE && since.elapsed() < PATIENCE + 2 * WAIT;
        first.then(|| Ok(note(&format!("{error}; waiting"))))
    }
}

fn note(text: &str) -> wire::LogChunk {
    wire::LogChunk { note: text.to_owned(), ..wire::LogChunk::default() }
}
