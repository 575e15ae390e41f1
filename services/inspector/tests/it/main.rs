//! The inspector from outside: files that attack, files of the real qemu-img, and any bytes at all.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod anything;
mod attacks;
mod differential;
mod formats;
mod image;
mod mutation;
mod numbers;
mod polyglots;
mod sample;

#[path = "../../fuzz/src/lib.rs"]
#[expect(unreachable_pub, reason = "it's a crate of its own for cargo-fuzz")]
mod targets;

use std::{convert::Infallible, fs::File, os::unix::fs::FileExt};
use virtbus_inspector::{Expected, Fault, Format, Inspector, Refusal, Report, agrees, inspect};
use virtbus_wire::Code;

/// The most a disk of these tests may be, in bytes.
const SIZE_MAX: u64 = 1 << 40;

fn read_bytes(inspector: Inspector, bytes: &[u8]) -> Result<Report, Fault> {
    let read = |offset: u64, into: &mut [u8]| {
        let at = usize::try_from(offset)
            .unwrap_or(usize::MAX)
            .min(bytes.len());
        let rest = &bytes[at..];
        let n = rest.len().min(into.len());
        into[..n].copy_from_slice(&rest[..n]);
        Ok::<_, Infallible>(n)
    };
    inspect(inspector, bytes.len() as u64, read).unwrap()
}

fn read_file(inspector: Inspector, file: &File) -> Result<Report, Fault> {
    let length = file.metadata().unwrap().len();
    inspect(inspector, length, |offset, into| {
        let mut n = 0;
        while n < into.len() {
            match file.read_at(&mut into[n..], offset + n as u64)? {
                0 => break,
                more => n += more,
            }
        }
        Ok::<_, std::io::Error>(n)
    })
    .unwrap()
}

/// What becomes of a file that somebody sends as `format`.
fn sent_as(format: Format, bytes: &[u8]) -> Option<Code> {
    let expected = Expected::from_outside(format, SIZE_MAX);
    verdict(read_bytes(Inspector::detect(), bytes), &expected)
}

/// What becomes of a file of ours that's now so.
fn ours(expected: &Expected, bytes: &[u8]) -> Option<Code> {
    verdict(read_bytes(Inspector::of(expected.format), bytes), expected)
}

fn verdict(found: Result<Report, Fault>, expected: &Expected) -> Option<Code> {
    match found {
        Ok(report) => agrees(&report, expected).err().as_ref().map(Refusal::code),
        Err(fault) => Some(fault.code()),
    }
}
