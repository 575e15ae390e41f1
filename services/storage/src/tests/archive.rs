use super::{
    attacks::backing,
    site::{Site, Told, code, failed, program},
};
use serde_json::{Value, json};
use std::{fs, path::Path};
use virtbus_wire::{Code, catalog::DiskState};
use virtbus_worker::process;

/// `d2` on top of `d1`, with a snapshot in it.
async fn overlay(site: &Site) {
    site.filled_disk("d1").await;
    site.done(
        "make",
        "create_disk",
        json!({ "disk": "d2", "backing": "d1" }),
    )
    .await;
    site.write("d2.qcow2", "qcow2", "write -P 9 2M 64k");
    let snapshot = json!({ "disk": "d2", "snapshot": "s1" });
    site.done("snap", "create_snapshot", snapshot).await;
    site.write("d2.qcow2", "qcow2", "write -P 5 2M 64k");
}

fn archived(site: &Site) -> Vec<String> {
    let entries = fs::read_dir(site.dir.path().join("archive/disks"));
    let entries = entries.into_iter().flatten().map(Result::unwrap);
    entries
        .map(|entry| entry.file_name().into_string().unwrap())
        .collect()
}

#[tokio::test]
async fn an_overlay_stays_one_byte_for_byte_there_and_back() {
    let site = Site::start().await;
    overlay(&site).await;
    let before = fs::read(site.path("disks/d2.qcow2")).unwrap();
    let told = Told::default();
    let params = json!({ "disk": "d2" });
    let job = site.job("j1", "archive_disk", params.clone());
    let note = |progress| told.note(&progress);
    let done = site.run_within(&job, &process::Stop::new(), &note).await;
    let size = done.unwrap()["archived_size"].as_u64().unwrap();
    assert!(size > 0 && size < before.len() as u64, "{size}");
    let stages = told.stages();
    assert_eq!(stages, [("archive".into(), 50.0), ("verify".into(), 100.0)]);
    assert_eq!(archived(&site), ["d2.qcow2.zst"]);
    assert_eq!(site.files("disks"), ["d1.qcow2"]);
    assert_eq!(site.files("trash"), Vec::<String>::new());
    let record = site.record("d2").await;
    assert_eq!(
        (record.state, record.actual_size),
        (DiskState::Archived, Some(size))
    );
    assert_eq!(record.backing, Some("d1".parse().unwrap()));
    // Still a child; of no use meanwhile.
    let refused = site.refused("j2", "delete_disk", json!({ "disk": "d1" }));
    assert_eq!(code(&refused.await), Code::DiskHasChildren);
    let refused = site.refused("j3", "resize", json!({ "disk": "d2", "size": "8MiB" }));
    assert_eq!(code(&refused.await), Code::DiskWrongState);
    for job in ["j4", "j5"] {
        let again = if job == "j4" {
            "archive_disk"
        } else {
            "unarchive_disk"
        };
        site.done(job, again, params.clone()).await;
    }
    assert_eq!(archived(&site), Vec::<String>::new());
    assert_eq!(fs::read(site.path("disks/d2.qcow2")).unwrap(), before);
    assert_eq!(site.state("d2").await, Some(DiskState::Ready));
    let again = site.done("j6", "unarchive_disk", params).await;
    assert!(again["actual_size"].as_u64().unwrap() > 0);
    site.write("d2.qcow2", "qcow2", "read -P 7 1M 1M");
}

#[tokio::test]
async fn holes_of_a_raw_disk_are_holes_again() {
    let site = Site::start().await;
    let params = json!({ "disk": "d1", "size": "256MiB", "format": "raw" });
    site.done("make", "create_disk", params).await;
    site.write("d1.raw", "raw", "write -P 7 100M 1M");
    site.done("j1", "archive_disk", json!({ "disk": "d1" }))
        .await;
    let done = site
        .done("j2", "unarchive_disk", json!({ "disk": "d1" }))
        .await;
    assert!(done["actual_size"].as_u64().unwrap() < 2 << 20, "{done:?}");
    let path = site.path("disks/d1.raw");
    assert_eq!(fs::metadata(&path).unwrap().len(), 256 << 20);
    site.write("d1.raw", "raw", "read -P 7 100M 1M");
    site.write("d1.raw", "raw", "read -P 0 101M 155M");
}

