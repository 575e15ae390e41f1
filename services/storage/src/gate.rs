//! The gate before every tool: what a file's header claims must be what the catalogue says.
//!
//! Pure, and it looks at the first bytes only. It isn't an inspector for files from outside; it
//! keeps a file that was clean when it came from making a tool read or write anything else.

use virtbus_wire::{Code, JobError, task::image::ImageFormat};

/// Bytes of a file that are looked at.
pub const WINDOW_BYTES: usize = 64 * 1024;

/// What the catalogue says of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expected {
    /// Its format.
    pub format: ImageFormat,
    /// The bare name and format of its backing.
    pub backing: Option<(String, ImageFormat)>,
}

/// Lets a file through, or not. `window` is its beginning: [`WINDOW_BYTES`], or all if it's shorter.
///
/// # Errors
/// `image.format_mismatch`, `image.backing_file`, `image.data_file`, `image.unsafe_feature`,
/// `image.corrupt`.
pub fn check(window: &[u8], expected: &Expected) -> Result<(), JobError> {
    match expected.format {
        // A guest may write any header into a raw disk. It's opened as raw, so none is believed.
        ImageFormat::Raw => Ok(()),
        ImageFormat::Qcow2 => qcow2(window, expected.backing.as_ref()),
        ImageFormat::Vmdk => vmdk(window),
        ImageFormat::Vdi => magic(window, 0x40, &[0x7f, 0x10, 0xda, 0xbe]),
        ImageFormat::Vhdx => magic(window, 0, b"vhdxfile"),
        ImageFormat::Vpc => magic(window, 0, b"conectix"),
    }
}

/// Bits of a qcow2's incompatible features.
mod feature {
    pub(super) const CORRUPT: u64 = 1 << 1;
    pub(super) const DATA_FILE: u64 = 1 << 2;
    /// Dirty, corrupt, data file, compression type, extended L2 entries.
    pub(super) const KNOWN: u64 = 0b1_1111;
}

const BACKING_FORMAT: u32 = 0xe279_2aca;
const DATA_FILE_NAME: u32 = 0x4441_5441;
/// Header extensions that are walked: the format knows seven.
const EXTENSIONS_MAX: usize = 32;

fn qcow2(window: &[u8], expected: Option<&(String, ImageFormat)>) -> Result<(), JobError> {
    magic(window, 0, b"QFI\xfb")?;
    let version = be32(window, 4)?;
    if !(2..=3).contains(&version) || be32(window, 32)? != 0 {
        return Err(refuse(Code::ImageUnsafeFeature, "an unknown kind of qcow2"));
    }
    let mut extensions_at = 72;
    if version == 3 {
        let features = be64(window, 72)?;
        if features & feature::DATA_FILE != 0 {
            return Err(refuse(Code::ImageDataFile, "it keeps its data elsewhere"));
        }
        if features & feature::CORRUPT != 0 {
            return Err(refuse(Code::ImageCorrupt, "it's marked as corrupt"));
        }
        if features & !feature::KNOWN != 0 {
            return Err(refuse(Code::ImageUnsafeFeature, "it has unknown features"));
        }
        extensions_at = be32(window, 100)? as usize;
    }
    let format = backing_format(window, extensions_at)?;
    let name = backing_name(window)?;
    let found = name.map(|name| (name, format));
    let wanted = expected.map(|(name, format)| (name.as_bytes(), Some(format.as_str().as_bytes())));
    if found == wanted {
        Ok(())
    } else {
        let text = "its backing isn't the one in the catalogue";
        Err(refuse(Code::ImageBackingFile, text))
    }
}

fn backing_name(window: &[u8]) -> Result<Option<&[u8]>, JobError> {
    let (offset, length) = (be64(window, 8)?, be32(window, 16)?);
    if offset == 0 {
        return Ok(None);
    }
    let at = usize::try_from(offset).ok();
    let name = at.and_then(|at| slice(window, at, length as usize));
    let far = || refuse(Code::ImageBackingFile, "its backing's name is out of place");
    name.map(Some).ok_or_else(far)
}

