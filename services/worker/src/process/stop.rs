//! How a running tool is told to end: politely, or at once; whom it makes way for; and its signs
//! of life.

use super::way::{Turn, Way};
use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};
use tokio_util::sync::CancellationToken;

/// A stop in two levels. Clones share one state; neither level can be taken back.
#[derive(Clone, Debug, Default)]
pub struct Stop {
    gentle: CancellationToken,
    now: CancellationToken,
    signs: Arc<AtomicU64>,
    way: Option<Way>,
}

impl Stop {
    /// A stop that nobody has asked for yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// The same, for tools that stand still while others go first.
    pub fn making_way(way: &Way) -> Self {
        Self {
            way: Some(way.clone()),
            ..Self::default()
        }
    }

    /// A stop that nobody has asked for yet, for tools that make way for the same ones.
    pub fn apart(&self) -> Self {
        Self {
            way: self.way.clone(),
            ..Self::default()
        }
    }

    /// A stop that follows this one, and can be asked for by itself.
    pub fn child(&self) -> Self {
        Self {
            gentle: self.gentle.child_token(),
            now: self.now.child_token(),
            signs: Arc::clone(&self.signs),
            way: self.way.clone(),
        }
    }

    /// Asks the tool to end: TERM, its grace, then KILL.
    pub fn stop(&self) {
        self.gentle.cancel();
    }

    /// Kills the tool without grace.
    pub fn kill(&self) {
        self.now.cancel();
        self.gentle.cancel();
    }

    /// How often the tools that follow this stop showed that they live: they started, or printed
    /// something. For whoever wants to stop those that don't.
    pub fn signs(&self) -> u64 {
        self.signs.load(Ordering::Relaxed)
    }

    /// Notes a sign of life.
    pub(super) fn sign(&self) {
        self.signs.fetch_add(1, Ordering::Relaxed);
    }

    /// True once either level was asked for.
    pub fn is_asked(&self) -> bool {
        self.gentle.is_cancelled() || self.now.is_cancelled()
    }

    /// Whether what follows this stop is to stand still, beginning with one that goes. For long
    /// work without a tool.
    pub fn turn(&self) -> Turn {
        Turn::new(self.way.as_ref())
    }

    /// Ends when either level is asked for.
    pub async fn asked(&self) {
        self.gentle.cancelled().await;
    }

    /// Ends when the kill is asked for.
    pub(super) async fn killed(&self) {
        self.now.cancelled().await;
    }
}
