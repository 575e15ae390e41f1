//! A worker from its lease to its farewell: what it says of itself, and what all its jobs share.

use crate::{
    config::WorkConfig,
    drain,
    intake::{FAREWELL, Intake},
    metrics::Counts,
    perform::{Free, Perform},
    pressure,
    process::Way,
    slots::Slots,
    worker::{Claims, ServeError, Worker, millis},
};
use camino::Utf8PathBuf;
use rustix::fs::{FlockOperation, flock};
use std::{
    collections::BTreeMap,
    fs::File,
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};
use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use virtbus_bus::{
    Bus, Jobs,
    jobs::KEEP,
    lease::{LeaseError, Leases, Standing, Trust},
    locks::Locks,
};
use virtbus_daemon::{Identity, Metrics, Readiness};
use virtbus_wire::{BootId, Label, Queue, catalog::WorkerRecord};

/// How often a lease that somebody else has is tried again.
const TRY_AGAIN: Duration = Duration::from_secs(1);
/// What a worker is and takes.
#[derive(Debug)]
pub struct Setup {
    /// The connection.
    pub bus: Bus,
    /// Who it is.
    pub identity: Identity,
    /// What it takes jobs from, in any order.
    pub queues: Vec<Queue>,
    /// The pools it has.
    pub pools: Vec<Label>,
    /// Its settings.
    pub work: WorkConfig,
    /// Versions of itself and its tools.
    pub versions: BTreeMap<String, String>,
    /// Where its lock file is; without one a restart waits until the old lease is out.
    pub state_dir: Option<Utf8PathBuf>,
    /// Where it says that it can work.
    pub ready: Readiness,
    /// Where it counts.
    pub metrics: Metrics,
}

/// Says of each queue that it isn't served yet. To be called before the service answers for its
/// health, or it would be ready for a moment before anybody has looked.
pub fn expect_queues(ready: &Readiness, queues: &[Queue]) {
    for queue in queues {
        ready.set(format!("queue {queue}"), Err("not looked for yet"));
    }
}

/// Takes jobs until `stop`, then lets those that run finish.
///
/// # Errors
/// When another process has this worker's name, or the connection is closed for good.
pub async fn serve<P: Perform>(
    setup: Setup,
    perform: P,
    stop: CancellationToken,
) -> Result<(), ServeError> {
    let lock_file = lock_file(&setup)?;
    let boot = setup.identity.boot;
    let (standing, stands) = watch::channel(Standing {
        boot,
        trust: Trust::Held,
    });
    let slots = Slots::new(setup.work.slots()?).lending(perform.lent_max());
    let _pressed = pressure::watch(&slots, &setup.work.pressure);
    let (told, draining) = watch::channel(None);
    let following = drain::follow(setup.bus.clone(), setup.identity.worker.clone(), told);
    let _following = AbortOnDropHandle::new(tokio::spawn(setup.bus.within(following)));
    let kind = (perform.class(), perform.free());
    let describe = describe(&setup, kind, slots.clone(), draining.clone());
    let leases = Leases::new(&setup.bus);
    let replace = lock_file.is_some();
    let Some(revision) = take_lease(&leases, &describe, replace, &setup, &stop).await? else {
        return Ok(());
    };
    let (beats, claims) = (CancellationToken::new(), Claims::default());
    let beating = AbortOnDropHandle::new(tokio::spawn({
        let (leases, beats, claims) = (leases.clone(), beats.clone(), claims.clone());
        let beating = async move {
            let is_idle = || claims.is_empty();
            leases
                .keep(revision, describe, is_idle, standing, beats)
                .await;
        };
        setup.bus.within(beating)
    }));
    let jobs = Jobs::new(&setup.bus, KEEP);
    let worker_id = setup.identity.worker.as_str();
    let worker = Arc::new(Worker {
        counts: Counts::new(&setup.metrics, worker_id, slots.count()),
        bus: setup.bus.clone(),
        locks: Locks::new(&setup.bus, &jobs),
        jobs,
        leases: leases.clone(),
        id: setup.identity.worker.clone(),
        perform,
        slots,
        way: Way::new(),
        work: setup.work.clone(),
        standing: stands.clone(),
        claims,
        hard_stop: CancellationToken::new(),
        ack_wait: AtomicU64::new(millis(Duration::from_secs(30))),
    });
    let ended = Intake::new(worker, &setup, draining, stop).run().await;
    beats.cancel();
    if let Err(error) = beating.await {
        tracing::error!(%error, "the heartbeat ended badly");
    }
    if !matches!(ended, Err(ServeError::Replaced(_))) {
        let boot = stands.borrow().boot;
        let given_back = leases.give_back(&setup.identity.worker, boot);
        // A lease that isn't given back runs out by itself.
        drop(tokio::time::timeout(FAREWELL, given_back).await);
    }
    drop(lock_file);
    ended
}

/// What the worker says of itself with each beat.
fn describe(
    setup: &Setup,
    (class, free): (virtbus_wire::Class, Free),
    slots: Slots,
    is_draining: watch::Receiver<Option<bool>>,
) -> impl Fn(BootId) -> WorkerRecord + Send + 'static {
    let bus = setup.bus.clone();
    let started_at = bus.now();
    let (identity, queues) = (setup.identity.clone(), setup.queues.clone());
    let (pools, versions) = (setup.pools.clone(), setup.versions.clone());
    move |boot| WorkerRecord {
        worker: identity.worker.clone(),
        boot,
        class,
        host: identity.host_name.clone(),
        pools: pools.clone(),
        free: free(),
        queues: queues.clone(),
        slots: slots.count(),
        busy: slots.busy_count(),
        versions: versions.clone(),
        capabilities: Vec::new(),
        draining: is_draining.borrow().unwrap_or(false),
        started_at,
        at: bus.now(),
    }
}

/// A second process of this name on this host is refused at once; the file's lock ends with the
/// process, however it ends.
fn lock_file(setup: &Setup) -> Result<Option<File>, ServeError> {
    let Some(dir) = &setup.state_dir else {
        return Ok(None);
    };
    let worker = &setup.identity.worker;
    std::fs::create_dir_all(dir).map_err(ServeError::LockFile)?;
    let path = dir.join(format!("{worker}.lock"));
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path);
    let file = file.map_err(ServeError::LockFile)?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(file)),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(ServeError::Running(worker.clone())),
        Err(error) => Err(ServeError::LockFile(error.into())),
    }
}

/// The lease, as soon as it's free; none when the worker was stopped before.
async fn take_lease(
    leases: &Leases,
    describe: &impl Fn(BootId) -> WorkerRecord,
    replace: bool,
    setup: &Setup,
    stop: &CancellationToken,
) -> Result<Option<u64>, ServeError> {
    loop {
        let worker = describe(setup.identity.boot);
        let taken = tokio::select! {
            biased;
            () = stop.cancelled() => return Ok(None),
            taken = leases.take(&worker, replace) => taken,
        };
        match taken {
            Ok(revision) => {
                setup.ready.set("lease", Ok::<(), &str>(()));
                return Ok(Some(revision));
            }
            Err(error @ LeaseError::Taken(_)) => setup.ready.set("lease", Err(error)),
            Err(LeaseError::Bus(error)) => setup.ready.set("lease", Err(error)),
        }
        tokio::select! {
            biased;
            () = stop.cancelled() => return Ok(None),
            () = tokio::time::sleep(TRY_AGAIN) => {}
        }
    }
}
