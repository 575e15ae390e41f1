//! A service whose task is `ping`, and which notes each step of each job; all others hang.

use serde_json::Map;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::sync::{Semaphore, SemaphorePermit, watch};
use virtbus_bus::locks::LockSet;
use virtbus_wire::{
    Class, Code, JobError,
    state::{Progress, WaitReason},
    task::{HypervisorTask, StorageTask, Task},
};
use virtbus_worker::{Assignment, Confirm, Done, Perform, Run, Stop};

/// How often the tool of the other tasks says how far it is.
const TELLS_EVERY: Duration = Duration::from_millis(100);

/// So many jobs are a crowd.
pub(crate) const CROWD: usize = 5;
/// How long one waits for the others.
const MEET: Duration = Duration::from_millis(50);

/// What happened, in order: `(job, step)`.
#[derive(Debug, Clone, Default)]
pub(crate) struct Notes(Arc<Mutex<Vec<(String, &'static str)>>>);

impl Notes {
    pub(crate) fn steps_of(&self, job: &str) -> Vec<&'static str> {
        let notes = self.0.lock().unwrap();
        notes
            .iter()
            .filter(|(id, _)| id == job)
            .map(|(_, step)| *step)
            .collect()
    }

    /// The jobs that came to this step, in order.
    pub(crate) fn jobs_at(&self, step: &str) -> Vec<String> {
        let notes = self.0.lock().unwrap();
        notes
            .iter()
            .filter(|(_, at)| *at == step)
            .map(|(id, _)| id.clone())
            .collect()
    }

    /// When a job came to a step, as a number that rises with time.
    pub(crate) fn place(&self, job: &str, step: &str) -> usize {
        let notes = self.0.lock().unwrap();
        let at = notes.iter().position(|(id, at)| id == job && *at == step);
        at.unwrap()
    }

    fn add(&self, job: &Assignment, step: &'static str) {
        self.0.lock().unwrap().push((job.id.to_string(), step));
    }
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Probe {
    /// What jobs it does; storage's by default.
    class: Option<Class>,
    pub(crate) notes: Notes,
    /// By lock: the domain that uses what it stands for.
    in_use: Arc<Mutex<BTreeMap<String, String>>>,
    /// Jobs of which an earlier claim's effect is there.
    done: Arc<Mutex<BTreeSet<String>>>,
    /// Jobs that something is in the way of, by the step that finds it.
    frozen: Arc<Mutex<BTreeSet<(String, &'static str)>>>,
    /// Jobs whose work goes on until they are let go.
    held: watch::Sender<BTreeSet<String>>,
    /// How many jobs of a crowd ask for their locks right now.
    crowd: watch::Sender<usize>,
    /// The most that ever did.
    pub(crate) crowd_max: Arc<AtomicUsize>,
    /// How many more of a throng may ask for their locks.
    pub(crate) throng: Gate,
}

/// Lets through as many as it was told to.
#[derive(Debug, Clone)]
pub(crate) struct Gate(Arc<Semaphore>);

impl Default for Gate {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(0)))
    }
}

impl Gate {
    pub(crate) fn open_for(&self, count: usize) {
        self.0.add_permits(count);
    }

    async fn pass(&self) {
        // Nobody closes it.
        drop(self.0.acquire().await.map(SemaphorePermit::forget));
    }
}

impl Probe {
    /// A service of this class.
    pub(crate) fn of(class: Class) -> Self {
        Self {
            class: Some(class),
            ..Self::default()
        }
    }

    /// Says that a domain uses what a lock stands for: jobs that hold the lock must wait.
    pub(crate) fn use_by(&self, lock: &str, domain: &str) {
        let mut in_use = self.in_use.lock().unwrap();
        in_use.insert(lock.to_owned(), format!("domain.{domain}"));
    }

    /// Says that an earlier claim of a job had its effect.
    pub(crate) fn was_done(&self, job: &str) {
        self.done.lock().unwrap().insert(job.to_owned());
    }

    /// Keeps a job at its work, however late a test looks at it.
    pub(crate) fn hold(&self, job: &str) {
        self.held.send_modify(|held| {
            held.insert(job.to_owned());
        });
    }

    /// Lets a job go that was held.
    pub(crate) fn let_go(&self, job: &str) {
        self.held.send_modify(|held| {
            held.remove(job);
        });
    }

    /// Says that an earlier claim of a job, or a pool that is away, is in the way of this step,
    /// until it's thawed.
    pub(crate) fn freeze(&self, job: &str, step: &'static str) {
        self.frozen.lock().unwrap().insert((job.to_owned(), step));
    }

    /// Says that nothing is in the way of a job any more.
    pub(crate) fn thaw(&self, job: &str) {
        self.frozen.lock().unwrap().retain(|(id, _)| id != job);
    }

