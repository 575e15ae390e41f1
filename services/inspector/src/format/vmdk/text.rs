//! The text inside a VMDK. qemu looks for words anywhere in it, other readers go line by line;
//! only a text that says the same to both is let through.

use crate::{Fault, Part, Subformat, limits::SECTOR_BYTES};

/// Words that qemu looks for, and how often they may stand in the text.
const ONCE: [&[u8]; 2] = [b"createType", b"parentCID"];
const CID: &[u8] = b"CID";
const PARENT: &[u8] = b"parentFileNameHint";

/// What the lines said.
#[derive(Debug, Default)]
struct Said {
    subformat: Option<Subformat>,
    has_no_parent: bool,
    extents: u32,
}

/// Reads the text. `bytes` is what qemu looks at, of which the header claims `text_bytes`;
/// `capacity` is the disk's sectors.
pub(super) fn check(bytes: &[u8], text_bytes: u64, capacity: u64) -> Result<Subformat, Fault> {
    if (bytes.len() as u64) < SECTOR_BYTES.min(text_bytes) {
        return Err(Fault::Truncated(Part::Text));
    }
    if count(bytes, PARENT) != 0 {
        return Err(Fault::Parent);
    }
    let end = bytes
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(bytes.len());
    let text = bytes.get(..end).unwrap_or_default();
    if end as u64 > text_bytes {
        return Err(Fault::Damaged(
            Part::Text,
            "it's longer than the header says",
        ));
    }
    let mut said = Said::default();
    for line in text.split(|byte| *byte == b'\n') {
        said.line(line.trim_ascii(), capacity)?;
    }
    if ONCE.iter().any(|word| count(text, word) != 1) || count(text, CID) != 2 {
        return Err(Fault::Unsafe("a descriptor that can be read in two ways"));
    }
    match said {
        Said {
            has_no_parent: false,
            ..
        } => Err(Fault::Parent),
        Said {
            subformat: Some(subformat),
            extents: 1,
            ..
        } => Ok(subformat),
        Said {
            subformat: None, ..
        }
        | Said { .. } => Err(Fault::Damaged(Part::Text, "it doesn't describe one disk")),
    }
}

impl Said {
    fn line(&mut self, line: &[u8], capacity: u64) -> Result<(), Fault> {
        if line.is_empty() || line.starts_with(b"#") {
            return Ok(());
        }
        if is_extent(line) {
            self.extents += 1;
            return extent(line, capacity);
        }
        let equals = line.iter().position(|byte| *byte == b'=');
        let (key, value) = line.split_at(equals.unwrap_or(line.len()));
        let key = key.trim_ascii();
        let value = value.get(1..).unwrap_or_default().trim_ascii();
        match key {
            b"version" if value == b"1" => Ok(()),
            b"CID" | b"encoding" => Ok(()),
            b"parentCID" => {
                self.has_no_parent = value.eq_ignore_ascii_case(b"ffffffff");
                Ok(())
            }
            b"isNativeSnapshot" if value == b"\"no\"" => Ok(()),
            b"createType" => {
                self.subformat = Some(subformat(value)?);
                Ok(())
            }
            _ if equals.is_some() && key.starts_with(b"ddb.") => Ok(()),
            _ => Err(Fault::Unsafe("an unknown line in a vmdk's descriptor")),
        }
    }
}

fn subformat(value: &[u8]) -> Result<Subformat, Fault> {
    match value {
        b"\"monolithicSparse\"" => Ok(Subformat::MonolithicSparse),
        b"\"streamOptimized\"" => Ok(Subformat::StreamOptimized),
        // All others are made of several files.
        _ => Err(Fault::DataFile),
    }
}

fn is_extent(line: &[u8]) -> bool {
    let word = line
        .split(u8::is_ascii_whitespace)
        .next()
        .unwrap_or_default();
    [b"RW".as_slice(), b"RDONLY", b"NOACCESS"]
        .iter()
        .any(|access| word.eq_ignore_ascii_case(access))
}

/// The only extent is the file itself: `RW 2048 SPARSE "name.vmdk"`. Its name may be an older one.
fn extent(line: &[u8], capacity: u64) -> Result<(), Fault> {
    // VirtualBox says of what it exports that it's only to be read.
    let access = line.strip_prefix(b"RW ").or(line.strip_prefix(b"RDONLY "));
    let rest = access.ok_or(Fault::DataFile)?;
    let quote = rest.iter().position(|byte| *byte == b'"');
    let (words, name) = rest.split_at(quote.ok_or(Fault::DataFile)?);
    let mut words = words
        .split(u8::is_ascii_whitespace)
        .filter(|word| !word.is_empty());
    let sectors = words.next().and_then(|word| std::str::from_utf8(word).ok());
    let sectors = sectors.and_then(|word| word.parse::<u64>().ok());
    let kind = (words.next(), words.next());
    if kind != (Some(b"SPARSE".as_slice()), None) {
        return Err(Fault::DataFile);
    }
    let name = name
        .strip_prefix(b"\"")
        .and_then(|name| name.strip_suffix(b"\""));
    let is_bare = |byte: &u8| !matches!(byte, b'/' | b'\\' | b'"' | b':' | 0..0x20);
    match name {
        Some(name) if !name.is_empty() && name.iter().all(is_bare) => {}
        Some(_) | None => return Err(Fault::DataFile),
    }
    if sectors == Some(capacity) {
        Ok(())
    } else {
        Err(Fault::Damaged(Part::Text, "another size than the header's"))
    }
}

