//! Sound images of the real qemu-img: let through, and read as it reads them.

use crate::{read_file, sample, targets};
use std::fs::{self, File};
use virtbus_inspector::{
    Detail, Encryption, Expected, Fault, Format, Inspector, Refusal, Subformat, agrees,
};

#[test]
fn what_qemu_img_makes_is_read_as_it_reads_it() {
    let (_folder, samples) = sample::all();
    for sample in samples {
        let what = format!("{} {}", sample.name, sample.format);
        let file = File::open(&sample.path).unwrap();
        let found = read_file(Inspector::detect(), &file);
        assert_eq!(
            read_file(Inspector::of(sample.format), &file).is_ok(),
            found.is_ok(),
            "{what}"
        );
        match (sample.name, sample.format) {
            ("unserved", format) => assert_eq!(found, Err(Fault::Unserved(format))),
            ("flat" | "data-file", _) => assert_eq!(found, Err(Fault::DataFile)),
            (_, format) => {
                let report = found.unwrap_or_else(|fault| panic!("{what}: {fault}"));
                assert_eq!(report.format, format, "{what}");
                crate::differential::compare(&sample.path, Some(report.format), &report)
                    .unwrap_or_else(|difference| panic!("{what}: {difference}"));
            }
        }
    }
}

/// Commands that make or change an image, one after the other; `F` is its file.
const SOUND: &[(Format, &[&str])] = &[
    (
        Format::Qcow2,
        &["create -f qcow2 -o cluster_size=512 F 64M"],
    ),
    (Format::Qcow2, &["create -f qcow2 -o cluster_size=2M F 8T"]),
    (
        Format::Qcow2,
        &["create -f qcow2 -o extended_l2=on,cluster_size=16k F 1T"],
    ),
    (
        Format::Qcow2,
        &["create -f qcow2 -o refcount_bits=64,compat=1.1 F 1T"],
    ),
    (
        Format::Qcow2,
        &["create -f qcow2 -o preallocation=metadata F 128M"],
    ),
    (
        Format::Qcow2,
        &["create -f qcow2 -o preallocation=metadata,extended_l2=on F 128M"],
    ),
    (
        Format::Qcow2,
        &["create -f qcow2 -o preallocation=falloc F 8M"],
    ),
    (
        Format::Qcow2,
        &["create -f qcow2 -o preallocation=full F 8M"],
    ),
    (
        Format::Qcow2,
        &["create -f qcow2 -o lazy_refcounts=on F 1000000"],
    ),
    (
        Format::Qcow2,
        &[
            "create -f qcow2 F 8M",
            "resize -f qcow2 F 4T",
            "resize -f qcow2 --shrink F 1G",
        ],
    ),
    (
        Format::Qcow2,
        &[
            "create -f qcow2 F 8M",
            "snapshot -c a F",
            "resize -f qcow2 F 1T",
            "snapshot -c b F",
            "snapshot -a a F",
            "snapshot -d b F",
        ],
    ),
    (
        Format::Qcow2,
        &[
            "create -f qcow2 F 8M",
            "bitmap --add -f qcow2 F a",
            "bitmap --remove -f qcow2 F a",
        ],
    ),
    (
        Format::Qcow2,
        &[
            "create -f qcow2 -o compat=0.10 F 8M",
            "amend -f qcow2 -o compat=1.1 F",
            "amend -f qcow2 -o refcount_bits=64 F",
            "check -f qcow2 F",
        ],
    ),
    (
        Format::Qcow2,
        &[
            "create -f qcow2 -u -F qcow2 -b d2.qcow2 F 8M",
            "rebase -f qcow2 -u -F raw -b source F",
            "rebase -f qcow2 -u -b  F",
        ],
    ),
    (
        Format::Qcow2,
        &[
            "convert -f raw -O qcow2 -m 16 -W source F",
            "resize -f qcow2 F 1T",
        ],
    ),
    (
        Format::Qcow2,
        &["convert -f raw -O qcow2 -c -o compat=0.10 source F"],
    ),
    (Format::Vmdk, &["create -f vmdk F 130G"]),
    (
        Format::Vmdk,
        &["create -f vmdk -o adapter_type=lsilogic,zeroed_grain=on,hwversion=11 F 1000000"],
    ),
    (Format::Vmdk, &["create -f vmdk -o compat6=on F 10G"]),
    (
        Format::Vmdk,
        &["create -f vmdk -o subformat=streamOptimized F 10G"],
    ),
    (Format::Vdi, &["create -f vdi F 1000000"]),
    (Format::Vdi, &["create -f vdi F 1T"]),
    (Format::Vpc, &["create -f vpc F 1000000"]),
    (Format::Vpc, &["create -f vpc F 100G"]),
    (Format::Vpc, &["create -f vpc -o force_size=on F 100G"]),
    (
        Format::Vpc,
        &["create -f vpc -o subformat=fixed,force_size=on F 8M"],
    ),
    (Format::Vhdx, &["create -f vhdx F 1T"]),
    (
        Format::Vhdx,
        &["create -f vhdx -o block_size=1M,log_size=8M F 1G"],
    ),
    (
        Format::Vhdx,
        &["convert -f raw -O vhdx -o block_state_zero=off source F"],
    ),
    (Format::Raw, &["create -f raw F 1T"]),
    (
        Format::Raw,
        &["create -f raw -o preallocation=falloc F 1000000"],
    ),
];

