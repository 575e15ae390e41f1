//! Ports on loopback: free when chosen, the same ones at the next start.

use super::{Name, files};
use crate::exit::Failure;
use std::{
    collections::BTreeMap,
    io,
    net::{Ipv4Addr, TcpListener},
    ops::Range,
    path::Path,
};

/// One port for each that listens.
pub(crate) type Ports = BTreeMap<Name, u16>;

/// Where ports are looked for: above those of screens, and below those that Linux gives out by
/// itself, or any connection made before a service binds its port might be given just that one.
const FREELY: Range<u16> = 30_000..32_768;
/// How far apart processes begin that look at the same time.
const APART: u16 = 101;

/// The ports of the last start as far as they are still free, else others; kept in `file`.
///
/// # Errors
/// When there is no free port, or the file can't be written.
pub(crate) fn choose(file: &Path) -> Result<Ports, Failure> {
    let last = std::fs::read(file).ok();
    let last: Ports = last
        .and_then(|text| serde_json::from_slice(&text).ok())
        .unwrap_or_default();
    let ports = assign(&last, others(std::process::id()), |port| {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port))?;
        Ok((listener.local_addr()?.port(), listener))
    })?;
    let text = serde_json::to_string(&ports).map_err(|error| Failure::failed(error.to_string()))?;
    files::write(file, &text)?;
    Ok(ports)
}

/// The ports to look at, by a process of this id; at last any that the system gives (0).
fn others(process: u32) -> impl Iterator<Item = u16> {
    let count = FREELY.end - FREELY.start;
    let [low, high, ..] = process.to_le_bytes();
    let begin = u16::from_le_bytes([low, high]).wrapping_mul(APART) % count;
    let ports = (0..count).map(move |at| FREELY.start + (begin + at) % count);
    ports.chain(std::iter::repeat(0))
}

/// A port for each: the last one if it can be held, else the next of the others that can.
fn assign<Held>(
    last: &Ports,
    mut others: impl Iterator<Item = u16>,
    mut hold: impl FnMut(u16) -> io::Result<(u16, Held)>,
) -> io::Result<Ports> {
    // All are held until all are chosen, or one would be given out twice.
    let mut held = Vec::new();
    let mut ports = Ports::new();
    for name in Name::ALL {
        let (port, holder) = match last.get(&name).copied().map(&mut hold) {
            Some(Ok(held)) => held,
            Some(Err(_)) | None => next(&mut others, &mut hold)?,
        };
        ports.insert(name, port);
        held.push(holder);
    }
    Ok(ports)
}

/// The first that can be held.
fn next<Held>(
    others: &mut impl Iterator<Item = u16>,
    hold: &mut impl FnMut(u16) -> io::Result<(u16, Held)>,
) -> io::Result<(u16, Held)> {
    loop {
        let port = others.next().unwrap_or(0);
        match hold(port) {
            Err(error) if port != 0 && error.kind() == io::ErrorKind::AddrInUse => {}
            other => return other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn on_a_host_with(taken: &[u16], last: &Ports) -> Ports {
        let hold = |port| match port {
            0 => Ok((40_000, ())),
            port if taken.contains(&port) => Err(io::ErrorKind::AddrInUse.into()),
            port => Ok((port, ())),
        };
        assign(last, others(7), hold).unwrap()
    }

    #[test]
    fn no_port_is_one_that_a_connection_is_given_by_chance() {
        let chosen = on_a_host_with(&[], &Ports::new());
        assert!(
            chosen.values().all(|port| FREELY.contains(port)),
            "{chosen:?}"
        );
        let all: Vec<u16> = FREELY.collect();
        let chosen = on_a_host_with(&all, &Ports::new());
        assert!(
            chosen.values().all(|port| *port == 40_000),
            "as none else is left"
        );
    }

    #[test]
    fn ports_stay_the_same_unless_somebody_took_one() {
        let first = on_a_host_with(&[], &Ports::new());
        assert_eq!(first.len(), Name::ALL.len());
        let taken = first[&Name::Core];
        let mut second = on_a_host_with(&[taken], &first);
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
