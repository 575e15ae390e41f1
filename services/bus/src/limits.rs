//! What core's configuration says to all services: how many jobs of one tenant run at once, which
//! is counted by locks, and how long final records stay.

use crate::{bucket::Bucket, client::Bus, error::BusError};
use sha2::{Digest, Sha256};
use std::{
    fmt::Write,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::time::{Instant, timeout};
use virtbus_wire::{
    Class, Record, Tenant,
    catalog::{LIMITS_KEY, LimitsRecord},
};

/// The bucket of the limits' record.
const BUCKET: &str = "pools";
/// How the names of tenants' locks begin.
const PREFIX: &str = "tenant.";
/// How many hex digits of its hash stand for a tenant.
const HASH_DIGITS: usize = 32;
/// How long limits that were read are good for.
const FRESH: Duration = Duration::from_secs(2);
/// How long a final record waits to hear how long it stays, before it's what was said last.
const KEEP_PATIENCE: Duration = Duration::from_secs(1);

/// The limits as core says, read as they are needed.
#[derive(Debug, Clone)]
pub struct Limits {
    records: Bucket<LimitsRecord>,
    seen: Arc<Mutex<Option<(Instant, LimitsRecord)>>>,
}

/// The name of the lock that counts a tenant's running jobs of a class.
#[must_use]
pub fn tenant_lock(class: Class, tenant: &Tenant) -> String {
    let mut name = format!("{PREFIX}{class}.");
    let end = name.len() + HASH_DIGITS;
    for byte in Sha256::digest(tenant.as_str()) {
        // Writing to a text can't fail.
        write!(name, "{byte:02x}").ok();
    }
    name.truncate(end);
    name
}

/// The lock that counts the running jobs of a job's tenant; none of a job that is nobody's, or on no
/// queue.
#[must_use]
pub fn tenant_lock_of(job: &Record) -> Option<String> {
    let class = job.queue.queue()?.class();
    Some(tenant_lock(class, job.tenant.as_ref()?))
}

impl Limits {
    /// Nothing is asked of the server yet.
    #[must_use]
    pub fn new(bus: &Bus) -> Self {
        Self {
            records: Bucket::new(bus, BUCKET),
            seen: Arc::default(),
        }
    }

    /// The lock that a job of this tenant must have, if their number is limited.
    ///
    /// # Errors
    /// When the server doesn't answer.
    pub async fn lock_of(
        &self,
        class: Class,
        tenant: Option<&Tenant>,
    ) -> Result<Option<String>, BusError> {
        let Some(tenant) = tenant else {
            return Ok(None);
        };
        let limit = self.now().await?.tenant_max_running.of(class);
        Ok(limit.map(|_| tenant_lock(class, tenant)))
    }

    /// How many may share a lock; none = any number.
    ///
    /// # Errors
    /// As [`Limits::lock_of`].
    pub async fn of_lock(&self, name: &str) -> Result<Option<u32>, BusError> {
        let counted = name
            .strip_prefix(PREFIX)
            .and_then(|rest| rest.split_once('.'));
        let is_its = |class: &Class| counted.is_some_and(|(name, _)| name == class.as_str());
        let Some(class) = Class::ALL.into_iter().find(is_its) else {
            return Ok(None);
        };
        Ok(self.now().await?.tenant_max_running.of(class))
    }

    /// How long final records stay; none where core has said nothing yet. While the server doesn't
    /// say, what it said last holds: nobody's ending waits for this.
    pub async fn keep(&self) -> Option<Duration> {
        let limits = match timeout(KEEP_PATIENCE, self.now()).await {
            Ok(Ok(limits)) => Some(limits),
            Ok(Err(_)) | Err(_) => self.seen().map(|(_, limits)| limits),
        };
        Some(limits?.jobs_keep?.duration())
    }

    fn seen(&self) -> Option<(Instant, LimitsRecord)> {
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn now(&self) -> Result<LimitsRecord, BusError> {
        if let Some((at, limits)) = self.seen()
            && at.elapsed() < FRESH
        {
            return Ok(limits);
        }
        // From the leader: a replica that is late knows of no limits, and whoever asked it would
        // take no lock that others count. That's one read in a while for all jobs of a process;
        // what was read before core changed the limits is good for `FRESH` and no longer.
        let entry = self.records.get_latest(LIMITS_KEY).await?;
        let limits = entry.map(|entry| entry.value).unwrap_or_default();
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        *seen = Some((Instant::now(), limits));
        Ok(limits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenants_lock_is_named_by_the_first_half_of_its_hash() {
        let name = tenant_lock(Class::Storage, &"acme".parse().unwrap());
        // printf acme | sha256sum
        assert_eq!(name, "tenant.storage.822b33ad87c148a0a20a5ba7cd5ebcaa");
    }
}
