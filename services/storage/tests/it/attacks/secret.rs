//! What must not be found in the pool: bytes that no compressor makes fewer, so that a leak shows
//! in what is packed too.

use std::{collections::BTreeSet, io::BufRead};

/// Bytes of it.
const BYTES: usize = 1 << 20;
/// It's looked for by the begin of each block of these bytes, the least that a tool copies ...
const BLOCK_BYTES: usize = 4096;
/// ... of which so many are enough.
const TRACE_BYTES: usize = 16;
/// What each block begins with, so that they are found fast.
const FIRST: u8 = 0xa7;

pub(super) struct Secret {
    bytes: Vec<u8>,
    traces: BTreeSet<Vec<u8>>,
}

impl Secret {
    pub(super) fn new() -> Self {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()
        };
        let mut bytes: Vec<u8> = (0..BYTES / 8).flat_map(|_| next()).collect();
        let blocks = bytes.chunks_mut(BLOCK_BYTES);
        blocks.for_each(|block| block[0] = FIRST);
        let traces = bytes.chunks(BLOCK_BYTES);
        let traces: BTreeSet<_> = traces.map(|block| block[..TRACE_BYTES].to_vec()).collect();
        Self { bytes, traces }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Whether any of it is in a file of these bytes.
    pub(super) fn is_in(&self, file: &[u8]) -> bool {
        let mut rest = file;
        while rest.skip_until(FIRST).unwrap() > 0 {
            let at = file.len() - rest.len() - 1;
            let there = file.get(at..at + TRACE_BYTES);
            if there.is_some_and(|bytes| self.traces.contains(bytes)) {
                return true;
            }
        }
        false
    }
}

#[test]
fn a_secret_shows_in_what_is_packed() {
    use super::corpus::program;
    let (secret, dir) = (Secret::new(), tempfile::tempdir().unwrap());
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    std::fs::write(at("plain"), secret.bytes()).unwrap();
    for kind in ["zlib", "zstd"] {
        let option = format!("compression_type={kind}");
        let copy = ["convert", "-c", "-f", "raw", "-O", "qcow2", "-o", &option];
        let (plain, packed) = (at("plain"), at(kind));
        program("qemu-img", &[&copy[..], &[&plain, &packed]].concat());
        assert!(secret.is_in(&std::fs::read(packed).unwrap()), "{kind}");
    }
    assert!(secret.is_in(&zstd::encode_all(secret.bytes(), 3).unwrap()));
    assert!(secret.is_in(&secret.bytes()[5000..9000]));
    assert!(!secret.is_in(&vec![7; 1 << 20]));
}
