//! One look at something serves everybody who waits for one.
//!
//! A thousand pings a second would otherwise make a thousand files a second, and on most file
//! systems wait in line for the folder's own lock.

use std::{
    future::Future,
    sync::atomic::{AtomicU64, Ordering},
};
use tokio::sync::Mutex;

/// Looks, one at a time. Whoever asks gets the outcome of one that began after it asked.
#[derive(Debug, Default)]
pub(crate) struct SharedLook {
    begun: AtomicU64,
    /// The number of the last look that was good, held while one goes on.
    good: Mutex<u64>,
}

impl SharedLook {
    /// Looks, unless a good look that began after this call was made meanwhile. A bad look is
    /// nobody's but its own: the next in line looks itself.
    pub(crate) async fn share<E>(
        &self,
        look: impl Future<Output = Result<(), E>>,
    ) -> Result<(), E> {
        let asked = self.begun.load(Ordering::SeqCst);
        let mut good = self.good.lock().await;
        if *good > asked {
            return Ok(());
        }
        let number = self.begun.fetch_add(1, Ordering::SeqCst) + 1;
        look.await?;
        *good = number;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::{FutureExt, future::join_all};
    use std::{cell::Cell, pin::pin};
    use tokio::sync::Notify;

    #[tokio::test]
    async fn those_who_wait_share_the_look_that_begins_after_they_asked() {
        let (shared, looks, go) = (SharedLook::default(), Cell::new(0), Notify::new());
        let ask = || {
            shared.share(async {
                looks.set(looks.get() + 1);
                go.notified().await;
                Ok::<(), ()>(())
            })
        };
        let mut first = pin!(ask());
        assert!(first.as_mut().now_or_never().is_none());
        // These ask while the first look goes on: it may have seen what was before they asked.
        let mut others = pin!(join_all((0..10).map(|_| ask())));
        assert!(others.as_mut().now_or_never().is_none());
        go.notify_one();
        first.await.unwrap();
        assert!(others.as_mut().now_or_never().is_none());
        go.notify_one();
        assert!(others.await.iter().all(Result::is_ok));
        assert_eq!(looks.get(), 2);
    }

    #[tokio::test]
    async fn a_bad_look_is_not_shared() {
        let (shared, looks) = (SharedLook::default(), Cell::new(0));
        let ask = |outcome: Result<(), i32>| {
            let looks = &looks;
            shared.share(async move {
                looks.set(looks.get() + 1);
                tokio::task::yield_now().await;
                outcome
            })
        };
        let (bad, good) = tokio::join!(ask(Err(5)), ask(Ok(())));
        assert_eq!((bad, good, looks.get()), (Err(5), Ok(()), 2));
    }
}
