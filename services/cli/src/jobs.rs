//! Which job is meant: a whole id, an end of one, or `last`.

use crate::{exit::Failure, scan};
use std::ops::ControlFlow;
use virtbus_bus::{Bucket, Bus, Entry};
use virtbus_wire::{JobId, Record, Timestamp};

/// The bucket of job records.
pub(crate) const BUCKET: &str = "jobs";
/// Fewer characters than this don't name a job: ids made in the same hour begin alike.
const PART_MIN: usize = 8;
/// How many candidates an error names.
const CANDIDATES_MAX: usize = 4;

/// The bucket of job records.
pub(crate) fn bucket(bus: &Bus) -> Bucket<Record> {
    Bucket::new(bus, BUCKET)
}

/// The record of the job that is meant.
///
/// # Errors
/// When there is none, or more than one.
pub(crate) async fn find(bus: &Bus, text: &str) -> Result<Entry<Record>, Failure> {
    let nothing = || {
        let mut failure = Failure::not_found(format!("no job {text}"));
        failure.code = "job.not_found".to_owned();
        failure
    };
    let id = if text == "last" {
        last(bus).await?.ok_or_else(nothing)?
    } else {
        let id: JobId = text
            .parse()
            .map_err(|error| Failure::usage(format!("{text:?} {error}")))?;
        if let Some(entry) = bucket(bus).get_latest(id.as_str()).await? {
            return Ok(entry);
        }
        unique(text, ends_with(bus, text).await?)?.ok_or_else(nothing)?
    };
    let entry = bucket(bus).get_latest(&id).await?;
    entry.ok_or_else(nothing)
}

/// As [`find`], for commands that need the id alone and may be earlier than the record.
///
/// # Errors
/// When more than one job is meant, or `last` and there is none.
pub(crate) async fn find_id(bus: &Bus, text: &str) -> Result<JobId, Failure> {
    match find(bus, text).await {
        Ok(entry) => Ok(entry.value.id),
        Err(failure) if failure.code == "job.not_found" => text.parse().map_err(|_| failure),
        Err(failure) => Err(failure),
    }
}

/// The ids that begin or end with this.
async fn ends_with(bus: &Bus, part: &str) -> Result<Vec<String>, Failure> {
    if part.len() < PART_MIN {
        return Ok(Vec::new());
    }
    scan::keys(bus, BUCKET, CANDIDATES_MAX, |key| {
        key.starts_with(part) || key.ends_with(part)
    })
    .await
}

fn unique(part: &str, mut candidates: Vec<String>) -> Result<Option<String>, Failure> {
    if candidates.len() > 1 {
        candidates.sort();
        let listed = candidates.join(", ");
        return Err(Failure::usage(format!(
            "{part} may be more than one job: {listed}"
        )));
    }
    Ok(candidates.pop())
}

/// The job that was submitted last. Reads the whole bucket: a job that waits long lies far back.
async fn last(bus: &Bus) -> Result<Option<String>, Failure> {
    let mut newest: Option<(Timestamp, String)> = None;
    scan::newest_first(bus, BUCKET, |stored| {
        #[derive(serde::Deserialize)]
        struct Submitted {
            submitted_at: Timestamp,
        }
        let read: Result<Submitted, _> = serde_json::from_slice(&stored.payload);
        if let Ok(Submitted { submitted_at }) = read
            && newest.as_ref().is_none_or(|(at, _)| *at < submitted_at)
        {
            newest = Some((submitted_at, stored.key));
        }
        ControlFlow::Continue(())
    })
    .await?;
    Ok(newest.map(|(_, id)| id))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_that_fits_two_jobs_names_none() {
        let two = vec!["b-12345678".to_owned(), "a-12345678".to_owned()];
        let failure = unique("12345678", two).unwrap_err();
        assert!(failure.message.contains("a-12345678, b-12345678"));
        assert_eq!(
            unique("12345678", vec!["a-12345678".to_owned()]).unwrap(),
            Some("a-12345678".to_owned())
        );
    }
}
