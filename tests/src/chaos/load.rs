//! Publishers that keep on until they have a promise, and people who change their minds.

use super::journal::Journal;
use super::ledger::{Asked, Ledger, Order, Promise};
use super::plan::{Plan, Story};
use super::records::Records;
use super::site::POOL;
use crate::random::Random;
use async_nats::jetstream::{self, Context};
use async_nats::{Client, HeaderMap};
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout};

/// How long a publisher waits for a promise before it sends again.
const ACK_LIMIT: Duration = Duration::from_secs(2);
/// How long an answer of the control service is waited for.
const ANSWER_LIMIT: Duration = Duration::from_secs(4);
/// The pause before something is sent again.
const AGAIN: Duration = Duration::from_millis(100);
/// Jobs that may be on their way at once.
const BACKLOG: usize = 500;
/// The pause between two stories of one publisher.
const STORY_MS: u64 = 40;
/// The pause between two changes of mind.
const MIND_MS: u64 = 120;
/// Jobs that somebody may change his mind about.
const RECENT: usize = 300;
/// How long a queue is paused at most.
const PAUSED_MS: u64 = 3_000;
const PRIORITIES: [&str; 3] = ["high", "default", "low"];

/// What publishers and meddlers share.
#[derive(Debug)]
pub struct Load {
    /// What was published.
    pub ledger: Arc<Ledger>,
    /// What is known of its records.
    pub records: Arc<Records>,
    /// What was done.
    pub journal: Arc<Journal>,
    /// When nothing new is begun.
    pub until: Instant,
    /// When a promise is given up.
    pub give_up: Instant,
    /// Messages sent again for want of a promise.
    pub again: AtomicU64,
}

impl Load {
    /// One publisher; returns when each of its jobs has a promise.
    pub async fn publish(self: Arc<Self>, client: Client, number: usize, mut random: Random) {
        let context = jetstream::new(client.clone());
        let mut plan = Plan::new(number, random.fork());
        while Instant::now() < self.until {
            sleep(below(&mut random, STORY_MS)).await;
            if self.ledger.promises() > self.records.finals() + BACKLOG {
                sleep(AGAIN).await;
                continue;
            }
            match plan.next_story() {
                Story::Published(orders) => {
                    for order in orders {
                        self.send(&context, &order).await;
                    }
                }
                Story::Submitted(orders) => self.submit(&client, &orders).await,
            }
        }
    }

    /// Sends a job until it's promised, always with the same message id.
    pub async fn send(&self, context: &Context, order: &Order) {
        let payload = order.body.to_string();
        while Instant::now() < self.give_up {
            self.ledger.sending(order);
            let mut headers = HeaderMap::new();
            headers.insert("Nats-Msg-Id", order.id.as_str());
            let (subject, payload) = (order.subject.clone(), payload.clone());
            let sent = async {
                let ack = context.publish_with_headers(subject, headers, payload.into());
                ack.await?.await
            };
            if let Ok(Ok(_)) = timeout(ACK_LIMIT, sent).await {
                self.ledger.promised(&order.id, Promise::Given);
                return;
            }
            self.again.fetch_add(1, Ordering::Relaxed);
            sleep(AGAIN).await;
        }
    }

    /// Publishes what others are to come after and nobody published, the last of all: a job may
    /// come later than those that wait for it. `but` so many never come.
    pub async fn publish_the_missing(&self, client: &Client, but: usize) {
        let context = jetstream::new(client.clone());
        let missing = self.ledger.missing();
        for id in missing.into_iter().skip(but) {
            let body = json!({"id": id, "task": "ping"});
            let subject = format!("storage.{POOL}.high");
            self.send(&context, &Order { id, subject, body }).await;
        }
    }

    /// Submits several jobs in one request, as often as it takes for one to be accepted: while
    /// there are faults each may have been refused, or not answered in time.
    pub async fn submit_several(&self, client: &Client, plan: &mut Plan) {
        while self.ledger.batches() == 0 && Instant::now() < self.give_up {
            self.submit(client, &plan.several()).await;
            sleep(AGAIN).await;
        }
    }

