//! Publishing a job as any NATS client would: to its queue's subject, until the stream says that it
//! has it.

use crate::exit::{Failure, chain};
use async_nats::jetstream::{
    context::{PublishError, PublishErrorKind},
    message::PublishMessage,
    publish::PublishAck,
};
use bytes::Bytes;
use virtbus_bus::Bus;
use virtbus_wire::JobId;

/// How often a publication whose acknowledgement was lost is repeated: the server drops the copy.
const PUBLISHES_MAX: u32 = 3;

/// A job ready to be published.
#[derive(Debug)]
pub(crate) struct Publication {
    pub(crate) subject: String,
    pub(crate) id: JobId,
    pub(crate) payload: Bytes,
}

/// Publishes, and waits for the stream's word that it has the job. Publishing again is safe: the
/// id is the message's, and the stream takes it once.
///
/// # Errors
/// When there is no such word, or the stream refuses the job.
pub(crate) async fn publish(bus: &Bus, job: &Publication) -> Result<PublishAck, Failure> {
    let mut tries = PUBLISHES_MAX;
    loop {
        tries -= 1;
        let error = match send(bus, job, Some(&job.id)).await {
            Ok(ack) => return Ok(ack),
            Err(error) => error,
        };
        if !is_in_doubt(&error) {
            return Err(failed(&job.subject, &error));
        }
        if tries == 0 {
            let hint = format!("submit it again with --id {}: it runs once", job.id);
            return Err(failed(&job.subject, &error).hint(hint));
        }
    }
}

/// Publishes a message once more as it was, under a number of its own: one that names no job, or
/// names it wrongly.
///
/// # Errors
/// As [`publish`]; the message may have been taken all the same.
pub(crate) async fn unnamed(bus: &Bus, job: &Publication) -> Result<PublishAck, Failure> {
    let sent = send(bus, job, None).await;
    sent.map_err(|error| failed(&job.subject, &error))
}

async fn send(
    bus: &Bus,
    job: &Publication,
    name: Option<&JobId>,
) -> Result<PublishAck, PublishError> {
    let mut message = PublishMessage::build().payload(job.payload.clone());
    if let Some(name) = name {
        message = message.message_id(name.as_str());
    }
    let js = bus.jetstream();
    js.send_publish(job.subject.clone(), message).await?.await
}

fn is_in_doubt(error: &PublishError) -> bool {
    matches!(
        error.kind(),
        PublishErrorKind::TimedOut | PublishErrorKind::BrokenPipe
    )
}

fn failed(subject: &str, error: &PublishError) -> Failure {
    match error.kind() {
        PublishErrorKind::TimedOut | PublishErrorKind::BrokenPipe => {
            Failure::unreachable(format!("no word whether the job was taken: {error}"))
        }
        PublishErrorKind::StreamNotFound => {
            Failure::unreachable(format!("no stream takes {subject}"))
                .hint("`virtbus setup` makes the streams")
        }
        PublishErrorKind::Other
        | PublishErrorKind::WrongLastMessageId
        | PublishErrorKind::WrongLastSequence
        | PublishErrorKind::MaxAckPending
        | PublishErrorKind::MaxPayloadExceeded => refused(error),
    }
}

fn refused(error: &PublishError) -> Failure {
    let reason = chain(error);
    let mut failure = Failure::failed(format!("the job was refused: {reason}"));
    // The server's words for discard_new_per_subject and for a full stream.
    if reason.contains("maximum messages") || reason.contains("maximum bytes") {
        failure.code = "queue.full".to_owned();
    }
    failure
}
