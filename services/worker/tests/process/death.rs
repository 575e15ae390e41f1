//! The worker's own death, and that of a thread of it. The worker that dies is this test binary
//! once more, running only [`a_worker_of_its_own`] or its busy sister.

use std::{
    env,
    fs::{self, File},
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
    sync::mpsc,
    task::{Context, Waker},
    thread,
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use virtbus_worker::process::{Ended, Limits, RunOptions, Stdout, Stop, Way, run};

use crate::{PATIENCE, marked, pids, runs, sh, until, way::doing, wide};

const SCRIPT: &str = "VIRTBUS_TEST_SCRIPT";
const LOCK: &str = "VIRTBUS_TEST_LOCK";
/// That the tool stands still once it printed something.
const STANDS: &str = "VIRTBUS_TEST_STANDS";
const BUSY: &str = "VIRTBUS_TEST_BUSY";
const MARK: &str = "tool printed ";

/// Nothing by itself: the body of a worker that starts tools all the time.
#[tokio::test(flavor = "multi_thread")]
async fn a_busy_worker_of_its_own() {
    let Ok(mark) = env::var(BUSY) else { return };
    let starts = (0..8).map(|_| async {
        loop {
            let command = sh("sleep 0.01 & sleep 0.02; sleep 1000").env("MARK", &mark);
            let wall = Duration::from_millis(30);
            let command = command.limits(Limits { wall, ..wide() });
            let options = RunOptions {
                grace: Duration::ZERO,
                ..RunOptions::default()
            };
            run(&command, options).await.unwrap_err();
        }
    });
    futures_util::future::join_all(starts).await;
}

#[tokio::test]
async fn a_worker_killed_while_it_starts_tools_leaves_none() {
    let dir = tempfile::tempdir().unwrap();
    let mark = dir.path().to_str().unwrap();
    for round in 0..20 {
        let mut command = Command::new(env::current_exe().unwrap());
        command
            .args(["--exact", "death::a_busy_worker_of_its_own"])
            .env(BUSY, mark);
        let mut worker = command.stdout(Stdio::null()).spawn().unwrap();
        // The worker itself is one of them. Other moments in every round.
        until("tools run", || marked(mark) > 1 + round % 7).await;
        worker.kill().unwrap();
        worker.wait().unwrap();
        until("no tool is left", || marked(mark) == 0).await;
    }
}

/// Nothing by itself: the body of the worker that the other tests start and kill.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_of_its_own() {
    let Ok(script) = env::var(SCRIPT) else { return };
    let inherit = env::var(LOCK).ok().map(|path| {
        let file = File::create(path).unwrap();
        file.lock().unwrap();
        file.into()
    });
    let (way, mut first) = (Way::new(), None);
    let mut tell = |record: &str| {
        println!("\n{MARK}{record}");
        first = env::var(STANDS).is_ok().then(|| way.first());
    };
    let options = RunOptions {
        stop: Stop::making_way(&way),
        stdout: Stdout::Records(&mut tell),
        inherit: inherit.into_iter().collect(),
        ..RunOptions::default()
    };
    run(&sh(&script), options).await.unwrap();
}

/// Starts such a worker and waits until its tool printed `n` process numbers.
fn worker(script: &str, lock: Option<&Path>, n: usize) -> (Child, Vec<u32>) {
    worker_with(script, lock.map(|path| (LOCK, path)), n)
}

fn worker_with(script: &str, with: Option<(&str, &Path)>, n: usize) -> (Child, Vec<u32>) {
    let mut command = Command::new(env::current_exe().unwrap());
    command.args(["--exact", "death::a_worker_of_its_own", "--nocapture"]);
    command
        .env(SCRIPT, script)
        .envs(with)
        .stdout(Stdio::piped());
    let mut worker = command.spawn().unwrap();
    let output = BufReader::new(worker.stdout.take().unwrap());
    let (sender, printed) = mpsc::channel();
    thread::spawn(move || {
        for line in output.lines().map_while(Result::ok) {
            if let Some(number) = line.strip_prefix(MARK) {
                sender.send(number.parse().unwrap()).ok();
            }
        }
    });
    let pids = (0..n)
        .map(|_| printed.recv_timeout(PATIENCE).unwrap())
        .collect();
    (worker, pids)
}

