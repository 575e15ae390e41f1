//! `virtbus.jobs.submit`: one job or several, with a wish where.

use crate::envelope::{Dependency, Envelope};
use crate::error::JobError;
use crate::id::{JobId, Label};
use crate::queue::{Priority, Queue};
use crate::task::value::Token;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::borrow::Cow;

/// The most jobs of one request.
pub const SUBMIT_JOBS_MAX: usize = 500;

/// Where a job should go. What is left out is for the system to choose.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Placement {
    /// The pool.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<Label>,
    /// The kind of disk: pools for it are looked at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flavour: Option<Token>,
    /// The host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hypervisor: Option<Label>,
    /// The priority; that of the task's home when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<Priority>,
}

/// A job and where it should go.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct Placed {
    /// The job. Those of one request have ids, given here where the request has none.
    #[serde(flatten)]
    pub job: Envelope,
    /// Where it should go.
    #[serde(flatten)]
    pub place: Placement,
}

/// What is submitted: one job, or several of which all or none are accepted.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum Submission {
    /// Several. `after` may name an earlier one by how far before it is: `-1`, `-2`.
    Several {
        /// The jobs, in order.
        #[schemars(with = "Vec<OneOfSeveral>", length(min = 1, max = SUBMIT_JOBS_MAX))]
        jobs: Vec<Placed>,
    },
    /// One.
    One(Box<Placed>),
}

/// The schema of one of several jobs: that of a job, whose `after` may also name an earlier one.
struct OneOfSeveral;

impl JsonSchema for OneOfSeveral {
    fn schema_name() -> Cow<'static, str> {
        "OneOfSeveral".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let mut job = Placed::json_schema(generator);
        // Once it's read the ids stand there.
        if generator.contract().is_deserialize() {
            let after = Dependency::among_several(generator);
            if let Some(items) = job.pointer_mut("/properties/after/items") {
                *items = after.to_value();
            }
        }
        job
    }
}

/// A job that was accepted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Accepted {
    /// Its id.
    pub id: JobId,
    /// Its queue.
    pub queue: Queue,
    /// The message's sequence in the queue's stream; none where the queue takes no more just now,
    /// and the job is published later.
    pub seq: Option<u64>,
}

/// The answer to a submission, of its shape.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum SubmitAnswer {
    /// To several jobs, in their order.
    Several(Vec<Accepted>),
    /// To one.
    One(Accepted),
}

impl Submission {
    /// Reads a request. Every job gets an id, and references to earlier jobs become ids.
    ///
    /// # Errors
    /// `job.malformed` or `job.invalid_params`, naming the field.
    pub fn decode(body: &[u8]) -> Result<Self, JobError> {
        Self::read(super::decode::<Map<String, Value>>(body)?)
    }

    /// The same for a request that is JSON already.
    ///
    /// # Errors
    /// As for [`Submission::decode`].
    pub fn read(mut request: Map<String, Value>) -> Result<Self, JobError> {
        let Some(jobs) = request.remove("jobs") else {
            return Ok(Self::One(Box::new(placed(request, &[])?)));
        };
        let Value::Array(list) = jobs else {
            return Err(JobError::invalid_params("jobs", "must be a list"));
        };
        if !(1..=SUBMIT_JOBS_MAX).contains(&list.len()) {
            let message = format!("must be from 1 to {SUBMIT_JOBS_MAX} jobs");
            return Err(JobError::invalid_params("jobs", message));
        }
        let (mut jobs, mut ids) = (Vec::with_capacity(list.len()), Vec::new());
        for (index, job) in list.into_iter().enumerate() {
            let Value::Object(job) = job else {
                return Err(JobError::invalid_params(
                    &format!("jobs[{index}]"),
                    "must be a job",
                ));
            };
            let job = placed(job, &ids).map_err(|error| within(index, error))?;
            if let Some(id) = &job.job.id {
                if ids.contains(id) {
                    let field = format!("jobs[{index}].id");
                    return Err(JobError::invalid_params(
                        &field,
                        "is that of an earlier one",
                    ));
                }
                ids.push(id.clone());
            }
            jobs.push(job);
        }
        Ok(Self::Several { jobs })
    }

    /// The jobs, in order.
    #[must_use]
    pub fn jobs(&self) -> &[Placed] {
        match self {
            Self::Several { jobs } => jobs,
            Self::One(job) => std::slice::from_ref(job),
        }
    }
}

