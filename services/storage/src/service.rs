//! The service's life: look at the pools, clear up after dead claims, take jobs until told to stop.

use crate::{
    care::{self, Counts},
    config::StorageConfig,
    pool::Pool,
    store::Store,
};
use std::{collections::BTreeMap, time::Duration};
use tokio::{task::spawn_blocking, time::MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use virtbus_bus::{Bus, Jobs, jobs::KEEP};
use virtbus_daemon::{Daemon, Fatal, Readiness, Service};
use virtbus_worker::{Setup, process::Stop};

/// Who this is.
pub const SERVICE: Service = Service {
    name: "virtbus-storage",
    short: "storage",
    version: env!("CARGO_PKG_VERSION"),
};

/// How often the pools are looked at.
const LOOK: Duration = Duration::from_secs(5);

/// Runs the service until it's asked to stop.
///
/// # Errors
/// When it can't start, or another process has its name.
pub async fn serve(daemon: Daemon<StorageConfig>) -> Result<(), Fatal> {
    let bus = daemon.connect().await?;
    let settings = &daemon.settings;
    let store = Store::new(&bus, settings);
    store
        .prepare()
        .map_err(|(pool, error)| Fatal::config(format!("pools.{pool}.root"), error))?;
    virtbus_worker::expect_queues(&daemon.ready, &settings.queues());
    daemon.listen(daemon.router()).await?;
    watch_pools(&daemon, &store);

    let jobs = Jobs::new(&bus, KEEP);
    if let Err(error) = store.sweep(&jobs).await {
        tracing::warn!(%error, "left-over files stay until the pools are cared for");
    }
    care_for_pools(&daemon, &bus);
    let setup = Setup {
        bus: bus.clone(),
        identity: daemon.identity.clone(),
        queues: settings.queues(),
        pools: settings.pools.keys().cloned().collect(),
        work: settings.work.clone(),
        versions: versions(&store).await,
        state_dir: daemon.common.state_dir.clone(),
        ready: daemon.ready.clone(),
        metrics: daemon.metrics.clone(),
    };
    let served = virtbus_worker::serve(setup, store, daemon.stop.clone()).await;
    bus.close().await;
    served.map_err(Fatal::from)
}

/// Versions of this service and of its tool.
async fn versions(store: &Store) -> BTreeMap<String, String> {
    let mut versions = BTreeMap::from([(SERVICE.name.to_owned(), SERVICE.version.to_owned())]);
    match store.tool.version(&Stop::new()).await {
        Ok(version) => {
            versions.insert("qemu-img".to_owned(), version);
        }
        Err(error) => tracing::error!(%error, "jobs will fail: qemu-img doesn't answer"),
    }
    versions
}

/// Empties the trash of each pool, and compares it with the catalogue, from time to time.
fn care_for_pools(daemon: &Daemon<StorageConfig>, bus: &Bus) {
    let counts = Counts::new(&daemon.metrics);
    let every = daemon.settings.care_every.duration();
    let pools = Store::new(bus, &daemon.settings).pools().clone();
    for pool in pools.into_values() {
        let (store, jobs) = (Store::new(bus, &daemon.settings), Jobs::new(bus, KEEP));
        let how = (every, counts.clone());
        let watch = care::watch(store, jobs, pool, how, daemon.stop.clone());
        daemon.parts.spawn("care", watch);
    }
}

/// Says of each pool whether it can be reached.
fn watch_pools(daemon: &Daemon<StorageConfig>, store: &Store) {
    for pool in store.pools().values() {
        let watch = watch(pool.clone(), daemon.ready.clone(), daemon.stop.clone());
        daemon.parts.spawn("pool", watch);
    }
}

async fn watch(pool: Pool, ready: Readiness, stop: CancellationToken) {
    let check = format!("pool {}", pool.name);
    let mut looks = tokio::time::interval(LOOK);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = looks.tick() => {}
        }
        let at = pool.clone();
        let look = tokio::time::timeout(LOOK, spawn_blocking(move || at.reach().map(|_| ())));
        match look.await {
            Ok(Ok(reached)) => ready.set(check.clone(), reached),
            Ok(Err(_)) | Err(_) => ready.set(check.clone(), Err("it doesn't answer")),
        }
    }
}
