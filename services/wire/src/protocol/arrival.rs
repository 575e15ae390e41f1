//! What a message that lies in a queue is: whose job, and what its record begins as.
//!
//! Whoever sees a message first makes the record, core or a worker; both ask here, so that the
//! same message always becomes the same job. Creating is a compare-and-set: losing it is fine.

use crate::{
    envelope::{Envelope, LABEL_BYTES_MAX, PARAMS_BYTES_MAX},
    error::{Code, JobError},
    id::JobId,
    record::{Address, Dedupe, Record, Trace},
    state::Event,
    task::Task,
    time::Timestamp,
};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

/// The header that a publisher may name the job with.
pub const MSG_ID_HEADER: &str = "Nats-Msg-Id";
/// The header with the publisher's trace context.
pub const TRACE_HEADER: &str = "traceparent";
/// The longest id of an `upload`: `-finish` is appended to it.
pub const UPLOAD_ID_BYTES_MAX: usize = 113;
/// The longest trace context that is carried on.
const TRACE_BYTES_MAX: usize = 256;

/// A message as it lies in its stream.
#[derive(Debug, Clone, Copy)]
pub struct Arrival<'a> {
    /// Its subject.
    pub subject: &'a str,
    /// Its content.
    pub payload: &'a [u8],
    /// Its headers.
    pub headers: Headers<'a>,
    /// The stream it's in.
    pub stream: &'a str,
    /// Its sequence there.
    pub seq: u64,
    /// When the server took it.
    pub time: Timestamp,
}

/// The headers that matter.
#[derive(Debug, Clone, Copy, Default)]
pub struct Headers<'a> {
    /// `Nats-Msg-Id`
    pub msg_id: Option<&'a str>,
    /// `Virtbus-Job`, of messages that the system published.
    pub job: Option<&'a str>,
    /// `Virtbus-Generation`, likewise.
    pub generation: Option<&'a str>,
    /// `traceparent`
    pub traceparent: Option<&'a str>,
}

/// What a message is.
#[derive(Debug, Clone, PartialEq)]
pub enum Arrived {
    /// A publication of a known job by the system: everything is in its record.
    System {
        /// The job.
        id: JobId,
        /// Which publication, 2 or more.
        generation: u64,
    },
    /// A publisher's own message.
    Job {
        /// The job.
        id: JobId,
        /// Its first record: `queued`, or `failed` when it can't be one.
        record: Result<Box<Record>, Box<Record>>,
        /// Whether the message is to be copied to the dead letters.
        dlq: bool,
    },
}

/// Which life of its stream a message belongs to: a stream that was made anew counts from 1 again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Life {
    /// The first one, as far as we know.
    First,
    /// A record with the name that its sequence gives is there and isn't this message's.
    Later,
}

impl Arrival<'_> {
    /// Whether this message brought that record.
    #[must_use]
    pub fn brought(&self, record: &Record) -> bool {
        record.dedupe.as_ref() == Some(&self.dedupe())
    }

    /// Which life this message is of, by the record found under the id it got as of the first:
    /// `Later` asks for [`arrive`] once more.
    #[must_use]
    pub fn life(&self, found: &Record) -> Life {
        if found.id == self.numbered(Life::First) && !self.brought(found) {
            Life::Later
        } else {
            Life::First
        }
    }

    /// `storage-812`, and in a later life `storage-812-6740c5f8`.
    #[must_use]
    pub fn numbered(&self, life: Life) -> JobId {
        let name = format!("{}-{}", self.stream.to_ascii_lowercase(), self.seq);
        let seconds = self.time.as_millis().div_euclid(1000);
        let name = match life {
            Life::First => name,
            Life::Later => format!("{name}-{:08x}", seconds & 0xffff_ffff),
        };
        // Names of streams are ours and are ids; should one not be, a new id is as good.
        name.parse().unwrap_or_default()
    }

    fn dedupe(&self) -> Dedupe {
        Dedupe {
            stream: self.stream.to_owned(),
            seq: self.seq,
            time: self.time,
        }
    }
}

