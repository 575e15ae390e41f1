//! Jobs whose claims are lost before their work.

use crate::jobs::{after, cancel, claim, owner, queued};
use std::time::Duration;
use virtbus_wire::{
    Code, Event, Record, StateName,
    protocol::{
        outcome,
        poison::{LOST_MAX, is_poison, rest},
    },
    state::Phase,
};

/// A job after so many claims, each by another worker, after what happened before.
fn claimed(before: Vec<Event>, claims: u32) -> Record {
    let claims = (0..claims).map(|number| claim(u128::from(number) + 10, false));
    after(&queued(), before.into_iter().chain(claims))
}

#[test]
fn the_claim_after_five_that_were_lost_before_their_work_ends_a_job() {
    assert!(!is_poison(&claimed(vec![], LOST_MAX)));
    let ended = claimed(vec![], LOST_MAX + 1);
    assert!(is_poison(&ended));
    let error = outcome::worker_lost(&ended);
    assert_eq!(
        (error.code, error.detail["claims"].as_u64()),
        (Code::WorkerLost, Some(5))
    );
    // Whoever finds it over knows it too.
    let ended = after(&ended, [Event::Fail(error)]);
    assert!(is_poison(&ended));
    let again = after(&ended, [Event::Retry]);
    assert_eq!((again.lost, is_poison(&again)), (0, false));
}

#[test]
fn a_job_that_is_being_cancelled_counts_on() {
    let before = vec![claim(1, false), cancel()];
    let cancelling = claimed(before, LOST_MAX);
    assert_eq!(cancelling.state.name(), StateName::Cancelling);
    assert!(is_poison(&cancelling));
}

#[test]
fn a_claim_that_a_living_worker_gave_up_is_not_lost() {
    let own = std::iter::repeat_n(claim(1, false), 20);
    let job = after(&queued(), own);
    assert_eq!((job.claim, job.lost), (20, 0));
}

#[test]
fn a_job_whose_work_ever_began_is_looked_at_ever_more_rarely_and_never_ended() {
    let began = || vec![claim(1, true)];
    let minutes = |claims| rest(&claimed(began(), claims), &owner(1)).as_secs() / 60;
    // The first claim was lost in its work.
    let rests: Vec<u64> = (0..12).map(minutes).collect();
    assert_eq!(rests, [0, 0, 0, 0, 0, 1, 2, 4, 8, 16, 16, 16]);
    assert!(!is_poison(&claimed(began(), 20)));
    let working = after(&claimed(began(), 9), [Event::Enter(Phase::Work)]);
    assert_eq!(
        (working.lost, rest(&working, &owner(1))),
        (0, Duration::ZERO)
    );
    // Who has it itself doesn't wait for itself; nor does anybody where the job will end.
    assert_eq!(rest(&claimed(began(), 9), &owner(18)), Duration::ZERO);
    assert_eq!(rest(&claimed(vec![], 9), &owner(1)), Duration::ZERO);
}
