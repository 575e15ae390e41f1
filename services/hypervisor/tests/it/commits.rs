//! Commits while the domain runs: whatever ends one, the disk shows what it showed, and the disk
//! below is as before, whole, or known to be broken.

use crate::guests::{Guests, payload, template};
use serde_json::{Value, json};
use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt as _,
    process::Command,
};
use virtbus_hypervisor::{Moment, Step};
use virtbus_wire::{
    JobId, JobState, StateName,
    catalog::{DiskRecord, DiskState},
    protocol::lock::Mode,
};

const QUEUE: &str = "hypervisor.hv-test.default";
/// What only the disk holds, not the one below.
const PATTERN: &str = "-P 0x5a 512k 64k";

fn of(number: u32) -> (String, String) {
    (format!("web{number}"), format!("base{number}"))
}

/// A domain that runs, with something on its disk that isn't on the one below.
async fn running(guests: &Guests, number: u32) -> Value {
    let (web, base) = of(number);
    guests.disk(&base).await;
    guests.overlay(&web, &base).await;
    assert!(qemu_io(guests, &web, "write", &[]).contains("wrote 65536"));
    guests.site.done(QUEUE, guests.start_of(&web)).await;
    json!({"domain": web, "disk": web})
}

fn qemu_io(guests: &Guests, disk: &str, act: &str, options: &[&str]) -> String {
    let mut command = Command::new("qemu-io");
    command
        .args(options)
        .args(["-f", "qcow2", "-c", &format!("{act} {PATTERN}")]);
    command.arg(guests.file(&format!("{disk}.qcow2")));
    let said = command.output().unwrap();
    String::from_utf8([said.stdout, said.stderr].concat()).unwrap()
}

/// Whether the disk shows it.
fn shows(guests: &Guests, disk: &str) -> bool {
    let said = qemu_io(guests, disk, "read", &["-r", "-U"]);
    assert!(said.contains("read 65536/65536"), "{disk}: {said}");
    !said.contains("failed")
}

/// What must be so at any time.
async fn is_sane(guests: &Guests, number: u32, when: &str) -> (DiskRecord, DiskRecord) {
    let (web, base) = of(number);
    let (top, below) = (
        guests.disk_record(&web).await,
        guests.disk_record(&base).await,
    );
    if top.state == DiskState::Ready {
        assert!(shows(guests, &web), "{when}: what was on the disk is gone");
    }
    (top, below)
}

/// Everything as after a commit that nothing disturbed.
async fn is_whole(guests: &Guests, number: u32, when: &str) {
    let (web, base) = of(number);
    let (top, below) = is_sane(guests, number, when).await;
    assert_eq!(
        (top.state, below.state),
        (DiskState::Ready, DiskState::Ready),
        "{when}"
    );
    assert!(shows(guests, &base), "{when}");
    let xml = guests
        .libvirt
        .virsh(&["dumpxml", "--inactive", &web])
        .stdout;
    let xml = String::from_utf8(xml).unwrap();
    assert!(
        xml.contains(&format!("/disks/{web}.qcow2'")),
        "{when}: {xml}"
    );
}

/// What comes after the death of a service.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Then {
    /// The next one.
    Next,
    /// The end of the domain, and the next one.
    Off,
    /// A cancel, which the next one finds.
    Cancel,
}

/// Has a service die at a moment of a commit. False if it didn't.
async fn cut(guests: &mut Guests, number: u32, at: Moment, then: Then) -> bool {
    let (web, base) = of(number);
    let when = format!("{at:?}, {then:?}");
    let commit = running(guests, number).await;
    let (id, is_dead) = guests.killed_at("commit", &commit, at).await;
    let (_, below) = is_sane(guests, number, &when).await;
    let copies = guests.libvirt.virsh(&["blockjob", &web, "vda"]).stdout;
    if !copies.trim_ascii().is_empty() {
        assert_eq!(
            below.state,
            DiskState::Changing,
            "{when}: it's being written"
        );
    }
    if is_dead {
        match then {
            Then::Next => {}
            Then::Off => assert!(guests.libvirt.virsh(&["destroy", &web]).status.success()),
            Then::Cancel => guests.site.cancel_dead(&id).await,
        }
        guests.restart().await;
    }
    let record = guests.site.mended(&id).await;
    let (top, below) = is_sane(guests, number, &when).await;
    assert_eq!(guests.parts(), [""; 0], "{when}");
    match (&record.state, then) {
        (JobState::Succeeded(..), _) => is_whole(guests, number, &when).await,
        (JobState::Failed(_, error), Then::Off) => {
            assert_eq!(error.code.as_str(), "domain.wrong_state", "{when}");
            assert_eq!(top.state, DiskState::Ready, "{when}");
            assert!(
                below.state == DiskState::Broken || !shows(guests, &base),
                "{when}"
            );
        }
        (JobState::Cancelled(..), Then::Cancel) => {
            assert_eq!(
                (top.state, below.state),
                (DiskState::Ready, DiskState::Ready),
                "{when}"
            );
            assert!(!shows(guests, &base), "{when}");
        }
        (state, _) => panic!("{when}: {state:?}"),
    }
    // Whatever it was, it goes on, and is put right.
    if is_dead && then == Then::Off {
        guests.done("start_domain", json!({"domain": web})).await;
    }
    if then != Then::Next {
        guests.done("commit", commit).await;
        is_whole(guests, number, &when).await;
    }
    guests.end(&web);
    is_dead
}