    /// Waits a moment for others of the crowd to come here too.
    async fn meet(&self) {
        let mut others = self.crowd.subscribe();
        self.crowd.send_modify(|count| *count += 1);
        let many = others.wait_for(|count| *count >= CROWD);
        drop(tokio::time::timeout(MEET, many).await);
        self.crowd_max
            .fetch_max(*self.crowd.borrow(), Ordering::Relaxed);
        self.crowd.send_modify(|count| *count -= 1);
    }

    /// Notes when the tool would stand still, and when it would go on.
    async fn note_turns(&self, job: &Assignment, run: &Run) {
        let (mut turn, mut stood) = (run.stop().tools().turn(), false);
        loop {
            turn.changed().await;
            if turn.stands() != stood {
                stood = !stood;
                self.notes.add(job, if stood { "stands" } else { "goes" });
            }
        }
    }

    fn look_for_earlier(&self, job: &Assignment, step: &'static str) -> Result<(), Stop> {
        let at = (job.id.to_string(), step);
        if !self.frozen.lock().unwrap().contains(&at) {
            return Ok(());
        }
        self.notes.add(job, "waits");
        let text = "an earlier claim has it";
        Err(Stop::Earlier(JobError::new(Code::DiskBusy, text)))
    }

    fn reach_the_pool(&self, job: &Assignment, step: &'static str) -> Result<(), JobError> {
        let at = (job.id.to_string(), step);
        match self.frozen.lock().unwrap().contains(&at) {
            true => Err(JobError::new(Code::PoolUnreachable, "it's not there")),
            false => Ok(()),
        }
    }

    fn admit(&self, job: &Assignment) -> Result<(), Stop> {
        let in_use = self.in_use.lock().unwrap();
        let locks = &job.record.locks;
        for lock in locks.exclusive.iter().chain(&locks.shared) {
            if let Some(holder) = in_use.get(lock.as_str()) {
                return Err(Stop::Wait(WaitReason::Lock {
                    resource: lock.to_string(),
                    holder: Some(holder.clone()),
                    since: None,
                }));
            }
        }
        Ok(())
    }
}

impl Perform for Probe {
    fn class(&self) -> Class {
        self.class.unwrap_or(Class::Storage)
    }

    async fn locks(&self, job: &Assignment) -> Result<LockSet, JobError> {
        if job.record.labels.contains_key("crowd") {
            self.meet().await;
        }
        if job.record.labels.contains_key("throng") {
            self.throng.pass().await;
        }
        Ok(LockSet::new())
    }

    async fn clean(&self, job: &Assignment) -> Result<(), JobError> {
        self.notes.add(job, "clean");
        self.reach_the_pool(job, "clean")
    }

    async fn recover(&self, job: &Assignment) -> Result<Option<Done>, Stop> {
        self.look_for_earlier(job, "recover")?;
        let is_done = self.done.lock().unwrap().contains(job.id.as_str());
        if is_done {
            self.notes.add(job, "recover");
        }
        Ok(is_done.then(Map::new))
    }

    async fn run(&self, job: &Assignment, run: &Run) -> Result<Done, Stop> {
        self.notes.add(job, "run");
        self.look_for_earlier(job, "run")?;
        let (Task::Storage(StorageTask::Ping(ping)) | Task::Hypervisor(HypervisorTask::Ping(ping))) =
            &job.task
        else {
            // Any other task is a tool that tells how far it is for a second, then hangs.
            for told in 0..10 {
                run.progress(percent(f64::from(told)));
                tokio::time::sleep(TELLS_EVERY).await;
            }
            tokio::select! {
                () = run.stop().asked() => {}
                () = self.note_turns(job, run) => {}
            }
            self.notes.add(job, "stopped");
            return Err(Stop::Stopped);
        };
        self.admit(job)?;
        run.progress(percent(0.0));
        let work = Duration::from_millis(ping.sleep_ms.map_or(0, |millis| millis.get()));
        let work = async {
            tokio::time::sleep(work).await;
            let mut held = self.held.subscribe();
            // The sender is in `self`, so the channel can't close first.
            drop(held.wait_for(|held| !held.contains(job.id.as_str())).await);
        };
        tokio::select! {
            () = work => {}
            () = run.stop().asked() => {
                self.notes.add(job, "stopped");
                return Err(Stop::Stopped);
            }
        }
        if ping.fail {
            return Err(JobError::new(Code::ToolFailed, "asked to fail").into());
        }
        run.progress(percent(90.0));
        // A task that counts wrongly: nobody hears of it.
        run.progress(percent(40.0));
        run.commit().await?;
        self.notes.add(job, "effect");
        if job.record.labels.contains_key("breaks") {
            self.was_done(job.id.as_str());
            return Err(JobError::internal("the result could not be written").into());
        }
        Ok(Map::new())
    }

    async fn abandon(&self, job: &Assignment, _: &dyn Confirm) -> Result<(), JobError> {
        self.notes.add(job, "abandon");
        self.reach_the_pool(job, "abandon")
    }
}

fn percent(percent: f64) -> Progress {
    Progress {
        percent: Some(percent),
        ..Progress::default()
    }
}
