//! What long jobs leave to others: they wait while the machine is short, keep to their pool's
//! bandwidth, and are in nobody's way who's urgent.

use super::Site;
use serde_json::{Value, json};
use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};
use virtbus_testbed::until;
use virtbus_wire::state::{JobState, WaitReason};

const HIGH: &str = "storage.default.high";
const LOW: &str = "storage.default.low";

fn job(id: &str, task: &str, params: Value) -> Value {
    json!({ "id": id, "task": task, "params": params })
}

/// A raw disk with so many MiB in it that can't be made smaller.
async fn full_disk(site: &Site, id: &str, mib: u64) {
    let params = json!({ "disk": id, "size": format!("{mib}MiB"), "format": "raw" });
    let make = format!("make-{id}");
    site.succeeds(HIGH, job(&make, "create_disk", params)).await;
    let disk = site.dir.path().join(format!("pool/disks/{id}.raw"));
    let filled = Command::new("dd")
        .args(["if=/dev/urandom", &format!("of={}", disk.display())])
        .args([
            "bs=1M",
            &format!("count={mib}"),
            "conv=notrunc",
            "status=none",
        ])
        .stdin(Stdio::null())
        .status();
    assert!(filled.unwrap().success());
}

/// How long a job took from its first start to its end.
async fn took(site: &Site, id: &str) -> Duration {
    let record = site.ended(id).await;
    let JobState::Succeeded(ended, _) = &record.state else {
        panic!("{id}: {:?}", record.state);
    };
    ended.at.since(record.started_at.unwrap())
}

/// Has the kernel say what share of the time something waits.
fn presses(folder: &Path, io: &str, memory: &str) {
    for (file, percent) in [("io", io), ("memory", memory)] {
        let text = format!("some avg10={percent} avg60=0.00 avg300=0.00 total=1\n");
        let new = folder.join("new");
        fs::write(&new, text).unwrap();
        fs::rename(new, folder.join(file)).unwrap();
    }
}

fn is_for_room(reason: &WaitReason) -> bool {
    match reason {
        WaitReason::Capacity { .. } => true,
        WaitReason::Dependency { .. }
        | WaitReason::Lock { .. }
        | WaitReason::Time { .. }
        | WaitReason::Tenant { .. }
        | WaitReason::Transfer { .. } => false,
    }
}

#[tokio::test]
async fn long_jobs_wait_while_the_machine_is_short_and_others_go_on() {
    let site = Site::start().await;
    let kernel = site.dir.path().join("pressure");
    fs::create_dir(&kernel).unwrap();
    presses(&kernel, "0.00", "0.00");
    let mut command = site.command("st-1");
    command.env("VIRTBUS__WORK__PRESSURE__FOLDER", &kernel);
    let _service = super::Service(command.spawn().unwrap());
    let logs = async |what: &str, times: usize| {
        until("what the service says of pressure", async || {
            let seen = site.log("st-1").matches(what).count();
            if seen >= times { Ok(()) } else { Err(seen) }
        })
        .await;
    };
    full_disk(&site, "d1", 1).await;
    for (time, (io, memory)) in [("95.00", "0.00"), ("0.00", "35.00")]
        .into_iter()
        .enumerate()
    {
        presses(&kernel, io, memory);
        logs("long jobs wait", time + 1).await;
        let copy = |id: &str| {
            let params = json!({ "disk": "d1", "to": id, "format": "qcow2" });
            job(id, "convert", params)
        };
        let (early, late) = (format!("early{time}"), format!("late{time}"));
        site.publish(LOW, copy(&early)).await;
        // It waits for core to say that there's room again, and nobody waits behind it.
        until("the wait of a long job", async || {
            let record = site.jobs.get(&early.parse().unwrap()).await.unwrap();
            match record.map(|entry| entry.value.state) {
                Some(JobState::Waiting(waiting)) if is_for_room(&waiting.on) => Ok(()),
                other => Err(other),
            }
        })
        .await;
        let params = json!({ "disk": format!("new{time}"), "size": "1MiB" });
        let create = job(&format!("new{time}"), "create_disk", params);
        site.succeeds(LOW, create).await;
        presses(&kernel, "0.00", "0.00");
        logs("long jobs start again", time + 1).await;
        site.succeeds(LOW, copy(&late)).await;
    }
}

