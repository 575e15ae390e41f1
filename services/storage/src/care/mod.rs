//! The care for a pool that no job takes: its trash is emptied when its time is over, and what
//! catalogue and pool say of each other is compared.
//!
//! One of the pool's workers does it at a time; the pool itself says which, by a lock in it, and
//! when it was done last, by the report in it. Nothing is guessed and nothing but the trash is
//! changed: what doesn't agree is told, in the report, in the log and as a metric.
//!
//! Every few seconds, besides, what a job that is over has begun in the catalogue is put back.

mod compare;
mod expire;
mod leftover;
mod reconcile;

pub use compare::{Finding, Kind};
pub use leftover::Leftovers;
pub use reconcile::Report;

use crate::{
    blocking,
    disks::CatalogError,
    fence::Quiet,
    pool::{Name, Pool, PoolError, Root},
    store::Store,
};
use compare::{Records, Side};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{family::Family, gauge::Gauge},
};
use std::time::Duration;
use thiserror::Error;
use tokio_util::sync::CancellationToken;
use virtbus_bus::{BusError, Jobs};
use virtbus_daemon::{Beat, Metrics};
use virtbus_wire::{JobError, Timestamp, catalog::PoolRecord};

/// How often a worker looks whether it's time.
const LOOK: Duration = Duration::from_secs(60);

/// Why a pool wasn't cared for.
#[derive(Debug, Error)]
pub enum CareError {
    /// The pool can't be reached, or not be read.
    #[error(transparent)]
    Pool(#[from] PoolError),
    /// The catalogue doesn't answer.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// The server doesn't answer.
    #[error(transparent)]
    Bus(#[from] BusError),
    /// What was begun can't be put back now.
    #[error(transparent)]
    Busy(JobError),
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    pool: String,
    kind: &'static str,
}

/// What doesn't agree, as a metric.
#[derive(Debug, Clone, Default)]
pub struct Counts {
    findings: Family<Labels, Gauge>,
}

impl Counts {
    /// Registers it.
    #[must_use]
    pub fn new(metrics: &Metrics) -> Self {
        let counts = Self::default();
        metrics.register(|registry| {
            registry.register(
                "virtbus_pool_findings",
                "What catalogue and pool don't agree on",
                counts.findings.clone(),
            );
        });
        counts
    }

    fn set(&self, pool: &Pool, report: &Report) {
        for kind in Kind::ALL {
            let labels = Labels {
                pool: pool.name.to_string(),
                kind: kind.as_str(),
            };
            let n = i64::try_from(report.count(kind)).unwrap_or(i64::MAX);
            self.findings.get_or_create(&labels).set(n);
        }
    }
}

/// Cares for a pool until it's told to stop.
pub async fn watch(
    store: Store,
    jobs: Jobs,
    pool: Pool,
    (every, counts): (Duration, Counts),
    stop: CancellationToken,
) {
    let mut looks = Beat::every(LOOK.min(every), stop);
    while looks.next().await {
        match store.care(&jobs, &pool, every).await {
            Ok(Some(report)) => counts.set(&pool, &report),
            Ok(None) => {}
            Err(error) => {
                let chain: &dyn std::error::Error = &error;
                tracing::warn!(pool = %pool.name, error = chain, "the pool isn't cared for now");
            }
        }
    }
}

impl Store {
    /// Cares for a pool, if nobody has for so long. The newest report, unless another worker is at
    /// it.
    ///
    /// # Errors
    /// When pool or server can't be used.
    pub async fn care(
        &self,
        jobs: &Jobs,
        pool: &Pool,
        every: Duration,
    ) -> Result<Option<Report>, CareError> {
        let at = pool.clone();
        let root: Result<Root, PoolError> = blocking::look(move || at.reach()).await;
        let root = root?;
        let is_new = |report: &Report| Timestamp::now().since(report.at) < every;
        if let Some(report) = reconcile::last(&root).await?.filter(is_new) {
            return Ok(Some(report));
        }
        let Some(_lock) = Quiet::take(&root, Name::care()).await? else {
            return Ok(None);
        };
        if let Some(report) = reconcile::last(&root).await?.filter(is_new) {
            return Ok(Some(report));
        }
        self.sweep_pool(jobs, pool).await?;
        self.expire(pool, &root).await?;
        let report = self.reconcile(pool, &root).await?;
        report.log();
        Ok(Some(report))
    }

    /// All that the catalogue has in a pool.
    async fn records(&self, pool: &Pool) -> Result<Records, CatalogError> {
        Ok(Records {
            disks: self.disks.of_pool(&pool.name).await?,
            media: self.media.of_pool(&pool.name).await?,
        })
    }

    async fn pool_record(&self, pool: &Pool) -> Result<Option<PoolRecord>, BusError> {
        let entry = self.pool_records.get(pool.name.as_str()).await?;
        Ok(entry.map(|entry| entry.value))
    }
}

/// The folders of a pool that can be reached: its own, and its archive's.
async fn sides(pool: &Pool, root: &Root) -> Vec<(Side, Root)> {
    let mut sides = vec![(Side::Pool, root.clone())];
    if let Some(archive) = pool.archive() {
        let reached: Result<Root, PoolError> = blocking::look(move || archive.reach()).await;
        match reached {
            Ok(root) => sides.push((Side::Archive, root)),
            Err(error) => {
                let chain: &dyn std::error::Error = &error;
                tracing::warn!(pool = %pool.name, error = chain, "the archive isn't looked at");
            }
        }
    }
    sides
}
