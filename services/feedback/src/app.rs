//! What all requests share.

use crate::{config, view::View};
use std::sync::Arc;
use tokio::sync::Semaphore;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use virtbus_bus::Bus;
use virtbus_daemon::auth::Verifier;

/// What all requests share.
pub(crate) struct App {
    pub(crate) view: View,
    pub(crate) bus: Bus,
    pub(crate) verifier: Arc<Verifier>,
    /// Room for websockets.
    pub(crate) places: Arc<Semaphore>,
    /// The websockets that are there.
    pub(crate) sessions: TaskTracker,
    pub(crate) stop: CancellationToken,
}

impl App {
    pub(crate) fn new(
        view: View,
        bus: Bus,
        verifier: Arc<Verifier>,
        limits: config::Limits,
        stop: CancellationToken,
    ) -> Arc<Self> {
        // No semaphore is larger than this.
        let places = limits.sessions_max.min(Semaphore::MAX_PERMITS);
        Arc::new(Self {
            view,
            bus,
            verifier,
            places: Arc::new(Semaphore::new(places)),
            sessions: TaskTracker::new(),
            stop,
        })
    }
}
