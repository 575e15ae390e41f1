//! Many simulations, each by its seed.
//!
//! `VIRTBUS_SEEDS=n` runs so many, `VIRTBUS_SEED=n` one and says what happened in it.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::Instant,
};
use virtbus_sim::{Broken, Defect, History, Promise, check, net::BEGIN, plan::Plan, simulate};
#[cfg(feature = "short-lines")]
use virtbus_wire::protocol::lock::Lock;

/// How many seeds run when nothing else is said: `./dev test` runs many more, with
/// everything optimised.
const SEEDS: u64 = 200;

/// How many seeds are looked through for jobs that kill their workers.
const POISONED: u64 = 200;

/// How many seeds are looked through for storms.
const STORMS: u64 = 400;

fn run(seed: u64, defect: Option<Defect>) -> History {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime");
    runtime.block_on(simulate(seed, defect))
}

fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Runs these seeds on all processors; the first that breaks a promise that is meant, and how.
fn first_wrong(
    from: u64,
    count: u64,
    defect: Option<Defect>,
    is_meant: impl Fn(Promise) -> bool + Sync,
) -> Option<(u64, Vec<Broken>)> {
    let next = AtomicU64::new(from);
    let worst = std::sync::Mutex::new(None::<(u64, Vec<Broken>)>);
    let threads = thread::available_parallelism().map_or(2, usize::from);
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= from + count {
                        return;
                    }
                    let mut wrong = check(&run(seed, defect));
                    wrong.retain(|broken| is_meant(broken.promise));
                    if !wrong.is_empty() {
                        let mut worst = worst.lock().expect("no thread panicked");
                        if worst.as_ref().is_none_or(|(other, _)| seed < *other) {
                            *worst = Some((seed, wrong));
                        }
                        next.store(from + count, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    worst.into_inner().expect("no thread panicked")
}

#[test]
fn no_seed_breaks_a_promise() {
    let (from, count) = match variable("VIRTBUS_SEED") {
        Some(seed) => (seed, 1),
        None => (0, variable("VIRTBUS_SEEDS").unwrap_or(SEEDS)),
    };
    let began = Instant::now();
    if let Some((seed, wrong)) = first_wrong(from, count, None, |_| true) {
        let history = run(seed, None);
        for (at, subject, revision, payload) in &history.seen.stored {
            let text = String::from_utf8_lossy(payload);
            println!("{:8} {subject} {revision} {text}", at - BEGIN);
        }
        for queued in &history.seen.queued {
            println!("{:8} {queued:?}", queued.at - BEGIN);
        }
        for (at, subject, seq, to) in &history.seen.given {
            println!("{:8} given to {to}: {subject} {seq}", at - BEGIN);
        }
        println!("{:#?}", history.effects);
        println!("{:#?}", history.plan);
        wrong.iter().for_each(|broken| println!("{broken}"));
        panic!(
            "seed {seed} breaks a promise; again: VIRTBUS_SEED={seed} cargo test -p virtbus-sim --features short-lines no_seed -- --nocapture"
        );
    }
    println!("{count} seeds in {:?}", began.elapsed());
    if count == 1 {
        let history = run(from, None);
        println!(
            "{} messages, {} s",
            history.steps,
            (history.end - BEGIN) / 1_000
        );
    }
}

/// Or nothing would be known of those who stand beyond it.
#[test]
#[cfg(feature = "short-lines")]
fn lines_grow_longer_than_a_lock_s_list() {
    let is_long = |payload: &[u8]| {
        let lock: Option<Lock> = serde_json::from_slice(payload).ok();
        lock.is_some_and(|lock| lock.beyond.is_some())
    };
    let long = (0..300).filter(|seed| {
        let history = run(*seed, None);
        let mut locks = history.seen.stored.iter();
        locks.any(|(_, subject, _, payload)| subject.starts_with("$KV.locks.") && is_long(payload))
    });
    let count = long.count();
    assert!(count > 5, "{count}");
}

/// Or nothing would be known of them.
#[test]
fn jobs_that_kill_their_workers_before_their_work_come_to_either_end() {
    let poisoned = (0..POISONED).filter(|seed| Plan::new(*seed, BEGIN).is_poisoned);
    let mut ends = BTreeMap::new();
    for seed in poisoned {
        let history = run(seed, None);
        let mut stored = history.seen.stored.iter();
        let is_end =
            |text: &str| text.contains("\"attempt\":0") && text.contains("\"worker.lost\"");
        let is_given_up = stored.any(|(_, subject, _, payload)| {
            subject.starts_with("$KV.jobs.") && is_end(&String::from_utf8_lossy(payload))
        });
        *ends.entry(is_given_up).or_insert(0_u32) += 1;
    }
    assert!(
        ends.len() == 2 && ends.values().all(|count| *count > 2),
        "{ends:?}"
    );
}

/// Or what is asked in a storm would say nothing.
#[test]
fn storms_come_to_every_outcome() {
    let storms = (0..STORMS).filter(|seed| Plan::new(*seed, BEGIN).is_storm);
    let mut outcomes = BTreeMap::new();
    for seed in storms {
        for answer in run(seed, None).answers {
            let outcome = answer.answer["outcome"].as_str().unwrap_or("error");
            let verb = answer.ask.subject.rsplit('.').next();
            let about = (verb.unwrap_or_default(), outcome.to_owned());
            *outcomes.entry(about).or_insert(0_u32) += 1;
        }
    }
    let all = [
        ("cancel", "cancelled"),
        ("cancel", "cancelling"),
        ("cancel", "too_late"),
        ("cancel", "already_started"),
        ("cancel", "already_finished"),
        ("priority", "changed"),
        ("priority", "already_started"),
        ("priority", "already_finished"),
        ("retry", "queued"),
        ("retry", "not_final"),
    ];
    println!("{outcomes:?}");
    for (verb, outcome) in all {
        let count = outcomes.get(&(verb, outcome.to_owned()));
        assert!(
            count.is_some_and(|count| *count > 2),
            "{verb} {outcome}: {count:?}"
        );
    }
}

#[test]
fn a_seed_gives_the_same_history_each_time() {
    for seed in 0..100 {
        let (one, other) = (run(seed, None), run(seed, None));
        assert_eq!(
            (one.trace, one.steps),
            (other.trace, other.steps),
            "seed {seed}"
        );
    }
}

/// How many seeds a defect may stay hidden.
const HIDDEN_MAX: u64 = 2_000;

/// What looks for this promise finds the defect, whatever the others find.
fn is_found(defect: Defect, by: Promise) {
    let found = first_wrong(0, HIDDEN_MAX, Some(defect), |promise| promise == by);
    let (seed, wrong) = found.unwrap_or_else(|| panic!("{defect:?} stays hidden"));
    println!(
        "{defect:?} is found by seed {seed}: {:.300}",
        wrong[0].to_string()
    );
}

#[test]
fn locks_written_without_compare_are_found() {
    is_found(Defect::LocksWithoutCompare, Promise::Holders);
    is_found(Defect::LocksWithoutCompare, Promise::Fences);
}

#[test]
fn records_written_without_compare_are_found() {
    is_found(Defect::JobsWithoutCompare, Promise::Changes);
}

#[test]
fn lost_wake_ups_are_found() {
    is_found(Defect::WakeUpsDropped, Promise::Rest);
}

#[test]
fn effects_without_a_fence_are_found() {
    is_found(Defect::NoFence, Promise::Effects);
}

#[test]
fn answers_to_what_others_overwrite_are_found() {
    is_found(Defect::JobsWithoutCompare, Promise::Answers);
}

#[test]
fn effects_that_nobody_announced_are_found() {
    is_found(Defect::NoIntent, Promise::Catalogue);
}

#[test]
fn low_before_high_is_found() {
    is_found(Defect::LowFirst, Promise::Order);
}

#[test]
fn a_tenant_s_job_too_many_is_found() {
    is_found(Defect::OneTooMany, Promise::Tenants);
}

#[test]
fn whoever_passes_others_in_line_is_found() {
    is_found(Defect::TicketsIgnored, Promise::Lines);
}

#[test]
fn a_cancel_that_was_confirmed_and_forgotten_is_found() {
    is_found(Defect::CancelsForgotten, Promise::Answers);
}

#[test]
fn a_change_that_was_confirmed_and_forgotten_is_found() {
    is_found(Defect::MovesForgotten, Promise::Answers);
}

#[test]
fn a_batch_of_which_a_part_is_accepted_is_found() {
    is_found(Defect::LastOfBatchLost, Promise::Batches);
}

#[test]
fn claims_with_old_messages_are_found() {
    is_found(Defect::OldMessagesClaimed, Promise::Claims);
}
