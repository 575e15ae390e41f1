//! An inspection allocates no more than it says, whatever the file says.
#![expect(unsafe_code, reason = "an allocator that counts can't be made without")]

#[path = "../fuzz/src/lib.rs"]
#[expect(
    dead_code,
    unreachable_pub,
    reason = "a crate of its own, of which a part is used here"
)]
mod targets;

use std::{
    alloc::{GlobalAlloc, Layout, System},
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
};
use virtbus_inspector::limits::MEMORY_BYTES_MAX;

/// The system's allocator, with a count of the bytes that are held, and of the most there were.
struct Counting;

static HELD: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes on to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let held = HELD.fetch_add(layout.size(), Relaxed) + layout.size();
        MOST.fetch_max(held, Relaxed);
        // SAFETY: the caller's promises are the system's conditions.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size(), Relaxed);
        // SAFETY: the caller's promises are the system's conditions.
        unsafe { System.dealloc(place, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The most bytes held at once by an inspection, beyond what was held before.
fn most_held(bytes: &[u8]) -> usize {
    let before = HELD.load(Relaxed);
    MOST.store(before, Relaxed);
    let found = targets::in_chunks(bytes, &[70_000, 3_000], None);
    let most = MOST.load(Relaxed) - before;
    drop(found);
    most
}

/// A qcow2 whose every claim is as large as it may be, in a file that has room for it.
fn greedy_qcow2(patch: impl FnOnce(&mut [u8])) -> Vec<u8> {
    let mut image = vec![0; 48 << 20];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"QFI\xfb\0\0\0\x03");
    put(20, &16_u32.to_be_bytes());
    put(24, &(1_u64 << 46).to_be_bytes());
    put(36, &(4_u32 << 20).to_be_bytes());
    put(40, &(8_u64 << 20).to_be_bytes());
    put(48, &(1_u64 << 16).to_be_bytes());
    put(56, &100_u32.to_be_bytes());
    put(60, &1_024_u32.to_be_bytes());
    put(64, &(40_u64 << 20).to_be_bytes());
    put(96, &[0, 0, 0, 4, 0, 0, 0, 104]);
    patch(&mut image);
    image
}

// One test only: others beside it would be counted too.
#[test]
fn memory_stays_below_its_bound_whatever_a_file_claims() {
    let mut files = vec![
        Vec::new(),
        vec![0xff; 1 << 20],
        greedy_qcow2(|_| {}),
        greedy_qcow2(|image| {
            let name_at = 65_000_u64;
            image[8..16].copy_from_slice(&name_at.to_be_bytes());
            image[16..20].copy_from_slice(&500_u32.to_be_bytes());
            image[65_000..65_500].fill(b'x');
        }),
        greedy_qcow2(|image| image[108..112].fill(0x7f)),
        greedy_qcow2(|image| image[20..40].fill(0x7f)),
    ];
    for mark in [
        b"KDMV".as_slice(),
        b"conectix",
        b"vhdxfile",
        b"QFI\xfb\0\0\0\x03",
    ] {
        let mut image = vec![0xff; 4 << 20];
        image[..mark.len()].copy_from_slice(mark);
        files.push(image);
    }
    for image in files {
        let most = most_held(&image);
        assert!(most <= MEMORY_BYTES_MAX, "{most} bytes held");
        assert!(most > 0, "the allocator counts");
    }
}
