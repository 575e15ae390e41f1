//! Images that the real qemu-img made, each with what of it is worth damaging.

use crate::image;
use serde_json::Value;
use std::{
    ops::Range,
    path::{Path, PathBuf},
    process::{Command, Output},
};
use tempfile::TempDir;
use virtbus_inspector::Format;

/// A real image.
#[derive(Debug, Clone)]
pub(crate) struct Sample {
    pub(crate) name: &'static str,
    pub(crate) format: Format,
    pub(crate) path: PathBuf,
    /// Its metadata.
    pub(crate) ranges: Vec<Range<u64>>,
}

/// How `qemu-img` makes one: its arguments around the file's name.
struct Recipe {
    name: &'static str,
    format: Format,
    arguments: &'static [&'static str],
    /// The source of a copy; otherwise a new image of 4 MiB.
    is_copy: bool,
    ranges: &'static [Range<u64>],
}

const QCOW2: &[Range<u64>] = &[0..640, 0x10000..0x10020, 0x30000..0x30020];

const VHDX: &[Range<u64>] = &[
    0..16,
    0x1_0000..0x1_0060,
    0x2_0000..0x2_0060,
    0x3_0000..0x3_0060,
    0x4_0000..0x4_0060,
    0x20_0000..0x20_00c0,
    0x21_0000..0x21_0040,
    0x30_0000..0x30_0020,
];

const fn ranges_of(format: Format) -> &'static [Range<u64>] {
    match format {
        Format::Vmdk => &[0..1200, 10_752..10_800],
        Format::Vdi => &[0x40..0x1d0, 0x200..0x220],
        Format::Vpc => &[0..1100, 1536..1560],
        Format::Vhdx => VHDX,
        Format::Qcow2 => QCOW2,
        Format::Raw
        | Format::Iso
        | Format::Qcow1
        | Format::Qed
        | Format::Luks
        | Format::Parallels
        | Format::Bochs
        | Format::Cloop
        | Format::Dmg => &[0..512, 512..600],
    }
}

