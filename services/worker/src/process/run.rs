//! Stays with one process group from its start until it's gone.

use std::{
    io,
    os::{fd::OwnedFd, unix::process::ExitStatusExt},
    process::{Command, ExitStatus},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncReadExt},
    process::{ChildStderr, ChildStdout},
    task::spawn_blocking,
    time::{Instant, sleep, sleep_until, timeout},
};

use super::{
    command::CommandLine,
    error::RunError,
    output::Excerpt,
    phase::{Event, KILL_WAIT, Phase, Send, Why, later},
    room::Room,
    sink::Sink,
    spawn::{self, Exited, Group, Spawned},
    stop::Stop,
    way::Turn,
};

/// The usual time between TERM and KILL.
pub const GRACE: Duration = Duration::from_secs(10);

/// Bytes read at once from each pipe.
const READ_BYTES: usize = 16 * 1024;
/// How long output may still come after the group was killed; only a process that left the
/// group could send any.
const DRAIN: Duration = Duration::from_secs(2);
/// Bounds of the pause between two looks at a dying group.
const LOOK_PAUSE: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(50));
/// After so many looks, zombies that nobody reaps count as gone.
const LOOKS_BEFORE_ZOMBIES: u32 = 5;

/// What becomes of the tool's standard output.
pub enum Stdout<'a> {
    /// Read and dropped.
    Discard,
    /// Kept whole. More than `bytes_max` kills the tool: half a document is of no use.
    Capture {
        /// The most that is held.
        bytes_max: usize,
    },
    /// Handed out record by record, cut at `\r` and `\n`, a record's text beyond 4 KiB left out.
    /// The callback must not block; a panic in it kills the group and goes on to the caller.
    Records(&'a mut (dyn FnMut(&str) + std::marker::Send)),
}

/// How a run is bound to its caller.
pub struct RunOptions<'a> {
    /// Stops the tool.
    pub stop: Stop,
    /// Time between TERM and KILL.
    pub grace: Duration,
    /// What becomes of standard output.
    pub stdout: Stdout<'a>,
    /// Files that stay open in the tool under the same number, closed here once it runs. For
    /// locks that belong to the open file: pass a duplicate, and the lock lasts until both the
    /// worker and every process of the tool have let go.
    pub inherit: Vec<OwnedFd>,
}

impl Default for RunOptions<'_> {
    fn default() -> Self {
        Self {
            stop: Stop::new(),
            grace: GRACE,
            stdout: Stdout::Discard,
            inherit: Vec::new(),
        }
    }
}

/// How the tool ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// With this exit code.
    Code(i32),
    /// By this signal.
    Signal(i32),
}

/// A tool that came to its own end, with whatever status.
#[derive(Clone, Debug)]
pub struct Exit {
    /// How it ended.
    pub ended: Ended,
    /// From the start until the whole group was gone.
    pub took: Duration,
    /// Standard output with [`Stdout::Capture`], else empty.
    pub stdout: Vec<u8>,
    /// Standard error, its middle left out if it's long. May hold paths of this host.
    pub stderr: Excerpt,
}

impl Exit {
    /// True for exit code 0.
    pub fn success(&self) -> bool {
        self.ended == Ended::Code(0)
    }
}

/// Runs `command` until its whole process group is gone.
///
/// Whatever is left of the group when the tool ends is killed, also after a success.
/// Dropping the future kills the group at once. Once a stop is asked for the answer is
/// [`RunError::Cancelled`], even if the tool got ready meanwhile.
///
/// # Errors
/// See [`RunError`]. After each of them but [`RunError::Unkillable`] and [`RunError::Follow`]
/// nothing of the tool runs any more.
pub async fn run(command: &CommandLine, options: RunOptions<'_>) -> Result<Exit, RunError> {
    let name = command.name();
    if let Some(missing) = command.missing() {
        return Err(missing);
    }
    if options.stop.is_asked() {
        return Err(RunError::Cancelled { program: name });
    }
    let began = Instant::now();
    let RunOptions {
        stop,
        grace,
        stdout,
        inherit,
    } = options;
    let room = Room::of(command).await?;
    let spawned = spawn::spawn(prepared(command), room, inherit)
        .await
        .map_err(|failed| match failed {
            spawn::Failed::Cage(source) => RunError::Cage {
                program: name.clone(),
                source,
            },
            spawn::Failed::Start(source) => RunError::Spawn {
                program: name.clone(),
                source,
            },
        })?;
    let follow = |source| RunError::Follow {
        program: name.clone(),
        source,
    };
    stop.sign();
    let mut run = Run::new(spawned, Sink::new(stdout), stop, grace).map_err(follow)?;
    let deadline = later(began, command.limits.wall);
    let status = run.until_ended(deadline).await.map_err(follow)?;
    let group = run.group.number();
    let unkillable = || RunError::Unkillable {
        program: name.clone(),
        group,
    };
    // In this order: an unreaped tool must not be taken away by the look at its group.
    let status = status.ok_or_else(unkillable)?;
    if !is_gone(&mut run.group).await {
        return Err(unkillable());
    }
    match run.phase.why() {
        Some(Why::Stopped) => Err(RunError::Cancelled { program: name }),
        Some(Why::Deadline) => {
            let limit = command.limits.wall;
            Err(RunError::Deadline {
                program: name,
                limit,
                stderr: run.stderr,
            })
        }
        Some(Why::TooMuchOutput) => Err(RunError::OutputTooLarge {
            program: name,
            bytes_max: run.sink.bytes_max(),
        }),
        None => Ok(Exit {
            ended: ended(status),
            took: began.elapsed(),
            stdout: run.sink.held(),
            stderr: run.stderr,
        }),
    }
}

