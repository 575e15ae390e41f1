//! What carries messages and tells the time: the messaging server's own client, or, in the
//! simulation of the whole system, something that can lose, delay and repeat.
//!
//! Everything that runs all the time goes through here, so that what is simulated is the program
//! itself. Set-up and the person at the command line use the client directly.

use crate::client::{Bus, Health, REQUEST_TIMEOUT};
use async_nats::{
    Client, HeaderMap, Message, Request, StatusCode, Subscriber,
    client::RequestErrorKind,
    jetstream::{self, ErrorCode, response::Response},
};
use bytes::Bytes;
use futures_util::{StreamExt as _, future::BoxFuture, future::Either};
use rand::RngExt as _;
use serde::Deserialize;
use std::{
    fmt,
    future::{Future, poll_fn},
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tokio::sync::{Semaphore, mpsc, watch};
use virtbus_wire::{BootId, Timestamp};

/// Publications that may await their acknowledgement at once.
const ACKS_IN_FLIGHT_MAX: usize = 1024;
/// How long a conflict with a write that isn't stored yet is kept back: who read the record at
/// once would see what it was before, and try the same again.
const IN_FLIGHT_PAUSE: Duration = Duration::from_millis(20);

/// A request that got no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RequestFailed {
    /// Nobody listens there.
    #[error("nobody answers")]
    NoResponders,
    /// It was never sent: it's too large, or its subject is none.
    #[error("{0}")]
    Refused(String),
    /// It may have had its effect.
    #[error("{0}")]
    InDoubt(String),
}

/// A publication that isn't stored, or may not be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum StoreError {
    /// The last message of the subject is another than was expected.
    #[error("another revision is there")]
    Conflict,
    /// The stream takes no more, or not this.
    #[error("{0}")]
    Refused(String),
    /// It's too large: it never left, or the stream takes nothing of that size.
    #[error("{0}")]
    Unsendable(String),
    /// It may have been stored.
    #[error("{0}")]
    InDoubt(String),
}

/// Whether a task of a simulated process may go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Passage {
    /// It may.
    Open,
    /// The process stands still. The task was noted and is woken when it goes on.
    Frozen,
    /// The process is dead: the task never goes on.
    Dead,
}

/// Something that carries messages in place of the client: a simulation.
pub trait Transport: fmt::Debug + Send + Sync {
    /// A request and its answer, or the word that there won't be one.
    fn request(
        &self,
        subject: String,
        headers: Option<HeaderMap>,
        payload: Bytes,
    ) -> BoxFuture<'_, Result<Message, RequestFailed>>;
    /// A message that nobody confirms.
    ///
    /// # Errors
    /// When the connection is closed for good.
    fn publish(&self, subject: String, reply: Option<String>, payload: Bytes)
    -> Result<(), String>;
    /// What is sent to a subject from now on.
    ///
    /// # Errors
    /// When the connection is closed for good.
    fn subscribe(&self, subject: String) -> Result<mpsc::UnboundedReceiver<Message>, String>;
    /// A subject that nobody else listens to.
    fn inbox(&self) -> String;
    /// How the connection is, now and from now on.
    fn health(&self) -> watch::Receiver<Health>;
    /// This process's clock.
    fn now(&self) -> Timestamp;
    /// Time since this process's host booted, suspends included.
    fn boot_time(&self) -> Duration;
    /// A number from 0 to below 1.
    fn random(&self) -> f64;
    /// The mark of one more start, as no other process has it.
    fn new_boot(&self) -> BootId;
    /// Whether a task of this process may go on.
    fn passage(&self, task: &Context<'_>) -> Passage;
}

/// The server's own client.
#[derive(Debug, Clone)]
pub(crate) struct Nats {
    pub(crate) client: Client,
    pub(crate) context: jetstream::Context,
    acks: Arc<Semaphore>,
}

impl Nats {
    pub(crate) fn new(client: Client) -> Self {
        let context = jetstream::ContextBuilder::new()
            .timeout(REQUEST_TIMEOUT)
            .ack_timeout(REQUEST_TIMEOUT)
            .max_ack_inflight(ACKS_IN_FLIGHT_MAX)
            .backpressure_on_inflight(true)
            .build(client.clone());
        Self {
            client,
            context,
            acks: Arc::new(Semaphore::new(ACKS_IN_FLIGHT_MAX)),
        }
    }
}

/// What carries a [`Bus`]'s messages.
#[derive(Debug, Clone)]
pub(crate) enum Wire {
    Nats(Arc<Nats>),
    Other(Arc<dyn Transport>),
}

/// What comes on a subject.
#[derive(Debug)]
pub enum Subscription {
    /// From the client.
    Nats(Subscriber),
    /// From something else.
    Other(mpsc::UnboundedReceiver<Message>),
}

impl Subscription {
    /// The next message; none when the connection is closed for good. Safe to cancel.
    pub async fn next(&mut self) -> Option<Message> {
        match self {
            Self::Nats(subscriber) => subscriber.next().await,
            Self::Other(receiver) => receiver.recv().await,
        }
    }

