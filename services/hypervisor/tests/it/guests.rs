//! A host with a real libvirt daemon and QEMU, disks in its pool, and the service that speaks for
//! it.

use crate::{cuts, process::Site, service::Service};
use serde_json::{Value, json};
use std::{fs, path::PathBuf, process::Command};
use virtbus_testbed::{Libvirt, until};
use virtbus_wire::{Timestamp, catalog::DiskRecord};

/// A sector that says OK on the serial port and stands still: it hears no request to shut down.
const BOOT_SECTOR: [u8; 16] = [
    0xBA, 0xF8, 0x03, 0xB0, 0x4F, 0xEE, 0xB0, 0x4B, 0xEE, 0xB0, 0x0A, 0xEE, 0xFB, 0xF4, 0xEB, 0xFC,
];

/// The bytes of a disk that starts from what is in its first sector.
fn boot_disk(code: &[u8]) -> Vec<u8> {
    let mut bytes = code.to_vec();
    bytes.resize(510, 0);
    bytes.extend([0x55, 0xAA]);
    bytes.resize(1 << 20, 0);
    bytes
}

/// One host.
pub(crate) struct Guests {
    pub(crate) site: Site,
    pub(crate) libvirt: Libvirt,
    pub(crate) service: Service,
    more: Vec<(String, String)>,
    /// The file that says when the service dies.
    fate: Option<PathBuf>,
}

impl Guests {
    pub(crate) async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// With more settings of the service.
    pub(crate) async fn start_with(more: &[(&str, &str)]) -> Self {
        let (site, libvirt) = (Site::start().await, Libvirt::start().await);
        site.make_host_consumers("hv-test").await;
        let more: Vec<_> = more
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect();
        let program = Command::new(env!("CARGO_BIN_EXE_virtbus-hypervisor"));
        let service = service(program, &site, &libvirt, &more);
        let mut guests = Self {
            site,
            libvirt,
            service,
            more,
            fate: None,
        };
        guests.ready().await;
        guests
    }

    /// A second host of the pool, with a libvirt daemon of its own and the same disks.
    pub(crate) async fn second_host(&self) -> (Libvirt, Service) {
        let libvirt = Libvirt::start().await;
        self.site.make_host_consumers("hv-two").await;
        let mut service = self.second_service(&libvirt);
        until("readiness", async || service.ready().await).await;
        (libvirt, service)
    }

    /// The service of the second host.
    pub(crate) fn second_service(&self, libvirt: &Libvirt) -> Service {
        let (uri, root) = (libvirt.uri(), text(&self.libvirt.pool()));
        let mut settings = vec![
            ("LIBVIRT__URI", uri.as_str()),
            ("POOLS__DEFAULT__ROOT", root.as_str()),
            ("HYPERVISOR", "hv-two"),
            ("WORKER__ID", "hv-worker-two"),
        ];
        settings.extend(self.more.iter().map(|(k, v)| (k.as_str(), v.as_str())));
        Service::start(&self.site, &settings)
    }

    /// Starts the service again.
    pub(crate) async fn restart(&mut self) {
        let program = match &self.fate {
            Some(fate) => cuts::mortal(fate),
            None => Command::new(env!("CARGO_BIN_EXE_virtbus-hypervisor")),
        };
        self.service = service(program, &self.site, &self.libvirt, &self.more);
        self.ready().await;
    }

    /// From now on the service dies when this file says.
    pub(crate) async fn be_mortal(&mut self) -> PathBuf {
        if let Some(fate) = &self.fate {
            return fate.clone();
        }
        let fate = self.libvirt.pool().join("fate");
        self.fate = Some(fate.clone());
        self.service.kill();
        self.restart().await;
        fate
    }

    /// Ends a domain at once, which nobody needs any more.
    pub(crate) fn end(&self, domain: &str) {
        let pid = self.libvirt.named_guests()[domain].to_string();
        let ended = Command::new("kill").args(["-9", &pid]).status();
        assert!(ended.unwrap().success());
    }

    pub(crate) async fn ready(&mut self) {
        let service = &mut self.service;
        until("readiness", async || service.ready().await).await;
    }

    /// A bootable disk in the pool, as a storage service would have made it.
    pub(crate) async fn disk(&self, id: &str) {
        self.disk_with(id, &BOOT_SECTOR).await;
    }

