//! What becomes of a tool's standard output.

use super::{output::Records, phase::Event, run::Stdout};

/// Where standard output goes.
pub(super) struct Sink<'a> {
    stdout: Stdout<'a>,
    held: Vec<u8>,
    records: Records,
}

impl<'a> Sink<'a> {
    pub(super) fn new(stdout: Stdout<'a>) -> Self {
        Self {
            stdout,
            held: Vec::new(),
            records: Records::default(),
        }
    }

    /// What was kept of it.
    pub(super) fn held(self) -> Vec<u8> {
        self.held
    }

    pub(super) fn push(&mut self, bytes: &[u8]) -> Option<Event> {
        match &mut self.stdout {
            Stdout::Discard => None,
            Stdout::Capture { bytes_max } if self.held.len() + bytes.len() > *bytes_max => {
                Some(Event::TooMuchOutput)
            }
            Stdout::Capture { .. } => {
                self.held.extend_from_slice(bytes);
                None
            }
            Stdout::Records(hand_out) => {
                self.records.push(bytes, hand_out);
                None
            }
        }
    }

    pub(super) fn finish(&mut self) {
        match &mut self.stdout {
            Stdout::Discard | Stdout::Capture { .. } => {}
            Stdout::Records(hand_out) => self.records.finish(hand_out),
        }
    }

    pub(super) fn bytes_max(&self) -> usize {
        match self.stdout {
            Stdout::Capture { bytes_max } => bytes_max,
            Stdout::Discard | Stdout::Records(_) => 0,
        }
    }
}
