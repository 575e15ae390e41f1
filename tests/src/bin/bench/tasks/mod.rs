//! Each long task beside the same done by hand with the best flags, and with those of a system that
//! runs the tools as they come: one coroutine's worth of `-m`, no `-W`, zlib.
//!
//! By hand means: the tool, and the fsync of what it made, which a job has too; and where the task
//! reads back from the disk what it made before it gives up the original, so does the hand. What a
//! task does beside that (looking at the files, locks, records) is what the ratio shows.

mod beside;
mod flags;
mod rebase;
mod row;

use crate::{
    convert::{path_of, settle, stripes},
    error::Failure,
    events::{BUS, Probe},
    report::{Report, Table},
    scale::Size,
    site::Site,
    tools::{Line, timed},
};
use row::{Row, Scale};
use serde_json::{Value, json};
use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    slice,
};
use tokio::{task::spawn_blocking, time::Instant};

const MIB: u64 = 1 << 20;
/// Where jobs between two pools are published.
const PAIR: &str = "storage.default_other.default";
/// The second pool.
const OTHER: &str = "other";
/// The disk that a file system is trimmed in: the tool's own machine takes most of the time.
const USED_DISK_BYTES: u64 = 64 * MIB;
/// By hand, plainly, and over the bus: another one is first each time.
const TURNS: u32 = 3;

pub(crate) async fn run(site: &mut Site, size: Size) -> Result<Report, Failure> {
    let scale = Scale::from(size);
    two_pools(site).await?;
    let probe = Probe::new(site.jetstream(), BUS).await?;
    let hand = site.dir().join("by-hand");
    fs::create_dir(&hand)?;
    let mut bench = Bench {
        site,
        probe,
        hand,
        scale,
        jobs: 0,
    };
    bench
        .job("create_disk", json!({ "disk": "full", "size": scale.size }))
        .await?;
    bench.fill("full", 0).await?;
    let rows = [
        bench
            .convert("convert", "-m 2 -W -t none", "", json!({}))
            .await?,
        bench
            .convert(
                "convert, compressed",
                "-m 16 -W -c -o compression_type=zstd",
                "-c",
                json!({ "compress": "zstd" }),
            )
            .await?,
        bench.flatten().await?,
        bench.rebased().await?,
        bench.commit().await?,
        bench.check().await?,
        bench.archive().await?,
        bench.unarchive().await?,
        bench.moved().await?,
        bench.sparsify().await?,
    ];
    let mut table = Table::new(&[
        "task",
        "best by hand, ms",
        "bus, ms",
        "bus / best",
        "plain flags, ms",
        "plain / bus",
    ]);
    for row in &rows {
        table.row(row.cells());
    }
    let mut report = Report::default();
    report.table(&table);
    report.text(format!(
        "Disks of {} MiB, half of it random data, warm; `sparsify` one of {} MiB. {} runs of each \
         in turns, {} of `sparsify`; medians with extremes, ratios those of neighbouring runs. \
         Plain, as IsardVDI runs them: `qemu-img convert -O qcow2` without `-m` and `-W`, `-c` with \
         zlib, and `rsync -a`; its `virt-sparsify` is that by hand.",
        scale.size / MIB,
        USED_DISK_BYTES / MIB,
        scale.repeats,
        scale.machines,
    ));
    report.table(&bench.flags().await?);
    report.text("The same disk, by hand, in turns, each with its fsync.".to_owned());
    report.table(&bench.beside_copies().await?);
    report.text(format!(
        "{} jobs each, one by one, from publish to `succeeded`.",
        scale.small
    ));
    Ok(report)
}

/// Registers a second pool, and starts a storage service that has both.
async fn two_pools(site: &mut Site) -> Result<(), Failure> {
    let root = site.dir().join("other-pool").display().to_string();
    let question = json!({ "pool": OTHER }).to_string();
    let client = site.client().clone();
    client
        .request("virtbus.pools.register", question.into())
        .await?;
    site.stop("storage").await?;
    let settings = [
        ("VIRTBUS__POOLS__OTHER__ROOT", root),
        ("VIRTBUS__POOLS__OTHER__CREATE", "true".to_owned()),
    ];
    site.start_again("storage", &settings)
}

/// Brings a file to the disk and takes it out of the cache, so that it's read from there.
fn forget(file: &Path) -> [Line; 2] {
    let forget = format!("dd status=none iflag=nocache count=0 if={}", file.display());
    [Line::new("sync", &[file]), Line::new(&forget, &[])]
}

struct Bench<'a> {
    site: &'a Site,
    probe: Probe,
    /// The folder of what is done by hand.
    hand: PathBuf,
    scale: Scale,
    jobs: u32,
}

