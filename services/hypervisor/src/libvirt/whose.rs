//! Which daemon an address leads to: many lead to the same one.
//!
//! libvirt itself doesn't tell: it has a number for the host, which is the same for the daemons of
//! all its users, and where the firmware has none, another one after each start. What a daemon has
//! alone is the folder that its socket lies in: it keeps its state, and the lock against a second
//! one, beside it. So an address of this host stands for that folder, whatever else it says.

use super::Uri;
use camino::{Utf8Path, Utf8PathBuf};

/// Where the sockets of the system's daemons are.
const SYSTEM: &str = "/run/libvirt";

/// What is the same for all addresses of a daemon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Daemon {
    /// `qemu`: one daemon may have several drivers, each with domains of its own.
    driver: String,
    place: Place,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    /// On this host, with its socket in this folder.
    Folder(Utf8PathBuf),
    /// On another host: whose it is there, and the path of the address.
    Host(String, String),
}

/// Who asks: what an address means depends on it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Asker {
    /// Whether it's root, for whom libvirt has no daemon but the system's.
    pub(crate) is_root: bool,
    /// The folder for what its programs have while they run.
    pub(crate) runtime: Option<Utf8PathBuf>,
    /// This host's name.
    pub(crate) host: String,
}

impl Asker {
    /// This process, on the host of this name.
    pub(crate) fn own(host: &str) -> Self {
        let folder = |name: &str, below: &str| {
            let folder = std::env::var(name)
                .ok()
                .filter(|folder| !folder.is_empty())?;
            Some(Utf8Path::new(&folder).join(below))
        };
        // As libvirt looks for it.
        let runtime = folder("XDG_RUNTIME_DIR", "")
            .or_else(|| folder("XDG_CACHE_HOME", ""))
            .or_else(|| folder("HOME", ".cache"));
        Self {
            is_root: rustix::process::geteuid().is_root(),
            runtime,
            host: host.to_owned(),
        }
    }
}

impl Daemon {
    /// The one that an address leads to.
    pub(crate) fn at(uri: &Uri, asker: &Asker) -> Self {
        let (scheme, rest) = uri.as_str().split_once(':').unwrap_or((uri.as_str(), ""));
        let driver = scheme.split('+').next().unwrap_or_default();
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let query = query.split_once('#').map_or(query, |(query, _)| query);
        let rest = rest.trim_start_matches("//");
        let (host, path) = rest.find('/').map_or((rest, ""), |at| rest.split_at(at));
        Self {
            driver: driver.to_ascii_lowercase(),
            place: place(host, path, query, asker),
        }
    }

    /// The same, as the file system has the folder: by whichever links it's named.
    pub(crate) fn resolved(self) -> Self {
        let place = match self.place {
            Place::Folder(folder) => Place::Folder(folder.canonicalize_utf8().unwrap_or(folder)),
            Place::Host(host, path) => Place::Host(host, path),
        };
        Self { place, ..self }
    }

    /// A name for it that is no other one's: `qemu.run.libvirt`. Of letters, digits, `.`, `_`, `@`.
    pub(crate) fn name(&self) -> String {
        let mut name = escaped(&self.driver);
        match &self.place {
            Place::Folder(folder) => {
                for part in folder.as_str().split('/').filter(|part| !part.is_empty()) {
                    name.push('.');
                    name.push_str(&escaped(part));
                }
            }
            Place::Host(host, path) => {
                name.push('@');
                name.push_str(&escaped(host));
                name.push('.');
                name.push_str(&escaped(path.trim_matches('/')));
            }
        }
        name
    }
}