/// One job; `earlier` are the ids of those before it in the same request.
fn placed(mut job: Map<String, Value>, earlier: &[JobId]) -> Result<Placed, JobError> {
    if let Some(Value::Array(after)) = job.get_mut("after") {
        for (index, dependency) in after.iter_mut().enumerate() {
            let field = format!("after[{index}]");
            let named = if dependency.is_object() {
                dependency.get_mut("job")
            } else {
                Some(dependency)
            };
            if let Some(named) = named {
                resolve(named, earlier, &field)?;
            }
        }
    }
    let body = Value::Object(job).to_string();
    let place: Placement = super::decode(body.as_bytes())?;
    let mut job = Envelope::decode(body.as_bytes())?;
    job.check()?;
    job.id.get_or_insert_default();
    Ok(Placed { job, place })
}

/// Puts the id of an earlier job in place of how far before it is.
fn resolve(named: &mut Value, earlier: &[JobId], field: &str) -> Result<(), JobError> {
    let back = match named {
        Value::Number(number) => number.as_i64(),
        Value::String(text) if is_reference(text) => text.parse().ok(),
        // An id, or refused later for not being one.
        Value::String(_) | Value::Null | Value::Bool(_) => return Ok(()),
        Value::Array(_) | Value::Object(_) => return Ok(()),
    };
    let id = back
        .filter(|back| *back < 0)
        .and_then(|back| usize::try_from(back.unsigned_abs()).ok())
        .and_then(|back| earlier.len().checked_sub(back))
        .and_then(|at| earlier.get(at));
    match id {
        Some(id) => *named = id.as_str().into(),
        None => {
            return Err(JobError::invalid_params(
                field,
                "no job is that far before it",
            ));
        }
    }
    Ok(())
}

/// Whether this is how far before a job another one is, written as text. No id begins like that.
fn is_reference(text: &str) -> bool {
    let digits = text.strip_prefix('-').unwrap_or_default();
    digits.starts_with(|first: char| ('1'..='9').contains(&first))
        && digits.bytes().all(|byte| byte.is_ascii_digit())
}

/// The error of one job of several, its field as seen from the whole request.
fn within(index: usize, error: JobError) -> JobError {
    let field = error
        .detail
        .get("field")
        .and_then(Value::as_str)
        .unwrap_or("body");
    let field = match field {
        "." | "body" => format!("jobs[{index}]"),
        field => format!("jobs[{index}].{field}"),
    };
    error.with("field", field)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_of_several_may_come_after_the_one_before() {
        let body = br#"{"jobs":[{"task":"ping","id":"a"},{"task":"ping","after":[-1]},
            {"task":"ping","after":[{"job":-1,"on":["failed"]},"a"],"priority":"high"},
            {"task":"ping","after":["-2", {"job":"-3"}, -3]}]}"#;
        let submission = Submission::decode(body).unwrap();
        let jobs = submission.jobs();
        let second = jobs[1].job.id.clone().unwrap();
        assert_eq!(jobs[1].job.after[0].job.as_str(), "a");
        assert_eq!(jobs[2].job.after[0].job, second);
        assert_eq!(jobs[2].place.priority, Some(Priority::High));
        let after = &jobs[3].job.after;
        assert_eq!(after[0].job, second);
        assert_eq!((after[1].job.as_str(), after[2].job.as_str()), ("a", "a"));
    }

    #[test]
    fn one_wrong_job_is_named_among_several() {
        for (body, field) in [
            (r#"{"jobs":[]}"#, "jobs"),
            (r#"{"jobs":[{"task":"ping"},1]}"#, "jobs[1]"),
            (
                r#"{"jobs":[{"task":"ping","after":[-1]}]}"#,
                "jobs[0].after[0]",
            ),
            (
                r#"{"jobs":[{"task":"ping","after":[0]}]}"#,
                "jobs[0].after[0]",
            ),
            (
                r#"{"jobs":[{"task":"ping"},{"task":"ping","after":["-2"]}]}"#,
                "jobs[1].after[0]",
            ),
            (
                r#"{"jobs":[{"task":"ping"},{"task":"ping","after":["-99999999999999999999"]}]}"#,
                "jobs[1].after[0]",
            ),
            (
                r#"{"jobs":[{"task":"ping"},{"task":"ping","after":["-01"]}]}"#,
                "jobs[1].after[0]",
            ),
            (r#"{"task":"ping","after":["-1"]}"#, "after[0]"),
            (r#"{"jobs":[{"task":"ping","id":"a/b"}]}"#, "jobs[0].id"),
            (
                r#"{"jobs":[{"task":"ping","id":"a"},{"task":"ping","id":"a"}]}"#,
                "jobs[1].id",
            ),
            (r#"{"task":"ping","priority":"urgent"}"#, "priority"),
        ] {
            let error = Submission::decode(body.as_bytes()).unwrap_err();
            assert_eq!(error.detail["field"], field, "{body}: {error}");
        }
    }
}
