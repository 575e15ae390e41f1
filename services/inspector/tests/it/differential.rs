//! The same damaged images, read by us and by the real qemu-img: what we let through, it must read
//! as we do, and find no other file named in it.
//!
//! `VIRTBUS_MUTATIONS` says how many (3,000 unless told), `VIRTBUS_SEED` begins another sequence.

use crate::{
    mutation::{self, Change},
    read_file,
    sample::{self, Sample},
};
use rand::{SeedableRng, rngs::StdRng};
use serde_json::Value;
use std::{
    env,
    fs::{self, OpenOptions},
    path::Path,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
    thread,
};
use virtbus_inspector::{Detail, Format, Inspector, Name, Report, Subformat};

const MUTATIONS: u64 = 3_000;
/// qemu-img at work at once.
const THREADS: u64 = 4;

fn number(name: &str, otherwise: u64) -> u64 {
    let text = env::var(name).ok();
    text.map_or(otherwise, |text| text.parse().expect("a number"))
}

/// What was let through, by us and by the tool.
#[derive(Debug, Default)]
struct Counts {
    passed: AtomicUsize,
    refused: AtomicUsize,
    refused_by_qemu_only: AtomicUsize,
}

#[test]
fn nothing_passes_that_qemu_img_reads_otherwise() {
    let (mutations, seed) = (
        number("VIRTBUS_MUTATIONS", MUTATIONS),
        number("VIRTBUS_SEED", 1),
    );
    let (_folder, samples) = sample::all();
    let counts = Counts::default();
    thread::scope(|scope| {
        for thread in 0..THREADS {
            let (samples, counts) = (&samples, &counts);
            scope.spawn(move || {
                let own: Vec<Sample> = samples.iter().map(|s| copied(s, thread)).collect();
                for index in (thread..mutations).step_by(THREADS as usize) {
                    let sample = &own[usize::try_from(index / THREADS).unwrap() % own.len()];
                    try_one(sample, seed, index, counts);
                }
                for (copy, sample) in own.iter().zip(samples) {
                    // The damage was undone, and the tool only looked.
                    let bytes = |sample: &Sample| fs::read(&sample.path).unwrap();
                    assert!(bytes(copy) == bytes(sample), "{} has changed", sample.name);
                }
            });
        }
    });
    println!("{mutations} mutations from seed {seed}: {counts:?}");
    assert!(counts.passed.into_inner() > 0 && counts.refused.into_inner() > 0);
}

/// A thread's own copy of a sample, in the same folder, so that names in it mean the same.
fn copied(sample: &Sample, thread: u64) -> Sample {
    let path = sample
        .path
        .with_file_name(format!("{}-{}.{thread}", sample.name, sample.format));
    fs::copy(&sample.path, &path).unwrap();
    Sample {
        path,
        ..sample.clone()
    }
}

fn try_one(sample: &Sample, seed: u64, index: u64, counts: &Counts) {
    let mut random = StdRng::seed_from_u64(seed << 32 | index);
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(&sample.path)
        .unwrap();
    let changes = mutation::random(sample, &file, &mut random);
    let undo = mutation::apply(&file, &changes);
    // From outside nobody knows the format, in a pool the catalogue does.
    let told = index.is_multiple_of(3).then_some(sample.format);
    let inspector = told.map_or_else(Inspector::detect, Inspector::of);
    match read_file(inspector, &file) {
        Ok(report) => {
            counts.passed.fetch_add(1, Relaxed);
            let same = compare(&sample.path, told, &report);
            let is_refused = same.unwrap_or_else(|difference| {
                report_difference(sample, index, &changes, &report, &difference)
            });
            counts
                .refused_by_qemu_only
                .fetch_add(is_refused.into(), Relaxed);
        }
        Err(_) => {
            counts.refused.fetch_add(1, Relaxed);
        }
    }
    mutation::apply(&file, &undo);
}

fn report_difference(
    sample: &Sample,
    index: u64,
    changes: &[Change],
    report: &Report,
    difference: &str,
) -> bool {
    panic!(
        "mutation {index} of {} {}: {difference}\n{changes:x?}\n{report:#?}",
        sample.name, sample.format
    )
}

