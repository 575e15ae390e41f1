//! Objects within parameters are read by the names of their fields alone.
//!
//! serde would also take a list, by position, for a struct; no schema and no other reader would.

use serde::{
    Deserialize, Deserializer,
    de::{self, DeserializeOwned, value::MapAccessDeserializer},
};
use std::{fmt, marker::PhantomData};

/// A struct that was read from an object.
pub(super) struct Named<T>(pub(super) T);

impl<'de, T: DeserializeOwned> Deserialize<'de> for Named<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor<T>(PhantomData<T>);

        impl<'de, T: DeserializeOwned> de::Visitor<'de> for Visitor<T> {
            type Value = Named<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<Named<T>, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map)).map(Named)
            }
        }

        deserializer.deserialize_map(Visitor(PhantomData))
    }
}

/// An object that may be left out or null.
pub(super) fn maybe<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: DeserializeOwned,
{
    let named = Option::<Named<T>>::deserialize(deserializer)?;
    Ok(named.map(|Named(value)| value))
}
