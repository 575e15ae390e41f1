//! Connections to the daemon: one that listens, and one for each call on its way.
//!
//! No two threads call over the same connection, and none has libvirt's own signs of life. Before
//! libvirt 10.3 a thread that waits for an answer, and is woken because something else is to be
//! sent over its connection, leaves a pointer into its stack behind, of which the process dies with
//! the next answer (CVE-2024-4418). A daemon that hangs is noticed by the calls' own deadlines.
//!
//! A connection that broke never recovers: it's closed, and another one is opened.

use super::{
    LibvirtError, Uri,
    events::{Hint, Hints, Subscription},
};
use std::{
    ops::Deref,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use virt::connect::Connect;

/// A connection, closed when it's dropped: the binding doesn't do that by itself.
#[derive(Debug)]
pub(super) struct Line(Connect);

impl Line {
    fn open(uri: &Uri) -> Result<Self, LibvirtError> {
        let opened = Connect::open(Some(uri.as_str()));
        let opened = opened.map_err(|error| LibvirtError::Broken(error.message().to_owned()));
        opened.map(Self)
    }

    pub(super) fn is_well(&self) -> bool {
        self.0.is_alive().unwrap_or(false)
    }

    /// One more for the same connection.
    fn shared(&self) -> Self {
        Self(self.0.clone())
    }
}

impl Deref for Line {
    type Target = Connect;

    fn deref(&self) -> &Connect {
        &self.0
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        if let Err(error) = self.0.close() {
            tracing::debug!(error = error.message(), "a connection can't be closed");
        }
    }
}

/// All connections to one daemon.
#[derive(Debug, Clone)]
pub(super) struct Lines {
    uri: Uri,
    hints: Hints,
    listening: Arc<Mutex<Option<Subscription>>>,
    /// Those that no call has now: as many as there were calls at once.
    idle: Arc<Mutex<Vec<Line>>>,
}

impl Lines {
    /// None is opened yet.
    pub(super) fn new(uri: &Uri, hints: Hints) -> Self {
        Self {
            uri: uri.clone(),
            hints,
            listening: Arc::default(),
            idle: Arc::default(),
        }
    }

    /// One that is well, for this call alone. What happens is listened to from before it on.
    pub(super) fn take(&self) -> Result<Line, LibvirtError> {
        self.listen()?;
        if self.uri.is_private() {
            // Its state may be the connection's own, and nothing is sent.
            let listening = self.listening();
            let shared = listening.as_ref().map(|open| open.line().shared());
            return shared.ok_or(LibvirtError::Silent);
        }
        loop {
            let idle = self.idle().pop();
            match idle {
                Some(line) if line.is_well() => return Ok(line),
                Some(broken) => drop(broken),
                None => return Line::open(&self.uri),
            }
        }
    }

    /// For the next call.
    pub(super) fn give_back(&self, line: Line) {
        if !self.uri.is_private() && line.is_well() {
            self.idle().push(line);
        }
    }

    fn listen(&self) -> Result<(), LibvirtError> {
        if self.is_listening() {
            return Ok(());
        }
        // Not under the lock: the daemon may take its time, and stops must get past.
        let open = Subscription::new(Line::open(&self.uri)?, &self.hints)?;
        let old = self.listening().replace(open);
        drop(old);
        self.hints.give(Hint::Everything);
        Ok(())
    }

    fn is_listening(&self) -> bool {
        let listening = self.listening();
        listening.as_ref().is_some_and(|open| open.line().is_well())
    }

    /// What listens now; taken away, another one comes with the next call.
    pub(super) fn listening(&self) -> MutexGuard<'_, Option<Subscription>> {
        let lock = self.listening.lock();
        lock.unwrap_or_else(PoisonError::into_inner)
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Line>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
