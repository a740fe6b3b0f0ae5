//! Notifications of Neutron from RabbitMQ: a durable queue of our own, bound to Neutron's exchange, read with manual acknowledgement.
//!
//! The exchange is Neutron's: it is neither durable nor deleted by itself, and declaring it otherwise is refused. So it is only looked
//! for, and waited for while it is missing: after a restart of RabbitMQ it comes back with the next notification. The queue outlives both, and its
//! binding does not; what is sent meanwhile is lost. Therefore every subscription that stands is told, and everything is listed then.

use std::sync::Arc;
use std::time::Duration;

use ::neutron::notification::Notification;
use common::backoff::Backoff;
use futures::StreamExt as _;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicQosOptions, ExchangeDeclareOptions, QueueBindOptions,
    QueueDeclareOptions,
};
use lapin::protocol::{AMQPErrorKind, AMQPHardError, AMQPSoftError};
use lapin::tcp::OwnedTLSConfig;
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Acker, Channel, Connection, ConnectionProperties, Consumer, ExchangeKind};
use runtime::retry::Retries;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use tracing::info;

use super::config::Config;
use crate::metrics;

/// Delays between tries.
const RETRY: Backoff = Backoff { base: Duration::from_millis(500), cap: Duration::from_secs(30) };
/// How long setting up a subscription may take.
const SETUP: Duration = Duration::from_secs(30);
/// How long one acknowledgement may take. It is a message to a task of this process; only a broker that takes nothing more holds it up.
const ACK: Duration = Duration::from_secs(10);
/// Messages that the queue holds while nobody reads it; older ones are dropped then. The listing with which reading begins has it all.
const QUEUE_LENGTH: u32 = 100_000;
/// Seconds between heartbeats: a broker that is gone without a word is noticed after two of them.
const HEARTBEAT: u16 = 15;
/// How often a missing exchange is looked for.
const EXCHANGE_AGAIN: Duration = Duration::from_secs(5);

/// What the feed tells.
#[derive(Debug)]
pub(super) enum FeedEvent {
    /// From now on notifications arrive. What was sent before may be lost.
    Subscribed,
    /// A notification.
    Told(Notification, Receipt),
    /// Why none arrive.
    Trouble(String),
}

/// A message that is to be acknowledged once what it is about is in the store. RabbitMQ delivers it again otherwise.
#[derive(Clone, Debug)]
pub(super) struct Receipt(Arc<Acker>);

impl Receipt {
    /// Acknowledges the message if this is the last receipt of it.
    pub(super) async fn done(self) {
        // One that fails is delivered again, and found done.
        if let Some(acker) = Arc::into_inner(self.0) {
            let _ = timeout(ACK, acker.ack(BasicAckOptions::default())).await;
        }
    }
}

/// Reads notifications for as long as it is polled.
pub(super) async fn feed(config: Config, name: String, events: mpsc::Sender<FeedEvent>) {
    let mut retries = Retries::new(RETRY);
    loop {
        let trouble = match timeout(SETUP, subscribe(&config, &name)).await {
            Ok(Ok((connection, channel, mut consumer))) => {
                info!(server = config.shown_url(), queue = config.queue, "reading notifications of Neutron");
                if events.send(FeedEvent::Subscribed).await.is_err() {
                    return;
                }
                retries.reset();
                let trouble = read(&mut consumer, &events).await;
                // Both end with the last of them; what is not acknowledged comes again.
                drop((channel, connection));
                trouble
            }
            Ok(Err(trouble)) => trouble,
            Err(_) => FeedTrouble::Other(format!("RabbitMQ at {} did not answer within {SETUP:?}", config.shown_url())),
        };
        let wait = match &trouble {
            FeedTrouble::NoExchange(_) => EXCHANGE_AGAIN,
            FeedTrouble::Other(_) => retries.next_delay(),
        };
        let (FeedTrouble::NoExchange(text) | FeedTrouble::Other(text)) = trouble;
        if events.send(FeedEvent::Trouble(text)).await.is_err() {
            return;
        }
        sleep(wait).await;
    }
}

/// Why there is no subscription.
enum FeedTrouble {
    /// Neutron has sent nothing yet since RabbitMQ was started.
    NoExchange(String),
    Other(String),
}

