//! What must hold for any bytes: no panic, bounded work, and one answer however they come.

use std::convert::Infallible;
use virtbus_inspector::{Fault, Format, Inspector, Need, Report, Stream, inspect, limits};

/// Ranges that an inspection may ask for, beside one per window of the file and per snapshot.
const STEPS_MAX: usize = 256 + 2 * limits::QCOW2_SNAPSHOTS_MAX as usize;
/// How often a byte may be asked for, at most: by the probe and by one format's parser.
const READS_MAX: u64 = 3;
/// Bytes that are asked for whatever the file's length.
const FIXED_BYTES: u64 = 4 * limits::WINDOW_BYTES as u64 * READS_MAX;

const FORMATS: [Format; 7] = [
    Format::Raw,
    Format::Qcow2,
    Format::Vmdk,
    Format::Vdi,
    Format::Vpc,
    Format::Vhdx,
    Format::Iso,
];

/// Finds out what the bytes are.
pub fn detect(data: &[u8]) {
    let found = run(Inspector::detect(), data);
    assert_eq!(
        found.is_err(),
        found.is_err_and(|fault| fault.code().as_str().starts_with("image."))
    );
}

/// Reads the bytes as the format that the first of them tells.
pub fn read_as(data: &[u8]) {
    if let Some((first, rest)) = data.split_first() {
        let format = FORMATS[usize::from(*first) % FORMATS.len()];
        let found = run(Inspector::of(format), rest);
        assert!(found.is_err() || found.is_ok_and(|report| report.format == format));
    }
}

/// Feeds the bytes in chunks whose lengths the first ones tell.
pub fn stream(data: &[u8]) {
    if let Some((first, rest)) = data.split_first() {
        let (sizes, bytes) = rest.split_at(rest.len().min(usize::from(*first) % 8));
        // Longer chunks for more bytes, so that a run takes no longer.
        let scale = bytes.len() / 512 + 1;
        let sizes: Vec<usize> = sizes
            .iter()
            .map(|size| usize::from(*size) * scale)
            .collect();
        let length = (first & 0x80 != 0).then_some(bytes.len() as u64);
        assert_eq!(
            in_chunks(bytes, &sizes, length),
            run(Inspector::detect(), bytes)
        );
    }
}

/// The answer to bytes that come in chunks of these lengths in turn; all at once without any.
pub fn in_chunks(bytes: &[u8], sizes: &[usize], length: Option<u64>) -> Result<Report, Fault> {
    let mut sizes = sizes.iter().cycle();
    let mut stream = Stream::new(Inspector::detect(), length);
    let mut rest = bytes;
    while !rest.is_empty() {
        let size = sizes.next().map_or(rest.len(), |size| (*size).max(1));
        let (chunk, later) = rest.split_at(size.min(rest.len()));
        stream.push(chunk);
        rest = later;
    }
    run(stream.finish(), bytes)
}

/// Ends an inspection on bytes, and watches what it asks for.
pub fn run(inspector: Inspector, bytes: &[u8]) -> Result<Report, Fault> {
    let (mut steps, mut asked) = (0, 0);
    let read = |offset: u64, into: &mut [u8]| {
        steps += 1;
        asked += into.len() as u64;
        let at = usize::try_from(offset).unwrap_or(usize::MAX);
        let rest = bytes.get(at..).unwrap_or_default();
        let n = rest.len().min(into.len());
        into[..n].copy_from_slice(&rest[..n]);
        Ok::<_, Infallible>(n)
    };
    let is_open = inspector.need() != Need::Nothing;
    assert_eq!(is_open, inspector.outcome().is_none());
    let Ok(found) = inspect(inspector, bytes.len() as u64, read);
    assert!(
        steps <= STEPS_MAX + bytes.len() / limits::WINDOW_BYTES * 2,
        "{steps} steps"
    );
    let most = FIXED_BYTES + bytes.len() as u64 * READS_MAX;
    assert!(asked <= most, "{asked} bytes asked of {}", bytes.len());
    found
}
