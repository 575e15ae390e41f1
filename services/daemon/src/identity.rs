//! Who a process is: the name it's known by, and the mark of this one start of it.

use uuid::Uuid;
use virtbus_wire::{BootId, WorkerId};

/// The most bytes of a worker id.
const LENGTH_MAX: usize = 63;

/// A process among the workers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Its name, the same after a restart.
    pub worker: WorkerId,
    /// This start of it.
    pub boot: BootId,
    /// The host it runs on.
    pub host_name: String,
}

impl Identity {
    /// This process: the configured name, or `<service>-<host name>`.
    #[must_use]
    pub(crate) fn new(configured: Option<&WorkerId>, service: &str) -> Self {
        let host_name = host_name();
        let default = || worker_id(service, &host_name);
        Self {
            worker: configured.cloned().unwrap_or_else(default),
            boot: Uuid::now_v7(),
            host_name,
        }
    }
}

fn host_name() -> String {
    // The kernel's own name for this host; containers and name spaces have theirs.
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    match name.trim() {
        "" => "localhost".to_owned(),
        name => name.to_owned(),
    }
}

/// `<service>-<host name>`, with what a worker id can't hold replaced or left out.
fn worker_id(service: &str, host_name: &str) -> WorkerId {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let mut text: String = format!("{service}-{host_name}")
        .chars()
        .map(|c| if fits(c) { c } else { '-' })
        .take(LENGTH_MAX)
        .collect();
    while text.contains("..") {
        text = text.replace("..", ".");
    }
    let text = text.trim_matches(|c: char| !c.is_ascii_alphanumeric());
    // What is left starts and ends with a letter or digit, unless nothing is.
    text.parse().unwrap_or_else(|_| {
        "worker"
            .parse()
            .expect("a plain word follows the grammar of worker ids")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_host_name_makes_a_worker_id() {
        let long = "h".repeat(300);
        for (host_name, expected) in [
            ("hv1", "storage-hv1"),
            ("hv1.example.org", "storage-hv1.example.org"),
            ("a..b", "storage-a.b"),
            ("ho st/ä", "storage-ho-st"),
            ("x-", "storage-x"),
            ("", "storage"),
            (&long, &format!("storage-{}", "h".repeat(55))),
        ] {
            assert_eq!(worker_id("storage", host_name).as_str(), expected);
        }
        assert_eq!(worker_id("", "").as_str(), "worker");
    }

    #[test]
    fn each_start_has_its_own_mark() {
        let (one, other) = (Identity::new(None, "core"), Identity::new(None, "core"));
        assert_eq!(one.worker, other.worker);
        assert_ne!(one.boot, other.boot);
    }
}
