//! What libvirt tells by itself: that something happened to a domain, that a connection broke.
//!
//! The binding has no safe way to ask for either, nor for a live commit and for what libvirt is at
//! with a domain, so this is the one module with unsafe code. It
//! is kept to what can't be said otherwise:
//! - what C gets as `opaque` is a boxed [`Hints`] that lives until C says that it won't call any
//!   more (its free function), so no call-back can see it gone;
//! - a call-back reads a name that libvirt lends for that call, copies it, and puts it into a
//!   channel without waiting; it can't panic, and doesn't call libvirt;
//! - they run on the one thread that drives libvirt's event loop.
//!
//! Events are hints and may be lost: who gets one asks libvirt what is so now.

#![expect(
    unsafe_code,
    reason = "the binding has no safe registration of events and no live commit"
)]

use super::{error::LibvirtError, lines::Line};
use std::{
    ffi::{CStr, CString, c_int, c_void},
    fmt::Display,
    mem::{MaybeUninit, transmute},
    ptr::{null, null_mut},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};
use tokio::sync::mpsc;
use virt::{domain::Domain, error::Error, event, sys};

/// Hints that wait to be looked at. More are not kept: then everything is looked at.
const HINTS_MAX: usize = 1_024;

/// Something to look at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Hint {
    /// A domain, by the name that libvirt has for it.
    Domain(String),
    /// Everything: a connection broke or is new, or hints were lost.
    Everything,
}

/// Where hints are put.
#[derive(Debug, Clone)]
pub(super) struct Hints {
    channel: mpsc::Sender<Hint>,
    lost: Arc<AtomicBool>,
}

/// Where hints come out.
#[derive(Debug)]
pub(crate) struct Hinted {
    channel: mpsc::Receiver<Hint>,
    lost: Arc<AtomicBool>,
}

pub(super) fn hints() -> (Hints, Hinted) {
    let (sender, receiver) = mpsc::channel(HINTS_MAX);
    let lost = Arc::new(AtomicBool::new(false));
    let hints = Hints {
        channel: sender,
        lost: Arc::clone(&lost),
    };
    let hinted = Hinted {
        channel: receiver,
        lost,
    };
    (hints, hinted)
}

impl Hints {
    /// Never waits.
    pub(super) fn give(&self, hint: Hint) {
        if self.channel.try_send(hint).is_err() {
            self.lost.store(true, Ordering::Release);
        }
    }
}

impl Hinted {
    /// The next one; none when nobody can give any.
    pub(crate) async fn next(&mut self) -> Option<Hint> {
        let next = self.channel.recv().await;
        if self.lost.swap(false, Ordering::AcqRel) {
            return Some(Hint::Everything);
        }
        next
    }
}

/// Starts libvirt's event loop, once in a process and before the first connection.
pub(super) fn run_loop() -> Result<(), LibvirtError> {
    static LOOP: OnceLock<Result<(), LibvirtError>> = OnceLock::new();
    LOOP.get_or_init(|| {
        event::event_register_default_impl()?;
        let driven = thread::Builder::new()
            .name("libvirt-events".to_owned())
            .spawn(|| {
                loop {
                    let round = event::event_run_default_impl();
                    let round = round.map_err(LibvirtError::from);
                    thread::sleep(after_round(round, &IS_DEAF));
                }
            });
        driven
            .map(|_| ())
            .map_err(|_| LibvirtError::Unreadable("no thread for libvirt's events"))
    })
    .clone()
}

/// Whether libvirt's event loop fails: then nothing is heard of domains.
static IS_DEAF: AtomicBool = AtomicBool::new(false);
/// The wait after a round that failed.
const DEAF_PAUSE: Duration = Duration::from_secs(1);

/// Notes how a round of the loop went; the wait before the next one.
fn after_round<E: Display>(round: Result<(), E>, is_deaf: &AtomicBool) -> Duration {
    let was_deaf = is_deaf.swap(round.is_err(), Ordering::AcqRel);
    match round {
        Ok(()) => Duration::ZERO,
        Err(error) => {
            if !was_deaf {
                tracing::error!(%error, "libvirt's event loop fails");
            }
            DEAF_PAUSE
        }
    }
}

