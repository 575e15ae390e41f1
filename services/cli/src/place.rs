//! Where a job goes when its submitter doesn't name the queue: the class its task and parameters
//! belong to, the place of what it works on, the priority that is the task's home.

use crate::exit::Failure;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use virtbus_bus::{Bucket, Bus};
use virtbus_wire::{
    Class, Label, Place, PoolPair, Priority, Queue, Task,
    task::{Home, Object},
};

/// What was said about where.
#[derive(Debug, Clone, Default)]
pub(crate) struct Wish {
    pub(crate) pool: Option<Label>,
    pub(crate) hypervisor: Option<Label>,
    pub(crate) priority: Option<Priority>,
    /// The context's pool.
    pub(crate) usual_pool: Option<Label>,
}

/// The class of a task. Names that two classes know go by whether a domain is named.
///
/// # Errors
/// When no class knows the task.
pub(crate) fn class(
    task: &str,
    params: &Map<String, Value>,
    on_a_host: bool,
) -> Result<Class, Failure> {
    let knows = |class| Task::names(class).contains(&task);
    let known: Vec<Class> = Class::ALL
        .into_iter()
        .filter(|class| knows(*class))
        .collect();
    let names_a_domain = on_a_host || params.contains_key("domain");
    let wanted = if names_a_domain {
        Class::Hypervisor
    } else {
        Class::Storage
    };
    let chosen = if known.contains(&wanted) {
        Some(wanted)
    } else {
        known.first().copied()
    };
    chosen.ok_or_else(|| {
        let mut failure = Failure::usage(format!("no task is named {task:?}"));
        failure.code = "job.unknown_task".to_owned();
        let names = Class::ALL.map(|class| Task::names(class).join(", "));
        failure.hint(format!(
            "storage: {}; hypervisor: {}; core: {}",
            names[0], names[1], names[2]
        ))
    })
}

/// The queue of a task.
///
/// # Errors
/// When the place can't be told.
pub(crate) async fn queue(bus: &Bus, task: &Task, wish: &Wish) -> Result<Queue, Failure> {
    let priority = wish.priority.unwrap_or_else(|| task.home_priority());
    match task.class() {
        Class::Core => Ok(Queue::Core),
        Class::Storage => {
            let pool = match &wish.pool {
                Some(pool) => pool.clone(),
                None => pool_of(bus, task, wish).await?,
            };
            let place = match (task.home(), other_pool(task)) {
                (Home::Pair, Some(other)) => Place::Pair(pair(pool, other)?),
                (Home::Pair, None) | (Home::Pool | Home::Host | Home::Core, _) => Place::Pool(pool),
            };
            Ok(Queue::Storage(place, priority))
        }
        Class::Hypervisor => {
            let name = match (&wish.hypervisor, &wish.pool) {
                (Some(name), _) | (None, Some(name)) => name.clone(),
                (None, None) => host_of(bus, task, wish).await?,
            };
            Ok(Queue::Hypervisor(name, priority))
        }
    }
}

/// The pool that `move_disk` moves to.
fn other_pool(task: &Task) -> Option<Label> {
    let params = task.params();
    params.get("pool").and_then(Value::as_str)?.parse().ok()
}

fn pair(one: Label, other: Label) -> Result<PoolPair, Failure> {
    let name = one.to_string();
    PoolPair::new(one, other).ok_or_else(|| Failure::usage(format!("it is in pool {name} already")))
}

/// The pool of the first thing the task names that the catalogue knows, else the usual one.
async fn pool_of(bus: &Bus, task: &Task, wish: &Wish) -> Result<Label, Failure> {
    for object in task.objects() {
        let (bucket, id) = match &object {
            Object::Disk(id) => ("disks", id.to_string()),
            Object::Media(id) => ("media", id.to_string()),
            Object::Domain(id) => ("domains", id.to_string()),
        };
        if let Some(pool) = field(bus, bucket, &id, "pool").await? {
            return Ok(pool);
        }
    }
    match &wish.usual_pool {
        Some(pool) => Ok(pool.clone()),
        None => default_pool(bus).await,
    }
}

/// The host a domain is on where the task needs that, else the pool whose hosts may take it.
async fn host_of(bus: &Bus, task: &Task, wish: &Wish) -> Result<Label, Failure> {
    if task.home() == Home::Host {
        for object in task.objects() {
            let Object::Domain(id) = &object else {
                continue;
            };
            if let Some(host) = field(bus, "domains", id.as_str(), "hypervisor").await? {
                return Ok(host);
            }
        }
    }
    pool_of(bus, task, wish).await
}

async fn field(
    bus: &Bus,
    bucket: &'static str,
    key: &str,
    field: &str,
) -> Result<Option<Label>, Failure> {
    let entry = Bucket::<Value>::new(bus, bucket).get(key).await?;
    let found = entry.and_then(|entry| entry.value.get(field)?.as_str()?.parse().ok());
    Ok(found)
}

/// The one registered pool, or the one that is marked as default.
async fn default_pool(bus: &Bus) -> Result<Label, Failure> {
    let pools: BTreeMap<String, Value> = crate::command::pools::registered(bus).await?;
    let is_default = |pool: &Value| pool.get("default").and_then(Value::as_bool) == Some(true);
    let marked = pools.iter().find(|(_, pool)| is_default(pool));
    let only = if pools.len() == 1 {
        pools.iter().next()
    } else {
        None
    };
    marked
        .or(only)
        .and_then(|(name, _)| name.parse().ok())
        .ok_or_else(|| {
            Failure::usage("no pool is the default one")
                .hint("say --pool POOL (`virtbus pools list`), or --queue SUBJECT")
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn class_of(task: &str, params: Value, on_a_host: bool) -> Result<Class, Failure> {
        class(task, params.as_object().unwrap(), on_a_host)
    }

    #[test]
    fn a_task_of_two_classes_goes_by_whether_a_domain_is_named() {
        let disk = class_of("resize", json!({"disk": "d"}), false);
        assert_eq!(disk.unwrap(), Class::Storage);
        let live = class_of("resize", json!({"domain": "v", "disk": "d"}), false);
        assert_eq!(live.unwrap(), Class::Hypervisor);
        assert_eq!(class_of("ping", json!({}), false).unwrap(), Class::Storage);
        assert_eq!(
            class_of("ping", json!({}), true).unwrap(),
            Class::Hypervisor
        );
        assert_eq!(class_of("feedback", json!({}), false).unwrap(), Class::Core);
        let unknown = class_of("mkfs", json!({}), false).unwrap_err();
        assert_eq!(unknown.code, "job.unknown_task");
    }
}
