//! A process of the simulation: it can stand still and die, as a whole.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU8, Ordering},
    },
    task::{Context, Waker},
};
use virtbus_bus::transport::Passage;

const RUNS: u8 = 0;
const FROZEN: u8 = 1;
const DEAD: u8 = 2;

/// Whether the tasks of one start of a process may go on.
#[derive(Debug, Default)]
pub struct Gate {
    state: AtomicU8,
    held: Mutex<Vec<Waker>>,
}

impl Gate {
    /// What a task may do that is about to go on.
    pub fn passage(&self, task: &Context<'_>) -> Passage {
        match self.state.load(Ordering::Relaxed) {
            RUNS => Passage::Open,
            FROZEN => {
                self.held().push(task.waker().clone());
                Passage::Frozen
            }
            _ => Passage::Dead,
        }
    }

    /// Stands still from now on.
    pub fn freeze(&self) {
        if !self.is_dead() {
            self.state.store(FROZEN, Ordering::Relaxed);
        }
    }

    /// Goes on.
    pub fn thaw(&self) {
        if !self.is_dead() {
            self.state.store(RUNS, Ordering::Relaxed);
            self.wake();
        }
    }

    /// Never goes on.
    pub fn kill(&self) {
        self.state.store(DEAD, Ordering::Relaxed);
        self.wake();
    }

    /// Whether it's dead.
    #[must_use]
    pub fn is_dead(&self) -> bool {
        self.state.load(Ordering::Relaxed) == DEAD
    }

    /// Whether it's neither dead nor stands still.
    #[must_use]
    pub fn runs(&self) -> bool {
        self.state.load(Ordering::Relaxed) == RUNS
    }

    fn held(&self) -> std::sync::MutexGuard<'_, Vec<Waker>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self) {
        let held = std::mem::take(&mut *self.held());
        held.into_iter().for_each(Waker::wake);
    }
}
