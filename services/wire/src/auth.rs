//! What a token says: who somebody is and what they may.

use crate::id::{Tenant, User};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::{borrow::Cow, collections::BTreeSet, fmt, str::FromStr};

/// One thing that a token allows.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
pub enum Scope {
    /// To see one's own jobs.
    #[serde(rename = "jobs:read:own")]
    JobsReadOwn,
    /// To see the jobs of one's tenant.
    #[serde(rename = "jobs:read:tenant")]
    JobsReadTenant,
    /// To see all jobs.
    #[serde(rename = "jobs:read:all")]
    JobsReadAll,
    /// To submit jobs, and to cancel, hurry or retry those one sees.
    #[serde(rename = "jobs:write")]
    JobsWrite,
    /// To pause, resume and purge queues.
    #[serde(rename = "queues:write")]
    QueuesWrite,
    /// Everything.
    #[serde(rename = "admin")]
    Admin,
}

impl Scope {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::JobsReadOwn,
        Self::JobsReadTenant,
        Self::JobsReadAll,
        Self::JobsWrite,
        Self::QueuesWrite,
        Self::Admin,
    ];

    /// The name as it stands in tokens.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::JobsReadOwn => "jobs:read:own",
            Self::JobsReadTenant => "jobs:read:tenant",
            Self::JobsReadAll => "jobs:read:all",
            Self::JobsWrite => "jobs:write",
            Self::QueuesWrite => "queues:write",
            Self::Admin => "admin",
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A word that is no scope.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("is not a scope")]
pub struct UnknownScope;

impl FromStr for Scope {
    type Err = UnknownScope;

    fn from_str(text: &str) -> Result<Self, UnknownScope> {
        Self::ALL
            .into_iter()
            .find(|scope| scope.as_str() == text)
            .ok_or(UnknownScope)
    }
}

/// What a token allows. Read from text with blanks between (RFC 8693) or from a list; scopes of
/// other programs are passed over.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Scopes(BTreeSet<Scope>);

impl Scopes {
    /// Whether it allows this; `admin` allows everything.
    #[must_use]
    pub fn allows(&self, scope: Scope) -> bool {
        self.0.contains(&scope) || self.0.contains(&Scope::Admin)
    }

    /// The scopes themselves.
    pub fn iter(&self) -> impl Iterator<Item = Scope> {
        self.0.iter().copied()
    }
}

impl FromIterator<Scope> for Scopes {
    fn from_iter<I: IntoIterator<Item = Scope>>(scopes: I) -> Self {
        Self(scopes.into_iter().collect())
    }
}

impl Serialize for Scopes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let words: Vec<&str> = self.iter().map(Scope::as_str).collect();
        serializer.serialize_str(&words.join(" "))
    }
}

impl<'de> Deserialize<'de> for Scopes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl<'de> de::Visitor<'de> for Visitor {
            type Value = Scopes;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("scopes: text with blanks between, or a list")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Scopes, E> {
                Ok(text
                    .split(' ')
                    .filter_map(|word| word.parse().ok())
                    .collect())
            }

            fn visit_seq<A: de::SeqAccess<'de>>(self, mut list: A) -> Result<Scopes, A::Error> {
                let mut scopes = Scopes::default();
                while let Some(word) = list.next_element::<Cow<'_, str>>()? {
                    scopes.0.extend(word.parse::<Scope>());
                }
                Ok(scopes)
            }
        }

        deserializer.deserialize_any(Visitor)
    }
}

impl JsonSchema for Scopes {
    fn schema_name() -> Cow<'static, str> {
        "Scopes".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "Scopes: text with blanks between, or a list.",
            "oneOf": [
                { "type": "string" },
                { "type": "array", "items": { "type": "string" } }
            ]
        })
    }
}

/// The claims of a token that matter here; others are passed over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Claims {
    /// The user.
    pub sub: User,
    /// The user's tenant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<Tenant>,
    /// What the token allows.
    #[serde(default)]
    pub scope: Scopes,
    /// When it ends, in seconds since 1970.
    pub exp: u64,
    /// For which services it is.
    pub aud: Audience,
}

/// For which services a token is: one name, or several.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Audience {
    /// One.
    One(String),
    /// Several.
    Several(Vec<String>),
}

impl Audience {
    /// Whether the token is for this service.
    #[must_use]
    pub fn includes(&self, service: &str) -> bool {
        match self {
            Self::One(name) => name == service,
            Self::Several(names) => names.iter().any(|name| name == service),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scopes_are_read_from_text_and_from_a_list() {
        let wanted: Scopes = [Scope::JobsReadOwn, Scope::JobsWrite].into_iter().collect();
        for json in [
            r#""jobs:write jobs:read:own""#,
            r#"["jobs:read:own","jobs:write"]"#,
            r#""  jobs:read:own openid jobs:write ""#,
        ] {
            assert_eq!(
                serde_json::from_str::<Scopes>(json).unwrap(),
                wanted,
                "{json}"
            );
        }
        let text = serde_json::to_string(&wanted).unwrap();
        assert_eq!(text, r#""jobs:read:own jobs:write""#);
        assert!(!wanted.allows(Scope::QueuesWrite));
    }

    #[test]
    fn an_administrator_may_do_everything() {
        let admin: Scopes = [Scope::Admin].into_iter().collect();
        assert!(Scope::ALL.into_iter().all(|scope| admin.allows(scope)));
    }

    #[test]
    fn a_claim_without_a_user_or_an_end_is_no_token() {
        let whole = r#"{"sub":"alice","scope":"admin","exp":1,"aud":["virtbus"],"iss":"x"}"#;
        let claims: Claims = serde_json::from_str(whole).unwrap();
        assert!(claims.aud.includes("virtbus"));
        for json in [
            r#"{"exp":1,"aud":"x"}"#,
            r#"{"sub":"a","aud":"x"}"#,
            r#"{"sub":"a","exp":1}"#,
        ] {
            assert!(serde_json::from_str::<Claims>(json).is_err(), "{json}");
        }
    }
}
