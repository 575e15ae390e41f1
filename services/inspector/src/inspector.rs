//! An inspection as its caller sees it: it asks, is given, and ends.

use crate::{Fault, Format, Report, format, limits::WINDOW_BYTES, source::Source};
use std::{
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll, Waker},
};

/// What an inspection needs to go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// These bytes: all of them, or as many as there are before the file's end.
    Range {
        /// Where they begin.
        offset: u64,
        /// How many, at most [`WINDOW_BYTES`](crate::limits::WINDOW_BYTES).
        len: usize,
    },
    /// How long the file is.
    Length,
    /// Nothing: it's over.
    Nothing,
}

type Work = Pin<Box<dyn Future<Output = Result<Report, Fault>> + Send>>;

/// One inspection of one file.
pub struct Inspector {
    source: Source,
    state: State,
}

enum State {
    Working(Work),
    Done(Result<Report, Fault>),
}

impl Inspector {
    /// Finds out what a file is. For those that come from outside.
    #[must_use]
    pub fn detect() -> Self {
        let source = Source::new();
        Self::start(source.clone(), Box::pin(format::detect(source)))
    }

    /// Reads a file as one format and nothing else, as a tool does that's told the format. For
    /// those whose format the catalogue knows: what a guest wrote into a raw disk is its own.
    #[must_use]
    pub fn of(format: Format) -> Self {
        let source = Source::new();
        Self::start(source.clone(), Box::pin(format::read_as(source, format)))
    }

    fn start(source: Source, work: Work) -> Self {
        let state = State::Working(work);
        let mut inspector = Self { source, state };
        inspector.go_on();
        inspector
    }

    /// What it waits for.
    #[must_use]
    pub fn need(&self) -> Need {
        match self.state {
            State::Working(_) => self.source.lock().need,
            State::Done(_) => Need::Nothing,
        }
    }

    /// Gives the bytes of the range it needs. Fewer than asked for means that the file ends there;
    /// more are ignored, and so are bytes that it doesn't wait for.
    pub fn give(&mut self, bytes: &[u8]) {
        if let Need::Range { len, .. } = self.need() {
            let mut slot = self.source.lock();
            slot.window.clear();
            slot.window
                .extend_from_slice(bytes.get(..len).unwrap_or(bytes));
            slot.is_filled = true;
            drop(slot);
            self.go_on();
        }
    }

    /// Says how long the file is, in bytes; the first word counts.
    pub fn give_length(&mut self, length: u64) {
        self.source.lock().length.get_or_insert(length);
        if self.need() == Need::Length {
            self.go_on();
        }
    }

    /// What came out, once it's over.
    #[must_use]
    pub fn outcome(&self) -> Option<&Result<Report, Fault>> {
        match &self.state {
            State::Working(_) => None,
            State::Done(outcome) => Some(outcome),
        }
    }

    /// The same, or the unfinished inspection.
    ///
    /// # Errors
    /// Itself, while it still needs something.
    pub fn finish(self) -> Result<Result<Report, Fault>, Self> {
        match self.state {
            State::Working(_) => Err(self),
            State::Done(outcome) => Ok(outcome),
        }
    }

    fn go_on(&mut self) {
        if let State::Working(work) = &mut self.state {
            let mut context = Context::from_waker(Waker::noop());
            if let Poll::Ready(outcome) = work.as_mut().poll(&mut context) {
                self.state = State::Done(outcome);
            }
        }
    }
}

impl fmt::Debug for Inspector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inspector")
            .field("need", &self.need())
            .field("outcome", &self.outcome())
            .finish_non_exhaustive()
    }
}

/// Runs an inspection on a file of `length` bytes. `read` fills as much of a buffer as the file
/// has from an offset, and says how much.
///
/// # Errors
/// That of `read`.
pub fn inspect<E>(
    mut inspector: Inspector,
    length: u64,
    mut read: impl FnMut(u64, &mut [u8]) -> Result<usize, E>,
) -> Result<Result<Report, Fault>, E> {
    inspector.give_length(length);
    let mut window = vec![0; WINDOW_BYTES];
    loop {
        match inspector.finish() {
            Ok(outcome) => return Ok(outcome),
            Err(working) => inspector = working,
        }
        if let Need::Range { offset, len } = inspector.need() {
            let buffer = window.get_mut(..len).unwrap_or_default();
            let n = read(offset, buffer)?;
            inspector.give(window.get(..n.min(len)).unwrap_or_default());
        }
    }
}
