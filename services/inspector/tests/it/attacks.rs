//! Files that attack: each ends with its code, as one from outside and as one of ours.

use crate::{
    image::{
        BACKING_FORMAT, Bytes, CLUSTER, DATA_FILE, VMDK_TEXT, blank, qcow2, qcow2_data_file,
        qcow2_with, vmdk,
    },
    ours, sent_as,
};
use virtbus_inspector::{Below, Expected, Format};
use virtbus_wire::Code;

/// A file that must not be read or written.
const HOST_FILE: &str = "/etc/passwd";
/// A blank disk's size.
pub(crate) const SIZE: Option<u64> = Some(1 << 20);

pub(crate) fn patched(mut image: Bytes, patch: impl FnOnce(&mut Bytes)) -> Vec<u8> {
    patch(&mut image);
    image.0
}

/// A qcow2 with one number of its header replaced.
pub(crate) fn field32(at: usize, value: u32) -> Vec<u8> {
    patched(qcow2(), |image| image.be32(at, value))
}

pub(crate) fn field64(at: usize, value: u64) -> Vec<u8> {
    patched(qcow2(), |image| image.be64(at, value))
}

/// It isn't let through, whether somebody sends it or it's found in a disk's place.
pub(crate) fn refused(what: &str, format: Format, bytes: &[u8], code: Code) {
    assert_eq!(sent_as(format, bytes), Some(code), "{what}, sent");
    let expected = Expected::of_catalogue(format, SIZE);
    assert_eq!(ours(&expected, bytes), Some(code), "{what}, found");
}

#[test]
fn the_images_that_attacks_are_made_of_pass_without_them() {
    assert_eq!(sent_as(Format::Qcow2, &qcow2().0), None);
    assert_eq!(sent_as(Format::Vmdk, &vmdk(VMDK_TEXT).0), None);
    assert_eq!(sent_as(Format::Raw, &blank().0), None);
}

#[test]
fn a_backing_that_the_catalogue_does_not_name_is_refused() {
    let names = [
        HOST_FILE,
        "../d2.qcow2",
        "d1.qcow2",
        "json:{\"driver\":\"raw\",\"file\":{\"driver\":\"file\",\"filename\":\"/etc/passwd\"}}",
        "nbd://127.0.0.1:10809/x",
        "http://127.0.0.1/x",
        "fat:/etc",
        "\u{1b}[2J\nx",
    ];
    for name in names {
        for format in [b"raw".as_slice(), b"qcow2", b""] {
            let image = qcow2_with(&[(BACKING_FORMAT, format)], Some(name));
            refused(name, Format::Qcow2, &image.0, Code::ImageBackingFile);
        }
        let guessed = qcow2_with(&[], Some(name));
        refused(name, Format::Qcow2, &guessed.0, Code::ImageBackingFile);
    }
}

#[test]
fn the_catalogues_backing_passes_by_name_and_format_only() {
    let on = |name: &str| {
        let (name, format) = (name.to_owned(), Format::Qcow2);
        Expected::of_catalogue(Format::Qcow2, SIZE).on(Below::File { name, format })
    };
    let overlay = qcow2_with(&[(BACKING_FORMAT, b"qcow2")], Some("d1.qcow2")).0;
    assert_eq!(ours(&on("d1.qcow2"), &overlay), None);
    let lonely = Expected::of_catalogue(Format::Qcow2, SIZE);
    assert_eq!(ours(&lonely, &overlay), Some(Code::ImageBackingFile));
    assert_eq!(ours(&lonely.on(Below::Anything), &overlay), None);
    assert_eq!(
        ours(&on("d2.qcow2"), &overlay),
        Some(Code::ImageBackingFile)
    );
    for wrong in [
        qcow2_with(&[(BACKING_FORMAT, b"raw")], Some("d1.qcow2")),
        qcow2_with(&[], Some("d1.qcow2")),
        qcow2_with(&[(BACKING_FORMAT, b"qcow2")], Some("./d1.qcow2")),
        qcow2(),
    ] {
        assert_eq!(
            ours(&on("d1.qcow2"), &wrong.0),
            Some(Code::ImageBackingFile)
        );
    }
    let cut = patched(Bytes(overlay.clone()), |image| {
        image.put(image.0.len(), b"")
    });
    assert_eq!(ours(&on("d1.qcow2\0x"), &cut), Some(Code::ImageBackingFile));
}

#[test]
fn a_backings_name_out_of_place_is_refused() {
    let named = || qcow2_with(&[], Some("d1.qcow2"));
    for (at, value) in [
        (8, 8_u64),
        (8, 100),
        (8, CLUSTER as u64 - 4),
        (8, 1 << 40),
        (8, u64::MAX),
    ] {
        let bytes = patched(named(), |image| image.be64(at, value));
        refused("offset", Format::Qcow2, &bytes, Code::ImageBackingFile);
    }
    for length in [0, 1024, 70_000, u32::MAX] {
        let bytes = patched(named(), |image| image.be32(16, length));
        refused("length", Format::Qcow2, &bytes, Code::ImageBackingFile);
    }
}

