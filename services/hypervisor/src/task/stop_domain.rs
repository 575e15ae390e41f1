//! `stop_domain`: the guest is asked, or the power fails, or one after the other.

use super::{Checked, Context, Steps};
use crate::libvirt::{Host, Power, Seen};
use std::time::Duration;
use tokio::time::Instant;
use virtbus_wire::{
    Code, JobError, Timestamp,
    catalog::{Desired, DomainRecord},
    task::hypervisor::{DomainState, InState, StopMode, domain as params},
};
use virtbus_worker::{Done, Run, Stop, done};

/// How often is looked whether the guest is off by now.
const LOOK: Duration = Duration::from_millis(250);
/// How often it's asked again: some guests hear it only once they are up.
const ASK_AGAIN: Duration = Duration::from_secs(15);

pub(crate) struct StopDomain<'a> {
    pub(crate) at: Context<'a>,
    pub(crate) params: &'a params::StopDomain,
}

pub(crate) struct Plan {
    state: DomainState,
    is_off: bool,
}

impl StopDomain<'_> {
    /// Calls with threads of their own, for when all others hang.
    fn host(&self) -> Host {
        self.at.domains.host.for_stops()
    }

    async fn active(&self) -> Result<Option<Seen>, JobError> {
        let seen = self.host().domain(self.at.domain.as_str()).await?;
        Ok(seen.filter(|seen| seen.is_active))
    }

    /// What is so afterwards: told by calls that get through when all others hang.
    async fn off(&self) -> Result<Done, Stop> {
        let domains = self.at.domains.for_stops();
        let at = Context {
            domains: &domains,
            job: self.at.job,
            domain: self.at.domain,
        };
        match at.in_state().await {
            Err(Stop::Failed(error)) if error.code == Code::DomainNotFound => {
                // One that nobody made over the bus has no record; libvirt may know it.
                let seen = self.host().domain(self.at.domain.as_str()).await;
                let seen = seen.map_err(JobError::from)?;
                let state = seen.ok_or(error)?.state;
                done(&InState { state })
            }
            other => other,
        }
    }

    async fn should_be_off(&self) -> Result<(), Stop> {
        let off = |record: &mut DomainRecord| record.desired = Desired::Shutoff;
        match self.at.intend(off).await {
            // One that nobody defined over the bus is stopped all the same.
            Err(Stop::Failed(error)) if error.code == self.at.not_found().code => Ok(()),
            other => other,
        }
    }

    /// Asks the guest, and waits for its end; false when its time is over.
    async fn shut_down(&self, run: &Run) -> Result<bool, Stop> {
        let deadline = Instant::now() + Duration::from_secs(self.params.deadline_s.get());
        let mut asked: Option<Instant> = None;
        loop {
            if self.active().await?.is_none() {
                return Ok(true);
            }
            if Instant::now() >= deadline {
                return Ok(false);
            }
            if asked.is_none_or(|at| at.elapsed() >= ASK_AGAIN) {
                asked = Some(Instant::now());
                let (domain, power) = (self.at.domain, Power::Shutdown);
                let told = self.host().power(domain, domain.as_str(), power).await;
                match told {
                    Ok(()) => {}
                    Err(_) if self.active().await?.is_none() => return Ok(true),
                    Err(error) => return Err(JobError::from(error).into()),
                }
            }
            tokio::select! {
                () = tokio::time::sleep(LOOK) => {}
                () = run.stop().asked() => return Err(Stop::Stopped),
            }
        }
    }
}

impl Steps for StopDomain<'_> {
    type Plan = Plan;

    async fn check(&self) -> Result<Checked<Plan>, Stop> {
        match self.active().await? {
            Some(seen) => Ok(Checked::Plan(Plan {
                state: seen.state,
                is_off: false,
            })),
            // It may have crashed: that it should be off is said all the same.
            None => {
                self.should_be_off().await?;
                self.off().await.map(Checked::Done)
            }
        }
    }

    async fn work(&self, plan: &mut Plan, run: &Run) -> Result<(), Stop> {
        let can_hear = matches!(plan.state, DomainState::Running | DomainState::Shutdown);
        match self.params.mode {
            StopMode::Destroy => Ok(()),
            // One whose processors stand still hears nothing.
            StopMode::ShutdownThenDestroy if !can_hear => Ok(()),
            StopMode::Shutdown if !can_hear => {
                let text = "a domain that stands still can't be asked to shut down";
                Err(self.at.wrong_state(text, plan.state).into())
            }
            StopMode::Shutdown | StopMode::ShutdownThenDestroy => {
                plan.is_off = self.shut_down(run).await?;
                if plan.is_off || self.params.mode == StopMode::ShutdownThenDestroy {
                    return Ok(());
                }
                let seconds = self.params.deadline_s.get();
                let text = format!("the guest did not shut down within {seconds} s");
                let error = self.at.wrong_state(&text, plan.state);
                Err(error.with("deadline_s", seconds).into())
            }
        }
    }

    async fn intend(&self, _: &mut Plan) -> Result<(), Stop> {
        self.should_be_off().await
    }

    async fn effect(&self, plan: &mut Plan, _: &Run) -> Result<(), Stop> {
        if plan.is_off {
            return Ok(());
        }
        let (domain, power) = (self.at.domain, Power::Destroy);
        match self.host().power(domain, domain.as_str(), power).await {
            Ok(()) => Ok(()),
            Err(error) if error.is_in_doubt() => Err(JobError::from(error).into()),
            Err(_) if self.active().await?.is_none() => Ok(()),
            Err(error) => Err(JobError::from(error).into()),
        }
    }

    async fn publish(&self, _: Plan) -> Result<Done, Stop> {
        self.off().await
    }

    /// One that runs on should run. By its record, since libvirt may be what didn't answer: should
    /// it be off by now, then in order, and whoever sees it off says so again.
    async fn abandon(&self) -> Result<(), JobError> {
        let on = |record: &DomainRecord| {
            let was_told = self.at.is_own(record) && record.desired == Desired::Shutoff;
            Ok((was_told && record.state.is_on()).then(|| DomainRecord {
                desired: Desired::Running,
                updated_at: Timestamp::now(),
                ..record.clone()
            }))
        };
        let catalog = &self.at.domains.catalog;
        let told = catalog.change_domain(self.at.domain, on).await;
        match told.map_err(JobError::from) {
            Err(error) if error.code == Code::DomainNotFound => Ok(()),
            other => other,
        }
    }
}
