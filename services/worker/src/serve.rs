//! The loop: bind queues, take jobs while there are slots, beat, and drain at the end.

use crate::{
    aside::Aside,
    binding::{Bindings, Found},
    claim::Room,
    config::WorkConfig,
    drain,
    metrics::Counts,
    perform::{Free, Perform},
    pressure,
    slots::Slots,
    supervise::at,
    worker::{Claims, ServeError, Worker, millis},
};
use camino::Utf8PathBuf;
use rustix::fs::{FlockOperation, flock};
use std::{
    collections::BTreeMap,
    fs::File,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::{Semaphore, watch},
    task::JoinSet,
    time::Instant,
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use virtbus_bus::{
    Appetite, Bus, Deliveries, Delivery, Jobs,
    jobs::KEEP,
    lease::{LeaseError, Leases, Standing, Trust},
    locks::Locks,
};
use virtbus_daemon::{Identity, Metrics, Readiness};
use virtbus_wire::{BootId, Label, Queue, catalog::WorkerRecord};

/// How often a lease that somebody else has is tried again.
const TRY_AGAIN: Duration = Duration::from_secs(1);
/// How long a server that may be silent is waited for where nothing depends on its answer.
const FAREWELL: Duration = Duration::from_secs(1);
/// How many jobs that need no slot, since they only go to the end of a long line, are taken at once.
const IN_LINE_MAX: usize = 64;
/// How long jobs that were told to end may take for it: a tool's grace, and the clean-up.
const END_GRACE: Duration = Duration::from_secs(30);

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
        work: setup.work.clone(),
        standing: stands.clone(),
        claims,
        hard_stop: CancellationToken::new(),
        ack_wait: AtomicU64::new(millis(Duration::from_secs(30))),
    });
    let ended = Loop::new(worker, &setup, draining, stop).run().await;
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

struct Loop<'a, P> {
    worker: Arc<Worker<P>>,
    setup: &'a Setup,
    /// Whether it was told to take no more; none while nobody has looked.
    draining: watch::Receiver<Option<bool>>,
    stop: CancellationToken,
    running: JoinSet<()>,
    bound: Vec<Queue>,
    aside: Aside,
    /// Places for jobs that only go to the end of a long line.
    in_line: Arc<Semaphore>,
}

impl<'a, P: Perform> Loop<'a, P> {
    fn new(
        worker: Arc<Worker<P>>,
        setup: &'a Setup,
        draining: watch::Receiver<Option<bool>>,
        stop: CancellationToken,
    ) -> Self {
        let (running, bound) = (JoinSet::new(), Vec::new());
        Self {
            worker,
            setup,
            draining,
            stop,
            running,
            bound,
            aside: Aside::default(),
            in_line: Arc::new(Semaphore::new(IN_LINE_MAX)),
        }
    }

    async fn run(mut self) -> Result<(), ServeError> {
        let mut deliveries = Deliveries::open(&self.worker.bus, Vec::new()).await?;
        let mut standing = self.worker.standing.clone();
        let setup = self.setup;
        let mut bindings = Bindings::find(&self.worker.bus, &setup.queues, &setup.ready);
        let ended = loop {
            self.worker.counts.busy(self.worker.slots.busy_count());
            let (appetite, again) = self.appetite(standing.borrow_and_update().trust);
            tokio::select! {
                biased;
                () = self.stop.cancelled() => break Ok(()),
                changed = standing.changed() => {
                    if changed.is_err() || standing.borrow().trust == Trust::Taken {
                        let worker = self.setup.identity.worker.clone();
                        break Err(ServeError::Replaced(worker));
                    }
                }
                Some(ended) = self.running.join_next() => {
                    log_ended(ended);
                    deliveries.restart();
                }
                Ok(()) = self.draining.changed() => {}
                Some(found) = bindings.next() => {
                    self.bind(found);
                    let open = Deliveries::open(&self.worker.bus, self.bound.clone()).await?;
                    close(std::mem::replace(&mut deliveries, open)).await;
                }
                () = at(again) => {}
                delivery = deliveries.next(appetite) => self.take(delivery?),
            }
        };
        self.drain(&mut deliveries).await;
        close(deliveries).await;
        ended
    }

    /// What may be taken now, and when to ask again should nothing happen until then.
    fn appetite(&self, trust: Trust) -> (Appetite, Option<Instant>) {
        if trust != Trust::Held || *self.draining.borrow() != Some(false) {
            return (Appetite::default(), None);
        }
        let slots = &self.worker.slots;
        let (appetite, again) = self.aside.curb(slots.appetite(), Instant::now());
        let again = again.into_iter().chain(slots.lends_at()).min();
        let places = if self.worker.locks.long_lines().any() {
            u32::try_from(self.in_line.available_permits()).unwrap_or(u32::MAX)
        } else {
            0
        };
        (appetite.and(places), again)
    }

    fn take(&mut self, delivery: Delivery) {
        let kind = self.worker.kind(&delivery);
        let place = || Arc::clone(&self.in_line).try_acquire_owned().ok();
        let lines = self.worker.locks.long_lines().any();
        let room = if let Some(place) = place().filter(|_| lines) {
            Room::Line(Some(place))
        } else if let Some(slot) = self.worker.slots.take(kind) {
            Room::Slot(slot)
        } else if kind.is_long {
            self.aside.add(kind.priority, Instant::now());
            Room::None
        } else {
            // It was asked for while there were places.
            Room::Line(None)
        };
        let handled = Arc::clone(&self.worker).handle(delivery, room);
        self.running.spawn(self.worker.bus.within(handled));
    }

    /// Takes from these queues too.
    fn bind(&mut self, found: Found) {
        for (queue, binding) in found {
            let ack_wait = millis(binding.ack_wait);
            self.worker.ack_wait.store(ack_wait, Ordering::Relaxed);
            self.bound.push(queue);
        }
    }

    /// Lets running jobs finish, for a while; then tells them to end.
    async fn drain(&mut self, deliveries: &mut Deliveries) {
        let finish = Duration::from_secs(self.setup.work.drain_s);
        let busy = self.worker.slots.busy_count();
        tracing::info!(busy, limit_s = finish.as_secs(), "taking no more jobs");
        self.wait_for_running(deliveries, finish).await;
        self.worker.hard_stop.cancel();
        self.wait_for_running(deliveries, END_GRACE).await;
        if !self.running.is_empty() {
            tracing::error!(
                left = self.running.len(),
                "jobs did not end in time: left to others"
            );
        }
        self.running.shutdown().await;
    }

    async fn wait_for_running(&mut self, deliveries: &mut Deliveries, limit: Duration) {
        let until = Instant::now() + limit;
        while !self.running.is_empty() {
            tokio::select! {
                biased;
                Some(ended) = self.running.join_next() => log_ended(ended),
                () = tokio::time::sleep_until(until) => return,
                // Nothing is wanted any more: what still comes goes back to the queue at once.
                delivery = deliveries.next(Appetite::default()) => {
                    if let Ok(delivery) = delivery {
                        delivery.hand_back(None).await;
                    }
                }
            }
        }
    }
}

/// What isn't handed back in time is delivered again after `ack_wait`.
async fn close(deliveries: Deliveries) {
    drop(tokio::time::timeout(FAREWELL, deliveries.close()).await);
}

fn log_ended(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended {
        tracing::error!(%error, "a job's task ended badly: the job is left to others");
    }
}
