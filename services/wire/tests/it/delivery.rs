//! The table of what a worker does with a message.

use crate::jobs::{after, cancel, claim, queued};
use serde_json::Map;
use virtbus_wire::{
    Event, Record,
    protocol::delivery::{Action, Exhausted, Message, ROUNDS_MAX, Reading, decide, exhausted},
    state::{Owner, WaitReason},
};

fn message(generation: u64) -> Message {
    Message {
        generation,
        queue: "storage.p.low".parse().unwrap(),
        seq: 7,
    }
}

fn alive(_: &Owner) -> bool {
    true
}

fn dead(_: &Owner) -> bool {
    false
}

fn parked() -> Record {
    let on = WaitReason::Lock {
        resource: "disk.d1".to_owned(),
        holder: None,
        since: None,
    };
    after(
        &queued(),
        [
            claim(1, false),
            Event::Park {
                on,
                refund: false,
                ticket: Some(1),
            },
        ],
    )
}

#[test]
fn every_row_of_the_table_holds() {
    let published = after(&queued(), [Event::Publish { round: false }]);
    let running = after(&queued(), [claim(1, true)]);
    let cancelling = after(&running, [cancel()]);
    let done = after(&running, [Event::Succeed(Map::new())]);
    let elsewhere = Message {
        queue: "storage.p.high".parse().unwrap(),
        ..message(1)
    };
    let copy = Message {
        seq: 8,
        ..message(1)
    };
    type Row<'a> = (
        &'a str,
        Option<&'a Record>,
        Message,
        fn(&Owner) -> bool,
        Action,
    );
    let table: [Row<'_>; 15] = [
        (
            "none, the publisher's own",
            None,
            message(1),
            alive,
            Action::Create,
        ),
        (
            "none, published again",
            None,
            message(2),
            alive,
            Action::Drop,
        ),
        (
            "final",
            Some(&done),
            message(1),
            alive,
            Action::ReleaseAndDrop,
        ),
        (
            "final, newer",
            Some(&done),
            message(9),
            alive,
            Action::ReleaseAndDrop,
        ),
        (
            "older generation",
            Some(&published),
            message(1),
            alive,
            Action::Drop,
        ),
        (
            "another queue",
            Some(&queued()),
            elsewhere,
            alive,
            Action::Drop,
        ),
        (
            "newer generation",
            Some(&queued()),
            message(2),
            alive,
            Action::AskAgainSoon,
        ),
        ("waiting", Some(&parked()), message(1), alive, Action::Drop),
        ("queued", Some(&queued()), message(1), alive, Action::Claim),
        (
            "running here",
            Some(&running),
            message(1),
            alive,
            Action::AskAgainLater,
        ),
        (
            "running, a copy",
            Some(&running),
            copy.clone(),
            alive,
            Action::Drop,
        ),
        (
            "cancelling, a copy",
            Some(&cancelling),
            copy,
            alive,
            Action::Drop,
        ),
        (
            "cancelling here",
            Some(&cancelling),
            message(1),
            alive,
            Action::AskAgainLater,
        ),
        (
            "running, owner dead",
            Some(&running),
            message(1),
            dead,
            Action::Claim,
        ),
        (
            "cancelling, owner dead",
            Some(&cancelling),
            message(1),
            dead,
            Action::Claim,
        ),
    ];
    for (name, record, message, is_alive, action) in table {
        assert_eq!(
            decide(record, &message, Reading::Leader, is_alive),
            action,
            "{name}"
        );
    }
}

#[test]
fn nothing_is_dropped_on_a_read_that_may_be_stale() {
    let published = after(&queued(), [Event::Publish { round: false }]);
    assert_eq!(
        decide(Some(&published), &message(1), Reading::Any, alive),
        Action::ReadLeader,
        "older generation"
    );
    assert_eq!(
        decide(None, &message(2), Reading::Any, alive),
        Action::ReadLeader,
        "no record"
    );
    assert_eq!(
        decide(None, &message(1), Reading::Any, alive),
        Action::Create
    );
    assert_eq!(
        decide(Some(&queued()), &message(1), Reading::Any, alive),
        Action::Claim
    );
}

#[test]
fn deliveries_that_ran_out_are_not_attempts() {
    let mut job = queued();
    assert_eq!(exhausted(Some(&job), 1), Exhausted::Publish);
    assert_eq!(exhausted(Some(&job), 2), Exhausted::Delete);
    assert_eq!(
        exhausted(Some(&after(&job, [claim(1, true)])), 1),
        Exhausted::Delete
    );
    for _ in 0..ROUNDS_MAX {
        job = after(&job, [Event::Publish { round: true }]);
    }
    assert_eq!(exhausted(Some(&job), job.generation), Exhausted::Fail);
}