    /// Asks once: whoever gets no answer doesn't know.
    async fn submit(&self, client: &Client, orders: &[Order]) {
        for order in orders {
            self.ledger.sending(order);
        }
        let jobs: Vec<&Value> = orders.iter().map(|order| &order.body).collect();
        let promise = match ask(client, "virtbus.jobs.submit", &json!({"jobs": jobs})).await {
            Some(Ok(_)) => Promise::Given,
            // Without anybody to take it, or with a field that is wrong: never begun.
            Some(Err(error))
                if error["retryable"] == false || error["code"] == "queue.no_worker" =>
            {
                Promise::Refused
            }
            Some(Err(_)) | None => Promise::None,
        };
        if promise == Promise::Given && orders.len() > 1 {
            self.ledger.took_several();
        }
        for order in orders {
            self.ledger.promised(&order.id, promise);
        }
    }

    /// Cancels, changes priorities, retries, pauses; returns with nothing paused.
    pub async fn meddle(self: Arc<Self>, client: Client, mut random: Random) {
        while Instant::now() < self.until {
            sleep(below(&mut random, MIND_MS)).await;
            let recent = self.ledger.recent(RECENT);
            if recent.is_empty() {
                continue;
            }
            let id = random.pick(&recent).clone();
            match random.below(100) {
                0..=34 => {
                    let flag = *random.pick(&["", "only_waiting", "force"]);
                    let mut question = json!({"id": id});
                    if !flag.is_empty() {
                        question[flag] = json!(true);
                    }
                    self.ask_about(&client, "cancel", &id, question).await;
                }
                35..=69 => {
                    let priority = random.pick(&PRIORITIES);
                    let question = json!({"id": id, "priority": priority});
                    self.ask_about(&client, "priority", &id, question).await;
                }
                70..=84 => self.retry(&client, &recent).await,
                85..=94 => {
                    ask(&client, "virtbus.jobs.explain", &json!({"id": id})).await;
                }
                _ => self.pause(&client, &mut random).await,
            }
        }
    }

    /// One that ended without an effect gets another chance.
    async fn retry(&self, client: &Client, recent: &[String]) {
        let in_vain = |id: &&String| {
            let state = self.records.state(id);
            matches!(state.as_deref(), Some("failed" | "cancelled"))
        };
        if let Some(id) = recent.iter().find(in_vain) {
            self.ask_about(client, "retry", id, json!({"id": id})).await;
        }
    }

    async fn pause(&self, client: &Client, random: &mut Random) {
        let queue = format!("storage.{POOL}.{}", random.pick(&PRIORITIES));
        self.journal.note(format!("{queue}: paused"));
        let question = json!({"queue": queue, "reason": "chaos"});
        ask(client, "virtbus.queues.pause", &question).await;
        sleep(below(random, PAUSED_MS)).await;
        // Until it's surely not paused any more.
        while Instant::now() < self.give_up {
            let answer = ask(client, "virtbus.queues.resume", &json!({"queue": queue})).await;
            if let Some(Ok(_)) = answer {
                self.journal.note(format!("{queue}: resumed"));
                return;
            }
            sleep(AGAIN).await;
        }
        self.journal.note(format!("{queue}: nobody resumed it"));
    }

    async fn ask_about(&self, client: &Client, verb: &'static str, id: &str, question: Value) {
        let answer = ask(client, &format!("virtbus.jobs.{verb}"), &question).await;
        let outcome = match &answer {
            Some(Ok(answer)) => answer["outcome"].as_str().unwrap_or_default(),
            Some(Err(_)) | None => "",
        };
        let asked = Asked {
            verb,
            question,
            outcome: outcome.to_owned(),
        };
        self.ledger.asked(id, asked);
    }
}

fn below(random: &mut Random, millis: u64) -> Duration {
    Duration::from_millis(random.below(millis))
}

/// What the control service says: an answer, an error, or nothing in time.
async fn ask(client: &Client, subject: &str, question: &Value) -> Option<Result<Value, Value>> {
    let sent = client.request(subject.to_owned(), question.to_string().into());
    let answer = timeout(ANSWER_LIMIT, sent).await.ok()?.ok()?;
    let body: Value = serde_json::from_slice(&answer.payload).ok()?;
    match body.get("error") {
        Some(error) => Some(Err(error.clone())),
        None => Some(Ok(body)),
    }
}
