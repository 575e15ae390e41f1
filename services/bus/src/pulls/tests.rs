//! Requests and answers, without a server.

use super::*;
use proptest::prelude::*;

const HUNGRY: Appetite = Appetite {
    high: 1,
    default: 1,
    low: 1,
    low_first: false,
    ahead: 0,
};

fn pulls() -> Pulls {
    Pulls::new(Priority::ALL)
}

/// The next step; a request is sent.
fn step(pulls: &mut Pulls, appetite: Appetite, now: Instant) -> Step {
    let step = pulls.step(appetite, now);
    if let Step::Pull(pull) = step {
        pulls.sent(pull, now);
    }
    step
}

fn sent(step: Step) -> (usize, u64, bool) {
    match step {
        Step::Pull(pull) => (pull.queue, pull.number, pull.expires.is_some()),
        Step::Wait(_) => panic!("expected a request, got {step:?}"),
    }
}

/// Answers the sweep of one queue with "nothing there"; it's armed then.
fn sweep_empty(pulls: &mut Pulls, expected: usize, now: Instant) {
    let (queue, number, waits) = sent(step(pulls, HUNGRY, now));
    assert_eq!((queue, waits), (expected, false));
    pulls.empty(number);
    let (queue, _, waits) = sent(step(pulls, HUNGRY, now));
    assert_eq!((queue, waits), (expected, true));
}

#[test]
fn a_less_urgent_queue_is_asked_only_when_the_more_urgent_said_it_is_empty() {
    let (mut pulls, now) = (pulls(), Instant::now());
    let (queue, _, _) = sent(step(&mut pulls, HUNGRY, now));
    assert_eq!(queue, 0);
    assert!(matches!(step(&mut pulls, HUNGRY, now), Step::Wait(_)));
}

#[test]
fn a_request_that_could_not_be_sent_is_said_again() {
    let (mut pulls, now) = (pulls(), Instant::now());
    let said = pulls.step(HUNGRY, now);
    assert_eq!(pulls.step(HUNGRY, now), said);
    let Step::Pull(pull) = said else {
        panic!("{said:?}")
    };
    pulls.sent(pull, now);
    assert!(matches!(pulls.step(HUNGRY, now), Step::Wait(_)));
}

#[test]
fn only_empty_queues_get_a_request_that_waits() {
    let (mut pulls, now) = (pulls(), Instant::now());
    for queue in 0..3 {
        sweep_empty(&mut pulls, queue, now);
    }
    assert!(matches!(step(&mut pulls, HUNGRY, now), Step::Wait(_)));
}

#[test]
fn a_backlog_behind_empty_queues_costs_one_request_each_time() {
    let (mut pulls, now) = (pulls(), Instant::now());
    sweep_empty(&mut pulls, 0, now);
    for _ in 0..10 {
        let (queue, _, waits) = sent(step(&mut pulls, HUNGRY, now));
        assert_eq!((queue, waits), (1, false));
        pulls.delivered(1);
    }
}

#[test]
fn a_message_starts_the_sweep_at_the_most_urgent_again() {
    let (mut pulls, now) = (pulls(), Instant::now());
    for queue in 0..2 {
        sweep_empty(&mut pulls, queue, now);
    }
    pulls.delivered(0);
    let (queue, _, waits) = sent(step(&mut pulls, HUNGRY, now));
    assert_eq!((queue, waits), (0, false));
}

#[test]
fn what_an_armed_request_brings_is_left_while_something_more_urgent_may_lie_there() {
    let (mut pulls, now) = (pulls(), Instant::now());
    for queue in 0..3 {
        sweep_empty(&mut pulls, queue, now);
    }
    assert!(pulls.is_turn_of(2, HUNGRY, now));
    // One of `default` comes while all slots are taken, and goes back. Now one is free again.
    pulls.delivered(1);
    assert!(!pulls.is_turn_of(2, HUNGRY, now));
    let (queue, number, _) = sent(step(&mut pulls, HUNGRY, now));
    assert_eq!(queue, 1);
    assert!(!pulls.is_turn_of(2, HUNGRY, now), "not answered yet");
    assert!(pulls.is_turn_of(0, HUNGRY, now));
    pulls.empty(number);
    assert!(pulls.is_turn_of(2, HUNGRY, now));
}

