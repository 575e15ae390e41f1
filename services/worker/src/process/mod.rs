//! Runs external tools (qemu-img and its kin) so that none outlives its purpose.
//!
//! A [`CommandLine`] is data; [`run`] turns it into a process group and stays with it until the
//! group is gone: by itself, or stopped by a [`Stop`], by its wall clock limit, by too much
//! output, by dropping the future, or by a panic in the caller's callback. It knows no task, no
//! pool and no error code of the contract.
//!
//! ```text
//!  Working ── stop, deadline ──▶ Asked (TERM) ── grace over, kill ──▶ Killed (KILL)
//!     └───────── kill, too much output ─────────────────────────────────▲
//! ```
//!
//! # The group
//!
//! ```text
//! worker ─┬─ guard: leads the group, waits for the end of a pipe from the worker, then kills it
//!         └─ [wait …] [ionice …] prlimit … -- tool … ── what the tool starts
//! ```
//!
//! - **Limits** are set by a small program in front of the tool: setting them between `fork` and
//!   `exec` would need unsafe code, and from outside they would come too late for the tool's
//!   first steps.
//! - **The cage** is closed by the thread that starts the tool, around itself: see [`Cage`].
//! - **The worker's death** ends the pipe, and the guard kills the whole group. A parent-death
//!   signal wouldn't do: it's tied to the thread that forked, reaches the tool but not what the
//!   tool started, and is lost if the worker dies before it's set. A pipe's end can't be missed.
//! - **The guard leads**, so the group and its number outlive the tool: what the tool leaves
//!   behind can be killed without ever hitting a stranger.
//!
//! - **The way** is made by the tool alone, which is stopped and goes on ([`Way`]): a guard that is
//!   stopped would kill nobody.
//!
//! What this can't hold, but where the host leaves us groups of the kernel ([`Groups`]): a process
//! that leaves its group (`setsid`). A worker that is frozen
//! keeps its tool; that is what handing down a lock is for ([`RunOptions::inherit`]).

mod cage;
mod cgroup;
mod command;
mod error;
mod output;
mod phase;
mod progress;
mod room;
mod run;
mod sink;
mod spawn;
mod stop;
mod way;

pub use cage::{Cage, Calls, Hold, Offer, offer};
pub use cgroup::Groups;
pub use command::{CommandLine, IoPriority, Limits, find_program};
pub use error::RunError;
pub use output::Excerpt;
pub use progress::{Monotonic, percent};
pub use run::{Ended, Exit, GRACE, RunOptions, Stdout, run};
pub use spawn::{NoStarts, no_starts};
pub use stop::Stop;
pub use way::{Turn, Urgent, Way};
