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

/// One change: where, and the bytes that go there.
#[derive(Debug, Clone)]
pub(crate) struct Change {
    at: u64,
    bytes: Vec<u8>,
}

/// Some changes to a sample.
pub(crate) fn random(sample: &Sample, file: &File, random: &mut StdRng) -> Vec<Change> {
    let count = random.random_range(1..=3);
    (0..count).map(|_| one(sample, file, random)).collect()
}

fn one(sample: &Sample, file: &File, random: &mut StdRng) -> Change {
    let range = sample.ranges[random.random_range(0..sample.ranges.len())].clone();
    let at = random.random_range(range.clone());
    match random.random_range(0..20) {
        0..6 => Change {
            at,
            bytes: vec![random.random()],
        },
        6..8 => {
            let mut byte = [0];
            file.read_exact_at(&mut byte, at).unwrap();
            let bytes = vec![byte[0] ^ (1 << random.random_range(0..8))];
            Change { at, bytes }
        }
        8..15 => {
            let value = VALUES[random.random_range(0..VALUES.len())];
            let bytes = match random.random_range(0..4) {
                0 => value.to_be_bytes().to_vec(),
                1 => value.to_le_bytes().to_vec(),
                2 => (value as u32).to_be_bytes().to_vec(),
                _ => (value as u32).to_le_bytes().to_vec(),
            };
            Change {
                at: at / 4 * 4,
                bytes,
            }
        }
        15 => {
            let (at, mark) = MARKS[random.random_range(0..MARKS.len())];
            Change {
                at,
                bytes: mark.to_vec(),
            }
        }
        16..18 => text(file, random),
        _ => attack(sample, random),
    }
}

/// A word of the first pages, replaced.
fn text(file: &File, random: &mut StdRng) -> Change {
    let mut bytes = [0; 2048];
    let n = file.read_at(&mut bytes, 0).unwrap();
    let (from, to) = TEXTS[random.random_range(0..TEXTS.len())];
    let found = bytes[..n].windows(from.len()).position(|word| word == from);
    let at = found.unwrap_or_else(|| random.random_range(512..1024)) as u64;
    Change {
        at,
        bytes: to.to_vec(),
    }
}

/// What a qcow2 or a VHD says of other files.
fn attack(sample: &Sample, random: &mut StdRng) -> Change {
    let change = |at: u64, bytes: &[u8]| Change {
        at,
        bytes: bytes.to_vec(),
    };
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

/// Writes changes. Returns those that undo them, to be written in this order.
pub(crate) fn apply(file: &File, changes: &[Change]) -> Vec<Change> {
    let length = file.metadata().unwrap().len();
    let mut undo = Vec::new();
    for change in changes {
        let mut bytes = change.bytes.clone();
        let room = length.saturating_sub(change.at);
        bytes.truncate(usize::try_from(room).unwrap());
        let mut before = vec![0; bytes.len()];
        file.read_exact_at(&mut before, change.at).unwrap();
        file.write_all_at(&bytes, change.at).unwrap();
        undo.push(Change {
            at: change.at,
            bytes: before,
        });
    }
    undo.reverse();
    undo
}
