//! `delete_domain`: one that doesn't run is forgotten, with its snapshots' metadata and nvram.

use super::{Checked, Context, Steps};
use tokio::sync::OwnedMutexGuard;
use virtbus_bus::WriteError;
use virtbus_wire::JobError;
use virtbus_worker::{Done, Run, Stop};

pub(crate) struct DeleteDomain<'a> {
    pub(crate) at: Context<'a>,
}

pub(crate) struct Plan {
    _guard: OwnedMutexGuard<()>,
    is_defined: bool,
}

impl Steps for DeleteDomain<'_> {
    type Plan = Plan;

    async fn check(&self) -> Result<Checked<Plan>, Stop> {
        let guard = self.at.domains.guard(self.at.domain).await;
        let seen = self.at.seen().await?;
        if let Some(seen) = seen.as_ref().filter(|seen| seen.is_active) {
            let text = "a domain that runs can't be deleted: stop it first";
            return Err(self.at.wrong_state(text, seen.state).into());
        }
        // One that nobody knows is deleted already.
        if seen.is_none() && self.at.slot().await?.value.is_none() {
            return Ok(Checked::Done(Done::new()));
        }
        let is_defined = seen.is_some();
        Ok(Checked::Plan(Plan {
            _guard: guard,
            is_defined,
        }))
    }

    async fn effect(&self, plan: &mut Plan, _: &Run) -> Result<(), Stop> {
        if !plan.is_defined {
            return Ok(());
        }
        match self.at.domains.host.undefine(self.at.domain).await {
            Err(error) if !error.is_no_domain() => Err(JobError::from(error).into()),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    async fn publish(&self, _: Plan) -> Result<Done, Stop> {
        let (domains, domain) = (self.at.domains, self.at.domain);
        let slot = self.at.slot().await?;
        if let Some(record) = &slot.value {
            domains.free(domain, record).await?;
            let removed = domains
                .catalog
                .domains
                .remove(domain.as_str(), slot.revision)
                .await;
            removed.map_err(|error| match error {
                WriteError::Conflict(_) => JobError::internal("the domain's record was changed"),
                WriteError::Bus(error) => JobError::internal(error.to_string()),
            })?;
        }
        Ok(Done::new())
    }
}
