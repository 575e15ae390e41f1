//! Which formats the first bytes could be: everything qemu takes for something else than raw, and
//! a little more.

use crate::{
    Format,
    bytes::{be32, has, le32},
    limits::PROBE_BYTES,
};

/// Marks of formats that have one, and where they stand.
const MARKS: &[(usize, &[u8], Format)] = &[
    (0, b"KDMV", Format::Vmdk),
    (0, b"COWD", Format::Vmdk),
    (0x40, &[0x7f, 0x10, 0xda, 0xbe], Format::Vdi),
    (0, b"conectix", Format::Vpc),
    (0, b"vhdxfile", Format::Vhdx),
    (0, b"QED\0", Format::Qed),
    (0, b"LUKS\xba\xbe", Format::Luks),
    (0, b"WithoutFreeSpace", Format::Parallels),
    (0, b"WithouFreSpacExt", Format::Parallels),
    (0, b"Bochs Virtual HD Image", Format::Bochs),
    (0, b"#!/bin/sh\n#V2.0 Format\n", Format::Cloop),
];

/// The mark of both qcow versions.
const QCOW: &[u8] = b"QFI\xfb";

/// The formats whose marks stand in the first bytes of a file.
pub(crate) fn marks(head: &[u8; PROBE_BYTES]) -> impl Iterator<Item = Format> + '_ {
    let marked =
        |(at, mark, format): &(usize, &[u8], Format)| has(head, *at, mark).then_some(*format);
    MARKS
        .iter()
        .filter_map(marked)
        .chain(qcow(head))
        .chain(is_vmdk_text(head).then_some(Format::Vmdk))
}

/// qemu tells the two apart by version; an unknown one is for the newer's parser to refuse.
fn qcow(head: &[u8]) -> Option<Format> {
    let is_first = || be32(head, 4) == 1;
    has(head, 0, QCOW).then(|| {
        if is_first() {
            Format::Qcow1
        } else {
            Format::Qcow2
        }
    })
}

/// Whether a text begins as that of a VMDK: after comments and blank lines comes a version.
pub(crate) fn is_vmdk_text(head: &[u8]) -> bool {
    const TITLE: &[u8] = b"# disk descriptorfile";
    const FIRST: &[u8] = b"version";
    let is = |text: &[u8], what: &[u8]| {
        text.get(..what.len())
            .is_some_and(|text| text.eq_ignore_ascii_case(what))
    };
    let mut rest = head.trim_ascii_start();
    if is(rest, TITLE) {
        return true;
    }
    while rest.first() == Some(&b'#') {
        let line = rest
            .iter()
            .position(|byte| *byte == b'\n')
            .unwrap_or(rest.len());
        rest = rest.get(line..).unwrap_or_default().trim_ascii_start();
    }
    is(rest, FIRST)
}

/// Whether the first sector holds a partition table of the old kind that says something, and
/// whether that is that there's a newer one.
pub(crate) fn partitions(head: &[u8; PROBE_BYTES]) -> Option<Partitions> {
    const TABLE: usize = 446;
    const ENTRY_BYTES: usize = 16;
    const GPT: u8 = 0xee;
    let entries = || (0..4).map(|index| TABLE + index * ENTRY_BYTES);
    let byte = |at: usize| head.get(at).copied().unwrap_or_default();
    let is_sound = entries().all(|at| matches!(byte(at), 0 | 0x80));
    let is_used = |at: &usize| byte(at + 4) != 0 && le32(head, at + 12) != 0;
    if !has(head, 510, &[0x55, 0xaa]) || !is_sound || entries().filter(is_used).count() == 0 {
        return None;
    }
    let points = entries().filter(is_used).any(|at| byte(at + 4) == GPT);
    Some(if points {
        Partitions::Protective
    } else {
        Partitions::Mbr
    })
}

/// What a first sector says of partitions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Partitions {
    /// They are in this table.
    Mbr,
    /// They are in a GPT.
    Protective,
}
