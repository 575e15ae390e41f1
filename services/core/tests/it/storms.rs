//! Many changes, cancels and claims of the same jobs at once.

use crate::{
    stack::{Stack, until},
    worker,
};
use futures_util::{StreamExt as _, stream};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
};
use virtbus_testbed::watch::sequence_of;
use virtbus_wire::{Class, Record, StateName, protocol::delivery::GENERATION_HEADER};

const LOW: &str = "storage.default.low";
/// Jobs of the storm.
const JOBS: usize = 60;
/// Requests under way at the same time.
const AT_ONCE: usize = 48;
/// Of so many jobs each round cancels one.
const CANCELLED: usize = 12;
/// Of so many jobs one lasts for longer than the storm.
const LASTING: usize = 10;
/// How long such a job lasts, and any other.
const MILLIS: [u64; 2] = [600_000, 20];
/// One that lasts and isn't cancelled before the last round.
const STAYS: usize = JOBS - 1;
/// Rounds before the last.
const ROUNDS: usize = 3;
/// What must come of changes and cancels; of those that come before any worker, the first two.
const OUTCOMES: [&str; 4] = ["changed", "cancelled", "cancelling", "already_started"];

/// What was answered about one job.
#[derive(Debug, Default)]
struct Answers {
    /// Generation and queue of the last change that was confirmed.
    moved: Option<(u64, String)>,
    cancels: Vec<String>,
}

/// A request about a job.
type Ask = (usize, &'static str, Value);

/// The requests of one round: each job is moved to and fro, some are cancelled too.
fn round(round: usize) -> Vec<Ask> {
    let mut asks = Vec::new();
    for number in 0..JOBS {
        let id = format!("s{number}");
        for priority in ["high", "low", "default"] {
            let ask = json!({"id": id, "priority": priority});
            asks.push((number, "virtbus.jobs.priority", ask));
        }
        // Those that last are cancelled too, one after the other.
        let turn = number + number / LASTING + round;
        if number != STAYS && turn.is_multiple_of(CANCELLED) {
            asks.push((number, "virtbus.jobs.cancel", json!({"id": id})));
        }
    }
    asks
}

fn lasts(number: usize) -> bool {
    number % LASTING == LASTING - 1
}

/// A storm over a stack.
struct Storm<'a> {
    stack: &'a Stack,
    answers: Vec<Answers>,
    outcomes: BTreeSet<String>,
    worker: Option<worker::Running>,
}

impl Storm<'_> {
    /// Asks many at once. A worker comes in the midst of it, once something was changed and
    /// something cancelled that nobody could have begun.
    async fn ask(&mut self, asks: Vec<Ask>) {
        let stack = self.stack;
        let asking = asks.into_iter().map(async |(number, subject, ask)| {
            let answer: Value = stack.ask(subject, &ask).await.unwrap();
            (number, subject.ends_with("cancel"), answer)
        });
        let mut asking = stream::iter(asking).buffer_unordered(AT_ONCE);
        while let Some((number, is_cancel, answer)) = asking.next().await {
            self.note(number, is_cancel, &answer);
            if self.worker.is_none() && self.has(&OUTCOMES[..2]) {
                self.worker = Some(worker::start(stack, Class::Storage));
            }
        }
    }

    fn has(&self, outcomes: &[&str]) -> bool {
        let mut outcomes = outcomes.iter();
        outcomes.all(|outcome| self.outcomes.contains(*outcome))
    }

    fn note(&mut self, number: usize, is_cancel: bool, answer: &Value) {
        let about = &mut self.answers[number];
        let outcome = answer["outcome"].as_str().unwrap().to_owned();
        self.outcomes.insert(outcome.clone());
        if is_cancel {
            about.cancels.push(outcome);
        } else if let Some(generation) = answer["job"]["generation"].as_u64() {
            let queue = answer["job"]["queue"].as_str().unwrap().to_owned();
            let later = about.moved.take().filter(|(last, _)| *last > generation);
            about.moved = later.or(Some((generation, queue)));
        }
    }
}

async fn ended(stack: &Stack, number: usize) -> Record {
    let id = format!("s{number}").parse().unwrap();
    until("the end", async || {
        let found = stack.jobs.get_latest(&id).await;
        match found.map_err(|error| error.to_string())? {
            Some(entry) if entry.value.state.name().is_final() => Ok(entry.value),
            other => Err(format!("{other:?}")),
        }
    })
    .await
}

