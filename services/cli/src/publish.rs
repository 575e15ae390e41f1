//! Publishing a job as any NATS client would: to its queue's subject, until the stream says that it
//! has it.

use crate::exit::{Failure, chain};
use async_nats::jetstream::{
    context::PublishErrorKind, message::PublishMessage, publish::PublishAck,
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
        let message = PublishMessage::build()
            .payload(job.payload.clone())
            .message_id(job.id.as_str());
        let js = bus.jetstream();
        let acked = match js.send_publish(job.subject.clone(), message).await {
            Ok(ack) => ack.await,
            Err(error) => Err(error),
        };
        tries -= 1;
        let error = match acked {
            Ok(ack) => return Ok(ack),
            Err(error) => error,
        };
        match error.kind() {
            PublishErrorKind::TimedOut | PublishErrorKind::BrokenPipe if tries > 0 => {}
            PublishErrorKind::TimedOut | PublishErrorKind::BrokenPipe => {
                return Err(Failure::unreachable(format!(
                    "no word whether the job was taken: {error}"
                ))
                .hint(format!(
                    "submit it again with --id {}: it runs once",
                    job.id
                )));
            }
            PublishErrorKind::StreamNotFound => {
                return Err(
                    Failure::unreachable(format!("no stream takes {}", job.subject))
                        .hint("`virtbus setup` makes the streams"),
                );
            }
            PublishErrorKind::Other
            | PublishErrorKind::WrongLastMessageId
            | PublishErrorKind::WrongLastSequence
            | PublishErrorKind::MaxAckPending
            | PublishErrorKind::MaxPayloadExceeded => return Err(refused(&error)),
        }
    }
}

fn refused(error: &async_nats::jetstream::context::PublishError) -> Failure {
    let reason = chain(error);
    let mut failure = Failure::failed(format!("the job was refused: {reason}"));
    // The server's words for discard_new_per_subject and for a full stream.
    if reason.contains("maximum messages") || reason.contains("maximum bytes") {
        failure.code = "queue.full".to_owned();
    }
    failure
}