/// Has a service die at every so many moments of these steps.
async fn cut_everywhere(then: Then, steps: &[Step], every: usize) {
    let mut guests = Guests::start().await;
    let mut number = 0;
    for step in steps {
        for waits in (1..).step_by(every) {
            number += 1;
            let at = Moment::Waited(*step, waits);
            if !cut(&mut guests, number, at, then).await {
                break;
            }
        }
    }
}

#[tokio::test]
async fn a_commit_whose_service_dies_goes_on() {
    cut_everywhere(Then::Next, &[Step::Effect, Step::Publish], 4).await;
}

#[tokio::test]
async fn a_commit_whose_domain_goes_off_leaves_the_disk_whole() {
    cut_everywhere(Then::Off, &[Step::Effect], 3).await;
}

#[tokio::test]
async fn a_commit_that_was_begun_is_not_cancelled() {
    cut_everywhere(Then::Cancel, &[Step::Intend, Step::Effect], 4).await;
}

#[tokio::test]
async fn a_disk_below_grows_with_what_is_committed_to_it() {
    let guests = Guests::start().await;
    let commit = running(&guests, 1).await;
    let larger = json!({"domain": "web1", "disk": "web1", "size": "8MiB"});
    guests.done("resize", larger).await;
    guests.done("commit", commit).await;
    assert_eq!(
        guests.disk_record("base1").await.virtual_size,
        Some(8 << 20)
    );
    guests
        .done("stop_domain", json!({"domain": "web1", "mode": "destroy"}))
        .await;
    guests.done("start_domain", json!({"domain": "web1"})).await;
}

#[tokio::test]
async fn a_disk_with_snapshots_or_below_which_another_job_works_is_not_committed() {
    let guests = Guests::start().await;
    let commit = running(&guests, 1).await;
    let s1 = json!({"domain": "web1", "snapshot": "s1"});
    guests.done("create_snapshot", s1.clone()).await;
    let error = guests.site.refused(QUEUE, payload("commit", &commit)).await;
    assert_eq!(error.code.as_str(), "disk.wrong_state");
    assert_eq!(guests.disk_record("base1").await.state, DiskState::Ready);
    guests.done("delete_snapshot", s1).await;
    let mut below = guests.disk_record("base1").await;
    below.state = DiskState::Changing;
    guests.site.disks().put("base1", &below).await.unwrap();
    let id = guests.site.publish(QUEUE, payload("commit", &commit)).await;
    assert_eq!(guests.site.code_of_wait(&id).await, "disk.busy");
    assert_eq!(guests.disk_record("web1").await.state, DiskState::Ready);
    let record = guests.site.record(&id).await.unwrap();
    assert_eq!(record.state.name(), StateName::Waiting);
}

/// Lets QEMU open a disk's file for writing, or not.
fn set_writable(guests: &Guests, disk: &str, is_writable: bool) {
    let mode = if is_writable { 0o644 } else { 0o444 };
    let file = guests.file(&format!("{disk}.qcow2"));
    fs::set_permissions(file, Permissions::from_mode(mode)).unwrap();
}

