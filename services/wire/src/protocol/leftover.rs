//! An intent in the catalogue whose job is over.
//!
//! A claim that is cut off, frozen or killed while it writes its intent may have it written when
//! its job has long ended: the write compares with a record that nobody has changed since. It has
//! no effect, since the claim doesn't come past its fence any more, but what it names would stay
//! busy for good. So whoever cares for the pool puts it back.

use crate::{catalog::DiskState, protocol::reconcile::AGE_MIN, queue::Class, record::Record};
use std::time::Duration;

/// An intent as the catalogue has it: its record names a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Intent {
    /// The state that it shows.
    pub state: DiskState,
    /// Whether a domain or a download uses what it's about.
    pub is_in_use: bool,
    /// How long ago it was written, by the server's time stamp.
    pub age: Duration,
}

impl Intent {
    /// Whether a record in this state is one that a job has begun with. What is `uploading` isn't:
    /// that outlives its job, and has an end of its own.
    #[must_use]
    pub fn is_begun(state: DiskState) -> bool {
        match state {
            DiskState::Creating | DiskState::Changing | DiskState::Archiving => true,
            DiskState::Uploading
            | DiskState::Ready
            | DiskState::Archived
            | DiskState::Trashed
            | DiskState::Missing
            | DiskState::Broken
            | DiskState::Deleted => false,
        }
    }
}

/// What is to be done with an intent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Its job is over: what it says is put back. Whoever does so looks at the job's record once
    /// more with the lock on the file held: it must have the same revision.
    PutBack,
    /// It's too young, or its job may go on, or it's another service's.
    Leave,
}

/// What a service of this class does with an intent whose job has this record, read from the
/// leader. A worker makes the record before it writes an intent, and only final ones ever go: none
/// there is a job that's over.
#[must_use]
pub fn decide(intent: Intent, job: Option<&Record>, class: Class) -> Verdict {
    if !Intent::is_begun(intent.state) || intent.age < AGE_MIN {
        return Verdict::Leave;
    }
    let is_over = match job {
        Some(record) => {
            let queue = record.queue.queue();
            record.state.name().is_final() && queue.is_some_and(|queue| queue.class() == class)
        }
        // It isn't known whose it was: what a domain has open is left alone.
        None => !intent.is_in_use,
    };
    match is_over {
        true => Verdict::PutBack,
        false => Verdict::Leave,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{envelope::Envelope, record::Address, state::Event, time::Timestamp};
    use serde_json::json;

    const LATE: Intent = Intent {
        state: DiskState::Changing,
        is_in_use: false,
        age: AGE_MIN,
    };

    fn job(queue: &str) -> Record {
        let envelope = json!({ "id": "j1", "task": "resize", "params": {} });
        let envelope: Envelope = serde_json::from_value(envelope).unwrap();
        let address = Address::from(queue.to_owned());
        Record::new("j1".parse().unwrap(), envelope, address, Timestamp::now())
    }

    fn over(queue: &str) -> Record {
        let by = crate::state::Cancel {
            by: None,
            at: Timestamp::now(),
            force: false,
            reason: None,
        };
        let cancelled = job(queue).apply(Event::Cancel(by), Timestamp::now());
        cancelled.unwrap()
    }

    #[test]
    fn what_a_job_that_is_over_or_gone_began_is_put_back() {
        let record = over("storage.p.default");
        assert!(record.state.name().is_final());
        assert_eq!(
            decide(LATE, Some(&record), Class::Storage),
            Verdict::PutBack
        );
        assert_eq!(decide(LATE, None, Class::Storage), Verdict::PutBack);
    }

    #[test]
    fn what_a_living_job_began_is_left() {
        let record = job("storage.p.default");
        assert_eq!(decide(LATE, Some(&record), Class::Storage), Verdict::Leave);
    }

    #[test]
    fn what_is_young_or_no_intent_is_left() {
        let young = Intent {
            age: AGE_MIN - Duration::from_millis(1),
            ..LATE
        };
        let uploading = Intent {
            state: DiskState::Uploading,
            ..LATE
        };
        for intent in [young, uploading] {
            assert_eq!(decide(intent, None, Class::Storage), Verdict::Leave);
        }
    }

    #[test]
    fn what_another_service_may_have_begun_is_left() {
        let record = over("hypervisor.p.default");
        assert_eq!(decide(LATE, Some(&record), Class::Storage), Verdict::Leave);
        let used = Intent {
            is_in_use: true,
            ..LATE
        };
        assert_eq!(decide(used, None, Class::Storage), Verdict::Leave);
    }
}
