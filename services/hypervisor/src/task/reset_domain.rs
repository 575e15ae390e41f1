//! `reset_domain`: as its reset button would. Run again it's reset again: nothing tells one reset
//! from two, for the guest either.

use super::{Checked, Context, Steps};
use crate::libvirt::Power;
use virtbus_wire::JobError;
use virtbus_worker::{Done, Run, Stop};

pub(crate) struct ResetDomain<'a> {
    pub(crate) at: Context<'a>,
}

impl Steps for ResetDomain<'_> {
    type Plan = ();

    async fn check(&self) -> Result<Checked<()>, Stop> {
        self.at.active().await?;
        Ok(Checked::Plan(()))
    }

    async fn effect(&self, (): &mut (), _: &Run) -> Result<(), Stop> {
        let (host, domain) = (&self.at.domains.host, self.at.domain);
        let reset = host.power(domain, domain.as_str(), Power::Reset).await;
        Ok(reset.map_err(JobError::from)?)
    }

    async fn publish(&self, (): ()) -> Result<Done, Stop> {
        self.at.in_state().await
    }
}
