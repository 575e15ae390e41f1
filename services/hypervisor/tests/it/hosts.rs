//! Several hosts with one pool's queue, and their room.

use crate::{
    guests::{Guests, payload, template},
    service::Service,
};
use serde_json::json;
use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    process::Command,
    time::Duration,
};
use virtbus_testbed::{Libvirt, until, within};
use virtbus_wire::{
    JobId, JobState, catalog::HypervisorState, state::WaitReason, task::hypervisor::DomainState,
};

const POOL: &str = "hypervisor.default.default";

#[tokio::test]
async fn two_hosts_share_starts_and_one_that_is_drained_or_whose_call_hangs_starts_nothing() {
    // Each host has room for two domains of one processor.
    let room = [("CAPACITY__VCPUS", "2")];
    let mut guests = Guests::start_with(&room).await;
    let (other, _service) = guests.second_host().await;
    let mut jobs = Vec::new();
    for number in 0..4 {
        let name = format!("web{number}");
        guests.disk(&name).await;
        jobs.push((
            guests.site.publish(POOL, guests.start_of(&name)).await,
            name,
        ));
    }
    let mut hosts = Vec::new();
    for (job, name) in &jobs {
        let record = guests.site.mended(job).await;
        assert_eq!(
            record.state.name().as_str(),
            "succeeded",
            "{:?}",
            record.state
        );
        let domain = guests.site.domain(name).await.unwrap();
        let host = domain.hypervisor.unwrap().to_string();
        let queue = record.queue.to_string();
        assert_eq!(
            queue,
            format!("hypervisor.{host}.default"),
            "it's bound to its host"
        );
        hosts.push(host);
    }
    hosts.sort();
    assert_eq!(hosts, ["hv-test", "hv-test", "hv-two", "hv-two"]);
    assert_eq!(
        (guests.libvirt.guests().len(), other.guests().len()),
        (2, 2)
    );

    // Whoever takes it from the pool's queue: it ends where its domain is.
    for (_, name) in &jobs {
        let domain = guests.site.domain(name).await.unwrap();
        let host = domain.hypervisor.unwrap();
        let stop = json!({"domain": name, "mode": "destroy"});
        let id = guests
            .site
            .publish(POOL, payload("stop_domain", &stop))
            .await;
        let record = guests.site.ended(&id).await;
        assert_eq!(record.state.name().as_str(), "succeeded");
        assert!(record.queue.to_string().contains(host.as_str()));
    }
    assert!(guests.libvirt.guests().is_empty() && other.guests().is_empty());
    drained(&guests).await;
    degraded(&mut guests).await;
}

/// Waits until a service says that its libvirt is well, or isn't.
async fn is_well(service: &mut Service, wanted: bool) {
    const LONG: Duration = Duration::from_secs(90);
    within(LONG, "readiness", async || match service.ready().await {
        Ok(()) if wanted => Ok(()),
        Err(said) if !wanted && said.contains("a call hasn't returned") => Ok(()),
        other => Err(other),
    })
    .await;
}

/// Publishes a start of a domain as it was.
async fn start(guests: &Guests, queue: &str, domain: &str) -> JobId {
    let job = payload("start_domain", &json!({"domain": domain}));
    guests.site.publish(queue, job).await
}

/// Starts are left to the host that isn't drained, and wait when there is none.
async fn drained(guests: &Guests) {
    let is_now = async |host: &str, state| {
        let mut record = guests.site.host(host).await.unwrap();
        record.state = state;
        guests.site.hosts().put(host, &record).await.unwrap();
    };
    is_now("hv-test", HypervisorState::Draining).await;
    for domain in ["web0", "web1"] {
        let job = start(guests, POOL, domain).await;
        assert_eq!(started_on(guests, &job, domain).await, "hv-two");
    }
    is_now("hv-two", HypervisorState::Draining).await;
    let job = start(guests, POOL, "web2").await;
    waits_for(guests, &job, "draining").await;
    // What runs there is stopped all the same.
    for domain in ["web0", "web1"] {
        let stop = json!({"domain": domain, "mode": "destroy"});
        let done = guests.site.done(POOL, payload("stop_domain", &stop)).await;
        assert_eq!(done["state"], "shutoff");
    }
    let record = guests.site.record(&job).await.unwrap();
    assert_eq!(record.state.name().as_str(), "waiting");
    is_now("hv-test", HypervisorState::Up).await;
    assert_eq!(started_on(guests, &job, "web2").await, "hv-test");
    is_now("hv-two", HypervisorState::Up).await;
}

