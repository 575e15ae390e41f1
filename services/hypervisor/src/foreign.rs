//! Domains that nobody made over the bus: they have no record, but what they use of our pools is in
//! use all the same.

use crate::{
    catalog::{CatalogError, Hold},
    domains::Domains,
    libvirt::Seen,
    place::Roots,
};
use virtbus_wire::{DiskId, DomainId, JobError, MediaId, catalog::UseMode};

/// Holds what a domain uses that runs and has no record; says what that is. Nothing of one that
/// doesn't run.
pub(crate) async fn hold(domains: &Domains, domain: &DomainId) -> Result<Vec<Hold>, JobError> {
    let seen = domains.host.domain(domain.as_str()).await?;
    let Some(seen) = seen.filter(|seen| seen.is_active) else {
        return Ok(Vec::new());
    };
    let holds = used_by(domains, &seen).await?;
    let holder = domains.holder(domain);
    match domains.catalog.hold(&holder, &holds).await {
        // It runs, whatever else is said of what it uses.
        Err(CatalogError::Refused(error)) => {
            tracing::error!(%domain, %error, "runs with what isn't its own");
        }
        other => other?,
    }
    Ok(holds)
}

/// What a domain that runs uses of our pools, as libvirt says.
pub(crate) async fn used_by(domains: &Domains, seen: &Seen) -> Result<Vec<Hold>, JobError> {
    let mut holds = Vec::new();
    for (_, path) in &seen.disks {
        match used(&domains.settings.roots, path) {
            Some(Hold::Disk(disk, mode)) => {
                let chain = domains.chain_of(&disk).await?.into_iter();
                let below = chain.skip(1).map(|id| Hold::Disk(id, UseMode::Shared));
                holds.extend(below);
                holds.push(Hold::Disk(disk, mode));
            }
            Some(media) => holds.push(media),
            None => {}
        }
    }
    Ok(holds)
}

/// The disk or medium of a pool that a file is.
fn used(roots: &Roots, path: &str) -> Option<Hold> {
    roots.values().find_map(|root| {
        let (folder, name) = path
            .strip_prefix(root.as_str())?
            .trim_start_matches('/')
            .split_once('/')?;
        let (id, _) = name.split_once('.')?;
        match folder {
            "disks" => {
                let id = id.parse::<DiskId>().ok()?;
                Some(Hold::Disk(id, UseMode::Exclusive))
            }
            "media" => id.parse::<MediaId>().ok().map(Hold::Media),
            _ => None,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_a_disk_or_a_medium_of_the_pool_that_it_lies_in() {
        let roots = Roots::from([("default".parse().unwrap(), "/srv/pool".into())]);
        let disk = Hold::Disk("d7".parse().unwrap(), UseMode::Exclusive);
        assert_eq!(used(&roots, "/srv/pool/disks/d7.qcow2"), Some(disk));
        let media = Hold::Media("debian".parse().unwrap());
        assert_eq!(used(&roots, "/srv/pool/media/debian.iso"), Some(media));
        for other in [
            "/srv/other/disks/d7.qcow2",
            "/srv/pool/d7.qcow2",
            "/srv/pool/disks/d7",
            "/srv/pool/disks/../x/d7.qcow2",
        ] {
            assert_eq!(used(&roots, other), None, "{other}");
        }
    }
}
