//! How much longer a copy takes through the bus than by the tool alone.

use crate::{
    error::{Failure, failure},
    events::{BUS, Probe},
    report::{Report, Table},
    site::Site,
    stats::Samples,
};
use serde_json::json;
use std::{
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom},
    path::{Path, PathBuf},
    process::Stdio,
};
use tokio::{
    process::Command,
    task::spawn_blocking,
    time::{Instant, sleep},
};

/// The disks' virtual size.
const SIZE: u64 = 2 << 30;
/// Every second stripe of the full one holds random data.
const STRIPE: u64 = 64 << 20;
/// Copies of the full disk, and of an empty one: what the bus costs whatever the size.
const REPEATS_FULL: u32 = 7;
const REPEATS_EMPTY: u32 = 15;
/// How much longer it may take through the bus.
const BUDGET: f64 = 1.01;
/// How often the service is looked at for the tool it runs.
const LOOK_EVERY: std::time::Duration = std::time::Duration::from_millis(2);

/// The command that the service runs, with its source and target taken off.
#[derive(Debug, Clone)]
struct Tool {
    program: String,
    flags: Vec<String>,
}

pub(crate) async fn run(site: &mut Site) -> Result<Report, Failure> {
    let mut probe = Probe::new(site.jetstream(), BUS).await?;
    for disk in ["full", "empty"] {
        let params = json!({ "disk": disk, "size": SIZE });
        probe
            .job(&format!("make-{disk}"), "create_disk", params)
            .await?;
    }
    fill(site).await?;
    let tool = watch_tool(site, &mut probe).await?;
    let mut table = Table::new(&[
        "convert, qcow2 → qcow2",
        "bare, ms",
        "bus, ms",
        "bus / bare",
    ]);
    let full = compare(site, &mut probe, &tool, "full", REPEATS_FULL).await?;
    let empty = compare(site, &mut probe, &tool, "empty", REPEATS_EMPTY).await?;
    let what = "2 GiB, of it 1 GiB random data";
    for (name, times) in [(what, &full), ("2 GiB, empty", &empty)] {
        table.row(vec![
            name.to_owned(),
            times.bare.spread(0),
            times.bus.spread(0),
            times.bus.over(&times.bare).spread(3),
        ]);
    }
    let mut report = Report::default();
    report.table(&table);
    let ratio = full.bus.over(&full.bare).median();
    let verdict = if ratio <= BUDGET { "met" } else { "missed" };
    report.text(format!(
        "`{} {}`, from a warm source, each copy with its fsync, from publish to `succeeded` \
         through the bus; {REPEATS_FULL} and {REPEATS_EMPTY} runs, bare and bus in turns, medians \
         with extremes, the ratio that of neighbouring runs. Budget for the full disk {BUDGET}: \
         {verdict}.",
        Path::new(&tool.program)
            .file_name()
            .unwrap_or_default()
            .display(),
        tool.flags.join(" "),
    ));
    Ok(report)
}

struct Times {
    bare: Samples,
    bus: Samples,
}

async fn compare(
    site: &Site,
    probe: &mut Probe,
    tool: &Tool,
    disk: &str,
    repeats: u32,
) -> Result<Times, Failure> {
    let mut times = Times {
        bare: Samples::default(),
        bus: Samples::default(),
    };
    for repeat in 0..repeats {
        times.bare.push(bare(site, tool, disk).await?);
        settle().await?;
        let to = format!("{disk}-{repeat}");
        times.bus.push(bus(probe, disk, &to).await?);
        settle().await?;
    }
    Ok(times)
}

/// The tool alone, and the fsync of what it made; in milliseconds.
async fn bare(site: &Site, tool: &Tool, disk: &str) -> Result<f64, Failure> {
    let target = site.pool_root().join("disks/bare.qcow2");
    let began = Instant::now();
    let status = Command::new(&tool.program)
        .args(&tool.flags)
        .arg("--")
        .args([&path_of(site, disk), &target])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .kill_on_drop(true)
        .status()
        .await?;
    if !status.success() {
        return Err(failure(format!("qemu-img ended, {status}")));
    }
    let made = target.clone();
    spawn_blocking(move || File::open(made)?.sync_all()).await??;
    let took = began.elapsed();
    fs::remove_file(target)?;
    Ok(took.as_secs_f64() * 1e3)
}

