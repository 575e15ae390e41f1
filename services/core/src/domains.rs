//! Records of domains, as far as core has a word in them: their own hosts write them otherwise.

use crate::{catalogue, service::Stores};
use virtbus_bus::{BusError, Row, WriteError};
use virtbus_wire::{DomainId, Label, catalog::DomainRecord};

/// The domains that are on a host, or were on it last.
///
/// # Errors
/// When the server doesn't answer.
pub async fn of_host(
    stores: &Stores,
    host: &Label,
) -> Result<Vec<(DomainId, DomainRecord)>, BusError> {
    let mut found = Vec::new();
    let each = |row: Row<DomainRecord>| {
        if let (Ok(id), Ok(Some(entry))) = (row.key.parse(), row.entry)
            && entry.value.hypervisor.as_ref() == Some(host)
        {
            found.push((id, entry.value));
        }
    };
    stores.catalogue.domains.each_from(1, each).await?;
    Ok(found)
}

/// Changes the record of a domain, if it's still of this host. None of `step` = nothing to do.
///
/// # Errors
/// When the server doesn't answer, or others come between all the time.
pub async fn change(
    stores: &Stores,
    id: &DomainId,
    host: &Label,
    step: impl Fn(&DomainRecord) -> Option<DomainRecord>,
) -> Result<(), WriteError> {
    let step = |domain: &DomainRecord| {
        let is_ours = domain.hypervisor.as_ref() == Some(host);
        let updated_at = stores.bus.now();
        let next = is_ours.then(|| step(domain)).flatten()?;
        Some(DomainRecord { updated_at, ..next })
    };
    catalogue::change(&stores.catalogue.domains, id.as_str(), step).await
}
