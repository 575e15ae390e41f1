//! Who has a slot, and since when.

use crate::slots::{Kind, SlotsConfig};
use std::{collections::BTreeMap, time::Duration};
use tokio::time::Instant;
use virtbus_wire::Priority;

/// How long a job has its slot for itself where slots are lent.
pub(crate) const OWN: Duration = Duration::from_secs(10);

/// How many jobs there are of each kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Busy {
    urgent: u32,
    ordinary: u32,
    pub(crate) low: u32,
    pub(crate) long: u32,
}

impl Busy {
    fn add(&mut self, kind: Kind, is_lent: bool) {
        let counts = |applies: bool| u32::from(applies && !is_lent);
        self.urgent += counts(kind.may_use_reserved());
        self.ordinary += counts(!kind.may_use_reserved());
        self.low += counts(kind.priority == Priority::Low);
        // What it takes of the machine isn't lent.
        self.long += u32::from(kind.is_long);
    }

    pub(crate) fn total(self) -> u32 {
        self.urgent + self.ordinary
    }

    /// Slots for any job that are free: urgent jobs fill the reserved ones first.
    pub(crate) fn open(self, config: SlotsConfig) -> u32 {
        let used = self.ordinary + self.urgent.saturating_sub(config.reserved_high);
        (config.slots - config.reserved_high).saturating_sub(used)
    }
}

/// The jobs that have a slot, the oldest first, and since when.
#[derive(Debug, Default)]
pub(crate) struct Held {
    next: u64,
    jobs: BTreeMap<u64, (Kind, Instant)>,
}

impl Held {
    /// Notes one more job; its number here.
    pub(crate) fn add(&mut self, kind: Kind, now: Instant) -> u64 {
        let number = self.next;
        self.next += 1;
        self.jobs.insert(number, (kind, now));
        number
    }

    pub(crate) fn remove(&mut self, number: u64) {
        self.jobs.remove(&number);
    }

    /// All there are.
    pub(crate) fn count(&self) -> u32 {
        u32::try_from(self.jobs.len()).unwrap_or(u32::MAX)
    }

    /// When the next slot is lent, should nothing happen until then.
    pub(crate) fn lends_at(&self, lent_max: u32, now: Instant) -> Option<Instant> {
        let jobs = self.jobs.values();
        let ordinary = jobs.filter(|(kind, _)| !kind.may_use_reserved());
        let ends = ordinary.map(|(_, since)| *since + OWN);
        ends.take(lent_max as usize).find(|end| *end > now)
    }

    /// How many there are of each kind, without those whose slots are lent.
    pub(crate) fn busy(&self, lent_max: u32, now: Instant) -> Busy {
        let (mut busy, mut lent) = (Busy::default(), 0);
        for (kind, since) in self.jobs.values() {
            let is_own = now.saturating_duration_since(*since) < OWN;
            let is_lent = !is_own && !kind.may_use_reserved() && lent < lent_max;
            lent += u32::from(is_lent);
            busy.add(*kind, is_lent);
        }
        busy
    }
}
