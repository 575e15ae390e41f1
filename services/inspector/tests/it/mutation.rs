//! Damage that's done to an image, and undone.

use crate::sample::Sample;
use rand::{Rng, RngExt, rngs::StdRng};
use std::{fs::File, os::unix::fs::FileExt};

/// Values that decide something somewhere.
const VALUES: [u64; 14] = [
    0,
    1,
    2,
    3,
    4,
    8,
    9,
    16,
    512,
    0x1_0000,
    0x2_0000,
    0x7fff_ffff,
    0xffff_ffff,
    u64::MAX,
];

/// Marks of formats, with the places where they are looked for.
const MARKS: [(u64, &[u8]); 14] = [
    (0, b"QFI\xfb\0\0\0\x01"),
    (0, b"QFI\xfb\0\0\0\x03"),
    (0, b"QED\0"),
    (0, b"KDMV"),
    (0, b"COWD"),
    (0, b"LUKS\xba\xbe\0\x01"),
    (0, b"conectix"),
    (0, b"vhdxfile"),
    (0, b"WithoutFreeSpace"),
    (0, b"# Disk DescriptorFile\nversion=1\ncreateType=\"monolithicFlat\"\nRW 8 FLAT \"source\" 0\n"),
    (0, b"\n  \n"),
    (0, b"  \nversion=1\n"),
    (0x40, &[0x7f, 0x10, 0xda, 0xbe]),
    (0x8000, b"\x01CD001\x01"),
];

/// Texts that name other files, and lines to put in their place.
const TEXTS: [(&[u8], &[u8]); 7] = [
    (b"isNativeSnapshot", b"parentFileNameHi"),
    (b"# Extent description", b"parentFileNameHint=\"s\""),
    (b"monolithicSparse", b"monolithicFlat\" "),
    (b"SPARSE", b"FLAT  "),
    (b"ffffffff", b"fffffffe"),
    (b"ddb.adapterType", b"createType=\"xx\""),
    (b"version=1", b"version=2"),
];

/// One change: where, the bytes that go there, and where the file ends then.
#[derive(Debug, Clone)]
pub(crate) struct Change {
    at: u64,
    bytes: Vec<u8>,
    end: Option<u64>,
}

impl Change {
    fn new(at: u64, bytes: &[u8]) -> Self {
        let bytes = bytes.to_vec();
        Self {
            at,
            bytes,
            end: None,
        }
    }
}

/// Longer files aren't cut: what is cut off is kept in memory meanwhile.
const CUT_MAX: u64 = 1 << 19;

/// Some changes to a sample.
pub(crate) fn random(sample: &Sample, file: &File, random: &mut StdRng) -> Vec<Change> {
    let count = random.random_range(1..=3);
    (0..count).map(|_| one(sample, file, random)).collect()
}

fn one(sample: &Sample, file: &File, random: &mut StdRng) -> Change {
    let range = sample.ranges[random.random_range(0..sample.ranges.len())].clone();
    let at = random.random_range(range.clone());
    match random.random_range(0..21) {
        0..6 => Change::new(at, &[random.random()]),
        6..8 => {
            let mut byte = [0];
            file.read_exact_at(&mut byte, at).unwrap();
            Change::new(at, &[byte[0] ^ (1 << random.random_range(0..8))])
        }
        8..15 => {
            let value = VALUES[random.random_range(0..VALUES.len())];
            let bytes = match random.random_range(0..4) {
                0 => value.to_be_bytes().to_vec(),
                1 => value.to_le_bytes().to_vec(),
                2 => (value as u32).to_be_bytes().to_vec(),
                _ => (value as u32).to_le_bytes().to_vec(),
            };
            Change::new(at / 4 * 4, &bytes)
        }
        15 => {
            let (at, mark) = MARKS[random.random_range(0..MARKS.len())];
            Change::new(at, mark)
        }
        16..18 => text(file, random),
        18 => cut(file, random),
        _ => attack(sample, random),
    }
}

/// An end where there was none, or a sector more.
fn cut(file: &File, random: &mut StdRng) -> Change {
    let length = file.metadata().unwrap().len();
    let end = match random.random_range(0..3) {
        0 => length + 512,
        1 => random.random_range(0..=length) / 512 * 512,
        _ => random.random_range(0..=length),
    };
    let end = Some(end.max(1)).filter(|_| length <= CUT_MAX);
    Change {
        at: 0,
        bytes: Vec::new(),
        end,
    }
}

/// A word of the first pages, replaced.
fn text(file: &File, random: &mut StdRng) -> Change {
    let mut bytes = [0; 2048];
    let n = file.read_at(&mut bytes, 0).unwrap();
    let (from, to) = TEXTS[random.random_range(0..TEXTS.len())];
    let found = bytes[..n].windows(from.len()).position(|word| word == from);
    let at = found.unwrap_or_else(|| random.random_range(512..1024)) as u64;
    Change::new(at, to)
}

/// What a qcow2 or a VHD says of other files.
fn attack(sample: &Sample, random: &mut StdRng) -> Change {
    let change = Change::new;
    match (sample.format, random.random_range(0..6)) {
        (virtbus_inspector::Format::Vpc, _) => change(60, &[0, 0, 0, random.random_range(2..6)]),
        (_, 0) => change(8, &[0, 0, 0, 0, 0, 0, 1, 0xe8, 0, 0, 0, 4]),
        (_, 1) => change(72, &[0, 0, 0, 0, 0, 0, 0, 1 << random.random_range(0..7)]),
        (_, 2) => change(112, b"\xe2\x79\x2a\xca\0\0\0\x03raw\0\0\0\0\0"),
        (_, 3) => change(112, b"DATA\0\0\0\x06source\0\0"),
        (_, 4) => change(80, &random.next_u64().to_be_bytes()),
        _ => change(60, &[0, 0, 0, random.random_range(0..6)]),
    }
}

/// Makes changes. Returns those that undo them, to be made in this order.
pub(crate) fn apply(file: &File, changes: &[Change]) -> Vec<Change> {
    let mut undo: Vec<Change> = changes.iter().map(|change| change.apply(file)).collect();
    undo.reverse();
    undo
}

impl Change {
    /// Makes it. Returns the one that undoes it.
    fn apply(&self, file: &File) -> Self {
        let length = file.metadata().unwrap().len();
        let read = |at: u64, bytes: u64| {
            let mut before = vec![0; usize::try_from(bytes).unwrap()];
            file.read_exact_at(&mut before, at).unwrap();
            before
        };
        if let Some(end) = self.end {
            let bytes = read(end.min(length), length.saturating_sub(end));
            file.set_len(end).unwrap();
            file.write_all_at(&self.bytes, self.at).unwrap();
            let (at, end) = (end.min(length), Some(length));
            return Self { at, bytes, end };
        }
        let room = length.saturating_sub(self.at).min(self.bytes.len() as u64);
        let before = read(self.at.min(length), room);
        let (bytes, _) = self.bytes.split_at(before.len());
        file.write_all_at(bytes, self.at).unwrap();
        Self::new(self.at, &before)
    }
}
