//! A job as its publisher writes it.

mod dependency;

pub use dependency::{Dependency, ON_MAX};

use crate::{
    error::{Code, JobError},
    id::{JobId, PublisherLock, Tenant, User},
    json,
    time::Timestamp,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// The most bytes that `params` may take as JSON.
pub const PARAMS_BYTES_MAX: usize = 12 * 1024;
/// The most jobs one job may come after.
pub const AFTER_MAX: usize = 1024;
/// The most locks of its own a job may name.
pub const LOCKS_MAX: usize = 16;
/// The most labels of a job.
pub const LABELS_MAX: usize = 32;
/// The most bytes of a label's name or value, and of `task`.
pub const LABEL_BYTES_MAX: usize = 256;
/// The most bytes of `reason`.
pub const REASON_BYTES_MAX: usize = 1024;
/// The most attempts a job may ask for.
pub const ATTEMPTS_MAX: u32 = 100;

/// A job as published. Only `task` is required, and `params` where the task needs some; unknown
/// fields are ignored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(title = "Job")]
pub struct Envelope {
    /// The job's id; without one the `Nats-Msg-Id` header, else the message's sequence names it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<JobId>,
    /// What to do.
    #[schemars(length(min = 1, max = LABEL_BYTES_MAX))]
    pub task: String,
    /// The task's parameters.
    #[serde(default)]
    #[schemars(with = "Map<String, Value>")]
    pub params: Value,
    /// On whose behalf; believed, so only back ends may publish.
    #[serde(default)]
    pub user: Option<User>,
    /// The user's tenant; believed too.
    #[serde(default)]
    pub tenant: Option<Tenant>,
    /// Anything the publisher wants to find the job by.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Jobs that must end first.
    #[serde(default)]
    #[schemars(length(max = AFTER_MAX))]
    pub after: Vec<Dependency>,
    /// Locks of the publisher's own, beside those the task takes itself.
    #[serde(default)]
    pub locks: PublisherLocks,
    /// What to do when a domain or a download uses what the job needs.
    #[serde(default)]
    pub if_in_use: IfInUse,
    /// Don't start before this.
    #[serde(default)]
    pub not_before: Option<Timestamp>,
    /// Don't start after this: `job.expired`.
    #[serde(default)]
    pub expires_at: Option<Timestamp>,
    /// Seconds an attempt may take.
    #[serde(default)]
    #[schemars(range(min = 1))]
    pub timeout_s: Option<u64>,
    /// How often to try.
    #[serde(default)]
    pub retry: Retry,
    /// Why, for people.
    #[serde(default)]
    #[schemars(length(max = REASON_BYTES_MAX))]
    pub reason: Option<String>,
}

/// Locks of a publisher's own.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PublisherLocks {
    /// Held alone.
    #[serde(default)]
    pub exclusive: Vec<PublisherLock>,
    /// Held together with other sharers.
    #[serde(default)]
    pub shared: Vec<PublisherLock>,
}

/// What to do when a domain or a download uses what the job needs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum IfInUse {
    /// End with `disk.in_use`.
    #[default]
    Fail,
    /// Wait until it's free.
    Wait,
}

/// How often to try.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Retry {
    /// Attempts in all, for errors that may pass.
    #[serde(default = "attempts_default")]
    #[schemars(range(min = 1, max = ATTEMPTS_MAX))]
    pub max_attempts: u32,
}

fn attempts_default() -> u32 {
    3
}

impl Default for Retry {
    fn default() -> Self {
        Self {
            max_attempts: attempts_default(),
        }
    }
}

impl Envelope {
    /// A job that says nothing but its task.
    #[must_use]
    pub fn bare(task: &str) -> Self {
        Self {
            id: None,
            task: task.to_owned(),
            params: Value::Object(Map::new()),
            user: None,
            tenant: None,
            labels: BTreeMap::new(),
            after: Vec::new(),
            locks: PublisherLocks::default(),
            if_in_use: IfInUse::default(),
            not_before: None,
            expires_at: None,
            timeout_s: None,
            retry: Retry::default(),
            reason: None,
        }
    }

    /// Reads what a publisher sent.
    ///
    /// # Errors
    /// `job.malformed` for what can't be decoded, with the field in `detail.field`. What decodes
    /// but breaks a bound is for [`Envelope::check`], since then the job's id is known.
    pub fn decode(payload: &[u8]) -> Result<Self, JobError> {
        let envelope: Self = json::read(payload).map_err(|wrong| {
            let field = wrong.field.as_deref().unwrap_or(".");
            malformed(field, &wrong.message)
        })?;
        if envelope.task.is_empty() || envelope.task.len() > LABEL_BYTES_MAX {
            return Err(malformed("task", "must be the name of a task"));
        }
        Ok(envelope)
    }

