//! The policy against attacks, and the short form against libvirt's own schema.

use super::{
    attacks::{FORBIDDEN, FORBIDDEN_DEVICES, FORBIDDEN_OS},
    *,
};
use crate::libvirt::Mark;
use std::collections::BTreeMap;
use virtbus_wire::{Code, DomainId, JobError, Label, task::hypervisor::Definition};

pub(super) fn domain() -> DomainId {
    "web1".parse().unwrap()
}

pub(super) fn pool() -> Label {
    "default".parse().unwrap()
}

fn read_with(xml: &str, policy: &Policy) -> Result<Blueprint, JobError> {
    Blueprint::new(Definition::Xml(xml), None, &domain(), &pool(), policy)
}

/// A domain with something more in it, and something more among its devices.
fn with(more: &str, devices: &str) -> String {
    format!(
        "<domain type='kvm'><name>web1</name><memory unit='MiB'>64</memory><vcpu>1</vcpu>\
         <os><type arch='x86_64' machine='q35'>hvm</type></os>{more}<devices>\
         <disk type='volume' device='disk'><source pool='default' volume='d7'/>\
         <target dev='vda' bus='virtio'/></disk>{devices}</devices></domain>"
    )
}

fn code(xml: &str) -> Code {
    match read_with(xml, &Policy::default()) {
        Ok(_) => panic!("it was let through: {xml}"),
        Err(error) => error.code,
    }
}

#[test]
fn what_would_reach_the_host_is_refused() {
    assert!(read_with(&with("", ""), &Policy::default()).is_ok());
    for devices in FORBIDDEN_DEVICES {
        assert_eq!(
            code(&with("", devices)),
            Code::DomainForbiddenDevice,
            "{devices}"
        );
    }
    for more in FORBIDDEN {
        assert_eq!(code(&with(more, "")), Code::DomainForbiddenDevice, "{more}");
    }
    for os in FORBIDDEN_OS {
        let xml = format!("<domain><memory>65536</memory>{os}</domain>");
        assert_eq!(code(&xml), Code::DomainForbiddenDevice, "{os}");
    }
    let corpus = FORBIDDEN_DEVICES.len() + FORBIDDEN.len() + FORBIDDEN_OS.len();
    assert!(corpus >= 200, "{corpus}");
}

#[test]
fn what_can_not_be_read_or_means_two_things_is_refused() {
    let two_sources = "<disk type='volume' device='disk'><source pool='default' volume='d8'/>\
                       <source pool='default' volume='d9'/><target dev='vdb'/></disk>";
    let same_disk = "<disk type='volume' device='disk'><source pool='default' volume='d7'/>\
                     <target dev='vdb'/></disk>";
    let same_target = "<disk type='volume' device='disk'><source pool='default' volume='d8'/>\
                       <target dev='vda'/></disk>";
    let bomb = "<!DOCTYPE d [<!ENTITY a 'aaaa'><!ENTITY b '&a;&a;'>]>\
                <domain><name>&b;</name><memory>65536</memory></domain>";
    let external =
        "<!DOCTYPE d SYSTEM 'file:///etc/passwd'><domain><memory>65536</memory></domain>";
    let many = with("", &"<input type='mouse' bus='ps2'/>".repeat(5_000));
    for xml in [
        "",
        "no xml",
        "<domain>",
        "<network/>",
        "<domain/>",
        bomb,
        external,
        &many,
        &with("", two_sources),
        &with("", same_disk),
        &with("", same_target),
        &with("<memory>1</memory>", ""),
        &with("<devices/>", ""),
        &with("<uuid>x</uuid>", ""),
        &with("<os><type>hvm</type></os>", ""),
        &with("<name>web2</name>", ""),
        &with("", "").replace("web1", "<![CDATA[web2]]>"),
        &with("", "").replace("web1", "web<!-- -->2"),
        &with("", "").replace("web1", "web&#x32;"),
        &with("", "").replace("<domain ", "<domain type='qemu' "),
        &with("", "").replace("<domain ", "<Domain "),
        &with("", "").replace("</domain>", "</domain><domain/>"),
        &with("", "").replace("unit='MiB'", "unit='TiB'"),
        &with("", "").replace(">64<", ">0x40<"),
        &with("", "").replace(">64<", ">-1<"),
        &with("<uuid>\u{0}</uuid>", ""),
        &with("<title>&x;</title>", ""),
        &with("", "<input type='mouse' type='evdev' bus='ps2'/>"),
        &with("text", ""),
        &with("<?php x ?>", ""),
        &with("", "").replace("web1", "web2"),
        &with("", "").replace(">64<", ">18446744073709551615<"),
        // 2^53 bytes, and nearly 2^64.
        &with("", "").replace(">64<", ">8589934592<"),
        &with("", "").replace("'MiB'>64<", "'GiB'>17179869183<"),
    ] {
        let refused = read_with(xml, &Policy::default()).expect_err(xml);
        let codes = [Code::DomainInvalidXml, Code::DomainForbiddenDevice];
        assert!(codes.contains(&refused.code), "{xml}");
        assert!(refused.message.chars().count() < 600, "{refused}");
    }
}

