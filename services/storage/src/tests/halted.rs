//! Tools that are killed in the middle of their work, with their worker and without: right before
//! each single write, for each task whose tool changes a disk's file in place.
//!
//! In the tool's place stands a program that runs it with something loaded into it, which stops it
//! there (`halt.c`). So it's known where it is when it's killed, and it dies of nothing else.

use super::{
    killed::{What, was_killed},
    moment_cases::{Case, changes},
    moment_runs::{Picture, Runs, WHOLE},
    moments::said,
    site::{Site, TOOLS, program},
};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt,
    pin::pin,
};
use virtbus_testbed::until;
use virtbus_worker::Assignment;

/// Runs the tool so that it stops, if it's one that changes a file in place.
const PROGRAM: &str = r#"#!/bin/sh
tools=${0%/*}
case " $* " in
" resize "* | " commit "* | " snapshot "* | " check "*" -r "*)
    read -r HALT_AT <"$tools/halt-at"
    export HALT_AT LD_PRELOAD="$tools/halt.so"
    ;;
esac
exec /usr/bin/qemu-img "$@"
"#;
/// More writes than any of these tools does.
const WRITES_MAX: usize = 100;

/// How a claim dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Death {
    /// The tool alone: the worker hears of it.
    Tool,
    /// The worker, and with it the tool. The next claim goes on.
    Worker,
    /// The same, and the next claim finds the job cancelled.
    WorkerOfCancelled,
}

/// A site whose tools stop.
async fn halting() -> Site {
    let dir = tempfile::tempdir().unwrap();
    let tools = dir.path().join(TOOLS);
    fs::create_dir(&tools).unwrap();
    let (source, library) = (tools.join("halt.c"), tools.join("halt.so"));
    fs::write(&source, include_str!("halt.c")).unwrap();
    let paths = [&source, &library].map(|path| path.to_str().unwrap());
    program("cc", &["-shared", "-fPIC", "-O", "-o", paths[1], paths[0]]);
    let tool = tools.join("qemu-img");
    fs::write(&tool, PROGRAM).unwrap();
    fs::set_permissions(&tool, Permissions::from_mode(0o755)).unwrap();
    let site = Site::beside(dir, |_| {}).await;
    halt_at(&site, 0);
    site
}

/// Has tools stop before this write, counted from 1; not at all before write 0.
fn halt_at(site: &Site, write: usize) {
    let path = site.dir.path().join(TOOLS).join("halt-at");
    fs::write(path, format!("{write}\n")).unwrap();
}

/// The tool that is stopped on a file of this site, once it is.
pub(super) async fn stopped(site: &Site) -> Pid {
    let folder = site.path("disks").to_str().unwrap().to_owned();
    until("a tool that is stopped", async || {
        let entries = fs::read_dir("/proc").unwrap();
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let is_it = |name: &String| {
            let read = |file: &str| fs::read(format!("/proc/{name}/{file}")).unwrap_or_default();
            let status = String::from_utf8_lossy(&read("stat")).into_owned();
            let state = status
                .rsplit_once(") ")
                .map(|(_, rest)| rest.starts_with('T'));
            state == Some(true) && String::from_utf8_lossy(&read("cmdline")).contains(&folder)
        };
        let mut numbers = names.filter(is_it).filter_map(|name| name.parse().ok());
        numbers.find_map(Pid::from_raw).ok_or("none")
    })
    .await
}

/// Runs a job's first claim, in this process, until its tool is stopped and killed. Whether it was.
async fn loses_its_tool(site: &Site, job: &Assignment) -> bool {
    let mut claim = pin!(site.run(job));
    tokio::select! {
        done = &mut claim => {
            done.unwrap();
            false
        }
        tool = stopped(site) => {
            kill_process(tool, Signal::KILL).unwrap();
            let ended = claim.await;
            assert!(ended.is_err(), "{ended:?}");
            true
        }
    }
}

/// The same in a process of its own, which is killed while its tool is stopped.
async fn loses_its_worker(site: &Site, envelope: Value) -> bool {
    let mut worker = site.worker(envelope, What::Nothing).await;
    let ends = until("the worker's end", async || {
        worker.try_wait().unwrap().ok_or("it works")
    });
    let ended = tokio::select! {
        ended = ends => Some(ended),
        _ = stopped(site) => None,
    };
    let killed = || {
        worker.kill().unwrap();
        worker.wait().unwrap()
    };
    was_killed(ended.unwrap_or_else(killed))
}

/// What a run that nothing disturbs says and leaves.
struct Whole {
    said: Value,
    before: Picture,
    after: Picture,
}

impl Whole {
    /// What a tool leaves that was killed: the disk as before, or as asked already; below it what
    /// was there, or what the catalogue calls broken.
    fn is_left(&self, left: &Picture, when: &str) {
        let wanted = [self.before.of("d2"), self.after.of("d2")];
        assert!(wanted.contains(&left.of("d2")), "{when}: {left:#?}");
        let ((now, record), (before, _)) = (left.of("d1"), self.before.of("d1"));
        let is_broken = record.is_some_and(|record| record["state"] == "broken");
        assert!(now == before || is_broken, "{when}: {left:#?}");
    }
}

/// One run whose claim dies at a write. Whether there is such a write.
async fn dies(runs: &Runs<'_>, whole: &Whole, (death, write): (Death, usize)) -> bool {
    let (site, case) = (runs.site, runs.case);
    let when = format!("{} {death:?} at write {write}", case.task);
    let letter = match death {
        Death::Tool => 't',
        Death::Worker => 'w',
        Death::WorkerOfCancelled => 'c',
    };
    let p = format!("{letter}{write:03}-");
    runs.begin(&p).await;
    halt_at(site, write);
    let died = match death {
        Death::Tool => loses_its_tool(site, &case.job(site, &p, 1)).await,
        Death::Worker | Death::WorkerOfCancelled => loses_its_worker(site, case.envelope(&p)).await,
    };
    halt_at(site, 0);
    if death == Death::Tool && died {
        whole.is_left(&runs.picture(&p).await, &when);
    }
    let next = case.job(site, &p, 2);
    let wanted = if death == Death::WorkerOfCancelled && died {
        let found = site.give_up(&next).await;
        let found = found.unwrap_or_else(|stop| panic!("{when}: {stop:?}"));
        if found.is_some() {
            &whole.after
        } else {
            &whole.before
        }
    } else {
        let done = site.run(&next).await;
        let done = done.unwrap_or_else(|stop| panic!("{when}: {stop:?}"));
        assert_eq!(said(&Value::Object(done), &p), whole.said, "{when}");
        &whole.after
    };
    assert_eq!(runs.picture(&p).await, *wanted, "{when}");
    died
}

/// A job's tool dies before each of its writes, in each way.
async fn survives(case: Case) {
    let site = halting().await;
    let runs = Runs::new(&site, case).await;
    let before = runs.picture(WHOLE).await;
    let done = site.run(&case.job(&site, WHOLE, 1)).await.unwrap();
    let whole = Whole {
        said: said(&Value::Object(done), WHOLE),
        before,
        after: runs.picture(WHOLE).await,
    };
    for write in 1..WRITES_MAX {
        let mut died = true;
        for death in [Death::Tool, Death::Worker, Death::WorkerOfCancelled] {
            died &= dies(&runs, &whole, (death, write)).await;
        }
        if !died {
            assert!(write > 1, "{}: nothing was written", case.task);
            return;
        }
    }
    panic!("{}: no end", case.task);
}

macro_rules! halted {
    ($($name:ident = $number:literal,)+) => {
        $(#[tokio::test]
        async fn $name() {
            survives(changes()[$number]).await;
        })+
    };
}

halted!(
    an_overlay_is_committed_whole = 1,
    an_overlay_is_committed_whole_and_goes = 2,
    a_disk_grows_whole = 4,
    a_snapshot_is_made_whole = 5,
    a_snapshot_is_reverted_to_whole = 6,
    a_snapshot_is_removed_whole = 7,
    a_disk_is_repaired_whole = 8,
);
