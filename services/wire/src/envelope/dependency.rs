//! Which jobs a job comes after, and in which of their ends.

use crate::{id::JobId, state::StateName};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, de};
use std::borrow::Cow;

/// The most states in which another job satisfies: there are no more final ones.
pub const ON_MAX: usize = 3;

/// A job that must end first. `"<id>"` is short for `{"job": "<id>"}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Dependency {
    /// The job to wait for.
    pub job: JobId,
    /// The final states that satisfy; `["succeeded"]` when left out.
    pub on: Vec<StateName>,
}

impl Dependency {
    /// The schema of one in a request of several jobs, which may also name an earlier one.
    pub(crate) fn among_several(generator: &mut SchemaGenerator) -> Schema {
        let id = generator.subschema_for::<JobId>();
        id_or_full(&json_schema!({
            "description": "A job's id, or how far before it is in the same request: -1, or \"-1\".",
            "anyOf": [
                id,
                { "type": "integer", "maximum": -1 },
                { "type": "string", "pattern": "^-[1-9][0-9]*$" }
            ]
        }))
    }
}

/// With its states; `job` is how the job is named.
fn full(job: &Schema) -> Schema {
    json_schema!({
        "description": "A job that must end first, and in which final states.",
        "type": "object",
        "properties": {
            "job": job,
            "on": {
                "type": "array",
                "minItems": 1,
                "maxItems": ON_MAX,
                "items": { "enum": ["succeeded", "failed", "cancelled"] }
            }
        },
        "required": ["job"]
    })
}

fn id_or_full(job: &Schema) -> Schema {
    json_schema!({
        "description": "A job that must end first; its id alone stands for its success.",
        "oneOf": [job, full(job)]
    })
}

impl JsonSchema for Dependency {
    fn schema_name() -> Cow<'static, str> {
        "Dependency".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let job = generator.subschema_for::<JobId>();
        if generator.contract().is_serialize() {
            full(&job)
        } else {
            id_or_full(&job)
        }
    }
}

impl<'de> Deserialize<'de> for Dependency {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct Full {
            job: JobId,
            #[serde(default = "on_success")]
            on: Vec<StateName>,
        }

        struct Visitor;

        impl<'de> de::Visitor<'de> for Visitor {
            type Value = Dependency;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a job id, or {\"job\": id, \"on\": [states]}")
            }

            fn visit_str<E: de::Error>(self, id: &str) -> Result<Dependency, E> {
                let job = id.parse().map_err(E::custom)?;
                Ok(Dependency {
                    job,
                    on: on_success(),
                })
            }

            fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<Dependency, A::Error> {
                let full = Full::deserialize(de::value::MapAccessDeserializer::new(map))?;
                let is_bounded = (1..=ON_MAX).contains(&full.on.len());
                if !is_bounded || full.on.iter().any(|state| !state.is_final()) {
                    let message = format!("on: must be final states, from 1 to {ON_MAX}");
                    return Err(de::Error::custom(message));
                }
                Ok(Dependency {
                    job: full.job,
                    on: full.on,
                })
            }
        }

        deserializer.deserialize_any(Visitor)
    }
}

fn on_success() -> Vec<StateName> {
    vec![StateName::Succeeded]
}