#[test]
fn a_batch_that_was_asked_for_in_turn_is_taken_as_a_whole() {
    let (mut pulls, now) = (pulls(), Instant::now());
    sweep_empty(&mut pulls, 0, now);
    let appetite = Appetite {
        default: 2,
        ..HUNGRY
    };
    sent(step(&mut pulls, appetite, now));
    for _ in 0..2 {
        assert!(pulls.is_turn_of(1, appetite, now));
        pulls.delivered(1);
    }
}

#[test]
fn more_is_asked_for_where_something_may_be_read_ahead_and_taken() {
    let now = Instant::now();
    let batch = |appetite| match pulls().step(appetite, now) {
        Step::Pull(pull) => Some((pull.queue, pull.batch)),
        Step::Wait(_) => None,
    };
    let with = |high, ahead| Appetite {
        high,
        ahead,
        low: 100,
        ..Appetite::default()
    };
    assert_eq!(batch(with(2, 0)), Some((0, 2)));
    assert_eq!(batch(with(2, 500)), Some((0, 502)));
    assert_eq!(batch(with(0, 500)), Some((2, BATCH_MAX + 500)));
    let full = Appetite {
        ahead: 500,
        ..Appetite::default()
    };
    assert_eq!(batch(full), None);
}

#[test]
fn a_queue_that_does_not_answer_holds_up_the_others_only_so_long() {
    let (mut pulls, now) = (pulls(), Instant::now());
    sent(step(&mut pulls, HUNGRY, now));
    let later = now + SWEEP_PATIENCE;
    let (queue, _, _) = sent(step(&mut pulls, HUNGRY, later));
    assert_eq!(queue, 1);
}

#[test]
fn low_goes_first_while_it_has_less_than_its_floor() {
    let (mut pulls, now) = (pulls(), Instant::now());
    let appetite = Appetite {
        low_first: true,
        ..HUNGRY
    };
    assert_eq!(sent(step(&mut pulls, appetite, now)).0, 2);
}

#[test]
fn a_refused_queue_is_left_alone_for_a_while() {
    let (mut pulls, now) = (pulls(), Instant::now());
    let (_, number, _) = sent(step(&mut pulls, HUNGRY, now));
    pulls.refused(number, now);
    assert_eq!(sent(step(&mut pulls, HUNGRY, now)).0, 1);
    let (mut waiting, later) = (pulls, now + REFUSED);
    waiting.restart();
    waiting.empty(2);
    assert_eq!(sent(step(&mut waiting, HUNGRY, later)).0, 0);
}

#[test]
fn queues_of_one_priority_take_turns() {
    let now = Instant::now();
    let mut pulls = Pulls::new([Priority::High, Priority::High]);
    let (first, _, _) = sent(step(&mut pulls, HUNGRY, now));
    pulls.delivered(first);
    let (second, _, _) = sent(step(&mut pulls, HUNGRY, now));
    assert_ne!(first, second);
}

proptest! {
    #[test]
    fn no_queue_ever_has_two_requests(answers in prop::collection::vec(0..5u8, 0..200)) {
        let (mut pulls, mut now) = (pulls(), Instant::now());
        let mut open: Vec<(usize, u64)> = Vec::new();
        for answer in answers {
            if let Step::Pull(Pull { queue, number, .. }) = step(&mut pulls, HUNGRY, now) {
                prop_assert!(open.iter().all(|(other, _)| *other != queue));
                open.push((queue, number));
            }
            let Some((queue, number)) = open.pop() else { continue };
            match answer {
                0 => pulls.delivered(queue),
                1 => pulls.empty(number),
                2 => pulls.refused(number, now),
                3 => { now += FORGOTTEN; open.clear(); }
                _ => open.push((queue, number)),
            }
        }
    }
}
