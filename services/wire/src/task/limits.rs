//! How long an attempt at a task may take, and how long it may be silent.

use super::{CoreTask, HypervisorTask, StorageTask, Task};
use std::time::Duration;

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(60 * 60);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// A time-out that grows with the bytes there are to handle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Scale {
    /// For anything that is small.
    floor: Duration,
    /// The slowest rate that is still work, in bytes per second.
    rate: u64,
    /// However much there is.
    ceiling: Duration,
}

/// What changes headers and names.
const QUICK: Scale = Scale {
    floor: MINUTE.saturating_mul(10),
    rate: 64 << 20,
    ceiling: HOUR.saturating_mul(6),
};
/// What reads or writes whole images.
const COPY: Scale = Scale {
    floor: HOUR,
    rate: 8 << 20,
    ceiling: DAY.saturating_mul(7),
};
/// What only asks.
const WORD: Scale = Scale {
    floor: MINUTE,
    rate: u64::MAX,
    ceiling: HOUR,
};

/// How long a task may tell nothing, neither progress nor output of a tool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Silence {
    /// It has no steps to tell of: only its time-out counts.
    Any,
    /// It's quick.
    Short,
    /// Its tools may work through a whole image without a word.
    Long,
}

impl Scale {
    fn of(self, bytes: u64) -> Duration {
        let work = Duration::from_secs(bytes / self.rate);
        self.floor.saturating_add(work).min(self.ceiling)
    }
}

impl Task {
    /// How long an attempt may take where the job doesn't say, from its claim to its fence.
    /// `bytes` is how much there is to handle, as soon as the work has told it.
    #[must_use]
    pub fn default_timeout(&self, bytes: Option<u64>) -> Duration {
        let scale = self.scale();
        let bytes = bytes.or(self.bytes_asked()).unwrap_or(0);
        scale.of(bytes).saturating_add(self.time_asked())
    }

    fn scale(&self) -> Scale {
        match self {
            Self::Storage(task) => match task {
                StorageTask::Ping(_) => WORD,
                StorageTask::CreateDisk(_)
                | StorageTask::CreateSnapshot(_)
                | StorageTask::RevertSnapshot(_)
                | StorageTask::DeleteSnapshot(_)
                | StorageTask::CheckDisk(_)
                | StorageTask::DeleteDisk(_)
                | StorageTask::FinishUpload(_)
                | StorageTask::Download(_) => COPY,
                StorageTask::Resize(_)
                | StorageTask::RestoreDisk(_)
                | StorageTask::DeleteMedia(_)
                | StorageTask::AdoptDisk(_)
                | StorageTask::AdoptMedia(_)
                | StorageTask::Upload(_) => QUICK,
                StorageTask::Convert(_)
                | StorageTask::Commit(_)
                | StorageTask::Rebase(_)
                | StorageTask::Sparsify(_)
                | StorageTask::ArchiveDisk(_)
                | StorageTask::UnarchiveDisk(_)
                | StorageTask::MoveDisk(_)
                | StorageTask::ImportUrl(_) => COPY,
            },
            Self::Hypervisor(task) => match task {
                HypervisorTask::Ping(_) => WORD,
                HypervisorTask::CheckDomain(_)
                | HypervisorTask::StartDomain(_)
                | HypervisorTask::StopDomain(_)
                | HypervisorTask::ResumeDomain(_)
                | HypervisorTask::ResetDomain(_)
                | HypervisorTask::Resize(_)
                | HypervisorTask::DeleteDomain(_) => QUICK,
                HypervisorTask::CreateSnapshot(_)
                | HypervisorTask::RevertSnapshot(_)
                | HypervisorTask::DeleteSnapshot(_)
                | HypervisorTask::Commit(_) => COPY,
            },
            Self::Core(task) => match task {
                CoreTask::Ping(_) | CoreTask::Feedback(_) => WORD,
            },
        }
    }

    /// Bytes that the parameters themselves name.
    fn bytes_asked(&self) -> Option<u64> {
        match self {
            Self::Storage(StorageTask::CreateDisk(create)) => {
                create.size.as_ref().map(|size| size.bytes())
            }
            Self::Storage(_) | Self::Hypervisor(_) | Self::Core(_) => None,
        }
    }

