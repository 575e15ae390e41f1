//! What a run answers, and what binds the tool meanwhile.

use std::{fs, time::Duration};

use virtbus_worker::process::{
    CommandLine, Ended, Exit, IoPriority, Limits, Monotonic, RunError, RunOptions, Stdout, Stop,
    find_program, percent, run,
};

use crate::{pids, sh, wide};

async fn captured(command: CommandLine) -> Exit {
    let stdout = Stdout::Capture { bytes_max: 1 << 20 };
    run(
        &command,
        RunOptions {
            stdout,
            ..RunOptions::default()
        },
    )
    .await
    .unwrap()
}

#[tokio::test]
async fn a_failing_tool_is_an_answer() {
    let exit = captured(sh("echo out; echo err >&2; exit 3")).await;
    assert_eq!(exit.ended, Ended::Code(3));
    assert!(!exit.success());
    assert_eq!(exit.stdout, b"out\n");
    assert_eq!(exit.stderr.to_string(), "err\n");
}

#[tokio::test]
async fn the_signal_that_ended_a_tool_is_seen_through_the_prefix() {
    for (signal, number) in [("SEGV", 11), ("TERM", 15), ("KILL", 9), ("ALRM", 14)] {
        let exit = captured(sh(&format!("kill -{signal} $$"))).await;
        assert_eq!(exit.ended, Ended::Signal(number), "{}", exit.stderr);
    }
}

#[tokio::test]
async fn a_program_that_is_not_there_is_not_found() {
    let answer = run(
        &CommandLine::new("/usr/bin/no-such-tool"),
        RunOptions::default(),
    )
    .await;
    assert!(matches!(answer, Err(RunError::NotFound { program }) if program == "no-such-tool"));
    assert!(matches!(
        find_program("no-such-tool"),
        Err(RunError::NotFound { .. })
    ));
}

#[tokio::test]
async fn a_missing_directory_is_a_failed_start() {
    let answer = run(&sh("true").dir("/no/such/dir"), RunOptions::default()).await;
    assert!(matches!(answer, Err(RunError::Spawn { .. })), "{answer:?}");
}

#[tokio::test]
async fn a_tool_sees_a_small_environment_and_no_input() {
    let command = CommandLine::new("/usr/bin/env")
        .env("EXTRA", "1")
        .limits(wide());
    let text = String::from_utf8(captured(command).await.stdout).unwrap();
    let names: Vec<_> = text
        .lines()
        .filter_map(|line| line.split('=').next())
        .collect();
    assert!(
        text.contains("LC_ALL=C\n") && text.contains("EXTRA=1\n"),
        "{text}"
    );
    let known = ["PATH", "HOME", "TMPDIR", "LC_ALL", "EXTRA"];
    assert!(names.iter().all(|name| known.contains(name)), "{text}");
    assert_eq!(
        captured(sh("cat; readlink /proc/self/fd/0")).await.stdout,
        b"/dev/null\n"
    );
}

#[tokio::test]
async fn limits_and_priorities_bind_the_live_tool() {
    let limits = Limits {
        open_files: 40,
        file_size_bytes: 1 << 20,
        cpu_seconds: 77,
        wall: Duration::from_secs(600),
    };
    let command = sh("echo $$; exec sleep 1000")
        .limits(limits)
        .priority(7, Some(IoPriority::Idle))
        .dir("/usr");
    let (mut tell, pids) = pids();
    let stop = Stop::new();
    let options = RunOptions {
        stop: stop.clone(),
        stdout: Stdout::Records(&mut tell),
        ..RunOptions::default()
    };
    let look = async {
        let pid = pids.take(1).await[0];
        let text = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
        let squeezed: Vec<String> = text
            .lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
            .collect();
        for wanted in [
            "Max open files 40 40 files",
            "Max file size 1048576 1048576 bytes",
            "Max cpu time 77 82 seconds",
            "Max core file size 0 0 bytes",
        ] {
            assert!(
                squeezed.iter().any(|line| line == wanted),
                "no {wanted:?} in {text}"
            );
        }
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let nice = stat
            .rsplit_once(')')
            .unwrap()
            .1
            .split_whitespace()
            .nth(16)
            .unwrap()
            .to_owned();
        assert_eq!(nice, "7");
        assert_eq!(
            fs::read_link(format!("/proc/{pid}/cwd")).unwrap().to_str(),
            Some("/usr")
        );
        stop.stop();
    };
    let (answer, ()) = tokio::join!(run(&command, options), look);
    assert!(
        matches!(answer, Err(RunError::Cancelled { .. })),
        "{answer:?}"
    );
}

