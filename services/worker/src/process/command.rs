//! A command line as data: what runs, with what, within what.

use std::{
    env,
    ffi::{OsStr, OsString},
    fmt,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::process::{Resource, getrlimit};

use super::{cage::Cage, cgroup::Groups, error::RunError};

const IONICE: &str = "/usr/bin/ionice";
const PRLIMIT: &str = "/usr/bin/prlimit";
/// In front of a tool that gets a group of the kernel: waits until it's in there, which is told by the
/// end of its standard input. A constant; what it starts are whole arguments, never read as text.
const WAIT: [&str; 4] = [
    "/bin/sh",
    "-c",
    "read _; exec \"$@\" </dev/null",
    "tool-start",
];

/// What a tool sees of the worker's environment. The rest may hold secrets.
const ENV_KEPT: [&str; 3] = ["PATH", "HOME", "TMPDIR"];
/// Where programs are looked for if the worker itself has no `PATH`.
const PATH_DEFAULT: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Seconds between SIGXCPU and the kernel's SIGKILL for a tool that burns on.
const CPU_SLACK_S: u64 = 5;
/// What a tool may use. Core files are always off. A limit above the worker's own hard limit is
/// cut to that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Open files, per process.
    pub open_files: u64,
    /// The largest file that may be written, in bytes. SIGXFSZ ends a tool that goes on.
    pub file_size_bytes: u64,
    /// Processor time per process, in seconds. SIGXCPU ends a tool that goes on.
    pub cpu_seconds: u64,
    /// Wall clock time of the whole run, without the grace after it.
    pub wall: Duration,
}

impl Default for Limits {
    /// For a short question to a tool: nothing is written, ten seconds.
    fn default() -> Self {
        Self {
            open_files: 256,
            file_size_bytes: 0,
            cpu_seconds: 60,
            wall: Duration::from_secs(10),
        }
    }
}

/// How a tool stands in line for the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IoPriority {
    /// Best effort, 0 (first) to 7 (last).
    BestEffort(u8),
    /// Only when nobody else wants the disk.
    Idle,
}

/// A program with all that belongs to its run. No shell ever sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommandLine {
    /// The program's absolute path.
    pub program: PathBuf,
    /// Its arguments, without its name.
    pub args: Vec<OsString>,
    /// Added to the small environment that every tool has (`LC_ALL=C` and three of the worker's).
    pub env: Vec<(OsString, OsString)>,
    /// Working directory.
    pub dir: PathBuf,
    /// What it may use.
    pub limits: Limits,
    /// 0 (as the worker) to 19 (last in line for the processor).
    pub nice: u8,
    /// Its place in line for the disk; none = what its place in line for the processor gives.
    pub io: Option<IoPriority>,
    /// What it may reach of the host; none = what the worker may.
    pub cage: Option<Cage>,
    /// Where it has a group of the kernel of its own; none = it stays in the worker's.
    pub groups: Option<Groups>,
}

impl CommandLine {
    /// The program at this absolute path, without arguments, in `/`, within default limits.
    pub fn new(program: impl Into<PathBuf>) -> Self {
        Self {
            program: program.into(),
            args: Vec::new(),
            env: Vec::new(),
            dir: PathBuf::from("/"),
            limits: Limits::default(),
            nice: 0,
            io: None,
            cage: None,
            groups: None,
        }
    }

    /// Adds one argument.
    #[must_use]
    pub fn arg(mut self, arg: impl Into<OsString>) -> Self {
        self.args.push(arg.into());
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<A: Into<OsString>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// Sets a variable of the environment.
    #[must_use]
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    /// Sets the working directory.
    #[must_use]
    pub fn dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.dir = dir.into();
        self
    }

    /// Sets the limits.
    #[must_use]
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Sets the places in line for processor and disk.
    #[must_use]
    pub fn priority(mut self, nice: u8, io: Option<IoPriority>) -> Self {
        self.nice = nice;
        self.io = io;
        self
    }

    /// Locks it in.
    #[must_use]
    pub fn cage(mut self, cage: Cage) -> Self {
        self.cage = Some(cage);
        self
    }

    /// Gives it a group of the kernel of its own, if there are such.
    #[must_use]
    pub fn group(mut self, groups: Option<Groups>) -> Self {
        self.groups = groups;
        self
    }

    /// The cage, in which every program of the whole line can be run.
    pub(super) fn whole_cage(&self) -> Option<Cage> {
        let mut cage = self.cage.clone()?;
        cage.run.extend(self.programs().map(Path::to_path_buf));
        Some(cage)
    }

    /// Every program of the whole line.
    fn programs(&self) -> impl Iterator<Item = &Path> {
        let io = self.io.map(|_| Path::new(IONICE));
        let wait = self.groups.as_ref().map(|_| Path::new(WAIT[0]));
        let prlimit = Some(Path::new(PRLIMIT));
        [Some(self.program.as_path()), prlimit, io, wait]
            .into_iter()
            .flatten()
    }

    /// The program's file name, fit for people.
    pub fn name(&self) -> String {
        file_name(&self.program)
    }

    /// The first program of the whole line that isn't there.
    pub(super) fn missing(&self) -> Option<RunError> {
        let missing = self.programs().find(|program| !is_program(program))?;
        Some(RunError::NotFound {
            program: file_name(missing),
        })
    }