    /// Time that the parameters themselves ask for.
    fn time_asked(&self) -> Duration {
        let ping = match self {
            Self::Storage(StorageTask::Ping(ping))
            | Self::Hypervisor(HypervisorTask::Ping(ping))
            | Self::Core(CoreTask::Ping(ping)) => Some(ping),
            Self::Hypervisor(HypervisorTask::StopDomain(stop)) => {
                return Duration::from_secs(stop.deadline_s.get());
            }
            Self::Storage(_) | Self::Hypervisor(_) | Self::Core(_) => None,
        };
        let sleep = ping.and_then(|ping| ping.sleep_ms);
        Duration::from_millis(sleep.map_or(0, |millis| millis.get()))
    }

    /// How long it may be silent.
    #[must_use]
    pub fn silence(&self) -> Silence {
        match self {
            Self::Storage(StorageTask::Ping(_) | StorageTask::Upload(_)) => Silence::Any,
            Self::Storage(_) if self.scale() == COPY => Silence::Long,
            Self::Storage(_) => Silence::Short,
            // The copy of a running domain's disk says how far it is all the time.
            Self::Hypervisor(HypervisorTask::Commit(_)) => Silence::Long,
            Self::Hypervisor(_) | Self::Core(_) => Silence::Any,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::queue::Class;
    use serde_json::{Value, json};

    const GIB: u64 = 1 << 30;

    fn task(class: Class, name: &str, params: &Value) -> Task {
        Task::restore(class, name, params).unwrap()
    }

    #[test]
    fn time_outs_grow_with_the_work_between_floor_and_ceiling() {
        let convert = json!({"disk": "d", "to": "e", "format": "raw"});
        let create = json!({"disk": "d", "size": "8TiB"});
        let (resize, none) = (json!({"disk": "d", "size": "8TiB"}), json!({}));
        let stop = json!({"domain": "d", "deadline_s": 600});
        let (storage, hypervisor) = (Class::Storage, Class::Hypervisor);
        let cases = [
            (storage, "ping", &none, None, 60),
            (storage, "ping", &json!({"sleep_ms": 5000}), Some(GIB), 65),
            (storage, "convert", &convert, None, 3600),
            (storage, "convert", &convert, Some(GIB), 3600 + 128),
            (
                storage,
                "convert",
                &convert,
                Some(1024 * GIB),
                3600 + 128 * 1024,
            ),
            (storage, "convert", &convert, Some(u64::MAX), 7 * 86_400),
            // What is told counts more than what was asked for.
            (storage, "create_disk", &create, None, 7 * 86_400),
            (storage, "create_disk", &create, Some(GIB), 3600 + 128),
            // Growing writes nothing, so the size asked for doesn't count.
            (storage, "resize", &resize, None, 600),
            (hypervisor, "stop_domain", &stop, None, 1200),
            (Class::Core, "ping", &none, Some(GIB), 60),
        ];
        for (class, name, params, bytes, seconds) in cases {
            let told = task(class, name, params).default_timeout(bytes);
            assert_eq!(
                told,
                Duration::from_secs(seconds),
                "{name} {params} {bytes:?}"
            );
        }
    }

    #[test]
    fn what_is_long_may_be_silent_for_long() {
        let resize = json!({"disk": "d", "size": "1GiB"});
        let check = json!({"disk": "d"});
        for (class, name, params, silence) in [
            (Class::Storage, "ping", json!({}), Silence::Any),
            (Class::Storage, "resize", resize, Silence::Short),
            (Class::Storage, "check_disk", check, Silence::Long),
            (
                Class::Hypervisor,
                "commit",
                json!({"domain": "d", "disk": "e"}),
                Silence::Long,
            ),
            (
                Class::Hypervisor,
                "resume_domain",
                json!({"domain": "d"}),
                Silence::Any,
            ),
        ] {
            assert_eq!(task(class, name, &params).silence(), silence, "{name}");
        }
    }
}