#[test]
fn sound_images_of_all_options_and_sizes_pass_as_ours() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path();
    fs::write(dir.join("source"), vec![7; 3_000_000]).unwrap();
    for (index, (format, commands)) in SOUND.iter().enumerate() {
        let name = format!("{index}.{format}");
        for command in *commands {
            // Two blanks in a row are an empty argument.
            let words = command
                .split(' ')
                .map(|word| if word == "F" { &name } else { word });
            sample::qemu_img(dir, &words.collect::<Vec<&str>>());
        }
        let path = dir.join(&name);
        let file = File::open(&path).unwrap();
        let found = read_file(Inspector::of(*format), &file);
        let report = found.unwrap_or_else(|fault| panic!("{commands:?}: {fault}"));
        assert_eq!(
            read_file(Inspector::detect(), &file).as_ref(),
            Ok(&report),
            "{commands:?}"
        );
        let same = crate::differential::compare(&path, Some(*format), &report);
        assert_eq!(same, Ok(false), "{commands:?}");
        let expected = Expected::of_catalogue(*format, Some(report.virtual_size));
        assert_eq!(agrees(&report, &expected), Ok(()), "{commands:?}");
        fs::remove_file(&path).unwrap();
    }
}

#[test]
fn what_the_policy_refuses_is_named() {
    let (_folder, samples) = sample::all();
    let refusal = |name: &str, format: Format| {
        let sample = samples
            .iter()
            .find(|s| s.name == name && s.format == format)
            .unwrap();
        let report = read_file(Inspector::detect(), &File::open(&sample.path).unwrap()).unwrap();
        agrees(&report, &Expected::from_outside(format, 1 << 30)).err()
    };
    assert_eq!(refusal("overlay", Format::Qcow2), Some(Refusal::Backing));
    assert_eq!(refusal("aes", Format::Qcow2), Some(Refusal::Encrypted));
    for (name, format) in [
        ("v3", Format::Qcow2),
        ("v2", Format::Qcow2),
        ("snapshots", Format::Qcow2),
        ("stream", Format::Vmdk),
        ("static", Format::Vdi),
        ("fixed", Format::Vpc),
        ("fixed", Format::Vhdx),
        ("disc", Format::Iso),
        ("mbr", Format::Raw),
    ] {
        assert_eq!(refusal(name, format), None, "{name} {format}");
    }
}

#[test]
fn details_are_what_the_image_was_made_with() {
    let (_folder, samples) = sample::all();
    let report = |name: &str, format: Format| {
        let sample = samples
            .iter()
            .find(|s| s.name == name && s.format == format)
            .unwrap();
        read_file(Inspector::detect(), &File::open(&sample.path).unwrap()).unwrap()
    };
    assert_eq!(
        report("aes", Format::Qcow2).encryption,
        Some(Encryption::Aes)
    );
    assert_eq!(report("snapshots", Format::Qcow2).snapshots(), 3);
    let stream = Detail::Vmdk(Subformat::StreamOptimized);
    assert_eq!(report("stream", Format::Vmdk).detail, stream);
    for (format, name, is_fixed) in [
        (Format::Vdi, "static", true),
        (Format::Vdi, "dynamic", false),
        (Format::Vpc, "fixed", true),
        (Format::Vpc, "exact", false),
        (Format::Vhdx, "fixed", true),
        (Format::Vhdx, "dynamic", false),
    ] {
        let expected = Detail::Blocks { is_fixed };
        assert_eq!(report(name, format).detail, expected, "{name} {format}");
    }
}

#[test]
fn a_stream_gives_the_answer_of_the_file() {
    let (_folder, samples) = sample::all();
    for sample in samples {
        let bytes = fs::read(&sample.path).unwrap();
        let whole = targets::run(Inspector::detect(), &bytes);
        // Byte by byte only where that's soon done.
        let small = if bytes.len() < 400_000 { 1 } else { 511 };
        for sizes in [
            [usize::MAX].as_slice(),
            &[small],
            &[65_536, 1],
            &[700, 9_000, 33],
        ] {
            for length in [None, Some(bytes.len() as u64)] {
                let found = targets::in_chunks(&bytes, sizes, length);
                assert_eq!(found, whole, "{} {}", sample.name, sample.format);
            }
        }
    }
}

#[test]
fn a_stream_is_refused_as_soon_as_the_bytes_for_it_have_come() {
    let image = crate::image::qcow2_data_file("/etc/passwd").0;
    let mut stream = virtbus_inspector::Stream::new(Inspector::detect(), None);
    let refused = image
        .chunks(4096)
        .position(|chunk| stream.push(chunk).is_some());
    // The marks of a disc are looked for first: they end at 32 KiB and some bytes.
    assert_eq!(refused, Some(8));
}
