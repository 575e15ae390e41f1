//! The service's own settings.

use crate::{
    capacity::CapacityConfig,
    libvirt::Uri,
    place::Roots,
    xml::{Accelerator, Policy},
};
use camino::Utf8PathBuf;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, net::IpAddr};
use virtbus_daemon::{Common, Problem, Settings};
use virtbus_wire::Label;
use virtbus_worker::WorkConfig;

/// The settings of a hypervisor service.
#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct HypervisorConfig {
    /// The name of this host among the hypervisors; its host name by default.
    pub(crate) hypervisor: Option<Label>,
    /// The pool whose domains it runs; `default` by default.
    pub(crate) pool: Option<Label>,
    /// The pools whose disks this host's domains can have, by name.
    pub(crate) pools: BTreeMap<Label, PoolConfig>,
    /// The libvirt daemon.
    pub(crate) libvirt: Libvirt,
    /// How domains are run.
    pub(crate) domains: DomainsConfig,
    /// How much of the host domains may have.
    pub(crate) capacity: CapacityConfig,
    /// What of this host domains may use.
    pub(crate) policy: Policy,
    /// The loop's settings.
    pub(crate) work: WorkConfig,
}

/// The libvirt daemon.
#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Libvirt {
    /// Its address: `qemu:///system`, `qemu:///session`, `test:///default`.
    pub(crate) uri: Uri,
    /// Where the file is whose lock says that one process serves the daemon: one place for all
    /// services of the host. `/run/lock` by default.
    pub(crate) lock_dir: Option<Utf8PathBuf>,
}

/// One pool, as this host sees it.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PoolConfig {
    /// The pool's folder; absolute.
    pub(crate) root: Utf8PathBuf,
}

/// How domains are run.
#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct DomainsConfig {
    /// What runs guests. When left out, KVM where libvirt and the processor have it and a guest
    /// that is tried at the start of the service gets along; this service must then be allowed to
    /// use it itself.
    pub(crate) accelerator: Option<Accelerator>,
    /// The address that screens listen on; loopback when left out.
    pub(crate) listen: Option<IpAddr>,
}

impl Settings for HypervisorConfig {
    fn check(&self, _: &Common) -> Vec<Problem> {
        let mut problems = Vec::new();
        if let Err(error) = self.work.slots() {
            problems.push(Problem::new(format!("work.{}", error.field), error));
        }
        if self.hypervisor.is_some() && self.hypervisor == self.pool {
            problems.push(Problem::new("hypervisor", "may not carry a pool's name"));
        }
        for (name, pool) in &self.pools {
            if !pool.root.is_absolute() {
                let field = format!("pools.{name}.root");
                problems.push(Problem::new(field, "must be absolute"));
            }
        }
        if let Some(name) = self.policy.wrong_name() {
            let text = format!("nothing of its kind can have the name, or the place, of {name:?}");
            problems.push(Problem::new("policy", text));
        }
        problems
    }
}

impl HypervisorConfig {
    /// Where the pools are.
    pub(crate) fn roots(&self) -> Roots {
        let pools = self.pools.iter();
        pools
            .map(|(name, pool)| (name.clone(), pool.root.clone()))
            .collect()
    }

    pub(crate) fn pool(&self) -> Label {
        self.pool
            .clone()
            .unwrap_or_else(|| "default".parse().expect("a plain word is a label"))
    }

    /// The configured name, or what of the host's name a label can hold.
    pub(crate) fn hypervisor(&self, host_name: &str) -> Label {
        if let Some(name) = &self.hypervisor {
            return name.clone();
        }
        let fits = |c: char| {
            if c.is_ascii_alphanumeric() {
                c.to_ascii_lowercase()
            } else {
                '-'
            }
        };
        let text: String = host_name.chars().map(fits).take(63).collect();
        let text = text.trim_matches('-');
        text.parse()
            .unwrap_or_else(|_| "host".parse().expect("a plain word is a label"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_host_name_makes_a_hypervisors_name() {
        let config = HypervisorConfig::default();
        for (host, name) in [
            ("HV1.example.org", "hv1-example-org"),
            ("--", "host"),
            ("", "host"),
        ] {
            assert_eq!(config.hypervisor(host).as_str(), name);
        }
    }

    #[test]
    fn a_hypervisor_may_not_be_named_like_its_pool() {
        let name: Option<Label> = "p".parse().ok();
        let config = HypervisorConfig {
            hypervisor: name.clone(),
            pool: name,
            ..Default::default()
        };
        assert_eq!(config.check(&Common::default()).len(), 1);
    }
}
