//! The service is killed between any two steps of each task; whoever takes over ends it, once.
//!
//! Before the intent nothing was done, so a death there is that of a task without one. What may
//! come between within a step is cut in `cuts` and `commits`.

use crate::guests::{Guests, template};
use serde_json::{Value, json};
use std::fs;
use virtbus_hypervisor::{Moment, Step};
use virtbus_testbed::until;
use virtbus_wire::{JobId, JobState, Record, StateName, catalog::DiskState};

/// After which of them the service dies.
const STEPS: [Step; 4] = [Step::Intend, Step::Commit, Step::Effect, Step::Publish];
/// libvirt did the first of what it's asked for.
const HALF_WAY: Moment = Moment::Waited(Step::Effect, 1);

/// Has the service die in a job, and leaves it dead.
async fn dies(guests: &mut Guests, at: Moment, task: &str, params: &Value) -> JobId {
    let (id, is_dead) = guests.killed_at(task, params, at).await;
    assert!(is_dead, "{task}, {at:?}: it lives");
    id
}

/// Starts the service again, and waits for the end of a job.
async fn goes_on(guests: &mut Guests, id: &JobId) -> Record {
    guests.restart().await;
    guests.site.mended(id).await
}

/// The result of a job whose service died.
async fn is_done(guests: &mut Guests, id: &JobId, when: &str) -> Value {
    let state = goes_on(guests, id).await.state;
    let JobState::Succeeded(_, result) = state else {
        panic!("{when}: {state:?}");
    };
    Value::Object(result)
}

/// The result of a job whose service dies.
async fn killed(guests: &mut Guests, at: Moment, task: &str, params: &Value) -> Value {
    let id = dies(guests, at, task, params).await;
    is_done(guests, &id, &format!("{task}, {at:?}")).await
}

/// Whether libvirt hasn't heard of the job by then.
fn is_before(at: Moment) -> bool {
    matches!(at, Moment::After(Step::Intend | Step::Commit))
}

/// As if the first claim of a job had been cut short while it made a disk's file.
fn leave_part(guests: &Guests, job: &JobId, disk: &str) {
    let part = guests.file(&format!(".{job}.1.{disk}.part"));
    fs::write(part, "half of it").unwrap();
}

/// Who uses a disk and the one below.
async fn users(guests: &Guests, top: &str, below: &str) -> [Vec<String>; 2] {
    [guests.site.users(top).await, guests.site.users(below).await]
}

const HELD: [&[&str]; 2] = [&["web1 Exclusive"], &["web1 Shared"]];
const FREE: [&[&str]; 2] = [&[], &[]];

/// Tries a domain out that there isn't.
async fn try_out(guests: &mut Guests, at: Moment) {
    let when = format!("check_domain, {at:?}");
    let check = json!({"domain": "web1", "template": template(&["web1"])});
    let id = dies(guests, at, "check_domain", &check).await;
    // A trial that runs ends with whoever made it.
    until("no trial", async || match known(guests) {
        none if none.is_empty() => Ok(()),
        some => Err(some),
    })
    .await;
    let has_ended = at != HALF_WAY && !is_before(at);
    let held = if has_ended { FREE } else { HELD };
    assert_eq!(users(guests, "web1", "base").await, held, "{when}");
    let checked = is_done(guests, &id, &when).await;
    assert_eq!(checked, json!({"ok": true, "warnings": []}), "{when}");
    is_nowhere(guests, &when).await;
}

/// Starts it.
async fn turn_on(guests: &mut Guests, at: Moment) {
    let when = format!("start_domain, {at:?}");
    let start = json!({"domain": "web1", "template": template(&["web1"]), "paused": true});
    let id = dies(guests, at, "start_domain", &start).await;
    // Before libvirt hears of it all that it will use is held.
    assert_eq!(users(guests, "web1", "base").await, HELD, "{when}");
    let state = match at {
        HALF_WAY => "shut off",
        _ if is_before(at) => "",
        Moment::Waited(..) | Moment::After(_) => "paused",
    };
    assert_eq!(guests.libvirt.state("web1"), state, "{when}");
    let started = is_done(guests, &id, &when).await;
    assert_eq!(started["state"], "paused", "{when}");
    assert_eq!(guests.libvirt.guests().len(), 1, "{when}");
    assert_eq!(users(guests, "web1", "base").await, HELD, "{when}");
}

/// Ends it, and forgets it.
async fn turn_off(guests: &mut Guests, at: Moment) {
    let when = format!("{at:?}");
    let destroy = json!({"domain": "web1", "mode": "destroy"});
    let done = killed(guests, at, "stop_domain", &destroy).await;
    assert_eq!(done["state"], "shutoff", "{when}");
    assert_eq!(guests.libvirt.state("web1"), "shut off", "{when}");
    assert_eq!(users(guests, "web1", "base").await, FREE, "{when}");
    killed(guests, at, "delete_domain", &json!({"domain": "web1"})).await;
    is_nowhere(guests, &when).await;
}

/// The names of the domains that libvirt knows.
fn known(guests: &Guests) -> String {
    let known = guests.libvirt.virsh(&["list", "--all", "--name"]);
    String::from_utf8(known.stdout).unwrap().trim().to_owned()
}

/// Nobody knows the domain, and what it could use is free.
async fn is_nowhere(guests: &Guests, when: &str) {
    assert_eq!(known(guests), "", "{when}");
    assert!(guests.site.domain("web1").await.is_none(), "{when}");
    assert_eq!(users(guests, "web1", "base").await, FREE, "{when}");
}