impl Bench<'_> {
    /// A job on the pool's queue, in milliseconds.
    async fn job(&mut self, task: &str, params: Value) -> Result<f64, Failure> {
        self.job_on(BUS.subject, task, params).await
    }

    async fn job_on(&mut self, subject: &str, task: &str, params: Value) -> Result<f64, Failure> {
        self.jobs += 1;
        let id = format!("bench-{task}-{}", self.jobs);
        let began = Instant::now();
        self.probe.job_on(subject, &id, task, params).await?;
        Ok(began.elapsed().as_secs_f64() * 1e3)
    }

    async fn drop_disk(&mut self, disk: &str) -> Result<(), Failure> {
        let params = json!({ "disk": disk, "mode": "unlink" });
        self.job("delete_disk", params).await?;
        settle().await
    }

    fn file(&self, disk: &str) -> PathBuf {
        path_of(self.site, disk)
    }

    /// Writes data into a disk as its guest would: every second stripe from this one on.
    async fn fill(&self, disk: &str, first: u64) -> Result<(), Failure> {
        let (raw, size) = (self.hand.join("data.raw"), self.scale.size);
        let path = raw.clone();
        spawn_blocking(move || stripes(&path, size, first)).await??;
        let line = "qemu-img convert -n -f raw -O qcow2";
        Line::new(line, &[&raw, &self.file(disk)]).run().await?;
        fs::remove_file(raw)?;
        settle().await
    }

    /// Runs lines whose last makes this file, which goes afterwards.
    async fn by_hand(&self, lines: &[Line], made: &Path) -> Result<f64, Failure> {
        let took = timed(lines, Some(made)).await?;
        fs::remove_file(made)?;
        settle().await?;
        Ok(took)
    }

    async fn convert(
        &mut self,
        name: &'static str,
        best: &str,
        plain: &str,
        more: Value,
    ) -> Result<Row, Failure> {
        let mut row = Row::new(name);
        let (source, made) = (self.file("full"), self.hand.join("made.qcow2"));
        let line = |flags: &str| Line::new(&format!("qemu-img convert {flags}"), &[&source, &made]);
        let best = line(&format!("{best} -f qcow2 -O qcow2"));
        let plain = line(&format!("{plain} -O qcow2"));
        // From here on what they read is in memory.
        self.by_hand(slice::from_ref(&best), &made).await?;
        for repeat in 0..self.scale.repeats {
            for turn in 0..TURNS {
                match (repeat + turn) % TURNS {
                    0 => row
                        .bare
                        .push(self.by_hand(slice::from_ref(&best), &made).await?),
                    1 => row
                        .plain
                        .push(self.by_hand(slice::from_ref(&plain), &made).await?),
                    _ => row.bus.push(self.converted(&more).await?),
                }
            }
        }
        Ok(row)
    }

    /// A `convert` of the full disk with these parameters besides, in milliseconds.
    async fn converted(&mut self, more: &Value) -> Result<f64, Failure> {
        let to = format!("to-{}", self.jobs);
        let mut params = json!({ "disk": "full", "to": to, "format": "qcow2" });
        for (name, value) in more.as_object().into_iter().flatten() {
            params[name] = value.clone();
        }
        let took = self.job("convert", params).await?;
        self.drop_disk(&to).await?;
        Ok(took)
    }

    /// An overlay of the full disk, with data of its own.
    async fn overlay(&mut self) -> Result<String, Failure> {
        let disk = format!("top-{}", self.jobs);
        let params = json!({ "disk": disk, "backing": "full" });
        self.job("create_disk", params).await?;
        self.fill(&disk, 1).await?;
        Ok(disk)
    }

    async fn commit(&mut self) -> Result<Row, Failure> {
        let mut row = Row::new("commit");
        let (base, top) = (self.hand.join("full.qcow2"), self.hand.join("top.qcow2"));
        for _ in 0..self.scale.repeats {
            // By hand on copies; the overlay names its backing by its bare name.
            let disk = self.overlay().await?;
            fs::copy(self.file("full"), &base)?;
            fs::copy(self.file(&disk), &top)?;
            settle().await?;
            let best = [Line::new("qemu-img commit -q -f qcow2", &[&top])];
            row.bare.push(self.by_hand(&best, &base).await?);
            let params = json!({ "disk": disk });
            row.bus.push(self.job("commit", params).await?);
            self.drop_disk(&disk).await?;
        }
        fs::remove_file(top)?;
        Ok(row)
    }

    async fn check(&mut self) -> Result<Row, Failure> {
        let mut row = Row::new("check_disk");
        let best = [Line::new(
            "qemu-img check -q -f qcow2",
            &[&self.file("full")],
        )];
        for _ in 0..self.scale.repeats {
            row.bare.push(timed(&best, None).await?);
            let params = json!({ "disk": "full" });
            row.bus.push(self.job("check_disk", params).await?);
        }
        Ok(row)
    }

    async fn archive(&mut self) -> Result<Row, Failure> {
        let (mut row, packed) = (Row::new("archive_disk"), self.hand.join("full.zst"));
        let file = self.file("full");
        for _ in 0..self.scale.repeats {
            let [sync, forget] = forget(&packed);
            let best = [
                Line::new("zstd -q -f -3 -T2", &[&file, Path::new("-o"), &packed]),
                sync,
                forget,
                Line::new("zstd -q -t", &[&packed]),
            ];
            row.bare.push(self.by_hand(&best, &packed).await?);
            let params = json!({ "disk": "full" });
            row.bus
                .push(self.job("archive_disk", params.clone()).await?);
            settle().await?;
            self.job("unarchive_disk", params).await?;
            settle().await?;
        }
        Ok(row)
    }

    async fn unarchive(&mut self) -> Result<Row, Failure> {
        let mut row = Row::new("unarchive_disk");
        let (packed, made) = (self.hand.join("full.zst"), self.hand.join("full.qcow2"));
        let file = self.file("full");
        let files: [&Path; 3] = [&file, Path::new("-o"), &packed];
        Line::new("zstd -q -f -3 -T2", &files).run().await?;
        for _ in 0..self.scale.repeats {
            let [sync, forget] = forget(&made);
            let best = [
                Line::new("zstd -q -f -d", &[&packed, Path::new("-o"), &made]),
                sync,
                forget,
                Line::new("cmp", &[&file, &made]),
            ];
            row.bare.push(self.by_hand(&best, &made).await?);
            let params = json!({ "disk": "full" });
            self.job("archive_disk", params.clone()).await?;
            settle().await?;
            row.bus.push(self.job("unarchive_disk", params).await?);
            settle().await?;
        }
        fs::remove_file(packed)?;
        Ok(row)
    }

    async fn moved(&mut self) -> Result<Row, Failure> {
        let mut row = Row::new("move_disk");
        let (there, back) = (self.hand.join("there.qcow2"), [OTHER, "default"]);
        let (folder, moved) = (self.hand.join("there"), self.hand.join("there/full.qcow2"));
        fs::create_dir(&folder)?;
        for _ in 0..self.scale.repeats {
            let file = self.file("full");
            for pool in back {
                let is_timed = pool == OTHER;
                if is_timed {
                    let [sync, forget] = forget(&there);
                    let best = [
                        Line::new("cp --reflink=auto --sparse=auto", &[&file, &there]),
                        sync,
                        forget,
                        Line::new("cmp", &[&file, &there]),
                    ];
                    row.bare.push(self.by_hand(&best, &there).await?);
                    let plain = [Line::new(
                        "rsync -a --info=progress,flist0",
                        &[&file, &folder],
                    )];
                    row.plain.push(self.by_hand(&plain, &moved).await?);
                }
                let params = json!({ "disk": "full", "pool": pool });
                let took = self.job_on(PAIR, "move_disk", params).await?;
                settle().await?;
                if is_timed {
                    row.bus.push(took);
                }
            }
        }
        Ok(row)
    }

    async fn sparsify(&mut self) -> Result<Row, Failure> {
        let (mut row, raw) = (Row::new("sparsify"), self.hand.join("used.raw"));
        File::create(&raw)?.set_len(USED_DISK_BYTES)?;
        Line::new("/usr/sbin/mkfs.ext4 -q -F", &[&raw])
            .run()
            .await?;
        for repeat in 0..self.scale.machines {
            let disk = format!("used-{repeat}");
            let params = json!({ "disk": disk, "size": USED_DISK_BYTES });
            self.job("create_disk", params).await?;
            let (file, copy) = (self.file(&disk), self.hand.join("used.qcow2"));
            let line = "qemu-img convert -n -f raw -O qcow2";
            Line::new(line, &[&raw, &file]).run().await?;
            let best = [
                Line::new("cp --reflink=auto", &[&file, &copy]),
                Line::new("virt-sparsify -q --in-place --format qcow2", &[&copy]),
            ];
            if repeat == 0 {
                // The first run makes the tool's machine, which is kept.
                self.by_hand(&best, &copy).await?;
            }
            row.bare.push(self.by_hand(&best, &copy).await?);
            row.bus
                .push(self.job("sparsify", json!({ "disk": disk })).await?);
            self.drop_disk(&disk).await?;
        }
        Ok(row)
    }
}
