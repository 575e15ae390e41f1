//! The service's life: one process per libvirt daemon, registered, taking jobs until told to stop.

use crate::{
    alone::{Alone, AloneError},
    capacity::Capacity,
    catalog::Catalog,
    config::{HypervisorConfig, Libvirt},
    domains::{Domains, HostSettings},
    follow::follow,
    leftover::Leftovers,
    libvirt::{Host, LibvirtError, Node},
    probe,
    register::register,
    watch::Watch,
    xml::Accelerator,
};
use std::{collections::BTreeMap, time::Duration};
use virtbus_bus::{
    Bus,
    topology::{queues_of_host, queues_of_pool},
};
use virtbus_daemon::{Daemon, Fatal, Service};
use virtbus_wire::{Class, Label, Queue};
use virtbus_worker::Setup;

/// Who this is.
pub(crate) const SERVICE: Service = Service {
    name: "virtbus-hypervisor",
    short: "hypervisor",
    version: env!("CARGO_PKG_VERSION"),
};

/// The check behind `/readyz`.
const LIBVIRT: &str = "libvirt";
/// How often what is missing is tried again.
const TRY_AGAIN: Duration = Duration::from_secs(1);

/// Runs the service until it's asked to stop.
pub(crate) async fn serve(daemon: Daemon<HypervisorConfig>, watch: Watch) -> Result<(), Fatal> {
    let settings = daemon.settings.clone();
    let (host, hinted) = Host::new(&settings.libvirt.uri).map_err(unreachable)?;
    let _alone = alone(&settings.libvirt, &host, &daemon.identity.host_name).await?;
    let node = host.node().await.map_err(unreachable)?;
    let bus = daemon.connect().await?;
    let hypervisor = settings.hypervisor(&daemon.identity.host_name);
    virtbus_worker::expect_queues(&daemon.ready, &queues(&settings.pool(), &hypervisor));
    daemon.listen(daemon.router()).await?;
    if !registered(&daemon, &bus, &hypervisor, &node).await {
        return Ok(());
    }
    watch_libvirt(&daemon, &host);
    let accelerator = accelerator(&settings, &node).await;
    let domains = domains(
        &settings,
        accelerator,
        hypervisor.clone(),
        &bus,
        host,
        &node,
    )
    .watched(watch);
    let following = follow(domains.for_looks(), hinted, daemon.stop.clone());
    daemon.parts.spawn("domains", following);
    let leftovers = Leftovers::new(domains.clone(), &bus, daemon.identity.worker.clone());
    let watch = leftovers.watch(daemon.stop.clone());
    daemon.parts.spawn("leftovers", watch);
    let setup = Setup {
        bus: bus.clone(),
        identity: daemon.identity.clone(),
        queues: queues(&settings.pool(), &hypervisor),
        pools: vec![settings.pool()],
        work: settings.work.clone(),
        versions: BTreeMap::from([
            (SERVICE.name.to_owned(), SERVICE.version.to_owned()),
            (LIBVIRT.to_owned(), node.libvirt),
        ]),
        state_dir: daemon.common.state_dir.clone(),
        ready: daemon.ready.clone(),
        metrics: daemon.metrics.clone(),
    };
    let served = virtbus_worker::serve(setup, domains, daemon.stop.clone()).await;
    bus.close().await;
    served.map_err(Fatal::from)
}

/// What tasks and the observer share.
fn domains(
    settings: &HypervisorConfig,
    accelerator: Accelerator,
    hypervisor: Label,
    bus: &Bus,
    host: Host,
    node: &Node,
) -> Domains {
    let host_settings = HostSettings {
        hypervisor,
        pool: settings.pool(),
        roots: settings.roots(),
        policy: settings.policy.clone(),
        accelerator,
        listen: settings
            .domains
            .listen
            .map_or_else(|| "127.0.0.1".to_owned(), |address| address.to_string()),
    };
    tracing::info!(%accelerator, "domains are run");
    let capacity = Capacity::new(&settings.capacity, node.memory, node.cpus);
    Domains::new(host, Catalog::new(bus), host_settings, capacity)
}

