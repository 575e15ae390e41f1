//! The words of every command line of qemu-img: a script of that name stands before the real one,
//! waits until it was seen, and then becomes it.
//!
//! It's seen in `/proc`, and told by a file that it only looks for: the tools under test may write
//! no file of their own choice.

use crate::process;
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// How often it's looked for new processes.
const LOOK: Duration = Duration::from_millis(5);
/// Waits to be seen; REAL and SEEN are put in.
const SCRIPT: &str = "#!/bin/sh\nuntil [ -e 'SEEN/'$$ ]; do sleep 0.005; done\nexec REAL \"$@\"\n";

/// Notes what is started, as long as it lives.
pub(crate) struct Recorder {
    words: Arc<Mutex<BTreeSet<String>>>,
    seen: PathBuf,
    /// Nothing is noted any more without it.
    _alive: mpsc::Sender<()>,
}

impl Recorder {
    /// In a folder of the stack.
    pub(crate) fn new(folder: &Path) -> Self {
        let seen = folder.join("seen");
        fs::create_dir(&seen).unwrap();
        let words = Arc::new(Mutex::new(BTreeSet::new()));
        let (notes, marks) = (Arc::clone(&words), seen.clone());
        let script = folder.join("tools/qemu-img");
        let (alive, ended) = mpsc::channel::<()>();
        std::thread::spawn(move || {
            while let Err(RecvTimeoutError::Timeout) = ended.recv_timeout(LOOK) {
                note(&script, &notes, &marks);
            }
        });
        Self {
            words,
            seen,
            _alive: alive,
        }
    }

    /// What stands before qemu-img.
    pub(crate) fn script(&self) -> String {
        SCRIPT.replace("SEEN", self.seen.to_str().unwrap())
    }

    /// The words so far.
    pub(crate) fn words(&self) -> Vec<String> {
        let words = self.words.lock().unwrap_or_else(PoisonError::into_inner);
        words.iter().cloned().collect()
    }
}

/// Notes the words of each process that is this script and wasn't seen yet, and lets it go on.
fn note(script: &Path, notes: &Mutex<BTreeSet<String>>, marks: &Path) {
    let mut waiting = BTreeSet::new();
    for (pid, line) in process::lines() {
        // The shell, the script, its words.
        let mut words = line.into_iter().skip(1);
        if words.next().is_none_or(|word| Path::new(&word) != script) {
            continue;
        }
        let mark = marks.join(pid.to_string());
        if !mark.exists() {
            let mut notes = notes.lock().unwrap_or_else(PoisonError::into_inner);
            notes.extend(words);
            fs::write(&mark, "").unwrap();
        }
        waiting.insert(mark);
    }
    // A number comes again.
    let marks = fs::read_dir(marks).into_iter().flatten().flatten();
    for mark in marks.map(|mark| mark.path()) {
        if !waiting.contains(&mark) {
            fs::remove_file(mark).unwrap();
        }
    }
}

/// A script in place of qemu-img.
pub(crate) fn write_script(folder: &Path, script: &str) {
    let path = std::env::var("PATH").unwrap();
    let mut real = path.split(':').map(|dir| Path::new(dir).join("qemu-img"));
    let real = real
        .find(|file| file.exists())
        .expect("qemu-img is on the PATH");
    let file = folder.join("qemu-img");
    fs::create_dir(folder).unwrap();
    fs::write(&file, script.replace("REAL", real.to_str().unwrap())).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
}
