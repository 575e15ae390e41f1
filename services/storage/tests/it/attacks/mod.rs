//! Files, ids and names that attack, by published jobs on the running service: each job ends soon,
//! with the right code, and what they aim at is neither read nor written.

mod corpus;
mod foreign;
mod names;
mod secret;
mod shapes;
mod siege;
mod vmdk;
mod watch;

use corpus::{ATTACKS, Attack, DISK_BYTES, program};
use futures_util::{StreamExt, stream};
use serde_json::{Value, json};
use siege::{ROOM, Siege};
use std::{fs, os::unix::fs::MetadataExt, path::Path};
use virtbus_wire::Code;
use watch::Watch;

/// The most memory that the service and its tools may take at once, in bytes.
const MEMORY_MAX: u64 = 512 << 20;
/// Attacks that go on at once.
const AT_ONCE: usize = 8;
const HIGH: &str = "storage.default.high";
const LOW: &str = "storage.default.low";
const PAIR: &str = "storage.default_other.low";

fn remove(path: &Path) {
    match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => fs::remove_dir(path).unwrap(),
        Ok(_) => fs::remove_file(path).unwrap(),
        // It went with its disk.
        Err(_) => {}
    }
}

/// Every task that has a tool open `top`, an overlay of `base`, or `kept`, which has the snapshot
/// `s1`. `new` is free.
fn tasks(p: &str) -> Vec<(&'static str, (&'static str, Value))> {
    let (top, kept, new) = (format!("{p}top"), format!("{p}kept"), format!("{p}new"));
    let on_low = [
        (
            "convert",
            json!({ "disk": top, "to": new, "format": "raw" }),
        ),
        (
            "convert",
            json!({ "disk": kept, "to": new, "format": "qcow2", "compress": "zstd" }),
        ),
        ("create_disk", json!({ "disk": new, "backing": top })),
        ("resize", json!({ "disk": top, "size": "9MiB" })),
        (
            "resize",
            json!({ "disk": top, "size": "1MiB", "shrink": true }),
        ),
        ("create_snapshot", json!({ "disk": top, "snapshot": "s2" })),
        ("create_snapshot", json!({ "disk": top, "overlay": new })),
        ("create_snapshot", json!({ "disk": top, "base": new })),
        ("revert_snapshot", json!({ "disk": kept, "snapshot": "s1" })),
        ("delete_snapshot", json!({ "disk": kept, "snapshot": "s1" })),
        ("commit", json!({ "disk": top })),
        ("commit", json!({ "disk": top, "delete": true })),
        ("rebase", json!({ "disk": top, "backing": null })),
        ("rebase", json!({ "disk": top, "backing": "spare" })),
        ("sparsify", json!({ "disk": top })),
        ("archive_disk", json!({ "disk": top })),
    ];
    let moved = json!({ "disk": top, "pool": "other", "tree": true });
    let mut tasks: Vec<_> = on_low.into_iter().map(|task| (LOW, task)).collect();
    tasks.push((PAIR, ("move_disk", moved)));
    tasks
}

/// The disks that one attack is made on.
async fn prepare(siege: &Siege, p: &str) {
    let disk = |name: &str| json!({ "disk": format!("{p}{name}"), "size": DISK_BYTES });
    for (id, task) in [
        ("base", ("create_disk", disk("base"))),
        ("kept", ("create_disk", disk("kept"))),
        (
            "top",
            (
                "create_disk",
                json!({ "disk": format!("{p}top"), "backing": format!("{p}base") }),
            ),
        ),
        (
            "s1",
            (
                "create_snapshot",
                json!({ "disk": format!("{p}kept"), "snapshot": "s1" }),
            ),
        ),
    ] {
        siege.done(&format!("{p}{id}"), HIGH, task).await;
    }
    let top = siege.file(&format!("{p}top.qcow2"));
    let write = [
        "-f",
        "qcow2",
        "-c",
        "write -P 9 2M 64k",
        top.to_str().unwrap(),
    ];
    program("qemu-io", &write);
}

/// All tasks, one after the other, on disks that were swapped for this.
async fn attack(siege: &Siege, number: usize, (what, code, attack): (&str, Code, Attack)) {
    let p = format!("a{number}-");
    prepare(siege, &p).await;
    let files = ["top", "kept"].map(|name| siege.file(&format!("{p}{name}.qcow2")));
    for file in &files {
        attack(file, &siege.aims);
    }
    for (index, (subject, task)) in tasks(&p).into_iter().enumerate() {
        let told = format!("{what}: {} {}", task.0, task.1);
        let refused = siege.refused(&format!("{p}{index}"), subject, task).await;
        assert_eq!(refused, code, "{told}");
        for name in ["top", "kept"] {
            let record = siege.site.disks.get(&format!("{p}{name}")).await.unwrap();
            assert_eq!(record.unwrap().value["state"], "ready", "{told}");
        }
        let new = siege.site.disks.get(&format!("{p}new")).await.unwrap();
        assert!(new.is_none(), "{told}: {new:?}");
    }
    is_looked_at(siege, &p, what, code).await;
    for file in &files {
        remove(file);
    }
}

