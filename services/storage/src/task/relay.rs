//! Long acts on files, off the runtime's threads, that tell how far they came and can be stopped.

use crate::{
    blocking,
    pool::{PoolError, Tell},
    task::{Pace, stage::Stage},
};
use rustix::io::Errno;
use tokio::sync::mpsc::channel;
use virtbus_worker::perform::Stop;

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
        act(&mut |passed, total| {
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
