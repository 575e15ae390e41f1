//! The rules between record, queue and locks, as pure functions.
//!
//! An exhaustive search earned most of them: whoever changes one changes the model first. Nothing
//! here reads a clock or a network; the caller brings what it read, and acts on the answer.

pub mod arrival;
pub mod delivery;
pub mod fence;
pub mod gate;
pub mod leftover;
pub mod lock;
pub mod outcome;
pub mod poison;
pub mod reconcile;
