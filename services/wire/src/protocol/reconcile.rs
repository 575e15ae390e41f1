//! The rules that mend what a crash, a lost publication or a lost event left.
//!
//! Each looks at one record, lock or message and at what else was read, and says what to do, if
//! anything. The caller reads the record before it browses the streams, and acts by
//! compare-and-set on the revision it read: then a message that isn't there can't have been
//! taken away by somebody who did not change the record as well.

use crate::{
    catalog::InUseBy,
    envelope::PublisherLocks,
    error::{Code, JobError},
    id::JobId,
    protocol::{
        delivery::{Action, Message, Reading, decide},
        gate::{Gate, gate},
        lock::{Lock, Mode},
    },
    record::Record,
    state::{Event, JobState, Owner, StateName, WaitReason},
    time::Timestamp,
};
use std::{collections::BTreeMap, time::Duration};

/// What is younger, by the server's time stamps, may still be in somebody's hands.
pub const AGE_MIN: Duration = Duration::from_secs(10);
/// How long a job that nobody has seen is waited for.
pub const DEPENDENCY_PATIENCE: Duration = Duration::from_secs(60);

/// How long a job that waits for room is left alone before it may ask again: nobody says when a
/// slot becomes free.
pub const CAPACITY_PAUSE: Duration = Duration::from_secs(10);

/// What was read about one job besides its record.
#[derive(Debug, Clone, Copy)]
pub struct Seen<'a> {
    /// How long ago the record was written.
    pub age: Duration,
    /// Whether a message of its generation lies in its stream; none when nobody looked.
    pub has_message: Option<bool>,
    /// Whether the lock it waits for would be granted now, and what it stands for isn't in use by
    /// whom the job waits for; none when nobody looked.
    pub lock_is_free: Option<bool>,
    /// Whether all that was published before it began to wait has a record by now.
    pub all_registered: bool,
    /// Whether the lease of its owner is there and names its boot; read after the record.
    pub owner_is_alive: bool,
    /// The states of the jobs it comes after; none of those that nobody has seen.
    pub states: &'a BTreeMap<JobId, StateName>,
}

/// What a job needs; none when it's as it should be. After an event that raises the generation
/// the job is to be published again.
#[must_use]
pub fn mend(record: &Record, seen: &Seen<'_>, now: Timestamp) -> Option<Event> {
    match &record.state {
        JobState::Queued => mend_queued(record, seen, now),
        JobState::Waiting(waiting) => mend_waiting(record, &waiting.on, waiting.since, seen, now),
        JobState::Running(_) | JobState::Cancelling(_) => {
            let orphaned = is_lost(seen) && !seen.owner_is_alive;
            orphaned.then_some(Event::Publish { round: false })
        }
        JobState::Succeeded(..) | JobState::Failed(..) | JobState::Cancelled(..) => None,
    }
}

fn is_lost(seen: &Seen<'_>) -> bool {
    seen.has_message == Some(false) && seen.age >= AGE_MIN
}

fn mend_queued(record: &Record, seen: &Seen<'_>, now: Timestamp) -> Option<Event> {
    match gate(record, now, |job| seen.states.get(job).copied()) {
        Gate::Open => is_lost(seen).then_some(Event::Publish { round: false }),
        Gate::Wait(on) => Some(Event::Wait(on)),
        Gate::Fail(error) => Some(Event::Fail(error)),
        Gate::Drop(error) => Some(Event::Drop(error)),
    }
}

fn mend_waiting(
    record: &Record,
    on: &WaitReason,
    since: Timestamp,
    seen: &Seen<'_>,
    now: Timestamp,
) -> Option<Event> {
    let missing = match gate(record, now, |job| seen.states.get(job).copied()) {
        Gate::Fail(error) => return Some(Event::Fail(error)),
        Gate::Drop(error) => return Some(Event::Drop(error)),
        Gate::Wait(WaitReason::Dependency { job, state: None }) => Some(job),
        Gate::Wait(other) if is_gates_own(on) => {
            return is_another(on, &other).then_some(Event::Wait(other));
        }
        Gate::Wait(_) | Gate::Open => None,
    };
    if let Some(job) = missing {
        if seen.all_registered && now.since(since) >= DEPENDENCY_PATIENCE {
            return Some(Event::Fail(missing_dependency(&job)));
        }
        let other = WaitReason::Dependency { job, state: None };
        return is_another(on, &other).then_some(Event::Wait(other));
    }
    let is_over = match on {
        WaitReason::Dependency { .. } => true,
        WaitReason::Time { until, .. } => *until <= now,
        WaitReason::Lock { .. } | WaitReason::Tenant { .. } => seen.lock_is_free == Some(true),
        WaitReason::Transfer { expires_at, .. } if *expires_at <= now => {
            let message = "the bytes did not come before the address expired";
            return Some(Event::Fail(JobError::new(Code::TransferExpired, message)));
        }
        WaitReason::Transfer { .. } => false,
        WaitReason::Capacity { .. } => now.since(since) >= CAPACITY_PAUSE,
    };
    is_over.then_some(Event::Publish { round: false })
}

