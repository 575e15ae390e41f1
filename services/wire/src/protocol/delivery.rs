//! What a worker does with a message.

use crate::{
    queue::Queue,
    record::Record,
    state::{JobState, Owner},
};

/// The headers of a message that the system published.
pub const JOB_HEADER: &str = "Virtbus-Job";
/// Which publication of the job a message is.
pub const GENERATION_HEADER: &str = "Virtbus-Generation";
/// Rounds of deliveries without a claim after which a job ends with `internal`.
pub const ROUNDS_MAX: u32 = 5;

/// What of a message matters once it is known whose it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Which publication of the job; 1 = the publisher's own.
    pub generation: u64,
    /// The queue it came from.
    pub queue: Queue,
    /// Its sequence in the stream.
    pub seq: u64,
}

/// Where a record was read from. Only the stream's leader never answers with an older one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reading {
    /// Any replica.
    Any,
    /// The leader.
    Leader,
}

/// What to do with a message; exactly one of these.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Claim it by making the record.
    Create,
    /// Claim it by compare-and-set; a cancelling job stays so and is only cleaned up.
    Claim,
    /// Drop it: it's over, or another message stands for the job.
    Drop,
    /// Release what the record's claim may still hold, then drop it.
    ReleaseAndDrop,
    /// Hand it back for a second: the record will follow.
    AskAgainSoon,
    /// Hand it back for `ack_wait`: its owner lives.
    AskAgainLater,
    /// Decide on a read from the leader.
    ReadLeader,
}

/// The table of PROTOCOL, section 2.
///
/// A message is dropped, or handed back as too new, on the leader's word only.
#[must_use]
pub fn decide(
    record: Option<&Record>,
    message: &Message,
    reading: Reading,
    is_alive: impl Fn(&Owner) -> bool,
) -> Action {
    let action = from_table(record, message, is_alive);
    match (action, reading) {
        (Action::Drop | Action::ReleaseAndDrop | Action::AskAgainSoon, Reading::Any) => {
            Action::ReadLeader
        }
        (action, _) => action,
    }
}

fn from_table(
    record: Option<&Record>,
    message: &Message,
    is_alive: impl Fn(&Owner) -> bool,
) -> Action {
    let Some(record) = record else {
        return if message.generation == 1 {
            Action::Create
        } else {
            Action::Drop
        };
    };
    if record.state.name().is_final() {
        return Action::ReleaseAndDrop;
    }
    let same_queue = record.queue.queue() == Some(&message.queue);
    if message.generation < record.generation || !same_queue {
        return Action::Drop;
    }
    if message.generation > record.generation {
        return Action::AskAgainSoon;
    }
    match &record.state {
        JobState::Queued => Action::Claim,
        JobState::Running(hold) | JobState::Cancelling(hold) => {
            if !is_alive(&hold.owner) {
                Action::Claim
            } else if record.seq == Some(message.seq) {
                Action::AskAgainLater
            } else {
                Action::Drop
            }
        }
        JobState::Waiting(_) => Action::Drop,
        JobState::Succeeded(..) | JobState::Failed(..) | JobState::Cancelled(..) => {
            Action::ReleaseAndDrop
        }
    }
}

/// What to do with a message whose deliveries ran out: deliveries are not attempts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exhausted {
    /// Raise the generation and publish the job again, then delete the message.
    Publish,
    /// Nobody ever managed to claim it: fail it with `internal`, copy it to the dead letters.
    Fail,
    /// Another message stands for the job, or it needs none: delete this one.
    Delete,
}

/// The rule for a message at `max_deliver`, by the leader's record.
#[must_use]
pub fn exhausted(record: Option<&Record>, generation: u64) -> Exhausted {
    match record {
        Some(record) if record.state == JobState::Queued && record.generation == generation => {
            if record.rounds < ROUNDS_MAX {
                Exhausted::Publish
            } else if record.claim == 0 {
                Exhausted::Fail
            } else {
                Exhausted::Delete
            }
        }
        Some(_) => Exhausted::Delete,
        // No record at all: core registers the job, and the message is seen again after that.
        None => Exhausted::Delete,
    }
}
