//! Where the programs are that `up` runs.

use super::Name;
use crate::{
    command::doctor::{SERVER_MIN, parse_version},
    exit::Failure,
};
use std::{
    collections::BTreeMap,
    ffi::OsString,
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::process::Command;

/// How long a program may take to say its version.
const VERSION_LIMIT: Duration = Duration::from_secs(10);

/// Every program by name.
pub(crate) type Programs = BTreeMap<Name, PathBuf>;

/// Finds all programs: the services beside this one.
///
/// # Errors
/// When one is missing, or the server is too old.
pub(crate) async fn find() -> Result<Programs, Failure> {
    let here = std::env::current_exe()?.canonicalize()?;
    let folder = here.parent().unwrap_or(Path::new("/")).to_owned();
    let mut programs = Programs::new();
    for name in Name::SERVICES {
        let path = folder.join(format!("virtbus-{name}"));
        if !is_program(&path) {
            return Err(
                Failure::failed(format!("virtbus-{name} is not beside this program"))
                    .hint("build or install all of them: cargo build --workspace --bins"),
            );
        }
        programs.insert(name, path);
    }
    programs.insert(Name::Nats, nats_server(&folder).await?);
    Ok(programs)
}

async fn nats_server(folder: &Path) -> Result<PathBuf, Failure> {
    let env = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    let path = locate(folder, env("VIRTBUS_NATS_SERVER"), env("PATH"));
    let (major, minor) = SERVER_MIN;
    let wanted = format!("{major}.{minor}");
    let path = path.ok_or_else(|| {
        Failure::failed("nats-server isn't here").hint(format!(
            "put one of {wanted} or later on the PATH, or name it in VIRTBUS_NATS_SERVER"
        ))
    })?;
    let asked = Command::new(&path)
        .arg("--version")
        .kill_on_drop(true)
        .output();
    let said = tokio::time::timeout(VERSION_LIMIT, asked).await;
    let said = said.map_err(|_| Failure::failed("nats-server doesn't say its version"))?;
    let said = said.map_err(|error| Failure::failed(format!("can't run nats-server: {error}")))?;
    let said = String::from_utf8_lossy(&said.stdout).trim().to_owned();
    let version = said.rsplit(':').next().and_then(parse_version);
    if version.is_some_and(|version| version >= SERVER_MIN) {
        return Ok(path);
    }
    let shown = path.display();
    Err(Failure::failed(format!(
        "{shown} says {said:?}: it must be {wanted} or later"
    ))
    .hint("name another in VIRTBUS_NATS_SERVER"))
}

/// What was named; beside this program; in the checkout it was built in; on the PATH.
fn locate(folder: &Path, named: Option<OsString>, path: Option<OsString>) -> Option<PathBuf> {
    const PROGRAM: &str = "nats-server";
    if let Some(named) = named {
        return Some(named.into());
    }
    let near = [
        folder.join(PROGRAM),
        folder.join("../../.dev/bin").join(PROGRAM),
    ];
    let path = path.unwrap_or_default();
    let on_path = std::env::split_paths(&path).map(|folder| folder.join(PROGRAM));
    let found = near.into_iter().chain(on_path).find(|p| is_program(p));
    // A program is started by this path long after: it must not hang on the working directory.
    found.map(|found| found.canonicalize().unwrap_or(found))
}

pub(crate) fn is_program(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    path.metadata()
        .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    fn program(path: &Path) {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, "").unwrap();
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }

    #[test]
    fn the_servers_program_is_looked_for_near_before_far() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path().canonicalize().unwrap();
        let folder = root.join("target/debug");
        std::fs::create_dir_all(&folder).unwrap();
        let on_path = root.join("usr/bin/nats-server");
        let in_checkout = root.join(".dev/bin/nats-server");
        let path = || Some(OsString::from(root.join("usr/bin")));
        assert_eq!(locate(&folder, None, path()), None);
        program(&on_path);
        assert_eq!(locate(&folder, None, path()), Some(on_path));
        program(&in_checkout);
        assert_eq!(locate(&folder, None, path()), Some(in_checkout));
        let named = Some("/opt/nats-server".into());
        assert_eq!(
            locate(&folder, named, path()),
            Some("/opt/nats-server".into())
        );
    }
}
