//! What a disk image really is, told from its bytes before any tool opens it.
//!
//! It does no I/O: it asks for ranges of a file and is given their bytes, by a caller that has the
//! file ([`inspect`]) or by one through whose hands it comes once, in order ([`Stream`]). It reads
//! headers and top tables only, in windows of [`limits::WINDOW_BYTES`]; no length that a file
//! claims decides how much memory or time is taken, but for tables that really are in it.
//! [`gate`] is that caller for files of a pool, shared by all who let tools or guests at them.
//!
//! It's stricter than qemu on purpose: whatever qemu would take for another format, or would make
//! it open another file, is a [`Fault`] or stands in the [`Report`], and [`agrees`] compares the
//! report with what the catalogue says.
//!
//! ```
//! use virtbus_inspector::{Expected, Format, Inspector, agrees, inspect};
//!
//! let disk = vec![0_u8; 1 << 20];
//! let read = |offset: u64, into: &mut [u8]| {
//!     let rest = &disk[usize::try_from(offset).unwrap_or(usize::MAX).min(disk.len())..];
//!     let n = rest.len().min(into.len());
//!     into[..n].copy_from_slice(&rest[..n]);
//!     Ok::<_, std::convert::Infallible>(n)
//! };
//! let report = inspect(Inspector::detect(), disk.len() as u64, read).unwrap().unwrap();
//! assert_eq!(agrees(&report, &Expected::from_outside(Format::Raw, 1 << 30)), Ok(()));
//! ```
//!
//! Not its part: what an L2 table maps (`qemu-img check` and `measure` read those), what a
//! compressed file unpacks to, and names such as `fat:` that qemu takes for a protocol.

mod bytes;
mod fault;
mod format;
pub mod gate;
mod inspector;
pub mod limits;
mod policy;
mod probe;
mod report;
mod source;
mod stream;

pub use fault::{Fault, Part};
pub use inspector::{Inspector, Need, inspect};
pub use policy::{Below, Expected, Origin, Refusal, agrees};
pub use report::{Backing, Content, Detail, Encryption, Format, Name, Qcow2, Report, Subformat};
pub use stream::Stream;
