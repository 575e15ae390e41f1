use super::*;
use std::time::Duration;
use virtbus_wire::envelope::Envelope;

fn job(id: &str) -> Record {
    let envelope: Envelope = serde_json::from_str(
        r#"{"task": "resize", "params": {}, "user": "alice", "tenant": "acme"}"#,
    )
    .unwrap();
    let queue = "storage.default.high".to_owned().into();
    Record::new(id.parse().unwrap(), envelope, queue, Timestamp::now())
}

fn disk(state: DiskState) -> DiskRecord {
    let new_disk = NewDisk {
        pool: "default".parse().unwrap(),
        format: ImageFormat::Qcow2,
        virtual_size: 1 << 20,
        backing: None,
    };
    DiskRecord {
        state,
        ..new(new_disk, &job("j1"), Timestamp::now())
    }
}

const STATES: [DiskState; 10] = [
    DiskState::Creating,
    DiskState::Uploading,
    DiskState::Ready,
    DiskState::Changing,
    DiskState::Archiving,
    DiskState::Archived,
    DiskState::Trashed,
    DiskState::Missing,
    DiskState::Broken,
    DiskState::Deleted,
];

fn code(record: &DiskRecord, job: &str, purpose: Purpose) -> Option<Code> {
    let (id, pool) = ("d1".parse().unwrap(), "default".parse().unwrap());
    let admitted = admit(&id, Some(record), &pool, &job.parse().unwrap(), purpose);
    admitted.err().map(|error| error.code)
}

#[test]
fn only_what_is_ready_can_be_used() {
    for state in STATES {
        let expected = match state {
            DiskState::Ready => None,
            DiskState::Deleted => Some(Code::DiskNotFound),
            DiskState::Creating
            | DiskState::Uploading
            | DiskState::Changing
            | DiskState::Archiving => Some(Code::DiskBusy),
            DiskState::Archived | DiskState::Trashed | DiskState::Missing | DiskState::Broken => {
                Some(Code::DiskWrongState)
            }
        };
        assert_eq!(
            code(&disk(state), "j2", Purpose::Use),
            expected,
            "{state:?}"
        );
    }
    assert_eq!(code(&disk(DiskState::Changing), "j1", Purpose::Use), None);
}

#[test]
fn what_is_not_busy_can_be_deleted() {
    for state in STATES {
        let expected = match state {
            DiskState::Deleted => Some(Code::DiskNotFound),
            DiskState::Creating
            | DiskState::Uploading
            | DiskState::Changing
            | DiskState::Archiving => Some(Code::DiskBusy),
            DiskState::Ready
            | DiskState::Archived
            | DiskState::Trashed
            | DiskState::Missing
            | DiskState::Broken => None,
        };
        assert_eq!(
            code(&disk(state), "j2", Purpose::Delete),
            expected,
            "{state:?}"
        );
    }
}

#[test]
fn an_id_is_free_for_nobody_but_the_job_that_makes_its_disk() {
    let id: DiskId = "d1".parse().unwrap();
    for state in STATES {
        let record = disk(state);
        let other = admit_new(&id, Some(&record), &"j2".parse().unwrap());
        // Only what is being made may still leave its id; what is changed has it for good, so it's
        // no use to try again.
        let may_go = matches!(state, DiskState::Creating | DiskState::Uploading);
        let expected = if may_go {
            Code::DiskBusy
        } else {
            Code::DiskExists
        };
        assert_eq!(other.unwrap_err().code, expected, "{state:?}");
        let own = admit_new(&id, Some(&record), &"j1".parse().unwrap());
        assert_eq!(own.is_ok(), state == DiskState::Creating, "{state:?}");
    }
    assert!(admit_new::<DiskRecord>(&id, None, &"j2".parse().unwrap()).is_ok());
}

#[test]
fn a_disk_of_another_pool_is_refused() {
    let (id, pool) = ("d1".parse().unwrap(), "other".parse().unwrap());
    let ready = disk(DiskState::Ready);
    let admitted = admit(
        &id,
        Some(&ready),
        &pool,
        &"j".parse().unwrap(),
        Purpose::Use,
    );
    assert_eq!(admitted.unwrap_err().code, Code::DiskWrongPool);
}

