//! `virtbus.disks.*`, `media.*`, `domains.*`, `virtbus.pools.lookup`.

use super::{Failed, placement::not_found};
use crate::service::Stores;
use serde::{Serialize, de::DeserializeOwned};
use std::str::FromStr;
use virtbus_bus::{Bucket, BusError, Row};
use virtbus_wire::{
    DiskId, DomainId, JobError, Label, MediaId, Object, Tenant, Timestamp,
    catalog::{DiskRecord, DiskState, DomainRecord, InUseBy, MediaRecord},
    control::{
        ById, DiskList, DiskRow, DomainList, DomainRow, ListOf, Location, LookUp, MediaList,
        MediaRow,
    },
    task::{Target, hypervisor::DomainState},
};

/// Rows of a list, when nothing else is said.
const LIMIT: usize = 100;

/// What domains and downloads hold without a lock.
pub(super) trait Held: Serialize + DeserializeOwned {
    /// Who holds it.
    fn users(&mut self) -> &mut Vec<InUseBy>;
}

/// What lists ask of a record.
pub(super) trait Thing: Serialize + DeserializeOwned {
    /// Its states.
    type State: PartialEq;

    /// The pool it's in.
    fn pool(&self) -> &Label;
    /// Whose it is.
    fn tenant(&self) -> Option<&Tenant>;
    /// Its state.
    fn state(&self) -> Self::State;
    /// When it was last used; none while it is.
    fn used_at(&self) -> Option<Timestamp>;
    /// Whether only its name is left.
    fn is_gone(&self) -> bool;
}

/// What disks and media have in common here: all but what their files hold.
macro_rules! images {
    ($($record:ident),+) => {$(
        impl Thing for $record {
            type State = DiskState;

            fn pool(&self) -> &Label {
                &self.pool
            }

            fn tenant(&self) -> Option<&Tenant> {
                self.tenant.as_ref()
            }

            fn state(&self) -> DiskState {
                self.state
            }

            // One that nobody ever used counts from its last change.
            fn used_at(&self) -> Option<Timestamp> {
                let last = self.last_used_at.unwrap_or(self.updated_at);
                self.in_use_by.is_empty().then_some(last)
            }

            fn is_gone(&self) -> bool {
                self.state == DiskState::Deleted
            }
        }

        impl Held for $record {
            fn users(&mut self) -> &mut Vec<InUseBy> {
                &mut self.in_use_by
            }
        }
    )+};
}

images!(DiskRecord, MediaRecord);

impl Thing for DomainRecord {
    type State = DomainState;

    fn pool(&self) -> &Label {
        &self.pool
    }

    fn tenant(&self) -> Option<&Tenant> {
        self.tenant.as_ref()
    }

    fn state(&self) -> DomainState {
        self.state
    }

    fn used_at(&self) -> Option<Timestamp> {
        let is_off = match self.state {
            DomainState::Shutoff | DomainState::Crashed => true,
            DomainState::Running | DomainState::Paused | DomainState::Shutdown => false,
            DomainState::Pmsuspended | DomainState::Unknown => false,
        };
        is_off.then(|| self.last_started_at.unwrap_or(self.updated_at))
    }

    fn is_gone(&self) -> bool {
        false
    }
}

fn matches<T: Thing>(asked: &ListOf<T::State>, thing: &T, now: Timestamp) -> bool {
    let state = match &asked.state {
        Some(state) => *state == thing.state(),
        None => !thing.is_gone(),
    };
    let is_unused = asked.unused_since.is_none_or(|since| {
        let since = since.at(now);
        thing.used_at().is_some_and(|used| used < since)
    });
    state
        && is_unused
        && asked.pool.as_ref().is_none_or(|pool| pool == thing.pool())
        && (asked.tenant.is_none() || asked.tenant.as_ref() == thing.tenant())
}

/// The rows that match, those changed last at the end, and where the list goes on: a revision.
async fn list<T: Thing, I: FromStr, R>(
    bucket: &Bucket<T>,
    asked: &ListOf<T::State>,
    row_of: impl Fn(I, T) -> R,
) -> Result<(Vec<R>, Option<String>), Failed> {
    let limit = asked
        .limit
        .map_or(LIMIT, |limit| usize::try_from(limit.get()).unwrap_or(LIMIT));
    let begin: u64 = match &asked.cursor {
        Some(text) => text
            .parse()
            .map_err(|_| JobError::invalid_params("cursor", "is not one of ours"))?,
        None => 1,
    };
    let now = bucket.bus().now();
    let mut found = Vec::new();
    let mut from = Some(begin);
    while let Some(revision) = from {
        let page = bucket.page(revision).await?;
        for row in page.items {
            // One that can't be read is left out, as anywhere.
            let (Ok(id), Ok(Some(entry))) = (row.key.parse(), row.entry) else {
                continue;
            };
            if !matches(asked, &entry.value, now) {
                continue;
            }
            if found.len() == limit {
                return Ok((found, Some(row.revision.to_string())));
            }
            found.push(row_of(id, entry.value));
        }
        from = page.next;
    }
    Ok((found, None))
}

