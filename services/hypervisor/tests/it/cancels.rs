//! A job is cancelled while its service is at it: it ends, and all is as it was.

use crate::{
    cuts::told,
    guests::{Guests, payload, template},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use std::{fs, path::Path};
use tokio::runtime::Handle;
use virtbus_bus::Bucket;
use virtbus_hypervisor::{Moment, Step};
use virtbus_testbed::until;
use virtbus_wire::StateName;

const QUEUE: &str = "hypervisor.hv-test.default";
/// What a service writes that stands still at its moment.
const HELD: &str = "held";

/// The word to a service that it's to stand still at this moment.
pub(crate) fn held(task: &str, moment: Moment) -> String {
    format!("{HELD} at {}", told(task, moment))
}

/// Stands still until the file is gone that says so.
pub(crate) fn hold(fate: &Path) {
    tokio::task::block_in_place(|| {
        fs::write(fate, HELD).unwrap();
        let goes_on = async || match fate.exists() {
            true => Err("told to stand still"),
            false => Ok(()),
        };
        Handle::current().block_on(until("the word to go on", goes_on));
    });
}

/// Each record of a bucket, without who wrote it and when.
async fn said<T>(bucket: Bucket<T>) -> Vec<(String, Value)>
where
    T: Serialize + DeserializeOwned + Send + Sync,
{
    let mut all = Vec::new();
    for (name, entry) in bucket.all().await.unwrap() {
        let mut record = serde_json::to_value(entry.value).unwrap();
        for field in ["owner_job", "epoch", "updated_at", "last_used_at"] {
            record.as_object_mut().unwrap().remove(field);
        }
        all.push((name, record));
    }
    all.sort_by(|one, other| one.0.cmp(&other.0));
    all
}

/// All that is so: as the catalogue has it, as libvirt has it, and the files.
async fn sight(guests: &Guests) -> Value {
    let known = guests.libvirt.virsh(&["list", "--all"]).stdout;
    let files = fs::read_dir(guests.file("")).unwrap().flatten();
    let mut files: Vec<String> = files
        .map(|file| file.file_name().into_string().unwrap())
        .collect();
    files.sort();
    json!({
        "disks": said(guests.site.disks()).await,
        "domains": said(guests.site.domains()).await,
        "libvirt": String::from_utf8_lossy(&known),
        "files": files,
    })
}

/// Cancels a job at a moment of it.
async fn cancelled_at(guests: &mut Guests, task: &str, params: &Value, at: Moment) {
    let (fate, before) = (guests.be_mortal().await, sight(guests).await);
    fs::write(&fate, held(task, at)).unwrap();
    let id = guests.site.publish(QUEUE, payload(task, params)).await;
    until("the moment", async || match fs::read_to_string(&fate) {
        Ok(said) if said == HELD => Ok(()),
        other => Err((other, guests.site.record(&id).await)),
    })
    .await;
    guests.site.cancel(&id).await;
    fs::remove_file(fate).unwrap();
    let state = guests.site.ended(&id).await.state;
    assert_eq!(state.name(), StateName::Cancelled, "{task}: {state:?}");
    let after = sight(guests).await;
    for of in ["libvirt", "files", "domains", "disks"] {
        assert_eq!(after[of], before[of], "{of}: {task} {params}, {at:?}");
    }
}

#[tokio::test]
async fn a_job_that_is_cancelled_before_its_effect_leaves_all_as_it_was() {
    let mut guests = Guests::start().await;
    guests.disk("base").await;
    guests.overlay("web1", "base").await;
    let start = json!({"domain": "web1", "template": template(&["web1"])});
    guests.done("start_domain", start).await;
    let intended = Moment::After(Step::Intend);
    let just = || json!({"domain": "web1"});
    let of = |snapshot: &str| json!({"domain": "web1", "snapshot": snapshot});
    let overlays = || json!({"domain": "web1", "overlays": {"web1": "web1-a"}});
    let destroy = || json!({"domain": "web1", "mode": "destroy"});
    // Its guest hears nothing, and by then it was asked.
    let asked = json!({"domain": "web1", "deadline_s": 3600});
    let waits = Moment::Waited(Step::Work, 6);
    cancelled_at(&mut guests, "stop_domain", &asked, waits).await;
    for (task, params) in [
        ("create_snapshot", overlays()),
        ("create_snapshot", of("s1")),
        (
            "resize",
            json!({"domain": "web1", "disk": "web1", "size": "8MiB"}),
        ),
        ("commit", json!({"domain": "web1", "disk": "web1"})),
        ("reset_domain", just()),
        ("stop_domain", destroy()),
    ] {
        cancelled_at(&mut guests, task, &params, intended).await;
    }
    guests.done("create_snapshot", of("s1")).await;
    for task in ["revert_snapshot", "delete_snapshot"] {
        cancelled_at(&mut guests, task, &of("s1"), intended).await;
    }
    guests.done("stop_domain", destroy()).await;
    let other = json!({"domain": "web1", "template": template(&[])});
    for (task, params) in [
        ("check_domain", just()),
        ("start_domain", just()),
        ("start_domain", other),
        ("create_snapshot", overlays()),
        ("create_snapshot", of("s2")),
        ("revert_snapshot", of("s1")),
        ("delete_snapshot", of("s1")),
        ("delete_domain", just()),
    ] {
        cancelled_at(&mut guests, task, &params, intended).await;
    }
}
