//! Requests and answers of the control service `virtbus`: over NATS, over HTTP and, the commands
//! among them, over the websocket.

mod catalog;
mod jobs;
mod queues;
mod submit;

pub use catalog::{
    ById, DiskList, DiskRow, DomainList, DomainRow, Drained, Fence, FenceOutcome, HypervisorList,
    HypervisorName, HypervisorRow, ListOf, Location, LookUp, MediaList, MediaRow, PoolList,
    PoolName, WorkerList, WorkerName, WorkerRow,
};
pub use jobs::{
    Cancel, CancelOutcome, Cancelled, ChangePriority, Explain, Explained, JobList, LIST_LIMIT_MAX,
    ListJobs, ListLimit, OfJob, PriorityAnswer, PriorityOutcome, RetryAnswer, RetryOutcome, Since,
    WAIT_S_MAX, Wait, Why,
};
pub use queues::{OnQueue, Paused, Purged, QueueList, QueueRow};
pub use submit::{Accepted, Placed, Placement, SUBMIT_JOBS_MAX, Submission, SubmitAnswer};

use crate::error::{Code, JobError};
use crate::json::{self, Wrong};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{fmt, time::Duration};

macro_rules! operations {
    ($($(#[$doc:meta])* $name:ident = $subject:literal,)+) => {
        /// One subject of the control service.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Operation { $($(#[$doc])* $name,)+ }

        impl Operation {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$name),+];

            /// The subject to send the request to.
            #[must_use]
            pub fn subject(self) -> &'static str {
                match self { $(Self::$name => concat!("virtbus.", $subject)),+ }
            }
        }

        impl fmt::Display for Operation {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.subject())
            }
        }
    };
}

operations! {
    /// [`Submission`] → [`SubmitAnswer`].
    JobsSubmit = "jobs.submit",
    /// [`OfJob`] → the record.
    JobsGet = "jobs.get",
    /// [`Wait`] → the record, once it's final.
    JobsWait = "jobs.wait",
    /// [`ListJobs`] → [`JobList`].
    JobsList = "jobs.list",
    /// [`Cancel`] → [`Cancelled`].
    JobsCancel = "jobs.cancel",
    /// [`ChangePriority`] → [`PriorityAnswer`].
    JobsPriority = "jobs.priority",
    /// [`OfJob`] → [`RetryAnswer`].
    JobsRetry = "jobs.retry",
    /// [`OfJob`] → [`Explained`].
    JobsExplain = "jobs.explain",
    /// Nothing → [`QueueList`].
    QueuesList = "queues.list",
    /// [`OnQueue`] → [`Paused`].
    QueuesPause = "queues.pause",
    /// [`OnQueue`] → [`Paused`].
    QueuesResume = "queues.resume",
    /// [`OnQueue`] → [`Purged`].
    QueuesPurge = "queues.purge",
    /// The pool's record → the record as it is then.
    PoolsRegister = "pools.register",
    /// [`PoolName`] → [`Nothing`].
    PoolsDeregister = "pools.deregister",
    /// [`PoolName`] → the pool's record.
    PoolsGet = "pools.get",
    /// Nothing → [`PoolList`].
    PoolsList = "pools.list",
    /// [`LookUp`] → [`Location`].
    PoolsLookup = "pools.lookup",
    /// [`ById`] → [`DiskRow`].
    DisksGet = "disks.get",
    /// [`ListOf`] → [`DiskList`].
    DisksList = "disks.list",
    /// [`ById`] → [`MediaRow`].
    MediaGet = "media.get",
    /// [`ListOf`] → [`MediaList`].
    MediaList = "media.list",
    /// [`ById`] → [`DomainRow`].
    DomainsGet = "domains.get",
    /// [`ListOf`] → [`DomainList`].
    DomainsList = "domains.list",
    /// Nothing → [`HypervisorList`].
    HypervisorsList = "hypervisors.list",
    /// [`HypervisorName`] → [`HypervisorRow`].
    HypervisorsDrain = "hypervisors.drain",
    /// [`HypervisorName`] → [`HypervisorRow`].
    HypervisorsUndrain = "hypervisors.undrain",
    /// [`Fence`] → [`FenceOutcome`].
    HypervisorsFence = "hypervisors.fence",
    /// Nothing → [`WorkerList`].
    WorkersList = "workers.list",
    /// [`WorkerName`] → [`Drained`].
    WorkersDrain = "workers.drain",
    /// [`WorkerName`] → [`Drained`].
    WorkersUndrain = "workers.undrain",
}

impl Operation {
    /// How long the service takes for one request at most. Whoever asks waits a little longer.
    #[must_use]
    pub fn deadline(self) -> Duration {
        let seconds = match self {
            Self::JobsWait => WAIT_S_MAX + DEADLINE_S,
            Self::JobsSubmit => SUBMIT_DEADLINE_S,
            // Job by job, of as many as there are.
            Self::QueuesPurge | Self::HypervisorsFence => ALL_JOBS_DEADLINE_S,
            Self::JobsGet
            | Self::JobsList
            | Self::JobsCancel
            | Self::JobsPriority
            | Self::JobsRetry
            | Self::JobsExplain
            | Self::QueuesList
            | Self::QueuesPause
            | Self::QueuesResume
            | Self::PoolsRegister
            | Self::PoolsDeregister
            | Self::PoolsGet
            | Self::PoolsList
            | Self::PoolsLookup
            | Self::DisksGet
            | Self::DisksList
            | Self::MediaGet
            | Self::MediaList
            | Self::DomainsGet
            | Self::DomainsList
            | Self::HypervisorsList
            | Self::HypervisorsDrain
            | Self::HypervisorsUndrain
            | Self::WorkersList
            | Self::WorkersDrain
            | Self::WorkersUndrain => DEADLINE_S,
        };
        Duration::from_secs(seconds)
    }
}

