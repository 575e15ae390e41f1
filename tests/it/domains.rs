//! Domains with all services: what holds their disks while they run, and what a person's word that
//! a host is off sets free.

use serde_json::{Value, json};
use virtbus_testbed::{Libvirt, until};
use virtbus_tests::process::{self, Signal};
use virtbus_tests::{Bus, Service, Stack, code_of, state_of};

const STORAGE: &str = "storage.default.default";
const POOL: &str = "hypervisor.default.default";
const TWO: &str = "hypervisor.hv-two.default";

/// A system whose one host has a real libvirt daemon.
struct Site {
    // Dropped first: its guests have disks in the stack's folder.
    libvirt: Libvirt,
    bus: Bus,
    stack: Stack,
}

/// A second host of the same pool. Without power it's as if it weren't there.
struct Second {
    libvirt: Libvirt,
    pid: u32,
}

impl Second {
    /// Its service, its libvirt and its guests are gone at once.
    async fn lose_power(&mut self) {
        process::signal(self.pid, Signal::KILL);
        self.libvirt.kill();
        let guests = self.libvirt.guests();
        for pid in &guests {
            process::signal(*pid, Signal::KILL);
        }
        until("nothing runs there", async || {
            match guests.iter().find(|pid| process::is_alive(**pid)) {
                None => Ok(()),
                Some(pid) => Err(*pid),
            }
        })
        .await;
    }
}

impl Drop for Second {
    fn drop(&mut self) {
        process::signal(self.pid, Signal::KILL);
    }
}

impl Site {
    async fn start() -> Self {
        let (stack, libvirt) = (Stack::start().await, Libvirt::start().await);
        let bus = stack.bus().await;
        stack.stop(Service::Hypervisor).await;
        let uri = libvirt.uri();
        stack.start_again_with(Service::Hypervisor, &on(&uri));
        Self {
            libvirt,
            bus,
            stack,
        }
    }

    async fn second(&self) -> Second {
        let libvirt = Libvirt::start().await;
        let pid = self.serve_second(&libvirt);
        self.host_is("hv-two", "up").await;
        Second { libvirt, pid }
    }

    fn serve_second(&self, libvirt: &Libvirt) -> u32 {
        let (uri, folder) = (libvirt.uri(), self.stack.folder());
        let (pid_file, state) = (folder.join("hv-two.pid"), folder.join("hv-two"));
        let mut settings = on(&uri);
        settings.extend([
            ("VIRTBUS__PID_FILE", pid_file.to_str().unwrap()),
            ("VIRTBUS__STATE_DIR", state.to_str().unwrap()),
            ("VIRTBUS__HYPERVISOR", "hv-two"),
            ("VIRTBUS__WORKER__ID", "hv-two"),
            ("VIRTBUS__HTTP__LISTEN", "127.0.0.1:0"),
        ]);
        self.stack.start_besides(Service::Hypervisor, &settings)
    }

    async fn host_is(&self, name: &str, state: &str) {
        until(&format!("{name} is {state}"), async || {
            let all = self.bus.ask("virtbus.hypervisors.list", &json!({})).await?;
            let hosts = all["hypervisors"].as_array().cloned().unwrap_or_default();
            let mut named = hosts.iter().filter(|host| host["hypervisor"] == name);
            match named.any(|host| host["state"] == state) {
                true => Ok(()),
                false => Err(all),
            }
        })
        .await;
    }

    /// A disk on top of one named `base`, both made by the storage service.
    async fn disk(&self, disk: &str) {
        if self.bus.disk("base").await.is_none() {
            let base = json!({"disk": "base", "size": "8MiB"});
            self.bus.succeed(STORAGE, "create_disk", base).await;
        }
        let params = json!({"disk": disk, "backing": "base"});
        self.bus.succeed(STORAGE, "create_disk", params).await;
    }

    async fn start_domain(&self, subject: &str, domain: &str) -> Value {
        let template = json!({"memory": "32MiB", "vcpus": 1, "disks": [domain],
            "graphics": "none", "agent": false});
        let params = json!({"domain": domain, "template": template});
        self.bus.succeed(subject, "start_domain", params).await
    }

    async fn stop_domain(&self, domain: &str) {
        let params = json!({"domain": domain, "mode": "destroy"});
        self.bus.succeed(POOL, "stop_domain", params).await;
    }

    async fn domain(&self, domain: &str) -> Value {
        let asked = json!({"id": domain});
        self.bus.ask("virtbus.domains.get", &asked).await.unwrap()
    }

    /// Who uses a disk, as `domain host mode`.
    async fn users(&self, disk: &str) -> Vec<String> {
        let known = self.bus.disk(disk).await.unwrap();
        let users = known["in_use_by"].as_array().cloned().unwrap_or_default();
        let text = |user: &Value, field: &str| user[field].as_str().unwrap().to_owned();
        let told = users.iter().map(|user| {
            ["domain", "hypervisor", "mode"]
                .map(|field| text(user, field))
                .join(" ")
        });
        told.collect()
    }

    /// The domain's record, once it's in a state.
    async fn domain_is(&self, domain: &str, state: &str) -> Value {
        until(&format!("{domain} is {state}"), async || {
            match self.domain(domain).await {
                record if record["state"] == state => Ok(record),
                record => Err(record),
            }
        })
        .await
    }

    fn here(&self) -> &str {
        &self.stack.ready.hypervisor
    }
}

fn on(uri: &str) -> Vec<(&str, &str)> {
    vec![
        ("VIRTBUS__LIBVIRT__URI", uri),
        ("VIRTBUS__DOMAINS__ACCELERATOR", "qemu"),
    ]
}

