//! The JetStream edge: the only library of the system that speaks to the messaging server.
//!
//! Everything here keeps one promise of the protocol each: a write is a compare-and-set, a lease
//! is alive or not, a lock belongs to a claim, a delivery is acknowledged once.

pub mod browse;
pub mod bucket;
pub mod client;
pub mod error;
pub mod topology;

pub use browse::{Page, Row, Stored};
pub use bucket::{Bucket, Entry};
pub use client::{Bus, ConnectConfig, ConnectError, Health};
pub use error::{BusError, WriteError};