/// Whether the wait is for what the gate looks at, and not for the work's own reasons.
fn is_gates_own(on: &WaitReason) -> bool {
    match on {
        WaitReason::Dependency { .. } | WaitReason::Time { error: None, .. } => true,
        WaitReason::Time { error: Some(_), .. } | WaitReason::Lock { .. } => false,
        WaitReason::Capacity { .. } | WaitReason::Tenant { .. } => false,
        WaitReason::Transfer { .. } => false,
    }
}

/// Whether a wait is for something else. The state of the same job is not worth a write.
fn is_another(on: &WaitReason, other: &WaitReason) -> bool {
    match (on, other) {
        (WaitReason::Dependency { job, .. }, WaitReason::Dependency { job: next, .. }) => {
            job != next
        }
        _ => on != other,
    }
}

fn missing_dependency(job: &JobId) -> JobError {
    let seconds = DEPENDENCY_PATIENCE.as_secs();
    let message = format!("no job {job} came within {seconds} s");
    JobError::new(Code::JobDependencyMissing, message).with("job", job.as_str())
}

/// That the job waits for itself, through others.
#[must_use]
pub fn cycle_error(cycle: &[JobId]) -> JobError {
    let jobs: Vec<&str> = cycle.iter().map(JobId::as_str).collect();
    JobError::invalid_params("after", "the jobs wait for each other").with("cycle", jobs)
}

/// The jobs to fail so that no jobs wait for each other for ever: of each circle the youngest,
/// with the circle. `waits` says of each job that waits when it was submitted and for whom. Each
/// wait is looked at a bounded number of times, unless there are circles.
#[must_use]
pub fn cycles(waits: &BTreeMap<JobId, (Timestamp, Vec<JobId>)>) -> Vec<(JobId, Vec<JobId>)> {
    let mut graph = Graph::new(waits);
    let free: Vec<&JobId> = graph.waits_for_nobody();
    graph.take_out(free);
    let mut found = Vec::new();
    while let Some(start) = graph.open.keys().next().copied() {
        let circle = graph.walk(start);
        let youngest = circle
            .iter()
            .copied()
            .max_by_key(|job| (waits.get(*job).map(|wait| wait.0), *job));
        let youngest = youngest.unwrap_or(start);
        graph.take_out(vec![youngest]);
        found.push((youngest.clone(), circle.into_iter().cloned().collect()));
    }
    found
}

/// Who still waits for whom.
struct Graph<'a> {
    waits: &'a BTreeMap<JobId, (Timestamp, Vec<JobId>)>,
    /// Those that are left, each with the number of its waits for others that are left.
    open: BTreeMap<&'a JobId, usize>,
    /// Who waits for a job: as often as it says so.
    dependents: BTreeMap<&'a JobId, Vec<&'a JobId>>,
}

impl<'a> Graph<'a> {
    fn new(waits: &'a BTreeMap<JobId, (Timestamp, Vec<JobId>)>) -> Self {
        let mut open = BTreeMap::new();
        let mut dependents: BTreeMap<&JobId, Vec<&JobId>> = BTreeMap::new();
        for (job, (_, after)) in waits {
            let known = after.iter().filter(|before| waits.contains_key(*before));
            let mut count = 0;
            for before in known {
                dependents.entry(before).or_default().push(job);
                count += 1;
            }
            open.insert(job, count);
        }
        Self {
            waits,
            open,
            dependents,
        }
    }