/// With one guest that stands still, a call about it hangs: its host starts nothing more, and what
/// else runs there is stopped all the same.
async fn degraded(guests: &mut Guests) {
    let own = "hypervisor.hv-test.default";
    let job = start(guests, own, "web3").await;
    assert_eq!(started_on(guests, &job, "web3").await, "hv-test");
    let signal = |signal: &str| {
        let pid = guests.libvirt.named_guests()["web3"].to_string();
        let sent = Command::new("kill").args(["-s", signal, &pid]).status();
        assert!(sent.unwrap().success());
    };
    signal("STOP");
    let reset = payload("reset_domain", &json!({"domain": "web3"}));
    let reset = guests.site.publish(own, reset).await;
    is_well(&mut guests.service, false).await;
    let stop = json!({"domain": "web2", "mode": "destroy"});
    assert_eq!(guests.done("stop_domain", stop).await["state"], "shutoff");
    // Now there is room.
    let waiting = start(guests, own, "web1").await;
    waits_for(guests, &waiting, "unhealthy").await;
    let job = start(guests, POOL, "web0").await;
    assert_eq!(started_on(guests, &job, "web0").await, "hv-two");
    signal("CONT");
    assert_eq!(started_on(guests, &waiting, "web1").await, "hv-test");
    let state = guests.site.mended(&reset).await.state;
    assert_eq!(state.name().as_str(), "succeeded", "{state:?}");
}

/// The host where a start put its domain.
async fn started_on(guests: &Guests, job: &JobId, domain: &str) -> String {
    let state = guests.site.mended(job).await.state;
    assert_eq!(state.name().as_str(), "succeeded", "{state:?}");
    let record = guests.site.domain(domain).await.unwrap();
    record.hypervisor.unwrap().to_string()
}

/// Waits until a start waits for a host that isn't like this.
async fn waits_for(guests: &Guests, job: &JobId, host: &str) {
    within(Duration::from_secs(90), "a wait", async || {
        let state = guests.site.record(job).await?.state;
        if let JobState::Waiting(wait) = &state
            && let WaitReason::Capacity { needs } = &wait.on
            && needs.get("host").is_some_and(|needed| needed == host)
        {
            return Ok(());
        }
        Err(format!("{state:?}"))
    })
    .await;
}

#[tokio::test]
async fn what_has_no_room_waits_for_it_and_nothing_is_started_beyond_it() {
    let room = [("CAPACITY__MEMORY", "70MiB")];
    let guests = Guests::start_with(&room).await;
    let mut jobs = Vec::new();
    for number in 0..6 {
        let name = format!("web{number}");
        guests.disk(&name).await;
        jobs.push(guests.site.publish(POOL, guests.start_of(&name)).await);
    }
    let mut waiting = Vec::new();
    until("four that wait and two that run", async || {
        waiting.clear();
        let mut ended = 0;
        for job in &jobs {
            let record = guests.site.record(job).await?;
            ended += usize::from(record.state.name().is_final());
            if let JobState::Waiting(wait) = &record.state {
                let WaitReason::Capacity { needs } = &wait.on else {
                    return Err(format!("{:?}", wait.on));
                };
                assert_eq!(needs["memory"], 32 << 20);
                waiting.push(job.clone());
            }
        }
        if waiting.len() == 4 && ended == 2 {
            return Ok(());
        }
        Err(format!("{ended} ended, {} wait", waiting.len()))
    })
    .await;
    assert_eq!(guests.libvirt.guests().len(), 2);
    // Room is made, and one of them gets it.
    for number in 0..6 {
        let name = format!("web{number}");
        if guests.libvirt.state(&name) == "running" {
            let stop = json!({"domain": name, "mode": "destroy"});
            guests.done("stop_domain", stop).await;
        }
    }
    let record = guests.site.mended(&waiting[0]).await;
    assert_eq!(record.state.name().as_str(), "succeeded");
}

#[tokio::test]
async fn a_start_that_is_taken_over_finds_no_room_that_others_have() {
    let mut guests = Guests::start_with(&[("CAPACITY__MEMORY", "40MiB")]).await;
    guests.run("web1").await;
    guests.disk("web2").await;
    guests.service.kill();
    let params = json!({"domain": "web2", "template": template(&["web2"])});
    let own = "hypervisor.hv-test.default";
    let start = guests.site.claimed_by_the_dead(own, "start_domain", params);
    let start = start.await;
    guests.restart().await;
    waits_for_room(&guests, &start).await;
    assert_eq!(guests.libvirt.state("web2"), "");
    assert!(guests.site.users("web2").await.is_empty());
    let destroy = json!({"domain": "web1", "mode": "destroy"});
    guests.done("stop_domain", destroy).await;
    let record = guests.site.mended(&start).await;
    assert_eq!(record.state.name().as_str(), "succeeded");
}

