//! Acts on files, off the threads of the runtime: on a file system that hangs they hang too.

use crate::pool::PoolError;
use rustix::io::Errno;
use std::{future::pending, panic::resume_unwind, time::Duration};
use tokio::{task::spawn_blocking, time::timeout};

/// How long a look at a pool may take.
const LOOK: Duration = Duration::from_secs(60);

/// Runs an act to its end, however long that takes: giving up on a rename or a sync wouldn't undo
/// it. A panic in it goes on to the caller.
pub(crate) async fn act<T: Send + 'static>(act: impl FnOnce() -> T + Send + 'static) -> T {
    match spawn_blocking(act).await {
        Ok(done) => done,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => resume_unwind(panic),
            // The runtime is ending; so is whoever waits for this.
            Err(_) => pending().await,
        },
    }
}

/// Runs something that changes nothing, and gives up on a pool that doesn't answer.
pub(crate) async fn look<T, E>(look: impl FnOnce() -> Result<T, E> + Send + 'static) -> Result<T, E>
where
    T: Send + 'static,
    E: From<PoolError> + Send + 'static,
{
    let silent = || PoolError::Refused {
        act: "look at",
        name: "the pool".to_owned(),
        source: Errno::TIMEDOUT,
    };
    timeout(LOOK, act(look))
        .await
        .unwrap_or_else(|_| Err(silent().into()))
}
