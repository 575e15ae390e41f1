//! virt-sparsify: gives back the room of blocks that the guest's file systems don't use.
//!
//! It starts a small virtual machine that mounts what is in the image, and takes half a minute for
//! that without hardware help. Its device file alone says nothing of whether that help works, and
//! where it doesn't the tool hangs, so it's used only where the configuration says so.
//!
//! Its cage is wider than qemu-img's: it starts other programs, and makes its machine's root disk
//! from the host's own packages when those have changed. It sees the host's programs, its kernel and
//! the list of its packages, but no other settings, no home and no network; it writes the image,
//! a temporary folder of this run, and where the root disk is kept.

use crate::{
    cage::{Reach, Rules},
    gate::{Passed, PassedChain},
    qemu_img::{
        ToolError,
        command::{COPY, COPY_CPU_S, bytes_max},
        follow_with,
    },
};
use camino::{Utf8Path, Utf8PathBuf};
use rustix::{
    fs::{Mode, mkdir},
    io::Errno,
    process::geteuid,
};
use std::path::{Path, PathBuf};
use virtbus_worker::process::{Cage, Calls, CommandLine, Limits, RunError, Stop, find_program};

/// The program's name.
const NAME: &str = "virt-sparsify";
/// Open files: the machine's own image, libraries, the chain.
const OPEN_FILES: u64 = 1024;
/// The largest file it writes of its own, in bytes: the machine's root disk, which is kept for the
/// next time.
const APPLIANCE_BYTES: u64 = 8 << 30;

/// Programs, with what they read beside them.
const PROGRAMS: [&str; 3] = ["/usr", "/bin", "/sbin"];
/// The kernel that the machine runs, what packages there are, and what programs look at when they
/// start.
const READ: [&str; 14] = [
    "/boot",
    "/var/lib/dpkg",
    "/var/lib/rpm",
    "/etc/dpkg",
    "/etc/passwd",
    "/etc/group",
    "/etc/nsswitch.conf",
    "/etc/localtime",
    "/etc/os-release",
    "/etc/mke2fs.conf",
    "/sys/bus",
    "/proc/filesystems",
    "/proc/swaps",
    "/proc/sys/kernel",
];
/// Where its machine's root disk is kept, by user.
const KEPT_IN: &str = "/var/tmp";
/// Where it makes its sockets when it runs as root; else it's told.
const SOCKETS_OF_ROOT: &str = "/tmp";

/// The tool.
#[derive(Debug, Clone)]
pub struct VirtSparsify {
    program: Utf8PathBuf,
    has_kvm: bool,
    rules: Rules,
}

impl VirtSparsify {
    /// The tool of this folder, or of `PATH`, run by these rules. That it's missing shows with the
    /// first job.
    #[must_use]
    pub fn find(dir: Option<&Utf8PathBuf>, has_kvm: bool, rules: Rules) -> Self {
        let in_path = || {
            let path = find_program(NAME).ok()?;
            Utf8PathBuf::from_path_buf(path).ok()
        };
        let program = dir.map(|dir| dir.join(NAME)).filter(|path| path.exists());
        let program = program.or_else(in_path);
        Self {
            program: program.unwrap_or_else(|| format!("/usr/bin/{NAME}").into()),
            has_kvm,
            rules,
        }
    }

    /// Gives back the room of unused blocks, in the image itself, telling the percentage as it
    /// rises.
    ///
    /// # Errors
    /// See [`ToolError`].
    pub async fn in_place(
        &self,
        image: PassedChain,
        file_bytes: u64,
        stop: &Stop,
        progress: impl FnMut(f64) + Send,
    ) -> Result<(), ToolError> {
        let failed = |source| ToolError::Run {
            command: NAME.to_owned(),
            source: Box::new(RunError::Cage {
                program: NAME.to_owned(),
                source,
            }),
        };
        // Removed when the run is over.
        let temporary = tempfile::Builder::new().prefix("virtbus-").tempdir();
        let temporary = temporary.map_err(failed)?;
        let kept = kept_for(geteuid().as_raw()).map_err(|errno| failed(errno.into()))?;
        let line = in_place(&self.program, image.first(), self.has_kvm, file_bytes)
            .env("TMPDIR", temporary.path())
            .env("XDG_RUNTIME_DIR", temporary.path())
            .env("LIBGUESTFS_CACHEDIR", KEPT_IN)
            .cage(self.cage(image.first(), temporary.path(), kept));
        let line = self.rules.behind(line);
        let mut phases = Phases::default();
        let read = |record: &str| phases.read(record);
        follow_with(line, read, Vec::new(), stop, progress).await
    }

    fn cage(&self, image: &Passed, temporary: &Path, kept: PathBuf) -> Cage {
        let reach = Reach::nothing().chain(image.path()).write(image.path());
        let mut cage = self.rules.cage(&reach);
        cage.run.extend(PROGRAMS.map(PathBuf::from));
        cage.read.extend(READ.map(PathBuf::from));
        cage.own.extend([temporary.to_owned(), kept]);
        if geteuid().is_root() {
            cage.sockets_in.push(SOCKETS_OF_ROOT.into());
        }
        cage.devices.push("/dev/zero".into());
        if self.has_kvm {
            cage.devices.push("/dev/kvm".into());
        }
        cage.calls = Calls::Machine;
        cage
    }
}