#[tokio::test]
async fn a_domain_that_would_run_after_a_revert_needs_room() {
    let guests = Guests::start_with(&[("CAPACITY__MEMORY", "40MiB")]).await;
    guests.run("web1").await;
    let of = json!({"domain": "web1", "snapshot": "s1"});
    guests.done("create_snapshot", of.clone()).await;
    // Of one that runs the room is its own.
    guests.done("revert_snapshot", of.clone()).await;
    let destroy = |domain: &str| json!({"domain": domain, "mode": "destroy"});
    guests.done("stop_domain", destroy("web1")).await;
    guests.run("web2").await;
    let revert = payload("revert_snapshot", &of);
    let own = "hypervisor.hv-test.default";
    let job = guests.site.publish(own, revert).await;
    waits_for_room(&guests, &job).await;
    assert_eq!(guests.libvirt.state("web1"), "shut off");
    guests.done("stop_domain", destroy("web2")).await;
    let record = guests.site.mended(&job).await;
    assert_eq!(record.state.name().as_str(), "succeeded");
    assert_eq!(guests.libvirt.state("web1"), "running");
}

async fn waits_for_room(guests: &Guests, job: &JobId) {
    until("a wait for room", async || {
        let state = guests.site.record(job).await?.state;
        if let JobState::Waiting(wait) = &state
            && matches!(wait.on, WaitReason::Capacity { .. })
        {
            return Ok(());
        }
        Err(format!("{state:?}"))
    })
    .await;
}

/// Those of a host's guests that run at this moment.
fn alive(libvirt: &Libvirt) -> BTreeMap<String, u32> {
    let mut all = libvirt.named_guests();
    all.retain(|_, pid| Path::new(&format!("/proc/{pid}/exe")).exists());
    all
}

#[tokio::test]
async fn fifty_starts_share_the_room_of_two_hosts_and_all_run_in_the_end() {
    const STARTS: usize = 50;
    const EACH: usize = 5;
    const LONG: Duration = Duration::from_secs(180);
    // Domains of 32 MiB.
    let guests = Guests::start_with(&[("CAPACITY__MEMORY", "175MiB")]).await;
    let (other, _service) = guests.second_host().await;
    let hosts = [&guests.libvirt, &other];
    let small = json!({"memory": "32MiB", "vcpus": 1, "graphics": "none", "agent": false});
    let mut jobs = Vec::new();
    for number in 0..STARTS {
        let name = format!("web{number}");
        let params = json!({"domain": name, "template": small});
        let start = payload("start_domain", &params);
        jobs.push((guests.site.publish(POOL, start).await, name));
    }
    let within_room = || {
        let now = hosts.map(|host| alive(host).len());
        assert!(now.iter().all(|count| *count <= EACH), "{now:?} run");
        now
    };
    within(
        LONG,
        "full hosts, all others waiting for room",
        async || {
            let running = within_room();
            if running != [EACH; 2] {
                return Err(format!("{running:?} run"));
            }
            let mut waiting = 0;
            for (job, _) in &jobs {
                if let JobState::Waiting(wait) = guests.site.record(job).await?.state {
                    waiting += usize::from(matches!(wait.on, WaitReason::Capacity { .. }));
                }
            }
            if waiting == STARTS - 2 * EACH {
                return Ok(());
            }
            Err(format!("{waiting} wait"))
        },
    )
    .await;
    // The guests end, the way that takes the least time, and as many others come in.
    let mut ended = BTreeSet::new();
    within(LONG, "all to have run", async || {
        within_room();
        let open = jobs.iter().filter(|(_, name)| !ended.contains(name));
        let open: Vec<_> = open.take(2 * EACH).collect();
        for (job, name) in open {
            if let Ok(record) = guests.site.nudged(job).await {
                let is = record.state.name().as_str();
                assert_eq!(is, "succeeded", "{:?}", record.state);
                ended.insert(name.clone());
            }
        }
        let over = hosts.into_iter().flat_map(alive);
        for (_, pid) in over.filter(|(name, _)| ended.contains(name)) {
            drop(Command::new("kill").args(["-9", &pid.to_string()]).status());
        }
        let left = STARTS - ended.len();
        if left == 0 { Ok(()) } else { Err(left) }
    })
    .await;
}

#[tokio::test]
async fn a_host_whose_libvirt_hangs_starts_nothing_and_recovers_by_itself() {
    let mut guests = Guests::start().await;
    guests.run("web1").await;
    guests.libvirt.signal("STOP");
    is_well(&mut guests.service, false).await;
    // What comes meanwhile isn't begun: it waits for a host that is well.
    guests.disk("web2").await;
    let start = guests.site.publish(POOL, guests.start_of("web2")).await;
    waits_for(&guests, &start, "unhealthy").await;
    guests.libvirt.signal("CONT");
    is_well(&mut guests.service, true).await;
    let record = guests.site.mended(&start).await;
    assert_eq!(record.state.name().as_str(), "succeeded");
    assert_eq!(guests.libvirt.state("web2"), "running");
    let stop = json!({"domain": "web1", "mode": "destroy"});
    assert_eq!(guests.done("stop_domain", stop).await["state"], "shutoff");
    let record = guests.site.domain("web1").await.unwrap();
    assert_eq!(record.state, DomainState::Shutoff);
}
