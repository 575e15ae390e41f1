use super::*;
use std::time::Duration;
use virtbus_wire::{
    BootId, Envelope, Event, JobError, StateName,
    state::{Cancel, Owner, Progress},
};

fn job(events: Vec<Event>, now: Timestamp) -> Record {
    let queue: Queue = "storage.p.low".parse().unwrap();
    let id = "j".parse().unwrap();
    let job = Record::new(id, Envelope::bare("ping"), queue.into(), now);
    let next = |job: Record, event| job.apply(event, now).unwrap();
    events.into_iter().fold(job, next)
}

fn claim() -> Event {
    Event::Claim {
        owner: Owner {
            worker: "st-1".parse().unwrap(),
            boot: BootId::default(),
        },
        seq: 1,
        begin: true,
    }
}

fn served(pause: Option<QueueRecord>, workers: u32) -> Line {
    Line {
        pause,
        workers,
        ahead: Some(7),
        waits: None,
    }
}

fn pause() -> QueueRecord {
    QueueRecord {
        paused: true,
        by: Some("alice".to_owned()),
        reason: Some("disks full".to_owned()),
        at: Timestamp::from_millis(0),
    }
}

#[test]
fn a_queued_job_is_paused_or_unserved_or_in_line() {
    let now = Timestamp::from_millis(1_000_000);
    for (line, why) in [
        (served(None, 2), Why::Position),
        (served(None, 0), Why::NoWorker),
        (served(Some(pause()), 2), Why::Paused),
        (served(Some(pause()), 0), Why::Paused),
    ] {
        let workers = line.workers;
        let told = explained(&job(vec![], now), line, now);
        assert_eq!((told.why, told.workers), (why, workers));
        assert_eq!((told.state, told.ahead), (StateName::Queued, Some(7)));
        if why == Why::Paused {
            assert_eq!(told.detail["by"], "alice");
        }
    }
}

#[test]
fn a_waiting_job_says_for_what_it_waits() {
    let now = Timestamp::from_millis(1_000_000);
    let before = || "a".parse().unwrap();
    let until = now.after(Duration::from_secs(90));
    for (on, why, key) in [
        (
            WaitReason::Dependency {
                job: before(),
                state: None,
            },
            Why::Dependency,
            "job",
        ),
        (
            WaitReason::Lock {
                resource: "disk.d7".to_owned(),
                holder: Some("job.a".to_owned()),
                since: Some(now),
            },
            Why::Lock,
            "holder",
        ),
        (WaitReason::Time { until, error: None }, Why::Time, "until"),
        (
            WaitReason::Capacity { needs: Map::new() },
            Why::Capacity,
            "needs",
        ),
        (
            WaitReason::Tenant {
                running: 3,
                limit: 3,
            },
            Why::Tenant,
            "limit",
        ),
        (
            WaitReason::Transfer {
                received: 1,
                size: None,
                expires_at: until,
            },
            Why::Transfer,
            "received",
        ),
    ] {
        let told = explained(&job(vec![Event::Wait(on)], now), served(None, 1), now);
        assert_eq!((told.why, told.state), (why, StateName::Waiting));
        assert!(told.detail.contains_key(key), "{told:?}");
        assert_eq!(told.ahead, None);
        assert_eq!(told.eta_s, (why == Why::Time).then_some(90));
    }
}

#[test]
fn a_job_that_somebody_has_or_had_says_who_and_how_it_ended() {
    let now = Timestamp::from_millis(1_000_000);
    let progress = Progress {
        eta_s: Some(35),
        ..Progress::default()
    };
    let cancel = Cancel {
        by: None,
        at: now,
        force: false,
        reason: None,
    };
    let running = vec![claim(), Event::Progress(progress)];
    let told = explained(&job(running, now), served(None, 1), now);
    assert_eq!((told.why, told.eta_s), (Why::Running, Some(35)));
    assert_eq!(told.detail["worker"], "st-1");
    assert!(!told.detail.contains_key("lost"));
    let mut lost = job(vec![claim()], now);
    lost.lost = 3;
    assert_eq!(explained(&lost, served(None, 1), now).detail["lost"], 3);
    let cancelling = vec![claim(), Event::Cancel(cancel)];
    let told = explained(&job(cancelling, now), served(None, 1), now);
    assert_eq!(told.why, Why::Cancelling);
    let failed = vec![Event::Fail(JobError::internal("broken"))];
    let told = explained(&job(failed, now), served(None, 1), now);
    assert_eq!(told.why, Why::Final);
    assert_eq!(told.detail["error"]["code"], "internal");
    let done = vec![claim(), Event::Succeed(Map::new())];
    let told = explained(&job(done, now), served(None, 1), now);
    assert_eq!((told.why, told.ahead), (Why::Final, None));
}
