//! The roles of `nats/accounts.conf`: who connects, with which key, listening where.

use std::fmt;

/// Users and permissions in nats-server's own format. It includes a `keys.conf` from its folder,
/// which [`keys_conf`] writes.
pub const ACCOUNTS_CONF: &str = include_str!("../../../../nats/accounts.conf");

/// A set of permissions; each has one NKey.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Back ends that publish jobs.
    Publisher,
    /// Storage services.
    Storage,
    /// Hypervisor services.
    Hypervisor,
    /// The core service.
    Core,
    /// The feedback service.
    Feedback,
    /// Setup, and people with the nats CLI.
    Admin,
    /// Dashboards: reads, changes nothing.
    Observer,
    /// The server's own account; no jobs.
    Sys,
}

impl Role {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Publisher,
        Self::Storage,
        Self::Hypervisor,
        Self::Core,
        Self::Feedback,
        Self::Admin,
        Self::Observer,
        Self::Sys,
    ];

    /// Its name, as in file names.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Publisher => "publisher",
            Self::Storage => "storage",
            Self::Hypervisor => "hypervisor",
            Self::Core => "core",
            Self::Feedback => "feedback",
            Self::Admin => "admin",
            Self::Observer => "observer",
            Self::Sys => "sys",
        }
    }

    /// What its answers' subjects begin with: the prefix a client has to set, because the role
    /// may listen nowhere else. The two without limits use everybody's default.
    #[must_use]
    pub fn inbox_prefix(self) -> String {
        match self {
            Self::Admin | Self::Sys => "_INBOX".to_owned(),
            Self::Publisher
            | Self::Storage
            | Self::Hypervisor
            | Self::Core
            | Self::Feedback
            | Self::Observer => format!("_INBOX_{self}"),
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The text of `keys.conf`: the public NKey (`U…`) of every role.
#[must_use]
pub fn keys_conf(public_key: impl Fn(Role) -> String) -> String {
    Role::ALL
        .into_iter()
        .map(|role| {
            let name = role.as_str().to_uppercase();
            format!("VIRTBUS_KEY_{name}: \"{}\"\n", public_key(role))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_role_has_its_key_and_its_own_inbox_in_the_accounts() {
        for role in Role::ALL {
            let key = format!("nkey: $VIRTBUS_KEY_{}", role.as_str().to_uppercase());
            assert!(ACCOUNTS_CONF.contains(&key), "{role}");
            let inbox = format!("\"{}.>\"", role.inbox_prefix());
            let unlimited = matches!(role, Role::Admin | Role::Sys);
            assert_eq!(ACCOUNTS_CONF.contains(&inbox), !unlimited, "{role}");
        }
    }
}