#[tokio::test]
async fn what_can_not_be_archived_stays() {
    let site = Site::start().await;
    overlay(&site).await;
    let refused = site.refused("j1", "archive_disk", json!({ "disk": "d1" }));
    assert_eq!(code(&refused.await), Code::DiskHasChildren);
    let stray = site.dir.path().join("archive/disks/d2.qcow2.zst");
    fs::create_dir_all(stray.parent().unwrap()).unwrap();
    fs::write(&stray, "mine").unwrap();
    let refused = site.refused("j2", "archive_disk", json!({ "disk": "d2" }));
    assert_eq!(code(&refused.await), Code::DiskExists);
    assert_eq!(fs::read(&stray).unwrap(), b"mine");
    fs::rename(
        site.dir.path().join("archive"),
        site.dir.path().join("away"),
    )
    .unwrap();
    let refused = site.refused("j3", "archive_disk", json!({ "disk": "d2" }));
    assert_eq!(code(&refused.await), Code::PoolUnreachable);
    assert_eq!(site.state("d2").await, Some(DiskState::Ready));
    let bare = Site::with(|pool| pool.archive = None).await;
    bare.filled_disk("d1").await;
    let refused = bare.refused("j4", "archive_disk", json!({ "disk": "d1" }));
    assert_eq!(code(&refused.await), Code::PoolUnsupported);
}

#[tokio::test]
async fn a_damaged_archive_gives_nothing_back() {
    let site = Site::start().await;
    site.filled_disk("d1").await;
    site.filled_disk("d2").await;
    for disk in ["d1", "d2"] {
        site.done(
            &format!("j-{disk}"),
            "archive_disk",
            json!({ "disk": disk }),
        )
        .await;
    }
    let at = |disk: &str| {
        site.dir
            .path()
            .join(format!("archive/disks/{disk}.qcow2.zst"))
    };
    let whole = fs::read(at("d1")).unwrap();
    let mut damaged = whole.clone();
    let middle = damaged.len() - 20;
    damaged[middle] ^= 1;
    let cut = whole[..whole.len() - 8].to_vec();
    let other = fs::read(at("d2")).unwrap();
    for bytes in [damaged, cut, other, b"short".to_vec(), Vec::new()] {
        fs::write(at("d1"), bytes).unwrap();
        let refused = site.refused("j", "unarchive_disk", json!({ "disk": "d1" }));
        assert_eq!(code(&refused.await), Code::ImageCorrupt);
        assert_eq!(site.files("disks"), Vec::<String>::new());
        assert_eq!(site.state("d1").await, Some(DiskState::Archived));
    }
    fs::write(at("d1"), whole).unwrap();
    site.done("j3", "unarchive_disk", json!({ "disk": "d1" }))
        .await;
    site.write("d1.qcow2", "qcow2", "read -P 7 1M 1M");
}

/// A file in the archive, made by somebody else.
fn packed(label: &Value, content: &[u8]) -> Vec<u8> {
    let text = label.to_string();
    let mut bytes = 0x184D_2A50_u32.to_le_bytes().to_vec();
    bytes.extend(u32::try_from(text.len()).unwrap().to_le_bytes());
    bytes.extend(text.as_bytes());
    bytes.extend(zstd::encode_all(content, 3).unwrap());
    bytes
}