    /// Checks the bounds of the fields around `params`.
    ///
    /// # Errors
    /// `job.invalid_params` with the field in `detail.field`.
    pub fn check(&self) -> Result<(), JobError> {
        let long_label = |(name, value): (&String, &String)| {
            name.is_empty() || name.len() > LABEL_BYTES_MAX || value.len() > LABEL_BYTES_MAX
        };
        let refuse = |field, message: String| Err(JobError::invalid_params(field, message));
        if self.params_bytes() > PARAMS_BYTES_MAX {
            return refuse(
                "params",
                format!("must be at most {PARAMS_BYTES_MAX} bytes"),
            );
        }
        if self.labels.len() > LABELS_MAX || self.labels.iter().any(long_label) {
            return refuse(
                "labels",
                format!(
                    "at most {LABELS_MAX}, each name and value at most {LABEL_BYTES_MAX} bytes"
                ),
            );
        }
        if self.after.len() > AFTER_MAX {
            return refuse("after", format!("at most {AFTER_MAX} jobs"));
        }
        if self.locks.exclusive.len() + self.locks.shared.len() > LOCKS_MAX {
            return refuse(
                "locks",
                format!("at most {LOCKS_MAX} of the publisher's own"),
            );
        }
        if self
            .reason
            .as_ref()
            .is_some_and(|reason| reason.len() > REASON_BYTES_MAX)
        {
            return refuse("reason", format!("at most {REASON_BYTES_MAX} bytes"));
        }
        if !(1..=ATTEMPTS_MAX).contains(&self.retry.max_attempts) {
            return refuse(
                "retry.max_attempts",
                format!("must be from 1 to {ATTEMPTS_MAX}"),
            );
        }
        if self.timeout_s == Some(0) {
            return refuse("timeout_s", "must be at least 1".to_owned());
        }
        Ok(())
    }

    /// The size of `params` as JSON, in bytes.
    #[must_use]
    pub fn params_bytes(&self) -> usize {
        self.params.to_string().len()
    }
}

fn malformed(field: &str, message: &str) -> JobError {
    let wrong_lock = field.starts_with("locks.") && message.contains("lock name");
    let code = if wrong_lock {
        Code::JobInvalidParams
    } else {
        Code::JobMalformed
    };
    let at = if field == "." {
        String::new()
    } else {
        format!("{field}: ")
    };
    JobError::new(code, format!("{at}{message}")).with("field", field)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::StateName;

    fn refused(json: &str) -> JobError {
        let error = Envelope::decode(json.as_bytes()).and_then(|envelope| envelope.check());
        error.expect_err(json)
    }

    #[test]
    fn a_task_is_all_a_job_needs() {
        let job = Envelope::decode(br#"{"task":"ping","nonsense":1}"#).unwrap();
        assert_eq!((job.retry.max_attempts, job.if_in_use), (3, IfInUse::Fail));
        job.check().unwrap();
    }

    #[test]
    fn what_cannot_be_decoded_names_its_field() {
        for (json, field) in [
            ("", "."),
            ("[]", "."),
            (r#"["ping"]"#, "."),
            (
                r#"[null,"ping",{},null,null,{},[],{},"fail",null,null,null,{},null]"#,
                ".",
            ),
            ("{}", "task"),
            (r#"{"task":"ping"} x"#, "."),
            (r#"{"task":""}"#, "task"),
            (r#"{"task":"ping","id":"a/b"}"#, "id"),
            (r#"{"task":"ping","after":["../x"]}"#, "after[0]"),
            (
                r#"{"task":"ping","after":[{"job":"a","on":["running"]}]}"#,
                "after[0]",
            ),
            (
                r#"{"task":"ping","after":[{"job":"a","on":["failed","failed","failed","failed"]}]}"#,
                "after[0]",
            ),
            (r#"{"task":"ping","expires_at":"soon"}"#, "expires_at"),
        ] {
            let error = refused(json);
            assert_eq!(error.code, Code::JobMalformed, "{json}: {error}");
            assert_eq!(error.detail["field"], field, "{json}: {error}");
        }
    }

    #[test]
    fn what_breaks_a_bound_is_a_wrong_parameter() {
        let long = "x".repeat(PARAMS_BYTES_MAX);
        for (json, field) in [
            (
                format!(r#"{{"task":"ping","params":{{"x":"{long}"}}}}"#),
                "params",
            ),
            (format!(r#"{{"task":"ping","reason":"{long}"}}"#), "reason"),
            (
                r#"{"task":"ping","retry":{"max_attempts":0}}"#.to_owned(),
                "retry.max_attempts",
            ),
            (r#"{"task":"ping","timeout_s":0}"#.to_owned(), "timeout_s"),
            (
                r#"{"task":"p","locks":{"exclusive":["disk.d1"]}}"#.to_owned(),
                "locks.exclusive[0]",
            ),
            (r#"{"task":"ping","labels":{"":"x"}}"#.to_owned(), "labels"),
        ] {
            let error = refused(&json);
            assert_eq!(error.code, Code::JobInvalidParams, "{error}");
            assert_eq!(error.detail["field"], field);
        }
    }

    #[test]
    fn a_dependency_may_be_just_an_id() {
        let job = Envelope::decode(br#"{"task":"ping","after":["a",{"job":"b","on":["failed"]}]}"#);
        let after = job.unwrap().after;
        assert_eq!(after[0].on, [StateName::Succeeded]);
        assert_eq!(after[1].on, [StateName::Failed]);
    }
}
