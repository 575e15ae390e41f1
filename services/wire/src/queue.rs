//! Queues: the subjects that jobs are published to, and the names that follow from them.

use crate::id::Label;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use std::{borrow::Cow, fmt, str::FromStr};

/// How urgent a job is. Strict: a queue's `low` waits while its `high` has work.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Priority {
    /// Before everything else; some slots of a worker may be kept for it.
    High,
    /// The usual one.
    Default,
    /// After everything else.
    Low,
}

impl Priority {
    /// From the most to the least urgent.
    pub const ALL: [Self; 3] = [Self::High, Self::Default, Self::Low];

    /// The token of a subject.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::High => "high",
            Self::Default => "default",
            Self::Low => "low",
        }
    }
}

impl fmt::Display for Priority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Priority {
    type Err = UnknownQueue;

    fn from_str(text: &str) -> Result<Self, UnknownQueue> {
        Self::ALL
            .into_iter()
            .find(|p| p.as_str() == text)
            .ok_or(UnknownQueue)
    }
}

/// Which services take a job.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Class {
    /// Services that hold pools of disks.
    Storage,
    /// Services that speak to a libvirt daemon.
    Hypervisor,
    /// The feedback service.
    Core,
}

impl Class {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Storage, Self::Hypervisor, Self::Core];

    /// The first token of its subjects.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Storage => "storage",
            Self::Hypervisor => "hypervisor",
            Self::Core => "core",
        }
    }

    /// The stream its jobs wait in.
    #[must_use]
    pub fn stream(self) -> &'static str {
        match self {
            Self::Storage => "STORAGE",
            Self::Hypervisor => "HYPERVISOR",
            Self::Core => "CORE",
        }
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Two different pools, in order: whoever has both takes the jobs between them.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PoolPair(Label, Label);

impl PoolPair {
    /// The pair of two pools, whatever their order; none of a pool with itself.
    #[must_use]
    pub fn new(one: Label, other: Label) -> Option<Self> {
        match one.cmp(&other) {
            std::cmp::Ordering::Less => Some(Self(one, other)),
            std::cmp::Ordering::Equal => None,
            std::cmp::Ordering::Greater => Some(Self(other, one)),
        }
    }

    /// The pools, in byte order.
    #[must_use]
    pub fn pools(&self) -> [&Label; 2] {
        [&self.0, &self.1]
    }
}

/// What a storage queue belongs to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Place {
    /// One pool.
    Pool(Label),
    /// Two pools, for work from one to the other.
    Pair(PoolPair),
}

impl Place {
    /// The pools a service must have to serve this.
    #[must_use]
    pub fn pools(&self) -> Vec<&Label> {
        match self {
            Self::Pool(pool) => vec![pool],
            Self::Pair(pair) => pair.pools().to_vec(),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pool(pool) => write!(f, "{pool}"),
            Self::Pair(PoolPair(one, other)) => write!(f, "{one}_{other}"),
        }
    }
}

/// A queue. Its `Display` is its subject; [`FromStr`] reads it back.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Queue {
    /// `storage.<pool>.<priority>`, `storage.<a>_<b>.<priority>`
    Storage(Place, Priority),
    /// `hypervisor.<pool or hypervisor>.<priority>`; which of the two only the catalogue knows.
    Hypervisor(Label, Priority),
    /// `core`
    Core,
}

/// A subject that is no queue.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "is not a queue: storage.<pool>.<priority>, storage.<a>_<b>.<priority> (sorted), \
     hypervisor.<pool or hypervisor>.<priority> or core"
)]
pub struct UnknownQueue;

impl Queue {
    /// The subject to publish to.
    #[must_use]
    pub fn subject(&self) -> String {
        self.to_string()
    }

    /// The name of its durable consumer: the subject with `_` for `.`.
    #[must_use]
    pub fn consumer(&self) -> String {
        self.to_string().replace('.', "_")
    }

    /// The stream its jobs wait in.
    #[must_use]
    pub fn stream(&self) -> &'static str {
        self.class().stream()
    }

    /// Which services take its jobs.
    #[must_use]
    pub fn class(&self) -> Class {
        match self {
            Self::Storage(..) => Class::Storage,
            Self::Hypervisor(..) => Class::Hypervisor,
            Self::Core => Class::Core,
        }
    }

    /// Its priority; `core` has only one.
    #[must_use]
    pub fn priority(&self) -> Priority {
        match self {
            Self::Storage(_, priority) | Self::Hypervisor(_, priority) => *priority,
            Self::Core => Priority::Default,
        }
    }

    /// The same place with another priority; `core` has none to change.
    #[must_use]
    pub fn with_priority(&self, priority: Priority) -> Option<Self> {
        match self {
            Self::Storage(place, _) => Some(Self::Storage(place.clone(), priority)),
            Self::Hypervisor(name, _) => Some(Self::Hypervisor(name.clone(), priority)),
            Self::Core => None,
        }
    }
}

