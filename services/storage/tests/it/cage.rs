//! What the service does on a kernel that can lock tools in, and on one that can't.

use super::{Service, Site};
use seccompiler::{SeccompAction, SeccompFilter, apply_filter};
use serde_json::json;
use std::{process::Command, thread};
use virtbus_testbed::until;

/// Starts a program that is told that this kernel has no Landlock.
fn without_landlock(mut command: Command) -> Service {
    let rules = [(libc::SYS_landlock_create_ruleset, Vec::new())];
    let unknown = SeccompAction::Errno(libc::ENOSYS.unsigned_abs());
    let arch = std::env::consts::ARCH.try_into().unwrap();
    let filter = SeccompFilter::new(rules.into(), SeccompAction::Allow, unknown, arch).unwrap();
    let program: seccompiler::BpfProgram = filter.try_into().unwrap();
    // Of this thread alone, and of what it starts.
    let started = thread::spawn(move || {
        apply_filter(&program).unwrap();
        command.spawn().unwrap()
    });
    Service(started.join().unwrap())
}

async fn landlock_by_record(site: &Site, worker: &str) -> String {
    until("the worker's record", async || {
        let record = site.workers.get(worker).await.unwrap();
        let version = record.map(|record| record.value["versions"]["landlock"].clone());
        version
            .and_then(|version| version.as_str().map(str::to_owned))
            .ok_or("no version")
    })
    .await
}

#[tokio::test]
async fn what_locks_tools_in_is_told() {
    let site = Site::start().await;
    let _service = site.service("st-1");
    let version: u32 = landlock_by_record(&site, "st-1").await.parse().unwrap();
    assert!(version >= 1);
    assert!(
        site.log("st-1").contains("tools are locked in"),
        "{}",
        site.log("st-1")
    );
}

#[tokio::test]
async fn a_kernel_that_cannot_lock_tools_in_is_refused() {
    let site = Site::start().await;
    let mut service = without_landlock(site.command("st-1"));
    let status = until("the end of the service", async || {
        service.0.try_wait().unwrap().ok_or("it runs")
    })
    .await;
    let log = site.log("st-1");
    assert_eq!(status.code(), Some(64), "{log}");
    assert!(
        log.contains("cage.required") && log.contains("no landlock, filter"),
        "{log}"
    );
    let folder = site.dir.path().to_str().unwrap();
    assert!(
        !log.lines()
            .any(|line| line.contains("cage.required") && line.contains(folder))
    );
}

#[tokio::test]
async fn where_it_is_configured_tools_run_without_landlock() {
    let site = Site::start().await;
    let mut command = site.command("st-1");
    command.env("VIRTBUS__CAGE__REQUIRED", "false");
    let _service = without_landlock(command);
    assert_eq!(landlock_by_record(&site, "st-1").await, "none");
    let create = json!({ "id": "j1", "task": "create_disk",
                         "params": { "disk": "d1", "size": "8MiB" } });
    site.succeeds("storage.default.high", create).await;
    let log = site.log("st-1");
    assert!(log.contains("not wholly locked in"), "{log}");
}
