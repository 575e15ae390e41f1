//! Waiting for a level, with a bound and the last value seen; and reading what arrived.

use async_nats::HeaderMap;
use std::fmt::Debug;
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout_at};

/// Longest wait for anything here; the machine may be busy.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// The pause before it's asked again: a tenth of the wait until then, within these. Whoever waits
/// long for something that takes the processor shouldn't take that themselves.
const PAUSES: [Duration; 2] = [Duration::from_millis(5), Duration::from_millis(25)];

/// Asks until the answer is `Ok`; fails the test with the last `Err`.
pub async fn until<T, E: Debug>(what: &str, ask: impl AsyncFnMut() -> Result<T, E>) -> T {
    within(PATIENCE, what, ask).await
}

/// The same with another bound, for what takes its time by design.
pub async fn within<T, E: Debug>(
    limit: Duration,
    what: &str,
    mut ask: impl AsyncFnMut() -> Result<T, E>,
) -> T {
    let began = Instant::now();
    let deadline = began + limit;
    let mut last = None;
    loop {
        match timeout_at(deadline, ask()).await {
            Ok(Ok(value)) => return value,
            Ok(Err(error)) => last = Some(error),
            Err(_elapsed) => panic!("{what}: not within {limit:?}; last seen: {last:?}"),
        }
        assert!(
            Instant::now() < deadline,
            "{what}: not within {limit:?}; last seen: {last:?}"
        );
        let [shortest, longest] = PAUSES;
        sleep((began.elapsed() / 10).clamp(shortest, longest)).await;
    }
}

/// The answer of one future within the bound.
pub async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(value) => value,
        Err(_elapsed) => panic!("{what}: not within {PATIENCE:?}"),
    }
}

/// The stream sequence a message was stored under.
pub fn sequence_of(headers: &HeaderMap) -> u64 {
    let text = headers.get("Nats-Sequence").expect("a sequence");
    text.as_str().parse().expect("a number")
}