/// Says what a message is.
#[must_use]
pub fn arrive(arrival: &Arrival<'_>, life: Life, now: Timestamp) -> Arrived {
    match publication(arrival) {
        Ok(Some((id, generation))) => return Arrived::System { id, generation },
        Ok(None) => {}
        Err(error) => return malformed(arrival, life, now, error),
    }
    let (envelope, checked) = match Envelope::decode(arrival.payload) {
        Ok(envelope) => {
            let checked = envelope.check();
            (envelope, checked)
        }
        Err(error) if error.code == Code::JobMalformed => {
            return malformed(arrival, life, now, error);
        }
        // A single wrong field that isn't the id: the rest still says whose job it is.
        Err(error) => (salvage(arrival.payload), Err(error)),
    };
    let id = match chosen_id(arrival, &envelope) {
        Ok(chosen) => chosen.unwrap_or_else(|| arrival.numbered(life)),
        Err(error) => return malformed(arrival, life, now, error),
    };
    let address = Address::from(arrival.subject.to_owned());
    let task = checked.and_then(|()| {
        let queue = address.queue().ok_or_else(|| unknown_queue(&address))?;
        Task::decode(queue.class(), &envelope.task, &envelope.params)
    });
    let expired = envelope.expires_at.is_some_and(|end| end <= now);
    let refused = match &task {
        Ok(_) => match check_against_id(&envelope, &id) {
            Ok(()) => expired.then(expired_error),
            Err(error) => Some(error),
        },
        Err(error) => Some(error.clone()),
    };
    let kept = match refused {
        None => envelope,
        Some(_) => trimmed(envelope),
    };
    let mut record = first_record(arrival, id.clone(), kept, address);
    if let Ok(task) = task {
        // Also of a job that is refused: somebody may have it run again, and then it locks these.
        record.params = task.params();
        record.objects = task.objects().iter().map(ToString::to_string).collect();
    }
    let record = match refused {
        None => Ok(Box::new(record)),
        Some(error) => Err(failed(record, error, now)),
    };
    Arrived::Job {
        id,
        record,
        dlq: false,
    }
}

/// That nobody registered what the queue names, or that the subject is none.
#[must_use]
pub fn unknown_queue(address: &Address) -> JobError {
    let message = match address {
        Address::Queue(queue) => format!("nobody registered what {queue} names"),
        Address::Unknown(_) => "the subject is no queue".to_owned(),
    };
    JobError::new(Code::QueueUnknown, message).with("queue", address.to_string())
}

/// That the time until which the work had to begin is over.
#[must_use]
pub fn expired_error() -> JobError {
    JobError::new(Code::JobExpired, "the work did not begin before expires_at")
}

/// A publication by the system, from its headers.
fn publication(arrival: &Arrival<'_>) -> Result<Option<(JobId, u64)>, JobError> {
    let (job, generation) = (arrival.headers.job, arrival.headers.generation);
    if job.is_none() && generation.is_none() {
        return Ok(None);
    }
    let wrong = |what: &str| {
        JobError::new(Code::JobMalformed, format!("the header {what}")).with("field", "headers")
    };
    let id = job.and_then(|id| id.parse::<JobId>().ok());
    let id = id.ok_or_else(|| wrong("Virtbus-Job must be a job id"))?;
    match generation.and_then(|text| text.parse::<u64>().ok()) {
        Some(0) | None => Err(wrong("Virtbus-Generation must be a number from 1")),
        Some(1) => Ok(None),
        Some(generation) => Ok(Some((id, generation))),
    }
}