/// What is said of the files, and how they go: a damage may be found, and a file may go; nothing
/// else is touched.
async fn is_looked_at(siege: &Siege, p: &str, what: &str, code: Code) {
    let disk = format!("{p}top");
    let check = ("check_disk", json!({ "disk": disk }));
    let refused = siege.refused(&format!("{p}check"), LOW, check).await;
    assert_eq!(refused, code, "{what}: check_disk");
    let repair = ("check_disk", json!({ "disk": disk, "repair": "all" }));
    siege.ends(&format!("{p}repair"), LOW, repair).await;
    let wipe = (
        "delete_disk",
        json!({ "disk": format!("{p}kept"), "mode": "wipe" }),
    );
    siege.ends(&format!("{p}wipe"), LOW, wipe).await;
}

/// A file of a few clusters that shows more than there is room for.
async fn is_larger_than_it_looks(siege: &Siege) {
    let bytes = 2 * ROOM;
    let make = ("create_disk", json!({ "disk": "much", "size": bytes }));
    siege.done("much", "storage.other.high", make).await;
    let file = siege.far.path().join("other/disks/much.qcow2");
    corpus::all_the_same(&file, bytes);
    assert!(fs::metadata(&file).unwrap().blocks() * 512 < 4 << 20);
    for (id, format) in [("much-raw", "raw"), ("much-qcow2", "qcow2")] {
        let copy = json!({ "disk": "much", "to": id, "format": format });
        let refused = siege
            .refused(id, "storage.other.low", ("convert", copy))
            .await;
        assert_eq!(refused, Code::PoolNoSpace, "{id}");
    }
    let check = ("check_disk", json!({ "disk": "much" }));
    siege.ends("much-check", "storage.other.low", check).await;
}

/// A guest's disk whose bytes are an image that has its data in the host's file.
async fn is_only_bytes(siege: &Siege) {
    let raw = json!({ "disk": "r1", "size": DISK_BYTES, "format": "raw" });
    siege.done("r1", HIGH, ("create_disk", raw)).await;
    let source = siege.aims.workshop.join("nested.qcow2");
    fs::copy(siege.file("spare.qcow2"), &source).unwrap();
    corpus::mapped_elsewhere(&source, &siege.aims);
    let mut bytes = fs::read(&source).unwrap();
    bytes.resize(usize::try_from(DISK_BYTES).unwrap(), 0);
    fs::write(siege.file("r1.raw"), &bytes).unwrap();
    for (id, task) in [
        (
            "r2",
            (
                "convert",
                json!({ "disk": "r1", "to": "r2", "format": "qcow2" }),
            ),
        ),
        (
            "r3",
            (
                "convert",
                json!({ "disk": "r2", "to": "r3", "format": "raw" }),
            ),
        ),
        (
            "r4",
            ("create_disk", json!({ "disk": "r4", "backing": "r3" })),
        ),
        (
            "r5",
            (
                "convert",
                json!({ "disk": "r4", "to": "r5", "format": "raw" }),
            ),
        ),
        ("r6", ("resize", json!({ "disk": "r1", "size": "9MiB" }))),
        ("r7", ("check_disk", json!({ "disk": "r5" }))),
    ] {
        siege.done(id, LOW, task).await;
    }
    for copy in ["r3.raw", "r5.raw"] {
        assert!(fs::read(siege.file(copy)).unwrap() == bytes, "{copy}");
    }
    let grown = fs::read(siege.file("r1.raw")).unwrap();
    assert!(grown.starts_with(&bytes) && grown.len() == 9 << 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_published_job_lets_a_tool_near_what_attacks() {
    let siege = Siege::begin().await;
    let watch = Watch::begin(siege.service.0.id());
    let spare = (
        "create_disk",
        json!({ "disk": "spare", "size": DISK_BYTES }),
    );
    siege.done("spare", HIGH, spare).await;
    let attacks = ATTACKS.iter().enumerate();
    let attacks = attacks.map(|(number, one)| attack(&siege, number, *one));
    let attacks = stream::iter(attacks)
        .buffer_unordered(AT_ONCE)
        .collect::<Vec<()>>();
    let others = async {
        vmdk::attack(&siege).await;
        is_only_bytes(&siege).await;
        is_larger_than_it_looks(&siege).await;
        names::are_refused(&siege).await;
    };
    tokio::join!(attacks, others);
    siege.holds();
    // Who comes behind them has nothing of all that in the way.
    let resize = ("resize", json!({ "disk": "spare", "size": "9MiB" }));
    siege.done("last", HIGH, resize).await;
    let mut left = siege.site.files();
    left.retain(|name| name.starts_with('.'));
    assert_eq!(left, Vec::<String>::new());
    assert!(watch.most() < MEMORY_MAX, "{} bytes", watch.most());
}
