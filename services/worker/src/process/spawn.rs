//! The one thread that starts tools, and the hold on a started one.
//!
//! One thread, because of the files handed down: close-on-exec is off for such a file only while
//! this thread has its tool forked, and nobody else forks. (So whatever else in a worker starts
//! programs does it while it holds [`no_starts`].) The fork itself is done by a thread that is made for it, and waited for: it steps
//! back in line and locks itself in before, and can do neither in reverse.

use std::{
    io,
    os::fd::OwnedFd,
    os::unix::process::CommandExt,
    process::{Child, ChildStderr, ChildStdout, Command, ExitStatus, Stdio},
    sync::{Mutex, PoisonError},
    thread,
};

use rustix::{
    io::{Errno, FdFlags, fcntl_setfd},
    process::{
        Pid, PidfdFlags, Signal, WaitOptions, kill_process, kill_process_group, pidfd_open,
        test_kill_process_group, waitpgid,
    },
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::{MutexGuard, mpsc, oneshot},
};

use super::{
    cage::{self, Ready},
    cgroup::{Groups, Own},
    room::Room,
};

/// The guard of a group: waits for the end of its standard input, which comes when the worker
/// has died, whatever it died of, and then kills its group. A constant: nothing of a job is in
/// it. It ignores what the tool is asked to end with, as it has to outlast the grace.
const GUARD: [&str; 4] = [
    "/bin/sh",
    "-c",
    "trap '' HUP INT QUIT TERM; read _; kill -KILL 0",
    "tool-guard",
];

/// Bytes of stack of the thread that starts a tool: it builds a list of arguments and little else.
const STARTER_STACK_BYTES: usize = 256 << 10;
/// Starts that may wait for the thread; more wait in their own futures.
const REQUESTS_MAX: usize = 64;

/// A started tool with the near ends of its pipes.
pub(super) struct Spawned {
    pub(super) group: Group,
    pub(super) pidfd: OwnedFd,
    pub(super) stdout: ChildStdout,
    pub(super) stderr: ChildStderr,
}

/// Why a tool didn't start.
#[derive(Debug)]
pub(super) enum Failed {
    /// Its cage can't be closed.
    Cage(io::Error),
    /// The system refused something else.
    Start(io::Error),
}

impl From<io::Error> for Failed {
    fn from(error: io::Error) -> Self {
        Self::Start(error)
    }
}

struct Request {
    command: Command,
    room: Room,
    inherit: Vec<OwnedFd>,
    answer: oneshot::Sender<Result<Spawned, Failed>>,
}

/// Held while the files of a tool are open for whatever is started.
static STARTING: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// No tool is started as long as this lives.
#[derive(Debug)]
pub struct NoStarts {
    _alone: MutexGuard<'static, ()>,
}

/// Waits until no tool is being started, and keeps it so. A program that's started beside a tool
/// would have that tool's files too, locks among them, for all of its life: whoever starts
/// programs in a process that runs tools does it while this is held.
pub async fn no_starts() -> NoStarts {
    NoStarts {
        _alone: STARTING.lock().await,
    }
}

static REQUESTS: Mutex<Option<mpsc::Sender<Request>>> = Mutex::new(None);

/// Starts `command` in a new process group, with `inherit` open in it under the
/// same numbers (and closed here). Dropping this future while it waits leaves no process.
pub(super) async fn spawn(
    command: Command,
    room: Room,
    inherit: Vec<OwnedFd>,
) -> Result<Spawned, Failed> {
    let (answer, answered) = oneshot::channel();
    let gone = || io::Error::other("the thread that starts programs is gone");
    let request = Request {
        command,
        room,
        inherit,
        answer,
    };
    requests()?.send(request).await.map_err(|_| gone())?;
    answered.await.map_err(|_| gone())?
}

fn requests() -> io::Result<mpsc::Sender<Request>> {
    let mut requests = REQUESTS.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(running) = requests.as_ref().filter(|sender| !sender.is_closed()) {
        return Ok(running.clone());
    }
    let (sender, mut receiver) = mpsc::channel::<Request>(REQUESTS_MAX);
    // The static keeps a sender, so the thread never leaves its loop.
    thread::Builder::new()
        .name("tool-spawner".to_owned())
        .spawn(move || {
            while let Some(request) = receiver.blocking_recv() {
                if request.answer.is_closed() {
                    continue;
                }
                let spawned = start(request.command, request.room, &request.inherit);
                // Nobody left to take it: dropping the tool's group kills the group.
                drop(request.answer.send(spawned));
            }
        })?;
    *requests = Some(sender.clone());
    Ok(sender)
}