const fn new(name: &'static str, format: Format, arguments: &'static [&'static str]) -> Recipe {
    let ranges = ranges_of(format);
    Recipe {
        name,
        format,
        arguments,
        is_copy: false,
        ranges,
    }
}

const fn copy(name: &'static str, format: Format, arguments: &'static [&'static str]) -> Recipe {
    Recipe {
        is_copy: true,
        ..new(name, format, arguments)
    }
}

const SECRET: &str = "secret,id=s,data=x";

const RECIPES: &[Recipe] = &[
    new("v3", Format::Qcow2, &["-f", "qcow2"]),
    new("v2", Format::Qcow2, &["-f", "qcow2", "-o", "compat=0.10"]),
    new(
        "small",
        Format::Qcow2,
        &[
            "-f",
            "qcow2",
            "-o",
            "cluster_size=4096,lazy_refcounts=on,refcount_bits=1",
        ],
    ),
    new(
        "overlay",
        Format::Qcow2,
        &["-f", "qcow2", "-u", "-F", "raw", "-b", "d1.raw"],
    ),
    new(
        "aes",
        Format::Qcow2,
        &[
            "-f",
            "qcow2",
            "--object",
            SECRET,
            "-o",
            "encrypt.format=aes,encrypt.key-secret=s",
        ],
    ),
    new(
        "data-file",
        Format::Qcow2,
        &["-f", "qcow2", "-o", "data_file=data.raw"],
    ),
    copy(
        "parts",
        Format::Qcow2,
        &["-O", "qcow2", "-o", "extended_l2=on"],
    ),
    copy(
        "packed",
        Format::Qcow2,
        &["-c", "-O", "qcow2", "-o", "compression_type=zstd"],
    ),
    new("sparse", Format::Vmdk, &["-f", "vmdk"]),
    copy(
        "stream",
        Format::Vmdk,
        &["-O", "vmdk", "-o", "subformat=streamOptimized"],
    ),
    copy("filled", Format::Vmdk, &["-O", "vmdk"]),
    new(
        "flat",
        Format::Vmdk,
        &["-f", "vmdk", "-o", "subformat=monolithicFlat"],
    ),
    new("dynamic", Format::Vdi, &["-f", "vdi"]),
    copy("static", Format::Vdi, &["-O", "vdi", "-o", "static=on"]),
    new("dynamic", Format::Vpc, &["-f", "vpc"]),
    copy("exact", Format::Vpc, &["-O", "vpc", "-o", "force_size=on"]),
    copy(
        "fixed",
        Format::Vpc,
        &["-O", "vpc", "-o", "subformat=fixed"],
    ),
    new("dynamic", Format::Vhdx, &["-f", "vhdx"]),
    copy("filled", Format::Vhdx, &["-O", "vhdx"]),
    copy(
        "fixed",
        Format::Vhdx,
        &["-O", "vhdx", "-o", "subformat=fixed"],
    ),
    new("unserved", Format::Qed, &["-f", "qed"]),
    new("unserved", Format::Qcow1, &["-f", "qcow"]),
    new("unserved", Format::Parallels, &["-f", "parallels"]),
];

fn program(folder: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new("qemu-img");
    let ran = command.current_dir(folder).args(arguments).output();
    ran.expect("qemu-img is installed: ./dev setup")
}

pub(crate) fn qemu_img(folder: &Path, arguments: &[&str]) {
    let output = program(folder, arguments);
    assert!(output.status.success(), "{arguments:?}: {output:?}");
}

/// What the real tool says of an image; nothing if it refuses it.
pub(crate) fn info(path: &Path, format: Option<Format>) -> Option<Value> {
    let folder = path.parent().unwrap();
    let name = path.to_str().unwrap();
    let told = format.map(|format| ["-f", format.as_str()]);
    let told = told.as_ref().map_or([].as_slice(), |told| told);
    let arguments = [&["info", "-U", "--output=json"], told, &["--", name]].concat();
    let output = program(folder, &arguments);
    let answer = || serde_json::from_slice(&output.stdout).unwrap();
    output.status.success().then(answer)
}

/// Makes one image of every kind. They are gone with the folder.
pub(crate) fn all() -> (TempDir, Vec<Sample>) {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path();
    // Some bytes everywhere, so that tables have entries; the rest are holes.
    let mut disk = vec![0; 4 << 20];
    for (index, byte) in disk
        .iter_mut()
        .enumerate()
        .filter(|(index, _)| index % 0x3_0000 < 600)
    {
        *byte = (index % 251) as u8 + 1;
    }
    std::fs::write(dir.join("source"), &disk).unwrap();
    let mut samples: Vec<Sample> = RECIPES.iter().map(|recipe| recipe.make(dir)).collect();
    samples.push(with_snapshots(dir));
    let plain = [
        ("raw", image::blank()),
        ("mbr", image::with_mbr(image::blank(), 0x83)),
    ];
    for (name, bytes) in plain {
        let path = dir.join(name);
        std::fs::write(&path, &bytes.0).unwrap();
        let ranges = vec![0..1024, 0x8000..0x8010, (1 << 20) - 512..1 << 20];
        samples.push(Sample {
            name,
            format: Format::Raw,
            path,
            ranges,
        });
    }
    let path = dir.join("disc");
    std::fs::write(&path, &image::with_gpt(image::iso()).0).unwrap();
    let ranges = vec![0..512, 0x8000..0x8090, 0x8800..0x8810];
    samples.push(Sample {
        name: "disc",
        format: Format::Iso,
        path,
        ranges,
    });
    (folder, samples)
}

impl Recipe {
    fn make(&self, dir: &Path) -> Sample {
        let file = format!("{}.{}", self.name, self.format);
        let made = if self.is_copy {
            [
                &["convert", "-f", "raw"],
                self.arguments,
                &["source", &file],
            ]
            .concat()
        } else {
            [&["create", "-q"], self.arguments, &[file.as_str(), "4M"]].concat()
        };
        qemu_img(dir, &made);
        let path = dir.join(&file);
        let length = std::fs::metadata(&path).unwrap().len();
        let mut ranges = self.ranges.to_vec();
        ranges.push(length.saturating_sub(1536)..length);
        ranges.retain(|range| range.end <= length);
        let Self { name, format, .. } = *self;
        Sample {
            name,
            format,
            path,
            ranges,
        }
    }
}

/// A qcow2 with snapshots and a bitmap.
fn with_snapshots(dir: &Path) -> Sample {
    let file = "snapshots.qcow2";
    qemu_img(dir, &["create", "-q", "-f", "qcow2", file, "4M"]);
    for name in ["s1", "s2", "s3"] {
        qemu_img(dir, &["snapshot", "-c", name, file]);
    }
    qemu_img(dir, &["bitmap", "--add", "-f", "qcow2", file, "b1"]);
    let path = dir.join(file);
    let bytes = std::fs::read(&path).unwrap();
    let table = u64::from_be_bytes(bytes[64..72].try_into().unwrap());
    let mut ranges = QCOW2.to_vec();
    ranges.push(table..table + 200);
    Sample {
        name: "snapshots",
        format: Format::Qcow2,
        path,
        ranges,
    }
}
