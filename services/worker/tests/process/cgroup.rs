//! A tool in a group of the kernel of its own, where this host lets us make one.

use std::{
    fs,
    path::{Path, PathBuf},
};
use virtbus_worker::process::{Groups, RunOptions, Stdout, Stop, run};

use super::{pids, runs, sh, until};

/// A folder for groups that is removed again; none where none can be made.
struct Base(PathBuf);

impl Base {
    fn make(name: &str) -> Option<(Self, Groups)> {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let mount = mounts.lines().find(|line| line.contains(" - cgroup2 "))?;
        let at = Path::new(mount.split_ascii_whitespace().nth(4)?);
        let base = at.join(format!("virtbus-test-{name}-{}", std::process::id()));
        let groups = Groups::open(&base).ok()?;
        Some((Self(base), groups))
    }

    fn groups(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(&self.0)
            .unwrap()
            .map(|entry| entry.unwrap().path());
        entries.filter(|path| path.is_dir()).collect()
    }
}

impl Drop for Base {
    fn drop(&mut self) {
        fs::remove_dir(&self.0).ok();
    }
}

#[tokio::test]
async fn what_left_its_process_group_is_killed_with_the_tool() {
    // Where the host lets us make none there is none to test, and tools run without.
    let made = Base::make("kill");
    let (mut tell, numbers) = pids();
    let stop = Stop::new();
    let script = "setsid sh -c 'echo $$; exec sleep 600' & echo $$; exec sleep 600";
    let line = sh(script).group(made.as_ref().map(|(_, groups)| groups.clone()));
    let options = RunOptions {
        stop: stop.clone(),
        stdout: Stdout::Records(&mut tell),
        ..RunOptions::default()
    };
    let look = async {
        let seen = numbers.take(2).await;
        let groups = seen
            .iter()
            .map(|pid| fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default());
        let groups: Vec<String> = groups.collect();
        stop.kill();
        (seen, groups)
    };
    let (_, (seen, groups)) = tokio::join!(run(&line, options), look);
    let Some((base, _)) = made else {
        // Without a group the one that left gets away.
        for pid in seen.into_iter().filter(|pid| runs(*pid)) {
            let pid = rustix::process::Pid::from_raw(pid.cast_signed()).unwrap();
            rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        }
        return;
    };
    let name = base.0.file_name().unwrap().to_str().unwrap();
    for group in &groups {
        assert!(group.contains(&format!("/{name}/tool-")), "{group}");
    }
    for pid in seen {
        assert!(!runs(pid), "{pid} is left");
    }
    until("its group is removed", || base.groups().is_empty()).await;
}

#[tokio::test]
async fn what_a_dead_worker_left_is_removed() {
    let Some((base, _)) = Base::make("left") else {
        return;
    };
    let left = base.0.join("tool-4194305-3");
    fs::create_dir(&left).unwrap();
    Groups::open(&base.0).unwrap();
    assert!(!left.exists());
}
