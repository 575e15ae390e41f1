//! The command lines of qemu-img, as data.
//!
//! Formats are always given, files by absolute path or behind `--`, sizes as decimal integers of
//! our own; nothing that a message holds gets into an option but through an enum.

use crate::gate::{Passed, PassedChain};
use camino::{Utf8Path, Utf8PathBuf};
use std::time::Duration;
use virtbus_wire::task::{
    image::{Compat, ImageFormat, Qcow2Options},
    storage::Preallocation,
};
use virtbus_worker::process::{CommandLine, Limits};

/// Open files of one tool: an image, its chain, libraries.
const OPEN_FILES: u64 = 256;
/// How long a question about an image's header may take.
pub(super) const ASK: Duration = Duration::from_secs(60);
/// How long a change of a header and its tables may take.
pub(super) const RESIZE: Duration = Duration::from_secs(600);
/// How long a copy may take; a job's own time-out is mostly shorter.
pub(crate) const COPY: Duration = Duration::from_secs(7 * 24 * 3600);
/// Processor seconds of a question.
const ASK_CPU_S: u64 = 60;
/// Processor seconds of a copy: all coroutines and threads of the longest one.
pub(crate) const COPY_CPU_S: u64 = 64 * 7 * 24 * 3600;
/// Room for headers and tables beside what was measured, in bytes.
const FILE_SLACK_BYTES: u64 = 64 << 20;

/// An image by its file and format. One that's there is opened by tools only as what the gate let
/// through, a [`Passed`] or a [`PassedChain`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// The absolute path.
    pub path: Utf8PathBuf,
    /// The format.
    pub format: ImageFormat,
}

/// What a new image lies on.
#[derive(Debug)]
pub enum Beneath {
    /// Nothing.
    Nothing,
    /// An image that's there, which the tool looks at.
    There(PassedChain),
    /// One of this bare name and format in the same folder, still to come: it isn't looked at.
    ToCome(String, ImageFormat),
}

impl Beneath {
    /// The bare name and format that the new image calls it by.
    fn called(&self) -> Option<(&str, ImageFormat)> {
        match self {
            Self::Nothing => None,
            Self::There(chain) => {
                let first = chain.first();
                Some((first.path().file_name()?, first.format()))
            }
            Self::ToCome(name, format) => Some((name, *format)),
        }
    }
}

/// A new image.
#[derive(Debug)]
pub struct NewImage {
    /// Where it's made.
    pub image: Image,
    /// Its virtual size in bytes.
    pub size: u64,
    /// What it lies on, in the same folder.
    pub backing: Beneath,
    /// How much room is taken at once.
    pub preallocation: Preallocation,
    /// Options, if it's a qcow2.
    pub qcow2: Qcow2Options,
}

/// `info`: what an image's header says. Takes no lock: a running domain may have it.
#[must_use]
pub fn info(tool: &Utf8Path, image: &Passed) -> CommandLine {
    ask(tool)
        .args(["info", "-U", "-f", image.format().as_str()])
        .args(["--output=json", "--", image.path().as_str()])
}

/// `--version`.
#[must_use]
pub fn version(tool: &Utf8Path) -> CommandLine {
    ask(tool).arg("--version")
}

/// `measure`: the room a copy of an image takes as a qcow2, which is about what a copy in any
/// format writes. (Asked about raw, qemu-img counts holes as if they were written.)
#[must_use]
pub fn measure(tool: &Utf8Path, image: &PassedChain) -> CommandLine {
    let image = image.first();
    ask(tool)
        .args(["measure", "-U", "--output=json", "-O", "qcow2"])
        .args(["-f", image.format().as_str(), "--", image.path().as_str()])
}

/// `measure`: the room an empty qcow2 of this virtual size takes.
#[must_use]
pub fn measure_empty(tool: &Utf8Path, size: u64) -> CommandLine {
    ask(tool)
        .args(["measure", "--output=json", "-O", "qcow2", "--size"])
        .arg(size.to_string())
}

/// `create`.
#[must_use]
pub fn create(tool: &Utf8Path, new: &NewImage) -> CommandLine {
    let is_qcow2 = new.image.format == ImageFormat::Qcow2;
    let mut options = if is_qcow2 {
        qcow2_options(&new.qcow2)
    } else {
        Vec::new()
    };
    match new.preallocation {
        Preallocation::Off => {}
        Preallocation::Metadata => options.push("preallocation=metadata".to_owned()),
        Preallocation::Falloc => options.push("preallocation=falloc".to_owned()),
        Preallocation::Full => options.push("preallocation=full".to_owned()),
    }
    let mut line = act(tool, bytes_max(new.size), COPY)
        .args(["create", "-q"])
        .args(matches!(new.backing, Beneath::ToCome(..)).then_some("-u"))
        .args(["-f", new.image.format.as_str()])
        .args(option_list(&options));
    if let Some((backing, format)) = new.backing.called() {
        line = line.args(["-F", format.as_str(), "-b", backing]);
    }
    line.args(["--", new.image.path.as_str()])
        .arg(new.size.to_string())
}

