//! Ports for programs that must know theirs beforehand.
//!
//! A port that the system gave out and got back may be another's by the time it's needed: every
//! connection and every server beside takes one of the same.

use std::{
    collections::BTreeMap,
    fs,
    net::{Ipv4Addr, TcpListener},
    ops::Range,
    path::Path,
    sync::atomic::{AtomicU32, Ordering},
};

/// Below those that the system gives out by itself, and above those of screens.
const PORTS: Range<u32> = 30_000..32_768;
/// How far apart processes begin that run side by side.
const APART: u32 = 101;

/// A port on loopback that nobody has now, that nobody is given by chance, and that this process
/// gives out once.
///
/// # Panics
/// When all are taken.
#[must_use]
pub fn free() -> u16 {
    static GIVEN: AtomicU32 = AtomicU32::new(0);
    let count = PORTS.end - PORTS.start;
    let first = std::process::id().wrapping_mul(APART);
    let mut ports = (0..count).map(|_| {
        let number = first.wrapping_add(GIVEN.fetch_add(1, Ordering::Relaxed));
        u16::try_from(PORTS.start + number % count).unwrap()
    });
    let is_free = |port: &u16| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok();
    ports.find(is_free).expect("a free port")
}

/// Gives a new `virtbus up` such ports, in its folder: it takes those of its last start.
///
/// # Panics
/// When they can't be written.
pub fn choose_for_up(folder: &Path) {
    let file = folder.join("ports.json");
    if file.exists() {
        return;
    }
    let names = ["nats", "core", "storage", "hypervisor", "feedback"];
    let ports = BTreeMap::from(names.map(|name| (name, free())));
    fs::create_dir_all(folder).unwrap();
    fs::write(file, serde_json::to_string(&ports).unwrap()).unwrap();
}
