//! Processes: started in groups of their own, found again by their configuration file, ended
//! with a limit.
//!
//! A process belongs to us when its command line names one of our configuration files. So those
//! that somebody else started again are found like our own, and a process id that was given to a
//! stranger since is never taken for ours.

use super::{Name, config::Layout, programs::Programs};
use crate::exit::Failure;
use rustix::process::{Pid, Signal, kill_process};
use std::{
    collections::BTreeSet,
    fs::{self, OpenOptions},
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};
use tokio::{process::Command, sync::mpsc, time::Instant};

/// How long a process may take to stop by itself.
const STOP_LIMIT: Duration = Duration::from_secs(20);
/// How long the system may take to end what was killed.
const KILL_LIMIT: Duration = Duration::from_secs(5);
/// How often is looked whether it's gone.
const LOOK_INTERVAL: Duration = Duration::from_millis(25);
/// The last bytes of a log that an error shows.
const LOG_TAIL: usize = 600;
/// Programs that a storage service which was killed may leave behind.
const TOOLS: [&str; 3] = ["qemu-img", "virt-sparsify", "zstd"];

/// A child that ended.
pub(crate) type Ended = (Name, u32, ExitStatus);

/// Starts processes and ends them.
#[derive(Debug)]
pub(crate) struct Processes {
    layout: Layout,
    programs: Programs,
    ends: mpsc::Sender<Ended>,
}

impl Processes {
    /// With the ends of children reported to the receiver.
    pub(crate) fn new(layout: Layout, programs: Programs) -> (Self, mpsc::Receiver<Ended>) {
        // Five children, each of which may be started twice before somebody looks.
        let (ends, ended) = mpsc::channel(2 * Name::ALL.len());
        let processes = Self {
            layout,
            programs,
            ends,
        };
        (processes, ended)
    }

    pub(crate) fn layout(&self) -> &Layout {
        &self.layout
    }

    pub(crate) fn layout_mut(&mut self) -> &mut Layout {
        &mut self.layout
    }

    pub(crate) fn programs(&self) -> &Programs {
        &self.programs
    }

    /// Starts one, and returns its process id.
    ///
    /// # Errors
    /// When it can't be started.
    pub(crate) fn start(&self, name: Name) -> Result<u32, Failure> {
        let failed = |error| Failure::failed(format!("can't start {name}: {error}"));
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.layout.log(name))
            .map_err(failed)?;
        let program = self.programs.get(&name).cloned().unwrap_or_default();
        let mut command = Command::new(program);
        command
            .arg(name.config_flag())
            .arg(self.layout.config(name))
            .current_dir(&self.layout.dir)
            .stdin(Stdio::null())
            .stdout(log.try_clone().map_err(failed)?)
            .stderr(log)
            // Ctrl-C on a terminal reaches this program alone, which then stops them in order.
            .process_group(0);
        // Settings come from the file alone, so that a later start by hand is the same.
        for (variable, _) in std::env::vars_os() {
            if variable.to_string_lossy().starts_with("VIRTBUS__") {
                command.env_remove(variable);
            }
        }
        let mut child = command.spawn().map_err(failed)?;
        let pid = child.id().unwrap_or(0);
        let ends = self.ends.clone();
        tokio::spawn(async move {
            if let Ok(status) = child.wait().await {
                // Nobody listens any more when all are being stopped.
                ends.send((name, pid, status)).await.ok();
            }
        });
        Ok(pid)
    }

    /// Stops everything in reverse order, whoever started it. `hurry` = nobody wants to wait.
    pub(crate) async fn stop_all(&self, hurry: impl AsyncFn()) {
        for name in Name::ALL.into_iter().rev() {
            self.stop(name, &hurry).await;
            if name == Name::Storage {
                self.stop_tools();
            }
        }
    }

    async fn stop(&self, name: Name, hurry: &impl AsyncFn()) {
        let members = || self.members(name);
        for pid in members() {
            signal(pid, Signal::TERM);
        }
        tokio::select! {
            gone = gone(members, STOP_LIMIT) => if gone { return },
            () = hurry() => {}
        }
        let left = members();
        let mut doomed: BTreeSet<u32> = left.iter().flat_map(|pid| descendants(*pid)).collect();
        doomed.extend(&left);
        for pid in doomed {
            signal(pid, Signal::KILL);
        }
        if !gone(members, KILL_LIMIT).await {
            eprintln!("{name} can't be ended");
        }
    }

    /// Tools of a storage service that died before.
    fn stop_tools(&self) {
        let root = self.layout.pool_root();
        for pid in pids() {
            let words = command_line(pid);
            let is_tool = words.first().is_some_and(|word| {
                let name = Path::new(word).file_name();
                name.is_some_and(|name| TOOLS.iter().any(|tool| name == *tool))
            });
            let root_text = root.to_string_lossy();
            let in_pool = fs::read_link(format!("/proc/{pid}/cwd"))
                .is_ok_and(|folder| folder.starts_with(&root));
            if is_tool && (in_pool || words.iter().any(|word| word.contains(&*root_text))) {
                signal(pid, Signal::KILL);
            }
        }
    }

    /// The processes that run with this configuration, whoever started them.
    pub(crate) fn members(&self, name: Name) -> Vec<u32> {
        let config = self.layout.config(name);
        let own = std::process::id();
        let named = pids().into_iter().filter(|pid| *pid != own);
        named
            .filter(|pid| names_config(*pid, name.config_flag(), &config))
            .collect()
    }

    /// The end of a log, for an error.
    pub(crate) fn log_tail(&self, name: Name) -> String {
        let text = fs::read(self.layout.log(name)).unwrap_or_default();
        let text = &text[text.len().saturating_sub(LOG_TAIL)..];
        let text = String::from_utf8_lossy(text);
        let lines: Vec<&str> = text.lines().collect();
        // The first line is most likely cut.
        lines[lines.len().min(1)..].join("\n")
    }
}