#[tokio::test]
async fn whatever_turns_a_domain_on_and_off_is_ended_by_the_next_one() {
    let mut guests = Guests::start().await;
    guests.disk("base").await;
    guests.overlay("web1", "base").await;
    try_out(&mut guests, HALF_WAY).await;
    for at in STEPS.map(Moment::After) {
        try_out(&mut guests, at).await;
        turn_on(&mut guests, at).await;
        for task in ["resume_domain", "reset_domain"] {
            let done = killed(&mut guests, at, task, &json!({"domain": "web1"})).await;
            assert_eq!(done["state"], "running", "{task}, {at:?}");
            assert_eq!(guests.libvirt.state("web1"), "running", "{task}, {at:?}");
        }
        turn_off(&mut guests, at).await;
    }
    turn_on(&mut guests, HALF_WAY).await;
    // It's asked, and hears nothing.
    let asks = json!({"domain": "web1", "mode": "shutdown", "deadline_s": 1});
    guests
        .done("resume_domain", json!({"domain": "web1"}))
        .await;
    let waits = Moment::Waited(Step::Work, 3);
    let id = dies(&mut guests, waits, "stop_domain", &asks).await;
    let record = goes_on(&mut guests, &id).await;
    assert_eq!(record.state.name(), StateName::Failed, "{record:?}");
    assert_eq!(guests.libvirt.state("web1"), "running");
    assert_eq!(users(&guests, "web1", "base").await, HELD);
}

/// A domain on a chain: its disk, and the one below.
struct Chain {
    top: String,
    below: String,
}

impl Chain {
    async fn users(&self, guests: &Guests) -> [Vec<String>; 2] {
        users(guests, &self.top, &self.below).await
    }

    /// Keeps what the running domain is, has it off, goes back, and forgets that.
    async fn keep_and_revert(&self, guests: &mut Guests, at: Moment) {
        let kept = async |guests: &Guests| {
            let domain = guests.site.domain("web1").await.unwrap();
            let disk = guests.disk_record(&self.top).await;
            [domain.snapshots.len(), disk.snapshots.len()]
        };
        let s1 = json!({"domain": "web1", "snapshot": "s1"});
        killed(guests, at, "create_snapshot", &s1).await;
        assert_eq!(kept(guests).await, [1, 1], "{at:?}");
        let destroy = json!({"domain": "web1", "mode": "destroy"});
        guests.done("stop_domain", destroy).await;
        let id = dies(guests, at, "revert_snapshot", &s1).await;
        // It runs again, and holds all that it uses before.
        assert_eq!(self.users(guests).await, HELD, "{at:?}");
        let state = if is_before(at) { "shut off" } else { "running" };
        assert_eq!(guests.libvirt.state("web1"), state, "{at:?}");
        is_done(guests, &id, &format!("revert_snapshot, {at:?}")).await;
        assert_eq!(guests.libvirt.state("web1"), "running", "{at:?}");
        assert_eq!(self.users(guests).await, HELD, "{at:?}");
        killed(guests, at, "delete_snapshot", &s1).await;
        assert_eq!(kept(guests).await, [0, 0], "{at:?}");
    }

    /// Makes it larger, and has what it holds go into the disk below.
    async fn grow_and_commit(&self, guests: &mut Guests, at: Moment, mebibytes: u64) {
        let (top, below) = (self.top.as_str(), self.below.as_str());
        let size = mebibytes << 20;
        let larger = json!({"domain": "web1", "disk": top, "size": size});
        let done = killed(guests, at, "resize", &larger).await;
        assert_eq!(done["virtual_size"], size, "{at:?}");
        let commit = json!({"domain": "web1", "disk": top});
        let id = dies(guests, at, "commit", &commit).await;
        leave_part(guests, &id, top);
        let done = is_done(guests, &id, &format!("commit, {at:?}")).await;
        assert_eq!(done["backing"], below, "{at:?}");
        assert_eq!(guests.disk_record(below).await.virtual_size, Some(size));
    }

    /// Has it go on with a new disk on top.
    async fn go_up(self, guests: &mut Guests, at: Moment, new: &str) -> Self {
        let overlays = json!({"domain": "web1", "overlays": {&self.top: new}});
        let id = dies(guests, at, "create_snapshot", &overlays).await;
        leave_part(guests, &id, new);
        is_done(guests, &id, &format!("overlays, {at:?}")).await;
        let (top, below) = (new.to_owned(), self.top);
        let domain = guests.site.domain("web1").await.unwrap();
        assert_eq!(domain.disks, [new.parse().unwrap()], "{at:?}");
        Self { top, below }
    }
}

#[tokio::test]
async fn whatever_changes_a_domains_disks_is_ended_by_the_next_one() {
    let mut guests = Guests::start().await;
    guests.disk("base").await;
    guests.overlay("web1", "base").await;
    let (top, below) = ("web1".to_owned(), "base".to_owned());
    let mut chain = Chain { top, below };
    let start = json!({"domain": "web1", "template": template(&["web1"])});
    guests.done("start_domain", start).await;
    for (mebibytes, at) in (2..).zip(STEPS.map(Moment::After)) {
        chain.keep_and_revert(&mut guests, at).await;
        chain.grow_and_commit(&mut guests, at, mebibytes).await;
        let new = format!("web1-{mebibytes}");
        chain = chain.go_up(&mut guests, at, &new).await;
        assert_eq!(chain.users(&guests).await, HELD, "{at:?}");
        for disk in [&chain.top, &chain.below] {
            let state = guests.disk_record(disk).await.state;
            assert_eq!(state, DiskState::Ready, "{disk}, {at:?}");
        }
        assert_eq!(guests.parts(), [""; 0], "{at:?}");
    }
}
