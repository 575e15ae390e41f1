//! Which job is meant: a whole id, an end of one, or `last`.

use crate::{exit::Failure, scan};
use std::{ops::ControlFlow, time::Duration};
use tokio::time::{self, Instant};
use virtbus_bus::{Bucket, Bus, Entry, Stored};
use virtbus_wire::{
    Class, JobId, Record, Timestamp,
    protocol::arrival::{Arrived, Life, arrive},
};

/// The bucket of job records.
pub(crate) const BUCKET: &str = "jobs";
/// Fewer characters than this don't name a job: ids made in the same hour begin alike.
const PART_MIN: usize = 8;
/// How many candidates an error names.
const CANDIDATES_MAX: usize = 4;
/// What stands for the job that was submitted last.
const LAST: &str = "last";
/// A job that was published earlier than this has its record, as far as clocks agree.
const RECENT: Duration = Duration::from_secs(3);
/// Pages of recent messages that are looked through.
const PAGES_MAX: usize = 8;
/// How long a published job's record is waited for.
const APPEARS_IN: Duration = Duration::from_secs(2);
/// How often it's looked for.
const LOOK: Duration = Duration::from_millis(50);

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
    if text == LAST {
        let id = last(bus).await?.ok_or_else(nothing)?;
        return appeared(bus, &id).await?.ok_or_else(nothing);
    }
    let id: JobId = text
        .parse()
        .map_err(|error| Failure::usage(format!("{text:?} {error}")))?;
    if let Some(entry) = bucket(bus).get_latest(id.as_str()).await? {
        return Ok(entry);
    }
    let id = unique(text, ends_with(bus, text).await?)?.ok_or_else(nothing)?;
    let entry = bucket(bus).get_latest(&id).await?;
    entry.ok_or_else(nothing)
}

/// The record of a job that was published, perhaps just now.
async fn appeared(bus: &Bus, id: &JobId) -> Result<Option<Entry<Record>>, Failure> {
    let end = Instant::now() + APPEARS_IN;
    loop {
        let found = bucket(bus).get_latest(id.as_str()).await?;
        if found.is_some() || Instant::now() >= end {
            return Ok(found);
        }
        time::sleep(LOOK).await;
    }
}

/// As [`find`], for commands that need the id alone and may be earlier than the record.
///
/// # Errors
/// When more than one job is meant, or `last` and there is none.
pub(crate) async fn find_id(bus: &Bus, text: &str) -> Result<JobId, Failure> {
    if text == LAST {
        let nothing = || Failure::not_found("no job was submitted yet");
        return last(bus).await?.ok_or_else(nothing);
    }
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

/// The job that was submitted last: one that was published just now may have no record yet, and
/// then the one before it must not be taken for it. Reads the whole bucket: a job that waits long
/// lies far back.
async fn last(bus: &Bus) -> Result<Option<JobId>, Failure> {
    let mut newest = published_just_now(bus).await?;
    scan::newest_first(bus, BUCKET, |stored| {
        #[derive(serde::Deserialize)]
        struct Submitted {
            submitted_at: Timestamp,
        }
        let read: Result<Submitted, _> = serde_json::from_slice(&stored.payload);
        if let Ok(Submitted { submitted_at }) = read
            && newest.as_ref().is_none_or(|(at, _)| *at < submitted_at)
            && let Ok(id) = stored.key.parse()
        {
            newest = Some((submitted_at, id));
        }
        ControlFlow::Continue(())
    })
    .await?;
    Ok(newest.map(|(_, id)| id))
}

/// The newest publisher's message of the last seconds: when it came, and whose it is.
async fn published_just_now(bus: &Bus) -> Result<Option<(Timestamp, JobId)>, Failure> {
    let now = Timestamp::now();
    let millis = i64::try_from(RECENT.as_millis()).unwrap_or(i64::MAX);
    let since = Timestamp::from_millis(now.as_millis().saturating_sub(millis));
    let mut newest: Option<(Timestamp, JobId)> = None;
    for class in Class::ALL {
        let stream = class.stream();
        let mut page = bus.browse_since(stream, ">", since).await?;
        for _ in 0..PAGES_MAX {
            for arrival in page.items.iter().filter_map(Stored::arrival) {
                if let Arrived::Job { id, .. } = arrive(&arrival, Life::First, now)
                    && newest.as_ref().is_none_or(|(at, _)| *at < arrival.time)
                {
                    newest = Some((arrival.time, id));
                }
            }
            match page.next {
                Some(next) => page = bus.browse(stream, ">", next).await?,
                None => break,
            }
        }
    }
    Ok(newest)
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
