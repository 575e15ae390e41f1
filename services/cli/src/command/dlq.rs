//! `virtbus dlq`: messages nobody could do, and how they come back.
//!
//! A letter is a copy. Its job has a record, which is over: requeueing it runs that job once more
//! under its id. Where the record is gone by now, or where the message couldn't even be read, the
//! message itself is published again.

use super::retry;
use crate::{
    exit::{Exit, Failure},
    jobs,
    output::{Cell, Output},
    publish::{self, Publication},
    screen,
};
use serde_json::{Value, json};
use std::collections::VecDeque;
use virtbus_bus::{Bus, BusError, Stored};
use virtbus_wire::{Code, JobId, protocol::delivery::JOB_HEADER};

/// The stream of the letters.
const STREAM: &str = "DLQ";
/// What their subjects begin with.
const PREFIX: &str = "dlq.";
/// Letters shown when nothing else is said.
const LIMIT: usize = 100;

/// List, show or requeue dead letters: messages nobody could do
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// The newest letters
    List {
        /// Only those with this reason, such as worker.lost
        #[arg(long, value_name = "CODE")]
        reason: Option<String>,
        /// How many at most
        #[arg(long, value_name = "N", default_value_t = LIMIT)]
        limit: usize,
    },
    /// One letter, whole
    Show {
        /// Its number in the list
        number: u64,
    },
    /// Run the jobs of letters once more
    Requeue {
        /// Their numbers in the list
        #[arg(required = true)]
        numbers: Vec<u64>,
    },
}

/// A dead letter.
struct Letter {
    stored: Stored,
    /// The queue its message came on.
    queue: String,
    reason: String,
    /// The job, as far as it can be told.
    job: Option<JobId>,
    task: Option<String>,
}

impl Letter {
    fn new(stored: Stored) -> Self {
        let header = |name: &str| stored.header(name).map(str::to_owned);
        let body: Value = serde_json::from_slice(&stored.payload).unwrap_or_default();
        let text = |name: &str| body.get(name).and_then(Value::as_str).map(str::to_owned);
        let reason = header("Virtbus-Reason").unwrap_or_default();
        let numbered = || {
            let stream = header("Virtbus-Stream")?.to_lowercase();
            Some(format!("{stream}-{}", header("Virtbus-Sequence")?))
        };
        let number = numbered();
        let job = if is_malformed(&reason) {
            // What can't be read runs under its number, whatever it says of itself.
            let is_its = |id: &String| number.as_ref().is_some_and(|number| id.starts_with(number));
            header(JOB_HEADER).filter(is_its).or(number)
        } else {
            header(JOB_HEADER).or_else(|| text("id")).or(number)
        };
        let queue = stored.subject.strip_prefix(PREFIX);
        Self {
            queue: queue.unwrap_or_default().to_owned(),
            job: job.and_then(|id| id.parse().ok()),
            task: text("task"),
            reason,
            stored,
        }
    }

    fn to_json(&self) -> Value {
        let header = |name: &str| self.stored.header(name);
        json!({"number": self.stored.seq, "at": self.stored.time, "reason": self.reason,
            "queue": self.queue, "job": self.job, "task": self.task,
            "stream": header("Virtbus-Stream"), "seq": header("Virtbus-Sequence")})
    }
}

fn is_malformed(reason: &str) -> bool {
    reason == Code::JobMalformed.as_str()
}

pub(crate) async fn run(args: &Args, bus: &Bus, output: Output) -> Result<Exit, Failure> {
    match &args.action {
        Action::List { reason, limit } => list(bus, output, reason.as_deref(), *limit).await,
        Action::Show { number } => show(bus, output, *number).await,
        Action::Requeue { numbers } => requeue(bus, output, numbers).await,
    }
}

async fn list(
    bus: &Bus,
    output: Output,
    reason: Option<&str>,
    limit: usize,
) -> Result<Exit, Failure> {
    let mut newest = VecDeque::new();
    let mut from = Some(1);
    while let Some(number) = from {
        let page = bus.browse(STREAM, ">", number).await.map_err(no_stream)?;
        for stored in page.items {
            let letter = Letter::new(stored);
            if reason.is_some_and(|reason| reason != letter.reason) {
                continue;
            }
            newest.push_front(letter);
            newest.truncate(limit);
        }
        from = page.next;
    }
    if output.json {
        let letters: Vec<Value> = newest.iter().map(Letter::to_json).collect();
        output.value(&json!({"letters": letters}))?;
        return Ok(Exit::Done);
    }
    let rows: Vec<Vec<Cell>> = newest.iter().map(row).collect();
    output.table(&["NUMBER", "AT", "REASON", "QUEUE", "TASK", "JOB"], &rows)?;
    Ok(Exit::Done)
}

