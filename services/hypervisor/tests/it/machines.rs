//! Machines of all kinds that a template can say, as guests find them.

use crate::guests::{Guests, payload, template};
use serde_json::{Value, json};
use std::{
    fs,
    net::TcpStream,
    path::{Path, PathBuf},
};
use virtbus_testbed::until;

const POOL: &str = "hypervisor.default.default";
const LOW: &str = "hypervisor.default.low";

/// A disk whose first sector shows a number in a register, and stands still.
async fn telling_disk(guests: &Guests, id: &str, number: u8) {
    // mov bx, number; hlt; again.
    let code = [0xBB, number, 0x5A, 0xF4, 0xEB, 0xFD];
    guests.disk_with(id, &code).await;
}

/// How QEMU was called for a guest.
fn command_line(guests: &Guests, domain: &str) -> String {
    let pid = guests.libvirt.named_guests()[domain];
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap();
    String::from_utf8_lossy(&line).replace('\0', " ")
}

async fn stop(guests: &Guests, domain: &str) {
    let destroy = json!({"domain": domain, "mode": "destroy"});
    guests.done("stop_domain", destroy).await;
}

#[tokio::test]
async fn a_guest_starts_from_its_first_disk_on_whichever_bus() {
    let guests = Guests::start().await;
    let mut buses = [("d1", "virtio"), ("d2", "scsi"), ("d3", "sata")];
    for (number, (id, _)) in buses.iter().enumerate() {
        telling_disk(&guests, id, u8::try_from(number).unwrap()).await;
    }
    for number in 0..buses.len() {
        let disks = buses.map(|(disk, bus)| json!({"disk": disk, "bus": bus}));
        let template = json!({"memory": "32MiB", "vcpus": 1, "disks": disks});
        let start = json!({"domain": "web1", "template": template});
        guests.done("start_domain", start).await;
        let wanted = format!("EBX=00005a{number:02x}");
        guests.shows("web1", &wanted).await;
        stop(&guests, "web1").await;
        buses.rotate_left(1);
    }
}

#[tokio::test]
async fn cards_of_both_models_are_there_and_come_in_the_boot_order() {
    let guests = Guests::start_with(&[("POLICY__USER_NETWORK", "true")]).await;
    guests.disk("web1").await;
    let card = |model: &str, order: u32| {
        format!("<interface type='user'><model type='{model}'/><boot order='{order}'/></interface>")
    };
    let xml = format!(
        "<domain type='qemu'><name>web1</name><memory unit='MiB'>32</memory><vcpu>1</vcpu>\
         <os><type arch='x86_64' machine='q35'>hvm</type></os><devices>\
         <disk type='volume' device='disk'><source pool='default' volume='web1'/>\
         <target dev='vda' bus='virtio'/><boot order='2'/></disk>{}{}</devices></domain>",
        card("virtio", 1),
        card("e1000e", 3)
    );
    guests
        .done("start_domain", json!({"domain": "web1", "xml": xml}))
        .await;
    let line = command_line(&guests, "web1");
    let devices: Vec<&str> = line.split(" -device ").collect();
    for (model, order) in [("virtio-net-pci", 1), ("virtio-blk-pci", 2), ("e1000e", 3)] {
        let place = format!("\"bootindex\":{order}");
        let is_it = |device: &&&str| device.contains(model) && device.contains(&place);
        assert!(devices.iter().find(is_it).is_some(), "{model}: {line}");
    }
    stop(&guests, "web1").await;
}

/// What runs beside QEMU for the guests of this daemon.
fn helpers(guests: &Guests) -> Vec<String> {
    let folder = home(guests).display().to_string();
    let all = fs::read_dir("/proc").unwrap().flatten();
    let lines = all.filter_map(|entry| fs::read(entry.path().join("cmdline")).ok());
    let lines = lines.map(|line| String::from_utf8_lossy(&line).replace('\0', " "));
    lines
        .filter(|line| line.contains("swtpm") && line.contains(&folder))
        .collect()
}

/// The folder of the guests' daemon.
fn home(guests: &Guests) -> PathBuf {
    guests.libvirt.pool().parent().unwrap().to_owned()
}

/// What libvirt keeps of a domain, below a folder, by name.
fn kept(folder: &Path, name: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let paths = entries.map(|entry| entry.path());
    paths
        .filter(|path| path.to_string_lossy().contains(name))
        .collect()
}

/// A guest with all that there is, and how far its processor comes: with a trusted module the
/// firmware measures itself for long before it goes on to 64 bits.
struct Machine {
    secure_boot: bool,
    tpm: bool,
    mode: &'static str,
}

const MACHINES: [Machine; 2] = [
    Machine {
        secure_boot: false,
        tpm: false,
        mode: "CS64",
    },
    Machine {
        secure_boot: true,
        tpm: true,
        mode: "CS32",
    },
];

