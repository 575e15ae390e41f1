//! Who waits for which lock, by their own records: a lock's record names only the first.

use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
};
use virtbus_wire::{
    JobId,
    protocol::lock::{Mode, WAITERS_LOW, WAITERS_MAX},
};

/// After how many that left a long line the lock's list is filled up.
const LEFT_MAX: usize = WAITERS_LOW / 2;

/// The lines of all locks.
#[derive(Debug, Default)]
pub(super) struct Lines {
    lines: BTreeMap<String, Line>,
    due: BTreeSet<String>,
}

#[derive(Debug, Default)]
struct Line {
    waiting: BTreeMap<(u64, JobId), Mode>,
    /// Whether the lock's list may not name all of them.
    is_long: bool,
    /// How many left since the list was filled up.
    left: usize,
}

impl Lines {
    /// A job waits for a lock.
    pub(super) fn join(&mut self, lock: &str, ticket: u64, job: &JobId, mode: Mode) {
        let line = self.lines.entry(lock.to_owned()).or_default();
        line.waiting.insert((ticket, job.clone()), mode);
        line.is_long |= line.waiting.len() > WAITERS_MAX;
    }

    /// It doesn't any more.
    pub(super) fn leave(&mut self, lock: &str, ticket: u64, job: &JobId) {
        let Some(line) = self.lines.get_mut(lock) else {
            return;
        };
        line.waiting.remove(&(ticket, job.clone()));
        line.left += 1;
        let is_short = line.waiting.len() <= WAITERS_LOW;
        if line.is_long && (is_short || line.left >= LEFT_MAX) {
            line.left = 0;
            self.due.insert(lock.to_owned());
        }
        if line.waiting.is_empty() {
            self.lines.remove(lock);
        }
    }

    /// The locks whose lists are to be filled up.
    pub(super) fn take_due(&mut self) -> BTreeSet<String> {
        mem::take(&mut self.due)
    }

    /// The lock's list names all who wait.
    pub(super) fn all_named(&mut self, lock: &str) {
        if let Some(line) = self.lines.get_mut(lock) {
            line.is_long = line.waiting.len() > WAITERS_MAX;
        }
    }

    /// As many of those with this ticket or a later one as a list may need.
    pub(super) fn from(&self, lock: &str, ticket: u64) -> Vec<(u64, JobId, Mode)> {
        let line = self.lines.get(lock).map(|line| &line.waiting);
        let from = line
            .into_iter()
            .flatten()
            .filter(|((at, _), _)| *at >= ticket);
        from.take(2 * WAITERS_MAX + 1)
            .map(|((ticket, job), mode)| (*ticket, job.clone(), *mode))
            .collect()
    }

    /// Who may be next when one with this ticket leaves the line: the first that waits, if it came
    /// later, and with it those who share with it.
    pub(super) fn behind(&self, lock: &str, ticket: u64) -> Vec<JobId> {
        let line = self.lines.get(lock).map(|line| &line.waiting);
        let mut line = line.into_iter().flatten().take(WAITERS_MAX).peekable();
        let mut next = Vec::new();
        while let Some(((at, job), mode)) = line.next() {
            if *at < ticket {
                break;
            }
            next.push(job.clone());
            let shares = *mode == Mode::Shared
                && line
                    .peek()
                    .is_some_and(|(_, other)| **other == Mode::Shared);
            if !shares {
                break;
            }
        }
        next
    }

    /// Who waits for a lock with a ticket below this, or with any.
    pub(super) fn before<'a>(
        &'a self,
        lock: &str,
        ticket: Option<u64>,
    ) -> impl Iterator<Item = &'a JobId> {
        let line = self.lines.get(lock).map(|line| &line.waiting);
        let all = line.into_iter().flatten();
        all.take_while(move |((at, _), _)| ticket.is_none_or(|end| *at < end))
            .map(|((_, job), _)| job)
    }

    /// The locks that somebody waits for.
    pub(super) fn locks(&self) -> impl Iterator<Item = &String> {
        self.lines.keys()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_line_is_looked_at_as_it_drains_and_a_short_one_never() {
        let mut lines = Lines::default();
        let id = |n: u64| format!("j{n}").parse::<JobId>().unwrap();
        let count = u64::try_from(WAITERS_MAX).unwrap() + 10;
        for n in 0..count {
            lines.join("disk.long", n, &id(n), Mode::Exclusive);
        }
        lines.join("disk.short", 1, &id(1), Mode::Shared);
        lines.leave("disk.short", 1, &id(1));
        assert!(lines.take_due().is_empty());
        let mut looks = 0;
        for n in 0..count {
            lines.leave("disk.long", n, &id(n));
            looks += lines.take_due().len();
        }
        // Now and then at first, each time near the end.
        assert!(looks > WAITERS_LOW && looks < WAITERS_LOW + 10, "{looks}");
        assert_eq!(lines.locks().count(), 0);
    }
}
