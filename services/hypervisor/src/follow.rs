//! Keeping the records of domains true: libvirt's hints are followed, and everything is looked at
//! when a connection is made.
//!
//! Each domain is looked at by a task of its own. A look waits for the job that is changing its
//! domain, a memory snapshot perhaps, and a call of libvirt about one domain may hang: no other
//! domain waits with it.

use crate::{
    catalog::Hold,
    domains::{Domains, domain_of, trial_name},
    foreign,
    libvirt::{Hint, Hinted},
    register::returned,
    users::domains_on,
};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};
use tokio::{
    sync::Semaphore,
    task::{Id, JoinError, JoinSet},
    time::{Instant, MissedTickBehavior, interval, sleep_until},
};
use tokio_util::sync::CancellationToken;
use virtbus_bus::{BusError, Row};
use virtbus_wire::{
    DiskId, DomainId, JobError, MediaId,
    catalog::{DomainRecord, UseMode},
    task::hypervisor::DomainState,
};

/// How long what couldn't be looked at is left alone.
const TRY_AGAIN: Duration = Duration::from_secs(1);
/// How often libvirt is asked whether it's there, and the records what others write there.
const ALIVE: Duration = Duration::from_secs(5);
/// The most domains that are looked at at once: more would wait for a thread.
const LOOKS_MAX: usize = 8;

/// Domains to be looked at, each with what is held in its name as far as that was looked for.
type Open = BTreeMap<DomainId, Vec<Hold>>;

/// Follows what libvirt tells until told to stop.
pub(crate) async fn follow(domains: Domains, mut hinted: Hinted, stop: CancellationToken) {
    let mut following = Following::new(domains);
    let mut alive = interval(ALIVE);
    alive.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        following.begin();
        let (again, is_asking) = (following.again, following.is_asking);
        tokio::select! {
            () = stop.cancelled() => return,
            hint = hinted.next() => match hint {
                Some(Hint::Domain(name)) => following.add(domain_of(&name)),
                Some(Hint::Everything) => following.everything = true,
                None => return,
            },
            Some(ended) = following.at_work.join_next_with_id() => following.ended(ended),
            () = sleep_until(again.unwrap_or_else(Instant::now)), if again.is_some() => {
                following.try_again();
            }
            _ = alive.tick(), if !is_asking => following.ask(),
        }
    }
}

/// What a task does.
#[derive(Debug, Clone)]
enum Work {
    /// Looks at a domain, and frees what of this is held in its name if it doesn't run.
    Look(DomainId, Vec<Hold>),
    /// Finds every domain there is, and every hold in this host's name.
    Everything,
    /// Asks whether libvirt is there, and what others wrote.
    Ask,
}

/// What it found.
enum Found {
    /// What was to be done is done.
    Looked,
    /// A domain without a record runs, and this is held for it.
    Held(Vec<Hold>),
    /// These are to be looked at.
    Known(Open),
    /// These too; the records up to this revision were read.
    Doubted(Open, u64),
}

struct Following {
    domains: Domains,
    looks: Arc<Semaphore>,
    open: Open,
    everything: bool,
    /// What couldn't be done, and when it's tried again.
    left: Vec<Work>,
    again: Option<Instant>,
    at_work: JoinSet<Result<Found, JobError>>,
    works: HashMap<Id, Work>,
    /// What is held for domains without a record.
    foreign: Open,
    /// The domains that a task looks at: hints that come meanwhile are for the next one.
    looked_at: BTreeSet<DomainId>,
    is_asking: bool,
    /// The revision from which on records weren't read yet.
    read: u64,
}

impl Following {
    fn new(domains: Domains) -> Self {
        Self {
            domains,
            looks: Arc::new(Semaphore::new(LOOKS_MAX)),
            open: Open::new(),
            everything: true,
            left: Vec::new(),
            again: None,
            at_work: JoinSet::new(),
            works: HashMap::new(),
            foreign: Open::new(),
            looked_at: BTreeSet::new(),
            is_asking: false,
            read: 1,
        }
    }

    fn add(&mut self, domain: Option<DomainId>) {
        if let Some(domain) = domain {
            self.open.entry(domain).or_default();
        }
    }

    /// Begins what is to be done and isn't being done.
    fn begin(&mut self) {
        if std::mem::take(&mut self.everything) {
            let found = everything(self.domains.clone());
            let id = self.at_work.spawn(found).id();
            self.works.insert(id, Work::Everything);
        }
        let (later, now) = std::mem::take(&mut self.open)
            .into_iter()
            .partition(|(domain, _)| self.looked_at.contains(domain));
        self.open = later;
        let now: Open = now;
        for (domain, mut holds) in now {
            holds.extend(self.foreign.remove(&domain).unwrap_or_default());
            let work = Work::Look(domain.clone(), holds.clone());
            self.looked_at.insert(domain.clone());
            let looked = look(self.domains.clone(), Arc::clone(&self.looks), domain, holds);
            let id = self.at_work.spawn(looked).id();
            self.works.insert(id, work);
        }
    }

    fn ask(&mut self) {
        self.is_asking = true;
        let found = asked(self.domains.clone(), self.read);
        let id = self.at_work.spawn(found).id();
        self.works.insert(id, Work::Ask);
    }