/// The backing's format in the header's extensions, none of which may name a data file.
fn backing_format(window: &[u8], mut at: usize) -> Result<Option<&[u8]>, JobError> {
    let mut format = None;
    for _ in 0..EXTENSIONS_MAX {
        let (kind, length) = (be32(window, at)?, be32(window, at + 4)? as usize);
        let content = slice(window, at + 8, length).ok_or_else(short)?;
        match kind {
            0 => return Ok(format),
            BACKING_FORMAT => format = Some(content),
            DATA_FILE_NAME => {
                return Err(refuse(Code::ImageDataFile, "it keeps its data elsewhere"));
            }
            _ => {}
        }
        at += 8 + length.next_multiple_of(8);
    }
    Err(refuse(Code::ImageUnsafeFeature, "its header has no end"))
}

fn vmdk(window: &[u8]) -> Result<(), JobError> {
    magic(window, 0, b"KDMV")?;
    // Without a capacity qemu takes the text inside for a list of other files.
    if slice(window, 12, 8).is_none_or(|capacity| capacity == [0; 8]) {
        return Err(refuse(Code::ImageDataFile, "it keeps its data elsewhere"));
    }
    let parent = b"parentFileNameHint";
    if window.windows(parent.len()).any(|text| text == parent) {
        return Err(refuse(Code::ImageBackingFile, "it has a parent"));
    }
    Ok(())
}

fn magic(window: &[u8], at: usize, expected: &[u8]) -> Result<(), JobError> {
    if slice(window, at, expected.len()) == Some(expected) {
        Ok(())
    } else {
        Err(short())
    }
}

fn be32(window: &[u8], at: usize) -> Result<u32, JobError> {
    let bytes = slice(window, at, 4).and_then(|bytes| bytes.try_into().ok());
    bytes.map(u32::from_be_bytes).ok_or_else(short)
}

fn be64(window: &[u8], at: usize) -> Result<u64, JobError> {
    let bytes = slice(window, at, 8).and_then(|bytes| bytes.try_into().ok());
    bytes.map(u64::from_be_bytes).ok_or_else(short)
}

fn slice(window: &[u8], at: usize, length: usize) -> Option<&[u8]> {
    window.get(at..at.checked_add(length)?)
}

fn short() -> JobError {
    refuse(
        Code::ImageFormatMismatch,
        "it isn't of the format it should be",
    )
}

