//! The limits of the configuration, where workers read them: key `_limits` of bucket `pools`.
//!
//! The leader writes them, and again when somebody else did: two cores configured differently
//! don't fight, the one that leads counts.

use crate::service::Stores;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use virtbus_bus::{BusError, WriteError};
use virtbus_daemon::Beat;
use virtbus_wire::catalog::LIMITS_KEY;

/// How often the record is looked at.
const LOOK: Duration = Duration::from_secs(5);

/// Keeps the record as it should be until `stop`.
pub async fn run(stores: Stores, stop: CancellationToken) {
    let mut beat = Beat::every(LOOK, stop);
    while beat.next().await {
        if let Err(error) = write(&stores).await {
            tracing::warn!(%error, "the limits can't be written");
        }
    }
}

async fn write(stores: &Stores) -> Result<(), BusError> {
    let limits = stores.limits;
    let slot = match stores.catalogue.limits.slot(LIMITS_KEY).await {
        Ok(slot) if slot.value == Some(limits) => return Ok(()),
        Ok(slot) => slot.revision,
        // Whatever stands there instead isn't ours.
        Err(BusError::Corrupt { .. }) => {
            stores.catalogue.limits.put(LIMITS_KEY, &limits).await?;
            return Ok(());
        }
        Err(error) => return Err(error),
    };
    match stores
        .catalogue
        .limits
        .update(LIMITS_KEY, &limits, slot)
        .await
    {
        Ok(_) => {
            tracing::info!(?limits, "limits written");
            Ok(())
        }
        // The next look sees who came between.
        Err(WriteError::Conflict(_)) => Ok(()),
        Err(WriteError::Bus(error)) => Err(error),
    }
}
