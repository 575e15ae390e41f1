//! The JetStream edge: the only library of the system that speaks to the messaging server.
//!
//! Everything here keeps one promise of the protocol each: a write is a compare-and-set, a lease
//! is alive or not, a lock belongs to a claim, a delivery is acknowledged once.

pub mod browse;
pub mod bucket;
pub mod changes;
pub mod client;
pub mod deliveries;
pub mod delivery;
pub mod error;
pub mod jobs;
pub mod lease;
pub mod limits;
pub mod lines;
pub mod locks;
mod pulls;
pub mod topology;
pub mod transport;

pub use browse::{Page, Row, Stored};
pub use bucket::{Bucket, Entry, Slot};
pub use changes::{BucketState, Change, Changes, ProgressEvents};
pub use client::{Bus, ConnectConfig, ConnectError, Health};
pub use deliveries::Deliveries;
pub use delivery::Delivery;
pub use error::{BusError, WriteError};
pub use jobs::Jobs;
pub use pulls::Appetite;
pub use transport::{Subscription, Transport};
