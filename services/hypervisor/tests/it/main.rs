//! The hypervisor service, as a process, against a real nats-server and libvirt's trial driver.

#![expect(
    clippy::unwrap_used,
    reason = "clippy.toml lets tests unwrap, but doesn't see that their helpers here are tests"
)]

mod cancels;
mod chains;
mod commits;
mod crashes;
mod cuts;
mod definitions;
mod domains;
mod events;
mod guests;
mod hosts;
mod images;
mod kills;
mod leftovers;
mod machines;
mod media;
mod moves;
mod process;
mod refusals;
mod reverts;
mod service;

use process::Site;
use service::Service;
use virtbus_testbed::{Libvirt, until};
use virtbus_wire::{JobState, Queue, StateName, catalog::HypervisorState};

const TRIAL: &str = "test:///default";

#[tokio::test]
async fn it_registers_its_host_and_answers_pings_of_host_and_pool() {
    let site = Site::start().await;
    let mut service = Service::start(&site, &[("LIBVIRT__URI", TRIAL)]);
    let host = until("the host's record", async || site.host("hv-test").await).await;
    assert_eq!(
        (host.pool.as_str(), host.state),
        ("default", HypervisorState::Up)
    );
    assert!(
        host.cpus.unwrap() > 0 && host.memory.unwrap() > 1 << 30,
        "{host:?}"
    );
    site.make_host_consumers("hv-test").await;
    for subject in ["hypervisor.default.low", "hypervisor.hv-test.high"] {
        let id = site.publish(subject, r#"{"task":"ping"}"#).await;
        let record = site.ended(&id).await;
        let JobState::Succeeded(_, result) = &record.state else {
            panic!("{:?}", record.state);
        };
        assert!(result["checks"][0].as_str().unwrap().starts_with("libvirt"));
        assert_eq!(result["worker"], "hv-worker");
    }
    let id = site.publish(
        "hypervisor.hv-test.low",
        r#"{"task":"ping","params":{"fail":true}}"#,
    );
    let id = id.await;
    assert_eq!(
        site.code_of_wait(&id).await,
        "tool.failed",
        "it is tried again later"
    );
    until("readiness", async || service.ready().await).await;
    let worker = site.worker("hv-worker").await.unwrap();
    assert!(worker.versions.contains_key("libvirt"), "{worker:?}");
    assert!(
        worker
            .queues
            .contains(&"hypervisor.hv-test.high".parse::<Queue>().unwrap())
    );
    assert_eq!(service.stop().await, Some(0));
    assert!(
        site.worker("hv-worker").await.is_none(),
        "its lease is given back"
    );
}

#[tokio::test]
async fn a_domain_that_nobody_knows_is_not_found() {
    let site = Site::start().await;
    let _service = Service::start(&site, &[("LIBVIRT__URI", TRIAL)]);
    let payload = r#"{"task":"resume_domain","params":{"domain":"web1"}}"#;
    let id = site.publish("hypervisor.default.default", payload).await;
    let record = site.ended(&id).await;
    assert_eq!(record.state.name(), StateName::Failed);
    let JobState::Failed(_, error) = &record.state else {
        panic!("{:?}", record.state);
    };
    assert_eq!(error.code.as_str(), "domain.not_found");
}

#[tokio::test]
async fn without_libvirt_it_ends_with_69() {
    let site = Site::start().await;
    let gone = "qemu+unix:///session?socket=/nonexistent/libvirt-sock";
    let mut service = Service::start(&site, &[("LIBVIRT__URI", gone)]);
    assert_eq!(service.ended().await, Some(69));
}

#[tokio::test]
async fn a_host_may_not_carry_a_pools_name() {
    let site = Site::start().await;
    let settings = [("LIBVIRT__URI", TRIAL), ("HYPERVISOR", "other")];
    let mut service = Service::start(&site, &settings);
    let said = until("a failing check", async || match service.ready().await {
        Err(said) if said.contains("a pool is named other") => Ok(said),
        other => Err(other),
    })
    .await;
    assert!(said.contains("registered"), "{said}");
    assert!(site.host("other").await.is_err());
}

#[tokio::test]
async fn a_daemon_has_one_service_by_whichever_address_it_goes() {
    let (site, libvirt) = (Site::start().await, Libvirt::start().await);
    for host in ["hv-test", "hv-two"] {
        site.make_host_consumers(host).await;
    }
    let locks = tempfile::tempdir().unwrap();
    let lock_dir = locks.path().to_str().unwrap();
    let start = |uri: &str, more: &[(&str, &str)]| {
        let settings = [("LIBVIRT__URI", uri), ("LIBVIRT__LOCK_DIR", lock_dir)];
        Service::start(&site, &[&settings[..], more].concat())
    };
    let uri = libvirt.uri();
    let mut first = start(&uri, &[]);
    until("readiness", async || first.ready().await).await;

    let socket = uri.split_once("socket=").unwrap().1;
    let folder = std::path::Path::new(socket).parent().unwrap();
    let link = locks.path().join("another way");
    std::os::unix::fs::symlink(folder, &link).unwrap();
    let by_link = link.join("libvirt-sock").display().to_string();
    for other in [
        format!("qemu:///session?socket={socket}"),
        format!(
            "qemu+unix:///session?mode=legacy&socket={}",
            socket.replace('/', "%2F")
        ),
        format!(
            "qemu+unix:///session?socket={}",
            by_link.replace(' ', "%20")
        ),
    ] {
        let mut second = start(&other, &[]);
        assert_eq!(second.ended().await, Some(64), "{other}");
    }
    // Another daemon of the same user on the same host.
    let another = Libvirt::start().await;
    let two = [("HYPERVISOR", "hv-two"), ("WORKER__ID", "hv-worker-two")];
    let mut second = start(&another.uri(), &two);
    until("readiness", async || second.ready().await).await;
    drop(first);
}
