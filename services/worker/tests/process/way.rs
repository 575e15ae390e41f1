//! Tools that stand still while others go first.

use crate::{pids, sh, until};
use std::{fs, time::Duration};
use virtbus_worker::process::{Ended, RunError, RunOptions, Stdout, Stop, Way, run};

/// Prints its number and that of its group's leader, and works for ever.
const BUSY: &str = "echo $$; cut -d' ' -f5 /proc/$$/stat; while :; do :; done";

/// How the kernel calls what the process does: `T` is stopped, `R` runs.
pub(crate) fn doing(pid: u32) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.trim_start().chars().next()
}

#[tokio::test]
async fn a_tool_stands_still_while_another_goes_first() {
    let (mut tell, pids) = pids();
    let way = Way::new();
    let stop = Stop::making_way(&way);
    let options = RunOptions {
        stop: stop.clone(),
        stdout: Stdout::Records(&mut tell),
        ..RunOptions::default()
    };
    let command = sh(BUSY);
    let acting = async {
        let printed = pids.take(2).await;
        let (tool, guard) = (printed[0], printed[1]);
        for _ in 0..3 {
            let first = way.first();
            until("it stands", || doing(tool) == Some('T')).await;
            assert_ne!(doing(guard), Some('T'), "it sees to the worker's death");
            drop(first);
            until("it goes on", || doing(tool) == Some('R')).await;
        }
        let _first = way.first();
        until("it stands", || doing(tool) == Some('T')).await;
        stop.stop();
    };
    let (answer, ()) = tokio::join!(run(&command, options), acting);
    let is_ended = matches!(answer, Err(RunError::Cancelled { .. }));
    assert!(is_ended, "{answer:?}");
}

#[tokio::test]
async fn a_tool_comes_to_its_end_though_others_always_go_first() {
    let way = Way::new();
    let _first = way.first();
    let options = RunOptions {
        stop: Stop::making_way(&way),
        ..RunOptions::default()
    };
    let exit = run(&sh("sleep 0.2"), options).await.unwrap();
    assert_eq!(exit.ended, Ended::Code(0));
    assert!(exit.took > Duration::from_secs(4), "{:?}", exit.took);
}
