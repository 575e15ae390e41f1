//! Why running work must end before it's done.

use crate::process;
use tokio::sync::watch;

/// Why running work must end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Why {
    /// The worker stops.
    Shutdown,
    /// Nothing was heard of the work for too long.
    Stalled,
    /// The attempt took too long.
    Deadline,
    /// Somebody cancelled the job.
    Cancel,
    /// The claim isn't ours any more, or may not be: change nothing.
    Lost,
}

/// Tells running work to end. Clones tell the same work; a graver reason replaces a lesser one.
#[derive(Debug, Clone)]
pub struct StopSignal {
    why: watch::Sender<Option<Why>>,
    tools: process::Stop,
}

impl StopSignal {
    /// Nothing said yet.
    #[must_use]
    pub fn new() -> Self {
        Self {
            why: watch::Sender::new(None),
            tools: process::Stop::new(),
        }
    }

    /// The same, for work that stands still while others go first.
    #[must_use]
    pub fn making_way(way: &process::Way) -> Self {
        Self {
            why: watch::Sender::new(None),
            tools: process::Stop::making_way(way),
        }
    }

    /// Tells the work to end. Its tools get a grace, or are killed at once.
    pub fn stop(&self, why: Why, at_once: bool) {
        self.why.send_if_modified(|before| {
            let graver = before.is_none_or(|before| before < why);
            if graver {
                *before = Some(why);
            }
            graver
        });
        if at_once || why == Why::Lost {
            self.tools.kill();
        } else {
            self.tools.stop();
        }
    }

    /// Why, if it was told to.
    #[must_use]
    pub fn why(&self) -> Option<Why> {
        *self.why.borrow()
    }

    /// Ends when it's told to.
    pub async fn asked(&self) {
        let mut why = self.why.subscribe();
        // The sender is in `self`, so the channel can't close first.
        let told = why.wait_for(Option::is_some).await;
        debug_assert!(told.is_ok());
    }

    /// Ends when the claim is lost, whatever was said before.
    pub async fn lost(&self) {
        let mut why = self.why.subscribe();
        let told = why.wait_for(|why| *why == Some(Why::Lost)).await;
        debug_assert!(told.is_ok());
    }

    /// What to hand to the tools.
    #[must_use]
    pub fn tools(&self) -> &process::Stop {
        &self.tools
    }
}

impl Default for StopSignal {
    fn default() -> Self {
        Self::new()
    }
}
