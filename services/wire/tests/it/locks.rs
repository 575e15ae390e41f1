//! Who gets a lock, and in which order.

use crate::jobs::{any_mode, at, job};
use proptest::prelude::*;
use virtbus_wire::{
    JobId,
    protocol::lock::{Claimant, Holder, Lock, Mode, Take},
};

fn claimant(name: &str, claim: u64, ticket: Option<u64>, mode: Mode) -> Claimant {
    Claimant {
        holder: Holder {
            job: job(name),
            claim,
            since: None,
        },
        ticket,
        mode,
    }
}

fn holder(name: &str) -> Holder {
    claimant(name, 1, None, Mode::Shared).holder
}

fn nobody(_: &JobId) -> bool {
    false
}

fn taken(lock: &Lock, claimant: &Claimant) -> Lock {
    match lock.take(claimant, at(0), nobody) {
        Take::Taken(lock) => lock,
        other @ (Take::Refused(_) | Take::Lost) => panic!("{other:?}"),
    }
}

fn is_refused(lock: &Lock, claimant: &Claimant) -> bool {
    matches!(lock.take(claimant, at(0), nobody), Take::Refused(_))
}

#[test]
fn sharers_share_and_a_writer_has_it_alone() {
    let one = taken(&Lock::default(), &claimant("a", 1, None, Mode::Shared));
    let two = taken(&one, &claimant("b", 1, None, Mode::Shared));
    assert!(is_refused(&two, &claimant("c", 1, None, Mode::Exclusive)));
    let alone = taken(&Lock::default(), &claimant("a", 1, None, Mode::Exclusive));
    assert!(is_refused(&alone, &claimant("b", 1, None, Mode::Shared)));
}

#[test]
fn a_waiting_writer_is_not_starved_by_sharers() {
    let shared = taken(&Lock::default(), &claimant("a", 1, None, Mode::Shared));
    let queue = shared.enlist(&holder("w"), 10, Mode::Exclusive);
    assert!(is_refused(&queue, &claimant("b", 1, None, Mode::Shared)));
    assert!(is_refused(
        &queue,
        &claimant("b", 1, Some(11), Mode::Shared)
    ));
    assert!(!is_refused(
        &queue,
        &claimant("b", 1, Some(9), Mode::Shared)
    ));
}

#[test]
fn a_newer_claim_replaces_the_older_ones_entry() {
    let held = taken(&Lock::default(), &claimant("a", 1, None, Mode::Exclusive));
    let again = taken(&held, &claimant("a", 2, None, Mode::Exclusive));
    assert_eq!(again.exclusive.as_ref().unwrap().claim, 2);
    assert_eq!(
        again.release(&Holder {
            job: job("a"),
            claim: 1,
            since: None
        }),
        again
    );
    assert!(
        again
            .release(&Holder {
                job: job("a"),
                claim: 2,
                since: None
            })
            .is_unused()
    );
}

#[test]
fn a_newer_claim_keeps_what_the_older_one_has_although_others_wait() {
    for mode in [Mode::Exclusive, Mode::Shared] {
        let held = taken(&Lock::default(), &claimant("a", 1, None, mode));
        let queue = held.enlist(&holder("w"), 10, Mode::Exclusive);
        let kept = taken(&queue, &claimant("a", 2, None, mode));
        assert!(is_refused(
            &kept,
            &claimant("w", 2, Some(10), Mode::Exclusive)
        ));
    }
    // What it doesn't have it gets in its turn.
    let shared = taken(&Lock::default(), &claimant("a", 1, None, Mode::Shared));
    let queue = shared.enlist(&holder("w"), 10, Mode::Exclusive);
    let more = claimant("a", 2, None, Mode::Exclusive);
    assert!(is_refused(&queue, &more));
}