/// How often a word stands in a text, in whatever case.
fn count(text: &[u8], word: &[u8]) -> usize {
    let is = |found: &&[u8]| found.eq_ignore_ascii_case(word);
    text.windows(word.len()).filter(is).count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Fault::{DataFile, Parent, Unsafe};

    const GOOD: &str = "# Disk DescriptorFile\nversion=1\nCID=6dc8d3a5\nparentCID=ffffffff\n\
        createType=\"monolithicSparse\"\n\n# Extent description\nRW 2048 SPARSE \"d1.vmdk\"\n\n\
        #DDB\nddb.virtualHWVersion = \"4\"\nddb.adapterType = \"ide\"\n";

    fn read(text: &str) -> Result<Subformat, Fault> {
        let mut bytes = text.as_bytes().to_vec();
        bytes.resize(20 * 512, 0);
        check(&bytes, 20 * 512, 2048)
    }

    #[test]
    fn one_file_with_itself_as_its_extent_passes() {
        assert_eq!(read(GOOD), Ok(Subformat::MonolithicSparse));
        assert_eq!(
            read(&GOOD.replace('\n', "\r\n")),
            Ok(Subformat::MonolithicSparse)
        );
        let stream = GOOD.replace("monolithicSparse", "streamOptimized");
        assert_eq!(read(&stream), Ok(Subformat::StreamOptimized));
        let exported = stream.replace("RW 2048", "RDONLY 2048");
        assert_eq!(read(&exported), Ok(Subformat::StreamOptimized));
    }

    #[test]
    fn other_files_are_refused_however_they_are_named() {
        for extent in [
            "RW 2048 FLAT \"/etc/passwd\" 0",
            "RW 2048 SPARSE \"../d2.vmdk\"",
            "RW 2048 SPARSE \"d2.vmdk\" 0",
            "rw 2048 SPARSE \"d2.vmdk\"",
            "NOACCESS 2048 SPARSE \"d2.vmdk\"",
            "RW 2048 VMFS \"x\"",
            "RW 2048 ZERO",
            "RW 2048 SPARSE d1.vmdk",
        ] {
            let text = GOOD.replace("RW 2048 SPARSE \"d1.vmdk\"", extent);
            assert_eq!(read(&text), Err(DataFile), "{extent}");
        }
        for kind in ["monolithicFlat", "twoGbMaxExtentSparse", "vmfs", "custom"] {
            let text = GOOD.replace("monolithicSparse", kind);
            assert_eq!(read(&text), Err(DataFile), "{kind}");
        }
        let two = GOOD.replace("#DDB", "RW 2048 SPARSE \"d2.vmdk\"");
        assert_eq!(read(&two).unwrap_err().code().as_str(), "image.corrupt");
    }

    #[test]
    fn a_parent_is_refused_wherever_it_stands() {
        let hint = "parentFileNameHint=\"/etc/passwd\"";
        assert_eq!(read(&GOOD.replace("#DDB", hint)), Err(Parent));
        assert_eq!(
            read(&GOOD.replace("#DDB", &format!("# {hint}"))),
            Err(Parent)
        );
        assert_eq!(read(&format!("{GOOD}\0{hint}")), Err(Parent));
        assert_eq!(read(&GOOD.replace("ffffffff", "6dc8d3a4")), Err(Parent));
        assert_eq!(
            read(&GOOD.replace("parentCID=ffffffff\n", "")),
            Err(Unsafe("a descriptor that can be read in two ways"))
        );
    }

    #[test]
    fn a_text_with_two_meanings_is_refused() {
        for (from, to) in [
            ("#DDB", "# createType=\"monolithicFlat\""),
            ("#DDB", "createType=\"monolithicSparse\""),
            ("#DDB", "# CID=1"),
            ("#DDB", "changeTrackPath=\"x-ctk.vmdk\""),
            ("version=1", "version=2"),
            ("#DDB", "ddb.no value"),
        ] {
            let found = read(&GOOD.replace(from, to)).unwrap_err();
            assert_eq!(found.code().as_str(), "image.unsafe_feature", "{to}");
        }
        let other = GOOD.replace("RW 2048", "RW 4096");
        assert_eq!(read(&other).unwrap_err().code().as_str(), "image.corrupt");
    }
}
