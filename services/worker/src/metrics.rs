//! What a worker counts. No job, user or disk is ever a label.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
};
use virtbus_daemon::Metrics;
use virtbus_wire::{JobState, Record, StateName, state::WaitReason};

/// Upper bounds of the histograms, in seconds: jobs last from milliseconds to half a day.
const SECONDS: [f64; 13] = [
    0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 10_800.0, 43_200.0,
];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Finished {
    queue: String,
    task: String,
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Kind {
    queue: String,
    task: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Retried {
    task: String,
    code: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Who {
    worker: String,
}

type Times = Family<Kind, Histogram, fn() -> Histogram>;

/// The counts of one worker.
#[derive(Debug, Clone)]
pub(crate) struct Counts {
    finished: Family<Finished, Counter>,
    queued_for: Times,
    ran_for: Times,
    retries: Family<Retried, Counter>,
    busy: Gauge,
}

impl Counts {
    /// Registers them; `slots` is how many jobs the worker can run at once.
    pub(crate) fn new(metrics: &Metrics, worker: &str, slots: u32) -> Self {
        let times = || Times::new_with_constructor(|| Histogram::new(SECONDS));
        let gauges: [Family<Who, Gauge>; 2] = Default::default();
        let who = Who {
            worker: worker.to_owned(),
        };
        gauges[0].get_or_create(&who).set(i64::from(slots));
        let busy = gauges[1].get_or_create_owned(&who);
        let counts = Self {
            finished: Family::default(),
            queued_for: times(),
            ran_for: times(),
            retries: Family::default(),
            busy,
        };
        metrics.register(|registry| {
            let [slots, busy] = gauges;
            registry.register(
                "virtbus_worker_slots",
                "Jobs the worker can run at once",
                slots,
            );
            registry.register("virtbus_worker_slots_busy", "Jobs the worker runs", busy);
            let finished = counts.finished.clone();
            registry.register("virtbus_jobs_finished", "Jobs that ended here", finished);
            let retries = counts.retries.clone();
            registry.register(
                "virtbus_job_retries",
                "Attempts that will be repeated",
                retries,
            );
            let queued = counts.queued_for.clone();
            registry.register("virtbus_job_queue_seconds", "From ready to claimed", queued);
            let ran = counts.ran_for.clone();
            registry.register("virtbus_job_run_seconds", "From claimed to ended", ran);
        });
        counts
    }

    /// How many jobs run.
    pub(crate) fn busy(&self, jobs: u32) {
        self.busy.set(i64::from(jobs));
    }

    /// A job was claimed.
    pub(crate) fn claimed(&self, record: &Record) {
        if let (Some(queued), Some(started)) = (record.queued_at, record.started_at) {
            let waited = started.since(queued).as_secs_f64();
            self.queued_for.get_or_create(&kind(record)).observe(waited);
        }
    }

    /// A claim ended.
    pub(crate) fn ended(&self, record: &Record) {
        let task = record.task.clone();
        match &record.state {
            JobState::Succeeded(ended, _)
            | JobState::Failed(ended, _)
            | JobState::Cancelled(ended, _) => {
                let (queue, outcome) = (record.queue.to_string(), record.state.name().as_str());
                self.finished
                    .get_or_create(&Finished {
                        queue,
                        task,
                        outcome,
                    })
                    .inc();
                if let Some(started) = record.started_at {
                    let ran = ended.at.since(started).as_secs_f64();
                    self.ran_for.get_or_create(&kind(record)).observe(ran);
                }
            }
            JobState::Waiting(waiting) => {
                if let WaitReason::Time {
                    error: Some(error), ..
                } = &waiting.on
                {
                    let code = error.code.as_str();
                    self.retries.get_or_create(&Retried { task, code }).inc();
                }
            }
            JobState::Queued | JobState::Running(_) | JobState::Cancelling(_) => {
                debug_assert!(
                    record.state.name() == StateName::Queued,
                    "an ending is none of these"
                );
            }
        }
    }
}

fn kind(record: &Record) -> Kind {
    Kind {
        queue: record.queue.to_string(),
        task: record.task.clone(),
    }
}