/// Whether the tool refuses an image that we read so; how it reads it otherwise is an error.
pub(crate) fn compare(path: &Path, told: Option<Format>, report: &Report) -> Result<bool, String> {
    // A disc is plain bytes for it, and so is a VHD that has only its end as a mark.
    let told = match report.format {
        Format::Iso => told.and(Some(Format::Raw)),
        Format::Raw
        | Format::Qcow2
        | Format::Vmdk
        | Format::Vdi
        | Format::Vpc
        | Format::Vhdx
        | Format::Qcow1
        | Format::Qed
        | Format::Luks
        | Format::Parallels
        | Format::Bochs
        | Format::Cloop
        | Format::Dmg => told,
    };
    let Some(info) = sample::info(path, told) else {
        return Ok(true);
    };
    let is_footed =
        report.format == Format::Vpc && report.detail == Detail::Blocks { is_fixed: true };
    let is_plain = report.format == Format::Iso || (is_footed && told.is_none());
    let format = if is_plain { Format::Raw } else { report.format };
    same("format", &info["format"], format.as_str().into())?;
    if is_plain && is_footed {
        return Ok(false);
    }
    same(
        "virtual size",
        &info["virtual-size"],
        report.virtual_size.into(),
    )?;
    let text = |name: &Name| String::from_utf8_lossy(name.as_bytes()).into_owned();
    let backing = report.backing.as_ref();
    let name = backing.map(|backing| Value::from(text(&backing.name)));
    same(
        "backing",
        &info["backing-filename"],
        name.unwrap_or_default(),
    )?;
    if let Some(told) = backing.and_then(|backing| backing.format.as_ref()) {
        same(
            "its format",
            &info["backing-filename-format"],
            text(told).into(),
        )?;
    }
    let snapshots = info["snapshots"].as_array().map_or(0, Vec::len);
    same("snapshots", &snapshots.into(), report.snapshots().into())?;
    let is_encrypted = info["encrypted"].as_bool().unwrap_or_default();
    same(
        "encrypted",
        &is_encrypted.into(),
        report.encryption.is_some().into(),
    )?;
    details(&info, report)?;
    Ok(false)
}

fn details(info: &Value, report: &Report) -> Result<(), String> {
    let data = &info["format-specific"]["data"];
    same("data file", &data["data-file"], Value::Null)?;
    match report.detail {
        Detail::Qcow2(qcow2) => {
            let compat = if qcow2.version == 2 { "0.10" } else { "1.1" };
            same("compat", &data["compat"], compat.into())?;
            same(
                "cluster size",
                &info["cluster-size"],
                qcow2.cluster_bytes.into(),
            )?;
            same("dirty", &info["dirty-flag"], qcow2.is_dirty().into())?;
            if qcow2.version == 3 {
                let (lazy, corrupt) = (&data["lazy-refcounts"], &data["corrupt"]);
                same("lazy", lazy, (qcow2.compatible & 1 != 0).into())?;
                same("corrupt", corrupt, false.into())?;
                same(
                    "refcount bits",
                    &data["refcount-bits"],
                    qcow2.refcount_bits.into(),
                )?;
                same(
                    "extended L2",
                    &data["extended-l2"],
                    qcow2.has_extended_l2().into(),
                )?;
            }
            let packed = if qcow2.is_zstd { "zstd" } else { "zlib" };
            same("compression", &data["compression-type"], packed.into())
        }
        Detail::Vmdk(subformat) => {
            let kind = match subformat {
                Subformat::MonolithicSparse => "monolithicSparse",
                Subformat::StreamOptimized => "streamOptimized",
            };
            same("kind", &data["create-type"], kind.into())?;
            let extents = data["extents"].as_array().map_or(0, Vec::len);
            same("extents", &extents.into(), 1.into())
        }
        Detail::Raw(_) | Detail::Blocks { .. } | Detail::Iso { .. } => Ok(()),
    }
}

fn same(what: &str, theirs: &Value, ours: Value) -> Result<(), String> {
    if *theirs == ours {
        Ok(())
    } else {
        Err(format!("{what}: qemu-img says {theirs}, we say {ours}"))
    }
}
