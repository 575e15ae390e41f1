//! The service dies at a given moment of a job, and the next one goes on. Each such service is a
//! process of its own that gets SIGKILL there: what it leaves is left, and libvirt goes on.

use crate::{
    cancels,
    guests::{Guests, payload},
};
use rustix::process::{Signal, getpid, kill_process};
use serde_json::{Value, json};
use std::{
    fs,
    os::unix::process::ExitStatusExt as _,
    path::Path,
    process::{Command, ExitCode},
};
use virtbus_hypervisor::{Moment, Step, Watch, run_watched};
use virtbus_testbed::until;
use virtbus_wire::{JobId, StateName, catalog::DiskState};

/// More waits than any step has.
const WAITS_MAX: u32 = 40;
/// Tells the process of the file that says when it dies.
const FATE: &str = "TEST_FATE";
/// The test that the process runs.
const SERVICE: &str = "cuts::a_service_that_is_to_be_killed";
/// What the kernel says of a process that was killed.
const SIGKILL: i32 = 9;

/// Does nothing but in a process that [`Guests::killed_at`] has started.
#[test]
fn a_service_that_is_to_be_killed() {
    let Ok(fate) = std::env::var(FATE) else {
        return;
    };
    let watch = Watch::new(move |task, moment| {
        let wanted = fs::read_to_string(&fate).unwrap_or_default();
        if wanted == told(task, moment) {
            kill_process(getpid(), Signal::KILL).unwrap();
        }
        if wanted == cancels::held(task, moment) {
            cancels::hold(Path::new(&fate));
        }
    });
    assert_eq!(run_watched(watch), ExitCode::SUCCESS);
}

pub(crate) fn told(task: &str, moment: Moment) -> String {
    format!("{task} {moment:?}")
}

/// A program that is the service, and dies when this file says.
pub(crate) fn mortal(fate: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", SERVICE]).env(FATE, fate);
    command
}

impl Guests {
    /// A job whose service dies at a moment of it: then it's dead. False if the job ended before.
    pub(crate) async fn killed_at(
        &mut self,
        task: &str,
        params: &Value,
        at: Moment,
    ) -> (JobId, bool) {
        let fate = self.be_mortal().await;
        fs::write(&fate, told(task, at)).unwrap();
        let queue = "hypervisor.hv-test.default";
        let id = self.site.publish(queue, payload(task, params)).await;
        let (site, service) = (&self.site, &mut self.service);
        let is_dead = until("the service's death", async || {
            if let Some(status) = service.exit() {
                assert_eq!(status.signal(), Some(SIGKILL));
                return Ok(true);
            }
            let record = site.record(&id).await?;
            match record.state.name().is_final() {
                true => Ok(false),
                false => Err(format!("{:?}", record.state)),
            }
        })
        .await;
        fs::remove_file(fate).unwrap();
        if is_dead {
            // So that the next one may take its place on this host.
            self.service.kill();
        }
        (id, is_dead)
    }
}

#[tokio::test]
async fn a_resize_whose_service_dies_is_told_of_though_its_domain_is_off_by_then() {
    let mut guests = Guests::start().await;
    guests.run("web1").await;
    let mut size = 1 << 20;
    for waits in 1..WAITS_MAX {
        let larger = u64::from(waits + 1) << 20;
        let params = json!({"domain": "web1", "disk": "web1", "size": larger});
        let at = Moment::Waited(Step::Effect, waits);
        let (id, is_dead) = guests.killed_at("resize", &params, at).await;
        if is_dead {
            guests.libvirt.virsh(&["destroy", "web1"]);
            guests.restart().await;
        }
        let state = guests.site.mended(&id).await.state;
        let disk = guests.disk_record("web1").await;
        assert_eq!(disk.state, DiskState::Ready, "{at:?}");
        // Before libvirt heard of it, nothing was done.
        if state.name() == StateName::Succeeded {
            size = larger;
        }
        assert_eq!(disk.virtual_size, Some(size), "{at:?}: {state:?}");
        if !is_dead {
            return;
        }
        guests.done("start_domain", json!({"domain": "web1"})).await;
    }
    panic!("it waits for ever");
}

/// What comes after the death of a service.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Then {
    Next,
    Cancel,
}

/// Has a service die at a moment of a snapshot of a domain that is off. False if it didn't.
async fn cut_overlays(guests: &mut Guests, number: u32, at: Moment, then: Then) -> bool {
    let (old, new) = (format!("web{number}"), format!("web{number}-a"));
    let when = format!("{at:?}, {then:?}");
    guests.run(&old).await;
    guests.end(&old);
    until("its end to be seen", async || {
        match guests.site.users(&old).await {
            users if users.is_empty() => Ok(()),
            users => Err(users),
        }
    })
    .await;
    let params = json!({"domain": old, "overlays": {&old: &new}});
    let (id, is_dead) = guests.killed_at("create_snapshot", &params, at).await;
    if is_dead {
        if then == Then::Cancel {
            guests.site.cancel_dead(&id).await;
        }
        guests.restart().await;
    }
    let record = guests.site.mended(&id).await;
    let disks = guests.site.disks();
    let above = disks.get_latest(&new).await.unwrap();
    let below = guests.disk_record(&old).await;
    let domain = guests.site.domain(&old).await.unwrap();
    let xml = guests.libvirt.virsh(&["dumpxml", "--inactive", &old]);
    let xml = String::from_utf8(xml.stdout).unwrap();
    let state = record.state.name();
    let top = if state == StateName::Cancelled && then == Then::Cancel {
        assert!(above.is_none() && below.children.is_empty(), "{when}");
        assert!(!guests.file(&format!("{new}.qcow2")).exists(), "{when}");
        &old
    } else {
        assert_eq!(state, StateName::Succeeded, "{when}: {:?}", record.state);
        assert_eq!(above.unwrap().value.state, DiskState::Ready, "{when}");
        assert_eq!(below.children, [new.parse().unwrap()], "{when}");
        &new
    };
    assert_eq!(domain.disks, [top.parse().unwrap()], "{when}");
    assert!(
        xml.contains(&format!("/disks/{top}.qcow2'/>")),
        "{when}: {xml}"
    );
    assert!(guests.site.users(top).await.is_empty(), "{when}");
    assert_eq!(guests.parts(), [""; 0], "{when}");
    guests.done("start_domain", json!({"domain": old})).await;
    guests.end(&old);
    is_dead
}

/// Has one die at every so many moments of these steps.
async fn cut_overlays_everywhere(then: Then, steps: &[Step], every: usize) {
    let mut guests = Guests::start().await;
    let mut number = 0;
    for step in steps {
        for waits in (1..WAITS_MAX).step_by(every) {
            number += 1;
            let at = Moment::Waited(*step, waits);
            if !cut_overlays(&mut guests, number, at, then).await {
                break;
            }
        }
    }
}

#[tokio::test]
async fn new_disks_of_a_domain_that_is_off_come_though_the_service_dies() {
    cut_overlays_everywhere(Then::Next, &[Step::Effect, Step::Publish], 4).await;
}

#[tokio::test]
async fn new_disks_of_a_domain_that_is_off_come_or_leave_no_trace() {
    cut_overlays_everywhere(
        Then::Cancel,
        &[Step::Intend, Step::Effect, Step::Publish],
        4,
    )
    .await;
}
