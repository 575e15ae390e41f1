//! Every way out ends the whole group.

use std::{
    panic::AssertUnwindSafe,
    time::{Duration, Instant},
};

use futures_util::FutureExt;
use virtbus_worker::process::{Ended, Limits, RunError, RunOptions, Stdout, Stop, run};

use crate::{PATIENCE, Pids, marked, pids, runs, sh, until, wide};

/// Prints its own number and that of its child; both ignore TERM and wait for ever.
const DEAF: &str = "trap '' TERM HUP INT; \
    sh -c 'echo $$; while :; do sleep 1000; done' & echo $$; while :; do wait; done";
/// The same, but with the usual manners.
const POLITE: &str = "sh -c 'echo $$; exec sleep 1000' & echo $$; wait";
const HOUR: Duration = Duration::from_secs(3600);

async fn all_gone(pids: &[u32]) {
    until("the processes are gone", || {
        !pids.iter().any(|pid| runs(*pid))
    })
    .await;
}

/// Runs `script`, does `act` once both its processes are there, and expects a cancelled run
/// that left none of them.
async fn cancelled(script: &str, grace: Duration, act: impl Fn(&Stop)) -> Duration {
    let (mut tell, pids) = pids();
    let stop = Stop::new();
    let stdout = Stdout::Records(&mut tell);
    let options = RunOptions {
        stop: stop.clone(),
        grace,
        stdout,
        ..RunOptions::default()
    };
    let command = sh(script);
    let acting = async {
        let pids = pids.take(2).await;
        assert!(pids.iter().all(|pid| runs(*pid)));
        act(&stop);
        (pids, Instant::now())
    };
    let (answer, (pids, acted)) = tokio::join!(run(&command, options), acting);
    let took = acted.elapsed();
    assert!(
        matches!(answer, Err(RunError::Cancelled { .. })),
        "{answer:?}"
    );
    // At once, not in a moment: the answer itself says that the group is gone.
    assert!(
        !pids.iter().any(|pid| runs(*pid)),
        "some of {pids:?} still run"
    );
    took
}

#[tokio::test]
async fn stop_ends_a_polite_group_within_its_grace() {
    assert!(cancelled(POLITE, HOUR, Stop::stop).await < PATIENCE);
}

#[tokio::test]
async fn a_group_that_ignores_term_is_killed_after_its_grace() {
    let grace = Duration::from_millis(300);
    assert!(cancelled(DEAF, grace, Stop::stop).await >= grace);
}

#[tokio::test]
async fn kill_waits_for_no_grace() {
    assert!(cancelled(DEAF, HOUR, Stop::kill).await < PATIENCE);
    let stop_then_kill = |stop: &Stop| {
        stop.stop();
        stop.kill();
    };
    assert!(cancelled(DEAF, HOUR, stop_then_kill).await < PATIENCE);
}

#[tokio::test]
async fn a_stop_follows_the_one_it_was_made_from() {
    let parent = Stop::new();
    let child = parent.child();
    child.kill();
    assert!(!parent.is_asked());
    let child = parent.child();
    parent.stop();
    assert!(child.is_asked());
}

#[tokio::test]
async fn a_stop_before_the_start_starts_nothing() {
    let stop = Stop::new();
    stop.stop();
    let dir = tempfile::tempdir().unwrap();
    let command = sh("touch started").dir(dir.path());
    let answer = run(
        &command,
        RunOptions {
            stop,
            ..RunOptions::default()
        },
    )
    .await;
    assert!(matches!(answer, Err(RunError::Cancelled { .. })));
    assert!(!dir.path().join("started").exists());
}

