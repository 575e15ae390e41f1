//! Workers that freeze for real: each is a process of its own, stopped after a step of its claim by
//! SIGSTOP. The next claim takes the job over; then the first goes on from where it was.
//!
//! Nobody tells it that it lost the job. Before its commit the compare-and-set on the job's record
//! does; after that what is changed itself keeps it out: the name (`convert`), which goes to one of
//! the two, or the lock (`resize`), for which whoever comes next kills it.

use super::{
    cuts::{Case, World, case, told},
    killed::{At, What, was_killed},
    site::{STEPS, Site},
};
use crate::task::Step;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::process::Child;
use virtbus_testbed::until;

/// What is in the way of a claim that is awake again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fence {
    Name,
    Lock,
}

impl Fence {
    /// Whether a claim that is frozen after this step has what those after it need, until they
    /// kill it.
    fn is_held_after(self, step: Step) -> bool {
        match step {
            Step::Check | Step::Work => false,
            Step::Intend | Step::Commit | Step::Effect | Step::Publish => self == Self::Lock,
        }
    }
}

/// A job, and the disk that it makes or changes: it gets another size before the first claim wakes
/// up, so that it shows if that one does its work once more.
#[derive(Clone, Copy)]
struct Frozen {
    case: Case,
    fence: Fence,
    grows: &'static str,
}

impl Frozen {
    async fn grows(&self, world: &World<'_>) {
        world.done("resize", self.grows).await;
    }
}

/// Waits until a process stands still.
async fn is_stopped(worker: &Child) {
    let stat = format!("/proc/{}/stat", worker.id());
    until("a worker that is frozen", async || {
        let text = std::fs::read_to_string(&stat).unwrap();
        // The name before may hold anything.
        let (_, rest) = text.rsplit_once(") ").unwrap();
        if rest.starts_with('T') {
            Ok(())
        } else {
            Err(text)
        }
    })
    .await;
}

/// The worker freezes after a step; the next claim runs, then another job; the worker wakes up.
async fn freezes(job: Frozen, step: usize, world: &World<'_>, wanted: &Value) {
    let (site, case) = (world.site, job.case);
    let when = format!("{case:?} frozen after {:?}", STEPS[step]);
    let first = world.claim(case, 1);
    site.jobs.create(&first.record).await.unwrap();
    let frozen = What::Frozen(At::After(step));
    let mut worker = site.worker(world.envelope(case), frozen).await;
    is_stopped(&worker).await;
    let mut entry = site.jobs.get_latest(&first.id).await.unwrap().unwrap();
    entry.value.claim = 2;
    site.jobs.write(&entry.value, entry.revision).await.unwrap();
    let done = site.run(&world.claim(case, 2)).await;
    assert_eq!(told(case, done, &when), *wanted, "{when}");
    job.grows(world).await;
    let pid = Pid::from_raw(worker.id().try_into().unwrap()).unwrap();
    kill_process(pid, Signal::CONT).unwrap();
    let ended = until("its end", async || {
        worker.try_wait().unwrap().ok_or("it lives")
    })
    .await;
    let is_held = job.fence.is_held_after(STEPS[step]);
    assert_eq!(was_killed(ended), is_held, "{when}");
}

async fn survives(job: Frozen) {
    let site = Site::start().await;
    let case = job.case;
    let whole = World::new(&site, 0, case).await;
    let done = site.run(&whole.claim(case, 1)).await;
    let wanted = told(case, done, "whole");
    job.grows(&whole).await;
    let after = whole.sight().await;
    for (number, step) in STEPS.into_iter().enumerate() {
        let world = World::new(&site, number + 1, case).await;
        freezes(job, number, &world, &wanted).await;
        assert_eq!(world.sight().await, after, "{case:?} {step:?}");
    }
}

#[tokio::test]
async fn a_copy_is_made_once_by_a_worker_that_froze_and_its_successor() {
    survives(Frozen {
        case: case(
            "convert",
            r#"{"disk": "{a}", "to": "{n}", "format": "raw"}"#,
        ),
        fence: Fence::Name,
        grows: r#"{"disk": "{n}", "size": "12MiB"}"#,
    })
    .await;
}

#[tokio::test]
async fn a_disk_grows_once_by_a_worker_that_froze_and_its_successor() {
    survives(Frozen {
        case: case("resize", r#"{"disk": "{a}", "size": "9MiB"}"#),
        fence: Fence::Lock,
        grows: r#"{"disk": "{a}", "size": "12MiB"}"#,
    })
    .await;
}
