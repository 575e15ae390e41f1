//! The runs of one case (`moments.rs`): what each begins with, and what there is of it afterwards.
//!
//! What the first run begins with is made by jobs and tools; the others get a copy of it under
//! names of their own.

use super::{check_disk::damage, moment_cases::Case, site::Site};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    fs,
    hash::{DefaultHasher, Hash, Hasher},
    path::{Path, PathBuf},
    sync::Mutex,
};

/// Bytes of an image in which a backing may be named.
const HEADER_BYTES: usize = 64 << 10;
/// How a file in the archive begins. The names in it can't be changed from outside.
const PACKED: [u8; 4] = [0x50, 0x2a, 0x4d, 0x18];
/// The prefix of the run that nothing disturbs; all of them have its length.
pub(super) const WHOLE: &str = "w000-";
/// `d1`, and `d2` on top of it, both with something in them. `new` comes by the job.
const DISKS: [&str; 3] = ["d1", "d2", "new"];
const MEDIA: [&str; 2] = ["m1", "m2"];
const ROOTS: [&str; 3] = ["pool", "other", "archive"];
const FOLDERS: [&str; 4] = ["disks", "media", "trash", "adopt"];

/// A hash for each file.
type Hashes = BTreeMap<String, u64>;

/// All that there is of one run: names, content and records.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Picture {
    files: Hashes,
    records: BTreeMap<String, Value>,
}

impl Picture {
    /// What there is of a disk: what a guest sees, and its record.
    pub(super) fn of(&self, disk: &str) -> (Option<u64>, Option<&Value>) {
        let file = format!("pool/disks/{disk}.qcow2");
        (self.files.get(&file).copied(), self.records.get(disk))
    }
}

/// What a run begins with.
struct Stand {
    files: Vec<(PathBuf, Vec<u8>)>,
    records: BTreeMap<String, Value>,
}

pub(super) struct Runs<'a> {
    pub(super) site: &'a Site,
    pub(super) case: Case,
    /// None if it must be made anew each time.
    stand: Option<Stand>,
    /// What a guest sees in the files with these hashes.
    shown: Mutex<BTreeMap<Hashes, Hashes>>,
}

impl<'a> Runs<'a> {
    /// With the first run begun.
    pub(super) async fn new(site: &'a Site, case: Case) -> Self {
        make(site, case, WHOLE).await;
        let files: Vec<_> = files(site, WHOLE).collect();
        let is_packed = files.iter().any(|(_, bytes)| bytes.starts_with(&PACKED));
        let stand = Stand {
            files,
            records: records(site, WHOLE).await,
        };
        Self {
            site,
            case,
            stand: (!is_packed).then_some(stand),
            shown: Mutex::default(),
        }
    }

    pub(super) async fn begin(&self, p: &str) {
        match &self.stand {
            Some(stand) => stand.copy(self.site, p).await,
            None => make(self.site, self.case, p).await,
        }
    }

    pub(super) async fn picture(&self, p: &str) -> Picture {
        let mut pictured = BTreeMap::new();
        for (path, mut bytes) in files(self.site, p) {
            let folder = path.parent().unwrap().to_str().unwrap();
            let (_, name) = path
                .file_name()
                .unwrap()
                .to_str()
                .unwrap()
                .split_once(p)
                .unwrap();
            // In the trash the name goes on with the job and its claim.
            let name = match folder.ends_with("trash") {
                true => name.split('.').next().unwrap(),
                false => name,
            };
            if bytes.starts_with(&PACKED) {
                bytes = zstd::decode_all(&bytes[..]).unwrap();
            }
            rename(&mut bytes, p, "?????");
            let shown = format!("{folder}/{name}");
            let before = pictured.insert(shown.clone(), hash(&bytes));
            assert_eq!(before, None, "{shown} is there twice");
        }
        let mut records = records(self.site, p).await;
        records.values_mut().for_each(bare);
        Picture {
            files: match self.case.is_in_place {
                true => self.shown(pictured, p),
                false => pictured,
            },
            records,
        }
    }

    /// The same, with what a guest sees for what the disks' files hold.
    fn shown(&self, files: Hashes, p: &str) -> Hashes {
        let mut shown = self.shown.lock().unwrap();
        let seen = shown.entry(files.clone()).or_insert_with(|| {
            let look = |(file, hash): (String, u64)| match file.strip_prefix("pool/disks/") {
                Some(name) => {
                    let (_, format) = name.split_once('.').unwrap();
                    let seen = self.site.content(&format!("{p}{name}"), format);
                    (file, seen)
                }
                None => (file, hash),
            };
            files.into_iter().map(look).collect()
        });
        seen.clone()
    }
}