fn prepared(command: &CommandLine) -> Command {
    let argv = command.argv();
    let mut prepared = Command::new(&argv[0]);
    prepared
        .args(&argv[1..])
        .env_clear()
        .envs(command.environment())
        .current_dir(&command.dir);
    prepared
}

fn ended(status: ExitStatus) -> Ended {
    // The wait reports only ends, which have the one or the other.
    let signal = || Ended::Signal(status.signal().unwrap_or_default());
    status.code().map_or_else(signal, Ended::Code)
}

struct Run<'a> {
    group: Group,
    exited: Exited,
    out: Option<ChildStdout>,
    err: Option<ChildStderr>,
    sink: Sink<'a>,
    stderr: Excerpt,
    stop: Stop,
    turn: Turn,
    grace: Duration,
    phase: Phase,
}

impl<'a> Run<'a> {
    fn new(spawned: Spawned, sink: Sink<'a>, stop: Stop, grace: Duration) -> io::Result<Self> {
        let Spawned {
            group,
            pidfd,
            stdout,
            stderr,
        } = spawned;
        Ok(Self {
            group,
            exited: Exited::new(pidfd)?,
            out: Some(ChildStdout::from_std(stdout)?),
            err: Some(ChildStderr::from_std(stderr)?),
            sink,
            stderr: Excerpt::default(),
            turn: stop.turn(),
            stop,
            grace,
            phase: Phase::Working,
        })
    }

    /// The tool's status once it has ended and the rest of its group is killed; none if it
    /// can't be killed.
    async fn until_ended(&mut self, deadline: Instant) -> io::Result<Option<ExitStatus>> {
        if !self.work(deadline).await? {
            return Ok(None);
        }
        self.group.kill();
        if let Ok(drained) = timeout(DRAIN, self.drain()).await {
            drained?;
        }
        self.sink.finish();
        self.group.reap_tool()
    }

    /// True when the tool has ended, false when it outlives its killing.
    async fn work(&mut self, deadline: Instant) -> io::Result<bool> {
        let (mut out, mut err) = (vec![0; READ_BYTES], vec![0; READ_BYTES]);
        loop {
            let (working, killed) = match self.phase {
                Phase::Working => (true, false),
                Phase::Asked { .. } => (false, false),
                Phase::Killed { .. } => (false, true),
            };
            // Each branch is cancel safe: a read that isn't chosen has taken nothing.
            let event = tokio::select! {
                ended = self.exited.wait() => return ended.map(|()| true),
                () = self.stop.killed(), if !killed => Some(Event::Kill),
                () = self.stop.asked(), if working => Some(Event::Stop),
                // One that's to end goes on to its end.
                () = self.turn.changed(), if working => {
                    self.make_way();
                    None
                }
                () = sleep_until(self.phase.until(deadline)) => match self.phase {
                    Phase::Working => Some(Event::Deadline),
                    Phase::Asked { .. } => Some(Event::GraceOver),
                    Phase::Killed { .. } => return Ok(false),
                },
                n = read(&mut self.out, &mut out), if self.out.is_some() => {
                    self.stop.sign();
                    self.sink.push(&out[..n?])
                }
                n = read(&mut self.err, &mut err), if self.err.is_some() => {
                    self.stop.sign();
                    self.stderr.push(&err[..n?]);
                    None
                }
            };
            if let Some(event) = event {
                self.step(event);
            }
        }
    }

    fn make_way(&mut self) {
        if self.turn.stands() {
            self.group.stand();
        } else {
            self.group.go_on();
        }
    }

    fn step(&mut self, event: Event) {
        let (phase, send) = self.phase.next(event, Instant::now(), self.grace);
        self.phase = phase;
        match send {
            Some(Send::Term) => self.group.ask(),
            Some(Send::Kill) => self.group.kill(),
            None => {}
        }
    }

    /// Reads what is still in the pipes.
    async fn drain(&mut self) -> io::Result<()> {
        let (mut out, mut err) = (vec![0; READ_BYTES], vec![0; READ_BYTES]);
        while self.out.is_some() || self.err.is_some() {
            let event = tokio::select! {
                n = read(&mut self.out, &mut out), if self.out.is_some() => {
                    self.sink.push(&out[..n?])
                }
                n = read(&mut self.err, &mut err), if self.err.is_some() => {
                    self.stderr.push(&err[..n?]);
                    None
                }
            };
            if let Some(event) = event {
                self.step(event);
            }
        }
        Ok(())
    }
}

/// Reads once; at the end of the stream the pipe is closed and taken away.
async fn read<P: AsyncRead + Unpin>(pipe: &mut Option<P>, buffer: &mut [u8]) -> io::Result<usize> {
    let Some(open) = pipe else { return Ok(0) };
    let n = open.read(buffer).await?;
    if n == 0 {
        *pipe = None;
    }
    Ok(n)
}

/// True when the group is gone, false when it's still there after a bounded wait.
async fn is_gone(group: &mut Group) -> bool {
    let until = Instant::now() + KILL_WAIT;
    let mut pause = LOOK_PAUSE.0;
    for look in 0.. {
        if group.is_gone() {
            return true;
        }
        let number = group.number();
        if look >= LOOKS_BEFORE_ZOMBIES
            && group.is_own_empty()
            && spawn_blocking(move || spawn::only_zombies(number))
                .await
                .unwrap_or(false)
        {
            return true;
        }
        if Instant::now() >= until {
            return false;
        }
        sleep(pause).await;
        pause = (pause * 2).min(LOOK_PAUSE.1);
    }
    false
}