    /// Asks for no more. What has come already can still be read, and then the end.
    pub async fn unsubscribe(&mut self) {
        match self {
            Self::Nats(subscriber) => {
                if let Err(error) = subscriber.unsubscribe().await {
                    tracing::debug!(%error, "already closed");
                }
            }
            Self::Other(receiver) => receiver.close(),
        }
    }
}

impl Bus {
    /// A request with headers and its answer.
    ///
    /// # Errors
    /// When there is none in time.
    pub async fn ask(
        &self,
        subject: String,
        headers: Option<HeaderMap>,
        payload: Bytes,
    ) -> Result<Message, RequestFailed> {
        let client = match &self.wire {
            Wire::Nats(nats) => &nats.client,
            Wire::Other(other) => return other.request(subject, headers, payload).await,
        };
        let mut request = Request::new().payload(payload);
        if let Some(headers) = headers {
            request = request.headers(headers);
        }
        let answer = client.send_request(subject, request).await;
        answer.map_err(|error| match error.kind() {
            RequestErrorKind::NoResponders => RequestFailed::NoResponders,
            RequestErrorKind::InvalidSubject | RequestErrorKind::MaxPayloadExceeded => {
                RequestFailed::Refused(error.to_string())
            }
            RequestErrorKind::TimedOut | RequestErrorKind::Other => {
                RequestFailed::InDoubt(error.to_string())
            }
        })
    }

    /// Publishes to a stream, and returns the sequence it's stored under.
    pub(crate) async fn store(
        &self,
        subject: String,
        headers: HeaderMap,
        payload: Bytes,
    ) -> Result<u64, StoreError> {
        #[derive(Deserialize)]
        struct Ack {
            seq: u64,
        }
        let permit = match &self.wire {
            Wire::Nats(nats) => Some(nats.acks.acquire().await),
            Wire::Other(_) => None,
        };
        let answer = self.ask(subject, Some(headers), payload).await;
        drop(permit);
        let answer = answer.map_err(|error| match error {
            RequestFailed::Refused(reason) => StoreError::Unsendable(reason),
            // A stream that is about to have a leader again.
            RequestFailed::NoResponders | RequestFailed::InDoubt(_) => {
                StoreError::InDoubt(error.to_string())
            }
        })?;
        match serde_json::from_slice::<Response<Ack>>(&answer.payload) {
            Ok(Response::Ok(ack)) => Ok(ack.seq),
            Ok(Response::Err { error }) => match error.error_code() {
                ErrorCode::STREAM_WRONG_LAST_SEQUENCE => Err(StoreError::Conflict),
                ErrorCode::STREAM_MESSAGE_EXCEEDS_MAXIMUM => {
                    Err(StoreError::Unsendable(error.to_string()))
                }
                // What a cluster says while another write of the same subject is on its way.
                ErrorCode::STREAM_WRONG_LAST_SEQUENCE_CONSTANT => {
                    tokio::time::sleep(IN_FLIGHT_PAUSE).await;
                    Err(StoreError::Conflict)
                }
                _ => Err(StoreError::Refused(error.to_string())),
            },
            Err(error) => Err(StoreError::Refused(error.to_string())),
        }
    }