fn start(mut command: Command, room: Room, inherit: &[OwnedFd]) -> Result<Spawned, Failed> {
    // The guard is first, and without the files: no tool is ever without it, and it keeps no lock.
    let mut group = Group::guarded()?;
    // One that gets a group of the kernel waits at the end of this pipe until it's in there.
    let waits = room.groups.is_some();
    let stdin = if waits { Stdio::piped() } else { Stdio::null() };
    command
        .stdin(stdin)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command.process_group(group.number.as_raw_nonzero().get());
    group.own = room.groups.as_ref().and_then(own);
    let alone = STARTING.blocking_lock();
    let opened = inherit
        .iter()
        .try_for_each(|fd| fcntl_setfd(fd, FdFlags::empty()));
    let tool = opened
        .map_err(|errno| Failed::Start(errno.into()))
        .and_then(|()| fork(command, room));
    for fd in inherit {
        // They are closed in a moment anyway; this only keeps the rule exact for this thread.
        fcntl_setfd(fd, FdFlags::CLOEXEC).ok();
    }
    drop(alone);
    let tool = group.tool.insert(tool?);
    if let Some(own) = &group.own {
        own.enter(number(tool)?)
            .unwrap_or_else(|error| stays(&error));
    }
    drop(tool.stdin.take());
    let pidfd = pidfd_open(number(tool)?, PidfdFlags::NONBLOCK).map_err(io::Error::from)?;
    match (tool.stdout.take(), tool.stderr.take()) {
        (Some(stdout), Some(stderr)) => Ok(Spawned {
            group,
            pidfd,
            stdout,
            stderr,
        }),
        (_, _) => Err(io::Error::other("a pipe of the new process is missing").into()),
    }
}

/// A group of the kernel for one tool. It does without if there's none to be had.
fn own(groups: &Groups) -> Option<Own> {
    groups.make().map_err(|error| stays(&error)).ok()
}

fn stays(error: &io::Error) {
    tracing::debug!(%error, "a tool stays in the worker's cgroup");
}

/// Starts the tool from a thread that has gone into its room.
fn fork(mut command: Command, room: Room) -> Result<Child, Failed> {
    let inside = move || {
        cage::step_back(room.nice).map_err(io::Error::from)?;
        room.cage
            .map_or(Ok(()), Ready::enter)
            .map_err(Failed::Cage)?;
        command.spawn().map_err(Failed::Start)
    };
    let thread = thread::Builder::new()
        .name("tool-starter".to_owned())
        .stack_size(STARTER_STACK_BYTES)
        .spawn(inside)?;
    let panicked = |_| io::Error::other("the thread that starts a program panicked");
    thread.join().map_err(panicked)?
}

fn number(child: &Child) -> io::Result<Pid> {
    let number = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    number.ok_or_else(|| io::Error::other("a process without a number"))
}

/// A process group: the guard that leads it, the tool, and what the tool starts. Until the guard
/// is reaped nobody else can get the group's number, so signals go to the group only before
/// that. Dropped before that, it kills the group.
pub(super) struct Group {
    /// None once reaped. Holds the near end of the pipe that the guard waits on.
    guard: Option<Child>,
    /// None before its start and once reaped.
    tool: Option<Child>,
    number: Pid,
    /// The tool's group of the kernel, if it has one.
    own: Option<Own>,
}

impl Group {
    fn guarded() -> io::Result<Self> {
        let mut command = Command::new(GUARD[0]);
        command
            .args(&GUARD[1..])
            .env_clear()
            .current_dir("/")
            .process_group(0);
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let guard = command.spawn()?;
        // Should this fail, the pipe is closed, and the guard kills itself.
        let number = number(&guard)?;
        Ok(Self {
            guard: Some(guard),
            tool: None,
            number,
            own: None,
        })
    }

    pub(super) fn number(&self) -> i32 {
        self.number.as_raw_nonzero().get()
    }