    fn waits_for_nobody(&self) -> Vec<&'a JobId> {
        let free = self.open.iter().filter(|(_, count)| **count == 0);
        free.map(|(job, _)| *job).collect()
    }

    /// Takes jobs out, and with them those that wait for nobody else.
    fn take_out(&mut self, mut jobs: Vec<&'a JobId>) {
        while let Some(job) = jobs.pop() {
            if self.open.remove(job).is_none() {
                continue;
            }
            for dependent in self.dependents.get(job).into_iter().flatten() {
                if let Some(count) = self.open.get_mut(dependent) {
                    *count -= 1;
                    if *count == 0 {
                        jobs.push(dependent);
                    }
                }
            }
        }
    }

    /// Goes from job to job until one comes again: the circle from there. All that are left wait
    /// for another that is.
    fn walk(&self, start: &'a JobId) -> Vec<&'a JobId> {
        let mut path = vec![start];
        let mut places = BTreeMap::from([(start, 0)]);
        while let Some(next) = path.last().and_then(|job| self.next_of(job)) {
            if let Some(begin) = places.get(next) {
                return path.split_off(*begin);
            }
            places.insert(next, path.len());
            path.push(next);
        }
        path
    }

    fn next_of(&self, job: &JobId) -> Option<&'a JobId> {
        let (_, after) = self.waits.get(job)?;
        after.iter().find(|job| self.open.contains_key(job))
    }
}

/// Whether a disk or a medium is still in use by the holder that a job waits for, `domain.<id>` or
/// `job.<id>`. A use that ended by its time is none.
#[must_use]
pub fn is_in_use(in_use_by: &[InUseBy], holder: &str, now: Timestamp) -> bool {
    in_use_by.iter().any(|user| match user {
        InUseBy::Domain { domain, .. } => holder.strip_prefix("domain.") == Some(domain.as_str()),
        InUseBy::Job { job, expires_at } => {
            holder.strip_prefix("job.") == Some(job.as_str()) && *expires_at > now
        }
    })
}

/// How a job most likely wants a lock that its record alone is asked about. Wrong only costs time:
/// it says so itself when it asks for the lock.
#[must_use]
pub fn likely_mode(task: &str, objects: &[String], own: &PublisherLocks, lock: &str) -> Mode {
    let reads_only = matches!(task, "check_disk" | "download" | "check_domain");
    let is_target = objects.first().is_some_and(|first| first == lock) && !reads_only;
    let is_own = own.exclusive.iter().any(|own| own.as_str() == lock);
    if is_own || is_target || lock.starts_with("domain.") {
        Mode::Exclusive
    } else {
        Mode::Shared
    }
}

/// What is to be done with a message that was found lying in a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stray {
    /// It stands for its job, or may soon.
    Keep,
    /// Nobody has made its job's record.
    Register,
    /// Its job is over, parked or published anew: it goes.
    Delete,
}

/// Looks at a message of this age and at the leader's record of its job, with the record's age.
#[must_use]
pub fn stray(
    record: Option<(&Record, Duration)>,
    message: &Message,
    age: Duration,
    is_alive: impl Fn(&Owner) -> bool,
) -> Stray {
    let Some((record, record_age)) = record else {
        return match message.generation {
            1 => Stray::Register,
            _ if age >= AGE_MIN => Stray::Delete,
            _ => Stray::Keep,
        };
    };
    if age.min(record_age) < AGE_MIN {
        return Stray::Keep;
    }
    match decide(Some(record), message, Reading::Leader, is_alive) {
        Action::Drop | Action::ReleaseAndDrop => Stray::Delete,
        Action::Create | Action::Claim | Action::ReadLeader => Stray::Keep,
        Action::AskAgainSoon | Action::AskAgainLater => Stray::Keep,
    }
}

/// A lock without what can't be held or waited for any more: entries of jobs that are over or
/// gone, and holders that wait or are queued. An older claim of a job that somebody has keeps its
/// entry: it may have had its effect, and until the present claim has looked, under the same lock,
/// nobody else may build on that. `of_job` gives the state.
#[must_use]
pub fn tidy(lock: &Lock, of_job: impl Fn(&JobId) -> Option<StateName>) -> Lock {
    let holds = |job: &JobId| {
        matches!(
            of_job(job),
            Some(StateName::Running | StateName::Cancelling)
        )
    };
    let mut tidy = lock.clone();
    tidy.exclusive.take_if(|holder| !holds(&holder.job));
    tidy.shared.retain(|holder| holds(&holder.job));
    tidy.waiters
        .retain(|waiter| of_job(&waiter.job).is_some_and(|state| !state.is_final()));
    tidy
}
