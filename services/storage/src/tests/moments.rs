//! A worker that dies at any moment from its first lock on a file to its last word, and what comes
//! after it: another claim that goes on, or the end of the job.
//!
//! A moment is one of those in which the worker waits: for the server, or for a file. It dies when
//! what it waited for has come, and does nothing more. Each case runs again and again, and dies
//! one moment later each time, until it gets through.

use super::site::Site;
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    hash::{DefaultHasher, Hash, Hasher},
    path::Path,
};
use virtbus_wire::Code;
use virtbus_worker::{Assignment, Perform, Stop};

/// More moments than any case has.
const MOMENTS_MAX: usize = 500;
/// Bytes of an image in which a backing may be named.
const HEADER_BYTES: usize = 64 << 10;
/// How a file in the archive begins.
const PACKED: [u8; 4] = [0x50, 0x2a, 0x4d, 0x18];
/// The prefix of the run that nothing disturbs; all of them have its length.
const WHOLE: &str = "w000-";

/// A job whose worker dies, on disks and media whose ids begin with the run's own prefix.
#[derive(Clone, Copy)]
struct Case {
    task: &'static str,
    /// The parameters, and what they stand on.
    params: fn(&str) -> Value,
    before: fn(&str) -> Vec<(&'static str, Value)>,
}

/// `d1`, and `d2` on top of it, both with something in them; the medium `m1`.
const IDS: [&str; 3] = ["d1", "d2", "new"];

fn deletions() -> Vec<Case> {
    let none: fn(&str) -> Vec<(&'static str, Value)> = |_| Vec::new();
    vec![
        Case {
            task: "delete_disk",
            params: |p| json!({ "disk": format!("{p}d1"), "tree": true }),
            before: none,
        },
        Case {
            task: "delete_disk",
            params: |p| json!({ "disk": format!("{p}d1"), "tree": true, "mode": "unlink" }),
            before: none,
        },
        Case {
            task: "delete_media",
            params: |p| json!({ "media": format!("{p}m1") }),
            before: none,
        },
        Case {
            task: "delete_media",
            params: |p| json!({ "media": format!("{p}m1"), "mode": "unlink" }),
            before: none,
        },
    ]
}

fn cases() -> Vec<Case> {
    let none: fn(&str) -> Vec<(&'static str, Value)> = |_| Vec::new();
    let archived: fn(&str) -> Vec<(&'static str, Value)> =
        |p| vec![("archive_disk", json!({ "disk": format!("{p}d2") }))];
    let others = [
        Case {
            task: "adopt_disk",
            params: |p| {
                json!({ "disk": format!("{p}new"), "format": "qcow2", "backing": format!("{p}d1"),
                        "file": format!("{p}x") })
            },
            before: none,
        },
        Case {
            task: "adopt_media",
            params: |p| json!({ "media": format!("{p}m2"), "format": "raw", "file": format!("{p}y") }),
            before: none,
        },
        Case {
            task: "move_disk",
            params: |p| json!({ "disk": format!("{p}d2"), "pool": "other", "tree": true }),
            before: none,
        },
        Case {
            task: "archive_disk",
            params: |p| json!({ "disk": format!("{p}d2") }),
            before: none,
        },
        Case {
            task: "unarchive_disk",
            params: |p| json!({ "disk": format!("{p}d2") }),
            before: archived,
        },
        Case {
            task: "delete_disk",
            params: |p| json!({ "disk": format!("{p}d2"), "mode": "unlink" }),
            before: archived,
        },
        Case {
            task: "restore_disk",
            params: |p| json!({ "disk": format!("{p}d2") }),
            before: |p| vec![("delete_disk", json!({ "disk": format!("{p}d2") }))],
        },
    ];
    deletions().into_iter().chain(others).collect()
}

/// All that there is of one run: names, content and records.
#[derive(Debug, Clone, PartialEq)]
struct Picture {
    /// A hash for each file.
    files: BTreeMap<String, u64>,
    records: BTreeMap<String, Value>,
}

impl Case {
    async fn begin(&self, site: &Site, p: &str) {
        site.filled_disk(&format!("{p}d1")).await;
        let overlay = json!({ "disk": format!("{p}d2"), "backing": format!("{p}d1") });
        site.done(&format!("{p}make"), "create_disk", overlay).await;
        site.write(&format!("{p}d2.qcow2"), "qcow2", "write -P 9 2M 64k");
        site.filled_medium(&format!("{p}m1")).await;
        site.foreign_overlay(&format!("{p}x"), &format!("{p}d1"));
        std::fs::write(site.path("adopt").join(format!("{p}y")), [5; 4096]).unwrap();
        for (number, (task, params)) in (self.before)(p).into_iter().enumerate() {
            site.done(&format!("{p}before-{number}"), task, params)
                .await;
        }
    }

    fn job(&self, site: &Site, p: &str, claim: u64) -> Assignment {
        let params = (self.params)(p);
        let envelope = json!({ "id": format!("{p}j"), "task": self.task, "params": params });
        site.claimed(envelope, claim)
    }

    /// The claim goes on to its end, after the one that died.
    async fn goes_on(&self, site: &Site, p: &str, moment: usize) -> Value {
        let job = self.job(site, p, 2);
        let done = until_free(async || site.run(&job).await).await;
        let done = done.unwrap_or_else(|stop| panic!("{} {moment}: {stop:?}", self.task));
        // A later claim that finds all done says the same.
        let again = site.store.recover(&self.job(site, p, 3)).await.unwrap();
        if let Some(again) = again {
            assert_eq!(again, done, "{} {moment}", self.task);
        }
        Value::Object(done)
    }

    /// The job ends without its effect, after the claim that died: it's found, or put back.
    async fn is_given_up(&self, site: &Site, p: &str, moment: usize) -> bool {
        let next = self.job(site, p, 2);
        let found = until_free(async || site.give_up(&next).await).await;
        let found = found.unwrap_or_else(|error| panic!("{} {moment}: {error:?}", self.task));
        found.is_some()
    }
}

/// Tries again while a disk's lock is held: a program that a test beside this one starts has all
/// that's open for the moment before it becomes that program.
async fn until_free<T>(act: impl AsyncFn() -> Result<T, Stop>) -> Result<T, Stop> {
    loop {
        match act().await {
            Err(Stop::Failed(error)) if error.code == Code::DiskBusy => {}
            done => return done,
        }
        tokio::task::yield_now().await;
    }
}

async fn picture(site: &Site, p: &str) -> Picture {
    let mut files = BTreeMap::new();
    for root in ["pool", "other", "archive"] {
        for folder in ["disks", "media", "trash", "adopt"] {
            let path = site.dir.path().join(root).join(folder);
            collect(&path, p, &format!("{root}/{folder}"), &mut files);
        }
    }
    let mut records = BTreeMap::new();
    for id in IDS {
        let disk = site.disk(&format!("{p}{id}")).await;
        let record = disk.map(|disk| serde_json::to_value(disk.record).unwrap());
        records.insert(
            id.to_owned(),
            record.map_or(Value::Null, |value| bare(value, p)),
        );
    }
    for id in ["m1", "m2"] {
        let medium = site.medium(&format!("{p}{id}")).await;
        let record = medium.map(|medium| serde_json::to_value(medium.record).unwrap());
        records.insert(
            id.to_owned(),
            record.map_or(Value::Null, |value| bare(value, p)),
        );
    }
    Picture { files, records }
}

fn collect(folder: &Path, p: &str, shown: &str, files: &mut BTreeMap<String, u64>) {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return;
    };
    for entry in entries.map(Result::unwrap) {
        let name = entry.file_name().into_string().unwrap();
        let Some((_, name)) = name.split_once(p) else {
            continue;
        };
        // In the trash the name goes on with the job and its claim.
        let id = match shown.ends_with("trash") {
            true => name.split('.').next().unwrap(),
            false => name,
        };
        let mut bytes = std::fs::read(entry.path()).unwrap();
        if bytes.starts_with(&PACKED) {
            bytes = zstd::decode_all(&bytes[..]).unwrap();
        }
        let before = files.insert(format!("{shown}/{id}"), hash(bytes, p));
        assert_eq!(before, None, "{shown}/{id} is there twice");
    }
}

/// An overlay names its backing, so the run's prefix is in it too.
fn hash(mut bytes: Vec<u8>, p: &str) -> u64 {
    let ends = bytes.len().min(HEADER_BYTES);
    while let Some(at) = bytes[..ends]
        .windows(p.len())
        .position(|text| text == p.as_bytes())
    {
        bytes[at..at + p.len()].fill(b'?');
    }
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    hasher.finish()
}

/// What a job says, but for what files take on their disk: that's not the same for another file.
fn said(done: &Value, p: &str) -> Value {
    let mut said: Value = serde_json::from_str(&done.to_string().replace(p, "")).unwrap();
    let fields = said.as_object_mut().unwrap();
    for field in ["freed", "bytes", "actual_size", "archived_size"] {
        fields.remove(field);
    }
    said
}

/// A record without what is another number each time.
fn bare(record: Value, p: &str) -> Value {
    let text = record.to_string().replace(p, "");
    let mut record: Value = serde_json::from_str(&text).unwrap();
    let fields = record.as_object_mut().unwrap();
    for field in ["epoch", "updated_at", "owner_job", "actual_size"] {
        fields.remove(field);
    }
    record
}

async fn survives(case: Case) {
    let site = Site::start().await;
    case.begin(&site, WHOLE).await;
    let before = picture(&site, WHOLE).await;
    let expected = site.run(&case.job(&site, WHOLE, 1)).await.unwrap();
    let expected = said(&Value::Object(expected), WHOLE);
    let after = picture(&site, WHOLE).await;
    for moment in 0..MOMENTS_MAX {
        let (p, q) = (format!("a{moment:03}-"), format!("b{moment:03}-"));
        case.begin(&site, &p).await;
        let is_through = site.dies_at(&case.job(&site, &p, 1), moment).await;
        let done = case.goes_on(&site, &p, moment).await;
        assert_eq!(said(&done, &p), expected, "{} {moment}", case.task);
        assert_eq!(picture(&site, &p).await, after, "{} {moment}", case.task);
        case.begin(&site, &q).await;
        site.dies_at(&case.job(&site, &q, 1), moment).await;
        let is_found = case.is_given_up(&site, &q, moment).await;
        let found = picture(&site, &q).await;
        // The job's record says `succeeded` then, else `cancelled`.
        let wanted = if is_found { &after } else { &before };
        assert_eq!(&found, wanted, "{} {moment}: {is_found}", case.task);
        if is_through {
            assert!(moment > 0);
            return;
        }
    }
    panic!("{}: no end", case.task);
}

macro_rules! cut {
    ($($name:ident = $number:literal,)+) => {
        $(#[tokio::test]
        async fn $name() {
            survives(cases()[$number]).await;
        })+
    };
}

cut!(
    a_tree_that_goes_to_the_trash_goes_once = 0,
    a_tree_that_is_unlinked_goes_once = 1,
    a_medium_that_goes_to_the_trash_goes_once = 2,
    a_medium_that_is_unlinked_goes_once = 3,
    an_overlay_is_adopted_once = 4,
    a_medium_is_adopted_once = 5,
    a_tree_is_moved_once = 6,
    a_disk_is_archived_once = 7,
    a_disk_comes_back_from_the_archive_once = 8,
    an_archived_disk_goes_once = 9,
    a_disk_comes_back_from_the_trash_once = 10,
);
