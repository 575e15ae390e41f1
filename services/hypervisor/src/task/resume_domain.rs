//! `resume_domain`: a paused domain runs on.

use super::{Checked, Context, Steps};
use crate::libvirt::Power;
use virtbus_wire::{JobError, task::hypervisor::DomainState};
use virtbus_worker::{Done, Run, Stop};

pub(crate) struct ResumeDomain<'a> {
    pub(crate) at: Context<'a>,
}

impl Steps for ResumeDomain<'_> {
    type Plan = ();

    async fn check(&self) -> Result<Checked<()>, Stop> {
        let (_, seen) = self.at.active().await?;
        match seen.state {
            DomainState::Running => self.at.in_state().await.map(Checked::Done),
            DomainState::Paused => Ok(Checked::Plan(())),
            state @ (DomainState::Shutdown
            | DomainState::Shutoff
            | DomainState::Crashed
            | DomainState::Pmsuspended
            | DomainState::Unknown) => {
                Err(self.at.wrong_state("the domain isn't paused", state).into())
            }
        }
    }

    async fn effect(&self, (): &mut (), _: &Run) -> Result<(), Stop> {
        let (host, domain) = (&self.at.domains.host, self.at.domain);
        match host.power(domain, domain.as_str(), Power::Resume).await {
            Ok(()) => Ok(()),
            Err(error) if error.is_in_doubt() => Err(JobError::from(error).into()),
            Err(error) => match self.at.seen().await? {
                Some(seen) if seen.state == DomainState::Running => Ok(()),
                Some(_) | None => Err(JobError::from(error).into()),
            },
        }
    }

    async fn publish(&self, (): ()) -> Result<Done, Stop> {
        self.at.in_state().await
    }
}