#[tokio::test]
async fn copies_keep_to_the_bandwidth_of_their_pool() {
    /// What qemu-img writes at once before it's held back, and one more.
    const MIB: u64 = 5;
    let site = Site::start().await;
    let mut command = site.command("st-1");
    command.env("VIRTBUS__POOLS__DEFAULT__BANDWIDTH", "2MiB");
    command.env(
        "VIRTBUS__POOLS__DEFAULT__ARCHIVE",
        site.dir.path().join("archive"),
    );
    let _service = super::Service(command.spawn().unwrap());
    full_disk(&site, "d1", MIB).await;
    full_disk(&site, "d2", MIB).await;
    let by_tool = json!({ "disk": "d1", "to": "d3", "format": "qcow2" });
    site.publish(LOW, job("tool", "convert", by_tool)).await;
    let by_hand = json!({ "disk": "d2" });
    site.publish(LOW, job("hand", "archive_disk", by_hand))
        .await;
    for id in ["tool", "hand"] {
        let took = took(&site, id).await;
        assert!(took > Duration::from_secs(1), "{id} took {took:?}");
    }
}

/// How long new disks take on the urgent queue, from their publication to their end: in the middle.
async fn time_of_new_disks(site: &Site, name: &str) -> Duration {
    let mut times = Vec::new();
    for at in 0..9 {
        let disk = format!("{name}{at}");
        let params = json!({ "disk": &disk, "size": "1GiB" });
        let began = Instant::now();
        site.succeeds(HIGH, job(&disk, "create_disk", params)).await;
        times.push(began.elapsed());
    }
    times.sort();
    times[times.len() / 2]
}

/// How many tools convert something in this folder now.
fn conversions(folder: &str) -> usize {
    let entries = fs::read_dir("/proc").unwrap();
    let lines = entries.filter_map(|entry| fs::read(entry.ok()?.path().join("cmdline")).ok());
    let is_it = |line: &Vec<u8>| {
        let line = String::from_utf8_lossy(line);
        line.contains("qemu-img\0convert\0") && line.contains(folder)
    };
    lines.filter(is_it).count()
}

#[tokio::test]
async fn two_conversions_do_not_slow_a_new_disk_on_high() {
    /// How often it's measured: whoever else wants the processors wants more of them at one moment
    /// than at the next.
    const ROUNDS: u32 = 4;
    /// Conversions that are there to be done, of which two run at once: more than there's time for.
    const WAITING: u32 = 40;
    let site = Site::start().await;
    let mut command = site.command("st-1");
    command
        .env("VIRTBUS__WORK__SLOTS", "4")
        .env("VIRTBUS__WORK__LONG_MAX", "2")
        .env("VIRTBUS__WORK__PRESSURE__IO", "0")
        .env("VIRTBUS__WORK__PRESSURE__MEMORY", "0");
    let _service = super::Service(command.spawn().unwrap());
    full_disk(&site, "d1", 96).await;
    let folder = site.dir.path().join("pool/disks");
    let folder = folder.to_str().unwrap();
    for round in 0..ROUNDS {
        let alone = time_of_new_disks(&site, &format!("alone{round}-")).await;
        for number in 0..WAITING {
            let id = format!("copy{round}-{number}");
            let copy = json!({ "disk": "d1", "to": id, "format": "qcow2", "compress": "zlib" });
            site.publish(LOW, job(&id, "convert", copy)).await;
        }
        until("two conversions", async || match conversions(folder) {
            2 => Ok(()),
            other => Err(other),
        })
        .await;
        let beside = time_of_new_disks(&site, &format!("beside{round}-")).await;
        assert!(conversions(folder) > 0, "they were over too early");
        println!("a new disk takes {alone:?} alone, {beside:?} beside two conversions");
        // A conversion takes seconds: who waits for one is far beyond that, in every round.
        if beside < alone * 4 + Duration::from_millis(250) {
            return;
        }
    }
    panic!("new disks are slow beside conversions");
}
