//! Jobs whose claims are lost before their work begins, one after the other: most likely by what
//! the job itself is, so each costs the worker that looks at it.
//!
//! One whose work never began can have had no effect and has left nothing, so it ends. Any other
//! may have: until it's cleaned up and looked for, which is what kills, no final state may be
//! written. So all that can be done is to look at it ever more rarely.

use crate::{
    record::Record,
    state::{JobState, Owner, Phase},
};
use std::time::Duration;

/// So many claims in a row, lost before their work, are the job's own doing.
///
/// By chance such a claim is seldom lost: it lasts for milliseconds, unless something is in its
/// way, and the next one that begins its work sets the count back. So hosts that are upgraded one
/// after the other would have to go down five times in just these moments of the same job. More
/// than that would only take more workers down: each claim costs one for about a minute.
pub const LOST_MAX: u32 = 5;

/// How long a job is left alone that may not end, after [`LOST_MAX`] claims; twice as long after
/// each further one.
const REST_MIN: Duration = Duration::from_secs(60);
/// How often that is doubled: up to 16 minutes.
const DOUBLED_MAX: u32 = 4;

/// Whether the present claim, or the last one of a job that's over, is one too many: it ends the
/// job by its record alone. It takes no locks, cleans nothing and looks for nothing.
#[must_use]
pub fn is_poison(record: &Record) -> bool {
    record.attempt == 0 && record.lost >= LOST_MAX
}

/// How long after the last change of its record a job that a worker has is left alone by this
/// other one, which would take it over.
#[must_use]
pub fn rest(record: &Record, other: &Owner) -> Duration {
    let hold = match &record.state {
        JobState::Running(hold) | JobState::Cancelling(hold) => hold,
        JobState::Queued | JobState::Waiting(_) => return Duration::ZERO,
        JobState::Succeeded(..) | JobState::Failed(..) | JobState::Cancelled(..) => {
            return Duration::ZERO;
        }
    };
    // Who claims anew what it gave up is alive: that claim isn't lost.
    if record.attempt == 0 || hold.owner == *other {
        return Duration::ZERO;
    }
    let lost = record.lost + u32::from(hold.phase < Phase::Work);
    match lost.checked_sub(LOST_MAX) {
        Some(more) => REST_MIN * 2_u32.pow(more.min(DOUBLED_MAX)),
        None => Duration::ZERO,
    }
}