/// The most a file that holds this many bytes may become, its tables included.
#[must_use]
pub fn bytes_max(size: u64) -> u64 {
    size.saturating_add(size / 16)
        .saturating_add(FILE_SLACK_BYTES)
}

pub(super) fn qcow2_options(options: &Qcow2Options) -> Vec<String> {
    let switch = |on: bool| if on { "on" } else { "off" };
    let compat = options.compat.map(|compat| match compat {
        Compat::V2 => "compat=0.10".to_owned(),
        Compat::V3 => "compat=1.1".to_owned(),
    });
    let cluster = options
        .cluster_size
        .map(|size| format!("cluster_size={}", size.bytes()));
    let extended = options
        .extended_l2
        .map(|on| format!("extended_l2={}", switch(on)));
    let lazy = options
        .lazy_refcounts
        .map(|on| format!("lazy_refcounts={}", switch(on)));
    [compat, cluster, extended, lazy]
        .into_iter()
        .flatten()
        .collect()
}

pub(super) fn option_list(options: &[String]) -> Vec<String> {
    match options {
        [] => Vec::new(),
        _ => vec!["-o".to_owned(), options.join(",")],
    }
}

/// A line that only reads.
pub(super) fn ask(tool: &Utf8Path) -> CommandLine {
    CommandLine::new(tool.as_std_path()).limits(Limits {
        open_files: OPEN_FILES,
        file_size_bytes: 0,
        cpu_seconds: ASK_CPU_S,
        wall: ASK,
    })
}

/// A line that writes files of at most so many bytes.
pub(super) fn act(tool: &Utf8Path, file_size_bytes: u64, wall: Duration) -> CommandLine {
    CommandLine::new(tool.as_std_path()).limits(Limits {
        open_files: OPEN_FILES,
        file_size_bytes,
        cpu_seconds: COPY_CPU_S,
        wall,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOOL: &str = "/usr/bin/qemu-img";

    fn image(path: &str, format: ImageFormat) -> Image {
        let path = path.into();
        Image { path, format }
    }

    fn text(line: &CommandLine) -> String {
        line.to_string().replace("/usr/bin/", "")
    }

    #[test]
    fn questions_name_the_format_and_write_nothing() {
        let line = info(
            TOOL.into(),
            &Passed::unseen("/p/disks/d1.raw", ImageFormat::Raw),
        );
        assert_eq!(
            text(&line),
            "qemu-img info -U -f raw --output=json -- /p/disks/d1.raw"
        );
        assert_eq!(line.limits.file_size_bytes, 0);
        let line = measure(
            TOOL.into(),
            &PassedChain::unseen("/p/disks/d1.raw", ImageFormat::Raw),
        );
        assert_eq!(
            text(&line),
            "qemu-img measure -U --output=json -O qcow2 -f raw -- /p/disks/d1.raw"
        );
    }

    #[test]
    fn an_overlay_names_its_backing_relative_and_by_format() {
        let new = NewImage {
            image: image("/p/disks/.j.1.d2.part", ImageFormat::Qcow2),
            size: 1 << 30,
            backing: Beneath::There(PassedChain::unseen("/p/disks/d1.qcow2", ImageFormat::Qcow2)),
            preallocation: Preallocation::Off,
            qcow2: serde_json::from_str(
                r#"{"cluster_size": "64KiB", "extended_l2": true, "compat": "1.1"}"#,
            )
            .unwrap(),
        };
        assert_eq!(
            text(&create(TOOL.into(), &new)),
            "qemu-img create -q -f qcow2 -o compat=1.1,cluster_size=65536,extended_l2=on \
             -F qcow2 -b d1.qcow2 -- /p/disks/.j.1.d2.part 1073741824"
        );
    }

    #[test]
    fn a_raw_file_gets_no_options_of_qcow2() {
        let new = NewImage {
            image: image("/p/x", ImageFormat::Raw),
            size: 512,
            backing: Beneath::Nothing,
            preallocation: Preallocation::Falloc,
            qcow2: serde_json::from_str(r#"{"lazy_refcounts": true}"#).unwrap(),
        };
        assert_eq!(
            text(&create(TOOL.into(), &new)),
            "qemu-img create -q -f raw -o preallocation=falloc -- /p/x 512"
        );
    }
}
