//! The service's life: look at the pools, clear up after dead claims, take jobs until told to stop.

use crate::{
    cage,
    care::{self, Counts, Leftovers},
    config::StorageConfig,
    pool::Pool,
    store::Store,
};
use prometheus_client::metrics::gauge::Gauge;
use std::{collections::BTreeMap, time::Duration};
use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;
use virtbus_bus::{Bus, Jobs, jobs::KEEP};
use virtbus_daemon::{Beat, Daemon, Fatal, Readiness, Service};
use virtbus_worker::{
    Setup,
    process::{self, Offer, Stop},
};

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
    let settings = &daemon.settings;
    let offer = process::offer();
    look_at_cage(&daemon, offer)?;
    let bus = daemon.connect().await?;
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
        versions: versions(&store, offer).await,
        state_dir: daemon.common.state_dir.clone(),
        ready: daemon.ready.clone(),
        metrics: daemon.metrics.clone(),
    };
    let served = virtbus_worker::serve(setup, store, daemon.stop.clone()).await;
    bus.close().await;
    served.map_err(Fatal::from)
}

/// Says what the kernel offers to lock tools in with, and whether that is enough.
fn look_at_cage(daemon: &Daemon<StorageConfig>, offer: Offer) -> Result<(), Fatal> {
    let landlock: Gauge = Gauge::default();
    landlock.set(offer.landlock.map_or(0, i64::from));
    daemon.metrics.register(|registry| {
        registry.register(
            "virtbus_cage_landlock_version",
            "Version of Landlock that tools are locked in with; 0 = none",
            landlock,
        );
    });
    let groups = cage::groups(&daemon.settings.polite);
    let groups = groups.map_err(|error| Fatal::config("polite.cgroup", error))?;
    let groups = groups.map_or(
        "none is left to us",
        |_| "each tool that opens an image has its own",
    );
    tracing::info!("cgroups: {groups}");
    match cage::admit(offer, &daemon.settings.cage) {
        Ok(()) if offer.holds() => tracing::info!(%offer, "tools are locked in"),
        Ok(()) => tracing::warn!(%offer, "tools are not wholly locked in: this was configured"),
        Err(error) => return Err(Fatal::config("cage.required", error)),
    }
    Ok(())
}

/// Versions of this service, of its tool, and of what locks it in.
async fn versions(store: &Store, offer: Offer) -> BTreeMap<String, String> {
    let mut versions = BTreeMap::from([(SERVICE.name.to_owned(), SERVICE.version.to_owned())]);
    let landlock = offer
        .landlock
        .map_or("none".to_owned(), |is| is.to_string());
    versions.insert("landlock".to_owned(), landlock);
    match store.tool.version(&Stop::new()).await {
        Ok(version) => {
            versions.insert("qemu-img".to_owned(), version);
        }
        Err(error) => tracing::error!(%error, "jobs will fail: qemu-img doesn't answer"),
    }
    versions
}

/// Empties the trash of each pool, and compares it with the catalogue, from time to time; puts back
/// what ended jobs have begun.
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
    let (store, jobs) = (Store::new(bus, &daemon.settings), Jobs::new(bus, KEEP));
    let leftovers = Leftovers::new(store, jobs, daemon.identity.worker.clone());
    let watch = leftovers.watch(daemon.stop.clone());
    daemon.parts.spawn("leftovers", watch);
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
    let mut looks = Beat::every(LOOK, stop);
    while looks.next().await {
        let at = pool.clone();
        let look = tokio::time::timeout(LOOK, spawn_blocking(move || at.look()));
        match look.await {
            Ok(Ok(reached)) => ready.set(check.clone(), reached),
            Ok(Err(_)) | Err(_) => ready.set(check.clone(), Err("it doesn't answer")),
        }
    }
}