/// Whether what libvirt tells by itself is heard.
pub(super) fn are_heard() -> bool {
    !IS_DEAF.load(Ordering::Acquire)
}

/// What a connection tells; it no longer does once this is dropped.
#[derive(Debug)]
pub(super) struct Subscription {
    line: Line,
    lifecycle: c_int,
}

impl Subscription {
    /// Has the connection tell of domains and of its own end.
    pub(super) fn new(line: Line, hints: &Hints) -> Result<Self, LibvirtError> {
        let opaque = boxed(hints);
        // SAFETY: a call-back for this event id is called with the four arguments that
        // `on_lifecycle` takes; C casts it back to that type before it calls it.
        let callback = unsafe { transmute::<Lifecycle, Generic>(on_lifecycle as Lifecycle) };
        // SAFETY: the connection is open; `opaque` is a boxed `Hints` that only `free` frees,
        // which libvirt calls once, after the last call-back.
        let lifecycle = unsafe {
            sys::virConnectDomainEventRegisterAny(
                line.as_ptr(),
                null_mut(),
                sys::VIR_DOMAIN_EVENT_ID_LIFECYCLE as c_int,
                Some(callback),
                opaque,
                Some(free),
            )
        };
        if lifecycle < 0 {
            free_now(opaque);
            return Err(Error::last_error().into());
        }
        let opaque = boxed(hints);
        // SAFETY: as above.
        let registered = unsafe {
            sys::virConnectRegisterCloseCallback(line.as_ptr(), Some(on_close), opaque, Some(free))
        };
        if registered < 0 {
            // The trial driver has none; nobody can close it either.
            free_now(opaque);
        }
        Ok(Self { line, lifecycle })
    }

    /// The connection that tells.
    pub(super) fn line(&self) -> &Line {
        &self.line
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        // SAFETY: the connection is held by `self`; the id came from it. Both may fail on a
        // connection that broke, and nothing is left to be done then.
        unsafe {
            sys::virConnectDomainEventDeregisterAny(self.line.as_ptr(), self.lifecycle);
            sys::virConnectUnregisterCloseCallback(self.line.as_ptr(), Some(on_close));
        }
    }
}

type Generic = unsafe extern "C" fn(sys::virConnectPtr, sys::virDomainPtr, *mut c_void);
type Lifecycle =
    extern "C" fn(sys::virConnectPtr, sys::virDomainPtr, c_int, c_int, *mut c_void) -> c_int;

fn boxed(hints: &Hints) -> *mut c_void {
    Box::into_raw(Box::new(hints.clone())).cast()
}

fn free_now(opaque: *mut c_void) {
    free(opaque);
}

extern "C" fn free(opaque: *mut c_void) {
    // SAFETY: `opaque` came from `boxed`, and is freed once: by libvirt after a registration, by
    // us where there was none.
    drop(unsafe { Box::from_raw(opaque.cast::<Hints>()) });
}

extern "C" fn on_lifecycle(
    _: sys::virConnectPtr,
    domain: sys::virDomainPtr,
    _: c_int,
    _: c_int,
    opaque: *mut c_void,
) -> c_int {
    // SAFETY: `opaque` is the boxed `Hints` of the registration, freed after the last call.
    let hints = unsafe { &*opaque.cast::<Hints>() };
    // SAFETY: libvirt lends the domain for this call; a name it has ends with a NUL.
    let name = unsafe {
        let name = sys::virDomainGetName(domain);
        if name.is_null() {
            return 0;
        }
        CStr::from_ptr(name)
    };
    hints.give(Hint::Domain(name.to_string_lossy().into_owned()));
    0
}

extern "C" fn on_close(_: sys::virConnectPtr, _: c_int, opaque: *mut c_void) {
    // SAFETY: as in `on_lifecycle`.
    let hints = unsafe { &*opaque.cast::<Hints>() };
    hints.give(Hint::Everything);
}

