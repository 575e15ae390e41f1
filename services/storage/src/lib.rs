//! Disks in pools: made, resized, converted, deleted by real qemu-img.
//!
//! [`Store`] is the service's work, as the loop of `virtbus-worker` calls it. Each task is one
//! file in `task/`; what it may do to the catalogue is pure, in [`catalog`]; what it does to a
//! pool goes through [`pool`], beneath the pool's root, by names made of ids.

mod blocking;
pub mod cage;
pub mod care;
pub mod catalog;
pub mod config;
pub mod disks;
mod draft;
pub mod fence;
pub mod gate;
mod perform;
pub mod pool;
pub mod qemu_img;
pub mod service;
mod shared_look;
pub mod space;
mod store;
mod task;
#[cfg(test)]
mod tests;
mod trash;
pub mod virt_sparsify;

pub use config::StorageConfig;
pub use store::Store;