/// What is in the archive is as little believed as what is in the pool, and a label no more than
/// the rest: it says how much is unpacked, and zeros take no room.
#[tokio::test]
async fn an_archive_that_attacks_gives_nothing_back() {
    let site = Site::start().await;
    let zeros = vec![0; 16 << 20];
    site.filled_disk("d1").await;
    let raw = json!({ "disk": "r1", "size": "4MiB", "format": "raw" });
    site.done("make", "create_disk", raw).await;
    let disk = site.path("disks/d1.qcow2");
    let good = fs::read(&disk).unwrap();
    let label = |disk: &str, format: &str, length: u64, allocated: u64| json!({ "disk": disk, "format": format, "length": length, "allocated": allocated });
    // What begins to be unpacked, and what is refused by its label.
    let mut hostile = Vec::new();
    type Spoil = fn(&Path);
    let spoils: [(Code, Spoil); 3] = [
        (Code::ImageBackingFile, |disk| backing(disk, "/etc/passwd")),
        (Code::ImageFormatMismatch, |disk| {
            let path = disk.to_str().unwrap();
            program("qemu-img", &["resize", "-q", "-f", "qcow2", path, "9M"]);
        }),
        (Code::ImageUnsafeFeature, |disk| {
            program("qemu-img", &["snapshot", "-c", "x", disk.to_str().unwrap()]);
        }),
    ];
    for (code, spoil) in spoils {
        spoil(&disk);
        let bytes = fs::read(&disk).unwrap();
        let length = bytes.len() as u64;
        let whole = packed(&label("d1", "qcow2", length, length), &bytes);
        hostile.push(("d1.qcow2", true, code, whole));
        fs::write(&disk, &good).unwrap();
    }
    let (small, much) = (4 << 20, zeros.len() as u64);
    let corrupt = Code::ImageCorrupt;
    let bomb = packed(&label("r1", "raw", small, 0), &zeros);
    hostile.push(("r1.raw", true, corrupt, bomb));
    let bomb = packed(&label("d1", "qcow2", small, small), &zeros);
    hostile.push(("d1.qcow2", true, corrupt, bomb));
    for (disk, format, length) in [("r1", "raw", much), ("d1", "qcow2", 1 << 40)] {
        let lie = packed(&label(disk, format, length, 0), &zeros);
        let file = if disk == "r1" { "r1.raw" } else { "d1.qcow2" };
        hostile.push((file, false, corrupt, lie));
    }
    for disk in ["d1", "r1"] {
        let params = json!({ "disk": disk });
        site.done(&format!("j-{disk}"), "archive_disk", params)
            .await;
    }
    for (number, (file, begins, code, bytes)) in hostile.into_iter().enumerate() {
        let at = site.dir.path().join(format!("archive/disks/{file}.zst"));
        let whole = fs::read(&at).unwrap();
        fs::write(&at, bytes).unwrap();
        let disk = &file[..2];
        let job = site.job(
            &format!("j{number}"),
            "unarchive_disk",
            json!({ "disk": disk }),
        );
        let told = Told::default();
        let note = |progress| told.note(&progress);
        let done = site.run_within(&job, &process::Stop::new(), &note).await;
        assert_eq!(failed(done).code, code, "{number} {file}");
        assert_eq!(!told.percents().is_empty(), begins, "{number} {file}");
        assert_eq!(site.files("disks"), Vec::<String>::new(), "{number} {file}");
        assert_eq!(site.state(disk).await, Some(DiskState::Archived));
        fs::write(&at, whole).unwrap();
    }
    for disk in ["d1", "r1"] {
        let params = json!({ "disk": disk });
        site.done(&format!("b-{disk}"), "unarchive_disk", params)
            .await;
    }
    assert!(fs::read(&disk).unwrap() == good);
}

#[tokio::test]
async fn an_archived_disk_can_be_thrown_away_and_brought_back() {
    let site = Site::start().await;
    site.filled_disk("d1").await;
    site.done("j1", "archive_disk", json!({ "disk": "d1" }))
        .await;
    site.done("j2", "delete_disk", json!({ "disk": "d1" }))
        .await;
    assert_eq!(site.state("d1").await, Some(DiskState::Trashed));
    assert_eq!(archived(&site), Vec::<String>::new());
    site.done("j3", "restore_disk", json!({ "disk": "d1" }))
        .await;
    assert_eq!(site.state("d1").await, Some(DiskState::Archived));
    assert_eq!(archived(&site), ["d1.qcow2.zst"]);
    let params = json!({ "disk": "d1", "mode": "unlink" });
    let freed = site.done("j4", "delete_disk", params).await["freed"].as_u64();
    assert!(freed.unwrap() > 0);
    assert_eq!(archived(&site), Vec::<String>::new());
    assert_eq!(site.state("d1").await, Some(DiskState::Deleted));
}

#[tokio::test]
async fn what_comes_out_of_the_archive_is_read_back_before_it_goes_from_there() {
    let site = Site::start().await;
    site.filled_disk("d1").await;
    let params = json!({ "disk": "d1" });
    site.done("j1", "archive_disk", params.clone()).await;
    let phases = std::sync::Mutex::new(Vec::new());
    let note = |progress: virtbus_wire::state::Progress| {
        phases.lock().unwrap().push(progress.phase.unwrap());
    };
    let job = site.job("j2", "unarchive_disk", params);
    let done = site.run_within(&job, &process::Stop::new(), &note).await;
    done.unwrap();
    let mut phases = phases.into_inner().unwrap();
    phases.dedup();
    assert_eq!(phases, ["unarchive", "verify"]);
}
