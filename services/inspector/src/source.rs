//! The parsers' side of a file: they wait for ranges, somebody else brings the bytes.
//!
//! A parser is a future that's polled only when its bytes are there. So it reads like one that has
//! the file at hand, and stops wherever the bytes of a stream haven't come yet.

use crate::{
    Fault, Need, Part,
    limits::{OFFSET_MAX, WINDOW_BYTES},
};
use std::{
    future::poll_fn,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::Poll,
};

/// What lies between a parser and who feeds it.
#[derive(Debug)]
pub(crate) struct Slot {
    pub(crate) need: Need,
    /// The bytes of the last range, fewer if the file ends in it.
    pub(crate) window: Vec<u8>,
    pub(crate) is_filled: bool,
    pub(crate) length: Option<u64>,
}

/// A file that's read range by range.
#[derive(Debug, Clone)]
pub(crate) struct Source(Arc<Mutex<Slot>>);

impl Source {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Mutex::new(Slot {
            need: Need::Length,
            window: Vec::with_capacity(WINDOW_BYTES),
            is_filled: false,
            length: None,
        })))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Slot> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Shows a range to `look`, of which the file may have less; never more than a window.
    pub(crate) async fn view<T>(
        &self,
        offset: u64,
        len: usize,
        look: impl FnOnce(&[u8]) -> T,
    ) -> T {
        let len = len.min(WINDOW_BYTES);
        let is_readable = offset
            .checked_add(len as u64)
            .is_some_and(|end| end <= OFFSET_MAX);
        if len == 0 || !is_readable {
            return look(&[]);
        }
        poll_fn(|_| {
            let mut slot = self.lock();
            if slot.is_filled {
                return Poll::Ready(());
            }
            slot.need = Need::Range { offset, len };
            Poll::Pending
        })
        .await;
        let mut slot = self.lock();
        slot.is_filled = false;
        look(&slot.window)
    }

    /// The file's bytes from `offset`; zeros where it has none.
    pub(crate) async fn read<const N: usize>(&self, offset: u64) -> [u8; N] {
        let mut bytes = [0; N];
        self.view(offset, N, |found| {
            for (to, from) in bytes.iter_mut().zip(found) {
                *to = *from;
            }
        })
        .await;
        bytes
    }

    /// Shows all of a range that must be in the file, window by window. `unit` divides a window;
    /// no piece ends within one.
    pub(crate) async fn scan(
        &self,
        part: Part,
        offset: u64,
        len: u64,
        mut look: impl FnMut(&[u8]) -> Result<(), Fault>,
    ) -> Result<(), Fault> {
        let end = offset.checked_add(len).ok_or(Fault::Truncated(part))?;
        if end > self.length().await {
            return Err(Fault::Truncated(part));
        }
        let mut at = offset;
        while at < end {
            let piece = usize::try_from(end - at).map_or(WINDOW_BYTES, |n| n.min(WINDOW_BYTES));
            self.view(at, piece, |bytes| {
                if bytes.len() < piece {
                    return Err(Fault::Truncated(part));
                }
                look(bytes)
            })
            .await?;
            at += piece as u64;
        }
        Ok(())
    }

    /// The file's length in bytes.
    pub(crate) async fn length(&self) -> u64 {
        poll_fn(|_| {
            let mut slot = self.lock();
            match slot.length {
                Some(length) => Poll::Ready(length),
                None => {
                    slot.need = Need::Length;
                    Poll::Pending
                }
            }
        })
        .await
    }
}
