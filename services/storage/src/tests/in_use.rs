//! Disks and media that somebody uses, by what the catalogue says: a domain, or who downloads
//! them. Each job in their way is refused, or waits if it's to; any other is let through.

use super::{
    claims::drive,
    site::{MIB, Site},
};
use crate::task::Step;
use serde_json::{Value, json};
use virtbus_wire::{
    Code, Timestamp,
    catalog::{
        InUseBy,
        UseMode::{self, Exclusive, Shared},
    },
    state::WaitReason,
};
use virtbus_worker::{Stop, process};

/// The snapshot of `d3`.
const SNAPSHOT: &str = "s";

/// The job's task and parameters; what is used, and what the job wants of it.
type Row = (&'static str, Value, &'static str, UseMode);

/// What a disk is, but for what all have in common.
fn disks() -> [(&'static str, Value); 7] {
    [
        ("d1", json!({ "children": ["d2"] })),
        ("d2", json!({ "backing": "d1" })),
        ("d3", json!({ "snapshots": [SNAPSHOT] })),
        ("d4", json!({})),
        ("d5", json!({ "children": ["d6", "d7"] })),
        ("d6", json!({ "backing": "d5", "state": "archived" })),
        ("d7", json!({ "backing": "d5", "state": "trashed" })),
    ]
}

/// Records alone: a job is refused before it looks at any file, but for what is to be adopted.
async fn world(site: &Site) {
    for (id, fields) in disks() {
        let mut record = json!({ "pool": "default", "format": "qcow2", "virtual_size": 4 * MIB,
                                 "state": "ready", "updated_at": Timestamp::now() });
        let record_fields = record.as_object_mut().unwrap();
        record_fields.extend(fields.as_object().unwrap().clone());
        let record = serde_json::from_value(record).unwrap();
        let disks = &site.store.disks;
        disks.create(&id.parse().unwrap(), record).await.unwrap();
    }
    site.filled_medium("m1").await;
    std::fs::create_dir_all(site.path("adopt")).unwrap();
    std::fs::write(site.path("adopt/x"), "x").unwrap();
}

/// What makes disks.
fn making() -> Vec<Row> {
    let on = json!({ "disk": "n", "backing": "d2" });
    let overlay = json!({ "disk": "d2", "overlay": "n" });
    let convert = json!({ "disk": "d2", "to": "n", "format": "raw" });
    let adopt = json!({ "disk": "n", "format": "qcow2", "file": "x", "backing": "d2" });
    vec![
        ("create_disk", on.clone(), "d2", Shared),
        ("create_disk", on, "d1", Shared),
        ("create_snapshot", overlay.clone(), "d2", Exclusive),
        ("create_snapshot", overlay, "d1", Shared),
        (
            "create_snapshot",
            json!({ "disk": "d4", "base": "n" }),
            "d4",
            Exclusive,
        ),
        ("convert", convert.clone(), "d2", Shared),
        ("convert", convert, "d1", Shared),
        ("adopt_disk", adopt.clone(), "d2", Shared),
        ("adopt_disk", adopt, "d1", Shared),
    ]
}

/// What changes disks.
fn changing() -> Vec<Row> {
    let named = |disk: &str| json!({ "disk": disk, "snapshot": SNAPSHOT });
    let size = |disk: &str| json!({ "disk": disk, "size": "9MiB" });
    let onto = json!({ "disk": "d2", "backing": "d4" });
    let flat = json!({ "disk": "d2", "backing": null });
    let commit = json!({ "disk": "d2" });
    let committed = json!({ "disk": "d2", "delete": true });
    let repair = |disk: &str| json!({ "disk": disk, "repair": "leaks" });
    vec![
        ("create_snapshot", named("d4"), "d4", Exclusive),
        ("create_snapshot", named("d2"), "d1", Shared),
        ("revert_snapshot", named("d3"), "d3", Exclusive),
        ("delete_snapshot", named("d3"), "d3", Exclusive),
        ("resize", size("d4"), "d4", Exclusive),
        ("resize", size("d2"), "d1", Shared),
        ("commit", commit.clone(), "d2", Exclusive),
        ("commit", commit, "d1", Exclusive),
        ("commit", committed.clone(), "d2", Exclusive),
        ("commit", committed, "d1", Exclusive),
        ("rebase", onto.clone(), "d2", Exclusive),
        ("rebase", onto.clone(), "d1", Shared),
        ("rebase", onto, "d4", Shared),
        ("rebase", flat.clone(), "d2", Exclusive),
        ("rebase", flat, "d1", Shared),
        ("sparsify", json!({ "disk": "d4" }), "d4", Exclusive),
        ("sparsify", json!({ "disk": "d2" }), "d1", Shared),
        ("check_disk", json!({ "disk": "d4" }), "d4", Shared),
        ("check_disk", json!({ "disk": "d2" }), "d1", Shared),
        ("check_disk", repair("d4"), "d4", Exclusive),
        ("check_disk", repair("d2"), "d1", Shared),
    ]
}

/// What brings disks to another place, or to their end.
fn moving() -> Vec<Row> {
    let there = json!({ "disk": "d4", "pool": "other" });
    let tree = json!({ "disk": "d2", "pool": "other", "tree": true });
    let all = json!({ "disk": "d1", "tree": true });
    vec![
        ("archive_disk", json!({ "disk": "d4" }), "d4", Exclusive),
        ("archive_disk", json!({ "disk": "d2" }), "d1", Shared),
        ("unarchive_disk", json!({ "disk": "d6" }), "d5", Shared),
        ("restore_disk", json!({ "disk": "d7" }), "d5", Shared),
        ("move_disk", there, "d4", Exclusive),
        ("move_disk", tree.clone(), "d2", Exclusive),
        ("move_disk", tree, "d1", Exclusive),
        ("delete_disk", json!({ "disk": "d4" }), "d4", Exclusive),
        (
            "delete_disk",
            json!({ "disk": "d4", "mode": "wipe" }),
            "d4",
            Exclusive,
        ),
        ("delete_disk", all.clone(), "d2", Exclusive),
        ("delete_disk", all, "d1", Exclusive),
        ("delete_media", json!({ "media": "m1" }), "m1", Exclusive),
        (
            "delete_media",
            json!({ "media": "m1", "mode": "unlink" }),
            "m1",
            Exclusive,
        ),
    ]
}

/// Somebody who uses something: what a job is told of them, the holder that it waits for, and what
/// they let others do.
struct User {
    by: InUseBy,
    told: Vec<(&'static str, &'static str)>,
    holder: &'static str,
    lets: Option<UseMode>,
}

fn users() -> Vec<User> {
    let domain = |mode, lets| User {
        by: InUseBy::Domain {
            domain: "web1".parse().unwrap(),
            hypervisor: "hv-1".parse().unwrap(),
            mode,
        },
        told: vec![("domain", "web1"), ("hypervisor", "hv-1")],
        holder: "domain.web1",
        lets,
    };
    let download = |until: &str, lets| User {
        by: InUseBy::Job {
            job: "j9".parse().unwrap(),
            expires_at: until.parse().unwrap(),
        },
        told: vec![("job", "j9")],
        holder: "job.j9",
        lets,
    };
    vec![
        domain(Exclusive, None),
        domain(Shared, Some(Shared)),
        download("2999-01-01T00:00:00.000Z", Some(Shared)),
        // It's over.
        download("1999-01-01T00:00:00.000Z", Some(Exclusive)),
    ]
}

/// Has a disk or a medium used like this.
async fn used(site: &Site, id: &str, by: &[InUseBy]) {
    if let Some(medium) = site.medium(id).await {
        let mut record = medium.record.clone();
        record.in_use_by = by.to_vec();
        site.store.media.update(&medium, record).await.unwrap();
    } else {
        site.change(id, |record| record.in_use_by = by.to_vec())
            .await;
    }
}

/// What becomes of a job that would stop after its check.
async fn checked(site: &Site, task: &str, params: &Value, if_in_use: &str) -> Option<Stop> {
    let envelope = json!({ "id": "j", "task": task, "params": params, "if_in_use": if_in_use });
    let never = process::Stop::new();
    let reached = |step| match step {
        Step::Check => Err(Stop::Lost),
        Step::Work | Step::Intend | Step::Commit | Step::Effect | Step::Publish => Ok(()),
    };
    let job = site.claimed(envelope, 1);
    let ended = drive(&site.store, &job, &never, &|_| {}, &reached).await;
    ended.err().filter(|stop| *stop != Stop::Lost)
}

/// Whether a job is refused for this user.
fn is_refused(ended: Option<&Stop>, id: &str, user: &User) -> bool {
    let Some(Stop::Failed(error)) = ended else {
        return false;
    };
    let (code, key) = match id {
        "m1" => (Code::MediaInUse, "media"),
        _ => (Code::DiskInUse, "disk"),
    };
    let mut told = user.told.clone();
    told.push((key, id));
    let mut told = told.into_iter();
    let is_told =
        told.all(|(field, said)| error.detail.get(field).is_some_and(|told| told == said));
    error.code == code && !error.retryable && is_told
}

/// Whether a job waits for this user.
fn waits(ended: Option<&Stop>, id: &str, user: &User) -> bool {
    let kind = if id == "m1" { "media" } else { "disk" };
    let wanted = WaitReason::Lock {
        resource: format!("{kind}.{id}"),
        holder: Some(user.holder.to_owned()),
        since: None,
    };
    matches!(ended, Some(Stop::Wait(reason)) if *reason == wanted)
}

/// Whether nobody is in a job's way; what else is, are files that aren't there.
fn is_let_through(ended: Option<&Stop>) -> bool {
    let is_in_the_way = |stop: &Stop| match stop {
        Stop::Failed(error) => [Code::DiskInUse, Code::MediaInUse].contains(&error.code),
        Stop::Wait(_) => true,
        Stop::Stopped | Stop::Lost | Stop::Earlier(_) => false,
    };
    !ended.is_some_and(is_in_the_way)
}

#[tokio::test]
async fn what_is_used_is_in_the_way_of_each_task_that_needs_it() {
    let site = Site::start().await;
    world(&site).await;
    let mut wrong = Vec::new();
    let rows = [making(), changing(), moving()].concat();
    for (task, params, id, wants) in rows {
        for user in users() {
            used(&site, id, std::slice::from_ref(&user.by)).await;
            let is_free = user.lets == Some(Exclusive) || user.lets == Some(wants);
            for if_in_use in ["fail", "wait"] {
                let ended = checked(&site, task, &params, if_in_use).await;
                let is_right = match (is_free, if_in_use) {
                    (true, _) => is_let_through(ended.as_ref()),
                    (false, "fail") => is_refused(ended.as_ref(), id, &user),
                    (false, _) => waits(ended.as_ref(), id, &user),
                };
                if !is_right {
                    wrong.push(format!("{task} {params} with {:?}: {ended:?}", user.by));
                }
            }
        }
        used(&site, id, &[]).await;
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