#[tokio::test]
async fn a_tool_that_writes_too_large_a_file_or_burns_too_long_is_ended_by_a_signal() {
    let dir = tempfile::tempdir().unwrap();
    let size = Limits {
        file_size_bytes: 1 << 20,
        ..wide()
    };
    let write = sh("exec head -c 2000000 /dev/zero > big")
        .dir(dir.path())
        .limits(size);
    assert_eq!(captured(write).await.ended, Ended::Signal(25));
    let cpu = Limits {
        cpu_seconds: 1,
        ..wide()
    };
    assert_eq!(
        captured(sh("while :; do :; done").limits(cpu)).await.ended,
        Ended::Signal(24)
    );
}

#[tokio::test]
async fn a_flood_of_errors_is_held_only_in_part() {
    let bytes = 100_000_000;
    let exit = captured(sh(&format!(
        "echo first >&2; head -c {bytes} /dev/zero >&2; echo last >&2"
    )))
    .await;
    let text = exit.stderr.to_string();
    assert!(text.starts_with("first\n") && text.ends_with("last\n"));
    assert!(text.len() < 40_000, "{}", text.len());
    assert_eq!(exit.stderr.left_out(), bytes + 11 - 32 * 1024);
}

#[tokio::test]
async fn a_flood_of_output_ends_a_capture() {
    let stdout = Stdout::Capture { bytes_max: 10_000 };
    let answer = run(
        &sh("yes"),
        RunOptions {
            stdout,
            ..RunOptions::default()
        },
    )
    .await;
    assert!(
        matches!(
            answer,
            Err(RunError::OutputTooLarge {
                bytes_max: 10_000,
                ..
            })
        ),
        "{answer:?}"
    );
    let stdout = Stdout::Capture { bytes_max: 10_000 };
    let exact = sh("head -c 10000 /dev/zero");
    let answer = run(
        &exact,
        RunOptions {
            stdout,
            ..RunOptions::default()
        },
    )
    .await;
    assert_eq!(answer.unwrap().stdout.len(), 10_000);
}

#[tokio::test]
async fn qemu_img_tells_its_progress() {
    let dir = tempfile::tempdir().unwrap();
    let data: Vec<u8> = (0..32 << 20).map(|n: u32| (n >> 7) as u8 | 1).collect();
    fs::write(dir.path().join("from.raw"), data).unwrap();
    let command = CommandLine::new(find_program("qemu-img").unwrap())
        .args([
            "convert", "-p", "-f", "raw", "-O", "qcow2", "from.raw", "to.qcow2",
        ])
        .dir(dir.path())
        .limits(wide());
    let (mut rising, mut seen) = (Monotonic::new(), Vec::new());
    let mut tell = |record: &str| seen.extend(percent(record).and_then(|value| rising.rise(value)));
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
    assert!(exit.success(), "{}", exit.stderr);
    assert!(seen.len() > 3 && seen.last() == Some(&100.0), "{seen:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_tools_run_side_by_side() {
    let runs: Vec<_> = (0..200)
        .map(|n| tokio::spawn(async move { captured(sh(&format!("sleep 0.2; echo {n}"))).await }))
        .collect();
    for (n, run) in runs.into_iter().enumerate() {
        assert_eq!(
            String::from_utf8(run.await.unwrap().stdout).unwrap(),
            format!("{n}\n")
        );
    }
}