#[tokio::test]
async fn the_deadline_ends_the_group_and_keeps_what_it_said() {
    // On a busy machine a short one may be over before the script has said anything.
    for wall in [700, 7_000, 70_000].map(Duration::from_millis) {
        let (mut tell, pids) = pids();
        let limits = Limits { wall, ..wide() };
        let command = sh(&format!("echo slow disk >&2; {DEAF}")).limits(limits);
        let stdout = Stdout::Records(&mut tell);
        let grace = Duration::from_millis(100);
        let answer = run(
            &command,
            RunOptions {
                grace,
                stdout,
                ..RunOptions::default()
            },
        )
        .await;
        let Err(RunError::Deadline { stderr, .. }) = answer else {
            panic!("{answer:?}")
        };
        let seen = pids.seen();
        assert!(!seen.iter().any(|pid| runs(*pid)));
        if seen.len() == 2 {
            assert_eq!(stderr.to_string(), "slow disk\n");
            return;
        }
    }
    panic!("the script never began");
}

#[tokio::test]
async fn a_dropped_run_kills_the_group() {
    let (mut tell, pids) = pids();
    let command = sh(DEAF);
    let stdout = Stdout::Records(&mut tell);
    let options = RunOptions {
        grace: HOUR,
        stdout,
        ..RunOptions::default()
    };
    let pids = tokio::select! {
        answer = run(&command, options) => panic!("{answer:?}"),
        pids = pids.take(2) => pids,
    };
    all_gone(&pids).await;
}

#[tokio::test]
async fn runs_dropped_while_they_start_leave_nothing() {
    let dir = tempfile::tempdir().unwrap();
    // Every process of these runs carries the mark in its environment.
    let mark = dir.path().to_str().unwrap().to_owned();
    let command = sh("sleep 1000 & sleep 1000; wait").env("MARK", &mark);
    for n in 0..40 {
        let mut run = Box::pin(run(&command, RunOptions::default()));
        // Some are dropped before the start, some just after it.
        tokio::time::timeout(Duration::from_micros(n * 200), &mut run)
            .await
            .unwrap_err();
    }
    // The one that still runs shows that the mark can be seen at all.
    let witness = run(&command, RunOptions::default());
    tokio::select! {
        answer = witness => panic!("{answer:?}"),
        () = until("a marked process is seen", || marked(&mark) >= 3) => {}
    }
    until("no marked process is left", || marked(&mark) == 0).await;
}

#[tokio::test]
async fn a_panic_in_the_callback_kills_the_group_and_goes_on() {
    let mut first = None;
    let mut burst = |record: &str| match first {
        None => first = Some(record.to_owned()),
        Some(_) => panic!("the callback fails"),
    };
    let command = sh(DEAF);
    let stdout = Stdout::Records(&mut burst);
    let running = run(
        &command,
        RunOptions {
            grace: HOUR,
            stdout,
            ..RunOptions::default()
        },
    );
    assert!(AssertUnwindSafe(running).catch_unwind().await.is_err());
    all_gone(&[first.unwrap().parse().unwrap()]).await;
}

#[tokio::test]
async fn what_a_tool_leaves_behind_goes_with_it() {
    let (mut tell, pids): (_, Pids) = pids();
    let command = sh("trap '' TERM; sleep 1000 & echo $!; exit 0");
    let stdout = Stdout::Records(&mut tell);
    let exit = run(
        &command,
        RunOptions {
            stdout,
            ..RunOptions::default()
        },
    )
    .await
    .unwrap();
    assert_eq!(exit.ended, Ended::Code(0));
    assert!(!pids.seen().into_iter().any(runs));
}

#[tokio::test]
async fn a_stopped_tool_is_woken_to_end() {
    let (mut tell, pids) = pids();
    let stop = Stop::new();
    let stdout = Stdout::Records(&mut tell);
    let options = RunOptions {
        stop: stop.clone(),
        grace: HOUR,
        stdout,
        ..RunOptions::default()
    };
    let command = sh("echo $$; exec sleep 1000");
    let acting = async {
        let pid = rustix::process::Pid::from_raw(pids.take(1).await[0] as i32).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
        stop.stop();
    };
    let (answer, ()) = tokio::join!(run(&command, options), acting);
    assert!(
        matches!(answer, Err(RunError::Cancelled { .. })),
        "{answer:?}"
    );
}