fn row(letter: &Letter) -> Vec<Cell> {
    let job = letter.job.as_ref().map(JobId::to_string);
    vec![
        letter.stored.seq.to_string().into(),
        letter.stored.time.to_string().into(),
        letter.reason.as_str().into(),
        letter.queue.as_str().into(),
        letter.task.clone().unwrap_or_default().into(),
        job.unwrap_or_default().into(),
    ]
}

fn no_stream(error: BusError) -> Failure {
    Failure::from(error).hint("`virtbus setup` makes the streams")
}

async fn find(bus: &Bus, number: u64) -> Result<Letter, Failure> {
    let found = bus.message(STREAM, number).await.map_err(no_stream)?;
    let nothing = || Failure::not_found(format!("no dead letter {number}"));
    found.map(Letter::new).ok_or_else(nothing)
}

async fn show(bus: &Bus, output: Output, number: u64) -> Result<Exit, Failure> {
    let letter = find(bus, number).await?;
    let payload = String::from_utf8_lossy(&letter.stored.payload);
    if output.json {
        let mut json = letter.to_json();
        let body = serde_json::from_slice::<Value>(&letter.stored.payload);
        json["message"] = body.unwrap_or_else(|_| json!(payload));
        output.value(&json)?;
        return Ok(Exit::Done);
    }
    let json = letter.to_json();
    let names = [
        "number", "at", "reason", "queue", "task", "job", "stream", "seq",
    ];
    let fields = names.map(|name| (name, screen::plain(&json[name]).into()));
    output.fields(&fields)?;
    output.text("")?;
    output.text(&payload)?;
    Ok(Exit::Done)
}

async fn requeue(bus: &Bus, output: Output, numbers: &[u64]) -> Result<Exit, Failure> {
    let mut exit = Exit::Done;
    let mut told = Vec::new();
    for number in numbers {
        let letter = find(bus, *number).await?;
        let came = requeue_one(bus, &letter).await?;
        if came == Requeued::NotOver {
            exit = exit.max(Exit::Conflict);
        } else {
            // It has served its turn: what comes of the job now writes a letter of its own.
            bus.delete_message(STREAM, *number).await?;
        }
        let said = came.to_string();
        if !output.json {
            output.text(&format!("{number}  {said}"))?;
        }
        told.push(json!({"number": number, "outcome": said}));
    }
    if output.json {
        output.value(&json!({"letters": told}))?;
    }
    Ok(exit)
}

/// What came of a letter.
#[derive(Debug, PartialEq, Eq)]
enum Requeued {
    /// Its job runs once more, under its id.
    Retried(JobId),
    /// Its message lies in its queue again.
    Published(u64),
    /// Its job isn't over: somebody did it already.
    NotOver,
}

impl std::fmt::Display for Requeued {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Retried(job) => write!(f, "job {job} runs once more"),
            Self::Published(seq) => write!(f, "published again as message {seq}"),
            Self::NotOver => f.write_str("its job is not over"),
        }
    }
}

async fn requeue_one(bus: &Bus, letter: &Letter) -> Result<Requeued, Failure> {
    if !is_malformed(&letter.reason)
        && let Some(job) = &letter.job
        && jobs::bucket(bus).get_latest(job.as_str()).await?.is_some()
    {
        match retry::retry(bus, job).await?.as_str() {
            "queued" => return Ok(Requeued::Retried(job.clone())),
            "not_final" => return Ok(Requeued::NotOver),
            // Its record ended just now.
            _ => {}
        }
    }
    let job = Publication {
        subject: letter.queue.clone(),
        id: letter.job.clone().unwrap_or_default(),
        payload: letter.stored.payload.clone(),
    };
    // An id of the system's own kind may not be chosen: that job gets a new one.
    let is_named =
        !is_malformed(&letter.reason) && letter.job.as_ref().is_some_and(JobId::is_publishable);
    let ack = match is_named {
        true => publish::publish(bus, &job).await?,
        false => publish::unnamed(bus, &job).await?,
    };
    Ok(Requeued::Published(ack.sequence))
}
