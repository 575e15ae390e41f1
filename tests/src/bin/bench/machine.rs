//! What was measured on: figures of another machine say nothing without it.

use crate::{error::Failure, report::Report, site::Site};
use std::{fs, path::Path, thread};
use tokio::process::Command;

const KIB_PER_GIB: u64 = 1 << 20;

/// Describes machine and versions, with the file system that holds `site`.
pub(crate) async fn describe(site: &Site) -> Result<Report, Failure> {
    let cores = thread::available_parallelism()?;
    let model = value_of(&fs::read_to_string("/proc/cpuinfo")?, "model name");
    let memory = value_of(&fs::read_to_string("/proc/meminfo")?, "MemTotal");
    let kib: u64 = memory.trim_end_matches(" kB").parse().unwrap_or(0);
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    let file_system = file_system(&mounts, site.dir());
    let nats = site.client().server_info().version;
    let qemu_img = first_line("qemu-img").await?;
    let virtbus = first_line(site.program("virtbus")).await?;
    let mut report = Report::default();
    report.text(format!(
        "{cores} cores ({model}), {} GiB of memory, Linux {}, {file_system}; {virtbus}, \
         release profile; nats-server {nats} with its default `sync_interval`, on loopback, on \
         the same cores as everything else; {qemu_img}.",
        kib.div_ceil(KIB_PER_GIB),
        kernel.trim(),
    ));
    Ok(report)
}

fn value_of(text: &str, name: &str) -> String {
    let lines = text.lines().filter_map(|line| line.split_once(':'));
    let mut values = lines.filter(|(key, _)| key.trim() == name);
    let value = values.next().map(|(_, value)| value.trim().to_owned());
    value.unwrap_or_else(|| "unknown".to_owned())
}

/// The kind of the file system with the longest mount point above `path`.
fn file_system(mounts: &str, path: &Path) -> String {
    let fields = mounts.lines().map(|line| line.split(' '));
    let kinds = fields.filter_map(|mut fields| Some((fields.nth(1)?, fields.next()?)));
    let above = kinds.filter(|(point, _)| path.starts_with(point));
    let nearest = above.max_by_key(|(point, _)| point.len());
    nearest.map_or_else(|| "unknown".to_owned(), |(_, kind)| kind.to_owned())
}

async fn first_line(program: impl AsRef<std::ffi::OsStr>) -> Result<String, Failure> {
    let output = Command::new(program).arg("--version").output().await?;
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text.lines().next().unwrap_or_default().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_mount_above_the_folder_counts() {
        let mounts = "/dev/a / ext4 rw 0 0\ntmpfs /srv/x tmpfs rw 0 0\n/dev/b /srv xfs rw 0 0\n";
        assert_eq!(file_system(mounts, Path::new("/srv/y")), "xfs");
        assert_eq!(file_system(mounts, Path::new("/srv/x/y")), "tmpfs");
    }
}
