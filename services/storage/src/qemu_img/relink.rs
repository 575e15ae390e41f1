//! Another name for what an image lies on.

use super::command::{RESIZE, act, bytes_max};
use crate::gate::Passed;
use camino::Utf8Path;
use virtbus_wire::task::image::ImageFormat;
use virtbus_worker::process::CommandLine;

/// Another name of an image's backing.
#[derive(Debug)]
pub struct Relink {
    /// The image.
    pub image: Passed,
    /// The bare name and format of its backing.
    pub backing: (String, ImageFormat),
}

/// `rebase -u`: another name and format of an image's backing in its header, and nothing else.
#[must_use]
pub(super) fn relink(tool: &Utf8Path, relink: &Relink) -> CommandLine {
    let ((name, format), image) = (&relink.backing, &relink.image);
    act(tool, bytes_max(image.length()), RESIZE)
        .args(["rebase", "-u", "-f", image.format().as_str()])
        .args(["-F", format.as_str(), "-b", name])
        .args(["--", image.path().as_str()])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backing_is_renamed_without_being_looked_at() {
        let wanted = Relink {
            image: Passed::unseen("/p/adopt/x.qcow2", ImageFormat::Qcow2),
            backing: ("d1.qcow2".to_owned(), ImageFormat::Qcow2),
        };
        assert_eq!(
            relink("/usr/bin/qemu-img".into(), &wanted).to_string(),
            "/usr/bin/qemu-img rebase -u -f qcow2 -F qcow2 -b d1.qcow2 -- /p/adopt/x.qcow2"
        );
    }
}