    /// Asks every process of the group to end, stopped ones too.
    pub(super) fn ask(&self) {
        self.signal(Signal::TERM);
        self.signal(Signal::CONT);
    }

    /// Stops the tool where it is; the guard and what the tool started go on.
    pub(super) fn stand(&self) {
        self.signal_tool(Signal::STOP);
    }

    /// Lets a stopped tool go on.
    pub(super) fn go_on(&self) {
        self.signal_tool(Signal::CONT);
    }

    fn signal_tool(&self, signal: Signal) {
        // Not reaped yet, so the number is still its own.
        if let Some(Ok(tool)) = self.tool.as_ref().map(number) {
            kill_process(tool, signal).ok();
        }
    }

    /// Kills every process of the group.
    pub(super) fn kill(&mut self) {
        self.signal(Signal::KILL);
        if let Some(tool) = self.tool.as_mut() {
            // It may have left the group. That it's dead already is fine.
            tool.kill().ok();
        }
        if let Some(own) = &self.own {
            own.kill();
        }
    }

    /// That nobody is left to get it is fine.
    fn signal(&self, signal: Signal) {
        if self.guard.is_some() {
            kill_process_group(self.number, signal).ok();
        }
    }

    /// Takes the status of a tool that has ended; none if it's still there.
    pub(super) fn reap_tool(&mut self) -> io::Result<Option<ExitStatus>> {
        let Some(tool) = self.tool.as_mut() else {
            return Ok(None);
        };
        let status = tool.try_wait()?;
        if status.is_some() {
            self.tool = None;
        }
        Ok(status)
    }

    /// True when no process of the group, killed and its tool reaped, is left.
    pub(super) fn is_gone(&mut self) -> bool {
        if let Some(guard) = self.guard.as_mut() {
            if !matches!(guard.try_wait(), Ok(Some(_))) {
                return false;
            }
            self.guard = None;
        }
        // Orphans of the group come to us where we are process 1 or a subreaper.
        while let Ok(Some(_)) = waitpgid(self.number, WaitOptions::NOHANG) {}
        test_kill_process_group(self.number) == Err(Errno::SRCH) && self.is_own_empty()
    }

    /// True when nothing runs in the tool's group of the kernel, if it has one.
    pub(super) fn is_own_empty(&self) -> bool {
        self.own.as_ref().is_none_or(Own::is_empty)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if self.guard.is_none() {
            return;
        }
        self.kill();
        let (guard, tool, number) = (self.guard.take(), self.tool.take(), self.number);
        let own = self.own.take();
        // Waiting may take long where the tool hangs in the kernel, and this may be a thread of
        // the runtime. Without a thread to be had, zombies stay until the worker ends.
        let reaper = move || {
            for mut child in tool.into_iter().chain(guard) {
                child.wait().ok();
            }
            while waitpgid(number, WaitOptions::empty()).is_ok() {}
            drop(own);
        };
        thread::Builder::new()
            .name("tool-reaper".to_owned())
            .spawn(reaper)
            .ok();
    }
}

/// Ends when the process has ended; it's not reaped by that.
pub(super) struct Exited(AsyncFd<OwnedFd>);

impl Exited {
    #[expect(
        deprecated,
        reason = "its successor is unsafe, for types whose descriptor can change; an OwnedFd's can't"
    )]
    pub(super) fn new(pidfd: OwnedFd) -> io::Result<Self> {
        AsyncFd::with_interest(pidfd, Interest::READABLE).map(Self)
    }

    /// Cancel safe: a pidfd stays readable.
    pub(super) async fn wait(&self) -> io::Result<()> {
        self.0
            .readable()
            .await
            .map(|mut ready| ready.retain_ready())
    }
}

/// True when all that is left of the group are zombies, as under a process 1 that reaps late.
pub(super) fn only_zombies(group: i32) -> bool {
    let Ok(processes) = std::fs::read_dir("/proc") else {
        return false;
    };
    let runs = |stat: &str| {
        // pid (name) state parent group …, where the name may hold anything.
        let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
        let state = fields.next()?;
        let number: i32 = fields.nth(1)?.parse().ok()?;
        Some(number == group && !matches!(state, "Z" | "X"))
    };
    !processes
        .filter_map(|entry| std::fs::read_to_string(entry.ok()?.path().join("stat")).ok())
        .any(|stat| runs(&stat).unwrap_or(false))
}
