//! Requests and answers, without a server.

use super::*;
use proptest::prelude::*;

const HUNGRY: Appetite = Appetite {
    high: 1,
    default: 1,
    low: 1,
    low_first: false,
};

fn pulls() -> Pulls {
    Pulls::new(Priority::ALL)
}

fn sent(step: Step) -> (usize, u64, bool) {
    match step {
        Step::Pull {
            queue,
            number,
            expires,
            ..
        } => (queue, number, expires.is_some()),
        Step::Wait(_) => panic!("expected a request, got {step:?}"),
    }
}

/// Answers the sweep of one queue with "nothing there"; it's armed then.
fn sweep_empty(pulls: &mut Pulls, expected: usize, now: Instant) {
    let (queue, number, waits) = sent(pulls.step(HUNGRY, now));
    assert_eq!((queue, waits), (expected, false));
    pulls.empty(number);
    let (queue, _, waits) = sent(pulls.step(HUNGRY, now));
    assert_eq!((queue, waits), (expected, true));
}

#[test]
fn a_less_urgent_queue_is_asked_only_when_the_more_urgent_said_it_is_empty() {
    let (mut pulls, now) = (pulls(), Instant::now());
    let (queue, _, _) = sent(pulls.step(HUNGRY, now));
    assert_eq!(queue, 0);
    assert!(matches!(pulls.step(HUNGRY, now), Step::Wait(_)));
}

#[test]
fn only_empty_queues_get_a_request_that_waits() {
    let (mut pulls, now) = (pulls(), Instant::now());
    for queue in 0..3 {
        sweep_empty(&mut pulls, queue, now);
    }
    assert!(matches!(pulls.step(HUNGRY, now), Step::Wait(_)));
}

#[test]
fn a_backlog_behind_empty_queues_costs_one_request_each_time() {
    let (mut pulls, now) = (pulls(), Instant::now());
    sweep_empty(&mut pulls, 0, now);
    for _ in 0..10 {
        let (queue, _, waits) = sent(pulls.step(HUNGRY, now));
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
    let (queue, _, waits) = sent(pulls.step(HUNGRY, now));
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
    let (queue, number, _) = sent(pulls.step(HUNGRY, now));
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
    sent(pulls.step(appetite, now));
    for _ in 0..2 {
        assert!(pulls.is_turn_of(1, appetite, now));
        pulls.delivered(1);
    }
}

#[test]
fn a_queue_that_does_not_answer_holds_up_the_others_only_so_long() {
    let (mut pulls, now) = (pulls(), Instant::now());
    sent(pulls.step(HUNGRY, now));
    let later = now + SWEEP_PATIENCE;
    let (queue, _, _) = sent(pulls.step(HUNGRY, later));
    assert_eq!(queue, 1);
}

#[test]
fn low_goes_first_while_it_has_less_than_its_floor() {
    let (mut pulls, now) = (pulls(), Instant::now());
    let appetite = Appetite {
        low_first: true,
        ..HUNGRY
    };
    assert_eq!(sent(pulls.step(appetite, now)).0, 2);
}

#[test]
fn a_refused_queue_is_left_alone_for_a_while() {
    let (mut pulls, now) = (pulls(), Instant::now());
    let (_, number, _) = sent(pulls.step(HUNGRY, now));
    pulls.refused(number, now);
    assert_eq!(sent(pulls.step(HUNGRY, now)).0, 1);
    let (mut waiting, later) = (pulls, now + REFUSED);
    waiting.restart();
    waiting.empty(2);
    assert_eq!(sent(waiting.step(HUNGRY, later)).0, 0);
}

#[test]
fn queues_of_one_priority_take_turns() {
    let now = Instant::now();
    let mut pulls = Pulls::new([Priority::High, Priority::High]);
    let (first, _, _) = sent(pulls.step(HUNGRY, now));
    pulls.delivered(first);
    let (second, _, _) = sent(pulls.step(HUNGRY, now));
    assert_ne!(first, second);
}

proptest! {
    #[test]
    fn no_queue_ever_has_two_requests(answers in prop::collection::vec(0..5u8, 0..200)) {
        let (mut pulls, mut now) = (pulls(), Instant::now());
        let mut open: Vec<(usize, u64)> = Vec::new();
        for answer in answers {
            if let Step::Pull { queue, number, .. } = pulls.step(HUNGRY, now) {
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
