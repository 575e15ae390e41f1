//! A guest that starts from a medium, counts how often it started, and goes off when it's asked to.

use crate::guests::{Guests, payload, template};
use serde_json::json;
use std::fs;
use virtbus_wire::{Timestamp, catalog::Desired, task::hypervisor::DomainState};

const POOL: &str = "hypervisor.default.default";

/// Counts its starts in the clock's memory, which a reset leaves as it is, shows the number in a
/// register, has its power button tell it, and switches the power off once that was pressed.
const OBEDIENT: [u8; 42] = [
    0xB0, 0x60, 0xE6, 0x70, 0xE4, 0x71, // in al, the clock's 0x60
    0xFE, 0xC0, 0xE6, 0x71, // inc al; and back
    0x88, 0xC3, 0xB7, 0x5A, // mov bl, al; mov bh, 0x5A
    0xBA, 0x02, 0x06, 0xB8, 0x00, 0x01, 0xEF, // out 0x602, 0x100: the button is heard
    0xFB, 0xF4, // sti; hlt: until the clock ticks
    0xBA, 0x00, 0x06, 0xED, // in ax, 0x600
    0xF6, 0xC4, 0x01, 0x74, 0xF6, // test ah, 1; jz to the hlt: not pressed
    0xBA, 0x04, 0x06, 0xB8, 0x00, 0x20, 0xEF, // out 0x604, 0x2000: off
    0xF4, 0xEB, 0xFD, // hlt; again
];

/// The bytes of a CD that starts with this code: its descriptors, and the catalogue of what it
/// starts with.
fn boot_cd(code: &[u8]) -> Vec<u8> {
    const SECTOR: usize = 2048;
    let (primary, record, catalog, first) = (16 * SECTOR, 17 * SECTOR, 19 * SECTOR, 20 * SECTOR);
    let mut cd = vec![0; first + SECTOR];
    let mut put = |at: usize, bytes: &[u8]| cd[at..at + bytes.len()].copy_from_slice(bytes);
    put(primary, b"\x01CD001\x01");
    put(record, b"\0CD001\x01EL TORITO SPECIFICATION");
    put(record + 0x47, &[19]);
    put(record + SECTOR, b"\xFFCD001\x01");
    // For this kind of processor, with the checksum of that.
    put(catalog, &[1]);
    put(catalog + 0x1C, &[0xAA, 0x55, 0x55, 0xAA]);
    // One sector of the processor's, as it is.
    put(catalog + 0x20, &[0x88, 0, 0, 0, 0, 0, 1, 0, 20]);
    put(first, code);
    cd
}

#[tokio::test]
async fn a_guest_starts_from_a_medium_is_reset_and_goes_off_when_it_is_asked() {
    let guests = Guests::start().await;
    guests.disk("web1").await;
    let file = guests.libvirt.pool().join("media/m1.iso");
    fs::write(file, boot_cd(&OBEDIENT)).unwrap();
    let record = json!({
        "pool": "default", "format": "iso", "state": "ready", "updated_at": Timestamp::now(),
    });
    let record = serde_json::from_value(record).unwrap();
    guests.site.media().put("m1", &record).await.unwrap();
    let users = async || {
        let site = &guests.site;
        (site.users("web1").await, site.users_of_medium("m1").await)
    };
    let used = || {
        (
            vec!["web1 Exclusive".to_owned()],
            vec!["web1 Shared".to_owned()],
        )
    };

    let mut template = template(&["web1"]);
    (template["media"], template["boot"]) = (json!(["m1"]), json!(["media", "disk"]));
    let start = json!({"domain": "web1", "template": template});
    let job = payload("start_domain", &start);
    guests.site.done(POOL, job).await;
    guests.shows("web1", "EBX=00005a01").await;
    assert_eq!(users().await, used());
    // Another one may have it too.
    template["disks"] = json!([]);
    let check = payload(
        "check_domain",
        &json!({"domain": "web2", "template": template}),
    );
    let checked = guests.site.done(POOL, check).await;
    assert_eq!(checked, json!({"ok": true, "warnings": []}));
    assert_eq!(users().await, used());

    let reset = guests.done("reset_domain", json!({"domain": "web1"})).await;
    assert_eq!(reset["state"], "running");
    guests.shows("web1", "EBX=00005a02").await;
    assert_eq!(users().await, used());

    // Longer than anybody waits here: it's the guest that ends it, and not the power.
    for mode in ["shutdown", "shutdown_then_destroy"] {
        let stop = json!({"domain": "web1", "mode": mode, "deadline_s": 3600});
        assert_eq!(guests.done("stop_domain", stop).await["state"], "shutoff");
        let why = guests.libvirt.virsh(&["domstate", "web1", "--reason"]);
        assert_eq!(why.stdout.trim_ascii(), b"shut off (shutdown)", "{mode}");
        assert_eq!(users().await, (vec![], vec![]), "{mode}");
        let record = guests.site.domain("web1").await.unwrap();
        let is = (record.state, record.desired);
        assert_eq!(is, (DomainState::Shutoff, Desired::Shutoff), "{mode}");
        if mode == "shutdown" {
            // As it was defined: with its medium.
            guests.done("start_domain", json!({"domain": "web1"})).await;
            guests.shows("web1", "EBX=00005a01").await;
            assert_eq!(users().await, used());
        }
    }
}