#[tokio::test]
async fn a_killed_worker_leaves_no_tool_and_no_child_of_a_tool() {
    let script =
        "trap '' TERM HUP INT ALRM; sh -c 'echo $$; exec sleep 1000' & echo $$; wait; sleep 1000";
    let (mut worker, pids) = worker(script, None, 2);
    assert!(pids.iter().all(|pid| runs(*pid)));
    worker.kill().unwrap();
    worker.wait().unwrap();
    until("the tool and its child are gone", || {
        !pids.iter().any(|pid| runs(*pid))
    })
    .await;
}

#[tokio::test]
async fn a_killed_worker_leaves_no_tool_that_stands_still() {
    let with = Some((STANDS, Path::new("")));
    let (mut worker, pids) = worker_with("echo $$; while :; do :; done", with, 1);
    until("it stands", || doing(pids[0]) == Some('T')).await;
    worker.kill().unwrap();
    worker.wait().unwrap();
    until("it is gone", || !runs(pids[0])).await;
}

#[tokio::test]
async fn a_killed_worker_leaves_no_qemu_img() {
    let script = "echo $$; exec qemu-img bench -c 1000000000 --image-opts driver=null-co,size=1G";
    let (mut worker, pids) = worker(script, None, 1);
    let name = || fs::read_to_string(format!("/proc/{}/comm", pids[0])).unwrap_or_default();
    until("qemu-img works", || name() == "qemu-img\n").await;
    worker.kill().unwrap();
    worker.wait().unwrap();
    until("qemu-img is gone", || !runs(pids[0])).await;
}

#[tokio::test]
async fn a_lock_handed_down_outlives_the_worker_with_the_tool_that_got_away() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("lock");
    // Its own session: out of the group, and so out of the guard's reach.
    let script = "setsid sh -c 'echo $$; exec sleep 1000'";
    let (mut worker, pids) = worker(script, Some(&path), 1);
    worker.kill().unwrap();
    worker.wait().unwrap();
    let other = File::open(&path).unwrap();
    assert!(runs(pids[0]));
    assert!(
        other.try_lock().is_err(),
        "the lock was free while the tool lived"
    );
    kill_process(Pid::from_raw(pids[0] as i32).unwrap(), Signal::KILL).unwrap();
    until("the lock is free", || other.try_lock().is_ok()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tool_outlives_the_thread_that_asked_for_it() {
    let (mut tell, pids) = pids();
    let dir = tempfile::tempdir().unwrap();
    let command = sh("echo $$; until test -e go; do sleep 0.01; done; exit 5").dir(dir.path());
    let stdout = Stdout::Records(&mut tell);
    let mut running = Box::pin(run(
        &command,
        RunOptions {
            stdout,
            ..RunOptions::default()
        },
    ));
    let runtime = tokio::runtime::Handle::current();
    // The first steps, up to the running script, are taken by a thread that then ends.
    thread::scope(|scope| {
        let running = running.as_mut();
        scope.spawn(move || {
            let mut running = running;
            let _context = runtime.enter();
            let mut seen = Vec::new();
            let began = std::time::Instant::now();
            while seen.is_empty() {
                let polled = running
                    .as_mut()
                    .poll(&mut Context::from_waker(Waker::noop()));
                assert!(polled.is_pending() && began.elapsed() < PATIENCE);
                seen = pids.seen();
                thread::yield_now();
            }
        });
    });
    File::create(dir.path().join("go")).unwrap();
    let exit = running.await.unwrap();
    assert_eq!(exit.ended, Ended::Code(5));
}
