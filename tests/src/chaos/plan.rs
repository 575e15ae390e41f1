//! Which jobs a publisher publishes: all kinds the contract has of waiting, failing, and working
//! on disks, drawn at random.

use super::ledger::Order;
use super::site::{POOL, PUBLISHERS};
use crate::disk::MIB;
use crate::random::Random;
use serde_json::{Map, Value, json};
use std::time::Duration;
use virtbus_wire::Timestamp;

/// Locks of the publishers' own.
const LOCKS: u64 = 6;
/// Raw disks full of data that others are copied from; they stay as they are.
pub const SOURCES: [&str; 2] = ["source-0", "source-1"];
/// How large they are, in MiB.
pub const SOURCE_MIB: u64 = 12;
/// Jobs of this publisher that a new one may come after.
const RECENT: usize = 30;
const PRIORITIES: [&str; 3] = ["high", "default", "low"];
const FORMATS: [&str; 2] = ["qcow2", "raw"];

/// Jobs that belong together, in the order they are published.
#[derive(Debug, Clone)]
pub enum Story {
    /// Each for itself.
    Published(Vec<Order>),
    /// In one request to the control service, all or none.
    Submitted(Vec<Order>),
}

/// Draws stories.
#[derive(Debug)]
pub struct Plan {
    publisher: usize,
    random: Random,
    number: u64,
    recent: Vec<String>,
}

impl Plan {
    /// Of one publisher.
    pub fn new(publisher: usize, random: Random) -> Self {
        let (number, recent) = (0, Vec::new());
        Self {
            publisher,
            random,
            number,
            recent,
        }
    }

    /// The next one.
    pub fn next_story(&mut self) -> Story {
        let orders = match self.random.below(100) {
            0..=33 => vec![self.ping()],
            34..=39 => vec![self.failing()],
            40..=49 => vec![self.dependent()],
            50..=53 => vec![self.timed()],
            54..=74 => self.life(),
            75..=81 => vec![self.copy()],
            82..=87 => self.contention(),
            88..=91 => self.twice(),
            92..=97 => return Story::Submitted(self.batch()),
            _ => vec![self.feedback()],
        };
        Story::Published(orders)
    }

    fn order(&mut self, task: &str, params: Value) -> Order {
        self.number += 1;
        let id = format!("p{}-{}", self.publisher, self.number);
        self.recent.push(id.clone());
        if self.recent.len() > RECENT {
            self.recent.remove(0);
        }
        let mut body = json!({"task": task, "params": params});
        // Otherwise the message id is the job's.
        if self.random.chance(50) {
            body["id"] = json!(id);
        }
        if self.random.chance(10) {
            body["locks"] = self.locks();
        }
        let priority = self.random.pick(&PRIORITIES);
        let subject = format!("storage.{POOL}.{priority}");
        Order { id, subject, body }
    }

    /// Some exclusive, some shared.
    fn locks(&mut self) -> Value {
        let (mut exclusive, mut shared) = (Vec::new(), Vec::new());
        for number in 0..LOCKS {
            match self.random.below(8) {
                0 => exclusive.push(format!("x.l{number}")),
                1 | 2 => shared.push(format!("x.l{number}")),
                _ => {}
            }
        }
        json!({"exclusive": exclusive, "shared": shared})
    }

    fn ping(&mut self) -> Order {
        let sleep_ms = match self.random.below(10) {
            0 => self.random.below(2_000),
            1..=4 => self.random.below(150),
            _ => 0,
        };
        let mut order = self.order("ping", json!({"sleep_ms": sleep_ms}));
        if self.random.chance(40) {
            order.body["locks"] = self.locks();
        }
        order
    }

    fn failing(&mut self) -> Order {
        let mut order = self.order("ping", json!({"fail": true}));
        order.body["retry"] = json!({"max_attempts": 1 + self.random.below(2)});
        order
    }

    /// After jobs that were published, that will be, or never.
    fn dependent(&mut self) -> Order {
        let mut order = self.order("ping", json!({}));
        let mut after = Vec::new();
        for _ in 0..1 + self.random.below(3) {
            let mut dependency = Map::new();
            let id = self.other(&order.id);
            dependency.insert("job".to_owned(), json!(id));
            let on = match self.random.below(4) {
                0 => None,
                1 => Some(json!(["succeeded", "failed", "cancelled"])),
                2 => Some(json!(["failed", "cancelled"])),
                _ => Some(json!(["succeeded", "failed"])),
            };
            dependency.extend(on.map(|on| ("on".to_owned(), on)));
            after.push(Value::Object(dependency));
        }
        order.body["after"] = Value::Array(after);
        order
    }

