//! Claims as the loop drives them; workers that die, freeze, or are told to stop, at a step or at
//! any moment.

use super::{
    killed::{At, Moments},
    site::Site,
};
use crate::{
    store::Store,
    task::{Known, Pace, Step, known},
};
use serde_json::{Value, json};
use std::{
    collections::BTreeSet,
    future::{Future, poll_fn},
    path::{Path, PathBuf},
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
    task::Poll,
};
use virtbus_wire::{JobError, state::Progress};
use virtbus_worker::{Assignment, Confirm, Confirmed, Done, Perform, Stop, StopSignal, process};

/// What a claim is told that asks whether its job is still its own.
pub(super) struct Own(pub(super) bool);

impl Confirm for Own {
    fn confirm(&self) -> Confirmed<'_> {
        Box::pin(async { if self.0 { Ok(()) } else { Err(Stop::Lost) } })
    }
}

/// Puts back what a claim began that is still its own.
pub(super) async fn abandon(store: &Store, job: &Assignment) -> Result<(), JobError> {
    store.abandon(job, &Own(true)).await
}

impl Site {
    /// What the loop does with a claim, but for the locks between jobs.
    pub(super) async fn run(&self, job: &Assignment) -> Result<Done, Stop> {
        self.run_within(job, &process::Stop::new(), &|_| {}).await
    }

    pub(super) async fn run_within(
        &self,
        job: &Assignment,
        stop: &process::Stop,
        progress: &(dyn Fn(Progress) + Send + Sync),
    ) -> Result<Done, Stop> {
        self.attempt(job, stop, progress, &|_| Ok(())).await
    }

    async fn attempt(
        &self,
        job: &Assignment,
        stop: &process::Stop,
        progress: &(dyn Fn(Progress) + Send + Sync),
        reached: &(dyn Fn(Step) -> Result<(), Stop> + Send + Sync),
    ) -> Result<Done, Stop> {
        if job.claim > 1 {
            self.store.clean(job).await?;
            if let Some(done) = self.store.recover(job).await? {
                return Ok(done);
            }
        }
        let done = self.drive(job, stop, progress, reached).await;
        if done.is_err() {
            abandon(&self.store, job).await?;
        }
        done
    }

    async fn drive(
        &self,
        job: &Assignment,
        stop: &process::Stop,
        progress: &(dyn Fn(Progress) + Send + Sync),
        reached: &(dyn Fn(Step) -> Result<(), Stop> + Send + Sync),
    ) -> Result<Done, Stop> {
        drive(&self.store, job, stop, progress, reached).await
    }

    /// The claim that comes after a dead one and finds the job cancelled: what was begun is
    /// finished, or put back. The result, if it was finished.
    pub(super) async fn give_up(&self, job: &Assignment) -> Result<Option<Done>, Stop> {
        self.store.clean(job).await?;
        let found = self.store.recover(job).await?;
        if found.is_none() {
            // As often as it takes, and once more.
            for _ in 0..2 {
                abandon(&self.store, job).await?;
            }
        }
        Ok(found)
    }

    /// Marks the lock that a dead claim left: its effect had begun.
    pub(super) fn mark_lock(&self, disk: &str) {
        let path = self.path(&format!("locks/disk.{disk}"));
        let text = std::fs::read(&path).unwrap();
        let mut holder: Value = serde_json::from_slice(&text).unwrap();
        holder["mark"] = json!({});
        std::fs::write(path, holder.to_string()).unwrap();
    }

    /// Runs a claim until its worker dies: what it holds is gone, what it wrote stays.
    pub(super) async fn die(&self, job: &Assignment, after: Step) {
        self.die_telling(job, after, &|_| {}).await;
    }

