//! Pure: what differs between a definition and what the server holds, and what to send.

use serde::Serialize;
use serde_json::{Map, Value};

/// What becomes of a difference.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Effect {
    /// The server is given the wanted value.
    Set,
    /// The server has more than the file asks for: a site's own decision, left as it is.
    Kept,
    /// The server can't change it on an existing asset; a person has to decide.
    Fixed,
}

/// One field that differs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Change {
    /// The key in the server's JSON.
    pub field: String,
    /// What the file says; null if it doesn't name the field.
    pub wanted: Value,
    /// What the server has; null if it has the default.
    pub found: Value,
    /// What becomes of it.
    pub effect: Effect,
}

/// How a kind of asset is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rules {
    /// A stream or bucket; whether somebody asked for its number of replicas.
    Stream { replicas_asked_for: bool },
    /// A consumer of a queue.
    Consumer,
}

/// Fields that are never ours: the server's own marks, where a site puts its data, a pause.
const STREAM_CARRIED: [&str; 3] = ["metadata", "placement", "first_seq"];
const CONSUMER_CARRIED: [&str; 3] = ["metadata", "pause_until", "num_replicas"];

/// Fields the server refuses to change, whatever the values.
const STREAM_FIXED: [&str; 5] = [
    "name",
    "retention",
    "storage",
    "mirror",
    "allow_msg_counter",
];
const CONSUMER_FIXED: [&str; 7] = [
    "name",
    "durable_name",
    "deliver_policy",
    "ack_policy",
    "replay_policy",
    "max_waiting",
    "mem_storage",
];
/// Promises of a stream that can be made, and not taken back.
const ONE_WAY: [&str; 4] = ["deny_delete", "deny_purge", "sealed", "allow_msg_ttl"];

impl Rules {
    fn carried(self) -> &'static [&'static str] {
        match self {
            Self::Stream { .. } => &STREAM_CARRIED,
            Self::Consumer => &CONSUMER_CARRIED,
        }
    }

    fn effect(self, field: &str, wanted: &Map<String, Value>, found: &Value) -> Effect {
        match self {
            Self::Consumer if CONSUMER_FIXED.contains(&field) => Effect::Fixed,
            Self::Consumer => Effect::Set,
            Self::Stream { replicas_asked_for } => {
                let more = is_more(field, wanted, found);
                if more && !(field == "num_replicas" && replicas_asked_for) {
                    Effect::Kept
                } else if STREAM_FIXED.contains(&field)
                    || (ONE_WAY.contains(&field) && *found == Value::Bool(true))
                {
                    Effect::Fixed
                } else {
                    Effect::Set
                }
            }
        }
    }
}

/// Whether the server's limit is larger than the file's, where larger only means more room.
/// A bucket's `max_age` is a meaning (a lease), not room; neither is its history.
fn is_more(field: &str, wanted: &Map<String, Value>, found: &Value) -> bool {
    let number = |value: &Value| value.as_i64().unwrap_or(0);
    let (ours, theirs) = (wanted.get(field).map_or(0, number), number(found));
    let bucket = wanted
        .get("name")
        .and_then(Value::as_str)
        .is_some_and(|name| name.starts_with("KV_"));
    match field {
        "num_replicas" | "duplicate_window" | "max_consumers" => theirs > ours,
        "max_bytes" => theirs > ours || theirs <= 0,
        "max_msgs_per_subject" if !bucket => theirs > ours || theirs <= 0,
        "max_age" if !bucket => theirs > ours || theirs == 0,
        _ => false,
    }
}

/// The differences, in the order of their fields' names.
pub(super) fn changes(
    rules: Rules,
    wanted: &Map<String, Value>,
    found: &Map<String, Value>,
) -> Vec<Change> {
    let mut fields: Vec<&String> = wanted.keys().chain(found.keys()).collect();
    fields.sort();
    fields.dedup();
    fields
        .into_iter()
        .filter(|field| !rules.carried().contains(&field.as_str()))
        .filter_map(|field| {
            let value = |map: &Map<String, Value>| map.get(field).map_or(Value::Null, canonical);
            let (ours, theirs) = (value(wanted), value(found));
            (ours != theirs).then(|| Change {
                effect: rules.effect(field, wanted, &theirs),
                field: field.clone(),
                wanted: ours,
                found: theirs,
            })
        })
        .collect()
}

/// The configuration to send: the wanted one, with what the server keeps.
pub(super) fn update(
    rules: Rules,
    wanted: &Map<String, Value>,
    found: &Map<String, Value>,
    changes: &[Change],
) -> Map<String, Value> {
    let kept = changes
        .iter()
        .filter(|change| change.effect == Effect::Kept)
        .map(|change| change.field.as_str());
    let mut config = wanted.clone();
    for field in kept.chain(rules.carried().iter().copied()) {
        match found.get(field) {
            Some(value) => {
                config.insert(field.to_owned(), value.clone());
            }
            None if rules.carried().contains(&field) => {}
            None => {
                config.remove(field);
            }
        }
    }
    config
}

