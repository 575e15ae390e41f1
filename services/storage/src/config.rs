//! What a storage service is told: its pools, its slots, where its tools are.

use camino::Utf8PathBuf;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use virtbus_daemon::{Common, Problem, Settings};
use virtbus_wire::{Label, Place, PoolPair, Priority, Queue, Size, span::Span};
use virtbus_worker::{WorkConfig, process::IoPriority};

/// The most slots of one process: each may run a tool of its own.
const SLOTS_MAX: u32 = 256;

/// The smallest bandwidth, in bytes per second: less would take a job for dead.
const BANDWIDTH_MIN: u64 = 1 << 20;

/// The service's own settings.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StorageConfig {
    /// The pools this service has, by name.
    pub pools: BTreeMap<Label, PoolConfig>,
    /// Its slots.
    pub work: WorkConfig,
    /// The folder of qemu-img; looked for in `PATH` when left out.
    pub tools_dir: Option<Utf8PathBuf>,
    /// Whether virt-sparsify may use the processor's help (KVM). Without, it takes half a minute
    /// longer; with help that doesn't work, though its device file is there, it never ends.
    pub kvm: bool,
    /// How the tools that open images are locked in.
    pub cage: CageConfig,
    /// How long tasks make way for others.
    pub polite: PoliteConfig,
    /// How often a pool's trash is looked through, and the pool compared with the catalogue.
    pub care_every: Span,
}

impl Default for StorageConfig {
    fn default() -> Self {
        Self {
            pools: BTreeMap::new(),
            work: WorkConfig::default(),
            tools_dir: None,
            kvm: false,
            cage: CageConfig::default(),
            polite: PoliteConfig::default(),
            care_every: care_every(),
        }
    }
}

/// How the tools that open images are locked in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CageConfig {
    /// Whether the service refuses to start where the kernel can't lock them in (Landlock, and a
    /// filter of system calls). With `false` they run with what it offers.
    pub required: bool,
    /// Files and folders that the tools also read and run, where they don't come from the
    /// distribution: their programs and libraries. Absolute.
    pub also_run: Vec<Utf8PathBuf>,
}

impl Default for CageConfig {
    fn default() -> Self {
        Self {
            required: true,
            also_run: Vec::new(),
        }
    }
}

/// How long tasks make way for others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PoliteConfig {
    /// How far back their tools stand in line for the processor: 0 (not at all) to 19.
    pub nice: u8,
    /// How far back they stand in line for the disk.
    pub io: IoTurn,
    /// A folder of cgroup v2 for this service alone, in which each of their tools gets a group with
    /// a fifth of the usual shares. Absolute; looked for beside the service's own group when left
    /// out, where systemd delegates one.
    pub cgroup: Option<Utf8PathBuf>,
}

impl Default for PoliteConfig {
    fn default() -> Self {
        Self {
            nice: NICE,
            io: IoTurn::Last,
            cgroup: None,
        }
    }
}

/// Half way back: an eighth of the processor beside a program that stands at the front.
const NICE: u8 = 10;
/// The last place that `nice` knows.
const NICE_MAX: u8 = 19;

/// A place in line for the disk, where its scheduler knows such.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum IoTurn {
    /// As the service itself.
    Normal,
    /// The last of those that are served.
    Last,
    /// Only when nobody else wants the disk: may wait for ever.
    Idle,
}

impl IoTurn {
    /// The same for the runner.
    #[must_use]
    pub fn priority(self) -> Option<IoPriority> {
        match self {
            Self::Normal => None,
            Self::Last => Some(IoPriority::BestEffort(7)),
            Self::Idle => Some(IoPriority::Idle),
        }
    }
}

/// An hour.
fn care_every() -> Span {
    "1h".parse().expect("an hour is a length of time")
}