#[test]
fn a_data_file_is_refused_by_bit_and_by_name() {
    for name in [HOST_FILE, "d1.raw", "json:{}", "nbd://127.0.0.1/x"] {
        let image = qcow2_data_file(name);
        refused(name, Format::Qcow2, &image.0, Code::ImageDataFile);
    }
    refused(
        "bit",
        Format::Qcow2,
        &field64(72, 1 << 2),
        Code::ImageDataFile,
    );
    refused(
        "raw bit",
        Format::Qcow2,
        &field64(88, 1 << 1),
        Code::ImageDataFile,
    );
    let name = qcow2_with(&[(DATA_FILE, b"x")], None).0;
    refused("name", Format::Qcow2, &name, Code::ImageDataFile);
}

#[test]
fn a_header_in_a_raw_disk_is_refused_from_outside_and_ignored_in_ours() {
    let mut image = qcow2_data_file(HOST_FILE);
    image.0.resize(1 << 20, 0);
    assert_eq!(sent_as(Format::Raw, &image.0), Some(Code::ImageDataFile));
    let plain = patched(qcow2(), |image| image.0.resize(1 << 20, 0));
    assert_eq!(
        sent_as(Format::Raw, &plain),
        Some(Code::ImageFormatMismatch)
    );
    let guests = Expected::of_catalogue(Format::Raw, SIZE);
    assert_eq!(ours(&guests, &image.0), None);
    let other = Expected::of_catalogue(Format::Raw, Some(2 << 20));
    assert_eq!(ours(&other, &image.0), Some(Code::ImageFormatMismatch));
}

#[test]
fn a_vmdk_that_names_other_files_is_refused() {
    let text = |from: &str, to: &str| VMDK_TEXT.replace(from, to);
    let flat = text(
        "RW 2048 SPARSE \"d1.vmdk\"",
        "RW 2048 FLAT \"/etc/passwd\" 0",
    );
    let flat = flat.replace("monolithicSparse", "monolithicFlat");
    for alone in [
        flat.clone(),
        flat.replace('\n', "\r\n"),
        format!("  \n\n{flat}"),
    ] {
        let bytes = patched(blank(), |image| image.put(0, alone.as_bytes()));
        refused("text", Format::Vmdk, &bytes, Code::ImageDataFile);
        assert_eq!(sent_as(Format::Raw, &bytes), Some(Code::ImageDataFile));
    }
    let bare = "version=1\ncreateType=\"vmfs\"\nRW 1 FLAT \"/etc/passwd\" 0\n";
    assert_eq!(
        sent_as(Format::Raw, bare.as_bytes()),
        Some(Code::ImageDataFile)
    );
    refused("inside", Format::Vmdk, &vmdk(&flat).0, Code::ImageDataFile);
    let none = patched(vmdk(&flat), |image| image.le64(12, 0));
    refused("no capacity", Format::Vmdk, &none, Code::ImageDataFile);
    let parent = text("#DDB", "parentFileNameHint=\"/etc/passwd\"");
    refused(
        "parent",
        Format::Vmdk,
        &vmdk(&parent).0,
        Code::ImageBackingFile,
    );
    // Where qemu looks, behind the text that the header claims.
    let hidden = patched(vmdk(VMDK_TEXT), |image| {
        image.le64(36, 2);
        image.put(19 * 512, b"parentFileNameHint=\"/etc/passwd\"");
    });
    refused(
        "hidden parent",
        Format::Vmdk,
        &hidden,
        Code::ImageBackingFile,
    );
}

#[test]
fn a_vmdk_with_two_headers_that_differ_is_refused() {
    let text = VMDK_TEXT.replace("monolithicSparse", "streamOptimized");
    let footed = |patch: &dyn Fn(&mut Bytes, usize)| {
        let mut image = vmdk(&text);
        image.le32(8, 0x3_0001);
        image.le64(56, u64::MAX);
        image.put(77, &[1, 0]);
        let footer = image.0.len() + 512;
        let first = image.0[..512].to_vec();
        image.le32(footer - 512 + 12, 3);
        image.put(footer, &first);
        image.le64(footer + 56, 21);
        image.put(footer + 512, &[0; 512]);
        patch(&mut image, footer);
        image.0
    };
    assert_eq!(sent_as(Format::Vmdk, &footed(&|_, _| {})), None);
    type Change<'a> = &'a dyn Fn(&mut Bytes, usize);
    let changes: [Change; 5] = [
        &|image, at| image.le64(at + 12, 4096),
        &|image, at| image.le64(at + 12, 0),
        &|image, at| image.le64(at + 28, 9),
        &|image, at| image.put(at, b"KDMW"),
        &|image, at| image.le64(at + 56, u64::MAX),
    ];
    for change in changes {
        refused("footer", Format::Vmdk, &footed(change), Code::ImageCorrupt);
    }
}
