//! libvirt as its own command line reaches it, over one connection that stays.

use crate::error::{Failure, failure};
use std::{process::Stdio, time::Duration};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
    time::{Instant, timeout},
};

/// The longest a command, or an event, is waited for.
const LIMIT: Duration = Duration::from_secs(60);

/// A `virsh` that is told one command after the other.
#[derive(Debug)]
pub(super) struct Virsh {
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
    told: u32,
    _child: Child,
}

impl Virsh {
    pub(super) async fn connect(uri: &str) -> Result<Self, Failure> {
        let mut child = Command::new("virsh")
            .args(["-q", "-c", uri])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()?;
        let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(failure("virsh has no pipes"));
        };
        let mut virsh = Self {
            input,
            output: BufReader::new(output).lines(),
            told: 0,
            _child: child,
        };
        virsh.tell("version").await?;
        Ok(virsh)
    }

    /// Tells it a command, and what it says until it's done.
    pub(super) async fn tell(&mut self, command: &str) -> Result<Vec<String>, Failure> {
        self.told += 1;
        // It repeats what it's told, when it comes to it.
        let done = format!("echo done-{}", self.told);
        let text = format!("{command}\n{done}\n");
        self.input.write_all(text.as_bytes()).await?;
        self.input.flush().await?;
        let mut said = Vec::new();
        loop {
            let line = timeout(LIMIT, self.output.next_line()).await??;
            let line = line.ok_or_else(|| failure("virsh ended"))?;
            if line.contains(&done) {
                return Ok(said);
            }
            if !line.ends_with(command) {
                said.push(line);
            }
        }
    }
}

/// The ends of domains, as libvirt tells them to whoever listens.
#[derive(Debug)]
pub(super) struct Ends {
    lines: Lines<BufReader<ChildStdout>>,
    _child: Child,
}

impl Ends {
    pub(super) fn listen(uri: &str) -> Result<Self, Failure> {
        // Otherwise its lines come when there are many.
        let mut child = Command::new("stdbuf")
            .args(["-oL", "virsh", "-q", "-c", uri])
            .args(["event", "--loop", "--event", "lifecycle"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()?;
        let output = child.stdout.take();
        let output = output.ok_or_else(|| failure("virsh has no pipe"))?;
        Ok(Self {
            lines: BufReader::new(output).lines(),
            _child: child,
        })
    }

    /// When the next one was told.
    pub(super) async fn next(&mut self) -> Result<Instant, Failure> {
        loop {
            let line = timeout(LIMIT, self.lines.next_line()).await??;
            let line = line.ok_or_else(|| failure("virsh ended"))?;
            if line.contains("Stopped") {
                return Ok(Instant::now());
            }
        }
    }
}
