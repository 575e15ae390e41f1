//! Numbers out of range, tables out of place, files cut short: refused, each with its code.

use crate::{
    SIZE_MAX,
    attacks::{SIZE, field32, field64, patched, refused},
    image::{
        BACKING_FORMAT, Bytes, CLUSTER, L1, L2, REFCOUNTS, VMDK_TEXT, qcow2, qcow2_with, vmdk,
    },
    ours, sent_as, verdict,
};
use std::convert::Infallible;
use virtbus_inspector::{Expected, Fault, Format, Inspector, Report, inspect};
use virtbus_wire::Code;

/// The extension that tells where an encryption's header is.
const CRYPTO: u32 = 0x0537_be77;

#[test]
fn numbers_of_a_qcow2_out_of_range_are_refused() {
    let corrupt = [
        ("cluster_bits 0", field32(20, 0)),
        ("cluster_bits 8", field32(20, 8)),
        ("cluster_bits 31", field32(20, 31)),
        ("cluster_bits 2^32-1", field32(20, u32::MAX)),
        ("l1_size", field32(36, 0x7fff_ffff)),
        ("l1_size 0", field32(36, 0)),
        ("l1 at 0", field64(40, 0)),
        ("l1 unaligned", field64(40, L1 as u64 + 8)),
        ("l1 beyond", field64(40, 1 << 40)),
        ("l1 beyond everything", field64(40, !0xffff)),
        ("l1 in the header", field64(40, 0)),
        ("l1 on the reference counts", field64(40, REFCOUNTS as u64)),
        ("reference counts", field32(56, 0x7fff_ffff)),
        ("no reference counts", field32(56, 0)),
        ("reference counts beyond", field64(48, 1 << 40)),
        ("refcount_order 63", field32(96, 63)),
        ("header_length 0", field32(100, 0)),
        ("header_length 2^31-1", field32(100, 0x7fff_ffff)),
        ("no size", field64(24, 0)),
        ("half a sector", field64(24, 1000)),
        ("marked", field64(72, 2)),
        (
            "an entry beyond",
            patched(qcow2(), |image| image.be64(L1, 1 << 40)),
        ),
        (
            "an entry with reserved bits",
            patched(qcow2(), |image| image.be64(L1, 1 << 60)),
        ),
        (
            "a reference block beyond",
            patched(qcow2(), |image| image.be64(REFCOUNTS, 1 << 40)),
        ),
        (
            "a backing's format of which qemu reads a part",
            qcow2_with(&[(BACKING_FORMAT, b"raw\0x")], None).0,
        ),
        (
            "two formats of a backing",
            qcow2_with(&[(BACKING_FORMAT, b"raw"), (BACKING_FORMAT, b"raw")], None).0,
        ),
        ("encryption without its header", field32(32, 2)),
        (
            "a long extension",
            patched(qcow2(), |image| {
                image.be32(104, 1);
                image.be32(108, 0x7fff_ffff);
            }),
        ),
    ];
    for (what, bytes) in corrupt {
        refused(what, Format::Qcow2, &bytes, Code::ImageCorrupt);
    }
    let luks = qcow2_with(&[(CRYPTO, &[0; 16])], None);
    let luks = patched(luks, |image| image.be32(32, 2));
    let encrypted = [
        ("aes", field32(32, 1)),
        ("luks", luks),
        ("other", field32(32, 7)),
    ];
    let versions = [0, 4, u32::MAX].map(|version| ("version", field32(4, version)));
    let features = [5, 40, 63].map(|bit| ("feature", field64(72, 1 << bit)));
    let snapshots = [65_536, u32::MAX, 1_025].map(|n| ("snapshots", field32(60, n)));
    for (what, bytes) in encrypted
        .into_iter()
        .chain(versions)
        .chain(features)
        .chain(snapshots)
    {
        refused(what, Format::Qcow2, &bytes, Code::ImageUnsafeFeature);
    }
    let first = field32(4, 1);
    assert_eq!(
        sent_as(Format::Qcow2, &first),
        Some(Code::ImageFormatMismatch)
    );
    let huge = field64(24, 1 << 50);
    refused("size", Format::Qcow2, &huge, Code::ImageTooLarge);
}

#[test]
fn an_unclosed_file_passes_only_as_ours() {
    let dirty = field64(72, 1);
    assert_eq!(sent_as(Format::Qcow2, &dirty), Some(Code::ImageCorrupt));
    assert_eq!(
        ours(&Expected::of_catalogue(Format::Qcow2, SIZE), &dirty),
        None
    );
}

