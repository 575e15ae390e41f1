//! A client that knows one rule: a row takes the place of one with a smaller `seq`, and what is
//! in `left` is dropped.

use axum::extract::ws::Utf8Bytes;
use std::collections::BTreeMap;
use virtbus_wire::{
    JobId,
    frame::{ServerFrame, decode_server},
    row::Row,
};

#[derive(Debug, Default)]
pub(super) struct Client {
    pub(super) rows: BTreeMap<JobId, Row>,
    /// Where it would go on after a reconnect.
    pub(super) cursor: u64,
    pub(super) resets: usize,
}

impl Client {
    pub(super) fn read(&mut self, text: &Utf8Bytes) {
        let frame = decode_server(text).unwrap();
        match frame.expect("a frame of this version") {
            ServerFrame::Jobs(jobs) => {
                for row in jobs.jobs {
                    let held = self.rows.get(&row.id);
                    if held.is_none_or(|held| held.seq < row.seq) {
                        self.rows.insert(row.id.clone(), row);
                    }
                }
                for id in jobs.left {
                    self.rows.remove(&id);
                }
            }
            ServerFrame::Reset(_) => {
                self.rows.clear();
                self.resets += 1;
            }
            ServerFrame::Hb(hb) => self.cursor = hb.seq,
            ServerFrame::Welcome(welcome) => {
                if !welcome.resumed {
                    self.rows.clear();
                    self.cursor = 0;
                }
            }
            ServerFrame::Progress(_)
            | ServerFrame::Feedback(_)
            | ServerFrame::Reply(_)
            | ServerFrame::Expiring(_)
            | ServerFrame::Bye(_) => {}
        }
    }
}
