//! The words of every command line of qemu-img: noted by a script of that name which stands
//! before the real one on the PATH, and then becomes it.
//!
//! They come over a FIFO: the tools under test may write no file of their own choice.

use rustix::fs::{CWD, FileType, Mode, mknodat};
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

/// Notes what comes, as long as the test process lives.
pub(crate) struct Recorder {
    noted: Arc<Mutex<Vec<u8>>>,
    bin: PathBuf,
}

impl Recorder {
    /// In a folder of the stack.
    pub(crate) fn new(folder: &Path) -> Self {
        let (bin, fifo) = (folder.join("bin"), folder.join("tool-words"));
        fs::create_dir(&bin).unwrap();
        mknodat(CWD, &fifo, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        write_script(&bin.join("qemu-img"), &fifo);
        // Open for both, so that it never ends.
        let mut words = File::options().read(true).write(true).open(&fifo).unwrap();
        let noted = Arc::new(Mutex::new(Vec::new()));
        let notes = Arc::clone(&noted);
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count) = words.read(&mut buffer) {
                notes.lock().unwrap().extend_from_slice(&buffer[..count]);
            }
        });
        Self { noted, bin }
    }

    /// The PATH with the script in front.
    pub(crate) fn path(&self) -> String {
        format!("{}:{}", self.bin.display(), std::env::var("PATH").unwrap())
    }

    /// The words so far.
    pub(crate) fn words(&self) -> Vec<String> {
        let noted = self.noted.lock().unwrap();
        let words = noted.split(|byte| *byte == 0);
        words
            .map(|word| String::from_utf8_lossy(word).into_owned())
            .collect()
    }
}

fn write_script(script: &Path, fifo: &Path) {
    let path = std::env::var("PATH").unwrap();
    let mut real = path
        .split(':')
        .map(|folder| Path::new(folder).join("qemu-img"));
    let real = real
        .find(|file| file.exists())
        .expect("qemu-img is on the PATH");
    let text = format!(
        "#!/bin/sh\nprintf '%s\\0' \"$@\" >>'{}'\nexec '{}' \"$@\"\n",
        fifo.display(),
        real.display()
    );
    fs::write(script, text).unwrap();
    fs::set_permissions(script, fs::Permissions::from_mode(0o755)).unwrap();
}