async fn subscribe(config: &Config, name: &str) -> Result<(Connection, Channel, Consumer), FeedTrouble> {
    let at = config.shown_url();
    let other =
        |doing: &str, error: lapin::Error| FeedTrouble::Other(format!("{doing} at {at}: {}", explained(&error)));
    let mut uri = config.uri().map_err(|problem| FeedTrouble::Other(problem.to_owned()))?;
    uri.query.heartbeat = Some(HEARTBEAT);
    let cert_chain = match config.amqp_ca.as_os_str().is_empty() {
        true => None,
        false => Some(
            tokio::fs::read_to_string(&config.amqp_ca)
                .await
                .map_err(|error| FeedTrouble::Other(format!("cannot read {}: {error}", config.amqp_ca.display())))?,
        ),
    };
    let tls = OwnedTLSConfig { identity: None, cert_chain };
    let properties = ConnectionProperties::default().with_connection_name(name.into());
    let runtime = lapin::runtime::default_runtime().map_err(|error| other("no runtime", error))?;
    let connection = Connection::connect_uri_with_config(uri, properties, tls, runtime).await;
    let connection = connection.map_err(|error| other("connect", error))?;
    let channel = connection.create_channel().await.map_err(|error| other("open a channel", error))?;
    let passive = ExchangeDeclareOptions { passive: true, ..ExchangeDeclareOptions::default() };
    let exchange = config.exchange.as_str();
    let declared = channel.exchange_declare(exchange.into(), ExchangeKind::Topic, passive, FieldTable::default()).await;
    declared.map_err(|error| match error.kind() {
        lapin::ErrorKind::ProtocolError(problem) if *problem.kind() == AMQPErrorKind::Soft(AMQPSoftError::NOTFOUND) => {
            FeedTrouble::NoExchange(format!(
                "there is no exchange `{exchange}` at {at}: Neutron has sent nothing there yet"
            ))
        }
        _ => other("look for the exchange", error),
    })?;
    let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    let mut arguments = FieldTable::default();
    arguments.insert("x-max-length".into(), AMQPValue::LongUInt(QUEUE_LENGTH));
    let queue = config.queue.as_str();
    channel.queue_declare(queue.into(), durable, arguments).await.map_err(|error| other("declare the queue", error))?;
    let bound = channel.queue_bind(
        queue.into(),
        exchange.into(),
        config.topic.as_str().into(),
        QueueBindOptions::default(),
        FieldTable::default(),
    );
    bound.await.map_err(|error| other("bind the queue", error))?;
    let bounded = channel.basic_qos(config.prefetch, BasicQosOptions::default()).await;
    bounded.map_err(|error| other("bound what is taken", error))?;
    let options = BasicConsumeOptions::default();
    let consumer = channel.basic_consume(queue.into(), name.into(), options, FieldTable::default()).await;
    let consumer = consumer.map_err(|error| other("read the queue", error))?;
    Ok((connection, channel, consumer))
}

/// Passes messages on until none come any more, and answers why.
async fn read(consumer: &mut Consumer, events: &mpsc::Sender<FeedEvent>) -> FeedTrouble {
    while let Some(delivery) = consumer.next().await {
        let delivery = match delivery {
            Ok(delivery) => delivery,
            Err(error) => return FeedTrouble::Other(format!("reading notifications: {}", explained(&error))),
        };
        let receipt = Receipt(Arc::new(delivery.acker));
        match Notification::read(&delivery.data) {
            Ok(notification) if notification.subjects.is_empty() => {
                metrics::notified("ignored");
                receipt.done().await;
            }
            Ok(notification) => {
                metrics::notified("taken");
                if events.send(FeedEvent::Told(notification, receipt)).await.is_err() {
                    return FeedTrouble::Other("the term is over".to_owned());
                }
            }
            Err(problem) => {
                runtime::log_limited!(warn, "skipping a message of Neutron's exchange: {problem}");
                metrics::notified("unreadable");
                receipt.done().await;
            }
        }
    }
    FeedTrouble::Other("RabbitMQ ended the subscription".to_owned())
}

/// An error in words that say what to do.
fn explained(error: &lapin::Error) -> String {
    match error.kind() {
        lapin::ErrorKind::ProtocolError(problem) => match problem.kind() {
            AMQPErrorKind::Soft(AMQPSoftError::ACCESSREFUSED) => {
                format!("access refused; check user, password and permissions: {}", problem.get_message())
            }
            AMQPErrorKind::Hard(AMQPHardError::CONNECTIONFORCED) => {
                format!("RabbitMQ closed the connection: {}", problem.get_message())
            }
            _ => problem.get_message().to_string(),
        },
        _ => error.to_string(),
    }
}