/// How many records of a pool are left.
pub(super) async fn count<T: Thing>(bucket: &Bucket<T>, pool: &Label) -> Result<u64, BusError> {
    let mut count = 0;
    let each = |row: Row<T>| {
        // One that can't be read may well be there.
        let is_left = match row.entry {
            Ok(Some(entry)) => entry.value.pool() == pool && !entry.value.is_gone(),
            Ok(None) => false,
            Err(_) => true,
        };
        count += u64::from(is_left);
    };
    bucket.each_from(1, each).await?;
    Ok(count)
}

async fn get<'a, T: Thing, I: AsRef<str>>(bucket: &Bucket<T>, id: &'a I) -> Result<T, Failed>
where
    Object: From<&'a I>,
{
    let found = bucket.get_latest(id.as_ref()).await?;
    let there = found.map(|entry| entry.value);
    let there = there.filter(|thing| !thing.is_gone());
    there.ok_or_else(|| not_found(&id.into()).into())
}

pub(super) async fn disk(stores: &Stores, asked: ById<DiskId>) -> Result<DiskRow, Failed> {
    let disk = get(&stores.catalogue.disks, &asked.id).await?;
    Ok(DiskRow { id: asked.id, disk })
}

pub(super) async fn medium(stores: &Stores, asked: ById<MediaId>) -> Result<MediaRow, Failed> {
    let media = get(&stores.catalogue.media, &asked.id).await?;
    Ok(MediaRow {
        id: asked.id,
        media,
    })
}

pub(super) async fn domain(stores: &Stores, asked: ById<DomainId>) -> Result<DomainRow, Failed> {
    let domain = get(&stores.catalogue.domains, &asked.id).await?;
    Ok(DomainRow {
        id: asked.id,
        domain,
    })
}

pub(super) async fn disks(stores: &Stores, asked: ListOf<DiskState>) -> Result<DiskList, Failed> {
    let row_of = |id, disk| DiskRow { id, disk };
    let (disks, cursor) = list(&stores.catalogue.disks, &asked, row_of).await?;
    Ok(DiskList { disks, cursor })
}

pub(super) async fn media(stores: &Stores, asked: ListOf<DiskState>) -> Result<MediaList, Failed> {
    let row_of = |id, media| MediaRow { id, media };
    let (media, cursor) = list(&stores.catalogue.media, &asked, row_of).await?;
    Ok(MediaList { media, cursor })
}

pub(super) async fn domains(
    stores: &Stores,
    asked: ListOf<DomainState>,
) -> Result<DomainList, Failed> {
    let row_of = |id, domain| DomainRow { id, domain };
    let (domains, cursor) = list(&stores.catalogue.domains, &asked, row_of).await?;
    Ok(DomainList { domains, cursor })
}

/// The pool of a disk or a medium.
pub(super) async fn look_up(stores: &Stores, asked: LookUp) -> Result<Location, Failed> {
    let pool = match &asked {
        Target::Disk(id) => get(&stores.catalogue.disks, id).await?.pool,
        Target::Media(id) => get(&stores.catalogue.media, id).await?.pool,
    };
    Ok(Location { pool })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn disk(more: Value) -> DiskRecord {
        let mut record = json!({"pool": "p", "format": "qcow2", "state": "ready",
            "tenant": "acme", "updated_at": "2026-01-01T00:00:00.000Z"});
        let more = more.as_object().unwrap().clone();
        record.as_object_mut().unwrap().extend(more);
        serde_json::from_value(record).unwrap()
    }

    #[test]
    fn a_list_shows_what_was_asked_for() {
        let now: Timestamp = "2026-06-01T00:00:00.000Z".parse().unwrap();
        let used = json!({"last_used_at": "2026-05-31T00:00:00.000Z"});
        let held = json!({"in_use_by": [{"domain": "v", "hypervisor": "h", "mode": "shared"}]});
        for (asked, record, is_shown) in [
            (json!({}), json!({}), true),
            (
                json!({"pool": "p", "tenant": "acme", "state": "ready"}),
                json!({}),
                true,
            ),
            (json!({"pool": "q"}), json!({}), false),
            (json!({"tenant": "other"}), json!({}), false),
            (json!({"state": "broken"}), json!({}), false),
            (json!({}), json!({"state": "deleted"}), false),
            (
                json!({"state": "deleted"}),
                json!({"state": "deleted"}),
                true,
            ),
            (json!({"unused_since": "30d"}), json!({}), true),
            (json!({"unused_since": "30d"}), used.clone(), false),
            (json!({"unused_since": "1h"}), used, true),
            (json!({"unused_since": "1h"}), held, false),
        ] {
            let list: ListOf<DiskState> = serde_json::from_value(asked.clone()).unwrap();
            let record = disk(record);
            assert_eq!(matches(&list, &record, now), is_shown, "{asked} {record:?}");
        }
    }

    #[test]
    fn a_domain_that_is_on_is_in_use() {
        let record = |state: &str| -> DomainRecord {
            serde_json::from_value(json!({"uuid": "0199b1c2-0000-7000-8000-000000000001",
                "pool": "p", "state": state, "desired": "shutoff",
                "updated_at": "2026-01-01T00:00:00.000Z"}))
            .unwrap()
        };
        assert!(record("shutoff").used_at().is_some());
        for state in ["running", "paused", "unknown"] {
            assert_eq!(record(state).used_at(), None, "{state}");
        }
    }
}
