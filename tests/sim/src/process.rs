//! The processes: the real worker loop and the real core, each start of them with its own
//! connection.

use crate::{
    broker::stream::Ms,
    care,
    chance::{hash, mix},
    hosts::{self, Host},
    net::Net,
    perform::{Shop, Work},
    plan::WorkerPlan,
    transport::Connection,
};
use async_nats::Message;
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tokio::{sync::watch, task::JoinHandle};
use tokio_util::sync::CancellationToken;
use virtbus_bus::Bus;
use virtbus_core::{control, leader, service};
use virtbus_daemon::{Identity, Metrics, Readiness};
use virtbus_wire::{
    BootId, Class, Queue,
    catalog::{LimitsRecord, TenantLimits},
    control::Operation,
    state::Owner,
};
use virtbus_worker::{PressureConfig, Setup, WorkConfig, serve};

/// How long final records stay: longer than any simulation.
const KEEP: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// What a process is.
#[derive(Debug, Clone)]
pub enum Role {
    /// A worker of pool `p`, and perhaps of queues of its own.
    Worker(WorkerPlan, Shop, Option<Host>),
    /// A core, and how many jobs of a tenant it lets run.
    Core(u32),
}

/// A process that is started again when it ends.
#[derive(Debug)]
pub struct Process {
    name: String,
    role: Role,
    skew: Ms,
    seed: u64,
    starts: u64,
    running: Option<Running>,
    /// It stays away until then.
    down_until: Ms,
}

#[derive(Debug)]
struct Running {
    connection: Arc<Connection>,
    main: JoinHandle<()>,
    stop: CancellationToken,
}

/// What core tells workers of limits.
#[must_use]
pub fn limits(cap: u32) -> LimitsRecord {
    LimitsRecord {
        tenant_max_running: TenantLimits {
            storage: cap,
            hypervisor: 0,
        },
        ..LimitsRecord::default()
    }
}

/// The queues of the one pool there is.
#[must_use]
pub fn queues() -> Vec<Queue> {
    let pool = "p".parse().expect("a pool's name");
    let queues = virtbus_bus::topology::queues_of_pool(&pool).into_iter();
    queues
        .filter(|queue| queue.class() == Class::Storage)
        .collect()
}

impl Process {
    /// Not started yet.
    #[must_use]
    pub fn new(name: String, role: Role, skew: Ms, seed: u64) -> Self {
        Self {
            name,
            role,
            skew,
            seed,
            starts: 0,
            running: None,
            down_until: 0,
        }
    }

    /// Starts it if it doesn't run and may.
    pub fn keep_up(&mut self, net: &Arc<Net>, now: Ms) {
        let has_ended = self
            .running
            .as_ref()
            .is_some_and(|run| run.main.is_finished() || run.connection.gate().is_dead());
        if has_ended {
            self.end(net, false);
            self.down_until = self.down_until.max(now + 1_000);
        }
        if self.running.is_none() && now >= self.down_until {
            self.running = Some(self.start(net));
        }
    }

    /// Kills it; it comes back after `down`.
    pub fn crash(&mut self, net: &Net, down: Ms, unnoticed: bool, now: Ms) {
        self.end(net, unnoticed);
        self.down_until = now + down;
    }

    /// Asks it to stop; it comes back after `down`.
    pub fn stop(&mut self, down: Ms, now: Ms) {
        if let Some(running) = &self.running {
            running.stop.cancel();
            self.down_until = now + down;
        }
    }

    fn end(&mut self, net: &Net, unnoticed: bool) {
        if let Some(Running {
            connection, main, ..
        }) = self.running.take()
        {
            connection.gate().kill();
            main.abort();
            net.leave(connection.link(), unnoticed);
        }
    }

    /// Its connection, if it runs.
    #[must_use]
    pub fn connection(&self) -> Option<Arc<Connection>> {
        self.running.as_ref().map(|run| Arc::clone(&run.connection))
    }