    /// A message that nobody confirms.
    ///
    /// # Errors
    /// When the connection is closed for good.
    pub async fn tell(
        &self,
        subject: String,
        reply: Option<String>,
        payload: Bytes,
    ) -> Result<(), String> {
        let client = match &self.wire {
            Wire::Nats(nats) => &nats.client,
            Wire::Other(other) => return other.publish(subject, reply, payload),
        };
        let sent = match reply {
            None => client.publish(subject, payload).await,
            Some(reply) => client.publish_with_reply(subject, reply, payload).await,
        };
        sent.map_err(|error| error.to_string())
    }

    /// What is sent to a subject from now on. The server may learn of it only later: see
    /// [`Bus::flush`].
    ///
    /// # Errors
    /// When the connection is closed for good.
    pub async fn subscribe(&self, subject: String) -> Result<Subscription, String> {
        match &self.wire {
            Wire::Nats(nats) => {
                let subscribed = nats.client.subscribe(subject).await;
                let subscribed = subscribed.map_err(|error| error.to_string());
                subscribed.map(Subscription::Nats)
            }
            Wire::Other(other) => other.subscribe(subject).map(Subscription::Other),
        }
    }

    /// Waits until the server was sent what was said so far.
    ///
    /// # Errors
    /// When the connection is closed for good.
    pub async fn flush(&self) -> Result<(), String> {
        match &self.wire {
            Wire::Nats(nats) => {
                let flushed = nats.client.flush().await;
                flushed.map_err(|error| error.to_string())
            }
            Wire::Other(_) => Ok(()),
        }
    }

    /// A subject that nobody else listens to.
    #[must_use]
    pub fn new_inbox(&self) -> String {
        match &self.wire {
            Wire::Nats(nats) => nats.client.new_inbox(),
            Wire::Other(other) => other.inbox(),
        }
    }

    /// Now, by this host's clock.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        match &self.wire {
            Wire::Nats(_) => Timestamp::now(),
            Wire::Other(other) => other.now(),
        }
    }

    /// Time since the host booted, suspends included.
    #[must_use]
    pub fn boot_time(&self) -> Duration {
        match &self.wire {
            Wire::Nats(_) => crate::lease::boot_time(),
            Wire::Other(other) => other.boot_time(),
        }
    }

    /// A number from 0 to below 1, to spread things out by.
    #[must_use]
    pub fn random(&self) -> f64 {
        match &self.wire {
            Wire::Nats(_) => rand::rng().random(),
            Wire::Other(other) => other.random(),
        }
    }

    /// The mark of one more start of this process.
    #[must_use]
    pub fn new_boot(&self) -> BootId {
        match &self.wire {
            Wire::Nats(_) => BootId::now_v7(),
            Wire::Other(other) => other.new_boot(),
        }
    }

    /// The future as a task of this process: every task is spawned through this, so that a
    /// simulated process can stand still, or die, as a whole.
    pub fn within<F>(&self, future: F) -> impl Future<Output = F::Output> + Send + use<F>
    where
        F: Future + Send + 'static,
    {
        let other = match &self.wire {
            Wire::Nats(_) => return Either::Left(future),
            Wire::Other(other) => Arc::clone(other),
        };
        let mut task = Some(Box::pin(future));
        Either::Right(poll_fn(move |context| match other.passage(context) {
            Passage::Open => match &mut task {
                Some(task) => task.as_mut().poll(context),
                None => Poll::Pending,
            },
            Passage::Frozen => Poll::Pending,
            Passage::Dead => {
                task = None;
                Poll::Pending
            }
        }))
    }
}

/// The status of an answer that is no message; none for a message.
pub(crate) fn status(message: &Message) -> Option<u16> {
    message.status.as_ref().map(StatusCode::as_u16)
}
