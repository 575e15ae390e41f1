//! Ports on loopback: free when chosen, the same ones at the next start.

use super::{Name, files};
use crate::exit::Failure;
use std::{
    collections::BTreeMap,
    io,
    net::{Ipv4Addr, TcpListener},
    path::Path,
};

/// One port for each that listens.
pub(crate) type Ports = BTreeMap<Name, u16>;

/// The ports of the last start as far as they are still free, else others; kept in `file`.
///
/// # Errors
/// When there is no free port, or the file can't be written.
pub(crate) fn choose(file: &Path) -> Result<Ports, Failure> {
    let last = std::fs::read(file).ok();
    let last: Ports = last
        .and_then(|text| serde_json::from_slice(&text).ok())
        .unwrap_or_default();
    let ports = assign(&last, |port| {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port))?;
        Ok((listener.local_addr()?.port(), listener))
    })?;
    let text = serde_json::to_string(&ports).map_err(|error| Failure::failed(error.to_string()))?;
    files::write(file, &text)?;
    Ok(ports)
}

/// A port for each: the last one if it can be held, else any (0).
fn assign<Held>(
    last: &Ports,
    mut hold: impl FnMut(u16) -> io::Result<(u16, Held)>,
) -> io::Result<Ports> {
    // All are held until all are chosen, or one would be given out twice.
    let mut held = Vec::new();
    let mut ports = Ports::new();
    for name in Name::ALL {
        let wanted = last.get(&name).copied().unwrap_or(0);
        let (port, holder) = hold(wanted).or_else(|_| hold(0))?;
        ports.insert(name, port);
        held.push(holder);
    }
    Ok(ports)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Free ports are counted from `free` on.
    fn on_a_host_with(taken: &[u16], mut free: u16, last: &Ports) -> Ports {
        let hold = |port| match port {
            0 => {
                free += 1;
                Ok((free, ()))
            }
            port if taken.contains(&port) => Err(io::ErrorKind::AddrInUse.into()),
            port => Ok((port, ())),
        };
        assign(last, hold).unwrap()
    }

    #[test]
    fn ports_stay_the_same_unless_somebody_took_one() {
        let first = on_a_host_with(&[], 40_000, &Ports::new());
        assert_eq!(first.len(), Name::ALL.len());
        let taken = first[&Name::Core];
        let mut second = on_a_host_with(&[taken], 50_000, &first);
        assert_ne!(second.insert(Name::Core, taken), Some(taken));
        assert_eq!(second, first);
    }

    #[test]
    fn what_was_chosen_is_read_at_the_next_start() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("ports.json");
        let chosen = choose(&file).unwrap();
        let kept: Ports = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
        assert_eq!(kept, chosen);
        let different: std::collections::BTreeSet<&u16> = chosen.values().collect();
        assert_eq!(different.len(), Name::ALL.len());
    }
}
