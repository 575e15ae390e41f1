//! The command line of `convert`.

use super::{
    Image,
    command::{COPY, act, option_list, qcow2_options},
};
use crate::{config::Cache, gate::PassedChain};
use camino::Utf8Path;
use virtbus_wire::{
    Size,
    task::image::{Compress, ImageFormat, Qcow2Options, Subformat},
};
use virtbus_worker::process::CommandLine;

/// Coroutines that compress, or read around the cache, where nobody reads ahead: with `-W` what makes
/// compression 10 times faster.
const MANY: &str = "16";
/// Coroutines of any other copy: one reads while another writes, which is as fast. A tool that is
/// made to stand still has so many pieces of 2 MiB on their way to the disk, which others wait for.
const FEW: &str = "2";

/// A copy of an image in another format.
#[derive(Debug)]
pub struct Copy {
    /// What is read, with all below it.
    pub source: PassedChain,
    /// What is made.
    pub target: Image,
    /// How clusters are compressed.
    pub compress: Compress,
    /// The kind of vmdk.
    pub subformat: Option<Subformat>,
    /// Options, if it's a qcow2.
    pub qcow2: Qcow2Options,
    /// How it goes through the host's cache.
    pub cache: Cache,
    /// The most that is written in a second; none = as fast as it goes.
    pub bandwidth: Option<Size>,
    /// The most the file may become, in bytes.
    pub bytes_max: u64,
}

/// `convert`.
#[must_use]
pub(super) fn convert(tool: &Utf8Path, copy: &Copy) -> CommandLine {
    let target = copy.target.format;
    // The one format whose readers expect clusters in order.
    let is_stream = stream_optimized(copy);
    let mut line = act(tool, copy.bytes_max, COPY).args(["convert", "-p"]);
    if copy.compress != Compress::None {
        line = line.arg("-c");
    }
    if !is_stream {
        line = line.args(["-m", coroutines(copy), "-W"]);
    }
    line = line.args(around_cache(copy));
    if let Some(most) = copy.bandwidth {
        line = line.args(["-r".to_owned(), most.bytes().to_string()]);
    }
    let source = copy.source.first();
    line.args(["-f", source.format().as_str(), "-O", target.as_str()])
        .args(option_list(&copy_options(copy)))
        .args(["--", source.path().as_str(), copy.target.path.as_str()])
}

fn coroutines(copy: &Copy) -> &'static str {
    match (copy.compress, copy.cache) {
        (Compress::None, Cache::Writearound | Cache::Writeback) => FEW,
        (Compress::None, Cache::None) | (Compress::Zlib | Compress::Zstd, _) => MANY,
    }
}

/// Which of the two, source (`-T`) and target (`-t`), go around the cache.
fn around_cache(copy: &Copy) -> &'static [&'static str] {
    match copy.cache {
        Cache::Writearound if !writes_pieces(copy) => &["-t", "none"],
        Cache::Writearound | Cache::Writeback => &[],
        Cache::None => &["-t", "none", "-T", "none"],
    }
}

/// Whether the tool writes pieces that begin and end within blocks of the disk. Around the cache
/// each is a read of its blocks and a write, which took half as long again (zstd, 1 GiB of
/// programs) or twice as long (vmdk) as through it.
fn writes_pieces(copy: &Copy) -> bool {
    match copy.target.format {
        ImageFormat::Vmdk => true,
        ImageFormat::Raw
        | ImageFormat::Qcow2
        | ImageFormat::Vdi
        | ImageFormat::Vhdx
        | ImageFormat::Vpc => copy.compress != Compress::None,
    }
}

fn copy_options(copy: &Copy) -> Vec<String> {
    match copy.target.format {
        ImageFormat::Qcow2 => {
            let mut options = qcow2_options(&copy.qcow2);
            if copy.compress == Compress::Zstd {
                options.push("compression_type=zstd".to_owned());
            }
            options
        }
        ImageFormat::Vmdk if stream_optimized(copy) => {
            vec!["subformat=streamOptimized".to_owned()]
        }
        ImageFormat::Vmdk => vec!["subformat=monolithicSparse".to_owned()],
        // Otherwise the size is rounded up to what a disk geometry of 1990 can say.
        ImageFormat::Vpc => vec!["force_size=on".to_owned()],
        ImageFormat::Raw | ImageFormat::Vdi | ImageFormat::Vhdx => Vec::new(),
    }
}

/// A vmdk that's compressed is of this kind, unless the job asks for another.
fn stream_optimized(copy: &Copy) -> bool {
    copy.target.format == ImageFormat::Vmdk
        && match copy.subformat {
            Some(Subformat::StreamOptimized) => true,
            Some(Subformat::MonolithicSparse) => false,
            None => copy.compress != Compress::None,
        }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOOL: &str = "/usr/bin/qemu-img";

    fn text(line: &CommandLine) -> String {
        line.to_string().replace("/usr/bin/", "")
    }

    fn copy(format: ImageFormat, compress: Compress) -> Copy {
        Copy {
            source: PassedChain::unseen("/p/disks/d1.qcow2", ImageFormat::Qcow2),
            target: Image {
                path: "/p/disks/.j.1.d2.part".into(),
                format,
            },
            compress,
            subformat: None,
            qcow2: Qcow2Options::default(),
            cache: Cache::Writeback,
            bandwidth: None,
            bytes_max: 1 << 20,
        }
    }

    #[test]
    fn copies_have_the_best_flags_of_their_target() {
        let line = |copy| text(&convert(TOOL.into(), &copy));
        let ends = |target: &str| format!(" -- /p/disks/d1.qcow2 /p/disks/{target}");
        let end = ends(".j.1.d2.part");
        assert_eq!(
            line(copy(ImageFormat::Qcow2, Compress::Zstd)),
            format!(
                "qemu-img convert -p -c -m 16 -W -f qcow2 -O qcow2 -o compression_type=zstd{end}"
            )
        );
        let slow = Copy {
            bandwidth: Some("50MiB".parse().unwrap()),
            ..copy(ImageFormat::Raw, Compress::None)
        };
        assert!(line(slow).contains(" -W -r 52428800 -f "));
        assert_eq!(
            line(copy(ImageFormat::Vmdk, Compress::Zlib)),
            format!("qemu-img convert -p -c -f qcow2 -O vmdk -o subformat=streamOptimized{end}")
        );
        assert!(line(copy(ImageFormat::Vpc, Compress::None)).contains("-o force_size=on"));
    }

    #[test]
    fn a_copy_goes_around_the_cache_as_far_as_it_is_to() {
        let (around, both) = ("2 -W -t none", "16 -W -t none -T none");
        for (cache, format, compress, flags) in [
            (
                Cache::Writearound,
                ImageFormat::Qcow2,
                Compress::None,
                around,
            ),
            (
                Cache::Writearound,
                ImageFormat::Qcow2,
                Compress::Zstd,
                "16 -W",
            ),
            (Cache::Writearound, ImageFormat::Raw, Compress::None, around),
            (
                Cache::Writearound,
                ImageFormat::Vmdk,
                Compress::None,
                "2 -W",
            ),
            (Cache::Writeback, ImageFormat::Raw, Compress::None, "2 -W"),
            (Cache::None, ImageFormat::Qcow2, Compress::Zstd, both),
            (Cache::None, ImageFormat::Vmdk, Compress::None, both),
        ] {
            let copy = Copy {
                cache,
                ..copy(format, compress)
            };
            let line = text(&convert(TOOL.into(), &copy));
            let expected = format!(" -m {flags} -f qcow2 -O {format} ");
            assert!(line.contains(&expected), "{cache:?}: {line}");
        }
    }
}
