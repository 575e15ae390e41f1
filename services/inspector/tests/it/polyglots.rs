//! Files that are several things, and things that aren't served.

use crate::{
    image::{Bytes, VMDK_TEXT, blank, iso, qcow2, vmdk, with_gpt, with_mbr},
    read_bytes, sent_as,
};
use virtbus_inspector::{Content, Detail, Fault, Format, Inspector};
use virtbus_wire::Code;

fn detail(image: &Bytes) -> Detail {
    read_bytes(Inspector::detect(), &image.0).unwrap().detail
}

#[test]
fn a_disc_with_a_partition_table_passes_as_a_disc() {
    let hybrid = |is_hybrid| Detail::Iso {
        is_hybrid,
        volume_bytes: 64 * 2048,
    };
    assert_eq!(detail(&iso()), hybrid(false));
    for image in [with_gpt(iso()), with_mbr(iso(), 0x17)] {
        assert_eq!(detail(&image), hybrid(true));
        assert_eq!(sent_as(Format::Iso, &image.0), None);
        assert_eq!(
            sent_as(Format::Raw, &image.0),
            Some(Code::ImageFormatMismatch)
        );
    }
    let mut udf = blank();
    for (index, mark) in [b"\0BEA01\x01", b"\0NSR03\x01", b"\0TEA01\x01"]
        .iter()
        .enumerate()
    {
        udf.put(0x8000 + index * 2048, *mark);
    }
    assert_eq!(sent_as(Format::Iso, &udf.0), None);
}

#[test]
fn a_disk_with_partitions_passes_as_raw() {
    assert_eq!(detail(&blank()), Detail::Raw(Content::Unknown));
    assert_eq!(detail(&with_mbr(blank(), 0x83)), Detail::Raw(Content::Mbr));
    assert_eq!(detail(&with_gpt(blank())), Detail::Raw(Content::Gpt));
    let mut floppy = blank();
    floppy.put(0, b"\xeb\x3c\x90MSDOS5.0");
    floppy.put(446, &[0xde; 64]);
    floppy.put(510, &[0x55, 0xaa]);
    assert_eq!(detail(&floppy), Detail::Raw(Content::Unknown));
}

#[test]
fn two_formats_at_once_are_none() {
    let mut inside = qcow2();
    inside.put(0x8000, &iso().0[0x8000..0x9000]);
    let mut vdi = qcow2();
    vdi.put(0x40, &[0x7f, 0x10, 0xda, 0xbe]);
    let mut vpc = qcow2();
    let end = vpc.0.len();
    vpc.put(end - 512, b"conectix");
    let mut dmg = vmdk(VMDK_TEXT);
    let end = dmg.0.len();
    dmg.put(end - 512, b"koly");
    let mut text = with_gpt(blank());
    text.put(0, VMDK_TEXT.as_bytes());
    text.put(446, &[0; 64]);
    let text = with_gpt(text);
    for image in [
        inside,
        vdi,
        vpc,
        dmg,
        text,
        with_mbr(qcow2(), 0x83),
        with_gpt(vmdk(VMDK_TEXT)),
    ] {
        let found = read_bytes(Inspector::detect(), &image.0);
        assert!(matches!(found, Err(Fault::Several(..))), "{found:?}");
        assert_eq!(
            sent_as(Format::Raw, &image.0),
            Some(Code::ImageUnknownFormat)
        );
    }
}

#[test]
fn what_qemu_would_open_and_we_do_not_serve_is_refused() {
    let starts: [(&[u8], Format); 8] = [
        (b"QED\0", Format::Qed),
        (b"QFI\xfb\0\0\0\x01", Format::Qcow1),
        (b"LUKS\xba\xbe\0\x01", Format::Luks),
        (b"LUKS\xba\xbe\0\x02", Format::Luks),
        (b"WithoutFreeSpace", Format::Parallels),
        (b"WithouFreSpacExt", Format::Parallels),
        (b"Bochs Virtual HD Image\0", Format::Bochs),
        (b"#!/bin/sh\n#V2.0 Format\nmodprobe cloop", Format::Cloop),
    ];
    let mut images = starts
        .map(|(start, format)| {
            let mut image = blank();
            image.put(0, start);
            (image, format)
        })
        .to_vec();
    let mut dmg = blank();
    dmg.put((1 << 20) - 512, b"koly\0\0\0\x04");
    images.push((dmg, Format::Dmg));
    for (image, format) in images {
        let found = read_bytes(Inspector::detect(), &image.0);
        assert_eq!(found, Err(Fault::Unserved(format)));
        assert_eq!(read_bytes(Inspector::of(format), &image.0), found);
        assert_eq!(
            sent_as(Format::Raw, &image.0),
            Some(Code::ImageFormatMismatch)
        );
    }
    let mut old = blank();
    old.put(0, b"COWD");
    assert_eq!(
        sent_as(Format::Vmdk, &old.0),
        Some(Code::ImageUnsafeFeature)
    );
}
