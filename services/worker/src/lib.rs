//! What every worker shares.

pub mod process;
