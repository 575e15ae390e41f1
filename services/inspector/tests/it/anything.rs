//! Any bytes: no panic, bounded work, one answer however they come.

use crate::{
    image::{Bytes, VMDK_TEXT, iso, qcow2_with, vmdk, with_gpt},
    targets,
};
use proptest::prelude::*;
use virtbus_inspector::Inspector;

/// Marks to begin with, so that parsers get further than the first look.
const STARTS: [&[u8]; 8] = [
    b"",
    b"QFI\xfb\0\0\0\x03",
    b"QFI\xfb\0\0\0\x02",
    b"KDMV\x01\0\0\0",
    b"conectix",
    b"vhdxfile",
    b"# Disk DescriptorFile\n",
    b"<<< Oracle VM VirtualBox Disk Image >>>\n\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x7f\x10\xda\xbe",
];

fn starting() -> impl Strategy<Value = Vec<u8>> {
    let bytes = prop::collection::vec(any::<u8>(), 0..3000);
    (0..STARTS.len(), bytes).prop_map(|(start, bytes)| [STARTS[start], &bytes].concat())
}

/// A sound image with some of its bytes changed.
fn damaged() -> impl Strategy<Value = Vec<u8>> {
    let images = [
        qcow2_with(&[(0xe279_2aca, b"raw")], Some("d1.raw")),
        vmdk(VMDK_TEXT),
        with_gpt(iso()),
    ];
    let change = (any::<prop::sample::Index>(), any::<[u8; 4]>());
    let changes = prop::collection::vec(change, 0..6);
    (0..images.len(), changes, any::<prop::sample::Index>()).prop_map(
        move |(image, changes, end)| {
            let Bytes(mut bytes) = images[image].clone();
            for (at, four) in changes {
                let at = at.index(1024.min(bytes.len() - 4));
                bytes[at..at + 4].copy_from_slice(&four);
            }
            // Half of them cut.
            let length = end.index(bytes.len() * 2);
            bytes.truncate(length.max(1));
            bytes
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn arbitrary_bytes_get_an_answer(mut bytes in starting(), format in any::<u8>()) {
        targets::detect(&bytes);
        bytes.insert(0, format);
        targets::read_as(&bytes);
        targets::stream(&bytes);
    }

    #[test]
    fn the_answer_is_the_same_in_any_chunks(
        bytes in damaged(),
        sizes in prop::collection::vec(300_usize..100_000, 0..5),
        is_announced in any::<bool>(),
    ) {
        let length = is_announced.then_some(bytes.len() as u64);
        let whole = targets::run(Inspector::detect(), &bytes);
        prop_assert_eq!(targets::in_chunks(&bytes, &sizes, length), whole);
    }

    #[test]
    fn a_wrong_announcement_of_the_length_does_no_harm(bytes in damaged(), length: u64) {
        let found = targets::in_chunks(&bytes, &[4_096], Some(length));
        prop_assert!(found.is_ok() || found.is_err());
    }
}
