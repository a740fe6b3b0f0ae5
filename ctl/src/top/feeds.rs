//! The streams of the server and the orders of the model: what goes on in the background.
//!
//! Each stream is a task that opens it, hands on what it says, and opens it again when it breaks. All of them and the orders write to one
//! bounded channel; while the screen is behind, they wait.

use std::ops::ControlFlow;
use std::time::{Duration, SystemTime};

use proto::admin::v1;
use tokio::sync::mpsc::Sender;
use tokio::task::JoinSet;
use tokio::time::sleep;
use tonic::Streaming;

use super::input::{Change, Feed, Input, Order, Subject};
use crate::client::{AdminClient, Backoff, by_id, request_id};
use crate::commands::{CommandContext, appliance, rebalance, worker};
use crate::error::{Exit, Failure};
use crate::output::{count, foreign_escaped};
use crate::wait::may_reopen;

/// Events and rebalances from before the start that are shown.
const HISTORY: usize = 100;
/// Pause before a stream that could not be opened is tried again.
const TRY_AGAIN: Duration = Duration::from_secs(1);

/// How long it is waited until hands are off; where a step takes longer, that is said.
const HANDS_OFF_WITHIN: Duration = Duration::from_secs(5);

/// Reason for the audit trail of what is done here.
const REASON: &str = "rugctl top";

/// Where inputs go to.
type Inputs = Sender<Input>;

/// Starts to follow everything. The tasks end with the set.
pub(crate) fn follow(client: &AdminClient, inputs: &Inputs) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    tasks.spawn(feed(
        Feed::Cluster,
        inputs.clone(),
        client.clone(),
        async |client, _| client.watch_cluster().await,
        |status| Input::Cluster(Box::new(status)),
    ));
    tasks.spawn(feed(
        Feed::Workers,
        inputs.clone(),
        client.clone(),
        async |client, _| client.watch_workers().await,
        |event| Input::Worker(Box::new(event)),
    ));
    tasks.spawn(feed(
        Feed::Rebalances,
        inputs.clone(),
        client.clone(),
        async |client, inputs| {
            let stream = client.watch_rebalances(true).await?;
            // What ended before, and while no stream was open.
            for rebalance in client.rebalances(HISTORY).await?.into_iter().rev() {
                let _ = inputs.send(Input::Rebalance(Box::new(rebalance))).await;
            }
            Ok(stream)
        },
        |rebalance| Input::Rebalance(Box::new(rebalance)),
    ));
    tasks.spawn(feed(
        Feed::Audit,
        inputs.clone(),
        client.clone(),
        async |client, inputs| {
            let now = SystemTime::now();
            let events = client.audit(&v1::AuditFilter::default(), HISTORY).await?;
            // From the last one on: what comes twice is known by its number.
            let since = events.first().and_then(|event| event.time).or(Some(now.into()));
            for event in events.into_iter().rev() {
                let _ = inputs.send(Input::Audit(Box::new(event))).await;
            }
            client.watch_audit(v1::AuditFilter { since, ..v1::AuditFilter::default() }).await
        },
        |event| Input::Audit(Box::new(event)),
    ));
    tasks
}

/// Follows one stream until the receiver is gone or the server refuses it.
async fn feed<T, O>(feed: Feed, inputs: Inputs, client: AdminClient, open: O, input: impl Fn(T) -> Input)
where
    O: AsyncFn(&AdminClient, &Inputs) -> Result<Streaming<T>, Failure>,
{
    let mut backoff = Backoff::new();
    loop {
        let failure = match open(&client, &inputs).await {
            Err(failure) => {
                sleep(TRY_AGAIN).await;
                failure
            }
            Ok(mut stream) => {
                if inputs.send(Input::Opened(feed)).await.is_err() {
                    return;
                }
                let ended = loop {
                    match stream.message().await {
                        Ok(Some(message)) => {
                            backoff = Backoff::new();
                            if inputs.send(input(message)).await.is_err() {
                                return;
                            }
                        }
                        Ok(None) => break Failure::failed("the stream ended"),
                        Err(status) => break Failure::from(status),
                    }
                };
                sleep(backoff.next()).await;
                ended
            }
        };
        let goes_on = failure.code.is_none_or(may_reopen);
        let said = match goes_on {
            true => Input::Interrupted(feed, failure.to_string()),
            false => Input::Refused(feed, failure.to_string()),
        };
        if inputs.send(said).await.is_err() || !goes_on {
            return;
        }
    }
}

