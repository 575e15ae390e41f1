//! Why there is no figure.

use std::error::Error;

/// Ends the part; for the person at the terminal.
pub(crate) type Failure = Box<dyn Error + Send + Sync>;

/// A failure with a text.
pub(crate) fn failure(text: impl Into<String>) -> Failure {
    Failure::from(text.into())
}
