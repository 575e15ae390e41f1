//! Open files: handed down on purpose, and never otherwise.

use std::{fs::File, os::fd::AsRawFd};

use virtbus_worker::process::{RunOptions, Stdout, Stop, run};

use crate::{pids, sh, until};

/// The open files of the shell that runs it, one line each.
const LIST: &str = "ls -l /proc/$$/fd";

async fn listed(inherit: Vec<std::os::fd::OwnedFd>) -> String {
    let stdout = Stdout::Capture { bytes_max: 1 << 16 };
    let exit = run(
        &sh(LIST),
        RunOptions {
            stdout,
            inherit,
            ..RunOptions::default()
        },
    )
    .await
    .unwrap();
    String::from_utf8(exit.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_is_handed_to_its_own_tool_and_to_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let runs: Vec<_> = (0..60)
        .map(|n| {
            let path = dir.path().join(format!("lock-{n}-"));
            tokio::spawn(async move {
                let file = File::create(&path).unwrap();
                let number = file.as_raw_fd();
                (number, listed(vec![file.into()]).await)
            })
        })
        .collect();
    for (n, run) in runs.into_iter().enumerate() {
        let (number, text) = run.await.unwrap();
        assert_eq!(text.matches("lock-").count(), 1, "{text}");
        assert!(text.contains(&format!("lock-{n}-")), "{text}");
        assert!(
            text.contains(&format!(" {number} -> ")),
            "{number} in {text}"
        );
    }
}

#[tokio::test]
async fn what_the_worker_has_open_is_not_open_in_a_tool() {
    let _open = File::open("/dev/zero").unwrap();
    let text = listed(Vec::new()).await;
    assert!(
        text.contains(" 2 -> pipe:") && !text.contains("/dev/zero"),
        "{text}"
    );
}

#[tokio::test]
async fn a_lock_handed_down_lasts_as_long_as_the_tool() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("lock");
    let file = File::create(&path).unwrap();
    file.lock().unwrap();
    let (mut tell, pids) = pids();
    let stop = Stop::new();
    let options = RunOptions {
        stop: stop.clone(),
        stdout: Stdout::Records(&mut tell),
        inherit: vec![file.into()],
        ..RunOptions::default()
    };
    let other = File::open(&path).unwrap();
    let command = sh("echo $$; exec sleep 1000");
    let look = async {
        pids.take(1).await;
        assert!(
            other.try_lock().is_err(),
            "the lock was free while the tool ran"
        );
        stop.stop();
    };
    let (answer, ()) = tokio::join!(run(&command, options), look);
    assert!(answer.is_err());
    until("the lock is free", || other.try_lock().is_ok()).await;
}