#[test]
fn an_intent_that_is_given_back_leaves_the_former_state() {
    let now = Timestamp::now();
    for state in STATES {
        let before = disk(state);
        let intent = taken(&before, &"j2".parse().unwrap(), now);
        assert_eq!(intent.epoch, before.epoch + 1);
        let back = given_back(&intent, now);
        let was_begun = state == DiskState::Changing;
        assert_eq!(back.state, if was_begun { DiskState::Ready } else { state });
    }
}

#[test]
fn a_new_disk_belongs_to_the_jobs_user() {
    let record = disk(DiskState::Creating);
    assert_eq!(record.tenant, Some("acme".parse().unwrap()));
    assert_eq!(record.user, Some("alice".parse().unwrap()));
}

fn used(mode: UseMode) -> DiskRecord {
    let user = InUseBy::Domain {
        domain: "web1".parse().unwrap(),
        hypervisor: "hv-1".parse().unwrap(),
        mode,
    };
    DiskRecord {
        in_use_by: vec![user],
        ..disk(DiskState::Ready)
    }
}

fn admits(record: &DiskRecord, wants: UseMode, now: Timestamp) -> bool {
    admit_use(&"d1".parse().unwrap(), record, wants, IfInUse::Fail, now).is_ok()
}

#[test]
fn sharers_go_together_and_a_writer_is_alone() {
    let now = Timestamp::now();
    let (exclusive, shared) = (UseMode::Exclusive, UseMode::Shared);
    for (has, wants, fits) in [
        (exclusive, exclusive, false),
        (exclusive, shared, false),
        (shared, exclusive, false),
        (shared, shared, true),
    ] {
        assert_eq!(admits(&used(has), wants, now), fits, "{has:?} {wants:?}");
    }
}

#[test]
fn a_download_holds_off_writers_until_it_expires() {
    let now = Timestamp::now();
    let user = InUseBy::Job {
        job: "j9".parse().unwrap(),
        expires_at: now.after(Duration::from_secs(60)),
    };
    let record = DiskRecord {
        in_use_by: vec![user],
        ..disk(DiskState::Ready)
    };
    assert!(!admits(&record, UseMode::Exclusive, now));
    assert!(admits(&record, UseMode::Shared, now));
    assert!(admits(
        &record,
        UseMode::Exclusive,
        now.after(Duration::from_secs(61))
    ));
}

#[test]
fn a_disk_in_use_is_an_error_or_a_wait_as_the_job_says() {
    let (id, now) = ("d1".parse().unwrap(), Timestamp::now());
    let record = used(UseMode::Exclusive);
    let refused = admit_use(&id, &record, UseMode::Exclusive, IfInUse::Fail, now);
    let Err(Stop::Failed(error)) = refused else {
        panic!("{refused:?}");
    };
    assert_eq!(error.code, Code::DiskInUse);
    assert_eq!(error.detail["domain"], "web1");
    assert_eq!(error.detail["hypervisor"], "hv-1");
    let waits = admit_use(&id, &record, UseMode::Exclusive, IfInUse::Wait, now);
    let Err(Stop::Wait(WaitReason::Lock {
        resource, holder, ..
    })) = waits
    else {
        panic!("{waits:?}");
    };
    assert_eq!(
        (resource.as_str(), holder.as_deref()),
        ("disk.d1", Some("domain.web1"))
    );
}

#[test]
fn children_are_there_once_and_freeze_what_is_below() {
    let (id, child, now) = (
        "d1".parse().unwrap(),
        "d2".parse().unwrap(),
        Timestamp::now(),
    );
    let ready = disk(DiskState::Ready);
    assert!(admit_change(&id, &ready).is_ok());
    let parent = with_child(&ready, &child, now).unwrap();
    assert_eq!(with_child(&parent, &child, now), None);
    let frozen = admit_change(&id, &parent).unwrap_err();
    assert_eq!(frozen.code, Code::DiskHasChildren);
    assert!(
        without_child(&parent, &child, now)
            .unwrap()
            .children
            .is_empty()
    );
    assert_eq!(without_child(&ready, &child, now), None);
}