/// How long most requests may take, in seconds.
const DEADLINE_S: u64 = 20;
/// How long a submission may take, its undoing included, in seconds.
const SUBMIT_DEADLINE_S: u64 = 60;
/// How long what looks at all jobs may take, in seconds.
const ALL_JOBS_DEADLINE_S: u64 = 300;

/// The most bytes of a reason.
pub const REASON_BYTES_MAX: usize = crate::envelope::REASON_BYTES_MAX;

/// The body of a refusal; the headers carry the same number as HTTP.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Refusal {
    /// What is wrong.
    pub error: JobError,
}

/// The answer of a request that has nothing to tell but that it's done.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Nothing {}

/// Reads a request. An empty body stands for one without fields.
///
/// # Errors
/// `job.invalid_params`, naming the field.
pub fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, JobError> {
    let body = if body.trim_ascii().is_empty() {
        b"{}"
    } else {
        body
    };
    json::read(body).map_err(|wrong: Wrong| {
        let field = wrong.field.as_deref().unwrap_or("body");
        JobError::invalid_params(field, wrong.message)
    })
}

/// The number of an error in HTTP answers and in the header `Nats-Service-Error-Code`.
#[must_use]
pub fn status(code: Code) -> u16 {
    match code {
        Code::AuthRequired => 401,
        Code::AuthForbidden => 403,
        Code::JobNotFound
        | Code::QueueUnknown
        | Code::PoolNotFound
        | Code::DiskNotFound
        | Code::MediaNotFound
        | Code::DomainNotFound
        | Code::SnapshotNotFound => 404,
        Code::Conflict
        | Code::DiskExists
        | Code::DiskInUse
        | Code::DiskBusy
        | Code::DiskHasChildren
        | Code::DiskWrongPool
        | Code::DiskWrongState
        | Code::MediaExists
        | Code::MediaInUse
        | Code::DomainWrongState
        | Code::SnapshotExists
        | Code::PoolDisabled => 409,
        Code::QueueFull => 429,
        Code::QueueNoWorker
        | Code::PoolNoSpace
        | Code::PoolUnreachable
        | Code::HypervisorUnreachable
        | Code::HypervisorNoCapacity
        | Code::WorkerLost
        | Code::WorkerShutdown
        | Code::Internal => 503,
        Code::JobMalformed
        | Code::JobUnknownTask
        | Code::JobInvalidParams
        | Code::JobExpired
        | Code::JobTimeout
        | Code::JobStalled
        | Code::JobDependencyMissing
        | Code::JobDependencyUnmet
        | Code::JobAttemptsExhausted
        | Code::PoolUnsupported
        | Code::ImageFormatMismatch
        | Code::ImageBackingFile
        | Code::ImageDataFile
        | Code::ImageUnsafeFeature
        | Code::ImageCorrupt
        | Code::ImageTooLarge
        | Code::ImageUnknownFormat
        | Code::ToolFailed
        | Code::ToolMissing
        | Code::ToolTimeout
        | Code::DomainInvalidXml
        | Code::DomainForbiddenDevice
        | Code::DomainUnsupported
        | Code::TransferExpired
        | Code::TransferChecksumMismatch
        | Code::TransferTooLarge => 400,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_body_stands_for_a_request_without_fields() {
        let list: ListJobs = decode(b" ").unwrap();
        assert!(list.state.is_empty());
        let error = decode::<OfJob>(b"").unwrap_err();
        assert_eq!(error.code, Code::JobInvalidParams);
    }

    #[test]
    fn a_wrong_field_is_named() {
        let error = decode::<ListJobs>(br#"{"limit":501}"#).unwrap_err();
        assert_eq!(error.detail["field"], "limit");
        let error = decode::<ListJobs>(br#"{"state":["done"]}"#).unwrap_err();
        assert_eq!(error.detail["field"], "state[0]");
        let error = decode::<OfJob>(b"{}").unwrap_err();
        assert_eq!(error.detail["field"], "id");
        let error = decode::<ListJobs>(br#"{"since":"soon"}"#).unwrap_err();
        assert_eq!(error.detail["field"], "since");
        assert!(error.message.contains("2h"), "{error}");
    }

    #[test]
    fn a_request_is_an_object_and_nothing_else() {
        for body in [&br#"["j"]"#[..], b"null", b"7"] {
            let error = decode::<OfJob>(body).unwrap_err();
            assert_eq!(error.message, "body: must be a JSON object");
        }
    }

    #[test]
    fn what_looks_at_all_jobs_may_take_longest_and_a_wait_longer_than_it_waits() {
        let longest = Operation::ALL.iter().map(|asked| asked.deadline()).max();
        assert_eq!(longest, Some(Operation::JobsWait.deadline()));
        assert!(Operation::JobsWait.deadline().as_secs() > WAIT_S_MAX);
        assert!(Operation::QueuesPurge.deadline() > Operation::QueuesPause.deadline());
    }

    #[test]
    fn every_subject_is_of_the_service_and_its_own() {
        let mut subjects: Vec<&str> = Operation::ALL.iter().map(|op| op.subject()).collect();
        assert!(
            subjects
                .iter()
                .all(|subject| subject.starts_with("virtbus."))
        );
        subjects.sort_unstable();
        subjects.dedup();
        assert_eq!(subjects.len(), Operation::ALL.len());
    }
}