#[test]
fn a_table_of_snapshots_is_walked_within_bounds() {
    const TABLE: usize = 5 * CLUSTER;
    let with = |count: u32, patch: &dyn Fn(&mut Bytes)| {
        let mut image = qcow2();
        image.be32(60, count);
        image.be64(64, TABLE as u64);
        for index in 0..count as usize {
            let at = TABLE + index * 48;
            image.be64(at, L2 as u64);
            image.be32(at + 8, 1);
            image.put(at + 12, &[0, 2, 0, 6]);
            image.put(at + 40, b"17x\nd-y\x1b");
        }
        patch(&mut image);
        image.0
    };
    let sound = with(3, &|_| {});
    assert_eq!(sent_as(Format::Qcow2, &sound), None);
    assert_eq!(
        sent_as(Format::Qcow2, &with(65, &|_| {})),
        Some(Code::ImageUnsafeFeature)
    );
    let counted = |snapshots| Expected {
        snapshots,
        ..Expected::of_catalogue(Format::Qcow2, SIZE)
    };
    assert_eq!(ours(&counted(3..=3), &sound), None);
    assert_eq!(
        ours(&counted(0..=2), &sound),
        Some(Code::ImageUnsafeFeature)
    );
    let changes: [&dyn Fn(&mut Bytes); 5] = [
        &|image| image.put(TABLE, &[0; 48]),
        &|image| image.be64(TABLE, 1 << 40),
        &|image| image.be32(TABLE + 8, u32::MAX),
        &|image| image.be32(TABLE + 36, u32::MAX),
        &|image| image.be64(64, L1 as u64),
    ];
    for change in changes {
        refused(
            "snapshots",
            Format::Qcow2,
            &with(3, change),
            Code::ImageCorrupt,
        );
    }
}

#[test]
fn an_empty_or_cut_file_is_refused() {
    for format in [Format::Qcow2, Format::Raw, Format::Vmdk] {
        assert_eq!(sent_as(format, b""), Some(Code::ImageCorrupt), "{format}");
    }
    for (format, whole) in [
        (Format::Qcow2, qcow2().0),
        (Format::Vmdk, vmdk(VMDK_TEXT).0),
    ] {
        for bits in 0..18 {
            let cut = &whole[..whole.len().min(1 << bits) - usize::from(whole.len() <= 1 << bits)];
            if cut.len() < whole.len() / 2 {
                assert!(
                    sent_as(format, cut).is_some(),
                    "{format} of {} bytes",
                    cut.len()
                );
                let expected = Expected::of_catalogue(format, SIZE);
                assert!(
                    ours(&expected, cut).is_some(),
                    "{format} of {} bytes",
                    cut.len()
                );
            }
        }
    }
    assert_eq!(
        sent_as(Format::Qcow2, b"x"),
        Some(Code::ImageFormatMismatch)
    );
    assert_eq!(
        sent_as(Format::Qcow2, b"QFI\xfb\0\0\0\x03"),
        Some(Code::ImageCorrupt)
    );
}

/// A file that's mostly holes.
fn read_sparse(length: u64, pieces: &[(u64, &[u8])]) -> Result<Report, Fault> {
    let read = |offset: u64, into: &mut [u8]| {
        into.fill(0);
        for (index, byte) in into.iter_mut().enumerate() {
            let at = offset + index as u64;
            let found = pieces.iter().find_map(|(start, bytes)| {
                let index = usize::try_from(at.checked_sub(*start)?).ok()?;
                bytes.get(index)
            });
            *byte = found.copied().unwrap_or_default();
        }
        let rest = length.saturating_sub(offset);
        Ok::<_, Infallible>(usize::try_from(rest).map_or(into.len(), |rest| rest.min(into.len())))
    };
    inspect(Inspector::detect(), length, read).unwrap()
}

#[test]
fn a_disk_larger_than_allowed_is_refused_by_its_virtual_size() {
    let raw = Expected::from_outside(Format::Raw, SIZE_MAX);
    assert_eq!(
        verdict(read_sparse(8 << 40, &[]), &raw),
        Some(Code::ImageTooLarge)
    );
    // 64 TiB with the longest L1 table: sound in itself, and too large for the pool.
    let mut image = qcow2();
    image.be64(24, 1 << 46);
    image.be32(36, 4 << 20);
    let head = &image.0[..L1];
    let found = read_sparse((L1 + (32 << 20)) as u64, &[(0, head)]);
    assert_eq!(
        found.as_ref().map(|report| report.virtual_size),
        Ok(1 << 46)
    );
    let qcow2 = Expected::from_outside(Format::Qcow2, SIZE_MAX);
    assert_eq!(verdict(found, &qcow2), Some(Code::ImageTooLarge));
    let vmdk = patched(vmdk(VMDK_TEXT), |image| image.le64(12, 0xffff_ffff_0001));
    assert_eq!(sent_as(Format::Vmdk, &vmdk), Some(Code::ImageTooLarge));
}

#[test]
fn clusters_that_are_all_one_are_for_measure_and_the_tools_limits() {
    // The inspector reads no L2 table: what is mapped twice is sound for it.
    let bomb = patched(qcow2(), |image| {
        for index in 0..CLUSTER / 8 {
            image.be64(L2 + index * 8, L2 as u64);
        }
    });
    assert_eq!(sent_as(Format::Qcow2, &bomb), None);
}
