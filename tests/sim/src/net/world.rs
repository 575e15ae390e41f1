//! Everything that has a state outside the processes: the server, its time, and what is on its
//! way. What is sent arrives later, or never, as the seed says.

use super::{message::to_message, seen::Seen};
use crate::{
    broker::{Broker, In, Out, stream::Ms},
    chance::{hash, mix},
    node::Gate,
    run::Defect,
};
use async_nats::Message;
use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::Instant,
};
use virtbus_bus::Health;

/// When the simulation begins, by the server's clock.
pub const BEGIN: Ms = 1_795_000_000_000;

/// How bad the network is, in parts per 10,000 messages.
#[derive(Debug, Clone, Copy, Default)]
pub struct Weather {
    /// Requests that never arrive.
    pub lost_requests: u64,
    /// Answers and deliveries that never arrive.
    pub lost_answers: u64,
    /// Messages that take up to three seconds.
    pub slow: u64,
    /// Messages that take longer than anybody waits for them.
    pub late: u64,
    /// Direct reads that an old replica answers.
    pub stale: u64,
    /// Deliveries that the server repeats at once.
    pub repeated: u64,
}

/// Something on its way.
#[derive(Debug)]
enum Event {
    ToServer { from: usize, message: In },
    ToClient { out: Out },
}

/// One start of a process, as the network sees it.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) gate: Arc<Gate>,
    pub(super) health: watch::Sender<Health>,
    /// What is sent before this time arrives after it.
    pub(super) cut_until: Ms,
    /// Messages to one client keep their order.
    pub(super) last_arrival: Ms,
}

#[derive(Debug)]
pub(super) struct Listener {
    pub(super) link: usize,
    pub(super) sender: mpsc::UnboundedSender<Message>,
}

/// Everything that has a state outside the processes.
#[derive(Debug)]
pub struct World {
    /// The server.
    pub broker: Broker,
    /// How the network is now.
    pub weather: Weather,
    /// What is wrong with the server, if anything.
    pub defect: Option<Defect>,
    /// A hash of all that happened.
    pub trace: u64,
    /// How much happened.
    pub steps: u64,
    /// What the checker gets to see.
    pub seen: Seen,
    seed: u64,
    pub(super) begin: Instant,
    events: BTreeMap<(Ms, u8, u64, u64), Event>,
    sent: HashMap<u64, u64>,
    order: u64,
    pub(super) links: Vec<Link>,
    pub(super) listeners: HashMap<String, Vec<Listener>>,
    pub(super) patterns: Vec<(String, Listener)>,
    pub(super) requests: HashMap<String, oneshot::Sender<Message>>,
}

fn link_of(route: &str) -> Option<usize> {
    route.strip_prefix("_I.")?.split('.').next()?.parse().ok()
}

impl World {
    pub(super) fn new(seed: u64, broker: Broker) -> Self {
        Self {
            broker,
            weather: Weather::default(),
            defect: None,
            trace: seed,
            steps: 0,
            seen: Seen::default(),
            seed,
            begin: Instant::now(),
            events: BTreeMap::new(),
            sent: HashMap::new(),
            order: 0,
            links: Vec::new(),
            listeners: HashMap::new(),
            patterns: Vec::new(),
            requests: HashMap::new(),
        }
    }

    /// The server's time.
    #[must_use]
    pub fn now(&self) -> Ms {
        let elapsed = self.begin.elapsed().as_millis();
        BEGIN + Ms::try_from(elapsed).unwrap_or(Ms::MAX - BEGIN)
    }

    pub(super) fn send(&mut self, from: usize, mut message: In) {
        let now = self.now();
        let mut key = hash(self.seed ^ from as u64, message.subject.as_bytes());
        key = hash(key, &message.payload);
        for (name, value) in &message.headers {
            key = hash(hash(key, name.as_bytes()), value.as_bytes());
        }
        let nth = self.sent.entry(key).or_default();
        *nth += 1;
        let fate = mix(key ^ nth.wrapping_mul(0x9e37_79b9));
        let mut delay = 1 + Ms::try_from(fate % 3).unwrap_or(0);
        let luck = (fate >> 8) % 10_000;
        let Weather {
            lost_requests,
            slow,
            late,
            stale,
            ..
        } = self.weather;
        if (fate >> 40) % 10_000 < stale {
            message.behind = 1 + Ms::try_from((fate >> 20) % 3_000).unwrap_or(0);
        }
        if luck < lost_requests {
            return;
        } else if luck < lost_requests + slow {
            delay += Ms::try_from((fate >> 24) % 3_000).unwrap_or(0);
        } else if luck < lost_requests + slow + late {
            delay += 5_000 + Ms::try_from((fate >> 24) % 5_000).unwrap_or(0);
        }
        let cut_until = self.links[from].cut_until;
        if cut_until > now {
            if fate & 1 == 0 {
                return;
            }
            delay += cut_until - now;
        }
        let nth = *nth;
        let event = Event::ToServer { from, message };
        self.events.insert((now + delay, 1, key, nth), event);
    }

    /// Does what is due, and says when the next is.
    pub(super) fn step(&mut self) -> Option<Ms> {
        loop {
            let now = self.now();
            let timed = self.broker.next_time();
            let event = self.events.first_key_value().map(|(key, _)| key.0);
            match (event, timed) {
                (Some(event), timed) if event <= now && timed.is_none_or(|at| event <= at) => {
                    if let Some((_, event)) = self.events.pop_first() {
                        self.happen(event, now);
                    }
                }
                (_, Some(timed)) if timed <= now => {
                    let out = self.broker.tick(now);
                    self.carry(out, now);
                }
                (event, timed) => return event.into_iter().chain(timed).min(),
            }
        }
    }