/// The folder in which the tool keeps its machine's root disk, made if it's missing.
fn kept_for(user: u32) -> Result<PathBuf, Errno> {
    let folder = Path::new(KEPT_IN).join(format!(".guestfs-{user}"));
    match mkdir(&folder, Mode::from_raw_mode(0o755)) {
        Ok(()) | Err(Errno::EXIST) => Ok(folder),
        Err(errno) => Err(errno),
    }
}

/// `--in-place`.
fn in_place(tool: &Utf8Path, image: &Passed, has_kvm: bool, file_bytes: u64) -> CommandLine {
    let line = CommandLine::new(tool.as_std_path())
        .args(["--machine-readable", "--in-place"])
        .args(["--format", image.format().as_str()])
        .args(["--", image.path().as_str()])
        .env("LIBGUESTFS_BACKEND", "direct")
        // When it unpacks its own files: nothing in the cage may give files away, root neither.
        .env("TAR_OPTIONS", "--no-same-owner")
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

/// What the start of the machine is of a run, in percent: as measured, without hardware help, for
/// disks that hold little.
const START_PERCENT: f64 = 60.0;
/// What each phase after it is of what is left: nobody knows how many will come.
const SHARE: f64 = 0.5;

/// How far the tool came, by what it says. It counts up once for the start of its machine, then
/// says what it does to one file system after the other, and may count up for that.
#[derive(Debug)]
struct Phases {
    /// Where the present phase began, and how long it is, in percent.
    begun: f64,
    length: f64,
    /// What was last counted, of 1.
    counted: f64,
}

impl Default for Phases {
    fn default() -> Self {
        Self {
            begun: 0.0,
            length: START_PERCENT,
            counted: 0.0,
        }
    }
}

impl Phases {
    /// The percentage of the run, after one more record; none if it says nothing of that.
    fn read(&mut self, record: &str) -> Option<f64> {
        match share(record) {
            // It counts anew.
            Some(share) if share < self.counted => self.next(share),
            Some(share) => self.counted = share,
            None if is_message(record) => self.next(0.0),
            None => return None,
        }
        Some(self.begun + self.length * self.counted)
    }

    fn next(&mut self, counted: f64) {
        self.begun += self.length;
        self.length = (100.0 - self.begun) * SHARE;
        self.counted = counted;
    }
}

/// The part that a record such as `9/12` says is done; none if it's anything else.
fn share(record: &str) -> Option<f64> {
    let (done, all) = record.trim().split_once('/')?;
    let (done, all): (u32, u32) = (done.parse().ok()?, all.parse().ok()?);
    (all > 0 && done <= all).then(|| f64::from(done) / f64::from(all))
}

/// Whether a record says what is done next. (Each is there twice; the other one is for people.)
fn is_message(record: &str) -> bool {
    #[derive(serde::Deserialize)]
    struct Said {
        r#type: String,
    }
    serde_json::from_str(record).is_ok_and(|said: Said| said.r#type == "message")
}

#[cfg(test)]
mod tests {
    use super::*;
    use virtbus_wire::task::image::ImageFormat;

    #[test]
    fn the_machine_has_hardware_help_only_where_it_is_said_to_work() {
        let image = Passed::unseen("/p/disks/.j.1.d1.part", ImageFormat::Qcow2);
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
    fn its_machine_reaches_no_settings_and_no_home() {
        let image = Passed::unseen("/p/disks/.j.1.d1.part", ImageFormat::Qcow2);
        let cage = |has_kvm| {
            let tool = VirtSparsify::find(None, has_kvm, Rules::default());
            tool.cage(&image, Path::new("/tmp/t"), "/var/tmp/.guestfs-0".into())
        };
        let with = cage(false);
        let seen = [&with.run, &with.read, &with.own, &with.write].into_iter();
        for path in seen.flatten() {
            for above in ["/", "/etc", "/root", "/home", "/var", "/var/lib", "/tmp"] {
                assert_ne!(path, Path::new(above));
            }
        }
        assert_eq!(with.write, [Path::new("/p/disks/.j.1.d1.part")]);
        assert!(!with.devices.contains(&"/dev/kvm".into()));
        assert!(cage(true).devices.contains(&"/dev/kvm".into()));
    }

    #[test]
    fn only_whole_shares_are_progress() {
        assert_eq!(share("9/12"), Some(0.75));
        assert_eq!(share("12/12\n"), Some(1.0));
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

    #[test]
    fn its_phases_are_parts_of_one_whole() {
        let message = |text: &str| {
            format!("{{ \"message\": {text:?}, \"timestamp\": \"…\", \"type\": \"message\" }}\n")
        };
        let said = [
            "3/12\n".to_owned(),
            "12/12\n".to_owned(),
            message("Clearing Linux swap on /dev/sda2"),
            "[  17.0] Clearing Linux swap on /dev/sda2\n".to_owned(),
            "1/172389".to_owned(),
            "172389/172389".to_owned(),
            "1/2".to_owned(),
            message("Trimming /dev/sda1"),
            "{ \"message\": \"x\", \"type\": \"info\" }".to_owned(),
            message("Sparsify in-place operation completed with no errors"),
        ];
        let mut phases = Phases::default();
        let told: Vec<f64> = said.iter().filter_map(|said| phases.read(said)).collect();
        assert!(told.windows(2).all(|pair| pair[0] <= pair[1]), "{told:?}");
        assert_eq!(told[..2], [15.0, 60.0]);
        assert_eq!(told[2], 60.0);
        assert_eq!(told[4], 80.0);
        assert_eq!(told.len(), 8, "{told:?}");
        assert!(told[7] > 90.0 && told[7] < 100.0, "{told:?}");
    }
}