    /// A disk whose guest does this.
    pub(crate) async fn disk_with(&self, id: &str, code: &[u8]) {
        let path = self.file(&format!("{id}.qcow2"));
        let raw = path.with_extension("part");
        fs::write(&raw, boot_disk(code)).unwrap();
        qemu_img(&[
            "convert",
            "-f",
            "raw",
            "-O",
            "qcow2",
            &text(&raw),
            &text(&path),
        ]);
        fs::remove_file(raw).unwrap();
        self.record(id, "qcow2", None).await;
    }

    /// A disk on top of another one.
    pub(crate) async fn overlay(&self, id: &str, backing: &str) {
        let path = self.file(&format!("{id}.qcow2"));
        let below = format!("{backing}.qcow2");
        qemu_img(&[
            "create",
            "-q",
            "-f",
            "qcow2",
            "-b",
            &below,
            "-F",
            "qcow2",
            &text(&path),
        ]);
        self.record(id, "qcow2", Some(backing)).await;
        let disks = self.site.disks();
        let mut below = disks.get_latest(backing).await.unwrap().unwrap();
        below.value.children.push(id.parse().unwrap());
        disks.put(backing, &below.value).await.unwrap();
    }

    /// A bootable disk of plain bytes.
    pub(crate) async fn raw_disk(&self, id: &str) {
        fs::write(self.file(&format!("{id}.raw")), boot_disk(&BOOT_SECTOR)).unwrap();
        self.record(id, "raw", None).await;
    }

    async fn record(&self, id: &str, format: &str, backing: Option<&str>) {
        let record = json!({
            "pool": "default", "format": format, "virtual_size": 1 << 20, "backing": backing,
            "state": "ready", "updated_at": Timestamp::now(),
        });
        let record: DiskRecord = serde_json::from_value(record).unwrap();
        self.site.disks().put(id, &record).await.unwrap();
    }

    /// The registers of a guest's processor.
    pub(crate) fn registers(&self, domain: &str) -> String {
        let ask = ["qemu-monitor-command", domain, "--hmp", "info registers"];
        String::from_utf8(self.libvirt.virsh(&ask).stdout).unwrap()
    }

    /// Waits for a guest to show something in a register of its processor.
    pub(crate) async fn shows(&self, domain: &str, wanted: &str) {
        until("the guest to tell", async || match self.registers(domain) {
            said if said.contains(wanted) => Ok(()),
            said => Err(said),
        })
        .await;
    }

    /// What the catalogue says of a disk.
    pub(crate) async fn disk_record(&self, id: &str) -> DiskRecord {
        let entry = self.site.disks().get_latest(id).await.unwrap();
        entry.unwrap().value
    }

    /// A disk's file in the pool.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.libvirt.pool().join("disks").join(name)
    }

    /// What was begun among the pool's disks, and isn't in its place.
    pub(crate) fn parts(&self) -> Vec<String> {
        let files = fs::read_dir(self.libvirt.pool().join("disks")).unwrap();
        let names = files.map(|file| file.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.ends_with(".part")).collect()
    }

    /// The result of a task about a domain on this host, which must succeed.
    pub(crate) async fn done(&self, task: &str, params: Value) -> Value {
        self.site
            .done("hypervisor.hv-test.default", payload(task, &params))
            .await
    }

    /// Publishes a start of a domain with one disk of its own name.
    pub(crate) fn start_of(&self, domain: &str) -> String {
        payload(
            "start_domain",
            &json!({"domain": domain, "template": template(&[domain])}),
        )
    }

    /// Starts a domain with one disk of its own name.
    pub(crate) async fn run(&self, domain: &str) -> Value {
        self.disk(domain).await;
        self.site
            .done("hypervisor.default.default", self.start_of(domain))
            .await
    }
}

fn service(program: Command, site: &Site, libvirt: &Libvirt, more: &[(String, String)]) -> Service {
    let (uri, root) = (libvirt.uri(), text(&libvirt.pool()));
    let mut settings = vec![
        ("LIBVIRT__URI", uri.as_str()),
        ("POOLS__DEFAULT__ROOT", root.as_str()),
    ];
    settings.extend(more.iter().map(|(k, v)| (k.as_str(), v.as_str())));
    Service::start_as(program, site, &settings)
}

pub(crate) fn template(disks: &[&str]) -> Value {
    json!({"memory": "32MiB", "vcpus": 1, "disks": disks})
}

pub(crate) fn payload(task: &str, params: &Value) -> String {
    json!({"task": task, "params": params}).to_string()
}

fn text(path: &std::path::Path) -> String {
    path.to_str().unwrap().to_owned()
}

pub(crate) fn qemu_img(arguments: &[&str]) {
    let said = Command::new("qemu-img").args(arguments).output().unwrap();
    assert!(said.status.success(), "{arguments:?}: {said:?}");
}