    fn happen(&mut self, event: Event, now: Ms) {
        self.steps += 1;
        match event {
            Event::ToServer { from, mut message } => {
                self.note(now, from as u64, &message.subject, &message.payload);
                if let Some(defect) = self.defect
                    && !self.spoil(defect, &mut message, now)
                {
                    return;
                }
                match self.broker.handle(&message, now) {
                    Some(out) => {
                        self.seen.remember(&self.broker, &message, now);
                        self.carry(out, now);
                    }
                    None => self.carry(
                        vec![Out {
                            route: message.subject.clone(),
                            subject: message.subject,
                            reply: message.reply,
                            headers: message.headers,
                            status: None,
                            payload: message.payload,
                        }],
                        now,
                    ),
                }
            }
            Event::ToClient { out } => {
                self.note(now, u64::MAX, &out.route, &out.payload);
                self.arrive(out);
            }
        }
    }

    fn note(&mut self, now: Ms, who: u64, subject: &str, payload: &[u8]) {
        self.trace = hash(self.trace ^ who ^ now.unsigned_abs(), subject.as_bytes());
        self.trace = hash(self.trace, payload);
    }

    pub(super) fn carry(&mut self, out: Vec<Out>, now: Ms) {
        for mut out in out {
            self.order += 1;
            let fate = mix(self.seed ^ hash(self.order, out.route.as_bytes()));
            let Some(link) = link_of(&out.route) else {
                self.publish(out, now);
                continue;
            };
            let is_delivery = out.reply.is_some();
            if is_delivery {
                let seq = out
                    .reply
                    .as_deref()
                    .and_then(|reply| reply.split('.').nth(5)?.parse().ok());
                let given = (now, out.subject.clone(), seq.unwrap_or(0), link);
                self.seen.given.push(given);
            }
            if let Some(defect) = self.defect {
                self.garble(defect, &mut out);
            }
            let luck = (fate >> 8) % 10_000;
            let Weather {
                lost_answers,
                slow,
                repeated,
                ..
            } = self.weather;
            if luck < lost_answers {
                continue;
            }
            let slowed = luck < lost_answers + slow;
            let twice = is_delivery && (fate >> 40) % 10_000 < repeated;
            if twice {
                self.schedule(link, out.clone(), fate >> 3, slowed, now);
            }
            self.schedule(link, out, fate, slowed, now);
        }
    }

    fn schedule(&mut self, link: usize, out: Out, fate: u64, slowed: bool, now: Ms) {
        let Some(to) = self.links.get_mut(link) else {
            return;
        };
        if to.gate.is_dead() || to.cut_until > now {
            return;
        }
        let mut delay = 1 + Ms::try_from(fate % 3).unwrap_or(0);
        if slowed {
            delay += Ms::try_from((fate >> 24) % 3_000).unwrap_or(0);
        }
        to.last_arrival = to.last_arrival.max(now + delay);
        let at = to.last_arrival;
        self.order += 1;
        self.events
            .insert((at, 0, self.order, 0), Event::ToClient { out });
    }

    /// Sends to whoever listens.
    fn publish(&mut self, out: Out, now: Ms) {
        let direct = self.listeners.get(&out.route).into_iter().flatten();
        let direct: Vec<usize> = direct.map(|listener| listener.link).collect();
        let wide = self
            .patterns
            .iter()
            .filter(|(prefix, _)| is_below(prefix, &out.route));
        let wide: Vec<usize> = wide.map(|(_, listener)| listener.link).collect();
        let mut links: Vec<usize> = direct.into_iter().chain(wide).collect();
        links.sort_unstable();
        links.dedup();
        if out.route.starts_with("virtbus.") && !links.is_empty() {
            // One of a queue group gets it.
            self.order += 1;
            let place = mix(self.seed ^ self.order) % links.len() as u64;
            links = vec![links[usize::try_from(place).unwrap_or(0)]];
        }
        for link in links {
            self.order += 1;
            let fate = mix(self.seed ^ hash(self.order, out.route.as_bytes()));
            if (fate >> 8) % 10_000 < self.weather.lost_answers {
                continue;
            }
            let to = Out {
                route: format!("_I.{link}.={}", out.route),
                ..out.clone()
            };
            self.schedule(link, to, fate, false, now);
        }
    }

    fn arrive(&mut self, out: Out) {
        let Some(link) = link_of(&out.route) else {
            return;
        };
        if let Some(request) = self.requests.remove(&out.route) {
            // Nobody may wait for it any more.
            drop(request.send(to_message(out)));
            return;
        }
        let route = match out.route.split_once(".=") {
            Some((_, subject)) => subject.to_owned(),
            None => out.route.clone(),
        };
        let is_here = |listener: &&Listener| listener.link == link && !listener.sender.is_closed();
        let direct = self.listeners.get(&route).into_iter().flatten();
        let wide = self
            .patterns
            .iter()
            .filter(|(prefix, _)| is_below(prefix, &route));
        let wide = wide.map(|(_, listener)| listener);
        let message = to_message(out);
        for listener in direct.chain(wide).filter(is_here) {
            drop(listener.sender.send(message.clone()));
        }
        self.patterns
            .retain(|(_, listener)| !listener.sender.is_closed());
        if let Some(all) = self.listeners.get_mut(&route) {
            all.retain(|listener| !listener.sender.is_closed());
            if all.is_empty() {
                self.listeners.remove(&route);
            }
        }
    }
}

/// Whether one token follows a prefix that ends with a dot.
fn is_below(prefix: &str, route: &str) -> bool {
    route
        .strip_prefix(prefix)
        .is_some_and(|rest| !rest.contains('.'))
}
