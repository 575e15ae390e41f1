//! What was done to the system, and when: a line each, in a file that outlives a failed run.

use std::fmt::Display;
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use tokio::time::Instant;
use virtbus_wire::Timestamp;

/// The last lines that a violation is shown with.
const SHOWN: usize = 40;

/// The file, and its lines.
#[derive(Debug)]
pub struct Journal {
    began: Instant,
    file: Mutex<(File, Vec<String>)>,
}

impl Journal {
    /// A new one.
    pub fn new(path: &Path) -> Self {
        Self {
            began: Instant::now(),
            file: Mutex::new((File::create(path).unwrap(), Vec::new())),
        }
    }

    /// Writes one line: the time on the wall, as logs have it, and seconds since the begin.
    pub fn note(&self, text: impl Display) {
        let line = format!(
            "{} {:8.3} {text}",
            Timestamp::now(),
            self.began.elapsed().as_secs_f64()
        );
        let mut inner = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        writeln!(inner.0, "{line}").unwrap();
        inner.1.push(line);
    }

    /// The last lines.
    pub fn tail(&self) -> String {
        let inner = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        inner.1[inner.1.len().saturating_sub(SHOWN)..].join("\n")
    }

    /// How many lines there are.
    pub fn len(&self) -> usize {
        let inner = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        inner.1.len()
    }

    /// Whether nothing was done.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