/// Starts one, and has its firmware do its work. What the start says.
async fn runs_with_everything(guests: &Guests, machine: &Machine) -> Value {
    let mut template = template(&["web1"]);
    let (scsi, sata) = (
        json!({"disk": "web2", "bus": "scsi"}),
        json!({"disk": "web3", "bus": "sata"}),
    );
    for (key, value) in [
        ("memory", json!("128MiB")),
        ("disks", json!(["web1", scsi, sata])),
        ("firmware", json!("efi")),
        ("secure_boot", json!(machine.secure_boot)),
        ("tpm", json!(machine.tpm)),
        ("graphics", json!("spice")),
        ("boot", json!(["media", "disk"])),
        ("clock", json!("localtime")),
    ] {
        template[key] = value;
    }
    let start = json!({"domain": "web1", "template": template});
    let started = guests
        .site
        .done(POOL, payload("start_domain", &start))
        .await;
    assert_eq!(started["state"], "running");
    until("the firmware at work", async || {
        let said = guests.registers("web1");
        if said.contains(machine.mode) {
            Ok(())
        } else {
            Err(said)
        }
    })
    .await;
    started
}

#[tokio::test]
async fn a_guest_with_efi_a_trusted_module_and_spice_runs_stops_and_leaves_nothing() {
    let guests = Guests::start().await;
    let disks = ["web1", "web2", "web3"];
    for disk in disks {
        guests.disk(disk).await;
    }
    let libvirts = home(&guests).join("config/libvirt/qemu");
    let (nvram, modules) = (libvirts.join("nvram"), libvirts.join("swtpm"));
    for machine in &MACHINES {
        let started = runs_with_everything(&guests, machine).await;
        let graphics = &started["graphics"];
        assert_eq!(graphics["type"], "spice");
        let port = u16::try_from(graphics["port"].as_u64().unwrap()).unwrap();
        TcpStream::connect(("127.0.0.1", port)).unwrap();
        let line = command_line(&guests, "web1");
        for device in [
            "qxl-vga",
            "spicevmc",
            "pflash",
            "virtio-blk-pci",
            "scsi-hd",
            "ide-hd",
        ] {
            assert!(line.contains(device), "{device}: {line}");
        }
        assert_eq!(line.contains("tpm-crb"), machine.tpm);
        assert_eq!(!helpers(&guests).is_empty(), machine.tpm);
        let uuid = guests.site.domain("web1").await.unwrap().uuid.to_string();
        assert_eq!(kept(&nvram, "web1").len(), 1);
        assert_eq!(kept(&modules, &uuid).len(), usize::from(machine.tpm));

        stop(&guests, "web1").await;
        until("no helper", async || match helpers(&guests) {
            all if all.is_empty() => Ok(()),
            all => Err(all),
        })
        .await;
        assert_eq!(kept(&nvram, "web1").len(), 1, "it's for the next start");
        let just = json!({"domain": "web1"});
        guests.site.done(LOW, payload("delete_domain", &just)).await;
        assert_eq!(guests.libvirt.state("web1"), "");
        assert!(kept(&nvram, "web1").is_empty() && kept(&modules, &uuid).is_empty());
        assert!(guests.site.domain("web1").await.is_none());
        for disk in disks {
            assert!(guests.site.users(disk).await.is_empty());
            assert!(guests.file(&format!("{disk}.qcow2")).exists());
        }
    }
}

#[tokio::test]
async fn a_domain_with_snapshots_is_deleted_with_what_libvirt_knows_of_them() {
    let guests = Guests::start().await;
    guests.run("web1").await;
    for snapshot in ["s1", "s2"] {
        let of = json!({"domain": "web1", "snapshot": snapshot});
        guests.done("create_snapshot", of).await;
    }
    let just = json!({"domain": "web1"});
    let running = guests.site.refused(LOW, payload("delete_domain", &just));
    assert_eq!(running.await.code.as_str(), "domain.wrong_state");
    stop(&guests, "web1").await;
    guests.site.done(LOW, payload("delete_domain", &just)).await;
    assert!(guests.site.domain("web1").await.is_none());
    assert_eq!(guests.libvirt.state("web1"), "");
    let folder = home(&guests).join("config/libvirt/qemu/snapshot/web1");
    assert!(kept(&folder, "").is_empty());
    // What is inside its disk is the disk's.
    assert_eq!(guests.disk_record("web1").await.snapshots.len(), 2);

    let start = guests.start_of("web1");
    guests.site.done(POOL, start).await;
    let names = guests.libvirt.virsh(&["snapshot-list", "web1", "--name"]);
    assert!(names.stdout.trim_ascii().is_empty());
    let record = guests.site.domain("web1").await.unwrap();
    assert!(record.snapshots.is_empty());
}
