//! What the tools that open images are let do: which files each run reaches, and how far back in
//! line it stands.
//!
//! A run reaches the files of its job: what it changes is named file by file, what it only reads
//! too where that is one file, and as the folder they lie in where it's a chain. So a tool that an
//! image has taken over can change what its job changes, and nothing else of the pool or the host.

use crate::config::{CageConfig, PoliteConfig};
use camino::{Utf8Path, Utf8PathBuf};
use std::io;
use virtbus_worker::process::{Cage, CommandLine, Groups, Hold, Offer};

/// The kernel can't lock tools in, and it's required.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "this kernel can't lock tools in ({0}): enable Landlock (lsm=landlock,… at boot; Linux 5.13 or \
     newer) and seccomp, or set it to false to run tools with what there is"
)]
pub struct Unheld(Offer);

/// Whether tools may run on a kernel that offers this.
///
/// # Errors
/// [`Unheld`].
pub fn admit(offer: Offer, cage: &CageConfig) -> Result<(), Unheld> {
    if offer.holds() || !cage.required {
        Ok(())
    } else {
        Err(Unheld(offer))
    }
}

/// What holds for all runs.
#[derive(Debug, Clone, Default)]
pub struct Rules {
    cage: CageConfig,
    polite: PoliteConfig,
    /// Where runs that open an image have groups of the kernel; none if the host leaves us none.
    groups: Option<Groups>,
}

/// The files that one run reaches.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reach {
    read: Vec<Utf8PathBuf>,
    write: Vec<Utf8PathBuf>,
}

impl Reach {
    /// No file.
    #[must_use]
    pub fn nothing() -> Self {
        Self::default()
    }

    /// This file is read.
    #[must_use]
    pub fn read(mut self, file: &Utf8Path) -> Self {
        self.read.push(file.to_owned());
        self
    }

    /// This file is read, and those below it, which lie in the same folder.
    #[must_use]
    pub fn chain(self, file: &Utf8Path) -> Self {
        self.read(file.parent().unwrap_or(file))
    }

    /// This file is changed; it's made, empty, if it's missing.
    #[must_use]
    pub fn write(mut self, file: &Utf8Path) -> Self {
        self.write.push(file.to_owned());
        self
    }
}

impl Rules {
    /// As configured. A cgroup that can't be used is done without.
    #[must_use]
    pub fn new(cage: CageConfig, polite: PoliteConfig) -> Self {
        let groups = groups(&polite).ok().flatten();
        Self {
            cage,
            polite,
            groups,
        }
    }

    /// A cage around these files.
    #[must_use]
    pub fn cage(&self, reach: &Reach) -> Cage {
        let mut cage = Cage::new();
        cage.run.extend(paths(&self.cage.also_run));
        cage.files.extend(paths(&reach.read));
        cage.write.extend(paths(&reach.write));
        cage.hold = if self.cage.required {
            Hold::Required
        } else {
            Hold::Offered
        };
        cage
    }

    /// A short run, locked in, in a group of its own if it opens an image.
    #[must_use]
    pub fn quick(&self, line: CommandLine, reach: &Reach) -> CommandLine {
        let groups = self.groups.clone().filter(|_| *reach != Reach::nothing());
        line.cage(self.cage(reach)).group(groups)
    }

    /// A long run, locked in, behind others.
    #[must_use]
    pub fn long(&self, line: CommandLine, reach: &Reach) -> CommandLine {
        self.behind(self.quick(line, reach))
    }

    /// A run behind others.
    #[must_use]
    pub fn behind(&self, line: CommandLine) -> CommandLine {
        line.priority(self.polite.nice, self.polite.io.priority())
            .group(self.groups.clone().map(Groups::behind))
    }
}

/// Where runs have groups of the kernel; none if none is configured, and the host leaves us none.
///
/// # Errors
/// When the configured folder can't be used.
pub fn groups(polite: &PoliteConfig) -> io::Result<Option<Groups>> {
    match &polite.cgroup {
        Some(folder) => Groups::open(folder.as_std_path()).map(Some),
        None => Ok(Groups::find()),
    }
}

fn paths(list: &[Utf8PathBuf]) -> impl Iterator<Item = std::path::PathBuf> {
    list.iter().map(|path| path.clone().into_std_path_buf())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn has(list: &[std::path::PathBuf], path: &str) -> bool {
        list.iter().any(|other| other == Path::new(path))
    }

    #[test]
    fn a_run_reaches_its_files_and_no_folder_to_write_in() {
        let reach = Reach::nothing()
            .chain("/p/disks/d1.qcow2".into())
            .write("/p/disks/.j.1.d2.part".into());
        let cage = Rules::default().cage(&reach);
        assert!(has(&cage.files, "/p/disks") && !has(&cage.read, "/p/disks"));
        assert_eq!(cage.write, [Path::new("/p/disks/.j.1.d2.part")]);
        assert!(cage.write_in.is_empty() && cage.own.is_empty());
        assert_eq!(cage.hold, Hold::Required);
    }

    #[test]
    fn a_kernel_that_cannot_hold_a_tool_is_refused_unless_configured() {
        let without = Offer {
            landlock: None,
            filter: true,
        };
        let required = CageConfig::default();
        let offered = CageConfig {
            required: false,
            ..CageConfig::default()
        };
        let refused = admit(without, &required).unwrap_err().to_string();
        assert!(refused.contains("no landlock, filter"), "{refused}");
        assert_eq!(admit(without, &offered), Ok(()));
        let with = Offer {
            landlock: Some(1),
            filter: true,
        };
        assert_eq!(admit(with, &required), Ok(()));
        let unfiltered = Offer {
            filter: false,
            ..with
        };
        assert!(admit(unfiltered, &required).is_err());
    }

    #[test]
    fn only_long_runs_stand_behind_others() {
        let line = || CommandLine::new("/usr/bin/qemu-img");
        let rules = Rules::default();
        let quick = rules.quick(line(), &Reach::nothing());
        assert_eq!((quick.nice, quick.io), (0, None));
        let long = rules.long(line(), &Reach::nothing());
        assert!(long.nice > 0 && long.io.is_some());
        assert!(quick.cage.is_some() && long.cage.is_some());
    }

    #[test]
    fn every_run_that_opens_an_image_has_a_group_where_the_host_leaves_us_one() {
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let mount = mounts.lines().find(|line| line.contains(" - cgroup2 "));
        let mount = mount.and_then(|line| line.split_ascii_whitespace().nth(4));
        let base = mount.map(|at| format!("{at}/virtbus-rules-{}", std::process::id()));
        let groups = base
            .as_ref()
            .and_then(|base| Groups::open(Path::new(base)).ok());
        let rules = Rules {
            groups: groups.clone(),
            ..Rules::default()
        };
        let line = || CommandLine::new("/usr/bin/qemu-img");
        let image = Reach::nothing().read("/p/disks/d1.raw".into());
        assert_eq!(rules.quick(line(), &image).groups, groups);
        assert_eq!(rules.quick(line(), &Reach::nothing()).groups, None);
        let behind = groups.map(Groups::behind);
        assert_eq!(rules.long(line(), &image).groups, behind);
        if let Some(base) = base {
            std::fs::remove_dir(base).ok();
        }
    }

    #[test]
    fn what_is_configured_is_heard() {
        let cage = CageConfig {
            required: false,
            also_run: vec!["/opt/qemu".into()],
        };
        let cage = Rules::new(cage, PoliteConfig::default()).cage(&Reach::nothing());
        assert_eq!(cage.hold, Hold::Offered);
        assert!(has(&cage.run, "/opt/qemu"));
    }
}
