//! Ports on loopback: free when chosen, the same ones at the next start.

use super::{Name, files};
use crate::exit::Failure;
use std::{
    collections::BTreeMap,
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
    // All are held until all are chosen, or one would be given out twice.
    let mut held = Vec::new();
    let mut ports = Ports::new();
    for name in Name::ALL {
        let wanted = last.get(&name).copied().unwrap_or(0);
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, wanted))
            .or_else(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))?;
        ports.insert(name, listener.local_addr()?.port());
        held.push(listener);
    }
    drop(held);
    let text = serde_json::to_string(&ports).map_err(|error| Failure::failed(error.to_string()))?;
    files::write(file, &text)?;
    Ok(ports)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_stay_the_same_unless_somebody_took_one() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("ports.json");
        let first = choose(&file).unwrap();
        assert_eq!(first.len(), Name::ALL.len());
        assert_eq!(choose(&file).unwrap(), first);
        let taken = first[&Name::Core];
        let _listener = TcpListener::bind((Ipv4Addr::LOCALHOST, taken)).unwrap();
        let second = choose(&file).unwrap();
        assert_ne!(second[&Name::Core], taken);
        assert_eq!(second[&Name::Nats], first[&Name::Nats]);
    }
}