#[tokio::test]
async fn a_host_that_vanished_is_fenced_and_its_domain_starts_on_the_other_one() {
    let site = Site::start().await;
    let mut two = site.second().await;
    site.disk("web1").await;
    let started = site.start_domain(TWO, "web1").await;
    assert_eq!(started["hypervisor"], "hv-two");
    let held = ["web1 hv-two exclusive".to_owned()];
    let below = ["web1 hv-two shared".to_owned()];
    assert_eq!(site.users("web1").await, held);
    assert_eq!(site.users("base").await, below);

    two.lose_power().await;
    let record = site.domain_is("web1", "unknown").await;
    assert_eq!(record["hypervisor"], "hv-two");
    // Nobody gave their word: what it uses is its own, and what's for it waits for it.
    assert_eq!(site.users("web1").await, held);
    let just = json!({"domain": "web1"});
    let start = site.bus.submit(POOL, "start_domain", just.clone()).await;
    let of_two = |record: &Value| record["queue"] == TWO;
    let record = site.bus.once(&start, "on its host's queue", of_two).await;
    assert_eq!(state_of(&record), "queued", "{record:#}");
    let asked = json!({"id": start});
    let explained = site.bus.ask("virtbus.jobs.explain", &asked).await.unwrap();
    assert_eq!(explained["why"], "no_worker", "{explained:#}");

    let word = json!({"hypervisor": "hv-two", "reason": "power cut"});
    let fenced = site.bus.ask("virtbus.hypervisors.fence", &word).await;
    assert_eq!(fenced.unwrap()["domains"], json!(["web1"]));
    site.host_is("hv-two", "fenced").await;
    assert_eq!(site.domain("web1").await["state"], "shutoff");
    for disk in ["web1", "base"] {
        assert!(site.users(disk).await.is_empty(), "{disk} is free");
    }
    let record = site.bus.end_of(&start).await;
    assert_eq!(code_of(&record), "hypervisor.unreachable", "{record:#}");
    // A storage job may have what nobody uses.
    let larger = json!({"disk": "web1", "size": "16MiB"});
    site.bus.succeed(STORAGE, "resize", larger).await;

    let started = site.bus.succeed(POOL, "start_domain", just).await;
    assert_eq!(started["hypervisor"], site.here());
    assert_eq!(site.libvirt.state("web1"), "running");
    let held = [format!("web1 {} exclusive", site.here())];
    assert_eq!(site.users("web1").await, held);

    // The host is back, where the domain is off, and it stays where it runs.
    two.libvirt.run().await;
    two.pid = site.serve_second(&two.libvirt);
    site.host_is("hv-two", "up").await;
    site.bus.ping(TWO).await;
    assert_eq!(two.libvirt.state("web1"), "shut off");
    assert_eq!(site.domain("web1").await["hypervisor"], site.here());
    assert_eq!(site.users("web1").await, held);
    site.stop_domain("web1").await;
    assert!(site.users("web1").await.is_empty());
}

#[tokio::test]
async fn a_storage_job_on_a_running_domains_disk_is_refused_or_waits_for_its_end() {
    let site = Site::start().await;
    site.disk("web1").await;
    site.start_domain(POOL, "web1").await;
    let larger = json!({"disk": "web1", "size": "16MiB"});
    let refused = site.bus.run(STORAGE, "resize", larger.clone()).await;
    assert_eq!(code_of(&refused), "disk.in_use", "{refused:#}");
    let detail = json!({"disk": "web1", "domain": "web1", "hypervisor": site.here()});
    assert_eq!(refused["error"]["detail"], detail);
    // The one below is read by the guest: it can be read by others, and not be changed.
    let copy = json!({"disk": "base", "to": "copy", "format": "raw"});
    site.bus.succeed(STORAGE, "convert", copy).await;
    let gone = json!({"disk": "base", "tree": true});
    let refused = site.bus.run(STORAGE, "delete_disk", gone).await;
    assert_eq!(code_of(&refused), "disk.in_use", "{refused:#}");

    let job = json!({"id": "waits", "task": "resize", "params": larger, "if_in_use": "wait"});
    site.bus.publish(STORAGE, &job).await;
    let is_waiting = |record: &Value| state_of(record) == "waiting";
    let record = site.bus.once("waits", "waiting", is_waiting).await;
    let waiting = &record["waiting"];
    assert_eq!(
        (
            &waiting["on"],
            &waiting["detail"]["resource"],
            &waiting["detail"]["holder"]
        ),
        (&json!("lock"), &json!("disk.web1"), &json!("domain.web1")),
        "{record:#}"
    );
    assert_eq!(
        site.bus.disk("web1").await.unwrap()["virtual_size"],
        8 << 20
    );
    site.stop_domain("web1").await;
    let record = site.bus.end_of("waits").await;
    assert_eq!(state_of(&record), "succeeded", "{record:#}");
    assert_eq!(record["result"]["virtual_size"], 16 << 20);

    // An end that nobody asked the bus for is one as well.
    site.start_domain(POOL, "web1").await;
    let grown = json!({"disk": "web1", "size": "24MiB"});
    let job = json!({"id": "again", "task": "resize", "params": grown, "if_in_use": "wait"});
    site.bus.publish(STORAGE, &job).await;
    site.bus.once("again", "waiting", is_waiting).await;
    assert!(site.libvirt.virsh(&["destroy", "web1"]).status.success());
    let record = site.bus.end_of("again").await;
    assert_eq!(state_of(&record), "succeeded", "{record:#}");
}