    /// The same, with its progress told until then.
    pub(super) async fn die_telling(
        &self,
        job: &Assignment,
        after: Step,
        progress: &(dyn Fn(Progress) + Send + Sync),
    ) {
        // A killed worker doesn't clear up behind itself.
        let left = Mutex::new(None);
        let reached = |step| {
            if step != after {
                return Ok(());
            }
            *left.lock().unwrap() = Some(self.remains());
            Err(Stop::Lost)
        };
        let never = process::Stop::new();
        let died = self.drive(job, &never, progress, &reached).await;
        assert_eq!(died, Err(Stop::Lost), "{after:?}");
        let left = left.into_inner().unwrap().expect("it got that far");
        for (path, bytes) in left {
            std::fs::write(path, bytes).unwrap();
        }
    }

    /// Runs a claim until its worker dies at one of the moments it waits at after its work: when
    /// what it waited for has come. Whether it got through before: then it dies with what is held
    /// until the job's final record.
    pub(super) async fn dies_at(&self, job: &Assignment, moment: usize) -> bool {
        let is_over = AtomicBool::new(false);
        let kept = Mutex::new(None);
        let reached = |step| {
            is_over.fetch_or(step == Step::Work, Ordering::Relaxed);
            if step == Step::Publish {
                *kept.lock().unwrap() = Some(self.remains());
            }
            Ok(())
        };
        let never = process::Stop::new();
        let mut claim = Box::pin(self.drive(job, &never, &|_| {}, &reached));
        let mut left = moment;
        let done = poll_fn(|context| {
            if is_over.load(Ordering::Relaxed) {
                if left == 0 {
                    return Poll::Ready(None);
                }
                left -= 1;
            }
            claim.as_mut().poll(context).map(Some)
        })
        .await;
        let remains = self.remains();
        drop(claim);
        let is_through = done.map(Result::unwrap).is_some();
        let kept = kept.into_inner().unwrap().filter(|_| is_through);
        for (path, bytes) in kept.unwrap_or(remains) {
            std::fs::write(path, bytes).unwrap();
        }
        is_through
    }

    /// What a worker holds in the pools: temporary files, and the texts of its locks.
    fn remains(&self) -> Vec<(PathBuf, Vec<u8>)> {
        let folders = ["pool", "other", "archive"].map(|root| {
            ["disks", "media", "locks"].map(|folder| self.dir.path().join(root).join(folder))
        });
        let entries = folders.as_flattened().iter();
        let entries = entries.filter_map(|folder| std::fs::read_dir(folder).ok());
        let paths = entries.flatten().map(|entry| entry.unwrap().path());
        let is_held = |path: &PathBuf| {
            is_part(path)
                || path
                    .parent()
                    .is_some_and(|folder| folder.ends_with("locks"))
        };
        let read = |path: PathBuf| {
            // What claims beside this one have may go meanwhile.
            let bytes = std::fs::read(&path).ok()?;
            match is_part(&path) {
                true => Some((path, bytes)),
                false => Some((path, of_nobody(bytes))),
            }
        };
        paths.filter(is_held).filter_map(read).collect()
    }

    /// Has the texts of a job's locks name no process of this host.
    fn disown_locks(&self, job: &Assignment) {
        let is_own = |text: &[u8]| {
            let holder = serde_json::from_slice::<Value>(text);
            holder.is_ok_and(|holder| holder["job"] == job.id.as_str())
        };
        let remains = self.remains().into_iter();
        for (path, text) in remains.filter(|(path, text)| !is_part(path) && is_own(text)) {
            std::fs::write(path, text).unwrap();
        }
    }

    /// Runs a claim that freezes after a step, and goes on once the next claim is done, up to the
    /// fence if it wasn't there yet: its record is the next claim's. Both results, the frozen
    /// one's first. For a runtime with several threads.
    pub(super) async fn frozen(
        &self,
        job: &Assignment,
        after: Step,
        next: &Assignment,
    ) -> (Result<Done, Stop>, Result<Done, Stop>) {
        let never = process::Stop::new();
        let second = Mutex::new(None);
        let reached = |step| {
            if step == after {
                self.disown_locks(job);
                let done = self.attempt(next, &never, &|_| {}, &|_| Ok(()));
                let runtime = tokio::runtime::Handle::current();
                let done = tokio::task::block_in_place(|| runtime.block_on(done));
                *second.lock().unwrap() = Some(done);
            }
            if step == Step::Intend && second.lock().unwrap().is_some() {
                return Err(Stop::Lost);
            }
            Ok(())
        };
        let first = self.drive(job, &never, &|_| {}, &reached).await;
        let second = second.into_inner().unwrap().expect("it got that far");
        (first, second)
    }

