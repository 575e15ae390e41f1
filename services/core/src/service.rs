//! The parts put together.

use crate::{
    catalogue::Catalogue, config::CoreSettings, consumers, control, leader, limits, lost,
    reconciler, registrar, silent,
};
use std::time::Duration;
use tokio::{sync::watch, task::JoinSet, time};
use tokio_util::sync::CancellationToken;
use virtbus_bus::{Bus, BusError, Jobs, locks::Locks};
use virtbus_daemon::{Daemon, Fatal, Readiness, Service};
use virtbus_wire::{catalog::LimitsRecord, state::Owner};

/// What the service is called.
pub const SERVICE: Service = Service {
    name: "virtbus-core",
    short: "core",
    version: env!("CARGO_PKG_VERSION"),
};

/// The check that says whether control requests are answered.
const CONTROL: &str = "control";

/// The wait before the leader's work begins anew after a part of it broke off.
const AGAIN: Duration = Duration::from_secs(1);

/// What every part reads and writes through.
#[derive(Debug, Clone)]
pub struct Stores {
    /// The connection.
    pub bus: Bus,
    /// The records of jobs.
    pub jobs: Jobs,
    /// The locks of jobs.
    pub locks: Locks,
    /// Who and what is registered.
    pub catalogue: Catalogue,
    /// The checks behind `/readyz`.
    pub ready: Readiness,
    /// What the configuration says to all services.
    pub limits: LimitsRecord,
}

impl Stores {
    /// Through this connection; final records stay for `keep` until a leader has said otherwise.
    #[must_use]
    pub fn new(bus: &Bus, keep: Duration) -> Self {
        let jobs = Jobs::new(bus, keep);
        Self {
            bus: bus.clone(),
            locks: Locks::new(bus, &jobs),
            jobs,
            catalogue: Catalogue::new(bus),
            ready: Readiness::default(),
            limits: LimitsRecord::default(),
        }
    }
}

/// Goes on where what is wrong is one job's own: a record that can't be read, or one that the
/// server doesn't take. It must not keep the others waiting.
///
/// # Errors
/// Any other error.
pub(crate) fn per_job<T>(outcome: Result<T, BusError>) -> Result<Option<T>, BusError> {
    match outcome {
        Ok(value) => Ok(Some(value)),
        Err(
            error @ (BusError::Corrupt { .. }
            | BusError::Refused { .. }
            | BusError::TooLarge { .. }),
        ) => {
            tracing::error!(%error, "left as it is");
            Ok(None)
        }
        Err(error @ BusError::Unreachable { .. }) => Err(error),
    }
}

/// Runs the service until it's asked to stop.
///
/// # Errors
/// When the messaging server can't be reached at start, or the HTTP address can't be had.
pub async fn serve(daemon: Daemon<CoreSettings>) -> Result<(), Fatal> {
    daemon.ready.set(CONTROL, Err("not started yet"));
    daemon.listen(daemon.router()).await?;
    let bus = daemon.connect().await?;
    let keep = daemon.settings.jobs.keep;
    let stores = Stores {
        ready: daemon.ready.clone(),
        limits: LimitsRecord {
            tenant_max_running: daemon.settings.limits.tenant_max_running,
            jobs_keep: Some(keep),
        },
        ..Stores::new(&bus, keep.duration())
    };
    let owner = Owner {
        worker: daemon.identity.worker.clone(),
        boot: daemon.identity.boot,
    };
    let (leads, leading) = watch::channel(false);
    let election = leader::run(bus.clone(), owner, leads, daemon.stop.clone());
    daemon.parts.spawn("election", election);
    let duties = duties(stores.clone(), leading, daemon.stop.clone());
    daemon.parts.spawn("duties", duties);
    let (ready, stop) = (daemon.ready.clone(), daemon.stop.clone());
    daemon.parts.spawn("control", async move {
        control::run(&stores, SERVICE.version, &stop, |state| {
            ready.set(CONTROL, state);
        })
        .await;
    });
    daemon.stop.cancelled().await;
    daemon.parts.ended().await;
    bus.close().await;
    Ok(())
}

/// What a core does beside answering, for as long as it runs.
pub async fn duties(stores: Stores, leading: watch::Receiver<bool>, stop: CancellationToken) {
    tokio::join!(
        lost::run(stores.clone(), leading.clone(), stop.clone()),
        lead(stores, leading, stop),
    );
}

/// What the leader does, for as long as it leads.
async fn lead(stores: Stores, mut leading: watch::Receiver<bool>, stop: CancellationToken) {
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            led = leading.wait_for(|leads| *leads) => if led.is_err() { return },
        }
        let term = stop.child_token();
        let mut tasks = JoinSet::new();
        let (caught_up, registered) = watch::channel(None);
        let bus = &stores.bus;
        tasks.spawn(bus.within(registrar::run(stores.clone(), caught_up, term.clone())));
        tasks.spawn(bus.within(reconciler::run(stores.clone(), registered, term.clone())));
        tasks.spawn(bus.within(consumers::run(stores.clone(), term.clone())));
        tasks.spawn(bus.within(limits::run(stores.clone(), term.clone())));
        tasks.spawn(bus.within(silent::run(stores.clone(), term.clone())));
        let broke_off = tokio::select! {
            biased;
            // An election that is over leads no more.
            _ = leading.wait_for(|leads| !*leads) => None,
            () = stop.cancelled() => None,
            // One part that panicked must not leave the others to look like a whole leader: all
            // of them begin anew.
            ended = tasks.join_next() => ended,
        };
        if let Some(ended) = broke_off {
            tracing::error!(?ended, "a part of the leader's work broke off");
            time::sleep(AGAIN).await;
        }
        term.cancel();
        while tasks.join_next().await.is_some() {}
    }
}
