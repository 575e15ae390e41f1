//! The calls on their way: how many, for how long, about which domain.
//!
//! A call that hangs can't be taken back: it keeps its thread. It's counted until it returns, and
//! as long as one is late the host starts nothing more. Calls that stop domains have threads of
//! their own, so that they get through when all others hang, and so have looks at what happened.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Instant,
};
use virtbus_wire::DomainId;

/// Calls that may be on their way at once, those given up included: each keeps a thread.
pub(crate) const CALLS_MAX: u32 = 16;
/// So many more for calls that stop domains.
const STOPS_MAX: u32 = 8;
/// So many more for looks at domains of which something was told.
const LOOKS_MAX: u32 = 8;

/// What a call is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// What jobs ask for, but for an end.
    Other,
    /// A look at what happened by itself.
    Look,
    /// The end of a domain, and what is looked at for it.
    Stop,
}

/// All calls on their way.
#[derive(Debug, Clone)]
pub(super) struct Calls {
    others: Arc<Semaphore>,
    stops: Arc<Semaphore>,
    looks: Arc<Semaphore>,
    open: Arc<Mutex<Open>>,
}

#[derive(Debug, Default)]
struct Open {
    next: u64,
    calls: BTreeMap<u64, OpenCall>,
}

#[derive(Debug)]
struct OpenCall {
    domain: Option<DomainId>,
    due: Instant,
}

/// One call, until it's dropped.
#[derive(Debug)]
pub(super) struct Call {
    all: Calls,
    number: u64,
    _thread: OwnedSemaphorePermit,
}

impl Calls {
    pub(super) fn new() -> Self {
        let threads = |most: u32| Arc::new(Semaphore::new(most as usize));
        Self {
            others: threads(CALLS_MAX),
            stops: threads(STOPS_MAX),
            looks: threads(LOOKS_MAX),
            open: Arc::default(),
        }
    }

    /// A call that should take no longer than `limit`; none when no thread became free by then.
    pub(super) async fn begin(
        &self,
        purpose: Purpose,
        domain: Option<&DomainId>,
        limit: Duration,
    ) -> Option<Call> {
        let threads = match purpose {
            Purpose::Other => &self.others,
            Purpose::Look => &self.looks,
            Purpose::Stop => &self.stops,
        };
        let free = tokio::time::timeout(limit, Arc::clone(threads).acquire_owned());
        let thread = free.await.ok()?.ok()?;
        let mut open = self.open();
        let number = open.next;
        open.next += 1;
        let call = OpenCall {
            domain: domain.cloned(),
            due: Instant::now() + limit,
        };
        open.calls.insert(number, call);
        drop(open);
        Some(Call {
            all: self.clone(),
            number,
            _thread: thread,
        })
    }

    /// Whether no call is late.
    pub(super) fn are_in_time(&self) -> bool {
        let now = Instant::now();
        self.open().calls.values().all(|call| call.due > now)
    }

    /// Whether a call about this domain hasn't returned.
    pub(super) fn has(&self, domain: &DomainId) -> bool {
        let open = self.open();
        let mut calls = open.calls.values();
        calls.any(|call| call.domain.as_ref() == Some(domain))
    }

    /// How many are on their way.
    #[cfg(test)]
    pub(super) fn count(&self) -> usize {
        self.open().calls.len()
    }

    fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.all.open().calls.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn a_late_call_counts_until_it_returns() {
        let (calls, web1) = (Calls::new(), "web1".parse().unwrap());
        let call = calls.begin(Purpose::Other, Some(&web1), LIMIT).await;
        assert!(calls.are_in_time() && calls.has(&web1));
        tokio::time::advance(LIMIT).await;
        assert!(!calls.are_in_time());
        drop(call);
        assert!(calls.are_in_time() && !calls.has(&web1));
    }

    #[tokio::test(start_paused = true)]
    async fn stops_and_looks_get_through_when_all_others_hang() {
        let calls = Calls::new();
        let mut hanging = Vec::new();
        for _ in 0..CALLS_MAX {
            hanging.push(calls.begin(Purpose::Other, None, LIMIT).await.unwrap());
        }
        assert!(calls.begin(Purpose::Other, None, LIMIT).await.is_none());
        for other in [Purpose::Stop, Purpose::Look] {
            assert!(calls.begin(other, None, LIMIT).await.is_some());
        }
    }
}
