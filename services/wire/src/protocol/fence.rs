//! What becomes of the jobs of a host that somebody gave their word is off.
//!
//! The one case in which a job that a worker had ends without one: the worker is dead, and what it
//! did went with its host.

use crate::{
    error::{Code, JobError},
    id::Label,
    queue::{Priority, Queue},
    record::Record,
    state::{Event, JobState},
};
use serde_json::{Map, json};

/// What happens to a job on a queue of this host alone, nobody alive having it; none for one that
/// is over. With `restart`, what was to be started is started elsewhere in this pool.
#[must_use]
pub fn fenced(job: &Record, host: &Label, pool: &Label, restart: bool) -> Option<Event> {
    match &job.state {
        JobState::Succeeded(..) | JobState::Failed(..) | JobState::Cancelled(..) => return None,
        JobState::Cancelling(_) => return Some(Event::GiveUp),
        JobState::Queued | JobState::Waiting(_) | JobState::Running(_) => {}
    }
    Some(match job.task.as_str() {
        "stop_domain" => {
            let state = ("state".to_owned(), json!("shutoff"));
            Event::Settle(Map::from_iter([state]))
        }
        "start_domain" if restart => {
            let priority = job.queue.queue().map_or(Priority::Default, Queue::priority);
            Event::Rehome(Queue::Hypervisor(pool.clone(), priority))
        }
        _ => {
            let message = format!("the host {host} was fenced");
            let error = JobError::new(Code::HypervisorUnreachable, message);
            Event::Fail(error.with("hypervisor", host.as_str()))
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        envelope::Envelope,
        id::BootId,
        state::{Cancel, Owner, StateName, WaitReason},
        time::Timestamp,
    };

    #[test]
    fn the_jobs_of_a_fenced_host_end_or_go_elsewhere() {
        let now = Timestamp::from_millis(1_000_000);
        let (host, pool): (Label, Label) = ("hv-1".parse().unwrap(), "p".parse().unwrap());
        let queue: Queue = "hypervisor.hv-1.low".parse().unwrap();
        let claim = || Event::Claim {
            owner: Owner {
                worker: "hv".parse().unwrap(),
                boot: BootId::default(),
            },
            seq: 1,
            begin: true,
        };
        let cancel = || {
            Event::Cancel(Cancel {
                by: None,
                at: now,
                force: false,
                reason: None,
            })
        };
        let needs = Map::new();
        let wait = Event::Wait(WaitReason::Capacity { needs });
        let histories = [vec![], vec![wait], vec![claim()], vec![claim(), cancel()]];
        for task in ["stop_domain", "start_domain", "resume_domain"] {
            for (history, restart) in histories
                .iter()
                .flat_map(|history| [(history, false), (history, true)])
            {
                let id = "j".parse().unwrap();
                let job = Record::new(id, Envelope::bare(task), queue.clone().into(), now);
                let next = |job: Record, event: &Event| job.apply(event.clone(), now).unwrap();
                let job = history.iter().fold(job, next);
                let event = fenced(&job, &host, &pool, restart).unwrap();
                let after = job.apply(event, now).unwrap();
                let expected = match (job.state.name(), task, restart) {
                    (StateName::Cancelling, ..) => StateName::Cancelled,
                    (_, "stop_domain", _) => StateName::Succeeded,
                    (_, "start_domain", true) => StateName::Queued,
                    _ => StateName::Failed,
                };
                assert_eq!(after.state.name(), expected, "{task} {history:?}");
                if expected == StateName::Queued {
                    assert_eq!(after.queue.to_string(), "hypervisor.p.low");
                    assert_eq!(after.generation, job.generation + 1);
                    assert_eq!(after.claim, job.claim, "claims never go down");
                } else {
                    assert_eq!(fenced(&after, &host, &pool, restart), None);
                }
            }
        }
    }
}
