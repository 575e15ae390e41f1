//! Who uses a disk or a medium: the rules of `in_use_by`, pure.

use crate::catalog::Holder;
use virtbus_wire::{
    DomainId, JobError, Label, Timestamp,
    catalog::{InUseBy, UseMode},
};

/// Who uses a thing in a way that goes not with what is wanted.
pub(crate) fn conflict<'a>(
    users: &'a [InUseBy],
    holder: &Holder,
    mode: UseMode,
    now: Timestamp,
) -> Option<&'a InUseBy> {
    users.iter().find(|user| match user {
        InUseBy::Domain {
            domain,
            hypervisor,
            mode: other,
        } => {
            let is_own = *domain == holder.domain && *hypervisor == holder.hypervisor;
            !is_own && (mode == UseMode::Exclusive || *other == UseMode::Exclusive)
        }
        InUseBy::Job { expires_at, .. } => mode == UseMode::Exclusive && *expires_at > now,
    })
}

/// The users of a thing with this one among them; none when it is already. A domain that has a
/// disk as its own and below another one holds it in the stricter way.
pub(crate) fn held(
    users: &[InUseBy],
    holder: &Holder,
    mode: UseMode,
    now: Timestamp,
    error: &JobError,
) -> Result<Option<Vec<InUseBy>>, JobError> {
    match conflict(users, holder, mode, now) {
        None => {}
        Some(InUseBy::Domain {
            domain, hypervisor, ..
        }) => {
            return Err(error
                .clone()
                .with("domain", domain.as_str())
                .with("hypervisor", hypervisor.as_str()));
        }
        Some(InUseBy::Job { job, .. }) => return Err(error.clone().with("job", job.as_str())),
    }
    let own = InUseBy::Domain {
        domain: holder.domain.clone(),
        hypervisor: holder.hypervisor.clone(),
        mode,
    };
    if users.contains(&own) {
        return Ok(None);
    }
    let mut next = freed(users, holder).unwrap_or_else(|| users.to_vec());
    next.push(own);
    Ok(Some(next))
}

/// The users of a thing without this one; none when it wasn't among them.
pub(crate) fn freed(users: &[InUseBy], holder: &Holder) -> Option<Vec<InUseBy>> {
    let others = users.iter().filter(|user| !is_of(user, holder));
    let others: Vec<InUseBy> = others.cloned().collect();
    (others.len() < users.len()).then_some(others)
}

/// The domains among the users that are on this host.
pub(crate) fn domains_on<'a>(
    host: &'a Label,
    users: &'a [InUseBy],
) -> impl Iterator<Item = &'a DomainId> {
    users.iter().filter_map(move |user| match user {
        InUseBy::Domain {
            domain, hypervisor, ..
        } if hypervisor == host => Some(domain),
        InUseBy::Domain { .. } | InUseBy::Job { .. } => None,
    })
}

fn is_of(user: &InUseBy, holder: &Holder) -> bool {
    match user {
        InUseBy::Domain {
            domain, hypervisor, ..
        } => *domain == holder.domain && *hypervisor == holder.hypervisor,
        InUseBy::Job { .. } => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use virtbus_wire::Code;

    fn holder(domain: &str, hypervisor: &str) -> Holder {
        Holder {
            domain: domain.parse().unwrap(),
            hypervisor: hypervisor.parse().unwrap(),
        }
    }

    fn hold(users: &[InUseBy], who: &Holder, mode: UseMode) -> Result<Vec<InUseBy>, JobError> {
        let error = JobError::new(Code::DiskInUse, "the disk is in use");
        held(users, who, mode, Timestamp::now(), &error)
            .map(|next| next.unwrap_or_else(|| users.to_vec()))
    }

    #[test]
    fn one_domain_writes_or_several_read() {
        let (web1, web2) = (holder("web1", "hv1"), holder("web2", "hv1"));
        let users = hold(&[], &web1, UseMode::Exclusive).unwrap();
        for mode in [UseMode::Exclusive, UseMode::Shared] {
            let error = hold(&users, &web2, mode).unwrap_err();
            assert_eq!(error.code, Code::DiskInUse);
            assert_eq!(error.detail["domain"], "web1");
        }
        assert_eq!(hold(&users, &web1, UseMode::Exclusive).unwrap(), users);
        let users = hold(&[], &web1, UseMode::Shared).unwrap();
        let users = hold(&users, &web2, UseMode::Shared).unwrap();
        assert_eq!(users.len(), 2);
        assert_eq!(freed(&users, &web1).unwrap().len(), 1);
        assert_eq!(freed(&users, &holder("web3", "hv1")), None);
    }

    #[test]
    fn the_same_domain_on_another_host_is_another_user() {
        let users = hold(&[], &holder("web1", "hv1"), UseMode::Exclusive).unwrap();
        assert!(hold(&users, &holder("web1", "hv2"), UseMode::Exclusive).is_err());
        assert_eq!(freed(&users, &holder("web1", "hv2")), None);
    }

    #[test]
    fn a_download_keeps_a_writer_out_until_it_expires() {
        let at = |expires_at: &str| {
            [InUseBy::Job {
                job: "j1".parse().unwrap(),
                expires_at: expires_at.parse().unwrap(),
            }]
        };
        let web1 = holder("web1", "hv1");
        let (over, not_yet) = (
            at("2001-01-01T00:00:00.000Z"),
            at("2999-01-01T00:00:00.000Z"),
        );
        assert!(hold(&over, &web1, UseMode::Exclusive).is_ok());
        assert!(hold(&not_yet, &web1, UseMode::Exclusive).is_err());
        assert!(hold(&not_yet, &web1, UseMode::Shared).is_ok());
    }
}