/// How far a commit of a disk's top file into the one below has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BlockJob {
    /// Bytes done.
    pub(crate) done: u64,
    /// Bytes in all.
    pub(crate) total: u64,
}

fn text(text: &str) -> Result<CString, LibvirtError> {
    CString::new(text).map_err(|_| LibvirtError::Nul)
}

fn done(returned: c_int) -> Result<c_int, LibvirtError> {
    if returned < 0 {
        return Err(Error::last_error().into());
    }
    Ok(returned)
}

/// Whether libvirt is at something with a running domain, whoever asked for it. The one question
/// about a domain that doesn't wait for the answer to another one.
pub(super) fn is_busy(domain: &Domain) -> Result<bool, LibvirtError> {
    let mut info = MaybeUninit::<sys::virDomainControlInfo>::zeroed();
    // SAFETY: the domain's handle lives through the call; the structure is all numbers, so one of
    // zeros is valid.
    done(unsafe { sys::virDomainGetControlInfo(domain.as_ptr(), info.as_mut_ptr(), 0) })?;
    // SAFETY: it was made of zeros, and libvirt wrote numbers.
    let state = unsafe { info.assume_init() }.state;
    Ok(state == sys::VIR_DOMAIN_CONTROL_JOB || state == sys::VIR_DOMAIN_CONTROL_OCCUPIED)
}

/// Begins to write what a disk's top file holds into the file below it, while the domain runs.
pub(super) fn block_commit(domain: &Domain, target: &str) -> Result<(), LibvirtError> {
    let target = text(target)?;
    let flags = sys::VIR_DOMAIN_BLOCK_COMMIT_ACTIVE | sys::VIR_DOMAIN_BLOCK_COMMIT_SHALLOW;
    // SAFETY: the domain's handle and the text live through the call; the null pointers stand for
    // the top file and the one below it.
    done(unsafe {
        sys::virDomainBlockCommit(domain.as_ptr(), target.as_ptr(), null(), null(), 0, flags)
    })?;
    Ok(())
}

/// The running block job of a disk, if there is one.
pub(super) fn block_job(domain: &Domain, target: &str) -> Result<Option<BlockJob>, LibvirtError> {
    let target = text(target)?;
    let mut info = MaybeUninit::<sys::virDomainBlockJobInfo>::zeroed();
    // SAFETY: as above; the structure is all numbers, so one of zeros is valid.
    let found = done(unsafe {
        sys::virDomainGetBlockJobInfo(domain.as_ptr(), target.as_ptr(), info.as_mut_ptr(), 0)
    })?;
    // SAFETY: it was made of zeros, and libvirt wrote numbers.
    let info = unsafe { info.assume_init() };
    Ok((found > 0).then_some(BlockJob {
        done: info.cur,
        total: info.end,
    }))
}

/// Ends a commit: the domain goes on with the file below (`pivot`), or as before.
pub(super) fn block_end(domain: &Domain, target: &str, pivot: bool) -> Result<(), LibvirtError> {
    let target = text(target)?;
    let flags = if pivot {
        sys::VIR_DOMAIN_BLOCK_JOB_ABORT_PIVOT
    } else {
        0
    };
    // SAFETY: as above.
    done(unsafe { sys::virDomainBlockJobAbort(domain.as_ptr(), target.as_ptr(), flags) })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loop_that_fails_is_told_until_it_goes_on() {
        let is_deaf = AtomicBool::new(false);
        for (round, deaf, pause) in [
            (Ok(()), false, Duration::ZERO),
            (Err("no poll"), true, DEAF_PAUSE),
            (Err("no poll"), true, DEAF_PAUSE),
            (Ok(()), false, Duration::ZERO),
        ] {
            assert_eq!(after_round(round, &is_deaf), pause);
            assert_eq!(is_deaf.load(Ordering::Acquire), deaf);
        }
    }
}
