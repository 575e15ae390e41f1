//! Long acts on files, off the runtime's threads, that tell how far they came and can be stopped.

use crate::{
    blocking,
    pool::{PoolError, Tell},
    task::{Pace, stage::Stage},
};
use rustix::io::Errno;
use std::{thread::sleep, time::Duration};
use tokio::sync::mpsc::channel;
use virtbus_worker::perform::Stop;

/// How long an act that makes way stands still before it looks again.
const STANDS: Duration = Duration::from_millis(2);

/// Runs a long act, which is this stage of the job's work.
///
/// # Errors
/// [`Stop::Stopped`] when the job's work is to end, or what the act failed with.
pub(crate) async fn relayed<T: Send + 'static>(
    pace: &Pace<'_>,
    stage: Stage,
    act: impl FnOnce(Tell<'_>) -> Result<T, PoolError> + Send + 'static,
) -> Result<T, Stop> {
    let (tell_to, mut told) = channel(1);
    let (stop, lost) = (pace.stop.clone(), pace.lost.clone());
    let acting = blocking::act(move || {
        let mut turn = stop.turn();
        act(&mut |passed, total| {
            while turn.stands() && !stop.is_asked() && !lost.is_asked() {
                sleep(STANDS);
            }
            // Progress that nobody has time for is left out.
            tell_to.try_send((passed, total)).ok();
            !stop.is_asked() && !lost.is_asked()
        })
    });
    let telling = async {
        while let Some((passed, total)) = told.recv().await {
            #[expect(clippy::cast_precision_loss, reason = "a percentage, for people")]
            let percent = passed as f64 * 100.0 / total.max(1) as f64;
            stage.tell(pace, percent);
        }
    };
    let (acted, ()) = tokio::join!(acting, telling);
    match acted {
        Err(PoolError::Refused {
            source: Errno::CANCELED,
            ..
        }) => Err(Stop::Stopped),
        Err(error) => Err(error.into()),
        Ok(done) => {
            stage.tell(pace, 100.0);
            Ok(done)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::timeout;
    use virtbus_worker::process::{self, Way};

    #[tokio::test]
    async fn an_act_stands_still_while_others_go_first() {
        let way = Way::new();
        let (stop, lost) = (process::Stop::making_way(&way), process::Stop::new());
        let pace = Pace {
            is_first: true,
            stop: &stop,
            lost: &lost,
            progress: &|_| {},
            keep: &|_| {},
            reached: &|_| Ok(()),
        };
        let act = |tell: Tell<'_>| Ok(tell(1, 1));
        let relayed = || relayed(&pace, Stage::only("copy", 1), act);
        let first = way.first();
        let mut standing = Box::pin(relayed());
        let waited = timeout(Duration::from_millis(100), &mut standing).await;
        assert!(waited.is_err(), "it went on");
        drop(first);
        assert_eq!(standing.await, Ok(true));
        let _first = way.first();
        stop.stop();
        assert_eq!(relayed().await, Ok(false));
    }
}
