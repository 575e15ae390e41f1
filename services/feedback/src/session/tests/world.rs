//! The view, one session and its client, without a network: whatever happens in whatever order,
//! at a quiet moment the client holds exactly what matches.

use super::{client::Client, hello, verify, *};
use crate::{
    config,
    view::{Entry, Hub, Mailbox, Rows},
};
use proptest::prelude::*;
use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};
use virtbus_wire::{Envelope, Record, StateName, row::Row};

const SESSION: u64 = 1;
const LIMITS: config::View = config::View {
    ended_max: 4,
    gone_max: 12,
};
/// Jobs of a world.
const JOBS: u8 = 9;

#[derive(Debug, Clone)]
enum Event {
    Put { job: u8, user: u8, state: u8 },
    Remove { job: u8 },
    Read,
    ReadLoadOnly,
    Heartbeat,
    Burst(u16),
    Reconnect,
}

struct World {
    rows: Rows,
    hub: Hub,
    mailbox: Arc<Mailbox>,
    session: Session,
    client: Client,
    token: &'static str,
    filter: Value,
    seq: u64,
    seconds: f64,
}

fn row(job: u8, user: u8, state: u8, seq: u64) -> Row {
    let user = ["alice", "bob"][usize::from(user) % 2];
    let body = json!({"task": "ping", "id": format!("j{job}"), "user": user}).to_string();
    let job = Envelope::decode(body.as_bytes()).unwrap();
    let queue = "storage.default.low".to_owned();
    let id = job.id.clone().unwrap();
    let record = Record::new(id, job, queue.into(), Timestamp::from_millis(0));
    let mut row = Row::new(&record, seq);
    row.state = [
        StateName::Queued,
        StateName::Running,
        StateName::Succeeded,
        StateName::Failed,
    ][usize::from(state) % 4];
    row
}

impl World {
    fn new(token: &'static str, filter: Value) -> Self {
        let mut world = Self {
            rows: Rows::new(LIMITS, 0),
            hub: Hub::default(),
            mailbox: Arc::default(),
            session: Session::new(),
            client: Client::default(),
            token,
            filter,
            seq: 0,
            seconds: 0.0,
        };
        world.connect();
        world
    }

    fn now(&self) -> Now {
        at(self.seconds)
    }

    fn connect(&mut self) {
        self.seconds = 0.0;
        self.hub.leave(SESSION);
        self.mailbox = Arc::default();
        self.session = Session::new();
        let acts = self.session.text(self.now(), &hello(self.token), verify);
        let [Act::Join(claims, _)] = &acts[..] else {
            panic!("{acts:?}")
        };
        self.hub.join(SESSION, claims.clone(), self.mailbox.clone());
        let cursor = Some(self.client.cursor);
        let resumed = cursor.filter(|seq| *seq > 0 && self.rows.can_resume(*seq));
        let place = Place {
            epoch: "7".to_owned(),
            seq: self.rows.last(),
            resumed,
        };
        let acts = self.session.joined(self.now(), Ok(place));
        self.act(acts);
        let snapshot = resumed.is_none();
        let sub = json!({"t": "sub", "id": 1, "filter": self.filter, "snapshot": snapshot});
        let acts = self.session.text(self.now(), &sub.to_string(), verify);
        self.act(acts);
    }

    fn act(&mut self, acts: Vec<Act>) {
        let mut acts = VecDeque::from(acts);
        while let Some(act) = acts.pop_front() {
            match act {
                Act::Send(frame) => self.client.read(&frame),
                Act::Load(sub, sight, filter, from) => {
                    let load = self.rows.load(&sight, &filter, from);
                    acts.extend(self.session.loaded(sub, load));
                }
                // Too slow too often: it comes back.
                Act::Close(..) => return self.connect(),
                Act::Join(..) | Act::Command(..) => panic!("{act:?}"),
            }
        }
    }

    fn read_load(&mut self) {
        while let Some(frame) = self.session.next_of_load() {
            self.client.read(&frame);
        }
    }

    /// Reads until nothing is left.
    fn read(&mut self) {
        loop {
            self.read_load();
            let last = self.rows.last();
            let waiting = self.mailbox.take();
            let is_quiet = waiting.is_empty();
            let acts = self.session.waiting(self.now(), waiting, last);
            self.act(acts);
            if is_quiet && self.session.fill() == Fill::Done {
                return;
            }
        }
    }