/// A value without what the server leaves out: false, 0, empty and null members of objects, and
/// at the top null for each of them. `"none"` is the server's way to say no compression.
pub(super) fn canonical(value: &Value) -> Value {
    match value {
        Value::Object(members) => {
            let members: Map<String, Value> = members
                .iter()
                .map(|(key, value)| (key.clone(), canonical(value)))
                .filter(|(_, value)| !value.is_null())
                .collect();
            if members.is_empty() {
                Value::Null
            } else {
                Value::Object(members)
            }
        }
        Value::Array(items) if items.is_empty() => Value::Null,
        Value::Bool(false) => Value::Null,
        Value::Number(number) if number.as_i64() == Some(0) => Value::Null,
        Value::String(text) if matches!(text.as_str(), "" | "none") => Value::Null,
        Value::Null | Value::Bool(true) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
            value.clone()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const PLAIN: Rules = Rules::Stream {
        replicas_asked_for: false,
    };

    fn map(value: Value) -> Map<String, Value> {
        value.as_object().unwrap().clone()
    }

    fn effects(rules: Rules, wanted: Value, found: Value) -> Vec<(String, Effect)> {
        changes(rules, &map(wanted), &map(found))
            .into_iter()
            .map(|change| (change.field, change.effect))
            .collect()
    }

    #[test]
    fn defaults_left_out_by_the_server_are_no_drift() {
        let wanted = json!({"name": "S", "sealed": false, "max_age": 0, "compression": "none",
            "republish": {"src": "a", "dest": "b", "headers_only": false}});
        let found = json!({"name": "S", "consumer_limits": {}, "metadata": {"_nats.ver": "2"},
            "republish": {"src": "a", "dest": "b"}});
        assert_eq!(effects(PLAIN, wanted, found), []);
    }

    #[test]
    fn a_setting_the_file_does_not_have_is_taken_back() {
        let found = json!({"name": "S", "persist_mode": "async"});
        assert_eq!(
            effects(PLAIN, json!({"name": "S"}), found),
            [("persist_mode".to_owned(), Effect::Set)]
        );
    }

    #[test]
    fn more_room_is_kept_and_less_is_set() {
        let wanted = json!({"name": "S", "max_bytes": 10, "max_age": 5, "num_replicas": 1});
        let more = json!({"name": "S", "max_bytes": -1, "max_age": 9, "num_replicas": 3});
        let less = json!({"name": "S", "max_bytes": 9, "max_age": 4, "num_replicas": 1});
        let all = |rules, found| -> Vec<Effect> {
            let all = effects(rules, wanted.clone(), found);
            all.into_iter().map(|(_, effect)| effect).collect()
        };
        assert_eq!(all(PLAIN, more.clone()), [Effect::Kept; 3]);
        assert_eq!(all(PLAIN, less), [Effect::Set; 2]);
        let asked = Rules::Stream {
            replicas_asked_for: true,
        };
        assert_eq!(all(asked, more), [Effect::Kept, Effect::Kept, Effect::Set]);
    }

    #[test]
    fn the_lease_of_a_bucket_is_no_room() {
        let (wanted, found) = (
            json!({"name": "KV_workers", "max_age": 5}),
            json!({"name": "KV_workers"}),
        );
        assert_eq!(
            effects(PLAIN, wanted, found),
            [("max_age".to_owned(), Effect::Set)]
        );
    }

    #[test]
    fn an_update_carries_what_is_the_sites() {
        let wanted = map(json!({"name": "S", "max_bytes": 10, "max_msgs": -1}));
        let found = map(
            json!({"name": "S", "max_bytes": 20, "placement": {"tags": ["ssd"]},
            "persist_mode": "async"}),
        );
        let differences = changes(PLAIN, &wanted, &found);
        assert_eq!(
            Value::Object(update(PLAIN, &wanted, &found, &differences)),
            json!({"name": "S", "max_bytes": 20, "max_msgs": -1, "placement": {"tags": ["ssd"]}})
        );
    }

    #[test]
    fn a_promise_cannot_be_taken_back() {
        let wanted = json!({"deny_delete": false, "deny_purge": true});
        let found = json!({"deny_delete": true, "deny_purge": false});
        assert_eq!(
            effects(PLAIN, wanted, found),
            [
                ("deny_delete".to_owned(), Effect::Fixed),
                ("deny_purge".to_owned(), Effect::Set)
            ]
        );
    }
}
