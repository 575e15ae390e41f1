//! Whoever ends a stack when its test process is gone, however that ended.

use std::io::Write as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};

/// Ends what a test process that is gone left behind: TERM to the stack and to all it was told of,
/// then its folder goes.
const SCRIPT: &str = r#"
pids=$1
while read -r pid; do pids="$pids $pid"; done
kill -TERM $pids 2>/dev/null
left=600
while [ "$left" -gt 0 ] && kill -0 "$1" 2>/dev/null; do sleep 0.1; left=$((left - 1)); done
rm -rf "$2"
"#;

/// A shell that waits for the end of a pipe.
pub(crate) struct Warden(Mutex<Child>);

impl Warden {
    /// Over a process, and a folder that goes when it's gone.
    pub(crate) fn over(pid: u32, folder: &Path) -> Self {
        let warden = Command::new("/bin/sh")
            .args(["-c", SCRIPT, "warden", &pid.to_string()])
            .arg(folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .current_dir("/")
            .spawn();
        Self(Mutex::new(warden.unwrap()))
    }

    /// Over this process too.
    pub(crate) fn also(&self, pid: u32) {
        let mut warden = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let pipe = warden.stdin.as_mut().expect("a pipe");
        writeln!(pipe, "{pid}").unwrap();
    }

    /// Ends nothing any more: others do.
    pub(crate) fn leave(&mut self) {
        let warden = self.0.get_mut().unwrap_or_else(PoisonError::into_inner);
        drop(warden.kill());
        drop(warden.wait());
    }
}
