//! Whether the processor itself runs guests: told by one that does.
//!
//! A device file, libvirt's word and the processor's flags are also there where a guest would never
//! get anywhere. So one is started, as small as can be, through the same firmware as any other: it
//! counts a little and says so, by ending QEMU with a number that nothing else ends it with.

use camino::{Utf8Path, Utf8PathBuf};
use std::{io::Write as _, time::Duration};
use tempfile::NamedTempFile;
use virtbus_worker::process::{CommandLine, Ended, Limits, RunOptions, run};

/// How long it may take; 0.1 s where it works. Where guests run, but a hundred times slower than
/// emulated ones, it isn't there by then.
const LIMIT: Duration = Duration::from_secs(3);
/// Where the guest is told from: it counts 65,536 down, says its number on port 0xf4, stands still.
const BOOT_SECTOR: [u8; 11] = [
    0x31, 0xC9, 0xE2, 0xFE, 0xB0, NUMBER, 0xE6, 0xF4, 0xF4, 0xEB, 0xFD,
];
/// What the guest says.
const NUMBER: u8 = 0x15;
/// What QEMU's device for that makes of it: twice the number, and one.
const SAID: Ended = Ended::Code(2 * NUMBER as i32 + 1);
/// The size of the guest's disk, in bytes: firmware takes none that is much smaller.
const DISK_BYTES: usize = 1 << 20;

/// Whether a guest gets along with this accelerator of QEMU's: `kvm`, `tcg`.
pub(crate) async fn runs_guests(emulator: &Utf8Path, accelerator: &str) -> bool {
    runs(emulator, accelerator, &BOOT_SECTOR).await
}

async fn runs(emulator: &Utf8Path, accelerator: &str, sector: &[u8]) -> bool {
    let disk = match disk(sector) {
        Ok(disk) => disk,
        Err(error) => {
            tracing::warn!(%error, "no disk for a guest to try");
            return false;
        }
    };
    let Some(path) = disk.path().to_str() else {
        return false;
    };
    let command = command(emulator, accelerator, path);
    let options = RunOptions {
        grace: Duration::ZERO,
        ..RunOptions::default()
    };
    match run(&command, options).await {
        Ok(exit) if exit.ended == SAID => true,
        Ok(exit) => {
            tracing::info!(accelerator, ended = ?exit.ended, said = %exit.stderr, "no guest runs");
            false
        }
        Err(error) => {
            tracing::info!(accelerator, %error, "no guest runs");
            false
        }
    }
}

fn disk(sector: &[u8]) -> std::io::Result<NamedTempFile> {
    let mut bytes = sector.to_vec();
    bytes.resize(510, 0);
    bytes.extend([0x55, 0xAA]);
    bytes.resize(DISK_BYTES, 0);
    let mut disk = NamedTempFile::new()?;
    disk.write_all(&bytes)?;
    Ok(disk)
}

/// The command, as data.
fn command(emulator: &Utf8Path, accelerator: &str, disk: &str) -> CommandLine {
    let limits = Limits {
        wall: LIMIT,
        ..Limits::default()
    };
    // A comma would begin an option.
    let disk = disk.replace(',', ",,");
    CommandLine::new(emulator.as_std_path())
        .args(["-accel", accelerator, "-machine", "q35", "-m", "32"])
        .args(["-nodefaults", "-no-user-config", "-display", "none"])
        .args(["-no-reboot", "-sandbox", "on"])
        .arg("-drive")
        .arg(format!(
            "if=none,id=boot,format=raw,readonly=on,file={disk}"
        ))
        .args(["-device", "virtio-blk-pci,drive=boot"])
        .args(["-device", "isa-debug-exit,iobase=0xf4,iosize=4"])
        .limits(limits)
}

/// The program that libvirt runs guests of this machine's kind with, as its capabilities say.
pub(crate) fn emulator(capabilities: &str) -> Option<Utf8PathBuf> {
    let document = roxmltree::Document::parse(capabilities).ok()?;
    let mut arches = document.descendants().filter(|n| n.has_tag_name("arch"));
    let arch = arches.find(|arch| {
        arch.attribute("name") == Some("x86_64")
            && arch
                .parent()
                .is_some_and(|above| above.has_tag_name("guest"))
    })?;
    let mut all = arch.descendants().filter(|n| n.has_tag_name("emulator"));
    all.find_map(|emulator| emulator.text().map(Utf8PathBuf::from))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By the same code as with KVM, which the machine that tests need not have.
    #[tokio::test]
    async fn only_a_guest_that_runs_says_so() {
        let program = virtbus_worker::process::find_program("qemu-system-x86_64").unwrap();
        let program = Utf8Path::from_path(&program).unwrap();
        // Where all else waits for the processor too, one may be too slow.
        virtbus_testbed::until("a guest that says so", async || {
            if runs_guests(program, "tcg").await {
                Ok(())
            } else {
                Err("no word")
            }
        })
        .await;
        // One that stands still at once, as where nothing of it is executed.
        let still = [0xFA, 0xF4, 0xEB, 0xFD];
        assert!(!runs(program, "tcg", &still).await);
        assert!(!runs_guests(program, "nothing").await);
        assert!(!runs_guests(Utf8Path::new("/bin/true"), "tcg").await);
        assert!(!runs_guests(Utf8Path::new("/nonexistent"), "tcg").await);
    }

    #[test]
    fn the_emulator_is_the_one_that_libvirt_names() {
        let capabilities = "<capabilities><host><cpu><arch>x86_64</arch></cpu></host>\
             <guest><arch name='i686'><emulator>/q/i386</emulator></arch></guest>\
             <guest><arch name='x86_64'><emulator>/q/x86_64</emulator>\
             <domain type='kvm'/></arch></guest></capabilities>";
        assert_eq!(emulator(capabilities).unwrap(), "/q/x86_64");
        assert_eq!(emulator("<capabilities/>"), None);
    }
}
