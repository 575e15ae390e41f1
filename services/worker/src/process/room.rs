//! What a tool is started in, made ready before.

use super::{
    cage::{Cage, Ready},
    cgroup::Groups,
    command::CommandLine,
    error::RunError,
};
use std::io;
use tokio::task::spawn_blocking;

/// What a tool is started in.
#[derive(Debug)]
pub(super) struct Room {
    /// Its place in line for the processor.
    pub(super) nice: u8,
    /// Its cage; none if it has none.
    pub(super) cage: Option<Ready>,
    /// Where it gets a group of the kernel; none if it gets none.
    pub(super) groups: Option<Groups>,
}

impl Room {
    /// What a command line asks for. Files are opened for it, which may take long.
    ///
    /// # Errors
    /// [`RunError::Cage`].
    pub(super) async fn of(command: &CommandLine) -> Result<Self, RunError> {
        let refused = |source| RunError::Cage {
            program: command.name(),
            source,
        };
        let cage = match command.whole_cage() {
            None => None,
            Some(cage) => Some(ready(cage).await.map_err(refused)?),
        };
        Ok(Self {
            nice: command.nice,
            cage,
            groups: command.groups.clone(),
        })
    }
}

async fn ready(cage: Cage) -> io::Result<Ready> {
    let made = spawn_blocking(move || cage.ready()).await;
    made.map_err(io::Error::other)?
}
