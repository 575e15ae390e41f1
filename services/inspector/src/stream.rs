//! An inspection of a file that comes once, in order, in chunks of any length.
//!
//! It sees a refusal as early as the bytes for it have come. What lies behind what went by already
//! (a table before the one it's found by, a footer that was written first) is left over:
//! [`Stream::finish`] hands back the inspection, to be ended on the stored file. So the answer is
//! the same, whatever the chunks.

use crate::{Fault, Inspector, Need, Report, limits::WINDOW_BYTES};

/// An inspection that is fed.
#[derive(Debug)]
pub struct Stream {
    inspector: Inspector,
    /// The file's first bytes, which are looked at more than once.
    head: Vec<u8>,
    /// The bytes that came of the range that's needed now, if it lies beyond the head.
    piece: Vec<u8>,
    /// Bytes that came.
    position: u64,
}

impl Stream {
    /// Feeds an inspection. `length` is the file's, if it was announced.
    #[must_use]
    pub fn new(mut inspector: Inspector, length: Option<u64>) -> Self {
        if let Some(length) = length {
            inspector.give_length(length);
        }
        Self {
            inspector,
            head: Vec::with_capacity(WINDOW_BYTES),
            piece: Vec::with_capacity(WINDOW_BYTES),
            position: 0,
        }
    }

    /// Takes the next bytes. Once the outcome is known, the rest needn't be fed.
    pub fn push(&mut self, mut chunk: &[u8]) -> Option<&Result<Report, Fault>> {
        while !chunk.is_empty() {
            let (now, later) = chunk.split_at(self.stride(chunk.len()));
            let room = WINDOW_BYTES.saturating_sub(self.head.len());
            self.head.extend_from_slice(now.get(..room).unwrap_or(now));
            self.collect(now);
            self.position += now.len() as u64;
            self.serve(false);
            chunk = later;
        }
        self.inspector.outcome()
    }

    /// The file is over. What is handed back is done, or needs the ranges that went by.
    #[must_use]
    pub fn finish(mut self) -> Inspector {
        self.inspector.give_length(self.position);
        self.serve(true);
        self.inspector
    }

    /// How many of the next bytes can be taken before the inspection has to look: up to the end of
    /// the range that's needed, but at least one.
    fn stride(&self, available: usize) -> usize {
        let until = match self.inspector.need() {
            Need::Range { offset, len } => offset.saturating_add(len as u64),
            Need::Length | Need::Nothing => return available,
        };
        let ahead = until.saturating_sub(self.position);
        match usize::try_from(ahead) {
            Ok(0) | Err(_) => available,
            Ok(ahead) => ahead.min(available),
        }
    }

    /// Keeps what belongs to the range that's needed, if all of it is still to come.
    fn collect(&mut self, now: &[u8]) {
        let Need::Range { offset, len } = self.inspector.need() else {
            return;
        };
        let is_in_head = offset.saturating_add(len as u64) <= WINDOW_BYTES as u64;
        let came = offset.saturating_add(self.piece.len() as u64);
        let skip = came.checked_sub(self.position).map(usize::try_from);
        if let (false, Some(Ok(skip))) = (is_in_head, skip) {
            let missing = len.saturating_sub(self.piece.len());
            let rest = now.get(skip..).unwrap_or_default();
            self.piece
                .extend_from_slice(rest.get(..missing).unwrap_or(rest));
        }
    }

    /// Gives what is needed as long as it's here.
    fn serve(&mut self, is_over: bool) {
        while let Need::Range { offset, len } = self.inspector.need() {
            let end = offset.saturating_add(len as u64);
            let is_head_all = is_over && self.position <= WINDOW_BYTES as u64;
            let collected = offset.saturating_add(self.piece.len() as u64);
            if is_head_all || (end <= WINDOW_BYTES as u64 && end <= self.position) {
                let at = usize::try_from(offset).unwrap_or(usize::MAX);
                let rest = self.head.get(at..).unwrap_or_default();
                self.inspector.give(rest.get(..len).unwrap_or(rest));
            } else if self.piece.len() == len || (is_over && collected >= self.position) {
                self.inspector.give(&self.piece);
            } else {
                return;
            }
            self.piece.clear();
        }
    }
}