    fn happen(&mut self, event: &Event) {
        self.seconds += 0.1;
        match event {
            Event::Put { job, user, state } => {
                self.seq += 1;
                let row = row(job % JOBS, *user, *state, self.seq);
                for change in self.rows.put(Entry::new(row).unwrap()) {
                    self.hub.tell(change);
                }
            }
            Event::Remove { job } => {
                self.seq += 1;
                let id = format!("j{}", job % JOBS).parse().unwrap();
                if let Some(change) = self.rows.remove(&id, self.seq) {
                    self.hub.tell(change);
                }
            }
            Event::Read => self.read(),
            Event::ReadLoadOnly => self.read_load(),
            Event::Heartbeat => {
                self.read();
                self.seconds += 20.0;
                let acts = self.session.tick(self.now());
                self.act(acts);
            }
            Event::Burst(changes) => {
                for n in 0..*changes {
                    let [job, user] = n.to_le_bytes();
                    let state = job / 3;
                    self.happen(&Event::Put { job, user, state });
                }
            }
            Event::Reconnect => self.connect(),
        }
    }

    fn expected(&self) -> BTreeMap<virtbus_wire::JobId, u64> {
        let sight = Sight::of(&verify(self.token).unwrap());
        let filter: Filter = serde_json::from_value(self.filter.clone()).unwrap();
        let rows = self.rows.load(&sight, &filter, From::Start).rows;
        rows.iter()
            .map(|entry| (entry.job.id.clone(), entry.job.seq))
            .collect()
    }

    fn held(&self) -> BTreeMap<virtbus_wire::JobId, u64> {
        let rows = self.client.rows.values();
        rows.map(|row| (row.id.clone(), row.seq)).collect()
    }
}

fn any_event() -> impl Strategy<Value = Event> {
    prop_oneof![
        8 => (any::<u8>(), any::<u8>(), any::<u8>())
            .prop_map(|(job, user, state)| Event::Put { job, user, state }),
        2 => any::<u8>().prop_map(|job| Event::Remove { job }),
        2 => Just(Event::Read),
        1 => Just(Event::ReadLoadOnly),
        1 => Just(Event::Heartbeat),
        1 => (100_u16..400).prop_map(Event::Burst),
        1 => Just(Event::Reconnect),
    ]
}

fn any_filter() -> impl Strategy<Value = Value> {
    prop::sample::select(vec![
        json!({}),
        json!({"state": ["running", "failed"]}),
        json!({"job": ["j1", "j2", "j3"]}),
        json!({"queue": ["storage.default"], "state": ["succeeded"]}),
        json!({"task": ["convert"]}),
    ])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn at_a_quiet_moment_a_client_holds_exactly_what_matches(
        token in prop::sample::select(vec![OWN, EVERYTHING]),
        filter in any_filter(),
        events in prop::collection::vec(any_event(), 1..60),
    ) {
        let mut world = World::new(token, filter);
        for event in &events {
            world.happen(event);
            if matches!(event, Event::Read | Event::Heartbeat) {
                prop_assert_eq!(world.held(), world.expected());
            }
        }
        world.read();
        prop_assert_eq!(world.held(), world.expected());
    }
}

#[test]
fn nobody_is_told_of_a_job_of_somebody_else() {
    let mut world = World::new(OWN, json!({}));
    world.read();
    for user in [0, 1, 1, 0] {
        world.happen(&Event::Put {
            job: user,
            user,
            state: 0,
        });
    }
    // Bob takes over what was Alice's.
    world.happen(&Event::Put {
        job: 0,
        user: 1,
        state: 1,
    });
    let waiting = world.mailbox.take();
    assert_eq!(waiting.changes.len(), 3, "Bob's own never get near");
    let acts = world.session.waiting(world.now(), waiting, world.seq);
    let text: Vec<String> = acts.iter().map(|act| format!("{act:?}")).collect();
    assert!(!text.concat().contains("bob"), "{text:?}");
    world.act(acts);
    assert!(world.held().is_empty());
}

#[test]
fn a_slow_client_costs_no_more_than_its_lane() {
    let mut world = World::new(EVERYTHING, json!({}));
    world.read();
    world.happen(&Event::Burst(100));
    assert!(!world.mailbox.take().overflowed);
    world.happen(&Event::Burst(60_000));
    let waiting = world.mailbox.take();
    assert!(waiting.overflowed && waiting.changes.is_empty());
    let acts = world.session.waiting(world.now(), waiting, world.seq);
    assert_eq!(names(&acts), ["reset", "(load Start)"]);
}
