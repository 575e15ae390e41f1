//! Whoever ends what a test process started when that is gone, however it ended.

use std::ffi::OsStr;
use std::io::Write as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};

/// Ends what a test process that is gone left behind: TERM to the stack and to all it was told of,
/// then its folder goes.
const STACK: &str = r#"
pids=$1
while read -r pid; do pids="$pids $pid"; done
kill -TERM $pids 2>/dev/null
left=600
while [ "$left" -gt 0 ] && kill -0 "$1" 2>/dev/null; do sleep 0.1; left=$((left - 1)); done
rm -rf "$2"
"#;

/// Ends what a test process that is gone left behind, and removes nothing.
const FOLDER: &str = r#"
read -r _
for process in /proc/[0-9]*; do
    if tr '\0' ' ' <"$process/cmdline" 2>/dev/null | grep -qF -- "$1/"; then
        [ "${process#/proc/}" = "$$" ] || kill -KILL "${process#/proc/}" 2>/dev/null
    fi
done
"#;

/// A shell that waits for the end of a pipe, and is gone with this.
#[derive(Debug)]
pub(crate) struct Warden(Mutex<Child>);

impl Warden {
    /// Over a process, and a folder that goes when it's gone.
    pub(crate) fn over(pid: u32, folder: &Path) -> Self {
        Self::start(STACK, &[pid.to_string().as_ref(), folder.as_os_str()])
    }

    /// Over whatever names this folder on its command line.
    pub(crate) fn of(folder: &Path) -> Self {
        Self::start(FOLDER, &[folder.as_os_str()])
    }

    fn start(script: &str, words: &[&OsStr]) -> Self {
        let shell = Command::new("/bin/sh")
            .args(["-c", script, "warden"])
            .args(words)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .current_dir("/")
            .spawn();
        Self(Mutex::new(shell.unwrap()))
    }

    /// Over this process too.
    pub(crate) fn also(&self, pid: u32) {
        let mut shell = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let pipe = shell.stdin.as_mut().expect("a pipe");
        writeln!(pipe, "{pid}").unwrap();
    }

    /// Ends nothing any more: others do.
    pub(crate) fn leave(&mut self) {
        let shell = self.0.get_mut().unwrap_or_else(PoisonError::into_inner);
        drop(shell.kill());
        drop(shell.wait());
    }
}

impl Drop for Warden {
    fn drop(&mut self) {
        self.leave();
    }
}
