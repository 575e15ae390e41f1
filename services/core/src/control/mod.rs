//! The requests `virtbus.>`: a NATS micro service named `virtbus`, shown by `nats micro ls`.
//!
//! Every core answers; the server gives each request to one of them.

mod change;
mod deregister;
mod explain;
mod fence;
pub(crate) mod fenced;
mod hypervisors;
mod jobs;
mod lines;
mod messages;
mod pause;
mod placement;
mod places;
mod queues;
mod submit;
mod things;
mod wait;
mod workers;

use crate::service::Stores;
use async_nats::{
    HeaderMap, Message,
    service::{NATS_SERVICE_ERROR, NATS_SERVICE_ERROR_CODE, Request, ServiceExt as _},
};
use bytes::Bytes;
use futures_util::{StreamExt as _, stream::SelectAll};
use serde::{Deserialize, Serialize};
use std::{sync::Arc, time::Duration};
use tokio::{sync::Semaphore, time};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use virtbus_bus::{BusError, WriteError, changes};
use virtbus_wire::{
    Code, JobError,
    control::{Operation, Refusal, Submission, decode, status},
    protocol::arrival::{self, TRACE_HEADER},
};

/// The name of the service.
const NAME: &str = "virtbus";
/// Requests answered at the same time; further ones wait in the connection's buffer.
const AT_ONCE: usize = 64;
/// Requests that wait for a job at the same time; further ones are refused.
const WAITS_MAX: usize = 1024;
/// The most bytes of the caller's name.
const CALLER_BYTES_MAX: usize = 128;
/// The wait before the service is announced again after a failure.
const AGAIN: Duration = Duration::from_secs(1);

/// Who asks: services that act for people say for whom.
#[derive(Debug, Default, Deserialize)]
struct Caller {
    #[serde(default)]
    by: Option<String>,
}

impl Caller {
    fn of(body: &[u8]) -> Result<Self, JobError> {
        let caller: Self = decode(body)?;
        let is_long = |by: &String| by.len() > CALLER_BYTES_MAX;
        if caller.by.as_ref().is_some_and(is_long) {
            let message = format!("must be at most {CALLER_BYTES_MAX} bytes");
            return Err(JobError::invalid_params("by", message));
        }
        Ok(caller)
    }
}

/// Why a request wasn't done.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failed {
    /// The request is at fault, or what it asks for isn't there.
    #[error(transparent)]
    Refused(#[from] JobError),
    /// The server gave no usable answer.
    #[error(transparent)]
    Bus(#[from] BusError),
}

impl From<WriteError> for Failed {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::Conflict(key) => {
                let message = format!("{key} was changed by somebody else at the same time");
                Self::Refused(JobError::new(Code::Conflict, message))
            }
            WriteError::Bus(error) => Self::Bus(error),
        }
    }
}

/// Answers requests until `stop`; `state` is told whether it does.
pub async fn run(
    stores: &Stores,
    version: &str,
    stop: &CancellationToken,
    state: impl Fn(Result<(), String>),
) {
    let tasks = TaskTracker::new();
    while !stop.is_cancelled() {
        match serve(stores, version, stop, &state, &tasks).await {
            Ok(()) => {}
            Err(error) => {
                tracing::error!(%error, "control requests can't be answered");
                state(Err("control requests can't be answered".to_owned()));
                tokio::select! {
                    () = time::sleep(AGAIN) => {}
                    () = stop.cancelled() => {}
                }
            }
        }
    }
    tasks.close();
    tasks.wait().await;
}

async fn serve(
    stores: &Stores,
    version: &str,
    stop: &CancellationToken,
    state: impl Fn(Result<(), String>),
    tasks: &TaskTracker,
) -> Result<(), async_nats::Error> {
    let client = stores.bus.client();
    let builder = client
        .service_builder()
        .description("Jobs, queues and catalogue");
    let service = builder.start(NAME, version).await?;
    let mut requests = SelectAll::new();
    for &operation in Operation::ALL {
        let name = operation.subject().trim_start_matches("virtbus.");
        let builder = service.endpoint_builder().name(name.replace('.', "_"));
        let endpoint = builder.add(operation.subject()).await?;
        requests.push(endpoint.map(move |request| (operation, request)));
    }
    // An answer shows that the server knows the endpoints, as it takes what a connection sends in
    // order: whoever asks on another connection, once told that he may, must find them.
    changes::state(&stores.bus, "jobs").await?;
    state(Ok(()));
    let slots = Arc::new(Semaphore::new(AT_ONCE));
    let waits = Arc::new(Semaphore::new(WAITS_MAX));
    loop {
        let (operation, request) = tokio::select! {
            next = requests.next() => match next {
                Some(next) => next,
                None => return Err("the subscription ended".into()),
            },
            () = stop.cancelled() => break,
        };
        // Those that wait take no slot from the others.
        let slot = match operation == Operation::JobsWait {
            true => Arc::clone(&waits).try_acquire_owned().ok(),
            false => Some(Arc::clone(&slots).acquire_owned().await?),
        };
        let (stores, stop) = (stores.clone(), stop.clone());
        tasks.spawn(async move {
            match slot {
                Some(_slot) => respond(&stores, operation, &request, &stop).await,
                None => {
                    let message = "too many requests wait already";
                    let full = JobError::new(Code::QueueFull, message);
                    send(operation, &request, refusal(operation, full.into())).await;
                }
            }
        });
    }
    service.stop().await
}

async fn respond(
    stores: &Stores,
    operation: Operation,
    request: &Request,
    stop: &CancellationToken,
) {
    let answer = reply(stores, operation, &request.message, stop).await;
    send(operation, request, answer).await;
}

