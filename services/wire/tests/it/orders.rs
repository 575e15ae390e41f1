//! All orders in which requests about a job, claims of it and the end of its work can come: each
//! of them is one compare-and-set, so nothing happens in between.

use crate::jobs::{after, at, cancel, owner, queued};
use serde_json::Map;
use std::collections::BTreeMap;
use virtbus_wire::{
    Event, JobState, Queue, Record, StateName,
    protocol::delivery::{Action, Message, Reading, decide},
    state::Phase,
};

/// What comes, once each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Move(&'static str),
    Cancel,
    /// A worker has got any of the messages.
    Claim,
    /// A worker has got the message that the job came with.
    StaleClaim,
    /// The owner comes to the end of the work, or of the cleaning up.
    Finish,
}

const STEPS: [Step; 6] = [
    Step::Move("storage.p.high"),
    Step::Move("storage.p.default"),
    Step::Cancel,
    Step::Claim,
    Step::StaleClaim,
    Step::Finish,
];

/// A job, the messages that were ever published for it, and what was answered. No message goes:
/// an acknowledgement may be late, and a delivery later.
#[derive(Debug, Clone)]
struct World {
    job: Record,
    messages: Vec<Message>,
    /// The message that stands for the job, as whoever moved it last was told.
    stands: Message,
    /// What a cancel was answered.
    cancelled: Option<StateName>,
    told: Vec<&'static str>,
}

fn message(job: &Record, seq: u64) -> Message {
    Message {
        generation: job.generation,
        queue: job.queue.queue().unwrap().clone(),
        seq,
    }
}

impl World {
    fn new() -> Self {
        let job = queued();
        let first = message(&job, 1);
        Self {
            job,
            messages: vec![first.clone()],
            stands: first,
            cancelled: None,
            told: Vec::new(),
        }
    }

    fn tell(mut self, what: &'static str) -> Self {
        self.told.push(what);
        self
    }

    /// What may come of a step: which message a worker has, and whether the owner's lease is out,
    /// is chance.
    fn after(&self, step: Step) -> Vec<Self> {
        match step {
            Step::Move(queue) => vec![self.moved(queue.parse().unwrap())],
            Step::Cancel => vec![self.asked_to_end()],
            Step::Claim => {
                let messages = self.messages.iter();
                messages.flat_map(|message| self.claimed(message)).collect()
            }
            Step::StaleClaim => self.claimed(&self.messages[0]),
            Step::Finish => vec![self.finished()],
        }
    }

    fn moved(&self, queue: Queue) -> Self {
        let Ok(job) = self.job.apply(Event::Move(queue), at(2)) else {
            return self.clone().tell("already started, or finished");
        };
        let mut world = self.clone().tell("changed");
        world.stands = message(&job, self.messages.len() as u64 + 1);
        world.messages.push(world.stands.clone());
        world.job = job;
        world
    }

    fn asked_to_end(&self) -> Self {
        let Ok(job) = self.job.apply(cancel(), at(2)) else {
            return self.clone().tell("already finished");
        };
        let state = job.state.name();
        let is_over = state == StateName::Cancelled;
        let told = if is_over { "cancelled" } else { "cancelling" };
        let mut world = self.clone().tell(told);
        (world.job, world.cancelled) = (job, Some(state));
        world
    }

    /// With an owner that lives, and, if there is one, with one that doesn't.
    fn claimed(&self, message: &Message) -> Vec<Self> {
        let fates: &[bool] = match self.job.state.hold() {
            Some(_) => &[true, false],
            None => &[true],
        };
        let worlds = fates.iter().map(|is_alive| {
            let read = Reading::Leader;
            if decide(Some(&self.job), message, read, |_| *is_alive) != Action::Claim {
                return self.clone().tell("not claimed");
            }
            let told = format!("{message:?} {self:#?}");
            assert_eq!(*message, self.stands, "began unmodified: {told}");
            assert_ne!(self.cancelled, Some(StateName::Cancelled), "{told}");
            assert!(self.job.state.hold().is_none() || !is_alive, "{told}");
            let mut world = self.clone().tell("claimed");
            let number = u128::from(self.job.claim) + 1;
            let event = Event::Claim {
                owner: owner(number),
                seq: message.seq,
                begin: true,
            };
            world.job = after(&self.job, [event]);
            world
        });
        worlds.collect()
    }

    fn finished(&self) -> Self {
        let mut world = self.clone().tell("finished");
        let events = match &self.job.state {
            JobState::Running(hold) if hold.phase == Phase::Work => vec![],
            JobState::Running(_) => vec![Event::Enter(Phase::Work)],
            JobState::Cancelling(_) => {
                world.job = after(&self.job, [Event::GiveUp]);
                return world;
            }
            JobState::Queued | JobState::Waiting(_) => return self.clone(),
            JobState::Succeeded(..) | JobState::Failed(..) | JobState::Cancelled(..) => {
                return self.clone();
            }
        };
        let end = [Event::Enter(Phase::Commit), Event::Succeed(Map::new())];
        world.job = after(&self.job, events.into_iter().chain(end));
        world
    }

    /// What was answered is so in the end.
    fn check(&self) {
        assert_eq!(
            self.job.queue.queue(),
            Some(&self.stands.queue),
            "{self:#?}"
        );
        let state = self.job.state.name();
        match self.cancelled {
            Some(StateName::Cancelled) => {
                assert_eq!(
                    (state, self.job.claim),
                    (StateName::Cancelled, 0),
                    "{self:#?}"
                );
            }
            Some(_) => assert_ne!(state, StateName::Succeeded, "{self:#?}"),
            None => assert_ne!(state, StateName::Cancelled, "{self:#?}"),
        }
    }
}

/// Goes on from here in all orders; counts the ends, and what was told on the way to each.
fn explore(world: &World, left: &[Step], ends: &mut BTreeMap<&'static str, u32>) {
    if left.is_empty() {
        world.check();
        *ends.entry("orders").or_default() += 1;
        for told in &world.told {
            *ends.entry(told).or_default() += 1;
        }
    }
    for (place, step) in left.iter().enumerate() {
        let rest = [&left[..place], &left[place + 1..]].concat();
        for next in world.after(*step) {
            explore(&next, &rest, ends);
        }
    }
}

#[test]
fn no_order_of_moves_cancels_claims_and_ends_breaks_what_was_answered() {
    let mut ends = BTreeMap::new();
    explore(&World::new(), &STEPS, &mut ends);
    println!("{ends:?}");
    assert!(ends["orders"] > 720, "{ends:?}");
    for told in ["changed", "cancelled", "cancelling", "already finished"] {
        assert!(ends[told] > 100, "{told}: {ends:?}");
    }
    for told in [
        "claimed",
        "not claimed",
        "already started, or finished",
        "finished",
    ] {
        assert!(ends[told] > 100, "{told}: {ends:?}");
    }
}
