//! The whole system in one thread, on a clock of its own, by the seed: the real worker loop, the
//! real core and its control verbs, against a simulated server, network and pool. Whatever can go
//! wrong goes wrong between any two steps; a checker that knows nothing of the code looks at what
//! was stored and done.
//!
//! The same seed gives the same history, message by message.

pub mod broker;
pub mod care;
pub mod catalogue;
pub mod chance;
pub mod check;
pub mod client;
pub mod disk;
pub mod hosts;
pub mod kind;
pub mod net;
pub mod node;
pub mod perform;
pub mod plan;
pub mod process;
pub mod run;
pub mod transport;

pub use check::{Broken, History, Promise, check};
pub use run::{Defect, simulate};
