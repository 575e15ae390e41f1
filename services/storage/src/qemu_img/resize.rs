//! Another virtual size.

use super::command::{RESIZE, act, bytes_max};
use crate::gate::PassedChain;
use camino::Utf8Path;
use virtbus_worker::process::CommandLine;

/// Another virtual size for an image.
#[derive(Debug)]
pub struct Resize {
    /// The image.
    pub image: PassedChain,
    /// The virtual size in bytes, whatever it is now.
    pub size: u64,
    /// Whether it may become smaller.
    pub shrink: bool,
}

/// `resize`, to this size whatever it is now.
#[must_use]
pub(super) fn resize(tool: &Utf8Path, resize: &Resize) -> CommandLine {
    let image = resize.image.first();
    let largest = resize.size.max(image.length());
    act(tool, bytes_max(largest), RESIZE)
        .args(["resize", "-q", "-f", image.format().as_str()])
        .args(resize.shrink.then_some("--shrink"))
        .args(["--", image.path().as_str()])
        .arg(resize.size.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use virtbus_wire::task::image::ImageFormat;

    #[test]
    fn a_resize_is_absolute_and_shrinks_only_on_request() {
        let mut wanted = Resize {
            image: PassedChain::unseen("/p/disks/d1.qcow2", ImageFormat::Qcow2),
            size: 1 << 20,
            shrink: false,
        };
        let line = resize("/usr/bin/qemu-img".into(), &wanted);
        assert_eq!(
            line.to_string(),
            "/usr/bin/qemu-img resize -q -f qcow2 -- /p/disks/d1.qcow2 1048576"
        );
        assert!(line.limits.file_size_bytes > wanted.image.first().length());
        wanted.shrink = true;
        let line = resize("/usr/bin/qemu-img".into(), &wanted);
        assert!(line.to_string().contains(" --shrink -- "));
    }
}