fn refuse(code: Code, why: &str) -> JobError {
    JobError::new(
        code,
        format!("the disk's file can't be opened safely: {why}"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn header(features: u64, extensions: &[(u32, &[u8])], backing: Option<&str>) -> Vec<u8> {
        let mut bytes = vec![0; 104];
        bytes[..4].copy_from_slice(b"QFI\xfb");
        bytes[4..8].copy_from_slice(&3_u32.to_be_bytes());
        bytes[72..80].copy_from_slice(&features.to_be_bytes());
        bytes[100..104].copy_from_slice(&104_u32.to_be_bytes());
        for (kind, content) in extensions.iter().chain(&[(0, &[][..])]) {
            bytes.extend(kind.to_be_bytes());
            bytes.extend(u32::try_from(content.len()).unwrap().to_be_bytes());
            bytes.extend(*content);
            bytes.resize(bytes.len().next_multiple_of(8), 0);
        }
        if let Some(name) = backing {
            let at = bytes.len() as u64;
            bytes[8..16].copy_from_slice(&at.to_be_bytes());
            bytes[16..20].copy_from_slice(&u32::try_from(name.len()).unwrap().to_be_bytes());
            bytes.extend(name.bytes());
        }
        bytes.resize(bytes.len().max(512), 0);
        bytes
    }

    fn alone(format: ImageFormat) -> Expected {
        let backing = None;
        Expected { format, backing }
    }

    fn over(name: &str) -> Expected {
        Expected {
            format: ImageFormat::Qcow2,
            backing: Some((name.to_owned(), ImageFormat::Qcow2)),
        }
    }

    fn code(window: &[u8], expected: &Expected) -> Option<Code> {
        check(window, expected).err().map(|error| error.code)
    }

    #[test]
    fn a_backing_must_be_the_catalogues() {
        let qcow2: (u32, &[u8]) = (BACKING_FORMAT, b"qcow2");
        let overlay = header(0, &[qcow2], Some("d1.qcow2"));
        assert_eq!(code(&overlay, &over("d1.qcow2")), None);
        for wrong in [over("d2.qcow2"), alone(ImageFormat::Qcow2)] {
            assert_eq!(code(&overlay, &wrong), Some(Code::ImageBackingFile));
        }
        let lonely = header(0, &[], None);
        assert_eq!(code(&lonely, &alone(ImageFormat::Qcow2)), None);
        assert_eq!(
            code(&lonely, &over("d1.qcow2")),
            Some(Code::ImageBackingFile)
        );
        let guessed = header(0, &[], Some("d1.qcow2"));
        assert_eq!(
            code(&guessed, &over("d1.qcow2")),
            Some(Code::ImageBackingFile)
        );
        let raw: (u32, &[u8]) = (BACKING_FORMAT, b"raw");
        let other = header(0, &[raw], Some("d1.qcow2"));
        assert_eq!(
            code(&other, &over("d1.qcow2")),
            Some(Code::ImageBackingFile)
        );
    }

    #[test]
    fn a_data_file_is_refused_by_its_bit_and_by_its_name() {
        let alone = alone(ImageFormat::Qcow2);
        let bit = header(feature::DATA_FILE, &[], None);
        assert_eq!(code(&bit, &alone), Some(Code::ImageDataFile));
        let name = header(0, &[(DATA_FILE_NAME, b"/etc/passwd")], None);
        assert_eq!(code(&name, &alone), Some(Code::ImageDataFile));
    }

    #[test]
    fn unknown_features_and_damage_are_refused() {
        let alone = alone(ImageFormat::Qcow2);
        let unknown = header(1 << 5, &[], None);
        assert_eq!(code(&unknown, &alone), Some(Code::ImageUnsafeFeature));
        let corrupt = header(feature::CORRUPT, &[], None);
        assert_eq!(code(&corrupt, &alone), Some(Code::ImageCorrupt));
        let endless = header(0, &[(1, [0; 8].as_slice()); EXTENSIONS_MAX], None);
        assert_eq!(code(&endless, &alone), Some(Code::ImageUnsafeFeature));
    }

    #[test]
    fn a_header_in_a_raw_disk_is_the_guests_own() {
        let hostile = header(feature::DATA_FILE, &[], Some("/etc/passwd"));
        assert_eq!(code(&hostile, &alone(ImageFormat::Raw)), None);
    }

    #[test]
    fn a_file_of_another_format_is_refused() {
        let qcow2 = header(0, &[], None);
        for format in [
            ImageFormat::Vmdk,
            ImageFormat::Vdi,
            ImageFormat::Vhdx,
            ImageFormat::Vpc,
        ] {
            let found = code(&qcow2, &alone(format));
            assert_eq!(found, Some(Code::ImageFormatMismatch), "{format}");
        }
        let found = code(b"", &alone(ImageFormat::Qcow2));
        assert_eq!(found, Some(Code::ImageFormatMismatch));
    }

    #[test]
    fn a_vmdk_that_names_other_files_is_refused() {
        let mut bytes = vec![0; 1024];
        bytes[..4].copy_from_slice(b"KDMV");
        let alone = alone(ImageFormat::Vmdk);
        assert_eq!(code(&bytes, &alone), Some(Code::ImageDataFile));
        bytes[12] = 1;
        assert_eq!(code(&bytes, &alone), None);
        bytes[512..530].copy_from_slice(b"parentFileNameHint");
        assert_eq!(code(&bytes, &alone), Some(Code::ImageBackingFile));
    }

    proptest! {
        #[test]
        fn no_header_makes_it_panic(
            mut bytes in prop::collection::vec(any::<u8>(), 0..300),
            has_magic in any::<bool>(),
        ) {
            if has_magic && bytes.len() > 8 {
                bytes[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
            }
            let _ = code(&bytes, &alone(ImageFormat::Qcow2));
        }
    }
}