impl Stand {
    /// The same under other names.
    async fn copy(&self, site: &Site, p: &str) {
        for (path, bytes) in &self.files {
            let path = path.to_str().unwrap().replace(WHOLE, p);
            let mut bytes = bytes.clone();
            rename(&mut bytes, WHOLE, p);
            fs::write(site.dir.path().join(path), bytes).unwrap();
        }
        for (id, record) in &self.records {
            let text = record.to_string().replace(WHOLE, p);
            if DISKS.contains(&id.as_str()) {
                let record = serde_json::from_str(&text).unwrap();
                let id = format!("{p}{id}").parse().unwrap();
                site.store.disks.create(&id, record).await.unwrap();
            } else {
                let record = serde_json::from_str(&text).unwrap();
                let id = format!("{p}{id}").parse().unwrap();
                site.store.media.create(&id, record).await.unwrap();
            }
        }
    }
}

async fn make(site: &Site, case: Case, p: &str) {
    site.filled_disk(&format!("{p}d1")).await;
    let mut overlay = json!({ "disk": format!("{p}d2"), "backing": format!("{p}d1") });
    if case.task == "resize" {
        // Small clusters need more tables to grow.
        overlay["qcow2"] = json!({ "cluster_size": "4KiB" });
    }
    site.done(&format!("{p}make"), "create_disk", overlay).await;
    site.write(&format!("{p}d2.qcow2"), "qcow2", "write -P 9 2M 64k");
    match case.task {
        "delete_media" => site.filled_medium(&format!("{p}m1")).await,
        "adopt_disk" => site.foreign_overlay(&format!("{p}x"), &format!("{p}d1")),
        "adopt_media" => {
            fs::create_dir_all(site.path("adopt")).unwrap();
            fs::write(site.path("adopt").join(format!("{p}y")), [5; 4096]).unwrap();
        }
        _ => {}
    }
    for (number, (task, params)) in (case.before)(p).into_iter().enumerate() {
        site.done(&format!("{p}before-{number}"), task, params)
            .await;
    }
    let file = format!("{p}d2.qcow2");
    match case.task {
        "revert_snapshot" => site.write(&file, "qcow2", "write -P 4 3M 64k"),
        "check_disk" => damage(site, &file),
        _ => {}
    }
}

/// The files of a run, by their paths below the folder of all pools.
fn files(site: &Site, p: &str) -> impl Iterator<Item = (PathBuf, Vec<u8>)> {
    let all = site.dir.path();
    let folders = ROOTS
        .iter()
        .flat_map(|root| FOLDERS.map(|folder| Path::new(root).join(folder)));
    let entries = folders.filter_map(move |folder| fs::read_dir(all.join(folder)).ok());
    let paths = entries.flatten().map(|entry| entry.unwrap().path());
    let own = move |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().contains(p);
    paths.filter(own).map(move |path| {
        let bytes = fs::read(&path).unwrap();
        (path.strip_prefix(all).unwrap().to_owned(), bytes)
    })
}

async fn records(site: &Site, p: &str) -> BTreeMap<String, Value> {
    let mut records = BTreeMap::new();
    for id in DISKS {
        if let Some(disk) = site.disk(&format!("{p}{id}")).await {
            records.insert(id.to_owned(), serde_json::to_value(disk.record).unwrap());
        }
    }
    for id in MEDIA {
        if let Some(medium) = site.medium(&format!("{p}{id}")).await {
            records.insert(id.to_owned(), serde_json::to_value(medium.record).unwrap());
        }
    }
    let plain = |value: Value| match p {
        WHOLE => value,
        p => serde_json::from_str(&value.to_string().replace(p, WHOLE)).unwrap(),
    };
    records
        .into_iter()
        .map(|(id, record)| (id, plain(record)))
        .collect()
}

/// An overlay names its backing, so the run's prefix is in it too.
fn rename(bytes: &mut [u8], from: &str, to: &str) {
    let ends = bytes.len().min(HEADER_BYTES);
    let place = |bytes: &[u8]| {
        let mut windows = bytes[..ends].windows(from.len());
        windows.position(|text| text == from.as_bytes())
    };
    while let Some(at) = place(bytes) {
        bytes[at..at + from.len()].copy_from_slice(to.as_bytes());
    }
}

fn hash(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    hasher.finish()
}

/// Takes from a record what is another number each time.
fn bare(record: &mut Value) {
    let fields = record.as_object_mut().unwrap();
    for field in ["epoch", "updated_at", "owner_job", "actual_size"] {
        fields.remove(field);
    }
}