    fn ended(&mut self, ended: Result<(Id, Result<Found, JobError>), JoinError>) {
        let (id, found) = match ended {
            Ok(ended) => ended,
            Err(error) => {
                tracing::error!(%error, "a look ended badly");
                (error.id(), Err(JobError::internal("a look ended badly")))
            }
        };
        let Some(work) = self.works.remove(&id) else {
            return;
        };
        match &work {
            Work::Look(domain, _) => {
                self.looked_at.remove(domain);
            }
            Work::Everything => {}
            Work::Ask => self.is_asking = false,
        }
        match found {
            Ok(Found::Looked) => {}
            Ok(Found::Held(holds)) => {
                if let Work::Look(domain, _) = work {
                    self.foreign.insert(domain, holds);
                }
            }
            Ok(Found::Known(open)) => self.extend(open),
            Ok(Found::Doubted(open, read)) => {
                self.read = read;
                self.extend(open);
            }
            Err(error) => {
                tracing::warn!(?work, %error, "could not be looked at yet");
                self.left.push(work);
                self.again = self.again.or(Some(Instant::now() + TRY_AGAIN));
            }
        }
    }

    fn extend(&mut self, open: Open) {
        for (domain, holds) in open {
            self.open.entry(domain).or_default().extend(holds);
        }
    }

    fn try_again(&mut self) {
        self.again = None;
        for work in std::mem::take(&mut self.left) {
            match work {
                Work::Look(domain, holds) => self.extend(Open::from([(domain, holds)])),
                Work::Everything => self.everything = true,
                // It comes by itself.
                Work::Ask => {}
            }
        }
    }
}

/// Makes a domain's record true, and frees what is held in its name if it doesn't run.
async fn look(
    domains: Domains,
    looks: Arc<Semaphore>,
    domain: DomainId,
    holds: Vec<Hold>,
) -> Result<Found, JobError> {
    let _guard = domains.guard(&domain).await;
    // Those who wait for a job don't count: there are as many as jobs at most.
    let _look = looks.acquire().await;
    if domains.sync_guarded(&domain).await?.is_none() {
        let held = foreign::hold(&domains, &domain).await?;
        if !held.is_empty() {
            return Ok(Found::Held(held));
        }
    }
    free_unused(&domains, &domain, holds).await?;
    Ok(Found::Looked)
}

/// Frees what of this is held in a domain's name, unless it runs; by whoever has its guard.
pub(crate) async fn free_unused(
    domains: &Domains,
    domain: &DomainId,
    holds: Vec<Hold>,
) -> Result<(), JobError> {
    if holds.is_empty() || runs(domains, domain).await? {
        return Ok(());
    }
    Ok(domains
        .catalog
        .free(&domains.holder(domain), &holds)
        .await?)
}

/// Whether a domain has processes here, be it only to be tried out.
async fn runs(domains: &Domains, domain: &DomainId) -> Result<bool, JobError> {
    for name in [domain.to_string(), trial_name(domain)] {
        let seen = domains.host.domain(&name).await?;
        if seen.is_some_and(|seen| seen.is_active) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Every domain that libvirt or a record knows here, and every hold in this host's name: a service
/// that died may have left some for domains that don't run.
async fn everything(domains: Domains) -> Result<Found, JobError> {
    let bus = |error: BusError| JobError::internal(error.to_string());
    let here = &domains.settings.hypervisor;
    let mut known = Open::new();
    for name in domains.host.names().await? {
        if let Some(domain) = domain_of(&name) {
            known.entry(domain).or_default();
        }
    }
    for (key, entry) in domains.catalog.domains.all().await.map_err(bus)? {
        if entry.value.hypervisor.as_ref() == Some(here)
            && let Ok(domain) = key.parse()
        {
            known.entry(domain).or_default();
        }
    }
    for (key, entry) in domains.catalog.disks.all().await.map_err(bus)? {
        let Ok(disk) = key.parse::<DiskId>() else {
            continue;
        };
        for domain in domains_on(here, &entry.value.in_use_by) {
            let hold = Hold::Disk(disk.clone(), UseMode::Shared);
            known.entry(domain.clone()).or_default().push(hold);
        }
    }
    for (key, entry) in domains.catalog.media.all().await.map_err(bus)? {
        let Ok(media) = key.parse::<MediaId>() else {
            continue;
        };
        for domain in domains_on(here, &entry.value.in_use_by) {
            let hold = Hold::Media(media.clone());
            known.entry(domain.clone()).or_default().push(hold);
        }
    }
    Ok(Found::Known(known))
}

/// Whether libvirt is there, and which domains others doubt: all, if the host itself was.
async fn asked(domains: Domains, read: u64) -> Result<Found, JobError> {
    // A connection that broke is found by this, and made anew.
    domains.host.node().await?;
    let bus = |error: BusError| JobError::internal(error.to_string());
    let (hosts, here) = (&domains.catalog.hypervisors, &domains.settings.hypervisor);
    if returned(hosts, here).await.map_err(bus)? {
        return everything(domains).await;
    }
    let (doubted, read) = doubted(&domains, read).await.map_err(bus)?;
    Ok(Found::Doubted(doubted, read))
}

/// The domains here of which others wrote that they are off, or that nobody knows what they are:
/// while nobody heard of this host, or because somebody gave their word that it was off. And the
/// revision up to which records were read.
async fn doubted(domains: &Domains, read: u64) -> Result<(Open, u64), BusError> {
    let here = &domains.settings.hypervisor;
    let mut doubted = Open::new();
    let each = |row: Row<DomainRecord>| {
        if let (Ok(id), Ok(Some(entry))) = (row.key.parse(), row.entry)
            && entry.value.hypervisor.as_ref() == Some(here)
            && matches!(
                entry.value.state,
                DomainState::Unknown | DomainState::Shutoff
            )
        {
            doubted.insert(id, Vec::new());
        }
    };
    let read = domains.catalog.domains.each_from(read, each).await?;
    Ok((doubted, read))
}