/// The same by a job; in milliseconds. The copy is removed afterwards.
async fn bus(probe: &mut Probe, disk: &str, to: &str) -> Result<f64, Failure> {
    let params = json!({ "disk": disk, "to": to, "format": "qcow2" });
    let began = Instant::now();
    probe.job(&format!("copy-{to}"), "convert", params).await?;
    let took = began.elapsed();
    let params = json!({ "disk": to, "mode": "unlink" });
    probe
        .job(&format!("drop-{to}"), "delete_disk", params)
        .await?;
    Ok(took.as_secs_f64() * 1e3)
}

/// Writes all that is due, so that no run pays for the one before.
pub(crate) async fn settle() -> Result<(), Failure> {
    Ok(spawn_blocking(rustix::fs::sync).await?)
}

/// Writes the data into the full disk, as a guest would.
async fn fill(site: &Site) -> Result<(), Failure> {
    let raw = site.dir().join("data.raw");
    let path = raw.clone();
    spawn_blocking(move || stripes(&path, SIZE, 0)).await??;
    let status = Command::new("qemu-img")
        .args(["convert", "-n", "-f", "raw", "-O", "qcow2", "--"])
        .args([&raw, &path_of(site, "full")])
        .status()
        .await?;
    if !status.success() {
        return Err(failure(format!("the disk could not be filled, {status}")));
    }
    fs::remove_file(raw)?;
    settle().await
}

/// A file of random data in every second stripe, from this one on.
pub(crate) fn stripes(path: &Path, size: u64, first: u64) -> io::Result<()> {
    let (mut file, random) = (File::create(path)?, File::open("/dev/urandom")?);
    file.set_len(size)?;
    for stripe in (first..size / STRIPE).step_by(2) {
        file.seek(SeekFrom::Start(stripe * STRIPE))?;
        io::copy(&mut (&random).take(STRIPE), &mut file)?;
    }
    Ok(())
}

pub(crate) fn path_of(site: &Site, disk: &str) -> PathBuf {
    site.pool_root().join(format!("disks/{disk}.qcow2"))
}

/// A first copy, during which the service's own qemu-img is looked at.
async fn watch_tool(site: &Site, probe: &mut Probe) -> Result<Tool, Failure> {
    let service = site.pid("storage")?;
    let look = async {
        loop {
            if let Some(tool) = tool_of(service) {
                return tool;
            }
            sleep(LOOK_EVERY).await;
        }
    };
    let copy = bus(probe, "full", "first");
    let mut copy = std::pin::pin!(copy);
    tokio::select! {
        tool = look => {
            copy.await?;
            settle().await?;
            Ok(tool)
        }
        copied = &mut copy => {
            copied?;
            Err(failure("the service copied without a tool"))
        }
    }
}

/// The copying child of a process.
fn tool_of(service: i32) -> Option<Tool> {
    let processes = fs::read_dir("/proc").ok()?.filter_map(Result::ok);
    let mut children = processes.map(|entry| entry.path()).filter(|process| {
        let status = fs::read_to_string(process.join("status")).unwrap_or_default();
        status.contains(&format!("\nPPid:\t{service}\n"))
    });
    children.find_map(|process| Tool::read(&fs::read_to_string(process.join("cmdline")).ok()?))
}

impl Tool {
    /// A command line as the kernel shows it.
    fn read(text: &str) -> Option<Self> {
        let mut words = text.trim_end_matches('\0').split('\0').map(str::to_owned);
        let program = words.next()?;
        let flags: Vec<String> = words.take_while(|word| word != "--").collect();
        let copies = flags.first().is_some_and(|verb| verb == "convert");
        copies.then_some(Self { program, flags })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_what_stands_before_the_files() {
        let tool = Tool::read("/bin/qemu-img\0convert\0-W\0--\0a\0b\0").unwrap();
        assert_eq!(tool.flags, ["convert", "-W"]);
        assert!(Tool::read("/bin/qemu-img\0info\0--\0a\0").is_none());
    }
}
