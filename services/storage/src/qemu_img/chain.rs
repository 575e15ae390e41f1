//! The command lines of qemu-img for what lies within an image and below it: snapshots, commits,
//! rebases, checks.

use super::command::{COPY, RESIZE, act, bytes_max};
use crate::{
    config::Cache,
    gate::{Passed, PassedChain},
};
use camino::Utf8Path;
use virtbus_wire::{Size, task::storage::Repair};
use virtbus_worker::process::CommandLine;

/// What is done to a snapshot inside a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// It's made.
    Create,
    /// The image is put back to it.
    Revert,
    /// It's removed.
    Delete,
}

/// A change of the snapshots inside a qcow2.
#[derive(Debug)]
pub struct Snapshot {
    /// The image.
    pub image: PassedChain,
    /// What is done.
    pub act: Act,
    /// The snapshot's name; to revert to it, the format's own number: a name that looks like the
    /// number of another one would be taken for that.
    pub name: String,
}

/// The content of an overlay, into its backing.
#[derive(Debug)]
pub struct Commit {
    /// The overlay.
    pub image: PassedChain,
    /// Its backing, which is written.
    pub into: Passed,
    /// Whether it's empty then.
    pub empties: bool,
    /// How what is written goes through the host's cache.
    pub cache: Cache,
    /// The most that is written in a second; none = as fast as it goes.
    pub bandwidth: Option<Size>,
    /// The most that a file may become, in bytes.
    pub bytes_max: u64,
}

/// Another backing for an image.
#[derive(Debug)]
pub struct Rebase {
    /// The image.
    pub image: PassedChain,
    /// Its new backing, in the same folder.
    pub backing: PassedChain,
    /// How it goes through the host's cache.
    pub cache: Cache,
    /// The most that the file may become, in bytes.
    pub bytes_max: u64,
}

/// `snapshot`. The one subcommand that takes no `-f`, so the format goes into the image's name.
#[must_use]
pub fn snapshot(tool: &Utf8Path, snapshot: &Snapshot) -> CommandLine {
    let act_is = match snapshot.act {
        Act::Create => "-c",
        Act::Revert => "-a",
        Act::Delete => "-d",
    };
    let image = snapshot.image.first();
    act(tool, bytes_max(image.length()), RESIZE)
        .args(["snapshot", "--image-opts", "-q", act_is, &snapshot.name])
        .args(["--".to_owned(), image_options(image)])
}

/// `commit`, into the immediate backing.
#[must_use]
pub fn commit(tool: &Utf8Path, commit: &Commit) -> CommandLine {
    let image = commit.image.first();
    let mut line = act(tool, commit.bytes_max, COPY)
        .args(["commit", "-p"])
        .args((!commit.empties).then_some("-d"));
    if let Some(most) = commit.bandwidth {
        line = line.args(["-r".to_owned(), most.bytes().to_string()]);
    }
    let plain = || ["-f", image.format().as_str(), "--", image.path().as_str()];
    match commit.cache {
        // The tool's own switch is for both files; the overlay is only read.
        Cache::Writearound => line
            .args(["--image-opts", "--"])
            .arg(image_options(image) + ",backing.cache.direct=on"),
        Cache::Writeback => line.args(plain()),
        Cache::None => line.args(["-t", "none"]).args(plain()),
    }
}

/// `rebase`, by comparing what the old and the new backing hold.
#[must_use]
pub fn rebase(tool: &Utf8Path, rebase: &Rebase) -> CommandLine {
    let (image, backing) = (rebase.image.first(), rebase.backing.first());
    let name = backing.path().file_name().unwrap_or_default();
    let mut line =
        act(tool, rebase.bytes_max, COPY).args(["rebase", "-p", "-f", image.format().as_str()]);
    line = match rebase.cache {
        // The old backing is read around it too: the switch is for all that is there before.
        Cache::Writearound => line.args(["-t", "none"]),
        Cache::Writeback => line,
        Cache::None => line.args(["-t", "none", "-T", "none"]),
    };
    line.args(["-F", backing.format().as_str(), "-b", name])
        .args(["--", image.path().as_str()])
}

