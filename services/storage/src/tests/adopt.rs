use super::site::{MIB, Site, code, program};
use serde_json::json;
use std::{os::unix::fs::symlink, time::Instant};
use virtbus_wire::{
    Code,
    catalog::{DiskState, MediaRecord},
    task::image::ImageFormat,
};

fn adopt(site: &Site, file: &str, args: &[&str]) {
    std::fs::create_dir_all(site.path("adopt")).unwrap();
    let path = site.path("adopt").join(file);
    let mut all = vec!["create"];
    all.extend(args);
    all.push(path.to_str().unwrap());
    all.push("4M");
    program("qemu-img", &all);
}

#[tokio::test]
async fn a_chain_is_adopted_parents_first_and_shows_what_it_showed() {
    let site = Site::start().await;
    adopt(&site, "base.img", &["-f", "qcow2"]);
    let base = site.path("adopt/base.img");
    let base = base.to_str().unwrap();
    program("qemu-io", &["-f", "qcow2", "-c", "write -P 7 1M 1M", base]);
    adopt(
        &site,
        "top.img",
        &["-f", "qcow2", "-F", "qcow2", "-b", base],
    );
    let top = site.path("adopt/top.img");
    let top = top.to_str().unwrap();
    program("qemu-io", &["-f", "qcow2", "-c", "write -P 9 2M 64k", top]);
    program("qemu-img", &["snapshot", "-c", "s1", top]);
    let early = json!({ "disk": "d2", "format": "qcow2", "file": "top.img", "backing": "d1" });
    let refused = site.refused("j0", "adopt_disk", early.clone()).await;
    assert_eq!(code(&refused), Code::DiskNotFound);
    let params = json!({ "disk": "d1", "format": "qcow2", "file": "base.img" });
    let done = site.done("j1", "adopt_disk", params).await;
    assert_eq!(done["virtual_size"], 4 * MIB);
    assert_eq!(done["format"], "qcow2");
    site.done("j2", "adopt_disk", early).await;
    assert_eq!(site.files("adopt"), Vec::<String>::new());
    assert_eq!(
        site.info("d2.qcow2", "qcow2")["backing-filename"],
        "d1.qcow2"
    );
    let record = site.record("d2").await;
    assert_eq!(record.state, DiskState::Ready);
    assert_eq!(record.backing, Some("d1".parse().unwrap()));
    assert_eq!(record.snapshots, ["s1".parse().unwrap()]);
    assert_eq!(site.record("d1").await.children, ["d2".parse().unwrap()]);
    for read in ["read -P 9 2M 64k", "read -P 7 1M 1M"] {
        site.write("d2.qcow2", "qcow2", read);
    }
    // It's a disk like any other.
    site.done(
        "j3",
        "convert",
        json!({ "disk": "d2", "to": "d3", "format": "raw" }),
    )
    .await;
}

#[tokio::test]
async fn a_file_at_its_place_is_adopted_there() {
    let site = Site::start().await;
    site.filled_disk("d1").await;
    site.foreign_overlay("x", "d1");
    std::fs::rename(site.path("adopt/x"), site.path("disks/d2.qcow2")).unwrap();
    std::fs::write(site.path("disks/d3.raw"), vec![1; 4096]).unwrap();
    let params = json!({ "disk": "d2", "format": "qcow2", "backing": "d1" });
    site.done("j1", "adopt_disk", params).await;
    assert_eq!(
        site.info("d2.qcow2", "qcow2")["backing-filename"],
        "d1.qcow2"
    );
    let done = site.done("j2", "adopt_disk", json!({ "disk": "d3", "format": "raw" }));
    assert_eq!(done.await["virtual_size"], 4096);
}

#[tokio::test]
async fn what_a_file_says_of_its_backing_must_be_what_the_job_says() {
    let site = Site::start().await;
    site.filled_disk("d1").await;
    site.foreign_overlay("top", "d1");
    adopt(&site, "alone", &["-f", "qcow2"]);
    for (file, backing) in [("top", None), ("alone", Some("d1"))] {
        let params = json!({ "disk": "d2", "format": "qcow2", "file": file, "backing": backing });
        let refused = site.refused("j", "adopt_disk", params).await;
        assert_eq!(code(&refused), Code::ImageBackingFile, "{file}");
    }
    assert_eq!(site.files("adopt"), ["alone", "top"]);
    assert_eq!(site.disk("d2").await, None);
    assert_eq!(site.files("disks"), ["d1.qcow2"]);
    assert_eq!(site.record("d1").await.children, []);
}

#[tokio::test]
async fn what_is_not_what_it_should_be_stays_where_it_lies() {
    let site = Site::start().await;
    adopt(&site, "image", &["-f", "qcow2"]);
    let outside = site.dir.path().join("outside");
    let option = format!("data_file={},data_file_raw=on", outside.display());
    adopt(&site, "outside", &["-f", "qcow2", "-o", &option]);
    std::fs::remove_file(outside).ok();
    symlink("/etc/passwd", site.path("adopt/link")).unwrap();
    std::fs::write(site.path("adopt/short"), "QFI").unwrap();
    for (file, format, expected) in [
        ("image", "raw", Code::ImageFormatMismatch),
        ("image", "vmdk", Code::ImageFormatMismatch),
        ("short", "qcow2", Code::ImageFormatMismatch),
        ("outside", "qcow2", Code::ImageDataFile),
        ("link", "raw", Code::ImageUnsafeFeature),
        ("absent", "raw", Code::JobInvalidParams),
    ] {
        let params = json!({ "disk": "d1", "format": format, "file": file });
        let refused = site.refused("j", "adopt_disk", params).await;
        assert_eq!(code(&refused), expected, "{file} {format}");
    }
    let params = json!({ "media": "m1", "format": "iso", "file": "image" });
    let refused = site.refused("j", "adopt_media", params).await;
    assert_eq!(code(&refused), Code::ImageFormatMismatch);
    assert_eq!(site.files("adopt"), ["image", "link", "outside", "short"]);
    assert_eq!(site.files("disks"), Vec::<String>::new());
    assert_eq!(site.disk("d1").await, None);
}