#[test]
fn cards_are_allowed_by_the_hosts_configuration() {
    let policy = Policy {
        networks: ["lab".to_owned()].into(),
        bridges: ["br0".to_owned()].into(),
        ..Policy::default()
    };
    for (card, allowed) in [
        (
            "<interface type='network'><source network='lab'/></interface>",
            true,
        ),
        (
            "<interface type='bridge'><source bridge='br0'/></interface>",
            true,
        ),
        (
            "<interface type='bridge'><source bridge='lab'/></interface>",
            false,
        ),
        (
            "<interface type='network'><source network='br0'/></interface>",
            false,
        ),
        (
            "<interface type='network'><source network='lab' bridge='br1'/></interface>",
            false,
        ),
        (
            "<interface type='bridge'><source bridge='br0'/><source bridge='br1'/></interface>",
            false,
        ),
        ("<interface type='user'/>", false),
    ] {
        assert_eq!(
            read_with(&with("", card), &policy).is_ok(),
            allowed,
            "{card}"
        );
    }
}

pub(super) fn mark() -> Mark {
    Mark {
        job: "j'1".replace('\'', "").parse().unwrap(),
        claim: 3,
    }
}

fn files() -> BTreeMap<String, Vec<ChainFile>> {
    let file = |name: &str| ChainFile {
        path: format!("/pool/disks/{name}.qcow2").into(),
        format: "qcow2",
    };
    let iso = ChainFile {
        path: "/pool/media/debian.iso".into(),
        format: "raw",
    };
    [
        ("disk.d7".to_owned(), vec![file("d7"), file("base")]),
        ("disk.d8".to_owned(), vec![file("d8")]),
        ("disk.d9".to_owned(), vec![file("d9")]),
        ("media.debian".to_owned(), vec![iso]),
    ]
    .into()
}

fn for_host(blueprint: &Blueprint, accelerator: Accelerator) -> String {
    let files = files();
    let facts = HostFacts {
        accelerator,
        listen: "127.0.0.1",
        files: &files,
        folders: &BTreeMap::new(),
    };
    blueprint.for_host("web1", uuid::Uuid::nil(), &mark(), &facts)
}

#[test]
fn files_formats_and_the_whole_chain_are_written_by_us() {
    let hostile = with("", "").replace(
        "<source",
        "<driver name='qemu' type='raw' cache='none'/><source",
    );
    let blueprint = read_with(&hostile, &Policy::default()).unwrap();
    let xml = for_host(&blueprint, Accelerator::Qemu);
    let disk = "<disk type='file' device='disk'><driver name='qemu' cache='none' type='qcow2'/>";
    assert!(
        xml.contains("type='qcow2'") && !xml.contains("type='raw'"),
        "{xml}\n{disk}"
    );
    let chain = "<source file='/pool/disks/d7.qcow2'/><backingStore type='file'>\
                 <format type='qcow2'/><source file='/pool/disks/base.qcow2'/><backingStore/>\
                 </backingStore>";
    assert!(xml.contains(chain), "{xml}");
    assert!(
        xml.starts_with("<domain type='qemu'><name>web1</name>"),
        "{xml}"
    );
    assert!(xml.contains("job='j1' claim='3'"), "{xml}");
    let portable = blueprint.portable(&domain(), uuid::Uuid::nil());
    assert!(portable.contains("pool='default' volume='d7'") && !portable.contains("/pool"));
    let again = read_with(&portable, &Policy::default()).unwrap();
    assert_eq!(again.portable(&domain(), uuid::Uuid::nil()), portable);
}

