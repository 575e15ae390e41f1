//! Jobs that no worker has taken get their record within a second.
//!
//! Each stream is read on from the last sequence seen, by batched direct get, whenever something
//! may have lain there long enough, and each by a task of its own: a flood in one of them holds up
//! none of the others. What a worker takes at once is never read at all; what lies there for a
//! moment is looked up, and gets its record if it has none. Start, gap and reconnect are the same
//! case.

mod message;
mod register;
mod tail;
mod unread;

pub use message::{Lying, lying};
pub use register::{Registered, copy_to_dead_letters, delete, register, states_before};
pub(crate) use unread::Unread;

use crate::service::Stores;
use std::{collections::BTreeMap, time::Duration};
use tail::Tail;
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;
use virtbus_wire::{Class, JobId, Record, Timestamp};

/// The least time between two looks at a stream.
const REST_MIN: Duration = Duration::from_millis(100);
/// The same where nothing lay that needed a record: half of the second that one may take.
const REST_MAX: Duration = Duration::from_millis(500);
/// How long a message may lie before its record is made here: a worker that is free is faster.
const PATIENCE: Duration = Duration::from_millis(300);
/// Tails that have something to tell at the same time; more wait for their turn.
const REPORTS_MAX: usize = 8;

/// How far one stream was read.
struct Report {
    stream: &'static str,
    until: Timestamp,
}

/// Reads the streams until `stop`. `caught_up` gets the time up to which all that was published
/// has a record.
pub async fn run(
    stores: Stores,
    caught_up: watch::Sender<Option<Timestamp>>,
    stop: CancellationToken,
) {
    let (reports, mut told) = mpsc::channel(REPORTS_MAX);
    let mut tails = JoinSet::new();
    let mut streams = Vec::new();
    for class in Class::ALL {
        let tail = Tail::new(class.stream());
        streams.push((class.stream(), tail.place()));
        let follow = follow(stores.clone(), tail, reports.clone(), stop.clone());
        tails.spawn(stores.bus.within(follow));
    }
    drop(reports);
    let tell = unread::tell(stores.clone(), streams, stop);
    tails.spawn(stores.bus.within(tell));
    let mut read: BTreeMap<&str, Timestamp> = BTreeMap::new();
    // Ends when the last tail has: at `stop`, or when all have failed.
    while let Some(Report { stream, until }) = told.recv().await {
        read.insert(stream, until);
        if read.len() == Class::ALL.len() {
            caught_up.send_replace(read.values().min().copied());
        }
        // One that panicked takes the others with it: half a registrar looks like a whole one.
        if let Some(Err(error)) = tails.try_join_next() {
            tracing::error!(%error, "the reading of a stream broke off");
            return;
        }
    }
}

/// Reads one stream on until `stop`.
async fn follow(
    stores: Stores,
    mut tail: Tail,
    reports: mpsc::Sender<Report>,
    stop: CancellationToken,
) {
    let stream = tail.stream();
    let mut rest = Duration::ZERO;
    while stop
        .run_until_cancelled(tokio::time::sleep(rest))
        .await
        .is_some()
    {
        let began = stores.bus.now();
        rest = REST_MIN;
        match tail.read_on(&stores, &stop).await {
            Ok(nothing_for) => {
                rest = rest.max(nothing_for);
                // What is younger than this may still have been left to the workers.
                let millis = i64::try_from(2 * PATIENCE.as_millis()).unwrap_or(i64::MAX);
                let until = Timestamp::from_millis(began.as_millis().saturating_sub(millis));
                if reports.send(Report { stream, until }).await.is_err() {
                    return;
                }
            }
            Err(error) => tracing::warn!(%error, stream, "a stream can't be read on"),
        }
    }
}

/// The records of these jobs as any replica has them, by id.
pub(crate) type Records = BTreeMap<JobId, Record>;