#[tokio::test]
async fn a_commit_that_cannot_write_leaves_all_as_it_was_and_is_tried_again() {
    let guests = Guests::start().await;
    let commit = running(&guests, 1).await;
    set_writable(&guests, "base1", false);
    let id = guests.site.publish(QUEUE, payload("commit", &commit)).await;
    assert_eq!(guests.site.code_of_wait(&id).await, "tool.failed");
    let (top, below) = is_sane(&guests, 1, "refused").await;
    assert_eq!(
        (top.state, below.state),
        (DiskState::Ready, DiskState::Ready)
    );
    set_writable(&guests, "base1", true);
    let state = guests.site.mended(&id).await.state;
    assert_eq!(state.name(), StateName::Succeeded, "{state:?}");
    is_whole(&guests, 1, "afterwards").await;
}

/// Has the service of a commit die, and its domain go off, as soon as the copy may have begun. How
/// many waits that takes isn't always the same.
async fn cut_in_the_copy(guests: &mut Guests, commit: &Value) -> JobId {
    for waits in 3.. {
        let at = Moment::Waited(Step::Effect, waits);
        let (id, is_dead) = guests.killed_at("commit", commit, at).await;
        assert!(is_dead, "{at:?}: it lives");
        if guests.disk_record("web1").await.state == DiskState::Changing {
            let off = guests.libvirt.virsh(&["destroy", "web1"]);
            assert!(off.status.success(), "{off:?}");
            return id;
        }
        guests.restart().await;
        let state = guests.site.mended(&id).await.state;
        assert_eq!(state.name(), StateName::Succeeded, "{state:?}");
    }
    unreachable!("a step has an end")
}

#[tokio::test]
async fn a_disk_that_is_half_written_stays_broken_until_a_commit_is_through() {
    let mut guests = Guests::start().await;
    let commit = running(&guests, 1).await;
    let id = cut_in_the_copy(&mut guests, &commit).await;
    guests.restart().await;
    let state = guests.site.mended(&id).await.state;
    assert_eq!(state.name(), StateName::Failed, "{state:?}");
    assert_eq!(guests.disk_record("base1").await.state, DiskState::Broken);
    let other = json!({"domain": "web2", "template": template(&["base1"])});
    let error = guests
        .site
        .refused(QUEUE, payload("start_domain", &other))
        .await;
    assert_eq!(error.code.as_str(), "disk.wrong_state");

    guests.done("start_domain", json!({"domain": "web1"})).await;
    set_writable(&guests, "base1", false);
    let id = guests.site.publish(QUEUE, payload("commit", &commit)).await;
    assert_eq!(guests.site.code_of_wait(&id).await, "tool.failed");
    assert_eq!(guests.disk_record("base1").await.state, DiskState::Broken);
    guests
        .done("stop_domain", json!({"domain": "web1", "mode": "destroy"}))
        .await;
    guests.done("start_domain", json!({"domain": "web1"})).await;
    set_writable(&guests, "base1", true);
    guests.done("commit", commit).await;
    is_whole(&guests, 1, "afterwards").await;
}

#[tokio::test]
async fn what_other_jobs_work_on_is_waited_for() {
    let guests = Guests::start().await;
    let commit = running(&guests, 1).await;
    // A copy of the disk below, or a new disk on top of it.
    let reader = guests.site.lock("disk.base1", Mode::Shared).await;
    let waits = async |task: &str, params: &Value, disk: &str| {
        let id = guests.site.publish(QUEUE, payload(task, params)).await;
        let (resource, holder) = guests.site.lock_waited_for(&id).await;
        assert_eq!(resource, format!("disk.{disk}"), "{task}");
        assert_eq!(holder, format!("job.{reader}"), "{task}");
        id
    };
    let id = waits("commit", &commit, "base1").await;
    assert_eq!(guests.disk_record("base1").await.state, DiskState::Ready);
    guests.site.unlock("disk.base1").await;
    let state = guests.site.mended(&id).await.state;
    assert_eq!(state.name(), StateName::Succeeded, "{state:?}");

    // While the domain runs, its disks are its own; once it's off, they are anybody's.
    guests
        .site
        .hold_lock("disk.web1", Mode::Shared, &reader)
        .await;
    let of = |snapshot: &str| json!({"domain": "web1", "snapshot": snapshot});
    guests.done("create_snapshot", of("s1")).await;
    guests
        .done("stop_domain", json!({"domain": "web1", "mode": "destroy"}))
        .await;
    for (task, params) in [
        ("create_snapshot", of("s2")),
        (
            "create_snapshot",
            json!({"domain": "web1", "overlays": {"web1": "web1-a"}}),
        ),
        ("revert_snapshot", of("s1")),
        ("delete_snapshot", of("s1")),
    ] {
        waits(task, &params, "web1").await;
    }
}
