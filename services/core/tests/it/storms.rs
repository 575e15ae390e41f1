//! Many changes, cancels and claims of the same jobs at once.

use crate::{
    stack::{Stack, until},
    worker,
};
use futures_util::{StreamExt as _, stream};
use serde_json::{Value, json};
use virtbus_wire::{Class, Record, StateName};

const LOW: &str = "storage.default.low";
/// Jobs of the storm.
const JOBS: usize = 60;
/// Requests under way at the same time.
const AT_ONCE: usize = 48;

/// What was answered about one job.
#[derive(Debug, Default)]
struct Answers {
    /// Generation and queue of the last change that was confirmed.
    moved: Option<(u64, String)>,
    cancels: Vec<String>,
}

/// The requests of the storm: each job is moved to and fro, every second one is cancelled too.
fn requests() -> Vec<(usize, &'static str, Value)> {
    let mut requests = Vec::new();
    for round in 0..4 {
        for number in 0..JOBS {
            let id = format!("s{number}");
            for priority in ["high", "low", "default"] {
                let ask = json!({"id": id, "priority": priority});
                requests.push((number, "virtbus.jobs.priority", ask));
            }
            if round == 2 && number % 2 == 0 {
                requests.push((number, "virtbus.jobs.cancel", json!({"id": id})));
            }
        }
    }
    requests
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
    let state = record.state.name();
    for outcome in &answers.cancels {
        match outcome.as_str() {
            "cancelled" => {
                assert_eq!((state, record.claim), (StateName::Cancelled, 0), "{told}");
            }
            "cancelling" => assert_eq!(state, StateName::Cancelled, "{told}"),
            "too_late" | "already_finished" => {
                assert_eq!(state, StateName::Succeeded, "{told}");
            }
            other => panic!("{other}: {told}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_storm_of_changes_cancels_and_claims_leaves_each_job_as_it_was_answered() {
    let (stack, _core) = Stack::start().await;
    let _second = stack.core("core-b");
    for number in 0..JOBS {
        let job = json!({"id": format!("s{number}"), "task": "ping"}).to_string();
        stack.publish(LOW, job).await;
    }
    let asking = requests().into_iter().map(|(number, subject, ask)| {
        let stack = &stack;
        async move {
            let answer: Value = stack.ask(subject, &ask).await.unwrap();
            (number, subject.ends_with("cancel"), answer)
        }
    });
    let mut asking = stream::iter(asking).buffer_unordered(AT_ONCE);
    let mut answers: Vec<Answers> = (0..JOBS).map(|_| Answers::default()).collect();
    let mut worker = None;
    while let Some((number, is_cancel, answer)) = asking.next().await {
        // The worker comes in the midst of it.
        worker.get_or_insert_with(|| worker::start(&stack, Class::Storage));
        let about = &mut answers[number];
        if is_cancel {
            let outcome = answer["outcome"].as_str().unwrap();
            about.cancels.push(outcome.to_owned());
        } else if let Some(generation) = answer["job"]["generation"].as_u64() {
            let queue = answer["job"]["queue"].as_str().unwrap().to_owned();
            let later = about.moved.take().filter(|(last, _)| *last > generation);
            about.moved = later.or(Some((generation, queue)));
        }
    }
    drop(asking);
    for (number, answers) in answers.iter().enumerate() {
        check(&ended(&stack, number).await, answers);
    }
    stack.empty("STORAGE").await;
    worker.unwrap().end().await;
}