/// Short forms, each with something that its XML must hold.
fn templates() -> Vec<(serde_json::Value, &'static str)> {
    use serde_json::json;
    let with = |more: serde_json::Value| {
        let mut template = json!({"memory": "64MiB", "vcpus": 2, "disks": ["d7"]});
        template
            .as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        template
    };
    vec![
        (with(json!({})), "<memory unit='b'>67108864</memory>"),
        (
            with(
                json!({"disks": ["d7", {"disk": "d8", "bus": "scsi"}, {"disk": "d9", "bus": "sata", "cache": "writeback", "discard": "ignore"}]}),
            ),
            "dev='sdb' bus='sata'",
        ),
        (
            with(json!({"disks": [{"disk": "d7", "readonly": true}]})),
            "<readonly/>",
        ),
        (with(json!({"media": ["debian"]})), "device='cdrom'"),
        (
            with(json!({"media": ["debian"], "boot": ["media", "disk"]})),
            "<boot order='2'/>",
        ),
        (
            with(
                json!({"networks": [{"network": "lab", "mac": "52:54:00:00:00:01"}, {"bridge": "br0", "model": "e1000e"}]}),
            ),
            "<model type='e1000e'/>",
        ),
        (with(json!({"graphics": "spice"})), "com.redhat.spice.0"),
        (with(json!({"graphics": "none"})), "<model type='none'/>"),
        (with(json!({"firmware": "efi"})), "firmware='efi'"),
        (
            with(json!({"firmware": "efi", "secure_boot": true})),
            "enrolled-keys",
        ),
        (with(json!({"tpm": true})), "type='emulator' version='2.0'"),
        (
            with(json!({"machine": "pc", "cpu": "qemu64", "video": "vga"})),
            "machine='pc'",
        ),
        (
            with(json!({"clock": "localtime", "agent": false})),
            "offset='localtime'",
        ),
        (with(json!({"video": "bochs"})), "type='bochs'"),
        (json!({"memory": "1GiB", "vcpus": 1}), "<devices>"),
    ]
}

fn of_template(template: serde_json::Value) -> Blueprint {
    let template = serde_json::from_value(template).unwrap();
    let policy = Policy {
        networks: ["lab".to_owned()].into(),
        bridges: ["br0".to_owned()].into(),
        ..Policy::default()
    };
    let definition = Definition::Template(&template);
    Blueprint::new(definition, None, &domain(), &pool(), &policy).unwrap()
}

#[test]
fn a_template_says_what_it_should() {
    for (template, wanted) in templates() {
        let xml = for_host(&of_template(template.clone()), Accelerator::Kvm);
        assert!(xml.contains(wanted), "{template}\n{xml}");
    }
    let (first, _) = templates().remove(0);
    let blueprint = of_template(first);
    assert_eq!((blueprint.memory, blueprint.vcpus), (64 << 20, 2));
}

#[tokio::test]
async fn libvirt_takes_every_template() {
    let libvirt = virtbus_testbed::Libvirt::start().await;
    let uri = libvirt.uri().parse().unwrap();
    let (host, _hinted) = crate::libvirt::Host::new(&uri).unwrap();
    for (template, _) in templates() {
        let xml = for_host(&of_template(template.clone()), Accelerator::Qemu);
        let defined = host.define(&domain(), xml.clone()).await;
        assert!(defined.is_ok(), "{defined:?}\n{template}\n{xml}");
        host.undefine(&domain()).await.unwrap();
    }
}