#[tokio::test]
async fn a_medium_is_adopted_and_measured() {
    let site = Site::start().await;
    let mut iso = vec![0; 64 << 10];
    iso[0x8001..0x8006].copy_from_slice(b"CD001");
    std::fs::create_dir_all(site.path("adopt")).unwrap();
    std::fs::write(site.path("adopt/cd.iso"), iso).unwrap();
    let params = json!({ "media": "m1", "format": "iso", "file": "cd.iso" });
    let done = site.done("j1", "adopt_media", params).await;
    assert_eq!(
        (&done["virtual_size"], &done["format"]),
        (&json!(64 << 10), &json!("iso"))
    );
    let MediaRecord { state, .. } = site.medium("m1").await.unwrap().record;
    assert_eq!(state, DiskState::Ready);
    assert_eq!(site.files("media"), ["m1.iso"]);
    let again = json!({ "media": "m1", "format": "iso", "file": "cd.iso" });
    let refused = site.refused("j2", "adopt_media", again).await;
    assert_eq!(code(&refused), Code::MediaExists);
}

/// How many disks are adopted, in chains of three: a folder of another system. More are asked for
/// by the environment.
fn many() -> usize {
    const MANY: usize = 60;
    let asked = std::env::var("VIRTBUS_ADOPT").ok();
    asked.and_then(|text| text.parse().ok()).unwrap_or(MANY)
}

/// The most memory that this process had so far.
fn memory() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM"));
    line.unwrap_or_default().replace('\t', " ")
}

/// Where the file of this number lies, as another system would name it.
fn foreign(number: usize) -> String {
    format!("image-{number:05}")
}

/// Chains of three, made of one of each kind: an overlay's header names the one below.
fn folder_of_chains(site: &Site, many: usize) {
    let (base, top) = (foreign(0), foreign(1));
    let small = ["-o", "cluster_size=4k"];
    adopt(site, &base, &[&["-f", "qcow2"][..], &small].concat());
    let below = site.path("adopt").join(&base);
    let args = ["-f", "qcow2", "-F", "qcow2", "-b", below.to_str().unwrap()];
    adopt(site, &top, &[&args[..], &small].concat());
    let read = |name: &str| std::fs::read(site.path("adopt").join(name)).unwrap();
    let (whole, overlay) = (read(&base), read(&top));
    let at = overlay
        .windows(base.len())
        .position(|name| name == base.as_bytes());
    let at = at.unwrap();
    for number in 2..many {
        let mut bytes = if number % 3 == 0 { &whole } else { &overlay }.clone();
        if number % 3 > 0 {
            bytes[at..at + base.len()].copy_from_slice(foreign(number - 1).as_bytes());
        }
        std::fs::write(site.path("adopt").join(foreign(number)), bytes).unwrap();
    }
}

/// What the header of a qcow2 calls its backing: none, or bytes at an offset, and so many.
fn backing_in(bytes: &[u8]) -> Option<&str> {
    let at = u64::from_be_bytes(bytes[8..16].try_into().unwrap());
    let length = u32::from_be_bytes(bytes[16..20].try_into().unwrap());
    let (at, length) = (usize::try_from(at).unwrap(), length as usize);
    (at > 0).then(|| std::str::from_utf8(&bytes[at..at + length]).unwrap())
}

/// That a disk of the folder is what the chains say: in its record, and in its file's header.
async fn is_in_its_chain(site: &Site, number: usize, many: usize) {
    let id = |number: usize| format!("d{number}").parse().unwrap();
    let record = site.record(&format!("d{number}")).await;
    let place = number % 3;
    let below = (place > 0).then(|| number - 1);
    let above = (place < 2 && number + 1 < many).then(|| number + 1);
    assert_eq!(
        (record.state, record.format, record.virtual_size),
        (DiskState::Ready, ImageFormat::Qcow2, Some(4 * MIB)),
        "{number}"
    );
    assert_eq!(record.backing, below.map(id), "{number}");
    assert_eq!(record.children, Vec::from_iter(above.map(id)), "{number}");
    let bytes = std::fs::read(site.path(&format!("disks/d{number}.qcow2"))).unwrap();
    let named = below.map(|below| format!("d{below}.qcow2"));
    assert_eq!(backing_in(&bytes), named.as_deref(), "{number}");
}

#[tokio::test]
async fn a_folder_of_chains_is_adopted_whole() {
    let (site, many) = (Site::start().await, many());
    folder_of_chains(&site, many);
    let began = Instant::now();
    for number in 0..many {
        let backing = (number % 3 > 0).then(|| format!("d{}", number - 1));
        let params = json!({ "disk": format!("d{number}"), "format": "qcow2",
                             "file": foreign(number), "backing": backing });
        site.done(&format!("j{number}"), "adopt_disk", params).await;
    }
    let took = began.elapsed();
    let each = took / u32::try_from(many).unwrap();
    println!("{many} adopted in {took:?}: {each:?} each; {}", memory());
    assert_eq!(site.files("disks").len(), many);
    assert_eq!(site.files("adopt"), Vec::<String>::new());
    for number in 0..many {
        is_in_its_chain(&site, number, many).await;
    }
}
