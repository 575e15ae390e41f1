//! Images built by hand, byte by byte.

/// Bytes that numbers are put into.
#[derive(Debug, Clone, Default)]
pub(crate) struct Bytes(pub(crate) Vec<u8>);

impl Bytes {
    pub(crate) fn put(&mut self, at: usize, what: &[u8]) {
        let end = at + what.len();
        if self.0.len() < end {
            self.0.resize(end, 0);
        }
        self.0[at..end].copy_from_slice(what);
    }

    pub(crate) fn be32(&mut self, at: usize, value: u32) {
        self.put(at, &value.to_be_bytes());
    }

    pub(crate) fn be64(&mut self, at: usize, value: u64) {
        self.put(at, &value.to_be_bytes());
    }

    pub(crate) fn le32(&mut self, at: usize, value: u32) {
        self.put(at, &value.to_le_bytes());
    }

    pub(crate) fn le64(&mut self, at: usize, value: u64) {
        self.put(at, &value.to_le_bytes());
    }
}

/// Bytes of a cluster of the hand-made qcow2.
pub(crate) const CLUSTER: usize = 1 << 16;
/// Where its table of reference counts, its first block of them, its L1 and one L2 are.
pub(crate) const REFCOUNTS: usize = CLUSTER;
pub(crate) const L1: usize = 3 * CLUSTER;
pub(crate) const L2: usize = 4 * CLUSTER;

pub(crate) const BACKING_FORMAT: u32 = 0xe279_2aca;
pub(crate) const DATA_FILE: u32 = 0x4441_5441;

/// A qcow2 of 1 MiB with one L2 table.
pub(crate) fn qcow2() -> Bytes {
    let mut image = Bytes(vec![0; 5 * CLUSTER]);
    image.put(0, b"QFI\xfb");
    image.be32(4, 3);
    image.be32(20, 16);
    image.be64(24, 1 << 20);
    image.be32(36, 1);
    image.be64(40, L1 as u64);
    image.be64(48, REFCOUNTS as u64);
    image.be32(56, 1);
    image.be32(96, 4);
    image.be32(100, 104);
    image.be64(REFCOUNTS, 2 * CLUSTER as u64);
    image.be64(L1, (1 << 63) | L2 as u64);
    image
}

/// The same with extensions, and a backing behind them.
pub(crate) fn qcow2_with(extensions: &[(u32, &[u8])], backing: Option<&str>) -> Bytes {
    let mut image = qcow2();
    let mut at = 104;
    for (kind, content) in extensions.iter().chain(&[(0, &[][..])]) {
        image.be32(at, *kind);
        image.be32(at + 4, u32::try_from(content.len()).unwrap());
        image.put(at + 8, content);
        at = (at + 8 + content.len()).next_multiple_of(8);
    }
    if let Some(name) = backing {
        image.be64(8, at as u64);
        image.be32(16, u32::try_from(name.len()).unwrap());
        image.put(at, name.as_bytes());
    }
    image
}

/// A qcow2 whose first cluster of data is in another file.
pub(crate) fn qcow2_data_file(name: &str) -> Bytes {
    let mut image = qcow2_with(&[(DATA_FILE, name.as_bytes())], None);
    image.be64(72, 1 << 2);
    image.be64(L2, 1 << 63);
    image
}

/// The text of a VMDK that's one file.
pub(crate) const VMDK_TEXT: &str = "# Disk DescriptorFile\nversion=1\nCID=6dc8d3a5\n\
    parentCID=ffffffff\ncreateType=\"monolithicSparse\"\n\n# Extent description\n\
    RW 2048 SPARSE \"d1.vmdk\"\n\n# The Disk Data Base\n#DDB\n\nddb.virtualHWVersion = \"4\"\n\
    ddb.adapterType = \"ide\"\n";

/// A VMDK of 1 MiB with this text inside.
pub(crate) fn vmdk(text: &str) -> Bytes {
    const DIRECTORY: u64 = 21;
    let mut image = Bytes(vec![0; 128 * 512]);
    image.put(0, b"KDMV");
    image.le32(4, 1);
    image.le32(8, 1);
    image.le64(12, 2048);
    image.le64(20, 128);
    image.le64(28, 1);
    image.le64(36, 20);
    image.le32(44, 512);
    image.le64(56, DIRECTORY);
    image.le64(64, 128);
    image.put(73, b"\n \r\n");
    image.put(512, text.as_bytes());
    image.le32(DIRECTORY as usize * 512, 22);
    image
}

/// A disc whose descriptors begin where they have to.
pub(crate) fn iso() -> Bytes {
    let mut image = Bytes(vec![0; 1 << 17]);
    image.put(0x8000, b"\x01CD001\x01");
    image.put(0x8000 + 80, &64_u32.to_le_bytes());
    image.put(0x8000 + 128, &2048_u16.to_le_bytes());
    image.put(0x8800, b"\xffCD001\x01");
    image
}

/// Puts a partition table into the first sector.
pub(crate) fn with_mbr(mut image: Bytes, kind: u8) -> Bytes {
    image.put(
        446,
        &[
            0x80, 0, 2, 0, kind, 0xff, 0xff, 0xff, 1, 0, 0, 0, 0, 8, 0, 0,
        ],
    );
    image.put(510, &[0x55, 0xaa]);
    image
}

/// The same, with a GPT behind it.
pub(crate) fn with_gpt(image: Bytes) -> Bytes {
    let mut image = with_mbr(image, 0xee);
    image.put(446, &[0]);
    image.put(512, b"EFI PART");
    image
}

/// Zeros, as a new disk is.
pub(crate) fn blank() -> Bytes {
    Bytes(vec![0; 1 << 20])
}