    /// One of the own jobs of late, or one of somebody else's about as old.
    fn other(&mut self, but: &str) -> String {
        let own: Vec<&String> = self.recent.iter().filter(|id| *id != but).collect();
        if !own.is_empty() && self.random.chance(60) {
            return (*self.random.pick(&own)).clone();
        }
        let publisher = (self.publisher + 1) % PUBLISHERS;
        let number = (self.number + self.random.below(20)).saturating_sub(15);
        format!("p{publisher}-{}", number.max(1))
    }

    /// Not before, or not after, a moment that is near.
    fn timed(&mut self) -> Order {
        let mut order = self.order("ping", json!({}));
        let field = *self.random.pick(&["not_before", "expires_at"]);
        let moment = Duration::from_millis(self.random.below(5_000));
        order.body[field] = json!(Timestamp::now().after(moment));
        order
    }

    fn sized(&mut self) -> u64 {
        (1 + self.random.below(8)) * MIB
    }

    /// A disk is made, grows, is copied and deleted; each step after the one before, or not.
    fn life(&mut self) -> Vec<Order> {
        let disk = format!("p{}d{}", self.publisher, self.number + 1);
        let format = *self.random.pick(&FORMATS);
        let mut size = self.sized();
        let params = json!({"disk": disk, "size": size, "format": format});
        let mut orders = vec![self.order("create_disk", params)];
        for _ in 0..self.random.below(3) {
            size += self.sized();
            orders.push(self.order("resize", json!({"disk": disk, "size": size})));
        }
        if self.random.chance(30) {
            let to = format!("{disk}c");
            let format = *self.random.pick(&FORMATS);
            let params = json!({"disk": disk, "to": to, "format": format});
            orders.push(self.order("convert", params));
        }
        if self.random.chance(50) {
            let mode = *self.random.pick(&["trash", "unlink"]);
            let params = json!({"disk": disk, "mode": mode});
            orders.push(self.order("delete_disk", params));
        }
        if self.random.chance(75) {
            for at in 1..orders.len() {
                orders[at].body["after"] = json!([orders[at - 1].id]);
            }
        }
        orders
    }

    /// Takes long enough to be hit in the middle.
    fn copy(&mut self) -> Order {
        let to = format!("p{}k{}", self.publisher, self.number + 1);
        let source = *self.random.pick(&SOURCES);
        let compress = *self.random.pick(&["none", "zlib"]);
        let params = json!({"disk": source, "to": to, "format": "qcow2", "compress": compress});
        self.order("convert", params)
    }

    /// Many want the same disk at once, and one of them deletes it.
    fn contention(&mut self) -> Vec<Order> {
        let disk = format!("p{}d{}", self.publisher, self.number + 1);
        let params = json!({"disk": disk, "size": MIB, "format": "raw"});
        let mut orders = vec![self.order("create_disk", params)];
        for _ in 0..2 + self.random.below(5) {
            let size = self.sized() + MIB;
            orders.push(self.order("resize", json!({"disk": disk, "size": size})));
        }
        let delete = json!({"disk": disk});
        orders.push(self.order("delete_disk", delete));
        orders
    }

    /// The same job on two queues.
    fn twice(&mut self) -> Vec<Order> {
        let disk = format!("p{}d{}", self.publisher, self.number + 1);
        let params = json!({"disk": disk, "size": self.sized()});
        let mut order = self.order("create_disk", params);
        order.body["id"] = json!(order.id);
        let mut other = order.clone();
        let priority = self.random.pick(&PRIORITIES);
        other.subject = format!("storage.{POOL}.{priority}");
        vec![order, other]
    }

    /// One request of more than one job.
    pub fn several(&mut self) -> Vec<Order> {
        loop {
            let orders = self.batch();
            if orders.len() > 1 {
                return orders;
            }
        }
    }

    /// One request of a disk's life, each step after the one before.
    fn batch(&mut self) -> Vec<Order> {
        let mut orders = self.life();
        for (at, order) in orders.iter_mut().enumerate() {
            order.body["id"] = json!(order.id);
            order.body["pool"] = json!(POOL);
            let priority = order.subject.rsplit('.').next().unwrap();
            order.body["priority"] = json!(priority);
            if at > 0 {
                // How far before, as a number or as text, alone or with its states.
                order.body["after"] = match self.random.below(3) {
                    0 => json!([-1]),
                    1 => json!(["-1"]),
                    _ => json!([{"job": -1, "on": ["succeeded"]}]),
                };
            }
        }
        orders
    }

    fn feedback(&mut self) -> Order {
        let params = json!({"to": {"all": true}, "topic": "chaos", "payload": {}});
        let mut order = self.order("feedback", params);
        "core".clone_into(&mut order.subject);
        order
    }
}
