//! The text of frames. A row is made into JSON once for everyone, and so is the frame of a change
//! for the subscription numbers that nearly all clients use.

use crate::view::{Change, Entry, Step};
use axum::extract::ws::Utf8Bytes;
use serde::Serialize;
use std::{collections::BTreeMap, fmt::Write as _, sync::Arc};
use virtbus_wire::{
    JobId, Timestamp,
    frame::{Bye, Expiring, Heartbeat, ProgressFrame, Reply, Reset, ServerFrame},
};

/// The number that nearly every client gives its subscription.
const COMMON_SUB: u32 = 1;
/// Jobs to drop of one frame.
const LEFT_MAX: usize = 500;
/// Rows of one frame of a snapshot.
const ROWS_MAX: usize = 100;
/// Bytes of the rows of one frame of a snapshot; one row more may start below this.
const ROWS_BYTES_MAX: usize = 32 << 10;

/// A frame that can be written as it is.
pub(crate) fn frame(frame: &ServerFrame) -> Utf8Bytes {
    // Our own frames hold nothing that has no form in JSON.
    let text = serde_json::to_string(frame).unwrap_or_else(|_| r#"{"t":"hb"}"#.to_owned());
    text.into()
}

pub(crate) fn heartbeat(seq: u64, now: Timestamp) -> Utf8Bytes {
    frame(&ServerFrame::Hb(Heartbeat { seq, now }))
}

pub(crate) fn reset(sub: u32, reason: &str) -> Utf8Bytes {
    let reason = reason.to_owned();
    frame(&ServerFrame::Reset(Reset { sub, reason }))
}

pub(crate) fn expiring(at: Timestamp) -> Utf8Bytes {
    frame(&ServerFrame::Expiring(Expiring { at }))
}

pub(crate) fn bye(reason: &str, retry_after_ms: u64) -> Utf8Bytes {
    let reason = reason.to_owned();
    frame(&ServerFrame::Bye(Bye {
        reason,
        retry_after_ms,
    }))
}

pub(crate) fn reply(reply: Reply) -> Utf8Bytes {
    frame(&ServerFrame::Reply(reply))
}

pub(crate) fn progress(sub: u32, steps: &BTreeMap<JobId, Arc<Step>>) -> Utf8Bytes {
    let items = steps.values().map(|step| step.item.clone()).collect();
    frame(&ServerFrame::Progress(ProgressFrame { sub, items }))
}

/// A change as one subscription sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Seen {
    /// The job is there, perhaps newly so.
    Here,
    /// It was there, and isn't any more.
    Left,
}

/// The frame of one change.
pub(crate) fn change(sub: u32, change: &Change, seen: Seen) -> Utf8Bytes {
    let shared = match seen {
        Seen::Here => &change.frames.here,
        Seen::Left => &change.frames.left,
    };
    if sub == COMMON_SUB {
        shared.get_or_init(|| change_for(sub, change, seen)).clone()
    } else {
        change_for(sub, change, seen)
    }
}

fn change_for(sub: u32, change: &Change, seen: Seen) -> Utf8Bytes {
    let (rows, left) = match (seen, &change.after) {
        (Seen::Here, Some(entry)) => (std::slice::from_ref(entry), &[][..]),
        (Seen::Here, None) | (Seen::Left, _) => (&[][..], std::slice::from_ref(&change.id)),
    };
    jobs(sub, change.seq, rows, left, false)
}

/// What is left to be sent of a load.
#[derive(Debug, Default)]
pub(crate) struct Remainder {
    seq: u64,
    rows: std::vec::IntoIter<Arc<Entry>>,
    left: Vec<JobId>,
}

impl Remainder {
    pub(crate) fn new(seq: u64, rows: Vec<Arc<Entry>>, left: Vec<JobId>) -> Self {
        let rows = rows.into_iter();
        Self { seq, rows, left }
    }

    /// The next frame, and whether it's the last one.
    pub(crate) fn next(&mut self, sub: u32) -> (Utf8Bytes, bool) {
        let (mut rows, mut bytes) = (Vec::new(), 0);
        while rows.len() < ROWS_MAX && bytes < ROWS_BYTES_MAX {
            let Some(entry) = self.rows.next() else { break };
            bytes += entry.row.json_bytes();
            rows.push(entry);
        }
        let kept = self.left.len().saturating_sub(LEFT_MAX);
        let left = self.left.split_off(kept);
        let more = self.rows.len() > 0 || !self.left.is_empty();
        (jobs(sub, self.seq, &rows, &left, more), !more)
    }
}

fn jobs(sub: u32, seq: u64, rows: &[Arc<Entry>], left: &[JobId], more: bool) -> Utf8Bytes {
    let bytes: usize = rows.iter().map(|entry| entry.row.json_bytes() + 1).sum();
    let mut text = String::with_capacity(bytes + 64);
    // Writing to a string can't fail.
    write!(text, r#"{{"t":"jobs","sub":{sub},"seq":{seq},"jobs":["#).ok();
    for (index, entry) in rows.iter().enumerate() {
        if index > 0 {
            text.push(',');
        }
        text.push_str(&entry.row.json());
    }
    text.push(']');
    if more {
        text.push_str(r#","more":true"#);
    }
    if !left.is_empty() {
        text.push_str(r#","left":"#);
        text.push_str(&json(&left));
    }
    text.push('}');
    text.into()
}

fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default()
}