/// What runs guests: what the configuration says, else KVM where a guest gets along with it.
async fn accelerator(settings: &HypervisorConfig, node: &Node) -> Accelerator {
    if let Some(accelerator) = settings.domains.accelerator {
        return accelerator;
    }
    let capabilities = &node.capabilities;
    if !Accelerator::may_be_kvm(capabilities, &cpu_flags()) {
        return Accelerator::Qemu;
    }
    match probe::emulator(capabilities) {
        Some(emulator) if probe::runs_guests(&emulator, "kvm").await => Accelerator::Kvm,
        Some(_) | None => Accelerator::Qemu,
    }
}

/// What the processor says that it can do.
fn cpu_flags() -> String {
    // Where it can't be read nothing is known of it, and guests are emulated.
    std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default()
}

/// The queues of the pool, and the host's own.
fn queues(pool: &Label, hypervisor: &Label) -> Vec<Queue> {
    let pools = queues_of_pool(pool)
        .into_iter()
        .filter(|q| q.class() == Class::Hypervisor);
    pools.chain(queues_of_host(hypervisor)).collect()
}

/// Two processes on one daemon would not see each other's calls: the second is refused. The trial
/// driver is a part of each process, so nobody else can be on it.
async fn alone(settings: &Libvirt, host: &Host, own_host: &str) -> Result<Option<Alone>, Fatal> {
    if settings.uri.is_private() {
        return Ok(None);
    }
    let daemon = host.daemon(own_host).await.map_err(unreachable)?;
    match Alone::take(settings.lock_dir.as_deref(), &daemon) {
        Ok(alone) => Ok(Some(alone)),
        Err(error @ AloneError::Taken) => Err(Fatal::config("libvirt.uri", error)),
        Err(error @ AloneError::File(_)) => Err(Fatal::config("libvirt.lock_dir", error)),
    }
}

fn unreachable(error: LibvirtError) -> Fatal {
    Fatal::Unreachable(error.to_string())
}

/// Registers the host, as soon as the server takes it; false when told to stop before.
async fn registered(
    daemon: &Daemon<HypervisorConfig>,
    bus: &Bus,
    hypervisor: &Label,
    node: &Node,
) -> bool {
    let pool = daemon.settings.pool();
    loop {
        match register(bus, hypervisor, &pool, &daemon.identity, node).await {
            Ok(()) => {
                daemon.ready.set("registered", Ok::<(), &str>(()));
                return true;
            }
            Err(error) => daemon.ready.set("registered", Err(error)),
        }
        tokio::select! {
            () = daemon.stop.cancelled() => return false,
            () = tokio::time::sleep(TRY_AGAIN) => {}
        }
    }
}

/// Says whether libvirt answers.
fn watch_libvirt(daemon: &Daemon<HypervisorConfig>, host: &Host) {
    let (host, ready, stop) = (host.clone(), daemon.ready.clone(), daemon.stop.clone());
    daemon.parts.spawn(LIBVIRT, async move {
        loop {
            let answer = host.node().await.map(|_| ());
            let answer = answer.map_err(|error| error.to_string());
            ready.set(LIBVIRT, state(answer, host.is_healthy(), host.is_heard()));
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(TRY_AGAIN * 5) => {}
            }
        }
    });
}

/// What the check behind `/readyz` says.
fn state(answer: Result<(), String>, is_healthy: bool, is_heard: bool) -> Result<(), String> {
    match (is_healthy, is_heard) {
        (false, _) => Err("a call hasn't returned: no domain is started".to_owned()),
        (true, false) => Err("its events aren't heard: domains are seen late".to_owned()),
        (true, true) => answer,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_well_when_it_answers_in_time_and_is_heard() {
        assert!(state(Ok(()), true, true).is_ok());
        for (answer, is_healthy, is_heard) in [
            (Err("silent".to_owned()), true, true),
            (Ok(()), false, true),
            (Ok(()), true, false),
        ] {
            assert!(state(answer, is_healthy, is_heard).is_err());
        }
    }
}