/// One pool, as this host sees it. What is the pool's everywhere (the largest disk, options of qcow2)
/// is in its record, not here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PoolConfig {
    /// The pool's folder; absolute. Its file `.virtbus-pool` holds the pool's name.
    pub root: Utf8PathBuf,
    /// The folder of the pool's archive; absolute. It carries the same mark as the pool. Without
    /// it, disks of the pool can't be archived.
    #[serde(default)]
    pub archive: Option<Utf8PathBuf>,
    /// Whether folder and mark are made at start where they are missing. Never for a folder that
    /// is mounted: the empty mount point would become a second pool of that name.
    #[serde(default)]
    pub create: bool,
    /// Room that jobs leave free.
    #[serde(default = "free_min")]
    pub free_min: Size,
    /// How copies go through the host's cache, as far as the file system lets them.
    #[serde(default)]
    pub cache: Cache,
    /// The most that one copy of a long task moves in a second; none = as fast as it goes.
    #[serde(default)]
    pub bandwidth: Option<Size>,
}

/// How copies go through the host's page cache. A file system without `O_DIRECT` has `writeback`,
/// whatever is set.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Cache {
    /// What is read goes through it, what is written around it (`O_DIRECT`): what is warm is read
    /// fast, and what is written fills neither the memory nor the file system's journal, where
    /// short jobs would wait behind it.
    #[default]
    Writearound,
    /// Both through it: a copy much smaller than the memory may end sooner, a larger one is slowed
    /// down by the kernel, and all others that write with it.
    Writeback,
    /// Both around it: leaves the cache to the guests, also where what is read is warm.
    None,
}

impl Cache {
    /// What of this can be had on a file system that has `O_DIRECT`, or hasn't.
    #[must_use]
    pub fn had_with(self, direct: Direct) -> Self {
        match (self, direct) {
            (_, Direct::Has) => self,
            (Self::Writearound | Self::Writeback | Self::None, Direct::Lacks) => Self::Writeback,
        }
    }
}

/// Whether a file system lets files be written around the cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direct {
    /// It has `O_DIRECT`.
    Has,
    /// It hasn't: some that lie in memory, in user space or on a network.
    Lacks,
}

/// 256 MiB.
fn free_min() -> Size {
    const BYTES: u64 = 256 << 20;
    Size::from_bytes(BYTES).expect("256 MiB is a size")
}

impl PoolConfig {
    fn folders(&self) -> impl Iterator<Item = &Utf8PathBuf> {
        std::iter::once(&self.root).chain(&self.archive)
    }

    /// A pool at this folder, everything else as by default.
    #[must_use]
    pub fn at(root: impl Into<Utf8PathBuf>) -> Self {
        Self {
            root: root.into(),
            archive: None,
            create: false,
            free_min: free_min(),
            cache: Cache::default(),
            bandwidth: None,
        }
    }
}

impl StorageConfig {
    /// What the service takes jobs from: its pools, and each pair of them.
    #[must_use]
    pub fn queues(&self) -> Vec<Queue> {
        let pools: Vec<&Label> = self.pools.keys().collect();
        let singles = pools.iter().map(|pool| Place::Pool((*pool).clone()));
        let pairs = pools.iter().enumerate().flat_map(|(at, one)| {
            let others = pools[at + 1..].iter();
            others.filter_map(|other| PoolPair::new((*one).clone(), (*other).clone()))
        });
        singles
            .chain(pairs.map(Place::Pair))
            .flat_map(|place| Priority::ALL.map(|priority| Queue::Storage(place.clone(), priority)))
            .collect()
    }
}

