//! Jobs for which there is no room. Each task that writes sets its room aside before: it's told
//! that there is none, and leaves everything as it was.

use super::{site::Site, sparsify_cuts::quick_site};
use serde_json::{Value, json};
use std::{collections::BTreeMap, fs, path::PathBuf};
use virtbus_wire::{Code, catalog::DiskRecord};
use virtbus_worker::Stop;

/// The pool of the disks, with its archive.
const HERE: &str = "default";
/// The pool that they may move to.
const THERE: &str = "other";

/// `d2` on top of `d1`, `d3` alone, `d4` in the archive; each holds something.
async fn world(site: &Site) {
    for id in ["d1", "d3", "d4"] {
        site.filled_disk(id).await;
    }
    let overlay = json!({ "disk": "d2", "backing": "d1" });
    site.done("make-d2", "create_disk", overlay).await;
    site.write("d2.qcow2", "qcow2", "write -P 9 2M 64k");
    site.done("pack-d4", "archive_disk", json!({ "disk": "d4" }))
        .await;
}

/// Tasks, and the pool that has no room for them.
fn tasks() -> Vec<(&'static str, Value, &'static str)> {
    let whole = json!({ "disk": "n", "size": "1MiB", "format": "raw", "preallocation": "falloc" });
    let tree = json!({ "disk": "d2", "pool": "other", "tree": true });
    let of = |task, params| (task, params, HERE);
    vec![
        of("create_disk", json!({ "disk": "n", "size": "1MiB" })),
        of("create_disk", whole),
        of("create_disk", json!({ "disk": "n", "backing": "d3" })),
        of("create_snapshot", json!({ "disk": "d3", "overlay": "n" })),
        of("create_snapshot", json!({ "disk": "d3", "base": "n" })),
        of("create_snapshot", json!({ "disk": "d3", "snapshot": "n" })),
        of(
            "convert",
            json!({ "disk": "d3", "to": "n", "format": "qcow2" }),
        ),
        of("commit", json!({ "disk": "d2" })),
        of("commit", json!({ "disk": "d2", "delete": true })),
        of("rebase", json!({ "disk": "d2", "backing": "d3" })),
        of("rebase", json!({ "disk": "d2", "backing": null })),
        of("sparsify", json!({ "disk": "d3" })),
        of("archive_disk", json!({ "disk": "d3" })),
        of("unarchive_disk", json!({ "disk": "d4" })),
        ("move_disk", json!({ "disk": "d3", "pool": "other" }), THERE),
        ("move_disk", tree, THERE),
    ]
}

/// The file on which services agree who counts a pool's room: it's made with the first look.
const AGREED_ON: &str = "space/lock";

/// All files of both pools and the archive, and all that the catalogue says.
#[derive(PartialEq)]
struct Sight {
    files: BTreeMap<PathBuf, Vec<u8>>,
    records: Vec<Option<DiskRecord>>,
}

impl Sight {
    async fn of(site: &Site) -> Self {
        let mut files = BTreeMap::new();
        let roots = ["pool", "other", "archive"].into_iter();
        let mut folders: Vec<PathBuf> = roots.map(|root| site.dir.path().join(root)).collect();
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else if !path.ends_with(AGREED_ON) {
                    let bytes = fs::read(&path).unwrap();
                    files.insert(path, bytes);
                }
            }
        }
        let mut records = Vec::new();
        for id in ["d1", "d2", "d3", "d4", "n"] {
            records.push(site.disk(id).await.map(|disk| disk.record));
        }
        Self { files, records }
    }
}

#[tokio::test]
async fn what_there_is_no_room_for_is_refused_and_nothing_changes() {
    let mut site = quick_site().await;
    world(&site).await;
    let before = Sight::of(&site).await;
    let mut wrong = Vec::new();
    for (number, (task, params, full)) in tasks().into_iter().enumerate() {
        site.store = site.another_store(|config| {
            let pool = config.pools.get_mut(&full.parse().unwrap()).unwrap();
            pool.free_min = "1PiB".parse().unwrap();
        });
        let when = format!("{task} {params}");
        let ended = site
            .run(&site.job(&format!("j{number}"), task, params))
            .await;
        let is_told = |stop: &Stop| match stop {
            Stop::Failed(error) => {
                error.code == Code::PoolNoSpace
                    && !error.retryable
                    && error.detail["needed_bytes"].as_u64() > Some(0)
            }
            Stop::Stopped | Stop::Lost | Stop::Wait(_) | Stop::Earlier(_) => false,
        };
        if !ended.as_ref().is_err_and(is_told) {
            wrong.push(format!("{when}: {ended:?}"));
        } else if Sight::of(&site).await != before {
            wrong.push(format!("{when}: something is left"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
