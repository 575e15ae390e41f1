//! What the catalogue must say of a disk or a medium for a domain to have it: pure.

use crate::{
    catalog::{Disk, Holder, not_found},
    users::conflict,
};
use virtbus_wire::{
    Code, DiskId, JobError, Label, MediaId, Record, Timestamp,
    catalog::{DiskState, InUseBy, MediaRecord, UseMode},
    envelope::IfInUse,
    state::WaitReason,
};
use virtbus_worker::Stop;

/// How a disk is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// The guest writes it.
    Write,
    /// The guest reads it.
    Read,
    /// A snapshot is kept in its file, or given up: what it shows stays the same.
    Keep,
}

impl Way {
    pub(crate) fn mode(self) -> UseMode {
        match self {
            Self::Write | Self::Keep => UseMode::Exclusive,
            Self::Read => UseMode::Shared,
        }
    }
}

/// That a disk can be used in this way, and all below it be read.
pub(crate) fn admit_chain(
    id: &DiskId,
    chain: &[Disk],
    pool: &Label,
    way: Way,
) -> Result<(), JobError> {
    let Some((_, top)) = chain.first() else {
        return Err(not_found(Code::DiskNotFound, "disk", id.as_str()));
    };
    admit_states(chain)?;
    for (id, record) in chain {
        if record.pool != *pool {
            let text = "the disk lies in another pool";
            return Err(JobError::new(Code::DiskWrongPool, text)
                .with("disk", id.as_str())
                .with("pool", record.pool.as_str()));
        }
    }
    if way == Way::Write && !top.children.is_empty() {
        let children: Vec<&str> = top.children.iter().map(DiskId::as_str).collect();
        let text = "other disks depend on what this one holds: it can't be written";
        return Err(JobError::new(Code::DiskHasChildren, text)
            .with("disk", id.as_str())
            .with("children", children));
    }
    Ok(())
}

/// That all disks of a chain can be used. One that a commit left half written can, below the disk
/// that it was written from: that one hides it.
pub(crate) fn admit_states(chain: &[Disk]) -> Result<(), JobError> {
    let mut above: Option<&Disk> = None;
    for disk in chain {
        let (id, record) = disk;
        let is_half = |(above_id, above): &Disk| record.is_half_written_from((above_id, above));
        if !above.is_some_and(is_half) {
            admit_state("disk", id.as_str(), record.state)?;
        }
        above = Some(disk);
    }
    Ok(())
}

/// That a medium can be used.
pub(crate) fn admit_medium<'a>(
    id: &MediaId,
    record: Option<&'a MediaRecord>,
    pool: &Label,
) -> Result<&'a MediaRecord, JobError> {
    let record = record.ok_or_else(|| not_found(Code::MediaNotFound, "media", id.as_str()))?;
    admit_state("media", id.as_str(), record.state)?;
    if record.pool != *pool {
        let text = "the medium lies in another pool";
        return Err(JobError::new(Code::DiskWrongPool, text).with("media", id.as_str()));
    }
    Ok(record)
}

/// That a disk or a medium is in a state in which it can be used.
pub(crate) fn admit_state(what: &str, id: &str, state: DiskState) -> Result<(), JobError> {
    let (code, text) = match state {
        DiskState::Ready => return Ok(()),
        DiskState::Deleted if what == "media" => {
            return Err(not_found(Code::MediaNotFound, what, id));
        }
        DiskState::Deleted => return Err(not_found(Code::DiskNotFound, what, id)),
        DiskState::Creating | DiskState::Uploading | DiskState::Changing | DiskState::Archiving => {
            (Code::DiskBusy, "another job is changing it".to_owned())
        }
        DiskState::Archived | DiskState::Trashed | DiskState::Missing | DiskState::Broken => {
            (Code::DiskWrongState, format!("it is {}", state.as_str()))
        }
    };
    let text = format!("the {what} can't be used: {text}");
    Err(JobError::new(code, text)
        .with(what, id)
        .with("state", state.as_str()))
}

/// That nobody uses it in a way that goes not with what is wanted; or the wait for that.
pub(crate) fn admit_use(
    object: &str,
    users: &[InUseBy],
    holder: &Holder,
    mode: UseMode,
    job: &Record,
) -> Result<(), Stop> {
    let Some(user) = conflict(users, holder, mode, Timestamp::now()) else {
        return Ok(());
    };
    let (what, id) = object.split_once('.').unwrap_or(("disk", object));
    let code = if what == "media" {
        Code::MediaInUse
    } else {
        Code::DiskInUse
    };
    let error = |text: String| JobError::new(code, text).with(what, id);
    let (by, error) = match user {
        InUseBy::Domain {
            domain, hypervisor, ..
        } => {
            let error = error(format!("a domain uses the {what}"))
                .with("domain", domain.as_str())
                .with("hypervisor", hypervisor.as_str());
            (format!("domain.{domain}"), error)
        }
        InUseBy::Job { job, .. } => {
            let error = error(format!("a download uses the {what}")).with("job", job.as_str());
            (format!("job.{job}"), error)
        }
    };
    match job.if_in_use {
        IfInUse::Fail => Err(Stop::Failed(error)),
        IfInUse::Wait => Err(Stop::Wait(WaitReason::Lock {
            resource: object.to_owned(),
            holder: Some(by),
            since: None,
        })),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn disk(id: &str, more: &serde_json::Value) -> Disk {
        let mut record = json!({"pool": "default", "format": "qcow2", "state": "ready",
                                "updated_at": Timestamp::now()});
        let more = more.as_object().unwrap().clone();
        record.as_object_mut().unwrap().extend(more);
        (id.parse().unwrap(), serde_json::from_value(record).unwrap())
    }

    #[test]
    fn what_a_commit_left_half_written_is_used_below_the_disk_that_hides_it_alone() {
        let half = json!({"state": "broken", "owner_job": "j1", "children": ["web1"]});
        let (below, web1) = (
            disk("base", &half),
            disk("web1", &json!({"owner_job": "j1"})),
        );
        assert!(admit_states(&[web1.clone(), below.clone()]).is_ok());
        let code = |chain: &[Disk]| admit_states(chain).unwrap_err().code;
        assert_eq!(code(std::slice::from_ref(&below)), Code::DiskWrongState);
        for other in [
            disk("web2", &json!({"owner_job": "j1"})),
            disk("web1", &json!({"owner_job": "j2"})),
            disk("web1", &json!({})),
        ] {
            assert_eq!(code(&[other, below.clone()]), Code::DiskWrongState);
        }
        let shared = json!({"state": "broken", "owner_job": "j1", "children": ["web1", "web2"]});
        assert_eq!(
            code(&[web1.clone(), disk("base", &shared)]),
            Code::DiskWrongState
        );
        let nobodys = json!({"state": "broken", "children": ["web1"]});
        let web1 = disk("web1", &json!({}));
        assert_eq!(code(&[web1, disk("base", &nobodys)]), Code::DiskWrongState);
    }
}
