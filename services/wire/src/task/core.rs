//! The tasks of class `core`.

use super::params::{Home, plain};
pub use super::ping::{Ping, Pong};
use super::value::Token;
use crate::id::{Tenant, User};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use std::borrow::Cow;

/// An application's own message to browsers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Feedback {
    /// To whom.
    pub to: Audience,
    /// What it's about: programs choose by it.
    pub topic: Token,
    /// Whatever the application has to say.
    pub payload: serde_json::Value,
}

/// Who gets a message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Audience {
    /// One user.
    User(User),
    /// Everyone of a tenant.
    Tenant(Tenant),
    /// Everyone whose token has this scope.
    Role(Token),
    /// Everyone.
    All(True),
}

/// The value `true`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct True;

impl Serialize for True {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bool(true)
    }
}

impl<'de> Deserialize<'de> for True {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if bool::deserialize(deserializer)? {
            Ok(Self)
        } else {
            Err(D::Error::custom("must be true"))
        }
    }
}

impl JsonSchema for True {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "True".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "const": true })
    }
}

/// How many got a message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Delivered {
    /// Open sockets that it was sent to; none is a success too.
    pub delivered: u64,
}

plain!(Feedback => Delivered, "feedback", Default, [], HOME: Home = Home::Core);
