//! How a step ends that can't go on.

use crate::{fence::FenceError, pool::PoolError, qemu_img::ToolError, space::SpaceError};
use virtbus_wire::JobError;
use virtbus_worker::perform::Stop;

/// The end of a task whose tool failed, or was stopped.
pub(crate) fn tool(error: ToolError) -> Stop {
    match error.code() {
        Some(_) => Stop::Failed(JobError::from(&error)),
        None => Stop::Stopped,
    }
}

impl From<PoolError> for Stop {
    fn from(error: PoolError) -> Self {
        Self::Failed(error.into())
    }
}

impl From<SpaceError> for Stop {
    fn from(error: SpaceError) -> Self {
        Self::Failed(error.into())
    }
}

impl From<FenceError> for Stop {
    /// An earlier claim of the job that can't be killed from here is waited for.
    fn from(error: FenceError) -> Self {
        match error {
            FenceError::Busy {
                by_own_job: true, ..
            } => Self::Earlier(error.into()),
            FenceError::Busy { .. } | FenceError::Pool(_) | FenceError::Bus(_) => {
                Self::Failed(error.into())
            }
        }
    }
}

/// A step that was called before the one it builds on: a defect of ours.
pub(crate) fn out_of_order() -> Stop {
    Stop::Failed(JobError::internal("the steps of a task came out of order"))
}