/// Whether there is nobody left, within the limit.
async fn gone(members: impl Fn() -> Vec<u32>, limit: Duration) -> bool {
    let deadline = Instant::now() + limit;
    while !members().is_empty() {
        if Instant::now() >= deadline {
            return false;
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
    true
}

pub(super) fn signal(pid: u32, signal: Signal) {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    // It may have ended by itself meanwhile.
    if let Some(pid) = pid {
        kill_process(pid, signal).ok();
    }
}

pub(super) fn pids() -> Vec<u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    names.filter_map(|name| name.parse().ok()).collect()
}

/// The words a process was started with; none of one that has ended and waits for its parent.
pub(super) fn command_line(pid: u32) -> Vec<String> {
    let text = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let words = text.split(|byte| *byte == 0).filter(|w| !w.is_empty());
    words
        .map(|word| String::from_utf8_lossy(word).into_owned())
        .collect()
}

fn names_config(pid: u32, flag: &str, config: &Path) -> bool {
    let words = command_line(pid);
    let after_flag = words.windows(2).filter(|pair| pair[0] == flag);
    let joined = format!("{flag}=");
    let glued = words.iter().filter_map(|word| word.strip_prefix(&joined));
    after_flag
        .map(|pair| pair[1].as_str())
        .chain(glued)
        .any(|path| {
            if Path::new(path).is_absolute() {
                return Path::new(path) == config;
            }
            let folder = fs::read_link(format!("/proc/{pid}/cwd")).unwrap_or_default();
            let whole: PathBuf = folder.join(path);
            whole.canonicalize().is_ok_and(|whole| whole == config)
        })
}

/// All that descend from a process.
fn descendants(pid: u32) -> Vec<u32> {
    let parents: Vec<(u32, u32)> = pids()
        .into_iter()
        .filter_map(|pid| Some((pid, parent(pid)?)))
        .collect();
    let mut found = vec![pid];
    let mut next = 0;
    while let Some(above) = found.get(next).copied() {
        let below = parents.iter().filter(|(_, parent)| *parent == above);
        found.extend(below.map(|(pid, _)| *pid));
        next += 1;
    }
    found.split_off(1)
}

fn parent(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything; what follows it is plain.
    let (_, rest) = stat.rsplit_once(") ")?;
    rest.split(' ').nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_by_the_configuration_it_names() {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().canonicalize().unwrap().join("core.toml");
        fs::write(&config, "").unwrap();
        let start = |words: &[&str]| {
            let mut child = std::process::Command::new("/bin/sh")
                .args(["-c", "echo; read x", "sh"])
                .args(words)
                .current_dir(folder.path())
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            // Its command line isn't there yet when the start returns, but when it speaks.
            let mut said = [0];
            let pipe = child.stdout.as_mut().unwrap();
            std::io::Read::read_exact(pipe, &mut said).unwrap();
            child
        };
        let path = config.to_str().unwrap();
        let mut ours = [
            start(&["--config", path]),
            start(&[&format!("--config={path}")]),
            start(&["--config", "./core.toml"]),
        ];
        let mut others = [start(&[path]), start(&["--config", "/other/core.toml"])];
        for child in &ours {
            assert!(names_config(child.id(), "--config", &config));
            assert!(descendants(std::process::id()).contains(&child.id()));
        }
        for child in &others {
            assert!(!names_config(child.id(), "--config", &config));
        }
        for child in ours.iter_mut().chain(&mut others) {
            child.kill().unwrap();
            child.wait().unwrap();
        }
        assert!(!names_config(ours[0].id(), "--config", &config));
    }
}
