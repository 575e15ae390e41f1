//! Those that publish jobs and ask for changes: any programs.

use crate::{
    broker::stream::Ms,
    net::Net,
    plan::{AskPlan, JobPlan},
};
use async_nats::HeaderMap;
use serde_json::Value;
use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::time::sleep;
use virtbus_bus::Bus;
use virtbus_wire::Priority;

/// How often a publisher tries.
const TRIES_MAX: usize = 100;
/// Between two of those.
const PAUSE: Duration = Duration::from_millis(700);

/// A control request and its answer.
#[derive(Debug, Clone)]
pub struct Answer {
    /// When it was sent.
    pub sent: Ms,
    /// When the answer came.
    pub came: Ms,
    /// What was asked.
    pub ask: AskPlan,
    /// What was answered.
    pub answer: Value,
}

/// What clients were told.
#[derive(Debug, Default)]
pub struct Told {
    /// Jobs whose publication was acknowledged.
    pub acked: Vec<String>,
    /// Answers to control requests.
    pub answers: Vec<Answer>,
    /// Clients that aren't done.
    pub busy: usize,
}

/// A client.
#[derive(Debug, Clone)]
pub struct Client {
    /// Its connection.
    pub bus: Bus,
    /// For the time.
    pub net: Arc<Net>,
    /// Where it notes what it's told.
    pub told: Arc<Mutex<Told>>,
}

impl Client {
    /// What clients were told so far.
    pub fn told(&self) -> std::sync::MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Publishes a job until that is acknowledged, and its copy.
    pub fn publish(&self, job: &JobPlan) {
        self.spawn(self.clone().send(job.clone(), job.priority, true));
    }

    /// Publishes a job's copy.
    pub fn publish_copy(&self, job: &JobPlan, priority: Priority) {
        self.spawn(self.clone().send(job.clone(), priority, false));
    }

    /// Sends a control request, once.
    pub fn ask(&self, ask: &AskPlan) {
        self.spawn(self.clone().request(ask.clone()));
    }

    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.told().busy += 1;
        let client = self.clone();
        tokio::spawn(async move {
            task.await;
            client.told().busy -= 1;
        });
    }

    async fn send(self, job: JobPlan, priority: Priority, named: bool) {
        let mut headers = HeaderMap::new();
        if named {
            headers.insert("Nats-Msg-Id", job.id.as_str());
        }
        for _ in 0..TRIES_MAX {
            let subject = format!("storage.p.{priority}");
            let body = job.body.to_string();
            let answer = self
                .bus
                .ask(subject, Some(headers.clone()), body.into())
                .await;
            let answer = answer
                .ok()
                .and_then(|a| serde_json::from_slice::<Value>(&a.payload).ok());
            if answer.is_some_and(|answer| answer["seq"].is_u64()) {
                return self.told().acked.push(job.id);
            }
            sleep(PAUSE).await;
        }
    }

    async fn request(self, ask: AskPlan) {
        let sent = self.net.now();
        let body = ask.body.to_string();
        let must = ask.ends_another();
        for _ in 0..TRIES_MAX {
            let answer = self
                .bus
                .ask(ask.subject.to_owned(), None, body.clone().into())
                .await;
            if let Ok(answer) = answer {
                let answer: Value = serde_json::from_slice(&answer.payload).unwrap_or_default();
                let refused = answer.get("error").is_some();
                let came = self.net.now();
                let answer = Answer {
                    sent,
                    came,
                    ask: ask.clone(),
                    answer,
                };
                self.told().answers.push(answer);
                if !(must && refused) {
                    return;
                }
            } else if !must {
                return;
            }
            sleep(PAUSE).await;
        }
    }
}