fn place(authority: &str, path: &str, query: &str, asker: &Asker) -> Place {
    let (user, host) = authority.rsplit_once('@').unwrap_or(("", authority));
    let host = without_port(host).to_ascii_lowercase();
    let is_here = ["", "localhost", "127.0.0.1", "[::1]"].contains(&host.as_str())
        || host == asker.host.to_ascii_lowercase();
    // The system's daemon is the same for all its users.
    let is_users = path.starts_with("/session");
    if !is_here {
        let user = if is_users { user } else { "" };
        return Place::Host(format!("{user}@{host}"), path.to_owned());
    }
    if let Some(socket) = value_of(query, "socket") {
        let socket = Utf8PathBuf::from(socket);
        return Place::Folder(socket.parent().unwrap_or(&socket).to_owned());
    }
    match &asker.runtime {
        Some(runtime) if is_users && !asker.is_root => Place::Folder(runtime.join("libvirt")),
        Some(_) | None => Place::Folder(SYSTEM.into()),
    }
}

/// `[::1]:16514` is the host `[::1]`.
fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) && !name.ends_with(':') => {
            name
        }
        Some(_) | None => host,
    }
}

fn value_of(query: &str, wanted: &str) -> Option<String> {
    let mut words = query
        .split(['&', ';'])
        .filter_map(|word| word.split_once('='));
    words.find_map(|(key, value)| (key == wanted).then(|| decoded(value)))
}

/// `%2F` is a slash.
fn decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let number = after.get(..2).and_then(|two| std::str::from_utf8(two).ok());
        let number = number.and_then(|two| u8::from_str_radix(two, 16).ok());
        match number {
            Some(byte) if *first == b'%' => {
                bytes.push(byte);
                rest = after.get(2..).unwrap_or_default();
            }
            Some(_) | None => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A text in which only letters, digits and hyphens stay what they are: no two become the same.
fn escaped(text: &str) -> String {
    let mut safe = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || byte == b'-' {
            safe.push(char::from(byte));
        } else {
            safe.push_str(&format!("_{byte:02x}"));
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(uri: &str, is_root: bool) -> String {
        let asker = Asker {
            is_root,
            runtime: Some("/run/user/1000".into()),
            host: "hv1.example.org".to_owned(),
        };
        Daemon::at(&uri.parse().unwrap(), &asker).name()
    }

    #[test]
    fn addresses_of_one_daemon_have_one_name() {
        for (uris, wanted) in [
            (
                vec![
                    "qemu:///system",
                    "qemu+unix:///system",
                    "qemu:///system?mode=legacy",
                    "QEMU:///system?socket=/run/libvirt/libvirt-sock",
                    "qemu+unix:///system?mode=direct;socket=%2Frun%2Flibvirt%2Fvirtqemud-sock#x",
                    "qemu+tcp://localhost/system",
                    "qemu+tls://[::1]:16514/system",
                    "qemu+ssh://root@HV1.example.org:22/system",
                ],
                "qemu.run.libvirt",
            ),
            (
                vec![
                    "qemu:///session",
                    "qemu+unix:///session?socket=/run/user/1000/libvirt/libvirt-sock",
                ],
                "qemu.run.user.1000.libvirt",
            ),
            (
                vec![
                    "qemu+ssh://alice@hv2/system",
                    "qemu+tls://HV2:16514/system?no_verify=1",
                ],
                "qemu@_40hv2.system",
            ),
        ] {
            for uri in uris {
                assert_eq!(name(uri, false), wanted, "{uri}");
            }
        }
        // For root libvirt has no daemon but the system's.
        assert_eq!(name("qemu:///session", true), name("qemu:///system", true));
    }

    #[test]
    fn different_daemons_have_different_names() {
        let all = [
            "qemu:///system",
            "qemu:///session",
            "lxc:///system",
            "qemu+unix:///session?socket=/a/b/libvirt-sock",
            "qemu+unix:///session?socket=/a-b/libvirt-sock",
            "qemu+unix:///session?socket=/a.b/libvirt-sock",
            "qemu+unix:///session?socket=/a_2eb/libvirt-sock",
            "qemu+ssh://hv2/system",
            "qemu+ssh://alice@hv2/session",
            "qemu+ssh://bob@hv2/session",
        ];
        let names: std::collections::BTreeSet<String> =
            all.iter().map(|uri| name(uri, false)).collect();
        assert_eq!(names.len(), all.len(), "{names:?}");
    }
}