/// Queue and generation of every message that was published, by its sequence.
type Published = Arc<Mutex<BTreeMap<u64, (String, u64)>>>;

/// Sees what is published from here on.
async fn published(stack: &Stack) -> Published {
    let published = Published::default();
    let client = stack.client();
    let mut seen = client.subscribe("submitted.storage.>").await.unwrap();
    client.flush().await.unwrap();
    let noted = Arc::clone(&published);
    tokio::spawn(async move {
        while let Some(message) = seen.next().await {
            let headers = message.headers.unwrap();
            let generation = headers.get(GENERATION_HEADER);
            let generation = generation.map_or(1, |text| text.as_str().parse().unwrap());
            let queue = message.subject.strip_prefix("submitted.").unwrap();
            let mut noted = noted.lock().unwrap_or_else(PoisonError::into_inner);
            noted.insert(sequence_of(&headers), (queue.to_owned(), generation));
        }
    });
    published
}

/// A job that was begun was so with the message that stood for it: on its queue, of its
/// generation.
async fn check_claim(record: &Record, published: &Published) {
    let Some(seq) = record.seq else {
        return assert_eq!(record.claim, 0, "{record:?}");
    };
    let (queue, generation) = until("what was published", async || {
        let published = published.lock().unwrap_or_else(PoisonError::into_inner);
        published.get(&seq).cloned().ok_or(seq)
    })
    .await;
    let expected = (record.queue.to_string(), record.generation);
    assert_eq!(
        (queue, generation),
        expected,
        "claimed with {seq}: {record:?}"
    );
}

fn check(record: &Record, answers: &Answers) {
    let told = format!("{answers:?} {record:?}");
    assert!(record.attempt <= 1, "it ran once: {told}");
    if let Some((_, queue)) = &answers.moved {
        assert_eq!(
            record.queue.to_string(),
            *queue,
            "started unmodified: {told}"
        );
    }
    let (state, has_cancel) = (record.state.name(), |outcome: &str| {
        answers.cancels.iter().any(|told| told == outcome)
    });
    for outcome in &answers.cancels {
        match outcome.as_str() {
            "cancelled" => {
                assert_eq!((state, record.claim), (StateName::Cancelled, 0), "{told}");
            }
            "cancelling" => assert_eq!(state, StateName::Cancelled, "{told}"),
            "too_late" => assert_eq!(state, StateName::Succeeded, "{told}"),
            "already_finished" => {
                let was_cancelled = has_cancel("cancelled") || has_cancel("cancelling");
                assert_eq!(state == StateName::Cancelled, was_cancelled, "{told}");
            }
            other => panic!("{other}: {told}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_storm_of_changes_cancels_and_claims_leaves_each_job_as_it_was_answered() {
    let (stack, _core) = Stack::start().await;
    let _second = stack.core("core-b");
    let published = published(&stack).await;
    for number in 0..JOBS {
        let millis = MILLIS[usize::from(!lasts(number))];
        let job =
            json!({"id": format!("s{number}"), "task": "ping", "params": {"sleep_ms": millis}});
        stack.publish(LOW, job.to_string()).await;
    }
    let mut storm = Storm {
        stack: &stack,
        answers: (0..JOBS).map(|_| Answers::default()).collect(),
        outcomes: BTreeSet::new(),
        worker: None,
    };
    for number in 0..ROUNDS {
        storm.ask(round(number)).await;
    }
    stack.record(&format!("s{STAYS}"), StateName::Running).await;
    storm.ask(round(ROUNDS)).await;
    let lasting = (0..JOBS).filter(|number| lasts(*number));
    let cancels = lasting.map(|number| {
        let ask = json!({"id": format!("s{number}")});
        (number, "virtbus.jobs.cancel", ask)
    });
    storm.ask(cancels.collect()).await;
    assert!(storm.has(&OUTCOMES), "only {:?}", storm.outcomes);
    for (number, answers) in storm.answers.iter().enumerate() {
        let record = ended(&stack, number).await;
        check(&record, answers);
        check_claim(&record, &published).await;
    }
    stack.empty("STORAGE").await;
    storm.worker.unwrap().end().await;
}