/// `check`, and what is to be put right.
#[must_use]
pub fn check(tool: &Utf8Path, image: &PassedChain, repair: Repair) -> CommandLine {
    let image = image.first();
    let file_bytes = image.length();
    let (limit, fixes) = match repair {
        Repair::None => (0, None),
        Repair::Leaks => (bytes_max(file_bytes), Some(["-r", "leaks"])),
        Repair::All => (bytes_max(file_bytes), Some(["-r", "all"])),
    };
    act(tool, limit, COPY)
        .args(["check", "--output=json", "-f", image.format().as_str()])
        .args(fixes.into_iter().flatten())
        .args(["--", image.path().as_str()])
}

/// An image as options: a comma in a path stands twice.
fn image_options(image: &Passed) -> String {
    let (format, path) = (image.format(), image.path().as_str().replace(',', ",,"));
    format!("driver={format},file.driver=file,file.filename={path}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use virtbus_wire::task::image::ImageFormat;

    const TOOL: &str = "/usr/bin/qemu-img";

    fn image() -> PassedChain {
        PassedChain::unseen("/p,q/disks/d1.qcow2", ImageFormat::Qcow2)
    }

    fn text(line: &CommandLine) -> String {
        line.to_string().replace("/usr/bin/", "")
    }

    #[test]
    fn a_snapshots_image_is_named_with_its_format() {
        let of = |act_is, name: &str| Snapshot {
            image: image(),
            act: act_is,
            name: name.to_owned(),
        };
        let end = "-- driver=qcow2,file.driver=file,file.filename=/p,,q/disks/d1.qcow2";
        for (act_is, letter) in [(Act::Create, "c"), (Act::Revert, "a"), (Act::Delete, "d")] {
            let line = snapshot(TOOL.into(), &of(act_is, "s1"));
            let expected = format!("qemu-img snapshot --image-opts -q -{letter} s1 {end}");
            assert_eq!(text(&line), expected, "{act_is:?}");
        }
    }

    #[test]
    fn a_commit_empties_what_stays() {
        let of = |empties| Commit {
            image: image(),
            into: image().alone(),
            empties,
            cache: Cache::Writeback,
            bandwidth: None,
            bytes_max: 1 << 20,
        };
        let line = commit(TOOL.into(), &of(true));
        let end = "-- /p,q/disks/d1.qcow2";
        assert_eq!(text(&line), format!("qemu-img commit -p -f qcow2 {end}"));
        let line = commit(TOOL.into(), &of(false));
        assert_eq!(text(&line), format!("qemu-img commit -p -d -f qcow2 {end}"));
        let polite = |cache| Commit {
            cache,
            bandwidth: Some("50MiB".parse().unwrap()),
            ..of(true)
        };
        let line = commit(TOOL.into(), &polite(Cache::None));
        let flags = "-r 52428800 -t none";
        assert_eq!(
            text(&line),
            format!("qemu-img commit -p {flags} -f qcow2 {end}")
        );
        let line = commit(TOOL.into(), &polite(Cache::Writearound));
        let image = "driver=qcow2,file.driver=file,file.filename=/p,,q/disks/d1.qcow2";
        assert_eq!(
            text(&line),
            format!(
                "qemu-img commit -p -r 52428800 --image-opts -- {image},backing.cache.direct=on"
            )
        );
    }

    #[test]
    fn a_rebase_compares_and_names_the_backing_relative() {
        let wanted = |cache| Rebase {
            image: image(),
            backing: PassedChain::unseen("/p,q/disks/d0.raw", ImageFormat::Raw),
            cache,
            bytes_max: 1 << 20,
        };
        let line = |cache| text(&rebase(TOOL.into(), &wanted(cache)));
        let end = "-F raw -b d0.raw -- /p,q/disks/d1.qcow2";
        assert_eq!(
            line(Cache::Writeback),
            format!("qemu-img rebase -p -f qcow2 {end}")
        );
        assert_eq!(
            line(Cache::Writearound),
            format!("qemu-img rebase -p -f qcow2 -t none {end}")
        );
        assert_eq!(
            line(Cache::None),
            format!("qemu-img rebase -p -f qcow2 -t none -T none {end}")
        );
    }

    #[test]
    fn a_check_writes_only_on_request() {
        let of = |repair| check(TOOL.into(), &image(), repair);
        let line = of(Repair::None);
        let end = "-- /p,q/disks/d1.qcow2";
        let start = "qemu-img check --output=json -f qcow2";
        assert_eq!(text(&line), format!("{start} {end}"));
        assert_eq!(line.limits.file_size_bytes, 0);
        assert_eq!(text(&of(Repair::All)), format!("{start} -r all {end}"));
        assert!(text(&of(Repair::Leaks)).contains(" -r leaks -- "));
    }
}