#[test]
fn a_claim_that_is_lost_takes_nothing_from_its_successor() {
    let held = taken(&Lock::default(), &claimant("a", 2, None, Mode::Exclusive));
    let late = claimant("a", 1, Some(1), Mode::Exclusive);
    assert_eq!(held.take(&late, at(0), nobody), Take::Lost);
    assert_eq!(held.enlist(&late.holder, 1, Mode::Exclusive), held);
}

#[test]
fn holders_and_waiters_that_are_over_do_not_count() {
    let held = taken(&Lock::default(), &claimant("a", 1, None, Mode::Exclusive));
    let queue = held.enlist(&holder("b"), 3, Mode::Exclusive);
    let over = |id: &JobId| *id != job("c");
    let take = queue.take(&claimant("c", 1, None, Mode::Exclusive), at(0), over);
    let Take::Taken(lock) = take else {
        panic!("refused")
    };
    assert_eq!(lock.exclusive.unwrap().job, job("c"));
    assert!(lock.waiters.is_empty());
}

#[test]
fn a_woken_waiter_is_waited_for_only_so_long() {
    let queue = Lock::default().enlist(&holder("a"), 1, Mode::Exclusive);
    let woken = queue.woken(&[job("a")], at(0));
    let other = claimant("b", 1, Some(2), Mode::Exclusive);
    assert!(matches!(
        woken.take(&other, at(30), nobody),
        Take::Refused(None)
    ));
    let Take::Taken(lock) = woken.take(&other, at(31), nobody) else {
        panic!("refused")
    };
    assert_eq!(lock.waiters[0].job, job("a"), "it keeps its place");
}

#[test]
fn all_leading_sharers_go_on_together() {
    let lock = Lock::default()
        .enlist(&holder("c"), 3, Mode::Exclusive)
        .enlist(&holder("b"), 2, Mode::Shared)
        .enlist(&holder("a"), 1, Mode::Shared)
        .enlist(&holder("d"), 4, Mode::Shared);
    assert_eq!(lock.next_in_line(), [job("a"), job("b")]);
}

#[derive(Debug, Clone)]
enum Step {
    Ask(usize, Mode),
    Release(usize),
}

fn any_steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        (0..5usize, any_mode()).prop_map(|(who, mode)| Step::Ask(who, mode)),
        (0..5usize).prop_map(Step::Release),
    ];
    prop::collection::vec(step, 0..60)
}

proptest! {
    #[test]
    fn a_lock_is_never_held_alone_and_shared_and_its_line_is_sorted(steps in any_steps()) {
        let mut lock = Lock::default();
        let mut tickets = 0;
        for step in steps {
            match step {
                Step::Ask(who, mode) => {
                    let name = format!("j{who}");
                    let ticket = lock.waiters.iter().find(|w| w.job == job(&name));
                    let claimant = claimant(&name, 1, ticket.map(|w| w.ticket), mode);
                    match lock.take(&claimant, at(0), nobody) {
                        Take::Taken(next) => lock = next,
                        Take::Refused(_) | Take::Lost => {
                            tickets += 1;
                            let ticket = claimant.ticket.unwrap_or(tickets);
                            lock = lock.enlist(&holder(&name), ticket, mode);
                        }
                    }
                }
                Step::Release(who) => {
                    let name = format!("j{who}");
                    lock = lock.release(&Holder { job: job(&name), claim: 1, since: None });
                }
            }
            prop_assert!(lock.exclusive.is_none() || lock.shared.is_empty());
            prop_assert!(lock.waiters.is_sorted_by_key(|waiter| waiter.ticket));
            let waits = |id: &JobId| lock.waiters.iter().any(|waiter| waiter.job == *id);
            prop_assert!(!lock.shared.iter().chain(&lock.exclusive).any(|holder| waits(&holder.job)));
        }
        // Nothing is stuck: with all holders gone somebody may go on.
        let free = Lock { exclusive: None, shared: Vec::new(), ..lock };
        prop_assert_eq!(free.next_in_line().is_empty(), free.waiters.is_empty());
    }
}