    /// The line that is really run: the prefix (see the module above), the program, its arguments.
    pub(super) fn argv(&self) -> Vec<OsString> {
        let mut argv: Vec<OsString> = Vec::with_capacity(self.args.len() + 16);
        if self.groups.is_some() {
            argv.extend(WAIT.map(OsString::from));
        }
        if let Some(io) = self.io {
            argv.extend([IONICE, "-t", "-c"].map(OsString::from));
            argv.extend(match io {
                IoPriority::BestEffort(level) => {
                    vec!["2".into(), "-n".into(), level.min(7).to_string().into()]
                }
                IoPriority::Idle => vec![OsString::from("3")],
            });
        }
        argv.push(PRLIMIT.into());
        argv.extend(self.prlimit_args().map(OsString::from));
        argv.push("--".into());
        argv.push(self.program.clone().into());
        argv.extend(self.args.iter().cloned());
        argv
    }

    fn prlimit_args(&self) -> [String; 4] {
        let Limits {
            open_files,
            file_size_bytes,
            cpu_seconds,
            wall: _,
        } = self.limits;
        let files = allowed(Resource::Nofile, open_files);
        let size = allowed(Resource::Fsize, file_size_bytes);
        let cpu = allowed(Resource::Cpu, cpu_seconds);
        let cpu_hard = allowed(Resource::Cpu, cpu_seconds.saturating_add(CPU_SLACK_S));
        [
            format!("--nofile={files}:{files}"),
            format!("--fsize={size}:{size}"),
            format!("--cpu={cpu}:{cpu_hard}"),
            "--core=0:0".to_owned(),
        ]
    }

    /// The whole environment of the tool, later entries over earlier ones.
    pub(super) fn environment(&self) -> Vec<(OsString, OsString)> {
        let mut environment = vec![("PATH".into(), PATH_DEFAULT.into())];
        environment.extend(
            ENV_KEPT
                .iter()
                .filter_map(|name| Some((name.into(), env::var_os(name)?))),
        );
        environment.push(("LC_ALL".into(), "C".into()));
        environment.extend(self.env.iter().cloned());
        environment
    }
}

/// For logs only: what a person would type, without the prefix. Never parsed, never run.
impl fmt::Display for CommandLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.program.display())?;
        for arg in &self.args {
            let text = arg.to_string_lossy();
            let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,+%@".contains(c);
            if !text.is_empty() && text.chars().all(plain) {
                write!(f, " {text}")?;
            } else {
                write!(f, " {text:?}")?;
            }
        }
        Ok(())
    }
}

/// The absolute path of a program, looked for in `PATH`.
///
/// # Errors
/// [`RunError::NotFound`] if no absolute directory of `PATH` has it.
pub fn find_program(name: &str) -> Result<PathBuf, RunError> {
    let path = env::var_os("PATH").unwrap_or_else(|| PATH_DEFAULT.into());
    env::split_paths(&path)
        .filter(|dir| dir.is_absolute())
        .map(|dir| dir.join(name))
        .find(|program| is_program(program))
        .ok_or_else(|| RunError::NotFound {
            program: name.to_owned(),
        })
}

fn is_program(path: &Path) -> bool {
    let executable =
        |meta: std::fs::Metadata| meta.is_file() && meta.permissions().mode() & 0o111 != 0;
    path.is_absolute() && path.metadata().is_ok_and(executable)
}

fn file_name(path: &Path) -> String {
    path.file_name()
        .unwrap_or(OsStr::new("?"))
        .to_string_lossy()
        .into_owned()
}

/// Only root may raise a hard limit, and a refusal would look like a failure of the tool.
fn allowed(resource: Resource, wanted: u64) -> u64 {
    getrlimit(resource)
        .maximum
        .map_or(wanted, |hard| wanted.min(hard))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resize() -> CommandLine {
        let limits = Limits {
            open_files: 64,
            file_size_bytes: 1 << 20,
            cpu_seconds: 9,
            wall: Duration::from_secs(60),
        };
        CommandLine::new("/usr/bin/qemu-img")
            .args(["resize", "a b"])
            .limits(limits)
    }

    fn line(command: &CommandLine) -> String {
        let text = |arg: OsString| arg.to_string_lossy().into_owned();
        command
            .argv()
            .into_iter()
            .map(text)
            .collect::<Vec<_>>()
            .join(" ")
    }

    #[test]
    fn the_prefix_sets_the_limits() {
        assert_eq!(
            line(&resize()),
            "/usr/bin/prlimit --nofile=64:64 --fsize=1048576:1048576 --cpu=9:14 --core=0:0 -- \
             /usr/bin/qemu-img resize a b",
        );
    }

    #[test]
    fn the_place_in_line_for_the_disk_stands_before_the_limits() {
        let idle = line(&resize().priority(10, Some(IoPriority::Idle)));
        assert!(idle.starts_with("/usr/bin/ionice -t -c 3 /usr/bin/prlimit "));
        let last = line(&resize().priority(0, Some(IoPriority::BestEffort(9))));
        assert!(last.starts_with("/usr/bin/ionice -t -c 2 -n 7 /usr/bin/prlimit "));
    }

    #[test]
    fn a_cage_lets_the_whole_line_run() {
        let line = resize()
            .priority(5, Some(IoPriority::Idle))
            .cage(Cage::new());
        let run = line.whole_cage().unwrap().run;
        for program in [IONICE, PRLIMIT, "/usr/bin/qemu-img"] {
            assert!(
                run.iter().any(|path| path == Path::new(program)),
                "{program}"
            );
        }
        assert_eq!(resize().whole_cage(), None);
    }

    #[test]
    fn a_log_line_shows_where_arguments_end() {
        assert_eq!(resize().to_string(), "/usr/bin/qemu-img resize \"a b\"");
    }

    #[test]
    fn a_relative_program_is_not_found() {
        let missing = CommandLine::new("sh").missing();
        assert!(matches!(missing, Some(RunError::NotFound { program }) if program == "sh"));
    }
}