impl fmt::Display for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Storage(place, priority) => write!(f, "storage.{place}.{priority}"),
            Self::Hypervisor(name, priority) => write!(f, "hypervisor.{name}.{priority}"),
            Self::Core => f.write_str("core"),
        }
    }
}

impl FromStr for Queue {
    type Err = UnknownQueue;

    fn from_str(subject: &str) -> Result<Self, UnknownQueue> {
        let tokens: Vec<&str> = subject.split('.').collect();
        match tokens[..] {
            ["core"] => Ok(Self::Core),
            ["storage", place, priority] => {
                Ok(Self::Storage(parse_place(place)?, priority.parse()?))
            }
            ["hypervisor", name, priority] => Ok(Self::Hypervisor(label(name)?, priority.parse()?)),
            _ => Err(UnknownQueue),
        }
    }
}

impl TryFrom<String> for Queue {
    type Error = UnknownQueue;

    fn try_from(subject: String) -> Result<Self, UnknownQueue> {
        subject.parse()
    }
}

impl From<Queue> for String {
    fn from(queue: Queue) -> Self {
        queue.to_string()
    }
}

impl JsonSchema for Queue {
    fn schema_name() -> Cow<'static, str> {
        "Queue".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let label = "[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?";
        json_schema!({
            "description": "The subject of a queue.",
            "type": "string",
            "pattern": format!(
                "^(storage\\.{label}(_{label})?\\.(high|default|low)\
                 |hypervisor\\.{label}\\.(high|default|low)|core)$"
            )
        })
    }
}

fn parse_place(token: &str) -> Result<Place, UnknownQueue> {
    let Some((one, other)) = token.split_once('_') else {
        return Ok(Place::Pool(label(token)?));
    };
    let (one, other) = (label(one)?, label(other)?);
    if one < other {
        Ok(Place::Pair(PoolPair(one, other)))
    } else {
        Err(UnknownQueue)
    }
}

fn label(token: &str) -> Result<Label, UnknownQueue> {
    token.parse().map_err(|_| UnknownQueue)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_no_queue_is_refused() {
        for subject in [
            "",
            "core.x",
            "storage",
            "storage.p",
            "storage.p.urgent",
            "storage.b_a.low",
            "storage.a_a.low",
            "storage.*.low",
            "storage.p.low.x",
            "hypervisor.a_b.low",
            "storage.A.low",
            "storage.a_b_c.low",
            "Core",
        ] {
            assert!(subject.parse::<Queue>().is_err(), "{subject:?}");
        }
    }

    #[test]
    fn a_consumer_is_named_like_its_subject() {
        let queue: Queue = "storage.a_b.low".parse().unwrap();
        assert_eq!(
            (queue.consumer().as_str(), queue.stream()),
            ("storage_a_b_low", "STORAGE")
        );
        let queue: Queue = "hypervisor.hv-1.low".parse().unwrap();
        assert_eq!(queue.consumer(), "hypervisor_hv-1_low");
    }

    fn any_label() -> impl Strategy<Value = Label> {
        "[a-z0-9]([a-z0-9-]{0,10}[a-z0-9])?".prop_map(|text| text.parse().unwrap())
    }

    fn any_queue() -> impl Strategy<Value = Queue> {
        let priority = || prop::sample::select(Priority::ALL.to_vec());
        let place = (any_label(), any_label()).prop_map(|(one, other)| {
            PoolPair::new(one.clone(), other).map_or(Place::Pool(one), Place::Pair)
        });
        prop_oneof![
            (place, priority()).prop_map(|(place, priority)| Queue::Storage(place, priority)),
            (any_label(), priority())
                .prop_map(|(name, priority)| Queue::Hypervisor(name, priority)),
            Just(Queue::Core),
        ]
    }

    proptest! {
        #[test]
        fn a_subject_reads_back_as_its_queue(queue in any_queue()) {
            prop_assert_eq!(queue.subject().parse::<Queue>().unwrap(), queue);
        }

        #[test]
        fn two_queues_never_share_a_consumer(one in any_queue(), other in any_queue()) {
            prop_assert_eq!(one.consumer() == other.consumer(), one == other);
        }
    }
}