    fn start(&mut self, net: &Arc<Net>) -> Running {
        self.starts += 1;
        let seed = mix(hash(self.seed ^ self.starts, self.name.as_bytes()));
        let connection = Connection::new(net, self.skew, seed);
        let bus = Bus::over(connection.clone());
        let high = u128::from(mix(seed)) << 64;
        let boot = BootId::from_u128(high | u128::from(seed));
        let worker = self.name.parse().expect("a worker's id");
        let stop = CancellationToken::new();
        let main = match &self.role {
            Role::Core(cap) => {
                let owner = Owner { worker, boot };
                tokio::spawn(bus.within(core(bus.clone(), owner, *cap, stop.clone())))
            }
            Role::Worker(plan, shop, host) => {
                let identity = Identity {
                    worker,
                    boot,
                    host_name: self.name.clone(),
                };
                let work = Work::new(shop.clone(), &bus, host.clone(), connection.clone());
                let own = host.iter().flat_map(|host| hosts::queues(host.own));
                let queues = queues().into_iter().chain(own).collect();
                let setup = setup(&bus, identity, *plan, queues);
                tokio::spawn(bus.within(run_worker(setup, work, stop.clone())))
            }
        };
        Running {
            connection,
            main,
            stop,
        }
    }
}

fn setup(bus: &Bus, identity: Identity, plan: WorkerPlan, queues: Vec<Queue>) -> Setup {
    Setup {
        bus: bus.clone(),
        identity,
        queues,
        pools: vec!["p".parse().expect("a pool's name")],
        work: WorkConfig {
            slots: plan.slots,
            reserved_high: plan.reserved_high,
            low_floor: plan.low_floor,
            long_max: plan.slots,
            // The real machine must not be felt in here.
            pressure: PressureConfig::never(),
            ..WorkConfig::default()
        },
        versions: BTreeMap::new(),
        state_dir: None,
        ready: Readiness::default(),
        metrics: Metrics::new("0", "none"),
    }
}

async fn run_worker(setup: Setup, work: Work, stop: CancellationToken) {
    let Identity { worker, boot, .. } = setup.identity.clone();
    let cared = care::run(
        setup.bus.clone(),
        work.clone(),
        Owner { worker, boot },
        KEEP,
    );
    tokio::select! {
        biased;
        // However it ends, also by what kills it, it's started again.
        served = serve(setup, work, stop) => drop(served),
        () = cared => {}
    }
}

async fn core(bus: Bus, owner: Owner, cap: u32, stop: CancellationToken) {
    let stores = service::Stores {
        limits: limits(cap),
        ..service::Stores::new(&bus, KEEP)
    };
    let (leads, leading) = watch::channel(false);
    tokio::join!(
        leader::run(bus.clone(), owner, leads, stop.clone()),
        service::duties(stores.clone(), leading, stop.clone()),
        answer(bus, stores, stop),
    );
}

/// What the micro service does: a request, an answer.
async fn answer(bus: Bus, stores: service::Stores, stop: CancellationToken) {
    let jobs = bus.subscribe("virtbus.jobs.*".to_owned()).await;
    let queues = bus.subscribe("virtbus.queues.*".to_owned()).await;
    let workers = bus.subscribe("virtbus.workers.*".to_owned()).await;
    let (Ok(mut jobs), Ok(mut queues), Ok(mut workers)) = (jobs, queues, workers) else {
        return;
    };
    loop {
        let request = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            request = workers.next() => request,
            request = jobs.next() => request,
            request = queues.next() => request,
        };
        let Some(request) = request else { return };
        let answered = respond(bus.clone(), stores.clone(), request, stop.clone());
        tokio::spawn(bus.within(answered));
    }
}

async fn respond(bus: Bus, stores: service::Stores, request: Message, stop: CancellationToken) {
    let mut all = Operation::ALL.iter().copied();
    let operation = all.find(|operation| operation.subject() == request.subject.as_str());
    let (Some(operation), Some(reply)) = (operation, &request.reply) else {
        return;
    };
    let (body, _headers) = control::reply(&stores, operation, &request, &stop).await;
    // A client that is gone reads nothing.
    drop(bus.tell(reply.to_string(), None, body).await);
}