/// Carries out an order; what comes of it is an input. To quit is no order for here.
pub(crate) async fn carry_out(context: CommandContext, order: Order) -> ControlFlow<(), Input> {
    let client = &context.client;
    let text = |failure: Failure| foreign_escaped(&failure.to_string());
    ControlFlow::Continue(match order {
        Order::Quit => return ControlFlow::Break(()),
        Order::Troubles => Input::Troubles(client.status().await.ok().and_then(|status| status.troubles).map(Box::new)),
        Order::Ring => Input::Ring(client.ring(false).await.ok().map(Box::new)),
        Order::Modes => Input::Modes(client.debug_modes().await.ok()),
        Order::Rollouts => Input::Rollouts(client.rollouts().await.ok()),
        Order::Budgets => Input::Budgets(client.budgets().await.ok()),
        Order::Page { number, filter, token } => {
            let page = client.page(filter, super::pages::PAGE_ROWS, token).await;
            Input::Page(number, page.map(Box::new).map_err(text))
        }
        Order::Inspect(subject) => Input::Text(inspect(&context, subject).await.map_err(text)),
        Order::Explain { id, label } => {
            let explained = client.explain(by_id(&id)).await;
            let title = format!("explain {label}");
            Input::Text(explained.map(|it| (title, appliance::explanation(&context, &it))).map_err(text))
        }
        Order::Change(change) => Input::Changed(make(client, change).await.map_err(text)),
    })
}

async fn inspect(context: &CommandContext, subject: Subject) -> Result<(String, String), Failure> {
    let now = SystemTime::now();
    Ok(match subject {
        Subject::Worker(id) => {
            let worker = context.client.worker(&id).await?;
            (format!("worker {id}"), worker::description(&context.ui, &worker, now))
        }
        Subject::Appliance { id, label } => {
            let explained = context.client.explain(by_id(&id)).await?;
            let found = explained.appliance.clone().unwrap_or_default();
            (label, appliance::description(context, &found, &explained, now)?)
        }
        Subject::Rebalance(id) => {
            let found = context.client.rebalance(&id).await?;
            (format!("rebalance {id}"), rebalance::description(&context.ui, &found, now))
        }
    })
}

async fn make(client: &AdminClient, change: Change) -> Result<String, Failure> {
    Ok(match change {
        Change::Rebuild { id, label } => {
            let request = v1::RebuildApplianceRequest {
                appliance: Some(by_id(&id)),
                request_id: request_id(),
                ..v1::RebuildApplianceRequest::default()
            };
            client.rebuild(request).await?;
            format!("rebuilding {label}")
        }
        Change::Evict { worker, incarnation } => {
            let request = v1::EvictWorkerRequest { id: worker.clone(), reason: REASON.to_owned(), incarnation };
            client.evict(request).await?;
            format!("{worker} is evicted")
        }
        Change::Drain { worker } => {
            let request = v1::DrainWorkerRequest { id: worker.clone(), reason: REASON.to_owned(), force: false };
            client.drain(request).await?;
            format!("{worker} gives up what it has")
        }
        Change::Undrain { worker } => {
            let request = v1::UndrainWorkerRequest { id: worker.clone(), reason: REASON.to_owned() };
            client.undrain(request).await?;
            format!("{worker} is given appliances again")
        }
        Change::HandsOff(subject) => hands_off(client, subject).await?,
        Change::HandsOn { label, modes } => {
            for id in modes {
                match client.clear_debug_mode(&id, REASON).await {
                    // Cleared by somebody else, or over.
                    Err(failure) if failure.exit == Exit::NotFound => {}
                    answer => answer?,
                }
            }
            format!("{label} is acted on again")
        }
        Change::Pause => {
            client.pause(REASON, false).await?;
            "placement is paused".to_owned()
        }
        Change::Resume => {
            client.resume().await?;
            "placement goes on".to_owned()
        }
    })
}

/// Sets a debug mode, and says from whom nobody has heard yet that hands are off.
async fn hands_off(client: &AdminClient, subject: Subject) -> Result<String, Failure> {
    use v1::debug_scope::What;

    let (what, label) = match subject {
        Subject::Worker(id) => (What::Worker(id.clone()), id),
        Subject::Appliance { id, label } => (What::Appliance(by_id(&id)), label),
        Subject::Rebalance(id) => return Err(Failure::failed(format!("{id} is a rebalance"))),
    };
    let request = v1::SetDebugModeRequest {
        id: request_id(),
        scope: Some(v1::DebugScope { what: Some(what) }),
        reason: REASON.to_owned(),
        expires_in: None,
        wait: Some(proto::convert::scalar::duration_to_wire(HANDS_OFF_WITHIN)),
    };
    let mode = client.set_debug_mode(request).await?;
    if mode.waiting_count > 0 {
        return Ok(format!(
            "hands are off {label}, except for {} where a step still runs",
            count(mode.waiting_count, "appliance")
        ));
    }
    Ok(format!("hands are off {label}"))
}