    /// Runs a claim that is told to stop then.
    pub(super) async fn stopped_at(
        &self,
        job: &Assignment,
        at: At,
        stop: &process::Stop,
    ) -> Result<Done, Stop> {
        let stop_at = |now| {
            if now == at {
                stop.stop();
            }
        };
        self.watched(job, stop, &stop_at).await
    }

    /// Runs a claim. Its result, and the steps that told of their progress.
    pub(super) async fn run_noting(
        &self,
        job: &Assignment,
    ) -> (Result<Done, Stop>, BTreeSet<usize>) {
        let told = Mutex::new(BTreeSet::new());
        let note = |now| {
            if let At::Within(step) = now {
                told.lock().unwrap().insert(step);
            }
        };
        let done = self.watched(job, &process::Stop::new(), &note).await;
        (done, told.into_inner().unwrap())
    }

    /// Runs a claim, of which all moments are told.
    async fn watched(
        &self,
        job: &Assignment,
        stop: &process::Stop,
        seen: &(dyn Fn(At) + Send + Sync),
    ) -> Result<Done, Stop> {
        let moments = Moments::default();
        let progress = |_| seen(moments.within());
        let reached = |step| {
            seen(moments.after(step));
            Ok(())
        };
        self.attempt(job, stop, &progress, &reached).await
    }

    /// Runs a claim, and does something after one of its steps.
    pub(super) async fn run_and(
        &self,
        job: &Assignment,
        after: Step,
        act: &(dyn Fn() + Send + Sync),
    ) -> Result<Done, Stop> {
        let reached = |step| {
            if step == after {
                act();
            }
            Ok(())
        };
        let never = process::Stop::new();
        self.attempt(job, &never, &|_| {}, &reached).await
    }
}

fn is_part(path: &Path) -> bool {
    path.extension().is_some_and(|end| end == "part")
}

/// A lock's text, of a process that isn't there. The next claim kills what keeps a dead holder's
/// lock: with this process named, that would be the tools of tests beside this one, each of which
/// has all locks of this process for the moment before it becomes that tool.
fn of_nobody(text: Vec<u8>) -> Vec<u8> {
    let Ok(mut holder) = serde_json::from_slice::<Value>(&text) else {
        return text;
    };
    holder["pid"] = json!(0);
    holder.to_string().into_bytes()
}

/// The steps of a claim.
pub(super) async fn drive(
    store: &Store,
    job: &Assignment,
    stop: &process::Stop,
    progress: &(dyn Fn(Progress) + Send + Sync),
    reached: &(dyn Fn(Step) -> Result<(), Stop> + Send + Sync),
) -> Result<Done, Stop> {
    let lost = process::Stop::new();
    let pace = Pace {
        is_first: job.claim == 1,
        stop,
        lost: &lost,
        progress,
        keep: &drop,
        reached,
    };
    let commit = async {
        if stop.is_asked() {
            Err(Stop::Stopped)
        } else {
            Ok(())
        }
    };
    match known(store, job)? {
        Known::Ping(task) => task.run(&StopSignal::new()).await,
        Known::Steps(steps) => steps.drive(&pace, Box::pin(commit)).await,
    }
}

/// Acts on all of these at once, each in a thread of its own: most of it is waiting for a lock
/// that the other claim has.
pub(super) fn together<T: Sync>(all: &[T], act: impl AsyncFn(&T) + Sync) {
    let runtime = tokio::runtime::Handle::current();
    tokio::task::block_in_place(|| {
        std::thread::scope(|threads| {
            for one in all {
                threads.spawn(|| runtime.block_on(act(one)));
            }
        });
    });
}