/// The id that the publisher chose.
fn chosen_id(arrival: &Arrival<'_>, envelope: &Envelope) -> Result<Option<JobId>, JobError> {
    let refuse = |field: &str, message: String| {
        let message = format!("{field}: {message}");
        JobError::new(Code::JobMalformed, message).with("field", field)
    };
    let (field, id) = match (&envelope.id, arrival.headers.msg_id) {
        (Some(id), _) => ("id", id.clone()),
        (None, Some(text)) => {
            let id = text.parse::<JobId>();
            (
                MSG_ID_HEADER,
                id.map_err(|error| refuse(MSG_ID_HEADER, error.to_string()))?,
            )
        }
        (None, None) => return Ok(None),
    };
    if id.is_publishable() {
        Ok(Some(id))
    } else {
        Err(refuse(field, "is of the system's own kind".to_owned()))
    }
}

/// Checks what of an envelope depends on the job's id.
///
/// # Errors
/// `job.invalid_params`, naming the field.
pub fn check_against_id(envelope: &Envelope, id: &JobId) -> Result<(), JobError> {
    if envelope
        .after
        .iter()
        .any(|dependency| dependency.job == *id)
    {
        return Err(JobError::invalid_params(
            "after",
            "a job can't come after itself",
        ));
    }
    if envelope.task == "upload" && id.as_str().len() > UPLOAD_ID_BYTES_MAX {
        let message = format!("an upload's must have at most {UPLOAD_ID_BYTES_MAX} characters");
        return Err(JobError::invalid_params("id", message));
    }
    Ok(())
}

fn first_record(arrival: &Arrival<'_>, id: JobId, job: Envelope, queue: Address) -> Record {
    let mut record = Record::new(id, job, queue, arrival.time);
    record.trace = arrival.headers.traceparent.and_then(trace);
    record.dedupe = Some(arrival.dedupe());
    record
}

/// The publisher's trace context from its header; none when it can't be one.
#[must_use]
pub fn trace(header: &str) -> Option<Trace> {
    let fits = header.len() <= TRACE_BYTES_MAX && header.bytes().all(|b| b.is_ascii_graphic());
    fits.then(|| Trace {
        traceparent: header.to_owned(),
    })
}

/// What can't be decoded: a failed job under the message's own number, and a dead letter.
fn malformed(arrival: &Arrival<'_>, life: Life, now: Timestamp, error: JobError) -> Arrived {
    let id = arrival.numbered(life);
    let address = Address::from(arrival.subject.to_owned());
    let record = first_record(arrival, id.clone(), salvage(arrival.payload), address);
    Arrived::Job {
        id,
        record: Err(failed(record, error, now)),
        dlq: true,
    }
}

fn failed(record: Record, error: JobError, now: Timestamp) -> Box<Record> {
    // A record that was just made is queued, and a queued one can fail.
    let failed = record.apply(Event::Fail(error), now);
    Box::new(failed.unwrap_or(record))
}

/// What can be read of a job whose envelope as a whole can't: enough to find it by.
fn salvage(payload: &[u8]) -> Envelope {
    let fields: Map<String, Value> = serde_json::from_slice(payload).unwrap_or_default();
    let task = fields.get("task").and_then(Value::as_str);
    let named = |task: &&str| (1..=LABEL_BYTES_MAX).contains(&task.len());
    let mut job = Envelope::bare(task.filter(named).unwrap_or("unknown"));
    job.params = fields.get("params").cloned().unwrap_or_default();
    job.id = readable(&fields, "id");
    job.user = readable(&fields, "user");
    job.tenant = readable(&fields, "tenant");
    trimmed(job)
}

fn readable<T: DeserializeOwned>(fields: &Map<String, Value>, name: &str) -> Option<T> {
    T::deserialize(fields.get(name)?).ok()
}

/// A job that can't run, without what would make its record large or a later retry impossible.
fn trimmed(job: Envelope) -> Envelope {
    let mut kept = if job.check().is_ok() {
        job.clone()
    } else {
        Envelope {
            id: job.id.clone(),
            user: job.user.clone(),
            tenant: job.tenant.clone(),
            ..Envelope::bare(&job.task)
        }
    };
    let fits = job.params.is_object() && job.params_bytes() <= PARAMS_BYTES_MAX;
    kept.params = if fits {
        job.params
    } else {
        Value::Object(Map::new())
    };
    kept
}