impl Settings for StorageConfig {
    fn check(&self, _: &Common) -> Vec<Problem> {
        let mut problems = Vec::new();
        let mut demand = |holds: bool, field: &str, reason: &str| {
            if !holds {
                problems.push(Problem::new(field, reason));
            }
        };
        demand(!self.pools.is_empty(), "pools", "at least one is needed");
        let slots = self.work.slots <= SLOTS_MAX;
        demand(slots, "work.slots", "must be at most 256");
        let absolute = self.tools_dir.as_ref().is_none_or(|dir| dir.is_absolute());
        demand(absolute, "tools_dir", "must be absolute");
        let absolute = self.cage.also_run.iter().all(|path| path.is_absolute());
        demand(absolute, "cage.also_run", "must be absolute");
        let absolute = self.polite.cgroup.as_ref();
        let absolute = absolute.is_none_or(|path| path.is_absolute());
        demand(absolute, "polite.cgroup", "must be absolute");
        let nice = self.polite.nice <= NICE_MAX;
        demand(nice, "polite.nice", "must be at most 19");
        for (name, pool) in &self.pools {
            let bandwidth = pool
                .bandwidth
                .is_none_or(|most| most.bytes() >= BANDWIDTH_MIN);
            let field = format!("pools.{name}.bandwidth");
            demand(bandwidth, &field, "must be at least 1MiB");
            let field = format!("pools.{name}.root");
            demand(pool.root.is_absolute(), &field, "must be absolute");
            let others = || self.pools.iter().filter(|(other, _)| *other != name);
            let nested = |root: &Utf8PathBuf| {
                let mut roots = others().flat_map(|(_, other)| other.folders());
                roots.any(|other| root.starts_with(other))
            };
            demand(
                !nested(&pool.root),
                &field,
                "lies in the folder of another pool",
            );
            if let Some(archive) = &pool.archive {
                let field = format!("pools.{name}.archive");
                demand(archive.is_absolute(), &field, "must be absolute");
                let apart = !archive.starts_with(&pool.root)
                    && !pool.root.starts_with(archive)
                    && !nested(archive);
                demand(apart, &field, "lies in the folder of a pool, or around it");
            }
        }
        problems.extend(
            self.work
                .slots()
                .err()
                .map(|error| Problem::new("work", error)),
        );
        problems
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: serde_json::Value) -> StorageConfig {
        serde_json::from_value(text).unwrap()
    }

    fn problems(config: &StorageConfig) -> Vec<String> {
        let problems = config.check(&Common::default());
        problems.into_iter().map(|problem| problem.field).collect()
    }

    #[test]
    fn a_pool_with_a_root_is_enough() {
        let config = config(serde_json::json!({ "pools": { "default": { "root": "/srv/p" } } }));
        assert_eq!(problems(&config), Vec::<String>::new());
        assert_eq!(
            config.pools.values().next(),
            Some(&PoolConfig::at("/srv/p"))
        );
    }

    #[test]
    fn all_problems_are_told_at_once() {
        let config = config(serde_json::json!({
            "pools": { "a": { "root": "srv/a" }, "b": { "root": "/b", "archive": "/b/x" },
                       "c": { "root": "/b/c" } },
            "work": { "slots": 2, "reserved_high": 2 }, "tools_dir": "bin",
            "cage": { "also_run": ["opt"] }, "polite": { "nice": 20 },
        }));
        assert_eq!(
            problems(&config),
            [
                "tools_dir",
                "cage.also_run",
                "polite.nice",
                "pools.a.root",
                "pools.b.archive",
                "pools.c.root",
                "work"
            ]
        );
    }

    #[test]
    fn a_file_system_without_o_direct_has_the_cache_alone() {
        use Cache::{None, Writearound, Writeback};
        for (wanted, direct, had) in [
            (Writearound, Direct::Has, Writearound),
            (Writearound, Direct::Lacks, Writeback),
            (Writeback, Direct::Has, Writeback),
            (Writeback, Direct::Lacks, Writeback),
            (None, Direct::Has, None),
            (None, Direct::Lacks, Writeback),
        ] {
            assert_eq!(wanted.had_with(direct), had, "{wanted:?}, {direct:?}");
        }
        assert_eq!(PoolConfig::at("/srv/p").cache, Writearound);
        for (name, cache) in [
            ("writearound", Writearound),
            ("writeback", Writeback),
            ("none", None),
        ] {
            assert_eq!(serde_json::to_value(cache).unwrap(), name);
        }
    }

    #[test]
    fn unknown_settings_are_refused() {
        let text = r#"{"pools": {"a": {"root": "/a", "rot": 1}}}"#;
        assert!(serde_json::from_str::<StorageConfig>(text).is_err());
    }

    #[test]
    fn jobs_come_from_each_pool_and_each_pair() {
        let config = config(serde_json::json!({
            "pools": { "b": { "root": "/b" }, "a": { "root": "/a" }, "c": { "root": "/c" } },
        }));
        let subjects: Vec<String> = config.queues().iter().map(Queue::subject).collect();
        assert_eq!(subjects.len(), 18);
        for subject in ["storage.a.high", "storage.a_b.low", "storage.b_c.default"] {
            assert!(subjects.iter().any(|other| other == subject), "{subject}");
        }
    }
}