/// The answer to a request, an error of the contract's form included: body and headers.
pub async fn reply(
    stores: &Stores,
    operation: Operation,
    message: &Message,
    stop: &CancellationToken,
) -> (Bytes, HeaderMap) {
    let answer = answer(stores, operation, message, stop);
    let late = || {
        let message = "the request took too long; it may have had its effect";
        Failed::Refused(JobError::internal(message))
    };
    let answer = time::timeout(operation.deadline(), answer).await;
    match answer.unwrap_or_else(|_| Err(late())) {
        Ok(body) => (body, HeaderMap::new()),
        Err(failed) => refusal(operation, failed),
    }
}

async fn send(operation: Operation, request: &Request, (body, headers): (Bytes, HeaderMap)) {
    // With nobody there to read the answer it's lost, as any answer is.
    if let Err(error) = request.respond_with_headers(Ok(body), headers).await {
        tracing::debug!(%operation, %error, "an answer was not sent");
    }
}

fn refusal(operation: Operation, failed: Failed) -> (Bytes, HeaderMap) {
    let error = match failed {
        Failed::Refused(error) => {
            tracing::debug!(%operation, %error, "refused");
            error
        }
        Failed::Bus(error) => {
            tracing::warn!(%operation, %error, "not answered");
            JobError::internal("the messaging server gave no usable answer")
        }
    };
    let mut headers = HeaderMap::new();
    let line: String = error.message.chars().filter(|c| !c.is_control()).collect();
    headers.insert(NATS_SERVICE_ERROR, line.as_str());
    let code = status(error.code).to_string();
    headers.insert(NATS_SERVICE_ERROR_CODE, code.as_str());
    (encode(&Refusal { error }).unwrap_or_default(), headers)
}

async fn answer(
    stores: &Stores,
    operation: Operation,
    message: &Message,
    stop: &CancellationToken,
) -> Result<Bytes, Failed> {
    let body = &message.payload;
    match operation {
        Operation::JobsSubmit => {
            let asked = Submission::decode(body)?;
            let trace = message.headers.as_ref();
            let trace =
                trace.and_then(|headers| arrival::trace(headers.get(TRACE_HEADER)?.as_str()));
            encode(&submit::submit(stores, asked, trace).await?)
        }
        Operation::JobsGet => encode(&jobs::get(stores, decode(body)?).await?),
        Operation::JobsWait => encode(&wait::wait(stores, decode(body)?, stop).await?),
        Operation::JobsList => encode(&jobs::list(stores, decode(body)?).await?),
        Operation::JobsCancel => {
            let caller = Caller::of(body)?;
            encode(&change::cancel(stores, decode(body)?, &caller).await?)
        }
        Operation::JobsPriority => encode(&change::priority(stores, decode(body)?).await?),
        Operation::JobsRetry => encode(&change::retry(stores, decode(body)?).await?),
        Operation::JobsExplain => encode(&explain::explain(stores, decode(body)?).await?),
        Operation::QueuesList => encode(&queues::list(stores).await?),
        Operation::QueuesPause => {
            let caller = Caller::of(body)?;
            encode(&pause::pause(stores, decode(body)?, caller, true).await?)
        }
        Operation::QueuesResume => {
            let caller = Caller::of(body)?;
            encode(&pause::pause(stores, decode(body)?, caller, false).await?)
        }
        Operation::QueuesPurge => {
            let caller = Caller::of(body)?;
            encode(&pause::purge(stores, decode(body)?, caller).await?)
        }
        Operation::PoolsRegister => encode(&places::register(stores, decode(body)?).await?),
        Operation::PoolsGet => encode(&places::get(stores, decode(body)?).await?),
        Operation::PoolsList => encode(&places::list(stores).await?),
        Operation::HypervisorsList => encode(&hypervisors::list(stores).await?),
        Operation::WorkersList => encode(&workers::list(stores).await?),
        Operation::PoolsDeregister => encode(&deregister::deregister(stores, decode(body)?).await?),
        Operation::PoolsLookup => encode(&things::look_up(stores, decode(body)?).await?),
        Operation::DisksGet => encode(&things::disk(stores, decode(body)?).await?),
        Operation::DisksList => encode(&things::disks(stores, decode(body)?).await?),
        Operation::MediaGet => encode(&things::medium(stores, decode(body)?).await?),
        Operation::MediaList => encode(&things::media(stores, decode(body)?).await?),
        Operation::DomainsGet => encode(&things::domain(stores, decode(body)?).await?),
        Operation::DomainsList => encode(&things::domains(stores, decode(body)?).await?),
        Operation::WorkersDrain => {
            let caller = Caller::of(body)?;
            encode(&workers::drain(stores, decode(body)?, caller, true).await?)
        }
        Operation::WorkersUndrain => {
            let caller = Caller::of(body)?;
            encode(&workers::drain(stores, decode(body)?, caller, false).await?)
        }
        Operation::HypervisorsDrain => {
            let caller = Caller::of(body)?;
            encode(&hypervisors::drain(stores, decode(body)?, caller, true).await?)
        }
        Operation::HypervisorsUndrain => {
            let caller = Caller::of(body)?;
            encode(&hypervisors::drain(stores, decode(body)?, caller, false).await?)
        }
        Operation::HypervisorsFence => {
            let caller = Caller::of(body)?;
            encode(&fence::fence(stores, decode(body)?, caller).await?)
        }
    }
}

fn encode(answer: &impl Serialize) -> Result<Bytes, Failed> {
    let unwritable = |error: serde_json::Error| JobError::internal(error.to_string());
    Ok(serde_json::to_vec(answer).map_err(unwritable)?.into())
}
