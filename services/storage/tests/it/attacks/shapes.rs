//! Files that are two things at once, and files of which only the begin is there.

use super::{
    HIGH, LOW,
    corpus::{DISK_BYTES, program},
    siege::Siege,
};
use serde_json::json;
use std::fs;
use virtbus_wire::{Code, Record, StateName, state::JobState};

/// Where a CD says that it's one, and what.
const CD: (u64, &[u8]) = (0x8000, b"\x01CD001");

/// What begins as a disk does: what, and the bytes at their places.
type Begin = (&'static str, &'static [(usize, &'static [u8])]);

const BEGINS: &[Begin] = &[
    ("a qcow2", &[(0, b"QFI\xfb\0\0\0\x03")]),
    ("an old qcow2", &[(0, b"QFI\xfb\0\0\0\x02")]),
    ("a vmdk", &[(0, b"KDMV\x01\0\0\0")]),
    (
        "a text of a vmdk",
        &[(0, b"# Disk DescriptorFile\nversion=1\n")],
    ),
    ("a vdi", &[(64, b"\x7f\x10\xda\xbe")]),
    ("a vhdx", &[(0, b"vhdxfile")]),
    ("a vpc", &[(0, b"conectix")]),
    ("a vpc by its end", &[((1 << 20) - 512, b"conectix")]),
    ("a qed", &[(0, b"QED\0")]),
    ("a key", &[(0, b"LUKS\xba\xbe\0\x01")]),
];

/// What is a CD and something else is neither, whoever brings it and as whatever. (What is a disk of
/// the catalogue is opened as what that says, and holds what its guest likes.)
#[tokio::test(flavor = "multi_thread")]
async fn what_is_two_things_at_once_is_taken_as_neither() {
    let siege = Siege::begin().await;
    let adopt = siege.file("../adopt");
    fs::create_dir_all(&adopt).unwrap();
    for (number, (what, begin)) in BEGINS.iter().enumerate() {
        let file = format!("cd{number}");
        let mut bytes = vec![0; 1 << 20];
        let (cd_at, cd) = (usize::try_from(CD.0).unwrap(), CD.1);
        for (at, part) in begin.iter().chain(&[(cd_at, cd)]) {
            bytes[*at..at + part.len()].copy_from_slice(part);
        }
        fs::write(adopt.join(&file), &bytes).unwrap();
        let medium = json!({ "media": &file, "format": "iso", "file": &file });
        let mut jobs = vec![("adopt_media", medium)];
        for format in ["raw", "qcow2", "vmdk", "vdi", "vhdx", "vpc"] {
            let disk = json!({ "disk": &file, "format": format, "file": &file });
            jobs.push(("adopt_disk", disk));
        }
        for (job, (task, params)) in jobs.into_iter().enumerate() {
            let told = format!("{what} and a CD: {task} {params}");
            let id = format!("{file}-{job}");
            let code = siege.refused(&id, LOW, (task, params)).await;
            assert_eq!(code, Code::ImageUnknownFormat, "{told}");
        }
        assert_eq!(fs::read(adopt.join(&file)).unwrap(), bytes, "{what}");
    }
    siege.holds();
}

/// The begin of a disk's file, of each power of two bytes. With a part of its tables away no tool
/// gets it. With all of them there, only a look at each cluster tells that data is away: a tool
/// reads that as zeros.
#[tokio::test(flavor = "multi_thread")]
async fn the_begin_of_a_file_is_never_taken_for_the_whole() {
    /// Header, tables of counts, and the two tables that say where each cluster is.
    const TABLES_BYTES: usize = 5 * (64 << 10);
    let siege = Siege::begin().await;
    let make = json!({ "disk": "d1", "size": DISK_BYTES });
    siege.done("make", HIGH, ("create_disk", make)).await;
    let file = siege.file("d1.qcow2");
    let path = file.to_str().unwrap();
    program("qemu-io", &["-f", "qcow2", "-c", "write -P 9 0 3M", path]);
    let whole = fs::read(&file).unwrap();
    assert!(whole.len() > 3 << 20);
    let (mut refused, mut found) = (0, 0);
    let lengths = (0..).map(|power| 1_usize << power);
    for length in lengths.take_while(|length| *length < whole.len()) {
        fs::write(&file, &whole[..length]).unwrap();
        let run = async |what: &str, task: &'static str, params| -> Record {
            siege
                .ends(&format!("{what}-{length}"), LOW, (task, params))
                .await
        };
        let copy = json!({ "disk": "d1", "to": format!("n{length}"), "format": "raw" });
        let above = json!({ "disk": format!("o{length}"), "backing": "d1" });
        let look = || json!({ "disk": "d1" });
        let used = [
            run("convert", "convert", copy).await,
            run("overlay", "create_disk", above).await,
            run("look", "check_disk", look()).await,
        ];
        if length < TABLES_BYTES {
            for record in used {
                let JobState::Failed(_, error) = record.state else {
                    panic!("{length} {}: {:?}", record.task, record.state);
                };
                let code = match length {
                    // Nobody knows yet what it is; then that it's of no version; then the rest.
                    0..=3 => Code::ImageFormatMismatch,
                    4..=7 => Code::ImageUnsafeFeature,
                    _ => Code::ImageCorrupt,
                };
                assert_eq!(error.code, code, "{length} {}", record.task);
            }
            refused += 1;
        } else {
            let [.., look] = used;
            let JobState::Succeeded(_, result) = look.state else {
                panic!("{length}: {:?}", look.state);
            };
            assert!(
                result["corruptions"].as_u64() > Some(0),
                "{length}: {result:?}"
            );
            let record = siege.site.disks.get("d1").await.unwrap().unwrap().value;
            assert_eq!(record["state"], "broken", "{length}");
            found += 1;
        }
        let delete = json!({ "disk": format!("o{length}"), "mode": "unlink" });
        run("gone", "delete_disk", delete).await;
        fs::write(&file, &whole).unwrap();
        let back = run("back", "check_disk", look()).await;
        assert_eq!(back.state.name(), StateName::Succeeded, "{length}");
    }
    assert_eq!((refused, found), (19, 3));
    siege.holds();
}
