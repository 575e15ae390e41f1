//! virt-sparsify: gives back the room of blocks that the guest's file systems don't use.
//!
//! It starts a small virtual machine that mounts what is in the image, and takes half a minute for
//! that without hardware help. Its device file alone says nothing of whether that help works, and
//! where it doesn't the tool hangs, so it's used only where the configuration says so.

use crate::qemu_img::{
    Image, ToolError,
    command::{COPY, COPY_CPU_S, bytes_max},
    follow_with,
};
use camino::{Utf8Path, Utf8PathBuf};
use virtbus_worker::process::{CommandLine, Limits, Stop, find_program};

/// The program's name.
const NAME: &str = "virt-sparsify";
/// Open files: the machine's own image, libraries, the chain.
const OPEN_FILES: u64 = 1024;
/// The largest file it writes of its own, in bytes: the machine's root disk, which is kept for the
/// next time.
const APPLIANCE_BYTES: u64 = 8 << 30;

/// The tool.
#[derive(Debug, Clone)]
pub struct VirtSparsify {
    program: Utf8PathBuf,
    has_kvm: bool,
}

impl VirtSparsify {
    /// The tool of this folder, or of `PATH`. That it's missing shows with the first job.
    #[must_use]
    pub fn find(dir: Option<&Utf8PathBuf>, has_kvm: bool) -> Self {
        let in_path = || {
            let path = find_program(NAME).ok()?;
            Utf8PathBuf::from_path_buf(path).ok()
        };
        let program = dir.map(|dir| dir.join(NAME)).filter(|path| path.exists());
        let program = program.or_else(in_path);
        Self {
            program: program.unwrap_or_else(|| format!("/usr/bin/{NAME}").into()),
            has_kvm,
        }
    }

    /// Gives back the room of unused blocks, in the image itself, telling the percentage as it
    /// rises.
    ///
    /// # Errors
    /// See [`ToolError`].
    pub async fn in_place(
        &self,
        image: &Image,
        file_bytes: u64,
        stop: &Stop,
        progress: impl FnMut(f64) + Send,
    ) -> Result<(), ToolError> {
        let line = in_place(&self.program, image, self.has_kvm, file_bytes);
        follow_with(line, share, Vec::new(), stop, progress).await
    }
}

/// `--in-place`.
fn in_place(tool: &Utf8Path, image: &Image, has_kvm: bool, file_bytes: u64) -> CommandLine {
    let line = CommandLine::new(tool.as_std_path())
        .args(["--machine-readable", "--in-place"])
        .args(["--format", image.format.as_str()])
        .args(["--", image.path.as_str()])
        .env("LIBGUESTFS_BACKEND", "direct")
        .limits(Limits {
            open_files: OPEN_FILES,
            file_size_bytes: bytes_max(file_bytes).max(APPLIANCE_BYTES),
            cpu_seconds: COPY_CPU_S,
            wall: COPY,
        });
    if has_kvm {
        line
    } else {
        line.env("LIBGUESTFS_BACKEND_SETTINGS", "force_tcg")
    }
}

/// The percentage of a record such as `9/12`; none if it's anything else.
fn share(record: &str) -> Option<f64> {
    let (done, all) = record.trim().split_once('/')?;
    let (done, all): (u32, u32) = (done.parse().ok()?, all.parse().ok()?);
    (all > 0 && done <= all).then(|| f64::from(done) * 100.0 / f64::from(all))
}

#[cfg(test)]
mod tests {
    use super::*;
    use virtbus_wire::task::image::ImageFormat;

    #[test]
    fn the_machine_has_hardware_help_only_where_it_is_said_to_work() {
        let image = Image {
            path: "/p/disks/.j.1.d1.part".into(),
            format: ImageFormat::Qcow2,
        };
        let line = |has_kvm| in_place("/usr/bin/virt-sparsify".into(), &image, has_kvm, 1 << 40);
        assert_eq!(
            line(false).to_string(),
            "/usr/bin/virt-sparsify --machine-readable --in-place --format qcow2 -- \
             /p/disks/.j.1.d1.part"
        );
        let has = |line: CommandLine, name: &str| line.env.iter().any(|(key, _)| key == name);
        assert!(has(line(false), "LIBGUESTFS_BACKEND_SETTINGS"));
        assert!(!has(line(true), "LIBGUESTFS_BACKEND_SETTINGS"));
        assert!(line(true).limits.file_size_bytes > 1 << 40);
    }

    #[test]
    fn only_whole_shares_are_progress() {
        assert_eq!(share("9/12"), Some(75.0));
        assert_eq!(share("12/12\n"), Some(100.0));
        for other in [
            "",
            "/",
            "1/0",
            "13/12",
            "-1/2",
            "[  26.2] Trimming /dev/sda",
            "{ \"a/b\" }",
        ] {
            assert_eq!(share(other), None, "{other:?}");
        }
    }
}
