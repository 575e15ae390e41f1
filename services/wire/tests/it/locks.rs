//! Who gets a lock, and in which order.

use crate::jobs::{any_mode, at, job};
use proptest::prelude::*;
use virtbus_wire::{
    JobId, Timestamp,
    protocol::lock::{Before, Claimant, Holder, Lock, Mode, Take, WAITERS_MAX},
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
        limit: None,
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
        other @ (Take::Refused(_) | Take::Full(_) | Take::Lost) => panic!("{other:?}"),
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
fn a_counting_lock_is_shared_up_to_its_limit_and_those_in_line_count() {
    let asks = |name: &str, ticket| Claimant {
        limit: Some(2),
        ..claimant(name, 1, ticket, Mode::Shared)
    };
    let one = taken(&Lock::default(), &asks("a", None));
    let two = taken(&one, &asks("b", None));
    assert_eq!(two.take(&asks("c", None), at(0), nobody), Take::Full(2));
    let line = two.enlist(&holder("c"), 10, Mode::Shared);
    let line = line.enlist(&holder("d"), 11, Mode::Shared);
    assert!(line.next_in_line(Some(2)).is_empty());
    // One ends: the first in line has its place, whoever comes in between.
    let line = line.release(&holder("a"));
    assert_eq!(line.next_in_line(Some(2)), [job("c")]);
    assert_eq!(line.take(&asks("e", None), at(0), nobody), Take::Full(1));
    assert_eq!(
        line.take(&asks("d", Some(11)), at(0), nobody),
        Take::Full(1)
    );
    let lock = taken(&line, &asks("c", Some(10)));
    assert_eq!(lock.shared.len(), 2);
    // A larger limit lets more go on.
    assert_eq!(lock.next_in_line(Some(9)), [job("d")]);
}

#[test]
fn a_lock_names_the_first_waiters_and_nobody_gets_past_the_others() {
    let mut lock = taken(
        &Lock::default(),
        &claimant("holder", 1, None, Mode::Exclusive),
    );
    let count = u64::try_from(WAITERS_MAX).unwrap() + 50;
    let mut waiting = Vec::new();
    // In any order: the lowest tickets are named.
    for ticket in (1..=count).rev() {
        let name = format!("w{ticket}");
        lock = lock.enlist(&holder(&name), ticket, Mode::Exclusive);
        waiting.insert(0, (ticket, job(&name), Mode::Exclusive));
    }
    assert_eq!(lock.waiters.len(), WAITERS_MAX);
    assert_eq!(lock.beyond, Some(count - 49));
    assert!(serde_json::to_vec(&lock).unwrap().len() < 32 << 10);
    let mut order = Vec::new();
    lock = lock.release(&holder("holder"));
    while let [next] = lock.next_in_line(None).as_slice() {
        order.push(next.clone());
        let ticket = waiting.iter().find(|(_, job, _)| job == next).unwrap().0;
        assert!(is_refused(
            &lock,
            &claimant("newcomer", 1, None, Mode::Shared)
        ));
        let ask = claimant(next.as_str(), 1, Some(ticket), Mode::Exclusive);
        lock = taken(&lock, &ask).release(&holder(next.as_str()));
        waiting.retain(|(_, job, _)| job != next);
        lock = lock.refilled(&waiting);
    }
    let expected: Vec<JobId> = (1..=count)
        .map(|ticket| job(&format!("w{ticket}")))
        .collect();
    assert_eq!(order, expected);
    assert!(lock.is_unused());
}

#[test]
fn a_list_that_drained_before_it_was_filled_up_keeps_newcomers_out() {
    let lock = Lock {
        beyond: Some(7),
        ..Lock::default()
    };
    assert!(!lock.is_unused());
    assert!(is_refused(
        &lock,
        &claimant("newcomer", 1, None, Mode::Shared)
    ));
    assert!(!is_refused(
        &lock,
        &claimant("a", 1, Some(7), Mode::Exclusive)
    ));
    // Those beyond are gone.
    assert!(lock.refilled(&[]).is_unused());
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

fn refused_for(id: &str, since: Option<Timestamp>) -> Take {
    let job = job(id);
    Take::Refused(Some(Before { job, since }))
}

#[test]
fn who_is_refused_is_told_who_has_the_lock_and_since_when_else_who_is_first_in_line() {
    let held = taken(&Lock::default(), &claimant("a", 1, None, Mode::Exclusive));
    let line = held
        .enlist(&holder("b"), 2, Mode::Exclusive)
        .enlist(&holder("c"), 3, Mode::Shared);
    let ask = |lock: &Lock, id, place, mode| {
        let claimant = claimant(id, 1, place, mode);
        lock.take(&claimant, at(9), nobody)
    };
    let (alone, shared) = (Mode::Exclusive, Mode::Shared);
    assert_eq!(
        ask(&line, "c", Some(3), shared),
        refused_for("a", Some(at(0)))
    );
    let free = line.release(&holder("a"));
    assert_eq!(ask(&free, "c", Some(3), shared), refused_for("b", None));
    assert_eq!(ask(&free, "d", None, alone), refused_for("b", None));
    // Whom a sharer doesn't wait for isn't named, nor is anybody the record doesn't name.
    let mut sharers =
        Lock::default()
            .enlist(&holder("b"), 2, shared)
            .enlist(&holder("c"), 3, alone);
    assert_eq!(ask(&sharers, "d", None, shared), refused_for("c", None));
    sharers = sharers.without(|id| *id == job("c"));
    sharers.beyond = Some(4);
    assert_eq!(ask(&sharers, "d", None, shared), Take::Refused(None));
}

#[test]
fn a_woken_waiter_is_waited_for_only_so_long() {
    let queue = Lock::default().enlist(&holder("a"), 1, Mode::Exclusive);
    let woken = queue.woken(&[job("a")], at(0));
    let other = claimant("b", 1, Some(2), Mode::Exclusive);
    assert_eq!(woken.take(&other, at(30), nobody), refused_for("a", None));
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
    assert_eq!(lock.next_in_line(None), [job("a"), job("b")]);
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
                        Take::Refused(_) | Take::Full(_) | Take::Lost => {
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
        prop_assert_eq!(free.next_in_line(None).is_empty(), free.waiters.is_empty());
    }
}
